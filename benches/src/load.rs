//! The load generator: posts events on a schedule, checks every answer, keeps a ledger.
//!
//! **Open loop** (`rate` above 0): request n is due at start + n / rate, whether or not earlier ones were answered. Its
//! latency counts from when it was due, so a server that stalls is charged for every request that waited meanwhile. All
//! connections take from one schedule, as a large crowd of clients would. **Closed loop** (`rate` 0): each connection sends
//! the next request when it has the answer to the last; that finds the highest rate, and its latencies say little.
//!
//! A request is finished when its events are **acknowledged**, **refused** (surely not stored) or **unknown** (perhaps
//! stored). With `retry`, all but the first are sent again, the same bytes, until acknowledged or time is up.

mod answer;
mod connection;
mod ledger;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use events::Micros;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

pub(crate) use answer::Outcome;
pub(crate) use connection::{Connection, Target};
pub use ledger::State;
use ledger::{Entry, Ledger};

use crate::histogram::Histogram;
use crate::machine;
use crate::payload::{Facts, Mix, Plan};

/// How long after its end a run may still send what was due, or send again.
const OVERTIME: Duration = Duration::from_secs(60);

/// What to send where.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the collector listens, such as http://127.0.0.1:8080; without a path /v1/events is meant
    #[arg(long)]
    pub url: String,
    /// Write key
    #[arg(long, env = "WEIR_WRITE_KEY")]
    pub key: String,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Events in each request
    #[arg(long, default_value_t = 100)]
    pub events_per_request: usize,
    /// Events per second, on a schedule that does not wait for answers; 0: as fast as answers come
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// How long
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How many users the events belong to
    #[arg(long, default_value_t = 5_000)]
    pub users: u64,
    /// How many in 100 events are conversions; the others are exposures
    #[arg(long, default_value_t = 5)]
    pub conversions_percent: u64,
    /// Which events are sent; the same seed sends the same events. None: others each time
    #[arg(long)]
    pub seed: Option<u64>,
    /// File that gets a line for each event: state, id, kind, timestamp, weight
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Send again what was not acknowledged, the same bytes, until it is
    #[arg(long)]
    pub retry: bool,
    /// How long to wait for an answer
    #[arg(long, default_value_t = 30.0)]
    pub timeout_seconds: f64,
    /// Threads that send
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
}

impl Options {
    /// Returns the defaults of the command line.
    pub fn new(url: &str, key: &str) -> Self {
        Options {
            url: url.to_owned(),
            key: key.to_owned(),
            connections: 64,
            events_per_request: 100,
            rate: 0.0,
            seconds: 10.0,
            users: 5_000,
            conversions_percent: 5,
            seed: None,
            ledger: None,
            retry: false,
            timeout_seconds: 30.0,
            threads: 2,
        }
    }

    /// Returns what a run with these options sends; without a seed, something else each time.
    pub fn plan(&self) -> Plan {
        let seed = self.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        Plan { seed, users: self.users, mix: Mix::Exposures { conversions_percent: self.conversions_percent } }
    }
}

/// What became of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// From the first request's time to the last answer.
    pub seconds: f64,
    /// Of requests, from when they were due to their last answer.
    pub latency: Histogram,
    /// Events that the server says it has.
    pub acknowledged: u64,
    /// The sum of their weights.
    pub weight: u128,
    /// Events that the server surely does not have.
    pub refused: u64,
    /// Events that it may have.
    pub unknown: u64,
    /// Events that were due and never sent, because time was up.
    pub unsent: u64,
    /// Requests that were sent again.
    pub retries: u64,
    /// How often each outcome other than success was met, by status and code, or by the error.
    pub trouble: BTreeMap<String, u64>,
    /// CPU that this process used meanwhile.
    pub cpu_seconds: f64,
}

