//! What tests find, as answers carry it.

use serde::Serialize;
use statistics::comparison;
use statistics::difference::Difference;
use uuid::Uuid;

/// What holds under looks on the way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sequential {
    /// `sequential`, `group_sequential` or `hybrid`; of a fixed analysis too, for comparison. Under group sequential bounds a sequence
    /// over all users, at a small part of alpha, calls what is broken before windows close.
    pub method: &'static str,
    /// Part of the planned information that is there, at most 1; null without a plan.
    pub information_fraction: Option<f64>,
    /// Users of both, whatever their windows are.
    pub exposed: u64,
    /// Those whose window has closed, on whom bounds rest; of group sequential and hybrid analyses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ripe: Option<u64>,
    /// The day on which the next window closes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_information_on: Option<LookOn>,
    /// What |z| has to reach at the look that counts; null without a plan.
    pub boundary_z: Option<f64>,
    /// The estimate at that look in standard errors; of shares those of both variants together.
    pub z: f64,
    /// Whether the bound is reached at that look.
    pub crossed: bool,
    /// The day of that look, where an earlier one decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crossed_on: Option<LookOn>,
    /// The day of that look, where it reached the planned size without deciding: later ones are not tested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_look_on: Option<LookOn>,
    /// Interval of the difference under `method`, at that look.
    pub ci: [Option<f64>; 2],
    /// The same in shares of the control.
    pub ci_relative: [Option<f64>; 2],
    /// Valid at any time.
    pub always_valid_p: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
    /// Decimal logarithm of the evidence against no difference.
    pub log10_e: f64,
    /// The number of users at which the interval is at its best.
    pub n_star: f64,
}

impl Sequential {
    /// Sets the intervals to those that reach `critical` standard errors.
    pub fn reaching(self, difference: &Difference, critical: f64) -> Self {
        Sequential {
            boundary_z: Some(critical),
            ci: ends(Some(difference.absolute(critical))),
            ci_relative: ends(difference.relative(critical)),
            ..self
        }
    }
}

/// The day of a look, in days since 1970; written as a date.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LookOn(pub i64);

impl std::fmt::Display for LookOn {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match chrono::DateTime::from_timestamp(self.0.saturating_mul(86_400), 0) {
            Some(time) => write!(out, "{}", time.format("%Y-%m-%d")),
            None => write!(out, "day {} since 1970", self.0),
        }
    }
}

impl Serialize for LookOn {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// What to believe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bayesian {
    /// `beta_binomial` or `normal`.
    pub model: &'static str,
    /// That the variant is better than the control.
    pub chance_to_win: f64,
    /// That it is the best of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability_best: Option<f64>,
    /// What is lost on average by taking the variant if it is worse, in the metric's unit.
    pub expected_loss_ship: f64,
    /// What is lost on average by keeping the control if it is worse.
    pub expected_loss_keep: f64,
    /// Of the difference, between the quantiles of the posterior.
    pub ci: [Option<f64>; 2],
    /// What was believed before.
    pub prior: Prior,
    /// The relative difference, drawn towards 0 by a sceptical prior.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Shrunk>,
}

/// What was believed before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prior {
    /// `beta` or `flat`.
    pub name: &'static str,
    /// Of a beta prior: both shapes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shapes: Option<[f64; 2]>,
}

/// The relative difference, drawn towards 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Shrunk {
    /// Standard deviation of the prior, around 0.
    pub prior_sd: f64,
    /// Mean of the posterior.
    pub lift: f64,
    /// Between its quantiles.
    pub ci: [f64; 2],
    /// That the variant is better.
    pub chance_to_win: f64,
}

/// What is taken off for one covariate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Covariate {
    /// What it is.
    pub name: String,
    /// How much of it is taken off; left out if the others say the same, or there are too few users for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coefficient: Option<f64>,
}

/// What earlier behaviour adds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cuped {
    /// Whether the comparison is adjusted.
    pub applied: bool,
    /// Why not: `off`, `no_history`, `explains_little`, `exact`, `not_defined` for this sort of metric, or `differs_before`: the
    /// variants' users were not alike before they were exposed (p below 0.001).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// How much of the earlier behaviour is taken off, of the same metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theta: Option<f64>,
    /// The same of each covariate, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub covariates: Vec<Covariate>,
    /// Part of the variance of the difference that is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variance_reduction: Option<f64>,
    /// So many times the users would have been needed without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_sample_gain: Option<f64>,
    /// Days before the first exposure.
    pub covariate_days: i64,
}

