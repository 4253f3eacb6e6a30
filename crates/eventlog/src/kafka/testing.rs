//! The admin's side of topics, for tests: what operators do to a log over Kafka.
#![allow(clippy::missing_panics_doc)] // Said once, below.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};

use crate::Offset;

/// Changes topics, as an operator does.
pub struct Operator {
    client: AdminClient<DefaultClientContext>,
    producer: BaseProducer,
    options: AdminOptions,
}

impl Operator {
    /// Is one of the cluster that these brokers belong to.
    /// # Panics
    /// As all of it does if the brokers do not do as they are told: a test cannot go on then.
    pub fn of(brokers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        let (client, producer) = (config.create().expect("a client"), config.create().expect("a producer"));
        Operator { client, producer, options: AdminOptions::new().operation_timeout(Some(Duration::from_secs(10))) }
    }

    /// Makes a topic.
    pub async fn make(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        self.client.create_topics([&new], &self.options).await.expect("asks")[0].as_ref().expect("makes the topic");
    }

    /// Deletes a topic.
    pub async fn delete(&self, topic: &str) {
        self.client.delete_topics(&[topic], &self.options).await.expect("asks")[0].as_ref().expect("deletes the topic");
    }

    /// Adds partitions, up to a number.
    pub async fn widen(&self, topic: &str, partitions: usize) {
        let new = NewPartitions::new(topic, partitions);
        self.client.create_partitions([&new], &self.options).await.expect("asks")[0].as_ref().expect("adds partitions");
    }

    /// Deletes the records of a partition below an offset, as retention does.
    pub async fn expire(&self, topic: &str, partition: u32, below: Offset) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, At::Offset(below as i64)).expect("an offset");
        let deleted = self.client.delete_records(&list, &self.options).await.expect("asks");
        deleted.elements()[0].error().expect("deletes records");
    }

    /// Appends records of whatever bytes to a partition, as any program may that reaches the brokers.
    pub fn produce(&self, topic: &str, partition: u32, payloads: &[&[u8]]) {
        for payload in payloads {
            let record = BaseRecord::<(), [u8]>::to(topic).partition(partition as i32).payload(payload);
            self.producer.send(record).map_err(|(error, _)| error).expect("sends");
        }
        self.producer.flush(Duration::from_secs(10)).expect("the broker takes them");
    }
}
