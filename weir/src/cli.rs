//! The command line: which commands there are, and what they share.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, FromArgMatches, Parser, Subcommand};

use crate::commands;
use crate::data::{self, WeirJson};
#[cfg(feature = "kafka")]
use crate::{aggregator, collector};
use crate::{demo, query_service, up};

/// Measures product experiments and campaigns from the event stream.
#[derive(Parser)]
#[command(name = "weir", version, about, long_about = None, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: collector, aggregator, query service, and Postgres unless --database-url is given
    Up(up::UpArgs),
    /// Run everything with simulated traffic in a folder of its own, and show example queries
    Demo(demo::DemoArgs),
    /// Show the results of an experiment
    Results(commands::results::Args),
    /// Plan an experiment: users needed, smallest effect it can detect, and duration
    Power(commands::power::Args),
    /// Show how many users reach each step of a funnel
    Funnel(commands::funnel::Args),
    /// Import history from files: NDJSON, CSV or Parquet
    Import(commands::import::Args),
    /// Run a SQL query
    Sql(commands::sql::Args),
    /// Show which services run, whether they are ready, and how far storing is behind the log
    Status(commands::status::Args),
    /// Manage experiments, metrics, campaigns, keys and dead letters
    Admin(commands::admin::Args),
    /// Run the collector alone, over Kafka
    #[cfg(feature = "kafka")]
    Collector(collector::CollectorArgs),
    /// Run an aggregator alone, over Kafka; several share the log partitions
    #[cfg(feature = "kafka")]
    Aggregator(aggregator::AggregatorArgs),
    /// Run the query service alone
    Query(query_service::QueryArgs),
    /// Answer questions for the query service that started this process
    #[command(name = query_service::WORKER, hide = true)]
    QueryWorker,
    /// Bring the database's schema up to date, and create the project `default` with the keys set in the environment
    Migrate,
    /// Ask a service whether it is ready, for health checks: exit code 0 or 1
    Probe(commands::probe::Args),
}

impl Command {
    /// Returns whether it runs until it is told to end.
    pub(crate) fn is_service(&self) -> bool {
        match self {
            Command::Up(_) | Command::Demo(_) | Command::Query(_) | Command::QueryWorker => true,
            #[cfg(feature = "kafka")]
            Command::Collector(_) | Command::Aggregator(_) => true,
            _ => false,
        }
    }
}

/// What every command takes.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct Globals {
    /// Data folder [default: $XDG_DATA_HOME/weir, else ~/.local/share/weir, as root /var/lib/weir]
    #[arg(long, global = true, env = "WEIR_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Postgres 15 or later; DATABASE_URL works too [default: a private server in the data folder]
    #[arg(long, global = true, env = "WEIR_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub(crate) database_url: Option<String>,
    /// Certificates in PEM to trust for https addresses, instead of the system's
    #[arg(long, global = true, env = "WEIR_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

/// Which hosts requests may name.
#[derive(Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct HostArgs {
    /// Also answer requests that name this host, as a proxy in front of a loopback address sends them; may be given several times
    #[arg(long = "allow-host", env = "WEIR_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    pub(crate) allow_hosts: Vec<String>,
}

impl Globals {
    /// Returns the data folder, which need not exist.
    /// # Errors
    /// If none was chosen and there is no home.
    pub(crate) fn folder(&self) -> anyhow::Result<PathBuf> {
        match &self.data {
            Some(folder) => std::path::absolute(folder).with_context(|| folder.display().to_string()),
            None => data::default_folder("weir"),
        }
    }

    /// Returns the database that was chosen by flag or variable.
    pub(crate) fn database_url(&self) -> Option<String> {
        let variable = || std::env::var("DATABASE_URL").ok();
        self.database_url.clone().or_else(variable).filter(|url| !url.is_empty())
    }

    /// Returns what runs on the data folder; none if nothing ever did.
    /// # Errors
    /// If the folder's `weir.json` cannot be read.
    pub(crate) fn weir_json(&self) -> anyhow::Result<Option<WeirJson>> {
        WeirJson::read(&self.folder()?)
    }

    /// Returns the database that was chosen, else the one of what runs on the data folder.
    /// # Errors
    /// If there is neither.
    pub(crate) fn any_database_url(&self) -> anyhow::Result<String> {
        if let Some(url) = self.database_url() {
            return Ok(url);
        }
        let file = self.weir_json()?;
        file.map(|file| file.postgres).with_context(|| {
            let folder = self.folder().unwrap_or_default();
            format!(
                "no database: {} has no weir.json, so no `weir up` ran there; start it, name its folder with --data, or give --database-url",
                folder.display()
            )
        })
    }
}

/// The flags of another crate's settings, without the group that clap makes of them: its name is that of the type, which all
/// services call the same.
#[derive(Clone, Debug)]
pub(crate) struct Flags<T>(pub(crate) T);

impl<T: Args> Args for Flags<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        let alone = T::augment_args(clap::Command::new("flags"));
        command.args(alone.get_arguments().cloned())
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        let alone = T::augment_args_for_update(clap::Command::new("flags"));
        command.args(alone.get_arguments().cloned())
    }
}

impl<T: FromArgMatches> FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Flags)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn commands_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_reach_their_services() {
        let args =
            ["weir", "up", "--data", "/d", "--collector", "127.0.0.1:0", "--query", "127.0.0.1:1", "--aggregator", "127.0.0.1:2"];
        let cli = Cli::try_parse_from(args).expect("parses");
        assert_eq!(cli.globals.folder().expect("absolute"), PathBuf::from("/d"));
        let Command::Up(up) = cli.command else { panic!("another command") };
        let ports = [up.collector.0.collector.port(), up.query.0.query.port(), up.aggregator.0.aggregator.port()];
        assert_eq!(ports, [0, 1, 2]);
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn kafka_is_named_by_flags() {
        let cli = Cli::try_parse_from(["weir", "up", "--kafka", "localhost:9092", "--topic", "t"]).expect("parses");
        let Command::Up(up) = cli.command else { panic!("another command") };
        let config = up.log.kafka.config().expect("it is Kafka");
        assert_eq!((config.brokers.as_str(), config.topic.as_str()), ("localhost:9092", "t"));
    }
}
