//! Brokers that the library forgot. librdkafka drops each broker that an answer about the cluster does not name (since 2.10), and
//! one that shuts down or starts may name none. If its connection breaks at that moment, the library forgets its bootstrap
//! servers too and is deaf for good (its issue 5301; seen with 2.12.1, after about every twelfth orderly restart of a single
//! broker). So each client that appends or reads counts its brokers, and is given the servers again when there are none.

use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::Statistics;
use rdkafka::client::{Client, ClientContext};

use super::native;

/// How often a client says which brokers it has: a setting of the library.
pub(super) const COUNT_EVERY: (&str, &str) = ("statistics.interval.ms", "2000");

/// Whether a client has brokers left.
#[derive(Debug, Default)]
pub(super) struct Brokers {
    are_forgotten: AtomicBool,
}

impl Brokers {
    /// Takes what the client says of itself.
    pub(super) fn count(&self, statistics: &Statistics) {
        // Those that it was told of or learned; the others are roles that a broker may have, and one that stands for none.
        let is_one = |source: &str| source == "configured" || source == "learned";
        let has_one = statistics.brokers.values().any(|broker| is_one(&broker.source));
        self.are_forgotten.store(!has_one, Ordering::Relaxed);
    }

    /// Gives a client that has none the bootstrap servers; to be called now and then.
    pub(super) fn bring_back<C: ClientContext>(&self, client: &Client<C>, servers: &str) {
        if self.are_forgotten.swap(false, Ordering::Relaxed) {
            tracing::warn!(servers, "the Kafka client has lost all its brokers; it reconnects to the bootstrap servers");
            native::add_brokers(client, servers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forgotten(sources: &[&str]) -> bool {
        let mut statistics = Statistics::default();
        for source in sources {
            let broker = rdkafka::statistics::Broker { source: (*source).to_owned(), ..Default::default() };
            statistics.brokers.insert((*source).to_owned(), broker);
        }
        let brokers = Brokers::default();
        brokers.count(&statistics);
        brokers.are_forgotten.load(Ordering::Relaxed)
    }

    #[test]
    fn a_client_without_a_real_broker_has_forgotten_them() {
        assert!(forgotten(&[]));
        assert!(forgotten(&["internal", "logical"]));
        assert!(!forgotten(&["internal", "configured"]));
        assert!(!forgotten(&["learned"]));
    }
}
