//! The smallest correct log: vectors behind a lock. For tests and trials; nothing survives the process.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use events::Record;
use events::bucket::BUCKETS;
use tokio::sync::watch;
use uuid::Uuid;

use crate::embedded::no_such_partition;
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

/// A log in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryLog {
    identity: LogIdentity,
    partitions: Arc<[Partition]>,
}

#[derive(Debug)]
struct Partition {
    kept: Mutex<Kept>,
    end: watch::Sender<Offset>,
}

#[derive(Debug, Default)]
struct Kept {
    start: Offset,
    records: VecDeque<Bytes>,
}

impl Kept {
    fn end(&self) -> Offset {
        self.start + self.records.len() as u64
    }
}

impl Partition {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What the lock guards is changed in single steps, so a panic elsewhere leaves it whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryLog {
    /// Makes an empty log.
    /// # Panics
    /// If `partitions` does not divide 64.
    pub fn new(partitions: u32) -> Self {
        MemoryLog::with_id(Uuid::new_v4(), partitions)
    }

    /// Makes an empty log with this id, which no other log has.
    /// # Panics
    /// If `partitions` does not divide 64.
    pub fn with_id(log_id: Uuid, partitions: u32) -> Self {
        assert!(partitions > 0 && BUCKETS.is_multiple_of(partitions), "{partitions} does not divide {BUCKETS}");
        let partition = |_| Partition { kept: Mutex::default(), end: watch::Sender::new(0) };
        MemoryLog { identity: LogIdentity { log_id, partitions }, partitions: (0..partitions).map(partition).collect() }
    }

    /// Returns the offsets that can be read, at once.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn range(&self, partition: u32) -> Range<Offset> {
        let kept = self.partitions[partition as usize].kept();
        kept.start..kept.end()
    }

    fn partition(&self, partition: u32) -> Result<&Partition, ReadError> {
        self.partitions.get(partition as usize).ok_or_else(|| no_such_partition(partition, self.identity.partitions))
    }
}

#[async_trait]
impl Append for MemoryLog {
    fn identity(&self) -> LogIdentity {
        self.identity
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let append = |record: Record| {
            let number = record.bucket().log_partition(self.identity.partitions);
            let partition = &self.partitions[number as usize];
            let mut kept = partition.kept();
            let offset = kept.end();
            kept.records.push_back(record.bytes().clone());
            partition.end.send_replace(kept.end());
            Position { partition: number, offset: Some(offset) }
        };
        Ok(batch.into_iter().map(append).collect())
    }

    fn ready(&self) -> Result<(), AppendError> {
        Ok(())
    }
}

#[async_trait]
impl Read for MemoryLog {
    fn identity(&self) -> LogIdentity {
        self.identity
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        let kept = self.partition(partition)?.kept();
        Ok(kept.start..kept.end())
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        let log = self.partition(partition)?;
        let check = |kept: &Kept| match (kept.start, kept.end()) {
            (start, _) if from < start => Err(ReadError::BelowStart { partition, offset: from, start }),
            (_, end) if from > end => Err(ReadError::AboveEnd { partition, offset: from, end }),
            _ => Ok(()),
        };
        check(&log.kept())?;
        let mut end = log.end.subscribe();
        if !matches!(tokio::time::timeout(bound.wait_max, end.wait_for(|end| *end > from)).await, Ok(Ok(_))) {
            return Ok(Vec::new());
        }
        let kept = log.kept();
        check(&kept)?;
        let mut found: Vec<StoredRecord> = Vec::new();
        let mut bytes_left = bound.bytes_max;
        for (offset, bytes) in (from..).zip(kept.records.range((from - kept.start) as usize..)) {
            if !found.is_empty() && (found.len() >= bound.records_max || bytes.len() > bytes_left) {
                break;
            }
            bytes_left = bytes_left.saturating_sub(bytes.len());
            found.push(StoredRecord { offset, bytes: bytes.clone() });
        }
        Ok(found)
    }

    async fn release(&self, partition: u32, offset: Offset) {
        let Ok(partition) = self.partition(partition) else { return };
        let mut kept = partition.kept();
        let needed = offset.min(kept.end()).saturating_sub(1);
        while kept.start < needed {
            kept.records.pop_front();
            kept.start += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::conformance_tests!(async || (Arc::new(MemoryLog::new(8)), ()));
}
