//! Generated experiments: what an answer says in one place it says everywhere, and what a check proved wrong is used nowhere.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use query::experiment::measure::measure;
use query::experiment::read::catalogue::{Aggregation, Beside, Configured, Role};
use query::experiment::read::cohort::{Cohort, DAY_US, Row, Rows, Touches, Users};
use query::experiment::read::experiment::{Experiment, Phase, PhaseWeight, Variant};
use query::experiment::read::traits::{Trait, TraitQuery};
use query::experiment::read::{Catalogue, Read};
use query::experiment::request::{Analysis, Correction, Request};
use query::experiment::say::say;
use query::experiment::test::test;
use query::source::property::Property;
use query::source::snapshot::{AsOf, DataVersion};
use serde_json::Value;
use statistics::false_alarms::Random;
use statistics::moments::Moments;
use uuid::Uuid;

const DAYS: i64 = 6;

/// One experiment to be made up.
#[derive(Clone, Debug)]
struct Made {
    users: Vec<u64>,
    rates: Vec<f64>,
    /// What a user spends before exposure, by variant; 0 for nothing.
    before: Vec<u64>,
    /// One in so many users of each variant saw another one, too.
    mixed: Vec<u64>,
    target: Option<i32>,
    margin: f64,
    /// Whether the shares are others from the fourth day on.
    has_phases: bool,
    seed: u64,
}

fn made() -> impl Strategy<Value = Made> {
    let arm =
        (2u64..900, 0usize..8, prop::sample::select(vec![0u64, 0, 5, 5, 50]), prop::sample::select(vec![0u64, 0, 0, 300, 40]));
    let target = prop::option::of(prop::sample::select(vec![100, 800, 5_000]));
    let whole = (prop::collection::vec(arm, 2..4), target, 0.0..0.5_f64, any::<bool>(), any::<u64>());
    whole.prop_map(|(arms, target, margin, has_phases, seed)| Made {
        users: arms.iter().map(|arm| arm.0).collect(),
        rates: arms.iter().map(|arm| [0.0, 0.0, 0.004, 0.02, 0.1, 0.14, 0.5, 1.0][arm.1]).collect(),
        before: arms.iter().map(|arm| arm.2).collect(),
        mixed: arms.iter().map(|arm| arm.3).collect(),
        target,
        margin,
        has_phases,
        seed,
    })
}

/// One phase, or two, in the second of which the variants have uneven shares.
fn phases(made: &Made) -> Vec<Phase> {
    let phase = |number: usize| {
        let weight = |place: usize| PhaseWeight {
            variant_id: Uuid::from_u128(place as u128),
            weight: Some(made.users[place] as f64 * (1 + number * place) as f64),
        };
        Phase {
            phase: number as i32 + 1,
            state: "assigning".to_owned(),
            started_us: Some(number as i64 * 3 * DAY_US),
            weights: (0..made.users.len()).map(weight).collect(),
            ..Phase::default()
        }
    };
    (0..if made.has_phases { 2 } else { 1 }).map(phase).collect()
}

