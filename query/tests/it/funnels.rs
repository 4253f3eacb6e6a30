use serde_json::{Value, json};

use crate::support::{Event, OTHER_PROJECT, OTHER_TOKEN, Service};

/// Stores events (user, second, name) as engagement, except the names of other kinds.
async fn store(service: &mut Service, events: &[(u64, f64, &str)]) {
    for (user, second, name) in events {
        let kind = match *name {
            "impression" => "impression",
            "purchase" => "conversion",
            "click" => "campaign_event",
            "identify" => "identity",
            _ => "engagement",
        };
        Event::new(kind, name, *user, *second).store(&mut service.rows).await;
    }
}

fn units(answer: &Value) -> Vec<u64> {
    let steps = answer["groups"][0]["steps"].as_array().expect("steps");
    steps.iter().map(|step| step["units"].as_u64().expect("units")).collect()
}

fn steps(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"name": name, "events": [name]})).collect()
}

#[tokio::test]
async fn users_are_counted_over_all_kinds_of_events() {
    let mut service = Service::start().await;
    let events = [
        (1, 0.0, "impression"),
        (1, 5.0, "click"),
        (1, 9.0, "quiz"),
        (1, 10.0, "purchase"),
        (2, 100.0, "impression"),
        (2, 100.0, "click"),
        (2, 111.0, "purchase"),
        (3, 7.0, "impression"),
        (4, 7.0, "click"),
        (5, 3.0, "other"),
    ];
    store(&mut service, &events).await;
    // A bot's events count nowhere, and another project's neither.
    for (second, name) in [(0.0, "impression"), (1.0, "click")] {
        let kind = if name == "click" { "campaign_event" } else { name };
        Event { is_bot: true, ..Event::new(kind, name, 6, second) }.store(&mut service.rows).await;
        Event { project: OTHER_PROJECT, ..Event::new(kind, name, 7, second) }.store(&mut service.rows).await;
    }
    let mut body = json!({"steps": steps(&["impression", "click", "purchase"]), "window": "10s"});
    let answer = service.post("/v1/funnels", &body).await.ok();
    assert_eq!(units(&answer), [3, 2, 1], "{answer}");
    let first = &answer["groups"][0]["steps"][0];
    assert_eq!(*first, json!({"n": 1, "name": "impression", "units": 3, "rate_first": 1.0, "rate_prev": null, "dropped": 1}));
    assert_eq!(answer["definition"]["window_us"], 10_000_000);
    assert_eq!(answer["definition"]["event_reuse"], "once");
    assert_eq!(answer["as_of"]["offsets"], json!({"0": 120, "1": 7}));
    assert!(answer["elapsed_ms"].is_u64());
    assert_eq!(units(&service.post_as(OTHER_TOKEN, "/v1/funnels", &body).await.ok()), [1, 1, 0]);
    body["window"] = json!("11s");
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [3, 2, 2]);
    body["strict_increase"] = json!(true);
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [3, 1, 1]);
    body["from"] = json!("2026-03-01T00:00:05Z");
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [2, 0, 0]);
    body["from"] = json!("2026-02-01");
    body["to"] = json!("2026-03-01T00:00:10Z");
    body["range"] = json!("events");
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [2, 1, 0], "`to` itself is not in");
}

#[tokio::test]
async fn steps_are_conditions_too() {
    let mut service = Service::start().await;
    store(&mut service, &[(1, 0.0, "impression"), (2, 0.0, "impression")]).await;
    for (user, value, country) in [(1, "19.90", "'DE'"), (2, "5.00", "'it''s'")] {
        let more = [
            ("conversion_value", value),
            ("currency", "'EUR'"),
            ("country_code", country),
            ("metadata", "'{\"plan\": \"pro\"}'"),
        ];
        Event { more: &more, ..Event::new("conversion", "purchase", user, 60.0) }.store(&mut service.rows).await;
    }
    let with = |condition: &str| json!({"steps": [{"name": "seen", "events": ["impression"]}, {"name": "bought", "where": condition}], "window": "1h"});
    let check = async |condition: &str, expected: [u64; 2]| {
        assert_eq!(units(&service.post("/v1/funnels", &with(condition)).await.ok()), expected, "{condition}");
    };
    check("event = 'purchase' AND value > 10", [2, 1]).await;
    check("kind = 'conversion' AND country = 'it''s'", [2, 1]).await;
    check("event = 'purchase' AND json_get_str(properties, 'plan') = 'pro'", [2, 2]).await;
    check("value > 10 OR event = 'nothing'", [2, 1]).await;
    check("user_id = '00000000-0000-4000-8000-000000000002' AND value IS NOT NULL", [2, 1]).await;
    check("NULL::boolean", [2, 0]).await;
    check("true", [2, 2]).await;

    let refused = async |condition: &str, code: &str| {
        let error = service.post("/v1/funnels", &with(condition)).await.refused(400, code);
        assert_eq!(error["field"], "steps[1].where", "{condition}: {error}");
    };
    refused("value", "bad_sql").await;
    refused("", "bad_sql").await;
    refused("nothing = 1", "bad_sql").await;
    refused("count(*) > 1", "bad_sql").await;
    refused("row_number() OVER () = 1", "bad_sql").await;
    refused("user_id IN (SELECT user_id FROM events)", "bad_sql").await;
    refused("EXISTS (SELECT 1 FROM keys)", "bad_sql").await;
    refused("true; DROP TABLE keys", "bad_sql").await;
    refused("true) OR (true", "bad_sql").await;
    refused("true FROM keys", "bad_sql").await;
    refused("$1", "bad_sql").await;
    refused(&vec!["true"; 2_000].join(" OR "), "sql_too_large").await;
}

