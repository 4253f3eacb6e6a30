//! `weir admin exposure`: which events expose users, where these are no impressions that name experiment and variant.

use catalogue::exposures::ExposureDefinition;
use catalogue::versions::{self, Version};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable, text_or_file};

/// What is done with exposure definitions.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Define exposures of the project by other events than impressions, or the next version; experiments use it by `experiment exposure`
    Define {
        /// Its name, unique in the project
        name: String,
        /// What exposes users, as JSON, or @FILE. Such as {"any_of": [{"kind": "engagement", "events": ["checkout_viewed"],
        /// "where": {"plan": ["pro", "team"]}, "variant": {"property": "$feature/{experiment}"}}]}: events of a kind and of these names
        /// whose properties have one of the values each; the variant is what a property says, or {"constant": "b"}; left out, the one that
        /// the event names. {experiment} stands for the experiment's name
        #[arg(value_name = "JSON", verbatim_doc_comment)]
        definition: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Show the exposure definitions of a project, each with all its versions
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Define { name, definition, project } => {
            let definition = ExposureDefinition::parse(&text_or_file(definition)?)?;
            let project = project.find(conn).await?;
            let defined = versions::define(conn, &project, &name, &definition).await?;
            let what = if defined.is_new { "is made" } else { "is there already; nothing changed" };
            print(&format!("version {} of {} {what}\n", defined.version.version, printable(&defined.version.name)))
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&versions::list(conn, &project).await?, format, |list| render(list))
        }
    }
}

fn render(versions: &[Version<ExposureDefinition>]) -> String {
    if versions.is_empty() {
        return "no exposure definitions\n".to_owned();
    }
    let row = |version: &Version<ExposureDefinition>| {
        let description = version.definition.description.clone().unwrap_or_default();
        vec![version.name.clone(), version.version.to_string(), version.definition.to_string(), description]
    };
    let columns = [("exposure", Side::Left), ("version", Side::Right), ("events", Side::Left), ("description", Side::Left)];
    table(&columns, &versions.iter().map(row).collect::<Vec<_>>())
}
