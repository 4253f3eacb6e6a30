//! Reading. One consumer for all log partitions, which joins no group; each log partition has a queue of its own in it and a
//! place, the next offset that the queue will give. A read at that place takes what has come; any other read moves the place first,
//! after asking for the log partition's ends, so that an offset outside of them is named and never answered with other records.
//!
//! The library may lose a log partition, as when it was told that a broker is gone. A record that is known to be there and does not come
//! is asked for anew, from its own offset; where that does not help, the log replaces the whole reader ([`Reader::deaf_for`]).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset as Seek, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::brokers::Brokers;
use super::config::{Checked, Role};
use super::topic::{ASK_MAX, Connection, Context};
use super::{OpenError, lock};
use crate::background::Background;
use crate::{Offset, ReadBound, ReadError, StoredRecord};

/// How long a record that is known to be there may take to come, until it is asked for anew.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How often a waiting read polls without being woken.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How often released offsets are committed to Kafka.
pub(super) const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long a poll of the consumer waits; also how long its thread takes to notice that it should end.
const POLL: Duration = Duration::from_millis(100);
/// What one read returns at most, whatever its bound says.
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Records are copied into pieces of memory of this size.
const CHUNK_BYTES: usize = 64 * 1024;
/// How often a read moves to an offset that is inside the ends, and is told that it is not.
const MOVES_MAX: u32 = 3;

type LogConsumer = BaseConsumer<Context>;

/// One log partition.
struct Partition {
    number: u32,
    cursor: Mutex<Cursor>,
    /// Something may have come.
    arrived: Arc<Notify>,
    /// Held by the read that moves the cursor until it has its records, so that two reads in different places both come on.
    turn: tokio::sync::Mutex<()>,
    /// The end, as far as it is known to reads: what lies before it they wait for.
    end: AtomicU64,
    /// The end, as far as anybody was told.
    told: AtomicU64,
    /// The ends are asked for in vain.
    unanswered: Trouble,
    /// A record that is there is read in vain.
    unserved: Trouble,
}

/// Something that fails whenever it is tried.
#[derive(Default)]
struct Trouble(Mutex<Option<Troubled>>);

#[derive(Clone, Copy)]
struct Troubled {
    since: Instant,
    last: Instant,
}

impl Trouble {
    fn goes_on(&self) {
        let now = Instant::now();
        let mut trouble = lock(&self.0);
        // Who has not tried for long begins anew.
        let before = trouble.filter(|before| before.last.elapsed() < 2 * PATIENCE);
        *trouble = Some(Troubled { since: before.map_or(now, |before| before.since), last: now });
    }

    fn is_over(&self) {
        *lock(&self.0) = None;
    }

    /// Returns for how long it has failed, as far as it is still tried.
    fn lasts(&self) -> Duration {
        let trouble = lock(&self.0).filter(|trouble| trouble.last.elapsed() < 2 * PATIENCE);
        trouble.map_or(Duration::ZERO, |trouble| trouble.since.elapsed())
    }
}

/// Where a log partition is being read.
struct Cursor {
    queue: PartitionQueue<Context>,
    /// What the queue gave last, and what was read last, so that two readers of one place share it.
    window: VecDeque<StoredRecord>,
    /// The next offset that the queue gives; none: nowhere.
    next: Option<Offset>,
    /// When the cursor was moved to where it is.
    moved_at: Instant,
    /// Whether the consumer may have the log partition assigned.
    is_assigned: bool,
    chunk: BytesMut,
}

/// What the cursor has at an offset.
enum Found {
    Records(Vec<StoredRecord>),
    /// The cursor is at the offset, and nothing has come.
    Nothing,
    /// The cursor is not at the offset.
    Elsewhere,
}

