//! What each metric comes to: users' sums, the cap, the sums of the variants; and the values of a dimension.

use std::collections::HashMap;
use std::sync::Arc;

use super::catalogue::{Aggregation, Configured, default_metrics};
use super::image::Image;
use super::parallel;
use super::population::People;
use super::settings::{CAP_NEVER, CAP_PERCENTILE, CapRule};
use super::sums::{CAP_SUMS_MIN, Counted, Entry, Slots, Sums, filled, sums};
use crate::answer::{Experiment, Warning};
use statistics::capping::cap_value;
use statistics::moments::{Overflow, decimal_text};

/// Conversion names that get metrics of their own, at most.
const CONVERSION_NAMES_MAX: usize = 50;
/// Values of a dimension that are shown by themselves, at most.
const VALUES_MAX: usize = 20;

/// One metric, measured.
#[derive(Debug)]
pub struct Measured {
    /// What it counts.
    pub configured: Configured,
    /// The same in the numbers of the image.
    pub counted: Counted,
    /// Each user's sum.
    pub entries: Vec<Entry>,
    /// Each user's sum before the first exposure.
    pub before: Vec<Entry>,
    /// What sums are cut at.
    pub cap: Option<AppliedCap>,
    /// Who counts, in which variant.
    pub slots: Arc<Slots>,
    /// By variant.
    pub sums: Vec<Sums>,
}

/// What sums are cut at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedCap {
    /// In millionths.
    pub amount: i128,
    /// The percentile it comes from, in ten-thousandths of a percent; none if it was set.
    pub percentile: Option<u32>,
}

/// Measures metrics over the people asked for, on as many threads as there are processors: this is where all users' rows are
/// gone through.
/// # Errors
/// [`Overflow`].
pub fn measure_all(
    people: &People<'_>,
    metrics: Vec<Configured>,
    currency: Option<u32>,
    window_days: i32,
    rule: CapRule,
) -> Result<Vec<Measured>, Overflow> {
    let measured =
        parallel::map(metrics, people.image.after.all().len(), |metric| measure(people, metric, currency, window_days, rule));
    measured.into_iter().collect()
}

/// Measures one metric over the people asked for.
/// # Errors
/// [`Overflow`].
pub fn measure(
    people: &People<'_>,
    configured: Configured,
    currency: Option<u32>,
    window_days: i32,
    rule: CapRule,
) -> Result<Measured, Overflow> {
    let counted = Counted::new(&configured, people.image, currency, window_days);
    let slots = people.slots(counted.window_us());
    let (entries, before) = (counted.after(people.image)?, counted.before(people.image)?);
    let cap = choose_cap(&configured, rule, &entries, &slots);
    let sums = sums(&entries, &before, &slots, cap.map(|cap| cap.amount))?;
    Ok(Measured { configured, counted, entries, before, cap, slots, sums })
}

fn choose_cap(metric: &Configured, rule: CapRule, entries: &[Entry], slots: &Slots) -> Option<AppliedCap> {
    let is_value = metric.aggregation == Aggregation::ValuePerUser;
    if !is_value && metric.aggregation != Aggregation::CountPerUser {
        return None;
    }
    let at = match rule {
        CapRule::Off => None,
        CapRule::Percentile(at) => is_value.then_some(at),
        CapRule::Auto if metric.cap.is_some() => {
            return metric.cap.map(|amount| AppliedCap { amount, percentile: None });
        }
        CapRule::Auto => match metric.cap_percentile {
            Some(at) => Some(at),
            None => (is_value && filled(entries, slots) >= CAP_SUMS_MIN).then_some(CAP_PERCENTILE),
        },
    };
    let at = at.filter(|at| *at < CAP_NEVER)?;
    let counted = entries.iter().filter(|entry| slots.of(entry.user).is_some());
    cap_value(counted.map(|entry| entry.amount), f64::from(at) / 10_000.0)
        .map(|amount| AppliedCap { amount, percentile: Some(at) })
}

/// Returns the metrics to measure: the configured ones, or else the usual ones for all conversions and for each name.
pub fn chosen(configured: Vec<Configured>, people: &People<'_>, warnings: &mut Vec<Warning>) -> Vec<Configured> {
    if !configured.is_empty() {
        return configured;
    }
    let image = people.image;
    let slots = people.slots(people.window_us);
    let mut users = vec![0u64; image.names.len()];
    let mut last = vec![u32::MAX; image.names.len()];
    for user in image.after.filled().iter().filter(|user| slots.of(**user).is_some()) {
        for row in image.after.of(*user as usize) {
            let name = row.name as usize;
            if last[name] != *user {
                (last[name], users[name]) = (*user, users[name] + 1);
            }
        }
    }
    let mut names: Vec<usize> = (0..image.names.len()).filter(|name| users[*name] > 0).collect();
    if names.len() > CONVERSION_NAMES_MAX {
        let message = format!(
            "there are {} conversion names; the {CONVERSION_NAMES_MAX} with the most users are shown; configure metrics to choose",
            names.len()
        );
        warnings.push(Warning::new("conversion_names_cut", message));
        // Sorting is stable: with equal numbers the name decides.
        names.sort_by_key(|name| std::cmp::Reverse(users[*name]));
        names.truncate(CONVERSION_NAMES_MAX);
        names.sort_unstable();
    }
    let of_names = names.into_iter().flat_map(|name| default_metrics(Some(&image.names[name])));
    default_metrics(None).into_iter().chain(of_names).collect()
}

