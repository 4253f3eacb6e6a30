//! One metric of an answer: each variant alone, then each against the control.

use ::catalogue::definitions;
use ::catalogue::versions::Reference;
use serde::Serialize;
use statistics::effect::{Alternative, Scale};
use statistics::moments::{Moments, decimal_text};
use statistics::proportions::{newcombe, pooled_z};
use uuid::Uuid;

use super::verdict::{plain, verdict};
use crate::experiment::measure::counted::LeftOut;
use crate::experiment::measure::sample::Sampled;
use crate::experiment::measure::sums::Sums;
use crate::experiment::read::catalogue::{Aggregation, Amount, Configured, Denominator, Role};
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::request::{Analysis, Correction, percentile_text};
use crate::experiment::test::TestedMetric;
use crate::experiment::test::breakdown::BreakdownValue;
use crate::experiment::test::comparison::{Compared, Conclusion, Design, TestedComparison, counts};
use crate::experiment::test::findings::{
    Bayesian, Cuped, Day, Guardrail, Heterogeneity, Omnibus, Power, ScaledImpact, Sequential, SinceExposure, Supplemental, ends,
};
use crate::experiment::test::trigger::Diluted;

/// One metric.
#[derive(Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub id: String,
    /// `proportion`, `mean`, `ratio` or `quantile`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What it decides.
    pub role: Role,
    /// `increase` or `decrease`.
    pub direction: &'static str,
    /// What it counts.
    pub definition: Definition,
    /// After the first exposure a conversion counts for so long; null without an end.
    pub window_days: Option<i32>,
    /// Of values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// What a user's sum is cut at; null where nothing is cut.
    pub cap: Option<Cap>,
    /// Conversions of a ratio that are in neither numerator nor denominator, where there are any.
    #[serde(skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// Each variant alone, in the order of `variants`.
    pub arms: Vec<Arm>,
    /// Each other variant against the control; empty without one.
    pub comparisons: Vec<Comparison>,
    /// Whether all variants are alike; with three or more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omnibus: Option<Omnibus>,
    /// The same within each value of the dimension asked for, most users first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Vec<OfValue>>,
    /// Whether the values of the dimension differ in their effects, for each compared variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heterogeneity: Option<Vec<Heterogeneity>>,
    /// Each day; left out for metrics that do not add up over days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Vec<Day>>,
    /// By the time since each user's own exposure, where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_exposure: Option<SinceExposure>,
}

/// What a metric counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Definition {
    /// `conversion_rate`, `value_per_user`, `count_per_user`, `ratio`, `quantile` or `defined`.
    pub aggregation: &'static str,
    /// The definition of the project that says what is measured: its name, version and content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub defined: Option<Reference<definitions::Definition>>,
    /// The conversions that count; null: all.
    pub conversion: Option<String>,
    /// `value` or `count`, of a ratio or quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerator: Option<&'static str>,
    /// `conversions` or `impressions`, of a ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator: Option<&'static str>,
    /// The conversions of the denominator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator_conversion: Option<String>,
    /// Of users' sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<f64>,
    /// The relative loss that a guardrail bears.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// The amount that was set for users' sums to be cut at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<String>,
    /// The percentile that was set for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_percentile: Option<String>,
}

/// What users' sums are cut at, in all variants alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cap {
    /// The amount.
    pub value: String,
    /// The percentile of the sums that are not 0; absent where the amount was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile: Option<String>,
    /// Users whose sum was cut, in the order of `variants`.
    pub users: Vec<u64>,
}

/// One variant alone.
#[derive(Debug, Serialize)]
pub struct Arm {
    /// Which one.
    pub variant_id: Uuid,
    /// Users, converted or not.
    pub users: u64,
    /// Users who converted, of a proportion; conversions, of a count or of a ratio of counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerator: Option<u64>,
    /// What a ratio is over: conversions or impressions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator: Option<u64>,
    /// Over all users, of sums as they are cut; null where it is not defined.
    pub mean: Option<f64>,
    /// Of one user; null where it is not defined.
    pub std_dev: Option<f64>,
    /// Of the mean; null where it is not defined.
    pub ci: [Option<f64>; 2],
    /// The exact sum of values, never cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<String>,
}

