//! What was true of users at their first exposure: the properties by which they are split, searched or adjusted, and whether a
//! condition held.

use ::catalogue::exposures::Exposure;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::{DFSchema, DataFusionError};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::prelude::col;
use events::Kind;
use events::fact::{FACT_TABLES, FactTable};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::cohort::Users;
use super::cohort_reader::{Numbers, Reader, text_column};
use super::exposed::{self, Columns};
use super::sources;
use crate::engine::Session;
use crate::experiment::request::Dimensions;
use crate::http::error::ApiError;
use crate::source::copy::Kind as ColumnKind;
use crate::source::property::Property;
use crate::source::snapshot::Snapshot;
use crate::source::tables::{self, Column, Table, USER_KEY};

/// Values of a property that is searched, at most.
pub const EXPLORED_VALUES_MAX: usize = 50;
/// Properties of clients that are searched, at most.
const EXPLORED_KEYS_MAX: i64 = 40;
/// The newest exposures that are asked for their properties, of each kind of event.
const EXPLORED_EXPOSURES: i64 = 20_000;
/// Columns of events that are searched.
const EXPLORED_COLUMNS: [&str; 11] = [
    "country",
    "region",
    "city",
    "device_type",
    "language",
    "time_zone",
    "screen",
    "connection",
    "utm_source",
    "utm_medium",
    "utm_campaign",
];

/// What is to be known of each first exposure.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TraitQuery {
    /// The value of a property, or of several that are crossed.
    Value(Dimensions),
    /// The same, unless there are more values than are searched.
    Explored(Property),
    /// Whether a condition holds, in SQL over the columns of one event.
    Condition(String),
}

impl TraitQuery {
    fn properties(&self) -> &[Property] {
        match self {
            TraitQuery::Value(dimensions) => &dimensions.0,
            TraitQuery::Explored(property) => std::slice::from_ref(property),
            TraitQuery::Condition(_) => &[],
        }
    }

    /// Returns how many values are told apart.
    pub(super) fn values_max(&self) -> usize {
        if matches!(self, TraitQuery::Explored(_)) { EXPLORED_VALUES_MAX } else { usize::MAX }
    }
}

/// What each user had at the first exposure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trait {
    /// The place of each user's value; [`Trait::UNKNOWN`] of those who had none.
    of: Vec<u32>,
    /// The values, by name.
    pub values: Vec<String>,
    /// Whether there were too many values, so that none is kept.
    pub is_too_many: bool,
}

impl Trait {
    const UNKNOWN: u32 = u32::MAX;
    /// The value of a condition that holds.
    pub const HOLDS: &'static str = "true";

    /// Makes one of the place of each user's value.
    pub fn new(of: impl IntoIterator<Item = Option<u32>>, values: Vec<String>) -> Self {
        let of = of.into_iter().map(|value| value.unwrap_or(Self::UNKNOWN)).collect();
        Trait { of, values, is_too_many: false }
    }

    fn too_many() -> Self {
        Trait { is_too_many: true, ..Trait::default() }
    }

    /// Returns the place of a user's value; none of one who had none.
    pub fn of(&self, user: usize) -> Option<u32> {
        self.of.get(user).copied().filter(|value| *value != Self::UNKNOWN)
    }

    /// Returns about how many bytes it takes.
    pub fn bytes(&self) -> usize {
        self.of.len() * size_of::<u32>() + self.values.iter().map(|value| size_of::<String>() + value.len()).sum::<usize>()
    }

    /// Returns some users, under new numbers.
    pub(super) fn only(&self, kept: &[u32]) -> Self {
        let of = kept.iter().filter_map(|user| self.of.get(*user as usize)).copied().collect();
        Trait { of, values: self.values.clone(), is_too_many: self.is_too_many }
    }

    /// Puts what newer users have in its places, `places[n]` that of the user n of `newer`; new users come after all others. `most` is how
    /// many values are kept.
    pub(super) fn replace(&mut self, places: &[u32], newer: Trait, most: usize) {
        if self.is_too_many || newer.is_too_many {
            *self = Trait::too_many();
            return;
        }
        let mut values: Vec<String> = self.values.iter().chain(&newer.values).cloned().collect();
        values.sort();
        values.dedup();
        if values.len() > most {
            *self = Trait::too_many();
            return;
        }
        let numbers = |of: &[String]| -> Vec<u32> {
            of.iter().filter_map(|value| values.binary_search(value).ok()).map(|place| place as u32).collect()
        };
        let (own, others) = (numbers(&self.values), numbers(&newer.values));
        for value in self.of.iter_mut().filter(|value| **value != Self::UNKNOWN) {
            *value = own[*value as usize];
        }
        for (user, place) in places.iter().enumerate() {
            let value = newer.of(user).map_or(Self::UNKNOWN, |value| others[value as usize]);
            match self.of.get_mut(*place as usize) {
                Some(found) => *found = value,
                None => self.of.push(value),
            }
        }
        self.values = values;
    }
}

