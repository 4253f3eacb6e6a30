//! Sockets: how connections come, what they may take, and how they go.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::header::{ACCESS_CONTROL_REQUEST_HEADERS, CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::collect::{App, collect};
use crate::metrics::Metrics;
use crate::respond::{self, Refusal, Response};
use crate::route::Route;

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Serving.
    Open,
    /// No new connections, and none is kept for another request.
    Closing,
    /// What is still there is dropped.
    Aborted,
}

/// What an address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// Events, health, and the metrics too if they have no address of their own.
    Public {
        /// Whether `/metrics` is answered here.
        metrics: bool,
    },
    /// Metrics and health only.
    Metrics,
}

/// Takes connections until the stage changes. Each holds one of `permits` while it is open.
pub(crate) async fn accept(
    app: Arc<App>,
    listener: TcpListener,
    door: Door,
    permits: Arc<Semaphore>,
    mut stage: watch::Receiver<Stage>,
) {
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            _ = stage.changed() => return,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stage.changed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                app.metrics.connections_accepted.increment(1);
                let (app, stage) = (app.clone(), stage.clone());
                tokio::spawn(async move {
                    let _permit = permit;
                    let _counted = Counted::new(&app.metrics, |metrics| &metrics.connections);
                    serve(&app, stream, door, stage).await;
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: connections that end give some back.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn serve(app: &Arc<App>, stream: TcpStream, door: Door, mut stage: watch::Receiver<Stage>) {
    // Answers are small and complete; waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::new());
    let service = service_fn(|request| {
        let activity = activity.clone();
        async move {
            activity.set(Doing::Answering);
            let response = answer(app, door, request).await;
            activity.set(Doing::Waiting);
            Ok::<_, Infallible>(response)
        }
    });
    let limits = &app.limits;
    let watched = TokioIo::new(Watched { stream, activity: activity.clone() });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Its clock runs between requests too, so that it cannot tell an idle client from a slow head; `Activity` can.
        .header_read_timeout(None)
        .max_headers(limits.headers_max)
        .max_header_size(limits.head_bytes_max)
        // A client that has shut its side down after the request still wants the answer.
        .half_close(true)
        .serve_connection(watched, service);
    let mut connection = pin!(connection);
    let mut is_closing = false;
    let mut look = activity.deadline(limits.head_wait_max, limits.idle_max);
    loop {
        tokio::select! {
            // An error is the client's going, or its breach of HTTP that hyper has answered; both are no news.
            _ = connection.as_mut() => return,
            changed = stage.changed() => match *stage.borrow_and_update() {
                Stage::Open if changed.is_ok() => {}
                Stage::Closing if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ => return,
            },
            () = tokio::time::sleep_until(look.into()) => {
                look = activity.deadline(limits.head_wait_max, limits.idle_max);
                if look <= Instant::now() {
                    app.metrics.connections_timed_out.increment(1);
                    return;
                }
            }
        }
    }
}

/// Answers one request.
async fn answer(app: &Arc<App>, door: Door, request: Request<Incoming>) -> Response {
    let start = Instant::now();
    let _counted = Counted::new(&app.metrics, |metrics| &metrics.in_flight);
    let route = Route::of(request.uri().path()).filter(|route| match door {
        Door::Public { metrics } => metrics || *route != Route::Metrics,
        Door::Metrics => !route.takes_events(),
    });
    let mut response = dispatch(app, route, request).await;
    if app.is_stopping.load(Ordering::Relaxed) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    app.metrics.answer(route, response.status().as_u16(), start.elapsed());
    response
}

async fn dispatch(app: &Arc<App>, route: Option<Route>, request: Request<Incoming>) -> Response {
    let Some(route) = route else {
        return respond::refusal(events::identity::Dialect::Native, &Refusal::NoRoute, &app.limits);
    };
    if route.takes_events() && request.method() == Method::OPTIONS {
        return respond::preflight(route.methods(), request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS));
    }
    if !route.allows(request.method()) {
        return respond::share(respond::refusal(route.dialect(), &Refusal::NoMethod(route.methods()), &app.limits));
    }
    match route {
        Route::Live => respond::live(),
        Route::Ready => respond::ready(&ready(app)),
        Route::Metrics => {
            app.metrics.ready.set(if ready(app).is_ok() { 1.0 } else { 0.0 });
            app.metrics.in_flight_bytes.set(app.memory.used() as f64);
            if let Some(stats) = app.log.spool() {
                app.metrics.spool(&stats, (app.clock)());
            }
            respond::metrics(app.metrics.render())
        }
        Route::Events | Route::Pixel | Route::Call(_) | Route::Batch => respond::share(collect(app, route, request).await),
    }
}

/// Returns whether one more event could be taken now, and if not, why.
fn ready(app: &App) -> Result<(), String> {
    if app.is_stopping.load(Ordering::Relaxed) {
        return Err("the collector is stopping".to_owned());
    }
    app.keys.ready().map_err(str::to_owned)?;
    app.log.ready().map_err(|error| error.to_string())
}

/// Counts something while it lasts, also if it ends by being dropped.
struct Counted<'a>(&'a metrics::Gauge);

impl<'a> Counted<'a> {
    fn new(metrics: &'a Metrics, gauge: fn(&Metrics) -> &metrics::Gauge) -> Self {
        let gauge = gauge(metrics);
        gauge.increment(1.0);
        Counted(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Nothing: no byte of the next request came.
    Waiting = 0,
    /// A request's head is coming.
    Reading = 1,
    /// A request is being answered; its body and its append have clocks of their own.
    Answering = 2,
}

/// What a connection does and since when, in one word: milliseconds since it was made, then two bits.
struct Activity {
    start: Instant,
    word: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        // The first bytes of a connection are due like the rest of a head.
        let activity = Activity { start: Instant::now(), word: AtomicU64::new(0) };
        activity.set(Doing::Reading);
        activity
    }

    fn set(&self, doing: Doing) {
        let millis = self.start.elapsed().as_millis() as u64;
        self.word.store(millis << 2 | doing as u64, Ordering::Relaxed);
    }

    /// Bytes came: if nothing was going on, a head begins.
    fn read(&self) {
        if self.word.load(Ordering::Relaxed) & 3 == Doing::Waiting as u64 {
            self.set(Doing::Reading);
        }
    }

    /// Returns until when something else must have begun; while a request is answered, when to look again.
    fn deadline(&self, head_wait_max: Duration, idle_max: Duration) -> Instant {
        let word = self.word.load(Ordering::Relaxed);
        let since = self.start + Duration::from_millis(word >> 2);
        match word & 3 {
            doing if doing == Doing::Waiting as u64 => since + idle_max,
            doing if doing == Doing::Reading as u64 => since + head_wait_max,
            _ => Instant::now() + head_wait_max,
        }
    }
}

/// A stream that tells when bytes come.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.read();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
