//! Names of columns: what hand and program write otherwise than the collector, in case and surrounding spaces, is forgiven.

use anyhow::bail;

use super::source::Cell;

/// The column, or the member, that holds why a row was refused. It is ours and never a row's.
pub(super) const REASON: &str = "weir_rejected";

/// The names that mean something: the collector's fields, and those of the tables' dialects.
const FIELDS: [&str; 63] = [
    "type",
    "event_id",
    "user_id",
    "anonymous_id",
    "timestamp",
    "sent_at",
    "is_bot",
    "session_id",
    "session_identifier",
    "properties",
    "metadata",
    "name",
    "conversion_type",
    "event_type",
    "experiment",
    "experiment_id",
    "variant",
    "variant_id",
    "campaign",
    "campaign_id",
    "component",
    "component_id",
    "value",
    "conversion_value",
    "currency",
    "page_url",
    "referrer",
    "user_agent",
    "language",
    "language_code",
    "time_zone",
    "screen",
    "screen_resolution",
    "viewport",
    "viewport_size",
    "connection",
    "connection_type",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "country",
    "country_code",
    "region",
    "city",
    "device_type",
    "time_on_page",
    "scroll_depth_percent",
    "page_load_time",
    "bounce",
    "is_first_exposure",
    "user_was_eligible",
    "user_eligibility_status",
    "user_context",
    "time_to_convert",
    "is_first_conversion_for_experiment",
    "conversion_attribution_source",
    "conversion_window_days",
    "details",
    "conversion_context",
    "previous_id",
    "group_id",
    "id",
    "impression_at",
];

/// Those with names that other fields have in other tables too.
const MORE: [&str; 7] =
    ["created_at", "original_exposure_date", "conversion_eligibility_verified", "source", "medium", "referrer_source", REASON];

/// Returns the field that a name means; none for a name of a client's own.
fn field(name: &str) -> Option<&'static str> {
    let name = name.trim();
    FIELDS.iter().chain(&MORE).copied().find(|field| field.eq_ignore_ascii_case(name))
}

/// Returns whether two names are the same, but for case and surrounding spaces.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    one.trim().eq_ignore_ascii_case(other.trim())
}

/// Returns the names of a table's columns as they are meant: fields as the collector writes them, others without surrounding spaces.
/// # Errors
/// If two columns have the same name then; the error names both.
pub(super) fn of_columns(written: &[String]) -> anyhow::Result<Vec<String>> {
    let mut seen = std::collections::HashMap::new();
    // Spreadsheets leave columns without a name at the end.
    for name in written.iter().filter(|name| !name.trim().is_empty()) {
        let Some(other) = seen.insert(name.trim().to_lowercase(), name) else { continue };
        if other == name {
            bail!("the header names {name:?} twice; rename one of the columns");
        }
        bail!(
            "the header names {other:?} and {name:?}, which are one name, since case and spaces around it do not count; rename one of the columns"
        );
    }
    Ok(written.iter().map(|name| field(name).unwrap_or(name.trim()).to_owned()).collect())
}

/// Gives the members of an object the names of the fields that they mean. One that has the exact name goes before others.
pub(super) fn forgive(cells: &mut [(String, Cell)]) {
    for place in 0..cells.len() {
        let Some((name, _)) = cells.get(place) else { continue };
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if name.bytes().all(is_plain) {
            continue;
        }
        if let Some(field) = field(name)
            && !cells.iter().any(|(other, _)| other == field)
            && let Some((name, _)) = cells.get_mut(place)
        {
            field.clone_into(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_spaces_are_forgiven() {
        let columns = |names: &[&str]| of_columns(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let found = columns(&["Timestamp", " user_id ", "EVENT_ID", " Plan ", "Weir_Rejected"]).expect("names");
        assert_eq!(found, ["timestamp", "user_id", "event_id", "Plan", "weir_rejected"]);
        assert_eq!(columns(&["a", "", " "]).expect("names"), ["a", "", ""]);
        let error = columns(&["Timestamp", "x", " timestamp"]).expect_err("one name").to_string();
        assert!(error.contains("\"Timestamp\" and \" timestamp\""), "{error}");
        let error = columns(&["plan", "Plan"]).expect_err("one name").to_string();
        assert!(error.contains("\"plan\" and \"Plan\""), "{error}");
    }

    #[test]
    fn members_of_objects_are_forgiven_unless_the_exact_name_is_there() {
        let check = |names: &[&str], expected: &[&str]| {
            let mut cells: Vec<_> = names.iter().map(|name| ((*name).to_owned(), Cell::Json("1".to_owned()))).collect();
            forgive(&mut cells);
            assert_eq!(cells.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), expected);
        };
        check(&["Timestamp", " USER_ID", "Plan"], &["timestamp", "user_id", "Plan"]);
        check(&["Type", "type"], &["Type", "type"]);
        check(&["Type", "TYPE"], &["type", "TYPE"]);
    }
}
