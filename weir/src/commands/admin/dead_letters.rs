//! `weir admin dead-letters`: records that entered the log and could not be stored.

use aggregator::admin::dead_letters::{self, DeadLetter, Filter, Marked, Selection};
use anyhow::Context;
use catalogue::{DeadLetterStatus, find_project};
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commands::status::counts;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// Characters of a reason that a list shows.
const REASON_WIDTH: usize = 80;

/// What is done with dead letters.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Count them by code, and show the newest
    List {
        #[command(flatten)]
        which: Which,
        /// In this state: open, replay, replayed or discarded
        #[arg(long, value_name = "STATUS")]
        status: Option<DeadLetterStatus>,
        /// How many are shown
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(0..=100_000))]
        limit: i64,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Show one with its reason and its bytes
    Show {
        /// Its id
        id: Uuid,
        /// How it is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Replay them: the aggregator appends their bytes to the log again
    Replay(Chosen),
    /// Discard them; their bytes are kept
    Discard(Chosen),
}

/// Which dead letters.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Which {
    /// Of this project, by name or id; without it of all, and those of which not even the project could be read
    #[arg(long, value_name = "PROJECT", env = "WEIR_PROJECT")]
    project: Option<String>,
    /// With this code, such as unknown_experiment
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
}

/// Which dead letters a change means.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Chosen {
    /// Their ids; all of them are changed, or none
    #[arg(value_name = "ID", required_unless_present_any = ["code", "all"], conflicts_with_all = ["code", "all", "project"])]
    ids: Vec<Uuid>,
    #[command(flatten)]
    which: Which,
    /// All open ones
    #[arg(long)]
    all: bool,
}

impl Which {
    async fn filter(self, conn: &mut PgConnection, status: Option<DeadLetterStatus>) -> anyhow::Result<Filter> {
        let project = match &self.project {
            Some(name) => Some(find_project(conn, name).await?.id),
            None => None,
        };
        Ok(Filter { project, code: self.code, status })
    }
}

impl Chosen {
    async fn selection(self, conn: &mut PgConnection) -> anyhow::Result<Selection> {
        if !self.ids.is_empty() {
            return Ok(Selection::Ids(self.ids));
        }
        Ok(Selection::Open(self.which.filter(conn, None).await?))
    }
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::List { which, status, limit, format } => {
            let filter = which.filter(conn, status).await?;
            let counts = serde_json::to_value(dead_letters::counts(conn, &filter).await?)?;
            let letters = dead_letters::list(conn, &filter, limit).await?;
            match format {
                ListFormat::Table => print(&render_list(&counts, &letters)),
                ListFormat::Json => print_list(&json!({ "counts": counts, "dead_letters": letters }), format, |_| String::new()),
            }
        }
        Command::Show { id, format } => {
            let (letter, record) = dead_letters::show(conn, id).await?;
            let mut value = serde_json::to_value(&letter).context("a dead letter as JSON")?;
            value["record"] = String::from_utf8_lossy(&record).into();
            print_list(&value, format, |_| render(&letter, &record))
        }
        Command::Replay(chosen) => {
            let selection = chosen.selection(conn).await?;
            let marked = dead_letters::replay(conn, &selection).await?;
            print(&said(marked, "will be appended to the log again by the aggregator"))
        }
        Command::Discard(chosen) => {
            let selection = chosen.selection(conn).await?;
            let marked = dead_letters::discard(conn, &selection).await?;
            print(&said(marked, "discarded; their bytes are kept"))
        }
    }
}

fn said(marked: Marked, what: &str) -> String {
    let letters = |count: u64| if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") };
    let unreadable = match marked.unreadable {
        0 => String::new(),
        count => format!("{} stay open: their bytes are not an event, so they cannot be replayed\n", letters(count)),
    };
    format!("{} {what}\n{unreadable}", letters(marked.marked))
}

/// Says that a creation set dead letters free.
pub(super) fn waiting(count: u64) -> String {
    match count {
        0 => String::new(),
        1 => "1 dead letter was waiting for it and is tried again\n".to_owned(),
        count => format!("{count} dead letters were waiting for it and are tried again\n"),
    }
}

fn render_list(by_code: &Value, letters: &[DeadLetter]) -> String {
    let mut out = counts(by_code.as_array().map_or(&[], Vec::as_slice));
    if letters.is_empty() {
        return out;
    }
    let row = |letter: &DeadLetter| {
        let shortened: String = letter.reason.chars().take(REASON_WIDTH).collect();
        let more = if shortened.len() < letter.reason.len() { ".." } else { "" };
        vec![
            letter.id.to_string(),
            letter.code.clone(),
            letter.subject.clone().unwrap_or_default(),
            letter.status.to_string(),
            format!("{}:{}", letter.log_partition, letter.log_offset),
            letter.created_at.to_string(),
            format!("{shortened}{more}"),
        ]
    };
    let columns = [
        ("id", Side::Left),
        ("code", Side::Left),
        ("subject", Side::Left),
        ("status", Side::Left),
        ("position", Side::Left),
        ("since", Side::Left),
        ("reason", Side::Left),
    ];
    out.push('\n');
    out.push_str(&table(&columns, &letters.iter().map(row).collect::<Vec<_>>()));
    out
}

