//! Requests: which route, who asks, and how an answer or an error is written.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::json;
use service::{Response as Answer, Scope};

use crate::evaluation::decided::{AsDecided, as_decided};
use crate::experiment::Steps;
use crate::experiment::request::Request as ResultsRequest;
use crate::funnel::Kind;
use crate::http::app::App;
use crate::http::error::{ApiError, Code};
use crate::http::limits::QueryKind;
use crate::sql::formats::Format;
use crate::worker::{Answered, Asked};
use crate::{experiment, funnel, sql};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Metrics,
    Experiments,
    Results(String),
    Funnels(Kind),
    Sql,
}

impl Route {
    fn of(path: &str) -> Option<Route> {
        Some(match path {
            "/livez" => Route::Live,
            "/readyz" => Route::Ready,
            "/metrics" => Route::Metrics,
            "/v1/experiments" => Route::Experiments,
            "/v1/funnels" => Route::Funnels(Kind::Funnel),
            "/v1/retention" => Route::Funnels(Kind::Retention),
            "/v1/paths" => Route::Funnels(Kind::Paths),
            "/v1/sql" => Route::Sql,
            other => {
                let name = other.strip_prefix("/v1/experiments/")?.strip_suffix("/results")?;
                if name.is_empty() || name.contains('/') {
                    return None;
                }
                Route::Results(unescape(name, false)?)
            }
        })
    }

    fn label(&self) -> &'static str {
        match self {
            Route::Live => "livez",
            Route::Ready => "readyz",
            Route::Metrics => "metrics",
            Route::Experiments => "experiments",
            Route::Results(_) => "results",
            Route::Funnels(Kind::Funnel) => "funnels",
            Route::Funnels(Kind::Retention) => "retention",
            Route::Funnels(Kind::Paths) => "paths",
            Route::Sql => "sql",
        }
    }

    fn method(&self) -> Method {
        match self {
            Route::Funnels(_) | Route::Sql => Method::POST,
            _ => Method::GET,
        }
    }

    fn needs_token(&self) -> bool {
        !matches!(self, Route::Live | Route::Ready | Route::Metrics)
    }
}

/// Decodes the percent escapes of a path or a query; `None` if they make no UTF-8, or are none.
fn unescape(text: &str, is_query: bool) -> Option<String> {
    let is_escape = |rest: &str| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    let text = if is_query { text.replace('+', " ") } else { text.to_owned() };
    Some(percent_decode_str(&text).decode_utf8().ok()?.into_owned())
}

/// Answers one request. A panic in it ends this request alone.
pub(crate) async fn answer(app: Arc<App>, scope: Scope, request: Request<Incoming>) -> Answer {
    let start = Instant::now();
    let route = Route::of(request.uri().path()).filter(|route| match scope {
        Scope::All => true,
        Scope::NoMetrics => *route != Route::Metrics,
        Scope::Admin => !route.needs_token(),
    });
    let label = route.as_ref().map_or("none", Route::label);
    if route == Some(Route::Metrics) {
        app.show_held();
    }
    let answer = match app.admin.answer(scope, &request, app.ready()).await {
        Some(answer) => answer,
        // Dropped with its connection, the request ends: nobody waits for its answer.
        None => match app.health.caught(dispatch(&app, route, request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(api_error)) => refuse(&api_error),
            Err(_) => refuse(&ApiError::internal()),
        },
    };
    app.metrics.answer(label, answer.status().as_u16(), start.elapsed());
    answer
}

async fn dispatch(app: &Arc<App>, route: Option<Route>, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let Some(route) = route else {
        let message = format!("there is no route {}", request.uri().path().chars().take(200).collect::<String>());
        return Err(ApiError::not_found(Code::UnknownRoute, message));
    };
    let method = route.method();
    if *request.method() != method && !(method == Method::GET && *request.method() == Method::HEAD) {
        return Err(ApiError::method_not_allowed(method.as_str()));
    }
    let project = app.tokens.project(request.headers()).await?;
    match route {
        Route::Experiments => {
            let list = app
                .within_limits(project, QueryKind::Experiments, |app| async move { experiment::list::list(&app, project).await });
            Ok(json_answer(&list.await?))
        }
        Route::Results(name) => {
            let fields = query_fields(request.uri().query())?;
            if let Some(asked) = AsDecided::of(&fields)? {
                let record =
                    app.within_limits(
                        project,
                        QueryKind::Results,
                        |app| async move { as_decided(&app, project, &name, asked).await },
                    );
                return Ok(respond(StatusCode::OK, "application/json", record.await?));
            }
            let request = ResultsRequest::of(&fields)?;
            let results = app.within_limits(project, QueryKind::Results, |app| async move {
                experiment::results(&app, project, &name, &request).await
            });
            let (results, steps) = results.await?;
            let mut answer = respond(StatusCode::OK, "application/json", results);
            answer.headers_mut().insert("server-timing", server_timing(&steps)?);
            Ok(answer)
        }
        Route::Funnels(kind) => {
            let body = body(app, request).await?;
            let asked = funnel::Request::parse(kind, &body)?;
            if asked.has_conditions() {
                let definition = String::from_utf8_lossy(&body).into_owned();
                let answered = app.ask_worker(project, Asked::Funnel { kind, definition }).await?;
                return Ok(respond(StatusCode::OK, "application/json", answered.body));
            }
            let answered = app.within_limits(project, QueryKind::Funnel, |app| async move {
                let snapshot = Arc::new(app.snapshot(project).await?);
                asked.answer(&app.engine, snapshot).await
            });
            Ok(respond(StatusCode::OK, "application/json", answered.await?))
        }
        Route::Sql => {
            let format = accepted(request.headers());
            let statement = sql::run::parse(&body(app, request).await?)?;
            // It is read again in the worker; here it is refused without a place among the running queries.
            sql::run::check(statement.clone(), &app.limits).await?;
            let Answered { head, body } = app.ask_worker(project, Asked::Sql { sql: statement, format }).await?;
            app.metrics.rows.increment(head.rows as u64);
            let content_type = match format {
                Format::Json => "application/json",
                Format::Csv => "text/csv; charset=utf-8; header=present",
                Format::Arrow => ARROW,
                Format::Parquet => PARQUET,
            };
            let mut answer = respond(StatusCode::OK, content_type, body);
            if format != Format::Json {
                // JSON holds both itself.
                let as_of = HeaderValue::from_str(&json!(head.as_of).to_string()).map_err(|_| ApiError::internal())?;
                answer.headers_mut().insert("x-weir-as-of", as_of);
                answer
                    .headers_mut()
                    .insert("x-weir-truncated", HeaderValue::from_static(if head.truncated { "true" } else { "false" }));
            }
            Ok(answer)
        }
        // Answered by the admin endpoint.
        Route::Live | Route::Ready | Route::Metrics => Err(ApiError::internal()),
    }
}

