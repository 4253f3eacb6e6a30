//! Rows of a fact table between binary COPY and Parquet: the same values, in the form that either side has for them.
//!
//! Sources: PostgreSQL documentation, COPY, "Binary Format"; of each value the type's `send` function (`numeric_send`, `jsonb_send`,
//! `timestamptz_send`). Apache Parquet, "Logical Type Definitions".

use std::ops::Range;

use catalogue::Timestamp;
use events::Micros;
use events::fact::{Column, ColumnType, FactTable};
use parquet::data_type::{ByteArray, FixedLenByteArray};

/// What begins a binary COPY: a signature, no flags, no extension.
pub(super) const COPY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What ends it: a row of -1 columns.
pub(super) const COPY_END: [u8; 2] = (-1i16).to_be_bytes();

/// Bytes of a decimal of 20 digits, in two's complement.
pub(super) const MONEY_BYTES: usize = 9;

/// A value that the archive has no form for: it is not written, and its month stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: found {found}, which is no {expected}")]
pub struct BadValue {
    column: &'static str,
    expected: &'static str,
    found: String,
}

fn bad(column: &Column, bytes: &[u8]) -> BadValue {
    let found = format!("{} bytes {:02x?}", bytes.len(), &bytes[..bytes.len().min(32)]);
    BadValue { column: column.name, expected: column.column_type.sql(), found }
}

/// Divides the bytes of a binary COPY, as they come, into rows.
#[derive(Debug, Default)]
pub(super) struct CopyRows {
    bytes: Vec<u8>,
    /// Of these so many are passed.
    passed: usize,
    has_begun: bool,
}

impl CopyRows {
    /// Adds bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.passed);
        self.passed = 0;
        self.bytes.extend_from_slice(bytes);
        if !self.has_begun && self.bytes.len() >= COPY_HEADER.len() {
            (self.passed, self.has_begun) = (COPY_HEADER.len(), true);
        }
    }

    /// Returns the next whole row, number of columns and all; none until more bytes come, and at the end.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        if !self.has_begun {
            return None;
        }
        let row = row_length(&self.bytes[self.passed..])?;
        let from = self.passed;
        self.passed += row;
        Some(&self.bytes[from..from + row])
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Returns the length of the row at the beginning of these bytes, if all of it is there.
fn row_length(bytes: &[u8]) -> Option<usize> {
    let columns = i16::from_be_bytes(number(bytes, 0)?);
    let mut at = 2;
    // The end of all rows has -1.
    for _ in 0..usize::try_from(columns).ok()? {
        let length = i32::from_be_bytes(number(bytes, at)?);
        at += 4 + usize::try_from(length).unwrap_or(0);
    }
    (at <= bytes.len()).then_some(at)
}

/// Returns where the values of a whole row lie, null as none.
fn values(row: &[u8]) -> impl Iterator<Item = Option<Range<usize>>> {
    let mut at = 2;
    std::iter::from_fn(move || {
        let length = i32::from_be_bytes(number(row, at)?);
        let from = at + 4;
        let value = usize::try_from(length).ok().map(|length| from..from + length);
        at = value.as_ref().map_or(from, |value| value.end);
        Some(value)
    })
}

/// Values of one column that are not null, as Parquet has them.
#[derive(Debug)]
pub(super) enum Values {
    Fixed(Vec<FixedLenByteArray>),
    Bytes(Vec<ByteArray>),
    Long(Vec<i64>),
    Int(Vec<i32>),
    Bool(Vec<bool>),
}

/// One column of some rows.
#[derive(Debug)]
pub(super) struct ColumnOf {
    pub(super) column: &'static Column,
    /// Of each row 1 if it has a value, else 0: the definition levels of Parquet.
    pub(super) present: Vec<i16>,
    pub(super) values: Values,
}

/// Some rows of a fact table, by its columns.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) columns: Vec<ColumnOf>,
    pub(super) rows: usize,
    /// Of the rows, about.
    pub(super) bytes: usize,
}

impl Group {
    /// Rows of a group, and bytes, at most: bounds what archiving and restoring hold in memory.
    const ROWS_MAX: usize = 50_000;
    const BYTES_MAX: usize = 16 << 20;

    /// Begins without rows.
    pub(super) fn new(table: &'static FactTable) -> Self {
        let column = |column: &'static Column| ColumnOf { column, present: Vec::new(), values: Values::none(column.column_type) };
        Group { columns: table.columns().map(column).collect(), rows: 0, bytes: 0 }
    }

    /// Returns whether it is to be written before more rows come.
    pub(super) fn is_full(&self) -> bool {
        self.rows >= Group::ROWS_MAX || self.bytes >= Group::BYTES_MAX
    }

