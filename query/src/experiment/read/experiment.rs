//! An experiment and its variants, as everything here speaks of them and as answers carry them.

use serde::Serialize;
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
    /// Since when its rows may no longer all be there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<String>,
    /// Since when its participation and attribution wait for a recomputation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_since: Option<String>,
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
