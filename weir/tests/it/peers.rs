//! What was measured of other collectors over Kafka, and must not be so here. The rest of them is in `ingest/tests/it/peers.rs`;
//! `cargo test peers` runs them all. Skipped aloud without a broker, as in `services.rs`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::weir;
use crate::raw::{Connection, address, post};
use crate::services::{Deployment, KEY, READY_MAX, TOPIC, is_skipped};
use crate::support::{Database, page};

fn events(name: &str, count: u32) -> Vec<u8> {
    let event =
        |n| json!({"type": "engagement", "name": "step", "user_id": format!("user-{n}"), "event_id": format!("{name}-{n}")});
    post(KEY, &json!({ "events": (0..count).map(event).collect::<Vec<_>>() }).to_string())
}

/// A peer panicked where no Kafka was there at its start. A collector that never met one waits for it and says so; one that has met it takes events
/// at once. And while it is away each request is answered, not after twenty seconds, and health tells what is so.
#[tokio::test(flavor = "multi_thread")]
async fn peers_without_kafka_at_its_start_it_waits_or_takes_events_at_once() {
    if is_skipped("peers_without_kafka_at_its_start_it_waits_or_takes_events_at_once") {
        return;
    }
    let deployment = Deployment::start().await;
    deployment.broker.script("stop").await;
    let data = deployment.folder.path().join("never-met");
    std::fs::create_dir_all(&data).expect("a folder");
    let log = deployment.folder.path().join("never-met.log");
    let mut command = weir();
    command.args(["collector", "--collector", "127.0.0.1:0", "--database-url", &deployment.database_url, "--data"]).arg(&data);
    command.args(["--kafka", &deployment.broker.servers, "--topic", TOPIC]);
    command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).expect("a file"));
    let mut child = command.spawn().expect("weir starts");
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let deadline = Instant::now() + READY_MAX;
    while !said().contains("Kafka does not answer; waiting for it") {
        assert!(child.try_wait().expect("a child of ours").is_none(), "it has ended: {}", said());
        assert!(Instant::now() < deadline, "{}", said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    deployment.broker.script("start").await;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("was piped")).read_line(&mut line).expect("a line");
    let url = line.trim_end().strip_prefix("collector ").unwrap_or_else(|| panic!("{line:?} {}", said()));
    let answer =
        Connection::open(address(url)).await.expect("connects").exchange(&events("waited", 10)).await.expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(!said().contains("panicked"), "{}", said());
    child.kill().expect("it runs");
    child.wait().expect("a child of ours");

    let collector = deployment.collector();
    collector.until_ready().await;
    collector.end();
    deployment.broker.script("stop").await;
    let collector = deployment.collector();
    let mut connection = Connection::open(address(&collector.url)).await.expect("connects");
    for n in 0..10 {
        let begun = Instant::now();
        let answer = connection.exchange(&events(&format!("away-{n}"), 10)).await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    }
    // What comes next can be made durable, so it is ready; that Kafka is away its numbers tell.
    assert_eq!(page(&format!("{}/readyz", collector.url)).await.0, 200);
    assert!(collector.metric("weir_collector_spool_records").await >= 100.0);
    assert_eq!(collector.metric("weir_collector_spool_state{state=\"direct\"}").await, 0.0);
    deployment.broker.script("start").await;
    let aggregator = deployment.aggregator("aggregator");
    let mut database = Database::connect(&deployment.database_url).await;
    database.until("SELECT count(*) FROM engagement_events", 110, Duration::from_secs(60)).await;
    collector.end();
    aggregator.end();
}

/// A peer answered 503 to some of 1,024 connections that sent a hundred events each, in two of three runs. Here all of them are accepted, and stored.
#[tokio::test(flavor = "multi_thread")]
async fn peers_1024_connections_with_100_events_each_are_all_accepted() {
    if is_skipped("peers_1024_connections_with_100_events_each_are_all_accepted") {
        return;
    }
    service::descriptors::raise();
    let deployment = Deployment::start().await;
    let collector = deployment.collector_with(|command| {
        command.env("WEIR_KEY_BYTES_PER_SECOND_MAX", "0");
    });
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let to = address(&collector.url);
    let mut clients = JoinSet::new();
    for client in 0..1_024 {
        clients.spawn(async move {
            let request = events(&format!("client-{client}"), 100);
            let mut connection = Connection::open(to).await.expect("connects");
            let answer = connection.exchange(&request).await.expect("an answer");
            (answer.status, answer.json()["accepted"].clone())
        });
    }
    while let Some(told) = clients.join_next().await {
        assert_eq!(told.expect("no panic"), (200, json!(100)));
    }
    let mut database = Database::connect(&deployment.database_url).await;
    database.until("SELECT count(DISTINCT id) FROM engagement_events", 102_400, Duration::from_secs(90)).await;
    assert_eq!(database.number("SELECT count(*) FROM engagement_events").await, 102_400);
    collector.end();
    aggregator.end();
}
