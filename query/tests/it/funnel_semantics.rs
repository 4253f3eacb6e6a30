//! What each option of a funnel means, through `POST /v1/funnels`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{Event, PROJECT, Service, add_experiment, add_users, check_number, user};

/// Stores events such as `A0 B10`, of a name and a second, as engagement. Names get `prefix`, so that funnels do not meet.
async fn store(service: &mut Service, prefix: &str, user: u64, events: &str) {
    for (offset, event) in events.split(' ').enumerate() {
        let digits = event.find(|c: char| c.is_ascii_digit()).expect("a second");
        let (name, second) = (format!("{prefix}{}", &event[..digits]), event[digits..].parse().expect("a second"));
        Event::new("engagement", &name, user, second).store(&mut service.rows).await;
        let id = crate::support::user(user);
        let set = format!("UPDATE engagement_events SET log_offset = {offset} WHERE log_offset = 0 AND user_id = '{id}'");
        service
            .run(&format!("{set} AND event_type = '{name}' AND event_time = '2026-03-01'::timestamptz + '{second} s'::interval"))
            .await;
    }
}

/// Writes steps such as `ABC`, one name each.
fn steps(prefix: &str, names: &str) -> Value {
    names.chars().map(|name| json!({"name": name, "events": [format!("{prefix}{name}")]})).collect()
}

fn units(group: &Value) -> Vec<u64> {
    let steps = group["steps"].as_array().unwrap_or_else(|| panic!("steps: {group}"));
    steps.iter().map(|step| step["units"].as_u64().expect("units")).collect()
}

async fn ask(service: &Service, body: &Value) -> Value {
    service.post("/v1/funnels", body).await.ok()
}

/// Adds the members of an object to another one.
fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    let (Value::Object(fields), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
    fields.extend(more);
    body
}

/// The table of what engines make of small streams (W = 10): the level that each preset gives.
#[tokio::test]
async fn presets_give_what_their_products_give() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "x", "", &[("a", "1")]).await;
    // Exposed at second 0.
    add_users(&mut service.rows, PROJECT, "x", "a", 1, 99).await;
    let presets = ["clickhouse", "posthog", "mixpanel", "growthbook"];
    let cases = [
        ("ABC", "A0 A8 B12 C15", [3, 3, 1, 1]),
        ("AB", "A0 B10", [2, 2, 2, 2]),
        ("AB", "A0 B11", [1, 1, 1, 1]),
        ("AB", "B0 A0", [2, 2, 1, 2]),
        ("XX", "X0", [2, 1, 1, 2]),
        ("AAB", "A0 B1", [3, 1, 1, 3]),
        ("AAB", "A0 A1 B2", [3, 3, 3, 3]),
        ("ABC", "A0 B8 C15", [2, 2, 2, 3]),
        ("ABC", "A0 B1 A20 B21 C22", [3, 3, 2, 2]),
    ];
    for (number, (names, events, expected)) in (1..).zip(cases) {
        let prefix = format!("c{number}.");
        store(&mut service, &prefix, number, events).await;
        for (preset, expected) in presets.iter().zip(expected) {
            let body = json!({"preset": preset, "steps": steps(&prefix, names), "window": "10s", "experiment": {"key": "x"}});
            let answer = ask(&service, &body).await;
            let level = units(&answer["groups"][0]).iter().sum::<u64>();
            assert_eq!(level, expected, "{names}, {events}, {preset}: {answer}");
            assert_eq!(answer["definition"]["preset"], *preset);
        }
    }
    let strict = json!({"preset": "clickhouse", "order": "strict_order"});
    let reentry = with(&strict, json!({"allow_reentry": true}));
    let contiguous = json!({"preset": "posthog", "order": "contiguous"});
    let deduplicated = json!({"preset": "clickhouse", "strict_deduplication": true});
    let increasing = json!({"preset": "clickhouse", "strict_increase": true});
    let exact = json!({"strict_increase": true});
    let cases = [
        ("AB", "A0 o1 B2", vec![(&strict, 1), (&contiguous, 1)]),
        ("AB", "A0 o1 A2 B3", vec![(&strict, 1), (&contiguous, 2)]),
        ("ABC", "A0 B1 A2 C3", vec![(&strict, 3), (&contiguous, 2)]),
        ("ABC", "A0 C1 B2 C3", vec![(&strict, 1), (&reentry, 3), (&contiguous, 1)]),
        ("ABC", "A0 B1 B2 C3", vec![(&deduplicated, 2)]),
        ("ABCD", "A0 B1 C2 B3 D4", vec![(&deduplicated, 3)]),
        ("AB", "A0 A1 B1", vec![(&increasing, 1), (&exact, 2)]),
    ];
    for (number, (names, events, expected)) in (21..).zip(cases) {
        let prefix = format!("s{number}.");
        store(&mut service, &prefix, number, events).await;
        for (options, expected) in expected {
            let answer = ask(&service, &with(options, json!({"steps": steps(&prefix, names), "window": "10s"}))).await;
            assert_eq!(units(&answer["groups"][0]).iter().sum::<u64>(), expected, "{names}, {events}, {options}: {answer}");
        }
    }
}

