//! Metrics over any event, as definitions of the project say them: from rows in Postgres to the answer over HTTP.

use ::catalogue::definitions::{self, Definition};
use ::catalogue::experiments::add_metric;
use ::catalogue::metrics::NewMetric;
use ::catalogue::{Aggregation, find_project};
use serde_json::{Value, json};

use crate::support::{Event, PROJECT, Service, add_experiment, add_users, check_number};

const HOUR: f64 = 3_600.0;

/// Defines a metric, and has an experiment measure it.
async fn define(service: &mut Service, experiment: &str, name: &str, definition: Value) {
    let definition = Definition::parse(&definition.to_string()).expect("accepted");
    query::check_definition(&definition).expect("can be computed");
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    definitions::define(&mut service.rows, &project, name, &definition).await.expect("defined");
    let metric = NewMetric {
        name: name.to_owned(),
        aggregation: Aggregation::Defined,
        definition: Some((name.to_owned(), None)),
        ..NewMetric::default()
    };
    add_metric(&mut service.rows, &project, experiment, &metric).await.expect("added");
}

/// Stores an order of user 1, so many seconds after the exposure.
async fn order(service: &mut Service, second: f64, value: &str, properties: &str) {
    let more = [("conversion_value", value), ("currency", "'EUR'"), ("metadata", properties)];
    Event { more: &more, ..Event::new("conversion", "purchase", 1, second) }.store(&mut service.rows).await;
}

fn of<'a>(answer: &'a Value, metric: &str) -> &'a Value {
    let metrics = answer["metrics"].as_array().expect("metrics");
    metrics.iter().find(|found| found["id"] == metric).unwrap_or_else(|| panic!("no {metric} in {answer}"))
}

/// What a metric comes to of the only user of b.
fn value(answer: &Value, metric: &str) -> f64 {
    of(answer, metric)["arms"][1]["mean"].as_f64().unwrap_or_else(|| panic!("no mean of {metric}: {}", of(answer, metric)))
}

/// Orders of 5 EUR a minute before the exposure, 10 at it, 20 by a pro after 24 hours, 40 a microsecond before and 80 at 72 hours.
#[tokio::test]
async fn windows_are_half_open_and_each_user_comes_to_what_is_asked() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "windows", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "windows", "control", 0, 1).await;
    add_users(&mut service.rows, PROJECT, "windows", "b", 1, 1).await;
    order(&mut service, -60.0, "5", "null").await;
    order(&mut service, 0.0, "10", "null").await;
    order(&mut service, 24.0 * HOUR, "20", "'{\"plan\": \"pro\"}'").await;
    order(&mut service, 72.0 * HOUR - 0.000_001, "40", "null").await;
    order(&mut service, 72.0 * HOUR, "80", "null").await;
    let three_days = json!({"length": "72h"});
    let of_orders = |per_user: Value, window: &Value| json!({"kind": "conversion", "events": ["purchase"], "per_user": per_user, "window": window});
    let of_values = |per_user: &str, window: &Value| {
        let mut definition = of_orders(per_user.into(), window);
        definition["value"] = "value".into();
        definition
    };
    let mut pro = of_values("sum", &three_days);
    pro["where"] = "json_as_text(properties, 'plan') = 'pro'".into();
    let mut plans = of_orders("distinct".into(), &three_days);
    plans["value"] = "plan".into();
    let cases: Vec<(&str, Value, f64)> = vec![
        ("sum", of_values("sum", &three_days), 70.0),
        ("pro", pro, 20.0),
        ("late", of_values("sum", &json!({"delay": "24h", "length": "48h"})), 60.0),
        ("before", of_values("sum", &json!({"delay": "-7d", "length": "7d"})), 5.0),
        ("count", of_orders("count".into(), &three_days), 3.0),
        ("max", of_values("max", &three_days), 40.0),
        ("min", of_values("min", &three_days), 10.0),
        ("first", of_values("first", &three_days), 10.0),
        ("last", of_values("last", &three_days), 40.0),
        ("days", of_orders("distinct_days".into(), &three_days), 3.0),
        ("plans", plans, 1.0),
        ("three", of_orders(json!({"at_least": 3}), &three_days), 1.0),
        ("four", of_orders(json!({"at_least": 4}), &three_days), 0.0),
        ("returned", of_orders("exists".into(), &json!({"delay": "1d", "length": "1d"})), 1.0),
        ("gone", of_orders("exists".into(), &json!({"delay": "2h", "length": "20h"})), 0.0),
    ];
    for (name, definition, _) in &cases {
        define(&mut service, "windows", name, definition.clone()).await;
    }
    let answer = service.get("/v1/experiments/windows/results?cuped=off&cap=off").await.ok();
    for (name, _, expected) in &cases {
        assert_eq!(value(&answer, name), *expected, "{name}");
        assert_eq!(of(&answer, name)["arms"][0]["mean"], 0.0, "{name}: who did nothing comes to 0");
    }
    let pro = of(&answer, "pro");
    assert_eq!((&pro["type"], &pro["currency"], &pro["window_days"]), (&json!("mean"), &json!("EUR"), &json!(3)));
    assert_eq!((&pro["definition"]["defined"]["name"], &pro["definition"]["defined"]["version"]), (&json!("pro"), &json!(1)));
    let three = of(&answer, "three");
    assert_eq!((&three["type"], &three["arms"][1]["numerator"]), (&json!("proportion"), &json!(1)));
    assert!(three.get("currency").is_none(), "{three}");
}

