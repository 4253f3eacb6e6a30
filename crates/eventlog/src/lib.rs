//! The event log: the collector appends, the aggregator reads.
//!
//! The contract, the same for every transport:
//!
//! - A log is a fixed number of **log partitions**; a record's bucket decides which one holds it, so one user's records
//!   stay in order. The number divides 64 and belongs to the log's identity.
//! - [`Append::append`] returns after all its records are durable, with their offsets unless a [`spool`] keeps them for the
//!   log until it takes them, or says by its error whether they may be there all the same. Retrying may then store a record twice; readers deduplicate by the event's identity.
//! - An **offset is the next record to read**. [`Read::read`] starts at one, and never passes the durable end.
//! - Offsets of a log partition are dense, start at 0 and are never reused. Expired or trimmed records leave the front only.
//! - [`Read::release`] says from which offset on records are still needed; what lies below may be deleted.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use events::Record;
use uuid::Uuid;

pub mod background;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod embedded;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod spool;

use background::Background;

/// The next record to read, counted from 0 in each log partition.
pub type Offset = u64;

/// Which log it is. Checkpoints are only valid for the log that they were taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// Made with the log, and never again: a log that was deleted and made anew is another one.
    pub log_id: Uuid,
    /// Number of log partitions; divides 64.
    pub partitions: u32,
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The log partition.
    pub partition: u32,
    /// The record's own offset; reading from here returns it first. None: the record is durable in the spool, and gets its
    /// offset only when it comes into the log.
    pub offset: Option<Offset>,
}

/// A record as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its own offset.
    pub offset: Offset,
    /// The bytes that were appended.
    pub bytes: Bytes,
}

/// When a read returns: as soon as there is something, with as much as there is, up to these bounds.
#[derive(Clone, Copy, Debug)]
pub struct ReadBound {
    /// Records at most.
    pub records_max: usize,
    /// Bytes of records at most; one record is returned even if it alone is larger.
    pub bytes_max: usize,
    /// How long to wait for the first record; then the read returns nothing.
    pub wait_max: Duration,
}

/// Why nothing was appended, or perhaps something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// None of the records is there. Try again later; the text says what is missing, such as room on the disk.
    #[error("the log cannot take records now: {0}")]
    Unavailable(String),
    /// The records may be there, some of them or all. Trying again may store them twice.
    #[error("it is not known whether the log took the records: {0}")]
    Unknown(String),
    /// The log has stopped for good; the process must be started again.
    #[error("the log has stopped: {0}")]
    Stopped(String),
}

/// Why nothing was read. Nothing is lost, and reading again is safe.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The offset lies before the first record that is left: records were deleted before they were read.
    #[error("log partition {partition}: offset {offset} lies below the log's start {start}")]
    BelowStart {
        /// The log partition.
        partition: u32,
        /// What was asked for.
        offset: Offset,
        /// The first offset that is left.
        start: Offset,
    },
    /// The offset lies after the end: the log lost records, or is another one.
    #[error("log partition {partition}: offset {offset} lies above the log's end {end}")]
    AboveEnd {
        /// The log partition.
        partition: u32,
        /// What was asked for.
        offset: Offset,
        /// The end.
        end: Offset,
    },
    /// Records that had been acknowledged are damaged. They are kept as they are for an operator to look at.
    #[error("log partition {partition}: records {} to {} are damaged: {reason}", range.start, range.end)]
    Corrupt {
        /// The log partition.
        partition: u32,
        /// The damaged records, as far as it can be told.
        range: Range<Offset>,
        /// What was found.
        reason: String,
    },
    /// The log is another one than was opened, for good: it was deleted and made anew, or has other log partitions.
    #[error("the log is another one now: {0}")]
    OtherLog(String),
    /// The log cannot be reached now.
    #[error("the log cannot be read now: {0}")]
    Unavailable(String),
}

/// The collector's side of a log.
#[async_trait]
pub trait Append: Send + Sync + 'static {
    /// Returns which log it is.
    fn identity(&self) -> LogIdentity;

    /// Appends records and returns when all are durable, with their positions in the same order.
    /// Records of one batch that share a log partition get rising offsets in the batch's order. Other batches may lie between.
    /// Dropping the future does not undo anything.
    /// # Errors
    /// [`AppendError`], which says whether the records may be there.
    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError>;

    /// Returns whether one more append could succeed now, with the reason if not; for `/readyz`.
    fn ready(&self) -> Result<(), AppendError>;

    /// Returns what waits on this machine to come into the log; none if nothing ever does.
    fn spool(&self) -> Option<spool::Stats> {
        None
    }

    /// Returns the threads and tasks that the log runs.
    fn background(&self) -> Background {
        Background::default()
    }
}

/// The aggregator's side of a log.
#[async_trait]
pub trait Read: Send + Sync + 'static {
    /// Returns which log it is.
    fn identity(&self) -> LogIdentity;

    /// Returns whether this process alone can read the log, by a lock that ends with the process. Then a lease that
    /// another process left behind is known to be dead at once.
    fn is_exclusive(&self) -> bool;

    /// Returns the offsets that can be read: from the first record left to the durable end.
    /// # Errors
    /// [`ReadError::Unavailable`].
    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError>;

    /// Returns the durable end, for who only wants to know how far it is: a read that follows does not wait for records
    /// because of it.
    /// # Errors
    /// [`ReadError::Unavailable`].
    async fn end(&self, partition: u32) -> Result<Offset, ReadError> {
        Ok(self.offsets(partition).await?.end)
    }

    /// Reads records from an offset on, in order and without a gap; nothing if there is none within `bound.wait_max`.
    /// May be cancelled at any point.
    /// # Errors
    /// [`ReadError`]; reading from the end itself is no error.
    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError>;

    /// Says that records below `offset` are no longer needed. The last one below it stays, so that a checkpoint can be
    /// compared with the record before it. A hint: nothing is deleted before it, something may be left after it.
    async fn release(&self, partition: u32, offset: Offset);

    /// Returns the threads and tasks that the log runs.
    fn background(&self) -> Background {
        Background::default()
    }
}

#[async_trait]
impl<L: Read + ?Sized> Read for Arc<L> {
    fn identity(&self) -> LogIdentity {
        (**self).identity()
    }

    fn is_exclusive(&self) -> bool {
        (**self).is_exclusive()
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        (**self).offsets(partition).await
    }

    async fn end(&self, partition: u32) -> Result<Offset, ReadError> {
        (**self).end(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        (**self).read(partition, from, bound).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        (**self).release(partition, offset).await;
    }

    fn background(&self) -> Background {
        (**self).background()
    }
}

#[async_trait]
impl<L: Append + ?Sized> Append for Arc<L> {
    fn identity(&self) -> LogIdentity {
        (**self).identity()
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        (**self).append(batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        (**self).ready()
    }

    fn spool(&self) -> Option<spool::Stats> {
        (**self).spool()
    }

    fn background(&self) -> Background {
        (**self).background()
    }
}
