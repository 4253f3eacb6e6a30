//! A spool whose folder is in memory and fails on demand, for the tests of this and other crates.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use events::Record;

use super::partition::lock;
use super::store::Store;
use super::{Compare, OpenError, Opener, Options, Spool};
use crate::memory::MemoryLog;
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

/// What an append to the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Stores.
    Works,
    /// Stores at once, and says so after this time.
    Slow(Duration),
    /// Refuses.
    Full,
    /// Fails in doubt.
    Unknown {
        /// Whether the records are stored.
        stored: bool,
    },
    /// Fails for good.
    Stopped,
}

/// What a store passes before and after each thing that it does. The records of an append are there after the first pass, and told
/// after the second.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// Returns when it goes on; never, if the process has ended. `turn` orders those who pass at the same time, in whatever order they
    /// came.
    async fn pass(&self, turn: u64);
}

/// What survives the process: the records of the spool, and the notes. Clones share it.
#[derive(Clone)]
pub struct Kept {
    /// The records.
    pub log: MemoryLog,
    note: Arc<Mutex<Option<Vec<Offset>>>>,
    primary: Arc<Mutex<Option<LogIdentity>>>,
    disk: Arc<Mutex<Disk>>,
    /// Copied files of damaged records.
    pub damaged: Arc<Mutex<Vec<(u32, Offset)>>>,
    /// Records that come back as other bytes.
    pub garbled: Arc<Mutex<Vec<(u32, Offset)>>>,
    /// Damaged files cannot be copied.
    pub keeps_nothing: Arc<AtomicBool>,
}

impl Kept {
    /// Makes an empty folder, for a primary with so many log partitions.
    pub fn new(partitions: u32) -> Self {
        let log = MemoryLog::new(partitions);
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

    /// Opens the spool in it, as [`Spool::open`] does. What the store does passes the gate.
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &self,
        gate: Arc<dyn Gate>,
        primary: Arc<dyn Append>,
        compare: Arc<dyn Compare>,
        options: Options,
    ) -> Result<Spool, OpenError> {
        let kept = self.clone();
        let opener: Opener = Box::new(move || {
            let store = MemoryStore { kept: kept.clone(), gate: Arc::clone(&gate), is_stopped: AtomicBool::new(false) };
            Ok(Arc::new(store))
        });
        let background = primary.background();
        Spool::open_with(opener, primary, compare, options, background)
    }

    /// Says what appends do from now on.
    pub fn set(&self, disk: Disk) {
        *lock(&self.disk) = disk;
    }

    /// Forgets how far the spool was drained.
    pub fn lose_note(&self) {
        *lock(&self.note) = None;
    }
}

/// A store over what is kept, until the process ends.
struct MemoryStore {
    kept: Kept,
    gate: Arc<dyn Gate>,
    /// Set by the first append that stopped it; only a new store works again.
    is_stopped: AtomicBool,
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
        let turn = batch.first().map_or(0, |first| u64::from(crc32c::crc32c(first.bytes())));
        self.gate.pass(turn).await;
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
        self.gate.pass(turn).await;
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
        self.gate.pass(u64::from(partition)).await;
        let mut read = self.kept.log.read(partition, from, bound).await?;
        let garbled = lock(&self.kept.garbled);
        for record in read.iter_mut().filter(|record| garbled.contains(&(partition, record.offset))) {
            record.bytes = bytes::Bytes::from_static(b"{\"v\":99}");
        }
        Ok(read)
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.gate.pass(u64::from(partition)).await;
        self.kept.log.release(partition, offset).await;
        self.gate.pass(u64::from(partition)).await;
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
        self.gate.pass(0).await;
        *lock(&self.kept.note) = Some(drained);
        self.gate.pass(0).await;
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
