//! What one project takes of the query service, and what it leaves to others.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use migrations::testing::TestDatabase;
use query::{Config, Limits};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::{Event, OTHER_PROJECT, OTHER_TOKEN, PROJECT, Reply, Service, TOKEN, add_experiment, add_users, config, run};

const WAITING: &str = "weir_query_questions_waiting{kind=\"sql\"}";

/// Asks as the first project, so often at one time.
fn ask(service: &Arc<Service>, sql: &str, questions: usize) -> Vec<JoinHandle<Reply>> {
    let ask = |_| {
        let (service, sql) = (Arc::clone(service), sql.to_owned());
        tokio::spawn(async move { service.sql(&sql).await })
    };
    (0..questions).map(ask).collect()
}

#[tokio::test]
async fn questions_of_one_project_without_an_end_leave_a_place_to_others() {
    let mut service = Service::start().await;
    Event { project: OTHER_PROJECT, ..Event::new("engagement", "quiz", 1, 0.0) }.store(&mut service.rows).await;
    // Statements over this table do not end before the transaction does.
    let mut locking = service.database.connect().await;
    run(&mut locking, "BEGIN; LOCK TABLE conversion_attribution IN ACCESS EXCLUSIVE MODE").await;
    let service = Arc::new(service);
    let endless = ask(&service, "SELECT count(*) FROM conversion_attribution", 6);
    // As many as it may run do, and all others wait.
    service.until("weir_query_workers_busy", |busy| busy == 2.0).await;
    service.until(WAITING, |waiting| waiting == 4.0).await;

    let count = json!({"sql": "SELECT count(*) FROM events"});
    let funnel = json!({"window": "1d", "steps": [{"name": "a", "events": ["quiz"]}]});
    let condition = json!({"window": "1d", "steps": [{"name": "a", "where": "event = 'quiz'"}]});
    for _ in 0..5 {
        assert_eq!(service.post_as(OTHER_TOKEN, "/v1/sql", &count).await.ok()["rows"], json!([[1]]));
        service.get_as(OTHER_TOKEN, "/v1/experiments").await.ok();
        for funnel in [&funnel, &condition] {
            let answer = service.post_as(OTHER_TOKEN, "/v1/funnels", funnel).await.ok();
            assert_eq!(answer["groups"][0]["steps"][0]["units"], 1, "{answer}");
        }
    }
    assert!(!endless.iter().any(JoinHandle::is_finished), "all of the first project's still run or wait");
    assert_eq!(service.metric(WAITING).await, 4.0);

    run(&mut locking, "ROLLBACK").await;
    for endless in endless {
        assert_eq!(endless.await.expect("no panic").ok()["rows"], json!([[0]]));
    }
}

/// A process that ends with a question is its project's until another one stands in its place.
#[tokio::test]
async fn a_project_whose_questions_end_their_processes_takes_none_of_others() {
    let folder = std::env::temp_dir().join(format!("weir-shares-{}", uuid::Uuid::new_v4()));
    // While the folder is there, no process that is started gets ready.
    let held = format!("while [ -e {} ]; do sleep 0.02; done; exec \"$0\" \"$@\"", folder.display());
    let shell = ["sh".to_owned(), "-c".to_owned(), held];
    let config = config();
    let worker = shell.into_iter().map(OsString::from).chain(config.worker.clone()).collect();
    let config = Config { worker, query_worker_memory_bytes_max: 400 * 1_024 * 1_024, ..config };
    let service = Arc::new(Service::start_as(TestDatabase::create().await, config).await);
    service.until("weir_query_workers_running", |running| running == 3.0).await;

    std::fs::create_dir(&folder).expect("a folder");
    // Some 10^9 bytes, and then 10^12.
    let (x, y) = ("x".repeat(1_000), "y".repeat(1_000));
    let large = format!("SELECT length(replace(replace(replace('{x}', 'x', '{y}'), 'y', '{x}'), 'x', '{y}'))");
    for ended in ask(&service, &large, 2) {
        ended.await.expect("no panic").refused(422, "query_memory");
    }
    let third = ask(&service, "SELECT 1", 1).remove(0);
    service.until(WAITING, |waiting| waiting == 1.0).await;
    assert_eq!(service.metric("weir_query_workers_running").await, 1.0);
    let reply = service.post_as(OTHER_TOKEN, "/v1/sql", &json!({"sql": "SELECT 2"})).await;
    assert_eq!(reply.ok()["rows"], json!([[2]]));
    assert!(!third.is_finished(), "it waits for a process of its own");

    std::fs::remove_dir(&folder).expect("was made");
    assert_eq!(third.await.expect("no panic").ok()["rows"], json!([[1]]));
}

#[tokio::test]
async fn unread_answers_of_one_project_leave_room_for_those_of_others() {
    let mib = 1_024 * 1_024;
    let limits = Limits {
        answers_bytes_max: 64 * mib,
        answer_bytes_max: 16 * mib,
        // For as long as the test runs.
        answer_wait_max: Duration::from_secs(600),
        ..Limits::default()
    };
    let mut service = Service::start_with(limits).await;
    for (number, project) in [(1, PROJECT), (2, OTHER_PROJECT)] {
        Event { project, ..Event::new("engagement", "quiz", number, 0.0) }.store(&mut service.rows).await;
    }
    // Some 15 MiB.
    let (x, y) = ("x".repeat(1_000), "y".repeat(15_700));
    let large = json!({"sql": format!("SELECT replace('{x}', 'x', '{y}') FROM events")});
    let mut unread = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(service.address).await.expect("connects");
        let body = large.to_string();
        let head = format!(
            "POST /v1/sql HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.expect("sent");
        unread.push(stream);
    }
    // Three of them are all that fits into its share of 47 MiB.
    service.until("weir_query_answers_in_flight_bytes", |bytes| bytes > 40.0 * f64::from(1 << 20)).await;
    let answer = service.post_as(OTHER_TOKEN, "/v1/sql", &large).await.ok();
    assert_eq!(answer["rows"][0][0].as_str().map(str::len), Some(15_700_000));
    let held = service.metric("weir_query_answers_in_flight_bytes").await;
    assert!(held > 40.0 * f64::from(1 << 20), "while the first project's wait to be read: {held}");
}

/// 100,000 users take 4.4 MB, whatever is asked of them. A small experiment beside them is answered.
#[tokio::test]
async fn a_cohort_that_takes_too_much_is_refused_and_its_neighbour_answered() {
    let limits = Limits { query_memory_bytes_max: 3_500_000, ..Limits::default() };
    let mut service = Service::start_with(limits).await;
    for (experiment, from, users) in [("large", 0, 50_000), ("small", 200_000, 5)] {
        add_experiment(&mut service.rows, PROJECT, experiment, "", &[("control", "1"), ("b", "1")]).await;
        add_users(&mut service.rows, PROJECT, experiment, "control", from, users).await;
        add_users(&mut service.rows, PROJECT, experiment, "b", from + users, users).await;
    }
    let refused = service.get("/v1/experiments/large/results").await.refused(422, "query_memory");
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("the users and conversions of the experiment take more than 3500000 bytes"), "{message}");
    assert_eq!(service.get("/v1/experiments/small/results").await.ok()["population"]["exposed_users"], 10);
}
