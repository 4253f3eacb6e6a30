//! Results end to end: raw rows with published numbers go through the collector and come out of the HTTP answer.

use std::path::Path;
use std::process::Output;

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, send, weir};

/// Runs a command of the program on a data folder.
fn command(folder: &Folder, args: &[&str]) -> Output {
    weir().args(args).arg("--data").arg(folder.path()).output().expect("weir runs")
}

/// Runs one that is expected to work, and returns what it prints.
fn printed(folder: &Folder, args: &[&str]) -> String {
    let output = command(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Sends events as an import does: with the server key, so that they may be years old.
async fn import(up: &Up, events: &[Value]) {
    let url = format!("{}/v1/events", up.line("collector"));
    for batch in events.chunks(1_000) {
        let (status, answer) = send(Method::POST, &url, up.line("server_key"), Some(json!({ "events": batch })))
            .await
            .expect("the collector answers");
        assert_eq!((status, &answer["accepted"]), (200, &json!(batch.len())), "{answer}");
    }
}

/// Compares a number with what other software computed.
fn near(what: &str, found: &Value, expected: &Value) {
    let (Some(found), Some(expected)) = (found.as_f64(), expected.as_f64()) else {
        panic!("{what}: found {found}, expected {expected}")
    };
    assert!((found - expected).abs() <= (1e-8 * expected.abs()).max(1e-9), "{what}: found {found}, expected {expected}");
}

fn cases() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../query/testdata/statistics/rows.json");
    let text = std::fs::read_to_string(file).expect("the cases");
    let mut cases: Value = serde_json::from_str(&text).expect("JSON");
    cases["cases"].take().as_array().expect("cases").clone()
}

/// The events of one case. Users of different cases are different people.
fn events(case: &Value) -> Vec<Value> {
    let id = case["id"].as_str().expect("an id");
    let user = |row: &Value| format!("{id} {}", row[0].as_str().expect("a user"));
    let exposures =
        case["input"]["exposures"].as_array().expect("exposures").iter().map(
            |row| json!({"type": "impression", "user_id": user(row), "experiment": id, "variant": row[1], "timestamp": row[2]}),
        );
    let conversions =
        case["input"]["conversions"].as_array().expect("conversions").iter().map(
            |row| json!({"type": "conversion", "user_id": user(row), "name": "purchase", "value": row[2], "timestamp": row[1]}),
        );
    exposures.chain(conversions).collect()
}

/// Compares the answer about one case with its published numbers.
async fn check_case(up: &Up, case: &Value) {
    let id = case["id"].as_str().expect("an id");
    let settings = &case["input"]["settings"];
    let cap = settings.get("cap_percentile").map_or("off".to_owned(), Value::to_string);
    let population = if settings["multi_exposure"] == "first" { "first_exposure" } else { "exclude_multi" };
    let as_of = settings["analysis_at"].as_str().expect("a time");
    let url = format!(
        "{}/v1/experiments/{id}/results?as_of={as_of}&cap={cap}&population={population}&cuped=off&analysis=fixed",
        up.line("query")
    );
    let (status, answer) = send(Method::GET, &url, up.line("read_token"), None).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let expected = &case["expected"];
    let find = |list: &Value, member: &str, wanted: &Value| {
        let found = list.as_array().into_iter().flatten().find(|found| &found[member] == wanted);
        found.unwrap_or_else(|| panic!("{id}: no {wanted} in {list}")).clone()
    };
    let metric = |name: &str| find(&answer["metrics"], "id", &json!(name));
    let [rate, value, count] = ["conversion_rate", "value_per_user", "count_per_user"].map(metric);
    for (name, expected) in expected["variants"].as_object().expect("variants") {
        let variant = find(&answer["variants"], "name", &json!(name))["id"].clone();
        let arm = |metric: &Value| find(&metric["arms"], "variant_id", &variant);
        assert_eq!(arm(&rate)["users"], expected["users"], "{id} {name}");
        assert_eq!(arm(&rate)["numerator"], expected["converters"], "{id} {name}");
        assert_eq!(arm(&count)["numerator"], expected["conversions"], "{id} {name}");
        let (users, sum) = (expected["users"].as_f64().expect("users"), expected["value_sum"].as_f64().expect("a sum"));
        near(&format!("{id} {name} mean"), &arm(&value)["mean"], &json!(sum / users));
        let squares = expected["value_sum_squares"].as_f64().expect("a sum");
        let variance = (squares - sum * sum / users) / (users - 1.0);
        near(&format!("{id} {name} std_dev"), &arm(&value)["std_dev"], &json!(variance.sqrt()));
    }
    let multi = find(&answer["health"]["checks"], "id", &json!("multi_exposure"));
    assert_eq!(multi["users"], expected["multi_exposed_users"], "{id}");
    match expected["cap_value"].as_f64() {
        Some(cap) => {
            let found: f64 = value["cap"]["value"].as_str().and_then(|cap| cap.parse().ok()).expect("a cap");
            near(&format!("{id} cap"), &json!(found), &json!(cap));
        }
        None => assert_eq!(value["cap"], Value::Null, "{id}"),
    }
    for (name, metrics) in expected["comparisons_vs_control"].as_object().into_iter().flatten() {
        let variant = find(&answer["variants"], "name", &json!(name))["id"].clone();
        for (name, expected) in metrics.as_object().expect("metrics") {
            let found = find(&metric(name)["comparisons"], "variant_id", &variant);
            let relative = &found["relative"];
            near(&format!("{id} {name} lift"), &relative["lift"], &expected["estimate"]);
            near(&format!("{id} {name} low"), &relative["ci_delta"][0], &expected["ci_low"]);
            near(&format!("{id} {name} high"), &relative["ci_delta"][1], &expected["ci_high"]);
            near(&format!("{id} {name} p"), &relative["p_delta"], &expected["p_value"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_rows_with_published_numbers_give_these_numbers() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let cases = cases();
    assert!(cases.len() >= 3);
    let mut sent = 0;
    for case in &cases {
        let id = case["id"].as_str().expect("an id");
        let settings = &case["input"]["settings"];
        let window = settings["window_days"].to_string();
        let mut args = vec!["admin", "experiment", "create", id, "--conversion-window-days", &window, "--start"];
        args.extend(["--started-at", settings["started_at"].as_str().unwrap_or("2020-01-01T00:00:00Z")]);
        for variant in settings["variants"].as_array().expect("variants") {
            args.extend(["--variant", variant.as_str().expect("a name")]);
        }
        for metric in ["conversion_rate", "value_per_user", "count_per_user"] {
            args.extend(["--metric", metric]);
        }
        printed(&folder, &args);
        let events = events(case);
        // Last things first: what was first is a matter of time, not of arrival.
        import(&up, &events.iter().rev().cloned().collect::<Vec<_>>()).await;
        sent += events.len() as u64;
    }
    up.until_stored(sent).await;
    for case in &cases {
        check_case(&up, case).await;
    }
    // The same question has the same answer, byte for byte, but for when it was computed.
    let url = format!("{}/v1/experiments/d-rows-001/results?series=daily", up.line("query"));
    let mut answers = Vec::new();
    for _ in 0..2 {
        let (_, mut answer) = send(Method::GET, &url, up.line("read_token"), None).await.expect("an answer");
        assert!(answer["computed_at"].take().is_string());
        answers.push(answer.to_string());
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_declares_metrics_and_waits_for_a_decision() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let create = [
        "admin",
        "experiment",
        "create",
        "button",
        "--variant",
        "control:1:control",
        "--variant",
        "b:1",
        "--start",
        "--started-at",
        "2026-01-01T00:00:00Z",
        "--target-sample-size",
        "800",
    ];
    printed(&folder, &create);
    let metric = |args: &[&str]| printed(&folder, &[&["admin", "metric", "create", "button"], args].concat());
    metric(&["bought", "--conversion", "purchase", "--role", "primary"]);
    metric(&["order value", "--conversion", "purchase", "--aggregation", "ratio", "--denominator", "conversions"]);
    let listed =
        metric(&["cancelled", "--conversion", "cancel", "--role", "guardrail", "--direction", "decrease", "--margin", "0.5"]);
    assert!(listed.contains("value per conversion") && listed.contains("cancelled") && listed.contains("0.5"), "{listed}");
    let wrong = command(&folder, &["admin", "metric", "create", "button", "x", "--aggregation", "ratio"]);
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        !wrong.status.success() && said.contains("denominator: a ratio needs one; accepted: conversions, impressions"),
        "{said}"
    );

    let code = |args: &[&str]| command(&folder, &[&["results", "button", "--exit-code"], args].concat()).status.code();
    assert_eq!(code(&[]), Some(2), "nothing is known yet");
    let day = events::Micros::now().0 - 20 * events::Micros::SECOND * 86_400;
    let at = |minute: i64| events::Micros(day + minute * 60 * events::Micros::SECOND).to_string();
    let mut sent = Vec::new();
    for user in 0..800i64 {
        let (variant, share) = if user % 2 == 0 { ("control", 4) } else { ("b", 2) };
        let name = format!("user {user}");
        let time = at(user * 24);
        sent.push(json!({"type": "impression", "user_id": name, "experiment": "button", "variant": variant, "timestamp": time}));
        if user / 2 % share == 0 {
            sent.push(json!({"type": "conversion", "user_id": name, "name": "purchase", "value": format!("{}.50", user % 9), "currency": "EUR", "timestamp": at(user * 24 + 5)}));
        }
        if user / 2 % 10 == 1 {
            sent.push(json!({"type": "conversion", "user_id": name, "name": "cancel", "timestamp": at(user * 24 + 9)}));
        }
    }
    import(&up, &sent).await;
    up.until_stored(sent.len() as u64).await;
    // 25 % against 50 % of 400 each, and the planned size is there.
    assert_eq!(code(&[]), Some(0), "{}", printed(&folder, &["results", "button"]));
    assert_eq!(code(&["--baseline", "b"]), Some(1), "turned round it is a loss");
    assert_eq!(code(&["--baseline", "nobody"]), Some(3), "no answer is no decision");
    let shown = printed(&folder, &["results", "button", "--daily"]);
    for part in
        ["decision: ship-now b", "significantly better", "guardrail: b is", "analysis group_sequential", "interval at any time"]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    let page = printed(&folder, &["results", "button", "--format", "markdown", "--metrics", "bought"]);
    assert!(page.starts_with("# experiment button") && page.contains("| control \\* | 400 | 100 | 25.00 % |"), "{page}");
    let lines = printed(&folder, &["results", "button", "--format", "csv"]);
    assert_eq!(lines.lines().count(), 1 + 2 * 3, "{lines}");
    let power = printed(&folder, &["power", "button", "--effect", "0.2", "--users", "800"]);
    assert!(power.contains("25.00 % in the control") && power.contains("800 users could find an effect of"), "{power}");
}