/// Reads one topic.
pub(super) struct Reader {
    topic: String,
    // The queues go before the consumer that they belong to.
    partitions: Vec<Arc<Partition>>,
    consumer: Arc<LogConsumer>,
    released: Arc<Mutex<BTreeMap<u32, Offset>>>,
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Makes the consumer, and a second one that tells Kafka what was released: the library (2.12.1) begins to read no further log
    /// partition while offsets that the same consumer has told wait for an answer, which they do as long as the group has no coordinator.
    /// Connects in the background, and fetches nothing before something is read.
    pub(super) fn start(
        checked: &Checked,
        connection: &Arc<Connection>,
        partitions: u32,
        background: &Background,
    ) -> Result<Self, OpenError> {
        let make = || {
            let context = Context { connection: Arc::clone(connection), brokers: Brokers::default() };
            let consumer = LogConsumer::from_config_and_context(&checked.client(Role::Consumer), context);
            consumer.map_err(|error| OpenError::Config(error.to_string()))
        };
        let (consumer, teller) = (Arc::new(make()?), make()?);
        let topic = checked.config.topic.clone();
        let partition = |number: u32| {
            let queue = consumer.split_partition_queue(&topic, number as i32);
            let mut queue = queue.ok_or_else(|| OpenError::Config(format!("log partition {number} has no queue")))?;
            let arrived = Arc::new(Notify::new());
            queue.set_nonempty_callback({
                let arrived = Arc::clone(&arrived);
                move || arrived.notify_waiters()
            });
            let (window, chunk) = (VecDeque::new(), BytesMut::new());
            let cursor = Cursor { queue, window, next: None, moved_at: Instant::now(), is_assigned: false, chunk };
            Ok(Arc::new(Partition {
                number,
                cursor: Mutex::new(cursor),
                arrived,
                turn: tokio::sync::Mutex::new(()),
                end: AtomicU64::new(0),
                told: AtomicU64::new(0),
                unanswered: Trouble::default(),
                unserved: Trouble::default(),
            }))
        };
        let partitions = (0..partitions).map(partition).collect::<Result<Vec<_>, OpenError>>()?;
        let released = Arc::new(Mutex::new(BTreeMap::new()));
        let is_ended = Arc::new(AtomicBool::new(false));
        let serve = {
            let (consumer, topic) = (Arc::clone(&consumer), topic.clone());
            let (released, is_ended) = (Arc::clone(&released), Arc::clone(&is_ended));
            let servers = checked.config.brokers.clone();
            let background = background.clone();
            move || serve([&consumer, &teller], &servers, &topic, &released, &is_ended, &background)
        };
        let thread = background.thread(THREAD, serve);
        let thread = thread.map_err(|error| OpenError::Config(format!("a thread cannot be started: {error}")))?;
        Ok(Reader { topic, partitions, consumer, released, is_ended, thread: Some(thread) })
    }

    /// Notes that a record lies at an offset, so that a read which follows waits for it.
    pub(super) fn note(&self, partition: u32, offset: Offset) {
        if let Some(partition) = self.partitions.get(partition as usize) {
            partition.end.fetch_max(offset + 1, Ordering::Relaxed);
        }
    }

    /// See [`crate::Read::release`]. Tells Kafka, within a second, as the offset of a group that nobody joins.
    pub(super) fn release(&self, partition: u32, offset: Offset) {
        if (partition as usize) < self.partitions.len() {
            lock(&self.released).insert(partition, offset);
        }
    }

    /// Returns for how long a log partition has been read, or asked for its ends, in vain. Whether the brokers are well, it does not know.
    pub(super) fn deaf_for(&self) -> Duration {
        let deaf = self.partitions.iter().map(|log| log.unserved.lasts().max(log.unanswered.lasts()));
        deaf.max().unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn consumer(&self) -> &BaseConsumer<Context> {
        &self.consumer
    }

    /// See [`crate::Read::offsets`].
    pub(super) async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        let log = Arc::clone(self.partition(partition)?);
        let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        unless_ended(move || log.ends(&consumer, &topic)).await
    }

    /// See [`crate::Read::end`].
    pub(super) async fn end(&self, partition: u32) -> Result<Offset, ReadError> {
        let log = Arc::clone(self.partition(partition)?);
        let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        unless_ended(move || log.ask(&consumer, &topic).map(|ends| ends.end)).await
    }

