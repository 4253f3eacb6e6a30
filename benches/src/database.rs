//! Databases to measure on: a fresh one for each round, all on one server.

use anyhow::{Context as _, bail};
use migrations::testing::TestDatabase;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::machine;

/// The key that the collector is given.
pub(crate) const KEY: &str = "bench-write-key";

/// A server, and the databases made on it.
pub(crate) struct Databases {
    admin: PgConnection,
    url: String,
    backend: u32,
    number: u32,
    /// Keeps a private server alive.
    _private: Option<TestDatabase>,
}

impl Databases {
    /// Takes the server of a URL, or starts a private one.
    pub(crate) async fn open(url: Option<&str>) -> anyhow::Result<Self> {
        let (url, private) = match url {
            Some(url) => (url.to_owned(), None),
            None => {
                let private = TestDatabase::create().await;
                (private.url.clone(), Some(private))
            }
        };
        let mut admin = PgConnection::connect(&url).await.context("the database does not answer")?;
        let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut admin).await?;
        Ok(Databases { admin, url, backend: backend as u32, number: 0, _private: private })
    }

    /// Returns what a reader has to know of the server.
    pub(crate) async fn facts(&mut self) -> anyhow::Result<(&'static str, String)> {
        let settings = ["fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"];
        let mut text = Vec::new();
        for name in ["server_version"].iter().chain(&settings) {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut self.admin).await?;
            text.push(if *name == "server_version" { format!("PostgreSQL {value}") } else { format!("{name}={value}") });
        }
        Ok(("database", text.join(", ")))
    }

    /// Makes a database with the schema, a project that registers what is new, and its key; or a copy of `template`, which
    /// must have no connections.
    pub(crate) async fn create(&mut self, template: Option<&Database>) -> anyhow::Result<Database> {
        self.number += 1;
        let name = format!("weir_bench_{}_{}", std::process::id(), self.number);
        let like = template.map_or_else(String::new, |template| format!(" TEMPLATE {} STRATEGY file_copy", template.name));
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}{like}"))).execute(&mut self.admin).await?;
        let database = Database { url: with_name(&self.url, &name)?, name };
        if template.is_none() {
            let mut connection = database.connect().await?;
            migrations::MIGRATOR.run(&mut connection).await.context("the schema")?;
            sqlx::query(
                "WITH project AS (INSERT INTO projects (name, auto_register) VALUES ('default', true) RETURNING id),
                      versions AS (INSERT INTO catalogue_versions (project_id) SELECT id FROM project)
                 INSERT INTO keys (project_id, kind, name, digest, prefix)
                 SELECT id, 'write', 'bench', sha256(convert_to($1, 'UTF8')), 'bench' FROM project",
            )
            .bind(KEY)
            .execute(&mut connection)
            .await?;
            connection.close().await?;
        }
        Ok(database)
    }

    /// Writes all that is dirty to the disk, so that no round pays for the one before.
    pub(crate) async fn settle(&mut self) -> anyhow::Result<()> {
        sqlx::raw_sql("CHECKPOINT").execute(&mut self.admin).await.context("CHECKPOINT between rounds needs its privilege")?;
        Ok(())
    }

    /// Returns the CPU seconds that the server used so far; 0 if it runs on another machine.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        machine::postgres_cpu_seconds(self.backend)
    }

    /// Drops a database, whoever is still connected.
    pub(crate) async fn remove(&mut self, database: Database) -> anyhow::Result<()> {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", database.name);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.admin).await?;
        Ok(())
    }
}

/// One database.
pub(crate) struct Database {
    name: String,
    pub url: String,
}

impl Database {
    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        PgConnection::connect(&self.url).await.with_context(|| format!("database {}", self.name))
    }
}

/// Everything that was stored from the plan's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub rows: u64,
    /// Of the weights.
    pub weight: u128,
}

/// Counts exposures, conversions and product views, and sums their weights.
/// # Errors
/// Dead letters, which no event of ours deserves.
pub(crate) async fn count(connection: &mut PgConnection) -> anyhow::Result<Counted> {
    let row = sqlx::query(
        "SELECT count(*), coalesce(sum(weight), 0)::text, (SELECT count(*) FROM dead_letters),
                (SELECT code || ': ' || reason FROM dead_letters LIMIT 1)
         FROM (SELECT (metadata ->> 'weight')::numeric AS weight FROM impressions
               UNION ALL SELECT (metadata ->> 'weight')::numeric FROM conversions
               UNION ALL SELECT (metadata ->> 'weight')::numeric FROM engagement_events WHERE event_type <> 'probe') AS facts",
    )
    .fetch_one(connection)
    .await?;
    let (rows, weight, dead): (i64, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if dead > 0 {
        bail!("{dead} dead letters, the first: {}", row.try_get::<String, _>(3)?);
    }
    Ok(Counted { rows: rows as u64, weight: weight.parse().context("a sum of whole numbers")? })
}

/// Returns how many records the aggregator has stored.
pub(crate) async fn stored(connection: &mut PgConnection) -> anyhow::Result<u64> {
    let sum: i64 =
        sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints").fetch_one(connection).await?;
    Ok(sum as u64)
}

/// Returns the id of the one project.
pub(crate) async fn project(connection: &mut PgConnection) -> anyhow::Result<Uuid> {
    Ok(sqlx::query_scalar("SELECT id FROM projects WHERE name = 'default'").fetch_one(connection).await?)
}

/// Replaces the database in a URL.
fn with_name(url: &str, name: &str) -> anyhow::Result<String> {
    let (address, parameters) = url.split_once('?').map_or((url, None), |(address, parameters)| (address, Some(parameters)));
    let Some((scheme, rest)) = address.split_once("://") else {
        bail!("database URL: expected postgres://user:password@host:port/database");
    };
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    let parameters = parameters.map_or_else(String::new, |parameters| format!("?{parameters}"));
    Ok(format!("{scheme}://{authority}/{name}{parameters}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_of_a_url_is_replaced() {
        let check = |url: &str, expected: &str| assert_eq!(with_name(url, "new").expect("a URL"), expected);
        check("postgres://me:pw@db:5433/old", "postgres://me:pw@db:5433/new");
        check("postgresql://weir@%2Ftmp%2Fx/postgres", "postgresql://weir@%2Ftmp%2Fx/new");
        check("postgresql:///old?host=/run/pg", "postgresql:///new?host=/run/pg");
        check("postgres://me@db", "postgres://me@db/new");
        assert!(with_name("here", "new").is_err());
    }
}
