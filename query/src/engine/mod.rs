//! DataFusion as this service uses it: one session per answer, on one snapshot, for one project, within limits.

mod corrections;
mod type_text;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::array::RecordBatch;
use catalogue::schema::SchemaError;
use chrono::SubsecRound;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider};
use datafusion::catalog::{MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::TableProvider;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::{AggregateUDF, LogicalPlan};
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use futures_util::TryStreamExt;
use tokio::sync::oneshot;

use crate::config::Limits;
use crate::http::error::{ApiError, Code};
use crate::source::scan::{Scan, ScanError};
use crate::source::snapshot::Snapshot;
use crate::source::tables::{TABLES, Table};
use type_text::{SqlTypes, TypeTooLarge};

/// Connections that one scan uses at most: one per fact table.
pub const STREAMS_MAX: usize = 5;
/// Planning recurses; the usual 2 MiB end the whole process in a stack overflow.
const PLANNING_STACK_BYTES: usize = 16 * 1_024 * 1_024;
const CATALOG: &str = "weir";
const SCHEMA: &str = "public";

/// Functions that make much from little, outside of what the memory pool counts.
const AMPLIFIERS: [&str; 7] = ["repeat", "lpad", "rpad", "range", "generate_series", "array_repeat", "array_resize"];

/// What all sessions have in common.
pub struct Engine {
    base: SessionState,
    limits: Limits,
    /// Those of the sessions that there are.
    pools: Mutex<Vec<Weak<GreedyMemoryPool>>>,
}

/// A session: tables of one project on one snapshot.
pub struct Session {
    state: SessionState,
    tables: Arc<MemorySchemaProvider>,
}

impl Engine {
    /// Prepares functions and rules; `aggregates` are known to SQL beside those of DataFusion.
    /// # Errors
    /// Those of DataFusion, when it refuses one of our functions.
    pub fn new(limits: &Limits, aggregates: impl IntoIterator<Item = AggregateUDF>) -> Result<Self, DataFusionError> {
        let mut config = SessionConfig::new()
            .with_target_partitions(limits.query_threads)
            .with_information_schema(false)
            .with_create_default_catalog_and_schema(false)
            .with_default_catalog_and_schema(CATALOG, SCHEMA);
        // `now()` is a time in UTC, as the times of events are: the two can be subtracted.
        config.options_mut().execution.time_zone = Some("UTC".to_owned());
        let mut base =
            SessionStateBuilder::new_with_default_features().with_config(config).with_type_planner(Arc::new(SqlTypes)).build();
        type_text::guard(&mut base)?;
        datafusion_functions_json::register_all(&mut base)?;
        for name in AMPLIFIERS {
            base.deregister_udf(name)?;
        }
        let functions: Vec<String> = base.table_functions().keys().cloned().collect();
        for name in functions {
            base.deregister_udtf(&name)?;
        }
        for aggregate in aggregates {
            base.register_udaf(Arc::new(aggregate))?;
        }
        Ok(Engine { base, limits: limits.clone(), pools: Mutex::default() })
    }

    /// Returns what one query may use.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the bytes that sorts, joins and aggregates of all sessions have reserved.
    pub fn pool_bytes(&self) -> usize {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).map(|pool| pool.reserved()).sum()
    }

    /// Returns a session's share of memory, which counts among all of them as long as somebody has it.
    fn pool(&self) -> Arc<GreedyMemoryPool> {
        let pool = Arc::new(GreedyMemoryPool::new(self.limits.query_memory_bytes_max));
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|other| other.strong_count() > 0);
        pools.push(Arc::downgrade(&pool));
        pool
    }

    /// Makes a session without tables. Its time is fixed here: `now()` is the same in all plans of one session.
    /// # Errors
    /// Those of DataFusion.
    pub fn session(&self) -> Result<Session, DataFusionError> {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(self.pool())
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let tables = Arc::new(MemorySchemaProvider::new());
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, tables.clone())?;
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let mut state = SessionStateBuilder::new_from_existing(self.base.clone())
            .with_runtime_env(runtime)
            .with_catalog_list(Arc::new(catalogs))
            .build();
        // DataFusion's own contexts do this before each plan; without it, now() and its like cannot be planned.
        state.mark_start_execution();
        // Microseconds, as stored times have: a comparison with now() is then exact, and Postgres can make it.
        let started_at = state.execution_props().query_execution_start_time;
        state.execution_props_mut().query_execution_start_time = started_at.map(|time| time.trunc_subsecs(6));
        Ok(Session { state, tables })
    }

    /// Makes a session with all tables that SQL may read. `relations` is how many of them the query reads: with few, each
    /// scan gets several connections.
    /// # Errors
    /// Those of DataFusion.
    pub fn session_of_tables(&self, snapshot: &Arc<Snapshot>, relations: usize) -> Result<Session, DataFusionError> {
        let session = self.session()?;
        let streams = if relations * STREAMS_MAX <= self.limits.sql_relations_max.max(STREAMS_MAX) { STREAMS_MAX } else { 1 };
        for table in TABLES.iter() {
            session.add(table.name, Arc::new(Scan::new(table.clone(), snapshot.clone(), streams)))?;
        }
        Ok(session)
    }
}

