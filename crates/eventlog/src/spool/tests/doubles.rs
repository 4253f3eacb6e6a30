//! A primary and a store that fail on demand, and count the steps at which the process may end.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use events::Record;

use super::super::partition::lock;
use super::super::store::Store;
use crate::memory::MemoryLog;
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

/// Log partitions of the logs in these tests.
pub(super) const PARTITIONS: u32 = 4;

/// Points in time at which the process can be made to end: from a chosen one on, nothing goes on.
#[derive(Clone, Default)]
pub(super) struct Steps {
    state: Arc<Mutex<(u64, Option<u64>)>>,
    crashed: Arc<tokio::sync::Notify>,
}

impl Steps {
    /// Ends the process at the step of this number, counted from 1.
    pub(super) fn crash_at(step: u64) -> Self {
        let steps = Steps::default();
        lock(&steps.state).1 = Some(step);
        steps
    }

    /// Passes a step, or never returns.
    async fn pass(&self) {
        let goes_on = {
            let mut state = lock(&self.state);
            state.0 += 1;
            state.1.is_none_or(|crash| state.0 < crash)
        };
        if !goes_on {
            self.crashed.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the process has ended.
    pub(super) async fn crashed(&self) {
        self.crashed.notified().await;
        self.crashed.notify_one();
    }

    pub(super) fn passed(&self) -> u64 {
        lock(&self.state).0
    }
}

/// What a call of the primary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Works,
    /// Takes so long.
    Slow(Duration),
    /// Takes so long, and stores the records even if nobody waits any more.
    Late(Duration),
    /// Never answers; the records are not stored.
    Hangs,
    Unavailable,
    /// Stores this share of each log partition's records, of 4 quarters, and does not know it.
    Unknown(usize),
    Stopped,
}

/// A log in memory that fails as it is told.
#[derive(Clone)]
pub(super) struct Primary {
    pub(super) log: MemoryLog,
    pub(super) steps: Steps,
    state: Arc<Mutex<PrimaryState>>,
}

struct PrimaryState {
    /// What calls do, one after the other; then `usual`.
    next: VecDeque<Way>,
    usual: Way,
    /// Whose log answers now; a broker may come back as another one.
    answers: Option<MemoryLog>,
    appends: u64,
    largest: usize,
}

impl Primary {
    pub(super) fn new(steps: Steps) -> Self {
        Primary::over(MemoryLog::new(PARTITIONS), steps)
    }

    pub(super) fn over(log: MemoryLog, steps: Steps) -> Self {
        let state = PrimaryState { next: VecDeque::new(), usual: Way::Works, answers: None, appends: 0, largest: 0 };
        Primary { log, steps, state: Arc::new(Mutex::new(state)) }
    }

    /// Says what calls do from now on.
    pub(super) fn set(&self, way: Way) {
        let mut state = lock(&self.state);
        state.next.clear();
        state.usual = way;
    }

    /// Says what the next call does.
    pub(super) fn push(&self, way: Way) {
        lock(&self.state).next.push_back(way);
    }

    /// Lets another log answer in its place.
    pub(super) fn replace(&self, log: Option<MemoryLog>) {
        lock(&self.state).answers = log;
    }

    /// Calls so far, and the largest batch since the last time.
    pub(super) fn calls(&self) -> (u64, usize) {
        let mut state = lock(&self.state);
        (state.appends, std::mem::take(&mut state.largest))
    }

    fn answering(&self) -> MemoryLog {
        lock(&self.state).answers.clone().unwrap_or_else(|| self.log.clone())
    }

    /// What an honest comparison finds.
    pub(super) fn compare(&self, agreed: LogIdentity) -> super::Comparison {
        let way = lock(&self.state).usual;
        let found = Append::identity(&self.answering());
        match way {
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) if found == agreed => super::Comparison::Same,
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) => {
                super::Comparison::Different(format!("log {} answers", found.log_id))
            }
            Way::Unavailable | Way::Hangs | Way::Stopped => super::Comparison::Unreachable("down".to_owned()),
        }
    }
}

#[async_trait]
impl Append for Primary {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.log)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let (way, log) = {
            let mut state = lock(&self.state);
            state.appends += 1;
            state.largest = state.largest.max(batch.len());
            (state.next.pop_front().unwrap_or(state.usual), state.answers.clone().unwrap_or_else(|| self.log.clone()))
        };
        self.steps.pass().await;
        let appended = match way {
            Way::Works => log.append(batch).await,
            Way::Slow(wait) => {
                tokio::time::sleep(wait).await;
                log.append(batch).await
            }
            Way::Late(wait) => {
                let late = async move {
                    tokio::time::sleep(wait).await;
                    log.append(batch).await
                };
                tokio::spawn(late).await.unwrap_or_else(|error| Err(AppendError::Unknown(error.to_string())))
            }
            Way::Hangs => std::future::pending().await,
            Way::Unavailable => Err(AppendError::Unavailable("primary: told to".to_owned())),
            Way::Stopped => Err(AppendError::Stopped("primary: told to".to_owned())),
            Way::Unknown(quarters) => {
                for partition in 0..PARTITIONS {
                    let own: Vec<Record> =
                        batch.iter().filter(|record| record.bucket().log_partition(PARTITIONS) == partition).cloned().collect();
                    let stored = own.len() * quarters / 4;
                    log.append(own[..stored].to_vec()).await?;
                }
                Err(AppendError::Unknown("primary: told to".to_owned()))
            }
        };
        self.steps.pass().await;
        appended
    }

    fn ready(&self) -> Result<(), AppendError> {
        match lock(&self.state).usual {
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) => Ok(()),
            Way::Stopped => Err(AppendError::Stopped("primary: told to".to_owned())),
            Way::Hangs | Way::Unavailable => Err(AppendError::Unavailable("primary: told to".to_owned())),
        }
    }
}

