//! Metrics over any event, as definitions of the project say them: from rows in Postgres to the answer over HTTP.

use ::catalogue::definitions::Definition;
use ::catalogue::experiments::add_metric;
use ::catalogue::metrics::NewMetric;
use ::catalogue::versions;
use ::catalogue::{Aggregation, find_project};
use serde_json::{Value, json};

use crate::support::{Event, LOG, PROJECT, Service, USER_SQL, add_experiment, add_users, check_number};

const HOUR: f64 = 3_600.0;

/// Defines a metric, and has an experiment measure it.
pub(crate) async fn define(service: &mut Service, experiment: &str, name: &str, definition: Value) {
    let definition = Definition::parse(&definition.to_string()).expect("accepted");
    query::check_definition(&definition).expect("can be computed");
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    versions::define(&mut service.rows, &project, name, &definition).await.expect("defined");
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

/// Returns a metric of an answer.
pub(crate) fn of<'a>(answer: &'a Value, metric: &str) -> &'a Value {
    let metrics = answer["metrics"].as_array().expect("metrics");
    metrics.iter().find(|found| found["id"] == metric).unwrap_or_else(|| panic!("no {metric} in {answer}"))
}

/// What a metric comes to of the only user of b.
fn value(answer: &Value, metric: &str) -> f64 {
    of(answer, metric)["arms"][1]["mean"].as_f64().unwrap_or_else(|| panic!("no mean of {metric}: {}", of(answer, metric)))
}

/// 1,000 users of each variant: 200 and 400 see the cart, of whom 100 and 140 order afterwards. Some order first, which is no way through; of the
/// users who see the cart twice, one visit is not two. From step to step b loses more, and is better all the same.
#[tokio::test]
async fn a_way_through_events_is_of_all_who_were_exposed() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "way", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "way", "control", 0, 1_000).await;
    add_users(&mut service.rows, PROJECT, "way", "b", 1_000, 1_000).await;
    for (from, carts, orders) in [(0, 200, 100), (1_000, 400, 140)] {
        for (name, table, column, users, minutes) in [
            ("cart", "engagement_events", "event_type", (from, carts), 10),
            ("order", "conversions", "conversion_type", (from, orders), 20),
            // Before the cart, and without one.
            ("order", "conversions", "conversion_type", (from + orders, 50), 5),
            ("order", "conversions", "conversion_type", (from + 900, 50), 20),
        ] {
            let (first, last) = (users.0, users.0 + users.1 - 1);
            let time = format!("timestamptz '2026-03-01T00:00:00Z' + interval '{minutes} minutes'");
            service
                .run(&format!(
                    "INSERT INTO {table} (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                         log_partition, log_offset, {column})
                     SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, {time}, {time}, {time}, false, false, '{LOG}', 0, 0, '{name}'
                     FROM generate_series({first}, {last}) i"
                ))
                .await;
        }
    }
    let cart = json!({"kind": "engagement", "events": ["cart"]});
    let order = json!({"kind": "conversion", "events": ["order"]});
    let way = |then: Vec<Value>| json!({"kind": "engagement", "events": ["cart"], "per_user": "exists", "then": then});
    define(&mut service, "way", "ordered", way(vec![order.clone()])).await;
    define(&mut service, "way", "twice", way(vec![cart, order])).await;
    let answer = service.get("/v1/experiments/way/results?analysis=fixed&series=daily").await.ok();
    let ordered = of(&answer, "ordered");
    let arms: Vec<&Value> = ordered["arms"].as_array().expect("arms").iter().map(|arm| &arm["numerator"]).collect();
    assert_eq!((ordered["type"].as_str(), arms), (Some("proportion"), vec![&json!(100), &json!(140)]));
    let found = &ordered["comparisons"][0];
    assert_eq!(found["verdict"], "won");
    check_number(&found["test"]["statistic"], 0.04 / (0.1 * 0.9 / 1_000.0 + 0.14 * 0.86 / 1_000.0_f64).sqrt());
    let last = ordered["series"].as_array().and_then(|days| days.last()).expect("a day");
    check_number(&last["cumulative"]["comparisons"][0]["estimate"], 0.04);
    assert_eq!(of(&answer, "twice")["arms"][1]["numerator"], 0, "an event is one step");
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

