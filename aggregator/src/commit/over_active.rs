//! Users with more raw rows than take part in experiments, such as one id that an office shares.
//!
//! What a batch costs grows with the rows of the users that it touches. So a user with more than so many (`user_rows_limit`, one number for
//! the whole database) has neither participation nor attribution. That is a rule of raw rows like all others: the same records in any order
//! and batching leave the same users out. Such users are marked, with where they were seen, so that answers can count them; of who is
//! marked no row is read any more.
//!
//! If the limit is changed, a user follows when a batch touches it next, and its experiments are recomputed; a recomputation goes by the limit
//! of its time.

use std::collections::{BTreeSet, HashMap};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::commit::history::{History, User};

/// What `over_active_users` holds of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The limit that was passed.
    pub rows_max: usize,
    /// Where the user was exposed.
    pub experiments: Vec<Uuid>,
}

/// Reads how many raw rows a user may have.
pub(crate) async fn rows_max(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let rows_max: i64 = sqlx::query_scalar("SELECT rows_max FROM user_rows_limit").fetch_one(connection).await?;
    Ok(usize::try_from(rows_max).unwrap_or(usize::MAX))
}

/// Sets how many raw rows a user may have. Returns whether that is new.
///
/// Experiments to which other events expose than impressions are computed anew: of whom the limit concerns there, no mark tells.
pub(crate) async fn set_rows_max(connection: &mut PgConnection, rows_max: u32) -> Result<bool, sqlx::Error> {
    let set = "WITH changed AS (UPDATE user_rows_limit SET rows_max = $1 WHERE rows_max <> $1 RETURNING 1),
                    behind AS (INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed)
                               SELECT e.project_id, e.id, false FROM experiments e
                               WHERE to_jsonb(e) ->> 'exposure' IS NOT NULL AND e.frozen_at IS NULL AND EXISTS (SELECT FROM changed)
                               ORDER BY 1, 2 ON CONFLICT DO NOTHING)
               SELECT count(*) FROM changed";
    Ok(sqlx::query_scalar::<_, i64>(set).bind(i64::from(rows_max)).fetch_one(connection).await? > 0)
}

/// Reads who of some users is marked.
pub(crate) async fn marks(connection: &mut PgConnection, users: &[User]) -> Result<HashMap<User, Mark>, sqlx::Error> {
    let (projects, ids): (Vec<Uuid>, Vec<Uuid>) = users.iter().copied().unzip();
    let rows = sqlx::query(
        "SELECT o.project_id, o.user_id, o.rows_max, o.experiments
         FROM unnest($1::uuid[], $2::uuid[]) AS u (project_id, user_id)
         JOIN over_active_users o ON o.project_id = u.project_id AND o.user_id = u.user_id",
    )
    .bind(projects)
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mark = |row: &PgRow| -> Result<(User, Mark), sqlx::Error> {
        let rows_max = usize::try_from(row.try_get::<i64, _>(2)?).unwrap_or(usize::MAX);
        Ok(((row.try_get(0)?, row.try_get(1)?), Mark { rows_max, experiments: row.try_get(3)? }))
    };
    rows.iter().map(mark).collect()
}

/// What follows for a user from the number of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Takes part, as before.
    TakesPart,
    /// Took part before this commit, and does no longer.
    Passed,
    /// Has no part; nothing is derived.
    LeftOut,
}

/// Changes of marks.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    marked: Vec<User>,
    /// Who has passed a higher limit, too.
    marked_again: Vec<User>,
    unmarked: Vec<User>,
    exposed: Vec<(User, Uuid)>,
    /// Who is marked and has had too many rows for longer, so that nobody knows what the tables hold.
    marked_late: Vec<User>,
    /// Users whom the limit has passed, in experiments with rows of theirs.
    pub behind: BTreeSet<(User, Uuid)>,
}

