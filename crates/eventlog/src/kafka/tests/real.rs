//! The log over a real broker.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::support::Operator;
use super::*;
use crate::conformance::{ALL, read_to_end, record, record_in};

crate::conformance_tests!(
    async || (Arc::new(open_new(&brokers().expect("looked at before")).await), ()),
    if brokers().is_some()
);

/// How long a broker may take to show a change.
const SHOWN_MAX: Duration = Duration::from_secs(20);

async fn compared(log: &KafkaLog, is_expected: impl Fn(&Compared) -> bool) -> Compared {
    let begin = Instant::now();
    loop {
        let compared = log.check().await;
        if is_expected(&compared) {
            return compared;
        }
        assert!(begin.elapsed() < SHOWN_MAX, "{compared:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_topic_that_was_made_anew_is_another_log() {
    let Some(brokers) = brokers() else { return };
    let (operator, config) = (Operator::of(&brokers), new_topic(&brokers));
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    let identity = log.identity();
    assert_eq!(identity.partitions, 8);
    log.append(vec![record("user", 1, 10)]).await.expect("appends");
    assert_eq!(log.check().await, Compared::Same);
    assert_eq!(KafkaLog::open(config.clone()).await.expect("opens").identity(), identity);

    operator.delete(&config.topic).await;
    compared(&log, |compared| matches!(compared, Compared::Unreachable(_))).await;
    operator.make(&config.topic, 8, &[]).await;
    let different = compared(&log, |compared| matches!(compared, Compared::Different(_))).await;
    let Compared::Different(Difference::Log { expected, found }) = different else { panic!("{different:?}") };
    assert_eq!(expected, identity.log_id);
    assert_ne!(found, expected);
    assert!(matches!(log.append(vec![record("user", 2, 10)]).await, Err(AppendError::Stopped(_))));
    assert!(matches!(log.ready(), Err(AppendError::Stopped(_))));
    assert!(matches!(log.read(0, 0, ALL).await, Err(ReadError::OtherLog(_))));
    assert_eq!(log.check().await, different, "for good");
    // Of several brokers, one may still know the deleted topic.
    let begin = Instant::now();
    while KafkaLog::open(config.clone()).await.expect("opens").identity().log_id != found {
        assert!(begin.elapsed() < SHOWN_MAX, "it is still the deleted one");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn partitions_that_were_added_are_a_difference() {
    let Some(brokers) = brokers() else { return };
    let config = new_topic(&brokers);
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    Operator::of(&brokers).widen(&config.topic, 16).await;
    let different = compared(&log, |compared| matches!(compared, Compared::Different(_))).await;
    assert_eq!(different, Compared::Different(Difference::Partitions { expected: 8, found: 16 }));
    assert!(matches!(log.append(vec![record("user", 1, 10)]).await, Err(AppendError::Stopped(_))));
}

#[tokio::test]
async fn topics_that_cannot_be_a_log_are_refused() {
    let Some(brokers) = brokers() else { return };
    let operator = Operator::of(&brokers);
    let check = async |partitions: i32, settings: &[(&str, &str)], expected: &str| {
        let config = new_topic(&brokers);
        operator.make(&config.topic, partitions, settings).await;
        let error = KafkaLog::open(config).await.map(drop).expect_err("is refused");
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(6, &[], "it has 6 partitions").await;
    check(128, &[], "it has 128 partitions").await;
    check(8, &[("cleanup.policy", "compact")], "cleanup.policy is \"compact\"").await;
    check(8, &[("cleanup.policy", "compact,delete")], "cleanup.policy is").await;
    if !cfg!(feature = "kafka-zstd") {
        check(8, &[("compression.type", "zstd")], "feature kafka-zstd").await;
    }
    let nobody = Config { open_wait_max: Duration::from_secs(1), ..new_topic("127.0.0.1:1") };
    assert!(matches!(KafkaLog::open(nobody).await.map(drop), Err(OpenError::Unreachable(_))));
}

#[tokio::test]
async fn one_partition_and_64_make_a_log_too() {
    let Some(brokers) = brokers() else { return };
    for partitions in [1, 64] {
        let config = Config { partitions_if_new: partitions, ..new_topic(&brokers) };
        let log = KafkaLog::open(config).await.expect("opens");
        assert_eq!(log.identity().partitions, partitions);
        let batch: Vec<Record> = (0..100).map(|number| record(&format!("user-{number}"), number, 10)).collect();
        log.append(batch).await.expect("appends");
        let mut found = 0;
        for partition in 0..partitions {
            found += read_to_end(&log, partition, 0).await.len();
        }
        assert_eq!(found, 100);
    }
}

/// Brokers may pack records anew, as the topic's settings say.
#[tokio::test]
async fn compressed_topics_are_read() {
    let Some(brokers) = brokers() else { return };
    let operator = Operator::of(&brokers);
    let mut codecs = vec!["gzip", "lz4", "snappy", "uncompressed"];
    if cfg!(feature = "kafka-zstd") {
        codecs.push("zstd");
    }
    for codec in codecs {
        let config = new_topic(&brokers);
        operator.make(&config.topic, 1, &[("compression.type", codec)]).await;
        let log = KafkaLog::open(config).await.expect("opens");
        let batch: Vec<Record> = (0..50).map(|number| record("user", number, 500)).collect();
        log.append(batch.clone()).await.expect("appends");
        let expected: Vec<(Offset, Vec<u8>)> = (0..).zip(batch.iter().map(|record| record.bytes().to_vec())).collect();
        assert_eq!(read_to_end(&log, 0, 0).await, expected, "{codec}");
    }
}

/// Any consumer of Kafka finds the user as the key, in the partition that Kafka's own hash of the key names.
#[tokio::test]
async fn other_consumers_find_key_and_partition() {
    let Some(brokers) = brokers() else { return };
    let config = new_topic(&brokers);
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    let batch: Vec<Record> = (0..40).map(|number| record(&format!("user-{number}"), number, 10)).collect();
    let positions = log.append(batch.clone()).await.expect("appends");
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", "another").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..8 {
        list.add_partition_offset(&config.topic, partition, At::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("assigns");
    let mut found = 0;
    while found < batch.len() {
        let message = consumer.poll(Duration::from_secs(20)).expect("comes").expect("no error");
        let at = Position { partition: message.partition() as u32, offset: Some(message.offset() as u64) };
        let place = positions.iter().position(|position| *position == at).expect("one of ours");
        let key = message.key().expect("a key");
        assert_eq!(key, batch[place].key().0.hyphenated().to_string().as_bytes());
        assert_eq!(message.payload().expect("a value"), batch[place].bytes());
        assert_eq!((events::bucket::murmur2(key) & 0x7fff_ffff) % 8, at.partition);
        found += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_records_are_below_the_start() {
    let Some(brokers) = brokers() else { return };
    let config = new_topic(&brokers);
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    let batch: Vec<Record> = (0..100).map(|number| record_in(log.identity(), 0, number, 100)).collect();
    log.append(batch).await.expect("appends");
    let one = ReadBound { records_max: 1, ..ALL };
    assert_eq!(log.read(0, 10, one).await.expect("reads")[0].offset, 10);
    Operator::of(&brokers).expire(&config.topic, 0, 60).await;
    let check = async |from: Offset| {
        let error = log.read(0, from, ALL).await.expect_err("is gone");
        let named = matches!(error, ReadError::BelowStart { partition: 0, offset, start: 60 } if offset == from);
        assert!(named, "{error}");
    };
    check(0).await;
    check(59).await;
    assert_eq!(log.read(0, 60, one).await.expect("reads")[0].offset, 60);
    assert_eq!(log.offsets(0).await.expect("offsets"), 60..100);
    check(0).await;
    let above = log.read(0, 101, ALL).await.expect_err("is nowhere");
    assert!(matches!(above, ReadError::AboveEnd { partition: 0, offset: 101, end: 100 }), "{above}");
    // From a log that another process reads.
    let other = KafkaLog::open(config).await.expect("opens");
    assert_eq!(other.read(0, 99, ALL).await.expect("reads").len(), 1);
    assert_eq!(other.read(0, 100, ALL).await.expect("the end is no error"), []);
}

/// A transaction's marker takes an offset and is no record: something that is not ours wrote to the topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_an_error_and_never_skipped() {
    let Some(brokers) = brokers() else { return };
    let config = new_topic(&brokers);
    let log = KafkaLog::open(config.clone()).await.expect("opens");
    log.append(vec![record_in(log.identity(), 0, 1, 10)]).await.expect("appends");
    let (address, topic) = (brokers.clone(), config.topic.clone());
    let foreign = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer =
            ClientConfig::new().set("bootstrap.servers", &address).set("transactional.id", &topic).create().expect("a producer");
        let wait = Duration::from_secs(20);
        producer.init_transactions(wait).expect("begins");
        producer.begin_transaction().expect("begins");
        let message: BaseRecord<'_, str, str> = BaseRecord::to(&topic).partition(0).payload("no record of ours");
        producer.send(message).map_err(|(error, _)| error).expect("sends");
        producer.commit_transaction(wait).expect("commits");
    });
    foreign.await.expect("no panic");
    // The marker follows its transaction a little later.
    let begin = Instant::now();
    while log.offsets(0).await.expect("offsets") != (0..3) {
        assert!(begin.elapsed() < SHOWN_MAX, "no marker comes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    log.append(vec![record_in(log.identity(), 0, 2, 10)]).await.expect("appends");
    let found = log.read(0, 0, ALL).await.expect("reads");
    assert!(found.len() <= 2, "{found:?}");
    assert_eq!(log.read(0, 1, ALL).await.expect("reads")[0].bytes.as_ref(), b"no record of ours");
    for _ in 0..2 {
        let error = log.read(0, 2, ALL).await.expect_err("a gap");
        assert!(matches!(&error, ReadError::Corrupt { partition: 0, range, .. } if *range == (2..3)), "{error}");
    }
    assert_eq!(log.read(0, 3, ALL).await.expect("reads").len(), 1, "what lies after it can be read");
}

/// Two reads of one log partition, far from each other, both come on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_in_different_places_do_not_starve_each_other() {
    let Some(brokers) = brokers() else { return };
    let log = open_new(&brokers).await;
    let batch: Vec<Record> = (0..200).map(|number| record_in(log.identity(), 0, number, 100)).collect();
    log.append(batch).await.expect("appends");
    let at_end = {
        let log = log.clone();
        tokio::spawn(async move { log.read(0, 200, ReadBound { wait_max: Duration::from_secs(30), ..ALL }).await })
    };
    let walk = |from: Offset| {
        let log = log.clone();
        tokio::spawn(async move {
            for offset in from..from + 10 {
                let found = log.read(0, offset, ReadBound { records_max: 1, ..ALL }).await.expect("reads");
                assert_eq!(found[0].offset, offset);
            }
        })
    };
    let (low, high) = (walk(0), walk(150));
    low.await.expect("no panic");
    high.await.expect("no panic");
    assert!(!at_end.is_finished());
    log.append(vec![record_in(log.identity(), 0, 1, 10)]).await.expect("appends");
    assert_eq!(at_end.await.expect("no panic").expect("reads")[0].offset, 200);
}

/// A read that is cancelled loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_reads_harm_nothing() {
    let Some(brokers) = brokers() else { return };
    let log = open_new(&brokers).await;
    let mut next = 0;
    for turn in 0..60 {
        let wait = ReadBound { wait_max: Duration::from_secs(5), ..ALL };
        let cancelled = tokio::spawn({
            let log = log.clone();
            async move { log.read(0, next, wait).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_micros(turn * 300)).await;
        let append = log.append(vec![record_in(log.identity(), 0, turn, 10)]);
        cancelled.abort();
        append.await.expect("appends");
        let found = log.read(0, next, wait).await.expect("reads");
        assert_eq!(found[0].offset, next);
        next += found.len() as u64;
    }
    assert_eq!(next, 60);
}

/// Tools that show lag look at a group's offsets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn released_offsets_are_told_to_kafka() {
    let Some(brokers) = brokers() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kafka.properties");
    let config = new_topic(&brokers);
    std::fs::write(&file, format!("# a group of its own\ngroup.id = {}\n", config.topic)).expect("writes");
    let log = KafkaLog::open(Config { file: Some(file), ..config.clone() }).await.expect("opens");
    let batch: Vec<Record> = (0..20).map(|number| record_in(log.identity(), 3, number, 10)).collect();
    log.append(batch).await.expect("appends");
    log.read(3, 0, ALL).await.expect("reads");
    log.release(3, 17).await;
    let tool: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &config.topic).create().expect("a consumer");
    let begin = Instant::now();
    loop {
        let mut list = TopicPartitionList::new();
        list.add_partition(&config.topic, 3);
        let committed = tool.committed_offsets(list, Duration::from_secs(10)).expect("asks");
        if committed.elements()[0].offset() == At::Offset(17) {
            break;
        }
        assert!(begin.elapsed() < SHOWN_MAX, "{committed:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
