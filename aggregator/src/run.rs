//! The path of a batch: read, decode, commit, acknowledge.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eventlog::{Offset, Read, ReadBound, ReadError};
use events::{Micros, wire};
use futures_util::future::select_all;
use service::{BackOff, Stop};
use sqlx::PgConnection;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch::{Batch, ID_CONFLICT};
use crate::commit::limit::{Tallies, Tally, TooMany};
use crate::commit::{self, CommitError, Stored, WorkerCache};
use crate::config::Config;
use crate::database::Fault;
use crate::lag;
use crate::lease::{self, Held};
use crate::metrics::Metrics;
use crate::status::{Halt, Status};
use crate::{commit::checkpoint, commit::copy, database};

/// The first and the longest wait of a worker before it restarts after an error.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// After so long without an error the next pause is the shortest again.
const STEADY: Duration = Duration::from_secs(30);
/// How often it is looked whether an operator settled the dead letters of a halted log partition.
const SETTLED_POLL: Duration = Duration::from_secs(5);

/// One worker: a connection of its own, and every n-th of the log partitions that this process holds.
#[derive(Clone)]
pub(crate) struct Worker {
    pub number: u32,
    pub config: Config,
    pub log: Arc<dyn Read>,
    pub held: watch::Receiver<Held>,
    pub stored: Arc<lag::Stored>,
    pub metrics: Arc<Metrics>,
    pub status: Arc<Status>,
    /// Where reading ends, since a dead letter there would be one too many.
    pub ceilings: BTreeMap<u32, TooMany>,
    pub suspects: Suspects,
}

/// Log partitions whose commits fail for a reason which does not pass by itself, and how often in a row. Each is committed apart from all
/// others until it succeeds, so that the fault is found where it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    failures: BTreeMap<u32, u32>,
    /// How many batches were read since there are any: the log partitions take turns.
    turns: usize,
    /// Those of the batch that is being committed.
    committing: Vec<u32>,
}

impl Suspects {
    /// Chooses log partitions for the next batch among those that are read: all, or by turns the unsuspected ones and each suspect alone.
    fn choose(&mut self, read: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let (suspects, others): (Vec<u32>, Vec<u32>) = read.partition(|partition| self.failures.contains_key(partition));
        self.turns = self.turns.wrapping_add(1);
        let turns = (suspects.len() + usize::from(!others.is_empty())).max(1);
        match suspects.get(self.turns % turns) {
            Some(suspect) => BTreeSet::from([*suspect]),
            None => others.into_iter().collect(),
        }
    }

    fn succeeded(&mut self) {
        for partition in std::mem::take(&mut self.committing) {
            self.failures.remove(&partition);
        }
    }

    /// Counts a failed commit. Returns the log partition that has failed too often, alone.
    fn failed(&mut self, tries_max: u32) -> Option<u32> {
        let committing = std::mem::take(&mut self.committing);
        for partition in &committing {
            *self.failures.entry(*partition).or_default() += 1;
        }
        let alone = committing.first().copied().filter(|_| committing.len() == 1)?;
        if self.failures.get(&alone).is_some_and(|failures| *failures >= tries_max) {
            self.failures.remove(&alone);
            return Some(alone);
        }
        None
    }
}

/// Where a worker stands in a log partition.
#[derive(Clone, Copy, Debug)]
struct Position {
    epoch: i64,
    next: Offset,
}

type Positions = BTreeMap<u32, Position>;

