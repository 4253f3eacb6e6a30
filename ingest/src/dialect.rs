//! Requests as clients send them: each dialect says which addresses are its own, where its key is, how a body splits into
//! events and these into drafts, and what it answers.

mod body;
pub(crate) mod detect;
mod field;
mod growthbook;
mod head;
mod image;
mod item;
mod jitsu;
mod members;
mod metadata;
mod native;
mod pixel;
mod posthog;
pub(crate) mod query;
mod segment;
mod snowplow;
mod statsig;
mod text;
pub(crate) mod vocabulary;

use compact_str::CompactString;
use std::borrow::Cow;

use bytes::Bytes;
use events::identity::Dialect as Name;
use events::json::{mend_texts, places};
use events::repair::Reason;
use events::rules::limits::EVENT_BYTES_MAX;
use events::{Code, Draft, Micros, Rejection, Repair};
use hyper::header::{HeaderName, HeaderValue};
use serde_json::value::RawValue;

pub(crate) use head::{Head, KeyInHead, base64};
pub(crate) use image::Device;
pub(crate) use segment::Call;
pub(crate) use text::Text;

use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// A protocol of clients.
pub(crate) trait Dialect: Sync {
    /// Returns what an address is for, if it is one of this dialect's. The path has no slash at its end and none twice.
    fn route(&self, path: &str, query: &str) -> Option<Route>;

    /// Finds the key in the head of a request.
    fn key(&self, head: &Head<'_>) -> KeyInHead;

    /// Finds the key in the beginning of a body, where a dialect may have it there.
    fn key_in_body(&self, _beginning: &str) -> Option<String> {
        None
    }

    /// Returns whether the key may stand anywhere in a body, so that its beginning is not enough.
    fn has_key_anywhere(&self) -> bool {
        false
    }

    /// Checks what the head of a request with a known key has to have.
    /// # Errors
    /// What is missing.
    fn check(&self, _route: Route, _head: &Head<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Returns when the client says in the head that it sent the request.
    fn sent_at(&self, _head: &Head<'_>) -> Option<Micros> {
        None
    }

    /// Returns the cookie by which a browser stays the same device, where a dialect has one.
    fn cookie(&self) -> Option<&'static str> {
        None
    }

    /// Takes a body out of what it was wrapped in for the way, such as a form or base64, into at most so many bytes; none if it is as it
    /// should be. What it returns may be compressed.
    /// # Errors
    /// [`EnvelopeFault`] if it cannot be unwrapped.
    fn unwrap(&self, _query: &str, _body: &Bytes, _bytes_max: usize) -> Result<Option<Vec<u8>>, EnvelopeFault> {
        Ok(None)
    }

    /// Splits a body into its events.
    /// # Errors
    /// [`EnvelopeFault`] if they cannot be found, or if there are more than `events_max`.
    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault>;

    /// Answers a request whose events were processed.
    fn answer(&self, asked: &Asked, outcome: &Outcome) -> Reply;

    /// Answers a request whose events could not be stored, where a dialect can say so of each; else it is an error of the whole request.
    fn retry(&self, _asked: &Asked, _outcome: &Outcome) -> Option<Reply> {
        None
    }

    /// Words an error of the whole request; its status is chosen by [`crate::respond`].
    fn error(&self, _route: Route, code: &str, message: &str) -> Reply {
        Reply::error(code, message)
    }
}

/// All dialects. Where two have one address, the first that takes it has it.
pub(crate) static ALL: [&dyn Dialect; 8] = [
    &native::Native,
    &pixel::Pixel,
    &segment::Segment,
    &growthbook::Growthbook,
    &posthog::Posthog,
    &statsig::Statsig,
    &jitsu::Jitsu,
    &snowplow::Snowplow,
];

/// Returns the dialect of a name.
pub(crate) fn of(name: Name) -> &'static dyn Dialect {
    match name {
        Name::Native => &native::Native,
        Name::Pixel => &pixel::Pixel,
        Name::Segment => &segment::Segment,
        Name::Posthog => &posthog::Posthog,
        Name::Snowplow => &snowplow::Snowplow,
        Name::Growthbook => &growthbook::Growthbook,
        Name::Statsig => &statsig::Statsig,
        Name::Jitsu => &jitsu::Jitsu,
    }
}

