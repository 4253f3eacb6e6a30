//! Cases whose results were computed by other software: every field that a case expects must come out of the public
//! functions of `statistics`, within the case's own tolerance.
//!
//! Reads `testdata`, or the folder in `WEIR_GOLDEN_STATISTICS`, which must be of the same format.

mod effects;
mod input;
mod others;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What became of a case.
enum Outcome {
    Passed,
    /// Each field that differs, in words.
    Failed(Vec<String>),
    /// No function answers its method.
    Unsupported,
}

fn folder() -> PathBuf {
    match std::env::var_os("WEIR_GOLDEN_STATISTICS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata"),
    }
}

fn answer(method: &str, input: &Value) -> Option<Value> {
    effects::answer(method, input).or_else(|| others::answer(method, input))
}

fn run(case: &Value) -> Outcome {
    let method = case["method"].as_str().expect("a method");
    let started = std::time::Instant::now();
    // A case that breaks a function hides no other one.
    let got = match std::panic::catch_unwind(|| answer(method, &case["input"])) {
        Ok(Some(got)) => got,
        Ok(None) => return Outcome::Unsupported,
        Err(_) => return Outcome::Failed(vec!["panicked, as reported above".to_owned()]),
    };
    let mut faults = Vec::new();
    // The contract gives the distribution functions a second, and nothing else needs more.
    if started.elapsed().as_secs_f64() > 1.0 {
        faults.push(format!("took {:?}, 1 s is accepted", started.elapsed()));
    }
    for (field, expected) in case["expected"].as_object().expect("expected fields") {
        check(&case["tolerance"], field, field, got.get(field), expected, &mut faults);
    }
    for (field, expected) in case["expected_optional"].as_object().into_iter().flatten() {
        if let Some(found) = got.get(field) {
            check(&case["tolerance"], field, field, Some(found), expected, &mut faults);
        }
    }
    if faults.is_empty() { Outcome::Passed } else { Outcome::Failed(faults) }
}

/// Compares what was found at `place` with what is expected there, element by element. `field` names the tolerance.
fn check(tolerance: &Value, field: &str, place: &str, got: Option<&Value>, expected: &Value, faults: &mut Vec<String>) {
    let Some(got) = got else {
        faults.push(format!("{place}: no such field, expected {expected}"));
        return;
    };
    match (got, expected) {
        (Value::Array(got), Value::Array(expected)) if got.len() == expected.len() => {
            for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
                check(tolerance, field, &format!("{place}[{index}]"), Some(got), expected, faults);
            }
        }
        (Value::Object(got), Value::Object(expected)) => {
            for (name, expected) in expected {
                // The innermost name that has a tolerance of its own gives it.
                let field = if tolerance[name].is_null() { field } else { name };
                check(tolerance, field, &format!("{place}.{name}"), got.get(name), expected, faults);
            }
        }
        (Value::Number(got), Value::Number(expected)) => {
            let (got, expected) = (got.as_f64().expect("a number"), expected.as_f64().expect("a number"));
            let accepted = if tolerance[field].is_null() { &tolerance["default"] } else { &tolerance[field] };
            let (relative, absolute) = (accepted["rel"].as_f64().expect("rel"), accepted["abs"].as_f64().expect("abs"));
            if (got - expected).abs() > absolute.max(relative * expected.abs()) {
                faults.push(format!("{place}: {got:e}, expected {expected:e}"));
            }
        }
        _ if got == expected => {}
        _ => faults.push(format!("{place}: {got}, expected {expected}")),
    }
}

#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
    unsupported: usize,
}

#[test]
fn golden_statistics() {
    let folder = folder();
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    let mut counts: BTreeMap<(String, bool), Count> = BTreeMap::new();
    let mut faults = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        let family: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let name = family["family"].as_str().expect("a family");
        // Raw rows are measured by the query service, whose tests hold these cases.
        if name == "rows" {
            continue;
        }
        let cases = family["cases"].as_array().expect("a list of cases");
        assert_eq!(family["case_count"].as_u64(), Some(cases.len() as u64), "{}", file.display());
        for case in cases {
            let is_required = case["required"].as_bool().expect("whether it is required");
            let count = counts.entry((name.to_owned(), is_required)).or_default();
            let id = case["id"].as_str().expect("an id");
            match run(case) {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed(fields) => {
                    count.failed += 1;
                    faults.extend(fields.iter().map(|field| format!("{id} ({}): {field}", case["method"])));
                }
                Outcome::Unsupported => {
                    count.unsupported += 1;
                    if is_required {
                        faults.push(format!("{id}: no function answers {}", case["method"]));
                    }
                }
            }
        }
    }
    report(&counts);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[expect(clippy::print_stdout, reason = "the counts are the result that the test is read for")]
fn report(counts: &BTreeMap<(String, bool), Count>) {
    println!("passed/failed/unsupported");
    for ((family, is_required), count) in counts {
        let kind = if *is_required { "required" } else { "optional" };
        println!("{family:<16} {kind}  {}/{}/{}", count.passed, count.failed, count.unsupported);
    }
    for is_required in [true, false] {
        let of = |pick: fn(&Count) -> usize| {
            counts.iter().filter(|((_, kind), _)| *kind == is_required).map(|(_, count)| pick(count)).sum::<usize>()
        };
        let kind = if is_required { "required" } else { "optional" };
        println!("all {kind}: {}/{}/{}", of(|c| c.passed), of(|c| c.failed), of(|c| c.unsupported));
    }
}
