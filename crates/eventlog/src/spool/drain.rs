//! Drains one log partition of the spool into the primary: read, wait for the identity check, append, advance.

use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBackoff;
use events::Record;
use tokio::time::Instant;

use super::identity_check::IdentityCheck;
use super::partition::Partition;
use super::store::{Store, decode};
use super::{Shared, maintenance};
use crate::{AppendError, Offset, ReadBound, ReadError};

/// After a handover that did not end in time the next one waits this many times as long as the handover was allowed to.
const HANDOVER_PAUSE: u32 = 4;

/// How one turn ended.
enum Turn {
    /// The primary took records, or damaged ones were passed.
    Advanced,
    /// Nothing moved; the text says why.
    Failed(String),
}

/// Returns the name of the task that drains a log partition.
pub(super) fn task(partition: u32) -> String {
    format!("spool-drain-{partition}")
}

/// Drains a log partition; never returns.
pub(super) async fn drain(shared: Arc<Shared>, number: u32) {
    let options = &shared.options;
    let partition = shared.partition(number);
    let mut drain = Drain { shared: &shared, partition, records_max: options.drain_records_max.max(1), waits: options.waits() };
    let mut no_handover_before = Instant::now();
    loop {
        partition.wait(|state| state.records() > 0).await;
        shared.background.checkpoint(&task(number));
        let turn = drain.step().await;
        drain.settle(turn).await;
        let state = partition.state();
        let little_is_left = !state.is_empty() && state.records() <= options.drain_records_max as u64;
        if little_is_left && shared.is_agreed_log() && Instant::now() >= no_handover_before {
            if let Some(failed) = drain.hand_over().await {
                drain.settle(failed).await;
            }
            no_handover_before = Instant::now() + options.handover_wait_max * HANDOVER_PAUSE;
        }
    }
}

struct Drain<'a> {
    shared: &'a Arc<Shared>,
    partition: &'a Partition,
    /// Records of the next try.
    records_max: usize,
    /// How long to wait after the next failures.
    waits: ExponentialBackoff,
}

/// While it lives, new appends of the log partition wait for the spool to become empty.
struct HandingOver<'a>(&'a Partition);

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.handing_over = None);
    }
}

impl Drain<'_> {
    /// Drains what is left while new appends wait, for a moment; returns the turn that failed, if one did.
    async fn hand_over(&mut self) -> Option<Turn> {
        let until = Instant::now() + self.shared.options.handover_wait_max;
        self.partition.change(|state| state.handing_over = Some(until));
        let _handing_over = HandingOver(self.partition);
        while Instant::now() < until && self.shared.is_agreed_log() {
            let moved = self.partition.wait(|state| state.records() > 0 || state.is_empty());
            if tokio::time::timeout_at(until, moved).await.is_err() || self.partition.is_empty() {
                return None;
            }
            match self.step().await {
                Turn::Advanced => {}
                failed @ Turn::Failed(_) => return Some(failed),
            }
        }
        None
    }

    /// After a failure waits, and takes half as many records the next time.
    async fn settle(&mut self, turn: Turn) {
        let options = &self.shared.options;
        match turn {
            Turn::Advanced => {
                self.records_max = options.drain_records_max.max(1);
                self.waits = options.waits();
            }
            Turn::Failed(reason) => {
                let (partition, records) = (self.partition.number, self.partition.state().records());
                let wait = self.waits.next().unwrap_or(options.retry_wait_max);
                if wait >= options.retry_wait_max {
                    tracing::warn!(partition, records, batch = self.records_max, "the spool does not drain: {reason}");
                }
                tokio::time::sleep(wait).await;
                self.records_max = (self.records_max / 2).max(1);
            }
        }
    }

    async fn step(&self) -> Turn {
        let from = self.partition.state().drained;
        let records = match self.read(from).await {
            Ok(records) => records,
            Err(turn) => return turn,
        };
        // What was read is held meanwhile: `Options::drain_bytes_max` for each log partition. The sender lives as long as the task.
        let _ = self.shared.identity_check.subscribe().wait_for(IdentityCheck::is_same).await;
        match self.send(records).await {
            Ok(count) => {
                self.shared.counters.drained(count);
                self.advance(from + count).await;
                Turn::Advanced
            }
            Err(failure) => {
                self.shared.counters.primary_failed(&failure);
                self.shared.invalidate_comparison(&failure);
                Turn::Failed(format!("offset {from}: {failure}"))
            }
        }
    }

    /// Reads the next records, or says how the turn ends without. The store is given back with the return: a log that
    /// failed cannot be opened again while somebody has it.
    async fn read(&self, from: Offset) -> Result<Vec<Record>, Turn> {
        let Shared { options, .. } = self.shared.as_ref();
        let Some(store) = self.shared.store() else {
            tokio::time::sleep(options.maintenance_every).await;
            return Err(Turn::Failed("its log is closed".to_owned()));
        };
        let bound = ReadBound { records_max: self.records_max, bytes_max: options.drain_bytes_max, wait_max: Duration::ZERO };
        let partition = self.partition.number;
        let read = match store.read(partition, from, bound).await {
            Ok(read) if read.is_empty() => return Err(Turn::Failed(format!("nothing can be read at {from}"))),
            Ok(read) => read,
            Err(ReadError::Corrupt { range, reason, .. }) => {
                return Err(self.pass(store.as_ref(), from..range.end.max(from + 1), &reason).await);
            }
            Err(ReadError::BelowStart { start, .. }) => {
                return Err(self.pass(store.as_ref(), from..start.max(from + 1), "their log files are gone").await);
            }
            Err(error) => return Err(Turn::Failed(error.to_string())),
        };
        let (records, received_at) = decode(&read);
        if records.is_empty() {
            return Err(self.pass(store.as_ref(), from..from + 1, "this version cannot decode it as an event").await);
        }
        self.partition.change(|state| state.oldest = received_at);
        Ok(records)
    }

    async fn send(&self, records: Vec<Record>) -> Result<u64, AppendError> {
        let wait_max = self.shared.options.drain_wait_max;
        let count = records.len() as u64;
        match tokio::time::timeout(wait_max, self.shared.primary.append(records)).await {
            Ok(appended) => appended.map(|_| count),
            Err(_) => Err(AppendError::Unknown(format!("the log gave no answer within {} s", wait_max.as_secs_f64()))),
        }
    }

    /// Skips records that cannot be sent; their file is kept.
    async fn pass(&self, store: &dyn Store, damaged: std::ops::Range<Offset>, reason: &str) -> Turn {
        let (partition, first, end) = (self.partition.number, damaged.start, damaged.end);
        tracing::error!(partition, first, end, "damaged records of the spool were not sent to the log: {reason}");
        self.shared.counters.damaged(end - first);
        self.partition.change(|state| {
            state.damaged.insert(first);
        });
        maintenance::copy_damaged(self.shared, store, self.partition).await;
        self.advance(end).await;
        Turn::Advanced
    }

    async fn advance(&self, to: Offset) {
        self.partition.change(|state| {
            state.drained = to;
            state.oldest = None;
        });
        if let Some(store) = self.shared.store() {
            store.release(self.partition.number, self.partition.state().needed_from()).await;
        }
    }
}
