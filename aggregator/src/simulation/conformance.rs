//! What the model claims about Postgres, asked of Postgres: the same calls of both say the same, and leave the same behind.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use eventlog::{LogIdentity, Offset, StoredRecord};
use events::rules::{self, RequestContext};
use events::testing::{RECEIVED_AT, conversion, generated_id, request_context};
use events::{ClaimedTime, Micros, ProjectId, Record};
use migrations::testing::TestDatabase;
use sqlx::PgConnection;
use uuid::Uuid;

use super::judge::Judge;
use super::model::Model;
use super::run::Run;
use super::wire::{Weather, Wire};
use crate::batch::Batch;
use crate::commit::limit::{Tallies, Tally};
use crate::commit::{CommitError, Stored};
use crate::config::Config;
use crate::store::postgres::Postgres;
use crate::store::{Lease, Leases, Store, Writer};
use crate::{database, lease};

const PARTITIONS: u32 = 2;
const OWNERS: usize = 3;
const SEQUENCES: u64 = 20;
const CALLS: usize = 50;

/// One of the two, with the connections of all owners.
struct Side {
    store: Arc<dyn Store>,
    writers: [Option<Box<dyn Writer>>; OWNERS],
    leases: [Option<Box<dyn Leases>>; OWNERS],
}

#[derive(Debug)]
enum Call {
    Heartbeat,
    Peers,
    Remove(usize),
    Leases,
    Take(Lease),
    Release(BTreeSet<u32>),
    Register(u32, i64),
    Checkpoint(u32),
    Commit(Batch),
    Ping,
    /// The connection for batches is closed, and another one opened.
    Reconnect,
}

fn owner(number: usize) -> Uuid {
    Uuid::from_u128(number as u128 + 1)
}

/// Errors are equal: whatever they say, nothing was changed and the connection is closed.
fn told<T: Debug, E>(said: Result<T, E>) -> Option<String> {
    said.ok().map(|said| format!("{said:?}"))
}

fn told_of_commit(said: Result<Stored, CommitError>) -> Option<String> {
    match said {
        Ok(Stored { inserted, duplicates, dead, .. }) => {
            let mut dead: Vec<_> = dead.iter().map(|letter| (letter.partition, letter.offset, letter.code)).collect();
            dead.sort_unstable();
            Some(format!("{inserted:?}, {duplicates} duplicates, dead {dead:?}"))
        }
        Err(CommitError::NotOwner { partition }) => Some(format!("not the owner of {partition}")),
        Err(error) => {
            assert!(matches!(error, CommitError::Postgres(_) | CommitError::Unknown(_)), "{error}");
            None
        }
    }
}

impl Side {
    fn new(store: Arc<dyn Store>) -> Self {
        Side { store, writers: [const { None }; OWNERS], leases: [const { None }; OWNERS] }
    }

    /// Makes a call, and returns what was said; nothing after an error.
    async fn call(&mut self, of: usize, call: &Call) -> Option<String> {
        if self.leases[of].is_none() {
            self.leases[of] = Some(self.store.leases(owner(of)).await.expect("connects"));
        }
        if self.writers[of].is_none() || matches!(call, Call::Reconnect) {
            self.writers[of] = None;
            self.writers[of] = Some(self.store.writer().await.expect("connects"));
        }
        let (leases, writer) = (self.leases[of].as_mut().expect("open"), self.writers[of].as_mut().expect("open"));
        let said = match call {
            Call::Heartbeat => told(leases.heartbeat().await),
            Call::Peers => told(leases.peers().await.map(|mut peers| {
                peers.sort_unstable();
                peers
            })),
            Call::Remove(other) => told(leases.remove(&[owner(*other)]).await),
            Call::Leases => told(leases.leases().await),
            Call::Take(seen) => told(leases.take(*seen).await),
            Call::Release(partitions) => told(leases.release(partitions).await),
            Call::Register(partition, epoch) => told(writer.register(*partition, *epoch).await),
            Call::Checkpoint(partition) => told(writer.checkpoint(*partition).await),
            Call::Commit(batch) => {
                let tallies: Tallies = (0..PARTITIONS).map(|partition| (partition, Tally::new(100))).collect();
                told_of_commit(writer.commit(batch, &tallies).await)
            }
            Call::Ping => told(writer.ping().await),
            Call::Reconnect => Some(String::new()),
        };
        if said.is_none() {
            self.writers[of] = None;
        }
        said
    }
}

