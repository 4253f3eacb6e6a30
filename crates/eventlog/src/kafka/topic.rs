//! The topic that is the log: made when it is missing, checked, and known again by its identity.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;
use uuid::Uuid;

use super::brokers::Brokers;
use super::config::{Checked, Role};
use super::native::{self, Refused};
use super::{OpenError, lock};
use crate::LogIdentity;

/// Names a log by its cluster and topic. Fixed for ever: another one would make every log another log.
const NAMESPACE: Uuid = Uuid::from_u128(0x6f0c_5a3e_8d0b_4b52_9f6e_2f1d_7c44_a9e1);
/// How long the client that asks about the topic may go without an answer before it is replaced.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long brokers may show no settings of a topic until it is believed that they will not.
const SETTINGS_MAX: Duration = Duration::from_secs(5);
/// When brokers that do not know the topic yet are asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How long one question may take.
pub(super) const ASK_MAX: Duration = Duration::from_secs(5);

/// Whether brokers answer, as the clients notice it.
#[derive(Debug, Default)]
pub(super) struct Connection {
    is_troubled: AtomicBool,
    trouble: Mutex<Option<String>>,
}

impl Connection {
    /// Returns what is wrong, if something is.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    fn fails(&self, reason: &str) {
        let mut trouble = lock(&self.trouble);
        if trouble.is_none() {
            tracing::warn!(reason, "Kafka cannot be reached");
        }
        *trouble = Some(reason.to_owned());
        self.is_troubled.store(true, Ordering::Relaxed);
    }

    /// Says that a broker answered. Called for each record, so the usual case takes no lock.
    pub(super) fn works(&self) {
        if self.is_troubled.load(Ordering::Relaxed) {
            self.is_troubled.store(false, Ordering::Relaxed);
            *lock(&self.trouble) = None;
            tracing::info!("Kafka answers again");
        }
    }

    /// Receives the log lines and errors of a client.
    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => {
                self.fails(reason);
            }
            // A single broker; the others may do.
            _ => tracing::debug!(%error, "librdkafka: {reason}"),
        }
    }
}

/// Puts a line of the client into our log.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(facility, "librdkafka: {text}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(facility, "librdkafka: {text}"),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, "librdkafka: {text}"),
        RDKafkaLogLevel::Debug => tracing::debug!(facility, "librdkafka: {text}"),
    }
}

/// Receives the log lines and errors of a client.
pub(super) struct Context {
    pub(super) connection: Arc<Connection>,
    pub(super) brokers: Brokers,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log_line(level, facility, text);
    }

    fn stats(&self, statistics: Statistics) {
        self.brokers.count(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.note(&error, reason);
    }
}

impl ConsumerContext for Context {}

/// What the comparison of the log with what it was says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// It is the log that was opened.
    Same,
    /// It is another one, and nothing may be appended to it or read from it in place of the former.
    Different(Difference),
    /// It cannot be said now, with the reason. A topic that a broker does not know counts as this: a broker that just
    /// started may not know it yet.
    Unreachable(String),
}

/// How a log differs from the one that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The topic was deleted and made anew, or the brokers are those of another cluster.
    #[error("the topic is another one of the same name: log {found}, not {expected}")]
    Log {
        /// What was opened.
        expected: Uuid,
        /// What is there.
        found: Uuid,
    },
    /// Partitions were added, so that users would lie elsewhere than before.
    #[error("the topic has {found} partitions, not {expected}")]
    Partitions {
        /// What was opened.
        expected: u32,
        /// What is there.
        found: u32,
    },
}

/// The identity of a log over Kafka. UUIDv5 over `{cluster id}/{topic id}`: it changes when a topic is deleted and made
/// anew, and stays when brokers, addresses or replicas change.
pub(super) fn log_id(cluster: &str, topic: Uuid) -> Uuid {
    Uuid::new_v5(&NAMESPACE, format!("{cluster}/{}", topic.hyphenated()).as_bytes())
}

/// Derives the identity from what the brokers say.
/// # Errors
/// A text: they give the topic no id.
fn identity_of(name: &str, topic: &native::Topic, cluster: &str) -> Result<LogIdentity, String> {
    if topic.id.is_nil() {
        return Err(format!("topic {name}: the brokers give it no id; Kafka 3.1 or later is needed"));
    }
    Ok(LogIdentity { log_id: log_id(cluster, topic.id), partitions: topic.partitions })
}

/// Asks about one topic.
pub(super) struct Asker {
    checked: Checked,
    connection: Arc<Connection>,
    client: Mutex<AdminOfNow>,
    /// By the last answer.
    is_all_led: AtomicBool,
}

/// The client that asks, until it got no answer for too long: it may have lost its brokers, as `brokers.rs` tells.
struct AdminOfNow {
    admin: Arc<AdminClient<Context>>,
    silent_since: Option<Instant>,
}

