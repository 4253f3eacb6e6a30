//! Levels that ClickHouse's `windowFunnel` gives (see the README beside the cases in the file), asked of `window_funnel`.
//! `WEIR_GOLDEN_FUNNELS` names another file of the same format.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::AggregateUDF;
use datafusion::prelude::{SessionConfig, SessionContext};
use query::funnel::udaf::WindowFunnel;
use serde_json::Value;

/// User, time, event.
type Row = (String, i64, String);

fn file() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/funnels/cases.json");
    std::env::var_os("WEIR_GOLDEN_FUNNELS").map_or_else(own, PathBuf::from)
}

/// Returns the levels by user of rows that lie in the given partitions and batches.
async fn levels(partitions: &[Vec<Vec<Row>>], call: &str) -> Result<Vec<(String, i64)>, String> {
    let batch = |rows: &Vec<Row>| {
        let users: StringArray = rows.iter().map(|(user, ..)| Some(user.as_str())).collect();
        let times: Int64Array = rows.iter().map(|(_, time, _)| *time).collect();
        let events: StringArray = rows.iter().map(|(.., event)| Some(event.as_str())).collect();
        let columns: [(&str, ArrayRef); 3] = [("u", Arc::new(users)), ("t", Arc::new(times)), ("event", Arc::new(events))];
        RecordBatch::try_from_iter(columns).expect("a batch")
    };
    let schema = batch(&Vec::new()).schema();
    let partitions = partitions.iter().map(|batches| batches.iter().map(batch).collect()).collect();
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(2));
    context.register_udaf(AggregateUDF::from(WindowFunnel::default()));
    context.register_table("e", Arc::new(MemTable::try_new(schema, partitions).expect("a table"))).expect("registered");
    let frame =
        context.sql(&format!("SELECT u, {call} FROM e GROUP BY u ORDER BY u")).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for batch in frame.collect().await.map_err(|error| error.to_string())? {
        let users = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).expect("text");
        let levels = batch.column(1).as_primitive::<Int32Type>();
        found.extend(
            users
                .as_string::<i32>()
                .iter()
                .zip(levels.values())
                .map(|(user, level)| (user.unwrap_or_default().to_owned(), i64::from(*level))),
        );
    }
    Ok(found)
}

/// Returns what differs in one case.
async fn check(case: &Value) -> Result<(), String> {
    let quoted = |name: &Value| format!("'{}'", name.as_str().unwrap_or_default().replace('\'', "''"));
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let condition = |names: &Value| format!("event IN ({})", list(names).iter().map(quoted).collect::<Vec<_>>().join(", "));
    let conditions: Vec<String> = list(&case["steps"]).iter().map(condition).collect();
    let modes: Vec<Value> = list(&case["modes"]);
    let users = case["users"].as_object().ok_or("no users")?;
    let mut rows: Vec<Row> = Vec::new();
    for (user, events) in users {
        for event in list(events) {
            let time = event[0].as_i64().ok_or("no time")?;
            rows.push((user.clone(), time, event[1].as_str().ok_or("no event")?.to_owned()));
        }
    }
    let by_parity = |parity: usize| rows.iter().skip(parity).step_by(2).map(|row| vec![row.clone()]).rev().collect::<Vec<_>>();
    let splits: [(&str, Vec<Vec<Vec<Row>>>); 3] = [
        ("one row per batch", vec![rows.iter().map(|row| vec![row.clone()]).collect()]),
        ("all in one batch", vec![vec![rows.clone()]]),
        ("split in partitions", vec![by_parity(0), by_parity(1), vec![]]),
    ];
    for compatible in [true, false] {
        let mut expected: Vec<(String, i64)> = Vec::new();
        for user in users.keys() {
            let exact = case["exact"].get(user).filter(|_| !compatible);
            let level = exact.unwrap_or(&case["expected"][user]).as_i64().ok_or("no level")?;
            expected.push((user.clone(), level));
        }
        expected.sort();
        let mut all = modes.clone();
        all.extend(compatible.then(|| "compat_clickhouse".into()));
        let modes: String = all.iter().map(|mode| format!("{}, ", quoted(mode))).collect();
        let call = format!("window_funnel({}, {modes}t, {})", case["window"], conditions.join(", "));
        for (split, partitions) in &splits {
            let found = levels(partitions, &call).await?;
            if found != expected {
                return Err(format!("{call}, {split}: {found:?}, expected {expected:?}"));
            }
        }
    }
    Ok(())
}

#[tokio::test]
#[allow(clippy::print_stdout)] // How many passed is asked for.
async fn golden_funnels() {
    let file = file();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let content: Value = serde_json::from_str(&text).expect("JSON");
    let cases = content["cases"].as_array().expect("cases");
    let mut failed = Vec::new();
    for case in cases {
        if let Err(fault) = check(case).await {
            failed.push(format!("{}: {fault}", case["id"].as_str().unwrap_or("a case without id")));
        }
    }
    println!("golden_funnels: {} passed, {} failed of {}", cases.len() - failed.len(), failed.len(), file.display());
    assert!(failed.is_empty() && !cases.is_empty(), "{}", failed.join("\n"));
}
