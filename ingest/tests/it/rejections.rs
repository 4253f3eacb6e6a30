//! An invalid event does not affect the others of its request: each reason for a rejection, alone among 99 valid events.

use events::Code;

use crate::support::{Service, WRITE, send};

/// An event that is refused for the reason, and the field that is named.
fn bad(code: Code) -> (Vec<u8>, &'static str) {
    let with = |member: &str| format!(r#"{{"type":"conversion","name":"n","user_id":"u",{member}}}"#).into_bytes();
    let numbers = |count: usize, one: fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(",");
    match code {
        Code::InvalidJson => (b"[1]".to_vec(), ""),
        Code::BadUtf8 => (b"{\"type\":\"impression\",\"user_id\":\"\xff\"}".to_vec(), ""),
        Code::WrongType => (with(r#""value":true"#), "value"),
        Code::DuplicateKey => (with(r#""properties":{"a":{"b":1,"b":2}}"#), "properties.a.b"),
        Code::UnknownType => (br#"{"type":"exposure","user_id":"u"}"#.to_vec(), "type"),
        Code::MissingField => (br#"{"type":"conversion","user_id":"u"}"#.to_vec(), "name"),
        Code::MissingUser => (br#"{"type":"impression"}"#.to_vec(), "user_id"),
        Code::Empty => (br#"{"type":"conversion","name":"","user_id":"u"}"#.to_vec(), "name"),
        Code::TooLong => (with(&format!(r#""session_id":"{}""#, "s".repeat(513))), "session_id"),
        Code::BadValue => (with(r#""value":"free""#), "value"),
        Code::BadCurrency => (with(r#""currency":"EURO""#), "currency"),
        Code::TooPrecise => (with(r#""value":0.1234567"#), "value"),
        Code::ValueOutOfRange => (with(r#""value":1e15"#), "value"),
        Code::BadTimestamp => (with(r#""timestamp":"2026-02-30T00:00:00Z""#), "timestamp"),
        Code::TimestampOutOfRange => (with(r#""timestamp":"2026-03-01T13:00:00.000001Z""#), "timestamp"),
        Code::BeforeHorizon => (with(r#""timestamp":"2026-02-09T23:59:59Z""#), "timestamp"),
        Code::NulByte => (with(r#""city":"\u0000""#), "city"),
        Code::BadUnicode => (with(r#""properties":{"a":"\ud800"}"#), "properties.a"),
        Code::TooDeep => (with(&format!(r#""x":{}1{}"#, "[".repeat(17), "]".repeat(17))), ""),
        Code::TooManyKeys => (with(&format!(r#""properties":{{{}}}"#, numbers(257, |n| format!("\"k{n}\":1")))), "properties"),
        Code::ArrayTooLong => (with(&format!(r#""list":[{}]"#, numbers(257, |n| n.to_string()))), "list"),
        Code::KeyTooLong => (with(&format!(r#""{}":1"#, "k".repeat(129))), "properties"),
        Code::StringTooLong => (with(&format!(r#""text":"{}""#, "t".repeat(8193))), "text"),
        Code::NumberOutOfRange => (with(r#""number":1e400"#), "number"),
        Code::CardinalityLimit | Code::BlockedName => (with(r#""city":"any""#), "name"),
        Code::EventTooLarge => (with(&format!(r#""city":"{}""#, "c".repeat(65 * 1024))), ""),
    }
}

#[tokio::test]
async fn each_reason_rejects_one_of_a_hundred() {
    // A name is blocked in Postgres: see names.rs.
    for code in Code::ALL.iter().filter(|code| **code != Code::BlockedName) {
        let (event, field) = bad(*code);
        let mut events: Vec<Vec<u8>> =
            (0..100).map(|n| format!(r#"{{"type":"impression","event_id":"e{n}","user_id":"u{n}"}}"#).into_bytes()).collect();
        events[42] = event;
        let body = [b"{\"events\":[".to_vec(), events.join(b",".as_slice()), b"]}".to_vec()].concat();
        let service = Service::with(|limits| {
            // No name is known, and none may come.
            if *code == Code::CardinalityLimit {
                limits.event_names_max = 0;
            }
        })
        .await;
        let answer = send(service.address(), "POST", "/v1/events", &[("Authorization", &format!("Bearer {WRITE}"))], &body).await;
        let (accepted, duplicate, rejected) = answer.native();
        assert_eq!((accepted, duplicate, rejected.len()), (99, 0, 1), "{code:?}: {rejected:?}");
        let (index, found, found_field) = &rejected[0];
        assert_eq!((*index, found.as_str()), (42, code.as_str()));
        // A depth is only told by how far it goes.
        if *code == Code::TooDeep {
            assert!(found_field.starts_with("x[0]"), "{found_field}");
        } else {
            assert_eq!(found_field, field, "{code:?}");
        }
        let message = answer.json()["rejected"][0]["message"].as_str().expect("a text").to_owned();
        assert!(message.starts_with("events[42]") && message.len() < 2_000, "{message}");

        assert_eq!(service.log.events().len(), 99);
        assert_eq!(service.counter("weir_collector_events_received_total").await, 100);
        assert_eq!(service.counter("weir_collector_events_appended_total").await, 99);
        let series = format!("weir_collector_events_rejected_total{{code=\"{}\"}}", code.as_str());
        assert_eq!(service.counter(&series).await, 1);
    }
}

#[tokio::test]
async fn all_faults_of_all_events_are_said() {
    let service = Service::start().await;
    let body = r#"[{"type":"impression","user_id":"u"},
        {"type":"conversion","value":true,"currency":7,"timestamp":1772366400,"anonymous_id":{}},
        {"type":"campaign_event","name":"stare","user_id":"u","component":"c"}]"#;
    let answer = service.post(body).await;
    let (accepted, _, rejected) = answer.native();
    let rejected: Vec<_> = rejected.iter().map(|(index, code, field)| format!("{index} {code} {field}")).collect();
    assert_eq!(accepted, 1);
    assert_eq!(
        rejected,
        [
            "1 wrong_type value",
            "1 wrong_type currency",
            "1 wrong_type timestamp",
            "1 wrong_type anonymous_id",
            "1 missing_field name",
            "2 bad_value name",
            "2 missing_field campaign",
        ]
    );
    assert_eq!(service.counter("weir_collector_events_rejected_total{code=\"wrong_type\"}").await, 1);
    assert_eq!(service.counter("weir_collector_events_rejected_total{code=\"bad_value\"}").await, 1);
}

#[tokio::test]
async fn repetitions_within_a_request_count_once() {
    let service = Service::start().await;
    let one = |id: &str, at: &str, kind: &str| format!(r#"{{"type":"{kind}","name":"n","event_id":"{id}","user_id":"u"{at}}}"#);
    let at = r#","timestamp":"2026-03-01T11:00:00Z""#;
    let events = [
        one("a", at, "engagement"),
        one("a", at, "engagement"),
        one("a", at, "conversion"),
        one("a", r#","timestamp":"2026-03-01T11:00:01Z""#, "engagement"),
        one("a", r#","timestamp":"2026-03-01T12:00:00+01:00""#, "engagement"),
        one("b", "", "engagement"),
        one("b", "", "engagement"),
        r#"{"type":"engagement","name":"n","user_id":"u"}"#.to_owned(),
        r#"{"type":"engagement","name":"n","user_id":"u"}"#.to_owned(),
    ];
    let (accepted, duplicate, rejected) = service.post(&format!("[{}]", events.join(","))).await.native();
    assert_eq!((accepted, duplicate, rejected.len()), (6, 3, 0));
    assert_eq!(service.log.events().len(), 6);
    assert_eq!(service.counter("weir_collector_events_received_total").await, 9);
    assert_eq!(service.counter("weir_collector_events_duplicate_total").await, 3);
}
