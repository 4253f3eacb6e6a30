//! `weir up`: everything on this machine, in two processes of Weir and a Postgres.
//!
//! Collector and aggregator share the process that owns the log. The query service and Postgres are children that are started
//! again when they die; meanwhile the collector goes on, since nothing it does for a request needs them.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aggregator::Aggregator;
use anyhow::{Context, bail};
use eventlog::spool::Spool;
use events::Micros;
use hyper::StatusCode;
use ingest::Collector;
use service::Threads;
use sqlx::Connection;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::children::SupervisedChild;
use crate::cli::{Flags, Globals, HostArgs};
use crate::client::Client;
use crate::data::{DataFolder, WeirJson};
use crate::log::{self, LogArgs};
use crate::postgres::Postgres;
use crate::query_service::QueryChild;
use crate::signals::EndSignals;
use crate::{keys, migrate};

/// How long the services may take to be ready, the database being up.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long the aggregator may say that it is not ready before that is told and the start goes on: longer than a lease is waited for. A
/// halted log partition stops neither the events that come nor those of the others.
const AGGREGATOR_READY_MAX: Duration = Duration::from_secs(20);
/// How long one look at a service may take.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// How long the query service's process may take to listen.
const QUERY_START_MAX: Duration = Duration::from_secs(30);
/// At the end, when each part must be done, counted from the signal. Ten seconds in all, the last one for force.
const COLLECTOR_ENDS: Duration = Duration::from_millis(2_500);
const AGGREGATOR_ENDS: Duration = Duration::from_millis(6_500);
const QUERY_ENDS: Duration = Duration::from_millis(7_500);
const POSTGRES_ENDS: Duration = Duration::from_millis(8_800);

#[derive(clap::Args, Clone)]
#[group(skip)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) collector: Flags<ingest::Config>,
    #[command(flatten)]
    pub(crate) query: Flags<::query::Config>,
    #[command(flatten)]
    pub(crate) aggregator: Flags<aggregator::Config>,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(flatten)]
    pub(crate) hosts: HostArgs,
}

/// Runs the command until a signal.
/// # Errors
/// If a part does not start, or cannot go on; what had started is ended in order.
pub(crate) async fn run(mut args: UpArgs, globals: &Globals) -> anyhow::Result<()> {
    args.query.0.ca.clone_from(&globals.ca);
    let mut signals = EndSignals::listen()?;
    let folder = DataFolder::open(&globals.folder()?)?;
    let Some(running) = Running::start(folder, globals.database_url(), args, &mut signals).await? else { return Ok(()) };
    print(&running.shown);
    let ended = tokio::select! {
        () = signals.next() => Ok(()),
        failure = running.failed() => Err(failure),
    };
    running.end().await;
    ended
}

/// Scripts read these lines; nobody need read them.
fn print(shown: &WeirJson) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "collector {}\nquery {}\naggregator {}\npostgres {}\nwrite_key {}\nread_token {}\nserver_key {}\nready",
        shown.collector, shown.query, shown.aggregator, shown.postgres, shown.write_key, shown.read_token, shown.server_key
    );
    let _ = out.flush();
}

/// All that runs.
pub(crate) struct Running {
    /// Where it is and what opens it.
    pub(crate) shown: WeirJson,
    services: Services,
}

/// What has been started so far, in the order of its end.
struct Services {
    folder: Arc<DataFolder>,
    collector: Option<Collector>,
    /// Between collector and Kafka, if it is Kafka.
    spool: Option<Arc<Spool>>,
    /// Compares Kafka's log with what it was.
    compared: Option<JoinHandle<()>>,
    aggregator: Option<Aggregator>,
    /// Its own: what it computes over a whole batch holds up no request to the collector.
    aggregator_threads: Option<Threads>,
    query: Option<SupervisedChild>,
    /// A task, so that its end is not missed when the start of the rest is given up.
    postgres: Option<JoinHandle<anyhow::Result<Postgres>>>,
    postgres_up: Option<Postgres>,
}

