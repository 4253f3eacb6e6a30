//! The fact tables: their columns, declared once.
//!
//! The schema's DDL is held against these by a test, the aggregator's COPY and staging table are made of them, and so are the
//! columns of the SQL table `events`. Adding a column is adding a line here and in `migrations`.

use compact_str::CompactString;
use uuid::Uuid;

use crate::event::{ConversionDetails, Details, Event, IdentityDetails, ImpressionDetails, Kind};
use crate::json::JsonObject;
use crate::money::Money;
use crate::time::Micros;

/// An event with what storing it adds: the ids that its names stand for, and its place in the log.
#[derive(Clone, Copy, Debug)]
pub struct Fact<'a> {
    /// The event.
    pub event: &'a Event,
    /// Of the experiment that it names, resolved.
    pub experiment_id: Option<Uuid>,
    /// Of the variant.
    pub variant_id: Option<Uuid>,
    /// Of the campaign.
    pub campaign_id: Option<Uuid>,
    /// Of the campaign's component.
    pub component_id: Option<Uuid>,
    /// Which log it was read from.
    pub log_id: Uuid,
    /// Which of its log partitions.
    pub log_partition: u32,
    /// Where in that.
    pub log_offset: u64,
}

/// A column's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// 16 bytes.
    Uuid,
    /// UTF-8 without U+0000.
    Text,
    /// Microseconds, UTC.
    Timestamp,
    /// True or false.
    Boolean,
    /// 32 bits, signed.
    Integer,
    /// 64 bits, signed.
    Bigint,
    /// A decimal of 20 digits, 6 of them after the point.
    Money,
    /// A JSON object.
    Json,
}

impl ColumnType {
    /// Returns its name in Postgres, as `format_type` has it.
    pub fn sql(self) -> &'static str {
        match self {
            ColumnType::Uuid => "uuid",
            ColumnType::Text => "text",
            ColumnType::Timestamp => "timestamp with time zone",
            ColumnType::Boolean => "boolean",
            ColumnType::Integer => "integer",
            ColumnType::Bigint => "bigint",
            ColumnType::Money => "numeric(20,6)",
            ColumnType::Json => "jsonb",
        }
    }
}

/// What a fact has in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of `ColumnType`.
pub enum Value<'a> {
    Null,
    Uuid(Uuid),
    Text(&'a str),
    Timestamp(Micros),
    Boolean(bool),
    Integer(i32),
    Bigint(i64),
    Money(Money),
    Json(&'a JsonObject),
}

impl<'a> Value<'a> {
    fn text(text: &'a Option<CompactString>) -> Self {
        text.as_deref().map_or(Value::Null, Value::Text)
    }

    fn json(object: Option<&'a JsonObject>) -> Self {
        object.map_or(Value::Null, Value::Json)
    }

    fn or_null<T>(value: Option<T>, of: fn(T) -> Self) -> Self {
        value.map_or(Value::Null, of)
    }
}

/// A column of a fact table.
#[derive(Debug)]
pub struct Column {
    /// Its name in Postgres.
    pub name: &'static str,
    /// Its name in the SQL table `events`, where it has one of its own: mostly the field's name in the API.
    pub api_name: &'static str,
    /// Its type.
    pub column_type: ColumnType,
    /// Whether each row has a value.
    pub is_required: bool,
    value: for<'a> fn(&Fact<'a>) -> Value<'a>,
}

impl Column {
    /// Returns what a fact has in it.
    pub fn value<'a>(&self, fact: &Fact<'a>) -> Value<'a> {
        (self.value)(fact)
    }
}

/// A fact table.
#[derive(Debug)]
pub struct FactTable {
    /// Its name.
    pub name: &'static str,
    /// Whose rows it holds.
    pub kind: Kind,
    own: &'static [Column],
}

impl FactTable {
    /// Returns the table of a kind.
    pub fn of(kind: Kind) -> &'static FactTable {
        // Each kind has one, which a test walks.
        FACT_TABLES.iter().find(|table| table.kind == kind).unwrap_or(&FACT_TABLES[0])
    }

    /// Returns its columns, in their order: those that all fact tables have, then its own.
    pub fn columns(&self) -> impl Iterator<Item = &'static Column> + Clone + use<> {
        COMMON.iter().chain(self.own)
    }

    /// Returns its columns, in their order, with the ids that they have in files for ever: those that all fact tables have from 1 on, its
    /// own from 1,001 on.
    pub fn numbered_columns(&self) -> impl Iterator<Item = (i32, &'static Column)> + use<> {
        (1..).zip(&COMMON).chain((1_001..).zip(self.own))
    }
}

