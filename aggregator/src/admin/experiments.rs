//! Experiments: made, shown, started, stopped, computed again.

use events::Micros;
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use super::metrics::{METRIC_COLUMNS, insert_metric};
pub use super::new_experiment::{AttributionMethod, NewExperiment, NewVariant};
pub use super::new_metric::{Aggregation, Amount, Denominator, Direction, NewMetric, Role};
use super::{AdminError, Project, audit, begin, dead_letters, iso, iso_or_null, listed, lock_catalogue, new_experiment};
use crate::catalogue::raise_version;
use crate::recompute::{self, Differences};

/// An experiment as it is stored.
#[derive(Clone, Debug, Serialize)]
pub struct Experiment {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// draft, running, paused, completed or archived.
    pub status: String,
    /// From when on exposures count; `None`: from ever.
    #[serde(serialize_with = "iso_or_null")]
    pub started_at: Option<Micros>,
    /// Until when exposures count, exclusive; `None`: for ever.
    #[serde(serialize_with = "iso_or_null")]
    pub ended_at: Option<Micros>,
    /// Users over all variants.
    pub target_sample_size: Option<i32>,
    /// A decimal.
    pub confidence_level: String,
    /// A decimal, relative.
    pub minimum_detectable_effect: String,
    /// Days after the first exposure.
    pub conversion_window_days: i32,
    /// first_exposure or last_exposure.
    pub attribution_method: String,
    /// Of value metrics; `None`: the only one seen.
    pub currency: Option<String>,
    /// Since when it cannot be changed or computed again.
    #[serde(serialize_with = "iso_or_null")]
    pub frozen_at: Option<Micros>,
    /// Whether the first event that named it made it.
    pub auto_registered: bool,
    /// When it was made.
    #[serde(serialize_with = "iso")]
    pub created_at: Micros,
    /// By name.
    pub variants: Vec<Variant>,
    /// By role, then name.
    pub metrics: Vec<Metric>,
}

/// An arm as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct Variant {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whether it is marked as the control.
    pub is_control: bool,
    /// A decimal; `None`: unknown.
    pub weight: Option<String>,
}

/// A metric as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, FromRow)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// The conversions that count; `None`: all.
    pub conversion_type: Option<String>,
    /// conversion_rate, value_per_user, count_per_user, ratio or quantile.
    pub aggregation: String,
    /// value or count, of a ratio or quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerator: Option<String>,
    /// conversions or impressions, of a ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator: Option<String>,
    /// The conversions that a ratio is over; `None`: those of its numerator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator_type: Option<String>,
    /// A decimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<String>,
    /// increase or decrease.
    pub direction: String,
    /// primary, secondary or guardrail.
    pub role: String,
    /// A decimal, of a guardrail.
    pub margin: Option<String>,
    /// Days after the first exposure; `None`: the experiment's.
    pub window_days: Option<i32>,
    /// A decimal: one user's sum counts up to here.
    pub cap: Option<String>,
    /// A decimal: one user's sum counts up to this percentile of all sums that are not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_percentile: Option<String>,
}

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
/// [`AdminError::Invalid`], [`AdminError::NameTaken`].
pub async fn create(conn: &mut PgConnection, project: &Project, new: &NewExperiment) -> Result<Created, AdminError> {
    new.check()?;
    let mut tx = begin(conn).await?;
    lock_catalogue(&mut tx, project.id).await?;
    let taken: Option<Uuid> = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1 AND name = $2")
        .bind(project.id)
        .bind(&new.name)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some(id) = taken {
        return Err(AdminError::NameTaken { what: "experiment", name: new.name.clone(), id });
    }
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO experiments (project_id, name, description, status, started_at, target_sample_size, confidence_level, \
             minimum_detectable_effect, conversion_window_days, attribution_method, currency) \
         VALUES ($1, $2, $3, CASE WHEN $4 THEN 'running' ELSE 'draft' END, \
             CASE WHEN $4 THEN coalesce(timestamptz 'epoch' + $5 * interval '1 microsecond', now()) END, \
             $6, coalesce($7::numeric, 0.95), coalesce($8::numeric, 0.05), coalesce($9, 30), \
             coalesce($10, 'first_exposure'), $11) \
         RETURNING id",
    )
    .bind(project.id)
    .bind(&new.name)
    .bind(&new.description)
    .bind(new.start)
    .bind(new.started_at.map(|time| time.0))
    .bind(new.target_sample_size)
    .bind(&new.confidence_level)
    .bind(&new.minimum_detectable_effect)
    .bind(new.conversion_window_days)
    .bind(new.attribution_method.map(AttributionMethod::as_str))
    .bind(&new.currency)
    .fetch_one(&mut *tx)
    .await?;
    for variant in &new.variants {
        insert_variant(&mut tx, project.id, id, variant).await?;
    }
    for metric in &new.metrics {
        insert_metric(&mut tx, project.id, id, metric).await?;
    }
    let experiment = load(&mut tx, project, id).await?;
    let names = [experiment.name.clone(), id.to_string()];
    let mut waiting = dead_letters::replay_for(&mut tx, project.id, "unknown_experiment", &names).await?;
    let variants: Vec<_> = experiment.variants.iter().map(|variant| variant.name.clone()).collect();
    waiting += dead_letters::replay_for_variants(&mut tx, project.id, &experiment, &variants).await?;
    raise_version(&mut tx, project.id).await?;
    let details = json!({
        "id": id,
        "status": experiment.status,
        "variants": experiment.variants,
        "metrics": experiment.metrics,
        "dead_letters": waiting,
    });
    audit(&mut tx, Some(project.id), "experiment.create", &new.name, &details).await?;
    tx.commit().await?;
    Ok(Created { experiment, dead_letters: waiting })
}