impl Worker {
    /// Works until a stop, and then until the log's end. After any error the connection is closed, and everything that
    /// was known from it is read again: the checkpoint in Postgres is the only progress there is.
    pub(crate) async fn run(mut self, mut stop: Stop) {
        let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
        loop {
            let began = Instant::now();
            match self.work(&mut stop).await {
                Ok(()) => return,
                Err(error) => {
                    match &error {
                        CommitError::NotOwner { .. } => self.metrics.fenced.increment(1),
                        CommitError::Unknown(_) => self.metrics.unknown_commits.increment(1),
                        // The lease manager sees it, too, and gives the leases back.
                        CommitError::Schema(unsupported) => self.status.schema(Some(unsupported.to_string())),
                        CommitError::TooManyDeadLetters(found) => {
                            self.ceilings.insert(found.partition, found.clone());
                        }
                        CommitError::Postgres(fault) if database::fault(fault) == Fault::Circumstances => {}
                        CommitError::Postgres(_) | CommitError::Staging { .. } => {
                            let tries = self.config.commit_tries_max;
                            if let Some(partition) = self.suspects.failed(tries) {
                                let text = format!(
                                    "a commit failed {tries} times, which is no single record's fault: {error}. Nothing is skipped; \
                                     mend the cause, and restart the aggregators"
                                );
                                self.halt(partition, Halt { state: "commit_refused", text });
                            }
                        }
                    }
                    self.suspects.committing.clear();
                    tracing::warn!(worker = self.number, %error, "starting again from the checkpoint");
                }
            }
            if stop.is_requested() {
                return; // what is left stays in the log
            }
            if began.elapsed() > STEADY {
                back_off.reset();
            }
            tokio::select! {
                () = back_off.wait() => {}
                () = stop.requested() => {}
            }
        }
    }

    async fn work(&mut self, stop: &mut Stop) -> Result<(), CommitError> {
        let log_id = self.log.identity().log_id;
        let mut connection = database::connect(&self.config.database_url, "writer").await?;
        copy::make_table(&mut connection).await?;
        let mut cache = WorkerCache::default();
        let mut positions = Positions::new();
        let mut tallies = Tallies::new();
        let mut ahead = Batch::default();
        let mut polled = Instant::now();
        loop {
            if polled.elapsed() >= SETTLED_POLL {
                polled = Instant::now();
                self.unhalt_settled(&mut connection).await?;
            }
            self.follow_leases(&mut connection, &mut positions, &mut tallies, stop).await?;
            let all_held = self.held.borrow().len().max(1);
            cache.memory.hold(positions.keys().copied(), self.config.known_users_bytes_max / all_held);
            let draining = stop.is_requested();
            let mut batch = std::mem::take(&mut ahead);
            if batch.len() == 0 {
                if !draining {
                    self.wait(&positions, stop).await;
                }
                let all = positions.keys().copied();
                let chosen = if draining { all.collect() } else { self.suspects.choose(all) };
                batch = self.read(&mut positions, &chosen).await;
            }
            if batch.len() == 0 {
                if draining {
                    return Ok(());
                }
                continue;
            }
            // Behind a full batch there is more: it is read and decoded while Postgres works on this one.
            let full = batch.len() >= self.share_of_batch(&positions) && self.suspects.failures.is_empty();
            let all = positions.keys().copied().collect();
            let began = Instant::now();
            self.suspects.committing = batch.slices.iter().map(|slice| slice.partition).collect();
            let committing = self.status.committing(self.number);
            let (stored, next) = tokio::join!(commit::commit(&mut connection, &mut cache, log_id, &batch, &tallies), async {
                if full { self.read(&mut positions, &all).await } else { Batch::default() }
            });
            drop(committing);
            self.metrics.users(self.number, cache.memory.take_counts(), cache.memory.bytes());
            let stored = stored?;
            self.suspects.succeeded();
            self.acknowledge(&batch, &stored, began.elapsed()).await;
            tallies.extend(stored.tallies);
            ahead = next;
        }
    }

