//! Parts of an experiment that are asked for: whom a condition holds of, a range of time, and who is affected otherwise.

use ::catalogue::find_project;
use ::catalogue::project::set_internal;
use serde_json::{Value, json};

use crate::definitions::of;
use crate::support::{PROJECT, Service, add_conversions, add_experiment, add_first_impressions, add_users, check_number};

/// 4,000 users of each variant in four countries, of whom 10 % buy for 10 each; in b 20 % in one country, where it is 5 % less in all others.
async fn add_countries(service: &mut Service) {
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "countries", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "countries", "control", 0, 4_000).await;
    add_users(rows, PROJECT, "countries", "b", 4_000, 4_000).await;
    // The last 12 bits of a number count: country by i mod 4, buyers by i / 4.
    let of_all = |arm: u64, country: u64, buyers: u64| (0..buyers).map(move |n| arm * 4_000 + n * 4 + country);
    let buyers = (0..4).flat_map(|country| of_all(0, country, 100));
    let buyers = buyers.chain((0..4).flat_map(|country| of_all(1, country, if country == 2 { 200 } else { 50 })));
    for user in buyers.collect::<Vec<_>>() {
        let variant = if user < 4_000 { "control" } else { "b" };
        add_conversions(&mut service.rows, (PROJECT, "countries", variant), "buy", (user, 1), ("10", "'EUR'")).await;
    }
    let country = "(ARRAY['AT', 'CH', 'DE', 'FR'])[n % 4 + 1]";
    let properties = "json_build_object('plan', CASE WHEN n / 4 % 2 = 0 THEN 'free' ELSE 'pro' END, 'visit', n % 500)";
    add_first_impressions(service, &[("country_code", country), ("metadata", properties)]).await;
}

#[tokio::test]
async fn who_is_affected_otherwise_is_found_by_itself() {
    let mut service = Service::start().await;
    add_countries(&mut service).await;
    let answer = service.get("/v1/experiments/countries/results?explore=auto").await.ok();
    assert_eq!(answer["request_settings"]["explore"], "auto");
    let found = &answer["exploration"];
    assert_eq!(found["dimensions"], json!(["country", "properties.plan"]), "{found}");
    assert_eq!(found["left_out"], json!(["properties.visit"]), "500 values");
    assert_eq!(found["tests"], 6, "four countries and two plans of one primary metric");
    let discoveries = found["discoveries"].as_array().expect("discoveries");
    let first = &discoveries[0];
    assert_eq!((&first["dimension"], &first["value"]), (&json!("country"), &json!("DE")), "{found}");
    check_number(&first["estimate"], 0.1);
    check_number(&first["estimate_of_others"], -0.05);
    assert!(discoveries.iter().all(|found| found["dimension"] == "country"), "plans are alike: {discoveries:?}");
    let shrunk = first["shrunk"].as_f64().expect("a number");
    assert!(shrunk > 0.0 && shrunk < 0.1, "{shrunk}");
    // It is no verdict, and is not there unless it was asked for.
    let plain = service.get("/v1/experiments/countries/results").await.ok();
    assert_eq!((plain.get("exploration"), &plain["decision"]), (None, &answer["decision"]));
}

#[tokio::test]
async fn a_condition_says_who_counts() {
    let mut service = Service::start().await;
    add_countries(&mut service).await;
    let ask = |condition: &str| {
        let condition = percent_encoding::utf8_percent_encode(condition, percent_encoding::NON_ALPHANUMERIC);
        format!("/v1/experiments/countries/results?analysis=fixed&where={condition}")
    };
    let answer = service.get(&ask("country = 'DE'")).await.ok();
    assert_eq!(answer["population"]["analysed_users"], 2_000);
    assert_eq!(answer["population"]["excluded"]["filtered"], 6_000);
    assert_eq!(answer["request_settings"]["where"], "country = 'DE'");
    check_number(&of(&answer, "conversion_rate")["comparisons"][0]["absolute"]["estimate"], 0.1);
    let many = "lower(country) LIKE 'd%' OR NOT (json_get_int(properties, 'visit') + 1 BETWEEN 2 AND 1000) OR region IS NOT NULL";
    let answer = service.get(&ask(many)).await.ok();
    assert_eq!(answer["population"]["analysed_users"], 2_016, "16 of AT have the visit 0");
    let both = service.get(&ask("country IN ('DE', 'AT') AND json_as_text(properties, 'plan') = 'pro'")).await.ok();
    assert_eq!(both["population"]["analysed_users"], 2_000);
    // Split within those for whom it holds.
    let split = service.get(&format!("{}&dimension=country", ask("country != 'DE'"))).await.ok();
    let values = of(&split, "conversion_rate")["dimensions"].as_array().expect("values");
    assert_eq!(values.iter().filter_map(|value| value["value"].as_str()).collect::<Vec<_>>(), ["AT", "CH", "FR"]);
    for (condition, part) in [
        ("variant = 'b'", "a condition that is the same for all variants"),
        ("country", "is of type"),
        ("nowhere = 1", "nowhere"),
        ("(SELECT true)", "without subqueries"),
        // What grows is for the processes that are ended where they take too much.
        ("length(replace(country, 'E', 'EE')) > 0", "comparisons with AND, OR, NOT"),
        ("country || country = 'DEDE'", "comparisons with AND, OR, NOT"),
        ("regexp_like(country, 'D.*')", "comparisons with AND, OR, NOT"),
    ] {
        let refusal = service.get(&ask(condition)).await.refused(400, "bad_sql");
        assert_eq!(refusal["field"], "where", "{refusal}");
        assert!(refusal["message"].as_str().is_some_and(|message| message.contains(part)), "{refusal}");
    }
}

