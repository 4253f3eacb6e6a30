//! Experiments whose analysis begins with something that users do after they were exposed. From rows in Postgres to the answer over HTTP.

use ::catalogue::experiments::set_trigger;
use ::catalogue::{Trigger, find_project};
use serde_json::{Value, json};

use crate::support::{Event, LOG, PROJECT, Service, USER_SQL, add_conversions, add_experiment, add_users, check_number};

async fn begin_with(service: &mut Service, experiment: &str, trigger: Option<Value>) {
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    let trigger = trigger.map(|trigger| Trigger::parse(&trigger.to_string()).expect("accepted"));
    set_trigger(&mut service.rows, &project, experiment, trigger.as_ref()).await.expect("set");
}

/// Stores an engagement event of each of the users `from..from + users`, so many seconds after 2026-03-01.
async fn add_events(service: &mut Service, name: &str, (from, users): (u64, u64), second: f64) {
    let time = format!("timestamptz '2026-03-01T00:00:00Z' + interval '{second} seconds'");
    service
        .run(&format!(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type, device_type)
             SELECT '{PROJECT}', gen_random_uuid(), {USER_SQL}, {time}, {time}, {time}, false, false, '{LOG}', 0, 0, '{name}', 'mobile'
             FROM generate_series({from}, {}) i",
            from + users - 1
        ))
        .await;
}

/// Conversions so many minutes after the exposure, which `add_conversions` has an hour after it.
async fn buy(service: &mut Service, variant: &str, users: (u64, u64), minutes: i64) {
    add_conversions(&mut service.rows, (PROJECT, "cart", variant), "buy", users, ("10", "'EUR'")).await;
    let (first, last) = (crate::support::user(users.0), crate::support::user(users.0 + users.1 - 1));
    service
        .run(&format!(
            "UPDATE conversion_attribution SET conversion_time = '2026-03-01T00:00:00Z'::timestamptz + interval '{minutes} minutes'
             WHERE user_id BETWEEN '{first}' AND '{last}' AND conversion_time = '2026-03-01T01:00:00Z'"
        ))
        .await;
}

fn of<'a>(list: &'a Value, id: &str) -> &'a Value {
    list.as_array().expect("a list").iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {list}"))
}

