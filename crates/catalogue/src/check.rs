//! Checks of single values. What passes is taken by the schema without rounding, and can occur in events.

use events::Money;
use serde_json::Value;

use crate::CatalogueError;

/// Days, 10 years: as far back as anything is accepted.
const WINDOW_DAYS_MAX: i32 = 3_650;

/// Checks a name as the collector checks those in events, so that each name here can occur there.
pub(crate) fn name(field: &str, name: &str) -> Result<(), CatalogueError> {
    let max = events::rules::limits::NAME_BYTES_MAX;
    if name.trim().is_empty() {
        return Err(CatalogueError::invalid(field, format!("found {name:?}, which is empty; a name is accepted")));
    }
    if name.len() > max {
        return Err(CatalogueError::invalid(field, format!("found {} bytes; at most {max} are accepted", name.len())));
    }
    no_nul(field, name)
}

/// Checks a text that must say something.
pub(crate) fn something(field: &str, text: &str) -> Result<(), CatalogueError> {
    if text.trim().is_empty() {
        return Err(CatalogueError::invalid(field, format!("found {text:?}, which is empty; leave it out")));
    }
    no_nul(field, text)
}

/// Checks a text for people.
pub(crate) fn description(field: &str, text: Option<&str>) -> Result<(), CatalogueError> {
    text.map_or(Ok(()), |text| no_nul(field, text))
}

/// Bytes of a JSON value that is kept for clients.
const JSON_BYTES_MAX: usize = 65_536;

/// Checks a JSON value that is kept as it is.
pub(crate) fn json(field: &str, text: Option<&str>) -> Result<(), CatalogueError> {
    let Some(text) = text else { return Ok(()) };
    if text.len() > JSON_BYTES_MAX {
        return Err(CatalogueError::invalid(field, format!("found {} bytes; at most {JSON_BYTES_MAX} are accepted", text.len())));
    }
    match serde_json::from_str::<Value>(text) {
        Err(error) => Err(CatalogueError::invalid(field, format!("found text that is no JSON: {error}"))),
        Ok(value) if holds_nul(&value) => no_nul(field, "\0"),
        Ok(_) => Ok(()),
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(holds_nul),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || holds_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn no_nul(field: &str, text: &str) -> Result<(), CatalogueError> {
    if text.contains('\0') {
        return Err(CatalogueError::invalid(field, "found the character U+0000, which Postgres cannot hold"));
    }
    Ok(())
}

/// Checks a number of days after the first exposure.
pub(crate) fn window(field: &str, days: Option<i32>) -> Result<(), CatalogueError> {
    match days {
        Some(days) if !(0..=WINDOW_DAYS_MAX).contains(&days) => {
            Err(CatalogueError::invalid(field, format!("found {days}; 0 to {WINDOW_DAYS_MAX} days are accepted")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn millionths(text: &str) -> Option<i128> {
    text.parse::<Money>().ok().map(Money::millionths)
}

/// Checks a decimal text, of which no digit may be lost in a column with `decimals` digits after the point.
pub(crate) fn decimal(
    field: &str,
    text: Option<&str>,
    accepted: &str,
    decimals: u32,
    in_range: impl Fn(i128) -> bool,
) -> Result<(), CatalogueError> {
    let Some(text) = text else { return Ok(()) };
    let fits = |value: i128| in_range(value) && value % 10i128.pow(6 - decimals) == 0;
    match millionths(text) {
        Some(value) if fits(value) => Ok(()),
        _ => Err(CatalogueError::invalid(field, format!("found {text:?}; accepted: {accepted}"))),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn values_are_json_that_postgres_can_hold() {
        let check = |text: &str, expected: &str| {
            let found = super::json("config", Some(text)).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(found, expected, "{text}");
        };
        check(r#"{"colour": "red", "sizes": [1, 2.5, null]}"#, "");
        check("7", "");
        check(r#""\\u0000""#, "");
        let nul = "config: found the character U+0000, which Postgres cannot hold";
        for text in [r#""\u0000""#, r#"[{"a": ["\u0000"]}]"#, r#"{"\u0000": 1}"#] {
            check(text, nul);
        }
        check("{colour: red}", "config: found text that is no JSON: key must be a string at line 1 column 2");
        check("1e400", "config: found text that is no JSON: number out of range at line 1 column 5");
        check(&format!("{}1", " ".repeat(65_536)), "config: found 65537 bytes; at most 65536 are accepted");
    }

    #[test]
    fn names_obey_the_collectors_rules() {
        let check = |name: &str, expected: Option<&str>| {
            let found = super::name("name", name).err().map(|error| error.to_string());
            assert_eq!(found.as_deref(), expected, "{name:?}");
        };
        check("checkout", None);
        check("Prüfung 2 / neu", None);
        check(&"x".repeat(512), None);
        check(&"x".repeat(513), Some("name: found 513 bytes; at most 512 are accepted"));
        check(" ", Some(r#"name: found " ", which is empty; a name is accepted"#));
        check("a\0b", Some("name: found the character U+0000, which Postgres cannot hold"));
    }
}
