//! PostHog's dialect: captures one by one and in batches, as its older clients send them (v0), and with an outcome for each
//! event (v1). Questions for feature flags are answered with none, so that clients go on to capture.

mod lz;
mod unwrap;
mod v1;

use compact_str::{CompactString, format_compact};
use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use events::json::Key;
use events::{ClaimedTime, Details, Draft, IdentityDetails, Micros, Rejection};
use hyper::header::RETRY_AFTER;
use serde::de::{Deserialize as _, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::item::{Item, Properties, mended};
use super::members::{Value, is_number};
use super::metadata::Metadata;
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, body, query, vocabulary};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::{Question, Route};

/// The dialect of PostHog's SDKs.
pub(super) struct Posthog;

impl Dialect for Posthog {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        Some(match path {
            "/e" | "/i/v0/e" | "/capture" | "/track" | "/engage" | "/batch" => Route::PosthogCapture,
            "/i/v1/analytics/events" => Route::PosthogEvents,
            "/s" | "/i/v1/ai/events" | "/i/v0/ai" => Route::Question(Question::PosthogRecording),
            "/flags" | "/decide" | "/array" => Route::Question(Question::PosthogFlags),
            "/api/feature_flag/local_evaluation" | "/flags/definitions" => Route::Question(Question::PosthogDefinitions),
            "/api/surveys" | "/api/early_access_features" | "/api/web_experiments" | "/api/product_tours" => {
                Route::Question(Question::PosthogLists)
            }
            _ if path.starts_with("/array/") && path.ends_with("/config") => Route::Question(Question::PosthogFlags),
            _ if path.starts_with("/array/") && path.ends_with("/config.js") => Route::Question(Question::PosthogScript),
            _ => return None,
        })
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        let in_query = || head.parameter("api_key").or_else(|| head.parameter("token"));
        KeyInHead::or_body(head.bearer().or_else(in_query))
    }

    fn key_in_body(&self, beginning: &str) -> Option<String> {
        api_key(beginning)
    }

    /// The Python client writes the key behind its events.
    fn has_key_anywhere(&self) -> bool {
        true
    }

    fn check(&self, route: Route, head: &Head<'_>) -> Result<(), String> {
        if route == Route::PosthogEvents { v1::check(head) } else { Ok(()) }
    }

    fn sent_at(&self, head: &Head<'_>) -> Option<Micros> {
        let at = head.header("posthog-request-timestamp").and_then(|text| Micros::parse(text).ok());
        let millis = || head.parameter("_")?.parse::<i64>().ok()?.checked_mul(1_000).map(Micros);
        at.or_else(millis).filter(|at| (Micros::MIN..=Micros::MAX).contains(at))
    }

    fn unwrap(&self, query: &str, body: &Bytes, bytes_max: usize) -> Result<Option<Vec<u8>>, EnvelopeFault> {
        unwrap::unwrap(query, body, bytes_max)
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        let is_v1 = request.asked.route == Route::PosthogEvents;
        Ok(Box::new(batch(text.as_str(), is_v1, events_max)?))
    }

    fn answer(&self, asked: &Asked, outcome: &Outcome) -> Reply {
        if asked.route == Route::PosthogEvents {
            return v1::answer(outcome);
        }
        let mut reply = Reply::new(Content::JsonText("{\"status\":\"Ok\"}"));
        reply.is_empty = query::parameter(&asked.query, "beacon").as_deref() == Some("1");
        reply
    }

    fn retry(&self, asked: &Asked, outcome: &Outcome) -> Option<Reply> {
        (asked.route == Route::PosthogEvents).then(|| v1::answer(outcome).with(RETRY_AFTER, "1"))
    }

    fn error(&self, route: Route, code: &str, message: &str) -> Reply {
        match route {
            Route::PosthogEvents => Reply::json(&serde_json::json!({
                "error": code, "error_description": message, "error_uri": null,
            })),
            _ => Reply::new(Content::Text(Cow::Owned(message.to_owned()))),
        }
    }
}

