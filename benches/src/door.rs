//! The collector against a bare server, over the embedded log or over Kafka: the same requests, closed loop.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context as _, bail};

use crate::child::Server;
use crate::database::{Databases, KEY};
use crate::load;
use crate::report::{Figures, Page, number};

/// Settings of the comparison.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Connections x events in each request
    #[arg(long, value_delimiter = ',', default_values = ["1024x1", "64x1", "64x100"])]
    pub shapes: Vec<Shape>,
    /// How long each side of each round runs
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How often each side runs
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// Threads that send
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Server that holds the collector's keys; none: a private one
    #[arg(long, env = "DATABASE_URL")]
    pub database_url: Option<String>,
    /// Measure over Kafka: the brokers, in which topics are made; none: over the embedded log
    #[cfg(feature = "kafka")]
    #[arg(long)]
    pub kafka: Option<String>,
    /// Folder for the log's files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

impl Options {
    #[cfg(feature = "kafka")]
    fn brokers(&self) -> Option<&str> {
        self.kafka.as_deref()
    }

    #[cfg(not(feature = "kafka"))]
    fn brokers(&self) -> Option<&str> {
        None
    }

    /// Makes the topic of a round, if it is over Kafka.
    #[cfg(feature = "kafka")]
    async fn make(&self, topic: &str) -> anyhow::Result<()> {
        use eventlog::kafka::{Config, KafkaLog};
        if let Some(brokers) = &self.kafka {
            KafkaLog::open(Config { topic: topic.to_owned(), ..Config::new(brokers) }).await.context("the topic")?;
        }
        Ok(())
    }

    #[cfg(not(feature = "kafka"))]
    async fn make(&self, _topic: &str) -> anyhow::Result<()> {
        Ok(())
    }
}

/// How requests look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    connections: usize,
    events: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |text: &str| text.trim().parse().ok().filter(|number: &usize| *number > 0);
        let shape = text.split_once('x').and_then(|(connections, events)| Some((parse(connections)?, parse(events)?)));
        let (connections, events) =
            shape.ok_or_else(|| format!("found {text:?}; CONNECTIONSxEVENTS such as 64x100 is accepted"))?;
        Ok(Shape { connections, events })
    }
}

#[derive(Default)]
struct Side {
    rates: Figures,
    p50: Figures,
    p99: Figures,
    p99_at_half: Figures,
    cpu: Figures,
    generator: Figures,
    memory: Figures,
}

impl Side {
    fn row(&self, shape: Shape, name: &str, ratio: Option<Figures>) -> Vec<String> {
        vec![
            format!("{} x {}", number(shape.connections as f64, 0), shape.events),
            name.to_owned(),
            self.rates.spread(0),
            ratio.map_or_else(|| "1".to_owned(), |ratio| ratio.spread(2)),
            self.p50.spread(1),
            self.p99.spread(1),
            self.p99_at_half.spread(1),
            self.cpu.spread(2),
            self.generator.spread(2),
            self.memory.spread(0),
        ]
    }
}

