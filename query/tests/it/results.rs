//! What an answer about an experiment holds beyond the comparison of two means.

use serde_json::{Value, json};

use crate::support::{
    Event, LOG, PROJECT, Service, add_before, add_conversions, add_experiment, add_first_impressions, add_users, check_number,
    experiment_id, run, user, variant_id,
};

fn metric<'a>(results: &'a Value, id: &str) -> &'a Value {
    let metrics = results["metrics"].as_array().expect("metrics");
    metrics.iter().find(|metric| metric["id"] == id).unwrap_or_else(|| panic!("no metric {id} in {results}"))
}

fn check_of<'a>(results: &'a Value, id: &str) -> &'a Value {
    let checks = results["health"]["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no check {id} in {results}"))
}

fn codes(results: &Value) -> Vec<&str> {
    results["warnings"].as_array().expect("warnings").iter().filter_map(|warning| warning["code"].as_str()).collect()
}

/// Two variants of 4,000 users each: 10 % and 14 % buy for 10 each.
async fn add_clear(service: &mut Service, columns: &str) {
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "clear", columns, &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "clear", "control", 0, 4_000).await;
    add_users(rows, PROJECT, "clear", "b", 4_000, 4_000).await;
    add_conversions(rows, (PROJECT, "clear", "control"), "buy", (0, 400), ("10", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "clear", "b"), "buy", (4_000, 560), ("10", "'EUR'")).await;
}

/// Spreads first exposures over ten days, and conversions an hour after them.
async fn spread_days(service: &mut Service) {
    let day = "(('x' || right(user_id::text, 4))::bit(16)::int % 10)";
    service
        .run(&format!(
            "UPDATE user_experiment_participation SET first_exposure_date = first_exposure_date + {day} * interval '1 day';
             UPDATE conversion_attribution SET conversion_time = conversion_time + {day} * interval '1 day';
             UPDATE project_progress SET event_time = '2026-03-10T12:00:00Z'"
        ))
        .await;
}

#[tokio::test]
async fn equal_questions_have_equal_answers_and_echo_what_was_asked() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let path = "/v1/experiments/clear/results?series=daily&difference=absolute&cap=99.9&as_of=2026-03-01T08:00:00%2B00:00";
    let bytes = |answer: &str| {
        let (before, rest) = answer.split_once("\"computed_at\":\"").expect("a time");
        format!("{before}{}", rest.split_once('"').expect("its end").1)
    };
    let one = service.get(path).await;
    let two = service.get(path).await;
    one.ok();
    assert_eq!(one.body, two.body, "nothing changed: it is the answer that was computed before");
    service.run("UPDATE catalogue_versions SET version = version + 1").await;
    let anew = service.get(path).await;
    assert_eq!(bytes(&one.body), bytes(&anew.body), "computed anew it is the same");
    let answer = one.ok();
    assert_eq!(
        answer["request_settings"],
        json!({"metrics": [], "as_of": "2026-03-01T08:00:00Z", "analysis": "sequential", "analysis_from": "plan", "engine": "both",
               "correction": "holm", "population": "exclude_multi", "windows": "all", "cuped": "auto", "cap": "99.9",
               "series": "daily", "difference": "absolute"})
    );
    assert_eq!(answer["data_through"], "2026-03-01T08:00:00Z");
    let hash = |answer: &Value| answer["settings_hash"].as_str().map(str::to_owned).expect("a hash");
    assert_eq!(hash(&answer).len(), 64);
    let other = service.get("/v1/experiments/clear/results?analysis=fixed").await.ok();
    assert_ne!(hash(&answer), hash(&other), "another question");
    // More rows are the same question, another window is another one.
    let before = hash(&other);
    add_users(&mut service.rows, PROJECT, "clear", "b", 9_000, 3).await;
    let more = service.get("/v1/experiments/clear/results?analysis=fixed").await.ok();
    assert_eq!(hash(&more), before);
    service.run("UPDATE experiments SET conversion_window_days = 7").await;
    let changed = service.get("/v1/experiments/clear/results?analysis=fixed").await.ok();
    assert_ne!(hash(&changed), before);
}

