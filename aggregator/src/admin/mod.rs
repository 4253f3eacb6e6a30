//! Changes that operators make and that touch the flow: they set dead letters free, or change the meaning of rows that are
//! stored. What is changed is the catalogue's; here it meets the aggregator's locks and the computation of the rows.
//!
//! A change is one transaction under the advisory lock of the project's catalogue: nothing is changed unless all of it is. Where stored
//! rows change their meaning, it marks the experiment, and the rows follow beside the stream (`recompute.rs`).
//! What collectors rejected is only looked at (`rejected.rs`).

pub mod campaigns;
pub mod dead_letters;
pub mod experiments;
pub mod months;
pub mod rejected;

use catalogue::CatalogueError;
use events::Micros;
use serde::Serializer;

use crate::recompute::RecomputeError;

/// Why a change was not made, or its rows do not follow it yet. Trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The catalogue refuses it.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The derived rows could not be computed again. The change itself is made; an aggregator goes on with the rows.
    #[error("recomputing experiment {name:?}: {source}; what was changed stays, and an aggregator computes the rows")]
    Recompute {
        /// The experiment.
        name: String,
        /// What happened.
        source: RecomputeError,
    },
}

impl AdminError {
    /// Returns the stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            AdminError::Catalogue(error) => error.code(),
            AdminError::Recompute { .. } => "recompute_failed",
        }
    }
}

impl From<sqlx::Error> for AdminError {
    fn from(error: sqlx::Error) -> Self {
        AdminError::Catalogue(error.into())
    }
}

/// Writes a time as people and programs read it.
fn iso<S: Serializer>(time: &Micros, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(time)
}