/// The events of a body, each still as it was written.
struct Batch<'a> {
    items: Vec<&'a RawValue>,
    sent_at: Option<Micros>,
    is_alone: bool,
    is_v1: bool,
}

impl Envelope for Batch<'_> {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn sent_at(&self) -> Option<Micros> {
        self.sent_at
    }

    fn place(&self, index: usize) -> String {
        if self.is_alone { String::new() } else { format!("batch[{index}]") }
    }

    fn raw(&self, index: usize) -> Option<&str> {
        Some(self.items[index].get())
    }

    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        parse(mended.unwrap_or(self.items[index]), self.is_v1, conversions)
    }

    fn client_name(&self, index: usize, field: &str) -> Option<Cow<'static, str>> {
        client_name(self.items[index], field)
    }

    fn id(&self, index: usize) -> Option<String> {
        if !self.is_v1 {
            return None;
        }
        Item::new(self.items[index]).ok()?.any_text("uuid").map(String::from)
    }
}

/// Splits a body into its events: an object with `batch`, an array, or one event.
fn batch(text: &str, is_v1: bool, events_max: usize) -> Result<Batch<'_>, EnvelopeFault> {
    let accepted = "{\"api_key\":\"..\",\"batch\":[..]}, an array or one event";
    let text = text.trim_ascii();
    let (items, sent_at, is_alone) = match text.as_bytes().first() {
        Some(b'[') => (body::array(text, events_max)?, None, false),
        Some(b'{') => {
            let top = body::object(text, &["batch"], ["sent_at", "sentAt", "created_at"], events_max)?;
            let sent_at = top.members.into_iter().flatten().find_map(|raw| Value::Json(raw).time("sent_at").ok());
            match top.events {
                Some(items) => (items, sent_at, false),
                None if is_v1 => return Err(body::no_list("batch", accepted)),
                None => (vec![body::one(text)?], sent_at, true),
            }
        }
        Some(_) => return Err(EnvelopeFault::Unreadable(format!("the body is not JSON; {accepted} is accepted"))),
        None => return Err(EnvelopeFault::Unreadable(format!("the body is empty; {accepted} is accepted"))),
    };
    Ok(Batch { items, sent_at, is_alone, is_v1 })
}

/// Finds the key in a body: at the top as `api_key` or `token`, or in an event's properties. The end of the text may be missing.
fn api_key(beginning: &str) -> Option<String> {
    /// Notes the key as it is met.
    struct Walk<'a> {
        found: &'a mut Option<String>,
        depth: usize,
    }

    impl<'de> DeserializeSeed<'de> for Walk<'_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            if self.depth > 4 { IgnoredAny::deserialize(deserializer).map(drop) } else { deserializer.deserialize_any(self) }
        }
    }

    impl<'de> Visitor<'de> for Walk<'_> {
        type Value = ();

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("JSON")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
            while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
                match key.as_ref() {
                    "api_key" | "token" | "$token" => {
                        let key = Value::Json(map.next_value()?).text("").ok().filter(|key| !key.is_empty());
                        if self.found.is_none() {
                            *self.found = key.map(String::from);
                        }
                    }
                    "batch" | "properties" if self.found.is_none() => {
                        map.next_value_seed(Walk { found: self.found, depth: self.depth + 1 })?;
                    }
                    _ => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(())
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<(), S::Error> {
            while seq.next_element_seed(Walk { found: self.found, depth: self.depth + 1 })?.is_some() {
                if self.found.is_some() {
                    // The rest is of no interest, and need not be read: this fails the walk, whose end is not asked for.
                    return Err(S::Error::custom("found"));
                }
            }
            Ok(())
        }
    }

    let mut found = None;
    // A fault of the body is told when it is read as a whole.
    let _ = Walk { found: &mut found, depth: 0 }.deserialize(&mut serde_json::Deserializer::from_str(beginning));
    found
}

/// Where a distinct id stands.
const DISTINCT_IDS: [&str; 2] = ["distinct_id", "$distinct_id"];

