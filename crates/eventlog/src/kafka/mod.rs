//! The log over Kafka: a topic whose partitions are the log partitions.
//!
//! # Constraints
//!
//! - **Acknowledged means in all replicas in sync.** `acks=all`, an idempotent producer, and an append that waits for each
//!   record's report. Whether that survives a power cut is the brokers' matter: by default they do not sync to the disk.
//! - **No transactions, no compaction.** Their marks and holes would be gaps; a topic that compacts is refused, and a gap is an
//!   error ([`ReadError::Corrupt`]), never skipped.
//! - **A log is a topic's id, not its name.** [`KafkaLog::check`] tells a topic that was deleted and made anew from the one that was
//!   opened. After a difference nothing is appended or read any more.
//! - **No consumer group.** Who reads a log partition is decided elsewhere, by leases; the offsets that Kafka is told are a hint for
//!   tools that show lag.
//! - **Bounded.** Appends on their way by [`Config::in_flight_bytes_max`]; records fetched ahead by 8 MiB for each log partition
//!   that is read.
//!
//! # Format
//!
//! A record's value is the bytes of `events::wire`, its key the user id as 36 lowercase characters, its partition the bucket's log
//! partition. Kafka's default partitioner comes to the same partition, since both hash the key with murmur2.
//!
//! # Operations
//!
//! - **Open** (`topic.rs`): find the topic or make it, check its settings, derive the identity.
//! - **Append** (`producer.rs`): hand each record to the library, and answer with the last delivery report; `outcome.rs` says
//!   which failures leave nothing behind.
//! - **Read** (`reader.rs`): a queue for each log partition, filled ahead of its reader.
//! - **Brokers** (`brokers.rs`): a client of the library that lost all its brokers is given the first ones again.
//! - **Native** (`native.rs`): the few calls that the Rust wrapper of the library lacks.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use events::Record;
use tokio::task::JoinHandle;

use crate::background::Background;
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

mod brokers;
mod config;
mod native;
mod outcome;
mod producer;
mod reader;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod topic;

pub use config::{APPEND_WAIT, Config, PARTITIONS_DEFAULT, TOPIC_DEFAULT, properties};
pub use topic::{Compared, Difference};

use config::Checked;
use producer::{Counters, Producer};
use reader::Reader;
use topic::{Asker, Connection, blocking};

/// Why a log cannot be opened. Nothing is changed by it, except that the topic may have been made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is wrong, or contradicts what the log promises. Opening again does not help.
    #[error("{0}")]
    Config(String),
    /// The brokers do not answer, or not yet. Opening again may help.
    #[error("Kafka cannot be reached: {0}")]
    Unreachable(String),
    /// The topic cannot be a log, or may not be used by us.
    #[error("topic {0}: {1}")]
    Refused(String, String),
    /// The topic has a number of partitions that does not divide 64.
    #[error(
        "topic {topic}: it has {found} partitions; a log has 1, 2, 4, 8, 16, 32 or 64. Name another topic, or let Weir create it"
    )]
    Partitions {
        /// The topic's name.
        topic: String,
        /// How many it has.
        found: u32,
    },
    /// The brokers give the topic no id, so that the log could not be told from another one of its name.
    #[error("{0}")]
    NoTopicId(String),
}

/// Counts since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records acknowledged.
    pub records: u64,
    /// Appends of which nothing is there.
    pub unavailable: u64,
    /// Appends of which something may be there.
    pub unknown: u64,
    /// Producers that gave up and were replaced.
    pub rebuilds: u64,
    /// Readers that heard nothing from brokers that were well, and were replaced.
    pub readers_replaced: u64,
}

/// The log. Clones share it; when the last one is dropped, appends that wait get their answers first, for two seconds at most.
#[derive(Clone)]
pub struct KafkaLog {
    shared: Arc<Shared>,
}

struct Shared {
    identity: LogIdentity,
    checked: Checked,
    connection: Arc<Connection>,
    counters: Arc<Counters>,
    asker: Arc<Asker>,
    /// What the last comparisons said.
    agreement: Mutex<Agreement>,
    /// Since when each comparison was answered, and each partition had a leader.
    well_since: Mutex<Option<Instant>>,
    /// Made at first use: a collector reads nothing, and an aggregator appends nothing.
    producer: OnceLock<Producer>,
    /// Held while the producer is made.
    making: Mutex<()>,
    reader: Mutex<Option<Arc<Reader>>>,
    background: Background,
}

/// How long the end of a log waits for the library to close its consumer. It waits itself for every answer that it was not given, ten
/// seconds each, although none of them matters: offsets in Kafka are a hint.
const CLOSE_MAX: Duration = Duration::from_secs(2);

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(reader) = lock(&self.reader).take() else { return };
        let closing = close(reader);
        // Beyond that it closes beside whatever comes, or ends with the process.
        let _ = closing.recv_timeout(CLOSE_MAX);
    }
}