/// Records of few users and ids, so that many are there already, with this content or another.
fn record(run: &Run, project: Uuid, partition: u32) -> Record {
    let (id, value) = (format!("id-{}", run.number(0..8)), run.number(1..3).to_string());
    let (mut user, received_at) = (run.number(0..3), Micros(RECEIVED_AT.0 + run.number(0..1_000) as i64));
    let time = Micros(RECEIVED_AT.0 - run.number(0..2) as i64 * Micros::SECOND).to_string();
    let is_untimed = run.chance(0.3);
    loop {
        let mut draft = conversion(&id, &format!("user-{user}"), &time, "purchase", &value);
        if is_untimed {
            draft.timestamp = ClaimedTime::Missing;
        }
        let request = RequestContext { project: ProjectId(project), received_at, ..request_context() };
        let record = Record::encode(&rules::admit(draft, &request, generated_id).expect("valid"));
        if record.bucket().log_partition(PARTITIONS) == partition {
            return record;
        }
        user += 3;
    }
}

/// Draws a call: mostly one that changes something, often one that comes too late.
fn draw(run: &Run, model: &Model, project: Uuid) -> Call {
    let partition = run.number(0..u64::from(PARTITIONS)) as u32;
    let (seen, standing) = model.look(|tables| (tables.leases[partition as usize], tables.standings[partition as usize]));
    let late = i64::from(run.chance(0.3));
    match run.number(0..20) {
        0 => Call::Heartbeat,
        1 => Call::Peers,
        2 => Call::Remove(run.number(0..OWNERS as u64) as usize),
        3 => Call::Leases,
        4 | 5 => Call::Take(Lease { counter: seen.counter - late, ..seen }),
        6 => Call::Take(Lease { owner: run.one_of(&[None, seen.owner, Some(owner(0))]), epoch: seen.epoch - late, ..seen }),
        7 => Call::Release((0..=partition).collect()),
        8..=10 => Call::Register(partition, standing.epoch - late),
        11 => Call::Checkpoint(partition),
        12 => Call::Reconnect,
        _ => {
            let mut batch = Batch::default();
            for partition in (0..PARTITIONS).filter(|of| *of == partition || run.chance(0.3)) {
                let standing = model.look(|tables| tables.standings[partition as usize]);
                let from = standing.next.saturating_sub(run.one_of(&[0, 0, 0, 0, 1, 3]));
                let stored =
                    |(offset, _): (Offset, u64)| StoredRecord { offset, bytes: record(run, project, partition).bytes().clone() };
                let records = (from..).zip(0..run.number(1..6)).map(stored).collect();
                batch.add(partition, standing.epoch - i64::from(run.chance(0.15)), records);
            }
            Call::Commit(batch)
        }
    }
}

/// What is left in Postgres, in the words of [`left_in_model`].
async fn left_in_postgres(connection: &mut PgConnection, log_id: Uuid, project: Uuid) -> Vec<String> {
    let queries = [
        "SELECT format('row %s/%s', log_partition, log_offset) FROM conversions WHERE $1 = $1 AND project_id = $2 \
         ORDER BY log_partition, log_offset",
        "SELECT format('dead %s/%s', log_partition, log_offset) FROM dead_letters WHERE log_id = $1 AND $2 = $2 \
         ORDER BY log_partition, log_offset",
        "SELECT format('checkpoint %s: %s %s %s', log_partition, next_offset, epoch, coalesce(last_crc::text, '-')) FROM checkpoints \
         WHERE log_id = $1 AND $2 = $2 ORDER BY log_partition",
        "SELECT format('aggregator %s %s', owner, counter) FROM aggregators WHERE log_id = $1 AND $2 = $2 ORDER BY owner",
    ];
    let mut left = Vec::new();
    for query in queries {
        let rows: Vec<String> =
            sqlx::query_scalar(query).bind(log_id).bind(project).fetch_all(&mut *connection).await.expect("answers");
        left.extend(rows);
    }
    left
}

