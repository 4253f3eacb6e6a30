//! GrowthBook's own ingest: `POST /track?client_key=..` with an array of events that have neither ids nor times.

use std::borrow::Cow;

use events::{Code, Rejection, Repair, repair::Reason};
use serde_json::value::RawValue;

use super::item::{Item, Properties, nested};
use super::members::Value;
use super::metadata::Metadata;
use super::{Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body, query, vocabulary};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// The dialect of GrowthBook's tracking plugins.
pub(super) struct Growthbook;

impl Dialect for Growthbook {
    /// PostHog has the path as well; the key in the query tells them apart.
    fn route(&self, path: &str, query: &str) -> Option<Route> {
        (path == "/track" && query::parameter(query, "client_key").is_some()).then_some(Route::Growthbook)
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        KeyInHead::settled(head.parameter("client_key"))
    }

    fn parse<'a>(
        &self,
        _request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        let text = text.as_str().trim_ascii();
        let items = if text.starts_with('{') { vec![body::one(text)?] } else { body::array(text, events_max)? };
        Ok(Box::new(Batch { items }))
    }

    fn answer(&self, _asked: &Asked, outcome: &Outcome) -> Reply {
        outcome.success("success")
    }
}

struct Batch<'a> {
    items: Vec<&'a RawValue>,
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn place(&self, index: usize) -> String {
        format!("[{index}]")
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(self.items[index].get())
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        parse(mended.unwrap_or(self.items[index]), conversions)
    }

    fn client_name(&self, _index: usize, field: &str) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match field {
            "anonymous_id" => "device_id",
            "name" => "event_name",
            "page_url" => "url",
            _ => return None,
        }))
    }
}

/// Members with a column.
const TAKEN: [&str; 10] = [
    "event_name",
    "properties_json",
    "user_id",
    "device_id",
    "session_id",
    "url",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "client_key",
];

fn parse(raw: &RawValue, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
    let item = Item::new(raw)?;
    let mut repairs = Vec::new();
    let object = object(&item, "properties_json", &mut repairs);
    let properties = match &object {
        Some(raw) => Properties::new("properties_json", raw)?,
        None => Properties::none("properties_json"),
    };
    let name = item.text("event_name")?.filter(|name| !name.is_empty());
    if name.is_none() {
        return Err(Rejection::new(Code::MissingField, "event_name", "an event needs a name"));
    }
    let (draft, _) = vocabulary::interpret(name.as_deref(), &properties, conversions)?;
    let mut parsed = ParsedEvent::new(draft);
    let draft = &mut parsed.draft;
    draft.repairs = repairs;
    for (field, key) in [(&mut draft.user_id, "user_id"), (&mut draft.anonymous_id, "device_id")] {
        match item.id(key) {
            Ok(id) => *field = id,
            Err(fault) => parsed.faults.push(fault),
        }
    }
    draft.session_id = item.any_text("session_id");
    draft.context.page_url = item.any_text("url");
    draft.context.utm_source = item.any_text("utm_source");
    draft.context.utm_medium = item.any_text("utm_medium");
    draft.context.utm_campaign = item.any_text("utm_campaign");
    let mut metadata = Metadata::default();
    if let Some(raw) = properties.raw {
        metadata.object(raw.get());
    }
    for member in &item.0 {
        let key = member.key.as_ref();
        if let (false, Value::Json(raw)) = (TAKEN.contains(&key) || member.value.is_absent(), &member.value) {
            let key = if properties.members.iter().any(|property| property.key == key) {
                format!("event_{key}")
            } else {
                key.to_owned()
            };
            metadata.json(&key, raw.get());
        }
    }
    match metadata.finish("properties_json") {
        Ok(metadata) => draft.properties = metadata,
        Err(fault) => parsed.faults.push(fault),
    }
    Ok(parsed)
}

/// Reads an object, which may be written as text. One that cannot be read is noted, and stays out of the event.
fn object(item: &Item<'_>, key: &'static str, repairs: &mut Vec<Repair>) -> Option<Box<RawValue>> {
    let value = item.get(key)?;
    let text = match value {
        Value::Json(raw) if raw.get().starts_with('{') => raw.get().to_owned(),
        _ => value.text(key).ok().filter(|text| !text.is_empty())?.into(),
    };
    let raw = nested(text, key, repairs)?;
    if raw.get().starts_with('{') {
        return Some(raw);
    }
    repairs.push(Repair::taken(Reason::Detail, key, raw.get()));
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::Kind;

    #[test]
    fn both_clients_exposures_are_impressions() {
        let check = |event: &str, expected: (Kind, Option<&str>, Option<&str>)| {
            let raw = serde_json::from_str(event).expect("a constant");
            let draft = parse(raw, &[]).expect("can be read").draft;
            assert_eq!((draft.details.kind(), draft.experiment.as_deref(), draft.variant.as_deref()), expected, "{event}");
        };
        check(
            r#"{"event_name":"Experiment Viewed","properties_json":{"experimentId":"e","variationId":"control"},"user_id":"u"}"#,
            (Kind::Impression, Some("e"), Some("control")),
        );
        check(
            r#"{"event_name":"$$experiment_viewed","properties_json":"{\"experiment_id\":\"e\",\"variation_id\":0,\"variation_key\":\"b\",\"x\":NaN}"}"#,
            (Kind::Impression, Some("e"), Some("b")),
        );
        check(r#"{"event_name":"Feature Evaluated","properties_json":"no"}"#, (Kind::Engagement, None, None));
        check(r#"{"event_name":"buy","properties_json":{"revenue":5}}"#, (Kind::Conversion, None, None));
    }
}
