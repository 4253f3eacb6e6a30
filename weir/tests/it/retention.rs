//! A month leaves for the archive and comes back while events come in: nothing is lost or doubled, and the answers of before, between and
//! after agree where they are promised to.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use aggregator::{Aggregator, Config};
use eventlog::Append;
use eventlog::memory::MemoryLog;
use events::rules::{self, RequestContext};
use events::testing::{conversion, exposure, request_context};
use events::{Draft, EventId, Micros, ProjectId, Record};
use hyper::Method;
use migrations::testing::TestDatabase;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{send, weir};
use crate::support::{Database, page, run};

const TOKEN: &str = "read-token-of-the-test";
/// Users of the experiment that is over, every one of whom was exposed in the month, and every third of whom bought.
const USERS: usize = 150;
const MOVED_MAX: Duration = Duration::from_secs(120);

/// A log, an aggregator with an archive, and a query service.
struct World {
    database: TestDatabase,
    rows: Database,
    log: MemoryLog,
    aggregator: Aggregator,
    query: Child,
    url: String,
    project: Uuid,
}

impl World {
    async fn start(archive: &Path) -> Self {
        let database = TestDatabase::create().await;
        let migrated = weir().args(["migrate", "--database-url", &database.url]).env("WEIR_READ_TOKEN", TOKEN).output();
        assert!(migrated.expect("starts").status.success());
        let mut rows = Database::connect(&database.url).await;
        rows.execute("UPDATE projects SET auto_register = true").await;
        let project = rows.text("SELECT id::text FROM projects WHERE name = 'default'").await.parse().expect("an id");
        let log = MemoryLog::new(8);
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let config = Config {
            archive: Some(archive.to_owned()),
            retention_round: Duration::from_millis(100),
            batch_age_ms_max: 5,
            ..Config::new(any_port, database.url.clone())
        };
        let read = Arc::new(log.clone());
        let aggregator = Aggregator::start(config, read.clone(), read).await.expect("the aggregator starts");
        let mut command = weir();
        command.args(["query", "--until-stdin-closes", "--query", "127.0.0.1:0", "--database-url", &database.url]);
        let mut query = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        let stdout = query.stdout.take().expect("was piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("says where it is");
        let url = line.trim_end().strip_prefix("query ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        World { database, rows, log, aggregator, query, url, project }
    }

    /// Waits until all is stored.
    async fn stored(&mut self, records: i64) {
        self.rows.until("SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints", records, MOVED_MAX).await;
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = send(Method::GET, &format!("{}{path}", self.url), TOKEN, None).await.expect("answers");
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, answer) = send(Method::POST, &format!("{}{path}", self.url), TOKEN, Some(body)).await.expect("answers");
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Runs `weir admin ..` and returns what it says.
    async fn admin(&self, arguments: &[&str]) -> String {
        let mut command = weir();
        command.arg("admin").args(arguments).args(["--database-url", &self.database.url]);
        let output = run(command, MOVED_MAX).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What is asked: the experiment's results, a funnel over the month, and its events.
    async fn answers(&self, month: &str) -> [Value; 3] {
        let results = self.get("/v1/experiments/checkout/results").await;
        let steps = ["impression", "purchase"].map(|name| json!({"name": name, "events": [name]}));
        let funnel = json!({"steps": steps, "from": format!("{month}-01T00:00:00Z"), "to": format!("{month}-28T00:00:00Z"),
                            "window": "7d"});
        let funnel = self.post("/v1/funnels", funnel).await;
        let sql = format!(
            "SELECT kind, count(*), count(DISTINCT user_id), sum(value) FROM events
             WHERE event_time < TIMESTAMP '{month}-28T00:00:00Z' GROUP BY kind ORDER BY kind"
        );
        let sql = self.post("/v1/sql", json!({ "sql": sql })).await;
        [results, funnel, sql]
    }
}

/// Leaves out what tells when it was asked, and what is said of months.
fn numbers(answer: &Value) -> Value {
    let mut answer = answer.clone();
    let members = answer.as_object_mut().expect("an object");
    for name in ["as_of", "computed_at", "data_through", "elapsed_ms", "warnings"] {
        members.remove(name);
    }
    if let Some(experiment) = members.get_mut("experiment").and_then(Value::as_object_mut) {
        experiment.remove("frozen_at");
    }
    // How long ago its newest event was.
    if let Some(checks) = members.get_mut("health").and_then(|health| health["checks"].as_array_mut()) {
        checks.retain(|check| check["id"] != "freshness");
    }
    answer
}

/// Compares two answers, member by member.
fn agree(found: &Value, expected: &Value) {
    let (found, expected) = (numbers(found), numbers(expected));
    let (found, expected) = (found.as_object().expect("an object"), expected.as_object().expect("an object"));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, value) in found {
        assert_eq!(*value, expected[name], "{name}");
    }
}

fn codes(answer: &Value) -> Vec<&str> {
    let warnings = answer["warnings"].as_array().map(Vec::as_slice).unwrap_or_default();
    warnings.iter().filter_map(|warning| warning["code"].as_str()).collect()
}

fn encoded(draft: Draft, request: &RequestContext) -> Record {
    Record::encode(&rules::admit(draft, request, || EventId(Uuid::new_v4())).expect("a valid event"))
}

/// Appends events of now until it is told to end; each bought for 1.
async fn live(log: MemoryLog, project: Uuid, ends: Arc<AtomicBool>, appended: Arc<AtomicI64>) {
    for round in 0.. {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        let now = Micros::now();
        let request = RequestContext { project: ProjectId(project), received_at: now, ..request_context() };
        let mut records = Vec::new();
        for number in 0..20 {
            let (user, at) = (format!("live-{}", (round * 20 + number) % 500), now.to_string());
            let (shown, bought) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
            records.push(encoded(exposure(&shown, &user, &at, "banner", ["control", "b"][number % 2]), &request));
            records.push(encoded(conversion(&bought, &user, &at, "order", "1"), &request));
        }
        let count = records.len() as i64;
        log.append(records).await.expect("memory takes all");
        appended.fetch_add(count, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_month_is_archived_dropped_and_restored_under_load() {
    let archive = tempfile::tempdir().expect("a folder");
    let mut world = World::start(archive.path()).await;
    // A month that ended more than 60 days ago, whenever this runs.
    let then = Micros(Micros::now().0 - 150 * Micros::DAY).to_string();
    let month = &then[..7];
    let at = |day: u32, second: usize| format!("{month}-{day:02}T10:{:02}:{:02}Z", second / 60, second % 60);
    let received = events::Micros::parse(&at(10, 3_599)).expect("a time");
    let request = RequestContext { project: ProjectId(world.project), received_at: received, ..request_context() };
    let mut records = Vec::new();
    for user in 0..USERS {
        let name = format!("user-{user}");
        let shown = exposure(&Uuid::new_v4().to_string(), &name, &at(10, user), "checkout", ["control", "b"][user % 2]);
        records.push(encoded(shown, &request));
        if user % 3 == 0 {
            let bought = conversion(&Uuid::new_v4().to_string(), &name, &at(10, user + 600), "purchase", "19.90");
            records.push(encoded(bought, &request));
        }
    }
    let history = records.len() as i64;
    world.log.append(records).await.expect("memory takes all");
    world.stored(history).await;
    world
        .rows
        .execute(&format!(
            "UPDATE experiments SET status = 'completed', ended_at = '{}', started_at = '{}' WHERE name = 'checkout';
             UPDATE catalogue_versions SET version = version + 1",
            at(11, 0),
            at(9, 0)
        ))
        .await;
    // Live events first: by them the windows of the experiment that is over are closed.
    let (ends, appended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    let load = tokio::spawn(live(world.log.clone(), world.project, Arc::clone(&ends), Arc::clone(&appended)));
    let is_live = "SELECT (count(*) > 100)::int::bigint FROM conversions WHERE conversion_type = 'order'";
    world.rows.until(is_live, 1, MOVED_MAX).await;
    let before = world.answers(month).await;
    let of_kinds = json!([["conversion", USERS / 3, USERS / 3, "995.000000"], ["impression", USERS, USERS, null]]);
    assert_eq!(before[2]["rows"], of_kinds);
    assert_eq!(before[1]["groups"][0]["steps"][1]["units"], json!(USERS / 3), "{}", before[1]);

    let said = world.admin(&["month", "keep", "2"]).await;
    assert!(said.starts_with("2 whole months before the present one are kept"), "{said}");
    world.rows.until("SELECT count(*) FROM months WHERE state = 'dropped'", 1, MOVED_MAX).await;

    // Between: participation and attribution, and so the results, are what they were; what is read from events lacks the month, and says so.
    let between = world.answers(month).await;
    for answer in &between {
        assert_eq!(answer["as_of"]["months_away"], json!([month]), "{answer}");
    }
    agree(&between[0], &before[0]);
    assert!(codes(&between[0]).contains(&"experiment_frozen"), "{:?}", between[0]["warnings"]);
    assert!(codes(&between[1]).contains(&"months_away"), "{:?}", between[1]["warnings"]);
    assert_eq!(between[2]["rows"], json!([]));
    let tables = format!("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '_{}$'", month.replace('-', "_"));
    assert_eq!(world.rows.number(&tables).await, 0);
    let late = conversion(&Uuid::new_v4().to_string(), "user-1", &at(10, 0), "purchase", "1");
    let history_of_now = RequestContext { backfill: true, received_at: Micros::now(), ..request };
    world.log.append(vec![encoded(late, &history_of_now)]).await.expect("memory takes all");
    world.rows.until("SELECT count(*) FROM dead_letters WHERE code = 'before_horizon'", 1, MOVED_MAX).await;
    let mut refused = weir();
    refused.args(["admin", "recompute", "checkout", "--database-url", &world.database.url]);
    let refused = run(refused, MOVED_MAX).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("experiment_frozen"), "{refused:?}");
    let listed = world.admin(&["month", "list"]).await;
    assert!(listed.contains(month) && listed.contains("dropped"), "{listed}");
    let rollup = r#"{"kind": "conversion", "keys": ["day"], "measures": {"orders": "count"}}"#;
    let said = world.admin(&["rollup", "define", "orders", rollup]).await;
    assert!(said.contains(&format!("It has no events of the months that are archived: {month}. ")), "{said}");

    // After: all of it is what it was.
    let said = world.admin(&["month", "restore", month]).await;
    assert_eq!(said, format!("month {month}: {history} rows are back\n"));
    let after = world.answers(month).await;
    for (after, before) in after.iter().zip(&before) {
        agree(after, before);
        assert_eq!(after["as_of"].get("months_away"), None, "{after}");
    }
    assert_eq!(codes(&after[1]), codes(&before[1]));

    // What came meanwhile is stored once, and gives what it gives when all of it is computed again.
    let had = appended.load(Ordering::Relaxed);
    while appended.load(Ordering::Relaxed) < had + 400 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ends.store(true, Ordering::Relaxed);
    load.await.expect("no panic");
    let appended = appended.load(Ordering::Relaxed);
    world.stored(history + appended + 1).await;
    let orders = "SELECT count(*) + sum(conversion_value)::bigint FROM conversions WHERE conversion_type = 'order'";
    assert_eq!(world.rows.number(orders).await, appended, "each order is worth 1");
    assert_eq!(world.rows.number("SELECT count(*) FROM dead_letters").await, 1);
    assert!(world.admin(&["recompute", "banner"]).await.contains("nothing differed"));
    let (_, metrics) = page(&format!("http://{}/metrics", world.aggregator.address())).await;
    for line in ["weir_aggregator_months_away 0", "weir_aggregator_months_stuck 0", "weir_aggregator_users_different_total 0"] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }

    // It leaves again when it is told to, by the files that there are.
    world.admin(&["month", "release", month]).await;
    world.rows.until("SELECT count(*) FROM months WHERE state = 'dropped'", 1, MOVED_MAX).await;
    world.aggregator.stop().await;
    drop(world.query.stdin.take());
    world.query.wait().expect("ends");
}