/// Returns what is searched of an experiment: columns that say something of a user, and the properties that its newest exposures have.
/// # Errors
/// Those of Postgres.
pub async fn explored(
    snapshot: &Snapshot,
    experiment: Uuid,
    exposure: Option<&Exposure>,
) -> Result<Vec<TraitQuery>, sqlx::Error> {
    let newest = exposed::of(experiment, exposure).into_iter().map(|(kind, condition)| {
        format!(
            "(SELECT metadata FROM {} r WHERE project_id = '{}' AND {condition} AND metadata IS NOT NULL
              ORDER BY event_time DESC LIMIT {EXPLORED_EXPOSURES})",
            FactTable::of(kind).name,
            snapshot.project(),
        )
    });
    let keys = format!(
        "SELECT DISTINCT key FROM ({}) i
         CROSS JOIN LATERAL jsonb_object_keys(CASE jsonb_typeof(metadata) WHEN 'object' THEN metadata ELSE '{{}}' END) AS key
         ORDER BY key LIMIT {EXPLORED_KEYS_MAX}",
        newest.collect::<Vec<_>>().join(" UNION ALL "),
    );
    let mut connection = snapshot.transaction().await;
    let keys: Vec<String> = sqlx::query_scalar(AssertSqlSafe(keys)).fetch_all(&mut **connection).await?;
    let columns = EXPLORED_COLUMNS.iter().filter_map(|name| Property::of(name));
    let keys = keys.into_iter().filter(|key| !key.is_empty()).map(Property::Json);
    Ok(columns.chain(keys).map(TraitQuery::Explored).collect())
}

/// The columns in which values are read, by place.
fn value_column(place: usize) -> &'static str {
    // Tables have names that live as long as the program.
    const NAMES: [&str; 64] = {
        macro_rules! names { ($($n:literal)*) => { [$(concat!("value_", $n)),*] }; }
        names!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39
               40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63)
    };
    NAMES[place]
}

/// Properties that are read at once, at most.
pub const TRAITS_MAX: usize = 64;

/// The id of an event, as [`USER_KEY`] is that of a user.
const EVENT_KEY: Column = Column { name: "event_key", kind: ColumnKind::Key };

/// The event that exposed each user first; none of who has none. Empty where nobody asks.
pub(super) type FirstExposures = Vec<Option<[u8; 16]>>;

