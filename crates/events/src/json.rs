//! Clients' own JSON: kept as text, byte for byte, and checked against what Postgres and every reader can hold.

mod prune;
mod walk;

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::rejection::{Code, Rejection};
use crate::rules::limits;

pub use prune::{Fate, Place, scalar, scalars};
pub use walk::{mend_texts, null_not_numbers, places};

/// A JSON object as text.
///
/// One made by [`JsonObject::parse`] keeps the limits of [`limits`]: no U+0000, no half surrogate pair, no key twice in
/// one object, no number beyond a float's range. One that is deserialised is a record of the log, written by a collector.
#[derive(Clone, Debug)]
pub struct JsonObject(Box<RawValue>);

impl JsonObject {
    /// Checks a text. `field` is what the client calls the object, for the rejection.
    /// # Errors
    /// The first fault, with its place inside the object, such as `properties.cart[3].price`.
    pub fn parse(text: String, field: &str) -> Result<Self, Rejection> {
        let raw = RawValue::from_string(text)
            .map_err(|error| Rejection::new(Code::InvalidJson, field, format!("not valid JSON: {error}")))?;
        check(&raw, field)?;
        Ok(JsonObject(raw))
    }

    /// Checks a value that was parsed as JSON before.
    /// # Errors
    /// Those of [`JsonObject::parse`].
    pub fn of_value(value: &RawValue, field: &str) -> Result<Self, Rejection> {
        check(value, field)?;
        Ok(JsonObject(value.to_owned()))
    }

    /// Returns the text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Returns the object with a member of ours at its end. A member of the client's that has its name stays, under the name
    /// with [`CLIENT_PREFIX`] before it. `value` is serialised, so the result is valid JSON.
    /// # Errors
    /// Those of serialising `value`.
    pub fn annotated<T: Serialize>(existing: Option<Self>, key: &str, value: &T) -> serde_json::Result<Self> {
        let existing = match existing {
            Some(object) => object.without_name(key)?,
            None => "{}".to_owned(),
        };
        // Exactly one brace: what stands before it may be the end of a nested object.
        let head = existing.trim_end().strip_suffix('}').unwrap_or(&existing).trim_end();
        let comma = if head == "{" { "" } else { "," };
        let member = format!("{}:{}", serde_json::to_string(key)?, serde_json::to_string(value)?);
        RawValue::from_string(format!("{head}{comma}{member}}}")).map(JsonObject)
    }

    /// Returns the text, in which no member of the object itself has this name.
    fn without_name(&self, name: &str) -> serde_json::Result<String> {
        let Members(mut members) = serde_json::from_str(self.get())?;
        if members.iter().all(|(Key(key), _)| key != name) {
            return Ok(self.get().to_owned());
        }
        let mut free = format!("{CLIENT_PREFIX}{name}");
        while members.iter().any(|(Key(key), _)| *key == free) {
            free.insert_str(0, CLIENT_PREFIX);
        }
        let mut text = String::with_capacity(self.get().len() + free.len());
        for (Key(key), value) in &mut members {
            if key == name {
                *key = Cow::Borrowed(&free);
            }
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&serde_json::to_string(key)?);
            text.push(':');
            text.push_str(value.get());
        }
        text.push('}');
        Ok(text)
    }
}

/// Checks that a value is an object within the limits.
fn check(raw: &RawValue, field: &str) -> Result<(), Rejection> {
    if !raw.get().starts_with('{') {
        return Err(Rejection::new(Code::WrongType, field, "found a JSON value that is not an object; an object is accepted"));
    }
    let mut check = Check { text: raw.get(), at: 0, keys: 0, path: Vec::new() };
    check.value(1).map_err(|(code, message)| Rejection::new(code, check.place(field), message))
}

/// Stands before the name of a client's property that has the name of an annotation of ours, such as `truncated`.
const CLIENT_PREFIX: &str = "client_";

/// The members of an object in their order, those that stand twice included; values as the client wrote them.
#[derive(Clone, Debug)]
pub struct Members<'a>(pub Vec<(Key<'a>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Members<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// A key, borrowed where it has no escape.
#[derive(Clone, Debug)]
pub struct Key<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

