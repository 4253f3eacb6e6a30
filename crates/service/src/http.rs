//! Sockets: how connections come, what they may take, and how they go.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::{Counter, Gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout, timeout_at};

use crate::head::{HeadScan, transfer_fault};
use crate::meter::Counted;
use crate::tasks::{Panicked, Stage};
use crate::{BackOff, Health, Hosts, Meter, Stop, Tasks, admin, descriptors, farewell};

/// An answer, complete in memory.
pub type Response = hyper::Response<Full<Bytes>>;

/// Pauses after a connection could not be taken: out of descriptors, mostly, and connections that end give some back.
const PAUSES: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(500));

/// Bytes of an answer that a client has to take within [`Limits::answer_wait_max`], unless fewer are left.
pub const ANSWER_BYTES_MIN: u64 = 512 * 1024;
/// Bytes of a body that are taken from the system at a time: with hundreds of large bodies at once, whoever comes next waits for one piece of
/// each. What hyper takes by itself is seven times as much.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// Connections that wait to be taken, as far as the system lets them (`net.core.somaxconn`, mostly 4,096). Of a burst that is larger some clients
/// are not heard for a second, and others believe that they are connected and are not; the usual 128 is less than one page's visitors.
const NOT_TAKEN_MAX: u32 = 16_384;
/// After the last connection that was taken at a stop, so long none has to come; and how long that may go on.
const QUIET: Duration = Duration::from_millis(20);
const LAST_ONES_MAX: Duration = Duration::from_millis(500);
/// How often a connection is looked at once it shall end: bytes that were there already have been read by then.
const LAST_LOOKS: Duration = Duration::from_millis(50);
/// How long the rest of a request's head may take from then on.
const LAST_HEAD_MAX: Duration = Duration::from_secs(2);

/// What clients may take of one address.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Open connections of one address; more are closed at once, so that nobody takes them all.
    pub connections_per_address_max: usize,
    /// Whether that holds for loopback addresses too: a proxy on this machine brings everybody's.
    pub counts_loopback: bool,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// How long a request's head may take from its first byte on.
    pub head_wait_max: Duration,
    /// How long a connection may be idle.
    pub idle_max: Duration,
    /// How long a client may take for [`ANSWER_BYTES_MIN`] of an answer, or for the rest of it: what nobody reads holds memory.
    pub answer_wait_max: Duration,
    /// Which hosts requests may name; others are refused.
    pub hosts: Hosts,
    /// Whether requests carry the address of the other end, a [`Peer`], among their extensions. It costs an allocation for each.
    pub tells_peer: bool,
    /// Whether a client that has shut down its side after the request still gets its answer. Else its going ends the request.
    pub half_close: bool,
}

impl Limits {
    /// Returns those of an address that serves the admin endpoint alone: scrapers and probes are few, and have connections of their own, so
    /// that counters can be read while all others are taken.
    pub fn admin() -> Self {
        Limits { connections_max: 64, ..Limits::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 1_024,
            connections_per_address_max: 256,
            counts_loopback: false,
            headers_max: 64,
            head_bytes_max: 16 * 1024,
            head_wait_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(65),
            answer_wait_max: Duration::from_secs(10),
            hosts: Hosts::default(),
            tells_peer: false,
            half_close: true,
        }
    }
}

