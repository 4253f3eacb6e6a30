//! Counters of the collector, on a recorder of its own: collector and aggregator may share a process, and each `/metrics` shows
//! only its own. No key, id or user agent is ever a label.
//!
//! For all requests together, `events_received_total` = `events_appended_total` + `events_duplicate_total` + the sum of
//! `events_rejected_total` + what `privacy_total` calls dropped + `events_deferred_total`, which are those that the client has to send again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use eventlog::spool;
use events::repair::Reason;
use events::{Code, Micros};
use metrics::{Counter, Gauge, Histogram, Label};
use service::Meter;
use service::fair_queue::{Bounds, FairQueue, Gauges};

use crate::bots::BotClass;
use crate::privacy::{ACTIONS, Signal};
use crate::route::Route;

const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
const BYTES: [f64; 9] = [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 10_485_760.0];
const EVENTS: [f64; 9] = [1.0, 5.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0];
/// The statuses that [`crate::respond`] uses.
const STATUSES: [u16; 14] = [200, 202, 204, 400, 401, 404, 405, 408, 413, 414, 415, 429, 500, 503];

/// All metrics of one collector.
#[allow(missing_docs)] // Each is described where it is made.
pub(crate) struct Metrics {
    meter: Arc<Meter>,
    pub(crate) received: Counter,
    pub(crate) appended: Counter,
    pub(crate) duplicate: Counter,
    rejected: Vec<Counter>,
    repaired: Vec<Counter>,
    pub(crate) deferred: Counter,
    bots: Counter,
    bot_classes: [Counter; BotClass::ALL.len()],
    pub(crate) geo_readings_failed: Counter,
    /// By signal, then by action.
    privacy: [[Counter; ACTIONS.len()]; Signal::ALL.len()],
    requests: Vec<[OnceLock<Counter>; STATUSES.len()]>,
    durations: Vec<Histogram>,
    pub(crate) in_flight: Gauge,
    pub(crate) in_flight_bytes: Gauge,
    pub(crate) unauthenticated_bytes: Gauge,
    pub(crate) answers_bytes: Gauge,
    pub(crate) body_bytes: Histogram,
    pub(crate) decoded_bytes: Histogram,
    pub(crate) batch_events: Histogram,
    pub(crate) append_seconds: Histogram,
    pub(crate) append_failed: [Counter; 4],
    pub(crate) key_known: Counter,
    pub(crate) key_refused: Counter,
    pub(crate) key_unavailable: Counter,
    pub(crate) keys: Gauge,
    pub(crate) key_readings_failed: Counter,
    pub(crate) over_memory: Counter,
    pub(crate) over_rate: Counter,
    pub(crate) over_bytes: Counter,
    pub(crate) over_queue: Counter,
    /// Made when the log has a spool.
    spool: OnceLock<SpoolMetrics>,
}

/// What waits on this machine while the log is down.
struct SpoolMetrics {
    records: Gauge,
    bytes: Gauge,
    bytes_max: Gauge,
    oldest_age: Gauge,
    states: Vec<(spool::State, Gauge)>,
    damaged_records: Gauge,
    damaged_files: Gauge,
    spooled: Counter,
    drained: Counter,
    primary_failures: Counter,
    doubtful: Counter,
    refused: Counter,
}

const BOT_EVENTS: &str = "weir_collector_bot_events_total";
const PRIVACY: &str = "weir_collector_privacy_total";
const REQUESTS: &str = "weir_collector_requests_total";
const DURATIONS: &str = "weir_collector_request_duration_seconds";

/// Makes the meter of a collector.
pub(crate) fn meter() -> Arc<Meter> {
    Arc::new(Meter::new("collector", &[("_seconds", &SECONDS), ("_bytes", &BYTES), ("_batch_events", &EVENTS)]))
}

impl Metrics {
    /// Makes the queue for requests that need long.
    pub(crate) fn computing(&self, running_max: usize, waiting_max: usize) -> FairQueue {
        let gauges = Gauges {
            running: self
                .meter
                .gauge("weir_collector_large_bodies_running", "Large or compressed bodies that a thread is processing."),
            waiting: self
                .meter
                .gauge("weir_collector_large_bodies_waiting", "Large or compressed bodies that wait for their project's turn."),
        };
        // Each is short, so turns are enough: a project alone may have all processors that there are for them.
        FairQueue::new(Bounds { running_max, running_of_one_max: running_max, waiting_max }, gauges)
    }

