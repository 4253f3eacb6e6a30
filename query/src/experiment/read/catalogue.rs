//! What is known of an experiment before any event: itself, its variants, its metrics.

use ::catalogue::definitions::{PerUser, Reference};
use ::catalogue::experiments::{self, CONTROL_NAMES};
use ::catalogue::metrics::Metric;
use ::catalogue::{Aggregation as Stored, Decimal, Direction, ReadError, Unsupported};
pub use ::catalogue::{Amount, Role};
use events::Micros;
use hyper::StatusCode;
use serde_json::value::RawValue;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::experiment::read::experiment::{Experiment, Phase, PhaseWeight, Variant};
use crate::experiment::read::sources::SourceQuery;
use crate::http::error::{ApiError, Code};
use crate::source::snapshot::time_text;

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
    /// What a definition of the project says.
    Defined(Box<DefinedMetric>),
}

/// A version of a definition, as an experiment measures it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinedMetric {
    /// The definition's name, version and content.
    pub reference: Reference,
    /// The place of its events among those that are read.
    pub source: usize,
    /// When they count, in microseconds after the first exposure, half open.
    pub window_us: (i64, i64),
}

impl Aggregation {
    /// Returns whether it speaks of money, so that a currency and a cap belong to it.
    pub fn is_value(&self) -> bool {
        match self {
            Aggregation::ValuePerUser | Aggregation::Ratio(Amount::Value, _) | Aggregation::Quantile(Amount::Value, _) => true,
            Aggregation::Defined(defined) => defined.reference.definition.is_money(),
            _ => false,
        }
    }

    /// Returns whether a user has it or not.
    pub fn is_share(&self) -> bool {
        match self {
            Aggregation::ConversionRate => true,
            Aggregation::Defined(defined) => defined.reference.definition.per_user.is_share(),
            _ => false,
        }
    }

    /// Returns whether users have whole numbers of it.
    pub fn is_count(&self) -> bool {
        match self {
            Aggregation::CountPerUser | Aggregation::Ratio(Amount::Count, _) | Aggregation::Quantile(Amount::Count, _) => true,
            Aggregation::Defined(defined) => {
                matches!(defined.reference.definition.per_user, PerUser::Count | PerUser::Distinct | PerUser::DistinctDays)
            }
            _ => false,
        }
    }

    /// Returns the type as answers carry it.
    pub fn kind(&self) -> &'static str {
        match self {
            Aggregation::ConversionRate => "proportion",
            Aggregation::Defined(_) if self.is_share() => "proportion",
            Aggregation::ValuePerUser | Aggregation::CountPerUser | Aggregation::Defined(_) => "mean",
            Aggregation::Ratio(..) => "ratio",
            Aggregation::Quantile(..) => "quantile",
        }
    }
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
    /// Its own window, shorter or longer than the experiment's, if set.
    pub window_days: Option<i32>,
    /// What a user's sum is cut at, in millionths.
    pub cap: Option<i128>,
    /// The percentile of sums at which they are cut, in ten-thousandths of a percent.
    pub cap_percentile: Option<u32>,
}

impl Configured {
    /// Returns the events that its definition speaks of; none of a metric of conversions.
    pub fn source(&self) -> Option<SourceQuery> {
        let Aggregation::Defined(defined) = &self.aggregation else { return None };
        Some(SourceQuery { definition: defined.reference.definition.clone(), window_us: defined.window_us })
    }
}

/// An experiment with all that is known of it before any event.
#[derive(Debug)]
pub struct Defined {
    /// The experiment.
    pub experiment: Experiment,
    /// Its variants, by name.
    pub variants: Vec<Variant>,
    /// The metrics that were configured for it, by role, then name.
    pub metrics: Vec<Configured>,
}

/// Reads all experiments of a project, by name, each or why this version cannot read it.
/// # Errors
/// Those of Postgres.
pub async fn list(connection: &mut PgConnection, project: Uuid) -> Result<Vec<Result<Defined, Unsupported>>, sqlx::Error> {
    let experiments = experiments::list_each(connection, project).await?;
    Ok(experiments.into_iter().map(|experiment| defined(experiment?)).collect())
}

/// Finds an experiment by its id, else by its name.
/// # Errors
/// Those of [`experiments::find`].
pub async fn find(connection: &mut PgConnection, project: Uuid, name_or_id: &str) -> Result<Option<Defined>, ReadError> {
    let found = experiments::find(connection, project, name_or_id).await?;
    Ok(found.map(defined).transpose()?)
}

/// Returns the refusal of a question about an experiment that cannot be read.
pub fn refusal(error: &ReadError) -> ApiError {
    match error {
        ReadError::Database(error) => crate::engine::database_error(error),
        ReadError::Unsupported(unsupported) => ApiError {
            status: StatusCode::NOT_IMPLEMENTED,
            code: Code::UnsupportedCatalogue,
            message: unsupported.to_string(),
            field: None,
            retry_after_s: None,
        },
    }
}