impl Asker {
    /// Makes the client; connects to nothing yet.
    pub(super) fn new(checked: &Checked, connection: &Arc<Connection>) -> Result<Self, OpenError> {
        let admin = make_admin(checked, connection)?;
        let client = Mutex::new(AdminOfNow { admin, silent_since: None });
        Ok(Asker { checked: checked.clone(), connection: Arc::clone(connection), client, is_all_led: AtomicBool::new(false) })
    }

    /// Returns the client, a new one if the last one is silent.
    fn admin(&self) -> Arc<AdminClient<Context>> {
        let mut now = lock(&self.client);
        if now.silent_since.is_some_and(|since| since.elapsed() > SILENCE_MAX) {
            match make_admin(&self.checked, &self.connection) {
                Ok(admin) => *now = AdminOfNow { admin, silent_since: None },
                Err(error) => tracing::warn!("the client that asks about the topic cannot be made anew: {error}"),
            }
        }
        Arc::clone(&now.admin)
    }

    /// Notes whether brokers answered.
    fn heard(&self, is_answered: bool) {
        let mut now = lock(&self.client);
        now.silent_since = if is_answered { None } else { now.silent_since.or_else(|| Some(Instant::now())) };
    }

    fn topic(&self) -> &str {
        &self.checked.config.topic
    }

    /// Asks for the topic and the cluster's id. Blocks, for each of the two as long as `wait_max`.
    fn describe(&self, wait_max: Duration) -> Result<(native::Topic, String), Refused> {
        let admin = self.admin();
        let described = native::describe_topic(admin.inner(), self.topic(), wait_max)
            .and_then(|topic| Ok((topic, native::cluster_id(admin.inner(), wait_max)?)));
        self.heard(described.is_ok());
        let is_all_led = described.as_ref().is_ok_and(|(topic, _)| topic.leaderless == 0);
        self.is_all_led.store(is_all_led, Ordering::Relaxed);
        described
    }

    /// Returns whether each partition had a leader when the brokers were asked last, and they answered.
    pub(super) fn is_all_led(&self) -> bool {
        self.is_all_led.load(Ordering::Relaxed)
    }

    /// Compares the log with what it was. Blocks, for twice [`ASK_MAX`] and a little more at most.
    pub(super) fn compare(&self, expected: LogIdentity) -> Compared {
        let found = match self.describe(ASK_MAX).map(|(topic, cluster)| identity_of(self.topic(), &topic, &cluster)) {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => return Compared::Unreachable(reason),
            Err(refused) => return Compared::Unreachable(format!("topic {}: {}", self.topic(), refused.text)),
        };
        if found.log_id != expected.log_id {
            return Compared::Different(Difference::Log { expected: expected.log_id, found: found.log_id });
        }
        if found.partitions != expected.partitions {
            return Compared::Different(Difference::Partitions { expected: expected.partitions, found: found.partitions });
        }
        Compared::Same
    }

    /// Finds the topic, or makes it, and waits until each of its partitions has a leader.
    /// # Errors
    /// [`OpenError`].
    pub(super) async fn open(self: &Arc<Self>) -> Result<LogIdentity, OpenError> {
        let open_max = self.checked.config.open_wait_max;
        let deadline = Instant::now() + open_max;
        let mut made = false;
        let (topic, cluster) = loop {
            let asker = Arc::clone(self);
            let missing = match blocking(move || asker.describe(ASK_MAX.min(open_max))).await {
                Ok((topic, cluster)) if topic.leaderless == 0 => break (topic, cluster),
                Ok((topic, _)) => format!("{} of {} partitions have no leader", topic.leaderless, topic.partitions),
                Err(refused) if refused.code == RDKafkaErrorCode::UnknownTopicOrPartition => {
                    if !made {
                        self.create().await?;
                        made = true;
                        continue;
                    }
                    "it was made, and the brokers do not know it yet".to_owned()
                }
                Err(refused) if is_final(refused.code) => return Err(OpenError::Refused(self.topic().to_owned(), refused.text)),
                Err(refused) => refused.text,
            };
            if Instant::now() >= deadline {
                let brokers = &self.checked.config.brokers;
                return Err(OpenError::Unreachable(format!("brokers {brokers}, topic {}: {missing}", self.topic())));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        };
        let identity = identity_of(self.topic(), &topic, &cluster).map_err(OpenError::NoTopicId)?;
        let found = identity.partitions;
        if found == 0 || !events::bucket::BUCKETS.is_multiple_of(found) {
            return Err(OpenError::Partitions { topic: self.topic().to_owned(), found });
        }
        self.check_settings(deadline).await?;
        Ok(identity)
    }

    async fn create(&self) -> Result<(), OpenError> {
        let config = &self.checked.config;
        // The number of replicas is the cluster's default. What is written here would break the log if it were another
        // cluster's default: records that are removed from the middle, or packed anew by the broker.
        let topic = NewTopic::new(&config.topic, config.partitions_if_new as i32, TopicReplication::Fixed(-1))
            .set("cleanup.policy", "delete")
            .set("compression.type", "producer");
        let options = AdminOptions::new().operation_timeout(Some(ASK_MAX)).request_timeout(Some(ASK_MAX * 2));
        let refused = |text: String| OpenError::Refused(config.topic.clone(), format!("it cannot be made: {text}"));
        let made = self.admin().create_topics([&topic], &options).await.map_err(|error| refused(error.to_string()))?;
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(refused(code.to_string())),
            _ => {
                tracing::info!(topic = config.topic, partitions = config.partitions_if_new, "made the topic");
                Ok(())
            }
        }
    }

