//! Two proportions with few counts, where the normal approximation fails: Fisher's test, Wilson's and Newcombe's intervals.

use crate::distributions::{Tail, chi_square_sf, normal_isf, normal_sf};

/// Users of a variant and how many of them converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Number of users.
    pub users: u64,
    /// How many converted, at most `users`.
    pub converted: u64,
}

impl Count {
    pub(crate) fn rate(&self) -> f64 {
        self.converted as f64 / self.users as f64
    }

    fn missed(&self) -> u64 {
        self.users - self.converted
    }

    /// Returns whether so few converted, or so few did not, that a normal approximation misleads.
    pub fn is_small(&self) -> bool {
        self.converted.min(self.missed()) < 10
    }
}

/// Tables that Fisher's test looks at, at most: 2,000,000 take some 50 ms.
const TABLES_MAX: u64 = 2_000_000;

/// Returns the two-sided p-value of Fisher's exact test: the probability, given the margins, of all tables that are no
/// more probable than the one found. `None` if there are more than 2,000,000 tables, where a normal approximation serves.
/// Source: Fisher 1935, The Logic of Inductive Inference, Journal of the Royal Statistical Society 98, 39-82.
pub fn fisher(control: Count, treatment: Count) -> Option<Tail> {
    let (users, converted) = (control.users + treatment.users, control.converted + treatment.converted);
    let (low, high) = (converted.saturating_sub(treatment.users), converted.min(control.users));
    if high - low > TABLES_MAX {
        return None;
    }
    let logs = hypergeometric(control.users, users, converted, (low, high));
    let found = logs[(control.converted - low) as usize];
    let greatest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logs.iter().map(|log| (log - greatest).exp()).sum();
    // Equal probabilities differ by rounding; what differs by less than this is equal.
    let tail: f64 = logs.iter().filter(|log| **log <= found + 1e-8).map(|log| (log - found).exp()).sum();
    let ln = (found - greatest + tail.ln() - total.ln()).min(0.0);
    Some(Tail { p: ln.exp(), ln })
}

/// Returns the logarithms of the probabilities of `low` to `high` conversions of the control, relative to the first one, by the ratio of
/// neighbours, where `converted` of `users` users did and `control` of these are the control's.
fn hypergeometric(control: u64, users: u64, converted: u64, (low, high): (u64, u64)) -> Vec<f64> {
    let mut logs = Vec::with_capacity((high - low + 1) as usize);
    let mut log = 0.0;
    logs.push(log);
    for count in low..high {
        let up = (control - count) as f64 * (converted - count) as f64;
        let down = (count + 1) as f64 * (users + count + 1 - control - converted) as f64;
        log += (up / down).ln();
        logs.push(log);
    }
    logs
}

/// Products that the exact test over strata makes, at most: 4,000,000 take some 10 ms.
const PRODUCTS_MAX: u64 = 4_000_000;

/// Returns the two-sided p-value of the exact test of control and treatment over strata: the probability, given the margins of each,
/// of all numbers of conversions of the control that are no more probable than the one found. Of one stratum it is [`fisher()`]'s.
/// `None` if there are too many tables, where a normal approximation serves.
/// Source: Cox 1970, The Analysis of Binary Data, section 5.2; the sum's distribution by convolution.
pub fn fisher_over_strata(strata: &[(Count, Count)]) -> Option<Tail> {
    let (mut all, mut found) = (vec![1.0_f64], 0);
    for (control, treatment) in strata {
        let (users, converted) = (control.users + treatment.users, control.converted + treatment.converted);
        let (low, high) = (converted.saturating_sub(treatment.users), converted.min(control.users));
        if (high - low + 1).saturating_mul(all.len() as u64) > PRODUCTS_MAX {
            return None;
        }
        let logs = hypergeometric(control.users, users, converted, (low, high));
        let greatest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let of_stratum: Vec<f64> = logs.iter().map(|log| (log - greatest).exp()).collect();
        let mut sums = vec![0.0; all.len() + of_stratum.len() - 1];
        for (place, one) in all.iter().enumerate() {
            for (step, other) in of_stratum.iter().enumerate() {
                sums[place + step] += one * other;
            }
        }
        // Kept near 1, so that none of them overflows.
        let scale = sums.iter().copied().fold(0.0, f64::max);
        all = sums.into_iter().map(|sum| sum / scale).collect();
        found += (control.converted - low) as usize;
    }
    let (total, at) = (all.iter().sum::<f64>(), all[found]);
    // Equal probabilities differ by rounding; what differs by less than this is equal.
    let tail: f64 = all.iter().filter(|one| **one <= at * (1.0 + 1e-8)).sum();
    let ln = (tail / total).max(f64::MIN_POSITIVE).ln().min(0.0);
    Some(Tail { p: ln.exp(), ln })
}