    /// Takes up log partitions that became ours, after comparing the checkpoint with the log; drops those that were lost.
    /// Once a stop is requested nothing is taken up any more: a log that cannot be reached takes seconds to answer each request.
    async fn follow_leases(
        &mut self,
        connection: &mut PgConnection,
        positions: &mut Positions,
        tallies: &mut Tallies,
        stop: &mut Stop,
    ) -> Result<(), sqlx::Error> {
        let mine = |partition: u32| partition % self.config.workers == self.number;
        let held: Held = self.held.borrow_and_update().iter().map(|(p, e)| (*p, *e)).filter(|(p, _)| mine(*p)).collect();
        positions.retain(|partition, position| held.get(partition) == Some(&position.epoch));
        let log_id = self.log.identity().log_id;
        self.ceilings.retain(|partition, _| held.contains_key(partition));
        self.suspects.failures.retain(|partition, _| held.contains_key(partition));
        // A log partition that is another process's is its to halt.
        for partition in self.status.halts().into_keys().filter(|partition| mine(*partition) && !held.contains_key(partition)) {
            self.unhalt(partition);
        }
        let halts = self.status.halts();
        for (partition, epoch) in held {
            if positions.contains_key(&partition) || halts.contains_key(&partition) {
                continue;
            }
            if !lease::register_writer(connection, log_id, partition, epoch).await? {
                continue; // lost again; the lease manager will tell
            }
            let checkpoint = checkpoint::read(connection, log_id, partition).await?;
            self.stored.up_to(partition, checkpoint.next_offset);
            let compared = tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                compared = self.compare(partition, checkpoint) => compared,
            };
            match compared {
                Ok(None) => {
                    if self.ceilings.get(&partition).is_some_and(|ceiling| ceiling.offset < checkpoint.next_offset) {
                        self.ceilings.remove(&partition);
                    }
                    let in_row_max = self.config.dead_letters_in_row_max;
                    let tally = Tally::load(connection, log_id, partition, checkpoint.next_offset, in_row_max).await?;
                    tallies.insert(partition, tally);
                    self.metrics.halted(partition, false); // shown from now on
                    positions.insert(partition, Position { epoch, next: checkpoint.next_offset });
                }
                Ok(Some(halt)) => self.halt(partition, halt),
                Err(error) => tracing::warn!(partition, %error, "the log cannot be compared with the checkpoint now"),
            }
        }
        Ok(())
    }

    /// Lets log partitions go on whose dead letters an operator replayed or discarded since they were too many.
    async fn unhalt_settled(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let log_id = self.log.identity().log_id;
        let halts = self.status.halts().into_iter().filter(|(_, halt)| halt.state == TOO_MANY_DEAD_LETTERS);
        for partition in halts.map(|(partition, _)| partition).filter(|partition| partition % self.config.workers == self.number)
        {
            let next = checkpoint::read(connection, log_id, partition).await?.next_offset;
            let tally = Tally::load(connection, log_id, partition, next, self.config.dead_letters_in_row_max).await?;
            if tally.is_full().is_none() {
                self.ceilings.remove(&partition);
                self.unhalt(partition);
            }
        }
        Ok(())
    }

    /// Compares a checkpoint with the log: its place, and the record before it. Where the log begins at the checkpoint
    /// there is no such record, and the log's identity alone decides.
    async fn compare(&self, partition: u32, checkpoint: checkpoint::Checkpoint) -> Result<Option<Halt>, ReadError> {
        let offsets = self.log.offsets(partition).await?;
        let next = checkpoint.next_offset;
        if next < offsets.start {
            let error = ReadError::BelowStart { partition, offset: next, start: offsets.start };
            return Ok(halt_of(&error));
        }
        if next > offsets.end {
            let error = ReadError::AboveEnd { partition, offset: next, end: offsets.end };
            return Ok(halt_of(&error));
        }
        let (Some(expected), true) = (checkpoint.last_crc, next > offsets.start) else { return Ok(None) };
        let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::ZERO };
        match self.log.read(partition, next - 1, bound).await {
            Ok(records) => {
                let found = records.first().map(|record| crc32c::crc32c(&record.bytes));
                let text = format!(
                    "the record before offset {next} has checksum {found:?}, the checkpoint {expected}: these are not the \
                     records that were stored. Bring the log back that this database was fed from"
                );
                Ok((found != Some(expected)).then_some(Halt { state: "log_differs", text }))
            }
            Err(error) => halt_of(&error).map_or(Err(error), |halt| Ok(Some(halt))),
        }
    }

    /// Waits until one of the log partitions has a record, and then as long as a batch may grow.
    async fn wait(&mut self, positions: &Positions, stop: &mut Stop) {
        let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::from_secs(1) };
        let log = &self.log;
        let reads: Vec<_> =
            positions.iter().map(|(partition, position)| Box::pin(log.read(*partition, position.next, bound))).collect();
        let arrival = async {
            if reads.is_empty() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            } else {
                // An error shows again when the batch is read, and is handled there.
                let _ = select_all(reads).await;
                tokio::time::sleep(self.config.batch_age_max()).await;
            }
        };
        tokio::select! {
            () = arrival => {}
            _ = self.held.changed() => {}
            () = stop.requested() => {}
        }
    }

    /// Reads what there is, each log partition up to its share of a batch, and moves the positions after it. A log
    /// partition that cannot be read halts by itself.
    async fn read(&self, positions: &mut Positions, chosen: &BTreeSet<u32>) -> Batch {
        let (records_max, bytes_max) = (self.share_of_batch(positions), Config::BATCH_BYTES_MAX / positions.len().max(1));
        self.halt_at_ceilings(positions);
        let mut read = Vec::new();
        let mut unreadable = Vec::new();
        for (partition, position) in positions.iter_mut().filter(|(partition, _)| chosen.contains(partition)) {
            let room = self.ceilings.get(partition).map_or(u64::MAX, |ceiling| ceiling.offset - position.next);
            let records_max = records_max.min(usize::try_from(room).unwrap_or(usize::MAX));
            let bound = ReadBound { records_max, bytes_max, wait_max: Duration::ZERO };
            match self.log.read(*partition, position.next, bound).await {
                Ok(records) => {
                    position.next += records.len() as u64;
                    read.push((*partition, position.epoch, records));
                }
                Err(error) => unreadable.push((*partition, error)),
            }
        }
        for (partition, error) in unreadable {
            match halt_of(&error) {
                Some(halt) => {
                    positions.remove(&partition);
                    self.halt(partition, halt);
                }
                None => tracing::warn!(partition, %error, "the log cannot be read now; trying again"),
            }
        }
        // Decoding keeps a processor for milliseconds, on a thread of its own: requests must not wait behind it.
        let decode = move || {
            let mut batch = Batch::default();
            for (partition, epoch, records) in read {
                batch.add(partition, epoch, records);
            }
            batch
        };
        let batch: Batch =
            tokio::task::spawn_blocking(decode).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        for (partition, (offset, version)) in &batch.newer {
            positions.remove(partition);
            let text = format!(
                "the record at offset {offset} has version {version}, this build reads version {}; upgrade the aggregators before \
                 the collectors",
                wire::VERSION
            );
            self.halt(*partition, Halt { state: "log_version_unknown", text });
        }
        batch
    }

    /// Halts the log partitions that were read up to where one more dead letter would be too many.
    fn halt_at_ceilings(&self, positions: &mut Positions) {
        for ceiling in self.ceilings.values() {
            if positions.get(&ceiling.partition).is_some_and(|position| position.next >= ceiling.offset) {
                positions.remove(&ceiling.partition);
                let text = format!(
                    "{}. If they are to be passed over, discard them: `weir admin dead-letters discard --code ..`; if there are \
                     many more, start with a larger --dead-letters-in-row-max",
                    ceiling.text
                );
                self.halt(ceiling.partition, Halt { state: TOO_MANY_DEAD_LETTERS, text });
            }
        }
    }

    /// Tells the log that a batch is stored, and counts.
    async fn acknowledge(&self, batch: &Batch, stored: &Stored, took: Duration) {
        for slice in &batch.slices {
            self.log.release(slice.partition, slice.to).await;
            self.stored.up_to(slice.partition, slice.to);
        }
        self.metrics.read.increment(batch.len() as u64);
        self.metrics.duplicates.increment(stored.duplicates);
        self.metrics.unattributed.increment(stored.followed.unattributed);
        self.metrics.over_active.increment(stored.followed.over_active);
        self.metrics.commit_seconds.record(took.as_secs_f64());
        for (kind, count) in &stored.inserted {
            self.metrics.stored(*kind, *count);
        }
        for _ in 0..stored.conflicts_passed {
            self.metrics.dead_letter(ID_CONFLICT);
        }
        for letter in &stored.dead {
            self.metrics.dead_letter(letter.code);
            tracing::warn!(
                partition = letter.partition,
                offset = letter.offset,
                code = letter.code,
                "a record became a dead letter"
            );
        }
        if let Some(oldest) = batch.events.iter().map(|decoded| decoded.event.received_at).min() {
            let age = Micros::now().0.saturating_sub(oldest.0).max(0);
            self.metrics.stored_age_seconds.record(age as f64 / Micros::SECOND as f64);
        }
    }

    fn share_of_batch(&self, positions: &Positions) -> usize {
        (self.config.batch_events_max as usize / positions.len().max(1)).max(1)
    }

    fn halt(&self, partition: u32, halt: Halt) {
        self.metrics.halted(partition, true);
        if self.status.halt(partition, Some(halt.clone())) {
            tracing::error!(partition, state = halt.state, reason = halt.text, "log partition halted; nothing is skipped");
        }
    }

    fn unhalt(&self, partition: u32) {
        self.metrics.halted(partition, false);
        if self.status.halt(partition, None) {
            tracing::info!(partition, "log partition is not halted here any more");
        }
    }
}

