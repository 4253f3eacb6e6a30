//! The aggregator's own numbers, on a recorder of its own: in one process with the collector each page shows only its own.

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use events::Kind;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const METADATA: Metadata<'static> = Metadata::new("aggregator", Level::INFO, None);
const COMMIT_SECONDS: &str = "weir_aggregator_commit_seconds";
const STORED_AGE_SECONDS: &str = "weir_aggregator_stored_age_seconds";

/// Handles of all that the aggregator counts. read = stored + duplicate + dead letters.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Records read from the log and committed.
    pub read: Counter,
    /// Events that were already stored.
    pub duplicates: Counter,
    /// Conversions that no experiment was credited with.
    pub unattributed: Counter,
    /// Seconds of one commit.
    pub commit_seconds: Histogram,
    /// Seconds from receipt to commit, of the oldest event of each batch.
    pub stored_age_seconds: Histogram,
    /// Commits whose reply was lost.
    pub unknown_commits: Counter,
    /// Commits refused because another worker owns the log partition.
    pub fenced: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.into()), &seconds)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(STORED_AGE_SECONDS.into()), &seconds))
            .map(PrometheusBuilder::build_recorder)
            .unwrap_or_else(|_| PrometheusBuilder::new().build_recorder()); // refused for an empty list only
        let handle = recorder.handle();
        let counter = |name: &'static str, help: &'static str| {
            recorder.describe_counter(KeyName::from(name), None, SharedString::from(help));
            let counter = recorder.register_counter(&Key::from_static_name(name), &METADATA);
            counter.absolute(0);
            counter
        };
        let histogram = |name: &'static str, help: &'static str| {
            recorder.describe_histogram(KeyName::from(name), Some(Unit::Seconds), SharedString::from(help));
            recorder.register_histogram(&Key::from_static_name(name), &METADATA)
        };
        recorder.describe_counter("weir_aggregator_stored_total".into(), None, "Events stored, by kind".into());
        recorder.describe_counter(
            "weir_aggregator_dead_letters_total".into(),
            None,
            "Records that could not be applied, by code".into(),
        );
        recorder.describe_gauge("weir_aggregator_lag_records".into(), None, "Records in the log that are not stored yet".into());
        recorder.describe_gauge("weir_aggregator_halted".into(), None, "1 for a log partition that waits for an operator".into());
        Metrics {
            read: counter("weir_aggregator_read_total", "Records read from the log and committed"),
            duplicates: counter("weir_aggregator_duplicates_total", "Events that were already stored"),
            unattributed: counter("weir_aggregator_unattributed_total", "New conversions that no experiment was credited with"),
            unknown_commits: counter("weir_aggregator_unknown_commits_total", "Commits whose reply was lost"),
            fenced: counter("weir_aggregator_fenced_total", "Commits refused because another worker owns the log partition"),
            commit_seconds: histogram(COMMIT_SECONDS, "Seconds of one commit"),
            stored_age_seconds: histogram(STORED_AGE_SECONDS, "Seconds from receipt to commit, oldest event of a batch"),
            handle,
            recorder,
        }
    }

    /// Counts events that were stored.
    pub(crate) fn stored(&self, kind: Kind, count: u64) {
        self.labelled("weir_aggregator_stored_total", "kind", kind.as_str()).increment(count);
    }

    /// Counts dead letters.
    pub(crate) fn dead_letter(&self, code: &'static str) {
        self.labelled("weir_aggregator_dead_letters_total", "code", code).increment(1);
    }

    /// Shows how far a log partition is behind.
    pub(crate) fn lag(&self, partition: u32, records: u64) {
        self.gauge("weir_aggregator_lag_records", partition).set(records as f64);
    }

    /// Shows whether a log partition is halted.
    pub(crate) fn halted(&self, partition: u32, halted: bool) {
        self.gauge("weir_aggregator_halted", partition).set(if halted { 1.0 } else { 0.0 });
    }

    /// Returns the page.
    pub(crate) fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }

    fn labelled(&self, name: &'static str, label: &'static str, value: &'static str) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, vec![Label::new(label, value)]), &METADATA)
    }

    fn gauge(&self, name: &'static str, partition: u32) -> Gauge {
        let label = Label::new("log_partition", partition.to_string());
        self.recorder.register_gauge(&Key::from_parts(name, vec![label]), &METADATA)
    }
}
