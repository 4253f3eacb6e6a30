//! Many tests at once: p-values adjusted for the size of their family, and levels of intervals that agree with them.
//!
//! A family is made of the goal metrics of all treatments; guardrails are no part of it. What could not be tested is no member
//! either.

use crate::distributions::PValue;

/// Part of alpha that stays with primary metrics where they are preferred.
pub const PRIMARY_SHARE: f64 = 0.5;

/// How a family is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Correction {
    /// Not at all.
    None,
    /// The chance of any false alarm stays below alpha; every test gets an equal part.
    Bonferroni,
    /// The same promise with more power.
    Holm,
    /// The expected share of false alarms among all alarms stays below alpha.
    BenjaminiHochberg,
    /// The chance of any false alarm stays below alpha; primary metrics get a part of it for themselves.
    Preferential,
}

/// One test of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Its p-value; `None` if nothing could be tested, and of a bound, which has none.
    pub p_value: Option<PValue>,
    /// Whether it could be tested, also by a bound: only then it belongs to the family.
    pub is_tested: bool,
    /// Whether it belongs to a primary metric.
    pub is_primary: bool,
}

/// What the family leaves of one member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjusted {
    /// The adjusted p-value: a finding if [`is_finding`].
    pub p_value: Option<PValue>,
    /// The level of its interval and of its bound.
    pub alpha: f64,
    /// Members that were tested.
    pub family_size: usize,
}

/// Adjusts all members of a family, in the order given. Intervals have confidence 1 - [`Adjusted::alpha`]: they hold all at
/// once, or, after Benjamini's and Hochberg's method, the expected share of intervals that miss is at most `alpha` among those
/// of the findings.
/// Source: of the intervals, Bonferroni's inequality; Benjamini, Yekutieli 2005, Journal of the American Statistical
/// Association 100, 71-81.
pub fn adjust(members: &[Member], correction: Correction, alpha: f64) -> Vec<Adjusted> {
    let family_size = members.iter().filter(|member| member.is_tested).count();
    let even = alpha / family_size.max(1) as f64;
    let p_values: Vec<Option<f64>> = members.iter().map(|member| member.p_value.map(|p| p.p)).collect();
    let all = |p_values: Vec<Option<PValue>>, alpha: f64| {
        p_values.into_iter().map(|p_value| Adjusted { p_value, alpha, family_size }).collect()
    };
    match correction {
        Correction::None => all(members.iter().map(|member| member.p_value).collect(), alpha),
        Correction::Bonferroni => {
            let tests = p_values.iter().flatten().count() as f64;
            all(members.iter().map(|member| member.p_value.map(|p| p.times(tests))).collect(), even)
        }
        Correction::Holm => all(grown(members, &holm(&p_values)), even),
        Correction::BenjaminiHochberg => {
            let adjusted = benjamini_hochberg(&p_values);
            let findings = adjusted.iter().flatten().filter(|p| is_finding(**p, alpha)).count().max(1);
            all(grown(members, &adjusted), even * findings as f64)
        }
        Correction::Preferential => {
            let primary = members.iter().filter(|member| member.is_tested && member.is_primary).count();
            let (of_primary, of_other) = preferential(primary, family_size - primary, PRIMARY_SHARE);
            let one = |member: &Member| {
                let part = if member.is_primary { of_primary } else { of_other };
                Adjusted { p_value: member.p_value.map(|p| p.times(1.0 / part)), alpha: alpha * part, family_size }
            };
            members.iter().map(one).collect()
        }
    }
}

/// Carries the factor by which each p-value grew over to its logarithm, which knows more where the p-value underflows.
fn grown(members: &[Member], adjusted: &[Option<f64>]) -> Vec<Option<PValue>> {
    let one = |(member, adjusted): (&Member, &Option<f64>)| {
        let (p_value, adjusted) = member.p_value.zip(*adjusted)?;
        let factor = if p_value.p > 0.0 { adjusted / p_value.p } else { members.len() as f64 };
        Some(PValue { p: adjusted, log10: p_value.times(factor).log10 })
    };
    members.iter().zip(adjusted).map(one).collect()
}

/// Returns whether an adjusted p-value is a finding at `alpha`; what only rounding puts above it is one.
pub fn is_finding(adjusted: f64, alpha: f64) -> bool {
    adjusted <= alpha * (1.0 + 1e-12)
}

/// Returns the parts of alpha that each of `primary` tests of primary metrics and each of `others` gets, if all primary ones
/// together get the part `share` (0 .. 1). Where there are only primary or only other ones, these get all.
/// Source: weighted Bonferroni; Eppo's documentation calls it preferential.
pub fn preferential(primary: usize, others: usize, share: f64) -> (f64, f64) {
    let of_primary = if others == 0 { 1.0 } else { share } / primary.max(1) as f64;
    let of_other = if primary == 0 { 1.0 } else { 1.0 - share } / others.max(1) as f64;
    (of_primary, of_other)
}

