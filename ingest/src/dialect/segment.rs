//! Segment's dialect: `track`, `page`, `identify` and their siblings, one by one or in batches.
//!
//! Its clients do not read answers about single events, so parsing is as lenient as Segment's own: fields of an unexpected
//! type, other than ids and times, go to the metadata.

mod context;
pub(super) mod image;

use compact_str::CompactString;
use std::borrow::Cow;
use std::fmt;

use events::json::Key;
use events::{Code, Details, Draft, IdentityDetails, Micros, Rejection};
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::image::{Image, hit};
use super::item::{Item, Properties, mended};
use super::members::{Value, cut};
use super::metadata::Metadata;
use super::vocabulary;
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::{Question, Route};
use context::Context;

/// The dialect of Segment's and RudderStack's SDKs.
pub(super) struct Segment;

impl Dialect for Segment {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        Some(match path {
            "/v1/batch" | "/v1/b" | "/v1/import" | "/beacon/v1/batch" => Route::Batch,
            "/v1/m" => Route::Question(Question::SegmentCounts),
            _ => match path.strip_prefix("/v1/pixel/").or_else(|| path.strip_prefix("/pixel/v1/")) {
                Some(call) => Route::CallImage(Call::of_path(call)?),
                None => Route::Call(Call::of_path(path.strip_prefix("/v1/")?)?),
            },
        })
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        if let Some(key) = head.basic() {
            return KeyInHead::settled(Some(key));
        }
        let key = head.bearer().or_else(|| head.write_key()).or_else(|| image::key(head));
        KeyInHead { key: key.or_else(|| head.parameter("key")), is_settled: false }
    }

    fn key_in_body(&self, beginning: &str) -> Option<String> {
        write_key(beginning)
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        if let Route::CallImage(call) = request.asked.route {
            let hit = hit(&request.asked.query, text.as_str(), request.device());
            return Ok(Box::new(Image { hit, reader: image::Parameters { call, has_cookie: false } }));
        }
        Ok(Box::new(batch(text.as_str(), Accepted::of(request), events_max)?))
    }

    fn answer(&self, asked: &Asked, outcome: &Outcome) -> Reply {
        if matches!(asked.route, Route::CallImage(_)) {
            return Reply::new(Content::Image);
        }
        // Segment's clients read the status only; the rejections are for people.
        outcome.success("success")
    }

    fn error(&self, route: Route, code: &str, message: &str) -> Reply {
        if matches!(route, Route::CallImage(_)) { Reply::new(Content::Image) } else { Reply::error(code, message) }
    }
}

/// What a client calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Segment's own names.
pub(crate) enum Call {
    Track,
    Page,
    Screen,
    Identify,
    Group,
    Alias,
}

impl Call {
    /// All calls, in Segment's order.
    pub(crate) const ALL: [Call; 6] = [Call::Identify, Call::Track, Call::Page, Call::Screen, Call::Group, Call::Alias];

    /// Returns the name in paths and in `type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Call::Track => "track",
            Call::Page => "page",
            Call::Screen => "screen",
            Call::Identify => "identify",
            Call::Group => "group",
            Call::Alias => "alias",
        }
    }

    fn of(text: &str) -> Option<Call> {
        Call::ALL.into_iter().find(|call| call.as_str() == text)
    }

    /// Returns the call of the last part of a path: its name, or the first letter of that, as browsers write it.
    pub(super) fn of_path(part: &str) -> Option<Call> {
        Call::ALL.into_iter().find(|call| call.as_str() == part || &call.as_str()[..1] == part)
    }
}

/// What a body contains, each event still as it was written.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    pub(super) items: Vec<&'a RawValue>,
    pub(super) sent_at: Option<Micros>,
    /// The route's, or none if each item names its own.
    call: Option<Call>,
    /// The batch's own, which lie under each item's.
    context: Option<&'a RawValue>,
    integrations: Option<&'a RawValue>,
}

