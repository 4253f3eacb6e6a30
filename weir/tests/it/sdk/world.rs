//! What a client meets on its way to the collector: a proxy that does what its world says to the first deliveries, and then carries
//! faithfully.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CONNECTION, HOST, HeaderName,
    HeaderValue, ORIGIN, RETRY_AFTER,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::harness::send;

/// What happens to the first [`FAULTS`] deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum World {
    /// Nothing.
    Right,
    /// They are answered with a status and `Retry-After: 1`, and the collector never sees them.
    Answers(u16),
    /// Their connections end before the collector sees them.
    CutBefore,
    /// The collector stores them, and their connections end before the answer.
    CutAfter,
    /// The collector itself refuses them: others have used up the limit of the key. A refusal takes as long on its way as it asks the client to
    /// wait, so that a page whose clock runs ahead does not ask a hundred times meanwhile.
    OverLimit,
}

impl World {
    pub(super) const ALL: [World; 6] =
        [World::Right, World::Answers(429), World::Answers(503), World::CutBefore, World::CutAfter, World::OverLimit];
}

impl fmt::Display for World {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            World::Right => out.write_str("right"),
            World::Answers(status) => write!(out, "answers {status}"),
            World::CutBefore => out.write_str("cut before"),
            World::CutAfter => out.write_str("cut after"),
            World::OverLimit => out.write_str("over limit"),
        }
    }
}

/// Events per second of the key that is over its limit, and what others have sent with it: three seconds' worth, where two are allowed.
pub(super) const LIMIT: usize = 20;
pub(super) const OTHERS: usize = 3 * LIMIT;

/// How many deliveries of a client meet what its world says.
pub(super) const FAULTS: usize = 2;

/// What the proxy saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Deliveries that met what the world says.
    pub(super) faults: usize,
    /// Events that the collector said it has, cut answers included.
    pub(super) accepted: usize,
    /// The statuses with which the collector itself refused deliveries.
    pub(super) refused: Vec<u16>,
    /// What the client asked for besides, and the collector has not.
    pub(super) unanswered: Vec<String>,
    /// How often each delivery came, by its body, or by its address where it has none.
    pub(super) deliveries: HashMap<Bytes, usize>,
}

/// A proxy before a collector.
pub(super) struct Proxy {
    pub(super) url: String,
    pub(super) seen: Arc<Mutex<Seen>>,
    _connections: JoinSet<()>,
}

type Answer = Response<Full<Bytes>>;

/// Why a connection ends without an answer.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the world cuts this connection")
    }
}

impl std::error::Error for Cut {}

/// One world before one collector.
struct Before {
    world: World,
    collector: String,
    /// What the addresses of deliveries begin with; what SDKs ask besides is always carried.
    delivery: &'static [&'static str],
    client: Client<HttpConnector, Full<Bytes>>,
    seen: Arc<Mutex<Seen>>,
    /// The key, where others use up its limit, which they do once.
    limited: Option<String>,
    used_up: OnceCell<()>,
}

impl Proxy {
    /// Stands before a collector, to which clients deliver with this key.
    pub(super) async fn before(collector: &str, key: &str, world: World, delivery: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("is bound"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let client = Client::builder(TokioExecutor::new()).build_http();
        let before = Arc::new(Before {
            world,
            collector: collector.to_owned(),
            delivery,
            client,
            seen: Arc::clone(&seen),
            limited: (world == World::OverLimit).then(|| key.to_owned()),
            used_up: OnceCell::new(),
        });
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let before = Arc::clone(&before);
                connections.spawn(async move {
                    let service = service_fn(|request| before.answer(request));
                    // One request in a connection: a browser repeats by itself what failed on a connection that it had used before.
                    let mut server = hyper::server::conn::http1::Builder::new();
                    server.keep_alive(false);
                    // It ends with an error where the world cuts it, or where the client goes.
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Proxy { url, seen, _connections: connections }
    }
}

impl Before {
    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Result<Answer, Cut> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        let is_delivery = head.method != Method::OPTIONS && self.delivery.iter().any(|begin| head.uri.path().starts_with(begin));
        if !is_delivery {
            let asked = format!("{} {}", head.method, head.uri);
            let answer = self.carry(head, body).await?;
            if answer.status().is_client_error() {
                self.seen.lock().expect("nobody panicked").unanswered.push(format!("{asked}: {}", answer.status()));
            }
            return Ok(answer);
        }
        let meets = {
            let mut seen = self.seen.lock().expect("nobody panicked");
            let delivery = if body.is_empty() { Bytes::from(head.uri.to_string()) } else { body.clone() };
            *seen.deliveries.entry(delivery).or_default() += 1;
            let meets = !matches!(self.world, World::Right | World::OverLimit) && seen.faults < FAULTS;
            seen.faults += usize::from(meets);
            meets
        };
        match self.world {
            World::Answers(status) if meets => return Ok(refusal(status, head.headers.get(ORIGIN))),
            World::CutBefore if meets => return Err(Cut),
            _ => {}
        }
        if let Some(key) = &self.limited {
            self.used_up.get_or_init(|| self.use_up(key)).await;
        }
        let answer = self.carry(head, body).await?;
        let number = |name: HeaderName| answer.headers().get(name)?.to_str().ok()?.parse::<u64>().ok();
        {
            let mut seen = self.seen.lock().expect("nobody panicked");
            seen.accepted += number(HeaderName::from_static("x-events-accepted")).unwrap_or(0) as usize;
            if !answer.status().is_success() {
                seen.refused.push(answer.status().as_u16());
            }
        }
        if !answer.status().is_success() {
            tokio::time::sleep(Duration::from_secs(number(RETRY_AFTER).expect("a refusal says how long to wait"))).await;
        }
        if meets { Err(Cut) } else { Ok(answer) }
    }

    /// Sends what others do with a key.
    async fn use_up(&self, key: &str) {
        let event = json!({"type": "engagement", "name": "other", "user_id": "other"});
        let url = format!("{}/v1/events", self.collector);
        let sent = send(Method::POST, &url, key, Some(json!({"events": vec![event; OTHERS]}))).await;
        assert!(matches!(sent, Ok((200, _))), "{sent:?}");
    }

    /// Carries a request to the collector and its answer back.
    async fn carry(&self, mut head: hyper::http::request::Parts, body: Bytes) -> Result<Answer, Cut> {
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        head.uri = format!("{}{target}", self.collector).parse::<Uri>().expect("an address");
        head.headers.remove(HOST);
        head.headers.remove(CONNECTION);
        let answer = self.client.request(Request::from_parts(head, Full::new(body))).await.map_err(|_| Cut)?;
        let (mut head, body) = answer.into_parts();
        head.headers.remove(CONNECTION);
        let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
        Ok(Response::from_parts(head, Full::new(body)))
    }
}

/// A refusal that a page of another origin may read, as the collector's own may be.
fn refusal(status: u16, origin: Option<&HeaderValue>) -> Answer {
    let refusal =
        Response::builder().status(status).header(RETRY_AFTER, "1").header(ACCESS_CONTROL_EXPOSE_HEADERS, "Retry-After");
    let refusal = match origin {
        Some(origin) => refusal.header(ACCESS_CONTROL_ALLOW_ORIGIN, origin).header(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"),
        None => refusal,
    };
    refusal.body(Full::new(Bytes::from_static(b"{}"))).expect("an answer")
}
