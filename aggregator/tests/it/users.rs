//! What aggregators remember of users, and whom they leave out.

use std::sync::Arc;
use std::time::Duration;

use aggregator::{Aggregator, Config};
use events::Draft;
use events::testing::exposure;

use crate::flow::get;
use crate::pipeline::Pipeline;

/// A hundred users, each seen once.
fn seen(round: i32) -> impl Iterator<Item = Draft> {
    let see = move |n| exposure(&format!("{round}-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "checkout", "b");
    (0..100).map(see)
}

async fn value(aggregator: &Aggregator, name: &str) -> f64 {
    let page = get(&format!("http://{}/metrics", aggregator.address())).await;
    let of_name = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    let values = page.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

#[tokio::test]
async fn users_are_remembered_until_the_process_ends() {
    let mut pipeline = Pipeline::new().await;
    for (rounds, from) in [(3, 0), (2, 3)] {
        let aggregator = pipeline.start(2).await;
        for round in from..from + rounds {
            pipeline.append(seen(round)).await;
            pipeline.drained().await;
        }
        // The last commit is counted just after it can be seen.
        let all = f64::from(100 * rounds);
        let count = async || {
            (
                value(&aggregator, "weir_aggregator_users_known_total").await,
                value(&aggregator, "weir_aggregator_users_read_total").await,
            )
        };
        while count().await.0 + count().await.1 < all {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(count().await, (all - 100.0, 100.0));
        assert!(value(&aggregator, "weir_aggregator_known_users_bytes").await > 10_000.0);
        assert_eq!(value(&aggregator, "weir_aggregator_users_different_total").await, 0.0);
        aggregator.stop().await;
    }
    assert_eq!(pipeline.scalar::<i64>("SELECT sum(total_impressions)::bigint FROM user_experiment_participation").await, 500);
}

#[tokio::test]
async fn the_limit_of_a_users_rows_is_the_databases() {
    let mut pipeline = Pipeline::new().await;
    pipeline.append((0..3).flat_map(seen)).await;
    let start = async |pipeline: &Pipeline, user_rows_max: Option<u32>| {
        let config = Config { user_rows_max, ..pipeline.config(2) };
        Aggregator::start(config, Arc::new(pipeline.log.clone()), Arc::new(pipeline.log.clone())).await.expect("it starts")
    };
    let aggregator = start(&pipeline, Some(3)).await;
    pipeline.drained().await;
    aggregator.stop().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM user_experiment_participation").await, 100);
    // It stays, also where nobody says so.
    let aggregator = start(&pipeline, None).await;
    pipeline.append(seen(3).take(40)).await;
    pipeline.drained().await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM user_experiment_participation").await, 60);
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM over_active_users").await, 40);
    aggregator.stop().await;
    // Lower: who is touched is marked, and a recomputation takes away all who have too many.
    let aggregator = start(&pipeline, Some(2)).await;
    pipeline.append(seen(3).skip(40).take(1)).await;
    pipeline.drained().await;
    pipeline.until("SELECT count(*) = 0 FROM user_experiment_participation", Duration::from_secs(30)).await;
    assert_eq!(pipeline.scalar::<i64>("SELECT count(*) FROM over_active_users").await, 41);
    aggregator.stop().await;
}
