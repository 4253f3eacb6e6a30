//! The way between an aggregator and the model of Postgres: late, cut, silent.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use catalogue::schema::UnsupportedSchema;
use eventlog::Offset;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::model::{Model, Pid, Refused};
use super::run::{Run, Seen, note};
use crate::batch::{Batch, Decoded};
use crate::commit::checkpoint::Checkpoint;
use crate::commit::limit::{self, Tallies, Tally};
use crate::commit::memory::Counts;
use crate::commit::{CommitError, Stored};
use crate::store::{Lease, Leases, Store, Writer};

/// What happens on the way. Shares are of 1.
#[derive(Clone, Debug)]
pub(super) struct Weather {
    /// Milliseconds of one direction.
    pub delay: Range<u64>,
    /// Of the statements, how many are lost on their way there, and how many replies on their way back.
    pub cut: f64,
    /// The same of COMMIT.
    pub cut_commit: f64,
    /// Of what is cut, how much the server does not notice.
    pub silent: f64,
    /// Of transactions, how many have a client that thinks for long before it commits.
    pub slow_client: f64,
}

impl Weather {
    pub(super) const FAIR: Weather = Weather { delay: 1..3, cut: 0.0, cut_commit: 0.0, silent: 0.0, slow_client: 0.0 };
}

/// The database as one process reaches it.
pub(super) struct Wire {
    model: Model,
    weather: Arc<Mutex<Weather>>,
    /// Backends that were begun from here.
    pids: Arc<Mutex<Vec<Pid>>>,
}

impl Wire {
    pub(super) fn new(model: &Model, weather: &Arc<Mutex<Weather>>) -> Self {
        Wire { model: model.clone(), weather: Arc::clone(weather), pids: Arc::default() }
    }

    /// Returns whether one of its connections is in a transaction.
    pub(super) fn is_in_transaction(&self) -> bool {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.iter().any(|pid| self.model.is_in_transaction(*pid))
    }

    async fn connect(&self) -> Result<Connection, sqlx::Error> {
        let weather = self.weather.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.model.run.wait(weather.delay).await;
        let pid = self.model.connect().map_err(error)?;
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
        let (model, weather) = (self.model.clone(), Arc::clone(&self.weather));
        Ok(Connection { model, weather, pid, arrived_at: Instant::now(), is_silent: false })
    }
}

/// Any failure is one of the circumstances, as [`crate::database::fault`] tells them apart.
fn error(refused: Refused) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ConnectionReset, format!("{refused:?}")))
}

struct Connection {
    model: Model,
    weather: Arc<Mutex<Weather>>,
    pid: Pid,
    /// When what was sent last arrives at the server.
    arrived_at: Instant,
    /// The server will not notice that the connection is gone.
    is_silent: bool,
}

impl Connection {
    fn run(&self) -> &Run {
        &self.model.run
    }

    fn weather(&self) -> Weather {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has the server run a statement, and waits for its reply.
    async fn ask<T: Send + 'static, S>(&mut self, statement: impl FnOnce(Model, Pid) -> S) -> Result<T, sqlx::Error>
    where
        S: Future<Output = Result<T, Refused>> + Send + 'static,
    {
        let cut = self.weather().cut;
        self.ask_over(cut, None, statement).await
    }

    /// The same where the way is cut so often, before and after, and that is seen.
    async fn ask_over<T: Send + 'static, S>(
        &mut self,
        cut: f64,
        seen: Option<[Seen; 2]>,
        statement: impl FnOnce(Model, Pid) -> S,
    ) -> Result<T, sqlx::Error>
    where
        S: Future<Output = Result<T, Refused>> + Send + 'static,
    {
        let weather = self.weather();
        let (there, back) = (self.run().millis(weather.delay.clone()), self.run().millis(weather.delay));
        let (is_lost, is_reply_lost) = (self.run().chance(cut / 2.0), self.run().chance(cut / 2.0));
        self.is_silent |= (is_lost || is_reply_lost) && self.run().chance(weather.silent);
        if is_lost {
            seen.into_iter().for_each(|[before, _]| self.run().saw(before));
            sleep(there).await;
            return Err(error(Refused::Ended));
        }
        self.arrived_at = Instant::now() + there;
        let (tell, told) = oneshot::channel();
        let (model, pid, arrived_at) = (self.model.clone(), self.pid, self.arrived_at);
        let statement = statement(model.clone(), pid);
        tokio::spawn(async move {
            sleep_until(arrived_at).await;
            // Nobody may be there any more who wants to know.
            let _ = tell.send(model.execute(pid, statement).await);
        });
        let reply = told.await.unwrap_or(Err(Refused::Ended));
        sleep(back).await;
        if is_reply_lost {
            seen.into_iter().for_each(|[_, after]| self.run().saw(after));
            return Err(error(Refused::Ended));
        }
        reply.map_err(error)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let (model, pid, arrived_at) = (self.model.clone(), self.pid, self.arrived_at);
        if self.is_silent || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        tokio::spawn(async move {
            sleep_until(arrived_at + Duration::from_millis(1)).await;
            model.close(pid);
        });
    }
}