/// Returns the fields of a query string with their escapes undone, in their order.
fn query_fields(query: Option<&str>) -> Result<Vec<(String, String)>, ApiError> {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let field = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let broken = || ApiError::bad_request("the escapes make no UTF-8").at(key.chars().take(100).collect::<String>());
        Ok((unescape(key, true).ok_or_else(broken)?, unescape(value, true).ok_or_else(broken)?))
    };
    pairs.map(field).collect()
}

/// Media types as IANA lists them.
const ARROW: &str = "application/vnd.apache.arrow.stream";
const PARQUET: &str = "application/vnd.apache.parquet";

/// Returns the first format that the client names; JSON if it names none that there is.
fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = |part: &str| match part.split(';').next().unwrap_or_default().trim() {
        "application/json" => Some(Format::Json),
        "text/csv" => Some(Format::Csv),
        ARROW => Some(Format::Arrow),
        PARQUET => Some(Format::Parquet),
        _ => None,
    };
    accept.split(',').find_map(format).unwrap_or(Format::Json)
}

async fn body(app: &App, request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let limit = app.limits.body_bytes_max;
    let collected = tokio::time::timeout(app.limits.body_wait_max, Limited::new(request.into_body(), limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::too_large(format!("the body is larger than the {limit} bytes that are accepted")))
        }
        Ok(Err(_)) => Err(ApiError::bad_request("the body ended early")),
        Err(_) => Err(ApiError::bad_request(format!("the body took longer than {} s", app.limits.body_wait_max.as_secs_f64()))),
    }
}

fn json_answer(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => respond(StatusCode::OK, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            refuse(&ApiError::internal())
        }
    }
}

/// Writes where the time went as browsers show it (W3C, Server Timing), in milliseconds.
fn server_timing(steps: &Steps) -> Result<HeaderValue, ApiError> {
    let parts = [("catalogue", steps.catalogue), ("cohort", steps.cohort), ("statistics", steps.statistics)];
    let texts = parts.map(|(name, took)| format!("{name};dur={:.3}", took.as_secs_f64() * 1e3));
    HeaderValue::from_str(&texts.join(", ")).map_err(|_| ApiError::internal())
}

fn refuse(api_error: &ApiError) -> Answer {
    let mut error = json!({"code": api_error.code, "message": api_error.message});
    if let Some(field) = &api_error.field {
        error["field"] = field.as_str().into();
    }
    let mut answer = respond(api_error.status, "application/json", json!({"error": error}).to_string().into_bytes());
    if let Some(seconds) = api_error.retry_after_s {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if api_error.status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if api_error.status == StatusCode::METHOD_NOT_ALLOWED
        && let Some(method) = api_error.message.rsplit(' ').next()
        && let Ok(method) = HeaderValue::from_str(method)
    {
        answer.headers_mut().insert(ALLOW, method);
    }
    answer
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(body.into().into());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Answers change with every event, and hold what belongs to one project.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_routes() {
        let check = |path: &str, expected: Option<Route>| assert_eq!(Route::of(path), expected, "{path}");
        let results = |name: &str| Some(Route::Results(name.to_owned()));
        check("/v1/experiments", Some(Route::Experiments));
        check("/v1/experiments/checkout/results", results("checkout"));
        check("/v1/experiments/a%20b%2Fc%C3%A4/results", results("a b/cä"));
        check("/v1/experiments/a+b/results", results("a+b"));
        check("/v1/experiments/%ff/results", None);
        check("/v1/experiments/%4/results", None);
        check("/v1/experiments//results", None);
        check("/v1/experiments/a/b/results", None);
        check("/v1/experiments/a", None);
        check("/", None);
    }

    #[test]
    fn query_fields_are_read_with_their_escapes() {
        let check = |query: Option<&str>, expected: &[(&str, &str)]| {
            let found = query_fields(query).expect("read");
            let found: Vec<(&str, &str)> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(found, expected);
        };
        check(None, &[]);
        check(Some("baseline=old+one%21&&cap=&x"), &[("baseline", "old one!"), ("cap", ""), ("x", "")]);
        let broken = query_fields(Some("baseline=%zz"));
        assert_eq!(
            broken.map_err(|api_error| (api_error.code, api_error.field)),
            Err((Code::BadRequest, Some("baseline".to_owned())))
        );
    }
}
