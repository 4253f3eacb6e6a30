//! What is known of an experiment before any event: itself, its variants, its metrics.

use ::catalogue::definitions::{Definition, PerUser, Quantile};
use ::catalogue::experiments::{self, CONTROL_NAMES};
use ::catalogue::metrics::Metric;
use ::catalogue::versions::Reference;
use ::catalogue::{Aggregation as Stored, Decimal, Direction, ReadError, Unsupported};
pub use ::catalogue::{Amount, Role};
use events::Micros;
use hyper::StatusCode;
use serde_json::value::RawValue;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::experiment::{Experiment, Phase, PhaseWeight, Variant};
use crate::experiment::read::sources::{CovariateSource, SourceQuery};
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
    pub reference: Reference<Definition>,
    /// The place of its events among those that are read.
    pub source: usize,
    /// The place of the events that it is over, where these are others.
    pub over: Option<usize>,
    /// The places of the events that have to follow.
    pub then: Vec<usize>,
    /// When they count, in microseconds after the first exposure, half open.
    pub window_us: (i64, i64),
}

impl Aggregation {
    /// Returns whether it comes to money, so that a currency and a cap belong to it.
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
            Aggregation::Defined(defined) => !self.is_ratio() && defined.reference.definition.per_user.is_share(),
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

    /// Returns whether two sums over all users are divided by each other.
    pub fn is_ratio(&self) -> bool {
        match self {
            Aggregation::Ratio(..) => true,
            Aggregation::Defined(defined) => defined.reference.definition.over.is_some(),
            _ => false,
        }
    }

    /// Returns which quantile of the users it is, in thousandths, if it is one.
    pub fn quantile(&self) -> Option<u16> {
        match self {
            Aggregation::Quantile(_, thousandths) => Some(*thousandths),
            Aggregation::Defined(defined) => defined.reference.definition.quantile.map(Quantile::thousandths),
            _ => None,
        }
    }

    /// Returns whether what users come to grows as long as there are events.
    pub fn is_open(&self) -> bool {
        matches!(self, Aggregation::Defined(defined) if defined.reference.definition.is_open())
    }

    /// Returns whether each time adds its own part to what a user comes to, or makes of the user one who has it.
    pub fn adds_up(&self) -> bool {
        match self {
            _ if self.is_ratio() || self.quantile().is_some() => false,
            Aggregation::Defined(defined) => {
                !matches!(defined.reference.definition.per_user, PerUser::Min | PerUser::Max | PerUser::First | PerUser::Last)
            }
            _ => true,
        }
    }

    /// Returns whether it has sums at the end of each day: impressions have no days here, and quantiles do not add up.
    pub fn has_days(&self) -> bool {
        self.quantile().is_none() && !matches!(self, Aggregation::Ratio(_, Denominator::Impressions))
    }

    /// Returns the type as answers carry it.
    pub fn kind(&self) -> &'static str {
        match self {
            _ if self.is_share() => "proportion",
            _ if self.is_ratio() => "ratio",
            _ if self.quantile().is_some() => "quantile",
            _ => "mean",
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
    /// Returns when its window after the first exposure is over, in microseconds; `window_days` is the experiment's.
    pub fn window_ends_us(&self, window_days: i32) -> i64 {
        match &self.aggregation {
            Aggregation::Defined(defined) => defined.window_us.1,
            _ => i64::from(self.window_days.unwrap_or(window_days)) * DAY_US,
        }
    }

    /// Returns what is taken off beside what users did before of the same.
    pub fn covariates(&self) -> Vec<CovariateSource> {
        let Aggregation::Defined(defined) = &self.aggregation else { return Vec::new() };
        defined.reference.definition.covariates.iter().filter_map(|name| CovariateSource::of(name)).collect()
    }

    /// Returns the events that its definition speaks of, in the order of their places; none of a metric of conversions.
    pub fn sources(&self) -> Vec<SourceQuery> {
        let Aggregation::Defined(defined) = &self.aggregation else { return Vec::new() };
        let definition = &defined.reference.definition;
        // A covariate is for means, ratios and shares.
        let has_before = definition.quantile.is_none() && definition.then.is_empty();
        let source = |of: &Definition| SourceQuery { definition: of.clone(), window_us: defined.window_us, has_before };
        let then = definition.then.iter().map(|step| source(&step.definition()));
        let over = definition.over.as_deref().filter(|_| defined.over.is_some());
        std::iter::once(definition).chain(over).map(source).chain(then).collect()
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
        exposure: stored.exposure,
        trigger: stored.trigger,
        policy: stored.policy,
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
            let has_others = reference.definition.over.is_some() && !reference.definition.is_over_own_events();
            let over = if has_others { sources.next() } else { None };
            let then = reference.definition.then.iter().filter_map(|_| sources.next()).collect();
            Aggregation::Defined(Box::new(DefinedMetric { reference, source, over, then, window_us }))
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

/// What is stored of an experiment beside its cohort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// Users whose events wait as dead letters because they name a variant that the experiment does not have.
    pub unknown_variant: u64,
    /// Users who were exposed and take no part since they have too many rows.
    pub over_active: u64,
    /// Impressions that are no bot's, whether they count or not.
    pub impressions: u64,
    /// Since when participation and attribution wait for a recomputation, if they do.
    pub behind_since: Option<String>,
}

/// Reads what is stored of an experiment beside its cohort, in one statement: where all processors are busy, each is a wait for one.
/// # Errors
/// Those of Postgres.
pub async fn beside(connection: &mut PgConnection, project: Uuid, experiment: &Experiment) -> Result<Beside, sqlx::Error> {
    // The bytes of such a letter were decoded once, so they are JSON. Postgres cannot take apart one that holds U+0000.
    let row = sqlx::query(
        r#"SELECT
            (SELECT count(DISTINCT letter::json #>> '{event,user_id}')
             FROM (SELECT convert_from(bytes, 'UTF8') AS letter FROM dead_letters
                   WHERE status = 'open' AND project_id = $1 AND code = 'unknown_variant'
                     AND position('\u0000' IN convert_from(bytes, 'UTF8')) = 0
                   ORDER BY id LIMIT $4) l
             WHERE letter::json #>> '{event,experiment}' IN ($3, $2::uuid::text)) AS unknown_variant,
            (SELECT count(*) FROM over_active_users WHERE project_id = $1 AND $2 = ANY (experiments)) AS over_active,
            (SELECT coalesce(sum(events), 0)::bigint FROM daily_rollups
             WHERE project_id = $1 AND kind = 'impression' AND experiment_id = $2 AND NOT is_bot) AS impressions,
            (SELECT to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM experiments_behind
             WHERE project_id = $1 AND experiment_id = $2) AS behind_since"#,
    )
    .bind(project)
    .bind(experiment.id)
    .bind(&experiment.name)
    .bind(LETTERS_MAX)
    .fetch_one(connection)
    .await?;
    let count = |column| Ok::<_, sqlx::Error>(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0));
    Ok(Beside {
        unknown_variant: count("unknown_variant")?,
        over_active: count("over_active")?,
        impressions: count("impressions")?,
        behind_since: row.try_get("behind_since")?,
    })
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