/// Returns the currency of value metrics and its number: the experiment's, else the only one seen, else the most used one.
/// Warns of what is left out. A number of none means that values of all currencies count, since there are none.
pub fn choose_currency(
    experiment: &Experiment,
    image: &Image,
    slots: &Slots,
    warnings: &mut Vec<Warning>,
) -> (Option<String>, Option<u32>) {
    let mut seen: Vec<(u64, i128)> = vec![(0, 0); image.currencies.len()];
    for user in image.after.filled().iter().filter(|user| slots.of(**user).is_some()) {
        for row in image.after.of(*user as usize) {
            if let Some(value) = row.value {
                let (conversions, sum) = &mut seen[row.currency as usize];
                *conversions += 1;
                *sum = sum.saturating_add(value);
            }
        }
    }
    let most = (0..seen.len()).filter(|number| seen[*number].0 > 0).min_by_key(|number| std::cmp::Reverse(seen[*number].0));
    let chosen = match &experiment.currency {
        Some(currency) => Some(currency.clone()),
        None => most.and_then(|number| image.currencies[number].clone()),
    };
    let kept = chosen.as_deref().unwrap_or("none");
    for (number, (conversions, sum)) in seen.iter().enumerate().filter(|(_, (conversions, _))| *conversions > 0) {
        if image.currencies[number] == chosen {
            continue;
        }
        let message = format!(
            "{conversions} conversions with a total value of {} {} are not in the value metrics, which are in the currency {kept}; \
             set the experiment's currency to choose another one",
            decimal_text(*sum),
            image.currencies[number].as_deref().unwrap_or("without a currency"),
        );
        warnings.push(Warning::new("other_currency", message));
    }
    let number = image.currencies.iter().position(|currency| *currency == chosen).map(|number| number as u32);
    // A currency that nobody used counts nothing.
    (chosen, number.or_else(|| most.map(|_| u32::MAX)))
}

/// The values of a dimension and who has them.
#[derive(Debug)]
pub struct Split {
    /// Most users first, then those without one, then the rest together.
    pub values: Vec<Value>,
    /// Slots `value * variants + variant`, by the experiment's own window.
    pub slots: Slots,
    /// The place of each user's value.
    pub places: Vec<u32>,
}

/// One value of a dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its text; none where it is not known.
    pub text: Option<String>,
    /// `value`, `unknown` or `other`.
    pub kind: &'static str,
}

/// Splits people by the image's dimension: the 20 values with the most users, the rest as `other`.
pub fn split(people: &People<'_>) -> Split {
    let image = people.image;
    let slots = people.slots(people.window_us);
    let mut users = vec![0u64; image.dimension_values.len()];
    let mut unknown = 0u64;
    for user in (0..image.users.len()).filter(|user| slots.of(*user as u32).is_some()) {
        match image.dimension.get(user).copied().flatten() {
            Some(value) => users[value as usize] += 1,
            None => unknown += 1,
        }
    }
    let mut order: Vec<usize> = (0..users.len()).filter(|value| users[*value] > 0).collect();
    order.sort_by_key(|value| std::cmp::Reverse(users[*value]));
    let has_other = order.len() > VALUES_MAX;
    order.truncate(VALUES_MAX);
    let place_of: HashMap<usize, u32> = order.iter().enumerate().map(|(place, value)| (*value, place as u32)).collect();
    let mut values: Vec<Value> =
        order.iter().map(|value| Value { text: Some(image.dimension_values[*value].clone()), kind: "value" }).collect();
    let unknown_place = values.len() as u32;
    values.extend((unknown > 0).then_some(Value { text: None, kind: "unknown" }));
    let other_place = values.len() as u32;
    values.extend(has_other.then_some(Value { text: Some("other".to_owned()), kind: "other" }));
    let place = |user: usize| match image.dimension.get(user).copied().flatten() {
        Some(value) => place_of.get(&(value as usize)).copied().unwrap_or(other_place),
        None => unknown_place,
    };
    let places: Vec<u32> = (0..image.users.len()).map(place).collect();
    let slots = people.slots_of_values(values.len(), people.window_us, |user| places[user] as usize);
    Split { values, slots, places }
}

#[cfg(test)]
mod tests {
    use super::super::image::{Row, Rows};
    use super::super::settings::{PopulationRule, Windows};
    use super::super::sums::tests::image;
    use super::*;

