//! `weir power`: how many users an experiment needs, what it can see with those it has, and how long it takes.
//!
//! Without an experiment everything comes from the arguments. With one, the control's present mean and spread, the number
//! of variants, the confidence and the new users a day come from its results, where the arguments do not say otherwise.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use statistics::power::{self, POWER_DEFAULT};

use super::text::{Side, count, decimals, elements, number, percent, printable, table, text_of};
use super::{Endpoint, ListFormat, print_list};
use crate::cli::Globals;
use crate::client::segment;

/// Effects beside the one that is asked for: halves and doubles say how steep the price is.
const FACTORS: [f64; 3] = [0.5, 1.0, 2.0];

/// The arguments of `weir power`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Name or id of an experiment to take the numbers from
    experiment: Option<String>,
    /// The metric of the experiment [default: its first one]
    #[arg(long, requires = "experiment")]
    metric: Option<String>,
    /// The control's conversion rate, such as 0.1
    #[arg(long, value_name = "RATE", conflicts_with_all = ["mean", "std_dev"])]
    rate: Option<f64>,
    /// The control's mean per user, of a metric that is not a rate
    #[arg(long, value_name = "MEAN", requires = "std_dev", allow_negative_numbers = true)]
    mean: Option<f64>,
    /// Standard deviation of one user's value
    #[arg(long, value_name = "VALUE", requires = "mean")]
    std_dev: Option<f64>,
    /// Minimum detectable effect, relative, such as 0.05 for 5 % [default: the experiment's, else 0.05]
    #[arg(long, value_name = "EFFECT", allow_negative_numbers = true)]
    effect: Option<f64>,
    /// Statistical power: the chance to detect that effect if it exists
    #[arg(long, value_name = "CHANCE", default_value_t = POWER_DEFAULT)]
    power: f64,
    /// Guardrails that have to be shown safe, too: what may be missed is divided among them and the goal
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    guardrails: u32,
    /// Confidence level of the test [default: the experiment's, else 0.95]
    #[arg(long, value_name = "LEVEL")]
    confidence: Option<f64>,
    /// Variants, the control included, with equal shares [default: the experiment's, else 2]
    #[arg(long, value_name = "NUMBER")]
    variants: Option<usize>,
    /// New users a day over all variants [default: the experiment's of the last seven days]
    #[arg(long, value_name = "USERS")]
    users_per_day: Option<f64>,
    /// Users over all variants: also show which effect they could detect
    #[arg(long, value_name = "USERS")]
    users: Option<u64>,
    /// How the answer is printed
    #[arg(long, value_enum, default_value_t)]
    format: ListFormat,
    #[command(flatten)]
    endpoint: Endpoint,
}

/// What is planned with.
#[derive(Clone, Debug, PartialEq)]
struct Plan {
    design: power::Plan,
    effect: f64,
    users_per_day: Option<f64>,
    users: Option<u64>,
}

/// Asks, computes and prints.
pub(crate) async fn run(args: Args, globals: &Globals) -> anyhow::Result<()> {
    let answer = match &args.experiment {
        Some(experiment) => {
            let client = args.endpoint.client(globals)?;
            let path = format!("/v1/experiments/{}/results", segment(experiment));
            Some(client.get_json(&path).await?)
        }
        None => None,
    };
    let plan = plan(&args, answer.as_ref())?;
    print_list(&planned(&plan)?, args.format, render)
}

/// Puts together what is planned with: arguments first, then the experiment's numbers, then what is usual.
fn plan(args: &Args, answer: Option<&Value>) -> anyhow::Result<Plan> {
    let of = |pointer: &str| answer.and_then(|answer| answer.pointer(pointer)).and_then(number);
    let seen = answer.map(|answer| control(answer, args.metric.as_deref())).transpose()?;
    let (mean, variance, is_rate) = match (args.rate, args.mean, args.std_dev, seen) {
        (Some(rate), ..) => (rate, rate * (1.0 - rate), true),
        (None, Some(mean), Some(std_dev), _) => (mean, std_dev * std_dev, false),
        (.., Some(seen)) => seen,
        _ => bail!("nothing to plan with; give --rate, or --mean and --std-dev, or the name of an experiment"),
    };
    let check = |name: &str, value: f64, is_accepted: bool, accepted: &str| {
        if is_accepted && value.is_finite() {
            Ok(value)
        } else {
            Err(anyhow::anyhow!("{name}: found {value}; accepted: {accepted}"))
        }
    };
    if is_rate {
        check("--rate", mean, mean > 0.0 && mean < 1.0, "above 0 and below 1")?;
    }
    check("the control's mean", mean, mean != 0.0, "anything but 0, to which no effect is relative")?;
    check("the variance of a user", variance, variance > 0.0, "above 0; if all users are alike there is nothing to test")?;
    let effect = args.effect.or(of("/experiment/minimum_detectable_effect")).unwrap_or(0.05);
    check("--effect", effect, effect != 0.0, "a relative effect such as 0.05")?;
    let confidence = args.confidence.or(of("/experiment/confidence_level")).unwrap_or(0.95);
    check("--confidence", confidence, (0.5..1.0).contains(&confidence), "0.5 to below 1, such as 0.95")?;
    check("--power", args.power, args.power > 0.0 && args.power < 1.0, "above 0 and below 1, such as 0.8")?;
    let listed = answer.map(|answer| elements(answer, "/variants").len()).filter(|variants| *variants >= 2);
    let variants = args.variants.or(listed).unwrap_or(2);
    check("--variants", variants as f64, (2..=100).contains(&variants), "2 to 100")?;
    let users_per_day = args.users_per_day.or(of("/population/users_per_day")).filter(|users| *users > 0.0);
    check("--guardrails", f64::from(args.guardrails), args.guardrails <= 100, "0 to 100")?;
    let power = power::power_of_each(args.power, args.guardrails);
    let design = power::Plan { mean, variance, is_rate, variants, alpha: 1.0 - confidence, power };
    Ok(Plan { design, effect, users_per_day, users: args.users })
}

