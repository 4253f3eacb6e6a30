//! A panic in each task of a running query service, and in a request: counted, told, healed.

use std::time::Duration;

use crate::support::Service;

#[tokio::test]
async fn a_panic_in_any_task_is_counted_told_and_healed() {
    let service = Service::start().await;
    let readyz = async |status: u16, part: &str| {
        let mut found = String::new();
        for _ in 0..600 {
            let answer = service.get("/readyz").await;
            if answer.status == status && answer.body.contains(part) {
                return;
            }
            found = answer.body;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz does not say {status} {part:?}, but {found}");
    };
    let tasks = service.query.health().names();
    assert_eq!(tasks, ["evaluations", "listener", "metrics", "notices", "sql-worker-1", "sql-worker-2", "sql-worker-3"]);
    for task in &tasks {
        service.query.health().inject_panic(task);
        readyz(503, &format!("task {task} panicked: injected into {task}")).await;
        service.sql("SELECT 1").await.ok();
    }
    readyz(200, "ready").await;
    let page = service.get("/metrics").await.body;
    for task in &tasks {
        assert!(page.contains(&format!("weir_query_task_restarts_total{{task=\"{task}\",cause=\"panic\"}} 1\n")), "{page}");
    }
}

#[tokio::test]
async fn a_panic_costs_its_request_alone() {
    let service = Service::start().await;
    service.query.health().inject_panic("request");
    service.sql("SELECT 1").await.refused(500, "internal");
    service.sql("SELECT 1").await.ok();
    let page = service.get("/metrics").await.body;
    for line in ["weir_query_panics_total 1\n", "weir_query_requests_total{route=\"sql\",status=\"500\"} 1\n"] {
        assert!(page.contains(line), "{page}");
    }
}