impl Reader<'_> {
    /// Reads what users had at their first exposure.
    pub(super) async fn traits(&self, users: &Users, exposed_by: &FirstExposures) -> Result<Vec<Trait>, DataFusionError> {
        let queries = self.query.traits;
        let of_values: Vec<usize> = (0..queries.len()).filter(|place| !queries[*place].properties().is_empty()).collect();
        let mut values = Vec::new();
        if !of_values.is_empty() {
            let asked: Vec<&TraitQuery> = of_values.iter().map(|place| &queries[*place]).collect();
            self.add(self.first_exposures(&asked)?)?;
            values = self.values(&asked, users, exposed_by).await?;
        }
        let (mut found, mut values) = (Vec::with_capacity(queries.len()), values.into_iter());
        for (place, query) in queries.iter().enumerate() {
            found.push(match query {
                TraitQuery::Condition(condition) => self.holds(place, condition, users, exposed_by).await?,
                _ => values.next().unwrap_or_default(),
            });
        }
        Ok(found)
    }

    /// Looks through events whose first columns are [`USER_KEY`], [`EVENT_KEY`] and the time; only those which are their users' first
    /// exposures have a number.
    async fn of_first_exposures(
        &self,
        sql: &str,
        users: &Users,
        exposed_by: &FirstExposures,
        mut found: impl FnMut(&RecordBatch, &[Option<u32>]) -> Result<usize, DataFusionError> + Send,
    ) -> Result<(), DataFusionError> {
        let of_users = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            let ids = batch.column(1).as_fixed_size_binary();
            let times = batch.column(2).as_primitive::<TimestampMicrosecondType>();
            let is_first = |row: usize, user: &u32| {
                let (user, id) = (*user as usize, <[u8; 16]>::try_from(ids.value(row)).ok());
                id.is_some() && exposed_by[user] == id && times.value(row) == users.assigned(user)
            };
            let first = numbers.iter().enumerate().map(|(row, user)| user.filter(|user| is_first(row, user)));
            found(batch, &first.collect::<Vec<_>>())
        };
        self.of_users(self.start(sql).await?, users, of_users).await
    }

    /// Events that may be exposures to one experiment, with the values of properties: of several that are crossed those of all, of which those that are not
    /// there are unknown; null if none is there.
    fn first_exposures(&self, queries: &[&TraitQuery]) -> Result<Table, DataFusionError> {
        self.exposures("first_exposures", |kind| Self::first_exposures_of(kind, queries))
    }

    fn first_exposures_of(kind: Kind, queries: &[&TraitQuery]) -> Result<Columns, DataFusionError> {
        let events = tables::table("events").ok_or_else(|| DataFusionError::Internal("no table events".to_owned()))?;
        let source = FACT_TABLES.iter().position(|table| table.kind == kind).and_then(|place| events.sources.get(place));
        let source = source.ok_or_else(|| DataFusionError::Internal(format!("no {} among events", kind.as_str())))?;
        let expression = |property: &Property| match property {
            // A name of the client's, as a literal of Postgres.
            Property::Json(key) => Ok(format!("(f.metadata ->> '{}')", key.replace('\'', "''"))),
            Property::Column(name) => {
                let place = events.columns.iter().position(|column| column.name == *name);
                let unknown = || DataFusionError::Internal(format!("no column {name} of events"));
                Ok(format!("({})::text", source.expressions[place.ok_or_else(unknown)?]))
            }
        };
        let value = |query: &&TraitQuery| {
            let all = query.properties().iter().map(expression).collect::<Result<Vec<String>, DataFusionError>>()?;
            Ok(match all.as_slice() {
                [one] => one.clone(),
                several => {
                    let known: Vec<String> = several.iter().map(|value| format!("coalesce({value}, 'unknown')")).collect();
                    format!("CASE WHEN coalesce({}) IS NOT NULL THEN {} END", several.join(", "), known.join(" || ' / ' || "))
                }
            })
        };
        let values = queries.iter().map(value).collect::<Result<Vec<String>, DataFusionError>>()?;
        let mut columns = vec![
            (USER_KEY.name, "f.user_id".to_owned(), ColumnKind::Key),
            (EVENT_KEY.name, "f.id".to_owned(), EVENT_KEY.kind),
            ("time", "f.event_time".to_owned(), ColumnKind::Time),
        ];
        columns.extend(values.into_iter().enumerate().map(|(place, value)| (value_column(place), value, ColumnKind::Text)));
        Ok(columns)
    }

    /// Reads the values of each user's first exposure.
    async fn values(
        &self,
        queries: &[&TraitQuery],
        users: &Users,
        exposed_by: &FirstExposures,
    ) -> Result<Vec<Trait>, DataFusionError> {
        let columns: Vec<&str> = (0..queries.len()).map(value_column).collect();
        let sql = format!("SELECT user_key, event_key, time, {} FROM first_exposures", columns.join(", "));
        let mut all: Vec<Found> = queries.iter().map(|query| Found::new(users.len(), query.values_max())).collect();
        let found = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            for (place, found) in all.iter_mut().enumerate() {
                let values = text_column(batch, place + 3)?;
                for (row, user) in numbers.iter().enumerate().filter_map(|(row, user)| Some((row, (*user)?))) {
                    if values.is_valid(row) {
                        found.note(user as usize, values.value(row));
                    }
                }
            }
            Ok(all.iter().map(Found::bytes).sum())
        };
        self.of_first_exposures(&sql, users, exposed_by, found).await?;
        Ok(all.into_iter().map(Found::into_trait).collect())
    }

    /// Finds the users for whose first exposure a condition holds.
    async fn holds(
        &self,
        place: usize,
        condition: &str,
        users: &Users,
        exposed_by: &FirstExposures,
    ) -> Result<Trait, DataFusionError> {
        let external = |error: ApiError| DataFusionError::Plan(error.message);
        let mut tables = exposed::sources(self.query)
            .into_iter()
            .filter_map(|(kind, _)| sources::table(kind, self.scope, self.snapshot.project()));
        let mut table = tables.next().ok_or_else(|| DataFusionError::Internal("no table events".to_owned()))?;
        table.sources.extend(tables.flat_map(|other| other.sources));
        table.columns.push(EVENT_KEY);
        table.sources.iter_mut().for_each(|source| source.expressions.push("f.id".to_owned()));
        let schema = DFSchema::try_from(table.schema().as_ref().clone())?;
        let condition = sources::condition(condition, "where", self.session, &schema).map_err(external)?;
        let scan = provider_as_source(Session::scan_of(table, self.snapshot));
        let source = LogicalPlanBuilder::scan("events", scan, None)?.build()?;
        let events = DataFrame::new(self.session.state().clone(), source).filter(condition)?;
        let columns = vec![col(USER_KEY.name), col(EVENT_KEY.name), col("event_time")];
        let name = format!("condition_{place}");
        self.session.add(&name, events.select(columns)?.into_view())?;
        let mut holds = vec![None; users.len()];
        let found = |_: &RecordBatch, numbers: &[Option<u32>]| {
            numbers.iter().flatten().for_each(|user| holds[*user as usize] = Some(0));
            Ok(holds.len() * size_of::<Option<u32>>())
        };
        self.of_first_exposures(&format!("SELECT * FROM {name}"), users, exposed_by, found).await?;
        Ok(Trait::new(holds, vec![Trait::HOLDS.to_owned()]))
    }
}

