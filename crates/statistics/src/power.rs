//! How many users an experiment needs, what it can see with those it has, and when it will be done.
//!
//! Power is never computed for the effect found: that would only restate its p-value.

use crate::bayes_normal::Prior;
use crate::distributions::{normal_isf, normal_sf};
use crate::effect::Effect;
use crate::sequential::Tuning;

/// The power that is planned for where nothing else is said.
pub const POWER_DEFAULT: f64 = 0.8;
/// Days beyond which no forecast is given.
pub const DAYS_MAX: f64 = 180.0;

fn is_level(level: f64) -> bool {
    level > 0.0 && level < 1.0
}

/// Returns the users that each of two variants needs to see the absolute difference `effect` of a conversion rate of
/// `baseline`, in a two-sided test at `alpha`, with `power`; not rounded. Rates above 1/2 are mirrored. `None` where an
/// input is out of range, or a rate would be. Calculators show it; a [`Plan`] needs more, since no test here pools variances.
/// Source: Evan Miller's sample size calculator: pooled variance for alpha, that of both rates for the power.
pub fn sample_size_two_rates(baseline: f64, effect: f64, alpha: f64, power: f64) -> Option<f64> {
    let p = if baseline > 0.5 { 1.0 - baseline } else { baseline };
    let other = p + effect;
    if !(is_level(alpha) && is_level(power) && is_level(p) && (0.0..=1.0).contains(&other) && effect != 0.0) {
        return None;
    }
    let apart = p * (1.0 - p) + other * (1.0 - other);
    let both = normal_isf(alpha / 2.0) * (2.0 * p * (1.0 - p)).sqrt() + normal_isf(1.0 - power) * apart.sqrt();
    Some((both / effect).powi(2))
}

/// The users of an experiment of several variants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// All users.
    pub total: u64,
    /// Users per variant, each rounded up.
    pub users: Vec<u64>,
}

/// Returns the users of an experiment whose variants get `weights` of all users (the control's first), so that on average
/// each treatment can be seen to differ by the absolute `effect`. With `is_corrected` alpha is divided by the number of
/// treatments. `None` where an input is out of range or a count leaves 64 bits.
/// Source: Duflo, Glennerster, Kremer 2007, Using Randomization in Development Economics Research, 4.1.
pub fn sample_size_variants(
    weights: &[f64],
    variance: f64,
    effect: f64,
    alpha: f64,
    power: f64,
    is_corrected: bool,
) -> Option<Allocation> {
    let (control, treatments) = weights.split_first()?;
    let all: f64 = weights.iter().sum();
    let is_usable = !treatments.is_empty()
        && weights.iter().all(|weight| *weight > 0.0 && weight.is_finite())
        && is_level(alpha)
        && is_level(power)
        && variance >= 0.0
        && effect != 0.0;
    if !is_usable {
        return None;
    }
    // Weights that sum to 1 but for rounding are taken as they are.
    let all = if (all - 1.0).abs() < 1e-9 { 1.0 } else { all };
    let count = treatments.len() as f64;
    let alpha = if is_corrected { alpha / count } else { alpha };
    let spread: f64 = treatments.iter().map(|weight| (all / control + all / weight).sqrt()).sum();
    let both = normal_isf(alpha / 2.0) + normal_isf(1.0 - power);
    let total = (both * both * variance * spread * spread / (count * effect).powi(2)).ceil();
    if !(total.is_finite() && total < 1e18) {
        return None;
    }
    let users = weights.iter().map(|weight| (weight / all * total).ceil() as u64).collect();
    Some(Allocation { total: total as u64, users })
}

/// An experiment that is planned: variants with equal shares, each treatment against the control in the test that decides one
/// look, Welch's. With more than one treatment each is tested at its part of alpha.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The control's mean per user, not 0.
    pub mean: f64,
    /// The variance of one user's value.
    pub variance: f64,
    /// Whether the mean is a conversion rate, of which the treatment's variance follows from its own rate.
    pub is_rate: bool,
    /// Variants, the control included, at least 2.
    pub variants: usize,
    /// The share of false alarms among all treatments.
    pub alpha: f64,
    /// The chance to see the effect if it is there.
    pub power: f64,
}

