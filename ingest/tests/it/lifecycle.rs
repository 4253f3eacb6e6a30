//! Health, stopping, and a log that fails.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eventlog::AppendError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Answer, Service, WRITE, send};

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;

#[tokio::test]
async fn a_log_that_fails_is_said_to_everybody() {
    let service = Service::start().await;
    let errors = [
        AppendError::Unavailable("disk full".to_owned()),
        AppendError::Unknown("timed out".to_owned()),
        AppendError::Stopped("broken".to_owned()),
    ];
    for error in errors {
        *service.log.fails.lock().expect("nobody panicked") = Some(error);
        let answer = service.post(EVENT).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "unavailable"));
        assert!(answer.header("retry-after").is_some());
        // What an operator may know is nothing for clients.
        assert!(!answer.body.contains("disk"), "{answer:?}");
        let answer = service.get(&format!("/v1/pixel.gif?key={WRITE}&type=impression&user_id=u")).await;
        assert_eq!((answer.status, answer.bytes.len()), (503, 43));
        let body = format!(r#"{{"writeKey":"{WRITE}","event":"e","userId":"u"}}"#);
        let answer = send(service.address(), "POST", "/v1/track", &[], body.as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (429, "unavailable"));
        assert!(answer.header("retry-after").is_some());
        assert_eq!(service.get("/readyz").await.status, 503);
        assert_eq!(service.get("/livez").await.status, 200);
    }
    *service.log.fails.lock().expect("nobody panicked") = None;
    assert_eq!(service.post(EVENT).await.native().0, 1);
    assert_eq!(service.get("/readyz").await.status, 200);
    assert_eq!(service.counter("weir_collector_events_deferred_total").await, 9);
    assert_eq!(service.counter("weir_collector_events_received_total").await, 10);
    assert_eq!(service.counter("weir_collector_append_failures_total{kind=\"unknown\"}").await, 3);
    assert_eq!(service.counter("weir_collector_requests_total{route=\"events\",status=\"503\"}").await, 3);
}

#[tokio::test]
async fn a_log_that_does_not_answer_is_given_up() {
    let service = Service::with(|limits| limits.append_wait_max = Duration::from_millis(100)).await;
    *service.log.delay.lock().expect("nobody panicked") = Duration::from_secs(30);
    assert_eq!(service.post(EVENT).await.status, 503);
    assert_eq!(service.counter("weir_collector_append_failures_total{kind=\"timeout\"}").await, 1);
}

#[tokio::test]
async fn metrics_may_have_an_address_of_their_own() {
    let service = Service::start().await;
    assert_eq!(service.get("/metrics").await.status, 200);
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = "postgres://nobody@127.0.0.1:1/none";
    let service = Service::start_in(folder, nowhere, |config| config.metrics = Some(([127, 0, 0, 1], 0).into())).await;
    assert_eq!(service.get("/metrics").await.status, 404);
    assert_eq!(service.get("/livez").await.status, 200);
    let metrics = service.collector.metrics_address().expect("is set");
    let get = async |target| send(metrics, "GET", target, &[], b"").await.status;
    assert_eq!(
        (get("/metrics").await, get("/livez").await, get("/readyz").await, get("/v1/pixel.gif").await),
        (200, 200, 503, 404)
    );
}

/// Who may send events need not read how many others send: where others reach the collector, its metrics are on loopback.
#[tokio::test]
async fn metrics_are_not_on_a_public_address() {
    let start = async || {
        let folder = tempfile::tempdir().expect("a folder");
        let nowhere = "postgres://nobody@127.0.0.1:1/none";
        Service::start_in(folder, nowhere, |config| config.collector = ([0, 0, 0, 0], 0).into()).await
    };
    // The second one of a machine does not find the usual port free, and starts all the same.
    let (one, other) = (start().await, start().await);
    let metrics = [&one, &other].map(|service| service.collector.metrics_address().expect("an address of its own"));
    assert_ne!(metrics[0], metrics[1]);
    for (service, metrics) in [&one, &other].into_iter().zip(metrics) {
        let public = ([127, 0, 0, 1], service.address().port()).into();
        assert_eq!(send(public, "GET", "/metrics", &[], b"").await.status, 404);
        assert_eq!(send(public, "GET", "/livez", &[], b"").await.status, 200);
        assert!(metrics.ip().is_loopback());
        assert_eq!(send(metrics, "GET", "/metrics", &[], b"").await.status, 200);
    }
}

