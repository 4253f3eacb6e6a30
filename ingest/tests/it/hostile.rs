//! Clients that are slow, broken or malicious, and others that must not notice.

use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::senders::{SENDERS, Sender};
use crate::support::{Service, WRITE, raw, send};

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;

/// Sends a beginning, then a byte in each interval, and returns when the other side closed.
async fn drip(service: &Service, beginning: &str, then: u8, every: Duration) -> Duration {
    let mut stream = TcpStream::connect(service.address()).await.expect("connects");
    stream.write_all(beginning.as_bytes()).await.expect("written");
    let start = Instant::now();
    let mut buffer = [0; 1024];
    while start.elapsed() < Duration::from_secs(10) {
        match tokio::time::timeout(every, stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return start.elapsed(),
            Ok(Ok(_)) => continue,
            Err(_) if stream.write_all(&[then]).await.is_err() => return start.elapsed(),
            Err(_) => {}
        }
    }
    panic!("still open after 10 seconds: {beginning:?}");
}

#[tokio::test]
async fn slow_clients_are_closed_and_good_ones_do_not_notice() {
    let service = Service::with(|limits| {
        limits.head_wait_max = Duration::from_millis(400);
        limits.idle_max = Duration::from_millis(800);
        limits.body_wait_max = Duration::from_millis(900);
        limits.body_rate_grace = Duration::from_millis(400);
    })
    .await;
    let every = Duration::from_millis(50);
    let post = format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\n");
    let silent = "";
    let head = format!("{post}X: ");
    let body = format!("{post}Content-Length: 1000\r\n\r\n{{");
    let chunks = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
    let keep_alive = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let next_head = format!("{keep_alive}GET /livez HTTP/1.1\r\nX: ");
    let at_once = Instant::now();
    let check = |took: Duration, limit: u64| {
        let limit = Duration::from_millis(limit);
        assert!(took >= limit - Duration::from_millis(60) && took < limit + Duration::from_secs(2), "{took:?}, limit {limit:?}");
    };
    let never = Duration::from_secs(60).min(Duration::from_secs(5));
    let (silent, head, body, chunks, idle, next_head, good) = tokio::join!(
        drip(&service, silent, b'x', never),
        drip(&service, &head, b'x', every),
        drip(&service, &body, b' ', every),
        drip(&service, &chunks, b'0', every),
        drip(&service, keep_alive, b'x', never),
        drip(&service, &next_head, b'x', every),
        async {
            for _ in 0..20 {
                assert_eq!(service.post(EVENT).await.native().0, 1);
            }
            at_once.elapsed()
        },
    );
    check(silent, 400);
    check(head, 400);
    check(body, 400);
    check(chunks, 400);
    check(idle, 800);
    check(next_head, 400);
    assert!(good < Duration::from_millis(2_000), "{good:?}");
    assert!(service.counter("weir_collector_connections_timed_out_total").await >= 4);
    let page = service.get("/metrics").await.body;
    assert!(page.contains("weir_collector_connections 1\n"), "{page}");
    assert_eq!(service.log.events().len(), 20);
}

/// Each text gets at most one answer, and what follows the first request is never read as a second one.
#[tokio::test]
async fn no_request_hides_in_another() {
    let service = Service::start().await;
    let hidden = format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{EVENT}", EVENT.len());
    let post = "POST /v1/events?key=wk_test HTTP/1.1\r\nHost: t\r\n";
    let corpus = [
        // Two lengths, and a length beside chunks, in both orders.
        format!("{post}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{hidden}", hidden.len()),
        format!("{post}Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}", hidden.len() + 5),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{hidden}"),
        // Codings that only look like chunked.
        format!("{post}Transfer-Encoding: xchunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n{hidden}"),
        format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}"),
        // Lengths that are none.
        format!("{post}Content-Length: +0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 0x0\r\n\r\n{hidden}"),
        format!("{post}Content-Length: 18446744073709551617\r\n\r\n{hidden}"),
        // A chunk's length beyond all lengths.
        format!("{post}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff1\r\n\r\n{hidden}"),
        // Chunks in a version that has none.
        format!("POST /v1/events?key=wk_test HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
    ];
    for text in corpus {
        let mut stream = TcpStream::connect(service.address()).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("half closed");
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await;
        let answers = String::from_utf8_lossy(&bytes).matches("HTTP/1.").count();
        let first = String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned();
        assert!(answers <= 1, "{answers} answers to {text:?}");
        assert!(!first.contains(" 200 "), "{first} to {text:?}");
        assert_eq!(service.log.events().len(), 0, "{text:?}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_request_get_no_more_than_an_answer() {
    let service = Service::start().await;
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: t\r\nX: \x00\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"POST /v1/events?key=wk_test HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\n{",
    ] {
        let mut stream = TcpStream::connect(service.address()).await.expect("connects");
        stream.write_all(bytes).await.expect("written");
        stream.shutdown().await.expect("half closed");
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "still open after {bytes:?}");
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{answer:?}");
    }
    assert_eq!(service.post(EVENT).await.native().0, 1);
}

