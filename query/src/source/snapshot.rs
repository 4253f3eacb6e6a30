//! One Postgres snapshot for all reads of one answer.
//!
//! One transaction stays open until the answer is complete, and exports its snapshot; every scan imports it into a
//! connection of its own. So catalogue, facts, derived tables and checkpoints of one answer agree, on
//! however many connections they are read.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use catalogue::schema::SchemaError;
use chrono::{DateTime, Months, NaiveDate, NaiveTime, SecondsFormat, Utc};
use events::fact::FACT_TABLES;
use serde::{Deserialize, Serialize};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Postgres, Row, Transaction};
use tokio::sync::{Mutex, OnceCell};
use uuid::Uuid;

use crate::SCHEMA;

/// How much of the project's records was stored when an answer was read: all of these are in it, and no other ones. Nothing of it
/// moves, or tells, by what other projects send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AsOf {
    /// The present log; nothing was ever stored without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_id: Option<Uuid>,
    /// How many of the project's records were stored, per log partition: the next offset among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub offsets: BTreeMap<i32, i64>,
    /// The time of the project's newest event, each counted up to its receipt at most: a client's clock moves it no further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<String>,
    /// Months with events of the project that are archived, such as `2026-01`, ascending: none of these events was read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub months_away: Vec<String>,
}

impl AsOf {
    /// Returns the months with events from `from` on, in microseconds since 1970, of which none was read.
    pub fn months_away_from(&self, from: Option<i64>) -> Vec<&str> {
        let ends_later = |month: &&str| match (from, month_end(month)) {
            (Some(from), Some(end)) => end > from,
            _ => true,
        };
        self.months_away.iter().map(String::as_str).filter(ends_later).collect()
    }
}

/// Returns when a month such as `2026-01` is over, in microseconds since 1970.
fn month_end(month: &str) -> Option<i64> {
    let first = NaiveDate::parse_from_str(&format!("{month}-01"), "%Y-%m-%d").ok()?;
    Some(first.checked_add_months(Months::new(1))?.and_time(NaiveTime::MIN).and_utc().timestamp_micros())
}

/// How far a log partition was stored, and how often something of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionVersion {
    /// The next offset to store.
    pub offset: i64,
    /// Raised by every transaction that writes participation or attribution.
    pub change_seq: i64,
}

/// The version of a project's data: two snapshots of equal versions have equal facts, catalogue, participation and attribution. The last
/// two may differ of an experiment that is being recomputed, whose end raises the catalogue's version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataVersion {
    /// The version of the project's catalogue.
    pub catalogue: i64,
    /// All log partitions of all logs.
    pub partitions: BTreeMap<(Uuid, i32), PartitionVersion>,
}

/// A snapshot, held open until it is dropped.
#[derive(Debug)]
pub struct Snapshot {
    pool: PgPool,
    project: Uuid,
    /// Postgres' name for it, made when a second connection needs it: that writes a file.
    exported: OnceCell<String>,
    time_limit: Duration,
    transaction: Mutex<Transaction<'static, Postgres>>,
    as_of: AsOf,
    version: DataVersion,
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// Keeps months from being attached and detached, and nobody from anything else.
static LOCK_FACTS: LazyLock<String> = LazyLock::new(|| {
    let tables: Vec<String> = FACT_TABLES.iter().map(|table| format!("ONLY {}", table.name)).collect();
    let lock = format!("LOCK TABLE {} IN ACCESS SHARE MODE", tables.join(", "));
    format!("SET LOCAL lock_timeout = '{LOCK_WAIT_MAX}'; {lock}; SET LOCAL lock_timeout = 0")
});
/// Whoever moves months has their tables for a fifth of a second. Whoever has them for longer changes them by hand, and a question that nobody
/// waits for any more must not wait for that.
const LOCK_WAIT_MAX: &str = "5s";

impl Snapshot {
    /// Takes a snapshot for one project. Postgres ends each statement in it after `time_limit`. Dropped halfway it is still taken, and
    /// then given up: sqlx would leave the transaction open whose BEGIN was not answered yet.
    /// # Errors
    /// [`SchemaError`]; nothing is left open.
    pub async fn take(pool: &PgPool, project: Uuid, time_limit: Duration) -> Result<Self, SchemaError> {
        let taken = Self::taken(pool.clone(), project, time_limit);
        let taken = tokio::runtime::Handle::current().spawn(taken).await;
        taken.unwrap_or(Err(SchemaError::Database(sqlx::Error::WorkerCrashed)))
    }

    async fn taken(pool: PgPool, project: Uuid, time_limit: Duration) -> Result<Self, SchemaError> {
        // Few statements: where all processors are busy, each is a wait for one.
        let mut transaction = pool.begin_with(AssertSqlSafe(format!("{BEGIN}; {}", limits(time_limit)))).await?;
        let taken = async {
            // Before the snapshot, which the first query takes: whether a month is attached is seen without it, and stays what it is until the
            // end.
            sqlx::raw_sql(AssertSqlSafe(LOCK_FACTS.as_str())).execute(&mut *transaction).await?;
            // In this snapshot: what it holds was written under that schema.
            positions(&mut transaction, project).await
        };
        let (as_of, version) = match taken.await {
            Ok(found) => found,
            Err(error) => {
                // What another schema lacks fails, too.
                drop(transaction);
                SCHEMA.check_database(&mut *pool.acquire().await?).await?;
                return Err(error);
            }
        };
        Ok(Snapshot {
            pool,
            project,
            exported: OnceCell::new(),
            time_limit,
            transaction: Mutex::new(transaction),
            as_of,
            version,
        })
    }

