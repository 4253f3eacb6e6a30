//! Each limit at its last accepted value and one beyond.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{FEW, SERVER, SLOW, Service, WRITE, brotli, deflate, gzip, send, zlib, zstd};

/// A batch of that many events, padded to that many bytes.
fn batch(events: usize, bytes: usize) -> String {
    let one = |n| format!(r#"{{"type":"impression","user_id":"u{n}"}}"#);
    let events = (0..events).map(one).collect::<Vec<_>>().join(",");
    let body = format!("{{\"events\":[{events}]}}");
    let padding = " ".repeat(bytes.saturating_sub(body.len()));
    body + &padding
}

#[tokio::test]
async fn events_of_one_request() {
    let service = Service::start().await;
    assert_eq!(service.post(&batch(2_500, 0)).await.native().0, 2_500);
    let answer = service.post(&batch(2_501, 0)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_many_events"));
    let lines = "{\"type\":\"impression\",\"user_id\":\"u\"}\n".repeat(2_501);
    assert_eq!(service.post(&lines).await.status, 413);
    let calls = vec![r#"{"type":"page","userId":"u"}"#; 2_501].join(",");
    let body = format!("{{\"writeKey\":\"{WRITE}\",\"batch\":[{calls}]}}");
    let answer = send(service.address(), "POST", "/v1/batch", &[], body.as_bytes()).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "too_many_events"));
    assert_eq!(service.log.events().len(), 2_500);
}

#[tokio::test]
async fn bytes_of_a_body() {
    let service = Service::start().await;
    let max = 2 * 1024 * 1024;
    assert_eq!(service.post(&batch(1, max)).await.native().0, 1);
    let answer = service.post(&batch(1, max + 1)).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"));
    let answer = send(service.address(), "POST", "/v1/track", &[], &vec![b' '; max + 1]).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "body_too_large"));
    // Without a length it is counted on the way.
    let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, " ".repeat(64 * 1024)).repeat(33);
    let head =
        format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let bytes = crate::support::raw(service.address(), format!("{head}{chunk}0\r\n\r\n").as_bytes()).await;
    assert_eq!(crate::support::Answer::parse(&bytes).status, 413);
}

#[tokio::test]
async fn bytes_of_a_body_once_inflated() {
    let service = Service::start().await;
    let max = 10 * 1024 * 1024;
    let check = async |body: &[u8], label: Option<&str>, expected: u16| {
        let mut headers = vec![("Authorization", "Bearer wk_test")];
        headers.extend(label.map(|label| ("Content-Encoding", label)));
        let answer = send(service.address(), "POST", "/v1/events", &headers, body).await;
        assert_eq!(answer.status, expected, "{label:?} {answer:?}");
        answer
    };
    check(&gzip(batch(1, max).as_bytes()), Some("gzip"), 200).await;
    check(&gzip(batch(1, max + 1).as_bytes()), Some("gzip"), 413).await;
    // Labels are wrong in both directions.
    check(&gzip(batch(1, 0).as_bytes()), None, 200).await;
    check(batch(1, 0).as_bytes(), Some("gzip"), 200).await;
    check(&gzip(&gzip(batch(1, 0).as_bytes())), Some("gzip"), 400).await;
    check(&gzip(batch(1, 0).as_bytes())[..30], Some("gzip"), 400).await;
    check(b"hello", Some("gzip"), 400).await;
    check(batch(1, 0).as_bytes(), Some("br"), 200).await;
    for label in ["snappy", "gzip, br", "gzip,gzip"] {
        let answer = check(batch(1, 0).as_bytes(), Some(label), 415).await;
        assert_eq!(answer.code(), "unsupported_encoding");
    }
    // 500 MB of nothing in half a megabyte.
    check(&gzip(&vec![0; 500_000_000]), Some("gzip"), 413).await;
    assert_eq!(service.counter("weir_collector_bodies_in_flight_bytes").await, 0);
}

