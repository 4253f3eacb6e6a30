//! Answers, in each dialect's own format. The only file that knows status codes.
//!
//! Which status a client retries depends on the client, so overload is 503 for native clients and the pixel, and 429 on
//! Segment's routes, whose clients count a 429 with `Retry-After` against no limit. Never a redirect: two SDKs take one
//! for success.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use events::identity::Dialect;
use events::{Code, Rejection, Repair};
use http_body_util::Full;
use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue,
    RETRY_AFTER, VARY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use serde::Serialize;
use service::Response;
use uuid::Uuid;

use crate::body::{BodyFault, Memory, Reserved};
use crate::config::Limits;
use crate::dialect::{self, Content, EnvelopeFault, Reply};
use crate::encoding::Encoding;
use crate::route::{Question, Route};

const ACCEPTED: HeaderName = HeaderName::from_static("x-events-accepted");
const REJECTED: HeaderName = HeaderName::from_static("x-events-rejected");
const REPAIRED: HeaderName = HeaderName::from_static("x-events-repaired");
const ERROR: HeaderName = HeaderName::from_static("x-weir-error");
/// Entries of `rejected` that are written in full for a public key. Of the events after those only the first fault is named, and without
/// its message: the client finds each rejected event, and nobody makes large answers of small requests.
const FULL_MAX: usize = 100;
/// The same for a server key: an import keeps the reason of each row that was refused.
const FULL_MAX_SERVER: usize = 5_000;
/// Repairs that the answer to a check tells.
const TOLD_MAX: usize = 1_000;
/// Bytes of a message, and of a field where there is no message. A client's own names may be in both.
const MESSAGE_BYTES_MAX: usize = 1_024;
const FIELD_BYTES_MAX: usize = 64;
/// Bytes of an entry beside its texts, about.
const ENTRY_BYTES: usize = 64;

/// What became of the events of a request that was processed.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Events that are durable.
    pub(crate) accepted: usize,
    /// Duplicates within the request.
    pub(crate) duplicate: usize,
    /// Events that were dropped, since their visitor objects to being followed and they say nothing but who it is.
    pub(crate) dropped: usize,
    /// Accepted events that were repaired.
    pub(crate) repaired: usize,
    /// The faults of the rejected events, in the request's order.
    rejected: Vec<Rejected>,
    rejected_events: usize,
    /// The repairs of events that are only checked.
    told: Vec<Repaired>,
    is_server_key: bool,
    /// The id that the browser is to keep.
    pub(crate) cookie: Option<String>,
    /// What became of each event that the client has a name for, in an answer that says so of each.
    states: Vec<(String, State)>,
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Accepted,
    /// Accepted after a repair.
    Repaired,
    /// A repetition within the request.
    Duplicate,
    /// Not kept, since its visitor objects to being followed: it is not to be sent again.
    Dropped,
    /// Refused: its first fault and the field at fault.
    Rejected(Code, String),
    /// Not stored now: the client is to send it again.
    Retry,
}

impl State {
    /// Returns it as it is told.
    pub(crate) fn result(&self) -> EventResult {
        let (result, details) = match self {
            State::Accepted => ("ok", None),
            State::Duplicate => ("ok", Some("duplicate")),
            State::Dropped => ("ok", Some("not_kept")),
            State::Repaired => ("warning", Some("repaired")),
            State::Rejected(code, _) => ("drop", Some(code.as_str())),
            State::Retry => ("retry", Some("not_persisted")),
        };
        EventResult { result, details }
    }

    /// The same with a client's own word for the details.
    pub(crate) fn result_as(&self, details: &'static str) -> EventResult {
        EventResult { details: Some(details), ..self.result() }
    }
}

/// One repair of one event that was checked.
#[derive(Debug, Serialize)]
struct Repaired {
    index: usize,
    field: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
}

#[derive(Debug, Serialize)]
struct Rejected {
    index: usize,
    code: Code,
    field: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

impl Outcome {
    /// Begins with no events.
    pub(crate) fn new(is_server_key: bool) -> Self {
        Outcome { is_server_key, ..Outcome::default() }
    }