async fn insert_variant(conn: &mut PgConnection, project: Uuid, experiment: Uuid, new: &NewVariant) -> Result<(), AdminError> {
    sqlx::query(
        "INSERT INTO variants (project_id, experiment_id, name, is_control, weight) VALUES ($1, $2, $3, $4, $5::numeric)",
    )
    .bind(project)
    .bind(experiment)
    .bind(&new.name)
    .bind(new.is_control)
    .bind(&new.weight)
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds a variant to an experiment, and has the dead letters replayed that were waiting for it. It is never the control;
/// it has a weight exactly if the others have. Rows that are stored keep their meaning.
/// # Errors
/// [`AdminError::Unknown`], [`AdminError::Frozen`], [`AdminError::Invalid`], [`AdminError::NameTaken`].
pub async fn add_variant(
    conn: &mut PgConnection,
    project: &Project,
    name: &str,
    new: &NewVariant,
) -> Result<Created, AdminError> {
    let mut tx = begin(conn).await?;
    lock_catalogue(&mut tx, project.id).await?;
    let before = show(&mut tx, project, name).await?;
    refuse_frozen(&before)?;
    if let Some(other) = before.variants.iter().find(|variant| variant.name == new.name) {
        return Err(AdminError::NameTaken { what: "variant", name: new.name.clone(), id: other.id });
    }
    new_experiment::check_added(&before, new)?;
    insert_variant(&mut tx, project.id, before.id, new).await?;
    let experiment = load(&mut tx, project, before.id).await?;
    let names = [new.name.clone()];
    let waiting = dead_letters::replay_for_variants(&mut tx, project.id, &experiment, &names).await?;
    raise_version(&mut tx, project.id).await?;
    let details = json!({ "id": experiment.id, "variant": new.name, "weight": new.weight, "dead_letters": waiting });
    audit(&mut tx, Some(project.id), "experiment.add_variant", &experiment.name, &details).await?;
    tx.commit().await?;
    Ok(Created { experiment, dead_letters: waiting })
}

/// Returns the experiments of a project, by name.
/// # Errors
/// [`AdminError::Database`].
pub async fn list(conn: &mut PgConnection, project: &Project) -> Result<Vec<Experiment>, AdminError> {
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM experiments WHERE project_id = $1 ORDER BY name")
        .bind(project.id)
        .fetch_all(&mut *conn)
        .await?;
    let mut experiments = Vec::with_capacity(ids.len());
    for id in ids {
        experiments.push(load(conn, project, id).await?);
    }
    Ok(experiments)
}

/// Returns an experiment, found by id, else by name.
/// # Errors
/// [`AdminError::Unknown`].
pub async fn show(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Experiment, AdminError> {
    let id = find(conn, project, name).await?;
    load(conn, project, id).await
}

async fn find(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Uuid, AdminError> {
    let found: Option<Uuid> = sqlx::query_scalar(
        "SELECT id FROM experiments WHERE project_id = $1 AND (name = $2 OR id::text = lower($2)) ORDER BY id::text = lower($2) DESC LIMIT 1",
    )
    .bind(project.id)
    .bind(name)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some(id) = found {
        return Ok(id);
    }
    let names = sqlx::query_scalar("SELECT name FROM experiments WHERE project_id = $1 ORDER BY name LIMIT 11")
        .bind(project.id)
        .fetch_all(conn)
        .await?;
    Err(AdminError::Unknown { what: "experiment", name: name.into(), place: project.to_string(), known: listed(&names) })
}

pub(super) async fn load(conn: &mut PgConnection, project: &Project, id: Uuid) -> Result<Experiment, AdminError> {
    let row = sqlx::query(
        "SELECT id, name, description, status, target_sample_size, confidence_level::text, minimum_detectable_effect::text, \
             conversion_window_days, attribution_method, currency, auto_registered, \
             (extract(epoch FROM started_at) * 1000000)::bigint AS started_at, \
             (extract(epoch FROM ended_at) * 1000000)::bigint AS ended_at, \
             (extract(epoch FROM frozen_at) * 1000000)::bigint AS frozen_at, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_at \
         FROM experiments WHERE project_id = $1 AND id = $2",
    )
    .bind(project.id)
    .bind(id)
    .fetch_one(&mut *conn)
    .await?;
    let variants = sqlx::query_as(
        "SELECT id, name, is_control, trim_scale(weight)::text AS weight FROM variants \
         WHERE project_id = $1 AND experiment_id = $2 ORDER BY name",
    )
    .bind(project.id)
    .bind(id)
    .fetch_all(&mut *conn)
    .await?;
    let metrics = sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "SELECT {METRIC_COLUMNS} FROM metrics WHERE project_id = $1 AND experiment_id = $2 \
         ORDER BY array_position(ARRAY['primary', 'secondary', 'guardrail'], role), name"
    )))
    .bind(project.id)
    .bind(id)
    .fetch_all(conn)
    .await?;
    Ok(Experiment { variants, metrics, ..of_row(&row)? })
}

