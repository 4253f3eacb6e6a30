//! What the collector's door accepts, Postgres accepts: thousands of odd requests, and every event and every rejection that comes of them
//! stored for real. `WEIR_FUZZ_EVENTS` makes it longer, as `make fuzz-postgres` does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator::{Aggregator, Config};
use eventlog::Append as _;
use eventlog::memory::MemoryLog;
use events::repair::Reason;
use events::wire::{self, Entry};
use events::{ProjectId, Record, UserId};
use ingest::fuzzing::{Door, Mutator, Target, check};
use migrations::testing::TestDatabase;
use tokio::runtime::Runtime;
use uuid::Uuid;

use crate::support::{Database, number};

/// Events of one project: fewer than bring as many new names as a project takes.
const PROJECT_EVENTS: usize = 2_000;
/// Events that are given to the log at once, and that may wait in it.
const CHUNK: usize = 2_000;
const WAITING_MAX: i64 = 40_000;
/// How often a long run says how far it is, in events.
const SHOWN_EVERY: usize = 50_000;
/// How long the aggregator may take for the next event.
const STALL_MAX: Duration = Duration::from_secs(120);
/// Where each accepted event is, but for those that name what is not registered.
const STORED: &str = "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions)
    + (SELECT count(*) FROM campaign_events) + (SELECT count(*) FROM engagement_events) + (SELECT count(*) FROM identity_events)";
const READ: &str = "SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints";

/// What odd requests left to be stored.
struct Survivors {
    door: Door,
    changes: Mutator,
    requests: u128,
    accepted: usize,
    refused: usize,
    repairs: BTreeMap<&'static str, usize>,
}

impl Survivors {
    fn new() -> Self {
        let repairs = Reason::ALL.iter().map(|reason| (reason.as_str(), 0)).collect();
        Survivors { door: Door::new(), changes: Mutator::new(2), requests: 0, accepted: 0, refused: 0, repairs }
    }

    /// Sends requests until so many records are left of them.
    fn next_chunk(&mut self) -> Vec<Record> {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK {
            let input = self.changes.next_input();
            let Some(passed) = check(&self.door, Target::Request, &input) else { continue };
            self.requests += 1;
            let project = ProjectId(Uuid::from_u128(1 + (self.accepted / PROJECT_EVENTS) as u128));
            self.accepted += passed.records.len();
            self.refused += passed.refused.len();
            for reason in passed.repairs {
                *self.repairs.entry(reason.as_str()).or_default() += 1;
            }
            chunk.extend(passed.records.iter().chain(&passed.refused).map(|record| moved(record, self.requests, project)));
        }
        chunk
    }
}

/// Gives an event to a user of its request alone, so that none is a repetition of another request's, and to a project; all else stays.
fn moved(record: &Record, request: u128, project: ProjectId) -> Record {
    match wire::read(record.bytes()).expect("a record of the collector") {
        Entry::Event(mut event) => {
            event.user_id = UserId(Uuid::new_v5(&event.user_id.0, &request.to_be_bytes()));
            event.project_id = project;
            Record::encode(&event)
        }
        Entry::Rejected(mut rejected) => {
            rejected.project_id = project;
            Record::of_rejected(&rejected)
        }
    }
}

/// Waits until all but so many records are read.
async fn wait(database: &mut Database, appended: i64, waiting_max: i64) {
    let (mut read, mut since) = (database.number(READ).await, Instant::now());
    while appended - read > waiting_max {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = database.number(READ).await;
        if now > read {
            (read, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < STALL_MAX, "the aggregator has read {read} of {appended} records, and none for two minutes");
    }
}

#[test]
fn what_the_door_accepts_postgres_accepts() {
    let wanted = number("WEIR_FUZZ_EVENTS", 6_000) as usize;
    let runtime = Runtime::new().expect("a runtime");
    let log = MemoryLog::new(8);
    let (mut database, aggregator) = runtime.block_on(async {
        let made = TestDatabase::create().await;
        let mut database = Database::connect(&made.url).await;
        let projects = 2 + wanted / PROJECT_EVENTS;
        database
            .execute(&format!(
                "INSERT INTO projects (id, name, auto_register)
                 SELECT lpad(to_hex(n), 32, '0')::uuid, 'p' || n, true FROM generate_series(1, {projects}) n"
            ))
            .await;
        let config = Config::new("127.0.0.1:0".parse().expect("an address"), made.url.clone());
        let read = Arc::new(log.clone());
        (database, Aggregator::start(config, read.clone(), read).await.expect("the aggregator starts"))
    });
    let mut survivors = Survivors::new();
    while survivors.accepted < wanted {
        let chunk = survivors.next_chunk();
        runtime.block_on(async {
            log.append(chunk).await.expect("memory takes all");
            let appended = (survivors.accepted + survivors.refused) as i64;
            wait(&mut database, appended, WAITING_MAX).await;
        });
        let before = survivors.accepted % SHOWN_EVERY;
        if wanted > SHOWN_EVERY && before < CHUNK {
            eprintln!("{} events accepted", survivors.accepted);
        }
    }
    let Survivors { requests, accepted, refused, repairs, .. } = survivors;
    runtime.block_on(async {
        wait(&mut database, (accepted + refused) as i64, 0).await;
        let letters: Vec<(String, i64, String)> =
            database.rows("SELECT code, count(*), max(reason) FROM dead_letters GROUP BY code ORDER BY code").await;
        eprintln!("{requests} requests: {accepted} accepted, {refused} rejected; repairs {repairs:?}; dead letters {letters:?}");
        // Only what names an experiment or a campaign that does not register itself may be missing.
        assert!(letters.iter().all(|(code, ..)| code.starts_with("unknown_")), "{letters:?}");
        let unknown: i64 = letters.iter().map(|(_, count, _)| count).sum();
        assert!(unknown <= accepted as i64 / 50, "{letters:?}");
        assert_eq!(database.number(STORED).await + unknown, accepted as i64, "stored, and unknown: accepted");
        assert_eq!(database.number("SELECT count(*) FROM rejected_events").await, refused as i64);
        aggregator.stop().await;
    });
    assert!(repairs.values().all(|count| *count > 0), "a kind of repair is missing: {repairs:?}");
}
