//! Experiments as they are in life: broken variants, refunds, users who were others from the start, metrics that look further than
//! their experiment. From rows in Postgres to the answer over HTTP.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{
    Event, LOG, PROJECT, Service, USER_SQL, add_conversions, add_experiment, add_users, check_number, experiment_id, user,
    variant_id,
};

fn metric<'a>(results: &'a Value, id: &str) -> &'a Value {
    let metrics = results["metrics"].as_array().expect("metrics");
    metrics.iter().find(|metric| metric["id"] == id).unwrap_or_else(|| panic!("no metric {id} in {results}"))
}

fn check_of<'a>(results: &'a Value, id: &str) -> &'a Value {
    let checks = results["health"]["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id} in {results}"))
}

fn warning<'a>(results: &'a Value, code: &str) -> Option<&'a str> {
    let warnings = results["warnings"].as_array().expect("warnings");
    warnings.iter().find(|warning| warning["code"] == code).and_then(|warning| warning["message"].as_str())
}

/// Two variants, control first, with so many users each.
async fn two_variants(service: &mut Service, name: &str, columns: &str, users: u64) {
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, name, columns, &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, name, "control", 0, users).await;
    add_users(rows, PROJECT, name, "b", users, users).await;
}

async fn add_metrics(service: &mut Service, experiment: &str, columns: &str, rows: &[&str]) {
    let id = experiment_id(PROJECT, experiment);
    let rows: Vec<String> = rows.iter().map(|row| format!("('{PROJECT}', '{id}', {row})")).collect();
    service.run(&format!("INSERT INTO metrics (project_id, experiment_id, {columns}) VALUES {}", rows.join(", "))).await;
}

/// 40 of 3,000 against none of 3,000, both ways, with and without a plan of 2,000 users: every analysis calls it.
#[tokio::test]
async fn a_variant_that_converts_nobody_is_called_by_every_analysis() {
    let mut service = Service::start().await;
    for (name, broken) in [("broken", "b"), ("mended", "control")] {
        service.run("DELETE FROM user_experiment_participation; DELETE FROM conversion_attribution").await;
        two_variants(&mut service, name, "", 3_000).await;
        let (converts, from) = if broken == "b" { ("control", 0) } else { ("b", 3_000) };
        add_conversions(&mut service.rows, (PROJECT, name, converts), "buy", (from, 40), ("null", "null")).await;
        let (verdict, word, decision) =
            if broken == "b" { ("lost", "worse", "rollback-now") } else { ("won", "better", "ship-now") };
        for target in ["null", "2000"] {
            service.run(&format!("UPDATE experiments SET target_sample_size = {target} WHERE name = '{name}'")).await;
            for analysis in ["", "&analysis=fixed", "&analysis=sequential", "&analysis=group_sequential", "&analysis=hybrid"] {
                if target == "null" && analysis.ends_with("group_sequential") {
                    continue; // without a plan there are no bounds
                }
                let path = format!("/v1/experiments/{name}/results?metrics=conversion_rate{analysis}");
                let answer = service.get(&path).await.ok();
                let found = &metric(&answer, "conversion_rate")["comparisons"][0];
                assert_eq!(
                    (&found["verdict"], &found["significant"]),
                    (&json!(verdict), &json!(true)),
                    "{target} {analysis} {found}"
                );
                check_number(&found["test"]["p_fisher"], 1.5958693143068974e-12);
                let plain = found["plain"].as_str().expect("a sentence");
                assert!(plain.contains(&format!("significantly {word}")), "{target} {analysis} {plain}");
                assert_eq!(answer["decision"]["status"], decision, "{}", answer["decision"]);
                let ends = &found["adjusted"]["ci_absolute"];
                let (low, high) = (ends[0].as_f64().expect("an end"), ends[1].as_f64().expect("an end"));
                assert!(if verdict == "lost" { high < 0.0 } else { low > 0.0 }, "{target} {analysis} {found}");
                if target == "null" && analysis.is_empty() {
                    // By SciPy, with the variance of both variants together: z = 6.3457, n* = 5,000.
                    check_number(&found["sequential"]["always_valid_p"], 3.961_159_683_572_001_6e-8);
                }
            }
        }
    }
}

