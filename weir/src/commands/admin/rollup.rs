//! `weir admin rollup`: sums that are kept as events are stored, and read as the SQL table `rollup_NAME`.

use aggregator::admin::months;
use catalogue::rollups::{self, Kept, Rollup};
use catalogue::versions;
use serde::Serialize;
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable, text_or_file};

/// What is done with rollups.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Define a rollup of the project, or its next version. What is stored already is filled in beside the stream; until then the version
    /// before is read
    Define {
        /// Its name, unique in the project: it is read as the SQL table rollup_NAME
        name: String,
        /// What it sums up, as JSON, or @FILE. Such as {"kind": "engagement", "events": ["order_placed"], "unique": ["order_id"],
        /// "keys": ["day", "plan"], "measures": {"orders": "count", "revenue": {"sum": "price"}, "buyers": {"distinct": "user_id"}}};
        /// the README says what else there is
        #[arg(value_name = "JSON", verbatim_doc_comment)]
        definition: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Show the rollups of a project, and how far they are filled
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Remove a rollup with all that it holds; defined again, it is filled anew
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        project: InProject,
    },
}

/// A rollup of the list.
#[derive(Clone, Debug, Serialize)]
struct Listed {
    name: String,
    version: i32,
    /// Whether it is read.
    is_filled: bool,
    /// Records of the log that are still to be looked through.
    records_left: i64,
    definition: Rollup,
}

impl From<Kept> for Listed {
    fn from(kept: Kept) -> Self {
        let Kept { name, version, definition, is_filled, records_left, .. } = kept;
        Listed { name, version, is_filled, records_left, definition }
    }
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Define { name, definition, project } => {
            let rollup = Rollup::parse(&text_or_file(definition)?)?;
            let project = project.find(conn).await?;
            let defined = versions::define(conn, &project, &name, &rollup).await?;
            let what = if defined.is_new { "is made" } else { "is there already; nothing changed" };
            let mut said = format!("version {} of {} {what}\n", defined.version.version, printable(&defined.version.name));
            let away = months::away(conn, project.id).await?;
            if defined.is_new && !away.is_empty() {
                said.push_str(&format!(
                    "It has no events of the months that are archived: {}. `weir admin month restore` brings one back; a rollup that is removed \
                     and defined again after that has them\n",
                    away.join(", ")
                ));
            }
            print(&said)
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            let listed: Vec<Listed> = rollups::kept(conn, project.id).await?.into_iter().map(Listed::from).collect();
            print_list(&listed, format, |list| render(list))
        }
        Command::Remove { name, project } => {
            let project = project.find(conn).await?;
            rollups::remove(conn, &project, &name).await?;
            print(&format!("{} is removed\n", printable(&name)))
        }
    }
}

fn render(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "no rollups\n".to_owned();
    }
    let row = |listed: &Listed| {
        let filled = if listed.is_filled { "yes".to_owned() } else { format!("{} records left", listed.records_left) };
        let description = listed.definition.description.clone().unwrap_or_default();
        vec![listed.name.clone(), listed.version.to_string(), filled, listed.definition.to_string(), description]
    };
    let columns = [
        ("rollup", Side::Left),
        ("version", Side::Right),
        ("filled", Side::Left),
        ("sums", Side::Left),
        ("description", Side::Left),
    ];
    table(&columns, &listed.iter().map(row).collect::<Vec<_>>())
}
