//! What is done now and then: noting how far the spool is drained, copying damaged files, opening the log again.

use std::sync::{Arc, PoisonError};

use super::lane::{self, Inner, Lane};
use super::store::Store;
use super::{OpenError, Shared};
use crate::{Append, AppendError, LogIdentity, Offset};

/// The name of the task that does it.
pub(super) const TASK: &str = "spool-keep";

/// Notes, copies and opens, again and again.
pub(super) async fn keep(shared: Arc<Shared>) {
    let mut noted = Vec::new();
    loop {
        tokio::time::sleep(shared.options.keep_every).await;
        shared.background.checkpoint(TASK);
        shared.close_stopped_store();
        if shared.store().is_none() {
            open_again(&shared).await;
        }
        let Some(store) = shared.store() else { continue };
        for lane in &shared.lanes {
            keep_damaged(&shared, store.as_ref(), lane).await;
        }
        let drained = needed_from(&shared);
        if drained != noted && note_in(store.as_ref(), drained.clone()).await {
            noted = drained;
        }
    }
}

/// Notes how far each log partition is drained.
pub(super) async fn note(shared: &Shared) {
    if let Some(store) = shared.store() {
        note_in(store.as_ref(), needed_from(shared)).await;
    }
}

async fn note_in(store: &dyn Store, drained: Vec<Offset>) -> bool {
    match store.note_drained(drained).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "how far the spool is drained cannot be noted; after a restart records would be sent twice");
            false
        }
    }
}

fn needed_from(shared: &Shared) -> Vec<Offset> {
    shared.lanes.iter().map(|lane| lane.inner().needed_from()).collect()
}

/// Copies the files of damaged records that are not copied yet.
pub(super) async fn keep_damaged(shared: &Shared, store: &dyn Store, lane: &Lane) {
    for offset in lane.inner().damaged {
        match store.keep_damaged(lane.partition, offset).await {
            Ok(()) => {
                lane.change(|inner| {
                    inner.damaged.remove(&offset);
                });
                shared.counters.set_damaged_files(store.damaged_files());
                store.release(lane.partition, lane.inner().needed_from()).await;
            }
            Err(error) => {
                let partition = lane.partition;
                tracing::warn!(partition, offset, %error, "damaged records of the spool cannot be copied; they are not trimmed until then");
            }
        }
    }
}

/// Takes up what the store holds at the start. Blocks.
pub(super) fn take_up(lanes: &[Lane], store: &dyn Store, agreed: LogIdentity) -> Result<(), OpenError> {
    let noted = store.noted_drained().unwrap_or_else(|error| {
        tracing::warn!(%error, "how far the spool is drained is not known; what is left of it is sent once more");
        None
    });
    for lane in lanes {
        let range = store.range(lane.partition);
        let noted = noted.as_ref().and_then(|noted| noted.get(lane.partition as usize)).copied().unwrap_or(0);
        if noted > range.end {
            let (partition, end) = (lane.partition, range.end);
            tracing::error!(partition, noted, end, "the spool has lost records; what is left of it is sent once more");
        }
        let noted = if noted > range.end { 0 } else { noted };
        let drained = noted.max(range.start);
        lane.change(|inner| *inner = Inner { drained, end: range.end, ..Inner::default() });
    }
    let waiting: u64 = lanes.iter().map(|lane| lane.inner().records()).sum();
    if waiting > 0 {
        tracing::info!(records = waiting, "the spool holds records, which are sent first");
    }
    // Records wait for the log that was agreed on when they came. Noted before the first one comes.
    match store.noted_primary() {
        Ok(Some(noted)) if noted == agreed => Ok(()),
        Ok(noted) if waiting > 0 => {
            let waits_for = noted.map_or_else(|| "no log".to_owned(), |noted| noted.log_id.to_string());
            Err(OpenError::AnotherLog { waiting, waits_for, agreed: agreed.log_id })
        }
        Err(error) if waiting > 0 => Err(OpenError::AnotherLog { waiting, waits_for: error.to_string(), agreed: agreed.log_id }),
        _ => store.note_primary(agreed).map_err(OpenError::Note),
    }
}

impl Shared {
    /// Gives the spool's log up if it has stopped since the last append.
    fn close_stopped_store(&self) {
        if let Some(store) = self.store()
            && let Err(AppendError::Stopped(reason)) = store.ready()
        {
            self.close_store(&store, &reason);
        }
    }

    /// Gives the spool's log up after its disk failed for good.
    pub(super) fn close_store(&self, failed: &Arc<dyn Store>, reason: &str) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.as_ref().is_some_and(|present| Arc::ptr_eq(present, failed)) {
            tracing::error!("the spool's log has stopped and is opened again: {reason}");
            reason.clone_into(&mut lane::lock(&self.store_fault));
            *store = None;
        }
    }
}

/// Opens the spool's log again. Fails while appends to the old one are not over.
async fn open_again(shared: &Arc<Shared>) {
    let opened = tokio::task::spawn_blocking({
        let shared = Arc::clone(shared);
        move || (shared.open)()
    });
    match opened.await {
        Ok(Ok(store)) => {
            take_up_again(shared, store.as_ref());
            tracing::info!("the spool's log is open again");
            *shared.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            let mut fault = lane::lock(&shared.store_fault);
            if *fault != text {
                tracing::warn!("the spool's log cannot be opened again yet: {text}");
                *fault = text;
            }
        }
        Err(error) => tracing::error!("opening the spool's log again ended early: {error}"),
    }
}

/// Goes on where the draining was, which is known in memory better than from the note.
fn take_up_again(shared: &Shared, store: &dyn Store) {
    let log_id = Append::identity(store).log_id;
    let is_same = log_id == shared.store_id;
    if !is_same {
        let (waiting, expected) = (shared.lanes.iter().map(|lane| lane.inner().records()).sum::<u64>(), shared.store_id);
        tracing::error!(%log_id, %expected, waiting, "the spool's folder holds another log than before; what waited is lost");
    }
    for lane in &shared.lanes {
        let range = store.range(lane.partition);
        lane.change(|inner| {
            inner.drained = if is_same && inner.drained <= range.end { inner.drained.max(range.start) } else { range.start };
            inner.end = range.end;
        });
    }
}
