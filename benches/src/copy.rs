//! The aggregator against COPY: the same rows, into the same tables with the same indexes, on the same server. Over Kafka also
//! against a bare loop from the topic to the tables.
//!
//! A first round, which is not measured, stores the events with the aggregator and reads the rows back as COPY writes them,
//! in the order of the log. So both sides of each later round begin with an equal, empty database that knows the
//! experiment, and end with equal fact rows. COPY has its bytes ready in memory: it neither decodes, nor checks, nor
//! deduplicates, nor derives anything.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use async_trait::async_trait;
use eventlog::embedded::{EmbeddedLog, Options as LogOptions};
use eventlog::{Append, LogIdentity, Offset, Read, ReadBound, ReadError, StoredRecord};
use events::identity::Dialect;
use events::rules::{self, RequestContext, Unit};
use events::{EventId, Micros, ProjectId, Record};
use futures_util::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::database::{Counted, Database, Databases, count, project, stored};
use crate::machine;
use crate::payload::{Mix, Plan, Random};
use crate::report::{Figures, Page};

/// Settings of the comparison.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Events in each round
    #[arg(long, default_value_t = 500_000)]
    pub events: u64,
    /// How many users they belong to
    #[arg(long, default_value_t = 200_000)]
    pub users: u64,
    /// How many in 100 events are conversions, where there are any
    #[arg(long, default_value_t = 5)]
    pub conversions_percent: u64,
    /// How many in 100 events are sent a second time, up to 100,000 events later
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub duplicates_percent: u64,
    /// How many in 100 events are late, by one to twenty days
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub late_percent: u64,
    /// Workers of the aggregator
    #[arg(long, default_value_t = 1)]
    pub workers: u32,
    /// Events in one transaction of the aggregator, at most
    #[arg(long, default_value_t = 20_000)]
    pub batch_events_max: u32,
    /// How often each side runs
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Server to measure on, whose user may make databases and run CHECKPOINT; none: a private one, with fsync off
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: Option<String>,
    /// Measure over Kafka: the brokers, in which topics are made; none: over the embedded log
    #[cfg(feature = "kafka")]
    #[arg(long)]
    pub kafka: Option<String>,
    /// Folder for the log's files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

/// What one side of one round took.
pub(crate) struct Cost {
    seconds: f64,
    own_cpu: f64,
    postgres_cpu: f64,
}

#[derive(Default)]
struct Side {
    rates: Figures,
    own_cpu: Figures,
    postgres_cpu: Figures,
}

impl Side {
    fn push(&mut self, events: u64, cost: &Cost) {
        let millions = events as f64 / 1e6;
        self.rates.push(events as f64 / cost.seconds);
        self.own_cpu.push(cost.own_cpu / millions);
        self.postgres_cpu.push(cost.postgres_cpu / millions);
    }

    fn row(&self, name: &str, ratio: Option<Figures>) -> Vec<String> {
        let ratio = ratio.map_or_else(|| "1".to_owned(), |ratio| ratio.spread(2));
        vec![name.to_owned(), self.rates.spread(0), ratio, self.own_cpu.spread(2), self.postgres_cpu.spread(2)]
    }
}

impl Options {
    #[cfg(feature = "kafka")]
    fn brokers(&self) -> Option<&str> {
        self.kafka.as_deref()
    }

    #[cfg(not(feature = "kafka"))]
    fn brokers(&self) -> Option<&str> {
        None
    }
}

/// Who stores the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Copy,
    Aggregator,
    /// Only over Kafka.
    Loop,
}

