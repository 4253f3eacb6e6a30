//! `weir admin campaign`: campaigns and their components.

use std::str::FromStr;

use aggregator::admin::campaigns::create;
use catalogue::campaigns::{self, Campaign, NewCampaign, NewComponent};
use catalogue::{CampaignType, ComponentType, UnknownText};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// What is done with campaigns.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a campaign; dead letters that were waiting for it are replayed
    Create(Create),
    /// Show all campaigns of a project
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Show one campaign
    Show {
        /// Name or id of the campaign
        campaign: String,
        #[command(flatten)]
        project: InProject,
        /// How the campaign is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
}

/// The arguments of `weir admin campaign create`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// Its name, which is never given to another one
    name: String,
    /// A component, as NAME or NAME:TYPE; may be repeated
    #[arg(long = "component", value_name = "NAME[:TYPE]", value_parser = component)]
    components: Vec<NewComponent>,
    /// Its type: landing_page, funnel, email_sequence, complete_campaign or component_enhancement
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<CampaignType>,
    /// A description
    #[arg(long)]
    description: Option<String>,
    #[command(flatten)]
    project: InProject,
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let project = args.project.find(conn).await?;
            let Create { name, components, kind, description, .. } = args;
            let created = create(conn, &project, &NewCampaign { name, description, kind, components }).await?;
            let waiting = super::dead_letters::waiting(created.dead_letters);
            print(&format!("{}{waiting}", render(&created.campaign)))
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&campaigns::list(conn, &project).await?, format, |list| render_list(list))
        }
        Command::Show { campaign, project, format } => {
            let project = project.find(conn).await?;
            print_list(&campaigns::show(conn, &project, &campaign).await?, format, render)
        }
    }
}

/// Reads NAME[:TYPE]; a name may hold colons where a type follows.
fn component(text: &str) -> Result<NewComponent, UnknownText> {
    match text.rsplit_once(':') {
        None => Ok(NewComponent { name: text.to_owned(), kind: ComponentType::Custom }),
        Some((name, kind)) => Ok(NewComponent { name: name.to_owned(), kind: ComponentType::from_str(kind)? }),
    }
}

fn render_list(campaigns: &[Campaign]) -> String {
    if campaigns.is_empty() {
        return "no campaigns\n".to_owned();
    }
    let row = |campaign: &Campaign| {
        let made_by = if campaign.auto_registered { "an event" } else { "an operator" };
        vec![
            campaign.name.clone(),
            campaign.status.to_string(),
            campaign.kind.map(|kind| kind.to_string()).unwrap_or_default(),
            campaign.components.len().to_string(),
            made_by.to_owned(),
            campaign.id.to_string(),
        ]
    };
    let columns = [
        ("campaign", Side::Left),
        ("status", Side::Left),
        ("type", Side::Left),
        ("components", Side::Right),
        ("made by", Side::Left),
        ("id", Side::Left),
    ];
    table(&columns, &campaigns.iter().map(row).collect::<Vec<_>>())
}

fn render(campaign: &Campaign) -> String {
    let mut out = format!("campaign {}: {}, id {}\n", printable(&campaign.name), campaign.status, campaign.id);
    if let Some(description) = &campaign.description {
        out.push_str(&format!("{}\n", printable(description)));
    }
    if !campaign.components.is_empty() {
        let row = |part: &campaigns::Component| vec![part.name.clone(), part.kind.to_string(), part.id.to_string()];
        let columns = [("component", Side::Left), ("type", Side::Left), ("id", Side::Left)];
        out.push_str(&table(&columns, &campaign.components.iter().map(row).collect::<Vec<_>>()));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_read() {
        let check = |text: &str, expected: Result<(&str, &str), &str>| {
            let found = component(text).map(|part| (part.name, part.kind.to_string())).map_err(|unknown| unknown.to_string());
            assert_eq!(found, expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())).map_err(str::to_owned));
        };
        check("hero", Ok(("hero", "custom")));
        check("hero:hero_section", Ok(("hero", "hero_section")));
        check("a:b:form", Ok(("a:b", "form")));
        let accepted =
            "landing_page, form, header, footer, hero_section, testimonials, pricing, email_template, popup, navigation, custom";
        check("hero:x", Err(&format!(r#"found "x"; accepted: {accepted}"#)));
    }
}