/// Nobody of 1,500 crashes, and 60 of 1,500 do.
#[tokio::test]
async fn a_guardrail_that_nobody_broke_before_is_harmed() {
    let mut service = Service::start().await;
    two_variants(&mut service, "crashes", "", 1_500).await;
    add_conversions(&mut service.rows, (PROJECT, "crashes", "b"), "crash", (1_500, 60), ("null", "null")).await;
    let columns = "name, conversion_type, aggregation, direction, role, margin";
    add_metrics(&mut service, "crashes", columns, &["'crashes', 'crash', 'conversion_rate', 'decrease', 'guardrail', 0.02"])
        .await;
    for (analysis, target) in [("fixed", "null"), ("sequential", "null"), ("hybrid", "null"), ("group_sequential", "2000")] {
        service.run(&format!("UPDATE experiments SET target_sample_size = {target}")).await;
        let answer = service.get(&format!("/v1/experiments/crashes/results?analysis={analysis}")).await.ok();
        let found = &metric(&answer, "crashes")["comparisons"][0];
        assert_eq!((&found["guardrail"]["state"], &found["verdict"]), (&json!("harmed"), &json!("lost")), "{analysis}: {found}");
        check_number(&found["test"]["p_fisher"], FISHER_OF_CRASHES);
        assert_eq!(answer["decision"]["status"], "rollback-now", "{analysis}: {}", answer["decision"]);
    }
}

const FISHER_OF_CRASHES: f64 = 9.501537286915132e-19;

/// Purchases before exposure exist for one variant only: they would move the difference, not sharpen it.
#[tokio::test]
async fn a_covariate_that_differs_between_variants_is_not_used() {
    let mut service = Service::start().await;
    two_variants(&mut service, "tilted", "", 600).await;
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "tilted", "control"), "buy", (0, 600), ("40 + i % 20", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "tilted", "b"), "buy", (600, 600), ("40 + (i * 7) % 20", "'EUR'")).await;
    let before = |value: &str| {
        format!(
            "INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, conversion_type, conversion_value, currency)
             SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'buy', {value}, 'EUR'
             FROM generate_series(600, 1199) i, (SELECT timestamptz '2026-02-26T00:00:00Z' AS t) t"
        )
    };
    // Different for each user, and then one and the same for all: a covariate without any spread in either variant.
    for value in ["40 + (i * 7) % 20", "30"] {
        service.run("DELETE FROM conversions").await;
        service.run(&before(value)).await;
        let answer = service.get("/v1/experiments/tilted/results?analysis=fixed").await.ok();
        let off = service.get("/v1/experiments/tilted/results?analysis=fixed&cuped=off").await.ok();
        for id in ["value_per_user", "conversion_rate", "buy.value_per_user"] {
            let (found, plain) = (&metric(&answer, id)["comparisons"][0], &metric(&off, id)["comparisons"][0]);
            assert_eq!(found["cuped"]["applied"], false, "{value} {id}: {found}");
            assert_eq!(found["cuped"]["reason"], "differs_before", "{value} {id}: {found}");
            for part in ["absolute", "relative", "test", "verdict", "plain"] {
                assert_eq!(found[part], plain[part], "{value} {id} {part}");
            }
        }
        assert_ne!(metric(&answer, "value_per_user")["comparisons"][0]["verdict"], "lost");
        assert_ne!(answer["decision"]["status"], "rollback-now");
        assert_eq!(check_of(&answer, "pre_exposure_balance")["status"], "mismatch", "{value}");
        assert!(warning(&answer, "pre_exposure_balance").is_some_and(|text| text.contains("not adjusted")), "{answer}");
    }
}

