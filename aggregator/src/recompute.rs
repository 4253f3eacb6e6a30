//! Participation and attribution of a whole experiment, from its raw rows, while events go on being stored.
//!
//! An experiment is marked in `experiments_behind` while its rows are not what facts and rules make of them: by a change of its rules,
//! by an operator who wants it computed again, or by a commit of a version that cannot read the rules. Commits leave a marked experiment's rows
//! alone, so that its recomputation is the only writer of them. If the process that recomputes ends, the mark stays, and an
//! aggregator begins anew.

use catalogue::behind::{self, lock, mark, unlock};
use catalogue::{ReadError, Rules, Unsupported, rules, version};
use events::Kind;
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

/// Users that are recomputed in one transaction: bounds what it writes, which commits wait for when they sync the database's log.
const USERS_AT_ONCE: usize = 500;
/// Impressions and conversions of the listed users, and other events where these may expose, that are recomputed in one transaction, unless it is one user's: a commit with facts of
/// one of them waits for its end.
const LISTED_ROWS_AT_ONCE: i64 = 5_000;

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

/// Computes a marked experiment anew and takes the mark away.
///
/// The long part holds no lock that a commit waits for: all users with a fact or a row of the experiment, so many at a time. Then the list
/// of users that commits have touched meanwhile is closed: from now on commits leave those on it alone and follow the facts of all others, so
/// that it only shrinks. Listed users are recomputed so many rows at a time, as only commits with facts of these users wait for.
/// Under the catalogue's lock of the project, which all its commits wait for, nobody is computed: it closes the list, and takes the mark away.
pub(crate) async fn catch_up(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Differences, RecomputeError> {
    let mut differences = Differences::default();
    let users = users_of(connection, project, experiment).await?;
    for users in users.chunks(USERS_AT_ONCE) {
        let mut transaction = connection.begin().await?;
        // Read each time: a variant may have registered itself.
        let rules = computable(&mut transaction, project, experiment).await?;
        differences += participation::follow_users(&mut transaction, (project, experiment), &rules, users).await?;
        transaction.commit().await?;
    }
    close_list(connection, project, experiment).await?;
    loop {
        let next = next_listed(connection, project, experiment).await?;
        if next.is_empty() {
            match unmark(connection, project, experiment).await? {
                true => return Ok(differences),
                false => continue,
            }
        }
        let mut transaction = connection.begin().await?;
        let taken = take_listed(&mut transaction, project, experiment, &next).await?;
        let rules = computable(&mut transaction, project, experiment).await?;
        differences += participation::follow_users(&mut transaction, (project, experiment), &rules, &taken).await?;
        transaction.commit().await?;
    }
}

/// Returns all users with a fact that may be an exposure, or a row of the experiment.
async fn users_of(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Vec<Uuid>, RecomputeError> {
    let exposure = computable(connection, project, experiment).await?.exposure;
    let candidates = exposure.map(|exposure| exposure.candidates()).unwrap_or_default();
    let named = |kind| candidates.get(&kind).into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
    let users = sqlx::query_scalar(
        "SELECT user_id FROM impressions WHERE project_id = $1 AND (experiment_id = $2 OR $3)
         UNION SELECT user_id FROM conversions WHERE project_id = $1 AND conversion_type = ANY ($4)
         UNION SELECT user_id FROM campaign_events WHERE project_id = $1 AND event_type = ANY ($5)
         UNION SELECT user_id FROM engagement_events WHERE project_id = $1 AND event_type = ANY ($6)
         UNION SELECT user_id FROM user_experiment_participation WHERE project_id = $1 AND experiment_id = $2
         UNION SELECT user_id FROM conversion_attribution WHERE project_id = $1 AND experiment_id = $2
         ORDER BY 1",
    )
    .bind(project)
    .bind(experiment)
    .bind(candidates.contains_key(&Kind::Impression))
    .bind(named(Kind::Conversion))
    .bind(named(Kind::CampaignEvent))
    .bind(named(Kind::Engagement))
    .fetch_all(connection)
    .await?;
    Ok(users)
}

/// Closes the list of an experiment, when commits that add to it are over.
pub(crate) async fn close_list(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    version::lock(&mut transaction, project).await?;
    sqlx::query("UPDATE experiments_behind SET is_list_closed = true WHERE project_id = $1 AND experiment_id = $2")
        .bind(project)
        .bind(experiment)
        .execute(&mut *transaction)
        .await?;
    version::raise(&mut transaction, project).await?;
    transaction.commit().await
}

/// Takes the mark away if nobody is listed any more: a version that cannot read the rules adds to a closed list, too. Returns whether it did.
async fn unmark(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    version::lock(&mut transaction, project).await?;
    let is_any_listed = "SELECT EXISTS (SELECT 1 FROM users_behind WHERE project_id = $1 AND experiment_id = $2)";
    if sqlx::query_scalar(is_any_listed).bind(project).bind(experiment).fetch_one(&mut *transaction).await? {
        transaction.rollback().await?;
        return Ok(false);
    }
    let mark = "DELETE FROM experiments_behind WHERE project_id = $1 AND experiment_id = $2";
    sqlx::query(mark).bind(project).bind(experiment).execute(&mut *transaction).await?;
    // Rows changed without new facts: whoever follows facts must read all of them again.
    version::raise(&mut transaction, project).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Returns the first listed users, as many as one transaction recomputes; none are left if there is none. Locks nothing.
pub(crate) async fn next_listed(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Vec<Uuid>, sqlx::Error> {
    let listed: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT u.user_id,
                (SELECT count(*) FROM (SELECT 1 FROM impressions i WHERE i.project_id = $1 AND i.user_id = u.user_id LIMIT $4) r)
                + (SELECT count(*) FROM (SELECT 1 FROM conversions c WHERE c.project_id = $1 AND c.user_id = u.user_id LIMIT $4) r)
                + CASE WHEN (SELECT to_jsonb(e) ->> 'exposure' IS NULL FROM experiments e WHERE e.project_id = $1 AND e.id = $2) THEN 0 ELSE
                    (SELECT count(*) FROM (SELECT 1 FROM engagement_events g WHERE g.project_id = $1 AND g.user_id = u.user_id LIMIT $4) r)
                    + (SELECT count(*) FROM (SELECT 1 FROM campaign_events g WHERE g.project_id = $1 AND g.user_id = u.user_id LIMIT $4) r) END
         FROM (SELECT user_id FROM users_behind WHERE project_id = $1 AND experiment_id = $2 ORDER BY user_id LIMIT $3) u
         ORDER BY u.user_id",
    )
    .bind(project)
    .bind(experiment)
    .bind(USERS_AT_ONCE as i64)
    .bind(LISTED_ROWS_AT_ONCE)
    .fetch_all(connection)
    .await?;
    let mut rows = 0;
    let fits = |(number, (user, more)): (usize, (Uuid, i64))| {
        rows += more;
        (number == 0 || rows <= LISTED_ROWS_AT_ONCE).then_some(user)
    };
    Ok(listed.into_iter().enumerate().map_while(fits).collect())
}

/// Takes users off the list, when commits that found them on it are over: the facts of these can be seen then. A commit that looks for one
/// of them afterwards waits for the end of this transaction.
async fn take_listed(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    users: &[Uuid],
) -> Result<Vec<Uuid>, sqlx::Error> {
    let users_in_order = "DELETE FROM users_behind WHERE project_id = $1 AND experiment_id = $2 AND user_id IN (
                              SELECT user_id FROM users_behind WHERE project_id = $1 AND experiment_id = $2 AND user_id = ANY ($3)
                              ORDER BY user_id FOR UPDATE)
                          RETURNING user_id";
    sqlx::query_scalar(users_in_order).bind(project).bind(experiment).bind(users).fetch_all(connection).await
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
        if !behind::try_lock(connection, experiment).await? {
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
            let taken = take_listed(&mut transaction, project, experiment, &[user]).await.expect("taken");
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