    /// Makes all of them, at zero.
    pub(crate) fn new(meter: Arc<Meter>) -> Self {
        let make = meter.as_ref();
        let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();

        make.describe_counter(BOT_EVENTS, "Appended events of bots, by what kind of bot it is.");
        make.describe_counter(
            PRIVACY,
            "Events of visitors who object, by how they say so: stored as nobody's (unlinked), an identity and no more (dropped), refused (withheld).",
        );
        make.describe_counter(REQUESTS, "Answers by route and status.");
        make.describe_histogram(DURATIONS, "Time from a request's head to its answer, by route.");
        let durations = Route::NAMES.map(|route| make.labelled_histogram(DURATIONS, vec![Label::new("route", route)]));
        let kinds = ["unavailable", "unknown", "stopped", "timeout"];
        let failed = make.counters(
            "weir_collector_append_failures_total",
            "Failed appends: unavailable (nothing stored), unknown or timeout (some may be stored), stopped.",
            "kind",
            &kinds,
        );
        let keys = make.counters(
            "weir_collector_keys_presented_total",
            "Requests by what was found of their key.",
            "result",
            &["known", "refused", "unavailable"],
        );
        let pressure = make.counters(
            "weir_collector_backpressure_total",
            "Requests refused for the client to send again, by reason.",
            "reason",
            &["memory", "rate", "bytes", "queue"],
        );

        Metrics {
            received: make.counter(
                "weir_collector_events_received_total",
                "Events of requests that could be read; each is counted as one of appended, duplicate, rejected or deferred too.",
            ),
            appended: make.counter("weir_collector_events_appended_total", "Events that are durable in the log."),
            duplicate: make.counter("weir_collector_events_duplicate_total", "Events that repeat another one of their request."),
            rejected: make.counters(
                "weir_collector_events_rejected_total",
                "Events that break a rule, by the first rule they break.",
                "code",
                &codes,
            ),
            repaired: make.counters(
                "weir_collector_events_repaired_total",
                "Appended events that were repaired, by reason; an event with several reasons counts under each.",
                "reason",
                &Reason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>(),
            ),
            deferred: make
                .counter("weir_collector_events_deferred_total", "Events of requests that the client was told to send again."),
            bots: make.counter("weir_collector_events_of_bots_total", "Appended events of bots."),
            bot_classes: BotClass::ALL.map(|class| make.labelled_counter(BOT_EVENTS, vec![Label::new("class", class.as_str())])),
            geo_readings_failed: make
                .counter("weir_collector_geo_readings_failed_total", "Failed readings of the file of places, after the start."),
            privacy: Signal::ALL.map(|signal| {
                ACTIONS.map(|action| {
                    let labels = vec![Label::new("signal", signal.as_str()), Label::new("action", action)];
                    make.labelled_counter(PRIVACY, labels)
                })
            }),
            requests: Route::NAMES.iter().map(|_| Default::default()).collect(),
            durations: durations.into(),
            in_flight: make.gauge("weir_collector_requests_in_flight", "Requests being worked on."),
            in_flight_bytes: make.gauge("weir_collector_bodies_in_flight_bytes", "Bytes reserved for bodies being worked on."),
            unauthenticated_bytes: make.gauge(
                "weir_collector_unauthenticated_bodies_in_flight_bytes",
                "Bytes reserved for bodies in which a key is looked for.",
            ),
            answers_bytes: make.gauge(
                "weir_collector_answers_in_flight_bytes",
                "Bytes reserved for answers that name rejected events and are not read yet.",
            ),
            body_bytes: make.histogram("weir_collector_request_body_bytes", "Size of bodies as they are sent."),
            decoded_bytes: make.histogram("weir_collector_request_decoded_bytes", "Size of compressed bodies once inflated."),
            batch_events: make.histogram("weir_collector_batch_events", "Events per request."),
            append_seconds: make.histogram("weir_collector_append_duration_seconds", "Time until the log acknowledges a batch."),
            append_failed: std::array::from_fn(|at| failed[at].clone()),
            key_known: keys[0].clone(),
            key_refused: keys[1].clone(),
            key_unavailable: keys[2].clone(),
            keys: make.gauge("weir_collector_keys", "Keys that may send."),
            key_readings_failed: make
                .counter("weir_collector_key_readings_failed_total", "Failed readings of the keys from Postgres."),
            over_memory: pressure[0].clone(),
            over_rate: pressure[1].clone(),
            over_bytes: pressure[2].clone(),
            over_queue: pressure[3].clone(),
            spool: OnceLock::new(),
            meter,
        }
    }

    /// Counts one rejected event.
    pub(crate) fn reject(&self, code: Code) {
        if let Some(at) = Code::ALL.iter().position(|known| *known == code) {
            self.rejected[at].increment(1);
        }
    }

    /// Counts one repaired event.
    pub(crate) fn repair(&self, reason: Reason) {
        if let Some(at) = Reason::ALL.iter().position(|known| *known == reason) {
            self.repaired[at].increment(1);
        }
    }

    /// Counts one appended event of a bot.
    pub(crate) fn bot(&self, class: BotClass) {
        self.bots.increment(1);
        if let Some(at) = BotClass::ALL.iter().position(|known| *known == class) {
            self.bot_classes[at].increment(1);
        }
    }