/// The values of one property while they are read.
struct Found {
    numbers: Numbers,
    texts: Vec<String>,
    of: Vec<u32>,
    most: usize,
    /// Bytes of all texts.
    text_bytes: usize,
}

impl Found {
    fn new(users: usize, most: usize) -> Self {
        Found { numbers: Numbers::default(), texts: Vec::new(), of: vec![Trait::UNKNOWN; users], most, text_bytes: 0 }
    }

    /// About: each text is there twice.
    fn bytes(&self) -> usize {
        self.of.len() * size_of::<u32>() + 2 * (self.text_bytes + self.texts.len() * size_of::<String>())
    }

    fn note(&mut self, user: usize, value: &str) {
        if self.texts.len() > self.most {
            return;
        }
        let number = self.numbers.of(value);
        if number as usize == self.texts.len() {
            self.texts.push(value.to_owned());
            self.text_bytes += value.len();
        }
        let slot = &mut self.of[user];
        // One id may have come twice with different claimed times; then the least text stands, in any order of rows.
        if *slot == Trait::UNKNOWN || self.texts[number as usize] < self.texts[*slot as usize] {
            *slot = number;
        }
    }

    fn into_trait(self) -> Trait {
        if self.texts.len() > self.most {
            return Trait::too_many();
        }
        let (values, places) = self.numbers.sorted();
        let of = self.of.into_iter().map(|number| if number == Trait::UNKNOWN { number } else { places[number as usize] });
        Trait { of: of.collect(), values, is_too_many: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(users: &[Option<&str>]) -> Trait {
        let mut found = Found::new(users.len(), 3);
        for (user, value) in users.iter().enumerate() {
            value.iter().for_each(|value| found.note(user, value));
        }
        found.into_trait()
    }

    fn shown(found: &Trait, users: usize) -> Vec<Option<&str>> {
        (0..users).map(|user| found.of(user).map(|value| found.values[value as usize].as_str())).collect()
    }

    #[test]
    fn newer_users_take_their_places_and_bring_their_values() {
        let mut known = of(&[Some("de"), None, Some("at")]);
        assert_eq!(known.values, ["at", "de"]);
        known.replace(&[1, 3, 0], of(&[Some("ch"), Some("at"), None]), 3);
        assert_eq!(shown(&known, 4), [None, Some("ch"), Some("at"), Some("at")]);
        assert_eq!(shown(&known.only(&[3, 1]), 2), [Some("at"), Some("ch")]);
        // The value that came first of two of one user does not decide.
        let mut twice = Found::new(1, 3);
        for value in ["x", "b", "c"] {
            twice.note(0, value);
        }
        assert_eq!(shown(&twice.into_trait(), 1), [Some("b")]);
    }

    #[test]
    fn too_many_values_are_none() {
        let many = of(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("a")]);
        assert!(many.is_too_many && many.values.is_empty() && many.of(0).is_none());
        let mut known = of(&[Some("a"), Some("b")]);
        known.replace(&[2, 3], of(&[Some("c"), Some("d")]), 3);
        assert!(known.is_too_many, "they are too many together");
        known.replace(&[4], of(&[Some("a")]), 3);
        assert!(known.is_too_many, "and stay so");
    }
}
