//! Writes events as the log has them: what serde would write of an [`Event`], without asking each field how it wants to be written.

use compact_str::CompactString;
use uuid::Uuid;

use crate::event::{Context, Details, Event};
use crate::json::JsonObject;
use crate::time::Micros;

/// Appends an event as JSON.
pub(super) fn event(event: &Event, out: &mut Vec<u8>) {
    let mut object = Object::begin(out);
    object.id("project_id", event.project_id.0);
    object.id("event_id", event.event_id.0);
    object.mark("id_from_client", event.id_from_client);
    object.id("user_id", event.user_id.0);
    object.text("external_id", &event.external_id);
    object.text("anonymous_id", &event.anonymous_id);
    object.time("claimed_at", event.claimed_at);
    object.time("event_time", event.event_time);
    event.sent_at.into_iter().for_each(|sent_at| object.time("sent_at", sent_at));
    object.time("received_at", event.received_at);
    object.mark("untimed", event.untimed);
    object.mark("from_server_key", event.from_server_key);
    object.mark("is_bot", event.is_bot);
    object.text("session_id", &event.session_id);
    object.text("name", &event.name);
    object.text("experiment", &event.experiment);
    object.text("variant", &event.variant);
    object.text("campaign", &event.campaign);
    object.text("component", &event.component);
    event.value.into_iter().for_each(|value| object.serialized("value", &value));
    object.text("currency", &event.currency);
    object.key("context");
    context(&event.context, object.out);
    object.key("details");
    details(&event.details, object.out);
    object.json("metadata", &event.metadata);
    object.end();
}

fn context(context: &Context, out: &mut Vec<u8>) {
    let Context {
        page_url,
        referrer,
        user_agent,
        language,
        time_zone,
        screen,
        viewport,
        connection,
        utm_source,
        utm_medium,
        utm_campaign,
        country,
        region,
        city,
        device_type,
    } = context;
    let mut object = Object::begin(out);
    object.text("page_url", page_url);
    object.text("referrer", referrer);
    object.text("user_agent", user_agent);
    object.text("language", language);
    object.text("time_zone", time_zone);
    object.text("screen", screen);
    object.text("viewport", viewport);
    object.text("connection", connection);
    object.text("utm_source", utm_source);
    object.text("utm_medium", utm_medium);
    object.text("utm_campaign", utm_campaign);
    object.text("country", country);
    object.text("region", region);
    object.text("city", city);
    object.text("device_type", device_type);
    object.end();
}

/// Most details are empty, and those that are not differ by kind; serde writes them.
fn details(details: &Details, out: &mut Vec<u8>) {
    // Serialising fails for maps with keys other than strings and for failing writers; there are neither.
    serde_json::to_writer(out, details).expect("details are JSON, and a Vec takes every byte");
}

/// An object whose members are written one after another.
struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Object { out, is_empty: true }
    }

    fn end(self) {
        self.out.push(b'}');
    }

    /// Begins a member. Names are ours and have nothing to escape.
    fn key(&mut self, name: &str) {
        self.out.extend_from_slice(if self.is_empty { b"\"" } else { b",\"" });
        self.is_empty = false;
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, name: &str, text: &Option<CompactString>) {
        if let Some(text) = text {
            self.key(name);
            string(text, self.out);
        }
    }

    fn id(&mut self, name: &str, id: Uuid) {
        let mut text = [0; 36];
        id.hyphenated().encode_lower(&mut text);
        self.key(name);
        self.out.push(b'"');
        self.out.extend_from_slice(&text);
        self.out.push(b'"');
    }

    fn time(&mut self, name: &str, time: Micros) {
        self.serialized(name, &time);
    }

    /// Writes `true`, or nothing.
    fn mark(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.key(name);
            self.out.extend_from_slice(b"true");
        }
    }

    fn json(&mut self, name: &str, json: &Option<JsonObject>) {
        if let Some(json) = json {
            self.key(name);
            self.out.extend_from_slice(json.get().as_bytes());
        }
    }

    fn serialized(&mut self, name: &str, value: &impl serde::Serialize) {
        self.key(name);
        serde_json::to_writer(&mut *self.out, value).expect("a number or a text is JSON, and a Vec takes every byte");
    }
}

/// Appends a text as a JSON string. Most have nothing to escape, which is seen in one pass over all bytes that a processor makes in large
/// steps.
fn string(text: &str, out: &mut Vec<u8>) {
    let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    if text.bytes().fold(false, |found, byte| found | is_special(byte)) {
        serde_json::to_writer(out, text).expect("a text is JSON, and a Vec takes every byte");
        return;
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing;

    fn written(value: &Event) -> String {
        let mut out = Vec::new();
        event(value, &mut out);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn an_event_is_written_as_serde_writes_it() {
        for mut event in testing::one_of_each_kind() {
            for (untimed, is_bot, from_server_key, id_from_client) in
                [(false, false, false, false), (true, true, true, true), (true, false, true, false)]
            {
                (event.untimed, event.is_bot) = (untimed, is_bot);
                (event.from_server_key, event.id_from_client) = (from_server_key, id_from_client);
                event.sent_at = is_bot.then_some(Micros(-1));
                assert_eq!(written(&event), serde_json::to_string(&event).expect("JSON"));
            }
        }
    }

    proptest! {
        /// Texts of any characters, at any length, each in a field of its own.
        #[test]
        fn texts_are_escaped_as_serde_escapes_them(texts in prop::collection::vec(prop::option::of("\\PC{0,40}|[\u{0}-\u{2f}\\\\\"é]{0,40}"), 24)) {
            let mut event = testing::admitted(testing::exposure("i", "u", "2026-03-01T11:59:58Z", "e", "v"));
            let mut texts = texts.into_iter().map(|text| text.map(CompactString::from));
            for (_, field) in event.context.fields_mut() {
                *field = texts.next().flatten();
            }
            let fields = [
                &mut event.external_id,
                &mut event.anonymous_id,
                &mut event.session_id,
                &mut event.name,
                &mut event.experiment,
                &mut event.variant,
                &mut event.campaign,
                &mut event.component,
                &mut event.currency,
            ];
            for field in fields {
                *field = texts.next().flatten();
            }
            prop_assert_eq!(written(&event), serde_json::to_string(&event).expect("JSON"));
        }
    }
}
