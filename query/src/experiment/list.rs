//! `GET /v1/experiments`: the experiments of a project. They are read again only when its catalogue has changed.

use std::sync::Arc;

use uuid::Uuid;

use super::measure;
use super::read::catalogue::{self, Defined};
use super::say::body::{ExperimentSummary, Experiments};
use crate::cache::Cache;
use crate::engine;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::source::snapshot::Snapshot;

/// Bytes of all lists that are cached, as JSON.
pub(crate) const BYTES_MAX: usize = 8 << 20;

/// Lists the experiments of a project.
/// # Errors
/// [`ApiError`].
pub async fn list(app: &App, project: Uuid) -> Result<Experiments, ApiError> {
    let snapshot = app.snapshot(project).await?;
    let version = snapshot.version().catalogue;
    let list = match app.lists.get(&project, &version) {
        Some(list) => list,
        None => {
            let (list, bytes) = List::read(&snapshot).await?;
            app.lists.put(project, version, Arc::clone(&list), bytes);
            list
        }
    };
    let List { mut experiments, unsupported } = List::clone(&list);
    let now = snapshot.as_of().event_time.as_deref().and_then(measure::micros);
    for ExperimentSummary { experiment, .. } in &mut experiments {
        experiment.days_running = now.and_then(|now| measure::days_running(experiment, now));
    }
    Ok(Experiments { experiments, unsupported, as_of: snapshot.as_of().clone() })
}

/// The experiments of a project, and why others cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct List {
    experiments: Vec<ExperimentSummary>,
    unsupported: Vec<String>,
}

/// Lists by project, each of a version of its catalogue.
pub(crate) type Lists = Cache<Uuid, i64, Arc<List>>;

impl List {
    /// Reads it; with its bytes as JSON.
    async fn read(snapshot: &Snapshot) -> Result<(Arc<Self>, usize), ApiError> {
        let mut connection = snapshot.transaction().await;
        let found = catalogue::list(&mut connection, snapshot.project()).await;
        let mut list = List { experiments: Vec::new(), unsupported: Vec::new() };
        for defined in found.map_err(|error| engine::database_error(&error))? {
            match defined {
                Ok(defined) => list.experiments.push(summary(defined)),
                Err(error) => list.unsupported.push(error.to_string()),
            }
        }
        let json = serde_json::to_vec(&(&list.experiments, &list.unsupported)).map_err(|_| ApiError::internal())?;
        Ok((Arc::new(list), json.len()))
    }
}

fn summary(defined: Defined) -> ExperimentSummary {
    let Defined { mut experiment, mut variants, .. } = defined;
    // Without a baseline asked for there is nothing to miss.
    let control = catalogue::choose_control(&mut variants, None).ok().flatten();
    experiment.control_variant_id = control.map(|index| variants[index].id);
    variants.sort_by_key(|variant| !variant.is_control);
    ExperimentSummary { experiment, variants }
}