impl Session {
    /// Adds a table.
    /// # Errors
    /// Those of DataFusion, for a name that is taken.
    pub fn add(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<(), DataFusionError> {
        self.tables.register_table(name.to_owned(), table).map(|_| ())
    }

    /// Makes a scan of a table of ours.
    pub fn scan_of(table: Table, snapshot: &Arc<Snapshot>) -> Arc<dyn TableProvider> {
        Arc::new(Scan::new(table, snapshot.clone(), STREAMS_MAX))
    }

    /// Returns DataFusion's state.
    pub fn state(&self) -> &SessionState {
        &self.state
    }

    /// Turns a logical plan into rows.
    /// # Errors
    /// Those of DataFusion.
    pub async fn run(&self, plan: LogicalPlan) -> Result<SendableRecordBatchStream, DataFusionError> {
        let plan = self.state.create_physical_plan(&corrections::correct(plan)?).await?;
        self.execute(plan)
    }

    /// Runs a physical plan.
    /// # Errors
    /// Those of DataFusion.
    pub fn execute(&self, plan: Arc<dyn ExecutionPlan>) -> Result<SendableRecordBatchStream, DataFusionError> {
        execute_stream(plan, self.state.task_ctx())
    }

    /// Runs SQL of this service's own to its end.
    /// # Errors
    /// Those of DataFusion.
    pub async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>, DataFusionError> {
        let plan = self.state.create_logical_plan(sql).await?;
        self.run(plan).await?.try_collect().await
    }
}

/// Runs a future on a thread of its own with a large stack. What is dropped halfway still runs to its end there; until then the runtime has a
/// task that waits for it.
/// # Errors
/// [`ApiError::internal`] if the system gives no thread.
/// # Panics
/// If the future panics, with its panic.
pub async fn on_large_stack<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("weir-planning".to_owned()).stack_size(PLANNING_STACK_BYTES);
    let started = thread.spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(catch_unwind(AssertUnwindSafe(|| runtime.block_on(work))));
    });
    if let Err(error) = started {
        tracing::error!(%error, "no thread for planning");
        return Err(ApiError::internal());
    }
    // The sender is not dropped unsent.
    let ended = tokio::runtime::Handle::current().spawn(receiver).await.ok().and_then(Result::ok);
    ended.ok_or_else(ApiError::internal)?.map_or_else(|panic| resume_unwind(panic), Ok)
}

/// The same for a failure while planning: what DataFusion calls its own fault then is a form of SQL that it does not know.
pub fn planning_error(error: DataFusionError) -> ApiError {
    match error.find_root() {
        DataFusionError::Internal(message) if pattern_fault(&error).is_none() => {
            tracing::warn!(%error, "a query cannot be planned");
            ApiError::bad_sql(format!("this form of SQL is not supported: {}", first_line(message)))
        }
        _ => api_error(error),
    }
}

