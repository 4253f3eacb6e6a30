//! Reads the inputs of a case: exact numbers, and sums over the users of a variant.

use serde_json::Value;
use statistics::I256;
use statistics::comparison::{Observed, Sample};
use statistics::effect::{Alternative, Scale};
use statistics::moments::Moments;
use statistics::proportions::Count;
use statistics::quantile::Quantile;
use statistics::ratio::RatioSums;
use statistics::regression::JointSums;
use statistics::sums::Sums;

pub(crate) fn number(input: &Value, name: &str) -> f64 {
    optional(input, name).unwrap_or_else(|| panic!("no number {name} in {input}"))
}

/// A number, which may be written as a text; `None` where it is absent or null.
pub(crate) fn optional(input: &Value, name: &str) -> Option<f64> {
    plain(&input[name])
}

fn plain(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
}

pub(crate) fn whole(input: &Value, name: &str) -> u64 {
    let number = number(input, name);
    assert!(number >= 0.0 && number.fract() == 0.0, "{name} is no count in {input}");
    number as u64
}

pub(crate) fn list(input: &Value, name: &str) -> Vec<Value> {
    input[name].as_array().unwrap_or_else(|| panic!("no list {name} in {input}")).clone()
}

pub(crate) fn numbers(input: &Value, name: &str) -> Vec<f64> {
    list(input, name).iter().map(|value| plain(value).expect("a number")).collect()
}

pub(crate) fn wholes(value: &Value) -> Vec<u64> {
    value.as_array().expect("a list").iter().map(|value| value.as_u64().expect("a count")).collect()
}

/// Reads a decimal exactly, times 10^`decimals`.
pub(crate) fn scaled(value: &Value, decimals: usize) -> I256 {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (text, exponent) = match text.split_once(['e', 'E']) {
        Some((text, exponent)) => (text.to_owned(), exponent.parse::<i32>().expect("an exponent")),
        None => (text, 0),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    // Beyond these decimals the sums of this system hold nothing.
    let places = decimals as i32 + exponent;
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(places.max(0) as usize).collect();
    let whole = &whole[..whole.len().saturating_sub((-places).max(0) as usize)];
    let digits = format!("{whole}{fraction}");
    let digits = if digits.trim_start_matches('-').is_empty() { "0" } else { &digits };
    digits.parse().unwrap_or_else(|_| panic!("{value} is no decimal"))
}

pub(crate) fn millionths(value: &Value) -> i128 {
    i128::try_from(scaled(value, 6)).expect("128 bits")
}

/// Sums over the users of one quantity.
pub(crate) fn sums(arm: &Value) -> Sums {
    let users = whole(arm, "n");
    if arm["type"] == "proportion" {
        return Sums::Share(Count { users, converted: whole(arm, "sum") });
    }
    Sums::Values(Moments::from_parts(users, millionths(&arm["sum"]), scaled(&arm["sum_squares"], 12)))
}

pub(crate) fn count(arm: &Value) -> Count {
    Count { users: whole(arm, "n"), converted: whole(arm, "conversions") }
}

pub(crate) fn sample(arm: &Value) -> Sample {
    sums(arm).sample().expect("fits")
}

pub(crate) fn observed(arm: &Value) -> Observed {
    sample(arm).into()
}

pub(crate) fn ratio(arm: &Value) -> RatioSums {
    RatioSums { numerator: sums(&arm["m"]), denominator: sums(&arm["d"]), products: scaled(&arm["m_d_sum_of_products"], 12) }
}

/// What users did after and before their first exposure.
pub(crate) fn cuped(arm: &Value) -> JointSums {
    JointSums {
        quantities: vec![sums(&arm["post"]), sums(&arm["pre"])],
        products: vec![scaled(&arm["post_pre_sum_of_products"], 12)],
    }
}

/// Numerator and denominator after, then before.
pub(crate) fn cuped_ratio(arm: &Value) -> JointSums {
    let products = ["m_post_d_post", "m_post_m_pre", "m_pre_d_post", "m_post_d_pre", "d_post_d_pre", "m_pre_d_pre"];
    JointSums {
        quantities: ["m_post", "d_post", "m_pre", "d_pre"].map(|name| sums(&arm[name])).to_vec(),
        products: products.map(|name| scaled(&arm[name], 12)).to_vec(),
    }
}

/// Events at most the quantile over events, by user.
pub(crate) fn clusters(arm: &Value) -> RatioSums {
    let users = whole(arm, "n_clusters");
    let sums = |sum: &str, squares: &str| {
        let squares = scaled(&arm[squares], 12);
        let sum = millionths(&arm[sum]);
        Sums::Values(Moments::from_parts(users, sum, squares))
    };
    RatioSums {
        numerator: sums("main_sum", "main_sum_squares"),
        denominator: sums("denominator_sum", "denominator_sum_squares"),
        products: scaled(&arm["main_denominator_sum_product"], 12),
    }
}

pub(crate) fn quantile(arm: &Value) -> Quantile {
    Quantile {
        values: whole(arm, "n"),
        placed_for: whole(arm, "n_star"),
        level: number(arm, "nu"),
        estimate: optional(arm, "quantile_hat").unwrap_or(0.0),
        low: optional(arm, "quantile_lower").unwrap_or(0.0),
        high: optional(arm, "quantile_upper").unwrap_or(0.0),
    }
}

/// What the effect is measured in; relative where the case does not say.
pub(crate) fn scale(input: &Value) -> Scale {
    match input["difference"].as_str() {
        Some("absolute") => Scale::Absolute,
        Some("relative") | None => Scale::Relative,
        Some(other) => panic!("difference is {other}; relative and absolute are accepted"),
    }
}

pub(crate) fn alternative(input: &Value) -> Alternative {
    match input["alternative"].as_str() {
        Some("greater" | "larger") => Alternative::Greater,
        Some("lesser" | "less" | "smaller") => Alternative::Less,
        Some("two-sided" | "two_sided") | None => Alternative::TwoSided,
        Some(other) => panic!("alternative is {other}; greater and lesser are accepted"),
    }
}
