//! The query service's own numbers, on a recorder of its own: beside other services in one process, its page shows only
//! its own.

use std::time::Duration;

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const METADATA: Metadata<'static> = Metadata::new("query", Level::INFO, None);
const REQUESTS: &str = "weir_query_requests_total";
const REQUEST_SECONDS: &str = "weir_query_request_seconds";
const IMAGES: &str = "weir_query_images_total";

/// Handles of all that the query service counts.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Open connections.
    pub(crate) connections: Gauge,
    /// Queries that run.
    pub(crate) running: Gauge,
    /// Queries that wait.
    pub(crate) waiting: Gauge,
    /// Queries refused because too many wait.
    pub(crate) busy: Counter,
    /// Rows of SQL answers.
    pub(crate) rows: Counter,
    /// 1 while queries can be answered.
    pub(crate) ready: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(REQUEST_SECONDS.into()), &seconds)
            .map(PrometheusBuilder::build_recorder)
            .unwrap_or_else(|_| PrometheusBuilder::new().build_recorder()); // refused for an empty list only
        let handle = recorder.handle();
        recorder.describe_counter(REQUESTS.into(), None, "Requests answered, by route and status".into());
        recorder.describe_histogram(REQUEST_SECONDS.into(), Some(Unit::Seconds), "Seconds until an answer, by route".into());
        recorder.describe_counter(
            IMAGES.into(),
            None,
            "Answers about experiments, by how their users were known: the same as before, followed by what was new, or read"
                .into(),
        );
        let counter = |name: &'static str, help: &'static str| {
            recorder.describe_counter(KeyName::from(name), None, SharedString::from(help));
            let counter = recorder.register_counter(&Key::from_static_name(name), &METADATA);
            counter.absolute(0);
            counter
        };
        let gauge = |name: &'static str, help: &'static str| {
            recorder.describe_gauge(KeyName::from(name), None, SharedString::from(help));
            recorder.register_gauge(&Key::from_static_name(name), &METADATA)
        };
        Metrics {
            connections: gauge("weir_query_connections", "Open connections"),
            running: gauge("weir_query_running", "Queries that run"),
            waiting: gauge("weir_query_waiting", "Queries that wait for those that run"),
            busy: counter("weir_query_busy_total", "Queries refused because too many waited"),
            rows: counter("weir_query_sql_rows_total", "Rows of SQL answers"),
            ready: gauge("weir_query_ready", "1 while the database answers and has the expected schema"),
            recorder,
            handle,
        }
    }

    /// Counts an answer.
    pub(crate) fn answer(&self, route: &'static str, status: u16, took: Duration) {
        let labels = vec![Label::from_static_parts("route", route), Label::new("status", status.to_string())];
        self.recorder.register_counter(&Key::from_parts(REQUESTS, labels), &METADATA).increment(1);
        self.seconds(route).record(took.as_secs_f64());
    }

    /// Counts how an image of an experiment came to be.
    pub(crate) fn image(&self, way: &'static str) {
        let key = Key::from_parts(IMAGES, vec![Label::from_static_parts("way", way)]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    fn seconds(&self, route: &'static str) -> Histogram {
        let labels = vec![Label::from_static_parts("route", route)];
        self.recorder.register_histogram(&Key::from_parts(REQUEST_SECONDS, labels), &METADATA)
    }

    /// Writes the page that Prometheus scrapes.
    pub(crate) fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}
