//! The client that does nothing wrong.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use http_body_util::{BodyExt, Full};
use hyper::header::AUTHORIZATION;
use hyper::{Method, Request};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Target;
use crate::Histogram;

const PROJECT: &str = "good";
const WRITE_KEY: &str = "write-key-of-the-good-client";
const READ_TOKEN: &str = "read-token-of-the-good-client";
/// It posts and asks this often, or as soon as the former one is answered.
const POST_EVERY: Duration = Duration::from_millis(20);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long an answer may take before it counts as none.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// How long after the attacks the last event may need to be stored.
const STORED_MAX: Duration = Duration::from_secs(60);

/// A client of a project of its own.
pub(super) struct Client {
    http: Http<HttpConnector, Full<bytes::Bytes>>,
    target: Target,
}

/// What the client met.
#[derive(Default)]
pub(super) struct Waited {
    pub(super) posts: Histogram,
    pub(super) answers: Histogram,
    /// Events that were acknowledged.
    pub(super) posted: u64,
    /// Answers that it did not deserve, and how often they came.
    pub(super) refused: Vec<String>,
}

impl Waited {
    /// Adds what it met another time.
    pub(super) fn add(&mut self, other: Waited) {
        self.posts.add(&other.posts);
        self.answers.add(&other.answers);
        self.posted += other.posted;
        self.refused.extend(other.refused);
    }
}

/// Makes the project, and waits until the services know its keys.
pub(super) async fn of_another_project(database: &mut PgConnection, target: &Target) -> anyhow::Result<Client> {
    let sql = "WITH good AS (INSERT INTO projects (name) VALUES ($1) RETURNING id)
               INSERT INTO keys (project_id, kind, name, digest, prefix)
               SELECT id, kind, $1, sha256(convert_to(key, 'UTF8')), $1 FROM good, (VALUES ('write', $2), ('read', $3)) keys (kind, key)";
    sqlx::query(sql).bind(PROJECT).bind(WRITE_KEY).bind(READ_TOKEN).execute(database).await.context("the good project")?;
    let client = Client { http: Http::builder(TokioExecutor::new()).build_http(), target: target.clone() };
    let begun = Instant::now();
    while let Err(error) = client.ask().await {
        ensure!(begun.elapsed() < Duration::from_secs(30), "the services do not know the good client: {error:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    while client.post(&json!({"events": []})).await.is_err_and(|error| error.to_string().contains("401")) {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the collector does not know the good client");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(client)
}

/// Checks that each acknowledged event is stored, once.
pub(super) async fn all_stored(database: &mut PgConnection, posted: u64) -> anyhow::Result<()> {
    let sql = "SELECT count(*) FROM engagement_events WHERE project_id = (SELECT id FROM projects WHERE name = $1)";
    let begun = Instant::now();
    loop {
        let stored: i64 = sqlx::query_scalar(sql).bind(PROJECT).fetch_one(&mut *database).await?;
        if u64::try_from(stored) == Ok(posted) {
            return Ok(());
        }
        ensure!(begun.elapsed() < STORED_MAX, "{stored} events of the good client are stored, {posted} were acknowledged");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Client {
    /// Posts and asks for some time.
    pub(super) async fn go_on_for(&self, time: Duration) -> Waited {
        let end = Instant::now() + time;
        let posts = async {
            let (mut waited, mut refused) = (Histogram::default(), Vec::new());
            let mut posted = 0;
            while Instant::now() < end {
                let begun = Instant::now();
                match self.post(&event()).await {
                    Ok(()) => posted += 1,
                    Err(error) => refused.push(format!("{error:#}, posting")),
                }
                waited.record(begun.elapsed());
                tokio::time::sleep(POST_EVERY.saturating_sub(begun.elapsed())).await;
            }
            (waited, posted, refused)
        };
        let answers = async {
            let (mut waited, mut refused) = (Histogram::default(), Vec::new());
            while Instant::now() < end {
                let begun = Instant::now();
                refused.extend(self.ask().await.err().map(|error| format!("{error:#}, asking")));
                waited.record(begun.elapsed());
                tokio::time::sleep(ASK_EVERY.saturating_sub(begun.elapsed())).await;
            }
            (waited, refused)
        };
        let ((posts, posted, mut refused), (answers, others)) = tokio::join!(posts, answers);
        refused.extend(others);
        refused.sort();
        let counted = refused.chunk_by(|left, right| left == right).map(|same| format!("{} times {}", same.len(), same[0]));
        Waited { posts, answers, posted, refused: counted.collect() }
    }

    /// Checks that all services are ready and serve it.
    pub(super) async fn is_served(&self, target: &Target) -> anyhow::Result<()> {
        for address in [&target.collector, &target.query] {
            self.send(Method::GET, &format!("http://{address}/readyz"), "", Vec::new()).await?;
        }
        self.ask().await?;
        self.post(&event()).await
    }

    async fn post(&self, body: &serde_json::Value) -> anyhow::Result<()> {
        let url = format!("http://{}/v1/events", self.target.collector);
        let answer = self.send(Method::POST, &url, WRITE_KEY, body.to_string().into_bytes()).await?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).context("an answer that is no JSON")?;
        ensure!(answer["rejected"].as_array().is_none_or(Vec::is_empty), "{answer}");
        Ok(())
    }

    async fn ask(&self) -> anyhow::Result<()> {
        self.send(Method::GET, &format!("http://{}/v1/experiments", self.target.query), READ_TOKEN, Vec::new()).await?;
        Ok(())
    }

    async fn send(&self, method: Method, url: &str, key: &str, body: Vec<u8>) -> anyhow::Result<bytes::Bytes> {
        let request = Request::builder().method(method).uri(url).header(AUTHORIZATION, format!("Bearer {key}"));
        let request = request.body(Full::from(body))?;
        let exchange = async {
            let answer = self.http.request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            ensure!(status.is_success(), "{status}");
            Ok(body)
        };
        tokio::time::timeout(WAIT_MAX, exchange)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", WAIT_MAX.as_secs()))?
    }
}

fn event() -> serde_json::Value {
    let user = Uuid::new_v4();
    json!({"events": [{"type": "engagement", "event_id": Uuid::new_v4(), "user_id": user, "name": "seen"}]})
}
