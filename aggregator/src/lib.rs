//! The aggregator: from the log to Postgres, each event exactly once; participation and attribution.
//!
//! A batch's way is a column of verbs in [`run`]: read, decode, commit, acknowledge. What one commit does, step by step, is
//! `commit.rs`. Who may commit is `lease.rs`. Nothing else in the system writes a fact row.

pub mod admin;
mod batch;
mod commit;
mod config;
mod database;
mod fill;
mod lag;
mod lease;
mod maintain;
mod metrics;
mod partitions;
pub mod recompute;
mod retention;
mod run;
mod silence;
#[cfg(test)]
mod simulation;
mod status;
mod store;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use eventlog::{Append, Read};
use service::{AdminEndpoint, Cause, Health, Hosts, Limits, Listener, Scope, Tasks};
use tokio::sync::Mutex;
use uuid::Uuid;

pub use config::Config;

use crate::metrics::Metrics;
use crate::status::Status;
use crate::store::Store;
use crate::store::postgres::Postgres;

/// The schemas that events are stored in.
pub const SCHEMA: catalogue::schema::Supported = catalogue::schema::Supported { service: "aggregator", oldest: 10, newest: 17 };

/// How long a stop may take: draining, the last commit, giving the leases back.
const STOP_MAX: Duration = Duration::from_secs(6);

/// Why the aggregator did not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin address cannot be listened on.
    #[error("--aggregator (WEIR_AGGREGATOR) {address} cannot be listened on")]
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

/// A running aggregator: its workers, its admin endpoint, its maintenance.
pub struct Aggregator {
    address: SocketAddr,
    tasks: Tasks,
}

impl Aggregator {
    /// Starts on a log. `append` takes the replays of dead letters; it appends to the same log that `read` reads.
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config, read: Arc<dyn Read>, append: Arc<dyn Append>) -> Result<Self, StartError> {
        let mut connection = database::connect(&config.database_url, "start").await?;
        lease::register_log(&mut connection, read.identity(), config.adopt_log).await?;
        if let Some(rows_max) = config.user_rows_max
            && commit::over_active::set_rows_max(&mut connection, rows_max).await?
        {
            tracing::warn!(
                rows_max,
                "the limit of a user's rows has changed; who passes it follows when its next event is stored, or by `weir admin recompute`"
            );
        }
        partitions::make_usual_months(&mut connection).await?;
        let listener = Listener::bind(config.aggregator).await;
        let listener = listener.map_err(|source| StartError::Listen { address: config.aggregator, source })?;
        let address = listener.address();

        let meter = metrics::meter();
        let metrics = Arc::new(Metrics::new(Arc::clone(&meter)));
        let status = Arc::new(Status::default());
        let tasks = Tasks::new(&meter);
        let store: Arc<dyn Store> = Arc::new(Postgres::new(&config, read.identity().log_id));
        let held = lease::spawn(&tasks, Uuid::new_v4(), Arc::clone(&store), read.as_ref(), Arc::clone(&status));
        let stored = Arc::new(lag::Stored::default());
        let shared = run::Shared {
            config: config.clone(),
            log: Arc::clone(&read),
            store,
            held: held.clone(),
            stored: Arc::clone(&stored),
            metrics: Arc::clone(&metrics),
            status: Arc::clone(&status),
        };
        for number in 0..config.workers {
            let worker = run::Worker::new(number, shared.clone());
            tasks.spawn(format!("worker-{number}"), move |stop| worker.clone().run(stop));
        }
        log_watch(&tasks, read.as_ref());
        let limits = Limits { hosts: Hosts::new(&config.allow_hosts), ..Limits::admin() };
        tasks.spawn_until_stop("lag", {
            let metrics = Arc::clone(&metrics);
            move || lag::show(Arc::clone(&read), held.clone(), Arc::clone(&stored), Arc::clone(&metrics))
        });
        tasks.spawn("maintenance", {
            let config = config.clone();
            move |stop| maintain::run(config.clone(), Arc::clone(&append), stop)
        });
        tasks.spawn_until_stop("retention", {
            let (config, metrics) = (config.clone(), Arc::clone(&metrics));
            move || retention::run(config.clone(), Arc::clone(&metrics))
        });
        tasks.spawn_until_stop("rollups", {
            let config = config.clone();
            move || fill::run(config.clone())
        });
        tasks.spawn_until_stop("recomputations", {
            let status = Arc::clone(&status);
            move || maintain::recompute(config.clone(), Arc::clone(&status), Arc::clone(&metrics))
        });
        let admin = Arc::new(AdminEndpoint::new(&meter, tasks.health()));
        listener.serve(&tasks, "listener", &meter, limits, move |request| {
            let (admin, status) = (Arc::clone(&admin), Arc::clone(&status));
            async move {
                let ready = async { status.unready().map_or(Ok(()), Err) };
                admin.answer(Scope::Admin, &request, ready).await.unwrap_or_else(service::admin::not_found)
            }
        });
        Ok(Aggregator { address, tasks })
    }

    /// Returns the address of the admin endpoint: `/livez`, `/readyz`, `/metrics`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how its tasks are; if they fail, the process has to end.
    pub fn health(&self) -> &Arc<Health> {
        self.tasks.health()
    }

    /// Stores what the log holds now, gives the leases back, and ends; in bounded time. What is left stays in the log.
    pub async fn stop(self) {
        if !self.tasks.stop(Duration::ZERO, STOP_MAX).await {
            tracing::warn!("the aggregator did not drain in time; the rest stays in the log");
        }
    }
}

/// Tells of the log's own threads and tasks as of the aggregator's.
fn log_watch(tasks: &Tasks, log: &dyn Read) {
    let background = log.background();
    background.names().iter().for_each(|name| tasks.health().know(name));
    // Kept outside of the task, so that a restarted one reports nothing twice.
    let deaths = Arc::new(Mutex::new(background.deaths()));
    let health = Arc::clone(tasks.health());
    tasks.spawn_until_stop("log", move || {
        let (deaths, health) = (Arc::clone(&deaths), Arc::clone(&health));
        async move {
            let mut deaths = deaths.lock().await;
            loop {
                let death = deaths.next().await;
                if health.died(&death.task, Cause::Panic(death.panic)).is_some() {
                    // The log has begun it again by itself.
                    health.began(&death.task);
                }
            }
        }
    });
}