/// Twelve definitions about the same events are read in two groups, and those with conditions apart: of events of other names a condition would
/// divide by zero.
#[tokio::test]
async fn definitions_that_are_read_together_keep_what_is_theirs() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "many", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "many", "control", 0, 1).await;
    add_users(&mut service.rows, PROJECT, "many", "b", 1, 1).await;
    for (name, items, second) in [("visit", 4, HOUR), ("visit", 2, 2.0 * HOUR), ("leave", 0, 3.0 * HOUR), ("leave", 0, -HOUR)] {
        let properties = format!("'{{\"items\": {items}}}'");
        let more = [("metadata", properties.as_str())];
        Event { more: &more, ..Event::new("engagement", name, 1, second) }.store(&mut service.rows).await;
    }
    let mut cases: Vec<(String, Value, f64)> = (1..=10)
        .map(|least| {
            let definition = json!({"kind": "engagement", "per_user": {"at_least": least}});
            (format!("at least {least}"), definition, if least <= 3 { 1.0 } else { 0.0 })
        })
        .collect();
    let visits = |per_user: &str, condition: &str| json!({"kind": "engagement", "events": ["visit"], "per_user": per_user, "where": condition});
    let mut items = json!({"kind": "engagement", "events": ["visit"], "per_user": "sum"});
    items["value"] = "items".into();
    cases.push(("items".to_owned(), items, 6.0));
    cases.push(("leaves".to_owned(), json!({"kind": "engagement", "events": ["leave"], "per_user": "count"}), 1.0));
    cases.push(("halves".to_owned(), visits("count", "8 / json_get_int(properties, 'items') = 2"), 1.0));
    cases.push(("quarters".to_owned(), visits("exists", "8 / json_get_int(properties, 'items') = 4"), 1.0));
    let mut emptied = visits("count", "json_get_int(properties, 'items') = 0");
    emptied["events"] = json!(["leave"]);
    cases.push(("emptied".to_owned(), emptied, 1.0));
    for (name, definition, _) in &cases {
        define(&mut service, "many", name, definition.clone()).await;
    }
    let answer = service.get("/v1/experiments/many/results").await.ok();
    for (name, _, expected) in &cases {
        assert_eq!(value(&answer, name), *expected, "{name}");
    }
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
    let second = versions::define(&mut service.rows, &project, "minutes", &longest).await.expect("defined");
    assert_eq!((second.version.version, second.is_new), (2, true));
    let again = versions::define(&mut service.rows, &project, "minutes", &longest).await.expect("defined");
    assert_eq!((again.version.version, again.is_new), (2, false));
    let still = service.get(path).await.ok();
    assert_eq!((&of(&still, "minutes")["arms"], &still["settings_hash"]), (&found["arms"], &answer["settings_hash"]));
    let changed = sqlx::raw_sql("UPDATE metric_definitions SET definition = '{}'").execute(&mut service.rows).await;
    assert!(changed.is_err_and(|error| error.to_string().contains("define the next version instead")));
}

