//! A log that may be late, down, in doubt, and for a while another one. Both sides of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use eventlog::memory::MemoryLog;
use eventlog::spool::{Compare, Comparison};
use eventlog::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};
use events::Record;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::judge::Judge;
use super::process::Process;
use super::run::{Run, Seen, broke, note};

/// What happens to requests.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Milliseconds of a request.
    pub delay: Range<u64>,
    /// Share of appends that take longer than a collector waits.
    pub late: f64,
    /// Share of appends of which only a part is stored, or whose answer is lost.
    pub doubtful: f64,
    /// Share of appends and of reads that are refused.
    pub refused: f64,
}

impl Weather {
    pub(super) const FAIR: Weather = Weather { delay: 1..4, late: 0.0, doubtful: 0.0, refused: 0.0 };
}

/// Which log answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    Agreed,
    /// None: it is down.
    Nothing,
    /// One that was made anew under its name.
    Another,
}

struct State {
    answers: Answers,
    /// Raised each time that connections are lost.
    connections: u64,
    weather: Weather,
}

/// The log, as its broker has it. Clones are the same one.
#[derive(Clone)]
pub(super) struct Log {
    run: Run,
    judge: Judge,
    durable: MemoryLog,
    /// Something was appended.
    grown: Arc<Notify>,
    state: Arc<Mutex<State>>,
}

impl Log {
    pub(super) fn new(run: &Run, judge: &Judge, partitions: u32) -> Self {
        let state = State { answers: Answers::Agreed, connections: 0, weather: Weather::FAIR };
        let durable = MemoryLog::with_id(Uuid::from_u128(1), partitions);
        Log { run: run.clone(), judge: judge.clone(), durable, grown: Arc::default(), state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets this answer from now on. Connections are lost, and so is what was not durable and not acknowledged.
    pub(super) fn set(&self, answers: Answers) {
        note!(self.run, "log: {answers:?} answers");
        let mut state = self.state();
        state.answers = answers;
        state.connections += 1;
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.state().weather = weather;
    }

    /// Returns the log as a collector reaches it.
    pub(super) fn appender(&self, process: &Arc<Process>) -> Appender {
        Appender { log: self.clone(), process: Arc::clone(process), connection: Arc::default() }
    }

    /// Makes records durable, of each log partition a beginning of this share.
    async fn store(&self, batch: &[Record], share: f64) -> Vec<Position> {
        let partition_of = |record: &Record| record.bucket().log_partition(Append::identity(&self.durable).partitions);
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        batch.iter().for_each(|record| *left.entry(partition_of(record)).or_default() += 1);
        left.values_mut().for_each(|size| *size = (*size as f64 * share).ceil() as usize);
        let mut stored = Vec::new();
        for record in batch {
            let partition = partition_of(record);
            if let Some(left) = left.get_mut(&partition).filter(|left| **left > 0) {
                *left -= 1;
                self.judge.appended(partition, record.bytes().clone());
                stored.push(record.clone());
            }
        }
        // Works at once.
        let positions = self.durable.append(stored).await.unwrap_or_default();
        self.grown.notify_waiters();
        positions
    }

    /// What the broker does with a request that arrives.
    async fn append(self, connection: u64, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let weather = self.state().weather.clone();
        self.run.wait(weather.delay.clone()).await;
        if self.run.chance(weather.late) {
            self.run.saw(Seen::LateAppend);
            self.run.wait(5_000..40_000).await;
        }
        if self.state().connections != connection || self.run.chance(weather.refused) {
            self.run.saw(Seen::RefusedAppend);
            return Err(AppendError::Unavailable("the connection was lost".to_owned()));
        }
        if self.state().answers == Answers::Another {
            broke!(self.run, AnotherLog, "{} records were sent to another log", batch.len());
        }
        // In the broker's memory, and not durable yet.
        self.run.wait(weather.delay).await;
        if self.state().connections != connection {
            self.run.saw(Seen::LostTail);
            let share = self.run.one_of(&[0.0, 0.5, 1.0]);
            self.store(&batch, share).await;
            return Err(AppendError::Unknown("the connection was lost before the answer came".to_owned()));
        }
        if self.run.chance(weather.doubtful) {
            self.run.saw(Seen::UnknownAppend);
            let share = self.run.one_of(&[0.0, 0.5, 1.0]);
            self.store(&batch, share).await;
            return Err(AppendError::Unknown("the answer was lost".to_owned()));
        }
        Ok(self.store(&batch, 1.0).await)
    }

    /// A request for reading, up to its answer.
    async fn request(&self) -> Result<(), ReadError> {
        let Weather { delay, refused, .. } = self.state().weather.clone();
        self.run.wait(delay).await;
        let answers = self.state().answers;
        match answers {
            Answers::Another => Err(ReadError::OtherLog("it was made anew".to_owned())),
            Answers::Nothing => {
                sleep(Duration::from_millis(500)).await;
                Err(ReadError::Unavailable("it is down".to_owned()))
            }
            Answers::Agreed if self.run.chance(refused) => Err(ReadError::Unavailable("it does not want to".to_owned())),
            Answers::Agreed => Ok(()),
        }
    }
}

/// The log as one collector reaches it.
#[derive(Clone)]
pub(super) struct Appender {
    log: Log,
    process: Arc<Process>,
    /// The number of the connection that it has.
    connection: Arc<AtomicU64>,
}

#[async_trait]
impl Append for Appender {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.log.durable)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let turn = batch.first().map_or(0, |first| u64::from(crc32c::crc32c(first.bytes())));
        self.log.run.turn(turn).await;
        if self.process.is_dead() {
            std::future::pending::<()>().await;
        }
        let present = {
            let state = self.log.state();
            let had = self.connection.swap(state.connections, Ordering::Relaxed);
            (had == state.connections && state.answers != Answers::Nothing).then_some(had)
        };
        let Some(connection) = present else {
            self.log.run.saw(Seen::RefusedAppend);
            return Err(AppendError::Unavailable("the connection was lost".to_owned()));
        };
        let (tell, told) = oneshot::channel();
        let log = self.log.clone();
        // What was sent is stored, whoever waits for the answer.
        tokio::spawn(async move { tell.send(log.append(connection, batch).await) });
        told.await.unwrap_or_else(|_| Err(AppendError::Unknown("the broker is gone".to_owned())))
    }

