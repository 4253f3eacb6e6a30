//! Participation and attribution of a whole experiment, from its raw rows.

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::catalogue::raise_version;
use crate::commit::participation;
use crate::database::catalogue_lock;

pub use crate::commit::participation::Differences;

/// Why an experiment was not recomputed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecomputeError {
    /// There is no such experiment.
    #[error("experiment {0} does not exist in this project")]
    UnknownExperiment(Uuid),
    /// Some of its rows may lie in months that are no longer in Postgres.
    #[error("experiment {0} is frozen: some of its rows are no longer kept here, so it cannot be computed again")]
    Frozen(Uuid),
    /// Postgres refused or broke off.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
}

/// Recomputes an experiment in a transaction of its own, and returns how many rows were not as they should be.
/// The flow waits in the log meanwhile.
/// # Errors
/// [`RecomputeError`]; the transaction is rolled back.
pub async fn recompute(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Differences, RecomputeError> {
    let mut transaction = connection.begin().await?;
    lock(&mut transaction, project).await?;
    let changed = recompute_locked(&mut transaction, project, experiment).await?;
    // Rows changed without new facts: whoever follows facts must read all of them again.
    raise_version(&mut transaction, project).await?;
    transaction.commit().await?;
    Ok(changed)
}

/// Locks all checkpoints, ascending, and then the project's catalogue: nothing is stored, and no name changes, until the
/// transaction ends. Checkpoints always come before the catalogue.
pub async fn lock(connection: &mut PgConnection, project: Uuid) -> Result<(), sqlx::Error> {
    let checkpoints = "SELECT 1 FROM checkpoints ORDER BY log_id, log_partition FOR UPDATE";
    sqlx::query(checkpoints).fetch_all(&mut *connection).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(catalogue_lock(project)).execute(connection).await?;
    Ok(())
}

/// Recomputes an experiment inside a transaction that holds [`lock`].
/// # Errors
/// [`RecomputeError`]; the caller rolls back.
pub async fn recompute_locked(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Differences, RecomputeError> {
    let frozen: Option<bool> =
        sqlx::query_scalar("SELECT frozen_at IS NOT NULL FROM experiments WHERE project_id = $1 AND id = $2")
            .bind(project)
            .bind(experiment)
            .fetch_optional(&mut *connection)
            .await?;
    match frozen {
        None => return Err(RecomputeError::UnknownExperiment(experiment)),
        Some(true) => return Err(RecomputeError::Frozen(experiment)),
        Some(false) => {}
    }
    let changed = participation::follow_experiment(connection, project, experiment).await?;
    sqlx::raw_sql("UPDATE checkpoints SET change_seq = change_seq + 1").execute(&mut *connection).await?;
    Ok(changed)
}
