//! Notices on their way to webhooks: at least once, those of one experiment in their order, again and again for three days.
//!
//! Signed as Standard Webhooks has it (github.com/standard-webhooks/standard-webhooks, `spec/standard-webhooks.md`): the headers `webhook-id`,
//! `webhook-timestamp` and `webhook-signature`, which is `v1,` and the base64 of the HMAC-SHA256 of id, time and body with points in between.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use catalogue::schema::SchemaError;
use catalogue::{DeliveryStatus, NoticeKind, Timestamp, WebhookFormat};
use futures_util::future::join_all;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, USER_AGENT};
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use service::client::{Client, ClientError, Trust, client, innermost};
use service::{BackOff, Stop};
use sha2::Sha256;
use sqlx::postgres::PgConnectOptions;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::duty::Duty;
use super::store::DELIVERS;
use crate::metrics::Metrics;
use crate::source::snapshot::time_text;

/// How often it is looked whether something is to be sent.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// The longest pause after failures of the database, about.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Deliveries at one time.
const AT_ONCE: i64 = 16;
/// How long a connection may take, and all of a delivery.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const DELIVERY_MAX: Duration = Duration::from_secs(15);
/// Seconds from an attempt to the next one; after the last of them a notice is given up. As Standard Webhooks recommends.
const PAUSES_S: [i32; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Bytes of an error that are kept.
const ERROR_BYTES_MAX: usize = 300;

/// Sends until a stop. Of several processes one does.
pub(crate) async fn run(metrics: Arc<Metrics>, options: PgConnectOptions, ca: Option<PathBuf>, mut stop: Stop) {
    let mut sender = Sender { metrics, duty: Duty::new(options, DELIVERS), ca, clients: None };
    let mut back_off = BackOff::new(ROUND_EVERY, PAUSE_MAX);
    while !stop.is_requested() {
        // What was sent is noted before a stop.
        let pause = match sender.round().await {
            Ok(()) => {
                back_off.reset();
                ROUND_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "notices are not sent; trying again");
                sender.duty.give_up();
                back_off.delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => return,
        }
    }
}

/// Why a round was not finished.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

struct Sender {
    metrics: Arc<Metrics>,
    duty: Duty,
    ca: Option<PathBuf>,
    clients: Option<Clients>,
}

/// For http and https. Whose certificates are believed is only asked where there is something to send.
struct Clients {
    plain: Client,
    tls: Result<Client, String>,
}

impl Clients {
    fn new(ca: Option<&PathBuf>) -> Result<Self, ClientError> {
        let trust = ca.map_or(Trust::System, |file| Trust::File(file));
        let tls = client(trust, CONNECT_MAX).map_err(|error| error.to_string());
        Ok(Clients { plain: client(Trust::Nobody, CONNECT_MAX)?, tls })
    }
}

/// One notice to one webhook.
struct Delivery {
    webhook: Uuid,
    number: i64,
    url: String,
    secret: Vec<u8>,
    format: WebhookFormat,
    id: Uuid,
    kind: NoticeKind,
    body: Value,
    created_at: i64,
    attempts: i32,
}

impl Sender {
    async fn round(&mut self) -> Result<(), RoundError> {
        let Some((_, connection)) = self.duty.held().await? else { return Ok(()) };
        loop {
            let due = due(connection).await?;
            if due.is_empty() {
                return Ok(());
            }
            if self.clients.is_none() {
                self.clients = Some(Clients::new(self.ca.as_ref())?);
            }
            let Some(clients) = &self.clients else { return Ok(()) };
            let sent = join_all(due.iter().map(|delivery| send(clients, delivery))).await;
            for (delivery, sent) in due.iter().zip(sent) {
                self.metrics.delivery(note(connection, delivery, sent).await?);
            }
        }
    }
}

/// Returns what is to be sent now: of each experiment the first notice that has not arrived.
async fn due(connection: &mut PgConnection) -> Result<Vec<Delivery>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT d.webhook_id, d.number, d.attempts, w.url, w.secret, w.format, n.id, n.kind, n.body::text AS body, n.created_at
         FROM deliveries d JOIN webhooks w ON w.id = d.webhook_id JOIN notices n ON n.number = d.number
         WHERE d.status = 'waiting' AND d.next_at <= now() AND w.removed_at IS NULL
           AND NOT EXISTS (SELECT FROM deliveries e WHERE e.webhook_id = d.webhook_id AND e.experiment_id = d.experiment_id
                           AND e.number < d.number AND e.status = 'waiting')
         ORDER BY d.number LIMIT $1",
    )
    .bind(AT_ONCE)
    .fetch_all(connection)
    .await?;
    let delivery = |row: &sqlx::postgres::PgRow| {
        let body: &str = row.try_get("body")?;
        Ok(Delivery {
            webhook: row.try_get("webhook_id")?,
            number: row.try_get("number")?,
            url: row.try_get("url")?,
            secret: row.try_get("secret")?,
            format: row.try_get("format")?,
            id: row.try_get("id")?,
            kind: row.try_get("kind")?,
            body: serde_json::from_str(body).map_err(|error| sqlx::Error::Decode(error.into()))?,
            created_at: row.try_get::<Timestamp, _>("created_at")?.0.0,
            attempts: row.try_get("attempts")?,
        })
    };
    rows.iter().map(delivery).collect()
}

