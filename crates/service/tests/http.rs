//! A service as its clients and probes see it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use service::{AdminEndpoint, Hosts, Limits, Listener, Meter, Response, Scope, Tasks};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// The bytes of an answer, more than the system keeps for a client; it tells when they are given back.
struct Large(Arc<Notify>);

static LARGE: [u8; 64 * 1024 * 1024] = [b'x'; 64 * 1024 * 1024];

impl AsRef<[u8]> for Large {
    fn as_ref(&self) -> &[u8] {
        &LARGE
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct Service {
    address: SocketAddr,
    tasks: Tasks,
    /// Lets the requests for `/slow` go on.
    go_on: Arc<Notify>,
}

async fn start(limits: Limits, scope: Scope) -> Service {
    let meter = Arc::new(Meter::new("test", &[]));
    let tasks = Tasks::new(&meter);
    let admin = Arc::new(AdminEndpoint::new(&meter, tasks.health()));
    let go_on = Arc::new(Notify::new());
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
    let address = listener.address();
    let waiting = Arc::clone(&go_on);
    listener.serve(&tasks, "listener", &meter, limits, move |request: Request<Incoming>| {
        let (admin, waiting) = (Arc::clone(&admin), Arc::clone(&waiting));
        async move {
            if let Some(response) = admin.answer(scope, &request, async { Ok(()) }).await {
                return response;
            }
            match request.uri().path() {
                "/panic" => panic!("a bug"),
                "/slow" => waiting.notified().await,
                "/large" => return Response::new(bytes::Bytes::from_owner(Large(Arc::clone(&waiting))).into()),
                _ => {}
            }
            Response::new("done\n".into())
        }
    });
    Service { address, tasks, go_on }
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> String {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("read");
    answer
}

fn check(answer: &str, status: u16, expected: &[&str]) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    for part in expected {
        assert!(answer.contains(part), "{part:?} is not in {answer}");
    }
}

#[tokio::test]
async fn the_admin_endpoint_is_the_same_for_every_service() {
    let service = start(Limits::default(), Scope::All).await;
    let text = "content-type: text/plain; charset=utf-8\r\n";
    check(&ask(service.address, "GET", "/livez").await, 200, &[text, "\r\n\r\nlive\n"]);
    check(&ask(service.address, "GET", "/readyz").await, 200, &[text, "\r\n\r\nready\n"]);
    let metrics = ask(service.address, "GET", "/metrics").await;
    check(&metrics, 200, &["content-type: text/plain; version=0.0.4; charset=utf-8\r\n", "weir_test_ready 1\n"]);
    let head = ask(service.address, "HEAD", "/readyz").await;
    check(&head, 200, &["content-length: 6\r\n"]);
    assert!(head.ends_with("\r\n\r\n"), "no body: {head}");
    check(&ask(service.address, "POST", "/metrics").await, 405, &["allow: GET, HEAD\r\n"]);
    check(&ask(service.address, "GET", "/other").await, 200, &["done\n"]);

    let apart = start(Limits::default(), Scope::NoMetrics).await;
    check(&ask(apart.address, "GET", "/metrics").await, 200, &["done\n"]);
    check(&ask(apart.address, "GET", "/livez").await, 200, &["live\n"]);
}

#[tokio::test]
async fn a_panic_costs_its_request_alone() {
    let service = start(Limits::default(), Scope::All).await;
    check(&ask(service.address, "GET", "/panic").await, 500, &["\r\n\r\ninternal error\n"]);
    check(&ask(service.address, "GET", "/other").await, 200, &["done\n"]);
    check(&ask(service.address, "GET", "/readyz").await, 200, &[]);
    check(&ask(service.address, "GET", "/metrics").await, 200, &["weir_test_panics_total 1\n", "weir_test_connections 1\n"]);
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight() {
    let service = start(Limits::default(), Scope::All).await;
    let address = service.address;
    let slow = tokio::spawn(async move { ask(address, "GET", "/slow").await });
    while !ask(address, "GET", "/metrics").await.contains("weir_test_connections 2\n") {
        tokio::task::yield_now().await;
    }
    let (health, go_on) = (Arc::clone(service.tasks.health()), service.go_on);
    let linger = Duration::from_secs(2);
    let stopped = tokio::spawn(service.tasks.stop(linger, Duration::from_secs(20)));
    while health.unready().is_none() {
        tokio::task::yield_now().await;
    }
    let late = ask(address, "GET", "/readyz").await;
    check(&late, 503, &["not ready: the test is stopping\n", "connection: close\r\n"]);
    go_on.notify_waiters();
    check(&slow.await.expect("no panic"), 200, &["done\n"]);
    assert!(stopped.await.expect("no panic"), "all had ended by itself");
    TcpStream::connect(address).await.expect_err("nobody listens");
}

/// Whoever has sent a request before the stop gets its answer: on a connection that nobody has taken yet, on one that was just taken, on one that
/// was kept; and nobody's connection is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_what_was_sent_before_it_and_resets_nobody() {
    const REQUEST: &[u8] = b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for round in 0..8 {
        let service = start(Limits::default(), Scope::All).await;
        let address = service.address;
        let (mut idle, mut kept) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(REQUEST).await.expect("written");
            let read = stream.read(&mut [0; 512]).await.expect("an answer");
            assert!(read > 0);
            if number % 2 == 0 { idle.push(stream) } else { kept.push(stream) }
        }
        let mut halves = Vec::new();
        for stream in &mut kept {
            stream.write_all(REQUEST).await.expect("written");
        }
        // Half a head before the stop, the rest of it after.
        for _ in 0..10 {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(&REQUEST[..10]).await.expect("written");
            halves.push(stream);
        }
        let mut fresh = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(REQUEST).await.expect("written");
            fresh.push(stream);
        }
        let stopped = tokio::spawn(service.tasks.stop(Duration::ZERO, Duration::from_secs(20)));
        for stream in &mut halves {
            stream.write_all(&REQUEST[10..]).await.expect("written");
        }
        for mut stream in kept.into_iter().chain(halves).chain(fresh) {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            check(&answer, 200, &["done\n"]);
        }
        for mut stream in idle {
            // Sent when it may be too late: no answer, but an end.
            let _ = stream.write_all(REQUEST).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert!(stopped.await.expect("no panic"), "all had ended by itself");
    }
}

/// Where as many connections are open as may be, the next one waits to be taken; a stop takes it as soon as one has ended, instead of resetting it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_takes_whoever_waits_for_a_place() {
    let service = start(Limits { connections_max: 1, ..Limits::default() }, Scope::All).await;
    let address = service.address;
    let asked = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        stream
    };
    let (first, mut next) = (asked("/slow").await, asked("/other").await);
    let answered = tokio::spawn(async move {
        let (mut first, mut answer) = (first, String::new());
        first.read_to_string(&mut answer).await.expect("an answer");
        answer
    });
    let stopped = tokio::spawn(service.tasks.stop(Duration::ZERO, Duration::from_secs(20)));
    // The handler may not wait for it yet.
    while !answered.is_finished() {
        service.go_on.notify_waiters();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    check(&answered.await.expect("no panic"), 200, &["done\n"]);
    let mut answer = String::new();
    next.read_to_string(&mut answer).await.expect("no reset");
    check(&answer, 200, &["done\n"]);
    assert!(stopped.await.expect("no panic"), "all had ended by itself");
}