/// Closes a reader beside whatever comes, when the last read that has it is over; without a thread it is closed here. What is returned
/// tells when it is closed, by hanging up.
fn close(reader: Arc<Reader>) -> std::sync::mpsc::Receiver<()> {
    let (closed, until_closed) = std::sync::mpsc::channel::<()>();
    let close = move || {
        let mut shared = Some(reader);
        while let Some(reader) = shared.take() {
            shared = Arc::try_unwrap(reader).err();
            if shared.is_some() {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        drop(closed);
    };
    let _ = std::thread::Builder::new().name("kafka-close".to_owned()).spawn(close);
    until_closed
}

#[derive(Clone, Debug)]
enum Agreement {
    /// Opened without asking, and not compared yet.
    NotCompared,
    Agreed,
    /// For good.
    Differs(Difference),
}

impl KafkaLog {
    /// Opens the log: finds the topic, or makes it, and checks that it can be a log.
    /// Waits up to [`Config::open_wait_max`] for brokers that do not answer yet.
    /// # Errors
    /// [`OpenError`].
    pub async fn open(config: Config) -> Result<KafkaLog, OpenError> {
        let checked = Checked::new(config)?;
        let connection = Arc::new(Connection::default());
        let asker = Arc::new(Asker::new(&checked, &connection)?);
        let identity = asker.open().await?;
        Ok(KafkaLog::new(checked, connection, asker, identity, Agreement::Agreed))
    }

    /// Opens a log that is known from an earlier time, without asking the brokers. Until [`check`](Self::check) has found it to be
    /// the same, appends and reads are refused as unavailable.
    /// # Errors
    /// [`OpenError::Config`]; [`OpenError::Partitions`] if the identity's number does not divide 64.
    pub fn open_as(config: Config, identity: LogIdentity) -> Result<KafkaLog, OpenError> {
        let checked = Checked::new(config)?;
        let found = identity.partitions;
        if found == 0 || !events::bucket::BUCKETS.is_multiple_of(found) {
            return Err(OpenError::Partitions { topic: checked.config.topic.clone(), found });
        }
        let connection = Arc::new(Connection::default());
        let asker = Arc::new(Asker::new(&checked, &connection)?);
        Ok(KafkaLog::new(checked, connection, asker, identity, Agreement::NotCompared))
    }

    fn new(
        checked: Checked,
        connection: Arc<Connection>,
        asker: Arc<Asker>,
        identity: LogIdentity,
        agreement: Agreement,
    ) -> Self {
        let shared = Shared {
            identity,
            checked,
            connection,
            counters: Arc::default(),
            asker,
            agreement: Mutex::new(agreement),
            well_since: Mutex::new(None),
            producer: OnceLock::new(),
            making: Mutex::new(()),
            reader: Mutex::new(None),
            background: Background::default(),
        };
        KafkaLog { shared: Arc::new(shared) }
    }

    /// Returns which log it is.
    pub fn identity(&self) -> LogIdentity {
        self.shared.identity
    }

    /// Asks the brokers whether the topic is still the log that was opened. A difference lasts: from then on appends are
    /// [`AppendError::Stopped`], and reads [`ReadError::OtherLog`]. Answers within 12 s; may be cancelled.
    pub async fn check(&self) -> Compared {
        let (asker, identity) = (Arc::clone(&self.shared.asker), self.shared.identity);
        let compared = match blocking(move || Ok(asker.compare(identity))).await {
            Ok(compared) => compared,
            Err(refused) => Compared::Unreachable(refused.text),
        };
        self.shared.replace_if_deaf(compared == Compared::Same && self.shared.asker.is_all_led());
        let mut agreement = lock(&self.shared.agreement);
        match (&compared, &*agreement) {
            (_, Agreement::Differs(difference)) => return Compared::Different(*difference),
            (Compared::Different(difference), _) => {
                let topic = &self.shared.checked.config.topic;
                tracing::error!(topic, %difference, "the log is not the one that was opened; nothing is appended to it or read from it");
                *agreement = Agreement::Differs(*difference);
            }
            (Compared::Same, _) => {
                self.shared.connection.works();
                *agreement = Agreement::Agreed;
            }
            (Compared::Unreachable(_), _) => {}
        }
        compared
    }

    /// Compares the log every 10 s from now on, for as long as the returned task is not aborted: a reader halts when it is
    /// another one.
    pub fn keep_compared(&self) -> JoinHandle<()> {
        let log = self.clone();
        self.shared.background.task(COMPARE_TASK, move || {
            let log = log.clone();
            async move {
                loop {
                    tokio::time::sleep(COMPARE_EVERY).await;
                    log.shared.background.checkpoint(COMPARE_TASK);
                    log.check().await;
                }
            }
        })
    }

    /// Returns counts, for metrics.
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            records: counters.records.load(Ordering::Relaxed),
            unavailable: counters.unavailable.load(Ordering::Relaxed),
            unknown: counters.unknown.load(Ordering::Relaxed),
            rebuilds: counters.rebuilds.load(Ordering::Relaxed),
            readers_replaced: counters.readers_replaced.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Returns the error of every append, if there is one.
    fn appendable(&self) -> Result<(), AppendError> {
        match &*lock(&self.agreement) {
            Agreement::Agreed => Ok(()),
            Agreement::NotCompared => Err(AppendError::Unavailable(NOT_COMPARED.to_owned())),
            Agreement::Differs(difference) => Err(AppendError::Stopped(difference.to_string())),
        }
    }

    /// Returns the error of every read, if there is one.
    fn readable(&self) -> Result<(), ReadError> {
        match &*lock(&self.agreement) {
            Agreement::Agreed => Ok(()),
            Agreement::NotCompared => Err(ReadError::Unavailable(NOT_COMPARED.to_owned())),
            Agreement::Differs(difference) => Err(ReadError::OtherLog(difference.to_string())),
        }
    }

    fn producer(&self) -> Result<&Producer, AppendError> {
        let start = || Producer::start(&self.checked, &self.connection, &self.counters, &self.background);
        made(&self.producer, &self.making, start).map_err(|error| AppendError::Unavailable(error.to_string()))
    }

    fn reader(&self) -> Result<Arc<Reader>, ReadError> {
        let mut reader = lock(&self.reader);
        if let Some(reader) = &*reader {
            return Ok(Arc::clone(reader));
        }
        let start = Reader::start(&self.checked, &self.connection, self.identity.partitions, &self.background);
        let new = Arc::new(start.map_err(|error| ReadError::Unavailable(error.to_string()))?);
        *reader = Some(Arc::clone(&new));
        Ok(new)
    }

    /// Drops a reader that has heard nothing for long, while another client of the library was answered all the time: the next read makes
    /// a new one, and begins at its own offset.
    fn replace_if_deaf(&self, are_brokers_well: bool) {
        let mut well_since = lock(&self.well_since);
        *well_since = well_since.filter(|_| are_brokers_well).or_else(|| are_brokers_well.then(Instant::now));
        let well_for = well_since.map_or(Duration::ZERO, |since| since.elapsed());
        let mut reader = lock(&self.reader);
        if reader.as_ref().is_some_and(|reader| reader.deaf_for().min(well_for) >= DEAF_MAX) {
            tracing::warn!(
                topic = self.checked.config.topic,
                "the Kafka client reads nothing, although the brokers are well; it is replaced"
            );
            self.counters.readers_replaced.fetch_add(1, Ordering::Relaxed);
            reader.take().map(close);
        }
    }
}

/// How long a reader may hear nothing from brokers that are well, before it is replaced.
const DEAF_MAX: Duration = Duration::from_secs(30);
/// How often a log is compared with what it was when it was opened.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
const COMPARE_TASK: &str = "kafka-compare";
const NOT_COMPARED: &str = "the log has not been compared with the one that was agreed on";

/// Returns what is in a cell, making it if need be.
fn made<'a, T>(
    cell: &'a OnceLock<T>,
    making: &Mutex<()>,
    make: impl FnOnce() -> Result<T, OpenError>,
) -> Result<&'a T, OpenError> {
    if let Some(there) = cell.get() {
        return Ok(there);
    }
    let _making = lock(making);
    if let Some(there) = cell.get() {
        return Ok(there);
    }
    let new = make()?;
    Ok(cell.get_or_init(|| new))
}