/// Why a notice did not arrive.
struct Failed {
    error: String,
    /// The receiver wants no more.
    is_final: bool,
}

async fn send(clients: &Clients, delivery: &Delivery) -> Result<(), Failed> {
    let failed = |error: String| Failed { error, is_final: false };
    let client = match (&clients.tls, delivery.url.starts_with("https://")) {
        (_, false) => &clients.plain,
        (Ok(tls), true) => tls,
        (Err(error), true) => return Err(failed(error.clone())),
    };
    let body = delivery.content();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let signature = signature(&delivery.secret, delivery.id, seconds, &body);
    let request = Request::post(&delivery.url)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("weir/", env!("CARGO_PKG_VERSION")))
        .header("webhook-id", delivery.id.to_string())
        .header("webhook-timestamp", seconds.to_string())
        .header("webhook-signature", signature)
        .body(Full::new(Bytes::from(body)));
    let request = request.map_err(|error| failed(error.to_string()))?;
    let answer = tokio::time::timeout(DELIVERY_MAX, client.request(request)).await;
    let answer = answer.map_err(|_| failed(format!("no answer within {} s", DELIVERY_MAX.as_secs())))?;
    let status = answer.map_err(|error| failed(innermost(&error).to_string()))?.status();
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::GONE => Err(Failed { error: status.to_string(), is_final: true }),
        status => Err(failed(status.to_string())),
    }
}

/// Notes what became of a delivery, and returns it as metrics name it.
async fn note(connection: &mut PgConnection, delivery: &Delivery, sent: Result<(), Failed>) -> Result<&'static str, sqlx::Error> {
    let attempts = delivery.attempts + 1;
    let pause = usize::try_from(delivery.attempts).ok().and_then(|done| PAUSES_S.get(done)).copied();
    let (status, pause, error, result) = match sent {
        Ok(()) => (DeliveryStatus::Delivered, 0, None, "delivered"),
        Err(Failed { error, is_final }) => {
            tracing::warn!(webhook = %delivery.webhook, notice = %delivery.id, attempts, error, "a notice did not arrive");
            let error = Some(error[..error.floor_char_boundary(ERROR_BYTES_MAX)].to_owned());
            match pause.filter(|_| !is_final) {
                Some(pause) => (DeliveryStatus::Waiting, pause, error, "failed"),
                None => (DeliveryStatus::Failed, 0, error, "given_up"),
            }
        }
    };
    sqlx::query(
        "UPDATE deliveries SET status = $3, attempts = $4, next_at = now() + $5 * interval '1 second', error = $6, changed_at = now()
         WHERE webhook_id = $1 AND number = $2 AND status = 'waiting'",
    )
    .bind(delivery.webhook)
    .bind(delivery.number)
    .bind(status)
    .bind(attempts)
    .bind(pause)
    .bind(error)
    .execute(connection)
    .await?;
    Ok(result)
}

impl Delivery {
    /// Returns the body: what chats show, or a type, a time and the data.
    fn content(&self) -> Vec<u8> {
        let content = match self.format {
            WebhookFormat::Chat => json!({ "text": self.body["text"] }),
            WebhookFormat::Standard => {
                json!({ "type": format!("weir.{}", self.kind), "timestamp": time_text(self.created_at), "data": self.body })
            }
        };
        content.to_string().into_bytes()
    }
}

/// Returns the header `webhook-signature`.
fn signature(secret: &[u8], id: Uuid, seconds: u64, body: &[u8]) -> String {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(format!("{id}.{seconds}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By Python's `hmac` and `base64`.
    #[test]
    fn signatures_are_those_of_standard_webhooks() {
        let secret: Vec<u8> = (0..24).collect();
        let found = signature(&secret, Uuid::from_u128(7), 1_674_087_231, br#"{"test": 2432232314}"#);
        assert_eq!(found, "v1,oYTZ5AQcgQZc2YG2sJWCiL+dv9UySlefTUs/JHTg/lk=");
    }
}
