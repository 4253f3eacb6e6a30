//! Segment's own clients for Python and for Node send; each call is found in Postgres as what it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use events::Micros;
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Folder, Up, send};
use crate::support::{Database, program, run};

const PYTHON_CLIENT: &str = "segment-analytics-python==2.4.0";
const NODE_CLIENT: &str = "@segment/analytics-node@3.1.0";
const CALLS: i64 = 1_000;

/// What is stored of an event: table, user, time, the text of the client's user id, what it is, metadata.
type Stored = (&'static str, Uuid, i64, String, String, Value);

/// Where clients are kept for the next run.
pub(crate) fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    Some(cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("weir"))
}

/// Returns Node's program and a folder in which it finds the client.
async fn node() -> Option<(PathBuf, PathBuf)> {
    let (node, npm) = (program("node")?, program("npm")?);
    let folder = cache()?.join("node-analytics-3.1.0");
    let file = folder.join("node_modules/@segment/analytics-node/package.json");
    if !file.exists() {
        std::fs::create_dir_all(&folder).expect("a folder for the client");
        let mut command = Command::new(npm);
        command.args(["install", "--no-audit", "--no-fund", "--no-update-notifier", "--prefix"]).arg(&folder).arg(NODE_CLIENT);
        run(command, Duration::from_secs(180)).await;
    }
    file.exists().then_some((node, folder))
}

/// Returns a Python that has the client.
async fn python() -> Option<PathBuf> {
    let python = program("python3")?;
    let cache = cache()?;
    let venv = cache.join("venv");
    let inside = venv.join("bin/python");
    let has_client = async || {
        let mut command = Command::new(&inside);
        command.args(["-c", "import segment.analytics.version as v; assert v.VERSION == '2.4.0'"]);
        inside.exists() && run(command, Duration::from_secs(60)).await.status.success()
    };
    if !has_client().await {
        std::fs::create_dir_all(&cache).expect("a folder for the environment");
        let mut command = Command::new(python);
        command.args(["-m", "venv"]).arg(&venv);
        if !run(command, Duration::from_secs(120)).await.status.success() {
            return None;
        }
        let mut command = Command::new(&inside);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PYTHON_CLIENT]);
        run(command, Duration::from_secs(180)).await;
    }
    has_client().await.then_some(inside)
}

/// The calls, as the script takes them. The client cuts times to milliseconds.
fn calls(begin: Micros) -> Vec<Value> {
    let call = |n: i64| {
        let user = format!("customer {}", n % 97);
        let timestamp = Micros(begin.0 + n * 1_003_000).to_string().replace('Z', "+00:00");
        let mut call = json!({"call": "track", "user_id": user, "timestamp": timestamp, "message_id": format!("call-{n}")});
        let (event, content) = match n % 5 {
            0 => (
                Some("Experiment Viewed"),
                json!({"experiment_name": "sdk", "variation_name": (["a", "b"][n as usize % 97 % 2]), "n": n}),
            ),
            1 => (Some("Order Completed"), json!({"order_id": format!("o{n}"), "revenue": n as f64 + 0.25, "currency": "EUR"})),
            2 => (Some("Tip Given"), json!({"value": n, "note": "grüße 🎈"})),
            3 => (Some("Video Watched"), json!({"n": n, "nested": {"list": [1, "two", null, true]}})),
            _ => (None, json!({"plan": "pro", "n": n})),
        };
        match event {
            Some(event) => {
                call["event"] = json!(event);
                call["properties"] = content;
            }
            None => {
                call["call"] = json!("identify");
                call["traits"] = content;
            }
        }
        call
    };
    (0..CALLS).map(call).collect()
}

/// What must be stored of a call.
fn expected(project: Uuid, namespace: Uuid, call: &Value) -> (Uuid, Stored) {
    let text = |key: &str| call[key].as_str().unwrap_or_default();
    let content = if call["traits"].is_null() { &call["properties"] } else { &call["traits"] };
    let (table, what) = match text("event") {
        "Experiment Viewed" => ("impressions", format!("sdk {}", content["variation_name"].as_str().expect("ours"))),
        "Order Completed" => ("conversions", format!("Order Completed {} EUR", content["revenue"])),
        "Tip Given" => ("conversions", format!("Tip Given {} -", content["value"])),
        "" => ("identity_events", "identify".to_owned()),
        event => ("engagement_events", event.to_owned()),
    };
    let user = text("user_id");
    let user_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("weir:user:{project}:{user}").as_bytes());
    let time = Micros::parse(text("timestamp")).expect("ours");
    let id = Uuid::new_v5(&namespace, text("message_id").as_bytes());
    (id, (table, user_id, time.0, user.to_owned(), what, content.clone()))
}