/// The means of a sentence are those that its effect is made of.
#[tokio::test]
async fn a_sentence_and_its_numbers_are_of_one_estimate() {
    let mut service = Service::start().await;
    two_variants(&mut service, "loyal", "", 1_000).await;
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "loyal", "control"), "buy", (0, 1_000), ("i % 100 + i % 3", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "loyal", "b"), "buy", (1_000, 1_000), ("i % 100 + i % 7 + 2", "'EUR'")).await;
    service
        .run(&format!(
            "INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, conversion_type, conversion_value, currency)
             SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'buy', i % 100 + i % 11, 'EUR'
             FROM generate_series(0, 1999) i, (SELECT timestamptz '2026-02-26T00:00:00Z' AS t) t"
        ))
        .await;
    for query in ["analysis=fixed", "analysis=sequential"] {
        let answer = service.get(&format!("/v1/experiments/loyal/results?{query}")).await.ok();
        let found = metric(&answer, "value_per_user");
        let comparison = &found["comparisons"][0];
        assert_eq!(comparison["cuped"]["applied"], true, "{comparison}");
        let estimate = comparison["absolute"]["estimate"].as_f64().expect("an estimate");
        let control = found["arms"][0]["mean"].as_f64().expect("a mean");
        let expected = format!(
            "b brings {} EUR per user vs {} EUR in control: +{}% (95% CI, adjusted for earlier behaviour,",
            short(control + estimate),
            short(control),
            short(100.0 * estimate / control)
        );
        let plain = comparison["plain"].as_str().expect("a sentence");
        assert!(plain.starts_with(&expected), "{plain}, expected {expected}");
    }
}

