//! Visitors who object to being followed: of none of their requests is an id in what is appended. And addresses of none.

use std::collections::{BTreeSet, HashSet};

use events::{Event, Kind, identity, wire};
use serde_json::{Value, json};

use crate::requests::{recorded, send_recorded};
use crate::support::{Answer, Service, WRITE, send};

/// Each way to object, as requests have it and as it is called.
const SIGNALS: [(&str, &str, &str); 3] = [("Sec-GPC", "1", "gpc"), ("DNT", "1", "dnt"), ("SP-Anonymous", "*", "sp_anonymous")];

/// Members of requests whose values name a user, a device or a session, in any dialect.
const IDS: [&str; 32] = [
    "userId",
    "user_id",
    "userID",
    "anonymousId",
    "anonymous_id",
    "distinct_id",
    "$distinct_id",
    "$device_id",
    "device_id",
    "$anon_distinct_id",
    "$user_id",
    "$session_id",
    "$window_id",
    "session_id",
    "session_identifier",
    "sessionId",
    "sessionID",
    "stableID",
    "customIDs",
    "uid",
    "duid",
    "nuid",
    "tnuid",
    "sid",
    "previousId",
    "previous_id",
    "groupId",
    "group_id",
    "$group_key",
    "alias",
    "email",
    "external_id",
];

/// All that the log was given, as one text.
fn appended(service: &Service) -> String {
    let records = service.log.records.lock().expect("nobody panicked");
    records.iter().map(|record| String::from_utf8_lossy(record.bytes()).into_owned() + "\n").collect()
}

/// Collects what a request names, by the names of its members; texts of JSON within texts are read, too.
fn ids_in(value: &Value, is_id: bool, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| ids_in(value, is_id || IDS.contains(&key.as_str()), found));
        }
        Value::Array(values) => values.iter().for_each(|value| ids_in(value, is_id, found)),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(inner) if inner.is_object() || inner.is_array() => ids_in(&inner, is_id, found),
            _ if is_id => drop(found.insert(text.clone())),
            _ => {}
        },
        Value::Number(number) if is_id => drop(found.insert(number.to_string())),
        _ => {}
    }
}

/// The ids that a recorded request carries: in its JSON, its parameters, its cookies, and whatever the collector finds in it once it is
/// unwrapped, by what it stores of a visitor who does not object.
async fn ids_of(case: &Value) -> (BTreeSet<String>, Vec<Event>, Answer) {
    let request = &case["request"];
    let mut found = BTreeSet::new();
    ids_in(&request["body"], false, &mut found);
    let target = request["target"].as_str().expect("a target");
    let form = request["body"].as_str().unwrap_or_default();
    for pair in target.split(['?', '&']).chain(form.split('&')) {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let decoded = percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
        let is_id = IDS.contains(&key.rsplit('.').next().unwrap_or_default());
        ids_in(&Value::String(decoded), is_id, &mut found);
    }
    if let Some(cookies) = request["headers"]["Cookie"].as_str() {
        found.extend(cookies.split("; ").filter_map(|cookie| Some(cookie.split_once('=')?.1.to_owned())));
    }
    let service = Service::start().await;
    let answer = send_recorded(&service, request, &[]).await;
    let events = service.log.events();
    for event in &events {
        found.extend([&event.external_id, &event.anonymous_id, &event.session_id].into_iter().flatten().map(ToString::to_string));
        found.insert(event.user_id.to_string());
        let metadata =
            event.metadata.as_ref().map_or(Value::Null, |metadata| serde_json::from_str(metadata.get()).expect("JSON"));
        ids_in(&metadata, false, &mut found);
    }
    // What stands for an id that is none.
    found.retain(|id| !id.is_empty() && !events::rules::is_placeholder_id(id));
    (found, events, answer)
}

/// Whether a text has an id in it: a short one by itself only, as a value.
fn has(text: &str, id: &str) -> bool {
    let quoted = serde_json::to_string(id).expect("a text");
    if id.len() < 5 { text.contains(&quoted) } else { text.contains(quoted.trim_matches('"')) }
}

