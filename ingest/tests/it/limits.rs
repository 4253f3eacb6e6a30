//! Each limit at its last accepted value and one beyond.

use crate::support::{FEW, SLOW, Service, WRITE, gzip, send};

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
    let answer = check(batch(1, 0).as_bytes(), Some("br"), 415).await;
    assert_eq!(answer.code(), "unsupported_encoding");
    // 500 MB of nothing in half a megabyte.
    check(&gzip(&vec![0; 500_000_000]), Some("gzip"), 413).await;
    assert_eq!(service.counter("weir_collector_bodies_in_flight_bytes").await, 0);
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
        let request = format!("GET /livez HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{headers}\r\n");
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
