//! Values of rollups: typed, ordered, and the same whether an event is about to be stored or was read from Postgres.

use std::borrow::Cow;
use std::fmt;

use chrono::{DateTime, NaiveDate};
use chrono_tz::Tz;
use events::fact::{ColumnType, Value};
use events::money::of_json_number;
use events::{EventId, Micros, Money};
use uuid::Uuid;

/// Bytes of a text, at most: it is cut there, and at a control character. With the number of keys it bounds a row of an index.
pub const TEXT_BYTES_MAX: usize = 200;

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
pub enum Type {
    Text,
    Uuid,
    Boolean,
    /// A decimal with at most 6 digits after the point.
    Number,
    Day,
    /// Microseconds, UTC.
    Time,
}

impl Type {
    /// Returns its name in Postgres.
    pub fn sql(self) -> &'static str {
        match self {
            Type::Text => "text",
            Type::Uuid => "uuid",
            Type::Boolean => "boolean",
            Type::Number => "numeric",
            Type::Day => "date",
            Type::Time => "timestamptz",
        }
    }

    /// Returns the type of a column's values, if a rollup can hold them.
    pub fn of(column: ColumnType) -> Option<Self> {
        Some(match column {
            ColumnType::Uuid => Type::Uuid,
            ColumnType::Text => Type::Text,
            ColumnType::Timestamp => Type::Time,
            ColumnType::Boolean => Type::Boolean,
            ColumnType::Integer | ColumnType::Bigint | ColumnType::Money => Type::Number,
            ColumnType::Json => return None,
        })
    }
}

/// A value. Its text is one that Postgres reads as the type of that name, and [`Datum::parse`], too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Datum<'a> {
    Text(Cow<'a, str>),
    Uuid(Uuid),
    Boolean(bool),
    /// Millionths.
    Number(i128),
    /// Days since 1970-01-01.
    Day(i32),
    Time(Micros),
}

const MILLION: i128 = 1_000_000;

impl<'a> Datum<'a> {
    /// Returns a value that owns what it holds.
    pub fn into_owned(self) -> Datum<'static> {
        match self {
            Datum::Text(text) => Datum::Text(Cow::Owned(text.into_owned())),
            Datum::Uuid(id) => Datum::Uuid(id),
            Datum::Boolean(truth) => Datum::Boolean(truth),
            Datum::Number(millionths) => Datum::Number(millionths),
            Datum::Day(day) => Datum::Day(day),
            Datum::Time(time) => Datum::Time(time),
        }
    }

    /// Takes the value of a fact's column.
    pub fn of_value(value: Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Uuid(id) => Datum::Uuid(id),
            Value::Text(text) => Datum::Text(Cow::Borrowed(text)),
            Value::Timestamp(time) => Datum::Time(time),
            Value::Boolean(truth) => Datum::Boolean(truth),
            Value::Integer(number) => Datum::Number(i128::from(number) * MILLION),
            Value::Bigint(number) => Datum::Number(i128::from(number) * MILLION),
            Value::Money(money) => Datum::Number(money.millionths()),
            Value::Null | Value::Json(_) => return None,
        })
    }

    /// Reads a text as a value of a type; none if it is not one.
    pub fn parse(text: Cow<'a, str>, as_type: Type) -> Option<Self> {
        Some(match as_type {
            Type::Text => Datum::Text(text),
            Type::Uuid => Datum::Uuid(text.parse().ok()?),
            Type::Boolean => Datum::Boolean(text.parse().ok()?),
            Type::Number => Datum::Number(number(&text)?),
            Type::Day => Datum::Day(days(text.parse().ok()?)),
            Type::Time => Datum::Time(Micros::parse(&text).ok()?),
        })
    }

    /// Reads a property as a text: a text's own, `true` or `false`, or a number as it is written shortest. Postgres writes numbers
    /// otherwise than clients do; this is the same of both.
    pub fn text_of_json(json: &'a str) -> Option<Self> {
        let text = match json.as_bytes().first()? {
            b'"' => serde_json::from_str::<Text<'a>>(json).ok()?.0,
            b't' | b'f' => Cow::Borrowed(json),
            b'-' | b'0'..=b'9' => Cow::Owned(Datum::Number(number(&of_json_number(json))?).to_string()),
            _ => return None,
        };
        Some(Datum::Text(text))
    }

    /// Reads a property as a number: a JSON number, or a text that is a decimal. None if it is neither, or has more than 6 digits after the
    /// point.
    pub fn number_of_json(json: &'a str) -> Option<Self> {
        let millionths = match json.as_bytes().first()? {
            b'"' => number(&serde_json::from_str::<Text<'a>>(json).ok()?.0)?,
            b'-' | b'0'..=b'9' => number(&of_json_number(json))?,
            _ => return None,
        };
        Some(Datum::Number(millionths))
    }

    /// Returns it as it is kept: a text with no more bytes than fit.
    pub fn cut(self) -> Self {
        let Datum::Text(text) = self else { return self };
        let end = text.find(char::is_control).unwrap_or(text.len());
        let end = (0..=end.min(TEXT_BYTES_MAX)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        if end == text.len() {
            return Datum::Text(text);
        }
        Datum::Text(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
            Cow::Owned(text) => Cow::Owned(text[..end].to_owned()),
        })
    }

    /// Returns the number in millionths, if it is one.
    pub fn millionths(&self) -> Option<i128> {
        if let Datum::Number(millionths) = self { Some(*millionths) } else { None }
    }
}