/// Whatever the encoding: as many bytes as accepted, one more, a bomb, and an end that is missing; in every dialect, and to be checked only.
#[tokio::test]
async fn bytes_of_a_body_in_each_encoding() {
    let service = Service::with(|limits| limits.decoded_bytes_max = 100_000).await;
    type Encoder = (&'static str, fn(&[u8]) -> Vec<u8>);
    let encoders: [Encoder; 5] = [("gzip", gzip), ("deflate", zlib), ("deflate", deflate), ("br", brotli), ("zstd", zstd)];
    for (label, encode) in encoders {
        let post =
            async |target: &str, body: &[u8]| send(service.address(), "POST", target, &[("Content-Encoding", label)], body).await;
        let events = "/v1/events?key=wk_test";
        assert_eq!(post(events, &encode(batch(1, 100_000).as_bytes())).await.native().0, 1, "{label}");
        for bytes in [100_001, 3_000_000] {
            let answer = post(events, &encode(batch(1, bytes).as_bytes())).await;
            assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"), "{label} {bytes}");
        }
        let whole = encode(batch(40, 0).as_bytes());
        let answer = post(events, &whole[..whole.len() - 9]).await;
        assert_eq!((answer.status, answer.code()), (400, format!("bad_{label}")), "{answer:?}");
        let track = r#"{"event":"e","userId":"u","writeKey":"wk_test"}"#;
        let capture = r#"{"event":"e","distinct_id":"u","api_key":"wk_test"}"#;
        let tracked = r#"{"schema":"s","data":[{"e":"pv","aid":"wk_test","uid":"u"}]}"#;
        let logged = r#"{"events":[{"eventName":"e","user":{"userID":"u"}}]}"#;
        for (target, body) in [
            ("/v1/track", track),
            ("/api/s/track", track),
            ("/e/", capture),
            ("/com.snowplowanalytics.snowplow/tp2", tracked),
            ("/v1/log_event?k=wk_test", logged),
            ("/track?client_key=wk_test", r#"[{"event_name":"e","user_id":"u"}]"#),
            ("/validate?key=wk_test", track),
            ("/v1/pixel.gif?key=wk_test", "type=impression&user_id=u"),
        ] {
            let before = service.log.events().len();
            let answer = post(target, &encode(body.as_bytes())).await;
            assert!(matches!(answer.status, 200 | 202), "{label} {target}: {answer:?}");
            let is_dry = target.starts_with("/validate");
            assert_eq!(service.log.events().len() - before, usize::from(!is_dry), "{label} {target}");
        }
    }
    for gauge in ["weir_collector_bodies_in_flight_bytes", "weir_collector_unauthenticated_bodies_in_flight_bytes"] {
        assert_eq!(service.counter(gauge).await, 0, "{gauge}");
    }
}

#[tokio::test]
async fn bytes_of_the_head() {
    let service = Service::start().await;
    let target = |bytes: usize| {
        let target = format!("/v1/events?key={WRITE}&pad=");
        let padding = "x".repeat(bytes - target.len());
        target + &padding
    };
    let post = async |target: String| send(service.address(), "POST", &target, &[], batch(1, 0).as_bytes()).await.status;
    assert_eq!(post(target(4 * 1024)).await, 200);
    assert_eq!(post(target(4 * 1024 + 1)).await, 414);
    let pixel = format!("/v1/pixel.gif?key={WRITE}&type=impression&pad={}", "x".repeat(4 * 1024));
    let answer = service.get(&pixel).await;
    assert_eq!((answer.status, answer.bytes.len()), (200, 43));
    assert!(answer.header("x-weir-error").is_some_and(|error| error.starts_with("uri_too_long: ")), "{answer:?}");

    let headers = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    let get = async |headers: String| {
        let request = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        crate::support::Answer::parse(&crate::support::raw(service.address(), request.as_bytes()).await).status
    };
    assert_eq!(get(headers(62)).await, 200);
    assert_eq!(get(headers(63)).await, 431);
    assert_eq!(get(format!("x: {}\r\n", "y".repeat(15 * 1024))).await, 200);
    assert_eq!(get(format!("x: {}\r\n", "y".repeat(17 * 1024))).await, 431);
}

#[tokio::test]
async fn memory_of_all_bodies() {
    let service = Service::with(|limits| limits.in_flight_bytes_max = 64 * 1024).await;
    assert_eq!(service.post(&batch(0, 64 * 1024)).await.native().0, 0);
    // Records are counted beside the body they are made of.
    for beyond in [batch(0, 64 * 1024 + 1), batch(1, 64 * 1024)] {
        assert_eq!(service.post(&beyond).await.status, 503);
    }
    let answer = service.post(&batch(0, 64 * 1024 + 1)).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    let body = format!("{{\"writeKey\":\"{WRITE}\",\"batch\":[]{}}}", " ".repeat(64 * 1024));
    let answer = send(service.address(), "POST", "/v1/batch", &[], body.as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")));
    // A small body that grows is counted too.
    let answer = send(service.address(), "POST", "/v1/events?key=wk_test", &[], &gzip(batch(1, 80 * 1024).as_bytes())).await;
    assert_eq!(answer.status, 503);
    assert_eq!(service.post(&batch(1, 0)).await.native().0, 1);
    assert_eq!(service.counter("weir_collector_backpressure_total{reason=\"memory\"}").await, 5);
}

/// Bodies that need long wait for their turn, and all others do not wait for these.
#[tokio::test]
async fn turns_of_large_bodies() {
    let service = Service::with(|limits| (limits.computing_max, limits.computing_waiting_max) = (0, 4)).await;
    let large = batch(1, 200 * 1024);
    // Of few bytes, but each event is refused with its reasons.
    let many = format!("[{}]", vec!["{}"; 2_500].join(","));
    for long in [&large, &many, &large] {
        let waits = tokio::time::timeout(std::time::Duration::from_millis(300), service.post(long)).await;
        assert!(waits.is_err(), "nobody has processed it");
    }
    assert_eq!(service.post(&batch(100, 0)).await.native().0, 100);
    assert_eq!(service.post(&batch(1, 0)).await.native().0, 1);
    // Who finds no place is told.
    let service = Service::with(|limits| (limits.computing_max, limits.computing_waiting_max) = (0, 0)).await;
    let answer = service.post(&large).await;
    assert_eq!((answer.status, answer.code().as_str(), answer.header("retry-after")), (503, "overloaded", Some("1")));
    let compressed = gzip(&vec![b' '; 2 * 1024 * 1024]);
    assert_eq!(send(service.address(), "POST", "/v1/events?key=wk_test", &[], &compressed).await.status, 503);
    assert_eq!(service.post(&batch(1, 0)).await.native().0, 1);
    assert_eq!(service.counter("weir_collector_backpressure_total{reason=\"queue\"}").await, 2);
}

#[tokio::test]
async fn rates_of_a_key() {
    let service = Service::start().await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(service.post_with(SLOW, &batch(1, 0)).await.status);
    }
    // Two seconds' worth at once, then the rate.
    assert_eq!(statuses, [200, 200, 200, 200, 429, 429]);
    let answer = service.get(&format!("/v1/pixel.gif?key={SLOW}&type=impression&user_id=u")).await;
    assert_eq!((answer.status, answer.bytes.len(), answer.header("retry-after")), (503, 43, Some("1")));

    assert_eq!(service.post_with(FEW, &batch(120, 0)).await.status, 200);
    let answer = service.post_with(FEW, &batch(1, 0)).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"));
    let seconds: u64 = answer.header("retry-after").expect("is said").parse().expect("a number");
    assert!((9..=11).contains(&seconds), "{seconds}");
    assert_eq!(service.post(&batch(120, 0)).await.status, 200);
    assert_eq!(service.counter("weir_collector_events_deferred_total").await, 1);
}

/// What is stored counts, not what is sent: a small compressed body makes thousands of records.
#[tokio::test]
async fn bytes_of_a_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_with_keys(folder, |config| config.key_bytes_per_second_max = 100_000).await;
    let body = gzip(batch(2_500, 0).as_bytes());
    assert!(body.len() < 20_000, "{}", body.len());
    let post = async |key: &str| send(service.address(), "POST", &format!("/v1/events?key={key}"), &[], &body).await;
    assert_eq!(post(WRITE).await.status, 200);
    let stored: usize = service.log.records.lock().expect("nobody panicked").iter().map(|record| record.bytes().len()).sum();
    assert!(stored > 300_000, "{stored}");
    let answer = post(WRITE).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "rate_limited"));
    // What was stored beyond two seconds' worth, at the rate.
    let expected = (stored as f64 - 200_000.0) / 100_000.0;
    let seconds: f64 = answer.header("retry-after").expect("is said").parse().expect("a number");
    assert!(seconds <= expected.ceil() + 1.0 && seconds >= 1.0, "{seconds} of {expected}");
    let answer = send(service.address(), "POST", &format!("/v1/page?writeKey={WRITE}"), &[], b"{\"userId\":\"u\"}").await;
    assert_eq!(answer.status, 429);
    assert_eq!(service.get(&format!("/v1/pixel.gif?key={WRITE}&type=impression&user_id=u")).await.status, 503);
    assert_eq!(service.counter("weir_collector_backpressure_total{reason=\"bytes\"}").await, 3);
    for _ in 0..3 {
        assert_eq!(post(SERVER).await.status, 200, "server keys have no such limit");
    }
}

