//! The store that serves: Postgres. Each call waits as long as Postgres is at it, and no longer ([`crate::silence`]).

use std::collections::BTreeSet;

use async_trait::async_trait;
use catalogue::schema::{self, UnsupportedSchema};
use eventlog::Offset;
use sqlx::{Connection as _, PgConnection, Row};
use uuid::Uuid;

use super::{Lease, Leases, Store, Writer};
use crate::SCHEMA;
use crate::batch::Batch;
use crate::commit::checkpoint::{self, Checkpoint};
use crate::commit::limit::{Tallies, Tally};
use crate::commit::memory::{Counts, Memory};
use crate::commit::{self, CommitError, Stored, WorkerCache, copy};
use crate::config::Config;
use crate::silence::{self, Backend};

/// The database of a log.
pub(crate) struct Postgres {
    url: String,
    log_id: Uuid,
    known_users_bytes_max: usize,
    known_users_compared_one_in: u32,
}

impl Postgres {
    /// Connects nowhere yet.
    pub(crate) fn new(config: &Config, log_id: Uuid) -> Self {
        Postgres {
            url: config.database_url.clone(),
            log_id,
            known_users_bytes_max: config.known_users_bytes_max,
            known_users_compared_one_in: config.known_users_compared_one_in,
        }
    }
}

#[async_trait]
impl Store for Postgres {
    async fn writer(&self) -> Result<Box<dyn Writer>, sqlx::Error> {
        let (mut connection, backend) = silence::connect(&self.url, "writer").await?;
        backend.answers(copy::make_table(&mut connection)).await?;
        let memory = Memory::new(self.known_users_bytes_max, self.known_users_compared_one_in);
        let cache = WorkerCache { memory, ..WorkerCache::default() };
        Ok(Box::new(PostgresWriter { connection, backend, log_id: self.log_id, cache }))
    }

    /// A heartbeat never waits long: whoever holds a lease's row longer than this is not one of us.
    async fn leases(&self, owner: Uuid) -> Result<Box<dyn Leases>, sqlx::Error> {
        let (mut connection, backend) = silence::connect(&self.url, "leases").await?;
        backend.answers(sqlx::raw_sql("SET lock_timeout = '6s'").execute(&mut connection)).await?;
        Ok(Box::new(PostgresLeases { connection, backend, log_id: self.log_id, owner }))
    }
}

struct PostgresWriter {
    connection: PgConnection,
    backend: Backend,
    log_id: Uuid,
    cache: WorkerCache,
}

#[async_trait]
impl Writer for PostgresWriter {
    async fn register(&mut self, partition: u32, epoch: i64) -> Result<bool, sqlx::Error> {
        let register = sqlx::query(
            "UPDATE leases SET writer_pid = a.pid, writer_start = a.backend_start
             FROM pg_stat_activity a WHERE a.pid = pg_backend_pid() AND log_id = $1 AND log_partition = $2 AND epoch = $3",
        )
        .bind(self.log_id)
        .bind(partition as i32)
        .bind(epoch)
        .execute(&mut self.connection);
        let registered = self.backend.answers(register).await?;
        Ok(registered.rows_affected() == 1)
    }

    async fn checkpoint(&mut self, partition: u32) -> Result<Checkpoint, sqlx::Error> {
        self.backend.answers(checkpoint::read(&mut self.connection, self.log_id, partition)).await
    }

    async fn tally(&mut self, partition: u32, next: Offset, in_row_max: u32) -> Result<Tally, sqlx::Error> {
        self.backend.answers(Tally::load(&mut self.connection, self.log_id, partition, next, in_row_max)).await
    }

    async fn commit(&mut self, batch: &Batch, tallies: &Tallies) -> Result<Stored, CommitError> {
        let committed = commit::commit(&mut self.connection, &mut self.cache, self.log_id, batch, tallies);
        self.backend.answers(committed).await
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.backend.answers(self.connection.ping()).await
    }

    fn remember(&mut self, partitions: BTreeSet<u32>, bytes_max: usize) {
        self.cache.memory.hold(partitions.into_iter(), bytes_max);
    }

    fn remembered(&mut self) -> (Counts, usize) {
        (self.cache.memory.take_counts(), self.cache.memory.bytes())
    }
}

struct PostgresLeases {
    connection: PgConnection,
    backend: Backend,
    log_id: Uuid,
    owner: Uuid,
}

