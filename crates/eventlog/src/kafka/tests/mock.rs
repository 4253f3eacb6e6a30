//! What each error of a broker leads to: the client library's own simulated brokers answer with it, and the real client code
//! takes it from there. A simulated broker stores nothing that it answers with an error.

use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::conformance::{record, record_in};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const TOPIC: &str = "events";
/// How long an append may take here.
const APPEND: Duration = Duration::from_secs(3);

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).expect("a simulated cluster");
    cluster.create_topic(TOPIC, 8, 1).expect("a topic");
    cluster
}

fn config(cluster: &Cluster) -> Config {
    Config {
        topic: TOPIC.to_owned(),
        append_wait_max: APPEND,
        linger: Duration::from_millis(1),
        ..Config::new(&cluster.bootstrap_servers())
    }
}

/// Opens the log, without the questions that simulated brokers do not answer: they have no controller.
fn open(config: Config) -> KafkaLog {
    open_checked(Checked::new(config).expect("is accepted"))
}

fn open_checked(checked: Checked) -> KafkaLog {
    let connection = Arc::new(Connection::default());
    let asker = Arc::new(Asker::new(&checked, &connection).expect("a client"));
    let identity = LogIdentity { log_id: uuid::Uuid::new_v4(), partitions: 8 };
    KafkaLog::new(checked, connection, asker, identity, Agreement::Agreed)
}

/// What an append came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Stored,
    /// Surely not there.
    Unavailable,
    /// Perhaps there.
    Unknown,
}

async fn append(log: &KafkaLog, number: u64) -> Came {
    let begin = Instant::now();
    // Two log partitions, so that more than one request is refused.
    let batch = vec![record_in(log.identity(), 0, number, 10), record_in(log.identity(), 0, number + 1, 10)];
    let came = match log.append(batch).await {
        Ok(_) => Came::Stored,
        Err(AppendError::Unavailable(_)) => Came::Unavailable,
        Err(AppendError::Unknown(_)) => Came::Unknown,
        Err(AppendError::Stopped(reason)) => panic!("stopped: {reason}"),
    };
    assert!(begin.elapsed() < 3 * APPEND, "answered after {:?}", begin.elapsed());
    came
}

/// Appends for the first time. On a busy machine the client may need longer to find its broker than an append may take.
async fn first(log: &KafkaLog) {
    let begin = Instant::now();
    loop {
        match append(log, 0).await {
            Came::Stored => return,
            Came::Unavailable => assert!(begin.elapsed() < Duration::from_secs(30), "the simulated broker is not found"),
            Came::Unknown => panic!("no error was asked for"),
        }
    }
}

