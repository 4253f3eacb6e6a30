//! Which rows Postgres refuses: found by bisection, in a transaction that is rolled back.

use sqlx::PgConnection;

use crate::batch::{DeadLetter, REFUSED};
use crate::commit::{StagedRow, copy, facts, kinds};
use crate::database::row_fault;

/// Returns a dead letter for each row that Postgres refuses by itself; 2 log2(n) statements more for each of them.
///
/// Nothing is left of the search, neither a fact nor an id in `untimed_ids`: the batch is committed afterwards, without
/// the rows that were found. Rows are searched ordered by key, as they are inserted.
pub(super) async fn find_refused(connection: &mut PgConnection, rows: &[StagedRow<'_>]) -> Result<Vec<DeadLetter>, sqlx::Error> {
    let mut ordered = rows.to_vec();
    ordered.sort_by_key(|row| (row.key(), row.decoded.partition, row.decoded.offset));
    let mut found = Vec::new();
    let mut ranges: Vec<_> = std::iter::once(0..ordered.len()).collect();
    sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
    while let Some(range) = ranges.pop() {
        sqlx::raw_sql("SAVEPOINT half; DELETE FROM staging").execute(&mut *connection).await?;
        let outcome = insert(connection, &ordered[range.clone()]).await;
        let fault = match outcome {
            Ok(()) => None,
            Err(error) => Some(row_fault(&error).ok_or(error)?),
        };
        sqlx::raw_sql("ROLLBACK TO SAVEPOINT half; RELEASE SAVEPOINT half").execute(&mut *connection).await?;
        let Some((sqlstate, message)) = fault else { continue };
        if range.len() == 1 {
            let reason = format!("postgres refuses the row: {message}");
            let letter = DeadLetter::of(ordered[range.start].decoded, REFUSED, reason);
            found.push(DeadLetter { sqlstate: Some(sqlstate), ..letter });
        } else {
            let middle = range.start + range.len() / 2;
            ranges.extend([range.start..middle, middle..range.end]);
        }
    }
    sqlx::raw_sql("ROLLBACK").execute(connection).await?;
    Ok(found)
}

async fn insert(connection: &mut PgConnection, rows: &[StagedRow<'_>]) -> Result<(), sqlx::Error> {
    copy::send(connection, rows).await?;
    facts::drop_known_ids(connection).await?;
    facts::insert(connection, &kinds(rows)).await?;
    Ok(())
}
