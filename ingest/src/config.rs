//! What an operator sets, and every limit with its unit and its reason.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;

use crate::privacy::PrivacySignals;

/// Some 20,000 events in a second: more than a site or an app has, and less than what fills a disk in minutes.
const KEY_BYTES_PER_SECOND_MAX: u32 = 8 * 1024 * 1024;

/// How a collector runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Address that takes events
    #[arg(long, env = "WEIR_COLLECTOR", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub collector: SocketAddr,
    /// Address of `/metrics`, `/livez` and `/readyz` alone; none: the metrics are on `collector` too if that is a loopback address, else
    /// on 127.0.0.1:8090.
    #[arg(skip)]
    pub metrics: Option<SocketAddr>,
    /// Hosts that requests for these pages may name beside this machine's own; see [`service::Hosts`].
    #[arg(skip)]
    pub allow_hosts: Vec<String>,
    /// Take events under any key into the project `default`; only on a loopback address
    #[arg(long, env = "WEIR_ANY_KEY", value_parser = clap::builder::FalseyValueParser::new())]
    pub any_key: bool,
    /// Open connections that one address may have, of 16,384 in all; more are closed at once. A proxy's address has all of its clients'
    #[arg(long, env = "WEIR_CONNECTIONS_PER_ADDRESS_MAX", value_name = "CONNECTIONS", default_value_t = 4_096,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_per_address_max: u32,
    /// Count connections of loopback addresses too
    #[arg(long, env = "WEIR_COUNT_LOOPBACK", value_parser = clap::builder::FalseyValueParser::new())]
    pub count_loopback: bool,
    /// Bytes of events that one write key may have stored in a second, on average; 0: any number. Server keys have no such limit
    #[arg(long, env = "WEIR_KEY_BYTES_PER_SECOND_MAX", value_name = "BYTES", default_value_t = KEY_BYTES_PER_SECOND_MAX)]
    pub key_bytes_per_second_max: u32,
    /// Headers by which a browser objects to being followed: its events are kept as nobody's. gpc, dnt, both, or none
    #[arg(long, env = "WEIR_PRIVACY_SIGNALS", value_name = "SIGNALS", default_value_t = PrivacySignals::default())]
    pub privacy_signals: PrivacySignals,
    /// Header in which a proxy says the visitor's country, such as CF-IPCountry: two letters. Only where all requests come through that proxy
    #[arg(long, env = "WEIR_COUNTRY_HEADER", value_name = "NAME")]
    pub country_header: Option<HeaderName>,
    /// Header to which proxies append the visitor's address, such as X-Forwarded-For: the last entry counts that is not on loopback or private.
    /// Only where all requests come through such a proxy [default: the connection's address]
    #[arg(long, env = "WEIR_ADDRESS_HEADER", value_name = "NAME")]
    pub address_header: Option<HeaderName>,
    /// File in MaxMind's format (GeoLite2-Country, GeoLite2-City) that says country, region and city of an address; read again when it changes
    #[arg(long, env = "WEIR_GEO_FILE", value_name = "FILE")]
    pub geo_file: Option<PathBuf>,
    /// Postgres, which knows the keys.
    #[arg(skip)]
    pub database_url: String,
    /// Folder of `keys.json`, by which known keys go on while Postgres is down; empty: nothing is kept.
    #[arg(skip)]
    pub data_dir: PathBuf,
    /// What one client may use.
    #[arg(skip)]
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            collector: SocketAddr::from(([127, 0, 0, 1], 8080)),
            metrics: None,
            allow_hosts: Vec::new(),
            any_key: false,
            connections_per_address_max: 4_096,
            count_loopback: false,
            key_bytes_per_second_max: KEY_BYTES_PER_SECOND_MAX,
            privacy_signals: PrivacySignals::default(),
            country_header: None,
            address_header: None,
            geo_file: None,
            database_url: String::new(),
            data_dir: PathBuf::new(),
            limits: Limits::default(),
        }
    }
}

