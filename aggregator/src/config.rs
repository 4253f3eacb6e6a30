//! Settings of the aggregator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Settings of the aggregator. The flags' variables are named in `--help`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the aggregator serves /livez, /readyz and /metrics
    #[arg(long, env = "WEIR_AGGREGATOR", default_value = "127.0.0.1:8082", value_name = "ADDR")]
    pub aggregator: SocketAddr,

    /// How many workers store events; each has a connection of its own
    #[arg(long, env = "WEIR_WORKERS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,

    /// Events in one transaction, at most
    #[arg(long, env = "WEIR_BATCH_EVENTS_MAX", default_value_t = 20_000, value_name = "EVENTS",
          value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub batch_events_max: u32,

    /// Milliseconds that an event waits for others before its transaction starts, at most
    #[arg(long, env = "WEIR_BATCH_AGE_MS_MAX", default_value_t = 50, value_name = "MS",
          value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub batch_age_ms_max: u32,

    /// Records in a row that may become dead letters of one code before their log partition halts; so may half of ten times as many
    /// records. Counted are records that are not an event, and rows that Postgres refuses, until they are replayed or discarded
    #[arg(long, env = "WEIR_DEAD_LETTERS_IN_ROW_MAX", default_value_t = 1_000, value_name = "RECORDS",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub dead_letters_in_row_max: u32,

    /// Bytes for what is remembered of users, at most, shared evenly by the log partitions that this process holds
    #[arg(long, env = "WEIR_KNOWN_USERS_BYTES_MAX", default_value_t = Config::KNOWN_USERS_BYTES_MAX, value_name = "BYTES")]
    pub known_users_bytes_max: usize,

    /// Of so many remembered users of a batch one is read again, and compared
    #[arg(long, env = "WEIR_KNOWN_USERS_COMPARED_ONE_IN", default_value_t = 1_000, value_name = "USERS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub known_users_compared_one_in: u32,

    /// Impressions of experiments and conversions, together, that a user may have; who has more takes part in no experiment. Kept in the
    /// database and true of all aggregators; without this flag it stays as it is, 10,000 at first
    #[arg(long, env = "WEIR_USER_ROWS_MAX", value_name = "ROWS", value_parser = clap::value_parser!(u32).range(1..))]
    pub user_rows_max: Option<u32>,

    /// Folder for the files of months that are archived, once `weir admin month keep` says how many are kept; several aggregators need
    /// one that they share
    #[arg(long, env = "WEIR_ARCHIVE", value_name = "DIR")]
    pub archive: Option<PathBuf>,

    /// Begin with another log than the one this database was fed from; what the old one still held is given up
    #[arg(long, env = "WEIR_ADOPT_LOG")]
    pub adopt_log: bool,

    /// How often a commit is tried that fails for a reason which is no record's and does not pass by itself.
    #[arg(skip = Config::COMMIT_TRIES_MAX)]
    pub commit_tries_max: u32,

    /// How often it is looked for months that are on their way into the archive or back.
    #[arg(skip = Config::RETENTION_ROUND)]
    pub retention_round: Duration,

    /// Hosts that requests may name beside this machine's own; see [`service::Hosts`].
    #[arg(skip)]
    pub allow_hosts: Vec<String>,

    /// The database, set by the command that composes the service.
    #[arg(skip)]
    pub database_url: String,
}

impl Config {
    /// Bytes of records in one transaction, at most: bounds a worker's memory.
    pub const BATCH_BYTES_MAX: usize = 16 * 1024 * 1024;

    /// See [`Config::known_users_bytes_max`].
    pub const KNOWN_USERS_BYTES_MAX: usize = 128 * 1024 * 1024;

    const COMMIT_TRIES_MAX: u32 = 100;
    const RETENTION_ROUND: Duration = Duration::from_secs(60);

    /// Settings with the defaults of the flags.
    pub fn new(aggregator: SocketAddr, database_url: String) -> Self {
        Config {
            aggregator,
            workers: 2,
            batch_events_max: 20_000,
            batch_age_ms_max: 50,
            dead_letters_in_row_max: 1_000,
            known_users_bytes_max: Config::KNOWN_USERS_BYTES_MAX,
            known_users_compared_one_in: 1_000,
            user_rows_max: None,
            archive: None,
            adopt_log: false,
            commit_tries_max: Config::COMMIT_TRIES_MAX,
            retention_round: Config::RETENTION_ROUND,
            allow_hosts: Vec::new(),
            database_url,
        }
    }

    /// How long an event waits for others.
    pub fn batch_age_max(&self) -> Duration {
        Duration::from_millis(u64::from(self.batch_age_ms_max))
    }
}
