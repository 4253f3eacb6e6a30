//! From a row to an event as the collector takes it.

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::content::{Compared, Repeats, content};
use super::source::{Cell, Fault, Format, Source, name_of};
use super::{decimal, names};

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Dialect {
    /// Events as POST /v1/events takes them; columns have the names of its fields
    #[default]
    Native,
    /// Segment's calls, one in each line: an export, or an archive of messages
    Segment,
    /// Rows of a table of impressions: id, user_id, experiment_id, variant_id, impression_at, ..
    Impressions,
    /// Rows of a table of conversions: id, user_id, conversion_type, conversion_value, created_at, ..
    Conversions,
}

/// Where a field comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A column, or the first of these that has a value; names with points lead into objects.
    Columns(Vec<String>),
    /// The same in all rows, as JSON.
    Constant(String),
}

/// A field and where it comes from.
pub(super) type Mapped = (String, From);

/// Reads a map: a JSON object of field to column, or to `{"value": ..}`.
/// # Errors
/// If it is anything else.
pub(super) fn read_map(text: &[u8]) -> anyhow::Result<Vec<Mapped>> {
    let accepted = r#"accepted is an object such as {"user_id": "uid", "type": {"value": "conversion"}}"#;
    let map: serde_json::Map<String, Value> = serde_json::from_slice(text).with_context(|| accepted.to_owned())?;
    let from = |(field, value): (String, Value)| {
        let from = match &value {
            Value::String(column) if !column.is_empty() => From::Columns(vec![column.clone()]),
            Value::Object(object) if object.len() == 1 && object.contains_key("value") => {
                From::Constant(object["value"].to_string())
            }
            other => bail!("{field:?}: found {other}; {accepted}"),
        };
        Ok((field, from))
    };
    map.into_iter().map(from).collect()
}

/// How the rows of a file become events.
pub(super) struct Plan {
    dialect: Dialect,
    fields: Vec<Mapped>,
    decimal_comma: bool,
    /// Of the ids of rows that have none.
    namespace: Uuid,
}

impl Plan {
    /// Makes the plan of a file.
    /// # Errors
    /// If the file cannot be of this dialect.
    pub(super) fn new(dialect: Dialect, map: &[Mapped], decimal_comma: bool, source: &Source) -> anyhow::Result<Self> {
        if dialect == Dialect::Segment && (source.format != Format::Lines || !map.is_empty() || decimal_comma) {
            let (name, format) = (source.path.display(), name_of(source.format));
            bail!("{name}: {format}; Segment's calls are accepted as NDJSON, without --map and --decimal-comma");
        }
        let columns = |names: &[&str]| From::Columns(names.iter().map(|name| (*name).to_owned()).collect());
        let constant = |text: &str| From::Constant(format!("\"{text}\""));
        let preset: Vec<(&str, From)> = match dialect {
            Dialect::Native | Dialect::Segment => Vec::new(),
            Dialect::Impressions => vec![
                ("type", constant("impression")),
                ("event_id", columns(&["event_id", "id"])),
                ("timestamp", columns(&["timestamp", "impression_at", "created_at"])),
            ],
            Dialect::Conversions => vec![
                ("type", constant("conversion")),
                ("event_id", columns(&["event_id", "id"])),
                ("timestamp", columns(&["timestamp", "created_at"])),
            ],
        };
        let mut fields = map.to_vec();
        for (field, from) in preset {
            if !fields.iter().any(|(known, _)| known == field) {
                fields.push((field.to_owned(), from));
            }
        }
        Ok(Plan { dialect, fields, decimal_comma, namespace: namespace(dialect, map) })
    }

