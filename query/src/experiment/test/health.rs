//! What makes numbers unworthy of trust, before anybody reads them.

use crate::experiment::measure::Measured;
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::metrics::{MeasuredMetric, Split};
use crate::experiment::measure::population::{Excluded, Population};
use crate::experiment::measure::strata::{Shares, Strata};
use crate::experiment::measure::sums::{Sums, outlier_share};
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::request::{PopulationRule, Windows};
use crate::experiment::text::p_text;
use crate::experiment::warning::Warning;
use serde::Serialize;
use statistics::sample_ratio::{
    CONCENTRATION, OverStrata, SampleRatio, Status, sample_ratio, sample_ratio_over_strata, sequential, sequential_over_strata,
};

use super::earlier::{BALANCE_BELOW, balance};
use super::trigger::complement;

/// Below this p-value the shares of users are wrong beyond doubt, unless they differ by less than a tenth of a point.
pub const SRM_FAIL_BELOW: f64 = 0.001;
const SRM_WARN_BELOW: f64 = 0.01;
/// From this share of multi-exposed users on an answer warns, and fails.
pub const MULTI_WARN_FROM: f64 = 0.01;
const MULTI_FAIL_FROM: f64 = 0.1;
/// Multi-exposed users below which their share means nothing.
const MULTI_USERS_MIN: u64 = 10;
/// Users of each variant below which an answer warns.
const USERS_MIN: u64 = 100;
/// One weekly cycle: people behave otherwise on weekends.
const DAYS_MIN: u32 = 7;
/// A running experiment without an event for so long has lost its sender.
const LAG_MAX_US: i64 = DAY_US;
/// Below this share of ended windows most conversions may still come.
const MATURE_SHARE_MIN: f64 = 0.5;
/// From this part of the value in a hundredth of the users on, a mean is that of a few.
const OUTLIER_SHARE_MAX: f64 = 0.5;