    /// Returns the project that this snapshot may read.
    pub fn project(&self) -> Uuid {
        self.project
    }

    /// Returns how far the log was stored.
    pub fn as_of(&self) -> &AsOf {
        &self.as_of
    }

    /// Returns the version of the data in this snapshot.
    pub fn version(&self) -> &DataVersion {
        &self.version
    }

    /// Returns the transaction that exported the snapshot, for small reads.
    pub async fn transaction(&self) -> tokio::sync::MutexGuard<'_, Transaction<'static, Postgres>> {
        self.transaction.lock().await
    }

    /// Opens another connection on the same snapshot. Waits for whoever has [`Snapshot::transaction`].
    /// # Errors
    /// Those of Postgres; nothing is left open.
    pub async fn import(&self) -> Result<SnapshotConnection, sqlx::Error> {
        let export = || async {
            let mut transaction = self.transaction.lock().await;
            sqlx::query_scalar("SELECT pg_export_snapshot()").fetch_one(&mut **transaction).await
        };
        let id: &String = self.exported.get_or_try_init(export).await?;
        let mut imported = SnapshotConnection { connection: self.pool.acquire().await?, is_done: false };
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT '{}'; {}", id, limits(self.time_limit));
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

/// Reads how far the logs are stored, and checks the schema.
async fn positions(connection: &mut PgConnection, project: Uuid) -> Result<(AsOf, DataVersion), SchemaError> {
    let rows = sqlx::query(
        "SELECT o.schema, o.catalogue, o.months_away, c.log_id, c.log_partition, c.next_offset, c.change_seq, coalesce(p.records, 0) AS records,
                floor(extract(epoch FROM p.event_time) * 1000000)::bigint AS event_us,
                c.log_id = (SELECT log_id FROM logs ORDER BY last_used_at DESC, log_id LIMIT 1) AS is_present
         FROM (SELECT (SELECT max(version) FROM _sqlx_migrations WHERE success) AS schema,
                      (SELECT version FROM catalogue_versions WHERE project_id = $1) AS catalogue,
                      -- Before schema 17 there is no such column, and no such month.
                      (SELECT array_agg(m ->> 'month' ORDER BY m ->> 'month')
                       FROM horizon h, jsonb_array_elements(to_jsonb(h) -> 'months_away') m
                       WHERE m -> 'projects' ? $1::text) AS months_away) o
         LEFT JOIN checkpoints c ON true
         LEFT JOIN project_progress p ON p.project_id = $1 AND p.log_id = c.log_id AND p.log_partition = c.log_partition",
    )
    .bind(project)
    .fetch_all(connection)
    .await?;
    let (mut version, mut as_of) = (DataVersion::default(), AsOf::default());
    let mut newest: Option<i64> = None;
    for row in rows {
        SCHEMA.check(row.try_get::<Option<i64>, _>("schema")?.unwrap_or(0))?;
        version.catalogue = row.try_get::<Option<i64>, _>("catalogue")?.unwrap_or(0);
        as_of.months_away = row.try_get::<Option<Vec<String>>, _>("months_away")?.unwrap_or_default();
        // Without any log there is one row without its columns.
        let Some(log_id) = row.try_get::<Option<Uuid>, _>("log_id")? else { continue };
        let partition: i32 = row.try_get("log_partition")?;
        let stored = PartitionVersion { offset: row.try_get("next_offset")?, change_seq: row.try_get("change_seq")? };
        version.partitions.insert((log_id, partition), stored);
        if row.try_get("is_present")? {
            as_of.log_id = Some(log_id);
            as_of.offsets.insert(partition, row.try_get("records")?);
            newest = newest.max(row.try_get("event_us")?);
        }
    }
    as_of.event_time = newest.map(time_text);
    Ok((as_of, version))
}

/// Writes microseconds since 1970 as a time in UTC.
pub fn time_text(us: i64) -> String {
    match DateTime::<Utc>::from_timestamp_micros(us) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{us} microseconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_count_that_end_after_what_is_asked_for() {
        let as_of = AsOf { months_away: vec!["2025-11".to_owned(), "2025-12".to_owned()], ..AsOf::default() };
        let check = |from: Option<&str>, expected: &[&str]| {
            let from = from.map(|text| DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros());
            assert_eq!(as_of.months_away_from(from), expected, "{from:?}");
        };
        check(None, &["2025-11", "2025-12"]);
        check(Some("2025-11-30T23:59:59.999999Z"), &["2025-11", "2025-12"]);
        check(Some("2025-12-01T00:00:00Z"), &["2025-12"]);
        check(Some("2026-01-01T00:00:00Z"), &[]);
    }
}
