//! What of each project was stored: how many of its records, and the time of its newest event.

use std::collections::BTreeMap;

use events::Micros;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::Batch;
use crate::commit::StagedRow;
use crate::database::Timestamp;

/// Adds a batch and the rows of it that are new. An event counts up to its receipt at most: by a clock that is ahead of ours nothing
/// is later than now. The checkpoints of the batch are locked, and so are these rows.
pub(crate) async fn add(
    connection: &mut PgConnection,
    log_id: Uuid,
    batch: &Batch,
    new: &[StagedRow<'_>],
) -> Result<(), sqlx::Error> {
    let mut passed: BTreeMap<(Uuid, u32), (i64, Option<Micros>)> = BTreeMap::new();
    for decoded in &batch.events {
        passed.entry((decoded.event.project_id.0, decoded.partition)).or_default().0 += 1;
    }
    for row in new {
        let event = row.event();
        let (_, newest) = passed.entry((event.project_id.0, row.decoded.partition)).or_default();
        *newest = (*newest).max(Some(event.event_time.min(event.received_at)));
    }
    if passed.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO project_progress AS p (log_id, project_id, log_partition, records, event_time)
         SELECT $1, * FROM unnest($2::uuid[], $3::int[], $4::bigint[], $5::timestamptz[])
         ON CONFLICT (project_id, log_id, log_partition) DO UPDATE
         SET records = p.records + excluded.records, event_time = greatest(p.event_time, excluded.event_time)",
    )
    .bind(log_id)
    .bind(passed.keys().map(|(project, _)| *project).collect::<Vec<_>>())
    .bind(passed.keys().map(|(_, partition)| *partition as i32).collect::<Vec<_>>())
    .bind(passed.values().map(|(records, _)| *records).collect::<Vec<_>>())
    .bind(passed.values().map(|(_, newest)| newest.map(Timestamp)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