/// An answer's content, in a dialect's own form.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) content: Content,
    /// Headers of this dialect.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether the answer is without content, with the status that says so.
    pub(crate) is_empty: bool,
    /// Whether its status is the one of what is processed later, since clients expect it.
    pub(crate) is_accepted: bool,
}

/// What an answer contains.
#[derive(Debug)]
pub(crate) enum Content {
    /// JSON that may be large.
    Json(Vec<u8>),
    /// JSON that is always the same.
    JsonText(&'static str),
    /// A short text.
    Text(Cow<'static, str>),
    /// The image of one transparent point.
    Image,
}

impl Reply {
    /// Answers with a content.
    pub(crate) fn new(content: Content) -> Self {
        Reply { content, headers: Vec::new(), is_empty: false, is_accepted: false }
    }

    /// Answers with JSON.
    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        // Serialising fails only for maps with keys other than strings; there are none.
        Reply::new(Content::Json(serde_json::to_vec(value).unwrap_or_default()))
    }

    /// Answers an error, with its code and for people.
    pub(crate) fn error(code: &str, message: &str) -> Self {
        Reply::json(&serde_json::json!({ "code": code, "message": message }))
    }

    /// Adds a header, unless its value is none that a header may have.
    pub(crate) fn with(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.extend(HeaderValue::from_str(value).ok().map(|value| (name, value)));
        self
    }
}

/// Why a body as a whole cannot be read. None of its events is stored.
#[derive(Debug)]
pub(crate) enum EnvelopeFault {
    /// The events cannot be found in it; the text says where parsing failed, and what is accepted.
    Unreadable(String),
    /// So many events.
    TooManyEvents(usize),
    /// More bytes than accepted, once it is unwrapped.
    TooLarge,
}

/// An event that could be read, field by field.
#[derive(Debug)]
pub(crate) struct ParsedEvent {
    /// What was read; fields at fault are left out.
    pub(crate) draft: Box<Draft>,
    /// The event's own `sent_at`, which takes precedence over the envelope's.
    pub(crate) sent_at: Option<Micros>,
    /// The address of the visitor, where the client says it in a field of its own.
    pub(crate) address: Option<CompactString>,
    /// Whether the client says that it is a bot.
    pub(crate) is_bot: Option<bool>,
    /// Whether the client says that its clock needs no correction.
    pub(crate) is_clock_right: bool,
    /// Rejections of single fields.
    pub(crate) faults: Vec<Rejection>,
}

impl ParsedEvent {
    /// Begins with a draft.
    pub(crate) fn new(draft: Draft) -> Self {
        ParsedEvent {
            draft: Box::new(draft),
            sent_at: None,
            address: None,
            is_bot: None,
            is_clock_right: false,
            faults: Vec::new(),
        }
    }
}

/// The events of one request, in the request's order, each still as it was written.
pub(crate) trait Envelope {
    /// Returns the number of events.
    fn len(&self) -> usize;

    /// Returns when the client says that it sent the request.
    fn sent_at(&self) -> Option<Micros> {
        None
    }

    /// Returns the place of an event in the body, for messages: `events[3]`; empty if there is one event only.
    fn place(&self, index: usize) -> String;

    /// Returns an event as it is written in the body; none if it came in parameters.
    fn raw(&self, index: usize) -> Option<&str>;

    /// Returns what the client sent as an event, to be kept where it is refused.
    fn text(&self, index: usize) -> Cow<'_, str> {
        Cow::Borrowed(self.raw(index).unwrap_or_default())
    }

    /// Returns whether some event is no JSON, while others are.
    fn has_unreadable(&self) -> bool {
        false
    }

    /// Parses the event at an index below [`Envelope::len`], or its `mended` text in its place.
    /// `conversions` are the names of events that the project counts as conversions.
    /// # Errors
    /// What keeps the event from being read at all.
    fn parse(&self, index: usize, mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection>;

    /// Returns what the client calls a field in an event, if it has a name of its own for it.
    fn client_name(&self, _index: usize, _field: &str) -> Option<Cow<'static, str>> {
        None
    }

    /// Returns whether the answer must give the browser a cookie, so that its next event is the same device's.
    fn needs_cookie(&self) -> bool {
        false
    }

    /// Returns what the client calls an event in an answer that names each; none in answers that do not.
    fn id(&self, _index: usize) -> Option<String> {
        None
    }
}