    /// Notes what became of one event. Returns how many bytes that takes, about.
    pub(crate) fn note(&mut self, mut id: String, state: State) -> usize {
        id.truncate(id.floor_char_boundary(FIELD_BYTES_MAX));
        self.states.push((id, state));
        2 * ENTRY_BYTES
    }

    /// Notes the repairs of an event that is only checked; `name` says what the client calls a field. Returns how many bytes that takes,
    /// about.
    pub(crate) fn tell(&mut self, index: usize, repairs: Vec<Repair>, name: impl Fn(&str) -> Option<Cow<'static, str>>) -> usize {
        let mut bytes = 0;
        for repair in repairs.into_iter().take(TOLD_MAX.saturating_sub(self.told.len())) {
            let field = name(&repair.field).map_or(repair.field, Cow::into_owned);
            let mut from = repair.from;
            from.iter_mut().for_each(|from| from.truncate(from.floor_char_boundary(MESSAGE_BYTES_MAX)));
            bytes += ENTRY_BYTES + field.len() + from.as_ref().map_or(0, String::len);
            self.told.push(Repaired { index, field, reason: repair.reason.as_str(), from });
        }
        bytes
    }

    /// Returns whether the answer says of each event what became of it.
    pub(crate) fn tells_each(&self) -> bool {
        !self.states.is_empty()
    }

    /// Returns what became of each event, by the client's name for it, in the request's order.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&str, &State)> {
        self.states.iter().map(|(id, state)| (id.as_str(), state))
    }

    /// Returns the outcome of the same events if none of them could be stored.
    pub(crate) fn into_retry(mut self) -> Self {
        for (_, state) in self.states.iter_mut().filter(|(_, state)| !matches!(state, State::Rejected(..) | State::Dropped)) {
            *state = State::Retry;
        }
        Outcome { accepted: 0, duplicate: 0, repaired: 0, cookie: None, ..self }
    }

    /// Answers with the counts and the rejections, as native clients read them.
    pub(crate) fn counts(&self) -> Reply {
        let results = self.tells_each().then(|| self.states.iter().map(|(_, state)| state.result()).collect());
        let Outcome { accepted, duplicate, dropped, rejected, .. } = self;
        Reply::json(&Answer { accepted: *accepted, duplicate: *duplicate, dropped: *dropped, rejected, results })
    }

    /// Answers with each fault and each repair of events that were checked and not stored.
    pub(crate) fn checked(&self, dialect: Dialect) -> Reply {
        let mut answer = serde_json::json!({
            "dialect": dialect.as_str(),
            "accepted": self.accepted,
            "duplicate": self.duplicate,
            "rejected": self.rejected,
            "repaired": self.told,
        });
        if self.dropped > 0 {
            answer["dropped"] = self.dropped.into();
        }
        Reply::json(&answer)
    }

    /// Answers that all is well, under a dialect's name for it; the rejections are for people.
    pub(crate) fn success(&self, name: &'static str) -> Reply {
        match (self.rejected.as_slice(), name) {
            ([], "success") => Reply::new(Content::JsonText("{\"success\":true}")),
            ([], "ok") => Reply::new(Content::JsonText("{\"ok\":true}")),
            (rejected, name) => Reply::json(&serde_json::json!({ name: true, "rejected": rejected })),
        }
    }

    /// Notes a rejected event. `place` is where it stands, such as `events[3]`; `faults` has at least one. Returns how many bytes that
    /// takes, about.
    pub(crate) fn reject(&mut self, index: usize, place: &str, faults: Vec<Rejection>) -> usize {
        self.rejected_events += 1;
        let mut bytes = 0;
        let full_max = if self.is_server_key { FULL_MAX_SERVER } else { FULL_MAX };
        for (at, fault) in faults.into_iter().enumerate() {
            let is_full = self.rejected.len() < full_max;
            if at > 0 && !is_full {
                break;
            }
            let Rejection { code, mut field, message } = fault;
            let message = is_full.then(|| {
                let between = if place.is_empty() || field.is_empty() { "" } else { "." };
                let colon = if place.is_empty() && field.is_empty() { "" } else { ": " };
                let mut message = format!("{place}{between}{field}{colon}{message}");
                message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
                message
            });
            let field_bytes_max = if is_full { MESSAGE_BYTES_MAX } else { FIELD_BYTES_MAX };
            field.truncate(field.floor_char_boundary(field_bytes_max));
            bytes += ENTRY_BYTES + field.len() + message.as_ref().map_or(0, String::len);
            self.rejected.push(Rejected { index, code, field, message });
        }
        bytes
    }
}

