//! When an experiment assigned users, and in which shares: phases of event time, half open, that follow each other.
//!
//! An experiment that was started and ended once, with the same weights all the time, has none stored: it is one phase. The first change
//! that ends a phase before the experiment's end stores it.

use std::collections::HashMap;

use events::Micros;
use serde::Serialize;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{Experiment, text_or_null};
use crate::timestamp::Timestamp;
use crate::vocabulary::{ExperimentStatus, PhaseState};
use crate::{CatalogueError, Decimal, ReadError, Unsupported};

/// One phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Its number, from 1 on.
    pub phase: i32,
    /// Whether exposures begin participation in it.
    pub state: PhaseState,
    /// Whether everybody is assigned anew in it: who was exposed before stays in the earlier phase, and counts in no later one.
    pub reassigns: bool,
    /// When it began; `None`: it was ever so.
    #[serde(serialize_with = "text_or_null")]
    pub started_at: Option<Micros>,
    /// When it ended, exclusive; `None`: it lasts.
    #[serde(serialize_with = "text_or_null")]
    pub ended_at: Option<Micros>,
    /// The variants in it, in the order of their names; none in a pause.
    pub weights: Vec<PhaseWeight>,
}

/// The share of a variant in a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseWeight {
    /// The variant.
    pub variant_id: Uuid,
    /// On any scale; `None`: unknown.
    pub weight: Option<Decimal>,
}

/// Reads the phases that are stored of some experiments, in their order, each experiment's or why they cannot be read.
pub(crate) async fn read(
    connection: &mut PgConnection,
    project: Uuid,
    experiments: &[Uuid],
) -> Result<HashMap<Uuid, Result<Vec<Phase>, Unsupported>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT p.experiment_id, p.phase, p.state, p.reassigns, p.started_at, p.ended_at,
                ARRAY (SELECT w.variant_id FROM phase_weights w JOIN variants v USING (project_id, experiment_id)
                       WHERE w.project_id = p.project_id AND w.experiment_id = p.experiment_id AND w.phase = p.phase
                         AND v.id = w.variant_id ORDER BY v.name) AS variants,
                ARRAY (SELECT w.weight::text FROM phase_weights w JOIN variants v USING (project_id, experiment_id)
                       WHERE w.project_id = p.project_id AND w.experiment_id = p.experiment_id AND w.phase = p.phase
                         AND v.id = w.variant_id ORDER BY v.name) AS weights
         FROM experiment_phases p WHERE p.project_id = $1 AND p.experiment_id = ANY ($2) ORDER BY p.experiment_id, p.phase",
    )
    .bind(project)
    .bind(experiments)
    .fetch_all(connection)
    .await?;
    let mut found: HashMap<Uuid, Result<Vec<Phase>, Unsupported>> = HashMap::new();
    for row in &rows {
        let experiment: Uuid = row.try_get("experiment_id")?;
        let number: i32 = row.try_get("phase")?;
        let phase = of_row(row, number).map_err(|error| {
            ReadError::of_row(error, "experiment_phases", || format!("phase {number} of experiment {experiment}"))
        });
        let phases = found.entry(experiment).or_insert_with(|| Ok(Vec::new()));
        match (ReadError::split(phase)?, phases.as_mut()) {
            (Ok(phase), Ok(phases)) => phases.push(phase),
            (Err(unsupported), Ok(_)) => *phases = Err(unsupported),
            (_, Err(_)) => {}
        }
    }
    Ok(found)
}

fn of_row(row: &sqlx::postgres::PgRow, phase: i32) -> Result<Phase, sqlx::Error> {
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<Timestamp>, _>(column)?.map(|time| time.0));
    let (variants, weights): (Vec<Uuid>, Vec<Option<String>>) = (row.try_get("variants")?, row.try_get("weights")?);
    let weight = |(variant_id, weight): (Uuid, Option<String>)| {
        let weight = weight.map(|text| text.parse::<Decimal>()).transpose().map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok::<_, sqlx::Error>(PhaseWeight { variant_id, weight })
    };
    Ok(Phase {
        phase,
        state: row.try_get("state")?,
        reassigns: row.try_get("reassigns")?,
        started_at: time("started_at")?,
        ended_at: time("ended_at")?,
        weights: variants.into_iter().zip(weights).map(weight).collect::<Result<_, _>>()?,
    })
}

