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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use catalogue::schema;
use eventlog::{LogIdentity, Read};
use service::{BackOff, Stop, Tasks};
use sqlx::{Connection, PgConnection, Row};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::config::Config;
use crate::silence::{self, Backend};
use crate::status::Status;
use crate::{SCHEMA, StartError};

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

/// Starts the task that renews and takes leases until a stop and until every worker has dropped its receiver; then it gives them
/// back. Restarted after a panic, it goes on as the same owner.
pub(crate) fn spawn(tasks: &Tasks, config: &Config, log: &dyn Read, status: Arc<Status>) -> watch::Receiver<Held> {
    let (sender, receiver) = watch::channel(Held::new());
    let (owner, held) = (Uuid::new_v4(), Arc::new(sender));
    let (url, identity, exclusive) = (config.database_url.clone(), log.identity(), log.is_exclusive());
    tasks.spawn("leases", move |stop| {
        let manager = LeaseManager {
            owner,
            url: url.clone(),
            log_id: identity.log_id,
            partitions: identity.partitions as usize,
            exclusive,
            held: Arc::clone(&held),
            ticks: 0,
            releasing: BTreeSet::new(),
            observed: HashMap::new(),
            peers: HashMap::new(),
            status: Arc::clone(&status),
        };
        manager.run(stop)
    });
    receiver
}

