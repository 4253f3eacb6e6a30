//! The embedded log: files on this machine, owned by one process.
//!
//! # Constraints
//!
//! - **One owner.** An exclusive `flock` on the file `lock` ends with the process. There is no second file that could
//!   disagree with the log: readers keep their checkpoint elsewhere.
//! - **Acknowledged means synced.** An append returns after `fdatasync` of each file it touched; a reader never passes the
//!   synced end, so nothing that was read can vanish.
//! - **Offsets are dense and never reused once they were readable.** Where damage hides how many records there were, more
//!   offsets are given up rather than one used twice.
//! - **A sync that failed is never tried again on that file.** The system may have dropped the pages it could not write, and
//!   a second sync would succeed without them.
//! - **Damage to acknowledged records never stops the log.** The file is kept as it is, reads before and after the damage work,
//!   and reading the damage itself is [`ReadError::Corrupt`]. Only a torn last write is cut off.
//! - **Bounded.** [`Options::bytes_max`] on disk, [`Options::in_flight_bytes_max`] in memory; an append waits for memory
//!   and is refused for lack of disk.
//!
//! # Format
//!
//! ```text
//! DIR/header                                magic, version, log id, number of log partitions
//! DIR/lock                                  locked while a process has the log open
//! DIR/partition-07/00000000000000000000.log a log file, named by the offset of its first record
//! ```
//!
//! The bytes are those of `format.rs`. Of a log partition's files only the last one is written. Its records end where the
//! next file's begin: what a file holds beyond that was never acknowledged. Behind the records of the file that is written lie up to 256 KiB of zeros,
//! its padding, which a clean end cuts off. A file is made under another name, synced,
//! renamed, and its folder synced, before it is used; none is ever used again. Files `*.damaged` are copies of what a torn
//! write left at the beginning of a file; the log never reads them; neither does it read the copies `*.corrupt` that a spool asks for. Folders have mode 0700, files 0600, and symbolic links are not followed.
//!
//! # Operations
//!
//! - **Append** (`writer.rs`): jobs queue; one thread takes all there are, gives offsets, writes and syncs the touched files
//!   side by side, moves the ends, answers. The next group is what queued meanwhile, so the size of a group follows the load;
//!   where that is much, it waits up to 3 ms for more. A small group that makes a file longer adds padding, so that those after it
//!   are written inside of the file, which a sync is cheaper for.
//! - **Rotation**: a file that would grow beyond [`Options::file_bytes_max`] is synced and closed, and the next one made.
//! - **Errors**: a failed sync or write answers [`AppendError::Unknown`], and a new file continues before the first record that was not
//!   synced; a second failure in a row stops the log. A full disk or quota answers [`AppendError::Unavailable`], after the file was cut
//!   back to its synced end, and appends succeed again once there is room.
//! - **Read** (`reader.rs`): `pread` from the page cache, on the runtime's blocking threads; an index in memory, one entry for
//!   64 KiB, is built while writing and reading. Waiting readers wake when the end moves.
//! - **Release**: deletes closed files that lie below the record before the offset.
//! - **Opening** (`recovery.rs`) reads the last file of each log partition and no other, cuts off what a torn write left, and
//!   makes durable what it found readable, before anyone relies on it.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use events::Record;
use tokio::sync::oneshot;

use crate::background::Background;
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

mod disk;
mod for_spool;
mod format;
mod reader;
mod recovery;
mod scan;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod writer;

use disk::{Disk, Lock, OsDisk};
use reader::{Counters, Partition, lock};
use writer::{Context, Job, PartitionWriter, Queue, Writer};

/// Log partitions of a log that is made without asking for a number.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// The least that [`Options::bytes_max`] may allow each log partition: two files of 4 KiB.
const PARTITION_BYTES_MIN: u64 = 2 * 4096;
/// Free room on the disk below which the log is not ready.
const FREE_BYTES_MIN: u64 = 1024 * 1024;
/// How long after an append that the disk did not take the log is not ready, unless one succeeds: whoever asks whether to send appends must come to
/// try another one.
const FAILING_FOR: Duration = Duration::from_secs(5);

/// How to open a log.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of log partitions, which divides 64. A log that exists keeps its own; asking for another one is an error.
    /// None: whatever the log has, or [`PARTITIONS_DEFAULT`].
    pub partitions: Option<u32>,
    /// Bytes of one file at most, unless a single record is larger. Smaller where `bytes_max` asks for it.
    pub file_bytes_max: u64,
    /// Bytes of all files together. The headers of new files, 44 bytes each, and the padding of the files that are written, up to 256 KiB each, may
    /// come on top.
    pub bytes_max: u64,
    /// Bytes of records that are on their way to the disk; further appends wait.
    pub in_flight_bytes_max: u32,
    /// Where the log's thread is watched: with those of the log that this one is a part of, if it is.
    pub background: Background,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            partitions: None,
            file_bytes_max: 64 * 1024 * 1024,
            bytes_max: 8 * 1024 * 1024 * 1024,
            in_flight_bytes_max: 64 * 1024 * 1024,
            background: Background::default(),
        }
    }
}