/// The fact tables by name: the order in which every transaction takes their rows' locks.
pub static FACT_TABLES: [FactTable; 5] = [
    FactTable { name: "campaign_events", kind: Kind::CampaignEvent, own: &CAMPAIGN_EVENT },
    FactTable { name: "conversions", kind: Kind::Conversion, own: &CONVERSION },
    FactTable { name: "engagement_events", kind: Kind::Engagement, own: &ENGAGEMENT },
    FactTable { name: "identity_events", kind: Kind::Identity, own: &IDENTITY },
    FactTable { name: "impressions", kind: Kind::Impression, own: &IMPRESSION },
];

/// The columns of a fact's identity, in the order of the tables' primary key.
pub const KEY: [&str; 4] = ["project_id", "user_id", "claimed_at", "id"];

use ColumnType::{Bigint, Boolean, Integer, Json, Money as Decimal, Text, Timestamp, Uuid as Id};

type ValueOf = for<'a> fn(&Fact<'a>) -> Value<'a>;

const fn required(name: &'static str, api_name: &'static str, column_type: ColumnType, value: ValueOf) -> Column {
    Column { name, api_name, column_type, is_required: true, value }
}

const fn optional(name: &'static str, api_name: &'static str, column_type: ColumnType, value: ValueOf) -> Column {
    Column { name, api_name, column_type, is_required: false, value }
}

/// Columns of every fact table. Fixed lengths come first, so that Postgres pads and walks little.
static COMMON: [Column; 31] = [
    required("project_id", "project_id", Id, |fact| Value::Uuid(fact.event.project_id.0)),
    required("user_id", "user_id", Id, |fact| Value::Uuid(fact.event.user_id.0)),
    required("claimed_at", "claimed_at", Timestamp, |fact| Value::Timestamp(fact.event.claimed_at)),
    required("id", "event_id", Id, |fact| Value::Uuid(fact.event.event_id.0)),
    required("event_time", "event_time", Timestamp, |fact| Value::Timestamp(fact.event.event_time)),
    required("received_at", "received_at", Timestamp, |fact| Value::Timestamp(fact.event.received_at)),
    optional("sent_at", "sent_at", Timestamp, |fact| Value::or_null(fact.event.sent_at, Value::Timestamp)),
    required("log_offset", "log_offset", Bigint, |fact| Value::Bigint(fact.log_offset as i64)),
    required("log_id", "log_id", Id, |fact| Value::Uuid(fact.log_id)),
    required("log_partition", "log_partition", Integer, |fact| Value::Integer(fact.log_partition as i32)),
    required("untimed", "untimed", Boolean, |fact| Value::Boolean(fact.event.untimed)),
    required("is_bot", "is_bot", Boolean, |fact| Value::Boolean(fact.event.is_bot)),
    optional("external_id", "external_id", Text, |fact| Value::text(&fact.event.external_id)),
    optional("anonymous_id", "anonymous_id", Text, |fact| Value::text(&fact.event.anonymous_id)),
    optional("session_identifier", "session_id", Text, |fact| Value::text(&fact.event.session_id)),
    optional("page_url", "page_url", Text, |fact| Value::text(&fact.event.context.page_url)),
    optional("referrer", "referrer", Text, |fact| Value::text(&fact.event.context.referrer)),
    optional("user_agent", "user_agent", Text, |fact| Value::text(&fact.event.context.user_agent)),
    optional("language_code", "language", Text, |fact| Value::text(&fact.event.context.language)),
    optional("time_zone", "time_zone", Text, |fact| Value::text(&fact.event.context.time_zone)),
    optional("screen_resolution", "screen", Text, |fact| Value::text(&fact.event.context.screen)),
    optional("viewport_size", "viewport", Text, |fact| Value::text(&fact.event.context.viewport)),
    optional("connection_type", "connection", Text, |fact| Value::text(&fact.event.context.connection)),
    optional("utm_source", "utm_source", Text, |fact| Value::text(&fact.event.context.utm_source)),
    optional("utm_medium", "utm_medium", Text, |fact| Value::text(&fact.event.context.utm_medium)),
    optional("utm_campaign", "utm_campaign", Text, |fact| Value::text(&fact.event.context.utm_campaign)),
    optional("country_code", "country", Text, |fact| Value::text(&fact.event.context.country)),
    optional("region", "region", Text, |fact| Value::text(&fact.event.context.region)),
    optional("city", "city", Text, |fact| Value::text(&fact.event.context.city)),
    optional("device_type", "device_type", Text, |fact| Value::text(&fact.event.context.device_type)),
    optional("metadata", "properties", Json, |fact| Value::json(fact.event.metadata.as_ref())),
];

