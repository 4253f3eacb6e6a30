//! How bodies split into events: an array, or an object with an array among its members. Each event stays as it was written.

use std::fmt;

use events::json::Key;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::EnvelopeFault;

/// What an object holds beside its events: the members of some names, as they are written.
pub(super) struct Object<'a, const N: usize> {
    /// None if there is no list.
    pub(super) events: Option<Vec<&'a RawValue>>,
    /// In the order of the names asked for.
    pub(super) members: [Option<&'a RawValue>; N],
}

/// Reads a body that is an array of events.
/// # Errors
/// [`EnvelopeFault`] if it is none, or has more than `events_max`.
pub(super) fn array(text: &str, events_max: usize) -> Result<Vec<&RawValue>, EnvelopeFault> {
    limited(whole(text, List { events_max })?, events_max)
}

/// Reads a body that is an object, whose events are in the list of one of some names.
/// # Errors
/// [`EnvelopeFault`] if it is none, has two lists, or more than `events_max` events.
pub(super) fn object<'a, const N: usize>(
    text: &'a str,
    lists: &'static [&'static str],
    members: [&'static str; N],
    events_max: usize,
) -> Result<Object<'a, N>, EnvelopeFault> {
    let (events, members) = whole(text, Top { lists, names: members, events_max })?;
    Ok(Object { events: events.map(|events| limited(events, events_max)).transpose()?, members })
}

/// Reads a body that is one event.
/// # Errors
/// [`EnvelopeFault`] if it is no JSON.
pub(super) fn one(text: &str) -> Result<&RawValue, EnvelopeFault> {
    serde_json::from_str(text).map_err(unreadable)
}

/// Says of a list that is missing what would be accepted.
pub(super) fn no_list(list: &str, accepted: &str) -> EnvelopeFault {
    EnvelopeFault::Unreadable(format!("found no `{list}`; {accepted} is accepted"))
}

fn unreadable(error: serde_json::Error) -> EnvelopeFault {
    EnvelopeFault::Unreadable(format!("the body is not valid JSON: {error}"))
}

/// Reads one JSON value that is the whole of a text.
fn whole<'a, S: DeserializeSeed<'a>>(text: &'a str, seed: S) -> Result<S::Value, EnvelopeFault> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut deserializer).map_err(unreadable)?;
    deserializer.end().map_err(unreadable)?;
    Ok(value)
}

fn limited<'a>(found: Found<'a>, events_max: usize) -> Result<Vec<&'a RawValue>, EnvelopeFault> {
    if found.count > events_max { Err(EnvelopeFault::TooManyEvents(found.count)) } else { Ok(found.events) }
}

/// Reads an array, and of its elements no more than accepted: the rest is only counted.
struct List {
    events_max: usize,
}

struct Found<'a> {
    events: Vec<&'a RawValue>,
    count: usize,
}

impl<'de> DeserializeSeed<'de> for List {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List {
    type Value = Found<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array of events")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        let mut found = Found { events: Vec::new(), count: 0 };
        while found.count < self.events_max {
            let Some(event) = seq.next_element()? else { return Ok(found) };
            found.events.push(event);
            found.count += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {
            found.count += 1;
        }
        Ok(found)
    }
}

/// Reads an object: one of its members is a list of events.
struct Top<const N: usize> {
    lists: &'static [&'static str],
    names: [&'static str; N],
    events_max: usize,
}

impl<'de, const N: usize> DeserializeSeed<'de> for Top<N> {
    type Value = (Option<Found<'de>>, [Option<&'de RawValue>; N]);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Top<N> {
    type Value = (Option<Found<'de>>, [Option<&'de RawValue>; N]);

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "an object with `{}`", self.lists[0])
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let (mut events, mut members) = (None, [None; N]);
        while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
            if self.lists.contains(&key.as_ref()) {
                if events.is_some() {
                    return Err(M::Error::custom(format_args!("`{key}` occurs twice")));
                }
                events = Some(map.next_value_seed(List { events_max: self.events_max })?);
            } else if let Some(at) = self.names.iter().position(|name| *name == key) {
                members[at] = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok((events, members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_arrays_are_split_up_to_the_limit() {
        let text = r#" {"a":1,"list":[{"x":[1]}, 2 ],"b":{"list":[]},"c":null} "#;
        let found = object(text, &["events", "list"], ["c", "a", "z"], 2).expect("valid");
        let written = |raw: &&RawValue| raw.get().to_owned();
        assert_eq!(found.events.expect("a list").iter().map(written).collect::<Vec<_>>(), [r#"{"x":[1]}"#, "2"]);
        assert_eq!(found.members.map(|raw| raw.map(RawValue::get)), [Some("null"), Some("1"), None]);
        assert!(matches!(object(text, &["list"], [], 1), Err(EnvelopeFault::TooManyEvents(2))));
        assert!(object(text, &["events"], ["a"], 1).expect("valid").events.is_none());
        assert_eq!(array("[1,2]", 2).expect("valid").len(), 2);
        assert!(matches!(array("[1,2,3]", 2), Err(EnvelopeFault::TooManyEvents(3))));
    }

    #[test]
    fn what_cannot_be_split_is_told() {
        let check = |text: &str, expected: &str| {
            let fault = object(text, &["events", "exposures"], [], 9).err().expect("refused");
            let EnvelopeFault::Unreadable(found) = fault else { panic!("{fault:?}") };
            assert_eq!(found.strip_prefix("the body is not valid JSON: ").expect("says so"), expected);
        };
        check("[]", "invalid type: sequence, expected an object with `events` at line 1 column 0");
        check(r#"{"events":1}"#, "invalid type: integer `1`, expected an array of events at line 1 column 11");
        check(r#"{"events":[],"exposures":[]}"#, "`exposures` occurs twice at line 1 column 24");
        check(r#"{"events":[]} {}"#, "trailing characters at line 1 column 15");
        check(r#"{"events":[NaN]}"#, "expected value at line 1 column 12");
    }
}
