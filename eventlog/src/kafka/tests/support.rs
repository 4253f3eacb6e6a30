//! A broker that a test may harm, and the admin's side of topics.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use super::*;

/// Changes topics, as an operator does.
pub(super) struct Operator {
    client: AdminClient<DefaultClientContext>,
    options: AdminOptions,
}

impl Operator {
    pub(super) fn of(brokers: &str) -> Self {
        let client = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
        Operator { client, options: AdminOptions::new().operation_timeout(Some(Duration::from_secs(10))) }
    }

    pub(super) async fn make(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        self.client.create_topics([&new], &self.options).await.expect("asks")[0].as_ref().expect("makes the topic");
    }

    pub(super) async fn delete(&self, topic: &str) {
        self.client.delete_topics(&[topic], &self.options).await.expect("asks")[0].as_ref().expect("deletes the topic");
    }

    pub(super) async fn widen(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        self.client.create_partitions([&new], &self.options).await.expect("asks")[0].as_ref().expect("adds partitions");
    }

    /// Deletes the records of a partition below an offset, as retention does.
    pub(super) async fn expire(&self, topic: &str, partition: u32, below: Offset) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, At::Offset(below as i64)).expect("an offset");
        let deleted = self.client.delete_records(&list, &self.options).await.expect("asks");
        deleted.elements()[0].error().expect("deletes records");
    }
}

/// A broker of its own, which ends with the value.
pub(super) struct Broker {
    folder: tempfile::TempDir,
    pub(super) address: String,
}

impl Broker {
    /// Starts a broker, if there are to be any in this run.
    pub(super) fn start() -> Option<Broker> {
        brokers()?;
        let folder = tempfile::tempdir().expect("a folder");
        let address = kafka(&["start", text(folder.path())]);
        Some(Broker { folder, address })
    }

    /// Ends the broker at once, as a crash does.
    pub(super) fn kill(&self) {
        self.signal("-KILL");
    }

    /// Stops the broker, and lets it go on.
    pub(super) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(super) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Starts the broker again after a kill, with its address and its records.
    pub(super) fn start_again(&self) {
        assert_eq!(kafka(&["start", text(self.folder.path())]), self.address);
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("1.pid")).expect("the broker's pid");
        let sent = Command::new("kill").args([signal, pid.trim()]).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        kafka(&["stop", text(self.folder.path())]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a folder whose name is text")
}

fn kafka(arguments: &[&str]) -> String {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "deploy", "kafka.sh"].iter().collect();
    let output = Command::new(script).args(arguments).output().expect("the script runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
