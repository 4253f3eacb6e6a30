//! Answers that stay right however often one looks: confidence sequences.
//!
//! A sequence costs power against a test with a planned end ([`crate::group_sequential`]), and needs no plan.

use crate::distributions::{normal_isf, normal_sf};
use crate::effect::{Alternative, Effect};
use crate::proportions::Count;
use crate::sample_ratio::ln_bayes_factor;
use crate::special::bisect;

/// Users of the two variants compared for which the sequence is tightest, where no sample size is planned.
pub const TIGHTEST_AT_DEFAULT: f64 = 5_000.0;

/// One look at a confidence sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequence {
    /// Half the width of the interval; of a one-sided sequence the distance of its bound.
    pub half_width: f64,
    /// The lower end; `None` where it is unbounded.
    pub low: Option<f64>,
    /// The upper end; `None` where it is unbounded.
    pub high: Option<f64>,
    /// The p-value that holds for all looks together; 0 where it underflows.
    pub p_value: f64,
    /// Its decimal logarithm, always finite.
    pub log10_p: f64,
    /// The decimal logarithm of the evidence against no effect: a fair bet's gain so far. `None` for one side.
    pub log10_e: Option<f64>,
}

/// Returns the users for which a sequence should be tightest: of the planned sample size the part of the two variants
/// compared, by their weights of all weights; without a plan [`TIGHTEST_AT_DEFAULT`]. It is fixed at the start: changing it
/// later voids the promise.
pub fn tightest_at(target_sample_size: Option<u64>, pair_weight: f64, total_weight: f64) -> f64 {
    let share = pair_weight / total_weight;
    match target_sample_size {
        Some(target) if target > 0 && share > 0.0 && share.is_finite() => target as f64 * share,
        _ => TIGHTEST_AT_DEFAULT,
    }
}

/// rho^2, which makes the sequence tightest at `tightest_at` users.
fn mixing(tightest_at: f64, alpha: f64) -> f64 {
    (-2.0 * alpha.ln() + (1.0 - 2.0 * alpha.ln()).ln()) / tightest_at
}

/// Returns the asymptotic confidence sequence of an effect at 1 - `alpha` (0 < `alpha` < 1), after `users` of both
/// variants (at least 1).
/// Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2021, Time-uniform central limit theory and asymptotic confidence
/// sequences, theorem 2.2; the p-value is that of the normal mixture, Robbins 1970, Annals of Mathematical Statistics 41,
/// 1397-1409.
pub fn confidence_sequence(effect: &Effect, users: u64, alpha: f64, tightest_at: f64) -> Sequence {
    let (n, z) = (users as f64, effect.estimate / effect.std_error);
    let information = n * mixing(tightest_at, alpha);
    let grown = information + 1.0;
    let half_width = effect.std_error * (grown / information * (grown.ln() - 2.0 * alpha.ln())).sqrt();
    let ln_e = 0.5 * (information / grown * z * z - grown.ln());
    let ln_p = (-ln_e).min(0.0);
    Sequence {
        half_width,
        low: Some(effect.estimate - half_width),
        high: Some(effect.estimate + half_width),
        p_value: ln_p.exp(),
        log10_p: ln_p / std::f64::consts::LN_10,
        log10_e: Some(ln_e / std::f64::consts::LN_10),
    }
}

/// Returns the confidence sequence of an effect on one side, or on both where `alternative` says so. `None` for one side
/// with `alpha` >= 1/2.
/// Source: as [`confidence_sequence`], proposition on one-sided sequences; the p-value inverts the bound.
pub fn confidence_sequence_of(
    effect: &Effect,
    users: u64,
    alpha: f64,
    tightest_at: f64,
    alternative: Alternative,
) -> Option<Sequence> {
    if alternative == Alternative::TwoSided {
        return Some(confidence_sequence(effect, users, alpha, tightest_at));
    }
    if alpha >= 0.5 {
        return None;
    }
    let information = users as f64 * mixing(tightest_at, 2.0 * alpha);
    let grown = information + 1.0;
    let half_width = effect.std_error * (2.0 * grown / information * (grown.sqrt() / (2.0 * alpha)).ln_1p()).sqrt();
    let is_greater = alternative == Alternative::Greater;
    let z = effect.estimate / effect.std_error * if is_greater { 1.0 } else { -1.0 };
    // The bound at level p lies at 0: p = sqrt(grown) / (2 (e^x - 1)).
    let x = z * z * information / (2.0 * grown);
    let ln_p = if z > 0.0 {
        let ln_gap = if x > 30.0 { x } else { x.exp_m1().ln() };
        (0.5 * grown.ln() - std::f64::consts::LN_2 - ln_gap).min(0.0)
    } else {
        0.0
    };
    Some(Sequence {
        half_width,
        low: is_greater.then_some(effect.estimate - half_width),
        high: (!is_greater).then_some(effect.estimate + half_width),
        p_value: ln_p.exp(),
        log10_p: ln_p / std::f64::consts::LN_10,
        log10_e: None,
    })
}