impl PartialEq for JsonObject {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for JsonObject {}

impl fmt::Display for JsonObject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.get())
    }
}

impl Serialize for JsonObject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        if raw.get().starts_with('{') { Ok(JsonObject(raw)) } else { Err(serde::de::Error::custom("expected a JSON object")) }
    }
}

type Fault = (Code, String);

enum Step<'a> {
    Key(Cow<'a, str>),
    Index(usize),
}

/// Walks a text that is known to be valid JSON.
struct Check<'a> {
    text: &'a str,
    at: usize,
    keys: usize,
    path: Vec<Step<'a>>,
}

impl<'a> Check<'a> {
    fn value(&mut self, depth: usize) -> Result<(), Fault> {
        match self.peek() {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(limits::STRING_BYTES_MAX, Code::StringTooLong).map(|_| ()),
            b'-' | b'0'..=b'9' => self.number(),
            _ => {
                // true, false, null
                self.at += self.rest().bytes().take_while(u8::is_ascii_lowercase).count();
                Ok(())
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), Fault> {
        self.deeper(depth)?;
        let mut keys: Vec<Cow<'a, str>> = Vec::new();
        self.at += 1;
        while self.peek() != b'}' {
            let key = self.string(limits::KEY_BYTES_MAX, Code::KeyTooLong)?;
            self.keys += 1;
            if self.keys > limits::KEYS_MAX {
                return Err((Code::TooManyKeys, format!("more than {} keys in one event", limits::KEYS_MAX)));
            }
            self.path.push(Step::Key(key.clone()));
            if keys.contains(&key) {
                return Err((Code::DuplicateKey, "the key occurs twice in its object; once is accepted".into()));
            }
            keys.push(key);
            self.skip(b':');
            self.value(depth + 1)?;
            self.path.pop();
            self.skip(b',');
        }
        self.at += 1;
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), Fault> {
        self.deeper(depth)?;
        self.at += 1;
        let mut length = 0;
        while self.peek() != b']' {
            if length == limits::ARRAY_LENGTH_MAX {
                return Err((Code::ArrayTooLong, format!("more than {length} elements in one array")));
            }
            self.path.push(Step::Index(length));
            self.value(depth + 1)?;
            self.path.pop();
            self.skip(b',');
            length += 1;
        }
        self.at += 1;
        Ok(())
    }

    fn deeper(&self, depth: usize) -> Result<(), Fault> {
        if depth <= limits::DEPTH_MAX {
            return Ok(());
        }
        Err((Code::TooDeep, format!("nested more than {} levels deep", limits::DEPTH_MAX)))
    }

    fn string(&mut self, bytes_max: usize, too_long: Code) -> Result<Cow<'a, str>, Fault> {
        self.peek();
        let start = self.at;
        let mut end = start + 1;
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        while bytes[end] != b'"' {
            let escape = bytes[end] == b'\\';
            escaped |= escape;
            end += if escape { 2 } else { 1 };
        }
        self.at = end + 1;
        let decoded: Cow<'a, str> = if escaped {
            let decoded: String = serde_json::from_str(&self.text[start..=end])
                .map_err(|_| (Code::BadUnicode, "a \\u escape is half of a surrogate pair".to_owned()))?;
            Cow::Owned(decoded)
        } else {
            Cow::Borrowed(&self.text[start + 1..end])
        };
        if decoded.len() > bytes_max {
            return Err((too_long, format!("{} bytes; at most {bytes_max} are accepted", decoded.len())));
        }
        if decoded.contains('\0') {
            return Err((Code::NulByte, "contains the character U+0000, which cannot be stored".into()));
        }
        Ok(decoded)
    }

