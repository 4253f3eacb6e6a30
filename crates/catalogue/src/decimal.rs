//! Decimals of the catalogue: weights, margins, caps, levels.

use std::fmt;
use std::str::FromStr;

use events::{Money, MoneyError};
use serde::{Serialize, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};

/// An exact decimal of at most 6 digits after the point. Read from Postgres as text: `numeric_column::text`. In JSON a string,
/// without zeros at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal(Money);

impl Decimal {
    /// Returns the number in millionths.
    pub fn millionths(self) -> i128 {
        self.0.millionths()
    }

    /// Returns the nearest float. Below 2^53 millionths it is the one that the decimal's text means.
    pub fn to_f64(self) -> f64 {
        self.millionths() as f64 / 1e6
    }
}

impl FromStr for Decimal {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        text.parse().map(Decimal)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Type<Postgres> for Decimal {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }

    fn compatible(of: &PgTypeInfo) -> bool {
        <str as Type<Postgres>>::compatible(of)
    }
}

impl Decode<'_, Postgres> for Decimal {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Ok(<&str as Decode<'_, Postgres>>::decode(value)?.parse()?)
    }
}
