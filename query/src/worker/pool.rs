//! The service's side: child processes that are started ahead, given one question at a time, and ended when they do not end it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use service::{BackOff, Health, Stop, Tasks, meter, priority};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::bounds::resident_bytes;
use super::frames::{self, FrameReader, FromWorker, Head, Question, Start, ToWorker};
use super::room::{Room, Taken};
use crate::config::Limits;
use crate::http::error::{ApiError, Code};
use crate::http::limits::QueryPlace;
use crate::metrics::Metrics;

/// How long a process may take until it is ready.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a worker may take to end what nobody waits for any more; then it is killed.
const END_MAX: Duration = Duration::from_secs(1);
/// How long a question waits for a worker. There are as many of them as places, so only the start of one that died idle is waited for.
const TAKEN_MAX: Duration = Duration::from_secs(10);
/// How long an answer waits for room in memory.
const ROOM_MAX: Duration = Duration::from_secs(5);
/// The shortest and the longest wait before a process is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// A worker that keeps more than one part in this many of what it may use is replaced.
const KEPT_PARTS: u64 = 4;
/// What the Rust runtime says before it aborts for want of memory.
const OUT_OF_MEMORY: &str = "memory allocation of ";

/// The workers of a service.
pub(crate) struct Workers {
    questions: mpsc::UnboundedSender<Asking>,
    /// Workers without a question wait here, one behind the other.
    waiting: tokio::sync::Mutex<mpsc::UnboundedReceiver<Asking>>,
    /// How many processes are ready or answer.
    up: watch::Sender<usize>,
    /// Requests that may still ask.
    asking: watch::Sender<usize>,
    room: Room,
    /// The processes that are ready or answer.
    pids: Mutex<BTreeSet<u32>>,
    command: Vec<OsString>,
    start: ToWorker,
    limits: Limits,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// An answer.
pub(crate) struct Answered {
    pub(crate) head: Head,
    /// Dropped, it gives its room in memory back.
    pub(crate) body: Bytes,
}

/// A question, and who waits for its answer.
struct Asking {
    question: Question,
    deadline: Instant,
    taken: oneshot::Sender<()>,
    reply: oneshot::Sender<Result<Answered, ApiError>>,
    /// Its place among the running queries; kept until the work has ended, and the process is as before or has been replaced.
    place: QueryPlace,
}

/// Why a worker was ended, or ended; the values of a label.
#[derive(Clone, Copy)]
enum End {
    /// Its client had gone, and it went on.
    Abandoned,
    /// The time limit had passed, and it went on.
    Timeout,
    /// It had answered, and went on.
    Lingering,
    /// It asked for more memory than it may use.
    Memory,
    /// It ended by itself, which is a bug.
    Died,
}

impl End {
    fn label(self) -> &'static str {
        match self {
            End::Abandoned => "abandoned",
            End::Timeout => "timeout",
            End::Lingering => "lingering",
            End::Memory => "memory",
            End::Died => "died",
        }
    }
}

impl Workers {
    /// Begins to start the workers, by tasks `sql-worker-1` and so on.
    pub(crate) fn start(
        command: Vec<OsString>,
        database_url: String,
        limits: &Limits,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let (questions, waiting) = mpsc::unbounded_channel();
        let workers = Arc::new(Workers {
            questions,
            waiting: tokio::sync::Mutex::new(waiting),
            up: watch::Sender::new(0),
            asking: watch::Sender::new(0),
            room: Room::new(limits.answers_bytes_max, limits.answers_bytes_of_one_max()),
            pids: Mutex::default(),
            command,
            start: ToWorker::Start(Box::new(Start { database_url, limits: limits.clone() })),
            limits: limits.clone(),
            metrics: Arc::clone(metrics),
            health: Arc::clone(tasks.health()),
        });
        // One for each place. A place is kept until the process that it used is as before, so whoever has a place has a process.
        for number in 1..=limits.queries_running_max {
            let workers = Arc::clone(&workers);
            tasks.spawn(format!("sql-worker-{number}"), move |stop| Arc::clone(&workers).keep(stop));
        }
        workers
    }