    /// Adds a whole row of a binary COPY of all columns.
    pub(super) fn push(&mut self, row: &[u8]) -> Result<(), BadValue> {
        for (column, value) in self.columns.iter_mut().zip(values(row)) {
            column.present.push(i16::from(value.is_some()));
            if let Some(value) = value {
                column.values.push(column.column, &row[value])?;
            }
        }
        self.rows += 1;
        self.bytes += row.len();
        Ok(())
    }

    /// Returns its rows as binary COPY has them, one after the other.
    pub(super) fn to_copy(&self) -> CopyOf<'_> {
        CopyOf { group: self, row: 0, passed: vec![0; self.columns.len()] }
    }
}

/// The rows of a group, in their order.
#[derive(Debug)]
pub(super) struct CopyOf<'a> {
    group: &'a Group,
    row: usize,
    /// How many values of each column are passed.
    passed: Vec<usize>,
}

impl CopyOf<'_> {
    /// Adds the next row to `out`; false if there is none.
    pub(super) fn write_next(&mut self, out: &mut Vec<u8>) -> bool {
        if self.row == self.group.rows {
            return false;
        }
        out.extend_from_slice(&(self.group.columns.len() as i16).to_be_bytes());
        for (column, passed) in self.group.columns.iter().zip(&mut self.passed) {
            // A column that its file does not have is null.
            if column.present.get(self.row).is_none_or(|level| *level == 0) {
                out.extend_from_slice(&(-1i32).to_be_bytes());
                continue;
            }
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            column.values.write(*passed, column.column.column_type, out);
            *passed += 1;
            let length = (out.len() - at - 4) as i32;
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
        self.row += 1;
        true
    }
}

impl Values {
    fn none(column_type: ColumnType) -> Self {
        match column_type {
            ColumnType::Uuid | ColumnType::Money => Values::Fixed(Vec::new()),
            ColumnType::Text | ColumnType::Json => Values::Bytes(Vec::new()),
            ColumnType::Timestamp | ColumnType::Bigint => Values::Long(Vec::new()),
            ColumnType::Integer => Values::Int(Vec::new()),
            ColumnType::Boolean => Values::Bool(Vec::new()),
        }
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Values::Fixed(values) => values.len(),
            Values::Bytes(values) => values.len(),
            Values::Long(values) => values.len(),
            Values::Int(values) => values.len(),
            Values::Bool(values) => values.len(),
        }
    }

    fn push(&mut self, column: &Column, bytes: &[u8]) -> Result<(), BadValue> {
        let bad = || bad(column, bytes);
        match (self, column.column_type) {
            (Values::Fixed(values), ColumnType::Uuid) if bytes.len() == 16 => values.push(bytes.to_vec().into()),
            (Values::Fixed(values), ColumnType::Money) => {
                let millionths = millionths(bytes).ok_or_else(bad)?.to_be_bytes();
                values.push(millionths[16 - MONEY_BYTES..].to_vec().into());
            }
            (Values::Bytes(values), ColumnType::Text) => values.push(bytes.to_vec().into()),
            (Values::Bytes(values), ColumnType::Json) => {
                // One byte of version comes before the text.
                let text = bytes.strip_prefix(&[1]).ok_or_else(bad)?;
                values.push(text.to_vec().into());
            }
            (Values::Long(values), ColumnType::Timestamp) => {
                let stored = i64::from_be_bytes(bytes.try_into().map_err(|_| bad())?);
                let time = Timestamp::from_bytes(stored.to_be_bytes());
                // Infinity, for one, is not what it was then.
                if time.to_bytes() != stored.to_be_bytes() || stored == i64::MAX || stored == i64::MIN {
                    return Err(bad());
                }
                values.push(time.0.0);
            }
            (Values::Long(values), ColumnType::Bigint) => {
                values.push(i64::from_be_bytes(bytes.try_into().map_err(|_| bad())?));
            }
            (Values::Int(values), ColumnType::Integer) => {
                values.push(i32::from_be_bytes(bytes.try_into().map_err(|_| bad())?));
            }
            (Values::Bool(values), ColumnType::Boolean) if bytes.len() == 1 => values.push(bytes == [1]),
            _ => return Err(bad()),
        }
        Ok(())
    }

    fn write(&self, index: usize, column_type: ColumnType, out: &mut Vec<u8>) {
        match (self, column_type) {
            (Values::Fixed(values), ColumnType::Money) => numeric(values[index].data(), out),
            (Values::Fixed(values), _) => out.extend_from_slice(values[index].data()),
            (Values::Bytes(values), ColumnType::Json) => {
                out.push(1);
                out.extend_from_slice(values[index].data());
            }
            (Values::Bytes(values), _) => out.extend_from_slice(values[index].data()),
            (Values::Long(values), ColumnType::Timestamp) => {
                out.extend_from_slice(&Timestamp(Micros(values[index])).to_bytes());
            }
            (Values::Long(values), _) => out.extend_from_slice(&values[index].to_be_bytes()),
            (Values::Int(values), _) => out.extend_from_slice(&values[index].to_be_bytes()),
            (Values::Bool(values), _) => out.push(u8::from(values[index])),
        }
    }
}

