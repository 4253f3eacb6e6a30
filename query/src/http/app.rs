//! What all requests share.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use catalogue::schema::{self, SchemaError};
use service::{AdminEndpoint, Health};
use sqlx::PgPool;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use uuid::Uuid;

use crate::SCHEMA;
use crate::config::Limits;
use crate::engine::{self, Engine};
use crate::experiment::read::cohort_cache::CohortCache;
use crate::http::error::ApiError;
use crate::http::limits::QueryQueue;
use crate::http::tokens::Tokens;
use crate::metrics::Metrics;
use crate::source::snapshot::Snapshot;

/// The parts of a running service.
pub struct App {
    pub(crate) limits: Limits,
    pub(crate) pool: PgPool,
    pub(crate) engine: Engine,
    pub(crate) tokens: Tokens,
    pub(crate) queue: QueryQueue,
    pub(crate) cohorts: CohortCache,
    /// Threads of their own for queries: what computes for long must not hold up connections and health.
    pub(crate) threads: Handle,
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
        snapshot.map_err(|error| match error {
            SchemaError::Unsupported(unsupported) => ApiError::unsupported_schema(unsupported.to_string()),
            SchemaError::Database(error) => engine::database_error(&error),
        })
    }

    /// Waits for a place among the running queries, and runs the work on the threads of queries. At the time limit the
    /// caller is told at once. The work ends when it next waits for something, which a join may put off for seconds; it keeps
    /// its place until then. Dropped, it ends the same way.
    /// # Errors
    /// Those of the work, and [`ApiError`] of code `busy` or `query_timeout`.
    pub(crate) async fn within_limits<T, F, W>(self: &Arc<Self>, project: Uuid, work: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<App>) -> W,
        W: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let permit = self.queue.acquire(project).await?;
        let work = work(self.clone());
        let task = self.threads.spawn(async move {
            let done = work.await;
            drop(permit);
            done
        });
        match tokio::time::timeout(self.limits.query_time_max, AbortOnDrop(task)).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                if let Ok(panic) = error.try_into_panic() {
                    self.health.panicked(panic.as_ref());
                }
                Err(ApiError::internal())
            }
            Err(_) => Err(ApiError::timeout(self.limits.query_time_max.as_secs_f64())),
        }
    }

    /// Returns whether queries can be answered now, and if not, why.
    pub(crate) async fn ready(&self) -> Result<(), String> {
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

/// A task that ends with whoever waits for it.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
