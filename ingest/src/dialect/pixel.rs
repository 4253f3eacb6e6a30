//! The pixel: one event in the parameters of a query, or of a form.

use std::borrow::Cow;

use events::repair::Reason;
use events::rules::limits::{EVENT_BYTES_MAX, KEYS_MAX};
use events::{Code, Rejection, Repair};
use hyper::header::SET_COOKIE;
use serde_json::value::RawValue;

use super::members::{Member, Value};
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, native, query};
use crate::admit::{Admitted, Asked};
use crate::respond::Outcome;
use crate::route::Route;

/// The dialect of images in pages.
pub(super) struct Pixel;

impl Dialect for Pixel {
    fn route(&self, path: &str, _query: &str) -> Option<Route> {
        (path == "/v1/pixel.gif").then_some(Route::Pixel)
    }

    fn key(&self, head: &Head<'_>) -> KeyInHead {
        native::Native.key(head)
    }

    fn cookie(&self) -> Option<&'static str> {
        Some(COOKIE)
    }

    fn parse<'a>(
        &self,
        request: &'a Admitted,
        text: &'a Text<'a>,
        _events_max: usize,
    ) -> Result<Box<dyn Envelope + 'a>, EnvelopeFault> {
        Ok(Box::new(hit(&request.asked.query, text.as_str(), request.device())))
    }

    fn answer(&self, _asked: &Asked, outcome: &Outcome) -> Reply {
        let reply = Reply::new(Content::Image);
        match outcome.cookie.as_deref().filter(|_| outcome.accepted > 0) {
            Some(id) => reply.with(SET_COOKIE, &format!("{COOKIE}={id}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax")),
            None => reply,
        }
    }

    fn error(&self, _route: Route, _code: &str, _message: &str) -> Reply {
        Reply::new(Content::Image)
    }
}

/// The cookie by which a browser stays the same device: ours, first-party, only set where no id is given.
const COOKIE: &str = "weir_id";

