//! Changes of experiments: made, started, paused, stopped, given variants, weights and metrics.
//!
//! What may set dead letters free or change the meaning of stored rows is a step of a [`Change`], which the aggregator makes
//! together with its own part. The rest is done here as a whole.

use events::Micros;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::new::check_variants;
use super::phases::Assignment;
use super::{Experiment, NewExperiment, NewVariant, Variant, VariantDetails, load, phases, show};
use crate::change::Change;
use crate::exposures::ExposureDefinition;
use crate::metrics::{self, METRICS_MAX, NewMetric};
use crate::policy::Policy;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::trigger::Trigger;
use crate::versions;
use crate::vocabulary::ExperimentStatus::{Archived, Completed, Draft, Paused, Running};
use crate::vocabulary::PhaseState;
use crate::{CatalogueError, check};

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
             minimum_detectable_effect, conversion_window_days, attribution_method, currency, trigger, policy) \
         VALUES ($1, $2, $3, $4, CASE WHEN $4 = 'running' THEN coalesce($5, now()) END, $6, coalesce($7::numeric, 0.95), \
             coalesce($8::numeric, 0.05), coalesce($9, 30), coalesce($10, 'first_exposure'), $11, $12::jsonb, $13::jsonb) \
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
    .bind(new.trigger.as_ref().map(trigger_text).transpose()?)
    .bind(new.policy.as_ref().map(policy_text).transpose()?)
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
        "INSERT INTO variants (project_id, experiment_id, name, is_control, weight, description, config_json) \
         VALUES ($1, $2, $3, $4, $5::numeric, $6, $7::jsonb)",
    )
    .bind(project)
    .bind(experiment)
    .bind(&new.name)
    .bind(new.is_control)
    .bind(&new.weight)
    .bind(&new.details.description)
    .bind(&new.details.config_json)
    .execute(connection)
    .await?;
    Ok(())
}

fn trigger_text(trigger: &Trigger) -> Result<String, CatalogueError> {
    serde_json::to_string(trigger).map_err(|error| CatalogueError::invalid("trigger", error.to_string()))
}

/// Says what begins the analysis of a user; `None`: the exposure. No stored row changes its meaning with it.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`].
pub async fn set_trigger(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    trigger: Option<&Trigger>,
) -> Result<Experiment, CatalogueError> {
    trigger.map_or(Ok(()), Trigger::check)?;
    let text = trigger.map(trigger_text).transpose()?;
    let assignment = "trigger = $3::jsonb";
    let details = |before: &Experiment, after: &Experiment| json!({ "before": before.trigger, "after": after.trigger });
    set(connection, project, name, (assignment, text), ("experiment.trigger", details)).await
}

/// Says what exposes users: a definition of the project and its version, the newest if none is asked for; `None`: impressions that name the
/// experiment and a variant. Returns the experiment as it was and as it is.
///
/// Stored rows change their meaning: the caller's duties are those of [`start`].
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`].
pub async fn set_exposure(
    change: &mut Change<'_>,
    name: &str,
    exposure: Option<(&str, Option<i32>)>,
) -> Result<(Experiment, Experiment), CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    let connection = change.connection();
    let version = match exposure {
        None => None,
        Some((name, version)) => {
            Some(versions::version_of::<ExposureDefinition>(&mut *connection, project, name, version).await?)
        }
    };
    let update =
        "UPDATE experiments SET exposure = $3, exposure_version = $4, updated_at = now() WHERE project_id = $1 AND id = $2";
    let update = sqlx::query(update).bind(project).bind(before.id).bind(exposure.map(|(name, _)| name)).bind(version);
    update.execute(&mut *connection).await?;
    let after = load(connection, project, before.id).await?;
    Ok((before, after))
}

/// Says how an experiment decides, and what follows. No stored row changes its meaning with it.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`].
pub async fn set_policy(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    policy: &Policy,
) -> Result<Experiment, CatalogueError> {
    policy.check()?;
    let text = if policy.is_usual() { None } else { Some(policy_text(policy)?) };
    let assignment = "policy = $3::jsonb";
    let details = |before: &Experiment, after: &Experiment| json!({ "before": before.policy, "after": after.policy });
    set(connection, project, name, (assignment, text), ("experiment.policy", details)).await
}

fn policy_text(policy: &Policy) -> Result<String, CatalogueError> {
    serde_json::to_string(policy).map_err(|error| CatalogueError::invalid("policy", error.to_string()))
}

