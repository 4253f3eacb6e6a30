//! Tasks that do not end unseen.
//!
//! Every task of a service is spawned by [`Tasks`]. One that panics, or returns although nobody asked it to, is counted and logged,
//! makes `/readyz` fail by name until a new one has worked for [`STEADY`], and is restarted after a pause that grows. A task that
//! dies [`DEATHS_MAX`] times within [`DEATHS_WITHIN`] is not restarted: [`Health::failed`] tells whoever runs the service, which ends
//! the process with a failure. Panics of single requests are counted apart ([`Health::caught`]): they cost the request, no task.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use metrics::{Counter, Label};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{BackOff, Meter};

/// How long a task must have worked since it died for the service to be ready again.
pub const STEADY: Duration = Duration::from_secs(10);
/// So many deaths within [`DEATHS_WITHIN`] end the process.
pub const DEATHS_MAX: usize = 5;
/// See [`DEATHS_MAX`].
pub const DEATHS_WITHIN: Duration = Duration::from_secs(300);
/// The shortest and the longest pause before a task is restarted.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// How often what was recorded is moved into the histograms.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);
/// Bytes of a panic's text that are shown.
const TEXT_BYTES_MAX: usize = 300;

/// Why a task is no longer there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It panicked, with this text.
    Panic(String),
    /// It returned, or its thread did, although nobody asked it to; with a reason where there is one.
    Ended(String),
}

impl Cause {
    /// Its values of the label `cause`.
    const LABELS: [&'static str; 2] = ["panic", "ended"];

    fn label(&self) -> &'static str {
        match self {
            Cause::Panic(_) => "panic",
            Cause::Ended(_) => "ended",
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cause::Panic(text) => write!(out, "panicked: {text}"),
            Cause::Ended(reason) if reason.is_empty() => write!(out, "ended by itself"),
            Cause::Ended(reason) => write!(out, "ended: {reason}"),
        }
    }
}

/// Why a service cannot go on: its process has to end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{service}: task {task} {cause}; {why}")]
pub struct Failure {
    /// The service.
    pub service: &'static str,
    /// The task.
    pub task: String,
    /// Why it died, the last time.
    pub cause: Cause,
    /// Why it is not restarted.
    pub why: String,
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Serving.
    Open,
    /// `/readyz` says that it stops, and answers ask clients to close; requests are still taken.
    Lingering,
    /// Tasks finish what they do, no connection is taken, and none is kept for another request.
    Closing,
    /// What is still there is dropped.
    Aborted,
}

/// Tells a task that it shall finish. A stop waits for everybody who has one.
#[derive(Clone)]
pub struct Stop(watch::Receiver<Stage>);

impl Stop {
    /// Returns whether the task shall finish.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() >= Stage::Closing
    }

    /// Waits until the task shall finish. May be cancelled.
    pub async fn requested(&mut self) {
        // Without a sender the service is gone, which is more than a stop.
        let _ = self.0.wait_for(|present| *present >= Stage::Closing).await;
    }

    /// Waits for the next stage and returns it. May be cancelled.
    pub(crate) async fn next(&mut self) -> Stage {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => Stage::Aborted,
        }
    }
}

/// What is known of one task.
#[derive(Default)]
struct Task {
    /// When it died, within [`DEATHS_WITHIN`].
    deaths: VecDeque<Instant>,
    /// Why it died the last time; none if it has worked for long since then.
    cause: Option<Cause>,
    /// When it began; none while it waits for its turn.
    began: Option<Instant>,
    /// None before the first of the present deaths.
    back_off: Option<BackOff>,
}

impl Task {
    /// Notes a death, and returns the pause before the next beginning; none if there have been too many.
    fn died(&mut self, now: Instant, cause: Cause) -> Option<Duration> {
        while self.deaths.front().is_some_and(|first| now - *first > DEATHS_WITHIN) {
            self.deaths.pop_front();
        }
        if self.deaths.is_empty() {
            self.back_off = None;
        }
        self.deaths.push_back(now);
        self.began = None;
        self.cause = Some(cause);
        if self.deaths.len() >= DEATHS_MAX {
            return None;
        }
        Some(self.back_off.get_or_insert_with(|| BackOff::new(PAUSES.0, PAUSES.1)).delay())
    }

    /// Returns why the service is not ready because of it.
    fn fault(&mut self, now: Instant) -> Option<&Cause> {
        if self.began.is_some_and(|began| now - began >= STEADY) {
            self.cause = None;
        }
        self.cause.as_ref()
    }
}

