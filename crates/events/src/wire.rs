//! The bytes in the log.
//!
//! One record is one JSON text without a line break of its own making: `{"v":1,"event":{..}}`. The event's members are the
//! fields of [`Event`] under their names there; absent means null, false, or no member at all. Times are integers,
//! microseconds since 1970-01-01T00:00:00Z; ids are hyphenated UUIDs; `value` is a decimal in a string; `details` is
//! `{"impression":{..}}`, `{"conversion":{..}}`, `"campaign_event"`, `"engagement"` or `{"identity":{..}}`; `metadata` is the client's own object.
//! The record's key is the user id, 36 lowercase ASCII bytes.
//!
//! Version 2 is `{"v":2,"rejected":{..}}`: an event that was refused on an SDK's route, with the fields of [`RejectedEvent`] and its own id as
//! the key. Events go on being written as version 1.
//!
//! A reader ignores members it does not know. A change that an old reader must not ignore raises `v`.

mod encode;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::event::{Event, ProjectId, UserId};
use crate::rejected::RejectedEvent;
use crate::time::Micros;

/// The newest version that [`read`] reads.
pub const VERSION: u32 = 2;
/// The version of events, which [`Record::encode`] writes.
const EVENT: u32 = 1;
/// How a record of that version begins.
const EVENT_BEGINS: &[u8] = b"{\"v\":1,\"event\":";
/// The version of rejected events, which [`Record::of_rejected`] writes.
const REJECTED: u32 = 2;

/// What a record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are events, and each would be allocated for the sake of the others")]
pub enum Entry {
    /// An event.
    Event(Event),
    /// One that was refused.
    Rejected(RejectedEvent),
}

impl Entry {
    /// Returns the key of its record.
    pub fn key(&self) -> UserId {
        match self {
            Entry::Event(event) => event.user_id,
            Entry::Rejected(rejected) => UserId(rejected.id.0),
        }
    }

    /// Returns whose it is.
    pub fn project_id(&self) -> ProjectId {
        match self {
            Entry::Event(event) => event.project_id,
            Entry::Rejected(rejected) => rejected.project_id,
        }
    }

    /// Returns when it was received.
    pub fn received_at(&self) -> Micros {
        match self {
            Entry::Event(event) => event.received_at,
            Entry::Rejected(rejected) => rejected.received_at,
        }
    }
}

/// What a log stores: bytes, and the key that says where. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    key: UserId,
    bytes: Bytes,
}

#[derive(Serialize)]
struct WrittenRejected<'a> {
    v: u32,
    rejected: &'a RejectedEvent,
}

#[derive(Deserialize)]
struct Read {
    v: u32,
    event: Option<Event>,
    rejected: Option<RejectedEvent>,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Record {
    /// Encodes an event, once and for ever: spool and replay reuse the bytes.
    pub fn encode(event: &Event) -> Self {
        Encoder::new(1).event(event)
    }

    /// Encodes an event that was refused.
    pub fn of_rejected(rejected: &RejectedEvent) -> Self {
        let record = WrittenRejected { v: REJECTED, rejected };
        // Serialising fails for maps with keys other than strings and for failing writers; there are neither.
        let bytes = serde_json::to_vec(&record).expect("a record is JSON, and a Vec takes every byte");
        Record { key: UserId(rejected.id.0), bytes: bytes.into() }
    }

    /// Takes the original bytes of a record, to append them again.
    /// # Errors
    /// [`DecodeError`] if they are no record of ours: without its key a record has no log partition.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let key = read(&bytes)?.key();
        Ok(Record { key, bytes })
    }

    /// Returns the key.
    pub fn key(&self) -> UserId {
        self.key
    }

