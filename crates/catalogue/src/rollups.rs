//! Rollups of a project: sums over events that are kept as events are stored, each a declaration.
//!
//! A declaration says which events count, by which keys they are grouped, and what is measured of each group. Where several events are
//! one thing (the reports of one transaction, the attempts at one lesson), a state of it is kept in between: `unique` takes the first
//! of the events with one business key, `per` folds all events with one key. A state belongs to a user, so that one log partition has all of its
//! events; when a later event changes it, the sums follow by the difference.
//!
//! What a rollup holds is a pure function of the stored events and the declaration, in whatever order and batches they were stored. [`shape`] is that
//! function, [`tables`] says where its results are kept and how they are read.

pub mod datum;
pub mod seen;
pub mod shape;
mod stored;
pub mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use events::Kind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::definitions::kind_text;
use crate::exposures::Accepted;
use crate::versions::Versioned;
use crate::{CatalogueError, check};

pub use stored::{Active, Kept, active, kept, remove, retire};

/// Names of events, conditions, or accepted values that one place lists, at most.
const LISTED_MAX: usize = 100;
/// Keys of a group, at most: with [`datum::TEXT_BYTES_MAX`] a row of their index stays below what Postgres takes (2,704 bytes).
const KEYS_MAX: usize = 8;
/// Keys of a state, at most.
const STATE_KEYS_MAX: usize = 4;
/// Measures of a group, at most.
const MEASURES_MAX: usize = 32;
/// Bytes of the name of a rollup, a key or a measure, at most.
const NAME_BYTES_MAX: usize = 48;

/// Properties with the values that each may have.
pub type Conditions = BTreeMap<String, Accepted>;

/// A rollup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollup {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Events of this kind; `None`: of all kinds.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_kind")]
    pub kind: Option<Kind>,
    /// Those of these names; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Those whose columns or properties of these names each have one of the values.
    #[serde(default, rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: Conditions,
    /// Whether those of bots count, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bots: bool,
    /// Of a user's events of one name that have the same values of these, the first counts. An event that lacks one counts by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unique: Vec<String>,
    /// What the keys and measures are taken of instead of single events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
    /// By what is grouped.
    pub keys: Vec<Key>,
    /// What is measured of each group, by name.
    pub measures: BTreeMap<String, Measure>,
}

/// A state for each user and key, of all its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Per {
    /// By what a user's events belong together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Key>,
    /// What is known of them, by name.
    pub measures: BTreeMap<String, Measure>,
}

/// One value by which events are grouped. As a text it is the name of a column, a property or a measure, or `day`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name in SQL.
    pub name: String,
    /// What it is.
    pub of: KeyOf,
}

/// What a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOf {
    /// The value of a field.
    Field(String),
    /// The day on which a time lies.
    Day {
        /// The field that has the time.
        time: String,
        /// A name of the IANA database, or `event`: the time zone that the event names.
        zone: String,
    },
}

/// The zone of days that name none.
const UTC: &str = "UTC";
/// The zone that an event names, as far as there is one of that name.
pub const ZONE_OF_EVENT: &str = "event";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyTable {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    day_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a key is the name of a column or property, or a table of its `name` and what it is: `of` = a column or property, \
                         or `day_of` = one with a time, and `zone`"
        )]
        enum Written {
            Name(String),
            Table(KeyTable),
        }
        let day =
            |time: &str, zone: Option<String>| KeyOf::Day { time: time.to_owned(), zone: zone.unwrap_or_else(|| UTC.to_owned()) };
        Ok(match Written::deserialize(input)? {
            Written::Name(name) if name == "day" => Key { name, of: day("event_time", None) },
            Written::Name(name) => Key { of: KeyOf::Field(name.clone()), name: name.replace('.', "_") },
            Written::Table(KeyTable { name, of: Some(field), day_of: None, zone: None }) => Key { name, of: KeyOf::Field(field) },
            Written::Table(KeyTable { name, of: None, day_of: Some(time), zone }) => Key { name, of: day(&time, zone) },
            Written::Table(KeyTable { name, .. }) => {
                let accepted = "either `of` is accepted, or `day_of` with or without `zone`";
                return Err(serde::de::Error::custom(format!("key {name:?}: {accepted}")));
            }
        })
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let (name, of, day_of, zone) = match &self.of {
            KeyOf::Field(field) if *field == self.name => return out.serialize_str(&self.name),
            KeyOf::Field(field) => (&self.name, Some(field), None, None),
            KeyOf::Day { time, zone } => (&self.name, None, Some(time), Some(zone)),
        };
        KeyTable { name: name.clone(), of: of.cloned(), day_of: day_of.cloned(), zone: zone.cloned() }.serialize(out)
    }
}

