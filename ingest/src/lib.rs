//! The collector: HTTP to log.
//!
//! `answer` finds the `route` of a request, and `collect` takes it through the steps **admit** (key, rate, body), **decode** (a body
//! to events that stand alone), **validate** (every event against every rule), **append** (all at once, awaited until
//! durable), **respond** (in the dialect of the request). Nothing is answered 200 before it is durable, and one invalid
//! event never affects the others of its request.
//!
//! What it does not do: it never queries the database for a request whose key is known, never logs a key or a user's text,
//! and keeps no state about events. Deduplication is the aggregator's.

mod address;
mod admit;
mod answer;
mod body;
mod bots;
mod collect;
mod config;
mod dialect;
mod encoding;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod geo;
mod keys;
mod log_watch;
mod metrics;
mod names;
mod privacy;
mod refused;
mod respond;
mod route;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use events::Micros;
use service::{AdminEndpoint, Health, Hosts, Listener, Scope, Tasks, Threads};
use sqlx::postgres::PgConnectOptions;

pub use config::{Config, Limits, StartError};
pub use privacy::PrivacySignals;

use collect::App;

/// The schemas whose keys, projects, names of events and horizon the collector reads. Beside another one it goes on with what it knows.
pub const SCHEMA: catalogue::schema::Supported = catalogue::schema::Supported { service: "collector", oldest: 5, newest: 17 };

/// Where the metrics are if the public address is not on loopback and nobody said where.
const METRICS_USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);
/// How long a start waits for Postgres; a collector that knows keys from an earlier run serves without it.
const FIRST_READING_MAX: Duration = Duration::from_secs(2);

/// A running collector. Dropping it ends it at once; [`Collector::stop`] ends it well.
pub struct Collector {
    limits: Limits,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    tasks: Tasks,
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
        // Who posts events may come from any page, and learns nothing but what became of his own.
        let hosts = Hosts::of_admin_endpoint(&config.allow_hosts);
        let of_connections = service::Limits {
            connections_per_address_max: config.connections_per_address_max as usize,
            counts_loopback: config.count_loopback,
            hosts: hosts.clone(),
            tells_peer: config.geo_file.is_some(),
            ..config.limits.of_connections()
        };
        let bytes_per_second = NonZeroU32::new(config.key_bytes_per_second_max);
        let Config { collector, metrics: metrics_on, any_key, database_url, data_dir, limits, privacy_signals, .. } = config;
        let Config { country_header, address_header, geo_file: file, .. } = config;
        let geo = Arc::new(geo::Geo::new(geo::Sources { country_header, address_header, file }).await?);
        // The parser of options takes every scheme, and text without one.
        if !["postgres://", "postgresql://"].iter().any(|scheme| database_url.starts_with(scheme)) {
            return Err(StartError::DatabaseUrl("it has another scheme, or none".to_owned()));
        }
        let options = PgConnectOptions::from_str(&database_url).map_err(|error| StartError::DatabaseUrl(error.to_string()))?;
        if any_key && !collector.ip().is_loopback() {
            return Err(StartError::AnyKeyInPublic(collector));
        }
        let listener = listen("--collector (WEIR_COLLECTOR)", collector).await?;
        let address = listener.address();
        let metrics_listener = Listener::bind_metrics(address, metrics_on, METRICS_USUAL).await;
        let metrics_listener = metrics_listener.map_err(|source| {
            let address = metrics_on.unwrap_or(METRICS_USUAL);
            StartError::Listen { setting: "--metrics (WEIR_METRICS)", address, source }
        })?;
        let metrics_address = metrics_listener.as_ref().map(Listener::address);
        if any_key {
            tracing::warn!(%address, "events are taken under any key, into the project default");
        }

        let file = (!data_dir.as_os_str().is_empty()).then(|| data_dir.join("keys.json"));
        let names = names::Names::new(limits.event_names_max, limits.event_names_reserve);
        let keys = Arc::new(keys::Keys::new(any_key, file, names, bytes_per_second));
        let meter = metrics::meter();
        let metrics = Arc::new(metrics::Metrics::new(Arc::clone(&meter)));
        let tasks = Tasks::new(&meter);
        log_watch::spawn(&tasks, Arc::clone(&log));
        let app = Arc::new(App {
            memory: body::Memory::new(limits.in_flight_bytes_max),
            unauthenticated: body::Memory::new(limits.unauthenticated_bytes_max),
            answers: body::Memory::new(limits.answers_bytes_max),
            computing: metrics.computing(limits.computing_max, limits.computing_waiting_max),
            // One of its own that runs nothing; what computes has more, made when they are needed.
            threads: Threads::start("weir-body", 1).map_err(StartError::Threads)?,
            limits: limits.clone(),
            log,
            clock,
            keys: Arc::clone(&keys),
            metrics: Arc::clone(&metrics),
            admin: AdminEndpoint::new(&meter, tasks.health()),
            health: Arc::clone(tasks.health()),
            agents: bots::Agents::default(),
            refused: refused::Refused::default(),
            privacy_signals,
            geo: Arc::clone(&geo),
            is_log_failing: AtomicBool::new(false),
        });
        if geo.has_file() {
            let (limits, failed) = (limits.clone(), metrics.geo_readings_failed.clone());
            tasks.spawn_until_stop("geo", move || Arc::clone(&geo).follow(limits.clone(), failed.clone()));
        }
        tasks.spawn_until_stop("keys", {
            let keys = Arc::clone(&keys);
            move || keys::refresh(Arc::clone(&keys), options.clone(), Arc::clone(&metrics))
        });
        // Bounded: with Postgres down the keys of `keys.json` serve, or nothing does, and `/readyz` says so.
        let _ = tokio::time::timeout(FIRST_READING_MAX, keys.first_reading()).await;

        let serve = |listener: Listener, name, limits, scope| {
            let app = Arc::clone(&app);
            listener.serve(&tasks, name, &meter, limits, move |request| answer::answer(Arc::clone(&app), scope, request));
        };
        match metrics_listener {
            None => serve(listener, "listener", of_connections, Scope::All),
            Some(on_its_own) => {
                serve(listener, "listener", of_connections, Scope::NoMetrics);
                serve(on_its_own, "metrics-listener", service::Limits { hosts, ..service::Limits::admin() }, Scope::Admin);
            }
        }
        tracing::info!(%address, "collector listens");
        Ok(Collector { limits, address, metrics_address, tasks })
    }

    /// Returns where events are taken; the port is the real one where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where the metrics are, if they have an address of their own.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Returns how its tasks are; if they fail, the process has to end.
    pub fn health(&self) -> &Arc<Health> {
        self.tasks.health()
    }

    /// Ends it: `/readyz` says so, answers ask clients to close, then no connection is taken, and what is in flight is
    /// finished, within [`Limits::stop_wait_max`]. Every event that was answered as accepted is in the log.
    pub async fn stop(self) {
        if self.tasks.stop(self.limits.linger, self.limits.stop_wait_max).await {
            tracing::info!("collector stopped, nothing was in flight");
        } else {
            tracing::warn!("collector stopped with connections open; their clients send again");
        }
    }
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<Listener, StartError> {
    Listener::bind(address).await.map_err(|source| StartError::Listen { setting, address, source })
}
