//! Retention: months of the fact tables that are old enough leave for an archive of Parquet files, and come back by one command.
//!
//! A month leaves in steps, each of which is done when its state is stored ([`MonthState`]), so that whoever finds a state goes on from
//! there, and an interrupted step is done again from its beginning:
//!
//! - *closed*: the retention boundary lies at its end, so that no row is stored in it any more, and its rows can be read at leisure;
//! - *archived*: its files are on the disk under their names, and were read back and compared with its rows;
//! - *detached*: experiments that have rows in it are frozen, and no query sees its rows, in one transaction;
//! - *dropped*: its rows are in its files alone;
//! - *restoring*: its rows are copied into free-standing tables and compared with its files;
//! - *restored*: they are attached again. It stays until somebody releases it. The boundary stays where it is: it never moves back, so
//!   what comes for the month becomes a dead letter, and its rows are those of its files for ever.
//!
//! One process at a time does this, under a lock of its own.

mod due;
mod file;
mod rows;
mod tables;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use catalogue::MonthState::{self, Archived, Closed, Detached, Dropped, Restored, Restoring};
use catalogue::schema;
use events::Micros;
use events::fact::{FACT_TABLES, FactTable};
use service::BackOff;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

pub use self::file::ArchiveError;

use self::due::{Look, Touched};
use self::tables::{AtOnce, Frozen};
use crate::config::Config;
use crate::database;
use crate::metrics::Metrics;
use crate::partitions::Month;

/// Whoever has it moves months.
const LOCK: i64 = 0x7765_6972_6d6f_7665; // "weirmove"

/// The first schema with the tables of this module.
const SCHEMA_OLDEST: i64 = 17;

/// How often it is looked whether another month is due: that may read all rows of the oldest.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Why a month does not go on. Its rows are where its state says.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// Postgres refused or broke off.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// A file of it cannot be written or read, or is not what it should be.
    #[error("month {month}: {source}")]
    Archive {
        /// The month.
        month: String,
        /// What is wrong.
        source: ArchiveError,
    },
}

/// What came of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The month has this state now.
    Done(MonthState),
    /// It has the state that it had, for this reason.
    Stays(String),
}

/// A month that is on its way, and where its files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) month: Month,
    pub(crate) state: MonthState,
    folder: Option<PathBuf>,
    projects: Vec<Uuid>,
}

/// A file of the archive, as it was written.
struct Filed {
    fact_table: &'static FactTable,
    path: PathBuf,
    rows: u64,
    sha256: Vec<u8>,
}