fn of_row(row: &PgRow) -> Result<Experiment, sqlx::Error> {
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.map(Micros));
    Ok(Experiment {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        started_at: time("started_at")?,
        ended_at: time("ended_at")?,
        target_sample_size: row.try_get("target_sample_size")?,
        confidence_level: row.try_get("confidence_level")?,
        minimum_detectable_effect: row.try_get("minimum_detectable_effect")?,
        conversion_window_days: row.try_get("conversion_window_days")?,
        attribution_method: row.try_get("attribution_method")?,
        currency: row.try_get("currency")?,
        frozen_at: time("frozen_at")?,
        auto_registered: row.try_get("auto_registered")?,
        created_at: Micros(row.try_get("created_at")?),
        variants: Vec::new(),
        metrics: Vec::new(),
    })
}

/// Lets an experiment run: a draft from now on, a paused one again, a completed one as if it had never been stopped.
/// A running one stays as it is, also where it has no start.
/// # Errors
/// [`AdminError::Unknown`], [`AdminError::Frozen`], [`AdminError::WrongState`] for an archived one.
pub async fn start(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    change_status(conn, project, name, Verb::Start).await
}

/// Ends an experiment now: later exposures do not count, conversions within the window of earlier ones do.
/// A completed one stays as it is.
/// # Errors
/// [`AdminError::Unknown`], [`AdminError::Frozen`], [`AdminError::WrongState`] for a draft or an archived one.
pub async fn stop(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    change_status(conn, project, name, Verb::Stop).await
}

#[derive(Clone, Copy)]
enum Verb {
    Start,
    Stop,
}

