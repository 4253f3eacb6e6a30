//! Months of the fact tables: how many are kept, where each is, and their way back from the archive.

use std::path::Path;
use std::time::Duration;

use catalogue::MonthState::{self, Archived, Closed, Detached, Dropped, Restored, Restoring};
use catalogue::audit::audit;
use catalogue::change::begin;
use events::Micros;
use serde::Serialize;
use serde_json::json;
use sqlx::{PgConnection, Row};
use tokio::time::Instant;
use uuid::Uuid;

use super::iso;
use crate::partitions::Month;
use crate::retention::{self, Step};

pub use crate::retention::{ArchiveError, RetentionError};

/// The fewest whole months that can be kept, and the most.
pub const MONTHS_KEPT: std::ops::RangeInclusive<u32> = 2..=1_200;

/// Why a month was not moved. Trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum MonthError {
    /// It is no month.
    #[error("month {0:?}: a year and a month are accepted, such as 2026-01")]
    NoMonth(String),
    /// It is in a state that it cannot leave in this way.
    #[error("month {month}: {why}")]
    WrongState {
        /// The month.
        month: String,
        /// What it is, and what can be done.
        why: &'static str,
    },
    /// Another process moves months.
    #[error("another process has been moving months for 30 s, an aggregator or a command; try again when it is done")]
    Busy,
    /// It stays as it is for a reason that passes.
    #[error("month {month} stays as it is: {why}")]
    Stays {
        /// The month.
        month: String,
        /// For people.
        why: String,
    },
    /// A step failed; an aggregator tries it again.
    #[error(transparent)]
    Failed(#[from] RetentionError),
    /// Postgres refused or broke off.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
}

/// What is kept, and what left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retention {
    /// Whole months before the present one; none: all.
    pub months_kept: Option<u32>,
    /// No row from before it is stored any more; none: nothing ever left.
    pub boundary: Option<String>,
    /// The oldest month that is due, if it has to stay for now.
    pub held_month: Option<String>,
    /// Why.
    pub held_by: Option<String>,
    /// Each that ever began to leave, the oldest first.
    pub months: Vec<MonthOf>,
}

/// A month that began to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MonthOf {
    /// Such as 2026-01.
    pub month: String,
    /// How far it is.
    pub state: MonthState,
    /// Since when.
    #[serde(serialize_with = "iso")]
    pub changed_at: Micros,
    /// Rows in its files.
    pub rows: i64,
    /// Bytes of its files.
    pub bytes: i64,
    /// Where they were written; none before.
    pub folder: Option<String>,
    /// Why it does not go on, if it does not.
    pub problem: Option<String>,
}

