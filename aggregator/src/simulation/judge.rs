//! What must hold, looked at while it happens and when all is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use eventlog::Offset;
use events::{Event, EventId, UserId, wire};

use super::model::{Standing, Tables};
use super::run::{Run, Seen, broke};

/// What clients know an event by.
pub(super) type Id = (UserId, EventId);

/// Returns what clients know an event by.
pub(super) fn id_of(event: &Event) -> Id {
    (event.user_id, event.event_id)
}

/// Returns what has to be the same in a retry.
pub(super) fn content_of(event: &Event) -> String {
    let value = event.value.map(|value| value.to_string());
    format!(
        "{} {} {}",
        event.name.as_deref().unwrap_or("-"),
        value.as_deref().unwrap_or("-"),
        event.currency.as_deref().unwrap_or("-")
    )
}

#[derive(Default)]
struct Ledger {
    /// With all contents that an id was sent with.
    sent: BTreeMap<Id, BTreeSet<String>>,
    acknowledged: BTreeSet<Id>,
    /// All that ever was in the log, by log partition; trimming takes nothing from here.
    log: Vec<Vec<Bytes>>,
    lies_in: BTreeMap<Id, u32>,
    /// The last that was seen of each log partition.
    standings: Vec<Standing>,
}

/// Looks at everything. Clones share what it knows.
#[derive(Clone)]
pub(super) struct Judge {
    run: Run,
    ledger: Arc<Mutex<Ledger>>,
}

impl Judge {
    pub(super) fn new(run: &Run, partitions: u32) -> Self {
        let partitions = partitions as usize;
        let (log, standings) = (vec![Vec::new(); partitions], vec![Standing::default(); partitions]);
        Judge { run: run.clone(), ledger: Arc::new(Mutex::new(Ledger { log, standings, ..Ledger::default() })) }
    }

    fn ledger<T>(&self, act: impl FnOnce(&mut Ledger) -> T) -> T {
        act(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A client is about to send an event.
    pub(super) fn sent(&self, event: &Event) {
        self.ledger(|ledger| ledger.sent.entry(id_of(event)).or_default().insert(content_of(event)));
    }

    /// A client was told that its events are accepted.
    pub(super) fn acknowledged(&self, ids: impl IntoIterator<Item = Id>) {
        self.ledger(|ledger| ledger.acknowledged.extend(ids));
        self.run.saw(Seen::Acknowledged);
    }

    /// A record is durable in the log, at the end of a log partition.
    pub(super) fn appended(&self, partition: u32, bytes: Bytes) {
        let Ok(event) = wire::decode(&bytes) else {
            return broke!(self.run, I3NoPhantom, "a record of log partition {partition} is no event");
        };
        let (was_sent, lies_in) = self.ledger(|ledger| {
            ledger.log[partition as usize].push(bytes);
            let was_sent = ledger.sent.get(&id_of(&event)).is_some_and(|contents| contents.contains(&content_of(&event)));
            (was_sent, *ledger.lies_in.entry(id_of(&event)).or_insert(partition))
        });
        if !was_sent {
            broke!(self.run, I3NoPhantom, "{} is in the log and was never sent so", event.event_id);
        }
        if lies_in != partition {
            broke!(self.run, I16Routing, "{} lies in log partitions {lies_in} and {partition}", event.event_id);
        }
    }

    /// An aggregator says that records below an offset are not needed any more.
    pub(super) fn released(&self, partition: u32, offset: Offset) {
        let stored = self.ledger(|ledger| ledger.standings[partition as usize].next);
        if offset > stored {
            broke!(self.run, I15TrimSafety, "log partition {partition} is released up to {offset}, and is stored up to {stored}");
        }
    }

    /// Lease and checkpoint of a log partition are these now. `epoch_of_lease` is the lease's, `epoch_of_batch` that under which the batch
    /// was read that was just committed, if it was a commit.
    pub(super) fn moved(&self, partition: u32, now: Standing, epoch_of_lease: i64, epoch_of_batch: Option<i64>) {
        let before = self.ledger(|ledger| std::mem::replace(&mut ledger.standings[partition as usize], now));
        if now.next < before.next || now.epoch < before.epoch {
            broke!(self.run, I7Fencing, "log partition {partition} went back from {before:?} to {now:?}");
        }
        if let Some(epoch) = epoch_of_batch.filter(|epoch| *epoch != epoch_of_lease) {
            broke!(
                self.run,
                I7Fencing,
                "log partition {partition}: a batch of epoch {epoch} was committed in epoch {epoch_of_lease}"
            );
        }
        let Standing { next, rows, dead, duplicates, .. } = now;
        if next != rows + dead + duplicates {
            broke!(
                self.run,
                I5Conservation,
                "log partition {partition}: next {next} is not {rows} rows + {dead} dead letters + {duplicates} duplicates"
            );
        }
    }

    /// Returns whether all that is in the log and all that was acknowledged is stored.
    pub(super) fn is_all_stored(&self, tables: &Tables) -> bool {
        self.ledger(|ledger| {
            let is_read = ledger.log.iter().zip(&tables.standings).all(|(log, standing)| log.len() as u64 == standing.next);
            is_read && ledger.acknowledged.is_subset(&tables.rows.iter().map(|row| row.id()).collect())
        })
    }

    /// Everything is over.
    pub(super) fn judge(&self, tables: &Tables) {
        self.ledger(|ledger| {
            let mut count: BTreeMap<Id, u64> = BTreeMap::new();
            for row in &tables.rows {
                *count.entry(row.id()).or_default() += 1;
                if !ledger.sent.get(&row.id()).is_some_and(|contents| contents.contains(&row.content)) {
                    broke!(self.run, I3NoPhantom, "a row was never sent so: {row:?}");
                }
            }
            for (id, count) in count.iter().filter(|(_, count)| **count > 1) {
                broke!(self.run, I2NoDuplicate, "{id:?} is stored {count} times");
            }
            let lost: Vec<&Id> = ledger.acknowledged.iter().filter(|id| !count.contains_key(id)).collect();
            if let Some(first) = lost.first() {
                broke!(self.run, I1NoLoss, "{} acknowledged events are not stored, such as {first:?}", lost.len());
            }
            for (partition, (log, standing)) in ledger.log.iter().zip(&tables.standings).enumerate() {
                self.compare_with_log(partition as u32, &log[..log.len().min(standing.next as usize)], tables);
            }
        });
    }

    /// The rows of a log partition are the first record of each identity in what is stored of its log.
    fn compare_with_log(&self, partition: u32, log: &[Bytes], tables: &Tables) {
        let mut known = BTreeSet::new();
        let first = |(offset, bytes): (usize, &Bytes)| {
            let event = wire::decode(bytes).ok()?;
            known.insert(id_of(&event)).then_some(offset as Offset)
        };
        let expected: BTreeSet<Offset> = log.iter().enumerate().filter_map(first).collect();
        let found: BTreeSet<Offset> = tables.rows.iter().filter(|row| row.partition == partition).map(|row| row.offset).collect();
        if let Some(offset) = expected.symmetric_difference(&found).next() {
            broke!(
                self.run,
                I5Conservation,
                "log partition {partition}: offset {offset} should be a row and is none, or the other way round"
            );
        }
    }
}
