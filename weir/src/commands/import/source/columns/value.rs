//! Values of Arrow's types as JSON, so that a value is the same event as from CSV.
//!
//! | Type | JSON |
//! |---|---|
//! | BOOL | `true`, `false` |
//! | INT8 .. INT64, unsigned too | a number, all digits |
//! | FLOAT, DOUBLE, FLOAT16 | the shortest number that is read as the same; not-a-number and the infinities the texts `NaN`, `Infinity`, `-Infinity` |
//! | DECIMAL of 15 digits at most | a number, with its scale |
//! | DECIMAL of more | a text of all digits, since a JSON number is a double |
//! | STRING, ENUM, BINARY that is UTF-8 | a text |
//! | JSON | the value that it holds |
//! | UUID, by its logical type | a text with hyphens |
//! | TIMESTAMP in any unit, INT96 | a text in UTC; without a zone it is in UTC |
//! | DATE, TIME | texts, `2026-03-01` and `12:30:00.25` |
//! | lists | an array |
//! | structs, maps | an object, without members that are null |
//! | dictionaries | the value that is meant |
//!
//! Anything else (FIXED_LEN_BYTE_ARRAY without a meaning, BSON, INTERVAL, durations, unions) is an error that names the column and
//! its type.

use std::fmt::Write as _;

use anyhow::bail;
use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, downcast_integer_array};
use arrow::datatypes::{
    ArrowNativeType, DataType, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType,
    Fields, Float16Type, Float32Type, Float64Type, Schema, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use events::Micros;
use parquet::basic::{ConvertedType, LogicalType};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::value::RawValue;
use uuid::Uuid;

/// Digits of a decimal that every reader of JSON keeps.
const DOUBLE_DIGITS: u8 = 15;
const NANOS: i64 = 1_000_000_000;

/// What Parquet says about the values of a column, which Arrow's type alone does not.
#[derive(Debug)]
pub(super) enum Shape {
    /// 16 bytes that are a UUID.
    Uuid,
    /// A text that is JSON.
    Json,
    /// What its type says.
    Plain,
    /// Elements of a list.
    List(Box<Shape>),
    /// Fields of a struct.
    Struct(Vec<Shape>),
    /// Keys and values of a map.
    Map(Box<Shape>, Box<Shape>),
}

/// Returns the shapes of the columns.
/// # Errors
/// If a column has a type that cannot be read; the error names both.
pub(super) fn shapes(schema: &Schema, parquet: &SchemaDescriptor) -> anyhow::Result<Vec<Shape>> {
    // Both have their leaves in the same order: depth first.
    let mut leaves = (0..parquet.num_columns()).map(|leaf| parquet.column(leaf));
    let mut next = || leaves.next();
    schema.fields().iter().map(|field| shape(field.name(), field.data_type(), &mut next)).collect()
}

type Leaves<'a> = &'a mut dyn FnMut() -> Option<std::sync::Arc<ColumnDescriptor>>;

fn shape(column: &str, data_type: &DataType, leaves: Leaves<'_>) -> anyhow::Result<Shape> {
    let each = |fields: &Fields, leaves: Leaves<'_>| -> anyhow::Result<Vec<Shape>> {
        fields.iter().map(|field| shape(&format!("{column}.{}", field.name()), field.data_type(), leaves)).collect()
    };
    match data_type {
        DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
            Ok(Shape::List(Box::new(shape(column, element.data_type(), leaves)?)))
        }
        DataType::Struct(fields) => Ok(Shape::Struct(each(fields, leaves)?)),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => {
                let mut both = each(fields, leaves)?.into_iter();
                match (both.next(), both.next()) {
                    (Some(key), Some(value)) => Ok(Shape::Map(Box::new(key), Box::new(value))),
                    _ => bail!("column {column:?} is a map without keys and values, which cannot be read"),
                }
            }
            other => bail!("column {column:?} is a map of {other}, which cannot be read"),
        },
        DataType::Dictionary(_, values) => shape(column, values, leaves),
        leaf => of_leaf(column, leaf, leaves().as_deref()),
    }
}

fn of_leaf(column: &str, data_type: &DataType, parquet: Option<&ColumnDescriptor>) -> anyhow::Result<Shape> {
    let logical = parquet.and_then(|parquet| parquet.logical_type_ref().cloned());
    let converted = parquet.map_or(ConvertedType::NONE, |parquet| parquet.converted_type());
    let is_bson = matches!(logical, Some(LogicalType::Bson)) || converted == ConvertedType::BSON;
    let is_json = matches!(logical, Some(LogicalType::Json)) || converted == ConvertedType::JSON;
    match data_type {
        DataType::FixedSizeBinary(16) if matches!(logical, Some(LogicalType::Uuid)) => Ok(Shape::Uuid),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView if is_bson => {
            bail!("column {column:?} is BSON, which cannot be read; write it as JSON or a text, or leave the column out")
        }
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
            if is_json =>
        {
            Ok(Shape::Json)
        }
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..)
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => Ok(Shape::Plain),
        DataType::FixedSizeBinary(bytes) => {
            let hint = if *bytes == 16 { "; give it the logical type UUID if it is one" } else { "" };
            bail!(
                "column {column:?} is FIXED_LEN_BYTE_ARRAY({bytes}), bytes without a meaning, which cannot be read{hint}; or leave the column out"
            )
        }
        other => bail!(
            "column {column:?} is of the type {other}, which cannot be read; write it as a text or a number, or leave the column out"
        ),
    }
}

