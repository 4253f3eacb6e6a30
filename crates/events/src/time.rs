//! Time: microseconds since 1970-01-01T00:00:00Z, and the one parser that makes them from text.

use std::fmt;

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// A point in time, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(pub i64);

/// Why a text is not a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not of the form that is accepted.
    #[error("expected a time such as 2026-03-01T12:30:00.25Z or 2026-03-01 12:30:00+01:00")]
    Form,
    /// A field of the calendar or the clock that does not exist, second 60 among them.
    #[error("there is no such date or time of day")]
    NoSuchTime,
}

impl Micros {
    /// One second.
    pub const SECOND: i64 = 1_000_000;
    /// One hour.
    pub const HOUR: i64 = 3_600 * Self::SECOND;
    /// One day of 86,400 seconds.
    pub const DAY: i64 = 24 * Self::HOUR;
    /// 0001-01-01T00:00:00Z, the first time that is accepted from anybody; Postgres holds all from here on.
    pub const MIN: Micros = Micros(-62_135_596_800 * Self::SECOND);
    /// 9999-12-31T23:59:59.999999Z, the last one.
    pub const MAX: Micros = Micros(253_402_300_800 * Self::SECOND - 1);

    /// Returns the present by the system's clock.
    pub fn now() -> Self {
        Micros(Utc::now().timestamp_micros())
    }

    /// Reads an ISO 8601 date and time of day: `YYYY-MM-DD`, `T` or a space, `HH:MM:SS`, then optionally a fraction of a
    /// second and a zone (`Z`, `+HH:MM`, `+HHMM` or `+HH`). Digits beyond microseconds are cut; no zone means UTC.
    /// # Errors
    /// [`TimeError::Form`] for any other text, [`TimeError::NoSuchTime`] for 30 February, hour 24 or second 60.
    /// Source: RFC 3339 section 5.6, with the leniencies named above.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let bytes = text.as_bytes();
        let number = |from: usize, len: usize| -> Result<u32, TimeError> {
            let digits = bytes.get(from..from + len).ok_or(TimeError::Form)?;
            digits.iter().try_fold(0, |value, byte| match byte {
                b'0'..=b'9' => Ok(value * 10 + u32::from(byte - b'0')),
                _ => Err(TimeError::Form),
            })
        };
        let literal = |at: usize, accepted: &[u8]| match bytes.get(at) {
            Some(byte) if accepted.contains(byte) => Ok(()),
            _ => Err(TimeError::Form),
        };
        let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
        let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
        literal(4, b"-")?;
        literal(7, b"-")?;
        literal(10, b"Tt ")?;
        literal(13, b":")?;
        literal(16, b":")?;

        let mut at = 19;
        let mut micros = 0;
        if matches!(bytes.get(at), Some(b'.' | b',')) {
            let digits = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits == 0 {
                return Err(TimeError::Form);
            }
            let kept = digits.min(6);
            micros = number(at + 1, kept)? * 10u32.pow(6 - kept as u32);
            at += 1 + digits;
        }
        let zone_seconds = match &bytes[at..] {
            [] | [b'Z' | b'z'] => 0,
            [sign @ (b'+' | b'-'), rest @ ..] => {
                let (hours, minutes) = match rest.len() {
                    2 => (number(at + 1, 2)?, 0),
                    4 => (number(at + 1, 2)?, number(at + 3, 2)?),
                    5 if rest[2] == b':' => (number(at + 1, 2)?, number(at + 4, 2)?),
                    _ => return Err(TimeError::Form),
                };
                if hours > 23 || minutes > 59 {
                    return Err(TimeError::NoSuchTime);
                }
                let seconds = i64::from(hours * 3_600 + minutes * 60);
                if *sign == b'-' { -seconds } else { seconds }
            }
            _ => return Err(TimeError::Form),
        };
        let time = NaiveDate::from_ymd_opt(year as i32, month, day)
            .and_then(|date| date.and_hms_micro_opt(hour, minute, second, micros))
            .ok_or(TimeError::NoSuchTime)?;
        let parsed = Micros(time.and_utc().timestamp_micros() - zone_seconds * Self::SECOND);
        if parsed < Self::MIN || parsed > Self::MAX {
            return Err(TimeError::NoSuchTime);
        }
        Ok(parsed)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match DateTime::<Utc>::from_timestamp_micros(self.0) {
            Some(time) => out.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            None => write!(out, "{} microseconds", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_become_microseconds() {
        let check = |text: &str, expected: Result<i64, TimeError>| {
            assert_eq!(Micros::parse(text).map(|time| time.0), expected, "{text}");
        };
        check("1970-01-01T00:00:00Z", Ok(0));
        check("1970-01-01 00:00:01", Ok(1_000_000));
        check("1970-01-01T00:00:00.1234567899Z", Ok(123_456));
        check("1970-01-01T00:00:00,5z", Ok(500_000));
        check("1970-01-01T01:00:00+01:00", Ok(0));
        check("1970-01-01T01:00:00+01", Ok(0));
        check("1969-12-31T22:30:00-0130", Ok(0));
        check("1969-12-31T23:59:59.999999Z", Ok(-1));
        check("2024-02-29T00:00:00Z", Ok(1_709_164_800_000_000));
        check("2023-02-29T00:00:00Z", Err(TimeError::NoSuchTime));
        check("2016-12-31T23:59:60Z", Err(TimeError::NoSuchTime));
        check("2026-01-01T24:00:00Z", Err(TimeError::NoSuchTime));
        check("0000-01-01T00:00:00Z", Err(TimeError::NoSuchTime));
        check("0001-01-01T00:00:00+00:01", Err(TimeError::NoSuchTime));
        let malformed = [
            "",
            "now",
            "2026-01-01",
            "1767225600",
            "2026-1-1T00:00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00 Z",
            "2026-01-01T00:00:00Z ",
            "infinity",
            "2026-01-01T00:00",
            "２026-01-01T00:00:00Z",
            "+026-01-01T00:00:00Z",
        ];
        for text in malformed {
            check(text, Err(TimeError::Form));
        }
    }

    proptest! {
        #[test]
        fn text_and_back(micros in Micros::MIN.0..=Micros::MAX.0) {
            let time = Micros(micros);
            prop_assert_eq!(Micros::parse(&time.to_string()), Ok(time));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = Micros::parse(&text);
        }
    }
}
