//! Experiments: made, with what was waiting for them; started, stopped and computed again.

use catalogue::experiments::{self, Experiment, NewExperiment, NewVariant, StatusChange};
use catalogue::{CatalogueError, Change, Project};
use serde_json::json;
use sqlx::PgConnection;

use super::{AdminError, dead_letters};
use crate::recompute::{self, Differences};

/// What a creation did.
#[derive(Clone, Debug)]
pub struct Created {
    /// The experiment.
    pub experiment: Experiment,
    /// Dead letters that were waiting for it: the aggregator will append them again.
    pub dead_letters: u64,
}

/// What a change did.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The experiment as it is now.
    pub experiment: Experiment,
    /// Rows of participation and attribution that differ from before; `None`: it was in that state already, nothing changed.
    pub recomputed: Option<Differences>,
}

/// Makes an experiment, and has the dead letters replayed that were waiting for it.
/// # Errors
/// [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn create(conn: &mut PgConnection, project: &Project, new: &NewExperiment) -> Result<Created, CatalogueError> {
    let mut change = Change::begin(conn, project).await?;
    let experiment = experiments::insert(&mut change, new).await?;
    let names = [experiment.name.clone(), experiment.id.to_string()];
    let mut waiting = dead_letters::replay_for(change.connection(), project.id, "unknown_experiment", &names).await?;
    let variants: Vec<_> = experiment.variants.iter().map(|variant| variant.name.clone()).collect();
    waiting += dead_letters::replay_for_variants(change.connection(), project.id, &experiment, &variants).await?;
    let details = json!({
        "id": experiment.id,
        "status": experiment.status,
        "variants": experiment.variants,
        "metrics": experiment.metrics,
        "dead_letters": waiting,
    });
    change.commit("experiment.create", &new.name, &details).await?;
    Ok(Created { experiment, dead_letters: waiting })
}

/// Adds a variant to an experiment, and has the dead letters replayed that were waiting for it. It is never the control;
/// it has a weight exactly if the others have. Rows that are stored keep their meaning.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn add_variant(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    new: &NewVariant,
) -> Result<Created, CatalogueError> {
    let mut change = Change::begin(conn, project).await?;
    let experiment = experiments::add_variant(&mut change, name, new).await?;
    let names = [new.name.clone()];
    let waiting = dead_letters::replay_for_variants(change.connection(), project.id, &experiment, &names).await?;
    let details = json!({ "id": experiment.id, "variant": new.name, "weight": new.weight, "dead_letters": waiting });
    change.commit("experiment.add_variant", &experiment.name, &details).await?;
    Ok(Created { experiment, dead_letters: waiting })
}

/// Lets an experiment run: a draft from now on, a paused one again, a completed one as if it had never been stopped.
/// A running one stays as it is, also where it has no start.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for an archived one.
pub async fn start(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    let mut change = begin(conn, project).await?;
    let status = experiments::start(&mut change, name).await?;
    change_status(change, status, "experiment.start").await
}

/// Ends an experiment now: later exposures do not count, conversions within the window of earlier ones do.
/// A completed one stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for a draft or an archived one.
pub async fn stop(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    let mut change = begin(conn, project).await?;
    let status = experiments::stop(&mut change, name).await?;
    change_status(change, status, "experiment.stop").await
}

/// Computes participation and attribution of an experiment again, from the raw rows, and reports what differed.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`AdminError::Recompute`].
pub async fn recompute(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    let mut change = begin(conn, project).await?;
    let experiment = experiments::show(change.connection(), project, name).await?;
    experiment.refuse_frozen()?;
    let differences = compute_again(&mut change, &experiment).await?;
    let details =
        json!({ "id": experiment.id, "participation": differences.participation, "attribution": differences.attribution });
    // Rows changed without new facts: by the version, which the commit raises, whoever follows facts reads all of them again.
    change.commit("experiment.recompute", &experiment.name, &details).await?;
    Ok(Changed { experiment, recomputed: Some(differences) })
}

/// Begins a change that changes the meaning of stored rows: nothing is stored meanwhile.
async fn begin<'c>(conn: &'c mut PgConnection, project: &Project) -> Result<Change<'c>, sqlx::Error> {
    let mut transaction = catalogue::change::begin(conn).await?;
    recompute::lock_checkpoints(&mut transaction).await?;
    Change::within(transaction, project).await
}

/// Brings the experiment's rows up to date with its new status.
async fn change_status(mut change: Change<'_>, status: StatusChange, action: &str) -> Result<Changed, AdminError> {
    if !status.is_change() {
        return Ok(Changed { experiment: status.after, recomputed: None });
    }
    let differences = compute_again(&mut change, &status.after).await?;
    change.commit(action, &status.after.name, &status.details()).await?;
    Ok(Changed { experiment: status.after, recomputed: Some(differences) })
}

async fn compute_again(change: &mut Change<'_>, experiment: &Experiment) -> Result<Differences, AdminError> {
    let project = change.project().id;
    recompute::recompute_locked(change.connection(), project, experiment.id)
        .await
        .map_err(|source| AdminError::Recompute { name: experiment.name.clone(), source })
}
