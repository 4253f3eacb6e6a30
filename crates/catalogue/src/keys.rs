//! Write keys, server keys and read tokens. The text of a key is shown once; what is stored is its digest.

use events::Micros;
use events::rules::Unit;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, Row};
use uuid::Uuid;

use crate::audit::audit;
use crate::change::begin;
use crate::project::Project;
use crate::vocabulary::KeyKind;
use crate::{CatalogueError, ReadError, Unsupported};

/// Characters of a key that a list shows: enough to tell keys apart, far too few to guess the rest.
const PREFIX_CHARS: usize = 8;
/// What a list calls a key.
const NAME_BYTES_MAX: usize = 512;

/// SHA-256 of a key's text.
pub type KeyDigest = [u8; 32];

/// Returns the digest of a key's text.
pub fn digest(text: &str) -> KeyDigest {
    Sha256::digest(text.as_bytes()).into()
}

/// A key to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewKey<'a> {
    /// What it is good for.
    pub kind: KeyKind,
    /// What a list calls it.
    pub name: &'a str,
    /// Its secret text.
    pub text: &'a str,
    /// Requests that it may make in a second; `None`: as many as it likes.
    pub requests_per_second: Option<i32>,
    /// Events that it may send in a second; `None`: as many as it likes.
    pub events_per_second: Option<i32>,
    /// Days until it is worthless; `None`: never.
    pub expires_in_days: Option<i32>,
}

impl<'a> NewKey<'a> {
    /// Returns a key without limits.
    pub fn new(kind: KeyKind, name: &'a str, text: &'a str) -> Self {
        NewKey { kind, name, text, requests_per_second: None, events_per_second: None, expires_in_days: None }
    }
}

/// A key without its secret.
#[derive(Clone, Debug, Serialize)]
pub struct Key {
    /// Its id.
    pub id: Uuid,
    /// What it is good for.
    pub kind: KeyKind,
    /// What a list calls it.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// Requests that it may make in a second.
    pub requests_per_second: Option<i32>,
    /// Events that it may send in a second.
    pub events_per_second: Option<i32>,
    /// When it was made; times to the second, in UTC.
    pub created_at: String,
    /// When it becomes worthless.
    pub expires_at: Option<String>,
    /// When it was revoked.
    pub revoked_at: Option<String>,
    /// Whether it has expired.
    pub is_expired: bool,
}

impl Key {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Key {
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            name: row.try_get("name")?,
            prefix: row.try_get("prefix")?,
            requests_per_second: row.try_get("requests_per_second")?,
            events_per_second: row.try_get("events_per_second")?,
            created_at: row.try_get("created_at")?,
            expires_at: row.try_get("expires_at")?,
            revoked_at: row.try_get("revoked_at")?,
            is_expired: row.try_get("is_expired")?,
        })
    }
}

/// Adds a key unless it is there already, audited; in the caller's transaction.
/// # Errors
/// [`CatalogueError::Invalid`]; [`CatalogueError::WrongState`] if the text is already a key of another project or kind, or one
/// that was revoked or has expired.
pub async fn add(connection: &mut PgConnection, project: Uuid, new: &NewKey<'_>) -> Result<(), CatalogueError> {
    if new.name.contains('\0') || new.name.len() > NAME_BYTES_MAX {
        let message = format!("up to {NAME_BYTES_MAX} bytes without the character U+0000 are accepted");
        return Err(CatalogueError::invalid("name", message));
    }
    let digest = digest(new.text);
    let prefix: String = new.text.chars().take(PREFIX_CHARS).collect();
    let made: Option<Uuid> = sqlx::query_scalar(
        "INSERT INTO keys (project_id, kind, name, digest, prefix, requests_per_second, events_per_second, expires_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(days => $8)) ON CONFLICT (digest) DO NOTHING RETURNING id",
    )
    .bind(project)
    .bind(new.kind)
    .bind(new.name)
    .bind(digest.as_slice())
    .bind(&prefix)
    .bind(new.requests_per_second)
    .bind(new.events_per_second)
    .bind(new.expires_in_days)
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(id) = made {
        let details = json!({ "kind": new.kind, "name": new.name, "prefix": prefix });
        audit(connection, Some(project), "key.create", &id.to_string(), &details).await?;
        return Ok(());
    }
    let (owner, found, valid): (Uuid, String, bool) = sqlx::query_as(
        "SELECT project_id, kind, revoked_at IS NULL AND coalesce(expires_at > now(), true) FROM keys WHERE digest = $1",
    )
    .bind(digest.as_slice())
    .fetch_one(connection)
    .await?;
    let refuse = |found: String| {
        Err(CatalogueError::WrongState { subject: "this key".into(), found, accepted: "choose another one".into() })
    };
    if !valid {
        return refuse("revoked or has expired".into());
    }
    if owner != project || found != new.kind.as_str() {
        return refuse(format!("already a {found} key{}", if owner == project { "" } else { " of another project" }));
    }
    Ok(())
}

