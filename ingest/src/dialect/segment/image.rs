//! Calls as images ask for them: members by their paths, such as `properties.revenue=5`, and `data`, the whole call as JSON in base64.

use std::borrow::Cow;

use events::json::Members;
use events::rules::limits::DEPTH_MAX;
use events::{Rejection, Repair};
use serde_json::value::RawValue;

use super::{Batch, Call, client_name, parse};
use crate::dialect::ParsedEvent;
use crate::dialect::head::{Head, base64};
use crate::dialect::image::{Hit, Reader};
use crate::dialect::item::{Item, nested};
use crate::dialect::members::{Value, write_string};

/// Reads the call that an address names.
pub(in crate::dialect) struct Parameters {
    pub(in crate::dialect) call: Call,
    /// Whether an event that names nobody is that of the browser's cookie.
    pub(in crate::dialect) has_cookie: bool,
}

/// Parameters that are no members of the call: the first is the call, the others are Jitsu's, for the answer.
const OTHERS: [&str; 4] = ["data", "process_headers", "cookie_domain", "destination_url"];
/// Members that may be written as JSON.
const OBJECTS: [&str; 4] = ["properties", "traits", "context", "integrations"];

impl Reader for Parameters {
    fn read(&self, hit: &Hit<'_>, conversions: &[String]) -> Result<ParsedEvent, Rejection> {
        let mut repairs = Vec::new();
        let raw = written(hit, &mut repairs)?;
        let mut parsed = parse(&Batch::of_one(self.call), &raw, conversions)?;
        parsed.draft.repairs.append(&mut repairs);
        if self.has_cookie {
            hit.device.fill(&mut parsed.draft);
        }
        Ok(parsed)
    }

    fn names_somebody(&self, hit: &Hit<'_>) -> bool {
        let raw = written(hit, &mut Vec::new());
        let item = raw.as_deref().ok().and_then(|raw| Item::new(raw).ok());
        !self.has_cookie || item.is_none_or(|item| ["userId", "anonymousId"].iter().any(|key| item.names(key)))
    }

    fn client_name(&self, hit: &Hit<'_>, field: &str) -> Option<Cow<'static, str>> {
        client_name(&Batch::of_one(self.call), &written(hit, &mut Vec::new()).ok()?, field)
    }
}

/// Finds the key of an image: in the query, or in the call that it has as `data`.
pub(in crate::dialect) fn key(head: &Head<'_>) -> Option<String> {
    head.parameter("writeKey")
        .or_else(|| head.parameter("writekey"))
        .or_else(|| super::write_key(&call_in(&head.parameter("data")?)))
}

/// Returns the call in `data`, which some write as it is.
fn call_in(data: &str) -> Cow<'_, str> {
    // A plus sign that was not escaped was read as a space.
    let decoded = || String::from_utf8(base64(&data.trim_ascii().replace(' ', "+"))?).ok();
    if data.trim_ascii_start().starts_with('{') { Cow::Borrowed(data) } else { decoded().map_or(Cow::Borrowed(data), Cow::Owned) }
}

/// Writes the call of an image's parameters. Of members that are in both, those by path count.
fn written(hit: &Hit<'_>, repairs: &mut Vec<Repair>) -> Result<Box<RawValue>, Rejection> {
    let members = hit.members(repairs)?.iter().filter_map(|member| match &member.value {
        Value::Parameter(text) => Some((member.key.as_ref(), text.as_ref())),
        Value::Json(_) => None,
    });
    let mut call = Object::default();
    let data = members.clone().find(|(key, data)| *key == "data" && !data.is_empty());
    if let Some(data) = data.and_then(|(_, data)| nested(call_in(data).into_owned(), "data", repairs)) {
        call = Object::read(data.get()).unwrap_or_default();
    }
    for (key, text) in members.filter(|(key, _)| !OTHERS.contains(key)) {
        let object = if OBJECTS.contains(&key) && text.starts_with('{') { nested(text.to_owned(), "", repairs) } else { None };
        let json = object.map_or_else(|| quoted(of_quotes(key, text)), |object| object.get().to_owned());
        call.put(key, 1, json);
    }
    let mut text = String::new();
    call.write(&mut text);
    // It is made of JSON, so that it is JSON.
    RawValue::from_string(text).map_err(|error| Rejection::new(events::Code::InvalidJson, "data", error.to_string()))
}

