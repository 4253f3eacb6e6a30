//! The names that a project's conversions and engagement events have: which there are, which are refused, and whether new ones are
//! taken. The aggregator adds them as it stores their events; the collector obeys within seconds.

use events::{Kind, Micros};
use serde::Serialize;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::change::Change;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::vocabulary::EventNameStatus;
use crate::{CatalogueError, check};

/// The kinds whose events have names of the clients' own.
pub const NAMED: [Kind; 2] = [Kind::Conversion, Kind::Engagement];

/// A name, of all kinds of events that have it.
#[derive(Clone, Debug, Serialize)]
pub struct EventName {
    /// The name.
    pub name: String,
    /// `conversion`, `engagement`, or both.
    pub kinds: Vec<String>,
    /// Whether its events are taken.
    pub status: EventNameStatus,
    /// When the first one was stored.
    #[serde(serialize_with = "crate::time_text")]
    pub first_seen_at: Micros,
}

/// The names of one project, as a collector needs them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectNames {
    /// Names whose events are taken.
    pub allowed: Vec<String>,
    /// Names whose events are refused.
    pub blocked: Vec<String>,
    /// Whether new names are taken.
    pub takes_new: bool,
}

/// Returns the names of a project, by name.
/// # Errors
/// As Postgres has them; [`crate::UnknownText`] for a status of a newer version.
pub async fn list(connection: &mut PgConnection, project: &Project) -> Result<Vec<EventName>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT name, array_agg(kind ORDER BY kind) AS kinds, max(status) AS status, min(first_seen_at) AS first_seen_at
         FROM event_names WHERE project_id = $1 GROUP BY name ORDER BY name",
    )
    .bind(project.id)
    .fetch_all(connection)
    .await?;
    let name = |row: &sqlx::postgres::PgRow| {
        Ok(EventName {
            name: row.try_get("name")?,
            kinds: row.try_get("kinds")?,
            status: row.try_get("status")?,
            first_seen_at: row.try_get::<Timestamp, _>("first_seen_at")?.0,
        })
    };
    rows.iter().map(name).collect()
}

/// Returns the versions of all projects' catalogues: where one has moved, the names are to be read again.
/// # Errors
/// As Postgres has them.
pub async fn versions(connection: &mut PgConnection) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
    let versions = "SELECT p.id, coalesce(v.version, 0) FROM projects p LEFT JOIN catalogue_versions v ON v.project_id = p.id";
    sqlx::query_as(versions).fetch_all(connection).await
}

/// Returns the names of one project, `names_max` of the allowed ones at most; none if there is no such project.
/// # Errors
/// As Postgres has them.
pub async fn of_project(
    connection: &mut PgConnection,
    project: Uuid,
    names_max: i64,
) -> Result<Option<ProjectNames>, sqlx::Error> {
    let takes_new = sqlx::query_scalar("SELECT takes_event_names FROM projects WHERE id = $1").bind(project);
    let Some(takes_new) = takes_new.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let mut names = ProjectNames { takes_new, ..ProjectNames::default() };
    let rows: Vec<(String, bool)> = sqlx::query_as(
        "SELECT name, bool_or(status = 'blocked') AS is_blocked FROM event_names WHERE project_id = $1
         GROUP BY name ORDER BY is_blocked DESC, name LIMIT $2",
    )
    .bind(project)
    .bind(names_max)
    .fetch_all(connection)
    .await?;
    for (name, is_blocked) in rows {
        if is_blocked { names.blocked.push(name) } else { names.allowed.push(name) }
    }
    Ok(Some(names))
}

/// Refuses events of a name from now on, whether there were any or not. What is stored stays. Blocked names do not count among those
/// that a project may have.
/// # Errors
/// [`CatalogueError::Invalid`] for a text that no event can have as its name.
pub async fn block(connection: &mut PgConnection, project: &Project, name: &str) -> Result<(), CatalogueError> {
    check::name("name", name)?;
    let mut change = Change::begin(connection, project).await?;
    let kinds: Vec<&str> = NAMED.iter().map(|kind| kind.as_str()).collect();
    sqlx::query(
        "INSERT INTO event_names (project_id, kind, name, status) SELECT $1, kind, $2, 'blocked' FROM unnest($3::text[]) kind
         ON CONFLICT (project_id, kind, name) DO UPDATE SET status = 'blocked'",
    )
    .bind(project.id)
    .bind(name)
    .bind(kinds)
    .execute(change.connection())
    .await?;
    Ok(change.commit("event_name.block", name, &serde_json::json!({})).await?)
}

/// Takes events of a name that was blocked again.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn allow(connection: &mut PgConnection, project: &Project, name: &str) -> Result<(), CatalogueError> {
    let update = "UPDATE event_names SET status = 'allowed' WHERE project_id = $1 AND name = $2";
    change_known(connection, project, name, "event_name.allow", update).await
}

/// Forgets a name, which makes room for another one; with the next event that has it it is there again. What is stored stays.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn forget(connection: &mut PgConnection, project: &Project, name: &str) -> Result<(), CatalogueError> {
    let delete = "DELETE FROM event_names WHERE project_id = $1 AND name = $2";
    change_known(connection, project, name, "event_name.forget", delete).await
}

/// Makes a change to a name that there is, by a statement over project and name.
async fn change_known(
    connection: &mut PgConnection,
    project: &Project,
    name: &str,
    action: &'static str,
    statement: &'static str,
) -> Result<(), CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    let changed = sqlx::query(statement).bind(project.id).bind(name).execute(change.connection()).await?;
    if changed.rows_affected() == 0 {
        let known = "`weir admin event-name list` shows those that there are".to_owned();
        return Err(CatalogueError::Unknown { what: "event name", name: name.to_owned(), place: project.to_string(), known });
    }
    Ok(change.commit(action, name, &serde_json::json!({})).await?)
}

/// Says whether a project takes events with new names.
/// # Errors
/// As Postgres has them.
pub async fn take_new(connection: &mut PgConnection, project: &Project, takes_new: bool) -> Result<(), CatalogueError> {
    let mut change = Change::begin(connection, project).await?;
    sqlx::query("UPDATE projects SET takes_event_names = $2, updated_at = now() WHERE id = $1")
        .bind(project.id)
        .bind(takes_new)
        .execute(change.connection())
        .await?;
    let action = if takes_new { "event_name.open" } else { "event_name.close" };
    Ok(change.commit(action, &project.name, &serde_json::json!({})).await?)
}
