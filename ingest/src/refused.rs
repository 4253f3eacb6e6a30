//! How many rejected events of each project are kept of a day; the rest is counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use events::{Micros, ProjectId};

/// Rejected events that one collector sends whole, of a project and day (UTC). The aggregator holds all collectors to it together.
const KEPT_MAX: u32 = 10_000;

/// The count of the present day.
#[derive(Default)]
pub(crate) struct Refused {
    kept: Mutex<(i64, HashMap<ProjectId, u32>)>,
}

impl Refused {
    /// Counts one of a project, and returns whether it is kept.
    pub(crate) fn has_room(&self, project: ProjectId, now: Micros) -> bool {
        let today = now.0.div_euclid(Micros::DAY);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.0 != today {
            *kept = (today, HashMap::new());
        }
        let count = kept.1.entry(project).or_default();
        *count = count.saturating_add(1);
        *count <= KEPT_MAX
    }

    /// Begins anew.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn forget(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = (0, HashMap::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_are_kept_of_each_project_and_day() {
        let refused = Refused::default();
        let project = |n| ProjectId(uuid::Uuid::from_u128(n));
        let kept = |project, now| (0..KEPT_MAX + 5).filter(|_| refused.has_room(project, now)).count();
        let today = Micros(3 * Micros::DAY + 7);
        assert_eq!(kept(project(1), today), KEPT_MAX as usize);
        assert_eq!(kept(project(1), today), 0);
        assert_eq!(kept(project(2), today), KEPT_MAX as usize);
        assert_eq!(kept(project(1), Micros(4 * Micros::DAY)), KEPT_MAX as usize);
    }
}