/// Minutes per visit and per watching, and the median of minutes. The standard error is that of the delta method, by hand: of each user the
/// minutes less the ratio times the visits, squared; 200 / (3 * 2 * 1^2) in control and 815.04 / (3 * 2 * (5/3)^2) in b.
#[tokio::test]
async fn ratios_and_quantiles_are_of_what_users_come_to() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "player", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "player", "control", 0, 3).await;
    add_users(&mut service.rows, PROJECT, "player", "b", 3, 3).await;
    for (user, minutes, visits) in [(0, "10", 2), (1, "20", 1), (3, "30", 1), (4, "6", 3), (4, "\"many\"", 0), (5, "", 1)] {
        let properties = format!("'{{\"minutes\": {minutes}}}'");
        if !minutes.is_empty() {
            let more = [("metadata", properties.as_str())];
            Event { more: &more, ..Event::new("engagement", "watch", user, HOUR) }.store(&mut service.rows).await;
        }
        for visit in 0..visits {
            Event::new("engagement", "visit", user, HOUR * f64::from(visit)).store(&mut service.rows).await;
        }
    }
    let minutes = json!({"kind": "engagement", "events": ["watch"], "value": "minutes", "per_user": "sum"});
    let over = |events: &str| {
        let mut definition = minutes.clone();
        definition["over"] = json!({"kind": "engagement", "events": [events], "per_user": "count"});
        definition
    };
    let mut median = minutes.clone();
    median["quantile"] = json!(0.5);
    for (name, definition) in [("per_visit", over("visit")), ("per_watching", over("watch")), ("median", median)] {
        define(&mut service, "player", name, definition).await;
    }
    let answer = service.get("/v1/experiments/player/results?analysis=fixed&series=daily").await.ok();
    let means = |metric: &str| {
        let arms = of(&answer, metric)["arms"].as_array().expect("arms").clone();
        arms.iter().map(|arm| (arm["mean"].as_f64(), arm["denominator"].as_u64())).collect::<Vec<_>>()
    };
    assert_eq!(means("per_visit"), [(Some(10.0), Some(3)), (Some(7.2), Some(5))]);
    assert_eq!(means("per_watching"), [(Some(15.0), Some(2)), (Some(18.0), Some(2))], "what is no number is in neither part");
    assert_eq!(means("median"), [(Some(10.0), None), (Some(6.0), None)]);
    for (metric, kind, left_out) in [("per_visit", "ratio", 1), ("per_watching", "ratio", 1), ("median", "quantile", 1)] {
        let found = of(&answer, metric);
        assert_eq!((&found["type"], &found["left_out"]["without_value"]), (&json!(kind), &json!(left_out)), "{metric}");
    }
    let absolute = &of(&answer, "per_visit")["comparisons"][0]["absolute"];
    check_number(&absolute["estimate"], -2.8);
    check_number(&absolute["std_error"], (200.0_f64 / 6.0 + 815.04 / (6.0 * 25.0 / 9.0)).sqrt());
    let days = of(&answer, "per_visit")["series"].as_array().expect("days");
    let last = days.last().and_then(|day| day["cumulative"]["arms"].as_array()).expect("a day");
    assert_eq!(last.iter().map(|arm| arm["mean"].as_f64()).collect::<Vec<_>>(), [Some(10.0), Some(7.2)]);
    let plain = of(&answer, "per_visit")["comparisons"][0]["plain"].as_str().expect("a sentence");
    assert!(plain.contains("b has 7.2 vs 10 in control"), "{plain}");
}

/// Four users of each variant play for so many minutes in the first three days and in the second week: a day, the treatment brings 2 minutes
/// more early and none late. Of each user late less early is 0, 0, -1, 1 in control and -2, -3, -1, -2 in b, both with a variance of 2 / 3.
#[tokio::test]
async fn an_effect_of_novelty_is_seen_by_the_time_since_the_exposure() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "games", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "games", "control", 0, 4).await;
    add_users(&mut service.rows, PROJECT, "games", "b", 4, 4).await;
    let (early, late) = ([3, 6, 3, 0, 9, 12, 9, 6], [7, 14, 0, 7, 7, 7, 14, 0]);
    for (user, minutes) in (0..).zip(early) {
        let properties = format!("'{{\"minutes\": {minutes}}}'");
        Event { more: &[("metadata", &properties)], ..Event::new("engagement", "play", user, HOUR) }
            .store(&mut service.rows)
            .await;
    }
    for (user, minutes) in (0..).zip(late) {
        let properties = format!("'{{\"minutes\": {minutes}}}'");
        let play = Event { more: &[("metadata", &properties)], ..Event::new("engagement", "play", user, 193.0 * HOUR) };
        play.store(&mut service.rows).await;
    }
    let minutes = json!({"kind": "engagement", "value": "minutes", "per_user": "sum", "window": {"length": "14d"}});
    define(&mut service, "games", "minutes", minutes.clone()).await;
    let mut most = minutes;
    most["per_user"] = "max".into();
    define(&mut service, "games", "most", most).await;
    let path = "/v1/experiments/games/results?analysis=fixed&series=since_exposure&as_of=2026-03-";
    let answer = service.get(&format!("{path}15T00:00:00Z")).await.ok();
    let found = &of(&answer, "minutes")["since_exposure"];
    let days = found["days"].as_array().expect("days");
    let effect = |day: usize| days[day]["comparisons"][0]["estimate"].as_f64();
    assert_eq!((days.len(), effect(0), effect(1), effect(8)), (14, Some(6.0), Some(0.0), Some(0.0)));
    let novelty = &found["novelty"][0];
    for (field, expected) in [("early", 2.0), ("late", 0.0), ("change", -2.0), ("std_error", (1.0_f64 / 3.0).sqrt())] {
        assert!((novelty[field].as_f64().expect("a number") - expected).abs() < 1e-12, "{field}: {novelty}");
    }
    assert_eq!(novelty["users"], 8);
    assert!(of(&answer, "most")["since_exposure"].is_null(), "the greatest of a time is no part of the greatest of all");
    // A microsecond before the fourteenth day is over for anybody.
    let earlier = service.get(&format!("{path}14T23:59:59.999999Z")).await.ok();
    let found = &of(&earlier, "minutes")["since_exposure"];
    assert_eq!((found["days"].as_array().map(Vec::len), found.get("novelty")), (Some(13), None));
}