#[tokio::test]
async fn no_id_of_a_visitor_who_objects_is_appended() {
    let (mut requests, mut searched) = (0, 0);
    for (name, case) in recorded() {
        // One of them objects by itself.
        if case["request"]["method"] == "OPTIONS" || case["request"]["headers"].get("SP-Anonymous").is_some() {
            continue;
        }
        let (ids, before, plain) = ids_of(&case).await;
        // The project's key is in each record of a refused event, and project and route are no ids.
        for (header, value, signal) in SIGNALS {
            let service = Service::start().await;
            let answer = send_recorded(&service, &case["request"], &[(header, value)]).await;
            assert_eq!(answer.status, plain.status, "{name} {signal}");
            let cookie = answer.header("set-cookie").unwrap_or_default();
            assert!(cookie.is_empty() || (signal == "sp_anonymous" && cookie.starts_with("sp=; Max-Age=0")), "{name}: {cookie}");
            let text = appended(&service);
            for id in &ids {
                assert!(!has(&text, id), "{name} {signal}: found {id:?} in {text}");
                searched += 1;
            }
            let events = service.log.events();
            let expected = before.iter().filter(|event| event.kind() != Kind::Identity);
            for event in expected.filter(|event| event.id_from_client) {
                let is_it = |found: &&Event| (found.event_id, found.kind()) == (event.event_id, event.kind());
                let found = events.iter().find(is_it).unwrap_or_else(|| panic!("{name} {signal}: {event:?} is missing"));
                assert_eq!((found.claimed_at, &found.name, found.value), (event.claimed_at, &event.name, event.value), "{name}");
            }
            for event in &events {
                assert_ne!(event.kind(), Kind::Identity, "{name}");
                assert_eq!(event.user_id, identity::unlinked_user(event.project_id, event.kind(), event.event_id), "{name}");
                let metadata: Value = serde_json::from_str(event.metadata.as_ref().expect("says why").get()).expect("JSON");
                assert_eq!(metadata["privacy"], signal, "{name}");
                if let events::Details::Impression(details) = &event.details {
                    assert_eq!(details.user_was_eligible, Some(false), "{name}");
                }
            }
            for rejected in service.log.rejected() {
                assert_eq!((rejected.message.as_str(), rejected.event.as_deref()), ("", Some("")), "{name}");
            }
            let count = async |action: &str| {
                service.counter(&format!("weir_collector_privacy_total{{signal=\"{signal}\",action=\"{action}\"}}")).await
            };
            assert_eq!(count("unlinked").await, events.len() as u64, "{name}");
            let received = service.counter("weir_collector_events_received_total").await;
            let duplicate = service.counter("weir_collector_events_duplicate_total").await;
            assert_eq!(received, events.len() as u64 + duplicate + count("dropped").await + count("withheld").await, "{name}");
            // A retry of the same bytes is the same events.
            let identity = |event: &Event| (event.kind(), event.user_id, event.event_id, event.claimed_at);
            let first: HashSet<_> = events.iter().filter(|event| event.id_from_client).map(identity).collect();
            send_recorded(&service, &case["request"], &[(header, value)]).await;
            let both: HashSet<_> = service.log.events().iter().filter(|event| event.id_from_client).map(identity).collect();
            assert_eq!(first, both, "{name}");
            requests += 1;
        }
    }
    assert!(requests > 180 && searched > 300, "{requests} requests, {searched} ids");
}

