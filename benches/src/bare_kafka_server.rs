//! The limit of a collector over Kafka: a bare server that reads the same bodies, appends each event as it came, and answers
//! when all of a request's events are acknowledged.
//!
//! It does what no such collector can leave out: HTTP, the body, JSON with borrowed fields, one record for each event with the
//! user as its key, an idempotent producer with `acks=all`, one count for each request's reports. It checks no key and no rule,
//! and knows no error but failure.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::bare_server::{Event, response};

/// Settings of the bare server over Kafka.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Brokers, with commas between them
    #[arg(long)]
    pub kafka: String,
    /// Topic, which must exist
    #[arg(long)]
    pub topic: String,
    /// How long a record may wait for others
    #[arg(long, default_value_t = 5)]
    pub linger_ms: u32,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// The reports that a request waits for.
struct Waiting {
    left: AtomicUsize,
    failed: AtomicBool,
    done: Notify,
}

impl Waiting {
    fn report(&self, is_ok: bool) {
        if !is_ok {
            self.failed.store(true, Ordering::Relaxed);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }
}

struct Reports;

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Arc<Waiting>) {
        waiting.report(result.is_ok());
    }
}

struct Server {
    producer: ThreadedProducer<Reports>,
    topic: String,
}

/// Serves until standard input ends, as a child of a measurement does.
/// # Errors
/// A producer that cannot be made; what the listener says when it can accept no more.
pub async fn serve_until_input_ends(listener: TcpListener, options: &Options) -> anyhow::Result<()> {
    let producer = ClientConfig::new()
        .set("bootstrap.servers", &options.kafka)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", options.linger_ms.to_string())
        .set("partitioner", "murmur2_random")
        // 1,024 requests of 100 events are more than the library's default bound.
        .set("queue.buffering.max.messages", "0")
        .create_with_context(Reports)?;
    let server = Arc::new(Server { producer, topic: options.topic.clone() });
    tokio::select! {
        served = serve(listener, server) => served?,
        () = crate::input_ends() => {}
    }
    Ok(())
}

async fn serve(listener: TcpListener, server: Arc<Server>) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it nothing fails, it is only slower.
        let _ = stream.set_nodelay(true);
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            let answer = service_fn(move |request| answer(Arc::clone(&server), request));
            // A client that goes away is no matter here.
            drop(http.serve_connection(TokioIo::new(stream), answer).await);
        });
    }
}

async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(response(StatusCode::BAD_REQUEST, r#"{"error":{"code":"broken_body"}}"#.to_owned())),
    };
    let Ok(waiting) = server.append(&body) else {
        return Ok(response(StatusCode::BAD_REQUEST, r#"{"error":{"code":"invalid_json"}}"#.to_owned()));
    };
    let (accepted, waiting) = waiting;
    waiting.done.notified().await;
    Ok(if waiting.failed.load(Ordering::Relaxed) {
        response(StatusCode::SERVICE_UNAVAILABLE, r#"{"error":{"code":"unavailable"}}"#.to_owned())
    } else {
        response(StatusCode::OK, format!(r#"{{"accepted":{accepted},"duplicate":0,"rejected":[]}}"#))
    })
}

impl Server {
    /// Appends the events of a body; returns how many there are, and their reports.
    fn append(&self, body: &[u8]) -> serde_json::Result<(usize, Arc<Waiting>)> {
        let batch: Batch<'_> = serde_json::from_slice(body)?;
        let events = batch.events.iter().map(|raw| serde_json::from_str(raw.get()).map(|event| (*raw, event)));
        let events: Vec<(&RawValue, Event<'_>)> = events.collect::<Result<_, _>>()?;
        let waiting = Arc::new(Waiting {
            // One more, so that it is not over before all are sent.
            left: AtomicUsize::new(events.len() + 1),
            failed: AtomicBool::new(false),
            done: Notify::new(),
        });
        for (raw, event) in &events {
            let record = BaseRecord::with_opaque_to(&self.topic, Arc::clone(&waiting)).payload(raw.get()).key(event.user());
            if !event.is_complete() || self.producer.send(record).is_err() {
                waiting.report(false);
            }
        }
        waiting.report(true);
        Ok((events.len(), waiting))
    }
}
