use serde_json::{Value, json};

use crate::support::{
    OTHER_PROJECT, OTHER_TOKEN, PROJECT, Service, add_conversions, add_experiment, add_users, check_number, experiment_id,
    variant_id,
};

fn metric<'a>(results: &'a Value, id: &str) -> &'a Value {
    let metrics = results["metrics"].as_array().expect("metrics");
    metrics.iter().find(|metric| metric["id"] == id).unwrap_or_else(|| panic!("no metric {id} in {results}"))
}

fn codes(results: &Value) -> Vec<&str> {
    results["warnings"].as_array().expect("warnings").iter().filter_map(|warning| warning["code"].as_str()).collect()
}

/// 1000 of 10000 against 1100 of 10000: the numbers are those of `d-fieller-001` and `d-lift-001` in the golden cases of `statistics`.
async fn add_checkout(service: &mut Service) {
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "checkout", "", &[("b", "50"), ("control", "50")]).await;
    add_users(rows, PROJECT, "checkout", "control", 0, 10_000).await;
    add_users(rows, PROJECT, "checkout", "b", 10_000, 10_000).await;
    add_conversions(rows, (PROJECT, "checkout", "control"), "purchase", (0, 1_000), ("20.10", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "checkout", "b"), "purchase", (10_000, 1_100), ("20.10", "'EUR'")).await;
}

#[tokio::test]
async fn rates_are_compared_by_the_published_methods() {
    let mut service = Service::start().await;
    add_checkout(&mut service).await;
    let results = service.get("/v1/experiments/checkout/results?analysis=fixed").await.ok();
    assert_eq!(results["status"], "ok");
    assert_eq!(
        results["as_of"],
        json!({"log_id": "00000000-0000-0000-0000-000000000abc", "offsets": {"0": 120, "1": 7}, "event_time": "2026-03-01T10:00:00Z"})
    );
    assert_eq!(results["experiment"]["confidence_level"], 0.95);
    assert_eq!(results["experiment"]["alpha"], 0.05);
    assert_eq!(results["experiment"]["currency"], "EUR");
    assert_eq!((&results["variants"][1]["description"], &results["variants"][1]["config_json"]), (&Value::Null, &Value::Null));
    let id = experiment_id(PROJECT, "checkout");
    assert_eq!(results["experiment"]["control_variant_id"], variant_id(id, "control").to_string());
    let names: Vec<&Value> = results["variants"].as_array().expect("variants").iter().map(|variant| &variant["name"]).collect();
    assert_eq!(names, ["control", "b"], "the control comes first");

    let rate = metric(&results, "conversion_rate");
    assert_eq!(rate["role"], "primary");
    assert_eq!(rate["arms"][0]["numerator"], 1_000);
    check_number(&rate["arms"][1]["mean"], 0.11);
    check_number(&rate["arms"][0]["ci"][0], 0.094_272_830_170_630_46);
    let comparison = &rate["comparisons"][0];
    assert_eq!(comparison["variant_id"], variant_id(id, "b").to_string());
    assert_eq!((&comparison["status"], &comparison["approximation"]), (&json!("ok"), &json!("t")));
    check_number(&comparison["absolute"]["estimate"], 0.01);
    check_number(&comparison["absolute"]["ci"][0], 0.001_503_543_981_086_274_3);
    check_number(&comparison["test"]["p_value"], 0.021_068_257_468_733_823);
    check_number(&comparison["test"]["log10_p"], -1.676_371_382_902_03);
    check_number(&comparison["relative"]["lift"], 0.1);
    check_number(&comparison["relative"]["ci"][0], 0.014_445_371_477_844_11);
    check_number(&comparison["relative"]["ci"][1], 0.193_188_033_674_68);
    check_number(&comparison["relative"]["g"], 0.003_457_732_218_903_763);
    check_number(&comparison["relative"]["ci_delta"][0], 0.010_864_708_144_846_927);
    assert_eq!(comparison["verdict"], "inconclusive", "the verdict is that of the adjusted p-value");
    // Four comparisons, each of the same users: 4 p > 0.05.
    assert_eq!(comparison["adjusted"]["family_size"], 4);
    assert_eq!(comparison["adjusted"]["significant"], false);
    assert_eq!(
        comparison["plain"],
        "b converts 11% vs 10% in control: +10% (95% CI +1.44% to +19.3%), p = 0.021; not significant after correction for 4 \
         comparisons."
    );

    let value = metric(&results, "value_per_user");
    assert_eq!(value["arms"][0]["sum"], "20100.00");
    assert_eq!(value["arms"][1]["sum"], "22110.00");
    check_number(&value["arms"][1]["mean"], 2.211);
    assert_eq!(value["currency"], "EUR");
    assert_eq!(metric(&results, "purchase.conversion_rate")["comparisons"][0]["test"], comparison["test"]);
    assert_eq!(metric(&results, "purchase.value_per_user")["arms"], value["arms"]);
    assert_eq!(results["metrics"].as_array().map(Vec::len), Some(4));

    assert_eq!(results["population"]["exposed_users"], 20_000);
    assert_eq!(results["health"]["checks"][0]["id"], "srm");
    assert_eq!(results["health"]["checks"][0]["level"], "ok");
    assert_eq!(results["health"]["checks"][0]["weights"], "configured");

    let by_id = service.get(&format!("/v1/experiments/{id}/results?baseline=b&analysis=fixed&correction=none")).await.ok();
    let turned = &metric(&by_id, "conversion_rate")["comparisons"][0];
    check_number(&turned["absolute"]["estimate"], -0.01);
    assert_eq!(turned["verdict"], "lost");
    assert_eq!(by_id["request_settings"]["baseline"], "b");
    service.get("/v1/experiments/checkout/results?baseline=c").await.refused(400, "unknown_variant");
    service.get("/v1/experiments/checkout/results?basline=b").await.refused(400, "unsupported_option");
}