/// Reads one event.
/// # Errors
/// What keeps it from being read at all.
fn parse(raw: &RawValue, is_v1: bool, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
    let item = Item::new(raw)?;
    let mut repairs = Vec::new();
    let properties = item.object("properties", &mut repairs)?;
    let mut rest = Rest::new(properties);
    if is_v1 {
        v1::check_options(&item)?;
    }
    let mut faults = Vec::new();
    let mut note = |found: Result<Option<CompactString>, Rejection>| {
        found.unwrap_or_else(|fault| {
            faults.push(fault);
            None
        })
    };
    let name = note(item.text("event"));
    // What comes without a name are a person's own properties.
    let event = name.as_deref().or(item.get("$set").map(|_| "$set"));
    let mut draft = match event {
        Some("$identify" | "$set") => identity("identify", rest.take(&["$anon_distinct_id"]), None),
        Some("$create_alias" | "$merge_dangerously") => identity("alias", rest.take(&["alias"]), None),
        Some("$groupidentify") => identity("group", None, rest.take(&["$group_key"])),
        event => vocabulary::interpret(event, &rest.properties, conversions)?.0,
    };
    draft.repairs = repairs;
    let own_id = match DISTINCT_IDS.iter().find(|key| item.get(key).is_some()) {
        Some(key) => note(item.id(key)),
        None => rest.take(&DISTINCT_IDS),
    };
    let device = rest.take(&["$device_id"]);
    // A browser that nobody has logged in on calls itself by its device.
    draft.user_id = own_id.filter(|id| device.as_ref() != Some(id));
    draft.anonymous_id = device;
    draft.event_id = note(item.id("uuid")).or_else(|| rest.take(&["$insert_id"]));
    let in_properties = ["timestamp", "$timestamp", "time"];
    draft.timestamp = match (item.claimed_time(&["timestamp"]), item.get("offset")) {
        // Milliseconds since it happened, as they were when the request was sent.
        (ClaimedTime::Missing, Some(Value::Json(offset))) if is_number(offset) => {
            let micros = offset.get().parse::<f64>().unwrap_or_default() * 1_000.0;
            ClaimedTime::BeforeReceipt(micros.clamp(0.0, 1e18) as i64)
        }
        (ClaimedTime::Missing, _) => match in_properties.iter().find_map(|key| rest.time(key)) {
            Some(text) => ClaimedTime::Text(text),
            None => ClaimedTime::Missing,
        },
        (time, _) => time,
    };
    draft.session_id = item.any_text("session_id").or_else(|| rest.take(&["$session_id"]));
    rest.take_context(&mut draft);
    rest.take(&["token"]);

    let mut metadata = Metadata::default();
    rest.write(&mut metadata);
    for member in &item.0 {
        let key = member.key.as_ref();
        let is_known = matches!(
            key,
            "event"
                | "properties"
                | "distinct_id"
                | "$distinct_id"
                | "uuid"
                | "timestamp"
                | "offset"
                | "api_key"
                | "token"
                | "$token"
                | "session_id"
                | "sent_at"
                | "options"
        );
        if let (false, Value::Json(raw)) = (is_known || member.value.is_absent(), &member.value)
            && rest.properties.get(key).is_none()
        {
            metadata.json(key, raw.get());
        }
    }
    match metadata.finish("properties") {
        Ok(metadata) => draft.properties = metadata,
        Err(fault) => faults.push(fault),
    }
    let is_clock_right = is_v1 && v1::is_clock_right(&item);
    Ok(ParsedEvent { faults, is_clock_right, ..ParsedEvent::new(draft) })
}

fn identity(name: &str, previous_id: Option<CompactString>, group_id: Option<CompactString>) -> Draft {
    let details = Details::Identity(IdentityDetails { previous_id, group_id });
    Draft { name: Some(name.into()), ..Draft::new(details) }
}

/// An event's properties; what was taken into a column is not written again.
struct Rest<'a> {
    properties: Properties<'a>,
    taken: Vec<&'static str>,
}

impl<'a> Rest<'a> {
    fn new(properties: Properties<'a>) -> Self {
        Rest { properties, taken: Vec::new() }
    }