/// What one client, and all of them together, may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub connections_max: u32,
    /// Bytes of a body as it is sent.
    pub body_bytes_max: usize,
    /// Bytes of a body once it is decompressed; counted while inflating, so that a bomb stops here.
    pub decoded_bytes_max: usize,
    /// Bytes of all bodies being worked on; beyond it requests are refused with `Retry-After`.
    pub in_flight_bytes_max: usize,
    /// The same for requests whose key is looked for in the body, until it is known: whoever has no key takes nothing from those who have.
    pub unauthenticated_bytes_max: usize,
    /// Bytes of all answers that name rejected events and that their clients have not read yet; beyond it requests with such events are
    /// refused with `Retry-After`. Apart from the memory of bodies, so that who reads no answers takes nothing from those who send.
    pub answers_bytes_max: usize,
    /// Large or compressed bodies that are processed at one time. One processor is left to the connections.
    pub computing_max: usize,
    /// How many of them may wait, three quarters of them of one project; beyond it requests are refused with `Retry-After`.
    pub computing_waiting_max: usize,
    /// Events of one request.
    pub events_max: usize,
    /// Names of conversions and engagement of one project, about: each collector counts by itself what is new.
    pub event_names_max: usize,
    /// How many more server keys may add, whom a public key must not lock out.
    pub event_names_reserve: usize,
    /// Bytes of a request target.
    pub uri_bytes_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Headers of a request.
    pub headers_max: usize,
    /// How long a request's head may take from its first byte on.
    pub head_wait_max: Duration,
    /// How long a body may take.
    pub body_wait_max: Duration,
    /// After how long a body must keep to `body_rate_min`.
    pub body_rate_grace: Duration,
    /// Bytes per second of a body that is still worth waiting for.
    pub body_rate_min: usize,
    /// How long a connection may be idle.
    pub idle_max: Duration,
    /// How long an append may take before the client is told to try again. Longer than the log's own deadline, since
    /// what is stored after an error answer is stored twice after the retry, until deduplication.
    pub append_wait_max: Duration,
    /// How often the file of places is looked at.
    pub geo_look_every: Duration,
    /// How long requests are still taken after `/readyz` says that the collector stops.
    pub linger: Duration,
    /// How long [`crate::Collector::stop`] may take.
    pub stop_wait_max: Duration,
}

impl Limits {
    /// Returns those that concern connections.
    pub(crate) fn of_connections(&self) -> service::Limits {
        service::Limits {
            connections_max: self.connections_max as usize,
            headers_max: self.headers_max,
            head_bytes_max: self.head_bytes_max,
            head_wait_max: self.head_wait_max,
            idle_max: self.idle_max,
            // A client that has shut its side down after the request still wants the answer.
            half_close: true,
            ..service::Limits::default()
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 16_384,
            body_bytes_max: 2 * 1024 * 1024,
            decoded_bytes_max: 10 * 1024 * 1024,
            in_flight_bytes_max: 256 * 1024 * 1024,
            unauthenticated_bytes_max: 16 * 1024 * 1024,
            answers_bytes_max: 32 * 1024 * 1024,
            computing_max: std::thread::available_parallelism().map_or(1, |processors| (processors.get() - 1).max(1)),
            computing_waiting_max: 1_024,
            events_max: 2_500,
            event_names_max: 2_000,
            event_names_reserve: 500,
            uri_bytes_max: 4 * 1024,
            head_bytes_max: 16 * 1024,
            headers_max: 64,
            head_wait_max: Duration::from_secs(10),
            body_wait_max: Duration::from_secs(30),
            body_rate_grace: Duration::from_secs(5),
            body_rate_min: 1024,
            idle_max: Duration::from_secs(65),
            append_wait_max: Duration::from_secs(60),
            geo_look_every: Duration::from_secs(5),
            linger: Duration::from_millis(250),
            // Before it comes `linger`, after it up to 2 s in which the client of Kafka drains; together less than the 10 s that a stop may take.
            stop_wait_max: Duration::from_secs(7),
        }
    }
}

/// Why a collector did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `--any-key` on an address that others can reach.
    #[error("--any-key takes events from everybody, so it needs a loopback address such as 127.0.0.1:8080; found {0}")]
    AnyKeyInPublic(SocketAddr),
    /// No database URL that can be read.
    #[error("database URL: {0}; expected postgres://user:password@host:port/database")]
    DatabaseUrl(String),
    /// An address that cannot be listened on.
    #[error("{setting} {address} cannot be listened on")]
    Listen {
        /// The flag and its variable.
        setting: &'static str,
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of places is missing or damaged.
    #[error("--geo-file (WEIR_GEO_FILE) {} cannot be read: {reason}", path.display())]
    GeoFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The system gives no threads.
    #[error("no threads for large bodies: {0}")]
    Threads(#[source] std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn flags_become_values() {
        let config = Cli::try_parse_from(["weir", "--collector", "127.0.0.1:0", "--any-key"]).expect("parses").config;
        assert_eq!((config.collector.port(), config.any_key), (0, true));
        let config = Cli::try_parse_from(["weir"]).expect("parses").config;
        assert_eq!((config.collector, config.any_key), (Config::default().collector, false));
        assert_eq!(config.key_bytes_per_second_max, Config::default().key_bytes_per_second_max);
        assert!(Cli::try_parse_from(["weir", "--collector", "here"]).is_err());
    }
}