/// Runs the comparison and returns its page.
/// # Errors
/// Whatever fails first, and rows that are not what was sent.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let mut databases = Databases::open(options.database_url.as_deref()).await?;
    let facts = vec![databases.facts().await?];
    let (name, title, log, bare) = match options.brokers() {
        Some(_) => (
            "copy-kafka",
            "The aggregator over Kafka against a bare loop, and COPY BINARY of the same rows",
            "a topic of 8 partitions",
            " The bare loop reads the same topic, parses each record, copies the rows straight into the tables and moves the offsets in the \
             same transaction; it looks up no name, so experiments stay null, deduplicates nothing and derives nothing.",
        ),
        None => ("copy", "The aggregator against COPY BINARY of the same rows", "the embedded log", ""),
    };
    let mut page = Page::new(name, title, folder.path(), facts);
    page.say(&format!(
        "{} events of {} users in each round, {} in 100 of them sent twice, {} in 100 late by days, {} worker(s), from {log}. All sides use the same server, begin with \
         an empty database of the same schema and end with the same fact rows; their order turns round each time, \
         with a CHECKPOINT before each. Own CPU is that of this process, the server's not included.{bare} \
         Least / **median** / most of {} rounds.",
        options.events, options.users, options.duplicates_percent, options.late_percent, options.workers, options.rounds
    ));
    let parts = [
        ("Rows alone (engagement)", Mix::Engagement),
        ("With participation, attribution and daily sums", Mix::Exposures { conversions_percent: options.conversions_percent }),
    ];
    for (number, (title, mix)) in parts.into_iter().enumerate() {
        let plan = Plan { seed: 1 + number as u64, users: options.users, mix };
        let log = Log::open(options, folder.path(), number).await?;
        let sides = compare(options, &mut databases, plan, log).await.with_context(|| title.to_owned())?;
        let head = ["", "rows/s", "of COPY", "own CPU s per million", "Postgres CPU s per million"];
        page.say(&format!("## {title}"));
        let mut table = vec![head.map(str::to_owned).to_vec()];
        let copy = &sides[0].1.rates;
        for (who, side) in &sides {
            let (name, ratio) = match who {
                Who::Copy => ("COPY BINARY, one stream", None),
                Who::Aggregator => ("aggregator", Some(side.rates.ratio_to(copy))),
                Who::Loop => ("bare loop", Some(side.rates.ratio_to(copy))),
            };
            table.push(side.row(name, ratio));
        }
        page.table(&table);
        if let Some((_, bare)) = sides.iter().find(|(who, _)| *who == Who::Loop) {
            page.say(&format!("The aggregator's rate to the loop's: {}.", sides[1].1.rates.ratio_to(&bare.rates).spread(2)));
        }
    }
    page.finish(options.save.as_deref())
}

async fn compare(options: &Options, databases: &mut Databases, plan: Plan, log: Log) -> anyhow::Result<Vec<(Who, Side)>> {
    let template = databases.create(None).await?;
    let mut connection = template.connect().await?;
    let mess = Mess { duplicates_percent: options.duplicates_percent, late_percent: options.late_percent };
    let expected = fill(&log, plan, options.events, mess, project(&mut connection).await?).await?;
    store(options.events, (options.workers, options.batch_events_max), databases, &template, &log).await?;
    check(&mut connection, expected).await?;
    let rows = Rows::read(&mut connection).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("TRUNCATE {}", EMPTIED.join(", ")))).execute(&mut connection).await?;
    connection.close().await?;

    let mut sides = vec![(Who::Copy, Side::default()), (Who::Aggregator, Side::default())];
    if options.brokers().is_some() {
        sides.push((Who::Loop, Side::default()));
    }
    for round in 0..options.rounds {
        let mut turns: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            let (who, side) = &mut sides[turn];
            let database = databases.create(Some(&template)).await?;
            databases.settle().await?;
            let cost = match who {
                Who::Copy => rows.write(databases, &database).await?,
                Who::Aggregator => {
                    store(options.events, (options.workers, options.batch_events_max), databases, &database, &log).await?
                }
                Who::Loop => bare_loop(options, databases, &database, &log).await?,
            };
            side.push(options.events, &cost);
            crate::progress(&format!("round {}: {who:?} took {:.2} s", round + 1, cost.seconds));
            let mut connection = database.connect().await?;
            check(&mut connection, expected).await?;
            connection.close().await?;
            databases.remove(database).await?;
        }
    }
    databases.remove(template).await?;
    Ok(sides)
}

#[cfg(feature = "kafka")]
async fn bare_loop(options: &Options, databases: &Databases, database: &Database, log: &Log) -> anyhow::Result<Cost> {
    use crate::bare_kafka_loop;
    let (brokers, topic) = (options.brokers().context("brokers")?, log.topic.as_deref().context("a topic")?);
    let identity = log.read.identity();
    let log_id = identity.log_id;
    bare_kafka_loop::know(log_id, identity.partitions, database).await?;
    let (own, postgres) = (machine::own_cpu_seconds(), databases.cpu_seconds());
    let began = Instant::now();
    bare_kafka_loop::store(brokers, topic, log_id, options.events, database).await?;
    Ok(Cost {
        seconds: began.elapsed().as_secs_f64(),
        own_cpu: machine::own_cpu_seconds() - own,
        postgres_cpu: databases.cpu_seconds() - postgres,
    })
}