    /// Takes the first of several that is a text with something in it, or a number.
    fn take(&mut self, keys: &[&'static str]) -> Option<CompactString> {
        let (key, text) = self.properties.text(keys)?;
        self.taken.push(key);
        Some(text)
    }

    /// A text that is a time, which stays where it is.
    fn time(&self, key: &str) -> Option<CompactString> {
        let (_, text) = self.properties.string(&[key])?;
        Micros::parse(&text).is_ok().then_some(text)
    }

    fn pair(&mut self, width: &'static str, height: &'static str) -> Option<CompactString> {
        let digits = |key| self.properties.get(key).filter(|raw| is_number(raw)).map(RawValue::get);
        let pair = format_compact!("{}x{}", digits(width)?, digits(height)?);
        self.taken.extend([width, height]);
        Some(pair)
    }

    fn take_context(&mut self, draft: &mut Draft) {
        let context = &mut draft.context;
        context.page_url = self.take(&["$current_url"]);
        context.referrer = self.take(&["$referrer"]);
        context.user_agent = self.take(&["$raw_user_agent", "$useragent", "$user_agent"]);
        context.language = self.take(&["$browser_language", "$locale"]);
        context.time_zone = self.take(&["$timezone"]);
        context.screen = self.pair("$screen_width", "$screen_height");
        context.viewport = self.pair("$viewport_width", "$viewport_height");
        context.connection = self.take(&["$network_connection_type"]);
        context.utm_source = self.take(&["utm_source"]);
        context.utm_medium = self.take(&["utm_medium"]);
        context.utm_campaign = self.take(&["utm_campaign"]);
        context.country = self.take(&["$geoip_country_code"]);
        context.region = self.take(&["$geoip_subdivision_1_name"]);
        context.city = self.take(&["$geoip_city_name"]);
        context.device_type = self.take(&["$device_type"]).map(|text| text.to_lowercase());
    }

    fn write(&self, metadata: &mut Metadata) {
        if self.taken.is_empty() {
            if let Some(raw) = self.properties.raw {
                metadata.object(raw.get());
            }
            return;
        }
        for member in self.properties.members.iter().filter(|member| !self.taken.contains(&member.key.as_ref())) {
            metadata.member(member);
        }
    }
}

/// Returns what a client of PostHog's calls a field of an event.
fn client_name(raw: &RawValue, field: &str) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(match field {
        "user_id" => "distinct_id",
        "anonymous_id" => "properties.$device_id",
        "event_id" => "uuid",
        "name" => "event",
        "session_id" => "properties.$session_id",
        "page_url" => "properties.$current_url",
        "referrer" => "properties.$referrer",
        "user_agent" => "properties.$raw_user_agent",
        "previous_id" => "properties.$anon_distinct_id",
        "group_id" => "properties.$group_key",
        _ => {
            let raw = mended(raw);
            let item = Item::new(&raw).ok()?;
            let properties = item.object("properties", &mut Vec::new()).ok()?;
            let (_, origins) = vocabulary::interpret(item.text("event").ok()?.as_deref(), &properties, &[]).ok()?;
            return origins.client_name("properties", field).map(Cow::Owned);
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_found_wherever_clients_write_it() {
        let check = |body: &str, expected: Option<&str>| assert_eq!(api_key(body).as_deref(), expected, "{body}");
        check(r#"{"api_key":"k","batch":[]}"#, Some("k"));
        check(r#"{"batch":[{"event":"e","properties":{"a":{"token":"no"}}}],"api_key":"k"}"#, Some("k"));
        check(r#"{"event":"e","properties":{"token":"k","x":1}}"#, Some("k"));
        check(r#"[{"event":"e","properties":{"token":"k"}},{"event"#, Some("k"));
        check(r#"[{"event":"e","token":"k"}]"#, Some("k"));
        check(r#"{"$token":"k","$distinct_id":"d","$set":{}}"#, Some("k"));
        check(r#"{"event":"e","api_key":""}"#, None);
        check(r#""api_key""#, None);
        check(&"[".repeat(100_000), None);
    }
}