    /// Checks that the columns of a file can give a time, without which each of its rows would be refused.
    /// # Errors
    /// What the columns are, and what is accepted.
    pub(super) fn check_columns(&self, columns: &[String]) -> anyhow::Result<()> {
        let has =
            |name: &str| columns.iter().any(|column| names::is_same(column, name) || names::is_same(column, first_part(name)));
        let is_there = |(field, from): &Mapped| {
            field == "timestamp"
                && match from {
                    From::Constant(_) => true,
                    From::Columns(columns) => columns.iter().any(|column| has(column)),
                }
        };
        if self.dialect == Dialect::Segment || has("timestamp") || self.fields.iter().any(is_there) {
            return Ok(());
        }
        bail!(
            "missing_timestamp: no column says when a row happened; found the columns {columns:?}; accepted is a column timestamp, or \
             one that --map names, such as {{\"timestamp\": \"created_at\"}}"
        )
    }

    /// Returns a digest of how rows become events, to tell whether an earlier import did the same.
    pub(super) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?} {}", self.dialect, self.fields, self.decimal_comma));
        hex::encode(hash.finalize())
    }

    /// Makes one event, on one line. A row without an id is counted among its equals, so each row of a file comes here once and in
    /// the order of the file, also one that is not sent again.
    /// # Errors
    /// If no more rows can be counted. The inner one: why the row cannot become an event; what the collector would refuse anyway is
    /// left to it.
    pub(super) fn event(&self, mut cells: Vec<(String, Cell)>, repeats: &mut Repeats) -> anyhow::Result<Result<Vec<u8>, Fault>> {
        let fields = if self.dialect == Dialect::Segment {
            let is_there = |(name, cell): &(String, Cell)| !(name == "messageId" && is_null(cell));
            cells.into_iter().filter(is_there).map(|(name, cell)| (name, json_of(&cell))).collect()
        } else {
            names::forgive(&mut cells);
            match self.fields(&cells) {
                Ok(fields) => fields,
                Err(fault) => return Ok(Err(fault)),
            }
        };
        let id_name = if self.dialect == Dialect::Segment { "messageId" } else { "event_id" };
        let mut out = Object(Vec::with_capacity(512));
        let id = if fields.iter().any(|(name, _)| name == id_name) { None } else { Some(self.id(&fields, repeats)?) };
        if let (Some(id), Dialect::Segment) = (&id, self.dialect) {
            out.member(id_name, &quoted(id));
        }
        for (name, json) in &fields {
            out.member(name, json);
        }
        if let (Some(id), false) = (&id, self.dialect == Dialect::Segment) {
            out.member(id_name, &quoted(id));
        }
        Ok(Ok(out.finish()))
    }

    /// Returns an event's fields, in JSON.
    fn fields(&self, cells: &[(String, Cell)]) -> Result<Vec<(String, String)>, Fault> {
        let mut fields: Vec<(String, String)> = Vec::with_capacity(cells.len() + self.fields.len());
        let mut used: Vec<&str> = Vec::new();
        let mut add = |field: &str, json: String| {
            if json != "null" {
                fields.push((field.to_owned(), json));
            }
        };
        for (field, from) in &self.fields {
            match from {
                From::Constant(json) => add(field, json.clone()),
                From::Columns(columns) => {
                    let found = columns.iter().find_map(|column| find(cells, column));
                    if let Some((column, cell)) = found {
                        used.extend(column);
                        add(field, self.typed(field, &cell)?);
                    }
                }
            }
        }
        for (name, cell) in cells {
            let is_mapped = self.fields.iter().any(|(field, _)| field == name);
            if !is_mapped && !used.contains(&name.as_str()) {
                add(name, self.typed(name, cell)?);
            }
        }
        if !fields.iter().any(|(name, _)| name == "timestamp") {
            // Elsewhere it would be the time of receipt, which is never when history happened.
            let message =
                "timestamp: missing; an imported row says when it happened, in this field or in a column that --map names";
            return Err(Fault::new("missing_timestamp", message));
        }
        Ok(fields)
    }

    /// Returns the id of a row that has none: UUIDv5 of what it says and of how many equal rows came before it.
    fn id(&self, fields: &[(String, String)], repeats: &mut Repeats) -> anyhow::Result<String> {
        let is_segment = self.dialect == Dialect::Segment;
        let compared = |name: &str| match kind_of(name) {
            _ if is_segment => Compared::ByNumbers,
            Kind::Text => Compared::Exactly,
            _ if matches!(name, "timestamp" | "sent_at" | "original_exposure_date") => Compared::ByTime,
            _ => Compared::ByValue,
        };
        let content = content(fields.iter().map(|(name, json)| (name.as_str(), json.as_str(), compared(name))));
        let number = repeats.number(&content)?;
        Ok(Uuid::new_v5(&self.namespace, format!("{}:{number}", hex::encode(content)).as_bytes()).to_string())
    }

    /// Writes a value as its field expects it.
    fn typed(&self, field: &str, cell: &Cell) -> Result<String, Fault> {
        let is_amount = matches!(field, "value" | "conversion_value");
        if !(self.decimal_comma && is_amount) {
            return Ok(typed(field, cell));
        }
        let text = match cell {
            Cell::Text(text) => Some(text.clone()),
            Cell::Json(json) => serde_json::from_str::<String>(json).ok().filter(|text| !text.is_empty()),
        };
        match text {
            Some(text) => {
                let with_point =
                    decimal::with_point(&text).map_err(|why| Fault::new("not_decimal", format!("{field}: {why}")))?;
                Ok(quoted(&with_point))
            }
            // A number of JSON has its own way of writing decimals.
            None => Ok(typed(field, cell)),
        }
    }
}

