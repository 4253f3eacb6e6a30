//! Money: decimal, exact, never a float.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount in millionths of its currency's unit, as `numeric(20,6)` holds it; negative for refunds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money(i128);

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// Not a decimal number.
    #[error("expected a decimal number such as 19.90")]
    NotADecimal,
    /// More than 6 digits after the point; it is never rounded.
    #[error("at most 6 decimals are accepted, and no amount is rounded")]
    TooPrecise,
    /// 10^14 or more, in either direction.
    #[error("amounts below 100000000000000 are accepted")]
    OutOfRange,
}

impl Money {
    const SCALE: u32 = 6;
    const LIMIT: i128 = 10i128.pow(20);

    /// Makes an amount from millionths.
    /// # Errors
    /// [`MoneyError::OutOfRange`] from 10^20 millionths on.
    pub fn from_millionths(millionths: i128) -> Result<Self, MoneyError> {
        if millionths.abs() < Self::LIMIT { Ok(Money(millionths)) } else { Err(MoneyError::OutOfRange) }
    }

    /// Returns the amount in millionths.
    pub fn millionths(self) -> i128 {
        self.0
    }
}

/// Decimal digits that every double keeps: a JSON number is a double, and what stands beyond these is its noise.
const DOUBLE_DIGITS: usize = 15;

/// Returns the decimal that a client meant by a JSON number: the one of 15 significant digits nearest to it, so that
/// `183.60000000000002`, the sum of some prices as a program prints it, is 183.6. A shorter one stays as it is written.
pub fn of_json_number(text: &str) -> Cow<'_, str> {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|digit| *digit == b'0').count();
    match text.parse::<f64>() {
        Ok(number) if digits > DOUBLE_DIGITS && number.is_finite() => {
            Cow::Owned(format!("{number:.precision$e}", precision = DOUBLE_DIGITS - 1))
        }
        _ => Cow::Borrowed(text),
    }
}

impl FromStr for Money {
    type Err = MoneyError;

    /// Reads the decimal and exponent notations of JSON exactly, without a float in between.
    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().map_err(|_| MoneyError::NotADecimal)?),
            None => (rest, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits_only(whole) || !digits_only(fraction) || (mantissa.ends_with('.')) {
            return Err(MoneyError::NotADecimal);
        }
        let digits: String = [whole, fraction].concat();
        let significant = digits.trim_start_matches('0').trim_end_matches('0');
        if significant.is_empty() {
            return Ok(Money(0));
        }
        // value = significant * 10^power, with no zero at either end of `significant`.
        let trailing = digits.len() - digits.trim_end_matches('0').len();
        let power = i64::from(exponent) - fraction.len() as i64 + trailing as i64;
        let shift = power + i64::from(Self::SCALE);
        if shift < 0 {
            return Err(MoneyError::TooPrecise);
        }
        if significant.len() as i64 + shift > 20 {
            return Err(MoneyError::OutOfRange);
        }
        let value: i128 = significant.parse().map_err(|_| MoneyError::OutOfRange)?;
        let millionths = value * 10i128.pow(shift as u32);
        Ok(Money(if negative { -millionths } else { millionths }))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = 10u128.pow(Self::SCALE);
        let (whole, fraction) = (self.0.unsigned_abs() / unit, self.0.unsigned_abs() % unit);
        let sign = if self.0 < 0 { "-" } else { "" };
        if fraction == 0 {
            return write!(out, "{sign}{whole}");
        }
        let fraction = format!("{fraction:06}");
        write!(out, "{sign}{whole}.{}", fraction.trim_end_matches('0'))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        let check = |text: &str, expected: Result<i128, MoneyError>| {
            assert_eq!(text.parse::<Money>().map(Money::millionths), expected, "{text}");
        };
        check("19.90", Ok(19_900_000));
        check("-5", Ok(-5_000_000));
        check("+0.000001", Ok(1));
        check("0.0000010", Ok(1));
        check("1e2", Ok(100_000_000));
        check("1.5E-6", Err(MoneyError::TooPrecise));
        check("0.0000001", Err(MoneyError::TooPrecise));
        check("0e999999", Ok(0));
        check("99999999999999.999999", Ok(99_999_999_999_999_999_999));
        check("100000000000000", Err(MoneyError::OutOfRange));
        check("1e99999", Err(MoneyError::OutOfRange));
        check("1e-2000000000", Err(MoneyError::TooPrecise));
        for text in ["", "-", ".5", "5.", "1,5", "NaN", "Infinity", "0x10", "1e", "1 ", "1_0", "٣"] {
            check(text, Err(MoneyError::NotADecimal));
        }
    }

    #[test]
    fn a_number_is_the_decimal_of_15_digits_nearest_to_it() {
        let check = |text: &str, expected: &str| {
            assert_eq!(of_json_number(text).parse::<Money>().map(|money| money.to_string()).as_deref(), Ok(expected), "{text}");
        };
        check("183.60000000000002", "183.6");
        check("836.9999999999998", "837");
        check("-0.30000000000000004", "-0.3");
        check("1.8360000000000002e2", "183.6");
        check("0.1000000000000000055511151231257827", "0.1");
        check("12345678.123456", "12345678.123456");
        check("12345678901234.567890", "12345678901234.6");
        check("000000000000000000019.9", "19.9");
        check("1e2", "100");
        assert_eq!(of_json_number("0.1234567").parse::<Money>(), Err(MoneyError::TooPrecise));
        assert_eq!(of_json_number("1e400").parse::<Money>(), Err(MoneyError::OutOfRange));
    }

    proptest! {
        /// Prices, sums and products of prices, computed in doubles and printed as programs print them, are what they are on paper.
        #[test]
        fn carts_are_exact(cents in prop::collection::vec(1i64..100_000, 1..30), percent in 100i64..130) {
            let sum: f64 = cents.iter().map(|cents| *cents as f64 / 100.0).sum();
            let paper = cents.iter().sum::<i64>();
            let read = |number: f64| of_json_number(&number.to_string()).parse::<Money>().map(Money::millionths);
            prop_assert_eq!(read(sum), Ok(i128::from(paper) * 10_000));
            let taxed = paper as f64 / 100.0 * (percent as f64 / 100.0);
            prop_assert_eq!(read(taxed), Ok(i128::from(paper) * i128::from(percent) * 100));
        }

        #[test]
        fn text_and_back(millionths in -99_999_999_999_999_999_999i128..=99_999_999_999_999_999_999) {
            let money = Money::from_millionths(millionths).expect("in range");
            prop_assert_eq!(money.to_string().parse::<Money>(), Ok(money));
        }
    }
}
