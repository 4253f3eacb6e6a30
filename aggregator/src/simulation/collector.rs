//! A collector from where it admits events: admit, append over the real spool, answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use eventlog::spool::in_memory::{Disk, Gate, Kept};
use eventlog::spool::{Options, Spool, State};
use eventlog::{Append, AppendError};
use events::rules::{self, RequestContext};
use events::testing::{RECEIVED_AT, generated_id, request_context};
use events::{Draft, Event, Micros, Record};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::log::Log;
use super::process::Process;
use super::run::{Run, Seen, broke, note};

/// How long a stop may take.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A process that may be killed, and what it leaves on its disk.
pub(super) struct Collector {
    run: Run,
    number: usize,
    log: Log,
    disk: Kept,
    alive: Mutex<Option<Alive>>,
}

struct Alive {
    process: Arc<Process>,
    spool: Arc<Spool>,
    requests: JoinSet<()>,
}

/// Its disk takes a while, and nothing when the process is dead.
struct SlowDisk(Run, Arc<Process>);

#[async_trait]
impl Gate for SlowDisk {
    async fn pass(&self, turn: u64) {
        self.0.turn(turn).await;
        self.0.wait(1..6).await;
        if self.1.is_dead() {
            std::future::pending::<()>().await;
        }
    }
}

/// Makes the event of a draft, as a collector does that receives it now.
pub(super) fn admitted(run: &Run, draft: Draft) -> Event {
    let received_at = Micros(RECEIVED_AT.0 + run.elapsed().as_micros() as i64);
    let request = RequestContext { received_at, ..request_context() };
    rules::admit(draft, &request, generated_id).expect("clients send valid events")
}

impl Collector {
    pub(super) fn new(run: &Run, number: usize, log: &Log, partitions: u32) -> Arc<Self> {
        let disk = Kept::new(partitions);
        Arc::new(Collector { run: run.clone(), number, log: log.clone(), disk, alive: Mutex::default() })
    }

    fn alive<T>(&self, act: impl FnOnce(&mut Option<Alive>) -> T) -> T {
        act(&mut self.alive.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts the process over what its disk holds, unless it runs.
    pub(super) fn start(&self) {
        if self.alive(|alive| alive.is_some()) {
            return;
        }
        let process = Process::start(&self.run, format!("collector {}", self.number));
        let primary = Arc::new(self.log.appender(&process));
        let gate = Arc::new(SlowDisk(self.run.clone(), Arc::clone(&process)));
        let spool = self.disk.open(gate, primary.clone(), primary, Options::default()).expect("the agreed log is the same one");
        note!(self.run, "collector {}: starts with {} records in its spool", self.number, spool.stats().records());
        self.alive(|alive| *alive = Some(Alive { process, spool: Arc::new(spool), requests: JoinSet::new() }));
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        note!(self.run, "collector {}: is killed", self.number);
        self.run.saw(Seen::CollectorKilled);
        if let Some(alive) = self.alive(Option::take) {
            alive.process.kill();
        }
    }

    /// Ends the process as SIGTERM does: what was asked is answered.
    pub(super) async fn stop(&self) {
        let Some(mut alive) = self.alive(Option::take) else { return };
        let ended = timeout(STOP_MAX, async {
            // Appends take 5 s at most before they go to the spool.
            while alive.requests.join_next().await.is_some() {}
            alive.spool.stop().await;
        });
        if ended.await.is_err() {
            broke!(self.run, I19Shutdown, "collector {} did not stop in time: {:?}", self.number, alive.spool.stats());
        }
        note!(self.run, "collector {}: has stopped", self.number);
        self.run.saw(Seen::CollectorStopped);
        alive.process.kill();
    }

    /// Says whether its disk has room.
    pub(super) fn set_full(&self, is_full: bool) {
        note!(self.run, "collector {}: its disk is full: {is_full}", self.number);
        self.disk.set(if is_full { Disk::Full } else { Disk::Works });
    }

    /// Returns whether its spool is empty, and all goes to the log.
    pub(super) fn is_direct(&self) -> bool {
        self.alive(|alive| alive.as_ref().is_some_and(|alive| alive.spool.stats().state == State::Direct))
    }

    /// A request of a client, up to its answer.
    pub(super) async fn collect(&self, drafts: Vec<Draft>) -> Result<(), AppendError> {
        let asked = self.alive(|alive| {
            let Alive { process, spool, requests } = alive.as_mut()?;
            while requests.try_join_next().is_some() {}
            let (tell, told) = oneshot::channel();
            let (run, spool) = (self.run.clone(), Arc::clone(spool));
            requests.spawn(async move {
                let records = drafts.into_iter().map(|draft| Record::encode(&admitted(&run, draft))).collect();
                let _ = tell.send(append(&run, &spool, records).await);
            });
            Some((Arc::clone(process), told))
        });
        let Some((process, told)) = asked else { return Err(AppendError::Unavailable("nobody listens".to_owned())) };
        tokio::select! {
            biased;
            () = process.died() => Err(AppendError::Unknown("the connection was reset".to_owned())),
            answer = told => answer.unwrap_or_else(|_| Err(AppendError::Unknown("the connection was reset".to_owned()))),
        }
    }
}

async fn append(run: &Run, spool: &Spool, records: Vec<Record>) -> Result<(), AppendError> {
    let count = records.len();
    match spool.append(records).await {
        Ok(positions) => {
            if positions.len() != count {
                broke!(run, I1NoLoss, "{count} records were appended at {} positions", positions.len());
            }
            if positions.iter().any(|position| position.offset.is_none()) {
                run.saw(Seen::Spooled);
            }
            let stats = spool.stats();
            if stats.drained_records > 0 {
                run.saw(Seen::Drained);
            }
            Ok(())
        }
        Err(error) => {
            if spool.stats().refused_appends > 0 {
                run.saw(Seen::SpoolFull);
            }
            Err(error)
        }
    }
}
