//! Experiments whose split changed: users are compared with those who were assigned in the same shares. From rows in Postgres to the answer
//! over HTTP.

use serde_json::{Value, json};

use crate::support::{PROJECT, Service, add_conversions, add_experiment, add_users, check_number, experiment_id, variant_id};

const FRIDAY: &str = "2026-02-28T00:00:00Z";
const SATURDAY: &str = "2026-03-01T00:00:00Z";

/// Stores phases: when each begins, and its variants with their weights, all on from one to the next.
async fn add_phases(service: &mut Service, experiment: &str, phases: &[(&str, &[(&str, &str)])]) {
    let id = experiment_id(PROJECT, experiment);
    for (place, (start, weights)) in phases.iter().enumerate() {
        let phase = place + 1;
        let end = phases.get(phase).map_or("null".to_owned(), |(next, _)| format!("'{next}'"));
        let state = if weights.is_empty() { "paused" } else { "assigning" };
        service
            .run(&format!("INSERT INTO experiment_phases VALUES ('{PROJECT}', '{id}', {phase}, '{state}', '{start}', {end})"))
            .await;
        for (variant, weight) in *weights {
            let variant = variant_id(id, variant);
            service.run(&format!("INSERT INTO phase_weights VALUES ('{PROJECT}', '{id}', {phase}, '{variant}', {weight})")).await;
        }
    }
}

/// Says that all users so far came on Friday; those who are added later come on Saturday.
async fn all_came_on_friday(service: &mut Service) {
    service.run(&format!("UPDATE user_experiment_participation SET first_exposure_date = '{FRIDAY}'")).await;
}

/// Stores users of a variant, of whom the first ones convert.
async fn add(service: &mut Service, experiment: &str, variant: &str, from: u64, users: u64, converted: u64) {
    add_users(&mut service.rows, PROJECT, experiment, variant, from, users).await;
    add_conversions(&mut service.rows, (PROJECT, experiment, variant), "buy", (from, converted), ("10", "'EUR'")).await;
}

fn of<'a>(list: &'a Value, id: &str) -> &'a Value {
    list.as_array().expect("a list").iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {list}"))
}

/// Crook et al. 2009, a tenth of their users: 1 % get the treatment on Friday and half of all on Saturday. It is better on both days, and
/// pooled it is worse.
#[tokio::test]
async fn a_treatment_that_is_better_on_each_day_is_better() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "split", "", &[("control", "50"), ("b", "50")]).await;
    add(&mut service, "split", "control", 0, 99_000, 2_000).await;
    add(&mut service, "split", "b", 99_000, 1_000, 23).await;
    all_came_on_friday(&mut service).await;
    add(&mut service, "split", "control", 100_000, 50_000, 500).await;
    add(&mut service, "split", "b", 150_000, 50_000, 600).await;
    let path = "/v1/experiments/split/results?analysis=fixed&metrics=conversion_rate,buy.value_per_user&series=daily";
    let pooled = service.get(path).await.ok();
    check_number(
        &of(&pooled["metrics"], "conversion_rate")["comparisons"][0]["absolute"]["estimate"],
        623.0 / 51_000.0 - 2_500.0 / 149_000.0,
    );
    assert_eq!(of(&pooled["health"]["checks"], "srm")["level"], "fail");

    add_phases(&mut service, "split", &[(FRIDAY, &[("control", "99"), ("b", "1")]), (SATURDAY, &[("control", "1"), ("b", "1")])])
        .await;
    let answer = service.get(path).await.ok();
    let found = &of(&answer["metrics"], "conversion_rate")["comparisons"][0];
    check_number(&found["absolute"]["estimate"], (0.023 - 2.0 / 99.0) / 2.0 + 0.001);
    // The variance of each share without bias, each day with half of the users; that the days' parts are random adds 1 of 10,000 to it.
    let variance = |users: f64, share: f64| share * (1.0 - share) / (users - 1.0);
    let of_days =
        [variance(1_000.0, 0.023) + variance(99_000.0, 2.0 / 99.0), variance(50_000.0, 0.012) + variance(50_000.0, 0.01)];
    let std_error = (of_days.iter().sum::<f64>() / 4.0).sqrt();
    let shown = found["absolute"]["std_error"].as_f64().expect("a number");
    assert!((shown / std_error - 1.0).abs() < 1e-6, "{shown} {std_error}");
    check_number(&found["relative"]["lift"], ((0.023 - 2.0 / 99.0) / 2.0 + 0.001) / (1.0 / 99.0 + 0.005));
    assert_eq!(found["test"]["name"], "stratified_t");
    let plain = found["plain"].as_str().expect("a sentence");
    assert!(plain.contains("1.75%") && plain.contains("1.51%"), "{plain}");
    let value = &of(&answer["metrics"], "buy.value_per_user")["comparisons"][0];
    check_number(&value["absolute"]["estimate"], 10.0 * ((0.023 - 2.0 / 99.0) / 2.0 + 0.001));

    let srm = of(&answer["health"]["checks"], "srm");
    assert_eq!(
        (&srm["level"], &srm["statistic"], &srm["dof"], &srm["p_value"]),
        (&json!("ok"), &json!(0.0), &json!(2), &json!(1.0)),
        "{srm}"
    );
    assert_eq!(srm["strata"][0]["users"], json!([99_000, 1_000]));
    assert!(srm["sequential_p"].as_f64().is_some_and(|p| p > 0.9), "{srm}");
    assert_eq!(answer["experiment"]["phases"][0]["ended_at"], SATURDAY);
    assert_eq!(answer["experiment"]["phases"][1]["weights"].as_array().map(Vec::len), Some(2));
    // The last day of the series is the whole, and the first one Friday's.
    let days = of(&answer["metrics"], "conversion_rate")["series"].as_array().expect("days");
    check_number(&days.last().expect("days")["cumulative"]["comparisons"][0]["estimate"], (0.023 - 2.0 / 99.0) / 2.0 + 0.001);
    assert_eq!(days[0]["cumulative"]["srm_p"], json!(1.0), "{}", days[0]);

    // Of every analysis the sign is that of the days.
    for analysis in ["sequential", "group_sequential", "hybrid"] {
        let path = format!("/v1/experiments/split/results?analysis={analysis}&metrics=conversion_rate");
        service.run("UPDATE experiments SET target_sample_size = 200000").await;
        let answer = service.get(&path).await.ok();
        let found = &of(&answer["metrics"], "conversion_rate")["comparisons"][0]["sequential"];
        assert!(found["z"].as_f64().is_some_and(|z| z > 0.0), "{analysis} {found}");
    }
}

