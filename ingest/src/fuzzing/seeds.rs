//! Inputs to begin with: what real clients sent, cases of clients that send something odd, and what earlier runs found worth keeping.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde_json::Value;

use super::{Target, folder};

/// What parsers stumble over, as JSON has it and as queries have it.
const ODD: [&str; 44] = [
    "\"",
    "\\",
    "\\u0000",
    "\\ud83c",
    "\\udf89",
    "\\\\u0000",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "{}",
    "[]",
    "null",
    "true",
    "NaN",
    "-Infinity",
    "1e400",
    "1e-400",
    "-0",
    "0x1",
    "9007199254740993",
    "18446744073709551616",
    "183.60000000000002",
    "0.1234567",
    "100000000000000",
    "undefined",
    "[object Object]",
    "00000000-0000-0000-0000-000000000000",
    "2026-03-01T11:59:58.123456Z",
    "0001-01-01T00:00:00Z",
    "1772366312535",
    "EUR",
    "\u{0}",
    "\u{e9}",
    "\u{661}",
    "%00",
    "%ff",
    "&",
    "=",
    "\n",
    "client_",
    "repaired_from",
];

/// Returns the recorded requests and the odd cases, as inputs; each target takes its own.
/// # Panics
/// If they cannot be read.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = list(&folder().join("testdata/requests"));
    files.sort();
    let mut inputs: Vec<_> = files.iter().map(|file| recorded(file)).collect();
    let cases = fs::read_to_string(folder().join("testdata/cases.http")).expect("the odd cases");
    // As editors write requests down: `###` begins the next, and says what it is about.
    let case = |text: &str| text.split_once('\n').map(|(_, input)| input.trim_end().as_bytes().to_vec());
    inputs.extend(cases.split("### ").skip(1).filter_map(case));
    inputs
}

/// Writes a recorded request as an input. What is recorded as gzip is left as it is before: no other bytes of it are gzip.
fn recorded(file: &Path) -> Vec<u8> {
    let case: Value = serde_json::from_str(&fs::read_to_string(file).expect("readable")).expect("JSON");
    let request = &case["request"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut input = format!("{} {}\n", text(&request["method"]), text(&request["target"]));
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        if !name.eq_ignore_ascii_case("content-encoding") {
            // Writing to a String fails for nothing.
            let _ = writeln!(input, "{name}: {}", text(value));
        }
    }
    input.push('\n');
    input += &match &request["body"] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(lines) if request["lines"] == true => lines.iter().map(|line| text(line) + "\n").collect(),
        other => other.to_string(),
    };
    input.into_bytes()
}

/// Returns the inputs that earlier runs of a target kept; none if there was no run yet.
/// # Panics
/// If a line is not gzip in base64.
pub fn corpus(target: Target) -> Vec<Vec<u8>> {
    let file = folder().join("fuzz/corpus").join(target.as_str());
    let text = fs::read_to_string(file).unwrap_or_default();
    let input = |line: &str| {
        let mut input = Vec::new();
        let gzip = STANDARD.decode(line).expect("a line of base64");
        GzDecoder::new(gzip.as_slice()).read_to_end(&mut input).expect("gzip in it");
        input
    };
    text.lines().map(input).collect()
}

/// Returns the words that the seeds consist of, and odd ones, as libFuzzer reads a dictionary.
pub fn dictionary() -> String {
    let mut words: BTreeSet<Vec<u8>> = ODD.iter().map(|word| word.as_bytes().to_vec()).collect();
    for seed in seeds() {
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'-' | b'.');
        words.extend(seed.split(|byte| !is_word(byte)).filter(|word| (3..=24).contains(&word.len())).map(<[u8]>::to_vec));
    }
    let mut lines = String::new();
    for word in words {
        let escaped: String = word.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let _ = writeln!(lines, "\"{escaped}\"");
    }
    lines
}

fn list(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("a file").path()).collect()
}
