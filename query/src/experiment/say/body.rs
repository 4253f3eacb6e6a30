//! The answer about an experiment as clients receive it. Numbers that are undefined are null beside a status that says
//! why; what is not computed is left out.

use serde::Serialize;
use uuid::Uuid;

use super::metric::Metric;
use crate::experiment::measure::attribution::Attribution;
use crate::experiment::measure::population::PopulationCounts;
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::request::Settings;
use crate::experiment::rules::Rule;
use crate::experiment::test::explore::Exploration;
use crate::experiment::test::health::Health;
use crate::experiment::warning::Warning;
use crate::source::snapshot::AsOf;

/// Version of the statistics behind the numbers. Raised when the same rows would give other ones.
pub const METHOD_VERSION: &str = "stats-5";

/// The list of a project's experiments.
#[derive(Debug, Serialize)]
pub struct Experiments {
    /// By name.
    pub experiments: Vec<ExperimentSummary>,
    /// Why others are missing here: a newer version of Weir wrote them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unsupported: Vec<String>,
    /// How far the log was stored.
    pub as_of: AsOf,
}

/// One of a project's experiments.
#[derive(Clone, Debug, Serialize)]
pub struct ExperimentSummary {
    /// What it is.
    #[serde(flatten)]
    pub experiment: Experiment,
    /// Its variants, the control first.
    pub variants: Vec<Variant>,
}

/// The results of one experiment. Equal questions over equal rows give equal results, `computed_at` left aside: "now" is
/// [`Results::data_through`], a time of events and never of a clock.
#[derive(Debug, Serialize)]
pub struct Results {
    /// `ok`, `not_started`, `no_data`, `one_variant`, `no_control` or `descriptive`.
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
    pub population: PopulationCounts,
    /// Whether the numbers can be trusted.
    pub health: Health,
    /// The variants, the control first.
    pub variants: Vec<Variant>,
    /// What was measured.
    pub metrics: Vec<Metric>,
    /// Who is affected otherwise, if that was searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exploration: Option<Exploration>,
    /// Value by variant under each model of attribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribution: Option<Attribution>,
    /// What the numbers advise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Conditions of the experiment's own, and of what they hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What a reader should know before quoting a number.
    pub warnings: Vec<Warning>,
}

/// What the numbers advise.
#[derive(Debug, Serialize)]
pub struct Decision {
    /// `ship-now`, `rollback-now`, `ready-for-review`, `continue` or `unhealthy`.
    pub status: &'static str,
    /// By which rules: `clear_signals`, `do_no_harm` or `risk_aware`.
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
