//! Experiments with their variants and metrics: as they are stored, read by operators and by services.

mod change;
mod new;
pub(crate) mod phases;

use std::collections::HashMap;

use events::Micros;
use events::identity::hyphenated_uuid;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

pub use change::{
    StatusChange, add_metric, add_variant, archive, describe, describe_variant, insert, pause, remove_metric, set_exposure,
    set_policy, set_trigger, set_weights, start, stop, unarchive,
};
pub(crate) use new::VARIANTS_MAX;
pub use new::{CONTROL_NAMES, NewExperiment, NewVariant, VariantDetails};
pub use phases::{Assignment, Phase, PhaseWeight};

use crate::exposures::ExposureDefinition;
use crate::metrics::{self, Metric};
use crate::policy::Policy;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::trigger::Trigger;
use crate::versions::{self, Reference};
use crate::vocabulary::{AttributionMethod, ExperimentStatus};
use crate::{CatalogueError, Decimal, ReadError, Unsupported};

/// An experiment as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Experiment {
    /// Its id.
    pub id: Uuid,
    /// Its name, which never changes.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Where it stands.
    pub status: ExperimentStatus,
    /// From when on exposures count; `None`: from ever.
    #[serde(serialize_with = "text_or_null")]
    pub started_at: Option<Micros>,
    /// Until when exposures count, exclusive; `None`: for ever.
    #[serde(serialize_with = "text_or_null")]
    pub ended_at: Option<Micros>,
    /// Users over all variants.
    pub target_sample_size: Option<i32>,
    /// Of intervals and decisions, 2 decimals.
    pub confidence_level: Decimal,
    /// Relative, 4 decimals.
    pub minimum_detectable_effect: Decimal,
    /// Days after the first exposure.
    pub conversion_window_days: i32,
    /// Which variant a conversion is credited to.
    pub attribution_method: AttributionMethod,
    /// Of value metrics; `None`: the only one seen.
    pub currency: Option<String>,
    /// What exposes users; `None`: impressions that name it and a variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposure: Option<Reference<ExposureDefinition>>,
    /// What begins the analysis of a user; `None`: the exposure.
    pub trigger: Option<Trigger>,
    /// How it decides, and what follows.
    pub policy: Policy,
    /// Since when it cannot be changed or computed again.
    #[serde(serialize_with = "text_or_null")]
    pub frozen_at: Option<Micros>,
    /// Whether the first event that named it made it.
    pub auto_registered: bool,
    /// When it was made.
    #[serde(serialize_with = "crate::time_text")]
    pub created_at: Micros,
    /// By name.
    pub variants: Vec<Variant>,
    /// By role, then name.
    pub metrics: Vec<Metric>,
    /// In their order; none of a draft.
    pub phases: Vec<Phase>,
}

/// An arm as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Variant {
    /// Its id.
    pub id: Uuid,
    /// Its name, which never changes.
    pub name: String,
    /// Whether it is marked as the control.
    pub is_control: bool,
    /// Its share, on any scale, 6 decimals; `None`: unknown.
    pub weight: Option<Decimal>,
    /// For people.
    pub description: Option<String>,
    /// For clients: the text of a JSON value.
    #[serde(serialize_with = "json_or_null")]
    pub config_json: Option<String>,
}

impl Variant {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Variant {
            id: row.try_get("id")?,
            name: row.try_get("name")?,
            is_control: row.try_get("is_control")?,
            weight: row.try_get("weight")?,
            description: row.try_get("description")?,
            config_json: row.try_get("config_json")?,
        })
    }
}

impl Experiment {
    /// Returns an error if the experiment is frozen: nothing of it may be changed or computed again then.
    /// # Errors
    /// [`CatalogueError::Frozen`].
    pub fn refuse_frozen(&self) -> Result<(), CatalogueError> {
        match self.frozen_at {
            Some(frozen_at) => Err(CatalogueError::Frozen { name: self.name.clone(), frozen_at }),
            None => Ok(()),
        }
    }
}

