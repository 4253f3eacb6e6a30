//! Do the variants hold the users that they should? If not, something loses users, and no effect can be trusted.

use super::distributions::chi_square_sf;

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
    /// Fewer than 5 users are expected in some variant, or only one variant has a weight.
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
    if weighted.len() < 2 || found.expected.iter().any(|share| share * (total as f64) < 5.0) {
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
    found.status = if tail.p < threshold || stray > 0 { Status::Mismatch } else { Status::Ok };
    found
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
    use crate::statistics::golden;

    #[test]
    fn the_check_is_that_of_the_libraries() {
        for case in golden::cases("srm", "srm_chi_square") {
            let numbers = |name: &str| case.input[name].as_array().expect("a list").clone();
            let users: Vec<u64> = numbers("users").iter().map(|value| value.as_u64().expect("users")).collect();
            let weights: Vec<f64> = numbers("weights").iter().map(|value| value.as_f64().expect("a weight")).collect();
            let found = sample_ratio(&users, &weights, case.number("threshold"));
            case.check_status(found.status.as_str());
            case.check("p_value", found.p_value);
            if case.has("chi2") {
                case.check("chi2", found.statistic);
                case.check("log10_p_value", found.log10_p);
                for (i, share) in found.observed.iter().enumerate() {
                    case.check(&format!("observed_share[{i}]"), *share);
                }
            }
        }
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