/// One variant against the control.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Which one.
    pub variant_id: Uuid,
    /// How far it is defined.
    pub status: &'static str,
    /// `t`, or `exact` where counts are few.
    pub approximation: &'static str,
    /// Treatment minus control.
    pub absolute: Absolute,
    /// The same in shares of the control.
    pub relative: Relative,
    /// The test of no difference, for one look.
    pub test: Test,
    /// The decisive result among all comparisons of goal metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<Adjusted>,
    /// What holds under looks on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequential: Option<Sequential>,
    /// What to believe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bayesian: Option<Bayesian>,
    /// What earlier behaviour adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuped: Option<Cuped>,
    /// The same under other settings, where that differs.
    #[serde(skip_serializing_if = "Supplemental::is_empty")]
    pub supplemental: Supplemental,
    /// How much could be seen by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// Whether harm was done, of a guardrail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guardrail: Option<Guardrail>,
    /// What a day would bring with everybody in the variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaled_impact: Option<ScaledImpact>,
    /// The effect among all who were exposed, where a trigger begins the analysis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diluted: Option<Diluted>,
    /// `won`, `lost`, `neutral` or `inconclusive`, by what `decided_by` names.
    pub verdict: &'static str,
    /// Whether the verdict is significant.
    pub significant: bool,
    /// The method whose result the verdict is.
    pub decided_by: &'static str,
    /// The same as a sentence.
    pub plain: String,
}

/// Treatment minus control.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Absolute {
    /// The difference.
    pub estimate: Option<f64>,
    /// Its standard error.
    pub std_error: Option<f64>,
    /// Its interval: Welch's, or Newcombe's where only exact methods apply.
    pub ci: [Option<f64>; 2],
    /// Newcombe's interval, where counts are few.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci_newcombe: Option<[f64; 2]>,
}

/// The difference in shares of the control.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Relative {
    /// 0.1 is ten percent more.
    pub lift: Option<f64>,
    /// Its interval.
    pub ci: [Option<f64>; 2],
    /// How `ci` was made.
    pub ci_method: &'static str,
    /// From 1 on the interval has no ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g: Option<f64>,
    /// The interval that other products show; not used for decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci_delta: Option<[f64; 2]>,
    /// The p-value that belongs to it; not used for decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_delta: Option<f64>,
    /// Its decimal logarithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log10_p_delta: Option<f64>,
}

/// The test of no difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Test {
    /// `welch_t` or `fisher_exact`.
    pub name: &'static str,
    /// Of Welch's test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statistic: Option<f64>,
    /// Of Welch's test.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dof: Option<f64>,
    /// Two-sided; 0 where it underflows.
    pub p_value: Option<f64>,
    /// Its decimal logarithm, finite also then.
    pub log10_p: Option<f64>,
    /// Fisher's p-value, where counts are few; then it decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_fisher: Option<f64>,
    /// Its decimal logarithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log10_p_fisher: Option<f64>,
    /// The p-value of the pooled z-test, which calculators show; not used for decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p_pooled: Option<f64>,
    /// Its decimal logarithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log10_p_pooled: Option<f64>,
}

/// The decisive result among all comparisons of goal metrics.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Adjusted {
    /// `holm`, `bh`, `preferential_bonferroni`, `none`; of group sequential bounds `bonferroni`.
    pub method: &'static str,
    /// How many tests.
    pub family_size: usize,
    /// Adjusted; null where a bound decides, which has no p-value.
    pub p_value: Option<f64>,
    /// Its decimal logarithm.
    pub log10_p: Option<f64>,
    /// The share of false alarms that the intervals here allow for.
    pub alpha: f64,
    /// Interval of the difference among all.
    pub ci_absolute: [Option<f64>; 2],
    /// Interval of the relative difference among all.
    pub ci_relative: [Option<f64>; 2],
    /// Whether it stands among all.
    pub significant: bool,
}

/// The metric within one value of a dimension.
#[derive(Debug, Serialize)]
pub struct OfValue {
    /// The value; null where it is not known, and `other` for the rest together.
    pub value: Option<String>,
    /// `value`, `unknown` or `other`.
    pub kind: &'static str,
    /// Each variant alone.
    pub arms: Vec<Arm>,
    /// Each other variant against the control; adjusted among the values of this dimension.
    pub comparisons: Vec<Comparison>,
}

