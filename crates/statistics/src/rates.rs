//! Intervals and tests of conversion rates that calculators and other products show, beside those of
//! [`crate::proportions`] that decide.

use crate::beta::Beta;
use crate::distributions::{Tail, normal_isf, normal_sf};
use crate::proportions::Count;

/// Returns statistic and two-sided p-value of the z-test whose variance is that of each arm; `None` if a variant has no
/// users, or neither any variance.
pub fn unpooled_z(control: Count, treatment: Count) -> Option<(f64, Tail)> {
    let (difference, std_error) = difference(control, treatment)?;
    let z = difference / std_error;
    (std_error > 0.0).then(|| (z, normal_sf(z.abs()).doubled()))
}

fn difference(control: Count, treatment: Count) -> Option<(f64, f64)> {
    if control.users == 0 || treatment.users == 0 {
        return None;
    }
    let variance = |count: Count| count.rate() * (1.0 - count.rate()) / count.users as f64;
    Some((treatment.rate() - control.rate(), (variance(control) + variance(treatment)).sqrt()))
}

/// Returns Wald's interval of the difference treatment - control at 1 - `alpha`; `None` if a variant has no users, or if neither
/// has any variance: an interval without width would claim to know the difference.
pub fn wald(control: Count, treatment: Count, alpha: f64) -> Option<(f64, f64)> {
    let (difference, std_error) = difference(control, treatment)?;
    let half = normal_isf(alpha / 2.0) * std_error;
    (std_error > 0.0).then_some((difference - half, difference + half))
}

/// Returns the interval of Agresti and Caffo of the difference at 1 - `alpha`: Wald's after one more user of each kind in
/// each variant.
/// Source: Agresti, Caffo 2000, The American Statistician 54, 280-288.
pub fn agresti_caffo(control: Count, treatment: Count, alpha: f64) -> Option<(f64, f64)> {
    let more = |count: Count| Count { users: count.users + 2, converted: count.converted + 1 };
    difference(control, treatment)?;
    wald(more(control), more(treatment), alpha)
}

/// Returns the interval of the relative difference at 1 - `alpha` by the logarithm of the ratio of both rates; `None` if
/// none converted in a variant.
/// Source: Katz, Baptista, Azen, Pike 1978, Biometrics 34, 469-474.
pub fn relative_by_logarithm(control: Count, treatment: Count, alpha: f64) -> Option<(f64, f64)> {
    if control.converted == 0 || treatment.converted == 0 {
        return None;
    }
    let part = |count: Count| 1.0 / count.converted as f64 - 1.0 / count.users as f64;
    let half = normal_isf(alpha / 2.0) * (part(control) + part(treatment)).sqrt();
    let centre = (treatment.rate() / control.rate()).ln();
    Some(((centre - half).exp_m1(), (centre + half).exp_m1()))
}

/// Returns the exact interval of one rate at 1 - `alpha`; `None` without users.
/// Source: Clopper, Pearson 1934, Biometrika 26, 404-413; as quantiles of the beta distribution.
pub fn clopper_pearson(count: Count, alpha: f64) -> Option<(f64, f64)> {
    if count.users == 0 {
        return None;
    }
    let (hit, missed) = (count.converted as f64, (count.users - count.converted) as f64);
    let low = if hit == 0.0 { 0.0 } else { Beta::new(hit, missed + 1.0)?.quantile(alpha / 2.0) };
    let high = if missed == 0.0 { 1.0 } else { Beta::new(hit + 1.0, missed)?.upper_quantile(alpha / 2.0) };
    Some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_undefined_is_absent() {
        let (none, some) = (Count { users: 0, converted: 0 }, Count { users: 10, converted: 10 });
        assert_eq!(unpooled_z(none, some), None);
        assert_eq!(unpooled_z(some, some), None);
        assert_eq!(wald(some, none, 0.05), None);
        let count = |users, converted| Count { users, converted };
        for (control, treatment) in [((1, 0), (1, 1)), ((9, 0), (7, 0)), ((9, 9), (7, 7)), ((9, 9), (7, 0))] {
            let (control, treatment) = (count(control.0, control.1), count(treatment.0, treatment.1));
            assert_eq!(wald(control, treatment, 0.05), None, "no interval without width");
            let (low, high) = crate::proportions::newcombe(control, treatment, 0.05).expect("users");
            assert!(high - low > 0.1, "the exact one is wide: {low} {high}");
        }
        assert_eq!(agresti_caffo(some, none, 0.05), None);
        assert_eq!(clopper_pearson(none, 0.05), None);
        assert_eq!(relative_by_logarithm(Count { users: 9, converted: 0 }, some, 0.05), None);
    }

    proptest! {
        #[test]
        fn intervals_hold_their_estimate(nc in 1u64..2_000, nt in 1u64..2_000, xc in 0u64..2_000, xt in 0u64..2_000, alpha in 0.001..0.5_f64) {
            let (control, treatment) = (Count { users: nc, converted: xc.min(nc) }, Count { users: nt, converted: xt.min(nt) });
            let difference = treatment.rate() - control.rate();
            for ends in [wald(control, treatment, alpha), relative_by_logarithm(control, treatment, alpha)].into_iter().flatten() {
                prop_assert!(ends.0 <= ends.1 && ends.0.is_finite() && ends.1.is_finite());
            }
            if let Some((low, high)) = wald(control, treatment, alpha) {
                prop_assert!(low <= difference && difference <= high && low < high);
            }
            let (low, high) = clopper_pearson(control, alpha).expect("users");
            prop_assert!(low <= control.rate() && control.rate() <= high, "{low} {high}");
        }
    }
}
