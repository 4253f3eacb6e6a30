//! Projects, to which everything belongs.

use std::fmt;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::CatalogueError;

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
