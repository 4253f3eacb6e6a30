//! Black holes between the aggregator and Postgres: no byte passes any more, and nobody is told of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator::{Aggregator, Config};
use events::testing::conversion;
use migrations::testing::proxy::{Cut, Proxy, Seems};

use crate::flow::{get, ready, unready};
use crate::pipeline::{Pipeline, SharedLog};

/// How long a writer may take until it comes to the point where it is cut.
const CUT_MAX: Duration = Duration::from_secs(20);
/// How long it may take until a dead connection is given up, and what it was for is done. Postgres itself would end an idle transaction after 60 s.
const GIVEN_UP_MAX: Duration = Duration::from_secs(40);

/// An aggregator that reaches Postgres through a proxy, and has stored something.
struct Behind {
    pipeline: Pipeline,
    proxy: Proxy,
    aggregator: Aggregator,
    bought: u32,
}

impl Behind {
    async fn start(is_shared: bool) -> Self {
        let pipeline = Pipeline::new().await;
        let proxy = Proxy::before(&pipeline.database.url).await;
        let config = Config { database_url: proxy.url.clone(), ..pipeline.config(1) };
        let append = Arc::new(pipeline.log.clone());
        let aggregator = if is_shared {
            Aggregator::start(config, Arc::new(SharedLog(pipeline.log.clone())), append).await
        } else {
            Aggregator::start(config, Arc::new(pipeline.log.clone()), append).await
        };
        let mut behind = Behind { pipeline, proxy, aggregator: aggregator.expect("starts"), bought: 0 };
        behind.buy().await;
        behind.stored().await;
        behind
    }

    /// Appends events of 50 new users.
    async fn buy(&mut self) {
        let buy = |n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1");
        self.pipeline.append((self.bought..self.bought + 50).map(buy)).await;
        self.bought += 50;
    }

    /// Waits until each event is stored, and is so once.
    async fn stored(&mut self) {
        let all = format!("SELECT count(*) = {} FROM conversions", self.bought);
        self.pipeline.until(&all, GIVEN_UP_MAX).await;
    }

    /// Appends events, of which a commit comes to a point where its connection is cut.
    async fn cut(&mut self, cut: Cut) {
        let buy = |n| conversion(&format!("c-{n}"), &format!("u-{n}"), "2026-02-20T10:00:00Z", "purchase", "1");
        let events = (self.bought..self.bought + 50).map(buy);
        let (cut, ()) = tokio::join!(self.proxy.cut(cut, CUT_MAX), self.pipeline.append(events));
        assert!(cut, "no writer came there");
        self.bought += 50;
    }

    async fn metric(&self, name: &str) -> f64 {
        let page = get(&format!("http://{}/metrics", self.aggregator.address())).await;
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        line.unwrap_or_else(|| panic!("{name} is not on {page}"))
    }

    async fn epochs(&mut self) -> i64 {
        self.pipeline.scalar("SELECT sum(epoch)::bigint FROM leases").await
    }
}

/// From COMMIT on, and in the middle of a COPY: the batch is begun anew from the checkpoint, under the same lease.
#[tokio::test]
async fn a_commit_into_a_black_hole_is_begun_anew() {
    let mut behind = Behind::start(false).await;
    let epochs = behind.epochs().await;
    for (commits, cut) in [(1.0, Cut::Silence), (2.0, Cut::SilenceInCopy), (3.0, Cut::Silence)] {
        behind.cut(cut).await;
        behind.buy().await;
        behind.stored().await;
        assert_eq!(behind.metric("weir_aggregator_unknown_commits_total").await, commits, "{cut:?}");
    }
    assert_eq!(behind.epochs().await, epochs, "no lease was lost");
    behind.aggregator.stop().await;
}

/// A COMMIT that comes when it was given up long ago, its own connection's end before or behind it, changes nothing.
#[tokio::test]
async fn a_commit_that_comes_late_changes_nothing() {
    let mut behind = Behind::start(false).await;
    let began = Instant::now();
    let late = Duration::from_secs(30);
    behind.cut(Cut::Late(late)).await;
    behind.stored().await;
    assert!(began.elapsed() < late, "stored only after {:?}, by the late COMMIT itself", began.elapsed());
    tokio::time::sleep(late).await;
    behind.buy().await;
    behind.stored().await;
    behind.aggregator.stop().await;
}