#[tokio::test]
async fn the_verdict_is_that_of_the_analysis_and_the_sentence_says_so() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let check = async |service: &Service, query: &str, verdict: &str, by: &str, sentence: &str| {
        let answer = service.get(&format!("/v1/experiments/clear/results?metrics=conversion_rate{query}")).await.ok();
        let found = &metric(&answer, "conversion_rate")["comparisons"][0];
        assert_eq!((&found["verdict"], &found["decided_by"]), (&json!(verdict), &json!(by)), "{query}: {found}");
        let plain = found["plain"].as_str().expect("a sentence");
        assert!(plain.contains(sentence), "{query}: {plain}");
        assert_eq!(found["significant"], json!(["won", "lost"].contains(&verdict)));
        answer
    };
    let fixed = check(&service, "&analysis=fixed", "won", "welch_t", "; significantly better.").await;
    assert!(codes(&fixed).contains(&"peeked"));
    let open = check(&service, "", "won", "sequential", "at any time; significantly better.").await;
    assert!(!codes(&open).contains(&"peeked"));
    let sequential = &metric(&open, "conversion_rate")["comparisons"][0]["sequential"];
    assert_eq!(sequential["n_star"], 5_000.0);
    let p = sequential["always_valid_p"].as_f64().expect("a p-value");
    check_number(&metric(&open, "conversion_rate")["comparisons"][0]["adjusted"]["p_value"], p);
    assert!(p < 0.05 && sequential["ci"][0].as_f64().is_some_and(|low| low > 0.0), "{sequential}");
    check(&service, "&engine=bayesian", "won", "chance_to_win", "chance to win 100%; better.").await;
    check(&service, "&engine=bayesian&baseline=b", "lost", "chance_to_win", "; worse.").await;
    check(&service, "&analysis=hybrid", "won", "hybrid", "significantly better").await;
    // Without a plan there are no bounds, and nothing is shown that was not tested.
    check(&service, "&analysis=group_sequential", "inconclusive", "group_sequential", "no planned size or end").await;

    spread_days(&mut service).await;
    service.run("UPDATE experiments SET target_sample_size = 16000, conversion_window_days = 1").await;
    service.run("UPDATE project_progress SET event_time = '2026-03-12T00:00:00Z'").await;
    let planned = check(&service, "", "won", "group_sequential", "its bound was crossed on 2026-03-0").await;
    assert_eq!(planned["request_settings"]["analysis_from"], "plan");
    let look = &metric(&planned, "conversion_rate")["comparisons"][0]["sequential"];
    check_number(&look["information_fraction"], 0.5);
    assert!(look["crossed"] == json!(true) && look["boundary_z"].as_f64().is_some_and(|bound| bound > 1.96), "{look}");
}

/// Four days into a plan of windows of 30 days twice as many users crash, z = 4.5: too little for the alarm over all users, enough for the
/// guardrail's own warning. Half as many are no harm.
#[tokio::test]
async fn a_guardrail_warns_before_windows_close() {
    let mut service = Service::start().await;
    let columns = "target_sample_size, conversion_window_days = 20000, 30";
    add_experiment(&mut service.rows, PROJECT, "crashes", columns, &[("control", "1"), ("b", "1")]).await;
    let id = experiment_id(PROJECT, "crashes");
    service
        .run(&format!(
            "INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, direction, role, margin) VALUES
                 ('{PROJECT}', '{id}', 'crash', 'crash', 'conversion_rate', 'decrease', 'guardrail', 0.1),
                 ('{PROJECT}', '{id}', 'buy', 'buy', 'conversion_rate', 'increase', 'primary', NULL);
             UPDATE project_progress SET event_time = '2026-03-05T00:00:00Z'"
        ))
        .await;
    add_users(&mut service.rows, PROJECT, "crashes", "control", 0, 3_000).await;
    add_users(&mut service.rows, PROJECT, "crashes", "b", 3_000, 3_000).await;
    add_conversions(&mut service.rows, (PROJECT, "crashes", "control"), "crash", (0, 60), ("null", "null")).await;
    add_conversions(&mut service.rows, (PROJECT, "crashes", "b"), "crash", (3_000, 120), ("null", "null")).await;
    let answer = service.get("/v1/experiments/crashes/results").await.ok();
    let found = &metric(&answer, "crash")["comparisons"][0];
    assert_eq!((&found["verdict"], &found["decided_by"]), (&json!("lost"), &json!("early_warning")), "{found}");
    let guardrail = &found["guardrail"];
    assert_eq!((&guardrail["state"], &guardrail["early_warning"]["called_on"]), (&json!("harmed"), &json!("2026-03-01")));
    assert_eq!(guardrail["early_warning"]["users"], 6_000);
    check_number(&guardrail["early_warning"]["estimate"], 0.02);
    let plain = found["plain"].as_str().expect("a sentence");
    assert!(plain.contains("within a day of their exposure, called on 2026-03-01; significantly worse"), "{plain}");
    assert_eq!(answer["decision"]["status"], "rollback-now", "{}", answer["decision"]);

    let answer = service.get("/v1/experiments/crashes/results?baseline=b").await.ok();
    let found = &metric(&answer, "crash")["comparisons"][0];
    assert_eq!((&found["verdict"], &found["guardrail"]["state"]), (&json!("inconclusive"), &json!("safe")), "{found}");
    assert!(found["guardrail"]["early_warning"]["called_on"].is_null(), "{found}");
}

