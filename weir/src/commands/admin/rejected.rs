//! `weir admin rejected`: events that collectors refused where no client reads that in an answer.

use aggregator::admin::rejected::{self, Count, Rejected};
use anyhow::Context;
use serde_json::json;
use sqlx::PgConnection;
use uuid::Uuid;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// Characters of a message that a list shows.
const MESSAGE_WIDTH: usize = 80;

/// What is asked about rejected events.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Count them by code, and show the newest
    List {
        #[command(flatten)]
        project: InProject,
        /// With this code, such as missing_user
        #[arg(long, value_name = "CODE")]
        code: Option<String>,
        /// How many are shown
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(i64).range(0..=100_000))]
        limit: i64,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Show one as the client sent it
    Show {
        /// Its id
        id: Uuid,
        #[command(flatten)]
        project: InProject,
        /// How it is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::List { project, code, limit, format } => {
            let project = project.find(conn).await?.id;
            let counts = rejected::counts(conn, project, code.as_deref()).await?;
            let events = rejected::list(conn, project, code.as_deref(), limit).await?;
            match format {
                ListFormat::Table => print(&render_list(&counts, &events)),
                ListFormat::Json => print_list(&json!({ "counts": counts, "rejected": events }), format, |_| String::new()),
            }
        }
        Command::Show { id, project, format } => {
            let project = project.find(conn).await?.id;
            let (event, text) = rejected::show(conn, project, id).await?;
            let mut value = serde_json::to_value(&event).context("a rejected event as JSON")?;
            value["event"] = text.as_str().into();
            print_list(&value, format, |_| render(&event, &text))
        }
    }
}

fn render_list(counts: &[Count], events: &[Rejected]) -> String {
    if counts.is_empty() {
        return "no rejected events\n".to_owned();
    }
    let row = |count: &Count| vec![count.code.clone(), count.count.to_string(), count.oldest.clone(), count.newest.clone()];
    let columns = [("rejected", Side::Left), ("number", Side::Right), ("oldest", Side::Left), ("newest", Side::Left)];
    let mut out = table(&columns, &counts.iter().map(row).collect::<Vec<_>>());
    if events.is_empty() {
        return out;
    }
    let row = |event: &Rejected| {
        let shortened: String = event.message.chars().take(MESSAGE_WIDTH).collect();
        let more = if shortened.len() < event.message.len() { ".." } else { "" };
        vec![
            event.id.to_string(),
            event.dialect.clone(),
            event.code.clone(),
            event.field.clone(),
            event.received_at.to_string(),
            format!("{shortened}{more}"),
        ]
    };
    let columns = ["id", "dialect", "code", "field", "received", "message"].map(|name| (name, Side::Left));
    out.push('\n');
    out.push_str(&table(&columns, &events.iter().map(row).collect::<Vec<_>>()));
    out
}

fn render(event: &Rejected, text: &str) -> String {
    let lines = [
        ("rejected", event.id.to_string()),
        (
            "received",
            format!("{} by the dialect {}, under the key whose digest begins {}", event.received_at, event.dialect, event.key),
        ),
        ("code", event.code.clone()),
        ("field", event.field.clone()),
        ("message", event.message.clone()),
        ("event", format!("{} bytes: {text}", event.bytes)),
    ];
    lines.into_iter().map(|(name, text)| format!("{name:<10}{}\n", printable(&text))).collect()
}

#[cfg(test)]
mod tests {
    use events::Micros;

    use super::*;

    fn event() -> Rejected {
        Rejected {
            id: Uuid::from_u128(1),
            received_at: Micros(0),
            dialect: "segment".to_owned(),
            key: "0011aabbccdd".to_owned(),
            code: "missing_user".to_owned(),
            field: "userId".to_owned(),
            message: "m".repeat(81),
            bytes: 2,
        }
    }

    #[test]
    fn a_list_counts_and_shows_the_newest() {
        let day = || "1970-01-01".to_owned();
        let counts = [Count { code: "missing_user".to_owned(), count: 12, oldest: day(), newest: day() }];
        let message = "m".repeat(80);
        let expected = format!(
            "\
rejected      number  oldest      newest
missing_user      12  1970-01-01  1970-01-01

id                                    dialect  code          field   received              message
00000000-0000-0000-0000-000000000001  segment  missing_user  userId  1970-01-01T00:00:00Z  {message}..
"
        );
        assert_eq!(render_list(&counts, &[event()]), expected);
        assert_eq!(render_list(&[], &[]), "no rejected events\n");
    }

    #[test]
    fn one_is_shown_as_it_was_sent() {
        let expected = "\
rejected  00000000-0000-0000-0000-000000000001
received  1970-01-01T00:00:00Z by the dialect segment, under the key whose digest begins 0011aabbccdd
code      missing_user
field     userId
message   short
event     2 bytes: {}\\u{1b}
";
        let event = Rejected { message: "short".to_owned(), ..event() };
        assert_eq!(render(&event, "{}\u{1b}"), expected);
    }
}