/// Returns the power that a goal, and each guardrail that has to be shown safe, needs so that all of them are shown together with the chance
/// `power` at least: what may be missed is divided among them.
/// Source: Schultzberg, Ankargren, Frånberg 2024, Risk-aware product decisions in A/B tests with multiple metrics, arXiv 2402.11609.
pub fn power_of_each(power: f64, guardrails: u32) -> f64 {
    1.0 - (1.0 - power) / (f64::from(guardrails) + 1.0)
}

impl Plan {
    /// Returns the users that are needed to see the relative `effect`, which may be negative; `None` if there can be no such effect
    /// or an input is out of range.
    /// Source: as [`sample_size_variants`], with the mean of both variances: of a rate the treatment's is that of its own rate.
    pub fn needed(&self, effect: f64) -> Option<Allocation> {
        let absolute = effect * self.mean.abs();
        let variance = if self.is_rate { 0.5 * (self.variance + rate_variance(self.mean + absolute)?) } else { self.variance };
        let weights = vec![1.0 / self.variants as f64; self.variants];
        let found = sample_size_variants(&weights, variance, absolute, self.alpha, self.power, true)?;
        Some(Allocation { total: found.users.iter().sum(), users: found.users })
    }

    /// Returns the smallest absolute difference, upwards, that is seen with `users` over all variants; `None` where an input is out
    /// of range, or a rate would be.
    pub fn detectable(&self, users: u64) -> Option<f64> {
        let each = users as f64 / self.variants as f64;
        let alpha = self.alpha / (self.variants as f64 - 1.0);
        if !self.is_rate {
            return detectable_difference(self.variance, each, each, alpha, self.power);
        }
        // d^2 = r (v + (p + d) (1 - p - d)) of r = z^2 / users, solved for d.
        let ratio = detectable_effect(1.0, alpha, self.power)?.powi(2) / each;
        let (square, linear) = (1.0 + ratio, ratio * (1.0 - 2.0 * self.mean));
        let constant = ratio * (self.variance + rate_variance(self.mean)?);
        let found = (linear + (linear * linear + 4.0 * square * constant).sqrt()) / (2.0 * square);
        (found.is_finite() && rate_variance(self.mean + found).is_some()).then_some(found)
    }
}

/// Returns the variance of one user who converts at this rate; `None` where it is none.
fn rate_variance(rate: f64) -> Option<f64> {
    (0.0..=1.0).contains(&rate).then_some(rate * (1.0 - rate))
}

/// Returns the smallest effect that a two-sided test at `alpha` sees with `power`, in the unit of the standard error.
/// `None` where an input is out of range.
pub fn detectable_effect(std_error: f64, alpha: f64, power: f64) -> Option<f64> {
    (is_level(alpha) && is_level(power) && std_error >= 0.0)
        .then(|| (normal_isf(alpha / 2.0) + normal_isf(1.0 - power)).max(0.0) * std_error)
}

/// Returns the smallest absolute difference of means seen with these users, where both variants have one variance.
pub fn detectable_difference(variance: f64, users_control: f64, users_treatment: f64, alpha: f64, power: f64) -> Option<f64> {
    let is_usable = variance >= 0.0 && users_control > 0.0 && users_treatment > 0.0;
    detectable_effect((variance * (1.0 / users_control + 1.0 / users_treatment)).sqrt(), alpha, power).filter(|_| is_usable)
}

/// Returns how far an experiment is: the precision reached, in parts of the one planned, at most 1.
pub fn progress(detectable_target: f64, detectable_now: f64) -> f64 {
    if detectable_now <= 0.0 { 1.0 } else { (detectable_target / detectable_now).powi(2).min(1.0) }
}

/// What a running experiment is to see.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The relative effect to see.
    pub effect: f64,
    /// The power to see it for all goals at once.
    pub power: f64,
    /// Number of goal metrics.
    pub goals: u32,
    /// Number of variants, the control included.
    pub variants: u32,
    /// For a sequential analysis, the users at which its sequence is tightest.
    pub sequential_tightest_at: Option<f64>,
}

