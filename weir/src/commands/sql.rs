//! `weir sql`: any question, in SQL.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::results::as_of;
use super::text::{Side, elements, plain, text_of};
use super::{Endpoint, print_answer};
use crate::cli::Globals;

/// The arguments of `weir sql`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// One SELECT, such as "SELECT event, count(*) FROM events GROUP BY event"
    query_text: String,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs, as the service answers
    Json,
    /// For spreadsheets
    Csv,
    /// For notebooks: an Arrow IPC stream, into a file or a pipe
    Arrow,
    /// For notebooks and other databases: a Parquet file, into a file or a pipe
    Parquet,
}

/// Asks and prints.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let client = args.endpoint.client(globals)?;
    let body = json!({ "sql": args.query_text });
    let media_type = match args.format {
        Format::Arrow => "application/vnd.apache.arrow.stream",
        Format::Parquet => "application/vnd.apache.parquet",
        format => {
            let answer = client.post_json("/v1/sql", &body).await?;
            let format = match format {
                Format::Json => super::Format::Json,
                Format::Csv => super::Format::Csv,
                _ => super::Format::Table,
            };
            return print_answer(&answer, format, render, csv);
        }
    };
    if std::io::stdout().is_terminal() {
        bail!("this format is binary: redirect it into a file, with > FILE");
    }
    let answer = client.post_json_for("/v1/sql", &body, media_type).await?;
    if answer.is_cut {
        // The rows that are there still are of use.
        let _ = writeln!(std::io::stderr(), "weir: the answer was too long, and its last rows are left out");
    }
    let mut out = std::io::stdout().lock();
    out.write_all(&answer.body).and_then(|()| out.flush()).context("stdout")
}

/// Writes an answer for people: one table, and the number of rows.
pub(crate) fn render(answer: &Value) -> String {
    let is_number = |kind: &str| ["integer", "float", "decimal"].iter().any(|prefix| kind.starts_with(prefix));
    let columns: Vec<(&str, Side)> = elements(answer, "/columns")
        .iter()
        .map(|column| {
            let side = if text_of(column, "/type").is_some_and(is_number) { Side::Right } else { Side::Left };
            (column.get("name").and_then(Value::as_str).unwrap_or_default(), side)
        })
        .collect();
    let names: Vec<String> = columns.iter().map(|(name, _)| super::printable(name).into_owned()).collect();
    let columns: Vec<(&str, Side)> = names.iter().zip(&columns).map(|(name, (_, side))| (name.as_str(), *side)).collect();
    let cell = |value: &Value| match value {
        Value::Null => "null".to_owned(),
        other => plain(other),
    };
    let answered = elements(answer, "/rows");
    let rows: Vec<Vec<String>> = answered.iter().map(|row| row.as_array().into_iter().flatten().map(cell).collect()).collect();
    let more = if answer.get("truncated").and_then(Value::as_bool) == Some(true) { ", and there are more" } else { "" };
    let count = match rows.len() {
        1 => "1 row".to_owned(),
        rows => format!("{rows} rows"),
    };
    let shown = if columns.is_empty() { String::new() } else { super::text::full_table(&columns, &rows) };
    format!("{shown}{count}{more}\n{}", as_of(answer))
}

/// Writes the rows below their names; null is empty.
pub(crate) fn csv(answer: &Value) -> Vec<Vec<String>> {
    let names = elements(answer, "/columns").iter().map(|column| text_of(column, "/name").unwrap_or_default().to_owned());
    let rows = elements(answer, "/rows").iter().map(|row| row.as_array().into_iter().flatten().map(plain).collect());
    std::iter::once(names.collect()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Value {
        json!({
            "columns": [{ "name": "event\u{7}", "type": "text" }, { "name": "n", "type": "integer" }, { "name": "value", "type": "decimal(38,6)" },
                        { "name": "empty", "type": "text" }],
            "rows": [["purchase", 12, "19.900000", ""], ["a\u{1b}c", 1234, null, ""]],
            "as_of": { "log_id": "l-1", "offsets": { "0": 1 } },
        })
    }

    #[test]
    fn rows_become_a_table() {
        let expected = "\
event\\u{7}     n      value  empty
purchase      12  19.900000
a\\u{1b}c    1234       null
2 rows

as of log l-1 at 0:1
";
        let found = render(&sample());
        assert_eq!(found, expected, "{found}");
        assert_eq!(render(&json!({ "columns": [{ "name": "n", "type": "integer" }], "rows": [[1]] })), "n\n1\n1 row\n");
        assert_eq!(
            render(&json!({ "columns": [{ "name": "n", "type": "integer" }], "rows": [], "truncated": true })),
            "n\n0 rows, and there are more\n"
        );
    }

    #[test]
    fn csv_keeps_the_values() {
        let lines: Vec<_> = csv(&sample()).iter().map(|line| line.join(";")).collect();
        assert_eq!(lines, ["event\u{7};n;value;empty", "purchase;12;19.900000;", "a\u{1b}c;1234;;"]);
    }
}