#[tokio::test]
async fn values_are_summed_per_user_and_tested_exactly() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    // 1 and 2 against 4 and 5, each in two conversions of a user: `d-welch-002`.
    add_experiment(rows, PROJECT, "tiny", "", &[("control", "null"), ("b", "null")]).await;
    add_users(rows, PROJECT, "tiny", "control", 0, 2).await;
    add_users(rows, PROJECT, "tiny", "b", 2, 2).await;
    for (variant, from, add) in [("control", 0, 0), ("b", 2, 1)] {
        let target = (PROJECT, "tiny", variant);
        add_conversions(rows, target, "buy", (from, 2), (&format!("i + {add}.75"), "null")).await;
        add_conversions(rows, target, "refund", (from, 2), ("0.25", "null")).await;
    }
    let results = service.get("/v1/experiments/tiny/results").await.ok();
    let value = metric(&results, "value_per_user");
    assert_eq!((&value["arms"][0]["sum"], &value["arms"][1]["sum"]), (&json!("3.00"), &json!("9.00")));
    let comparison = &value["comparisons"][0];
    check_number(&comparison["absolute"]["estimate"], 3.0);
    check_number(&comparison["absolute"]["std_error"], std::f64::consts::FRAC_1_SQRT_2);
    check_number(&comparison["test"]["statistic"], 4.242_640_687_119_285);
    check_number(&comparison["test"]["dof"], 2.0);
    check_number(&comparison["test"]["p_value"], 0.051_316_701_949_486_21);
    assert!(value.get("currency").is_none());
    let rate = metric(&results, "conversion_rate");
    assert_eq!(rate["comparisons"][0]["status"], "zero_variance", "all of both converted");
    assert_eq!(rate["comparisons"][0]["test"]["name"], "fisher_exact");
    check_number(&rate["comparisons"][0]["test"]["p_value"], 1.0);
    check_number(&metric(&results, "refund.value_per_user")["arms"][0]["mean"], 0.25);
    assert_eq!(results["health"]["checks"][0]["weights"], "assumed_equal");
}

