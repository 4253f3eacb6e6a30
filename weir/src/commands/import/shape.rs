//! From a row to an event as the collector takes it.

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::source::{Cell, Fault, Format, Row, Source, name_of};

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
    /// Of the ids of rows that have none.
    namespace: Uuid,
}

impl Plan {
    /// Makes the plan of a file.
    /// # Errors
    /// If the file cannot be of this dialect.
    pub(super) fn new(dialect: Dialect, map: &[Mapped], source: &Source) -> anyhow::Result<Self> {
        if dialect == Dialect::Segment && (source.format != Format::Lines || !map.is_empty()) {
            let (name, format) = (source.path.display(), name_of(source.format));
            bail!("{name}: {format}; Segment's calls are accepted as NDJSON, without --map");
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
        Ok(Plan { dialect, fields, namespace: namespace(&source.sha256) })
    }

    /// Returns a digest of how rows become events, to tell whether an earlier import did the same.
    pub(super) fn digest(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {:?}", self.dialect, self.fields));
        hex::encode(hash.finalize())
    }

    /// Makes one event, on one line.
    /// # Errors
    /// Why the row cannot become one. What the collector would refuse anyway is left to it.
    pub(super) fn event(&self, row: Row) -> Result<Vec<u8>, Fault> {
        let cells = row.cells?;
        let id = || Uuid::new_v5(&self.namespace, row.number.to_string().as_bytes()).to_string();
        let mut out = Object(Vec::with_capacity(512));
        if self.dialect == Dialect::Segment {
            if !cells.iter().any(|(name, cell)| name == "messageId" && !is_null(cell)) {
                out.member("messageId", &quoted(&id()));
            }
            for (name, cell) in cells.iter().filter(|(name, cell)| !(name == "messageId" && is_null(cell))) {
                out.member(name, &json_of(cell));
            }
            return Ok(out.finish());
        }
        let mut has_id = false;
        let mut has_time = false;
        let mut used: Vec<&str> = Vec::new();
        let mut add = |field: &str, value: &str| {
            if value != "null" {
                has_id |= field == "event_id";
                has_time |= field == "timestamp";
                out.member(field, value);
            }
        };
        for (field, from) in &self.fields {
            match from {
                From::Constant(json) => add(field, json),
                From::Columns(columns) => {
                    let found = columns.iter().find_map(|column| find(&cells, column));
                    if let Some((column, cell)) = found {
                        used.extend(column);
                        add(field, &typed(field, &cell));
                    }
                }
            }
        }
        for (name, cell) in &cells {
            let is_mapped = self.fields.iter().any(|(field, _)| field == name);
            if !is_mapped && !used.contains(&name.as_str()) {
                add(name, &typed(name, cell));
            }
        }
        if !has_time {
            // Elsewhere it would be the time of receipt, which is never when history happened.
            let message =
                "timestamp: missing; an imported row says when it happened, in this field or in a column that --map names";
            return Err(Fault::new("missing_timestamp", message));
        }
        if !has_id {
            out.member("event_id", &quoted(&id()));
        }
        Ok(out.finish())
    }
}

/// Returns the namespace of the ids of a file's rows: UUIDv5(OID namespace, `weir:import:{SHA-256 of the file, hexadecimal}`).
fn namespace(sha256: &[u8]) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:import:{}", hex::encode(sha256)).as_bytes())
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
    if let Some((name, cell)) = cells.iter().find(|(name, _)| name == column) {
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

    fn row(cells: &[(&str, &str)]) -> Row {
        let cell = |text: &str| match text.strip_prefix('=') {
            Some(text) => Cell::Text(text.to_owned()),
            None => Cell::Json(text.to_owned()),
        };
        Row { number: 7, cells: Ok(cells.iter().map(|(name, value)| ((*name).to_owned(), cell(value))).collect()) }
    }

    fn plan(dialect: Dialect, map: &str) -> Plan {
        let (source, _folder) = source("events.ndjson", b"{}\n");
        Plan::new(dialect, &read_map(map.as_bytes()).expect("a map"), &source).expect("a plan")
    }

    /// Cells are JSON, or texts of a CSV file after `=`.
    fn check(plan: &Plan, cells: &[(&str, &str)], expected: &str) {
        let found = match plan.event(row(cells)) {
            Ok(event) => String::from_utf8(event).expect("text"),
            Err(fault) => fault.code,
        };
        assert_eq!(found, expected, "{cells:?}");
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
    fn ids_follow_from_the_file_and_the_row() {
        // SHA-256 of "{}\n", and the two UUIDv5 by another implementation (Python's uuid).
        let id = "4dcd9bbc-5a53-56b3-992e-5e7ab7d4616c";
        check(
            &plan(Dialect::Native, "{}"),
            &[("timestamp", "=t"), ("event_id", "null")],
            &format!(r#"{{"timestamp":"t","event_id":"{id}"}}"#),
        );
        check(&plan(Dialect::Segment, "{}"), &[("type", "\"track\"")], &format!(r#"{{"messageId":"{id}","type":"track"}}"#));
        check(&plan(Dialect::Segment, "{}"), &[("messageId", "\"m\""), ("userId", "null")], r#"{"messageId":"m","userId":null}"#);
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
