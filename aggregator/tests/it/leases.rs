//! Who may store: takeovers, and what a late owner can still do, which is nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator::{Aggregator, Config};
use eventlog::memory::MemoryLog;
use events::testing::conversion;
use migrations::testing::TestServer;

use crate::flow::get;
use crate::pipeline::{Pipeline, SharedLog};

#[tokio::test]
async fn a_lease_that_was_given_back_is_taken_at_once() {
    let mut pipeline = Pipeline::new().await;
    let log = Arc::new(SharedLog(pipeline.log.clone()));
    pipeline.start_on(log.clone(), 1).await.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM leases WHERE owner IS NULL").await, 8);
    pipeline.append(vec![conversion("c", "alice", "2026-02-20T10:00:00Z", "purchase", "1")]).await;
    let began = Instant::now();
    let aggregator = pipeline.start_on(log, 1).await;
    pipeline.drained().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    aggregator.stop().await;
}

/// The owner is frozen inside its transaction and its heartbeat stands still. The candidate ends its backend, which
/// frees the checkpoint's lock, and goes on from where the owner had committed.
#[tokio::test]
async fn a_frozen_owner_is_ended_and_replaced() {
    let mut pipeline = Pipeline::new().await;
    let log = Arc::new(SharedLog(pipeline.log.clone()));
    pipeline.start_on(log.clone(), 1).await.stop().await;
    pipeline
        .append((0..100).map(|n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1")))
        .await;

    // Stands for the frozen process: it owns every lease, has signed them, and holds every checkpoint in a transaction.
    let mut frozen = pipeline.database.connect().await;
    let owned = "UPDATE checkpoints SET epoch = epoch + 1;
         UPDATE leases SET owner = '00000000-0000-0000-0000-0000000000ff', epoch = epoch + 1, writer_pid = a.pid,
                writer_start = a.backend_start
         FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()";
    for statements in [owned, "BEGIN; UPDATE checkpoints SET next_offset = next_offset + 1"] {
        sqlx::raw_sql(statements).execute(&mut frozen).await.expect("executes");
    }

    let began = Instant::now();
    let aggregator = pipeline.start_on(log, 2).await;
    pipeline.drained().await;
    let took = began.elapsed();
    assert!(took > Duration::from_secs(14), "taken over after {took:?}, before it was sure that the owner stands still");
    assert!(took < Duration::from_secs(30), "taken over after {took:?}");
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 100);
    let late = sqlx::raw_sql("COMMIT").execute(&mut frozen).await;
    assert!(late.is_err(), "the frozen owner's backend has ended");
    aggregator.stop().await;
}

/// Two processes share the log partitions while both live, and each takes over the rest when the other leaves. What is
/// appended meanwhile is stored once.
#[tokio::test]
async fn log_partitions_are_shared_by_those_who_live() {
    let mut pipeline = Pipeline::new().await;
    let log = Arc::new(SharedLog(pipeline.log.clone()));
    let held = |expected: &str| {
        format!(
            "SELECT coalesce(array_agg(l.held ORDER BY l.held), '{{}}') = '{expected}' FROM
             (SELECT count(*) AS held FROM leases WHERE owner IS NOT NULL GROUP BY owner) l"
        )
    };
    let soon = Duration::from_secs(30);
    let first = pipeline.start_on(log.clone(), 2).await;
    pipeline.until(&held("{8}"), soon).await;
    let second = pipeline.start_on(log.clone(), 2).await;
    for round in 0..40 {
        let buy =
            |user: i32| conversion(&format!("c-{round}-{user}"), &format!("u-{user}"), "2026-02-20T10:00:00Z", "purchase", "1");
        pipeline.append((0..20).map(buy)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    pipeline.until(&held("{4,4}"), soon).await;
    first.stop().await;
    pipeline.until(&held("{8}"), soon).await;
    pipeline.drained().await;
    second.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM conversions").await, 800);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM aggregators").await, 0);
}

/// A disk that does not answer freezes Postgres: no error comes, and nothing is stored. `/readyz` tells it, and takes it back.
#[tokio::test]
async fn a_frozen_postgres_is_told() {
    let server = TestServer::start().await;
    let log = MemoryLog::new(8);
    let config = Config::new("127.0.0.1:0".parse().expect("a constant"), server.url());
    let aggregator = Aggregator::start(config, Arc::new(log.clone()), Arc::new(log)).await.expect("starts");
    let page = format!("http://{}/readyz", aggregator.address());
    let becomes = async |expected: &str| {
        let began = Instant::now();
        loop {
            let answer = get(&page).await;
            if answer.contains(expected) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{answer}, expected {expected}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    becomes("\r\n\r\nready\n").await;
    let frozen = server.freeze();
    becomes("\r\n\r\nnot ready: postgres: no answer for 7 s\n").await;
    drop(frozen);
    becomes("\r\n\r\nready\n").await;
    aggregator.stop().await;
}