    fn people(image: &Image) -> People<'_> {
        People::by(image, 2, 0, (PopulationRule::ExcludeMulti, Windows::All), 100)
    }

    fn experiment(currency: Option<&str>) -> Experiment {
        Experiment { currency: currency.map(str::to_owned), ..Experiment::default() }
    }

    #[test]
    fn one_currency_is_kept_and_the_others_are_named() {
        let check =
            |own: Option<&str>, seen: &[(Option<&str>, u64, i128)], expected: (Option<&str>, Option<u32>), texts: &[&str]| {
                let mut image = image(&[(0, 0)], &[]);
                image.currencies = seen.iter().map(|(code, _, _)| code.map(str::to_owned)).collect();
                image.currencies.sort();
                let mut rows = Vec::new();
                for (code, conversions, sum) in seen {
                    let currency = image.currencies.iter().position(|known| known.as_deref() == *code).expect("known") as u32;
                    for part in 0..*conversions {
                        let value = Some(if part == 0 { *sum } else { 0 });
                        rows.push((0, Row { value, currency, ..Row::default() }));
                    }
                }
                image.after = Rows::new(1, rows);
                let mut warnings = Vec::new();
                let people = people(&image);
                let (code, number) = choose_currency(&experiment(own), &image, &people.slots(100), &mut warnings);
                assert_eq!((code.as_deref(), number), expected, "{seen:?}");
                assert_eq!(warnings.len(), texts.len(), "{warnings:?}");
                for (warning, text) in warnings.iter().zip(texts) {
                    assert!(warning.message.contains(text), "{warning:?}");
                }
            };
        check(None, &[], (None, None), &[]);
        check(None, &[(None, 3, 0)], (None, Some(0)), &[]);
        check(None, &[(Some("EUR"), 3, 0)], (Some("EUR"), Some(0)), &[]);
        let mixed = [(Some("EUR"), 3, 0), (Some("USD"), 2, 25_500_000), (None, 1, -1_000_000)];
        check(
            None,
            &mixed,
            (Some("EUR"), Some(1)),
            &["-1.00 without a currency", "2 conversions with a total value of 25.50 USD"],
        );
        check(Some("USD"), &mixed, (Some("USD"), Some(2)), &["without a currency", "0.00 EUR"]);
        check(Some("CHF"), &mixed[..1], (Some("CHF"), Some(u32::MAX)), &["the currency CHF"]);
    }

    #[test]
    fn caps_come_from_the_question_or_the_metric_or_the_number_of_sums() {
        let entries: Vec<Entry> =
            (1..=2_000).map(|user| Entry { user: user - 1, amount: i128::from(user), base: 0, has_converted: true }).collect();
        let slots = Slots::new(2_000, 1, |_| Some(0));
        let [rate, value] = default_metrics(None);
        let check = |metric: &Configured, rule: CapRule, sums: usize, expected: Option<(i128, Option<u32>)>| {
            let found = choose_cap(metric, rule, &entries[..sums], &slots);
            assert_eq!(found.map(|cap| (cap.amount, cap.percentile)), expected, "{metric:?} {rule:?} {sums}");
        };
        check(&rate, CapRule::Percentile(500_000), 2_000, None);
        check(&value, CapRule::Auto, 999, None);
        check(&value, CapRule::Auto, 1_000, Some((999, Some(999_000))));
        check(&value, CapRule::Off, 2_000, None);
        check(&value, CapRule::Percentile(500_000), 3, Some((2, Some(500_000))));
        check(&value, CapRule::Percentile(CAP_NEVER), 2_000, None);
        let set = Configured { cap: Some(7), ..value.clone() };
        check(&set, CapRule::Auto, 3, Some((7, None)));
        check(&set, CapRule::Off, 3, None);
        let own = Configured { cap_percentile: Some(500_000), ..value.clone() };
        check(&own, CapRule::Auto, 3, Some((2, Some(500_000))));
        let never = Configured { cap_percentile: Some(CAP_NEVER), ..value };
        check(&never, CapRule::Auto, 2_000, None);
    }

    #[test]
    fn the_most_used_values_stand_alone() {
        let users: Vec<(u32, i64)> = (0..100).map(|user| (user % 2, 0)).collect();
        let mut image = image(&users, &[]);
        image.dimension_values = (0..25).map(|value| format!("v{value:02}")).collect();
        // Value 24 has 28 users, the others 3 each; 0 users have none.
        image.dimension = (0..100).map(|user| Some(if user < 72 { user / 3 } else { 24 })).collect();
        image.dimension[0] = None;
        let people = people(&image);
        let split = split(&people);
        let texts: Vec<&str> = split.values.iter().map(|value| value.text.as_deref().unwrap_or("-")).collect();
        assert_eq!((texts.len(), texts[0], texts[1], texts[20], texts[21]), (22, "v24", "v01", "-", "other"));
        assert_eq!(split.slots.total(), 100, "nobody is lost");
        assert_eq!(split.slots.users()[..2], [14, 14]);
    }
}
