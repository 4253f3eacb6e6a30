//! Which rows Postgres refuses: found by bisection, in a transaction that is rolled back, of all that a commit does with its rows.

use events::Event;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::{DeadLetter, Decoded, REFUSED};
use crate::commit::changes::NewRows;
use crate::commit::history::Histories;
use crate::commit::{StagedRow, WorkerCache, copy, event_names, facts, kinds, over_active, participation, rollups};
use crate::database::{Fault, fault};

/// Returns a dead letter for each row that Postgres refuses, by itself or after those before it; 2 log2(n) rounds more for each of them.
///
/// A round does with some rows what a commit does: facts, participation and attribution, daily sums, names of events. The checkpoint
/// and the dead letters are no row's. Nothing is left of the search, neither a fact nor an id in `untimed_ids`: the batch is committed
/// afterwards, without the rows that were found. Rows are searched ordered by key, as they are inserted. None is found where the
/// fault is no row's, or has passed.
pub(super) async fn find_refused(
    connection: &mut PgConnection,
    cache: &WorkerCache,
    log_id: Uuid,
    rows: &[StagedRow<'_>],
) -> Result<Vec<DeadLetter>, sqlx::Error> {
    let mut ordered = rows.to_vec();
    ordered.sort_by_key(|row| (row.key(), row.decoded.partition, row.decoded.offset));
    let mut found = Vec::new();
    let mut ranges: Vec<_> = std::iter::once(0..ordered.len()).collect();
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    while let Some(range) = ranges.pop() {
        sqlx::raw_sql("SAVEPOINT part").execute(&mut *connection).await?;
        let (sqlstate, message) = match store(connection, cache, log_id, &ordered[range.clone()]).await {
            // What is stored stays until the end: a row may be refused only beside one before it.
            Ok(()) => {
                sqlx::raw_sql("RELEASE SAVEPOINT part").execute(&mut *connection).await?;
                continue;
            }
            Err(error) => match fault(&error) {
                Fault::Row { sqlstate, message } => (sqlstate, message),
                Fault::Circumstances | Fault::Standing => return Err(error),
            },
        };
        sqlx::raw_sql("ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part").execute(&mut *connection).await?;
        if range.len() == 1 {
            found.push(refused(ordered[range.start].decoded, sqlstate, &format!("postgres refuses the row: {message}")));
        } else {
            let middle = range.start + range.len() / 2;
            ranges.extend([middle..range.end, range.start..middle]);
        }
    }
    sqlx::raw_sql("ROLLBACK").execute(connection).await?;
    Ok(found)
}

async fn store(
    connection: &mut PgConnection,
    cache: &WorkerCache,
    log_id: Uuid,
    rows: &[StagedRow<'_>],
) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("DELETE FROM staging").execute(&mut *connection).await?;
    copy::send(connection, rows).await?;
    let rows_max = over_active::rows_max(connection).await?;
    let mut histories = Histories::of_batch(connection, rows, rows_max, &|project| cache.catalogue.exposures(project)).await?;
    facts::drop_known_ids(connection).await?;
    let places = facts::insert(connection, &kinds(rows)).await?;
    let (new, _) = facts::split(rows, &places);
    participation::update(connection, &cache.catalogue, &mut histories, &new, NewRows::Upserted).await?;
    rollups::add(connection, &cache.catalogue, log_id, &new).await?;
    event_names::add(connection, &cache.event_names, &new).await?;
    // What would be checked at the commit.
    sqlx::raw_sql("SET CONSTRAINTS ALL IMMEDIATE").execute(connection).await?;
    Ok(())
}

/// Registers the names of events, and returns whether any was made or seen to exist, with a dead letter for each event whose names
/// Postgres refuses. What is registered stays: each project's names are a transaction of their own.
pub(super) async fn register(
    connection: &mut PgConnection,
    cache: &mut WorkerCache,
    events: &[&Decoded],
) -> Result<(bool, Vec<DeadLetter>), sqlx::Error> {
    let (mut any, mut found) = (false, Vec::new());
    let mut ranges: Vec<_> = std::iter::once(0..events.len()).collect();
    while let Some(range) = ranges.pop() {
        let names = events[range.clone()].iter().map(|decoded| -> &Event { &decoded.event });
        let (sqlstate, message) = match cache.catalogue.register(connection, names).await {
            Ok(made) => {
                any |= made;
                continue;
            }
            Err(error) => match fault(&error) {
                Fault::Row { sqlstate, message } => (sqlstate, message),
                Fault::Circumstances | Fault::Standing => return Err(error),
            },
        };
        if range.len() == 1 {
            found.push(refused(events[range.start], sqlstate, &format!("postgres refuses its names: {message}")));
        } else {
            let middle = range.start + range.len() / 2;
            ranges.extend([middle..range.end, range.start..middle]);
        }
    }
    Ok((any, found))
}

fn refused(decoded: &Decoded, sqlstate: String, reason: &str) -> DeadLetter {
    DeadLetter { sqlstate: Some(sqlstate), ..DeadLetter::of(decoded, REFUSED, reason.to_owned()) }
}