/// A metric of a name that no event has is 0 for everybody: the answer says so, and which names there are. One that others' events have is
/// just rare.
#[tokio::test]
async fn a_name_that_no_event_has_is_said() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "typos", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "typos", "control", 0, 1).await;
    let known = "INSERT INTO event_names (project_id, kind, name) VALUES";
    service.run(&format!("{known} ('{PROJECT}', 'engagement', 'watch'), ('{PROJECT}', 'conversion', 'purchase')")).await;
    let visits = |name: &str| json!({"kind": "engagement", "events": ["watch"], "per_user": "count", "over": {"kind": "engagement", "events": [name], "per_user": "count"}});
    define(&mut service, "typos", "per_visit", visits("vatch")).await;
    define(&mut service, "typos", "watched", json!({"kind": "engagement", "events": ["watch"], "per_user": "exists"})).await;
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    let named = |name: &str| NewMetric { name: name.to_owned(), conversion_type: Some(name.to_owned()), ..NewMetric::default() };
    for name in ["purchase", "purchas"] {
        add_metric(&mut service.rows, &project, "typos", &named(name)).await.expect("added");
    }
    let answer = service.get("/v1/experiments/typos/results").await.ok();
    let warnings = answer["warnings"].as_array().expect("warnings").iter();
    let said: Vec<&str> =
        warnings.filter(|warning| warning["code"] == "unknown_event").filter_map(|warning| warning["message"].as_str()).collect();
    let expected = [
        r#"metrics[purchas]: no event is called "purchas"; the nearest names are "purchase", "watch""#,
        r#"metrics[per_visit]: no event is called "vatch"; the nearest names are "watch", "purchase""#,
    ];
    assert_eq!(said, expected, "{answer}");
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
    check(json!({"over": {"kind": "conversion", "per_user": "sum", "value": "properties.items"}}), "");
    check(json!({"over": {"kind": "conversion", "where": "no_such_column = 1", "per_user": "count"}}), "no_such_column");
    check(json!({"over": {"kind": "conversion", "value": "log_offset", "per_user": "sum"}}), "a column of the table events or");
    check(json!({"per_user": "sum", "value": "value"}), "");
    check(json!({"per_user": "sum", "value": "properties.price"}), "");
    check(json!({"per_user": "distinct", "value": "log_offset"}), "a column of the table events or a property is accepted");
}

