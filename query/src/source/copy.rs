//! Rows of Postgres as Arrow batches: the bytes of `COPY (SELECT ..) TO STDOUT (FORMAT BINARY)`, decoded straight into
//! column builders.
//!
//! Source: the section "Binary Format" of the page COPY in PostgreSQL's manual. 11 bytes of signature, 4 of flags, 4 of the
//! length of an extension; then per row a 16-bit number of fields and per field a 32-bit length (-1: null) and the bytes of
//! the type's binary form; at the end a row of -1 fields. All numbers are big-endian. A `timestamptz` is microseconds since
//! 2000-01-01; a `numeric` is digits to the base 10,000 with the weight of the first one, a sign and a number of decimals.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Decimal128Builder, FixedSizeBinaryBuilder, Float64Builder, Int32Builder, Int64Builder, RecordBatch,
    RecordBatchOptions, StringViewBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

/// How a column is read. The SQL that selects it must give exactly this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `text`.
    Text,
    /// `uuid`, as its text in lowercase with hyphens.
    Uuid,
    /// `uuid`, as its 16 bytes.
    Key,
    /// `boolean`.
    Bool,
    /// `integer`.
    Int,
    /// `bigint`.
    Long,
    /// `double precision`.
    Double,
    /// `numeric` with this precision and scale.
    Decimal(u8, i8),
    /// `timestamptz`.
    Time,
}

impl Kind {
    /// Returns the type's name in Postgres.
    pub fn sql(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Uuid | Kind::Key => "uuid",
            Kind::Bool => "boolean",
            Kind::Int => "integer",
            Kind::Long => "bigint",
            Kind::Double => "double precision",
            Kind::Decimal(..) => "numeric",
            Kind::Time => "timestamptz",
        }
    }

    /// Returns the Arrow type.
    pub fn data_type(self) -> DataType {
        match self {
            Kind::Text | Kind::Uuid => DataType::Utf8View,
            Kind::Key => DataType::FixedSizeBinary(16),
            Kind::Bool => DataType::Boolean,
            Kind::Int => DataType::Int32,
            Kind::Long => DataType::Int64,
            Kind::Double => DataType::Float64,
            Kind::Decimal(precision, scale) => DataType::Decimal128(precision, scale),
            Kind::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }
}

/// Bytes that are no binary COPY of the expected columns. Nothing of them was used; it is a fault of this service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// The first bytes are another format.
    #[error("the stream does not begin with the signature of a binary COPY")]
    Signature,
    /// A flag that changes the format in a way that is not known here.
    #[error("the stream has the critical flags {0:#x}, which are not known")]
    Flags(u32),
    /// A row has another number of fields.
    #[error("a row has {found} fields, expected {expected}")]
    Fields {
        /// In the stream.
        found: i16,
        /// Columns asked for.
        expected: usize,
    },
    /// A field's bytes are not of its column's type.
    #[error("column {column}: {found} is not of type {kind:?}")]
    Value {
        /// From 0.
        column: usize,
        /// What was found.
        found: String,
        /// What was expected.
        kind: Kind,
    },
    /// The stream ended within a row or without its end mark.
    #[error("the stream ended early")]
    Truncated,
    /// The columns do not make a batch.
    #[error("the rows make no batch: {0}")]
    Batch(String),
}

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// Decodes one stream. Bytes may come in pieces of any size.
pub struct Decoder {
    schema: SchemaRef,
    columns: Vec<(Kind, Builder)>,
    rows: usize,
    state: State,
    /// What came of a header or row that is not complete yet.
    pending: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Rows,
    Ended,
}

impl Decoder {
    /// Starts before the header. `kinds` are those of the schema's fields.
    pub fn new(schema: SchemaRef, kinds: &[Kind]) -> Self {
        let columns = kinds.iter().map(|kind| (*kind, Builder::new(*kind))).collect();
        Decoder { schema, columns, rows: 0, state: State::Header, pending: Vec::new() }
    }