/// Moves months until it is dropped, which it may be at any point.
pub(crate) async fn run(config: Config, metrics: Arc<Metrics>) {
    let mut back_off = BackOff::new(config.retention_round, PAUSE_MAX);
    let mut looks = Looks::default();
    let mut failed: Option<RetentionError> = None;
    loop {
        let round = async {
            let mut connection = database::connect(&config.database_url, "retention").await?;
            if schema::version(&mut connection).await? < SCHEMA_OLDEST {
                return Ok(());
            }
            if let Some(RetentionError::Archive { month, source }) = failed.take() {
                note_problem(&mut connection, &month, Some(&source.to_string())).await?;
            }
            round(&mut connection, config.archive.as_deref(), Micros::now(), &mut looks, &metrics).await
        };
        let pause = match round.await {
            Ok(()) => {
                back_off.reset();
                config.retention_round
            }
            Err(error) => {
                tracing::warn!(%error, "months are not moved now; trying again");
                failed = Some(error);
                back_off.delay()
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// When it was looked for a month that is due, under which policy, and whether one has to stay.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    last: Option<(Instant, String)>,
    is_held: bool,
}

/// Moves each month on its way as far as it goes, and begins with the oldest one that is due, if nobody else is at it. After an error the
/// connection is not to be used again.
pub(crate) async fn round(
    connection: &mut PgConnection,
    folder: Option<&Path>,
    now: Micros,
    looks: &mut Looks,
    metrics: &Metrics,
) -> Result<(), RetentionError> {
    if !try_lock(connection).await? {
        return Ok(());
    }
    let mut is_stuck = false;
    for moving in on_their_way(connection).await? {
        is_stuck |= !advance(connection, moving, folder, now).await?;
    }
    // Whoever says again what is kept has it looked at once.
    let policy: String = sqlx::query_scalar("SELECT changed_at::text FROM retention").fetch_one(&mut *connection).await?;
    if looks.last.as_ref().is_none_or(|(at, known)| *known != policy || at.elapsed() >= LOOK_EVERY) {
        looks.is_held = false;
        loop {
            let look = due::look(connection, now).await?;
            let held = match &look {
                Look::Held(month, why) => Some((month.date(), why.as_str())),
                _ => None,
            };
            note_held(connection, held).await?;
            looks.is_held = matches!(look, Look::Held(..));
            let Look::Due(month) = look else { break };
            let Some(moving) = begin(connection, month, folder).await? else {
                looks.is_held = true;
                break;
            };
            is_stuck |= !advance(connection, moving, folder, now).await?;
        }
        looks.last = Some((Instant::now(), policy));
    }
    let away: i64 =
        sqlx::query_scalar("SELECT jsonb_array_length(months_away)::bigint FROM horizon").fetch_one(&mut *connection).await?;
    metrics.months_away.set(away as f64);
    metrics.months_stuck.set(if is_stuck || looks.is_held { 1.0 } else { 0.0 });
    unlock(connection).await?;
    Ok(())
}

/// Takes the lock of those who move months; false if somebody has it. It ends with the connection.
pub(crate) async fn try_lock(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(connection).await
}

pub(crate) async fn unlock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(LOCK).execute(connection).await?;
    Ok(())
}

/// Closes a month that is due; none if its locks are taken, or there is no place for its files.
async fn begin(connection: &mut PgConnection, month: Month, folder: Option<&Path>) -> Result<Option<Moving>, sqlx::Error> {
    if folder.is_none() {
        let why = "it is due, and no aggregator has a folder for the archive: start one with --archive DIR";
        note_held(connection, Some((month.date(), why))).await?;
        return Ok(None);
    }
    Ok(match tables::close(connection, month).await? {
        AtOnce::Done => find(connection, month).await?,
        AtOnce::Busy | AtOnce::Moved => None,
    })
}

/// Moves a month as far as it goes, and returns whether that is its end.
async fn advance(
    connection: &mut PgConnection,
    mut moving: Moving,
    folder: Option<&Path>,
    now: Micros,
) -> Result<bool, RetentionError> {
    loop {
        match step(connection, &moving, folder, now).await? {
            Step::Done(state) => {
                tracing::info!(month = %moving.month, %state, "a month has moved");
                moving = match find(connection, moving.month).await? {
                    Some(moving) => moving,
                    None => return Ok(true),
                };
                if matches!(state, Dropped | Restored) {
                    return Ok(true);
                }
            }
            Step::Stays(why) => {
                tracing::warn!(month = %moving.month, state = %moving.state, why, "a month does not move on");
                note_problem(connection, &moving.month.to_string(), Some(&why)).await?;
                return Ok(false);
            }
        }
    }
}

/// Does the next step of a month. The caller has the lock.
pub(crate) async fn step(
    connection: &mut PgConnection,
    moving: &Moving,
    folder: Option<&Path>,
    now: Micros,
) -> Result<Step, RetentionError> {
    let month = moving.month;
    let outcome = match moving.state {
        Closed => match folder {
            Some(folder) => archive(connection, month, folder).await,
            None => Ok(Step::Stays("no aggregator has a folder for the archive: start one with --archive DIR".to_owned())),
        },
        Archived => detach(connection, moving, now).await,
        Detached => drop_rows(connection, moving).await,
        Restoring => restore(connection, moving).await,
        state @ (Dropped | Restored) => Ok(Step::Done(state)),
    };
    outcome.map_err(|error| match error {
        ArchiveError::Postgres(error) => RetentionError::Postgres(error),
        source => RetentionError::Archive { month: month.to_string(), source },
    })
}

/// Writes the files of a closed month, reads them back and compares them with its rows.
async fn archive(connection: &mut PgConnection, month: Month, folder: &Path) -> Result<Step, ArchiveError> {
    let folder = std::path::absolute(folder).map_err(|source| ArchiveError::File { path: folder.to_owned(), source })?;
    let tables = of_month(connection, month).await?;
    let mut written = Vec::new();
    for fact_table in &tables {
        let table = month.table(fact_table.name);
        let name = format!("{month}/{}.parquet", fact_table.name);
        let path = folder.join(&name);
        let file = file::write(connection, fact_table, &table, &path).await?;
        file::compare(connection, fact_table, &table, &path).await?;
        written.push((fact_table.name, name, file));
    }
    let mut projects: Vec<Uuid> = Vec::new();
    for fact_table in &tables {
        let query = format!("SELECT DISTINCT project_id FROM {}", month.table(fact_table.name));
        projects.extend(sqlx::query_scalar::<_, Uuid>(sqlx::AssertSqlSafe(query)).fetch_all(&mut *connection).await?);
    }
    projects.sort_unstable();
    projects.dedup();
    let mut transaction = connection.begin().await?;
    let old = "DELETE FROM month_files WHERE month = $1::text::date";
    sqlx::query(old).bind(month.date()).execute(&mut *transaction).await?;
    for (fact_table, name, file) in written {
        let insert =
            "INSERT INTO month_files (month, fact_table, file, rows, bytes, sha256) VALUES ($1::text::date, $2, $3, $4, $5, $6)";
        sqlx::query(insert)
            .bind(month.date())
            .bind(fact_table)
            .bind(name)
            .bind(file.rows as i64)
            .bind(file.bytes as i64)
            .bind(file.sha256)
            .execute(&mut *transaction)
            .await?;
    }
    let update = "UPDATE months SET state = 'archived', folder = $2, projects = $3, problem = NULL, changed_at = now()
                  WHERE state = 'closed' AND month = $1::text::date";
    sqlx::query(update)
        .bind(month.date())
        .bind(folder.to_string_lossy().into_owned())
        .bind(&projects)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Step::Done(Archived))
}

/// Freezes the experiments that have rows in an archived month, and detaches it.
async fn detach(connection: &mut PgConnection, moving: &Moving, now: Micros) -> Result<Step, ArchiveError> {
    let month = moving.month;
    for filed in filed(connection, moving).await? {
        file::check(&filed.path, &filed.sha256).await?;
    }
    let tables = of_month(connection, month).await?;
    for _ in 0..CATALOGUE_TRIES {
        let frozen: Frozen = match due::touched(connection, month, &tables, now).await? {
            Touched::Free(frozen) => frozen,
            Touched::Held(why) => return Ok(Step::Stays(why)),
        };
        match tables::detach(connection, month, &tables, &frozen).await? {
            AtOnce::Done => return Ok(Step::Done(Detached)),
            AtOnce::Busy => return Ok(Step::Stays(BUSY.to_owned())),
            AtOnce::Moved => {}
        }
    }
    Ok(Step::Stays("the catalogue keeps changing while its experiments are looked at; it is tried again".to_owned()))
}

/// How often the experiments of a month are looked at that are changed meanwhile.
const CATALOGUE_TRIES: u32 = 5;

const BUSY: &str = "its locks are taken, by a query that takes long or by an idle transaction; it is tried again";

/// Drops the tables of a detached month, which hold what was archived.
async fn drop_rows(connection: &mut PgConnection, moving: &Moving) -> Result<Step, ArchiveError> {
    let month = moving.month;
    let filed = filed(connection, moving).await?;
    for file in &filed {
        let table = month.table(file.fact_table.name);
        let query = format!("SELECT count(*) FROM {table}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(&mut *connection).await?;
        if rows as u64 != file.rows {
            return Err(ArchiveError::Differs { path: file.path.clone(), table, row: file.rows.min(rows as u64) + 1 });
        }
        file::check(&file.path, &file.sha256).await?;
    }
    let tables: Vec<&'static FactTable> = filed.iter().map(|file| file.fact_table).collect();
    Ok(match tables::drop_detached(connection, month, &tables).await? {
        AtOnce::Done => Step::Done(Dropped),
        AtOnce::Busy | AtOnce::Moved => Step::Stays(BUSY.to_owned()),
    })
}

/// Copies the rows of a dropped month into tables of its own, compares them with its files, and attaches them.
async fn restore(connection: &mut PgConnection, moving: &Moving) -> Result<Step, ArchiveError> {
    let month = moving.month;
    let filed = filed(connection, moving).await?;
    for file in &filed {
        file::check(&file.path, &file.sha256).await?;
    }
    for file in &filed {
        let table = month.table(file.fact_table.name);
        tables::make_free(connection, month, file.fact_table).await?;
        file::load(connection, file.fact_table, &table, &file.path).await?;
        let rows = file::compare(connection, file.fact_table, &table, &file.path).await?;
        if rows != file.rows {
            return Err(ArchiveError::Differs { path: file.path.clone(), table, row: file.rows.min(rows) + 1 });
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("ANALYZE {table}"))).execute(&mut *connection).await?;
    }
    let tables: Vec<&'static FactTable> = filed.iter().map(|file| file.fact_table).collect();
    Ok(match tables::attach(connection, month, &tables, &moving.projects).await? {
        AtOnce::Done => Step::Done(Restored),
        AtOnce::Busy | AtOnce::Moved => Step::Stays(BUSY.to_owned()),
    })
}

/// Returns the fact tables that have this month as a table partition, by name.
async fn of_month(connection: &mut PgConnection, month: Month) -> Result<Vec<&'static FactTable>, sqlx::Error> {
    let attached = tables::attached(connection).await?;
    Ok(attached.into_iter().find(|(other, _)| *other == month).map(|(_, tables)| tables).unwrap_or_default())
}

