//! The query service: answers over what the aggregator has stored. It only ever reads.
//!
//! A request's way: [`http`] takes it, finds the project of its token and waits for a place among the running queries.
//! Then one of these answers it:
//!
//! - [`experiment`]: read -> measure -> test -> say
//! - [`funnel`]: definition -> level per user -> counts
//! - [`sql`]: guard -> plan -> rows
//!
//! Each answer is computed on one snapshot of Postgres ([`source`]), for that one project, and says by `as_of` how far the log
//! was stored then. [`engine`] is DataFusion with our limits, functions and tables.

mod config;
pub mod engine;
pub mod experiment;
pub mod funnel;
pub mod http;
mod metrics;
pub mod source;
pub mod sql;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use config::{Config, Limits};

use engine::Engine;
use experiment::read::cohort_cache::CohortCache;
use http::app::App;
use http::limits::QueryQueue;
use http::routes::Listener;
use http::server;
use http::tokens::Tokens;
use metrics::Metrics;

/// Why the service did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address of Postgres cannot be read.
    #[error("the database url is not understood: {0}")]
    DatabaseUrl(#[source] sqlx::Error),
    /// An address is taken or not of this machine.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
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
    stop: watch::Sender<bool>,
    threads: Threads,
    servers: Vec<JoinHandle<()>>,
}

impl Query {
    /// Starts the service. Postgres need not answer yet: until it does, `/readyz` says so and queries get 503.
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Query, StartError> {
        let options = PgConnectOptions::from_str(&config.database_url)
            .map_err(StartError::DatabaseUrl)?
            .application_name("weir query")
            .options([
                // Literals are written for this; see `source::filter`.
                ("standard_conforming_strings", "on"),
                ("TimeZone", "UTC"),
                ("default_transaction_read_only", "on"),
                // Scans are simple; compiling their plans costs more than it saves.
                ("jit", "off"),
                // A client that vanished must not keep a scan running.
                ("client_connection_check_interval", "5s"),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(config.limits.postgres_connections())
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(Duration::from_secs(60))
            .connect_lazy_with(options);
        let metrics = Arc::new(Metrics::new());
        let listener = listen(config.query).await?;
        let metrics_listener = match config.metrics {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let limits = config.limits;
        let threads = Threads::start(&limits)?;
        let app = Arc::new(App {
            engine: Engine::new(&limits)?,
            tokens: Tokens::new(pool.clone(), limits.token_age_max),
            queue: QueryQueue::new(limits.queries_running_max, limits.queries_waiting_max, metrics.clone()),
            cohorts: CohortCache::new(limits.images_bytes_max),
            threads: threads.handle(),
            pool,
            metrics,
            is_stopping: AtomicBool::new(false),
            limits,
        });
        let (stop, stopped) = watch::channel(false);
        let local = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
        let address = local(&listener, config.query);
        let metrics_address = metrics_listener.as_ref().zip(config.metrics).map(|(listener, asked)| local(listener, asked));
        let listens_as = Listener::Public { metrics: metrics_listener.is_none() };
        let mut servers = vec![tokio::spawn(server::serve(app.clone(), listener, listens_as, stopped.clone()))];
        if let Some(listener) = metrics_listener {
            servers.push(tokio::spawn(server::serve(app.clone(), listener, Listener::Metrics, stopped)));
        }
        tracing::info!(%address, "the query service answers");
        Ok(Query { app, address, metrics_address, stop, threads, servers })
    }

    /// Returns the address that answers queries, with the port that the system chose if it was asked to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the metrics, if they have their own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Stops: no new connections, running requests end, at most `stop_wait_max`; then what is left is dropped.
    pub async fn stop(self) {
        self.app.is_stopping.store(true, Ordering::Relaxed);
        // Nobody listens if the servers have ended already.
        let _ = self.stop.send(true);
        let aborts: Vec<_> = self.servers.iter().map(JoinHandle::abort_handle).collect();
        let ended = async {
            for server in self.servers {
                let _ = server.await;
            }
        };
        if tokio::time::timeout(self.app.limits.stop_wait_max, ended).await.is_err() {
            tracing::warn!("requests were still running at the end of the time to stop; they were dropped");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
        drop(self.threads);
        let _ = tokio::time::timeout(Duration::from_secs(1), self.app.pool.close()).await;
    }
}

/// The threads of queries. Dropped, they end as soon as what they compute lets them.
struct Threads(Option<Runtime>);

impl Threads {
    fn start(limits: &Limits) -> Result<Self, StartError> {
        // A join that was stopped goes on until it next waits for something; twice the threads keep that from holding up
        // the queries after it, and the last one serves their sockets.
        let threads = 2 * limits.queries_running_max * limits.query_threads + 1;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("weir-query").enable_all().build();
        runtime.map(|runtime| Threads(Some(runtime))).map_err(StartError::Threads)
    }

    fn handle(&self) -> Handle {
        // Taken out by drop only.
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}
