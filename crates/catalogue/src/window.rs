//! When events count after a user's first exposure.

use std::fmt;
use std::str::FromStr;

use events::Micros;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// As far as a window reaches before and after the first exposure: ten years.
pub(crate) const WINDOW_MINUTES_MAX: i64 = 3_650 * 24 * 60;

/// A time after the first exposure in which events count, half open: windows that follow each other count nothing twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// When it begins; before the exposure if negative.
    #[serde(default)]
    pub delay: Span,
    /// How long it lasts.
    pub length: Length,
}

/// How long a window lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So long: who was exposed before that comes to something that does not change any more.
    Span(Span),
    /// Without an end, written as `open`: what a user comes to grows as long as there are events.
    Open,
}

/// How a window without an end is written.
const OPEN: &str = "open";

impl Window {
    /// Returns its two ends, in microseconds after the first exposure.
    pub fn ends_us(self) -> (i64, i64) {
        let us = |minutes: i64| minutes * 60 * Micros::SECOND;
        let end = match self.length {
            Length::Span(length) => self.delay.0 + length.0,
            Length::Open => WINDOW_MINUTES_MAX,
        };
        (us(self.delay.0), us(end))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.delay.0 {
            0 => write!(out, "{}", self.length),
            _ => write!(out, "{} from {} on", self.length, self.delay),
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Length::Span(span) => write!(out, "{span}"),
            Length::Open => out.write_str(OPEN),
        }
    }
}

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        if text == OPEN {
            return Ok(Length::Open);
        }
        text.parse().map(Length::Span).map_err(|error: String| D::Error::custom(format!("{error}, or {OPEN}")))
    }
}

/// Minutes, written as `90m`, `72h`, `3d` or `2w`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span(pub i64);

/// What a span is written with, longest first.
const UNITS: [(char, i64); 4] = [('w', 7 * 24 * 60), ('d', 24 * 60), ('h', 60), ('m', 1)];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse =
            || format!("found {text:?}; a number of minutes, hours, days or weeks is accepted, such as 90m, 72h, 3d or 2w");
        let (unit, minutes) = UNITS.iter().find(|(unit, _)| text.ends_with(*unit)).ok_or_else(refuse)?;
        let number: i64 = text.trim_end_matches(*unit).parse().map_err(|_| refuse())?;
        let minutes = number.checked_mul(*minutes).filter(|minutes| minutes.abs() <= WINDOW_MINUTES_MAX);
        minutes.map(Span).ok_or_else(|| format!("found {text:?}; at most 3650d are accepted"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return out.write_str("0m");
        }
        // Weeks are said in days, as other windows are.
        let longest = UNITS[1..].iter().find(|(_, minutes)| self.0 % minutes == 0);
        longest.map_or(Ok(()), |(unit, minutes)| write!(out, "{}{unit}", self.0 / minutes))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input)?.parse().map_err(D::Error::custom)
    }
}