/// Returns what stands before the first point.
fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Returns the namespace of the ids of rows that have none: UUIDv5(OID namespace, `weir:import:{dialect}:{map}`), the map in JSON with
/// its fields in order: the same rows mean something else under another one.
fn namespace(dialect: Dialect, map: &[Mapped]) -> Uuid {
    let dialect = dialect.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let member = |(field, from): &Mapped| match from {
        From::Columns(columns) => format!("{}:{}", quoted(field), quoted(&columns.join(" "))),
        From::Constant(json) => format!("{}:{{\"value\":{json}}}", quoted(field)),
    };
    let mut members: Vec<String> = map.iter().map(member).collect();
    members.sort_unstable();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:import:{dialect}:{{{}}}", members.join(",")).as_bytes())
}

/// A JSON object on its way.
struct Object(Vec<u8>);

impl Object {
    fn member(&mut self, name: &str, json: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.extend_from_slice(quoted(name).as_bytes());
        self.0.push(b':');
        self.0.extend_from_slice(json.as_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'{');
        }
        self.0.push(b'}');
        self.0
    }
}

fn quoted(text: &str) -> String {
    // Serialising a text fails for no text.
    serde_json::to_string(text).unwrap_or_default()
}

fn is_null(cell: &Cell) -> bool {
    matches!(cell, Cell::Json(json) if json == "null")
}

fn json_of(cell: &Cell) -> String {
    match cell {
        Cell::Json(json) => json.clone(),
        Cell::Text(text) => quoted(text),
    }
}

/// Finds a column that has a value, and its own name; or what a name with points leads to.
fn find<'a>(cells: &'a [(String, Cell)], column: &str) -> Option<(Option<&'a str>, Cell)> {
    let exact = cells.iter().find(|(name, _)| name == column);
    if let Some((name, cell)) = exact.or_else(|| cells.iter().find(|(name, _)| names::is_same(name, column))) {
        return (!is_null(cell)).then(|| (Some(name.as_str()), cell.clone()));
    }
    let (first, rest) = column.split_once('.')?;
    let (_, Cell::Json(json)) = cells.iter().find(|(name, _)| name == first)? else { return None };
    let inner = super::source::cells(json)?;
    // Only a part of the column is taken, so the column itself stays among the properties.
    find(&inner, rest).map(|(_, cell)| (None, cell))
}

