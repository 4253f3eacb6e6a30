//! A funnel as requests define it: what is left out gets its default, and the whole is sent back with the answer.

use chrono::{DateTime, NaiveDate};
use serde_json::{Map, Value, json};

use super::algorithm::{STEPS_MAX, Semantics};
use crate::http::error::ApiError;
use crate::source::snapshot::time_text;

/// A funnel, complete and checked, except that the SQL of its steps has not been planned yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// At least one step, at most 32.
    pub steps: Vec<Step>,
    /// From the first step of a chain to its last, both ends included; microseconds.
    pub window_us: i64,
    /// Events before this time are left out; microseconds since 1970.
    pub from: Option<i64>,
    /// Events at this time and after it are left out.
    pub to: Option<i64>,
    /// What may follow what.
    pub semantics: Semantics,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name in the answer.
    pub name: String,
    /// Which events are it.
    pub matches: Matches,
}

/// Which events are a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Matches {
    /// Those of these names.
    Events(Vec<String>),
    /// Those for which this condition over the table `events` is true.
    Where(String),
}

const WINDOW_DEFAULT_US: i64 = 14 * 86_400_000_000;
/// Names in one list of events, at most.
const EVENTS_MAX: usize = 200;

/// Options with one accepted value: naming the definition that is computed is fine, asking for another one is not.
const FIXED: [(&str, &str); 9] = [
    ("unit", "user_id"),
    ("order", "loose"),
    ("entry", "any"),
    ("window_anchor", "first_step"),
    ("window_inclusive", "true"),
    ("ties", "step_order"),
    ("count", "uniques"),
    ("strict_deduplication", "false"),
    ("output", "[\"steps\"]"),
];

impl Definition {
    /// Returns whether a step is an expression that the client wrote.
    pub fn has_conditions(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.matches, Matches::Where(_)))
    }

    /// Reads a request's body.
    /// # Errors
    /// [`ApiError`] that names the field, what was found and what is accepted.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let body: Value =
            serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
        let Value::Object(fields) = body else {
            return Err(ApiError::bad_request("the body is a JSON object with the field `steps`"));
        };
        let mut definition = Definition {
            steps: Vec::new(),
            window_us: WINDOW_DEFAULT_US,
            from: None,
            to: None,
            semantics: Semantics { reuse: false, strict_increase: false },
        };
        for (name, value) in &fields {
            definition.read(name, value)?;
        }
        if definition.steps.is_empty() {
            let message = "at least one step is needed, such as {\"name\": \"buy\", \"events\": [\"purchase\"]}";
            return Err(ApiError::bad_request(message).at("steps"));
        }
        if let (Some(from), Some(to)) = (definition.from, definition.to)
            && from >= to
        {
            return Err(ApiError::bad_request("`to` is not later than `from`").at("to"));
        }
        Ok(definition)
    }

    fn read(&mut self, name: &str, value: &Value) -> Result<(), ApiError> {
        match name {
            "steps" => {
                let list = value.as_array().ok_or_else(|| ApiError::bad_request("a list of steps is accepted").at("steps"))?;
                if list.len() > STEPS_MAX {
                    let message = format!("{} steps; at most {STEPS_MAX} are accepted", list.len());
                    return Err(ApiError::bad_request(message).at("steps"));
                }
                for (index, step) in list.iter().enumerate() {
                    self.steps.push(Step::parse(step, &format!("steps[{index}]"))?);
                }
            }
            "window" => self.window_us = window_us(value).map_err(|message| ApiError::bad_request(message).at("window"))?,
            "from" => self.from = time(value).map_err(|message| ApiError::bad_request(message).at("from"))?,
            "to" => self.to = time(value).map_err(|message| ApiError::bad_request(message).at("to"))?,
            "event_reuse" => {
                self.semantics.reuse = match value.as_str() {
                    Some("once") => false,
                    Some("allowed") => true,
                    _ => return Err(unsupported(name, value, "\"once\", \"allowed\"")),
                }
            }
            "strict_increase" => {
                let accepted = || unsupported(name, value, "true, false");
                self.semantics.strict_increase = value.as_bool().ok_or_else(accepted)?;
            }
            _ => match FIXED.iter().find(|(fixed, _)| *fixed == name) {
                Some((_, accepted)) => {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    if text != *accepted {
                        return Err(unsupported(name, value, accepted));
                    }
                }
                None => {
                    let mut known: Vec<&str> = ["steps", "window", "from", "to", "event_reuse", "strict_increase"].into();
                    known.extend(FIXED.iter().map(|(fixed, _)| *fixed));
                    let message = format!("the field is not known here; accepted: {}", known.join(", "));
                    return Err(ApiError::unsupported(message).at(name));
                }
            },
        }
        Ok(())
    }

    /// Writes the definition with every default filled in.
    pub fn expanded(&self) -> Value {
        let mut fields = Map::new();
        fields.insert("steps".into(), self.steps.iter().map(Step::expanded).collect());
        for (name, bound) in [("from", self.from), ("to", self.to)] {
            if let Some(bound) = bound {
                fields.insert(name.into(), time_text(bound).into());
            }
        }
        fields.insert("window".into(), window_text(self.window_us).into());
        fields.insert("window_us".into(), self.window_us.into());
        fields.insert("event_reuse".into(), if self.semantics.reuse { "allowed" } else { "once" }.into());
        fields.insert("strict_increase".into(), self.semantics.strict_increase.into());
        for (name, value) in FIXED {
            // The fixed values are JSON where they are not plain words.
            fields.insert(name.into(), serde_json::from_str(value).unwrap_or_else(|_| value.into()));
        }
        fields.insert("bots".into(), "excluded".into());
        Value::Object(fields)
    }
}

