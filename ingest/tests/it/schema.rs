//! Schemas that the collector works with, and others.

use ingest::SCHEMA;
use migrations::testing::{TestDatabase, pretend_schema};
use sqlx::Executor as _;
use tempfile::TempDir;

use crate::support::{Service, sha256};

const EVENT: &str = r#"{"type":"impression","user_id":"u"}"#;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Makes a project with a key and a blocked name.
async fn fill(database: &TestDatabase) {
    let rows = format!(
        "INSERT INTO projects (id, name) VALUES ('00000000-0000-0000-0000-0000000000aa', 'shop');
         INSERT INTO keys (project_id, kind, digest, prefix) SELECT id, 'write', '\\x{}', '' FROM projects;
         INSERT INTO event_names (project_id, kind, name, status) SELECT id, 'conversion', 'test', 'blocked' FROM projects",
        sha256("key")
    );
    database.connect().await.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
}

/// Every version that the collector says it works with has the keys and names as it reads them.
#[tokio::test]
async fn each_supported_schema_works() {
    for version in SCHEMA.oldest..=SCHEMA.newest {
        let database = TestDatabase::create_with_schema(version).await;
        fill(&database).await;
        let service = Service::start_in(folder(), &database.url, |_| ()).await;
        assert_eq!(service.get("/readyz").await.status, 200, "{version}");
        assert_eq!(service.post_with("key", EVENT).await.native().0, 1, "{version}");
        // Names are read after the keys.
        let began = std::time::Instant::now();
        loop {
            let blocked = r#"{"type":"conversion","name":"test","user_id":"u"}"#;
            let (_, _, rejected) = service.post_with("key", blocked).await.native();
            if rejected.first().is_some_and(|(_, code, _)| code == "blocked_name") {
                break;
            }
            assert!(began.elapsed().as_secs() < 20, "schema {version}: names are not read");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        service.collector.stop().await;
    }
}

/// A schema that moves on under a running collector: who is known goes on, a key that would have to be read is not guessed at, and a
/// collector that knows none says what it found and what to do.
#[tokio::test]
async fn beside_a_newer_schema_only_known_keys_are_taken() {
    let database = TestDatabase::create().await;
    fill(&database).await;
    let service = Service::start_in(folder(), &database.url, |_| ()).await;
    assert_eq!(service.post_with("key", EVENT).await.native().0, 1);
    assert_eq!(service.post_with("another", EVENT).await.status, 401, "was read, and is not there");
    pretend_schema(&mut database.connect().await, SCHEMA.newest + 1).await;
    assert_eq!(service.post_with("another", EVENT).await.status, 503, "cannot be read");
    assert_eq!(service.post_with("key", EVENT).await.native().0, 1);
    assert_eq!(service.get("/readyz").await.status, 200);

    let knows_none = Service::start_in(folder(), &database.url, |_| ()).await;
    let ready = knows_none.get("/readyz").await;
    let expected = format!("the database's schema is at version {}, and this collector works with", SCHEMA.newest + 1);
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("schema_unsupported") && ready.body.contains(&expected), "{}", ready.body);
    assert_eq!(knows_none.post_with("key", EVENT).await.status, 503);
}