/// Borrowed where it has no escape.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Sums are longer than amounts, and are read again.
fn number(text: &str) -> Option<i128> {
    if let Ok(money) = text.parse::<Money>() {
        return Some(money.millionths());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = whole.strip_prefix('-').unwrap_or(whole);
    if unsigned.len() < 15 || fraction.len() > 6 || !is_plain(unsigned) || !is_plain(fraction) {
        return None;
    }
    let millionths: i128 = format!("{unsigned}{fraction:0<6}").parse().ok()?;
    Some(if whole.starts_with('-') { -millionths } else { millionths })
}

fn days(date: NaiveDate) -> i32 {
    date.signed_duration_since(NaiveDate::default()).num_days() as i32
}

/// Returns the day on which a time lies in a zone, in days since 1970-01-01.
pub fn day(time: Micros, zone: Tz) -> i32 {
    if zone == Tz::UTC {
        return time.0.div_euclid(Micros::DAY) as i32;
    }
    match DateTime::from_timestamp_micros(time.0) {
        Some(utc) => days(utc.with_timezone(&zone).date_naive()),
        None => time.0.div_euclid(Micros::DAY) as i32,
    }
}

impl fmt::Display for Datum<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datum::Text(text) => out.write_str(text),
            Datum::Uuid(id) => id.fmt(out),
            Datum::Boolean(truth) => truth.fmt(out),
            Datum::Number(millionths) => {
                let (whole, fraction) = (millionths.unsigned_abs() / 1_000_000, millionths.unsigned_abs() % 1_000_000);
                let sign = if *millionths < 0 { "-" } else { "" };
                match fraction {
                    0 => write!(out, "{sign}{whole}"),
                    _ => out.write_str(format!("{sign}{whole}.{fraction:06}").trim_end_matches('0')),
                }
            }
            Datum::Day(day) => match NaiveDate::default().checked_add_signed(chrono::Duration::days(i64::from(*day))) {
                Some(date) => date.fmt(out),
                None => write!(out, "day {day}"),
            },
            Datum::Time(time) => time.fmt(out),
        }
    }
}

/// Where an event stands in the order that first and last follow: event time, id, claimed time. As bytes that compare as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place([u8; 32]);

impl Place {
    /// That of what has none: before all others.
    pub const NONE: Place = Place([0; 32]);

    /// Makes it.
    pub fn new(event_time: Micros, id: EventId, claimed_at: Micros) -> Self {
        let ordered = |time: Micros| (time.0 as u64 ^ (1 << 63)).to_be_bytes();
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&ordered(event_time));
        bytes[8..24].copy_from_slice(id.0.as_bytes());
        bytes[24..].copy_from_slice(&ordered(claimed_at));
        Place(bytes)
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("\\x").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(Place(bytes))
    }
}

