//! One moment of Postgres for all reads of one answer.
//!
//! The keeper's transaction exports its snapshot, every scan imports it into a connection of its own, and the keeper stays
//! open until the answer is complete. So catalogue, facts, derived tables and checkpoints of one answer agree, on
//! however many connections they are read.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Row, Transaction};
use tokio::sync::Mutex;
use uuid::Uuid;

/// How far the log was stored when an answer was read. All events below these offsets are in it, and no other ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AsOf {
    /// The present log; nothing was ever stored without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_id: Option<Uuid>,
    /// The next offset to store, per log partition.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub offsets: BTreeMap<i32, i64>,
    /// The time of the newest event stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
}

/// How far a log partition was stored, and how often something of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The next offset to store.
    pub offset: i64,
    /// Raised by every transaction that writes participation or attribution.
    pub change_seq: i64,
}

/// What tells two moments of the database apart: equal ones have equal facts, participation, attribution and catalogue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The version of the project's catalogue.
    pub catalogue: i64,
    /// All partitions of all logs.
    pub cuts: BTreeMap<(Uuid, i32), Cut>,
}

/// A snapshot that is being kept.
#[derive(Debug)]
pub struct Snapshot {
    pool: PgPool,
    project: Uuid,
    id: String,
    time_limit: Duration,
    keeper: Mutex<Transaction<'static, Postgres>>,
    as_of: AsOf,
    moment: Moment,
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl Snapshot {
    /// Takes a snapshot for one project. Postgres ends each statement in it after `time_limit`.
    /// # Errors
    /// Those of Postgres; nothing is kept.
    pub async fn take(pool: &PgPool, project: Uuid, time_limit: Duration) -> Result<Self, sqlx::Error> {
        let mut keeper = pool.begin_with(BEGIN).await?;
        sqlx::raw_sql(AssertSqlSafe(limits(time_limit))).execute(&mut *keeper).await?;
        let id: String = sqlx::query_scalar("SELECT pg_export_snapshot()").fetch_one(&mut *keeper).await?;
        let (as_of, moment) = positions(&mut keeper, project).await?;
        Ok(Snapshot { pool: pool.clone(), project, id, time_limit, keeper: Mutex::new(keeper), as_of, moment })
    }

    /// Returns the project that this snapshot may read.
    pub fn project(&self) -> Uuid {
        self.project
    }

    /// Returns how far the log was stored.
    pub fn as_of(&self) -> &AsOf {
        &self.as_of
    }

    /// Returns what tells this moment of the database from other ones.
    pub fn moment(&self) -> &Moment {
        &self.moment
    }

    /// Returns the keeper's own connection, for small reads.
    pub async fn keeper(&self) -> tokio::sync::MutexGuard<'_, Transaction<'static, Postgres>> {
        self.keeper.lock().await
    }

    /// Opens another connection on the same moment.
    /// # Errors
    /// Those of Postgres; nothing is kept.
    pub async fn import(&self) -> Result<SnapshotConnection, sqlx::Error> {
        let mut imported = SnapshotConnection { connection: self.pool.acquire().await?, is_done: false };
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT '{}'; {}", self.id, limits(self.time_limit));
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *imported.connection).await?;
        Ok(imported)
    }
}

/// The second limit frees the horizon of vacuum if this process hangs.
fn limits(time_limit: Duration) -> String {
    let limit_ms = time_limit.as_millis().max(1);
    format!("SET LOCAL statement_timeout = {limit_ms}; SET LOCAL idle_in_transaction_session_timeout = {}", 2 * limit_ms + 10_000)
}

/// A connection on a snapshot. Dropped before [`SnapshotConnection::done`] it is closed, which ends whatever it was doing.
pub struct SnapshotConnection {
    connection: PoolConnection<Postgres>,
    is_done: bool,
}

impl SnapshotConnection {
    /// Returns the connection.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Gives the connection back to the pool.
    pub async fn done(mut self) {
        self.is_done = sqlx::raw_sql("ROLLBACK").execute(&mut *self.connection).await.is_ok();
    }
}

impl Drop for SnapshotConnection {
    fn drop(&mut self) {
        if !self.is_done {
            self.connection.close_on_drop();
        }
    }
}

async fn positions(keeper: &mut PgConnection, project: Uuid) -> Result<(AsOf, Moment), sqlx::Error> {
    let rows = sqlx::query(
        "SELECT c.log_id, c.log_partition, c.next_offset, c.change_seq,
                floor(extract(epoch FROM c.event_time) * 1000000)::bigint AS event_us,
                c.log_id = (SELECT log_id FROM logs ORDER BY last_used_at DESC, log_id LIMIT 1) AS is_present
         FROM checkpoints c",
    )
    .fetch_all(&mut *keeper)
    .await?;
    let catalogue = sqlx::query_scalar("SELECT version FROM catalogue_versions WHERE project_id = $1").bind(project);
    let mut moment = Moment { catalogue: catalogue.fetch_optional(keeper).await?.unwrap_or(0), ..Moment::default() };
    let mut as_of = AsOf::default();
    let mut newest: Option<i64> = None;
    for row in rows {
        let (log_id, partition): (Uuid, i32) = (row.try_get("log_id")?, row.try_get("log_partition")?);
        let cut = Cut { offset: row.try_get("next_offset")?, change_seq: row.try_get("change_seq")? };
        moment.cuts.insert((log_id, partition), cut);
        if row.try_get("is_present")? {
            as_of.log_id = Some(log_id);
            as_of.offsets.insert(partition, cut.offset);
            newest = newest.max(row.try_get("event_us")?);
        }
    }
    as_of.event_time = newest.map(time_text);
    Ok((as_of, moment))
}

/// Writes microseconds since 1970 as a time in UTC.
pub fn time_text(us: i64) -> String {
    match DateTime::<Utc>::from_timestamp_micros(us) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{us} microseconds"),
    }
}