    /// Returns the number of rows decoded and not taken yet.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes the next bytes of the stream.
    /// # Errors
    /// [`CopyError`]; the decoder is of no use afterwards.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        // Postgres sends whole rows, so that nothing is pending but in rare cases.
        if self.pending.is_empty() {
            let used = self.decode(bytes)?;
            self.pending.extend_from_slice(&bytes[used..]);
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let used = self.decode(&pending)?;
            pending.drain(..used);
            self.pending = pending;
        }
        Ok(())
    }

    /// Checks that the stream came to its end.
    /// # Errors
    /// [`CopyError::Truncated`].
    pub fn finish(&self) -> Result<(), CopyError> {
        if self.state == State::Ended { Ok(()) } else { Err(CopyError::Truncated) }
    }

    /// Takes the decoded rows as a batch.
    /// # Errors
    /// [`CopyError::Batch`] if a column without nulls holds one.
    pub fn take(&mut self) -> Result<RecordBatch, CopyError> {
        let batch = |error: ArrowError| CopyError::Batch(error.to_string());
        let columns: Vec<ArrayRef> =
            self.columns.iter_mut().map(|(kind, builder)| builder.finish(*kind)).collect::<Result<_, _>>().map_err(batch)?;
        let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options).map_err(batch)
    }

    /// Decodes as much as is complete and returns how many bytes that was.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, CopyError> {
        let mut used = 0;
        if self.state == State::Header {
            let Some(header) = bytes.get(..19) else {
                return Ok(0);
            };
            if &header[..11] != SIGNATURE {
                return Err(CopyError::Signature);
            }
            // The upper half of the flags changes the format; the lower half may be ignored.
            let flags = u32::from_be_bytes([header[11], header[12], header[13], header[14]]);
            if flags >> 16 != 0 {
                return Err(CopyError::Flags(flags));
            }
            let extension = u32::from_be_bytes([header[15], header[16], header[17], header[18]]) as usize;
            if bytes.len() < 19 + extension {
                return Ok(0);
            }
            used = 19 + extension;
            self.state = State::Rows;
        }
        while self.state == State::Rows {
            match self.decode_row(&bytes[used..])? {
                Some(length) => used += length,
                None => break,
            }
        }
        Ok(used)
    }

    /// Decodes one row if it is complete and returns its length.
    fn decode_row(&mut self, bytes: &[u8]) -> Result<Option<usize>, CopyError> {
        let Some((&[a, b], _)) = bytes.split_first_chunk::<2>() else {
            return Ok(None);
        };
        let fields = i16::from_be_bytes([a, b]);
        if fields == -1 {
            self.state = State::Ended;
            return Ok(Some(2));
        }
        if usize::try_from(fields) != Ok(self.columns.len()) {
            return Err(CopyError::Fields { found: fields, expected: self.columns.len() });
        }
        // First all lengths, so that an incomplete row leaves nothing in the builders.
        let mut end = 2;
        for _ in 0..self.columns.len() {
            let Some(length) = bytes.get(end..end + 4) else {
                return Ok(None);
            };
            let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
            end += 4 + usize::try_from(length).unwrap_or(0);
        }
        if bytes.len() < end {
            return Ok(None);
        }
        let mut at = 2;
        for (column, (kind, builder)) in self.columns.iter_mut().enumerate() {
            let length = i32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            at += 4;
            let value = usize::try_from(length).ok().map(|length| &bytes[at..at + length]);
            at += value.map_or(0, <[u8]>::len);
            builder.append(value).map_err(|found| CopyError::Value { column, found, kind: *kind })?;
        }
        self.rows += 1;
        Ok(Some(end))
    }
}

