//! What all requests share.

use std::sync::Arc;
use std::time::Duration;

use catalogue::schema;
use service::{AdminEndpoint, Health};
use sqlx::PgPool;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::SCHEMA;
use crate::config::Limits;
use crate::engine::{self, Engine};
use crate::experiment::Answers;
use crate::experiment::list::Lists;
use crate::experiment::read::cohort_cache::CohortCache;
use crate::http::error::ApiError;
use crate::http::limits::{QueryKind, QueryQueue};
use crate::http::tokens::Tokens;
use crate::metrics::{Held, Metrics};
use crate::source::snapshot::Snapshot;
use crate::threads::Places;
use crate::worker::{Answered, Asked, Question, Workers};

/// The parts of a running service.
pub struct App {
    pub(crate) limits: Limits,
    pub(crate) pool: PgPool,
    pub(crate) engine: Engine,
    pub(crate) tokens: Tokens,
    pub(crate) queue: QueryQueue,
    pub(crate) cohorts: CohortCache,
    pub(crate) lists: Lists,
    pub(crate) answers: Answers,
    /// Threads of their own for queries: what computes for long must not hold up connections and health.
    pub(crate) places: Places,
    /// Processes for what clients wrote expressions for.
    pub(crate) workers: Arc<Workers>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) admin: AdminEndpoint,
    pub(crate) health: Arc<Health>,
}

impl App {
    /// Takes a snapshot of the database for one project.
    /// # Errors
    /// [`ApiError`] of code `unavailable` or `schema_unsupported`.
    pub(crate) async fn snapshot(&self, project: Uuid) -> Result<Snapshot, ApiError> {
        let snapshot = Snapshot::take(&self.pool, project, self.limits.query_time_max).await;
        snapshot.map_err(|error| engine::snapshot_error(&error))
    }

    /// Waits for a place among the running queries, and has a worker answer. The place is given back when the work has ended, or the
    /// worker's process has. Dropped, it ends the work.
    /// # Errors
    /// Those of the work, and [`ApiError`] of code `busy`, `query_timeout`, `query_memory` or `unavailable`.
    pub(crate) async fn ask_worker(&self, project: Uuid, asked: Asked) -> Result<Answered, ApiError> {
        let kind = match asked {
            Asked::Sql { .. } => QueryKind::Sql,
            Asked::Funnel { .. } => QueryKind::Funnel,
        };
        self.workers.ask(Question { project, asked }, self.queue.acquire(project, kind)).await
    }

    /// Waits for a place among the running queries, and runs the work on the threads of that place. At the time limit the
    /// caller is told at once. The work ends when it next waits for something, which a join may put off for seconds; it keeps
    /// its place until all that it has begun has ended. Dropped, it ends the same way.
    /// # Errors
    /// Those of the work, and [`ApiError`] of code `busy` or `query_timeout`.
    pub(crate) async fn within_limits<T, F, W>(self: &Arc<Self>, project: Uuid, kind: QueryKind, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<App>) -> W,
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let place = self.queue.acquire(project, kind).await?;
        // There are as many as places.
        let place_threads = self.places.take().ok_or_else(ApiError::internal)?;
        let threads = place_threads.handle();
        let task = threads.spawn(work(self.clone()));
        let _abort = AbortOnDrop(task.abort_handle());
        let (reply, answer) = oneshot::channel();
        threads.clone().spawn(async move {
            // Nobody may be waiting any more.
            let _ = reply.send(task.await);
            // This task is one.
            while threads.metrics().num_alive_tasks() > 1 {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            drop(place_threads);
            drop(place);
        });
        match tokio::time::timeout(self.limits.query_time_max, answer).await {
            Ok(Ok(Ok(done))) => done,
            Ok(Ok(Err(error))) => {
                if let Ok(panic) = error.try_into_panic() {
                    self.health.panicked(panic.as_ref());
                }
                Err(ApiError::internal())
            }
            Ok(Err(_)) => Err(ApiError::internal()),
            Err(_) => Err(ApiError::timeout(self.limits.query_time_max.as_secs_f64())),
        }
    }

    /// Shows in the metrics who holds memory now.
    pub(crate) fn show_held(&self) {
        self.metrics.held(Held {
            engine: self.engine.pool_bytes(),
            cohorts: self.cohorts.bytes(),
            answers: self.workers.answers_bytes(),
            workers: self.workers.resident_bytes(),
        });
    }

    /// Returns whether queries can be answered now, and if not, why.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        if let Some(reason) = self.workers.unready() {
            return Err(reason);
        }
        let version = schema::of_answer(sqlx::query_scalar(schema::VERSION).fetch_one(&self.pool).await);
        match version {
            Ok(version) => SCHEMA.check(version).map_err(|unsupported| unsupported.to_string()),
            Err(error) => {
                tracing::debug!(%error, "not ready");
                Err("the database does not answer".to_owned())
            }
        }
    }
}

/// How often it is looked whether what a query had begun has ended.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A task that ends with whoever waits for it.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
