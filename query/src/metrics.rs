//! The query service's own numbers.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge, Label};
use service::Meter;

use crate::http::limits::QueryKind;

const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const REQUESTS: &str = "weir_query_requests_total";
const REQUEST_SECONDS: &str = "weir_query_request_seconds";
const COHORTS: &str = "weir_query_cohorts_total";
const EVALUATIONS: &str = "weir_query_evaluations_total";
const DELIVERIES: &str = "weir_query_webhook_deliveries_total";
const KILLED: &str = "weir_query_workers_killed_total";
/// Why processes for SQL end before their time.
const KILL_REASONS: [&str; 5] = ["abandoned", "timeout", "lingering", "memory", "died"];

/// Handles of all that the query service counts.
pub(crate) struct Metrics {
    meter: Arc<Meter>,
    /// Queries that run.
    pub(crate) running: Gauge,
    /// Queries that wait.
    pub(crate) waiting: Gauge,
    /// Queries refused because too many wait.
    pub(crate) busy: Counter,
    /// Rows of SQL answers.
    pub(crate) rows: Counter,
    /// The places and what waits for them, by kind.
    pub(crate) questions: Questions,
    /// Processes for SQL that are ready or answer.
    pub(crate) workers_running: Gauge,
    /// Those that answer.
    pub(crate) workers_busy: Gauge,
    /// What is looked at when the page is asked for.
    looked_at: LookedAt,
}

/// Queries by kind.
#[derive(Clone)]
pub(crate) struct Questions {
    running: [Gauge; QueryKind::ALL.len()],
    waiting: [Gauge; QueryKind::ALL.len()],
}

impl Questions {
    /// Those that have a place.
    pub(crate) fn running(&self, kind: QueryKind) -> &Gauge {
        &self.running[kind as usize]
    }

    /// Those that wait for one.
    pub(crate) fn waiting(&self, kind: QueryKind) -> &Gauge {
        &self.waiting[kind as usize]
    }
}

/// Memory, in bytes, and by whom it is held.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    /// Sorts, joins and aggregates of the service's own process.
    pub(crate) engine: usize,
    /// Cohorts that the next answer may use.
    pub(crate) cohorts: usize,
    /// SQL answers that are not written yet.
    pub(crate) answers: usize,
    /// All that the processes for SQL have in memory.
    pub(crate) workers: u64,
}

struct LookedAt {
    engine: Gauge,
    cohorts: Gauge,
    answers: Gauge,
    workers: Gauge,
}

/// Makes the meter of a query service.
pub(crate) fn meter() -> Arc<Meter> {
    Arc::new(Meter::new("query", &[(REQUEST_SECONDS, &SECONDS)]))
}

impl Metrics {
    pub(crate) fn new(meter: Arc<Meter>) -> Self {
        meter.describe_counter(REQUESTS, "Requests answered, by route and status");
        meter.describe_histogram(REQUEST_SECONDS, "Seconds until an answer, by route");
        meter.describe_counter(
            COHORTS,
            "Answers about experiments, by how their users were known: the same as before, followed by what was new, or read",
        );
        meter.describe_counter(
            KILLED,
            "Processes for SQL that were killed or died, by reason: their client had gone, the time limit had passed, or the answer was \
             given, and they went on; they asked for too much memory; they died by themselves",
        );
        // From the start on, so that the first one is an increase.
        for reason in KILL_REASONS {
            meter.labelled_counter(KILLED, vec![Label::from_static_parts("reason", reason)]).increment(0);
        }
        meter.describe_counter(
            EVALUATIONS,
            "Evaluations of experiments at the end of a day or an hour, by result: recorded, restated since late events changed what was \
             found, unchanged, or failed",
        );
        meter.describe_counter(
            DELIVERIES,
            "Attempts to deliver a notice to a webhook, by result: delivered, failed and tried again later, or given up",
        );
        for (name, results) in [
            (EVALUATIONS, ["recorded", "restated", "unchanged", "failed"].as_slice()),
            (DELIVERIES, ["delivered", "failed", "given_up"].as_slice()),
        ] {
            for result in results {
                meter.labelled_counter(name, vec![Label::from_static_parts("result", result)]).increment(0);
            }
        }
        let by_kind = |name: &'static str, help: &'static str| {
            meter.describe_gauge(name, help);
            QueryKind::ALL.map(|kind| {
                let gauge = meter.labelled_gauge(name, vec![Label::from_static_parts("kind", kind.label())]);
                gauge.set(0.0);
                gauge
            })
        };
        let questions = Questions {
            running: by_kind("weir_query_questions_running", "Places taken by queries that run, by what is asked"),
            waiting: by_kind("weir_query_questions_waiting", "Queries that wait for a place, by what is asked"),
        };
        let looked_at = LookedAt {
            engine: meter.gauge(
                "weir_query_engine_pool_bytes",
                "Memory that sorts, joins and aggregates of experiments and funnels have reserved; that of SQL is in its processes",
            ),
            cohorts: meter.gauge("weir_query_cohort_cache_bytes", "Cohorts in memory, which the next answer about an experiment uses"),
            answers: meter.gauge("weir_query_answers_in_flight_bytes", "SQL answers that their clients have not taken yet"),
            workers: meter.gauge("weir_query_workers_resident_memory_bytes", "Memory that all processes for SQL have resident"),
        };
        Metrics {
            questions,
            looked_at,
            workers_running: meter.gauge("weir_query_workers_running", "Processes for SQL that are ready or answer"),
            workers_busy: meter.gauge("weir_query_workers_busy", "Processes for SQL that answer, or end what they began"),
            running: meter.gauge("weir_query_running", "Queries that run"),
            waiting: meter.gauge("weir_query_waiting", "Queries that wait for those that run"),
            busy: meter.counter("weir_query_busy_total", "Queries refused because too many waited"),
            rows: meter.counter("weir_query_sql_rows_total", "Rows of SQL answers"),
            meter,
        }
    }

    /// Counts an answer.
    pub(crate) fn answer(&self, route: &'static str, status: u16, took: Duration) {
        let route = Label::from_static_parts("route", route);
        let labels = vec![route.clone(), Label::new("status", status.to_string())];
        self.meter.labelled_counter(REQUESTS, labels).increment(1);
        self.meter.labelled_histogram(REQUEST_SECONDS, vec![route]).record(took.as_secs_f64());
    }

    /// Shows who holds memory now.
    pub(crate) fn held(&self, held: Held) {
        self.looked_at.engine.set(held.engine as f64);
        self.looked_at.cohorts.set(held.cohorts as f64);
        self.looked_at.answers.set(held.answers as f64);
        self.looked_at.workers.set(held.workers as f64);
    }

    /// Counts an evaluation.
    pub(crate) fn evaluation(&self, result: &'static str) {
        self.meter.labelled_counter(EVALUATIONS, vec![Label::from_static_parts("result", result)]).increment(1);
    }

    /// Counts an attempt to deliver a notice.
    pub(crate) fn delivery(&self, result: &'static str) {
        self.meter.labelled_counter(DELIVERIES, vec![Label::from_static_parts("result", result)]).increment(1);
    }

    /// Counts a worker that is gone before its time.
    pub(crate) fn worker_killed(&self, reason: &'static str) {
        self.meter.labelled_counter(KILLED, vec![Label::from_static_parts("reason", reason)]).increment(1);
    }

    /// Counts how the cohort of an answer was obtained.
    pub(crate) fn cohort(&self, way: &'static str) {
        self.meter.labelled_counter(COHORTS, vec![Label::from_static_parts("way", way)]).increment(1);
    }
}
