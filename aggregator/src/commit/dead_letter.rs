//! Records that could not be applied: kept with their bytes and the reason.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::batch::DeadLetter;

/// Stores dead letters. One position of the log has at most one.
pub(crate) async fn insert(connection: &mut PgConnection, log_id: Uuid, letters: &[DeadLetter]) -> Result<(), sqlx::Error> {
    if letters.is_empty() {
        return Ok(());
    }
    // Postgres' text holds no U+0000, and a reason may quote one.
    let clean = |text: &str| text.replace('\0', "\u{fffd}");
    let projects: Vec<Option<Uuid>> = letters.iter().map(|letter| letter.project).collect();
    let partitions: Vec<i32> = letters.iter().map(|letter| letter.partition as i32).collect();
    let offsets: Vec<i64> = letters.iter().map(|letter| letter.offset as i64).collect();
    let codes: Vec<&str> = letters.iter().map(|letter| letter.code).collect();
    let subjects: Vec<Option<String>> = letters.iter().map(|letter| letter.subject.as_deref().map(clean)).collect();
    let reasons: Vec<String> = letters.iter().map(|letter| clean(&letter.reason)).collect();
    let sqlstates: Vec<Option<&str>> = letters.iter().map(|letter| letter.sqlstate.as_deref()).collect();
    let bytes: Vec<&[u8]> = letters.iter().map(|letter| letter.bytes.as_ref()).collect();
    sqlx::query(
        "INSERT INTO dead_letters (log_id, project_id, log_partition, log_offset, code, subject, reason, sqlstate, bytes)
         SELECT $1, * FROM unnest($2::uuid[], $3::int[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bytea[])
         ON CONFLICT DO NOTHING",
    )
    .bind(log_id)
    .bind(projects)
    .bind(partitions)
    .bind(offsets)
    .bind(codes)
    .bind(subjects)
    .bind(reasons)
    .bind(sqlstates)
    .bind(bytes)
    .execute(connection)
    .await?;
    Ok(())
}
