//! The collector over the embedded log or Kafka, and if asked for the aggregator behind it, in one process with nothing else in it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use eventlog::embedded::{EmbeddedLog, Options as LogOptions};
use eventlog::{Append, Read};
use events::Micros;

/// Settings of the composition.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the collector listens
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Folder of the log
    #[arg(long)]
    pub folder: PathBuf,
    /// Brokers; none: the embedded log
    #[cfg(feature = "kafka")]
    #[arg(long, requires = "topic")]
    pub kafka: Option<String>,
    /// Topic of the log, made if it is missing
    #[cfg(feature = "kafka")]
    #[arg(long)]
    pub topic: Option<String>,
    /// Database with the schema and a key
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: String,
    /// Store the events too, with so many workers; 0: only collect
    #[arg(long, default_value_t = 0)]
    pub workers: u32,
}

/// Serves until standard input ends, then drains. Says `url ADDRESS` at the beginning and `records N` at the end: how many
/// records the log has taken.
/// # Errors
/// What keeps one of the services from starting.
pub async fn serve(options: Options) -> anyhow::Result<()> {
    #[cfg(feature = "kafka")]
    if let (Some(brokers), Some(topic)) = (&options.kafka, &options.topic) {
        let config = eventlog::kafka::Config { topic: topic.clone(), ..eventlog::kafka::Config::new(brokers) };
        let log = eventlog::kafka::KafkaLog::open(config).await.context("the log")?;
        return serve_over(options, log.clone(), || log.stats().records).await;
    }
    let log = EmbeddedLog::open(&options.folder.join("log"), LogOptions::default()).context("the log")?;
    serve_over(options, log.clone(), || log.stats().records).await
}

async fn serve_over<L: Append + Read + Clone>(options: Options, log: L, records: impl Fn() -> u64) -> anyhow::Result<()> {
    let config = ingest::Config {
        collector: options.listen,
        database_url: options.database_url.clone(),
        data_dir: options.folder.clone(),
        // All of the load comes under one key.
        key_bytes_per_second_max: 0,
        ..ingest::Config::default()
    };
    let aggregator = if options.workers > 0 {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = aggregator::Config { workers: options.workers, ..aggregator::Config::new(address, options.database_url) };
        Some(aggregator::Aggregator::start(config, Arc::new(log.clone()), Arc::new(log.clone())).await?)
    } else {
        None
    };
    let collector = ingest::Collector::start(config, Arc::new(log.clone()), Arc::new(Micros::now)).await?;
    say(&format!("url http://{}", collector.address()))?;
    crate::input_ends().await;
    collector.stop().await;
    if let Some(aggregator) = aggregator {
        aggregator.stop().await;
    }
    say(&format!("records {}", records()))
}

/// Prints a line at once.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().context("standard output")
}
