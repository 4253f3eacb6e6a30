//! Against servers that do what the test says.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;

/// How a server reacts to a request.
enum Reaction {
    /// With a status and a body; `N` in it stands for the number of events.
    Answer(u16, &'static str),
    /// By closing the connection.
    Close,
}

const ACCEPT: Reaction = Reaction::Answer(200, r#"{"accepted":N,"duplicate":0,"rejected":[]}"#);

/// What a server has seen: for each event id its weight, and how often it was acknowledged.
type Seen = Arc<Mutex<BTreeMap<String, (u64, u32)>>>;

/// Starts a server in a thread of its own; `react` gets the request's number.
fn server<R, F>(react: R) -> (SocketAddr, Seen)
where
    R: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = Reaction> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("non-blocking");
    let address = listener.local_addr().expect("an address");
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (react, number) = (Arc::new(react), Arc::new(AtomicU64::new(0)));
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (react, number, seen) = (Arc::clone(&react), Arc::clone(&number), Arc::clone(&kept));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (react, number, seen) = (Arc::clone(&react), Arc::clone(&number), Arc::clone(&seen));
                    async move {
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        let body: Value = serde_json::from_slice(&body).expect("JSON");
                        let events = body["events"].as_array().expect("events");
                        match react(number.fetch_add(1, Ordering::Relaxed)).await {
                            Reaction::Close => Err("closed on purpose"),
                            Reaction::Answer(status, text) => {
                                for event in events {
                                    let id = event["event_id"].as_str().expect("an id").to_owned();
                                    let weight = event["properties"]["weight"].as_u64().expect("a weight");
                                    seen.lock().expect("no panic").entry(id).or_insert((weight, 0)).1 += u32::from(status == 200);
                                }
                                let body = Full::new(Bytes::from(text.replace('N', &events.len().to_string())));
                                Ok(Response::builder().status(status).body(body).expect("an answer"))
                            }
                        }
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
    });
    (address, seen)
}

fn options(address: SocketAddr) -> Options {
    Options {
        connections: 4,
        events_per_request: 5,
        rate: 2_000.0,
        seconds: 0.5,
        seed: Some(3),
        ..Options::new(&format!("http://{address}"), "key")
    }
}

#[test]
fn what_is_acknowledged_is_what_was_sent() {
    let (address, seen) = server(async |_| ACCEPT);
    let folder = tempfile::tempdir().expect("a folder");
    let ledger = folder.path().join("ledger");
    let options = Options { ledger: Some(ledger.clone()), ..options(address) };
    let report = run(&options).expect("runs");
    let seen = seen.lock().expect("no panic").clone();
    assert_eq!((report.acknowledged, report.unknown, report.refused, report.unsent), (1_000, 0, 0, 0), "{report}");
    assert_eq!((seen.len(), report.latency.count()), (1_000, 200));
    assert_eq!(report.weight, seen.values().map(|(weight, _)| u128::from(*weight)).sum());
    assert!((0.45..5.0).contains(&report.seconds), "{report}");

    let lines = std::fs::read_to_string(ledger).expect("a ledger");
    let mut found = BTreeMap::new();
    for line in lines.lines() {
        let [state, id, kind, timestamp, weight] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!(state, "acknowledged");
        assert!(kind == "impression" || kind == "conversion", "{line}");
        assert!(Micros::parse(timestamp).is_ok(), "{line}");
        found.insert(id.to_owned(), (weight.parse().expect("a number"), 1));
    }
    assert_eq!(found, seen);

    // The same seed sends the same events.
    let again = run(&Options { ledger: None, ..options }).expect("runs");
    assert_eq!(again.weight, report.weight);
}