#[tokio::test]
async fn product_options_mean_what_their_products_mean() {
    let mut service = Service::start().await;
    let cases = [
        ("AB", "A0 X1 B2", json!({"preset": "posthog", "exclude": [{"events": ["p1.X"]}]}), vec![0, 0]),
        ("AB", "A0 X1 B2", json!({"exclude": [{"events": ["p2.X"]}]}), vec![1, 0]),
        ("AB", "A0 X1 A2 B3", json!({"preset": "posthog", "exclude": [{"events": ["p3.X"]}]}), vec![1, 1]),
        ("AB", "A0 B1 X2", json!({"preset": "posthog", "exclude": [{"events": ["p4.X"]}]}), vec![1, 1]),
        (
            "ABC",
            "A0 B1 X2 C3",
            json!({"exclude": [{"where": "event = 'p5.X'", "after_step": 2, "before_step": 3}]}),
            vec![1, 1, 0],
        ),
        ("ABC", "C0 A4 B10", json!({"order": "any"}), vec![1, 1, 1]),
        ("ABC", "C0 A4 B11", json!({"order": "any"}), vec![1, 1, 0]),
        ("AB", "A0 B1 A2 B3", json!({"count": "totals"}), vec![2, 2]),
        ("AB", "A0 A1 B2", json!({"count": "totals"}), vec![1, 1]),
        ("AB", "A0 B1 A20 B25", json!({"count": "sessions", "session_gap": "10s"}), vec![2, 2]),
        ("AB", "A0 o4 B8 A20", json!({"count": "sessions", "session_gap": "4s"}), vec![2, 1]),
        ("AB", "A0 B10", json!({"window_inclusive": false}), vec![1, 0]),
        ("ABC", "A0 B8 C15", json!({"window_anchor": "previous_step"}), vec![1, 1, 1]),
        ("AB", "B0 A1", json!({"ties": "either", "tie_tolerance": "1s"}), vec![1, 1]),
        ("AB", "B0 A2", json!({"ties": "either", "tie_tolerance": "1s"}), vec![1, 0]),
        ("AB", "B0 A0", json!({"ties": "arrival"}), vec![1, 0]),
        ("ABC", "A0 A8 B12 C15", json!({"entry": "first"}), vec![1, 0, 0]),
    ];
    for (number, (names, events, options, expected)) in (1..).zip(cases) {
        let prefix = format!("p{number}.");
        store(&mut service, &prefix, number, events).await;
        let answer = ask(&service, &with(&options, json!({"steps": steps(&prefix, names), "window": "10s"}))).await;
        assert_eq!(units(&answer["groups"][0]), expected, "{names}, {events}, {options}: {answer}");
    }
    // A step that others do not wait for, and one with a window of its own.
    store(&mut service, "o.", 50, "A0 C2").await;
    store(&mut service, "o.", 51, "A0 B1 C4").await;
    let mut body = json!({"steps": steps("o.", "ABC"), "window": "10s"});
    body["steps"][1]["optional"] = true.into();
    let answer = ask(&service, &body).await;
    assert_eq!(units(&answer["groups"][0]), [2, 1, 2], "{answer}");
    assert_eq!(answer["groups"][0]["steps"][0]["dropped"], 0);
    assert_eq!(answer["groups"][0]["steps"][2]["rate_prev"], 1.0);
    body["steps"][2]["within"] = "3s".into();
    assert_eq!(units(&ask(&service, &body).await["groups"][0]), [2, 1, 1], "from A on, since B is optional");
    body["steps"][1]["optional"] = false.into();
    assert_eq!(units(&ask(&service, &body).await["groups"][0]), [2, 1, 1], "from B on");
}