#[tokio::test]
async fn mixed_users_are_left_out_everywhere() {
    let mut service = Service::start().await;
    add_checkout(&mut service).await;
    let id = experiment_id(PROJECT, "checkout");
    let seen = format!("ARRAY['{}', '{}']::uuid[]", variant_id(id, "b"), variant_id(id, "control"));
    // 500 of the control's converters and 250 others of b.
    let update = format!(
        "UPDATE user_experiment_participation SET variants_seen = {seen}
         WHERE user_id < '{}' OR user_id >= '{}'",
        crate::support::user(500),
        crate::support::user(19_750)
    );
    service.run(&update).await;
    // Unequal parts of both, which would not be left out by themselves.
    let results = service.get("/v1/experiments/checkout/results?population=exclude_multi").await.ok();
    assert_eq!(results["population"]["exposed_users"], 20_000);
    assert_eq!(results["population"]["analysed_users"], 19_250);
    assert_eq!(results["population"]["excluded"]["multi_exposed"], 750);
    let rate = metric(&results, "conversion_rate");
    assert_eq!((&rate["arms"][0]["users"], &rate["arms"][0]["numerator"]), (&json!(9_500), &json!(500)));
    assert_eq!((&rate["arms"][1]["users"], &rate["arms"][1]["numerator"]), (&json!(9_750), &json!(1_100)));
    assert_eq!(metric(&results, "value_per_user")["arms"][0]["sum"], "10050.00");
    assert!(codes(&results).contains(&"multi_exposed") && codes(&results).contains(&"exclusion_bias"), "{results}");
    assert_eq!(results["health"]["overall"], "fail");
}