/// Describes one metric.
pub fn metric(design: &Design<'_>, tested: TestedMetric<'_>) -> Metric {
    let TestedMetric { measured, comparisons, omnibus, breakdown, series, since_exposure } = tested;
    let configured = &measured.configured;
    let alpha = design.experiment.alpha;
    let arms = design.variants.iter().enumerate().map(|(place, variant)| {
        arm(configured, variant.id, &measured.sampled[place], &measured.sums[place], &measured.raw[place], alpha)
    });
    let of_value = |part: BreakdownValue| {
        let arms = part.arms.iter().zip(design.variants);
        OfValue {
            value: part.value.text,
            kind: part.value.kind,
            arms: arms.map(|((sampled, sums, raw), variant)| arm(configured, variant.id, sampled, sums, raw, alpha)).collect(),
            comparisons: part.comparisons.into_iter().map(|found| comparison(design, configured, found)).collect(),
        }
    };
    let (dimensions, heterogeneity) = breakdown.map(|breakdown| (breakdown.values, breakdown.heterogeneity)).unzip();
    Metric {
        id: configured.name.clone(),
        kind: configured.aggregation.kind(),
        role: configured.role,
        direction: if configured.wants_more { "increase" } else { "decrease" },
        definition: definition(configured),
        window_days: (!configured.aggregation.is_open())
            .then(|| window_days(configured, design.experiment.conversion_window_days)),
        currency: design.currency.filter(|_| configured.aggregation.is_value()).map(str::to_owned),
        cap: measured.cap.map(|cap| Cap {
            value: decimal_text(cap.amount),
            percentile: cap.percentile.map(percentile_text),
            users: measured.sums.iter().map(|sums| sums.capped).collect(),
        }),
        left_out: measured.left_out,
        arms: arms.collect(),
        comparisons: comparisons.into_iter().map(|found| comparison(design, configured, found)).collect(),
        omnibus,
        dimensions: dimensions.map(|values: Vec<BreakdownValue>| values.into_iter().map(of_value).collect()),
        heterogeneity,
        series,
        since_exposure,
    }
}

/// Describes one comparison, verdict and sentence from the same result.
fn comparison(design: &Design<'_>, metric: &Configured, tested: TestedComparison) -> Comparison {
    let TestedComparison { compared, conclusion, supplemental, bayesian, power, guardrail, impact, diluted } = tested;
    let alpha = design.experiment.alpha;
    let verdict = verdict(design, metric, &compared, &conclusion, bayesian.as_ref());
    let adjusted = conclusion.is_goal.then(|| adjusted_shown(design, &compared, &conclusion));
    Comparison {
        variant_id: design.variants[compared.arm].id,
        status: compared.found.status.as_str(),
        approximation: if compared.found.exact.is_some() { "exact" } else { "t" },
        absolute: absolute(&compared, alpha),
        relative: relative(&compared, alpha),
        test: test(&compared),
        adjusted: adjusted.flatten(),
        sequential: conclusion.look.map(|look| look.shown),
        cuped: compared.cuped.clone(),
        supplemental,
        power,
        guardrail,
        scaled_impact: impact,
        diluted,
        verdict: verdict.text,
        significant: verdict.significant,
        decided_by: verdict.by,
        plain: plain(design, metric, &compared, &conclusion, &verdict, impact.as_ref()),
        bayesian,
    }
}

/// Returns after how many days the window of a metric is over; a part of a day counts as one.
fn window_days(metric: &Configured, of_experiment: i32) -> i32 {
    match &metric.aggregation {
        Aggregation::Defined(defined) => i32::try_from((defined.window_us.1.max(0) + DAY_US - 1) / DAY_US).unwrap_or(i32::MAX),
        _ => metric.window_days.unwrap_or(of_experiment),
    }
}

/// Writes down what a metric counts.
fn definition(metric: &Configured) -> Definition {
    let amount = |amount: Amount| if amount == Amount::Value { "value" } else { "count" };
    let mut found = Definition {
        aggregation: match metric.aggregation {
            Aggregation::ConversionRate => "conversion_rate",
            Aggregation::ValuePerUser => "value_per_user",
            Aggregation::CountPerUser => "count_per_user",
            Aggregation::Ratio(..) => "ratio",
            Aggregation::Quantile(..) => "quantile",
            Aggregation::Defined(_) => "defined",
        },
        defined: None,
        conversion: metric.conversion_type.clone(),
        numerator: None,
        denominator: None,
        denominator_conversion: None,
        quantile: None,
        margin: metric.margin,
        cap: metric.cap.map(decimal_text),
        cap_percentile: metric.cap_percentile.map(percentile_text),
    };
    match &metric.aggregation {
        Aggregation::Ratio(of, denominator) => {
            found.numerator = Some(amount(*of));
            found.denominator = Some(if *denominator == Denominator::Impressions { "impressions" } else { "conversions" });
            if let Denominator::Conversions(name) = denominator {
                found.denominator_conversion.clone_from(name);
            }
        }
        Aggregation::Quantile(of, thousandths) => {
            found.numerator = Some(amount(*of));
            found.quantile = Some(f64::from(*thousandths) / 1_000.0);
        }
        Aggregation::Defined(defined) => found.defined = Some(defined.reference.clone()),
        _ => {}
    }
    found
}

