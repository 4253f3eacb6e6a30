//! A panic in each task of a running aggregator: counted, told by `/readyz`, healed.

use std::time::Duration;

use events::testing::conversion;

use crate::flow::get;
use crate::pipeline::Pipeline;

#[tokio::test]
async fn a_panic_in_any_task_is_counted_told_and_healed() {
    let mut pipeline = Pipeline::new().await;
    let aggregator = pipeline.start(2).await;
    let page = |path: &str| format!("http://{}/{path}", aggregator.address());
    let ready = async |expected: &str| {
        let mut found = String::new();
        for _ in 0..600 {
            found = get(&page("readyz")).await;
            if found.contains(expected) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz does not say {expected:?}, but {found}");
    };
    ready("HTTP/1.1 200").await;

    let tasks = aggregator.health().names();
    assert_eq!(
        tasks,
        [
            "lag",
            "leases",
            "listener",
            "log",
            "maintenance",
            "metrics",
            "recomputations",
            "retention",
            "rollups",
            "worker-0",
            "worker-1"
        ]
    );
    for task in &tasks {
        aggregator.health().inject_panic(task);
        let found = ready(&format!("task {task} panicked: injected into {task}")).await;
        assert!(found.starts_with("HTTP/1.1 503"), "{found}");
    }
    ready("HTTP/1.1 200").await;
    let numbers = get(&page("metrics")).await;
    for task in &tasks {
        let counted = format!("weir_aggregator_task_restarts_total{{task=\"{task}\",cause=\"panic\"}} 1\n");
        assert!(numbers.contains(&counted), "{task}: {numbers}");
    }

    // All of them work again: leases are held, both workers store, the maintenance replays.
    let buy = |n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1");
    pipeline.append((0..100).map(buy)).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 100);
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM leases WHERE owner IS NOT NULL").await, 0, "leases are given back");
}

/// A task that restarts in vain is the process's to end: it is told, and the service stays unready.
#[tokio::test]
async fn a_worker_that_keeps_dying_fails_the_service() {
    let pipeline = Pipeline::new().await;
    let aggregator = pipeline.start(1).await;
    for _ in 0..service::tasks::DEATHS_MAX {
        aggregator.health().inject_panic("worker-0");
    }
    let failure = tokio::time::timeout(Duration::from_secs(60), aggregator.health().failed()).await.expect("it fails");
    assert_eq!((failure.service, failure.task.as_str()), ("aggregator", "worker-0"));
    let found = get(&format!("http://{}/readyz", aggregator.address())).await;
    assert!(found.starts_with("HTTP/1.1 503") && found.contains("it died 5 times within 300 s"), "{found}");
    aggregator.stop().await;
}
