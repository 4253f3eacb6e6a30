//! The commands that ask and change. Each has its arguments and a `run`; what one prints is made by a function that takes
//! the answer and returns a text, so that tests and `weir demo` see the same.

pub(crate) mod admin;
pub(crate) mod funnel;
pub(crate) mod import;
mod places;
pub(crate) mod power;
pub(crate) mod probe;
pub(crate) mod results;
pub(crate) mod sql;
pub(crate) mod status;
mod text;

use std::io::{IsTerminal, Write};

use anyhow::Context;
use clap::ValueEnum;
use serde_json::Value;

pub(crate) use places::Endpoint;
pub(crate) use text::printable;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs, as the service answers
    Json,
    /// For spreadsheets
    Csv,
}

/// How a list of the database is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Prints an answer in one of the formats.
fn print_answer(
    answer: &Value,
    format: Format,
    table: impl FnOnce(&Value) -> String,
    csv: impl FnOnce(&Value) -> Vec<Vec<String>>,
) -> anyhow::Result<()> {
    match format {
        Format::Table => print(&table(answer)),
        Format::Json => print(&json(answer)?),
        Format::Csv => {
            let escape = std::io::stdout().is_terminal();
            let line = |cells: &Vec<String>| text::csv_line(cells, escape);
            print(&csv(answer).iter().map(line).collect::<String>())
        }
    }
}

/// Prints what the database holds, as a table or as JSON.
fn print_list<T: serde::Serialize>(list: &T, format: ListFormat, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    match format {
        ListFormat::Table => print(&table(list)),
        ListFormat::Json => print(&json(list)?),
    }
}

/// Writes JSON for people and programs. Characters that a terminal would obey are escaped; they stand in strings only.
fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    let plain = serde_json::to_string_pretty(value).context("the answer as JSON")?;
    let mut out = String::with_capacity(plain.len() + 1);
    for found in plain.chars() {
        if text::is_obeyed(found) && found != '\n' {
            let mut units = [0; 2];
            for unit in found.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(found);
        }
    }
    out.push('\n');
    Ok(out)
}

/// Returns a text that was given, or that of the file which @PATH names.
fn text_or_file(given: String) -> anyhow::Result<String> {
    match given.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("the definition in {path:?}")),
        None => Ok(given),
    }
}

/// Prints to stdout. A reader that has seen enough, such as `head`, is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("stdout"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_terminals_stays_json() {
        let value = serde_json::json!({ "name": "a\u{1b}[2J\u{9b}\u{202e}\u{7f}ü\n" });
        let written = json(&value).expect("writes");
        assert_eq!(written, "{\n  \"name\": \"a\\u001b[2J\\u009b\\u202e\\u007fü\\n\"\n}\n");
        assert_eq!(serde_json::from_str::<Value>(&written).expect("reads back"), value);
    }
}
