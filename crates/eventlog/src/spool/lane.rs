//! One log partition of the spool: what it holds, and which way the next append goes.

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

/// What is known of one log partition of the spool.
#[derive(Clone, Debug, Default)]
pub(super) struct Inner {
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

impl Inner {
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
pub(super) struct Lane {
    pub(super) partition: u32,
    inner: watch::Sender<Inner>,
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

    /// Says where the spool's log partition ends, now that the append is over.
    pub(super) fn ended(self, end: Offset) {
        // Before the count falls, so that nobody sees neither.
        self.shared.lane(self.partition).change(|inner| inner.end = inner.end.max(end));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.lane(self.partition).change(|inner| inner.appending -= 1);
    }
}

impl Lane {
    pub(super) fn new(partition: u32) -> Self {
        Lane { partition, inner: watch::Sender::default() }
    }

    /// Returns what is known now.
    pub(super) fn inner(&self) -> Inner {
        self.inner.borrow().clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inner.borrow().is_empty()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Inner)) {
        self.inner.send_modify(change);
    }

    /// Waits until something is so.
    pub(super) async fn wait(&self, is_so: impl FnMut(&Inner) -> bool) {
        // The sender lives as long as `self`.
        let _ = self.inner.subscribe().wait_for(is_so).await;
    }

    /// Begins an append to the spool, after a handover if there is one. Returns nothing if the spool is empty and
    /// `may_go_direct` says that this is enough.
    pub(super) async fn enter(shared: &Arc<Shared>, partition: u32, may_go_direct: impl Fn() -> bool) -> Option<Entry> {
        let lane = shared.lane(partition);
        if may_go_direct() && lane.is_empty() {
            return None;
        }
        let handing_over = lane.inner.borrow().handing_over;
        if let Some(until) = handing_over {
            let over = lane.wait(|inner| inner.handing_over.is_none() || inner.is_empty());
            // If it takes longer than it may, the record goes to the spool.
            let _ = tokio::time::timeout_at(until, over).await;
        }
        let mut entered = true;
        lane.inner.send_if_modified(|inner| {
            entered = !(inner.is_empty() && may_go_direct());
            inner.appending += u32::from(entered);
            entered
        });
        entered.then(|| Entry { shared: Arc::clone(shared), partition })
    }
}