/// How many or how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// What is made of the values.
    pub by: By,
    /// The column or property that has the values; `None`: events are counted whatever they hold.
    pub of: Option<String>,
    /// Only of those whose columns or properties of these names each have one of the values.
    pub conditions: Conditions,
}

/// What is made of values. Who lacks the value, or has something else than a number where one is needed, is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// How many there are.
    Count,
    /// The sum; 0 of none.
    Sum,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// That of the first in the order of event time, id and claimed time.
    First,
    /// That of the last.
    Last,
    /// How many different ones.
    Distinct,
}

impl By {
    /// All, in the order of the documents.
    pub const ALL: [By; 7] = [By::Count, By::Sum, By::Min, By::Max, By::First, By::Last, By::Distinct];

    /// Returns its name in declarations.
    pub fn as_str(self) -> &'static str {
        match self {
            By::Count => "count",
            By::Sum => "sum",
            By::Min => "min",
            By::Max => "max",
            By::First => "first",
            By::Last => "last",
            By::Distinct => "distinct",
        }
    }
}

/// Stands for no field in `{ count = "*" }`.
const ANY: &str = "*";

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasureTable {
    count: Option<String>,
    sum: Option<String>,
    min: Option<String>,
    max: Option<String>,
    first: Option<String>,
    last: Option<String>,
    distinct: Option<String>,
    #[serde(default, rename = "where")]
    conditions: Conditions,
}

impl<'de> Deserialize<'de> for Measure {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        const ACCEPTED: &str = "a measure is \"count\", or a table of one of `count`, `sum`, `min`, `max`, `first`, `last`, `distinct` = a \
                                column or property (for `count` also \"*\"), and `where`";
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Name(String),
            Table(Box<MeasureTable>),
        }
        let refused = || serde::de::Error::custom(ACCEPTED);
        let table = match Written::deserialize(input).map_err(|_| refused())? {
            Written::Name(name) if name == "count" => MeasureTable { count: Some(ANY.to_owned()), ..MeasureTable::default() },
            Written::Name(_) => return Err(refused()),
            Written::Table(table) => *table,
        };
        let fields = [table.count, table.sum, table.min, table.max, table.first, table.last, table.distinct];
        let mut given = By::ALL.into_iter().zip(fields).filter_map(|(by, field)| Some((by, field?)));
        let (Some((by, field)), None) = (given.next(), given.next()) else { return Err(refused()) };
        let is_any = by == By::Count && field == ANY;
        Ok(Measure { by, of: Some(field).filter(|_| !is_any), conditions: table.conditions })
    }
}

impl Serialize for Measure {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        if self.by == By::Count && self.of.is_none() && self.conditions.is_empty() {
            return out.serialize_str("count");
        }
        let mut table = out.serialize_map(None)?;
        table.serialize_entry(self.by.as_str(), self.of.as_deref().unwrap_or(ANY))?;
        if !self.conditions.is_empty() {
            table.serialize_entry("where", &self.conditions)?;
        }
        table.end()
    }
}

mod optional_kind {
    use super::{Deserialize, Deserializer, Kind, Serializer, kind_text};

