//! What is known of an experiment before any event: itself, its variants, its metrics.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::experiment::read::experiment::{Experiment, Variant};
use crate::snapshot::time_text;

/// Names that mean the control where no variant is marked as it.
const CONTROL_NAMES: [&str; 5] = ["control", "baseline", "original", "off", "false"];

/// What of a conversion is added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Its value.
    Value,
    /// 1.
    Count,
}

/// What a ratio is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denominator {
    /// Conversions of this name; none: all.
    Conversions(Option<String>),
    /// Eligible impressions of the experiment.
    Impressions,
}

/// What a metric counts of each user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Whether the user converted.
    ConversionRate,
    /// The sum of the user's values.
    ValuePerUser,
    /// The number of the user's conversions.
    CountPerUser,
    /// Two sums over all users, divided by each other.
    Ratio(Amount, Denominator),
    /// A quantile of the users' sums, in thousandths.
    Quantile(Amount, u16),
}

impl Aggregation {
    /// Returns whether it speaks of money, so that a currency and a cap belong to it.
    pub fn is_value(&self) -> bool {
        matches!(self, Aggregation::ValuePerUser | Aggregation::Ratio(Amount::Value, _) | Aggregation::Quantile(Amount::Value, _))
    }

    /// Returns the type as answers carry it.
    pub fn kind(&self) -> &'static str {
        match self {
            Aggregation::ConversionRate => "proportion",
            Aggregation::ValuePerUser | Aggregation::CountPerUser => "mean",
            Aggregation::Ratio(..) => "ratio",
            Aggregation::Quantile(..) => "quantile",
        }
    }
}

/// What a metric decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Whether the experiment is a success.
    Primary,
    /// Nothing alone.
    Secondary,
    /// Whether harm was done.
    Guardrail,
}

/// A metric that was configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Configured {
    /// Its name.
    pub name: String,
    /// Which conversions count; none: all.
    pub conversion_type: Option<String>,
    /// What it counts.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub wants_more: bool,
    /// What it decides.
    pub role: Role,
    /// The relative loss that a guardrail bears.
    pub margin: Option<f64>,
    /// Shorter than the experiment's window, if set.
    pub window_days: Option<i32>,
    /// What a user's sum is cut at, in millionths.
    pub cap: Option<i128>,
    /// The percentile of sums at which they are cut, in ten-thousandths of a percent.
    pub cap_percentile: Option<u32>,
}

const EXPERIMENT: &str =
    "SELECT id, name, description, status, target_sample_size, conversion_window_days, attribution_method, currency,
           confidence_level::float8 AS confidence_level, minimum_detectable_effect::float8 AS minimum_detectable_effect,
           floor(extract(epoch FROM started_at) * 1000000)::bigint AS started_us,
           floor(extract(epoch FROM ended_at) * 1000000)::bigint AS ended_us,
           floor(extract(epoch FROM frozen_at) * 1000000)::bigint AS frozen_us
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
        started_us: row.try_get("started_us")?,
        ended_us: row.try_get("ended_us")?,
        days_running: None,
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

/// Reads the metrics that were configured for an experiment, by role, then name.
/// # Errors
/// Those of Postgres.
pub async fn metrics(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Vec<Configured>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT name, conversion_type, aggregation, numerator, denominator, denominator_type, direction, role, window_days,
                trunc(quantile * 1000)::int AS quantile, margin::float8 AS margin, trunc(cap * 1000000)::text AS cap,
                trunc(cap_percentile * 10000)::int AS cap_percentile
         FROM metrics WHERE project_id = $1 AND experiment_id = $2
         ORDER BY array_position(ARRAY['primary', 'secondary', 'guardrail'], role), name",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| configured(&row)).collect()
}

