//! Bounds how many event names a project has, and knows which events name an experiment or a campaign that is unknown. Each name of an event
//! costs a daily sum and a line in every list, so names that contain ids (high cardinality) would fill both.

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use catalogue::event_names::ProjectNames;
use catalogue::names::{KnownNames, Look};
use events::{Code, Event, Kind, ProjectId, Rejection};

/// The names of conversions and engagement events of each project: those that Postgres has, and those received since they were read.
pub(crate) struct Names {
    max: usize,
    /// How many more server keys may add.
    reserve: usize,
    by_project: RwLock<HashMap<ProjectId, Known>>,
}

/// What is known of one project.
#[derive(Debug)]
struct Known {
    allowed: HashSet<Box<str>>,
    blocked: HashSet<Box<str>>,
    takes_new: bool,
    /// Of experiments, campaigns and their parts; none while they were not read, or if they are too many.
    catalogue: Option<KnownNames>,
}

impl Default for Known {
    /// A project whose names were not read yet.
    fn default() -> Self {
        Known { allowed: HashSet::new(), blocked: HashSet::new(), takes_new: true, catalogue: None }
    }
}

impl Names {
    /// Allows each project this many names, and `reserve` more that server keys bring: public keys cannot lock them out.
    pub(crate) fn new(max: usize, reserve: usize) -> Self {
        Names { max, reserve, by_project: RwLock::default() }
    }

    /// Takes over what Postgres has of a project. Stored names stay valid, however many they are.
    pub(crate) fn replace(&self, project: ProjectId, names: ProjectNames, catalogue: Option<KnownNames>) {
        let set = |names: Vec<String>| names.into_iter().map(Into::into).collect();
        let known = Known { allowed: set(names.allowed), blocked: set(names.blocked), takes_new: names.takes_new, catalogue };
        self.by_project.write().unwrap_or_else(PoisonError::into_inner).insert(project, known);
    }

    /// Returns what is known of the experiment, variant, campaign and component that an event names; nothing is missing in a catalogue that was
    /// not read.
    pub(crate) fn look(&self, event: &Event) -> Look {
        let projects = self.by_project.read().unwrap_or_else(PoisonError::into_inner);
        let known = projects.get(&event.project_id).and_then(|known| known.catalogue.as_ref());
        known.map_or(Look::Known, |known| known.look(event))
    }

    /// Admits an event if its name is known, or the project may have another one from a key of this kind. A name that is new is known
    /// from then on, unless it is only looked at.
    /// # Errors
    /// A rejection of code `blocked_name` or `cardinality_limit`.
    pub(crate) fn admit(&self, event: &Event, is_server_key: bool, is_dry: bool) -> Result<(), Rejection> {
        // Other kinds have a fixed list of names, or none.
        let is_free = matches!(event.kind(), Kind::Conversion | Kind::Engagement);
        let Some(name) = event.name.as_deref().filter(|_| is_free) else { return Ok(()) };
        let is_known = |known: &Known| known.allowed.contains(name);
        if self.by_project.read().unwrap_or_else(PoisonError::into_inner).get(&event.project_id).is_some_and(is_known) {
            return Ok(());
        }
        let mut projects = self.by_project.write().unwrap_or_else(PoisonError::into_inner);
        let known = projects.entry(event.project_id).or_default();
        let shown = || name.chars().take(100).collect::<String>();
        if known.blocked.contains(name) {
            let message = format!("found the name {:?}, which is blocked in this project", shown());
            return Err(Rejection::new(Code::BlockedName, "name", message));
        }
        if known.allowed.contains(name) {
            return Ok(()); // since the first look
        }
        if !known.takes_new {
            let message = format!("found the new name {:?}, but the project takes no new names of events", shown());
            return Err(Rejection::new(Code::CardinalityLimit, "name", message));
        }
        let max = if is_server_key { self.max + self.reserve } else { self.max };
        if known.allowed.len() >= max {
            let message = format!(
                "found the new name {:?}, but the project has {} names already; at most {max} are accepted{}; put what differs \
                 from event to event into properties",
                shown(),
                known.allowed.len(),
                if is_server_key { "" } else { " from a public key" },
            );
            return Err(Rejection::new(Code::CardinalityLimit, "name", message));
        }
        if !is_dry {
            known.allowed.insert(name.into());
        }
        Ok(())
    }
}
