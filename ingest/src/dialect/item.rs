//! The objects of SDKs' events: lenient readings of single members, shared by the dialects.

use compact_str::CompactString;
use std::borrow::Cow;

use events::json::{mend_texts, null_not_numbers, places};
use events::rules::is_placeholder_id;
use events::rules::limits::KEYS_MAX;
use events::{ClaimedTime, Code, Micros, Money, MoneyError, Rejection, Repair, digits, money, repair::Reason};
use serde_json::value::RawValue;

use super::members::{Member, Value, cut, is_number, members};

/// Refuses what the metadata would refuse later, before members are compared with each other.
pub(super) fn few<'a>(members: Vec<Member<'a>>, field: &str) -> Result<Vec<Member<'a>>, Rejection> {
    if members.len() <= KEYS_MAX {
        return Ok(members);
    }
    Err(Rejection::new(
        Code::TooManyKeys,
        field,
        format!("{} keys in one object; at most {KEYS_MAX} are accepted", members.len()),
    ))
}

/// The members of one event, or the parameters that stand for them.
pub(super) struct Item<'a>(pub(super) Vec<Member<'a>>);

impl<'a> Item<'a> {
    /// Reads an event's object.
    /// # Errors
    /// `invalid_json` if it is none, `too_many_keys`, and `duplicate_key`.
    pub(super) fn new(raw: &'a RawValue) -> Result<Self, Rejection> {
        let all = few(members(raw)?, "")?;
        for (at, member) in all.iter().enumerate() {
            if all[..at].iter().any(|earlier| earlier.key == member.key) {
                let message = "the key occurs twice in the event; once is accepted";
                return Err(Rejection::new(Code::DuplicateKey, member.key.as_ref(), message));
            }
        }
        Ok(Item(all))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.iter().find(|member| member.key == key).map(|member| &member.value).filter(|value| !value.is_absent())
    }

    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        match self.get(key) {
            Some(Value::Json(raw)) => Some(raw),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<CompactString>, Rejection> {
        self.get(key).map(|value| value.text(key)).transpose()
    }

    /// A text with something in it, or the digits of a number; anything else is as good as none.
    pub(super) fn any_text(&self, key: &str) -> Option<CompactString> {
        self.get(key).and_then(|value| value.text_or_number(key).ok()).filter(|text| !text.is_empty())
    }

    /// Returns whether a member is an id that is one.
    pub(super) fn names(&self, key: &str) -> bool {
        self.any_text(key).is_some_and(|id| !is_placeholder_id(&id))
    }

    /// An id. Some clients write an empty one, or a bare `false`, where there is none.
    pub(super) fn id(&self, key: &str) -> Result<Option<CompactString>, Rejection> {
        match self.get(key) {
            Some(Value::Json(raw)) if matches!(raw.get(), "true" | "false") => Ok(Some(raw.get().into())),
            Some(value) => Ok(Some(value.text_or_number(key)?).filter(|id| !id.is_empty())),
            None => Ok(None),
        }
    }

    /// The first time of several members that can be read, else what stands in the first that has something: the rules
    /// then say what becomes of it.
    pub(super) fn claimed_time(&self, keys: &[&str]) -> ClaimedTime {
        let texts = keys.iter().filter_map(|key| self.get(key)).map(written);
        let texts: Vec<CompactString> = texts.filter(|text| !text.trim().is_empty()).collect();
        let is_time = |text: &&CompactString| {
            Micros::parse(text).is_ok() || digits::to_ascii(text).is_some_and(|text| Micros::parse(&text).is_ok())
        };
        match texts.iter().find(is_time).or(texts.first()) {
            Some(text) => ClaimedTime::Text(text.clone()),
            None => ClaimedTime::Missing,
        }
    }

    /// A time of sending; one that cannot be read is as good as none.
    pub(super) fn sent_at(&self, keys: &[&str]) -> Option<Micros> {
        keys.iter().find_map(|key| self.get(key)?.time(key).ok())
    }

    /// The `properties` or `traits` of a call; empty if it has none, or PHP's empty array.
    /// # Errors
    /// `wrong_type` for another value than an object.
    pub(super) fn object(&self, key: &'static str, repairs: &mut Vec<Repair>) -> Result<Properties<'a>, Rejection> {
        match self.raw(key) {
            None => Ok(Properties::none(key)),
            Some(raw) if is_empty_array(raw) => {
                repairs.push(Repair::new(Reason::EmptyArray, key));
                Ok(Properties::none(key))
            }
            Some(raw) => Properties::new(key, raw),
        }
    }
}

/// Returns an event as it is read once its texts are mended, in which each member that was refused has a name.
pub(super) fn mended(raw: &RawValue) -> Cow<'_, RawValue> {
    let text = mend_texts(raw.get()).map(|(text, _)| text);
    text.and_then(|text| RawValue::from_string(text).ok()).map_or(Cow::Borrowed(raw), Cow::Owned)
}

/// Reads JSON that is written within a text, by the rules of the body: what is no number is null, halves of characters are replaced. What
/// cannot be read stays out of the event, and is noted as it was.
pub(super) fn nested(text: String, key: &'static str, repairs: &mut Vec<Repair>) -> Option<Box<RawValue>> {
    let mut read = RawValue::from_string(text.clone()).ok();
    if read.is_none()
        && let Some((nulled, nulls)) = null_not_numbers(&text)
    {
        read = RawValue::from_string(nulled).ok();
        if let Some(raw) = &read {
            let note = |(_, place)| Repair::new(Reason::NotANumber, format!("{key}.{place}"));
            repairs.extend(places(raw.get(), &nulls).into_iter().map(note));
        }
    }
    let Some(raw) = read else {
        repairs.push(Repair::taken(Reason::Detail, key, text));
        return None;
    };
    let Some((mended, mends)) = mend_texts(raw.get()) else { return Some(raw) };
    repairs.extend(mends.into_iter().map(|(place, reason)| Repair::new(reason, format!("{key}.{place}"))));
    RawValue::from_string(mended).ok()
}

/// Returns whether a value is an array of nothing.
pub(super) fn is_empty_array(raw: &RawValue) -> bool {
    raw.get().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|inner| inner.trim_ascii().is_empty())
}

