//! Experiments whose participation and attribution wait for a recomputation, after a change by which stored rows mean something else.

use sqlx::PgConnection;
use uuid::Uuid;

/// Keeps other recomputations of an experiment away until [`unlock`] or the connection's end. Comes before all other locks.
/// # Errors
/// As Postgres has them.
pub async fn lock(connection: &mut PgConnection, experiment: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_lock($1)").bind(lock_key(experiment)).execute(connection).await?;
    Ok(())
}

/// Does the same unless another recomputation is going on; returns whether it did.
/// # Errors
/// As Postgres has them.
pub async fn try_lock(connection: &mut PgConnection, experiment: Uuid) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(lock_key(experiment)).fetch_one(connection).await
}

/// Ends [`lock`]. Where that fails the connection has broken, which ends it, too.
pub async fn unlock(connection: &mut PgConnection, experiment: Uuid) {
    if let Err(error) = sqlx::query("SELECT pg_advisory_unlock($1)").bind(lock_key(experiment)).execute(connection).await {
        tracing::warn!(%error, "a recomputation's lock is given back by the end of its connection");
    }
}

fn lock_key(experiment: Uuid) -> i64 {
    experiment.as_u128() as i64
}

/// Marks an experiment: from this transaction on commits leave its rows alone and list the users that they touch. The caller holds
/// [`lock`] and the project's catalogue, whose version it raises, so that every commit reads the mark; then an aggregator computes the
/// experiment anew.
/// # Errors
/// As Postgres has them.
pub async fn mark(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) VALUES ($1, $2, true)
         ON CONFLICT (project_id, experiment_id) DO UPDATE SET is_recomputed = true, is_list_closed = false",
    )
    .bind(project)
    .bind(experiment)
    .execute(connection)
    .await?;
    Ok(())
}
