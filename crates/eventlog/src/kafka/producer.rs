//! Appending. Records go to the library one by one; the answer of an append is sent by whichever of its delivery reports comes
//! last, so an append costs one allocation for all its records, and one wake-up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use events::Record;
use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::brokers::Brokers;
use super::config::{Checked, Role};
use super::outcome::{self, Outcome};
use super::topic::{Connection, log_line};
use super::{OpenError, lock, native};
use crate::background::Background;
use crate::{AppendError, Offset, Position};

/// What a record takes in memory in addition to its bytes, here and in the library.
const RECORD_OVERHEAD_BYTES: usize = 512;
/// How long an append waits for others to leave room in memory.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(1);
/// How soon a producer that gave up may be replaced again.
const REBUILD_EVERY: Duration = Duration::from_secs(1);
/// How long a poll waits for reports; also how long the thread takes to notice that it should end.
const POLL: Duration = Duration::from_millis(100);
/// How long a producer that is no longer used may go on with what it has.
const DRAIN_MAX: Duration = Duration::from_secs(2);

type Answer = Result<Vec<Position>, AppendError>;

/// Counts since the log was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) records: AtomicU64,
    pub(super) unavailable: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) rebuilds: AtomicU64,
    pub(super) readers_replaced: AtomicU64,
}

/// What is known of an append's records so far.
#[derive(Debug, Default)]
struct Reports {
    /// Log partition and offset of each record that is there.
    delivered: Vec<(u32, Offset)>,
    /// Records that are surely not there.
    absent: usize,
    /// The first failure.
    failure: Option<String>,
}

/// One append, shared by its records. When the last of them lets go of it, the answer is known and sent; so it is even if
/// the library drops a report.
pub(super) struct Appending {
    reports: Mutex<Reports>,
    /// One for each record; the offsets are filled in at the end.
    positions: Vec<Position>,
    answer: Option<oneshot::Sender<Answer>>,
    counters: Arc<Counters>,
    /// Given back with the rest.
    _room: OwnedSemaphorePermit,
}

impl Appending {
    fn delivered(&self, partition: u32, offset: i64) {
        let mut reports = lock(&self.reports);
        match Offset::try_from(offset) {
            Ok(offset) => reports.delivered.push((partition, offset)),
            // It is there, but was found there only when it was sent again, and the broker no longer knew where.
            Err(_) => {
                reports.failure.get_or_insert_with(|| "a record is there, but its offset is not known".to_owned());
            }
        }
    }

    fn failed(&self, records: usize, outcome: Outcome, reason: impl FnOnce() -> String) {
        let mut reports = lock(&self.reports);
        if outcome == Outcome::Absent {
            reports.absent += records;
        }
        reports.failure.get_or_insert_with(reason);
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        let reports = std::mem::take(&mut *lock(&self.reports));
        let count = self.positions.len();
        let reason = || reports.failure.clone().unwrap_or_else(|| "a delivery report is missing".to_owned());
        let result = if reports.delivered.len() == count {
            self.counters.records.fetch_add(count as u64, Ordering::Relaxed);
            Ok(placed(std::mem::take(&mut self.positions), reports.delivered))
        } else if reports.absent == count {
            self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
            Err(AppendError::Unavailable(reason()))
        } else {
            self.counters.unknown.fetch_add(1, Ordering::Relaxed);
            Err(AppendError::Unknown(reason()))
        };
        // Who waited may have gone.
        let _ = answer.send(result);
    }
}

/// Fills in the offsets. Reports may come in any order, but the records of one append get rising offsets in each log
/// partition, since an idempotent producer keeps their order.
fn placed(mut positions: Vec<Position>, mut delivered: Vec<(u32, Offset)>) -> Vec<Position> {
    if let ([position], [(_, offset)]) = (positions.as_mut_slice(), delivered.as_slice()) {
        position.offset = Some(*offset);
        return positions;
    }
    delivered.sort_unstable();
    let mut next: std::collections::HashMap<u32, usize> = std::collections::HashMap::new();
    for (place, (partition, _)) in delivered.iter().enumerate() {
        next.entry(*partition).or_insert(place);
    }
    for position in &mut positions {
        // Both were counted from the same records, so there is an entry for each.
        if let Some(place) = next.get_mut(&position.partition)
            && let Some((_, offset)) = delivered.get(*place)
        {
            position.offset = Some(*offset);
            *place += 1;
        }
    }
    positions
}

/// Takes the library's reports.
struct Receiver {
    connection: Arc<Connection>,
    brokers: Brokers,
    /// The producer may have given up.
    is_suspect: AtomicBool,
    /// The producer has given up, and takes nothing more.
    is_fatal: AtomicBool,
}