impl Batch<'_> {
    /// Stands for a body with one event, which is elsewhere.
    fn of_one(call: Call) -> Self {
        Batch { items: Vec::new(), sent_at: None, call: Some(call), context: None, integrations: None }
    }
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn sent_at(&self) -> Option<Micros> {
        self.sent_at
    }

    fn place(&self, index: usize) -> String {
        if self.call.is_some() { String::new() } else { format!("batch[{index}]") }
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(self.items[index].get())
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        parse(self, mended.unwrap_or(self.items[index]), conversions)
    }

    fn client_name(&self, index: usize, field: &str) -> Option<Cow<'static, str>> {
        client_name(self, self.items[index], field)
    }
}

/// What a body may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Accepted {
    /// One event, whose call the address names.
    One(Call),
    /// A batch.
    Batch,
    /// A batch, or one event that names its call.
    Either,
}

impl Accepted {
    /// Returns what a request may bring.
    pub(super) fn of(request: &Admitted) -> Self {
        match request.asked.route.call() {
            Some(call) => Accepted::One(call),
            None if request.asked.is_dry => Accepted::Either,
            None => Accepted::Batch,
        }
    }
}

/// Splits a body into its events.
/// # Errors
/// [`EnvelopeFault`] if the events cannot be found, or if there are more than `events_max`.
pub(super) fn batch(text: &str, accepted: Accepted, events_max: usize) -> Result<Batch<'_>, EnvelopeFault> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(EnvelopeFault::Unreadable("the body is empty; a JSON object is accepted".to_owned()));
    }
    let top = body::object(text, &["batch"], ["sentAt", "context", "integrations"], events_max)?;
    let [sent_at, context, integrations] = top.members;
    // Segment ignores a time of sending that it cannot read, and so do its clients.
    let sent_at = sent_at.and_then(|raw| Value::Json(raw).time("sentAt").ok());
    let alone = |call| Ok(Batch { items: vec![body::one(text)?], sent_at, call, context: None, integrations: None });
    let items = match (accepted, top.events) {
        (Accepted::One(call), _) => return alone(Some(call)),
        (Accepted::Either, None) => return alone(None),
        (Accepted::Batch, None) => return Err(body::no_list("batch", "{\"batch\":[..]}")),
        (Accepted::Batch | Accepted::Either, Some(items)) => items,
    };
    // The shared context is copied into every event: a large one would make a small request huge.
    let shared = context.into_iter().chain(integrations).map(|raw| raw.get().len()).sum::<usize>();
    if shared > SHARED_BYTES_MAX {
        let message =
            format!("context and integrations of the batch have {shared} bytes; at most {SHARED_BYTES_MAX} are accepted");
        return Err(EnvelopeFault::Unreadable(message));
    }
    Ok(Batch { items, sent_at, call: None, context, integrations })
}

/// Reads the key that the beginning of a body carries, if it does: the last one, as of members that stand twice everywhere.
pub(crate) fn write_key(beginning: &str) -> Option<String> {
    /// Notes the key as it is met: the text may end anywhere after it.
    struct Walk<'a>(&'a mut Option<String>);

    impl<'de> Visitor<'de> for Walk<'_> {
        type Value = ();

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
            while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
                if key == "writeKey" {
                    *self.0 =
                        Value::Json(map.next_value()?).text("writeKey").ok().filter(|key| !key.is_empty()).map(String::from);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(())
        }
    }

    let mut found = None;
    // A fault of the body is told when it is read as a whole.
    let _ = serde_json::Deserializer::from_str(beginning).deserialize_map(Walk(&mut found));
    found
}

/// Bytes of what a batch says for all its items; libraries send one to two thousand.
const SHARED_BYTES_MAX: usize = 16 * 1024;