#[tokio::test]
async fn conditions_know_what_time_it_is() {
    let mut service = Service::start().await;
    store(&mut service, &[(1, 0.0, "view"), (1, 60.0, "quiz"), (2, 0.0, "view"), (2, 60.0, "quiz")]).await;
    for (user, age) in [(1, "1 day"), (2, "10 days")] {
        let user = crate::support::user(user);
        let age = format!("now() - interval '{age}' - timestamptz '2026-03-01T00:00:00Z'");
        service.run(&format!("UPDATE engagement_events SET event_time = event_time + ({age}) WHERE user_id = '{user}'")).await;
    }
    for now in ["now()", "current_timestamp", "current_date", "today()"] {
        let step = |event: &str, days: u32| {
            let condition = format!("event = '{event}' AND event_time > {now} - INTERVAL '{days} days'");
            json!({"name": event, "where": condition})
        };
        let body = |days: [u32; 2]| json!({"steps": [step("view", days[0]), step("quiz", days[1])], "window": "1h"});
        assert_eq!(units(&service.post("/v1/funnels", &body([7, 7])).await.ok()), [1, 1], "{now}");
        assert_eq!(units(&service.post("/v1/funnels", &body([20, 7])).await.ok()), [2, 1], "{now}");
        assert_eq!(units(&service.post("/v1/funnels", &body([20, 20])).await.ok()), [2, 2], "{now}");
    }
}

#[tokio::test]
async fn an_event_fills_one_step_unless_it_may_fill_more() {
    let mut service = Service::start().await;
    store(&mut service, &[(1, 0.0, "a"), (2, 0.0, "a"), (2, 1.0, "a"), (2, 2.0, "b")]).await;
    let mut body = json!({"steps": steps(&["a", "a", "b"]), "window": "1m"});
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [2, 1, 1]);
    body["event_reuse"] = json!("allowed");
    assert_eq!(units(&service.post("/v1/funnels", &body).await.ok()), [2, 2, 1]);
}

#[tokio::test]
async fn requests_that_mean_something_else_are_refused() {
    let service = Service::start().await;
    let refused = async |body: Value, code: &str, field: &str| {
        let error = service.post("/v1/funnels", &body).await.refused(400, code);
        assert_eq!(error["field"], field, "{error}");
    };
    refused(json!({"steps": steps(&["a"]), "order": "backwards"}), "unsupported_option", "order").await;
    refused(json!({"steps": steps(&["a"]), "cohort": {"key": "x"}}), "unsupported_option", "cohort").await;
    refused(json!({"steps": []}), "bad_request", "steps").await;
    let many: Vec<String> = (0..32).map(|step| format!("s{step}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(units(&service.post("/v1/funnels", &json!({"steps": steps(&many)})).await.ok()), [0; 32]);
}

/// Random events of a few users, with many equal times: levels from SQL's window_funnel and from the route agree with the
/// cases' rules through the whole path.
#[tokio::test]
async fn the_sql_function_and_the_route_agree() {
    let mut service = Service::start().await;
    service
        .run(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type)
             SELECT '00000000-0000-0000-0000-000000000001', gen_random_uuid(),
                 ('00000000-0000-4000-8000-' || lpad(to_hex(i % 997), 12, '0'))::uuid, t, t, t, false, false,
                 '00000000-0000-0000-0000-000000000abc', 0, i, chr(97 + h / 600 % 5)
             FROM (SELECT i, h, timestamptz '2026-03-01T00:00:00Z' + h % 600 * interval '1 second' AS t
                   FROM (SELECT i, ('x' || substr(md5(i::text), 1, 6))::bit(24)::int AS h FROM generate_series(1, 20000) i) r) s",
        )
        .await;
    for (names, modes, reuse) in
        [("a,b,c,d", "'strict_once', ", "once"), ("a,a,b,e", "", "allowed"), ("a,b,b,c", "'strict_once', ", "once")]
    {
        let names: Vec<&str> = names.split(',').collect();
        let body = json!({"steps": steps(&names), "window": "90s", "event_reuse": reuse});
        let found = units(&service.post("/v1/funnels", &body).await.ok());
        let conditions: Vec<String> = names.iter().map(|name| format!("event = '{name}'")).collect();
        let sql = format!(
            "WITH l AS (SELECT user_id, window_funnel(INTERVAL '90 seconds', {modes}event_time, {}) AS level FROM events GROUP BY user_id)
             SELECT count(*) FILTER (WHERE level >= 1), count(*) FILTER (WHERE level >= 2), count(*) FILTER (WHERE level >= 3),
                    count(*) FILTER (WHERE level >= 4) FROM l",
            conditions.join(", ")
        );
        assert_eq!(service.rows(&sql).await, json!([found]), "{body}");
        assert!(found[0] > found[3] && found[3] > 0, "the case tells steps apart: {found:?}");
    }
}