/// The same under other settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Supplemental {
    /// Without earlier behaviour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unadjusted: Option<Other>,
    /// Without a cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncapped: Option<Other>,
    /// With users who saw several variants, in the one that they saw first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multi_exposed_first: Option<Other>,
    /// Only with users whose conversion window is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub complete_windows: Option<Other>,
}

impl Supplemental {
    /// Returns whether no other setting says anything else.
    pub fn is_empty(&self) -> bool {
        *self == Supplemental::default()
    }
}

/// A comparison in short.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Other {
    /// Users of both.
    pub users: u64,
    /// How far it is defined.
    pub status: &'static str,
    /// The difference.
    pub estimate: Option<f64>,
    /// Its interval.
    pub ci: [Option<f64>; 2],
    /// The relative difference.
    pub lift: Option<f64>,
    /// Its interval.
    pub ci_relative: [Option<f64>; 2],
    /// For one look.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
}

/// How much could be seen by now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Power {
    /// The relative effect that would be found with a chance of 80 %.
    pub mde_now: f64,
    /// The one that is to be found.
    pub mde_target: f64,
    /// Part of the precision that is needed, at most 1.
    pub progress: f64,
    /// Users of both that are needed for it, those that are there included.
    pub required_users: Option<u64>,
    /// At the rate of new users of the last seven full days; null where there were none.
    pub days_remaining: Option<f64>,
    /// The chance to find the effect that is to be found with today's users.
    pub power_at_mde: f64,
}

/// Whether harm was done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Guardrail {
    /// The relative loss that is borne.
    pub margin: f64,
    /// The worst relative difference that is still believable, one-sided.
    pub bound: Option<f64>,
    /// Of the one-sided test that the loss is within the margin.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
    /// `safe`, `inconclusive` or `harmed`.
    pub state: &'static str,
    /// What users did within a day of their exposure, where the plan waits for windows that are longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_warning: Option<EarlyWarning>,
}

/// Whether users do worse within a day of their exposure, at any time, by a part of alpha of its own.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EarlyWarning {
    /// Users of both who were exposed for a day.
    pub users: u64,
    /// The difference: at the look that called harm, else at the last one.
    pub estimate: f64,
    /// Its interval, at any time.
    pub ci: [Option<f64>; 2],
    /// For harm, at any time.
    pub always_valid_p: f64,
    /// The day on which harm was called; left out while it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub called_on: Option<LookOn>,
}

/// What a day would bring with everybody in the variant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ScaledImpact {
    /// In the metric's unit.
    pub per_day: f64,
    /// Its interval.
    pub ci: [Option<f64>; 2],
    /// Users a day over all variants, on average.
    pub users_per_day: f64,
}

/// A test that all variants are alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Omnibus {
    /// `chi_square`, of rates without, of means with unequal variances.
    pub test: &'static str,
    /// Its statistic.
    pub statistic: f64,
    /// Its degrees of freedom.
    pub dof: f64,
    /// For one look.
    pub p_value: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
}

impl From<comparison::Omnibus> for Omnibus {
    fn from(found: comparison::Omnibus) -> Self {
        let comparison::Omnibus { statistic, dof, p_value } = found;
        Omnibus { test: "chi_square", statistic, dof, p_value: p_value.p, log10_p: p_value.log10 }
    }
}

/// Whether the values of a dimension differ in their effects.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heterogeneity {
    /// Of which variant against the control.
    pub variant_id: Uuid,
    /// Cochran's Q.
    pub statistic: f64,
    /// Values compared, less one.
    pub dof: f64,
    /// For one look.
    pub p_value: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
    /// The difference within each value, in their order, drawn towards that of all by what chance explains of how they differ; null where it has
    /// no precision. Left out of fewer than three values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<Vec<Option<f64>>>,
}

/// One day.
#[derive(Debug, Serialize)]
pub struct Day {
    /// In UTC.
    pub date: String,
    /// At its end.
    pub cumulative: Cumulative,
    /// On the day alone, in the order of `variants`.
    pub daily: Vec<DailyArm>,
}

