//! A model of Postgres, as far as [`crate::store`] asks it: what is stored, who holds which lock, which backends live.
//!
//! A statement runs in the server to its end, whoever waits for it: a client that is killed after it has sent COMMIT has committed. What
//! lies between server and client is `wire.rs`. `conformance.rs` holds what is claimed here against a real Postgres.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eventlog::Offset;
use events::{EventId, Kind, Micros, ProjectId, UserId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::judge::{Id, Judge, content_of};
use super::run::{Run, Seen, note};
use crate::batch::{Batch, DeadLetter, Decoded, ID_CONFLICT};
use crate::commit::Stored;
use crate::commit::checkpoint::Checkpoint;
use crate::commit::limit::Tallies;
use crate::commit::participation::Followed;
use crate::store::Lease;

/// How long a lease manager's statement waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(6);
/// After so long without a statement a transaction is ended, and its backend.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);
/// How often that is looked for.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// A backend's number.
pub(super) type Pid = u64;

/// Why a statement did not do what it says. The backend has ended, unless it is said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The server is down.
    Down,
    /// The backend was ended by somebody else, or by the server's end.
    Ended,
    /// A lock was not given in time. The backend lives.
    LockTimeout,
}

/// A stored event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub key: Key,
    pub content: String,
    pub partition: u32,
    pub offset: Offset,
}

/// The primary key of a fact table.
type Key = (ProjectId, UserId, Micros, EventId);

impl Row {
    pub(super) fn id(&self) -> Id {
        (self.key.1, self.key.3)
    }
}

/// Where a log partition stands, and what its records became.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub epoch: i64,
    pub next: Offset,
    pub last_crc: Option<u32>,
    pub rows: u64,
    pub dead: u64,
    pub duplicates: u64,
}

/// What a reader of the database sees: what is committed.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub rows: Vec<Row>,
    /// Log partition and offset.
    pub dead: Vec<(u32, Offset)>,
    pub standings: Vec<Standing>,
    pub leases: Vec<Lease>,
    pub aggregators: BTreeMap<Uuid, i64>,
}

#[derive(Default)]
struct Backend {
    /// It runs a statement. One whose client is gone ends after it.
    is_busy: bool,
    is_closed: bool,
    /// Log partitions whose checkpoints it has locked, in a transaction.
    locks: BTreeSet<u32>,
    active_at: Option<Instant>,
}

struct State {
    is_up: bool,
    tables: Tables,
    /// The backends that owners have registered, by log partition.
    writers: Vec<Option<Pid>>,
    /// The place of each key's row.
    keys: BTreeMap<Key, usize>,
    /// Content of untimed events, by what they are known by.
    untimed: BTreeMap<(ProjectId, Kind, UserId, EventId), String>,
    /// Conflicts that are kept: what repeats one is a repetition.
    conflicts: BTreeSet<(Id, Option<Micros>, String)>,
    backends: BTreeMap<Pid, Backend>,
    last_pid: Pid,
}

/// The server. Clones are the same one.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) run: Run,
    judge: Judge,
    state: Arc<Mutex<State>>,
    /// A lock was given back, or a backend has ended.
    changed: Arc<Notify>,
}