/// Returns what is kept, and each month that ever began to leave.
/// # Errors
/// As Postgres has them.
pub async fn list(conn: &mut PgConnection) -> Result<Retention, sqlx::Error> {
    let row = sqlx::query(
        "SELECT months_kept, to_char(held_month, 'YYYY-MM') AS held_month, held_by,
                (SELECT to_char(until AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM horizon) AS boundary
         FROM retention",
    )
    .fetch_one(&mut *conn)
    .await?;
    let months = sqlx::query(
        "SELECT to_char(month, 'YYYY-MM') AS month, state, folder, problem, (extract(epoch FROM changed_at) * 1000000)::bigint AS changed_at,
                (SELECT coalesce(sum(f.rows), 0)::bigint FROM month_files f WHERE f.month = m.month) AS rows,
                (SELECT coalesce(sum(f.bytes), 0)::bigint FROM month_files f WHERE f.month = m.month) AS bytes
         FROM months m ORDER BY m.month",
    )
    .fetch_all(conn)
    .await?;
    let month = |row: sqlx::postgres::PgRow| {
        Ok(MonthOf {
            month: row.try_get("month")?,
            state: row.try_get("state")?,
            changed_at: Micros(row.try_get("changed_at")?),
            rows: row.try_get("rows")?,
            bytes: row.try_get("bytes")?,
            folder: row.try_get("folder")?,
            problem: row.try_get("problem")?,
        })
    };
    Ok(Retention {
        months_kept: row.try_get::<Option<i32>, _>("months_kept")?.and_then(|kept| u32::try_from(kept).ok()),
        boundary: row.try_get("boundary")?,
        held_month: row.try_get("held_month")?,
        held_by: row.try_get("held_by")?,
        months: months.into_iter().map(month).collect::<Result<_, sqlx::Error>>()?,
    })
}

/// Sets how many whole months before the present one are kept, of [`MONTHS_KEPT`]; none: all, and no further month leaves.
/// # Errors
/// As Postgres has them; nothing is changed then.
pub async fn keep(conn: &mut PgConnection, months: Option<u32>) -> Result<(), sqlx::Error> {
    let mut transaction = begin(conn).await?;
    let update = "UPDATE retention SET months_kept = $1, held_month = NULL, held_by = NULL, changed_at = now()";
    sqlx::query(update).bind(months.map(|months| months as i32)).execute(&mut *transaction).await?;
    audit(&mut transaction, None, "month.keep", "retention", &json!({ "months": months })).await?;
    transaction.commit().await
}

/// Brings a month back from its files, which lie where they were written or in `folder`, and returns how many rows it has.
/// # Errors
/// [`MonthError`]. After [`MonthError::Stays`] and [`MonthError::Failed`] an aggregator goes on, if it finds the files, or this does.
pub async fn restore(conn: &mut PgConnection, month: &str, folder: Option<&Path>) -> Result<u64, MonthError> {
    let found = parse(month)?;
    locked(conn).await?;
    let outcome = restore_locked(conn, found, folder).await;
    // After a failure the connection may not answer; its end frees the lock, too.
    if outcome.is_ok() {
        retention::unlock(conn).await?;
    }
    outcome
}

async fn restore_locked(conn: &mut PgConnection, month: Month, folder: Option<&Path>) -> Result<u64, MonthError> {
    let wrong = |why| MonthError::WrongState { month: month.to_string(), why };
    loop {
        let moving = retention::find(conn, month).await?.ok_or_else(|| wrong("it was never archived"))?;
        match moving.state {
            Closed | Archived => return Err(wrong("it has not left yet: all its rows are here")),
            Restored => break,
            Dropped | Restoring => {
                let mut transaction = begin(conn).await?;
                let update =
                    "UPDATE months SET state = 'restoring', folder = coalesce($2, folder), problem = NULL, changed_at = now()
                              WHERE month = $1::text::date";
                let folder = folder.map(|folder| folder.to_string_lossy().into_owned());
                sqlx::query(update).bind(month.date()).bind(&folder).execute(&mut *transaction).await?;
                if moving.state == Dropped {
                    let details = json!({ "folder": folder });
                    audit(&mut transaction, None, "month.restore", &month.to_string(), &details).await?;
                }
                transaction.commit().await?;
            }
            Detached => {}
        }
        let moving = retention::find(conn, month).await?.ok_or_else(|| wrong("it was never archived"))?;
        if let Step::Stays(why) = retention::step(conn, &moving, None, Micros::now()).await? {
            return Err(MonthError::Stays { month: month.to_string(), why });
        }
    }
    let rows: i64 = sqlx::query_scalar("SELECT coalesce(sum(rows), 0)::bigint FROM month_files WHERE month = $1::text::date")
        .bind(month.date())
        .fetch_one(conn)
        .await?;
    Ok(rows as u64)
}

/// Lets a restored month go again: an aggregator detaches and drops it. Its files stay as they are.
/// # Errors
/// [`MonthError`]; nothing is changed then.
pub async fn release(conn: &mut PgConnection, month: &str) -> Result<(), MonthError> {
    let month = parse(month)?;
    locked(conn).await?;
    let mut transaction = begin(conn).await?;
    let update = "UPDATE months SET state = 'archived', problem = NULL, changed_at = now()
                  WHERE month = $1::text::date AND state = 'restored'";
    let released = sqlx::query(update).bind(month.date()).execute(&mut *transaction).await?.rows_affected();
    if released == 1 {
        audit(&mut transaction, None, "month.release", &month.to_string(), &json!({})).await?;
    }
    transaction.commit().await?;
    retention::unlock(conn).await?;
    let why = "it is not restored, so there is nothing to release";
    if released == 1 { Ok(()) } else { Err(MonthError::WrongState { month: month.to_string(), why }) }
}

/// Returns the months with events of a project that no query sees now, such as `2026-01`, ascending.
/// # Errors
/// Those of Postgres.
pub async fn away(conn: &mut PgConnection, project: Uuid) -> Result<Vec<String>, sqlx::Error> {
    let query =
        "SELECT m ->> 'month' FROM horizon, jsonb_array_elements(months_away) m WHERE m -> 'projects' ? $1::text ORDER BY 1";
    sqlx::query_scalar(query).bind(project.to_string()).fetch_all(conn).await
}

fn parse(month: &str) -> Result<Month, MonthError> {
    Month::parse(month).ok_or_else(|| MonthError::NoMonth(month.to_owned()))
}

/// How long a command waits for who moves months: an aggregator's look takes moments, the moving of a month may take minutes.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(200);

async fn locked(conn: &mut PgConnection) -> Result<(), MonthError> {
    let began = Instant::now();
    while !retention::try_lock(conn).await? {
        if began.elapsed() >= LOCK_WAIT_MAX {
            return Err(MonthError::Busy);
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(())
}
