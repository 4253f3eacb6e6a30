//! Retention, paths and the functions of SQL beside funnels, through HTTP.

use serde_json::{Value, json};

use crate::support::{Event, Service};

const DAY: f64 = 86_400.0;

/// Stores events: user, name, second.
async fn store(service: &mut Service, events: &[(u64, &str, f64)]) {
    for (user, name, second) in events {
        Event::new("engagement", name, *user, *second).store(&mut service.rows).await;
    }
}

#[tokio::test]
async fn retention_is_counted_by_the_day_of_the_beginning() {
    let mut service = Service::start().await;
    let events = [
        (1, "open", 0.0),
        (1, "play", DAY),
        (2, "open", 10.0),
        (2, "play", 2.0 * DAY + 1.0),
        (3, "open", 20.0),
        (3, "open", DAY + 5.0),
        (3, "play", 2.0 * DAY + 9.0),
        (4, "play", 5.0),
    ];
    store(&mut service, &events).await;
    service.run("UPDATE project_progress SET event_time = '2026-03-04T00:00:00Z'").await;
    let body = json!({"start": {"events": ["open"]}, "return": {"events": ["play"]}, "periods": 2, "from": "2026-03-01", "to": "2026-03-03"});
    let answer = service.post("/v1/retention", &body).await.ok();
    let cohorts = &answer["groups"][0]["cohorts"];
    let third = 1.0 / 3.0;
    let expected = json!({"start": "2026-03-01", "units": 3, "returned": [3, 1, 2], "rates": [1.0, third, 2.0 * third],
                          "complete": [true, true, true]});
    assert_eq!(cohorts[0], expected, "{answer}");
    assert_eq!(cohorts[1]["returned"], json!([1, 1, 0]), "{answer}");
    assert_eq!(cohorts[1]["complete"], json!([true, true, false]), "{answer}");
    assert_eq!(answer["definition"]["entry"], "recurring");
    // A condition goes to a process of its own and gives the same; a typing error is told.
    let mut other = body.clone();
    other["return"] = json!({"where": "event = 'play' AND event <> 'plya'"});
    assert_eq!(service.post("/v1/retention", &other).await.ok()["groups"], answer["groups"]);
    other["return"] = json!({"events": ["plya"]});
    let told = service.post("/v1/retention", &other).await.ok();
    assert_eq!(told["groups"][0]["cohorts"][0]["returned"], json!([3, 0, 0]));
    assert!(
        told["warnings"][0]["message"].as_str().is_some_and(|text| text.starts_with("return: no event is called \"plya\"")),
        "{told}"
    );
    let refused = service.post("/v1/retention", &json!({"start": {"where": "value"}})).await.refused(400, "bad_sql");
    assert_eq!(refused["field"], "start.where");
    service.post("/v1/retention", &json!({})).await.refused(400, "bad_request");
    // The same value on both events.
    for (user, name, second, country) in
        [(5, "open", 0.0, "'DE'"), (5, "play", DAY, "'AT'"), (6, "open", 0.0, "'DE'"), (6, "play", DAY, "'DE'")]
    {
        let more = [("country_code", country)];
        Event { more: &more, ..Event::new("engagement", name, user, second) }.store(&mut service.rows).await;
    }
    let mut by = body.clone();
    by["breakdown"] = json!({"by": "country", "top": 1});
    let answer = service.post("/v1/retention", &by).await.ok();
    assert_eq!(answer["groups"].as_array().map(Vec::len), Some(1), "{answer}");
    assert_eq!((&answer["groups"][0]["breakdown"]["country"], &answer["other"]["units"]), (&json!(null), &json!(2)), "{answer}");
    by["breakdown"]["top"] = json!(5);
    let answer = service.post("/v1/retention", &by).await.ok();
    assert_eq!(answer["groups"][1]["cohorts"][0]["returned"], json!([2, 1, 0]), "{answer}");
}

