//! The members of a JSON object as they are written, and the typed reading of one value.

use compact_str::CompactString;
use std::borrow::Cow;

use events::json::{Key, Members};
use events::{ClaimedTime, Code, JsonObject, Micros, Rejection, money};
use serde_json::value::RawValue;

/// A value as the client wrote it. Only its type is known; nothing else is validated.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// Valid JSON.
    Json(&'a RawValue),
    /// The text of a parameter; it may be a value of any type.
    Parameter(Cow<'a, str>),
}

/// One member of an object, or one parameter of a query.
#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) value: Value<'a>,
}

/// Reads the members of a JSON object in their order, those that stand twice included.
/// # Errors
/// `invalid_json` for another value, `bad_unicode` for half of a surrogate pair in a key.
pub(super) fn members<'a>(raw: &'a RawValue) -> Result<Vec<Member<'a>>, Rejection> {
    if !raw.get().starts_with('{') {
        return Err(Rejection::new(Code::InvalidJson, "", format!("found {}; an object is accepted", found(raw))));
    }
    // The body was parsed as JSON before, so only escapes in keys can be invalid: they were not decoded then.
    let member = |(Key(key), value)| Member { key, value: Value::Json(value) };
    serde_json::from_str::<Members<'a>>(raw.get())
        .map(|members| members.0.into_iter().map(member).collect())
        .map_err(|_| Rejection::new(Code::BadUnicode, "", "a key has a \\u escape that is half of a surrogate pair"))
}

impl<'a> Value<'a> {
    /// Returns whether there is no value: `null`, or an empty parameter, which templates write for it.
    pub(super) fn is_absent(&self) -> bool {
        match self {
            Value::Json(raw) => raw.get() == "null",
            Value::Parameter(text) => text.is_empty(),
        }
    }

    /// Reads a text.
    pub(super) fn text(&self, field: &str) -> Result<CompactString, Rejection> {
        match self {
            Value::Json(raw) if raw.get().starts_with('"') => string(raw, field),
            Value::Json(raw) => Err(wrong_type(raw, field, "a string")),
            Value::Parameter(text) => Ok(text.as_ref().into()),
        }
    }

    /// Reads a text, or the digits of a number as they stand: ids that some clients keep as numbers.
    pub(super) fn text_or_number(&self, field: &str) -> Result<CompactString, Rejection> {
        match self {
            Value::Json(raw) if is_number(raw) => Ok(raw.get().into()),
            _ => self.text(field).map_err(|mut fault| {
                fault.message = fault.message.replace("a string is accepted", "a string or a number is accepted");
                fault
            }),
        }
    }

    /// Reads a decimal: that of a number, which is a double, or the digits of a string as they are.
    pub(super) fn decimal(&self, field: &str) -> Result<CompactString, Rejection> {
        match self {
            Value::Json(raw) if is_number(raw) => Ok(money::of_json_number(raw.get()).into()),
            Value::Json(raw) if raw.get().starts_with('"') => string(raw, field),
            Value::Json(raw) => Err(wrong_type(raw, field, "a number, or a string such as \"19.90\",")),
            Value::Parameter(text) => Ok(text.as_ref().into()),
        }
    }

    /// Reads true or false.
    pub(super) fn boolean(&self, field: &str) -> Result<bool, Rejection> {
        match self {
            Value::Json(raw) => match raw.get() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(wrong_type(raw, field, "true or false")),
            },
            Value::Parameter(text) => match text.as_ref() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => {
                    let message = format!("found {:?}; true or false is accepted", cut(text));
                    Err(Rejection::new(Code::WrongType, field, message))
                }
            },
        }
    }

    /// Reads a whole number; the rules check its range.
    pub(super) fn whole(&self, field: &str) -> Result<i32, Rejection> {
        let digits = match self {
            Value::Json(raw) if is_number(raw) => raw.get(),
            Value::Json(raw) => return Err(wrong_type(raw, field, "a whole number")),
            Value::Parameter(text) => text.as_ref(),
        };
        digits.parse().map_err(|_| {
            let message = format!("found {}; whole numbers up to {} are accepted", cut(digits), i32::MAX);
            Rejection::new(Code::BadValue, field, message)
        })
    }

    /// Reads an object with all the limits of `properties`.
    pub(super) fn object(&self, field: &str) -> Result<JsonObject, Rejection> {
        match self {
            Value::Json(raw) if raw.get().starts_with('{') => JsonObject::of_value(raw, field),
            Value::Json(raw) => Err(wrong_type(raw, field, "an object")),
            Value::Parameter(text) => JsonObject::parse(text.to_string(), field),
        }
    }

    /// Reads when an event happened.
    pub(super) fn claimed_time(&self, field: &str) -> Result<ClaimedTime, Rejection> {
        self.time_text(field).map(ClaimedTime::Text)
    }

    /// Reads a point in time.
    pub(super) fn time(&self, field: &str) -> Result<Micros, Rejection> {
        let text = self.time_text(field)?;
        Micros::parse(&text)
            .map_err(|error| Rejection::new(Code::BadTimestamp, field, format!("found {:?}; {error}", cut(&text))))
    }

    fn time_text(&self, field: &str) -> Result<CompactString, Rejection> {
        match self {
            Value::Json(raw) if raw.get().starts_with('"') => string(raw, field),
            // A number could be seconds or milliseconds, and has no time zone.
            Value::Json(raw) => Err(wrong_type(raw, field, "ISO 8601 in a string, such as \"2026-03-01T12:30:00.25Z\",")),
            Value::Parameter(text) => Ok(text.as_ref().into()),
        }
    }

    /// Appends the value to `out` as JSON.
    pub(super) fn write_to(&self, out: &mut String) {
        match self {
            Value::Json(raw) => out.push_str(raw.get()),
            Value::Parameter(text) => write_string(text, out),
        }
    }
}

/// Appends a text to `out` as a JSON string.
pub(super) fn write_string(text: &str, out: &mut String) {
    let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        // Serialising a text fails for no text.
        out.push_str(&serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned()));
    }
}

/// Reads a JSON string. # Errors `bad_unicode`, the only fault that a valid JSON string can have.
pub(super) fn string(raw: &RawValue, field: &str) -> Result<CompactString, Rejection> {
    let text = raw.get();
    if !text.contains('\\') {
        return Ok(text[1..text.len() - 1].into());
    }
    serde_json::from_str(text).map_err(|_| Rejection::new(Code::BadUnicode, field, "a \\u escape is half of a surrogate pair"))
}

/// Returns whether a JSON value is a number.
pub(super) fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

fn wrong_type(raw: &RawValue, field: &str, accepted: &str) -> Rejection {
    Rejection::new(Code::WrongType, field, format!("found {}; {accepted} is accepted", found(raw)))
}

/// Says what a JSON value is, in a few words.
pub(super) fn found(raw: &RawValue) -> String {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => "an object".to_owned(),
        Some(b'[') => "an array".to_owned(),
        Some(b'"') => "a string".to_owned(),
        Some(b't' | b'f' | b'n') => text.to_owned(),
        _ => format!("the number {}", cut(text)),
    }
}

/// Returns the beginning of a client's text: enough to recognise it.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}
