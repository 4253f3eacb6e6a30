//! The path of a batch: read, decode, commit, acknowledge.

mod halted;
mod suspects;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use eventlog::{Offset, Read, ReadBound, ReadError};
use events::{Micros, wire};
use futures_util::future::select_all;
use service::{BackOff, Stop};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch::{Batch, DeadLetter, ID_CONFLICT};
use crate::commit::checkpoint::Checkpoint;
use crate::commit::limit::{Tallies, TooMany};
use crate::commit::{CommitError, Stored};
use crate::config::Config;
use crate::database::{self, Fault};
use crate::lag;
use crate::lease::Held;
use crate::metrics::Metrics;
use crate::status::{Halt, Status};
use crate::store::{Store, Writer};

use halted::{COMMIT_REFUSED, LOG_DIFFERS, LOG_VERSION_UNKNOWN, Looks, TOO_MANY_DEAD_LETTERS, halt_of};
use suspects::{Failed, Suspects};

/// The first and the longest wait of a worker before it restarts after an error; each is lengthened by up to itself.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(700));
/// How often a worker that has nothing to store looks whether its connection lives, so that it has another one before the next event comes.
const PING_EVERY: Duration = Duration::from_secs(1);
/// After so long without an error the next pause is the shortest again.
const STEADY: Duration = Duration::from_secs(30);
/// How long a worker waits for a log partition that cannot be read now, unless another one has records.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(1);
/// How long an end waits for what the log still holds.
const DRAINING_READ_MAX: Duration = Duration::from_secs(2);
/// Decoding more bytes keeps a processor for milliseconds, on a thread of its own: requests must not wait behind it. Less takes no longer
/// than handing it to a thread.
const INLINE_BYTES_MAX: usize = 64 * 1024;
/// How often it is looked whether an operator settled the dead letters of a halted log partition.
const SETTLED_POLL: Duration = Duration::from_secs(5);

/// What the workers of a process share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub config: Config,
    pub log: Arc<dyn Read>,
    pub store: Arc<dyn Store>,
    pub held: watch::Receiver<Held>,
    pub stored: Arc<lag::Stored>,
    pub metrics: Arc<Metrics>,
    pub status: Arc<Status>,
}

/// One worker: a connection of its own, and every n-th of the log partitions that this process holds.
#[derive(Clone)]
pub(crate) struct Worker {
    number: u32,
    shared: Shared,
    /// Where reading ends, since a dead letter there would be one too many.
    ceilings: BTreeMap<u32, TooMany>,
    suspects: Suspects,
    looks: Looks,
    /// Nothing was left to store, and the connection lived.
    was_well: bool,
}

/// Where a worker stands in a log partition.
#[derive(Clone, Copy, Debug)]
struct Position {
    epoch: i64,
    next: Offset,
}

type Positions = BTreeMap<u32, Position>;

impl Worker {
    /// Makes one that has read nothing yet.
    pub(crate) fn new(number: u32, shared: Shared) -> Self {
        Worker {
            number,
            shared,
            ceilings: BTreeMap::new(),
            suspects: Suspects::default(),
            looks: Looks::default(),
            was_well: false,
        }
    }

    /// Works until a stop, and then until the log's end. After any error the connection is closed, and everything that
    /// was known from it is read again: the checkpoint in Postgres is the only progress there is.
    pub(crate) async fn run(mut self, mut stop: Stop) {
        let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
        loop {
            let began = Instant::now();
            let failed = match self.work(&mut stop).await {
                Ok(()) => return,
                Err(error) => {
                    let failed = self.fail(&error);
                    tracing::warn!(worker = self.number, %error, "starting again from the checkpoint");
                    failed
                }
            };
            if stop.is_requested() {
                return; // what is left stays in the log
            }
            if began.elapsed() > STEADY || std::mem::take(&mut self.was_well) {
                back_off.reset();
            }
            if failed.is_alone {
                continue; // it rests by itself, and the others go on
            }
            tokio::select! {
                biased;
                () = stop.requested() => {}
                () = back_off.wait() => {}
            }
        }
    }

