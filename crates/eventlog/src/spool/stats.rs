//! What a service exports about its spool.

use std::sync::atomic::{AtomicU64, Ordering};

use events::Micros;

use super::{Comparison, Shared};
use crate::AppendError;

/// What the spool does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All log partitions go to the primary, and the spool is empty.
    Direct,
    /// The primary is there; the spool holds records and drains into it.
    Draining,
    /// The primary is not there, or it is not known yet whether it is the agreed log: records go to the spool.
    Spooling,
    /// The primary is not the log that was agreed on: nothing is sent to it, and appends are refused.
    AnotherLog,
}

impl State {
    /// All states, for a metric with one series for each.
    pub const ALL: [State; 4] = [State::Direct, State::Draining, State::Spooling, State::AnotherLog];

    /// Returns the name, for metrics and health pages.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Direct => "direct",
            State::Draining => "draining",
            State::Spooling => "spooling",
            State::AnotherLog => "another_log",
        }
    }
}

/// What one log partition's spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionStats {
    /// Records that the primary has not acknowledged.
    pub records: u64,
    /// About how many bytes they take on the disk; 0 if there are none.
    pub bytes: u64,
    /// When the first of them was received; none if there are none, or it is not read yet.
    pub oldest_received_at: Option<Micros>,
}

/// What the spool holds now, and counts since it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// What it does.
    pub state: State,
    /// Why the primary is not used, if it is not.
    pub primary_fault: Option<String>,
    /// Why the spool's own log is closed, if it is; it is opened again by itself.
    pub spool_fault: Option<String>,
    /// By log partition.
    pub partitions: Vec<PartitionStats>,
    /// Bytes of the spool's files, with what is drained and not deleted yet.
    pub bytes: u64,
    /// What they may come to.
    pub bytes_max: u64,
    /// Records that were stored in the spool.
    pub spooled_records: u64,
    /// Records that the primary acknowledged from the spool.
    pub drained_records: u64,
    /// Appends, direct and from the spool, that the primary refused, in its own words or by silence.
    pub primary_failures: u64,
    /// Those of them after which the records may be in the primary, so that they are stored twice.
    pub doubtful_appends: u64,
    /// Appends that the spool refused: it was full, or its disk failed.
    pub refused_appends: u64,
    /// Records of the spool that are damaged and did not come into the primary. Anything but 0 needs an operator.
    pub damaged_records: u64,
    /// Files with the ending `.corrupt`, those of earlier runs too: what damaged records are left in.
    pub damaged_files: u64,
}

impl Stats {
    /// Returns the records that wait, of all log partitions.
    pub fn records(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.records).sum()
    }

    /// Returns when the oldest record that waits was received.
    pub fn oldest_received_at(&self) -> Option<Micros> {
        self.partitions.iter().filter_map(|partition| partition.oldest_received_at).min()
    }
}

/// What is counted along the way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    spooled_records: AtomicU64,
    drained_records: AtomicU64,
    primary_failures: AtomicU64,
    doubtful_appends: AtomicU64,
    refused_appends: AtomicU64,
    damaged_records: AtomicU64,
    damaged_files: AtomicU64,
}

impl Counters {
    pub(super) fn spooled(&self, records: u64) {
        self.spooled_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn drained(&self, records: u64) {
        self.drained_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn primary_failed(&self, failure: &AppendError) {
        self.primary_failures.fetch_add(1, Ordering::Relaxed);
        let is_doubtful = !matches!(failure, AppendError::Unavailable(_));
        self.doubtful_appends.fetch_add(u64::from(is_doubtful), Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused_appends.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn damaged(&self, records: u64) {
        self.damaged_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn set_damaged_files(&self, files: u64) {
        self.damaged_files.store(files, Ordering::Relaxed);
    }
}

/// Collects what is known now.
pub(super) fn collect(shared: &Shared) -> Stats {
    let store = shared.store();
    let found = shared.identity_check.borrow().found.clone();
    let partitions: Vec<PartitionStats> = shared
        .partitions
        .iter()
        .map(|partition| {
            let state = partition.state();
            let records = state.records();
            let bytes =
                store.as_ref().filter(|_| records > 0).map_or(0, |store| store.bytes_from(partition.number, state.drained));
            PartitionStats { records, bytes, oldest_received_at: state.oldest.filter(|_| records > 0) }
        })
        .collect();
    let state = match &found {
        Comparison::Different(_) => State::AnotherLog,
        Comparison::Unreachable(_) => State::Spooling,
        Comparison::Same if shared.partitions.iter().all(super::Partition::is_empty) => State::Direct,
        Comparison::Same => State::Draining,
    };
    let primary_fault = match found {
        Comparison::Same => None,
        Comparison::Different(reason) | Comparison::Unreachable(reason) => Some(reason),
    };
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = &shared.counters;
    Stats {
        state,
        primary_fault,
        spool_fault: store.is_none().then(|| super::partition::lock(&shared.store_fault).clone()),
        partitions,
        bytes: store.as_ref().map_or(0, |store| store.bytes()),
        bytes_max: shared.options.bytes_max,
        spooled_records: count(&counters.spooled_records),
        drained_records: count(&counters.drained_records),
        primary_failures: count(&counters.primary_failures),
        doubtful_appends: count(&counters.doubtful_appends),
        refused_appends: count(&counters.refused_appends),
        damaged_records: count(&counters.damaged_records),
        damaged_files: count(&counters.damaged_files),
    }
}