/// How the tasks of one service are, for its admin endpoint, its requests, and who runs it.
pub struct Health {
    meter: Arc<Meter>,
    stage: watch::Sender<Stage>,
    failure: watch::Sender<Option<Failure>>,
    tasks: Mutex<BTreeMap<String, Task>>,
    panics: Counter,
    #[cfg(feature = "fault-injection")]
    pub(crate) faults: crate::fault::Faults,
}

impl Health {
    fn new(meter: Arc<Meter>) -> Self {
        meter.describe_counter(meter.own(RESTARTS), "Times that a task died and was restarted, by task and cause.");
        let panics = meter.counter(meter.own("panics_total"), "Requests that met a bug and were answered 500.");
        Health {
            #[cfg(feature = "fault-injection")]
            faults: crate::fault::Faults::of(meter.service()),
            stage: watch::Sender::new(Stage::Open),
            failure: watch::Sender::new(None),
            tasks: Mutex::default(),
            panics,
            meter,
        }
    }

    /// Waits until the service cannot go on, and returns why. May be cancelled, and waited for by several.
    pub async fn failed(&self) -> Failure {
        let mut failure = self.failure.subscribe();
        loop {
            let present = failure.borrow_and_update().clone();
            if let Some(failure) = present {
                return failure;
            }
            // The sender lives as long as `self`.
            let _ = failure.changed().await;
        }
    }

    /// Returns why the service is not ready, as far as its tasks tell.
    pub fn unready(&self) -> Option<String> {
        if self.is_stopping() {
            return Some(format!("the {} is stopping", self.meter.service()));
        }
        if let Some(failure) = &*self.failure.borrow() {
            return Some(failure.to_string());
        }
        let now = Instant::now();
        let mut tasks = self.tasks();
        let fault = |(name, task): (&String, &mut Task)| Some(format!("task {name} {}", task.fault(now)?));
        let faults: Vec<String> = tasks.iter_mut().filter_map(fault).collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Notes that a task has died, and returns the pause after which it is restarted; none if it is not.
    pub fn died(&self, name: &str, cause: Cause) -> Option<Duration> {
        self.restarts(name, cause.label()).increment(1);
        let pause = self.tasks().entry(name.to_owned()).or_default().died(Instant::now(), cause.clone());
        match pause {
            Some(pause) => {
                let (service, pause_ms) = (self.meter.service(), pause.as_millis());
                tracing::error!(service, task = name, pause_ms, "a task {cause}; restarting it");
            }
            None => self.give_up(name, cause, format!("it died {DEATHS_MAX} times within {} s", DEATHS_WITHIN.as_secs())),
        }
        pause
    }

    /// Shows a task in the metrics before it has ever died.
    pub fn know(&self, name: &str) {
        for cause in Cause::LABELS {
            let _ = self.restarts(name, cause);
        }
        self.began(name);
    }

    /// Notes that a task has begun.
    pub fn began(&self, name: &str) {
        self.tasks().entry(name.to_owned()).or_default().began = Some(Instant::now());
    }

    /// Ends the service for something that a restart does not mend.
    pub fn give_up(&self, task: &str, cause: Cause, why: String) {
        let failure = Failure { service: self.meter.service(), task: task.to_owned(), cause, why };
        let is_first = self.failure.send_if_modified(|present| {
            let is_first = present.is_none();
            present.get_or_insert_with(|| failure.clone());
            is_first
        });
        if is_first {
            tracing::error!(service = failure.service, task, "the process has to end: {failure}");
        }
    }

    /// Runs the work for one request. A panic in it is counted and logged, and costs this request alone.
    /// # Errors
    /// [`Panicked`], to be answered 500.
    pub fn caught<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
        #[cfg(feature = "fault-injection")]
        let work = self.faults.around("request", work);
        self.caught_outside(work)
    }

    /// The same for what surrounds the work for requests. As an async function it would hold the work twice.
    pub(crate) fn caught_outside<T>(&self, work: impl Future<Output = T>) -> impl Future<Output = Result<T, Panicked>> {
        AssertUnwindSafe(work).catch_unwind().map(|done| done.map_err(|panic| self.panicked(panic.as_ref())))
    }

    /// Runs a step of a request that only computes; see [`Health::caught`].
    /// # Errors
    /// [`Panicked`].
    pub fn caught_here<T>(&self, step: impl FnOnce() -> T) -> Result<T, Panicked> {
        std::panic::catch_unwind(AssertUnwindSafe(step)).map_err(|panic| self.panicked(panic.as_ref()))
    }

    /// Counts and logs a panic of a request that was caught elsewhere, such as by a thread's end.
    pub fn panicked(&self, panic: &(dyn Any + Send)) -> Panicked {
        self.panics.increment(1);
        tracing::error!(service = self.meter.service(), "a request panicked: {}", text_of(panic));
        Panicked
    }

