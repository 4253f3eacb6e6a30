//! What each metric comes to: users' sums, the cap, the sums of the variants; and the values of a dimension.

use std::collections::HashMap;
use std::sync::Arc;

use ::catalogue::definitions::PerUser;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::experiment::measure::counted::{CohortMetric, EventValues, LeftOut, UserSum};
use crate::experiment::measure::covariates::{Column, Covariates};
use crate::experiment::measure::days::{self, DaySums, Days};
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::population::Population;
use crate::experiment::measure::ripe;
use crate::experiment::measure::sample::{Sampled, sampled};
use crate::experiment::measure::sums::{CAP_SUMS_MIN, Sums, filled, sums};
use crate::experiment::read::catalogue::{Aggregation, Configured, Denominator, Role};
use crate::experiment::read::cohort::{Cohort, DAY_US, Rows};
use crate::experiment::read::experiment::Experiment;
use crate::experiment::read::sources::CovariateSource;
use crate::experiment::read::traits::{EXPLORED_VALUES_MAX, Trait, TraitQuery};
use crate::experiment::request::{CAP_NEVER, CAP_PERCENTILE, CapRule, Dimensions, Request, Windows};
use crate::http::error::{ApiError, Code};
use statistics::capping::cap_value;
use statistics::moments::Overflow;

/// Conversion names that get metrics of their own, at most.
pub const CONVERSION_NAMES_MAX: usize = 50;
/// Values of a dimension that are shown by themselves, at most.
const VALUES_MAX: usize = 20;
/// Users of a value that stands by itself where there are many values with few of them, at least.
const USERS_MIN: u64 = 100;

/// Covariates of one metric, at most.
const COVARIATES_MAX: usize = 10;
/// Values of a property that are covariates, at most.
const CATEGORIES_MAX: usize = 4;

/// One metric, measured.
#[derive(Debug)]
pub struct MeasuredMetric {
    /// What it counts.
    pub configured: Configured,
    /// The same in the numbers of the cohort.
    pub counted: CohortMetric,
    /// Each user's sum.
    pub entries: Vec<UserSum>,
    /// The values of single events, of a metric that is about these.
    pub values: Option<EventValues>,
    /// What is known of users before their first exposure, and may explain what they do after it.
    pub covariates: Covariates,
    /// What sums are cut at.
    pub cap: Option<AppliedCap>,
    /// Who counts, in which variant.
    pub groups: Arc<Groups>,
    /// By variant.
    pub sums: Vec<Sums>,
    /// The same without a cap.
    pub raw: Vec<Sums>,
    /// By variant, as tests take it.
    pub sampled: Vec<Sampled>,
    /// Conversions that a ratio leaves out of its numerator and its denominator.
    pub left_out: LeftOut,
    /// What the others come to, and all together, where a trigger begins the analysis.
    pub beside: Option<BesideTrigger>,
}

/// What is measured beside the users whose analysis a trigger has begun, by variant.
#[derive(Debug)]
pub struct BesideTrigger {
    /// Users who were exposed and never triggered, from their exposure on.
    pub untriggered: Vec<Sampled>,
    /// All users, those who triggered from then on.
    pub everybody: Vec<Sampled>,
}

impl MeasuredMetric {
    /// Returns the sums of the variants at the end of each day; none for a metric that is not additive over days.
    /// # Errors
    /// [`Overflow`].
    pub fn by_day(&self, population: &Population<'_>, days: Days) -> Result<Option<Vec<DaySums>>, Overflow> {
        let users = population.users_by_day(self.counted.window_us());
        self.until_each(population, (days, &users))
    }

    /// Returns what the variants' users had done by the end of each day of looks, whether their window had closed or not; none for a
    /// metric that has no such history.
    /// # Errors
    /// [`Overflow`].
    pub fn all_by_day(&self, population: &Population<'_>) -> Result<Option<Vec<DaySums>>, Overflow> {
        let Some(days) = population.look_days() else { return Ok(None) };
        let users = population.users_by_look_day(self.counted.window_us());
        self.until_each(population, (days, &users))
    }

