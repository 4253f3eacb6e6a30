//! A log, a database, and aggregators between them.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aggregator::{Aggregator, Config};
use async_trait::async_trait;
use bytes::Bytes;
use eventlog::memory::MemoryLog;
use eventlog::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};
use events::rules::{self, RequestContext};
use events::testing::request_context;
use events::{Draft, EventId, Record};
use migrations::testing::TestDatabase;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

/// A memory log that does not claim to be this process's alone: leases then have to be waited for.
#[derive(Clone)]
pub(crate) struct SharedLog(pub MemoryLog);

#[async_trait]
impl Read for SharedLog {
    fn identity(&self) -> LogIdentity {
        Read::identity(&self.0)
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.0.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.0.read(partition, from, bound).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.0.release(partition, offset).await;
    }
}

/// A memory log whose records another program wrote over.
#[derive(Clone)]
pub(crate) struct Rewritten {
    pub log: MemoryLog,
    pub is_exclusive: bool,
    /// What a record reads as, by log partition and offset.
    pub rewrite: fn(u32, Offset, Bytes) -> Bytes,
}

#[async_trait]
impl Read for Rewritten {
    fn identity(&self) -> LogIdentity {
        Read::identity(&self.log)
    }

    fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.log.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        let mut records = self.log.read(partition, from, bound).await?;
        for record in &mut records {
            record.bytes = (self.rewrite)(partition, record.offset, record.bytes.clone());
        }
        Ok(records)
    }

    async fn release(&self, _partition: u32, _offset: Offset) {
        // Kept, so that a test can read it again.
    }
}

/// Makes the error of a call.
type Failure = fn() -> ReadError;

/// A memory log that gives what it is told to instead of records, as one over Kafka does while its brokers are away.
#[derive(Clone)]
pub(crate) struct Outage {
    log: MemoryLog,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl Outage {
    pub(crate) fn of(log: &MemoryLog) -> Self {
        Outage { log: log.clone(), failure: Arc::default() }
    }

    /// Says what calls fail with from now on; none: they work.
    pub(crate) fn fail(&self, failure: Option<Failure>) {
        *self.failure.lock().expect("nobody panics with it") = failure;
    }

    fn works(&self) -> Result<(), ReadError> {
        self.failure.lock().expect("nobody panics with it").map_or(Ok(()), |failure| Err(failure()))
    }
}

#[async_trait]
impl Read for Outage {
    fn identity(&self) -> LogIdentity {
        Read::identity(&self.log)
    }

    fn is_exclusive(&self) -> bool {
        true
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.works()?;
        self.log.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.works()?;
        let records = self.log.read(partition, from, bound).await?;
        self.works()?; // while it waited
        Ok(records)
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.log.release(partition, offset).await;
    }
}

#[async_trait]
impl Append for Outage {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.log)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        self.works().map_err(|error| AppendError::Unavailable(error.to_string()))?;
        self.log.append(batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.works().map_err(|error| AppendError::Unavailable(error.to_string()))
    }
}

pub(crate) struct Pipeline {
    pub database: TestDatabase,
    pub connection: PgConnection,
    pub log: MemoryLog,
}

impl Pipeline {
    /// With the project that [`request_context`] admits to, which registers names by itself.
    pub(crate) async fn new() -> Self {
        Self::on(TestDatabase::create().await).await
    }

    pub(crate) async fn on(database: TestDatabase) -> Self {
        let mut connection = database.connect().await;
        sqlx::query("INSERT INTO projects (id, name, auto_register) VALUES ($1, 'default', true)")
            .bind(request_context().project.0)
            .execute(&mut connection)
            .await
            .expect("a project");
        Pipeline { database, connection, log: MemoryLog::new(8) }
    }

    pub(crate) fn config(&self, workers: u32) -> Config {
        let any_port = "127.0.0.1:0".parse().expect("a constant");
        Config { workers, batch_age_ms_max: 5, ..Config::new(any_port, self.database.url.clone()) }
    }

    pub(crate) async fn start(&self, workers: u32) -> Aggregator {
        self.start_on(Arc::new(self.log.clone()), workers).await
    }

    pub(crate) async fn start_on(&self, read: Arc<dyn Read>, workers: u32) -> Aggregator {
        Aggregator::start(self.config(workers), read, Arc::new(self.log.clone())).await.expect("the aggregator starts")
    }

    pub(crate) async fn append(&self, drafts: impl IntoIterator<Item = Draft>) {
        self.append_at(&request_context(), drafts).await;
    }

    pub(crate) async fn append_at(&self, request: &RequestContext, drafts: impl IntoIterator<Item = Draft>) {
        let encode = |draft| Record::encode(&rules::admit(draft, request, || EventId(Uuid::new_v4())).expect("a valid event"));
        self.log.append(drafts.into_iter().map(encode).collect()).await.expect("memory takes all");
    }

    /// Waits until all that the log holds is stored.
    pub(crate) async fn drained(&mut self) {
        let mut end = 0;
        for partition in 0..8 {
            end += self.log.offsets(partition).await.expect("memory answers").end as i64;
        }
        self.until(&format!("SELECT coalesce(sum(next_offset), 0) = {end} FROM checkpoints"), Duration::from_secs(60)).await;
    }

    /// Waits until a query answers true.
    pub(crate) async fn until(&mut self, query: &str, limit: Duration) {
        let began = std::time::Instant::now();
        while !self.scalar::<bool>(query).await {
            assert!(began.elapsed() < limit, "{query} was not true within {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn scalar<T>(&mut self, query: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut self.connection).await.expect("answers")
    }

    pub(crate) async fn execute(&mut self, statement: &str) {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await.expect("executes");
    }

    /// All derived rows as one text, without what differs from run to run.
    pub(crate) async fn derived(&mut self) -> String {
        let table = |name: &str| {
            format!("(SELECT string_agg((to_jsonb(t) - 'created_at' - 'updated_at')::text, E'\\n' ORDER BY id) FROM {name} t)")
        };
        let query =
            format!("SELECT concat_ws('|', {}, {})", table("user_experiment_participation"), table("conversion_attribution"));
        self.scalar(&query).await
    }
}
