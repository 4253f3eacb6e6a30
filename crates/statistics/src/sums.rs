//! Sums over users of one quantity, and of the products of two: what ratios and covariate adjustment are made of.

use ethnum::I256;

use crate::comparison::Sample;
use crate::means::Arm;
use crate::moments::{Moments, Overflow, signed_to_f64};
use crate::proportions::Count;

/// Sums over the users of one variant, of one quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sums {
    /// A value per user.
    Values(Moments),
    /// Users who did something; their value is 1, that of the others 0.
    Share(Count),
}

impl Sums {
    /// Returns the number of users.
    pub fn users(&self) -> u64 {
        match self {
            Sums::Values(moments) => moments.users(),
            Sums::Share(count) => count.users,
        }
    }

    /// Returns the sum, in millionths.
    pub fn sum(&self) -> i128 {
        match self {
            Sums::Values(moments) => moments.sum(),
            Sums::Share(count) => i128::from(count.converted) * Moments::SCALE,
        }
    }

    /// Returns the sum of squares, in millionths of millionths.
    pub fn squares(&self) -> I256 {
        match self {
            Sums::Values(moments) => moments.squares(),
            Sums::Share(count) => I256::from(i128::from(count.converted) * Moments::SCALE * Moments::SCALE),
        }
    }

    /// Returns the quantity as [`crate::comparison::compare`] takes it.
    /// # Errors
    /// [`Overflow`] if the variance does not fit.
    pub fn sample(&self) -> Result<Sample, Overflow> {
        Ok(match self {
            Sums::Values(moments) => Sample::Mean(moments.arm()?),
            Sums::Share(count) => Sample::Share(*count),
        })
    }

    /// Returns mean and variance; of a share the variance is p (1 - p).
    /// # Errors
    /// [`Overflow`] if the variance does not fit.
    pub fn arm(&self) -> Result<Arm, Overflow> {
        Ok(self.sample()?.arm())
    }

    /// Returns the sums over the users of both.
    /// # Errors
    /// [`Overflow`].
    pub fn merged(&self, other: &Sums) -> Result<Sums, Overflow> {
        if let (Sums::Share(one), Sums::Share(two)) = (self, other) {
            return Ok(Sums::Share(Count { users: one.users + two.users, converted: one.converted + two.converted }));
        }
        let mut merged = Moments::from_parts(self.users(), self.sum(), self.squares());
        merged.merge(&Moments::from_parts(other.users(), other.sum(), other.squares()))?;
        Ok(Sums::Values(merged))
    }
}

/// Returns the covariance of two quantities of the same users. `products` is the sum of their products, in millionths of
/// millionths. It is (n P - S T) / (n (n - 1)), whose numerator is exact; of two shares the last factor is n, as in their
/// variances. With fewer than 2 users it is 0.
/// # Errors
/// [`Overflow`] if the numerator does not fit.
pub fn covariance(one: &Sums, two: &Sums, products: I256) -> Result<f64, Overflow> {
    debug_assert_eq!(one.users(), two.users());
    if one.users() < 2 {
        return Ok(0.0);
    }
    let users = one.users() as f64;
    let freedom = if matches!((one, two), (Sums::Share(_), Sums::Share(_))) { users } else { users - 1.0 };
    let scale = Moments::SCALE as f64;
    Ok(signed_to_f64(cross_spread(one, two, products)?) / users / freedom / (scale * scale))
}

/// Returns n P - S T of two quantities: n (n - 1) times their covariance, exact.
/// # Errors
/// [`Overflow`].
pub(crate) fn cross_spread(one: &Sums, two: &Sums, products: I256) -> Result<I256, Overflow> {
    I256::from(i128::from(one.users()))
        .checked_mul(products)
        .zip(I256::from(one.sum()).checked_mul(I256::from(two.sum())))
        .and_then(|(np, st)| np.checked_sub(st))
        .ok_or(Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shares_are_values_of_0_and_1() {
        let share = Sums::Share(Count { users: 10, converted: 4 });
        let values = Sums::Values(Moments::from_parts(10, share.sum(), share.squares()));
        assert_eq!(share.arm().expect("fits").variance, 0.24);
        assert!((values.arm().expect("fits").variance - 0.24 * 10.0 / 9.0).abs() < 1e-15);
        assert_eq!(share.merged(&share).expect("fits"), Sums::Share(Count { users: 20, converted: 8 }));
        assert_eq!(share.merged(&values).expect("fits").squares(), share.squares() + values.squares());
        // The covariance of a quantity with itself is its variance.
        assert_eq!(covariance(&share, &share, share.squares()).expect("fits"), 0.24);
        assert!((covariance(&share, &values, share.squares()).expect("fits") - 0.24 * 10.0 / 9.0).abs() < 1e-15);
    }

    proptest! {
        #[test]
        fn the_covariance_is_that_of_the_centred_values(pairs in prop::collection::vec((-1_000i64..1_000, -1_000i64..1_000), 2..30)) {
            let (mut one, mut two, mut products) = (Moments::default(), Moments::default(), I256::ZERO);
            for (x, y) in &pairs {
                one.add(i128::from(*x) * Moments::SCALE).expect("fits");
                two.add(i128::from(*y) * Moments::SCALE).expect("fits");
                products += I256::from(i128::from(*x) * i128::from(*y) * Moments::SCALE * Moments::SCALE);
            }
            let n = pairs.len() as f64;
            let mean = |pick: fn(&(i64, i64)) -> i64| pairs.iter().map(|pair| pick(pair) as f64).sum::<f64>() / n;
            let (mx, my) = (mean(|pair| pair.0), mean(|pair| pair.1));
            let expected = pairs.iter().map(|(x, y)| (*x as f64 - mx) * (*y as f64 - my)).sum::<f64>() / (n - 1.0);
            let found = covariance(&Sums::Values(one), &Sums::Values(two), products).expect("fits");
            prop_assert!((found - expected).abs() < 1e-7, "{found} and {expected}");
        }
    }
}