    /// Returns the bucket of the key.
    pub fn bucket(&self) -> Bucket {
        Bucket::of(self.key)
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Encodes the events of one request. Their records share memory, which is free when the last of them is.
#[derive(Debug)]
pub struct Encoder {
    /// The record that is being written, which says how much memory it takes.
    record: Vec<u8>,
    memory: BytesMut,
    /// How many records are still expected.
    left: usize,
}

/// Bytes of most records: more than this the system's allocator gives less quickly.
const RECORD_BYTES: usize = 1000;
/// Bytes that an encoder takes at a time, unless fewer are expected, or a record is larger.
const MEMORY_BYTES: usize = 64 * 1024;

impl Encoder {
    /// Begins, for about so many events.
    pub fn new(events: usize) -> Self {
        Encoder { record: Vec::with_capacity(RECORD_BYTES), memory: BytesMut::new(), left: events }
    }

    /// Encodes one event, once and for ever.
    pub fn event(&mut self, event: &Event) -> Record {
        self.record.clear();
        self.record.extend_from_slice(EVENT_BEGINS);
        encode::event(event, &mut self.record);
        self.record.push(b'}');
        let bytes = self.record.len();
        if self.memory.capacity() < bytes {
            // The others will be of about the same size.
            self.memory = BytesMut::with_capacity(bytes.saturating_mul(self.left.max(1)).min(MEMORY_BYTES).max(bytes));
        }
        self.left = self.left.saturating_sub(1);
        self.memory.extend_from_slice(&self.record);
        Record { key: event.user_id, bytes: self.memory.split().freeze() }
    }
}

/// Why bytes are not an event of this version.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of Weir. This version cannot say what it means, so nothing may be read past it.
    #[error("record version {0}; this build reads versions up to {VERSION}")]
    UnknownVersion(u32),
    /// No record of any version. It becomes a dead letter.
    #[error("not an event: {0}")]
    NotAnEvent(serde_json::Error),
}

/// Decodes a record's bytes.
/// # Errors
/// [`DecodeError`]; the bytes are untrusted, other programs may write to a Kafka topic.
pub fn read(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let bad = |reason: &str| DecodeError::NotAnEvent(serde::de::Error::custom(reason));
    // Of a text whose bytes are known to be UTF-8 no string is looked at for that again.
    let parsed = std::str::from_utf8(bytes).map_or_else(|_| serde_json::from_slice::<Read>(bytes), serde_json::from_str);
    match parsed {
        Ok(Read { v: EVENT, event, .. }) => event.map(Entry::Event).ok_or_else(|| bad("missing field `event`")),
        Ok(Read { v: REJECTED, rejected, .. }) => match rejected {
            Some(rejected) if rejected.is_sound() => Ok(Entry::Rejected(rejected)),
            Some(_) => Err(bad("a rejected event with a text or time that no collector writes")),
            None => Err(bad("missing field `rejected`")),
        },
        Ok(read) => Err(DecodeError::UnknownVersion(read.v)),
        Err(error) => match serde_json::from_slice::<Version>(bytes) {
            Ok(Version { v }) if !matches!(v, EVENT | REJECTED) => Err(DecodeError::UnknownVersion(v)),
            _ => Err(DecodeError::NotAnEvent(error)),
        },
    }
}

/// Decodes the bytes of a record that is an event.
/// # Errors
/// Those of [`read`], and `NotAnEvent` for a rejected one.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    match read(bytes)? {
        Entry::Event(event) => Ok(event),
        Entry::Rejected(_) => Err(DecodeError::NotAnEvent(serde::de::Error::custom("a rejected event"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::limits;
    use crate::testing;

    #[test]
    fn encode_and_decode_are_inverse() {
        for event in testing::one_of_each_kind() {
            let record = Record::encode(&event);
            assert_eq!(decode(record.bytes()).expect("decodes"), event);
            assert_eq!(record.key(), event.user_id);
            assert_eq!(Record::from_bytes(record.bytes().clone()).expect("decodes"), record);
        }
    }

    #[test]
    fn records_of_one_encoder_are_those_of_single_ones() {
        let events: Vec<_> = testing::one_of_each_kind().into_iter().cycle().take(1_000).collect();
        for expected in [0, 1, 7, 1_000] {
            let mut encoder = Encoder::new(expected);
            let records: Vec<_> = events.iter().map(|event| encoder.event(event)).collect();
            assert!(records.iter().zip(&events).all(|(record, event)| *record == Record::encode(event)), "{expected}");
        }
    }

    /// Golden bytes: other programs read them from Kafka, and old records are read for as long as they are kept.
    #[test]
    fn bytes_of_version_1_never_change() {
        for event in testing::one_of_each_kind() {
            let found = String::from_utf8(Record::encode(&event).bytes().to_vec()).expect("JSON is UTF-8");
            let file = format!("{}/testdata/wire/v1/{}.json", env!("CARGO_MANIFEST_DIR"), event.kind().as_str());
            let golden = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(found, golden.trim_end(), "{file}");
        }
    }

    #[test]
    fn other_bytes_are_refused() {
        let check = |bytes: &[u8], expected: &str| {
            let error = decode(bytes).expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check(b"", "not an event: ");
        check(b"\xff\xfe", "not an event: ");
        check(br#"{"v":1,"event":{}}"#, "not an event: missing field `project_id`");
        check(br#"{"v":3,"event":"something new"}"#, "record version 3; this build reads versions up to 2");
        check(br#"{"v":2,"event":"something new"}"#, "not an event: ");
        check(br#"{"v":2}"#, "not an event: missing field `rejected`");
        check(br#"{"event":{}}"#, "not an event: ");
        // What looks like an event of version 1 may mean something else in a newer version.
        for event in testing::one_of_each_kind() {
            let bytes = Record::encode(&event).bytes().to_vec();
            let newer = String::from_utf8(bytes).expect("JSON is UTF-8").replacen("{\"v\":1,", "{\"v\":3,", 1);
            check(newer.as_bytes(), "record version 3; this build reads versions up to 2");
        }
    }

    /// Golden bytes of version 2.
    #[test]
    fn a_rejected_event_comes_back_as_it_was() {
        let fault = crate::Rejection::new(crate::Code::MissingUser, "userId", "found neither");
        let id = testing::generated_id();
        let project = testing::request_context().project;
        let new = |event| RejectedEvent::new(id, project, testing::RECEIVED_AT, "segment", "0011aabbccdd", &fault, event);
        let rejected = new(Some("{\"a\":\"\0\"}"));
        let record = Record::of_rejected(&rejected);
        assert_eq!(
            String::from_utf8(record.bytes().to_vec()).expect("JSON is UTF-8"),
            concat!(
                r#"{"v":2,"rejected":{"id":"019ca000-0000-7000-8000-000000000001","#,
                r#""project_id":"00000000-0000-0000-0000-000000000001","received_at":1772366400000000,"dialect":"segment","#,
                r#""key":"0011aabbccdd","code":"missing_user","field":"userId","message":"found neither","#,
                "\"event\":\"{\\\"a\\\":\\\"\u{fffd}\\\"}\"}}"
            )
        );
        assert_eq!(record.key().0, id.0);
        assert_eq!(read(record.bytes()).expect("decodes"), Entry::Rejected(rejected));
        assert_eq!(Record::from_bytes(record.bytes().clone()).expect("decodes"), record);
        assert!(decode(record.bytes()).is_err());
        // Other programs may write to a topic; what Postgres does not hold is no record.
        let text = String::from_utf8(record.bytes().to_vec()).expect("JSON is UTF-8");
        let long = "x".repeat(limits::NAME_BYTES_MAX + 1);
        let changes = [
            ("\u{fffd}", "\\u0000"),
            ("segment", long.as_str()),
            ("missing_user", "\\u0000"),
            ("1772366400000000", "253402300800000000"),
        ];
        for (from, to) in changes {
            let changed = text.replacen(from, to, 1);
            assert!(matches!(read(changed.as_bytes()), Err(DecodeError::NotAnEvent(_))), "{changed}");
        }
        let long = "é".repeat(40_000);
        assert_eq!(new(Some(&long)).event.map(|event| event.len()), Some(64 * 1024));
        assert_eq!(new(None).event, None);
    }
}
