//! Measures how many records a log takes and gives: `append_rate FOLDER [TASKS] [RECORDS_PER_BATCH] [SECONDS]` the embedded log,
//! `append_rate kafka=BROKERS ...` the one over Kafka, in a topic of its own. The folder should be new; its file system is what is
//! measured. Records have about 500 bytes.
#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use eventlog::embedded::{EmbeddedLog, Options};
use eventlog::{Append, LogIdentity, Read, ReadBound};
use events::{Draft, JsonObject, Record, testing};

/// A record of about 500 bytes.
fn record(user: u64) -> Record {
    let user = format!("user-{user}");
    let draft = testing::conversion("c-1", &user, "2026-03-01T11:59:59Z", "purchase", "1");
    let properties = format!(r#"{{"padding":"{}"}}"#, "x".repeat(30));
    let properties = Some(JsonObject::parse(properties, "properties").expect("within the limits"));
    Record::encode(&testing::admitted(Draft { properties, ..draft }))
}

/// CPU time of this process and its threads, in seconds, user and system.
fn cpu() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    let seconds = |place: usize| fields[place].parse::<f64>().expect("a number") / 100.0;
    (seconds(11), seconds(12))
}

/// How the load looks.
#[derive(Clone, Copy)]
struct Load {
    tasks: u64,
    batch: u64,
    seconds: u64,
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize, default: u64| arguments.get(place).map_or(default, |text| text.parse().expect("a whole number"));
    let place = arguments.first().expect("usage: append_rate FOLDER|kafka=BROKERS [TASKS] [RECORDS_PER_BATCH] [SECONDS]");
    let load = Load { tasks: number(1, 1024), batch: number(2, 1), seconds: number(3, 5) };
    match place.strip_prefix("kafka=") {
        #[cfg(feature = "kafka")]
        Some(brokers) => {
            let config = eventlog::kafka::Config {
                topic: format!("rate-{}", uuid::Uuid::new_v4()),
                ..eventlog::kafka::Config::new(brokers)
            };
            let log = eventlog::kafka::KafkaLog::open(config).await.expect("opens");
            measure(&log, log.identity(), load).await;
        }
        #[cfg(not(feature = "kafka"))]
        Some(_) => panic!("built without the feature kafka"),
        None => embedded(place, load).await,
    }
}

async fn embedded(folder: &str, load: Load) {
    let begin = Instant::now();
    let log = EmbeddedLog::open(Path::new(folder), Options::default()).expect("opens");
    println!("opened {} bytes in {:?}", log.stats().bytes, begin.elapsed());
    measure(&log, log.identity(), load).await;
    let stats = log.stats();
    println!(
        "{:.0} records per group, {:.1} syncs per group",
        stats.records as f64 / stats.groups as f64,
        stats.syncs as f64 / stats.groups as f64
    );
    drop(log);
    let begin = Instant::now();
    drop(EmbeddedLog::open(Path::new(folder), Options::default()).expect("opens"));
    println!("opened {} bytes again in {:?}", stats.bytes, begin.elapsed());
}

async fn measure<L: Append + Read + Clone>(log: &L, identity: LogIdentity, load: Load) {
    let Load { tasks, batch, seconds } = load;
    let records: Arc<[Record]> = (0..10_000).map(record).collect();
    println!("{} bytes per record", records.iter().map(|record| record.bytes().len()).sum::<usize>() / records.len());
    let appended = Arc::new(AtomicU64::new(0));
    let (begin, cpu_before) = (Instant::now(), cpu());
    let end = begin + Duration::from_secs(seconds);
    let running: Vec<_> = (0..tasks)
        .map(|task| {
            let (log, records, appended) = (log.clone(), Arc::clone(&records), Arc::clone(&appended));
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                let mut at = task as usize * 97;
                while Instant::now() < end {
                    let batch: Vec<Record> = (0..batch as usize).map(|n| records[(at + n) % records.len()].clone()).collect();
                    at += batch.len();
                    let (count, asked) = (batch.len() as u64, Instant::now());
                    log.append(batch).await.expect("appends");
                    latencies.push(asked.elapsed());
                    appended.fetch_add(count, Ordering::Relaxed);
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in running {
        latencies.extend(task.await.expect("no panic"));
    }
    let (elapsed, cpu_after) = (begin.elapsed().as_secs_f64(), cpu());
    latencies.sort_unstable();
    let count = appended.load(Ordering::Relaxed) as f64;
    println!(
        "{tasks} tasks, {batch} records per append: {:.0} records/s, {:.0} appends/s; CPU seconds per million records: {:.2} user, {:.2} system",
        count / elapsed,
        latencies.len() as f64 / elapsed,
        (cpu_after.0 - cpu_before.0) / count * 1e6,
        (cpu_after.1 - cpu_before.1) / count * 1e6,
    );
    println!("latency p50 {:?}, p99 {:?}", latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);

    let (begin, cpu_before) = (Instant::now(), cpu());
    let (mut read, mut bytes) = (0, 0);
    for partition in 0..identity.partitions {
        let offsets = log.offsets(partition).await.expect("offsets");
        let mut next = offsets.start;
        while next < offsets.end {
            let bound = ReadBound { records_max: 10_000, bytes_max: 4 * 1024 * 1024, wait_max: Duration::ZERO };
            let found = log.read(partition, next, bound).await.expect("reads");
            next += found.len() as u64;
            read += found.len();
            bytes += found.iter().map(|record| record.bytes.len()).sum::<usize>();
        }
    }
    let (elapsed, cpu_after) = (begin.elapsed().as_secs_f64(), cpu());
    let spent = cpu_after.0 + cpu_after.1 - cpu_before.0 - cpu_before.1;
    println!(
        "read {read} records, {bytes} bytes: {:.0} records/s; CPU seconds per million: {:.2}",
        read as f64 / elapsed,
        spent / read as f64 * 1e6
    );
}
