//! Dispatches requests by route, and counts them.

use std::sync::Arc;
use std::time::Instant;

use events::identity::Dialect;
use hyper::body::Incoming;
use hyper::header::ACCESS_CONTROL_REQUEST_HEADERS;
use hyper::{Method, Request};
use service::{Response, Scope};

use crate::collect::{App, collect};
use crate::respond::{self, ApiError};
use crate::route::Route;

/// Answers one request. A panic in it ends this request alone.
pub(crate) async fn answer(app: Arc<App>, scope: Scope, request: Request<Incoming>) -> Response {
    let start = Instant::now();
    let _counted = service::meter::Counted::new(&app.metrics.in_flight);
    let route = Route::of(request.uri().path()).filter(|route| match scope {
        Scope::All => true,
        Scope::NoMetrics => *route != Route::Metrics,
        Scope::Admin => !route.takes_events(),
    });
    let response = match app.health.caught(dispatch(&app, scope, route, request)).await {
        Ok(response) => response,
        Err(_) => respond::error(dialect(route), &ApiError::Bug, &app.limits),
    };
    app.metrics.answer(route, response.status().as_u16(), start.elapsed());
    response
}

fn dialect(route: Option<Route>) -> Dialect {
    route.map_or(Dialect::Native, Route::dialect)
}

async fn dispatch(app: &Arc<App>, scope: Scope, route: Option<Route>, request: Request<Incoming>) -> Response {
    if route == Some(Route::Metrics) {
        app.metrics.in_flight_bytes.set(app.memory.used() as f64);
        app.metrics.unauthenticated_bytes.set(app.unauthenticated.used() as f64);
        app.metrics.answers_bytes.set(app.answers.used() as f64);
        if let Some(stats) = app.log.spool() {
            app.metrics.spool(&stats, (app.clock)());
        }
    }
    if let Some(response) = app.admin.answer(scope, &request, std::future::ready(ready(app))).await {
        return response;
    }
    let Some(route) = route else {
        return respond::error(dialect(route), &ApiError::NoRoute, &app.limits);
    };
    if request.method() == Method::OPTIONS {
        return respond::preflight(route.methods(), request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS));
    }
    if !route.allows(request.method()) {
        return respond::share(respond::error(route.dialect(), &ApiError::NoMethod(route.methods()), &app.limits));
    }
    respond::share(collect(app, route, request).await)
}

/// Returns whether one more event could be taken now, and if not, why.
fn ready(app: &App) -> Result<(), String> {
    app.keys.ready()?;
    app.log.ready().map_err(|error| error.to_string())
}
