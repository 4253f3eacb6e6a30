//! Rollups get what was stored before they were made, beside the stream.
//!
//! When a rollup is made, the checkpoints are its cuts: commits add what lies from there on, this adds what lies below. Records of one log partition
//! are looked through so many at a time; what they add and how far they go is one transaction, so each fact is added once, whatever breaks
//! off. The sums of history are rows of their own, under a log that does not exist, so that no commit waits for them. Only where a rollup
//! has states, a commit with events of a user waits while history of that user is added.

use std::time::Duration;

use catalogue::rollups::seen::Seen;
use catalogue::{CatalogueError, rollups};
use events::Kind;
use service::BackOff;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::commit::rollups::{Slotted, add_to};
use crate::commit::{self, CommitError};
use crate::config::Config;
use crate::silence::{self, Backend, Silent};

/// How often it is looked whether there is something to fill.
const EVERY: Duration = Duration::from_secs(1);
/// The longest pause after failures, about.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Records that are looked through in one transaction.
const RECORDS_AT_ONCE: i64 = 2_000;
/// The log and the log partition of the sums of history.
const HISTORY: (Uuid, i32) = (Uuid::nil(), 0);

/// Why a rollup was not filled further. What was begun is undone, and it can be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl From<Silent> for FillError {
    fn from(silent: Silent) -> Self {
        FillError::Postgres(silent.into())
    }
}

/// Runs for ever; may be dropped at any point.
pub(crate) async fn run(config: Config) {
    let mut back_off = BackOff::new(EVERY, PAUSE_MAX);
    let mut connection: Option<(PgConnection, Backend)> = None;
    loop {
        let pause = match fill_with(&config, &mut connection).await {
            Ok(()) => {
                back_off.reset();
                EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "rollups cannot be filled now; trying again");
                connection = None;
                back_off.delay()
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn fill_with(config: &Config, connection: &mut Option<(PgConnection, Backend)>) -> Result<(), FillError> {
    let (open, backend) = match connection {
        Some(open) => open,
        None => connection.insert(silence::connect(&config.database_url, "rollups").await?),
    };
    backend.answers(fill_all(open)).await
}

/// Fills in all that is missing and no other process is at, and lets go of versions that others have taken the place of.
pub(crate) async fn fill_all(connection: &mut PgConnection) -> Result<(), FillError> {
    // Before its migration there is nothing to fill.
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass('rollups') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(());
    }
    while fill_some(connection, RECORDS_AT_ONCE).await? {}
    let filled = "UPDATE rollups r SET filled_at = now() WHERE r.filled_at IS NULL
                  AND NOT EXISTS (SELECT 1 FROM rollup_fills f WHERE f.number = r.number AND f.next_offset < f.cut)";
    sqlx::query(filled).execute(&mut *connection).await?;
    let replaced: Vec<Uuid> = sqlx::query_scalar(
        "SELECT DISTINCT o.project_id FROM rollups o JOIN rollups n ON n.project_id = o.project_id AND n.name = o.name
         WHERE n.version > o.version AND n.filled_at IS NOT NULL ORDER BY 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    for project in replaced {
        rollups::retire(connection, project).await?;
    }
    Ok(())
}

fn stored((kind, row): &(Kind, String)) -> Result<Slotted<'_>, sqlx::Error> {
    let refused = || sqlx::Error::Decode(format!("found what is no stored {}: {row}", kind.as_str()).into());
    Ok((Seen::stored(*kind, row).ok_or_else(refused)?, HISTORY))
}

/// Adds some records of one log partition to one rollup. Returns whether there were any to add.
pub(crate) async fn fill_some(connection: &mut PgConnection, records: i64) -> Result<bool, FillError> {
    commit::begin(connection).await?;
    let next = sqlx::query(
        "SELECT r.project_id, f.number, f.log_id, f.log_partition, f.next_offset, least(f.cut, f.next_offset + $1) AS until
         FROM rollup_fills f JOIN rollups r ON r.number = f.number WHERE f.next_offset < f.cut
         ORDER BY f.number, f.log_id, f.log_partition LIMIT 1 FOR UPDATE OF f SKIP LOCKED",
    )
    .bind(records)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(next) = next else {
        sqlx::raw_sql("ROLLBACK").execute(connection).await?;
        return Ok(false);
    };
    let (project, number): (Uuid, i32) = (next.try_get(0)?, next.try_get(1)?);
    let (log_id, partition): (Uuid, i32) = (next.try_get(2)?, next.try_get(3)?);
    let (from, until): (i64, i64) = (next.try_get(4)?, next.try_get(5)?);
    if let Some(rollup) = rollups::active(connection, project).await?.into_iter().find(|rollup| rollup.number == number) {
        let mut rows = Vec::new();
        for table in rollup.shape.tables() {
            // By the block ranges of offsets: the table's key, which begins with the project, would have all of its rows read each time.
            let select = format!(
                "SELECT to_jsonb(f)::text FROM {} f WHERE f.log_offset >= $4 AND f.log_offset < $5 AND f.log_id = $2
                 AND f.log_partition = $3 AND (f.project_id = $1) IS TRUE",
                table.name
            );
            let select = sqlx::query_scalar::<_, String>(AssertSqlSafe(select)).bind(project).bind(log_id).bind(partition);
            let found = select.bind(from).bind(until).fetch_all(&mut *connection).await?;
            rows.extend(found.into_iter().map(|row| (table.kind, row)));
        }
        let events: Vec<Slotted<'_>> = rows.iter().map(stored).collect::<Result<_, _>>()?;
        add_to(connection, &rollup, project, &events).await?;
    }
    let done = "UPDATE rollup_fills SET next_offset = $4 WHERE number = $1 AND log_id = $2 AND log_partition = $3";
    sqlx::query(done).bind(number).bind(log_id).bind(partition).bind(until).execute(&mut *connection).await?;
    sqlx::raw_sql("COMMIT").execute(connection).await?;
    Ok(true)
}
