//! The aggregator's own numbers.

use std::sync::Arc;

use ::metrics::{Counter, Gauge, Histogram, Label};
use events::Kind;
use service::Meter;

use crate::commit::memory::Counts;

const STORED: &str = "weir_aggregator_stored_total";
const DEAD_LETTERS: &str = "weir_aggregator_dead_letters_total";
const LAG: &str = "weir_aggregator_lag_records";
const HALTED: &str = "weir_aggregator_halted";
const KNOWN_USERS_BYTES: &str = "weir_aggregator_known_users_bytes";
const SECONDS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// Handles of all that the aggregator counts. read = stored + duplicate + dead letters.
pub(crate) struct Metrics {
    meter: Arc<Meter>,
    /// Records read from the log and committed.
    pub read: Counter,
    /// Events that were already stored.
    pub duplicates: Counter,
    /// Conversions that no experiment was credited with.
    pub unattributed: Counter,
    /// Users who had too many rows from then on.
    pub over_active: Counter,
    /// Seconds of one commit.
    pub commit_seconds: Histogram,
    /// Seconds from receipt to commit, of the oldest event of each batch.
    pub stored_age_seconds: Histogram,
    /// Commits whose reply was lost.
    pub unknown_commits: Counter,
    /// Commits refused because another worker owns the log partition.
    pub fenced: Counter,
    /// Experiments whose participation and attribution are not up to date.
    pub experiments_behind: Gauge,
    /// Months whose rows are in the archive alone.
    pub months_away: Gauge,
    /// 1 while a month that should leave or come back does not.
    pub months_stuck: Gauge,
    users_known: Counter,
    users_read: Counter,
    users_compared: Counter,
    users_different: Counter,
}

/// Makes the meter of an aggregator.
pub(crate) fn meter() -> Arc<Meter> {
    Arc::new(Meter::new("aggregator", &[("_seconds", &SECONDS)]))
}

impl Metrics {
    pub(crate) fn new(meter: Arc<Meter>) -> Self {
        meter.describe_counter(STORED, "Events stored, by kind");
        meter.describe_counter(DEAD_LETTERS, "Records that could not be applied, by code");
        meter.describe_gauge(LAG, "Records in the log that are not stored yet");
        meter.describe_gauge(HALTED, "1 for a log partition that waits for an operator");
        meter.describe_gauge(KNOWN_USERS_BYTES, "Bytes of what a worker remembers of users, about");
        Metrics {
            read: meter.counter("weir_aggregator_read_total", "Records read from the log and committed"),
            duplicates: meter.counter("weir_aggregator_duplicates_total", "Events that were already stored"),
            unattributed: meter
                .counter("weir_aggregator_unattributed_total", "New conversions that no experiment was credited with"),
            over_active: meter.counter(
                "weir_aggregator_over_active_users_total",
                "Users left out of experiments from then on, for too many rows",
            ),
            unknown_commits: meter.counter("weir_aggregator_unknown_commits_total", "Commits whose reply was lost"),
            fenced: meter
                .counter("weir_aggregator_fenced_total", "Commits refused because another worker owns the log partition"),
            experiments_behind: meter.gauge(
                "weir_aggregator_experiments_behind",
                "Experiments whose participation and attribution wait for a recomputation",
            ),
            months_away: meter
                .gauge("weir_aggregator_months_away", "Months whose rows no query sees: they are archived, or on their way"),
            months_stuck: meter.gauge(
                "weir_aggregator_months_stuck",
                "1 while a month that is due cannot leave, or one on its way does not go on; `weir admin month list` says why",
            ),
            users_known: meter.counter("weir_aggregator_users_known_total", "Users of batches whose rows were remembered"),
            users_read: meter.counter("weir_aggregator_users_read_total", "Users of batches whose rows were read from Postgres"),
            users_compared: meter
                .counter("weir_aggregator_users_compared_total", "Users whose rows were remembered, and read to compare them"),
            users_different: meter
                .counter("weir_aggregator_users_different_total", "Users whose remembered rows were not the stored ones: a bug"),
            commit_seconds: meter.histogram("weir_aggregator_commit_seconds", "Seconds of one commit"),
            stored_age_seconds: meter
                .histogram("weir_aggregator_stored_age_seconds", "Seconds from receipt to commit, oldest event of a batch"),
            meter,
        }
    }

    /// Counts events that were stored.
    pub(crate) fn stored(&self, kind: Kind, count: u64) {
        self.meter.labelled_counter(STORED, vec![Label::new("kind", kind.as_str())]).increment(count);
    }

    /// Counts dead letters.
    pub(crate) fn dead_letters(&self, code: &'static str, records: u64) {
        self.meter.labelled_counter(DEAD_LETTERS, vec![Label::new("code", code)]).increment(records);
    }

    /// Counts how users became known in a worker's commits, and shows what it remembers.
    pub(crate) fn users(&self, worker: u32, counts: Counts, bytes: usize) {
        self.users_known.increment(counts.known);
        self.users_read.increment(counts.read);
        self.users_compared.increment(counts.sampled);
        self.users_different.increment(counts.different);
        let label = vec![Label::new("worker", worker.to_string())];
        self.meter.labelled_gauge(KNOWN_USERS_BYTES, label).set(bytes as f64);
    }

    /// Shows how far storing is behind the end of a log partition.
    pub(crate) fn lag(&self, partition: u32, records: u64) {
        self.gauge(LAG, partition).set(records as f64);
    }

    /// Shows whether a log partition is halted.
    pub(crate) fn halted(&self, partition: u32, halted: bool) {
        self.gauge(HALTED, partition).set(if halted { 1.0 } else { 0.0 });
    }

    fn gauge(&self, name: &'static str, partition: u32) -> Gauge {
        self.meter.labelled_gauge(name, vec![Label::new("log_partition", partition.to_string())])
    }
}
