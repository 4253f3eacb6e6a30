//! Authentication, rate limit and body: the first step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use events::Micros;
use events::identity::{Dialect, hyphenated_uuid};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, EXPECT, HeaderMap, REFERER, USER_AGENT};
use hyper::{Request, http};
use metrics::Counter;

use crate::body::{self, Body, BodyFault};
use crate::collect::{App, compute};
use crate::dialect::{self, Text, query};
use crate::keys::{Access, Found};
use crate::respond::ApiError;
use crate::route::Route;

/// A request with a valid key, within its rate limit.
pub(crate) struct Admitted {
    pub(crate) route: Route,
    pub(crate) access: Arc<Access>,
    pub(crate) received_at: Micros,
    pub(crate) query: String,
    /// Its content type promises one event per line.
    pub(crate) is_lines: bool,
    /// Of a browser, not of a server that sends the events of others.
    pub(crate) user_agent: Option<String>,
    /// The page that shows a pixel, as far as its browser tells.
    pub(crate) page: Option<String>,
    /// The browser's device id, if it has one.
    pub(crate) cookie: Option<String>,
    /// The new device id for a browser that has none; empty on other routes.
    pub(crate) fresh_cookie: String,
}

/// Bytes of a body, inflated, in which a key is looked for.
const KEY_WITHIN: usize = 64 * 1024;

/// Checks the key of a request, then its rate limit, then receives the body. No body is inflated before its key is checked. Where a
/// dialect may have the key in the body, the body comes first, into a small memory of its own, and its beginning is looked at.
pub(crate) async fn admit(app: &Arc<App>, route: Route, request: Request<Incoming>) -> Result<(Admitted, Body), ApiError> {
    let (head, mut body) = request.into_parts();
    let admitted = admit_parts(app, route, &head, &mut body).await;
    if let Err(error) = &admitted {
        // A client that waits for `100 Continue` gets the answer without sending its body.
        if error.leaves_body() && !head.headers.contains_key(EXPECT) {
            body::discard(&mut body).await;
        }
    }
    admitted
}

async fn admit_parts(
    app: &Arc<App>,
    route: Route,
    head: &http::request::Parts,
    body: &mut Incoming,
) -> Result<(Admitted, Body), ApiError> {
    let received_at = (app.clock)();
    let uri_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > app.limits.uri_bytes_max {
        return Err(ApiError::UriTooLong(uri_bytes));
    }
    let is_gzip = is_gzip(&head.headers)?;
    let query = head.uri.query().unwrap_or_default();
    let (key, is_settled) = key(route.dialect(), &head.headers, query);
    let mut access = None;
    if is_settled {
        access = Some(authenticate(app, key.as_deref(), received_at).await?);
    }

    let memory = if access.is_some() { &app.memory } else { &app.unauthenticated };
    let mut body = body::receive(body, &app.limits, memory).await.map_err(|fault| body_fault(app, fault))?;
    app.metrics.body_bytes.record(body.bytes.len() as f64);
    let access = match access {
        Some(access) => access,
        None => {
            let in_body = dialect::write_key(Text::new(&body.beginning(KEY_WITHIN)).as_str());
            let access = authenticate(app, in_body.or(key).as_deref(), received_at).await?;
            body = body.move_to(&app.memory).map_err(|fault| body_fault(app, fault))?;
            access
        }
    };
    if body.is_gzip() || (is_gzip && looks_binary(&body.bytes)) {
        // A small body may inflate to a thousand times its size.
        let is_short = body.bytes.len() <= 1024;
        let inflate = move |app: &App| body.inflate(&app.limits).map_err(|fault| body_fault(app, fault));
        body = compute(app, access.project, is_short, inflate).await?;
        app.metrics.decoded_bytes.record(body.bytes.len() as f64);
    }

    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    let is_pixel = route == Route::Pixel;
    let user_agent = header(USER_AGENT).filter(|text| is_pixel || text.starts_with("Mozilla/"));
    let admitted = Admitted {
        route,
        access,
        received_at,
        query: query.to_owned(),
        is_lines: header(CONTENT_TYPE)
            .is_some_and(|label| label.contains("ndjson") || label.contains("jsonl") || label.contains("json-l")),
        user_agent: user_agent.map(str::to_owned),
        page: header(REFERER).filter(|_| is_pixel).map(str::to_owned),
        cookie: if is_pixel { header(COOKIE).and_then(cookie) } else { None },
        fresh_cookie: if is_pixel { uuid::Uuid::new_v4().to_string() } else { String::new() },
    };
    Ok((admitted, body))
}

