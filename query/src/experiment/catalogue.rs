//! What is known of an experiment before any event: itself, its variants, its metrics.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::answer::{Experiment, Variant};
use crate::snapshot::time_text;
use crate::statistics::moments::Moments;

/// Names that mean the control where no variant is marked as it.
const CONTROL_NAMES: [&str; 5] = ["control", "baseline", "original", "off", "false"];

/// What a metric counts of each user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Whether the user converted.
    ConversionRate,
    /// The sum of the user's values.
    ValuePerUser,
    /// The number of the user's conversions.
    CountPerUser,
}

/// A metric that was configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// Its name.
    pub name: String,
    /// Which conversions count; none: all.
    pub conversion_type: Option<String>,
    /// What it counts.
    pub aggregation: Aggregation,
    /// `increase` or `decrease`.
    pub direction: String,
    /// `primary`, `secondary` or `guardrail`.
    pub role: String,
    /// Shorter than the experiment's window, if set.
    pub window_days: Option<i32>,
    /// What a user's sum is cut at, in millionths.
    pub cap: Option<i128>,
}

const EXPERIMENT: &str =
    "SELECT id, name, description, status, target_sample_size, conversion_window_days, attribution_method, currency,
           confidence_level::float8 AS confidence_level, minimum_detectable_effect::float8 AS minimum_detectable_effect,
           floor(extract(epoch FROM started_at) * 1000000)::bigint AS started_us,
           floor(extract(epoch FROM ended_at) * 1000000)::bigint AS ended_us,
           floor(extract(epoch FROM frozen_at) * 1000000)::bigint AS frozen_us,
           extract(epoch FROM least(coalesce(ended_at, now()), now()) - started_at)::float8 / 86400 AS days_running
    FROM experiments WHERE project_id = $1";

fn experiment(row: &PgRow) -> Result<Experiment, sqlx::Error> {
    let time = |name: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(name)?.map(time_text));
    // numeric(3,2) has at most two decimals, of which a float shows more.
    let confidence = (row.try_get::<f64, _>("confidence_level")? * 100.0).round() / 100.0;
    Ok(Experiment {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        started_at: time("started_us")?,
        ended_at: time("ended_us")?,
        days_running: row.try_get::<Option<f64>, _>("days_running")?.filter(|days| *days >= 0.0),
        confidence_level: confidence,
        alpha: (100.0 - confidence * 100.0).round() / 100.0,
        minimum_detectable_effect: row.try_get("minimum_detectable_effect")?,
        target_sample_size: row.try_get("target_sample_size")?,
        conversion_window_days: row.try_get("conversion_window_days")?,
        attribution_method: row.try_get("attribution_method")?,
        currency: row.try_get("currency")?,
        frozen_at: time("frozen_us")?,
        control_variant_id: None,
    })
}

/// Reads all experiments of a project, by name.
/// # Errors
/// Those of Postgres.
pub async fn experiments(connection: &mut PgConnection, project: Uuid) -> Result<Vec<Experiment>, sqlx::Error> {
    let statement = sqlx::AssertSqlSafe(format!("{EXPERIMENT} ORDER BY name"));
    let rows = sqlx::query(statement).bind(project).fetch_all(connection).await?;
    rows.iter().map(experiment).collect()
}

/// Finds an experiment by its name, else by its id.
/// # Errors
/// Those of Postgres.
pub async fn find(connection: &mut PgConnection, project: Uuid, name_or_id: &str) -> Result<Option<Experiment>, sqlx::Error> {
    if name_or_id.contains('\0') {
        return Ok(None);
    }
    let statement = sqlx::AssertSqlSafe(format!("{EXPERIMENT} AND (name = $2 OR id = $3) ORDER BY name = $2 DESC LIMIT 1"));
    let id = Uuid::try_parse(name_or_id).ok();
    let row = sqlx::query(statement).bind(project).bind(name_or_id).bind(id).fetch_optional(connection).await?;
    row.as_ref().map(experiment).transpose()
}

/// Reads variants with their experiment, of one experiment or of all, by name.
/// # Errors
/// Those of Postgres.
pub async fn variants(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Option<Uuid>,
) -> Result<Vec<(Uuid, Variant)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT experiment_id, id, name, is_control, weight::float8 AS weight FROM variants
         WHERE project_id = $1 AND ($2::uuid IS NULL OR experiment_id = $2) ORDER BY name",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(connection)
    .await?;
    let variant = |row: PgRow| {
        let variant = Variant {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            is_control: row.try_get("is_control")?,
            weight: row.try_get("weight")?,
            users: None,
        };
        Ok((row.try_get("experiment_id")?, variant))
    };
    rows.into_iter().map(variant).collect()
}

