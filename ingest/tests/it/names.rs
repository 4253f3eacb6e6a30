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

/// What names an unknown variant takes ten times its bytes of what its key may have stored, until somebody has made the variant. What
/// registers itself takes its bytes.
#[tokio::test]
async fn unknown_names_cost_more() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    let (id, full) = (Uuid::from_u128(0xaa), Uuid::from_u128(0xbb));
    let mut rows = format!(
        "INSERT INTO projects (id, name, auto_register) VALUES ('{id}', 'shop', true);
         INSERT INTO experiments (project_id, id, name) VALUES ('{id}', '{id}', 'planned');
         INSERT INTO experiments (project_id, id, name, auto_registered) VALUES ('{id}', '{full}', 'full', true);
         INSERT INTO variants (project_id, experiment_id, name) SELECT '{id}', '{full}', 'v' || n FROM generate_series(1, 50) n;
         INSERT INTO event_names (project_id, kind, name, status) VALUES ('{id}', 'conversion', 'first', 'blocked');"
    );
    for key in ["key", "registers", "unknown", "full", "known"] {
        let digest = sha256(key);
        rows += &format!("INSERT INTO keys (project_id, kind, digest, prefix) VALUES ('{id}', 'write', '\\x{digest}', '');");
    }
    connection.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_in(folder, &database.url, |config| config.key_bytes_per_second_max = 100_000).await;
    // An event names its experiment and variant; each key has two seconds' worth to begin with.
    let post = async |key: &str, experiment: &str, events: usize| {
        let event = format!(r#"{{"type":"impression","user_id":"u","experiment":"{experiment}","variant":"a"}}"#);
        service.post_with(key, &format!("[{}]", vec![event; events].join(","))).await
    };
    until(&service, "first", Some("blocked_name")).await; // the names were read

    assert_eq!(post("registers", "new", 400).await.status, 200);
    assert_eq!(post("registers", "new", 1).await.status, 200);

    let stored = || service.log.records.lock().expect("nobody panicked").iter().map(|record| record.bytes().len()).sum::<usize>();
    let before = stored();
    assert_eq!(post("unknown", "planned", 400).await.status, 200);
    let taken = 10 * (stored() - before);
    assert!(taken > 400_000, "{taken}");
    let refused = post("unknown", "new", 1).await;
    assert_eq!(refused.status, 429);
    let seconds: f64 = refused.header("retry-after").expect("is said").parse().expect("a number");
    let expected = (taken as f64 - 200_000.0) / 100_000.0;
    assert!(seconds >= 1.0 && seconds <= expected.ceil() + 1.0, "{seconds} of {expected}");

    // One more would not register itself.
    assert_eq!(post("full", "full", 400).await.status, 200);
    assert_eq!(post("full", "new", 1).await.status, 429);

    let made = format!(
        "INSERT INTO variants (project_id, experiment_id, name) VALUES ('{id}', '{id}', 'a');
         INSERT INTO event_names (project_id, kind, name, status) VALUES ('{id}', 'conversion', 'second', 'blocked');
         INSERT INTO catalogue_versions (project_id, version) VALUES ('{id}', 1)"
    );
    connection.execute(sqlx::AssertSqlSafe(made)).await.expect("rows");
    until(&service, "second", Some("blocked_name")).await; // the names were read again
    assert_eq!(post("known", "planned", 400).await.status, 200);
    assert_eq!(post("known", "planned", 1).await.status, 200);
}
