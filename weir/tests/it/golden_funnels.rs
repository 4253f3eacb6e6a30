//! The levels that ClickHouse's `windowFunnel` gives (`query/testdata/funnels`, or the file that `WEIR_GOLDEN_FUNNELS` names), through the
//! whole path: events go to the collector, and the answers come from `POST /v1/funnels`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use hyper::Method;
use serde_json::{Value, json};

use crate::harness::{Folder, Up, send};

/// Events of one request.
const BATCH: usize = 500;

fn file() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../query/testdata/funnels/cases.json");
    std::env::var_os("WEIR_GOLDEN_FUNNELS").map_or_else(own, PathBuf::from)
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// Names and users of a case are its own, so that all cases lie in one project.
fn own(case: &Value, name: &Value) -> String {
    format!("{}.{}", case["id"].as_str().expect("an id"), name.as_str().expect("a name"))
}

/// The events of a case, a unit of its time being a microsecond.
fn events(case: &Value, base: events::Micros) -> Vec<Value> {
    let users = case["users"].as_object().expect("users");
    let times = users.values().flat_map(list).map(|event| event[0].as_i64().expect("a time"));
    let first = times.min().unwrap_or_default();
    let mut sent = Vec::new();
    for (user, events) in users {
        for event in list(events) {
            let time = events::Micros(base.0 + event[0].as_i64().expect("a time") - first);
            sent.push(json!({
                "type": "engagement", "event_id": uuid::Uuid::new_v4().to_string(), "user_id": own(case, &json!(user)),
                "timestamp": time.to_string(), "name": own(case, &event[1]),
            }));
        }
    }
    sent
}

/// Asks how far the users of a case get, and returns what differs.
async fn check(up: &Up, case: &Value, is_compatible: bool, ids: &BTreeMap<String, String>) -> Result<(), String> {
    let steps = list(&case["steps"]);
    let has = |mode: &str| list(&case["modes"]).iter().any(|other| other == mode);
    let named = |(index, names): (usize, &Value)| {
        let names: Vec<String> = list(names).iter().map(|name| own(case, name)).collect();
        json!({"name": format!("step {}", index + 1), "events": names})
    };
    let mut output = vec!["steps".to_owned()];
    output.extend((1..=steps.len()).map(|step| format!("units:reached:{step}")));
    let body = json!({
        "preset": "clickhouse", "compat_clickhouse": is_compatible, "steps": steps.iter().enumerate().map(named).collect::<Vec<_>>(),
        "window": case["window"], "order": if has("strict_order") { "strict_order" } else { "loose" },
        "event_reuse": if has("strict_once") { "once" } else { "allowed" }, "strict_increase": has("strict_increase"),
        "strict_deduplication": has("strict_deduplication"), "allow_reentry": has("allow_reentry"), "output": output,
    });
    let url = format!("{}/v1/funnels", up.line("query"));
    let (status, answer) = send(Method::POST, &url, up.line("read_token"), Some(body.clone())).await?;
    if status != 200 {
        return Err(format!("{status} {answer} to {body}"));
    }
    for step in 1..=steps.len() {
        let mut expected = BTreeSet::new();
        for user in case["users"].as_object().expect("users").keys() {
            let level = case["exact"].get(user).filter(|_| !is_compatible).unwrap_or(&case["expected"][user]);
            if level.as_u64().ok_or("no level")? >= step as u64 {
                expected.insert(ids.get(&own(case, &json!(user))).ok_or("a user without events")?.as_str());
            }
        }
        let group = &answer["groups"][0];
        let found: BTreeSet<&str> =
            group["units"][format!("reached:{step}")].as_array().ok_or("no list")?.iter().filter_map(Value::as_str).collect();
        let units = group["steps"][step - 1]["units"].as_u64();
        if found != expected || units != Some(expected.len() as u64) {
            return Err(format!("step {step}: {units:?} units, {found:?}, expected {expected:?}; {body}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout)] // How many passed is asked for.
async fn golden_funnels_through_the_collector() {
    let file = file();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let cases = list(&serde_json::from_str::<Value>(&text).expect("JSON")["cases"]);
    let folder = Folder::new();
    let up = Up::start(&folder);
    let base = events::Micros(events::Micros::now().0 - 2 * events::Micros::DAY);
    let sent: Vec<Value> = cases.iter().flat_map(|case| events(case, base)).collect();
    for batch in sent.chunks(BATCH) {
        up.accepted(batch.to_vec()).await;
    }
    up.until_stored(sent.len() as u64).await;
    let rows = up.sql("SELECT DISTINCT external_id, user_id FROM events").await.expect("rows");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let ids: BTreeMap<String, String> = rows.iter().map(|row| (text(&row[0]), text(&row[1]))).collect();
    let mut failed = Vec::new();
    for case in &cases {
        for is_compatible in [true, false] {
            if let Err(fault) = check(&up, case, is_compatible, &ids).await {
                failed.push(format!("{}, compatible: {is_compatible}: {fault}", case["id"]));
                break;
            }
        }
    }
    println!("golden_funnels through HTTP: {} passed, {} failed of {}", cases.len() - failed.len(), failed.len(), file.display());
    assert!(failed.is_empty() && !cases.is_empty(), "{}", failed.join("\n"));
}
