//! What is left after a broker was killed or frozen.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use super::support::Broker;
use super::*;
use crate::conformance::{read_to_end, record};

/// What clients did, record by record: what was acknowledged lies at its position, once.
struct Ledger {
    acknowledged: Mutex<HashMap<(u32, Offset), Vec<u8>>>,
    /// Appends of which something may be there, and of which nothing is.
    unknown: AtomicU64,
    unavailable: Mutex<Vec<Vec<u8>>>,
}

/// Appends from several tasks until the flag is set.
async fn append_until(log: &KafkaLog, ledger: &Arc<Ledger>, is_over: &Arc<AtomicBool>) {
    let tasks: Vec<_> = (0..8u64)
        .map(|task| {
            let (log, ledger, is_over) = (log.clone(), Arc::clone(ledger), Arc::clone(is_over));
            tokio::spawn(async move {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let batch: Vec<Record> = (0..5).map(|n| record(&format!("user-{task}-{}", n % 3), number + n, 200)).collect();
                    number += 5;
                    match log.append(batch.clone()).await {
                        Ok(positions) => {
                            let mut acknowledged = lock(&ledger.acknowledged);
                            for (position, record) in positions.into_iter().zip(batch) {
                                let before = acknowledged.insert(
                                    (position.partition, position.offset.expect("a log over Kafka knows it")),
                                    record.bytes().to_vec(),
                                );
                                assert!(before.is_none(), "two records at {position:?}");
                            }
                        }
                        Err(AppendError::Unknown(_)) => drop(ledger.unknown.fetch_add(1, Ordering::Relaxed)),
                        Err(AppendError::Unavailable(_)) => {
                            lock(&ledger.unavailable).extend(batch.iter().map(|record| record.bytes().to_vec()));
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        Err(AppendError::Stopped(reason)) => panic!("stopped: {reason}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// Checks that what was acknowledged is there, where it was said to be, and that nothing is there that was said not to be.
async fn compare(log: &KafkaLog, ledger: &Ledger) {
    let mut acknowledged = std::mem::take(&mut *lock(&ledger.acknowledged));
    let refused: std::collections::HashSet<Vec<u8>> = std::mem::take(&mut *lock(&ledger.unavailable)).into_iter().collect();
    let count = acknowledged.len();
    assert!(count > 50, "only {count} records were acknowledged");
    for partition in 0..log.identity().partitions {
        for (offset, bytes) in read_to_end(log, partition, 0).await {
            if let Some(expected) = acknowledged.remove(&(partition, offset)) {
                assert_eq!(bytes, expected, "log partition {partition}, offset {offset}");
            } else {
                assert!(!refused.contains(&bytes), "log partition {partition}, offset {offset}: this was said not to be there");
            }
        }
    }
    assert!(acknowledged.is_empty(), "{} of {count} acknowledged records are lost", acknowledged.len());
}

fn ledger() -> Arc<Ledger> {
    Arc::new(Ledger { acknowledged: Mutex::default(), unknown: AtomicU64::new(0), unavailable: Mutex::default() })
}

async fn works_again(log: &KafkaLog) {
    let begin = Instant::now();
    while log.append(vec![record("probe", 0, 10)]).await.is_err() {
        assert!(begin.elapsed() < Duration::from_secs(120), "appends do not succeed again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_broker_is_killed() {
    let Some(broker) = Broker::start() else { return };
    let config = Config { append_wait_max: Duration::from_secs(4), ..new_topic(&broker.address) };
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    works_again(&log).await;
    let (ledger, is_over) = (ledger(), Arc::new(AtomicBool::new(false)));
    let appends = tokio::spawn({
        let (log, ledger, is_over) = (log.clone(), Arc::clone(&ledger), Arc::clone(&is_over));
        async move { append_until(&log, &ledger, &is_over).await }
    });
    let broker = Arc::new(broker);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        broker.kill();
        let again = Arc::clone(&broker);
        tokio::task::spawn_blocking(move || again.start_again()).await.expect("starts");
        works_again(&log).await;
    }
    is_over.store(true, Ordering::Relaxed);
    appends.await.expect("no panic");
    let stats = log.stats();
    assert!(stats.unknown + stats.unavailable > 0, "the kills were not felt: {stats:?}");
    assert_eq!(log.check().await, Compared::Same, "a broker that came back is no other log");
    log.ready().expect("is ready");
    compare(&log, &ledger).await;
    // The same from a process that was not there.
    let opened = KafkaLog::open(config).await.expect("opens");
    assert_eq!(opened.identity(), log.identity());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_delays_answers_and_loses_nothing() {
    let Some(broker) = Broker::start() else { return };
    let config = Config { append_wait_max: Duration::from_secs(2), ..new_topic(&broker.address) };
    let log = KafkaLog::open(config).await.expect("opens");
    works_again(&log).await;
    let (ledger, is_over) = (ledger(), Arc::new(AtomicBool::new(false)));
    let appends = tokio::spawn({
        let (log, ledger, is_over) = (log.clone(), Arc::clone(&ledger), Arc::clone(&is_over));
        async move { append_until(&log, &ledger, &is_over).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    broker.freeze();
    let begin = Instant::now();
    let answer = log.append(vec![record("frozen", 0, 10)]).await;
    assert!(matches!(answer, Err(AppendError::Unknown(_) | AppendError::Unavailable(_))), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    let compared = log.check().await;
    assert!(matches!(compared, Compared::Unreachable(_)), "{compared:?}");
    broker.thaw();
    works_again(&log).await;
    is_over.store(true, Ordering::Relaxed);
    appends.await.expect("no panic");
    assert!(ledger.unknown.load(Ordering::Relaxed) > 0, "the freeze was not felt: {:?}", log.stats());
    compare(&log, &ledger).await;
}

/// Reads a log partition as an aggregator does, and says how far it came: asks for the ends until they are known, then reads and releases.
async fn follow(log: KafkaLog, partition: u32, next: Arc<AtomicU64>) {
    while log.offsets(partition).await.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let bound = ReadBound { records_max: 100, bytes_max: 1 << 20, wait_max: Duration::from_secs(1) };
    loop {
        let from = next.load(Ordering::Relaxed);
        match log.read(partition, from, bound).await {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                let to = from + records.len() as u64;
                next.store(to, Ordering::Relaxed);
                log.release(partition, to).await;
            }
            Err(ReadError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Readers that had begun, and readers that begin while it is frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_come_on_after_the_broker_was_frozen() {
    const READERS: usize = 8;
    let Some(broker) = Broker::start() else { return };
    let config = Config { append_wait_max: Duration::from_secs(4), ..new_topic(&broker.address) };
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    works_again(&log).await;
    let batch = |number: u64| (0..64).map(|n| record(&format!("user-{n}"), number, 200)).collect::<Vec<Record>>();
    log.append(batch(0)).await.expect("appends");
    let mut readers = Vec::new();
    let mut begin = |log: &KafkaLog| {
        for partition in 0..log.identity().partitions {
            let next = Arc::new(AtomicU64::new(0));
            readers.push((partition as usize, Arc::clone(&next)));
            tokio::spawn(follow(log.clone(), partition, next));
        }
    };
    let mut late = Vec::new();
    for reader in 0..READERS {
        let log = KafkaLog::open(config.clone()).await.expect("opens");
        if reader % 2 == 0 { begin(&log) } else { late.push(log) }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    broker.freeze();
    late.iter().for_each(begin);
    tokio::time::sleep(Duration::from_secs(20)).await;
    broker.thaw();
    works_again(&log).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while log.append(batch(1)).await.is_err() {
        assert!(Instant::now() < deadline, "appends do not succeed again");
    }
    let mut ends = Vec::new();
    for partition in 0..log.identity().partitions {
        ends.push(log.offsets(partition).await.expect("the ends").end);
    }
    let is_behind = |(partition, next): &&(usize, Arc<AtomicU64>)| next.load(Ordering::Relaxed) < ends[*partition];
    while readers.iter().any(|reader| is_behind(&reader)) {
        let behind: Vec<_> = readers.iter().filter(is_behind).collect();
        assert!(Instant::now() < deadline, "log partitions are not read: {behind:?} of {ends:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
