//! The rollups that a project has, and how far they are filled.
//!
//! From the commit that makes a rollup on, every commit adds its events to it: what was stored before lies below a cut, which is an offset per log
//! partition, and is filled in beside the stream. A new version is filled beside the one before, which is read until then.

use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::project::Project;
use crate::rollups::Rollup;
use crate::rollups::shape::Shape;
use crate::rollups::tables::Statements;
use crate::versions::{self, Versioned};
use crate::{CatalogueError, Change, version};

/// A rollup that commits add to.
#[derive(Clone, Debug)]
pub struct Active {
    /// Which tables are its own.
    pub number: i32,
    /// What it makes of events.
    pub shape: Shape,
    /// How that is written.
    pub statements: Statements,
}

/// A version of a rollup that there is, for people and for readers.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// From 1 on.
    pub version: i32,
    /// What it says.
    pub definition: Rollup,
    /// Which tables are its own.
    pub number: i32,
    /// Whether what was stored before it is in it.
    pub is_filled: bool,
    /// Records of the log that are still to be looked through.
    pub records_left: i64,
}

/// Makes the tables of a version, and notes what is to be filled in.
pub(super) async fn make(change: &mut Change<'_>, name: &str, version: i32, shape: &Shape) -> Result<(), CatalogueError> {
    let project = change.project().id;
    let connection = change.connection();
    let insert = "INSERT INTO rollups (project_id, name, version) VALUES ($1, $2, $3) RETURNING number";
    let number: i32 = sqlx::query_scalar(insert).bind(project).bind(name).bind(version).fetch_one(&mut *connection).await?;
    sqlx::raw_sql(AssertSqlSafe(shape.create(number))).execute(&mut *connection).await?;
    // Under the project's lock no fact of it is being stored: all below the checkpoints can be seen, and all others will be added by their commits.
    let cuts = "INSERT INTO rollup_fills (number, log_id, log_partition, next_offset, cut)
                SELECT $1, log_id, log_partition, 0, next_offset FROM checkpoints WHERE next_offset > 0";
    let cuts = sqlx::query(cuts).bind(number).execute(&mut *connection).await?;
    if cuts.rows_affected() == 0 {
        sqlx::query("UPDATE rollups SET filled_at = now() WHERE number = $1").bind(number).execute(connection).await?;
    }
    Ok(())
}

/// Returns whether commits add to a version.
pub(super) async fn is_kept(change: &mut Change<'_>, name: &str, version: i32) -> Result<bool, CatalogueError> {
    let is_kept = "SELECT EXISTS (SELECT 1 FROM rollups WHERE project_id = $1 AND name = $2 AND version = $3)";
    let project = change.project().id;
    Ok(sqlx::query_scalar(is_kept).bind(project).bind(name).bind(version).fetch_one(change.connection()).await?)
}

/// Returns the rollups that commits of a project add to, by number.
/// # Errors
/// As Postgres has them; a definition of a newer version of Weir is a decoding error that names it.
pub async fn active(connection: &mut PgConnection, project: Uuid) -> Result<Vec<Active>, sqlx::Error> {
    let found = kept_of(connection, project).await?;
    let active = |kept: Kept| {
        let shape = kept.definition.shape().map_err(|error| sqlx::Error::Decode(error.to_string().into()))?;
        let statements = shape.statements(kept.number);
        Ok(Active { number: kept.number, shape, statements })
    };
    found.into_iter().map(active).collect()
}

/// Returns the versions of rollups that a project has, by name and version.
/// # Errors
/// Those of [`active`].
pub async fn kept(connection: &mut PgConnection, project: Uuid) -> Result<Vec<Kept>, sqlx::Error> {
    let mut kept = kept_of(connection, project).await?;
    kept.sort_by(|one, other| (&one.name, one.version).cmp(&(&other.name, other.version)));
    Ok(kept)
}

async fn kept_of(connection: &mut PgConnection, project: Uuid) -> Result<Vec<Kept>, sqlx::Error> {
    // Before its migration there are none.
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass('rollups') IS NOT NULL").fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "SELECT r.name, r.version, r.number, d.definition::text, r.filled_at IS NOT NULL AS is_filled,
                (SELECT coalesce(sum(f.cut - f.next_offset), 0)::bigint FROM rollup_fills f WHERE f.number = r.number) AS records_left
         FROM rollups r JOIN rollup_definitions d ON d.project_id = r.project_id AND d.name = r.name AND d.version = r.version
         WHERE r.project_id = $1 ORDER BY r.number",
    )
    .bind(project)
    .fetch_all(connection)
    .await?;
    let kept = |row: &sqlx::postgres::PgRow| {
        Ok(Kept {
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            definition: versions::of_text(row.try_get("definition")?, "definition")?,
            number: row.try_get("number")?,
            is_filled: row.try_get("is_filled")?,
            records_left: row.try_get("records_left")?,
        })
    };
    rows.iter().map(kept).collect()
}

/// Removes a rollup with all that it holds. Its definitions stay.
/// # Errors
/// [`CatalogueError::Unknown`], which names some rollups of the project.
pub async fn remove(connection: &mut PgConnection, project: &Project, name: &str) -> Result<(), CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let found = kept_of(change.connection(), project.id).await?;
    let (removed, others): (Vec<Kept>, Vec<Kept>) = found.into_iter().partition(|kept| kept.name == name);
    if removed.is_empty() {
        let names: Vec<String> = others.into_iter().map(|kept| kept.name).take(11).collect();
        return Err(CatalogueError::unknown(Rollup::NOUN, name, "the project", &names));
    }
    for kept in &removed {
        drop_tables(change.connection(), kept).await?;
    }
    change.commit("rollup.remove", name, &serde_json::json!({})).await?;
    Ok(())
}

async fn drop_tables(connection: &mut PgConnection, kept: &Kept) -> Result<(), CatalogueError> {
    sqlx::query("DELETE FROM rollups WHERE number = $1").bind(kept.number).execute(&mut *connection).await?;
    sqlx::raw_sql(AssertSqlSafe(kept.definition.shape()?.drop(kept.number))).execute(connection).await?;
    Ok(())
}

/// Removes versions that a newer one has taken the place of, which is filled.
/// # Errors
/// As Postgres has them, also where a reader holds a table for long; nothing is changed then.
pub async fn retire(connection: &mut PgConnection, project: Uuid) -> Result<(), CatalogueError> {
    let mut transaction = crate::change::begin(connection).await?;
    sqlx::query("SET LOCAL lock_timeout = '200ms'").execute(&mut *transaction).await?;
    version::lock(&mut transaction, project).await?;
    let kept = kept_of(&mut transaction, project).await?;
    let is_replaced = |old: &&Kept| kept.iter().any(|new| new.name == old.name && new.version > old.version && new.is_filled);
    let replaced: Vec<&Kept> = kept.iter().filter(is_replaced).collect();
    if replaced.is_empty() {
        return Ok(());
    }
    for old in replaced {
        drop_tables(&mut transaction, old).await?;
    }
    version::raise(&mut transaction, project).await?;
    transaction.commit().await?;
    Ok(())
}
