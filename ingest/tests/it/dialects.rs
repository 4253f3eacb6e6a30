//! What clients of other collectors rely on, beyond single requests (those are in `testdata/requests`).

use eventlog::AppendError;
use serde_json::{Value, json};

use crate::support::{Answer, Service, gzip, send};

const V1: &str = "/i/v1/analytics/events";

async fn v1(service: &Service, events: &[Value]) -> Answer {
    let headers = [
        ("Authorization", "Bearer wk_test"),
        ("Content-Type", "application/json"),
        ("User-Agent", "posthog-python/7.91.1"),
        ("PostHog-Sdk-Info", "posthog-python/7.91.1"),
        ("PostHog-Attempt", "1"),
        ("PostHog-Request-Id", "019ca944-0000-7000-8000-0000000000ff"),
        ("PostHog-Request-Timestamp", "2026-03-01T12:00:00Z"),
    ];
    let body = json!({ "created_at": "2026-03-01T12:00:00Z", "batch": events }).to_string();
    send(service.address(), "POST", V1, &headers, body.as_bytes()).await
}

fn event(uuid: &str, user: &str) -> Value {
    json!({ "event": "e", "uuid": uuid, "distinct_id": user, "timestamp": "2026-03-01T11:59:58Z", "properties": {} })
}

#[tokio::test]
async fn events_that_could_not_be_stored_are_asked_for_again_and_dropped_ones_are_not() {
    let service = Service::start().await;
    *service.log.fails.lock().expect("nobody panicked") = Some(AppendError::Unavailable("down".to_owned()));
    let events = [event("019ca944-0000-7000-8000-000000000001", "u"), event("019ca944-0000-7000-8000-000000000002", "")];
    let answer = v1(&service, &events).await;
    assert_eq!((answer.status, answer.header("retry-after")), (200, Some("1")), "{answer:?}");
    let results = answer.json()["results"].clone();
    assert_eq!(results["019ca944-0000-7000-8000-000000000001"], json!({ "result": "retry", "details": "not_persisted" }));
    assert_eq!(results["019ca944-0000-7000-8000-000000000002"]["result"], "drop");
    assert_eq!(answer.header("x-events-accepted"), Some("0"));

    *service.log.fails.lock().expect("nobody panicked") = None;
    let answer = v1(&service, &events[..1]).await;
    assert_eq!(answer.json(), json!({ "results": { "019ca944-0000-7000-8000-000000000001": { "result": "ok" } } }));
    assert_eq!(service.log.events().len(), 1);
}