/// Reads the event at an index. Unless the dialect is strict, what a parser or Postgres refuses in texts is mended, and noted in the draft; the
/// rules then refuse ids and names that were mended.
/// # Errors
/// What keeps the event from being read at all.
pub(crate) fn read(
    envelope: &dyn Envelope,
    text: &Text<'_>,
    index: usize,
    conversions: &[String],
    is_strict: bool,
) -> Result<ParsedEvent, Rejection> {
    let Some(part) = envelope.raw(index) else { return envelope.parse(index, None, conversions) };
    if part.len() > EVENT_BYTES_MAX {
        let message = format!("{} bytes; at most {EVENT_BYTES_MAX} are accepted", part.len());
        return Err(Rejection::new(Code::EventTooLarge, "", message));
    }
    let replaced = text.replaced_in(part);
    if is_strict && replaced.iter().any(|(_, reason)| *reason == Reason::Utf8) {
        return Err(Rejection::new(Code::BadUtf8, "", "contains bytes that are not UTF-8"));
    }
    let mut repairs = Vec::new();
    let may_be_broken = || ["\\ud", "\\uD", "\\u0000"].iter().any(|escape| part.contains(escape));
    let mended = if !is_strict && part.contains("\\u") && may_be_broken() { mend_texts(part) } else { None };
    let mended = mended.and_then(|(mended, mends)| {
        repairs.extend(mends.into_iter().map(|(place, reason)| Repair::new(reason, place)));
        RawValue::from_string(mended).ok()
    });
    let mut parsed = envelope.parse(index, mended.as_deref(), conversions)?;
    if !replaced.is_empty() {
        let start = text.start_of(part);
        let offsets: Vec<_> = replaced.iter().map(|(at, _)| at - start).collect();
        repairs.extend(places(part, &offsets).into_iter().map(|(first, place)| Repair::new(replaced[first].1, place)));
    }
    if !repairs.is_empty() {
        repairs.append(&mut parsed.draft.repairs);
        parsed.draft.repairs = repairs;
    }
    Ok(parsed)
}

