//! Sockets: how connections come, what they may take, and how they go.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::http::app::App;
use crate::http::routes::{self, Listener};

/// Takes connections until `stop` changes, then lets the requests that run end, and returns when all have.
pub(crate) async fn serve(app: Arc<App>, listener: TcpListener, listens_as: Listener, mut stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(app.limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = stop.changed() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let (app, stop) = (app.clone(), stop.clone());
                connections.spawn(async move {
                    app.metrics.connections.increment(1.0);
                    connection(&app, stream, listens_as, stop).await;
                    app.metrics.connections.decrement(1.0);
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: connections that end give some back.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits for a permit first, so that connections beyond the limit wait in the kernel's queue.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection(app: &Arc<App>, stream: TcpStream, listens_as: Listener, mut stop: watch::Receiver<bool>) {
    // Answers are complete when they are sent; waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(routes::answer(app, listens_as, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.limits.head_wait_max)
        .max_headers(64)
        .max_header_size(16 * 1_024)
        // A client that has gone no longer wants its answer: the end of its side ends the query.
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        // An error is the client's going, or its breach of HTTP that hyper has answered; both are no news.
        _ = connection.as_mut() => return,
        _ = stop.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