/// Makes the rows up: users over some days, some of whom buy an hour later.
fn read(made: &Made) -> Read {
    let mut random = Random(made.seed);
    let (mut users, mut after, mut before) = (Users::default(), Vec::new(), Vec::new());
    for (arm, count) in made.users.iter().enumerate() {
        for number in 0..*count {
            let user = users.len() as u32;
            let exposed = (random.bits() % DAYS as u64) as i64 * DAY_US + 1_000_000;
            users.ids.push(u128::from(user).to_be_bytes());
            users.arms.push(arm as u32);
            users.exposed.push(exposed);
            users.is_mixed.push(made.mixed[arm] > 0 && number % made.mixed[arm] == 0);
            users.impressions.push(1);
            let taste = 1 + random.bits() % 10;
            let spent = |amount: u64| Some(i128::from(amount) * Moments::SCALE);
            let row = |time: i64, amount: u64| Row { time, value: spent(amount), confidence: 100, ..Row::default() };
            if random.unit() < made.rates[arm] {
                after.push((user, row(exposed + 3_600_000_000, taste)));
            }
            if made.before[arm] > 0 {
                before.push((user, row(exposed - 2 * DAY_US, made.before[arm] + taste)));
            }
        }
    }
    let count = users.len();
    let cohort = Cohort {
        users,
        names: vec!["buy".to_owned()],
        currencies: vec![Some("EUR".to_owned())],
        after: Rows::new(count, after),
        before: Rows::new(count, before),
        touches: Touches::new(),
        ..Cohort::default()
    };
    let metric = |name: &str, aggregation, role, wants_more| Configured {
        name: name.to_owned(),
        conversion_type: None,
        aggregation,
        wants_more,
        role,
        margin: (role == Role::Guardrail).then_some(made.margin),
        window_days: None,
        cap: None,
        cap_percentile: None,
    };
    let variant = |place: usize| Variant {
        id: Uuid::from_u128(place as u128),
        name: ["control", "b", "c"][place].to_owned(),
        is_control: place == 0,
        weight: Some(made.users[place] as f64),
        ..Variant::default()
    };
    let catalogue = Catalogue {
        experiment: Experiment {
            status: "running".to_owned(),
            confidence_level: 0.95,
            alpha: 0.05,
            minimum_detectable_effect: 0.05,
            target_sample_size: made.target,
            conversion_window_days: 1,
            attribution_method: "first_exposure".to_owned(),
            control_variant_id: Some(Uuid::nil()),
            phases: phases(made),
            ..Experiment::default()
        },
        variants: (0..made.users.len()).map(variant).collect(),
        metrics: vec![
            metric("rate", Aggregation::ConversionRate, Role::Primary, true),
            metric("value", Aggregation::ValuePerUser, Role::Secondary, true),
            metric("less is more", Aggregation::ConversionRate, Role::Guardrail, false),
        ],
        beside: Beside { impressions: count as u64, ..Beside::default() },
        internal: None,
    };
    let as_of = AsOf { event_time: Some("1970-01-09T00:00:00Z".to_owned()), ..AsOf::default() };
    Read {
        catalogue,
        cohort: Arc::new(cohort),
        unknown_names: Vec::new(),
        as_of,
        version: DataVersion::default(),
        catalogue_took: Duration::ZERO,
    }
}

fn answer(made: &Made, request: &Request) -> Value {
    let read = read(made);
    let measured = measure(&read, request).expect("measured");
    let tested = test(&measured, request).expect("tested");
    serde_json::to_value(say(&read, &measured, tested, request).expect("said")).expect("JSON")
}

/// The effect of a sentence and the ends of its interval, in the terms that it speaks in.
fn said(plain: &str) -> (Option<f64>, Option<(f64, f64)>) {
    let number = |text: &str| -> Option<f64> {
        let text = text.trim_start();
        let end = text
            .char_indices()
            .find(|(place, letter)| !(letter.is_ascii_digit() || *letter == '.' || (*place == 0 && "+-".contains(*letter))));
        text[..end.map_or(text.len(), |(place, _)| place)].parse().ok()
    };
    let effect = plain.split_once(" in control: ").and_then(|(_, rest)| number(rest));
    let interval = plain.split_once("95% CI").and_then(|(_, rest)| {
        let rest = rest.trim_start_matches(", adjusted for earlier behaviour,");
        let (low, high) = rest.split_once(" to ")?;
        Some((number(low)?, number(high)?))
    });
    (effect, interval)
}

fn list<'a>(value: &'a Value, member: &str) -> &'a [Value] {
    value[member].as_array().map_or(&[], Vec::as_slice)
}