/// A lock that somebody holds for half a minute: Postgres is at it, so nobody gives up.
#[tokio::test]
async fn what_waits_for_a_lock_is_waited_for() {
    let mut behind = Behind::start(false).await;
    let writer = "SELECT coalesce(min(pid), 0) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'weir aggregator, writer'";
    let before: i32 = behind.pipeline.scalar(writer).await;
    let mut other = behind.pipeline.database.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE conversions").execute(&mut other).await.expect("locks");
    behind.buy().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(behind.pipeline.scalar::<i32>(writer).await, before);
    sqlx::raw_sql("COMMIT").execute(&mut other).await.expect("unlocks");
    behind.stored().await;
    assert_eq!(behind.pipeline.scalar::<i32>(writer).await, before);
    assert_eq!(behind.metric("weir_aggregator_unknown_commits_total").await, 0.0);
    behind.aggregator.stop().await;
}

/// The only process there is: workers go on beside it, `/readyz` tells it, and it comes back by itself.
#[tokio::test]
async fn leases_in_a_black_hole_are_renewed_over_another_connection() {
    let mut behind = Behind::start(false).await;
    ready(&behind.aggregator).await;
    assert!(behind.proxy.cut(Cut::SilenceOf("leases"), CUT_MAX).await);
    behind.buy().await;
    behind.stored().await;
    unready(&behind.aggregator, "postgres: no answer for 7 s").await;
    ready(&behind.aggregator).await;
    behind.aggregator.stop().await;
    let held = "SELECT count(*) FROM leases WHERE owner IS NOT NULL";
    assert_eq!(behind.pipeline.scalar::<i64>(held).await, 0, "leases are given back");
}

/// Beside another process: that one takes over from who reaches Postgres by no connection, old or new, and shares when the network is back,
/// which still brings what had been sent. The lease manager's connection alone costs no lease.
#[tokio::test]
async fn who_is_in_a_black_hole_is_replaced_and_comes_back() {
    let mut behind = Behind::start(true).await;
    let held = |count: &str| {
        format!(
            "SELECT coalesce(array_agg(l.held ORDER BY l.held), '{{}}') = '{count}' FROM
             (SELECT count(*) AS held FROM leases WHERE owner IS NOT NULL GROUP BY owner) l"
        )
    };
    let epochs = behind.epochs().await;
    let owner: uuid::Uuid = behind.pipeline.scalar("SELECT owner FROM leases LIMIT 1").await;
    assert!(behind.proxy.cut(Cut::SilenceOf("leases"), CUT_MAX).await);
    unready(&behind.aggregator, "postgres: no answer for 7 s").await;
    ready(&behind.aggregator).await;
    assert_eq!(behind.epochs().await, epochs);

    behind.proxy.seems(Seems::Frozen);
    let other = behind.pipeline.start_on(Arc::new(SharedLog(behind.pipeline.log.clone())), 1).await;
    behind.buy().await;
    behind.pipeline.until(&format!("SELECT count(*) = 0 FROM leases WHERE owner = '{owner}'"), GIVEN_UP_MAX).await;
    behind.stored().await;
    behind.proxy.seems(Seems::Well);
    behind.pipeline.until(&held("{4,4}"), GIVEN_UP_MAX).await;
    behind.buy().await;
    behind.stored().await;
    behind.aggregator.stop().await;
    other.stop().await;
}

/// What runs beside the flow, and may hold the locks of an experiment, of a rollup or of dead letters meanwhile, goes on over another connection.
#[tokio::test]
async fn what_runs_beside_the_flow_leaves_a_black_hole() {
    let mut behind = Behind::start(false).await;
    for purpose in ["maintenance", "recomputations", "rollups"] {
        let open = format!(
            "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = current_database()
             AND application_name = 'weir aggregator, {purpose}'"
        );
        let before: i32 = behind.pipeline.scalar(&open).await;
        assert!(behind.proxy.cut(Cut::SilenceOf(purpose), CUT_MAX).await, "{purpose}: it asked for nothing");
        behind.pipeline.until(&format!("SELECT ({open}) NOT IN (0, {before})"), GIVEN_UP_MAX).await;
    }
    behind.aggregator.stop().await;
}