/// RudderStack's client of AMP pages writes its id in quotes.
fn of_quotes<'a>(key: &str, text: &'a str) -> &'a str {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    inner.filter(|_| key == "anonymousId").unwrap_or(text)
}

fn quoted(text: &str) -> String {
    let mut json = String::new();
    write_string(text, &mut json);
    json
}

/// An object to which members are added by their paths.
#[derive(Default)]
struct Object(Vec<(String, Node)>);

enum Node {
    /// JSON, as it was written.
    Json(String),
    Object(Object),
}

impl Object {
    fn read(json: &str) -> Option<Self> {
        let Members(members) = serde_json::from_str(json).ok()?;
        let member = |(key, raw): (events::json::Key<'_>, &RawValue)| (key.0.into_owned(), Node::Json(raw.get().to_owned()));
        Some(Object(members.into_iter().map(member).collect()))
    }

    /// Puts a value at a path. A value that stands where the path goes on is replaced, unless it is an object.
    fn put(&mut self, path: &str, depth: usize, json: String) {
        let deeper = path.split_once('.').filter(|(key, rest)| depth < DEPTH_MAX && !key.is_empty() && !rest.is_empty());
        let key = deeper.map_or(path, |(key, _)| key);
        let at = self.0.iter().position(|(known, _)| known == key).unwrap_or_else(|| {
            self.0.push((key.to_owned(), Node::Json("null".to_owned())));
            self.0.len() - 1
        });
        let node = &mut self.0[at].1;
        let Some((_, rest)) = deeper else {
            *node = Node::Json(json);
            return;
        };
        if let Node::Json(before) = node {
            *node = Node::Object(Object::read(before).unwrap_or_default());
        }
        if let Node::Object(object) = node {
            object.put(rest, depth + 1, json);
        }
    }

    fn write(&self, out: &mut String) {
        out.push('{');
        for (at, (key, node)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_string(key, out);
            out.push(':');
            match node {
                Node::Json(json) => out.push_str(json),
                Node::Object(object) => object.write(out),
            }
        }
        out.push('}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Device;
    use crate::dialect::image::hit;

    #[test]
    fn calls_are_put_together_from_paths_and_data() {
        let check = |query: &str, expected: &str| {
            let hit = hit(query, "", Device { known: None, fresh: "" });
            assert_eq!(written(&hit, &mut Vec::new()).expect("JSON").get(), expected, "{query}");
        };
        check("", "{}");
        check("writeKey=k&userId=u&event=Email+Opened", r#"{"userId":"u","event":"Email Opened"}"#);
        check("properties.a=1&properties.b.c=%22&properties.a=2", r#"{"properties":{"a":"2","b":{"c":"\""}}}"#);
        check("properties=%7B%22a%22:1.10%7D&properties.b=x", r#"{"properties":{"a":1.10,"b":"x"}}"#);
        check("properties=%7Bno&a.=1&.b=2&c..d=3", r#"{"properties":"{no","a.":"1",".b":"2","c":{".d":"3"}}"#);
        check("a=1&a.b=2", r#"{"a":{"b":"2"}}"#);
        check("anonymousId=%22amp-1%22&userId=%22u%22", r#"{"anonymousId":"amp-1","userId":"\"u\""}"#);
        // {"userId":7,"properties":{"a":1.10}}, in either alphabet, without padding, and as it is.
        check(
            "data=eyJ1c2VySWQiOjcsInByb3BlcnRpZXMiOnsiYSI6MS4xMH19&properties.b=x",
            r#"{"userId":7,"properties":{"a":1.10,"b":"x"}}"#,
        );
        check("data=%7B%22userId%22:7%7D&userId=u", r#"{"userId":"u"}"#);
        check("data=no&userId=u", r#"{"userId":"u"}"#);
        let deep = format!("{}x=1", "a.".repeat(30_000));
        let hit = hit(&deep, "", Device { known: None, fresh: "" });
        assert_eq!(written(&hit, &mut Vec::new()).expect("JSON").get().matches('{').count(), DEPTH_MAX);
    }
}
