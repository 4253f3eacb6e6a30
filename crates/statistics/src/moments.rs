//! Count, sum and sum of squares over users, exact: money stays an integer until the last division.

use ethnum::I256;

use crate::means::Arm;

/// Sums over the users of one variant, of a metric in millionths of its unit. Merging in any order gives equal moments.
///
/// Variances are never merged and squares never summed as floats: amounts near 10,000,000.00 with a spread of 1.00
/// gave a variance of 24.6 instead of 0.76 that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    users: u64,
    sum: i128,
    squares: I256,
}

/// A sum that no longer fits into 128 bits, or a sum of squares into 256. The moments are left as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sum of a metric over its users is too large to be exact")]
pub struct Overflow;

impl Default for Moments {
    fn default() -> Self {
        Moments { users: 0, sum: 0, squares: I256::ZERO }
    }
}

impl Moments {
    /// Millionths in one unit.
    pub const SCALE: i128 = 1_000_000;

    /// Puts moments together from their parts, as they are stored.
    pub fn from_parts(users: u64, sum: i128, squares: I256) -> Self {
        Moments { users, sum, squares }
    }

    /// Adds one user with `value` millionths.
    /// # Errors
    /// [`Overflow`].
    pub fn add(&mut self, value: i128) -> Result<(), Overflow> {
        self.merge(&Moments { users: 1, sum: value, squares: product(value, value)? })
    }

    /// Adds the users of other moments.
    /// # Errors
    /// [`Overflow`].
    pub fn merge(&mut self, other: &Moments) -> Result<(), Overflow> {
        let sum = self.sum.checked_add(other.sum).ok_or(Overflow)?;
        let squares = self.squares.checked_add(other.squares).ok_or(Overflow)?;
        *self = Moments { users: self.users + other.users, sum, squares };
        Ok(())
    }

    /// Returns the number of users.
    pub fn users(&self) -> u64 {
        self.users
    }

    /// Returns the sum, in millionths.
    pub fn sum(&self) -> i128 {
        self.sum
    }

    /// Returns the sum of squares, in millionths of millionths.
    pub fn squares(&self) -> I256 {
        self.squares
    }

    /// Returns mean and variance for a test, in units; no users give zeros, one user gives no variance.
    /// The variance is (n Q - S^2) / (n (n - 1)), whose numerator is exact.
    /// # Errors
    /// [`Overflow`] if that numerator does not fit.
    pub fn arm(&self) -> Result<Arm, Overflow> {
        if self.users == 0 {
            return Ok(Arm { users: 0, mean: 0.0, variance: 0.0 });
        }
        let users = self.users as f64;
        let scale = Self::SCALE as f64;
        let mean = self.sum as f64 / users / scale;
        if self.users == 1 {
            return Ok(Arm { users: 1, mean, variance: 0.0 });
        }
        let sum = I256::from(self.sum);
        let spread = I256::from(i128::from(self.users))
            .checked_mul(self.squares)
            .zip(sum.checked_mul(sum))
            .and_then(|(nq, ss)| nq.checked_sub(ss))
            .ok_or(Overflow)?;
        // Never negative: n Q >= S^2 for whole numbers.
        let variance = to_f64(spread) / users / (users - 1.0) / (scale * scale);
        Ok(Arm { users: self.users, mean, variance })
    }

    /// Returns the sum as a decimal text with at least two decimals, such as `19.90`.
    pub fn sum_text(&self) -> String {
        decimal_text(self.sum)
    }
}

/// Multiplies exactly.
/// # Errors
/// [`Overflow`].
fn product(a: i128, b: i128) -> Result<I256, Overflow> {
    // Nearly all amounts are below nine trillion units, and their products fit into the quicker type.
    if let (Ok(a), Ok(b)) = (i64::try_from(a), i64::try_from(b)) {
        return Ok(I256::from(i128::from(a) * i128::from(b)));
    }
    I256::from(a).checked_mul(I256::from(b)).ok_or(Overflow)
}

/// A sum of products, exact. Nearly all fit into 128 bits, which are added much faster than 256.
#[derive(Clone, Copy, Debug, Default)]
pub struct Products {
    near: i128,
    far: I256,
}

impl Products {
    /// Adds the product of two amounts.
    /// # Errors
    /// [`Overflow`].
    pub fn add(&mut self, a: i128, b: i128) -> Result<(), Overflow> {
        match (i64::try_from(a), i64::try_from(b)) {
            (Ok(a), Ok(b)) => self.add_near(i128::from(a) * i128::from(b)),
            _ => self.add_far(product(a, b)?),
        }
    }

    /// Takes the product of two amounts away again.
    /// # Errors
    /// [`Overflow`].
    pub fn subtract(&mut self, a: i128, b: i128) -> Result<(), Overflow> {
        match (i64::try_from(a), i64::try_from(b)) {
            // The product of two such numbers has a negative.
            (Ok(a), Ok(b)) => self.add_near(-(i128::from(a) * i128::from(b))),
            _ => self.add_far(product(a, b)?.checked_neg().ok_or(Overflow)?),
        }
    }

    /// Adds all products of another sum.
    /// # Errors
    /// [`Overflow`].
    pub fn merge(&mut self, other: &Products) -> Result<(), Overflow> {
        self.add_near(other.near)?;
        self.add_far(other.far)
    }

