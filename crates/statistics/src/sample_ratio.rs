//! Do the variants hold the users that they should? If not, something loses users, and no effect can be trusted.

use crate::distributions::chi_square_sf;
use crate::special::stirling_error;

/// What the check found.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRatio {
    /// The outcome.
    pub status: Status,
    /// The chi-square statistic, where it is defined.
    pub statistic: Option<f64>,
    /// Its p-value.
    pub p_value: Option<f64>,
    /// The decimal logarithm of the p-value.
    pub log10_p: Option<f64>,
    /// Share of each variant with a positive weight that was expected, in their order.
    pub expected: Vec<f64>,
    /// Share of each of them that was found; empty without users.
    pub observed: Vec<f64>,
}

/// The outcome of the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Nothing speaks against the shares.
    Ok,
    /// The shares differ by more than chance, or a variant of weight 0 has users.
    Mismatch,
    /// There are no users.
    NoData,
    /// Fewer than 5 users are expected in some variant, so that the p-value is a rough one; or only one variant has a weight.
    InsufficientSample,
}

/// Compares the users of each variant with its weight (any positive scale), by Pearson's chi-square test over the
/// variants with a positive weight. A mismatch is a p-value below `threshold`.
/// Source: Pearson 1900, Philosophical Magazine 50, 157-175.
pub fn sample_ratio(users: &[u64], weights: &[f64], threshold: f64) -> SampleRatio {
    debug_assert_eq!(users.len(), weights.len());
    let weighted: Vec<(u64, f64)> =
        users.iter().copied().zip(weights.iter().copied()).filter(|(_, weight)| *weight > 0.0).collect();
    let total_weight: f64 = weighted.iter().map(|(_, weight)| weight).sum();
    let total: u64 = weighted.iter().map(|(count, _)| count).sum();
    let stray: u64 = users.iter().sum::<u64>() - total;
    let expected: Vec<f64> = weighted.iter().map(|(_, weight)| weight / total_weight).collect();
    let mut found =
        SampleRatio { status: Status::NoData, statistic: None, p_value: None, log10_p: None, expected, observed: Vec::new() };
    if total == 0 {
        if stray > 0 {
            found.status = Status::Mismatch;
        }
        return found;
    }
    found.observed = weighted.iter().map(|(count, _)| *count as f64 / total as f64).collect();
    if weighted.len() < 2 {
        found.status = if stray > 0 { Status::Mismatch } else { Status::InsufficientSample };
        return found;
    }
    let statistic: f64 = weighted
        .iter()
        .zip(&found.expected)
        .map(|((count, _), share)| {
            let expected = share * total as f64;
            (*count as f64 - expected).powi(2) / expected
        })
        .sum();
    let tail = chi_square_sf(statistic, (weighted.len() - 1) as f64);
    found.statistic = Some(statistic);
    found.p_value = Some(tail.p);
    found.log10_p = Some(tail.log10());
    let is_rough = found.expected.iter().any(|share| share * (total as f64) < 5.0);
    found.status = match tail.p < threshold {
        _ if stray > 0 => Status::Mismatch,
        _ if is_rough => Status::InsufficientSample,
        true => Status::Mismatch,
        false => Status::Ok,
    };
    found
}

/// How strongly the prior of [`sequential`] holds on to the expected shares.
pub const CONCENTRATION: f64 = 10_000.0;