/// Three significant digits of a number of at least 1.
fn short(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Every user orders once for 20 or 24 EUR; in b every second one orders again, for USD or without a value.
#[tokio::test]
async fn a_ratio_counts_the_same_rows_above_and_below() {
    let mut service = Service::start().await;
    two_variants(&mut service, "orders", "currency = 'EUR'", 200).await;
    let columns = "name, conversion_type, aggregation, numerator, denominator, role";
    add_metrics(&mut service, "orders", columns, &["'order value', 'order', 'ratio', 'value', 'conversions', 'primary'"]).await;
    let rows = &mut service.rows;
    let value = "CASE WHEN i % 4 = 0 THEN 24 ELSE 20 END";
    add_conversions(rows, (PROJECT, "orders", "control"), "order", (0, 200), (value, "'EUR'")).await;
    add_conversions(rows, (PROJECT, "orders", "b"), "order", (200, 200), (value, "'EUR'")).await;
    for (more, code, left_out) in [
        (("22", "'USD'"), "other_currency", json!({"without_value": 0, "other_currency": 100})),
        (("null", "null"), "conversions_without_value", json!({"without_value": 100, "other_currency": 0})),
        (("null", "'EUR'"), "conversions_without_value", json!({"without_value": 100, "other_currency": 0})),
    ] {
        add_conversions(&mut service.rows, (PROJECT, "orders", "b"), "order", (200, 100), more).await;
        let answer = service.get("/v1/experiments/orders/results?analysis=fixed").await.ok();
        let found = metric(&answer, "order value");
        for arm in found["arms"].as_array().expect("arms") {
            assert_eq!((&arm["denominator"], &arm["sum"]), (&json!(200), &json!("4200.00")), "{more:?}: {found}");
            check_number(&arm["mean"], 21.0);
        }
        assert_eq!(found["left_out"], left_out, "{more:?}");
        assert!(warning(&answer, code).is_some_and(|text| text.contains("100 conversions")), "{more:?}: {answer}");
        assert_ne!(answer["decision"]["status"], "rollback-now");
        service.run("DELETE FROM conversion_attribution WHERE conversion_value_attributed = 22 OR conversion_value_attributed IS NULL").await;
    }
    assert!(metric(&service.get("/v1/experiments/orders/results").await.ok(), "order value").get("left_out").is_none());
}

/// Users buy 15, 30, 45 and 60 hours after their exposure; the experiment looks one day far, its metrics one, two and three.
#[tokio::test]
async fn a_metric_has_its_own_window_also_a_longer_one() {
    let mut service = Service::start().await;
    two_variants(&mut service, "slow", "conversion_window_days = 1", 10).await;
    let id = experiment_id(PROJECT, "slow");
    for (buyer, hours) in [(0, 15.0), (1, 30.0), (2, 45.0), (3, 60.0)] {
        let more = [("conversion_value", "5"), ("currency", "'EUR'")];
        let event = Event { more: &more, ..Event::new("conversion", "buy", buyer, hours * 3_600.0) };
        event.store(&mut service.rows).await;
        // A bot's, and one that names another experiment: neither counts.
        Event { is_bot: true, ..Event::new("conversion", "buy", buyer + 4, hours * 3_600.0) }.store(&mut service.rows).await;
        let other = format!("'{}'", Uuid::from_u128(9));
        let elsewhere = [("experiment_id", other.as_str())];
        Event { more: &elsewhere, ..Event::new("conversion", "buy", buyer + 4, hours * 3_600.0) }.store(&mut service.rows).await;
    }
    // What the aggregator attributes lies within the experiment's day.
    add_conversions(&mut service.rows, (PROJECT, "slow", "control"), "buy", (0, 1), ("5", "'EUR'")).await;
    service.run("UPDATE conversion_attribution SET conversion_time = '2026-03-01T15:00:00Z'").await;
    service.run("UPDATE project_progress SET event_time = '2026-03-10T00:00:00Z'").await;
    let columns = "name, conversion_type, aggregation, window_days, role";
    let metrics = ["'one', 'buy', 'count_per_user', null, 'primary'", "'two', 'buy', 'count_per_user', 2, 'primary'"];
    add_metrics(&mut service, "slow", columns, &metrics).await;
    let count = |answer: &Value, id: &str| metric(answer, id)["arms"][0]["numerator"].as_u64();
    let answer = service.get("/v1/experiments/slow/results").await.ok();
    assert_eq!([count(&answer, "one"), count(&answer, "two")], [Some(1), Some(3)]);
    // Another metric, and the cached rows do not reach far enough.
    add_metrics(&mut service, "slow", columns, &["'three', 'buy', 'count_per_user', 3, 'primary'"]).await;
    let answer = service.get("/v1/experiments/slow/results?series=daily").await.ok();
    assert_eq!([count(&answer, "one"), count(&answer, "two"), count(&answer, "three")], [Some(1), Some(3), Some(4)]);
    for (id, days) in [("one", 1), ("two", 2), ("three", 3)] {
        assert_eq!(metric(&answer, id)["window_days"], days);
    }
    assert_eq!(answer["attribution"]["models"][0]["by_variant"][0]["value"], "5.00", "what is attributed is the experiment's");
    // New events of users who are cached already.
    service
        .run(&format!("UPDATE conversions SET experiment_id = '{id}', log_offset = 505 WHERE experiment_id IS NOT NULL"))
        .await;
    service.run("UPDATE checkpoints SET next_offset = next_offset + 10, change_seq = change_seq + 1").await;
    let cut = service.get("/v1/experiments/slow/results?as_of=2026-03-02T12:00:00Z").await.ok();
    assert_eq!(count(&cut, "three"), Some(3), "30 hours of users 1 and 5, and 15 of user 0");
}

/// 40 orders each; in b 20 of them are taken back as an order of -20, and 20 others by events of their own types.
#[tokio::test]
async fn what_was_given_back_is_no_conversion_and_counts_in_values() {
    let mut service = Service::start().await;
    two_variants(&mut service, "refunds", "", 200).await;
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "refunds", "control"), "order", (0, 40), ("20", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "refunds", "b"), "order", (200, 40), ("20", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "refunds", "b"), "order", (200, 20), ("-20", "'EUR'")).await;
    // Of users who ordered before they were exposed.
    add_conversions(rows, (PROJECT, "refunds", "b"), "order", (300, 5), ("-20", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "refunds", "b"), "order_refunded", (310, 20), ("-15", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "refunds", "b"), "refund", (340, 3), ("15", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "refunds", "b"), "rebill", (350, 3), ("null", "null")).await;
    let answer = service.get("/v1/experiments/refunds/results").await.ok();
    let rate = metric(&answer, "conversion_rate");
    assert_eq!((&rate["arms"][0]["numerator"], &rate["arms"][1]["numerator"]), (&json!(40), &json!(40)));
    check_number(&rate["comparisons"][0]["absolute"]["estimate"], 0.0);
    let chance = rate["comparisons"][0]["bayesian"]["chance_to_win"].as_f64().expect("a chance");
    assert!((chance - 0.5).abs() < 1e-9, "{chance}");
    let value = metric(&answer, "value_per_user");
    assert_eq!((&value["arms"][0]["sum"], &value["arms"][1]["sum"]), (&json!("800.00"), &json!("45.00")));
    // What a metric names is counted as it is.
    assert_eq!(metric(&answer, "refund.conversion_rate")["arms"][1]["numerator"], 3);
    assert_eq!(metric(&answer, "order_refunded.conversion_rate")["arms"][1]["numerator"], 20);
}

