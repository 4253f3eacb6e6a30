//! What the parts of one world share: its random numbers, its clock, its trace, what was seen, and what must not be.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

/// Lines of a trace that are kept, to be shown with a failure.
const LINES_KEPT: usize = 60;

/// What a set of seeds has to have seen, each at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    Acknowledged,
    RefusedAppend,
    UnknownAppend,
    ClientRetry,
    LateAppend,
    LostTail,
    AnotherLog,
    Spooled,
    Drained,
    SpoolFull,
    CollectorKilled,
    CollectorStopped,
    AggregatorKilled,
    AggregatorStopped,
    AggregatorFrozen,
    FrozenInTransaction,
    LogHalted,
    PostgresDown,
    CutBeforeCommit,
    CutAfterCommit,
    UnknownCommit,
    Fenced,
    Takeover,
    EndedBackend,
    Duplicate,
    UntimedDuplicate,
    Conflict,
    Read,
}

impl Seen {
    pub(super) const ALL: [Seen; 28] = [
        Seen::Acknowledged,
        Seen::RefusedAppend,
        Seen::UnknownAppend,
        Seen::ClientRetry,
        Seen::LateAppend,
        Seen::LostTail,
        Seen::AnotherLog,
        Seen::Spooled,
        Seen::Drained,
        Seen::SpoolFull,
        Seen::CollectorKilled,
        Seen::CollectorStopped,
        Seen::AggregatorKilled,
        Seen::AggregatorStopped,
        Seen::AggregatorFrozen,
        Seen::FrozenInTransaction,
        Seen::LogHalted,
        Seen::PostgresDown,
        Seen::CutBeforeCommit,
        Seen::CutAfterCommit,
        Seen::UnknownCommit,
        Seen::Fenced,
        Seen::Takeover,
        Seen::EndedBackend,
        Seen::Duplicate,
        Seen::UntimedDuplicate,
        Seen::Conflict,
        Seen::Read,
    ];
}

/// What has to hold, by its number in the list of invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Invariant {
    /// What was acknowledged is stored.
    I1NoLoss,
    /// Each event is stored once.
    I2NoDuplicate,
    /// What is stored was sent, with that content.
    I3NoPhantom,
    /// Of each log partition: next offset = rows + dead letters + duplicates, and the rows are those of its log.
    I5Conservation,
    /// Epochs and offsets never decrease; an old epoch changes nothing.
    I7Fencing,
    /// What was read at a watermark stays, and the watermark never falls.
    I11Watermark,
    /// Nothing is trimmed that is not stored.
    I15TrimSafety,
    /// An event's log partition depends on the event only.
    I16Routing,
    /// When the faults are over, all that was acknowledged is stored soon, and so is what comes then.
    I17Liveness,
    /// A stop ends in time.
    I19Shutdown,
    /// Nothing is sent to a log that is not the agreed one.
    AnotherLog,
    /// No task dies.
    NoPanic,
}

/// How a run ended.
#[derive(Debug)]
pub(super) struct Report {
    /// Of the whole trace: equal runs have equal ones.
    pub hash: u64,
    pub seen: BTreeMap<Seen, u64>,
    pub broken: BTreeSet<Invariant>,
    /// What was found, and the end of the trace.
    pub text: String,
}

#[derive(Default)]
struct Trace {
    hash: u64,
    last: VecDeque<String>,
    seen: BTreeMap<Seen, u64>,
    broken: BTreeMap<Invariant, String>,
}

/// Shared by all parts of a world. Clones share it.
#[derive(Clone)]
pub(super) struct Run(Arc<Inner>);

struct Inner {
    began: Instant,
    random: Mutex<fastrand::Rng>,
    trace: Mutex<Trace>,
    /// Who waits for a turn, in their order.
    waiting: Mutex<BTreeMap<(u64, usize), oneshot::Sender<()>>>,
    has_come: Notify,
    is_printed: bool,
}

impl Run {
    /// Begins. Must be called on a runtime whose clock is paused.
    pub(super) fn new(seed: u64) -> Self {
        // The waits after failures take theirs from the thread's own.
        fastrand::seed(seed);
        Run(Arc::new(Inner {
            began: Instant::now(),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            trace: Mutex::default(),
            waiting: Mutex::default(),
            has_come: Notify::new(),
            is_printed: std::env::var_os("WEIR_SIMULATION_TRACE").is_some(),
        }))
    }

