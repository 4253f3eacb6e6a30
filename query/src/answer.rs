//! The answer about an experiment as clients receive it. Numbers that are undefined are null beside a status that says
//! why; what is not computed is left out.

use serde::Serialize;
use uuid::Uuid;

use crate::snapshot::AsOf;

/// Version of the statistics behind the numbers. Raised when the same rows would give other ones.
pub const METHOD_VERSION: &str = "stats-1";

/// The list of a project's experiments.
#[derive(Debug, Serialize)]
pub struct Experiments {
    /// By name.
    pub experiments: Vec<Listed>,
    /// How far the log was stored.
    pub as_of: AsOf,
}

/// One of a project's experiments.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// What it is.
    #[serde(flatten)]
    pub experiment: Experiment,
    /// Its variants, the control first.
    pub variants: Vec<Variant>,
}

/// What an experiment is.
#[derive(Clone, Debug, Serialize)]
pub struct Experiment {
    /// Its id.
    pub id: Uuid,
    /// Its name, which never changes.
    pub name: String,
    /// What it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `draft`, `running`, `paused`, `completed` or `archived`.
    pub status: String,
    /// From when on exposures count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Until when they count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// Since the start, until the end or the snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days_running: Option<f64>,
    /// Of intervals and decisions.
    pub confidence_level: f64,
    /// 1 - confidence.
    pub alpha: f64,
    /// Relative.
    pub minimum_detectable_effect: f64,
    /// Users over all variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_sample_size: Option<i32>,
    /// After the first exposure a conversion counts for so long.
    pub conversion_window_days: i32,
    /// Which exposure is credited.
    pub attribution_method: String,
    /// Of value metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Since when its rows may no longer all be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<String>,
    /// The variant that the others are compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_variant_id: Option<Uuid>,
}

/// One variant.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// Its id.
    pub id: Uuid,
    /// Its name, which never changes.
    pub name: String,
    /// Whether the others are compared with it.
    pub is_control: bool,
    /// Its share, on any scale; left out if none was ever set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Users who saw it first and no other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<u64>,
}

/// The results of one experiment.
#[derive(Debug, Serialize)]
pub struct Results {
    /// `ok`, `no_data` or `no_control`.
    pub status: &'static str,
    /// What it is.
    pub experiment: Experiment,
    /// How far the log was stored.
    pub as_of: AsOf,
    /// When this was computed.
    pub computed_at: String,
    /// Version of the statistics.
    pub method_version: &'static str,
    /// What was asked for, defaults filled in.
    pub request_settings: Settings,
    /// Who is counted.
    pub population: Population,
    /// Whether the numbers can be trusted.
    pub health: Health,
    /// The variants, the control first.
    pub variants: Vec<Variant>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// What a reader should know before quoting a number.
    pub warnings: Vec<Warning>,
}

/// What was asked for, defaults filled in.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// The variant asked for as baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Tests hold for one look at the end.
    pub analysis: &'static str,
    /// What happens to users who saw several variants.
    pub population: &'static str,
    /// How p-values are adjusted.
    pub correction: &'static str,
    /// What a relative or absolute interval is.
    pub interval: &'static str,
}

/// Who is counted.
#[derive(Debug, Serialize)]
pub struct Population {
    /// Users with an exposure.
    pub exposed_users: u64,
    /// Those of them in the metrics.
    pub analysed_users: u64,
    /// And those who are not.
    pub excluded: Excluded,
    /// Share of analysed users whose conversion window is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mature_share: Option<f64>,
}

/// Why users are not counted.
#[derive(Debug, Serialize)]
pub struct Excluded {
    /// They saw several variants.
    pub multi_exposed: u64,
}

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
        /// Of the chi-square test.
        p_value: Option<f64>,
        /// Its decimal logarithm.
        log10_p: Option<f64>,
        /// Expected shares of the variants with a weight above 0, in their order.
        expected: Vec<f64>,
        /// Shares found of the same; empty without users.
        observed: Vec<f64>,
        /// `configured`, or `assumed_equal` if the variants have no weights.
        weights: &'static str,
    },
    /// Whether users saw several variants.
    MultiExposure {
        /// How bad it is.
        level: Level,
        /// Of all exposed users.
        share: Option<f64>,
    },
    /// Whether each variant has 100 users.
    MinimumUsers {
        /// How bad it is.
        level: Level,
        /// Of the smallest variant.
        users: u64,
    },
}

impl Check {
    /// Returns how bad it is.
    pub fn level(&self) -> Level {
        match self {
            Check::Srm { level, .. } | Check::MultiExposure { level, .. } | Check::MinimumUsers { level, .. } => *level,
        }
    }
}

/// One metric.
#[derive(Debug, Serialize)]
pub struct Metric {
    /// Its name.
    pub id: String,
    /// `proportion` or `mean`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `primary`, `secondary` or `guardrail`.
    pub role: String,
    /// `increase` or `decrease`.
    pub direction: String,
    /// After the first exposure a conversion counts for so long.
    pub window_days: i32,
    /// Of values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// What a user's sum is cut at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<String>,
    /// Each variant alone, in the order of `variants`.
    pub arms: Vec<Arm>,
    /// Each other variant against the control; empty without one.
    pub comparisons: Vec<Comparison>,
}

/// One variant alone.
#[derive(Debug, Serialize)]
pub struct Arm {
    /// Which one.
    pub variant_id: Uuid,
    /// Users, converted or not.
    pub users: u64,
    /// Users who converted, of a proportion; conversions, of a count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerator: Option<u64>,
    /// Over all users; null without users.
    pub mean: Option<f64>,
    /// Of one user; null where it is not defined.
    pub std_dev: Option<f64>,
    /// Of the mean; null where it is not defined.
    pub ci: [Option<f64>; 2],
    /// The exact sum of values.
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
    /// The test of no difference.
    pub test: Test,
    /// The p-value among all comparisons of goal metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adjusted: Option<Adjusted>,
    /// `won`, `lost` or `inconclusive`, at the experiment's confidence and without adjustment.
    pub verdict: &'static str,
    /// The same as a sentence.
    pub plain: String,
}

/// Treatment minus control.
#[derive(Debug, Serialize)]
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
#[derive(Debug, Serialize)]
pub struct Relative {
    /// 0.1 is ten percent more.
    pub lift: Option<f64>,
    /// Fieller's interval.
    pub ci: [Option<f64>; 2],
    /// How `ci` was made.
    pub ci_method: &'static str,
    /// From 1 on the interval has no ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub g: Option<f64>,
    /// The interval that other products show; not used for decisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ci_delta: Option<[f64; 2]>,
}

/// The test of no difference.
#[derive(Debug, Serialize)]
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
}

/// A p-value among all comparisons of goal metrics.
#[derive(Debug, Serialize)]
pub struct Adjusted {
    /// `holm`.
    pub method: &'static str,
    /// How many tests.
    pub family_size: usize,
    /// Adjusted.
    pub p_value: f64,
    /// Whether it is below alpha.
    pub significant: bool,
}

/// What a reader should know before quoting a number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// The stable code.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

impl Warning {
    /// Makes a warning.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Warning { code, message: message.into() }
    }
}