    pub(super) fn serialize<S: Serializer>(kind: &Option<Kind>, out: S) -> Result<S::Ok, S::Error> {
        match kind {
            Some(kind) => kind_text::serialize(kind, out),
            None => out.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Kind>, D::Error> {
        #[derive(Deserialize)]
        struct Text(#[serde(with = "kind_text")] Kind);
        Ok(Option::<Text>::deserialize(input)?.map(|Text(kind)| kind))
    }
}

impl Rollup {
    /// Reads one.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let rollup: Rollup = serde_json::from_str(text).map_err(|error| CatalogueError::invalid("rollup", error.to_string()))?;
        rollup.check()?;
        Ok(rollup)
    }

    /// Checks every value.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn check(&self) -> Result<(), CatalogueError> {
        check::description("description", self.description.as_deref())?;
        at_most("events", self.events.len(), LISTED_MAX)?;
        for (index, name) in self.events.iter().enumerate() {
            check::name(&format!("events[{index}]"), name)?;
        }
        if self.kind == Some(Kind::Impression) && !self.events.is_empty() {
            return Err(CatalogueError::invalid("events", "found with impressions, which have no names"));
        }
        check_conditions("where", &self.conditions)?;
        at_most("unique", self.unique.len(), STATE_KEYS_MAX)?;
        let mut names = BTreeSet::new();
        if let Some(per) = &self.per {
            if !self.unique.is_empty() {
                let message = "found beside unique; either the first event of a key is taken, or all of them are folded";
                return Err(CatalogueError::invalid("per", message));
            }
            names.insert("user_id");
            check_group("per.", &per.keys, &per.measures, STATE_KEYS_MAX, &mut names)?;
        }
        check_group("", &self.keys, &self.measures, KEYS_MAX, &mut BTreeSet::new())?;
        self.shape().map(drop)
    }
}

fn at_most(place: &str, found: usize, max: usize) -> Result<(), CatalogueError> {
    if found > max {
        return Err(CatalogueError::invalid(place, format!("found {found}; at most {max} are accepted")));
    }
    Ok(())
}

fn check_conditions(place: &str, conditions: &Conditions) -> Result<(), CatalogueError> {
    at_most(place, conditions.len(), LISTED_MAX)?;
    for (field, Accepted(values)) in conditions {
        check::something(place, field)?;
        let place = format!("{place}.{field}");
        if values.is_empty() {
            return Err(CatalogueError::invalid(place, format!("found 0; 1 to {LISTED_MAX} values are accepted")));
        }
        at_most(&place, values.len(), LISTED_MAX)?;
        values.iter().try_for_each(|value| check::description(&place, Some(value)))?;
    }
    Ok(())
}

/// Checks the keys and measures of one stage; `place` is what the names of its fields begin with.
fn check_group<'a>(
    place: &str,
    keys: &'a [Key],
    measures: &'a BTreeMap<String, Measure>,
    keys_max: usize,
    names: &mut BTreeSet<&'a str>,
) -> Result<(), CatalogueError> {
    at_most(&format!("{place}keys"), keys.len(), keys_max)?;
    if !(1..=MEASURES_MAX).contains(&measures.len()) {
        let message = format!("found {}; 1 to {MEASURES_MAX} are accepted", measures.len());
        return Err(CatalogueError::invalid(format!("{place}measures"), message));
    }
    let keys = keys.iter().enumerate().map(|(index, key)| (format!("{place}keys[{index}]"), key.name.as_str()));
    let measures_of = measures.iter().map(|(name, measure)| (format!("{place}measures.{name}"), name.as_str(), measure));
    for (place, name) in keys.chain(measures_of.clone().map(|(place, name, _)| (place, name))) {
        check_identifier(&place, name)?;
        if !names.insert(name) {
            return Err(CatalogueError::invalid(place, format!("found the name {name:?} twice; once is accepted")));
        }
    }
    for (place, _, measure) in measures_of {
        check_conditions(&format!("{place}.where"), &measure.conditions)?;
    }
    Ok(())
}

/// Names that columns of ours have.
const TAKEN: [&str; 7] = ["project_id", "log_id", "log_partition", "row_count", "measure", "value_text", "place"];

