//! The pixel: one event in the parameters of a query, or of a form.

use events::repair::Reason;
use events::{Rejection, Repair};
use hyper::header::SET_COOKIE;

use super::image::{Hit, Image, Reader, hit};
use super::members::{Member, Value};
use super::{Content, Dialect, Envelope, EnvelopeFault, Head, KeyInHead, ParsedEvent, Reply, Text, native};
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
        let hit = hit(&request.asked.query, text.as_str(), request.device());
        Ok(Box::new(Image { hit, reader: Native }))
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

/// Reads the event by the rules of the native one.
struct Native;

impl Reader for Native {
    fn read(&self, hit: &Hit<'_>, _conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        let mut mended = Vec::new();
        let members = hit.members(&mut mended)?;
        let mut parsed = native::parse_members(members)?;
        parsed.draft.repairs = mended;
        let is_detail = |fault: &Rejection| DETAILS.contains(&fault.field.as_str());
        for fault in parsed.faults.extract_if(.., |fault| is_detail(fault)) {
            let given = members.iter().find(|member| member.key == fault.field);
            let Some(Member { value: Value::Parameter(text), .. }) = given else { continue };
            parsed.draft.repairs.push(Repair::taken(Reason::Detail, fault.field, text.to_string()));
        }
        hit.device.fill(&mut parsed.draft);
        Ok(parsed)
    }

    fn names_somebody(&self, hit: &Hit<'_>) -> bool {
        hit.names(&["user_id", "anonymous_id"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Device;
    use events::Code;
    use events::rules::limits::KEYS_MAX;

    fn read(query: &str, form: &str) -> Result<ParsedEvent, Rejection> {
        Native.read(&hit(query, form, Device { known: None, fresh: "f" }), &[])
    }

    /// What `user_id`, `anonymous_id` and the need of a cookie come to.
    fn check(query: &str, known: Option<&str>, expected: (Option<&str>, Option<&str>, bool)) {
        let hit = hit(query, "", Device { known, fresh: "fresh" });
        let draft = Native.read(&hit, &[]).expect("can be read").draft;
        let found = (draft.user_id.as_deref(), draft.anonymous_id.as_deref(), Native.needs_cookie(&hit));
        assert_eq!(found, expected, "{query}");
    }

    #[test]
    fn events_without_a_user_get_a_device() {
        check("type=impression", None, (None, Some("fresh"), true));
        check("type=impression&user_id=&anonymous_id=", None, (None, Some("fresh"), true));
        check("type=impression", Some("known"), (None, Some("known"), false));
        check("type=impression&user_id=u", None, (Some("u"), None, false));
        check("type=impression&user_id=u", Some("known"), (Some("u"), Some("known"), false));
        check("type=impression&anonymous_id=a", Some("known"), (None, Some("a"), false));
        // What is no id names nobody; the rules leave it out.
        check("type=impression&user_id=undefined", None, (Some("undefined"), Some("fresh"), true));
        check("type=impression&anonymous_id=null", None, (None, Some("fresh"), true));
        check("type=impression&user_id=u&anonymous_id=null", Some("known"), (Some("u"), Some("known"), false));
        check("type=impression&user_id=u&anonymous_id=null", None, (Some("u"), Some("null"), false));
    }

    #[test]
    fn parameters_have_types() {
        let query = "key=k&type=impression&scroll_depth_percent=80&bounce=false&user_context=%7B%22a%22:1%7D&slot=3&is_bot=1";
        let parsed = read(query, "x=%22").expect("can be read");
        assert!(parsed.faults.is_empty(), "{:?}", parsed.faults);
        assert_eq!((parsed.is_bot, parsed.draft.properties.expect("has a rest").get()), (Some(true), r#"{"slot":"3","x":"\""}"#));
        let events::Details::Impression(details) = parsed.draft.details else { panic!("an impression") };
        assert_eq!((details.scroll_depth_percent, details.bounce), (Some(80), Some(false)));
        assert_eq!(details.user_context.expect("given").get(), r#"{"a":1}"#);
        let refused = |query| read(query, "").map(|parsed| parsed.faults.len() + parsed.draft.repairs.len());
        assert_eq!(refused("type=impression&city=%ff&x=%00").expect("mended"), 2);
        // Few bytes on the wire, once they are inflated: neither taken apart nor kept.
        let large = format!("type=impression&{}", "a&".repeat(40_000));
        assert_eq!(refused(&large).expect_err("large").code, Code::EventTooLarge);
        let many = |count: usize| format!("type=impression&{}", (2..=count).map(|n| format!("p{n}=1&")).collect::<String>());
        let (fitting, more) = (many(KEYS_MAX), many(KEYS_MAX + 2));
        assert_eq!(refused(&fitting).expect("as many as an event may have"), 0);
        assert_eq!(refused(&more).expect_err("more").code, Code::TooManyKeys);
        assert_eq!(refused("type=impression&bounce=maybe&time_on_page=x").expect("can be read"), 2);
    }
}
