//! Participation and attribution of the users that new facts touch, recomputed from the raw rows of those users.
//!
//! Both tables are pure functions of raw rows and catalogue (`derive.rs`), so any order, batching or duplication of the same
//! records gives the same rows. What a commit writes is the difference between what the rows before it give and what the rows
//! with it give; a recomputation writes the difference between what the tables hold and what the rows give. Frozen experiments
//! are left alone: some of their rows may be gone.

use std::collections::BTreeSet;

use catalogue::{Catalogue, ReadError, rules};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::commit::changes::{Changes, read_derived};
use crate::commit::derive::{Conversion, ConversionId};
use crate::commit::history::{Histories, User};

pub use crate::commit::changes::Differences;

/// Users whose rows are in memory at once when an experiment is recomputed.
const USERS_AT_ONCE: usize = 20_000;

/// Brings both tables up to date with new facts. `histories` was read before these were stored, for at least their users.
/// Returns the number of new conversions that stay without attribution.
pub(crate) async fn update(
    connection: &mut PgConnection,
    catalogue: &Catalogue,
    mut histories: Histories,
    new: &[StagedRow<'_>],
) -> Result<u64, sqlx::Error> {
    histories.add(new);
    let mut changes = Changes::default();
    let mut unattributed = 0;
    for (user, history) in histories.iter() {
        let mut attributed: BTreeSet<ConversionId> = BTreeSet::new();
        for experiment in history.experiments() {
            let Some(rules) = catalogue.rules(user.0, experiment).filter(|rules| !rules.is_frozen) else { continue };
            let after = history.after(experiment, rules);
            attributed.extend(after.attributions.keys());
            changes.record(user, experiment, &history.before(experiment, rules), after);
        }
        let is_left = |conversion: &&Conversion| !attributed.contains(&conversion.identity());
        unattributed += history.new_conversions().iter().filter(is_left).count() as u64;
    }
    changes.write(connection).await?;
    Ok(unattributed)
}

/// Brings both tables up to date for one whole experiment: every user who has a raw impression of it, or a row that may
/// have to go. The caller holds all checkpoints and the catalogue.
pub(crate) async fn follow_experiment(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Differences, ReadError> {
    let Some(rules) = rules::read(connection, project, experiment).await? else { return Ok(Differences::default()) };
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
    let mut differences = Differences::default();
    for users in users.chunks(USERS_AT_ONCE) {
        let users: Vec<User> = users.iter().map(|user| (project, *user)).collect();
        let histories = Histories::of_users(connection, users.iter().copied()).await?;
        let mut stored = read_derived(connection, experiment, &users).await?;
        let mut changes = Changes::default();
        for (user, history) in histories.iter() {
            changes.record(user, experiment, &stored.remove(&user).unwrap_or_default(), history.after(experiment, &rules));
        }
        let written = changes.write(connection).await?;
        differences.participation += written.participation;
        differences.attribution += written.attribution;
    }
    Ok(differences)
}