/// Returns the files of an archived month, by its fact tables' names.
async fn filed(connection: &mut PgConnection, moving: &Moving) -> Result<Vec<Filed>, sqlx::Error> {
    let query = "SELECT fact_table, file, rows, sha256 FROM month_files WHERE month = $1::text::date ORDER BY fact_table";
    let rows: Vec<(String, String, i64, Vec<u8>)> = sqlx::query_as(query).bind(moving.month.date()).fetch_all(connection).await?;
    let folder = moving.folder.clone().unwrap_or_default();
    let filed = |(name, file, rows, sha256): (String, String, i64, Vec<u8>)| {
        let fact_table = FACT_TABLES.iter().find(|table| table.name == name)?;
        Some(Filed { fact_table, path: folder.join(file), rows: rows as u64, sha256 })
    };
    Ok(rows.into_iter().filter_map(filed).collect())
}

/// Returns the months that began to leave or to come back and are not there yet, the oldest first.
async fn on_their_way(connection: &mut PgConnection) -> Result<Vec<Moving>, sqlx::Error> {
    let all = all(connection).await?;
    Ok(all.into_iter().filter(|moving| !matches!(moving.state, Dropped | Restored)).collect())
}

/// Returns a month that ever began to leave.
pub(crate) async fn find(connection: &mut PgConnection, month: Month) -> Result<Option<Moving>, sqlx::Error> {
    Ok(all(connection).await?.into_iter().find(|moving| moving.month == month))
}