/// A page of a foreign site may post events, as everybody who knows the key, but not read the numbers of a collector on loopback.
#[tokio::test]
async fn pages_of_others_do_not_read_the_metrics() {
    let service = Service::start().await;
    let ask = async |service: &Service, host: &str, method: &str, target: &str, body: &str| {
        let length = body.len();
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        crate::support::Answer::parse(&crate::support::raw(service.address(), request.as_bytes()).await)
    };
    let answer = ask(&service, "evil.example", "GET", "/metrics", "").await;
    assert_eq!((answer.status, answer.code().as_str()), (421, "misdirected_request"));
    assert_eq!(ask(&service, "evil.example", "GET", "/readyz", "").await.status, 421);
    let target = format!("/v1/events?key={WRITE}");
    assert_eq!(ask(&service, "shop.example", "POST", &target, EVENT).await.status, 200, "a proxy brings its own name");
    assert_eq!(ask(&service, "localhost:8080", "GET", "/metrics", "").await.status, 200);

    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = "postgres://nobody@127.0.0.1:1/none";
    let allowing = Service::start_in(folder, nowhere, |config| config.allow_hosts = vec!["shop.example".to_owned()]).await;
    assert_eq!(ask(&allowing, "shop.example", "GET", "/metrics", "").await.status, 200);
}

/// Where Prometheus' own checker is installed, it agrees.
#[tokio::test]
async fn promtool_accepts_the_page() {
    let service = Service::start().await;
    service.post(EVENT).await;
    let page = service.get("/metrics").await;
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let checker = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let Ok(mut checker) = checker else {
        eprintln!("skipped: promtool is not installed; names and help texts are checked by a unit test");
        return;
    };
    let mut input = checker.stdin.take().expect("was piped");
    std::io::Write::write_all(&mut input, page.body.as_bytes()).expect("written");
    drop(input);
    let output = checker.wait_with_output().expect("ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{}", page.body);
}

/// Clients with kept connections that send until they are told to close, or the listener is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_loses_nothing() {
    let service = Service::start().await;
    *service.log.delay.lock().expect("nobody panicked") = Duration::from_millis(5);
    let log = service.log.clone();
    let address = service.address();
    let stopped = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..32)
        .map(|client| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let (mut accepted, mut broken, mut n) = (Vec::new(), 0, 0);
                'connect: while !stopped.load(Ordering::Relaxed) {
                    let Ok(mut stream) = TcpStream::connect(address).await else { break };
                    loop {
                        n += 1;
                        let id = format!("{client}-{n}");
                        let body = format!(r#"{{"type":"impression","event_id":"{id}","user_id":"u"}}"#);
                        let length = body.len();
                        let request =
                            format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{body}");
                        let mut buffer = vec![0; 4096];
                        let written = stream.write_all(request.as_bytes()).await;
                        let read = stream.read(&mut buffer).await;
                        match (written, read) {
                            (Ok(()), Ok(read)) if read > 0 => {
                                let answer = Answer::parse(&buffer[..read]);
                                assert_eq!(answer.status, 200, "{answer:?}");
                                accepted.push(id);
                                if answer.header("connection") == Some("close") {
                                    continue 'connect;
                                }
                            }
                            _ => {
                                broken += 1;
                                continue 'connect;
                            }
                        }
                    }
                }
                (accepted, broken)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let start = Instant::now();
    service.collector.stop().await;
    let took = start.elapsed();
    stopped.store(true, Ordering::Relaxed);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let (mut accepted, mut broken) = (HashSet::new(), 0);
    for client in clients {
        let (ids, broke) = client.await.expect("no panic");
        accepted.extend(ids);
        broken += broke;
    }
    let stored: HashSet<_> = log.events().iter().map(|event| event.event_id).collect();
    let dialect = events::identity::Dialect::Native;
    let lost = accepted.iter().filter(|id| !stored.contains(&events::identity::event_id(dialect, id))).count();
    assert!(accepted.len() > 500, "{}", accepted.len());
    assert_eq!(lost, 0);
    // Connections that came while the listener closed may break; no client was told that its request was served.
    assert!(broken <= 64, "{broken}");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_stop_says_so_first_and_is_bounded() {
    let service = Service::with(|limits| {
        limits.linger = Duration::from_millis(300);
        limits.stop_wait_max = Duration::from_millis(900);
    })
    .await;
    let address = service.address();
    let log = service.log.clone();
    *log.delay.lock().expect("nobody panicked") = Duration::from_secs(60);
    let stuck = tokio::spawn(async move { crate::support::raw(address, &request()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    let stopping = tokio::spawn(service.collector.stop());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let answer = send(address, "GET", "/readyz", &[], b"").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("stopping"), "{answer:?}");
    stopping.await.expect("no panic");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(850) && took < Duration::from_secs(3), "{took:?}");
    // No answer is better than a false one.
    assert!(stuck.await.expect("no panic").is_empty());
}

fn request() -> Vec<u8> {
    let length = EVENT.len();
    format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{EVENT}").into_bytes()
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let service = Service::with(|limits| limits.connections_max = 2).await;
    let one = TcpStream::connect(service.address()).await.expect("connects");
    let two = TcpStream::connect(service.address()).await.expect("connects");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut three = TcpStream::connect(service.address()).await.expect("the kernel keeps it");
    three.write_all(&request()).await.expect("written");
    let mut buffer = [0; 1024];
    assert!(tokio::time::timeout(Duration::from_millis(200), three.read(&mut buffer)).await.is_err());
    drop((one, two));
    let read = tokio::time::timeout(Duration::from_secs(5), three.read(&mut buffer)).await.expect("its turn").expect("an answer");
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200 "));
}
