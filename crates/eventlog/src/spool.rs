//! The spool: an [`Append`] over two. Records go to the **primary** log; while that is slow, down, or not known to be the
//! right one, they go to an embedded log on this machine, the **spool**, and from there to the primary, in order.
//!
//! # Constraints
//!
//! - **Acknowledged means durable** in one of the two, and what is in the spool comes into the primary: it is trimmed only
//!   after the primary acknowledged it, and drained first after a restart.
//! - **Order per user.** While a log partition's spool holds a record, or has one sent and not acknowledged, every append of
//!   that log partition goes to the spool. So what was acknowledged before an append began comes into the primary before it,
//!   as long as a primary that fails has stored a beginning of a batch and no later part. Log partitions are independent: the records of one append may go both ways.
//! - **Twice, but only in doubt.** A record is sent again when the primary said [`AppendError::Unknown`], did not answer in
//!   time, or the process ended between the acknowledgement and the note of it. Readers deduplicate.
//! - **Never into another log.** The folder says which log its records wait for. After the start and after every failure nothing is sent before a [`Compare`] has found the
//!   agreed log again. Another log halts everything under a name; an unreachable one halts nothing but the draining.
//! - **Bounded.** [`Options::bytes_max`] on disk. A full spool, or one whose disk fails, refuses with
//!   [`AppendError::Unavailable`], and takes records again by itself once it can.
//! - **Damaged records are kept and named**: their log file is copied in its folder under the ending `.corrupt` before
//!   it is trimmed, and the rest drains.
//!
//! # Operations
//!
//! - **Append** (`append.rs`): splits a batch by the way its log partitions go; what the primary does not take in time goes
//!   to the spool, in one task that ends even if the caller goes away.
//! - **Drain** (`drain.rs`): one task for each log partition reads a batch, waits until the log is known to be the right one, appends
//!   it, waits for the acknowledgement, trims. After a failure the next try waits longer and takes half as many records, so that
//!   one record which the primary refuses holds up as little as possible.
//! - **Handover**: under load there is always one more append on its way to the spool. When little is left, new appends of
//!   the log partition wait for a moment, until the rest is drained; then they go to the primary.
//! - **Identity check** (`identity_check.rs`): compares the primary with the agreed identity, at start, every 10 s, and after each failure.
//! - **Maintenance** (`maintenance.rs`): notes durably how far each log partition is drained, copies damaged files, opens the spool's log again
//!   after its disk failed. The note may be lost or old: then records are sent twice.
//!
//! A log partition of the spool has the number of the primary's that it stands for; apart from that number of log
//! partitions the two identities have nothing in common.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use events::{Micros, Record};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::background::Background;
use crate::embedded;
use crate::{Append, AppendError, LogIdentity, Position};

mod append;
mod drain;
mod identity_check;
#[cfg(any(test, feature = "testing"))]
pub mod in_memory;
mod maintenance;
mod partition;
mod remembered;
mod small_file;
mod stats;
mod store;
#[cfg(test)]
mod tests;

pub use identity_check::{Compare, Comparison};
pub use remembered::{remember, remembered};
pub use stats::{PartitionStats, State, Stats};

use identity_check::IdentityCheck;
use partition::Partition;
use stats::Counters;
use store::{DiskStore, Store};

/// How a spool works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of the spool's log files together.
    pub bytes_max: u64,
    /// Bytes of one of its files; drained room comes back file by file.
    pub file_bytes_max: u64,
    /// How long the primary may take for an append before its records go to the spool.
    pub primary_wait_max: Duration,
    /// How long the primary may take for a batch from the spool before it is sent again. Longer than the primary's own
    /// deadline, since what it still stores after this one is stored twice.
    pub drain_wait_max: Duration,
    /// Records that are sent from the spool at once, for each log partition.
    pub drain_records_max: usize,
    /// Bytes of records that are sent from the spool at once, for each log partition; they are held in memory.
    pub drain_bytes_max: usize,
    /// How often the primary is compared with the agreed identity while all is well.
    pub compare_every: Duration,
    /// How long a comparison may take.
    pub compare_wait_max: Duration,
    /// After a failure the first try waits this long.
    pub retry_wait_min: Duration,
    /// Each further one twice as long, up to this.
    pub retry_wait_max: Duration,
    /// How long appends wait for the spool to become empty when little is left in it.
    pub handover_wait_max: Duration,
    /// How often it is noted how far the spool is drained, and tried to open it again after its disk failed.
    pub maintenance_every: Duration,
    /// Where the identity is noted once the primary was found to have it; see [`remember`].
    pub remember: Option<PathBuf>,
}

impl Options {
    /// Returns the waits after failures in a row, without an end.
    fn waits(&self) -> ExponentialBackoff {
        let waits = ExponentialBuilder::new().with_min_delay(self.retry_wait_min).with_max_delay(self.retry_wait_max);
        waits.with_factor(2.0).without_max_times().build()
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            bytes_max: 8 * 1024 * 1024 * 1024,
            file_bytes_max: 8 * 1024 * 1024,
            primary_wait_max: Duration::from_secs(5),
            drain_wait_max: Duration::from_secs(60),
            drain_records_max: 1_000,
            drain_bytes_max: 1024 * 1024,
            compare_every: Duration::from_secs(10),
            compare_wait_max: Duration::from_secs(5),
            retry_wait_min: Duration::from_millis(100),
            retry_wait_max: Duration::from_secs(5),
            handover_wait_max: Duration::from_millis(250),
            maintenance_every: Duration::from_secs(1),
            remember: None,
        }
    }
}

