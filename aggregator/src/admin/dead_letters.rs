//! Dead letters: records that entered the log and could not be applied. They are shown, replayed or discarded.
//!
//! A replay is only marked here. The aggregator appends the original bytes to the log and marks them replayed;
//! whatever was stored before is stored once, since the event's identity has not changed.

use bytes::Bytes;
use catalogue::CatalogueError;
use catalogue::DeadLetterStatus::{self, Discarded, Replay, Replayed};
use catalogue::audit::audit;
use catalogue::change::begin;
use catalogue::experiments::Experiment;
use events::identity::hyphenated_uuid;
use events::{Micros, Record};
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::iso;

/// Letters whose bytes are held in memory together: at most 32 MiB at the largest event.
const CHUNK: i64 = 500;

/// Which dead letters. What is `None` does not matter.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this project; those of which not even the project could be read have none.
    pub project: Option<Uuid>,
    /// With this code.
    pub code: Option<String>,
    /// In this state.
    pub status: Option<DeadLetterStatus>,
}

/// A dead letter as it is stored, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its own id.
    pub id: Uuid,
    /// The project, where it could be read.
    pub project_id: Option<Uuid>,
    /// The log.
    pub log_id: Uuid,
    /// The log partition.
    pub log_partition: i32,
    /// The record's offset there.
    pub log_offset: i64,
    /// The stable code.
    pub code: String,
    /// The unknown name, where there is one.
    pub subject: Option<String>,
    /// For people.
    pub reason: String,
    /// What Postgres said, where it refused the row.
    pub sqlstate: Option<String>,
    /// What became of it.
    pub status: DeadLetterStatus,
    /// When the record could not be applied.
    #[serde(serialize_with = "iso")]
    pub created_at: Micros,
    /// When the status changed last.
    #[serde(serialize_with = "iso")]
    pub changed_at: Micros,
    /// Length of the record.
    pub bytes: i32,
}

/// One line of a summary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// What became of it.
    pub status: DeadLetterStatus,
    /// The code.
    pub code: String,
    /// How many.
    pub count: i64,
    /// When the first of them could not be applied.
    #[serde(serialize_with = "iso")]
    pub oldest: Micros,
    /// When the last of them could not be applied.
    #[serde(serialize_with = "iso")]
    pub newest: Micros,
}

/// Which dead letters a change means.
#[derive(Clone, Debug)]
pub enum Selection {
    /// These; all of them or none.
    Ids(Vec<Uuid>),
    /// All open ones that the filter's project and code select; its status is ignored.
    Open(Filter),
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Letters that have the new status.
    pub marked: u64,
    /// Letters that were left open, because their bytes are no event: without its user a record has no place in a log.
    pub unreadable: u64,
}

/// Returns dead letters, the newest first, `limit` at most.
/// # Errors
/// [`CatalogueError::Database`].
pub async fn list(conn: &mut PgConnection, filter: &Filter, limit: i64) -> Result<Vec<DeadLetter>, CatalogueError> {
    let rows = sqlx::query(
        "SELECT id, project_id, log_id, log_partition, log_offset, code, subject, reason, sqlstate, status, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_at, \
             (extract(epoch FROM changed_at) * 1000000)::bigint AS changed_at, octet_length(bytes) AS bytes \
         FROM dead_letters \
         WHERE ($1::uuid IS NULL OR project_id = $1) AND ($2::text IS NULL OR code = $2) AND ($3::text IS NULL OR status = $3) \
         ORDER BY created_at DESC, log_id, log_partition, log_offset DESC LIMIT $4",
    )
    .bind(filter.project)
    .bind(&filter.code)
    .bind(filter.status)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    Ok(rows.iter().map(of_row).collect::<Result<_, _>>()?)
}

fn of_row(row: &PgRow) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter {
        id: row.try_get("id")?,
        project_id: row.try_get("project_id")?,
        log_id: row.try_get("log_id")?,
        log_partition: row.try_get("log_partition")?,
        log_offset: row.try_get("log_offset")?,
        code: row.try_get("code")?,
        subject: row.try_get("subject")?,
        reason: row.try_get("reason")?,
        sqlstate: row.try_get("sqlstate")?,
        status: row.try_get("status")?,
        created_at: Micros(row.try_get("created_at")?),
        changed_at: Micros(row.try_get("changed_at")?),
        bytes: row.try_get("bytes")?,
    })
}

