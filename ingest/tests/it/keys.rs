//! Keys against a real Postgres.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ingest::{Collector, Config, StartError};
use migrations::testing::TestDatabase;
use sqlx::{Executor as _, PgConnection};

use crate::support::{Service, WRITE, memory, send, sha256};

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;
const PROJECT: &str = "00000000-0000-0000-0000-0000000000aa";

async fn project(connection: &mut PgConnection, name: &str) {
    let statement = format!("INSERT INTO projects (id, name, unit) VALUES ('{PROJECT}', '{name}', 'device')");
    connection.execute(sqlx::AssertSqlSafe(statement)).await.expect("a project");
}

async fn key(connection: &mut PgConnection, text: &str, kind: &str, more: &str) {
    let statement = format!(
        "INSERT INTO keys (project_id, kind, digest, prefix, expires_at)
         VALUES ('{PROJECT}', '{kind}', '\\x{}', '', {more})",
        sha256(text)
    );
    connection.execute(sqlx::AssertSqlSafe(statement)).await.expect("a key");
}

async fn start(database: &TestDatabase) -> Service {
    Service::start_in(tempfile::tempdir().expect("a folder"), &database.url, |_| ()).await
}

#[tokio::test]
async fn keys_come_and_go_while_it_runs() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    project(&mut connection, "shop").await;
    key(&mut connection, "one", "write", "NULL").await;
    key(&mut connection, "read", "read", "NULL").await;
    key(&mut connection, "old", "write", "now() - interval '1 second'").await;
    key(&mut connection, "for ever", "server", "'infinity'").await;
    let service = start(&database).await;
    assert_eq!(service.get("/readyz").await.status, 200);
    assert_eq!(service.post_with("one", EVENT).await.native().0, 1);
    let event = &service.log.events()[0];
    assert_eq!(event.project_id.to_string(), PROJECT);
    let refused = service.post_with("nobody's", EVENT).await;
    assert_eq!((refused.status, refused.code().as_str()), (401, "bad_key"));
    // Unknown, expired, of another kind: the same to the letter.
    for text in ["old", "read"] {
        assert_eq!(service.post_with(text, EVENT).await.body, refused.body, "{text}");
    }
    // History is for server keys.
    let old = r#"{"type":"impression","user_id":"u","timestamp":"2020-01-01T00:00:00Z"}"#;
    assert_eq!(service.post_with("one", old).await.native().0, 0);
    assert_eq!(service.post_with("for ever", old).await.native().0, 1);

    // A key that was made just now works just now.
    key(&mut connection, "two", "write", "NULL").await;
    assert_eq!(service.post_with("two", EVENT).await.status, 200);
    // One that was revoked is refused within 5 seconds, in the same words.
    connection.execute("UPDATE keys SET revoked_at = now()").await.expect("revoked");
    let start = Instant::now();
    let refused_now = loop {
        let answer = service.post_with("one", EVENT).await;
        if answer.status != 200 {
            break answer;
        }
        assert!(start.elapsed() < Duration::from_secs(7), "still accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((refused_now.status, refused_now.body), (401, refused.body));
    // A month that is detached takes no more rows.
    connection.execute("UPDATE keys SET revoked_at = NULL").await.expect("restored");
    connection.execute("UPDATE horizon SET until = '2026-02-28T00:00:00Z'").await.expect("set");
    let event = r#"{"type":"impression","user_id":"u","timestamp":"2026-02-27T00:00:00Z"}"#;
    let start = Instant::now();
    while service.post_with("one", event).await.json()["rejected"][0]["code"] != "before_horizon" {
        assert!(start.elapsed() < Duration::from_secs(7), "still accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn many_unknown_keys_cost_postgres_a_few_readings() {
    let database = TestDatabase::create().await;
    let service = start(&database).await;
    let mut connection = database.connect().await;
    let answers = (0..200).map(|n| {
        let address = service.address();
        tokio::spawn(async move { send(address, "POST", &format!("/v1/events?key=k{n}"), &[], EVENT.as_bytes()).await.status })
    });
    let answers: Vec<_> = answers.collect();
    for answer in answers {
        assert_eq!(answer.await.expect("no panic"), 401);
    }
    let calls: i64 = sqlx::query_scalar("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        .fetch_one(&mut connection)
        .await
        .expect("counted");
    assert!(calls < 60, "{calls} transactions");
}

#[tokio::test]
async fn with_postgres_down_known_keys_go_on() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    project(&mut connection, "shop").await;
    key(&mut connection, "one", "write", "NULL").await;
    let first = start(&database).await;
    assert_eq!(first.post_with("one", EVENT).await.status, 200);
    let Service { collector, folder, .. } = first;
    collector.stop().await;

    // A start without Postgres, from the file.
    let second = Service::start_in(folder, "postgres://nobody@127.0.0.1:1/none", |_| ()).await;
    assert_eq!(second.get("/readyz").await.status, 200);
    assert_eq!(second.post_with("one", EVENT).await.status, 200);
    let answer = second.post_with("other", EVENT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "keys_unavailable"));
    assert!(answer.header("retry-after").is_some());
    let answer = send(second.address(), "POST", "/v1/track?writeKey=other", &[], b"{}").await;
    assert_eq!(answer.status, 429);
    let answer = second.get("/v1/pixel.gif?key=other&type=impression").await;
    assert_eq!((answer.status, answer.bytes.len()), (503, 43));
    assert!(second.counter("weir_collector_key_readings_failed_total").await > 0);
}

#[tokio::test]
async fn keys_that_were_never_loaded_let_nothing_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_in(folder, "postgres://nobody@127.0.0.1:1/none", |_| ()).await;
    let answer = service.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("not been read"), "{answer:?}");
    assert_eq!(service.get("/livez").await.status, 200);
    assert_eq!(service.post_with(WRITE, EVENT).await.status, 503);
    assert_eq!(service.log.events().len(), 0);
}

