//! The attacks: one turn of each, which is begun again until its time is over.

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::ensure;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::Target;

type Turn = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// An attack.
pub(super) struct Attack {
    pub(super) name: &'static str,
    /// How many take turns at a time.
    pub(super) parallel: usize,
    /// One turn of one of them.
    pub(super) run: fn(Target, usize) -> Turn,
}

/// Longer than any attack lasts.
const TO_THE_END: Duration = Duration::from_secs(3_600);
/// How long an attacker reads an answer.
const READ_MAX: Duration = Duration::from_secs(60);
/// Rows that questions of the attackers run over.
const ROWS: usize = 20_000;

macro_rules! attack {
    ($name:literal, $parallel:literal, $run:expr) => {
        Attack { name: $name, parallel: $parallel, run: |target, place| Box::pin($run(target, place)) }
    };
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!("10 MiB of nonsense in 10 KB, without a key", 4, inflated_without_a_key),
    attack!("bodies of 2 MiB that lack a byte, without a key", 127, bodies_without_an_end),
    attack!("idle connections", 8, idle_connections),
    attack!("a pixel with 5 M parameters", 8, pixel_parameters),
    attack!("2,500 rejections each, answers not read", 200, unread_rejections),
    attack!("2,500 made-up names", 2, made_up_names),
    attack!("2,500 variants of one experiment", 2, made_up_variants),
    attack!("119 months", 1, old_months),
    attack!("large events that compress well", 4, large_events),
    attack!("unknown tokens", 8, unknown_tokens),
    attack!("CUBE of 13 columns", 4, cube),
    attack!("texts that grow", 4, growing_texts),
    attack!("types in types", 4, nested_types),
    attack!("endless functions, abandoned", 4, abandoned_functions),
    attack!("endless joins, abandoned", 2, abandoned_joins),
    attack!("answers not read", 40, unread_answers),
];

/// Stores what the questions of the attackers run over, and lets an experiment register itself.
pub(super) async fn prepare(target: &Target) -> anyhow::Result<()> {
    for first in (0..ROWS).step_by(2_000) {
        let events: Vec<Value> = (first..first + 2_000)
            .map(|number| json!({"type": "engagement", "user_id": format!("user-{}", number % 1_000), "name": "seen", "properties": {"a": number}}))
            .collect();
        let answer = exchange(&target.collector, &post_events(target, &json!({"events": events}))).await?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

async fn inflated_without_a_key(target: Target, _: usize) -> anyhow::Result<()> {
    static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| gzip(&vec![0xff; 10 << 20]));
    exchange(&target.collector, &post("/v1/batch", &["Content-Encoding: gzip"], &BODY)).await.map(drop)
}

async fn bodies_without_an_end(target: Target, _: usize) -> anyhow::Result<()> {
    let whole = post("/v1/batch", &[], &vec![b' '; 2 << 20]);
    hold(&target.collector, &whole[..whole.len() - 1]).await
}

/// As many connections as there are file descriptors for, up to 2,000 of each attacker.
async fn idle_connections(target: Target, _: usize) -> anyhow::Result<()> {
    let mut connections = Vec::new();
    while connections.len() < 2_000 {
        match TcpStream::connect(&target.collector).await {
            Ok(connection) => connections.push(connection),
            Err(_) => break,
        }
    }
    tokio::time::sleep(TO_THE_END).await;
    Ok(())
}

async fn pixel_parameters(target: Target, _: usize) -> anyhow::Result<()> {
    static BODY: LazyLock<Vec<u8>> =
        LazyLock::new(|| gzip(&[&b"type=impression&user_id=u&"[..], &b"a&".repeat(5_000_000)].concat()));
    let headers = ["Content-Encoding: gzip", "Content-Type: application/x-www-form-urlencoded"];
    exchange(&target.collector, &post(&format!("/v1/pixel.gif?key={}", target.write_key), &headers, &BODY)).await.map(drop)
}

async fn unread_rejections(target: Target, _: usize) -> anyhow::Result<()> {
    hold(&target.collector, &post_events(&target, &json!({"events": vec![json!({"type": "x"}); 2_500]}))).await
}

async fn made_up_names(target: Target, _: usize) -> anyhow::Result<()> {
    send_events(
        target,
        2_500,
        |_| json!({"type": "conversion", "user_id": "u", "name": Uuid::new_v4(), "value": "1", "currency": "EUR"}),
    )
    .await
}

async fn made_up_variants(target: Target, _: usize) -> anyhow::Result<()> {
    let event = |_| json!({"type": "impression", "user_id": Uuid::new_v4(), "experiment": "attacked", "variant": Uuid::new_v4()});
    send_events(target, 2_500, event).await
}

async fn old_months(target: Target, _: usize) -> anyhow::Result<()> {
    let event = |number| {
        let time = format!("{}-{:02}-01T00:00:00Z", 2017 + number / 12, 1 + number % 12);
        json!({"type": "engagement", "user_id": "u", "name": "seen", "timestamp": time, "sent_at": time})
    };
    send_events(target, 119, event).await
}

async fn large_events(target: Target, _: usize) -> anyhow::Result<()> {
    static BODY: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let text = "x".repeat(20_000);
        let event = |number| json!({"type": "engagement", "user_id": format!("user-{number}"), "name": "seen", "properties": {"a": text}});
        gzip(json!({"events": (0..480).map(event).collect::<Vec<_>>()}).to_string().as_bytes())
    });
    let key = format!("Authorization: Bearer {}", target.write_key);
    exchange(&target.collector, &post("/v1/events", &[&key, "Content-Encoding: gzip"], &BODY)).await.map(drop)
}

