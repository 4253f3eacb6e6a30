//! What the owner of a log partition remembers of its users: the raw rows that participation and attribution need.
//!
//! No fact row is written but by the owner of its log partition, in the transaction that moves the checkpoint, and all rows of a user come
//! by one log partition. So what was read of a user once, with what was stored of it since, is what Postgres holds, as long as nobody
//! else has moved that checkpoint. Hence:
//!
//! - what is remembered belongs to one state of the checkpoint, epoch and next offset, and is dropped at any other: after a takeover, and
//!   after a commit whose end is not known and which did happen;
//! - a batch takes its users out, and gives them back, with its rows, when COMMIT has succeeded. What ends otherwise leaves them unknown;
//! - what facts are kept, and who else may write them, is compared in each commit ([`Grounds`]); a catalogue that moved drops its project's
//!   users;
//! - a user without rows is remembered as well, and of one with too many that it has;
//! - some of the known users are read all the same, in each batch others, and compared.

use std::collections::{BTreeMap, BTreeSet};

use eventlog::Offset;
use events::Micros;
use hashlink::LinkedHashMap;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::Slice;
use crate::commit::StagedRow;
use crate::commit::exposed::ExposuresOf;
use crate::commit::history::{Histories, History, User, touched};
use crate::config::Config;

/// What is remembered, and within which bounds.
#[derive(Debug)]
pub(crate) struct Memory {
    /// For each log partition.
    bytes_max: usize,
    /// One of so many known users is read again.
    sampled_one_in: u32,
    grounds: Option<Grounds>,
    /// Of the catalogues of projects, when what is remembered of their users was read.
    versions: BTreeMap<Uuid, i64>,
    partitions: BTreeMap<u32, Partition>,
    counts: Counts,
}

/// What the remembered rows rest on beside the checkpoint of their log partition. Read under the locks of a commit, before its users are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grounds {
    /// Rows before it are gone.
    pub horizon: Option<Micros>,
    /// Sum of `change_seq` over the checkpoints of all other logs: if it moves, somebody feeds the database from another log, too.
    pub other_logs: i64,
    /// How many rows a user may have.
    pub user_rows_max: usize,
}

/// How users became known since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Touched by batches and remembered.
    pub known: u64,
    /// Touched by batches and read, since they were not.
    pub read: u64,
    /// Known, and read to compare.
    pub sampled: u64,
    /// Of these, not as they were remembered.
    pub different: u64,
}

#[derive(Debug)]
struct Partition {
    epoch: i64,
    next: Offset,
    bytes: usize,
    /// In the order of their last use.
    users: LinkedHashMap<User, History>,
}

/// What the users of a batch did before it.
#[derive(Debug)]
pub(crate) enum Recalled {
    /// Each user's, and whose log partition is which.
    Histories { histories: Histories, partition_of: BTreeMap<User, u32> },
    /// Something else was remembered than Postgres holds. All that was remembered of the log partition is dropped; these experiments,
    /// by project, may have wrong rows.
    Different(BTreeSet<(Uuid, Uuid)>),
}

/// Bytes of a remembered user beside its rows: key, history, links, its share of the table.
const USER_BYTES: usize = size_of::<User>() + size_of::<History>() + 64;

/// One of so many known users is read again.
const SAMPLED_ONE_IN: u32 = 1_000;