/// Counts dead letters by status and code.
/// # Errors
/// [`CatalogueError::Database`].
pub async fn counts(conn: &mut PgConnection, filter: &Filter) -> Result<Vec<Count>, CatalogueError> {
    let rows: Vec<(DeadLetterStatus, String, i64, i64, i64)> = sqlx::query_as(
        "SELECT status, code, count(*), (extract(epoch FROM min(created_at)) * 1000000)::bigint, \
             (extract(epoch FROM max(created_at)) * 1000000)::bigint \
         FROM dead_letters \
         WHERE ($1::uuid IS NULL OR project_id = $1) AND ($2::text IS NULL OR code = $2) AND ($3::text IS NULL OR status = $3) \
         GROUP BY status, code ORDER BY array_position(ARRAY['open', 'replay', 'replayed', 'discarded'], status), code",
    )
    .bind(filter.project)
    .bind(&filter.code)
    .bind(filter.status)
    .fetch_all(conn)
    .await?;
    let of_row =
        |(status, code, count, oldest, newest)| Count { status, code, count, oldest: Micros(oldest), newest: Micros(newest) };
    Ok(rows.into_iter().map(of_row).collect())
}

/// Returns one dead letter with the record's bytes.
/// # Errors
/// [`CatalogueError::Unknown`].
pub async fn show(conn: &mut PgConnection, id: Uuid) -> Result<(DeadLetter, Vec<u8>), CatalogueError> {
    let row = sqlx::query(
        "SELECT id, project_id, log_id, log_partition, log_offset, code, subject, reason, sqlstate, status, \
             (extract(epoch FROM created_at) * 1000000)::bigint AS created_at, \
             (extract(epoch FROM changed_at) * 1000000)::bigint AS changed_at, octet_length(bytes) AS bytes, bytes AS record \
         FROM dead_letters WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(conn)
    .await?
    .ok_or_else(|| unknown(id))?;
    Ok((of_row(&row)?, row.try_get("record")?))
}

fn unknown(id: Uuid) -> CatalogueError {
    CatalogueError::Unknown {
        what: "dead letter",
        name: id.to_string(),
        place: "this database".into(),
        known: "a list shows the ids that there are".into(),
    }
}

/// Marks dead letters, so that the aggregator appends their bytes to the log again.
/// Open and discarded ones can be named by id; those already marked stay so.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::WrongState`] for an id whose bytes are no event or that was replayed already.
pub async fn replay(conn: &mut PgConnection, selection: &Selection) -> Result<Marked, CatalogueError> {
    change(conn, selection, Replay).await
}

/// Marks dead letters as not needed. Their bytes stay.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::WrongState`] for an id that was replayed.
pub async fn discard(conn: &mut PgConnection, selection: &Selection) -> Result<Marked, CatalogueError> {
    change(conn, selection, Discarded).await
}

async fn change(conn: &mut PgConnection, selection: &Selection, to: DeadLetterStatus) -> Result<Marked, CatalogueError> {
    let mut tx = begin(conn).await?;
    let (project, subject, marked) = match selection {
        Selection::Ids(ids) => {
            let project = change_ids(&mut tx, ids, to).await?;
            (project, json!({ "ids": ids }), Marked { marked: ids.len() as u64, unreadable: 0 })
        }
        Selection::Open(filter) => {
            let marked = change_open(&mut tx, filter, to).await?;
            (filter.project, json!({ "code": filter.code }), marked)
        }
    };
    let action = if to == Replay { "dead_letters.replay" } else { "dead_letters.discard" };
    let details = json!({ "selection": subject, "marked": marked.marked, "unreadable": marked.unreadable });
    audit(&mut tx, project, action, "dead letters", &details).await?;
    tx.commit().await?;
    Ok(marked)
}

/// Returns the project of the letters, where all have the same one.
async fn change_ids(conn: &mut PgConnection, ids: &[Uuid], to: DeadLetterStatus) -> Result<Option<Uuid>, CatalogueError> {
    let mut projects = Vec::new();
    for id in ids {
        let found: Option<(DeadLetterStatus, Option<Uuid>, Vec<u8>)> =
            sqlx::query_as("SELECT status, project_id, bytes FROM dead_letters WHERE id = $1 FOR UPDATE")
                .bind(id)
                .fetch_optional(&mut *conn)
                .await?;
        let Some((status, project, bytes)) = found else { return Err(unknown(*id)) };
        let refuse = |found: String, accepted: &str| {
            Err(CatalogueError::WrongState { subject: format!("dead letter {id}"), found, accepted: accepted.into() })
        };
        if status == Replayed {
            return refuse(
                "replayed".into(),
                "its record is in the log again; what became of it there is another dead letter, if any",
            );
        }
        if to == Replay
            && let Err(error) = Record::from_bytes(Bytes::from(bytes))
        {
            return refuse(
                format!("not readable ({error})"),
                "only the bytes of an event have a place in a log; it can be discarded",
            );
        }
        projects.push(project);
        if status != to {
            mark(conn, &[*id], to).await?;
        }
    }
    projects.dedup();
    Ok(if projects.len() == 1 { projects[0] } else { None })
}

async fn change_open(conn: &mut PgConnection, filter: &Filter, to: DeadLetterStatus) -> Result<Marked, CatalogueError> {
    let mut total = Marked::default();
    let mut after = Uuid::nil();
    loop {
        let letters: Vec<(Uuid, Vec<u8>)> = sqlx::query_as(
            "SELECT id, CASE WHEN $5 THEN bytes ELSE '' END FROM dead_letters \
             WHERE status = 'open' AND ($1::uuid IS NULL OR project_id = $1) AND ($2::text IS NULL OR code = $2) AND id > $3 \
             ORDER BY id LIMIT $4 FOR UPDATE",
        )
        .bind(filter.project)
        .bind(&filter.code)
        .bind(after)
        .bind(CHUNK)
        .bind(to == Replay)
        .fetch_all(&mut *conn)
        .await?;
        let Some((last, _)) = letters.last() else { return Ok(total) };
        after = *last;
        let seen = letters.len() as u64;
        let is_usable = |bytes: Vec<u8>| to == Discarded || Record::from_bytes(Bytes::from(bytes)).is_ok();
        let usable: Vec<Uuid> = letters.into_iter().filter_map(|(id, bytes)| is_usable(bytes).then_some(id)).collect();
        total.marked += usable.len() as u64;
        total.unreadable += seen - usable.len() as u64;
        mark(conn, &usable, to).await?;
    }
}

async fn mark(conn: &mut PgConnection, ids: &[Uuid], to: DeadLetterStatus) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE dead_letters SET status = $2, changed_at = now() WHERE id = ANY($1)")
        .bind(ids)
        .bind(to)
        .execute(conn)
        .await?;
    Ok(())
}

