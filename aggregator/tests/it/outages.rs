//! Outages of three hours, on a clock that passes them at once: nothing ends, nothing grows, and all goes on within a minute of the end.

use std::sync::Arc;
use std::time::Duration;

use aggregator::{Aggregator, Config};
use eventlog::ReadError;
use events::Draft;
use events::testing::{conversion, exposure};

use crate::flow::{get, ready, unready};
use crate::pipeline::{Outage, Pipeline};

/// How long an outage lasts.
const OUTAGE: Duration = Duration::from_secs(3 * 3_600);

/// Lets the outage pass. Only timers pass on that clock, so what waits for Postgres meanwhile has as long as it takes.
async fn pass() {
    tokio::time::pause();
    tokio::time::sleep(OUTAGE).await;
    tokio::time::resume();
}

fn buy(users: std::ops::Range<u32>) -> Vec<Draft> {
    users.map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")).collect()
}

/// No task has ended, by itself or by a panic.
async fn all_tasks_live(aggregator: &Aggregator) {
    assert_eq!(aggregator.health().unready(), None);
    let numbers = get(&format!("http://{}/metrics", aggregator.address())).await;
    let restarts = numbers.lines().filter(|line| line.contains("task_restarts_total{") && !line.ends_with(" 0"));
    assert_eq!(restarts.collect::<Vec<_>>(), [""; 0]);
}

/// What was appended before, in and after the outage is stored within a minute of its end, a replay included.
async fn goes_on(pipeline: &mut Pipeline, aggregator: Aggregator) {
    pipeline.append(buy(60..90)).await;
    pipeline.until("SELECT count(*) = 90 FROM conversions", Duration::from_secs(60)).await;
    pipeline.until("SELECT status = 'replayed' FROM dead_letters", Duration::from_secs(60)).await;
    pipeline.until("SELECT count(*) = 1 FROM user_experiment_participation", Duration::from_secs(60)).await;
    pipeline.until("SELECT count(*) = 0 FROM experiments_behind", Duration::from_secs(60)).await;
    ready(&aggregator).await;
    all_tasks_live(&aggregator).await;
    aggregator.stop().await;
    let held = "SELECT count(*) FROM leases WHERE owner IS NOT NULL";
    assert_eq!(pipeline.scalar::<i64>(held).await, 0, "leases are given back");
}

/// A dead letter that can be replayed, and 30 conversions; all of it stored.
async fn before(pipeline: &mut Pipeline) {
    pipeline.execute("UPDATE projects SET auto_register = false").await;
    pipeline.append([exposure("i", "u-1", "2026-02-20T09:00:00Z", "later", "b")]).await;
    pipeline.append(buy(0..30)).await;
    pipeline.until("SELECT count(*) = 30 FROM conversions", Duration::from_secs(60)).await;
    pipeline.until("SELECT count(*) = 1 FROM dead_letters", Duration::from_secs(60)).await;
}

/// An operator has the letter replayed and an experiment computed again, while nothing can be done about it.
async fn meanwhile(pipeline: &mut Pipeline) {
    pipeline
        .execute(
            "UPDATE projects SET auto_register = true; INSERT INTO catalogue_versions SELECT id, 1 FROM projects;
             UPDATE dead_letters SET status = 'replay';
             INSERT INTO experiments (project_id, name) SELECT id, 'other' FROM projects;
             INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) SELECT project_id, id, false FROM experiments",
        )
        .await;
    pipeline.append(buy(30..60)).await;
}

#[tokio::test]
async fn hours_without_postgres() {
    let mut pipeline = Pipeline::new().await;
    let door = pipeline.database.door();
    let config = Config { database_url: door.url.clone(), ..pipeline.config(2) };
    let (read, append) = (Arc::new(pipeline.log.clone()), Arc::new(pipeline.log.clone()));
    let aggregator = Aggregator::start(config, read, append).await.expect("starts");
    before(&mut pipeline).await;
    door.shut(&pipeline.database).await;
    meanwhile(&mut pipeline).await;
    pass().await;
    all_tasks_live(&aggregator).await;
    let page = get(&format!("http://{}/readyz", aggregator.address())).await;
    assert!(page.contains("not ready: postgres: "), "{page}");
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 30);
    door.open();
    goes_on(&mut pipeline, aggregator).await;
}

/// What Kafka's client says while all brokers are away, to reads, to questions for the ends and to the append of a replay.
#[tokio::test]
async fn hours_without_the_log() {
    let mut pipeline = Pipeline::new().await;
    let log = Outage::of(&pipeline.log);
    let aggregator = Aggregator::start(pipeline.config(2), Arc::new(log.clone()), Arc::new(log.clone())).await.expect("starts");
    before(&mut pipeline).await;
    log.fail(Some(|| ReadError::Unavailable("all brokers are away".to_owned())));
    meanwhile(&mut pipeline).await;
    pass().await;
    all_tasks_live(&aggregator).await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 30);
    assert_eq!(pipeline.scalar::<String>("SELECT status FROM dead_letters").await, "replay");
    log.fail(None);
    goes_on(&mut pipeline, aggregator).await;
}

/// The disk under Postgres is full: it answers, and stores nothing. That is no record's fault and halts no log partition.
#[tokio::test]
async fn hours_with_a_full_disk_under_postgres() {
    let mut pipeline = Pipeline::new().await;
    let aggregator = pipeline.start(2).await;
    before(&mut pipeline).await;
    pipeline
        .execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                 RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
             END $f$;
             CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON project_progress FOR EACH ROW EXECUTE FUNCTION full_disk();
             CREATE TRIGGER full_disk BEFORE UPDATE ON leases FOR EACH ROW EXECUTE FUNCTION full_disk()",
        )
        .await;
    meanwhile(&mut pipeline).await;
    pass().await;
    all_tasks_live(&aggregator).await;
    unready(&aggregator, "No space left on device").await;
    let numbers = get(&format!("http://{}/metrics", aggregator.address())).await;
    let halted = numbers.lines().filter(|line| line.starts_with("weir_aggregator_halted{") && !line.ends_with(" 0"));
    assert_eq!(halted.collect::<Vec<_>>(), [""; 0]);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 30);
    pipeline.execute("DROP FUNCTION full_disk() CASCADE").await;
    goes_on(&mut pipeline, aggregator).await;
}