fn left_in_model(model: &Model) -> Vec<String> {
    model.look(|tables| {
        let places = |kind: &str, mut places: Vec<(u32, Offset)>| -> Vec<String> {
            places.sort_unstable();
            places.into_iter().map(|(partition, offset)| format!("{kind} {partition}/{offset}")).collect()
        };
        let mut left = places("row", tables.rows.iter().map(|row| (row.partition, row.offset)).collect());
        left.extend(places("dead", tables.dead.clone()));
        left.extend(tables.standings.iter().enumerate().map(|(partition, of)| {
            let crc = of.last_crc.map_or("-".to_owned(), |crc| crc.to_string());
            format!("checkpoint {partition}: {} {} {crc}", of.next, of.epoch)
        }));
        left.extend(tables.aggregators.iter().map(|(owner, counter)| format!("aggregator {owner} {counter}")));
        left
    })
}

#[tokio::test]
async fn the_model_says_what_postgres_says() {
    let database = TestDatabase::create().await;
    let mut connection = database::connect(&database.url, "test").await.expect("connects");
    let mut said_by_both = BTreeSet::new();
    for seed in 1..=SEQUENCES {
        let run = Run::new(seed);
        let (log_id, project) = (Uuid::from_u128(u128::from(seed) << 32), Uuid::from_u128(u128::from(seed)));
        sqlx::query("INSERT INTO projects (id, name, auto_register) VALUES ($1, $1::text, true)")
            .bind(project)
            .execute(&mut connection)
            .await
            .expect("a project");
        lease::register_log(&mut connection, LogIdentity { log_id, partitions: PARTITIONS }, true).await.expect("a log");
        let model = Model::new(&run, &Judge::new(&run, PARTITIONS), PARTITIONS);
        let weather = Arc::new(Mutex::new(Weather::FAIR));
        let mut modelled = Side::new(Arc::new(Wire::new(&model, &weather)));
        let mut real = Side::new(Arc::new(Postgres::new(&Config::new(([127, 0, 0, 1], 0).into(), database.url.clone()), log_id)));
        let mut before = Vec::new();
        for number in 0..CALLS + OWNERS {
            // At last each is asked whether its connection lives.
            let (of, call) = match number.checked_sub(CALLS) {
                None => (run.number(0..OWNERS as u64) as usize, draw(&run, &model, project)),
                Some(of) => (of, Call::Ping),
            };
            let (expected, found) = (real.call(of, &call).await, modelled.call(of, &call).await);
            let line = format!("{of}: {call:?}: {expected:?}");
            assert_eq!(found, expected, "sequence {seed}, after {before:#?}\nthe model differs: {line}");
            // Its kind, and what was said without numbers.
            let said = expected.map_or("an error".to_owned(), |said| said.split(|c: char| c.is_ascii_digit()).collect());
            said_by_both.insert(format!("{} {said}", format!("{call:?}").split(['(', ' ']).next().unwrap_or_default()));
            before.push(line);
        }
        assert_eq!(left_in_model(&model), left_in_postgres(&mut connection, log_id, project).await, "sequence {seed}");
    }
    // They were asked what matters: each of these was said at least once.
    for said in ["Register true", "Register false", "Register an error", "Take None", "Take Some()", "Commit an error"] {
        assert!(said_by_both.contains(said), "never {said}: {said_by_both:#?}");
    }
    for part in ["Commit not the owner", "id_conflict", "Commit {Conversion:"] {
        assert!(said_by_both.iter().any(|said| said.contains(part)), "never {part}: {said_by_both:#?}");
    }
}
