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
    let reasons = rejected.iter().map(|line| line["weir_rejected"].as_str().unwrap_or(""));
    let expected = ["row 11: invalid_json: ", "row 2601: missing_timestamp: ", "row 2701: unknown_type: "];
    assert!(reasons.clone().zip(expected).all(|(reason, expected)| reason.starts_with(expected)), "{rejected:?}");
    assert_eq!(reasons.count(), 3);
    assert_eq!(rejected[0]["line"], "{\"type\":", "what is no JSON is kept as a text");
    assert_eq!((&rejected[1]["name"], &rejected[2]["type"]), (&json!("visit"), &json!("nonsense")), "rows are kept");
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
    assert!(rejected.starts_with("{\"type\":\"dance\"") || rejected.contains("\"type\":\"dance\""), "{rejected}");
    assert!(rejected.contains("\"weir_rejected\":\"row 3: ") && rejected.lines().count() == 1, "{rejected}");
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

/// Conversions that are stored, and the sum of their values in hundredths.
const STORED: &str = "SELECT count(*) FROM conversions";
const HUNDREDTHS: &str = "SELECT coalesce(sum(conversion_value * 100), 0)::bigint FROM conversions";

#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_grown_or_converted_file_brings_only_what_is_new() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let mut database = Database::connect(up.line("postgres")).await;
    let at = days_ago(2);
    let header = "type,user_id,timestamp,name,value,currency,note\r\n";
    let good = format!("conversion,u1,{at},purchase,5.00,EUR,\"a, b\"\r\n");
    let bad = format!("conversion,\"u2\",{at},purchase,\"19,90\",EUR,\"zwei\nZeilen\"\r\n");
    let file = write(&folder, "orders.csv", &format!("{header}{good}{bad}"));
    import(&folder, &file, &[]).await.expect(3, &["2", "1", "0", "1"]);

    // The refused row stands there as it was written, with its reason; corrected there and imported, it is stored.
    let rejected = beside(&file, ".weir-rejected");
    let text = std::fs::read_to_string(&rejected).expect("is there");
    let start = format!("type,user_id,timestamp,name,value,currency,note,weir_rejected\r\n{},\"row 2: ", bad.trim_end());
    assert!(text.starts_with(&start) && text.ends_with("\"\r\n"), "{text}");
    std::fs::write(&rejected, text.replace("\"19,90\"", "19.90")).expect("written");
    import(&folder, &rejected, &[]).await.expect(0, &["1", "1", "0", "0"]);
    database.until(STORED, 2, IMPORT_MAX).await;
    assert_eq!(database.number(HUNDREDTHS).await, 500 + 1990);

    // The whole file corrected; then one row more, twice the same; then saved otherwise: nothing is stored twice.
    let corrected = bad.replace("\"19,90\"", "19.90");
    std::fs::write(&file, format!("{header}{good}{corrected}")).expect("written");
    import(&folder, &file, &[]).await.expect(0, &["2", "2", "0", "0"]);
    std::fs::write(&file, format!("{header}{good}{corrected}{good}{good}")).expect("written");
    import(&folder, &file, &[]).await.expect(0, &["4", "4", "0", "0"]);
    database.until(STORED, 4, IMPORT_MAX).await;
    let semicolons = format!(
        "sep=;\nnote;Value; USER_ID ;type;timestamp;name;currency\na, b;5;u1;conversion;{at};purchase;EUR\n\
         \"zwei\nZeilen\";19,90;u2;conversion;{at};purchase;EUR\na, b;5,000;u1;conversion;{at};purchase;EUR\n"
    );
    let utf16: Vec<u8> =
        std::iter::once(0xfeff).chain(semicolons.encode_utf16()).flat_map(|unit: u16| unit.to_le_bytes()).collect();
    let other = folder.path().join("saved.csv");
    std::fs::write(&other, utf16).expect("written");
    import(&folder, &other, &["--decimal-comma"]).await.expect(0, &["3", "3", "0", "0"]);
    let row = |user: &str, value: Value, note: &str| {
        json!({"type": "conversion", "user_id": user, "timestamp": at, "name": "purchase", "value": value, "currency": "EUR",
               "note": note})
    };
    let array = json!([row("u1", json!(5), "a, b"), row("u2", json!("19.9"), "zwei\nZeilen"), 7, row("u1", json!(5.0), "a, b")]);
    let array_file = write(&folder, "orders.json", &serde_json::to_string_pretty(&array).expect("JSON"));
    import(&folder, &array_file, &[]).await.expect(3, &["4", "3", "0", "1"]);
    let kept = std::fs::read_to_string(beside(&array_file, ".weir-rejected")).expect("is there");
    assert!(kept.contains("row 3: invalid_json") && kept.contains("\"line\":\"7\""), "{kept}");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, format!("\u{feff}{header}{corrected}{good}").as_bytes()).expect("written");
    let zipped = folder.path().join("again.csv.gz");
    std::fs::write(&zipped, gzip.finish().expect("written")).expect("written");
    import(&folder, &zipped, &[]).await.expect(0, &["2", "2", "0", "0"]);

    // What is new arrives after all of these, so the others would have, too.
    std::fs::write(&file, format!("{header}conversion,u3,{at},purchase,1,EUR,\n")).expect("written");
    import(&folder, &file, &[]).await.expect(0, &["1", "1", "0", "0"]);
    database.until("SELECT count(*) FROM conversions WHERE external_id = 'u3'", 1, IMPORT_MAX).await;
    assert_eq!((database.number(STORED).await, database.number(HUNDREDTHS).await), (5, 3 * 500 + 1990 + 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_are_counted_over_an_interruption() {
    const ROWS: u64 = 40_000;
    let folder = Folder::new();
    let up = Up::start(&folder);
    let at = days_ago(2);
    // Each row four times, far apart; and now and then one that is refused.
    let mut text = "type,user_id,timestamp,name,value,currency\n".to_owned();
    for row in 0..ROWS {
        let value = if row % 4_000 == 3_999 { "\"1,5\"".to_owned() } else { (row % (ROWS / 4)).to_string() };
        writeln!(text, "conversion,u,{at},purchase,{value},EUR").expect("a text");
    }
    let file = write(&folder, "repeats.csv", &text);
    let mut command = importing(&folder, &file, &["--rate", "15000", "--in-flight", "3"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let noted = || -> Option<u64> {
        let noted: Value = serde_json::from_slice(&std::fs::read(beside(&file, ".weir-progress")).ok()?).ok()?;
        noted["last_row"].as_u64()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while noted().unwrap_or(0) < ROWS / 4 {
        assert!(Instant::now() < deadline && child.try_wait().expect("a child").is_none(), "it was over, or nothing is noted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().expect("it runs");
    child.wait().expect("a child of ours");
    assert!(noted().is_some_and(|row| row < ROWS), "it was over before");
    let ended = import(&folder, &file, &[]).await;
    ended.expect(3, &["40,000", "39,990", "0", "10"]);
    assert!(ended.said.contains("continues after "), "{}", ended.said);
    let rejected = std::fs::read_to_string(beside(&file, ".weir-rejected")).expect("is there");
    let rows: Vec<&str> = rejected.lines().collect();
    assert_eq!((rows.len(), rows[0]), (11, "type,user_id,timestamp,name,value,currency,weir_rejected"));
    for (place, row) in rows.iter().skip(1).enumerate() {
        let number = (place + 1) * 4_000;
        assert!(row.contains(&format!(",\"1,5\",EUR,\"row {number}: ")), "{row}");
    }
    let mut database = Database::connect(up.line("postgres")).await;
    database.until(STORED, 39_990, IMPORT_MAX).await;
    // The whole file once more says nothing new.
    import(&folder, &file, &["--restart"]).await.expect(3, &["40,000", "39,990", "0", "10"]);
    let last = write(&folder, "last.csv", &conversions(1, 1));
    import(&folder, &last, &[]).await.expect(0, &["1", "1", "0", "0"]);
    database.until("SELECT count(*) FROM conversions WHERE external_id = 'user-1'", 1, IMPORT_MAX).await;
    assert_eq!(database.number(STORED).await, 39_991);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_seems_to_be_is_said_once() {
    let folder = Folder::new();
    let _up = Up::start(&folder);
    let at = days_ago(1);
    let check = async |name: &str, bytes: &[u8], args: &[&str], expected: &[&str]| {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("written");
        let ended = import(&folder, &file, args).await;
        assert_eq!(ended.code, Some(1), "{name}: {}{}", ended.out, ended.said);
        assert!(expected.iter().all(|part| ended.said.contains(part)), "{name}: {}", ended.said);
        assert!(!ended.said.contains("run the same command again"), "{name}: {}", ended.said);
        assert!(!beside(&file, ".weir-rejected").exists() && !beside(&file, ".weir-progress").exists(), "{name}");
    };
    let header = "type,user_id,timestamp,name\n";
    let latin = [format!("{header}engagement,M").as_bytes(), b"\xfcller", format!(",{at},visit\n").as_bytes()].concat();
    check("latin.csv", &latin, &[], &["not UTF-8", "byte 40 (0xfc, in line 2)", "iconv -f WINDOWS-1252 -t UTF-8"]).await;
    check("book.csv", b"PK\x03\x04 and so on", &[], &["Excel", "CSV UTF-8"]).await;
    check("table.json", format!("{header}engagement,u,{at},visit\n").as_bytes(), &[], &["no JSON", "seems to be CSV"]).await;
    check("same.csv", b"timestamp,user_id, Timestamp\n", &[], &["\"timestamp\" and \" Timestamp\""]).await;
    check("timeless.csv", b"type,user_id,when\nengagement,u,now\n", &[], &["missing_timestamp", "\"when\"", "--map"]).await;
    let cut = format!("[{{\"type\":\"engagement\",\"user_id\":\"u\",\"name\":\"visit\",\"timestamp\":\"{at}\"}},\n{{\"type\"");
    check("cut.json", cut.as_bytes(), &[], &["element 2", "line 2", "not whole"]).await;
}