/// Returns what is wrong with a regular expression, if that is what failed. DataFusion reports it as a fault of its own, of arrow, or
/// of the crate `regex`, depending on the function and on who finds it.
fn pattern_fault(error: &DataFusionError) -> Option<String> {
    let text = error.to_string();
    if !text.contains("regex parse error") && !text.contains("Regular expression did not compile") {
        return None;
    }
    let reason = text.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    Some(format!("not a regular expression: {}", reason.unwrap_or("it cannot be compiled, or takes too much memory")))
}

/// Turns a failure of DataFusion into what the client is told. What is not the request's fault is logged here.
pub fn api_error(error: DataFusionError) -> ApiError {
    if let Some(fault) = pattern_fault(&error) {
        return ApiError::bad_sql(fault);
    }
    match error.find_root() {
        DataFusionError::External(inner) => {
            if let Some(ScanError::Postgres(error)) = inner.downcast_ref() {
                database_error(error)
            } else if let Some(error) = inner.downcast_ref::<TypeTooLarge>() {
                ApiError::sql_too_large(error.to_string())
            } else {
                internal(&error)
            }
        }
        DataFusionError::ResourcesExhausted(message) => {
            let message = format!("the query needs more memory than it may use: {}", first_line(message));
            ApiError::limit(Code::QueryMemory, message)
        }
        DataFusionError::Internal(_) | DataFusionError::IoError(_) | DataFusionError::ExecutionJoin(_) => internal(&error),
        // The caller's SQL is at fault: a name, a type, a division by zero.
        _ => ApiError::bad_sql(first_line(&error.strip_backtrace())),
    }
}

/// Turns a failure of Postgres into what the client is told, and logs it.
pub fn database_error(error: &sqlx::Error) -> ApiError {
    let code = error.as_database_error().and_then(|error| error.code());
    if code.as_deref() == Some("57014") {
        return ApiError::limit(Code::QueryTimeout, "postgres stopped the query at its time limit");
    }
    tracing::warn!(%error, "postgres failed a query");
    ApiError::unavailable("the database cannot answer now")
}

/// Turns the reason why no snapshot was taken into what the client is told.
pub(crate) fn snapshot_error(error: &SchemaError) -> ApiError {
    match error {
        SchemaError::Unsupported(unsupported) => ApiError::unsupported_schema(unsupported.to_string()),
        SchemaError::Database(error) => database_error(error),
    }
}

fn internal(error: &DataFusionError) -> ApiError {
    tracing::error!(%error, "a query failed");
    ApiError::internal()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_plans_of_a_session_have_one_now() {
        let engine = Engine::new(&Limits::default(), []).expect("an engine");
        let now = async |session: &Session| {
            let rows = session.collect("SELECT CAST(now() AS BIGINT) % 1000, CAST(now() AS TEXT)").await.expect("one row");
            arrow::util::pretty::pretty_format_batches(&rows).expect("a table").to_string()
        };
        let session = engine.session().expect("a session");
        let first = now(&session).await;
        assert!(first.contains("| 0 "), "no finer than stored times: {first}");
        assert_eq!(now(&session).await, first);
        assert_ne!(now(&engine.session().expect("a session")).await, first);
    }

    #[test]
    fn memory_counts_while_a_session_has_it() {
        use datafusion::execution::memory_pool::MemoryConsumer;

        let engine = Engine::new(&Limits::default(), []).expect("an engine");
        let reserved = |session: &Session, bytes: usize| {
            let reservation = MemoryConsumer::new("test").register(&session.state().runtime_env().memory_pool);
            reservation.try_grow(bytes).expect("within its limit");
            reservation
        };
        let (first, second) = (engine.session().expect("a session"), engine.session().expect("a session"));
        let held = [reserved(&first, 3_000), reserved(&second, 500)];
        assert_eq!(engine.pool_bytes(), 3_500);
        drop(held);
        assert_eq!(engine.pool_bytes(), 0);
        drop((first, second));
        let _ = engine.session().expect("a session");
        assert!(engine.pools.lock().expect("free").len() <= 1, "those that are gone are forgotten");
    }

    #[tokio::test]
    #[should_panic(expected = "too clever a plan")]
    async fn a_panic_of_planning_is_its_requests() {
        let planned: Result<(), ApiError> = on_large_stack(async { panic!("too clever a plan") }).await;
        planned.expect("it panics before");
    }
}