/// v0 cannot say so of each: then all come again.
#[tokio::test]
async fn overload_is_answered_as_each_client_keeps_its_events() {
    let service = Service::start().await;
    *service.log.fails.lock().expect("nobody panicked") = Some(AppendError::Unavailable("down".to_owned()));
    let check = async |target: &str, body: &str, headers: &[(&str, &str)], expected: u16| {
        let answer = send(service.address(), "POST", target, headers, body.as_bytes()).await;
        assert_eq!(answer.status, expected, "{target}: {answer:?}");
        assert!(answer.header("retry-after").is_some(), "{target}");
    };
    check("/batch/", r#"{"api_key":"wk_test","batch":[{"event":"e","distinct_id":"u"}]}"#, &[], 503).await;
    check("/com.snowplowanalytics.snowplow/tp2", r#"{"data":[{"e":"pv","aid":"wk_test","duid":"d"}]}"#, &[], 503).await;
    check("/track?client_key=wk_test", r#"[{"event_name":"e","user_id":"u"}]"#, &[], 503).await;
    check("/v1/log_event", r#"{"events":[{"eventName":"e","user":{"userID":"u"}}]}"#, &[("statsig-api-key", "wk_test")], 503)
        .await;
    check("/api/s/track", r#"{"event":"e","userId":"u"}"#, &[("X-Write-Key", "wk_test:s")], 503).await;
    check("/v1/track", r#"{"event":"e","userId":"u","writeKey":"wk_test"}"#, &[], 429).await;
}

/// One event that is too large, or broken, takes no other one with it, and one id counts once.
#[tokio::test]
async fn one_bad_event_of_ten_harms_no_other() {
    let ten = |bad: Value| {
        let mut events: Vec<Value> =
            (0..10).map(|n| json!({ "event": "e", "distinct_id": "u", "uuid": format!("id-{n}") })).collect();
        events[4] = bad;
        json!({ "batch": events, "api_key": "wk_test" }).to_string()
    };
    let large = json!({ "event": "e", "distinct_id": "u", "properties": { "text": "x".repeat(1_200_000) } });
    for bad in [large, json!({ "event": "e" }), json!(7), json!({ "event": 7, "distinct_id": "u" })] {
        for compressed in [false, true] {
            let service = Service::start().await;
            let body = ten(bad.clone()).into_bytes();
            let body = if compressed { gzip(&body) } else { body };
            let answer = send(service.address(), "POST", "/batch/", &[], &body).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "{\"status\":\"Ok\"}"));
            assert_eq!((answer.header("x-events-accepted"), answer.header("x-events-rejected")), (Some("9"), Some("1")));
            assert_eq!(service.log.events().len(), 9);
        }
    }
    let service = Service::start().await;
    let answer = send(
        service.address(),
        "POST",
        "/batch/",
        &[],
        ten(json!({ "event": "e", "distinct_id": "u", "uuid": "id-3" })).as_bytes(),
    )
    .await;
    assert_eq!(answer.header("x-events-accepted"), Some("10"));
    assert_eq!(service.log.events().len(), 9);
}

/// A small body that would inflate to much more than is accepted costs the memory of bodies without a key, and no more.
#[tokio::test]
async fn a_bomb_without_a_key_is_refused() {
    let service = Service::start().await;
    let answer = send(service.address(), "POST", "/e/?compression=gzip-js", &[], &gzip(&vec![b' '; 64 * 1024 * 1024])).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    let answer = send(service.address(), "POST", "/e/", &[], b"{\"event\":\"e\",\"distinct_id\":\"u\"").await;
    assert_eq!(answer.status, 401);
    let page = service.get("/metrics").await.body;
    assert!(page.contains("weir_collector_unauthenticated_bodies_in_flight_bytes 0\n"), "{page}");
}

/// A tracker without any id of its own gets Snowplow's cookie, and stays one visitor; one that asks for no trace gets none.
#[tokio::test]
async fn snowplows_cookie_makes_one_visitor() {
    let service = Service::start().await;
    let target = "/i?e=pv&aid=wk_test";
    let answer = service.get(target).await;
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    let (pair, attributes) = cookie.split_once("; ").expect("has attributes");
    assert_eq!(attributes, "Max-Age=31536000; Path=/; Secure; HttpOnly; SameSite=None");
    let id = pair.strip_prefix("sp=").expect("the cookie's name");
    let answer = send(service.address(), "GET", target, &[("Cookie", pair), ("Origin", "https://shop.example")], b"").await;
    assert_eq!(answer.header("set-cookie"), None);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    let users: Vec<String> = service.log.events().iter().map(|event| event.user_id.to_string()).collect();
    assert_eq!(users, [id, id]);

    let anonymous = [("Cookie", pair), ("SP-Anonymous", "*")];
    let answer = send(service.address(), "GET", &format!("{target}&duid=d"), &anonymous, b"").await;
    assert!(answer.header("set-cookie").expect("expired").starts_with("sp=; Max-Age=0; "));
    // Each is an event of nobody, and none is refused for naming nobody.
    let answer = send(service.address(), "GET", target, &anonymous, b"").await;
    assert_eq!((answer.status, answer.header("x-events-accepted")), (200, Some("1")));
    assert!(answer.header("set-cookie").expect("expired").starts_with("sp=; Max-Age=0; "));
    let events = service.log.events();
    let [.., one, two] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&one.external_id, &one.anonymous_id, &two.external_id, &two.anonymous_id), (&None, &None, &None, &None));
    assert_ne!(one.user_id, two.user_id);
}

/// One experiment that each dialect tells of in its own words: the same users, variants and orders.
#[tokio::test]
async fn one_experiment_is_the_same_by_every_dialect() {
    let ue = json!({ "schema": "s", "data": { "schema": "iglu:com.acme/buy/jsonschema/1-0-0", "data": { "revenue": 19.9, "currency": "EUR" } } });
    type Sent<'a> = (&'a str, &'a [(&'a str, &'a str)], Value);
    let sent: [Sent<'_>; 6] = [
        (
            "/v1/batch",
            &[],
            json!({ "writeKey": "wk_test", "batch": [
            { "type": "track", "event": "Experiment Viewed", "userId": "u", "properties": { "experiment_id": "x", "variation_id": "b" } },
            { "type": "track", "event": "buy", "userId": "u", "properties": { "revenue": 19.9, "currency": "EUR" } },
        ] }),
        ),
        (
            "/batch/",
            &[],
            json!({ "api_key": "wk_test", "batch": [
            { "event": "$feature_flag_called", "distinct_id": "u", "properties": { "$feature_flag": "x", "$feature_flag_response": "b" } },
            { "event": "buy", "distinct_id": "u", "properties": { "revenue": 19.9, "currency": "EUR" } },
        ] }),
        ),
        (
            "/com.snowplowanalytics.snowplow/tp2",
            &[],
            json!({ "schema": "s", "data": [
            { "e": "se", "aid": "wk_test", "uid": "u", "se_ca": "ab", "se_ac": "Experiment Viewed", "se_la": "x", "se_pr": "b" },
            { "e": "ue", "aid": "wk_test", "uid": "u", "ue_pr": ue.to_string() },
        ] }),
        ),
        (
            "/track?client_key=wk_test",
            &[],
            json!([
                { "event_name": "Experiment Viewed", "user_id": "u", "properties_json": { "experimentId": "x", "variationId": "b" } },
                { "event_name": "buy", "user_id": "u", "properties_json": { "revenue": 19.9, "currency": "EUR" } },
            ]),
        ),
        (
            "/v1/log_event",
            &[("statsig-api-key", "wk_test")],
            json!({ "events": [
            { "eventName": "statsig::config_exposure", "user": { "userID": "u" }, "metadata": { "config": "x", "ruleID": "b" } },
            { "eventName": "buy", "user": { "userID": "u" }, "value": 19.9, "metadata": { "currency": "EUR" } },
        ] }),
        ),
        (
            "/b",
            &[("X-Write-Key", "wk_test:secret")],
            json!({ "batch": [
            { "type": "track", "event": "experiment_viewed", "userId": "u", "properties": { "experimentId": "x", "variationId": "b" } },
            { "type": "track", "event": "buy", "userId": "u", "properties": { "revenue": "19.90", "currency": "EUR" } },
        ] }),
        ),
    ];
    for (target, headers, body) in sent {
        let service = Service::start().await;
        let answer = send(service.address(), "POST", target, headers, body.to_string().as_bytes()).await;
        assert!(matches!(answer.status, 200 | 202), "{target}: {answer:?}");
        let found: Vec<Value> = service
            .log
            .events()
            .iter()
            .map(|event| {
                json!([
                    event.kind().as_str(),
                    event.external_id,
                    event.experiment,
                    event.variant,
                    event.name,
                    event.value,
                    event.currency
                ])
            })
            .collect();
        let expected = [
            json!(["impression", "u", "x", "b", null, null, null]),
            json!(["conversion", "u", null, null, "buy", "19.9", "EUR"]),
        ];
        assert_eq!(found, expected, "{target}");
    }
}

/// Every question that an SDK asks before it sends has an answer, and takes no key.
#[tokio::test]
async fn questions_of_sdks_are_answered() {
    let service = Service::start().await;
    for (method, target) in [
        ("POST", "/flags/?v=2"),
        ("POST", "/decide/?v=3"),
        ("GET", "/array/phc_x/config?ip=0"),
        ("GET", "/api/surveys/?token=x"),
        ("GET", "/api/feature_flag/local_evaluation?token=x"),
        ("POST", "/v1/initialize"),
        ("GET", "/v1/download_config_specs/secret-x.json"),
        ("POST", "/v1/get_id_lists"),
    ] {
        let answer = send(service.address(), method, target, &[("Origin", "https://shop.example")], b"").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{target}");
        assert!(answer.json().is_object(), "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"), "{target}");
    }
    // What Segment's client in a page counts of itself is shared as its events are, and a script is one.
    for (method, target, shared, content_type) in [
        ("POST", "/v1/m", "*", "application/json"),
        ("GET", "/array/phc_x/config.js", "https://shop.example", "text/javascript; charset=utf-8"),
    ] {
        let answer = send(service.address(), method, target, &[("Origin", "https://shop.example")], b"").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)), "{target}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(shared), "{target}");
    }
    assert_eq!(service.log.events().len(), 0);
}

