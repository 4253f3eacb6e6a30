//! The changes that operators make, and what they look at before.
//!
//! They stand here and not beside the command line because they obey the aggregator's locks, always in this order:
//! all checkpoint rows, ascending, where rows that are already stored change their meaning; then the advisory lock of the
//! project's catalogue. The same transaction raises the catalogue's version, so that a batch resolved against the old one
//! is resolved again, and writes the audit. Nothing is changed unless all of it is.

mod audit;
pub mod campaigns;
pub mod dead_letters;
pub mod experiments;
pub mod metrics;
mod new_experiment;
mod new_metric;

use std::fmt;

use events::Micros;
use serde::Serializer;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use uuid::Uuid;

pub use audit::audit;

use crate::database::catalogue_lock;

/// Why a change was not made. Everything is as it was, and trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A value that is not accepted.
    #[error("{field}: {message}")]
    Invalid {
        /// Which one.
        field: String,
        /// What was found and what is accepted.
        message: String,
    },
    /// Nothing has this name or id.
    #[error("{what} {name:?}: there is none of this name or id in {place}; {known}")]
    Unknown {
        /// The kind of thing.
        what: &'static str,
        /// The name or id that was looked for.
        name: String,
        /// Where it was looked for.
        place: String,
        /// What there is instead.
        known: String,
    },
    /// The name belongs to something else; stored rows refer to it for ever.
    #[error("{what} {name:?}: the name is taken by {id}, and is never given twice; choose another one")]
    NameTaken {
        /// The kind of thing.
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: Uuid,
    },
    /// Rows of the experiment may lie in detached months, so they cannot be computed again.
    #[error(
        "experiment_frozen: experiment {name:?} is frozen since {frozen_at}, because months with its rows were detached; its \
         status, times, window and method stay as they are, make a new experiment instead"
    )]
    Frozen {
        /// The experiment.
        name: String,
        /// Since when.
        frozen_at: Micros,
    },
    /// The change does not fit the present state.
    #[error("{subject} is {found}; {accepted}")]
    WrongState {
        /// What was to be changed.
        subject: String,
        /// Its state.
        found: String,
        /// In which state the change is possible, or what to do instead.
        accepted: String,
    },
    /// The derived rows could not be computed again.
    #[error("recomputing experiment {name:?}: {source}")]
    Recompute {
        /// The experiment.
        name: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Postgres cannot be reached, or refuses.
    #[error("the database did not make the change: {0}")]
    Database(#[from] sqlx::Error),
}

impl AdminError {
    /// Makes the error of one value.
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        AdminError::Invalid { field: field.into(), message: message.into() }
    }

    /// Returns the stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            AdminError::Invalid { .. } => "invalid",
            AdminError::Unknown { .. } => "unknown",
            AdminError::NameTaken { .. } => "name_taken",
            AdminError::Frozen { .. } => "experiment_frozen",
            AdminError::WrongState { .. } => "wrong_state",
            AdminError::Recompute { .. } => "recompute_failed",
            AdminError::Database(_) => "database",
        }
    }
}

/// A project, to which everything belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Its id.
    pub id: Uuid,
    /// Its name, unique in the database.
    pub name: String,
}

impl fmt::Display for Project {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "project {:?}", self.name)
    }
}

/// Finds a project by id, else by name.
/// # Errors
/// [`AdminError::Unknown`], which lists the projects that there are.
pub async fn find_project(conn: &mut PgConnection, name: &str) -> Result<Project, AdminError> {
    let found: Option<(Uuid, String)> = sqlx::query_as(
        "SELECT id, name FROM projects WHERE name = $1 OR id::text = lower($1) ORDER BY id::text = lower($1) DESC LIMIT 1",
    )
    .bind(name)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some((id, name)) = found {
        return Ok(Project { id, name });
    }
    let names = sqlx::query_scalar("SELECT name FROM projects ORDER BY name LIMIT 11").fetch_all(conn).await?;
    Err(AdminError::Unknown { what: "project", name: name.into(), place: "this database".into(), known: listed(&names) })
}

/// Says which names there are, 10 at most.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "there is none at all yet".to_owned();
    }
    let shown: Vec<_> = names.iter().take(10).map(|name| format!("{name:?}")).collect();
    format!("there is {}{}", shown.join(", "), if names.len() > 10 { " and more" } else { "" })
}

/// Begins a change. A lock that somebody holds for longer than a minute ends it: an aggregator that hangs inside a
/// transaction is replaced within 20 seconds, so whoever still holds one then is no aggregator.
async fn begin(conn: &mut PgConnection) -> Result<Transaction<'_, Postgres>, AdminError> {
    let mut tx = conn.begin().await?;
    sqlx::query("SET LOCAL lock_timeout = '60s'").execute(&mut *tx).await?;
    Ok(tx)
}

/// Takes the catalogue of a project, against aggregators that commit and against other changes. Where checkpoints are
/// locked too, they come first: [`crate::recompute::lock`].
async fn lock_catalogue(conn: &mut PgConnection, project: Uuid) -> Result<(), AdminError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(catalogue_lock(project)).execute(conn).await?;
    Ok(())
}

/// Checks a name as the collector checks those in events, so that each name here can occur there.
fn check_name(field: &str, name: &str) -> Result<(), AdminError> {
    let max = events::rules::limits::NAME_BYTES_MAX;
    if name.trim().is_empty() {
        return Err(AdminError::invalid(field, format!("found {name:?}, which is empty; a name is accepted")));
    }
    if name.len() > max {
        return Err(AdminError::invalid(field, format!("found {} bytes; at most {max} are accepted", name.len())));
    }
    if name.contains('\0') {
        return Err(AdminError::invalid(field, "found the character U+0000, which Postgres cannot hold"));
    }
    Ok(())
}

/// Writes a time as people and programs read it.
fn iso<S: Serializer>(time: &Micros, out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(time)
}

/// Writes a time that may be absent.
fn iso_or_null<S: Serializer>(time: &Option<Micros>, out: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => out.collect_str(time),
        None => out.serialize_none(),
    }
}

/// Makes an enum whose values are texts of the schema, with the one list of what is accepted.
macro_rules! texts {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            /// All values, as they are accepted.
            pub const TEXTS: &'static [&'static str] = &[$($text,)*];

            /// Returns the text, as the schema has it.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok($name::$value),)*
                    _ => Err(format!("found {text:?}; accepted: {}", $name::TEXTS.join(", "))),
                }
            }
        }
    };
}
pub(crate) use texts;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_listed_up_to_ten() {
        let check = |count: usize, expected: &str| {
            let names: Vec<_> = (0..count).map(|number| format!("e{number}")).collect();
            assert_eq!(listed(&names), expected);
        };
        check(0, "there is none at all yet");
        check(2, r#"there is "e0", "e1""#);
        check(11, r#"there is "e0", "e1", "e2", "e3", "e4", "e5", "e6", "e7", "e8", "e9" and more"#);
    }

    #[test]
    fn names_obey_the_collectors_rules() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(check_name("name", name).err().map(|error| error.to_string()).as_deref(), expected, "{name:?}");
        };
        check("checkout", None);
        check("Prüfung 2 / neu", None);
        check(&"x".repeat(512), None);
        check(&"x".repeat(513), Some("name: found 513 bytes; at most 512 are accepted"));
        check(" ", Some(r#"name: found " ", which is empty; a name is accepted"#));
        check("a\0b", Some("name: found the character U+0000, which Postgres cannot hold"));
    }
}
