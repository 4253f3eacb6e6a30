//! Takes members out of a client's JSON, and leaves all others as they were written.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::{JsonObject, Key, Members};

/// Where a value stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The key of the object that it is in, directly or in an array; empty at the top.
    pub parent: &'a str,
    /// Its own key; that of the array if it is in one.
    pub key: &'a str,
}

/// What becomes of a value.
#[derive(Debug)]
pub enum Fate {
    /// It stays, and so do its members, unless they have another fate.
    Keep,
    /// It goes, with its key.
    Drop,
    /// Another text stands in its place.
    Text(String),
}

impl JsonObject {
    /// Returns the object without what is to go, by the fate of each of its values, of those within others, too; none if all of it stays.
    pub fn pruned(&self, fate: &mut dyn FnMut(Place<'_>, &RawValue) -> Fate) -> Option<JsonObject> {
        let mut out = String::with_capacity(self.get().len());
        let is_changed = object(self.get(), "", fate, &mut out)?;
        // Members as they were written, with braces and commas between them, are JSON.
        if is_changed { RawValue::from_string(out).ok().map(JsonObject) } else { None }
    }
}

/// Writes an object, and returns whether it differs; none if it is none, which a checked one is not.
fn object(text: &str, parent: &str, fate: &mut dyn FnMut(Place<'_>, &RawValue) -> Fate, out: &mut String) -> Option<bool> {
    let Members(members) = serde_json::from_str(text).ok()?;
    let mut is_changed = false;
    let start = out.len();
    out.push('{');
    for (Key(key), value) in members {
        let before = out.len();
        if before > start + 1 {
            out.push(',');
        }
        out.push_str(&serde_json::to_string(&key).ok()?);
        out.push(':');
        match written(Place { parent, key: &key }, value, fate, out)? {
            Written::Same => {}
            Written::Changed => is_changed = true,
            Written::Gone => {
                out.truncate(before);
                is_changed = true;
            }
        }
    }
    out.push('}');
    Some(is_changed)
}

enum Written {
    Same,
    Changed,
    Gone,
}

/// Writes one value, as it is or as it is to be.
fn written(
    place: Place<'_>,
    raw: &RawValue,
    fate: &mut dyn FnMut(Place<'_>, &RawValue) -> Fate,
    out: &mut String,
) -> Option<Written> {
    match fate(place, raw) {
        Fate::Drop => return Some(Written::Gone),
        Fate::Text(text) => {
            out.push_str(&serde_json::to_string(&text).ok()?);
            return Some(Written::Changed);
        }
        Fate::Keep => {}
    }
    let is_changed = match raw.get().as_bytes().first() {
        Some(b'{') => object(raw.get(), place.key, fate, out)?,
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
            let mut is_changed = false;
            let start = out.len();
            out.push('[');
            for element in elements {
                let before = out.len();
                if before > start + 1 {
                    out.push(',');
                }
                match written(place, element, fate, out)? {
                    Written::Same => {}
                    Written::Changed => is_changed = true,
                    Written::Gone => {
                        out.truncate(before);
                        is_changed = true;
                    }
                }
            }
            out.push(']');
            is_changed
        }
        _ => {
            out.push_str(raw.get());
            false
        }
    };
    Some(if is_changed { Written::Changed } else { Written::Same })
}

/// Returns a text, or the digits of a number; none of other values.
pub fn scalar(raw: &RawValue) -> Option<Cow<'_, str>> {
    match raw.get().as_bytes().first()? {
        b'"' => serde_json::from_str::<String>(raw.get()).ok().map(Cow::Owned),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(raw.get())),
        _ => None,
    }
}

/// Adds to `found` the texts and numbers of a value, of those within it, too.
pub fn scalars(raw: &RawValue, found: &mut HashSet<String>) {
    match raw.get().as_bytes().first() {
        Some(b'{') => {
            let Ok(Members(members)) = serde_json::from_str(raw.get()) else { return };
            members.iter().for_each(|(_, value)| scalars(value, found));
        }
        Some(b'[') => {
            let Ok(elements) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) else { return };
            elements.iter().for_each(|value| scalars(value, found));
        }
        _ => found.extend(scalar(raw).map(Cow::into_owned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_as_it_was_written() {
        let check = |text: &str, expected: Option<&str>| {
            let object = JsonObject::parse(text.to_owned(), "").expect("an object");
            let mut fate = |place: Place<'_>, raw: &RawValue| match (place.parent, place.key) {
                (_, "id") | ("device", "token") => Fate::Drop,
                (_, "url") if raw.get().starts_with('"') => Fate::Text("cut \"".to_owned()),
                _ => Fate::Keep,
            };
            let found = object.pruned(&mut fate);
            assert_eq!(found.as_ref().map(JsonObject::get), expected, "{text}");
        };
        check("{}", None);
        check(r#"{ "a": 1.10, "token":[ {"x": 1} ] }"#, None);
        check(r#"{"id":1}"#, Some("{}"));
        check(r#"{"a":1.10,"id":{"b":2},"c":[ 1 , {"id":2,"d":"é"} ]}"#, Some(r#"{"a":1.10,"c":[1,{"d":"é"}]}"#));
        check(r#"{"id":1,"b":2}"#, Some(r#"{"b":2}"#));
        check(r#"{"token":1,"device":{"token":2,"x":[{"token":3}]}}"#, Some(r#"{"token":1,"device":{"x":[{"token":3}]}}"#));
        check(r#"{"url":["a",1],"\u0069d":1}"#, Some(r#"{"url":["cut \"",1]}"#));
        check(r#"{"id":[],"url":"a"}"#, Some(r#"{"url":"cut \""}"#));
    }

    #[test]
    fn scalars_are_found_at_any_depth() {
        let raw: &RawValue = serde_json::from_str(r#"{"a":["x",{"b":7}],"c":null,"d":true}"#).expect("a constant");
        let mut found = HashSet::new();
        scalars(raw, &mut found);
        assert_eq!(found, HashSet::from(["x".to_owned(), "7".to_owned()]));
    }
}
