//! The suite that every log passes: one function for each promise of the contract.
//!
//! Each takes a function that makes an empty log, together with something to keep until the test is over, such as its
//! folder. [`conformance_tests!`](crate::conformance_tests) turns them all into tests.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use events::{Draft, JsonObject, Record, testing};

use crate::{Append, LogIdentity, Offset, Position, Read, ReadBound, ReadError};

/// Both sides of a log.
pub trait Log: Append + Read {}

impl<L: Append + Read> Log for L {}

/// Makes one test of each function of [`conformance`](crate::conformance). `$make` is an async function, without
/// arguments, that returns `(Arc<impl Append + Read>, impl Sized)`. With `if $present`, an expression, each test ends at once
/// where that is false.
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr) => {
        $crate::conformance_tests!($make, if true);
    };
    ($make:expr, if $present:expr) => {
        $crate::conformance_tests!($make, $present =>
            identity_is_one, offsets_are_dense_and_follow_the_batch, bytes_come_back_equal, reads_begin_anywhere, reads_keep_their_bounds,
            reads_wait_until_something_comes, an_append_wakes_every_waiting_read, reads_beyond_the_ends_are_errors, release_keeps_what_is_needed,
            concurrent_appends_all_come_back, an_empty_batch_is_nothing, large_records_come_back, dropped_appends_harm_nothing
        );
    };
    ($make:expr, $present:expr => $($name:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if !$present {
                    return;
                }
                $crate::conformance::$name($make).await;
            }
        )+
    };
}

/// A bound that takes all there is and does not wait.
pub const ALL: ReadBound = ReadBound { records_max: usize::MAX, bytes_max: usize::MAX, wait_max: Duration::ZERO };

/// Makes a record of `user`; `number` tells it from others, `bytes` is about how long it is at least.
/// # Panics
/// If `bytes` is above 2 million.
pub fn record(user: &str, number: u64, bytes: usize) -> Record {
    let pieces: Vec<String> = (0..bytes.div_ceil(8000)).map(|_| format!("\"{}\"", "x".repeat(bytes.min(8000)))).collect();
    let properties = format!(r#"{{"number":{number},"padding":[{}]}}"#, pieces.join(","));
    let draft = testing::conversion(&format!("{user}/{number}"), user, "2026-03-01T11:59:59Z", "purchase", "1");
    let properties = Some(JsonObject::parse(properties, "properties").expect("within the limits"));
    Record::encode(&testing::admitted(Draft { properties, ..draft }))
}

/// Makes a record that lies in a given log partition; see [`record`].
pub fn record_in(identity: LogIdentity, partition: u32, number: u64, bytes: usize) -> Record {
    let mut users = (0..).map(|user| format!("user-{user}"));
    let lies_there = |user: &String| record(user, 0, 0).bucket().log_partition(identity.partitions) == partition;
    record(&users.find(lies_there).expect("every bucket has a user"), number, bytes)
}

/// Reads from an offset to the present end.
/// # Panics
/// If it cannot be read.
pub async fn read_to_end(log: &impl Log, partition: u32, from: Offset) -> Vec<(Offset, Vec<u8>)> {
    let end = log.offsets(partition).await.expect("offsets").end;
    let mut found = Vec::new();
    let mut next = from;
    while next < end {
        let records = log.read(partition, next, ALL).await.expect("reads");
        assert!(!records.is_empty(), "log partition {partition} gives nothing at {next}, before its end {end}");
        for record in records {
            assert_eq!(record.offset, next, "log partition {partition}: a gap or a duplicate");
            next += 1;
            found.push((record.offset, record.bytes.to_vec()));
        }
    }
    found
}

async fn append_one(log: &impl Log, record: Record) -> (u32, Offset) {
    let positions = log.append(vec![record]).await.expect("appends");
    assert_eq!(positions.len(), 1);
    place(positions[0])
}

/// Log partition and offset of a record that is in the log.
fn place(position: Position) -> (u32, Offset) {
    (position.partition, position.offset.expect("a log that works gives offsets"))
}

fn identity_of(log: &impl Log) -> LogIdentity {
    Append::identity(log)
}

/// Both sides name the same log, and two logs are never the same.
pub async fn identity_is_one<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    assert_eq!(Append::identity(&*log), Read::identity(&*log));
    assert!(64u32.is_multiple_of(identity_of(&*log).partitions));
    let (other, _guard) = make().await;
    assert_ne!(identity_of(&*log).log_id, identity_of(&*other).log_id);
    log.ready().expect("an empty log takes records");
    let missing = identity_of(&*log).partitions;
    assert!(matches!(log.read(missing, 0, ALL).await, Err(ReadError::Unavailable(_))), "no such log partition");
}

