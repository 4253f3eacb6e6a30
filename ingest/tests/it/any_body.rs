//! Whatever arrives at whichever address: no request is answered 500, and what is acknowledged can be read again.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::support::{Service, gzip, send};

/// A request like one that a real client sent.
#[derive(Clone, Debug)]
struct Sent {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// The recorded requests that have a key.
fn recorded() -> Vec<Sent> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/requests");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_file = |file: &std::path::PathBuf| {
        let case: Value = serde_json::from_str(&std::fs::read_to_string(file).expect("readable")).expect("JSON");
        let request = &case["request"];
        let headers = request["headers"].as_object().into_iter().flatten();
        let body = match &request["body"] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(lines) if request["lines"] == true => lines.iter().map(|line| text(line) + "\n").collect(),
            other => other.to_string(),
        };
        Sent {
            method: text(&request["method"]),
            target: text(&request["target"]),
            headers: headers.map(|(name, value)| (name.clone(), text(value))).collect(),
            body: body.into_bytes(),
        }
    };
    files.iter().map(of_file).filter(|sent| !sent.target.contains("no_such_key")).collect()
}

/// Pieces that parsers stumble over.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "\"",
        "\\",
        "\\u0000",
        "\\ud83c",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "NaN",
        "-Infinity",
        "1e400",
        "0x1",
        "\u{0}",
        "\u{e9}",
        "%00",
        "%ff",
        "&",
        "=",
        "data=",
        "{\"batch\":[",
        "\n",
        "[[[[[[[[[[[[[[[[[[[[",
        "18446744073709551616",
        "-0",
        "9e15",
    ];
    prop_oneof![
        3 => prop::sample::select(known.map(|text| text.as_bytes().to_vec()).to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ]
}

/// Cuts pieces out of bytes and puts others in.
fn changed(bytes: &[u8], changes: &[(prop::sample::Index, usize, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, length, new) in changes {
        let at = at.index(bytes.len() + 1);
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, new.iter().copied());
    }
    bytes
}

#[test]
fn no_request_is_answered_500() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let service = runtime.block_on(Service::start());
    let change = || prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, piece()), 0..4);
    let strategy = (prop::sample::select(recorded()), change(), change(), any::<bool>(), prop::bool::weighted(0.1));
    let mut runner = TestRunner::new(Config { cases: 600, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&strategy, |(sent, in_body, in_query, is_gzip, is_validated)| {
        let (path, query) = sent.target.split_once('?').unwrap_or((&sent.target, ""));
        let path = if is_validated && sent.method == "POST" { "/validate" } else { path };
        let query: String =
            changed(query.as_bytes(), &in_query)
                .iter()
                .map(|byte| {
                    if byte.is_ascii_graphic() && *byte != b'#' { char::from(*byte).to_string() } else { format!("%{byte:02X}") }
                })
                .collect();
        let mut body = changed(&sent.body, &in_body);
        if is_gzip && !body.is_empty() {
            body = gzip(&body);
        }
        let headers: Vec<(&str, &str)> = sent.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = runtime.block_on(send(service.address(), &sent.method, &format!("{path}?{query}"), &headers, &body));
        prop_assert_ne!(answer.status, 500, "{:?}", answer);
        Ok(())
    });
    assert!(outcome.is_ok(), "{outcome:?}");
    // Each is a record of ours.
    let (events, rejected) = (service.log.events().len(), service.log.rejected().len());
    assert!(events > 100 && rejected > 10, "{events} events and {rejected} rejected ones: changes keep some of both");
    let appended = runtime.block_on(service.counter("weir_collector_events_appended_total"));
    assert_eq!(appended, events as u64);
}
