//! Images: one event in the parameters of a query, or of a form. Several dialects have one.

use compact_str::CompactString;
use std::borrow::Cow;

use events::repair::Reason;
use events::rules::is_placeholder_id;
use events::rules::limits::{EVENT_BYTES_MAX, KEYS_MAX};
use events::{Code, Draft, Rejection, Repair};
use serde_json::value::RawValue;

use super::members::{Member, Value};
use super::{Envelope, ParsedEvent, query};

/// How a dialect reads the event of its image.
pub(super) trait Reader {
    /// Reads the event. `conversions` are the names of events that the project counts as conversions.
    /// # Errors
    /// What keeps the event from being read at all.
    fn read(&self, hit: &Hit<'_>, conversions: &[String]) -> Result<ParsedEvent, Rejection>;

    /// Returns whether the event names a user or a device.
    fn names_somebody(&self, hit: &Hit<'_>) -> bool;

    /// Returns what the client calls a field, if it has a name of its own for it.
    fn client_name(&self, _hit: &Hit<'_>, _field: &str) -> Option<Cow<'static, str>> {
        None
    }

    /// Returns whether nobody is named, and the browser has no cookie either.
    fn needs_cookie(&self, hit: &Hit<'_>) -> bool {
        hit.device.known.is_none() && !self.names_somebody(hit)
    }
}

/// The request for an image.
pub(super) struct Image<'a, R> {
    pub(super) hit: Hit<'a>,
    pub(super) reader: R,
}

impl<R: Reader> Envelope for Image<'_, R> {
    fn len(&self) -> usize {
        1
    }

    fn place(&self, _index: usize) -> String {
        String::new()
    }

    fn raw(&self, _index: usize) -> Option<&str> {
        None
    }

    fn text(&self, _index: usize) -> Cow<'_, str> {
        Cow::Owned(self.hit.written())
    }

    fn parse(&self, _index: usize, _mended: Option<&RawValue>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        self.reader.read(&self.hit, conversions)
    }

    fn client_name(&self, _index: usize, field: &str) -> Option<Cow<'static, str>> {
        self.reader.client_name(&self.hit, field)
    }

    fn needs_cookie(&self) -> bool {
        self.reader.needs_cookie(&self.hit)
    }
}

/// The device of a browser that asks for an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device<'a> {
    /// The id in its cookie, from an earlier event.
    pub(crate) known: Option<&'a str>,
    /// The id for a new cookie, if the browser has none and the event names no user or device.
    pub(crate) fresh: &'a str,
}

impl Device<'_> {
    /// Gives an event that names no device this one: of its cookie, or a new one if it names no user either. What stands in its place and is
    /// no id is noted.
    pub(super) fn fill(self, draft: &mut Draft) {
        let is_id = |id: &Option<CompactString>| id.as_deref().is_some_and(|id| !is_placeholder_id(id));
        if is_id(&draft.anonymous_id) {
            return;
        }
        let fresh = Some(self.fresh).filter(|id| !id.is_empty() && !is_id(&draft.user_id));
        let Some(device) = self.known.or(fresh) else { return };
        let placeholder = draft.anonymous_id.replace(device.into()).filter(|id| !id.is_empty());
        draft.repairs.extend(placeholder.map(|from| Repair::taken(Reason::PlaceholderId, "anonymous_id", from)));
    }
}

/// One event, still as parameters.
pub(crate) struct Hit<'a> {
    /// The query and the form.
    sent: [&'a str; 2],
    members: Vec<Member<'a>>,
    /// Parameters in which bytes that are not UTF-8, or U+0000, were replaced.
    mended: Vec<Repair>,
    /// Why it is not taken as a whole: bytes or parameters beyond an event's.
    oversize: Option<Rejection>,
    pub(super) device: Device<'a>,
}

/// Takes the parameters of an event, without the key. One that is larger than an event may be is not taken apart.
pub(super) fn hit<'a>(query: &'a str, form: &'a str, device: Device<'a>) -> Hit<'a> {
    let mut hit = Hit { sent: [query, form.trim_ascii()], members: Vec::new(), mended: Vec::new(), oversize: None, device };
    let bytes = query.len() + form.len();
    if bytes > EVENT_BYTES_MAX {
        let message = format!("the event has {bytes} bytes; at most {EVENT_BYTES_MAX} are accepted");
        hit.oversize = Some(Rejection::new(Code::EventTooLarge, "", message));
        return hit;
    }
    for (key, decoded) in query::parameters(query).chain(query::parameters(form.trim_ascii())) {
        if hit.members.len() > KEYS_MAX {
            let message = format!("found more than {KEYS_MAX} parameters; at most {KEYS_MAX} are accepted");
            hit.oversize = Some(Rejection::new(Code::TooManyKeys, "", message));
            return hit;
        }
        if KEYS.contains(&key.as_ref()) {
            continue;
        }
        let mut value = decoded.text;
        if decoded.is_damaged {
            hit.mended.push(Repair::new(Reason::Utf8, key.to_string()));
        }
        if value.contains('\0') {
            hit.mended.push(Repair::new(Reason::NulByte, key.to_string()));
            value = Cow::Owned(value.replace('\0', "\u{fffd}"));
        }
        hit.members.push(Member { key, value: Value::Parameter(value) });
    }
    hit
}

/// Parameters in which keys are sent.
const KEYS: [&str; 3] = ["key", "writeKey", "writekey"];

impl<'a> Hit<'a> {
    /// Returns the parameters, and notes those that were mended.
    /// # Errors
    /// Why it is not taken as a whole.
    pub(super) fn members(&self, repairs: &mut Vec<Repair>) -> Result<&[Member<'a>], Rejection> {
        if let Some(oversize) = &self.oversize {
            return Err(oversize.clone());
        }
        repairs.extend_from_slice(&self.mended);
        Ok(&self.members)
    }

    /// Returns whether one of some parameters has an id.
    pub(super) fn names(&self, keys: &[&str]) -> bool {
        let is_id = |value: &Value<'_>| matches!(value, Value::Parameter(text) if !is_placeholder_id(text));
        self.members.iter().any(|member| keys.contains(&member.key.as_ref()) && is_id(&member.value))
    }

    /// Returns the query and the form as they were sent, but for the key.
    fn written(&self) -> String {
        let is_no_key = |pair: &&str| !KEYS.contains(&pair.split('=').next().unwrap_or_default());
        let pairs = self.sent.iter().flat_map(|part| part.split('&')).filter(|pair| !pair.is_empty()).filter(is_no_key);
        pairs.collect::<Vec<_>>().join("&")
    }
}
