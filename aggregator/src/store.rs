//! What the flow asks of the database, and nothing else: [`crate::run`] and [`crate::lease`] know it by these traits.
//!
//! [`postgres`] is what serves. The simulation (`simulation/`) has a model of it, which fails on demand; its test `conformance` makes the
//! same calls of both and compares what they say.

pub(crate) mod postgres;

use std::collections::BTreeSet;

use async_trait::async_trait;
use catalogue::schema::UnsupportedSchema;
use eventlog::Offset;
use uuid::Uuid;

use crate::batch::Batch;
use crate::commit::checkpoint::Checkpoint;
use crate::commit::limit::{Tallies, Tally};
use crate::commit::memory::Counts;
use crate::commit::{CommitError, Stored};

/// The database of one log. It is asked over connections, each of which has one owner and is not used again after an error.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Opens a connection that stores batches.
    async fn writer(&self) -> Result<Box<dyn Writer>, sqlx::Error>;

    /// Opens a connection that leases log partitions to `owner`.
    async fn leases(&self, owner: Uuid) -> Result<Box<dyn Leases>, sqlx::Error>;
}

/// A worker's connection.
#[async_trait]
pub(crate) trait Writer: Send {
    /// Registers this connection in a lease, before its first transaction under that lease: whoever takes the lease over ends it.
    /// Returns false if the lease is no longer held under this epoch.
    async fn register(&mut self, partition: u32, epoch: i64) -> Result<bool, sqlx::Error>;

    /// Returns where a log partition stands. A transaction whose end is not known has ended when this returns.
    async fn checkpoint(&mut self, partition: u32) -> Result<Checkpoint, sqlx::Error>;

    /// Counts the open dead letters before a checkpoint.
    async fn tally(&mut self, partition: u32, next: Offset, in_row_max: u32) -> Result<Tally, sqlx::Error>;

    /// Stores a batch and moves its checkpoints, or does neither.
    async fn commit(&mut self, batch: &Batch, tallies: &Tallies) -> Result<Stored, CommitError>;

    /// Asks for nothing, to learn whether the connection is alive.
    async fn ping(&mut self) -> Result<(), sqlx::Error>;

    /// Says whose users may be remembered from commit to commit, and in how many bytes for each log partition.
    fn remember(&mut self, partitions: BTreeSet<u32>, bytes_max: usize);

    /// Returns what was remembered since the last time, and the bytes that it takes.
    fn remembered(&mut self) -> (Counts, usize);
}

/// A lease as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub partition: u32,
    /// None if it was given back.
    pub owner: Option<Uuid>,
    /// Raised by each takeover.
    pub epoch: i64,
    /// Raised by each heartbeat of its owner.
    pub counter: i64,
}

/// A lease manager's connection.
#[async_trait]
pub(crate) trait Leases: Send {
    /// Returns why the database has a schema that this build does not know, if so.
    async fn unsupported_schema(&mut self) -> Result<Option<UnsupportedSchema>, sqlx::Error>;

    /// Raises the counters of this owner, its leases' and its own; from then on it is one of those who share the log.
    async fn heartbeat(&mut self) -> Result<(), sqlx::Error>;

    /// Returns the other owners who share the log, each with its counter.
    async fn peers(&mut self) -> Result<Vec<(Uuid, i64)>, sqlx::Error>;

    /// Removes owners from those who share the log; should one live after all, its next heartbeat brings it back.
    async fn remove(&mut self, owners: &[Uuid]) -> Result<(), sqlx::Error>;

    /// Returns all leases, ascending by log partition.
    async fn leases(&mut self) -> Result<Vec<Lease>, sqlx::Error>;

    /// Takes a lease as it was seen, ends the backend that its owner registered, and raises its epoch, there and in the checkpoint.
    /// Returns the epoch; none if the lease has changed since it was seen.
    async fn take(&mut self, seen: Lease) -> Result<Option<i64>, sqlx::Error>;

    /// Gives back those of these leases that are this owner's.
    async fn release(&mut self, partitions: &BTreeSet<u32>) -> Result<(), sqlx::Error>;
}
