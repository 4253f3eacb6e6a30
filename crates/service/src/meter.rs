//! The numbers of one service, on a recorder of its own: several services may share a process, and each `/metrics` shows only its own.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::process;

const METADATA: Metadata<'static> = Metadata::new("weir", Level::INFO, None);

/// Makes the metrics of one service and writes the text that Prometheus scrapes.
pub struct Meter {
    service: &'static str,
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Meter {
    /// Makes one for a service as its metrics name it, such as `collector` in `weir_collector_..`. `buckets`: the upper bounds of
    /// the histograms whose names end so, in ascending order, none of them empty; other histograms have none.
    pub fn new(service: &'static str, buckets: &[(&str, &[f64])]) -> Self {
        let with_buckets = buckets.iter().try_fold(PrometheusBuilder::new(), |builder, (suffix, bounds)| {
            builder.set_buckets_for_metric(Matcher::Suffix((*suffix).to_owned()), bounds)
        });
        // Refused for an empty list only.
        let recorder = with_buckets.unwrap_or_else(|_| PrometheusBuilder::new()).build_recorder();
        let meter = Meter { service, handle: recorder.handle(), recorder };
        let name = meter.own("build_info");
        meter.describe_gauge(name.clone(), "1, with the version of this build.");
        meter.labelled_gauge(name, vec![Label::new("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        meter
    }

    /// Returns the service's name.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Returns the whole name of a metric that every service has.
    pub(crate) fn own(&self, name: &str) -> String {
        format!("weir_{}_{name}", self.service)
    }

    /// Makes a counter, which is in `/metrics` from now on, at 0.
    pub fn counter(&self, name: impl Into<SharedString>, help: &'static str) -> Counter {
        let name = name.into();
        self.describe_counter(name.clone(), help);
        self.labelled_counter(name, Vec::new())
    }

    /// Makes a counter for each value of one label, at 0.
    pub fn counters(&self, name: &'static str, help: &'static str, label: &'static str, values: &[&'static str]) -> Vec<Counter> {
        self.describe_counter(name, help);
        values.iter().map(|value| self.labelled_counter(name, vec![Label::new(label, *value)])).collect()
    }

    /// Makes a gauge, at 0.
    pub fn gauge(&self, name: impl Into<SharedString>, help: &'static str) -> Gauge {
        let name = name.into();
        self.describe_gauge(name.clone(), help);
        let gauge = self.labelled_gauge(name, Vec::new());
        gauge.set(0.0);
        gauge
    }

    /// Makes a histogram.
    pub fn histogram(&self, name: &'static str, help: &'static str) -> Histogram {
        self.describe_histogram(name, help);
        self.labelled_histogram(name, Vec::new())
    }

    /// Describes counters that are made later, label by label.
    pub fn describe_counter(&self, name: impl Into<SharedString>, help: &'static str) {
        self.recorder.describe_counter(KeyName::from(name.into()), None, SharedString::const_str(help));
    }

    /// Describes gauges that are made later.
    pub fn describe_gauge(&self, name: impl Into<SharedString>, help: &'static str) {
        self.recorder.describe_gauge(KeyName::from(name.into()), None, SharedString::const_str(help));
    }

    /// Describes histograms that are made later.
    pub fn describe_histogram(&self, name: &'static str, help: &'static str) {
        self.recorder.describe_histogram(KeyName::from(name), None, SharedString::const_str(help));
    }

    /// Returns the counter with these labels, at 0 if it is new.
    pub fn labelled_counter(&self, name: impl Into<SharedString>, labels: Vec<Label>) -> Counter {
        let counter = self.recorder.register_counter(&Key::from_parts(KeyName::from(name.into()), labels), &METADATA);
        counter.increment(0);
        counter
    }

    /// Returns the gauge with these labels.
    pub fn labelled_gauge(&self, name: impl Into<SharedString>, labels: Vec<Label>) -> Gauge {
        self.recorder.register_gauge(&Key::from_parts(KeyName::from(name.into()), labels), &METADATA)
    }

    /// Returns the histogram with these labels.
    pub fn labelled_histogram(&self, name: &'static str, labels: Vec<Label>) -> Histogram {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA)
    }

    /// Returns the text that Prometheus scrapes: the service's own numbers, then those of its process.
    pub fn render(&self) -> String {
        self.upkeep();
        self.handle.render() + &process::page()
    }

    /// Moves what was recorded into the histograms; without it they grow until the next scrape.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Counts something while it lasts, also if it ends by being dropped.
pub struct Counted(Gauge);

impl Counted {
    /// Counts one more.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