    /// Draws the conclusions from an error.
    fn fail(&mut self, error: &CommitError) -> Failed {
        let mut failed = Failed::default();
        match error {
            CommitError::NotOwner { .. } => self.shared.metrics.fenced.increment(1),
            CommitError::Unknown(_) => self.shared.metrics.unknown_commits.increment(1),
            // The lease manager sees it, too, and gives the leases back.
            CommitError::Schema(unsupported) => self.shared.status.schema(Some(unsupported.to_string())),
            CommitError::TooManyDeadLetters(found) => {
                self.ceilings.insert(found.partition, found.clone());
            }
            CommitError::Postgres(fault) if database::fault(fault) == Fault::Circumstances => {}
            CommitError::Postgres(_) | CommitError::Staging { .. } => {
                let tries = self.shared.config.commit_tries_max;
                failed = self.suspects.failed(tries);
                if let Some(partition) = failed.halts {
                    let text = format!(
                        "a commit failed {tries} times, which is no single record's fault: {error}. Nothing is skipped; mend the \
                         cause, and it goes on: it is tried once a minute"
                    );
                    self.halt(partition, Halt { state: COMMIT_REFUSED, text });
                }
            }
        }
        self.suspects.passed();
        failed
    }

    async fn work(&mut self, stop: &mut Stop) -> Result<(), CommitError> {
        let mut writer = self.shared.store.writer().await?;
        let mut positions = Positions::new();
        let mut tallies = Tallies::new();
        let mut ahead = Batch::default();
        let (mut polled, mut answered) = (Instant::now(), Instant::now());
        loop {
            if polled.elapsed() >= SETTLED_POLL {
                polled = Instant::now();
                self.unhalt_settled(writer.as_mut()).await?;
            }
            self.follow_leases(writer.as_mut(), &mut positions, &mut tallies, stop).await?;
            let all_held = self.shared.held.borrow().len().max(1);
            writer.remember(positions.keys().copied().collect(), self.shared.config.known_users_bytes_max / all_held);
            let draining = stop.is_requested();
            let mut batch = std::mem::take(&mut ahead);
            if batch.len() == 0 {
                if !draining {
                    self.wait(&positions, stop).await;
                }
                let all = positions.keys().copied();
                let chosen = if draining { self.suspects.unsuspected(all) } else { self.suspects.choose(all) };
                batch = if draining {
                    // What does not come at once stays in the log: brokers that are gone would be waited for, for each log partition.
                    let read = self.read(&mut positions, &chosen);
                    tokio::time::timeout(DRAINING_READ_MAX, read).await.unwrap_or_default()
                } else {
                    self.read(&mut positions, &chosen).await
                };
            }
            if batch.len() == 0 {
                if draining {
                    return Ok(());
                }
                if answered.elapsed() >= PING_EVERY {
                    writer.ping().await?;
                    answered = Instant::now();
                    self.was_well = true;
                }
                continue;
            }
            // Behind a full batch there is more: it is read and decoded while Postgres works on this one.
            let full = batch.len() >= self.share_of_batch(&positions) && !self.suspects.is_any_due(positions.keys().copied());
            let unsuspected = self.suspects.unsuspected(positions.keys().copied());
            let began = Instant::now();
            self.suspects.committing(batch.slices.iter().map(|slice| slice.partition));
            let committing = self.shared.status.committing(self.number);
            let (stored, next) = tokio::join!(writer.commit(&batch, &tallies), async {
                if full { self.read(&mut positions, &unsuspected).await } else { Batch::default() }
            });
            drop(committing);
            let (counts, bytes) = writer.remembered();
            self.shared.metrics.users(self.number, counts, bytes);
            let stored = stored?;
            answered = Instant::now();
            self.suspects.succeeded();
            self.unhalt_stored(&batch);
            self.acknowledge(&batch, &stored, began.elapsed()).await;
            tallies.extend(stored.tallies);
            ahead = next;
        }
    }

