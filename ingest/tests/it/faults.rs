//! A panic in each task of a running collector: counted, told by `/readyz`, healed.

use std::time::Duration;

use crate::mmdb::database;
use crate::support::Service;

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;

impl Service {
    /// Waits until `/readyz` answers so.
    async fn readyz(&self, status: u16, part: &str) {
        let mut found = String::new();
        for _ in 0..600 {
            let answer = self.get("/readyz").await;
            if answer.status == status && answer.body.contains(part) {
                return;
            }
            found = answer.body;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz does not say {status} {part:?}, but {found}");
    }
}

#[tokio::test]
async fn a_panic_in_any_task_is_counted_told_and_healed() {
    let folder = tempfile::tempdir().expect("a folder");
    let places = folder.path().join("places.mmdb");
    std::fs::write(&places, database(&[])).expect("written");
    let service = Service::start_with_keys(folder, |config| config.geo_file = Some(places)).await;
    service.readyz(200, "ready").await;
    let tasks = service.collector.health().names();
    assert_eq!(tasks, ["geo", "keys", "listener", "log", "metrics"]);
    for task in &tasks {
        service.collector.health().inject_panic(task);
        service.readyz(503, &format!("task {task} panicked: injected into {task}")).await;
        // Requests go on meanwhile.
        assert_eq!(service.post(EVENT).await.native().0, 1);
    }
    service.readyz(200, "ready").await;
    for task in &tasks {
        let series = format!("weir_collector_task_restarts_total{{task=\"{task}\",cause=\"panic\"}}");
        assert_eq!(service.counter(&series).await, 1, "{task}");
    }
    assert_eq!(service.post(EVENT).await.native().0, 1);
    assert_eq!(service.log.events().len(), tasks.len() + 1);
    service.collector.stop().await;
}

#[tokio::test]
async fn a_panic_costs_its_request_alone() {
    let service = Service::start().await;
    for target in ["/v1/events", "/v1/track"] {
        service.collector.health().inject_panic("request");
        let answer = crate::support::send(service.address(), "POST", target, &[], EVENT.as_bytes()).await;
        assert_eq!((answer.status, answer.code().as_str()), (500, "internal"), "{target}");
    }
    assert_eq!(service.post(EVENT).await.native().0, 1);
    assert_eq!(service.counter("weir_collector_panics_total").await, 2);
    assert_eq!(service.counter("weir_collector_requests_total{route=\"events\",status=\"500\"}").await, 1);
    service.readyz(200, "ready").await;
}

/// A panic in a thread of the log is told as one of the collector's, and the log's end is the collector's.
#[tokio::test]
async fn a_log_whose_writer_panicked_ends_the_collector() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = eventlog::embedded::EmbeddedLog::open(folder.path(), eventlog::embedded::Options::default()).expect("opens");
    let service = Service::start_over(std::sync::Arc::new(log.clone())).await;
    assert_eq!(service.post(EVENT).await.native().0, 1);
    eventlog::Append::background(&log).inject_panic("log-writer");
    assert_eq!(service.post(EVENT).await.status, 503);
    let failure = tokio::time::timeout(Duration::from_secs(20), service.collector.health().failed()).await.expect("it fails");
    assert!(failure.to_string().starts_with("collector: task log ended: the writer panicked"), "{failure}");
    service.readyz(503, "the log has stopped for good").await;
    assert_eq!(service.counter("weir_collector_task_restarts_total{task=\"log-writer\",cause=\"panic\"}").await, 1);
}
