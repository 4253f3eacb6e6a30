//! Reads an [`Cohort`] from one snapshot: of everybody, or of the users whom new facts touched.
//!
//! DataFusion scans and joins: participation, the conversions attributed to it, the conversions shortly before it, and the
//! property of the first exposure that users are split by.

use std::collections::HashMap;
use std::sync::Arc;

use ::catalogue::Trigger;
use ::catalogue::exposures::Exposure;
use arrow::array::{Array, AsArray, Int32Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use futures_util::TryStreamExt;
use uuid::Uuid;

use super::cohort::{Cohort, DAY_US, Row, Rows, Touch, Touches, Users};
use super::exposed;
use super::sources::SourceQuery;
use super::traits::TraitQuery;
use crate::engine::{self, Session};
use crate::experiment::request::COVARIATE_DAYS;
use crate::http::error::ApiError;
use crate::source::copy::Kind;
use crate::source::snapshot::Snapshot;
use crate::source::tables::{Column, Source, Table, USER_KEY};

/// Users whose impressions are read by their ids; with more, all impressions of the experiment are.
const IDS_MAX: usize = 2_000;

/// The conversions of the users.
const ATTRIBUTED: &str = "SELECT u.n, a.name, a.currency, a.value, a.time, a.confidence
                          FROM attributed a JOIN users u ON a.user_key = u.user_key WHERE a.time IS NOT NULL";

/// What is to be read.
pub struct CohortQuery<'a> {
    /// Which experiment.
    pub experiment: Uuid,
    /// Its variants; their places are the numbers of arms.
    pub variants: &'a [Uuid],
    /// The times in which impressions count, half open, in microseconds since 1970.
    pub assigning: &'a [(Option<i64>, Option<i64>)],
    /// When everybody was assigned anew, ascending: from then on no impression counts of a user who had been exposed before.
    pub reassigned: &'a [i64],
    /// What exposes users; none: impressions that name the experiment.
    pub exposure: Option<&'a Exposure>,
    /// What begins the analysis of a user; none: the exposure.
    pub trigger: Option<&'a Trigger>,
    /// Whether conversions before the first exposure are read.
    pub has_before: bool,
    /// The experiment's window in days, after which nothing is attributed, and the longest one of its metrics, up to which
    /// conversions are read nevertheless.
    pub window_days: (i32, i32),
    /// What the definitions of metrics speak of.
    pub sources: &'a [SourceQuery],
    /// What is to be known of each first exposure.
    pub traits: &'a [TraitQuery],
    /// Bytes that what is read may take.
    pub bytes_max: usize,
}

/// Whose rows are read.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Everybody's.
    Everyone,
    /// Those of these users.
    These(Vec<Uuid>),
}

/// A query, put to one project's rows.
pub(super) struct Reader<'a> {
    pub(super) session: &'a Session,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) query: &'a CohortQuery<'a>,
    pub(super) scope: &'a Scope,
}

/// Reads everything on one snapshot.
/// # Errors
/// [`ApiError`]; also if it takes more memory than a query may use.
pub async fn read(
    session: &Session,
    snapshot: &Arc<Snapshot>,
    query: &CohortQuery<'_>,
    scope: &Scope,
) -> Result<Cohort, ApiError> {
    let reader = Reader { session, snapshot, query, scope };
    reader.cohort().await.map_err(engine::api_error)
}