    /// See [`crate::Read::read`].
    pub(super) async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        let log = self.partition(partition)?;
        let begin = Instant::now();
        let mut turn = None;
        let mut moves = 0;
        loop {
            let arrived = log.arrived.notified();
            tokio::pin!(arrived);
            // From here on nothing that comes is missed.
            arrived.as_mut().enable();
            match log.try_read(from, bound)? {
                Found::Records(records) => return Ok(records),
                Found::Nothing if log.is_overdue(from) => {
                    tracing::warn!(
                        partition,
                        offset = from,
                        "a record that is there has not come within {PATIENCE:?}; it is asked for anew"
                    );
                    continue;
                }
                Found::Nothing => {}
                Found::Elsewhere if turn.is_none() => {
                    turn = Some(log.turn.lock().await);
                    continue;
                }
                Found::Elsewhere if moves == MOVES_MAX => {
                    return Err(ReadError::Unavailable(format!(
                        "log partition {partition}: the brokers do not give offset {from}, although it lies between the ends"
                    )));
                }
                Found::Elsewhere => {
                    moves += 1;
                    self.move_to(log, from).await?;
                    continue;
                }
            }
            let is_there = from < log.end.load(Ordering::Relaxed);
            let waited = begin.elapsed();
            let wait_max = if is_there { PATIENCE } else { bound.wait_max };
            if waited >= wait_max {
                return if is_there {
                    Err(ReadError::Unavailable(format!(
                        "log partition {partition}: offset {from} has not come within {wait_max:?}"
                    )))
                } else {
                    Ok(Vec::new())
                };
            }
            if !is_there {
                turn = None;
            }
            // Woken or not, it tries again.
            let _ = tokio::time::timeout(POLL_EVERY.min(wait_max - waited), arrived).await;
        }
    }

    async fn move_to(&self, log: &Arc<Partition>, from: Offset) -> Result<(), ReadError> {
        let log = Arc::clone(log);
        let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        unless_ended(move || log.move_to(&consumer, &topic, from)).await
    }

    fn partition(&self, partition: u32) -> Result<&Arc<Partition>, ReadError> {
        let partitions = self.partitions.len() as u32;
        self.partitions.get(partition as usize).ok_or_else(|| crate::embedded::no_such_partition(partition, partitions))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and reported by `Background`.
            let _ = thread.join();
        }
    }
}

/// The name of the thread that serves the consumer.
pub(super) const THREAD: &str = "kafka-consumer";

/// Serves the consumer's own events, and tells Kafka what was released.
fn serve(
    [consumer, teller]: [&LogConsumer; 2],
    servers: &str,
    topic: &str,
    released: &Mutex<BTreeMap<u32, Offset>>,
    is_ended: &AtomicBool,
    background: &Background,
) {
    let mut told = std::time::Instant::now();
    loop {
        background.checkpoint(THREAD);
        let ends = is_ended.load(Ordering::Relaxed);
        if ends || told.elapsed() >= COMMIT_EVERY {
            told = std::time::Instant::now();
            let offsets = std::mem::take(&mut *lock(released));
            if !offsets.is_empty()
                && let Err(error) = commit(teller, topic, &offsets)
            {
                tracing::debug!(topic, "Kafka does not take the released offsets: {error}");
            }
        }
        if ends {
            return;
        }
        // Records come through the queues of the log partitions; what comes here are errors, which the context has noted.
        for (client, wait_max) in [(consumer, POLL), (teller, Duration::ZERO)] {
            if let Some(Err(error)) = client.poll(wait_max) {
                tracing::debug!(topic, "the consumer reports: {error}");
            }
            client.context().brokers.bring_back(client.client(), servers);
        }
    }
}

fn commit(consumer: &LogConsumer, topic: &str, offsets: &BTreeMap<u32, Offset>) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, *partition as i32, Seek::Offset(*offset as i64))?;
    }
    consumer.commit(&list, CommitMode::Async)
}

impl Partition {
    fn unavailable(&self, error: &KafkaError) -> ReadError {
        let reason = error.rdkafka_error_code().map_or_else(|| error.to_string(), |code| code.to_string());
        ReadError::Unavailable(format!("log partition {}: {reason}", self.number))
    }

