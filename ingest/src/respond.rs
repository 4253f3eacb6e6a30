//! Answers, in each dialect's own shape. The only file that knows status codes.
//!
//! Which status a client retries depends on the client, so overload is 503 for native clients and the pixel, and 429 on
//! Segment's routes, whose clients count a 429 with `Retry-After` against no limit. Never a redirect: two SDKs take one
//! for success.

use bytes::Bytes;
use events::identity::Dialect;
use events::{Code, Rejection};
use http_body_util::Full;
use hyper::StatusCode;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SET_COOKIE,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use serde::Serialize;
use service::Response;

use crate::body::BodyFault;
use crate::config::Limits;
use crate::request::{COOKIE, EnvelopeFault};

const ACCEPTED: HeaderName = HeaderName::from_static("x-events-accepted");
const REJECTED: HeaderName = HeaderName::from_static("x-events-rejected");
const ERROR: HeaderName = HeaderName::from_static("x-weir-error");
/// Entries of `rejected` beyond the first of each event.
const FAULTS_MAX: usize = 5_000;

/// What became of the events of a request that was taken.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Events that are durable.
    pub(crate) accepted: usize,
    /// Repetitions within the request.
    pub(crate) duplicate: usize,
    /// Every fault of every rejected event, in the request's order.
    rejected: Vec<Rejected>,
    rejected_events: usize,
    /// The id that the browser is to keep.
    pub(crate) cookie: Option<String>,
}

#[derive(Debug, Serialize)]
struct Rejected {
    index: usize,
    code: Code,
    field: String,
    message: String,
}

impl Outcome {
    /// Notes a rejected event. `place` is where it stands, such as `events[3]`; `faults` has at least one.
    pub(crate) fn reject(&mut self, index: usize, place: &str, faults: Vec<Rejection>) {
        self.rejected_events += 1;
        for (at, fault) in faults.into_iter().enumerate() {
            if at > 0 && self.rejected.len() >= FAULTS_MAX {
                return;
            }
            let Rejection { code, field, message } = fault;
            let between = if place.is_empty() || field.is_empty() { "" } else { "." };
            let colon = if place.is_empty() && field.is_empty() { "" } else { ": " };
            let message = format!("{place}{between}{field}{colon}{message}");
            self.rejected.push(Rejected { index, code, field, message });
        }
    }
}

/// Why a request was refused as a whole. Nothing of it was taken, except where the log does not know.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// No such address.
    NoRoute,
    /// The address has other methods.
    NoMethod(&'static str),
    /// The request target is too long.
    UriTooLong(usize),
    /// No key was found.
    NoKey,
    /// The key is unknown, revoked or expired; which of them is nobody's business.
    BadKey,
    /// Whether the key is known cannot be told now.
    KeysUnavailable,
    /// The key sends more than it may; seconds until it may again.
    TooFast(u64),
    /// Another compression than gzip.
    BadEncoding,
    /// Of the body's bytes.
    Body(BodyFault),
    /// Of what the bytes say.
    Envelope(EnvelopeFault),
    /// The log did not take the events, or does not know; the text is for the log page, not for the client.
    Log,
    /// A bug.
    Bug,
}

struct Said {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<u64>,
}

impl Refusal {
    /// Returns whether the client is still sending a body that it should finish to hear the answer.
    pub(crate) fn leaves_body(&self) -> bool {
        !matches!(self, Refusal::Body(BodyFault::TooSlow | BodyFault::Broken))
    }

