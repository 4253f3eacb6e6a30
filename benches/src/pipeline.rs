//! The whole path in one go: generator, collector, embedded log, aggregator, Postgres, on one machine.
//!
//! Besides the load, single events of another name are posted at a steady pace, and Postgres is asked for them until it has
//! them: the time between the answer and that is *accepted to queryable*. It contains the asking, at most 5 ms apart.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use events::Micros;
use sqlx::Connection as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::child::Server;
use crate::database::{Counted, Database, Databases, KEY, count, project, stored};
use crate::histogram::Histogram;
use crate::load::{self, Connection, Outcome, Target};
use crate::machine;
use crate::report::{Figures, Page, number};

/// How often Postgres is asked.
const ASK_EVERY: Duration = Duration::from_millis(5);
/// How long the aggregator may go on after the load has ended.
const DRAIN_MAX: Duration = Duration::from_secs(300);

/// Settings of the measurement.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Events per second, on a schedule that does not wait for answers; 0: as fast as answers come
    #[arg(long, default_value_t = 20_000.0)]
    pub rate: f64,
    /// How long the load lasts
    #[arg(long, default_value_t = 30.0)]
    pub seconds: f64,
    /// Connections
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Events in each request
    #[arg(long, default_value_t = 100)]
    pub events_per_request: usize,
    /// How many users the events belong to
    #[arg(long, default_value_t = 200_000)]
    pub users: u64,
    /// How many in 100 events are conversions; the others are exposures
    #[arg(long, default_value_t = 5)]
    pub conversions_percent: u64,
    /// Workers of the aggregator
    #[arg(long, default_value_t = 2)]
    pub workers: u32,
    /// Single events per second that are watched for
    #[arg(long, default_value_t = 20)]
    pub probes_per_second: u32,
    /// How often
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Name of the page
    #[arg(long, default_value = "pipeline")]
    pub name: String,
    /// Server to measure on, whose user may make databases and run CHECKPOINT; none: a private one, with fsync off
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: Option<String>,
    /// Folder for the log's files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

#[derive(Default)]
struct Rounds {
    accepted: Figures,
    stored: Figures,
    drain: Figures,
    answer_p50: Figures,
    answer_p99: Figures,
    visible_p50: Figures,
    visible_p99: Figures,
    visible_max: Figures,
    server_cpu: Figures,
    postgres_cpu: Figures,
    generator_cpu: Figures,
    memory: Figures,
}

/// Runs the measurement and returns its page.
/// # Errors
/// Whatever fails first: an answer other than success, and rows that are not what was acknowledged.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let mut databases = Databases::open(options.database_url.as_deref()).await?;
    let facts = vec![databases.facts().await?];
    let mut page = Page::new(&options.name, "The whole path over the embedded log", folder.path(), facts);
    let offered = if options.rate > 0.0 {
        format!("{} events/s on a schedule that does not wait for answers", number(options.rate, 0))
    } else {
        "closed loop".to_owned()
    };
    page.say(&format!(
        "{offered}, {} s, {} connections x {} events, {} users, one experiment, {} % conversions, {} workers; generator, services \
         and database share the machine. Every answer is checked, and at the end the rows and the sum of their weights are \
         compared with what was acknowledged. Latencies count from when a request was due. Accepted to queryable: from the \
         answer to a single event among the load until Postgres shows its row. Least / **median** / most of {} rounds.",
        options.seconds, options.connections, options.events_per_request, number(options.users as f64, 0),
        options.conversions_percent, options.workers, options.rounds
    ));
    let mut rounds = Rounds::default();
    for _ in 0..options.rounds {
        let database = databases.create(None).await?;
        databases.settle().await?;
        let log = tempfile::tempdir_in(folder.path())?;
        let path = log.path().to_str().context("a folder whose name is text")?;
        let workers = options.workers.to_string();
        let server = Server::start(&["serve", "--folder", path, "--database-url", &database.url, "--workers", &workers])?;
        round(options, &databases, &database, server, &mut rounds).await?;
        databases.remove(database).await?;
    }
    page.table(&rounds.rows());
    page.finish(options.save.as_deref())
}

impl Rounds {
    fn rows(&self) -> Vec<Vec<String>> {
        let rows = [
            ("accepted, events/s", &self.accepted, 0),
            ("stored, events/s, from the first request to the last row", &self.stored, 0),
            ("seconds from the load's end to the last row", &self.drain, 2),
            ("answers, p50 ms", &self.answer_p50, 1),
            ("answers, p99 ms", &self.answer_p99, 1),
            ("accepted to queryable, p50 ms", &self.visible_p50, 0),
            ("accepted to queryable, p99 ms", &self.visible_p99, 0),
            ("accepted to queryable, longest, ms", &self.visible_max, 0),
            ("collector and aggregator, CPU s per million", &self.server_cpu, 2),
            ("Postgres, CPU s per million", &self.postgres_cpu, 2),
            ("generator, CPU s per million", &self.generator_cpu, 2),
            ("collector and aggregator, peak MiB", &self.memory, 0),
        ];
        let rows = rows.into_iter().map(|(name, figures, decimals)| vec![name.to_owned(), figures.spread(decimals)]);
        std::iter::once(vec!["".to_owned(), "least / **median** / most".to_owned()]).chain(rows).collect()
    }
}

