//! Twenty days of an experiment that is defined in a file, as they come: late senders, a split that changes twice, a pause, a variant that is added,
//! refunds, two currencies, robots, users of two variants, and a variant that breaks on day 9. `life.py` makes the events, and computes
//! what each day's answer has to be; `receiver.py` gets the webhooks.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, send, weir};

const FILE: &str = r#"
[experiments.player]
conversion_window_days = 7
currency = "EUR"

[experiments.player.variants]
control = { weight = 50, control = true }
b = { weight = 50 }

[experiments.player.metrics]
orders = { conversion = "order", role = "primary" }
revenue = { aggregation = "value_per_user" }
errors = { conversion = "error", role = "guardrail", direction = "decrease", margin = 0.5 }
"#;

/// The last event is delivered on this day.
const LAST_DAY: i64 = 32;
const DAY_MS: i64 = 86_400_000;

/// Runs `life.py`.
fn life(what: &str, day0_ms: i64, day: i64) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/life.py");
    let output = Command::new("python3").arg(script).args([what, &day0_ms.to_string(), &day.to_string()]).output();
    let output = output.expect("python3 runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A running `receiver.py`.
struct Receiver {
    child: Child,
    port: u16,
    got: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/receiver.py");
        let mut command = Command::new("python3");
        let mut child = command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let mut lines = BufReader::new(child.stdout.take().expect("was piped")).lines();
        let port = lines.next().and_then(Result::ok).and_then(|line| line.parse().ok()).expect("a port");
        let got: Arc<Mutex<Vec<Value>>> = Arc::default();
        let received = Arc::clone(&got);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                received.lock().expect("free").push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        Receiver { child, port, got }
    }

    fn believe(&mut self, secret: &str) {
        let stdin = self.child.stdin.as_mut().expect("was piped");
        writeln!(stdin, "{secret}").expect("it reads");
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Life {
    folder: Folder,
    up: Up,
    day0_ms: i64,
    sent: u64,
}

impl Life {
    fn start() -> Self {
        let folder = Folder::new();
        let up = Up::start(&folder);
        let today = events::Micros::now().0.div_euclid(DAY_MS * 1_000);
        Life { folder, up, day0_ms: (today - 40) * DAY_MS, sent: 0 }
    }

    /// Runs a command of operators that works, and returns what it prints.
    fn admin(&self, args: &[&str]) -> String {
        let output = weir().arg("admin").args(args).arg("--data").arg(self.folder.path()).output().expect("weir runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn time(&self, day: i64) -> String {
        events::Micros((self.day0_ms + day * DAY_MS) * 1_000).to_string()
    }

    /// What operators do on a day, and what is delivered on it.
    async fn day(&mut self, day: i64) {
        let at = self.time(day);
        match day {
            0 => drop(self.admin(&["experiment", "start", "player", "--from", &at])),
            6 => drop(self.admin(&["experiment", "weights", "player", "control:80", "b:20", "--from", &at])),
            10 => drop(self.admin(&["experiment", "pause", "player", "--from", &at])),
            11 => drop(self.admin(&["experiment", "start", "player", "--from", &at])),
            13 => drop(self.admin(&["experiment", "add-variant", "player", "c:25", "--from", &at])),
            16 => drop(self.admin(&["experiment", "weights", "player", "control:40", "b:40", "c:20", "--from", &at])),
            _ => {}
        }
        let lines = life("events", self.day0_ms, day);
        let events: Vec<Value> =
            lines.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let url = format!("{}/v1/events", self.up.line("collector"));
        for batch in events.chunks(500) {
            let body = json!({ "events": batch });
            let (status, answer) = send(Method::POST, &url, self.up.line("server_key"), Some(body)).await.expect("an answer");
            assert_eq!((status, &answer["accepted"]), (200, &json!(batch.len())), "{answer}");
        }
        self.sent += events.len() as u64;
        self.up.until_stored(self.sent).await;
    }

    async fn results(&self, query: &str) -> (u16, Value) {
        let url = format!("{}/v1/experiments/player/results?{query}", self.up.line("query"));
        send(Method::GET, &url, self.up.line("read_token"), None).await.expect("an answer")
    }

    /// Waits until a day is recorded.
    async fn recorded(&self, day: i64) {
        let date = self.time(day)[..10].to_owned();
        for _ in 0..600 {
            if self.results(&format!("as_decided={date}")).await.0 == 200 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("day {day} is not recorded: {:?}", self.results(&format!("as_decided={date}")).await);
    }
}

fn of<'a>(list: &'a Value, member: &str, wanted: &str) -> &'a Value {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().find(|one| one[member] == wanted).unwrap_or_else(|| panic!("no {wanted} in {list:?}"))
}

fn near(what: &str, found: &Value, expected: &Value) {
    let (Some(found), Some(expected)) = (found.as_f64(), expected.as_f64()) else {
        panic!("{what}: found {found}, expected {expected}")
    };
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{what}: found {found}, expected {expected}");
}

/// Compares an answer with what Python computed of the same events.
fn check(day: i64, answer: &Value, expected: &Value) {
    for (name, arm) in expected["arms"].as_object().expect("arms") {
        let variant = of(&answer["variants"], "name", name)["id"].as_str().expect("an id").to_owned();
        let metric = |id: &str| of(&answer["metrics"], "id", id);
        let of_arm = |id: &str| of(&metric(id)["arms"], "variant_id", &variant);
        let found = json!({
            "users": of_arm("orders")["users"], "orders": of_arm("orders")["numerator"], "errors": of_arm("errors")["numerator"],
            "revenue": of_arm("revenue")["sum"],
        });
        assert_eq!(found, *arm, "day {day}, {name}");
        let Some(comparisons) = expected["comparisons"].get(name) else { continue };
        for (id, expected) in comparisons.as_object().expect("metrics").iter().filter(|(_, expected)| !expected.is_null()) {
            let found = of(&metric(id)["comparisons"], "variant_id", &variant);
            near(&format!("day {day}, {id} of {name}"), &found["absolute"]["estimate"], &expected["estimate"]);
            // Where only exact methods apply there is none.
            if !found["absolute"]["std_error"].is_null() {
                near(&format!("day {day}, {id} of {name}"), &found["absolute"]["std_error"], &expected["std_error"]);
            }
        }
    }
    let srm = of(&answer["health"]["checks"], "id", "srm");
    near(&format!("day {day}, srm"), &srm["statistic"], &expected["srm"]["statistic"]);
    assert_eq!(srm["dof"], expected["srm"]["dof"], "day {day}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_day_is_right_and_what_breaks_is_told_when_it_breaks() {
    let mut life_of = Life::start();
    let file = life_of.folder.path().join("experiments.toml");
    std::fs::write(&file, FILE).expect("a file");
    life_of.admin(&["apply", file.to_str().expect("UTF-8")]);
    let mut receiver = Receiver::start();
    let added = life_of.admin(&["webhook", "add", &format!("http://127.0.0.1:{}/", receiver.port)]);
    receiver.believe(added.lines().find_map(|line| line.strip_prefix("secret ")).expect("a secret"));
    for day in 0..=LAST_DAY {
        life_of.day(day).await;
        // What is recorded is what is known then.
        if (1..=20).contains(&day) {
            life_of.recorded(day - 1).await;
        }
    }
    for day in 0..20 {
        let as_of = events::Micros((life_of.day0_ms + (day + 1) * DAY_MS) * 1_000 - 1).to_string();
        let query = format!("as_of={as_of}&analysis=fixed&cap=off&cuped=off&population=exclude_multi");
        let (status, answer) = life_of.results(&query).await;
        assert_eq!(status, 200, "{answer}");
        let expected = serde_json::from_str(&life("expected", life_of.day0_ms, day)).expect("JSON");
        check(day, &answer, &expected);
    }

    // All that was to be told has arrived; what is told of days that are being evaluated still comes.
    let mut attempts = 0;
    let got = loop {
        let got = receiver.got.lock().expect("free").clone();
        let listed = life_of.admin(&["webhook", "list", "--format", "json"]);
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let states = ["delivered", "waiting", "failed"].map(|state| listed[0][state].clone());
        if states == [json!(got.len()), json!(0), json!(0)] {
            break got;
        }
        attempts += 1;
        assert!(attempts < 100, "{listed} and {got:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert!(got.iter().all(|request| request["is_right"] == true), "a signature is wrong: {got:?}");
    let told: Vec<(String, String)> = got
        .iter()
        .map(|request| (request["body"]["type"].clone(), request["body"]["data"]["as_of"].clone()))
        .map(|(kind, as_of)| (kind.as_str().unwrap_or("-").to_owned(), as_of.as_str().unwrap_or("-").to_owned()))
        .collect();
    let (broke, next) = (life_of.time(9), life_of.time(11));
    // That 3 % of the users saw several variants takes the same part of both, and nothing from what is decided.
    let is_alarm = |kind: &str| {
        ["weir.guardrail_harmed", "weir.verdict_changed", "weir.decision_changed", "weir.sample_ratio_mismatch"].contains(&kind)
    };
    let early: Vec<_> = told.iter().filter(|(kind, as_of)| is_alarm(kind) && *as_of < broke).collect();
    assert!(early.is_empty(), "nothing was wrong before {broke}: {got:#?}");
    let harm = told.iter().find(|(kind, _)| kind == "weir.guardrail_harmed");
    assert!(harm.is_some_and(|(_, as_of)| *as_of < next), "b broke on {broke}: {told:?}");
    let of_b = got.iter().find(|request| request["body"]["type"] == "weir.guardrail_harmed").expect("told");
    assert_eq!((&of_b["body"]["data"]["metric"], &of_b["body"]["data"]["variant"]), (&json!("errors"), &json!("b")));

    // Late events changed what was known of days; what was known then is still there.
    let first = life_of.time(3)[..10].to_owned();
    let output = weir().args(["results", "player", "--as-decided", &first, "--data"]).arg(life_of.folder.path()).output();
    let output = output.expect("weir runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("recorded at") && text.contains("late events changed it"), "{text}");
    let recomputed = life_of.admin(&["recompute", "player"]);
    assert!(recomputed.contains("nothing differed"), "{recomputed}");
}
