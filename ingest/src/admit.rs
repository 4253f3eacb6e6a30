//! Authentication, rate limit and body: the first step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use events::Micros;
use events::identity::hyphenated_uuid;
use hyper::body::Body as HttpBody;
use hyper::header::{CONTENT_TYPE, COOKIE, EXPECT, REFERER, USER_AGENT};
use hyper::{Method, Request, http};
use metrics::Counter;
use service::Peer;

use crate::body::{self, Body, BodyFault};
use crate::collect::{App, compute};
use crate::dialect::{self, Device, Dialect, Head, KeyInHead, Text};
use crate::encoding::{self, Encoding, Label};
use crate::geo::Origin;
use crate::keys::{Access, Found};
use crate::privacy::Signal;
use crate::respond::ApiError;
use crate::route::Route;

/// What of a request its answer depends on.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) route: Route,
    pub(crate) query: String,
    pub(crate) is_post: bool,
    /// The client asks for no cookie, and for no trace of the visitor.
    pub(crate) is_anonymous: bool,
    /// Nothing is to be stored: each fault and each repair is told.
    pub(crate) is_dry: bool,
}

/// A request with a valid key, within its rate limit.
#[derive(Clone)]
pub(crate) struct Admitted {
    pub(crate) asked: Asked,
    pub(crate) access: Arc<Access>,
    pub(crate) received_at: Micros,
    /// When the client says in the head that it sent the request.
    pub(crate) sent_at: Option<Micros>,
    /// Its content type promises one event per line.
    pub(crate) is_lines: bool,
    /// Of a browser, not of a server that sends the events of others.
    pub(crate) user_agent: Option<String>,
    /// The page that shows a pixel, as far as its browser tells.
    pub(crate) page: Option<String>,
    /// How its visitor objects to being followed, if so.
    pub(crate) objection: Option<Signal>,
    /// Where its visitor is, if anybody asks.
    pub(crate) origin: Option<Origin>,
    /// The browser's device id, if it has one.
    pub(crate) cookie: Option<String>,
    /// The new device id for a browser that has none; empty where no cookie is set.
    pub(crate) fresh_cookie: String,
}

impl Admitted {
    /// Returns the browser's device.
    pub(crate) fn device(&self) -> Device<'_> {
        Device { known: self.cookie.as_deref(), fresh: &self.fresh_cookie }
    }
}

/// Bytes of a body, inflated, in which a key is looked for.
const KEY_WITHIN: usize = 64 * 1024;