impl Shape {
    /// Writes a value as JSON; an absent one as null.
    /// # Errors
    /// Why it cannot be read; what is written then is its bytes in hexadecimal, or null.
    pub(super) fn write(&self, out: &mut String, array: &ArrayRef, row: usize) -> Result<(), String> {
        if array.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        match (self, array.data_type()) {
            (_, DataType::Dictionary(..)) => {
                let dictionary = array.as_any_dictionary();
                let keys = dictionary.keys();
                let key = downcast_integer_array!(keys => keys.value(row).to_usize(), _ => None);
                match key.filter(|key| *key < dictionary.values().len()) {
                    Some(key) => self.write(out, dictionary.values(), key),
                    None => fails(out, "a key of its dictionary is out of range"),
                }
            }
            (Shape::Uuid, _) => match Uuid::from_slice(array.as_fixed_size_binary().value(row)) {
                Ok(uuid) => text(out, &uuid.to_string()),
                Err(_) => fails(out, "a UUID has not 16 bytes"),
            },
            (Shape::List(element), _) => {
                let Some(elements) = elements(array, row) else { return fails(out, "a list of an unknown kind") };
                out.push('[');
                for place in 0..elements.len() {
                    if place > 0 {
                        out.push(',');
                    }
                    element.write(out, &elements, place)?;
                }
                out.push(']');
                Ok(())
            }
            (Shape::Struct(shapes), _) => {
                let fields = array.as_struct();
                let mut members = Vec::new();
                for ((shape, column), name) in shapes.iter().zip(fields.columns()).zip(fields.column_names()) {
                    members.push((name.to_owned(), written(shape, column, row)?));
                }
                object(out, &members);
                Ok(())
            }
            (Shape::Map(key, value), _) => {
                let entries = array.as_map().value(row);
                let [keys, values] = entries.columns() else { return fails(out, "a map without keys and values") };
                let mut members = Vec::new();
                for place in 0..entries.len() {
                    let name = written(key, keys, place)?;
                    // A number's digits, a text without its quotes.
                    let name = serde_json::from_str::<String>(&name).unwrap_or(name);
                    members.push((name, written(value, values, place)?));
                }
                object(out, &members);
                Ok(())
            }
            (Shape::Json, _) => {
                let mut inner = String::new();
                plain(&mut inner, array, row)?;
                // The text, if it is no JSON after all.
                let json =
                    serde_json::from_str::<String>(&inner).ok().filter(|json| serde_json::from_str::<&RawValue>(json).is_ok());
                out.push_str(&json.map_or(inner, |json| json.replace(['\n', '\r'], " ")));
                Ok(())
            }
            (Shape::Plain, _) => plain(out, array, row),
        }
    }
}

fn written(shape: &Shape, array: &ArrayRef, row: usize) -> Result<String, String> {
    let mut out = String::new();
    shape.write(&mut out, array, row).map(|()| out)
}

fn fails(out: &mut String, why: &str) -> Result<(), String> {
    out.push_str("null");
    Err(why.to_owned())
}

