//! Who stores which log partition.
//!
//! A lease is a row of its own, never the checkpoint's: a heartbeat must not wait for a transaction. Its owner raises the
//! counter every 3 s on a connection that does nothing else. A candidate takes a lease over when it was given back, when
//! the counter stood still for 15 s of the candidate's own monotonic clock, or at once when the log itself proves that no
//! other process can read it. Taking over ends the old owner's writing backend and raises the epoch, here and in the
//! checkpoint: a commit under the old epoch changes nothing. No wall clock decides anything.
//!
//! Where several processes share a log, each takes no more than its share, the log partitions divided by the processes that
//! are seen to live and rounded up. Who holds more, since another one has joined, stops to read the rest, and gives it back
//! a moment later. Beside a schema that it does not know a process holds none.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use catalogue::schema::UnsupportedSchema;
use eventlog::{LogIdentity, Read};
use service::{BackOff, Stop, Tasks};
use sqlx::{Connection, PgConnection, Row};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::StartError;
use crate::status::Status;
use crate::store::{Lease, Leases, Store};

/// How often a process reads the leases of all.
const TICK_INTERVAL: Duration = Duration::from_secs(1);
/// One tick of so many is a heartbeat too.
const TICKS_PER_HEARTBEAT: u32 = 3;
/// How long a counter may stand still before others take the lease.
const LEASE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a process may miss its heartbeats before its row is removed.
const PEER_REMOVED_AFTER: Duration = Duration::from_secs(60);

/// How long Postgres may take to answer before that is told. Longer than a heartbeat waits for a lock.
const ANSWER_MAX: Duration = Duration::from_secs(7);

/// The first and the longest pause after a failure: short, since others take over what stands still.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// The log partitions that this process owns, with the epoch of each lease.
pub(crate) type Held = BTreeMap<u32, i64>;

