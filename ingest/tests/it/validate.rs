//! `/validate`: what would become of events, in any dialect, and nothing is stored.

use serde_json::{Value, json};

use crate::support::{Service, WRITE, gzip, send};

async fn check(service: &Service, query: &str, body: &str) -> Value {
    let headers = [("Authorization", &*format!("Bearer {WRITE}"))];
    let answer = send(service.address(), "POST", &format!("/validate{query}"), &headers, body.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn each_fault_and_each_repair_is_told_and_nothing_is_stored() {
    let service = Service::start().await;
    let calls = r#"{"batch":[
        {"type":"track","event":"Order Completed","userId":"undefined","anonymousId":"d","timestamp":"soon","properties":{"revenue":"19,90"}},
        {"type":"track","event":"e","properties":{"a":NaN}},
        {"type":"track","event":"fine","userId":"u"}]}"#;
    let found = check(&service, "", calls).await;
    assert_eq!((&found["dialect"], &found["accepted"], &found["duplicate"]), (&json!("segment"), &json!(2), &json!(0)));
    assert_eq!(found["rejected"].as_array().map(Vec::len), Some(1));
    assert_eq!((&found["rejected"][0]["index"], &found["rejected"][0]["field"]), (&json!(1), &json!("userId")));
    assert_eq!(
        found["repaired"],
        json!([
            { "index": 0, "field": "userId", "reason": "placeholder_id", "from": "undefined" },
            { "index": 0, "field": "timestamp", "reason": "timestamp", "from": "soon" },
            { "index": 0, "field": "properties.revenue", "reason": "value", "from": "19,90" },
        ])
    );
    let bodies = [
        ("native", r#"{"events":[{"type":"impression","user_id":"u","timestamp":"soon"}]}"#, 0),
        ("segment", r#"{"type":"identify","userId":"u","traits":[]}"#, 1),
        ("posthog", r#"{"api_key":"k","batch":[{"event":"e","distinct_id":"u","timestamp":"soon"}]}"#, 1),
        ("snowplow", r#"{"schema":"s","data":[{"e":"pv","aid":"a","duid":"d","dtm":"soon"}]}"#, 1),
        ("growthbook", r#"[{"event_name":"e","user_id":"u"}]"#, 1),
        ("statsig", r#"{"events":[{"eventName":"e","user":{"userID":"u"},"time":"soon"}]}"#, 1),
    ];
    for (dialect, body, accepted) in bodies {
        let found = check(&service, "", body).await;
        assert_eq!((&found["dialect"], &found["accepted"]), (&json!(dialect), &json!(accepted)), "{body}: {found}");
    }
    let found = check(&service, "?dialect=jitsu", r#"{"type":"page","userId":"u"}"#).await;
    assert_eq!((&found["dialect"], &found["accepted"]), (&json!("jitsu"), &json!(1)));

    assert_eq!(service.log.records.lock().expect("nobody panicked").len(), 0);
    for counter in ["received", "appended", "duplicate"] {
        assert_eq!(service.counter(&format!("weir_collector_events_{counter}_total")).await, 0);
    }
}

#[tokio::test]
async fn what_is_in_no_dialect_is_said_so() {
    let service = Service::start().await;
    let send =
        async |headers: &[(&str, &str)], target: &str, body: &[u8]| send(service.address(), "POST", target, headers, body).await;
    let key = [("X-Key", ""), ("Authorization", "Bearer wk_test")];
    for body in [b"{}".as_slice(), b"", b"hello", gzip(b"{}").as_slice()] {
        let answer = send(&key[1..], "/validate", body).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_body"), "{answer:?}");
    }
    let answer = send(&key[1..], "/validate?dialect=unknown", b"{}").await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_body"));
    let answer = send(&[], "/validate", b"{\"events\":[]}").await;
    assert_eq!(answer.status, 401);
}
