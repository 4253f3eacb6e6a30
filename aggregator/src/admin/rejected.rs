//! Rejected events: what collectors refused where no client reads that in an answer. They are kept for people to look at.

use catalogue::CatalogueError;
use events::Micros;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::iso;

/// A rejected event without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its own id.
    pub id: Uuid,
    /// When its request was received.
    #[serde(serialize_with = "iso")]
    pub received_at: Micros,
    /// By which protocol it came.
    pub dialect: String,
    /// The beginning of the digest of the key that was presented.
    pub key: String,
    /// The code of the first fault.
    pub code: String,
    /// The field at fault, as the client calls it.
    pub field: String,
    /// What was found and what is accepted.
    pub message: String,
    /// Length of what is kept of the event.
    pub bytes: i32,
}

/// How many events were rejected under a code, those included of which no text was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The code of the first fault.
    pub code: String,
    /// How many.
    pub count: i64,
    /// The first day (UTC), as `YYYY-MM-DD`.
    pub oldest: String,
    /// The last one.
    pub newest: String,
}

/// Counts a project's rejected events of all days, the most frequent code first.
/// # Errors
/// [`CatalogueError::Database`].
pub async fn counts(conn: &mut PgConnection, project: Uuid, code: Option<&str>) -> Result<Vec<Count>, CatalogueError> {
    let rows: Vec<(String, i64, String, String)> = sqlx::query_as(
        "SELECT code, sum(events)::bigint, min(day)::text, max(day)::text FROM rejected_counts \
         WHERE project_id = $1 AND ($2::text IS NULL OR code = $2) GROUP BY code ORDER BY 2 DESC, code",
    )
    .bind(project)
    .bind(code)
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|(code, count, oldest, newest)| Count { code, count, oldest, newest }).collect())
}

/// Returns a project's rejected events that are kept, the newest first, `limit` at most.
/// # Errors
/// [`CatalogueError::Database`].
pub async fn list(
    conn: &mut PgConnection,
    project: Uuid,
    code: Option<&str>,
    limit: i64,
) -> Result<Vec<Rejected>, CatalogueError> {
    let rows = sqlx::query(
        "SELECT id, (extract(epoch FROM received_at) * 1000000)::bigint AS received_at, dialect, key, code, field, message, \
             octet_length(event) AS bytes \
         FROM rejected_events WHERE project_id = $1 AND ($2::text IS NULL OR code = $2) \
         ORDER BY received_at DESC, id DESC LIMIT $3",
    )
    .bind(project)
    .bind(code)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(rows.iter().map(of_row).collect::<Result<_, _>>()?)
}

/// Returns one rejected event of a project with its text.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn show(conn: &mut PgConnection, project: Uuid, id: Uuid) -> Result<(Rejected, String), CatalogueError> {
    let row = sqlx::query(
        "SELECT id, (extract(epoch FROM received_at) * 1000000)::bigint AS received_at, dialect, key, code, field, message, \
             octet_length(event) AS bytes, event \
         FROM rejected_events WHERE project_id = $1 AND id = $2",
    )
    .bind(project)
    .bind(id)
    .fetch_optional(conn)
    .await?
    .ok_or_else(|| CatalogueError::Unknown {
        what: "rejected event",
        name: id.to_string(),
        place: "this project".into(),
        known: "a list shows the ids that there are; they are kept for 30 days".into(),
    })?;
    Ok((of_row(&row)?, row.try_get("event")?))
}

fn of_row(row: &PgRow) -> Result<Rejected, sqlx::Error> {
    Ok(Rejected {
        id: row.try_get("id")?,
        received_at: Micros(row.try_get("received_at")?),
        dialect: row.try_get("dialect")?,
        key: row.try_get("key")?,
        code: row.try_get("code")?,
        field: row.try_get("field")?,
        message: row.try_get("message")?,
        bytes: row.try_get("bytes")?,
    })
}