/// Has the open letters of a project replayed that were waiting for one of these names or ids.
pub(super) async fn replay_for(
    conn: &mut PgConnection,
    project: Uuid,
    code: &str,
    subjects: &[String],
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(
        "UPDATE dead_letters SET status = 'replay', changed_at = now() \
         WHERE status = 'open' AND project_id = $1 AND code = $2 AND subject = ANY ($3)",
    )
    .bind(project)
    .bind(code)
    .bind(subjects)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

/// Has the open letters replayed that were waiting for a variant of an experiment. The subject of such a letter is the
/// variant alone, and other experiments have variants of the same name, so the event itself is asked for its experiment.
pub(super) async fn replay_for_variants(
    conn: &mut PgConnection,
    project: Uuid,
    experiment: &Experiment,
    variants: &[String],
) -> Result<u64, sqlx::Error> {
    let (mut marked, mut after) = (0, Uuid::nil());
    let is_waiting = |bytes: &[u8]| {
        let named = events::wire::decode(bytes).ok().and_then(|event| event.experiment);
        named.is_some_and(|name| name == experiment.name || hyphenated_uuid(&name) == Some(experiment.id))
    };
    loop {
        let letters: Vec<(Uuid, Vec<u8>)> = sqlx::query_as(
            "SELECT id, bytes FROM dead_letters \
             WHERE status = 'open' AND project_id = $1 AND code = 'unknown_variant' AND subject = ANY ($2) AND id > $3 \
             ORDER BY id LIMIT $4 FOR UPDATE",
        )
        .bind(project)
        .bind(variants)
        .bind(after)
        .bind(CHUNK)
        .fetch_all(&mut *conn)
        .await?;
        let Some((last, _)) = letters.last() else { return Ok(marked) };
        after = *last;
        let ids: Vec<Uuid> = letters.iter().filter(|(_, bytes)| is_waiting(bytes)).map(|(id, _)| *id).collect();
        marked += ids.len() as u64;
        mark(conn, &ids, Replay).await?;
    }
}
