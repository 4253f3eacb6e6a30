//! How to reach Kafka, and the settings that our guarantees rest on and that may not be changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::NativeClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::{OpenError, brokers};

/// The topic, unless another one is named.
pub const TOPIC_DEFAULT: &str = "weir.events";
/// Log partitions of a topic that we make.
pub const PARTITIONS_DEFAULT: u32 = 8;
/// Bounds of [`Config::append_wait_max`].
pub const APPEND_WAIT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// How to open a log over Kafka.
#[derive(Clone, Debug)]
pub struct Config {
    /// Host and port of some brokers, with commas between them.
    pub brokers: String,
    /// The topic that is the log.
    pub topic: String,
    /// A file of librdkafka properties, such as those of TLS; see [`properties`].
    pub file: Option<PathBuf>,
    /// Log partitions of the topic if it has to be made; divides 64. A topic that exists keeps its own.
    pub partitions_if_new: u32,
    /// How long opening waits for brokers that do not answer yet, and for a topic that was just made.
    pub open_wait_max: Duration,
    /// How long an append may take before it is given up, within [`APPEND_WAIT`]. Who waits for one waits longer than this.
    pub append_wait_max: Duration,
    /// How long a record may wait for others, so that they travel together. Under light load it is the answer's time; with less of it
    /// brokers get more and smaller requests, and a busy collector stores a tenth less on the same machine (benches/runs).
    pub linger: Duration,
    /// Bytes of records on their way, their overhead included; further appends wait.
    pub in_flight_bytes_max: u32,
}

impl Config {
    /// Returns a configuration with the defaults.
    pub fn new(brokers: &str) -> Self {
        Config {
            brokers: brokers.to_owned(),
            topic: TOPIC_DEFAULT.to_owned(),
            file: None,
            partitions_if_new: PARTITIONS_DEFAULT,
            open_wait_max: Duration::from_secs(20),
            append_wait_max: Duration::from_secs(10),
            linger: Duration::from_millis(5),
            in_flight_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Admin,
    Producer,
    Consumer,
}

/// Properties that a file may not set, with the reason.
const OURS: [(&str, &str); 32] = [
    ("bootstrap.servers", "the brokers are given by the setting of that name"),
    ("metadata.broker.list", "the brokers are given by the setting of that name"),
    ("acks", "an answer of success means that all replicas in sync have the record"),
    ("request.required.acks", "an answer of success means that all replicas in sync have the record"),
    ("enable.idempotence", "without it a retry may store a record twice or out of order"),
    ("enable.gapless.guarantee", "a record that is given up must not stop those after it"),
    ("transactional.id", "the log has no transactions, and their markers would be gaps"),
    ("max.in.flight", "idempotence bounds it, and keeps the order"),
    ("max.in.flight.requests.per.connection", "idempotence bounds it, and keeps the order"),
    ("message.timeout.ms", "the answer to a client waits for it"),
    ("delivery.timeout.ms", "the answer to a client waits for it"),
    ("request.timeout.ms", "it lies below the time of an append"),
    ("socket.timeout.ms", "it lies below the time of an append"),
    ("retries", "an append is tried again until its time is over"),
    ("message.send.max.retries", "an append is tried again until its time is over"),
    ("queue.buffering.max.kbytes", "Weir bounds the memory of appends itself"),
    ("queue.buffering.max.messages", "Weir bounds the memory of appends itself"),
    ("queue.buffering.max.ms", "the wait of an append is a setting of its own"),
    ("linger.ms", "the wait of an append is a setting of its own"),
    ("delivery.report.only.error", "every append waits for its reports"),
    ("partitioner", "the bucket decides which log partition holds a record"),
    ("allow.auto.create.topics", "a topic that was deleted must not come back by itself"),
    ("auto.offset.reset", "a reader that lost its place must stop, not jump"),
    ("topic.auto.offset.reset", "a reader that lost its place must stop, not jump"),
    ("enable.auto.commit", "the checkpoint lies in the database; offsets in Kafka are a hint"),
    ("auto.commit.enable", "the checkpoint lies in the database; offsets in Kafka are a hint"),
    ("enable.auto.offset.store", "the checkpoint lies in the database; offsets in Kafka are a hint"),
    ("check.crcs", "damage must be found before it is stored"),
    ("isolation.level", "the log has no transactions"),
    ("enable.partition.eof", "Weir asks for the end offset itself"),
    ("statistics.interval.ms", "Weir notices by it a client that has lost its brokers"),
    ("log.queue", "the client's log lines go into ours"),
];

/// Reads a file of properties: one `name=value` in a line; empty lines and lines that begin with `#` are skipped.
/// # Errors
/// [`OpenError::Config`], which names the line.
pub fn properties(path: &Path) -> Result<BTreeMap<String, String>, OpenError> {
    let text = std::fs::read_to_string(path).map_err(|error| OpenError::Config(format!("{}: {error}", path.display())))?;
    parse(&text).map_err(|reason| OpenError::Config(format!("{}:{reason}", path.display())))
}

/// Values may be secrets, so no error repeats one.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| format!("{number}: expected name=value"))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() {
            return Err(format!("{number}: expected name=value"));
        }
        if let Some((_, reason)) = OURS.iter().find(|(ours, _)| *ours == name) {
            return Err(format!("{number}: {name} may not be set: {reason}"));
        }
        if name.starts_with("test.mock.") {
            return Err(format!("{number}: {name} may not be set: it replaces the brokers by a simulation"));
        }
        if found.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{number}: {name} is set twice"));
        }
    }
    Ok(found)
}