impl Marks {
    /// Judges a user with its rows of this commit.
    pub(crate) fn judge(&mut self, user: User, history: &History, rows_max: usize) -> Verdict {
        match (history.mark(), history.is_over_active(rows_max)) {
            (None, false) => Verdict::TakesPart,
            (None, true) => {
                self.marked.push(user);
                self.exposed.extend(history.exposed_by_definition().map(|experiment| (user, experiment)));
                if history.stored_rows() <= rows_max {
                    return Verdict::Passed;
                }
                self.marked_late.push(user);
                self.behind.extend(history.exposed_by_definition().map(|experiment| (user, experiment)));
                Verdict::LeftOut
            }
            (Some(mark), true) => {
                if mark.rows_max < rows_max {
                    self.marked_again.push(user);
                    self.exposed.extend(history.exposed_by_definition().map(|experiment| (user, experiment)));
                }
                let new = history.exposed().filter(|experiment| !mark.experiments.contains(experiment));
                self.exposed.extend(new.map(|experiment| (user, experiment)));
                Verdict::LeftOut
            }
            (Some(mark), false) => {
                self.unmarked.push(user);
                self.behind
                    .extend(mark.experiments.iter().copied().chain(history.experiments()).map(|experiment| (user, experiment)));
                Verdict::LeftOut
            }
        }
    }

    /// Writes them, after the rows of the commit. Returns who is marked now and was not before.
    pub(crate) async fn write(&mut self, connection: &mut PgConnection, rows_max: usize) -> Result<&[User], sqlx::Error> {
        let columns = |users: &[User]| -> (Vec<Uuid>, Vec<Uuid>) { users.iter().copied().unzip() };
        if !(self.marked.is_empty() && self.marked_again.is_empty()) {
            let (projects, users) = columns(&[self.marked.as_slice(), &self.marked_again].concat());
            // All of its rows are looked through once.
            let rows = sqlx::query(
                "INSERT INTO over_active_users (project_id, user_id, rows_max, experiments)
                 SELECT u.project_id, u.user_id, $3::bigint,
                        ARRAY (SELECT DISTINCT i.experiment_id FROM impressions i
                               WHERE i.project_id = u.project_id AND i.user_id = u.user_id AND i.experiment_id IS NOT NULL
                                 AND i.variant_id IS NOT NULL AND i.user_was_eligible IS NOT FALSE AND NOT i.is_bot
                                 AND NOT EXISTS (SELECT 1 FROM experiments e WHERE e.project_id = i.project_id AND e.id = i.experiment_id
                                                   AND to_jsonb(e) ->> 'exposure' IS NOT NULL)
                               ORDER BY 1)
                 FROM unnest($1::uuid[], $2::uuid[]) AS u (project_id, user_id)
                 ON CONFLICT (project_id, user_id) DO UPDATE SET rows_max = excluded.rows_max, experiments = excluded.experiments
                 RETURNING project_id, user_id, experiments",
            )
            .bind(projects)
            .bind(users)
            .bind(i64::try_from(rows_max).unwrap_or(i64::MAX))
            .fetch_all(&mut *connection)
            .await?;
            for row in rows {
                let (user, experiments): (User, Vec<Uuid>) = ((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?);
                if self.marked_late.contains(&user) {
                    self.behind.extend(experiments.into_iter().map(|experiment| (user, experiment)));
                }
            }
        }
        if !self.exposed.is_empty() {
            let users: Vec<User> = self.exposed.iter().map(|(user, _)| *user).collect();
            let (projects, users) = columns(&users);
            sqlx::query(
                "UPDATE over_active_users o
                 SET experiments = ARRAY (SELECT DISTINCT e FROM unnest(o.experiments || n.experiments) e ORDER BY 1)
                 FROM (SELECT project_id, user_id, array_agg(experiment_id) AS experiments
                       FROM unnest($1::uuid[], $2::uuid[], $3::uuid[]) AS n (project_id, user_id, experiment_id)
                       GROUP BY project_id, user_id) n
                 WHERE o.project_id = n.project_id AND o.user_id = n.user_id",
            )
            .bind(projects)
            .bind(users)
            .bind(self.exposed.iter().map(|(_, experiment)| *experiment).collect::<Vec<_>>())
            .execute(&mut *connection)
            .await?;
        }
        if !self.unmarked.is_empty() {
            let (projects, users) = columns(&self.unmarked);
            sqlx::query(
                "DELETE FROM over_active_users o USING unnest($1::uuid[], $2::uuid[]) AS n (project_id, user_id)
                 WHERE o.project_id = n.project_id AND o.user_id = n.user_id",
            )
            .bind(projects)
            .bind(users)
            .execute(connection)
            .await?;
        }
        Ok(&self.marked)
    }
}