/// The places of the defined p-values, the least first.
fn ascending(p_values: &[Option<f64>]) -> Vec<(usize, f64)> {
    let mut order: Vec<(usize, f64)> = p_values.iter().enumerate().filter_map(|(place, p)| Some((place, (*p)?))).collect();
    order.sort_by(|one, other| one.1.total_cmp(&other.1));
    order
}

/// Returns the p-values adjusted by Holm's method, in the order given. `None` is an undefined test: it stays `None` and
/// is no member of the family.
/// Source: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
fn holm(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
    let order = ascending(p_values);
    let family = order.len();
    let mut adjusted = vec![None; p_values.len()];
    let mut least = 0.0_f64;
    for (rank, (place, p)) in order.into_iter().enumerate() {
        least = least.max((p * (family - rank) as f64).min(1.0));
        adjusted[place] = Some(least);
    }
    adjusted
}

/// Returns the p-values adjusted by the method of Benjamini and Hochberg, in the order given.
/// Source: Benjamini, Hochberg 1995, Journal of the Royal Statistical Society B 57, 289-300.
fn benjamini_hochberg(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
    let order = ascending(p_values);
    let family = order.len() as f64;
    let mut adjusted = vec![None; p_values.len()];
    let mut greatest = 1.0_f64;
    for (rank, (place, p)) in order.into_iter().enumerate().rev() {
        greatest = greatest.min(p * family / (rank + 1) as f64);
        adjusted[place] = Some(greatest);
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(p: Option<f64>, is_primary: bool) -> Member {
        Member { p_value: p.map(|p| PValue { p, log10: p.log10() }), is_tested: p.is_some(), is_primary }
    }

    #[test]
    fn p_values_and_levels_stay_together() {
        let members = [member(Some(0.01), true), member(Some(0.04), false), member(None, false), member(Some(0.03), false)];
        let check = |correction, expected: [Option<f64>; 4], alphas: [f64; 4]| {
            let adjusted = adjust(&members, correction, 0.05);
            for ((found, expected), alpha) in adjusted.iter().zip(expected).zip(alphas) {
                assert_eq!(found.p_value.is_some(), expected.is_some());
                if let (Some(p), Some(expected)) = (found.p_value, expected) {
                    assert!(
                        (p.p - expected).abs() < 1e-12 && (p.log10 - expected.log10()).abs() < 1e-12,
                        "{correction:?} {found:?}"
                    );
                }
                assert!((found.alpha - alpha).abs() < 1e-12, "{correction:?} {found:?}");
                assert_eq!(found.family_size, 3);
            }
        };
        let third = 0.05 / 3.0;
        check(Correction::None, [Some(0.01), Some(0.04), None, Some(0.03)], [0.05; 4]);
        check(Correction::Bonferroni, [Some(0.03), Some(0.12), None, Some(0.09)], [third; 4]);
        check(Correction::Holm, [Some(0.03), Some(0.06), None, Some(0.06)], [third; 4]);
        check(Correction::BenjaminiHochberg, [Some(0.03), Some(0.04), None, Some(0.04)], [0.05; 4]);
        let preferred = [Some(0.02), Some(0.16), None, Some(0.12)];
        check(Correction::Preferential, preferred, [0.025, 0.0125, 0.0125, 0.0125]);
    }

    #[test]
    fn a_family_of_one_is_not_adjusted() {
        use Correction::{BenjaminiHochberg, Bonferroni, Holm, None, Preferential};
        for correction in [None, Bonferroni, Holm, BenjaminiHochberg, Preferential] {
            let found = adjust(&[member(Some(0.02), false)], correction, 0.05)[0];
            assert_eq!((found.p_value.map(|p| p.p), found.alpha, found.family_size), (Some(0.02), 0.05, 1), "{correction:?}");
        }
    }

    #[test]
    fn the_parts_of_a_family_add_up() {
        let (primary, other) = preferential(3, 9, 0.6);
        assert!((3.0 * primary + 9.0 * other - 1.0).abs() < 1e-15);
        assert_eq!((preferential(2, 0, 0.5).0, preferential(0, 4, 0.5).1), (0.5, 0.25));
    }

    proptest! {
        #[test]
        fn corrections_are_ordered(p_values in prop::collection::vec(prop::option::of(0.0..1.0_f64), 0..20)) {
            let members: Vec<Member> = p_values.iter().map(|p| member(*p, false)).collect();
            let [bonferroni, holm, hochberg] = [Correction::Bonferroni, Correction::Holm, Correction::BenjaminiHochberg]
                .map(|correction| adjust(&members, correction, 0.05));
            for (i, p) in p_values.iter().enumerate() {
                let [b, h, f] = [&bonferroni[i], &holm[i], &hochberg[i]].map(|found| found.p_value.map(|p| p.p));
                let Some(p) = p else { prop_assert_eq!((b, h, f), (None, None, None)); continue };
                let [b, h, f] = [b, h, f].map(|p| p.expect("defined"));
                prop_assert!(*p <= f * (1.0 + 1e-12) && f <= h * (1.0 + 1e-12) && h <= b * (1.0 + 1e-12) && b <= 1.0);
            }
        }
    }
}
