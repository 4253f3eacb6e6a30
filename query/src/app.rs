//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use sqlx::PgPool;
use uuid::Uuid;

use crate::config::Limits;
use crate::engine::{self, Engine};
use crate::error::Refusal;
use crate::metrics::Metrics;
use crate::slots::Slots;
use crate::snapshot::Snapshot;
use crate::tokens::Tokens;

/// The parts of a running service.
pub struct App {
    pub(crate) limits: Limits,
    pub(crate) pool: PgPool,
    pub(crate) engine: Engine,
    pub(crate) tokens: Tokens,
    pub(crate) slots: Slots,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) is_stopping: AtomicBool,
}

impl App {
    /// Takes a snapshot of the database for one project.
    /// # Errors
    /// [`Refusal`] of code `unavailable`.
    pub(crate) async fn snapshot(&self, project: Uuid) -> Result<Snapshot, Refusal> {
        let snapshot = Snapshot::take(&self.pool, project, self.limits.query_time_max).await;
        snapshot.map_err(|error| engine::database_refusal(&error))
    }

    /// Waits for a place among the running queries, and stops the work at the time limit by dropping it.
    /// # Errors
    /// Those of the work, and [`Refusal`] of code `busy` or `query_timeout`.
    pub(crate) async fn within_limits<T>(&self, work: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
        let _slot = self.slots.take().await?;
        match tokio::time::timeout(self.limits.query_time_max, work).await {
            Ok(done) => done,
            Err(_) => Err(Refusal::timeout(self.limits.query_time_max.as_secs_f64())),
        }
    }

    /// Returns whether queries can be answered now, and if not, why.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        if self.is_stopping.load(std::sync::atomic::Ordering::Relaxed) {
            return Err("the query service is stopping".to_owned());
        }
        let newest = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations WHERE success");
        match newest.fetch_one(&self.pool).await {
            Ok(Some(version)) if version >= SCHEMA_VERSION_MIN => Ok(()),
            Ok(version) => {
                let found = version.unwrap_or(0);
                Err(format!("the database has schema {found}, expected {SCHEMA_VERSION_MIN} or later; run `weir migrate`"))
            }
            Err(error) => {
                tracing::debug!(%error, "not ready");
                Err("the database does not answer, or was never migrated".to_owned())
            }
        }
    }
}

/// The first schema with all tables and columns that are read here.
const SCHEMA_VERSION_MIN: i64 = 4;