/// The native route tells the same of each event, where the client asks for it.
#[tokio::test]
async fn native_clients_may_ask_what_became_of_each_event() {
    let service = Service::start().await;
    let body = r#"{"events":[{"type":"impression","user_id":"u","event_id":"a"},{"type":"impression","user_id":"u","event_id":"a"},
        {"type":"nonsense"},{"type":"impression","user_id":"null","anonymous_id":"d"}]}"#;
    let key = [("Authorization", "Bearer wk_test")];
    let post = async || send(service.address(), "POST", "/v1/events?results=true", &key, body.as_bytes()).await;
    let answer = post().await;
    assert_eq!(
        answer.json()["results"],
        json!([
            { "result": "ok" },
            { "result": "ok", "details": "duplicate" },
            { "result": "drop", "details": "unknown_type" },
            { "result": "warning", "details": "repaired" },
        ])
    );
    *service.log.fails.lock().expect("nobody panicked") = Some(AppendError::Unavailable("down".to_owned()));
    let answer = post().await;
    assert_eq!((answer.status, answer.header("retry-after")), (200, Some("1")));
    let results: Vec<Value> =
        answer.json()["results"].as_array().expect("a list").iter().map(|one| one["result"].clone()).collect();
    assert_eq!(results, ["retry", "retry", "drop", "retry"]);
    assert_eq!(answer.json()["accepted"], json!(0));
}