#[tokio::test]
async fn a_signal_counts_if_the_operator_says_so() {
    let body = r#"{"events":[{"type":"impression","user_id":"ada-lovelace"},{"type":"identity","name":"identify","user_id":"ada-lovelace"}]}"#;
    let check = async |signals: &str, target: &str, header: (&str, &str), expected: Option<&str>| {
        let folder = tempfile::tempdir().expect("a folder");
        let signals = signals.parse().expect("accepted");
        let service = Service::start_with_keys(folder, |config| config.privacy_signals = signals).await;
        let answer = send(service.address(), "POST", target, &[header], body.as_bytes()).await;
        let event = service.log.events().remove(0);
        let text = event.metadata.map(|metadata| metadata.to_string());
        assert_eq!(text, expected.map(|signal| format!("{{\"privacy\":\"{signal}\"}}")), "{target} {header:?}");
        let told = match expected {
            Some(_) => json!({ "accepted": 1, "duplicate": 0, "dropped": 1, "rejected": [] }),
            None => json!({ "accepted": 2, "duplicate": 0, "rejected": [] }),
        };
        assert_eq!(answer.json(), told);
    };
    let target = format!("/v1/events?key={WRITE}");
    check("gpc,dnt", &target, ("Sec-GPC", "1"), Some("gpc")).await;
    check("dnt", &target, ("Sec-GPC", "1"), None).await;
    check("dnt", &target, ("DNT", "1"), Some("dnt")).await;
    check("none", &target, ("DNT", "1"), None).await;
    check("none", &target, ("SP-Anonymous", "*"), Some("sp_anonymous")).await;
    // A page of ours that asked says so.
    let agreed = format!("{target}&consent=true");
    check("gpc,dnt", &agreed, ("Sec-GPC", "1"), None).await;
    check("gpc,dnt", &agreed, ("SP-Anonymous", "1"), Some("sp_anonymous")).await;
    check("gpc,dnt", &format!("{target}&consent=yes"), ("Sec-GPC", "1"), Some("gpc")).await;

    // Others cannot say it.
    let service = Service::start().await;
    let track = r#"{"event":"e","userId":"ada-lovelace"}"#;
    let answer =
        send(service.address(), "POST", "/v1/track?writeKey=wk_test&consent=true", &[("DNT", "1")], track.as_bytes()).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{\"success\":true}"));
    assert!(!appended(&service).contains("ada-lovelace"));
    // An identity is nothing else: it is answered as any other, and is not there.
    let identify = r#"{"userId":"ada-lovelace","traits":{"email":"ada@example.com"}}"#;
    let answer = send(service.address(), "POST", "/v1/identify?writeKey=wk_test", &[("DNT", "1")], identify.as_bytes()).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "{\"success\":true}"));
    assert_eq!(service.log.events().len(), 1);
    assert_eq!(service.counter("weir_collector_privacy_total{signal=\"dnt\",action=\"dropped\"}").await, 1);
}

/// What is refused of such a visitor is counted, and kept without its bytes.
#[tokio::test]
async fn what_is_refused_of_a_visitor_who_objects_keeps_no_bytes() {
    let service = Service::start().await;
    let body =
        json!({ "batch": [{ "type": "track", "event": "e", "userId": "ada-lovelace", "timestamp": "1999-01-01T00:00:00Z" }] });
    let target = "/v1/batch?writeKey=wk_test";
    send(service.address(), "POST", target, &[("Sec-GPC", "1")], body.to_string().as_bytes()).await;
    let rejected = service.log.rejected().pop().expect("one");
    assert_eq!((rejected.code.as_str(), rejected.field.as_str()), ("timestamp_out_of_range", "timestamp"));
    assert_eq!((rejected.message.as_str(), rejected.event.as_deref()), ("", Some("")));
    assert!(!appended(&service).contains("ada"), "{}", appended(&service));
    assert_eq!(service.counter("weir_collector_privacy_total{signal=\"gpc\",action=\"withheld\"}").await, 1);
    send(service.address(), "POST", target, &[], body.to_string().as_bytes()).await;
    assert!(service.log.rejected().pop().expect("one").event.expect("kept").contains("ada-lovelace"));
}

