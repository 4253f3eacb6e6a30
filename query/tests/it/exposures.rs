//! Experiments to which other events expose than impressions. From rows in Postgres to the answer over HTTP.

use ::catalogue::exposures::ExposureDefinition;
use ::catalogue::{find_project, versions};
use serde_json::{Value, json};

use crate::support::{Event, PROJECT, Service, add_conversions, add_experiment, add_users, experiment_id, user, variant_id};

const VIEWED: &str = r#"{"any_of": [
    {"kind": "engagement", "events": ["viewed"], "where": {"plan": ["pro"]}, "variant": {"property": "arm of {experiment}"}},
    {"kind": "campaign_event", "events": ["view"], "variant": {"constant": "b"}}]}"#;

/// Stores the exposure of a participant: as the event that the definition speaks of, at the time that participation has.
async fn expose(service: &mut Service, number: u64, (kind, name): (&str, &str), properties: &str, second: f64) {
    let id = format!("'{}'", user(1_000_000 + number));
    let (properties, more) = (format!("'{properties}'"), [("device_type", "'mobile'"), ("country_code", "'DE'")]);
    let event = Event::new(kind, name, number, second);
    let columns = [("metadata", properties.as_str()), more[0], more[1]];
    Event { more: &columns, ..event }.store(&mut service.rows).await;
    let table = if kind == "engagement" { "engagement_events" } else { "campaign_events" };
    let (user, time) = (user(number), format!("timestamptz '2026-03-01T00:00:00Z' + interval '{second} seconds'"));
    service.run(&format!("UPDATE {table} SET id = {id} WHERE user_id = '{user}' AND event_time = {time}")).await;
    service
        .run(&format!("UPDATE user_experiment_participation SET first_impression_id = {id} WHERE user_id = '{user}' AND first_exposure_date = {time}"))
        .await;
}

fn of<'a>(list: &'a Value, id: &str) -> &'a Value {
    list.as_array().expect("a list").iter().find(|one| one["id"] == id).unwrap_or_else(|| panic!("no {id} in {list}"))
}

/// Traits of the first exposure, and which variants users saw one after the other, are those of the events that exposed them.
#[tokio::test]
async fn what_exposed_users_is_read_where_they_were_exposed() {
    let mut service = Service::start().await;
    add_experiment(&mut service.rows, PROJECT, "cart", "conversion_window_days = 2", &[("control", "1"), ("b", "1")]).await;
    add_users(&mut service.rows, PROJECT, "cart", "control", 0, 40).await;
    add_users(&mut service.rows, PROJECT, "cart", "b", 100, 40).await;
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    let definition = ExposureDefinition::parse(VIEWED).expect("accepted");
    versions::define(&mut service.rows, &project, "viewed", &definition).await.expect("defined");
    service.run("UPDATE experiments SET exposure = 'viewed', exposure_version = 1 WHERE name = 'cart'").await;
    for number in 0..40 {
        let tier = if number < 10 { "gold" } else { "none" };
        let properties = |arm: &str| format!(r#"{{"plan": "pro", "arm of cart": "{arm}", "tier": "{tier}"}}"#);
        expose(&mut service, number, ("engagement", "viewed"), &properties("control"), 0.0).await;
        let kind = if number % 2 == 0 { ("engagement", "viewed") } else { ("campaign_event", "view") };
        expose(&mut service, 100 + number, kind, &properties("b"), 0.0).await;
    }
    add_conversions(&mut service.rows, (PROJECT, "cart", "control"), "buy", (0, 10), ("10", "'EUR'")).await;
    add_conversions(&mut service.rows, (PROJECT, "cart", "b"), "buy", (100, 20), ("10", "'EUR'")).await;
    let path = "/v1/experiments/cart/results?analysis=fixed&metrics=conversion_rate";
    let answer = service.get(path).await.ok();
    let exposure = &answer["experiment"]["exposure"];
    assert_eq!((&exposure["name"], &exposure["version"]), (&json!("viewed"), &json!(1)));
    assert_eq!(exposure["definition"]["any_of"][0]["where"], json!({"plan": "pro"}));
    assert_eq!(answer["population"]["analysed_users"], 80);
    assert_eq!(answer["population"]["excluded"].get("impressions_not_counted"), None, "impressions expose nobody here");

    // By a property and a column of what exposed: half of the variant b came by an event of a campaign.
    let answer = service.get(&format!("{path}&dimension=properties.tier")).await.ok();
    let values = of(&answer["metrics"], "conversion_rate")["dimensions"].as_array().expect("values").clone();
    let users =
        |value: &Value| value["arms"].as_array().expect("arms").iter().map(|arm| arm["users"].clone()).collect::<Vec<_>>();
    let counted: Vec<(Value, Vec<Value>)> = values.iter().map(|value| (value["value"].clone(), users(value))).collect();
    assert!(counted.contains(&(json!("gold"), vec![json!(10), json!(10)])), "{counted:?}");
    let answer = service.get(&format!("{path}&where=country%3D'DE'%20AND%20kind%3D'campaign_event'")).await.ok();
    assert_eq!(answer["population"]["analysed_users"], 20);

    // A user of both variants: credit goes to each event that exposed, in its order; not to one that the definition leaves out, nor to an impression.
    let (experiment, other) = (experiment_id(PROJECT, "cart"), variant_id(experiment_id(PROJECT, "cart"), "b"));
    let number = 3;
    let properties = r#"{"plan": "pro", "arm of cart": "b"}"#;
    expose(&mut service, number, ("engagement", "viewed"), properties, 600.0).await;
    expose(&mut service, number, ("campaign_event", "view"), "{}", 900.0).await;
    expose(&mut service, number, ("engagement", "viewed"), r#"{"plan": "free", "arm of cart": "control"}"#, 1_200.0).await;
    let (experiment_sql, other_sql) = (format!("'{experiment}'"), format!("'{other}'"));
    let named = [("experiment_id", experiment_sql.as_str()), ("variant_id", other_sql.as_str())];
    Event { more: &named, ..Event::new("impression", "", number, 1_500.0) }.store(&mut service.rows).await;
    service
        .run(&format!(
            "UPDATE user_experiment_participation SET total_impressions = 3, variants_seen = variants_seen || '{other}'::uuid
             WHERE user_id = '{}'",
            user(number)
        ))
        .await;
    let answer = service.get(&format!("{path}&population=first_exposure")).await.ok();
    let credit = |model: &str| -> Vec<Value> {
        let models = answer["attribution"]["models"].as_array().expect("models");
        let found = models.iter().find(|found| found["model"] == model).unwrap_or_else(|| panic!("no model {model}"));
        found["by_variant"].as_array().expect("variants").iter().map(|variant| variant["value"].clone()).collect()
    };
    assert_eq!(credit("first_touch"), ["100.00", "200.00"]);
    assert_eq!(credit("last_touch"), ["90.00", "210.00"]);
    assert_eq!(credit("linear"), ["93.34", "206.66"]);
}
