//! Participation and attribution of the users that new facts touch, recomputed from the raw rows of those users.
//!
//! Both tables are pure functions of raw rows and catalogue (`derive.rs`), so any order, batching or duplication of the same
//! records gives the same rows. What a commit writes is the difference between what the rows before it give and what the rows
//! with it give; a recomputation writes the difference between what the tables hold and what the rows give. Frozen experiments
//! are left alone: some of their rows may be gone. So are those that are being recomputed, but for a list of the touched users, which
//! the recomputation closes in the end, and those whose rules this version cannot read, but for a mark: `recompute.rs` brings them up to
//! date. Users with too many rows have no part (`over_active.rs`).

use std::collections::{BTreeMap, BTreeSet};

use catalogue::names::Standing;
use catalogue::{Catalogue, Rules};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::changes::{Changes, NewRows, Prepared, read_derived};
use crate::commit::derive::{Conversion, ConversionId, Derived};
use crate::commit::history::{Histories, User};
use crate::commit::over_active::{self, Marks, Verdict};

pub use crate::commit::changes::Differences;

/// How both tables followed a commit's facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// New conversions that stay without attribution.
    pub unattributed: u64,
    /// Users who have too many rows from now on.
    pub over_active: u64,
}

/// What new facts change in both tables.
pub(crate) struct Pending {
    changes: Prepared,
    marks: Marks,
    listed: BTreeSet<(Uuid, Uuid, Uuid)>,
    marked: BTreeSet<(Uuid, Uuid)>,
    followed: Followed,
}

/// Users are derived so many at a time, and then others of this task go on: a COPY whose bytes are to be sent waits no longer.
const DERIVED_AT_ONCE: usize = 200;