/// What all looks so far say together: valid for a sequence, and for nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Running {
    /// The least p-value so far.
    pub p_value: Option<f64>,
    /// The greatest lower end so far.
    pub low: Option<f64>,
    /// The least upper end so far.
    pub high: Option<f64>,
}

impl Running {
    /// Takes in a later look. Where the intervals have no point in common the later one stands: the effect has moved.
    pub fn look(&mut self, sequence: &Sequence) {
        self.p_value = Some(self.p_value.map_or(sequence.p_value, |p| p.min(sequence.p_value)));
        let low = match (self.low, sequence.low) {
            (Some(one), Some(two)) => Some(one.max(two)),
            (one, two) => one.or(two),
        };
        let high = match (self.high, sequence.high) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        (self.low, self.high) = match (low, high) {
            (Some(low), Some(high)) if low > high => (sequence.low, sequence.high),
            ends => ends,
        };
    }
}

/// Returns the answer of the hybrid plan: while the experiment runs a sequence at half of `alpha`, after its end one fixed
/// test at the other half. Both together keep `alpha`.
/// Source: union bound over both; Eppo's documentation calls the plan hybrid.
pub fn hybrid(effect: &Effect, users: u64, alpha: f64, tightest_at: f64, has_ended: bool) -> Sequence {
    let spent = alpha / 2.0;
    if !has_ended {
        return confidence_sequence(effect, users, spent, tightest_at);
    }
    let tested = effect.test(Alternative::TwoSided, spent);
    Sequence {
        half_width: tested.high.map_or(0.0, |high| high - effect.estimate),
        low: tested.low,
        high: tested.high,
        p_value: tested.p_value,
        log10_p: tested.log10_p,
        log10_e: None,
    }
}

/// Returns the level below which a p-value of [`hybrid`] is a finding.
pub fn hybrid_level(alpha: f64) -> f64 {
    alpha / 2.0
}

/// Returns the bound that a sum with intrinsic time `v` crosses with a chance of at most `alpha`, ever. It is tightest at
/// `v_optimal` for `alpha_optimal`. `None` where a time is not positive, a level not within 0 .. 1, or for one side
/// `alpha_optimal` >= 1/2.
/// Source: Howard, Ramdas, McAuliffe, Sekhon 2021, Annals of Statistics 49, 1055-1080, propositions 5 and 6.
pub fn normal_mixture_bound(v: f64, alpha: f64, v_optimal: f64, alpha_optimal: f64, is_one_sided: bool) -> Option<f64> {
    let is_level = |level: f64| level > 0.0 && level < 1.0;
    let tightened = if is_one_sided { 2.0 * alpha_optimal } else { alpha_optimal };
    if !(v > 0.0 && v_optimal > 0.0 && v.is_finite() && v_optimal.is_finite() && is_level(alpha) && is_level(tightened)) {
        return None;
    }
    let surprise = -2.0 * tightened.ln();
    let rho = v_optimal / (surprise + surprise.ln_1p());
    let grown = v + rho;
    let two_sided = (grown * ((v / rho).ln_1p() - 2.0 * alpha.ln())).sqrt();
    if !is_one_sided {
        return Some(two_sided);
    }
    // The mixture over positive drifts grows with the sum, and is at least that over both signs.
    let ln_mixture = |sum: f64| 0.5 * (4.0 * rho / grown).ln() + sum * sum / (2.0 * grown) + normal_sf(-sum / grown.sqrt()).ln;
    Some(bisect(0.0, two_sided.max(1.0) * 2.0, |sum| ln_mixture(sum) < -alpha.ln()))
}