impl Report {
    /// Returns acknowledged events per second.
    pub fn rate(&self) -> f64 {
        self.acknowledged as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    fn add(&mut self, other: Report) {
        self.latency.add(&other.latency);
        self.acknowledged += other.acknowledged;
        self.weight += other.weight;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.unsent += other.unsent;
        self.retries += other.retries;
        for (what, count) in other.trouble {
            *self.trouble.entry(what).or_default() += count;
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(out, "events_per_second  {:.0}", self.rate())?;
        writeln!(out, "seconds            {:.2}", self.seconds)?;
        let counts =
            [("acknowledged", self.acknowledged), ("refused", self.refused), ("unknown", self.unknown), ("unsent", self.unsent)];
        for (name, count) in counts {
            writeln!(out, "{name:<18} {count}")?;
        }
        writeln!(out, "requests           {}", self.latency.count())?;
        writeln!(out, "retries            {}", self.retries)?;
        for (name, quantile) in [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p99.9_ms", 0.999)] {
            writeln!(out, "{name:<18} {:.2}", self.latency.quantile(quantile).as_secs_f64() * 1e3)?;
        }
        writeln!(out, "max_ms             {:.2}", self.latency.max().as_secs_f64() * 1e3)?;
        writeln!(out, "weight             {}", self.weight)?;
        write!(out, "cpu_seconds        {:.2}", self.cpu_seconds)?;
        self.trouble.iter().try_for_each(|(what, count)| write!(out, "\ntrouble            {count} x {what}"))
    }
}

/// Runs a load to its end on threads of its own, and returns what became of it. Blocks.
/// # Errors
/// Options that make no sense, a ledger that cannot be written. A server that is not there is no error, but an outcome.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    if options.connections == 0 || options.events_per_request == 0 {
        bail!("connections and events per request: found 0; at least 1 is accepted");
    }
    if !(options.rate >= 0.0 && options.seconds > 0.0 && options.timeout_seconds > 0.0) {
        bail!("rate, seconds and timeout: numbers are accepted, seconds above 0");
    }
    let ledger = options.ledger.as_deref().map(Ledger::create).transpose()?;
    let threads = options.threads.clamp(1, options.connections);
    let shared = Arc::new(Shared {
        target: Target::new(&options.url, &options.key, options.events_per_request)?,
        plan: options.plan(),
        options: options.clone(),
        requests: (options.rate > 0.0)
            .then(|| (options.rate * options.seconds / options.events_per_request as f64).ceil().max(1.0) as u64),
        next: AtomicU64::new(0),
        began: OnceLock::new(),
        ready: Barrier::new(options.connections),
        ledger: ledger.as_ref().map(Ledger::sender),
    });
    let cpu_before = machine::own_cpu_seconds();
    let spawn = |thread: usize| {
        let shared = Arc::clone(&shared);
        let connections = (thread..options.connections).step_by(threads).count();
        std::thread::spawn(move || drive_all(&shared, connections))
    };
    let handles: Vec<_> = (0..threads).map(spawn).collect();
    let mut report = Report::default();
    for handle in handles {
        report.add(handle.join().map_err(|_| anyhow::anyhow!("a thread of the generator panicked"))??);
    }
    report.seconds = shared.began.get().map_or(0.0, |began| began.elapsed().as_secs_f64());
    report.cpu_seconds = machine::own_cpu_seconds() - cpu_before;
    drop(shared);
    if let Some(ledger) = ledger {
        ledger.finish()?;
    }
    Ok(report)
}

/// What all connections of a run share.
struct Shared {
    options: Options,
    plan: Plan,
    target: Target,
    /// How many requests the schedule has; none in a closed loop.
    requests: Option<u64>,
    next: AtomicU64,
    began: OnceLock<Instant>,
    ready: Barrier,
    ledger: Option<ledger::Sender>,
}