/// What a running experiment still needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MidExperiment {
    /// The power to see the target with the users so far.
    pub power_now: f64,
    /// More users needed, in parts of those so far; 0 if none, `None` if more than 2^27 times as many.
    pub scaling_factor: Option<f64>,
    /// More users needed in the two variants compared.
    pub additional_users: Option<f64>,
}

/// Forecasts what an experiment still needs. `effect` is the relative effect with its standard error so far, of which only
/// the latter counts; `users` those of the two variants compared; `prior` that of a Bayesian answer. `None` where an input is
/// out of range.
/// Source: GrowthBook's documentation, mid-experiment power: variance / (1 + f) after f times as many users more, alpha
/// divided by all tests, power^(1 / goals) for each goal; f by bisection until the power is right to 1e-5.
pub fn mid_experiment(effect: &Effect, users: u64, alpha: f64, target: &Target, prior: Option<&Prior>) -> Option<MidExperiment> {
    let tests = f64::from(target.goals) * (f64::from(target.variants) - 1.0);
    let is_usable = is_level(alpha) && is_level(target.power) && tests >= 1.0 && effect.std_error > 0.0 && users > 0;
    if !is_usable {
        return None;
    }
    let level = alpha / tests;
    let wanted = target.power.powf(1.0 / f64::from(target.goals));
    let power = |factor: f64| power_after(effect, users, factor, level, target, prior);
    let power_now = power(0.0);
    let answer = |factor: Option<f64>| MidExperiment {
        power_now,
        scaling_factor: factor,
        additional_users: factor.map(|factor| factor * users as f64),
    };
    if power_now > wanted {
        return Some(answer(Some(0.0)));
    }
    let mut factor = 1.0;
    for _ in 0..27 {
        if power(factor) >= wanted {
            break;
        }
        factor *= 2.0;
    }
    if power(factor) < wanted {
        return Some(answer(None));
    }
    let (mut low, mut high, mut off) = (0.0, factor, power(factor) - wanted);
    for _ in 0..100 {
        if off > 0.0 {
            high = factor;
        } else {
            low = factor;
        }
        factor = 0.5 * (low + high);
        off = power(factor) - wanted;
        if off.abs() < 1e-5 {
            break;
        }
    }
    Some(answer(Some(factor)))
}

/// The power with `factor` times as many users more.
fn power_after(effect: &Effect, users: u64, factor: f64, level: f64, target: &Target, prior: Option<&Prior>) -> f64 {
    let variance = effect.std_error * effect.std_error / (1.0 + factor);
    let (std_error, wanted) = (variance.sqrt(), target.effect.abs());
    let fixed = normal_isf(level / 2.0);
    // What the estimate must exceed on either side.
    let (above, below) = match (prior, target.sequential_tightest_at) {
        (Some(prior), _) => {
            let half = variance * (1.0 / prior.variance + 1.0 / variance).sqrt() * fixed;
            let shift = variance * prior.mean / prior.variance;
            (half - shift, half + shift)
        }
        (None, Some(tightest_at)) => {
            let users = (users as f64 * (1.0 + factor)).min(1e18) as u64;
            let half = Tuning { tightest_at, alpha: level }.critical(users, level) * std_error;
            (half, half)
        }
        (None, None) => (fixed * std_error, fixed * std_error),
    };
    normal_sf((above - wanted) / std_error).p + normal_sf((below + wanted) / std_error).p
}