/// Sets one column of an experiment by which no stored row changes its meaning, and notes it in the audit.
async fn set(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    (assignment, value): (&'static str, Option<String>),
    (action, details): (&str, impl Fn(&Experiment, &Experiment) -> serde_json::Value),
) -> Result<Experiment, CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    let update = format!("UPDATE experiments SET {assignment}, updated_at = now() WHERE project_id = $1 AND id = $2");
    sqlx::query(sqlx::AssertSqlSafe(update)).bind(project.id).bind(before.id).bind(value).execute(change.connection()).await?;
    let after = load(change.connection(), project.id, before.id).await?;
    let mut details = details(&before, &after);
    details["id"] = json!(after.id);
    change.commit(action, &after.name, &details).await?;
    Ok(after)
}

/// Says what an experiment is about.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`].
pub async fn describe(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    text: &str,
) -> Result<Experiment, CatalogueError> {
    check::description("description", Some(text))?;
    let assignment = "description = $3";
    let details = |before: &Experiment, after: &Experiment| json!({ "before": before.description, "after": after.description });
    set(connection, project, name, (assignment, Some(text.to_owned())), ("experiment.describe", details)).await
}

/// Says what a variant has for people and for clients; what is `None` stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`].
pub async fn describe_variant(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    variant: &str,
    details: &VariantDetails,
) -> Result<Experiment, CatalogueError> {
    details.check("")?;
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    let Some(described) = before.variants.iter().find(|found| found.name == variant) else {
        let names: Vec<String> = before.variants.iter().map(|variant| variant.name.clone()).take(11).collect();
        return Err(CatalogueError::unknown("variant", variant, format!("experiment {:?}", before.name), &names));
    };
    sqlx::query(
        "UPDATE variants SET description = coalesce($4, description), config_json = coalesce($5::jsonb, config_json), updated_at = now() \
         WHERE project_id = $1 AND experiment_id = $2 AND id = $3",
    )
    .bind(project.id)
    .bind(before.id)
    .bind(described.id)
    .bind(&details.description)
    .bind(&details.config_json)
    .execute(change.connection())
    .await?;
    let after = load(change.connection(), project.id, before.id).await?;
    let now = after.variants.iter().find(|found| found.name == variant);
    change.commit("variant.describe", &after.name, &json!({ "id": after.id, "before": described, "after": now })).await?;
    Ok(after)
}

/// Adds a variant to an experiment, from `from` on, now if not said: in one that runs that begins a phase. It is never the control; it
/// has a weight exactly if the others have. Rows that are stored keep their meaning.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::Invalid`], [`CatalogueError::NameTaken`].
pub async fn add_variant(
    change: &mut Change<'_>,
    name: &str,
    new: &NewVariant,
    from: Option<Micros>,
) -> Result<Experiment, CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    let connection = change.connection();
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
        ..NewVariant::default()
    };
    let variants: Vec<NewVariant> = before.variants.iter().map(as_new).chain([new.clone()]).collect();
    check_variants(&variants)?;
    if before.status == Running {
        let at = phases::turn(connection, &before, from).await?;
        phases::end_last(connection, project, &before, at).await?;
        insert_variant(connection, project, before.id, new).await?;
        phases::begin_next(connection, project, &before, (PhaseState::Assigning, Assignment::Kept), at).await?;
    } else {
        refuse_time(&before, from)?;
        insert_variant(connection, project, before.id, new).await?;
    }
    load(connection, project, before.id).await
}