    /// Takes up log partitions that became ours, after comparing the checkpoint with the log; drops those that were lost.
    /// Once a stop is requested nothing is taken up any more: a log that cannot be reached takes seconds to answer each request.
    async fn follow_leases(
        &mut self,
        writer: &mut dyn Writer,
        positions: &mut Positions,
        tallies: &mut Tallies,
        stop: &mut Stop,
    ) -> Result<(), sqlx::Error> {
        let mine = |partition: u32| partition % self.shared.config.workers == self.number;
        let held: Held = self.shared.held.borrow_and_update().iter().map(|(p, e)| (*p, *e)).filter(|(p, _)| mine(*p)).collect();
        positions.retain(|partition, position| held.get(partition) == Some(&position.epoch));
        self.ceilings.retain(|partition, _| held.contains_key(partition));
        self.suspects.retain(|partition| held.contains_key(&partition));
        // A log partition that is another process's is its to halt.
        let halts = self.shared.status.halts().into_keys();
        let lost: Vec<u32> = halts.filter(|partition| mine(*partition) && !held.contains_key(partition)).collect();
        lost.into_iter().for_each(|partition| self.unhalt(partition));
        let halts = self.shared.status.halts();
        for (partition, epoch) in held {
            let halted = halts.get(&partition).map(|halt| halt.state);
            // Dead letters that were settled end their halt.
            if positions.contains_key(&partition)
                || halted == Some(TOO_MANY_DEAD_LETTERS)
                || halted.is_some() && !self.looks.is_due(partition)
            {
                continue;
            }
            if !writer.register(partition, epoch).await? {
                continue; // lost again; the lease manager will tell
            }
            let checkpoint = writer.checkpoint(partition).await?;
            self.shared.stored.up_to(partition, checkpoint.next_offset);
            let compared = tokio::select! {
                biased;
                () = stop.requested() => return Ok(()),
                compared = self.look(partition, checkpoint, halted.is_some()) => compared,
            };
            match compared {
                Ok(None) => {
                    match halted {
                        // It goes on when its commit succeeds.
                        Some(COMMIT_REFUSED) => self.suspects.try_again(partition, self.shared.config.commit_tries_max),
                        Some(_) => self.unhalt(partition),
                        None => self.shared.metrics.halted(partition, false), // shown from now on
                    }
                    if self.ceilings.get(&partition).is_some_and(|ceiling| ceiling.offset < checkpoint.next_offset) {
                        self.ceilings.remove(&partition);
                    }
                    let in_row_max = self.shared.config.dead_letters_in_row_max;
                    let tally = writer.tally(partition, checkpoint.next_offset, in_row_max).await?;
                    tallies.insert(partition, tally);
                    positions.insert(partition, Position { epoch, next: checkpoint.next_offset });
                }
                Ok(Some(halt)) => self.halt(partition, halt),
                Err(error) => tracing::warn!(partition, %error, "the log cannot be compared with the checkpoint now"),
            }
        }
        Ok(())
    }

    /// Lets log partitions go on whose dead letters an operator replayed or discarded since they were too many.
    async fn unhalt_settled(&mut self, writer: &mut dyn Writer) -> Result<(), sqlx::Error> {
        let halts = self.shared.status.halts().into_iter().filter(|(_, halt)| halt.state == TOO_MANY_DEAD_LETTERS);
        let mine =
            halts.map(|(partition, _)| partition).filter(|partition| partition % self.shared.config.workers == self.number);
        for partition in mine.collect::<Vec<_>>() {
            let next = writer.checkpoint(partition).await?.next_offset;
            let tally = writer.tally(partition, next, self.shared.config.dead_letters_in_row_max).await?;
            if tally.is_full().is_none() {
                self.ceilings.remove(&partition);
                self.unhalt(partition);
            }
        }
        Ok(())
    }

