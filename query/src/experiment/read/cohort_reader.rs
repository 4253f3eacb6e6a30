//! Reads a [`Cohort`] from one snapshot: of everybody, or of the users whom new facts touched.
//!
//! DataFusion scans: participation, the conversions attributed to it, the conversions shortly before it, and the property of the first
//! exposure that users are split by. Whose rows these are is looked up here, batch by batch, in the numbers that the users have got:
//! a join would build a table of all users for each of them.

use std::sync::Arc;

use ::catalogue::Trigger;
use ::catalogue::exposures::Exposure;
use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use arrow::datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use futures_util::{StreamExt, TryStreamExt};
use uuid::Uuid;

use super::cohort::{Cohort, DAY_US, Row, Rows, Touch, Touches, Users};
use super::exposed;
use super::sources::SourceQuery;
use super::traits::{FirstExposures, TraitQuery};
use crate::engine::{self, Session};
use crate::experiment::request::COVARIATE_DAYS;
use crate::http::error::ApiError;
use crate::source::copy::Kind;
use crate::source::snapshot::Snapshot;
use crate::source::tables::{Column, Source, Table, USER_KEY};

/// Users whose impressions are read by their ids; with more, all impressions of the experiment are.
const IDS_MAX: usize = 2_000;

/// What has no currency comes before all that have one.
pub(super) const NO_CURRENCY: &str = "";

/// Batches that wait for the users, about half a MiB each.
const BATCHES_AHEAD: usize = 32;

/// The users; the last column is for what was true at the first exposure.
const PARTICIPANTS: &str = "SELECT user_key, exposed, arm, is_mixed, impressions FROM participants WHERE arm >= 0";
const PARTICIPANTS_WITH_FIRST: &str =
    "SELECT user_key, exposed, arm, is_mixed, impressions, first_impression FROM participants WHERE arm >= 0";

