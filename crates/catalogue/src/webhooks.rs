//! Where a project's notices are sent, and what became of those on their way.

use events::Micros;
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::audit::audit;
use crate::change::begin;
use crate::check;
use crate::project::Project;
use crate::timestamp::Timestamp;
use crate::vocabulary::{DeliveryStatus, NoticeKind, WebhookFormat};
use crate::{CatalogueError, ReadError};

/// As long as browsers and proxies take.
const URL_BYTES_MAX: usize = 2_048;
/// Webhooks of one project: each notice is a row for each.
const WEBHOOKS_MAX: i64 = 20;

/// A webhook to be made.
#[derive(Clone, Debug)]
pub struct NewWebhook<'a> {
    /// Where notices are posted.
    pub url: &'a str,
    /// How they are written.
    pub format: WebhookFormat,
    /// Which ones; empty: all.
    pub kinds: &'a [NoticeKind],
    /// Signs them: 24 to 64 random bytes.
    pub secret: &'a [u8],
}

/// A webhook, and how it does.
#[derive(Clone, Debug, Serialize)]
pub struct Webhook {
    /// Its id.
    pub id: Uuid,
    /// Where notices are posted.
    pub url: String,
    /// How they are written.
    pub format: WebhookFormat,
    /// Which ones; empty: all.
    pub kinds: Vec<NoticeKind>,
    /// When it was made.
    #[serde(serialize_with = "crate::time_text")]
    pub created_at: Micros,
    /// Notices that are to be sent.
    pub waiting: i64,
    /// Notices that have arrived.
    pub delivered: i64,
    /// Notices that were given up.
    pub failed: i64,
    /// Why the last attempt of one that has not arrived failed.
    pub error: Option<String>,
}

impl Webhook {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let kinds: Vec<String> = row.try_get("kinds")?;
        let kind = |text: &String| {
            text.parse().map_err(|unknown: crate::UnknownText| sqlx::Error::ColumnDecode {
                index: "kinds".to_owned(),
                source: unknown.into(),
            })
        };
        Ok(Webhook {
            id: row.try_get("id")?,
            url: row.try_get("url")?,
            format: row.try_get("format")?,
            kinds: kinds.iter().map(kind).collect::<Result<_, _>>()?,
            created_at: row.try_get::<Timestamp, _>("created_at")?.0,
            waiting: row.try_get("waiting")?,
            delivered: row.try_get("delivered")?,
            failed: row.try_get("failed")?,
            error: row.try_get("error")?,
        })
    }
}

/// Makes a webhook, which gets all notices that are made from now on. Returns its id.
/// # Errors
/// [`CatalogueError::Invalid`], [`CatalogueError::WrongState`] where there are too many already.
pub async fn add(connection: &mut PgConnection, project: &Project, new: &NewWebhook<'_>) -> Result<Uuid, CatalogueError> {
    check_url(new.url)?;
    let mut transaction = begin(connection).await?;
    sqlx::query("SELECT FROM projects WHERE id = $1 FOR UPDATE").bind(project.id).execute(&mut *transaction).await?;
    let there_are: i64 = sqlx::query_scalar("SELECT count(*) FROM webhooks WHERE project_id = $1 AND removed_at IS NULL")
        .bind(project.id)
        .fetch_one(&mut *transaction)
        .await?;
    if there_are >= WEBHOOKS_MAX {
        let accepted = format!("at most {WEBHOOKS_MAX} are kept; remove one with `weir admin webhook remove`");
        let found = format!("the owner of {there_are} webhooks already");
        return Err(CatalogueError::WrongState { subject: project.to_string(), found, accepted });
    }
    let kinds: Vec<&str> = new.kinds.iter().map(|kind| kind.as_str()).collect();
    let id: Uuid = sqlx::query_scalar(
        "INSERT INTO webhooks (project_id, url, format, secret, kinds) VALUES ($1, $2, $3, $4, $5) RETURNING id",
    )
    .bind(project.id)
    .bind(new.url)
    .bind(new.format)
    .bind(new.secret)
    .bind(&kinds)
    .fetch_one(&mut *transaction)
    .await?;
    let details = json!({ "url": new.url, "format": new.format, "kinds": kinds });
    audit(&mut transaction, Some(project.id), "webhook.add", &id.to_string(), &details).await?;
    transaction.commit().await?;
    Ok(id)
}

fn check_url(url: &str) -> Result<(), CatalogueError> {
    let refuse = |found: String| {
        Err(CatalogueError::invalid("url", format!("found {found}; a URL such as https://example.com/hooks/weir is accepted")))
    };
    if url.len() > URL_BYTES_MAX {
        return refuse(format!("{} bytes, where at most {URL_BYTES_MAX} are accepted", url.len()));
    }
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let has_host = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', '?', '#', ':']));
    let is_written = url.bytes().all(|byte| byte.is_ascii_graphic());
    if has_host && is_written { Ok(()) } else { refuse(format!("{url:?}")) }
}

/// Returns the webhooks of a project that were not removed, the oldest first.
/// # Errors
/// [`CatalogueError::Unsupported`], [`CatalogueError::Database`].
pub async fn list(connection: &mut PgConnection, project: &Project) -> Result<Vec<Webhook>, CatalogueError> {
    let rows = sqlx::query(
        "SELECT w.id, w.url, w.format, w.kinds, w.created_at, d.waiting, d.delivered, d.failed, d.error
         FROM webhooks w CROSS JOIN LATERAL (
             SELECT count(*) FILTER (WHERE status = 'waiting') AS waiting, count(*) FILTER (WHERE status = 'delivered') AS delivered,
                    count(*) FILTER (WHERE status = 'failed') AS failed,
                    (array_agg(error ORDER BY changed_at DESC) FILTER (WHERE status <> 'delivered' AND error IS NOT NULL))[1] AS error
             FROM deliveries WHERE webhook_id = w.id) d
         WHERE w.project_id = $1 AND w.removed_at IS NULL ORDER BY w.created_at, w.id",
    )
    .bind(project.id)
    .fetch_all(connection)
    .await?;
    let webhook =
        |row| Webhook::from_row(row).map_err(|error| ReadError::of_row(error, "webhooks", || format!("a row of {project}")));
    Ok(rows.iter().map(webhook).collect::<Result<_, _>>()?)
}