/// Checks a name that is a column's, or a table's, in SQL.
pub(crate) fn check_identifier(place: &str, name: &str) -> Result<(), CatalogueError> {
    let accepted = format!("lower-case letters, digits and _ are accepted, a letter first, up to {NAME_BYTES_MAX}");
    let is_written = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    if !is_written || !begins || name.len() > NAME_BYTES_MAX {
        return Err(CatalogueError::invalid(place, format!("found the name {name:?}; {accepted}")));
    }
    if TAKEN.contains(&name) || name.ends_with("_place") {
        return Err(CatalogueError::invalid(
            place,
            format!("found the name {name:?}, which a column of Weir's has; another one is accepted"),
        ));
    }
    Ok(())
}

impl Versioned for Rollup {
    const NOUN: &'static str = "rollup";
    const TABLE: &'static str = "rollup_definitions";
    const ACTION: &'static str = "rollup.define";
    const KNOWN: &'static [&'static str] = &["the rollups that its `weir admin rollup define` takes"];

    fn check(&self) -> Result<(), CatalogueError> {
        Rollup::check(self)
    }

    fn check_name(name: &str) -> Result<(), CatalogueError> {
        check_identifier("name", name)
    }

    async fn is_kept(change: &mut crate::Change<'_>, name: &str, version: i32) -> Result<bool, CatalogueError> {
        stored::is_kept(change, name, version).await
    }

    async fn made(&self, change: &mut crate::Change<'_>, name: &str, version: i32) -> Result<(), CatalogueError> {
        stored::make(change, name, version, &self.shape()?).await
    }
}

