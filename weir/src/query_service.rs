//! `weir query`: the query service alone, as a container, or as the child of `weir up`.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::Context;
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStdin, Command};
use tokio::sync::{oneshot, watch};

use ::query::worker::{Spare, bound_memory};

use crate::children::{Process, Program};
use crate::cli::{Flags, Globals, HostArgs};
use crate::migrate;
use crate::signals::EndSignals;

/// The command that the query service starts its workers by.
pub(crate) const WORKER: &str = "query-worker";

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    query: Flags<::query::Config>,
    #[command(flatten)]
    hosts: HostArgs,
    /// An address of its own for /metrics, which then is not on the public one [default: 127.0.0.1:8091 if --query is no loopback address]
    #[arg(long, env = "WEIR_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// End when stdin does: the process that started this one is gone then
    #[arg(long)]
    pub(crate) until_stdin_closes: bool,
}

/// Runs the command until a signal, or the end of stdin where that is asked for. Prints the line `query URL`.
/// # Errors
/// If the service does not start, or cannot go on.
pub(crate) async fn run(args: QueryArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut signals = EndSignals::listen()?;
    let Flags(mut config) = args.query;
    config.database_url = globals.any_database_url()?;
    config.ca = globals.ca.clone();
    config.metrics = args.metrics;
    config.allow_hosts = args.hosts.allow_hosts;
    config.worker = worker_command()?;
    bound_memory(config.query_memory_bytes_max, Spare::Service).context("the limit of this process' memory")?;
    migrate::checked(&config.database_url, ::query::SCHEMA).await?;
    let service = ::query::Query::start(config).await?;
    // Whoever started this may have closed its end.
    let _ = writeln!(std::io::stdout(), "query http://{}", service.address());
    let ended = tokio::select! {
        ended = signals.next_unless_failed(service.health()) => ended,
        () = stdin_closes(), if args.until_stdin_closes => Ok(()),
    };
    service.stop().await;
    ended
}

/// Returns the command of `weir query-worker`, in this program.
fn worker_command() -> anyhow::Result<Vec<OsString>> {
    let program = std::env::current_exe().context("the path of this program")?;
    Ok(vec![program.into_os_string(), WORKER.into()])
}

async fn stdin_closes() {
    let (closed, closes) = oneshot::channel();
    // A thread of its own: a read cannot be cancelled, and the process must not wait for it at its end.
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = closed.send(());
    });
    let _ = closes.await;
}

/// The query service as a child: a process of its own, so that no question can harm the collector.
pub(crate) struct QueryChild {
    config: ::query::Config,
    /// The address asked for; from the first answer on the one that it got, so that it stays.
    address: watch::Sender<SocketAddr>,
    /// Its stdin: while it is open, the child runs.
    open: Option<ChildStdin>,
}

impl QueryChild {
    /// Describes a child that is configured so.
    pub(crate) fn new(config: ::query::Config) -> Self {
        QueryChild { address: watch::Sender::new(config.query), config, open: None }
    }
}

impl Program for QueryChild {
    type First = SocketAddr;
    const NAME: &'static str = "weir query";

    fn start(&mut self) -> anyhow::Result<Process> {
        let mut child = Command::new(std::env::current_exe().context("the path of this program")?)
            .args(["query", "--until-stdin-closes", "--query", &self.address.borrow().to_string()])
            .args(self.config.allow_hosts.iter().flat_map(|host| ["--allow-host", host]))
            .args(["--query-memory-bytes-max", &self.config.query_memory_bytes_max.to_string()])
            .args(["--query-worker-memory-bytes-max", &self.config.query_worker_memory_bytes_max.to_string()])
            .args(self.config.ca.iter().flat_map(|file| [OsString::from("--ca"), file.clone().into_os_string()]))
            // Not among the arguments, which every user of the machine can read.
            .env("WEIR_DATABASE_URL", &self.config.database_url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("the query service's process")?;
        self.open = child.stdin.take();
        if let Some(stdout) = child.stdout.take() {
            let address = self.address.clone();
            tokio::spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let found = line.strip_prefix("query http://").and_then(|text| text.parse::<SocketAddr>().ok());
                    if let Some(found) = found {
                        address.send_replace(found);
                    }
                }
            });
        }
        Ok(Process::Child(child))
    }

    async fn answers(&mut self) -> anyhow::Result<SocketAddr> {
        let mut address = self.address.subscribe();
        address.mark_unchanged();
        address.changed().await.context("the query service's address")?;
        Ok(*address.borrow())
    }

    fn ask_to_end(&mut self, process: &Process) {
        // It runs only while its stdin is open; the signal is for one that has lost it.
        self.open = None;
        process.signal(Signal::TERM);
    }
}
