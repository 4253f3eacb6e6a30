//! What is taken off for what was known of users before: by one regression in all metrics, whose numbers are those of arithmetic.

use serde_json::{Value, json};

use crate::definitions::{define, of};
use crate::support::{
    LOG, PROJECT, Service, USER_SQL, add_before, add_conversions, add_experiment, add_first_impressions, add_users, check_number,
};

/// Stores an event of each of the users `from..from + users` an hour after the exposure; `value` is SQL and may use `i`.
async fn add_after(service: &mut Service, (from, users): (u64, u64), value: &str) {
    let insert = format!(
        "INSERT INTO conversions (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
             log_partition, log_offset, conversion_type, conversion_value, currency)
         SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, t, t, t, false, false, '{LOG}', 0, 0, 'buy', {value}, 'EUR'
         FROM generate_series({from}, {}) i, (SELECT timestamptz '2026-03-01T01:00:00Z' AS t) t",
        from + users - 1
    );
    service.run(&insert).await;
}

fn estimate(answer: &Value, metric: &str) -> f64 {
    let found = &of(answer, metric)["comparisons"][0]["absolute"]["estimate"];
    found.as_f64().unwrap_or_else(|| panic!("no estimate of {metric}: {}", of(answer, metric)))
}

/// Before 1, 2, 3, 4 and after 2, 3, 5, 6 against before 2, 3, 4, 5 and after 4, 6, 7, 9: at the common mean of 3 that is 4.7 against 5.7.
#[tokio::test]
async fn each_variant_has_its_own_slope() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "slopes", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "slopes", "control", 0, 4).await;
    add_users(&mut service.rows, PROJECT, "slopes", "b", 4, 4).await;
    let after = |values: &str| format!("(ARRAY[{values}])[i % 4 + 1]");
    add_conversions(&mut service.rows, (PROJECT, "slopes", "control"), "buy", (0, 4), (&after("2, 3, 5, 6"), "'EUR'")).await;
    add_conversions(&mut service.rows, (PROJECT, "slopes", "b"), "buy", (4, 4), (&after("4, 6, 7, 9"), "'EUR'")).await;
    add_before(&mut service, 0, 4, "i + 1", 48).await;
    add_before(&mut service, 4, 4, "i - 2", 48).await;
    let answer = service.get("/v1/experiments/slopes/results").await.ok();
    let found = &of(&answer, "value_per_user")["comparisons"][0];
    assert_eq!(found["cuped"]["applied"], true, "{found}");
    check_number(&found["cuped"]["theta"], 1.5);
    check_number(&found["absolute"]["estimate"], 1.0);
    check_number(&found["supplemental"]["unadjusted"]["estimate"], 2.5);
}

