//! The query service: answers over what the aggregator has stored. It writes nothing but what was known of experiments when, and whom that
//! was told ([`evaluation`]).
//!
//! A request's way: [`http`] takes it, finds the project of its token and waits for a place among the running queries.
//! Then one of these answers it:
//!
//! - [`experiment`]: read -> measure -> test -> say
//! - [`funnel`]: definition -> events -> how far each unit got -> counts
//! - [`sql`]: guard -> plan -> rows
//!
//! What computes expressions that clients wrote does so in a child process ([`worker`]), which can be ended.
//!
//! Each answer is computed on one snapshot of Postgres ([`source`]), for that one project, and says by `as_of` how far the log
//! was stored then. [`engine`] is DataFusion with our limits, functions and tables.

mod cache;
mod config;
pub mod engine;
pub mod evaluation;
pub mod experiment;
pub mod funnel;
pub mod http;
mod metrics;
pub mod source;
pub mod sql;
mod threads;
pub mod worker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use service::{AdminEndpoint, Health, Hosts, Listener, Scope, Tasks};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

pub use config::{Config, Limits};
pub use experiment::read::sources::{check as check_definition, check_exposure};
pub use experiment::rules::check as check_policy;

use cache::Cache;
use engine::Engine;
use experiment::read::cohort_cache::CohortCache;
use http::app::App;
use http::limits::QueryQueue;
use http::routes;
use http::tokens::Tokens;
use metrics::Metrics;
use threads::Places;
use worker::Workers;

/// The schemas that answers are made from.
pub const SCHEMA: catalogue::schema::Supported =
    catalogue::schema::Supported { service: "query service", oldest: 15, newest: 17 };
/// Where the metrics are if the public address is not on loopback and nobody said where.
const METRICS_USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8091);