/// The state of a log partition whose records become dead letters, one after the other.
const TOO_MANY_DEAD_LETTERS: &str = "too_many_dead_letters";

/// Returns the state that a log partition halts under, for errors that do not pass by themselves.
fn halt_of(error: &ReadError) -> Option<Halt> {
    let (state, advice) = match error {
        ReadError::BelowStart { .. } => (
            "offset_below_log_start",
            "records were deleted before they were stored; bring them back, or accept the loss by moving the checkpoint",
        ),
        ReadError::AboveEnd { .. } => (
            "offset_above_log_end",
            "the log has lost records, or is another one; bring the log back that this database was fed from",
        ),
        ReadError::Corrupt { .. } => ("log_corrupt", "look at the log file; acknowledged records in it are damaged"),
        ReadError::OtherLog(_) => (
            "log_differs",
            "bring the log back that this database was fed from, or start once with --adopt-log if it is gone for good",
        ),
        ReadError::Unavailable(_) => return None,
    };
    Some(Halt { state, text: format!("{error}; {advice}") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;
    use eventlog::memory::MemoryLog;
    use service::Tasks;

    /// A database that refuses connections for two hours, on a clock that passes them at once: the worker is still trying,
    /// and ends when it is told to.
    #[tokio::test(start_paused = true)]
    async fn an_outage_of_postgres_may_last_as_long_as_it_likes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        drop(listener); // nobody listens there now
        let (_lease_manager, held) = watch::channel(Held::new());
        let worker = Worker {
            number: 0,
            config: Config::new(address, format!("postgres://nobody@{address}/nothing")),
            log: Arc::new(MemoryLog::new(8)),
            held,
            stored: Arc::default(),
            metrics: Arc::new(Metrics::new(metrics::meter())),
            status: Arc::default(),
            ceilings: BTreeMap::new(),
            suspects: Suspects::default(),
        };
        let tasks = Tasks::new(&metrics::meter());
        tasks.spawn("worker", move |stop| worker.clone().run(stop));
        tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
        assert_eq!(tasks.health().unready(), None, "the worker has died");
        assert!(tasks.stop(Duration::ZERO, Duration::from_secs(5)).await, "the worker does not end");
    }
}