/// Stores events of one user with a value each: name, second, value.
async fn store_valued(service: &mut Service, user: u64, property: &str, events: &[(&str, f64, &str)]) {
    for (name, second, value) in events {
        let metadata = format!("'{{\"{property}\": {value}}}'");
        let more = [("metadata", metadata.as_str())];
        Event { more: &more, ..Event::new("engagement", name, user, *second) }.store(&mut service.rows).await;
    }
}

#[tokio::test]
async fn values_are_held_constant_and_broken_down_by() {
    let mut service = Service::start().await;
    store_valued(&mut service, 1, "order_id", &[("A", 0.0, "\"o1\""), ("B", 1.0, "\"o2\"")]).await;
    store_valued(&mut service, 2, "order_id", &[("A", 0.0, "17"), ("B", 1.0, "17"), ("B", 2.0, "\"o3\"")]).await;
    store_valued(&mut service, 3, "plan", &[("A", 0.0, "\"pro\""), ("B", 1.0, "\"pro\"")]).await;
    let body = json!({"steps": steps("", "AB"), "window": "10s", "hold_constant": ["order_id"]});
    assert_eq!(units(&ask(&service, &body).await["groups"][0]), [2, 1]);
    assert_eq!(units(&ask(&service, &with(&body, json!({"hold_constant": []}))).await["groups"][0]), [3, 3]);

    let events = [("C", 0.0, "\"chrome\""), ("C", 1.0, "\"ff\""), ("D", 2.0, "\"chrome\"")];
    store_valued(&mut service, 4, "browser", &events).await;
    let by = |attribution: &str, top: u64| {
        let breakdown = json!({"by": "browser", "attribution": attribution, "top": top});
        json!({"steps": steps("", "CD"), "window": "10s", "breakdown": breakdown})
    };
    let groups = |answer: &Value| {
        let group = |group: &Value| (group["breakdown"]["properties.browser"].as_str().map(str::to_owned), units(group));
        answer["groups"].as_array().expect("groups").iter().map(group).collect::<BTreeMap<_, _>>()
    };
    let of = |expected: &[(&str, [u64; 2])]| {
        expected.iter().map(|(value, units)| (Some((*value).to_owned()), units.to_vec())).collect::<BTreeMap<_, _>>()
    };
    let cases = [
        ("first_touch", vec![("chrome", [1, 1])]),
        ("last_touch", vec![("chrome", [1, 1])]),
        ("all_steps", vec![("chrome", [1, 1]), ("ff", [1, 0])]),
        ("step:1", vec![("ff", [1, 1])]),
        ("step:2", vec![("chrome", [1, 1])]),
    ];
    for (attribution, expected) in cases {
        let answer = ask(&service, &by(attribution, 20)).await;
        assert_eq!(groups(&answer), of(&expected), "{attribution}: {answer}");
        assert_eq!(units(&answer["total"][0]), [1, 1]);
        assert_eq!(answer["other"], json!({"breakdown_values": 0, "units": 0, "groups": []}));
    }
    // What is not shown is "other", and the total stays whole.
    store_valued(&mut service, 5, "browser", &[("C", 0.0, "\"opera\""), ("D", 1.0, "null")]).await;
    store_valued(&mut service, 6, "browser", &[("C", 0.0, "\"lynx\"")]).await;
    store_valued(&mut service, 7, "browser", &[("C", 0.0, "\"chrome\"")]).await;
    store_valued(&mut service, 8, "browser", &[("C", 0.0, "null")]).await;
    let answer = ask(&service, &by("first_touch", 1)).await;
    assert_eq!(groups(&answer), of(&[("chrome", [2, 1])]), "{answer}");
    let other = &answer["other"];
    assert_eq!((&other["breakdown_values"], &other["units"], units(&other["groups"][0])), (&json!(3), &json!(3), vec![3, 1]));
    assert_eq!(units(&answer["total"][0]), [5, 2]);
    let all = ask(&service, &by("first_touch", 20)).await;
    assert_eq!(groups(&all)[&None], [1, 0], "no value is a group, too: {all}");
}

