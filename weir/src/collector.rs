//! `weir collector`: the collector alone, over Kafka, as a container runs it.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use events::Micros;
use ingest::Collector;

use crate::cli::{Flags, Globals, HostArgs};
use crate::data::DataFolder;
use crate::log::{self, KafkaArgs, SpoolArgs};
use crate::signals::EndSignals;

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct CollectorArgs {
    #[command(flatten)]
    collector: Flags<ingest::Config>,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    spool: SpoolArgs,
    #[command(flatten)]
    hosts: HostArgs,
    /// An address of its own for /metrics, which then is not on the public one [default: 127.0.0.1:8090 if --collector is no loopback address]
    #[arg(long, env = "WEIR_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Send to another log than the one that was agreed on before
    #[arg(long, env = "WEIR_ADOPT_LOG")]
    adopt_log: bool,
}

/// Runs the command until a signal. Prints the line `collector URL`. Of the database only the keys are read, and those that were
/// read once serve without it; likewise a log that was met once need not answer.
/// # Errors
/// If the service does not start, or cannot go on.
pub(crate) async fn run(args: CollectorArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut signals = EndSignals::listen()?;
    let kafka = args.kafka.required()?;
    let folder = DataFolder::open(&globals.folder()?)?;
    let Flags(mut config) = args.collector;
    config.database_url = globals.any_database_url()?;
    config.data_dir = folder.path().to_owned();
    config.metrics = args.metrics;
    config.allow_hosts = args.hosts.allow_hosts;
    let (_, spool) = tokio::select! {
        opened = log::open_with_spool(kafka, &args.spool, folder.path(), args.adopt_log) => opened?,
        () = signals.next() => return Ok(()),
    };
    let collector = Collector::start(config, spool.clone(), Arc::new(Micros::now)).await?;
    // Whoever started this may have closed its end.
    let _ = writeln!(std::io::stdout(), "collector http://{}", collector.address());
    let ended = signals.next_unless_failed(collector.health()).await;
    collector.stop().await;
    spool.stop().await;
    ended
}