    /// Waits for a turn, with whoever else comes in this millisecond; they go on by the order of their numbers. Tokio wakes those who wait
    /// for one `watch` in any order: before they do what others can see, they pass here.
    pub(super) async fn turn(&self, number: u64) {
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let equal = waiting.range((number, 0)..=(number, usize::MAX)).count();
            waiting.insert((number, equal), tell);
        }
        self.0.has_come.notify_one();
        // Nobody is there any more who gives turns: the world ends.
        let _ = told.await;
    }

    /// Gives turns; never returns.
    pub(super) async fn give_turns(self) {
        loop {
            self.0.has_come.notified().await;
            sleep(Duration::from_millis(1)).await;
            let waiting = std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner));
            for tell in waiting.into_values() {
                // Whoever waited may be gone.
                let _ = tell.send(());
            }
        }
    }

    fn random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.0.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn trace<T>(&self, act: impl FnOnce(&mut Trace) -> T) -> T {
        act(&mut self.0.trace.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns true so often, from 0 to 1.
    pub(super) fn chance(&self, share: f64) -> bool {
        share > 0.0 && self.random(|random| random.f64()) < share
    }

    /// Returns a number of a range.
    pub(super) fn number(&self, range: Range<u64>) -> u64 {
        self.random(|random| random.u64(range))
    }

    /// Returns one of some.
    pub(super) fn one_of<T: Copy>(&self, of: &[T]) -> T {
        of[self.number(0..of.len() as u64) as usize]
    }

    /// Returns a time between two numbers of milliseconds, short ones as often as long ones by their magnitude.
    pub(super) fn millis(&self, range: Range<u64>) -> Duration {
        let (low, high) = ((range.start.max(1) as f64).ln(), (range.end as f64).ln());
        Duration::from_micros((1_000.0 * self.random(|random| low + (high - low) * random.f64()).exp()) as u64)
    }

    /// Waits for such a time.
    pub(super) async fn wait(&self, millis: Range<u64>) {
        sleep(self.millis(millis)).await;
    }

    /// Returns how long it has run, by the world's clock.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.began.elapsed()
    }

    /// Writes a line of the trace.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let micros = self.elapsed().as_micros();
        let line = format!("{:>4}.{:06} {what}", micros / 1_000_000, micros % 1_000_000);
        if self.0.is_printed {
            eprintln!("{line}");
        }
        self.trace(|trace| {
            // FNV-1a, 64 bits.
            for byte in line.bytes() {
                trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            trace.last.push_back(line);
            if trace.last.len() > LINES_KEPT {
                trace.last.pop_front();
            }
        });
    }

    /// Counts something that was seen.
    pub(super) fn saw(&self, what: Seen) {
        self.trace(|trace| *trace.seen.entry(what).or_default() += 1);
    }

    /// Writes down that an invariant does not hold; the first time of each is kept.
    pub(super) fn broke(&self, invariant: Invariant, what: fmt::Arguments<'_>) {
        self.note(format_args!("BROKEN {invariant:?}: {what}"));
        let at = self.elapsed();
        self.trace(|trace| {
            trace.broken.entry(invariant).or_insert_with(|| format!("after {at:?}: {what}"));
        });
    }

    /// Ends it.
    pub(super) fn report(&self) -> Report {
        self.trace(|trace| {
            let broken: String = trace.broken.iter().map(|(invariant, text)| format!("{invariant:?} {text}\n")).collect();
            let last: Vec<&str> = trace.last.iter().map(String::as_str).collect();
            let text = format!("{broken}the end of its trace:\n{}", last.join("\n"));
            Report { hash: trace.hash, seen: trace.seen.clone(), broken: trace.broken.keys().copied().collect(), text }
        })
    }
}

/// Writes a line of a run's trace.
macro_rules! note {
    ($run:expr, $($text:tt)+) => { $run.note(format_args!($($text)+)) };
}
/// Writes down that an invariant of a run does not hold.
macro_rules! broke {
    ($run:expr, $invariant:ident, $($text:tt)+) => { $run.broke(crate::simulation::run::Invariant::$invariant, format_args!($($text)+)) };
}
pub(super) use {broke, note};