#[tokio::test]
async fn few_counts_have_to_stand_the_exact_test_too() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(
        rows,
        PROJECT,
        "rare",
        "target_sample_size, conversion_window_days = 6000, 1",
        &[("control", "1"), ("b", "1")],
    )
    .await;
    run(rows, "UPDATE project_progress SET event_time = '2026-03-03T00:00:00Z'").await;
    add_users(rows, PROJECT, "rare", "control", 0, 3_000).await;
    add_users(rows, PROJECT, "rare", "b", 3_000, 3_000).await;
    add_conversions(rows, (PROJECT, "rare", "control"), "buy", (0, 2), ("null", "null")).await;
    // z = 2.2, which is more than the bound of the last look; Fisher says p = 0.065.
    add_conversions(rows, (PROJECT, "rare", "b"), "buy", (3_000, 9), ("null", "null")).await;
    let found = async |service: &Service, query: &str| {
        let answer = service.get(&format!("/v1/experiments/rare/results?metrics=conversion_rate{query}")).await.ok();
        metric(&answer, "conversion_rate")["comparisons"][0].clone()
    };
    let bound = found(&service, "").await;
    assert_eq!((&bound["approximation"], &bound["sequential"]["crossed"]), (&json!("exact"), &json!(true)), "{bound}");
    assert!(bound["test"]["p_fisher"].as_f64().is_some_and(|p| p > 0.05), "{bound}");
    assert_eq!((&bound["verdict"], &bound["adjusted"]["significant"]), (&json!("inconclusive"), &json!(false)), "{bound}");
    assert!(bound["plain"].as_str().is_some_and(|plain| plain.contains("the exact test does not agree")), "{bound}");
    let sequence = found(&service, "&analysis=sequential").await;
    let p = sequence["adjusted"]["p_value"].as_f64().expect("a p-value");
    assert!(p >= sequence["test"]["p_fisher"].as_f64().expect("a p-value"), "{sequence}");
}

#[tokio::test]
async fn days_add_up_to_the_whole() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    spread_days(&mut service).await;
    let answer = service.get("/v1/experiments/clear/results?series=daily&cuped=off").await.ok();
    for id in ["conversion_rate", "value_per_user"] {
        let found = metric(&answer, id);
        let days = found["series"].as_array().expect("a series");
        assert_eq!((days.len(), &days[0]["date"], &days[9]["date"]), (10, &json!("2026-03-01"), &json!("2026-03-10")));
        let last = &days[9]["cumulative"];
        assert_eq!(last["arms"][1]["users"], 4_000);
        assert_eq!(last["arms"][1]["converters"], 560);
        check_number(&last["arms"][1]["mean"], found["arms"][1]["mean"].as_f64().expect("a mean"));
        let whole = &found["comparisons"][0];
        check_number(&last["comparisons"][0]["p_value"], whole["test"]["p_value"].as_f64().expect("a p-value"));
        check_number(&last["comparisons"][0]["ci"][0], whole["absolute"]["ci"][0].as_f64().expect("an end"));
        check_number(
            &last["comparisons"][0]["ci_sequential"][1],
            whole["sequential"]["ci"][1].as_f64().map_or(0.0, |end| {
                // The sequence of the answer is that of the whole family, a wider one.
                let own = last["comparisons"][0]["ci_sequential"][1].as_f64().expect("an end");
                assert!(own <= end);
                own
            }),
        );
        let daily: u64 = days.iter().map(|day| day["daily"][0]["users"].as_u64().expect("users")).sum();
        assert_eq!(daily, 4_000);
    }
    let money: f64 = metric(&answer, "value_per_user")["series"]
        .as_array()
        .expect("a series")
        .iter()
        .map(|day| day["daily"][1]["amount"].as_str().and_then(|amount| amount.parse::<f64>().ok()).expect("an amount"))
        .sum();
    check_number(&json!(money), 5_600.0);
}