/// Brings both tables up to date with new facts, and adds these to `histories`, which was read before they were stored, for at least their
/// users.
pub(crate) async fn update(
    connection: &mut PgConnection,
    catalogue: &Catalogue,
    histories: &mut Histories,
    new: &[StagedRow<'_>],
    new_rows: NewRows,
) -> Result<Followed, sqlx::Error> {
    histories.add(new, &|project| catalogue.exposures(project));
    let left = listed_for_good(connection, catalogue, histories).await?;
    let pending = derive(catalogue, histories, &left, new_rows).await;
    write(connection, catalogue, histories.rows_max, pending).await
}

/// Derives what changes with the new facts in `histories`. Asks nothing of the database, so that it can run while Postgres stores them.
/// `left` are the users of [`listed_for_good`].
pub(crate) async fn derive(
    catalogue: &Catalogue,
    histories: &Histories,
    left: &BTreeSet<(Uuid, Uuid, Uuid)>,
    new_rows: NewRows,
) -> Pending {
    let mut changes = Changes::default();
    let mut followed = Followed::default();
    let mut marks = Marks::default();
    let (mut listed, mut marked) = (BTreeSet::new(), BTreeSet::new());
    for (number, (user, history)) in histories.iter().enumerate() {
        if number % DERIVED_AT_ONCE == DERIVED_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let verdict = marks.judge(user, history, histories.rows_max);
        let mut attributed: BTreeSet<ConversionId> = BTreeSet::new();
        for experiment in history.experiments().filter(|_| verdict != Verdict::LeftOut) {
            let rules = match catalogue.standing(user.0, experiment) {
                Standing::Current(rules) => rules,
                Standing::Closed(_) if left.contains(&(user.0, experiment, user.1)) => continue,
                Standing::Closed(rules) => rules,
                Standing::Left => continue,
                Standing::Recomputed => {
                    listed.insert((user.0, experiment, user.1));
                    continue;
                }
                Standing::Unsupported => {
                    marked.insert((user.0, experiment));
                    continue;
                }
            };
            let after = if verdict == Verdict::Passed {
                Derived::default()
            } else {
                history.after(experiment, rules, histories.rows_max)
            };
            attributed.extend(after.attributions.keys());
            changes.record(user, experiment, &history.before(experiment, rules, histories.rows_max), after);
        }
        let is_left = |conversion: &&Conversion| !attributed.contains(&conversion.identity());
        followed.unattributed += history.new_conversions().iter().filter(is_left).count() as u64;
    }
    Pending { changes: changes.prepare(new_rows), marks, listed, marked, followed }
}

/// Writes it, once the facts are stored.
pub(crate) async fn write(
    connection: &mut PgConnection,
    catalogue: &Catalogue,
    rows_max: usize,
    pending: Pending,
) -> Result<Followed, sqlx::Error> {
    let Pending { changes, mut marks, mut listed, mut marked, mut followed } = pending;
    changes.write(connection).await?;
    for (project, user) in marks.write(connection, rows_max).await? {
        followed.over_active += 1;
        tracing::warn!(%project, %user, rows_max, "a user has more rows than take part in experiments, and is left out");
    }
    for (user, experiment) in marks.behind {
        // A recomputation that goes on may have passed the user under the limit of before.
        match catalogue.standing(user.0, experiment) {
            Standing::Recomputed | Standing::Closed(_) => listed.insert((user.0, experiment, user.1)),
            Standing::Current(_) | Standing::Left | Standing::Unsupported => marked.insert((user.0, experiment)),
        };
    }
    mark(connection, &marked).await?;
    list(connection, &listed).await?;
    Ok(followed)
}

/// Marks experiments as behind; those that are marked stay as they are, and so do those that do not exist.
pub(crate) async fn mark(connection: &mut PgConnection, experiments: &BTreeSet<(Uuid, Uuid)>) -> Result<(), sqlx::Error> {
    if experiments.is_empty() {
        return Ok(());
    }
    let (projects, experiments): (Vec<Uuid>, Vec<Uuid>) = experiments.iter().copied().unzip();
    sqlx::query(
        "INSERT INTO experiments_behind (project_id, experiment_id, is_recomputed)
         SELECT e.project_id, e.id, false FROM unnest($1::uuid[], $2::uuid[]) AS n (project_id, id)
         JOIN experiments e ON e.project_id = n.project_id AND e.id = n.id
         ORDER BY 1, 2
         ON CONFLICT DO NOTHING",
    )
    .bind(projects)
    .bind(experiments)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns which users are on closed lists, by project, experiment and user, and keeps them there until the commit: the recomputation then sees
/// its facts. Waits for one that is computing some of them; whom it has computed is not on the list any more. In order, as [`list`].
pub(crate) async fn listed_for_good(
    connection: &mut PgConnection,
    catalogue: &Catalogue,
    histories: &Histories,
) -> Result<BTreeSet<(Uuid, Uuid, Uuid)>, sqlx::Error> {
    let mut asked: BTreeMap<(Uuid, Uuid), Vec<Uuid>> = BTreeMap::new();
    for (user, history) in histories.iter() {
        for experiment in history.experiments() {
            if let Standing::Closed(_) = catalogue.standing(user.0, experiment) {
                asked.entry((user.0, experiment)).or_default().push(user.1);
            }
        }
    }
    let mut found = BTreeSet::new();
    for ((project, experiment), users) in asked {
        let listed: Vec<Uuid> = sqlx::query_scalar(
            "SELECT user_id FROM users_behind WHERE project_id = $1 AND experiment_id = $2 AND user_id = ANY ($3)
             ORDER BY user_id FOR UPDATE",
        )
        .bind(project)
        .bind(experiment)
        .bind(users)
        .fetch_all(&mut *connection)
        .await?;
        found.extend(listed.into_iter().map(|user| (project, experiment, user)));
    }
    Ok(found)
}

/// Lists users for the recomputations of experiments. One that is listed already is locked, so that a recomputation does not take it off
/// the list before the facts that are stored with it can be seen. In order, as recomputations take them, so that nobody waits in a circle.
pub(crate) async fn list(connection: &mut PgConnection, users: &BTreeSet<(Uuid, Uuid, Uuid)>) -> Result<(), sqlx::Error> {
    if users.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO users_behind (project_id, experiment_id, user_id)
         SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[])
         ON CONFLICT (project_id, experiment_id, user_id) DO UPDATE SET user_id = excluded.user_id",
    )
    .bind(users.iter().map(|(project, ..)| *project).collect::<Vec<_>>())
    .bind(users.iter().map(|(_, experiment, _)| *experiment).collect::<Vec<_>>())
    .bind(users.iter().map(|(.., user)| *user).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Brings both tables up to date for some users of one experiment. No commit writes its rows meanwhile.
pub(crate) async fn follow_users(
    connection: &mut PgConnection,
    (project, experiment): (Uuid, Uuid),
    rules: &Rules,
    users: &[Uuid],
) -> Result<Differences, sqlx::Error> {
    let users: Vec<User> = users.iter().map(|user| (project, *user)).collect();
    let rows_max = over_active::rows_max(connection).await?;
    // Of other experiments nothing is asked.
    let exposures = catalogue::rules::exposures(std::iter::once((experiment, rules)));
    let histories = Histories::of_users(connection, users.iter().copied(), rows_max, &|_| &exposures).await?;
    let mut stored = read_derived(connection, experiment, &users).await?;
    let mut changes = Changes::default();
    for (user, history) in histories.iter() {
        let after =
            if history.is_over_active(rows_max) { Derived::default() } else { history.after(experiment, rules, rows_max) };
        changes.record(user, experiment, &stored.remove(&user).unwrap_or_default(), after);
    }
    changes.prepare(NewRows::Upserted).write(connection).await
}
