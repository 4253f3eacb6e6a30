//! Everything that an answer rests on, read on one snapshot: what the catalogue says of the experiment, and the cohort of its
//! users with what they did.

pub mod catalogue;
pub mod cohort;
pub mod cohort_cache;
pub mod cohort_reader;
pub mod experiment;
mod exposed;
pub mod sources;
pub mod traits;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::catalogue::exposures::Exposure;
use ::catalogue::project::internal;
use uuid::Uuid;

use crate::engine;
use crate::experiment::request::{Cuped, Dimensions, Request};
use crate::experiment::warning::Warning;
use crate::http::app::App;
use crate::http::error::{ApiError, Code};
use crate::source::names::Names;
use crate::source::snapshot::{AsOf, DataVersion, Snapshot};
use catalogue::{Aggregation, Beside, Configured, Defined, Denominator, choose_control};
use cohort::Cohort;
use cohort_cache::CohortKey;
use cohort_reader::CohortQuery;
use experiment::{Experiment, Variant};
use sources::{CovariateSource, SourceQuery};
use traits::{TRAITS_MAX, TraitQuery};

/// What was read.
#[derive(Clone, Debug)]
pub struct Read {
    /// What the catalogue says.
    pub catalogue: Catalogue,
    /// Its users and what they did.
    pub cohort: Arc<Cohort>,
    /// Names of events that metrics speak of and that no event has.
    pub unknown_names: Vec<Warning>,
    /// How far the log was stored.
    pub as_of: AsOf,
    /// The version of all of it.
    pub version: DataVersion,
    /// How long it took until the catalogue was read, waiting for another answer about the same cohort included.
    pub catalogue_took: Duration,
}

/// What the catalogue says of an experiment.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// The experiment, with its control chosen.
    pub experiment: Experiment,
    /// Its variants, the control first.
    pub variants: Vec<Variant>,
    /// The metrics configured for it.
    pub metrics: Vec<Configured>,
    /// What is stored of it beside the cohort.
    pub beside: Beside,
    /// What holds for the first exposure of own staff, who take no part; none if there are none.
    pub internal: Option<String>,
}

impl Catalogue {
    /// Returns what exposes users; none: impressions that name the experiment.
    fn exposure(&self) -> Option<Exposure> {
        let variants = self.variants.iter().map(|variant| (variant.name.clone(), variant.id)).collect();
        let reference = self.experiment.exposure.as_ref()?;
        Some(Exposure::new(&reference.definition, &self.experiment.name, variants))
    }
}

/// Reads the experiment with this name or id.
/// # Errors
/// [`ApiError`]; `unknown_experiment`, `unknown_variant` and `unsupported_catalogue` among them.
pub async fn read(app: &App, project: Uuid, name: &str, request: &Request) -> Result<Read, ApiError> {
    let began = Instant::now();
    let has_before = request.cuped == Cuped::Auto;
    let key = CohortKey {
        project,
        experiment: name.to_owned(),
        baseline: request.baseline.clone(),
        has_before,
        dimensions: request.dimensions.clone(),
        condition: request.condition.clone(),
        is_explored: request.is_explored,
    };
    if let Some(condition) = &request.condition {
        let session = app.engine.session().map_err(engine::api_error)?;
        sources::asked(condition, "where", &session)?;
    }
    let mut cached = app.cohorts.locked(key).await;
    let snapshot = Arc::new(app.snapshot(project).await?);
    let catalogue = read_catalogue(&snapshot, name, request.baseline.as_deref()).await?;
    let catalogue_took = began.elapsed();
    let window_days = catalogue.experiment.conversion_window_days;
    let longest =
        catalogue.metrics.iter().filter_map(|metric| metric.window_days).max().map_or(window_days, |days| days.max(window_days));
    let sources: Vec<SourceQuery> = catalogue.metrics.iter().flat_map(Configured::sources).collect();
    let exposure = catalogue.exposure();
    let traits = traits_of(&snapshot, &catalogue, exposure.as_ref(), request).await?;
    let query = CohortQuery {
        sources: &sources,
        experiment: catalogue.experiment.id,
        variants: &catalogue.variants.iter().map(|variant| variant.id).collect::<Vec<_>>(),
        assigning: &catalogue.experiment.assigning(),
        reassigned: &catalogue.experiment.reassigned(),
        has_before,
        exposure: exposure.as_ref(),
        trigger: catalogue.experiment.trigger.as_ref(),
        window_days: (window_days, longest),
        traits: &traits,
        bytes_max: app.limits.query_memory_bytes_max,
    };
    let cohort = cached.refresh(&app.engine, &snapshot, &query, &app.metrics).await?;
    let mut unknown_names = unknown_names(&snapshot, names_without_rows(&catalogue.metrics, &cohort)).await?;
    unknown_names.extend(unknown_covariates(&catalogue.metrics));
    let (as_of, version) = (snapshot.as_of().clone(), snapshot.version().clone());
    let read = Read { catalogue, cohort, unknown_names, as_of, version, catalogue_took };
    Ok(match request.as_of {
        Some(us) => read.until(us),
        None => read,
    })
}

