//! The endpoint that probes and Prometheus ask: `/livez`, `/readyz`, `/metrics`.

use std::sync::Arc;

use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, StatusCode};
use metrics::Gauge;

use crate::{Health, Meter, Response};

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the service does, and the whole endpoint.
    All,
    /// What the service does, and health; the metrics have an address of their own.
    NoMetrics,
    /// The endpoint alone.
    Admin,
}

/// The admin endpoint of one service.
pub struct AdminEndpoint {
    meter: Arc<Meter>,
    health: Arc<Health>,
    ready: Gauge,
}

impl AdminEndpoint {
    /// Makes the endpoint of a service.
    pub fn new(meter: &Arc<Meter>, health: &Arc<Health>) -> Self {
        let ready = meter.gauge(meter.own("ready"), "1 if the service is ready for its work now, else 0.");
        AdminEndpoint { meter: Arc::clone(meter), health: Arc::clone(health), ready }
    }

    /// Answers a request for the endpoint; none if it is for something else. `ready` says what else the service needs for its work;
    /// it is only asked where the answer depends on it, and only while all tasks live.
    pub async fn answer<B>(
        &self,
        scope: Scope,
        request: &Request<B>,
        ready: impl Future<Output = Result<(), String>>,
    ) -> Option<Response> {
        let path = without_slash(request.uri().path());
        if !is_page(path) || (path == "/metrics" && scope == Scope::NoMetrics) {
            return None;
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are accepted\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Some(response);
        }
        if path == "/livez" {
            return Some(text(StatusCode::OK, TEXT, "live\n"));
        }
        let ready = match self.health.unready() {
            Some(reason) => Err(reason),
            None => ready.await,
        };
        self.ready.set(if ready.is_ok() { 1.0 } else { 0.0 });
        Some(match ready {
            _ if path == "/metrics" => text(StatusCode::OK, METRICS, self.meter.render()),
            Ok(()) => text(StatusCode::OK, TEXT, "ready\n"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n")),
        })
    }
}

/// Returns whether a path is one of the endpoint's.
pub(crate) fn is_page(path: &str) -> bool {
    matches!(without_slash(path), "/livez" | "/readyz" | "/metrics")
}

fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

const TEXT: &str = "text/plain; charset=utf-8";
/// Source: Prometheus, exposition formats, text format 0.0.4.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers that there is nothing at an address that serves the endpoint alone.
pub fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, TEXT, "the pages are /livez, /readyz and /metrics\n")
}

/// Answers a request that names a host for which this address does not answer.
pub(crate) fn misdirected() -> Response {
    let message = "this address answers requests for localhost and 127.0.0.1; for another name, as behind a proxy, start the service with \
                   --allow-host NAME (WEIR_ALLOW_HOST)";
    let body = format!("{{\"error\":{{\"code\":\"misdirected_request\",\"message\":\"{message}\"}}}}");
    text(StatusCode::MISDIRECTED_REQUEST, "application/json", body)
}

pub(crate) fn text(status: StatusCode, content_type: &'static str, body: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
