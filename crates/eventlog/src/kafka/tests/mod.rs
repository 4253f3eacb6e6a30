//! Tests of the log over Kafka: against real brokers, whose address is in `WEIR_TEST_KAFKA` (`deploy/kafka.sh run` puts it
//! there), and against the client library's simulated ones.

use super::*;

mod faults;
mod mock;
mod real;
mod support;

/// Where the brokers of the tests listen. None: there are none, which is said aloud.
fn brokers() -> Option<String> {
    let found = std::env::var("WEIR_TEST_KAFKA").ok().filter(|text| !text.is_empty());
    if found.is_none() {
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        // Past the capture of passing tests' output, so that nobody takes this for a test that ran.
        let said = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("{name}: skipped, WEIR_TEST_KAFKA names no brokers; deploy/kafka.sh run cargo test starts one\n").as_bytes(),
        );
        said.expect("standard error");
    }
    found
}

/// Settings of a log in a topic of its own.
fn new_topic(brokers: &str) -> Config {
    Config {
        topic: format!("test-{}", uuid::Uuid::new_v4()),
        linger: std::time::Duration::from_millis(1),
        ..Config::new(brokers)
    }
}

/// Opens a log in a topic of its own.
async fn open_new(brokers: &str) -> KafkaLog {
    KafkaLog::open(new_topic(brokers)).await.expect("opens")
}