/// Returns a text, or another value as it is written.
fn written(value: &Value<'_>) -> CompactString {
    match value {
        Value::Json(raw) => value.text("").unwrap_or_else(|_| raw.get().into()),
        Value::Parameter(text) => text.as_ref().into(),
    }
}

/// An object in an event, such as the `properties` of a track.
pub(super) struct Properties<'a> {
    pub(super) key: &'static str,
    pub(super) raw: Option<&'a RawValue>,
    pub(super) members: Vec<Member<'a>>,
}

impl<'a> Properties<'a> {
    pub(super) fn none(key: &'static str) -> Self {
        Properties { key, raw: None, members: Vec::new() }
    }

    /// # Errors
    /// `wrong_type` for another value than an object, `too_many_keys`, `bad_unicode`.
    pub(super) fn new(key: &'static str, raw: &'a RawValue) -> Result<Self, Rejection> {
        match members(raw) {
            Ok(members) => Ok(Properties { key, raw: Some(raw), members: few(members, key)? }),
            Err(fault) if fault.code == Code::InvalidJson => Err(Rejection::new(Code::WrongType, key, fault.message)),
            Err(fault) => Err(Rejection::new(fault.code, key, fault.message)),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.members.iter().find(|member| member.key == key).and_then(|member| match member.value {
            Value::Json(raw) if raw.get() != "null" => Some(raw),
            _ => None,
        })
    }

    /// The first of several keys whose value is a string with something in it, with that value.
    pub(super) fn string<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, CompactString)> {
        keys.iter().find_map(|key| {
            let text = self.get(key).and_then(|raw| Value::Json(raw).text(key).ok())?;
            (!text.is_empty()).then_some((*key, text))
        })
    }

    /// The first of several whose value is such a string, or a number.
    pub(super) fn text<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, CompactString)> {
        keys.iter().find_map(|key| {
            let text = self.get(key).and_then(|raw| Value::Json(raw).text_or_number(key).ok())?;
            (!text.is_empty()).then_some((*key, text))
        })
    }

    /// The first of several that says an amount of money: a number, else a text that is one.
    pub(super) fn amount<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, CompactString)> {
        keys.iter().find_map(|key| {
            let raw = self.get(key)?;
            if is_number(raw) {
                return Some((*key, money::of_json_number(raw.get()).into()));
            }
            let text = Value::Json(raw).text(key).ok()?;
            let is_decimal = !matches!(text.trim().parse::<Money>(), Err(MoneyError::NotADecimal));
            is_decimal.then_some((*key, text))
        })
    }

    /// The first of several that is there, as it is written: an amount that cannot be read.
    pub(super) fn unreadable<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, CompactString)> {
        keys.iter().find_map(|key| {
            let text = written(&Value::Json(self.get(key)?));
            (!text.trim().is_empty()).then_some((*key, cut(&text).into()))
        })
    }
}
