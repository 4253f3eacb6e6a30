//! Bounds how many event names a project has. Each name costs a daily sum and a line in every list, so names that contain ids
//! (high cardinality) would fill both.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use events::{Code, Event, Kind, ProjectId, Rejection};

/// The names of conversions and engagement events of each project: those in Postgres when the collector started, and those received since.
pub(crate) struct Names {
    max: usize,
    by_project: RwLock<HashMap<ProjectId, HashSet<Box<str>>>>,
}

impl Names {
    /// Allows each project this many names.
    pub(crate) fn new(max: usize) -> Self {
        Names { max, by_project: RwLock::default() }
    }

    /// Adds names that are stored already. They stay valid, however many they are.
    pub(crate) fn insert_stored(&self, names: Vec<(ProjectId, String)>) {
        let mut projects = self.by_project.write().unwrap_or_else(PoisonError::into_inner);
        for (project, name) in names {
            projects.entry(project).or_default().insert(name.into());
        }
    }

    /// Admits an event if its name is known, or the project may have another one.
    /// # Errors
    /// A rejection of code `cardinality_limit`.
    pub(crate) fn admit(&self, event: Event) -> Result<Event, Rejection> {
        // Other kinds have a fixed list of names, or none.
        let is_free = matches!(event.kind(), Kind::Conversion | Kind::Engagement);
        let Some(name) = event.name.as_deref().filter(|_| is_free) else { return Ok(event) };
        let is_known = |names: &HashSet<Box<str>>| names.contains(name);
        if self.by_project.read().unwrap_or_else(PoisonError::into_inner).get(&event.project_id).is_some_and(is_known) {
            return Ok(event);
        }
        let mut projects = self.by_project.write().unwrap_or_else(PoisonError::into_inner);
        let names = projects.entry(event.project_id).or_default();
        if !names.contains(name) && names.len() >= self.max {
            let shown: String = name.chars().take(100).collect();
            let message = format!(
                "found the new name {shown:?}, but the project has {} names already; at most {} are accepted; put what differs \
                 from event to event into properties",
                names.len(),
                self.max
            );
            return Err(Rejection::new(Code::CardinalityLimit, "name", message));
        }
        names.insert(name.into());
        Ok(event)
    }
}