    /// Compares a checkpoint with the log, as [`Worker::compare`]; of a halted log partition also whether the next record can be read.
    async fn look(&self, partition: u32, checkpoint: Checkpoint, is_halted: bool) -> Result<Option<Halt>, ReadError> {
        let found = self.compare(partition, checkpoint).await?;
        if found.is_some() || !is_halted {
            return Ok(found);
        }
        let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::ZERO };
        match self.shared.log.read(partition, checkpoint.next_offset, bound).await {
            Ok(records) => {
                let mut batch = Batch::default();
                batch.add(partition, 0, records);
                Ok(batch.newer.get(&partition).map(|newer| newer_version(*newer)))
            }
            Err(error) => halt_of(&error).map_or(Err(error), |halt| Ok(Some(halt))),
        }
    }

    /// Lets log partitions go on whose commits were refused, and whose records are stored now.
    fn unhalt_stored(&mut self, batch: &Batch) {
        let halts = self.shared.status.halts();
        let was_refused = |partition| halts.get(&partition).is_some_and(|halt| halt.state == COMMIT_REFUSED);
        for slice in batch.slices.iter().filter(|slice| was_refused(slice.partition)) {
            self.unhalt(slice.partition);
        }
    }

    /// Compares a checkpoint with the log: its place, and the record before it. Where the log begins at the checkpoint
    /// there is no such record, and the log's identity alone decides.
    async fn compare(&self, partition: u32, checkpoint: Checkpoint) -> Result<Option<Halt>, ReadError> {
        let offsets = match self.shared.log.offsets(partition).await {
            Ok(offsets) => offsets,
            Err(error) => return halt_of(&error).map_or(Err(error), |halt| Ok(Some(halt))),
        };
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
        match self.shared.log.read(partition, next - 1, bound).await {
            Ok(records) => {
                let found = records.first().map(|record| crc32c::crc32c(&record.bytes));
                let text = format!(
                    "the record before offset {next} has checksum {found:?}, the checkpoint {expected}: these are not the \
                     records that were stored. Bring the log back that this database was fed from"
                );
                Ok((found != Some(expected)).then_some(Halt { state: LOG_DIFFERS, text }))
            }
            Err(error) => halt_of(&error).map_or(Err(error), |halt| Ok(Some(halt))),
        }
    }

    /// Waits until one of the log partitions has a record, and then as long as a batch may grow.
    async fn wait(&mut self, positions: &Positions, stop: &mut Stop) {
        let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::from_secs(1) };
        let log = &self.shared.log;
        let suspects = &self.suspects;
        let read = |(partition, position): (&u32, &Position)| {
            let (partition, next) = (*partition, position.next);
            Box::pin(async move {
                if log.read(partition, next, bound).await.is_err() {
                    // It shows again when the batch is read, and is handled there.
                    tokio::time::sleep(UNREADABLE_PAUSE).await;
                }
            })
        };
        let reads: Vec<_> = positions.iter().filter(|(partition, _)| !suspects.rests(**partition)).map(read).collect();
        let arrival = async {
            if reads.is_empty() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            } else {
                select_all(reads).await;
                tokio::time::sleep(self.shared.config.batch_age_max()).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.requested() => {}
            _ = self.shared.held.changed() => {}
            () = suspects.until_due() => {}
            () = arrival => {}
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
            match self.shared.log.read(*partition, position.next, bound).await {
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
        let bytes: usize = read.iter().flat_map(|(_, _, records)| records).map(|record| record.bytes.len()).sum();
        let decode = move || {
            let mut batch = Batch::default();
            batch.events.reserve(read.iter().map(|(_, _, records)| records.len()).sum());
            for (partition, epoch, records) in read {
                batch.add(partition, epoch, records);
            }
            batch
        };
        let batch: Batch = if bytes <= INLINE_BYTES_MAX {
            decode()
        } else {
            tokio::task::spawn_blocking(decode).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
        };
        for (partition, newer) in &batch.newer {
            positions.remove(partition);
            self.halt(*partition, newer_version(*newer));
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
            self.shared.log.release(slice.partition, slice.to).await;
            self.shared.stored.up_to(slice.partition, slice.to);
        }
        self.shared.metrics.read.increment(batch.len() as u64);
        self.shared.metrics.duplicates.increment(stored.duplicates);
        self.shared.metrics.unattributed.increment(stored.followed.unattributed);
        self.shared.metrics.over_active.increment(stored.followed.over_active);
        self.shared.metrics.commit_seconds.record(took.as_secs_f64());
        for (kind, count) in &stored.inserted {
            self.shared.metrics.stored(*kind, *count);
        }
        if stored.conflicts_passed > 0 {
            self.shared.metrics.dead_letters(ID_CONFLICT, stored.conflicts_passed);
        }
        // A line for each would be as many as whoever has a public key likes, and keep a processor for as long.
        for (code, DeadOfCode { records, first }) in by_code(&stored.dead) {
            self.shared.metrics.dead_letters(code, records);
            let (partition, offset) = (first.partition, first.offset);
            tracing::warn!(code, records, partition, offset, "records became dead letters; the first one's place is named");
        }
        if let Some(oldest) = batch.events.iter().map(|decoded| decoded.event.received_at).min() {
            let age = Micros::now().0.saturating_sub(oldest.0).max(0);
            self.shared.metrics.stored_age_seconds.record(age as f64 / Micros::SECOND as f64);
        }
    }

    fn share_of_batch(&self, positions: &Positions) -> usize {
        (self.shared.config.batch_events_max as usize / positions.len().max(1)).max(1)
    }

    fn halt(&self, partition: u32, halt: Halt) {
        self.shared.metrics.halted(partition, true);
        if self.shared.status.halt(partition, Some(halt.clone())) {
            tracing::error!(partition, state = halt.state, reason = halt.text, "log partition halted; nothing is skipped");
        }
    }

    fn unhalt(&mut self, partition: u32) {
        self.looks.forget(partition);
        self.shared.metrics.halted(partition, false);
        if self.shared.status.halt(partition, None) {
            tracing::info!(partition, "log partition is not halted here any more");
        }
    }
}