const EXPERIMENT_ID: Column =
    optional("experiment_id", "experiment_id", Id, |fact| Value::or_null(fact.experiment_id, Value::Uuid));
const VARIANT_ID: Column = optional("variant_id", "variant_id", Id, |fact| Value::or_null(fact.variant_id, Value::Uuid));
const CAMPAIGN_ID: Column = optional("campaign_id", "campaign_id", Id, |fact| Value::or_null(fact.campaign_id, Value::Uuid));
const COMPONENT_ID: Column = optional("component_id", "component_id", Id, |fact| Value::or_null(fact.component_id, Value::Uuid));
const CURRENCY: Column = optional("currency", "currency", Text, |fact| Value::text(&fact.event.currency));

/// The name of an event, in the column that a seed calls by this name.
const fn event_name(name: &'static str) -> Column {
    required(name, "event", Text, |fact| Value::text(&fact.event.name))
}

/// The amount of an event, in the column that a seed calls by this name.
const fn amount(name: &'static str) -> Column {
    optional(name, "value", Decimal, |fact| Value::or_null(fact.event.value, Value::Money))
}

fn impression<'a>(fact: &Fact<'a>) -> Option<&'a ImpressionDetails> {
    if let Details::Impression(details) = &fact.event.details { Some(details) } else { None }
}

fn conversion<'a>(fact: &Fact<'a>) -> Option<&'a ConversionDetails> {
    if let Details::Conversion(details) = &fact.event.details { Some(details) } else { None }
}

fn identity<'a>(fact: &Fact<'a>) -> Option<&'a IdentityDetails> {
    if let Details::Identity(details) = &fact.event.details { Some(details) } else { None }
}

/// The value of a field of a kind's details, wrapped as the column's type has it.
macro_rules! of {
    ($details:ident.$field:ident, $value:path) => {
        |fact| Value::or_null($details(fact).and_then(|details| details.$field), $value)
    };
}
macro_rules! text_of {
    ($details:ident.$field:ident) => {
        |fact| $details(fact).map_or(Value::Null, |details| Value::text(&details.$field))
    };
}
macro_rules! json_of {
    ($details:ident.$field:ident) => {
        |fact| Value::json($details(fact).and_then(|details| details.$field.as_ref()))
    };
}

static IMPRESSION: [Column; 10] = [
    EXPERIMENT_ID,
    VARIANT_ID,
    optional("time_on_page", "time_on_page", Integer, of!(impression.time_on_page, Value::Integer)),
    optional("scroll_depth_percent", "scroll_depth_percent", Integer, of!(impression.scroll_depth_percent, Value::Integer)),
    optional("page_load_time", "page_load_time", Integer, of!(impression.page_load_time, Value::Integer)),
    optional("bounce", "bounce", Boolean, of!(impression.bounce, Value::Boolean)),
    optional("is_first_exposure", "is_first_exposure", Boolean, of!(impression.is_first_exposure, Value::Boolean)),
    optional("user_was_eligible", "user_was_eligible", Boolean, of!(impression.user_was_eligible, Value::Boolean)),
    optional("user_eligibility_status", "user_eligibility_status", Json, json_of!(impression.user_eligibility_status)),
    optional("user_context", "user_context", Json, json_of!(impression.user_context)),
];