/// 90/10, and 2 % of the users are assigned anew: 18 of each variant saw both. These spend 10, the others 1.
#[tokio::test]
async fn who_is_left_is_compared_only_where_exclusion_is_fair() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "uneven", "", &[("control", "90"), ("b", "10")]).await;
    add_users(rows, PROJECT, "uneven", "control", 0, 9_000).await;
    add_users(rows, PROJECT, "uneven", "b", 9_000, 1_000).await;
    // 180 and 20 are such users; of these 18 and 18 came to the other variant.
    let value = "CASE WHEN i < 180 OR (i >= 9000 AND i < 9020) THEN 10 ELSE 1 END";
    add_conversions(rows, (PROJECT, "uneven", "control"), "buy", (0, 9_000), (value, "'EUR'")).await;
    add_conversions(rows, (PROJECT, "uneven", "b"), "buy", (9_000, 1_000), (value, "'EUR'")).await;
    let id = experiment_id(PROJECT, "uneven");
    let seen = format!("ARRAY['{}', '{}']::uuid[]", variant_id(id, "b"), variant_id(id, "control"));
    service
        .run(&format!(
            "UPDATE user_experiment_participation SET variants_seen = {seen}
             WHERE user_id < '{}' OR (user_id >= '{}' AND user_id < '{}')",
            user(18),
            user(9_000),
            user(9_018)
        ))
        .await;
    let answer = service.get("/v1/experiments/uneven/results?cap=off").await.ok();
    let check = check_of(&answer, "exclusion_bias");
    assert_eq!(
        (&check["level"], &check["headline"], &check["left_out"]),
        (&json!("fail"), &json!("first_exposure"), &json!([18, 18]))
    );
    // By SciPy: chi2_contingency([[18, 8982], [18, 982]], correction=False).
    check_number(&check["statistic"], 64.231_232_436_772_39);
    assert_eq!((&check["dof"], &answer["request_settings"]["population"]), (&json!(1), &json!("first_exposure")));
    assert!(warning(&answer, "exclusion_bias").is_some_and(|text| text.contains("the variant that they saw first")), "{answer}");
    let value = metric(&answer, "value_per_user");
    check_number(&value["arms"][0]["mean"], 1.18);
    check_number(&value["arms"][1]["mean"], 1.18);
    assert_eq!(answer["population"]["excluded"]["multi_exposed"], 0);
    assert_ne!(answer["decision"]["status"], "unhealthy", "what is not fair is not used: {}", answer["decision"]);
    let asked = service.get("/v1/experiments/uneven/results?cap=off&population=exclude_multi").await.ok();
    assert_eq!(asked["population"]["excluded"]["multi_exposed"], 36, "what was asked for is done");
    assert_eq!(
        (&check_of(&asked, "exclusion_bias")["headline"], &asked["decision"]["status"]),
        (&json!("exclude_multi"), &json!("unhealthy"))
    );
    assert!(metric(&asked, "value_per_user")["comparisons"][0]["absolute"]["estimate"].as_f64().is_some_and(|off| off < -0.1));
}