/// Why a log cannot be opened. Nothing that was acknowledged is changed by it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it, or this one has it already.
    #[error("{}: the log is open already, and only one process may have it; stop the other one, or give another folder", folder.display())]
    InUse {
        /// The log's folder.
        folder: PathBuf,
    },
    /// The log has another number of log partitions than was asked for.
    #[error("{}: the log has {found} log partitions, not {asked}; the number cannot change, so ask for {found} or for none", folder.display())]
    Partitions {
        /// The log's folder.
        folder: PathBuf,
        /// The log's number.
        found: u32,
        /// The number asked for.
        asked: u32,
    },
    /// The options cannot be met.
    #[error("{0}")]
    Options(String),
    /// Something that the log cannot do without is damaged or missing. Opening again will not help.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What was found, and what to do.
        reason: String,
    },
    /// The system refused something. Opening again may help.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Counts since the log was opened, except `bytes` and `files`, which are what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all files.
    pub bytes: u64,
    /// Log files.
    pub files: u64,
    /// Records appended and synced.
    pub records: u64,
    /// Groups written.
    pub groups: u64,
    /// Syncs of log files, failed ones included.
    pub syncs: u64,
    /// Syncs and writes that failed, and files that could not be made; a full disk is not counted.
    pub sync_failures: u64,
    /// Appends refused because the log holds as much as it may.
    pub refused: u64,
    /// Torn writes found at opening. Nothing acknowledged was lost by them.
    pub torn_tails: u64,
    /// Damaged ranges of acknowledged records found so far. Anything but 0 needs an operator.
    pub corrupt_ranges: u64,
}

/// The log. Clones share it; when the last one is dropped, what was appended is still written, and the folder is given
/// back. That drop waits for the disk.
#[derive(Clone)]
pub struct EmbeddedLog {
    owner: Arc<Owner>,
}

/// What has to end with the log, in this order.
struct Owner {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
    /// Given back last.
    _lock: Lock,
}

struct Shared {
    identity: LogIdentity,
    folder: PathBuf,
    bytes_max: u64,
    disk: Arc<dyn Disk>,
    partitions: Vec<Arc<Partition>>,
    counters: Arc<Counters>,
    background: Background,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(writer) = self.writer.take() {
            // Its panics are caught and reported by `background`.
            let _ = writer.join();
        }
    }
}

impl EmbeddedLog {
    /// Opens the log in a folder, or makes it there, and recovers what a crash left behind. Blocks.
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, options: Options) -> Result<EmbeddedLog, OpenError> {
        EmbeddedLog::open_on(Arc::new(OsDisk), dir, options)
    }

    fn open_on(disk: Arc<dyn Disk>, folder: &Path, options: Options) -> Result<EmbeddedLog, OpenError> {
        let opened = recovery::open(disk.as_ref(), folder, options.partitions)?;
        let files_min = u64::from(opened.identity.partitions);
        if options.bytes_max < files_min * PARTITION_BYTES_MIN {
            let least = files_min * PARTITION_BYTES_MIN;
            let asked = options.bytes_max;
            return Err(OpenError::Options(format!("{asked} bytes for {files_min} log partitions; at least {least} are needed")));
        }
        let queue = Arc::new(Queue::new(options.in_flight_bytes_max.max(1)));
        let writer = Writer {
            context: Context {
                disk: Arc::clone(&disk),
                counters: Arc::clone(&opened.counters),
                // A log whose records are all consumed still holds the last file of each log partition. If these filled
                // it, nothing could ever be appended again, so they may take half of the room at most.
                file_bytes_max: options.file_bytes_max.min(options.bytes_max / files_min / 2),
                bytes_max: options.bytes_max,
            },
            queue: Arc::clone(&queue),
            partitions: opened.partitions.iter().map(|partition| PartitionWriter::new(Arc::clone(partition))).collect(),
            background: options.background.clone(),
        };
        // After a panic it is not known what the files hold, so no second writer starts: the log has stopped.
        let thread = options.background.thread_once(writer::THREAD, move || writer.run());
        let thread = thread.map_err(|source| OpenError::Io { path: folder.to_owned(), source })?;
        let shared = Shared {
            identity: opened.identity,
            folder: folder.to_owned(),
            bytes_max: options.bytes_max,
            disk,
            partitions: opened.partitions,
            counters: opened.counters,
            background: options.background,
        };
        Ok(EmbeddedLog { owner: Arc::new(Owner { shared: Arc::new(shared), queue, writer: Some(thread), _lock: opened.lock }) })
    }

    /// Returns which log it is.
    pub fn identity(&self) -> LogIdentity {
        self.owner.shared.identity
    }

    /// Returns counts, for metrics.
    pub fn stats(&self) -> Stats {
        let shared = &self.owner.shared;
        let counters = &shared.counters;
        let files = shared.partitions.iter().map(|partition| lock(&partition.files).listed.len() as u64).sum();
        Stats {
            bytes: counters.bytes.load(Ordering::Relaxed),
            files,
            records: counters.records.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            syncs: counters.syncs.load(Ordering::Relaxed),
            sync_failures: counters.sync_failures.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            torn_tails: counters.torn_tails.load(Ordering::Relaxed),
            corrupt_ranges: lock(&counters.corrupt).len() as u64,
        }
    }

    fn partition(&self, partition: u32) -> Result<&Arc<Partition>, ReadError> {
        let partitions = &self.owner.shared.partitions;
        partitions.get(partition as usize).ok_or_else(|| no_such_partition(partition, partitions.len() as u32))
    }
}

