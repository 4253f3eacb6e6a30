//! Periodic maintenance: writes the drained offsets, copies damaged files, reopens the log.

use std::sync::{Arc, PoisonError};

use super::partition::{self, Partition, PartitionState};
use super::store::Store;
use super::{OpenError, Shared};
use crate::{Append, AppendError, LogIdentity, Offset};

/// The name of the task that does it.
pub(super) const TASK: &str = "spool-maintenance";

/// Does it periodically; never returns.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut noted = Vec::new();
    loop {
        tokio::time::sleep(shared.options.maintenance_every).await;
        shared.background.checkpoint(TASK);
        shared.close_stopped_store();
        if shared.store().is_none() {
            open_again(&shared).await;
        }
        let Some(store) = shared.store() else { continue };
        for partition in &shared.partitions {
            copy_damaged(&shared, store.as_ref(), partition).await;
        }
        let drained = needed_from(&shared);
        if drained != noted && note_in(store.as_ref(), drained.clone()).await {
            noted = drained;
        }
    }
}

/// Writes how far each log partition is drained.
pub(super) async fn note(shared: &Shared) {
    if let Some(store) = shared.store() {
        note_in(store.as_ref(), needed_from(shared)).await;
    }
}

async fn note_in(store: &dyn Store, drained: Vec<Offset>) -> bool {
    match store.note_drained(drained).await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the spool's drained offsets cannot be written; after a restart records would be sent twice");
            false
        }
    }
}

fn needed_from(shared: &Shared) -> Vec<Offset> {
    shared.partitions.iter().map(|partition| partition.state().needed_from()).collect()
}

/// Copies the files of damaged records that are not copied yet.
pub(super) async fn copy_damaged(shared: &Shared, store: &dyn Store, partition: &Partition) {
    for offset in partition.state().damaged {
        match store.copy_damaged(partition.number, offset).await {
            Ok(()) => {
                partition.change(|state| {
                    state.damaged.remove(&offset);
                });
                shared.counters.set_damaged_files(store.damaged_files());
                store.release(partition.number, partition.state().needed_from()).await;
            }
            Err(error) => {
                let partition = partition.number;
                tracing::warn!(partition, offset, %error, "damaged records of the spool cannot be copied; they are not trimmed until then");
            }
        }
    }
}

/// Loads the state of each log partition from the store, at the start. Blocks.
pub(super) fn load(partitions: &[Partition], store: &dyn Store, agreed: LogIdentity) -> Result<(), OpenError> {
    let noted = store.noted_drained().unwrap_or_else(|error| {
        tracing::warn!(%error, "the spool's drained offsets cannot be read; all its records are sent again");
        None
    });
    for partition in partitions {
        let range = store.range(partition.number);
        let noted = noted.as_ref().and_then(|noted| noted.get(partition.number as usize)).copied().unwrap_or(0);
        if noted > range.end {
            let (partition, end) = (partition.number, range.end);
            tracing::error!(partition, noted, end, "the spool has lost records; the remaining ones are sent again");
        }
        let noted = if noted > range.end { 0 } else { noted };
        let drained = noted.max(range.start);
        partition.change(|state| *state = PartitionState { drained, end: range.end, ..PartitionState::default() });
    }
    let waiting: u64 = partitions.iter().map(|partition| partition.state().records()).sum();
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
    /// Closes the spool's log if it has stopped since the last append.
    fn close_stopped_store(&self) {
        if let Some(store) = self.store()
            && let Err(AppendError::Stopped(reason)) = store.ready()
        {
            self.close_store(&store, &reason);
        }
    }

    /// Closes the spool's log after its disk failed for good.
    pub(super) fn close_store(&self, failed: &Arc<dyn Store>, reason: &str) {
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if store.as_ref().is_some_and(|present| Arc::ptr_eq(present, failed)) {
            tracing::error!("the spool's log has stopped and is opened again: {reason}");
            reason.clone_into(&mut partition::lock(&self.store_fault));
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
            reload(shared, store.as_ref());
            tracing::info!("the spool's log is open again");
            *shared.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            let mut fault = partition::lock(&shared.store_fault);
            if *fault != text {
                tracing::warn!("the spool's log cannot be opened again yet: {text}");
                *fault = text;
            }
        }
        Err(error) => tracing::error!("opening the spool's log again ended early: {error}"),
    }
}

/// Continues from the drained offsets in memory, which are newer than the written ones.
fn reload(shared: &Shared, store: &dyn Store) {
    let log_id = Append::identity(store).log_id;
    let is_same = log_id == shared.store_id;
    if !is_same {
        let (waiting, expected) =
            (shared.partitions.iter().map(|partition| partition.state().records()).sum::<u64>(), shared.store_id);
        tracing::error!(%log_id, %expected, waiting, "the spool's folder holds another log than before; what waited is lost");
    }
    for partition in &shared.partitions {
        let range = store.range(partition.number);
        partition.change(|state| {
            state.drained = if is_same && state.drained <= range.end { state.drained.max(range.start) } else { range.start };
            state.end = range.end;
        });
    }
}