/// Returns what is to be known of each first exposure: for the question, and for the metrics that are adjusted by it.
async fn traits_of(
    snapshot: &Snapshot,
    catalogue: &Catalogue,
    exposure: Option<&Exposure>,
    request: &Request,
) -> Result<Vec<TraitQuery>, ApiError> {
    let mut traits: Vec<TraitQuery> = Vec::new();
    let mut add = |query: TraitQuery| {
        if !traits.contains(&query) && traits.len() < TRAITS_MAX {
            traits.push(query);
        }
    };
    if !request.dimensions.is_empty() {
        add(TraitQuery::Value(request.dimensions.clone()));
    }
    let conditions = request.condition.iter().chain(&catalogue.internal);
    conditions.for_each(|condition| add(TraitQuery::Condition(condition.clone())));
    if request.cuped == Cuped::Auto {
        let properties = catalogue.metrics.iter().flat_map(Configured::covariates).filter_map(|source| match source {
            CovariateSource::Exposure(property) => Some(property),
            _ => None,
        });
        properties.for_each(|property| add(TraitQuery::Value(Dimensions(vec![property]))));
    }
    if request.is_explored {
        let found = traits::explored(snapshot, catalogue.experiment.id, exposure).await;
        found.map_err(|error| engine::database_error(&error))?.into_iter().for_each(add);
    }
    Ok(traits)
}

/// Says which metrics are to be adjusted by others that the experiment does not have.
fn unknown_covariates(metrics: &[Configured]) -> Vec<Warning> {
    let is_known = |name: &str| metrics.iter().any(|metric| metric.name == name);
    let unknown = |metric: &Configured| {
        let names = metric.covariates().into_iter().filter_map(|source| match source {
            CovariateSource::Metric(name) if !is_known(&name) => Some(name),
            _ => None,
        });
        let warning = |name: String| {
            let message = format!("{} is not adjusted by metrics.{name}, which the experiment does not have", metric.name);
            Warning::new("unknown_covariate", message)
        };
        names.map(warning).collect::<Vec<_>>()
    };
    metrics.iter().flat_map(unknown).collect()
}

impl Read {
    /// Returns what would have been read at a moment, in microseconds since 1970; the catalogue is that of now.
    pub fn until(&self, us: i64) -> Read {
        let cohort = &self.cohort;
        let is_later = cohort.newest().is_some_and(|newest| newest > us);
        Read { cohort: if is_later { Arc::new(cohort.until(us)) } else { cohort.clone() }, ..self.clone() }
    }
}

/// Returns the names of events that metrics speak of and that no participant's have, each with its metric.
fn names_without_rows<'a>(metrics: &'a [Configured], cohort: &Cohort) -> Vec<(&'a str, String)> {
    let of_conversions = |metric: &'a Configured| {
        let over = match &metric.aggregation {
            Aggregation::Ratio(_, Denominator::Conversions(name)) => name.as_ref(),
            _ => None,
        };
        let missing = metric.conversion_type.iter().chain(over).filter(|name| cohort.names.binary_search(name).is_err());
        missing.map(|name| (metric.name.as_str(), name.clone())).collect::<Vec<_>>()
    };
    let sources = metrics.iter().flat_map(|metric| metric.sources().into_iter().map(move |source| (metric, source)));
    let empty = sources.zip(&cohort.sources).filter(|(_, found)| found.after.all().is_empty());
    let of_sources = empty
        .flat_map(|((metric, source), _)| source.definition.events.into_iter().map(move |name| (metric.name.as_str(), name)));
    metrics.iter().flat_map(of_conversions).chain(of_sources).collect()
}

/// Says which of these names no event of the project has, and which there are that look like them.
async fn unknown_names(snapshot: &Snapshot, wanted: Vec<(&str, String)>) -> Result<Vec<Warning>, ApiError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let names = {
        let mut connection = snapshot.transaction().await;
        Names::read(&mut connection, snapshot.project()).await.map_err(|error| engine::database_error(&error))?
    };
    let warnings = wanted.into_iter().flat_map(|(metric, name)| {
        let unknown = names.unknown(std::iter::once(name));
        unknown.into_iter().map(|name| names.warn(&format!("metrics[{metric}]"), &name)).collect::<Vec<_>>()
    });
    Ok(warnings.collect())
}

async fn read_catalogue(snapshot: &Snapshot, name: &str, baseline: Option<&str>) -> Result<Catalogue, ApiError> {
    let project = snapshot.project();
    let mut connection = snapshot.transaction().await;
    let defined = catalogue::find(&mut connection, project, name).await.map_err(|error| catalogue::refusal(&error))?;
    let Defined { mut experiment, mut variants, metrics } = defined.ok_or_else(|| unknown_experiment(name))?;
    let beside =
        catalogue::beside(&mut connection, project, &experiment).await.map_err(|error| engine::database_error(&error))?;
    let internal = internal(&mut connection, project).await.map_err(|error| engine::database_error(&error))?;
    experiment.behind_since = beside.behind_since.clone();
    let control = choose_control(&mut variants, baseline).map_err(|names| unknown_variant_name(&names))?;
    experiment.control_variant_id = control.map(|index| variants[index].id);
    variants.sort_by_key(|variant| !variant.is_control);
    Ok(Catalogue { experiment, variants, metrics, beside, internal })
}

/// Returns the refusal of a question about an experiment that there is not.
pub(crate) fn unknown_experiment(name: &str) -> ApiError {
    let shown: String = name.chars().take(200).collect();
    let message = format!("there is no experiment with the name or id {shown:?}; GET /v1/experiments lists those that there are");
    ApiError::not_found(Code::UnknownExperiment, message)
}

fn unknown_variant_name(names: &str) -> ApiError {
    let mut refusal = ApiError::bad_request(format!("the experiment has no such variant; it has: {names}")).at("baseline");
    refusal.code = Code::UnknownVariant;
    refusal
}
