//! `weir import`: every row becomes one event, whatever happens on the way.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use events::Micros;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, weir};
use crate::support::{Database, run};

const IMPORT_MAX: Duration = Duration::from_secs(120);

/// How an import ended.
struct Ended {
    code: Option<i32>,
    out: String,
    said: String,
}

/// The command that imports a file into what runs on a folder.
fn importing(folder: &Folder, file: &Path, args: &[&str]) -> Command {
    let mut command = weir();
    command.arg("import").arg(file).arg("--data").arg(folder.path()).args(args);
    command
}

async fn import(folder: &Folder, file: &Path, args: &[&str]) -> Ended {
    let ended = run(importing(folder, file, args), IMPORT_MAX).await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: ended.status.code(), out: text(&ended.stdout), said: text(&ended.stderr) }
}

impl Ended {
    /// Checks the exit code and the row of the closing table: rows, accepted, repeated, rejected.
    fn expect(&self, code: i32, row: &[&str]) {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.said);
        let is_frame = |found: char| !(found.is_alphanumeric() || "./,-_".contains(found));
        let found = self.out.lines().any(|line| {
            // The file's name, then rows, accepted, repeated, rejected.
            let cells = line.split(is_frame).filter(|cell| !cell.is_empty()).skip(1).take(row.len());
            cells.eq(row.iter().copied())
        });
        assert!(found, "{row:?} is no row of\n{}", self.out);
    }
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", file.display()))
}

fn write(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let file = folder.path().join(name);
    std::fs::write(&file, text).expect("written");
    file
}

/// A time some days ago.
fn days_ago(days: i64) -> String {
    Micros(Micros::now().0 - days * Micros::DAY).to_string()
}