/// The spool over a primary. Dropping it ends it at once, as a kill would, and loses nothing; [`Spool::stop`] ends it well.
pub struct Spool {
    shared: Arc<Shared>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Why a spool cannot be opened. Nothing that it holds is changed by it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its log cannot be opened, such as one with another number of log partitions than the primary has.
    #[error("spool: {0}")]
    Log(#[from] embedded::OpenError),
    /// It holds records for another log than the one that is agreed on now.
    #[error(
        "another_log: the spool holds {waiting} records for {waits_for}, and the agreed log is {agreed}; \
         start with the former log until they are sent, or move the spool's folder away"
    )]
    AnotherLog {
        /// How many.
        waiting: u64,
        /// What is noted of the log that they are for.
        waits_for: String,
        /// The agreed log.
        agreed: Uuid,
    },
    /// It cannot be noted which log the records will wait for.
    #[error("spool: {0}")]
    Note(io::Error),
}

/// Opens the spool's own log. Blocks.
type Opener = Box<dyn Fn() -> Result<Arc<dyn Store>, embedded::OpenError> + Send + Sync>;

struct Shared {
    identity: LogIdentity,
    primary: Arc<dyn Append>,
    /// The primary's, joined by those of the spool.
    background: Background,
    options: Options,
    /// None while its disk has failed and it is not open again.
    store: RwLock<Option<Arc<dyn Store>>>,
    /// Which log it is.
    store_id: Uuid,
    /// Why there is none.
    store_fault: Mutex<String>,
    open: Opener,
    partitions: Vec<Partition>,
    identity_check: watch::Sender<IdentityCheck>,
    counters: Counters,
    is_stopped: std::sync::atomic::AtomicBool,
}

impl Spool {
    /// Opens the spool in `folder`, or makes it there, and starts to drain what it holds. Must be called on a runtime; blocks
    /// for as long as it takes to read the last log file of each log partition.
    ///
    /// `primary` answers [`Append::identity`] with the agreed identity, whether it is reached or not; appends go to it as
    /// soon as `compare` has found that log. Until then they go to the spool.
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        folder: &Path,
        primary: Arc<dyn Append>,
        compare: Arc<dyn Compare>,
        options: Options,
    ) -> Result<Spool, OpenError> {
        let background = primary.background();
        let opener = DiskStore::opener(folder, primary.identity().partitions, &options, background.clone());
        Spool::open_with(opener, primary, compare, options, background)
    }

    fn open_with(
        open: Opener,
        primary: Arc<dyn Append>,
        compare: Arc<dyn Compare>,
        options: Options,
        background: Background,
    ) -> Result<Spool, OpenError> {
        let identity = primary.identity();
        let store = open()?;
        let partitions: Vec<Partition> = (0..identity.partitions).map(Partition::new).collect();
        maintenance::load(&partitions, store.as_ref(), identity)?;
        let counters = Counters::default();
        counters.set_damaged_files(store.damaged_files());
        let shared = Arc::new(Shared {
            identity,
            background,
            primary,
            options,
            store_id: Append::identity(&*store).log_id,
            store: RwLock::new(Some(store)),
            store_fault: Mutex::default(),
            open,
            partitions,
            identity_check: watch::Sender::new(IdentityCheck::default()),
            counters,
            is_stopped: std::sync::atomic::AtomicBool::new(false),
        });
        let background = &shared.background;
        let mut tasks = vec![
            background.task(identity_check::TASK, {
                let shared = Arc::clone(&shared);
                move || identity_check::follow(Arc::clone(&shared), Arc::clone(&compare))
            }),
            background.task(maintenance::TASK, {
                let shared = Arc::clone(&shared);
                move || maintenance::run(Arc::clone(&shared))
            }),
        ];
        for partition in 0..identity.partitions {
            let shared = Arc::clone(&shared);
            tasks.push(background.task(drain::task(partition), move || drain::drain(Arc::clone(&shared), partition)));
        }
        Ok(Spool { shared, tasks: Mutex::new(tasks) })
    }

    /// Waits until the first comparison with the primary has ended, whatever it found. Bounded by
    /// [`Options::compare_wait_max`].
    pub async fn first_comparison(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared.identity_check.subscribe().wait_for(|check| check.compared).await;
    }

    /// Waits until the spool is empty and all appends go to the primary; for tests and for stopping without a rest.
    pub async fn drained(&self) {
        let _ = self.shared.identity_check.subscribe().wait_for(IdentityCheck::is_same).await;
        for partition in &self.shared.partitions {
            partition.wait(|state| state.is_empty()).await;
        }
    }

    /// Returns what the spool holds and has done, for metrics and for people.
    pub fn stats(&self) -> Stats {
        stats::collect(&self.shared)
    }

    /// Ends the draining and notes how far it is; what is left in the spool drains after the next start. Appends that begin
    /// later fail with [`AppendError::Stopped`].
    pub async fn stop(&self) {
        self.shared.is_stopped.store(true, std::sync::atomic::Ordering::Relaxed);
        let tasks = std::mem::take(&mut *partition::lock(&self.tasks));
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            // Cancelled.
            let _ = task.await;
        }
        maintenance::note(&self.shared).await;
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        partition::lock(&self.tasks).iter().for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Append for Spool {
    /// Returns the primary's identity: the spool is a part of the way there.
    fn identity(&self) -> LogIdentity {
        self.shared.identity
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        append::append(&self.shared, batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        append::ready(&self.shared)
    }

    fn spool(&self) -> Option<Stats> {
        Some(self.stats())
    }

    fn background(&self) -> Background {
        self.shared.background.clone()
    }
}

impl Shared {
    /// Returns the spool's log, if it is open.
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.store.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn partition(&self, number: u32) -> &Partition {
        &self.partitions[number as usize]
    }
}

/// When the first record of a log partition's spool was received.
type Received = Option<Micros>;
