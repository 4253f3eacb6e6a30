//! Names that a funnel or a metric speaks of and that no event has.

use std::collections::BTreeSet;

use datafusion::common::utils::datafusion_strsim::levenshtein;
use events::rules::{CAMPAIGN_EVENT_TYPES, IDENTITY_NAMES};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::experiment::warning::Warning;

/// Names that are offered instead of one that is not there, at most.
const NEAREST: usize = 3;
/// Names that are looked for among the events, at most: a bit each.
const LOOKED_FOR_MAX: usize = 60;

/// The names that the events of a project have.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Those of the clients' own.
    own: BTreeSet<String>,
}

impl Names {
    /// Reads them.
    /// # Errors
    /// Those of Postgres.
    pub async fn read(connection: &mut PgConnection, project: Uuid) -> Result<Self, sqlx::Error> {
        let names = sqlx::query_scalar("SELECT DISTINCT name FROM event_names WHERE project_id = $1").bind(project);
        Ok(Names { own: names.fetch_all(connection).await?.into_iter().collect() })
    }

    /// Returns those of some names that are not known to be an event's.
    pub fn unknown(&self, names: impl Iterator<Item = String>) -> Vec<String> {
        let is_known = |name: &str| {
            name == "impression"
                || IDENTITY_NAMES.contains(&name)
                || CAMPAIGN_EVENT_TYPES.contains(&name)
                || self.own.contains(name)
        };
        let unknown: BTreeSet<String> = names.filter(|name| !is_known(name)).collect();
        unknown.into_iter().take(LOOKED_FOR_MAX).collect()
    }

    /// Says that no event has a name, and which names there are that look like it.
    pub fn warn(&self, place: &str, name: &str) -> Warning {
        let nearest = nearest(name, self.own.iter().map(String::as_str));
        let instead = match nearest.as_slice() {
            [] => "no events with names of their own are stored yet".to_owned(),
            names => {
                format!("the nearest names are {}", names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "))
            }
        };
        Warning::new("unknown_event", format!("{place}: no event is called {:?}; {instead}", shortened(name)))
    }
}

/// Returns the names that look most like one, the nearest first.
pub fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let normal = |text: &str| text.to_lowercase().replace(['-', ' ', '.'], "_");
    let wanted = normal(&shortened(name));
    let distance = |other: &str| {
        let other = normal(&shortened(other));
        // A part of a name, or one that it is a part of, is nearer than its length says.
        let is_part = wanted.len() > 2 && other.contains(&wanted) || other.len() > 2 && wanted.contains(&other);
        let distance = levenshtein(&wanted, &other);
        if is_part { distance.min(2) } else { distance }
    };
    let mut found: Vec<(usize, &str)> = names.map(|other| (distance(other), other)).collect();
    found.sort_unstable();
    found.into_iter().take(NEAREST).map(|(_, name)| shortened(name)).collect()
}

fn shortened(name: &str) -> String {
    name.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_are_offered() {
        let names = ["purchase", "purchase_started", "page_viewed", "signup", "sign_up_failed", "a"];
        let check = |name: &str, expected: &[&str]| {
            let found = nearest(name, names.into_iter());
            assert_eq!(found[..expected.len()], *expected, "{name}: {found:?}");
        };
        check("purchse", &["purchase"]);
        check("Purchase", &["purchase", "purchase_started"]);
        check("Sign Up", &["signup"]);
        check("viewed", &["page_viewed"]);
        assert!(nearest("x", std::iter::empty()).is_empty());
        assert_eq!(nearest("x", names.into_iter()).len(), 3);
    }

    #[test]
    fn what_no_event_is_called_is_said() {
        let names = Names { own: ["purchase".to_owned(), "signup".to_owned()].into() };
        let asked = ["purchase", "purchse", "impression", "click", "alias", "x"].map(str::to_owned);
        assert_eq!(names.unknown(asked.into_iter()), ["purchse", "x"]);
        let warning = names.warn("steps[1]", "purchse");
        assert_eq!(warning.message, "steps[1]: no event is called \"purchse\"; the nearest names are \"purchase\", \"signup\"");
        assert!(Names::default().warn("steps[1]", "x").message.ends_with("are stored yet"));
    }
}
