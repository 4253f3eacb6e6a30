//! What a commit costs.

use std::time::{Duration, Instant};

use super::*;
use crate::commit::memory::{Counts, Memory};

const BATCH: u32 = 20_000;
const USERS: u64 = 100_000;

/// Seconds of CPU that a process has used.
fn cpu_seconds(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    // utime and stime, in hundredths.
    (fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")) / 100.0
}

/// Stores 20 batches of 20,000 events, one tenth of them conversions, of 100,000 users, and prints what a million of them would cost this
/// process and its backend, apart from decoding.
async fn cost(known_users_bytes: usize) -> Counts {
    let database = TestDatabase::create().await;
    let mut case = Case::new(&database).await;
    case.store(vec![exposure("a", &user(0), &at(1), "checkout", "control"), exposure("b", &user(1), &at(1), "checkout", "b")])
        .await;
    case.cache.memory = Memory::new(known_users_bytes / 8, 1_000);
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut case.connection).await.expect("answers");
    let mut random = Shuffle(7);
    let (mut own, mut postgres, mut time) = (0.0, 0.0, Duration::ZERO);
    for batch in 0..20u32 {
        let draft = |n: u32| {
            let who = random.next() % USERS;
            let (id, name, when) = (format!("{batch}-{n}"), format!("user-{who}"), at((random.next() % 30) as u8));
            match n % 10 {
                0 => conversion(&id, &name, &when, "purchase", "5"),
                _ => exposure(&id, &name, &when, "checkout", if who.is_multiple_of(2) { "control" } else { "b" }),
            }
        };
        let drafts: Vec<Draft> = (0..BATCH).map(draft).collect();
        let records: Vec<Record> = drafts.into_iter().map(|draft| case.record(draft)).collect();
        let batch = case.batch(records);
        let before = (cpu_seconds("self"), cpu_seconds(&backend.to_string()), Instant::now());
        case.commit(&batch).await.expect("commits");
        own += cpu_seconds("self") - before.0;
        postgres += cpu_seconds(&backend.to_string()) - before.1;
        time += before.2.elapsed();
    }
    let counts = case.cache.memory.take_counts();
    let scale = 1e6 / f64::from(20 * BATCH);
    eprintln!(
        "{known_users_bytes} bytes: own {:.1}, backend {:.1} CPU s and {:.1} s per million; {counts:?}, {} bytes used",
        own * scale,
        postgres * scale,
        time.as_secs_f64() * scale,
        case.cache.memory.bytes()
    );
    let users = "SELECT (SELECT count(*) FROM user_experiment_participation) = (SELECT count(DISTINCT user_id) FROM impressions)";
    assert_eq!(case.rows(users).await, ["(t)"]);
    counts
}

/// `cargo test --profile demo --package aggregator --lib -- --ignored --nocapture cost`
#[tokio::test]
#[ignore = "a measurement, of some minutes on an idle machine"]
async fn what_remembering_saves() {
    assert_eq!(cost(0).await.known, 0);
    assert!(cost(128 * 1024 * 1024).await.read < 110_000, "once each, about");
}