/// Whether the numbers can be trusted.
#[derive(Debug, Serialize)]
pub struct Health {
    /// The worst level of all checks.
    pub overall: Level,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing found.
    Ok,
    /// Look at it.
    Warn,
    /// Do not decide on these numbers.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
#[serde(tag = "id", rename_all = "snake_case")]
pub enum Check {
    /// Whether the variants hold the users that they should.
    Srm {
        /// How bad it is.
        level: Level,
        /// `ok`, `mismatch`, `no_data` or `insufficient_sample`.
        status: &'static str,
        /// Chi-square; a rough one with `insufficient_sample`.
        statistic: Option<f64>,
        /// Its degrees of freedom.
        dof: Option<u64>,
        /// Its p-value.
        p_value: Option<f64>,
        /// Its decimal logarithm.
        log10_p: Option<f64>,
        /// Valid under daily looks: the least over all days of the inverse Bayes factor; null without users.
        sequential_p: Option<f64>,
        /// Its decimal logarithm.
        sequential_log10_p: Option<f64>,
        /// Expected shares of the variants with a weight above 0, in their order.
        expected: Vec<f64>,
        /// Shares found of the same; empty without users.
        observed: Vec<f64>,
        /// `configured`, or `assumed_equal` if the variants have no weights.
        weights: &'static str,
        /// The same test with users who saw several variants, in the variant that they saw first: leaving them out may
        /// itself tilt the shares. Absent where there are none.
        #[serde(skip_serializing_if = "Option::is_none")]
        p_value_with_multi_exposed: Option<f64>,
        /// Its decimal logarithm.
        #[serde(skip_serializing_if = "Option::is_none")]
        log10_p_with_multi_exposed: Option<f64>,
        /// The same test within each stratum, of whose statistics that of all is the sum; absent where shares never changed.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        strata: Vec<SrmOfStratum>,
        /// The same test within each value of the dimension that was asked for.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        by_dimension: Vec<SrmOfValue>,
    },
    /// Whether users saw several variants.
    MultiExposure {
        /// How bad it is.
        level: Level,
        /// Of all exposed users.
        share: Option<f64>,
        /// How many.
        users: u64,
    },
    /// Whether leaving out users who saw several variants takes equal parts from the variants. Where it does not, the rest is no
    /// fair sample, and unless something else was asked for the headline counts them for the variant that they saw first.
    ExclusionBias {
        /// How bad it is.
        level: Level,
        /// `ok`, `mismatch`, or `no_data` where nobody saw several variants.
        status: &'static str,
        /// Chi-square of left out and kept users by the variant that they saw first.
        statistic: Option<f64>,
        /// Its degrees of freedom.
        dof: Option<u64>,
        /// Its p-value.
        p_value: Option<f64>,
        /// Its decimal logarithm.
        log10_p: Option<f64>,
        /// Users who saw several variants, by the one that they saw first.
        left_out: Vec<u64>,
        /// What the headline does with them: `exclude_multi` or `first_exposure`.
        headline: PopulationRule,
    },
    /// Whether exposures named variants that do not exist.
    UnknownVariant {
        /// How bad it is.
        level: Level,
        /// Who.
        users: u64,
    },
    /// Whether users have too many rows to take part.
    OverActive {
        /// How bad it is.
        level: Level,
        /// Who was exposed.
        users: u64,
    },
    /// Whether the variants' users were alike before they were exposed.
    PreExposureBalance {
        /// How bad it is.
        level: Level,
        /// `ok`, `mismatch`, or `no_data` without behaviour before exposures.
        status: &'static str,
        /// The least over metrics and variants, times their number.
        p_value: Option<f64>,
        /// Its decimal logarithm.
        log10_p: Option<f64>,
        /// The metric of the least one.
        #[serde(skip_serializing_if = "Option::is_none")]
        metric: Option<String>,
    },
    /// Whether users who were exposed and never triggered are alike in all variants, where a trigger begins the analysis.
    TriggerComplement {
        /// How bad it is.
        level: Level,
        /// `ok`, `mismatch`, or `no_data` where nothing can be compared.
        status: &'static str,
        /// The least over goals and variants, times their number.
        p_value: Option<f64>,
        /// Its decimal logarithm.
        log10_p: Option<f64>,
        /// The metric of the least one.
        #[serde(skip_serializing_if = "Option::is_none")]
        metric: Option<String>,
        /// The share of each variant's exposed users who triggered; null without users.
        triggered: Vec<Option<f64>>,
    },
    /// Whether a week was seen.
    MinimumRuntime {
        /// How bad it is.
        level: Level,
        /// Days from the first exposure on.
        days: Option<f64>,
        /// Days that are needed.
        days_min: u32,
    },
    /// Whether each variant has 100 users.
    MinimumUsers {
        /// How bad it is.
        level: Level,
        /// Of the smallest variant.
        users: u64,
    },
    /// Whether a running experiment still gets events.
    Freshness {
        /// How bad it is.
        level: Level,
        /// From its newest exposure or conversion to now; null without any.
        lag_seconds: Option<i64>,
    },
    /// Whether conversion windows are over.
    MatureShare {
        /// How bad it is.
        level: Level,
        /// Of the users whose window is over.
        share: Option<f64>,
    },
    /// Whether a few users bring most of the value.
    OutlierShare {
        /// How bad it is.
        level: Level,
        /// Part of all value that the top hundredth of users brought; null with fewer than 100 such users.
        share: Option<f64>,
        /// The metric with the greatest one.
        #[serde(skip_serializing_if = "Option::is_none")]
        metric: Option<String>,
    },
}

/// The sample ratio of users who were assigned in the same shares.
#[derive(Debug, Serialize)]
pub struct SrmOfStratum {
    /// The share of each variant; null of one that was not in it.
    pub expected: Vec<Option<f64>>,
    /// Users by variant.
    pub users: Vec<u64>,
    /// As of the whole.
    pub status: &'static str,
    /// Chi-square.
    pub statistic: Option<f64>,
    /// Its p-value.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
}

/// The sample ratio within one value of a dimension.
#[derive(Debug, Serialize)]
pub struct SrmOfValue {
    /// The value; null where it is not known, and `other` for the rest together.
    pub value: Option<String>,
    /// Users by variant.
    pub users: Vec<u64>,
    /// How bad it is, with the p-value adjusted.
    pub level: Level,
    /// Of the chi-square test; null with too few users.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
    /// Times the number of values tested.
    pub p_adjusted: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p_adjusted: Option<f64>,
}

impl Check {
    /// Returns how bad it is.
    pub fn level(&self) -> Level {
        match self {
            Check::Srm { level, .. }
            | Check::MultiExposure { level, .. }
            | Check::ExclusionBias { level, .. }
            | Check::UnknownVariant { level, .. }
            | Check::OverActive { level, .. }
            | Check::PreExposureBalance { level, .. }
            | Check::TriggerComplement { level, .. }
            | Check::MinimumRuntime { level, .. }
            | Check::MinimumUsers { level, .. }
            | Check::Freshness { level, .. }
            | Check::MatureShare { level, .. }
            | Check::OutlierShare { level, .. } => *level,
        }
    }

