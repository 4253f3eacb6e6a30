//! `GET /v1/experiments`: the experiments of a project. They are read again only when its catalogue has changed.

use std::sync::{Arc, Mutex, PoisonError};

use hashlink::LruCache;
use uuid::Uuid;

use super::measure;
use super::read::catalogue::{self, Defined};
use super::say::body::{ExperimentSummary, Experiments};
use crate::engine;
use crate::http::app::App;
use crate::http::error::ApiError;
use crate::source::snapshot::Snapshot;

/// Bytes of all lists that are cached, as JSON.
const BYTES_MAX: usize = 8 << 20;
/// Of one project's at most; a longer one is read each time.
const BYTES_OF_ONE_MAX: usize = BYTES_MAX / 4;

/// Lists the experiments of a project.
/// # Errors
/// [`ApiError`].
pub async fn list(app: &App, project: Uuid) -> Result<Experiments, ApiError> {
    let snapshot = app.snapshot(project).await?;
    let List { mut experiments, unsupported, .. } = app.lists.of(&snapshot).await?.as_ref().clone();
    let now = snapshot.as_of().event_time.as_deref().and_then(measure::micros);
    for ExperimentSummary { experiment, .. } in &mut experiments {
        experiment.days_running = now.and_then(|now| measure::days_running(experiment, now));
    }
    Ok(Experiments { experiments, unsupported, as_of: snapshot.as_of().clone() })
}

/// The experiments of a project, as of one version of its catalogue.
#[derive(Clone, Debug)]
struct List {
    version: i64,
    experiments: Vec<ExperimentSummary>,
    unsupported: Vec<String>,
    bytes: usize,
}

/// Lists cached from one answer to the next, those used last.
pub(crate) struct ListCache {
    lists: Mutex<LruCache<Uuid, Arc<List>>>,
}

impl ListCache {
    /// Makes an empty one.
    pub(crate) fn new() -> Self {
        ListCache { lists: Mutex::new(LruCache::new_unbounded()) }
    }

    /// Returns the list of a snapshot's project.
    async fn of(&self, snapshot: &Snapshot) -> Result<Arc<List>, ApiError> {
        let (project, version) = (snapshot.project(), snapshot.version().catalogue);
        let cached = self.lists.lock().unwrap_or_else(PoisonError::into_inner).get(&project).cloned();
        if let Some(cached) = cached.filter(|cached| cached.version == version) {
            return Ok(cached);
        }
        let list = Arc::new(List::read(snapshot).await?);
        self.keep(project, &list);
        Ok(list)
    }

    fn keep(&self, project: Uuid, list: &Arc<List>) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.remove(&project);
        if list.bytes <= BYTES_OF_ONE_MAX {
            lists.insert(project, Arc::clone(list));
        }
        let mut bytes: usize = lists.iter().map(|(_, list)| list.bytes).sum();
        while bytes > BYTES_MAX
            && let Some((_, oldest)) = lists.remove_lru()
        {
            bytes -= oldest.bytes;
        }
    }
}

impl List {
    async fn read(snapshot: &Snapshot) -> Result<Self, ApiError> {
        let mut connection = snapshot.transaction().await;
        let found = catalogue::list(&mut connection, snapshot.project()).await;
        let mut list = List { version: snapshot.version().catalogue, experiments: Vec::new(), unsupported: Vec::new(), bytes: 0 };
        for defined in found.map_err(|error| engine::database_error(&error))? {
            match defined {
                Ok(defined) => list.experiments.push(summary(defined)),
                Err(error) => list.unsupported.push(error.to_string()),
            }
        }
        let json = serde_json::to_vec(&(&list.experiments, &list.unsupported)).map_err(|_| ApiError::internal())?;
        list.bytes = json.len();
        Ok(list)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: usize) -> Arc<List> {
        Arc::new(List { version: 1, experiments: Vec::new(), unsupported: Vec::new(), bytes })
    }

    fn cached(lists: &ListCache) -> Vec<u128> {
        lists.lists.lock().expect("whole").iter().map(|(project, _)| project.as_u128()).collect()
    }

    #[test]
    fn the_list_used_longest_ago_leaves_first_and_a_long_one_is_never_kept() {
        let lists = ListCache::new();
        for project in 1..=4 {
            lists.keep(Uuid::from_u128(project), &of(BYTES_OF_ONE_MAX));
        }
        lists.lists.lock().expect("whole").get(&Uuid::from_u128(1));
        lists.keep(Uuid::from_u128(5), &of(1));
        assert_eq!(cached(&lists), [3, 4, 1, 5], "2 was used longest ago");
        lists.keep(Uuid::from_u128(3), &of(BYTES_OF_ONE_MAX + 1));
        assert_eq!(cached(&lists), [4, 1, 5], "what was kept of it is of another version");
    }
}