/// Returns Wilson's interval of one proportion at 1 - `alpha`; `None` without users.
/// Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.
pub fn wilson(count: Count, alpha: f64) -> Option<(f64, f64)> {
    if count.users == 0 {
        return None;
    }
    let (n, p, z) = (count.users as f64, count.rate(), normal_isf(alpha / 2.0));
    let (square, denominator) = (z * z, 1.0 + z * z / n);
    let centre = (p + square / (2.0 * n)) / denominator;
    let half = z / denominator * (p * (1.0 - p) / n + square / (4.0 * n * n)).sqrt();
    // At the borders the interval ends exactly there, which rounding would miss.
    let low = if count.converted == 0 { 0.0 } else { centre - half };
    let high = if count.missed() == 0 { 1.0 } else { centre + half };
    Some((low, high))
}

/// Returns Newcombe's interval of the difference treatment - control at 1 - `alpha`; `None` if a variant has no users.
/// Source: Newcombe 1998, Statistics in Medicine 17, 873-890, method 10.
pub fn newcombe(control: Count, treatment: Count, alpha: f64) -> Option<(f64, f64)> {
    let ((lc, uc), (lt, ut)) = (wilson(control, alpha)?, wilson(treatment, alpha)?);
    let (pc, pt) = (control.rate(), treatment.rate());
    let difference = pt - pc;
    Some((
        difference - ((pt - lt).powi(2) + (uc - pc).powi(2)).sqrt(),
        difference + ((ut - pt).powi(2) + (pc - lc).powi(2)).sqrt(),
    ))
}

/// Returns the statistic and the two-sided p-value of the pooled z-test, which many calculators show; `None` if all or
/// none converted.
pub fn pooled_z(control: Count, treatment: Count) -> Option<(f64, Tail)> {
    let users = (control.users + treatment.users) as f64;
    let pooled = (control.converted + treatment.converted) as f64 / users;
    let variance = pooled * (1.0 - pooled) * (1.0 / control.users as f64 + 1.0 / treatment.users as f64);
    if !(variance > 0.0 && variance.is_finite()) {
        return None;
    }
    let z = (treatment.rate() - control.rate()) / variance.sqrt();
    Some((z, normal_sf(z.abs()).doubled()))
}

