//! The same events in the words of each dialect, for tests that have to hold for all of them.

use std::fmt::Write as _;

use crate::support::{Answer, Service, send};

/// A client of one dialect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) name: &'static str,
    pub(crate) target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    before: &'static str,
    after: &'static str,
    /// One event: `ID`, `USER` and `PROPERTIES`, the members of an object, stand where they belong.
    event: &'static str,
    /// Whether events have ids, so that one that comes again is known.
    pub(crate) has_ids: bool,
    /// Whether what can be repaired is refused instead.
    pub(crate) is_strict: bool,
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

pub(crate) const SENDERS: [Sender; 8] = [
    Sender {
        name: "native",
        target: "/v1/events",
        headers: &[("Authorization", "Bearer wk_test")],
        before: r#"{"events":["#,
        after: "]}",
        event: r#"{"type":"engagement","name":"n","event_id":"ID","user_id":"USER","properties":{PROPERTIES}}"#,
        has_ids: true,
        is_strict: true,
    },
    Sender {
        name: "segment",
        target: "/v1/batch",
        headers: &[JSON],
        before: r#"{"writeKey":"wk_test","batch":["#,
        after: "]}",
        event: r#"{"type":"track","event":"n","messageId":"ID","userId":"USER","properties":{PROPERTIES}}"#,
        has_ids: true,
        is_strict: false,
    },
    Sender {
        name: "posthog",
        target: "/batch/",
        headers: &[JSON],
        before: r#"{"api_key":"wk_test","batch":["#,
        after: "]}",
        event: r#"{"event":"n","uuid":"ID","distinct_id":"USER","properties":{PROPERTIES}}"#,
        has_ids: true,
        is_strict: false,
    },
    Sender {
        name: "posthog_v1",
        target: "/i/v1/analytics/events",
        headers: &[
            ("Authorization", "Bearer wk_test"),
            JSON,
            ("User-Agent", "posthog-python/7.91.1"),
            ("PostHog-Sdk-Info", "posthog-python/7.91.1"),
            ("PostHog-Attempt", "1"),
            ("PostHog-Request-Id", "019ca944-0000-7000-8000-0000000000ff"),
            ("PostHog-Request-Timestamp", "2026-03-01T12:00:00Z"),
        ],
        before: r#"{"created_at":"2026-03-01T12:00:00Z","batch":["#,
        after: "]}",
        event: r#"{"event":"n","uuid":"ID","distinct_id":"USER","properties":{PROPERTIES}}"#,
        has_ids: true,
        is_strict: false,
    },
    Sender {
        name: "snowplow",
        target: "/com.snowplowanalytics.snowplow/tp2",
        headers: &[JSON],
        before: r#"{"schema":"iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4","data":["#,
        after: "]}",
        event: r#"{"e":"ue","aid":"wk_test","eid":"ID","uid":"USER","ue_pr":UNSTRUCTURED}"#,
        has_ids: true,
        is_strict: false,
    },
    Sender {
        name: "growthbook",
        target: "/track?client_key=wk_test",
        headers: &[("Content-Type", "text/plain")],
        before: "[",
        after: "]",
        event: r#"{"event_name":"n","user_id":"USER","properties_json":{PROPERTIES}}"#,
        has_ids: false,
        is_strict: false,
    },
    Sender {
        name: "statsig",
        target: "/v1/log_event",
        headers: &[JSON, ("STATSIG-API-KEY", "wk_test")],
        before: r#"{"events":["#,
        after: "]}",
        event: r#"{"eventName":"n","user":{"userID":"USER"},"metadata":{PROPERTIES}}"#,
        has_ids: false,
        is_strict: false,
    },
    Sender {
        name: "jitsu",
        target: "/v1/b",
        headers: &[("X-Write-Key", "wk_test:secret")],
        before: r#"{"batch":["#,
        after: "]}",
        event: r#"{"type":"track","event":"n","messageId":"ID","userId":"USER","properties":{PROPERTIES}}"#,
        has_ids: true,
        is_strict: false,
    },
];

impl Sender {
    /// The one of a dialect.
    pub(crate) fn of(name: &str) -> &'static Sender {
        SENDERS.iter().find(|sender| sender.name == name).expect("a dialect")
    }

    /// An event of a user, without a time.
    pub(crate) fn event(&self, number: u64, user: &str, properties: &str) -> String {
        let event = self.event.replace("\"ID\"", &format!("\"{}\"", id(number))).replace("USER", user);
        if event.contains("UNSTRUCTURED") {
            let inner =
                format!(r#"{{"schema":"s","data":{{"schema":"iglu:com.acme/n/jsonschema/1-0-0","data":{{{properties}}}}}}}"#);
            return event.replace("UNSTRUCTURED", &serde_json::Value::String(inner).to_string());
        }
        event.replace("PROPERTIES", properties)
    }

    /// A batch of events.
    pub(crate) fn body(&self, events: &[String]) -> String {
        let mut body = String::with_capacity(events.iter().map(|event| event.len() + 1).sum::<usize>() + 256);
        body.push_str(self.before);
        for (at, event) in events.iter().enumerate() {
            let _ = write!(body, "{}{event}", if at == 0 { "" } else { "," });
        }
        body + self.after
    }

    /// Sends a body as it is.
    pub(crate) async fn send(&self, service: &Service, body: &[u8]) -> Answer {
        send(service.address(), "POST", self.target, self.headers, body).await
    }

    /// The head of a request for a body of that length, on a connection that is kept.
    pub(crate) fn head(&self, length: usize) -> String {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("POST {} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n", self.target)
    }

    /// Where the answer says the first rejected event lies, if its dialect says so.
    pub(crate) fn rejected_at(&self, answer: &Answer) -> Option<u64> {
        let answer: serde_json::Value = serde_json::from_slice(&answer.bytes).ok()?;
        answer["rejected"][0]["index"].as_u64()
    }

    /// How many events the answer says were accepted, repetitions included where the dialect has no word for them, and how many rejected.
    pub(crate) fn counts(&self, answer: &Answer) -> (u64, u64) {
        assert!(matches!(answer.status, 200 | 202), "{}: {answer:?}", self.name);
        if self.is_strict {
            let (accepted, duplicate, rejected) = answer.native();
            let mut indices: Vec<u64> = rejected.iter().map(|(index, _, _)| *index).collect();
            indices.dedup();
            return (accepted + duplicate, indices.len() as u64);
        }
        let number =
            |name| answer.header(name).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name}: {answer:?}"));
        (number("x-events-accepted"), number("x-events-rejected"))
    }
}

/// An id that every dialect takes.
fn id(number: u64) -> String {
    uuid::Uuid::from_u128(0x019c_a944_0000_7000_8000_0000_0000_0000 | u128::from(number)).to_string()
}
