//! Which dialect a body is in, by its shape: for `/validate`, which takes all of them at one address.

use events::Kind;
use events::identity::Dialect as Name;
use serde_json::value::RawValue;

use super::Call;
use super::item::Item;
use super::query::parameter;

/// Returns the dialect that the query names, else the one whose shape the body has; none if it has none's.
pub(crate) fn detect(query: &str, body: &str) -> Option<Name> {
    if let Some(name) = parameter(query, "dialect") {
        return Name::ALL.into_iter().find(|dialect| dialect.as_str() == name);
    }
    let body = body.trim_ascii();
    if body.starts_with('[') {
        return of_event(&first_of(body)?);
    }
    // Of several lines the first shows what all of them are.
    let top = object(body).or_else(|| object(body.lines().next()?))?;
    let list = |key| top.raw(key).map(RawValue::get);
    if let Some(batch) = list("batch") {
        return of_event(&first_of(batch)?);
    }
    if let Some(events) = list("events").or_else(|| list("exposures")) {
        let first = first_of(events);
        let has = |key| first.as_ref().is_some_and(|first| first.get(key).is_some());
        return Some(if has("eventName") || has("experimentName") { Name::Statsig } else { Name::Native });
    }
    if list("schema").is_some() && list("data").is_some() {
        return Some(Name::Snowplow);
    }
    of_event(&top)
}

/// Returns the dialect of one event.
fn of_event(event: &Item<'_>) -> Option<Name> {
    let kind = event.any_text("type").unwrap_or_default();
    if Kind::ALL.iter().any(|known| known.as_str() == kind) {
        return Some(Name::Native);
    }
    if Call::ALL.iter().any(|call| call.as_str() == kind) {
        return Some(Name::Segment);
    }
    let has = |key| event.get(key).is_some();
    if has("event_name") {
        return Some(Name::Growthbook);
    }
    (has("event") || has("distinct_id") || has("$distinct_id")).then_some(Name::Posthog)
}

fn object(text: &str) -> Option<Item<'_>> {
    Item::new(serde_json::from_str(text).ok()?).ok()
}

/// Returns the first element of an array, if it is an object.
fn first_of(array: &str) -> Option<Item<'_>> {
    let elements = array.trim_ascii().strip_prefix('[')?;
    let first: &RawValue = serde_json::Deserializer::from_str(elements).into_iter().next()?.ok()?;
    Item::new(first).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_told_apart() {
        let check = |query: &str, body: &str, expected: Option<Name>| assert_eq!(detect(query, body), expected, "{body}");
        check("", r#"{"events":[{"type":"impression","user_id":"u"}]}"#, Some(Name::Native));
        check("", "{\"type\":\"impression\"}\n{\"type\":\"identity\"}\n", Some(Name::Native));
        check("", r#"[{"type":"conversion"}]"#, Some(Name::Native));
        check("", r#"{"events":[]}"#, Some(Name::Native));
        check("", r#"{"batch":[{"type":"track","event":"e"}]}"#, Some(Name::Segment));
        check("", r#"{"type":"identify","userId":"u"}"#, Some(Name::Segment));
        check("", r#"{"api_key":"k","batch":[{"event":"e","distinct_id":"u"}]}"#, Some(Name::Posthog));
        check("", r#"[{"event":"e","properties":{}}]"#, Some(Name::Posthog));
        check("", r#"{"$distinct_id":"u","$set":{}}"#, Some(Name::Posthog));
        check("", r#"{"schema":"s","data":[{"e":"pv"}]}"#, Some(Name::Snowplow));
        check("", r#"[{"event_name":"e","properties_json":{}}]"#, Some(Name::Growthbook));
        check("", r#"{"event_name":"e"}"#, Some(Name::Growthbook));
        check("", r#"[{"type":"conversion","event_name":"e"}]"#, Some(Name::Native));
        check("", r#"[{"event":"e","properties":{}},NaN]"#, Some(Name::Posthog));
        check("", r#"{"events":[{"eventName":"e","user":{}}]}"#, Some(Name::Statsig));
        check("", r#"{"exposures":[{"experimentName":"e"}]}"#, Some(Name::Statsig));
        check("dialect=jitsu", r#"{"batch":[{"type":"track"}]}"#, Some(Name::Jitsu));
        check("dialect=unknown", "{}", None);
        check("", "{}", None);
        check("", "e=pv", None);
        check("", "", None);
    }
}