/// Whoever sends while we close an idle connection meets an end in order, not a reset: what he sends is read and dropped for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_crosses_the_end_of_its_connection_is_not_reset() {
    const REQUEST: &[u8] = b"GET /other HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let service = start(Limits::default(), Scope::All).await;
    let mut idle = TcpStream::connect(service.address).await.expect("connects");
    idle.write_all(REQUEST).await.expect("written");
    assert!(idle.read(&mut [0; 512]).await.expect("an answer") > 0);
    let stopped = tokio::spawn(service.tasks.stop(Duration::ZERO, Duration::from_secs(20)));
    assert_eq!(idle.peek(&mut [0; 1]).await.expect("an end"), 0);
    // Over loopback a reset would be there before the first write returns.
    for _ in 0..3 {
        idle.write_all(REQUEST).await.expect("no reset");
    }
    assert_eq!(idle.read(&mut [0; 512]).await.expect("no reset"), 0);
    drop(idle);
    assert!(stopped.await.expect("no panic"), "all had ended by itself");
}

#[tokio::test]
async fn what_is_too_slow_or_too_much_is_closed_or_waits() {
    let short = Duration::from_millis(500);
    let limits = Limits { connections_max: 1, head_wait_max: short, idle_max: short, ..Limits::default() };
    let service = start(limits, Scope::All).await;
    // Sends half a head, then nothing: closed without an answer, and then the next one has its turn.
    let mut slow = TcpStream::connect(service.address).await.expect("connects");
    slow.write_all(b"GET /other HT").await.expect("written");
    let next = tokio::spawn({
        let address = service.address;
        async move { ask(address, "GET", "/metrics").await }
    });
    assert_eq!(slow.read(&mut [0; 64]).await.expect("closed"), 0);
    check(&next.await.expect("no panic"), 200, &["weir_test_connections_timed_out_total 1\n"]);
}