/// Returns the confidence sequence of one conversion rate at 1 - `alpha`, tightest after `users_optimal` users for
/// `alpha_optimal`. `None` without users or where a level is not within 0 .. 1.
/// Source: beta-binomial mixture, Howard, Ramdas, McAuliffe, Sekhon 2021, Annals of Statistics 49, 1055-1080, proposition 7.
pub fn rate_confidence_sequence(count: Count, alpha: f64, users_optimal: f64, alpha_optimal: f64) -> Option<(f64, f64)> {
    let is_level = |level: f64| level > 0.0 && level < 1.0;
    if count.users == 0 || !is_level(alpha) || !is_level(alpha_optimal) || users_optimal.is_nan() || users_optimal <= 0.0 {
        return None;
    }
    let surprise = -2.0 * alpha_optimal.ln();
    let concentration = (users_optimal / (surprise + surprise.ln_1p()) - 1.0).max(1e-3);
    let counts = [count.converted, count.users - count.converted];
    let excluded = |rate: f64| ln_bayes_factor(&counts, &[rate, 1.0 - rate], concentration) >= -alpha.ln();
    let found = count.converted as f64 / count.users as f64;
    let low = if count.converted == 0 { 0.0 } else { bisect(0.0, found, |rate| rate <= 0.0 || excluded(rate)) };
    let is_full = count.converted == count.users;
    let high = if is_full { 1.0 } else { bisect(found, 1.0, |rate| rate < 1.0 && !excluded(rate)) };
    Some((low, high))
}

/// The mixture sequential test that Statsig shows. For comparison with that product only: its mixing variance shrinks as
/// users come, so that its bound does not hold for all looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShrinkingMixture {
    /// The critical value of z, which for a fixed split does not depend on the number of users.
    pub z_critical: f64,
    /// The interval of the difference.
    pub interval: (f64, f64),
    /// The p-value.
    pub p_value: f64,
}

/// Returns Statsig's sequential answer about an absolute `effect` at 1 - `alpha`; `variances` are those of one user in
/// control and treatment, `users` of both variants together.
/// Source: Statsig's documentation, Frequentist Sequential Testing.
pub fn shrinking_mixture(effect: &Effect, variances: (f64, f64), users: u64, alpha: f64) -> ShrinkingMixture {
    let fixed = normal_isf(alpha / 2.0);
    let variance = effect.std_error * effect.std_error;
    let mixing = fixed * fixed * (variances.0 + variances.1) / users as f64;
    let whole = variance + mixing;
    let z_critical = (whole / mixing * (-2.0 * (alpha / 2.0).ln() - (variance / whole).ln())).sqrt();
    let half = z_critical * effect.std_error;
    let z = effect.estimate / effect.std_error;
    ShrinkingMixture {
        z_critical,
        interval: (effect.estimate - half, effect.estimate + half),
        p_value: normal_sf((z * fixed / z_critical).abs()).doubled().p,
    }
}

/// Returns the likelihood ratios of two paired streams of normal values with the standard deviation `sigma`, after each
/// pair, mixed over differences with the standard deviation `tau`.
/// Source: Johari, Koomen, Pekelis, Walsh 2017, Peeking at A/B Tests, KDD 23, 1517-1525.
pub fn paired_ratios(one: &[f64], two: &[f64], sigma: f64, tau: f64) -> Vec<f64> {
    let (spread, mixing) = (2.0 * sigma * sigma, tau * tau);
    let mut sum = 0.0;
    one.iter()
        .zip(two)
        .enumerate()
        .map(|(index, (x, y))| {
            sum += x - y;
            let whole = spread + (index + 1) as f64 * mixing;
            (0.5 * (spread / whole).ln() + mixing * sum * sum / (2.0 * spread * whole)).exp()
        })
        .collect()
}