/// Jitsu's image is that of the cookie of its own clients, where the page asks for that; no other image of calls has one.
#[tokio::test]
async fn jitsus_image_makes_one_visitor_where_the_page_wants_it() {
    let service = Service::start().await;
    let target = "/api/px/page?writekey=wk_test&process_headers=true";
    let first = service.get(target).await;
    let cookie = first.header("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
    assert!(cookie.starts_with("__eventn_id="), "{cookie}");
    let headers = [("Cookie", cookie.as_str())];
    let again = send(service.address(), "GET", target, &headers, b"").await;
    assert_eq!(again.header("set-cookie"), None);
    let known = send(service.address(), "GET", &format!("{target}&userId=u"), &headers, b"").await;
    assert_eq!(known.header("set-cookie"), None);
    let events = service.log.events();
    let devices: Vec<_> = events.iter().map(|event| event.anonymous_id.clone()).collect();
    assert_eq!(devices, vec![Some(cookie["__eventn_id=".len()..].into()); 3]);
    assert_eq!(events[0].user_id, events[1].user_id);
    for target in ["/api/px/page?writekey=wk_test", "/pixel/v1/page?writeKey=wk_test", "/v1/pixel/page?writeKey=wk_test"] {
        let answer = send(service.address(), "GET", target, &headers, b"").await;
        assert_eq!((answer.status, answer.header("set-cookie")), (200, None), "{target}");
        assert!(answer.header("x-weir-error").expect("refused").starts_with("missing_user"), "{target}");
    }
    assert_eq!(service.log.events().len(), 3);
}

/// What a client says of itself is nobody's event: neither stored nor refused.
#[tokio::test]
async fn statsigs_diagnostics_are_not_kept() {
    let service = Service::start().await;
    let body = r#"{"events":[{"eventName":"statsig::diagnostics","user":null,"time":1772366330867,"metadata":{"markers":[]}},
        {"eventName":"asked","user":{"userID":"u"},"metadata":{"about":"statsig::diagnostics"}}]}"#;
    let answer = send(service.address(), "POST", "/v1/log_event", &[("statsig-api-key", "wk_test")], body.as_bytes()).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "success": true })));
    assert_eq!(service.log.events().iter().map(|event| event.name.as_deref()).collect::<Vec<_>>(), [Some("asked")]);
    assert_eq!(service.log.rejected(), []);
    assert_eq!(service.counter("weir_collector_events_received_total").await, 1);
}

/// Statsig's events have no ids, and its clients send what was not answered again as it was: that makes no new events. Equal ones in one
/// request are several, and without a session, which all SDKs name, nobody could tell.
#[tokio::test]
async fn a_request_of_statsigs_that_comes_again_makes_no_new_events() {
    let ids = async |body: &str| {
        let service = Service::start().await;
        for _ in 0..2 {
            let headers = [("statsig-api-key", "secret-wk_test")];
            let answer = send(service.address(), "POST", "/v1/log_event", &headers, body.as_bytes()).await;
            assert_eq!(answer.status, 202, "{answer:?}");
        }
        service.log.events().iter().map(|event| (format!("{:?}", event.event_id), event.id_from_client)).collect::<Vec<_>>()
    };
    let event = r#"{"eventName":"buy","user":{"userID":"u"},"time":1772366330867,"value":1}"#;
    let other = event.replace("\"u\"", "\"v\"");
    let of_session = ids(&format!(r#"{{"statsigMetadata":{{"sessionID":"s"}},"events":[{event},{other},{event}]}}"#)).await;
    let (first, again) = of_session.split_at(3);
    assert_eq!(first, again);
    assert!(first.iter().all(|(_, is_from_client)| *is_from_client), "{first:?}");
    assert_eq!(first.iter().collect::<std::collections::HashSet<_>>().len(), 3, "{first:?}");
    let of_another = ids(&format!(r#"{{"statsigMetadata":{{"sessionID":"t"}},"events":[{event}]}}"#)).await;
    assert_ne!(of_another[0], first[0]);
    let of_none = ids(&format!(r#"{{"events":[{event}]}}"#)).await;
    assert_ne!(of_none[0].0, of_none[1].0);
    assert!(of_none.iter().all(|(_, is_from_client)| !is_from_client), "{of_none:?}");
}
