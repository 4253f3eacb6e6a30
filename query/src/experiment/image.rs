//! What users of one experiment saw and did, in arrays of numbers: read once, from one snapshot, for one answer.
//!
//! DataFusion scans and joins: participation, the conversions attributed to it, the conversions shortly before it, and the
//! property of the first exposure that users are split by. From then on a user is a number, and everything that an answer
//! counts is a pass over these arrays ([`super::sums`]), whatever the number of metrics.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int32Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, Int32Type, Int64Type, Schema, TimestampMicrosecondType};
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use futures_util::TryStreamExt;
use uuid::Uuid;

use super::settings::{COVARIATE_DAYS, Dimension};
use crate::copy::Kind;
use crate::engine::{self, Session};
use crate::error::Refusal;
use crate::snapshot::Snapshot;
use crate::tables::{self, Column, Source, Table, USER_KEY};

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// What is to be read.
pub struct Question<'a> {
    /// Which experiment.
    pub experiment: Uuid,
    /// Its variants; their places are the numbers of arms.
    pub variants: &'a [Uuid],
    /// Later exposures and conversions are not read, in microseconds since 1970.
    pub until: Option<i64>,
    /// Whether conversions before the first exposure are read.
    pub has_before: bool,
    /// The property of the first exposure to read.
    pub dimension: Option<Dimension>,
    /// Bytes that what is read may take.
    pub bytes_max: usize,
}

/// All users of an experiment and what they did.
#[derive(Debug, Default)]
pub struct Image {
    /// Who was exposed.
    pub users: Users,
    /// Conversion names; their places are the numbers of names. By name.
    pub names: Vec<String>,
    /// Currencies; their places are the numbers of currencies. None for values without one, which come first.
    pub currencies: Vec<Option<String>>,
    /// Conversions from the first exposure on, within the experiment's window.
    pub after: Rows,
    /// Conversions in the days before the first exposure.
    pub before: Rows,
    /// Values of the dimension by user; none where it is not known.
    pub dimension: Vec<Option<u32>>,
    /// Values of the dimension; their places are their numbers. By name.
    pub dimension_values: Vec<String>,
}

/// Users by number.
#[derive(Debug, Default)]
pub struct Users {
    /// The user's id.
    pub keys: Vec<[u8; 16]>,
    /// The variant of the first exposure.
    pub arms: Vec<u32>,
    /// The time of the first exposure, in microseconds since 1970.
    pub exposed: Vec<i64>,
    /// Whether the user saw several variants.
    pub is_mixed: Vec<bool>,
    /// Eligible impressions.
    pub impressions: Vec<i64>,
}

impl Users {
    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.arms.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.arms.is_empty()
    }
}

/// One conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// When, in microseconds since 1970.
    pub time: i64,
    /// Its value, in millionths.
    pub value: Option<i128>,
    /// Number of its name.
    pub name: u32,
    /// Number of its currency.
    pub currency: u32,
    /// Confidence of the attribution, in hundredths.
    pub confidence: u8,
}

/// Conversions by user, each user's in the order of time.
#[derive(Debug, Default)]
pub struct Rows {
    /// Where the rows of each user begin; one more entry than users.
    starts: Vec<u32>,
    rows: Vec<Row>,
    /// The users who have rows.
    filled: Vec<u32>,
}

impl Rows {
    /// Sorts rows by user, then time. `users` is how many users there are.
    pub fn new(users: usize, rows: Vec<(u32, Row)>) -> Self {
        let mut starts = vec![0u32; users + 1];
        for (user, _) in &rows {
            starts[*user as usize + 1] += 1;
        }
        for user in 0..users {
            starts[user + 1] += starts[user];
        }
        let mut next = starts.clone();
        let mut sorted = vec![Row::default(); rows.len()];
        for (user, row) in rows {
            let place = &mut next[user as usize];
            sorted[*place as usize] = row;
            *place += 1;
        }
        for user in 0..users {
            // Rows of equal times may come in any order; sums do not see it, days neither.
            sorted[starts[user] as usize..starts[user + 1] as usize].sort_by_key(|row| row.time);
        }
        let filled = (0..users as u32).filter(|user| starts[*user as usize] < starts[*user as usize + 1]).collect();
        Rows { starts, rows: sorted, filled }
    }

