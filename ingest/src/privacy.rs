//! Browsers that object to being followed: how they say so, and which of it counts.
//!
//! What becomes of their events is [`events::unlinked`]'s.

use std::fmt;
use std::str::FromStr;

use events::Kind;
use hyper::HeaderMap;

use crate::dialect::{ParsedEvent, query::parameter};
use crate::route::Route;

/// How a request says that its visitor objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Global Privacy Control, the header `Sec-GPC: 1`.
    Gpc,
    /// Do Not Track, the header `DNT: 1`.
    Dnt,
    /// Snowplow's header `SP-Anonymous`, of any value.
    SpAnonymous,
}

impl Signal {
    /// All of them, for counters.
    pub(crate) const ALL: [Signal; 3] = [Signal::Gpc, Signal::Dnt, Signal::SpAnonymous];

    /// Returns the name, as counters and events have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Signal::Gpc => "gpc",
            Signal::Dnt => "dnt",
            Signal::SpAnonymous => "sp_anonymous",
        }
    }
}

/// What is done with an event of such a request: kept as nobody's, dropped since it was nothing but somebody's, or refused, and
/// its bytes not kept.
pub(crate) const ACTIONS: [&str; 3] = ["unlinked", "dropped", "withheld"];

/// The headers that count as an objection. Snowplow's always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivacySignals {
    gpc: bool,
    dnt: bool,
}

impl PrivacySignals {
    /// Returns how a request objects, if it does. A page of ours that asked its visitor says that it may send, whatever the browser
    /// says of itself; others cannot.
    pub(crate) fn objection(self, headers: &HeaderMap, route: Route, query: &str) -> Option<Signal> {
        if headers.contains_key("sp-anonymous") {
            return Some(Signal::SpAnonymous);
        }
        let says = |name| headers.get(name).is_some_and(|value| value == "1");
        let signal = match (self.gpc && says("sec-gpc"), self.dnt && says("dnt")) {
            (true, _) => Signal::Gpc,
            (_, true) => Signal::Dnt,
            _ => return None,
        };
        let is_ours = matches!(route, Route::Events | Route::Pixel);
        let has_consent = is_ours && parameter(query, "consent").as_deref() == Some("true");
        (!has_consent).then_some(signal)
    }
}

impl Default for PrivacySignals {
    fn default() -> Self {
        PrivacySignals { gpc: true, dnt: true }
    }
}

impl fmt::Display for PrivacySignals {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match (self.gpc, self.dnt) {
            (true, true) => "gpc,dnt",
            (true, false) => "gpc",
            (false, true) => "dnt",
            (false, false) => "none",
        })
    }
}

impl FromStr for PrivacySignals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut signals = PrivacySignals { gpc: false, dnt: false };
        if text == "none" {
            return Ok(signals);
        }
        for name in text.split(',') {
            match name.trim() {
                "gpc" => signals.gpc = true,
                "dnt" => signals.dnt = true,
                other => return Err(format!("found {other:?}; gpc, dnt, both with a comma between them, or none are accepted")),
            }
        }
        Ok(signals)
    }
}

/// Returns whether an event says who somebody is and nothing else, so that nothing of it would be left.
pub(crate) fn is_identity_alone(parsed: &ParsedEvent) -> bool {
    parsed.draft.details.kind() == Kind::Identity
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn what_counts_is_the_operators_choice() {
        let check = |signals: &str, pairs: &[(&'static str, &'static str)], route, query, expected: Option<&str>| {
            let pair =
                |(name, value): &(&'static str, &'static str)| (HeaderName::from_static(name), HeaderValue::from_static(value));
            let headers: HeaderMap = pairs.iter().map(pair).collect();
            let signals: PrivacySignals = signals.parse().expect("accepted");
            assert_eq!(signals.objection(&headers, route, query).map(Signal::as_str), expected, "{signals} {pairs:?} {query}");
        };
        let (both, gpc) = ([("sec-gpc", "1"), ("dnt", "1")], [("sec-gpc", "1")]);
        check("gpc,dnt", &both, Route::Batch, "", Some("gpc"));
        check("dnt", &both, Route::Batch, "", Some("dnt"));
        check("dnt", &gpc, Route::Batch, "", None);
        check("none", &both, Route::Batch, "", None);
        check("gpc", &[("sec-gpc", "0"), ("dnt", "1")], Route::Batch, "", None);
        check("gpc,dnt", &[("dnt", "0")], Route::Batch, "", None);
        check("none", &[("sp-anonymous", "")], Route::SnowplowEvents, "", Some("sp_anonymous"));
        check("gpc", &[("sp-anonymous", "*"), ("sec-gpc", "1")], Route::Events, "consent=true", Some("sp_anonymous"));
        check("gpc", &gpc, Route::Events, "key=k&consent=true", None);
        check("gpc", &gpc, Route::Pixel, "key=k&consent=true", None);
        check("gpc", &gpc, Route::Events, "consent=1", Some("gpc"));
        check("gpc", &gpc, Route::Batch, "consent=true", Some("gpc"));
        check("gpc", &gpc, Route::PosthogCapture, "consent=true", Some("gpc"));
    }

    #[test]
    fn choices_are_read_and_shown() {
        for text in ["gpc,dnt", "gpc", "dnt", "none"] {
            assert_eq!(text.parse::<PrivacySignals>().expect("accepted").to_string(), text);
        }
        assert_eq!(PrivacySignals::default().to_string(), "gpc,dnt");
        assert_eq!("dnt, gpc".parse(), Ok(PrivacySignals::default()));
        for text in ["", "gpc,", "all", "none,gpc"] {
            assert!(text.parse::<PrivacySignals>().is_err(), "{text}");
        }
    }
}
