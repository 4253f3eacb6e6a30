//! `weir aggregator`: the aggregator alone, over Kafka; several of them share the log partitions.

use std::io::Write;
use std::sync::Arc;

use ::aggregator::{Aggregator, Config};

use crate::cli::{Flags, Globals, HostArgs};
use crate::log::{self, KafkaArgs};
use crate::migrate;
use crate::signals::EndSignals;

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct AggregatorArgs {
    #[command(flatten)]
    aggregator: Flags<Config>,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    hosts: HostArgs,
}

/// Runs the command until a signal. Prints the line `aggregator URL`.
/// # Errors
/// If the service does not start or cannot go on, or the schema is not the one of this build.
pub(crate) async fn run(args: AggregatorArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut signals = EndSignals::listen()?;
    let kafka = args.kafka.required()?;
    let Flags(mut config) = args.aggregator;
    config.database_url = globals.any_database_url()?;
    config.allow_hosts = args.hosts.allow_hosts;
    let opened = async {
        migrate::checked(&config.database_url, ::aggregator::SCHEMA).await?;
        log::open(kafka).await
    };
    let log = tokio::select! {
        opened = opened => opened?,
        () = signals.next() => return Ok(()),
    };
    let aggregator = Aggregator::start(config, Arc::new(log.clone()), Arc::new(log.clone())).await?;
    // Whoever started this may have closed its end.
    let _ = writeln!(std::io::stdout(), "aggregator http://{}", aggregator.address());
    let compared = log.keep_compared();
    let ended = signals.next_unless_failed(aggregator.health()).await;
    compared.abort();
    aggregator.stop().await;
    ended
}