/// The windows of the planned users have closed on day 6 of 10. What comes later is shown and not tested.
#[tokio::test]
async fn a_verdict_stays_that_of_the_look_at_the_planned_size() {
    let mut service = Service::start().await;
    two_variants(&mut service, "planned", "target_sample_size, conversion_window_days = 2000, 1", 2_000).await;
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "planned", "control"), "buy", (0, 200), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "planned", "b"), "buy", (2_000, 200), ("null", "null")).await;
    // 200 users of each variant a day, in whose order the first ten per cent of each day buy.
    service
        .run(
            "UPDATE user_experiment_participation SET first_exposure_date = first_exposure_date
                 + ((('x' || right(user_id::text, 4))::bit(16)::int % 2000) % 10) * interval '1 day';
             UPDATE conversion_attribution SET conversion_time = conversion_time
                 + ((('x' || right(user_id::text, 4))::bit(16)::int % 2000) % 10) * interval '1 day';
             UPDATE project_progress SET event_time = '2026-03-12T12:00:00Z'",
        )
        .await;
    let found = async |service: &Service| {
        let answer = service.get("/v1/experiments/planned/results?metrics=conversion_rate").await.ok();
        metric(&answer, "conversion_rate")["comparisons"][0].clone()
    };
    let flat = found(&service).await;
    assert_eq!((&flat["verdict"], &flat["sequential"]["last_look_on"]), (&json!("inconclusive"), &json!("2026-03-06")), "{flat}");
    assert!(
        flat["plain"].as_str().is_some_and(|plain| plain.contains("on 2026-03-06, when the planned size was reached")),
        "{flat}"
    );
    // From day 6 on everybody of b buys.
    let late = format!(
        "INSERT INTO conversion_attribution (project_id, id, user_id, conversion_id, conversion_claimed_at, conversion_time,
             conversion_type, experiment_id, variant_id, attribution_method, attribution_confidence, time_to_conversion_hours,
             conversion_value_attributed, currency)
         SELECT project_id, gen_random_uuid(), user_id, gen_random_uuid(), first_exposure_date, first_exposure_date + interval '2 hours',
             'buy', experiment_id, variant_id, 'first_exposure', 1, 2, null, null
         FROM user_experiment_participation WHERE variant_id = '{}' AND first_exposure_date >= '2026-03-06T00:00:00Z'",
        variant_id(experiment_id(PROJECT, "planned"), "b")
    );
    service.run(&late).await;
    let later = found(&service).await;
    assert!(later["absolute"]["estimate"].as_f64().is_some_and(|estimate| estimate > 0.3), "today's numbers are shown: {later}");
    for part in ["verdict", "significant", "sequential", "adjusted", "plain"] {
        assert_eq!(later[part], flat[part], "{part}");
    }
    // The same before the planned size decides, and stays decided.
    service.run("UPDATE conversion_attribution SET conversion_time = conversion_time - interval '5 days' WHERE conversion_time >= '2026-03-06T00:00:00Z'").await;
    service.run("UPDATE user_experiment_participation SET first_exposure_date = first_exposure_date - interval '5 days' WHERE first_exposure_date >= '2026-03-06T00:00:00Z'").await;
    let early = found(&service).await;
    assert_eq!((&early["verdict"], &early["significant"]), (&json!("won"), &json!(true)), "{early}");
}

/// Names with commas are names like others.
#[tokio::test]
async fn any_metric_that_is_answered_can_be_asked_for() {
    let mut service = Service::start().await;
    two_variants(&mut service, "names", "", 100).await;
    for (from, name) in [(0, "50% off, summer"), (10, r"back\slash, too"), (20, "plain")] {
        add_conversions(&mut service.rows, (PROJECT, "names", "control"), name, (from, 10), ("1", "'EUR'")).await;
    }
    let all = service.get("/v1/experiments/names/results").await.ok();
    let ids = |answer: &Value| -> Vec<String> {
        answer["metrics"]
            .as_array()
            .expect("metrics")
            .iter()
            .filter_map(|metric| metric["id"].as_str().map(str::to_owned))
            .collect()
    };
    let encoded = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let get = async |query: String| ids(&service.get(&format!("/v1/experiments/names/results?{query}")).await.ok());
    assert_eq!(ids(&all).len(), 8);
    for id in ids(&all) {
        assert_eq!(get(format!("metrics={}", encoded(&id))).await, std::slice::from_ref(&id), "as it is");
        let escaped = id.replace('\\', r"\\").replace(',', r"\,");
        let found = get(format!("metrics={}", encoded(&format!("{escaped},conversion_rate")))).await;
        assert!(found.contains(&id) && found.contains(&"conversion_rate".to_owned()), "{id}: {found:?}");
    }
    let repeated = get(format!("metrics=conversion_rate&metrics={}", encoded("50% off, summer.conversion_rate"))).await;
    assert_eq!(repeated, ["conversion_rate", "50% off, summer.conversion_rate"]);
    let refused = service.get("/v1/experiments/names/results?metrics=50%25%20off,none").await.refused(400, "unknown_metric");
    assert!(refused["message"].as_str().is_some_and(|text| text.contains(r"\,")), "{refused}");
}

