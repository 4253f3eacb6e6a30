//! Alerts that are not of a halted log partition.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper::Method;
use migrations::testing::{TestDatabase, TestServer};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::story::{Job, Story};
use super::{command, until_told};
use crate::harness::{Folder, Up, purchases, send, until, weir};
use crate::query_limits::{Query, TOKEN, endless_function};
use crate::services::{Deployment, KEY, READY_MAX};
use crate::support::{Database, page};

const SERVICES: [&str; 3] = ["collector", "aggregator", "query"];

fn jobs(up: &Up) -> [Job<'_>; 3] {
    SERVICES.map(|job| (job, up.line(job)))
}

/// A number of a metrics' page: the sum of all series whose text begins so; 0 if there is none.
async fn shown(url: &str, beginning: &str) -> f64 {
    let (status, text) = page(&format!("{url}/metrics")).await;
    assert_eq!(status, 200, "{text}");
    let of_line = |line: &str| line.strip_prefix(beginning)?.rsplit_once(' ')?.1.parse::<f64>().ok();
    text.lines().filter_map(of_line).sum()
}

/// Waits until a page shows something.
async fn until_shown(url: &str, beginning: &str, expected: impl Fn(f64) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let found = shown(url, beginning).await;
        if expected(found) {
            return;
        }
        assert!(Instant::now() < deadline, "{beginning} is {found} on the page of {url}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(super) async fn a_frozen_postgres() -> Story {
    let (server, folder) = (TestServer::start().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &server.url()]);
    });
    let mut story = Story::begin(&jobs(&up)).await;
    let frozen = server.freeze();
    // "It names what is missing".
    until_told(up.line("aggregator"), 503, "postgres").await;
    for _ in 0..2 {
        story.during(&jobs(&up)).await;
    }
    drop(frozen);
    for service in SERVICES {
        until_told(up.line(service), 200, "").await;
    }
    up.accepted(purchases(3)).await;
    up.until_stored(3).await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

pub(super) async fn a_killed_collector() -> Story {
    let deployment = Deployment::start().await;
    let (collector, aggregator) = (deployment.collector(), deployment.aggregator("aggregator"));
    collector.until_ready().await;
    aggregator.until_ready().await;
    let url = collector.url.clone();
    let mut story = Story::begin(&[("collector", &url), ("aggregator", &aggregator.url)]).await;
    collector.kill();
    for _ in 0..2 {
        story.during(&[("collector", &url), ("aggregator", &aggregator.url)]).await;
    }
    // It does not answer: whatever runs it starts it again.
    let collector = deployment.collector();
    collector.until_ready().await;
    let story = story.end(&[("collector", &collector.url), ("aggregator", &aggregator.url)]).await;
    collector.end();
    aggregator.end();
    story
}

/// Somebody's lock in Postgres keeps commits waiting while events come.
pub(super) async fn a_locked_table() -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &database.url]);
    });
    let (url, lag) = (format!("{}/v1/events", up.line("collector")), "weir_aggregator_lag_records{");
    let send_batch = async || {
        let events: Vec<Value> =
            (0..2_500).map(|user| json!({"type": "engagement", "user_id": format!("u-{user}"), "name": "seen"})).collect();
        let answer = send(Method::POST, &url, up.line("server_key"), Some(json!({ "events": events }))).await;
        let (status, answer) = answer.expect("the collector answers");
        assert_eq!((status, &answer["accepted"]), (200, &json!(2_500)), "{answer}");
    };
    let mut story = Story::begin(&jobs(&up)).await;
    let mut locking = Database::connect(&database.url).await;
    locking.execute("BEGIN; LOCK TABLE checkpoints").await;
    for _ in 0..41 {
        send_batch().await;
    }
    until_shown(up.line("aggregator"), lag, |lag| lag > 100_000.0).await;
    story.during(&jobs(&up)).await;
    let before = shown(up.line("aggregator"), lag).await;
    send_batch().await;
    until_shown(up.line("aggregator"), lag, |lag| lag > before).await;
    story.during(&jobs(&up)).await;

    // "Is Postgres slow?": what kept it is over.
    locking.execute("ROLLBACK").await;
    let mut rows = Database::connect(&database.url).await;
    rows.until("SELECT count(*) FROM engagement_events", 42 * 2_500, Duration::from_secs(120)).await;
    until_shown(up.line("aggregator"), lag, |lag| lag == 0.0).await;
    until_told(up.line("aggregator"), 200, "").await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

