//! What a failed append says about its records: surely not there, or perhaps there.

use rdkafka::types::RDKafkaErrorCode::{self, *};

/// Where a record is, after a report of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// In no log. Appending it again, anywhere, stores it once.
    Absent,
    /// Perhaps in the log. Appending it again may store it twice.
    Perhaps,
}

/// Errors of which the library's own mark "was not persisted" is believed: either nothing was sent, or each broker that got
/// the record refused it before storing it. Every other error means perhaps.
const REFUSALS: [RDKafkaErrorCode; 19] = [
    // Never sent: its time was over before, or it was taken back.
    MessageTimedOut,
    PurgeQueue,
    AllBrokersDown,
    UnknownTopic,
    UnknownPartition,
    // The producer gave up, see `Fatal` in the library; what was sent before is marked as such.
    Fatal,
    // Sent, and refused before it was stored.
    MessageSizeTooLarge,
    InvalidMessageSize,
    InvalidRecord,
    PolicyViolation,
    InvalidTopic,
    UnknownTopicOrPartition,
    TopicAuthorizationFailed,
    ClusterAuthorizationFailed,
    NotLeaderForPartition,
    NotEnoughReplicas,
    KafkaStorageError,
    UnknownProducerId,
    InvalidProducerEpoch,
];

/// Judges a report of failure. `is_absent`: the library's mark, which it never takes back once a request with the record was
/// sent and not answered.
pub(super) fn of(code: RDKafkaErrorCode, is_absent: bool) -> Outcome {
    if is_absent && REFUSALS.contains(&code) { Outcome::Absent } else { Outcome::Perhaps }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_refusal_is_certain() {
        for code in REFUSALS {
            assert_eq!(of(code, true), Outcome::Absent, "{code:?}");
            assert_eq!(of(code, false), Outcome::Perhaps, "{code:?}");
        }
        for code in
            [RequestTimedOut, NotEnoughReplicasAfterAppend, OutOfOrderSequenceNumber, PurgeInflight, Fail, BrokerTransportFailure]
        {
            assert_eq!(of(code, true), Outcome::Perhaps, "{code:?}");
        }
    }
}