async fn stored(database: &mut Database, project: Uuid) -> BTreeMap<Uuid, Stored> {
    let tables = [
        (
            "impressions",
            "(SELECT e.name || ' ' || v.name FROM experiments e JOIN variants v ON v.experiment_id = e.id \
             WHERE (e.project_id, e.id, v.id) = (t.project_id, t.experiment_id, t.variant_id))",
        ),
        ("conversions", "concat_ws(' ', conversion_type, trim_scale(conversion_value), coalesce(currency, '-'))"),
        ("engagement_events", "event_type"),
        ("identity_events", "event_type"),
        ("campaign_events", "event_type"),
    ];
    let mut all = BTreeMap::new();
    for (table, what) in tables {
        let query = format!(
            "SELECT id, user_id, (extract(epoch FROM event_time) * 1000000)::bigint, external_id, {what}, metadata::text \
             FROM {table} t WHERE project_id = '{project}' AND NOT untimed AND NOT is_bot"
        );
        for (id, user, time, external, what, metadata) in database.rows::<(Uuid, Uuid, i64, String, String, String)>(&query).await
        {
            let metadata = serde_json::from_str(&metadata).expect("is JSON");
            let other = all.insert(id, (table, user, time, external, what, metadata));
            assert!(other.is_none(), "{id} is stored twice: {other:?}");
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_segments_python_client_is_stored_once_as_what_it_was() {
    let Some(python) = python().await else {
        eprintln!("skipped: python3 with venv, or {PYTHON_CLIENT} from its registry, cannot be had here");
        return;
    };
    let mut script = Command::new(&python);
    script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sdk.py"));
    check(script, "analytics-python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_segments_node_client_is_stored_once_as_what_it_was() {
    let Some((node, folder)) = node().await else {
        eprintln!("skipped: node with npm, or {NODE_CLIENT} from its registry, cannot be had here");
        return;
    };
    let mut script = Command::new(&node);
    script.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sdk.mjs")).arg(folder);
    check(script, "@segment/analytics-node").await;
}

/// Lets a script make the calls: its last arguments are the collector, the key and the file of calls.
async fn check(mut script: Command, library: &str) {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let mut database = Database::connect(up.line("postgres")).await;
    let project: Uuid = database.text("SELECT id::text FROM projects WHERE name = 'default'").await.parse().expect("an id");
    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"weir:event:segment");

    let calls = calls(Micros((Micros::now().0 - 3_600_000_000) / 1_000 * 1_000));
    let file = folder.path().join("calls");
    let lines: Vec<String> = calls.iter().map(Value::to_string).collect();
    std::fs::write(&file, lines.join("\n")).expect("writes");
    script.args([up.line("collector"), up.line("write_key")]).arg(&file);
    let ended = run(script, Duration::from_secs(60)).await;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    // A batch whose answer was lost is sent again as it was.
    let again: Vec<Value> = (0..20)
        .map(|n| {
            json!({"type": "track", "event": "Order Completed", "userId": "customer 1", "messageId": format!("again-{n}"),
               "timestamp": "2026-01-01T00:00:00Z", "properties": {"revenue": n}})
        })
        .collect();
    let now = Micros::now().to_string();
    let again: Vec<Value> = again
        .into_iter()
        .map(|mut call| {
            call["timestamp"] = json!(now);
            call
        })
        .collect();
    for _ in 0..2 {
        let url = format!("{}/v1/batch", up.line("collector"));
        let (status, answer) =
            send(Method::POST, &url, up.line("write_key"), Some(json!({"batch": again}))).await.expect("answers");
        assert_eq!(status, 200, "{answer}");
    }
    let all = "SELECT sum(next_offset)::bigint FROM checkpoints";
    database.until(all, CALLS + 40, Duration::from_secs(30)).await;

    let mut found = stored(&mut database, project).await;
    for n in 0..20 {
        let id = Uuid::new_v5(&namespace, format!("again-{n}").as_bytes());
        let (table, _, _, _, what, _) = found.remove(&id).unwrap_or_else(|| panic!("again-{n} is not stored"));
        assert_eq!((table, what), ("conversions", format!("Order Completed {n} -")));
    }
    assert_eq!(found.len() as i64, CALLS);
    for call in &calls {
        let (id, expected) = expected(project, namespace, call);
        let mut event = found.remove(&id).unwrap_or_else(|| panic!("not stored: {call}"));
        // Beside the properties stands what the clients add by themselves, such as their own names.
        assert_eq!(event.5["context"]["library"]["name"], library, "{event:?}");
        event.5.as_object_mut().expect("is one").retain(|key, _| key != "context" && key != "_metadata");
        assert_eq!(event, expected, "{call}");
    }
    assert_eq!(found, BTreeMap::new());
    assert_eq!(database.number("SELECT count(*) FROM user_experiment_participation").await, 97);
    assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0);
}