/// Kafka is away, and the spool takes events until it is full.
pub(super) async fn a_full_spool() -> Story {
    let deployment = Deployment::start().await;
    let data = deployment.folder.path().join("collector");
    fs::create_dir_all(&data).expect("a folder");
    let data = data.to_str().expect("text");
    let collector = [
        "collector",
        "--collector",
        "127.0.0.1:0",
        "--data",
        data,
        "--spool-bytes-max",
        "67108864",
        "--key-bytes-per-second-max",
        "0",
    ];
    let collector = deployment.service("collector", &collector);
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    aggregator.until_ready().await;
    let jobs = [("collector", collector.url.as_str()), ("aggregator", aggregator.url.as_str())];
    let mut story = Story::begin(&jobs).await;
    deployment.broker.script("stop").await;

    let (url, padding) = (format!("{}/v1/events", collector.url), "x".repeat(7_000));
    let (mut sent, mut refused) = (0i64, 0);
    let deadline = Instant::now() + Duration::from_secs(180);
    while refused < 6 {
        assert!(Instant::now() < deadline, "{sent} events were taken by a spool of 64 MiB");
        let event = |_| {
            let id = uuid::Uuid::new_v4().to_string();
            json!({"type": "engagement", "event_id": id, "user_id": id, "name": "long", "properties": {"padding": padding}})
        };
        let events: Vec<Value> = (0..200).map(event).collect();
        let (status, answer) =
            send(Method::POST, &url, KEY, Some(json!({ "events": events }))).await.expect("the collector answers");
        match status {
            200 => sent += answer["accepted"].as_i64().expect("a number"),
            503 => {
                refused += 1;
                if refused == 3 || refused == 6 {
                    story.during(&jobs).await;
                }
            }
            status => panic!("{status} {answer}"),
        }
    }
    assert!(shown(&collector.url, "weir_collector_spool_bytes").await > 32.0 * 1024.0 * 1024.0);

    // "Mend Kafka".
    deployment.broker.script("start").await;
    let mut rows = Database::connect(&deployment.postgres.url()).await;
    let stored = format!("SELECT least(count(*), {sent}) FROM engagement_events");
    rows.until(&stored, sent, Duration::from_secs(120)).await;
    collector.until_ready().await;
    aggregator.until_ready().await;
    until_shown(&collector.url, "weir_collector_spool_bytes", |bytes| bytes < 32.0 * 1024.0 * 1024.0).await;
    let event = json!({"type": "engagement", "user_id": "after", "name": "short"});
    let (status, answer) =
        send(Method::POST, &url, KEY, Some(json!({ "events": [event] }))).await.expect("the collector answers");
    assert_eq!(status, 200, "{answer}");
    let story = story.end(&jobs).await;
    collector.end();
    aggregator.end();
    story
}