/// The other end of a request's connection: the client, or the last proxy before this process.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// An address that is listened on.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens; connections wait until they are served.
    /// # Errors
    /// The address is taken, or not of this machine.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A process that is started again finds its port, though connections of the former one are not forgotten yet.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let socket = socket.listen(NOT_TAKEN_MAX)?;
        Ok(Listener { address: socket.local_addr()?, socket })
    }

    /// Returns the address; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens on the address of a service's metrics: on `asked` if an operator has named one, else on nothing of its own while
    /// `public` is a loopback address, else on `usual`, since who may send events or ask questions need not read how much others do.
    /// A port that nobody asked for must not keep a service from starting: where it is taken, any free one is used, and logged.
    /// # Errors
    /// `asked` cannot be listened on.
    pub async fn bind_metrics(public: SocketAddr, asked: Option<SocketAddr>, usual: SocketAddr) -> io::Result<Option<Self>> {
        if asked.is_none() && public.ip().to_canonical().is_loopback() {
            return Ok(None);
        }
        let listener = match asked {
            Some(asked) => Listener::bind(asked).await?,
            None => match Listener::bind(usual).await {
                Ok(listener) => listener,
                Err(_) => Listener::bind(SocketAddr::new(usual.ip(), 0)).await?,
            },
        };
        tracing::info!(address = %listener.address, %public, "the metrics have an address of their own");
        Ok(Some(listener))
    }

    /// Serves connections by a task of this name until a stop is requested. `answer` answers one request; a panic in it is counted
    /// and answered 500, and its connection goes on.
    pub fn serve<A, F>(self, tasks: &Tasks, name: &str, meter: &Meter, limits: Limits, answer: A)
    where
        A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Response> + Send + 'static,
    {
        let connections_max = descriptors::for_connections(limits.connections_max);
        if connections_max < limits.connections_max {
            let (address, set) = (self.address, limits.connections_max);
            tracing::warn!(%address, connections_max, set, "fewer connections than it is set to, since the process may open too few files");
        }
        let server = Arc::new(Server {
            address: self.address,
            permits: Arc::new(Semaphore::new(connections_max)),
            by_address: Mutex::default(),
            limits,
            answer,
            health: Arc::clone(tasks.health()),
            open: meter.gauge(meter.own("connections"), "Open connections."),
            accepted: meter.counter(meter.own("connections_accepted_total"), "Connections taken."),
            timed_out: meter.counter(
                meter.own("connections_timed_out_total"),
                "Connections closed for being idle or too slow, to send or to read.",
            ),
            over_share: meter.counter(
                meter.own("connections_over_share_total"),
                "Connections closed at once, since their address had as many open as it may have.",
            ),
            misdirected: meter.counter(
                meter.own("misdirected_requests_total"),
                "Requests refused with 421, since they name a host for which the address does not answer.",
            ),
        });
        // Connections do not hold it: it is closed when the task has ended, while they finish what they do.
        let socket = Arc::new(self.socket);
        tasks.spawn(name, move |stop| Arc::clone(&server).accept(Arc::clone(&socket), stop));
    }
}

struct Server<A> {
    address: SocketAddr,
    permits: Arc<Semaphore>,
    /// Open connections of the addresses that are counted.
    by_address: Mutex<HashMap<IpAddr, usize>>,
    limits: Limits,
    answer: A,
    health: Arc<Health>,
    open: Gauge,
    accepted: Counter,
    timed_out: Counter,
    over_share: Counter,
    misdirected: Counter,
}