/// Removes the one webhook whose id begins so; what was on its way to it is given up. Returns its id.
/// # Errors
/// [`CatalogueError::Unknown`], [`CatalogueError::Invalid`] if several begin so.
pub async fn remove(connection: &mut PgConnection, project: &Project, id: &str) -> Result<Uuid, CatalogueError> {
    let mut transaction = begin(connection).await?;
    let id = find(&mut transaction, project, id).await?;
    sqlx::query("UPDATE webhooks SET removed_at = now() WHERE id = $1").bind(id).execute(&mut *transaction).await?;
    let given_up = "UPDATE deliveries SET status = $2, error = 'the webhook was removed', changed_at = now()
                    WHERE webhook_id = $1 AND status = $3";
    let given_up = sqlx::query(given_up).bind(id).bind(DeliveryStatus::Failed).bind(DeliveryStatus::Waiting);
    given_up.execute(&mut *transaction).await?;
    audit(&mut transaction, Some(project.id), "webhook.remove", &id.to_string(), &json!({})).await?;
    transaction.commit().await?;
    Ok(id)
}

/// Has a notice sent that says nothing but that it arrives. Returns the webhook's id.
/// # Errors
/// As of [`remove`].
pub async fn test(connection: &mut PgConnection, project: &Project, id: &str) -> Result<Uuid, CatalogueError> {
    let mut transaction = begin(connection).await?;
    let id = find(&mut transaction, project, id).await?;
    let text = format!("notices of {project} arrive here");
    let body = json!({ "text": text, "project": project.name });
    let notice = Uuid::new_v4();
    // Its id is new.
    if let Some(number) = add_notice(&mut transaction, project.id, notice, Uuid::nil(), NoticeKind::Test, &body).await? {
        let delivery = sqlx::query("INSERT INTO deliveries (webhook_id, number, experiment_id) VALUES ($1, $2, $3)");
        delivery.bind(id).bind(number).bind(Uuid::nil()).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(id)
}

/// Has notices sent again that were given up. Returns how many.
/// # Errors
/// As of [`remove`].
pub async fn retry(connection: &mut PgConnection, project: &Project, id: &str) -> Result<u64, CatalogueError> {
    let mut transaction = begin(connection).await?;
    let id = find(&mut transaction, project, id).await?;
    let again = "UPDATE deliveries SET status = $2, attempts = 0, next_at = now(), changed_at = now() WHERE webhook_id = $1 AND status = $3";
    let again = sqlx::query(again).bind(id).bind(DeliveryStatus::Waiting).bind(DeliveryStatus::Failed);
    let count = again.execute(&mut *transaction).await?.rows_affected();
    audit(&mut transaction, Some(project.id), "webhook.retry", &id.to_string(), &json!({ "notices": count })).await?;
    transaction.commit().await?;
    Ok(count)
}

async fn find(connection: &mut PgConnection, project: &Project, id: &str) -> Result<Uuid, CatalogueError> {
    check::something("webhook", id)?;
    let all = "SELECT id FROM webhooks WHERE project_id = $1 AND removed_at IS NULL ORDER BY created_at, id";
    let all: Vec<Uuid> = sqlx::query_scalar(all).bind(project.id).fetch_all(connection).await?;
    let found: Vec<Uuid> = all.iter().filter(|known| known.to_string().starts_with(&id.to_lowercase())).copied().collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            let names: Vec<String> = all.iter().map(Uuid::to_string).take(11).collect();
            Err(CatalogueError::unknown("webhook", id, project.to_string(), &names))
        }
        several => {
            let ids: Vec<String> = several.iter().map(Uuid::to_string).collect();
            let message = format!("found {id:?}, with which {} webhooks begin; name one of {}", ids.len(), ids.join(", "));
            Err(CatalogueError::invalid("webhook", message))
        }
    }
}

/// Makes a notice unless there is one of this id. Returns its number if it is new.
/// # Errors
/// As Postgres has them.
pub async fn add_notice(
    connection: &mut PgConnection,
    project: Uuid,
    id: Uuid,
    experiment: Uuid,
    kind: NoticeKind,
    body: &serde_json::Value,
) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "INSERT INTO notices (project_id, id, experiment_id, kind, body) VALUES ($1, $2, $3, $4, $5::json)
         ON CONFLICT (project_id, id) DO NOTHING RETURNING number",
    )
    .bind(project)
    .bind(id)
    .bind(experiment)
    .bind(kind)
    .bind(body.to_string())
    .fetch_optional(connection)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_those_of_http() {
        let check = |url: &str, is_accepted: bool| assert_eq!(check_url(url).is_ok(), is_accepted, "{url}");
        check("https://example.com/hooks/weir?key=1", true);
        check("http://127.0.0.1:8080", true);
        for url in
            ["", "example.com", "ftp://example.com", "https://", "https:///path", "https://:80", "https://a b", "https://ä"]
        {
            check(url, false);
        }
        check(&format!("https://{}", "x".repeat(URL_BYTES_MAX)), false);
    }
}
