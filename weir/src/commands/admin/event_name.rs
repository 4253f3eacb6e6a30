//! `weir admin event-name`: the names that events have.

use catalogue::event_names::{self, EventName};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// What is done with names of events.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show all names that conversions and engagement events of a project have
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Refuse events of a name; it no longer counts among those that a project may have
    Block(Name),
    /// Take events of a blocked name again
    Allow(Name),
    /// Forget a name, which makes room for another one; what is stored stays
    Forget(Name),
    /// Refuse events with new names
    Close {
        #[command(flatten)]
        project: InProject,
    },
    /// Take events with new names again
    Open {
        #[command(flatten)]
        project: InProject,
    },
}

/// A name in a project.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Name {
    /// The name
    name: String,
    #[command(flatten)]
    project: InProject,
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&event_names::list(conn, &project).await?, format, |names| render(names))
        }
        Command::Block(Name { name, project }) => {
            let project = project.find(conn).await?;
            event_names::block(conn, &project, &name).await?;
            print(&format!("events named {} are refused from now on; collectors know within seconds\n", printable(&name)))
        }
        Command::Allow(Name { name, project }) => {
            let project = project.find(conn).await?;
            event_names::allow(conn, &project, &name).await?;
            print(&format!("events named {} are taken again\n", printable(&name)))
        }
        Command::Forget(Name { name, project }) => {
            let project = project.find(conn).await?;
            event_names::forget(conn, &project, &name).await?;
            print(&format!("{} is forgotten until an event has it\n", printable(&name)))
        }
        Command::Close { project } => {
            let project = project.find(conn).await?;
            event_names::take_new(conn, &project, false).await?;
            print("events with new names are refused from now on; collectors know within seconds\n")
        }
        Command::Open { project } => {
            let project = project.find(conn).await?;
            event_names::take_new(conn, &project, true).await?;
            print("events with new names are taken again\n")
        }
    }
}

fn render(names: &[EventName]) -> String {
    if names.is_empty() {
        return "no names\n".to_owned();
    }
    let row = |name: &EventName| {
        vec![name.name.clone(), name.kinds.join(", "), name.status.to_string(), name.first_seen_at.to_string()]
    };
    let columns = [("name", Side::Left), ("kinds", Side::Left), ("status", Side::Left), ("since", Side::Left)];
    table(&columns, &names.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use catalogue::EventNameStatus;
    use events::Micros;

    use super::*;

    #[test]
    fn names_become_a_table() {
        let name = |name: &str, kinds: &[&str], status| EventName {
            name: name.to_owned(),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            status,
            first_seen_at: Micros(0),
        };
        let names = [
            name("purchase", &["conversion", "engagement"], EventNameStatus::Allowed),
            name("x\u{1b}[2J", &["conversion"], EventNameStatus::Blocked),
        ];
        let expected = "\
name        kinds                   status   since
purchase    conversion, engagement  allowed  1970-01-01T00:00:00Z
x\\u{1b}[2J  conversion              blocked  1970-01-01T00:00:00Z
";
        assert_eq!(render(&names), expected);
        assert_eq!(render(&[]), "no names\n");
    }
}
