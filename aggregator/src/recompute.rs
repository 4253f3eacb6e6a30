//! Participation and attribution of a whole experiment, from its raw rows, while events go on being stored.
//!
//! An experiment is marked in `experiments_behind` while its rows are not what facts and rules make of them: by a change of its rules,
//! by an operator who wants it computed again, or by a commit of a version that cannot read the rules. Commits leave a marked experiment's rows
//! alone, so that its recomputation is the only writer of them. If the process that recomputes ends, the mark stays, and an
//! aggregator begins anew.

use catalogue::{ReadError, Rules, Unsupported, rules, version};
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

/// Users that are recomputed in one transaction.
const USERS_AT_ONCE: usize = 2_000;
/// So many listed users are left to the last transaction, which keeps the project's commits waiting.
const LAST_USERS_MAX: usize = 100;
/// After so many transactions the last one takes all that are listed: users are then listed as fast as they are recomputed.
const ROUNDS_MAX: u32 = 10_000;

/// Recomputes an experiment beside the stream, and returns how many rows were not as they should be.
/// # Errors
/// [`RecomputeError`]. After [`RecomputeError::Postgres`] the experiment may stay marked; an aggregator then goes on with it.
pub async fn recompute(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Differences, RecomputeError> {
    lock(connection, experiment).await?;
    let outcome = recompute_alone(connection, project, experiment).await;
    unlock(connection, experiment).await;
    outcome
}

async fn recompute_alone(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Differences, RecomputeError> {
    computable(connection, project, experiment).await?;
    let mut transaction = connection.begin().await?;
    version::lock(&mut transaction, project).await?;
    mark(&mut transaction, project, experiment).await?;
    version::raise(&mut transaction, project).await?;
    transaction.commit().await?;
    catch_up(connection, project, experiment).await
}

/// Keeps other recomputations of an experiment away until [`unlock`] or the connection's end. Comes before all other locks.
pub(crate) async fn lock(connection: &mut PgConnection, experiment: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_lock($1)").bind(lock_key(experiment)).execute(connection).await?;
    Ok(())
}

/// Ends [`lock`]. Where that fails the connection has broken, which ends it, too.
pub(crate) async fn unlock(connection: &mut PgConnection, experiment: Uuid) {
    if let Err(error) = sqlx::query("SELECT pg_advisory_unlock($1)").bind(lock_key(experiment)).execute(connection).await {
        tracing::warn!(%error, "a recomputation's lock is given back by the end of its connection");
    }
}

fn lock_key(experiment: Uuid) -> i64 {
    experiment.as_u128() as i64
}

/// Marks an experiment: from this transaction on commits leave its rows alone and list the users that they touch. The caller holds
/// [`lock`] and the project's catalogue, whose version it raises, so that every commit reads the mark; then comes [`catch_up`].
pub(crate) async fn mark(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed) VALUES ($1, $2, true)
         ON CONFLICT (project_id, experiment_id) DO UPDATE SET is_recomputed = true",
    )
    .bind(project)
    .bind(experiment)
    .execute(connection)
    .await?;
    Ok(())
}

