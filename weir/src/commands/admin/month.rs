//! `weir admin month`: how many months of events are kept, and their way into the archive and back.

use std::path::PathBuf;

use aggregator::admin::months::{self, MONTHS_KEPT, MonthOf, Retention};
use anyhow::Context;
use serde_json::Value;
use sqlx::PgConnection;

use crate::commands::status::bytes;
use crate::commands::text::{NOTHING, Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// What is done with months.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show how many are kept, which have left or come back, and what holds one up
    List {
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Say how many whole months before the present one are kept; older ones are archived to Parquet, then dropped
    Keep {
        /// A number from 2 to 1200, or `all`: then no further month leaves
        months: Kept,
    },
    /// Bring a month back from the archive, with exactly the rows that it had
    Restore {
        /// Such as 2026-01
        month: String,
        /// Where its files are now, if not where they were written
        #[arg(long, value_name = "DIR")]
        archive: Option<PathBuf>,
    },
    /// Let a restored month go again; an aggregator does so within a minute or two
    Release {
        /// Such as 2026-01
        month: String,
    },
}

/// How many months are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept(Option<u32>);

impl std::str::FromStr for Kept {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Kept(None));
        }
        let number = text.parse::<u32>().ok().filter(|number| MONTHS_KEPT.contains(number));
        let accepted = || format!("a number from {} to {} or `all` is accepted", MONTHS_KEPT.start(), MONTHS_KEPT.end());
        Ok(Kept(Some(number.ok_or_else(accepted)?)))
    }
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::List { format } => {
            let retention = months::list(conn).await?;
            let value = serde_json::to_value(&retention).context("months as JSON")?;
            print_list(&value, format, |_: &Value| render(&retention))
        }
        Command::Keep { months: Kept(kept) } => {
            months::keep(conn, kept).await?;
            print(&said(kept))
        }
        Command::Restore { month, archive } => {
            let archive = archive.map(std::path::absolute).transpose().context("--archive")?;
            let rows = months::restore(conn, &month, archive.as_deref()).await?;
            print(&format!("month {}: {rows} rows are back\n", printable(&month)))
        }
        Command::Release { month } => {
            months::release(conn, &month).await?;
            print(&format!("month {} leaves again; its files stay as they are\n", printable(&month)))
        }
    }
}

fn said(kept: Option<u32>) -> String {
    match kept {
        None => "all months are kept; no further one leaves\n".to_owned(),
        Some(kept) => format!(
            "{kept} whole months before the present one are kept; older ones are archived and dropped, one after the other, when they ended \
             and were last written to more than 60 days ago and no experiment needs their events\n"
        ),
    }
}

/// Writes what is kept and what left, for people.
fn render(retention: &Retention) -> String {
    let mut out = match retention.months_kept {
        None => "all months are kept\n".to_owned(),
        Some(kept) => format!("{kept} whole months before the present one are kept\n"),
    };
    if let Some(boundary) = &retention.boundary {
        out.push_str(&format!("retention boundary {boundary}: no event of before it is stored any more\n"));
    }
    if let (Some(month), Some(why)) = (&retention.held_month, &retention.held_by) {
        out.push_str(&format!("month {month} is due and stays: {}\n", printable(why)));
    }
    if retention.months.is_empty() {
        return out;
    }
    let row = |month: &MonthOf| {
        vec![
            month.month.clone(),
            month.state.to_string(),
            month.changed_at.to_string(),
            month.rows.to_string(),
            bytes(month.bytes as f64),
            printable(month.folder.as_deref().unwrap_or(NOTHING)).into_owned(),
            printable(month.problem.as_deref().unwrap_or(NOTHING)).into_owned(),
        ]
    };
    let columns = [
        ("month", Side::Left),
        ("state", Side::Left),
        ("since", Side::Left),
        ("rows", Side::Right),
        ("files", Side::Right),
        ("folder", Side::Left),
        ("held up by", Side::Left),
    ];
    out.push('\n');
    out.push_str(&table(&columns, &retention.months.iter().map(row).collect::<Vec<_>>()));
    out
}

#[cfg(test)]
mod tests {
    use catalogue::MonthState;
    use events::Micros;

    use super::*;

    #[test]
    fn what_is_kept_and_what_left_is_shown() {
        let mut retention = Retention { months_kept: None, boundary: None, held_month: None, held_by: None, months: Vec::new() };
        assert_eq!(render(&retention), "all months are kept\n");
        retention = Retention {
            months_kept: Some(12),
            boundary: Some("2025-12-01T00:00:00Z".into()),
            held_month: Some("2025-12".into()),
            held_by: Some("experiment \"a\"".into()),
            months: vec![MonthOf {
                month: "2025-11".into(),
                state: MonthState::Dropped,
                changed_at: Micros(0),
                rows: 600,
                bytes: 2_048,
                folder: Some("/archive".into()),
                problem: None,
            }],
        };
        let expected = "\
12 whole months before the present one are kept
retention boundary 2025-12-01T00:00:00Z: no event of before it is stored any more
month 2025-12 is due and stays: experiment \"a\"

month    state    since                 rows  files  folder    held up by
2025-11  dropped  1970-01-01T00:00:00Z   600  2 KiB  /archive  -
";
        assert_eq!(render(&retention), expected);
    }

    #[test]
    fn how_many_are_kept_is_a_number_or_all() {
        for (text, expected) in [("all", Some(None)), ("2", Some(Some(2))), ("1200", Some(Some(1_200)))] {
            assert_eq!(text.parse::<Kept>().ok(), expected.map(Kept), "{text}");
        }
        for text in ["1", "1201", "-3", "", "ALL"] {
            assert_eq!(text.parse::<Kept>().expect_err("refused"), "a number from 2 to 1200 or `all` is accepted");
        }
    }
}
