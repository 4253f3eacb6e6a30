//! The lock and the version of a project's catalogue. Whoever changes it holds the lock alone and raises the version; whoever
//! stores rows that depend on it shares the lock and compares the version with the one that the rows were resolved against.

use sqlx::PgConnection;
use uuid::Uuid;

/// Returns the advisory lock of a project's catalogue: the first 8 bytes of its id. For a transaction that takes it within other statements.
pub fn key(project: Uuid) -> i64 {
    (project.as_u128() >> 64) as i64
}

/// Takes the catalogue of a project until the transaction ends, against commits and against other changes: under it no fact of the
/// project is stored, and all that were are visible. Checkpoints, where they are locked too, come first.
/// # Errors
/// As Postgres has them.
pub async fn lock(connection: &mut PgConnection, project: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(key(project)).execute(connection).await?;
    Ok(())
}

/// Takes the catalogues of projects until the transaction ends, against changes only; in ascending order, so that nobody waits
/// in a circle.
/// # Errors
/// As Postgres has them.
pub async fn lock_shared(connection: &mut PgConnection, projects: impl Iterator<Item = Uuid>) -> Result<(), sqlx::Error> {
    let mut keys: Vec<i64> = projects.map(key).collect();
    keys.sort_unstable();
    for key in keys {
        sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(key).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Raises the version of a project's catalogue. The caller holds [`lock`].
/// # Errors
/// As Postgres has them.
pub async fn raise(connection: &mut PgConnection, project: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO catalogue_versions (project_id, version) VALUES ($1, 1)
         ON CONFLICT (project_id) DO UPDATE SET version = catalogue_versions.version + 1",
    )
    .bind(project)
    .execute(connection)
    .await?;
    Ok(())
}