    /// Refuses settings of the topic under which records would vanish from the middle, or could not be read. Brokers that do not
    /// answer, or have not heard of a topic that was just made, are asked again until the deadline.
    async fn check_settings(&self, deadline: Instant) -> Result<(), OpenError> {
        let (options, begun) = (AdminOptions::new().request_timeout(Some(ASK_MAX)), Instant::now());
        let settings = loop {
            let asked = self.admin().describe_configs([&ResourceSpecifier::Topic(self.topic())], &options).await;
            let code = match asked.map(|resources| resources.into_iter().next()) {
                Ok(Some(Ok(settings))) if !settings.entries.is_empty() => break settings,
                // Each topic has settings. The wrapper shows none both where the broker asked does not know the topic yet, and where
                // it shows them to those only who have a permission that Weir may not have.
                Ok(_) if begun.elapsed() < SETTINGS_MAX => RDKafkaErrorCode::UnknownTopicOrPartition,
                Ok(_) => RDKafkaErrorCode::TopicAuthorizationFailed,
                Err(error) => error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
            };
            if !is_temporary(code) {
                tracing::warn!(topic = self.topic(), "the topic's settings are not known: {code}");
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(OpenError::Unreachable(format!("topic {}: its settings: {code}", self.topic())));
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        };
        let value = |name: &str| settings.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let refuse = |text: String| Err(OpenError::Refused(self.topic().to_owned(), text));
        let policy = value("cleanup.policy");
        if policy.contains("compact") {
            return refuse(format!(
                "cleanup.policy is {policy:?}; a log needs \"delete\", since compaction removes records from its middle"
            ));
        }
        if value("compression.type") == "zstd" && !cfg!(feature = "kafka-zstd") {
            return refuse(
                "compression.type is \"zstd\", which this build cannot read; set it to \"producer\", or build with the feature kafka-zstd"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn make_admin(checked: &Checked, connection: &Arc<Connection>) -> Result<Arc<AdminClient<Context>>, OpenError> {
    let context = Context { connection: Arc::clone(connection), brokers: Brokers::default() };
    let admin = AdminClient::from_config_and_context(&checked.client(Role::Admin), context);
    admin.map(Arc::new).map_err(|error| OpenError::Config(error.to_string()))
}

/// Runs what blocks on the threads for that.
pub(super) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let ended = || Refused { code: RDKafkaErrorCode::Fail, text: "the runtime ends".to_owned() };
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|_| Err(ended()))
}

/// Errors that a broker gives for a while only.
fn is_temporary(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, BrokerNotAvailable, BrokerTransportFailure, MessageTimedOut, OperationTimedOut, RequestTimedOut,
        UnknownTopicOrPartition,
    };
    matches!(
        code,
        AllBrokersDown
            | BrokerNotAvailable
            | BrokerTransportFailure
            | MessageTimedOut
            | OperationTimedOut
            | RequestTimedOut
            | UnknownTopicOrPartition
    )
}

/// Errors that waiting does not mend.
fn is_final(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        Authentication, ClusterAuthorizationFailed, InvalidTopic, SaslAuthenticationFailed, TopicAuthorizationFailed,
    };
    matches!(
        code,
        Authentication | ClusterAuthorizationFailed | InvalidTopic | SaslAuthenticationFailed | TopicAuthorizationFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fixed for ever; the value was computed by another implementation (Python's `uuid`).
    #[test]
    fn the_identity_of_a_known_topic_never_changes() {
        let topic = Uuid::parse_str("6ba7b812-9dad-11d1-80b4-00c04fd430c8").expect("a constant");
        assert_eq!(log_id("MkU3OEVBNTcwNTJENDM2Qg", topic).to_string(), "91bafc3c-5187-5809-826a-2419aa5b8808");
    }

    #[test]
    fn a_topic_without_an_id_has_no_identity() {
        let topic = native::Topic { id: Uuid::nil(), partitions: 8, leaderless: 0 };
        let error = identity_of("weir.events", &topic, "cluster").expect_err("is refused");
        assert!(error.contains("no id"), "{error}");
        let topic = native::Topic { id: Uuid::from_u128(1), ..topic };
        assert_eq!(identity_of("weir.events", &topic, "cluster").expect("an identity").partitions, 8);
    }
}
