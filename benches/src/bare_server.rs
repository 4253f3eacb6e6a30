//! The limit of a collector: a bare server that reads the same bodies and answers from memory.
//!
//! It does what no collector can leave out: HTTP, the body, JSON with borrowed fields, an answer. It checks no key and no
//! rule, and nothing is stored.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::net::TcpListener;

/// Settings of the bare server.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}

#[derive(Deserialize)]
struct Batch<'a> {
    #[serde(borrow)]
    events: Vec<Event<'a>>,
}

/// The members that this crate's generator sends. All are read; only their presence is used.
#[derive(Deserialize)]
pub(crate) struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    event_id: Cow<'a, str>,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    experiment: Option<Cow<'a, str>>,
    #[serde(borrow)]
    variant: Option<Cow<'a, str>>,
    #[serde(borrow)]
    value: Option<Cow<'a, str>>,
    #[serde(borrow)]
    currency: Option<Cow<'a, str>>,
    #[serde(borrow)]
    page_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    referrer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    language: Option<Cow<'a, str>>,
    #[serde(borrow)]
    country: Option<Cow<'a, str>>,
    #[serde(borrow)]
    device_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    properties: Option<&'a RawValue>,
}

impl Event<'_> {
    #[cfg(feature = "kafka")]
    pub(crate) fn user(&self) -> &str {
        &self.user_id
    }

    pub(crate) fn is_complete(&self) -> bool {
        let texts = [&self.session_id, &self.name, &self.experiment, &self.variant, &self.value, &self.currency, &self.page_url];
        let more = [&self.referrer, &self.language, &self.country, &self.device_type];
        let present = [&self.kind, &self.event_id, &self.user_id, &self.timestamp].iter().all(|text| !text.is_empty());
        present
            && texts.iter().chain(&more).all(|text| text.as_deref() != Some(""))
            && self.properties.is_none_or(|properties| properties.get().starts_with('{'))
    }
}

/// Serves until standard input ends, as a child of a measurement does.
/// # Errors
/// Those of [`serve`].
pub async fn serve_until_input_ends(listener: TcpListener) -> anyhow::Result<()> {
    tokio::select! {
        served = serve(listener) => served?,
        () = crate::input_ends() => {}
    }
    Ok(())
}

/// Serves until the process ends.
/// # Errors
/// What the listener says when it can accept no more.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it nothing fails, it is only slower.
        let _ = stream.set_nodelay(true);
        tokio::spawn(async {
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes away is no matter here.
            drop(http.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return Ok(response(StatusCode::BAD_REQUEST, r#"{"error":{"code":"broken_body"}}"#.to_owned())),
    };
    let read: serde_json::Result<Batch<'_>> = serde_json::from_slice(&body);
    Ok(match read {
        Ok(batch) => {
            let accepted = batch.events.iter().filter(|event| event.is_complete()).count();
            response(StatusCode::OK, format!(r#"{{"accepted":{accepted},"duplicate":0,"rejected":[]}}"#))
        }
        Err(_) => response(StatusCode::BAD_REQUEST, r#"{"error":{"code":"invalid_json"}}"#.to_owned()),
    })
}

pub(crate) fn response(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
