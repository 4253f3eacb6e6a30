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

/// What the check found where the weights changed.
#[derive(Clone, Debug, PartialEq)]
pub struct OverStrata {
    /// All strata together; the shares are those of all users.
    pub all: SampleRatio,
    /// Degrees of freedom of its statistic.
    pub dof: u64,
    /// Each stratum, with the variants that were in it.
    pub each: Vec<SampleRatio>,
}

/// Users who were assigned in the same shares, by variant, with the weights that were in force; `None` of a variant that was not in it
/// then, whose users are no business of the stratum.
pub type Shares = (Vec<u64>, Vec<Option<f64>>);

/// Compares the users of each variant with its weight where the weights changed: within each stratum, and then in all of them together, by
/// the sum of the statistics. A stratum of too few users says nothing beside others.
/// Source: sums of independent chi-square variables; why not pooled: as of [`crate::comparison::compare_strata`].
pub fn sample_ratio_over_strata(strata: &[Shares], threshold: f64) -> OverStrata {
    let of_stratum = |(users, weights): &Shares| {
        let members = users.iter().zip(weights).filter_map(|(users, weight)| weight.map(|weight| (*users, weight)));
        let (users, weights): (Vec<u64>, Vec<f64>) = members.unzip();
        sample_ratio(&users, &weights, threshold)
    };
    let each: Vec<SampleRatio> = strata.iter().map(of_stratum).collect();
    let is_sound = |ratio: &&SampleRatio| ratio.statistic.is_some() && ratio.status != Status::InsufficientSample;
    let has_sound = each.iter().any(|ratio| is_sound(&ratio));
    let tested = || each.iter().filter(|ratio| is_sound(ratio) || (!has_sound && ratio.statistic.is_some()));
    let statistic: f64 = tested().filter_map(|ratio| ratio.statistic).sum();
    let dof: u64 = tested().map(|ratio| ratio.expected.len() as u64 - 1).sum();
    let tail = (dof > 0).then(|| chi_square_sf(statistic, dof as f64));
    // A user in a variant of weight 0 is a mismatch whatever the shares are.
    let is_stray = each.iter().any(|ratio| ratio.status == Status::Mismatch && ratio.p_value.is_none_or(|p| p >= threshold));
    let status = match &tail {
        _ if is_stray => Status::Mismatch,
        None if each.iter().all(|ratio| ratio.status == Status::NoData) => Status::NoData,
        _ if !has_sound => Status::InsufficientSample,
        Some(tail) if tail.p < threshold => Status::Mismatch,
        _ => Status::Ok,
    };
    let variants = strata.iter().map(|(users, _)| users.len()).max().unwrap_or(0);
    let (mut expected, mut observed) = (vec![None; variants], vec![None; variants]);
    for ((users, weights), ratio) in strata.iter().zip(&each) {
        let weighted: Vec<usize> = (0..variants).filter(|place| weights[*place].is_some_and(|weight| weight > 0.0)).collect();
        let total: u64 = weighted.iter().map(|place| users[*place]).sum();
        for (place, share) in weighted.into_iter().zip(&ratio.expected) {
            *expected[place].get_or_insert(0.0) += share * total as f64;
            *observed[place].get_or_insert(0.0) += users[place] as f64;
        }
    }
    let total: f64 = observed.iter().flatten().sum();
    let shares = |counts: Vec<Option<f64>>| counts.into_iter().flatten().map(|count| count / total).collect();
    let (expected, observed) = if total > 0.0 { (shares(expected), shares(observed)) } else { (Vec::new(), Vec::new()) };
    let (p_value, log10_p) = (tail.as_ref().map(|tail| tail.p), tail.as_ref().map(|tail| tail.log10()));
    let all = SampleRatio { status, statistic: tail.map(|_| statistic), p_value, log10_p, expected, observed };
    OverStrata { all, dof, each }
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
    let weights: Vec<Option<f64>> = weights.iter().copied().map(Some).collect();
    sequential_over_strata(daily_users, &[weights], concentration)
}

