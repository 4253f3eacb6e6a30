//! Ratio metrics: a sum over users divided by another, such as clicks per session or value per order.

use ethnum::I256;

use crate::comparison::{Observed, Sample};
use crate::effect::Status;
use crate::means::Arm;
use crate::moments::Overflow;
use crate::sums::{Sums, covariance};

/// Sums over the users of one variant, of numerator and denominator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RatioSums {
    /// What is counted, such as clicks.
    pub numerator: Sums,
    /// What it is counted per, such as sessions. Users without any belong to it too.
    pub denominator: Sums,
    /// The sum over users of numerator times denominator, in millionths of millionths.
    pub products: I256,
}

impl RatioSums {
    /// Returns the number of users.
    pub fn users(&self) -> u64 {
        self.denominator.users()
    }

    /// Returns ratio and variance as [`crate::means::welch`] takes them, the variance by the delta method over users: what
    /// users do more often than once never counts as independent. `None` if the denominator sums to 0.
    /// # Errors
    /// [`Overflow`] if a sum is too large to be exact.
    /// Source: Deng, Knoblich, Lu 2018, Applying the Delta Method in Metric Analytics, KDD 24, 233-242.
    pub fn arm(&self) -> Result<Option<Arm>, Overflow> {
        if self.denominator.sum() == 0 {
            return Ok(None);
        }
        let (numerator, denominator) = (self.numerator.arm()?, self.denominator.arm()?);
        let covariance = covariance(&self.numerator, &self.denominator, self.products)?;
        let ratio = self.numerator.sum() as f64 / self.denominator.sum() as f64;
        let square = denominator.mean * denominator.mean;
        let own = (numerator.variance + ratio * ratio * denominator.variance) / square;
        let variance = own - 2.0 * ratio * covariance / square;
        // Where the numerator is a fixed multiple of the denominator only rounding is left.
        let variance = if variance > 1e-14 * own { variance } else { 0.0 };
        Ok(Some(Arm { users: self.users(), mean: ratio, variance }))
    }

    /// Returns the ratio as [`crate::comparison::compare`] takes it: undefined without users, or if the denominator sums to 0.
    /// # Errors
    /// [`Overflow`] if a sum is too large to be exact.
    pub fn observed(&self) -> Result<Observed, Overflow> {
        if self.users() == 0 {
            return Ok(Observed::undefined(0, None, Status::NoData));
        }
        let undefined = Observed::undefined(self.users(), None, Status::ZeroDenominator);
        Ok(self.arm()?.map_or(undefined, |arm| Sample::Mean(arm).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::Moments;

    fn sums(users: &[(i128, i128)]) -> RatioSums {
        let (mut numerator, mut denominator, mut products) = (Moments::default(), Moments::default(), I256::ZERO);
        for (m, d) in users {
            numerator.add(m * Moments::SCALE).expect("fits");
            denominator.add(d * Moments::SCALE).expect("fits");
            products += I256::from(m * d * Moments::SCALE * Moments::SCALE);
        }
        RatioSums { numerator: Sums::Values(numerator), denominator: Sums::Values(denominator), products }
    }

    #[test]
    fn the_variance_is_that_of_the_linearised_users() {
        let users = [(3, 4), (0, 2), (5, 5), (1, 7), (2, 0), (9, 12)];
        let arm = sums(&users).arm().expect("fits").expect("a denominator");
        assert_eq!(arm.mean, 20.0 / 30.0);
        // The delta method is the variance of (m - r d) / mean(d).
        let parts: Vec<f64> = users.iter().map(|(m, d)| (*m as f64 - arm.mean * *d as f64) / 5.0).collect();
        let variance = parts.iter().map(|part| part * part).sum::<f64>() / 5.0;
        assert!((arm.variance - variance).abs() < 1e-14, "{} and {variance}", arm.variance);
    }

    #[test]
    fn a_fixed_multiple_has_no_variance_and_no_denominator_no_ratio() {
        let arm = sums(&[(3, 7), (6, 14), (21, 49), (0, 0)]).arm().expect("fits").expect("a denominator");
        assert_eq!(arm.variance, 0.0);
        assert_eq!(sums(&[(3, 0), (6, 0)]).arm(), Ok(None));
        let sample = |users: &[(i128, i128)]| sums(users).observed().expect("fits").sample;
        assert_eq!(sample(&[(1, 0), (2, 0)]), Err(Status::ZeroDenominator));
        assert_eq!(sample(&[]), Err(Status::NoData));
    }
}
