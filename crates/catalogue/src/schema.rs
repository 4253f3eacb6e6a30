//! Which schema the database has, and which ones a service works with.
//!
//! A service says the versions that it works with as a [`Supported`]; with any other it refuses by name, at its start and while it
//! runs: a newer schema may mean something else by a column that this build reads. Whoever changes the schema holds [`lock`] alone;
//! a transaction that stores rows shares it ([`SHARE_LOCK`]) and asks for the version under it, so that no row is stored in a
//! schema that the writer does not know.

use sqlx::PgConnection;

/// Takes the schema's lock (its key is the name of this program in ASCII, and 1) until the transaction ends, against changes only. A statement for the beginning of a transaction.
pub const SHARE_LOCK: &str = "SELECT pg_advisory_xact_lock_shared(2003134834, 1)";
const LOCK: &str = "SELECT pg_advisory_lock(2003134834, 1)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(2003134834, 1)";

/// Reads the number of the newest migration applied, null if none ever was; fails where the table of them is missing.
pub const VERSION: &str = "SELECT max(version) FROM _sqlx_migrations WHERE success";

/// The schema versions that a service works with, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supported {
    /// The service, as a text of an error names it.
    pub service: &'static str,
    /// The first version with all that the service reads and writes.
    pub oldest: i64,
    /// The newest version that the service is tested with.
    pub newest: i64,
}

/// The database's schema is none that the service works with. Nothing was read or written by a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema_unsupported: the database's schema is at version {found}, and this {} works with {}; {}", .supported.service,
    .supported.range(), .supported.advice(*.found))]
pub struct UnsupportedSchema {
    /// The version found; 0 if the database was never migrated.
    pub found: i64,
    /// What the service works with.
    pub supported: Supported,
}

/// Why a service cannot work with a database.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// By its schema.
    #[error(transparent)]
    Unsupported(#[from] UnsupportedSchema),
    /// Postgres cannot be reached, or refuses.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl Supported {
    /// Returns whether the service works with a version.
    /// # Errors
    /// [`UnsupportedSchema`].
    pub fn check(self, found: i64) -> Result<(), UnsupportedSchema> {
        if (self.oldest..=self.newest).contains(&found) { Ok(()) } else { Err(UnsupportedSchema { found, supported: self }) }
    }

    /// Reads the database's version and checks it.
    /// # Errors
    /// [`SchemaError`].
    pub async fn check_database(self, connection: &mut PgConnection) -> Result<(), SchemaError> {
        Ok(self.check(version(connection).await?)?)
    }

    fn range(self) -> String {
        if self.oldest == self.newest { self.newest.to_string() } else { format!("{} to {}", self.oldest, self.newest) }
    }

    fn advice(self, found: i64) -> &'static str {
        if found < self.oldest { "run `weir migrate` of this build" } else { "upgrade this service" }
    }
}

/// Returns the version of the database's schema, 0 if it was never migrated.
/// # Errors
/// As Postgres has them.
pub async fn version(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    of_answer(sqlx::query_scalar(VERSION).fetch_one(connection).await)
}

/// Takes what [`VERSION`] gave: a database without the table was never migrated.
/// # Errors
/// Any other one of Postgres.
pub fn of_answer(answer: Result<Option<i64>, sqlx::Error>) -> Result<i64, sqlx::Error> {
    match answer {
        Ok(version) => Ok(version.unwrap_or(0)),
        Err(error) if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("42P01")) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Waits until no transaction stores rows, and keeps others from beginning until [`unlock`] or the connection's end.
/// # Errors
/// As Postgres has them.
pub async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK).execute(connection).await?;
    Ok(())
}

/// Ends [`lock`].
/// # Errors
/// As Postgres has them.
pub async fn unlock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(UNLOCK).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_found_what_is_supported_and_what_to_do() {
        let check = |oldest, found, expected: Option<&str>| {
            let text = Supported { service: "collector", oldest, newest: 6 }.check(found).err().map(|error| error.to_string());
            assert_eq!(text.as_deref(), expected, "{oldest} to 6, {found}");
        };
        for found in [5, 6] {
            check(5, found, None);
        }
        check(
            5,
            7,
            Some(
                "schema_unsupported: the database's schema is at version 7, and this collector works with 5 to 6; upgrade this service",
            ),
        );
        check(
            6,
            5,
            Some(
                "schema_unsupported: the database's schema is at version 5, and this collector works with 6; run `weir migrate` of this build",
            ),
        );
    }
}