    /// Panics a task the next time that it is polled; `request` is the next request.
    #[cfg(feature = "fault-injection")]
    pub fn inject_panic(&self, task: &str) {
        self.faults.inject(task);
    }

    /// Returns the names of all tasks.
    pub fn names(&self) -> Vec<String> {
        self.tasks().keys().cloned().collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stage.borrow() > Stage::Open
    }

    pub(crate) fn stop(&self) -> Stop {
        Stop(self.stage.subscribe())
    }

    fn restarts(&self, task: &str, cause: &'static str) -> Counter {
        let labels = vec![Label::new("task", task.to_owned()), Label::new("cause", cause)];
        self.meter.labelled_counter(self.meter.own(RESTARTS), labels)
    }

    fn tasks(&self) -> MutexGuard<'_, BTreeMap<String, Task>> {
        // Each entry is whole after each statement.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of the name of the counter of deaths.
const RESTARTS: &str = "task_restarts_total";

/// A request met a bug, which was counted and logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it met a bug")]
pub struct Panicked;

/// Returns the text of a panic.
pub fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("it has no text");
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

/// The tasks of one service. Dropping it ends them at once; [`Tasks::stop`] ends them well.
pub struct Tasks {
    health: Arc<Health>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Tasks {
    /// Makes the tasks of a service, of which the first keeps its meter up. Must be called on a runtime.
    pub fn new(meter: &Arc<Meter>) -> Self {
        let tasks = Tasks { health: Arc::new(Health::new(Arc::clone(meter))), running: Mutex::default() };
        let meter = Arc::clone(meter);
        tasks.spawn_until_stop("metrics", move || {
            let meter = Arc::clone(&meter);
            async move {
                loop {
                    tokio::time::sleep(UPKEEP_EVERY).await;
                    meter.upkeep();
                }
            }
        });
        tasks
    }

    /// Returns how the tasks are.
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// Runs a task until it returns after its [`Stop`] was requested. `begin` makes it, and makes it anew when it has died.
    pub fn spawn<B, F>(&self, name: impl Into<String>, begin: B)
    where
        B: FnMut(Stop) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (name, stop) = (name.into(), self.health.stop());
        self.health.know(&name);
        let task = tokio::spawn(supervise(Arc::clone(&self.health), name, stop, begin));
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Runs a task that may be dropped at any point when a stop is requested.
    pub fn spawn_until_stop<B, F>(&self, name: impl Into<String>, mut begin: B)
    where
        B: FnMut() -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, move |mut stop| {
            let task = begin();
            async move {
                tokio::select! {
                    () = task => {}
                    () = stop.requested() => {}
                }
            }
        });
    }

    /// Ends the service: for `linger` it says that it stops and still takes requests; then its tasks and connections finish what
    /// they do; what has not after `within` in all is dropped. Returns whether everything had ended by itself.
    pub async fn stop(self, linger: Duration, within: Duration) -> bool {
        let stage = &self.health.stage;
        let linger = linger.min(within);
        stage.send_replace(Stage::Lingering);
        tokio::time::sleep(linger).await;
        stage.send_replace(Stage::Closing);
        // Every task and every connection has a receiver.
        let ended = tokio::time::timeout(within - linger, stage.closed()).await.is_ok();
        if !ended {
            let left = stage.receiver_count();
            let service = self.health.meter.service();
            tracing::warn!(service, left, "tasks and connections had not ended in time and are dropped");
        }
        ended
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.health.stage.send_replace(Stage::Aborted);
        self.running.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(JoinHandle::abort);
    }
}