#[tokio::test]
async fn entries_are_followed_by_their_day() {
    let mut service = Service::start().await;
    let day = 86_400.0;
    for (name, days) in [("A", 1.0), ("B", 2.0), ("A", 5.0), ("B", 6.0), ("A", 20.0)] {
        Event::new("engagement", name, 1, days * day).store(&mut service.rows).await;
    }
    service.run("UPDATE project_progress SET event_time = '2026-03-22T12:00:00Z'").await;
    let body = json!({"steps": steps("", "AB"), "window": "3d", "output": ["steps", "trend:day", "time_to_convert"]});
    let answer = ask(&service, &body).await;
    let point = |start: &str, units: [u64; 2], complete: bool| json!({"start": start, "units": units, "complete": complete});
    let expected =
        json!([point("2026-03-02", [1, 1], true), point("2026-03-06", [1, 1], true), point("2026-03-21", [1, 0], false)]);
    assert_eq!(answer["groups"][0]["trend"], expected, "{answer}");
    assert_eq!(answer["incomplete"], json!(["2026-03-21"]));
    assert_eq!(units(&answer["groups"][0]), [1, 1]);
    let found = &answer["groups"][0]["time_to_convert"];
    let expected = json!({"from": 1, "to": 2, "units": 1, "median_s": day, "p90_s": day, "mean_s": day,
                          "edges_s": [86_400, 86_460, 86_520], "counts": [1, 0]});
    assert_eq!(*found, expected);
    assert_eq!(answer["groups"][0]["steps"][1]["median_s"], day);
    service.run("UPDATE project_progress SET event_time = '2026-03-26T00:00:00Z'").await;
    let answer = ask(&service, &body).await;
    assert_eq!(answer["incomplete"], json!([]), "{answer}");
}

#[tokio::test]
async fn a_range_bounds_entries_and_windows_that_are_open_are_counted() {
    let mut service = Service::start().await;
    // (enter, done) of five users, in days after 2026-10-01.
    for (user, enter, done) in [(1, 1.0, 4.0), (2, 27.0, 35.0), (3, 30.0, 43.0), (4, 30.0, 50.0), (5, -2.0, 2.0)] {
        for (name, days) in [("enter", enter), ("done", done)] {
            Event::new("engagement", name, user, (214.0 + days) * 86_400.0).store(&mut service.rows).await;
        }
    }
    service.run("UPDATE project_progress SET event_time = '2026-11-20T00:00:00Z'").await;
    let steps = json!([{"name": "enter", "events": ["enter"]}, {"name": "done", "events": ["done"]}]);
    let body = json!({"steps": steps, "window": "14d", "from": "2026-10-01", "to": "2026-11-01"});
    let answer = ask(&service, &body).await;
    assert_eq!(units(&answer["groups"][0]), [4, 3], "{answer}");
    assert_eq!((&answer["windows_open"], &answer["definition"]["range"]), (&json!(0), &json!("entries")));
    let events = ask(&service, &with(&body, json!({"range": "events"}))).await;
    assert_eq!(units(&events["groups"][0]), [4, 1], "{events}");
    // On 11-10 the window of the fourth user is open; what happened later is not told apart here, since it is stored already.
    service.run("UPDATE project_progress SET event_time = '2026-11-10T00:00:00Z'").await;
    assert_eq!(ask(&service, &body).await["windows_open"], 1);
    // The same of attempts, sessions, steps of their own windows, and any order.
    let totals = ask(&service, &with(&body, json!({"count": "totals"}))).await;
    assert_eq!((units(&totals["groups"][0]), &totals["windows_open"]), (vec![4, 3], &json!(1)));
    let any = ask(&service, &with(&body, json!({"order": "any"}))).await;
    // The fifth user's 10-03 is the first of two steps in any order.
    assert_eq!(units(&any["groups"][0]), [5, 3], "{any}");
    let per_step = ask(&service, &with(&body, json!({"window_anchor": "previous_step"}))).await;
    assert_eq!(units(&per_step["groups"][0]), [4, 3]);
    let sessions = ask(&service, &with(&body, json!({"count": "sessions"}))).await;
    assert_eq!(units(&sessions["groups"][0]), [4, 0]);
}