/// A handful of users: what can be computed is shown, and nothing claims to be known better than it is.
#[tokio::test]
async fn a_handful_of_users_gives_exact_intervals_and_a_rough_sample_ratio() {
    let mut service = Service::start().await;
    two_variants(&mut service, "tiny", "", 1).await;
    add_conversions(&mut service.rows, (PROJECT, "tiny", "b"), "buy", (1, 1), ("null", "null")).await;
    let answer = service.get("/v1/experiments/tiny/results?analysis=fixed").await.ok();
    let found = &metric(&answer, "conversion_rate")["comparisons"][0];
    let ends = &found["absolute"]["ci"];
    let (low, high) = (ends[0].as_f64().expect("an end"), ends[1].as_f64().expect("an end"));
    assert!(low < 1.0 && high - low > 0.5 && found["absolute"]["std_error"].is_null(), "0 of 1 against 1 of 1: {found}");
    check_number(&found["test"]["p_fisher"], 1.0);
    let srm = check_of(&answer, "srm");
    assert_eq!((&srm["status"], &srm["level"]), (&json!("insufficient_sample"), &json!("ok")));
    assert_eq!((&srm["statistic"], &srm["dof"], &srm["p_value"]), (&json!(0.0), &json!(1), &json!(1.0)));
}

/// Everybody comes on day 1, and outcomes grow for a week: bounds wait for the first window to close, what is broken does not.
#[tokio::test]
async fn looks_under_a_plan_rest_on_users_whose_window_has_closed() {
    let mut service = Service::start().await;
    two_variants(&mut service, "grows", "target_sample_size, conversion_window_days = 4000, 7", 2_000).await;
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "grows", "control"), "buy", (0, 200), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "grows", "b"), "buy", (2_000, 260), ("null", "null")).await;
    let found = async |service: &mut Service, time: &str, query: &str| {
        service.run(&format!("UPDATE project_progress SET event_time = '{time}'")).await;
        let answer = service.get(&format!("/v1/experiments/grows/results?metrics=conversion_rate{query}")).await.ok();
        (metric(&answer, "conversion_rate")["comparisons"][0].clone(), answer)
    };
    let (young, answer) = found(&mut service, "2026-03-07T12:00:00Z", "").await;
    let look = &young["sequential"];
    assert_eq!(
        (&look["exposed"], &look["ripe"], &look["information_fraction"]),
        (&json!(4_000), &json!(0), &json!(0.0)),
        "{young}"
    );
    assert_eq!((&look["next_information_on"], &young["verdict"]), (&json!("2026-03-08"), &json!("inconclusive")));
    assert!(young["plain"].as_str().is_some_and(|plain| plain.contains("nothing is tested before 2026-03-08")), "{young}");
    assert_eq!((&answer["decision"]["status"], &answer["decision"]["powered"]), (&json!("continue"), &json!(false)));
    let (old, _) = found(&mut service, "2026-03-08T12:00:00Z", "").await;
    let look = &old["sequential"];
    assert_eq!(
        (&look["ripe"], &look["information_fraction"], &old["verdict"]),
        (&json!(4_000), &json!(1.0), &json!("won")),
        "{old}"
    );
    assert!(look.get("next_information_on").is_none(), "{look}");
    // One look at all of the information is a test at alpha, less the alarm's part.
    assert!(look["boundary_z"].as_f64().is_some_and(|bound| (bound - 1.96).abs() < 0.01), "{look}");
    // A hybrid plan makes its last test when nothing grows any more.
    service
        .run(
            "UPDATE experiments SET ended_at = '2026-03-02T00:00:00Z', started_at = '2026-03-01T00:00:00Z', status = 'completed'",
        )
        .await;
    let (young, _) = found(&mut service, "2026-03-07T12:00:00Z", "&analysis=hybrid").await;
    let (old, _) = found(&mut service, "2026-03-08T12:00:00Z", "&analysis=hybrid").await;
    assert!(young["plain"].as_str().is_some_and(|plain| plain.contains("at any time")), "{young}");
    assert!(old["plain"].as_str().is_some_and(|plain| !plain.contains("at any time")), "{old}");
    let critical = |found: &Value| found["sequential"]["boundary_z"].as_f64().expect("a bound");
    assert!(critical(&young) > 3.0 && (critical(&old) - 2.2414).abs() < 0.01, "{} {}", critical(&young), critical(&old));
}