    fn until_each(
        &self,
        population: &Population<'_>,
        (days, users): (Days, &[Vec<u64>]),
    ) -> Result<Option<Vec<DaySums>>, Overflow> {
        let counted = (&self.counted, &self.configured.aggregation);
        days::sums(counted, population.cohort, &self.covariates, &self.groups, (days, users), self.cap.map(|cap| cap.amount))
    }

    /// Returns the sums of the variants over the users whose window has closed, at the end of each day of looks; none for a metric
    /// that has no such history.
    /// # Errors
    /// [`Overflow`].
    pub fn ripe_by_day(&self, population: &Population<'_>) -> Result<Option<Vec<DaySums>>, Overflow> {
        let window_us = self.counted.window_us();
        let (Some(days), Some(ripeness)) = (population.look_days(), population.ripeness(window_us)) else { return Ok(None) };
        let cap = self.cap.map(|cap| cap.amount);
        let sums = (self.entries.as_slice(), &self.covariates);
        let aggregation = &self.configured.aggregation;
        let ends = (window_us, population.now);
        ripe::sums(aggregation, population.cohort, sums, &self.groups, (days, &ripeness), ends, cap)
    }

    /// Returns the sums of the variants of what users did within a day, over those for whom it is over, at the end of each day of looks;
    /// none for a metric whose window is no longer, or that has no such history.
    /// # Errors
    /// [`Overflow`].
    pub fn first_day(&self, population: &Population<'_>) -> Result<Option<Vec<DaySums>>, Overflow> {
        let Some(counted) = self.counted.shortened(DAY_US) else { return Ok(None) };
        let window_us = counted.window_us();
        let (Some(days), Some(ripeness)) = (population.look_days(), population.ripeness(window_us)) else { return Ok(None) };
        let entries = counted.after(population.cohort)?;
        let groups = population.groups_by(population.rule, Windows::All, window_us);
        let (cap, ends) = (self.cap.map(|cap| cap.amount), (window_us, population.now));
        let aggregation = &self.configured.aggregation;
        ripe::sums(aggregation, population.cohort, (&entries, &Covariates::default()), &groups, (days, &ripeness), ends, cap)
    }
}

/// Returns what users did before of the same, of a ratio both its parts; the cap holds before as after.
fn history(metric: &Configured, before: &[UserSum], cap: Option<i128>) -> Covariates {
    let aggregation = &metric.aggregation;
    let column = |name: String| Column { name, is_share: aggregation.is_share(), is_history: true };
    let cut = |amount: i128| cap.map_or(amount, |cap| amount.min(cap));
    // Nobody has impressions before the first one.
    let has_base = aggregation.is_ratio() && !matches!(aggregation, Aggregation::Ratio(_, Denominator::Impressions));
    let own = column(metric.name.clone());
    if has_base {
        let base = column(format!("{}.over", metric.name));
        return Covariates::default().with_amounts([own, base], before, |earlier| [cut(earlier.amount), earlier.base]);
    }
    Covariates::default().with_amounts([own], before, |earlier| [cut(earlier.amount)])
}