    /// Counts events of visitors who object, by action.
    pub(crate) fn objected(&self, signal: Signal, events: [usize; ACTIONS.len()]) {
        let Some(at) = Signal::ALL.iter().position(|known| *known == signal) else { return };
        self.privacy[at].iter().zip(events).for_each(|(counter, events)| counter.increment(events as u64));
    }

    /// Counts one answer.
    pub(crate) fn answer(&self, route: Option<Route>, status: u16, took: Duration) {
        let route = Route::index(route);
        self.durations[route].record(took.as_secs_f64());
        let Some(at) = STATUSES.iter().position(|known| *known == status) else { return };
        let counter = self.requests[route][at].get_or_init(|| {
            let labels = vec![Label::new("route", Route::NAMES[route]), Label::new("status", STATUSES[at].to_string())];
            self.meter.labelled_counter(REQUESTS, labels)
        });
        counter.increment(1);
    }

    /// Shows what the spool of the log holds and has done.
    pub(crate) fn spool(&self, stats: &spool::Stats, now: Micros) {
        let shown = self.spool.get_or_init(|| SpoolMetrics::new(&self.meter));
        let age = stats.oldest_received_at().map_or(0, |oldest| now.0.saturating_sub(oldest.0).max(0));
        shown.records.set(stats.records() as f64);
        shown.bytes.set(stats.bytes as f64);
        shown.bytes_max.set(stats.bytes_max as f64);
        shown.oldest_age.set(age as f64 / Micros::SECOND as f64);
        for (state, gauge) in &shown.states {
            gauge.set(if *state == stats.state { 1.0 } else { 0.0 });
        }
        shown.damaged_records.set(stats.damaged_records as f64);
        shown.damaged_files.set(stats.damaged_files as f64);
        shown.spooled.absolute(stats.spooled_records);
        shown.drained.absolute(stats.drained_records);
        shown.primary_failures.absolute(stats.primary_failures);
        shown.doubtful.absolute(stats.doubtful_appends);
        shown.refused.absolute(stats.refused_appends);
    }
}

impl SpoolMetrics {
    fn new(make: &Meter) -> Self {
        const STATE: &str = "weir_collector_spool_state";
        make.describe_gauge(STATE, "1 for what the spool does now, else 0.");
        let state = |state: spool::State| {
            let labels = vec![Label::new("state", state.as_str())];
            (state, make.labelled_gauge(STATE, labels))
        };
        SpoolMetrics {
            records: make.gauge("weir_collector_spool_records", "Events in the spool that are not yet in the log."),
            bytes: make.gauge("weir_collector_spool_bytes", "Size of the spool's files."),
            bytes_max: make.gauge("weir_collector_spool_limit_bytes", "Limit of the size of the spool's files."),
            oldest_age: make.gauge("weir_collector_spool_oldest_age_seconds", "Age of the oldest event in the spool."),
            states: spool::State::ALL.into_iter().map(state).collect(),
            damaged_records: make
                .gauge("weir_collector_spool_damaged_records", "Events of the spool that are damaged; an operator is needed."),
            damaged_files: make.gauge("weir_collector_spool_damaged_files", "Copies of damaged files of the spool."),
            spooled: make.counter("weir_collector_spool_stored_total", "Events that were stored in the spool."),
            drained: make.counter("weir_collector_spool_drained_total", "Events that were moved from the spool into the log."),
            primary_failures: make
                .counter("weir_collector_spool_log_failures_total", "Appends that the log refused, or did not answer in time."),
            doubtful: make.counter(
                "weir_collector_spool_doubtful_appends_total",
                "Failed appends whose events may be in the log all the same, and so may be stored twice.",
            ),
            refused: make.counter("weir_collector_spool_refused_appends_total", "Appends that the spool had no room for."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of `promtool check metrics` that concern names, and one help text for each.
    #[tokio::test]
    async fn the_page_is_well_formed() {
        let meter = meter();
        let tasks = service::Tasks::new(&meter);
        let _admin = service::AdminEndpoint::new(&meter, tasks.health());
        let metrics = Metrics::new(Arc::clone(&meter));
        metrics.received.increment(3);
        metrics.reject(Code::TooDeep);
        metrics.append_seconds.record(0.002);
        metrics.answer(Some(Route::Events), 200, Duration::from_millis(2));
        let page = meter.render();
        assert!(page.contains("weir_collector_events_received_total 3\n"), "{page}");
        assert!(page.contains("weir_collector_events_rejected_total{code=\"too_deep\"} 1\n"), "{page}");
        assert!(page.contains("weir_collector_requests_total{route=\"events\",status=\"200\"} 1\n"), "{page}");
        assert!(page.contains("weir_collector_append_duration_seconds_bucket{le=\"0.0025\"} 1\n"), "{page}");
        let mut names = 0;
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help");
            assert!(name.starts_with("weir_collector_") || name.starts_with("process_"), "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert_ne!(kind, "summary", "{name} has no buckets");
            names += 1;
        }
        assert!(names > 20, "{page}");
    }
}
