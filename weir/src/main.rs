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
mod memory;
mod migrate;
mod postgres;
mod query_service;
mod signals;
mod up;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{self, Writer};

use cli::{Cli, Command};

/// How long an end waits for calls that block: what must be done by then was waited for before, and a call to brokers that are gone may take
/// ten seconds.
const BLOCKING_MAX: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.command.is_service() {
        memory::keep_together(&cli.command);
        service::descriptors::raise();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("threads")),
    };
    let code = runtime.block_on(run(cli));
    runtime.shutdown_timeout(BLOCKING_MAX);
    code
}

async fn run(cli: Cli) -> ExitCode {
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
        Command::QueryWorker => ::query::worker::serve().await.map_err(anyhow::Error::from),
        Command::Migrate => migrate::run(globals).await,
        Command::Probe(args) => commands::probe::run(args, globals).await,
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

/// Writes fields of a log line so that each event is one line, whatever clients sent: control characters are escaped.
fn fields() -> impl for<'writer> FormatFields<'writer> {
    let field = |out: &mut Writer<'_>, field: &Field, value: &dyn std::fmt::Debug| {
        let text = format!("{value:?}");
        let text = commands::printable(&text);
        if field.name() == "message" { write!(out, "{text}") } else { write!(out, "{field}={text}") }
    };
    format::debug_fn(field).delimited(" ")
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
        Err(_) | Ok("" | "text") => {
            lines.fmt_fields(fields()).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
        }
        Ok(other) => anyhow::bail!("WEIR_LOG_FORMAT={other:?}: expected json or text"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_clients_sent_stays_on_one_line_of_the_log() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).fmt_fields(fields()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = "bad\nweir: all is well\u{1b}[2J";
            tracing::error!(%error, count = 2, path = ?"a\nb", "a query failed: {error}");
        });
        let text = String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("text");
        assert_eq!(text.lines().count(), 1, "{text}");
        let fields =
            r#"a query failed: bad\nweir: all is well\u{1b}[2J error=bad\nweir: all is well\u{1b}[2J count=2 path="a\nb""#;
        assert!(text.trim_end().ends_with(fields), "{text}");
    }
}