/// Checks the key of a request, then its rate limit, then receives the body. No body is inflated before its key is checked. Where a
/// dialect may have the key in the body, the body comes first, into a small memory of its own, and its beginning is looked at.
pub(crate) async fn admit<B: HttpBody<Data = Bytes> + Unpin>(
    app: &Arc<App>,
    route: Route,
    request: Request<B>,
) -> Result<(Admitted, Body), ApiError> {
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

async fn admit_parts<B: HttpBody<Data = Bytes> + Unpin>(
    app: &Arc<App>,
    route: Route,
    head: &http::request::Parts,
    body: &mut B,
) -> Result<(Admitted, Body), ApiError> {
    let received_at = (app.clock)();
    let uri_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > app.limits.uri_bytes_max {
        return Err(ApiError::UriTooLong(uri_bytes));
    }
    let label = encoding::label(&head.headers).map_err(|_| ApiError::BadEncoding)?;
    let dialect = dialect::of(route.dialect());
    let query = head.uri.query().unwrap_or_default();
    let keys = Head { headers: &head.headers, query };
    let KeyInHead { key, is_settled } = dialect.key(&keys);
    let mut access = None;
    if is_settled {
        access = Some(authenticate(app, key.as_deref(), received_at).await?);
        dialect.check(route, &keys).map_err(ApiError::BadHead)?;
    }

    let memory = if access.is_some() { &app.memory } else { &app.unauthenticated };
    let mut body = body::receive(body, &app.limits, memory).await.map_err(|fault| body_fault(app, fault))?;
    app.metrics.body_bytes.record(body.bytes.len() as f64);
    let access = match access {
        Some(access) => access,
        None => {
            if dialect.has_key_anywhere() {
                body = unwrap_unauthenticated(app, dialect, query, body, label).await?;
            }
            let bytes_max = if dialect.has_key_anywhere() { usize::MAX } else { KEY_WITHIN };
            let beginning = body.beginning(bytes_max, label).map_err(|fault| body_fault(app, fault))?;
            let in_body = dialect.key_in_body(Text::new(&beginning).as_str());
            let access = authenticate(app, in_body.or(key).as_deref(), received_at).await?;
            dialect.check(route, &keys).map_err(ApiError::BadHead)?;
            body = body.move_to(&app.memory).map_err(|fault| body_fault(app, fault))?;
            access
        }
    };
    let encoding = body.encoding(label);
    if encoding.is_some() || dialect.has_key_anywhere() {
        // A small body may inflate to a thousand times its size.
        let (before, query) = (body.bytes.len(), query.to_owned());
        let is_short = before <= 1024;
        let step = move |app: &App| unwrap(app, dialect, &query, body, encoding);
        body = compute(app, access.project, is_short, step).await?;
        if body.bytes.len() != before {
            app.metrics.decoded_bytes.record(body.bytes.len() as f64);
        }
    }

    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    // Snowplow's trackers on servers ask for its image, too: their agent is not the visitor's.
    let user_agent = header(USER_AGENT).filter(|text| route == Route::Pixel || text.starts_with("Mozilla/"));
    let peer = head.extensions.get::<Peer>().map(|peer| peer.0);
    let origin = app.geo.origin(&head.headers, peer, access.backfill);
    let objection = app.privacy_signals.objection(&head.headers, route, query);
    let is_anonymous = objection == Some(Signal::SpAnonymous);
    let cookie_name = dialect.cookie().filter(|_| objection.is_none());
    let admitted = Admitted {
        asked: Asked { route, query: query.to_owned(), is_post: head.method == Method::POST, is_anonymous, is_dry: false },
        access,
        received_at,
        sent_at: dialect.sent_at(&keys),
        is_lines: header(CONTENT_TYPE)
            .is_some_and(|label| label.contains("ndjson") || label.contains("jsonl") || label.contains("json-l")),
        user_agent: user_agent.map(str::to_owned),
        page: header(REFERER).filter(|_| route.is_image()).map(str::to_owned),
        objection,
        origin,
        cookie: cookie_name.and_then(|name| header(COOKIE).and_then(|cookies| cookie(cookies, name))),
        fresh_cookie: if cookie_name.is_some() { uuid::Uuid::new_v4().to_string() } else { String::new() },
    };
    Ok((admitted, body))
}

/// Takes a body whose key is not known yet out of its wrapping, within the memory of such bodies.
async fn unwrap_unauthenticated(
    app: &Arc<App>,
    dialect: &'static dyn Dialect,
    query: &str,
    body: Body,
    label: Option<Label>,
) -> Result<Body, ApiError> {
    let encoding = body.encoding(label);
    if body.bytes.len() <= 1024 && encoding.is_none() {
        return unwrap(app, dialect, query, body, None);
    }
    let threads = app.threads.handle();
    let (app, query) = (Arc::clone(app), query.to_owned());
    let done = threads.spawn_blocking(move || app.health.caught_here(|| unwrap(&app, dialect, &query, body, encoding)));
    done.await.unwrap_or(Err(service::tasks::Panicked)).unwrap_or(Err(ApiError::Bug))
}

/// Decodes a body, takes it out of its dialect's wrapping, and decodes what is in that.
fn unwrap(app: &App, dialect: &dyn Dialect, query: &str, body: Body, encoding: Option<Encoding>) -> Result<Body, ApiError> {
    let decode = |body: Body, encoding: Option<Encoding>| match encoding {
        Some(encoding) => body.decode(encoding, &app.limits).map_err(|fault| body_fault(app, fault)),
        None => Ok(body),
    };
    let body = decode(body, encoding)?;
    let unwrapped = dialect.unwrap(query, &body.bytes, app.limits.decoded_bytes_max).map_err(ApiError::Envelope)?;
    let Some(bytes) = unwrapped else { return Ok(body) };
    let body = body.replaced(bytes).map_err(|fault| body_fault(app, fault))?;
    let encoding = body.encoding(None);
    decode(body, encoding)
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
fn cookie(header: &str, ours: &str) -> Option<String> {
    let pair = |cookie: &str| {
        let (name, value) = cookie.trim().split_once('=')?;
        (name == ours && hyphenated_uuid(value).is_some()).then(|| value.to_owned())
    };
    header.split(';').find_map(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_others_are_left_alone() {
        let id = "6ba7b812-9dad-41d1-80b4-00c04fd430c8";
        assert_eq!(cookie(&format!("a=b; weir_id={id};c"), "weir_id"), Some(id.to_owned()));
        assert_eq!(cookie("weir_id=1; xweir_id=2", "weir_id"), None);
    }
}