/// Returns the days until `additional_users` have come at `users_per_day`, at most [`DAYS_MAX`]; `None` if none come.
pub fn days_remaining(additional_users: f64, users_per_day: f64) -> Option<f64> {
    if additional_users <= 0.0 {
        return Some(0.0);
    }
    (users_per_day > 0.0).then(|| (additional_users / users_per_day).min(DAYS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Target = Target { effect: 0.05, power: 0.8, goals: 1, variants: 2, sequential_tightest_at: None };

    fn effect(std_error: f64) -> Effect {
        Effect { estimate: 0.0, std_error, dof: 1e6 }
    }

    /// Three guardrails: z of 0.95 instead of 0.80, ((1.960 + 1.645) / (1.960 + 0.842))^2 as many users.
    #[test]
    fn guardrails_that_have_to_be_shown_safe_need_users() {
        assert_eq!((power_of_each(0.8, 0), power_of_each(0.8, 3)), (0.8, 0.95));
        let users = |guardrails| {
            let power = power_of_each(0.8, guardrails);
            let plan = Plan { mean: 1.0, variance: 100.0, is_rate: false, variants: 2, alpha: 0.05, power };
            plan.needed(0.05).expect("a plan").total as f64
        };
        assert!((users(3) / users(0) - 1.656).abs() < 1e-3, "{}", users(3) / users(0));
    }

    #[test]
    fn out_of_range_is_no_size() {
        for (baseline, effect, alpha, power) in
            [(0.1, 0.0, 0.05, 0.8), (0.0, 0.1, 0.05, 0.8), (0.1, 0.95, 0.05, 0.8), (0.1, 0.1, 0.0, 0.8), (0.1, 0.1, 0.05, 1.0)]
        {
            assert_eq!(sample_size_two_rates(baseline, effect, alpha, power), None);
        }
        assert_eq!(sample_size_two_rates(0.9, 0.05, 0.05, 0.8), sample_size_two_rates(1.0 - 0.9, 0.05, 0.05, 0.8));
        assert_eq!(sample_size_variants(&[1.0], 1.0, 1.0, 0.05, 0.8, false), None);
        assert_eq!(sample_size_variants(&[1.0, 0.0], 1.0, 1.0, 0.05, 0.8, false), None);
        assert_eq!(detectable_difference(1.0, 0.0, 5.0, 0.05, 0.8), None);
    }

    #[test]
    fn sizes_effects_and_power_agree() {
        let plan = Plan { mean: 5.0, variance: 25.0, is_rate: false, variants: 2, alpha: 0.05, power: 0.8 };
        let needed = plan.needed(0.1).expect("in range");
        // 2 * (1.96 + 0.84)^2 * 25 / 0.5^2 for each.
        assert_eq!((needed.total, needed.users.as_slice()), (3_140, [1_570, 1_570].as_slice()));
        assert!((plan.detectable(needed.total).expect("in range") - 0.5).abs() < 1e-3);
        let three = Plan { variants: 3, ..plan }.needed(0.1).expect("in range");
        assert!(three.users[0] > needed.users[0] && three.total == three.users.iter().sum::<u64>(), "{three:?}");
        let rate = Plan { mean: 0.2, variance: 0.16, is_rate: true, ..plan };
        // (1.96 + 0.84)^2 * (0.16 + 0.1875) / 0.05^2 for each.
        assert_eq!(rate.needed(0.25).map(|needed| needed.users), Some(vec![1_091, 1_091]));
        assert!((rate.detectable(2 * 1_091).expect("in range") - 0.05).abs() < 1e-5);
        let rare = Plan { mean: 0.05, variance: 0.0475, ..rate };
        assert_eq!(rare.needed(1.0).map(|needed| needed.users), Some(vec![432, 432]));
        assert!(rare.needed(-0.05).is_some_and(|needed| needed.users[0] > 100_000), "less is planned as more is");
        assert_eq!((rate.needed(9.0), rate.needed(-1.1), rate.detectable(3)), (None, None, None));
    }

    /// The power of the test that decides, over all pairs of counts, is the one that was planned.
    #[test]
    fn a_plan_has_its_power_in_the_test_that_decides() {
        use crate::comparison::{Sample, compare};
        use crate::proportions::Count;
        let chances = |users: u64, rate: f64| -> Vec<f64> {
            // Binomial probabilities from the mode outwards, so that none underflows where it matters.
            let odds = rate / (1.0 - rate);
            let mode = ((users + 1) as f64 * rate) as u64;
            let mut found = vec![0.0; users as usize + 1];
            found[mode as usize] = 1.0;
            for count in mode..users {
                found[count as usize + 1] = found[count as usize] * (users - count) as f64 / (count + 1) as f64 * odds;
            }
            for count in (0..mode).rev() {
                found[count as usize] = found[count as usize + 1] * (count + 1) as f64 / (users - count) as f64 / odds;
            }
            let total: f64 = found.iter().sum();
            found.iter().map(|chance| chance / total).collect()
        };
        let plan = Plan { mean: 0.05, variance: 0.0475, is_rate: true, variants: 2, alpha: 0.05, power: 0.8 };
        let users = plan.needed(1.0).expect("in range").users[0];
        let (control, treatment) = (chances(users, 0.05), chances(users, 0.1));
        let mut power = 0.0;
        for (x, chance) in control.iter().enumerate().filter(|(_, chance)| **chance > 1e-7) {
            for (y, other) in treatment.iter().enumerate().filter(|(_, chance)| **chance > 1e-7) {
                let share = |converted: usize| Sample::Share(Count { users, converted: converted as u64 }).into();
                let is_found = compare(&share(x), &share(y), 0.05).p_value().is_some_and(|p| p.p < 0.05);
                power += if is_found { chance * other } else { 0.0 };
            }
        }
        assert!((power - 0.8).abs() < 0.01, "{power}");
        assert!(
            sample_size_two_rates(0.05, 0.05, 0.05, 0.8).is_some_and(|each| each < 0.8 * users as f64),
            "calculators plan for less"
        );
    }

    #[test]
    fn an_experiment_needs_what_its_plan_said() {
        // Half of the users that the plan wants have come, with the spread that it assumed.
        let plan = Plan { mean: 5.0, variance: 25.0, is_rate: false, variants: 2, alpha: 0.05, power: 0.8 };
        let needed = plan.needed(0.1).expect("in range").total;
        let users = needed / 2;
        let std_error = (25.0 * 4.0 / users as f64).sqrt() / 5.0;
        let target = Target { effect: 0.1, ..TARGET };
        let found = mid_experiment(&effect(std_error), users, 0.05, &target, None).expect("in range");
        let missing = found.additional_users.expect("reachable");
        assert!(
            (users as f64 + missing - needed as f64).abs() < 0.001 * needed as f64,
            "{users} and {missing}, {needed} planned"
        );
    }

    #[test]
    fn a_forecast_reaches_its_power() {
        for target in
            [TARGET, Target { goals: 3, variants: 4, ..TARGET }, Target { sequential_tightest_at: Some(5_000.0), ..TARGET }]
        {
            for prior in [None, Some(Prior::SHRUNK)] {
                let found = mid_experiment(&effect(0.1), 10_000, 0.05, &target, prior.as_ref()).expect("in range");
                let factor = found.scaling_factor.expect("reachable");
                let level = 0.05 / (f64::from(target.goals) * f64::from(target.variants - 1));
                let power = power_after(&effect(0.1), 10_000, factor, level, &target, prior.as_ref());
                assert!((power - 0.8_f64.powf(1.0 / f64::from(target.goals))).abs() < 1e-5, "{target:?} {found:?} {power}");
            }
        }
        let done = mid_experiment(&effect(0.001), 10_000, 0.05, &TARGET, None).expect("in range");
        assert_eq!((done.scaling_factor, done.additional_users), (Some(0.0), Some(0.0)));
        let never = mid_experiment(&effect(1e9), 10_000, 0.05, &TARGET, None).expect("in range");
        assert_eq!((never.scaling_factor, never.additional_users), (None, None));
        assert_eq!(mid_experiment(&effect(0.1), 0, 0.05, &TARGET, None), None);
    }

    #[test]
    fn progress_and_days_are_bounded() {
        assert_eq!((progress(0.05, 0.1), progress(0.05, 0.01), progress(0.05, 0.0)), (0.25, 1.0, 1.0));
        assert_eq!(days_remaining(1_000.0, 100.0), Some(10.0));
        assert_eq!(days_remaining(1e9, 1.0), Some(DAYS_MAX));
        assert_eq!((days_remaining(0.0, 0.0), days_remaining(5.0, 0.0)), (Some(0.0), None));
    }
}