/// Returns the statistic and the p-value of the chi-square test that all variants convert alike, without a correction
/// for continuity; `None` with fewer than two variants or if all or none converted.
/// Source: Pearson 1900, Philosophical Magazine 50, 157-175.
pub fn homogeneity(counts: &[Count]) -> Option<(f64, Tail)> {
    let users: u64 = counts.iter().map(|count| count.users).sum();
    let converted: u64 = counts.iter().map(|count| count.converted).sum();
    let filled = counts.iter().filter(|count| count.users > 0).count();
    if filled < 2 || converted == 0 || converted == users {
        return None;
    }
    let rate = converted as f64 / users as f64;
    let statistic = counts
        .iter()
        .filter(|count| count.users > 0)
        .map(|count| {
            let off = count.converted as f64 - count.users as f64 * rate;
            off * off / (count.users as f64 * rate * (1.0 - rate))
        })
        .sum();
    Some((statistic, chi_square_sf(statistic, (filled - 1) as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fisher_is_skipped_where_it_costs_too_much() {
        let big = |converted| Count { users: 50_000_000, converted };
        assert_eq!(fisher(big(2_500_000), big(2_525_000)), None);
        assert!(fisher(big(3), big(30)).is_some_and(|tail| tail.p < 1e-5), "few conversions are cheap with any number of users");
        let all = Count { users: 10, converted: 10 };
        assert_eq!(fisher(all, all).map(|tail| tail.p), Some(1.0));
    }

    /// Goes through the tables of all strata, each with every other, with binomial coefficients as whole numbers.
    fn over_strata_by_counting(strata: &[(Count, Count)]) -> f64 {
        let choose = |n: u64, k: u64| (0..k).fold(1u128, |product, i| product * u128::from(n - i) / u128::from(i + 1));
        let mut ways = std::collections::BTreeMap::from([(0u64, 1u128)]);
        for (control, treatment) in strata {
            let converted = control.converted + treatment.converted;
            let mut next = std::collections::BTreeMap::new();
            for x in converted.saturating_sub(treatment.users)..=converted.min(control.users) {
                let of_table = choose(control.users, x) * choose(treatment.users, converted - x);
                ways.iter().for_each(|(sum, ways)| *next.entry(sum + x).or_default() += ways * of_table);
            }
            ways = next;
        }
        let found = ways[&strata.iter().map(|(control, _)| control.converted).sum::<u64>()];
        ways.values().filter(|ways| **ways <= found).sum::<u128>() as f64 / ways.values().sum::<u128>() as f64
    }

    #[test]
    fn the_exact_test_over_strata_is_skipped_where_it_costs_too_much() {
        let half = Count { users: 10_000, converted: 5_000 };
        assert_eq!(fisher_over_strata(&[(half, half), (half, half)]), None);
        assert_eq!(fisher_over_strata(&[]).map(|tail| tail.p), Some(1.0));
    }

    /// Sums over all tables with binomial coefficients as whole numbers.
    fn fisher_by_counting(control: Count, treatment: Count) -> f64 {
        let choose = |n: u64, k: u64| (0..k).fold(1u128, |product, i| product * u128::from(n - i) / u128::from(i + 1));
        let converted = control.converted + treatment.converted;
        let ways = |x: u64| choose(control.users, x) * choose(treatment.users, converted - x);
        let tables = converted.saturating_sub(treatment.users)..=converted.min(control.users);
        let found = ways(control.converted);
        let tail: u128 = tables.clone().map(ways).filter(|ways| *ways <= found).sum();
        tail as f64 / tables.map(ways).sum::<u128>() as f64
    }

    proptest! {
        #[test]
        fn the_exact_test_over_strata_counts_all_tables(strata in prop::collection::vec((0u64..8, 0u64..8, 0u64..8, 0u64..8), 1..4)) {
            let count = |users: u64, converted: u64| Count { users, converted: converted.min(users) };
            let strata: Vec<_> = strata.into_iter().map(|(nc, xc, nt, xt)| (count(nc, xc), count(nt, xt))).collect();
            let found = fisher_over_strata(&strata).expect("few tables");
            prop_assert!((found.p - over_strata_by_counting(&strata)).abs() < 1e-9, "{:?} {:?}", strata, found);
            let one = strata[0];
            let (alone, fisher) = (fisher_over_strata(&[one]).expect("few tables"), fisher(one.0, one.1).expect("few tables"));
            prop_assert!((alone.p - fisher.p).abs() < 1e-9 && (alone.ln - fisher.ln).abs() < 1e-6);
        }

        #[test]
        fn fisher_counts_tables(nc in 1u64..30, nt in 1u64..30, xc in 0u64..30, xt in 0u64..30) {
            let (control, treatment) = (Count { users: nc, converted: xc.min(nc) }, Count { users: nt, converted: xt.min(nt) });
            let expected = fisher_by_counting(control, treatment);
            let found = fisher(control, treatment).expect("few tables").p;
            prop_assert!((found - expected).abs() <= 1e-9 * expected, "{found} and {expected}");
        }

        #[test]
        fn intervals_hold_their_estimate(nc in 1u64..900, nt in 1u64..900, xc in 0u64..900, xt in 0u64..900) {
            let (control, treatment) = (Count { users: nc, converted: xc.min(nc) }, Count { users: nt, converted: xt.min(nt) });
            let (low, high) = wilson(control, 0.05).expect("users");
            prop_assert!(0.0 <= low && low <= control.rate() && control.rate() <= high && high <= 1.0);
            let (low, high) = newcombe(control, treatment, 0.05).expect("users");
            let difference = treatment.rate() - control.rate();
            prop_assert!(low <= difference && difference <= high && low >= -1.0 - 1e-12 && high <= 1.0 + 1e-12);
        }
    }
}