/// Conversions.
const ATTRIBUTED: &str = "SELECT user_key, name, currency, value, time, confidence FROM attributed WHERE time IS NOT NULL";

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
        let participants = if self.query.traits.is_empty() { PARTICIPANTS } else { PARTICIPANTS_WITH_FIRST };
        let (participants, attributed) = (self.start(participants).await?, read_on(self.start(ATTRIBUTED).await?));
        let (users, exposed_by) = self.users(participants).await?;
        let mut cohort = Cohort { users, ..Cohort::default() };
        if let Some(trigger) = self.query.trigger {
            self.triggered(trigger, &mut cohort.users).await?;
        }
        let users = &cohort.users;
        let before = match self.before_sql(users).filter(|_| self.query.has_before) {
            Some(sql) => {
                self.add(self.facts("earlier"))?;
                Some(self.start(&sql).await?)
            }
            None => None,
        };
        let (mut names, mut currencies) = (Numbers::default(), Numbers::default());
        let mut after = self.conversions(attributed, users, |_, _| true, &mut names, &mut currencies).await?;
        if let Some(sql) = self.later_sql(users) {
            self.add(self.facts("later"))?;
            let (own, longest) = self.window_us();
            let counts = |user, time| time > users.assigned(user) + own && time <= users.exposed[user] + longest;
            let later = self.start(&sql).await?;
            after.extend(self.conversions(later, users, counts, &mut names, &mut currencies).await?);
        }
        let before = match before {
            Some(earlier) => {
                let counts = |user, time| (-COVARIATE_DAYS * DAY_US..0).contains(&(time - users.assigned(user)));
                self.conversions(earlier, users, counts, &mut names, &mut currencies).await?
            }
            None => Vec::new(),
        };
        let mut sources = self.sources(users, &mut currencies).await?;
        let ((names, name_places), (currencies, currency_places)) = (names.sorted(), currencies.sorted());
        for source in &mut sources {
            let same: Vec<u32> = (0..).take(source.texts.len()).collect();
            source.number(&same, &currency_places);
        }
        let rows = |rows| {
            let mut rows = Rows::new(users.len(), rows);
            rows.number(&name_places, &currency_places);
            rows
        };
        (cohort.after, cohort.before) = (rows(after), rows(before));
        cohort.currencies = currencies.into_iter().map(|code| Some(code).filter(|code| code != NO_CURRENCY)).collect();
        (cohort.names, cohort.sources) = (names, sources);
        let traits = self.traits(&cohort.users, &exposed_by).await?;
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
            ("arm", &exposed::named_arm(self.query), Kind::Int),
            ("exposed", "f.first_exposure_date", Kind::Time),
            ("is_mixed", "cardinality(f.variants_seen) > 1", Kind::Bool),
            ("impressions", "f.total_impressions::bigint", Kind::Long),
            ("first_impression", "f.first_impression_id", Kind::Key),
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

    /// The experiment's window, and the longest one of its metrics, in microseconds.
    fn window_us(&self) -> (i64, i64) {
        let (own, longest) = self.query.window_days;
        (i64::from(own) * DAY_US, i64::from(longest) * DAY_US)
    }

    /// Conversions after the experiment's window, for metrics whose own one is longer, and for users whose windows begin later. Nothing is
    /// attributed there.
    fn later_sql(&self, users: &Users) -> Option<String> {
        let (own, longest) = self.window_us();
        let (first, last) = (users.all_assigned().min()?, users.exposed.iter().max()?);
        (longest > own || self.query.trigger.is_some()).then(|| {
            format!(
                "SELECT user_key, name, currency, value, time, CAST(100 AS INT) AS confidence FROM later WHERE time > {} AND time <= {}",
                time_literal(first + own),
                time_literal(last + longest),
            )
        })
    }

    /// None without users: there is no time before nothing.
    fn before_sql(&self, users: &Users) -> Option<String> {
        let (first, last) = (users.all_assigned().min()?, users.all_assigned().max()?);
        Some(format!(
            "SELECT user_key, name, currency, value, time, CAST(100 AS INT) AS confidence FROM earlier WHERE time >= {} AND time < {}",
            time_literal(first - COVARIATE_DAYS * DAY_US),
            time_literal(last),
        ))
    }

    /// Starts to read what SQL asks for. Four such readings are under way at a time at most, and one connection has each: not more than
    /// [`STREAMS_MAX`](engine::STREAMS_MAX), so that no answer waits for another one's.
    pub(super) async fn start(&self, sql: &str) -> Result<SendableRecordBatchStream, DataFusionError> {
        let plan = self.session.state().create_logical_plan(sql).await?;
        self.session.run(plan).await
    }

    /// Looks through rows whose first column is the user's id, batch by batch, with the number of each row's user: none of who takes no part.
    /// `found` returns how many bytes it has kept of all of them.
    pub(super) async fn of_users(
        &self,
        mut rows: SendableRecordBatchStream,
        users: &Users,
        mut found: impl FnMut(&RecordBatch, &[Option<u32>]) -> Result<usize, DataFusionError> + Send,
    ) -> Result<(), DataFusionError> {
        while let Some(batch) = rows.try_next().await? {
            let ids = batch.column(0).as_fixed_size_binary().iter();
            let number = |id: Option<&[u8]>| users.ids.find(id?.try_into().ok()?);
            let bytes = found(&batch, &ids.map(number).collect::<Vec<_>>())?;
            self.check_bytes(bytes)?;
        }
        Ok(())
    }

    fn check_bytes(&self, bytes: usize) -> Result<(), DataFusionError> {
        if bytes <= self.query.bytes_max {
            return Ok(());
        }
        let message = format!("the users and conversions of the experiment take more than {} bytes", self.query.bytes_max);
        Err(DataFusionError::ResourcesExhausted(message))
    }

    /// Reads the users, and what exposed them.
    async fn users(&self, mut participants: SendableRecordBatchStream) -> Result<(Users, FirstExposures), DataFusionError> {
        let (mut users, mut exposed_by) = (Users::default(), FirstExposures::new());
        while let Some(batch) = participants.try_next().await? {
            for id in batch.column(0).as_fixed_size_binary().iter() {
                users.ids.push(id.and_then(|id| id.try_into().ok()).unwrap_or_default());
            }
            users.exposed.extend(batch.column(1).as_primitive::<TimestampMicrosecondType>().values());
            users.arms.extend(batch.column(2).as_primitive::<Int32Type>().values().iter().map(|arm| *arm as u32));
            let is_mixed = batch.column(3).as_boolean();
            users.is_mixed.extend((0..batch.num_rows()).map(|row| is_mixed.value(row)));
            users.impressions.extend(batch.column(4).as_primitive::<Int64Type>().values());
            if let Some(first) = batch.columns().get(5) {
                exposed_by.extend(first.as_fixed_size_binary().iter().map(|id| id.and_then(|id| id.try_into().ok())));
            }
            if u32::try_from(users.len()).is_err() {
                return Err(DataFusionError::ResourcesExhausted(format!("more than {} users", u32::MAX)));
            }
            self.check_bytes(users.bytes())?;
        }
        Ok((users, exposed_by))
    }

    /// Looks through conversions: id of the user, name, currency, value, time, confidence. Those are kept that count for their user's number
    /// at their time.
    async fn conversions(
        &self,
        conversions: SendableRecordBatchStream,
        users: &Users,
        counts: impl Fn(usize, i64) -> bool + Send + Sync,
        names: &mut Numbers,
        currencies: &mut Numbers,
    ) -> Result<Vec<(u32, Row)>, DataFusionError> {
        let mut rows = Vec::new();
        let found = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            let (texts, codes) = (text_column(batch, 1)?, text_column(batch, 2)?);
            let values = batch.column(3).as_primitive::<Decimal128Type>();
            let times = batch.column(4).as_primitive::<TimestampMicrosecondType>();
            let confidences = batch.column(5).as_primitive::<Int32Type>();
            for (row, user) in numbers.iter().enumerate() {
                let Some(user) = user.filter(|user| counts(*user as usize, times.value(row))) else { continue };
                let row = Row {
                    time: times.value(row),
                    value: values.is_valid(row).then(|| values.value(row)),
                    name: names.of(texts.value(row)),
                    currency: currencies.of(if codes.is_valid(row) { codes.value(row) } else { NO_CURRENCY }),
                    confidence: u8::try_from(confidences.value(row)).unwrap_or(0),
                };
                rows.push((user, row));
            }
            Ok(rows.len() * size_of::<(u32, Row)>())
        };
        self.of_users(conversions, users, found).await?;
        Ok(rows)
    }

    /// Reads the exposures of users who saw several variants and converted.
    async fn touches(&self, cohort: &Cohort) -> Result<Touches, DataFusionError> {
        let mixed: Vec<u32> =
            cohort.after.filled().iter().copied().filter(|user| cohort.users.is_mixed[*user as usize]).collect();
        if mixed.is_empty() {
            return Ok(Touches::new());
        }
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
                mixed.iter().map(|user| format!("'{}'", Uuid::from_bytes(cohort.users.ids.all()[*user as usize]))).collect();
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
        let mut count = 0;
        let found = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            let arms = batch.column(2).as_primitive::<Int32Type>();
            for (row, user) in numbers.iter().enumerate() {
                let counts = |user: &u32| {
                    let exposed = cohort.users.assigned(*user as usize);
                    let anew = self.query.reassigned.iter().find(|anew| exposed < **anew);
                    mixed.binary_search(user).is_ok() && times.is_valid(row) && anew.is_none_or(|anew| times.value(row) < *anew)
                };
                if let Some(user) = user.filter(|user| counts(user)) {
                    touches.entry(user).or_default().push(Touch { time: times.value(row), arm: arms.value(row) as u32 });
                    count += 1;
                }
            }
            Ok(count * size_of::<Touch>())
        };
        self.of_users(self.start(&sql).await?, &cohort.users, found).await?;
        for touches in touches.values_mut() {
            touches.sort_unstable();
        }
        Ok(touches)
    }
}

/// Reads on while nobody looks: conversions come as soon as the users do, whose numbers they wait for.
fn read_on(mut rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let mut reading = RecordBatchReceiverStream::builder(rows.schema(), BATCHES_AHEAD);
    let sender = reading.tx();
    reading.spawn(async move {
        while let Some(batch) = rows.next().await {
            // Whoever has looked through enough reads no more.
            if sender.send(batch).await.is_err() {
                break;
            }
        }
        Ok(())
    });
    reading.build()
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
pub(super) struct Numbers(hashbrown::HashMap<String, u32>);

impl Numbers {
    pub(super) fn of(&mut self, text: &str) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry_ref(text).or_insert(next)
    }

    /// Returns the texts in their order, and for each number given out its place among them.
    pub(super) fn sorted(self) -> (Vec<String>, Vec<u32>) {
        let mut texts: Vec<(String, u32)> = self.0.into_iter().collect();
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
        let mut numbers = Numbers::default();
        assert_eq!(["b", "a", "b", "c"].map(|text| numbers.of(text)), [0, 1, 0, 2]);
        let (texts, places) = numbers.sorted();
        assert_eq!((texts, places), (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], vec![1, 0, 2]));
    }
}