/// The disk under the spool damages a record that waits there.
pub(super) async fn a_damaged_spool() -> Story {
    let deployment = Deployment::start().await;
    let (collector, aggregator) = (deployment.collector(), deployment.aggregator("aggregator"));
    collector.until_ready().await;
    aggregator.until_ready().await;
    let url = collector.url.clone();
    let mut story = Story::begin(&[("collector", &url), ("aggregator", &aggregator.url)]).await;
    deployment.broker.script("stop").await;
    for n in 0..5 {
        // Each is synced by itself.
        let event = json!({"type": "conversion", "user_id": "one", "name": format!("waits-{n}")});
        let body = Some(json!({ "events": [event] }));
        let (status, answer) = send(Method::POST, &format!("{url}/v1/events"), KEY, body).await.expect("the collector answers");
        assert_eq!(status, 200, "{answer}");
    }
    collector.kill();
    let data = deployment.folder.path().join("collector");
    let damaged = damage(&data.join("spool"), b"waits-1");
    assert_eq!(damaged, 1, "one file holds it");
    let collector = deployment.collector();
    deployment.broker.script("start").await;
    // "What can be read drains by itself".
    let mut rows = Database::connect(&deployment.postgres.url()).await;
    rows.until("SELECT count(*) FROM conversions", 4, Duration::from_secs(60)).await;
    until_shown(&collector.url, "weir_collector_spool_damaged_records", |records| records == 1.0).await;
    aggregator.until_ready().await;
    collector.until_ready().await;
    for _ in 0..2 {
        story.during(&[("collector", &collector.url), ("aggregator", &aggregator.url)]).await;
    }

    // "Keep the folder; replace the disk".
    collector.end();
    fs::rename(&data, deployment.folder.path().join("kept")).expect("moves");
    let collector = deployment.collector();
    collector.until_ready().await;
    let story = story.end(&[("collector", &collector.url), ("aggregator", &aggregator.url)]).await;
    collector.end();
    aggregator.end();
    story
}

/// Flips a bit of each place where files of a folder hold these bytes, and returns how many there were.
fn damage(folder: &Path, wanted: &[u8]) -> usize {
    let mut found = 0;
    let entries: Vec<PathBuf> = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    for path in entries {
        if path.is_dir() {
            found += damage(&path, wanted);
            continue;
        }
        let mut bytes = fs::read(&path).expect("a file");
        let places: Vec<usize> =
            bytes.windows(wanted.len()).enumerate().filter(|(_, window)| *window == wanted).map(|(at, _)| at).collect();
        for place in &places {
            bytes[*place] ^= 1;
        }
        if !places.is_empty() {
            fs::write(&path, bytes).expect("writes");
        }
        found += places.len();
    }
    found
}