/// Bytes of an answer with the memory that they take, which is given back when they are written, or their connection is gone.
struct Held {
    bytes: Vec<u8>,
    _reserved: Reserved,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The error of a whole request, as opposed to the [`Rejection`] of one event. No event was stored, except where the log does
/// not know.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// No such address.
    NoRoute,
    /// The address has other methods.
    NoMethod(&'static str),
    /// The request target is too long.
    UriTooLong(usize),
    /// No key was found.
    NoKey,
    /// The key is unknown, revoked or expired; the answer does not tell which.
    BadKey,
    /// Whether the key is known cannot be told now.
    KeysUnavailable,
    /// The rate limit of the key is exceeded; seconds to wait.
    RateLimited(u64),
    /// An encoding that is not accepted, or several.
    BadEncoding,
    /// The body cannot be received or inflated.
    Body(BodyFault),
    /// A header that the dialect needs is missing, or not what it should be.
    BadHead(String),
    /// The body cannot be parsed.
    Envelope(EnvelopeFault),
    /// The log did not store the events, or does not know whether it did.
    Log,
    /// A bug.
    Bug,
}

struct ErrorAnswer {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u64>,
}

impl ApiError {
    /// Returns whether the client may still be sending its body, and would not read the answer before it is done.
    pub(crate) fn leaves_body(&self) -> bool {
        !matches!(self, ApiError::Body(BodyFault::TooSlow | BodyFault::Broken))
    }