fn agrees(answer: &Value, analysis: Analysis) -> Result<(), TestCaseError> {
    let check = |id: &str| list(&answer["health"], "checks").iter().find(|check| check["id"] == id).expect("a check").clone();
    for metric in list(answer, "metrics") {
        let wants_more = metric["direction"] == "increase";
        for found in list(metric, "comparisons") {
            let verdict = found["verdict"].as_str().expect("a verdict");
            let plain = found["plain"].as_str().expect("a sentence");
            let is_decided = ["won", "lost"].contains(&verdict);
            prop_assert_eq!(found["significant"].as_bool(), Some(is_decided), "{}", found);
            prop_assert_eq!(plain.contains("significantly better"), verdict == "won", "{}", plain);
            prop_assert_eq!(plain.contains("significantly worse"), verdict == "lost", "{}", plain);
            if let Some(adjusted) = found.get("adjusted") {
                prop_assert_eq!(adjusted["significant"].as_bool(), Some(is_decided), "{}", found);
            }
            let (effect, interval) = said(plain);
            if is_decided {
                let is_up = (verdict == "won") == wants_more;
                prop_assert!(effect.is_some_and(|effect| (effect > 0.0) == is_up), "{}", plain);
                if let Some((low, high)) = interval {
                    prop_assert!(if is_up { low >= 0.0 } else { high <= 0.0 }, "{}", plain);
                }
            }
            if let (Some(effect), Some((low, high))) = (effect, interval) {
                prop_assert!(low <= effect && effect <= high, "{}", plain);
            }
            if analysis == Analysis::GroupSequential && is_decided && metric["role"] != "guardrail" {
                let ends = &found["adjusted"]["ci_absolute"];
                prop_assert_eq!(ends, &found["sequential"]["ci"], "{}", found);
                let (low, high) = (ends[0].as_f64().expect("an end"), ends[1].as_f64().expect("an end"));
                prop_assert!(low > 0.0 || high < 0.0, "{}", found);
            }
            if let Some(guardrail) = found.get("guardrail") {
                prop_assert_eq!(guardrail["state"] == "harmed", verdict == "lost", "{}", found);
            }
            let balance = check("pre_exposure_balance");
            if balance["status"] == "mismatch" && balance["metric"] == metric["id"] {
                // What has no variance has nothing to adjust either.
                prop_assert_ne!(&found["cuped"]["applied"], true, "{}", found);
                prop_assert!(!plain.contains("adjusted"), "{}", plain);
            }
        }
    }
    if check("exclusion_bias")["level"] == "fail" {
        prop_assert_eq!(&answer["population"]["excluded"]["multi_exposed"], 0);
    }
    decision_agrees(answer)
}

fn decision_agrees(answer: &Value) -> Result<(), TestCaseError> {
    let decision = &answer["decision"];
    let status = decision["status"].as_str().unwrap_or("none");
    let of = |role: &str| list(answer, "metrics").iter().filter(|metric| metric["role"] == role).collect::<Vec<_>>();
    let arms = list(answer, "variants").len() - 1;
    let is_lost = |arm: usize| {
        let goals = of("primary").iter().any(|metric| metric["comparisons"][arm]["verdict"] == "lost");
        goals || of("guardrail").iter().any(|metric| metric["comparisons"][arm]["guardrail"]["state"] == "harmed")
    };
    match status {
        "ship-now" => {
            let arm = (0..arms).find(|arm| list(answer, "variants")[arm + 1]["id"] == decision["variant_id"]).expect("a variant");
            prop_assert!(
                !is_lost(arm) && of("primary").iter().all(|metric| metric["comparisons"][arm]["verdict"] == "won"),
                "{}",
                answer
            );
        }
        "rollback-now" => prop_assert!((0..arms).all(is_lost), "{}", answer),
        _ => {}
    }
    let facts = decision["why"].to_string();
    prop_assert!(!(["ship-now", "rollback-now"].contains(&status) && facts.contains("not enough")), "{}", facts);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn sentence_verdict_interval_and_decision_agree(made in made()) {
        for analysis in [Analysis::Fixed, Analysis::Sequential, Analysis::GroupSequential, Analysis::Hybrid] {
            for correction in [Correction::None, Correction::Holm] {
                let request = Request { analysis: Some(analysis), correction, ..Request::default() };
                agrees(&answer(&made, &request), analysis)?;
            }
        }
    }
}