#[tokio::test]
async fn paths_follow_events_through_sessions() {
    let mut service = Service::start().await;
    let events = [
        (1, "home", 0.0),
        (1, "search", 10.0),
        (1, "search", 20.0),
        (1, "item", 30.0),
        (1, "home", 90_000.0),
        (2, "home", 0.0),
        (2, "item", 10.0),
        (2, "cart", 20.0),
        (3, "search", 0.0),
        (3, "item", 5.0),
        (3, "help", 6.0),
    ];
    store(&mut service, &events).await;
    let pairs = |answer: &Value, step: usize| {
        let pair = |pair: &Value| {
            let name = |member: &str| pair[member].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", name("from"), name("to"), pair["sessions"])
        };
        answer["steps"][step]["pairs"].as_array().expect("pairs").iter().map(pair).collect::<Vec<_>>()
    };
    let answer = service.post("/v1/paths", &json!({"depth": 3})).await.ok();
    assert_eq!(answer["sessions"], 4, "{answer}");
    assert_eq!(pairs(&answer, 0), ["home - 1", "home item 1", "home search 1", "search item 1"]);
    assert_eq!(pairs(&answer, 1), ["item cart 1", "item help 1", "search item 1"]);
    assert_eq!(pairs(&answer, 2), ["cart - 1", "help - 1", "item - 1"]);
    let few = service.post("/v1/paths", &json!({"depth": 1, "top": 1, "collapse": false})).await.ok();
    assert_eq!((pairs(&few, 0), &few["steps"][0]["other"]), (vec!["home - 1".to_owned()], &json!({"pairs": 3, "sessions": 3})));
    let from = service.post("/v1/paths", &json!({"anchor": {"events": ["item"]}, "depth": 1})).await.ok();
    assert_eq!(
        (pairs(&from, 0), &from["sessions"]),
        (vec!["item - 1".into(), "item cart 1".into(), "item help 1".into()], &json!(3))
    );
    let to =
        service.post("/v1/paths", &json!({"anchor": {"where": "event = 'item'"}, "direction": "before", "depth": 2})).await.ok();
    assert_eq!(pairs(&to, 0), ["search item 2", "home item 1"], "{to}");
    assert_eq!(pairs(&to, 1), ["- home 1", "- search 1", "home search 1"]);
    // Where users went who looked at an item and put nothing into the cart.
    let steps = json!([{"name": "item", "events": ["item"]}, {"name": "cart", "events": ["cart"]}]);
    let drop_off = json!({"funnel": {"steps": steps, "window": "1h"}, "step": 2});
    let after = service.post("/v1/paths", &json!({"drop_off": drop_off, "depth": 1})).await.ok();
    assert_eq!((pairs(&after, 0), &after["sessions"]), (vec!["item - 1".into(), "item help 1".into()], &json!(2)), "{after}");
    service.post("/v1/paths", &json!({"direction": "before"})).await.refused(400, "bad_request");
}

#[tokio::test]
async fn patterns_and_retention_can_be_asked_for_in_sql() {
    let mut service = Service::start().await;
    store(&mut service, &[(1, "a", 0.0), (1, "c", 1.0), (1, "b", 60.0), (2, "a", 0.0), (2, "b", 61.0), (3, "b", 0.0)]).await;
    let of = |call: &str| format!("SELECT {call} FROM events GROUP BY user_id ORDER BY user_id");
    let check = async |call: &str, expected: Value| assert_eq!(service.rows(&of(call)).await, expected, "{call}");
    let conditions = "event = 'a', event = 'b', event = 'c'";
    check(&format!("sequence_match('(?1)(?2)', event_time, {conditions})"), json!([[false], [true], [false]])).await;
    check(&format!("sequence_match('(?1)(?t<=60)(?2)', event_time, {conditions})"), json!([[true], [false], [false]])).await;
    check(&format!("sequence_count('(?2)', event_time, {conditions})"), json!([[1], [1], [1]])).await;
    check(&format!("retention({conditions})"), json!([["[1, 1, 1]"], ["[1, 1, 0]"], ["[0, 0, 0]"]])).await;
    check("window_funnel(60, 'strict_order', event_time, event = 'a', event = 'b')", json!([[1], [1], [0]])).await;
    let mask = "CASE event WHEN 'a' THEN 1 WHEN 'b' THEN 2 ELSE 0 END";
    let funnel = |options: &str, part: &str| format!("funnel(event_time, {mask}, '{options}')['{part}']");
    check(&funnel(r#"{"steps": 2, "window": "1m"}"#, "level"), json!([[2], [1], [0]])).await;
    check(&funnel(r#"{"steps": 2, "window": "2m"}"#, "level"), json!([[2], [2], [0]])).await;
    check(&funnel(r#"{"steps": 2, "window": "2m", "order": "contiguous"}"#, "level"), json!([[1], [2], [0]])).await;
    let start = json!([["2026-03-01T00:00:00Z"], ["2026-03-01T00:00:00Z"], [null]]);
    check(&funnel(r#"{"steps": 2}"#, "start"), start).await;
    let error = service.sql(&of(&funnel(r#"{"steps": 2, "count": "totals"}"#, "level"))).await.refused(400, "bad_sql");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("concern one group")), "{error}");
    let error = service.sql(&of("sequence_match('(?9)', event_time, true)")).await.refused(400, "bad_sql");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("(?1) to (?1)")), "{error}");
}