/// Returns whether the body is labelled as gzip.
fn is_gzip(headers: &HeaderMap) -> Result<bool, ApiError> {
    let mut is_gzip = false;
    for label in headers.get_all(CONTENT_ENCODING) {
        match label.as_bytes() {
            b"" => {}
            label if label.eq_ignore_ascii_case(b"identity") => {}
            label if !is_gzip && (label.eq_ignore_ascii_case(b"gzip") || label.eq_ignore_ascii_case(b"x-gzip")) => is_gzip = true,
            // Gzip in gzip too: no client sends that by accident.
            _ => return Err(ApiError::BadEncoding),
        }
    }
    Ok(is_gzip)
}

/// A body that is labelled gzip but is text was inflated by a proxy that left the header.
fn looks_binary(bytes: &[u8]) -> bool {
    !matches!(bytes.trim_ascii_start().first(), None | Some(b'{' | b'['))
}

/// Finds the key in the head. The second value says whether the body may name another one, which then counts.
fn key(dialect: Dialect, headers: &HeaderMap, query: &str) -> (Option<String>, bool) {
    let in_query = |name| query::parameter(query, name).map(|key| key.into_owned());
    let authorization = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, credentials) = authorization.and_then(|value| value.split_once(' ')).unwrap_or_default();
    let credentials = credentials.trim();
    let basic = || scheme.eq_ignore_ascii_case("basic").then(|| user_name(credentials)).flatten();
    let bearer = || (scheme.eq_ignore_ascii_case("bearer") && !credentials.is_empty()).then(|| credentials.to_owned());
    match dialect {
        Dialect::Native | Dialect::Pixel => (bearer().or_else(basic).or_else(|| in_query("key")), true),
        Dialect::Segment => match basic() {
            Some(key) => (Some(key), true),
            None => {
                let header = headers.get("x-write-key").and_then(|value| value.to_str().ok());
                // Some clients write `key:secret` there; the key is what they mean.
                let header = header.and_then(|value| value.split(':').next()).filter(|key| !key.is_empty()).map(str::to_owned);
                let found = bearer().or(header).or_else(|| in_query("writeKey")).or_else(|| in_query("key"));
                (found, false)
            }
        },
    }
}

/// Reads the user name of Basic authentication; the colon after it may be missing.
fn user_name(credentials: &str) -> Option<String> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
    let text = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let user = text.split(':').next().unwrap_or_default();
    (!user.is_empty()).then(|| user.to_owned())
}

async fn authenticate(app: &App, key: Option<&str>, now: Micros) -> Result<Arc<Access>, ApiError> {
    let Some(key) = key else {
        app.metrics.key_refused.increment(1);
        return Err(ApiError::NoKey);
    };
    let access = match app.keys.look_up(key, now).await {
        Found::Access(access) => access,
        Found::Unknown => {
            app.metrics.key_refused.increment(1);
            return Err(ApiError::BadKey);
        }
        Found::Unavailable => {
            app.metrics.key_unavailable.increment(1);
            return Err(ApiError::KeysUnavailable);
        }
    };
    app.metrics.key_known.increment(1);
    if let Some(limiter) = &access.requests {
        limiter.take(1, Instant::now()).map_err(|wait| rate_limited(&app.metrics.over_rate, wait))?;
    }
    // How much the request will store is not known yet; one whose key has nothing left needs no look at its body.
    take_bytes(app, &access, 0)?;
    Ok(access)
}

