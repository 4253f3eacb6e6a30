//! Experiments: made, with what was waiting for them; started, paused, stopped, given weights and computed again.

use catalogue::experiments::{self, Assignment, Experiment, NewExperiment, NewVariant, StatusChange};
use catalogue::{CatalogueError, Change, Project, behind};
use events::Micros;
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
    /// Rows of participation and attribution that differ from before; `None`: no row changed its meaning, as where it was in that state
    /// already.
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

/// Adds a variant to an experiment, from `from` on, now if not said, and has the dead letters replayed that were waiting for it. It is never
/// the control; it has a weight exactly if the others have. Rows that are stored keep their meaning, but where the experiment has a definition
/// of what exposes users: then an aggregator recomputes it.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn add_variant(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    new: &NewVariant,
    from: Option<Micros>,
) -> Result<Created, CatalogueError> {
    if let Some(created) = add_variant_alone(conn, project, name, new, from, false).await? {
        return Ok(created);
    }
    let experiment = experiments::show(conn, project, name).await?.id;
    behind::lock(conn, experiment).await?;
    let outcome = add_variant_alone(conn, project, name, new, from, true).await;
    behind::unlock(conn, experiment).await;
    // Nothing but the lock was missing.
    outcome?.ok_or_else(|| CatalogueError::Database(sqlx::Error::RowNotFound))
}

/// Returns nothing, and changes nothing, if the experiment has a definition of what exposes users and is not locked for a recomputation: its
/// mark could be lost.
async fn add_variant_alone(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    new: &NewVariant,
    from: Option<Micros>,
    is_locked: bool,
) -> Result<Option<Created>, CatalogueError> {
    let mut change = Change::begin(conn, project).await?;
    let experiment = experiments::add_variant(&mut change, name, new, from).await?;
    if experiment.exposure.is_some() {
        if !is_locked {
            return Ok(None);
        }
        // Stored events may be exposures to it: an aggregator computes them anew.
        behind::mark(change.connection(), project.id, experiment.id).await?;
    }
    let names = [new.name.clone()];
    let waiting = dead_letters::replay_for_variants(change.connection(), project.id, &experiment, &names).await?;
    let details = json!({ "id": experiment.id, "variant": new.name, "weight": new.weight, "dead_letters": waiting });
    change.commit("experiment.add_variant", &experiment.name, &details).await?;
    Ok(Some(Created { experiment, dead_letters: waiting }))
}

/// Changes the weights of all variants, from `from` on, now if not said. Rows that are stored keep their meaning, but where users are assigned
/// anew.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`], [`CatalogueError::Invalid`]: nothing is changed.
/// [`AdminError::Recompute`]: the change is made, and an aggregator goes on with the rows.
pub async fn set_weights(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    weights: &[NewVariant],
    from: Option<Micros>,
    assignment: Assignment,
) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Weights(weights, from, assignment)).await
}

/// Says what exposes users: a definition of the project and its version, the newest if none is asked for; `None`: impressions that name the
/// experiment and a variant.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`]: nothing is changed. [`AdminError::Recompute`]: the change is made, and an
/// aggregator goes on with the rows.
pub async fn set_exposure(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    exposure: Option<(&str, Option<i32>)>,
) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Exposure(exposure)).await
}

/// Lets an experiment run from `from` on, now if not said: a draft, or a paused or completed one again, so that exposures in between go on not
/// counting, with its users as they were or assigned anew. A running one stays as it is, also where it has no start.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for an archived one: nothing is changed.
/// [`AdminError::Recompute`]: the change is made, and an aggregator goes on with the rows.
pub async fn start(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    assignment: Assignment,
    from: Option<Micros>,
) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Start(assignment, from)).await
}

/// Lets exposures begin no participation from `from` on, now if not said; conversions within the window of earlier ones count. A paused one stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for one that does not run: nothing is changed.
/// [`AdminError::Recompute`]: the change is made, and an aggregator goes on with the rows.
pub async fn pause(conn: &mut PgConnection, project: &Project, name: &str, from: Option<Micros>) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Pause(from)).await
}

/// Ends an experiment now: later exposures do not count, conversions within the window of earlier ones do.
/// A completed one stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for a draft or an archived one: nothing is
/// changed. [`AdminError::Recompute`]: the change is made, and an aggregator goes on with the rows.
pub async fn stop(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Stop).await
}

/// Computes participation and attribution of an experiment again, from the raw rows, and reports what differed.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`AdminError::Recompute`].
pub async fn recompute(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    change(conn, project, name, What::Nothing).await
}

/// What changes the meaning of an experiment's rows, if anything does.
#[derive(Clone, Copy)]
enum What<'a> {
    Weights(&'a [NewVariant], Option<Micros>, Assignment),
    Start(Assignment, Option<Micros>),
    Pause(Option<Micros>),
    Stop,
    Exposure(Option<(&'a str, Option<i32>)>),
    Nothing,
}

async fn change(conn: &mut PgConnection, project: &Project, name: &str, what: What<'_>) -> Result<Changed, AdminError> {
    let experiment = experiments::show(conn, project, name).await?.id;
    behind::lock(conn, experiment).await?;
    let outcome = change_alone(conn, project, name, what).await;
    behind::unlock(conn, experiment).await;
    outcome
}

/// First the change, with the mark that has commits leave the rows alone, in a transaction that looks at nothing but the catalogue; then
/// the rows, beside the stream.
async fn change_alone(conn: &mut PgConnection, project: &Project, name: &str, what: What<'_>) -> Result<Changed, AdminError> {
    let mut change = Change::begin(conn, project).await?;
    let of_status = |status: StatusChange, action| {
        let details = status.is_change().then(|| status.details());
        (status.after, details, true, action)
    };
    // The experiment as it is then, what the audit notes if anything changed, and whether rows change their meaning by it.
    let (experiment, details, is_recomputed, action) = match what {
        What::Start(assignment, from) => {
            of_status(experiments::start(&mut change, name, assignment, from).await?, "experiment.start")
        }
        What::Pause(from) => of_status(experiments::pause(&mut change, name, from).await?, "experiment.pause"),
        What::Stop => of_status(experiments::stop(&mut change, name).await?, "experiment.stop"),
        What::Weights(weights, from, assignment) => {
            let experiment = experiments::set_weights(&mut change, name, weights, from, assignment).await?;
            let details = json!({ "id": experiment.id, "variants": experiment.variants, "phases": experiment.phases });
            (experiment, Some(details), assignment == Assignment::Anew, "experiment.weights")
        }
        What::Exposure(exposure) => {
            let (before, after) = experiments::set_exposure(&mut change, name, exposure).await?;
            let is_change = before.exposure != after.exposure;
            let details = json!({ "id": after.id, "before": before.exposure, "after": after.exposure });
            (after, is_change.then_some(details), true, "experiment.exposure")
        }
        What::Nothing => {
            let experiment = experiments::show(change.connection(), project, name).await?;
            experiment.refuse_frozen()?;
            let details = json!({ "id": experiment.id });
            (experiment, Some(details), true, "experiment.recompute")
        }
    };
    let Some(details) = details else { return Ok(Changed { experiment, recomputed: None }) };
    if is_recomputed {
        behind::mark(change.connection(), project.id, experiment.id).await?;
    }
    change.commit(action, &experiment.name, &details).await?;
    if !is_recomputed {
        return Ok(Changed { experiment, recomputed: None });
    }
    let differences = recompute::catch_up(conn, project.id, experiment.id).await;
    let differences = differences.map_err(|source| AdminError::Recompute { name: experiment.name.clone(), source })?;
    Ok(Changed { experiment, recomputed: Some(differences) })
}