/// Found once: on the second day nothing spoke against what users spent before, and the bound was crossed with it taken off.
#[test]
fn what_proved_wrong_later_adjusts_no_earlier_look() {
    let made = Made {
        users: vec![130, 14, 726],
        rates: vec![0.0, 0.0, 1.0],
        before: vec![5, 50, 5],
        mixed: vec![0, 0, 0],
        target: Some(100),
        margin: 0.0,
        has_phases: false,
        seed: 5_822_189_731_303_445_102,
    };
    let request = Request { analysis: Some(Analysis::GroupSequential), correction: Correction::None, ..Request::default() };
    agrees(&answer(&made, &request), Analysis::GroupSequential).expect("agrees");
}

/// 300 of 1,000 convert on the first day and nobody of the control; on the fourth day as many of the control do. No window has closed.
#[test]
fn what_was_called_on_a_day_is_called_when_it_has_faded() {
    let made = Made {
        users: vec![1_000, 1_000],
        rates: vec![0.0, 0.0],
        before: vec![0, 0],
        mixed: vec![0, 0],
        target: Some(100_000),
        margin: 0.0,
        has_phases: false,
        seed: 7,
    };
    let mut read = read(&made);
    read.catalogue.experiment.conversion_window_days = 30;
    let cohort = Arc::make_mut(&mut read.cohort);
    cohort.users.exposed.fill(1_000_000);
    let row = |time| Row { time, value: None, confidence: 100, ..Row::default() };
    let (first, fourth) = ((1_000..1_300).map(|user| (user, row(2_000_000))), (0..300).map(|user| (user, row(3 * DAY_US + 5))));
    cohort.after = Rows::new(2_000, first.chain(fourth).collect());
    let request = Request { analysis: Some(Analysis::GroupSequential), ..Request::default() };
    let measured = measure(&read, &request).expect("measured");
    let tested = test(&measured, &request).expect("tested");
    let answer = serde_json::to_value(say(&read, &measured, tested, &request).expect("said")).expect("JSON");
    let found = &answer["metrics"][0]["comparisons"][0];
    assert_eq!((&found["verdict"], &found["sequential"]["crossed_on"]), (&"won".into(), &"1970-01-01".into()), "{found}");
    assert_eq!(found["absolute"]["estimate"], 0.0, "today's estimate stands beside it");
}

/// Five properties of four values each that mean nothing, and, if there is an effect among those who have one value of a sixth, that one.
/// Returns what was found.
fn searched(seed: u64, has_effect: bool) -> Vec<(String, String)> {
    let made = Made {
        users: vec![1_500, 1_500],
        rates: vec![0.0, 0.0],
        before: vec![0, 0],
        mixed: vec![0, 0],
        target: None,
        margin: 0.0,
        has_phases: false,
        seed,
    };
    let mut read = read(&made);
    let mut random = Random(seed ^ 0x5eed);
    let cohort = Arc::make_mut(&mut read.cohort);
    let values: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let mut property = |name: usize| {
        let of: Vec<Option<u32>> = (0..3_000).map(|_| Some((random.bits() % 4) as u32)).collect();
        (TraitQuery::Explored(Property::Json(format!("p{name}"))), Trait::new(of, values.clone()))
    };
    cohort.traits = (0..6).map(&mut property).collect();
    let row =
        |user: u32, users: &Users| Row { time: users.exposed[user as usize] + 5, value: None, confidence: 100, ..Row::default() };
    let converts = |user: &u32| {
        let is_affected = has_effect && *user >= 1_500 && cohort.traits[5].1.of(*user as usize) == Some(0);
        // b is better for everybody alike, and much better for some.
        random.unit()
            < if is_affected {
                0.4
            } else if *user >= 1_500 {
                0.14
            } else {
                0.1
            }
    };
    let converted: Vec<u32> = (0..3_000).filter(converts).collect();
    cohort.after = Rows::new(3_000, converted.into_iter().map(|user| (user, row(user, &cohort.users))).collect());
    let request = Request { is_explored: true, ..Request::default() };
    let measured = measure(&read, &request).expect("measured");
    let tested = test(&measured, &request).expect("tested");
    let found = tested.exploration.expect("searched");
    assert_eq!((found.tests, found.dimensions.len()), (24, 6), "one primary metric");
    found.discoveries.into_iter().map(|found| (found.dimension, found.value.unwrap_or_default())).collect()
}

