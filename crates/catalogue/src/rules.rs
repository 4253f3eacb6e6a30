//! What of an experiment decides about participation and attribution.

use std::collections::{BTreeSet, HashMap};

use events::Micros;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::experiments::phases;
use crate::exposures::{Exposure, ExposureDefinition, Exposures};
use crate::timestamp::Timestamp;
use crate::versions;
use crate::vocabulary::{AttributionMethod, PhaseState};
use crate::{ReadError, Unsupported};

/// The rules of one experiment.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Some of its rows may no longer be here: its two tables are left as they are.
    pub is_frozen: bool,
    /// The times, half open, in which impressions count; an end that is none is no end. None of an experiment that was never started.
    pub assigning: Vec<(Option<Micros>, Option<Micros>)>,
    /// When everybody was assigned anew, ascending: from then on nothing counts that a user saw who had been exposed before.
    pub reassigned: Vec<Micros>,
    /// Of 86,400 seconds each; both ends of the window belong to it.
    pub window_days: i32,
    /// Which variant a conversion is credited to.
    pub method: AttributionMethod,
    /// Those that it has.
    pub variants: BTreeSet<Uuid>,
    /// What exposes users; `None`: impressions that name it and a variant.
    pub exposure: Option<Exposure>,
}

/// Collects what exposes users to the experiments that have a definition.
pub fn exposures<'a>(rules: impl Iterator<Item = (Uuid, &'a Rules)>) -> Exposures {
    Exposures::new(rules.filter_map(|(experiment, rules)| Some((experiment, rules.exposure.clone()?))))
}

/// Reads the rules of one experiment, none if it does not exist.
/// # Errors
/// [`ReadError`].
pub async fn read(connection: &mut PgConnection, project: Uuid, experiment: Uuid) -> Result<Option<Rules>, ReadError> {
    Ok(read_some(connection, project, Some(experiment)).await?.remove(&experiment).transpose()?)
}

/// Reads the rules of all experiments of a project, each or why it cannot be read.
/// # Errors
/// As Postgres has them.
pub(crate) async fn read_all(
    connection: &mut PgConnection,
    project: Uuid,
) -> Result<HashMap<Uuid, Result<Rules, Unsupported>>, sqlx::Error> {
    read_some(connection, project, None).await
}

async fn read_some(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Option<Uuid>,
) -> Result<HashMap<Uuid, Result<Rules, Unsupported>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT e.id, e.name, e.status, e.frozen_at IS NOT NULL AS is_frozen, e.started_at, e.ended_at, e.conversion_window_days,
                e.attribution_method, to_jsonb(e) ->> 'exposure' IS NOT NULL AS is_exposure_defined,
                ARRAY (SELECT v.id FROM variants v WHERE v.project_id = e.project_id AND v.experiment_id = e.id) AS variants
         FROM experiments e WHERE e.project_id = $1 AND ($2::uuid IS NULL OR e.id = $2)",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(&mut *connection)
    .await?;
    let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<Vec<Uuid>, _>>()?;
    let mut stored = phases::read(connection, project, &ids).await?;
    let is_any_defined = rows.iter().any(|row| row.try_get("is_exposure_defined").unwrap_or(false));
    let mut defined = if is_any_defined { read_defined(connection, project, experiment).await? } else { HashMap::new() };
    let mut found = HashMap::with_capacity(rows.len());
    for (row, id) in rows.iter().zip(ids) {
        let name: &str = row.try_get("name")?;
        let rules = of_row(row).map_err(|error| ReadError::of_row(error, "experiments", || format!("row {name:?}")));
        let rules = ReadError::split(rules)?;
        let rules = match defined.remove(&id) {
            None => rules,
            Some(exposure) => rules.and_then(|rules| Ok(Rules { exposure: Some(exposure?), ..rules })),
        };
        let rules = match stored.remove(&id) {
            None => rules,
            Some(phases) => rules.and_then(|rules| {
                let phases = phases?;
                let assigning = phases.iter().filter(|phase| phase.state == PhaseState::Assigning);
                let reassigned = phases.iter().filter(|phase| phase.reassigns).filter_map(|phase| phase.started_at);
                Ok(Rules {
                    assigning: assigning.map(|phase| (phase.started_at, phase.ended_at)).collect(),
                    reassigned: reassigned.collect(),
                    ..rules
                })
            }),
        };
        found.insert(id, rules);
    }
    Ok(found)
}

/// Reads what exposes users to experiments that have a definition. It is asked for only where one has: before schema 15 there are none.
async fn read_defined(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Option<Uuid>,
) -> Result<HashMap<Uuid, Result<Exposure, Unsupported>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT e.id, e.name, d.definition::text AS exposure,
                ARRAY (SELECT v.name FROM variants v WHERE v.project_id = e.project_id AND v.experiment_id = e.id ORDER BY v.id) AS names,
                ARRAY (SELECT v.id FROM variants v WHERE v.project_id = e.project_id AND v.experiment_id = e.id ORDER BY v.id) AS variants
         FROM experiments e JOIN exposure_definitions d
             ON d.project_id = e.project_id AND d.name = e.exposure AND d.version = e.exposure_version
         WHERE e.project_id = $1 AND ($2::uuid IS NULL OR e.id = $2)",
    )
    .bind(project)
    .bind(experiment)
    .fetch_all(connection)
    .await?;
    let mut found = HashMap::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get("name")?;
        let (names, variants): (Vec<String>, Vec<Uuid>) = (row.try_get("names")?, row.try_get("variants")?);
        let definition = versions::of_text::<ExposureDefinition>(row.try_get("exposure")?, "exposure");
        let exposure = definition.map(|definition| Exposure::new(&definition, name, names.into_iter().zip(variants).collect()));
        let exposure = exposure.map_err(|error| ReadError::of_row(error, "experiments", || format!("row {name:?}")));
        found.insert(row.try_get("id")?, ReadError::split(exposure)?);
    }
    Ok(found)
}

fn of_row(row: &PgRow) -> Result<Rules, sqlx::Error> {
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<Timestamp>, _>(column)?.map(|time| time.0));
    let variants: Vec<Uuid> = row.try_get("variants")?;
    let (started_at, ended_at) = (time("started_at")?, time("ended_at")?);
    Ok(Rules {
        is_frozen: row.try_get("is_frozen")?,
        // Without stored phases it is one.
        assigning: if phases::was_started(row.try_get("status")?, ended_at) { vec![(started_at, ended_at)] } else { Vec::new() },
        reassigned: Vec::new(),
        window_days: row.try_get("conversion_window_days")?,
        method: row.try_get("attribution_method")?,
        variants: variants.into_iter().collect(),
        exposure: None,
    })
}