/// Returns the elements of a list.
fn elements(array: &ArrayRef, row: usize) -> Option<ArrayRef> {
    match array.data_type() {
        DataType::List(_) => Some(array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => Some(array.as_fixed_size_list().value(row)),
        _ => None,
    }
}

fn object(out: &mut String, members: &[(String, String)]) {
    out.push('{');
    for (place, (name, json)) in members.iter().filter(|(_, json)| json != "null").enumerate() {
        if place > 0 {
            out.push(',');
        }
        // Serialising a text fails for no text.
        out.push_str(&serde_json::to_string(name).unwrap_or_default());
        out.push(':');
        out.push_str(json);
    }
    out.push('}');
}

fn text(out: &mut String, text: &str) -> Result<(), String> {
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
    Ok(())
}

/// Writes a value that has no others in it.
fn plain(out: &mut String, array: &ArrayRef, row: usize) -> Result<(), String> {
    downcast_integer_array!(
        array => {
            let _ = write!(out, "{}", array.value(row));
            Ok(())
        },
        DataType::Null => { out.push_str("null"); Ok(()) }
        DataType::Boolean => { out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }); Ok(()) }
        DataType::Float16 => { let number = of::<Float16Type>(array, row).to_f32(); float(out, f64::from(number), &number) }
        DataType::Float32 => { let number = of::<Float32Type>(array, row); float(out, f64::from(number), &number) }
        DataType::Float64 => { let number = of::<Float64Type>(array, row); float(out, number, &number) }
        DataType::Decimal32(..) => decimal::<Decimal32Type>(out, array, row),
        DataType::Decimal64(..) => decimal::<Decimal64Type>(out, array, row),
        DataType::Decimal128(..) => decimal::<Decimal128Type>(out, array, row),
        DataType::Decimal256(..) => decimal::<Decimal256Type>(out, array, row),
        DataType::Date32 => date(out, i64::from(of::<Date32Type>(array, row)).checked_mul(86_400)),
        DataType::Date64 => date(out, Some(of::<Date64Type>(array, row).div_euclid(1_000))),
        DataType::Time32(TimeUnit::Second) => time_of_day(out, i64::from(of::<Time32SecondType>(array, row)).checked_mul(NANOS)),
        DataType::Time32(_) => time_of_day(out, i64::from(of::<Time32MillisecondType>(array, row)).checked_mul(1_000_000)),
        DataType::Time64(TimeUnit::Microsecond) => time_of_day(out, of::<Time64MicrosecondType>(array, row).checked_mul(1_000)),
        DataType::Time64(_) => time_of_day(out, Some(of::<Time64NanosecondType>(array, row))),
        DataType::Timestamp(TimeUnit::Second, _) => instant(out, of::<TimestampSecondType>(array, row), 1),
        DataType::Timestamp(TimeUnit::Millisecond, _) => instant(out, of::<TimestampMillisecondType>(array, row), 1_000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => instant(out, of::<TimestampMicrosecondType>(array, row), 1_000_000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => instant(out, of::<TimestampNanosecondType>(array, row), NANOS),
        DataType::Utf8 => text(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => text(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => text(out, array.as_string_view().value(row)),
        DataType::Binary => bytes(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => bytes(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => bytes(out, array.as_binary_view().value(row)),
        _ => fails(out, "a value of this type cannot be read")
    )
}

fn of<T: ArrowPrimitiveType>(array: &ArrayRef, row: usize) -> T::Native {
    array.as_primitive::<T>().value(row)
}

/// Writes a float as the shortest number that is read as the same.
fn float(out: &mut String, number: f64, exact: &impl serde::Serialize) -> Result<(), String> {
    if number.is_finite() {
        out.push_str(&serde_json::to_string(exact).unwrap_or_default());
        return Ok(());
    }
    // As a CSV file would say it: as an amount it is refused by name, and it is never nothing.
    text(
        out,
        if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        },
    )
}

fn decimal<T: DecimalType + ArrowPrimitiveType>(out: &mut String, array: &ArrayRef, row: usize) -> Result<(), String> {
    let written = array.as_primitive::<T>().value_as_string(row);
    let precision = match array.data_type() {
        DataType::Decimal32(precision, _) | DataType::Decimal64(precision, _) => *precision,
        DataType::Decimal128(precision, _) | DataType::Decimal256(precision, _) => *precision,
        _ => u8::MAX,
    };
    if precision > DOUBLE_DIGITS {
        return text(out, &written);
    }
    out.push_str(&written);
    Ok(())
}

/// Writes the time of a number of units since 1970-01-01T00:00:00Z, with all its digits.
fn instant(out: &mut String, units: i64, per_second: i64) -> Result<(), String> {
    let (seconds, rest) = (units.div_euclid(per_second), units.rem_euclid(per_second));
    let nanos = rest * (NANOS / per_second);
    let micros = seconds.checked_mul(Micros::SECOND).and_then(|micros| micros.checked_add(nanos / 1_000)).map(Micros);
    let Some(time) = micros.filter(|time| (Micros::MIN..=Micros::MAX).contains(time)) else {
        return fails(out, &format!("the time {units} (1/{per_second} s since 1970) is not in the years 1 to 9999"));
    };
    if nanos % 1_000 == 0 {
        return text(out, &time.to_string());
    }
    let second = Micros(seconds * Micros::SECOND).to_string();
    text(out, &format!("{}.{nanos:09}Z", second.trim_end_matches('Z')))
}

fn date(out: &mut String, seconds: Option<i64>) -> Result<(), String> {
    let time = seconds.and_then(|seconds| seconds.checked_mul(Micros::SECOND)).map(Micros);
    match time.filter(|time| (Micros::MIN..=Micros::MAX).contains(time)) {
        Some(time) => text(out, time.to_string().split('T').next().unwrap_or_default()),
        None => fails(out, "the date is not in the years 1 to 9999"),
    }
}

fn time_of_day(out: &mut String, nanos: Option<i64>) -> Result<(), String> {
    let Some(nanos) = nanos.filter(|nanos| (0..86_400 * NANOS).contains(nanos)) else {
        return fails(out, "there is no such time of day");
    };
    let (seconds, rest) = (nanos / NANOS, nanos % NANOS);
    let mut written = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if rest > 0 {
        let _ = write!(written, ".{}", format!("{rest:09}").trim_end_matches('0'));
    }
    text(out, &written)
}

fn bytes(out: &mut String, bytes: &[u8]) -> Result<(), String> {
    match std::str::from_utf8(bytes) {
        Ok(found) => text(out, found),
        Err(_) => {
            let _ = text(out, &format!("0x{}", hex::encode(bytes)));
            Err("expected a text in UTF-8; found other bytes".to_owned())
        }
    }
}