impl Reader<'_> {
    async fn cohort(&self) -> Result<Cohort, DataFusionError> {
        self.add(self.participants())?;
        self.add(self.attributed())?;
        let mut cohort = Cohort { users: self.users().await?, ..Cohort::default() };
        if let Some(trigger) = self.query.trigger {
            self.triggered(trigger, &mut cohort.users).await?;
        }
        let (mut names, mut currencies) = (Numbers::<String>::default(), Numbers::<Option<String>>::default());
        let mut after = self.conversions(ATTRIBUTED, &mut names, &mut currencies).await?;
        if let Some(sql) = self.later_sql(&cohort.users) {
            self.add(self.facts("later"))?;
            after.extend(self.conversions(&sql, &mut names, &mut currencies).await?);
        }
        let mut before = Vec::new();
        if self.query.has_before
            && let Some(sql) = self.before_sql(&cohort.users)
        {
            self.add(self.facts("earlier"))?;
            before = self.conversions(&sql, &mut names, &mut currencies).await?;
        }
        for (place, source) in self.query.sources.iter().enumerate() {
            cohort.sources.push(self.source(place, source, &cohort.users, &mut currencies).await?);
        }
        let ((names, name_places), (currencies, currency_places)) = (names.sorted(), currencies.sorted());
        for source in &mut cohort.sources {
            let same: Vec<u32> = (0..).take(source.texts.len()).collect();
            source.number(&same, &currency_places);
        }
        for (_, row) in after.iter_mut().chain(&mut before) {
            row.name = name_places[row.name as usize];
            row.currency = currency_places[row.currency as usize];
        }
        cohort.after = Rows::new(cohort.users.len(), after);
        cohort.before = Rows::new(cohort.users.len(), before);
        (cohort.names, cohort.currencies) = (names, currencies);
        let traits = self.traits(cohort.users.len()).await?;
        cohort.traits = self.query.traits.iter().cloned().zip(traits).collect();
        cohort.touches = self.touches(&cohort).await?;
        Ok(cohort)
    }

    pub(super) fn add(&self, table: Table) -> Result<(), DataFusionError> {
        self.session.add(table.name, Session::scan_of(table, self.snapshot))
    }

    /// Participation of one experiment, with a number for the variant: 36 bytes of text per user would be most of the scan.
    fn participants(&self) -> Table {
        let columns = [
            (USER_KEY.name, "f.user_id", Kind::Key),
            ("arm", &self.arm(), Kind::Int),
            ("exposed", "f.first_exposure_date", Kind::Time),
            ("is_mixed", "cardinality(f.variants_seen) > 1", Kind::Bool),
            ("impressions", "f.total_impressions::bigint", Kind::Long),
            ("first_impression_id", "f.first_impression_id", Kind::Uuid),
        ];
        self.table("participants", "user_experiment_participation", &self.of_experiment(), &columns)
    }

    /// Conversions attributed to one experiment.
    fn attributed(&self) -> Table {
        let columns = [
            (USER_KEY.name, "f.user_id", Kind::Key),
            ("name", "f.conversion_type", Kind::Text),
            ("currency", "f.currency", Kind::Text),
            ("value", "f.conversion_value_attributed", Kind::Decimal(20, 6)),
            ("time", "f.conversion_time", Kind::Time),
            ("confidence", "(f.attribution_confidence * 100)::integer", Kind::Int),
        ];
        self.table("attributed", "conversion_attribution", &self.of_experiment(), &columns)
    }

    /// Conversions that name one experiment or none, as they were sent.
    fn facts(&self, name: &'static str) -> Table {
        let columns = [
            (USER_KEY.name, "f.user_id", Kind::Key),
            ("name", "f.conversion_type", Kind::Text),
            ("currency", "f.currency", Kind::Text),
            ("value", "f.conversion_value", Kind::Decimal(20, 6)),
            ("time", "f.event_time", Kind::Time),
        ];
        let of_experiment = format!("NOT r.is_bot AND (r.experiment_id IS NULL OR {})", self.of_experiment());
        self.table(name, "conversions", &of_experiment, &columns)
    }

    /// The place of a row's variant among those of the query; -1 for another one.
    fn arm(&self) -> String {
        let variants: Vec<String> = self.query.variants.iter().map(|id| format!("'{id}'")).collect();
        format!("coalesce(array_position(ARRAY[{}]::uuid[], f.variant_id), 0) - 1", variants.join(", "))
    }

    pub(super) fn of_experiment(&self) -> String {
        format!("r.experiment_id = '{}'", self.query.experiment)
    }

    /// Makes a table of the rows `r` of a table of Postgres for which `condition` holds, everybody's or some users'.
    pub(super) fn table(
        &self,
        name: &'static str,
        table: &str,
        condition: &str,
        columns: &[(&'static str, &str, Kind)],
    ) -> Table {
        let from = match self.scope {
            Scope::Everyone => format!("(SELECT r.* FROM {table} r WHERE {condition}) f"),
            Scope::These(users) => format!("{} f", rows_of(users, table, self.snapshot.project(), condition)),
        };
        Table {
            name,
            columns: columns.iter().map(|(name, _, kind)| Column { name, kind: *kind }).collect(),
            sources: vec![Source {
                from,
                expressions: columns.iter().map(|(_, expression, _)| (*expression).to_owned()).collect(),
            }],
        }
    }

    /// The table of the users, and the column of it from when on it counts what they do.
    pub(super) fn starts(&self) -> (&'static str, &'static str) {
        if self.query.trigger.is_some() { ("starts", "u.started") } else { ("users", "u.exposed") }
    }

    /// Conversions after the experiment's window, for metrics whose own one is longer, and for users whose windows begin later. Nothing is
    /// attributed there.
    fn later_sql(&self, users: &Users) -> Option<String> {
        let (own, longest) = self.query.window_days;
        let (first, last) = ((0..users.len()).map(|user| users.assigned(user)).min()?, users.exposed.iter().max()?);
        let (table, started) = self.starts();
        (longest > own || self.query.trigger.is_some()).then(|| {
            format!(
                "SELECT u.n, e.name, e.currency, e.value, e.time, CAST(100 AS INT) AS confidence
                 FROM later e JOIN {table} u ON e.user_key = u.user_key
                 WHERE e.time >= {} AND e.time <= {}
                   AND e.time > u.exposed + INTERVAL '{} hours' AND e.time <= {started} + INTERVAL '{} hours'",
                time_literal(first + i64::from(own) * DAY_US),
                time_literal(last + i64::from(longest) * DAY_US),
                i64::from(own) * 24,
                i64::from(longest) * 24,
            )
        })
    }

    /// None without users: there is no time before nothing.
    fn before_sql(&self, users: &Users) -> Option<String> {
        let assigned = || (0..users.len()).map(|user| users.assigned(user));
        let (first, last) = (assigned().min()?, assigned().max()?);
        Some(format!(
            "SELECT u.n, e.name, e.currency, e.value, e.time, CAST(100 AS INT) AS confidence
             FROM earlier e JOIN users u ON e.user_key = u.user_key
             WHERE e.time >= {} AND e.time < {}
               AND e.time >= u.exposed - INTERVAL '{} hours' AND e.time < u.exposed",
            time_literal(first - COVARIATE_DAYS * DAY_US),
            time_literal(last),
            COVARIATE_DAYS * 24,
        ))
    }

    /// Runs SQL to its end, within the memory of a query.
    pub(super) async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
        let plan = self.session.state().create_logical_plan(sql).await?;
        let mut stream = self.session.run(plan).await?;
        let (mut batches, mut bytes): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
        while let Some(batch) = stream.try_next().await? {
            bytes += batch.get_array_memory_size();
            if bytes > self.query.bytes_max {
                let message =
                    format!("the users and conversions of the experiment take more than {} bytes", self.query.bytes_max);
                return Err(DataFusionError::ResourcesExhausted(message));
            }
            batches.push(batch);
        }
        Ok(batches)
    }

    /// Reads the users, and leaves them behind as the table `users` for joins: id, number, first exposure and its impression.
    async fn users(&self) -> Result<Users, DataFusionError> {
        let impression = if !self.query.traits.is_empty() { ", first_impression_id" } else { "" };
        let sql = format!("SELECT user_key, exposed{impression}, arm, is_mixed, impressions FROM participants WHERE arm >= 0");
        let batches = self.collect(&sql).await?;
        let kept = if !self.query.traits.is_empty() { 3 } else { 2 };
        let mut users = Users::default();
        let mut numbered = Vec::new();
        let mut schema = None;
        for batch in &batches {
            let from = users.len();
            let keys = batch.column(0).as_fixed_size_binary();
            for key in keys.iter() {
                users.keys.push(key.and_then(|key| key.try_into().ok()).unwrap_or_default());
            }
            users.exposed.extend(batch.column(1).as_primitive::<TimestampMicrosecondType>().values());
            users.arms.extend(batch.column(kept).as_primitive::<Int32Type>().values().iter().map(|arm| *arm as u32));
            let is_mixed = batch.column(kept + 1).as_boolean();
            users.is_mixed.extend((0..batch.num_rows()).map(|row| is_mixed.value(row)));
            users.impressions.extend(batch.column(kept + 2).as_primitive::<Int64Type>().values());
            let to = i32::try_from(users.len())
                .map_err(|_| DataFusionError::ResourcesExhausted("more than 2,147,483,647 users".to_owned()))?;
            let numbers = Int32Array::from_iter_values(from as i32..to);
            let mut columns = batch.columns()[..kept].to_vec();
            columns.push(Arc::new(numbers));
            let schema = schema.get_or_insert_with(|| {
                let mut fields: Vec<_> = batch.schema().fields()[..kept].to_vec();
                fields.push(Arc::new(Field::new("n", DataType::Int32, false)));
                Arc::new(Schema::new(fields))
            });
            numbered.push(RecordBatch::try_new(schema.clone(), columns)?);
        }
        let schema = schema.unwrap_or_else(|| {
            let field = |column: &Column, name: &str| Field::new(name, column.kind.data_type(), true);
            let mut fields = vec![field(&USER_KEY, "user_key"), Field::new("exposed", Kind::Time.data_type(), true)];
            if !self.query.traits.is_empty() {
                fields.push(Field::new("first_impression_id", Kind::Uuid.data_type(), true));
            }
            fields.push(Field::new("n", DataType::Int32, false));
            Arc::new(Schema::new(fields))
        });
        self.session.add("users", Arc::new(MemTable::try_new(schema, vec![numbered])?))?;
        Ok(users)
    }

    /// Reads conversions: number of the user, name, currency, value, time, confidence.
    pub(super) async fn conversions(
        &self,
        sql: &str,
        names: &mut Numbers<String>,
        currencies: &mut Numbers<Option<String>>,
    ) -> Result<Vec<(u32, Row)>, DataFusionError> {
        let mut rows = Vec::new();
        for batch in self.collect(sql).await? {
            let users = batch.column(0).as_primitive::<Int32Type>();
            let (texts, codes) = (text_column(&batch, 1)?, text_column(&batch, 2)?);
            let values = batch.column(3).as_primitive::<Decimal128Type>();
            let times = batch.column(4).as_primitive::<TimestampMicrosecondType>();
            let confidences = batch.column(5).as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let code = codes.is_valid(row).then(|| codes.value(row).to_owned());
                rows.push((
                    users.value(row) as u32,
                    Row {
                        time: times.value(row),
                        value: values.is_valid(row).then(|| values.value(row)),
                        name: names.of(texts.value(row)),
                        currency: currencies.of(&code),
                        confidence: u8::try_from(confidences.value(row)).unwrap_or(0),
                    },
                ));
            }
        }
        Ok(rows)
    }

    /// Reads the exposures of users who saw several variants and converted.
    async fn touches(&self, cohort: &Cohort) -> Result<Touches, DataFusionError> {
        let mixed: Vec<u32> =
            cohort.after.filled().iter().copied().filter(|user| cohort.users.is_mixed[*user as usize]).collect();
        if mixed.is_empty() {
            return Ok(Touches::new());
        }
        let number_of: HashMap<[u8; 16], u32> = mixed.iter().map(|user| (cohort.users.keys[*user as usize], *user)).collect();
        let columns = |kind| {
            Ok(vec![
                (USER_KEY.name, "f.user_id".to_owned(), Kind::Key),
                ("user_id", "f.user_id".to_owned(), Kind::Uuid),
                ("time", "f.event_time".to_owned(), Kind::Time),
                ("arm", exposed::arm(self.query, kind), Kind::Int),
            ])
        };
        self.add(self.exposures("touches", columns)?)?;
        let mut sql = "SELECT user_key, time, arm FROM touches WHERE arm >= 0".to_owned();
        if mixed.len() <= IDS_MAX {
            let ids: Vec<String> =
                mixed.iter().map(|user| format!("'{}'", Uuid::from_bytes(cohort.users.keys[*user as usize]))).collect();
            sql.push_str(&format!(" AND user_id IN ({})", ids.join(", ")));
        }
        let within = |(from, to): &(Option<i64>, Option<i64>)| {
            let bounds = [(*from, ">="), (*to, "<")].into_iter().filter_map(|(bound, operator)| Some((bound?, operator)));
            let bounds: Vec<String> =
                bounds.map(|(bound, operator)| format!("time {operator} {}", time_literal(bound))).collect();
            if bounds.is_empty() { "true".to_owned() } else { bounds.join(" AND ") }
        };
        let times: Vec<String> = self.query.assigning.iter().map(within).collect();
        sql.push_str(&format!(" AND ({})", if times.is_empty() { "false".to_owned() } else { times.join(" OR ") }));
        let mut touches = Touches::new();
        for batch in self.collect(&sql).await? {
            let keys = batch.column(0).as_fixed_size_binary();
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            let arms = batch.column(2).as_primitive::<Int32Type>();
            for row in 0..batch.num_rows() {
                let user = <[u8; 16]>::try_from(keys.value(row)).ok().and_then(|key| number_of.get(&key));
                let counts = |user: &u32| {
                    let exposed = cohort.users.assigned(*user as usize);
                    let anew = self.query.reassigned.iter().find(|anew| exposed < **anew);
                    times.is_valid(row) && anew.is_none_or(|anew| times.value(row) < *anew)
                };
                if let Some(user) = user.filter(|user| counts(user)) {
                    touches.entry(*user).or_default().push(Touch { time: times.value(row), arm: arms.value(row) as u32 });
                }
            }
        }
        for touches in touches.values_mut() {
            touches.sort_unstable();
        }
        Ok(touches)
    }
}