/// Registers the backend of a worker's connection in the lease, before its first transaction under that lease.
/// Returns false if the lease is no longer held under this epoch.
pub(crate) async fn register_writer(
    connection: &mut PgConnection,
    log_id: Uuid,
    partition: u32,
    epoch: i64,
) -> Result<bool, sqlx::Error> {
    let registered = sqlx::query(
        "UPDATE leases SET writer_pid = a.pid, writer_start = a.backend_start
         FROM pg_stat_activity a WHERE a.pid = pg_backend_pid() AND log_id = $1 AND log_partition = $2 AND epoch = $3",
    )
    .bind(log_id)
    .bind(partition as i32)
    .bind(epoch)
    .execute(connection)
    .await?;
    Ok(registered.rows_affected() == 1)
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

struct LeaseManager {
    owner: Uuid,
    url: String,
    log_id: Uuid,
    partitions: usize,
    exclusive: bool,
    held: Arc<watch::Sender<Held>>,
    ticks: u32,
    /// Log partitions that are no longer read; the next tick gives their leases back.
    releasing: BTreeSet<u32>,
    observed: HashMap<u32, Observed>,
    peers: HashMap<Uuid, Peer>,
    status: Arc<Status>,
}

impl LeaseManager {
    async fn run(mut self, mut stop: Stop) {
        let mut connection: Option<(PgConnection, Backend)> = None;
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
                () = tokio::time::sleep(pause) => false,
                () = stop.requested(), if !draining => false,
                () = self.held.closed(), if draining => true,
            };
            if workers_ended {
                if let Some((mut open, _)) = connection {
                    self.release_all(&mut open).await;
                }
                return;
            }
        }
    }

    async fn renew(&mut self, connection: Option<(PgConnection, Backend)>) -> Result<(PgConnection, Backend), sqlx::Error> {
        let (mut open, backend) = match connection {
            Some(open) => open,
            None => self.connect().await?,
        };
        // Whatever a tick had done when it was given up, the next one reads.
        backend.answers(self.tick(&mut open)).await?;
        Ok((open, backend))
    }

    /// A heartbeat never waits long: whoever holds a lease's row longer than this is not one of us.
    async fn connect(&self) -> Result<(PgConnection, Backend), sqlx::Error> {
        let (mut connection, backend) = silence::connect(&self.url, "leases").await?;
        backend.answers(sqlx::raw_sql("SET lock_timeout = '6s'").execute(&mut connection)).await?;
        Ok((connection, backend))
    }

    async fn tick(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let unsupported = SCHEMA.check(schema::version(connection).await?).err();
        self.status.schema(unsupported.map(|unsupported| unsupported.to_string()));
        let share = if unsupported.is_some() {
            // It holds nothing then, and takes no share: an upgraded process takes over at once.
            self.ticks = 0;
            if !self.held.borrow().is_empty() {
                self.leave(connection).await?;
            }
            0
        } else {
            if self.ticks.is_multiple_of(TICKS_PER_HEARTBEAT) {
                self.heartbeat(connection).await?;
            }
            self.ticks = self.ticks.wrapping_add(1);
            self.share(connection).await?
        };
        let releasing = std::mem::take(&mut self.releasing);
        self.release(connection, &releasing).await?;

        let mut held = Held::new();
        let leases = "SELECT log_partition, owner, epoch, counter FROM leases WHERE log_id = $1 ORDER BY log_partition";
        let mut free = Vec::new();
        for row in sqlx::query(leases).bind(self.log_id).fetch_all(&mut *connection).await? {
            let partition = row.try_get::<i32, _>(0)? as u32;
            let owner: Option<Uuid> = row.try_get(1)?;
            let (epoch, counter): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
            if owner == Some(self.owner) {
                held.insert(partition, epoch);
            } else if self.may_take(partition, owner, epoch, counter) {
                free.push((partition, owner, epoch, counter));
            }
        }
        for (partition, owner, epoch, counter) in free {
            if held.len() < share
                && let Some(epoch) = self.take(connection, partition, owner, epoch, counter).await?
            {
                self.observed.remove(&partition);
                held.insert(partition, epoch);
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

    async fn heartbeat(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE leases SET counter = counter + 1 WHERE log_id = $1 AND owner = $2")
            .bind(self.log_id)
            .bind(self.owner)
            .execute(&mut *connection)
            .await?;
        sqlx::query(
            "INSERT INTO aggregators AS a (log_id, owner) VALUES ($1, $2)
             ON CONFLICT (log_id, owner) DO UPDATE SET counter = a.counter + 1",
        )
        .bind(self.log_id)
        .bind(self.owner)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Returns how many log partitions this process may hold.
    async fn share(&mut self, connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
        if self.exclusive {
            return Ok(self.partitions);
        }
        let now = Instant::now();
        let rows = sqlx::query("SELECT owner, counter FROM aggregators WHERE log_id = $1 AND owner <> $2")
            .bind(self.log_id)
            .bind(self.owner)
            .fetch_all(&mut *connection)
            .await?;
        let mut listed = HashMap::with_capacity(rows.len());
        for row in rows {
            let (owner, counter): (Uuid, i64) = (row.try_get(0)?, row.try_get(1)?);
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
            // Should it live after all, its next heartbeat brings it back.
            let remove = "DELETE FROM aggregators WHERE log_id = $1 AND owner = ANY ($2)";
            sqlx::query(remove).bind(self.log_id).bind(&gone).execute(connection).await?;
        }
        let living = self.peers.values().filter(|peer| peer.has_moved && now - peer.since < LEASE_TIMEOUT).count();
        Ok(self.partitions.div_ceil(living + 1))
    }

    fn may_take(&mut self, partition: u32, owner: Option<Uuid>, epoch: i64, counter: i64) -> bool {
        let Some(owner) = owner.filter(|_| !self.exclusive) else { return true };
        let now = Instant::now();
        let seen = self.observed.entry(partition).or_insert(Observed { owner, epoch, counter, since: now });
        if (seen.owner, seen.epoch, seen.counter) != (owner, epoch, counter) {
            *seen = Observed { owner, epoch, counter, since: now };
        }
        now - seen.since >= LEASE_TIMEOUT
    }

    /// Takes a lease as it was seen, and returns its new epoch; none if it has changed meanwhile.
    async fn take(
        &self,
        connection: &mut PgConnection,
        partition: u32,
        owner: Option<Uuid>,
        epoch: i64,
        counter: i64,
    ) -> Result<Option<i64>, sqlx::Error> {
        if owner.is_some() {
            // Nothing less frees the locks of a client that is frozen inside a transaction.
            sqlx::query(
                "SELECT pg_terminate_backend(a.pid, 5000) FROM leases l
                 JOIN pg_stat_activity a ON a.pid = l.writer_pid AND a.backend_start = l.writer_start
                 WHERE l.log_id = $1 AND l.log_partition = $2 AND l.epoch = $3 AND l.counter = $4",
            )
            .bind(self.log_id)
            .bind(partition as i32)
            .bind(epoch)
            .bind(counter)
            .execute(&mut *connection)
            .await?;
        }
        let taken = sqlx::query(
            "WITH taken AS (
                 UPDATE leases SET owner = $3, epoch = epoch + 1, counter = counter + 1, writer_pid = NULL, writer_start = NULL
                 WHERE log_id = $1 AND log_partition = $2 AND owner IS NOT DISTINCT FROM $4 AND epoch = $5 AND counter = $6
                 RETURNING log_id, log_partition, epoch
             )
             UPDATE checkpoints c SET epoch = t.epoch FROM taken t
             WHERE c.log_id = t.log_id AND c.log_partition = t.log_partition RETURNING c.epoch",
        )
        .bind(self.log_id)
        .bind(partition as i32)
        .bind(self.owner)
        .bind(owner)
        .bind(epoch)
        .bind(counter)
        .fetch_optional(connection)
        .await?;
        taken.map(|row| row.try_get(0)).transpose()
    }

    async fn release(&self, connection: &mut PgConnection, partitions: &BTreeSet<u32>) -> Result<(), sqlx::Error> {
        if partitions.is_empty() {
            return Ok(());
        }
        let partitions: Vec<i32> = partitions.iter().map(|partition| *partition as i32).collect();
        let statement = "UPDATE leases SET owner = NULL, writer_pid = NULL, writer_start = NULL
                    WHERE log_id = $1 AND owner = $2 AND log_partition = ANY ($3)";
        sqlx::query(statement).bind(self.log_id).bind(self.owner).bind(partitions).execute(connection).await?;
        Ok(())
    }

    /// Is no longer among the processes that share the log.
    async fn leave(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let remove = "DELETE FROM aggregators WHERE log_id = $1 AND owner = $2";
        sqlx::query(remove).bind(self.log_id).bind(self.owner).execute(connection).await?;
        Ok(())
    }

    async fn release_all(&self, connection: &mut PgConnection) {
        let released = async {
            self.release(connection, &(0..self.partitions as u32).collect()).await?;
            self.leave(connection).await
        };
        if let Err(error) = released.await {
            tracing::warn!(%error, "leases were not given back; others take them after {} s", LEASE_TIMEOUT.as_secs());
        }
    }
}