/// An order every ten days after the exposure, for a hundred days: what has no end counts them all, and waits for the one look.
#[tokio::test]
async fn what_has_no_end_is_decided_by_one_look() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "open", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "open", "control", 0, 100).await;
    add_users(&mut service.rows, PROJECT, "open", "b", 100, 100).await;
    for (from, every) in [(0, 20), (100, 10)] {
        let insert = format!(
            "INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, conversion_type)
             SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'buy'
             FROM generate_series({from}, {from} + 99) i,
                  generate_series(timestamptz '2026-03-02T00:00:00Z', timestamptz '2026-06-08T00:00:00Z', interval '{every} days') t
             WHERE i % 7 > 0 OR t < '2026-03-10T00:00:00Z'"
        );
        service.run(&insert).await;
    }
    let count = |window: Value| json!({"kind": "conversion", "events": ["buy"], "per_user": "count", "window": window});
    define(&mut service, "open", "open", count(json!({"length": "open"}))).await;
    define(&mut service, "open", "later", count(json!({"delay": "10d", "length": "open"}))).await;
    define(&mut service, "open", "month", count(json!({"length": "30d"}))).await;
    let looks = service.get("/v1/experiments/open/results?cap=off").await.ok();
    // 14 of the users of b order once, the others ten times, of which three are in the first month and the first one is on the first day.
    assert_eq!(["open", "later", "month"].map(|metric| value(&looks, metric)), [8.74, 7.74, 2.72]);
    assert_eq!(of(&looks, "month")["window_days"], 30);
    for metric in ["open", "later"] {
        let found = &of(&looks, metric)["comparisons"][0];
        let said = (&found["verdict"], &found["decided_by"], &of(&looks, metric)["window_days"]);
        assert_eq!(said, (&json!("inconclusive"), &json!("open"), &Value::Null), "{found}");
        assert!(found["plain"].as_str().is_some_and(|plain| plain.contains("nothing is decided before the one look")), "{found}");
    }
    assert_eq!(of(&looks, "month")["comparisons"][0]["verdict"], "won");
    let once = service.get("/v1/experiments/open/results?cap=off&analysis=fixed").await.ok();
    assert_eq!(of(&once, "open")["comparisons"][0]["verdict"], "won");
    // Nobody's window is over where there is no end: everybody counts.
    let complete = service.get("/v1/experiments/open/results?cap=off&windows=complete&analysis=fixed").await.ok();
    assert_eq!(of(&complete, "open")["arms"][1]["users"], 100);
}

/// Each user waits four times for as long: a quantile of waits is that of users, and as uncertain as it, though there are four times as many.
#[tokio::test]
async fn a_quantile_of_events_knows_whose_they_are() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "waits", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "waits", "control", 0, 1_000).await;
    add_users(&mut service.rows, PROJECT, "waits", "b", 1_000, 1_000).await;
    let insert = format!(
        "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
             log_partition, log_offset, event_type, metadata)
         SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'wait',
             json_build_object('ms', i * 7 % 1000 + i / 1000 * 100)
         FROM generate_series(0, 1999) i, generate_series(1, 4) n, (SELECT timestamptz '2026-03-01T01:00:00Z' AS t) t"
    );
    service.run(&insert).await;
    let of_waits =
        |per_user: &str| json!({"kind": "engagement", "events": ["wait"], "value": "ms", "per_user": per_user, "quantile": 0.9});
    define(&mut service, "waits", "events", of_waits("each")).await;
    define(&mut service, "waits", "users", of_waits("max")).await;
    let answer = service.get("/v1/experiments/waits/results?analysis=fixed").await.ok();
    let (events, users) = (&of(&answer, "events")["comparisons"][0], &of(&answer, "users")["comparisons"][0]);
    assert_eq!(of(&answer, "events")["arms"][1]["users"], 1_000);
    let number =
        |found: &Value, place: &str| found.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("{place}: {found}"));
    assert!((number(events, "/absolute/estimate") - number(users, "/absolute/estimate")).abs() < 1.0, "{events}");
    let width = |found: &Value| number(found, "/absolute/ci/1") - number(found, "/absolute/ci/0");
    assert!((width(events) / width(users) - 1.0).abs() < 0.05, "{} and {}", width(events), width(users));
    assert_eq!((events["verdict"].as_str(), of(&answer, "events")["type"].as_str()), (Some("won"), Some("quantile")));
}
