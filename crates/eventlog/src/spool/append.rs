//! Appends: per log partition to the primary or to the spool; what the primary does not accept goes to the spool.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use events::Record;

use super::Shared;
use super::partition::{self, Entry, Partition};
use crate::{AppendError, Position};

/// Appends a batch to the primary, the spool, or both.
pub(super) async fn append(shared: &Arc<Shared>, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
    if batch.is_empty() {
        return Ok(Vec::new());
    }
    if shared.is_stopped.load(Ordering::Relaxed) {
        return Err(AppendError::Stopped("the spool was stopped".to_owned()));
    }
    shared.refuse_another_log()?;
    let partition_of = |record: &Record| record.bucket().log_partition(shared.identity.partitions);
    let partitions: Vec<u32> = batch.iter().map(partition_of).collect();
    let touched = set_of(&partitions);
    let mut entries = Vec::new();
    for partition in members(touched) {
        entries.extend(Partition::enter(shared, partition, || shared.is_agreed_log()).await);
    }
    let spooled = entries.iter().fold(0, |set, entry| set | 1 << entry.partition());
    if spooled == 0 {
        return to_primary(shared, batch, touched).await;
    }
    let positions = |entry: &u32| Position { partition: *entry, offset: None };
    if spooled == touched {
        to_spool(shared, batch, entries).await?;
        return Ok(partitions.iter().map(positions).collect());
    }

    let is_spooled = |partition: u32| spooled & (1 << partition) != 0;
    let (mut direct, mut waiting) = (Vec::new(), Vec::new());
    for (record, partition) in batch.into_iter().zip(&partitions) {
        if is_spooled(*partition) { waiting.push(record) } else { direct.push(record) }
    }
    let (direct, waiting) = tokio::join!(to_primary(shared, direct, touched & !spooled), to_spool(shared, waiting, entries));
    match (direct, waiting) {
        (Ok(direct), Ok(())) => {
            let mut direct = direct.into_iter();
            // The primary answers with one position for each record; a missing one would only lose an offset.
            let place = |partition: &u32| match is_spooled(*partition) {
                true => positions(partition),
                false => direct.next().unwrap_or(positions(partition)),
            };
            Ok(partitions.iter().map(place).collect())
        }
        (Err(AppendError::Unavailable(direct)), Err(AppendError::Unavailable(waiting))) => {
            Err(AppendError::Unavailable(format!("{direct}; {waiting}")))
        }
        (Err(error), _) | (_, Err(error)) => Err(AppendError::Unknown(format!("some of the records are stored: {error}"))),
    }
}

/// Returns whether one more append could succeed now.
pub(super) fn ready(shared: &Shared) -> Result<(), AppendError> {
    if shared.is_stopped.load(Ordering::Relaxed) {
        return Err(AppendError::Stopped("the spool was stopped".to_owned()));
    }
    shared.refuse_another_log()?;
    let all_direct = shared.is_agreed_log() && shared.partitions.iter().all(Partition::is_empty);
    if all_direct && shared.primary.ready().is_ok() {
        return Ok(());
    }
    match shared.store() {
        Some(store) => match store.ready() {
            // It is opened again by itself.
            Err(AppendError::Stopped(reason)) => Err(AppendError::Unavailable(format!("spool: {reason}"))),
            ready => ready,
        },
        None => Err(closed(shared)),
    }
}

fn closed(shared: &Shared) -> AppendError {
    let fault = partition::lock(&shared.store_fault).clone();
    AppendError::Unavailable(format!("the spool is closed and will be opened again: {fault}"))
}

/// Log partitions as bits; a log has 64 at most.
fn set_of(partitions: &[u32]) -> u64 {
    partitions.iter().fold(0, |set, partition| set | 1 << partition)
}

fn members(set: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |partition| set & (1 << partition) != 0)
}

/// Appends to the primary, within its time, and else to the spool.
async fn to_primary(shared: &Arc<Shared>, records: Vec<Record>, partitions: u64) -> Result<Vec<Position>, AppendError> {
    let wait_max = shared.options.primary_wait_max;
    let failure = match tokio::time::timeout(wait_max, shared.primary.append(records.clone())).await {
        Ok(Ok(positions)) => return Ok(positions),
        Ok(Err(failure)) => failure,
        Err(_) => AppendError::Unknown(format!("the log gave no answer within {} s", wait_max.as_secs_f64())),
    };
    shared.counters.primary_failed(&failure);
    shared.invalidate_comparison(&failure);
    let mut entries = Vec::new();
    for partition in members(partitions) {
        entries.extend(Partition::enter(shared, partition, || false).await);
    }
    let positions = |record: &Record| {
        let partition = record.bucket().log_partition(shared.identity.partitions);
        Position { partition, offset: None }
    };
    let positions = records.iter().map(positions).collect();
    match to_spool(shared, records, entries).await {
        Ok(()) => Ok(positions),
        Err(refused) => Err(match (failure, refused) {
            (AppendError::Unavailable(first), AppendError::Unavailable(then)) => {
                AppendError::Unavailable(format!("{first}; {then}"))
            }
            (first, then) => AppendError::Unknown(format!("{first}; {then}")),
        }),
    }
}

/// Appends to the spool. Runs to its end even if the caller goes away, since until then it counts as a record of the spool.
async fn to_spool(shared: &Arc<Shared>, records: Vec<Record>, entries: Vec<Entry>) -> Result<(), AppendError> {
    let appended = tokio::spawn({
        let shared = Arc::clone(shared);
        async move { append_to_store(&shared, records, entries).await }
    });
    let appended = appended.await.unwrap_or_else(|error| Err(AppendError::Unknown(format!("spool: {error}"))));
    if appended.is_err() {
        shared.counters.refused();
    }
    appended
}

async fn append_to_store(shared: &Arc<Shared>, records: Vec<Record>, entries: Vec<Entry>) -> Result<(), AppendError> {
    let Some(store) = shared.store() else { return Err(closed(shared)) };
    let count = records.len() as u64;
    let appended = store.append(records).await;
    for entry in entries {
        // Also after an error: some of the records may be there.
        let end = store.range(entry.partition()).end;
        entry.ended(end);
    }
    match appended {
        Ok(_) => {
            shared.counters.spooled(count);
            Ok(())
        }
        Err(AppendError::Unavailable(reason)) => Err(AppendError::Unavailable(format!("spool: {reason}"))),
        Err(AppendError::Unknown(reason)) => Err(AppendError::Unknown(format!("spool: {reason}"))),
        Err(AppendError::Stopped(reason)) => {
            // It refused before it wrote, so none of the records is there.
            shared.close_store(&store, &reason);
            Err(AppendError::Unavailable(format!("spool: {reason}")))
        }
    }
}