/// Reads one event. `conversions` are the names of tracks that the project counts as conversions.
/// # Errors
/// What keeps it from being read at all; faults of single fields are in [`ParsedEvent::faults`].
pub(super) fn parse(batch: &Batch<'_>, raw: &RawValue, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
    let item = Item::new(raw)?;
    let call = match batch.call {
        Some(call) => call,
        None => call_of(&item)?,
    };
    let mut faults = Vec::new();
    let mut note = |found: Result<Option<CompactString>, Rejection>| {
        found.unwrap_or_else(|fault| {
            faults.push(fault);
            None
        })
    };

    let name = note(item.text(if call == Call::Track { "event" } else { "name" }));
    let mut repairs = Vec::new();
    let properties = item.object(call.properties(), &mut repairs)?;
    let mut draft = match call {
        Call::Track => vocabulary::interpret(name.as_deref(), &properties, conversions)?.0,
        Call::Page | Call::Screen => Draft { name: Some(call.as_str().into()), ..Draft::new(Details::Engagement) },
        Call::Identify | Call::Alias | Call::Group => {
            let details = IdentityDetails {
                previous_id: note(item.id("previousId")).filter(|_| call == Call::Alias),
                group_id: note(item.id("groupId")).filter(|_| call == Call::Group),
            };
            Draft { name: Some(call.as_str().into()), ..Draft::new(Details::Identity(details)) }
        }
    };
    draft.event_id = note(item.id("messageId"));
    draft.user_id = note(item.id("userId"));
    draft.anonymous_id = note(item.id("anonymousId"));
    draft.timestamp = item.claimed_time(&TIMES);
    draft.repairs = repairs;
    let sent_at = item.sent_at(&["sentAt"]);

    let mut context = Context::new(item.raw("context"), batch.context)?;
    context.take_known(&mut draft);
    let is_bot = context.take("", "bot").and_then(|value| value.boolean("bot").ok());
    draft.session_id = context.take_text_or_number("", "sessionId");

    match metadata(&item, call, batch, &properties, &context) {
        Ok(metadata) => draft.properties = metadata,
        Err(fault) => faults.push(fault),
    }
    Ok(ParsedEvent { sent_at, is_bot, faults, ..ParsedEvent::new(draft) })
}

/// Servers send `timestamp`. Relays that correct it keep the client's time as `originalTimestamp`.
const TIMES: [&str; 2] = ["originalTimestamp", "timestamp"];

impl Call {
    /// Returns the member with what the client says of the call.
    fn properties(self) -> &'static str {
        if matches!(self, Call::Identify | Call::Group) { "traits" } else { "properties" }
    }
}

fn call_of(item: &Item<'_>) -> Result<Call, Rejection> {
    let accepted = || Call::ALL.map(Call::as_str).join(", ");
    let Some(text) = item.text("type")? else {
        return Err(Rejection::new(Code::UnknownType, "type", format!("missing; one of {} is accepted", accepted())));
    };
    Call::of(&text).ok_or_else(|| {
        let message = format!("found {:?}; one of {} is accepted", cut(&text), accepted());
        Rejection::new(Code::UnknownType, "type", message)
    })
}