/// Returns the one phase of an experiment that has none stored; one that was never started has none at all.
pub(super) fn implied(experiment: &Experiment) -> Vec<Phase> {
    if !was_started(experiment.status, experiment.ended_at) {
        return Vec::new();
    }
    let weight = |variant: &super::Variant| PhaseWeight { variant_id: variant.id, weight: variant.weight };
    vec![Phase {
        phase: 1,
        state: PhaseState::Assigning,
        reassigns: false,
        started_at: experiment.started_at,
        ended_at: experiment.ended_at,
        weights: experiment.variants.iter().map(weight).collect(),
    }]
}

/// Returns whether an experiment was ever started: what is archived has ended or was a draft.
pub(crate) fn was_started(status: ExperimentStatus, ended_at: Option<Micros>) -> bool {
    match status {
        ExperimentStatus::Draft => false,
        ExperimentStatus::Archived => ended_at.is_some(),
        ExperimentStatus::Running | ExperimentStatus::Paused | ExperimentStatus::Completed => true,
    }
}

/// When a phase gives way to the next one: at a time that was given, or now. A phase that has not begun by then never will.
/// # Errors
/// [`CatalogueError::Invalid`] for a time before the last phase began or ended, or in the future.
pub(super) async fn turn(
    connection: &mut PgConnection,
    experiment: &Experiment,
    from: Option<Micros>,
) -> Result<Micros, CatalogueError> {
    let now = sqlx::query_scalar::<_, Timestamp>("SELECT now()").fetch_one(connection).await?.0;
    let last = experiment.phases.last();
    let earliest = last.and_then(|last| last.ended_at.or(last.started_at));
    let Some(from) = from else { return Ok(earliest.map_or(now, |earliest| earliest.max(now))) };
    if earliest.is_some_and(|earliest| from < earliest) || from > now {
        let since = earliest.map_or_else(|| "any time".to_owned(), |earliest| earliest.to_string());
        let found = format!("found {from}; {since}, when the last phase began or ended, to {now}, now, is accepted");
        return Err(CatalogueError::invalid("from", found));
    }
    Ok(from)
}

/// Ends the last phase, which is stored if it was not.
pub(super) async fn end_last(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: &Experiment,
    at: Micros,
) -> Result<(), sqlx::Error> {
    let is_stored: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM experiment_phases WHERE project_id = $1 AND experiment_id = $2)")
            .bind(project)
            .bind(experiment.id)
            .fetch_one(&mut *connection)
            .await?;
    if !is_stored {
        for phase in &experiment.phases {
            insert(connection, project, experiment.id, phase).await?;
        }
    }
    end_stored(connection, project, experiment.id, at).await
}

/// Ends the last phase if it is stored: with the experiment's end nothing follows that would have to be told apart.
pub(super) async fn end_stored(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    at: Micros,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE experiment_phases SET ended_at = $3 WHERE project_id = $1 AND experiment_id = $2 AND ended_at IS NULL")
        .bind(project)
        .bind(experiment)
        .bind(Timestamp(at))
        .execute(connection)
        .await?;
    Ok(())
}

/// How the next phase assigns users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// As they were.
    Kept,
    /// Everybody anew, by another salt.
    Anew,
}

/// Begins the next phase, with the weights that the variants have now.
pub(super) async fn begin_next(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: &Experiment,
    (state, assignment): (PhaseState, Assignment),
    at: Micros,
) -> Result<(), sqlx::Error> {
    let next = Phase {
        phase: experiment.phases.last().map_or(1, |last| last.phase + 1),
        state,
        reassigns: assignment == Assignment::Anew,
        started_at: Some(at),
        ended_at: None,
        weights: Vec::new(),
    };
    insert(connection, project, experiment.id, &next).await
}

/// Stores a phase, with the weights that the variants have now.
async fn insert(connection: &mut PgConnection, project: Uuid, experiment: Uuid, phase: &Phase) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO experiment_phases (project_id, experiment_id, phase, state, reassigns, started_at, ended_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(project)
    .bind(experiment)
    .bind(phase.phase)
    .bind(phase.state)
    .bind(phase.reassigns)
    .bind(phase.started_at.map(Timestamp))
    .bind(phase.ended_at.map(Timestamp))
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO phase_weights (project_id, experiment_id, phase, variant_id, weight) \
         SELECT project_id, experiment_id, $3, id, weight FROM variants \
         WHERE project_id = $1 AND experiment_id = $2 AND $4 = 'assigning'",
    )
    .bind(project)
    .bind(experiment)
    .bind(phase.phase)
    .bind(phase.state)
    .execute(connection)
    .await?;
    Ok(())
}