/// Runs a task, and a new one each time that it dies.
async fn supervise<B, F>(health: Arc<Health>, name: String, mut stop: Stop, mut begin: B)
where
    B: FnMut(Stop) -> F,
    F: Future<Output = ()>,
{
    loop {
        health.began(&name);
        let task = async { begin(stop.clone()).await };
        #[cfg(feature = "fault-injection")]
        let task = health.faults.around(&name, task);
        let cause = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) if stop.is_requested() => return,
            Ok(()) => Cause::Ended(String::new()),
            Err(panic) => Cause::Panic(text_of(panic.as_ref())),
        };
        let Some(pause) = health.died(&name, cause) else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn panicked() -> Cause {
        Cause::Panic("at noon".to_owned())
    }

    #[test]
    fn a_task_that_dies_now_and_then_is_begun_again_for_ever() {
        let mut task = Task::default();
        let mut now = Instant::now();
        for _ in 0..10_000 {
            let pause = task.died(now, panicked()).expect("it is restarted");
            assert!(pause <= 2 * PAUSES.1, "{pause:?}");
            assert_eq!(task.fault(now), Some(&panicked()), "while it waits for its turn");
            now += pause;
            task.began = Some(now);
            assert_eq!(task.fault(now + STEADY / 2), Some(&panicked()), "it has only begun");
            now += STEADY;
            assert_eq!(task.fault(now), None, "it has worked for a while");
            now += DEATHS_WITHIN / (DEATHS_MAX as u32 - 1);
        }
        now += DEATHS_WITHIN;
        assert!(task.died(now, panicked()).is_some_and(|pause| pause <= 2 * PAUSES.0), "after a good time the pause is short");
    }

    #[test]
    fn a_task_that_keeps_dying_is_given_up() {
        let mut task = Task::default();
        let now = Instant::now();
        let pauses: Vec<_> = (0..DEATHS_MAX as u64).map(|nth| task.died(now + seconds(nth), panicked())).collect();
        assert!(pauses[..DEATHS_MAX - 1].iter().all(Option::is_some), "{pauses:?}");
        assert!(pauses[..DEATHS_MAX - 1].is_sorted(), "{pauses:?}");
        assert_eq!(pauses[DEATHS_MAX - 1], None);
        assert!(task.fault(now + seconds(86_400)).is_some(), "it is not restarted");
    }

    #[tokio::test]
    async fn panics_and_ends_are_counted_told_and_healed() {
        let meter = Arc::new(Meter::new("test", &[]));
        let tasks = Tasks::new(&meter);
        let (begun, mut begins) = watch::channel(0);
        let begun = Arc::new(begun);
        tasks.spawn("fragile", move |mut stop| {
            let begun = Arc::clone(&begun);
            async move {
                begun.send_modify(|count| *count += 1);
                let nth = *begun.borrow();
                match nth {
                    1 => panic!("number {nth}"),
                    2 => {}
                    _ => stop.requested().await,
                }
            }
        });
        let health = Arc::clone(tasks.health());
        let _ = begins.wait_for(|count| *count >= 2).await;
        assert!(health.unready().expect("it died").starts_with("task fragile "), "{:?}", health.unready());
        let _ = begins.wait_for(|count| *count >= 3).await;
        assert_eq!(health.unready().expect("it has only begun"), "task fragile ended by itself");
        let page = meter.render();
        for line in [
            "weir_test_task_restarts_total{task=\"fragile\",cause=\"panic\"} 1",
            "weir_test_task_restarts_total{task=\"fragile\",cause=\"ended\"} 1",
            "weir_test_task_restarts_total{task=\"metrics\",cause=\"panic\"} 0",
        ] {
            assert!(page.contains(line), "{page}");
        }
        assert!(tasks.stop(Duration::ZERO, seconds(20)).await, "both end when they are asked to");
        assert_eq!(health.unready().as_deref(), Some("the test is stopping"));
    }

    #[tokio::test]
    async fn who_runs_the_service_is_told_that_it_failed() {
        let tasks = Tasks::new(&Arc::new(Meter::new("test", &[])));
        let health = Arc::clone(tasks.health());
        tasks.spawn("broken", |_| async { panic!("as always") });
        let failure = health.failed().await;
        assert_eq!((failure.service, failure.task.as_str()), ("test", "broken"));
        assert_eq!(failure.cause, Cause::Panic("as always".to_owned()));
        assert_eq!(health.unready(), Some(failure.to_string()), "and it stays so");
        assert!(tasks.stop(Duration::ZERO, seconds(20)).await);
    }

    #[tokio::test]
    async fn what_does_not_end_is_dropped_in_time() {
        let tasks = Tasks::new(&Arc::new(Meter::new("test", &[])));
        let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
        let mut alive = Some(alive);
        tasks.spawn("deaf", move |_| {
            let alive = alive.take();
            async move {
                let _alive = alive;
                std::future::pending().await
            }
        });
        assert!(!tasks.stop(Duration::ZERO, Duration::from_millis(50)).await);
        assert!(dropped.await.is_err(), "its future is gone");
    }

    #[tokio::test]
    async fn a_panic_of_a_request_is_counted_apart() {
        let meter = Arc::new(Meter::new("test", &[]));
        let tasks = Tasks::new(&meter);
        assert_eq!(tasks.health().caught(async { 1 }).await, Ok(1));
        assert_eq!(tasks.health().caught_here(|| -> () { panic!("a bug") }), Err(Panicked));
        assert_eq!(tasks.health().unready(), None);
        assert!(meter.render().contains("weir_test_panics_total 1\n"));
        assert_eq!(text_of(&"ü".repeat(400)).len(), TEXT_BYTES_MAX);
    }
}