impl ClientContext for Receiver {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn stats(&self, statistics: Statistics) {
        self.brokers.count(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // A fatal error comes here under the code of its cause, so that it is to be asked for.
        self.is_suspect.store(true, Ordering::Relaxed);
        self.connection.note(&error, reason);
    }
}

impl ProducerContext for Receiver {
    type DeliveryOpaque = Arc<Appending>;

    fn delivery(&self, result: &DeliveryResult<'_>, appending: Arc<Appending>) {
        match result {
            Ok(message) => {
                self.connection.works();
                // Partitions are not negative.
                appending.delivered(message.partition() as u32, message.offset());
            }
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                let outcome = outcome::of(code, native::is_absent(message));
                appending.failed(1, outcome, || reason_of(code, message.partition()));
            }
        }
    }
}

fn reason_of(code: RDKafkaErrorCode, partition: i32) -> String {
    format!("log partition {partition}: {code}")
}

/// The name of the thread that takes reports.
pub(super) const THREAD: &str = "kafka-reports";

/// A producer of the library, and the thread that takes its reports.
struct Live {
    producer: Arc<BaseProducer<Receiver>>,
    is_ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    fn start(checked: &Checked, connection: &Arc<Connection>, background: &Background) -> Result<Self, OpenError> {
        let receiver = Receiver {
            connection: Arc::clone(connection),
            brokers: Brokers::default(),
            is_suspect: AtomicBool::new(false),
            is_fatal: AtomicBool::new(false),
        };
        let producer = BaseProducer::from_config_and_context(&checked.client(Role::Producer), receiver);
        let producer = Arc::new(producer.map_err(|error| OpenError::Config(error.to_string()))?);
        let is_ended = Arc::new(AtomicBool::new(false));
        let poll = {
            let (producer, is_ended) = (Arc::clone(&producer), Arc::clone(&is_ended));
            let servers = checked.config.brokers.clone();
            let background = background.clone();
            move || {
                while !is_ended.load(Ordering::Relaxed) {
                    background.checkpoint(THREAD);
                    producer.poll(POLL);
                    let receiver = producer.context();
                    receiver.brokers.bring_back(producer.client(), &servers);
                    if receiver.is_suspect.swap(false, Ordering::Relaxed)
                        && let Some((code, reason)) = producer.client().fatal_error()
                        && !receiver.is_fatal.swap(true, Ordering::Relaxed)
                    {
                        tracing::error!(%code, reason, "the producer gave up; it is replaced");
                    }
                }
                // Appends that wait still get their answers.
                let deadline = Instant::now() + DRAIN_MAX;
                while producer.in_flight_count() > 0 && Instant::now() < deadline {
                    producer.poll(POLL / 10);
                }
            }
        };
        let thread = background.thread(THREAD, poll);
        let thread = thread.map_err(|error| OpenError::Config(format!("a thread cannot be started: {error}")))?;
        Ok(Live { producer, is_ended, thread: Some(thread) })
    }

    fn is_fatal(&self) -> bool {
        self.producer.context().is_fatal.load(Ordering::Relaxed)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.is_ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panics are caught and reported by `Background`.
            let _ = thread.join();
        }
    }
}

/// Appends to one topic. What the library holds is bounded; a producer that gave up is replaced.
pub(super) struct Producer {
    checked: Checked,
    connection: Arc<Connection>,
    counters: Arc<Counters>,
    room: Arc<Semaphore>,
    live: RwLock<Arc<Live>>,
    /// When the last one was made.
    made: Mutex<Instant>,
    background: Background,
}

impl Producer {
    /// Makes the producer; connects in the background.
    pub(super) fn start(
        checked: &Checked,
        connection: &Arc<Connection>,
        counters: &Arc<Counters>,
        background: &Background,
    ) -> Result<Self, OpenError> {
        let live = Live::start(checked, connection, background)?;
        Ok(Producer {
            checked: checked.clone(),
            connection: Arc::clone(connection),
            counters: Arc::clone(counters),
            room: Arc::new(Semaphore::new(checked.config.in_flight_bytes_max as usize)),
            live: RwLock::new(Arc::new(live)),
            made: Mutex::new(Instant::now()),
            background: background.clone(),
        })
    }

    /// Appends records to a topic of so many log partitions; see [`crate::Append::append`].
    pub(super) async fn append(&self, batch: Vec<Record>, partitions: u32) -> Answer {
        let room = self.room(&batch).await?;
        let answered = self.send(&batch, partitions, room)?;
        // The library has copies.
        drop(batch);
        answered.await.unwrap_or_else(|_| Err(AppendError::Unknown("the producer ended".to_owned())))
    }

    /// Returns whether there is room for one more record, and a producer.
    pub(super) fn ready(&self) -> Result<(), AppendError> {
        if self.room.available_permits() == 0 {
            return Err(AppendError::Unavailable(no_room(&self.checked)));
        }
        self.live().map(drop)
    }