static CONVERSION: [Column; 18] = [
    EXPERIMENT_ID,
    VARIANT_ID,
    CAMPAIGN_ID,
    COMPONENT_ID,
    event_name("conversion_type"),
    amount("conversion_value"),
    CURRENCY,
    optional("source", "source", Text, text_of!(conversion.source)),
    optional("medium", "medium", Text, text_of!(conversion.medium)),
    optional("referrer_source", "referrer_source", Text, text_of!(conversion.referrer_source)),
    optional("time_to_convert", "time_to_convert", Integer, of!(conversion.time_to_convert, Value::Integer)),
    optional(
        "is_first_conversion_for_experiment",
        "is_first_conversion_for_experiment",
        Boolean,
        of!(conversion.is_first_conversion_for_experiment, Value::Boolean),
    ),
    optional(
        "conversion_attribution_source",
        "conversion_attribution_source",
        Text,
        text_of!(conversion.conversion_attribution_source),
    ),
    optional("conversion_window_days", "conversion_window_days", Integer, of!(conversion.conversion_window_days, Value::Integer)),
    optional(
        "original_exposure_date",
        "original_exposure_date",
        Timestamp,
        of!(conversion.original_exposure_date, Value::Timestamp),
    ),
    optional(
        "conversion_eligibility_verified",
        "conversion_eligibility_verified",
        Boolean,
        of!(conversion.conversion_eligibility_verified, Value::Boolean),
    ),
    optional("details", "details", Json, json_of!(conversion.details)),
    optional("conversion_context", "conversion_context", Json, json_of!(conversion.conversion_context)),
];

static CAMPAIGN_EVENT: [Column; 5] = [CAMPAIGN_ID, COMPONENT_ID, event_name("event_type"), amount("revenue"), CURRENCY];

static ENGAGEMENT: [Column; 3] = [EXPERIMENT_ID, VARIANT_ID, event_name("event_type")];

static IDENTITY: [Column; 3] = [
    event_name("event_type"),
    optional("previous_id", "previous_id", Text, text_of!(identity.previous_id)),
    optional("group_id", "group_id", Text, text_of!(identity.group_id)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{admitted, conversion, exposure};
    use std::collections::HashMap;

    #[test]
    fn each_kind_has_its_table_and_each_table_the_key() {
        for kind in Kind::ALL {
            let table = FactTable::of(kind);
            assert_eq!(table.kind, kind);
            for key in KEY {
                assert!(table.columns().any(|column| column.name == key && column.is_required), "{}.{key}", table.name);
            }
        }
        assert!(FACT_TABLES.is_sorted_by_key(|table| table.name));
    }

    /// Staging and the SQL table `events` lay columns of one name over each other.
    #[test]
    fn a_name_has_one_type_in_all_tables_and_stands_once_in_each() {
        let mut types = HashMap::new();
        for table in &FACT_TABLES {
            let mut names: Vec<&str> = table.columns().map(|column| column.name).collect();
            let mut api_names: Vec<&str> = table.columns().map(|column| column.api_name).collect();
            let count = names.len();
            for names in [&mut names, &mut api_names] {
                names.sort_unstable();
                names.dedup();
                assert_eq!(names.len(), count, "{}", table.name);
            }
            for column in table.columns() {
                for name in [("column", column.name), ("api", column.api_name)] {
                    assert_eq!(*types.entry(name).or_insert(column.column_type), column.column_type, "{name:?}");
                }
            }
        }
    }

    #[test]
    fn a_fact_gives_each_column_its_value() {
        let shown = admitted(exposure("i", "alice", "2026-02-20T10:00:00Z", "checkout", "b"));
        let bought = admitted(conversion("c", "alice", "2026-02-20T10:00:00Z", "purchase", "1.5"));
        let experiment = Uuid::from_u128(7);
        let check = |event: &Event, name: &str, expected: Value<'_>| {
            let fact = Fact {
                event,
                experiment_id: Some(experiment),
                variant_id: None,
                campaign_id: None,
                component_id: None,
                log_id: Uuid::from_u128(8),
                log_partition: 3,
                log_offset: 9,
            };
            let column = FactTable::of(event.kind()).columns().find(|column| column.name == name);
            assert_eq!(column.map(|column| column.value(&fact)), Some(expected), "{name}");
        };
        check(&shown, "experiment_id", Value::Uuid(experiment));
        check(&shown, "variant_id", Value::Null);
        check(&shown, "external_id", Value::Text("alice"));
        check(&shown, "claimed_at", Value::Timestamp(Micros(1_771_581_600_000_000)));
        check(&shown, "log_offset", Value::Bigint(9));
        check(&shown, "log_partition", Value::Integer(3));
        check(&shown, "untimed", Value::Boolean(false));
        check(&shown, "bounce", Value::Null);
        check(&bought, "conversion_type", Value::Text("purchase"));
        check(&bought, "conversion_value", Value::Money("1.5".parse().expect("an amount")));
        check(&bought, "metadata", Value::Null);
    }
}
