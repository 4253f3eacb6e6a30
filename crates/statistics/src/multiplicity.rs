//! Many tests at once: p-values adjusted for the size of their family, and intervals of a level that agrees with them.
//!
//! A family is made of the goal metrics of all treatments; guardrails are no part of it. An undefined test is `None`, stays
//! `None`, and is no member either.

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
}

/// Returns the p-values adjusted, in the order given: what is at most alpha is a finding.
pub fn adjust(p_values: &[Option<f64>], correction: Correction) -> Vec<Option<f64>> {
    match correction {
        Correction::None => p_values.to_vec(),
        Correction::Bonferroni => bonferroni(p_values),
        Correction::Holm => holm(p_values),
        Correction::BenjaminiHochberg => benjamini_hochberg(p_values),
    }
}

/// Returns whether an adjusted p-value is a finding at `alpha`; what only rounding puts above it is one.
pub fn is_finding(adjusted: f64, alpha: f64) -> bool {
    adjusted <= alpha * (1.0 + 1e-12)
}

/// Returns the level of the intervals that agree with a correction: each interval has confidence 1 minus it. After Holm's
/// method all intervals hold at once; after Benjamini's and Hochberg's the expected share of intervals that miss is at most
/// `alpha` among those of the findings. `None` for an empty family.
/// Source: Bonferroni's inequality; Benjamini, Yekutieli 2005, Journal of the American Statistical Association 100, 71-81.
pub fn interval_level(adjusted: &[Option<f64>], correction: Correction, alpha: f64) -> Option<f64> {
    let family = adjusted.iter().flatten().count();
    let findings = adjusted.iter().flatten().filter(|p| is_finding(**p, alpha)).count();
    if family == 0 {
        return None;
    }
    Some(match correction {
        Correction::None => alpha,
        Correction::Bonferroni | Correction::Holm => alpha / family as f64,
        Correction::BenjaminiHochberg => alpha * findings.max(1) as f64 / family as f64,
    })
}

/// Returns the p-values times the size of the family, at most 1.
/// Source: Dunn 1961, Journal of the American Statistical Association 56, 52-64.
pub fn bonferroni(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
    let family = p_values.iter().flatten().count() as f64;
    p_values.iter().map(|p| p.map(|p| (p * family).min(1.0))).collect()
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
pub fn holm(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
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
pub fn benjamini_hochberg(p_values: &[Option<f64>]) -> Vec<Option<f64>> {
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

/// The levels of a family in which the primary metric weighs more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preferential {
    /// The level of each treatment's primary metric.
    pub alpha_primary: f64,
    /// The level of each treatment's other metrics; `None` if there are none.
    pub alpha_other: Option<f64>,
}

/// Divides `alpha` among `treatments` times `metrics` tests, the part `weight` (0 .. 1) to the primary metric, which is
/// one of the metrics. Alone it gets all. `None` without treatments or metrics.
/// Source: weighted Bonferroni; Eppo's documentation calls it preferential.
pub fn preferential(treatments: u32, metrics: u32, weight: f64, alpha: f64) -> Option<Preferential> {
    if treatments == 0 || metrics == 0 || !(0.0..=1.0).contains(&weight) {
        return None;
    }
    let (treatments, others) = (f64::from(treatments), f64::from(metrics - 1));
    if others == 0.0 {
        return Some(Preferential { alpha_primary: alpha / treatments, alpha_other: None });
    }
    Some(Preferential {
        alpha_primary: weight * alpha / treatments,
        alpha_other: Some((1.0 - weight) * alpha / (treatments * others)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use proptest::prelude::*;

    #[test]
    fn adjusted_p_values_are_those_of_the_libraries() {
        let mut checked = 0;
        for case in golden::cases("multiplicity", "adjust_p_values") {
            let list = case.input["p_values"].as_array().expect("p_values");
            let p_values: Vec<Option<f64>> = list.iter().map(serde_json::Value::as_f64).collect();
            for (name, correction) in [
                ("adjusted_holm", Correction::Holm),
                ("adjusted_bh", Correction::BenjaminiHochberg),
                ("adjusted_bonferroni", Correction::Bonferroni),
            ] {
                for (i, found) in adjust(&p_values, correction).into_iter().enumerate() {
                    case.check(&format!("{name}[{i}]"), found);
                }
            }
            checked += 1;
        }
        assert_eq!(checked, 5);
    }

    #[test]
    fn the_levels_of_a_family_add_up() {
        let all = preferential(3, 4, 0.6, 0.05).expect("a family");
        let sum = 3.0 * (all.alpha_primary + 3.0 * all.alpha_other.expect("others"));
        assert!((sum - 0.05).abs() < 1e-15);
        assert_eq!(preferential(2, 1, 0.5, 0.05), Some(Preferential { alpha_primary: 0.025, alpha_other: None }));
        assert_eq!((preferential(0, 1, 0.5, 0.05), preferential(1, 1, 2.0, 0.05)), (None, None));
    }

    #[test]
    fn intervals_have_the_level_of_their_correction() {
        let p_values = [Some(0.001), None, Some(0.02), Some(0.9)];
        let check = |correction, expected| {
            assert_eq!(interval_level(&adjust(&p_values, correction), correction, 0.06), Some(expected), "{correction:?}");
        };
        check(Correction::None, 0.06);
        check(Correction::Bonferroni, 0.02);
        check(Correction::Holm, 0.02);
        check(Correction::BenjaminiHochberg, 0.04);
        assert_eq!(interval_level(&[None], Correction::Holm, 0.05), None);
    }

    proptest! {
        #[test]
        fn corrections_are_ordered(p_values in prop::collection::vec(prop::option::of(0.0..1.0_f64), 0..20)) {
            let [bonferroni, holm, hochberg] =
                [Correction::Bonferroni, Correction::Holm, Correction::BenjaminiHochberg].map(|correction| adjust(&p_values, correction));
            for (i, p) in p_values.iter().enumerate() {
                let Some(p) = p else { prop_assert_eq!((bonferroni[i], holm[i], hochberg[i]), (None, None, None)); continue };
                let [b, h, f] = [bonferroni[i], holm[i], hochberg[i]].map(|p| p.expect("defined"));
                prop_assert!(*p <= f * (1.0 + 1e-12) && f <= h * (1.0 + 1e-12) && h <= b * (1.0 + 1e-12) && b <= 1.0);
            }
        }
    }
}
