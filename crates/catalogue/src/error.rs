//! Why the catalogue was not read, or not changed.

use events::Micros;
use uuid::Uuid;

use crate::vocabulary::UnknownText;

/// A row that this version cannot read, because a newer one wrote it. Nothing may be computed from it; trying again helps only
/// after an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "table {table}, {row}: {column} is {found}, which this version of Weir does not know; it knows {}. Upgrade this service",
    known.join(", ")
)]
pub struct Unsupported {
    /// The table.
    pub table: &'static str,
    /// Which row, for people.
    pub row: String,
    /// The column.
    pub column: String,
    /// What stands there: a text in quotes, or null.
    pub found: String,
    /// All texts that this version knows.
    pub known: &'static [&'static str],
}

/// Why a service could not read the catalogue.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A newer version of Weir wrote it.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Postgres cannot be reached, or refuses.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl ReadError {
    /// Takes apart what reading a row's columns gave: a text that no enum knows is named with its row, all else is the
    /// database's.
    pub(crate) fn of_row(error: sqlx::Error, table: &'static str, row: impl FnOnce() -> String) -> ReadError {
        match error {
            sqlx::Error::ColumnDecode { index, source } => match source.downcast::<UnknownText>() {
                Ok(unknown) => ReadError::Unsupported(Unsupported {
                    table,
                    row: row(),
                    column: index.trim_matches('"').to_owned(),
                    found: format!("{:?}", unknown.text),
                    known: unknown.known,
                }),
                Err(source) => ReadError::Database(sqlx::Error::ColumnDecode { index, source }),
            },
            error => ReadError::Database(error),
        }
    }

    /// Sets what only a newer version can read apart from what concerns all rows.
    pub(crate) fn split<T>(read: Result<T, ReadError>) -> Result<Result<T, Unsupported>, sqlx::Error> {
        match read {
            Ok(value) => Ok(Ok(value)),
            Err(ReadError::Unsupported(unsupported)) => Ok(Err(unsupported)),
            Err(ReadError::Database(error)) => Err(error),
        }
    }
}

/// Why an operator did not get an answer, or a change was not made. Everything is as it was, and trying again is safe.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
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
    /// A newer version of Weir wrote a row that is needed.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Postgres cannot be reached, or refuses.
    #[error("the database did not make the change: {0}")]
    Database(#[from] sqlx::Error),
}

impl CatalogueError {
    /// Makes the error of one value.
    pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        CatalogueError::Invalid { field: field.into(), message: message.into() }
    }

    /// Makes the error of a name that nothing has; `names` are those that there are, 11 at most.
    pub(crate) fn unknown(what: &'static str, name: &str, place: impl Into<String>, names: &[String]) -> Self {
        CatalogueError::Unknown { what, name: name.to_owned(), place: place.into(), known: listed(names) }
    }

    /// Returns the stable code, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            CatalogueError::Invalid { .. } => "invalid",
            CatalogueError::Unknown { .. } => "unknown",
            CatalogueError::NameTaken { .. } => "name_taken",
            CatalogueError::Frozen { .. } => "experiment_frozen",
            CatalogueError::WrongState { .. } => "wrong_state",
            CatalogueError::Unsupported(_) => "unsupported_catalogue",
            CatalogueError::Database(_) => "database",
        }
    }
}

impl From<ReadError> for CatalogueError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unsupported(unsupported) => CatalogueError::Unsupported(unsupported),
            ReadError::Database(error) => CatalogueError::Database(error),
        }
    }
}

/// Says which names there are, 10 at most.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "there is none at all yet".to_owned();
    }
    let shown: Vec<_> = names.iter().take(10).map(|name| format!("{name:?}")).collect();
    format!("there is {}{}", shown.join(", "), if names.len() > 10 { " and more" } else { "" })
}

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
}
