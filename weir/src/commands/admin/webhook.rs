//! `weir admin webhook`: where a project's notices are sent.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use catalogue::webhooks::{self, NewWebhook, Webhook};
use catalogue::{NoticeKind, WebhookFormat};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};
use crate::keys::random;

/// What a secret begins with, as Standard Webhooks writes it.
const SECRET: &str = "whsec_";
/// Of a new secret.
const SECRET_BYTES: usize = 32;

/// What is done with webhooks.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Have notices posted to a URL, and print the secret that signs them, which is shown only now
    Add(Add),
    /// Show the webhooks of a project, and how their deliveries do
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Send a notice that says nothing but that it arrives
    Test(One),
    /// Send again what was given up
    Retry(One),
    /// Send nothing more
    Remove(One),
}

/// A webhook to be made.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Add {
    /// Where notices are posted
    url: String,
    /// Only these kinds, separated by commas: verdict_changed, decision_changed, guardrail_harmed, sample_ratio_mismatch,
    /// planned_size_reached, exposure_stopped, no_data [default: all]
    #[arg(long = "for", value_name = "KINDS", value_delimiter = ',')]
    kinds: Vec<NoticeKind>,
    /// How they are written: standard for programs, chat for the incoming webhooks of Slack, Mattermost and the like
    #[arg(long = "as", value_name = "FORMAT", default_value = "standard")]
    format: WebhookFormat,
    #[command(flatten)]
    project: InProject,
}

/// One webhook.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct One {
    /// Its id, or how it begins
    webhook: String,
    #[command(flatten)]
    project: InProject,
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Add(Add { url, kinds, format, project }) => {
            let project = project.find(conn).await?;
            let secret = random::<SECRET_BYTES>()?;
            let new = NewWebhook { url: &url, format, kinds: &kinds, secret: &secret };
            let id = webhooks::add(conn, &project, &new).await?;
            print(&format!("webhook {id}\nsecret {SECRET}{}\n", BASE64_STANDARD.encode(secret)))
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&webhooks::list(conn, &project).await?, format, |list| render(list))
        }
        Command::Test(One { webhook, project }) => {
            let project = project.find(conn).await?;
            let id = webhooks::test(conn, &project, &webhook).await?;
            print(&format!("a notice is on its way to {id}; `weir admin webhook list` shows whether it arrived\n"))
        }
        Command::Retry(One { webhook, project }) => {
            let project = project.find(conn).await?;
            let count = webhooks::retry(conn, &project, &webhook).await?;
            print(&format!("{count} notices are sent again\n"))
        }
        Command::Remove(One { webhook, project }) => {
            let project = project.find(conn).await?;
            let id = webhooks::remove(conn, &project, &webhook).await?;
            print(&format!("webhook {id} is removed; what was on its way is given up\n"))
        }
    }
}

fn render(webhooks: &[Webhook]) -> String {
    if webhooks.is_empty() {
        return "no webhooks\n".to_owned();
    }
    let row = |webhook: &Webhook| {
        let kinds: Vec<&str> = webhook.kinds.iter().map(|kind| kind.as_str()).collect();
        vec![
            webhook.id.to_string(),
            printable(&webhook.url).into_owned(),
            webhook.format.to_string(),
            if kinds.is_empty() { "all".to_owned() } else { kinds.join(", ") },
            webhook.delivered.to_string(),
            webhook.waiting.to_string(),
            webhook.failed.to_string(),
            webhook.error.as_deref().map(printable).unwrap_or_default().into_owned(),
        ]
    };
    let columns = [
        ("id", Side::Left),
        ("url", Side::Left),
        ("as", Side::Left),
        ("for", Side::Left),
        ("delivered", Side::Right),
        ("waiting", Side::Right),
        ("given up", Side::Right),
        ("last error", Side::Left),
    ];
    table(&columns, &webhooks.iter().map(row).collect::<Vec<_>>())
}
