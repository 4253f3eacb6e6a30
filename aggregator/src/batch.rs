//! A batch: consecutive records of some log partitions, and what they turned out to be.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use eventlog::{Offset, StoredRecord};
use events::wire::{DecodeError, Entry};
use events::{Event, RejectedEvent, wire};
use uuid::Uuid;

/// A half-open range of one log partition: the progress that a commit claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub partition: u32,
    /// Of the lease under which it was read.
    pub epoch: i64,
    pub from: Offset,
    pub to: Offset,
    /// CRC-32C of the last record's bytes.
    pub last_crc: u32,
}

/// A record that is an event.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub partition: u32,
    pub offset: Offset,
    pub bytes: Bytes,
    pub event: Event,
}

/// The code of what is no event.
pub(crate) const UNDECODABLE: &str = "undecodable";
/// The code of a record whose identity is stored already, with other content.
pub(crate) const ID_CONFLICT: &str = "id_conflict";
/// The code of a row that Postgres refuses.
pub(crate) const REFUSED: &str = "pg_refused";

/// A record that could not be applied. It is stored with its bytes, in the transaction that passes it.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub partition: u32,
    pub offset: Offset,
    pub bytes: Bytes,
    pub project: Option<Uuid>,
    pub code: &'static str,
    pub subject: Option<String>,
    pub reason: String,
    pub sqlstate: Option<String>,
}

impl DeadLetter {
    /// Makes a dead letter of an event.
    pub(crate) fn of(decoded: &Decoded, code: &'static str, reason: String) -> Self {
        DeadLetter {
            partition: decoded.partition,
            offset: decoded.offset,
            bytes: decoded.bytes.clone(),
            project: Some(decoded.event.project_id.0),
            code,
            subject: None,
            reason,
            sqlstate: None,
        }
    }
}

/// Consecutive records of some log partitions, at most one slice of each, decoded.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Ascending by log partition.
    pub slices: Vec<Slice>,
    pub events: Vec<Decoded>,
    /// What the collector refused, each with its log partition.
    pub rejected: Vec<(u32, RejectedEvent)>,
    /// What is no event at all.
    pub undecodable: Vec<DeadLetter>,
    /// Log partitions whose slice ends early: the next record was written by a newer version of Weir. By which, and where.
    pub newer: BTreeMap<u32, (Offset, u32)>,
}

impl Batch {
    /// Adds the records that were read from one log partition, in order and without a gap.
    pub(crate) fn add(&mut self, partition: u32, epoch: i64, records: Vec<StoredRecord>) {
        let Some(from) = records.first().map(|record| record.offset) else { return };
        let mut last: Option<(Offset, Bytes)> = None;
        for StoredRecord { offset, bytes } in records {
            match wire::read(&bytes) {
                Ok(Entry::Rejected(rejected)) => self.rejected.push((partition, rejected)),
                Ok(Entry::Event(event)) => self.events.push(Decoded { partition, offset, bytes: bytes.clone(), event }),
                Err(DecodeError::UnknownVersion(version)) => {
                    self.newer.insert(partition, (offset, version));
                    break;
                }
                Err(DecodeError::NotAnEvent(error)) => self.undecodable.push(DeadLetter {
                    partition,
                    offset,
                    bytes: bytes.clone(),
                    project: None,
                    code: UNDECODABLE,
                    subject: None,
                    reason: format!("not an event: {error}"),
                    sqlstate: None,
                }),
            }
            last = Some((offset, bytes));
        }
        if let Some((offset, bytes)) = last {
            self.slices.push(Slice { partition, epoch, from, to: offset + 1, last_crc: crc32c::crc32c(&bytes) });
        }
    }

    /// Returns the number of records.
    pub(crate) fn len(&self) -> usize {
        self.events.len() + self.rejected.len() + self.undecodable.len()
    }

    /// Returns whose events these are, ascending, as locks are taken.
    pub(crate) fn projects(&self) -> BTreeSet<Uuid> {
        self.events.iter().map(|decoded| decoded.event.project_id.0).collect()
    }
}
