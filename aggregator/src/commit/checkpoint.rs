//! Progress: moved first, by comparison, in the transaction that stores the rows.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::batch::Slice;

/// Where a log partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub next_offset: u64,
    /// CRC-32C of the record before it; none before the first.
    pub last_crc: Option<u32>,
}

/// Moves a checkpoint over a slice. Returns false if it is not where the slice begins, or the lease has another epoch:
/// then somebody else owns the log partition, and nothing may be committed.
pub(crate) async fn advance(connection: &mut PgConnection, log_id: Uuid, slice: &Slice) -> Result<bool, sqlx::Error> {
    let moved = sqlx::query(
        "UPDATE checkpoints
         SET next_offset = $4, last_crc = $5, change_seq = change_seq + 1, updated_at = now()
         WHERE log_id = $1 AND log_partition = $2 AND next_offset = $3 AND epoch = $6",
    )
    .bind(log_id)
    .bind(slice.partition as i32)
    .bind(slice.from as i64)
    .bind(slice.to as i64)
    .bind(i64::from(slice.last_crc))
    .bind(slice.epoch)
    .execute(connection)
    .await?;
    Ok(moved.rows_affected() == 1)
}

/// Reads a checkpoint under its row lock: a transaction whose end is not known has ended when this returns.
pub(crate) async fn read(connection: &mut PgConnection, log_id: Uuid, partition: u32) -> Result<Checkpoint, sqlx::Error> {
    let row = sqlx::query("SELECT next_offset, last_crc FROM checkpoints WHERE log_id = $1 AND log_partition = $2 FOR UPDATE")
        .bind(log_id)
        .bind(partition as i32)
        .fetch_one(connection)
        .await?;
    let next_offset: i64 = row.try_get("next_offset")?;
    let last_crc: Option<i64> = row.try_get("last_crc")?;
    Ok(Checkpoint { next_offset: next_offset as u64, last_crc: last_crc.map(|crc| crc as u32) })
}