/// Lets the broker answer appends with an error, so often, and checks what the append comes to; and that, once the errors
/// are over, appends succeed again and lie after what was stored.
async fn check(error: RDKafkaRespErr, times: usize, expected: Came) {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; times]);
    assert_eq!(append(&log, 10).await, expected);
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    let end = log.offsets(0).await.expect("offsets").end;
    match expected {
        Came::Stored => assert_eq!(end, 4),
        Came::Unavailable => assert_eq!(end, 2, "nothing is there"),
        Came::Unknown => assert!([2, 4].contains(&end), "{end}"),
    }
    // What waits from before, and a producer that is being replaced, may take a moment.
    let begin = Instant::now();
    while append(&log, 20).await != Came::Stored {
        assert!(begin.elapsed() < Duration::from_secs(20), "appends do not succeed again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(log.offsets(0).await.expect("offsets").end > end);
}

macro_rules! rows {
    ($($name:ident: $error:ident, $times:expr => $expected:ident;)+) => {
        $(
            #[tokio::test]
            async fn $name() {
                check(RDKafkaRespErr::$error, $times, Came::$expected).await;
            }
        )+
    };
}

/// More often than an append is tried.
const ALWAYS: usize = 10_000;

rows! {
    request_timed_out: RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, 1 => Stored;
    request_timed_out_always: RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, ALWAYS => Unknown;
    not_leader: RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, 1 => Stored;
    not_leader_always: RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, ALWAYS => Unavailable;
    leader_not_available: RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, 1 => Stored;
    not_enough_replicas: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, 1 => Stored;
    not_enough_replicas_always: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, ALWAYS => Unavailable;
    not_enough_replicas_after_append: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, 1 => Stored;
    not_enough_replicas_after_append_always: RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND, ALWAYS => Unknown;
    storage_error: RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, 1 => Stored;
    storage_error_always: RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, ALWAYS => Unavailable;
    message_too_large: RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, 1 => Unavailable;
    invalid_record: RD_KAFKA_RESP_ERR_INVALID_RECORD, 1 => Unavailable;
    policy_violation: RD_KAFKA_RESP_ERR_POLICY_VIOLATION, 1 => Unavailable;
    topic_authorization_failed: RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 1 => Unavailable;
    unknown_topic: RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, 1 => Stored;
    out_of_order_sequence: RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, 1 => Unknown;
    duplicate_sequence: RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER, 1 => Unknown;
    unknown_producer_id: RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, 1 => Stored;
    invalid_producer_epoch: RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH, 1 => Unavailable;
    connection_lost: RD_KAFKA_RESP_ERR__TRANSPORT, 1 => Stored;
    connection_lost_always: RD_KAFKA_RESP_ERR__TRANSPORT, ALWAYS => Unknown;
    unheard_of: RD_KAFKA_RESP_ERR_UNKNOWN, ALWAYS => Unknown;
}

/// A producer that gave up is replaced, and the log goes on.
#[tokio::test]
async fn a_fatal_error_replaces_the_producer() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    // The library and the broker disagree about what was sent, which the library cannot mend.
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    assert_eq!(append(&log, 10).await, Came::Unknown);
    let begin = Instant::now();
    while append(&log, 20).await != Came::Stored {
        assert!(begin.elapsed() < Duration::from_secs(20), "appends do not succeed again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(log.stats().rebuilds, 1);
}

/// Nothing was sent, so nothing is there.
#[tokio::test]
async fn what_was_never_sent_is_not_there() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    cluster.broker_down(-1).expect("goes down");
    // The first append may be under way when the connection ends.
    append(&log, 10).await;
    assert_eq!(append(&log, 20).await, Came::Unavailable);
    cluster.broker_up(-1).expect("comes up");
    let begin = Instant::now();
    while append(&log, 30).await != Came::Stored {
        assert!(begin.elapsed() < Duration::from_secs(20), "appends do not succeed again");
    }
}

/// A record that was written, and whose report comes after the append was given up.
#[tokio::test]
async fn late_reports_leave_it_open() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    cluster.broker_round_trip_time(-1, 5 * APPEND).expect("is slow");
    assert_eq!(append(&log, 10).await, Came::Unknown);
    cluster.broker_round_trip_time(-1, Duration::ZERO).expect("is quick");
    let begin = Instant::now();
    while append(&log, 20).await != Came::Stored {
        assert!(begin.elapsed() < Duration::from_secs(30), "appends do not succeed again");
    }
}