/// Reads the metrics that were configured for an experiment, by name.
/// # Errors
/// Those of Postgres.
pub async fn metrics(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Vec<Configured>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT name, conversion_type, aggregation, direction, role, window_days, trunc(cap * 1000000)::text AS cap FROM metrics
         WHERE project_id = $1 AND experiment_id = $2
         ORDER BY array_position(ARRAY['primary', 'secondary', 'guardrail'], role), name",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(connection)
    .await?;
    let metric = |row: PgRow| {
        Ok(Configured {
            name: row.try_get("name")?,
            conversion_type: row.try_get("conversion_type")?,
            aggregation: match row.try_get("aggregation")? {
                "value_per_user" => Aggregation::ValuePerUser,
                "count_per_user" => Aggregation::CountPerUser,
                // The table's check allows three.
                _ => Aggregation::ConversionRate,
            },
            direction: row.try_get("direction")?,
            role: row.try_get("role")?,
            window_days: row.try_get("window_days")?,
            // numeric(20,6) has at most 20 digits.
            cap: row.try_get::<Option<String>, _>("cap")?.and_then(|cap| cap.parse().ok()),
        })
    };
    rows.into_iter().map(metric).collect()
}

/// Returns the position of the control: the variant asked for by name or id, else the one marked as it, else the one with a
/// name that means it. Sets `is_control` accordingly.
/// # Errors
/// The names of all variants, if the one asked for is none of them.
pub fn choose_control(variants: &mut [Variant], baseline: Option<&str>) -> Result<Option<usize>, String> {
    let control = match baseline {
        Some(baseline) => {
            let by_name = variants.iter().position(|variant| variant.name == baseline);
            let found = by_name.or_else(|| variants.iter().position(|variant| variant.id.to_string() == baseline.to_lowercase()));
            let names = || variants.iter().map(|variant| variant.name.as_str()).collect::<Vec<_>>().join(", ");
            Some(found.ok_or_else(names)?)
        }
        None => variants.iter().position(|variant| variant.is_control).or_else(|| {
            let is_named = |name: &str| variants.iter().position(|variant| variant.name.eq_ignore_ascii_case(name));
            CONTROL_NAMES.iter().find_map(|name| is_named(name))
        }),
    };
    for (index, variant) in variants.iter_mut().enumerate() {
        variant.is_control = Some(index) == control;
    }
    Ok(control)
}

/// Returns the metrics of an experiment without configured ones, for one conversion name or for all.
pub fn default_metrics(conversion_type: Option<&str>) -> [Configured; 2] {
    let metric = |name: &str, aggregation| Configured {
        name: conversion_type.map_or_else(|| name.to_owned(), |kind| format!("{kind}.{name}")),
        conversion_type: conversion_type.map(str::to_owned),
        aggregation,
        direction: "increase".to_owned(),
        role: if conversion_type.is_none() { "primary" } else { "secondary" }.to_owned(),
        window_days: None,
        cap: None,
    };
    [metric("conversion_rate", Aggregation::ConversionRate), metric("value_per_user", Aggregation::ValuePerUser)]
}

/// Cuts a millionths amount for a text.
pub fn cap_text(cap: Option<i128>) -> Option<String> {
    cap.map(crate::statistics::moments::decimal_text)
}

/// Millionths in one unit, for values and counts alike.
pub const SCALE: i128 = Moments::SCALE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_is_asked_for_or_marked_or_named() {
        let check = |variants: &[(&str, bool)], baseline: Option<&str>, expected: Result<Option<usize>, &str>| {
            let mut variants: Vec<Variant> = variants
                .iter()
                .enumerate()
                .map(|(index, (name, is_control))| Variant {
                    id: Uuid::from_u128(index as u128),
                    name: (*name).to_owned(),
                    is_control: *is_control,
                    weight: None,
                    users: None,
                })
                .collect();
            let found = choose_control(&mut variants, baseline);
            assert_eq!(found, expected.map_err(str::to_owned), "{variants:?} {baseline:?}");
            if let Ok(control) = found {
                let marked: Vec<usize> = (0..variants.len()).filter(|index| variants[*index].is_control).collect();
                assert_eq!(marked, control.into_iter().collect::<Vec<_>>());
            }
        };
        check(&[("a", false), ("b", true)], None, Ok(Some(1)));
        check(&[("a", false), ("Control", false)], None, Ok(Some(1)));
        check(&[("off", false), ("BASELINE", false)], None, Ok(Some(1)));
        check(&[("false", false), ("true", false)], None, Ok(Some(0)));
        check(&[("control", false), ("b", true)], None, Ok(Some(1)));
        check(&[("a", false), ("b", false)], None, Ok(None));
        check(&[("a", true), ("b", false)], Some("b"), Ok(Some(1)));
        check(&[("a", true), ("b", false)], Some("00000000-0000-0000-0000-000000000001"), Ok(Some(1)));
        check(&[("a", true), ("b", false)], Some("c"), Err("a, b"));
        check(&[], None, Ok(None));
    }
}