enum Builder {
    Text(StringViewBuilder),
    Uuid(StringViewBuilder),
    Key(FixedSizeBinaryBuilder),
    Bool(BooleanBuilder),
    Int(Int32Builder),
    Long(Int64Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder, i8),
    Time(TimestampMicrosecondBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text => Builder::Text(StringViewBuilder::new()),
            Kind::Uuid => Builder::Uuid(StringViewBuilder::new()),
            Kind::Key => Builder::Key(FixedSizeBinaryBuilder::new(16)),
            Kind::Bool => Builder::Bool(BooleanBuilder::new()),
            Kind::Int => Builder::Int(Int32Builder::new()),
            Kind::Long => Builder::Long(Int64Builder::new()),
            Kind::Double => Builder::Double(Float64Builder::new()),
            Kind::Decimal(_, scale) => Builder::Decimal(Decimal128Builder::new(), scale),
            Kind::Time => Builder::Time(TimestampMicrosecondBuilder::new()),
        }
    }

    fn append(&mut self, value: Option<&[u8]>) -> Result<(), String> {
        let Some(bytes) = value else {
            match self {
                Builder::Text(builder) | Builder::Uuid(builder) => builder.append_null(),
                Builder::Key(builder) => builder.append_null(),
                Builder::Bool(builder) => builder.append_null(),
                Builder::Int(builder) => builder.append_null(),
                Builder::Long(builder) => builder.append_null(),
                Builder::Double(builder) => builder.append_null(),
                Builder::Decimal(builder, _) => builder.append_null(),
                Builder::Time(builder) => builder.append_null(),
            }
            return Ok(());
        };
        let wrong = || format!("a value of {} bytes", bytes.len());
        match self {
            Builder::Text(builder) => builder.append_value(std::str::from_utf8(bytes).map_err(|error| error.to_string())?),
            Builder::Uuid(builder) => {
                let id = uuid::Uuid::from_slice(bytes).map_err(|_| wrong())?;
                builder.append_value(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
            }
            Builder::Key(builder) => builder.append_value(bytes).map_err(|_| wrong())?,
            Builder::Bool(builder) => match bytes {
                [byte] => builder.append_value(*byte != 0),
                _ => return Err(wrong()),
            },
            Builder::Int(builder) => builder.append_value(i32::from_be_bytes(bytes.try_into().map_err(|_| wrong())?)),
            Builder::Long(builder) => builder.append_value(i64::from_be_bytes(bytes.try_into().map_err(|_| wrong())?)),
            Builder::Double(builder) => builder.append_value(f64::from_be_bytes(bytes.try_into().map_err(|_| wrong())?)),
            Builder::Decimal(builder, scale) => builder.append_value(decimal(bytes, *scale)?),
            Builder::Time(builder) => {
                let since_2000 = i64::from_be_bytes(bytes.try_into().map_err(|_| wrong())?);
                // The two ends of the range stand for the infinities, which are no times.
                let since_1970 = since_2000.checked_add(EPOCH_2000_US).filter(|_| since_2000 != i64::MIN);
                builder.append_value(since_1970.ok_or_else(|| "an infinite time".to_owned())?);
            }
        }
        Ok(())
    }

    fn finish(&mut self, kind: Kind) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Builder::Text(builder) | Builder::Uuid(builder) => Arc::new(builder.finish()),
            Builder::Key(builder) => Arc::new(builder.finish()),
            Builder::Bool(builder) => Arc::new(builder.finish()),
            Builder::Int(builder) => Arc::new(builder.finish()),
            Builder::Long(builder) => Arc::new(builder.finish()),
            Builder::Double(builder) => Arc::new(builder.finish()),
            Builder::Decimal(builder, _) => Arc::new(builder.finish().with_data_type(kind.data_type())),
            Builder::Time(builder) => Arc::new(builder.finish().with_timezone("UTC")),
        })
    }
}