/// Returns mean, variance and whether it is a rate, of the control of one metric.
fn control(answer: &Value, name: Option<&str>) -> anyhow::Result<(f64, f64, bool)> {
    let metrics = elements(answer, "/metrics");
    let found = match name {
        Some(name) => metrics.iter().find(|metric| text_of(metric, "/id") == Some(name)),
        None => metrics.first(),
    };
    let known: Vec<&str> = metrics.iter().filter_map(|metric| text_of(metric, "/id")).take(20).collect();
    let found = found
        .with_context(|| format!("the experiment has no metric {:?}; it has: {}", name.unwrap_or("at all"), known.join(", ")))?;
    // The control comes first.
    let arm = elements(found, "/arms").first().context("the experiment has no variants yet")?;
    let member = |name: &str| arm.get(name).and_then(number);
    match (member("mean"), member("std_dev")) {
        (Some(mean), Some(std_dev)) => Ok((mean, std_dev * std_dev, text_of(found, "/type") == Some("proportion"))),
        _ => bail!("the control has too few users yet; give --rate, or --mean and --std-dev"),
    }
}

/// Computes the answer as JSON, which the table shows.
fn planned(plan: &Plan) -> anyhow::Result<Value> {
    let design = &plan.design;
    let mut rows = Vec::new();
    for factor in FACTORS {
        let effect = plan.effect * factor;
        let Some(needed) = design.needed(effect) else { continue };
        rows.push(json!({
            "effect": effect,
            "absolute_effect": effect * design.mean.abs(),
            "users_per_variant": needed.users.first(),
            "users": needed.total,
            "days": plan.users_per_day.map(|users| needed.total as f64 / users),
        }));
    }
    if rows.is_empty() {
        bail!("--effect: found {}; with a mean of {} no such effect can be", plan.effect, design.mean);
    }
    let seen = plan.users.map(|users| {
        let difference = design.detectable(users);
        json!({ "users": users, "effect": difference.map(|difference| difference / design.mean.abs()), "absolute_effect": difference })
    });
    Ok(json!({
        "mean": design.mean, "std_dev": design.variance.sqrt(), "type": if design.is_rate { "proportion" } else { "mean" },
        "confidence_level": 1.0 - design.alpha, "power": design.power, "variants": design.variants,
        "users_per_day": plan.users_per_day, "needed": rows, "detectable": seen,
    }))
}

