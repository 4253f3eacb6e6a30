//! An experiment and its variants, as everything here speaks of them and as answers carry them.

use ::catalogue::exposures::ExposureDefinition;
use ::catalogue::versions::Reference;
use ::catalogue::{Policy, Trigger};
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

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
    /// What exposes users; left out where that are impressions that name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Reference<ExposureDefinition>>,
    /// What begins the analysis of a user; left out where the exposure does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// How it decides, and what follows; left out where that is as usual.
    #[serde(skip_serializing_if = "Policy::is_usual")]
    pub policy: Policy,
    /// Since when its rows may no longer all be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<String>,
    /// Since when its participation and attribution wait for a recomputation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_since: Option<String>,
    /// The variant that the others are compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_variant_id: Option<Uuid>,
    /// When users were assigned, and in which shares; left out where that never changed.
    #[serde(skip_serializing_if = "is_one")]
    pub phases: Vec<Phase>,
}

impl Experiment {
    /// Returns the times in which exposures count, half open, in microseconds since 1970.
    pub fn assigning(&self) -> Vec<(Option<i64>, Option<i64>)> {
        let phases = self.phases.iter().filter(|phase| phase.is_assigning());
        phases.map(|phase| (phase.started_us, phase.ended_us)).collect()
    }

    /// Returns when everybody was assigned anew, ascending, in microseconds since 1970: from then on nothing counts that a user saw who had
    /// been exposed before.
    pub fn reassigned(&self) -> Vec<i64> {
        self.phases.iter().filter(|phase| phase.reassigns).filter_map(|phase| phase.started_us).collect()
    }
}

fn is_one(phases: &[Phase]) -> bool {
    phases.len() < 2
}

/// A time, half open, in which users were assigned in the same shares, or not at all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Phase {
    /// Its number, from 1 on.
    pub phase: i32,
    /// `assigning` or `paused`.
    pub state: String,
    /// Whether everybody was assigned anew in it; left out where not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reassigns: bool,
    /// When it began; left out of one that was ever so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// When it ended; left out while it lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The same in microseconds since 1970.
    #[serde(skip)]
    pub started_us: Option<i64>,
    /// The same in microseconds since 1970.
    #[serde(skip)]
    pub ended_us: Option<i64>,
    /// The variants in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<PhaseWeight>,
}

impl Phase {
    /// Returns whether exposures begin participation in it.
    pub fn is_assigning(&self) -> bool {
        self.state == "assigning"
    }
}

/// The share of a variant in a phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseWeight {
    /// The variant.
    pub variant_id: Uuid,
    /// On any scale; null if it was never set.
    pub weight: Option<f64>,
}

/// One variant.
#[derive(Clone, Debug, Default, Serialize)]
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
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_json: Option<Box<RawValue>>,
    /// Users who saw it first and no other one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<u64>,
}
