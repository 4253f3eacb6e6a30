//! One connection to a server: kept open, opened again after any trouble.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::answer::Outcome;

/// As a browser of 2026 calls itself: the collector reads it to tell people from robots.
const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36";

/// Where requests go, and what is the same in all of them.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    address: SocketAddr,
    uri: Uri,
    host: HeaderValue,
    authorization: HeaderValue,
    events: usize,
    /// The usual answer, compared before anything is parsed.
    accepted: Arc<[u8]>,
}

impl Target {
    /// Reads an address. `events` is the number of events in each request.
    pub(crate) fn new(url: &str, key: &str, events: usize) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is no address"))?;
        let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
            bail!("{url:?}: an address such as http://127.0.0.1:8080 is accepted");
        };
        let port = uri.port_u16().unwrap_or(80);
        let address = (host.trim_matches(['[', ']']), port).to_socket_addrs().with_context(|| format!("{url}: no such host"))?;
        let path = match uri.path_and_query().map(|path| path.as_str()) {
            None | Some("/") => "/v1/events",
            Some(path) => path,
        };
        let mut authorization = HeaderValue::try_from(format!("Bearer {key}")).context("the key is no header's text")?;
        authorization.set_sensitive(true);
        Ok(Target {
            address: address.into_iter().next().with_context(|| format!("{url}: no such host"))?,
            uri: path.parse().with_context(|| format!("{path:?} is no path"))?,
            host: HeaderValue::try_from(format!("{host}:{port}")).context("the host is no header's text")?,
            authorization,
            events,
            accepted: format!(r#"{{"accepted":{events},"duplicate":0,"rejected":[]}}"#).into_bytes().into(),
        })
    }

    fn request(&self, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        request
    }
}

/// A connection, perhaps not open at the moment.
pub(crate) struct Connection {
    target: Target,
    timeout: Duration,
    open: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// Makes one that is not open yet. `timeout` bounds connecting and each request.
    pub(crate) fn new(target: Target, timeout: Duration) -> Self {
        Connection { target, timeout, open: None }
    }

    /// Opens it. Nothing of any request is sent by that.
    pub(crate) async fn open(&mut self) -> Result<(), String> {
        let connecting = async {
            let stream = TcpStream::connect(self.target.address).await.map_err(|error| error.kind().to_string())?;
            // Without it nothing fails, it is only slower.
            let _ = stream.set_nodelay(true);
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
            // Its errors come back from the request that they hit.
            tokio::spawn(async { drop(driver.await) });
            Ok(sender)
        };
        let connected = tokio::time::timeout(self.timeout, connecting).await.unwrap_or_else(|_| Err("timeout".to_owned()));
        self.open = Some(connected?);
        Ok(())
    }

    /// Sends a body and reads the answer to it.
    pub(crate) async fn send(&mut self, body: Bytes) -> Outcome {
        self.send_of(body, self.target.events).await
    }

    /// The same, of a body with another number of events than the target's.
    pub(crate) async fn send_of(&mut self, body: Bytes, events: usize) -> Outcome {
        // The server may have closed it since the last request, as it may at any time.
        if let Some(sender) = &mut self.open
            && sender.ready().await.is_err()
        {
            self.open = None;
        }
        if self.open.is_none()
            && let Err(error) = self.open().await
        {
            let trouble = format!("not connected: {error}");
            return Outcome::Refused { trouble, may_pass: true, retry_after: Duration::ZERO };
        }
        let answer = match &mut self.open {
            Some(sender) => tokio::time::timeout(self.timeout, exchange(sender, self.target.request(body))).await,
            None => Ok(Err("not connected".to_owned())),
        };
        match answer {
            Ok(Ok((StatusCode::OK, _, body))) if events == self.target.events && *body == *self.target.accepted => {
                Outcome::Accepted { rejected: Vec::new() }
            }
            Ok(Ok((status, retry_after, body))) => {
                let retry_after = retry_after.as_ref().and_then(|value| value.to_str().ok());
                Outcome::of(status, retry_after, &body, events)
            }
            Ok(Err(trouble)) => self.lose(trouble),
            Err(_) => self.lose("no answer in time".to_owned()),
        }
    }

    fn lose(&mut self, trouble: String) -> Outcome {
        self.open = None;
        Outcome::Unknown { trouble, retry_after: Duration::ZERO }
    }
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Option<HeaderValue>, Bytes), String> {
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = answer.status();
    let retry_after = answer.headers().get(RETRY_AFTER).cloned();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    Ok((status, retry_after, body))
}