/// 400 searches where everybody is affected alike: one in twenty finds anything, give or take four standard errors. Where some are affected otherwise
/// they are found, and of what else is told as little is chance.
#[test]
fn what_is_searched_is_found_and_chance_is_rare() {
    let alarms = (0..400).filter(|seed| !searched(*seed, false).is_empty()).count();
    assert!(alarms <= 37, "{alarms} of 400 searches found something where nothing is");
    let found: Vec<Vec<(String, String)>> = (0..100).map(|seed| searched(1_000 + seed, true)).collect();
    let hits = found.iter().filter(|found| found.contains(&("properties.p5".to_owned(), "a".to_owned()))).count();
    assert!(hits >= 99, "{hits} of 100");
    let by_chance = |found: &Vec<(String, String)>| {
        let others = found.iter().filter(|(dimension, _)| dimension != "properties.p5").count();
        others as f64 / found.len().max(1) as f64
    };
    let share = found.iter().map(by_chance).sum::<f64>() / 100.0;
    assert!(share <= 0.1, "{share} of what was found is chance");
}

/// A variant that loses conversion after conversion, until none is left: once it lost it has lost.
#[test]
fn more_evidence_never_takes_a_verdict_back() {
    for (control, treatment) in [(400u64, 400u64), (900, 100), (100, 900), (600, 300)] {
        for analysis in [Analysis::Fixed, Analysis::Sequential, Analysis::GroupSequential, Analysis::Hybrid] {
            let mut has_lost = false;
            for converted in (0..=30u64.min(treatment)).rev() {
                let made = Made {
                    users: vec![control, treatment],
                    rates: vec![0.0, 0.0],
                    before: vec![0, 0],
                    mixed: vec![0, 0],
                    target: Some(500),
                    margin: 0.0,
                    has_phases: false,
                    seed: 7,
                };
                let mut read = read(&made);
                let cohort = Arc::make_mut(&mut read.cohort);
                // All on one day; one in five of the control converts.
                cohort.users.exposed.fill(1_000_000);
                let row = Row { time: 2_000_000, value: None, confidence: 100, ..Row::default() };
                let rows = (0..control / 5).chain(control..control + converted).map(|user| (user as u32, row));
                cohort.after = Rows::new(cohort.users.len(), rows.collect());
                let request = Request { analysis: Some(analysis), ..Request::default() };
                let measured = measure(&read, &request).expect("measured");
                let tested = test(&measured, &request).expect("tested");
                let answer = serde_json::to_value(say(&read, &measured, tested, &request).expect("said")).expect("JSON");
                let found = &answer["metrics"][0]["comparisons"][0];
                if treatment * (control / 5) > converted * control {
                    assert!(found["verdict"] == "lost" || !has_lost, "{control} {treatment} {converted} {analysis:?}: {found}");
                    has_lost |= found["verdict"] == "lost";
                }
            }
            assert!(has_lost, "{control} {treatment} {analysis:?}");
        }
    }
}