/// Memory is bounded: appends beyond it are refused after a moment, and nothing of them is there.
#[tokio::test]
async fn appends_beyond_the_bound_are_refused() {
    let cluster = cluster();
    let wide = Config { append_wait_max: Duration::from_secs(5), in_flight_bytes_max: 64 * 1024, ..config(&cluster) };
    let log = open(wide);
    first(&log).await;
    cluster.broker_down(-1).expect("goes down");
    let waiting: Vec<_> = (0..3)
        .map(|number| {
            let log = log.clone();
            tokio::spawn(async move { log.append(vec![record("user", number, 20_000)]).await })
        })
        .collect();
    let begin = Instant::now();
    let mut refused = Vec::new();
    for append in waiting {
        refused.push(append.await.expect("no panic").expect_err("nobody is there"));
    }
    // The two that fit may be under way when the connection ends; of the third, nothing was.
    let full: Vec<_> = refused.iter().filter(|error| error.to_string().contains("on their way")).collect();
    assert!(matches!(full[..], [AppendError::Unavailable(_)]), "two fit, {refused:?}");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

/// Clients that know no broker at all, as after a broker's restart that went wrong for them: both find the bootstrap servers.
#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_broker_begin_with_the_bootstrap_servers() {
    let cluster = cluster();
    let mut checked = Checked::new(config(&cluster)).expect("is accepted");
    // Stands for no server; what the clients are given later are those of the configuration.
    checked.file.insert("bootstrap.servers".to_owned(), ",".to_owned());
    let log = open_checked(checked);
    let deadline = Instant::now() + Duration::from_secs(60);
    while append(&log, 0).await != Came::Stored {
        assert!(Instant::now() < deadline, "the producer has not found the brokers");
    }
    while log.offsets(0).await.is_err() {
        assert!(Instant::now() < deadline, "the reader has not found the brokers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_panics_beside_the_appends_and_reads_begins_again() {
    let cluster = cluster();
    let log = open(config(&cluster));
    let compared = log.keep_compared();
    first(&log).await;
    log.offsets(0).await.expect("it is read from");
    let background = Append::background(&log);
    let mut deaths = background.deaths();
    assert_eq!(background.names(), [COMPARE_TASK, reader::THREAD, producer::THREAD]);
    for name in background.names() {
        background.inject_panic(&name);
        let death = tokio::time::timeout(Duration::from_secs(30), deaths.next()).await.expect("it is told");
        assert_eq!((&death.task, death.panic), (&name, format!("injected into {name}")));
    }
    // Reports are taken again, and records come.
    first(&log).await;
    let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::from_secs(20) };
    assert_eq!(log.read(0, 0, bound).await.expect("it reads").len(), 1);
    compared.abort();
}

/// The consumer's last word to the group's coordinator, and all that was asked before, may wait for their answers longer than a service has
/// for its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_does_not_wait_for_brokers_that_are_gone() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::from_secs(20) };
    assert_eq!(log.read(0, 0, bound).await.expect("it reads").len(), 1);
    cluster.broker_down(1).expect("it goes");
    for offset in 1..4 {
        log.release(0, offset).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let begun = Instant::now();
    tokio::task::spawn_blocking(move || drop(log)).await.expect("no panic");
    assert!(begun.elapsed() < CLOSE_MAX + Duration::from_secs(3), "{:?}", begun.elapsed());
}

/// Offsets in Kafka are a hint. Where nobody takes them, as while the group's coordinator is away, the other log partitions are read
/// all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_nobody_takes_hold_no_reader_back() {
    let cluster = cluster();
    cluster.request_errors(
        RDKafkaApiKey::FindCoordinator,
        &vec![RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE; ALWAYS],
    );
    let log = open(config(&cluster));
    first(&log).await;
    log.append(vec![record_in(log.identity(), 1, 0, 10)]).await.expect("is stored");
    let bound = ReadBound { records_max: 1, bytes_max: 1, wait_max: Duration::from_secs(5) };
    assert_eq!(log.read(0, 0, bound).await.expect("it reads").len(), 1);
    log.release(0, 1).await;
    tokio::time::sleep(2 * reader::COMMIT_EVERY).await;
    assert_eq!(log.read(1, 0, bound).await.expect("it reads").len(), 1);
}

/// Appends a record to the first log partition, and reads it at its offset as often as need be.
async fn append_and_read(log: &KafkaLog, offset: Offset, deadline: Instant) {
    let stored = log.append(vec![record_in(log.identity(), 0, offset, 10)]).await.expect("is stored");
    assert_eq!(stored[0].offset, Some(offset));
    let bound = ReadBound { records_max: 10, bytes_max: 1024, wait_max: Duration::ZERO };
    loop {
        // What an aggregator asks for every second.
        log.end(0).await.expect("the end");
        match log.read(0, offset, bound).await {
            Ok(records) if records.is_empty() => {}
            Ok(records) => return assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [offset]),
            Err(ReadError::Unavailable(reason)) => eprintln!("{reason}"),
            Err(error) => panic!("{error}"),
        }
        log.shared.replace_if_deaf(true);
        assert!(Instant::now() < deadline, "offset {offset} is not read");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn first_partition() -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition(TOPIC, 0);
    list
}

/// A log partition that the library lost without a word is read on, where it was, by the same reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_library_lost_is_asked_for_anew() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    append_and_read(&log, 2, Instant::now() + Duration::from_secs(20)).await;
    log.shared.reader().expect("a reader").consumer().incremental_unassign(&first_partition()).expect("loses it");
    append_and_read(&log, 3, Instant::now() + 3 * reader::PATIENCE).await;
    assert_eq!(log.stats().readers_replaced, 0);
}

/// One that the library has, and does not read whatever is asked of it, is read on by another reader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_deaf_is_replaced() {
    let cluster = cluster();
    let log = open(config(&cluster));
    first(&log).await;
    append_and_read(&log, 2, Instant::now() + Duration::from_secs(20)).await;
    log.shared.reader().expect("a reader").consumer().pause(&first_partition()).expect("pauses");
    append_and_read(&log, 3, Instant::now() + 3 * DEAF_MAX).await;
    assert_eq!(log.stats().readers_replaced, 1);
}