/// An address, wherever a dialect has it, in what is stored and in what is refused.
#[tokio::test]
async fn no_address_is_appended() {
    const ADDRESS: &str = "203.0.113.77";
    let late = json!("1999-01-01T00:00:00Z");
    let key = [("X-Write-Key", "wk_test:s")];
    let statsig = [("statsig-api-key", "wk_test")];
    let check = async |target: &str, headers: &[(&str, &str)], body: Value, counts: (usize, usize)| {
        let service = Service::start().await;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let method = if body.is_empty() { "GET" } else { "POST" };
        let answer = send(service.address(), method, target, headers, body.as_bytes()).await;
        let found = (service.log.events().len(), service.log.rejected().len());
        assert_eq!(found, counts, "{target}: {answer:?}");
        let text = appended(&service);
        assert!(!text.contains(ADDRESS), "{target}: {text}");
        assert_eq!(text.contains("kept-as-it-is"), counts != (0, 0), "{target}: {text}");
        for rejected in service.log.rejected().iter().filter_map(|rejected| rejected.event.as_deref()) {
            let is_json = serde_json::from_str::<Value>(rejected).is_ok();
            assert!(is_json || !rejected.starts_with('{'), "{rejected}");
        }
    };
    let call = |time: &Value| {
        json!({ "type": "track", "event": "kept-as-it-is", "userId": "u", "timestamp": time, "properties": { "ip": ADDRESS, "a": { "user_ip": ADDRESS } },
            "context": { "ip": ADDRESS, "library": { "name": "kept-as-it-is" } }, "source_ip": ADDRESS, "user_ip": ADDRESS })
    };
    let segment = json!({ "writeKey": "wk_test", "batch": [call(&Value::Null), call(&late)], "context": { "ip": ADDRESS } });
    check("/v1/batch", &[], segment.clone(), (1, 1)).await;
    check("/api/s/batch", &key, segment, (1, 1)).await;
    let capture = |time: &Value| json!({ "event": "kept-as-it-is", "distinct_id": "u", "timestamp": time, "ip": ADDRESS, "properties": { "$ip": ADDRESS, "ip": ADDRESS } });
    check("/batch/", &[], json!({ "api_key": "wk_test", "batch": [capture(&Value::Null), capture(&late)] }), (1, 1)).await;
    let contexts = json!({ "schema": "iglu:c/c/jsonschema/1-0-0", "data": [{ "schema": "iglu:a/b/jsonschema/1-0-0", "data": { "ip": ADDRESS } }] });
    let tracked = |time: &str| json!({ "e": "se", "aid": "wk_test", "se_ac": "kept-as-it-is", "uid": "u", "dtm": time, "ip": ADDRESS, "co": contexts.to_string() });
    let snowplow = json!({ "schema": "s", "data": [tracked("1772366390000"), tracked("1")] });
    check("/com.snowplowanalytics.snowplow/tp2", &[], snowplow, (1, 1)).await;
    let image = format!("/i?e=se&aid=wk_test&se_ac=kept-as-it-is&uid=u&ip={ADDRESS}");
    check(&image, &[], Value::Null, (1, 0)).await;
    check(&format!("{image}&dtm=1"), &[], Value::Null, (0, 1)).await;
    let logged = |time: i64| json!({ "eventName": "kept-as-it-is", "time": time, "user": { "userID": "u", "ip": ADDRESS }, "metadata": { "ip": ADDRESS } });
    check("/v1/log_event", &statsig, json!({ "events": [logged(1_772_366_390_000), logged(1)] }), (1, 1)).await;
    let plugged = |name: &str| json!({ "event_name": name, "user_id": "u", "ip": ADDRESS, "note": "kept-as-it-is", "properties_json": json!({ "ip": ADDRESS }).to_string() });
    check("/track?client_key=wk_test", &[], json!([plugged("n"), plugged("")]), (1, 1)).await;
    let native = json!({ "type": "impression", "user_id": "u", "ip": ADDRESS, "user_context": { "ip": ADDRESS, "note": "kept-as-it-is" }, "properties": { "user_ip": [ADDRESS] } });
    check("/v1/events?key=wk_test", &[], native, (1, 0)).await;
    let pixel = format!("/v1/pixel.gif?key=wk_test&type=conversion&name=kept-as-it-is&user_id=u&ip={ADDRESS}");
    check(&pixel, &[], Value::Null, (1, 0)).await;
    check(&format!("{pixel}&timestamp=1999-01-01T00:00:00Z"), &[], Value::Null, (0, 1)).await;
    // The call within an image's parameter, and what was no JSON and is kept as it was sent.
    let data = base64(&json!({ "userId": "u", "event": "kept-as-it-is", "context": { "ip": ADDRESS } }).to_string());
    check(&format!("/v1/pixel/track?writeKey=wk_test&data={data}"), &[], Value::Null, (1, 0)).await;
    let broken = format!("{{\"ip\":\"{ADDRESS}\",\"note\":\"kept-as-it-is\",");
    let plugged = json!([{ "event_name": "n", "user_id": "u", "properties_json": broken }]);
    check("/track?client_key=wk_test", &[], plugged, (1, 0)).await;
    check(&format!("{image}&co={}", broken.replace('"', "%22")), &[], Value::Null, (1, 0)).await;
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text)
}

/// The records of a visitor who objects are read as any others: they are of the same version.
#[tokio::test]
async fn records_of_those_who_object_are_events_of_the_same_version() {
    let service = Service::start().await;
    let body = r#"{"type":"conversion","name":"n","value":"1.5","currency":"EUR","event_id":"e"}"#;
    let answer = send(service.address(), "POST", "/v1/events?key=wk_test", &[("DNT", "1")], body.as_bytes()).await;
    assert_eq!(answer.native(), (1, 0, vec![]), "an event of nobody needs no user");
    let record = service.log.records.lock().expect("nobody panicked").pop().expect("one");
    let event = wire::decode(record.bytes()).expect("an event");
    assert_eq!(record.key(), event.user_id);
}