/// Returns the experiments of a project, by name.
/// # Errors
/// [`CatalogueError::Unsupported`] if one of them is, [`CatalogueError::Database`].
pub async fn list(connection: &mut PgConnection, project: &Project) -> Result<Vec<Experiment>, CatalogueError> {
    let experiments = list_each(connection, project.id).await?;
    Ok(experiments.into_iter().collect::<Result<_, _>>()?)
}

/// Returns the experiments of a project, by name, each or why it cannot be read: one must not hide the others.
/// # Errors
/// As Postgres has them.
pub async fn list_each(
    connection: &mut PgConnection,
    project: Uuid,
) -> Result<Vec<Result<Experiment, Unsupported>>, sqlx::Error> {
    read(connection, project, Which::All).await
}

/// Finds an experiment by id, else by name.
/// # Errors
/// [`ReadError`].
pub async fn find(connection: &mut PgConnection, project: Uuid, name: &str) -> Result<Option<Experiment>, ReadError> {
    // Postgres cannot hold such a name, and refuses to be asked for it.
    if name.contains('\0') {
        return Ok(None);
    }
    let found = read(connection, project, Which::Named(name)).await?;
    Ok(found.into_iter().next().transpose()?)
}

/// Returns an experiment, found by id, else by name.
/// # Errors
/// [`CatalogueError::Unknown`], which names some that there are; [`CatalogueError::Unsupported`].
pub async fn show(connection: &mut PgConnection, project: &Project, name: &str) -> Result<Experiment, CatalogueError> {
    if let Some(found) = find(connection, project.id, name).await? {
        return Ok(found);
    }
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM experiments WHERE project_id = $1 ORDER BY name LIMIT 11")
        .bind(project.id)
        .fetch_all(connection)
        .await?;
    Err(CatalogueError::unknown("experiment", name, project.to_string(), &names))
}

/// Returns an experiment that exists.
async fn load(connection: &mut PgConnection, project: Uuid, id: Uuid) -> Result<Experiment, CatalogueError> {
    let found = read(connection, project, Which::Id(id)).await?;
    Ok(found.into_iter().next().ok_or(sqlx::Error::RowNotFound)??)
}

/// Which experiments of a project.
#[derive(Clone, Copy)]
enum Which<'a> {
    All,
    Id(Uuid),
    /// The one with this id, else the one with this name.
    Named(&'a str),
}

async fn read(
    connection: &mut PgConnection,
    project: Uuid,
    which: Which<'_>,
) -> Result<Vec<Result<Experiment, Unsupported>>, sqlx::Error> {
    let (id, name) = match which {
        Which::All => (None, None),
        Which::Id(id) => (Some(id), None),
        Which::Named(name) => (hyphenated_uuid(name), Some(name)),
    };
    let rows = sqlx::query(
        "SELECT e.id, e.name, description, status, started_at, ended_at, target_sample_size, conversion_window_days, \
             confidence_level::text, minimum_detectable_effect::text, attribution_method, currency, frozen_at, auto_registered, \
             e.created_at, trigger::text AS trigger, policy::text AS policy, \
             e.exposure AS exposure_name, e.exposure_version, d.definition::text AS exposure \
         FROM experiments e LEFT JOIN exposure_definitions d \
             ON d.project_id = e.project_id AND d.name = e.exposure AND d.version = e.exposure_version \
         WHERE e.project_id = $1 AND ($4 OR e.id = $2 OR e.name = $3) \
         ORDER BY e.id IS NOT DISTINCT FROM $2 DESC, e.name LIMIT CASE WHEN NOT $4 THEN 1 END",
    )
    .bind(project)
    .bind(id)
    .bind(name)
    .bind(matches!(which, Which::All))
    .fetch_all(&mut *connection)
    .await?;
    let mut experiments = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get("name")?;
        let experiment = of_row(row).map_err(|error| ReadError::of_row(error, "experiments", || format!("row {name:?}")));
        experiments.push(ReadError::split(experiment)?);
    }
    let ids: Vec<Uuid> = experiments.iter().flatten().map(|experiment| experiment.id).collect();
    let mut variants = variants(connection, project, &ids).await?;
    let mut stored = phases::read(connection, project, &ids).await?;
    let mut metrics: HashMap<Uuid, Vec<Result<Metric, Unsupported>>> = HashMap::new();
    for (experiment, metric) in metrics::read(connection, project, &ids).await? {
        metrics.entry(experiment).or_default().push(metric);
    }
    let mut whole = |experiment: Experiment| {
        let metrics = metrics.remove(&experiment.id).unwrap_or_default().into_iter().collect::<Result<_, Unsupported>>();
        let metrics = metrics.map_err(|unsupported| Unsupported {
            row: format!("{} of experiment {:?}", unsupported.row, experiment.name),
            ..unsupported
        })?;
        let stored = stored.remove(&experiment.id).transpose()?;
        let experiment = Experiment { variants: variants.remove(&experiment.id).unwrap_or_default(), metrics, ..experiment };
        let phases = stored.unwrap_or_else(|| phases::implied(&experiment));
        Ok(Experiment { phases, ..experiment })
    };
    Ok(experiments.into_iter().map(|experiment| experiment.and_then(&mut whole)).collect())
}