/// What the collector expects of a field, as far as files write it otherwise.
enum Kind {
    /// A text; numbers are written as their digits.
    Text,
    /// A whole number.
    Whole,
    /// True or false.
    Boolean,
    /// An object.
    Object,
    /// Whatever it is.
    Other,
}

fn kind_of(field: &str) -> Kind {
    match field {
        "type" | "event_id" | "user_id" | "anonymous_id" | "session_id" | "session_identifier" | "name" | "conversion_type"
        | "event_type" | "experiment" | "experiment_id" | "variant" | "variant_id" | "campaign" | "campaign_id" | "component"
        | "component_id" | "previous_id" | "group_id" | "utm_source" | "utm_medium" | "utm_campaign" | "source" | "medium" => {
            Kind::Text
        }
        "time_on_page" | "scroll_depth_percent" | "page_load_time" | "time_to_convert" | "conversion_window_days" => Kind::Whole,
        "is_bot"
        | "bounce"
        | "is_first_exposure"
        | "user_was_eligible"
        | "is_first_conversion_for_experiment"
        | "conversion_eligibility_verified" => Kind::Boolean,
        "properties" | "metadata" | "user_eligibility_status" | "user_context" | "details" | "conversion_context" => Kind::Object,
        _ => Kind::Other,
    }
}

/// Writes a value as JSON of the type that its field has, where that changes nothing of its meaning.
fn typed(field: &str, cell: &Cell) -> String {
    let inner = match cell {
        Cell::Text(text) => Some(text.clone()),
        Cell::Json(json) if json.starts_with('"') => serde_json::from_str::<String>(json).ok(),
        Cell::Json(_) => None,
    };
    let text = match (&inner, cell) {
        (Some(text), _) => text.as_str(),
        (None, Cell::Json(json) | Cell::Text(json)) => json.as_str(),
    };
    let is_number = |text: &str| text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    match kind_of(field) {
        Kind::Text if inner.is_none() && is_number(text) => quoted(text),
        Kind::Whole if text.parse::<i64>().is_ok_and(|number| number.to_string() == text) => text.to_owned(),
        Kind::Boolean => match text {
            "true" | "t" | "TRUE" | "True" | "1" => "true".to_owned(),
            "false" | "f" | "FALSE" | "False" | "0" => "false".to_owned(),
            _ => json_of(cell),
        },
        Kind::Object if inner.is_some() && is_object(text) => text.replace(['\n', '\r'], " "),
        _ => json_of(cell),
    }
}