#[tokio::test]
async fn an_earlier_now_leaves_out_what_came_later() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    spread_days(&mut service).await;
    let answer = service.get("/v1/experiments/clear/results?as_of=2026-03-05T00:30:00Z&windows=complete").await.ok();
    assert_eq!(answer["status"], "no_data", "no window of 30 days is over");
    assert!(answer["population"]["excluded"]["incomplete_window"].as_u64().is_some_and(|users| users > 0), "{answer}");
    let answer = service.get("/v1/experiments/clear/results?as_of=2026-03-05T00:30:00Z").await.ok();
    let exposed = answer["population"]["exposed_users"].as_u64().expect("users");
    assert!(exposed > 3_000 && exposed < 4_500, "half of the days: {exposed}");
    // Of day five the exposures are there, an hour before their conversions.
    let until =
        "SELECT count(DISTINCT user_id)::bigint FROM conversion_attribution WHERE conversion_time <= '2026-03-05T00:30:00Z'";
    let expected: i64 = sqlx::query_scalar(until).fetch_one(&mut service.rows).await.expect("counted");
    let arms = metric(&answer, "conversion_rate")["arms"].as_array().expect("arms").clone();
    let found: u64 = arms.iter().map(|arm| arm["numerator"].as_u64().expect("a count")).sum();
    assert_eq!(i64::try_from(found), Ok(expected));
    service.run("UPDATE experiments SET conversion_window_days = 2, started_at = '2026-03-01T00:00:00Z'").await;
    let mature = service.get("/v1/experiments/clear/results?windows=complete").await.ok();
    let share = mature["population"]["mature_share"].as_f64().expect("a share");
    assert!(share > 0.7 && share < 0.9, "of ten days all but two: {share}");
    let analysed = mature["population"]["analysed_users"].as_u64().expect("users");
    assert_eq!(mature["population"]["excluded"]["incomplete_window"].as_u64(), Some(8_000 - analysed));
    check_number(&mature["experiment"]["days_running"], 9.5);
    let all = service.get("/v1/experiments/clear/results").await.ok();
    let young = &metric(&all, "conversion_rate")["comparisons"][0]["supplemental"]["complete_windows"];
    assert_eq!(young["users"].as_u64(), Some(analysed));
    assert!(codes(&all).contains(&"windows_incomplete") && !codes(&mature).contains(&"windows_incomplete"));
}

#[tokio::test]
async fn earlier_behaviour_sharpens_the_comparison() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "loyal", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "loyal", "control", 0, 1_000).await;
    add_users(rows, PROJECT, "loyal", "b", 1_000, 1_000).await;
    // Who spent much before spends much again; b brings one more for everybody. Nobody spends less than nothing, which would be no
    // conversion.
    add_conversions(rows, (PROJECT, "loyal", "control"), "buy", (0, 1_000), ("i % 100 + i % 3", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "loyal", "b"), "buy", (1_000, 1_000), ("greatest(i % 100 + i % 7 - 1, 0)", "'EUR'")).await;
    let without = service.get("/v1/experiments/loyal/results").await.ok();
    let found = &metric(&without, "value_per_user")["comparisons"][0];
    assert_eq!((&found["cuped"]["applied"], &found["cuped"]["reason"]), (&json!(false), &json!("no_history")));
    assert_eq!(check_of(&without, "pre_exposure_balance")["status"], "no_data");

    add_before(&mut service, 0, 2_000, "i % 100", 48).await;
    // Too old to count.
    add_before(&mut service, 0, 500, "99999", 14 * 24 + 1).await;
    let answer = service.get("/v1/experiments/loyal/results").await.ok();
    let found = &metric(&answer, "value_per_user")["comparisons"][0];
    assert_eq!(found["cuped"]["applied"], true, "{found}");
    let theta = found["cuped"]["theta"].as_f64().expect("a coefficient");
    assert!((theta - 1.0).abs() < 0.01, "{theta}");
    assert!(found["cuped"]["variance_reduction"].as_f64().is_some_and(|reduction| reduction > 0.99), "{found}");
    let width = |found: &Value| found["ci"][1].as_f64().expect("an end") - found["ci"][0].as_f64().expect("an end");
    assert!(width(&found["absolute"]) < width(&found["supplemental"]["unadjusted"]) / 10.0, "{found}");
    assert_eq!(check_of(&answer, "pre_exposure_balance")["status"], "ok");
    // All converted, so there is nothing to sharpen in the rate.
    assert_eq!(metric(&answer, "conversion_rate")["comparisons"][0]["status"], "zero_variance");

    // Parts are adjusted by what the whole is: halves with equal parts of both variants have its difference as their mean, and the last
    // day is the whole.
    add_first_impressions(&mut service, &[("device_type", "CASE WHEN n % 2 = 0 THEN 'mobile' ELSE 'desktop' END")]).await;
    let parts = service.get("/v1/experiments/loyal/results?dimension=device_type&series=daily").await.ok();
    let value = metric(&parts, "value_per_user");
    let halves = value["dimensions"].as_array().expect("values");
    let estimate = |found: &Value| found["absolute"]["estimate"].as_f64().expect("an estimate");
    assert_eq!(halves.len(), 2);
    for half in halves {
        assert_eq!(half["comparisons"][0]["cuped"]["applied"], true);
        check_number(&half["comparisons"][0]["cuped"]["theta"], theta);
    }
    let mean = halves.iter().map(|half| estimate(&half["comparisons"][0])).sum::<f64>() / 2.0;
    check_number(&found["absolute"]["estimate"], mean);
    let last = value["series"].as_array().and_then(|days| days.last()).expect("a day");
    check_number(&last["cumulative"]["comparisons"][0]["estimate"], estimate(found));
    check_number(&last["cumulative"]["comparisons"][0]["ci"][0], found["absolute"]["ci"][0].as_f64().expect("an end"));

    let off = service.get("/v1/experiments/loyal/results?cuped=off").await.ok();
    let plain = &metric(&off, "value_per_user")["comparisons"][0];
    assert!(plain.get("cuped").is_none());
    check_number(&plain["absolute"]["estimate"], found["supplemental"]["unadjusted"]["estimate"].as_f64().expect("an estimate"));

    // Users of b who were others from the start.
    service.run("UPDATE conversions SET conversion_value = conversion_value + 30 WHERE user_id >= '00000000-0000-4000-8000-0000000003e8'").await;
    let tilted = service.get("/v1/experiments/loyal/results").await.ok();
    assert_eq!(check_of(&tilted, "pre_exposure_balance")["level"], "warn");
    assert!(codes(&tilted).contains(&"pre_exposure_balance"));
}