    fn answer(&self, dialect: Dialect, limits: &Limits) -> ErrorAnswer {
        // Their clients are told 429 by Segment, and keep what they have; PostHog's in browsers would drop it, Snowplow's are used to 503.
        let is_segment = dialect == Dialect::Segment;
        let error = |status, code, message: &str| ErrorAnswer { status, code, message: message.to_owned(), retry_after: None };
        let later = |code, message: &str, seconds| ErrorAnswer {
            status: if is_segment { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE },
            retry_after: Some(seconds),
            ..error(StatusCode::OK, code, message)
        };
        // Segment documents 400 for everything that is too large; its clients drop the events on either status. Snowplow's would send again
        // for ever what is too large, too long or in the wrong place, and drop it on a 400.
        let is_dropped_on_400 = matches!(dialect, Dialect::Segment | Dialect::Jitsu | Dialect::Snowplow);
        let too_large = if is_dropped_on_400 { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
        match self {
            ApiError::NoRoute => error(StatusCode::NOT_FOUND, "not_found", "there is no such route"),
            ApiError::NoMethod(allowed) => {
                let message = format!("the method is not allowed; {allowed} are accepted");
                error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message)
            }
            ApiError::UriTooLong(bytes) => {
                let message = format!("the address has {bytes} bytes; at most {} are accepted", limits.uri_bytes_max);
                let status = if dialect == Dialect::Snowplow { StatusCode::BAD_REQUEST } else { StatusCode::URI_TOO_LONG };
                error(status, "uri_too_long", &message)
            }
            ApiError::NoKey => {
                let message = match dialect {
                    Dialect::Segment | Dialect::Jitsu => {
                        "found no write key; send it as the user name of Basic authentication, or as writeKey in the body"
                    }
                    Dialect::Posthog => "found no key; send it as api_key in the body, or in `Authorization: Bearer`",
                    Dialect::Snowplow => "found no key; send it as the application's id (aid), or in ?key=",
                    Dialect::Growthbook => "found no key; send it in ?client_key=",
                    Dialect::Statsig => "found no key; send it in the header STATSIG-API-KEY, or in ?k=",
                    Dialect::Native | Dialect::Pixel => {
                        "found no key; send it in `Authorization: Bearer`, as the user name of Basic authentication, or in ?key="
                    }
                };
                error(StatusCode::UNAUTHORIZED, "missing_key", message)
            }
            ApiError::BadKey => error(StatusCode::UNAUTHORIZED, "bad_key", "the key is unknown, revoked or expired"),
            ApiError::KeysUnavailable => {
                later("keys_unavailable", "the key cannot be checked now; send the same events again", 5)
            }
            ApiError::RateLimited(seconds) => {
                let message = "the rate limit of the key is exceeded; send the same events again later";
                let mut error = later("rate_limited", message, *seconds);
                if dialect == Dialect::Native {
                    error.status = StatusCode::TOO_MANY_REQUESTS;
                }
                error
            }
            ApiError::BadEncoding => {
                let status = if is_dropped_on_400 { StatusCode::BAD_REQUEST } else { StatusCode::UNSUPPORTED_MEDIA_TYPE };
                error(
                    status,
                    "unsupported_encoding",
                    "unsupported Content-Encoding; one of gzip, deflate, br and zstd is accepted, or none",
                )
            }
            ApiError::Body(BodyFault::TooLarge) => {
                let message = format!("the body is too large; at most {} bytes are accepted as sent", limits.body_bytes_max);
                error(too_large, "body_too_large", &message)
            }
            ApiError::Body(BodyFault::DecodedTooLarge) => {
                let max = limits.decoded_bytes_max;
                let message = format!("the body is too large; at most {max} bytes are accepted once decompressed");
                error(too_large, "body_too_large", &message)
            }
            ApiError::Body(BodyFault::TooSlow) => {
                let message = "the body was not received in time";
                // Of the others' clients PostHog's for pages and RudderStack's drop what is answered 408.
                match dialect {
                    Dialect::Native | Dialect::Pixel => error(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message),
                    _ => later("body_too_slow", message, 1),
                }
            }
            ApiError::Body(BodyFault::Broken) => {
                error(StatusCode::BAD_REQUEST, "body_broken", "the connection broke before the body was complete")
            }
            ApiError::Body(BodyFault::BadEncoding(encoding, reason)) => {
                let code = match encoding {
                    Encoding::Gzip => "bad_gzip",
                    Encoding::Zlib | Encoding::Deflate => "bad_deflate",
                    Encoding::Brotli => "bad_br",
                    Encoding::Zstd => "bad_zstd",
                };
                error(StatusCode::BAD_REQUEST, code, &format!("the body is not valid {}: {reason}", encoding.as_str()))
            }
            ApiError::Body(BodyFault::NoMemory) => {
                later("overloaded", "the collector is overloaded; send the same events again later", 1)
            }
            ApiError::Envelope(EnvelopeFault::TooLarge) => ApiError::Body(BodyFault::DecodedTooLarge).answer(dialect, limits),
            ApiError::BadHead(reason) => error(StatusCode::BAD_REQUEST, "bad_header", reason),
            ApiError::Envelope(EnvelopeFault::Unreadable(reason)) => error(StatusCode::BAD_REQUEST, "invalid_body", reason),
            ApiError::Envelope(EnvelopeFault::TooManyEvents(count)) => {
                let message = format!("{count} events; at most {} are accepted in one request", limits.events_max);
                error(too_large, "too_many_events", &message)
            }
            ApiError::Log => later("unavailable", "the events could not be stored now; send the same events again", 2),
            ApiError::Bug => {
                error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error; the collector's own log has the details")
            }
        }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    accepted: usize,
    duplicate: usize,
    /// Of a visitor who objects.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: usize,
    rejected: &'a [Rejected],
    /// What became of each event, in the request's order, where the client asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<Vec<EventResult>>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What became of one event.
#[derive(Serialize)]
pub(crate) struct EventResult {
    /// `ok`; `warning`, stored after a repair; `drop`, refused; `retry`, not stored now.
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'static str>,
}

/// Answers a request that was processed. Memory is taken for answers that name events; all others are small.
/// # Errors
/// `NoMemory`.
pub(crate) fn outcome(dialect: Dialect, reply: Reply, outcome: &Outcome, memory: &Memory) -> Result<Response, BodyFault> {
    let names_events = !outcome.rejected.is_empty() || !outcome.told.is_empty() || outcome.tells_each();
    let status = match (reply.is_empty, reply.is_accepted) {
        (true, _) => StatusCode::NO_CONTENT,
        (false, true) => StatusCode::ACCEPTED,
        (false, false) => StatusCode::OK,
    };
    let is_image = matches!(reply.content, Content::Image);
    let mut response = match reply.content {
        Content::Json(bytes) if names_events => {
            let mut reserved = memory.reserve();
            reserved.grow_to(bytes.len())?;
            text(status, "application/json", Bytes::from_owner(Held { bytes, _reserved: reserved }))
        }
        content => with_content(status, content),
    };
    if reply.is_empty {
        *response.body_mut() = Full::default();
        response.headers_mut().remove(CONTENT_TYPE);
    }
    let headers = response.headers_mut();
    headers.extend(reply.headers);
    if is_image && let Some(fault) = outcome.rejected.first() {
        headers.insert(ERROR, visible(fault.code.as_str(), fault.message.as_deref().unwrap_or_default()));
    }
    if !matches!(dialect, Dialect::Native | Dialect::Pixel) {
        headers.insert(ACCEPTED, (outcome.accepted + outcome.duplicate).into());
        headers.insert(REJECTED, outcome.rejected_events.into());
        headers.insert(REPAIRED, outcome.repaired.into());
    } else if outcome.repaired > 0 {
        headers.insert(REPAIRED, outcome.repaired.into());
    }
    Ok(response)
}

fn with_content(status: StatusCode, content: Content) -> Response {
    match content {
        Content::Json(bytes) => text(status, "application/json", bytes),
        Content::JsonText(json) => text(status, "application/json", json),
        Content::Text(plain) => text(status, "text/plain; charset=utf-8", plain.into_owned()),
        Content::Image => gif(status),
    }
}

/// Answers a question of an SDK.
pub(crate) fn answered(question: Question) -> Response {
    text(StatusCode::OK, question.content_type(), question.answer())
}

/// Answers a request that failed as a whole, at a route or at none.
pub(crate) fn error(route: Option<Route>, error: &ApiError, limits: &Limits) -> Response {
    let route = route.unwrap_or(Route::Events);
    let name = route.dialect();
    let ErrorAnswer { status, code, message, retry_after } = error.answer(name, limits);
    let reply = dialect::of(name).error(route, code, &message);
    // A browser shows nothing but images, so only errors that are worth a retry have an error status.
    let is_final = status.is_client_error() && !matches!(*error, ApiError::NoMethod(_) | ApiError::Body(BodyFault::TooSlow));
    let is_image = matches!(reply.content, Content::Image);
    let mut response = with_content(if is_image && is_final { StatusCode::OK } else { status }, reply.content);
    let headers = response.headers_mut();
    if is_image {
        headers.insert(ERROR, visible(code, &message));
    }
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let ApiError::NoMethod(allowed) = error {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if status == StatusCode::UNAUTHORIZED && !is_image {
        // Not Basic: browsers would ask the visitor for a password.
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Answers a browser that asks whether a page of another origin may send.
pub(crate) fn preflight(methods: &'static str, asked: Option<&HeaderValue>) -> Response {
    let mut response = hyper::Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    let usual = HeaderValue::from_static(
        "Authorization, Content-Type, Content-Encoding, X-Write-Key, X-Retry-Count, SP-Anonymous, STATSIG-API-KEY, STATSIG-CLIENT-TIME",
    );
    // Any header may be sent. A wildcard would not cover Authorization.
    let asked = asked.filter(|asked| asked.len() <= 1024).cloned();
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(usual));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

/// Lets pages of every origin read an answer. With credentials where the dialect's clients send some, then to the origin that asks; else
/// without: a key is public, a cookie is not theirs.
pub(crate) fn share(mut response: Response, origin: Option<HeaderValue>) -> Response {
    let headers = response.headers_mut();
    match origin {
        Some(origin) => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        None => {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
    }
    let exposed = "X-Weir-Error, X-Events-Accepted, X-Events-Rejected, X-Events-Repaired, Retry-After";
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    response
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = hyper::Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Our own client for pages, as `sdk/js` builds it.
const SNIPPET: &str = include_str!("../../sdk/js/weir.min.js");

/// Answers with [`SNIPPET`], or that the browser has this one already.
pub(crate) fn snippet(known: Option<&HeaderValue>) -> Response {
    static TAG: LazyLock<HeaderValue> = LazyLock::new(|| {
        let tag = format!("\"{}\"", Uuid::new_v5(&Uuid::NAMESPACE_OID, SNIPPET.as_bytes()));
        HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("\"\""))
    });
    let mut response = text(StatusCode::OK, "text/javascript; charset=utf-8", SNIPPET);
    if known == Some(&*TAG) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Full::default();
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    headers.insert(ETAG, TAG.clone());
    response
}

/// One transparent pixel: GIF89a, two colours, the first of them transparent.
const GIF: &[u8; 43] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff\x21\xf9\x04\x01\x00\x00\x00\x00\
\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00\x3b";

fn gif(status: StatusCode) -> Response {
    let mut response = text(status, "image/gif", Bytes::from_static(GIF));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-cache, must-revalidate, private"));
    response
}

/// A header's value of visible ASCII, at most 512 bytes: a client's text must not become a header of its own.
fn visible(code: &str, message: &str) -> HeaderValue {
    let text: String = format!("{code}: {message}")
        .chars()
        .map(|shown| if shown == ' ' || shown.is_ascii_graphic() { shown } else { '?' })
        .take(512)
        .collect();
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::Asked;
    use http_body_util::BodyExt as _;

    #[test]
    fn overload_is_answered_in_each_dialect_as_its_clients_retry_it() {
        let check = |failed: ApiError, expected: [u16; 6]| {
            let limits = Limits::default();
            let status = |route| {
                let response = error(Some(route), &failed, &limits);
                assert_eq!(response.headers().contains_key(RETRY_AFTER), matches!(response.status().as_u16(), 429 | 503));
                assert!(!response.status().is_redirection());
                response.status().as_u16()
            };
            let routes =
                [Route::Events, Route::Pixel, Route::Batch, Route::PosthogCapture, Route::PosthogEvents, Route::SnowplowEvents];
            assert_eq!(routes.map(status), expected, "{failed:?}");
        };
        check(ApiError::Log, [503, 503, 429, 503, 503, 503]);
        check(ApiError::KeysUnavailable, [503, 503, 429, 503, 503, 503]);
        check(ApiError::Body(BodyFault::NoMemory), [503, 503, 429, 503, 503, 503]);
        check(ApiError::RateLimited(3), [429, 503, 429, 503, 503, 503]);
        check(ApiError::BadKey, [401, 200, 401, 401, 401, 401]);
        check(ApiError::NoKey, [401, 200, 401, 401, 401, 401]);
        check(ApiError::Body(BodyFault::TooLarge), [413, 200, 400, 413, 413, 400]);
        check(ApiError::Body(BodyFault::DecodedTooLarge), [413, 200, 400, 413, 413, 400]);
        check(ApiError::Envelope(EnvelopeFault::TooManyEvents(3)), [413, 200, 400, 413, 413, 400]);
        check(ApiError::Envelope(EnvelopeFault::Unreadable(String::new())), [400, 200, 400, 400, 400, 400]);
        check(ApiError::BadEncoding, [415, 200, 400, 415, 415, 400]);
        check(ApiError::Body(BodyFault::TooSlow), [408, 408, 429, 503, 503, 503]);
        check(ApiError::Bug, [500, 500, 500, 500, 500, 500]);
    }

    #[test]
    fn faults_carry_their_place() {
        let check = |place: &str, field: &str, expected: &str| {
            let mut outcome = Outcome::default();
            outcome.reject(0, place, vec![Rejection::new(Code::Empty, field, "m")]);
            assert_eq!(outcome.rejected[0].message.as_deref(), Some(expected));
        };
        check("events[3]", "timestamp", "events[3].timestamp: m");
        check("events[3]", "", "events[3]: m");
        check("", "timestamp", "timestamp: m");
        check("", "", "m");
    }

    /// Thousands of faults in a small compressed body make no large answer, and each rejected event is found in it.
    #[tokio::test]
    async fn an_answer_names_each_rejected_event_and_stays_small() {
        let fault = |field: &str| Rejection::new(Code::WrongType, field, "found a text. ".repeat(500));
        for (dialect, place) in [(Dialect::Native, "events[7]"), (Dialect::Segment, "batch[7]")] {
            let mut answered = Outcome::default();
            let mut bytes = 0;
            for index in 0..2_500 {
                bytes += answered.reject(index, place, vec![fault("name"), fault(&"properties.".repeat(1_000))]);
            }
            let memory = Memory::new(1024 * 1024);
            let reply = if dialect == Dialect::Native { answered.counts() } else { answered.success("success") };
            let response = outcome(dialect, reply, &answered, &memory).expect("there is memory");
            assert!(memory.used() >= 2_500 * 40 && memory.used() <= bytes, "{} of {bytes}", memory.used());
            let body = response.into_body().collect().await.expect("it is there").to_bytes();
            assert!(body.len() <= memory.used(), "{}", body.len());
            assert!(body.len() < 2_500 * 80 + 100 * 2 * (MESSAGE_BYTES_MAX + 100), "{}", body.len());
            let answer: serde_json::Value = serde_json::from_slice(&body).expect("is JSON");
            let rejected = answer["rejected"].as_array().expect("a list");
            let indices: std::collections::BTreeSet<_> = rejected.iter().map(|one| one["index"].as_u64()).collect();
            assert_eq!(indices.len(), 2_500);
            assert_eq!(rejected.iter().filter(|one| one["message"].is_string()).count(), FULL_MAX);
            assert!(rejected.iter().all(|one| one["code"] == "wrong_type" && one["field"].is_string()));
            drop(body);
            assert_eq!(memory.used(), 0, "given back with the bytes");
        }
    }

    #[test]
    fn server_keys_get_the_reason_of_each_row() {
        let mut answered = Outcome::new(true);
        for index in 0..2_500 {
            answered.reject(index, "events[7]", vec![Rejection::new(Code::WrongType, "name", "found a text")]);
        }
        assert!(answered.rejected.iter().all(|one| one.message.as_deref() == Some("events[7].name: found a text")));
    }

    #[test]
    fn an_answer_without_rejections_needs_no_memory() {
        let none = Memory::new(0);
        for route in [Route::Events, Route::Batch, Route::Pixel, Route::PosthogCapture, Route::SnowplowEvents, Route::Statsig] {
            let asked = Asked { route, query: String::new(), is_post: true, is_anonymous: false, is_dry: false };
            let name = route.dialect();
            let answer = |answered: Outcome| outcome(name, dialect::of(name).answer(&asked, &answered), &answered, &none).is_ok();
            assert!(answer(Outcome { accepted: 3, ..Outcome::default() }));
            let mut answered = Outcome::default();
            answered.reject(0, "", vec![Rejection::new(Code::Empty, "name", "")]);
            let is_small = matches!(name, Dialect::Pixel | Dialect::Posthog | Dialect::Snowplow);
            assert_eq!(answer(answered), is_small, "{name:?} names no event, or in a header");
        }
    }

    #[test]
    fn headers_are_visible_ascii() {
        let value = visible("bad_value", &format!("a\r\nSet-Cookie: x=é{}", "y".repeat(600)));
        assert_eq!(value.len(), 512);
        assert!(value.as_bytes().starts_with(b"bad_value: a??Set-Cookie: x=?yyy"));
    }

    #[test]
    fn the_image_is_an_image() {
        assert_eq!(GIF.len(), 43);
        assert!(GIF.starts_with(b"GIF89a") && GIF.ends_with(b";"));
    }
}