async fn all(connection: &mut PgConnection) -> Result<Vec<Moving>, sqlx::Error> {
    let rows: Vec<(String, MonthState, Option<String>, Vec<Uuid>)> =
        sqlx::query_as("SELECT to_char(month, 'YYYY-MM'), state, folder, projects FROM months ORDER BY month")
            .fetch_all(connection)
            .await?;
    let moving = |(month, state, folder, projects): (String, MonthState, Option<String>, Vec<Uuid>)| {
        Some(Moving { month: Month::parse(&month)?, state, folder: folder.map(PathBuf::from), projects })
    };
    Ok(rows.into_iter().filter_map(moving).collect())
}

/// Stores which month is due and has to stay, for people.
async fn note_held(connection: &mut PgConnection, held: Option<(String, &str)>) -> Result<(), sqlx::Error> {
    let (month, why) = held.map_or((None, None), |(month, why)| (Some(month), Some(why)));
    let update = "UPDATE retention SET held_month = $1::text::date, held_by = $2";
    sqlx::query(update).bind(month).bind(why).execute(connection).await?;
    Ok(())
}

/// Stores why a month does not go on, for people.
async fn note_problem(connection: &mut PgConnection, month: &str, problem: Option<&str>) -> Result<(), sqlx::Error> {
    let update = "UPDATE months SET problem = $2 WHERE to_char(month, 'YYYY-MM') = $1";
    sqlx::query(update).bind(month).bind(problem).execute(connection).await?;
    Ok(())
}