async fn variants(
    connection: &mut PgConnection,
    project: Uuid,
    experiments: &[Uuid],
) -> Result<HashMap<Uuid, Vec<Variant>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT experiment_id, id, name, is_control, weight::text AS weight, description, config_json::text AS config_json \
         FROM variants WHERE project_id = $1 AND experiment_id = ANY ($2) ORDER BY name",
    )
    .bind(project)
    .bind(experiments)
    .fetch_all(connection)
    .await?;
    let mut found: HashMap<Uuid, Vec<Variant>> = HashMap::new();
    for row in &rows {
        found.entry(row.try_get("experiment_id")?).or_default().push(Variant::from_row(row)?);
    }
    Ok(found)
}

fn of_row(row: &PgRow) -> Result<Experiment, sqlx::Error> {
    let (named, version) =
        (row.try_get::<Option<String>, _>("exposure_name")?, row.try_get::<Option<i32>, _>("exposure_version")?);
    let exposure = row.try_get::<Option<&str>, _>("exposure")?.map(|text| versions::of_text(text, "exposure")).transpose()?;
    let time = |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<Timestamp>, _>(column)?.map(|time| time.0));
    Ok(Experiment {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        description: row.try_get("description")?,
        status: row.try_get("status")?,
        started_at: time("started_at")?,
        ended_at: time("ended_at")?,
        target_sample_size: row.try_get("target_sample_size")?,
        confidence_level: row.try_get("confidence_level")?,
        minimum_detectable_effect: row.try_get("minimum_detectable_effect")?,
        conversion_window_days: row.try_get("conversion_window_days")?,
        attribution_method: row.try_get("attribution_method")?,
        currency: row.try_get("currency")?,
        exposure: named.zip(version).zip(exposure).map(|((name, version), definition)| Reference { name, version, definition }),
        trigger: row.try_get::<Option<&str>, _>("trigger")?.map(Trigger::of_text).transpose()?,
        policy: row.try_get::<Option<&str>, _>("policy")?.map(Policy::of_text).transpose()?.unwrap_or_default(),
        frozen_at: time("frozen_at")?,
        auto_registered: row.try_get("auto_registered")?,
        created_at: row.try_get::<Timestamp, _>("created_at")?.0,
        variants: Vec::new(),
        metrics: Vec::new(),
        phases: Vec::new(),
    })
}

/// Writes the text of a JSON value as that value.
fn json_or_null<S: Serializer>(text: &Option<String>, out: S) -> Result<S::Ok, S::Error> {
    let value = text.clone().map(RawValue::from_string).transpose();
    value.map_err(serde::ser::Error::custom)?.serialize(out)
}

/// Writes a time that may be absent as people and programs read it.
fn text_or_null<S: Serializer>(time: &Option<Micros>, out: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => crate::time_text(time, out),
        None => out.serialize_none(),
    }
}