/// Returns after how many pairs a likelihood ratio first exceeds 1 / `alpha`; all of them if none does.
pub fn first_rejection(ratios: &[f64], alpha: f64) -> usize {
    ratios.iter().position(|ratio| *ratio > 1.0 / alpha).map_or(ratios.len(), |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn effect(estimate: f64, std_error: f64) -> Effect {
        Effect { estimate, std_error, dof: 1e6 }
    }

    #[test]
    fn the_plan_decides_where_a_sequence_is_tightest() {
        assert_eq!(tightest_at(Some(40_000), 2.0, 4.0), 20_000.0);
        for (target, pair, total) in [(None, 1.0, 1.0), (Some(0), 1.0, 1.0), (Some(9), 0.0, 0.0), (Some(9), 0.0, 1.0)] {
            assert_eq!(tightest_at(target, pair, total), TIGHTEST_AT_DEFAULT);
        }
    }

    #[test]
    fn running_answers_only_narrow() {
        let mut running = Running::default();
        let look = |estimate: f64, users| confidence_sequence(&effect(estimate, 1.0), users, 0.05, 5_000.0);
        running.look(&look(5.0, 5_000));
        let first = running;
        running.look(&look(0.0, 6_000));
        assert_eq!(running.p_value, first.p_value);
        assert!(running.low == first.low && running.high < first.high, "{running:?}");
        // An effect far away: nothing is left of both, the later look stands.
        running.look(&look(100.0, 7_000));
        assert!(running.low.is_some_and(|low| low > 90.0), "{running:?}");
    }

    #[test]
    fn a_hybrid_ends_with_a_fixed_test() {
        let effect = effect(3.0, 1.0);
        let (running, over) = (hybrid(&effect, 5_000, 0.05, 5_000.0, false), hybrid(&effect, 5_000, 0.05, 5_000.0, true));
        assert!(over.half_width < running.half_width && over.p_value < running.p_value);
        assert!(over.p_value < hybrid_level(0.05) && running.p_value > hybrid_level(0.05), "{over:?} {running:?}");
    }

    #[test]
    fn rates_at_their_borders_have_a_bound() {
        let of = |users, converted| rate_confidence_sequence(Count { users, converted }, 0.05, 500.0, 0.05);
        assert_eq!(of(0, 0), None);
        assert!(of(100, 0).is_some_and(|(low, high)| low == 0.0 && high > 0.03 && high < 0.2));
        assert!(of(100, 100).is_some_and(|(low, high)| high == 1.0 && low < 0.97 && low > 0.8));
        assert!(of(2_000_000_000, 1).is_some_and(|(low, high)| low < 5e-10 && high > 5e-10 && high < 1e-7));
    }

    #[test]
    fn no_rejection_takes_all_pairs() {
        let ratios = paired_ratios(&[0.0; 7], &[0.0; 7], 1.0, 0.5);
        assert!(ratios.iter().all(|ratio| *ratio < 1.0));
        assert_eq!(first_rejection(&ratios, 0.05), 7);
    }

    proptest! {
        #[test]
        fn interval_and_p_agree(estimate in -9.0..9.0_f64, users in 1u64..10_000_000, alpha in 0.001..0.4_f64, planned in 10.0..1e7_f64) {
            for alternative in [Alternative::TwoSided, Alternative::Greater, Alternative::Less] {
                let found = confidence_sequence_of(&effect(estimate, 1.0), users, alpha, planned, alternative).expect("alpha is small");
                prop_assume!((found.half_width - estimate.abs()).abs() > 1e-9);
                let excludes = found.low.is_some_and(|low| low > 0.0) || found.high.is_some_and(|high| high < 0.0);
                prop_assert_eq!(excludes, found.p_value < alpha, "{:?}", found);
            }
        }

        #[test]
        fn one_side_is_tighter_than_both(v in 1.0..1e6_f64, alpha in 0.001..0.3_f64, v_optimal in 1.0..1e6_f64, alpha_optimal in 0.001..0.4_f64) {
            let both = normal_mixture_bound(v, alpha, v_optimal, alpha_optimal, false).expect("in range");
            let one = normal_mixture_bound(v, alpha, v_optimal, alpha_optimal, true).expect("in range");
            prop_assert!(one > 0.0 && both > 0.0 && one < 2.0 * both);
        }
    }
}