#[cfg(not(feature = "kafka"))]
async fn bare_loop(_: &Options, _: &Databases, _: &Database, _: &Log) -> anyhow::Result<Cost> {
    bail!("built without Kafka")
}

/// What a round fills; the catalogue stays.
const EMPTIED: [&str; 15] = [
    "impressions",
    "conversions",
    "campaign_events",
    "engagement_events",
    "identity_events",
    "untimed_ids",
    "dead_letters",
    "user_experiment_participation",
    "conversion_attribution",
    "daily_rollups",
    "leases",
    "aggregators",
    "project_progress",
    "checkpoints",
    "logs",
];

async fn check(connection: &mut PgConnection, expected: Counted) -> anyhow::Result<()> {
    let found = count(connection).await?;
    if found != expected {
        bail!("stored {found:?}, but sent {expected:?}");
    }
    Ok(())
}

/// What of a stream is not as it should be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mess {
    /// Of all records those that were there before.
    duplicates_percent: u64,
    /// Of all events those that come days after they happened.
    late_percent: u64,
}

impl Mess {
    const DUPLICATES_WITHIN: u64 = 100_000;
    const LATE_DAYS_MAX: u64 = 20;

    /// Returns which event the record of a number holds, and whether it is that for the second time.
    fn event(&self, plan: &Plan, number: u64) -> (u64, bool) {
        let mut random = Random::new(plan.seed ^ 0x6475_706c, number);
        let is_duplicate = random.next() % 100 < self.duplicates_percent;
        let back = random.next() % Self::DUPLICATES_WITHIN + 1;
        match number.checked_sub(back) {
            Some(earlier) if is_duplicate => (self.event(plan, earlier).0, true),
            _ => (number, false),
        }
    }

    /// Returns by how much an event is late, in microseconds.
    fn late_us(&self, plan: &Plan, number: u64) -> i64 {
        let mut random = Random::new(plan.seed ^ 0x6c61_7465, number);
        let is_late = random.next() % 100 < self.late_percent;
        let days = random.next() % Self::LATE_DAYS_MAX + 1;
        if is_late { days as i64 * 86_400 * Micros::SECOND } else { 0 }
    }
}

/// Appends the plan's events as the collector would: admitted by the same rules, encoded by the same code. Returns what is to be stored.
pub(crate) async fn fill(log: &Log, plan: Plan, events: u64, mess: Mess, project: Uuid) -> anyhow::Result<Counted> {
    let received_at = Micros::now();
    let request = RequestContext {
        project: ProjectId(project),
        unit: Unit::User,
        backfill: false,
        horizon: None,
        dialect: Dialect::Native,
        received_at,
        sent_at: None,
    };
    let mut expected = Counted { rows: 0, weight: 0 };
    let mut batch = Vec::with_capacity(5_000);
    for number in 0..events {
        let (event, is_duplicate) = mess.event(&plan, number);
        // A steady stream that ends now.
        let at = Micros(received_at.0 - (events - event) as i64 * 50 - mess.late_us(&plan, event));
        if !is_duplicate {
            expected.rows += 1;
            expected.weight += u128::from(plan.facts(event).weight);
        }
        let event = rules::admit(plan.draft(event, at), &request, || EventId(Uuid::now_v7()))
            .map_err(|rejections| anyhow::anyhow!("event {number} is refused: {rejections:?}"))?;
        batch.push(Record::encode(&event));
        if batch.len() == 5_000 || number + 1 == events {
            log.append.append(std::mem::replace(&mut batch, Vec::with_capacity(5_000))).await?;
        }
    }
    Ok(expected)
}

/// Runs the aggregator over the log until all of it is stored.
pub(crate) async fn store(
    events: u64,
    (workers, batch_events_max): (u32, u32),
    databases: &Databases,
    database: &Database,
    log: &Log,
) -> anyhow::Result<Cost> {
    let mut connection = database.connect().await?;
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = aggregator::Config { workers, batch_events_max, ..aggregator::Config::new(address, database.url.clone()) };
    let (own, postgres) = (machine::own_cpu_seconds(), databases.cpu_seconds());
    let began = Instant::now();
    let aggregator = aggregator::Aggregator::start(config, Arc::clone(&log.read), Arc::clone(&log.append)).await?;
    let mut last = (0, began);
    while last.0 < events {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = stored(&mut connection).await?;
        if now > last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > Duration::from_secs(60) {
            bail!("stored {now} of {events} events, and nothing more for a minute");
        }
    }
    let cost = Cost {
        seconds: began.elapsed().as_secs_f64(),
        own_cpu: machine::own_cpu_seconds() - own,
        postgres_cpu: databases.cpu_seconds() - postgres,
    };
    aggregator.stop().await;
    connection.close().await?;
    Ok(cost)
}