#[tokio::test]
async fn users_are_split_by_what_they_had_at_first() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let id = experiment_id(PROJECT, "clear");
    // The first impression of each user; every third user has no country, a later impression says another one.
    service
        .run(&format!(
            "INSERT INTO impressions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, experiment_id, variant_id, country_code, device_type)
             SELECT project_id, first_impression_id, user_id, t, t, t, false, false, '{LOG}', 0, 0, experiment_id, variant_id,
                 CASE WHEN n % 3 = 0 THEN null WHEN n % 3 = 1 THEN 'DE' ELSE 'C' || (n % 25) END, 'mobile'
             FROM (SELECT *, first_exposure_date AS t, ('x' || right(user_id::text, 4))::bit(16)::int AS n
                   FROM user_experiment_participation) p;
             INSERT INTO impressions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, experiment_id, variant_id, country_code)
             SELECT project_id, gen_random_uuid(), user_id, t, t, t, false, false, '{LOG}', 0, 0, experiment_id, variant_id, 'XX'
             FROM (SELECT *, first_exposure_date + interval '1 hour' AS t FROM user_experiment_participation) p"
        ))
        .await;
    let answer = service.get("/v1/experiments/clear/results?dimension=country").await.ok();
    let values = metric(&answer, "conversion_rate")["dimensions"].as_array().expect("values").clone();
    assert_eq!(values.len(), 22, "20 countries, unknown, other");
    assert_eq!(
        (&values[0]["value"], &values[20]["kind"], &values[21]["value"]),
        (&json!("DE"), &json!("unknown"), &json!("other"))
    );
    let users: u64 = values
        .iter()
        .flat_map(|value| value["arms"].as_array().expect("arms").clone())
        .filter_map(|arm| arm["users"].as_u64())
        .sum();
    assert_eq!(users, 8_000, "nobody is lost");
    let converted: u64 = values
        .iter()
        .flat_map(|value| value["arms"].as_array().expect("arms").clone())
        .filter_map(|arm| arm["numerator"].as_u64())
        .sum();
    assert_eq!(converted, 960);
    let adjusted = &values[0]["comparisons"][0]["adjusted"];
    assert!(adjusted["family_size"].as_u64().is_some_and(|size| size >= 40), "all values are one family: {adjusted}");
    let heterogeneity = &metric(&answer, "conversion_rate")["heterogeneity"][0];
    assert_eq!(heterogeneity["variant_id"], variant_id(id, "b").to_string());
    assert!(heterogeneity["p_value"].as_f64().is_some_and(|p| p > 0.0 && p <= 1.0), "{heterogeneity}");
    assert_eq!(check_of(&answer, "srm")["by_dimension"].as_array().map(Vec::len), Some(22));
    let one = service.get("/v1/experiments/clear/results?dimension=device_type").await.ok();
    let values = &metric(&one, "conversion_rate")["dimensions"];
    assert_eq!((&values[0]["value"], values.as_array().map(Vec::len)), (&json!("mobile"), Some(1)));
    assert_eq!(values[0]["arms"], metric(&one, "conversion_rate")["arms"]);

    // By a property, and crossed; every second user is a pro.
    service
        .run(
            "UPDATE impressions SET metadata = jsonb_build_object('it''s', CASE WHEN ('x' || right(user_id::text, 4))::bit(16)::int % 2 = 0
                 THEN 'pro' ELSE 'free' END) WHERE device_type IS NOT NULL",
        )
        .await;
    let texts = async |service: &Service, dimension: &str| -> Vec<Value> {
        let answer = service.get(&format!("/v1/experiments/clear/results?dimension={dimension}")).await.ok();
        let values = metric(&answer, "conversion_rate")["dimensions"].as_array().expect("values").clone();
        let users = |value: &Value| -> u64 {
            value["arms"].as_array().expect("arms").iter().filter_map(|arm| arm["users"].as_u64()).sum()
        };
        values.iter().map(|value| json!([value["value"], users(value)])).collect()
    };
    assert_eq!(texts(&service, "properties.it%27s").await, [json!(["free", 4_000]), json!(["pro", 4_000])]);
    assert_eq!(
        texts(&service, "device_type,properties.it%27s").await,
        [json!(["mobile / free", 4_000]), json!(["mobile / pro", 4_000])]
    );
    let crossed = texts(&service, "country,properties.it%27s").await;
    assert_eq!(crossed[..2], [json!(["DE / free", 1_334]), json!(["unknown / pro", 1_334])]);
    assert_eq!(crossed.iter().filter_map(|value| value[1].as_u64()).sum::<u64>(), 8_000, "nobody is lost");

    // Users who were exposed at another time than was asked for.
    let path = "/v1/experiments/clear/results";
    let all = service.get(&format!("{path}?exposed_from=2026-03-01T00:00:00Z")).await.ok();
    assert_eq!(
        (&all["population"]["analysed_users"], &all["population"]["excluded"]["exposed_otherwise"]),
        (&json!(8_000), &json!(0))
    );
    let none = service.get(&format!("{path}?exposed_until=2026-03-01T00:00:00Z")).await.ok();
    assert_eq!((&none["status"], &none["population"]["excluded"]["exposed_otherwise"]), (&json!("no_data"), &json!(8_000)));
}

