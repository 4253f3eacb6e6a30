//! The bytes in the log.
//!
//! One record is one JSON text without a line break of its own making: `{"v":1,"event":{..}}`. The event's members are the
//! fields of [`Event`] under their names there; absent means null, false, or no member at all. Times are integers,
//! microseconds since 1970-01-01T00:00:00Z; ids are hyphenated UUIDs; `value` is a decimal in a string; `details` is
//! `{"impression":{..}}`, `{"conversion":{..}}`, `"campaign_event"`, `"engagement"` or `{"identity":{..}}`; `metadata` is the client's own object.
//! The record's key is the user id, 36 lowercase ASCII bytes.
//!
//! A reader ignores members it does not know. A change that an old reader must not ignore raises `v`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bucket::Bucket;
use crate::event::{Event, UserId};

/// The version that [`Record::encode`] writes and [`decode`] reads.
pub const VERSION: u32 = 1;

/// What a log stores: bytes, and the key that says where. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    key: UserId,
    bytes: Bytes,
}

#[derive(Serialize)]
struct Written<'a> {
    v: u32,
    event: &'a Event,
}

#[derive(Deserialize)]
struct Read {
    v: u32,
    event: Event,
}

#[derive(Deserialize)]
struct Version {
    v: u32,
}

impl Record {
    /// Encodes an event, once and for ever: spool and replay reuse the bytes.
    pub fn encode(event: &Event) -> Self {
        let written = Written { v: VERSION, event };
        let mut bytes = Vec::with_capacity(512);
        // Serialising fails for maps with keys other than strings and for failing writers; there are neither.
        serde_json::to_writer(&mut bytes, &written).expect("an event is JSON, and a Vec takes every byte");
        Record { key: event.user_id, bytes: bytes.into() }
    }

    /// Takes the original bytes of a record, to append them again.
    /// # Errors
    /// [`DecodeError`] if they are not an event: without its user a record has no log partition.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, DecodeError> {
        let event = decode(&bytes)?;
        Ok(Record { key: event.user_id, bytes })
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

/// Why bytes are not an event of this version.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer version of Weir. This version cannot say what it means, so nothing may be read past it.
    #[error("record version {0}; this build reads version {VERSION}")]
    UnknownVersion(u32),
    /// No record of any version. It becomes a dead letter.
    #[error("not an event: {0}")]
    NotAnEvent(serde_json::Error),
}

/// Decodes a record's bytes.
/// # Errors
/// [`DecodeError`]; the bytes are untrusted, other programs may write to a Kafka topic.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    match serde_json::from_slice::<Read>(bytes) {
        Ok(read) if read.v == VERSION => Ok(read.event),
        Ok(read) => Err(DecodeError::UnknownVersion(read.v)),
        Err(error) => match serde_json::from_slice::<Version>(bytes) {
            Ok(Version { v }) if v != VERSION => Err(DecodeError::UnknownVersion(v)),
            _ => Err(DecodeError::NotAnEvent(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        check(br#"{"v":2,"event":"something new"}"#, "record version 2; this build reads version 1");
        check(br#"{"event":{}}"#, "not an event: ");
        // What looks like an event of version 1 may mean something else in version 2.
        for event in testing::one_of_each_kind() {
            let bytes = Record::encode(&event).bytes().to_vec();
            let newer = String::from_utf8(bytes).expect("JSON is UTF-8").replacen("{\"v\":1,", "{\"v\":2,", 1);
            check(newer.as_bytes(), "record version 2; this build reads version 1");
        }
    }
}