/// The fact rows of all events, as COPY reads and writes them.
struct Rows(Vec<(&'static str, Vec<Vec<u8>>)>);

impl Rows {
    async fn read(connection: &mut PgConnection) -> anyhow::Result<Self> {
        // As the aggregator sends them: Postgres holds a message whole before it reads its first row.
        const CHUNK_BYTES: usize = 64 << 10;
        let mut tables = Vec::new();
        for table in ["conversions", "engagement_events", "impressions"] {
            let statement = format!("COPY (SELECT * FROM {table} ORDER BY log_offset, log_partition) TO STDOUT (FORMAT BINARY)");
            let mut stream = connection.copy_out_raw(&statement).await?;
            let mut chunks: Vec<Vec<u8>> = vec![Vec::with_capacity(CHUNK_BYTES + 4096)];
            while let Some(bytes) = stream.try_next().await? {
                match chunks.last_mut() {
                    Some(last) if last.len() < CHUNK_BYTES => last.extend_from_slice(&bytes),
                    _ => {
                        let mut next = Vec::with_capacity(CHUNK_BYTES + 4096);
                        next.extend_from_slice(&bytes);
                        chunks.push(next);
                    }
                }
            }
            tables.push((table, chunks));
        }
        Ok(Rows(tables))
    }

    async fn write(&self, databases: &Databases, database: &Database) -> anyhow::Result<Cost> {
        let mut connection = database.connect().await?;
        let (own, postgres) = (machine::own_cpu_seconds(), databases.cpu_seconds());
        let began = Instant::now();
        for (table, chunks) in &self.0 {
            let mut copy = connection.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT BINARY)")).await?;
            for chunk in chunks {
                copy.send(chunk.as_slice()).await?;
            }
            copy.finish().await?;
        }
        let cost = Cost {
            seconds: began.elapsed().as_secs_f64(),
            own_cpu: machine::own_cpu_seconds() - own,
            postgres_cpu: databases.cpu_seconds() - postgres,
        };
        connection.close().await?;
        Ok(cost)
    }
}

/// A filled log that is read again in each round.
pub(crate) struct Log {
    read: Arc<dyn Read>,
    append: Arc<dyn Append>,
    /// Over Kafka.
    #[cfg(feature = "kafka")]
    topic: Option<String>,
}

impl Log {
    async fn open(options: &Options, folder: &Path, number: usize) -> anyhow::Result<Self> {
        #[cfg(feature = "kafka")]
        if let Some(brokers) = options.brokers() {
            use eventlog::kafka::{Config, KafkaLog};
            let topic = format!("bench-copy-{}-{number}", std::process::id());
            let log = KafkaLog::open(Config { topic: topic.clone(), ..Config::new(brokers) }).await.context("the topic")?;
            return Ok(Log { read: Arc::new(log.clone()), append: Arc::new(log), topic: Some(topic) });
        }
        let _ = options;
        Self::open_embedded(&folder.join(format!("log-{number}")))
    }

    /// Opens an embedded log in a folder of its own.
    pub(crate) fn open_embedded(folder: &Path) -> anyhow::Result<Self> {
        let log = EmbeddedLog::open(folder, LogOptions::default()).context("the log")?;
        Ok(Log {
            read: Arc::new(Kept(log.clone())),
            append: Arc::new(log),
            #[cfg(feature = "kafka")]
            topic: None,
        })
    }
}

/// An embedded log that keeps what its reader releases.
struct Kept(EmbeddedLog);

#[async_trait]
impl Read for Kept {
    fn identity(&self) -> LogIdentity {
        self.0.identity()
    }

    fn is_exclusive(&self) -> bool {
        self.0.is_exclusive()
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.0.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.0.read(partition, from, bound).await
    }

    async fn release(&self, _: u32, _: Offset) {}
}