    /// Asks for the ends; reads that follow know what is there. Blocks.
    fn ends(&self, consumer: &LogConsumer, topic: &str) -> Result<Range<Offset>, ReadError> {
        let ends = self.ask(consumer, topic)?;
        self.end.store(ends.end, Ordering::Relaxed);
        Ok(ends)
    }

    /// Asks for the ends. Blocks.
    fn ask(&self, consumer: &LogConsumer, topic: &str) -> Result<Range<Offset>, ReadError> {
        let deadline = std::time::Instant::now() + ASK_MAX;
        let ends = loop {
            match consumer.fetch_watermarks(topic, self.number as i32, ASK_MAX) {
                // A leader that was just chosen, or a broker that just started: they do not all know it yet.
                Err(error) if is_passing(&error) && std::time::Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => {
                    self.unanswered.goes_on();
                    return Err(self.unavailable(&error));
                }
                Ok(ends) => break ends,
            }
        };
        self.unanswered.is_over();
        consumer.context().connection.works();
        let (Ok(start), Ok(end)) = (Offset::try_from(ends.0), Offset::try_from(ends.1)) else {
            return Err(ReadError::Unavailable(format!("log partition {}: its ends are {} and {}", self.number, ends.0, ends.1)));
        };
        self.told.store(end, Ordering::Relaxed);
        Ok(start..end)
    }

    /// Moves the cursor to an offset inside the ends. Blocks.
    fn move_to(&self, consumer: &LogConsumer, topic: &str, from: Offset) -> Result<(), ReadError> {
        let Range { start, end } = self.ends(consumer, topic)?;
        let partition = self.number;
        if from < start {
            return Err(ReadError::BelowStart { partition, offset: from, start });
        }
        if from > end {
            return Err(ReadError::AboveEnd { partition, offset: from, end });
        }
        let mut cursor = lock(&self.cursor);
        cursor.window.clear();
        cursor.next = None;
        let list = |offset: Seek| {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(topic, partition as i32, offset).map(|()| list)
        };
        if cursor.is_assigned {
            // An error says that it is not assigned any more, which is what is wanted.
            let _ = list(Seek::Invalid).and_then(|list| consumer.incremental_unassign(&list));
        }
        // Also after an error, since then it is not known.
        cursor.is_assigned = true;
        let assigned = list(Seek::Offset(from as i64)).and_then(|list| consumer.incremental_assign(&list));
        assigned.map_err(|error| self.unavailable(&error))?;
        cursor.next = Some(from);
        cursor.moved_at = Instant::now();
        Ok(())
    }

    /// Notes that nothing has come at an offset. Returns whether the record there should have come by now, and forgets the place then,
    /// so that it is asked for anew.
    fn is_overdue(&self, from: Offset) -> bool {
        if from >= self.told.load(Ordering::Relaxed).max(self.end.load(Ordering::Relaxed)) {
            self.unserved.is_over();
            return false;
        }
        self.unserved.goes_on();
        let mut cursor = lock(&self.cursor);
        let is_overdue = self.unserved.lasts() >= PATIENCE && cursor.moved_at.elapsed() >= PATIENCE;
        // Another read may have moved it, or have got the record.
        if !is_overdue || cursor.next != Some(from) || !cursor.window.is_empty() {
            return false;
        }
        cursor.next = None;
        true
    }