    fn say(&self, dialect: Dialect, limits: &Limits) -> Said {
        let is_segment = dialect == Dialect::Segment;
        let said = |status, code, message: &str| Said { status, code, message: message.to_owned(), retry_after: None };
        let later = |code, message: &str, seconds| Said {
            status: if is_segment { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE },
            retry_after: Some(seconds),
            ..said(StatusCode::OK, code, message)
        };
        // Segment documents 400 for all that is too large; its clients drop both.
        let too_large = if is_segment { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
        match self {
            Refusal::NoRoute => said(StatusCode::NOT_FOUND, "not_found", "there is nothing at this address"),
            Refusal::NoMethod(allowed) => {
                let message = format!("{allowed} are accepted here");
                said(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message)
            }
            Refusal::UriTooLong(bytes) => {
                let message = format!("the address has {bytes} bytes; at most {} are accepted", limits.uri_bytes_max);
                said(StatusCode::URI_TOO_LONG, "uri_too_long", &message)
            }
            Refusal::NoKey => {
                let message = if is_segment {
                    "no write key; it is accepted as the user name of Basic authentication, or as writeKey in the body"
                } else {
                    "no key; it is accepted in `Authorization: Bearer`, as the user name of Basic authentication, or in ?key="
                };
                said(StatusCode::UNAUTHORIZED, "missing_key", message)
            }
            Refusal::BadKey => said(StatusCode::UNAUTHORIZED, "bad_key", "the key is not valid here"),
            Refusal::KeysUnavailable => later("keys_unavailable", "the key cannot be checked now; send the same events again", 5),
            Refusal::TooFast(seconds) => {
                let message = "the key's rate is used up; send the same events again";
                let mut said = later("rate_limited", message, *seconds);
                if dialect == Dialect::Native {
                    said.status = StatusCode::TOO_MANY_REQUESTS;
                }
                said
            }
            Refusal::BadEncoding => {
                let status = if is_segment { StatusCode::BAD_REQUEST } else { StatusCode::UNSUPPORTED_MEDIA_TYPE };
                said(status, "unsupported_encoding", "gzip is accepted as Content-Encoding, and none")
            }
            Refusal::Body(BodyFault::TooLarge) => {
                let message = format!("the body is too large; at most {} bytes are accepted as sent", limits.body_bytes_max);
                said(too_large, "body_too_large", &message)
            }
            Refusal::Body(BodyFault::DecodedTooLarge) => {
                let max = limits.decoded_bytes_max;
                let message = format!("the body is too large; at most {max} bytes are accepted once decompressed");
                said(too_large, "body_too_large", &message)
            }
            Refusal::Body(BodyFault::TooSlow) => {
                said(StatusCode::REQUEST_TIMEOUT, "body_too_slow", "the body did not come in time")
            }
            Refusal::Body(BodyFault::Broken) => said(StatusCode::BAD_REQUEST, "body_broken", "the body ended before its end"),
            Refusal::Body(BodyFault::BadGzip(reason)) => {
                said(StatusCode::BAD_REQUEST, "bad_gzip", &format!("the body is no valid gzip: {reason}"))
            }
            Refusal::Body(BodyFault::NoMemory) => later("overloaded", "too much at once; send the same events again", 1),
            Refusal::Envelope(EnvelopeFault::Unreadable(reason)) => said(StatusCode::BAD_REQUEST, "invalid_body", reason),
            Refusal::Envelope(EnvelopeFault::TooManyEvents(count)) => {
                let message = format!("{count} events; at most {} are accepted in one request", limits.events_max);
                said(too_large, "too_many_events", &message)
            }
            Refusal::Log => later("unavailable", "the events could not be stored now; send the same events again", 2),
            Refusal::Bug => said(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a bug in the collector; its log has more"),
        }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    accepted: usize,
    duplicate: usize,
    rejected: &'a [Rejected],
}

/// Answers a request that was taken.
pub(crate) fn outcome(dialect: Dialect, outcome: &Outcome) -> Response {
    match dialect {
        Dialect::Native => {
            let Outcome { accepted, duplicate, rejected, .. } = outcome;
            json(StatusCode::OK, &Answer { accepted: *accepted, duplicate: *duplicate, rejected })
        }
        Dialect::Segment => {
            // Segment's clients look at the status only; whoever reads on learns what was wrong with which call.
            let mut response = match outcome.rejected.as_slice() {
                [] => text(StatusCode::OK, "application/json", "{\"success\":true}"),
                rejected => json(StatusCode::OK, &serde_json::json!({ "success": true, "rejected": rejected })),
            };
            response.headers_mut().insert(ACCEPTED, (outcome.accepted + outcome.duplicate).into());
            response.headers_mut().insert(REJECTED, outcome.rejected_events.into());
            response
        }
        Dialect::Pixel => {
            let mut response = gif(StatusCode::OK);
            if let Some(fault) = outcome.rejected.first() {
                response.headers_mut().insert(ERROR, visible(fault.code.as_str(), &fault.message));
            }
            if let Some(id) = outcome.cookie.as_deref().filter(|_| outcome.accepted > 0) {
                let cookie = format!("{COOKIE}={id}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax");
                if let Ok(cookie) = HeaderValue::try_from(cookie) {
                    response.headers_mut().insert(SET_COOKIE, cookie);
                }
            }
            response
        }
    }
}

/// Answers a request that was refused.
pub(crate) fn refusal(dialect: Dialect, refusal: &Refusal, limits: &Limits) -> Response {
    let Said { status, code, message, retry_after } = refusal.say(dialect, limits);
    let mut response = match dialect {
        Dialect::Native => json(status, &serde_json::json!({ "error": { "code": code, "message": message } })),
        Dialect::Segment => json(status, &serde_json::json!({ "code": code, "message": message })),
        Dialect::Pixel => {
            // A browser shows nothing else than an image, and only what may be sent again is worth a failure.
            let is_final =
                status.is_client_error() && !matches!(*refusal, Refusal::NoMethod(_) | Refusal::Body(BodyFault::TooSlow));
            let mut response = gif(if is_final { StatusCode::OK } else { status });
            response.headers_mut().insert(ERROR, visible(code, &message));
            response
        }
    };
    let headers = response.headers_mut();
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if let Refusal::NoMethod(allowed) = refusal {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if status == StatusCode::UNAUTHORIZED && dialect != Dialect::Pixel {
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
    let usual = HeaderValue::from_static("Authorization, Content-Type, Content-Encoding, X-Write-Key, X-Retry-Count");
    // Any header may be sent, since none is believed; but a wildcard would not cover Authorization.
    let asked = asked.filter(|asked| asked.len() <= 1024).cloned();
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(usual));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    share(response)
}

/// Lets pages of every origin read an answer. No credentials: a key is public, a cookie is not theirs.
pub(crate) fn share(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    let exposed = "X-Weir-Error, X-Events-Accepted, X-Events-Rejected, Retry-After";
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(exposed));
    response
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    // Serialising fails for maps whose keys are no strings; there are none.
    text(status, "application/json", serde_json::to_vec(body).unwrap_or_default())
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

    #[test]
    fn overload_is_said_in_each_dialect_as_its_clients_retry_it() {
        let check = |refused: Refusal, expected: [u16; 3]| {
            let limits = Limits::default();
            let status = |dialect| {
                let response = refusal(dialect, &refused, &limits);
                assert_eq!(response.headers().contains_key(RETRY_AFTER), matches!(response.status().as_u16(), 429 | 503));
                assert!(!response.status().is_redirection());
                response.status().as_u16()
            };
            assert_eq!([Dialect::Native, Dialect::Pixel, Dialect::Segment].map(status), expected, "{refused:?}");
        };
        check(Refusal::Log, [503, 503, 429]);
        check(Refusal::KeysUnavailable, [503, 503, 429]);
        check(Refusal::Body(BodyFault::NoMemory), [503, 503, 429]);
        check(Refusal::TooFast(3), [429, 503, 429]);
        check(Refusal::BadKey, [401, 200, 401]);
        check(Refusal::NoKey, [401, 200, 401]);
        check(Refusal::Body(BodyFault::TooLarge), [413, 200, 400]);
        check(Refusal::Body(BodyFault::DecodedTooLarge), [413, 200, 400]);
        check(Refusal::Envelope(EnvelopeFault::TooManyEvents(3)), [413, 200, 400]);
        check(Refusal::Envelope(EnvelopeFault::Unreadable(String::new())), [400, 200, 400]);
        check(Refusal::BadEncoding, [415, 200, 400]);
        check(Refusal::Body(BodyFault::TooSlow), [408, 408, 408]);
        check(Refusal::Bug, [500, 500, 500]);
    }

    #[test]
    fn faults_carry_their_place() {
        let check = |place: &str, field: &str, expected: &str| {
            let mut outcome = Outcome::default();
            outcome.reject(0, place, vec![Rejection::new(Code::Empty, field, "m")]);
            assert_eq!(outcome.rejected[0].message, expected);
        };
        check("events[3]", "timestamp", "events[3].timestamp: m");
        check("events[3]", "", "events[3]: m");
        check("", "timestamp", "timestamp: m");
        check("", "", "m");
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