    async fn room(&self, batch: &[Record]) -> Result<OwnedSemaphorePermit, AppendError> {
        let most = self.checked.config.in_flight_bytes_max;
        let need: usize = batch.iter().map(|record| record.bytes().len() + RECORD_OVERHEAD_BYTES).sum();
        // A batch above the bound takes all of it and goes alone.
        let permits = u32::try_from(need).unwrap_or(u32::MAX).min(most);
        let room = Arc::clone(&self.room);
        if let Ok(permit) = Arc::clone(&room).try_acquire_many_owned(permits) {
            return Ok(permit);
        }
        match tokio::time::timeout(ROOM_WAIT_MAX, room.acquire_many_owned(permits)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                self.counters.unavailable.fetch_add(1, Ordering::Relaxed);
                Err(AppendError::Unavailable(no_room(&self.checked)))
            }
        }
    }

    fn send(
        &self,
        batch: &[Record],
        partitions: u32,
        room: OwnedSemaphorePermit,
    ) -> Result<oneshot::Receiver<Answer>, AppendError> {
        let live = self.live()?;
        let positions: Vec<Position> =
            batch.iter().map(|record| Position { partition: record.bucket().log_partition(partitions), offset: None }).collect();
        let (answer, answered) = oneshot::channel();
        let reports = Mutex::new(Reports { delivered: Vec::with_capacity(batch.len()), ..Reports::default() });
        let targets: Vec<i32> = positions.iter().map(|position| position.partition as i32).collect();
        let counters = Arc::clone(&self.counters);
        let appending = Arc::new(Appending { reports, positions, answer: Some(answer), counters, _room: room });
        let mut key = [0u8; 36];
        for (place, (record, partition)) in batch.iter().zip(targets).enumerate() {
            let key: &str = record.key().0.hyphenated().encode_lower(&mut key);
            let message = BaseRecord::with_opaque_to(&self.checked.config.topic, Arc::clone(&appending))
                .partition(partition)
                .payload(record.bytes().as_ref())
                .key(key);
            if let Err((error, _)) = live.producer.send(message) {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                if code == RDKafkaErrorCode::Fatal {
                    live.producer.context().is_fatal.store(true, Ordering::Relaxed);
                }
                // What the library did not take is not sent; the rest of the batch would stand alone.
                appending.failed(batch.len() - place, Outcome::Absent, || reason_of(code, partition));
                break;
            }
        }
        Ok(answered)
    }

    /// Returns the producer, a new one if the last one gave up.
    fn live(&self) -> Result<Arc<Live>, AppendError> {
        let live = Arc::clone(&self.live.read().unwrap_or_else(std::sync::PoisonError::into_inner));
        if !live.is_fatal() {
            return Ok(live);
        }
        let mut made = lock(&self.made);
        let mut current = self.live.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !current.is_fatal() {
            return Ok(Arc::clone(&current));
        }
        if made.elapsed() < REBUILD_EVERY {
            return Err(AppendError::Unavailable("the producer gave up, and is about to be replaced".to_owned()));
        }
        *made = Instant::now();
        let next = Live::start(&self.checked, &self.connection, &self.background)
            .map_err(|error| AppendError::Unavailable(format!("the producer gave up and cannot be replaced: {error}")))?;
        self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        let next = Arc::new(next);
        let spent = std::mem::replace(&mut *current, Arc::clone(&next));
        drop((current, made, live));
        // It still has reports to give, which takes a while.
        let end = move || drop(spent);
        if let Err(error) = std::thread::Builder::new().name("kafka-spent".to_owned()).spawn(end) {
            tracing::warn!("a thread cannot be started: {error}");
        }
        Ok(next)
    }
}

fn no_room(checked: &Checked) -> String {
    format!("{} bytes of records are on their way to Kafka already", checked.config.in_flight_bytes_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_go_to_their_records_whatever_order_reports_have() {
        let check = |partitions: &[u32], delivered: &[(u32, Offset)], expected: &[Offset]| {
            let positions = partitions.iter().map(|partition| Position { partition: *partition, offset: None }).collect();
            let found: Vec<Offset> =
                placed(positions, delivered.to_vec()).iter().filter_map(|position| position.offset).collect();
            assert_eq!(found, expected);
        };
        check(&[3], &[(3, 17)], &[17]);
        check(&[0, 0, 0], &[(0, 6), (0, 5), (0, 8)], &[5, 6, 8]);
        check(&[1, 0, 1, 7, 0], &[(7, 0), (1, 41), (0, 9), (1, 40), (0, 8)], &[40, 8, 41, 0, 9]);
    }
}