/// Returns the keys of a project, the oldest first.
/// # Errors
/// [`CatalogueError::Unsupported`], [`CatalogueError::Database`].
pub async fn list(connection: &mut PgConnection, project: &Project) -> Result<Vec<Key>, CatalogueError> {
    let rows = sqlx::query(
        "SELECT id, kind, name, prefix, requests_per_second, events_per_second, \
             to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS created_at, \
             to_char(expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS expires_at, \
             to_char(revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS revoked_at, \
             coalesce(expires_at <= now(), false) AS is_expired \
         FROM keys WHERE project_id = $1 ORDER BY keys.created_at, kind, id",
    )
    .bind(project.id)
    .fetch_all(connection)
    .await?;
    let key = |row| Key::from_row(row).map_err(|error| ReadError::of_row(error, "keys", || format!("a row of {project}")));
    Ok(rows.iter().map(key).collect::<Result<_, _>>()?)
}

/// Revokes the one key that has this id or text, or whose shown beginning begins so. Returns its id.
/// # Errors
/// [`CatalogueError::Unknown`]; [`CatalogueError::Invalid`] if several begin so; [`CatalogueError::WrongState`] if it is revoked.
pub async fn revoke(connection: &mut PgConnection, project: &Project, key: &str) -> Result<Uuid, CatalogueError> {
    let mut transaction = begin(connection).await?;
    // Somebody who pastes the whole key means it, too.
    let found: Vec<(Uuid, String, bool)> = sqlx::query_as(
        "SELECT id, prefix, revoked_at IS NOT NULL FROM keys \
         WHERE project_id = $1 AND (id::text = lower($2) OR digest = $3 OR starts_with(prefix, $2)) \
         ORDER BY created_at, id FOR UPDATE",
    )
    .bind(project.id)
    .bind(key)
    .bind(digest(key).as_slice())
    .fetch_all(&mut *transaction)
    .await?;
    let (id, prefix) = match found.as_slice() {
        [] => {
            let (name, place) = (key.to_owned(), project.to_string());
            let known = "`weir admin key list` shows those that there are".into();
            return Err(CatalogueError::Unknown { what: "key", name, place, known });
        }
        [(id, _, true)] => {
            let (found, accepted) = ("revoked already".into(), "there is nothing left to do".into());
            return Err(CatalogueError::WrongState { subject: format!("key {id}"), found, accepted });
        }
        [(id, prefix, false)] => (*id, prefix),
        several => {
            let ids: Vec<_> = several.iter().map(|(id, ..)| id.to_string()).collect();
            let message =
                format!("found {key:?}, with which {} keys begin; name one by its id: {}", several.len(), ids.join(", "));
            return Err(CatalogueError::invalid("key", message));
        }
    };
    sqlx::query("UPDATE keys SET revoked_at = now() WHERE id = $1").bind(id).execute(&mut *transaction).await?;
    audit(&mut transaction, Some(project.id), "key.revoke", &id.to_string(), &json!({ "prefix": prefix })).await?;
    transaction.commit().await?;
    Ok(id)
}

