//! Metrics of an experiment: added and removed. They say how stored rows are read, and change none of them, so the
//! catalogue's lock is enough.

use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::experiments::{self, Experiment, NewMetric};
use super::new_experiment::METRICS_MAX;
use super::{AdminError, Project, audit, begin, listed, lock_catalogue};
use crate::catalogue::raise_version;

/// The columns of a metric as [`experiments::Metric`] takes them.
pub(super) const METRIC_COLUMNS: &str = "name, conversion_type, aggregation, \
     CASE WHEN aggregation IN ('ratio', 'quantile') THEN numerator END AS numerator, denominator, denominator_type, \
     trim_scale(quantile)::text AS quantile, direction, role, trim_scale(margin)::text AS margin, window_days, \
     trim_scale(cap)::text AS cap, trim_scale(cap_percentile)::text AS cap_percentile";

pub(super) async fn insert_metric(
    conn: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    new: &NewMetric,
) -> Result<(), AdminError> {
    sqlx::query(
        "INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, numerator, denominator, \
             denominator_type, quantile, direction, role, margin, window_days, cap, cap_percentile) \
         VALUES ($1, $2, $3, $4, $5, coalesce($6, 'value'), $7, $8, $9::numeric, $10, $11, $12::numeric, $13, $14::numeric, \
             $15::numeric)",
    )
    .bind(project)
    .bind(experiment)
    .bind(&new.name)
    .bind(&new.conversion_type)
    .bind(new.aggregation.as_str())
    .bind(new.numerator.map(experiments::Amount::as_str))
    .bind(new.denominator.map(experiments::Denominator::as_str))
    .bind(&new.denominator_type)
    .bind(&new.quantile)
    .bind(new.direction.as_str())
    .bind(new.role.as_str())
    .bind(&new.margin)
    .bind(new.window_days)
    .bind(&new.cap)
    .bind(&new.cap_percentile)
    .execute(conn)
    .await?;
    Ok(())
}

/// Adds a metric. The first one takes the place of the usual ones: all conversions, and each name by itself.
/// # Errors
/// [`AdminError::Unknown`], [`AdminError::Invalid`], [`AdminError::WrongState`] if there is one of that name.
pub async fn create(conn: &mut PgConnection, project: &Project, name: &str, new: &NewMetric) -> Result<Experiment, AdminError> {
    new.check("")?;
    let mut tx = begin(conn).await?;
    lock_catalogue(&mut tx, project.id).await?;
    let before = experiments::show(&mut tx, project, name).await?;
    if before.metrics.iter().any(|metric| metric.name == new.name) {
        return Err(AdminError::WrongState {
            subject: format!("metric {:?}", new.name),
            found: "there already".into(),
            accepted: "choose another name, or remove it first".into(),
        });
    }
    if before.metrics.len() >= METRICS_MAX {
        return Err(AdminError::invalid("metrics", format!("there are {METRICS_MAX}; no more are accepted")));
    }
    insert_metric(&mut tx, project.id, before.id, new).await?;
    let after = experiments::load(&mut tx, project, before.id).await?;
    let metric = after.metrics.iter().find(|metric| metric.name == new.name);
    raise_version(&mut tx, project.id).await?;
    audit(&mut tx, Some(project.id), "metric.create", &after.name, &json!({ "id": after.id, "metric": metric })).await?;
    tx.commit().await?;
    Ok(after)
}

/// Removes a metric. Rows stay as they are, and a metric of the same name may be added again.
/// # Errors
/// [`AdminError::Unknown`].
pub async fn remove(conn: &mut PgConnection, project: &Project, name: &str, metric: &str) -> Result<Experiment, AdminError> {
    let mut tx = begin(conn).await?;
    lock_catalogue(&mut tx, project.id).await?;
    let before = experiments::show(&mut tx, project, name).await?;
    let Some(removed) = before.metrics.iter().find(|found| found.name == metric) else {
        let names: Vec<String> = before.metrics.iter().map(|metric| metric.name.clone()).take(11).collect();
        let place = format!("experiment {:?}", before.name);
        return Err(AdminError::Unknown { what: "metric", name: metric.into(), place, known: listed(&names) });
    };
    sqlx::query("DELETE FROM metrics WHERE project_id = $1 AND experiment_id = $2 AND name = $3")
        .bind(project.id)
        .bind(before.id)
        .bind(metric)
        .execute(&mut *tx)
        .await?;
    let details = json!({ "id": before.id, "metric": removed });
    let after = experiments::load(&mut tx, project, before.id).await?;
    raise_version(&mut tx, project.id).await?;
    audit(&mut tx, Some(project.id), "metric.remove", &after.name, &details).await?;
    tx.commit().await?;
    Ok(after)
}
