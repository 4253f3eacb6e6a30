//! `weir admin project`: what concerns all experiments of a project.

use catalogue::project::{internal, set_internal};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::{print, printable};

/// What is done with a project.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say which users are own staff, and take part in no answer about an experiment; without a condition it is shown
    Internal {
        /// What holds for their first exposure, in SQL over the columns of an event, such as
        /// "json_as_text(properties, 'email') LIKE '%@example.com'"
        condition: Option<String>,
        /// Nobody is
        #[arg(long, conflicts_with = "condition")]
        none: bool,
        #[command(flatten)]
        project: InProject,
    },
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    let Command::Internal { condition, none, project } = command;
    let project = project.find(conn).await?;
    if let Some(condition) = &condition {
        query::check_exposure(condition)?;
    }
    if condition.is_some() || none {
        set_internal(conn, &project, condition.as_deref()).await?;
    }
    print(&match internal(conn, project.id).await? {
        Some(condition) => format!("users are own staff for whose first exposure this holds: {}\n", printable(&condition)),
        None => "nobody is own staff\n".to_owned(),
    })
}
