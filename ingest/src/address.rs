//! Addresses of visitors: taken out of all that is stored.

use compact_str::CompactString;
use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use events::json::{Fate, Place, scalar};
use events::{Details, Draft, JsonObject};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::dialect::{base64, query};

/// Returns whether clients call an address so: `context.ip` of Segment's, `$ip` of PostHog's, `ip` of Snowplow's, Statsig's and our own,
/// `source_ip` and `user_ip` of Jitsu's; and what a dialect makes of a name that is taken, such as `event_ip`.
fn is_key(key: &str) -> bool {
    matches!(key, "ip" | "$ip" | "ip_address" | "ipAddress") || key.ends_with("_ip")
}

/// What stands for one in a text that is kept as it was sent.
const REMOVED: &str = "removed";

/// Takes addresses out of an event, at any depth of its free properties and details, and returns the first one, as it was written.
pub(crate) fn take(draft: &mut Draft) -> Option<CompactString> {
    let mut found = None;
    take_from(&mut draft.properties, &mut found);
    match &mut draft.details {
        Details::Impression(details) => {
            take_from(&mut details.user_eligibility_status, &mut found);
            take_from(&mut details.user_context, &mut found);
        }
        Details::Conversion(details) => {
            take_from(&mut details.details, &mut found);
            take_from(&mut details.conversion_context, &mut found);
        }
        Details::Identity(_) | Details::CampaignEvent | Details::Engagement => {}
    }
    for from in draft.repairs.iter_mut().filter_map(|repair| repair.from.as_mut()) {
        if let Cow::Owned(without) = masked(from) {
            *from = without;
        }
    }
    found
}

/// Returns whether JSON may have a key of an address: a quick look, which most events end.
fn may_have(json: &str) -> bool {
    let bytes = json.as_bytes();
    memchr::memchr2_iter(b'"', b'\\', bytes).any(|at| match bytes[at] {
        b'"' => bytes[..at].ends_with(b"ip") || bytes[..at].ends_with(b"ddress"),
        _ => bytes[at..].starts_with(b"\\u00"),
    })
}

fn take_from(object: &mut Option<JsonObject>, found: &mut Option<CompactString>) {
    let Some(before) = object.as_ref().filter(|object| may_have(object.get())) else { return };
    let fate = &mut |place: Place<'_>, raw: &serde_json::value::RawValue| {
        if !is_key(place.key) {
            return Fate::Keep;
        }
        if found.is_none() {
            *found = scalar(raw).map(CompactString::from);
        }
        Fate::Drop
    };
    if let Some(without) = before.pruned(fate) {
        *object = Some(without);
    }
}

/// Returns an event as it was sent, be it JSON, a part of it, or parameters, in which another text stands for each address.
pub(crate) fn masked(text: &str) -> Cow<'_, str> {
    let json = if may_have(text) || text.contains("ip\\") { masked_json(text) } else { Cow::Borrowed(text) };
    if !json.trim_ascii_start().starts_with(['{', '[']) && json.contains('=') {
        let parameters = masked_parameters(&json);
        if parameters != json {
            return Cow::Owned(parameters);
        }
    }
    json
}

/// Looks for keys of addresses by their quotes, so that it works in JSON that ends early, or stands within a text of JSON.
fn masked_json(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut written = 0;
    for (quote, _) in text.match_indices('"') {
        if quote < written {
            continue;
        }
        let before = text[..quote].trim_end_matches('\\');
        if !before.rsplit_once('"').is_some_and(|(_, key)| is_key(key)) {
            continue;
        }
        let Some(value) = text[quote + 1..].trim_ascii_start().strip_prefix(':') else { continue };
        let value = value.trim_ascii_start();
        let start = text.len() - value.len();
        let opening = value.len() - value.trim_start_matches('\\').len();
        let (from, length, instead) = match value.as_bytes().get(opening) {
            Some(b'"') => {
                let inner = &value[opening + 1..];
                (start + opening + 1, inner.find(['"', '\\']).unwrap_or(inner.len()), REMOVED)
            }
            Some(b'[') => (start, value.find(']').map_or(value.len(), |end| end + 1), "null"),
            Some(b'{') => (start, value.find('}').map_or(value.len(), |end| end + 1), "null"),
            _ => (start, value.find([',', '}', ']', '"', '\\', ' ', '\n']).unwrap_or(value.len()), "null"),
        };
        out.push_str(&text[written..from]);
        out.push_str(instead);
        written = from + length;
    }
    if written == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[written..]);
    Cow::Owned(out)
}