/// Conversions in CSV, each of its own value; without ids.
fn conversions(rows: u64, begin: u64) -> String {
    let mut text = "type,user_id,timestamp,name,value,currency,plan\n".to_owned();
    let now = Micros::now().0;
    for row in begin..begin + rows {
        let at = Micros(now - Micros::DAY - (row % 86_400).cast_signed() * Micros::SECOND);
        writeln!(text, "conversion,user-{},{at},purchase,{row},EUR,\"a, \"\"b\"\"\"", row % 997).expect("a text");
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_import_goes_on_and_each_row_is_stored_once() {
    const ROWS: u64 = 60_000;
    let folder = Folder::new();
    let up = Up::start(&folder);
    let file = write(&folder, "history.csv", &conversions(ROWS, 1));
    let progress = beside(&file, ".weir-progress");
    let noted = || -> Option<Value> { serde_json::from_slice(&std::fs::read(&progress).ok()?).ok() };
    let mut last = 0;
    for kill in 0..2 {
        // Slow enough to be killed in the middle.
        let mut command = importing(&folder, &file, &["--rate", "20000", "--in-flight", "3"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let row = noted().and_then(|noted| noted["last_row"].as_u64()).unwrap_or_default();
            if row > last {
                last = row;
                break;
            }
            assert!(Instant::now() < deadline, "kill {kill}: nothing is noted after row {last}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(120 + 170 * kill)).await;
        child.kill().expect("it runs");
        child.wait().expect("a child of ours");
        let at = noted().expect("noted");
        assert!(at["last_row"].as_u64().expect("a number") < ROWS, "kill {kill}: it was over before: {at}");
    }
    let ended = import(&folder, &file, &["--in-flight", "3"]).await;
    ended.expect(0, &["60,000", "60,000", "0", "0"]);
    assert!(ended.said.contains("continues after "), "{}", ended.said);
    assert!(!progress.exists() && !beside(&file, ".weir-rejected").exists());

    let mut database = Database::connect(up.line("postgres")).await;
    database.until("SELECT count(*) FROM conversions", ROWS.cast_signed(), Duration::from_secs(60)).await;
    let sum = "SELECT sum(conversion_value)::bigint FROM conversions";
    assert_eq!(database.number(sum).await, (ROWS * (ROWS + 1) / 2).cast_signed());
    let plan = "SELECT count(*) FROM conversions WHERE metadata->>'plan' = 'a, \"b\"' AND currency = 'EUR'";
    assert_eq!(database.number(plan).await, ROWS.cast_signed());

    // The whole file once more: the ids are the same, so nothing is added.
    let ended = import(&folder, &file, &[]).await;
    ended.expect(0, &["60,000", "60,000", "0", "0"]);
    // Another file with other rows under the same name: not the rest of the former one.
    std::fs::write(&file, conversions(100, ROWS + 1)).expect("written");
    import(&folder, &file, &[]).await.expect(0, &["100", "100", "0", "0"]);
    database.until("SELECT count(*) FROM conversions", (ROWS + 100).cast_signed(), Duration::from_secs(60)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(database.number("SELECT count(*) FROM conversions").await, (ROWS + 100).cast_signed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_waits_for_a_collector_that_is_away_and_takes_its_time() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let collector = up.line("collector").to_owned();
    let address = collector.strip_prefix("http://").expect("a URL").to_owned();
    let file = write(&folder, "history.csv", &conversions(20_000, 1));
    let mut command = importing(&folder, &file, &["--rate", "8000"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    tokio::time::sleep(Duration::from_millis(900)).await;
    up.kill();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let up = Up::start_with(&folder, |command| {
        // The same port, which an import that runs knows.
        let args: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        let mut again = weir();
        for (place, arg) in args.iter().enumerate() {
            let is_port = place > 0 && args[place - 1] == "--collector";
            again.arg(if is_port { std::ffi::OsStr::new(&address) } else { arg });
        }
        *command = again;
    });
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output()).await.expect("no panic").expect("ends");
    let (out, said) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(0), "{out}{said}");
    assert!(said.contains("sent again"), "the kill met no request: {said}");
    assert!(said.contains("rows/s") && said.contains(" left"), "progress is shown: {said}");
    let mut database = Database::connect(up.line("postgres")).await;
    database.until("SELECT count(*) FROM conversions", 20_000, Duration::from_secs(60)).await;
    assert_eq!(database.number("SELECT sum(conversion_value)::bigint FROM conversions").await, 20_000 * 20_001 / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_all_kinds_and_formats_arrive() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let mut database = Database::connect(up.line("postgres")).await;

    // Lines, some of them wrong. What is wrong is named by its line, and the rest arrives.
    let at = days_ago(400);
    let mut lines: Vec<String> = (0..3_000)
        .map(|number| {
            json!({"type": "engagement", "user_id": number, "timestamp": at, "name": "visit", "properties": {"number": number}})
                .to_string()
        })
        .collect();
    lines[10] = "{\"type\":".to_owned();
    lines[20] = String::new();
    lines[2_600] = json!({"type": "engagement", "user_id": "u", "name": "visit"}).to_string();
    lines[2_700] = json!({"type": "nonsense", "user_id": "u", "timestamp": at}).to_string();
    let file = write(&folder, "events.ndjson", &lines.join("\n"));
    let ended = import(&folder, &file, &[]).await;
    ended.expect(3, &["2,999", "2,996", "0", "3"]);
    assert!(ended.out.contains("events.ndjson.weir-rejected"), "{}", ended.out);
    let rejected = std::fs::read_to_string(beside(&file, ".weir-rejected")).expect("is there");
    let rejected: Vec<Value> = rejected.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let named: Vec<_> =
        rejected.iter().map(|line| (line["row"].as_u64().unwrap_or(0), line["code"].as_str().unwrap_or(""))).collect();
    assert_eq!(named, [(11, "invalid_json"), (2_601, "missing_timestamp"), (2_701, "unknown_type")]);
    assert!(rejected.iter().all(|line| line["message"].as_str().is_some_and(|message| message.len() > 10)), "{rejected:?}");
    database.until("SELECT count(*) FROM engagement_events", 2_996, IMPORT_MAX).await;
    assert_eq!(database.number("SELECT count(*) FROM engagement_events WHERE external_id = '2999'").await, 1);

    // A table with names of its own, and a map.
    let at = days_ago(3);
    let table = format!("uid;when;what;ctx\n7;{at};signup;\"{{\"\"plan\"\":{{\"\"name\"\":\"\"pro\"\"}}}}\"\n8;{at};signup;\n");
    let file = write(&folder, "signups.csv", &table);
    let map =
        json!({"user_id": "uid", "timestamp": "when", "name": "what", "properties": "ctx", "type": {"value": "conversion"}});
    let map = write(&folder, "map.json", &map.to_string());
    let map = map.display().to_string();
    import(&folder, &file, &["--map", &map]).await.expect(0, &["2", "2", "0", "0"]);
    database.until("SELECT count(*) FROM conversions WHERE conversion_type = 'signup'", 2, IMPORT_MAX).await;
    assert_eq!(database.number("SELECT count(*) FROM conversions WHERE metadata->'plan'->>'name' = 'pro'").await, 1);

    // An answer in Parquet is a file to import.
    let select = "SELECT 'conversion' AS type, external_id AS user_id, event_time AS timestamp, 'copied' AS name, \
                  CAST('12.50' AS DECIMAL(20, 6)) AS value, 'EUR' AS currency \
                  FROM events WHERE event = 'signup'";
    let mut command = weir();
    command.args(["sql", select, "--format", "parquet", "--data"]).arg(folder.path());
    let answer = run(command, IMPORT_MAX).await;
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let file = folder.path().join("copied.parquet");
    std::fs::write(&file, &answer.stdout).expect("written");
    import(&folder, &file, &[]).await.expect(0, &["2", "2", "0", "0"]);
    let copied = "SELECT count(*) FROM conversions c JOIN conversions s USING (user_id, event_time) \
                  WHERE c.conversion_type = 'copied' AND s.conversion_type = 'signup' AND c.conversion_value = 12.5";
    database.until(copied, 2, IMPORT_MAX).await;

    // Tables as an experiment platform keeps them.
    let (id, user) = ("6ba7b812-9dad-11d1-80b4-00c04fd430c8", "6ba7b812-9dad-11d1-80b4-00c04fd430c9");
    let table = format!(
        "id,user_id,variant_id,session_identifier,impression_at,experiment_id,page_url,country_code,device_type,time_on_page,bounce,\
         user_was_eligible,metadata,user_context\n\
         {id},{user},b,s-1,{at},checkout,https://shop.example/,DE,mobile,1200,f,t,\"{{\"\"a\"\":1}}\",{{}}\n"
    );
    let file = write(&folder, "impressions.csv", &table);
    import(&folder, &file, &["--dialect", "impressions"]).await.expect(0, &["1", "1", "0", "0"]);
    let stored = format!(
        "SELECT count(*) FROM impressions WHERE id = '{id}' AND user_id = '{user}' AND time_on_page = 1200 AND NOT bounce \
         AND user_was_eligible AND country_code = 'DE' AND metadata->>'a' = '1' AND variant_id IS NOT NULL"
    );
    database.until(&stored, 1, IMPORT_MAX).await;
    let table = format!(
        "id,user_id,variant_id,experiment_id,conversion_type,details,created_at,conversion_value,time_to_convert,\
         is_first_conversion_for_experiment\n{id},{user},b,checkout,order,\"{{\"\"sku\"\":\"\"x\"\"}}\",{at},19.90,60,true\n"
    );
    let file = write(&folder, "conversions.csv", &table);
    import(&folder, &file, &["--dialect", "conversions"]).await.expect(0, &["1", "1", "0", "0"]);
    let stored = format!(
        "SELECT count(*) FROM conversions WHERE id = '{id}' AND conversion_value = 19.90 AND time_to_convert = 60 \
         AND details->>'sku' = 'x' AND is_first_conversion_for_experiment"
    );
    database.until(&stored, 1, IMPORT_MAX).await;

    // Segment's calls go Segment's way.
    let calls = [
        json!({"type": "track", "event": "Order Completed", "userId": "alice", "messageId": "m-1", "timestamp": at,
               "properties": {"revenue": 12.5, "currency": "EUR"}}),
        json!({"type": "track", "event": "Experiment Viewed", "userId": "alice", "messageId": null, "timestamp": at,
               "properties": {"experiment_name": "pricing", "variation_name": "a"}}),
        json!({"type": "dance", "userId": "alice", "timestamp": at}),
        json!({"type": "identify", "userId": "alice", "timestamp": at, "traits": {"plan": "pro"}}),
    ];
    let calls: Vec<String> = calls.iter().map(Value::to_string).collect();
    let file = write(&folder, "segment.jsonl", &calls.join("\n"));
    let ended = import(&folder, &file, &["--dialect", "segment"]).await;
    ended.expect(3, &["4", "3", "0", "1"]);
    let rejected = std::fs::read_to_string(beside(&file, ".weir-rejected")).expect("is there");
    assert!(rejected.starts_with("{\"row\":3,") || rejected.contains("\"row\":3"), "{rejected}");
    database.until("SELECT count(*) FROM conversions WHERE conversion_type = 'Order Completed'", 1, IMPORT_MAX).await;
    database.until("SELECT count(*) FROM identity_events", 1, IMPORT_MAX).await;
    import(&folder, &file, &["--dialect", "segment"]).await.expect(3, &["4", "3", "0", "1"]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(database.number("SELECT count(*) FROM impressions").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_is_told() {
    let folder = Folder::new();
    let file = write(&folder, "history.csv", &conversions(10, 1));
    let missing = import(&folder, &file, &[]).await;
    assert_eq!(missing.code, Some(1));
    assert!(missing.said.contains("weir.json does not exist") && missing.said.contains("--key"), "{}", missing.said);

    let up = Up::start(&folder);
    let check = async |file: &Path, args: &[&str], expected: &str| {
        let ended = import(&folder, file, args).await;
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.said);
        assert!(ended.said.contains(expected), "{}", ended.said);
    };
    check(&folder.path().join("nothing.csv"), &[], "No such file").await;
    let url = up.line("collector").to_owned();
    check(&file, &["--collector", &url, "--key", "sk_wrong"], "give a server key with --key").await;
    check(&file, &["--dialect", "segment"], "Segment's calls are accepted as NDJSON").await;
    check(&file, &["--collector", "http://127.0.0.1:1", "--key", "k", "--patience", "0"], "no events accepted for").await;
    let map = write(&folder, "map.json", r#"{"user_id": 7}"#);
    check(&file, &["--map", &map.display().to_string()], "\"user_id\": found 7").await;
    // What was not complete goes on.
    import(&folder, &file, &[]).await.expect(0, &["10", "10", "0", "0"]);
}