    /// Returns whether the numbers rest on something that the check proved wrong.
    pub fn invalidates(&self) -> bool {
        match self {
            Check::ExclusionBias { level, headline, .. } => *level == Level::Fail && *headline == PopulationRule::ExcludeMulti,
            // A decision weighs the share itself.
            Check::MultiExposure { .. } => false,
            other => other.level() == Level::Fail,
        }
    }
}

/// Checks everything, and warns in words of what is wrong.
pub fn check(measured: &Measured<'_>, warnings: &mut Vec<Warning>) -> Health {
    let Measured { population, experiment, variants, metrics, split, .. } = measured;
    let groups = population.groups(population.window_us);
    let mut checks = vec![
        srm(population, variants, &groups, split.as_ref(), warnings),
        multi_exposure(population, warnings),
        exclusion_bias(population, warnings),
        unknown_variant(population, &measured.counts.excluded, warnings),
        over_active(population, &measured.counts.excluded, warnings),
        pre_exposure_balance(experiment, metrics, warnings),
        minimum_runtime(population, experiment),
        minimum_users(&groups),
        freshness(population, experiment, warnings),
        mature_share(population, experiment, warnings),
        outliers(metrics, warnings),
    ];
    checks.extend(complement(measured, warnings));
    Health { overall: checks.iter().map(Check::level).max().unwrap_or(Level::Ok), checks }
}

/// Returns the weights by which users should be spread, and whether they were set.
pub fn weights(variants: &[Variant]) -> (Vec<f64>, bool) {
    let configured = variants.iter().any(|variant| variant.weight.is_some());
    let weight = |variant: &Variant| if configured { variant.weight.unwrap_or(0.0) } else { 1.0 };
    (variants.iter().map(weight).collect(), configured)
}

/// Compares users with their shares, within strata where there are some. `cells` are users as of [`Groups::cells`].
pub fn ratio_of(strata: &Strata, weights: &[f64], cells: &[u64]) -> OverStrata {
    if strata.shares().is_empty() {
        let all = sample_ratio(cells, weights, SRM_FAIL_BELOW);
        let dof = (all.expected.len() as u64).saturating_sub(1);
        return OverStrata { all, dof, each: Vec::new() };
    }
    let of_stratum = |(users, shares): (&[u64], &Shares)| (users.to_vec(), shares.weights.clone());
    let all: Vec<_> = cells.chunks(weights.len().max(1)).zip(strata.shares()).map(of_stratum).collect();
    sample_ratio_over_strata(&all, SRM_FAIL_BELOW)
}

fn srm_level(found: &OverStrata, p_value: Option<f64>) -> Level {
    let off = |ratio: &SampleRatio| {
        let off = ratio.expected.iter().zip(&ratio.observed).map(|(expected, observed)| (expected - observed).abs());
        off.fold(0.0, f64::max)
    };
    let is_far_off = found.each.iter().map(off).fold(off(&found.all), f64::max) >= 0.001;
    match (found.all.status, p_value) {
        (Status::InsufficientSample, _) => Level::Ok,
        // A user in a variant of weight 0 is a mismatch whatever the shares are.
        (Status::Mismatch, p) if is_far_off || p.is_none_or(|p| p >= SRM_FAIL_BELOW) => Level::Fail,
        (Status::Mismatch, _) => Level::Warn,
        (_, Some(p)) if p < SRM_WARN_BELOW => Level::Warn,
        _ => Level::Ok,
    }
}

fn srm(
    population: &Population<'_>,
    variants: &[Variant],
    groups: &Groups,
    split: Option<&Split>,
    warnings: &mut Vec<Warning>,
) -> Check {
    let strata = &population.strata;
    let (weights, are_set) = weights(variants);
    let configured =
        strata.shares().iter().map(|shares| shares.are_configured).reduce(|one, other| one && other).unwrap_or(are_set);
    let found = ratio_of(strata, &weights, groups.cells());
    // Equal shares are only a guess where none were set.
    let bounded = |level: Level| if configured { level } else { level.min(Level::Warn) };
    let mut level = bounded(srm_level(&found, found.all.p_value));
    let mut with_multi = None;
    if population.multi_exposed() > 0 && population.rule == PopulationRule::ExcludeMulti {
        let all = population.groups_by(PopulationRule::FirstExposure, population.windows, population.window_us);
        let found = ratio_of(strata, &weights, all.cells());
        level = level.max(bounded(srm_level(&found, found.all.p_value)).min(Level::Warn));
        with_multi = found.all.p_value.zip(found.all.log10_p);
    }
    let sequential = sequential_log10_p(population, &weights);
    if sequential.is_some_and(|log10| log10 < SRM_FAIL_BELOW.log10()) {
        level = level.max(Level::Warn);
    }
    let by_dimension = split.map(|split| srm_by_value(split, strata, &weights, configured)).unwrap_or_default();
    level = level.max(by_dimension.iter().map(|found| found.level.min(Level::Warn)).max().unwrap_or(Level::Ok));
    if level > Level::Ok {
        let p = found.all.p_value.map(|p| format!(" (p = {})", p_text(p))).unwrap_or_default();
        let assumed = if configured { "" } else { ", assuming equal shares because the variants have no weights" };
        let message = format!("the variants do not hold the shares of users that they should{p}{assumed}; something loses users");
        warnings.push(Warning::new("sample_ratio_mismatch", message));
    }
    let stratum = |((users, shares), ratio): ((&[u64], &Shares), &SampleRatio)| SrmOfStratum {
        expected: shares.weights.clone(),
        users: users.to_vec(),
        status: ratio.status.as_str(),
        statistic: ratio.statistic,
        p_value: ratio.p_value,
        log10_p: ratio.log10_p,
    };
    let shown = groups.cells().chunks(weights.len().max(1)).zip(strata.shares()).zip(&found.each).map(stratum).collect();
    let ratio = found.all;
    Check::Srm {
        level,
        status: ratio.status.as_str(),
        statistic: ratio.statistic,
        dof: ratio.statistic.map(|_| found.dof),
        p_value: ratio.p_value,
        log10_p: ratio.log10_p,
        sequential_p: sequential.map(|log10| 10f64.powf(log10)),
        sequential_log10_p: sequential,
        expected: ratio.expected,
        observed: ratio.observed,
        weights: if configured { "configured" } else { "assumed_equal" },
        p_value_with_multi_exposed: with_multi.map(|p| p.0),
        log10_p_with_multi_exposed: with_multi.map(|p| p.1),
        strata: shown,
        by_dimension,
    }
}

/// Returns the decimal logarithm of the p-value that holds under daily looks; `None` without users, or where a variant of
/// weight 0 has some, which needs no test.
fn sequential_log10_p(population: &Population<'_>, weights: &[f64]) -> Option<f64> {
    let mut by_day = population.users_by_day(population.window_us).to_vec();
    for day in (1..by_day.len()).rev() {
        let (earlier, today) = by_day.split_at_mut(day);
        today[0].iter_mut().zip(&earlier[day - 1]).for_each(|(today, before)| *today -= before);
    }
    let strata = population.strata.shares();
    let found = match strata.is_empty() {
        true => sequential(&by_day, weights, CONCENTRATION),
        false => {
            let weights: Vec<_> = strata.iter().map(|shares| shares.weights.clone()).collect();
            sequential_over_strata(&by_day, &weights, CONCENTRATION)
        }
    };
    found.last().copied().filter(|log10| log10.is_finite())
}

fn srm_by_value(split: &Split, strata: &Strata, weights: &[f64], configured: bool) -> Vec<SrmOfValue> {
    let (arms, width) = (weights.len(), split.groups.users().len());
    let ratio = |place: usize| {
        let of_stratum = |cells: &[u64]| cells[place * arms..(place + 1) * arms].to_vec();
        let cells: Vec<u64> = split.groups.cells().chunks(width.max(1)).flat_map(of_stratum).collect();
        ratio_of(strata, weights, &cells)
    };
    let found: Vec<OverStrata> = (0..split.values.len()).map(ratio).collect();
    let ratios: Vec<&SampleRatio> = found.iter().map(|found| &found.all).collect();
    let is_tested = |ratio: &SampleRatio| ratio.p_value.is_some() && ratio.status != Status::InsufficientSample;
    let tested = ratios.iter().filter(|ratio| is_tested(ratio)).count().max(1) as f64;
    let of_value = |(place, ratio): (usize, &SampleRatio)| {
        let p_adjusted = ratio.p_value.filter(|_| is_tested(ratio)).map(|p| (p * tested).min(1.0));
        let level = match p_adjusted {
            Some(p) if p < SRM_FAIL_BELOW => Level::Fail,
            Some(p) if p < SRM_WARN_BELOW => Level::Warn,
            _ => Level::Ok,
        };
        SrmOfValue {
            value: split.values[place].text.clone(),
            users: split.groups.users()[place * arms..(place + 1) * arms].to_vec(),
            level: if configured { level } else { level.min(Level::Warn) },
            p_value: ratio.p_value,
            log10_p: ratio.log10_p,
            p_adjusted,
            log10_p_adjusted: ratio.log10_p.filter(|_| is_tested(ratio)).map(|log10| (log10 + tested.log10()).min(0.0)),
        }
    };
    ratios.into_iter().enumerate().map(of_value).collect()
}

fn multi_exposure(population: &Population<'_>, warnings: &mut Vec<Warning>) -> Check {
    let (users, share) = (population.multi_exposed(), population.multi_share());
    let level = match share {
        _ if users < MULTI_USERS_MIN => Level::Ok,
        Some(share) if share >= MULTI_FAIL_FROM => Level::Fail,
        Some(share) if share >= MULTI_WARN_FROM => Level::Warn,
        _ => Level::Ok,
    };
    if level > Level::Ok {
        let what = match population.rule {
            PopulationRule::ExcludeMulti => "are not counted",
            PopulationRule::FirstExposure => "count for the one that they saw first",
        };
        let message = format!("{users} of {} users saw several variants and {what}", population.cohort.users.len());
        warnings.push(Warning::new("multi_exposed", message));
    }
    Check::MultiExposure { level, share, users }
}

fn exclusion_bias(population: &Population<'_>, warnings: &mut Vec<Warning>) -> Check {
    let headline = population.rule;
    let Some(found) = population.exclusion() else {
        let (status, left_out) = ("no_data", Vec::new());
        return Check::ExclusionBias {
            level: Level::Ok,
            status,
            statistic: None,
            dof: None,
            p_value: None,
            log10_p: None,
            left_out,
            headline,
        };
    };
    if found.is_biased {
        let what = match headline {
            PopulationRule::ExcludeMulti => "who is left is no fair sample: ask with ?population=first_exposure",
            PopulationRule::FirstExposure => "so all of them count for the variant that they saw first",
        };
        let message = format!(
            "the variants would lose different parts of their users if those who saw several were left out (p = {}); {what}",
            p_text(found.p_value.p)
        );
        warnings.push(Warning::new("exclusion_bias", message));
    }
    Check::ExclusionBias {
        level: if found.is_biased { Level::Fail } else { Level::Ok },
        status: if found.is_biased { "mismatch" } else { "ok" },
        statistic: Some(found.statistic),
        dof: Some(found.dof),
        p_value: Some(found.p_value.p),
        log10_p: Some(found.p_value.log10),
        left_out: found.left_out,
        headline,
    }
}

fn unknown_variant(population: &Population<'_>, excluded: &Excluded, warnings: &mut Vec<Warning>) -> Check {
    let users = excluded.unknown_variant;
    let level = level_of_left_out(users, population);
    if level > Level::Ok {
        let message = format!(
            "events of {users} users name a variant that the experiment does not have; they wait as dead letters: see \
             `weir admin dead-letters list`, add the variant, and they are stored"
        );
        warnings.push(Warning::new("unknown_variant", message));
    }
    Check::UnknownVariant { level, users }
}

fn over_active(population: &Population<'_>, excluded: &Excluded, warnings: &mut Vec<Warning>) -> Check {
    let users = excluded.over_active;
    let level = level_of_left_out(users, population);
    if level > Level::Ok {
        let message = format!(
            "{users} user ids have so many events that they take no part, as one that many people share, or a program: see the table \
             `over_active_users`"
        );
        warnings.push(Warning::new("over_active", message));
    }
    Check::OverActive { level, users }
}

/// Users who are not in the cohort, and by that not in its sample ratio either: a few are told, many spoil the comparison.
fn level_of_left_out(users: u64, population: &Population<'_>) -> Level {
    let share = users as f64 / (users + population.cohort.users.len() as u64).max(1) as f64;
    match users {
        0 => Level::Ok,
        users if users >= MULTI_USERS_MIN && share >= MULTI_FAIL_FROM => Level::Fail,
        _ => Level::Warn,
    }
}

/// Compares what users did before they were exposed: nothing but chance may differ there.
fn pre_exposure_balance(experiment: &Experiment, measured: &[MeasuredMetric], warnings: &mut Vec<Warning>) -> Check {
    let mut least: Option<(f64, f64, &str)> = None;
    let mut tests = 0;
    if experiment.control_variant_id.is_some() {
        for metric in measured.iter().filter(|metric| !metric.covariates.is_empty()) {
            // Users who were assigned in other shares may have been others.
            let strata = |sums: &Sums| if sums.strata.is_empty() { vec![sums.clone()] } else { sums.strata.clone() };
            let arms: Vec<Vec<Sums>> = metric.sums.iter().map(strata).collect();
            for (arm, control) in arms.iter().skip(1).flat_map(|arm| arm.iter().zip(&arms[0])) {
                for (place, column) in metric.covariates.columns().iter().enumerate() {
                    let of = |sums: &Sums| sums.covariates.covariate(place, sums.users);
                    let Ok(Some(p)) = balance(&of(control), &of(arm)) else { continue };
                    tests += 1;
                    if least.is_none_or(|(_, log10, _)| p.log10 < log10) {
                        least = Some((p.p, p.log10, &column.name));
                    }
                }
            }
        }
    }
    let Some((p, log10, metric)) = least else {
        let status = "no_data";
        return Check::PreExposureBalance { level: Level::Ok, status, p_value: None, log10_p: None, metric: None };
    };
    let (p, log10) = ((p * f64::from(tests)).min(1.0), (log10 + f64::from(tests).log10()).min(0.0));
    let is_off = p < BALANCE_BELOW;
    if is_off {
        let message = format!(
            "users of the variants differed in {metric} before they were exposed (p = {}), so that it is not adjusted for what they \
             did then; look for what decides who is exposed",
            p_text(p)
        );
        warnings.push(Warning::new("pre_exposure_balance", message));
    }
    Check::PreExposureBalance {
        level: if is_off { Level::Warn } else { Level::Ok },
        status: if is_off { "mismatch" } else { "ok" },
        p_value: Some(p),
        log10_p: Some(log10),
        metric: Some(metric.to_owned()),
    }
}

fn minimum_runtime(population: &Population<'_>, experiment: &Experiment) -> Check {
    let days = population.first_exposure().map(|first| {
        let begun = experiment.started_us.map_or(first, |started| started.min(first));
        let end = experiment.ended_us.map_or(population.now, |ended| ended.min(population.now));
        (end - begun).max(0) as f64 / DAY_US as f64
    });
    let is_short = days.is_some_and(|days| days < f64::from(DAYS_MIN));
    Check::MinimumRuntime { level: if is_short { Level::Warn } else { Level::Ok }, days, days_min: DAYS_MIN }
}

fn minimum_users(groups: &Groups) -> Check {
    let users = groups.users().iter().copied().min().unwrap_or(0);
    Check::MinimumUsers { level: if users < USERS_MIN { Level::Warn } else { Level::Ok }, users }
}

fn freshness(population: &Population<'_>, experiment: &Experiment, warnings: &mut Vec<Warning>) -> Check {
    let lag = population.newest().map(|newest| (population.now - newest).max(0));
    let is_stale = experiment.status == "running" && lag.is_some_and(|lag| lag > LAG_MAX_US);
    if let Some(lag) = lag.filter(|_| is_stale) {
        let message = format!(
            "the experiment runs, but its newest event is {:.1} days older than the newest event of all; does its sender still work?",
            lag as f64 / DAY_US as f64
        );
        warnings.push(Warning::new("stale", message));
    }
    Check::Freshness { level: if is_stale { Level::Warn } else { Level::Ok }, lag_seconds: lag.map(|lag| lag / 1_000_000) }
}

fn mature_share(population: &Population<'_>, experiment: &Experiment, warnings: &mut Vec<Warning>) -> Check {
    let (any, mature) = population.maturity();
    let share = (any > 0).then(|| mature as f64 / any as f64);
    if mature < any && population.windows == Windows::All {
        let message = format!(
            "the conversion window of {} days is over for {mature} of {any} users; later conversions of the others still change \
             the numbers",
            experiment.conversion_window_days,
        );
        warnings.push(Warning::new("windows_incomplete", message));
    }
    let is_young = share.is_some_and(|share| share < MATURE_SHARE_MIN);
    Check::MatureShare { level: if is_young { Level::Warn } else { Level::Ok }, share }
}

fn outliers(measured: &[MeasuredMetric], warnings: &mut Vec<Warning>) -> Check {
    let values = measured.iter().filter(|metric| metric.configured.aggregation.is_value());
    let shares = values.filter_map(|metric| Some((outlier_share(&metric.entries, &metric.groups)?, metric)));
    let greatest = shares.fold(None, |greatest: Option<(f64, &MeasuredMetric)>, found| match greatest {
        Some(greatest) if greatest.0 >= found.0 => Some(greatest),
        _ => Some(found),
    });
    let is_high = greatest.is_some_and(|(share, _)| share > OUTLIER_SHARE_MAX);
    if let Some((share, metric)) = greatest.filter(|_| is_high) {
        let message = format!(
            "a hundredth of the users with a value brings {:.0} % of {}; a cap keeps them from deciding alone",
            share * 100.0,
            metric.configured.name
        );
        warnings.push(Warning::new("outliers", message));
    }
    Check::OutlierShare {
        level: if is_high { Level::Warn } else { Level::Ok },
        share: greatest.map(|(share, _)| share),
        metric: greatest.map(|(_, metric)| metric.configured.name.clone()),
    }
}
