//! The command line of Weir: composition only.

#[cfg(feature = "kafka")]
mod aggregator;
mod children;
mod cli;
mod client;
#[cfg(feature = "kafka")]
mod collector;
mod commands;
mod data;
mod demo;
mod keys;
mod log;
mod migrate;
mod postgres;
mod query_service;
mod signals;
mod up;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use cli::{Cli, Command};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = log_to_stderr(&cli.command) {
        return failed(&error);
    }
    let globals = &cli.globals;
    let result = match cli.command {
        Command::Up(args) => up::run(args, globals).await,
        Command::Demo(args) => demo::run(args, globals).await,
        // It alone has more to say than that it did what it was told.
        Command::Results(args) => return commands::results::run(args, globals).await.unwrap_or_else(|error| failed(&error)),
        Command::Power(args) => commands::power::run(args, globals).await,
        Command::Funnel(args) => commands::funnel::run(args, globals).await,
        Command::Sql(args) => commands::sql::run(args, globals).await,
        Command::Status(args) => commands::status::run(args, globals).await,
        Command::Admin(args) => commands::admin::run(args, globals).await,
        #[cfg(feature = "kafka")]
        Command::Collector(args) => collector::run(args, globals).await,
        #[cfg(feature = "kafka")]
        Command::Aggregator(args) => aggregator::run(args, globals).await,
        Command::Import(args) => match commands::import::run(args, globals).await {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Query(args) => query_service::run(args, globals).await,
        Command::Migrate => migrate::run(globals).await,
        Command::Probe(args) => commands::probe::run(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    use std::io::Write;
    // Without a stderr the exit code has to do.
    let _ = writeln!(std::io::stderr(), "weir: {error:#}");
    ExitCode::FAILURE
}

/// `WEIR_LOG`, else `RUST_LOG`, says what is logged; `WEIR_LOG_FORMAT=json` makes each line an object.
fn log_to_stderr(command: &Command) -> anyhow::Result<()> {
    let usual = match command {
        // As a child it says what goes wrong; its starts are told by its parent.
        Command::Query(args) if args.until_stdin_closes => "warn,sqlx=error",
        Command::Up(_) | Command::Query(_) | Command::Migrate => "info,sqlx=warn",
        #[cfg(feature = "kafka")]
        Command::Collector(_) | Command::Aggregator(_) => "info,sqlx=warn",
        _ => "warn,sqlx=error",
    };
    let chosen = ["WEIR_LOG", "RUST_LOG"].into_iter().find_map(|name| Some((name, std::env::var(name).ok()?)));
    let filter = match chosen {
        Some((name, text)) => EnvFilter::try_new(&text)
            .map_err(|error| anyhow::anyhow!("{name}={text:?}: {error}; expected a filter such as info,sqlx=warn"))?,
        None => EnvFilter::new(usual),
    };
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match std::env::var("WEIR_LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().init(),
        Err(_) | Ok("" | "text") => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        Ok(other) => anyhow::bail!("WEIR_LOG_FORMAT={other:?}: expected json or text"),
    }
    Ok(())
}