    fn ready(&self) -> Result<(), AppendError> {
        Ok(())
    }
}

#[async_trait]
impl Compare for Appender {
    async fn compare(&self, _: LogIdentity) -> Comparison {
        let delay = self.log.state().weather.delay.clone();
        self.log.run.wait(delay).await;
        let answers = self.log.state().answers;
        match answers {
            Answers::Agreed => Comparison::Same,
            Answers::Nothing => Comparison::Unreachable("it is down".to_owned()),
            Answers::Another => {
                self.log.run.saw(Seen::AnotherLog);
                Comparison::Different("it was made anew".to_owned())
            }
        }
    }
}

#[async_trait]
impl Read for Log {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.durable)
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.request().await?;
        self.durable.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.request().await?;
        let arrived = async {
            loop {
                let mut grown = pin!(self.grown.notified());
                grown.as_mut().enable();
                if self.durable.offsets(partition).await?.end != from {
                    return Ok(());
                }
                grown.await;
            }
        };
        // Not the log's own wait, which wakes readers in any order.
        match timeout(bound.wait_max, arrived).await {
            Ok(arrived) => arrived?,
            Err(_) => return Ok(Vec::new()),
        }
        self.durable.read(partition, from, ReadBound { wait_max: Duration::ZERO, ..bound }).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.judge.released(partition, offset);
        self.durable.release(partition, offset).await;
    }
}