async fn unknown_tokens(target: Target, _: usize) -> anyhow::Result<()> {
    let request = format!(
        "GET /v1/experiments HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        Uuid::new_v4()
    );
    exchange(&target.query, request.as_bytes()).await.map(drop)
}

async fn cube(target: Target, _: usize) -> anyhow::Result<()> {
    let columns = "event_id, user_id, external_id, event_time, event, kind, properties, session_id, country, region, city, device_type, page_url";
    let sql = format!("SELECT count(*) FROM events GROUP BY CUBE ({columns})");
    exchange(&target.query, &question(&target, &sql)).await.map(drop)
}

async fn growing_texts(target: Target, place: usize) -> anyhow::Result<()> {
    let sql = if place.is_multiple_of(2) {
        let doubled =
            (0..26).fold("SELECT 'xxxxxxxxxxxxxxxx' AS t".to_owned(), |inner, _| format!("SELECT t || t AS t FROM ({inner})"));
        format!("SELECT length(t) FROM ({doubled})")
    } else {
        let x = "repeat('x', 100000)";
        format!("SELECT length(replace(replace({x}, 'x', {x}), 'x', 'yyyyyyyyyy')) FROM events")
    };
    exchange(&target.query, &question(&target, &sql)).await.map(drop)
}

async fn nested_types(target: Target, place: usize) -> anyhow::Result<()> {
    let sql = if place.is_multiple_of(2) {
        format!("SELECT CAST(NULL AS INT{})", "[]".repeat(3_000))
    } else {
        format!("SELECT arrow_cast(NULL, '{}Int64{}')", "List(".repeat(3_000), ")".repeat(3_000))
    };
    exchange(&target.query, &question(&target, &sql)).await.map(drop)
}

async fn abandoned_functions(target: Target, _: usize) -> anyhow::Result<()> {
    let sql = "SELECT levenshtein(replace(repeat('x', 1000000), 'x', 'ab'), repeat('y', 1000000))";
    abandon(&target.query, &question(&target, sql), Duration::from_millis(350)).await
}

async fn abandoned_joins(target: Target, _: usize) -> anyhow::Result<()> {
    let sql = "SELECT count(*) FROM events a JOIN events b ON a.properties LIKE '%' || b.external_id || b.properties || '%'";
    abandon(&target.query, &question(&target, sql), Duration::from_secs(2)).await
}

async fn unread_answers(target: Target, _: usize) -> anyhow::Result<()> {
    hold(&target.query, &question(&target, "SELECT * FROM events")).await
}

async fn send_events(target: Target, events: usize, event: impl Fn(usize) -> Value) -> anyhow::Result<()> {
    let body = json!({"events": (0..events).map(event).collect::<Vec<_>>()});
    exchange(&target.collector, &post_events(&target, &body)).await.map(drop)
}

fn post_events(target: &Target, body: &Value) -> Vec<u8> {
    post("/v1/events", &[&format!("Authorization: Bearer {}", target.write_key)], body.to_string().as_bytes())
}

fn question(target: &Target, sql: &str) -> Vec<u8> {
    post("/v1/sql", &[&format!("Authorization: Bearer {}", target.read_token)], json!({ "sql": sql }).to_string().as_bytes())
}

fn post(path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Compresses; what is sent again and again is made once.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes every byte")
}

/// Sends a request and returns the answer.
async fn exchange(address: &str, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(READ_MAX, connection.read_to_end(&mut answer)).await??;
    Ok(answer)
}

/// Sends a request and reads nothing until the attack is over.
async fn hold(address: &str, request: &[u8]) -> anyhow::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request).await?;
    tokio::time::sleep(TO_THE_END).await;
    Ok(())
}

/// Sends a request and closes the connection after a while.
async fn abandon(address: &str, request: &[u8], after: Duration) -> anyhow::Result<()> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(request).await?;
    tokio::time::sleep(after).await;
    Ok(())
}