    /// Returns one user's rows.
    pub fn of(&self, user: usize) -> &[Row] {
        match (self.starts.get(user), self.starts.get(user + 1)) {
            (Some(from), Some(to)) => &self.rows[*from as usize..*to as usize],
            _ => &[],
        }
    }

    /// Returns the users who have rows, ascending.
    pub fn filled(&self) -> &[u32] {
        &self.filled
    }

    /// Returns all rows.
    pub fn all(&self) -> &[Row] {
        &self.rows
    }
}

/// Numbers for texts in the order in which they come; [`Numbers::sorted`] puts that right.
#[derive(Default)]
struct Numbers<T> {
    numbers: HashMap<T, u32>,
}

impl<T: Clone + Eq + std::hash::Hash + Ord> Numbers<T> {
    fn of<Q>(&mut self, text: &Q) -> u32
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
    fn sorted(self) -> (Vec<T>, Vec<u32>) {
        let mut texts: Vec<(T, u32)> = self.numbers.into_iter().collect();
        texts.sort();
        let mut places = vec![0; texts.len()];
        for (place, (_, number)) in texts.iter().enumerate() {
            places[*number as usize] = place as u32;
        }
        (texts.into_iter().map(|(text, _)| text).collect(), places)
    }
}

/// Reads everything on one snapshot.
/// # Errors
/// [`Refusal`]; also if it takes more memory than a query may use.
pub async fn read(session: &Session, snapshot: &Arc<Snapshot>, question: &Question<'_>) -> Result<Image, Refusal> {
    read_all(session, snapshot, question).await.map_err(engine::refusal)
}

async fn read_all(session: &Session, snapshot: &Arc<Snapshot>, question: &Question<'_>) -> Result<Image, DataFusionError> {
    session.add("participants", Session::scan_of(participants(question), snapshot))?;
    session.add("attributed", Session::scan_of(attributed(question), snapshot))?;
    let mut image = Image { users: users(session, question).await?, ..Image::default() };
    let (mut names, mut currencies) = (Numbers::<String>::default(), Numbers::<Option<String>>::default());
    let after = conversions(session, question, &after_sql(question), &mut names, &mut currencies).await?;
    let mut before = Vec::new();
    if question.has_before || question.dimension.is_some() {
        let events = tables::table("events").ok_or_else(|| DataFusionError::Internal("no table of events".to_owned()))?;
        session.add("events", Session::scan_of(events.with_user_key(), snapshot))?;
    }
    if question.has_before
        && let Some(sql) = before_sql(question, &image.users)
    {
        before = conversions(session, question, &sql, &mut names, &mut currencies).await?;
    }
    let ((names, name_places), (currencies, currency_places)) = (names.sorted(), currencies.sorted());
    let place = |rows: &mut Vec<(u32, Row)>| {
        for (_, row) in rows {
            row.name = name_places[row.name as usize];
            row.currency = currency_places[row.currency as usize];
        }
    };
    let mut after = after;
    place(&mut after);
    place(&mut before);
    image.after = Rows::new(image.users.len(), after);
    image.before = Rows::new(image.users.len(), before);
    (image.names, image.currencies) = (names, currencies);
    if let Some(dimension) = question.dimension {
        read_dimension(session, question, dimension, &mut image).await?;
    }
    Ok(image)
}

/// Participation of one experiment, with a number for the variant: 36 bytes of text per user would be most of the scan.
fn participants(question: &Question<'_>) -> Table {
    let variants: Vec<String> = question.variants.iter().map(|id| format!("'{id}'")).collect();
    let arm = format!("coalesce(array_position(ARRAY[{}]::uuid[], f.variant_id), 0) - 1", variants.join(", "));
    let columns = [
        (USER_KEY.name, "f.user_id", Kind::Key),
        ("arm", &arm, Kind::Int),
        ("exposed", "f.first_exposure_date", Kind::Time),
        ("is_mixed", "cardinality(f.variants_seen) > 1", Kind::Bool),
        ("impressions", "f.total_impressions::bigint", Kind::Long),
        ("first_impression_id", "f.first_impression_id", Kind::Uuid),
    ];
    of_experiment("participants", "user_experiment_participation", question.experiment, &columns)
}