/// The sign of a negative numeric.
const NEGATIVE: u16 = 0x4000;

/// Returns a numeric of 6 decimals in millionths; none if it is no such number, as not-a-number and infinity are none.
fn millionths(bytes: &[u8]) -> Option<i128> {
    let word = |index: usize| number(bytes, 2 * index).map(u16::from_be_bytes);
    let (digits, weight, sign, decimals) = (word(0)?, word(1)? as i16, word(2)?, word(3)?);
    if decimals != 6 || ![0, NEGATIVE].contains(&sign) || bytes.len() != 8 + 2 * usize::from(digits) {
        return None;
    }
    let mut sum: i128 = 0;
    for index in 0..usize::from(digits) {
        let digit = i128::from(word(4 + index)?);
        // Of a digit to the base 10,000, in millionths.
        sum += match i32::from(weight) - index as i32 {
            power @ 0..=5 => digit * 10i128.pow(4 * power as u32 + 6),
            -1 => digit * 100,
            -2 if digit % 100 == 0 => digit / 100,
            _ => return None,
        };
    }
    Some(if sign == NEGATIVE { -sum } else { sum })
}

/// Writes a decimal of two's complement, in millionths, as Postgres sends it: without zeros at either end.
fn numeric(bytes: &[u8], out: &mut Vec<u8>) {
    let fill = if bytes.first().is_some_and(|first| *first >= 0x80) { 0xff } else { 0 };
    let mut whole = [fill; 16];
    let from = 16 - bytes.len().min(16);
    whole[from..].copy_from_slice(&bytes[..16 - from]);
    let value = i128::from_be_bytes(whole);
    let mut rest = value.unsigned_abs() * 100; // 8 decimals: two whole digits
    let mut digits: Vec<u16> = Vec::new();
    while rest > 0 {
        digits.push((rest % 10_000) as u16);
        rest /= 10_000;
    }
    let weight = if digits.is_empty() { 0 } else { digits.len() as i16 - 3 };
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    let digits = &digits[zeros..];
    let sign = if value < 0 { NEGATIVE } else { 0 };
    for word in [digits.len() as u16, weight as u16, sign, 6] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    digits.iter().rev().for_each(|digit| out.extend_from_slice(&digit.to_be_bytes()));
}

#[cfg(test)]
mod tests {
    use migrations::testing::TestDatabase;
    use sqlx::Row;

    use super::*;

    /// Postgres is the oracle: what it sends comes back from Parquet's form byte for byte.
    #[tokio::test]
    async fn amounts_keep_every_digit() {
        let database = TestDatabase::create().await;
        let mut connection = database.connect().await;
        let check = async |connection: &mut sqlx::PgConnection, amount: &str, expected: Option<i128>| {
            let query = "SELECT numeric_send($1::text::numeric(20, 6))";
            let row = sqlx::query(query).bind(amount).fetch_one(connection).await.expect("a number");
            let sent: Vec<u8> = row.try_get(0).expect("its bytes");
            assert_eq!(millionths(&sent), expected, "{amount}");
            if let Some(expected) = expected {
                let mut back = Vec::new();
                numeric(&expected.to_be_bytes()[16 - MONEY_BYTES..], &mut back);
                assert_eq!(back, sent, "{amount}");
            }
        };
        for (amount, expected) in [
            ("0", 0),
            ("0.000001", 1),
            ("-0.000001", -1),
            ("0.01", 10_000),
            ("1", 1_000_000),
            ("19.90", 19_900_000),
            ("-10000", -10_000_000_000),
            ("9999.9999", 9_999_999_900),
            ("12345678901234.567891", 12_345_678_901_234_567_891),
            ("99999999999999.999999", 99_999_999_999_999_999_999),
            ("-99999999999999.999999", -99_999_999_999_999_999_999),
        ] {
            check(&mut connection, amount, Some(expected)).await;
        }
        check(&mut connection, "NaN", None).await;
    }

    #[test]
    fn rows_are_found_however_their_bytes_are_cut() {
        let mut row = 2i16.to_be_bytes().to_vec();
        row.extend_from_slice(&3i32.to_be_bytes());
        row.extend_from_slice(b"abc");
        row.extend_from_slice(&(-1i32).to_be_bytes());
        let copy = [COPY_HEADER.as_slice(), &row, &row, &COPY_END].concat();
        for size in 1..copy.len() {
            let (mut rows, mut found) = (CopyRows::default(), Vec::new());
            for chunk in copy.chunks(size) {
                rows.push(chunk);
                while let Some(row) = rows.next() {
                    found.push(row.to_vec());
                }
            }
            assert_eq!(found, [row.clone(), row.clone()], "{size} bytes at once");
        }
        assert_eq!(values(&row).collect::<Vec<_>>(), [Some(6..9), None]);
    }
}
