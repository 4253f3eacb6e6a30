//! What an operator sets, and every limit with its unit and its reason.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How a query service runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Address that answers queries
    #[arg(long, env = "WEIR_QUERY", value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub query: SocketAddr,
    /// Memory of the query service's process, in bytes; beyond it the process ends, and whatever runs it starts it again
    #[arg(long, env = "WEIR_QUERY_MEMORY_BYTES_MAX", value_name = "BYTES", default_value_t = MEMORY_BYTES_MAX)]
    pub query_memory_bytes_max: u64,
    /// Memory of each of its processes for SQL, in bytes; a query that needs more is refused
    #[arg(long, env = "WEIR_QUERY_WORKER_MEMORY_BYTES_MAX", value_name = "BYTES", default_value_t = WORKER_MEMORY_BYTES_MAX)]
    pub query_worker_memory_bytes_max: u64,
    /// Address of `/metrics`, `/livez` and `/readyz` alone; none: the metrics are on `query` too if that is a loopback address, else on
    /// 127.0.0.1:8091.
    #[arg(skip)]
    pub metrics: Option<SocketAddr>,
    /// Hosts that requests may name beside this machine's own; see [`service::Hosts`].
    #[arg(skip)]
    pub allow_hosts: Vec<String>,
    /// Postgres, which holds everything.
    #[arg(skip)]
    pub database_url: String,
    /// Certificates in PEM that webhooks of https are checked by, instead of those that the system trusts.
    #[arg(skip)]
    pub ca: Option<PathBuf>,
    /// The command that starts a worker: a program that calls [`crate::worker::serve`], and its arguments.
    #[arg(skip)]
    pub worker: Vec<OsString>,
    /// What one query, and all of them together, may use.
    #[arg(skip)]
    pub limits: Limits,
}

/// Three answers about experiments with 1 GiB each, the cached cohorts, and answers on their way.
const MEMORY_BYTES_MAX: u64 = 4 * 1_024 * 1_024 * 1_024;
/// Three times what the engine counts: batches on their way, the answer, and what nobody counts.
const WORKER_MEMORY_BYTES_MAX: u64 = 1_536 * 1_024 * 1_024;