pub(super) async fn a_client_that_sends_too_much() -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &database.url]);
    });
    let made = command(&database.url, &["admin", "key", "create", "--name", "shop", "--requests-per-second", "1"]).await;
    let key = made.trim().strip_prefix("write_key ").expect("a write key").to_owned();
    let url = format!("{}/v1/events", up.line("collector"));
    let post = async || {
        let events = Some(json!({"events": purchases(1)}));
        send(Method::POST, &url, &key, events).await.expect("the collector answers").0
    };
    let until_answered = async |expected: u16| {
        let deadline = Instant::now() + READY_MAX;
        while post().await != expected {
            assert!(Instant::now() < deadline, "{expected} is not answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut story = Story::begin(&jobs(&up)).await;
    until_answered(429).await;
    story.during(&jobs(&up)).await;
    until_answered(429).await;
    story.during(&jobs(&up)).await;

    // "Is it abuse? weir admin key revoke".
    let listed = command(&database.url, &["admin", "key", "list", "--format", "json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("is JSON");
    let id = listed.iter().find(|key| key["name"] == "shop").and_then(|key| key["id"].as_str()).expect("the key");
    command(&database.url, &["admin", "key", "revoke", id]).await;
    until_answered(401).await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

pub(super) async fn a_name_that_nobody_knows() -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &database.url]);
    });
    let mut rows = Database::connect(&database.url).await;
    rows.execute("UPDATE projects SET auto_register = false; UPDATE catalogue_versions SET version = version + 1").await;
    up.accepted(purchases(3)).await;
    up.until_stored(3).await;
    let mut story = Story::begin(&jobs(&up)).await;
    up.accepted(vec![json!({"type": "impression", "user_id": "ada", "experiment": "banner", "variant": "b"})]).await;
    until_shown(up.line("aggregator"), "weir_aggregator_dead_letters_total{", |letters| letters == 1.0).await;
    for _ in 0..2 {
        story.during(&jobs(&up)).await;
    }

    // "Create the name and they are replayed".
    let listed = command(&database.url, &["admin", "dead-letters", "list"]).await;
    assert!(listed.contains("unknown_experiment") && listed.contains("banner"), "{listed}");
    let create = ["admin", "experiment", "create", "banner", "--variant", "control:50:control", "--variant", "b:50", "--start"];
    command(&database.url, &create).await;
    rows.until("SELECT count(*) FROM dead_letters WHERE status = 'replayed'", 1, READY_MAX).await;
    rows.until("SELECT count(*) FROM impressions", 1, READY_MAX).await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

/// Somebody deletes facts by hand, of users whom the aggregator remembers. It compares one of 1,000 known users with what is stored: of
/// 15,000 in each round some.
pub(super) async fn facts_deleted_by_hand() -> Story {
    const USERS: usize = 15_000;
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &database.url]);
    });
    let mut rows = Database::connect(&database.url).await;
    let (stored, different) = ("SELECT count(*) FROM conversions", "weir_aggregator_users_different_total");
    let buy = |user: usize| json!({"type": "conversion", "user_id": format!("u-{user}"), "name": "purchase", "value": "1", "currency": "EUR"});
    let everybody_buys = async || {
        for part in 0..6 {
            up.accepted((0..2_500).map(|user| buy(2_500 * part + user)).collect()).await;
        }
    };
    everybody_buys().await;
    rows.until(stored, USERS as i64, READY_MAX).await;
    let mut story = Story::begin(&jobs(&up)).await;
    for _ in 0..2 {
        let before = shown(up.line("aggregator"), different).await;
        rows.execute("DELETE FROM conversions").await;
        everybody_buys().await;
        rows.until(stored, USERS as i64, READY_MAX).await;
        until_shown(up.line("aggregator"), different, |different| different > before).await;
        // It is shown within a second that nothing waits any more.
        until_shown(up.line("aggregator"), "weir_aggregator_lag_records", |waiting| waiting == 0.0).await;
        story.during(&jobs(&up)).await;
    }

    // "All is well again once that is 0".
    until_shown(up.line("aggregator"), "weir_aggregator_experiments_behind", |behind| behind == 0.0).await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

pub(super) async fn a_method_of_a_newer_version() -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let up = Up::start_with(&folder, |command| {
        command.args(["--database-url", &database.url]);
    });
    let seen = |user: &str| json!({"type": "impression", "user_id": user, "experiment": "checkout", "variant": "b"});
    up.accepted(vec![seen("ada")]).await;
    up.until_stored(1).await;
    let mut rows = Database::connect(&database.url).await;
    let participation = "SELECT count(*) FROM user_experiment_participation";
    rows.until(participation, 1, READY_MAX).await;
    let mut story = Story::begin(&jobs(&up)).await;
    let newer = "ALTER TABLE experiments DROP CONSTRAINT experiments_attribution_method_check;
                 UPDATE experiments SET attribution_method = 'of a newer Weir';
                 UPDATE catalogue_versions SET version = version + 1";
    rows.execute(newer).await;
    up.accepted(vec![seen("bob")]).await;
    until_told(up.line("aggregator"), 503, "unsupported_catalogue").await;
    until_shown(up.line("aggregator"), "weir_aggregator_experiments_behind", |behind| behind == 1.0).await;
    for _ in 0..2 {
        story.during(&jobs(&up)).await;
    }
    assert_eq!(rows.number(participation).await, 1, "it waits");

    // "Upgrade them": the aggregator that runs then knows the method, as this one knows its own.
    let known =
        "UPDATE experiments SET attribution_method = 'first_exposure'; UPDATE catalogue_versions SET version = version + 1";
    rows.execute(known).await;
    rows.until(participation, 2, READY_MAX).await;
    until_told(up.line("aggregator"), 200, "").await;
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