    /// Waits until a worker is ready. May be cancelled.
    /// # Errors
    /// If none is in time; the log says why.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        let is_up = timeout(START_MAX, self.up.subscribe().wait_for(|up| *up > 0)).await.is_ok();
        if is_up { Ok(()) } else { Err(self.unready().unwrap_or_default()) }
    }

    /// Returns why no question of SQL can be answered.
    pub(crate) fn unready(&self) -> Option<String> {
        (*self.up.borrow() == 0).then(|| "no process for SQL questions runs; the log says why".to_owned())
    }

    /// Returns the bytes of answers that are not written yet.
    pub(crate) fn answers_bytes(&self) -> usize {
        self.room.taken()
    }

    /// Returns the bytes that all processes have in memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|pid| resident_bytes(&pid.to_string())).sum()
    }

    /// Puts a question to a worker, once `place` is there. Dropped, it makes the worker end it.
    /// # Errors
    /// [`ApiError`]: that of the place, of the worker, or of code `query_timeout`, `query_memory`, `busy` or `unavailable`.
    pub(crate) async fn ask(
        &self,
        question: Question,
        place: impl Future<Output = Result<QueryPlace, ApiError>>,
    ) -> Result<Answered, ApiError> {
        let _asking = Counted::new(&self.asking);
        let place = place.await?;
        let deadline = Instant::now() + self.limits.query_time_max;
        let ((taken, is_taken), (reply, answer)) = (oneshot::channel(), oneshot::channel());
        // It is received as long as `self` lives.
        let _ = self.questions.send(Asking { question, deadline, taken, reply, place });
        let in_time = deadline.min(Instant::now() + TAKEN_MAX);
        if !matches!(timeout_at(in_time, is_taken).await, Ok(Ok(()))) {
            return Err(ApiError::unavailable("no process for questions is ready"));
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answered)) => answered,
            // Its task panicked, which is counted there.
            Ok(Err(_)) => Err(ApiError::internal()),
            Err(_) => Err(ApiError::timeout(self.limits.query_time_max.as_secs_f64())),
        }
    }

    /// Keeps one worker running until a stop is requested and nobody asks any more.
    async fn keep(self: Arc<Self>, mut stop: Stop) {
        let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
        let mut place = None;
        loop {
            let started = Process::start(&self.command, &self.start).await;
            // The place of the question that the process before ended with: given back any sooner, its project's next one could take
            // the process of another's.
            drop(place.take());
            match started {
                Ok(process) => match self.serve(process, &mut stop).await {
                    Served::ToTheEnd => return,
                    Served::Work(of_last) => {
                        back_off.reset();
                        place = Some(of_last);
                    }
                    Served::Nothing => {}
                },
                Err(error) => tracing::error!(%error, "a process for questions does not start"),
            }
            tokio::select! {
                () = back_off.wait() => {}
                () = stop.requested() => return,
            }
        }
    }

    /// Gives questions to a process until it is gone.
    async fn serve(&self, mut process: Process, stop: &mut Stop) -> Served {
        let _up = Up::new(self, &process);
        loop {
            let nobody_asks = async {
                stop.requested().await;
                let _ = self.asking.subscribe().wait_for(|asking| *asking == 0).await;
            };
            let asking = tokio::select! {
                asking = async { self.waiting.lock().await.recv().await } => asking,
                status = process.child.wait() => {
                    tracing::error!(?status, "a process for questions ended without one; another one is started");
                    self.metrics.worker_killed(End::Died.label());
                    return Served::Nothing;
                }
                () = nobody_asks => None,
            };
            let Some(asking) = asking else {
                process.end().await;
                return Served::ToTheEnd;
            };
            let Asking { question, deadline, taken, reply, place } = asking;
            let _ = taken.send(());
            match self.work(&mut process, question, deadline, reply).await {
                Ok(resident_bytes) if resident_bytes <= self.limits.worker_memory_bytes_max / KEPT_PARTS => {}
                Ok(_) => {
                    process.end().await;
                    return Served::Work(place);
                }
                Err(end) => {
                    self.metrics.worker_killed(end.label());
                    return Served::Work(place);
                }
            }
        }
    }

    /// Has one question answered and waits for the end of all that it began. Returns what the process keeps in memory.
    /// # Errors
    /// The process is gone, and why.
    async fn work(
        &self,
        process: &mut Process,
        question: Question,
        deadline: Instant,
        mut reply: oneshot::Sender<Result<Answered, ApiError>>,
    ) -> Result<u64, End> {
        let _busy = meter::Counted::new(&self.metrics.workers_busy);
        let project = question.project;
        if reply.is_closed() {
            return Ok(0);
        }
        let Process { reader, writer, .. } = &mut *process;
        if frames::write(writer, &ToWorker::Ask(question), &[]).await.is_err() {
            let (end, error) = self.after_death(process).await;
            let _ = reply.send(Err(error));
            return Err(end);
        }
        let answered = {
            let mut answer = pin!(self.answer(reader, project));
            let answered = tokio::select! {
                answered = &mut answer => Some(answered),
                () = reply.closed() => None,
            };
            match answered {
                Some(answered) => Ok(answered),
                None => {
                    let end = if Instant::now() >= deadline { End::Timeout } else { End::Abandoned };
                    let until = Instant::now() + END_MAX;
                    // If it is gone, its answer does not come.
                    let _ = frames::write(writer, &ToWorker::Stop, &[]).await;
                    Err((timeout_at(until, answer).await.map(|answered| answered.is_ok()), until, end))
                }
            }
        };
        match answered {
            Ok(Ok(answered)) => {
                // Nobody may be waiting any more.
                let _ = reply.send(answered);
                self.until_ended(process, Instant::now() + END_MAX, End::Lingering).await
            }
            Ok(Err(_)) => {
                let (end, error) = self.after_death(process).await;
                let _ = reply.send(Err(error));
                Err(end)
            }
            Err((Ok(true), until, end)) => self.until_ended(process, until, end).await,
            Err((Ok(false), ..)) => Err(self.after_death(process).await.0),
            Err((Err(_), _, end)) => Err(process.kill(end).await),
        }
    }

    /// Reads what came of a question, once there is room for it. Not to be cancelled.
    /// # Errors
    /// The process is gone.
    async fn answer(&self, reader: &mut FrameReader<OwnedReadHalf>, project: Uuid) -> io::Result<Result<Answered, ApiError>> {
        match reader.head().await? {
            Some((FromWorker::Answer(head), length)) => {
                let Ok(Some(taken)) = timeout(ROOM_MAX, self.room.take(project, length)).await else {
                    reader.pass_over(length).await?;
                    self.metrics.busy.increment(1);
                    return Ok(Err(ApiError::busy()));
                };
                let body = reader.body(length).await?;
                Ok(Ok(Answered { head, body: Bytes::from_owner(Held { body, _taken: taken }) }))
            }
            Some((FromWorker::Refused { error, panic }, _)) => {
                if let Some(text) = panic {
                    self.health.panicked(&text);
                }
                Ok(Err(error))
            }
            Some((FromWorker::Ready | FromWorker::Ended { .. }, _)) => Err(io::Error::other("a frame out of turn")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits until a worker says that a question has ended.
    /// # Errors
    /// It did not in time and was killed, for this reason; or it is gone.
    async fn until_ended(&self, process: &mut Process, until: Instant, end: End) -> Result<u64, End> {
        match timeout_at(until, process.reader.head()).await {
            Ok(Ok(Some((FromWorker::Ended { resident_bytes }, _)))) => Ok(resident_bytes),
            Ok(_) => Err(self.after_death(process).await.0),
            Err(_) => Err(process.kill(end).await),
        }
    }

    /// Finds out why a process has gone, and what its client is told.
    async fn after_death(&self, process: &mut Process) -> (End, ApiError) {
        let (status, words) = process.gone().await;
        // Nobody here has killed it, so the system did, and that is for memory.
        let is_killed = status.is_some_and(|status| status.signal() == Some(KILL));
        if is_killed || words.contains(OUT_OF_MEMORY) {
            let mib = self.limits.worker_memory_bytes_max / 1_024 / 1_024;
            let message =
                format!("the query needs more than the {mib} MiB of memory that one may use in all; ask for less at a time");
            tracing::warn!(words, "a query was ended for its memory");
            return (End::Memory, ApiError::limit(Code::QueryMemory, message));
        }
        tracing::error!(?status, words, "a process for questions ended within one");
        (End::Died, ApiError::internal())
    }
}

/// What a process was good for.
enum Served {
    /// It served until the service stopped.
    ToTheEnd,
    /// It took a question, and is gone; the place of that.
    Work(QueryPlace),
    /// It was gone before.
    Nothing,
}

/// The number of the signal that nobody can catch.
const KILL: i32 = 9;

/// A worker's process. Dropped, it is killed.
struct Process {
    child: Child,
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// The last line that it wrote to stderr, or the one that says why it aborts.
    words: Arc<Mutex<String>>,
    forwarding: JoinHandle<()>,
}

impl Process {
    /// Starts a process and waits until it is ready.
    /// # Errors
    /// If the system refuses, or it is not ready in time.
    async fn start(command: &[OsString], start: &ToWorker) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no command of a worker is known"))?;
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            // What a library prints is no frame.
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal is the service's; it lets questions end.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        if let Some(pid) = child.id() {
            priority::set_aside(pid);
        }
        let words = Arc::new(Mutex::default());
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("its stderr"))?;
        let forwarding = tokio::spawn(forward(stderr, Arc::clone(&words)));
        let (reader, writer) = UnixStream::from_std(ours)?.into_split();
        let mut process = Process { child, reader: FrameReader::new(reader), writer, words, forwarding };
        let ready = async {
            frames::write(&mut process.writer, start, &[]).await?;
            process.reader.head().await
        };
        match timeout(START_MAX, ready).await {
            Ok(Ok(Some((FromWorker::Ready, _)))) => Ok(process),
            Ok(_) => {
                let (status, words) = process.gone().await;
                Err(io::Error::other(format!("it ended: {status:?} {words}")))
            }
            Err(_) => {
                process.kill(End::Died).await;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }

    /// Ends it at once, and returns the reason given when it is gone.
    async fn kill(&mut self, end: End) -> End {
        if let Err(error) = self.child.kill().await {
            tracing::error!(%error, "a process for questions cannot be killed");
        }
        end
    }

    /// Waits for its end, which is under way, and returns how it ended and its last words.
    async fn gone(&mut self) -> (Option<ExitStatus>, String) {
        let status = match timeout(END_MAX, self.child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                self.kill(End::Died).await;
                None
            }
        };
        let _ = timeout(END_MAX, &mut self.forwarding).await;
        (status, self.words.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Lets it end, having nothing to do.
    async fn end(mut self) {
        drop(self.writer);
        if timeout(END_MAX, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// Writes what a worker says to the stderr of this process, and keeps the last line. After the one about memory a backtrace may follow.
async fn forward(stderr: ChildStderr, words: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        let text = String::from_utf8_lossy(&line).into_owned();
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        if !text.trim().is_empty() && !words.contains(OUT_OF_MEMORY) {
            *words = text;
        }
        drop(words);
        line.push(b'\n');
        // Without a stderr the words have to do.
        let _ = io::stderr().lock().write_all(&line);
    }
}

/// The bytes of an answer, with their room.
struct Held {
    body: Vec<u8>,
    _taken: Taken,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// A process that is up, for as long as it is.
struct Up<'a> {
    workers: &'a Workers,
    pid: Option<u32>,
    _counted: Counted<'a>,
    _shown: meter::Counted,
}

impl<'a> Up<'a> {
    fn new(workers: &'a Workers, process: &Process) -> Self {
        let pid = process.child.id();
        workers.pids.lock().unwrap_or_else(PoisonError::into_inner).extend(pid);
        Up { workers, pid, _counted: Counted::new(&workers.up), _shown: meter::Counted::new(&workers.metrics.workers_running) }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.workers.pids.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| Some(*pid) != self.pid);
    }
}

/// A request that may ask, or a process that is up, for as long as it is.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
