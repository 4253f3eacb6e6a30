//! Small experiments as raw rows, with what other software computed from them: measured and compared as every answer is.
//!
//! The cases lie beside those of `statistics`, or in the folder in `WEIR_GOLDEN_STATISTICS`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use query::experiment::measure::metrics::default_metrics;
use query::experiment::measure::metrics::{How, MeasuredMetric, measure};
use query::experiment::measure::population::Population;
use query::experiment::read::catalogue::{Aggregation, Configured};
use query::experiment::read::cohort::{Cohort, DAY_US, Row, Rows, Users};
use query::experiment::request::{CapRule, PopulationRule, Windows};
use serde_json::{Value, json};
use statistics::I256;
use statistics::comparison::difference;
use statistics::effect::{Alternative, Scale};
use statistics::moments::Moments;

fn time(value: &Value) -> i64 {
    let text = value.as_str().expect("a time");
    chrono::DateTime::parse_from_rfc3339(text).unwrap_or_else(|error| panic!("{text}: {error}")).timestamp_micros()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// Reads a decimal exactly, in millionths.
fn millionths(value: &Value) -> i128 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    format!("{whole}{fraction:0<6}").parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The cohort that the aggregator's tables would hold.
fn cohort(given: &Value) -> Cohort {
    let rules = &given["settings"];
    let names: Vec<&str> = list(&rules["variants"]).iter().map(text).collect();
    let end_of = |name: &str| Some(&rules[name]).filter(|at| at.is_string()).map(time);
    let (started, ended) = (end_of("started_at"), end_of("ended_at"));
    let mut exposures: Vec<(i64, &str, u32)> = list(&given["exposures"])
        .iter()
        .filter_map(|row| {
            let arm = names.iter().position(|name| *name == text(&row[1]))?;
            Some((time(&row[2]), text(&row[0]), arm as u32))
        })
        .filter(|(at, ..)| started.is_none_or(|start| *at >= start) && ended.is_none_or(|end| *at <= end))
        .collect();
    exposures.sort_by_key(|(at, ..)| *at);
    let (mut users, mut numbers) = (Users::default(), HashMap::new());
    for (at, user, arm) in exposures {
        let number = *numbers.entry(user).or_insert(users.len());
        if number == users.len() {
            users.ids.push((number as u128).to_be_bytes());
            users.arms.push(arm);
            users.exposed.push(at);
            users.is_mixed.push(false);
            users.impressions.push(0);
        }
        users.is_mixed[number] |= users.arms[number] != arm;
        users.impressions[number] += 1;
    }
    let until = time(&rules["analysis_at"]);
    let conversions = list(&given["conversions"]).iter().filter_map(|row| {
        let number = *numbers.get(text(&row[0]))?;
        let row = Row { time: time(&row[1]), value: Some(millionths(&row[2])), ..Row::default() };
        (row.time >= users.exposed[number] && row.time <= until).then_some((number as u32, row))
    });
    let after = Rows::new(users.len(), conversions.collect());
    let before = Rows::new(users.len(), Vec::new());
    Cohort { users, names: vec!["purchase".to_owned()], currencies: vec![None], after, before, ..Cohort::default() }
}

fn found(given: &Value) -> Value {
    let (rules, cohort) = (&given["settings"], cohort(given));
    let names: Vec<&str> = list(&rules["variants"]).iter().map(text).collect();
    let rule = if rules["multi_exposure"] == "first" { PopulationRule::FirstExposure } else { PopulationRule::ExcludeMulti };
    let windows = if rules["maturity"] == "complete_only" { Windows::Complete } else { Windows::All };
    let days = rules["window_days"].as_i64().expect("days");
    let now = time(&rules["analysis_at"]);
    let population = Population::by(&cohort, names.len(), now, (rule, windows), days * DAY_US);
    let cap = rules["cap_percentile"].as_f64().map_or(CapRule::Off, |at| CapRule::Percentile((at * 10_000.0).round() as u32));
    let how = How { currency: None, window_days: days as i32, cap, counted: (None, None) };
    let measured = |metric: Configured| measure(&population, metric, &[], &how).expect("fits");
    // By name: where all conversions are meant, a refund is none.
    let [rate, value] = default_metrics(Some("purchase"));
    let count = measured(Configured { aggregation: Aggregation::CountPerUser, ..value.clone() });
    let metrics = [("conversion_rate", measured(rate)), ("value_per_user", measured(value))];
    let values = &metrics[1].1;
    let unit = Moments::SCALE as f64;
    let variants: BTreeMap<&str, Value> = names
        .iter()
        .enumerate()
        .map(|(arm, name)| {
            let squares: I256 = values.sums[arm].amount.squares();
            let of_variant = json!({
                "users": values.sums[arm].users,
                "converters": values.sums[arm].converters,
                "conversions": count.sums[arm].amount.sum() / Moments::SCALE,
                "value_sum": values.sums[arm].amount.sum() as f64 / unit,
                "value_sum_squares": squares.to_string().parse::<f64>().expect("a number") / (unit * unit),
            });
            (*name, of_variant)
        })
        .collect();
    let compared: BTreeMap<&str, Value> = names
        .iter()
        .enumerate()
        .skip(1)
        .map(|(arm, name)| (*name, metrics.iter().map(|(metric, measured)| (*metric, effect(measured, arm))).collect()))
        .collect();
    json!({
        "variants": variants,
        "multi_exposed_users": population.multi_exposed(),
        "cap_value": values.cap.map(|cap| cap.amount as f64 / unit),
        "comparisons_vs_control": compared,
    })
}

fn effect(measured: &MeasuredMetric, arm: usize) -> Value {
    let found = difference(&measured.sampled[0].observed, &measured.sampled[arm].observed);
    let effect = found.and_then(|found| found.effect(Scale::Relative));
    let test = effect.ok().map(|effect| effect.test(Alternative::TwoSided, 0.05));
    json!({
        "status": effect.map_or_else(|undefined| undefined.status.as_str(), |_| "ok"),
        "estimate": effect.map_or_else(|undefined| undefined.lift, |effect| Some(effect.estimate)),
        "ci_low": test.and_then(|test| test.low),
        "ci_high": test.and_then(|test| test.high),
        "p_value": test.map(|test| test.p_value),
    })
}

/// Compares with what is expected, number by number. `field` names the tolerance: the innermost name that has one.
fn check(tolerance: &Value, field: &str, place: &str, found: &Value, expected: &Value) {
    match expected {
        Value::Object(members) => {
            for (name, expected) in members {
                let field = if tolerance[name].is_null() { field } else { name };
                check(tolerance, field, &format!("{place}.{name}"), &found[name], expected);
            }
        }
        Value::Number(number) => {
            let (found, expected) = (found.as_f64(), number.as_f64().expect("a number"));
            let accepted = if tolerance[field].is_null() { &tolerance["default"] } else { &tolerance[field] };
            let (relative, absolute) = (accepted["rel"].as_f64().expect("rel"), accepted["abs"].as_f64().expect("abs"));
            let is_near = found.is_some_and(|found| (found - expected).abs() <= absolute.max(relative * expected.abs()));
            assert!(is_near, "{place}: found {found:?}, expected {expected}");
        }
        _ => assert_eq!(found, expected, "{place}"),
    }
}

#[test]
fn raw_rows_come_to_what_other_software_computed() {
    let folder = match std::env::var_os("WEIR_GOLDEN_STATISTICS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/statistics/testdata"),
    };
    let family = std::fs::read_to_string(folder.join("rows.json")).expect("the cases");
    let family: Value = serde_json::from_str(&family).expect("JSON");
    let cases = list(&family["cases"]);
    assert!(!cases.is_empty());
    for case in cases {
        check(&case["tolerance"], "default", text(&case["id"]), &found(&case["input"]), &case["expected"]);
    }
}