fn render(letter: &DeadLetter, record: &[u8]) -> String {
    let mut lines = vec![
        ("dead letter", letter.id.to_string()),
        ("status", format!("{} since {}", letter.status, letter.changed_at)),
        ("code", letter.code.clone()),
        ("reason", letter.reason.clone()),
    ];
    lines.extend(letter.subject.clone().map(|subject| ("subject", subject)));
    lines.extend(letter.sqlstate.clone().map(|sqlstate| ("sqlstate", sqlstate)));
    lines.extend(letter.project_id.map(|project| ("project", project.to_string())));
    lines.push((
        "position",
        format!("log {}, log partition {}, offset {}", letter.log_id, letter.log_partition, letter.log_offset),
    ));
    lines.push(("found at", letter.created_at.to_string()));
    let text = match std::str::from_utf8(record) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{} (not UTF-8)", String::from_utf8_lossy(record)),
    };
    lines.push(("bytes", format!("{} of them: {text}", record.len())));
    lines.into_iter().map(|(name, text)| format!("{name:<13}{}\n", printable(&text))).collect()
}

#[cfg(test)]
mod tests {
    use events::Micros;

    use super::*;

    fn letter() -> DeadLetter {
        DeadLetter {
            id: Uuid::from_u128(1),
            project_id: None,
            log_id: Uuid::from_u128(2),
            log_partition: 3,
            log_offset: 40,
            code: "unknown_experiment".into(),
            subject: Some("check\u{1b}[2Jout".into()),
            reason: "r".repeat(81),
            sqlstate: None,
            status: DeadLetterStatus::Open,
            created_at: Micros(0),
            changed_at: Micros(1_000_000),
            bytes: 2,
        }
    }

    #[test]
    fn a_list_counts_and_shows_the_newest() {
        let counts = json!([{ "status": "open", "code": "unknown_experiment", "count": 1,
                              "oldest": "1970-01-01T00:00:00Z", "newest": "1970-01-01T00:00:00Z" }]);
        let reason = "r".repeat(80);
        let expected = format!(
            "\
dead letters        status  number  oldest                newest
unknown_experiment  open         1  1970-01-01T00:00:00Z  1970-01-01T00:00:00Z

id                                    code                subject            status  position  since                 reason
00000000-0000-0000-0000-000000000001  unknown_experiment  check\\u{{1b}}[2Jout  open    3:40      1970-01-01T00:00:00Z  {reason}..
"
        );
        assert_eq!(render_list(&counts, &[letter()]), expected);
        assert_eq!(render_list(&json!([]), &[]), "no dead letters\n");
    }

    #[test]
    fn one_is_shown_with_its_bytes() {
        let expected = "\
dead letter  00000000-0000-0000-0000-000000000001
status       open since 1970-01-01T00:00:01Z
code         unknown_experiment
reason       short
subject      check\\u{1b}[2Jout
position     log 00000000-0000-0000-0000-000000000002, log partition 3, offset 40
found at     1970-01-01T00:00:00Z
bytes        3 of them: {}\\n
";
        let letter = DeadLetter { reason: "short".into(), ..letter() };
        assert_eq!(render(&letter, b"{}\n"), expected);
        assert!(render(&letter, b"\xff").ends_with("bytes        1 of them: \u{fffd} (not UTF-8)\n"));
    }

    #[test]
    fn changes_are_said() {
        let marked = |marked, unreadable| said(Marked { marked, unreadable }, "discarded");
        assert_eq!(marked(1, 0), "1 dead letter discarded\n");
        let expected =
            "2 dead letters discarded\n1 dead letter stay open: their bytes are not an event, so they cannot be replayed\n";
        assert_eq!(marked(2, 1), expected);
        assert_eq!(waiting(0), "");
    }

    #[test]
    fn a_change_names_what_it_means() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(subcommand)]
            _command: Command,
        }
        let check = |line: &str, accepted: bool| {
            let parsed = <Line as clap::Parser>::try_parse_from(line.split(' '));
            assert_eq!(parsed.is_ok(), accepted, "{line}");
        };
        let id = Uuid::nil();
        check("x replay", false);
        check(&format!("x replay {id}"), true);
        check(&format!("x replay {id} --all"), false);
        check("x replay --all", true);
        check("x discard --code unknown_experiment --project default", true);
        check("x discard --project default", false);
        check("x list --status open", true);
        check("x list --status closed", false);
    }
}
