//! The command line of the measurements.

use std::io::Write as _;

use anyhow::Context as _;
#[cfg(feature = "kafka")]
use benches::bare_kafka_server;
use benches::{abuse, bare_server, chaos, copy, costs, door, load, pipeline, results, serve};
use clap::Parser;
use tokio::net::TcpListener;

/// Measurements of Weir, and the bare programs that they are ratios of
#[derive(Parser)]
enum Command {
    /// Post events to a collector, check every answer, keep a ledger
    Load(load::Options),
    /// Answer the same requests from memory: the limit of a collector
    BareServer(bare_server::Options),
    /// Append the same requests to Kafka and no more: the limit of a collector over Kafka
    #[cfg(feature = "kafka")]
    BareKafkaServer(bare_kafka_server::Options),
    /// The collector over the embedded log or Kafka, and perhaps the aggregator, until standard input ends
    Serve(serve::Options),
    /// Measure the collector over the embedded log, or over Kafka, against the bare server
    Door(door::Options),
    /// Measure the aggregator against COPY of the same rows
    Copy(copy::Options),
    /// Measure what each index and column of the tables costs
    Costs(costs::Options),
    /// Measure the whole path, and how soon an accepted event can be queried
    Pipeline(pipeline::Options),
    /// Measure answers about an experiment, and where their time goes
    Results(results::Options),
    /// Attack `weir up` in many ways, and measure a good client beside each
    Abuse(abuse::Options),
    /// Break Weir on purpose while clients send, and judge by invariants what became of their events
    Chaos(chaos::Options),
}

fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,sqlx::query=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let command = Command::parse();
    if let Command::Load(options) = &command {
        // It has threads and runtimes of its own.
        return say(&load::run(options)?.to_string());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Load(_) => Ok(()),
            Command::BareServer(options) => {
                let listener =
                    TcpListener::bind(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
                say(&format!("url http://{}", listener.local_addr()?))?;
                bare_server::serve_until_input_ends(listener).await
            }
            #[cfg(feature = "kafka")]
            Command::BareKafkaServer(options) => {
                let listener =
                    TcpListener::bind(options.listen).await.with_context(|| format!("listening on {}", options.listen))?;
                say(&format!("url http://{}", listener.local_addr()?))?;
                bare_kafka_server::serve_until_input_ends(listener, &options).await
            }
            Command::Serve(options) => serve::serve(options).await,
            Command::Door(options) => say(&door::run(&options).await?),
            Command::Copy(options) => say(&copy::run(&options).await?),
            Command::Costs(options) => say(&costs::run(&options).await?),
            Command::Pipeline(options) => say(&pipeline::run(&options).await?),
            Command::Results(options) => say(&results::run(&options).await?),
            Command::Abuse(options) => say(&abuse::run(&options).await?),
            Command::Chaos(options) => chaos::run(&options).await,
        }
    })
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush().context("standard output")
}