impl Step {
    fn parse(value: &Value, place: &str) -> Result<Self, ApiError> {
        let bad = |field: &str, message: &str| ApiError::bad_request(message).at(format!("{place}{field}"));
        let form = "a step is {\"name\": .., \"events\": [..]} or {\"name\": .., \"where\": \"..\"}";
        let fields = value.as_object().ok_or_else(|| bad("", form))?;
        if let Some(other) = fields.keys().find(|name| !["name", "events", "where"].contains(&name.as_str())) {
            let message = format!("the field is not known here; {form}");
            return Err(ApiError::unsupported(message).at(format!("{place}.{other}")));
        }
        let name = match fields.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => return Err(bad(".name", "a text that is not empty is accepted")),
        };
        let matches = match (fields.get("events"), fields.get("where")) {
            (Some(Value::Array(events)), None) if !events.is_empty() && events.len() <= EVENTS_MAX => {
                let text = |event: &Value| event.as_str().map(str::to_owned);
                let names: Option<Vec<String>> = events.iter().map(text).collect();
                Matches::Events(names.ok_or_else(|| bad(".events", "a list of event names is accepted"))?)
            }
            (Some(_), None) => {
                return Err(bad(".events", &format!("a list of 1 to {EVENTS_MAX} event names is accepted")));
            }
            (None, Some(Value::String(condition))) => Matches::Where(condition.clone()),
            (None, Some(_)) => return Err(bad(".where", "a condition in SQL over the table events is accepted")),
            _ => return Err(bad("", form)),
        };
        Ok(Step { name, matches })
    }

    fn expanded(&self) -> Value {
        match &self.matches {
            Matches::Events(events) => json!({"name": self.name, "events": events}),
            Matches::Where(condition) => json!({"name": self.name, "where": condition}),
        }
    }
}

fn unsupported(name: &str, value: &Value, accepted: &str) -> ApiError {
    ApiError::unsupported(format!("{value} is not supported; accepted: {accepted}")).at(name)
}