/// The halt before a record that a newer version of Weir wrote, from its offset and version.
fn newer_version((offset, version): (Offset, u32)) -> Halt {
    let text = format!(
        "the record at offset {offset} has version {version}, this build reads version {}; upgrade the aggregators before the collectors",
        wire::VERSION
    );
    Halt { state: LOG_VERSION_UNKNOWN, text }
}

/// Dead letters of one code in a batch.
struct DeadOfCode<'a> {
    records: u64,
    first: &'a DeadLetter,
}

fn by_code(letters: &[DeadLetter]) -> BTreeMap<&'static str, DeadOfCode<'_>> {
    let mut found = BTreeMap::new();
    for letter in letters {
        found.entry(letter.code).or_insert(DeadOfCode { records: 0, first: letter }).records += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;
    use crate::store::postgres::Postgres;
    use eventlog::memory::MemoryLog;
    use service::Tasks;

    #[test]
    fn however_many_dead_letters_a_batch_has_they_are_told_in_a_line_of_each_code() {
        let letter = |offset: u64| DeadLetter {
            partition: 3,
            offset,
            bytes: bytes::Bytes::new(),
            project: None,
            code: if offset % 4 == 2 { "unknown_component" } else { "unknown_variant" },
            subject: None,
            reason: String::new(),
            sqlstate: None,
        };
        let letters: Vec<DeadLetter> = (0..20_000).map(letter).collect();
        let told: Vec<_> = by_code(&letters).into_iter().map(|(code, of)| (code, of.records, of.first.offset)).collect();
        assert_eq!(told, [("unknown_component", 5_000, 2), ("unknown_variant", 15_000, 0)]);
        assert!(by_code(&[]).is_empty());
    }

    /// A database that refuses connections for two hours, on a clock that passes them at once: the worker is still trying,
    /// and ends when it is told to.
    #[tokio::test(start_paused = true)]
    async fn an_outage_of_postgres_may_last_as_long_as_it_likes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        drop(listener); // nobody listens there now
        let (_lease_manager, held) = watch::channel(Held::new());
        let config = Config::new(address, format!("postgres://nobody@{address}/nothing"));
        let metrics = Arc::new(Metrics::new(metrics::meter()));
        let (log, stored, status) = (Arc::new(MemoryLog::new(8)), Arc::default(), Arc::default());
        let store = Arc::new(Postgres::new(&config, log.identity().log_id));
        let worker = Worker::new(0, Shared { config, log, store, held, stored, metrics, status });
        let tasks = Tasks::new(&metrics::meter());
        tasks.spawn("worker", move |stop| worker.clone().run(stop));
        tokio::time::sleep(Duration::from_secs(2 * 3_600)).await;
        assert_eq!(tasks.health().unready(), None, "the worker has died");
        assert!(tasks.stop(Duration::ZERO, Duration::from_secs(5)).await, "the worker does not end");
    }
}
