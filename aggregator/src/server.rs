//! The aggregator's page: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::metrics::Metrics;
use crate::status::Status;

/// Scrapers and probes are few.
const CONNECTIONS_MAX: usize = 64;

pub(crate) struct Page {
    pub address: SocketAddr,
    listener: TcpListener,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
}

pub(crate) async fn listen(address: SocketAddr, metrics: Arc<Metrics>, status: Arc<Status>) -> std::io::Result<Page> {
    let listener = TcpListener::bind(address).await?;
    Ok(Page { address: listener.local_addr()?, listener, metrics, status })
}

impl Page {
    /// Serves until `stopped` turns true.
    pub(crate) async fn serve(self, mut stopped: watch::Receiver<bool>) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await; // out of file descriptors; some will be closed
                continue;
            };
            let (metrics, status) = (Arc::clone(&self.metrics), Arc::clone(&self.status));
            tokio::spawn(async move {
                let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics, &status))));
                // A client that breaks off is not our fault, and there is nobody to tell.
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(10))
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                drop(permit);
            });
        }
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, status: &Status) -> Response<Full<Bytes>> {
    let text = |code: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; version=0.0.4"));
        response
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are accepted\n".into());
    }
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "live\n".into()),
        "/readyz" => match status.unready() {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        "/metrics" => text(StatusCode::OK, metrics.render()),
        _ => text(StatusCode::NOT_FOUND, "the pages are /livez, /readyz and /metrics\n".into()),
    }
}