/// Describes one variant alone. `raw` are its sums without a cap.
fn arm(metric: &Configured, variant: Uuid, sampled: &Sampled, sums: &Sums, raw: &Sums, alpha: f64) -> Arm {
    let is_share = metric.aggregation.is_share();
    let sample = sampled.observed.sample.ok();
    let arm = sample.map(|sample| sample.arm());
    let interval = sample.and_then(|sample| sample.interval(alpha));
    let whole = |sum: i128| u64::try_from(sum / Moments::SCALE).ok();
    let is_count = metric.aggregation.is_count();
    Arm {
        variant_id: variant,
        users: sampled.observed.users,
        numerator: match is_share {
            true => Some(sums.converters),
            false => is_count.then(|| whole(raw.amount.sum())).flatten(),
        },
        denominator: metric.aggregation.is_ratio().then(|| whole(sums.base.sum())).flatten(),
        mean: sampled.observed.mean,
        std_dev: arm.filter(|arm| arm.users > 1 || is_share).map(|arm| arm.variance.sqrt()),
        ci: ends(interval),
        sum: metric.aggregation.is_value().then(|| raw.amount.sum_text()),
    }
}

fn absolute(compared: &Compared, alpha: f64) -> Absolute {
    let found = &compared.found;
    Absolute {
        estimate: found.estimate,
        std_error: found.difference.map(|difference| difference.std_error),
        ci: ends(found.interval(alpha)),
        ci_newcombe: found.exact.and_then(|exact| exact.newcombe).map(|(low, high)| [low, high]),
    }
}

fn relative(compared: &Compared, alpha: f64) -> Relative {
    let difference = compared.found.difference;
    let critical = difference.map(|difference| difference.critical(alpha));
    let delta = compared.effect(Scale::Relative).map(|effect| effect.test(Alternative::TwoSided, alpha));
    Relative {
        lift: compared.found.lift,
        ci: ends(difference.zip(critical).and_then(|(difference, critical)| difference.relative(critical))),
        ci_method: "fieller",
        g: difference.zip(critical).and_then(|(difference, critical)| difference.g(critical)),
        ci_delta: delta.and_then(|delta| Some([delta.low?, delta.high?])),
        p_delta: delta.map(|delta| delta.p_value),
        log10_p_delta: delta.map(|delta| delta.log10_p),
    }
}

fn test(compared: &Compared) -> Test {
    let (difference, fisher) = (compared.found.difference, compared.found.fisher());
    let pooled = counts(compared).and_then(|(control, treatment)| pooled_z(control, treatment)).map(|(_, tail)| tail);
    let p_value = difference.map(|difference| difference.p_value()).or(fisher);
    Test {
        name: match difference.is_none() && fisher.is_some() {
            true => "fisher_exact",
            false if compared.has_strata => "stratified_t",
            false => "welch_t",
        },
        statistic: difference.map(|difference| difference.z()),
        dof: difference.map(|difference| difference.dof),
        p_value: p_value.map(|p| p.p),
        log10_p: p_value.map(|p| p.log10),
        p_fisher: fisher.map(|p| p.p),
        log10_p_fisher: fisher.map(|p| p.log10),
        p_pooled: pooled.map(|tail| tail.p),
        log10_p_pooled: pooled.map(|tail| tail.log10()),
    }
}

fn adjusted_shown(design: &Design<'_>, compared: &Compared, conclusion: &Conclusion) -> Option<Adjusted> {
    let has_bounds = design.plan.analysis == Analysis::GroupSequential;
    let basis = conclusion.basis;
    let is_tested = if has_bounds { basis.is_some() } else { conclusion.adjusted.p_value.is_some() };
    if !is_tested {
        return None;
    }
    let exact = counts(compared)
        .filter(|_| basis.is_none())
        .and_then(|(control, treatment)| newcombe(control, treatment, conclusion.adjusted.alpha));
    let method = match design.request.correction {
        Correction::Holm | Correction::Bh if has_bounds => "bonferroni",
        other => other.as_str(),
    };
    Some(Adjusted {
        method,
        family_size: conclusion.adjusted.family_size,
        p_value: conclusion.adjusted.p_value.map(|p| p.p),
        log10_p: conclusion.adjusted.p_value.map(|p| p.log10),
        alpha: conclusion.adjusted.alpha,
        ci_absolute: ends(basis.and_then(|basis| basis.absolute()).or(exact)),
        ci_relative: ends(basis.and_then(|basis| basis.relative())),
        significant: conclusion.significant,
    })
}