/// Runs the comparison and returns its page.
/// # Errors
/// Whatever fails first, an answer other than success among it, and a log that has not what was acknowledged.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let mut databases = Databases::open(options.database_url.as_deref()).await?;
    let database = databases.create(None).await?;
    let (name, title, sides) = if options.brokers().is_some() {
        (
            "door-kafka",
            "The collector over Kafka against a bare server over Kafka",
            "The bare server is hyper, serde_json and librdkafka over the same bodies: it appends each event as it came, idempotent, \
             acks=all, linger 5 ms, and answers after all reports; the collector checks keys and rules, and appends its own records \
             in the same way. Generator, server and broker share the machine.",
        )
    } else {
        (
            "door",
            "The collector over the embedded log against a bare HTTP server",
            "The bare server is hyper and serde_json over the same bodies, answering from memory; the collector checks keys and \
             rules, and answers after its records are synced to the disk. Generator and server share the machine.",
        )
    };
    let mut page = Page::new(name, title, folder.path(), vec![]);
    page.say(&format!(
        "Closed loop, {} s after 1 s that is not counted, a fresh process and log each time, the order of the two turned round each \
         time. {sides} Latencies of a closed loop are those at its highest rate; at half of it, on a schedule that does not wait for \
         answers, each request counts from when it was due. Least / **median** / most of {} rounds.",
        options.seconds, options.rounds
    ));
    let head = [
        "connections x events",
        "server",
        "events/s",
        "ratio",
        "p50 ms",
        "p99 ms",
        "p99 ms at half the rate",
        "server CPU s per million",
        "generator CPU s per million",
        "peak MiB",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for shape in &options.shapes {
        let (mut bare, mut collector) = (Side::default(), Side::default());
        for round in 0..options.rounds {
            for turn in 0..2 {
                let is_bare = (round + turn) % 2 == 0;
                let log = tempfile::tempdir_in(folder.path())?;
                let path = log.path().to_str().context("a folder whose name is text")?;
                let topic = format!("door-{}", uuid::Uuid::new_v4());
                let over = match options.brokers() {
                    Some(brokers) => vec!["--kafka", brokers, "--topic", &topic],
                    None => vec![],
                };
                options.make(&topic).await?;
                let server = if is_bare {
                    let name = if over.is_empty() { "bare-server" } else { "bare-kafka-server" };
                    Server::start(&[&[name], over.as_slice()].concat())?
                } else {
                    Server::start(&[&["serve", "--folder", path, "--database-url", &database.url], over.as_slice()].concat())?
                };
                let side = if is_bare { &mut bare } else { &mut collector };
                let options = options.clone();
                let shape = *shape;
                let (report, acknowledged, server) =
                    tokio::task::spawn_blocking(move || drive(&options, shape, server, side_of(is_bare))).await??;
                crate::progress(&format!("round {}: {}, {:.0} events/s", round + 1, side_of(is_bare), report.rate));
                side.rates.push(report.rate);
                side.p50.push(report.p50);
                side.p99.push(report.p99);
                side.p99_at_half.push(report.p99_at_half);
                side.cpu.push(report.cpu);
                side.generator.push(report.generator);
                side.memory.push(server.peak_memory_mib());
                let said = tokio::task::spawn_blocking(move || server.stop()).await?;
                if !is_bare && said.as_ref().map(|said| said.trim()).ok() != Some(format!("records {acknowledged}").as_str()) {
                    bail!("{acknowledged} events were acknowledged, but the log ended with {said:?}");
                }
            }
        }
        rows.push(bare.row(*shape, "bare", None));
        rows.push(collector.row(*shape, "collector", Some(collector.rates.ratio_to(&bare.rates))));
    }
    page.table(&rows);
    databases.remove(database).await?;
    page.finish(options.save.as_deref())
}

fn side_of(is_bare: bool) -> &'static str {
    if is_bare { "bare server" } else { "collector" }
}

/// What one side of one round was.
struct Measured {
    rate: f64,
    p50: f64,
    p99: f64,
    p99_at_half: f64,
    cpu: f64,
    generator: f64,
}

fn drive(options: &Options, shape: Shape, server: Server, name: &str) -> anyhow::Result<(Measured, u64, Server)> {
    let load = |rate: f64, seconds: f64| {
        load::run(&load::Options {
            rate,
            connections: shape.connections,
            events_per_request: shape.events,
            seconds,
            threads: options.threads,
            ..load::Options::new(&server.url, KEY)
        })
    };
    let warm = load(0.0, 1.0)?;
    let before = server.cpu_seconds();
    let report = load(0.0, options.seconds)?;
    let cpu = server.cpu_seconds() - before;
    let half = load(report.rate() / 2.0, options.seconds / 2.0)?;
    if report.acknowledged == 0 || [&warm, &report, &half].iter().any(|one| !one.trouble.is_empty()) {
        bail!("{name}: not every answer was a success, so its rate says nothing\n{warm}\n{report}\n{half}");
    }
    let millions = report.acknowledged as f64 / 1e6;
    let milliseconds = |of: &load::Report, quantile| of.latency.quantile(quantile).as_secs_f64() * 1e3;
    let measured = Measured {
        rate: report.rate(),
        p50: milliseconds(&report, 0.5),
        p99: milliseconds(&report, 0.99),
        p99_at_half: milliseconds(&half, 0.99),
        cpu: cpu / millions,
        generator: report.cpu_seconds / millions,
    };
    Ok((measured, warm.acknowledged + report.acknowledged + half.acknowledged, server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_read() {
        assert_eq!("1024x1".parse(), Ok(Shape { connections: 1024, events: 1 }));
        for text in ["", "64", "64x", "x1", "0x1", "64x0", "64 by 1"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }
}