#[tokio::test]
async fn any_key_is_for_loopback_and_for_the_project_default() {
    let database = TestDatabase::create().await;
    let folder = tempfile::tempdir().expect("a folder");
    let service = Service::start_in(folder, &database.url, |config| config.any_key = true).await;
    assert_eq!(service.get("/readyz").await.status, 503);
    assert_eq!(service.post_with("whatever", EVENT).await.status, 503);
    project(&mut database.connect().await, "default").await;
    assert_eq!(service.post_with("whatever", EVENT).await.status, 200);
    assert_eq!(service.get("/readyz").await.status, 200);
    assert_eq!(service.log.events()[0].project_id.to_string(), PROJECT);
    assert_eq!(send(service.address(), "POST", "/v1/events", &[], EVENT.as_bytes()).await.status, 401);

    let config = Config {
        collector: SocketAddr::from(([0, 0, 0, 0], 0)),
        any_key: true,
        database_url: database.url.clone(),
        ..Config::default()
    };
    let started = Collector::start(config, memory(), std::sync::Arc::new(events::Micros::now)).await;
    assert!(matches!(started, Err(StartError::AnyKeyInPublic(_))));
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let start = async |collector: SocketAddr, url: &str| {
        let config = Config { collector, database_url: url.to_owned(), ..Config::default() };
        let started = Collector::start(config, memory(), std::sync::Arc::new(events::Micros::now)).await;
        started.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let text = start(anywhere, "mysql://x").await;
    assert!(text.starts_with("database URL: ") && text.contains("postgres://"), "{text}");
    let service = Service::start().await;
    let text = start(service.address(), "postgres://nobody@127.0.0.1:1/none").await;
    assert_eq!(text, format!("--collector (WEIR_COLLECTOR) {} cannot be listened on", service.address()));
}

/// A newer version of Weir gave a project a unit that this one does not know. Its events would get ids of other users, so they are
/// refused until the upgrade, in a way that makes clients keep them; other projects go on.
#[tokio::test]
async fn a_unit_of_a_newer_version_is_never_guessed() {
    let database = TestDatabase::create().await;
    let mut connection = database.connect().await;
    project(&mut connection, "shop").await;
    key(&mut connection, "one", "write", "NULL").await;
    let other = format!(
        "ALTER TABLE projects DROP CONSTRAINT projects_unit_check;
         INSERT INTO projects (id, name, unit) VALUES (gen_random_uuid(), 'newer', 'account');
         INSERT INTO keys (project_id, kind, digest, prefix) SELECT id, 'write', '\\x{}', '' FROM projects WHERE name = 'newer'",
        sha256("two")
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(other)).execute(&mut connection).await.expect("a later schema");
    let service = start(&database).await;
    assert_eq!(service.post_with("one", EVENT).await.native().0, 1);
    let refused = service.post_with("two", EVENT).await;
    assert_eq!((refused.status, service.log.events().len()), (503, 1), "{}", refused.body);

    connection.execute("UPDATE projects SET unit = 'user' WHERE name = 'newer'").await.expect("changed");
    let start = Instant::now();
    while service.post_with("two", EVENT).await.status != 200 {
        assert!(start.elapsed() < Duration::from_secs(7), "still refused");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
