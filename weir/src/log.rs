//! Which log: the embedded one of a data folder, or Kafka's, which collectors and aggregators share.

use std::path::Path;
use std::sync::Arc;

use eventlog::embedded::{EmbeddedLog, Options};
use eventlog::spool::Spool;
use eventlog::{Append, Read};
use tokio::task::JoinHandle;

#[cfg(feature = "kafka")]
pub(crate) use kafka::{KafkaArgs, SpoolArgs, open, open_with_spool};

/// Which log `weir up` runs on.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
pub(crate) struct LogArgs {
    #[cfg(feature = "kafka")]
    #[command(flatten)]
    pub(crate) kafka: KafkaArgs,
    #[cfg(feature = "kafka")]
    #[command(flatten)]
    spool: SpoolArgs,
}

/// Both sides of a log, and what has to be ended with it.
pub(crate) struct Opened {
    pub(crate) append: Arc<dyn Append>,
    pub(crate) read: Arc<dyn Read>,
    /// Between the collector and Kafka.
    pub(crate) spool: Option<Arc<Spool>>,
    /// Compares Kafka's log with what it was, until it is aborted.
    pub(crate) compared: Option<JoinHandle<()>>,
}

impl LogArgs {
    /// Opens the log of a data folder: Kafka's with the spool before it if Kafka is named, else the embedded one. `adopt` takes
    /// another log over Kafka than the one that was agreed on before.
    /// # Errors
    /// If it cannot be used.
    #[cfg_attr(not(feature = "kafka"), expect(clippy::unused_async, unused_variables, reason = "the other log is waited for"))]
    pub(crate) async fn open(&self, folder: &Path, adopt: bool) -> anyhow::Result<Opened> {
        #[cfg(feature = "kafka")]
        if let Some(kafka) = self.kafka.config() {
            let (log, spool) = open_with_spool(kafka, &self.spool, folder, adopt).await?;
            let compared = Some(log.keep_compared());
            return Ok(Opened { append: spool.clone(), read: Arc::new(log), spool: Some(spool), compared });
        }
        let log = Arc::new(EmbeddedLog::open(&folder.join("log"), Options::default())?);
        Ok(Opened { append: log.clone(), read: log, spool: None, compared: None })
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use anyhow::Context;
    use eventlog::kafka::{Compared, Config, KafkaLog, OpenError, TOPIC_DEFAULT};
    use eventlog::spool::{self, Comparison, Spool};
    use service::BackOff;

    /// Between tries to reach a log that was never met: the first pause, and the longest.
    const RETRY_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
    /// How long a start waits for the first comparison; it goes on without it.
    const FIRST_COMPARISON_MAX: Duration = Duration::from_secs(3);

    /// Where Kafka is, and which topic is the log.
    #[derive(clap::Args, Clone, Debug)]
    #[group(skip)]
    pub(crate) struct KafkaArgs {
        /// Kafka's bootstrap servers, such as host:9092,other:9092
        #[arg(long, env = "WEIR_KAFKA", value_name = "BROKERS")]
        pub(crate) kafka: Option<String>,
        /// The topic; made with 8 partitions if it is missing
        #[arg(long, env = "WEIR_TOPIC", default_value = TOPIC_DEFAULT, value_name = "TOPIC")]
        topic: String,
        /// A file of librdkafka properties, one name=value in a line, such as those of SASL and TLS
        #[arg(long, env = "WEIR_KAFKA_CONFIG", value_name = "FILE")]
        kafka_config: Option<PathBuf>,
    }

    /// The spool of this machine.
    #[derive(clap::Args, Clone, Debug)]
    #[group(skip)]
    pub(crate) struct SpoolArgs {
        /// Bytes that events may take on this machine's disk while Kafka is down; beyond it they are refused with 503
        #[arg(long, env = "WEIR_SPOOL_BYTES_MAX", default_value_t = 8 * 1024 * 1024 * 1024, value_name = "BYTES",
              value_parser = clap::value_parser!(u64).range(64 * 1024 * 1024..))]
        spool_bytes_max: u64,
    }

    impl KafkaArgs {
        /// Returns Kafka's settings, if it is Kafka.
        pub(crate) fn config(&self) -> Option<Config> {
            let brokers = self.kafka.as_deref().filter(|brokers| !brokers.is_empty())?;
            Some(Config { topic: self.topic.clone(), file: self.kafka_config.clone(), ..Config::new(brokers) })
        }

        /// The same, for commands that work on nothing else.
        /// # Errors
        /// If Kafka is not named.
        pub(crate) fn required(&self) -> anyhow::Result<Config> {
            self.config().context(
                "--kafka and WEIR_KAFKA are not given; separate services share a log over Kafka, and `weir up` runs all of them on one machine without it",
            )
        }
    }

    /// Opens Kafka's log, waiting for brokers that do not answer.
    /// # Errors
    /// A setting, or a topic, that waiting does not mend.
    pub(crate) async fn open(config: Config) -> anyhow::Result<KafkaLog> {
        let mut back_off = BackOff::new(RETRY_WAITS.0, RETRY_WAITS.1);
        loop {
            match KafkaLog::open(config.clone()).await {
                Ok(log) => return Ok(log),
                Err(OpenError::Unreachable(reason)) => {
                    tracing::warn!(brokers = config.brokers, reason, "Kafka does not answer; waiting for it");
                    back_off.wait().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Opens Kafka's log for a collector, with the spool in `folder`. Where a log was agreed on before, Kafka need not answer:
    /// events then go to the spool. `adopt` forgets that agreement.
    /// # Errors
    /// A setting, a topic or a folder that cannot be used.
    pub(crate) async fn open_with_spool(
        config: Config,
        args: &SpoolArgs,
        folder: &Path,
        adopt: bool,
    ) -> anyhow::Result<(KafkaLog, Arc<Spool>)> {
        let agreed = folder.join("agreed-log");
        let known = spool::remembered(&agreed).with_context(|| agreed.display().to_string())?;
        let log = match known.filter(|_| !adopt) {
            Some(identity) => KafkaLog::open_as(config, identity)?,
            None => open(config).await?,
        };
        let compared = log.clone();
        let compare = move |_| {
            let log = compared.clone();
            async move {
                match log.check().await {
                    Compared::Same => Comparison::Same,
                    Compared::Different(difference) => Comparison::Different(difference.to_string()),
                    Compared::Unreachable(reason) => Comparison::Unreachable(reason),
                }
            }
        };
        let options = spool::Options { bytes_max: args.spool_bytes_max, remember: Some(agreed), ..spool::Options::default() };
        let spool = Spool::open(&folder.join("spool"), Arc::new(log.clone()), Arc::new(compare), options)?;
        if tokio::time::timeout(FIRST_COMPARISON_MAX, spool.first_comparison()).await.is_err() {
            tracing::warn!("Kafka does not answer; events go to the spool until it does");
        }
        Ok((log, Arc::new(spool)))
    }
}