impl<A, F> Server<A>
where
    A: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    /// Takes connections until a stop is requested. Each holds a permit while it is open.
    async fn accept(self: Arc<Self>, socket: Arc<TcpListener>, mut stop: Stop) {
        let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
        loop {
            let accepted = async {
                // The semaphore is never closed.
                let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((socket.accept().await?, permit))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = stop.requested() => break,
            };
            match accepted {
                Ok(((stream, peer), permit)) => {
                    back_off.reset();
                    Arc::clone(&self).begin(stream, peer, permit, stop.clone());
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    back_off.wait().await;
                }
            }
        }
        self.take_the_last(&socket, &stop).await;
    }

    /// Takes what clients believe to be connections when a stop comes: the listener's end would reset them.
    async fn take_the_last(self: Arc<Self>, socket: &TcpListener, stop: &Stop) {
        if let Err(error) = farewell::take_no_more(socket) {
            tracing::debug!(%error, "connections that begin while the listener is closed may be reset");
        }
        let until = tokio::time::Instant::now() + LAST_ONES_MAX;
        // Where as many are open as may be, one of them has to end first.
        while let Ok(Ok(permit)) = timeout_at(until, Arc::clone(&self.permits).acquire_owned()).await
            && let Ok(Ok((stream, peer))) = timeout(QUIET, socket.accept()).await
        {
            Arc::clone(&self).begin(stream, peer, permit, stop.clone());
        }
    }

    /// Serves a connection in a task of its own, if its address may have one more.
    fn begin(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, permit: OwnedSemaphorePermit, stop: Stop) {
        self.accepted.increment(1);
        let Some(share) = self.share(peer.ip()) else {
            self.over_share.increment(1);
            return; // closed, before anything of it was read
        };
        tokio::spawn(async move {
            let _permit = permit;
            let _share = Share { server: &*self, address: share };
            let _counted = Counted::new(&self.open);
            // After a panic, which is counted, the connection is closed.
            let _ = self.health.caught_outside(self.connection(stream, peer, stop)).await;
        });
    }

    /// Counts a connection of an address, if it is one that is counted. None: it has its share already.
    fn share(&self, address: IpAddr) -> Option<Option<IpAddr>> {
        if address.to_canonical().is_loopback() && !self.limits.counts_loopback {
            return Some(None);
        }
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let open = by_address.entry(address).or_default();
        if *open >= self.limits.connections_per_address_max {
            return None;
        }
        *open += 1;
        Some(Some(address))
    }

    /// Serves one connection to its end.
    async fn connection(&self, mut stream: TcpStream, peer: SocketAddr, stop: Stop) {
        if self.serve_requests(&mut stream, peer, stop).await {
            farewell::until_client_ends(&mut stream).await;
        }
    }

    /// Serves the requests of a connection. Returns whether it has ended in good order, our side of it shut down.
    async fn serve_requests(&self, stream: &mut TcpStream, peer: SocketAddr, stop: Stop) -> bool {
        // Answers are small and complete; waiting to fill a packet only delays them.
        let _ = stream.set_nodelay(true);
        let activity = Arc::new(Activity::new());
        let service = service_fn(|mut request: Request<Incoming>| {
            let activity = Arc::clone(&activity);
            if self.limits.tells_peer {
                request.extensions_mut().insert(Peer(peer));
            }
            async move {
                activity.set(Doing::Answering);
                let response = match activity.head_fault(&request).or_else(|| transfer_fault(request.headers())) {
                    Some(fault) => refuse(fault),
                    None if !self.limits.hosts.allow(self.address, &request) => {
                        self.misdirected.increment(1);
                        admin::misdirected()
                    }
                    None => self.closing(self.health.caught_outside((self.answer)(request)).await),
                };
                activity.answer_begins();
                Ok::<_, Infallible>(response)
            }
        });
        let limits = &self.limits;
        let watched = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Its clock runs between requests too, so that it cannot tell an idle client from a slow head; `Activity` can.
            .header_read_timeout(None)
            .max_headers(limits.headers_max)
            .max_header_size(limits.head_bytes_max)
            .max_buf_size(limits.head_bytes_max.max(PIECE_BYTES_MAX))
            .half_close(limits.half_close)
            .serve_connection(watched, service);
        let mut connection = pin!(connection);
        let mut closing = stop.is_requested().then(Instant::now);
        // Each byte that comes polls the connection. What else there is to wait for is polled when it has something to say, and only then.
        let mut notices = FuturesUnordered::new();
        notices.push(notice(stop, activity.deadline(limits), closing));
        loop {
            let (stop, stage) = tokio::select! {
                biased;
                // An error is the client's going, or its breach of HTTP that hyper has answered; both are no news.
                _ = connection.as_mut() => return true,
                Some(notice) = notices.next() => notice,
            };
            let look = activity.deadline(limits);
            match (stage, closing) {
                (Some(Stage::Open | Stage::Lingering), _) => {}
                (Some(Stage::Closing), _) => closing = Some(Instant::now()),
                (Some(Stage::Aborted), _) => return false,
                (None, _) if look <= Instant::now() => {
                    self.timed_out.increment(1);
                    return false;
                }
                // A request of which something has come is answered, and its answer is the last one; hyper would drop it.
                (None, Some(since)) if activity.is_head_coming() && since.elapsed() > LAST_HEAD_MAX => return false,
                (None, Some(_)) if !activity.is_head_coming() => connection.as_mut().graceful_shutdown(),
                (None, _) => {}
            }
            notices.push(notice(stop, look, closing));
        }
    }

    /// Returns what was answered, with what a stop adds to it. No function of its own awaits the answer: it would hold it twice.
    fn closing(&self, answered: Result<Response, Panicked>) -> Response {
        let bug = |_| admin::text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", "internal error\n");
        let mut response = answered.unwrap_or_else(bug);
        if self.health.is_stopping() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Waits until a stop has come further, or until it is time to look at the connection: then there is no stage. One that is closing is looked at
/// often.
async fn notice(mut stop: Stop, look: Instant, closing: Option<Instant>) -> (Stop, Option<Stage>) {
    let look = closing.map_or(look, |_| look.min(Instant::now() + LAST_LOOKS));
    let stage = tokio::time::timeout_at(look.into(), stop.next()).await.ok();
    (stop, stage)
}

/// A connection's place in its address' share.
struct Share<'a, A> {
    server: &'a Server<A>,
    /// None: it is not counted.
    address: Option<IpAddr>,
}