#[tokio::test]
async fn few_counts_are_compared_exactly() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "few", "", &[("control", "1"), ("none", "1"), ("some", "1"), ("empty", "0")]).await;
    add_users(rows, PROJECT, "few", "control", 0, 100).await;
    add_users(rows, PROJECT, "few", "none", 100, 100).await;
    add_users(rows, PROJECT, "few", "some", 200, 100).await;
    add_conversions(rows, (PROJECT, "few", "control"), "buy", (0, 10), ("null", "null")).await;
    add_conversions(rows, (PROJECT, "few", "some"), "buy", (200, 9), ("null", "null")).await;
    let results = service.get("/v1/experiments/few/results?analysis=fixed").await.ok();
    let rate = metric(&results, "conversion_rate");
    let by_name = |name: &str| {
        let id = variant_id(experiment_id(PROJECT, "few"), name).to_string();
        rate["comparisons"].as_array().expect("comparisons").iter().find(|found| found["variant_id"] == id).expect("compared")
    };
    // `d-lift-010`.
    let none = by_name("none");
    assert_eq!((&none["status"], &none["approximation"]), (&json!("exact_only"), &json!("exact")));
    check_number(&none["test"]["p_fisher"], 0.001_542_052_125_435_700_8);
    check_number(&none["absolute"]["ci"][0], -0.174_365_661_504_913_48);
    check_number(&none["relative"]["lift"], -1.0);
    assert_eq!(none["relative"]["ci"], json!([null, null]));
    assert_eq!(none["verdict"], "lost");
    assert_eq!(by_name("some")["approximation"], "exact");
    assert_eq!(by_name("some")["test"]["name"], "welch_t");
    let empty = by_name("empty");
    assert_eq!(empty["status"], "no_data");
    assert_eq!(empty["absolute"]["estimate"], Value::Null);
    assert_eq!(empty["plain"], "empty has no users yet, so that nothing can be compared.");
    // A test that allows for looks takes the variance of both variants together, which is there for any counts.
    let open = service.get("/v1/experiments/few/results").await.ok();
    let id = variant_id(experiment_id(PROJECT, "few"), "none").to_string();
    let compared = metric(&open, "conversion_rate")["comparisons"].as_array().expect("comparisons").clone();
    let found = compared.iter().find(|found| found["variant_id"] == id).expect("compared");
    let plain = found["plain"].as_str().expect("a sentence");
    assert_eq!((&found["verdict"], &found["adjusted"]["significant"]), (&json!("inconclusive"), &json!(false)), "{found}");
    assert!(plain.contains("p = 0.32 at any time"), "{plain}");
    let baseline = service.get("/v1/experiments/few/results?baseline=none").await.ok();
    assert_eq!(metric(&baseline, "conversion_rate")["comparisons"][0]["status"], "zero_baseline");
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let mut service = Service::start().await;
    service.get("/v1/experiments/nothing/results").await.refused(404, "unknown_experiment");
    assert_eq!(service.get("/v1/experiments").await.ok()["experiments"], json!([]));
    add_experiment(&mut service.rows, PROJECT, "new", "", &[("a", "null"), ("b", "null")]).await;
    let empty = service.get("/v1/experiments/new/results").await.ok();
    assert_eq!((&empty["status"], codes(&empty)), (&json!("no_data"), vec!["no_data"]));
    assert_eq!(metric(&empty, "conversion_rate")["arms"][0]["mean"], Value::Null);
    add_users(&mut service.rows, PROJECT, "new", "a", 0, 300).await;
    add_users(&mut service.rows, PROJECT, "new", "b", 300, 300).await;
    let results = service.get("/v1/experiments/new/results").await.ok();
    assert_eq!(results["status"], "no_control");
    let message = results["warnings"].as_array().expect("warnings").iter().find(|warning| warning["code"] == "no_control");
    assert!(message.is_some_and(|found| found["message"].as_str().is_some_and(|text| text.contains("one of a, b"))), "{results}");
    assert_eq!(metric(&results, "conversion_rate")["comparisons"], json!([]));
    let listed = service.get("/v1/experiments").await.ok();
    assert_eq!(listed["experiments"][0]["name"], "new");
    assert_eq!(listed["experiments"][0]["variants"].as_array().map(Vec::len), Some(2));
    service.run("UPDATE variants SET description = 'a red button', config_json = '{\"colour\": \"red\"}' WHERE name = 'b'").await;
    let described = service.get("/v1/experiments").await.ok();
    let of_b =
        described["experiments"][0]["variants"].as_array().expect("variants").iter().find(|variant| variant["name"] == "b");
    let of_b = of_b.expect("b");
    assert_eq!((&of_b["description"], &of_b["config_json"]), (&json!("a red button"), &json!({"colour": "red"})));
    let rows = service.rows("SELECT config_json FROM variants WHERE name = 'b'").await;
    assert_eq!(rows, json!([[r#"{"colour": "red"}"#]]));
    assert!(listed["experiments"][0].get("started_at").is_none(), "what is not set is left out: {listed}");
}

#[tokio::test]
async fn currencies_are_never_added_up() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "money", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "money", "control", 0, 200).await;
    add_users(rows, PROJECT, "money", "b", 200, 200).await;
    add_conversions(rows, (PROJECT, "money", "control"), "buy", (0, 100), ("i", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "money", "control"), "buy", (50, 20), ("0.000001", "'USD'")).await;
    let results = service.get("/v1/experiments/money/results").await.ok();
    assert_eq!(metric(&results, "value_per_user")["arms"][0]["sum"], "4950.00");
    assert_eq!(metric(&results, "conversion_rate")["arms"][0]["numerator"], 100);
    let warning = results["warnings"].as_array().expect("warnings").iter().find(|warning| warning["code"] == "other_currency");
    let text = warning.and_then(|warning| warning["message"].as_str()).expect("a warning");
    assert!(text.contains("20 conversions with a total value of 0.00002 USD"), "{text}");
    service.run("UPDATE experiments SET currency = 'USD'").await;
    let results = service.get("/v1/experiments/money/results").await.ok();
    assert_eq!(metric(&results, "value_per_user")["arms"][0]["sum"], "0.00002");
}

#[tokio::test]
async fn configured_metrics_replace_the_usual_ones() {
    let mut service = Service::start().await;
    add_checkout(&mut service).await;
    let id = experiment_id(PROJECT, "checkout");
    let rows = &mut service.rows;
    add_conversions(rows, (PROJECT, "checkout", "control"), "it''s", (0, 10), ("999.5", "'EUR'")).await;
    // A conversion exactly at the end of a window of 2 days belongs to it; one microsecond later does not.
    for (from, time) in [(5_000, "2026-03-03T00:00:00Z"), (5_100, "2026-03-03T00:00:00.000001Z")] {
        add_conversions(rows, (PROJECT, "checkout", "control"), "late", (from, 7), ("1", "'EUR'")).await;
        let update = format!(
            "UPDATE conversion_attribution SET conversion_time = '{time}' WHERE conversion_type = 'late' AND user_id >= '{}'",
            crate::support::user(from)
        );
        crate::support::run(rows, &update).await;
    }
    let insert = format!(
        "INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, direction, role, window_days, cap)
         VALUES ('{PROJECT}', '{id}', 'late in time', 'late', 'conversion_rate', 'increase', 'secondary', 2, null),
                ('{PROJECT}', '{id}', 'capped', 'it''s', 'value_per_user', 'decrease', 'primary', null, 100.5),
                ('{PROJECT}', '{id}', 'events', null, 'count_per_user', 'decrease', 'guardrail', null, null)"
    );
    service.run(&insert).await;
    let results = service.get("/v1/experiments/checkout/results?analysis=fixed").await.ok();
    let ids: Vec<&Value> = results["metrics"].as_array().expect("metrics").iter().map(|metric| &metric["id"]).collect();
    assert_eq!(ids, ["capped", "late in time", "events"]);
    let late = metric(&results, "late in time");
    assert_eq!((&late["arms"][0]["numerator"], &late["window_days"]), (&json!(7), &json!(2)));
    let capped = metric(&results, "capped");
    // What is shown as sum was really paid; the mean is that of the cut sums.
    assert_eq!(capped["arms"][0]["sum"], "9995.00");
    assert_eq!(capped["cap"], json!({"value": "100.50", "users": [10, 0]}));
    check_number(&capped["arms"][0]["mean"], 0.1005);
    check_number(&capped["comparisons"][0]["supplemental"]["uncapped"]["estimate"], -0.9995);
    assert_eq!(capped["comparisons"][0]["verdict"], "won", "less is better here: {capped}");
    let events = metric(&results, "events");
    assert_eq!(events["arms"][0]["numerator"], 1_000 + 10 + 14);
    assert!(events["comparisons"][0].get("adjusted").is_none(), "guardrails are not in the family");
    assert_eq!(capped["comparisons"][0]["adjusted"]["family_size"], 2);
}

#[tokio::test]
async fn many_conversion_names_are_cut_aloud() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "names", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "names", "control", 0, 200).await;
    add_users(rows, PROJECT, "names", "b", 200, 200).await;
    for name in 0..51u64 {
        let users = if name == 7 { 1 } else { 3 };
        add_conversions(rows, (PROJECT, "names", "control"), &format!("n{name:02}"), (0, users), ("1", "null")).await;
    }
    let results = service.get("/v1/experiments/names/results").await.ok();
    assert_eq!(results["metrics"].as_array().map(Vec::len), Some(102));
    assert!(codes(&results).contains(&"conversion_names_cut"));
    let has = |id: &str| results["metrics"].as_array().expect("metrics").iter().any(|metric| metric["id"] == id);
    assert!(has("n50.value_per_user") && !has("n07.value_per_user"), "the rarest one is left out");
}

