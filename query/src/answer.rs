//! The answer about an experiment as clients receive it. Numbers that are undefined are null beside a status that says
//! why; what is not computed is left out.

pub mod health;
pub mod metric;

use serde::Serialize;
use uuid::Uuid;

use crate::experiment::settings::{Analysis, CapRule, Correction, Cuped, Difference, Dimension, Engine, PopulationRule, Windows};
use crate::snapshot::AsOf;
use health::Health;
use metric::Metric;

/// Version of the statistics behind the numbers. Raised when the same rows would give other ones.
pub const METHOD_VERSION: &str = "stats-2";

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
#[derive(Clone, Debug, Default, Serialize)]
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
    /// The same in microseconds since 1970.
    #[serde(skip)]
    pub started_us: Option<i64>,
    /// The same in microseconds since 1970.
    #[serde(skip)]
    pub ended_us: Option<i64>,
    /// Since the start, until the end or the newest event.
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

/// The results of one experiment. Equal questions over equal rows give equal results, `computed_at` left aside: "now" is
/// [`Results::data_through`], a time of events and never of a clock.
#[derive(Debug, Serialize)]
pub struct Results {
    /// `ok`, `not_started`, `no_data`, `one_variant` or `no_control`.
    pub status: &'static str,
    /// What it is.
    pub experiment: Experiment,
    /// How far the log was stored.
    pub as_of: AsOf,
    /// The moment that counts as now: the one asked for, else the time of the newest event. Absent before any event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_through: Option<String>,
    /// When this was computed.
    pub computed_at: String,
    /// Version of the statistics.
    pub method_version: &'static str,
    /// What was asked for, defaults filled in.
    pub request_settings: Settings,
    /// SHA-256 of the settings, the method version and the definitions of experiment, variants and metrics: answers with
    /// equal hashes differ by their rows only.
    pub settings_hash: String,
    /// Who is counted.
    pub population: Population,
    /// Whether the numbers can be trusted.
    pub health: Health,
    /// The variants, the control first.
    pub variants: Vec<Variant>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// Value by variant under each model of attribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribution: Option<Attribution>,
    /// What the numbers advise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What a reader should know before quoting a number.
    pub warnings: Vec<Warning>,
}

/// What was asked for, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The variant asked for as baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The metrics asked for; empty: all.
    pub metrics: Vec<String>,
    /// The moment asked for as now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<String>,
    /// When looking at numbers is allowed for.
    pub analysis: Analysis,
    /// `request` if it was asked for, `plan` if it follows from the experiment's.
    pub analysis_from: &'static str,
    /// Whose verdict it is.
    pub engine: Engine,
    /// How many tests at once are allowed for.
    pub correction: Correction,
    /// What users are split by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimension: Option<Dimension>,
    /// What happens to users who saw several variants.
    pub population: PopulationRule,
    /// Whose conversion windows count.
    pub windows: Windows,
    /// Whether earlier behaviour sharpens the comparison.
    pub cuped: Cuped,
    /// How value metrics are capped.
    pub cap: CapRule,
    /// `daily`, if each day is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<&'static str>,
    /// In which terms sentences speak.
    pub difference: Difference,
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
    /// Share of the users whose conversion window is over, of those who count whether it is or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mature_share: Option<f64>,
    /// New users a day who count, over the last seven full days before now.
    pub users_per_day: f64,
}

/// Why users are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// They saw several variants.
    pub multi_exposed: u64,
    /// Their conversion window is not over, and only complete windows were asked for.
    pub incomplete_window: u64,
    /// Some of their events name a variant that does not exist, and wait as dead letters; 10,000 of these are looked into.
    pub unknown_variant: u64,
    /// Impressions, not users: sent as not eligible, or outside of the experiment's time. Left out with an `as_of`, since
    /// impressions are counted as of the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impressions_not_counted: Option<u64>,
}

/// Value by variant. Descriptive: the causal comparison is that of the metrics, by first exposure.
#[derive(Debug, Serialize)]
pub struct Attribution {
    /// The experiment's method, by which conversions were stored.
    pub method: String,
    /// Of all values here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Each model; the values of each add up to the same total, to the last digit.
    pub models: Vec<AttributionModel>,
    /// What rests on little.
    pub sensitivity: Sensitivity,
}

/// One model of attribution.
#[derive(Debug, Serialize)]
pub struct AttributionModel {
    /// `first_touch`, `last_touch`, `linear`, `position_based` or `time_decay`.
    pub model: &'static str,
    /// In the order of the variants.
    pub by_variant: Vec<VariantValue>,
}

/// What one variant is credited with.
#[derive(Debug, Serialize)]
pub struct VariantValue {
    /// Which one.
    pub variant_id: Uuid,
    /// The value.
    pub value: String,
}

/// How much rests on conversions whose attribution is not certain.
#[derive(Debug, Serialize)]
pub struct Sensitivity {
    /// From here on an attribution counts as certain.
    pub min_confidence: f64,
    /// Share of the conversions below it; null without conversions.
    pub share_below: Option<f64>,
    /// Value of the conversions at or above it, by variant of the first exposure.
    pub by_variant: Vec<VariantValue>,
}

/// What the numbers advise.
#[derive(Debug, Serialize)]
pub struct Decision {
    /// `ship-now`, `rollback-now`, `ready-for-review`, `continue` or `unhealthy`.
    pub status: &'static str,
    /// By which rules: `clear_signals`.
    pub criteria: &'static str,
    /// The variant to ship.
    pub variant_id: Option<Uuid>,
    /// Whether enough is known to decide, by the experiment's own plan.
    pub powered: bool,
    /// The rules that led here, in their order.
    pub why: Vec<Why>,
}

/// One reason.
#[derive(Debug, Serialize)]
pub struct Why {
    /// The rule.
    pub rule: &'static str,
    /// What was found.
    pub fact: String,
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