impl Running {
    /// Starts all services and waits until they are ready. None if a signal came before that.
    /// # Errors
    /// If a part does not start. Then, and after a signal, what had started is ended.
    pub(crate) async fn start(
        folder: DataFolder,
        database_url: Option<String>,
        args: UpArgs,
        signals: &mut EndSignals,
    ) -> anyhow::Result<Option<Self>> {
        let mut services = Services {
            folder: Arc::new(folder),
            collector: None,
            spool: None,
            compared: None,
            aggregator: None,
            aggregator_threads: None,
            query: None,
            postgres: None,
            postgres_up: None,
        };
        let started = tokio::select! {
            started = services.start(database_url, args) => Some(started),
            () = signals.next() => None,
        };
        match started {
            Some(Ok(shown)) => Ok(Some(Running { shown, services })),
            Some(Err(error)) => {
                services.end().await;
                Err(error)
            }
            None => {
                services.end().await;
                Ok(None)
            }
        }
    }

    /// Ends all of it in order, within ten seconds: no more events are taken, the log is stored as far as time allows, then the
    /// query service and Postgres end.
    pub(crate) async fn end(self) {
        self.services.end().await;
    }

    /// Waits until a part cannot go on, and returns why. May be cancelled.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        self.services.failed().await
    }

    /// Returns the data folder.
    pub(crate) fn folder(&self) -> PathBuf {
        self.services.folder.path().to_owned()
    }
}

impl Services {
    async fn start(&mut self, database_url: Option<String>, args: UpArgs) -> anyhow::Result<WeirJson> {
        let folder = Arc::clone(&self.folder);
        check_free(&args)?;
        let before = WeirJson::read(folder.path())?;
        let log::Opened { append, read, spool, compared } = args.log.open(folder.path(), args.aggregator.0.adopt_log).await?;
        (self.spool, self.compared) = (spool, compared);
        let database_url = match database_url {
            Some(url) => url,
            None => self.start_postgres().await?,
        };
        let mut connection = migrate::migrated(&database_url).await?;
        let keys = keys::ensure(&mut connection, before.as_ref()).await?;
        connection.close().await?;
        // Written before anything else can fail: keys that nobody has seen must not stay valid.
        let asked = WeirJson {
            collector: format!("http://{}", args.collector.0.collector),
            query: format!("http://{}", args.query.0.query),
            aggregator: format!("http://{}", args.aggregator.0.aggregator),
            postgres: database_url.clone(),
            write_key: keys.write.clone(),
            read_token: keys.read.clone(),
            server_key: keys.server.clone(),
        };
        asked.write(folder.path())?;

        let Flags(mut config) = args.collector;
        config.database_url.clone_from(&database_url);
        config.data_dir = folder.path().to_owned();
        config.allow_hosts.clone_from(&args.hosts.allow_hosts);
        config.limits.stop_wait_max = COLLECTOR_ENDS;
        let collector = Collector::start(config, Arc::clone(&append), Arc::new(Micros::now)).await?;
        let collector_address = self.collector.insert(collector).address();

        let Flags(mut config) = args.aggregator;
        config.archive.get_or_insert_with(|| folder.path().join("archive"));
        config.database_url.clone_from(&database_url);
        config.allow_hosts.clone_from(&args.hosts.allow_hosts);
        // One for each worker, and one for its leases and its page.
        let threads = Threads::start("weir-aggregator", config.workers as usize + 1).context("threads for the aggregator")?;
        let started = self.aggregator_threads.insert(threads).handle().spawn(Aggregator::start(config, read, append));
        let aggregator = started.await.context("the start of the aggregator")??;
        let aggregator_address = self.aggregator.insert(aggregator).address();

        let Flags(mut config) = args.query;
        config.database_url.clone_from(&database_url);
        config.allow_hosts = args.hosts.allow_hosts;
        let child = QueryChild::new(config);
        let (child, query_address) = SupervisedChild::start(child, QUERY_START_MAX).await?;
        self.query = Some(child);

        let shown = WeirJson {
            collector: format!("http://{collector_address}"),
            query: format!("http://{query_address}"),
            aggregator: format!("http://{aggregator_address}"),
            ..asked
        };
        let begun = Instant::now();
        let waits = [(&shown.collector, READY_MAX), (&shown.query, READY_MAX), (&shown.aggregator, AGGREGATOR_READY_MAX)];
        for (url, wait_max) in waits {
            let ready = tokio::select! {
                ready = wait_until_ready(url, begun + wait_max) => ready,
                failure = self.failed() => return Err(failure),
            };
            match ready {
                Err(reason) if *url == shown.aggregator => {
                    tracing::error!(%reason, "events are taken, and those that cannot be stored wait in the log");
                }
                ready => ready?,
            }
        }
        shown.write(folder.path())?;
        tracing::info!(folder = %folder.path().display(), "ready");
        Ok(shown)
    }