/// Conversions attributed to one experiment.
fn attributed(question: &Question<'_>) -> Table {
    let columns = [
        (USER_KEY.name, "f.user_id", Kind::Key),
        ("name", "f.conversion_type", Kind::Text),
        ("currency", "f.currency", Kind::Text),
        ("value", "f.conversion_value_attributed", Kind::Decimal(20, 6)),
        ("time", "f.conversion_time", Kind::Time),
        ("confidence", "(f.attribution_confidence * 100)::integer", Kind::Int),
    ];
    of_experiment("attributed", "conversion_attribution", question.experiment, &columns)
}

fn of_experiment(name: &'static str, table: &str, experiment: Uuid, columns: &[(&'static str, &str, Kind)]) -> Table {
    Table {
        name,
        columns: columns.iter().map(|(name, _, kind)| Column { name, kind: *kind }).collect(),
        sources: vec![Source {
            from: format!("(SELECT * FROM {table} WHERE experiment_id = '{experiment}') f"),
            expressions: columns.iter().map(|(_, expression, _)| (*expression).to_owned()).collect(),
        }],
    }
}

/// Writes a moment as SQL of DataFusion, which folds it into a literal that Postgres is given too.
pub fn moment(us: i64) -> String {
    format!("arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

fn until(question: &Question<'_>, column: &str) -> String {
    question.until.map(|until| format!(" AND {column} <= {}", moment(until))).unwrap_or_default()
}

fn after_sql(question: &Question<'_>) -> String {
    format!(
        "SELECT u.n, a.name, a.currency, a.value, a.time, a.confidence
         FROM attributed a JOIN users u ON a.user_key = u.user_key WHERE a.time IS NOT NULL{}",
        until(question, "a.time")
    )
}

/// None without users: there is no time before nothing.
fn before_sql(question: &Question<'_>, users: &Users) -> Option<String> {
    let (first, last) = (users.exposed.iter().min()?, users.exposed.iter().max()?);
    Some(format!(
        "SELECT u.n, e.event AS name, e.currency, e.value, e.event_time AS time, CAST(100 AS INT) AS confidence
         FROM events e JOIN users u ON e.user_key = u.user_key
         WHERE e.kind = 'conversion' AND NOT e.is_bot AND (e.experiment_id IS NULL OR e.experiment_id = '{}')
           AND e.event_time >= {} AND e.event_time < {}
           AND e.event_time >= u.exposed - INTERVAL '{} hours' AND e.event_time < u.exposed",
        question.experiment,
        moment(first - COVARIATE_DAYS * DAY_US),
        moment(*last),
        COVARIATE_DAYS * 24,
    ))
}

/// Runs SQL to its end, within the memory of a query.
async fn collect(session: &Session, sql: &str, bytes_max: usize) -> Result<Vec<RecordBatch>, DataFusionError> {
    let plan = session.state().create_logical_plan(sql).await?;
    let mut stream = session.run(plan).await?;
    let (mut batches, mut bytes): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
    while let Some(batch) = stream.try_next().await? {
        bytes += batch.get_array_memory_size();
        if bytes > bytes_max {
            let message = format!("the users and conversions of the experiment take more than {bytes_max} bytes");
            return Err(DataFusionError::ResourcesExhausted(message));
        }
        batches.push(batch);
    }
    Ok(batches)
}

/// Reads the users, and leaves them behind as the table `users` for joins: id, number, first exposure and its impression.
async fn users(session: &Session, question: &Question<'_>) -> Result<Users, DataFusionError> {
    let impression = if question.dimension.is_some() { ", first_impression_id" } else { "" };
    let sql = format!(
        "SELECT user_key, exposed{impression}, arm, is_mixed, impressions FROM participants WHERE arm >= 0{}",
        until(question, "exposed")
    );
    let batches = collect(session, &sql, question.bytes_max).await?;
    let kept = if question.dimension.is_some() { 3 } else { 2 };
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
        if question.dimension.is_some() {
            fields.push(Field::new("first_impression_id", Kind::Uuid.data_type(), true));
        }
        fields.push(Field::new("n", DataType::Int32, false));
        Arc::new(Schema::new(fields))
    });
    session.add("users", Arc::new(MemTable::try_new(schema, vec![numbered])?))?;
    Ok(users)
}

