//! Schemas that the query service works with, and others; and what an answer says of the data that it rests on.

use migrations::testing::{TestDatabase, pretend_schema};
use query::{Limits, SCHEMA};
use serde_json::json;

use crate::support::{OTHER_PROJECT, OTHER_TOKEN, PROJECT, Service, add_experiment};

const COUNT: &str = "SELECT count(*) FROM events";

#[tokio::test]
async fn each_supported_schema_answers() {
    for version in SCHEMA.oldest..=SCHEMA.newest {
        let database = TestDatabase::create_with_schema(version).await;
        let service = Service::start_on(database, Limits::default()).await;
        assert_eq!(service.get("/readyz").await.status, 200, "{version}");
        assert_eq!(service.rows(COUNT).await, json!([[0]]), "{version}");
        assert_eq!(service.get("/v1/experiments").await.ok()["experiments"], json!([]), "{version}");
    }
}

/// A schema that moves on under a running service: its tables may mean something else now, so that there is no answer but which version
/// was found and what to do.
#[tokio::test]
async fn beside_a_newer_schema_there_is_no_answer() {
    let mut service = Service::start().await;
    service.sql(COUNT).await.ok();
    pretend_schema(&mut service.rows, SCHEMA.newest + 1).await;
    let expected = format!("the database's schema is at version {}, and this query service works with", SCHEMA.newest + 1);
    let funnel = json!({"window": "1d", "steps": [{"name": "a", "events": ["a"]}, {"name": "b", "events": ["b"]}]});
    for reply in [
        service.sql(COUNT).await,
        service.get("/v1/experiments").await,
        service.get("/v1/experiments/checkout/results").await,
        service.post("/v1/funnels", &funnel).await,
    ] {
        let error = reply.refused(503, "schema_unsupported");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(&expected)), "{error}");
    }
    let ready = service.get("/readyz").await;
    assert!(ready.status == 503 && ready.body.contains(&expected), "{}", ready.body);
    service.run("DELETE FROM _sqlx_migrations WHERE description = 'of a newer build'").await;
    service.sql(COUNT).await.ok();
}

/// While an experiment is recomputed, an answer says so.
#[tokio::test]
async fn an_answer_says_that_its_experiment_is_being_recomputed() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "checkout", "", &[("control", "50"), ("b", "50")]).await;
    let codes = async |service: &Service| -> Vec<String> {
        let answer = service.get("/v1/experiments/checkout/results").await.ok();
        let warnings = answer["warnings"].as_array().expect("warnings").iter();
        warnings.filter_map(|warning| warning["code"].as_str().map(str::to_owned)).collect()
    };
    assert!(!codes(&service).await.contains(&"recomputed_now".to_owned()));
    service
        .run("INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) SELECT project_id, id, true FROM experiments")
        .await;
    assert!(codes(&service).await.contains(&"recomputed_now".to_owned()));
    service.run("DELETE FROM experiments_behind").await;
    assert!(!codes(&service).await.contains(&"recomputed_now".to_owned()));
}

/// However much another project sends, and whatever its clocks say: nothing of it is seen in this project's answers.
#[tokio::test]
async fn an_answer_tells_nothing_of_other_projects() {
    let mut service = Service::start().await;
    let mine = service.sql(COUNT).await.ok()["as_of"].clone();
    assert_eq!((&mine["offsets"], &mine["event_time"]), (&json!({"0": 120, "1": 7}), &json!("2026-03-01T10:00:00Z")));
    service
        .run(&format!(
            "UPDATE checkpoints SET next_offset = next_offset + 1000, change_seq = change_seq + 1;
             UPDATE project_progress SET records = records + 1000, event_time = '2026-03-01T11:00:00Z'
             WHERE project_id = '{OTHER_PROJECT}'"
        ))
        .await;
    assert_eq!(service.sql(COUNT).await.ok()["as_of"], mine);
    let other = service.post_as(OTHER_TOKEN, "/v1/sql", &json!({"sql": COUNT})).await.ok()["as_of"].clone();
    assert_eq!((&other["offsets"], &other["event_time"]), (&json!({"0": 1002, "1": 0}), &json!("2026-03-01T11:00:00Z")));
}