/// The same of parameters, those included whose value is JSON, plain or in base64.
fn masked_parameters(text: &str) -> String {
    let parameter = |pair: &str| {
        let Some((name, _)) = pair.split_once('=') else { return pair.to_owned() };
        let Some((key, value)) = query::parameters(pair).next() else { return pair.to_owned() };
        if is_key(key.rsplit('.').next().unwrap_or_default()) {
            return format!("{name}={REMOVED}");
        }
        if value.text.trim_ascii_start().starts_with(['{', '[']) {
            return match masked_json(&value.text) {
                Cow::Borrowed(_) => pair.to_owned(),
                Cow::Owned(json) => format!("{name}={}", utf8_percent_encode(&json, NON_ALPHANUMERIC)),
            };
        }
        let decoded = base64(&value.text.replace(' ', "+")).and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().map(masked_json) {
            Some(Cow::Owned(json)) => format!("{name}={}", BASE64_URL_SAFE_NO_PAD.encode(json)),
            _ => pair.to_owned(),
        }
    };
    text.split('&').map(parameter).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_goes_and_the_rest_stays() {
        let check = |properties: &str, expected: &str, address: Option<&str>| {
            let properties = JsonObject::parse(properties.to_owned(), "").expect("an object");
            let mut draft = Draft { properties: Some(properties), ..Draft::new(Details::Engagement) };
            assert_eq!(take(&mut draft).as_deref(), address);
            assert_eq!(draft.properties.expect("stays").get(), expected);
        };
        check(r#"{ "zip" : 1, "ship": "x" }"#, r#"{ "zip" : 1, "ship": "x" }"#, None);
        check(r#"{"ip":"192.0.2.1","a":1.0}"#, r#"{"a":1.0}"#, Some("192.0.2.1"));
        check(r#"{"context":{"ip":"::1","os":{"$ip":"x"}},"$ip":"y"}"#, r#"{"context":{"os":{}}}"#, Some("::1"));
        check(r#"{"\u0069p":"192.0.2.1"}"#, "{}", Some("192.0.2.1"));
        check(r#"{"source_ip":"a","user_ip":["b"],"ip_address":{},"ipAddress":1}"#, "{}", Some("a"));
    }

    #[test]
    fn what_is_kept_as_it_was_sent_has_another_text() {
        let check = |text: &str, expected: &str| assert_eq!(masked(text), expected);
        check(r#"{"tip":"192.0.2.1","a":"ip"}"#, r#"{"tip":"192.0.2.1","a":"ip"}"#);
        check(r#"{"ip" : "192.0.2.1" ,"a":1}"#, r#"{"ip" : "removed" ,"a":1}"#);
        check(r#"{"a":{"$ip":"192.0.2.1","user_ip":"::1"}}"#, r#"{"a":{"$ip":"removed","user_ip":"removed"}}"#);
        check(r#"{"ip":["192.0.2.1","::1"],"ip":7}"#, r#"{"ip":null,"ip":null}"#);
        check(r#"{"p":"{\"ip\":\"192.0.2.1\",\"b\":2}"}"#, r#"{"p":"{\"ip\":\"removed\",\"b\":2}"}"#);
        check(r#"{"p":"{\"context\":{\"ip\":1}}"}"#, r#"{"p":"{\"context\":{\"ip\":null}}"}"#);
        check(r#"{"ip":"192.0"#, r#"{"ip":"removed"#);
        check(r#"{"ip""#, r#"{"ip""#);
        check("e=pv&ip=192.0.2.1&x=1", "e=pv&ip=removed&x=1");
        check("context.ip=192.0.2.1&a", "context.ip=removed&a");
        check("a=b&c=%7B%22ip%22%3A%22192.0.2.1%22%7D", "a=b&c=%7B%22ip%22%3A%22removed%22%7D");
        // {"ip":"192.0.2.1"}, and {"ip":"removed"}.
        check("data=eyJpcCI6IjE5Mi4wLjIuMSJ9", "data=eyJpcCI6InJlbW92ZWQifQ");
        check("a=1&b=2", "a=1&b=2");
        check("", "");
    }
}