/// What becomes of events that are no exposures and no orders, for the table of the README.
#[cfg(test)]
const OTHERS: [(&str, &str); 9] = [
    ("Segment, RudderStack, Jitsu: other tracks, `page`, `screen`", "engagement of the track's name, `page`, `screen`"),
    ("Segment, RudderStack, Jitsu: `identify`, `alias`, `group`", "identity"),
    ("PostHog: `$identify`, `$set`, `$create_alias`, `$merge_dangerously`, `$groupidentify`", "identity"),
    ("PostHog: others, such as `$pageview`", "engagement of its name"),
    (
        "Snowplow: `tr`; an ecommerce action `transaction`",
        "conversion `transaction`; value and currency of `tr_tt`, `tr_cu`; of the entity",
    ),
    ("Snowplow: `se` with the action of an exposure", "impression; experiment of `se_la`, variant of `se_pr`"),
    (
        "Snowplow: `pv`, `pp`, `ti`, other `se` and `ue`",
        "engagement `page_view`, `page_ping`, `transaction_item`, of the action, of the schema",
    ),
    ("Statsig: with a number as `value`", "conversion of its name"),
    ("Statsig: `statsig::diagnostics`, the client's own timings", "nothing: it is answered and not kept"),
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admit::Asked;
    use crate::keys::Access;
    use events::rules::{self, RequestContext, Unit};
    use events::testing::{RECEIVED_AT, generated_id, request_context};
    use proptest::prelude::*;

    fn request(route: Route, query: &str) -> Admitted {
        let access = Access {
            name: String::new(),
            project: request_context().project,
            unit: Unit::User,
            backfill: false,
            conversions: vec!["n".to_owned()],
            expires_at: None,
            requests: None,
            events: None,
            bytes: None,
        };
        Admitted {
            asked: Asked { route, query: query.to_owned(), is_post: true, is_anonymous: false, is_dry: false },
            access: Arc::new(access),
            received_at: RECEIVED_AT,
            sent_at: None,
            is_lines: false,
            user_agent: None,
            page: None,
            cookie: None,
            objection: None,
            origin: None,
            fresh_cookie: "6ba7b812-9dad-41d1-80b4-00c04fd430c8".to_owned(),
        }
    }

    /// Bodies that are nearly right: real ones with pieces cut out, doubled or replaced.
    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let whole = prop::sample::select(vec![
            r#"{"events":[{"type":"conversion","name":"n","user_id":"u","value":"1.5","properties":{"a":[1,{"b":null}]}}]}"#,
            r#"{"batch":[{"type":"track","event":"Order Completed","userId":7,"properties":{"revenue":1e2,"a":"\u00e9\ud83c"},"context":{"page":{"url":"x"},"screen":{"width":1,"height":2}}}],"sentAt":"2026-03-01T12:00:00Z"}"#,
            "{\"type\":\"impression\",\"user_id\":\"u\"}\n{\"type\":\"identity\",\"name\":\"group\"}\n",
            r#"{"api_key":"k","batch":[{"event":"$feature_flag_called","distinct_id":"u","uuid":"x","offset":12,"properties":{"$feature_flag":"f","$feature_flag_response":true,"$screen_width":1,"$screen_height":2,"x":NaN}}]}"#,
            r#"[{"event":"e","properties":{"token":"k","distinct_id":"u","$current_url":"u"}},{"$distinct_id":"u","$set":{}}]"#,
            r#"{"schema":"s","data":[{"e":"ue","duid":"d","ue_px":"eyJzY2hlbWEiOiJzIiwiZGF0YSI6eyJzY2hlbWEiOiJpOnYvbi9qLzEiLCJkYXRhIjp7InJldmVudWUiOjF9fX0","dtm":"1772366400000"},{"e":"tr","tr_tt":"1","uid":"u"}]}"#,
            r#"[{"event_name":"Experiment Viewed","properties_json":"{\"experimentId\":\"e\",\"variationId\":1}","user_id":"u"}]"#,
            r#"{"events":[{"eventName":"statsig::config_exposure","user":{"userID":"u","customIDs":{"stableID":"s"}},"time":1772366400000,"value":1.5,"metadata":{"config":"c","ruleID":"r"}}],"statsigMetadata":{"stableID":"d"}}"#,
        ]);
        let change = (any::<prop::sample::Index>(), 0usize..8, prop::collection::vec(any::<u8>(), 0..4));
        (whole, prop::collection::vec(change, 0..4)).prop_map(|(whole, changes)| {
            let mut bytes = whole.as_bytes().to_vec();
            for (at, length, new) in changes {
                let at = at.index(bytes.len() + 1);
                let end = (at + length).min(bytes.len());
                bytes.splice(at..end, new);
            }
            bytes
        })
    }

    proptest! {
        /// No body panics, whatever route it comes to, and what is admitted, repairs included, is something that Postgres holds: its metadata is an
        /// object within all limits but for what the rules add, and no text has U+0000.
        #[test]
        fn no_body_panics(body in nearly()) {
            let routes = [
                Route::Events,
                Route::Pixel,
                Route::Batch,
                Route::Call(Call::Track),
                Route::JitsuCall(Call::Page),
                Route::CallImage(Call::Track),
                Route::JitsuImage(Call::Identify),
                Route::PosthogCapture,
                Route::PosthogEvents,
                Route::SnowplowEvents,
                Route::SnowplowImage,
                Route::Growthbook,
                Route::Statsig,
            ];
            let plain = Text::new(&body);
            let nulled = plain.null_not_numbers();
            for text in [Some(&plain), nulled.as_ref()].into_iter().flatten() {
                for route in routes {
                    let request = request(route, text.as_str());
                    let dialect = of(route.dialect());
                    let _ = dialect.key_in_body(text.as_str());
                    let _ = dialect.unwrap(text.as_str(), &Bytes::copy_from_slice(&body), 10_000);
                    let Ok(envelope) = dialect.parse(&request, text, 5) else { continue };
                    let context = RequestContext { dialect: route.dialect(), ..request_context() };
                    for index in 0..envelope.len() {
                        let _ = (envelope.place(index), envelope.id(index), envelope.client_name(index, "value"));
                        let parsed = read(envelope.as_ref(), text, index, &[], route.dialect().is_strict());
                        let Ok(parsed) = parsed.map(|parsed| parsed.draft) else { continue };
                        if let Ok(event) = rules::admit(*parsed, &context, generated_id) {
                            let record = String::from_utf8(events::Record::encode(&event).bytes().to_vec());
                            prop_assert!(!record.expect("JSON").contains("\\u0000"));
                            if let Some(metadata) = event.metadata {
                                prop_assert!(events::JsonObject::parse(metadata.to_string(), "").is_ok(), "{}", metadata);
                            }
                        }
                    }
                }
            }
        }
    }
}