#[async_trait]
impl Store for Wire {
    async fn writer(&self) -> Result<Box<dyn Writer>, sqlx::Error> {
        Ok(Box::new(WireWriter(self.connect().await?)))
    }

    async fn leases(&self, owner: Uuid) -> Result<Box<dyn Leases>, sqlx::Error> {
        Ok(Box::new(WireLeases { connection: self.connect().await?, owner }))
    }
}

struct WireWriter(Connection);

#[async_trait]
impl Writer for WireWriter {
    async fn register(&mut self, partition: u32, epoch: i64) -> Result<bool, sqlx::Error> {
        self.0.ask(move |model, pid| async move { Ok(model.register(pid, partition, epoch)) }).await
    }

    async fn checkpoint(&mut self, partition: u32) -> Result<Checkpoint, sqlx::Error> {
        self.0.ask(move |model, pid| async move { model.checkpoint(pid, partition).await }).await
    }

    async fn tally(&mut self, _: u32, _: Offset, in_row_max: u32) -> Result<Tally, sqlx::Error> {
        self.0.ask(move |_, _| async move { Ok(Tally::new(in_row_max)) }).await
    }

    async fn commit(&mut self, batch: &Batch, tallies: &Tallies) -> Result<Stored, CommitError> {
        let after = limit::count(tallies, batch, &batch.undecodable).map_err(CommitError::TooManyDeadLetters)?;
        let connection = &mut self.0;
        let batch = Arc::new(copy(batch));
        let moving = Arc::clone(&batch);
        if let Some(partition) = connection.ask(move |model, pid| async move { model.advance(pid, &moving).await }).await? {
            connection.run().saw(Seen::Fenced);
            note!(connection.run(), "postgres: {} is not the owner of log partition {partition}", connection.pid);
            return Err(CommitError::NotOwner { partition });
        }
        if connection.run().chance(connection.weather().slow_client) {
            connection.run().wait(100..20_000).await;
        }
        connection.ask(|_, _| async { Ok(()) }).await?;
        let (cut, seen) = (connection.weather().cut_commit, [Seen::CutBeforeCommit, Seen::CutAfterCommit]);
        let commit = move |model: Model, pid| async move { Ok(model.commit(pid, &batch, after)) };
        connection.ask_over(cut, Some(seen), commit).await.map_err(|error| {
            connection.run().saw(Seen::UnknownCommit);
            CommitError::Unknown(error)
        })
    }

    async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.0.ask(|_, _| async { Ok(()) }).await
    }

    fn remember(&mut self, _: BTreeSet<u32>, _: usize) {}

    fn remembered(&mut self) -> (Counts, usize) {
        (Counts::default(), 0)
    }
}

/// The server works on what was sent, whatever becomes of the client's own.
fn copy(batch: &Batch) -> Batch {
    let Batch { slices, events, rejected, undecodable, newer } = batch;
    let event =
        |of: &Decoded| Decoded { partition: of.partition, offset: of.offset, bytes: of.bytes.clone(), event: of.event.clone() };
    Batch {
        slices: slices.clone(),
        events: events.iter().map(event).collect(),
        rejected: rejected.clone(),
        undecodable: undecodable.clone(),
        newer: newer.clone(),
    }
}

struct WireLeases {
    connection: Connection,
    owner: Uuid,
}

#[async_trait]
impl Leases for WireLeases {
    async fn unsupported_schema(&mut self) -> Result<Option<UnsupportedSchema>, sqlx::Error> {
        self.connection.ask(|_, _| async { Ok(None) }).await
    }

    async fn heartbeat(&mut self) -> Result<(), sqlx::Error> {
        let owner = self.owner;
        self.connection
            .ask(move |model, _| async move {
                model.heartbeat(owner);
                Ok(())
            })
            .await
    }

    async fn peers(&mut self) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
        let owner = self.owner;
        self.connection.ask(move |model, _| async move { Ok(model.peers(owner)) }).await
    }

    async fn remove(&mut self, owners: &[Uuid]) -> Result<(), sqlx::Error> {
        let owners = owners.to_vec();
        self.connection
            .ask(move |model, _| async move {
                model.remove(&owners);
                Ok(())
            })
            .await
    }

    async fn leases(&mut self) -> Result<Vec<Lease>, sqlx::Error> {
        self.connection.ask(|model, _| async move { Ok(model.leases()) }).await
    }

    async fn take(&mut self, seen: Lease) -> Result<Option<i64>, sqlx::Error> {
        if seen.owner.is_some() {
            self.connection
                .ask(move |model, _| async move {
                    model.end_writer(seen);
                    Ok(())
                })
                .await?;
        }
        let owner = self.owner;
        self.connection.ask(move |model, pid| async move { model.take(pid, owner, seen).await }).await
    }

    async fn release(&mut self, partitions: &BTreeSet<u32>) -> Result<(), sqlx::Error> {
        let (owner, partitions) = (self.owner, partitions.clone());
        self.connection
            .ask(move |model, _| async move {
                model.release(owner, &partitions);
                Ok(())
            })
            .await
    }
}