/// 200 of 4,000 users of each variant see the cart two hours after the exposure; 40 and 70 of them buy afterwards. What was bought before, or by those
/// who never saw it, is not the cart's.
#[tokio::test]
async fn an_analysis_begins_with_the_trigger_and_says_what_it_is_among_all() {
    let mut service = Service::start().await;
    let columns = "conversion_window_days = 2";
    add_experiment(&mut service.rows, PROJECT, "cart", columns, &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "cart", "control", 0, 4_000).await;
    add_users(&mut service.rows, PROJECT, "cart", "b", 10_000, 4_000).await;
    for (variant, from, buyers) in [("control", 0, 40), ("b", 10_000, 70)] {
        add_events(&mut service, "cart", (from, 200), 7_200.0).await;
        // Another name, and the cart before the exposure, begin nothing.
        add_events(&mut service, "home", (from + 3_000, 100), 60.0).await;
        add_events(&mut service, "cart", (from + 3_200, 100), -60.0).await;
        buy(&mut service, variant, (from, buyers), 130).await;
        buy(&mut service, variant, (from + 100, 50), 90).await;
        buy(&mut service, variant, (from + 1_000, 80), 60).await;
    }
    // The window is over 48 hours after the cart, which is 50 after the exposure: an order in between is attributed to nothing.
    for (user, second) in [(10_080, 49.5 * 3_600.0), (10_081, 50.5 * 3_600.0)] {
        let more = [("conversion_value", "10"), ("currency", "'EUR'")];
        Event { more: &more, ..Event::new("conversion", "buy", user, second) }.store(&mut service.rows).await;
    }
    service.run("UPDATE project_progress SET event_time = '2026-03-08T00:00:00Z'").await;
    begin_with(&mut service, "cart", Some(json!({"kind": "engagement", "events": ["cart"], "where": "device_type = 'mobile'"})))
        .await;
    let path = "/v1/experiments/cart/results?analysis=fixed&metrics=conversion_rate,value_per_user";
    let answer = service.get(path).await.ok();
    assert_eq!(answer["experiment"]["trigger"]["events"], json!(["cart"]));
    assert_eq!((&answer["population"]["exposed_users"], &answer["population"]["analysed_users"]), (&json!(8_000), &json!(400)));
    assert_eq!(answer["population"]["excluded"]["not_triggered"], 7_600);
    let rate = of(&answer["metrics"], "conversion_rate");
    let shares: Vec<_> = rate["arms"].as_array().expect("arms").iter().map(|arm| (&arm["users"], &arm["numerator"])).collect();
    assert_eq!(shares, [(&json!(200), &json!(40)), (&json!(200), &json!(71))]);
    let found = &rate["comparisons"][0];
    check_number(&found["absolute"]["estimate"], 31.0 / 200.0);
    assert_eq!(found["verdict"], "won");
    let diluted = &found["diluted"];
    check_number(&diluted["share"], 0.05);
    check_number(&diluted["estimate"], 31.0 / 4_000.0);
    // All of the control: 40 after the cart and 80 who never saw it.
    check_number(&diluted["lift"], 31.0 / 120.0);
    let value = of(&answer["metrics"], "value_per_user");
    check_number(&value["arms"][1]["mean"], 710.0 / 200.0);
    check_number(&value["comparisons"][0]["diluted"]["lift"], 310.0 / 1_200.0);
    let complement = of(&answer["health"]["checks"], "trigger_complement");
    assert_eq!((&complement["level"], &complement["status"]), (&json!("ok"), &json!("ok")));
    assert_eq!(complement["triggered"], json!([0.05, 0.05]));

    // Before anybody saw the cart nobody's analysis had begun.
    let early = service.get(&format!("{path}&as_of=2026-03-01T01:59:59Z")).await.ok();
    assert_eq!((&early["status"], &early["population"]["excluded"]["not_triggered"]), (&json!("no_data"), &json!(8_000)));
    let later = service.get(&format!("{path}&as_of=2026-03-01T02:05:00Z")).await.ok();
    assert_eq!(of(&later["metrics"], "conversion_rate")["arms"][0]["numerator"], 0);

    // The variant changes what users do who never came to the cart.
    buy(&mut service, "b", (11_200, 120), 60).await;
    let answer = service.get(path).await.ok();
    let complement = of(&answer["health"]["checks"], "trigger_complement");
    assert_eq!((&complement["level"], &complement["metric"]), (&json!("fail"), &json!("conversion_rate")));
    assert_eq!(answer["decision"]["status"], "unhealthy");

    // Without the trigger everybody counts, from the exposure on.
    begin_with(&mut service, "cart", None).await;
    let answer = service.get(path).await.ok();
    assert_eq!((answer["experiment"].get("trigger"), &answer["population"]["analysed_users"]), (None, &json!(8_000)));
    assert_eq!(of(&answer["metrics"], "conversion_rate")["arms"][0]["numerator"], 40 + 50 + 80);
    assert_eq!(of(&answer["metrics"], "conversion_rate")["comparisons"][0].get("diluted"), None);
}

/// The treatment itself leads users to the cart: those who come are other ones, and the split says so.
#[tokio::test]
async fn a_trigger_that_the_variant_causes_is_found_out() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "cart", "", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "cart", "control", 0, 4_000).await;
    add_users(&mut service.rows, PROJECT, "cart", "b", 10_000, 4_000).await;
    add_events(&mut service, "cart", (0, 1_000), 60.0).await;
    add_events(&mut service, "cart", (10_000, 1_300), 60.0).await;
    begin_with(&mut service, "cart", Some(json!({"kind": "engagement", "events": ["cart"]}))).await;
    let answer = service.get("/v1/experiments/cart/results").await.ok();
    let srm = of(&answer["health"]["checks"], "srm");
    // (1,000 - 1,150)^2 / 1,150 of each variant.
    check_number(&srm["statistic"], 2.0 * 150.0 * 150.0 / 1_150.0);
    assert_eq!((&srm["level"], &answer["decision"]["status"]), (&json!("fail"), &json!("unhealthy")));
    assert_eq!(of(&answer["health"]["checks"], "trigger_complement")["triggered"], json!([0.25, 0.325]));
}
