//! Names of events against a real Postgres.

use std::time::{Duration, Instant};

use catalogue::{Project, event_names};
use migrations::testing::TestDatabase;
use sqlx::Executor as _;
use uuid::Uuid;

use crate::support::{Service, sha256};

/// Sends one event, and returns the code of its rejection, if it is rejected.
async fn send(service: &Service, name: &str) -> Option<String> {
    let event = format!(r#"{{"type":"conversion","name":"{name}","user_id":"u"}}"#);
    let (_, _, rejected) = service.post_with("key", &event).await.native();
    rejected.into_iter().next().map(|(_, code, _)| code)
}

/// Waits until a name is answered so: a change reaches the collector within seconds.
async fn until(service: &Service, name: &str, expected: Option<&str>) {
    let began = Instant::now();
    loop {
        let found = send(service, name).await;
        if found.as_deref() == expected {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{name}: {found:?}, expected {expected:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn operators_block_forget_and_close() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    let id = Uuid::from_u128(0xaa);
    let rows = format!(
        "INSERT INTO projects (id, name) VALUES ('{id}', 'shop');
         INSERT INTO keys (project_id, kind, digest, prefix) VALUES ('{id}', 'write', '\\x{}', '');
         INSERT INTO event_names (project_id, kind, name) VALUES
             ('{id}', 'conversion', 'purchase'), ('{id}', 'engagement', 'purchase'), ('{id}', 'engagement', 'order-1');
         INSERT INTO event_names (project_id, kind, name, status) VALUES ('{id}', 'conversion', 'test', 'blocked')",
        sha256("key")
    );
    connection.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
    let project = Project { id, name: "shop".to_owned() };
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_in(folder, &database.url, |config| config.limits.event_names_max = 3).await;

    until(&service, "test", Some("blocked_name")).await; // the names were read
    // Two are stored, so one may come.
    until(&service, "refund", None).await;
    assert_eq!(send(&service, "order-2").await.as_deref(), Some("cardinality_limit"));
    assert_eq!(send(&service, "purchase").await, None, "who is known goes on");
    event_names::block(&mut connection, &project, "order-1").await.expect("blocks");
    until(&service, "order-1", Some("blocked_name")).await;
    // The blocked one no longer counts, and the one that was not stored was forgotten with the new reading.
    assert_eq!(send(&service, "order-2").await, None);
    event_names::take_new(&mut connection, &project, false).await.expect("closes");
    until(&service, "order-3", Some("cardinality_limit")).await;
    assert_eq!(send(&service, "purchase").await, None);
    event_names::take_new(&mut connection, &project, true).await.expect("opens");
    event_names::allow(&mut connection, &project, "order-1").await.expect("allows");
    until(&service, "order-1", None).await;
    event_names::forget(&mut connection, &project, "order-1").await.expect("forgets");
    let unknown = event_names::forget(&mut connection, &project, "order-1").await.expect_err("it is gone").to_string();
    assert!(unknown.starts_with("event name \"order-1\": there is none"), "{unknown}");
    let listed = event_names::list(&mut connection, &project).await.expect("lists");
    let listed: Vec<_> = listed.iter().map(|name| (name.name.as_str(), name.kinds.join(" "))).collect();
    assert_eq!(listed, [("purchase", "conversion engagement".to_owned()), ("test", "conversion".to_owned())]);
}

/// Reading names takes long, or fails: keys do not wait for it.
#[tokio::test]
async fn keys_do_not_wait_for_names() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    let rows = format!(
        "INSERT INTO projects (id, name) VALUES ('{}', 'shop');
         INSERT INTO keys (project_id, kind, digest, prefix) SELECT id, 'write', '\\x{}', '' FROM projects;
         ALTER TABLE event_names RENAME TO event_names_away",
        Uuid::from_u128(0xaa),
        sha256("key")
    );
    connection.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
    let service = Service::start_in(tempfile::tempdir().expect("a folder"), &database.url, |_| ()).await;
    assert_eq!(service.get("/readyz").await.status, 200);
    assert_eq!(send(&service, "purchase").await, None);
}
