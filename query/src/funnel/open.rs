//! Begins to read the events that a question needs.

use std::sync::Arc;

use datafusion::common::DFSchema;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlanBuilder;

use super::definition::Matches;
use super::rows::Rows;
use super::select::{Condition, Selection};
use crate::engine::{self, Engine, Session, on_large_stack};
use crate::experiment::warning::Warning;
use crate::http::error::ApiError;
use crate::source::names::Names;
use crate::source::snapshot::Snapshot;
use crate::source::tables;

/// Which events are meant, each with its place in the request.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) steps: Vec<(String, Matches)>,
    pub(super) excluded: Vec<(String, Matches)>,
}

/// What is read, and what it was made of.
pub(super) struct Opened {
    pub(super) stream: SendableRecordBatchStream,
    pub(super) read: Read,
}

/// What is known of the events that are read.
pub(super) struct Read {
    pub(super) selection: Selection,
    names: Names,
    /// Names of events with the place in the request that asks for them.
    asked: Vec<(String, String)>,
    away: Option<Warning>,
}

impl Read {
    /// Returns what to say of names that no event has, and of months that were not read.
    pub(super) fn warnings(&self, rows: &Rows) -> Vec<Warning> {
        let is_missing = |bit: usize| rows.found & (1 << bit) == 0;
        let missing = self.selection.looked_for.iter().enumerate().filter(|(bit, _)| is_missing(*bit)).map(|(_, name)| name);
        let places = |missing: &String| self.asked.iter().filter(move |(_, name)| name == missing).collect::<Vec<_>>();
        let unknown = missing.flat_map(places).map(|(place, name)| self.names.warn(place, name));
        unknown.chain(self.away.clone()).collect()
    }
}

/// Warns of months with events that are asked for and were not read.
fn away(months: &[&str]) -> Option<Warning> {
    let message = format!(
        "events of {} are archived and not in this answer; `weir admin month restore` brings a month back",
        months.join(", ")
    );
    (!months.is_empty()).then(|| Warning::new("months_away", message))
}

/// Begins to read what is asked for. The selection says what else is wanted of the events.
/// # Errors
/// [`ApiError`]; of a condition it names the place.
pub(super) async fn open(
    engine: &Engine,
    session: &Arc<Session>,
    snapshot: &Arc<Snapshot>,
    asked: Asked,
    selection: Selection,
) -> Result<Opened, ApiError> {
    let names = {
        let mut connection = snapshot.transaction().await;
        Names::read(&mut connection, snapshot.project()).await.map_err(|error| engine::database_error(&error))?
    };
    let events = tables::table("events").ok_or_else(ApiError::internal)?.with_user_key();
    let scan = Session::scan_of(events, snapshot);
    let (session, limits) = (session.clone(), engine.limits().clone());
    let away = away(&snapshot.as_of().months_away_from(selection.from));
    on_large_stack(async move {
        let schema = DFSchema::try_from(scan.schema().as_ref().clone()).map_err(engine::api_error)?;
        let conditions = |matches: &[(String, Matches)]| {
            let condition =
                |(place, matches): &(String, Matches)| Condition::of(matches, place, session.state(), &schema, &limits);
            matches.iter().map(condition).collect::<Result<Vec<_>, ApiError>>()
        };
        let (steps, excluded) = (conditions(&asked.steps)?, conditions(&asked.excluded)?);
        let places = asked.steps.iter().chain(&asked.excluded).map(|(place, _)| place);
        let with_names = places.zip(steps.iter().chain(&excluded));
        let asked: Vec<(String, String)> =
            with_names.flat_map(|(place, condition)| condition.names().into_iter().map(|name| (place.clone(), name))).collect();
        let looked_for = names.unknown(asked.iter().map(|(_, name)| name.clone()));
        let selection = Selection { steps, excluded, looked_for, ..selection };
        let source = LogicalPlanBuilder::scan("events", provider_as_source(scan), None).and_then(LogicalPlanBuilder::build);
        let plan = source.and_then(|source| selection.plan(source, session.state()));
        let stream = session.run(plan.map_err(engine::planning_error)?).await.map_err(engine::planning_error)?;
        Ok(Opened { stream, read: Read { selection, names, asked, away } })
    })
    .await?
}
