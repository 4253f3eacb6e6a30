//! Quantiles over users, such as the median or the 90th percentile, with a variance that needs no density.

use crate::comparison::{Sample, Status};
use crate::effect::{Scale, Undefined, scaled};
use crate::means::Arm;

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

/// Sums over users (clusters) that a quantile over events needs: events of one user are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clusters {
    /// Number of users.
    pub users: u64,
    /// Events at or below the quantile, summed over users.
    pub below: f64,
    /// The squares of the same per user, summed.
    pub below_squares: f64,
    /// Events, summed over users.
    pub events: f64,
    /// The squares of the same per user, summed.
    pub events_squares: f64,
    /// Events at or below times events, per user, summed.
    pub products: f64,
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
    /// Returns quantile and variance as a test takes them. With `clusters` values are events, and those of one user are
    /// alike.
    /// # Errors
    /// The status: no values; too few for the ends to lie within the data; ties, so that both ends are the same value.
    /// Source: Deng, Knoblich, Lu 2018, Applying the Delta Method in Metric Analytics, KDD 24, 233-242.
    pub fn arm(&self, clusters: Option<&Clusters>) -> Result<Arm, Status> {
        if self.values == 0 {
            return Err(Status::NoData);
        }
        let (count, odds) = (self.values as f64, self.level / (1.0 - self.level));
        let is_level = self.level > 0.0 && self.level < 1.0;
        if self.values < 2 || !is_level || count <= Z * Z * odds.max(1.0 / odds) {
            return Err(Status::InsufficientSample);
        }
        let step = (self.high - self.low) / (2.0 * Z);
        let factor = match clusters {
            Some(clusters) => clusters.level_variance().ok_or(Status::InsufficientSample)? * count,
            None => self.level * (1.0 - self.level),
        };
        let inflation = factor / (self.level * (1.0 - self.level));
        let variance = self.placed_for as f64 / count * (count - 1.0) * step * step * inflation;
        if !(step > 0.0 && variance > 0.0) {
            return Err(Status::ZeroVariance);
        }
        let variance = if self.values < FLOOR_FROM_VALUES { variance } else { variance.max(VARIANCE_MIN) };
        Ok(Arm { users: self.values, mean: self.estimate, variance })
    }
}

impl Clusters {
    /// The variance of the share of events at or below the quantile; `None` if a cluster more is needed.
    fn level_variance(&self) -> Option<f64> {
        if self.users < 2 || self.events <= 0.0 {
            return None;
        }
        let users = self.users as f64;
        let spread = |products: f64, one: f64, two: f64| (products - one * two / users) / (users - 1.0);
        let share = self.below / self.events;
        let events = self.events / users;
        let variance = spread(self.below_squares, self.below, self.below)
            - 2.0 * share * spread(self.products, self.below, self.events)
            + share * share * spread(self.events_squares, self.events, self.events);
        Some(variance.max(0.0) / (users * events * events))
    }
}

/// Returns both variants of a quantile as [`crate::effect::effect`] and [`crate::comparison::compare`] take them.
/// # Errors
/// [`Undefined`] by the first variant whose quantile has no variance, with the effect where both quantiles are known.
pub fn samples(
    control: (&Quantile, Option<&Clusters>),
    treatment: (&Quantile, Option<&Clusters>),
    scale: Scale,
) -> Result<(Sample, Sample), Undefined> {
    let both = control.0.values > 0 && treatment.0.values > 0;
    let difference = treatment.0.estimate - control.0.estimate;
    let estimate = if both { scaled(difference, control.0.estimate, scale) } else { None };
    let undefined = |status| Undefined::new(if both { status } else { Status::NoData }, estimate);
    let arms = (control.0.arm(control.1).map_err(undefined)?, treatment.0.arm(treatment.1).map_err(undefined)?);
    Ok((Sample::Mean(arms.0), Sample::Mean(arms.1)))
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
        assert_eq!(of(0, 0.0, 0.0).arm(None), Err(Status::NoData));
        assert_eq!(of(380, 4.0, 6.0).arm(None), Err(Status::InsufficientSample));
        assert!(of(381, 4.0, 6.0).arm(None).is_ok());
        assert_eq!(of(5_000, 5.0, 5.0).arm(None), Err(Status::ZeroVariance));
        assert_eq!(of(5_000, 5.0, 5.0 + 1e-9).arm(None).map(|arm| arm.variance), Ok(VARIANCE_MIN));
        let one = Clusters { users: 1, below: 1.0, below_squares: 1.0, events: 1.0, events_squares: 1.0, products: 1.0 };
        assert_eq!(of(5_000, 4.0, 6.0).arm(Some(&one)), Err(Status::InsufficientSample));
    }

    #[test]
    fn a_normal_sample_has_the_variance_of_theory() {
        // The quantiles of a normal distribution themselves, 9,999 of them.
        let mut values: Vec<f64> =
            (1..10_000).map(|i| -crate::distributions::normal_isf(f64::from(i) / 10_000.0)).collect();
        let arm = quantile(&mut values, 0.5).expect("values").arm(None).expect("a variance");
        assert!((arm.variance - std::f64::consts::PI / 2.0).abs() < 2e-3, "{arm:?}");
    }

    #[test]
    fn events_of_independent_users_need_no_inflation() {
        // One event per user: the share at or below has its binomial variance.
        let users = 1_000.0;
        let below = 900.0;
        let clusters =
            Clusters { users: 1_000, below, below_squares: below, events: users, events_squares: users, products: below };
        let variance = clusters.level_variance().expect("users");
        assert!((variance - 0.9 * 0.1 / 999.0).abs() < 1e-12, "{variance}");
    }
}