#[tokio::test]
async fn names_that_no_event_has_are_told_with_their_nearest() {
    let mut service = Service::start().await;
    store(&mut service, "", 1, "purchase0 page_viewed1").await;
    service
        .run(&format!(
            "INSERT INTO event_names (project_id, kind, name) VALUES ('{PROJECT}', 'engagement', 'purchase'),
             ('{PROJECT}', 'engagement', 'page_viewed'), ('{PROJECT}', 'conversion', 'signup'), ('{PROJECT}', 'conversion', 'purchase')"
        ))
        .await;
    store(&mut service, "", 1, "unlisted2").await;
    let step = |name: &str| json!({"name": name, "events": [name]});
    let warnings = |answer: &Value| {
        let text = |warning: &Value| {
            format!("{} {}", warning["code"].as_str().expect("a code"), warning["message"].as_str().expect("a text"))
        };
        answer["warnings"].as_array().map(|warnings| warnings.iter().map(text).collect::<Vec<_>>()).unwrap_or_default()
    };
    let body = json!({"steps": [step("purchase"), step("page_viewd")], "window": "1h"});
    let answer = ask(&service, &body).await;
    assert_eq!(units(&answer["groups"][0]), [1, 0]);
    let expected = "unknown_event steps[1]: no event is called \"page_viewd\"; the nearest names are \"page_viewed\", \"";
    assert_eq!(warnings(&answer).len(), 1, "{answer}");
    assert!(warnings(&answer)[0].starts_with(expected), "{answer}");
    // One of several names, a condition, and an exclusion.
    let steps = json!([{"name": "a", "events": ["purchase", "Purchases"]}, {"name": "b", "where": "event = 'sign_up' OR event IN ('purchase', 'x1')"}]);
    let answer = ask(&service, &json!({"steps": steps, "window": "1h", "exclude": [{"events": ["refunded"]}]})).await;
    let told: Vec<String> = warnings(&answer).iter().map(|text| text.split(';').next().unwrap_or_default().to_owned()).collect();
    let is_told = |place: &str, name: &str| told.contains(&format!("unknown_event {place}: no event is called \"{name}\""));
    assert!(is_told("steps[0]", "Purchases") && is_told("steps[1]", "sign_up") && is_told("steps[1]", "x1"), "{told:?}");
    assert!(is_told("exclude[0]", "refunded") && told.len() == 4, "{told:?}");
    // What is there is not told: events that no list knows yet, kinds with names of their own, names that are only rare.
    for name in ["unlisted", "impression", "click", "signup", "identify"] {
        let answer = ask(&service, &json!({"steps": [step("purchase"), step(name)], "window": "1h"})).await;
        assert_eq!(warnings(&answer), Vec::<String>::new(), "{name}");
    }
    let nobody = service.post("/v1/funnels", &json!({"steps": [step("purchase")], "experiment": {"key": "chekout"}})).await;
    let error = nobody.refused(404, "unknown_experiment");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("none yet")), "{error}");
    add_experiment(&mut service.rows, PROJECT, "checkout", "", &[("a", "1")]).await;
    let asked = json!({"steps": [{"name": "a", "where": "true"}], "experiment": {"key": "chekout"}});
    let error = service.post("/v1/funnels", &asked).await.refused(404, "unknown_experiment");
    assert!(error["message"].as_str().is_some_and(|text| text.ends_with("the nearest are checkout")), "{error}");
}