/// Requests whose end a proxy before us may see at another place than we.
#[tokio::test]
async fn what_could_be_smuggled_past_a_proxy_is_refused() {
    let service = start(Limits::default(), Scope::All).await;
    let send = async |stream: &mut TcpStream, request: &str| {
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("closed after it");
        answer
    };
    let refused = async |request: &str, expected: &str| {
        let mut stream = TcpStream::connect(service.address).await.expect("connects");
        check(&send(&mut stream, request).await, 400, &["connection: close\r\n", expected]);
    };
    refused("GET /other HTTP/1.1\nHost: localhost\n\n", "without a carriage return").await;
    refused("POST /other HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "stands twice").await;
    let coded = "POST /other HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    refused(coded, "only chunked is accepted").await;

    // The second request of a connection is looked at like the first one.
    let mut stream = TcpStream::connect(service.address).await.expect("connects");
    stream.write_all(b"POST /other HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\na\nb").await.expect("written");
    let mut first = [0; 512];
    let read = stream.read(&mut first).await.expect("an answer");
    check(&String::from_utf8_lossy(&first[..read]), 200, &["done\n"]);
    check(&send(&mut stream, "GET /other HTTP/1.1\nHost: localhost\r\n\r\n").await, 400, &["without a carriage return"]);
}

/// Whoever opens connections and sends nothing keeps out neither others nor, for long, himself.
#[tokio::test]
async fn an_address_has_its_share_of_the_connections() {
    let limits = Limits { connections_per_address_max: 3, counts_loopback: true, ..Limits::default() };
    let service = start(limits, Scope::All).await;
    let from = |address: [u8; 4]| {
        let to = service.address;
        async move {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(SocketAddr::from((address, 0))).expect("any of 127.0.0.0/8 is ours");
            socket.connect(to).await.expect("connects")
        }
    };
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(from([127, 0, 0, 2]).await);
    }
    let is_served = async |mut stream: TcpStream| {
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = String::new();
        stream.write_all(request).await.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.contains("200 OK")
    };
    assert!(!is_served(from([127, 0, 0, 2]).await).await, "a fourth one of the same address");
    assert!(is_served(from([127, 0, 0, 3]).await).await, "one of another address");
    drop(idle.pop());
    while !is_served(from([127, 0, 0, 2]).await).await {
        tokio::task::yield_now().await; // until the server has seen it go
    }
    let metrics = ask(service.address, "GET", "/metrics").await;
    assert!(!metrics.contains("weir_test_connections_over_share_total 0\n"), "{metrics}");

    let uncounted = start(Limits { connections_per_address_max: 1, ..Limits::default() }, Scope::All).await;
    let _open = TcpStream::connect(uncounted.address).await.expect("connects");
    check(&ask(uncounted.address, "GET", "/livez").await, 200, &[]);
}

/// A body that its handler left unread is drained after the answer, and is not taken for the head of the next request.
#[tokio::test]
async fn an_unread_body_is_no_head() {
    let service = start(Limits::default(), Scope::All).await;
    for bytes in [100, 9_000, 12_000, 20_000] {
        let mut stream = TcpStream::connect(service.address).await.expect("connects");
        let body = "a\n".repeat(bytes / 2);
        let head = format!("POST /other HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.expect("written");
        let mut first = [0; 512];
        let read = stream.read(&mut first).await.expect("an answer");
        check(&String::from_utf8_lossy(&first[..read]), 200, &["done\n"]);
        // Closed, or good for another request; never a refusal of what was fine.
        let mut second = String::new();
        let next = b"GET /other HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        if stream.write_all(next).await.is_ok() && stream.read_to_string(&mut second).await.is_ok() && !second.is_empty() {
            check(&second, 200, &["done\n"]);
        }
    }
}

