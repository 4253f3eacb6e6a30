//! `weir admin`: what operators look at and change in Postgres. Each change is audited in its own transaction.

mod apply;
mod campaign;
mod dead_letters;
mod event_name;
mod experiment;
mod exposure;
mod key;
mod metric;
mod month;
mod project;
mod recompute;
mod rejected;
mod rollup;
mod webhook;

use catalogue::{Project, find_project};
use sqlx::PgConnection;

use super::places::connect;
use crate::cli::Globals;

/// The arguments of `weir admin`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Make metric definitions, rollups and experiments as a file says them, or show what would be changed
    Apply(apply::Args),
    /// Create, show, start and stop experiments
    #[command(subcommand)]
    Experiment(experiment::Command),
    /// Define which events expose users, where these are no impressions
    #[command(subcommand)]
    Exposure(exposure::Command),
    /// Add, show and remove the metrics of an experiment
    #[command(subcommand)]
    Metric(metric::Command),
    /// Say how many months of events are kept; show those that are archived, and bring one back
    #[command(subcommand)]
    Month(month::Command),
    /// Define sums that are kept as events are stored
    #[command(subcommand)]
    Rollup(rollup::Command),
    /// Say what concerns all experiments of a project
    #[command(subcommand)]
    Project(project::Command),
    /// Create and show campaigns
    #[command(subcommand)]
    Campaign(campaign::Command),
    /// Show, block and forget the names that events have
    #[command(subcommand)]
    EventName(event_name::Command),
    /// Create, show and revoke write keys, server keys and read tokens
    #[command(subcommand)]
    Key(key::Command),
    /// Show records that could not be stored; replay or discard them
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
    /// Show events that collectors refused where no client reads that in an answer
    #[command(subcommand)]
    Rejected(rejected::Command),
    /// Have notices sent when a verdict changes, harm is shown, or events stop
    #[command(subcommand)]
    Webhook(webhook::Command),
    /// Compute participation and attribution of an experiment again, and report what differed
    Recompute(recompute::Args),
}

/// Which project.
#[derive(Clone, Debug, clap::Args)]
struct InProject {
    /// The project, by name or id
    #[arg(long, value_name = "PROJECT", env = "WEIR_PROJECT", default_value = crate::keys::PROJECT)]
    project: String,
}

impl InProject {
    async fn find(&self, conn: &mut PgConnection) -> anyhow::Result<Project> {
        Ok(find_project(conn, &self.project).await?)
    }
}

/// Connects and runs the command.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let mut conn = connect(globals).await?;
    match args.command {
        Command::Apply(args) => apply::run(args, &mut conn).await,
        Command::Experiment(command) => experiment::run(command, &mut conn).await,
        Command::Exposure(command) => exposure::run(command, &mut conn).await,
        Command::Rollup(command) => rollup::run(command, &mut conn).await,
        Command::Metric(command) => metric::run(command, &mut conn).await,
        Command::Month(command) => month::run(command, &mut conn).await,
        Command::Project(command) => project::run(command, &mut conn).await,
        Command::Campaign(command) => campaign::run(command, &mut conn).await,
        Command::EventName(command) => event_name::run(command, &mut conn).await,
        Command::Key(command) => key::run(command, &mut conn).await,
        Command::DeadLetters(command) => dead_letters::run(command, &mut conn).await,
        Command::Rejected(command) => rejected::run(command, &mut conn).await,
        Command::Webhook(command) => webhook::run(command, &mut conn).await,
        Command::Recompute(args) => recompute::run(args, &mut conn).await,
    }
}
