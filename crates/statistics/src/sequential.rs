//! Answers that stay right however often one looks: confidence sequences.
//!
//! A sequence costs power against a test with a planned end ([`crate::group_sequential`]), and needs no plan.

use crate::difference::Difference;
use crate::distributions::PValue;

/// Users of the two variants compared for which the sequence is tightest, where no sample size is planned.
pub const TIGHTEST_AT_DEFAULT: f64 = 5_000.0;

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

/// Where a sequence is tightest. It is fixed at the start: changing it later voids the promise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// After so many users of both variants, at least 1, ..
    pub tightest_at: f64,
    /// .. for intervals at 1 minus this (0 < `alpha` < 1).
    pub alpha: f64,
}

impl Tuning {
    /// Returns how many standard errors the interval at 1 - `alpha` reaches to either side after `users` of both variants, at
    /// least 1. It leaves 0 out exactly if the p-value of [`confidence_sequence`] is below `alpha`, for any `alpha`.
    /// Source: as [`confidence_sequence`].
    pub fn critical(&self, users: u64, alpha: f64) -> f64 {
        mixture_bound(users as f64, alpha, self.spread()) / (users as f64).sqrt()
    }

    /// The variance of the mixture, in users.
    fn spread(&self) -> f64 {
        let surprise = -2.0 * self.alpha.ln();
        self.tightest_at / (surprise + surprise.ln_1p())
    }
}

/// One look at a confidence sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequence {
    /// How many standard errors the interval reaches to either side.
    pub critical: f64,
    /// The p-value that holds for all looks together.
    pub p_value: PValue,
    /// The decimal logarithm of the evidence against no effect: a fair bet's gain so far.
    pub log10_e: f64,
}

/// Returns the asymptotic confidence sequence of a difference of `z` standard errors at 1 - `alpha` (0 < `alpha` < 1), after
/// `users` of both variants (at least 1).
/// Source: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas 2021, Time-uniform central limit theory and asymptotic confidence
/// sequences, theorem 2.2; the p-value is that of the normal mixture, Robbins 1970, Annals of Mathematical Statistics 41,
/// 1397-1409.
pub fn confidence_sequence(z: f64, users: u64, alpha: f64, tuning: &Tuning) -> Sequence {
    let information = users as f64 / tuning.spread();
    let grown = information + 1.0;
    let ln_e = 0.5 * (information / grown * z * z - grown.ln());
    let ln_p = (-ln_e).min(0.0);
    Sequence {
        critical: tuning.critical(users, alpha),
        p_value: PValue { p: ln_p.exp(), log10: ln_p / std::f64::consts::LN_10 },
        log10_e: ln_e / std::f64::consts::LN_10,
    }
}

/// One look under the hybrid plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hybrid {
    /// How many standard errors the interval reaches to either side.
    pub critical: f64,
    /// The p-value, which is a finding below [`hybrid_level`].
    pub p_value: PValue,
}

/// Returns the answer of the hybrid plan: while the experiment runs a sequence at half of `alpha`, after its end one fixed
/// test at the other half. Both together keep `alpha`.
/// Source: union bound over both; Eppo's documentation calls the plan hybrid.
pub fn hybrid(difference: &Difference, users: u64, alpha: f64, tuning: &Tuning, has_ended: bool) -> Hybrid {
    let spent = hybrid_level(alpha);
    if has_ended {
        return Hybrid { critical: difference.critical(spent), p_value: difference.p_value() };
    }
    let found = confidence_sequence(difference.z(), users, spent, tuning);
    Hybrid { critical: found.critical, p_value: found.p_value }
}

/// Returns the level below which a p-value of [`hybrid`] is a finding.
pub fn hybrid_level(alpha: f64) -> f64 {
    alpha / 2.0
}

/// Returns the bound that the absolute value of a sum with intrinsic time `v` crosses with a chance of at most `alpha`, ever. It
/// is tightest at `v_optimal` for `alpha_optimal`. `None` where a time is not positive or a level not within 0 .. 1.
/// Source: Howard, Ramdas, McAuliffe, Sekhon 2021, Annals of Statistics 49, 1055-1080, proposition 5.
pub fn normal_mixture_bound(v: f64, alpha: f64, v_optimal: f64, alpha_optimal: f64) -> Option<f64> {
    let is_level = |level: f64| level > 0.0 && level < 1.0;
    let is_time = |time: f64| time > 0.0 && time.is_finite();
    let tuning = Tuning { tightest_at: v_optimal, alpha: alpha_optimal };
    (is_time(v) && is_time(v_optimal) && is_level(alpha) && is_level(alpha_optimal))
        .then(|| mixture_bound(v, alpha, tuning.spread()))
}

fn mixture_bound(v: f64, alpha: f64, spread: f64) -> f64 {
    ((v + spread) * ((v / spread).ln_1p() - 2.0 * alpha.ln())).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::means::Arm;
    use proptest::prelude::*;

    #[test]
    fn the_plan_decides_where_a_sequence_is_tightest() {
        assert_eq!(tightest_at(Some(40_000), 2.0, 4.0), 20_000.0);
        for (target, pair, total) in [(None, 1.0, 1.0), (Some(0), 1.0, 1.0), (Some(9), 0.0, 0.0), (Some(9), 0.0, 1.0)] {
            assert_eq!(tightest_at(target, pair, total), TIGHTEST_AT_DEFAULT);
        }
        let tuning = Tuning { tightest_at: 20_000.0, alpha: 0.05 };
        let critical = |users| tuning.critical(users, 0.05);
        assert!(critical(20_000) < critical(15_000) && critical(20_000) < critical(27_000));
    }

    #[test]
    fn a_hybrid_ends_with_a_fixed_test() {
        let arm = |mean| Arm { users: 5_000, mean, variance: 2_500.0 };
        let difference = Difference::welch(&arm(10.0), &arm(13.0), true).expect("tested");
        let tuning = Tuning { tightest_at: 5_000.0, alpha: 0.05 };
        let look = |has_ended| hybrid(&difference, 10_000, 0.05, &tuning, has_ended);
        let (running, over) = (look(false), look(true));
        assert!(over.critical < running.critical && over.p_value.p < running.p_value.p);
        assert!(over.p_value.p < hybrid_level(0.05) && running.p_value.p > hybrid_level(0.05), "{over:?} {running:?}");
        // Both parts of the plan may raise a false alarm, and together keep alpha.
        assert!(2.0 * hybrid_level(0.05) <= 0.05);
    }

    proptest! {
        #[test]
        fn interval_and_p_agree_at_any_level(
            z in -9.0..9.0_f64, users in 1u64..10_000_000, alpha in 0.001..0.4_f64, tuned in 0.001..0.4_f64, planned in 10.0..1e7_f64,
        ) {
            let found = confidence_sequence(z, users, alpha, &Tuning { tightest_at: planned, alpha: tuned });
            prop_assume!((found.critical - z.abs()).abs() > 1e-9);
            prop_assert_eq!(z.abs() > found.critical, found.p_value.p < alpha, "{:?}", found);
        }
    }
}
