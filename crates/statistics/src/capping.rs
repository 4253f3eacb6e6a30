//! Capping: the largest sums per user are cut at a percentile, because a few of them would hide any effect.

/// A cap with what it changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The largest sum that a user counts with, in the unit of the sums.
    pub value: i128,
    /// Users per variant whose sum was cut.
    pub users_capped: Vec<u64>,
}

/// Finds the cap: the percentile (0 < `percentile` <= 100) of the sums that are not 0, of the users of all variants
/// together, with linear interpolation, exact and rounded to a whole number once. One cap for all variants: caps of their own
/// would bias the effect. `None` if all sums are 0 or the percentile is out of range.
pub fn cap_value(sums: impl IntoIterator<Item = i128>, percentile: f64) -> Option<i128> {
    // Percentiles are taken in millionths of a percent, so that no rounded float decides.
    const HUNDRED: i128 = 100_000_000;
    if !(percentile > 0.0 && percentile <= 100.0) {
        return None;
    }
    let mut sums: Vec<i128> = sums.into_iter().filter(|sum| *sum != 0).collect();
    let last = sums.len().checked_sub(1)?;
    let rank = last as i128 * (percentile * 1e6).round() as i128;
    let (below, rest) = ((rank / HUNDRED) as usize, rank % HUNDRED);
    let (_, low, above) = sums.select_nth_unstable(below);
    let low = *low;
    let gap = above.iter().min().map_or(0, |next| next - low);
    // Of the whole gap and its remainder apart, so that no product is large.
    let part = gap / HUNDRED * rest + (gap % HUNDRED * rest + HUNDRED / 2) / HUNDRED;
    Some(low + part)
}

/// Cuts the sums per user of all variants at one cap, found by [`cap_value`]. A sum of 0 stays 0.
pub fn cap(variants: &mut [Vec<i128>], percentile: f64) -> Option<Cap> {
    let value = cap_value(variants.iter().flatten().copied(), percentile)?;
    let users_capped = variants
        .iter_mut()
        .map(|sums| {
            let above = sums.iter_mut().filter(|sum| **sum != 0 && **sum > value);
            above.map(|sum| *sum = value).count() as u64
        })
        .collect();
    Some(Cap { value, users_capped })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_percentile_is_interpolated_between_the_sums_that_are_not_0() {
        let check = |sums: &[i128], percentile: f64, expected: Option<i128>| {
            assert_eq!(cap_value(sums.iter().copied(), percentile), expected, "{sums:?} {percentile}");
        };
        check(&[0, 0, 100, 200, 300, 400, 500], 50.0, Some(300));
        check(&[100, 200], 95.0, Some(195));
        check(&[500, 0, 100, 300, 200, 400], 99.9, Some(500));
        check(&[5_000_000, 1_000_000, 2_000_000], 99.9, Some(4_994_000));
        check(&[7], 1.0, Some(7));
        check(&[1, 2], 100.0, Some(2));
        check(&[-300, -100, 200], 50.0, Some(-100));
        check(&[0, 0], 99.0, None);
        check(&[], 99.0, None);
        check(&[1], 0.0, None);
        check(&[1], f64::NAN, None);
        check(&[-10_i128.pow(37), 10_i128.pow(37)], 50.0, Some(0));
    }

    #[test]
    fn one_cap_serves_all_variants() {
        let mut variants = vec![vec![0, 100, 1_000], vec![50, 2_000, 3_000]];
        assert_eq!(cap(&mut variants, 50.0), Some(Cap { value: 1_000, users_capped: vec![0, 2] }));
        assert_eq!(variants, [vec![0, 100, 1_000], vec![50, 1_000, 1_000]]);
    }

    proptest! {
        #[test]
        fn the_cap_lies_within_the_sums(sums in prop::collection::vec(-1_000i128..1_000_000, 1..50), percentile in 0.1..100.0_f64) {
            let nonzero: Vec<i128> = sums.iter().copied().filter(|sum| *sum != 0).collect();
            match cap_value(sums, percentile) {
                Some(value) => prop_assert!(nonzero.iter().min() <= Some(&value) && Some(&value) <= nonzero.iter().max()),
                None => prop_assert!(nonzero.is_empty()),
            }
        }
    }
}