/// Adds what a definition takes off beside.
fn more(
    mut covariates: Covariates,
    population: &Population<'_>,
    (metric, groups): (&Configured, &Groups),
    all: &[Configured],
    how: &How,
) -> Result<Covariates, Overflow> {
    let (cohort, sources) = (population.cohort, metric.covariates());
    for source in &sources {
        let CovariateSource::Metric(name) = source else { continue };
        let Some(other) = all.iter().find(|other| other.name == *name && *name != metric.name) else { continue };
        let before = CohortMetric::new(other, cohort, how.currency, how.window_days).before(cohort)?;
        let column = Column { name: format!("metrics.{name}"), is_share: other.aggregation.is_share(), is_history: true };
        let cut = |amount: i128| other.cap.map_or(amount, |cap| amount.min(cap));
        covariates = covariates.with_amounts([column], &before, |earlier| [cut(earlier.amount)]);
    }
    for source in &sources {
        let left = COVARIATES_MAX.saturating_sub(covariates.count());
        match source {
            CovariateSource::Metric(_) => {}
            CovariateSource::History if left > 0 => {
                let did = (0..cohort.users.len()).map(|user| cohort.did_before(user).then_some(0));
                let column = Column { name: "has_history".to_owned(), is_share: true, is_history: true };
                covariates = covariates.with_values(vec![column], did);
            }
            CovariateSource::Exposure(property) => {
                let asked = TraitQuery::Value(Dimensions(vec![property.clone()]));
                let Some(known) = cohort.find_trait(&asked) else { continue };
                let most = most_used(known, groups);
                // Who has none of these values is who they are compared with.
                let shown: Vec<usize> = most.into_iter().skip(1).take(CATEGORIES_MAX.min(left)).collect();
                let column = |value: &usize| {
                    let name = format!("{} = {}", property.name(), known.values[*value]);
                    Column { name, is_share: true, is_history: false }
                };
                let columns = shown.iter().map(column).collect();
                let place_of: HashMap<usize, usize> = shown.iter().enumerate().map(|(place, value)| (*value, place)).collect();
                let place = |user: usize| place_of.get(&(known.of(user)? as usize)).copied();
                covariates = covariates.with_values(columns, (0..cohort.users.len()).map(place));
            }
            CovariateSource::History => {}
        }
    }
    Ok(covariates)
}

/// Returns the values that users have who belong somewhere, most used first.
fn most_used(known: &Trait, groups: &Groups) -> Vec<usize> {
    let mut users = vec![0u64; known.values.len()];
    for user in (0..groups.len()).filter(|user| groups.of(*user as u32).is_some()) {
        if let Some(value) = known.of(user) {
            users[value as usize] += 1;
        }
    }
    let mut order: Vec<usize> = (0..users.len()).filter(|value| users[*value] > 0).collect();
    // Sorting is stable: with equal numbers the name decides.
    order.sort_by_key(|value| std::cmp::Reverse(users[*value]));
    order
}

/// What sums are cut at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedCap {
    /// In millionths.
    pub amount: i128,
    /// The percentile it comes from, in ten-thousandths of a percent; none if it was set.
    pub percentile: Option<u32>,
}

/// Measures metrics over the population asked for, on all processors: this is where all users' rows are gone through.
/// # Errors
/// [`Overflow`].
pub fn measure_all(
    population: &Population<'_>,
    metrics: Vec<Configured>,
    all: &[Configured],
    how: &How,
) -> Result<Vec<MeasuredMetric>, Overflow> {
    metrics.into_par_iter().map(|metric| measure(population, metric, all, how)).collect()
}

/// How metrics are measured.
pub struct How {
    /// The number of the currency of values; none: all.
    pub currency: Option<u32>,
    /// The experiment's window.
    pub window_days: i32,
    /// How sums are capped.
    pub cap: CapRule,
    /// What users did in this time counts, half open, in microseconds since 1970.
    pub counted: (Option<i64>, Option<i64>),
}