/// Returns what a client of Segment's calls a field of an event.
fn client_name(batch: &Batch<'_>, raw: &RawValue, field: &str) -> Option<Cow<'static, str>> {
    let fixed = match field {
        "user_id" => "userId",
        "anonymous_id" => "anonymousId",
        "event_id" => "messageId",
        "previous_id" => "previousId",
        "group_id" => "groupId",
        "session_id" => "context.sessionId",
        "page_url" => "context.page.url",
        "referrer" => "context.page.referrer",
        "user_agent" => "context.userAgent",
        "language" => "context.locale",
        "time_zone" => "context.timezone",
        "screen" => "context.screen",
        "viewport" => "context.screen",
        "connection" => "context.network",
        "utm_source" => "context.campaign.source",
        "utm_medium" => "context.campaign.medium",
        "utm_campaign" => "context.campaign.name",
        "country" => "context.location.country",
        "region" => "context.location.region",
        "city" => "context.location.city",
        "device_type" => "context.device.type",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(Cow::Borrowed(fixed));
    }
    let raw = mended(raw);
    let item = Item::new(&raw).ok()?;
    let call = batch.call.or_else(|| call_of(&item).ok())?;
    match field {
        "timestamp" => TIMES.into_iter().find(|key| item.get(key).is_some()).map(Cow::Borrowed),
        "name" if call == Call::Track => Some(Cow::Borrowed("event")),
        _ if call != Call::Track => None,
        _ => {
            let properties = item.object("properties", &mut Vec::new()).ok()?;
            let name = item.text("event").ok()?;
            let (_, origins) = vocabulary::interpret(name.as_deref(), &properties, &[]).ok()?;
            origins.client_name("properties", field).map(Cow::Owned)
        }
    }
}

/// Gathers what no column takes: the properties or traits at the top, then what is left of the context under `context`,
/// then members of the call without a meaning here.
fn metadata(
    item: &Item<'_>,
    call: Call,
    batch: &Batch<'_>,
    properties: &Properties<'_>,
    context: &Context<'_>,
) -> Result<Option<events::JsonObject>, Rejection> {
    let mut metadata = Metadata::default();
    if let Some(raw) = properties.raw {
        metadata.object(raw.get());
    }
    // A property keeps its name; another value of the same name gets the call as a prefix, such as `page_category`.
    let mut add = |key: &str, json: &str| match properties.get(key) {
        None if properties.members.iter().all(|member| member.key != key) => metadata.json(key, json),
        Some(raw) if raw.get() == json => {}
        _ => metadata.json(&format!("{}_{key}", call.as_str()), json),
    };
    if let Some(rest) = context.rest() {
        add("context", &rest);
    }
    let integrations = item.raw("integrations").or(batch.integrations).map(RawValue::get);
    if let Some(integrations) = integrations.filter(|text| !matches!(*text, "{}" | "null")) {
        add("integrations", integrations);
    }
    for member in &item.0 {
        let known = match member.key.as_ref() {
            "type" | "messageId" | "userId" | "anonymousId" | "timestamp" | "originalTimestamp" | "sentAt" | "context"
            | "integrations" | "writeKey" => true,
            "event" => call == Call::Track,
            "previousId" => call == Call::Alias,
            "groupId" => call == Call::Group,
            key => key == properties.key,
        };
        if let (false, Value::Json(raw)) = (known || member.value.is_absent(), &member.value) {
            add(&member.key, raw.get());
        }
    }
    metadata.finish(properties.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use events::Kind;

    fn parsed(call: &str, conversions: &[&str]) -> ParsedEvent {
        let body = format!(r#"{{"batch":[{call}],"context":{{"library":{{"name":"x"}}}}}}"#);
        let batch = batch(&body, Accepted::Batch, 10).expect("valid JSON");
        let conversions: Vec<_> = conversions.iter().map(|name| (*name).to_owned()).collect();
        parse(&batch, batch.items[0], &conversions).expect("can be read")
    }

    #[test]
    fn calls_become_kinds() {
        let check = |call: &str, kind: Kind, name: Option<&str>, value: Option<&str>| {
            let draft = parsed(call, &["Signed Up"]).draft;
            let found = (draft.details.kind(), draft.name.as_deref(), draft.value.as_deref());
            assert_eq!(found, (kind, name, value), "{call}");
        };
        let track = |event: &str, properties: &str| format!(r#"{{"type":"track","event":"{event}","properties":{properties}}}"#);
        check(&track("Song Played", r#"{"value":"loud"}"#), Kind::Engagement, Some("Song Played"), None);
        check(&track("Song Bought", r#"{"value":1,"revenue":2.50}"#), Kind::Conversion, Some("Song Bought"), Some("2.50"));
        check(&track("Song Bought", r#"{"revenue":"$2.50"}"#), Kind::Conversion, Some("Song Bought"), Some("$2.50"));
        check(&track("Song Bought", r#"{"value":"19,90"}"#), Kind::Conversion, Some("Song Bought"), Some("19,90"));
        check(
            &track("Song Bought", r#"{"revenue":"","value":183.60000000000002}"#),
            Kind::Conversion,
            Some("Song Bought"),
            Some("1.83600000000000e2"),
        );
        check(
            &track("Order Completed", r#"{"revenue":"2,000.00"}"#),
            Kind::Conversion,
            Some("Order Completed"),
            Some("2,000.00"),
        );
        check(&track("Order Completed", r#"{"revenue":"n/a","total":7}"#), Kind::Conversion, Some("Order Completed"), Some("7"));
        check(&track("Song Bought", r#"{"value":"1.5"}"#), Kind::Conversion, Some("Song Bought"), Some("1.5"));
        check(&track("Signed Up", "{}"), Kind::Conversion, Some("Signed Up"), None);
        check(&track("Order Completed", r#"{"total":7}"#), Kind::Conversion, Some("Order Completed"), Some("7"));
        check(&track("Song Played", r#"{"total":7}"#), Kind::Engagement, Some("Song Played"), None);
        check(&track("Experiment Viewed", r#"{"experiment_id":"e"}"#), Kind::Impression, None, None);
        check(r#"{"type":"page","name":"Home"}"#, Kind::Engagement, Some("page"), None);
        check(r#"{"type":"identify","traits":{"a":1}}"#, Kind::Identity, Some("identify"), None);
        check(r#"{"type":"alias","previousId":"p"}"#, Kind::Identity, Some("alias"), None);
    }

    #[test]
    fn exposures_name_experiment_and_variant() {
        let check = |properties: &str, experiment: &str, variant: Option<&str>| {
            let call = format!(r#"{{"type":"track","event":"$$experiment_viewed","properties":{properties}}}"#);
            let draft = parsed(&call, &[]).draft;
            assert_eq!((draft.experiment.as_deref(), draft.variant.as_deref()), (Some(experiment), variant), "{properties}");
        };
        check(r#"{"experimentId":"e","variationId":"b"}"#, "e", Some("b"));
        check(r#"{"experiment_id":"1","experiment_name":"e","variation_id":"2","variation_name":"b"}"#, "1", Some("2"));
        check(r#"{"experiment_name":"e","variation_name":"b"}"#, "e", Some("b"));
        check(r#"{"experiment_id":"e","variation_id":0,"variation_key":"control"}"#, "e", Some("control"));
        check(r#"{"experiment_id":17,"variation_id":0}"#, "17", Some("0"));
        check(r#"{"experiment_id":null,"experiment":"e"}"#, "e", None);
    }

    #[test]
    fn context_goes_to_columns_and_the_rest_to_metadata() {
        let call = r#"{"type":"page","name":"Home","category":"Docs","anonymousId":7,"messageId":"m",
            "properties":{"name":"Home","category":"x","path":"/"},"channel":"web","userId":null,
            "context":{"page":{"url":"u","referrer":"r","title":"t"},"userAgent":"ua","locale":"de","timezone":"tz",
            "screen":{"width":1,"height":2,"density":3},"campaign":{"name":"n","source":"s","medium":"m"},
            "location":{"city":"c"},"device":{"type":"ios"},"network":{"wifi":true,"carrier":"k"},"locale2":[]}}"#;
        let draft = parsed(call, &[]).draft;
        let context = &draft.context;
        let text = |field: &Option<CompactString>| field.clone().unwrap_or_default();
        let found =
            [&context.page_url, &context.user_agent, &context.screen, &context.utm_campaign, &context.city, &context.connection];
        assert_eq!(found.map(text), ["u", "ua", "1x2", "n", "c", "wifi"]);
        assert_eq!((draft.anonymous_id.as_deref(), draft.user_id), (Some("7"), None));
        assert_eq!(
            draft.properties.expect("has a rest").get(),
            concat!(
                r#"{"name":"Home","category":"x","path":"/","#,
                r#""context":{"page":{"title":"t"},"screen":{"density":3},"network":{"carrier":"k"},"locale2":[],"library":{"name":"x"}},"#,
                r#""page_category":"Docs","channel":"web"}"#
            )
        );
    }
}