#[tokio::test]
async fn ratios_quantiles_and_guardrails_are_answered() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let id = experiment_id(PROJECT, "clear");
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "clear", "control"), "view", (0, 2_000), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "clear", "b"), "view", (4_000, 2_000), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "clear", "control"), "slow", (0, 4_000), ("100 + i % 50", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "clear", "b"), "slow", (4_000, 4_000), ("130 + i % 50", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "clear", "control"), "cancel", (0, 200), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "clear", "b"), "cancel", (4_000, 202), ("null", "null")).await;
    let values = [
        "'rate', 'buy', 'conversion_rate', 'value', null, null, null, 'increase', 'primary', null",
        "'order value', 'buy', 'ratio', 'value', 'conversions', null, null, 'increase', 'secondary', null",
        "'buys per view', 'buy', 'ratio', 'count', 'conversions', 'view', null, 'increase', 'secondary', null",
        "'buys per impression', 'buy', 'ratio', 'count', 'impressions', null, null, 'increase', 'secondary', null",
        "'per nothing', 'buy', 'ratio', 'count', 'conversions', 'never', null, 'increase', 'secondary', null",
        "'p90', 'slow', 'quantile', 'value', null, null, 0.9, 'decrease', 'secondary', null",
        "'cancels', 'cancel', 'conversion_rate', 'value', null, null, null, 'decrease', 'guardrail', 0.5",
        "'median', 'slow', 'quantile', 'value', null, null, 0.5, 'decrease', 'guardrail', 0.01",
    ];
    let values: Vec<String> = values.iter().map(|value| format!("('{PROJECT}', '{id}', {value})")).collect();
    let insert = format!(
        "INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, numerator, denominator,
             denominator_type, quantile, direction, role, margin) VALUES {}",
        values.join(", ")
    );
    service.run(&insert).await;
    let answer = service.get("/v1/experiments/clear/results?analysis=fixed").await.ok();
    let order = metric(&answer, "order value");
    assert_eq!(
        (&order["type"], &order["arms"][1]["denominator"], &order["arms"][1]["sum"]),
        (&json!("ratio"), &json!(560), &json!("5600.00"))
    );
    check_number(&order["arms"][1]["mean"], 10.0);
    assert_eq!(order["comparisons"][0]["status"], "zero_variance", "every order is 10");
    assert_eq!(order["definition"]["denominator_conversion"], "buy");
    check_number(&metric(&answer, "buys per view")["arms"][1]["mean"], 0.28);
    check_number(&metric(&answer, "buys per impression")["arms"][0]["mean"], 0.1);
    assert_eq!(metric(&answer, "per nothing")["comparisons"][0]["status"], "zero_denominator");
    let p90 = metric(&answer, "p90");
    check_number(&p90["definition"]["quantile"], 0.9);
    let found = &p90["comparisons"][0];
    check_number(&found["absolute"]["estimate"], 30.0);
    assert_eq!(found["verdict"], "lost", "less is better here: {found}");
    let cancels = &metric(&answer, "cancels")["comparisons"][0];
    assert_eq!(cancels["guardrail"]["state"], "safe", "{cancels}");
    assert!(cancels["guardrail"]["bound"].as_f64().is_some_and(|bound| bound > 0.0 && bound < 0.5), "{cancels}");
    assert!(cancels.get("adjusted").is_none());
    assert_eq!(metric(&answer, "median")["comparisons"][0]["guardrail"]["state"], "harmed");
    // The rate won, a guardrail lost.
    let decision = &answer["decision"];
    assert_eq!((&decision["status"], &decision["variant_id"]), (&json!("rollback-now"), &Value::Null), "{decision}");
    assert!(decision["why"].to_string().contains("a guardrail is lost"), "{decision}");
    service.run("DELETE FROM metrics WHERE name = 'median'").await;
    service.run("UPDATE experiments SET target_sample_size = 8000, conversion_window_days = 1").await;
    service.run("UPDATE project_progress SET event_time = '2026-03-03T00:00:00Z'").await;
    let answer = service.get("/v1/experiments/clear/results").await.ok();
    let decision = &answer["decision"];
    assert_eq!((&decision["status"], &decision["powered"]), (&json!("ship-now"), &json!(true)), "{decision}");
    assert_eq!(decision["variant_id"], variant_id(id, "b").to_string());
}