/// Offsets start at 0, have no gaps, and rise in the order of the batch within each log partition.
pub async fn offsets_are_dense_and_follow_the_batch<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let partitions = identity_of(&*log).partitions;
    let mut expected: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    for batch in 0..5 {
        let records: Vec<Record> = (0..200).map(|n| record(&format!("user-{}", n % 37), batch * 1000 + n, 0)).collect();
        let positions = log.append(records.clone()).await.expect("appends");
        assert_eq!(positions.len(), records.len());
        for (record, position) in records.iter().zip(positions) {
            let (partition, offset) = place(position);
            assert_eq!(partition, record.bucket().log_partition(partitions), "the bucket decides");
            let before = expected.entry(partition).or_default();
            assert_eq!(offset, before.len() as u64, "dense, from 0, in the batch's order");
            before.push(record.bytes().to_vec());
        }
    }
    for partition in 0..partitions {
        let found: Vec<Vec<u8>> = read_to_end(&*log, partition, 0).await.into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(found, expected.remove(&partition).unwrap_or_default());
    }
}

/// Bytes are returned as they were appended.
pub async fn bytes_come_back_equal<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    for event in testing::one_of_each_kind() {
        let record = Record::encode(&event);
        let (partition, offset) = append_one(&*log, record.clone()).await;
        let found = log.read(partition, offset, ALL).await.expect("reads");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].offset, &found[0].bytes), (offset, record.bytes()));
    }
}

/// A read may begin at any offset, again and again.
pub async fn reads_begin_anywhere<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let records: Vec<Record> = (0..300).map(|number| record_in(identity, 0, number, 1000)).collect();
    for batch in records.chunks(7) {
        log.append(batch.to_vec()).await.expect("appends");
    }
    for from in [299, 0, 150, 151, 7, 298, 1] {
        let found = log.read(0, from, ReadBound { records_max: 3, ..ALL }).await.expect("reads");
        assert_eq!(found[0].offset, from);
        assert_eq!(&found[0].bytes, records[from as usize].bytes());
    }
    assert_eq!(read_to_end(&*log, 0, 120).await.len(), 180);
}

/// Neither bound is passed, except by a single record that is larger alone.
pub async fn reads_keep_their_bounds<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let records: Vec<Record> = (0..20).map(|number| record_in(identity, 0, number, 1000)).collect();
    log.append(records.clone()).await.expect("appends");
    let size = records[0].bytes().len();
    let check = async |records_max: usize, bytes_max: usize, expected: usize| {
        let bound = ReadBound { records_max, bytes_max, wait_max: Duration::ZERO };
        // A transport may answer with less than there is, never with more, and never with nothing.
        let found = log.read(0, 0, bound).await.expect("reads");
        assert!((1..=expected).contains(&found.len()), "{records_max} records, {bytes_max} bytes: {}", found.len());
    };
    check(1, usize::MAX, 1).await;
    check(7, usize::MAX, 7).await;
    check(usize::MAX, 1, 1).await;
    check(usize::MAX, size, 1).await;
    check(usize::MAX, 3 * size + 2 * size / 3, 3).await;
    check(2, 10 * size, 2).await;
    check(usize::MAX, usize::MAX, 20).await;
}

/// A read at the end returns nothing after its time, and the record as soon as there is one.
pub async fn reads_wait_until_something_comes<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let bound = |wait_max| ReadBound { wait_max, ..ALL };
    assert_eq!(log.read(0, 0, bound(Duration::ZERO)).await.expect("reads"), []);
    let begin = Instant::now();
    assert_eq!(log.read(0, 0, bound(Duration::from_millis(50))).await.expect("reads"), []);
    assert!(begin.elapsed() >= Duration::from_millis(50), "{:?}", begin.elapsed());

    // Below a second, since machines that run tests are busy; ten seconds would be the wait's own end.
    let waiting = tokio::spawn({
        let log = Arc::clone(&log);
        async move { log.read(0, 0, bound(Duration::from_secs(10))).await.map(|found| (found.len(), Instant::now())) }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    append_one(&*log, record_in(identity, 0, 1, 0)).await;
    let appended = Instant::now();
    let (found, woken) = waiting.await.expect("no panic").expect("reads");
    assert_eq!(found, 1);
    let late = woken.saturating_duration_since(appended);
    assert!(late < Duration::from_secs(1), "{late:?}");
}

/// All readers that wait at the end of a log partition wake; those of other log partitions get nothing of it.
pub async fn an_append_wakes_every_waiting_read<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let wait = |partition: u32, wait_max: Duration| {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.read(partition, 0, ReadBound { wait_max, ..ALL }).await.expect("reads").len() })
    };
    let here: Vec<_> = (0..10).map(|_| wait(0, Duration::from_secs(10))).collect();
    let elsewhere = wait(identity.partitions - 1, Duration::from_millis(300));
    tokio::time::sleep(Duration::from_millis(30)).await;
    append_one(&*log, record_in(identity, 0, 1, 0)).await;
    for waiting in here {
        assert_eq!(waiting.await.expect("no panic"), 1);
    }
    if identity.partitions > 1 {
        assert_eq!(elsewhere.await.expect("no panic"), 0);
    }
}