/// Takes bytes that are to be stored from what the key may have stored.
pub(crate) fn take_bytes(app: &App, access: &Access, bytes: usize) -> Result<(), ApiError> {
    let Some(limiter) = &access.bytes else { return Ok(()) };
    limiter.take(bytes, Instant::now()).map_err(|wait| rate_limited(&app.metrics.over_bytes, wait))
}

/// Counts a request over a rate, and says when to send it again.
pub(crate) fn rate_limited(over: &Counter, wait: Duration) -> ApiError {
    over.increment(1);
    ApiError::RateLimited(wait.as_secs_f64().ceil().max(1.0) as u64)
}

pub(crate) fn body_fault(app: &App, fault: BodyFault) -> ApiError {
    if matches!(fault, BodyFault::NoMemory) {
        app.metrics.over_memory.increment(1);
    }
    ApiError::Body(fault)
}

/// Reads the device id from a browser's cookies; one that is no UUID is not ours.
fn cookie(header: &str) -> Option<String> {
    let pair = |cookie: &str| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == dialect::COOKIE && hyphenated_uuid(value).is_some()).then(|| value.to_owned())
    };
    header.split(';').find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn keys_are_found_where_each_dialect_keeps_them() {
        let check = |dialect, pairs: &[(&'static str, &'static str)], query, expected: Option<&str>, is_settled| {
            let (found, settled) = key(dialect, &headers(pairs), query);
            assert_eq!((found.as_deref(), settled), (expected, is_settled), "{pairs:?} {query}");
        };
        // `k:` with and without padding, `k`, `k:secret`, and none.
        let basic = |text| [("authorization", text)];
        check(Dialect::Native, &basic("Bearer k"), "key=other", Some("k"), true);
        check(Dialect::Native, &basic("bearer  k"), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azo="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azo"), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic aw=="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic azpzZWNyZXQ="), "", Some("k"), true);
        check(Dialect::Native, &basic("Basic !"), "key=q", Some("q"), true);
        check(Dialect::Native, &basic("Bearer"), "key=%71", Some("q"), true);
        check(Dialect::Native, &[], "keys=q", None, true);
        check(Dialect::Pixel, &[], "type=impression&key=q", Some("q"), true);
        check(Dialect::Segment, &basic("Basic azo="), "writeKey=q", Some("k"), true);
        check(Dialect::Segment, &basic("Basic Og=="), "writeKey=q", Some("q"), false);
        check(Dialect::Segment, &basic("Bearer b"), "writeKey=q", Some("b"), false);
        check(Dialect::Segment, &[("x-write-key", "h:secret")], "writeKey=q", Some("h"), false);
        check(Dialect::Segment, &[], "", None, false);
    }

    #[test]
    fn one_compression_is_accepted() {
        let check = |values: &[&'static str], expected: Option<bool>| {
            let pairs: Vec<_> = values.iter().map(|value| ("content-encoding", *value)).collect();
            assert_eq!(is_gzip(&headers(&pairs)).ok(), expected, "{values:?}");
        };
        check(&[], Some(false));
        check(&["identity"], Some(false));
        check(&["GZIP"], Some(true));
        check(&["x-gzip"], Some(true));
        check(&["gzip, gzip"], None);
        check(&["gzip", "gzip"], None);
        check(&["br"], None);
        check(&["zstd"], None);
    }

    #[test]
    fn cookies_of_others_are_left_alone() {
        let id = "6ba7b812-9dad-41d1-80b4-00c04fd430c8";
        assert_eq!(cookie(&format!("a=b; weir_id={id};c")), Some(id.to_owned()));
        assert_eq!(cookie("weir_id=1; xweir_id=2"), None);
    }
}