impl Default for Config {
    fn default() -> Self {
        Config {
            query: SocketAddr::from(([127, 0, 0, 1], 8081)),
            query_memory_bytes_max: MEMORY_BYTES_MAX,
            query_worker_memory_bytes_max: WORKER_MEMORY_BYTES_MAX,
            metrics: None,
            allow_hosts: Vec::new(),
            database_url: String::new(),
            ca: None,
            worker: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// What one query, and all of them together, may use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// Open connections; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of a request's body: a longest SQL text with its escapes.
    pub body_bytes_max: usize,
    /// How long a request's head may take from its first byte on.
    pub head_wait_max: Duration,
    /// How long a connection may be idle.
    pub idle_max: Duration,
    /// How long a request's body may take.
    pub body_wait_max: Duration,
    /// How long a client may take for a part of an answer; see [`service::Limits`].
    pub answer_wait_max: Duration,
    /// Bytes of a SQL text.
    pub sql_bytes_max: usize,
    /// Operators, list items and keywords that nest, of a SQL text: planning recurses over them.
    pub sql_operators_max: usize,
    /// `SELECT`, `FROM`, `JOIN`, `UNION` and the like of a SQL text: the time of planning grows with more than their square.
    pub sql_clauses_max: usize,
    /// Parentheses within parentheses, brackets following brackets, types within types.
    pub sql_depth_max: usize,
    /// Subqueries within subqueries in expressions, and WITH within WITH: each level doubles the time of planning.
    pub sql_subqueries_depth_max: usize,
    /// Tables that one query reads, a table read twice counted twice. Each needs a connection.
    pub sql_relations_max: usize,
    /// Grouping sets of a SQL text: each is an aggregation of its own, and CUBE has two to the power of its columns.
    pub sql_grouping_sets_max: usize,
    /// How long one query may take, waiting not included.
    pub query_time_max: Duration,
    /// Bytes that one query may hold in sorts, joins and aggregates. Advisory: not everything in the engine counts itself.
    pub query_memory_bytes_max: usize,
    /// Bytes that a worker may use in all, whatever for: the hard limit around the one before. Set from the configuration.
    pub worker_memory_bytes_max: u64,
    /// Bytes of SQL answers that are not written yet, of all clients. One project's leave room for one more answer.
    pub answers_bytes_max: usize,
    /// Bytes of cached cohorts, the users and conversions of experiments that the next answer uses again: a million
    /// users take about 75 MiB, so that ten million fit.
    pub cohorts_bytes_max: usize,
    /// Rows of an answer; more are cut, and the answer says so.
    pub rows_max: usize,
    /// Bytes of an answer's rows; more are cut, and the answer says so.
    pub answer_bytes_max: usize,
    /// Queries that run at one time. One project's are one less, if there are two or more.
    pub queries_running_max: usize,
    /// Queries that wait for those; more are refused.
    pub queries_waiting_max: usize,
    /// Threads of one query.
    pub query_threads: usize,
    /// For how long a token is believed; a revoked one works no longer than this.
    pub token_age_max: Duration,
    /// How long [`crate::Query::stop`] may take.
    pub stop_wait_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 1_024,
            body_bytes_max: 256 * 1_024,
            head_wait_max: Duration::from_secs(10),
            idle_max: Duration::from_secs(65),
            body_wait_max: Duration::from_secs(30),
            answer_wait_max: Duration::from_secs(10),
            sql_bytes_max: 64 * 1_024,
            sql_operators_max: 500,
            sql_clauses_max: 120,
            sql_depth_max: 50,
            sql_subqueries_depth_max: 8,
            sql_relations_max: 9,
            sql_grouping_sets_max: 64,
            query_time_max: Duration::from_secs(30),
            query_memory_bytes_max: 512 * 1_024 * 1_024,
            worker_memory_bytes_max: WORKER_MEMORY_BYTES_MAX,
            answers_bytes_max: 256 * 1_024 * 1_024,
            cohorts_bytes_max: 1_024 * 1_024 * 1_024,
            rows_max: 100_000,
            answer_bytes_max: 64 * 1_024 * 1_024,
            queries_running_max: 3,
            queries_waiting_max: 16,
            query_threads: 2,
            token_age_max: Duration::from_secs(5),
            stop_wait_max: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Returns those that concern connections.
    pub(crate) fn of_connections(&self) -> service::Limits {
        service::Limits {
            connections_max: self.connections_max,
            head_wait_max: self.head_wait_max,
            idle_max: self.idle_max,
            answer_wait_max: self.answer_wait_max,
            // A client that has gone no longer wants its answer: the end of its side ends the query.
            half_close: false,
            ..service::Limits::default()
        }
    }

    /// Returns how many queries of one project run at one time: as long as there is another place, the last one is not for who has others.
    pub(crate) fn queries_running_of_one_max(&self) -> usize {
        self.queries_running_max.saturating_sub(1).max(1)
    }

    /// Returns the bytes of one project's SQL answers that are not written yet.
    pub(crate) fn answers_bytes_of_one_max(&self) -> usize {
        // What an answer has beside its rows: names of columns, how far the log was stored.
        const BESIDE_ROWS: usize = 1_024 * 1_024;
        self.answers_bytes_max.saturating_sub(self.answer_bytes_max + BESIDE_ROWS).max(self.answers_bytes_max / 2)
    }

    /// Returns the connections to Postgres that the service can ever need at one time: per query the transaction that exports its snapshot and
    /// one per scan; and a few for tokens and health. With fewer, queries could wait for each other for ever.
    pub(crate) fn postgres_connections(&self) -> u32 {
        u32::try_from(self.queries_running_max * (1 + crate::engine::STREAMS_MAX) + 3).unwrap_or(u32::MAX)
    }

    /// Returns those of a worker, whose statements read more tables.
    pub(crate) fn worker_postgres_connections(&self) -> u32 {
        u32::try_from(1 + self.sql_relations_max.max(crate::engine::STREAMS_MAX)).unwrap_or(u32::MAX)
    }
}