fn defined(stored: experiments::Experiment) -> Result<Defined, Unsupported> {
    let confidence = stored.confidence_level.to_f64();
    let time = |time: Option<Micros>| time.map(|time| time_text(time.0));
    let mut sources = 0..;
    let metric = |metric| configured(metric, &stored.name, stored.conversion_window_days, &mut sources);
    let metrics = stored.metrics.into_iter().map(metric).collect::<Result<_, _>>()?;
    let variant = |variant: experiments::Variant| Variant {
        id: variant.id,
        name: variant.name,
        is_control: variant.is_control,
        weight: variant.weight.map(Decimal::to_f64),
        description: variant.description,
        // Postgres wrote it, so it is JSON.
        config_json: variant.config_json.and_then(|text| RawValue::from_string(text).ok()),
        users: None,
    };
    let experiment = Experiment {
        id: stored.id,
        name: stored.name,
        description: stored.description,
        status: stored.status.to_string(),
        started_at: time(stored.started_at),
        ended_at: time(stored.ended_at),
        started_us: stored.started_at.map(|time| time.0),
        ended_us: stored.ended_at.map(|time| time.0),
        days_running: None,
        confidence_level: confidence,
        alpha: (100.0 - confidence * 100.0).round() / 100.0,
        minimum_detectable_effect: stored.minimum_detectable_effect.to_f64(),
        target_sample_size: stored.target_sample_size,
        conversion_window_days: stored.conversion_window_days,
        attribution_method: stored.attribution_method.to_string(),
        currency: stored.currency,
        frozen_at: time(stored.frozen_at),
        behind_since: None,
        control_variant_id: None,
        phases: stored.phases.into_iter().map(phase).collect(),
    };
    Ok(Defined { experiment, variants: stored.variants.into_iter().map(variant).collect(), metrics })
}

fn phase(stored: experiments::Phase) -> Phase {
    let time = |time: Option<Micros>| time.map(|time| time_text(time.0));
    let weight =
        |share: experiments::PhaseWeight| PhaseWeight { variant_id: share.variant_id, weight: share.weight.map(Decimal::to_f64) };
    Phase {
        phase: stored.phase,
        state: stored.state.to_string(),
        reassigns: stored.reassigns,
        started_at: time(stored.started_at),
        ended_at: time(stored.ended_at),
        started_us: stored.started_at.map(|time| time.0),
        ended_us: stored.ended_at.map(|time| time.0),
        weights: stored.weights.into_iter().map(weight).collect(),
    }
}

/// Puts the parts of a metric together. The table's checks see to it that a ratio has a denominator and a quantile its share.
fn configured(
    metric: Metric,
    experiment: &str,
    window_days: i32,
    sources: &mut std::ops::RangeFrom<usize>,
) -> Result<Configured, Unsupported> {
    let missing = |column: &str, known| Unsupported {
        table: "metrics",
        row: format!("row {:?} of experiment {experiment:?}", metric.name),
        column: column.to_owned(),
        found: "null".to_owned(),
        known,
    };
    let amount = metric.numerator.unwrap_or(Amount::Value);
    let aggregation = match metric.aggregation {
        Stored::ConversionRate => Aggregation::ConversionRate,
        Stored::ValuePerUser => Aggregation::ValuePerUser,
        Stored::CountPerUser => Aggregation::CountPerUser,
        Stored::Ratio => Aggregation::Ratio(
            amount,
            match metric.denominator.ok_or_else(|| missing("denominator", ::catalogue::Denominator::TEXTS))? {
                ::catalogue::Denominator::Impressions => Denominator::Impressions,
                ::catalogue::Denominator::Conversions => {
                    Denominator::Conversions(metric.denominator_type.or_else(|| metric.conversion_type.clone()))
                }
            },
        ),
        Stored::Defined => {
            let reference = metric.definition.clone().ok_or_else(|| missing("definition", &["a metric definition"]))?;
            let window_us = reference.definition.window_us(window_days);
            // Numbers without an end.
            let source = sources.next().unwrap_or_default();
            Aggregation::Defined(Box::new(DefinedMetric { reference, source, window_us }))
        }
        Stored::Quantile => {
            let quantile = metric.quantile.ok_or_else(|| missing("quantile", &["a share between 0 and 1"]))?;
            // numeric(4,3) between 0 and 1.
            Aggregation::Quantile(amount, (quantile.millionths() / 1_000) as u16)
        }
    };
    Ok(Configured {
        name: metric.name,
        conversion_type: metric.conversion_type,
        aggregation,
        wants_more: metric.direction == Direction::Increase,
        role: metric.role,
        margin: metric.margin.map(Decimal::to_f64),
        window_days: metric.window_days,
        cap: metric.cap.map(Decimal::millionths),
        // numeric(7,4) up to 100.
        cap_percentile: metric.cap_percentile.map(|percentile| (percentile.millionths() / 100) as u32),
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

/// Counts the users who were exposed and take no part since they have too many rows.
/// # Errors
/// Those of Postgres.
pub async fn over_active_users(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<u64, sqlx::Error> {
    let users = "SELECT count(*) FROM over_active_users WHERE project_id = $1 AND $2 = ANY (experiments)";
    let users: i64 = sqlx::query_scalar(users).bind(project).bind(experiment).fetch_one(connection).await?;
    Ok(u64::try_from(users).unwrap_or(0))
}

/// Returns since when participation and attribution of an experiment wait for a recomputation, if they do.
/// # Errors
/// Those of Postgres.
pub async fn behind_since(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Option<String>, sqlx::Error> {
    let since = "SELECT to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') FROM experiments_behind
                 WHERE project_id = $1 AND experiment_id = $2";
    sqlx::query_scalar(since).bind(project).bind(experiment).fetch_optional(connection).await
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
                    ..Variant::default()
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