async fn change_status(conn: &mut PgConnection, project: &Project, name: &str, verb: Verb) -> Result<Changed, AdminError> {
    let mut tx = begin(conn).await?;
    recompute::lock(&mut tx, project.id).await?;
    let before = show(&mut tx, project, name).await?;
    refuse_frozen(&before)?;
    let (action, refusal) = match verb {
        Verb::Start => ("experiment.start", ("archived", "only a draft, paused or completed one is started")),
        Verb::Stop if before.status == "draft" => {
            ("experiment.stop", ("draft", "it was never started, so there is nothing to end"))
        }
        Verb::Stop => ("experiment.stop", ("archived", "only a running or paused one is stopped")),
    };
    if before.status == refusal.0 {
        return Err(AdminError::WrongState {
            subject: format!("experiment {:?}", before.name),
            found: before.status,
            accepted: refusal.1.into(),
        });
    }
    let update = match (verb, before.status.as_str()) {
        (Verb::Start, "running") | (Verb::Stop, "completed") => return Ok(Changed { experiment: before, recomputed: None }),
        // What has run without a start time, such as a registered one that was paused, keeps its early exposures.
        (Verb::Start, "draft") => {
            "UPDATE experiments SET status = 'running', started_at = coalesce(started_at, now()), ended_at = NULL, \
                                   updated_at = now() WHERE project_id = $1 AND id = $2"
        }
        (Verb::Start, _) => {
            "UPDATE experiments SET status = 'running', ended_at = NULL, updated_at = now() \
                             WHERE project_id = $1 AND id = $2"
        }
        (Verb::Stop, _) => {
            "UPDATE experiments SET status = 'completed', ended_at = now(), updated_at = now() \
                            WHERE project_id = $1 AND id = $2"
        }
    };
    sqlx::query(update).bind(project.id).bind(before.id).execute(&mut *tx).await?;
    let differences = compute_again(&mut tx, project, &before).await?;
    raise_version(&mut tx, project.id).await?;
    let after = load(&mut tx, project, before.id).await?;
    let times = |e: &Experiment| json!({ "status": e.status, "started_at": e.started_at.map(|t| t.to_string()), "ended_at": e.ended_at.map(|t| t.to_string()) });
    let details = json!({ "id": after.id, "before": times(&before), "after": times(&after) });
    audit(&mut tx, Some(project.id), action, &after.name, &details).await?;
    tx.commit().await?;
    Ok(Changed { experiment: after, recomputed: Some(differences) })
}

/// Computes participation and attribution of an experiment again, from the raw rows, and reports what differed.
/// # Errors
/// [`AdminError::Unknown`], [`AdminError::Frozen`], [`AdminError::Recompute`].
pub async fn recompute(conn: &mut PgConnection, project: &Project, name: &str) -> Result<Changed, AdminError> {
    let mut tx = begin(conn).await?;
    recompute::lock(&mut tx, project.id).await?;
    let experiment = show(&mut tx, project, name).await?;
    refuse_frozen(&experiment)?;
    let differences = compute_again(&mut tx, project, &experiment).await?;
    // Rows changed without new facts: whoever follows facts must read all of them again.
    raise_version(&mut tx, project.id).await?;
    let details =
        json!({ "id": experiment.id, "participation": differences.participation, "attribution": differences.attribution });
    audit(&mut tx, Some(project.id), "experiment.recompute", &experiment.name, &details).await?;
    tx.commit().await?;
    Ok(Changed { experiment, recomputed: Some(differences) })
}

fn refuse_frozen(experiment: &Experiment) -> Result<(), AdminError> {
    match experiment.frozen_at {
        Some(frozen_at) => Err(AdminError::Frozen { name: experiment.name.clone(), frozen_at }),
        None => Ok(()),
    }
}

async fn compute_again(conn: &mut PgConnection, project: &Project, experiment: &Experiment) -> Result<Differences, AdminError> {
    recompute::recompute_locked(conn, project.id, experiment.id)
        .await
        .map_err(|error| AdminError::Recompute { name: experiment.name.clone(), source: Box::new(error) })
}
