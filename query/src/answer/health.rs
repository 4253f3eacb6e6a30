//! Whether the numbers can be trusted.

use serde::Serialize;

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
    /// Whether exposures named variants that do not exist.
    UnknownVariant {
        /// How bad it is.
        level: Level,
        /// Who.
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
            | Check::UnknownVariant { level, .. }
            | Check::PreExposureBalance { level, .. }
            | Check::MinimumRuntime { level, .. }
            | Check::MinimumUsers { level, .. }
            | Check::Freshness { level, .. }
            | Check::MatureShare { level, .. }
            | Check::OutlierShare { level, .. } => *level,
        }
    }
}