/// Computes a marked experiment anew and takes the mark away.
///
/// The long part holds no lock that a commit waits for: all users with a fact or a row of the experiment, so many at a time, then those
/// that commits have listed meanwhile. The last of these are computed under the catalogue's lock of the project: no fact of it
/// is stored then, and nothing is looked for but these users' rows, by the tables' keys.
pub(crate) async fn catch_up(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Differences, RecomputeError> {
    let mut differences = Differences::default();
    let users: Vec<Uuid> = sqlx::query_scalar(
        "SELECT user_id FROM impressions WHERE project_id = $1 AND experiment_id = $2
         UNION SELECT user_id FROM user_experiment_participation WHERE project_id = $1 AND experiment_id = $2
         UNION SELECT user_id FROM conversion_attribution WHERE project_id = $1 AND experiment_id = $2
         ORDER BY 1",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(&mut *connection)
    .await?;
    for users in users.chunks(USERS_AT_ONCE) {
        let mut transaction = connection.begin().await?;
        // Read each time: a variant may have registered itself.
        let rules = computable(&mut transaction, project, experiment).await?;
        differences += participation::follow_users(&mut transaction, (project, experiment), &rules, users).await?;
        transaction.commit().await?;
    }
    for round in 0.. {
        let mut transaction = connection.begin().await?;
        let listed = take_listed(&mut transaction, project, experiment, USERS_AT_ONCE as i64).await?;
        let rules = computable(&mut transaction, project, experiment).await?;
        differences += participation::follow_users(&mut transaction, (project, experiment), &rules, &listed).await?;
        transaction.commit().await?;
        if listed.len() <= LAST_USERS_MAX || round >= ROUNDS_MAX {
            break;
        }
    }
    let mut transaction = connection.begin().await?;
    version::lock(&mut transaction, project).await?;
    let listed = take_listed(&mut transaction, project, experiment, i64::MAX).await?;
    let rules = computable(&mut transaction, project, experiment).await?;
    differences += participation::follow_users(&mut transaction, (project, experiment), &rules, &listed).await?;
    sqlx::query("DELETE FROM experiments_behind WHERE project_id = $1 AND experiment_id = $2")
        .bind(project)
        .bind(experiment)
        .execute(&mut *transaction)
        .await?;
    // Rows changed without new facts: whoever follows facts must read all of them again.
    version::raise(&mut transaction, project).await?;
    transaction.commit().await?;
    Ok(differences)
}

/// Takes users off the list, when commits that listed them are over. One that a commit lists afterwards waits for the end of this transaction,
/// and is listed again.
async fn take_listed(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    users_max: i64,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let users = "DELETE FROM users_behind WHERE project_id = $1 AND experiment_id = $2 AND user_id IN (
                     SELECT user_id FROM users_behind WHERE project_id = $1 AND experiment_id = $2 ORDER BY user_id LIMIT $3
                     FOR UPDATE)
                 RETURNING user_id";
    sqlx::query_scalar(users).bind(project).bind(experiment).bind(users_max).fetch_all(connection).await
}

/// Returns the rules of an experiment that can be recomputed.
async fn computable(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Rules, RecomputeError> {
    let rules = rules::read(connection, project, experiment).await?.ok_or(RecomputeError::UnknownExperiment(experiment))?;
    if rules.is_frozen { Err(RecomputeError::Frozen(experiment)) } else { Ok(rules) }
}

/// An experiment that is marked, and this process cannot bring up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Behind {
    pub project: Uuid,
    pub unsupported: Unsupported,
}

/// Brings all marked experiments up to date that no other process is at. Returns how many are marked still, and those that this
/// version cannot read.
pub(crate) async fn catch_up_all(connection: &mut PgConnection) -> Result<(usize, Vec<Behind>), sqlx::Error> {
    let marked: Vec<(Uuid, Uuid)> =
        sqlx::query_as("SELECT project_id, experiment_id FROM experiments_behind ORDER BY since, project_id, experiment_id")
            .fetch_all(&mut *connection)
            .await?;
    let (mut left, mut behind) = (0, Vec::new());
    for (project, experiment) in marked {
        let is_free: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(lock_key(experiment)).fetch_one(&mut *connection).await?;
        if !is_free {
            left += 1;
            continue;
        }
        let outcome = recompute_if_marked(connection, project, experiment).await;
        unlock(connection, experiment).await;
        match outcome {
            Ok(Some(differences)) => {
                tracing::info!(%project, %experiment, ?differences, "an experiment that was behind is up to date")
            }
            Ok(None) => {}
            Err(RecomputeError::Unsupported(unsupported)) => {
                left += 1;
                behind.push(Behind { project, unsupported });
            }
            Err(RecomputeError::Postgres(error)) => return Err(error),
            // Its rows stay as they are for ever.
            Err(RecomputeError::Frozen(_) | RecomputeError::UnknownExperiment(_)) => {
                let unmark = "DELETE FROM experiments_behind WHERE project_id = $1 AND experiment_id = $2";
                sqlx::query(unmark).bind(project).bind(experiment).execute(&mut *connection).await?;
            }
        }
    }
    Ok((left, behind))
}

/// The mark may be gone by the time that the lock was there.
async fn recompute_if_marked(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Option<Differences>, RecomputeError> {
    let is_marked: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM experiments_behind WHERE project_id = $1 AND experiment_id = $2)")
            .bind(project)
            .bind(experiment)
            .fetch_one(&mut *connection)
            .await?;
    if !is_marked {
        return Ok(None);
    }
    recompute_alone(connection, project, experiment).await.map(Some)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use migrations::testing::TestDatabase;

    use super::*;
    use crate::commit::participation::list;

    /// A commit lists a user who is listed already, and stores facts of it that nobody sees yet: the recomputation waits for them.
    #[tokio::test]
    async fn a_listed_user_is_taken_when_all_its_facts_can_be_seen() {
        let database = TestDatabase::create().await;
        let [mut commit, mut recomputation, mut observer] =
            [database.connect().await, database.connect().await, database.connect().await];
        let (project, experiment, user) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let listed = BTreeSet::from([(project, experiment, user)]);
        list(&mut commit, &listed).await.expect("listed");
        sqlx::raw_sql("CREATE TABLE facts (n integer)").execute(&mut commit).await.expect("a table");

        let mut committing = commit.begin().await.expect("begins");
        sqlx::raw_sql("INSERT INTO facts VALUES (1)").execute(&mut *committing).await.expect("stored");
        list(&mut committing, &listed).await.expect("listed");
        let taking = tokio::spawn(async move {
            let mut transaction = recomputation.begin().await.expect("begins");
            let taken = take_listed(&mut transaction, project, experiment, 10).await.expect("taken");
            let facts: i64 = sqlx::query_scalar("SELECT count(*) FROM facts").fetch_one(&mut *transaction).await.expect("read");
            transaction.commit().await.expect("commits");
            (taken, facts)
        });
        let waits =
            "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')";
        while !sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut observer).await.expect("read") {
            assert!(!taking.is_finished(), "it was taken off the list before its facts could be seen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        committing.commit().await.expect("commits");
        assert_eq!(taking.await.expect("no panic"), (vec![user], 1));
    }
}
