//! What goes wrong in a world, and when. Each seed has its own mix of faults, so that some worlds have few and hard ones.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::collector::Collector;
use super::log::{self, Answers, Log};
use super::model::Model;
use super::node::Node;
use super::run::{Run, Seen, note};
use super::wire;

/// Milliseconds between two faults of one kind.
const PAUSE: Range<u64> = 3_000..40_000;

/// The mix of one world.
#[derive(Debug)]
pub(super) struct Plan {
    pub partitions: u32,
    pub workers: u32,
    pub clients: usize,
    pub batch_events_max: u32,
    pub batch_age_ms_max: u32,
    /// Seconds with faults.
    pub seconds: u64,
    pub to_log: log::Weather,
    pub to_postgres: wire::Weather,
    log_fails: bool,
    postgres_fails: bool,
    aggregators_fail: bool,
    collectors_fail: bool,
}

impl Plan {
    pub(super) fn draw(run: &Run) -> Self {
        let shares = [0.0, 0.0, 0.01, 0.1];
        Plan {
            partitions: run.one_of(&[2, 4, 8]),
            workers: run.one_of(&[1, 2]),
            clients: (run.millis(1_000..64_000).as_secs() as usize).max(1),
            batch_events_max: run.one_of(&[1, 10, 100]),
            batch_age_ms_max: run.one_of(&[0, 50, 500]),
            seconds: run.number(30..120),
            to_log: log::Weather {
                delay: 1..run.one_of(&[4, 100, 2_000]),
                late: run.one_of(&shares),
                doubtful: run.one_of(&shares),
                refused: run.one_of(&shares),
            },
            to_postgres: wire::Weather {
                delay: 1..run.one_of(&[3, 100, 2_000]),
                cut: run.one_of(&[0.0, 0.0, 0.001, 0.02]),
                cut_commit: run.one_of(&[0.0, 0.05, 0.5]),
                silent: run.one_of(&[0.0, 0.2]),
                slow_client: run.one_of(&[0.0, 0.02, 0.3]),
            },
            log_fails: run.chance(0.6),
            postgres_fails: run.chance(0.6),
            aggregators_fail: run.chance(0.8),
            collectors_fail: run.chance(0.6),
        }
    }
}

/// All that can go wrong.
#[derive(Clone)]
pub(super) struct Faults {
    pub run: Run,
    pub log: Log,
    pub model: Model,
    pub to_postgres: Arc<Mutex<wire::Weather>>,
    pub collectors: Vec<Arc<Collector>>,
    pub nodes: Vec<Arc<Node>>,
}

impl Faults {
    /// Lets the faults of a plan begin; they go on until the tasks are ended.
    pub(super) fn begin(&self, plan: &Plan) -> tokio::task::JoinSet<()> {
        let mut tasks = tokio::task::JoinSet::new();
        self.log.set_weather(plan.to_log.clone());
        *self.to_postgres.lock().unwrap_or_else(PoisonError::into_inner) = plan.to_postgres.clone();
        if plan.log_fails {
            tasks.spawn(self.clone().log_fails());
        }
        if plan.postgres_fails {
            tasks.spawn(self.clone().postgres_fails());
        }
        if plan.aggregators_fail {
            for node in &self.nodes {
                tasks.spawn(self.clone().aggregator_fails(Arc::clone(node)));
            }
        }
        if plan.collectors_fail {
            for collector in &self.collectors {
                tasks.spawn(self.clone().collector_fails(Arc::clone(collector)));
            }
        }
        tasks
    }

    /// Ends all faults: the weather is fair, everything runs.
    pub(super) fn heal(&self) {
        note!(self.run, "the faults are over");
        self.log.set_weather(log::Weather::FAIR);
        self.log.set(Answers::Agreed);
        *self.to_postgres.lock().unwrap_or_else(PoisonError::into_inner) = wire::Weather::FAIR;
        self.model.recover();
        for collector in &self.collectors {
            collector.set_full(false);
            collector.start();
        }
        for node in &self.nodes {
            node.thaw();
            node.start();
        }
    }

    async fn log_fails(self) {
        loop {
            self.run.wait(PAUSE).await;
            match self.run.number(0..4) {
                // Its process is killed and begins anew.
                0 => self.log.set(Answers::Agreed),
                // It was deleted and made anew, and then brought back.
                1 => {
                    self.log.set(Answers::Nothing);
                    self.run.wait(100..5_000).await;
                    self.log.set(Answers::Another);
                    self.run.wait(1_000..40_000).await;
                    self.log.set(Answers::Nothing);
                    self.run.wait(100..5_000).await;
                    self.log.set(Answers::Agreed);
                }
                _ => {
                    self.log.set(Answers::Nothing);
                    self.run.wait(200..60_000).await;
                    self.log.set(Answers::Agreed);
                }
            }
        }
    }

    async fn postgres_fails(self) {
        loop {
            self.run.wait(PAUSE).await;
            note!(self.run, "postgres: crashes");
            self.run.saw(Seen::PostgresDown);
            self.model.crash();
            self.run.wait(10..30_000).await;
            note!(self.run, "postgres: is back");
            self.model.recover();
        }
    }

    async fn aggregator_fails(self, node: Arc<Node>) {
        loop {
            self.run.wait(PAUSE).await;
            match self.run.number(0..4) {
                0 => node.kill(),
                1 => drop(node.stop().await),
                _ => node.freeze(self.run.millis(1_000..120_000)).await,
            }
            self.run.wait(10..30_000).await;
            node.start();
        }
    }

    async fn collector_fails(self, collector: Arc<Collector>) {
        loop {
            self.run.wait(PAUSE).await;
            match self.run.number(0..5) {
                0 | 1 => collector.kill(),
                2 => collector.stop().await,
                _ => {
                    collector.set_full(true);
                    self.run.wait(1_000..30_000).await;
                    collector.set_full(false);
                }
            }
            self.run.wait(10..20_000).await;
            collector.start();
        }
    }
}