/// Own staff are counted, and take part in nothing, whatever else is asked for.
#[tokio::test]
async fn own_staff_are_left_out_and_counted() {
    let mut service = Service::start().await;
    add_countries(&mut service).await;
    let ask = "/v1/experiments/countries/results?analysis=fixed";
    let before = service.get(ask).await.ok();
    assert_eq!(before["population"]["excluded"].get("internal"), None);
    let project = find_project(&mut service.rows, "first").await.expect("a project");
    query::check_exposure("country = 'FR'").expect("accepted");
    set_internal(&mut service.rows, &project, Some("country = 'FR'")).await.expect("set");
    let answer = service.get(&format!("{ask}&dimension=country")).await.ok();
    assert_eq!(
        (&answer["population"]["excluded"]["internal"], &answer["population"]["analysed_users"]),
        (&json!(2_000), &json!(6_000))
    );
    let values = of(&answer, "conversion_rate")["dimensions"].as_array().expect("values");
    assert_eq!(values.iter().filter_map(|value| value["value"].as_str()).collect::<Vec<_>>(), ["AT", "CH", "DE"]);
    assert_ne!(
        answer["settings_hash"],
        service.get(&format!("{ask}&dimension=country&where=country!='FR'")).await.ok()["settings_hash"]
    );
    let both = service.get(&format!("{ask}&where=country%20IN%20('FR','DE')")).await.ok();
    assert_eq!(
        (&both["population"]["excluded"]["filtered"], &both["population"]["analysed_users"]),
        (&json!(4_000), &json!(2_000))
    );
    set_internal(&mut service.rows, &project, None).await.expect("set");
    assert_eq!(service.get(ask).await.ok()["population"], before["population"]);
    assert!(query::check_exposure("variant = 'b'").is_err());
}

#[tokio::test]
async fn a_range_of_time_describes_and_decides_nothing() {
    let mut service = Service::start().await;
    let rows = &mut service.rows;
    add_experiment(rows, PROJECT, "ranges", "", &[("control", "1"), ("b", "1")]).await;
    add_users(rows, PROJECT, "ranges", "control", 0, 1_000).await;
    add_users(rows, PROJECT, "ranges", "b", 1_000, 1_000).await;
    // An hour after the exposure, at 1:00.
    add_conversions(rows, (PROJECT, "ranges", "control"), "buy", (0, 100), ("10", "'EUR'")).await;
    add_conversions(rows, (PROJECT, "ranges", "b"), "buy", (1_000, 300), ("10", "'EUR'")).await;
    let sums = |answer: &Value| -> Vec<Value> {
        let arms = of(answer, "conversion_rate")["arms"].as_array().expect("arms").iter();
        arms.map(|arm| arm["numerator"].clone()).collect()
    };
    let whole = service.get("/v1/experiments/ranges/results").await.ok();
    assert_eq!(of(&whole, "conversion_rate")["comparisons"][0]["verdict"], "won");
    for (range, expected) in [
        ("counted_from=2026-03-01T01:00:00Z", [100, 300]),
        ("counted_until=2026-03-01T01:00:00Z", [0, 0]),
        ("counted_from=2026-03-01T00:30:00Z&counted_until=2026-03-01T01:00:00.000001Z", [100, 300]),
    ] {
        for engine in ["both", "bayesian"] {
            let answer = service.get(&format!("/v1/experiments/ranges/results?engine={engine}&{range}")).await.ok();
            assert_eq!(sums(&answer), expected, "{range}");
            assert_eq!((answer["status"].as_str(), answer.get("decision")), (Some("descriptive"), None));
            let found = &of(&answer, "conversion_rate")["comparisons"][0];
            let said = (&found["verdict"], &found["significant"], &found["decided_by"]);
            assert_eq!(said, (&json!("inconclusive"), &json!(false), &json!("descriptive")), "{found}");
            assert!(found["plain"].as_str().is_some_and(|plain| plain.contains("describes and decides nothing")), "{found}");
        }
    }
}