#[tokio::test]
async fn users_text_stays_out_of_headers() {
    let service = Service::start().await;
    let answer = service.get("/v1/pixel.gif?key=wk_test&user_id=u&type=%0d%0aSet-Cookie:%20a=b").await;
    assert_eq!((answer.status, answer.header("set-cookie")), (200, None));
    assert!(answer.header("x-weir-error").is_some_and(|text| text.starts_with("unknown_type: ")), "{answer:?}");
}

#[tokio::test]
async fn half_a_close_still_gets_its_answer() {
    let service = Service::start().await;
    *service.log.delay.lock().expect("nobody panicked") = Duration::from_millis(200);
    let mut stream = TcpStream::connect(service.address()).await.expect("connects");
    let request = format!("POST /v1/events?key={WRITE} HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{EVENT}", EVENT.len());
    stream.write_all(request.as_bytes()).await.expect("written");
    stream.shutdown().await.expect("half closed");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer");
    assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&bytes));
}

#[tokio::test]
async fn a_refusal_is_heard_over_a_body_that_is_still_coming() {
    let service = Service::start().await;
    let body = "x".repeat(1_500_000);
    let head = format!("POST /v1/events HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let answer = crate::support::Answer::parse(&raw(service.address(), format!("{head}{body}").as_bytes()).await);
    assert_eq!((answer.status, answer.code().as_str()), (401, "missing_key"));
    // Who asks first is told without having sent.
    let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    let answer = crate::support::Answer::parse(&raw(service.address(), head.as_bytes()).await);
    assert_eq!(answer.status, 401);
}

/// A small request must not become a huge one on its way: what a batch says once is copied into all its events.
#[tokio::test]
async fn what_is_said_once_for_all_is_bounded() {
    let service = Service::with(|limits| limits.in_flight_bytes_max = 4 * 1024 * 1024).await;
    let post = async |shared: usize| {
        let items = vec![r#"{"type":"page","userId":"u"}"#; 2_500].join(",");
        let context = format!(r#"{{"a":"{0}","b":"{0}"}}"#, "x".repeat(shared / 2));
        let body = format!(r#"{{"writeKey":"{WRITE}","context":{context},"batch":[{items}]}}"#);
        send(service.address(), "POST", "/v1/batch", &[], body.as_bytes()).await
    };
    assert_eq!(post(200).await.status, 200);
    let answer = post(17_000).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_body"));
    let answer = post(8_000).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "overloaded"));
    assert_eq!(service.log.events().len(), 2_500);
    assert_eq!(service.counter("weir_collector_bodies_in_flight_bytes").await, 0);
}

/// Members are compared with each other: many of them must not cost their square.
#[tokio::test]
async fn many_members_are_refused_quickly() {
    let service = Service::start().await;
    let members = (0..6_000).map(|n| format!("\"{n:x}\":1")).collect::<Vec<_>>().join(",");
    let event = format!(r#"{{"type":"impression","user_id":"u",{members}}}"#);
    let native = format!("{{\"events\":[{}]}}", vec![event; 20].join(","));
    let event = format!(r#"{{"type":"track","event":"e","userId":"u","properties":{{{members}}}}}"#);
    let traits = format!(r#"{{"type":"track","event":"e","userId":"u",{members}}}"#);
    let context = format!(r#"{{"type":"track","event":"e","userId":"u","context":{{{members}}}}}"#);
    let segment = format!("{{\"writeKey\":\"{WRITE}\",\"batch\":[{}]}}", [event, traits, context].join(","));
    let start = Instant::now();
    let answer = service.post(&native).await;
    assert_eq!(answer.native().2.len(), 20);
    let answer = send(service.address(), "POST", "/v1/batch", &[], segment.as_bytes()).await;
    assert_eq!((answer.status, answer.header("x-events-rejected")), (200, Some("3")));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(service.counter("weir_collector_events_rejected_total{code=\"too_many_keys\"}").await, 23);
}

/// Whoever has no key takes nothing from those who have one: neither their memory, nor their processor.
#[tokio::test]
async fn without_a_key_there_is_little_to_take() {
    let service = Service::with(|limits| limits.unauthenticated_bytes_max = 1 << 20).await;
    // Bodies that stop one byte short hold what there is for them, each nearly half a megabyte.
    let declared = 500_000;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(service.address()).await.expect("connects");
        let head = format!("POST /v1/batch HTTP/1.1\r\nHost: a\r\nContent-Length: {declared}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        // Refused for want of room while it is still sending.
        let _ = stream.write_all(&vec![b' '; declared - 1]).await;
        stalled.push(stream);
    }
    let mine = [("Authorization", "Basic d2tfdGVzdDo=")];
    let call = br#"{"type":"track","event":"Ordered","userId":"u","messageId":"m"}"#;
    let batch = [b"{\"batch\":[".as_slice(), call, b"]}"].concat();
    assert_eq!(send(service.address(), "POST", "/v1/batch", &mine, &batch).await.status, 200);
    assert!(service.counter("weir_collector_bodies_in_flight_bytes").await < 64 * 1024, "the memory of others");
    drop(stalled);

    // A bomb without a key is not inflated: ten kilobytes that would be ten megabytes.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&vec![0xff; 10 << 20]).expect("a Vec takes every byte");
    let bomb = encoder.finish().expect("a Vec takes every byte");
    until_room(&service).await;
    let before = service.counter("weir_collector_request_decoded_bytes_count").await;
    for _ in 0..25 {
        let headers = [("Content-Encoding", "gzip")];
        let answer = send(service.address(), "POST", "/v1/batch", &headers, &bomb).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_key"));
    }
    assert_eq!(service.counter("weir_collector_request_decoded_bytes_count").await, before);

    // The key in the body of a batch that is longer than what is looked at, before it and after it.
    let long = |first: &str, last: &str| {
        format!("{{{first}\"batch\":[{{\"type\":\"track\",\"event\":\"{}\",\"userId\":\"u\"}}]{last}}}", "e".repeat(70_000))
    };
    let key = "\"writeKey\":\"wk_test\"";
    let first = send(service.address(), "POST", "/v1/batch", &[], long(&format!("{key},"), "").as_bytes()).await;
    assert_eq!(first.status, 200, "{:?}", first.json());
    let last = send(service.address(), "POST", "/v1/batch", &[], long("", &format!(",{key}")).as_bytes()).await;
    assert_eq!((last.status, last.code().as_str()), (401, "missing_key"));
}

/// Waits until what has gone has given its room back.
async fn until_room(service: &Service) {
    let body = br#"{"batch":[]}"#;
    for _ in 0..200 {
        if send(service.address(), "POST", "/v1/batch", &[], body).await.status == 401 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the memory is not given back");
}

/// Names that mean something to programs are data, in every dialect, as they were sent.
#[tokio::test]
async fn names_that_programs_give_a_meaning_are_data() {
    let properties = r#""__proto__":{"polluted":true},"constructor":{"prototype":1},"$where":"1","a.b":2,"toString":3,"'; DROP TABLE keys;--":4,"<img onerror=x>":"=cmd"#;
    let properties = format!("{properties}\"");
    let expected: serde_json::Value = serde_json::from_str(&format!("{{{properties}}}")).expect("JSON");
    for sender in &SENDERS {
        let service = Service::start().await;
        let body = sender.body(&[sender.event(1, "__proto__", &properties), sender.event(2, "u", "")]);
        assert_eq!(sender.counts(&sender.send(&service, body.as_bytes()).await), (2, 0), "{}", sender.name);
        let events = service.log.events();
        assert_eq!(events[0].external_id.as_deref(), Some("__proto__"), "{}", sender.name);
        let found: serde_json::Value =
            serde_json::from_str(events[0].metadata.as_ref().expect("they are kept").get()).expect("JSON");
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&found[name], value, "{}: {name}", sender.name);
        }
    }
}

/// JSON that costs parsers their stack, their memory or the square of its length is refused in the time of its length, and the next one is served.
#[tokio::test]
async fn json_made_to_hurt_parsers_hurts_nobody() {
    let levels = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let key = format!(r#""{}":1"#, "k".repeat(9_000_000));
    let keys = (0..700_000).map(|n| format!(r#""{n:x}":1"#)).collect::<Vec<_>>().join(",");
    for (what, properties) in [
        ("arrays in arrays", format!(r#""a":{}"#, levels("[", "]"))),
        ("objects in objects", format!(r#""a":{}"#, levels(r#"{"a":"#, "}"))),
        ("a key of 9 MB", key),
        ("700,000 keys", keys),
        ("a number of a million digits", format!(r#""a":{}"#, "7".repeat(1_000_000))),
        ("a million escapes", format!(r#""a":"{}""#, r"\u0061".repeat(1_000_000))),
    ] {
        for name in ["native", "segment", "posthog", "statsig"] {
            let sender = Sender::of(name);
            let service = Service::start().await;
            let body = sender.body(&[sender.event(1, "u", &properties), sender.event(2, "other", "")]);
            let begun = Instant::now();
            let answer = sender.send(&service, &crate::support::gzip(body.as_bytes())).await;
            // Where the key is looked for in a body's beginning it may lie too far behind.
            if answer.status != 401 {
                assert_eq!(sender.counts(&answer), (1, 1), "{name}, {what}");
                let users: Vec<_> = service.log.events().into_iter().filter_map(|event| event.external_id).collect();
                assert_eq!(users, ["other"], "{name}, {what}");
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{name}, {what}: {:?}", begun.elapsed());
            assert_eq!(service.post(EVENT).await.native().0, 1, "{name}, {what}");
        }
    }
}