impl fmt::Display for Place {
    /// As Postgres writes a `bytea`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_and_its_text_are_one() {
        let check = |datum: Datum<'_>, as_type: Type, text: &str| {
            assert_eq!(datum.to_string(), text);
            assert_eq!(Datum::parse(Cow::Borrowed(text), as_type), Some(datum), "{text}");
        };
        check(Datum::Number(-19_900_000), Type::Number, "-19.9");
        check(Datum::Number(1), Type::Number, "0.000001");
        check(Datum::Number(-123_456_789_012_345_678_901_234_567), Type::Number, "-123456789012345678901.234567");
        check(Datum::Day(-1), Type::Day, "1969-12-31");
        check(Datum::Day(20_500), Type::Day, "2026-02-16");
        check(Datum::Time(Micros(1_771_581_600_000_001)), Type::Time, "2026-02-20T10:00:00.000001Z");
        check(Datum::Boolean(true), Type::Boolean, "true");
        check(Datum::Uuid(Uuid::from_u128(7)), Type::Uuid, "00000000-0000-0000-0000-000000000007");
    }

    /// On the left as a client writes it, on the right as Postgres returns it.
    #[test]
    fn a_property_is_the_same_before_it_is_stored_and_after() {
        let check = |sent: &str, stored: &str, text: Option<&str>, number: Option<i128>| {
            for json in [sent, stored] {
                assert_eq!(Datum::text_of_json(json).map(|datum| datum.to_string()).as_deref(), text, "{json}");
                assert_eq!(Datum::number_of_json(json).and_then(|datum| datum.millionths()), number, "{json}");
            }
        };
        check("1e2", "100", Some("100"), Some(100_000_000));
        check("1.0", "1.0", Some("1"), Some(1_000_000));
        check("183.60000000000002", "183.60000000000002", Some("183.6"), Some(183_600_000));
        check(r#""19.90""#, r#""19.90""#, Some("19.90"), Some(19_900_000));
        check(r#""\u00e4\"""#, r#""ä\"""#, Some("ä\""), None);
        check("true", "true", Some("true"), None);
        check("0.0000001", "0.0000001", None, None);
        check("null", "null", None, None);
        check("[1]", "[1]", None, None);
    }

    #[test]
    fn texts_are_cut_where_an_index_could_not_hold_them() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Datum::Text(Cow::Borrowed(text)).cut(), Datum::Text(Cow::Borrowed(expected)));
        };
        check("short", "short");
        check(&"ä".repeat(200), &"ä".repeat(100));
        check(&format!("x{}", "ä".repeat(200)), &format!("x{}", "ä".repeat(99)));
        check("a\tb", "a");
    }

    /// Clocks that are put forward and back: 2026-03-29 has 23 hours in Berlin, 2026-10-25 has 25.
    #[test]
    fn days_are_those_of_the_zone() {
        let check = |time: &str, zone: &str, expected: &str| {
            let found = day(Micros::parse(time).expect("a time"), zone.parse().expect("a zone"));
            assert_eq!(Datum::Day(found).to_string(), expected, "{time} {zone}");
        };
        check("2026-03-28T22:59:59.999999Z", "Europe/Berlin", "2026-03-28");
        check("2026-03-28T23:00:00Z", "Europe/Berlin", "2026-03-29");
        check("2026-03-29T22:00:00Z", "Europe/Berlin", "2026-03-30");
        check("2026-10-25T22:59:59Z", "Europe/Berlin", "2026-10-25");
        check("2026-02-20T23:59:59Z", "UTC", "2026-02-20");
        check("2026-02-20T10:00:00Z", "Pacific/Kiritimati", "2026-02-21");
        check("2026-02-20T10:59:59Z", "Pacific/Pago_Pago", "2026-02-19");
    }

    #[test]
    fn places_compare_as_times_and_ids_do() {
        let place = |time: i64, id: u128, claimed: i64| Place::new(Micros(time), EventId(Uuid::from_u128(id)), Micros(claimed));
        let ordered = [place(-5, 9, 9), place(-1, 9, 9), place(0, 1, 9), place(0, 2, -3), place(0, 2, 0), place(7, 0, 0)];
        assert!(ordered.is_sorted());
        for place in ordered {
            assert_eq!(Place::parse(&place.to_string()), Some(place));
        }
    }
}