/// Measures one metric over the population asked for; `all` are those that the experiment has.
/// # Errors
/// [`Overflow`].
pub fn measure(
    population: &Population<'_>,
    configured: Configured,
    all: &[Configured],
    how: &How,
) -> Result<MeasuredMetric, Overflow> {
    let counted = CohortMetric::new(&configured, population.cohort, how.currency, how.window_days).within(how.counted);
    let groups = population.groups(counted.window_us());
    let entries = counted.after(population.cohort)?;
    let cap = choose_cap(&configured, how.cap, &entries, &groups);
    let amount = cap.map(|cap| cap.amount);
    let own = history(&configured, &counted.before(population.cohort)?, amount);
    let covariates = more(own, population, (&configured, &groups), all, how)?;
    let of_cut = sums(&entries, &covariates, &groups, amount)?;
    let raw = if cap.is_some() { sums(&entries, &Covariates::default(), &groups, None)? } else { of_cut.clone() };
    let values = counted.values(population.cohort);
    let sampled = sampled(&configured, (&entries, values.as_ref()), &groups, amount, &of_cut)?;
    let left_out = counted.left_out(population.cohort, &groups);
    let of_others = |groups: &Groups| -> Result<Vec<Sampled>, Overflow> {
        let sums = sums(&entries, &Covariates::default(), groups, amount)?;
        self::sampled(&configured, (&entries, values.as_ref()), groups, amount, &sums)
    };
    let beside = match population.beside_trigger(counted.window_us()) {
        Some([untriggered, everybody]) => {
            Some(BesideTrigger { untriggered: of_others(&untriggered)?, everybody: of_others(&everybody)? })
        }
        None => None,
    };
    Ok(MeasuredMetric {
        configured,
        counted,
        entries,
        values,
        covariates,
        cap,
        groups,
        sums: of_cut,
        raw,
        sampled,
        left_out,
        beside,
    })
}

fn choose_cap(metric: &Configured, rule: CapRule, entries: &[UserSum], groups: &Groups) -> Option<AppliedCap> {
    let per_user = match &metric.aggregation {
        Aggregation::Defined(defined) => Some(defined.reference.definition.per_user),
        _ => None,
    };
    if metric.aggregation.is_ratio() || metric.aggregation.quantile().is_some() {
        return None;
    }
    let is_value = metric.aggregation == Aggregation::ValuePerUser || per_user == Some(PerUser::Sum);
    if !is_value && metric.aggregation != Aggregation::CountPerUser && per_user != Some(PerUser::Count) {
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
            None => (is_value && filled(entries, groups) >= CAP_SUMS_MIN).then_some(CAP_PERCENTILE),
        },
    };
    let at = at.filter(|at| *at < CAP_NEVER)?;
    let counted = entries.iter().filter(|entry| groups.of(entry.user).is_some());
    cap_value(counted.map(|entry| entry.amount), f64::from(at) / 10_000.0)
        .map(|amount| AppliedCap { amount, percentile: Some(at) })
}

/// The metrics to measure.
pub struct Chosen {
    /// Each of them.
    pub metrics: Vec<Configured>,
    /// How many conversion names there are, if only those of the most users have metrics of their own.
    pub conversion_names: Option<usize>,
}

/// Conversions with a value in another currency than that of the value metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherCurrency {
    /// Its code; none for values without a currency.
    pub currency: Option<String>,
    /// How many conversions.
    pub conversions: u64,
    /// Their value, in millionths.
    pub sum: i128,
}

/// Returns the metrics to measure: of the configured ones, or else of the usual ones for all conversions and for each name, those
/// that were asked for.
/// # Errors
/// [`ApiError`] of code `unknown_metric`.
pub fn choose(configured: Vec<Configured>, population: &Population<'_>, request: &Request) -> Result<Chosen, ApiError> {
    let mut chosen =
        if configured.is_empty() { usual(population) } else { Chosen { metrics: configured, conversion_names: None } };
    if request.metrics.is_empty() {
        return Ok(chosen);
    }
    let metrics = &mut chosen.metrics;
    let is_known = |name: &str| metrics.iter().any(|metric| metric.name == name);
    let asked: Vec<String> = request.metrics.iter().flat_map(|asked| asked.names(is_known)).collect();
    if let Some(unknown) = asked.iter().find(|name| !is_known(name)) {
        let known: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).take(20).collect();
        let shown: String = unknown.chars().take(100).collect();
        let message = format!(
            "the experiment has no metric {shown:?}; it has: {}; a comma that belongs to a name is written \\, in a list",
            known.join(", ")
        );
        let mut refusal = ApiError::bad_request(message).at("metrics");
        refusal.code = Code::UnknownMetric;
        return Err(refusal);
    }
    metrics.retain(|metric| asked.contains(&metric.name));
    Ok(chosen)
}

