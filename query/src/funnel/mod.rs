//! `POST /v1/funnels`, `/v1/retention` and `/v1/paths`. A funnel's request becomes a [`definition`], its steps become conditions on events, and [`answer`] counts how far units get.
//! How far one unit gets under which [`rules`] is found by a [`scan`] of its events in order of time. [`udaf`] is the same as a function of
//! SQL, and [`companions`] are functions beside it.

pub mod algorithm;
pub mod answer;
pub mod arms;
pub mod chains;
pub mod companions;
pub mod contiguous;
pub mod definition;
pub mod exact;
mod groups;
mod open;
mod parse;
pub mod paths;
pub mod period;
pub mod retention;
pub mod rows;
pub mod rules;
pub mod scan;
pub mod select;
mod sequence;
pub mod tally;
pub mod udaf;
pub mod unit;
pub mod unordered;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::http::error::ApiError;
use crate::source::snapshot::Snapshot;

/// What is asked of the events of units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// How far they get.
    Funnel,
    /// Whether they come back.
    Retention,
    /// What follows what.
    Paths,
}

/// A request that was read.
#[derive(Clone, Debug)]
pub enum Request {
    /// Of a funnel.
    Funnel(Box<definition::Definition>),
    /// Of retention.
    Retention(retention::Definition),
    /// Of paths.
    Paths(paths::Definition),
}

impl Request {
    /// Reads a request's body.
    /// # Errors
    /// [`ApiError`] that names the field, what was found and what is accepted.
    pub fn parse(kind: Kind, body: &[u8]) -> Result<Self, ApiError> {
        Ok(match kind {
            Kind::Funnel => Request::Funnel(Box::new(definition::Definition::parse(body)?)),
            Kind::Retention => Request::Retention(retention::Definition::parse(body)?),
            Kind::Paths => Request::Paths(paths::Definition::parse(body)?),
        })
    }

    /// Returns whether something in it is an expression that the client wrote.
    pub fn has_conditions(&self) -> bool {
        match self {
            Request::Funnel(definition) => definition.has_conditions(),
            Request::Retention(definition) => definition.has_conditions(),
            Request::Paths(definition) => definition.has_conditions(),
        }
    }

    /// Answers it in JSON.
    /// # Errors
    /// [`ApiError`]; what was running is stopped.
    pub async fn answer(self, engine: &Engine, snapshot: Arc<Snapshot>) -> Result<Vec<u8>, ApiError> {
        let written = match self {
            Request::Funnel(definition) => serde_json::to_vec(&answer::answer(engine, snapshot, *definition).await?),
            Request::Retention(definition) => serde_json::to_vec(&retention::answer(engine, snapshot, definition).await?),
            Request::Paths(definition) => serde_json::to_vec(&paths::answer(engine, snapshot, definition).await?),
        };
        written.map_err(|error| {
            tracing::error!(%error, "an answer could not be written");
            ApiError::internal()
        })
    }
}

/// Returns the functions of SQL.
pub fn functions() -> Vec<datafusion::logical_expr::AggregateUDF> {
    let mut functions = vec![
        udaf::WindowFunnel::default().into(),
        exact::FunnelFunction::default().into(),
        companions::Retention::default().into(),
    ];
    functions.extend(companions::SequenceMatch::all().map(Into::into));
    functions
}