/// Changes the weights of all variants, from `from` on, now if not said: in an experiment that runs that begins a phase; in a draft or a
/// paused one they are those of the next start.
///
/// Stored rows keep their meaning, but where users are assigned anew: then the caller's duties are those of [`start`].
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`], [`CatalogueError::Invalid`].
pub async fn set_weights(
    change: &mut Change<'_>,
    name: &str,
    weights: &[NewVariant],
    from: Option<Micros>,
    assignment: Assignment,
) -> Result<Experiment, CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    let connection = change.connection();
    if matches!(before.status, Completed | Archived) {
        return Err(wrong_state(&before, "only a draft, running or paused one gets other weights"));
    }
    check_weights(&before, weights)?;
    if assignment == Assignment::Anew && before.status != Running {
        return Err(wrong_state(&before, "only the users of a running one are assigned anew; a paused one has its start do it"));
    }
    let at = match before.status {
        Running => Some(phases::turn(connection, &before, from).await?),
        _ => refuse_time(&before, from).map(|()| None)?,
    };
    if let Some(at) = at {
        phases::end_last(connection, project, &before, at).await?;
    }
    for variant in weights {
        sqlx::query("UPDATE variants SET weight = $4::numeric WHERE project_id = $1 AND experiment_id = $2 AND name = $3")
            .bind(project)
            .bind(before.id)
            .bind(&variant.name)
            .bind(&variant.weight)
            .execute(&mut *connection)
            .await?;
    }
    if let Some(at) = at {
        phases::begin_next(connection, project, &before, (PhaseState::Assigning, assignment), at).await?;
    }
    load(connection, project, before.id).await
}

/// Checks that each variant has a new weight, as it would be checked at the start.
fn check_weights(experiment: &Experiment, weights: &[NewVariant]) -> Result<(), CatalogueError> {
    check_variants(weights)?;
    let names = || experiment.variants.iter().map(|variant| variant.name.as_str()).collect::<Vec<_>>().join(", ");
    for (index, given) in weights.iter().enumerate() {
        let fault = |found: String| Err(CatalogueError::invalid(format!("variants[{index}]"), found));
        if !experiment.variants.iter().any(|variant| variant.name == given.name) {
            return fault(format!("found {:?}; the experiment has {}", given.name, names()));
        }
        if given.is_control {
            return fault("found a control; what the others are compared with is chosen at the start".to_owned());
        }
        if given.weight.is_none() {
            return fault(format!("found {:?} without a weight; NAME:WEIGHT is accepted", given.name));
        }
    }
    if weights.len() < experiment.variants.len() {
        let found = format!("found weights of {} variants; each of {} needs one, 0 if it gets no users", weights.len(), names());
        return Err(CatalogueError::invalid("variants", found));
    }
    Ok(())
}

/// Only what runs has a phase that could have ended earlier.
fn refuse_time(experiment: &Experiment, from: Option<Micros>) -> Result<(), CatalogueError> {
    match from {
        None => Ok(()),
        Some(from) => {
            let found =
                format!("found {from}, but the experiment is {}; a time is accepted for a running one", experiment.status);
            Err(CatalogueError::invalid("from", found))
        }
    }
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

    fn none(experiment: Experiment) -> Self {
        StatusChange { before: experiment.clone(), after: experiment }
    }

    /// Returns what the audit notes.
    pub fn details(&self) -> serde_json::Value {
        let state = |experiment: &Experiment| {
            let time = |time: Option<events::Micros>| time.map(|time| time.to_string());
            json!({
                "status": experiment.status,
                "started_at": time(experiment.started_at),
                "ended_at": time(experiment.ended_at),
                "phases": experiment.phases,
            })
        };
        json!({ "id": self.after.id, "before": state(&self.before), "after": state(&self.after) })
    }
}

/// Lets an experiment run from `from` on, now if not said: a draft; a paused or completed one again, in a phase of its own, so that exposures
/// in between go on not counting, and with its users as they were or assigned anew. A running one stays as it is, also where it has no start.
///
/// Stored rows change their meaning: the caller marks the experiment in the same change, and recomputes it.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for an archived one.
pub async fn start(
    change: &mut Change<'_>,
    name: &str,
    assignment: Assignment,
    from: Option<Micros>,
) -> Result<StatusChange, CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    if assignment == Assignment::Anew && !matches!(before.status, Paused | Completed) {
        return Err(wrong_state(&before, "only the users of a paused or completed one are assigned anew by its start"));
    }
    let connection = change.connection();
    let statement = match before.status {
        Running => return Ok(StatusChange::none(before)),
        Archived => return Err(wrong_state(&before, "only a draft, paused or completed one is started")),
        // What has run without a start time, such as a registered one that was paused, keeps its early exposures.
        Draft => {
            if let Some(from) = from {
                let from = phases::turn(connection, &before, Some(from)).await?;
                sqlx::query("UPDATE experiments SET started_at = $3 WHERE project_id = $1 AND id = $2")
                    .bind(project)
                    .bind(before.id)
                    .bind(Timestamp(from))
                    .execute(connection)
                    .await?;
            }
            "UPDATE experiments SET status = 'running', started_at = coalesce(started_at, now()), ended_at = NULL, \
                 updated_at = now() WHERE project_id = $1 AND id = $2"
        }
        Paused | Completed => {
            let at = phases::turn(connection, &before, from).await?;
            phases::end_last(connection, project, &before, at).await?;
            phases::begin_next(connection, project, &before, (PhaseState::Assigning, assignment), at).await?;
            "UPDATE experiments SET status = 'running', ended_at = NULL, updated_at = now() WHERE project_id = $1 AND id = $2"
        }
    };
    changed(change, before, statement).await
}

/// Lets exposures begin no participation from `from` on, now if not said; conversions within the window of earlier ones count. A paused one
/// stays as it is. The caller's duties are those of [`start`].
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for one that does not run.
pub async fn pause(change: &mut Change<'_>, name: &str, from: Option<Micros>) -> Result<StatusChange, CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    match before.status {
        Paused => return Ok(StatusChange::none(before)),
        Running => {}
        Draft | Completed | Archived => return Err(wrong_state(&before, "only a running one is paused")),
    }
    let connection = change.connection();
    let at = phases::turn(connection, &before, from).await?;
    phases::end_last(connection, project, &before, at).await?;
    phases::begin_next(connection, project, &before, (PhaseState::Paused, Assignment::Kept), at).await?;
    let statement = "UPDATE experiments SET status = 'paused', updated_at = now() WHERE project_id = $1 AND id = $2";
    changed(change, before, statement).await
}

/// Ends an experiment now: later exposures do not count, conversions within the window of earlier ones do.
/// A completed one stays as it is. The caller's duties are those of [`start`].
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Frozen`], [`CatalogueError::WrongState`] for a draft or an archived one.
pub async fn stop(change: &mut Change<'_>, name: &str) -> Result<StatusChange, CatalogueError> {
    let (project, before) = changeable(change, name).await?;
    match before.status {
        Completed => return Ok(StatusChange::none(before)),
        Draft => return Err(wrong_state(&before, "it was never started, so there is nothing to end")),
        Archived => return Err(wrong_state(&before, "only a running or paused one is stopped")),
        Running | Paused => {}
    }
    let connection = change.connection();
    let at = phases::turn(connection, &before, None).await?;
    phases::end_stored(connection, project, before.id, at).await?;
    let statement = "UPDATE experiments SET status = 'completed', ended_at = now(), updated_at = now() \
                     WHERE project_id = $1 AND id = $2";
    changed(change, before, statement).await
}