    /// Returns what lies at an offset, if the cursor is there, and what has come after it.
    fn try_read(&self, from: Offset, bound: ReadBound) -> Result<Found, ReadError> {
        let mut cursor = lock(&self.cursor);
        let Some(next) = cursor.next else { return Ok(Found::Elsewhere) };
        let first = next - cursor.window.len() as u64;
        if from < first || from > next {
            return Ok(Found::Elsewhere);
        }
        cursor.window.drain(..(from - first) as usize);
        let bytes_max = bound.bytes_max.min(READ_BYTES_MAX);
        let mut bytes: usize = cursor.window.iter().map(|record| record.bytes.len()).sum();
        let mut fault = None;
        while cursor.window.len() < bound.records_max && bytes < bytes_max {
            match self.pop(&mut cursor) {
                Ok(Some(length)) => bytes += length,
                Ok(None) => break,
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        if cursor.window.is_empty() {
            return match fault {
                Some(error) => Err(error),
                None if cursor.next.is_none() => Ok(Found::Elsewhere),
                None => Ok(Found::Nothing),
            };
        }
        // A fault after good records shows again at the next read, from its own offset.
        let mut left = bytes_max;
        let mut fits = |record: &&StoredRecord| {
            let length = record.bytes.len();
            let fits = length <= left;
            left = left.saturating_sub(length);
            fits
        };
        let mut records: Vec<StoredRecord> =
            cursor.window.iter().take(bound.records_max).take_while(&mut fits).cloned().collect();
        if records.is_empty() {
            records.extend(cursor.window.front().cloned());
        }
        Ok(Found::Records(records))
    }

    /// Takes one record out of the queue into the window; returns its length. None: nothing is there, or the cursor lost its
    /// place, which then has no `next`.
    fn pop(&self, cursor: &mut Cursor) -> Result<Option<usize>, ReadError> {
        let Some(next) = cursor.next else { return Ok(None) };
        let partition = self.number;
        let Cursor { queue, window, chunk, .. } = cursor;
        let error = match queue.poll(Duration::ZERO) {
            None => return Ok(None),
            Some(Ok(message)) => {
                let found = u64::try_from(message.offset()).unwrap_or(u64::MAX);
                if found == next {
                    // A record without a value is none of ours; it becomes a dead letter like any other bytes.
                    let payload = message.payload().unwrap_or_default();
                    if chunk.capacity() < payload.len() {
                        *chunk = BytesMut::with_capacity(CHUNK_BYTES.max(payload.len()));
                    }
                    chunk.put_slice(payload);
                    window.push_back(StoredRecord { offset: next, bytes: chunk.split().freeze() });
                    self.end.fetch_max(next + 1, Ordering::Relaxed);
                    let length = payload.len();
                    drop(message);
                    cursor.next = Some(next + 1);
                    self.unserved.is_over();
                    return Ok(Some(length));
                }
                let reason = format!(
                    "the brokers give offset {found} instead; the records between were removed, or were not written by Weir"
                );
                (Some(next..found.max(next + 1)), reason)
            }
            Some(Err(error)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                match code {
                    // Expired, or the log lost its tail: the ends will tell.
                    RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange => {
                        cursor.next = None;
                        return Ok(None);
                    }
                    RDKafkaErrorCode::BadMessage | RDKafkaErrorCode::BadCompression => (Some(next..next + 1), code.to_string()),
                    _ => (None, code.to_string()),
                }
            }
        };
        match error {
            (Some(range), reason) => {
                cursor.next = None;
                tracing::error!(
                    partition,
                    first = range.start,
                    end = range.end,
                    "records of the log are missing or damaged: {reason}"
                );
                Err(ReadError::Corrupt { partition, range, reason })
            }
            (None, reason) => Err(ReadError::Unavailable(format!("log partition {partition}: {reason}"))),
        }
    }
}

fn is_passing(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        FencedLeaderEpoch, LeaderNotAvailable, NotLeaderForPartition, UnknownLeaderEpoch, UnknownPartition,
        UnknownTopicOrPartition,
    };
    matches!(
        error.rdkafka_error_code(),
        Some(
            FencedLeaderEpoch
                | LeaderNotAvailable
                | NotLeaderForPartition
                | UnknownLeaderEpoch
                | UnknownPartition
                | UnknownTopicOrPartition
        )
    )
}

/// Runs what blocks on the threads for that.
async fn unless_ended<T: Send + 'static>(run: impl FnOnce() -> Result<T, ReadError> + Send + 'static) -> Result<T, ReadError> {
    let ended = || ReadError::Unavailable("the runtime ends".to_owned());
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(ended()))
}