/// Why the service did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address of Postgres cannot be read.
    #[error("the database url is not understood: {0}")]
    DatabaseUrl(#[source] sqlx::Error),
    /// An address is taken or not of this machine.
    #[error("{setting} {address} cannot be listened on")]
    Listen {
        /// The flag and its variable.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// No worker is ready in time.
    #[error("{0}")]
    Worker(String),
    /// The system gives no threads.
    #[error("no threads for queries: {0}")]
    Threads(#[source] std::io::Error),
    /// DataFusion refused a function or rule of ours: a fault of this build.
    #[error("the query engine does not start: {0}")]
    Engine(#[from] datafusion::common::DataFusionError),
}

/// A running query service.
pub struct Query {
    app: Arc<App>,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    tasks: Tasks,
}

impl Query {
    /// Starts the service. Postgres need not answer yet: until it does, `/readyz` says so and queries get 503.
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Query, StartError> {
        let mut limits = config.limits;
        limits.worker_memory_bytes_max = config.query_worker_memory_bytes_max;
        let pool = postgres(&config.database_url, "weir query", limits.postgres_connections())?;
        let writing = |name: &str| connect_options(&config.database_url, name).map(writing);
        let (evaluations, notices) = (writing("weir evaluations")?, writing("weir notices")?);
        let listener = listen("--query (WEIR_QUERY)", config.query).await?;
        let address = listener.address();
        let metrics_listener = Listener::bind_metrics(address, config.metrics, METRICS_USUAL).await;
        let metrics_listener = metrics_listener.map_err(|source| {
            let address = config.metrics.unwrap_or(METRICS_USUAL);
            StartError::Listen { setting: "--metrics (WEIR_METRICS)", address, source }
        })?;
        let metrics_address = metrics_listener.as_ref().map(Listener::address);
        // What computes for long leaves a thread to the sockets.
        let places = Places::start(limits.queries_running_max, 2 * limits.query_threads + 1).map_err(StartError::Threads)?;
        let engine = Engine::new(&limits, funnel::functions())?;
        let meter = metrics::meter();
        let metrics = Arc::new(Metrics::new(Arc::clone(&meter)));
        let tasks = Tasks::new(&meter);
        let workers = Workers::start(config.worker, config.database_url, &limits, &metrics, &tasks);
        workers.ready().await.map_err(StartError::Worker)?;
        let app = Arc::new(App {
            engine,
            tokens: Tokens::new(pool.clone(), limits.token_age_max),
            queue: QueryQueue::new(&limits, &metrics),
            cohorts: CohortCache::new(limits.cohorts_bytes_max),
            lists: Cache::new(experiment::list::BYTES_MAX),
            answers: Cache::new(experiment::ANSWERS_BYTES_MAX),
            places,
            workers,
            pool,
            metrics,
            admin: AdminEndpoint::new(&meter, tasks.health()),
            health: Arc::clone(tasks.health()),
            limits,
        });
        tasks.spawn("evaluations", {
            let (app, options) = (Arc::clone(&app), evaluations);
            move |stop| evaluation::run(Arc::clone(&app), options.clone(), stop)
        });
        tasks.spawn("notices", {
            let (metrics, options, ca) = (Arc::clone(&app.metrics), notices, config.ca);
            move |stop| evaluation::deliver::run(Arc::clone(&metrics), options.clone(), ca.clone(), stop)
        });
        let serve = |listener: Listener, name, limits, scope| {
            let app = Arc::clone(&app);
            listener.serve(&tasks, name, &meter, limits, move |request| routes::answer(Arc::clone(&app), scope, request));
        };
        let hosts = Hosts::new(&config.allow_hosts);
        let of_connections = service::Limits { hosts: hosts.clone(), ..app.limits.of_connections() };
        match metrics_listener {
            None => serve(listener, "listener", of_connections, Scope::All),
            Some(on_its_own) => {
                serve(listener, "listener", of_connections, Scope::NoMetrics);
                serve(on_its_own, "metrics-listener", service::Limits { hosts, ..service::Limits::admin() }, Scope::Admin);
            }
        }
        tracing::info!(%address, "the query service answers");
        Ok(Query { app, address, metrics_address, tasks })
    }

    /// Returns the address that answers queries, with the port that the system chose if it was asked to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the metrics, if they have their own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Returns how its tasks are; if they fail, the process has to end.
    pub fn health(&self) -> &Arc<Health> {
        self.tasks.health()
    }

    /// Stops: no new connections, running requests end, at most `stop_wait_max`; then what is left is dropped.
    pub async fn stop(self) {
        if !self.tasks.stop(Duration::ZERO, self.app.limits.stop_wait_max).await {
            tracing::warn!("requests were still running at the end of the time to stop; they were dropped");
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.app.pool.close()).await;
    }
}

/// Prepares connections to Postgres. None is made yet.
fn postgres(database_url: &str, application_name: &str, connections_max: u32) -> Result<PgPool, StartError> {
    Ok(pool_options(connections_max).connect_lazy_with(connect_options(database_url, application_name)?))
}

/// For how long a connection that nobody uses is taken to be alive; then it is asked.
const UNTESTED_IDLE_MAX: Duration = Duration::from_secs(1);

fn pool_options(connections_max: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(Duration::from_secs(60))
        // One that was just used is not asked whether it is there: where all processors are busy, that is a wait for one.
        .test_before_acquire(false)
        .before_acquire(|connection, usage| {
            Box::pin(async move {
                if usage.idle_for > UNTESTED_IDLE_MAX {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

fn connect_options(database_url: &str, application_name: &str) -> Result<PgConnectOptions, StartError> {
    let options = PgConnectOptions::from_str(database_url).map_err(StartError::DatabaseUrl)?;
    Ok(options.application_name(application_name).options([
        // Literals are written for this; see `source::filter`.
        ("standard_conforming_strings", "on"),
        ("TimeZone", "UTC"),
        ("default_transaction_read_only", "on"),
        // Scans are simple; compiling their plans costs more than it saves.
        ("jit", "off"),
        // A process that vanished must not keep a scan running.
        ("client_connection_check_interval", "1s"),
    ]))
}

/// Returns the same for those who write.
fn writing(options: PgConnectOptions) -> PgConnectOptions {
    options.options([("default_transaction_read_only", "off")])
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    Listener::bind(address).await.map_err(|source| StartError::Listen { setting, address, source })
}
