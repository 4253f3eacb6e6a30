//! The pixel: one event in the parameters of a query, or of a form.

use events::rules::limits::{EVENT_BYTES_MAX, KEYS_MAX};
use events::{Code, Rejection};

use super::members::{Member, Value};
use super::{ParsedEvent, native, query};

/// The cookie by which a browser stays the same device: ours, first-party, only set where no id is given.
pub(crate) const COOKIE: &str = "weir_id";

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
    members: Vec<Member<'a>>,
    /// Names of parameters whose values are not UTF-8.
    damaged: Vec<String>,
    /// Why it is not taken as a whole: bytes or parameters beyond an event's.
    oversize: Option<Rejection>,
    device: Device<'a>,
}

/// Takes the parameters of an event, without the key. One that is larger than an event may be is not taken apart.
pub(super) fn hit<'a>(query: &'a str, form: &'a str, device: Device<'a>) -> Hit<'a> {
    let mut hit = Hit { members: Vec::new(), damaged: Vec::new(), oversize: None, device };
    let bytes = query.len() + form.len();
    if bytes > EVENT_BYTES_MAX {
        let message = format!("the event has {bytes} bytes; at most {EVENT_BYTES_MAX} are accepted");
        hit.oversize = Some(Rejection::new(Code::EventTooLarge, "", message));
        return hit;
    }
    for (key, value) in query::parameters(query).chain(query::parameters(form.trim_ascii())) {
        if hit.members.len() + hit.damaged.len() > KEYS_MAX {
            let message = format!("found more than {KEYS_MAX} parameters; at most {KEYS_MAX} are accepted");
            hit.oversize = Some(Rejection::new(Code::TooManyKeys, "", message));
            return hit;
        }
        match value {
            _ if key == "key" => {}
            Some(value) => hit.members.push(Member { key, value: Value::Parameter(value) }),
            None => hit.damaged.push(key.into_owned()),
        }
    }
    hit
}

impl Hit<'_> {
    /// Reads the event by the rules of the native one.
    pub(super) fn parse(&self) -> Result<ParsedEvent, Rejection> {
        if let Some(oversize) = &self.oversize {
            return Err(oversize.clone());
        }
        if let Some(field) = self.damaged.first() {
            return Err(Rejection::new(Code::BadUtf8, field, "contains bytes that are not UTF-8"));
        }
        let mut parsed = native::parse_members(&self.members)?;
        if parsed.draft.anonymous_id.as_ref().is_none_or(String::is_empty) {
            // An event with a user keeps the device of the cookie, but gets no new one.
            let device = self.device.known.or(self.needs_cookie().then_some(self.device.fresh));
            parsed.draft.anonymous_id = device.map(str::to_owned);
        }
        Ok(parsed)
    }

    /// Returns whether the event names neither user nor device, and the browser has no cookie of ours.
    pub(crate) fn needs_cookie(&self) -> bool {
        let names_somebody =
            |member: &Member<'_>| matches!(member.key.as_ref(), "user_id" | "anonymous_id") && !member.value.is_absent();
        self.device.known.is_none() && !self.members.iter().any(names_somebody)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `user_id`, `anonymous_id` and the need of a cookie come to.
    fn check(query: &str, known: Option<&str>, expected: (Option<&str>, Option<&str>, bool)) {
        let hit = hit(query, "", Device { known, fresh: "fresh" });
        let draft = hit.parse().expect("can be read").draft;
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
        let parsed = hit(query, "x=%22", Device { known: None, fresh: "f" }).parse().expect("can be read");
        assert!(parsed.faults.is_empty(), "{:?}", parsed.faults);
        assert_eq!((parsed.is_bot, parsed.draft.properties.expect("has a rest").get()), (Some(true), r#"{"slot":"3","x":"\""}"#));
        let events::Details::Impression(details) = parsed.draft.details else { panic!("an impression") };
        assert_eq!((details.scroll_depth_percent, details.bounce), (Some(80), Some(false)));
        assert_eq!(details.user_context.expect("given").get(), r#"{"a":1}"#);
        let refused = |query| hit(query, "", Device { known: None, fresh: "f" }).parse().map(|parsed| parsed.faults.len());
        assert_eq!(refused("type=impression&city=%ff").expect_err("damaged").code, Code::BadUtf8);
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