/// Memory of an answer is given back soon although its client neither reads nor goes, and whoever reads gets all of it.
#[tokio::test]
async fn an_answer_that_nobody_reads_is_dropped() {
    let limits = Limits { answer_wait_max: Duration::from_secs(2), ..Limits::default() };
    let service = start(limits, Scope::All).await;
    let mut deaf = TcpStream::connect(service.address).await.expect("connects");
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let dropped = tokio::time::timeout(Duration::from_secs(20), service.go_on.notified()).await;
    assert!(dropped.is_ok(), "the answer is still held");
    let metrics = ask(service.address, "GET", "/metrics").await;
    check(&metrics, 200, &["weir_test_connections_timed_out_total 1\n", "weir_test_connections 1\n"]);

    // Taking a little now and then is no reading: 200 KB a second, where 256 KiB are asked for.
    let mut trickling = TcpStream::connect(service.address).await.expect("connects");
    trickling.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let takes = async {
        let mut piece = [0; 4_000];
        while trickling.read(&mut piece).await.is_ok_and(|read| read > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let dropped = tokio::select! {
        () = takes => true, // what the system held for it has come, too
        dropped = tokio::time::timeout(Duration::from_secs(30), service.go_on.notified()) => dropped.is_ok(),
    };
    assert!(dropped, "the answer is still held");

    let read = ask(service.address, "GET", "/large").await;
    assert!(read.len() > LARGE.len() && read.starts_with("HTTP/1.1 200 "));
    // Slower than the time for all of it, and not slower than its parts may be.
    let mut slow = TcpStream::connect(service.address).await.expect("connects");
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.expect("written");
    let (mut piece, mut taken) = (vec![0; 4 * 1024 * 1024], 0);
    loop {
        let read = slow.read(&mut piece).await.expect("not closed in between");
        if read == 0 {
            break;
        }
        taken += read;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(taken > LARGE.len(), "{taken} bytes");
}

/// Requests name the host that they want; see `service::hosts`.
#[tokio::test]
async fn requests_for_other_hosts_are_refused() {
    let service = start(Limits { hosts: Hosts::new(&["stats.example".to_owned()]), ..Limits::default() }, Scope::All).await;
    let send = async |head: &str| {
        let mut stream = TcpStream::connect(service.address).await.expect("connects");
        stream.write_all(format!("GET {head}\r\n\r\n").as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    };
    let refused = send("/other HTTP/1.1\r\nConnection: close\r\nHost: evil.example").await;
    check(&refused, 421, &["content-type: application/json\r\n", r#"{"error":{"code":"misdirected_request","message":"this"#]);
    check(&send("/other HTTP/1.1\r\nConnection: close\r\nHost: stats.example").await, 200, &["done\n"]);
    let unnamed = send("/other HTTP/1.0").await;
    assert!(unnamed.starts_with("HTTP/1.0 200 "), "{unnamed}");
    let metrics = ask(service.address, "GET", "/metrics").await;
    check(&metrics, 200, &["weir_test_misdirected_requests_total 1\n"]);
}

#[tokio::test]
async fn metrics_leave_an_address_that_others_reach() {
    let any = |ip: [u8; 4]| SocketAddr::from((ip, 0));
    let bind = async |public: [u8; 4], asked, usual| {
        let bound = Listener::bind_metrics(any(public), asked, usual).await;
        bound.map(|listener| listener.map(|listener| listener.address()))
    };
    let usual = Listener::bind(any([127, 0, 0, 1])).await.expect("a port");
    assert_eq!(bind([127, 0, 0, 1], None, usual.address()).await.expect("nothing to do"), None);
    let other = bind([0, 0, 0, 0], None, usual.address()).await.expect("another port").expect("its own");
    assert!(other.ip().is_loopback() && other != usual.address());
    let address = usual.address();
    bind([0, 0, 0, 0], Some(address), address).await.expect_err("an operator has asked for what is taken");
    drop(usual);
    assert_eq!(bind([0, 0, 0, 0], None, address).await.expect("is free"), Some(address));
}

#[tokio::test]
async fn a_page_says_which_build_it_is_of() {
    let service = start(Limits::default(), Scope::All).await;
    let page = ask(service.address, "GET", "/metrics").await;
    let expected = format!("weir_test_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION"));
    check(&page, 200, &[&expected, "# TYPE process_resident_memory_bytes gauge\n"]);
}
