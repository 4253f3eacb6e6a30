//! Changes of experiments: made, started, stopped, given variants and metrics.
//!
//! What may set dead letters free or change the meaning of stored rows is a step of a [`Change`], which the aggregator makes
//! together with its own part. The rest is done here as a whole.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::new::check_variants;
use super::{Experiment, NewExperiment, NewVariant, Variant, load, show};
use crate::CatalogueError;
use crate::change::Change;
use crate::metrics::{self, METRICS_MAX, NewMetric};
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::vocabulary::ExperimentStatus::{self, Archived, Completed, Draft, Running};

/// Stores a new experiment.
/// # Errors
/// [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn insert(change: &mut Change<'_>, new: &NewExperiment) -> Result<Experiment, CatalogueError> {
    new.check()?;
    let project = change.project().id;
    let connection = change.connection();
    let taken: Option<Uuid> = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1 AND name = $2")
        .bind(project)
        .bind(&new.name)
        .fetch_optional(&mut *connection)
        .await?;
    if let Some(id) = taken {
        return Err(CatalogueError::NameTaken { what: "experiment", name: new.name.clone(), id });
    }
    let status = if new.start { Running } else { Draft };
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO experiments (project_id, name, description, status, started_at, target_sample_size, confidence_level, \
             minimum_detectable_effect, conversion_window_days, attribution_method, currency) \
         VALUES ($1, $2, $3, $4, CASE WHEN $4 = 'running' THEN coalesce($5, now()) END, $6, coalesce($7::numeric, 0.95), \
             coalesce($8::numeric, 0.05), coalesce($9, 30), coalesce($10, 'first_exposure'), $11) \
         RETURNING id",
    )
    .bind(project)
    .bind(&new.name)
    .bind(&new.description)
    .bind(status)
    .bind(new.started_at.map(Timestamp))
    .bind(new.target_sample_size)
    .bind(&new.confidence_level)
    .bind(&new.minimum_detectable_effect)
    .bind(new.conversion_window_days)
    .bind(new.attribution_method)
    .bind(&new.currency)
    .fetch_one(&mut *connection)
    .await?;
    for variant in &new.variants {
        insert_variant(connection, project, id, variant).await?;
    }
    for metric in &new.metrics {
        metrics::insert(connection, project, id, metric).await?;
    }
    load(connection, project, id).await
}

async fn insert_variant(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    new: &NewVariant,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO variants (project_id, experiment_id, name, is_control, weight) VALUES ($1, $2, $3, $4, $5::numeric)",
    )
    .bind(project)
    .bind(experiment)
    .bind(&new.name)
    .bind(new.is_control)
    .bind(&new.weight)
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds a variant to an experiment. It is never the control; it has a weight exactly if the others have. Rows that are stored
/// keep their meaning.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn add_variant(change: &mut Change<'_>, name: &str, new: &NewVariant) -> Result<Experiment, CatalogueError> {
    let project = change.project().clone();
    let connection = change.connection();
    let before = show(connection, &project, name).await?;
    before.refuse_frozen()?;
    if let Some(other) = before.variants.iter().find(|variant| variant.name == new.name) {
        return Err(CatalogueError::NameTaken { what: "variant", name: new.name.clone(), id: other.id });
    }
    if new.is_control {
        return Err(CatalogueError::invalid(
            "variant",
            "found a control; what the others are compared with is chosen at the start",
        ));
    }
    // It is checked among the others, as it would have been from the start.
    let as_new = |variant: &Variant| NewVariant {
        name: variant.name.clone(),
        weight: variant.weight.map(|weight| weight.to_string()),
        is_control: variant.is_control,
    };
    let variants: Vec<NewVariant> = before.variants.iter().map(as_new).chain([new.clone()]).collect();
    check_variants(&variants)?;
    insert_variant(connection, project.id, before.id, new).await?;
    load(connection, project.id, before.id).await
}

/// A change of status: the experiment as it was and as it is.
#[derive(Clone, Debug)]
pub struct StatusChange {
    /// Before.
    pub before: Experiment,
    /// Now; equal to before if it was in that state already.
    pub after: Experiment,
}

impl StatusChange {
    /// Returns whether anything was changed.
    pub fn is_change(&self) -> bool {
        self.before.status != self.after.status
    }

    /// Returns what the audit notes.
    pub fn details(&self) -> serde_json::Value {
        let state = |experiment: &Experiment| {
            let time = |time: Option<events::Micros>| time.map(|time| time.to_string());
            json!({
                "status": experiment.status,
                "started_at": time(experiment.started_at),
                "ended_at": time(experiment.ended_at),
            })
        };
        json!({ "id": self.after.id, "before": state(&self.before), "after": state(&self.after) })
    }
}

