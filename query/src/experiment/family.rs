//! Many comparisons at once: which of them stand, and how wide their intervals are.

use super::settings::Correction;
use statistics::multiplicity::{benjamini_hochberg, holm};

/// Part of alpha that stays with primary metrics where they are preferred.
const PRIMARY_SHARE: f64 = 0.5;

/// One member of a family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// The decisive p-value and its decimal logarithm; none if nothing could be tested.
    pub p_value: Option<(f64, f64)>,
    /// Whether it could be tested, also by a bound that has no p-value.
    pub is_tested: bool,
    /// Whether it belongs to a primary metric.
    pub is_primary: bool,
}

/// What the family leaves of one member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// The adjusted p-value and its decimal logarithm.
    pub p_value: Option<(f64, f64)>,
    /// The level of its interval, and of its bound.
    pub alpha: f64,
    /// Members that were tested.
    pub family_size: usize,
}

/// Adjusts all members of a family. Intervals are simultaneous: at alpha over the size of the family, or with the false
/// discovery rate at alpha times the share of findings (Benjamini, Yekutieli 2005).
pub fn adjust(members: &[Member], correction: Correction, alpha: f64) -> Vec<Kept> {
    let size = members.iter().filter(|member| member.is_tested).count();
    let p_values: Vec<Option<f64>> = members.iter().map(|member| member.p_value.map(|p| p.0)).collect();
    let even = alpha / size.max(1) as f64;
    let kept = |p_value, alpha| Kept { p_value, alpha, family_size: size };
    match correction {
        Correction::None => members.iter().map(|member| kept(member.p_value, alpha)).collect(),
        Correction::Holm => by_factor(members, &holm(&p_values)).map(|p| kept(p, even)).collect(),
        Correction::Bh => {
            let adjusted = benjamini_hochberg(&p_values);
            let found = adjusted.iter().flatten().filter(|p| **p < alpha).count().max(1);
            by_factor(members, &adjusted).map(|p| kept(p, even * found as f64)).collect()
        }
        Correction::PreferentialBonferroni => {
            let primary = members.iter().filter(|member| member.is_tested && member.is_primary).count();
            let others = size - primary;
            let of_primary = if others == 0 { 1.0 } else { PRIMARY_SHARE } / primary.max(1) as f64;
            let of_others = if primary == 0 { 1.0 } else { 1.0 - PRIMARY_SHARE } / others.max(1) as f64;
            let weighted = |member: &Member| {
                let weight = if member.is_primary { of_primary } else { of_others };
                kept(member.p_value.map(|p| times(p, 1.0 / weight)), alpha * weight)
            };
            members.iter().map(weighted).collect()
        }
    }
}

/// Carries the factor by which each p-value grew over to its logarithm, which knows more where the p-value underflows.
fn by_factor<'a>(members: &'a [Member], adjusted: &'a [Option<f64>]) -> impl Iterator<Item = Option<(f64, f64)>> + 'a {
    members.iter().zip(adjusted).map(|(member, adjusted)| {
        let ((p, log10), adjusted) = member.p_value.zip(*adjusted)?;
        let grown = if p > 0.0 { (adjusted / p).log10() } else { (members.len() as f64).log10() };
        Some((adjusted, (log10 + grown).min(0.0)))
    })
}

fn times((p, log10): (f64, f64), factor: f64) -> (f64, f64) {
    ((p * factor).min(1.0), (log10 + factor.log10()).min(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrections_keep_p_values_and_levels_together() {
        let member =
            |p: Option<f64>, is_primary| Member { p_value: p.map(|p| (p, p.log10())), is_tested: p.is_some(), is_primary };
        let members = [member(Some(0.01), true), member(Some(0.04), false), member(None, false), member(Some(0.03), false)];
        let check = |correction, expected: [Option<f64>; 4], alphas: [f64; 4]| {
            let kept = adjust(&members, correction, 0.05);
            for ((kept, expected), alpha) in kept.iter().zip(expected).zip(alphas) {
                assert_eq!(kept.p_value.is_some(), expected.is_some());
                if let (Some((p, log10)), Some(expected)) = (kept.p_value, expected) {
                    assert!((p - expected).abs() < 1e-12 && (log10 - expected.log10()).abs() < 1e-12, "{correction:?} {kept:?}");
                }
                assert!((kept.alpha - alpha).abs() < 1e-12, "{correction:?} {kept:?}");
                assert_eq!(kept.family_size, 3);
            }
        };
        let third = 0.05 / 3.0;
        check(Correction::None, [Some(0.01), Some(0.04), None, Some(0.03)], [0.05; 4]);
        check(Correction::Holm, [Some(0.03), Some(0.06), None, Some(0.06)], [third; 4]);
        check(Correction::Bh, [Some(0.03), Some(0.04), None, Some(0.04)], [0.05; 4]);
        let preferred = [Some(0.02), Some(0.16), None, Some(0.12)];
        check(Correction::PreferentialBonferroni, preferred, [0.025, 0.0125, 0.0125, 0.0125]);
    }

    #[test]
    fn a_family_of_one_is_not_adjusted() {
        let member = Member { p_value: Some((0.02, 0.02f64.log10())), is_tested: true, is_primary: false };
        for text in [Correction::None, Correction::Holm, Correction::Bh, Correction::PreferentialBonferroni] {
            let kept = adjust(&[member], text, 0.05)[0];
            assert_eq!((kept.p_value.map(|p| p.0), kept.alpha, kept.family_size), (Some(0.02), 0.05, 1), "{text:?}");
        }
    }
}