#[tokio::test]
async fn variants_are_compared_step_by_step() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "x", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "x", "control", 1, 1_000).await;
    add_users(&mut service.rows, PROJECT, "x", "b", 1_001, 1_000).await;
    // 400 of 1,000 look in both, an hour after their exposure; 100 and 150 of them buy.
    let engage = |name: &str, users: &str, second: u32| {
        format!(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type)
             SELECT '{PROJECT}', gen_random_uuid(), {}, t, t, t, false, false, '{}', 0, i, '{name}'
             FROM (SELECT i, timestamptz '2026-03-01T00:00:00Z' + interval '{second} seconds' AS t FROM generate_series(1, 2000) i) s
             WHERE {users}",
            crate::support::USER_SQL,
            crate::support::LOG
        )
    };
    service.run(&engage("look", "i % 1000 < 400", 3_600)).await;
    service.run(&engage("buy", "i <= 1000 AND i % 1000 < 100 OR i > 1000 AND i % 1000 < 150", 7_200)).await;
    // Before the exposure nothing counts, and neither do users of no variant, or of several.
    for (user, second) in [(3_000, 10.0), (1, -60.0)] {
        Event::new("engagement", "buy", user, second).store(&mut service.rows).await;
    }
    let steps = json!([{"name": "look", "events": ["look"]}, {"name": "buy", "events": ["buy"]}]);
    let body = json!({"steps": steps, "window": "1d", "experiment": {"key": "x"}, "output": ["steps", "units:reached:2"]});
    let answer = ask(&service, &body).await;
    let groups = answer["groups"].as_array().expect("groups");
    assert_eq!((&groups[0]["variant"], &groups[1]["variant"]), (&json!("control"), &json!("b")), "{answer}");
    assert_eq!((units(&groups[0]), units(&groups[1])), (vec![400, 100], vec![400, 150]));
    assert_eq!((&groups[0]["exposed"], &groups[1]["exposed"]), (&json!(1_000), &json!(1_000)));
    check_number(&groups[1]["steps"][1]["rate_exposed"], 0.15);
    assert!(groups[0].get("significance").is_none());
    let found = groups[1]["significance"].as_array().expect("a list");
    assert_eq!(found.iter().map(|step| step["step"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(2)]);
    check_number(&found[1]["difference"], 0.05);
    check_number(&found[1]["lift"], 0.5);
    // Welch: 0.05 / sqrt((0.1 * 0.9 + 0.15 * 0.85) / 999) = 3.389; two-sided, with 1,930 degrees of freedom.
    let p = found[1]["p"].as_f64().expect("a number");
    assert!((p - 0.000_715).abs() < 0.000_02, "{p}");
    assert_eq!(found[1]["p_adjusted"].as_f64(), Some(2.0 * p));
    assert_eq!((found[0]["lift"].as_f64(), found[1]["status"].as_str()), (Some(0.0), Some("ok")));
    // Over those who entered only the second step can differ.
    let entered = with(&body, json!({"experiment": {"key": "x", "denominator": "entered"}}));
    let found = ask(&service, &entered).await["groups"][1]["significance"].clone();
    assert_eq!((found.as_array().map(Vec::len), &found[0]["step"]), (Some(1), &json!(2)));
    check_number(&found[0]["difference"], 0.125);
    // Entries by exposure: windows run from it.
    let exposure = with(&body, json!({"entry": "exposure", "window": "1h"}));
    let answer = ask(&service, &exposure).await;
    assert_eq!(units(&answer["groups"][1]), [400, 0], "{answer}");
    assert_eq!(answer["groups"][1]["steps"][0]["median_s"], 3_600.0);
    let other = json!({"key": "x", "baseline": "b"});
    assert_eq!(ask(&service, &with(&body, json!({"experiment": other}))).await["groups"][0]["variant"], "b");
    let wrong = with(&body, json!({"experiment": {"key": "x", "baseline": "c"}}));
    service.post("/v1/funnels", &wrong).await.refused(400, "unknown_variant");
    // Users who saw several variants are left out, and told.
    service
        .run(&format!(
            "UPDATE user_experiment_participation SET variants_seen = variants_seen || gen_random_uuid() WHERE user_id = '{}'",
            user(1)
        ))
        .await;
    let answer = ask(&service, &body).await;
    assert_eq!((units(&answer["groups"][0]), &answer["groups"][0]["exposed"]), (vec![399, 99], &json!(999)), "{answer}");
    assert_eq!(answer["warnings"][0]["code"], "multiple_variants");
}