impl fmt::Display for Rollup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.kind.map_or("all kinds", Kind::as_str))?;
        if !self.events.is_empty() {
            write!(out, " {}", self.events.join(" or "))?;
        }
        for (place, (field, Accepted(values))) in self.conditions.iter().enumerate() {
            write!(out, " {} {field} is {}", if place == 0 { "where" } else { "and" }, values.join(" or "))?;
        }
        let keys = |keys: &[Key]| keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>().join(", ");
        let measures = |measures: &BTreeMap<String, Measure>| measures.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        if !self.unique.is_empty() {
            write!(out, ", the first of each {}", self.unique.join(", "))?;
        }
        if let Some(per) = &self.per {
            let keys: Vec<String> =
                ["user_id".to_owned()].into_iter().chain(per.keys.iter().map(|key| key.name.clone())).collect();
            write!(out, ", {} of each {}", measures(&per.measures), keys.join(", "))?;
        }
        write!(out, ": {} by {}", measures(&self.measures), keys(&self.keys))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn declarations_are_read_and_written_in_one_form() {
        let text = r#"{"kind":"engagement","events":["attempt"],"where":{"mode":["exam",1]},"per":{"keys":["level"],"measures":{
            "done_at":{"min":"event_time","where":{"done":true}},"xp":{"max":"xp"}}},
            "keys":["user_id",{"name":"week_day","day_of":"done_at","zone":"Europe/Berlin"}],"measures":{"lessons":{"count":"*","where":{"level":7}},"xp":{"sum":"xp"}}}"#;
        let found = Rollup::parse(text).expect("accepted");
        let written = serde_json::to_string(&found).expect("is JSON");
        assert_eq!(Rollup::parse(&written).expect("accepted"), found, "{written}");
        assert_eq!(
            found.to_string(),
            "engagement attempt where mode is exam or 1, done_at, xp of each user_id, level: lessons, xp by user_id, week_day"
        );
        let text = r#"{"keys":["day","campaign.owner_id"],"measures":{"rows_counted":"count"}}"#;
        let found = Rollup::parse(text).expect("accepted");
        assert_eq!(found.keys[0].of, KeyOf::Day { time: "event_time".to_owned(), zone: "UTC".to_owned() });
        assert_eq!(found.keys[1].name, "campaign_owner_id");
        let written = serde_json::to_string(&found).expect("is JSON");
        assert_eq!(Rollup::parse(&written).expect("accepted"), found, "{written}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: serde_json::Value, expected: &str| {
            let mut rollup = json!({"keys": ["day"], "measures": {"n": "count"}});
            let (fields, changes) = (rollup.as_object_mut().expect("fields"), change.as_object().expect("fields").clone());
            fields.extend(changes);
            let found = Rollup::parse(&rollup.to_string()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{rollup}: {found}");
        };
        check(json!({}), "");
        check(json!({"keys": []}), "");
        check(json!({"kind": "click"}), r#"found the kind "click"; accepted: impression, conversion"#);
        check(json!({"key": ["day"]}), "unknown field `key`");
        check(json!({"kind": "impression", "events": ["a"]}), "events: found with impressions, which have no names");
        check(json!({"where": {"plan": []}}), "where.plan: found 0; 1 to 100 values are accepted");
        check(json!({"keys": ["Plan"]}), r#"keys[0]: found the name "Plan"; lower-case letters, digits and _ are accepted"#);
        check(json!({"keys": ["day", "day"]}), r#"keys[1]: found the name "day" twice"#);
        check(json!({"keys": ["n"]}), r#"measures.n: found the name "n" twice"#);
        check(json!({"keys": ["log_id"]}), r#"keys[0]: found the name "log_id", which a column of Weir's has"#);
        check(
            json!({"keys": [{"name": "x", "of": "log_offset"}]}),
            r#"keys[0]: found "log_offset", which says how an event is stored"#,
        );
        check(
            json!({"keys": [{"name": "x", "of": "details"}], "kind": "conversion"}),
            r#"keys[0]: found "details", which holds objects"#,
        );
        check(json!({"keys": [{"name": "x"}]}), "either `of` is accepted, or `day_of` with or without `zone`");
        check(json!({"keys": [7]}), "a key is the name of a column or property, or a table");
        check(json!({"keys": [{"name": "x", "day_of": "plan"}]}), r#"keys[0].day_of: found "plan", which is no time"#);
        check(
            json!({"keys": [{"name": "x", "day_of": "event_time", "zone": "Berlin"}]}),
            r#"keys[0].zone: found "Berlin"; a name of the IANA database such as Europe/Berlin, or event, is accepted"#,
        );
        check(
            json!({"keys": ["campaign.budget"]}),
            "keys[0]: found campaign.budget; of the campaign are accepted: campaign.name",
        );
        check(
            json!({"kind": "engagement", "keys": ["campaign.type"]}),
            "keys: found a key of the campaign, but these events name none",
        );
        check(json!({"kind": "campaign_event", "keys": ["campaign.type"]}), "");
        check(json!({"keys": ["a", "b", "c", "d", "e", "f", "g", "h", "i"]}), "keys: found 9; at most 8 are accepted");
        check(json!({"measures": {}}), "measures: found 0; 1 to 32 are accepted");
        for measure in
            [json!("sum"), json!({"median": "x"}), json!({"sum": "x", "max": "x"}), json!({"where": {"a": 1}}), json!(7)]
        {
            check(json!({"measures": {"m": measure}}), "a measure is \"count\", or a table of one of `count`, `sum`");
        }
        check(json!({"measures": {"m": {"sum": "country"}}}), r#"measures.m: found sum of "country", which is text; a number"#);
        check(json!({"measures": {"m": {"max": "event_time"}}}), "");
        check(json!({"unique": ["a", "b", "c", "d", "e"]}), "unique: found 5; at most 4 are accepted");
        let per = json!({"keys": ["level"], "measures": {"xp": {"max": "xp"}}});
        check(json!({"per": per, "keys": ["level"], "measures": {"n": {"sum": "xp"}}}), "");
        check(
            json!({"per": per, "keys": ["day"]}),
            r#"keys[0].day_of: found "event_time"; accepted is what `per` has: user_id, level, xp"#,
        );
        check(json!({"per": per, "unique": ["id"]}), "per: found beside unique");
        check(json!({"per": per, "keys": [], "measures": {"n": {"last": "xp"}}}), "measures.n: found last of what `per` has");
        check(json!({"per": {"measures": {"d": {"distinct": "x"}}}, "keys": []}), "per.measures.d: found distinct");
        check(json!({"per": {"keys": ["user_id"], "measures": {"d": "count"}}, "keys": []}), r#"found the name "user_id" twice"#);
    }
}