#[async_trait]
impl Leases for PostgresLeases {
    async fn unsupported_schema(&mut self) -> Result<Option<UnsupportedSchema>, sqlx::Error> {
        let version = self.backend.answers(schema::version(&mut self.connection)).await?;
        Ok(SCHEMA.check(version).err())
    }

    async fn heartbeat(&mut self) -> Result<(), sqlx::Error> {
        let leases = sqlx::query("UPDATE leases SET counter = counter + 1 WHERE log_id = $1 AND owner = $2")
            .bind(self.log_id)
            .bind(self.owner)
            .execute(&mut self.connection);
        self.backend.answers(leases).await?;
        let own = sqlx::query(
            "INSERT INTO aggregators AS a (log_id, owner) VALUES ($1, $2)
             ON CONFLICT (log_id, owner) DO UPDATE SET counter = a.counter + 1",
        )
        .bind(self.log_id)
        .bind(self.owner)
        .execute(&mut self.connection);
        self.backend.answers(own).await?;
        Ok(())
    }

    async fn peers(&mut self) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
        let peers = sqlx::query_as("SELECT owner, counter FROM aggregators WHERE log_id = $1 AND owner <> $2")
            .bind(self.log_id)
            .bind(self.owner)
            .fetch_all(&mut self.connection);
        self.backend.answers(peers).await
    }

    async fn remove(&mut self, owners: &[Uuid]) -> Result<(), sqlx::Error> {
        let remove = "DELETE FROM aggregators WHERE log_id = $1 AND owner = ANY ($2)";
        self.backend.answers(sqlx::query(remove).bind(self.log_id).bind(owners).execute(&mut self.connection)).await?;
        Ok(())
    }

    async fn leases(&mut self) -> Result<Vec<Lease>, sqlx::Error> {
        let leases = "SELECT log_partition, owner, epoch, counter FROM leases WHERE log_id = $1 ORDER BY log_partition";
        let rows = self.backend.answers(sqlx::query(leases).bind(self.log_id).fetch_all(&mut self.connection)).await?;
        let lease = |row: &sqlx::postgres::PgRow| {
            let partition = row.try_get::<i32, _>(0)? as u32;
            Ok(Lease { partition, owner: row.try_get(1)?, epoch: row.try_get(2)?, counter: row.try_get(3)? })
        };
        rows.iter().map(lease).collect()
    }

    async fn take(&mut self, seen: Lease) -> Result<Option<i64>, sqlx::Error> {
        let Lease { partition, owner, epoch, counter } = seen;
        if owner.is_some() {
            // Nothing less frees the locks of a client that is frozen inside a transaction.
            let end = sqlx::query(
                "SELECT pg_terminate_backend(a.pid, 5000) FROM leases l
                 JOIN pg_stat_activity a ON a.pid = l.writer_pid AND a.backend_start = l.writer_start
                 WHERE l.log_id = $1 AND l.log_partition = $2 AND l.epoch = $3 AND l.counter = $4",
            )
            .bind(self.log_id)
            .bind(partition as i32)
            .bind(epoch)
            .bind(counter)
            .execute(&mut self.connection);
            self.backend.answers(end).await?;
        }
        let take = sqlx::query(
            "WITH taken AS (
                 UPDATE leases SET owner = $3, epoch = epoch + 1, counter = counter + 1, writer_pid = NULL, writer_start = NULL
                 WHERE log_id = $1 AND log_partition = $2 AND owner IS NOT DISTINCT FROM $4 AND epoch = $5 AND counter = $6
                 RETURNING log_id, log_partition, epoch
             )
             UPDATE checkpoints c SET epoch = t.epoch FROM taken t
             WHERE c.log_id = t.log_id AND c.log_partition = t.log_partition RETURNING c.epoch",
        )
        .bind(self.log_id)
        .bind(partition as i32)
        .bind(self.owner)
        .bind(owner)
        .bind(epoch)
        .bind(counter)
        .fetch_optional(&mut self.connection);
        let taken = self.backend.answers(take).await?;
        taken.map(|row| row.try_get(0)).transpose()
    }

    async fn release(&mut self, partitions: &BTreeSet<u32>) -> Result<(), sqlx::Error> {
        let partitions: Vec<i32> = partitions.iter().map(|partition| *partition as i32).collect();
        let statement = "UPDATE leases SET owner = NULL, writer_pid = NULL, writer_start = NULL
                    WHERE log_id = $1 AND owner = $2 AND log_partition = ANY ($3)";
        let release = sqlx::query(statement).bind(self.log_id).bind(self.owner).bind(partitions).execute(&mut self.connection);
        self.backend.answers(release).await?;
        Ok(())
    }
}