    fn add_near(&mut self, more: i128) -> Result<(), Overflow> {
        match self.near.checked_add(more) {
            Some(sum) => self.near = sum,
            None => {
                self.add_far(I256::from(self.near))?;
                self.near = more;
            }
        }
        Ok(())
    }

    fn add_far(&mut self, more: I256) -> Result<(), Overflow> {
        self.far = self.far.checked_add(more).ok_or(Overflow)?;
        Ok(())
    }

    /// Returns the sum.
    /// # Errors
    /// [`Overflow`].
    pub fn total(&self) -> Result<I256, Overflow> {
        self.far.checked_add(I256::from(self.near)).ok_or(Overflow)
    }
}

/// Writes millionths as a decimal with two to six decimals.
pub fn decimal_text(millionths: i128) -> String {
    let sign = if millionths < 0 { "-" } else { "" };
    let (whole, rest) = (millionths.unsigned_abs() / 1_000_000, millionths.unsigned_abs() % 1_000_000);
    let digits = format!("{rest:06}");
    let kept = digits.trim_end_matches('0').len().max(2);
    format!("{sign}{whole}.{}", &digits[..kept])
}

/// Converts a value that is not negative, with one rounding per half.
fn to_f64(value: I256) -> f64 {
    let (high, low) = value.into_words();
    high as f64 * 2f64.powi(128) + low.cast_unsigned() as f64
}

/// Converts a value of either sign.
pub(crate) fn signed_to_f64(value: I256) -> f64 {
    if value < I256::ZERO { -to_f64(value.wrapping_neg()) } else { to_f64(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn products_of_the_largest_amounts_of_64_bits_spill_over() {
        let mut products = Products::default();
        let (least, most) = (i128::from(i64::MIN), i128::from(i64::MAX));
        for _ in 0..5 {
            products.add(least, least).expect("fits");
        }
        products.subtract(least, most).expect("fits");
        let expected = [least, least, least, least, least, -most]
            .iter()
            .fold(I256::ZERO, |sum, other| sum + I256::from(least) * I256::from(*other));
        assert_eq!(products.total(), Ok(expected));
        let mut full = Products::default();
        full.add(i128::MIN, i128::MIN).expect("fits");
        assert_eq!(full.add(i128::MIN, i128::MIN), Err(Overflow));
    }

    #[test]
    fn sums_read_as_money() {
        let check = |value: i128, expected: &str| assert_eq!(decimal_text(value), expected);
        check(0, "0.00");
        check(19_900_000, "19.90");
        check(-1, "-0.000001");
        check(-5_250_000, "-5.25");
        check(99_999_999_999_999_999_999, "99999999999999.999999");
    }

    #[test]
    fn the_largest_amounts_stay_exact_and_more_is_an_error() {
        let largest = 99_999_999_999_999_999_999;
        let mut moments = Moments::default();
        for value in [largest, -largest, largest - 2] {
            moments.add(value).expect("fits");
        }
        assert_eq!(moments.sum(), largest - 2);
        assert!(moments.arm().expect("fits").variance > 1e27);
        assert_eq!(moments.add(i128::MAX), Err(Overflow));
        assert_eq!(moments.users(), 3, "what did not fit changed nothing");
    }

    proptest! {
        #[test]
        fn products_add_up_beyond_128_bits(
            amounts in prop::collection::vec((prop::num::i128::ANY, prop::num::i128::ANY, 0u32..120, any::<bool>()), 0..40),
        ) {
            let (mut products, mut expected) = (Products::default(), I256::ZERO);
            for (a, b, shift, is_taken_away) in amounts {
                // Small and large ones, of which 40 still fit.
                let (a, b) = (a >> shift.max(8), b >> shift.max(8));
                let one = I256::from(a).wrapping_mul(I256::from(b));
                if is_taken_away {
                    products.subtract(a, b).expect("fits");
                    expected = expected.wrapping_sub(one);
                } else {
                    products.add(a, b).expect("fits");
                    expected = expected.wrapping_add(one);
                }
            }
            prop_assert_eq!(products.total().expect("fits"), expected);
        }

        #[test]
        fn any_split_merges_to_the_same(values in prop::collection::vec(-1_000_000_000_000i128..1_000_000_000_000, 0..40), cut in 0usize..40) {
            let cut = cut.min(values.len());
            let total = |values: &[i128]| {
                let mut moments = Moments::default();
                for value in values { moments.add(*value).expect("fits"); }
                moments
            };
            let mut merged = total(&values[cut..]);
            merged.merge(&total(&values[..cut])).expect("fits");
            prop_assert_eq!(merged, total(&values));
        }

        #[test]
        fn the_variance_is_that_of_the_centred_values(values in prop::collection::vec(-1_000_000i32..1_000_000, 2..30)) {
            let mut moments = Moments::default();
            for value in &values { moments.add(i128::from(*value) * Moments::SCALE).expect("fits"); }
            let n = values.len() as f64;
            let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / n;
            let variance = values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let arm = moments.arm().expect("fits");
            prop_assert!((arm.variance - variance).abs() <= 1e-9 * variance.max(1e-9), "{} and {variance}", arm.variance);
        }
    }
}
