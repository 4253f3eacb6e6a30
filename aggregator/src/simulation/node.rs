//! An aggregator: the lease manager and the workers that serve, as a process that may be frozen and killed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eventlog::Read;
use futures_util::future::join_all;
use service::Tasks;
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

use super::log::Log;
use super::process::Process;
use super::run::{Run, Seen, broke, note};
use super::wire::Wire;
use crate::config::Config;
use crate::lease::{Held, LeaseManager};
use crate::metrics::{self, Metrics};
use crate::run::{Shared, Worker};
use crate::status::Status;
use crate::{STOP_MAX, lag};

/// How long a stop may take in all.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A process, and how the next one is started in its place.
pub(super) struct Node {
    run: Run,
    number: u32,
    config: Config,
    log: Log,
    wire: Box<dyn Fn() -> Wire + Send + Sync>,
    starts: Mutex<u32>,
    alive: Mutex<Option<Alive>>,
}

struct Alive {
    process: Arc<Process>,
    wire: Arc<Wire>,
    /// One for each task, so that a stop comes to them in an order.
    tasks: Vec<Tasks>,
    status: Arc<Status>,
    owner: Uuid,
}

impl Node {
    pub(super) fn new(
        run: &Run,
        number: u32,
        config: &Config,
        log: &Log,
        wire: impl Fn() -> Wire + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (config, log, wire) = (config.clone(), log.clone(), Box::new(wire));
        Arc::new(Node { run: run.clone(), number, config, log, wire, starts: Mutex::default(), alive: Mutex::default() })
    }

    fn alive<T>(&self, act: impl FnOnce(&mut Option<Alive>) -> T) -> T {
        act(&mut self.alive.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts the process, unless it runs.
    pub(super) fn start(&self) {
        if self.alive(|alive| alive.is_some()) {
            return;
        }
        let owner = {
            let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
            *starts += 1;
            Uuid::from_u128(u128::from(self.number) << 64 | u128::from(*starts))
        };
        note!(self.run, "aggregator {}: starts as {owner}", self.number);
        let process = Process::start(&self.run, format!("aggregator {}", self.number));
        let wire = Arc::new((self.wire)());
        let meter = metrics::meter();
        let status: Arc<Status> = Arc::default();
        let leases = Tasks::new(&meter);
        let (sender, held) = watch::channel(Held::new());
        let sender = Arc::new(sender);
        let partitions = self.log.identity().partitions as usize;
        leases.spawn("leases", {
            let (process, wire, status) = (Arc::clone(&process), Arc::clone(&wire), Arc::clone(&status));
            move |stop| {
                let (wire, held, status) = (Arc::clone(&wire), Arc::clone(&sender), Arc::clone(&status));
                process.run(LeaseManager::new(owner, wire, partitions, false, held, status).run(stop))
            }
        });
        let (tell, told): (Vec<_>, Vec<_>) = (0..self.config.workers).map(|_| watch::channel(Held::new())).unzip();
        tokio::spawn(process.run(tell_in_turn(held, tell)));
        let shared = |held| Shared {
            config: self.config.clone(),
            log: Arc::new(self.log.clone()),
            store: wire.clone(),
            held,
            stored: Arc::new(lag::Stored::default()),
            metrics: Arc::new(Metrics::new(Arc::clone(&meter))),
            status: Arc::clone(&status),
        };
        let mut tasks = vec![leases];
        for (number, held) in (0..).zip(told) {
            let (process, worker) = (Arc::clone(&process), Worker::new(number, shared(held)));
            let own = Tasks::new(&meter);
            own.spawn(format!("worker-{number}"), move |stop| process.run(worker.clone().run(stop)));
            tasks.push(own);
        }
        self.alive(|alive| *alive = Some(Alive { process, wire, tasks, status, owner }));
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        note!(self.run, "aggregator {}: is killed", self.number);
        self.run.saw(Seen::AggregatorKilled);
        if let Some(alive) = self.alive(Option::take) {
            alive.process.kill();
        }
    }

    /// Ends the process as SIGTERM does. Returns whether it had drained.
    pub(super) async fn stop(&self) -> bool {
        let Some(alive) = self.alive(Option::take) else { return true };
        let began = Instant::now();
        let ended = join_all(alive.tasks.into_iter().map(|tasks| tasks.stop(Duration::ZERO, STOP_MAX))).await;
        let ended = ended.into_iter().all(|ended| ended);
        if began.elapsed() > ENDS_WITHIN {
            broke!(self.run, I19Shutdown, "aggregator {} took {:?} to stop", self.number, began.elapsed());
        }
        note!(self.run, "aggregator {}: has stopped, and drained: {ended}", self.number);
        self.run.saw(Seen::AggregatorStopped);
        alive.process.kill();
        ended
    }

    /// Freezes the process for a while, as SIGSTOP does.
    pub(super) async fn freeze(&self, pause: Duration) {
        let Some((process, wire)) = self.alive(|alive| alive.as_ref().map(|of| (Arc::clone(&of.process), Arc::clone(&of.wire))))
        else {
            return;
        };
        note!(self.run, "aggregator {}: is frozen for {pause:?}", self.number);
        process.freeze();
        self.run.saw(Seen::AggregatorFrozen);
        if wire.is_in_transaction() {
            self.run.saw(Seen::FrozenInTransaction);
        }
        tokio::time::sleep(pause).await;
        note!(self.run, "aggregator {}: goes on", self.number);
        process.thaw();
    }

    /// Has the process go on, if it is frozen.
    pub(super) fn thaw(&self) {
        self.alive(|alive| alive.iter().for_each(|alive| alive.process.thaw()));
    }

    /// Returns under which name it leases log partitions, if it runs.
    pub(super) fn owner(&self) -> Option<Uuid> {
        self.alive(|alive| alive.as_ref().map(|alive| alive.owner))
    }

    /// Returns the states under which log partitions are halted.
    pub(super) fn halts(&self) -> Vec<&'static str> {
        self.alive(|alive| alive.iter().flat_map(|alive| alive.status.halts()).map(|(_, halt)| halt.state).collect())
    }
}

/// Tells workers which log partitions are held, one after the other, until all are gone: a `watch` would wake them in any order.
async fn tell_in_turn(mut held: watch::Receiver<Held>, workers: Vec<watch::Sender<Held>>) {
    let all_gone = join_all(workers.iter().map(watch::Sender::closed));
    let telling = async {
        while held.changed().await.is_ok() {
            let present = held.borrow_and_update().clone();
            workers.iter().for_each(|worker| drop(worker.send_replace(present.clone())));
        }
    };
    tokio::select! {
        biased;
        _ = all_gone => {}
        () = telling => {}
    }
}
