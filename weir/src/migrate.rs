//! `weir migrate`: brings the schema up to date, and sees to the project `default` and the keys that variables give.

use std::time::Duration;

use anyhow::Context;
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

/// Connects, waiting for a database that is not up yet, and applies the migrations that are missing.
/// # Errors
/// As of [`run`].
pub(crate) async fn migrated(url: &str) -> anyhow::Result<PgConnection> {
    let mut connection = connected(url).await?;
    ::migrations::MIGRATOR.run(&mut connection).await.context("the schema cannot be brought up to date")?;
    Ok(connection)
}

/// Checks that a database, which may not be up yet, has the schema of this build. Changes nothing.
/// # Errors
/// If it cannot be reached, or its schema is an older or a newer one.
pub(crate) async fn checked(url: &str) -> anyhow::Result<()> {
    let mut connection = connected(url).await?;
    let has_any: bool =
        sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL").fetch_one(&mut connection).await?;
    let applied: Vec<i64> = match has_any {
        true => {
            sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success ORDER BY version")
                .fetch_all(&mut connection)
                .await?
        }
        false => Vec::new(),
    };
    connection.close().await?;
    let needed: Vec<i64> = ::migrations::MIGRATOR.iter().map(|migration| migration.version).collect();
    let version = |versions: &[i64]| versions.last().copied().unwrap_or(0);
    if applied != needed {
        let (found, needed) = (version(&applied), version(&needed));
        anyhow::bail!(
            "the database's schema is at version {found}, and this build works with {needed}; run `weir migrate` of the newer build"
        );
    }
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