/// Returns the read tokens that are valid now, each with the project that it opens.
/// # Errors
/// As Postgres has them.
pub async fn read_tokens(executor: impl PgExecutor<'_>) -> Result<Vec<(KeyDigest, Uuid)>, sqlx::Error> {
    let rows: Vec<(Vec<u8>, Uuid)> = sqlx::query_as(
        "SELECT digest, project_id FROM keys
         WHERE kind = 'read' AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())",
    )
    .fetch_all(executor)
    .await?;
    // The schema's check sees to 32 bytes.
    let token = |(digest, project): (Vec<u8>, Uuid)| {
        Ok((digest.try_into().map_err(|_| sqlx::Error::Decode("a digest of another length".into()))?, project))
    };
    rows.into_iter().map(token).collect()
}

/// A key that may send events, with what its project says about them.
#[derive(Clone, Debug)]
pub struct SendingKey {
    /// Of its text.
    pub digest: KeyDigest,
    /// Whose events it sends.
    pub project: SendingProject,
    /// Write or server.
    pub kind: KeyKind,
    /// Requests that it may make in a second.
    pub requests_per_second: Option<u32>,
    /// Events that it may send in a second.
    pub events_per_second: Option<u32>,
    /// When it becomes worthless. An expiry at Postgres' infinity is none.
    pub expires_at: Option<Micros>,
}

/// What a collector has to know of a project.
#[derive(Clone, Debug)]
pub struct SendingProject {
    /// Its id.
    pub id: Uuid,
    /// Which id is the unit of its experiments. Events of a project whose unit is not known must not be taken: they would get
    /// the id of another user.
    pub unit: Result<Unit, Unsupported>,
    /// Names of tracks that count as conversions.
    pub conversion_events: Vec<String>,
}

/// Returns the keys that may send events now.
/// # Errors
/// As Postgres has them.
pub async fn sending(connection: &mut PgConnection) -> Result<Vec<SendingKey>, sqlx::Error> {
    // Times become microseconds here, where Postgres knows its infinities.
    let rows = sqlx::query(
        "SELECT k.digest, k.kind, k.requests_per_second, k.events_per_second, p.id, p.name, p.unit, p.conversion_events,
                CASE WHEN isfinite(k.expires_at) THEN (extract(epoch FROM k.expires_at) * 1000000)::bigint END AS expires_at
         FROM keys k JOIN projects p ON p.id = k.project_id
         WHERE k.kind IN ('write', 'server') AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
         ORDER BY k.id",
    )
    .fetch_all(connection)
    .await?;
    let key = |row: &PgRow| {
        let rate = |name| row.try_get::<Option<i32>, _>(name).map(|rate| rate.map(i32::unsigned_abs));
        Ok(SendingKey {
            // The schema's check sees to 32 bytes.
            digest: row.try_get::<&[u8], _>("digest")?.try_into().map_err(|error| sqlx::Error::Decode(Box::new(error)))?,
            project: sending_project_of(row)?,
            kind: row.try_get("kind")?,
            requests_per_second: rate("requests_per_second")?,
            events_per_second: rate("events_per_second")?,
            expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(Micros),
        })
    };
    rows.iter().map(key).collect()
}

/// Returns the project of a name, for those who may send into it without a key of its own.
/// # Errors
/// As Postgres has them.
pub async fn sending_project(connection: &mut PgConnection, name: &str) -> Result<Option<SendingProject>, sqlx::Error> {
    let row = sqlx::query("SELECT id, name, unit, conversion_events FROM projects WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(sending_project_of).transpose()
}

fn sending_project_of(row: &PgRow) -> Result<SendingProject, sqlx::Error> {
    let (name, unit): (&str, &str) = (row.try_get("name")?, row.try_get("unit")?);
    let unit = Unit::of_text(unit).ok_or_else(|| Unsupported {
        table: "projects",
        row: format!("row {name:?}"),
        column: "unit".to_owned(),
        found: format!("{unit:?}"),
        known: Unit::TEXTS,
    });
    Ok(SendingProject { id: row.try_get("id")?, unit, conversion_events: row.try_get("conversion_events")? })
}