#[tokio::test]
async fn projects_do_not_see_each_other() {
    let mut service = Service::start().await;
    add_checkout(&mut service).await;
    let rows = &mut service.rows;
    add_experiment(rows, OTHER_PROJECT, "checkout", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, OTHER_PROJECT, "checkout", "control", 0, 33).await;
    add_conversions(rows, (OTHER_PROJECT, "checkout", "control"), "secret", (0, 5), ("1", "'USD'")).await;
    let own = service.get("/v1/experiments/checkout/results").await.ok();
    assert_eq!(own["population"]["exposed_users"], 20_000);
    assert!(!own.to_string().contains("secret") && !own.to_string().contains("USD"));
    let other = service.get_as(OTHER_TOKEN, "/v1/experiments/checkout/results").await.ok();
    assert_eq!(other["population"]["exposed_users"], 33);
    assert_eq!(metric(&other, "secret.conversion_rate")["arms"][0]["numerator"], 5);
    let id = experiment_id(PROJECT, "checkout");
    service.get_as(OTHER_TOKEN, &format!("/v1/experiments/{id}/results")).await.refused(404, "unknown_experiment");
    assert_eq!(service.get_as(OTHER_TOKEN, "/v1/experiments").await.ok()["experiments"].as_array().map(Vec::len), Some(1));
}