/// Returns the usual metrics: for all conversions, and for each name.
fn usual(population: &Population<'_>) -> Chosen {
    let cohort = population.cohort;
    let groups = population.groups(population.window_us);
    let mut users = vec![0u64; cohort.names.len()];
    let mut last = vec![u32::MAX; cohort.names.len()];
    for user in cohort.after.filled().iter().filter(|user| groups.of(**user).is_some()) {
        for row in cohort.after.of(*user as usize) {
            let name = row.name as usize;
            if last[name] != *user {
                (last[name], users[name]) = (*user, users[name] + 1);
            }
        }
    }
    let mut names: Vec<usize> = (0..cohort.names.len()).filter(|name| users[*name] > 0).collect();
    let conversion_names = (names.len() > CONVERSION_NAMES_MAX).then_some(names.len());
    if conversion_names.is_some() {
        // Sorting is stable: with equal numbers the name decides.
        names.sort_by_key(|name| std::cmp::Reverse(users[*name]));
        names.truncate(CONVERSION_NAMES_MAX);
        names.sort_unstable();
    }
    let of_names = names.into_iter().flat_map(|name| default_metrics(Some(&cohort.names[name])));
    Chosen { metrics: default_metrics(None).into_iter().chain(of_names).collect(), conversion_names }
}

/// Returns the metrics of an experiment without configured ones, for one conversion name or for all.
pub fn default_metrics(conversion_type: Option<&str>) -> [Configured; 2] {
    let metric = |name: &str, aggregation| Configured {
        name: conversion_type.map_or_else(|| name.to_owned(), |kind| format!("{kind}.{name}")),
        conversion_type: conversion_type.map(str::to_owned),
        wants_more: true,
        // One metric decides; value is noisier, and many experiments have none.
        role: match (conversion_type, &aggregation) {
            (None, Aggregation::ConversionRate) => Role::Primary,
            _ => Role::Secondary,
        },
        aggregation,
        margin: None,
        window_days: None,
        cap: None,
        cap_percentile: None,
    };
    [metric("conversion_rate", Aggregation::ConversionRate), metric("value_per_user", Aggregation::ValuePerUser)]
}

/// Returns the currency of value metrics, its number, and the currencies left out. The currency is the experiment's, else the
/// only one seen, else the most used one; no number means that values of all currencies count, since there are none. It is seen in
/// conversions, or where these have no value in the events of `metrics` that are about money.
pub fn choose_currency(
    experiment: &Experiment,
    cohort: &Cohort,
    groups: &Groups,
    metrics: &[Configured],
) -> (Option<String>, Option<u32>, Vec<OtherCurrency>) {
    let sources = metrics.iter().flat_map(Configured::sources).zip(&cohort.sources);
    let of_sources = sources.filter(|(query, _)| query.definition.has_amounts()).map(|(_, source)| &source.after);
    let mut seen = seen_currencies(cohort, groups, [&cohort.after].into_iter());
    if seen.iter().all(|(conversions, _)| *conversions == 0) {
        seen = seen_currencies(cohort, groups, of_sources);
    }
    let most = (0..seen.len()).filter(|number| seen[*number].0 > 0).min_by_key(|number| std::cmp::Reverse(seen[*number].0));
    let chosen = match &experiment.currency {
        Some(currency) => Some(currency.clone()),
        None => most.and_then(|number| cohort.currencies[number].clone()),
    };
    let others =
        cohort.currencies.iter().zip(seen).filter(|(currency, (conversions, _))| **currency != chosen && *conversions > 0);
    let other =
        |(currency, (conversions, sum)): (&Option<String>, _)| OtherCurrency { currency: currency.clone(), conversions, sum };
    let others = others.map(other).collect();
    let number = cohort.currencies.iter().position(|currency| *currency == chosen).map(|number| number as u32);
    // A currency that nobody used counts nothing.
    (chosen, number.or_else(|| most.map(|_| u32::MAX)), others)
}

