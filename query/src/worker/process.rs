//! What runs in a worker: one question at a time, until the service that started it is gone.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use service::{Threads, priority};
use sqlx::{PgConnection, PgPool};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;

use super::bounds::{Spare, bound_memory, resident_bytes};
use super::frames::{self, Asked, FrameReader, FromWorker, Head, Question, Start, ToWorker};
use crate::config::Limits;
use crate::engine::{self, Engine};
use crate::funnel;
use crate::http::error::ApiError;
use crate::source::snapshot::Snapshot;
use crate::sql::run::{self, Rows};
use crate::threads;

/// How often it is looked whether what a question had begun has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Why a worker ended other than with its service.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Somebody else started it.
    #[error("a worker is started by a query service, which speaks to it over its stdin; the present one is no socket: {0}")]
    NoSocket(#[source] io::Error),
    /// The service said something that is not understood, or the socket failed.
    #[error("the socket of the query service: {0}")]
    Socket(#[from] io::Error),
    /// The database, the engine or the threads are not to be had.
    #[error("{0}")]
    Start(#[from] crate::StartError),
}

/// Answers the questions of the service whose socket is this process' stdin; returns when the service is gone. Bounds the memory of
/// this process, for good.
/// # Errors
/// [`WorkerError`].
pub async fn serve() -> Result<(), WorkerError> {
    let socket = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.local_addr().map_err(WorkerError::NoSocket)?;
    socket.set_nonblocking(true)?;
    let (reader, writer) = UnixStream::from_std(socket)?.into_split();
    let mut reader = FrameReader::new(reader);
    let Some((ToWorker::Start(start), _)) = reader.head().await? else { return Ok(()) };
    let Start { database_url, limits } = *start;
    bound_memory(limits.worker_memory_bytes_max, Spare::Worker)?;
    let threads = Threads::start_aside(threads::NAME, 2 * limits.query_threads + 1).map_err(crate::StartError::Threads)?;
    let asked = Arc::new(Place {
        engine: Engine::new(&limits, funnel::functions()).map_err(crate::StartError::Engine)?,
        pool: postgres(&database_url, &limits)?,
        limits,
    });
    Worker { reader, writer, threads: threads.handle(), place: asked }.run().await?;
    Ok(())
}

/// Prepares connections to Postgres, whose backends are as nice as this process where they are on this machine: others' questions do not
/// wait for what is read for these.
fn postgres(database_url: &str, limits: &Limits) -> Result<PgPool, crate::StartError> {
    let options = crate::connect_options(database_url, "weir query-worker")?;
    let is_near = options.get_host().starts_with('/') || options.get_socket().is_some();
    let pool = crate::pool_options(limits.worker_postgres_connections());
    let pool = if is_near { pool.after_connect(|connection, _| Box::pin(give_way(connection))) } else { pool };
    Ok(pool.connect_lazy_with(options))
}

async fn give_way(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(connection).await?;
    // Behind a socket that another container shares, the number may be anybody's.
    let is_postgres = std::fs::read(format!("/proc/{backend}/cmdline")).is_ok_and(|line| line.starts_with(b"postgres: "));
    if is_postgres && let Ok(backend) = u32::try_from(backend) {
        priority::share(backend);
    }
    Ok(())
}

/// Where questions are answered.
struct Place {
    engine: Engine,
    pool: PgPool,
    limits: Limits,
}

struct Worker {
    reader: FrameReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Threads of questions. Nothing else runs on them, so that a question has ended when they have no task; and the socket is
    /// served elsewhere, however long one computes.
    threads: Handle,
    place: Arc<Place>,
}

impl Worker {
    async fn run(mut self) -> io::Result<()> {
        frames::write(&mut self.writer, &FromWorker::Ready, &[]).await?;
        loop {
            match self.reader.head().await? {
                Some((ToWorker::Ask(question), _)) => {
                    if !self.answer(question).await? {
                        return Ok(());
                    }
                }
                // It came too late: the question had ended.
                Some((ToWorker::Stop, _)) => {}
                Some((ToWorker::Start(_), _)) => return Err(io::Error::other("a second start")),
                None => return Ok(()),
            }
        }
    }

    /// Answers a question, or stops when nobody waits for the answer. Returns whether the service is still there.
    async fn answer(&mut self, question: Question) -> io::Result<bool> {
        let place = Arc::clone(&self.place);
        let mut task = self.threads.spawn(async move { place.answer(question).await });
        let done = tokio::select! {
            done = &mut task => done,
            message = self.reader.head::<ToWorker>() => {
                if message?.is_none() {
                    return Ok(false);
                }
                task.abort();
                (&mut task).await
            }
        };
        let (head, body) = match done {
            Ok(Ok((head, body))) => (FromWorker::Answer(head), body),
            Ok(Err(error)) => (FromWorker::Refused { error, panic: None }, Vec::new()),
            Err(error) => {
                let panic = error.try_into_panic().ok().map(|panic| service::tasks::text_of(panic.as_ref()));
                (FromWorker::Refused { error: ApiError::internal(), panic }, Vec::new())
            }
        };
        frames::write(&mut self.writer, &head, &body).await?;
        drop(body);
        // Scans, joins and plans that were dropped go on until they next wait for something.
        while self.threads.metrics().num_alive_tasks() > 0 {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                message = self.reader.head::<ToWorker>() => {
                    if message?.is_none() {
                        return Ok(false);
                    }
                }
            }
        }
        frames::write(&mut self.writer, &FromWorker::Ended { resident_bytes: resident_bytes("self") }, &[]).await?;
        Ok(true)
    }
}

impl Place {
    async fn answer(&self, question: Question) -> Result<(Head, Vec<u8>), ApiError> {
        match question.asked {
            Asked::Sql { sql, format } => {
                let guarded = run::check(sql, &self.limits).await?;
                let snapshot = self.snapshot(question.project).await?;
                let Rows { body, rows, truncated, as_of } = run::answer(&self.engine, snapshot, guarded, format).await?;
                Ok((Head { rows, truncated, as_of }, body))
            }
            Asked::Funnel { kind, definition } => {
                let request = funnel::Request::parse(kind, definition.as_bytes())?;
                let snapshot = self.snapshot(question.project).await?;
                let as_of = snapshot.as_of().clone();
                let body = request.answer(&self.engine, snapshot).await?;
                Ok((Head { as_of, ..Head::default() }, body))
            }
        }
    }

    async fn snapshot(&self, project: uuid::Uuid) -> Result<Arc<Snapshot>, ApiError> {
        let snapshot = Snapshot::take(&self.pool, project, self.limits.query_time_max).await;
        snapshot.map(Arc::new).map_err(|error| engine::snapshot_error(&error))
    }
}