impl Memory {
    /// Remembers nothing yet. `sampled_one_in`: of so many known users one is read again; 1 in a test reads all of them.
    pub(crate) fn new(bytes_max: usize, sampled_one_in: u32) -> Self {
        Memory {
            bytes_max,
            sampled_one_in,
            grounds: None,
            versions: BTreeMap::new(),
            partitions: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Sets what each log partition may take, and drops those that are no longer held.
    pub(crate) fn hold(&mut self, partitions: impl Iterator<Item = u32>, bytes_max: usize) {
        let held: BTreeSet<u32> = partitions.collect();
        self.partitions.retain(|partition, _| held.contains(partition));
        self.bytes_max = bytes_max;
        self.partitions.values_mut().for_each(|partition| partition.shrink(bytes_max));
    }

    /// Drops what does not rest on the state that a commit found: its slices begin where the checkpoints stand, under their epochs.
    pub(crate) fn compare(&mut self, slices: &[Slice], grounds: Grounds, versions: impl Iterator<Item = (Uuid, i64)>) {
        if self.grounds != Some(grounds) {
            self.partitions.clear();
            self.grounds = Some(grounds);
        }
        for (project, version) in versions {
            if self.versions.insert(project, version).is_some_and(|known| known != version) {
                self.partitions.values_mut().for_each(|partition| partition.forget(project));
            }
        }
        for slice in slices {
            let is_same = |found: &Partition| (found.epoch, found.next) == (slice.epoch, slice.from);
            if !self.partitions.get(&slice.partition).is_some_and(is_same) {
                self.partitions.insert(slice.partition, Partition::new(slice.epoch, slice.from));
            }
        }
    }

    /// Takes out what is known of the users that the rows touch, and reads the others. [`Memory::compare`] comes first, in the same
    /// transaction, before the rows are stored.
    pub(crate) async fn recall(
        &mut self,
        connection: &mut PgConnection,
        rows: &[StagedRow<'_>],
        rows_max: usize,
        exposures_of: &ExposuresOf<'_>,
    ) -> Result<Recalled, sqlx::Error> {
        let partition_of = touched(rows, exposures_of);
        let mut known = Histories::new(rows_max);
        let (mut unknown, mut sampled) = (Vec::new(), Vec::new());
        for (user, partition) in &partition_of {
            let partition = self.partitions.get_mut(partition);
            match partition.and_then(|partition| Some((partition.take(user)?, partition.next))) {
                Some((history, from)) => {
                    known.insert(*user, history);
                    if is_sampled(user, from, self.sampled_one_in) {
                        sampled.push(*user);
                    }
                }
                None => unknown.push(*user),
            }
        }
        self.counts.known += (partition_of.len() - unknown.len()) as u64;
        self.counts.read += unknown.len() as u64;
        self.counts.sampled += sampled.len() as u64;
        let read = Histories::of_users(connection, unknown.iter().chain(&sampled).copied(), rows_max, exposures_of).await?;
        let is_different = |user: &&User| match (known.get(user), read.get(user)) {
            (Some(remembered), Some(stored)) => !remembered.is_same(stored),
            _ => false,
        };
        let different: Vec<&User> = sampled.iter().filter(is_different).collect();
        if !different.is_empty() {
            self.counts.different += different.len() as u64;
            let partitions = different.into_iter().filter_map(|user| partition_of.get(user).copied()).collect();
            let users =
                known.iter().chain(read.iter()).filter_map(|(user, history)| Some((*partition_of.get(&user)?, user, history)));
            return Ok(Recalled::Different(self.distrust(&partitions, users)));
        }
        for (user, history) in read {
            if known.get(&user).is_none() {
                known.insert(user, history);
            }
        }
        Ok(Recalled::Histories { histories: known, partition_of })
    }

    /// Drops all that is remembered of some log partitions. Returns the experiments whose rows it may have made wrong, by project: those
    /// of all users that are or were known there.
    fn distrust<'a>(
        &mut self,
        partitions: &BTreeSet<u32>,
        taken: impl Iterator<Item = (u32, User, &'a History)>,
    ) -> BTreeSet<(Uuid, Uuid)> {
        let of_user =
            |user: User, history: &History| history.experiments().map(|experiment| (user.0, experiment)).collect::<Vec<_>>();
        let taken = taken.filter(|(partition, ..)| partitions.contains(partition));
        let mut experiments: BTreeSet<(Uuid, Uuid)> = taken.flat_map(|(_, user, history)| of_user(user, history)).collect();
        for partition in partitions {
            tracing::error!(
                partition,
                "what is remembered of users differs from their stored rows; it is dropped, and their experiments are computed again"
            );
            let users = self.partitions.remove(partition).map(|partition| partition.users).unwrap_or_default();
            experiments.extend(users.iter().flat_map(|(user, history)| of_user(*user, history)));
        }
        experiments
    }

    /// Takes back what was recalled for a batch that stored nothing.
    pub(crate) fn give_back(&mut self, histories: Histories, partition_of: &BTreeMap<User, u32>) {
        let rows_max = histories.rows_max;
        for (user, history) in histories {
            let partition = partition_of.get(&user).and_then(|partition| self.partitions.get_mut(partition));
            if let (Some(partition), Some(history)) = (partition, history.into_remembered(rows_max)) {
                partition.put(user, history, self.bytes_max);
            }
        }
    }

    /// Takes back what was recalled for a batch that was committed, with the batch's rows.
    pub(crate) fn committed(&mut self, slices: &[Slice], mut histories: Histories, partition_of: &BTreeMap<User, u32>) {
        histories.settle();
        self.give_back(histories, partition_of);
        for slice in slices {
            if let Some(partition) = self.partitions.get_mut(&slice.partition) {
                partition.next = slice.to;
            }
        }
    }

    /// Returns the counts since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Returns the bytes that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.partitions.values().map(|partition| partition.bytes).sum()
    }
}

impl Default for Memory {
    /// As an aggregator has it that holds eight log partitions and was told nothing.
    fn default() -> Self {
        Memory::new(Config::KNOWN_USERS_BYTES_MAX / 8, SAMPLED_ONE_IN)
    }
}

impl Partition {
    fn new(epoch: i64, next: Offset) -> Self {
        Partition { epoch, next, bytes: 0, users: LinkedHashMap::new() }
    }

    fn take(&mut self, user: &User) -> Option<History> {
        let history = self.users.remove(user)?;
        self.bytes -= bytes(&history);
        Some(history)
    }

    fn put(&mut self, user: User, history: History, bytes_max: usize) {
        self.bytes += bytes(&history);
        if let Some(replaced) = self.users.insert(user, history) {
            self.bytes -= bytes(&replaced);
        }
        self.shrink(bytes_max);
    }

    /// Drops who was not touched for longest, until the rest has room.
    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((_, history)) = self.users.pop_front()
        {
            self.bytes -= bytes(&history);
        }
    }

    fn forget(&mut self, project: Uuid) {
        let bytes_left = &mut self.bytes;
        self.users.retain(|(of, _), history| {
            let is_kept = *of != project;
            *bytes_left -= if is_kept { 0 } else { bytes(history) };
            is_kept
        });
    }
}

fn bytes(history: &History) -> usize {
    USER_BYTES + history.heap_bytes()
}

/// Chooses one of so many users, in each batch others. A batch is told by where it begins in the user's log partition.
fn is_sampled((project, user): &User, from: Offset, one_in: u32) -> bool {
    let hash = crc32c::crc32c(project.as_bytes());
    let hash = crc32c::crc32c_append(hash, user.as_bytes());
    crc32c::crc32c_append(hash, &from.to_le_bytes()).is_multiple_of(one_in.max(1))
}