    /// See [`Running::failed`].
    async fn failed(&self) -> anyhow::Error {
        tokio::select! {
            failure = some(self.collector.as_ref().map(|part| part.health().failed())) => failure.into(),
            failure = some(self.aggregator.as_ref().map(|part| part.health().failed())) => failure.into(),
            lost = some(self.query.as_ref().map(SupervisedChild::lost)) => lost,
            lost = some(self.postgres_up.as_ref().map(Postgres::lost)) => lost,
        }
    }

    async fn start_postgres(&mut self) -> anyhow::Result<String> {
        let folder = Arc::clone(&self.folder);
        let task = self.postgres.insert(tokio::spawn(async move { Postgres::start(&folder).await }));
        let started = task.await.context("the start of postgres");
        self.postgres = None;
        Ok(self.postgres_up.insert(started??).url().to_owned())
    }

    async fn end(self) {
        let begun = Instant::now();
        if let Some(collector) = self.collector {
            tracing::info!("ending: no more events are taken");
            if timeout_at(begun + COLLECTOR_ENDS + Duration::from_millis(200), collector.stop()).await.is_err() {
                tracing::warn!("the collector did not end in time; requests without an answer are the client's to send again");
            }
        }
        if let Some(spool) = self.spool {
            spool.stop().await;
        }
        if let Some(compared) = self.compared {
            compared.abort();
        }
        if let Some(aggregator) = self.aggregator
            && timeout_at(begun + AGGREGATOR_ENDS, aggregator.stop()).await.is_err()
        {
            tracing::warn!("the aggregator did not end in time; what is left stays in the log for the next start");
        }
        drop(self.aggregator_threads);
        tracing::info!("ending: the query service and the database are next");
        if let Some(query) = self.query {
            query.end(begun + QUERY_ENDS).await;
        }
        let mut postgres = self.postgres_up;
        if let Some(starting) = self.postgres {
            postgres = timeout_at(begun + QUERY_ENDS, starting).await.ok().and_then(Result::ok).and_then(Result::ok);
        }
        if let Some(postgres) = postgres {
            postgres.end(begun + POSTGRES_ENDS).await;
        }
        tracing::info!(milliseconds = begun.elapsed().as_millis(), "ended");
    }
}

/// Sees that all addresses can be listened on, before anything is made.
fn check_free(args: &UpArgs) -> anyhow::Result<()> {
    let addresses = [
        ("--collector (WEIR_COLLECTOR)", args.collector.0.collector),
        ("--query (WEIR_QUERY)", args.query.0.query),
        ("--aggregator (WEIR_AGGREGATOR)", args.aggregator.0.aggregator),
    ];
    for (setting, address) in addresses {
        std::net::TcpListener::bind(address).with_context(|| {
            format!("{setting} {address} cannot be listened on; choose another address, or end what listens there")
        })?;
    }
    Ok(())
}

/// Waits for what there is; for ever if there is nothing.
async fn some<T>(waited_for: Option<impl Future<Output = T>>) -> T {
    match waited_for {
        Some(waited_for) => waited_for.await,
        None => std::future::pending().await,
    }
}

async fn wait_until_ready(url: &str, until: Instant) -> anyhow::Result<()> {
    let client = Client::new(url, None, None)?;
    loop {
        let answer = match client.probe("/readyz", PROBE_MAX).await {
            Ok(answer) if answer.status == StatusCode::OK => return Ok(()),
            Ok(answer) => format!("{} {}", answer.status, answer.line()),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= until {
            bail!("{url}/readyz: not ready: {answer}");
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