/// Puts away a draft or an experiment that has ended. Its rows and answers stay; it does not count among those that registered themselves,
/// and is not started again. An archived one stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::WrongState`] for one that has not ended.
pub async fn archive(connection: &mut PgConnection, project: &Project, name: &str) -> Result<StatusChange, CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    match before.status {
        Archived => return Ok(StatusChange::none(before)),
        Running | Paused => return Err(wrong_state(&before, "only a draft or a completed one is archived; stop it first")),
        Draft | Completed => {}
    }
    let statement = "UPDATE experiments SET status = 'archived', updated_at = now() WHERE project_id = $1 AND id = $2";
    changed_alone(change, before, statement, "experiment.archive").await
}

/// Takes an archived experiment out again: a completed one if it ever ran, else a draft. Any other stays as it is.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn unarchive(connection: &mut PgConnection, project: &Project, name: &str) -> Result<StatusChange, CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let before = show(change.connection(), project, name).await?;
    if before.status != Archived {
        return Ok(StatusChange::none(before));
    }
    let statement = "UPDATE experiments SET status = CASE WHEN ended_at IS NULL THEN 'draft' ELSE 'completed' END, updated_at = now() \
                     WHERE project_id = $1 AND id = $2";
    changed_alone(change, before, statement, "experiment.unarchive").await
}

/// Makes a change of status that changes the meaning of no row.
async fn changed_alone(
    mut change: Change<'_>,
    before: Experiment,
    statement: &'static str,
    action: &str,
) -> Result<StatusChange, CatalogueError> {
    let status = changed(&mut change, before, statement).await?;
    change.commit(action, &status.after.name, &status.details()).await?;
    Ok(status)
}

/// Returns the project and an experiment of it that may be changed.
async fn changeable(change: &mut Change<'_>, name: &str) -> Result<(Uuid, Experiment), CatalogueError> {
    let project = change.project().clone();
    let experiment = show(change.connection(), &project, name).await?;
    experiment.refuse_frozen()?;
    Ok((project.id, experiment))
}

fn wrong_state(experiment: &Experiment, accepted: &'static str) -> CatalogueError {
    CatalogueError::WrongState {
        subject: format!("experiment {:?}", experiment.name),
        found: experiment.status.to_string(),
        accepted: accepted.into(),
    }
}

/// Makes a change of status by its statement.
async fn changed(change: &mut Change<'_>, before: Experiment, statement: &'static str) -> Result<StatusChange, CatalogueError> {
    let project = change.project().id;
    sqlx::query(statement).bind(project).bind(before.id).execute(change.connection()).await?;
    let after = load(change.connection(), project, before.id).await?;
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