/// Reads a `numeric` as a whole number of 10^-scale, exactly.
fn decimal(bytes: &[u8], scale: i8) -> Result<i128, String> {
    let (head, digits) = bytes.split_first_chunk::<8>().ok_or("a numeric without its head")?;
    let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (count, weight, sign) = (usize::from(word(0)), word(2) as i16, word(4));
    if digits.len() != 2 * count {
        return Err(format!("a numeric of {count} digits in {} bytes", digits.len()));
    }
    if sign != 0 && sign != 0x4000 {
        return Err("a numeric that is not a number or infinite".to_owned());
    }
    let mut value: i128 = 0;
    for (index, digit) in digits.chunks_exact(2).enumerate() {
        let digit = i128::from(u16::from_be_bytes([digit[0], digit[1]]));
        // The digit counts 10,000^(weight - index), which is 10^power of the result's unit.
        let power = 4 * (i32::from(weight) - index as i32) + i32::from(scale);
        let term = match u32::try_from(power) {
            Ok(power) => 10i128.checked_pow(power).and_then(|unit| digit.checked_mul(unit)),
            Err(_) => {
                let unit = 10i128.pow(power.unsigned_abs().min(38));
                (digit % unit == 0).then_some(digit / unit)
            }
        };
        let sum = term.and_then(|term| value.checked_add(term));
        value = sum.ok_or_else(|| format!("a numeric that is not exact with {scale} decimals"))?;
    }
    Ok(if sign == 0x4000 { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Field, Schema};
    use arrow::util::pretty::pretty_format_batches;

    fn schema(kinds: &[Kind]) -> SchemaRef {
        let field = |(index, kind): (usize, &Kind)| Field::new(format!("c{index}"), kind.data_type(), true);
        Arc::new(Schema::new(kinds.iter().enumerate().map(field).collect::<Vec<_>>()))
    }

    fn stream(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        for row in rows {
            bytes.extend((row.len() as i16).to_be_bytes());
            for value in *row {
                bytes.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
                bytes.extend(value.unwrap_or_default());
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    fn numeric(weight: i16, sign: u16, digits: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [digits.len() as u16, weight as u16, sign, 6].into_iter().chain(digits.iter().copied()) {
            bytes.extend(word.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn rows_become_a_batch_however_the_bytes_are_cut() {
        let kinds = [Kind::Text, Kind::Uuid, Kind::Key, Kind::Bool, Kind::Int, Kind::Long, Kind::Decimal(20, 6), Kind::Time];
        let id = [0xab; 16];
        let price = numeric(0, 0, &[19, 9000]);
        let first: [Option<&[u8]>; 8] = [
            Some("größe".as_bytes()),
            Some(&id),
            Some(&id),
            Some(&[1]),
            Some(&[255, 255, 255, 254]),
            Some(&[0, 0, 0, 1, 0, 0, 0, 0]),
            Some(&price),
            Some(&[0; 8]),
        ];
        let bytes = stream(&[&first, &[None; 8]]);
        for step in [1, 7, 64, bytes.len()] {
            let mut decoder = Decoder::new(schema(&kinds), &kinds);
            for piece in bytes.chunks(step) {
                decoder.feed(piece).expect("decoded");
            }
            decoder.finish().expect("ended");
            assert_eq!(decoder.rows(), 2);
            let batch = decoder.take().expect("a batch");
            assert_eq!(decoder.rows(), 0);
            let text = pretty_format_batches(&[batch]).expect("printed").to_string();
            let lines: Vec<Vec<&str>> =
                text.lines().filter(|line| line.starts_with('|')).map(|line| line.split('|').map(str::trim).collect()).collect();
            let uuid = "abababab-abab-abab-abab-abababababab";
            let hex = "ab".repeat(16);
            let expected = ["", "größe", uuid, &hex, "true", "-2", "4294967296", "19.900000", "2000-01-01T00:00:00Z", ""];
            assert_eq!(lines[1], expected);
            assert!(lines[2].iter().all(|cell| cell.is_empty()), "{lines:?}");
        }
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let mut decoder = Decoder::new(schema(&[]), &[]);
        decoder.feed(&stream(&[&[], &[], &[]])).expect("decoded");
        assert_eq!(decoder.take().expect("a batch").num_rows(), 3);
    }

    #[test]
    fn decimals_are_exact() {
        let check = |weight: i16, sign: u16, digits: &[u16], scale: i8, expected: Option<i128>| {
            assert_eq!(decimal(&numeric(weight, sign, digits), scale).ok(), expected, "{weight} {digits:?}");
        };
        check(0, 0, &[], 6, Some(0));
        check(0, 0x4000, &[5], 6, Some(-5_000_000));
        check(-1, 0, &[1], 6, Some(100));
        check(-2, 0, &[100], 6, Some(1));
        check(-2, 0, &[1], 6, None);
        check(3, 0, &[99, 9999, 9999, 9999, 9999, 9900], 6, Some(99_999_999_999_999_999_999));
        check(1, 0, &[1], 6, Some(10_000_000_000));
        check(0, 0, &[0, 9500], 2, Some(95));
        check(100, 0, &[1], 6, None);
        check(-30, 0, &[1], 6, None);
        check(0, 0xC000, &[], 6, None);
        check(0, 0xD000, &[], 6, None);
    }

    #[test]
    fn other_bytes_are_refused() {
        let check = |kinds: &[Kind], bytes: &[u8], expected: &str| {
            let mut decoder = Decoder::new(schema(kinds), kinds);
            let error = decoder.feed(bytes).and_then(|()| decoder.finish()).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}, expected {expected}");
        };
        check(&[], b"id,name\n1,a and more than nineteen", "signature");
        check(&[Kind::Int], &stream(&[&[None, None]]), "2 fields, expected 1");
        check(&[Kind::Int], &stream(&[&[Some(&[1])]]), "column 0: a value of 1 bytes is not of type Int");
        check(&[Kind::Bool], &stream(&[&[Some(&[1, 1])]]), "not of type Bool");
        check(&[Kind::Uuid], &stream(&[&[Some(&[1; 15])]]), "not of type Uuid");
        check(&[Kind::Text], &stream(&[&[Some(&[0xff])]]), "utf-8");
        check(&[Kind::Time], &stream(&[&[Some(&i64::MAX.to_be_bytes())]]), "infinite");
        check(&[Kind::Time], &stream(&[&[Some(&i64::MIN.to_be_bytes())]]), "infinite");
        let whole = stream(&[&[Some(&[1; 4])]]);
        check(&[Kind::Int], &whole[..whole.len() - 1], "ended early");
        check(&[Kind::Int], &whole[..25], "ended early");
        let mut flagged = whole.clone();
        flagged[12] = 1;
        check(&[Kind::Int], &flagged, "critical flags");
    }
}