/// The error of reading a log partition that the log does not have.
pub(crate) fn no_such_partition(partition: u32, partitions: u32) -> ReadError {
    ReadError::Unavailable(format!("there is no log partition {partition}; the log has {partitions}, counted from 0"))
}

#[async_trait]
impl Append for EmbeddedLog {
    fn identity(&self) -> LogIdentity {
        self.owner.shared.identity
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let partitions = self.owner.shared.identity.partitions;
        let mut need = 0;
        let mut positions = Vec::with_capacity(batch.len());
        for record in &batch {
            let length = record.bytes().len();
            if !(1..=format::RECORD_BYTES_MAX).contains(&length) {
                let most = format::RECORD_BYTES_MAX;
                return Err(AppendError::Unavailable(format!("a record of {length} bytes; 1 to {most} are accepted")));
            }
            need += (format::FRAME_BYTES + length) as u64;
            positions.push(Position { partition: record.bucket().log_partition(partitions), offset: None });
        }
        let queue = &self.owner.queue;
        // A batch above the bound takes all of it and goes alone.
        let permits = u32::try_from(need).unwrap_or(u32::MAX).min(queue.room_bytes);
        let Ok(permit) = queue.room.acquire_many(permits).await else {
            return Err(queue.stopped());
        };
        // The writer gives it back, whether this future still waits then or not.
        permit.forget();
        let (answer, answered) = oneshot::channel();
        queue.push(Job { records: batch, positions, need, permits, answer })?;
        answered.await.unwrap_or_else(|_| Err(AppendError::Unknown("the log's writer ended while it wrote".to_owned())))
    }

    fn ready(&self) -> Result<(), AppendError> {
        let Owner { shared, queue, .. } = self.owner.as_ref();
        if queue.stopped.get().is_some() {
            return Err(queue.stopped());
        }
        let held = shared.counters.bytes.load(Ordering::Relaxed);
        // One event of the size that is usually the limit, or less in a small log.
        let need = (64 * 1024).min(shared.bytes_max / 16);
        if held + need > shared.bytes_max {
            return Err(writer::no_room(need, held, shared.bytes_max));
        }
        // A disk may have room and take nothing all the same: it is broken, or its owner's quota is used up.
        let failing = shared.partitions.iter().find_map(|partition| {
            let (at, reason) = lock(&partition.failing).clone()?;
            (at.elapsed() < FAILING_FOR).then_some(reason)
        });
        match shared.disk.free_bytes(&shared.folder) {
            Ok(free) if free < FREE_BYTES_MIN => Err(AppendError::Unavailable(format!(
                "{}: {free} bytes are free on the disk; at least {FREE_BYTES_MIN} are needed",
                shared.folder.display()
            ))),
            Ok(_) => failing.map_or(Ok(()), |reason| Err(AppendError::Unavailable(reason))),
            Err(error) => Err(AppendError::Unavailable(format!("{}: {error}", shared.folder.display()))),
        }
    }

    fn background(&self) -> Background {
        self.owner.shared.background.clone()
    }
}

#[async_trait]
impl Read for EmbeddedLog {
    fn identity(&self) -> LogIdentity {
        self.owner.shared.identity
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        Ok(self.partition(partition)?.offsets())
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        let partition = self.partition(partition)?;
        let mut end = partition.end.subscribe();
        if !partition.check(from)? {
            // Otherwise the time is over, or the sender is gone, which cannot be while `partition` is there.
            if !matches!(tokio::time::timeout(bound.wait_max, end.wait_for(|end| *end > from)).await, Ok(Ok(_))) {
                return Ok(Vec::new());
            }
        }
        let (partition, shared) = (Arc::clone(partition), Arc::clone(&self.owner.shared));
        let read = move || partition.read(shared.disk.as_ref(), &shared.counters, from, bound);
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(ReadError::Unavailable(format!("the read ended early: {error}"))))
    }

    async fn release(&self, partition: u32, offset: Offset) {
        let Ok(partition) = self.partition(partition) else { return };
        let (partition, shared) = (Arc::clone(partition), Arc::clone(&self.owner.shared));
        let release = move || {
            let freed = partition.release(shared.disk.as_ref(), offset);
            shared.counters.bytes.fetch_sub(freed, Ordering::Relaxed);
        };
        if let Err(error) = tokio::task::spawn_blocking(release).await {
            tracing::warn!("releasing records ended early: {error}");
        }
    }

    fn background(&self) -> Background {
        self.owner.shared.background.clone()
    }
}