    /// Refuses what neither `f64` nor Postgres' `numeric` holds; between them the digits are kept as text.
    fn number(&mut self) -> Result<(), Fault> {
        let number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let length = self.rest().bytes().take_while(number).count();
        let text = &self.rest()[..length];
        let exponent = text.split_once(['e', 'E']).map_or(Some(0), |(_, exponent)| exponent.parse::<i32>().ok());
        let finite = text.parse::<f64>().is_ok_and(f64::is_finite);
        if !finite || length > limits::NUMBER_BYTES_MAX || exponent.is_none_or(|exponent| exponent < -308) {
            let shown: String = text.chars().take(40).collect();
            let accepted = format!("numbers of up to {} characters within the range of a float", limits::NUMBER_BYTES_MAX);
            return Err((Code::NumberOutOfRange, format!("found {shown}; {accepted} are accepted")));
        }
        self.at += length;
        Ok(())
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips white space and returns the byte after it; a valid text has one wherever this is asked.
    fn peek(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        while bytes[self.at].is_ascii_whitespace() {
            self.at += 1;
        }
        bytes[self.at]
    }

    fn skip(&mut self, byte: u8) {
        if self.peek() == byte {
            self.at += 1;
        }
    }

    fn place(&self, field: &str) -> String {
        let mut place = field.to_owned();
        for step in &self.path {
            match step {
                Step::Key(key) => {
                    place.push('.');
                    place.extend(key.chars().take(64));
                }
                Step::Index(index) => place.push_str(&format!("[{index}]")),
            }
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: Result<(), (Code, &str)>) {
        let found = JsonObject::parse(text.to_owned(), "properties");
        match (found, expected) {
            (Ok(object), Ok(())) => assert_eq!(object.get(), text),
            (Err(rejection), Err((code, field))) => {
                assert_eq!((rejection.code, rejection.field.as_str()), (code, field), "{text:.80}: {}", rejection.message);
            }
            (found, expected) => panic!("{text:.80}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_is_kept_and_what_is_refused() {
        check("{}", Ok(()));
        check(r#"{"a":[1,2.5e3,-0.0,true,null,"x\u00e9\n"], "__proto__" : {"":{}} }"#, Ok(()));
        check(r#"{"a":18446744073709551616}"#, Ok(()));
        check("[1]", Err((Code::WrongType, "properties")));
        check("{", Err((Code::InvalidJson, "properties")));
        check(r#"{"a":NaN}"#, Err((Code::InvalidJson, "properties")));
        check(r#"{"a":{"b":1,"c":2,"\u0062":3}}"#, Err((Code::DuplicateKey, "properties.a.b")));
        check(r#"{"a":["x","\u0000"]}"#, Err((Code::NulByte, "properties.a[1]")));
        check(r#"{"\u0000":1}"#, Err((Code::NulByte, "properties")));
        check(r#"{"a":"\ud800"}"#, Err((Code::BadUnicode, "properties.a")));
        check(r#"{"a":"\udc00\ud800"}"#, Err((Code::BadUnicode, "properties.a")));
        check(r#"{"a":1e309}"#, Err((Code::NumberOutOfRange, "properties.a")));
        check(r#"{"a":1e-309}"#, Err((Code::NumberOutOfRange, "properties.a")));
        check(r#"{"a":1e-99999999999}"#, Err((Code::NumberOutOfRange, "properties.a")));
    }

    /// Each limit at its last accepted value and one beyond.
    #[test]
    fn limits_at_n_and_beyond() {
        let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        check(&nested(limits::DEPTH_MAX), Ok(()));
        let place = format!("properties{}", ".a".repeat(limits::DEPTH_MAX));
        check(&nested(limits::DEPTH_MAX + 1), Err((Code::TooDeep, &place)));

        let keyed = |keys: usize| format!("{{{}}}", (0..keys).map(|n| format!("\"{n}\":1")).collect::<Vec<_>>().join(","));
        check(&keyed(limits::KEYS_MAX), Ok(()));
        check(&keyed(limits::KEYS_MAX + 1), Err((Code::TooManyKeys, "properties")));

        let listed = |length: usize| format!("{{\"a\":[{}]}}", vec!["1"; length].join(","));
        check(&listed(limits::ARRAY_LENGTH_MAX), Ok(()));
        check(&listed(limits::ARRAY_LENGTH_MAX + 1), Err((Code::ArrayTooLong, "properties.a")));

        let text = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length));
        check(&text(limits::STRING_BYTES_MAX), Ok(()));
        check(&text(limits::STRING_BYTES_MAX + 1), Err((Code::StringTooLong, "properties.a")));

        let key = |length: usize| format!("{{\"{}\":1}}", "k".repeat(length));
        check(&key(limits::KEY_BYTES_MAX), Ok(()));
        check(&key(limits::KEY_BYTES_MAX + 1), Err((Code::KeyTooLong, "properties")));

        let digits = |length: usize| format!("{{\"a\":{}}}", "1".repeat(length));
        check(&digits(limits::NUMBER_BYTES_MAX), Ok(()));
        check(&digits(limits::NUMBER_BYTES_MAX + 1), Err((Code::NumberOutOfRange, "properties.a")));
    }

    #[test]
    fn an_annotation_stands_at_the_end_and_beside_the_clients_own_members() {
        let check = |text: Option<&str>, expected: &str| {
            let object = text.map(|text| JsonObject::parse(text.to_owned(), "").expect("valid"));
            let object = JsonObject::annotated(object, "t", &["a"]).expect("serialises");
            assert_eq!(object.get(), expected);
        };
        check(None, r#"{"t":["a"]}"#);
        check(Some("{ }"), r#"{"t":["a"]}"#);
        check(Some(r#"{"a":1} "#), r#"{"a":1,"t":["a"]}"#);
        check(Some(r#"{"a":{"b":{}} }"#), r#"{"a":{"b":{}},"t":["a"]}"#);
        check(Some(r#"{"a":{"b":{}}}"#), r#"{"a":{"b":{}},"t":["a"]}"#);
        check(Some(r#"{"a":"}}"}"#), r#"{"a":"}}","t":["a"]}"#);
        check(Some(r#"{ "t" : {"t":1}, "b": 2 }"#), r#"{"client_t":{"t":1},"b":2,"t":["a"]}"#);
        check(Some(r#"{"\u0074":1,"client_t":2}"#), r#"{"client_client_t":1,"client_t":2,"t":["a"]}"#);
    }

    fn any_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_filter("JSON has no NaN", |x| x.is_finite()).prop_map(Into::into),
            ".{0,20}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
                prop::collection::hash_map(".{0,8}", inner, 0..8).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        /// The walk ends at the end of whatever serde_json writes, compact or pretty, and finds the same faults.
        #[test]
        fn any_valid_json_is_walked_to_its_end(value in any_json(), pretty: bool) {
            let object = serde_json::json!({ "a": value });
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let text = text.expect("serialises");
            let mut check = Check { text: &text, at: 0, keys: 0, path: Vec::new() };
            match check.value(1) {
                Ok(()) => prop_assert_eq!(check.at, text.len()),
                Err((code, _)) => prop_assert!(matches!(code, Code::NulByte | Code::NumberOutOfRange), "{:?}", code),
            }
        }

        /// Whatever the client's object holds, annotated it is valid, and nothing of it is lost.
        #[test]
        fn any_object_is_annotated(value in any_json(), other in ".{0,8}", pretty: bool) {
            let object = serde_json::json!({ "a": value, (other.as_str()): value });
            let text = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) };
            let object = JsonObject(RawValue::from_string(text.expect("serialises")).expect("valid"));
            // As it is read, since reading a float may round it.
            let sent: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object.get()).expect("valid");
            let annotated = JsonObject::annotated(Some(object), "a", &1).expect("annotates");
            let found: serde_json::Map<String, serde_json::Value> = serde_json::from_str(annotated.get()).expect("valid");
            prop_assert_eq!(&found["a"], &serde_json::json!(1));
            let renamed = if other == "client_a" { "client_client_a" } else { "client_a" };
            prop_assert_eq!(&found[renamed], &sent["a"]);
            prop_assert!(other == "a" || found[other.as_str()] == sent[other.as_str()]);
        }
    }
}
