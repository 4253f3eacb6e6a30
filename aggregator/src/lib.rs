//! The aggregator: from the log to Postgres, each event exactly once; participation and attribution.
//!
//! A batch's way is a column of verbs in [`run`]: read, decode, commit, acknowledge. What one commit does, step by step, is
//! `commit.rs`. Who may commit is `lease.rs`. Nothing else in the system writes a fact row.

pub mod admin;
mod batch;
mod catalogue;
mod commit;
mod config;
mod database;
mod lag;
mod lease;
mod maintain;
mod metrics;
mod partitions;
pub mod recompute;
mod run;
mod server;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventlog::{Append, Read};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use config::Config;

use crate::metrics::Metrics;
use crate::status::Status;

/// How long a stop may take: draining, the last commit, giving the leases back.
const STOP_MAX: Duration = Duration::from_secs(6);

/// Why the aggregator did not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The page's address cannot be listened on.
    #[error("WEIR_AGGREGATOR={address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Postgres cannot be reached, or refuses.
    #[error("the aggregator cannot work with Postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// The database belongs to another log than the one that was opened.
    #[error(
        "log {found} is not the one that this database was fed from, which is {known}; what {known} still held would be \
         skipped. If it is gone for good, start once with --adopt-log"
    )]
    OtherLog {
        /// The log that was opened.
        found: uuid::Uuid,
        /// The log of the database.
        known: uuid::Uuid,
    },
    /// The log has another number of log partitions than when it was first used.
    #[error("log {log_id} has {found} log partitions, but had {known} when it was first used; make a new log instead")]
    OtherPartitions {
        /// The log.
        log_id: uuid::Uuid,
        /// Its number now.
        found: u32,
        /// Its number at first use.
        known: u32,
    },
}

/// A running aggregator: its workers, its page, its upkeep.
pub struct Aggregator {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Aggregator {
    /// Starts on a log. `append` takes the replays of dead letters; it appends to the same log that `read` reads.
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config, read: Arc<dyn Read>, append: Arc<dyn Append>) -> Result<Self, StartError> {
        let mut connection = database::connect(&config.database_url, "start").await?;
        lease::know_log(&mut connection, read.identity(), config.adopt_log).await?;
        partitions::make_usual_months(&mut connection).await?;
        let metrics = Arc::new(Metrics::new());
        let status = Arc::new(Status::default());
        let page = server::listen(config.aggregator, Arc::clone(&metrics), Arc::clone(&status))
            .await
            .map_err(|source| StartError::Listen { address: config.aggregator, source })?;
        let address = page.address;

        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let held = lease::keep(&mut tasks, &config, Arc::clone(&read), Arc::clone(&status), stopped.clone());
        let stored = Arc::new(lag::Stored::default());
        for number in 0..config.workers {
            let worker = run::Worker {
                number,
                config: config.clone(),
                log: Arc::clone(&read),
                held: held.clone(),
                stored: Arc::clone(&stored),
                metrics: Arc::clone(&metrics),
                status: Arc::clone(&status),
            };
            tasks.spawn(worker.run(stopped.clone()));
        }
        tasks.spawn(lag::show(read, held, stored, metrics, stopped.clone()));
        tasks.spawn(maintain::run(config, append, stopped.clone()));
        tasks.spawn(page.serve(stopped));
        Ok(Aggregator { address, stop, tasks })
    }

    /// Returns where the page is served: `/livez`, `/readyz`, `/metrics`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stores what the log holds now, gives the leases back, and ends; in bounded time. What is left stays in the log.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, finished).await.is_err() {
            tracing::warn!(seconds = STOP_MAX.as_secs(), "the aggregator did not drain in time; the rest stays in the log");
            self.tasks.abort_all();
        }
    }
}
