//! What must hold of the JSON objects in an event, read by a parser of its own.

use std::collections::HashSet;
use std::fmt;

use events::rules::limits::{ARRAY_LENGTH_MAX, DEPTH_MAX, KEY_BYTES_MAX, KEYS_MAX, STRING_BYTES_MAX};
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// What the rules add to an event's metadata at most: three keys and what stands below `repaired_from`, and bytes of a field's place there.
const ANNOTATED_KEYS_MAX: usize = 3 + 32;
const PLACE_BYTES_MAX: usize = 1_024;
/// Bytes that may stand before a key of the client's that has the name of an annotation.
const PREFIX_BYTES_MAX: usize = 64;

/// Looks at an object of the client's.
/// # Panics
/// If it is none that every reader holds.
pub(super) fn check_own(text: &str) {
    read(text, KEYS_MAX, KEY_BYTES_MAX);
}

/// Looks at the metadata of an event.
/// # Panics
/// If it is no object that every reader holds.
pub(super) fn check_annotated(text: &str) {
    read(text, KEYS_MAX + ANNOTATED_KEYS_MAX, PLACE_BYTES_MAX);
    let Ok(Value::Object(members)) = serde_json::from_str::<Value>(text) else { panic!("no object: {text}") };
    // A client's own property may have the name of an annotation where there is none.
    for key in members.keys() {
        assert!(key.len() <= KEY_BYTES_MAX + PREFIX_BYTES_MAX, "{key} of {text}");
    }
}

fn read(text: &str, keys_max: usize, key_bytes_max: usize) {
    assert!(text.starts_with('{'), "no object: {text}");
    let mut keys = 0;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let walk = Walk { depth: 1, keys: &mut keys, key_bytes_max };
    let read = walk.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    read.unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(keys <= keys_max, "{keys} keys: {text}");
    let second = serde_json::from_str::<Value>(text);
    assert!(second.as_ref().is_ok_and(Value::is_object), "{second:?}: {text}");
}

/// Walks a value at some depth, and fails at what a reader does not hold.
struct Walk<'a> {
    depth: usize,
    keys: &'a mut usize,
    key_bytes_max: usize,
}

impl Walk<'_> {
    fn deeper(&mut self) -> Walk<'_> {
        Walk { depth: self.depth + 1, keys: self.keys, key_bytes_max: self.key_bytes_max }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        if number.is_finite() { Ok(()) } else { Err(E::custom("no finite number")) }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match text {
            text if text.contains('\0') => Err(E::custom("U+0000 in a text")),
            text if text.len() > STRING_BYTES_MAX => Err(E::custom("a text that is too long")),
            _ => Ok(()),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut sequence: A) -> Result<(), A::Error> {
        let mut length = 0;
        while sequence.next_element_seed(self.deeper())?.is_some() {
            length += 1;
        }
        match (self.depth <= DEPTH_MAX, length <= ARRAY_LENGTH_MAX) {
            (true, true) => Ok(()),
            (false, _) => Err(A::Error::custom("nested too deeply")),
            (_, false) => Err(A::Error::custom("an array that is too long")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            *self.keys += 1;
            if key.contains('\0') || key.len() > self.key_bytes_max {
                return Err(A::Error::custom("a key that cannot be stored"));
            }
            map.next_value_seed(self.deeper())?;
            if !seen.insert(key) {
                return Err(A::Error::custom("a key twice in one object"));
            }
        }
        if self.depth <= DEPTH_MAX { Ok(()) } else { Err(A::Error::custom("nested too deeply")) }
    }
}