impl<A> Drop for Share<'_, A> {
    fn drop(&mut self) {
        let Some(address) = self.address else { return };
        let mut by_address = self.server.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = by_address.get_mut(&address) {
            *open -= 1;
            if *open == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// Answers a request whose end other programs may see elsewhere; the connection is closed.
fn refuse(fault: &'static str) -> Response {
    let mut response = admin::text(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", format!("{fault}\n"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Nothing: no byte of the next request came.
    Waiting = 0,
    /// A request's head is coming.
    Reading = 1,
    /// A request is being answered; its body has a clock of its own.
    Answering = 2,
    /// An answer is being written.
    Writing = 3,
}

/// What a connection does and since when, in one word: milliseconds since it was made, then two bits.
struct Activity {
    start: Instant,
    word: AtomicU64,
    /// Bytes of the answer that were written since then.
    written: AtomicU64,
    /// The head that is coming, or came last.
    head: Mutex<HeadScan>,
}

impl Activity {
    fn new() -> Self {
        // The first bytes of a connection are due like the rest of a head.
        let activity =
            Activity { start: Instant::now(), word: AtomicU64::new(0), written: AtomicU64::new(0), head: Mutex::default() };
        activity.set(Doing::Reading);
        activity
    }

    fn set(&self, doing: Doing) {
        let millis = self.start.elapsed().as_millis() as u64;
        self.word.store(millis << 2 | doing as u64, Ordering::Relaxed);
    }

    /// Bytes came: if nothing was going on, a head begins.
    fn read(&self, bytes: &[u8]) {
        let doing = self.doing();
        if doing == Doing::Answering as u64 {
            return;
        }
        // Reader and service are one task, so the lock is always free.
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        if doing == Doing::Waiting as u64 {
            *head = HeadScan::default();
            self.set(Doing::Reading);
        }
        head.feed(bytes);
    }

    fn doing(&self) -> u64 {
        self.word.load(Ordering::Relaxed) & 3
    }

    /// Returns whether a part of a request's head has come, and not all of it.
    fn is_head_coming(&self) -> bool {
        self.doing() == Doing::Reading as u64 && self.head.lock().unwrap_or_else(PoisonError::into_inner).has_begun()
    }

    /// An answer is there, complete in memory, and is written from now on.
    fn answer_begins(&self) {
        self.written.store(0, Ordering::Relaxed);
        // Bytes that come meanwhile begin the next head.
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = HeadScan::default();
        self.set(Doing::Writing);
    }

    /// The client took bytes: of an answer it has time again, if they were enough.
    fn wrote(&self, bytes: usize) {
        if self.doing() == Doing::Writing as u64
            && self.written.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64 >= ANSWER_BYTES_MIN
        {
            self.written.store(0, Ordering::Relaxed);
            self.set(Doing::Writing);
        }
    }

    /// All that there was to write is written: hyper flushes when its own buffer is empty, and an answer is in it as a whole.
    fn flushed(&self) {
        if self.doing() == Doing::Writing as u64 {
            let has_begun = self.head.lock().unwrap_or_else(PoisonError::into_inner).has_begun();
            self.set(if has_begun { Doing::Reading } else { Doing::Waiting });
        }
    }

    /// Returns what is wrong with the head of a request, if it is the one that came last.
    fn head_fault(&self, request: &Request<Incoming>) -> Option<&'static str> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).fault(request.method(), request.uri())
    }

    /// Returns until when something else must have begun; while a request is answered, when to look again.
    fn deadline(&self, limits: &Limits) -> Instant {
        let word = self.word.load(Ordering::Relaxed);
        let since = self.start + Duration::from_millis(word >> 2);
        match word & 3 {
            doing if doing == Doing::Waiting as u64 => since + limits.idle_max,
            doing if doing == Doing::Reading as u64 => since + limits.head_wait_max,
            doing if doing == Doing::Writing as u64 => since + limits.answer_wait_max,
            // What it becomes next may have the shorter time.
            _ => Instant::now() + limits.head_wait_max.min(limits.answer_wait_max),
        }
    }
}

/// A stream that tells when bytes come and go.
struct Watched<'a> {
    stream: &'a mut TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.read(&buffer.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.activity.wrote(written);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(written)) = polled {
            self.activity.wrote(written);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.stream).poll_flush(context);
        if polled.is_ready() {
            self.activity.flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(context)
    }
}