/// A body of two kilobytes whose 2,500 events are all rejected: its answer names each, and is bounded.
#[tokio::test]
async fn bytes_of_answers() {
    let service = Service::with(|limits| limits.answers_bytes_max = 1024 * 1024).await;
    let events = vec!["{}"; 2_500].join(",");
    let body = gzip(format!("[{events}]").as_bytes());
    let request = |connection: &str| {
        let head = format!(
            "POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), &body].concat()
    };
    let answer = crate::support::Answer::parse(&crate::support::raw(service.address(), &request("close")).await);
    assert_eq!(answer.status, 200);
    assert!(answer.bytes.len() < 250_000, "{}", answer.bytes.len());
    let (_, _, rejected) = answer.native();
    let mut indices: Vec<u64> = rejected.iter().map(|(index, _, _)| *index).collect();
    indices.dedup();
    assert_eq!(indices, (0..2_500).collect::<Vec<_>>());

    // Clients that ask again and again, and read nothing.
    let many = request("keep-alive").repeat(60);
    let mut unread = Vec::new();
    for _ in 0..8 {
        let (reader, mut writer) = tokio::net::TcpStream::connect(service.address()).await.expect("connects").into_split();
        let many = many.clone();
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(&many).await;
            writer
        });
        unread.push((reader, writing));
    }
    let used = async || service.counter("weir_collector_answers_in_flight_bytes").await;
    let began = std::time::Instant::now();
    while used().await < 512 * 1024 {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "no answer waits");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        assert!(used().await <= 1024 * 1024);
        assert_eq!(service.post(&batch(10, 0)).await.native().0, 10, "others do not notice");
    }
    assert!(service.counter("weir_collector_backpressure_total{reason=\"memory\"}").await > 0);
    for (mut reader, writing) in unread {
        writing.abort();
        drop(reader.read(&mut [0; 16]).await);
    }
    let began = std::time::Instant::now();
    while used().await > 0 {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{} bytes are still reserved", used().await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// A public key that has used up the names leaves room for those that a server key brings.
#[tokio::test]
async fn names_of_server_keys() {
    let limit = |limits: &mut ingest::Limits| (limits.event_names_max, limits.event_names_reserve) = (3, 2);
    let service = Service::with(limit).await;
    let batch = |names: &[&str]| {
        let event = |name: &&str| format!(r#"{{"type":"conversion","name":"{name}","user_id":"u"}}"#);
        format!("[{}]", names.iter().map(event).collect::<Vec<_>>().join(","))
    };
    let accepted = async |key: &str, names: &[&str]| service.post_with(key, &batch(names)).await.native().0;
    assert_eq!(accepted(WRITE, &["a", "b", "c", "d"]).await, 3);
    assert_eq!(accepted(SERVER, &["e", "f", "g"]).await, 2);
    assert_eq!(accepted(WRITE, &["h"]).await, 0);
    assert_eq!(accepted(WRITE, &["e"]).await, 1, "who is known goes on");
    let refused = service.post_with(WRITE, &batch(&["h"])).await.json();
    let message = refused["rejected"][0]["message"].as_str().expect("a message");
    assert!(message.contains("at most 3 are accepted from a public key"), "{message}");
}

#[tokio::test]
async fn names_of_events() {
    let service = Service::with(|limits| limits.event_names_max = 3).await;
    let event = |kind: &str, name: &str| format!(r#"{{"type":"{kind}","name":"{name}","user_id":"u","campaign":"c"}}"#);
    let batch = ["a", "b", "a", "c", "d", "e"].map(|name| event("engagement", name)).join(",");
    let (accepted, _, rejected) = service.post(&format!("[{batch}]")).await.native();
    let rejected: Vec<_> = rejected.iter().map(|(index, code, field)| format!("{index} {code} {field}")).collect();
    assert_eq!((accepted, rejected), (4, vec!["4 cardinality_limit name".to_owned(), "5 cardinality_limit name".to_owned()]));
    // Names that are there go on, in any kind; a fixed list needs no limit.
    let batch = [event("conversion", "c"), event("conversion", "f"), event("campaign_event", "click")].join(",");
    let (accepted, _, rejected) = service.post(&format!("[{batch}]")).await.native();
    assert_eq!((accepted, rejected.len()), (2, 1));
}