/// A newer version of Weir wrote one of two experiments: it is refused by name and never answered as something else; the other
/// one is answered as before.
#[tokio::test]
async fn what_a_newer_version_wrote_is_refused_by_name() {
    let mut service = Service::start().await;
    add_checkout(&mut service).await;
    add_experiment(&mut service.rows, PROJECT, "future", "", &[("b", "50"), ("control", "50")]).await;
    let future = experiment_id(PROJECT, "future");
    service
        .run(&format!(
            "ALTER TABLE experiments DROP CONSTRAINT experiments_status_check, DROP CONSTRAINT experiments_attribution_method_check;
             ALTER TABLE metrics DROP CONSTRAINT metrics_aggregation_check, DROP CONSTRAINT metrics_role_check,
                 DROP CONSTRAINT metrics_direction_check, DROP CONSTRAINT metrics_numerator_check, DROP CONSTRAINT metrics_check;
             INSERT INTO metrics (project_id, experiment_id, name, aggregation, denominator)
             VALUES ('{PROJECT}', '{future}', 'm', 'ratio', 'conversions')"
        ))
        .await;
    service.get("/v1/experiments/future/results").await.ok();
    let cases = [
        ("experiments", "attribution_method", "weighted", "first_exposure"),
        ("experiments", "status", "ramping", "running"),
        ("metrics", "aggregation", "median", "ratio"),
        ("metrics", "role", "tertiary", "primary"),
        ("metrics", "direction", "sideways", "increase"),
        ("metrics", "numerator", "rank", "value"),
    ];
    for (table, column, unknown, known) in cases {
        let of_future = if table == "metrics" { format!("experiment_id = '{future}'") } else { format!("id = '{future}'") };
        service.run(&format!("UPDATE {table} SET {column} = '{unknown}' WHERE {of_future}")).await;
        let refused = service.get("/v1/experiments/future/results").await.refused(501, "unsupported_catalogue");
        let message = refused["message"].as_str().expect("a message");
        let named = [format!("table {table}, row "), format!("{column} is {unknown:?}"), "\"future\"".to_owned()];
        assert!(named.iter().all(|part| message.contains(part)), "{message}");
        assert_eq!(service.get("/v1/experiments/checkout/results?analysis=fixed").await.ok()["status"], "ok");
        let listed = service.get("/v1/experiments").await.ok();
        assert_eq!(listed["experiments"].as_array().map(Vec::len), Some(1));
        assert_eq!((&listed["experiments"][0]["name"], &listed["unsupported"]), (&json!("checkout"), &json!([message])));
        service.run(&format!("UPDATE {table} SET {column} = '{known}' WHERE {of_future}")).await;
    }
    assert!(service.get("/v1/experiments").await.ok().get("unsupported").is_none());
    // What only the schema's checks see to is no default either.
    service.run("UPDATE metrics SET denominator = NULL").await;
    let refused = service.get("/v1/experiments/future/results").await.refused(501, "unsupported_catalogue");
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains(r#"row "m" of experiment "future": denominator is null"#), "{message}");
}