/// Returns whether a text is a JSON object. Its line breaks can only stand between values.
fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::import::source::tests::source;

    fn cells(cells: &[(&str, &str)]) -> Vec<(String, Cell)> {
        let cell = |text: &str| match text.strip_prefix('=') {
            Some(text) => Cell::Text(text.to_owned()),
            None => Cell::Json(text.to_owned()),
        };
        cells.iter().map(|(name, value)| ((*name).to_owned(), cell(value))).collect()
    }

    fn plan(dialect: Dialect, map: &str) -> Plan {
        let (source, _folder) = source("events.ndjson", b"{}\n");
        Plan::new(dialect, &read_map(map.as_bytes()).expect("a map"), false, &source).expect("a plan")
    }

    /// Cells are JSON, or texts of a CSV file after `=`.
    fn check(plan: &Plan, row: &[(&str, &str)], expected: &str) {
        assert_eq!(event(plan, row, &mut Repeats::default()), expected, "{row:?}");
    }

    fn event(plan: &Plan, row: &[(&str, &str)], repeats: &mut Repeats) -> String {
        match plan.event(cells(row), repeats).expect("room") {
            Ok(event) => String::from_utf8(event).expect("text"),
            Err(fault) => fault.code,
        }
    }

    /// The id of a row that has none, the first of its kind.
    fn id(plan: &Plan, row: &[(&str, &str)]) -> String {
        let event = event(plan, row, &mut Repeats::default());
        serde_json::from_str::<Value>(&event).expect("JSON")["event_id"].as_str().expect("an id").to_owned()
    }

    #[test]
    fn values_get_the_type_of_their_field() {
        let plan = plan(Dialect::Native, r#"{"event_id": {"value": "e"}}"#);
        let check = |name: &str, value: &str, expected: &str| {
            check(
                &plan,
                &[("timestamp", "=t"), (name, value)],
                &format!(r#"{{"event_id":"e","timestamp":"t","{name}":{expected}}}"#),
            );
        };
        check("user_id", "7", "\"7\"");
        check("user_id", "=7", "\"7\"");
        check("user_id", "\"a\\u00e4\"", "\"a\\u00e4\"");
        check("user_id", "{}", "{}");
        check("time_on_page", "=1200", "1200");
        check("time_on_page", "\"1200\"", "1200");
        check("time_on_page", "=01200", "\"01200\"");
        check("time_on_page", "=1.5", "\"1.5\"");
        check("bounce", "=t", "true");
        check("bounce", "=False", "false");
        check("bounce", "0", "false");
        check("bounce", "=maybe", "\"maybe\"");
        check("properties", "={\"a\":\n1}", "{\"a\": 1}");
        check("properties", "\"{\\\"a\\\":1}\"", "{\"a\":1}");
        check("properties", "={a}", "\"{a}\"");
        check("value", "=19.90", "\"19.90\"");
        check("value", "19.90", "19.90");
        check("plan", "=1", "\"1\"");
    }

    #[test]
    fn maps_lead_to_columns_and_into_objects() {
        let plan = plan(
            Dialect::Native,
            r#"{"user_id": "context.user.id", "timestamp": "when", "type": {"value": "conversion"}, "event_id": "key"}"#,
        );
        check(
            &plan,
            &[("when", "=t"), ("context", r#"{"user":{"id":7}}"#), ("key", "=k"), ("user_id", "=other"), ("x", "=1")],
            r#"{"event_id":"k","timestamp":"t","type":"conversion","user_id":"7","context":{"user":{"id":7}},"x":"1"}"#,
        );
        check(&plan, &[("context", r#"{"user":1}"#), ("key", "=k")], "missing_timestamp");
        let accepted = |map: &str| read_map(map.as_bytes()).map(drop).map_err(|error| error.to_string());
        assert_eq!(accepted(r#"{"a": "b"}"#), Ok(()));
        for refused in [r#"{"a": 1}"#, r#"{"a": ""}"#, r#"{"a": {"value": 1, "x": 2}}"#, "[]", "{"] {
            let error = accepted(refused).expect_err(refused);
            assert!(error.contains("accepted is an object such as"), "{error}");
        }
    }

    #[test]
    fn ids_follow_from_what_a_row_says_and_its_number_among_equals() {
        let native = plan(Dialect::Native, "{}");
        let row: &[(&str, &str)] =
            &[("timestamp", "=2026-03-01 12:00:00"), ("user_id", "=7"), ("value", "=19.90"), ("event_id", "null")];
        // By another implementation (Python's hashlib and uuid).
        let (first, second) = ("0b98eda9-2155-51f3-99ac-31b6707f2d36", "377ae338-bea7-5aad-b591-618e8f0b6c9d");
        let mut repeats = Repeats::default();
        let ids = [0, 1].map(|_| {
            let event: Value = serde_json::from_str(&event(&native, row, &mut repeats)).expect("JSON");
            event["event_id"].as_str().expect("an id").to_owned()
        });
        assert_eq!(ids, [first, second]);
        // The same, as another file and format may write it.
        let same: &[&[(&str, &str)]] = &[
            &[("value", "19.9"), (" User_Id", "7"), ("TIMESTAMP", "\"2026-03-01T13:00:00.000+01:00\"")],
            &[("user_id", "\"7\""), ("timestamp", "=2026-03-01T12:00:00Z"), ("value", "=19.900"), ("plan", "\"\"")],
        ];
        for same in same {
            assert_eq!(id(&native, same), first, "{same:?}");
        }
        let others: &[&[(&str, &str)]] = &[
            &[("timestamp", "=2026-03-01 12:00:00"), ("user_id", "=7"), ("value", "=19.91")],
            &[("timestamp", "=2026-03-01 12:00:00"), ("user_id", "=07"), ("value", "=19.90")],
            &[("timestamp", "=2026-03-01 12:00:01"), ("user_id", "=7"), ("value", "=19.90")],
        ];
        for other in others {
            assert_ne!(id(&native, other), first, "{other:?}");
        }
        assert_ne!(id(&plan(Dialect::Conversions, "{}"), row), first, "of another dialect");
        assert_ne!(id(&plan(Dialect::Native, r#"{"name": "what"}"#), row), first, "by another map");
        // Rows that have ids are not counted, and ids of calls are Segment's.
        let segment = plan(Dialect::Segment, "{}");
        let call = event(&segment, &[("type", "\"track\"")], &mut repeats);
        assert!(call.starts_with("{\"messageId\":\"") && call.ends_with(",\"type\":\"track\"}"), "{call}");
        check(&segment, &[("messageId", "\"m\""), ("userId", "null")], r#"{"messageId":"m","userId":null}"#);
    }

    #[test]
    fn decimal_commas_are_read_in_amounts_only() {
        let (source, _folder) = source("events.ndjson", b"{}\n");
        let map = read_map(br#"{"event_id": {"value": "e"}}"#).expect("a map");
        let plan = Plan::new(Dialect::Native, &map, true, &source).expect("a plan");
        let check = |name: &str, value: &str, expected: &str| {
            let expected = format!(r#"{{"event_id":"e","timestamp":"t","{name}":{expected}}}"#);
            check(&plan, &[("timestamp", "=t"), (name, value)], &expected);
        };
        check("value", "=1.234,56", "\"1234.56\"");
        check("conversion_value", "\"19,90\"", "\"19.90\"");
        check("value", "19.90", "19.90");
        check("plan", "=1,5", "\"1,5\"");
        super::tests::check(&plan, &[("timestamp", "=t"), ("value", "=19.90")], "not_decimal");
    }

    #[test]
    fn a_table_without_a_time_is_told_at_once() {
        let check = |dialect: Dialect, map: &str, columns: &[&str], expected: bool| {
            let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
            let found = plan(dialect, map).check_columns(&columns);
            assert_eq!(found.is_ok(), expected, "{columns:?} {found:?}");
        };
        check(Dialect::Native, "{}", &["timestamp"], true);
        check(Dialect::Native, "{}", &["created_at", "user_id"], false);
        check(Dialect::Native, r#"{"timestamp": "When"}"#, &["when"], true);
        check(Dialect::Native, r#"{"timestamp": "a.b"}"#, &["a"], true);
        check(Dialect::Native, r#"{"timestamp": {"value": "2026-03-01T00:00:00Z"}}"#, &["a"], true);
        check(Dialect::Impressions, "{}", &["impression_at"], true);
        check(Dialect::Conversions, "{}", &["impression_at"], false);
    }

    #[test]
    fn tables_have_their_own_names() {
        check(
            &plan(Dialect::Impressions, "{}"),
            &[("id", "=i"), ("impression_at", "=t"), ("created_at", "=later")],
            r#"{"type":"impression","event_id":"i","timestamp":"t","created_at":"later"}"#,
        );
        check(
            &plan(Dialect::Conversions, r#"{"timestamp": "happened"}"#),
            &[("id", "=i"), ("created_at", "=later"), ("happened", "=t")],
            r#"{"timestamp":"t","type":"conversion","event_id":"i","created_at":"later"}"#,
        );
    }
}
