//! Quantiles over users, such as the median or the 90th percentile, with a variance that needs no density.

use crate::comparison::{Observed, Sample};
use crate::effect::Status;
use crate::means::Arm;
use crate::moments::Overflow;
use crate::ratio::RatioSums;

/// The normal quantile that the ends below are taken at, whatever the confidence of the answer.
const Z: f64 = 1.959_963_984_540_054;
/// Variances below this one are raised to it, where there are at least 100 values: values are rounded somewhere.
const VARIANCE_MIN: f64 = 1e-5;
/// With fewer values than this the variance is left as it is.
const FLOOR_FROM_VALUES: u64 = 100;

/// The quantile of one variant with the order statistics around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Number of values.
    pub values: u64,
    /// Number of values for which `low` and `high` were placed; as `values`, unless sampled.
    pub placed_for: u64,
    /// Which quantile, 0 < `level` < 1.
    pub level: f64,
    /// The quantile found.
    pub estimate: f64,
    /// The value at level - 1.96 standard errors of the level.
    pub low: f64,
    /// The value at level + 1.96 standard errors of the level.
    pub high: f64,
}

/// Finds a quantile of the values of one variant with linear interpolation; sorts them. `None` without values, or if one
/// is not finite, or if the level is not within 0 .. 1.
pub fn quantile(values: &mut [f64], level: f64) -> Option<Quantile> {
    let is_usable = !values.is_empty() && values.iter().all(|value| value.is_finite()) && level > 0.0 && level < 1.0;
    if !is_usable {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let at = |level: f64| {
        let rank = level.clamp(0.0, 1.0) * (values.len() - 1) as f64;
        let below = rank.floor() as usize;
        let above = (below + 1).min(values.len() - 1);
        values[below] + (rank - below as f64) * (values[above] - values[below])
    };
    let count = values.len() as u64;
    let step = Z * (level * (1.0 - level) / count as f64).sqrt();
    Some(Quantile { values: count, placed_for: count, level, estimate: at(level), low: at(level - step), high: at(level + step) })
}

impl Quantile {
    /// Returns quantile and variance as a test takes them.
    /// # Errors
    /// The status: no values; too few for the ends to lie within the data; ties, so that both ends are the same value.
    /// Source: Deng, Knoblich, Lu 2018, Applying the Delta Method in Metric Analytics, KDD 24, 233-242.
    pub fn arm(&self) -> Result<Arm, Status> {
        if self.values == 0 {
            return Err(Status::NoData);
        }
        let (count, odds) = (self.values as f64, self.level / (1.0 - self.level));
        let is_level = self.level > 0.0 && self.level < 1.0;
        if self.values < 2 || !is_level || count <= Z * Z * odds.max(1.0 / odds) {
            return Err(Status::InsufficientSample);
        }
        let step = (self.high - self.low) / (2.0 * Z);
        let variance = self.placed_for as f64 / count * (count - 1.0) * step * step;
        if !(step > 0.0 && variance > 0.0) {
            return Err(Status::ZeroVariance);
        }
        let variance = if self.values < FLOOR_FROM_VALUES { variance } else { variance.max(VARIANCE_MIN) };
        Ok(Arm { users: self.values, mean: self.estimate, variance })
    }

    /// Returns quantile and variance where values are events, and those of one user are alike: `below` has for each user, of whom some have
    /// no value, how many are at most the quantile, over how many there are.
    /// # Errors
    /// As [`Quantile::arm`]; also with fewer than 2 users. The outer error is [`Overflow`].
    /// Source: Deng, Knoblich, Lu 2018, section 4: the level's variance as of a ratio of users.
    pub fn arm_of_events(&self, below: &RatioSums) -> Result<Result<Arm, Status>, Overflow> {
        let alone = match self.arm() {
            Ok(arm) => arm,
            Err(status) => return Ok(Err(status)),
        };
        let Some(share) = below.arm()?.filter(|share| share.users > 1) else { return Ok(Err(Status::InsufficientSample)) };
        // Against the variance of as many values that are not alike.
        let inflation = share.variance_of_mean() * self.values as f64 / (self.level * (1.0 - self.level));
        let variance = alone.variance * inflation;
        Ok(if variance > 0.0 { Ok(Arm { variance, ..alone }) } else { Err(Status::ZeroVariance) })
    }

    /// Returns the quantile as [`crate::comparison::compare`] takes it.
    pub fn observed(&self) -> Observed {
        let mean = (self.values > 0).then_some(self.estimate);
        Observed { users: self.values, mean, sample: self.arm().map(Sample::Mean) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_statistics_are_interpolated() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        let found = quantile(&mut values, 0.5).expect("values");
        assert_eq!((found.estimate, found.low, found.high), (3.0, found.low, found.high));
        // 1.96 standard errors of the level are 0.438: ranks 0.247 and 3.753.
        assert!((found.low - 1.2469).abs() < 1e-4 && (found.high - 4.7531).abs() < 1e-4, "{found:?}");
        assert_eq!(quantile(&mut [], 0.5), None);
        assert_eq!(quantile(&mut [f64::NAN], 0.5), None);
        assert_eq!(quantile(&mut [1.0], 1.0), None);
    }

    #[test]
    fn what_has_no_variance_says_why() {
        let of = |values, low, high| Quantile { values, placed_for: values, level: 0.99, estimate: 5.0, low, high };
        assert_eq!(of(0, 0.0, 0.0).arm(), Err(Status::NoData));
        assert_eq!(of(380, 4.0, 6.0).arm(), Err(Status::InsufficientSample));
        assert!(of(381, 4.0, 6.0).arm().is_ok());
        assert_eq!(of(5_000, 5.0, 5.0).arm(), Err(Status::ZeroVariance));
        assert_eq!(of(5_000, 5.0, 5.0 + 1e-9).arm().map(|arm| arm.variance), Ok(VARIANCE_MIN));
    }

    #[test]
    fn a_normal_sample_has_the_variance_of_theory() {
        // The quantiles of a normal distribution themselves, 9,999 of them.
        let mut values: Vec<f64> = (1..10_000).map(|i| -crate::distributions::normal_isf(f64::from(i) / 10_000.0)).collect();
        let arm = quantile(&mut values, 0.5).expect("values").arm().expect("a variance");
        assert!((arm.variance - std::f64::consts::PI / 2.0).abs() < 2e-3, "{arm:?}");
    }
}