/// Returns how many rows have a value in each currency, and its sum.
fn seen_currencies<'c>(cohort: &Cohort, groups: &Groups, all: impl Iterator<Item = &'c Rows>) -> Vec<(u64, i128)> {
    let mut seen: Vec<(u64, i128)> = vec![(0, 0); cohort.currencies.len()];
    for rows in all {
        for user in rows.filled().iter().filter(|user| groups.of(**user).is_some()) {
            for row in rows.of(*user as usize) {
                if let Some(value) = row.value {
                    let (conversions, sum) = &mut seen[row.currency as usize];
                    *conversions += 1;
                    *sum = sum.saturating_add(value);
                }
            }
        }
    }
    seen
}

/// The values of a dimension and who has them.
#[derive(Debug)]
pub struct Split {
    /// Most users first, then those without one, then the rest together.
    pub values: Vec<Value>,
    /// Groups `value * variants + variant`, by the experiment's own window.
    pub groups: Groups,
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

/// A property by which it is searched who is affected otherwise.
#[derive(Debug)]
pub struct Explored {
    /// Its name.
    pub dimension: String,
    /// Its values; none if there are too many of them.
    pub split: Option<Split>,
}

/// Splits the population by what users had at their first exposure: the values with the most users, the rest as `other`. Of dimensions
/// that are crossed, and of those that are searched, values with few users are in the rest, too.
pub fn split(population: &Population<'_>, known: &Trait, few: Few) -> Split {
    let (cohort, groups) = (population.cohort, population.groups(population.window_us));
    let mut users = vec![0u64; known.values.len()];
    let mut unknown = 0u64;
    for user in (0..cohort.users.len()).filter(|user| groups.of(*user as u32).is_some()) {
        match known.of(user) {
            Some(value) => users[value as usize] += 1,
            None => unknown += 1,
        }
    }
    let mut order = most_used(known, &groups);
    let there_are = order.len();
    order.truncate(few.values_max);
    order.retain(|value| users[*value] >= few.users_min);
    let has_other = order.len() < there_are;
    let place_of: HashMap<usize, u32> = order.iter().enumerate().map(|(place, value)| (*value, place as u32)).collect();
    let mut values: Vec<Value> =
        order.iter().map(|value| Value { text: Some(known.values[*value].clone()), kind: "value" }).collect();
    let unknown_place = values.len() as u32;
    values.extend((unknown > 0).then_some(Value { text: None, kind: "unknown" }));
    let other_place = values.len() as u32;
    values.extend(has_other.then_some(Value { text: Some("other".to_owned()), kind: "other" }));
    let place = |user: usize| match known.of(user) {
        Some(value) => place_of.get(&(value as usize)).copied().unwrap_or(other_place),
        None => unknown_place,
    };
    let places: Vec<u32> = (0..cohort.users.len()).map(place).collect();
    let groups = population.groups_of_values(values.len(), population.window_us, |user| places[user] as usize);
    Split { values, groups, places }
}

/// Which values stand by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Few {
    values_max: usize,
    users_min: u64,
}

impl Few {
    /// Of one property.
    pub const PLAIN: Few = Few { values_max: VALUES_MAX, users_min: 1 };
    /// Of several that are crossed: most crosses have few users.
    pub const CROSSED: Few = Few { users_min: USERS_MIN, ..Few::PLAIN };
    /// Of properties that are searched.
    pub const EXPLORED: Few = Few { values_max: EXPLORED_VALUES_MAX, users_min: USERS_MIN };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::sums::tests::cohort;
    use crate::experiment::read::cohort::Row;
    use crate::experiment::request::PopulationRule;