/// Of one covariate that a user has or not, the interacted regression is the comparison within each of both sorts of users, weighted by
/// their number. It needs no history.
#[tokio::test]
async fn a_property_of_the_exposure_weighs_its_parts() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "parts", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "parts", "control", 0, 2_000).await;
    add_users(&mut service.rows, PROJECT, "parts", "b", 2_000, 2_000).await;
    let german = "(n % 3 = 0 OR n >= 2000 AND n % 50 = 0)";
    add_first_impressions(&mut service, &[("country_code", &format!("CASE WHEN {german} THEN 'DE' ELSE 'AT' END"))]).await;
    let spent = format!(
        "CASE WHEN {} THEN 40 + i % 7 + i / 2000 * 3 ELSE i % 5 + i / 2000 END",
        german.replace('n', "i").replace("iOT", "NOT").replace("AiD", "AND")
    );
    add_after(&mut service, (0, 4_000), &spent).await;
    let sum = json!({"kind": "conversion", "events": ["buy"], "value": "value", "per_user": "sum"});
    let mut by_country = sum.clone();
    by_country["covariates"] = json!(["country", "metrics.plain", "metrics.gone", "has_history"]);
    define(&mut service, "parts", "plain", sum).await;
    define(&mut service, "parts", "by_country", by_country).await;
    let answer = service.get("/v1/experiments/parts/results?cap=off").await.ok();

    // The same by loops: users, and what they spent, by variant and country.
    let mut cells = [[(0.0, 0.0); 2]; 2];
    for i in 0..4_000u32 {
        let is_german = i % 3 == 0 || (i >= 2_000 && i % 50 == 0);
        let spent = if is_german { 40 + i % 7 + i / 2_000 * 3 } else { i % 5 + i / 2_000 };
        let (users, sum) = &mut cells[(i / 2_000) as usize][usize::from(is_german)];
        (*users, *sum) = (*users + 1.0, *sum + f64::from(spent));
    }
    let difference = |country: usize| cells[1][country].1 / cells[1][country].0 - cells[0][country].1 / cells[0][country].0;
    let weight = |country: usize| (cells[0][country].0 + cells[1][country].0) / 4_000.0;
    let expected = weight(0) * difference(0) + weight(1) * difference(1);
    let found = &of(&answer, "by_country")["comparisons"][0];
    assert_eq!(found["cuped"]["applied"], true, "{found}");
    check_number(&found["absolute"]["estimate"], expected);
    let covariates = found["cuped"]["covariates"].as_array().expect("covariates");
    let names: Vec<&str> = covariates.iter().filter_map(|covariate| covariate["name"].as_str()).collect();
    assert_eq!(names, ["by_country", "metrics.plain", "country = DE", "has_history"]);
    let is_used: Vec<bool> = covariates.iter().map(|covariate| covariate["coefficient"].is_number()).collect();
    assert_eq!(is_used, [false, false, true, false], "nobody did anything before");
    assert!(found["cuped"]["variance_reduction"].as_f64().is_some_and(|reduction| reduction > 0.9), "{found}");
    let plain = &of(&answer, "plain")["comparisons"][0];
    assert_eq!(plain["cuped"]["reason"], "no_history", "{plain}");
    let codes: Vec<&str> = answer["warnings"].as_array().expect("warnings").iter().filter_map(|w| w["code"].as_str()).collect();
    assert!(codes.contains(&"unknown_covariate"), "{codes:?}");
}

/// Everybody buys once before and once after: value per order is value per user, and so is what is taken off. With another metric's
/// history, and with a cap, which holds before as after.
#[tokio::test]
async fn a_ratio_is_adjusted_as_a_mean_is() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "ratio", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "ratio", "control", 0, 1_000).await;
    add_users(&mut service.rows, PROJECT, "ratio", "b", 1_000, 1_000).await;
    add_after(&mut service, (0, 2_000), "i % 100 + i % 3 + i / 1000").await;
    add_before(&mut service, 0, 2_000, "i % 100 + i % 2", 48).await;
    let orders = json!({"kind": "conversion", "events": ["buy"], "per_user": "exists"});
    let sum = json!({"kind": "conversion", "events": ["buy"], "value": "value", "per_user": "sum"});
    let mut ratio = sum.clone();
    ratio["over"] = orders.clone();
    define(&mut service, "ratio", "orders", orders).await;
    define(&mut service, "ratio", "mean", sum).await;
    define(&mut service, "ratio", "ratio", ratio).await;
    let answer = service.get("/v1/experiments/ratio/results?analysis=fixed&cap=off").await.ok();
    let (mean, ratio) = (&of(&answer, "mean")["comparisons"][0], &of(&answer, "ratio")["comparisons"][0]);
    for found in [mean, ratio] {
        assert_eq!(found["cuped"]["applied"], true, "{found}");
        assert!(found["cuped"]["variance_reduction"].as_f64().is_some_and(|reduction| reduction > 0.9), "{found}");
    }
    assert!((estimate(&answer, "mean") - estimate(&answer, "ratio")).abs() < 1e-9);
    for end in 0..2 {
        check_number(&ratio["absolute"]["ci"][end], mean["absolute"]["ci"][end].as_f64().expect("an end"));
    }
    let over = &ratio["cuped"]["covariates"][1];
    assert_eq!((&over["name"], &over["coefficient"]), (&json!("ratio.over"), &Value::Null), "one for everybody");
    // A cap at the median cuts both periods alike: what half of the users did is told by what they did before.
    let capped = service.get("/v1/experiments/ratio/results?analysis=fixed&cap=50").await.ok();
    let found = &of(&capped, "mean")["comparisons"][0]["cuped"];
    assert!(found["variance_reduction"].as_f64().is_some_and(|reduction| reduction > 0.9), "{found}");
}