/// 1,000 and 1,000 users, then a third variant, and 300 each; who came before it is in no comparison with it.
#[tokio::test]
async fn a_variant_that_comes_later_is_no_mismatch() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "three", "", &[("control", "1"), ("b", "1"), ("c", "1")]).await;
    add(&mut service, "three", "control", 0, 1_000, 200).await;
    add(&mut service, "three", "b", 1_000, 1_000, 100).await;
    all_came_on_friday(&mut service).await;
    add(&mut service, "three", "control", 2_000, 300, 30).await;
    add(&mut service, "three", "b", 3_000, 300, 30).await;
    add(&mut service, "three", "c", 4_000, 300, 30).await;
    let path = "/v1/experiments/three/results?analysis=fixed&metrics=conversion_rate";
    let pooled = service.get(path).await.ok();
    assert_eq!(of(&pooled["health"]["checks"], "srm")["level"], "fail");

    let all = [("control", "1"), ("b", "1"), ("c", "1")];
    add_phases(&mut service, "three", &[(FRIDAY, &all[..2]), (SATURDAY, &all)]).await;
    let answer = service.get(path).await.ok();
    let srm = of(&answer["health"]["checks"], "srm");
    assert_eq!((&srm["level"], &srm["p_value"], &srm["dof"]), (&json!("ok"), &json!(1.0), &json!(3)), "{srm}");
    assert_eq!((&srm["strata"][0]["expected"][2], &srm["strata"][1]["users"]), (&json!(null), &json!([300, 300, 300])), "{srm}");
    let comparisons = &of(&answer["metrics"], "conversion_rate")["comparisons"];
    // c is compared with the control's 300 of its time, b with all.
    let ids = ["b", "c"].map(|name| variant_id(experiment_id(PROJECT, "three"), name).to_string());
    let estimate = |id: &str| {
        let found = comparisons.as_array().expect("comparisons").iter().find(|found| found["variant_id"] == id).expect("one");
        found["absolute"]["estimate"].as_f64().expect("a number")
    };
    assert!((estimate(&ids[1])).abs() < 1e-12, "{comparisons}");
    assert!((estimate(&ids[0]) + 0.1 * 2_000.0 / 2_600.0).abs() < 1e-12, "{comparisons}");
    let warnings = answer["warnings"].as_array().expect("warnings");
    let left_out = warnings.iter().find(|warning| warning["code"] == "stratum_left_out").expect("is told");
    assert!(
        left_out["message"].as_str().is_some_and(|text| text.starts_with("1000 users came while control or c")),
        "{left_out}"
    );
}

/// A pause, and a restart with the same shares, change no number.
#[tokio::test]
async fn a_pause_splits_nothing() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "paused", "", &[("control", "1"), ("b", "1")]).await;
    add(&mut service, "paused", "control", 0, 500, 50).await;
    add(&mut service, "paused", "b", 500, 510, 80).await;
    all_came_on_friday(&mut service).await;
    add(&mut service, "paused", "control", 2_000, 400, 40).await;
    add(&mut service, "paused", "b", 3_000, 380, 60).await;
    let path = "/v1/experiments/paused/results";
    let before = service.get(path).await.ok();
    let half = [("control", "5"), ("b", "5")];
    let phases = [("2026-01-01T00:00:00Z", &half[..]), ("2026-02-28T12:00:00Z", &[]), (SATURDAY, &half[..])];
    add_phases(&mut service, "paused", &phases).await;
    let after = service.get(path).await.ok();
    assert_eq!((&before["metrics"], &before["health"]), (&after["metrics"], &after["health"]));
    assert_eq!(after["experiment"]["phases"][1]["state"], "paused");
    assert_ne!(before["settings_hash"], after["settings_hash"]);
}