fn render(answer: &Value) -> String {
    let member = |name: &str| answer.get(name).and_then(number);
    let is_rate = text_of(answer, "/type") == Some("proportion");
    let shown = |value: f64| if is_rate { percent(value) } else { decimals(value, 4) };
    let spread =
        if is_rate { String::new() } else { format!(", standard deviation {}", decimals(member("std_dev").unwrap_or(0.0), 4)) };
    let mut out = format!(
        "{} in the control{spread}, {:.0} % confidence, {:.0} % power, {} variants{}\n\n",
        member("mean").map(shown).unwrap_or_default(),
        member("confidence_level").unwrap_or(0.0) * 100.0,
        member("power").unwrap_or(0.0) * 100.0,
        member("variants").unwrap_or(0.0),
        member("users_per_day").map(|users| format!(", {} new users a day", decimals(users, 0))).unwrap_or_default(),
    );
    let row = |found: &Value| {
        let of = |name: &str| found.get(name).and_then(number);
        vec![
            of("effect").map(percent).unwrap_or_default(),
            of("absolute_effect").map(shown).unwrap_or_default(),
            found.get("users_per_variant").map(count).unwrap_or_default(),
            found.get("users").map(count).unwrap_or_default(),
            of("days").map(|days| format!("{:.1}", days)).unwrap_or_default(),
        ]
    };
    let columns = [
        ("effect", Side::Right),
        ("absolute", Side::Right),
        ("users per variant", Side::Right),
        ("users", Side::Right),
        ("days", Side::Right),
    ];
    out.push_str(&table(&columns, &elements(answer, "/needed").iter().map(row).collect::<Vec<_>>()));
    if let Some(seen) = answer.get("detectable").filter(|seen| seen.is_object()) {
        let effect = seen
            .get("effect")
            .and_then(number)
            .map_or_else(|| "nothing".to_owned(), |effect| format!("an effect of {}", percent(effect)));
        out.push_str(&format!(
            "\n{}\n",
            printable(&format!("{} users could find {effect}", seen.get("users").map(count).unwrap_or_default()))
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Alone {
            #[command(flatten)]
            args: Args,
        }
        let args = ["power"].iter().chain(args);
        <Alone as clap::Parser>::try_parse_from(args).expect("parses").args
    }

    #[test]
    fn sizes_are_the_published_ones() {
        let check = |args: &[&str], each: u64, users: u64| {
            let answer = planned(&plan(&parse(args), None).expect("a plan")).expect("planned");
            let found = &answer["needed"][1];
            assert_eq!((found["users_per_variant"].as_u64(), found["users"].as_u64()), (Some(each), Some(users)), "{args:?}");
        };
        // (1.96 + 0.84)^2 * (0.16 + 0.1875) / 0.05^2, and * (0.0475 + 0.09) / 0.05^2: the test that decides pools no variances.
        check(&["--rate", "0.2", "--effect", "0.25"], 1_091, 2_182);
        check(&["--rate", "0.05", "--effect", "1.0"], 432, 864);
        check(&["--mean", "5", "--std-dev", "5", "--effect", "-0.05"], 6_280, 12_560);
        // 2 * (1.96 + 0.84)^2 * 25 / 0.25^2 for each.
        check(&["--mean", "5", "--std-dev", "5", "--effect", "0.05"], 6_280, 12_560);
        let three = planned(&plan(&parse(&["--rate", "0.1", "--variants", "3"]), None).expect("a plan")).expect("planned");
        let two = planned(&plan(&parse(&["--rate", "0.1"]), None).expect("a plan")).expect("planned");
        assert!(three["needed"][1]["users_per_variant"].as_u64() > two["needed"][1]["users_per_variant"].as_u64());
    }

    #[test]
    fn an_experiment_gives_what_is_not_said() {
        let answer = json!({
            "experiment": { "minimum_detectable_effect": 0.1, "confidence_level": 0.9 },
            "population": { "users_per_day": 1000.0 }, "variants": [{}, {}, {}],
            "metrics": [{ "id": "rate", "type": "proportion", "arms": [{ "mean": 0.2, "std_dev": 0.4 }] },
                        { "id": "value", "type": "mean", "arms": [{ "mean": 3.0, "std_dev": 2.0 }] },
                        { "id": "new", "type": "mean", "arms": [{ "mean": null }] }],
        });
        let found = plan(&parse(&["e"]), Some(&answer)).expect("a plan");
        assert_eq!(
            (found.design.mean, found.design.is_rate, found.effect, found.design.variants, found.users_per_day),
            (0.2, true, 0.1, 3, Some(1000.0))
        );
        assert!((found.design.alpha - 0.1).abs() < 1e-12);
        let value =
            plan(&parse(&["e", "--metric", "value", "--effect", "0.02", "--variants", "2"]), Some(&answer)).expect("a plan");
        let design = value.design;
        assert_eq!((design.mean, design.variance, design.is_rate, value.effect, design.variants), (3.0, 4.0, false, 0.02, 2));
        let refused = |args: &[&str], part: &str| {
            let error = plan(&parse(args), Some(&answer)).expect_err("refused").to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&["e", "--metric", "none"], "it has: rate, value, new");
        refused(&["e", "--metric", "new"], "too few users yet");
        refused(&["e", "--rate", "1.5"], "--rate: found 1.5; accepted: above 0 and below 1");
        refused(&["e", "--effect", "0"], "--effect: found 0");
        refused(&["e", "--power", "1"], "--power: found 1");
        let nothing = plan(&parse(&[]), None).expect_err("refused").to_string();
        assert!(nothing.contains("give --rate"), "{nothing}");
    }

    #[test]
    fn the_table_says_users_and_days() {
        let args = ["--rate", "0.2", "--effect", "0.25", "--users-per-day", "100", "--users", "2182"];
        let found = render(&planned(&plan(&parse(&args), None).expect("a plan")).expect("planned"));
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines[0], "20.00 % in the control, 95 % confidence, 80 % power, 2 variants, 100 new users a day");
        assert_eq!(lines[2], " effect  absolute  users per variant  users  days");
        assert_eq!(lines[4], "25.00 %    5.00 %              1,091  2,182  21.8");
        assert!(found.contains("2,182 users could find an effect of 25.00 %"), "{found}");
    }
}