#[tokio::test]
async fn value_is_shared_by_each_model_to_the_cent() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let id = experiment_id(PROJECT, "clear");
    let (control, b) = (variant_id(id, "control"), variant_id(id, "b"));
    // User 0 saw control, b and b again before buying, and control afterwards; a bot's and a refused one do not count.
    let of_experiment = |variant: uuid::Uuid| [("experiment_id", format!("'{id}'")), ("variant_id", format!("'{variant}'"))];
    for (variant, minute, more) in [
        (control, 0.0, None),
        (b, 20.0, None),
        (b, 40.0, None),
        (control, 90.0, None),
        (control, 30.0, Some(("user_was_eligible", "false"))),
    ] {
        let columns = of_experiment(variant);
        let mut columns: Vec<(&str, &str)> = columns.iter().map(|(name, value)| (*name, value.as_str())).collect();
        columns.extend(more);
        let event = Event { more: &columns, ..Event::new("impression", "", 0, minute * 60.0) };
        event.store(&mut service.rows).await;
    }
    let seen = format!("ARRAY['{b}', '{control}']::uuid[]");
    service.run(&format!("UPDATE user_experiment_participation SET variants_seen = {seen} WHERE user_id = '{}'", user(0))).await;
    let answer = service.get("/v1/experiments/clear/results").await.ok();
    let check = |model: &str, expected: [&str; 2]| {
        let models = answer["attribution"]["models"].as_array().expect("models");
        let found = models.iter().find(|found| found["model"] == model).unwrap_or_else(|| panic!("no model {model}"));
        assert_eq!([&found["by_variant"][0]["value"], &found["by_variant"][1]["value"]], expected, "{model}");
    };
    check("first_touch", ["4000.00", "5600.00"]);
    check("last_touch", ["3990.00", "5610.00"]);
    check("linear", ["3993.34", "5606.66"]);
    check("position_based", ["3994.00", "5606.00"]);
    assert_eq!(answer["attribution"]["sensitivity"]["share_below"], 0.0);
    assert_eq!(answer["attribution"]["currency"], "EUR");

    // In a pause nobody is touched. Another question, since what was read for the first one is kept.
    let phase = |phase: u32, state: &str, from: &str, until: &str| {
        let time = |time: &str| if time.is_empty() { "null".to_owned() } else { format!("'2026-03-01T{time}:00Z'") };
        format!("('{PROJECT}', '{id}', {phase}, '{state}', {}, {})", time(from), time(until))
    };
    let phases = [phase(1, "assigning", "", "00:10"), phase(2, "paused", "00:10", "00:50"), phase(3, "assigning", "00:50", "")];
    service.run(&format!("INSERT INTO experiment_phases VALUES {}", phases.join(", "))).await;
    let answer = service.get("/v1/experiments/clear/results?baseline=control").await.ok();
    let last = answer["attribution"]["models"].as_array().expect("models").iter().find(|found| found["model"] == "last_touch");
    assert_eq!(last.expect("is there")["by_variant"][0]["value"], "4000.00", "{last:?}");
}

#[tokio::test]
async fn each_thing_that_is_missing_has_its_status_and_says_what_to_do() {
    let mut service = Service::start().await;
    let check = async |service: &Service, name: &str, query: &str, status: &str, advice: &str| {
        let answer = service.get(&format!("/v1/experiments/{name}/results{query}")).await.ok();
        assert_eq!(answer["status"], status, "{answer}");
        let warning = answer["warnings"].as_array().expect("warnings").iter().find(|warning| warning["code"] == status);
        let message = warning.and_then(|warning| warning["message"].as_str()).expect("a warning");
        assert!(message.contains(advice), "{message}");
        assert!(answer.get("decision").is_none());
        answer
    };
    let unknown = service.get("/v1/experiments/nothing/results").await.refused(404, "unknown_experiment");
    assert!(unknown["message"].to_string().contains("GET /v1/experiments lists"), "{unknown}");
    add_experiment(&mut service.rows, PROJECT, "lone", "", &[("control", "1")]).await;
    check(&service, "lone", "", "no_data", "send events of type impression").await;
    add_users(&mut service.rows, PROJECT, "lone", "control", 0, 5).await;
    let answer = check(&service, "lone", "", "one_variant", "add another one").await;
    check_number(&metric(&answer, "conversion_rate")["arms"][0]["mean"], 0.0);
    service.run("UPDATE experiments SET status = 'draft'").await;
    check(&service, "lone", "", "not_started", "weir admin experiment start").await;
    let named = service.get("/v1/experiments/lone/results?metrics=none").await;
    assert_eq!(named.refused(400, "unknown_metric")["field"], "metrics");
    for (query, field) in
        [("analysis=bayes", "analysis"), ("as_of=today", "as_of"), ("dimension=size", "dimension"), ("cap=0", "cap")]
    {
        let refused = service.get(&format!("/v1/experiments/lone/results?{query}")).await.refused(400, "bad_request");
        assert_eq!(refused["field"], field);
        assert!(refused["message"].as_str().is_some_and(|message| message.contains("accepted:")), "{refused}");
    }
}

