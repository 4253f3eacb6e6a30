//! Changes that operators make and that touch the flow: they set dead letters free, or change the meaning of rows that are
//! stored. What is changed is the catalogue's; here it meets the aggregator's locks and the computation of the rows.
//!
//! Locks are taken in one order: all checkpoint rows, ascending, where stored rows change their meaning; then the advisory lock
//! of the project's catalogue. Nothing is changed unless all of it is.

pub mod campaigns;
pub mod dead_letters;
pub mod experiments;

use catalogue::CatalogueError;

use crate::recompute::RecomputeError;

/// Why a change was not made. Everything is as it was, and trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The catalogue refuses it.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The derived rows could not be computed again.
    #[error("recomputing experiment {name:?}: {source}")]
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