/// The device of a browser that asks for the pixel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device<'a> {
    /// The id in its cookie, from an earlier event.
    pub(crate) known: Option<&'a str>,
    /// The id for a new cookie, if the browser has none and the event names no user or device.
    pub(crate) fresh: &'a str,
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
        if key == "key" {
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

/// Fields without which an event says the same: one that cannot be read is left out, and kept as it was in the metadata.
const DETAILS: [&str; 11] = [
    "time_on_page",
    "scroll_depth_percent",
    "page_load_time",
    "bounce",
    "is_first_exposure",
    "time_to_convert",
    "is_first_conversion_for_experiment",
    "conversion_window_days",
    "original_exposure_date",
    "conversion_eligibility_verified",
    "is_bot",
];

impl Envelope for Hit<'_> {
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
        Cow::Owned(self.written())
    }

    fn parse(&self, _index: usize, _mended: Option<&RawValue>, _conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        self.read()
    }

    fn needs_cookie(&self) -> bool {
        self.needs_cookie()
    }
}

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

    /// Returns the query and the form as they were sent, but for the key.
    pub(super) fn written(&self) -> String {
        let pairs =
            self.sent.iter().flat_map(|part| part.split('&')).filter(|pair| !pair.is_empty() && !pair.starts_with("key="));
        pairs.collect::<Vec<_>>().join("&")
    }

    /// Returns whether one of some parameters has a value.
    pub(super) fn names(&self, keys: &[&str]) -> bool {
        self.members.iter().any(|member| keys.contains(&member.key.as_ref()) && !member.value.is_absent())
    }

    /// Reads the event by the rules of the native one.
    fn read(&self) -> Result<ParsedEvent, Rejection> {
        let mut mended = Vec::new();
        let mut parsed = native::parse_members(self.members(&mut mended)?)?;
        parsed.draft.repairs = mended;
        let is_detail = |fault: &Rejection| DETAILS.contains(&fault.field.as_str());
        for fault in parsed.faults.extract_if(.., |fault| is_detail(fault)) {
            let given = self.members.iter().find(|member| member.key == fault.field);
            let Some(Member { value: Value::Parameter(text), .. }) = given else { continue };
            parsed.draft.repairs.push(Repair::taken(Reason::Detail, fault.field, text.to_string()));
        }
        if parsed.draft.anonymous_id.as_ref().is_none_or(String::is_empty) {
            // An event with a user keeps the device of the cookie, but gets no new one.
            let device = self.device.known.or(self.needs_cookie().then_some(self.device.fresh));
            parsed.draft.anonymous_id = device.map(str::to_owned);
        }
        Ok(parsed)
    }

    /// Returns whether the event names neither user nor device, and the browser has no cookie of ours.
    pub(crate) fn needs_cookie(&self) -> bool {
        self.device.known.is_none() && !self.names(&["user_id", "anonymous_id"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `user_id`, `anonymous_id` and the need of a cookie come to.
    fn check(query: &str, known: Option<&str>, expected: (Option<&str>, Option<&str>, bool)) {
        let hit = hit(query, "", Device { known, fresh: "fresh" });
        let draft = hit.read().expect("can be read").draft;
        assert_eq!((draft.user_id.as_deref(), draft.anonymous_id.as_deref(), hit.needs_cookie()), expected, "{query}");
    }

    #[test]
    fn events_without_a_user_get_a_device() {
        check("type=impression", None, (None, Some("fresh"), true));
        check("type=impression&user_id=&anonymous_id=", None, (None, Some("fresh"), true));
        check("type=impression", Some("known"), (None, Some("known"), false));
        check("type=impression&user_id=u", None, (Some("u"), None, false));
        check("type=impression&user_id=u", Some("known"), (Some("u"), Some("known"), false));
        check("type=impression&anonymous_id=a", Some("known"), (None, Some("a"), false));
    }

    #[test]
    fn parameters_have_types() {
        let query = "key=k&type=impression&scroll_depth_percent=80&bounce=false&user_context=%7B%22a%22:1%7D&slot=3&is_bot=1";
        let parsed = hit(query, "x=%22", Device { known: None, fresh: "f" }).read().expect("can be read");
        assert!(parsed.faults.is_empty(), "{:?}", parsed.faults);
        assert_eq!((parsed.is_bot, parsed.draft.properties.expect("has a rest").get()), (Some(true), r#"{"slot":"3","x":"\""}"#));
        let events::Details::Impression(details) = parsed.draft.details else { panic!("an impression") };
        assert_eq!((details.scroll_depth_percent, details.bounce), (Some(80), Some(false)));
        assert_eq!(details.user_context.expect("given").get(), r#"{"a":1}"#);
        let refused = |query| {
            hit(query, "", Device { known: None, fresh: "f" })
                .read()
                .map(|parsed| parsed.faults.len() + parsed.draft.repairs.len())
        };
        assert_eq!(refused("type=impression&city=%ff&x=%00").expect("mended"), 2);
        // Few bytes on the wire, once they are inflated: neither taken apart nor kept.
        let large = format!("type=impression&{}", "a&".repeat(40_000));
        assert_eq!(refused(&large).expect_err("large").code, Code::EventTooLarge);
        let many = |count: usize| format!("type=impression&{}", (2..=count).map(|n| format!("p{n}=1&")).collect::<String>());
        let (fitting, more) = (many(KEYS_MAX), many(KEYS_MAX + 2));
        assert_eq!(refused(&fitting).expect("as many as an event may have"), 0);
        assert_eq!(refused(&more).expect_err("more").code, Code::TooManyKeys);
        assert_eq!(hit(&large, "", Device { known: None, fresh: "f" }).members.len(), 0);
        assert_eq!(refused("type=impression&bounce=maybe&time_on_page=x").expect("can be read"), 2);
    }
}