/// Reads one metric. The table's checks allow no other texts than those named here.
fn configured(row: &PgRow) -> Result<Configured, sqlx::Error> {
    let conversion_type: Option<String> = row.try_get("conversion_type")?;
    let amount = if row.try_get::<&str, _>("numerator")? == "count" { Amount::Count } else { Amount::Value };
    let aggregation = match row.try_get("aggregation")? {
        "value_per_user" => Aggregation::ValuePerUser,
        "count_per_user" => Aggregation::CountPerUser,
        "ratio" => {
            let of_type: Option<String> = row.try_get("denominator_type")?;
            Aggregation::Ratio(
                amount,
                match row.try_get("denominator")? {
                    Some("impressions") => Denominator::Impressions,
                    _ => Denominator::Conversions(of_type.or_else(|| conversion_type.clone())),
                },
            )
        }
        "quantile" => {
            let thousandths: Option<i32> = row.try_get("quantile")?;
            Aggregation::Quantile(amount, thousandths.and_then(|thousandths| u16::try_from(thousandths).ok()).unwrap_or(500))
        }
        _ => Aggregation::ConversionRate,
    };
    Ok(Configured {
        name: row.try_get("name")?,
        conversion_type,
        aggregation,
        wants_more: row.try_get::<&str, _>("direction")? != "decrease",
        role: match row.try_get("role")? {
            "primary" => Role::Primary,
            "guardrail" => Role::Guardrail,
            _ => Role::Secondary,
        },
        margin: row.try_get("margin")?,
        window_days: row.try_get("window_days")?,
        // numeric(20,6) has at most 20 digits.
        cap: row.try_get::<Option<String>, _>("cap")?.and_then(|cap| cap.parse().ok()),
        cap_percentile: row.try_get::<Option<i32>, _>("cap_percentile")?.and_then(|percentile| u32::try_from(percentile).ok()),
    })
}

/// Letters that are looked into for users of variants that do not exist, at most.
const LETTERS_MAX: i64 = 10_000;

/// Counts the users whose events wait as dead letters because they name a variant that the experiment does not have.
/// # Errors
/// Those of Postgres.
pub async fn unknown_variant_users(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: &Experiment,
) -> Result<u64, sqlx::Error> {
    // The bytes of such a letter were decoded once, so they are JSON. Postgres cannot take apart one that holds U+0000.
    let users: i64 = sqlx::query_scalar(
        r"SELECT count(DISTINCT letter::json #>> '{event,user_id}')
          FROM (SELECT convert_from(bytes, 'UTF8') AS letter FROM dead_letters
                WHERE status = 'open' AND project_id = $1 AND code = 'unknown_variant'
                  AND position('\u0000' IN convert_from(bytes, 'UTF8')) = 0
                ORDER BY id LIMIT $2) l
          WHERE letter::json #>> '{event,experiment}' IN ($3, $4)",
    )
    .bind(project)
    .bind(LETTERS_MAX)
    .bind(&experiment.name)
    .bind(experiment.id.to_string())
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(users).unwrap_or(0))
}

/// Counts the impressions of an experiment that are stored and no bot's, whether they count or not.
/// # Errors
/// Those of Postgres.
pub async fn impressions(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<u64, sqlx::Error> {
    let impressions: i64 = sqlx::query_scalar(
        "SELECT coalesce(sum(events), 0)::bigint FROM daily_rollups
         WHERE project_id = $1 AND kind = 'impression' AND experiment_id = $2 AND NOT is_bot",
    )
    .bind(project)
    .bind(experiment)
    .fetch_one(connection)
    .await?;
    Ok(u64::try_from(impressions).unwrap_or(0))
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
        wants_more: true,
        // One metric decides; value is noisier, and many experiments have none.
        role: match (conversion_type, &aggregation) {
            (None, Aggregation::ConversionRate) => Role::Primary,
            _ => Role::Secondary,
        },
        aggregation,
        margin: None,
        window_days: None,
        cap: None,
        cap_percentile: None,
    };
    [metric("conversion_rate", Aggregation::ConversionRate), metric("value_per_user", Aggregation::ValuePerUser)]
}

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