#[test]
fn retries_send_the_same_events_until_they_are_acknowledged() {
    let (address, seen) = server(async |number| match number % 4 {
        0 => Reaction::Close,
        1 => Reaction::Answer(503, r#"{"error":{"code":"log_unavailable"}}"#),
        2 => Reaction::Answer(429, r#"{"error":{"code":"too_fast"}}"#),
        _ => ACCEPT,
    });
    let options = Options { rate: 1_000.0, seconds: 0.1, retry: true, ..options(address) };
    let report = run(&options).expect("runs");
    assert_eq!((report.acknowledged, report.unknown, report.refused), (100, 0, 0), "{report}");
    assert!(report.retries >= 60 && report.trouble.values().sum::<u64>() == report.retries, "{report}");
    let seen = seen.lock().expect("no panic").clone();
    assert_eq!(seen.len(), 100);
    assert!(seen.values().all(|(_, acknowledged)| *acknowledged == 1));
}

#[test]
fn outcomes_are_told_apart() {
    let check = |reaction: fn() -> Reaction, expected: (u64, u64, u64), trouble: &str| {
        let (address, _) = server(move |_| std::future::ready(reaction()));
        let report = run(&Options { rate: 200.0, seconds: 0.1, ..options(address) }).expect("runs");
        assert_eq!((report.acknowledged, report.refused, report.unknown), expected, "{report}");
        let found: Vec<_> = report.trouble.keys().collect();
        assert!(found.len() == 1 && found[0].starts_with(trouble), "{found:?} is not {trouble}");
    };
    check(|| Reaction::Answer(401, r#"{"error":{"code":"unknown_key"}}"#), (0, 20, 0), "401 unknown_key");
    check(|| Reaction::Answer(500, ""), (0, 0, 20), "500 without a code");
    check(|| Reaction::Close, (0, 0, 20), "");
    check(|| Reaction::Answer(200, r#"{"accepted":4,"duplicate":1,"rejected":[]}"#), (0, 0, 20), "200 wrong counts");
    let partly = r#"{"accepted":4,"duplicate":0,"rejected":[{"index":2,"code":"too_precise","field":"value","message":""}]}"#;
    let (address, _) = server(move |_| std::future::ready(Reaction::Answer(200, partly)));
    let report = run(&Options { rate: 200.0, seconds: 0.1, ..options(address) }).expect("runs");
    assert_eq!((report.acknowledged, report.refused, report.unknown), (16, 4, 0), "{report}");
}

#[test]
fn nobody_listening_is_a_refusal() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let report = run(&Options { rate: 200.0, seconds: 0.1, ..options(address) }).expect("runs");
    assert_eq!((report.acknowledged, report.refused, report.unknown), (0, 20, 0), "{report}");
}

/// A server that stands still for half a second is charged for all that was due meanwhile, not for one request.
#[test]
fn a_stall_is_charged_to_every_request_that_waits() {
    let (address, _) = server(async |number| {
        if number == 20 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        ACCEPT
    });
    let options = Options { connections: 1, events_per_request: 1, rate: 100.0, seconds: 1.0, threads: 1, ..options(address) };
    let report = run(&options).expect("runs");
    assert_eq!(report.acknowledged, 100, "{report}");
    // 50 requests were due during the stall, and half of them waited for 250 ms and more.
    assert!(report.latency.quantile(0.80) >= Duration::from_millis(200), "{report}");
    assert!(report.latency.max() >= Duration::from_millis(490), "{report}");
}

#[test]
fn senseless_options_are_refused() {
    let check = |options: Options, expected: &str| {
        let error = run(&options).expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let good = options(SocketAddr::from(([127, 0, 0, 1], 1)));
    check(Options { connections: 0, ..good.clone() }, "at least 1");
    check(Options { rate: f64::NAN, ..good.clone() }, "numbers are accepted");
    check(Options { seconds: 0.0, ..good.clone() }, "seconds above 0");
    check(Options { url: "https://127.0.0.1:1".into(), ..good.clone() }, "http://127.0.0.1:8080 is accepted");
    check(Options { key: "line\nbreak".into(), ..good }, "no header's text");
}