/// Texts where numbers are wanted, values in another currency and bots count nowhere, and are said; a new version of a definition does not move what
/// an experiment measures.
#[tokio::test]
async fn what_has_no_value_is_left_out_and_said() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "videos", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "videos", "control", 0, 2).await;
    add_users(&mut service.rows, PROJECT, "videos", "b", 2, 2).await;
    for (user, minutes) in [(0, "12"), (1, "30.5"), (2, "\"45\""), (2, "\"many\""), (3, "null"), (3, "1e1")] {
        let properties = format!("'{{\"minutes\": {minutes}}}'");
        let more = [("metadata", properties.as_str())];
        Event { more: &more, ..Event::new("engagement", "watch", user, HOUR) }.store(&mut service.rows).await;
        let bot = Event { more: &more, is_bot: true, ..Event::new("engagement", "watch", user, HOUR) };
        bot.store(&mut service.rows).await;
    }
    let minutes = json!({"kind": "engagement", "events": ["watch"], "value": "minutes", "per_user": "sum"});
    define(&mut service, "videos", "minutes", minutes).await;
    let path = "/v1/experiments/videos/results?cuped=off";
    let answer = service.get(path).await.ok();
    let found = of(&answer, "minutes");
    check_number(&found["arms"][0]["mean"], 42.5 / 2.0);
    check_number(&found["arms"][1]["mean"], 55.0 / 2.0);
    assert_eq!(found["left_out"]["without_value"], 2, "{found}");
    assert!(found["currency"].is_null(), "{found}");
    let warnings = answer["warnings"].as_array().expect("warnings");
    let said = "2 events have no number as minutes and do not count in minutes";
    assert!(warnings.iter().any(|warning| warning["message"] == said), "{warnings:?}");
    let plain = found["comparisons"][0]["plain"].as_str().expect("a sentence");
    assert!(plain.contains("b has 27.5 per user vs 21.2 in control"), "{plain}");

    let project = find_project(&mut service.rows, "first").await.expect("a project");
    let longest = Definition::parse(r#"{"kind": "engagement", "value": "minutes", "per_user": "max"}"#).expect("accepted");
    let second = definitions::define(&mut service.rows, &project, "minutes", &longest).await.expect("defined");
    assert_eq!((second.version.version, second.is_new), (2, true));
    let again = definitions::define(&mut service.rows, &project, "minutes", &longest).await.expect("defined");
    assert_eq!((again.version.version, again.is_new), (2, false));
    let still = service.get(path).await.ok();
    assert_eq!((&of(&still, "minutes")["arms"], &still["settings_hash"]), (&found["arms"], &answer["settings_hash"]));
    let changed = sqlx::raw_sql("UPDATE metric_definitions SET definition = '{}'").execute(&mut service.rows).await;
    assert!(changed.is_err_and(|error| error.to_string().contains("define the next version instead")));
}

