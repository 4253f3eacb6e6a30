//! Received = appended + duplicate + rejected + dropped + deferred, for each dialect and each way that a request can end.

use std::time::Duration;

use eventlog::AppendError;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::hardest::identity_holds;
use crate::senders::{SENDERS, Sender};
use crate::support::{FEW, Service, send};

/// A batch of five: three that land, one that repeats another (where there are ids), one that is refused.
fn mixed(sender: &Sender) -> (Vec<u8>, u64) {
    let repetition = if sender.has_ids { 1 } else { 3 };
    let mut events: Vec<String> = (0..3).map(|n| sender.event(n, &format!("user-{n}"), "")).collect();
    events.push(sender.event(repetition, &format!("user-{repetition}"), ""));
    events.push("7".to_owned());
    (sender.body(&events).into_bytes(), u64::from(sender.has_ids))
}

async fn counted(service: &Service) -> [u64; 5] {
    let mut counted = [0; 5];
    for (at, part) in ["received", "appended", "duplicate", "deferred"].iter().enumerate() {
        counted[at] = service.counter(&format!("weir_collector_events_{part}_total")).await;
    }
    counted[4] = service.counter("weir_collector_events_rejected_total{code=\"invalid_json\"}").await;
    counted
}

#[tokio::test]
async fn each_event_is_counted_as_one_thing_in_every_dialect_and_outcome() {
    for sender in &SENDERS {
        let service = Service::start().await;
        let (body, duplicate) = mixed(sender);
        assert_eq!(sender.counts(&sender.send(&service, &body).await), (4, 1), "{}", sender.name);
        assert_eq!(counted(&service).await, [5, 4 - duplicate, duplicate, 0, 1], "{}", sender.name);

        // The log fails: all come again, but for what the client was told to drop, where its dialect can say so.
        for (nth, error) in
            [AppendError::Unavailable(String::new()), AppendError::Unknown(String::new()), AppendError::Stopped(String::new())]
                .into_iter()
                .enumerate()
        {
            *service.log.fails.lock().expect("nobody panicked") = Some(error);
            let answer = sender.send(&service, &body).await;
            assert!(answer.header("retry-after").is_some(), "{}: {answer:?}", sender.name);
            let nth = nth as u64 + 1;
            let told = u64::from(sender.name == "posthog_v1");
            assert_eq!(
                counted(&service).await,
                [5 + 5 * nth, 4 - duplicate, duplicate, (5 - told) * nth, 1 + told * nth],
                "{}",
                sender.name
            );
        }
        *service.log.fails.lock().expect("nobody panicked") = None;
        // The retry after that is new to us, and the same to those who read the log.
        sender.send(&service, &body).await;
        identity_holds(&service).await;
    }
}

/// Whatever refuses a request whose events were read: rates, memory, a bug, a client that has gone, a log that never answers.
#[tokio::test]
async fn events_of_refused_requests_are_deferred() {
    let sender = Sender::of("native");
    let batch = |events: u64| sender.body(&(0..events).map(|n| sender.event(n, "u", "")).collect::<Vec<_>>());
    let check = async |service: &Service, expected: [u64; 4], what: &str| {
        let found = counted(service).await;
        assert_eq!(found[..4], expected, "{what}: received, appended, duplicate, deferred");
        identity_holds(service).await;
    };

    let service = Service::start().await;
    let post = async |events: u64| {
        send(service.address(), "POST", &format!("/v1/events?key={FEW}"), &[], batch(events).as_bytes()).await.status
    };
    assert_eq!((post(120).await, post(3).await), (200, 429));
    check(&service, [123, 120, 0, 3], "the rate of a key").await;
    service.collector.health().inject_panic("request");
    assert_eq!(service.post(&batch(2)).await.status, 500);
    identity_holds(&service).await;

    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_with_keys(folder, |config| config.key_bytes_per_second_max = 100).await;
    assert_eq!(service.post(&batch(7)).await.status, 200);
    let refused = service.post(&batch(7)).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    check(&service, [7, 7, 0, 0], "refused before it was read, so that nobody knows how many").await;

    let service = Service::with(|limits| limits.in_flight_bytes_max = 4 * 1024).await;
    assert_eq!(service.post(&batch(25)).await.status, 503);
    check(&service, [25, 0, 0, 25], "memory of records").await;
    let service = Service::with(|limits| limits.answers_bytes_max = 1024).await;
    assert_eq!(service.post(&format!("[{}]", ["{}"; 50].join(","))).await.status, 503);
    check(&service, [50, 0, 0, 50], "memory of answers").await;

    let service = Service::with(|limits| limits.append_wait_max = Duration::from_millis(50)).await;
    *service.log.delay.lock().expect("nobody panicked") = Duration::from_secs(30);
    assert_eq!(service.post(&batch(4)).await.status, 503);
    check(&service, [4, 0, 0, 4], "a log that does not answer").await;

    let service = Service::start().await;
    *service.log.delay.lock().expect("nobody panicked") = Duration::from_millis(500);
    let mut gone = TcpStream::connect(service.address()).await.expect("connects");
    let body = batch(6);
    gone.write_all(format!("{}{body}", sender.head(body.len())).as_bytes()).await.expect("written");
    while service.counter("weir_collector_requests_in_flight").await < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gone.set_zero_linger().expect("reset when dropped");
    drop(gone);
    let begun = std::time::Instant::now();
    while service.counter("weir_collector_events_received_total").await == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "what the client left is not counted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It is stored all the same, or sent again.
    identity_holds(&service).await;

    // What is only checked is nobody's event.
    let service = Service::start().await;
    assert_eq!(send(service.address(), "POST", "/validate?key=wk_test", &[], batch(3).as_bytes()).await.status, 200);
    assert_eq!(counted(&service).await, [0; 5]);
}
