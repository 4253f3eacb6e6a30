//! Results end to end: raw rows with published numbers go through the collector and come out of the HTTP answer.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, send, weir};
use crate::support::{Database, page};

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
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/statistics/testdata/rows.json");
    let text = std::fs::read_to_string(file).expect("the cases");
    let mut cases: Value = serde_json::from_str(&text).expect("JSON");
    cases["cases"].take().as_array().expect("cases").clone()
}

/// Has views of pages expose users to an experiment: their property says the variant.
fn expose_by_pages(folder: &Folder, experiment: &str) {
    let definition = json!({"any_of": [{"kind": "engagement", "events": ["page"], "where": {"plan": ["pro", 1]},
                                        "variant": {"property": "arm of {experiment}"}}]});
    printed(folder, &["admin", "exposure", "define", "pages", &definition.to_string()]);
    printed(folder, &["admin", "experiment", "exposure", experiment, "pages"]);
}

/// Makes the view of a page of an impression.
fn as_page(impression: Value) -> Value {
    let property = format!("arm of {}", impression["experiment"].as_str().expect("an experiment"));
    let mut page = json!({"type": "engagement", "name": "page", "user_id": impression["user_id"], "timestamp": impression["timestamp"],
                          "properties": {property: impression["variant"], "plan": 1}});
    if let Some(country) = impression.get("country") {
        page["country"] = country.clone();
    }
    page
}