/// Takes a lock. What the locks of this module guard is changed in single steps, so a panic elsewhere leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Append for KafkaLog {
    fn identity(&self) -> LogIdentity {
        self.shared.identity
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        self.shared.appendable()?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let positions = self.shared.producer()?.append(batch, self.shared.identity.partitions).await?;
        if let Some(reader) = &*lock(&self.shared.reader) {
            for (partition, offset) in positions.iter().filter_map(|position| Some((position.partition, position.offset?))) {
                reader.note(partition, offset);
            }
        }
        Ok(positions)
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.shared.appendable()?;
        if let Some(trouble) = self.shared.connection.trouble() {
            return Err(AppendError::Unavailable(trouble));
        }
        self.shared.producer()?.ready()
    }

    fn background(&self) -> Background {
        self.shared.background.clone()
    }
}

#[async_trait]
impl Read for KafkaLog {
    fn identity(&self) -> LogIdentity {
        self.shared.identity
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.shared.readable()?;
        self.shared.reader()?.offsets(partition).await
    }

    async fn end(&self, partition: u32) -> Result<Offset, ReadError> {
        self.shared.readable()?;
        self.shared.reader()?.end(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.shared.readable()?;
        self.shared.reader()?.read(partition, from, bound).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        // Who has read nothing has nothing to release.
        if let Some(reader) = &*lock(&self.shared.reader) {
            reader.release(partition, offset);
        }
    }

    fn background(&self) -> Background {
        self.shared.background.clone()
    }
}