/// A process of the test's that is killed with it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) async fn a_task_that_panics() -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let start = || {
        Up::start_with(&folder, |command| {
            command.args(["--database-url", &database.url]);
        })
    };
    let up = start();
    let mut story = Story::begin(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let url = format!("http://127.0.0.1:{port}");
    let mut panicking = weir();
    panicking.args(["up", "--collector", "127.0.0.1:0", "--query", "127.0.0.1:0", "--database-url", &database.url]);
    panicking.arg("--aggregator").arg(format!("127.0.0.1:{port}")).arg("--data").arg(folder.path());
    panicking.env("WEIR_INJECT_PANICS", "aggregator/worker-1").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = Killed(panicking.spawn().expect("starts"));
    until("it listens", READY_MAX, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    for deaths in [1.0, 2.0] {
        until_shown(&url, "weir_aggregator_task_restarts_total{task=\"worker-1\"", |found| found >= deaths).await;
        story.during(&[("aggregator", &url)]).await;
    }
    // "Report it with the log": it names the task and the panic. The service that keeps dying ends, and is started again.
    let stderr = process.0.stderr.take().expect("was piped");
    let said = std::io::read_to_string(stderr).expect("text");
    assert!(said.contains("injected into worker-1"), "{said}");
    assert_eq!(process.0.wait().expect("a child of ours").code(), Some(1));
    let up = start();
    let story = story.end(&jobs(&up)).await;
    assert!(up.end(Signal::TERM).success());
    story
}

pub(super) async fn more_questions_than_may_wait() -> Story {
    let mut query = Query::start(|_: &mut Command| {}).await;
    let mut story = Story::begin(&[("query", &query.url)]).await;
    let endless = json!({"sql": format!("SELECT {}", endless_function())});
    let mut asked: Vec<TcpStream> = Vec::new();
    for refused in [1.0, 4.0] {
        while query.metric("weir_query_busy_total").await < refused {
            assert!(asked.len() < 60, "none of {} questions is refused", asked.len());
            asked.push(query.asked("/v1/sql", &endless).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        story.during(&[("query", &query.url)]).await;
    }
    // "Ask less often".
    drop(asked);
    query.until_idle().await;
    query.counts().await;
    let story = story.end(&[("query", &query.url)]).await;
    query.end();
    story
}

pub(super) async fn questions_that_do_not_end() -> Story {
    let mut query = Query::start(|_: &mut Command| {}).await;
    let mut story = Story::begin(&[("query", &query.url)]).await;
    let endless = json!({"sql": format!("SELECT {}", endless_function())});
    let killed = "weir_query_workers_killed_total{";
    for kills in [1.0, 4.0] {
        let deadline = Instant::now() + Duration::from_secs(60);
        while shown(&query.url, killed).await < kills {
            assert!(Instant::now() < deadline, "no process is killed");
            query.abandon("/v1/sql", &endless).await;
        }
        query.until_idle().await;
        story.during(&[("query", &query.url)]).await;
    }
    // "Whose read token is it?"
    let listed = command(&query.database.url, &["admin", "key", "list", "--format", "json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&listed).expect("is JSON");
    let id = listed.iter().find(|key| key["kind"] == "read").and_then(|key| key["id"].as_str()).expect("the token");
    command(&query.database.url, &["admin", "key", "revoke", id]).await;
    let deadline = Instant::now() + READY_MAX;
    while send(Method::GET, &format!("{}/v1/experiments", query.url), TOKEN, None).await.expect("answers").0 != 401 {
        assert!(Instant::now() < deadline, "the token still works");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    query.until_idle().await;
    let story = story.end(&[("query", &query.url)]).await;
    query.end();
    story
}