impl Shared {
    /// Takes the next request: its number, and when it is due.
    fn take(&self, began: Instant) -> Option<(u64, Instant)> {
        let seconds = Duration::from_secs_f64(self.options.seconds);
        match self.requests {
            Some(requests) => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let after = number as f64 * self.options.events_per_request as f64 / self.options.rate;
                (number < requests).then(|| (number, began + Duration::from_secs_f64(after)))
            }
            None if began.elapsed() < seconds => Some((self.next.fetch_add(1, Ordering::Relaxed), Instant::now())),
            None => None,
        }
    }

    /// Makes the body of a request, and says what it holds.
    fn body(&self, number: u64, timestamp: &str) -> (Bytes, Vec<Facts>) {
        let count = self.options.events_per_request;
        let mut body = Vec::with_capacity(16 + 440 * count);
        body.extend_from_slice(br#"{"events":["#);
        let facts = (number * count as u64..)
            .take(count)
            .enumerate()
            .map(|(index, event)| {
                if index > 0 {
                    body.push(b',');
                }
                self.plan.write(event, timestamp, &mut body)
            })
            .collect();
        body.extend_from_slice(b"]}");
        (body.into(), facts)
    }
}

fn drive_all(shared: &Arc<Shared>, connections: usize) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime of the generator")?;
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..connections {
            tasks.spawn(drive(Arc::clone(shared)));
        }
        let mut report = Report::default();
        while let Some(one) = tasks.join_next().await {
            report.add(one.context("a connection of the generator panicked")?);
        }
        Ok(report)
    })
}

/// One connection: takes requests from the schedule until there are no more.
async fn drive(shared: Arc<Shared>) -> Report {
    let timeout = Duration::from_secs_f64(shared.options.timeout_seconds);
    let mut connection = Connection::new(shared.target.clone(), timeout);
    // A server that is not there shows when something is sent.
    let _ = connection.open().await;
    shared.ready.wait().await;
    let began = *shared.began.get_or_init(Instant::now);
    let give_up = began + Duration::from_secs_f64(shared.options.seconds) + OVERTIME;
    let mut report = Report::default();
    while let Some((number, due)) = shared.take(began) {
        if Instant::now() > give_up {
            report.unsent += shared.options.events_per_request as u64;
            continue;
        }
        tokio::time::sleep_until(due.into()).await;
        let timestamp = Micros::now().to_string();
        let (body, facts) = shared.body(number, &timestamp);
        let mut pause = Duration::from_millis(50);
        let mut perhaps_stored = false;
        let outcome = loop {
            let outcome = connection.send(body.clone()).await;
            let Some(trouble) = outcome.trouble() else { break outcome };
            *report.trouble.entry(trouble.to_owned()).or_default() += 1;
            perhaps_stored |= matches!(outcome, Outcome::Unknown { .. });
            if !shared.options.retry || !outcome.may_pass() || Instant::now() > give_up {
                break outcome;
            }
            report.retries += 1;
            tokio::time::sleep(pause.max(outcome.retry_after().min(Duration::from_secs(2)))).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        };
        report.latency.record(due.elapsed());
        if let Outcome::Accepted { rejected } = &outcome {
            for rejection in rejected {
                *report.trouble.entry(format!("200 rejected {}", rejection.code)).or_default() += 1;
            }
        }
        let rejected = outcome.rejected();
        let mut lines = Vec::new();
        for (index, facts) in facts.iter().enumerate() {
            let state = match &outcome {
                Outcome::Accepted { .. } if rejected.contains(&index) => State::Refused,
                Outcome::Accepted { .. } => State::Acknowledged,
                Outcome::Refused { .. } if !perhaps_stored => State::Refused,
                _ => State::Unknown,
            };
            match state {
                State::Acknowledged => {
                    report.acknowledged += 1;
                    report.weight += u128::from(facts.weight);
                }
                State::Refused => report.refused += 1,
                State::Unknown => report.unknown += 1,
            }
            if shared.ledger.is_some() {
                Entry { state, facts, timestamp: &timestamp }.write(&mut lines);
            }
        }
        if let Some(ledger) = &shared.ledger {
            ledger.send(lines);
        }
    }
    report
}

#[cfg(test)]
mod tests;
