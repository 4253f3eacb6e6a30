//! Events as rollups see them, about to be stored or stored: the values of their fields are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chrono_tz::Tz;
use events::fact::{Fact, FactTable};
use events::{EventId, Kind, Micros};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::rollups::datum::{Datum, Place, Type, day};
use crate::rollups::shape::{Condition, Expr, Field, Zone};

/// What fields are read from.
pub(super) trait Row<'a> {
    fn field(&self, field: &Field) -> Option<Datum<'a>>;
    /// The text of a property's JSON.
    fn property(&self, name: &str) -> Option<&'a str>;
}

pub(super) fn value<'a>(row: &dyn Row<'a>, field: &Field, value_type: Type) -> Option<Datum<'a>> {
    let datum = match field {
        // Names have a bound of their own.
        Field::Event => return row.field(field),
        Field::Property(name) if value_type == Type::Number => Datum::number_of_json(row.property(name)?),
        Field::Property(name) => Datum::text_of_json(row.property(name)?),
        _ => row.field(field),
    };
    datum.map(Datum::cut)
}

pub(super) fn hold(conditions: &[Condition], row: &dyn Row<'_>) -> bool {
    let holds = |(field, accepted): &Condition| {
        value(row, field, field.value_type()).is_some_and(|value| match value {
            Datum::Text(text) => accepted.contains(text.as_ref()),
            other => accepted.contains(&other.to_string()),
        })
    };
    conditions.iter().all(holds)
}

impl Expr {
    pub(super) fn value<'a>(&self, row: &dyn Row<'a>) -> Option<Datum<'a>> {
        match self {
            Expr::Field(field) => value(row, field, field.value_type()),
            Expr::Day(field, zone) => {
                let Some(Datum::Time(time)) = row.field(field) else { return None };
                let named = |field| match row.field(field) {
                    Some(Datum::Text(name)) => name.parse::<Tz>().ok(),
                    _ => None,
                };
                let zone = match zone {
                    Zone::Fixed(zone) => *zone,
                    Zone::Event(field) => named(field).unwrap_or(Tz::UTC),
                };
                Some(Datum::Day(day(time, zone)))
            }
        }
    }
}

/// An event, about to be stored or stored.
#[derive(Debug)]
pub struct Seen<'a> {
    pub(super) kind: Kind,
    pub(super) user: Uuid,
    pub(super) is_bot: bool,
    pub(super) place: Place,
    pub(super) id: EventId,
    pub(super) claimed_at: Micros,
    values: Values<'a>,
    properties: std::sync::OnceLock<BTreeMap<Cow<'a, str>, &'a RawValue>>,
}

#[derive(Debug)]
enum Values<'a> {
    Fact(Fact<'a>),
    /// By column of the fact table.
    Stored(BTreeMap<Cow<'a, str>, &'a RawValue>),
}

impl<'a> Seen<'a> {
    /// Returns its place in the order of first and last.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Takes an event that is about to be stored.
    pub fn fact(fact: Fact<'a>) -> Self {
        let event = fact.event;
        Seen {
            kind: event.kind(),
            user: event.user_id.0,
            is_bot: event.is_bot,
            place: Place::new(event.event_time, event.event_id, event.claimed_at),
            id: event.event_id,
            claimed_at: event.claimed_at,
            values: Values::Fact(fact),
            properties: std::sync::OnceLock::new(),
        }
    }

    /// Reads an event that is stored: the text of its row as an object, in a session whose times are UTC. None if it is not one.
    pub fn stored(kind: Kind, row: &'a str) -> Option<Self> {
        let values: BTreeMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(row).ok()?;
        let text = |name: &str| values.get(name).and_then(|raw| serde_json::from_str::<&str>(raw.get()).ok());
        let time = |name: &str| text(name).and_then(|text| Micros::parse(text).ok());
        let id = EventId(text("id")?.parse().ok()?);
        let claimed_at = time("claimed_at")?;
        Some(Seen {
            kind,
            user: text("user_id")?.parse().ok()?,
            is_bot: values.get("is_bot")?.get() == "true",
            place: Place::new(time("event_time")?, id, claimed_at),
            id,
            claimed_at,
            values: Values::Stored(values),
            properties: std::sync::OnceLock::new(),
        })
    }

    fn metadata(&self) -> Option<&'a str> {
        match &self.values {
            Values::Fact(fact) => fact.event.metadata.as_ref().map(|object| object.get()),
            Values::Stored(values) => values.get("metadata").map(|raw| raw.get()),
        }
    }
}

impl<'a> Row<'a> for Seen<'a> {
    fn field(&self, field: &Field) -> Option<Datum<'a>> {
        match field {
            Field::Kind => Some(Datum::Text(Cow::Borrowed(self.kind.as_str()))),
            Field::Event if self.kind == Kind::Impression => Some(Datum::Text(Cow::Borrowed(self.kind.as_str()))),
            Field::Event => match &self.values {
                Values::Fact(fact) => fact.event.name.as_deref().map(|name| Datum::Text(Cow::Borrowed(name))),
                Values::Stored(values) => {
                    let column = FactTable::of(self.kind).columns().find(|column| column.api_name == "event")?;
                    Datum::text_of_json(values.get(column.name)?.get())
                }
            },
            Field::Column(columns, value_type) => {
                let column = columns[self.kind as usize]?;
                match &self.values {
                    Values::Fact(fact) => Datum::of_value(column.value(fact)),
                    Values::Stored(values) => of_column(values.get(column.name)?.get(), *value_type),
                }
            }
            Field::Property(_) | Field::State(..) => None,
        }
    }

    fn property(&self, name: &str) -> Option<&'a str> {
        let read = || self.metadata().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        self.properties.get_or_init(read).get(name).map(|raw| raw.get())
    }
}

/// Reads a column's value from the JSON that Postgres makes of it.
fn of_column(json: &str, value_type: Type) -> Option<Datum<'_>> {
    match (json, value_type) {
        ("null", _) => None,
        (_, Type::Number | Type::Boolean) => Datum::parse(Cow::Borrowed(json), value_type),
        _ => match Datum::text_of_json(json)? {
            Datum::Text(text) => Datum::parse(text, value_type),
            _ => None,
        },
    }
}