/// Lists of users are exactly as long as the counts that they stand behind, in every group, under every way of counting.
#[tokio::test]
async fn the_users_behind_a_count_are_as_many_as_it_says() {
    let mut service = Service::start().await;
    service
        .run(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type, country_code)
             SELECT '00000000-0000-0000-0000-000000000001', gen_random_uuid(),
                 ('00000000-0000-4000-8000-' || lpad(to_hex(i % 499), 12, '0'))::uuid, t, t, t, false, false,
                 '00000000-0000-0000-0000-000000000abc', 0, i, chr(97 + h / 600 % 5), nullif('c' || h % 7, 'c6')
             FROM (SELECT i, h, timestamptz '2026-03-01T00:00:00Z' + h % 600 * interval '1 second' AS t
                   FROM (SELECT i, ('x' || substr(md5(i::text), 1, 6))::bit(24)::int AS h FROM generate_series(1, 5000) i) r) s",
        )
        .await;
    let body = json!({"steps": steps("", "abcd"), "window": "90s", "output": ["steps", "units:reached:1", "units:reached:3", "units:dropped:2"]});
    let mut several = 0;
    for options in [
        json!({}),
        json!({"order": "any"}),
        json!({"order": "contiguous"}),
        json!({"order": "strict_order"}),
        json!({"entry": "first"}),
        json!({"count": "totals"}),
        json!({"count": "sessions", "session_gap": "20s"}),
        json!({"event_reuse": "allowed"}),
        json!({"hold_constant": ["country"]}),
        json!({"exclude": [{"events": ["e"]}]}),
        json!({"exclude": [{"events": ["e"], "effect": "drop_unit"}]}),
    ] {
        for breakdown in
            [json!(null), json!({"by": "country", "top": 3}), json!({"by": "country", "attribution": "all_steps", "top": 3})]
        {
            let answer = ask(&service, &with(&with(&body, options.clone()), json!({"breakdown": breakdown}))).await;
            let mut groups: Vec<&Value> = answer["groups"].as_array().expect("groups").iter().collect();
            let mut sum = groups.iter().map(|group| units(group)).fold(vec![0; 4], add);
            let others = answer["other"]["groups"].as_array().cloned().unwrap_or_default();
            sum = others.iter().map(units).fold(sum, add);
            groups.extend(&others);
            for group in groups {
                let list = |name: &str| group["units"][name].as_array().unwrap_or_else(|| panic!("{name}: {group}")).clone();
                let reached = units(group);
                assert_eq!(list("reached:1").len() as u64, reached[0], "{options}");
                assert_eq!(list("reached:3").len() as u64, reached[2], "{options}");
                assert_eq!(list("dropped:2").len() as u64, reached[0] - reached[1], "{options}");
                assert_eq!(json!(list("dropped:2").len()), group["steps"][0]["dropped"], "{options}");
                several += usize::from(reached[2] > 0);
                // Values that are not shown each for itself can be of one user.
                if options.get("count").is_none() && breakdown["attribution"] != "all_steps" {
                    let mut once = list("reached:1");
                    once.dedup();
                    assert_eq!(once.len() as u64, reached[0], "each user once: {options}");
                }
            }
            if breakdown["attribution"] != "all_steps" && !breakdown.is_null() {
                assert_eq!(sum, units(&answer["total"][0]), "{options}, {breakdown}");
            }
        }
    }
    assert!(several > 40, "the case tells steps apart: {several}");
}

fn add(sum: Vec<u64>, more: Vec<u64>) -> Vec<u64> {
    sum.iter().zip(more).map(|(a, b)| a + b).collect()
}
