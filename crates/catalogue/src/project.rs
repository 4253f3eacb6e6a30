//! Projects, to which everything belongs.

use std::fmt;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::audit::audit;
use crate::change::Change;
use crate::{CatalogueError, check};

/// A project.
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

/// Makes a project if there is none of this name, audited; in the caller's transaction. Returns its id.
/// `auto_register`: whether it then registers the names that events bring.
/// # Errors
/// As Postgres has them.
pub async fn ensure_project(conn: &mut PgConnection, name: &str, auto_register: bool) -> Result<Uuid, sqlx::Error> {
    let made: Option<Uuid> = sqlx::query_scalar(
        "INSERT INTO projects (name, auto_register) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING RETURNING id",
    )
    .bind(name)
    .bind(auto_register)
    .fetch_optional(&mut *conn)
    .await?;
    match made {
        Some(id) => {
            let details = serde_json::json!({ "auto_register": auto_register });
            audit(conn, Some(id), "project.create", name, &details).await?;
            Ok(id)
        }
        None => sqlx::query_scalar("SELECT id FROM projects WHERE name = $1").bind(name).fetch_one(conn).await,
    }
}

/// Returns the condition on a first exposure by which users are own staff; none if there are none.
/// # Errors
/// As Postgres has them.
pub async fn internal(conn: &mut PgConnection, project: Uuid) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT internal FROM projects WHERE id = $1").bind(project).fetch_one(conn).await
}

/// Says who is own staff and takes part in no answer about an experiment; none: nobody is. The condition is judged by who computes it. No
/// stored row changes its meaning with it.
/// # Errors
/// [`CatalogueError::Invalid`].
pub async fn set_internal(conn: &mut PgConnection, project: &Project, condition: Option<&str>) -> Result<(), CatalogueError> {
    condition.map_or(Ok(()), |condition| check::something("internal", condition))?;
    let mut change = Change::begin(conn, project).await?;
    let before = internal(change.connection(), project.id).await?;
    sqlx::query("UPDATE projects SET internal = $2 WHERE id = $1")
        .bind(project.id)
        .bind(condition)
        .execute(change.connection())
        .await?;
    let details = serde_json::json!({ "before": before, "after": condition });
    Ok(change.commit("project.internal", &project.name, &details).await?)
}

/// Finds a project by id, else by name.
/// # Errors
/// [`CatalogueError::Unknown`], which lists the projects that there are.
pub async fn find_project(conn: &mut PgConnection, name: &str) -> Result<Project, CatalogueError> {
    let found: Option<(Uuid, String)> = sqlx::query_as(
        "SELECT id, name FROM projects WHERE name = $1 OR id::text = lower($1) ORDER BY id::text = lower($1) DESC LIMIT 1",
    )
    .bind(name)
    .fetch_optional(&mut *conn)
    .await?;
    if let Some((id, name)) = found {
        return Ok(Project { id, name });
    }
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM projects ORDER BY name LIMIT 11").fetch_all(conn).await?;
    Err(CatalogueError::unknown("project", name, "this database", &names))
}