/// A configuration that was checked, from which the clients are made.
#[derive(Clone)]
pub(super) struct Checked {
    pub(super) config: Config,
    pub(super) file: BTreeMap<String, String>,
}

impl Checked {
    /// Checks everything that can be checked without a broker.
    pub(super) fn new(config: Config) -> Result<Self, OpenError> {
        let wrong = |text: String| Err(OpenError::Config(text));
        if config.brokers.trim().is_empty() {
            return wrong("no brokers; expected host:port, with commas between several".to_owned());
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if config.topic.is_empty() || config.topic.len() > 249 || !config.topic.chars().all(is_name) {
            let topic = &config.topic;
            return wrong(format!("topic {topic:?}: expected 1 to 249 of the characters a-z, A-Z, 0-9, '.', '-' and '_'"));
        }
        if config.partitions_if_new == 0 || !events::bucket::BUCKETS.is_multiple_of(config.partitions_if_new) {
            return wrong(format!("{} log partitions; expected a number that divides 64", config.partitions_if_new));
        }
        if !APPEND_WAIT.contains(&config.append_wait_max) {
            return wrong(format!("{:?} for an append; expected 1 s to 30 s", config.append_wait_max));
        }
        if config.linger > config.append_wait_max / 4 {
            return wrong(format!(
                "a record would wait {:?} for others; expected a quarter of the append's time at most",
                config.linger
            ));
        }
        if config.in_flight_bytes_max == 0 {
            return wrong("0 bytes on their way; expected a positive number, such as 67108864".to_owned());
        }
        let file = config.file.as_deref().map(properties).transpose()?.unwrap_or_default();
        let checked = Checked { config, file };
        for role in [Role::Admin, Role::Producer, Role::Consumer] {
            checked.assert(role)?;
        }
        Ok(checked)
    }

    /// What our promises rest on.
    fn promised(&self, role: Role) -> Vec<(&'static str, String)> {
        let milliseconds = |duration: Duration| duration.as_millis().to_string();
        let own = |(name, value): (&'static str, &str)| (name, value.to_owned());
        let append = self.config.append_wait_max;
        let mut set: Vec<(&'static str, String)> = vec![("allow.auto.create.topics", "false".to_owned())];
        match role {
            Role::Admin => set.push(("socket.timeout.ms", "10000".to_owned())),
            Role::Producer => set.extend([
                ("acks", "-1".to_owned()),
                ("enable.idempotence", "true".to_owned()),
                ("message.timeout.ms", milliseconds(append)),
                // A request that hangs, on a broker that is frozen, is given up in time for another try.
                ("request.timeout.ms", milliseconds(append / 2)),
                ("socket.timeout.ms", milliseconds((append / 2).max(Duration::from_secs(1)))),
                ("linger.ms", milliseconds(self.config.linger)),
                // Never reached: the appends in flight are bounded before, overhead included.
                ("queue.buffering.max.kbytes", (self.config.in_flight_bytes_max / 1024 + 1024).to_string()),
                ("queue.buffering.max.messages", "0".to_owned()),
                own(brokers::COUNT_EVERY),
            ]),
            Role::Consumer => set.extend([
                ("check.crcs", "true".to_owned()),
                ("enable.auto.commit", "false".to_owned()),
                ("enable.auto.offset.store", "false".to_owned()),
                ("enable.partition.eof", "false".to_owned()),
                ("auto.offset.reset", "error".to_owned()),
                // The end is the high watermark: what all replicas in sync have.
                ("isolation.level", "read_uncommitted".to_owned()),
                ("socket.timeout.ms", "10000".to_owned()),
                own(brokers::COUNT_EVERY),
            ]),
        }
        set
    }

    /// What is better than the library's defaults, and may be changed.
    fn preferred(role: Role) -> &'static [(&'static str, &'static str)] {
        match role {
            Role::Admin => &[("reconnect.backoff.max.ms", "2000")],
            Role::Producer => &[("reconnect.backoff.max.ms", "2000"), ("retry.backoff.max.ms", "500")],
            Role::Consumer => &[
                ("reconnect.backoff.max.ms", "2000"),
                // No group is ever joined. The name is where the offsets are put that tools for lag look at.
                ("group.id", "weir"),
                // A full queue would otherwise pause for a second before it is filled again.
                ("fetch.queue.backoff.ms", "10"),
                ("fetch.error.backoff.ms", "100"),
                // A reader that moves waits for the request that is under way, and that one for records.
                ("fetch.wait.max.ms", "100"),
                ("queued.max.messages.kbytes", "8192"),
                ("fetch.message.max.bytes", "2097152"),
            ],
        }
    }

    /// Makes the configuration of a client.
    pub(super) fn client(&self, role: Role) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("client.id", "weir").set("bootstrap.servers", &self.config.brokers);
        for (name, value) in Self::preferred(role) {
            client.set(*name, *value);
        }
        for (name, value) in &self.file {
            client.set(name, value);
        }
        for (name, value) in self.promised(role) {
            client.set(name, value);
        }
        client
    }

    /// Compares what the library understood with what was promised.
    fn assert(&self, role: Role) -> Result<(), OpenError> {
        let native = self.client(role).create_native_config().map_err(|error| OpenError::Config(property_error(&error)))?;
        let mut expected = self.promised(role);
        if role == Role::Producer {
            // Left at their defaults, and not open to the file.
            expected.push(("delivery.report.only.error", "false".to_owned()));
            expected.push(("enable.gapless.guarantee", "false".to_owned()));
        }
        for (name, expected) in expected {
            let found = understood(&native, name)?;
            if found != expected {
                return Err(OpenError::Config(format!("{name} is {found:?}, but the guarantees of the log need {expected:?}")));
            }
        }
        Ok(())
    }
}

fn understood(native: &NativeClientConfig, name: &str) -> Result<String, OpenError> {
    native.get(name).map_err(|error| OpenError::Config(format!("{name}: {error}")))
}

/// Names the property and what is wrong with it, without its value, which may be a secret.
fn property_error(error: &KafkaError) -> String {
    let KafkaError::ClientConfig(result, _, name, _) = error else { return error.to_string() };
    let is_secured = ["security.", "sasl.", "ssl.", "https.ca."].iter().any(|prefix| name.starts_with(prefix));
    match result {
        RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => format!("librdkafka knows no property {name}"),
        _ if is_secured && !cfg!(feature = "kafka-tls") => {
            format!("librdkafka refuses the value of the property {name}; TLS and SASL need a build with the feature kafka-tls")
        }
        _ => format!("librdkafka refuses the value of the property {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read() {
        let text = "# brokers want TLS\n\nsecurity.protocol = ssl\nssl.ca.location=/etc/ca.pem\n  sasl.password=a=b# \n";
        let found = parse(text).expect("parses");
        let expected = [("sasl.password", "a=b#"), ("security.protocol", "ssl"), ("ssl.ca.location", "/etc/ca.pem")];
        assert_eq!(found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_contradicts_our_promises_is_refused_by_name() {
        let check = |text: &str, expected: &str| {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(expected), "{error}");
        };
        check("acks=1", "1: acks may not be set: ");
        check("\n\nenable.idempotence = false", "3: enable.idempotence may not be set: ");
        check("auto.offset.reset=latest", "1: auto.offset.reset may not be set: ");
        check("test.mock.num.brokers=3", "1: test.mock.num.brokers may not be set: ");
        check("client.id=a\nclient.id=b", "2: client.id is set twice");
        check("secret", "1: expected name=value");
        check("=secret", "1: expected name=value");
        for text in ["secret", "=secret", "acks=secret", "client.id=a\nclient.id=secret"] {
            assert!(!parse(text).expect_err(text).contains("secret"), "a value is shown: {text}");
        }
    }

    #[test]
    fn every_refused_property_is_one_that_the_library_knows() {
        let is_known = |name: &str| {
            let result = ClientConfig::new().set(name, "?").create_native_config().map(drop);
            !matches!(result, Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)))
        };
        for (name, _) in OURS {
            assert!(is_known(name), "{name}");
        }
        assert!(!is_known("no.such.property"));
    }

    #[test]
    fn settings_are_checked_before_a_broker_is_asked() {
        let good = Config::new("127.0.0.1:1");
        assert!(Checked::new(good.clone()).is_ok());
        let check = |config: Config, expected: &str| match Checked::new(config) {
            Err(OpenError::Config(text)) => assert!(text.contains(expected), "{text}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("accepted; expected {expected}"),
        };
        check(Config { brokers: " ".to_owned(), ..good.clone() }, "no brokers");
        check(Config { topic: "a b".to_owned(), ..good.clone() }, "topic \"a b\"");
        check(Config { partitions_if_new: 6, ..good.clone() }, "6 log partitions");
        check(Config { append_wait_max: Duration::from_secs(300), ..good.clone() }, "300s");
        check(Config { in_flight_bytes_max: 0, ..good.clone() }, "0 bytes");
        check(Config { linger: Duration::from_secs(9), ..good.clone() }, "9s");
        check(Config { file: Some("/nowhere/kafka.properties".into()), ..good.clone() }, "/nowhere/kafka.properties: ");
    }

    #[test]
    fn the_library_names_what_it_does_not_know() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kafka.properties");
        let check = |text: &str, expected: &str| {
            std::fs::write(&path, text).expect("writes");
            let config = Config { file: Some(path.clone()), ..Config::new("127.0.0.1:1") };
            match Checked::new(config) {
                Err(OpenError::Config(text)) => assert!(text.contains(expected) && !text.contains("hunter2"), "{text}"),
                Err(error) => panic!("{error}"),
                Ok(_) => panic!("accepted; expected {expected}"),
            }
        };
        check("no.such.property=hunter2", "no.such.property");
        check("compression.type=hunter2", "compression.type");
        check("acks=all", "acks may not be set");
        if !cfg!(feature = "kafka-tls") {
            check("security.protocol=ssl", "need a build with the feature kafka-tls");
        }
    }

    #[test]
    fn settings_that_are_no_promises_can_be_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kafka.properties");
        std::fs::write(&path, "compression.type=lz4\ngroup.id=other\n").expect("writes");
        let checked = Checked::new(Config { file: Some(path), ..Config::new("127.0.0.1:1") }).expect("is accepted");
        let producer = checked.client(Role::Producer).create_native_config().expect("a configuration");
        assert_eq!(producer.get("compression.type").expect("known"), "lz4");
        let consumer = checked.client(Role::Consumer).create_native_config().expect("a configuration");
        assert_eq!(consumer.get("group.id").expect("known"), "other");
    }
}
