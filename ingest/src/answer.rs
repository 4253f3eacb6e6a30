//! Dispatches requests by route, and counts them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use hyper::header::{ACCESS_CONTROL_REQUEST_HEADERS, IF_NONE_MATCH, ORIGIN};
use hyper::{Method, Request};
use service::{Response, Scope};

use crate::body;
use crate::collect::{App, collect};
use crate::respond::{self, ApiError};
use crate::route::Route;

/// Answers one request. A panic in it ends this request alone.
pub(crate) async fn answer<B: HttpBody<Data = Bytes> + Unpin>(app: Arc<App>, scope: Scope, request: Request<B>) -> Response {
    let start = Instant::now();
    let _counted = service::meter::Counted::new(&app.metrics.in_flight);
    let route = Route::of(request.uri().path(), request.uri().query().unwrap_or_default()).filter(|route| match scope {
        Scope::All => true,
        Scope::NoMetrics => *route != Route::Metrics,
        Scope::Admin => !route.is_public(),
    });
    let response = match app.health.caught(dispatch(&app, scope, route, request)).await {
        Ok(response) => response,
        Err(_) => respond::error(route, &ApiError::Bug, &app.limits),
    };
    app.metrics.answer(route, response.status().as_u16(), start.elapsed());
    response
}

async fn dispatch<B: HttpBody<Data = Bytes> + Unpin>(
    app: &Arc<App>,
    scope: Scope,
    route: Option<Route>,
    request: Request<B>,
) -> Response {
    if route == Some(Route::Metrics) {
        app.metrics.in_flight_bytes.set(app.memory.used() as f64);
        app.metrics.unauthenticated_bytes.set(app.unauthenticated.used() as f64);
        app.metrics.answers_bytes.set(app.answers.used() as f64);
        if let Some(stats) = app.log.spool() {
            app.metrics.spool(&stats, (app.clock)());
        }
    }
    if let Some(response) = app.admin.answer(scope, &request, async { ready(app) }).await {
        return response;
    }
    let Some(route) = route else {
        return respond::error(route, &ApiError::NoRoute, &app.limits);
    };
    let origin = request.headers().get(ORIGIN).filter(|_| route.shares_credentials()).cloned();
    let response = if request.method() == Method::OPTIONS {
        respond::preflight(route.methods(), request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS))
    } else if !route.allows(request.method()) {
        respond::error(Some(route), &ApiError::NoMethod(route.methods()), &app.limits)
    } else if route == Route::Snippet {
        respond::snippet(request.headers().get(IF_NONE_MATCH))
    } else if let Route::Question(question) = route {
        body::discard(&mut request.into_body()).await;
        respond::answered(question)
    } else {
        collect(app, route, request).await
    };
    respond::share(response, origin)
}

/// Returns whether one more event could be taken now, and if not, why.
fn ready(app: &App) -> Result<(), String> {
    app.keys.ready()?;
    app.log.ready().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each request has its own: that of a hundred thousand bytes took more time than the events in it.
    #[test]
    fn a_request_takes_little_room() {
        fn room<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = room(answer::<hyper::body::Incoming>);
        assert!(bytes <= 8_192, "{bytes}");
    }
}