/// Checks the shares after every day in such a way that looking daily raises no more false alarms than `p` says: returns
/// for each day the decimal logarithm of the p-value so far, which never rises. `daily_users` holds for each day the new
/// users of each variant; `weights` are of any positive scale. Users of a variant of weight 0 are impossible: from then on
/// `f64::NEG_INFINITY`. Before the first user, and with a single variant, it is 0.
/// Source: Lindon, Malek 2022, Anytime-Valid Inference for Multinomial Count Data, NeurIPS 35; a Dirichlet mixture against
/// the multinomial.
pub fn sequential(daily_users: &[Vec<u64>], weights: &[f64], concentration: f64) -> Vec<f64> {
    let total: f64 = weights.iter().filter(|weight| **weight > 0.0).sum();
    let shares: Vec<f64> = weights.iter().filter(|weight| **weight > 0.0).map(|weight| weight / total).collect();
    let mut users = vec![0u64; shares.len()];
    let mut least = 0.0_f64;
    let day = |day: &Vec<u64>| {
        let mut place = 0;
        for (count, weight) in day.iter().zip(weights) {
            if *weight > 0.0 {
                users[place] += count;
                place += 1;
            } else if *count > 0 {
                least = f64::NEG_INFINITY;
            }
        }
        if shares.len() > 1 {
            least = least.min(-ln_bayes_factor(&users, &shares, concentration) / std::f64::consts::LN_10);
        }
        least
    };
    daily_users.iter().map(day).collect()
}

/// Returns the logarithm of the Bayes factor of a Dirichlet mixture of mean `shares` (positive, summing to 1) against the
/// multinomial with these shares, for the counts found. No two large terms cancel in it.
pub(crate) fn ln_bayes_factor(counts: &[u64], shares: &[f64], concentration: f64) -> f64 {
    let total: f64 = counts.iter().map(|count| *count as f64).sum();
    // The logarithm of a ratio of gamma functions, without the powers that cancel between counts and total.
    let part =
        |prior: f64, count: f64| (prior - 0.5) * (count / prior).ln_1p() + stirling_error(prior + count) - stirling_error(prior);
    let each = |count: f64, share: f64| {
        let off = (count - share * total) / (share * (concentration + total));
        part(share * concentration, count) + count * off.ln_1p()
    };
    let sum: f64 =
        counts.iter().zip(shares).filter(|(count, _)| **count > 0).map(|(count, share)| each(*count as f64, *share)).sum();
    sum - if total > 0.0 { part(concentration, total) } else { 0.0 }
}

impl Status {
    /// Returns the status as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Mismatch => "mismatch",
            Status::NoData => "no_data",
            Status::InsufficientSample => "insufficient_sample",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_users_and_lone_variants() {
        let days = [vec![0, 0, 0], vec![500, 500, 0], vec![5, 5, 1], vec![5, 5, 0]];
        let found = sequential(&days, &[2.0, 2.0, 0.0], CONCENTRATION);
        assert_eq!((found[0], found[2], found[3]), (0.0, f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert!(found[1] <= 0.0 && found[1] > -0.1, "{found:?}");
        assert_eq!(sequential(&[vec![7], vec![9]], &[1.0], CONCENTRATION), [0.0, 0.0]);
        // A billion users off by a tenth of a point: no digits are lost, and the evidence is overwhelming.
        let many = sequential(&[vec![500_500_000, 499_500_000]], &[1.0, 1.0], CONCENTRATION);
        assert!(many[0] < -100.0 && many[0].is_finite(), "{many:?}");
    }

    #[test]
    fn borders() {
        let check = |users: &[u64], weights: &[f64], expected: Status| {
            assert_eq!(sample_ratio(users, weights, 0.001).status, expected, "{users:?} {weights:?}");
        };
        check(&[4, 5], &[1.0, 1.0], Status::InsufficientSample);
        check(&[5, 5], &[1.0, 1.0], Status::Ok);
        check(&[50, 50, 1], &[50.0, 50.0, 0.0], Status::Mismatch);
        check(&[0, 0, 3], &[50.0, 50.0, 0.0], Status::Mismatch);
        check(&[100], &[1.0], Status::InsufficientSample);
        check(&[], &[], Status::NoData);
        check(&[900, 100], &[9.0, 1.0], Status::Ok);
        check(&[1_000_000_000, 1_001_000_000], &[1.0, 1.0], Status::Mismatch);
    }
}