/// Reads conversions: number of the user, name, currency, value, time, confidence.
async fn conversions(
    session: &Session,
    question: &Question<'_>,
    sql: &str,
    names: &mut Numbers<String>,
    currencies: &mut Numbers<Option<String>>,
) -> Result<Vec<(u32, Row)>, DataFusionError> {
    let mut rows = Vec::new();
    for batch in collect(session, sql, question.bytes_max).await? {
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

fn text_column(batch: &RecordBatch, column: usize) -> Result<&StringViewArray, DataFusionError> {
    let found = batch.column(column);
    found.as_string_view_opt().ok_or_else(|| DataFusionError::Internal(format!("column {column} is {}", found.data_type())))
}

/// Reads the dimension's value of each user's first exposure.
async fn read_dimension(
    session: &Session,
    question: &Question<'_>,
    dimension: Dimension,
    image: &mut Image,
) -> Result<(), DataFusionError> {
    let sql = format!(
        "SELECT u.n, e.{} AS value FROM events e
         JOIN users u ON e.user_key = u.user_key AND e.event_id = u.first_impression_id AND e.event_time = u.exposed
         WHERE e.kind = 'impression' AND e.experiment_id = '{}'",
        dimension.as_str(),
        question.experiment
    );
    let mut numbers = Numbers::<String>::default();
    let mut found: Vec<Option<u32>> = vec![None; image.users.len()];
    let mut texts: Vec<String> = Vec::new();
    for batch in collect(session, &sql, question.bytes_max).await? {
        let users = batch.column(0).as_primitive::<Int32Type>();
        let values = text_column(&batch, 1)?;
        for row in (0..batch.num_rows()).filter(|row| values.is_valid(*row)) {
            let number = numbers.of(values.value(row));
            if number as usize == texts.len() {
                texts.push(values.value(row).to_owned());
            }
            let slot = &mut found[users.value(row) as usize];
            // One id may have come twice with different claimed times; then the least text stands, in any order of rows.
            if slot.is_none_or(|other| texts[number as usize] < texts[other as usize]) {
                *slot = Some(number);
            }
        }
    }
    let (values, places) = numbers.sorted();
    image.dimension = found.into_iter().map(|number| number.map(|number| places[number as usize])).collect();
    image.dimension_values = values;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_user_in_the_order_of_time() {
        let row = |time| Row { time, ..Row::default() };
        let rows = Rows::new(4, vec![(2, row(5)), (0, row(9)), (2, row(1)), (2, row(3)), (0, row(2))]);
        let times = |user| rows.of(user).iter().map(|row| row.time).collect::<Vec<_>>();
        assert_eq!([times(0), times(1), times(2), times(3), times(4)], [vec![2, 9], vec![], vec![1, 3, 5], vec![], vec![]]);
        assert_eq!(rows.all().len(), 5);
        assert!(Rows::default().of(0).is_empty());
    }

    #[test]
    fn texts_get_numbers_in_their_order() {
        let mut numbers = Numbers::<String>::default();
        assert_eq!(["b", "a", "b", "c"].map(|text| numbers.of(text)), [0, 1, 0, 2]);
        let (texts, places) = numbers.sorted();
        assert_eq!((texts, places), (vec!["a".to_owned(), "b".to_owned(), "c".to_owned()], vec![1, 0, 2]));
    }

    #[test]
    fn a_filter_on_the_experiment_is_in_every_scan() {
        let variants = [Uuid::from_u128(1), Uuid::from_u128(2)];
        let question = Question {
            experiment: Uuid::from_u128(9),
            variants: &variants,
            until: Some(7),
            has_before: true,
            dimension: None,
            bytes_max: 1,
        };
        for table in [participants(&question), attributed(&question)] {
            assert!(table.sources[0].from.contains("experiment_id = '00000000-0000-0000-0000-000000000009'"), "{table:?}");
        }
        assert!(after_sql(&question).contains("a.time <= arrow_cast(7,"));
        assert_eq!(before_sql(&question, &Users::default()), None);
    }
}
