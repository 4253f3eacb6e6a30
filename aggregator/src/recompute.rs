//! Participation and attribution of a whole experiment, from its raw rows.

use catalogue::{ReadError, Unsupported, version};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::commit::participation;

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
    /// A newer version of Weir wrote a rule of it.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Postgres refused or broke off.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
}

impl From<ReadError> for RecomputeError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unsupported(unsupported) => RecomputeError::Unsupported(unsupported),
            ReadError::Database(error) => RecomputeError::Postgres(error),
        }
    }
}

/// Recomputes an experiment in a transaction of its own, and returns how many rows were not as they should be.
/// The flow waits in the log meanwhile.
/// # Errors
/// [`RecomputeError`]; the transaction is rolled back.
pub async fn recompute(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Differences, RecomputeError> {
    let mut transaction = connection.begin().await?;
    lock_checkpoints(&mut transaction).await?;
    version::lock(&mut transaction, project).await?;
    let changed = recompute_locked(&mut transaction, project, experiment).await?;
    // Rows changed without new facts: whoever follows facts must read all of them again.
    version::raise(&mut transaction, project).await?;
    transaction.commit().await?;
    Ok(changed)
}

/// Locks all checkpoints, ascending: nothing is stored until the transaction ends. They always come before the catalogue.
pub(crate) async fn lock_checkpoints(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let checkpoints = "SELECT 1 FROM checkpoints ORDER BY log_id, log_partition FOR UPDATE";
    sqlx::query(checkpoints).fetch_all(connection).await?;
    Ok(())
}

/// Recomputes an experiment inside a transaction that holds the checkpoints and the catalogue.
/// # Errors
/// [`RecomputeError`]; the caller rolls back.
pub(crate) async fn recompute_locked(
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