impl Model {
    /// Makes a database that knows a log with so many log partitions.
    pub(super) fn new(run: &Run, judge: &Judge, partitions: u32) -> Self {
        let lease = |partition| Lease { partition, owner: None, epoch: 0, counter: 0 };
        let tables = Tables {
            standings: vec![Standing::default(); partitions as usize],
            leases: (0..partitions).map(lease).collect(),
            ..Tables::default()
        };
        let state = State {
            is_up: true,
            tables,
            writers: vec![None; partitions as usize],
            keys: BTreeMap::new(),
            untimed: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            backends: BTreeMap::new(),
            last_pid: 0,
        };
        Model { run: run.clone(), judge: judge.clone(), state: Arc::new(Mutex::new(state)), changed: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends backends that idle in a transaction; never returns.
    pub(super) async fn end_idle(self) {
        loop {
            sleep(IDLE_LOOK).await;
            let idle = |backend: &Backend| {
                let since = backend.active_at.filter(|_| !backend.is_busy && !backend.locks.is_empty());
                since.is_some_and(|since| since.elapsed() >= IDLE_IN_TRANSACTION)
            };
            let pids: Vec<Pid> = self.state().backends.iter().filter(|(_, backend)| idle(backend)).map(|(pid, _)| *pid).collect();
            for pid in pids {
                note!(self.run, "postgres: backend {pid} idled in a transaction");
                self.end(pid);
            }
        }
    }

    /// Looks at what is committed.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Tables) -> T) -> T {
        look(&self.state().tables)
    }

    /// Crashes: every backend is gone, and what was not committed. Then it is down.
    pub(super) fn crash(&self) {
        let mut state = self.state();
        state.is_up = false;
        state.backends.clear();
        drop(state);
        self.changed.notify_waiters();
    }

    pub(super) fn recover(&self) {
        self.state().is_up = true;
    }

    /// Begins a backend.
    pub(super) fn connect(&self) -> Result<Pid, Refused> {
        let mut state = self.state();
        if !state.is_up {
            return Err(Refused::Down);
        }
        state.last_pid += 1;
        let pid = state.last_pid;
        state.backends.insert(pid, Backend::default());
        Ok(pid)
    }

    /// Ends a backend at once; what it has not committed is gone.
    fn end(&self, pid: Pid) {
        self.state().backends.remove(&pid);
        self.changed.notify_waiters();
    }

    /// A client is gone: its backend ends, after the statement that it runs.
    pub(super) fn close(&self, pid: Pid) {
        let is_busy = self.state().backends.get_mut(&pid).is_some_and(|backend| {
            backend.is_closed = true;
            backend.is_busy
        });
        if !is_busy {
            self.end(pid);
        }
    }

    /// Returns whether a backend is in a transaction.
    pub(super) fn is_in_transaction(&self, pid: Pid) -> bool {
        self.state().backends.get(&pid).is_some_and(|backend| !backend.locks.is_empty())
    }

    /// Runs a statement in a backend, to its end.
    pub(super) async fn execute<T>(&self, pid: Pid, statement: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
        self.set_busy(pid, true)?;
        let done = statement.await;
        if self.set_busy(pid, false)? {
            self.end(pid);
        }
        done
    }

    /// Returns whether its client is gone.
    fn set_busy(&self, pid: Pid, is_busy: bool) -> Result<bool, Refused> {
        let mut state = self.state();
        let backend = state.backends.get_mut(&pid).ok_or(Refused::Ended)?;
        backend.is_busy = is_busy;
        backend.active_at = Some(Instant::now());
        Ok(backend.is_closed)
    }

    /// Waits for the lock of a checkpoint.
    async fn lock(&self, pid: Pid, partition: u32) -> Result<(), Refused> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state();
                let holder = state.backends.iter().find(|(_, backend)| backend.locks.contains(&partition)).map(|(pid, _)| *pid);
                let backend = state.backends.get_mut(&pid).ok_or(Refused::Ended)?;
                if holder.is_none_or(|holder| holder == pid) {
                    backend.locks.insert(partition);
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Ends a transaction.
    pub(super) fn unlock(&self, pid: Pid) {
        if let Some(backend) = self.state().backends.get_mut(&pid) {
            backend.locks.clear();
        }
        self.changed.notify_waiters();
    }

    pub(super) fn register(&self, pid: Pid, partition: u32, epoch: i64) -> bool {
        let mut state = self.state();
        let is_held = state.tables.leases[partition as usize].epoch == epoch;
        if is_held {
            state.writers[partition as usize] = Some(pid);
        }
        is_held
    }

    pub(super) async fn checkpoint(&self, pid: Pid, partition: u32) -> Result<Checkpoint, Refused> {
        self.lock(pid, partition).await?;
        self.unlock(pid);
        let Standing { next, last_crc, .. } = self.state().tables.standings[partition as usize];
        Ok(Checkpoint { next_offset: next, last_crc })
    }

    /// Begins a transaction and moves the checkpoints over a batch, as far as others can see when it commits. Returns the log partition
    /// that is somebody else's, if one is; then the transaction is over.
    pub(super) async fn advance(&self, pid: Pid, batch: &Batch) -> Result<Option<u32>, Refused> {
        for slice in &batch.slices {
            self.lock(pid, slice.partition).await?;
            let standing = self.state().tables.standings[slice.partition as usize];
            if standing.next != slice.from || standing.epoch != slice.epoch {
                self.unlock(pid);
                return Ok(Some(slice.partition));
            }
        }
        Ok(None)
    }

    /// Commits a batch whose checkpoints are locked.
    pub(super) fn commit(&self, pid: Pid, batch: &Batch, tallies: Tallies) -> Stored {
        let mut state = self.state();
        let mut stored = Stored {
            inserted: BTreeMap::new(),
            duplicates: 0,
            followed: Followed::default(),
            dead: batch.undecodable.clone(),
            conflicts_passed: 0,
            tallies,
        };
        for letter in &batch.undecodable {
            state.bury(letter);
        }
        let mut events: Vec<&Decoded> = batch.events.iter().collect();
        events.sort_by_key(|decoded| (decoded.partition, decoded.offset));
        for decoded in events {
            match state.insert(decoded) {
                Fate::New => *stored.inserted.entry(decoded.event.kind()).or_default() += 1,
                Fate::Duplicate => {
                    stored.duplicates += 1;
                    self.run.saw(if decoded.event.is_known_by_id_alone() { Seen::UntimedDuplicate } else { Seen::Duplicate });
                }
                Fate::Conflict(letter) => {
                    stored.dead.push(letter);
                    self.run.saw(Seen::Conflict);
                }
            }
        }
        for slice in &batch.slices {
            let standing = &mut state.tables.standings[slice.partition as usize];
            (standing.next, standing.last_crc) = (slice.to, Some(slice.last_crc));
            let (standing, epoch) = (*standing, state.tables.leases[slice.partition as usize].epoch);
            self.judge.moved(slice.partition, standing, epoch, Some(slice.epoch));
            note!(self.run, "postgres: {pid} stored {slice:?}");
        }
        drop(state);
        self.unlock(pid);
        stored
    }

    pub(super) fn heartbeat(&self, owner: Uuid) {
        let mut state = self.state();
        let own = state.tables.leases.iter_mut().filter(|lease| lease.owner == Some(owner));
        own.for_each(|lease| lease.counter += 1);
        state.tables.aggregators.entry(owner).and_modify(|counter| *counter += 1).or_insert(0);
    }

    pub(super) fn peers(&self, owner: Uuid) -> Vec<(Uuid, i64)> {
        let state = self.state();
        state.tables.aggregators.iter().filter(|(peer, _)| **peer != owner).map(|(peer, counter)| (*peer, *counter)).collect()
    }

    pub(super) fn remove(&self, owners: &[Uuid]) {
        self.state().tables.aggregators.retain(|owner, _| !owners.contains(owner));
    }

    pub(super) fn leases(&self) -> Vec<Lease> {
        self.state().tables.leases.clone()
    }

    /// Ends the backend that is registered in a lease, if that is as it was seen.
    pub(super) fn end_writer(&self, seen: Lease) {
        let writer = {
            let state = self.state();
            let lease = state.tables.leases[seen.partition as usize];
            let is_so = (lease.epoch, lease.counter) == (seen.epoch, seen.counter);
            state.writers[seen.partition as usize].filter(|pid| is_so && state.backends.contains_key(pid))
        };
        if let Some(pid) = writer {
            note!(self.run, "postgres: backend {pid} is ended for log partition {}", seen.partition);
            self.run.saw(Seen::EndedBackend);
            self.end(pid);
        }
    }

    pub(super) async fn take(&self, pid: Pid, owner: Uuid, seen: Lease) -> Result<Option<i64>, Refused> {
        let place = seen.partition as usize;
        if self.state().tables.leases[place] != seen {
            return Ok(None);
        }
        timeout(LOCK_TIMEOUT, self.lock(pid, seen.partition)).await.unwrap_or(Err(Refused::LockTimeout))?;
        let taken = {
            let mut state = self.state();
            (state.tables.leases[place] == seen).then(|| {
                let epoch = seen.epoch + 1;
                state.tables.leases[place] = Lease { owner: Some(owner), epoch, counter: seen.counter + 1, ..seen };
                state.writers[place] = None;
                state.tables.standings[place].epoch = epoch;
                self.judge.moved(seen.partition, state.tables.standings[place], epoch, None);
                note!(
                    self.run,
                    "postgres: {owner} takes log partition {} in epoch {epoch} from {:?}",
                    seen.partition,
                    seen.owner
                );
                epoch
            })
        };
        self.unlock(pid);
        if taken.is_some() && seen.owner.is_some() {
            self.run.saw(Seen::Takeover);
        }
        Ok(taken)
    }

    pub(super) fn release(&self, owner: Uuid, partitions: &BTreeSet<u32>) {
        let mut state = self.state();
        for partition in partitions.iter().map(|partition| *partition as usize) {
            if state.tables.leases[partition].owner == Some(owner) {
                state.tables.leases[partition].owner = None;
                state.writers[partition] = None;
            }
        }
    }
}

/// What becomes of an event.
enum Fate {
    New,
    Duplicate,
    /// It has another's identity and content of its own.
    Conflict(DeadLetter),
}

impl State {
    fn insert(&mut self, decoded: &Decoded) -> Fate {
        let event = &decoded.event;
        let key = (event.project_id, event.user_id, event.claimed_at, event.event_id);
        let content = content_of(event);
        let is_untimed = event.is_known_by_id_alone();
        let untimed = (event.project_id, event.kind(), event.user_id, event.event_id);
        let known = if is_untimed {
            self.untimed.get(&untimed)
        } else {
            self.keys.get(&key).map(|place| &self.tables.rows[*place].content)
        };
        let standing = &mut self.tables.standings[decoded.partition as usize];
        match known {
            None => {
                standing.rows += 1;
                if is_untimed {
                    self.untimed.insert(untimed, content.clone());
                }
                self.keys.insert(key, self.tables.rows.len());
                self.tables.rows.push(Row { key, content, partition: decoded.partition, offset: decoded.offset });
                Fate::New
            }
            Some(known) if *known == content => {
                standing.duplicates += 1;
                Fate::Duplicate
            }
            Some(_) => {
                let time = (!is_untimed).then_some(event.claimed_at);
                if !self.conflicts.insert(((event.user_id, event.event_id), time, content)) {
                    standing.duplicates += 1;
                    return Fate::Duplicate;
                }
                let letter = DeadLetter::of(decoded, ID_CONFLICT, String::new());
                self.bury(&letter);
                Fate::Conflict(letter)
            }
        }
    }

    fn bury(&mut self, letter: &DeadLetter) {
        self.tables.standings[letter.partition as usize].dead += 1;
        self.tables.dead.push((letter.partition, letter.offset));
    }
}