/// Does the same where the weights changed: the evidence of strata, users who were assigned in the same shares, is multiplied.
/// `daily_users` has the variants of the first stratum, then those of the next one; weights as of [`Shares`].
/// Source: as of [`sequential`]; products of e-processes of disjoint users are one.
pub fn sequential_over_strata(daily_users: &[Vec<u64>], strata: &[Vec<Option<f64>>], concentration: f64) -> Vec<f64> {
    let share = |weights: &Vec<Option<f64>>| {
        let total: f64 = weights.iter().flatten().filter(|weight| **weight > 0.0).sum();
        weights.iter().flatten().filter(|weight| **weight > 0.0).map(|weight| weight / total).collect::<Vec<f64>>()
    };
    let shares: Vec<Vec<f64>> = strata.iter().map(share).collect();
    let mut users: Vec<Vec<u64>> = shares.iter().map(|shares| vec![0; shares.len()]).collect();
    let mut least = 0.0_f64;
    let day = |day: &Vec<u64>| {
        let mut counts = day.iter();
        for (weights, users) in strata.iter().zip(&mut users) {
            let mut place = 0;
            for (weight, count) in weights.iter().zip(counts.by_ref()) {
                if weight.is_some_and(|weight| weight > 0.0) {
                    users[place] += count;
                    place += 1;
                } else if weight.is_some() && *count > 0 {
                    least = f64::NEG_INFINITY;
                }
            }
        }
        let of_stratum = |(users, shares): (&Vec<u64>, &Vec<f64>)| ln_bayes_factor(users, shares, concentration);
        let tested = users.iter().zip(&shares).filter(|(_, shares)| shares.len() > 1);
        let evidence: f64 = tested.map(of_stratum).sum();
        least = least.min(-evidence / std::f64::consts::LN_10);
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

    /// 1,000 and 1,000, then a third variant, and 300 each; pooled, the third has too few.
    #[test]
    fn shares_that_changed_are_compared_within_their_time() {
        let shares = |users: [u64; 3], weights: [Option<f64>; 3]| (users.to_vec(), weights.to_vec());
        let (two, three) = ([Some(1.0), Some(1.0), None], [Some(1.0), Some(1.0), Some(1.0)]);
        let (before, after) = (shares([1_000, 1_000, 0], two), shares([300, 300, 300], three));
        let found = sample_ratio_over_strata(&[before.clone(), after.clone()], 0.001);
        assert_eq!((found.all.status, found.all.statistic, found.all.p_value, found.dof), (Status::Ok, Some(0.0), Some(1.0), 3));
        assert_eq!(found.all.expected, found.all.observed);
        assert!(sample_ratio(&[1_300, 1_300, 300], &[1.0; 3], 0.001).p_value.is_some_and(|p| p < 1e-100));
        // Crook et al. 2009: both days are exact, and chi-square against half and half is 480,200.
        let friday = (vec![990_000, 10_000], vec![Some(99.0), Some(1.0)]);
        let saturday = (vec![500_000, 500_000], vec![Some(50.0), Some(50.0)]);
        assert_eq!(sample_ratio_over_strata(&[friday, saturday], 0.001).all.statistic, Some(0.0));
        assert_eq!(sample_ratio(&[1_490_000, 510_000], &[1.0, 1.0], 0.001).statistic, Some(480_200.0));
        // One day off is a mismatch, few users beside many say nothing, and a variant of weight 0 has none.
        let check = |strata: &[Shares], status: Status, dof: u64| {
            let found = sample_ratio_over_strata(strata, 0.001);
            assert_eq!((found.all.status, found.dof), (status, dof), "{strata:?} {found:?}");
        };
        check(&[before.clone(), shares([300, 300, 100], three)], Status::Mismatch, 3);
        check(&[before.clone(), shares([3, 0, 0], three)], Status::Ok, 1);
        check(&[shares([3, 0, 0], two), shares([0, 3, 0], three)], Status::InsufficientSample, 3);
        check(&[before.clone(), shares([300, 300, 1], [Some(1.0), Some(1.0), Some(0.0)])], Status::Mismatch, 2);
        check(&[shares([0; 3], two), shares([0; 3], three)], Status::NoData, 0);
        check(&[], Status::NoData, 0);
        // A user of a variant before it was added is no business of that time.
        check(&[shares([1_000, 1_000, 9], two), after], Status::Ok, 3);
        assert_eq!(
            sample_ratio_over_strata(std::slice::from_ref(&before), 0.001).each[0],
            sample_ratio(&[1_000, 1_000], &[1.0, 1.0], 0.001)
        );
    }

    #[test]
    fn evidence_of_strata_is_multiplied() {
        let (even, uneven) = (vec![Some(1.0), Some(1.0)], vec![Some(9.0), Some(1.0)]);
        let days = [vec![600, 400, 0, 0], vec![0, 0, 900, 100], vec![0, 0, 1_800, 300]];
        let found = sequential_over_strata(&days, &[even, uneven], CONCENTRATION);
        let first = sequential(&[vec![600, 400]], &[1.0, 1.0], CONCENTRATION)[0];
        let of_both = |second: &[u64]| -ln_bayes_factor(second, &[0.9, 0.1], CONCENTRATION) / std::f64::consts::LN_10 + first;
        let expected = [first, first.min(of_both(&[900, 100])), first.min(of_both(&[900, 100])).min(of_both(&[2_700, 400]))];
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{found:?} {expected:?}");
        let stray =
            sequential_over_strata(&[vec![1, 1, 1, 1]], &[vec![Some(1.0), Some(0.0)], vec![None, Some(1.0)]], CONCENTRATION);
        assert_eq!(stray, [f64::NEG_INFINITY]);
        let not_in_it = sequential_over_strata(&[vec![5, 5, 3]], &[vec![Some(1.0), Some(1.0), None]], CONCENTRATION);
        assert_eq!(not_in_it, sequential(&[vec![5, 5]], &[1.0, 1.0], CONCENTRATION));
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