/// Registers the log in the database at first use, and compares it after that.
/// # Errors
/// [`StartError::OtherLog`] and [`StartError::OtherPartitions`]: nothing may be read then.
pub(crate) async fn register_log(connection: &mut PgConnection, log: LogIdentity, adopt: bool) -> Result<(), StartError> {
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("LOCK TABLE logs IN SHARE ROW EXCLUSIVE MODE").execute(&mut *transaction).await?;
    let logs =
        sqlx::query("SELECT log_id, log_partitions FROM logs ORDER BY last_used_at DESC").fetch_all(&mut *transaction).await?;
    let mut known = None;
    let mut newest = None;
    for row in &logs {
        let (id, partitions): (Uuid, i32) = (row.try_get(0)?, row.try_get(1)?);
        newest = newest.or(Some(id));
        known = known.or((id == log.log_id).then_some(partitions as u32));
    }
    match (known, newest) {
        (Some(partitions), _) if partitions != log.partitions => {
            return Err(StartError::OtherPartitions { log_id: log.log_id, found: log.partitions, known: partitions });
        }
        (None, Some(newest)) if !adopt => return Err(StartError::OtherLog { found: log.log_id, known: newest }),
        _ => {}
    }
    sqlx::query(
        "INSERT INTO logs (log_id, log_partitions) VALUES ($1, $2)
         ON CONFLICT (log_id) DO UPDATE SET last_used_at = clock_timestamp()",
    )
    .bind(log.log_id)
    .bind(log.partitions as i32)
    .execute(&mut *transaction)
    .await?;
    // Rows of a log that is known exist: looking whether they do would wait for an owner that is frozen in a transaction.
    let tables: &[&str] = if known.is_none() { &["checkpoints", "leases"] } else { &[] };
    for table in tables {
        let statement =
            format!("INSERT INTO {table} (log_id, log_partition) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING");
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(log.log_id)
            .bind(log.partitions as i32)
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Starts the task that renews and takes leases for `owner` until a stop and until every worker has dropped its receiver; then it gives
/// them back. Restarted after a panic, it goes on as the same owner.
pub(crate) fn spawn(
    tasks: &Tasks,
    owner: Uuid,
    store: Arc<dyn Store>,
    log: &dyn Read,
    status: Arc<Status>,
) -> watch::Receiver<Held> {
    let (sender, receiver) = watch::channel(Held::new());
    let held = Arc::new(sender);
    let (partitions, exclusive) = (log.identity().partitions as usize, log.is_exclusive());
    tasks.spawn("leases", move |stop| {
        let (store, held, status) = (Arc::clone(&store), Arc::clone(&held), Arc::clone(&status));
        LeaseManager::new(owner, store, partitions, exclusive, held, status).run(stop)
    });
    receiver
}

/// Another owner's lease as it was last seen to change.
#[derive(PartialEq, Eq)]
struct Observed {
    owner: Uuid,
    epoch: i64,
    counter: i64,
    since: Instant,
}

/// Another aggregator process as it was last seen to change.
struct Peer {
    counter: i64,
    since: Instant,
    /// Whether it was ever seen to change: a row alone may be of a dead one.
    has_moved: bool,
}

/// The leases of one process, its share of them.
pub(crate) struct LeaseManager {
    owner: Uuid,
    store: Arc<dyn Store>,
    partitions: usize,
    exclusive: bool,
    held: Arc<watch::Sender<Held>>,
    ticks: u32,
    /// Log partitions that are no longer read; the next tick gives their leases back.
    releasing: BTreeSet<u32>,
    observed: BTreeMap<u32, Observed>,
    peers: BTreeMap<Uuid, Peer>,
    status: Arc<Status>,
}

impl LeaseManager {
    /// Makes one that has seen nothing yet. `partitions` is the log's number; `exclusive` says that no other process can read it.
    pub(crate) fn new(
        owner: Uuid,
        store: Arc<dyn Store>,
        partitions: usize,
        exclusive: bool,
        held: Arc<watch::Sender<Held>>,
        status: Arc<Status>,
    ) -> Self {
        let (releasing, observed, peers) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        LeaseManager { owner, store, partitions, exclusive, held, ticks: 0, releasing, observed, peers, status }
    }

    /// Renews and takes leases; see [`spawn`].
    pub(crate) async fn run(mut self, mut stop: Stop) {
        let mut connection: Option<Box<dyn Leases>> = None;
        let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
        loop {
            let outcome = {
                let status = Arc::clone(&self.status);
                let mut renewal = pin!(self.renew(connection.take()));
                match timeout(ANSWER_MAX, &mut renewal).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        // Not given up as long as Postgres is at it: another statement would only wait behind this one.
                        let seconds = ANSWER_MAX.as_secs();
                        tracing::warn!(seconds, "postgres does not answer; leases are not renewed until it does");
                        status.postgres(Some(format!("no answer for {seconds} s")));
                        renewal.await
                    }
                }
            };
            let pause = match outcome {
                Ok(open) => {
                    self.status.postgres(None);
                    connection = Some(open);
                    back_off.reset();
                    TICK_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(%error, "leases cannot be renewed now; trying again");
                    self.status.postgres(Some(error.to_string()));
                    // Nothing was seen meanwhile, so nobody was seen to stand still.
                    self.observed.clear();
                    self.peers.clear();
                    self.ticks = 0;
                    back_off.delay()
                }
            };
            let draining = stop.is_requested();
            let workers_ended = tokio::select! {
                biased;
                () = self.held.closed(), if draining => true,
                () = stop.requested(), if !draining => false,
                () = tokio::time::sleep(pause) => false,
            };
            if workers_ended {
                if let Some(mut open) = connection {
                    self.release_all(open.as_mut()).await;
                }
                return;
            }
        }
    }

    async fn renew(&mut self, connection: Option<Box<dyn Leases>>) -> Result<Box<dyn Leases>, sqlx::Error> {
        let mut open = match connection {
            Some(open) => open,
            None => self.store.leases(self.owner).await?,
        };
        self.tick(open.as_mut()).await?;
        Ok(open)
    }

    async fn tick(&mut self, leases: &mut dyn Leases) -> Result<(), sqlx::Error> {
        let unsupported = leases.unsupported_schema().await?;
        self.status.schema(unsupported.as_ref().map(UnsupportedSchema::to_string));
        let share = if unsupported.is_some() {
            // It holds nothing then, and takes no share: an upgraded process takes over at once.
            self.ticks = 0;
            if !self.held.borrow().is_empty() {
                leases.remove(&[self.owner]).await?;
            }
            0
        } else {
            if self.ticks.is_multiple_of(TICKS_PER_HEARTBEAT) {
                leases.heartbeat().await?;
            }
            self.ticks = self.ticks.wrapping_add(1);
            self.share(leases).await?
        };
        let releasing = std::mem::take(&mut self.releasing);
        if !releasing.is_empty() {
            leases.release(&releasing).await?;
        }

        let mut held = Held::new();
        let mut free = Vec::new();
        for lease in leases.leases().await? {
            if lease.owner == Some(self.owner) {
                held.insert(lease.partition, lease.epoch);
            } else if self.may_take(lease) {
                free.push(lease);
            }
        }
        for lease in free {
            if held.len() < share
                && let Some(epoch) = leases.take(lease).await?
            {
                self.observed.remove(&lease.partition);
                held.insert(lease.partition, epoch);
            }
        }
        while held.len() > share
            && let Some((partition, _)) = held.pop_last()
        {
            self.releasing.insert(partition);
        }
        self.status.held(held.len());
        self.held.send_if_modified(|present| {
            let changed = *present != held;
            *present = held;
            changed
        });
        Ok(())
    }

    /// Returns how many log partitions this process may hold.
    async fn share(&mut self, leases: &mut dyn Leases) -> Result<usize, sqlx::Error> {
        if self.exclusive {
            return Ok(self.partitions);
        }
        let now = Instant::now();
        let mut listed = BTreeMap::new();
        for (owner, counter) in leases.peers().await? {
            let seen = match self.peers.remove(&owner) {
                Some(seen) if seen.counter == counter => seen,
                Some(_) => Peer { counter, since: now, has_moved: true },
                None => Peer { counter, since: now, has_moved: false },
            };
            listed.insert(owner, seen);
        }
        self.peers = listed;
        let gone: Vec<Uuid> =
            self.peers.iter().filter(|(_, peer)| now - peer.since >= PEER_REMOVED_AFTER).map(|(owner, _)| *owner).collect();
        if !gone.is_empty() {
            leases.remove(&gone).await?;
        }
        let living = self.peers.values().filter(|peer| peer.has_moved && now - peer.since < LEASE_TIMEOUT).count();
        Ok(self.partitions.div_ceil(living + 1))
    }

    fn may_take(&mut self, lease: Lease) -> bool {
        let Lease { partition, owner, epoch, counter } = lease;
        let Some(owner) = owner.filter(|_| !self.exclusive) else { return true };
        let now = Instant::now();
        let seen = self.observed.entry(partition).or_insert(Observed { owner, epoch, counter, since: now });
        if (seen.owner, seen.epoch, seen.counter) != (owner, epoch, counter) {
            *seen = Observed { owner, epoch, counter, since: now };
        }
        now - seen.since >= LEASE_TIMEOUT
    }

    async fn release_all(&self, leases: &mut dyn Leases) {
        let released = async {
            leases.release(&(0..self.partitions as u32).collect()).await?;
            // Is no longer among the processes that share the log.
            leases.remove(&[self.owner]).await
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "leases were not given back; others take them after {} s", LEASE_TIMEOUT.as_secs());
        }
    }
}