/// What was known at the end of a day.
#[derive(Debug, Serialize)]
pub struct Cumulative {
    /// Each variant, in the order of `variants`.
    pub arms: Vec<SeriesArm>,
    /// Each other variant against the control.
    pub comparisons: Vec<SeriesComparison>,
    /// Of the sample ratio, for one look.
    pub srm_p: Option<f64>,
    /// Its decimal logarithm.
    pub log10_srm_p: Option<f64>,
}

/// One variant at the end of a day.
#[derive(Debug, Serialize)]
pub struct SeriesArm {
    /// Which one.
    pub variant_id: Uuid,
    /// Users so far.
    pub users: u64,
    /// Users so far who converted.
    pub converters: u64,
    /// So far.
    pub mean: Option<f64>,
}

/// One variant on one day.
#[derive(Debug, Serialize)]
pub struct DailyArm {
    /// Which one.
    pub variant_id: Uuid,
    /// Users whose first exposure was on that day.
    pub users: u64,
    /// Users who converted for the first time.
    pub converters: u64,
    /// What was added to the sum, cut as the sum is.
    pub amount: String,
}

/// One variant against the control at the end of a day.
#[derive(Debug, Serialize)]
pub struct SeriesComparison {
    /// Which one.
    pub variant_id: Uuid,
    /// Treatment minus control.
    pub estimate: Option<f64>,
    /// For one look.
    pub ci: [Option<f64>; 2],
    /// Valid at any time.
    pub ci_sequential: [Option<f64>; 2],
    /// The relative difference.
    pub lift: Option<f64>,
    /// Its interval, for one look.
    pub ci_relative: [Option<f64>; 2],
    /// For one look.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
    /// Valid at any time.
    pub always_valid_p: Option<f64>,
    /// Its decimal logarithm.
    pub log10_always_valid_p: Option<f64>,
}

/// A metric by the time since each user's own first exposure.
#[derive(Debug, Serialize)]
pub struct SinceExposure {
    /// Each day, of the users who were exposed for that long.
    pub days: Vec<SinceExposureDay>,
    /// For each other variant, whether its effect changes with time; empty where nobody was exposed for 14 days, or the metric does not
    /// add up over so many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub novelty: Vec<Novelty>,
}

/// One day since the exposure.
#[derive(Debug, Serialize)]
pub struct SinceExposureDay {
    /// 0 is the first 24 hours.
    pub day: u32,
    /// Each variant, in the order of `variants`.
    pub arms: Vec<SinceExposureArm>,
    /// Each other variant against the control.
    pub comparisons: Vec<SinceExposureComparison>,
}

/// One variant on one day since the exposure.
#[derive(Debug, Serialize)]
pub struct SinceExposureArm {
    /// Which one.
    pub variant_id: Uuid,
    /// Users who were exposed for that long.
    pub users: u64,
    /// What they come to on that day; of a share, how many of them convert on it for the first time.
    pub mean: Option<f64>,
}

/// One variant against the control on one day since the exposure, for one look.
#[derive(Debug, Serialize)]
pub struct SinceExposureComparison {
    /// Which one.
    pub variant_id: Uuid,
    /// The difference.
    #[serde(flatten)]
    pub found: Other,
}

/// The effect a day in days 0 to 2 since the exposure and in days 7 to 13, of the same users.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Novelty {
    /// Of which variant against the control.
    pub variant_id: Uuid,
    /// Users of both who were exposed for 14 days.
    pub users: u64,
    /// The effect a day in days 0 to 2.
    pub early: f64,
    /// The effect a day in days 7 to 13.
    pub late: f64,
    /// The late effect less the early one.
    pub change: f64,
    /// Its standard error.
    pub std_error: f64,
    /// Its interval.
    pub ci: [Option<f64>; 2],
    /// That the effect does not change, for one look.
    pub p_value: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
}

/// Returns the two ends of an interval as answers carry them.
pub fn ends(interval: Option<(f64, f64)>) -> [Option<f64>; 2] {
    let finite = |end: f64| end.is_finite().then_some(end);
    [interval.and_then(|ends| finite(ends.0)), interval.and_then(|ends| finite(ends.1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_that_are_not_finite_are_left_out() {
        assert_eq!(ends(Some((f64::NEG_INFINITY, 2.0))), [None, Some(2.0)]);
        assert_eq!(ends(None), [None, None]);
    }
}