/// What an append to the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disk {
    Works,
    /// Stores at once, and says so after this time.
    Slow(Duration),
    Full,
    /// Fails in doubt; the records are stored, or not.
    Unknown {
        stored: bool,
    },
    Stopped,
}

/// What survives the process: the records of the spool, and the note.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) log: MemoryLog,
    note: Arc<Mutex<Option<Vec<Offset>>>>,
    primary: Arc<Mutex<Option<LogIdentity>>>,
    disk: Arc<Mutex<Disk>>,
    pub(super) damaged: Arc<Mutex<Vec<(u32, Offset)>>>,
    /// Records that come back as other bytes.
    pub(super) garbled: Arc<Mutex<Vec<(u32, Offset)>>>,
    /// Damaged files cannot be copied.
    pub(super) keeps_nothing: Arc<AtomicBool>,
}

impl Kept {
    pub(super) fn new() -> Self {
        let log = MemoryLog::new(PARTITIONS);
        Kept {
            log,
            note: Arc::default(),
            primary: Arc::default(),
            disk: Arc::new(Mutex::new(Disk::Works)),
            damaged: Arc::default(),
            garbled: Arc::default(),
            keeps_nothing: Arc::default(),
        }
    }

    pub(super) fn set(&self, disk: Disk) {
        *lock(&self.disk) = disk;
    }

    /// Forgets how far the spool was drained.
    pub(super) fn lose_note(&self) {
        *lock(&self.note) = None;
    }
}

/// A store over what is kept, until the process ends.
pub(super) struct MemoryStore {
    pub(super) kept: Kept,
    pub(super) steps: Steps,
    /// Set by the first append that stopped it; only a new store works again.
    pub(super) is_stopped: AtomicBool,
}

#[async_trait]
impl Append for MemoryStore {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.kept.log)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let stopped = || Err(AppendError::Stopped("store: told to".to_owned()));
        if self.is_stopped.load(Ordering::Relaxed) {
            return stopped();
        }
        self.steps.pass().await;
        let disk = *lock(&self.kept.disk);
        let appended = match disk {
            Disk::Works => self.kept.log.append(batch).await,
            Disk::Slow(wait) => {
                let appended = self.kept.log.append(batch).await;
                tokio::time::sleep(wait).await;
                appended
            }
            Disk::Full => Err(AppendError::Unavailable("store: told to".to_owned())),
            Disk::Unknown { stored } => {
                if stored {
                    self.kept.log.append(batch).await?;
                }
                Err(AppendError::Unknown("store: told to".to_owned()))
            }
            Disk::Stopped => {
                self.is_stopped.store(true, Ordering::Relaxed);
                stopped()
            }
        };
        self.steps.pass().await;
        appended
    }

    fn ready(&self) -> Result<(), AppendError> {
        match *lock(&self.kept.disk) {
            Disk::Works | Disk::Slow(_) => Ok(()),
            _ => Err(AppendError::Unavailable("store: told to".to_owned())),
        }
    }
}

#[async_trait]
impl Read for MemoryStore {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.kept.log)
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.kept.log.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.steps.pass().await;
        let mut read = self.kept.log.read(partition, from, bound).await?;
        let garbled = lock(&self.kept.garbled);
        for record in read.iter_mut().filter(|record| garbled.contains(&(partition, record.offset))) {
            record.bytes = bytes::Bytes::from_static(b"{\"v\":99}");
        }
        Ok(read)
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.steps.pass().await;
        self.kept.log.release(partition, offset).await;
        self.steps.pass().await;
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn range(&self, partition: u32) -> Range<Offset> {
        self.kept.log.range(partition)
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn bytes_from(&self, partition: u32, from: Offset) -> u64 {
        self.range(partition).end.saturating_sub(from)
    }

    async fn copy_damaged(&self, partition: u32, offset: Offset) -> io::Result<()> {
        if self.kept.keeps_nothing.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        lock(&self.kept.damaged).push((partition, offset));
        Ok(())
    }

    fn damaged_files(&self) -> u64 {
        lock(&self.kept.damaged).len() as u64
    }

    async fn note_drained(&self, drained: Vec<Offset>) -> io::Result<()> {
        self.steps.pass().await;
        *lock(&self.kept.note) = Some(drained);
        self.steps.pass().await;
        Ok(())
    }

    fn noted_drained(&self) -> io::Result<Option<Vec<Offset>>> {
        Ok(lock(&self.kept.note).clone())
    }

    fn note_primary(&self, primary: LogIdentity) -> io::Result<()> {
        *lock(&self.kept.primary) = Some(primary);
        Ok(())
    }

    fn noted_primary(&self) -> io::Result<Option<LogIdentity>> {
        Ok(*lock(&self.kept.primary))
    }
}
