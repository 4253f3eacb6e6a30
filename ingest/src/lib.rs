//! The collector: HTTP to log.
//!
//! A request comes by `server`, finds its `route`, and walks `collect`: **admit** (key, rate, body), **decode** (a body
//! to events that stand alone), **validate** (every event against every rule), **append** (all at once, awaited until
//! durable), **respond** (in the dialect that was spoken). Nothing is answered 200 before it is durable, and one bad event
//! never harms its neighbours.
//!
//! What is absent: no call to the database on the path of a request whose key is known, no key or user's text in the
//! log, no state about events: whether one was seen before is decided by whoever reads the log.

mod admit;
mod body;
mod bots;
mod collect;
mod config;
mod keys;
mod metrics;
mod names;
mod request;
mod respond;
mod route;
mod server;

use std::net::SocketAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use events::Micros;
use sqlx::postgres::PgConnectOptions;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use config::{Config, Limits, StartError};

use collect::App;
use server::{Door, Stage};

/// How long a start waits for Postgres; a collector that knows keys from an earlier run serves without it.
const FIRST_READING_MAX: Duration = Duration::from_secs(2);
/// How often recorded times are moved into their histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// A running collector. Dropping it ends it at once; [`Collector::stop`] ends it well.
pub struct Collector {
    app: Arc<App>,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    stage: watch::Sender<Stage>,
    permits: Arc<Semaphore>,
    tasks: Vec<JoinHandle<()>>,
}

impl Collector {
    /// Starts a collector that appends to `log`. `clock` tells when a request is received; [`Micros::now`] outside of tests.
    /// Returns when it listens. Whether it takes events too is what `/readyz` tells: without keys it does not.
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(
        config: Config,
        log: Arc<dyn eventlog::Append>,
        clock: Arc<dyn Fn() -> Micros + Send + Sync>,
    ) -> Result<Collector, StartError> {
        let Config { collector, metrics: metrics_on, any_key, database_url, data_dir, limits } = config;
        // The parser of options takes every scheme, and text without one.
        if !["postgres://", "postgresql://"].iter().any(|scheme| database_url.starts_with(scheme)) {
            return Err(StartError::DatabaseUrl("it has another scheme, or none".to_owned()));
        }
        let options = PgConnectOptions::from_str(&database_url).map_err(|error| StartError::DatabaseUrl(error.to_string()))?;
        if any_key && !collector.ip().is_loopback() {
            return Err(StartError::AnyKeyInPublic(collector));
        }
        let (listener, address) = listen(collector).await?;
        let metrics_listener = match metrics_on {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        if any_key {
            tracing::warn!(%address, "events are taken under any key, into the project default");
        }

        let file = (!data_dir.as_os_str().is_empty()).then(|| data_dir.join("keys.json"));
        let keys = Arc::new(keys::Keys::new(any_key, file, names::Names::new(limits.event_names_max)));
        let metrics = Arc::new(metrics::Metrics::new());
        let permits = Arc::new(Semaphore::new(limits.connections_max as usize));
        let app = Arc::new(App {
            memory: body::Memory::new(limits.in_flight_bytes_max),
            limits,
            log,
            clock,
            keys: keys.clone(),
            metrics: metrics.clone(),
            agents: bots::Agents::default(),
            is_stopping: AtomicBool::new(false),
            is_log_failing: AtomicBool::new(false),
        });
        let mut collector = Collector {
            app: app.clone(),
            address,
            metrics_address: metrics_listener.as_ref().map(|(_, address)| *address),
            stage: watch::Sender::new(Stage::Open),
            permits: permits.clone(),
            tasks: Vec::new(),
        };
        collector.spawn(keys::refresh(keys.clone(), options, metrics.clone()));
        collector.spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP_EVERY).await;
                metrics.upkeep();
            }
        });
        // Bounded: with Postgres down the keys of `keys.json` serve, or nothing does, and `/readyz` says so.
        let _ = tokio::time::timeout(FIRST_READING_MAX, keys.first_reading()).await;

        let door = Door::Public { metrics: metrics_listener.is_none() };
        collector.spawn(server::accept(app.clone(), listener, door, permits, collector.stage.subscribe()));
        if let Some((listener, _)) = metrics_listener {
            // Connections of its own: counters can be read while all others are taken.
            let permits = Arc::new(Semaphore::new(64));
            collector.spawn(server::accept(app, listener, Door::Metrics, permits, collector.stage.subscribe()));
        }
        tracing::info!(%address, "collector listens");
        Ok(collector)
    }

    /// Returns where events are taken; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where the metrics are, if they have an address of their own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Ends it: `/readyz` says so, answers ask clients to close, then no connection is taken, and what is in flight is
    /// finished, within [`Limits::stop_wait_max`]. Every event that was answered as accepted is in the log.
    pub async fn stop(self) {
        let limits = &self.app.limits;
        let linger = limits.linger.min(limits.stop_wait_max);
        self.app.is_stopping.store(true, Ordering::Relaxed);
        tokio::time::sleep(linger).await;
        self.stage.send_replace(Stage::Closing);
        // All permits together are there when the last connection is gone.
        let gone = self.permits.acquire_many(limits.connections_max);
        match tokio::time::timeout(limits.stop_wait_max - linger, gone).await {
            Ok(_) => tracing::info!("collector stopped, nothing was in flight"),
            Err(_) => {
                self.stage.send_replace(Stage::Aborted);
                let open = limits.connections_max as usize - self.permits.available_permits();
                tracing::warn!(open, "collector stopped with connections open; their clients send again");
            }
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task));
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.stage.send_replace(Stage::Aborted);
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