/// Lets an experiment run: a draft from now on, a paused one again, a completed one as if it had never been stopped.
/// A running one stays as it is, also where it has no start.
///
/// Stored rows change their meaning: the caller marks the experiment in the same change, and recomputes it.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for an archived one.
pub async fn start(change: &mut Change<'_>, name: &str) -> Result<StatusChange, CatalogueError> {
    change_status(change, name, |before| match before {
        Archived => Err("only a draft, paused or completed one is started"),
        Running => Ok(None),
        // What has run without a start time, such as a registered one that was paused, keeps its early exposures.
        Draft => Ok(Some(
            "UPDATE experiments SET status = 'running', started_at = coalesce(started_at, now()), ended_at = NULL, \
                 updated_at = now() WHERE project_id = $1 AND id = $2",
        )),
        ExperimentStatus::Paused | Completed => Ok(Some(
            "UPDATE experiments SET status = 'running', ended_at = NULL, updated_at = now() WHERE project_id = $1 AND id = $2",
        )),
    })
    .await
}

/// Ends an experiment now: later exposures do not count, conversions within the window of earlier ones do.
/// A completed one stays as it is. The caller's duties are those of [`start`].
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for a draft or an archived one.
pub async fn stop(change: &mut Change<'_>, name: &str) -> Result<StatusChange, CatalogueError> {
    change_status(change, name, |before| match before {
        Draft => Err("it was never started, so there is nothing to end"),
        Archived => Err("only a running or paused one is stopped"),
        Completed => Ok(None),
        Running | ExperimentStatus::Paused => Ok(Some(
            "UPDATE experiments SET status = 'completed', ended_at = now(), updated_at = now() \
             WHERE project_id = $1 AND id = $2",
        )),
    })
    .await
}

/// `statement`: the one that makes the change from a status, none where there is nothing to do, or why it is refused.
async fn change_status(
    change: &mut Change<'_>,
    name: &str,
    statement: impl FnOnce(ExperimentStatus) -> Result<Option<&'static str>, &'static str>,
) -> Result<StatusChange, CatalogueError> {
    let project = change.project().clone();
    let connection = change.connection();
    let before = show(connection, &project, name).await?;
    before.refuse_frozen()?;
    let statement = statement(before.status).map_err(|accepted| CatalogueError::WrongState {
        subject: format!("experiment {:?}", before.name),
        found: before.status.to_string(),
        accepted: accepted.into(),
    })?;
    let Some(statement) = statement else { return Ok(StatusChange { after: before.clone(), before }) };
    sqlx::query(statement).bind(project.id).bind(before.id).execute(&mut *connection).await?;
    let after = load(connection, project.id, before.id).await?;
    Ok(StatusChange { before, after })
}

/// Adds a metric. The first one takes the place of the usual ones: all conversions, and each name by itself.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`], [`CatalogueError::WrongState`] if there is one of that name.
pub async fn add_metric(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    new: &NewMetric,
) -> Result<Experiment, CatalogueError> {
    new.check("")?;
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    if before.metrics.iter().any(|metric| metric.name == new.name) {
        return Err(CatalogueError::WrongState {
            subject: format!("metric {:?}", new.name),
            found: "there already".into(),
            accepted: "choose another name, or remove it first".into(),
        });
    }
    if before.metrics.len() >= METRICS_MAX {
        return Err(CatalogueError::invalid("metrics", format!("there are {METRICS_MAX}; no more are accepted")));
    }
    metrics::insert(change.connection(), project.id, before.id, new).await?;
    let after = load(change.connection(), project.id, before.id).await?;
    let metric = after.metrics.iter().find(|metric| metric.name == new.name);
    change.commit("metric.create", &after.name, &json!({ "id": after.id, "metric": metric })).await?;
    Ok(after)
}

/// Removes a metric. Rows stay as they are, and a metric of the same name may be added again.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn remove_metric(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    metric: &str,
) -> Result<Experiment, CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    let Some(removed) = before.metrics.iter().find(|found| found.name == metric) else {
        let names: Vec<String> = before.metrics.iter().map(|metric| metric.name.clone()).take(11).collect();
        return Err(CatalogueError::unknown("metric", metric, format!("experiment {:?}", before.name), &names));
    };
    sqlx::query("DELETE FROM metrics WHERE project_id = $1 AND experiment_id = $2 AND name = $3")
        .bind(project.id)
        .bind(before.id)
        .bind(metric)
        .execute(change.connection())
        .await?;
    let after = load(change.connection(), project.id, before.id).await?;
    change.commit("metric.remove", &after.name, &json!({ "id": before.id, "metric": removed })).await?;
    Ok(after)
}