async fn round(
    options: &Options,
    databases: &Databases,
    database: &Database,
    server: Server,
    rounds: &mut Rounds,
) -> anyhow::Result<()> {
    let load = load::Options {
        connections: options.connections,
        events_per_request: options.events_per_request,
        rate: options.rate,
        seconds: options.seconds,
        users: options.users,
        conversions_percent: options.conversions_percent,
        ..load::Options::new(&server.url, KEY)
    };
    let mut connection = database.connect().await?;
    let project = project(&mut connection).await?;
    let cpu = || (server.cpu_seconds(), databases.cpu_seconds(), machine::own_cpu_seconds());
    let before = cpu();
    let began = Instant::now();
    let probing = tokio::spawn(probe(options.clone(), server.url.clone(), database.connect().await?, project));
    let report = tokio::task::spawn_blocking(move || load::run(&load)).await??;
    let ended = Instant::now();
    let visible = probing.await??;
    if report.acknowledged == 0 || !report.trouble.is_empty() {
        bail!("not every answer was a success, so the rate says nothing\n{report}");
    }
    let expected = report.acknowledged + visible.count();
    while stored(&mut connection).await? < expected {
        if ended.elapsed() > DRAIN_MAX {
            bail!("{} of {expected} events are stored, {} s after the load", stored(&mut connection).await?, DRAIN_MAX.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (took, drained) = (began.elapsed(), ended.elapsed());
    let after = cpu();
    let found = count(&mut connection).await?;
    let sent = Counted { rows: report.acknowledged, weight: report.weight };
    if found != sent {
        bail!("stored {found:?}, but acknowledged {sent:?}");
    }
    connection.close().await?;

    crate::progress(&format!("{expected} events stored in {:.2} s", took.as_secs_f64()));
    let millions = expected as f64 / 1e6;
    let milliseconds = |histogram: &Histogram, quantile| histogram.quantile(quantile).as_secs_f64() * 1e3;
    rounds.accepted.push(report.rate());
    rounds.stored.push(expected as f64 / took.as_secs_f64());
    rounds.drain.push(drained.as_secs_f64());
    rounds.answer_p50.push(milliseconds(&report.latency, 0.5));
    rounds.answer_p99.push(milliseconds(&report.latency, 0.99));
    rounds.visible_p50.push(milliseconds(&visible, 0.5));
    rounds.visible_p99.push(milliseconds(&visible, 0.99));
    rounds.visible_max.push(visible.max().as_secs_f64() * 1e3);
    rounds.server_cpu.push((after.0 - before.0) / millions);
    rounds.postgres_cpu.push((after.1 - before.1) / millions);
    rounds.generator_cpu.push((after.2 - before.2) / millions);
    rounds.memory.push(server.peak_memory_mib());
    tokio::task::spawn_blocking(move || server.stop()).await??;
    Ok(())
}

/// A probe on its way: its event, and when it was accepted.
type Probe = (Uuid, Instant);

/// Posts single events while the load lasts, and returns how long each took to be in Postgres.
async fn probe(options: Options, url: String, mut postgres: sqlx::PgConnection, project: Uuid) -> anyhow::Result<Histogram> {
    let (sender, mut accepted) = mpsc::unbounded_channel::<Probe>();
    let sending = tokio::spawn(send_probes(options, url, sender));
    let mut pending: Vec<Probe> = Vec::new();
    let mut latencies = Histogram::default();
    let mut last_seen = Instant::now();
    loop {
        if pending.is_empty() {
            match accepted.recv().await {
                Some(probe) => pending.push(probe),
                None => break,
            }
            last_seen = Instant::now();
        }
        while let Ok(probe) = accepted.try_recv() {
            pending.push(probe);
        }
        let ids: Vec<Uuid> = pending.iter().map(|(id, _)| *id).collect();
        let found: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM engagement_events WHERE project_id = $1 AND id = ANY ($2)")
            .bind(project)
            .bind(&ids)
            .fetch_all(&mut postgres)
            .await?;
        let now = Instant::now();
        pending.retain(|(id, since)| {
            let is_there = found.contains(id);
            if is_there {
                latencies.record(now - *since);
                last_seen = now;
            }
            !is_there
        });
        if last_seen.elapsed() > DRAIN_MAX {
            bail!("{} accepted events are not in Postgres after {} s", pending.len(), DRAIN_MAX.as_secs());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    sending.await??;
    postgres.close().await?;
    Ok(latencies)
}

async fn send_probes(options: Options, url: String, accepted: mpsc::UnboundedSender<Probe>) -> anyhow::Result<()> {
    let mut connection = Connection::new(Target::new(&url, KEY, 1)?, Duration::from_secs(30));
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / f64::from(options.probes_per_second.max(1))));
    let ends = Instant::now() + Duration::from_secs_f64(options.seconds);
    while Instant::now() < ends {
        ticks.tick().await;
        let id = Uuid::new_v4();
        let body = serde_json::json!({ "events": [{
            "type": "engagement", "event_id": id, "user_id": Uuid::new_v4(), "timestamp": Micros::now().to_string(), "name": "probe",
        }] });
        match connection.send(body.to_string().into()).await {
            Outcome::Accepted { rejected } if rejected.is_empty() => {
                // The other end waits for all of them, unless it failed; then nobody wants them.
                let _ = accepted.send((id, Instant::now()));
            }
            outcome => bail!("a probe was not accepted: {outcome:?}"),
        }
    }
    Ok(())
}