/// The events of one case, whose experiment has this name. Users of different experiments are different people.
fn events(case: &Value, id: &str) -> Vec<Value> {
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
async fn check_case(up: &Up, case: &Value, id: &str) {
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
    let metric = |name: &str| find(&answer["metrics"], "id", &json!(format!("purchase.{name}")));
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
    // Each twice: exposed by impressions, and by views of pages.
    let named = |case: &Value| {
        let id = case["id"].as_str().expect("an id").to_owned();
        [(format!("{id}-pages"), true), (id, false)]
    };
    for (case, (id, by_pages)) in cases.iter().flat_map(|case| named(case).map(|named| (case, named))) {
        let settings = &case["input"]["settings"];
        let window = settings["window_days"].to_string();
        let mut args = vec!["admin", "experiment", "create", &id, "--conversion-window-days", &window, "--start"];
        args.extend(["--started-at", settings["started_at"].as_str().unwrap_or("2020-01-01T00:00:00Z")]);
        for variant in settings["variants"].as_array().expect("variants") {
            args.extend(["--variant", variant.as_str().expect("a name")]);
        }
        // By name: where all conversions are meant, one with a negative value is none.
        for metric in ["purchase.conversion_rate", "purchase.value_per_user", "purchase.count_per_user"] {
            args.extend(["--metric", metric]);
        }
        printed(&folder, &args);
        let mut events = events(case, &id);
        if by_pages {
            expose_by_pages(&folder, &id);
            let paged = |event: Value| if event["type"] == "impression" { as_page(event) } else { event };
            events = events.into_iter().map(paged).collect();
        }
        // Last things first: what was first is a matter of time, not of arrival.
        import(&up, &events.iter().rev().cloned().collect::<Vec<_>>()).await;
        sent += events.len() as u64;
    }
    up.until_stored(sent).await;
    for (case, (id, _)) in cases.iter().flat_map(|case| named(case).map(|named| (case, named))) {
        check_case(&up, case, &id).await;
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

/// One of everything that changes what was known of users before.
fn steps() -> Vec<Vec<Value>> {
    let now = events::Micros::now().0;
    let at = |minutes: i64| events::Micros(now - 10 * events::Micros::DAY + minutes * 60 * events::Micros::SECOND).to_string();
    let seen = |user: usize, variant: &str, country: &str, minutes: i64| {
        json!({"type": "impression", "user_id": format!("user-{user}"), "experiment": "followed", "variant": variant,
               "country": country, "timestamp": at(minutes)})
    };
    let bought = |user: usize, name: &str, value: i64, currency: &str, minutes: i64| {
        json!({"type": "conversion", "user_id": format!("user-{user}"), "name": name, "value": value.to_string(),
               "currency": currency, "timestamp": at(minutes)})
    };
    let arm = |user: usize| if user.is_multiple_of(2) { "control" } else { "b" };
    let first = (0..300)
        .flat_map(|user| {
            let mut events = vec![seen(user, arm(user), ["DE", "AT"][user / 2 % 2], 1_000 + user as i64)];
            if user % 3 == 0 {
                events.push(bought(user, "purchase", 10 + user as i64 % 7, "EUR", 2_000 + user as i64));
            }
            if user % 5 == 0 {
                events.push(bought(user, "purchase", 3, "EUR", 500));
            }
            events
        })
        .collect();
    vec![
        first,
        // New users, and second conversions with a name that sorts first.
        (300..330)
            .map(|user| seen(user, arm(user), "CH", 1_500))
            .chain((0..9).map(|user| bought(user, "add", 1, "EUR", 3_000)))
            .collect(),
        // Refunds, values in another currency, and users who now saw both variants.
        (0..9)
            .map(|user| bought(3 * user, "purchase", -5, "EUR", 4_000))
            .chain((9..12).map(|user| bought(user, "purchase", 8, "USD", 4_000)))
            .chain((20..24).map(|user| seen(user, arm(user + 1), "DE", 1_900)))
            .collect(),
        // First exposures that come last: other variant, other country; and what was bought before anybody was seen.
        (40..46)
            .map(|user| seen(user, arm(user + 1), "FR", 100))
            .chain((50..56).map(|user| bought(user, "purchase", 4, "EUR", 300)))
            .chain((400..403).map(|user| bought(user, "purchase", 4, "EUR", 300)))
            .collect(),
        // Users of whom only conversions were known.
        (400..403).map(|user| seen(user, arm(user), "AT", 1_000)).collect(),
        // Users who have too many rows now and take part no longer: by what they bought, and by what they saw of another experiment.
        (0..ROWS_MAX).map(|minute| bought(60, "purchase", 1, "EUR", 3_000 + minute)).collect(),
        (0..ROWS_MAX).map(|minute| in_experiment(seen(61, arm(61), "DE", 3_000 + minute), "another")).collect(),
        // And by what they saw of this one, of which too much is a bound of its own where other events expose.
        (0..ROWS_MAX).map(|minute| seen(62, arm(62), "DE", 3_000 + minute)).collect(),
        (300..330).map(|user| bought(user, "purchase", 2, "EUR", 5_000)).collect(),
    ]
}

/// How many rows of a user take part.
const ROWS_MAX: i64 = 40;
/// Of the steps, those after which everybody is read.
const READ_AGAIN: usize = 3;

fn in_experiment(mut event: Value, experiment: &str) -> Value {
    event["experiment"] = json!(experiment);
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_follow_new_events_are_those_of_a_service_that_reads_everything() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    check_followed(&up, |event| event).await;
}

/// The same where users are exposed by views of pages.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_follow_exposures_by_other_events_are_those_of_a_service_that_reads_everything() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let started = ["--start", "--started-at", "2020-01-01T00:00:00Z"];
    let create = ["admin", "experiment", "create", "followed", "--variant", "control", "--variant", "b"];
    printed(&folder, &[&create[..], &started].concat());
    expose_by_pages(&folder, "followed");
    check_followed(&up, |event| if event["experiment"] == "followed" { as_page(event) } else { event }).await;
}

async fn check_followed(up: &Up, sent_as: impl Fn(Value) -> Value) {
    let questions = ["", "?dimension=country&series=daily", "?cuped=off&population=first_exposure&baseline=b"];
    let ask = async |query: &str, question: &str| {
        let url = format!("{query}/v1/experiments/followed/results{question}");
        let (status, mut answer) = send(Method::GET, &url, up.line("read_token"), None).await.expect("an answer");
        assert_eq!(status, 200, "{answer}");
        assert!(answer["computed_at"].take().is_string());
        answer
    };
    Database::connect(up.line("postgres")).await.execute(&format!("UPDATE user_rows_limit SET rows_max = {ROWS_MAX}")).await;
    let mut sent = 0;
    for (step, events) in steps().into_iter().enumerate() {
        sent += events.len() as u64;
        import(up, &events.into_iter().map(&sent_as).collect::<Vec<_>>()).await;
        up.until_stored(sent).await;
        let mut command = weir();
        command.args(["query", "--query", "127.0.0.1:0", "--until-stdin-closes", "--database-url", up.line("postgres")]);
        let mut fresh = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
        let mut line = String::new();
        BufReader::new(fresh.stdout.take().expect("was piped")).read_line(&mut line).expect("a line");
        let reader = line.trim().strip_prefix("query ").unwrap_or_else(|| panic!("{line:?}"));
        for question in questions {
            let (followed, read) = (ask(up.line("query"), question).await, ask(reader, question).await);
            assert!(followed["population"]["exposed_users"].as_u64().is_some_and(|users| users >= 300), "{followed}");
            assert_eq!(followed, read, "step {step}, {question:?}");
        }
        drop(fresh.stdin.take());
        fresh.wait().expect("a child of ours");
    }
    let (_, metrics) = page(&format!("{}/metrics", up.line("query"))).await;
    let followed = metrics.lines().find_map(|line| line.strip_prefix("weir_query_cohorts_total{way=\"followed\"} "));
    let expected = (steps().len() - 1 - READ_AGAIN) * questions.len();
    // Records are made beside, of cohorts that follow, too.
    let followed = followed.and_then(|count| count.parse::<usize>().ok());
    assert!(followed.is_some_and(|followed| followed >= expected), "{expected} were expected: {metrics}");
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

/// A stop, a pause and another split, with users who come meanwhile: over the command line, the collector and the aggregator to the answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pause_left_out_stays_out_and_a_split_may_change() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    let admin = |args: &[&str]| printed(&folder, &[&["admin", "experiment"], args].concat());
    admin(&["create", "button", "--variant", "control:1:control", "--variant", "b:1", "--start"]);
    let mut came = 0;
    let mut come = async |control: usize, b: usize| {
        let variants = std::iter::repeat_n("control", control).chain(std::iter::repeat_n("b", b));
        let now = events::Micros::now().to_string();
        let events: Vec<Value> = variants
            .enumerate()
            .map(|(place, variant)| {
                json!({"type": "impression", "user_id": format!("user-{}", came + place), "experiment": "button",
                       "variant": variant, "timestamp": now})
            })
            .collect();
        came += events.len();
        up.accepted(events).await;
        up.until_stored(came as u64).await;
    };
    let users = async || {
        let url = format!("{}/v1/experiments/button/results", up.line("query"));
        let (status, answer) = send(Method::GET, &url, up.line("read_token"), None).await.expect("an answer");
        assert_eq!(status, 200, "{answer}");
        let checks = answer["health"]["checks"].as_array().expect("checks");
        let srm = checks.iter().find(|check| check["id"] == "srm").expect("is checked").clone();
        (answer["population"]["exposed_users"].as_u64().expect("a number"), srm)
    };
    come(100, 100).await;
    for way in ["stop", "pause"] {
        let ended = admin(&[way, "button"]);
        assert!(ended.contains(if way == "stop" { "is completed" } else { "is paused" }), "{ended}");
        come(60, 0).await;
        assert_eq!(users().await.0, 200, "{way}");
        admin(&["start", "button"]);
        let (exposed, srm) = users().await;
        assert_eq!((exposed, &srm["p_value"]), (200, &json!(1.0)), "{way} {srm}");
    }
    let shown = admin(&["weights", "button", "control:3", "b:1"]);
    assert!(shown.contains("paused") && shown.contains("b:1 control:3"), "{shown}");
    come(300, 100).await;
    let (exposed, srm) = users().await;
    assert_eq!((exposed, &srm["level"], &srm["p_value"]), (600, &json!("ok"), &json!(1.0)), "{srm}");
    assert_eq!((&srm["strata"][0]["users"], &srm["strata"][1]["users"]), (&json!([100, 100]), &json!([300, 100])), "{srm}");
    assert!(printed(&folder, &["admin", "recompute", "button"]).contains("computed again, nothing differed"));
}
