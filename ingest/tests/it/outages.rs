//! Outages of three hours, on a clock that passes them at once: nothing ends, and all goes on within a minute of the end.

use std::time::{Duration, Instant};

use eventlog::AppendError;
use migrations::testing::TestDatabase;
use sqlx::Executor as _;

use crate::support::{Service, sha256};

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;
const OUTAGE: Duration = Duration::from_secs(3 * 3_600);

/// Lets an outage pass: nothing but timers passes on that clock.
async fn pass() {
    tokio::time::pause();
    tokio::time::sleep(OUTAGE).await;
    tokio::time::resume();
}

async fn make_key(database: &TestDatabase, key: &str) {
    let rows = format!(
        "INSERT INTO projects (id, name) VALUES ('00000000-0000-0000-0000-0000000000aa', 'shop') ON CONFLICT DO NOTHING;
         INSERT INTO keys (project_id, kind, digest, prefix) SELECT id, 'write', '\\x{}', '' FROM projects",
        sha256(key)
    );
    database.connect().await.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
}

/// Keys that were read serve all the while, others are refused for the moment; a key that was made meanwhile is taken after the end.
#[tokio::test]
async fn hours_without_postgres() {
    let database = TestDatabase::create().await;
    let door = database.door();
    make_key(&database, "known").await;
    let service = Service::start_in(tempfile::tempdir().expect("a folder"), &door.url, |_| ()).await;
    assert_eq!(service.post_with("known", EVENT).await.native().0, 1);
    door.shut(&database).await;
    make_key(&database, "new").await;
    pass().await;
    assert_eq!(service.collector.health().unready(), None, "a task has ended");
    assert_eq!(service.post_with("known", EVENT).await.native().0, 1);
    assert_eq!(service.post_with("new", EVENT).await.status, 503);
    door.open();
    let end = Instant::now();
    while service.post_with("new", EVENT).await.status != 200 {
        assert!(end.elapsed() < Duration::from_secs(60), "keys are not read again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(service.collector.health().unready(), None);
    service.collector.stop().await;
}

/// The log takes nothing, as where its disk is full: clients are told to come again, and nothing is kept of their requests.
#[tokio::test]
async fn hours_without_room_in_the_log() {
    let service = Service::start().await;
    let refused = Some(AppendError::Unavailable("No space left on device".to_owned()));
    *service.log.fails.lock().expect("nobody panicked") = refused;
    assert_eq!(service.post_with(crate::support::WRITE, EVENT).await.status, 503);
    pass().await;
    assert_eq!(service.collector.health().unready(), None, "a task has ended");
    assert_eq!(service.post_with(crate::support::WRITE, EVENT).await.status, 503);
    *service.log.fails.lock().expect("nobody panicked") = None;
    assert_eq!(service.post_with(crate::support::WRITE, EVENT).await.native().0, 1);
    assert_eq!(service.log.events().len(), 1);
    service.collector.stop().await;
}