/// An answer follows new events of any kind: it is what it would be if everybody were read again.
#[tokio::test]
async fn an_answer_follows_new_events() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "clicks", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "clicks", "control", 0, 50).await;
    add_users(&mut service.rows, PROJECT, "clicks", "b", 50, 50).await;
    let pages = json!({"kind": "campaign_event", "value": "page", "per_user": "distinct"});
    define(&mut service, "clicks", "pages", pages).await;
    define(&mut service, "clicks", "clicks", json!({"kind": "engagement", "per_user": "count"})).await;
    let mut offset = 1_000;
    let mut follow = async |service: &mut Service, events: &[(&str, u64, &str)]| {
        for (kind, user, page) in events {
            let (properties, at) = (format!("'{{\"page\": \"{page}\"}}'"), offset.to_string());
            Event { more: &[("metadata", properties.as_str())], ..Event::new(kind, "click", *user, HOUR) }
                .store(&mut service.rows)
                .await;
            for table in ["campaign_events", "engagement_events"] {
                service.run(&format!("UPDATE {table} SET log_offset = {at} WHERE log_offset = 0")).await;
            }
            offset += 1;
        }
        service.run(&format!("UPDATE checkpoints SET next_offset = {offset}, change_seq = change_seq + 1")).await;
    };
    let path = "/v1/experiments/clicks/results?cuped=off";
    let means = |answer: &Value, metric: &str| {
        let arms = of(answer, metric)["arms"].as_array().expect("arms").clone();
        arms.iter().map(|arm| arm["mean"].as_f64().expect("a mean") * 50.0).map(f64::round).collect::<Vec<_>>()
    };
    follow(&mut service, &[("campaign_event", 1, "b"), ("campaign_event", 1, "c"), ("engagement", 60, "")]).await;
    let answer = service.get(path).await.ok();
    assert_eq!((means(&answer, "pages"), means(&answer, "clicks")), (vec![2.0, 0.0], vec![0.0, 1.0]));
    follow(
        &mut service,
        &[("campaign_event", 1, "a"), ("campaign_event", 1, "c"), ("campaign_event", 70, "a"), ("engagement", 60, "")],
    )
    .await;
    let answer = service.get(path).await.ok();
    assert_eq!((means(&answer, "pages"), means(&answer, "clicks")), (vec![3.0, 1.0], vec![0.0, 2.0]));
    assert_eq!(service.metric("weir_query_cohorts_total{way=\"followed\"}").await, 1.0);
}

#[test]
fn what_cannot_be_computed_is_refused_when_it_is_defined() {
    let check = |change: Value, expected: &str| {
        let mut definition = json!({"kind": "engagement", "per_user": "count"});
        definition.as_object_mut().expect("fields").extend(change.as_object().expect("fields").clone());
        let definition = Definition::parse(&definition.to_string()).expect("can be read");
        let found = query::check_definition(&definition).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{definition:?}: {found}");
    };
    check(json!({"where": "device_type = 'mobile' AND json_get_int(properties, 'a') > 2"}), "");
    check(json!({"where": "no_such_column = 1"}), "no_such_column");
    check(json!({"where": "1"}), "the condition is of type Int64; true or false is accepted");
    check(json!({"where": "count(*) > 1"}), "without subqueries and aggregates");
    check(json!({"where": "EXISTS (SELECT 1)"}), "without subqueries and aggregates");
    check(json!({"where": "user_id IN (SELECT user_id FROM events)"}), "not found");
    check(json!({"where": format!("a = 1{}", " OR a = 1".repeat(100))}), "more than the 64 operators");
    check(json!({"per_user": "sum", "value": "value"}), "");
    check(json!({"per_user": "sum", "value": "properties.price"}), "");
    check(json!({"per_user": "distinct", "value": "log_offset"}), "a column of the table events or a property is accepted");
}
