//! `weir migrate`: brings the schema up to date, and sees to the project `default` and the keys that variables give.

use std::time::Duration;

use anyhow::Context;
use catalogue::schema::{self, Supported};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use crate::cli::Globals;
use crate::keys;

/// How long a database may take that is starting too.
const CONNECT_MAX: Duration = Duration::from_secs(30);

/// Runs the command.
/// # Errors
/// If the database cannot be reached, refuses, or is newer than this build.
pub(crate) async fn run(globals: &Globals) -> anyhow::Result<()> {
    let mut connection = migrated(&globals.any_database_url()?).await?;
    keys::ensure_chosen(&mut connection).await?;
    connection.close().await?;
    tracing::info!(versions = ::migrations::MIGRATOR.iter().count(), "the schema is up to date");
    Ok(())
}

/// Connects, waiting for a database that is not up yet, and applies the migrations that are missing. Aggregators that run store
/// nothing meanwhile; what comes waits in the log.
/// # Errors
/// As of [`run`].
pub(crate) async fn migrated(url: &str) -> anyhow::Result<PgConnection> {
    let mut connection = connected(url).await?;
    schema::lock(&mut connection).await?;
    ::migrations::MIGRATOR.run(&mut connection).await.context("the schema cannot be brought up to date")?;
    schema::unlock(&mut connection).await?;
    Ok(connection)
}

/// Checks that a database, which may not be up yet, has a schema that a service works with. Changes nothing.
/// # Errors
/// If it cannot be reached, or its schema is an older or a newer one.
pub(crate) async fn checked(url: &str, supported: Supported) -> anyhow::Result<()> {
    let mut connection = connected(url).await?;
    supported.check_database(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

async fn connected(url: &str) -> anyhow::Result<PgConnection> {
    let options: PgConnectOptions = url.parse().context("database URL: expected postgres://user:password@host:port/database")?;
    let until = Instant::now() + CONNECT_MAX;
    loop {
        match PgConnection::connect_with(&options).await {
            Ok(connection) => return Ok(connection),
            Err(error) if is_transient(&error) && Instant::now() < until => {
                tracing::debug!(%error, "the database does not answer yet");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            Err(error) => return Err(error).context("the database cannot be reached"),
        }
    }
}

/// Nobody listens, or a server that is starting or ending (class 57P).
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use migrations::testing::{TestDatabase, pretend_schema};

    use super::*;

    const SERVICES: [Supported; 3] = [ingest::SCHEMA, aggregator::SCHEMA, query::SCHEMA];

    #[test]
    fn each_service_works_with_the_newest_schema() {
        let newest = ::migrations::MIGRATOR.iter().map(|migration| migration.version).max();
        for supported in SERVICES {
            assert_eq!(Some(supported.newest), newest, "{}", supported.service);
        }
    }

    /// A service starts beside each schema that it states, and beside no other: it names what it found, what it takes and what to do.
    #[tokio::test]
    async fn a_service_is_refused_beside_a_schema_that_it_does_not_state() {
        let newest = ::migrations::MIGRATOR.iter().map(|migration| migration.version).max().expect("there are some");
        for found in 0..=newest + 1 {
            let database = TestDatabase::create_with_schema(found).await;
            if found > newest {
                pretend_schema(&mut database.connect().await, found).await;
            }
            for supported in SERVICES {
                let outcome = checked(&database.url, supported).await.map_err(|error| error.to_string());
                let advice = match found {
                    _ if (supported.oldest..=supported.newest).contains(&found) => {
                        assert_eq!(outcome, Ok(()), "{} beside {found}", supported.service);
                        continue;
                    }
                    _ if found < supported.oldest => "run `weir migrate` of this build",
                    _ => "upgrade this service",
                };
                let refusal = outcome.expect_err("not supported");
                let expected = format!("schema is at version {found}, and this {} works with", supported.service);
                assert!(refusal.contains(&expected) && refusal.ends_with(advice), "{refusal}");
            }
        }
    }
}