/// What lies above the end or below the start is named, and never answered with other records.
pub async fn reads_beyond_the_ends_are_errors<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let above = log.read(0, 1, ReadBound { wait_max: Duration::from_secs(5), ..ALL }).await.expect_err("refused");
    assert!(matches!(above, ReadError::AboveEnd { partition: 0, offset: 1, end: 0 }), "{above}");
    for number in 0..100 {
        append_one(&*log, record_in(identity, 0, number, 1000)).await;
    }
    let above = log.read(0, 101, ALL).await.expect_err("refused");
    assert!(matches!(above, ReadError::AboveEnd { partition: 0, offset: 101, end: 100 }), "{above}");
    assert_eq!(log.read(0, 100, ALL).await.expect("the end itself is no error"), []);

    log.release(0, 80).await;
    let start = log.offsets(0).await.expect("offsets").start;
    for offset in 0..start {
        let below = log.read(0, offset, ALL).await.expect_err("refused");
        let named =
            matches!(below, ReadError::BelowStart { partition: 0, offset: at, start: found } if at == offset && found == start);
        assert!(named, "{below}");
    }
}

/// The last record below the released offset stays, like all from it on; offsets go on; releasing is idempotent.
pub async fn release_keeps_what_is_needed<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let records: Vec<Record> = (0..100).map(|number| record_in(identity, 0, number, 1000)).collect();
    for record in &records {
        append_one(&*log, record.clone()).await;
    }
    let mut last_below = 0;
    for offset in [0, 1, 50, 30, 50, 77, 100, 1_000_000] {
        log.release(0, offset).await;
        last_below = last_below.max(offset.clamp(1, 100) - 1);
        let found = read_to_end(&*log, 0, last_below).await;
        assert_eq!(found.len() as u64, 100 - last_below);
        assert_eq!(found[0].1, records[last_below as usize].bytes().to_vec());
        let offsets = log.offsets(0).await.expect("offsets");
        assert!(offsets.start <= last_below && offsets.end == 100, "{offsets:?} after releasing {offset}");
    }
    log.release(identity.partitions, 1).await;
    assert_eq!(append_one(&*log, records[0].clone()).await, (0, 100));
}

/// Appends from many tasks get positions of their own, and each record lies at its position, once.
pub async fn concurrent_appends_all_come_back<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut done = Vec::new();
                for turn in 0..20 {
                    let count = 1 + (task + turn) % 3;
                    let batch: Vec<Record> =
                        (0..count).map(|n| record(&format!("user-{task}"), turn * 10 + n, (task * 13) as usize)).collect();
                    let positions = log.append(batch.clone()).await.expect("appends");
                    assert!(positions.is_sorted_by_key(|position| position.offset), "one user, one log partition, in order");
                    done.extend(positions.into_iter().map(place).zip(batch));
                }
                done
            })
        })
        .collect();
    let mut expected: HashMap<u32, HashMap<Offset, Vec<u8>>> = HashMap::new();
    for task in tasks {
        for ((partition, offset), record) in task.await.expect("no panic") {
            let before = expected.entry(partition).or_default().insert(offset, record.bytes().to_vec());
            assert!(before.is_none(), "two records at log partition {partition}, offset {offset}");
        }
    }
    for partition in 0..identity_of(&*log).partitions {
        let found: HashMap<Offset, Vec<u8>> = read_to_end(&*log, partition, 0).await.into_iter().collect();
        assert_eq!(found, expected.remove(&partition).unwrap_or_default());
    }
}

/// A batch without records succeeds and changes nothing.
pub async fn an_empty_batch_is_nothing<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    assert_eq!(log.append(Vec::new()).await.expect("appends"), []);
    for partition in 0..identity_of(&*log).partitions {
        assert_eq!(log.offsets(partition).await.expect("offsets"), 0..0);
    }
}

/// Records of half a megabyte, among small ones, come back whole.
pub async fn large_records_come_back<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let identity = identity_of(&*log);
    let sizes = [10, 512 * 1024, 20, 300_000, 600_000, 0];
    let records: Vec<Record> = (0..).zip(sizes).map(|(number, bytes)| record_in(identity, 0, number, bytes)).collect();
    assert!(records[1].bytes().len() >= 512 * 1024);
    log.append(records.clone()).await.expect("appends");
    let expected: Vec<(Offset, Vec<u8>)> = (0..).zip(records.iter().map(|record| record.bytes().to_vec())).collect();
    assert_eq!(read_to_end(&*log, 0, 0).await, expected);
}

/// Appends whose caller went away are stored or not, and those of others are whole either way.
pub async fn dropped_appends_harm_nothing<L: Log, G>(make: impl AsyncFn() -> (Arc<L>, G)) {
    let (log, _guard) = make().await;
    let mut stored = Vec::new();
    for turn in 0..50 {
        let dropped = tokio::spawn({
            let log = Arc::clone(&log);
            async move { log.append(vec![record("dropped", turn, 100)]).await.map(drop) }
        });
        if turn % 2 == 0 {
            tokio::task::yield_now().await;
        }
        dropped.abort();
        let kept = record("kept", turn, 100);
        let position = append_one(&*log, kept.clone()).await;
        stored.push((position, kept));
    }
    for ((partition, offset), kept) in stored {
        let found = log.read(partition, offset, ReadBound { records_max: 1, ..ALL }).await.expect("reads");
        assert_eq!((found[0].offset, &found[0].bytes), (offset, kept.bytes()));
    }
}
