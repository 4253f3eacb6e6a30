//! Checks of single values. What passes is taken by the schema without rounding, and can occur in events.

use events::Money;

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

/// Checks a text for people.
pub(crate) fn description(text: Option<&str>) -> Result<(), CatalogueError> {
    text.map_or(Ok(()), |text| no_nul("description", text))
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
