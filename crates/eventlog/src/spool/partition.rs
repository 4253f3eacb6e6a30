//! State of one log partition of the spool, and whether the next append goes to the primary or the spool.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Received, Shared};
use crate::Offset;

/// Locks, also after a panic elsewhere: what these locks guard is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State of one log partition of the spool.
#[derive(Clone, Debug, Default)]
pub(super) struct PartitionState {
    /// The primary has acknowledged all records below, or they are damaged.
    pub(super) drained: Offset,
    /// The durable end.
    pub(super) end: Offset,
    /// Appends to the spool that have begun and not ended.
    pub(super) appending: u32,
    /// New appends wait until then, because little is left.
    pub(super) handing_over: Option<Instant>,
    /// When the record at `drained` was received, if that is known.
    pub(super) oldest: Received,
    /// Damaged records whose files are not copied yet; nothing from the first one on may be trimmed.
    pub(super) damaged: BTreeSet<Offset>,
}

impl PartitionState {
    /// Returns whether the primary has acknowledged everything, so that an append may go there.
    pub(super) fn is_empty(&self) -> bool {
        self.drained >= self.end && self.appending == 0
    }

    /// Returns how many records wait.
    pub(super) fn records(&self) -> u64 {
        self.end.saturating_sub(self.drained)
    }

    /// Returns from where on records are needed, by the primary or because they are damaged.
    pub(super) fn needed_from(&self) -> Offset {
        self.damaged.first().map_or(self.drained, |first| self.drained.min(*first))
    }
}

/// One log partition of the spool.
pub(super) struct Partition {
    pub(super) number: u32,
    state: watch::Sender<PartitionState>,
}

/// An append of one log partition on its way to the spool. While there is one, no append goes to the primary directly.
pub(super) struct Entry {
    shared: Arc<Shared>,
    partition: u32,
}

impl Entry {
    pub(super) fn partition(&self) -> u32 {
        self.partition
    }

    /// Sets the end of the log partition in the spool, now that the append is over.
    pub(super) fn ended(self, end: Offset) {
        // Before `appending` is decremented, so that no reader misses both.
        self.shared.partition(self.partition).change(|state| state.end = state.end.max(end));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.partition(self.partition).change(|state| state.appending -= 1);
    }
}

impl Partition {
    pub(super) fn new(number: u32) -> Self {
        Partition { number, state: watch::Sender::default() }
    }

    /// Returns the state now.
    pub(super) fn state(&self) -> PartitionState {
        self.state.borrow().clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.borrow().is_empty()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut PartitionState)) {
        self.state.send_modify(change);
    }

    /// Waits until the state satisfies a condition.
    pub(super) async fn wait(&self, is_so: impl FnMut(&PartitionState) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.state.subscribe().wait_for(is_so).await;
    }

    /// Begins an append to the spool, after a handover if there is one. Returns nothing if the spool is empty and
    /// `may_go_direct` says that this is enough.
    pub(super) async fn enter(shared: &Arc<Shared>, number: u32, may_go_direct: impl Fn() -> bool) -> Option<Entry> {
        let partition = shared.partition(number);
        if may_go_direct() && partition.is_empty() {
            return None;
        }
        let handing_over = partition.state.borrow().handing_over;
        if let Some(until) = handing_over {
            let over = partition.wait(|state| state.handing_over.is_none() || state.is_empty());
            // If it takes longer than it may, the record goes to the spool.
            let _ = tokio::time::timeout_at(until, over).await;
        }
        let mut entered = true;
        partition.state.send_if_modified(|state| {
            entered = !(state.is_empty() && may_go_direct());
            state.appending += u32::from(entered);
            entered
        });
        entered.then(|| Entry { shared: Arc::clone(shared), partition: number })
    }
}