    fn population(cohort: &Cohort) -> Population<'_> {
        Population::by(cohort, 2, 0, (PopulationRule::ExcludeMulti, Windows::All), 100)
    }

    fn experiment(currency: Option<&str>) -> Experiment {
        Experiment { currency: currency.map(str::to_owned), ..Experiment::default() }
    }

    #[test]
    fn one_currency_is_kept_and_the_others_are_named() {
        type Seen<'a> = (Option<&'a str>, u64, i128);
        let check = |own: Option<&str>, seen: &[Seen<'_>], expected: (Option<&str>, Option<u32>), left_out: &[Seen<'_>]| {
            let mut cohort = cohort(&[(0, 0)], &[]);
            cohort.currencies = seen.iter().map(|(code, _, _)| code.map(str::to_owned)).collect();
            cohort.currencies.sort();
            let mut rows = Vec::new();
            for (code, conversions, sum) in seen {
                let currency = cohort.currencies.iter().position(|known| known.as_deref() == *code).expect("known") as u32;
                for part in 0..*conversions {
                    let value = Some(if part == 0 { *sum } else { 0 });
                    rows.push((0, Row { value, currency, ..Row::default() }));
                }
            }
            cohort.after = Rows::new(1, rows);
            let population = population(&cohort);
            let (code, number, others) = choose_currency(&experiment(own), &cohort, &population.groups(100), &[]);
            assert_eq!((code.as_deref(), number), expected, "{seen:?}");
            let others: Vec<Seen<'_>> =
                others.iter().map(|other| (other.currency.as_deref(), other.conversions, other.sum)).collect();
            assert_eq!(others, left_out, "{seen:?}");
        };
        let (euros, dollars, without) = ((Some("EUR"), 3, 0), (Some("USD"), 2, 25_500_000), (None, 1, -1_000_000));
        check(None, &[], (None, None), &[]);
        check(None, &[(None, 3, 0)], (None, Some(0)), &[]);
        check(None, &[euros], (Some("EUR"), Some(0)), &[]);
        check(None, &[euros, dollars, without], (Some("EUR"), Some(1)), &[without, dollars]);
        check(Some("USD"), &[euros, dollars, without], (Some("USD"), Some(2)), &[without, euros]);
        check(Some("CHF"), &[euros], (Some("CHF"), Some(u32::MAX)), &[euros]);
    }

    #[test]
    fn caps_come_from_the_question_or_the_metric_or_the_number_of_sums() {
        let entries: Vec<UserSum> =
            (1..=2_000).map(|user| UserSum { user: user - 1, amount: i128::from(user), base: 0, has_converted: true }).collect();
        let groups = Groups::new(2_000, 1, |_| Some(0));
        let [rate, value] = default_metrics(None);
        let check = |metric: &Configured, rule: CapRule, sums: usize, expected: Option<(i128, Option<u32>)>| {
            let found = choose_cap(metric, rule, &entries[..sums], &groups);
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
        let cohort = cohort(&users, &[]);
        let values = (0..25).map(|value| format!("v{value:02}")).collect();
        // Value 24 has 28 users, the others 3 each; 0 users have none.
        let known = Trait::new((0..100).map(|user| (user > 0).then_some(if user < 72 { user / 3 } else { 24 })), values);
        let population = population(&cohort);
        let crossed = super::split(&population, &known, Few::CROSSED);
        let others: Vec<&str> = crossed.values.iter().map(|value| value.kind).collect();
        assert_eq!((others.as_slice(), crossed.groups.total()), (["unknown", "other"].as_slice(), 100));
        let split = split(&population, &known, Few::PLAIN);
        let texts: Vec<&str> = split.values.iter().map(|value| value.text.as_deref().unwrap_or("-")).collect();
        assert_eq!((texts.len(), texts[0], texts[1], texts[20], texts[21]), (22, "v24", "v01", "-", "other"));
        assert_eq!(split.groups.total(), 100, "nobody is lost");
        assert_eq!(split.groups.users()[..2], [14, 14]);
    }
}