const UNITS: [(&str, i64); 7] = [
    ("w", 604_800_000_000),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Reads `1d`, `2h`, `30m`, `90s` or whole microseconds.
fn window_us(value: &Value) -> Result<i64, String> {
    let form =
        || format!("{value} is not a window; accepted: a text such as 1d, 2h, 30m or 90s, or a whole number of microseconds");
    if let Some(number) = value.as_i64() {
        return if number >= 0 { Ok(number) } else { Err(form()) };
    }
    let text = value.as_str().ok_or_else(form)?;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(form)?.1;
    count.parse::<i64>().ok().and_then(|count| count.checked_mul(unit)).ok_or_else(form)
}

fn window_text(us: i64) -> String {
    let (name, unit) = UNITS.iter().find(|(_, unit)| us != 0 && us % unit == 0).unwrap_or(&("s", 1_000_000));
    format!("{}{name}", us / unit)
}

/// Reads an absolute time, or a date for its first moment in UTC. Digits beyond microseconds are cut.
fn time(value: &Value) -> Result<Option<i64>, String> {
    let form = || format!("{value} is not a time; accepted: a time such as 2026-03-01T12:30:00Z or a date such as 2026-03-01");
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text,
        _ => return Err(form()),
    };
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Some(time.timestamp_micros()));
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| form())?;
    date.and_hms_opt(0, 0, 0).map(|time| Some(time.and_utc().timestamp_micros())).ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_gets_its_default() {
        let body =
            br#"{"steps": [{"name": "view", "events": ["view", "impression"]}, {"name": "buy", "where": "event = 'buy'"}]}"#;
        let definition = Definition::parse(body).expect("a funnel");
        let expected = json!({
            "steps": [{"name": "view", "events": ["view", "impression"]}, {"name": "buy", "where": "event = 'buy'"}],
            "window": "2w", "window_us": 1_209_600_000_000i64, "event_reuse": "once", "strict_increase": false,
            "unit": "user_id", "order": "loose", "entry": "any", "window_anchor": "first_step", "window_inclusive": true,
            "ties": "step_order", "count": "uniques", "strict_deduplication": false, "output": ["steps"], "bots": "excluded",
        });
        assert_eq!(definition.expanded(), expected);
    }

    #[test]
    fn options_are_read() {
        let body =
            br#"{"steps": [{"name": "a", "events": ["a"]}], "window": "90s", "from": "2026-03-01", "event_reuse": "allowed",
            "to": "2026-03-02T01:00:00.1234567+01:00", "strict_increase": true, "order": "loose", "window_inclusive": true,
            "output": ["steps"]}"#;
        let definition = Definition::parse(body).expect("a funnel");
        assert_eq!(definition.window_us, 90_000_000);
        assert_eq!(definition.from.map(time_text).as_deref(), Some("2026-03-01T00:00:00Z"));
        assert_eq!(definition.to.map(time_text).as_deref(), Some("2026-03-02T00:00:00.123456Z"));
        assert_eq!(definition.semantics, Semantics { reuse: true, strict_increase: true });
    }

    #[test]
    fn windows_are_read_and_written() {
        let check = |value: Value, expected: Option<(i64, &str)>| {
            let found = window_us(&value).ok();
            assert_eq!(found.map(|us| (us, window_text(us))), expected.map(|(us, text)| (us, text.to_owned())), "{value}");
        };
        check(json!("1d"), Some((86_400_000_000, "1d")));
        check(json!("36h"), Some((129_600_000_000, "36h")));
        check(json!("30m"), Some((1_800_000_000, "30m")));
        check(json!("0s"), Some((0, "0s")));
        check(json!(1_500), Some((1_500, "1500us")));
        check(json!(2_000), Some((2, "2ms")).map(|(_, text)| (2_000, text)));
        for wrong in
            [json!(-1), json!("1 d"), json!("d"), json!("1y"), json!(1.5), json!("-1d"), json!("9999999999999d"), json!(null)]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: &str, code: &str, field: Option<&str>| {
            let api_error = Definition::parse(body.as_bytes()).expect_err(body);
            assert_eq!(
                (api_error.code.to_string().as_str(), api_error.field.as_deref()),
                (code, field),
                "{body}: {}",
                api_error.message
            );
        };
        let with = |rest: &str| format!(r#"{{"steps": [{{"name": "a", "events": ["a"]}}], {rest}}}"#);
        check("{", "bad_request", None);
        check("[]", "bad_request", None);
        check("{}", "bad_request", Some("steps"));
        check(r#"{"steps": []}"#, "bad_request", Some("steps"));
        check(r#"{"steps": [{"name": "a"}]}"#, "bad_request", Some("steps[0]"));
        check(r#"{"steps": [{"name": "", "events": ["a"]}]}"#, "bad_request", Some("steps[0].name"));
        check(r#"{"steps": [{"name": "a", "events": []}]}"#, "bad_request", Some("steps[0].events"));
        check(r#"{"steps": [{"name": "a", "events": [1]}]}"#, "bad_request", Some("steps[0].events"));
        check(r#"{"steps": [{"name": "a", "where": 1}]}"#, "bad_request", Some("steps[0].where"));
        check(
            r#"{"steps": [{"name": "a", "events": ["a"], "optional": true}]}"#,
            "unsupported_option",
            Some("steps[0].optional"),
        );
        check(&with(r#""order": "strict_order""#), "unsupported_option", Some("order"));
        check(&with(r#""entry": "first""#), "unsupported_option", Some("entry"));
        check(&with(r#""window_inclusive": false"#), "unsupported_option", Some("window_inclusive"));
        check(&with(r#""event_reuse": "twice""#), "unsupported_option", Some("event_reuse"));
        check(&with(r#""breakdown": {"by": "country"}"#), "unsupported_option", Some("breakdown"));
        check(&with(r#""window": "soon""#), "bad_request", Some("window"));
        check(&with(r#""from": "yesterday""#), "bad_request", Some("from"));
        check(&with(r#""from": "2026-03-02", "to": "2026-03-02""#), "bad_request", Some("to"));
        let steps = vec![r#"{"name": "a", "events": ["a"]}"#; 33].join(",");
        check(&format!(r#"{{"steps": [{steps}]}}"#), "bad_request", Some("steps"));
    }
}