/// Returns the rows `r` of some users for which `condition` holds, by a look-up for each. OFFSET 0 keeps the planner from joining in another
/// order, which would read all of the table.
pub(super) fn rows_of(users: &[Uuid], table: &str, project: Uuid, condition: &str) -> String {
    format!(
        "(SELECT r.* FROM unnest('{{{}}}'::uuid[]) AS u (user_id) CROSS JOIN LATERAL
          (SELECT r.* FROM {table} r WHERE r.project_id = '{project}' AND r.user_id = u.user_id AND {condition} OFFSET 0) r)",
        users.iter().map(Uuid::to_string).collect::<Vec<_>>().join(","),
    )
}

/// Writes a time as SQL of DataFusion, which folds it into a literal that Postgres is given too.
pub(super) fn time_literal(us: i64) -> String {
    format!("arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

pub(super) fn text_column(batch: &RecordBatch, column: usize) -> Result<&StringViewArray, DataFusionError> {
    let found = batch.column(column);
    found.as_string_view_opt().ok_or_else(|| DataFusionError::Internal(format!("column {column} is {}", found.data_type())))
}

/// Numbers for texts in the order in which they come; [`Numbers::sorted`] puts that right.
#[derive(Default)]
pub(super) struct Numbers<T> {
    numbers: HashMap<T, u32>,
}

impl<T: Clone + Eq + std::hash::Hash + Ord> Numbers<T> {
    pub(super) fn of<Q>(&mut self, text: &Q) -> u32
    where
        T: std::borrow::Borrow<Q>,
        Q: std::hash::Hash + Eq + ToOwned<Owned = T> + ?Sized,
    {
        match self.numbers.get(text) {
            Some(number) => *number,
            None => {
                let number = self.numbers.len() as u32;
                self.numbers.insert(text.to_owned(), number);
                number
            }
        }
    }

    /// Returns the texts in their order, and for each number given out its place among them.
    pub(super) fn sorted(self) -> (Vec<T>, Vec<u32>) {
        let mut texts: Vec<(T, u32)> = self.numbers.into_iter().collect();
        texts.sort();
        let mut places = vec![0; texts.len()];
        for (place, (_, number)) in texts.iter().enumerate() {
            places[*number as usize] = place as u32;
        }
        (texts.into_iter().map(|(text, _)| text).collect(), places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_get_numbers_in_their_order() {
        let mut numbers = Numbers::<String>::default();
        assert_eq!(["b", "a", "b", "c"].map(|text| numbers.of(text)), [0, 1, 0, 2]);
        let (texts, places) = numbers.sorted();
        assert_eq!((texts, places), (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], vec![1, 0, 2]));
    }
}