#[tokio::test]
async fn what_was_not_stored_or_not_counted_is_named() {
    let mut service = Service::start().await;
    add_clear(&mut service, "").await;
    let id = experiment_id(PROJECT, "clear");
    let letter = |offset: u32, user: &str, experiment: &str, note: &str| {
        let bytes =
            json!({"v": 1, "event": {"user_id": user, "experiment": experiment, "variant": "c", "note": note}}).to_string();
        format!(
            "(gen_random_uuid(), '{PROJECT}', '{LOG}', 0, {offset}, 'unknown_variant', 'c', 'x', convert_to('{bytes}', 'UTF8'))"
        )
    };
    let letters = [
        letter(1, "u1", "clear", ""),
        letter(2, "u1", "clear", "again"),
        letter(3, "u2", &id.to_string(), ""),
        letter(4, "u3", "other", ""),
        letter(5, "u4", "clear", "Postgres takes no U+0000: a\u{0}b"),
    ];
    let before = service.get("/v1/experiments/clear/results").await.ok();
    assert_eq!(before["population"]["excluded"]["unknown_variant"], 0);
    // No version tells of these: an answer that was kept is not that of now.
    service
        .run(&format!(
            "INSERT INTO dead_letters (id, project_id, log_id, log_partition, log_offset, code, subject, reason, bytes) VALUES {};
             INSERT INTO daily_rollups (project_id, day, kind, event, experiment_id, is_bot, log_id, log_partition, events, value)
             VALUES ('{PROJECT}', '2026-03-01', 'impression', 'impression', '{id}', false, '{LOG}', 0, 8007, 0),
                    ('{PROJECT}', '2026-03-01', 'impression', 'impression', '{id}', true, '{LOG}', 0, 99, 0)",
            letters.join(", ")
        ))
        .await;
    let answer = service.get("/v1/experiments/clear/results").await.ok();
    assert_eq!(answer["population"]["excluded"]["unknown_variant"], 2);
    assert_eq!(answer["population"]["excluded"]["impressions_not_counted"], 7);
    assert_eq!(check_of(&answer, "unknown_variant")["level"], "warn");
    assert!(codes(&answer).contains(&"unknown_variant"));
    assert_eq!(check_of(&answer, "over_active")["level"], "ok");
    service
        .run(&format!(
            "INSERT INTO over_active_users (project_id, user_id, rows_max, experiments)
             VALUES ('{PROJECT}', gen_random_uuid(), 10000, '{{{id}}}'), ('{PROJECT}', gen_random_uuid(), 10000, '{{}}')"
        ))
        .await;
    let shared = service.get("/v1/experiments/clear/results").await.ok();
    assert_eq!(shared["population"]["excluded"]["over_active"], 1, "the other one was not in this experiment");
    assert_eq!(
        (&check_of(&shared, "over_active")["level"], &check_of(&shared, "over_active")["users"]),
        (&json!("warn"), &json!(1))
    );
    assert!(codes(&shared).contains(&"over_active"));
    assert_eq!(check_of(&answer, "freshness")["lag_seconds"], 9 * 3_600);
    service.run("UPDATE project_progress SET event_time = '2026-03-05T00:00:00Z'").await;
    let stale = service.get("/v1/experiments/clear/results").await.ok();
    assert_eq!(check_of(&stale, "freshness")["level"], "warn");
    assert!(codes(&stale).contains(&"stale"));
    // Half of the users of one variant vanish: nothing else is to be believed.
    run(&mut service.rows, &format!("DELETE FROM user_experiment_participation WHERE user_id >= '{}'", user(6_000))).await;
    let broken = service.get("/v1/experiments/clear/results").await.ok();
    assert_eq!(check_of(&broken, "srm")["level"], "fail");
    assert!(check_of(&broken, "srm")["sequential_log10_p"].as_f64().is_some_and(|log10| log10 < -3.0), "{broken}");
    assert_eq!(broken["decision"]["status"], "unhealthy");
}
