//! What was measured of other collectors, and must not be so here: one test for each fault. Those that take Kafka are in
//! `weir/tests/it/peers.rs`. `cargo test peers` runs them all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::hardest::identity_holds;
use crate::senders::{SENDERS, Sender};
use crate::support::{Service, WRITE, gzip, send};

fn ten(sender: &Sender, bad: Option<String>) -> Vec<u8> {
    let mut events: Vec<String> = (0..10).map(|n| sender.event(n, &format!("user-{n}"), "")).collect();
    if let Some(bad) = bad {
        events[5] = bad;
    }
    sender.body(&events).into_bytes()
}

fn users(service: &Service) -> Vec<String> {
    service.log.events().into_iter().filter_map(|event| event.external_id).map(String::from).collect()
}

/// A peer answered 400, and five of the ten were in its topic.
#[tokio::test]
async fn peers_one_event_of_a_megabyte_among_ten_leaves_nine() {
    for sender in &SENDERS {
        let service = Service::start().await;
        let large = sender.event(5, "user-5", &format!(r#""text":"{}""#, "x".repeat(1_200_000)));
        let answer = sender.send(&service, &ten(sender, Some(large))).await;
        assert_eq!(sender.counts(&answer), (9, 1), "{}", sender.name);
        let expected: Vec<String> = (0..10).filter(|n| *n != 5).map(|n| format!("user-{n}")).collect();
        assert_eq!(users(&service), expected, "{}", sender.name);
        let told = if sender.is_strict { answer.native().2[0].1.clone() } else { service.log.rejected()[0].code.clone() };
        assert_eq!(told, "event_too_large", "{}", sender.name);
    }
}

/// Of a request that is refused, for whatever reason, nothing is in the log.
#[tokio::test]
async fn peers_a_refused_request_leaves_nothing() {
    for sender in &SENDERS {
        let whole = ten(sender, None);
        let many: Vec<String> = (0..2_501).map(|n| sender.event(n, "u", "")).collect();
        let mut torn = gzip(&whole);
        torn.truncate(torn.len() - 6);
        let unended = whole[..whole.len() - 2].to_vec();
        for (what, body) in
            [("torn gzip", torn), ("an array without its end", unended), ("2,501 events", sender.body(&many).into_bytes())]
        {
            let service = Service::start().await;
            let answer = sender.send(&service, &body).await;
            assert!((400..500).contains(&answer.status), "{}, {what}: {answer:?}", sender.name);
            assert!(service.log.records.lock().expect("nobody panicked").is_empty(), "{}, {what}", sender.name);
            assert_eq!(service.counter("weir_collector_events_received_total").await, 0, "{}, {what}", sender.name);
        }
        // No memory for what is made of it: refused after its events were read.
        let service = Service::with(|limits| limits.in_flight_bytes_max = whole.len().div_ceil(1024) * 1024).await;
        let answer = sender.send(&service, &whole).await;
        assert!(matches!(answer.status, 429 | 503), "{}: {answer:?}", sender.name);
        assert!(answer.header("retry-after").is_some(), "{}", sender.name);
        assert!(service.log.records.lock().expect("nobody panicked").is_empty(), "{}", sender.name);
        identity_holds(&service).await;
    }
}

/// A peer refused all ten, since the one "did not match any variant".
#[tokio::test]
async fn peers_one_bad_event_is_refused_alone_and_by_its_field() {
    for sender in &SENDERS {
        let service = Service::start().await;
        let answer = sender.send(&service, &ten(sender, Some(sender.event(5, "user-5", r#""number":1e400"#)))).await;
        assert_eq!(sender.counts(&answer), (9, 1), "{}", sender.name);
        assert_eq!(users(&service).len(), 9, "{}", sender.name);
        let (code, field, message) = match sender.is_strict {
            true => {
                let first = answer.json()["rejected"][0].clone();
                let text = |name: &str| first[name].as_str().expect("a text").to_owned();
                (text("code"), text("field"), text("message"))
            }
            false => {
                let kept = service.log.rejected().pop().expect("it is kept");
                (kept.code, kept.field, kept.message)
            }
        };
        assert_eq!(code, "number_out_of_range", "{}", sender.name);
        assert!(field.contains("number") && message.contains("1e400"), "{}: {field}: {message}", sender.name);
        assert!(sender.rejected_at(&answer).is_none_or(|at| at == 5), "{}: {answer:?}", sender.name);
    }
}

/// A peer stored it twice.
#[tokio::test]
async fn peers_one_id_twice_in_a_batch_is_stored_once() {
    for sender in SENDERS.iter().filter(|sender| sender.has_ids) {
        let service = Service::start().await;
        let answer = sender.send(&service, &ten(sender, Some(sender.event(2, "user-2", "")))).await;
        assert_eq!(sender.counts(&answer), (10, 0), "{}", sender.name);
        let mut each: BTreeMap<events::EventId, usize> = BTreeMap::new();
        service.log.events().iter().for_each(|event| *each.entry(event.event_id).or_default() += 1);
        assert_eq!((each.len(), each.values().max()), (9, Some(&1)), "{}", sender.name);
        assert_eq!(service.counter("weir_collector_events_duplicate_total").await, 1, "{}", sender.name);
    }
}

/// A peer's memory grew by the gigabyte that one megabyte became. What the process takes is measured in `weir/tests/it/hardest.rs`.
#[tokio::test]
async fn peers_a_megabyte_that_becomes_a_gigabyte_is_refused_on_the_way() {
    let bomb = gzip(&vec![b' '; 1_000_000_000]);
    assert!(bomb.len() < 1_100_000, "{}", bomb.len());
    for sender in &SENDERS {
        let service = Service::start().await;
        let answer = sender.send(&service, &bomb).await;
        // Whose key is in the body is asked for it first: nothing is inflated for those without one.
        assert!(matches!(answer.status, 400 | 401 | 413), "{}: {answer:?}", sender.name);
        for gauge in ["bodies_in_flight_bytes", "unauthenticated_bodies_in_flight_bytes"] {
            assert_eq!(service.counter(&format!("weir_collector_{gauge}")).await, 0, "{}", sender.name);
        }
        // Bombs in bombs, under whatever label.
        for label in ["gzip", "identity", "deflate, gzip", "gzip, gzip", "x-gzip", "br", "zstd"] {
            let nested = gzip(&bomb);
            let headers = [("Authorization", "Bearer wk_test"), ("Content-Encoding", label)];
            let answer = send(service.address(), "POST", "/v1/events", &headers, &nested).await;
            assert!(matches!(answer.status, 400 | 413 | 415), "{label}: {answer:?}");
            if sender.name != "native" {
                break;
            }
        }
        assert_eq!(service.counter("weir_collector_bodies_in_flight_bytes").await, 0, "{}", sender.name);
    }
}

/// A peer held slow heads and bodies open for ever: a thousand of each kind are closed by their deadlines, and whoever is quick is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_a_thousand_slow_heads_and_bodies_are_closed() {
    const EACH: usize = 250;
    let service = Service::with(|limits| {
        limits.head_wait_max = Duration::from_millis(1_500);
        limits.idle_max = Duration::from_millis(1_500);
        limits.body_wait_max = Duration::from_millis(3_000);
        limits.body_rate_grace = Duration::from_millis(1_500);
    })
    .await;
    let post = format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\n");
    let kinds = [
        String::new(),
        format!("{post}X: "),
        format!("{post}Content-Length: 100000\r\n\r\n{{"),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\n{{"),
    ];
    let mut slow = JoinSet::new();
    for number in 0..4 * EACH {
        let (address, beginning, is_silent) = (service.address(), kinds[number % 4].clone(), number % 8 < 4);
        slow.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("connects");
            stream.write_all(beginning.as_bytes()).await.expect("written");
            let mut bytes = [0; 512];
            let mut answer = Vec::new();
            for _ in 0..60 {
                match tokio::time::timeout(Duration::from_millis(500), stream.read(&mut bytes)).await {
                    Ok(Ok(0) | Err(_)) => return (number % 4, answer),
                    Ok(Ok(read)) => answer.extend_from_slice(&bytes[..read]),
                    // Half of them send a byte now and then.
                    Err(_) if !is_silent => drop(stream.write_all(b" ").await),
                    Err(_) => {}
                }
            }
            panic!("still open after 30 s: {beginning:?}");
        });
    }
    let mut good = 0;
    while !slow.is_empty() {
        assert_eq!(service.post(r#"{"type":"impression","user_id":"u"}"#).await.native().0, 1, "whoever is quick is answered");
        good += 1;
        while let Some(ended) = slow.try_join_next() {
            let (kind, answer) = ended.expect("it was closed");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(!answer.contains(" 200 "), "{answer}");
            // A body that is too slow is told so by name.
            assert!(kind < 2 || answer.starts_with("HTTP/1.1 408 "), "{kind}: {answer:?}");
        }
    }
    assert_eq!(users(&service).len(), good);
    let begun = Instant::now();
    while service.counter("weir_collector_connections").await > 1 {
        assert!(begun.elapsed() < Duration::from_secs(10), "connections are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(service.counter("weir_collector_bodies_in_flight_bytes").await, 0);
}

/// A peer waited for its hanging Redis with each request, one after the other. Here Postgres takes connections and says nothing: whose key is known
/// is answered all the while, and whose key is not is told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_a_database_that_hangs_stalls_nobody_whose_key_is_known() {
    let hanging = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("postgres://nobody@{}/none", hanging.local_addr().expect("is bound"));
    let accepting = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = hanging.accept().await {
            held.push(stream);
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_with_keys(folder, |config| config.database_url = url).await;
    let mut unknown = JoinSet::new();
    for number in 0..50 {
        let address = service.address();
        unknown.spawn(async move {
            let target = format!("/v1/events?key=nobodys-{number}");
            send(address, "POST", &target, &[], br#"{"type":"impression","user_id":"u"}"#).await
        });
    }
    let mut known = 0;
    while !unknown.is_empty() || known < 200 {
        assert_eq!(service.post(r#"{"type":"impression","user_id":"u"}"#).await.native().0, 1);
        known += 1;
        while let Some(answer) = unknown.try_join_next() {
            let answer = answer.expect("no panic");
            assert_eq!((answer.status, answer.code().as_str()), (503, "keys_unavailable"), "{answer:?}");
            assert!(answer.header("retry-after").is_some());
        }
    }
    assert_eq!(users(&service).len(), known);
    accepting.abort();
}
