//! Arrow values as clients read them: JSON or CSV.

use std::io::Write;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, SecondsFormat, Utc};

/// One value, ready to be written.
enum Cell {
    Null,
    /// A JSON number or truth value.
    Plain(String),
    /// A number that JSON readers would round, so it is a text there.
    Exact(String),
    Text(String),
}

/// Writes a value as JSON: decimals and times as texts, what is not finite as null, nested values as texts.
/// # Errors
/// Those of Arrow, for a type that it cannot write.
pub fn write_json(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), ArrowError> {
    match cell(array, row)? {
        Cell::Null => out.extend_from_slice(b"null"),
        Cell::Plain(text) => out.extend_from_slice(text.as_bytes()),
        Cell::Exact(text) | Cell::Text(text) => {
            serde_json::to_writer(out, &text).map_err(|error| ArrowError::from_external_error(Box::new(error)))?
        }
    }
    Ok(())
}

/// Writes a value as a field of CSV (RFC 4180); null is empty. Texts that a spreadsheet would run as a formula get an
/// apostrophe in front.
/// # Errors
/// Those of Arrow, for a type that it cannot write.
pub fn write_csv(out: &mut Vec<u8>, array: &dyn Array, row: usize) -> Result<(), ArrowError> {
    match cell(array, row)? {
        Cell::Null => {}
        Cell::Plain(text) | Cell::Exact(text) => out.extend_from_slice(text.as_bytes()),
        Cell::Text(text) => write_csv_text(out, &text),
    }
    Ok(())
}

/// Writes a text as a field of CSV.
pub fn write_csv_text(out: &mut Vec<u8>, text: &str) {
    let is_formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if !is_formula && !text.is_empty() && !text.contains(['"', ',', '\n', '\r']) {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    if is_formula {
        out.push(b'\'');
    }
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

fn float(value: f64) -> Cell {
    if value.is_finite() { Cell::Plain(value.to_string()) } else { Cell::Null }
}

fn time(seconds: i64, nanos: u32) -> Option<Cell> {
    let time = DateTime::<Utc>::from_timestamp(seconds, nanos)?;
    Some(Cell::Text(time.to_rfc3339_opts(SecondsFormat::AutoSi, true)))
}

fn timestamp(unit: TimeUnit, array: &dyn Array, row: usize) -> Option<Cell> {
    let (value, per_second) = match unit {
        TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().value(row), 1),
        TimeUnit::Millisecond => (array.as_primitive::<TimestampMillisecondType>().value(row), 1_000),
        TimeUnit::Microsecond => (array.as_primitive::<TimestampMicrosecondType>().value(row), 1_000_000),
        TimeUnit::Nanosecond => (array.as_primitive::<TimestampNanosecondType>().value(row), 1_000_000_000),
    };
    let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
    time(value.div_euclid(per_second), u32::try_from(nanos).ok()?)
}

fn cell(array: &dyn Array, row: usize) -> Result<Cell, ArrowError> {
    if let Some(union) = array.as_any().downcast_ref::<arrow::array::UnionArray>() {
        let child = union.child(union.type_id(row));
        return cell(child.as_ref(), union.value_offset(row));
    }
    if array.is_null(row) {
        return Ok(Cell::Null);
    }
    let known = match array.data_type() {
        DataType::Null => Some(Cell::Null),
        DataType::Boolean => Some(Cell::Plain(array.as_boolean().value(row).to_string())),
        DataType::Int8 => Some(Cell::Plain(array.as_primitive::<Int8Type>().value(row).to_string())),
        DataType::Int16 => Some(Cell::Plain(array.as_primitive::<Int16Type>().value(row).to_string())),
        DataType::Int32 => Some(Cell::Plain(array.as_primitive::<Int32Type>().value(row).to_string())),
        DataType::Int64 => Some(Cell::Plain(array.as_primitive::<Int64Type>().value(row).to_string())),
        DataType::UInt8 => Some(Cell::Plain(array.as_primitive::<UInt8Type>().value(row).to_string())),
        DataType::UInt16 => Some(Cell::Plain(array.as_primitive::<UInt16Type>().value(row).to_string())),
        DataType::UInt32 => Some(Cell::Plain(array.as_primitive::<UInt32Type>().value(row).to_string())),
        DataType::UInt64 => Some(Cell::Plain(array.as_primitive::<UInt64Type>().value(row).to_string())),
        DataType::Float16 => Some(float(array.as_primitive::<Float16Type>().value(row).to_f64())),
        DataType::Float32 => Some(float(f64::from(array.as_primitive::<Float32Type>().value(row)))),
        DataType::Float64 => Some(float(array.as_primitive::<Float64Type>().value(row))),
        DataType::Decimal128(..) => Some(Cell::Exact(array.as_primitive::<Decimal128Type>().value_as_string(row))),
        DataType::Decimal256(..) => Some(Cell::Exact(array.as_primitive::<Decimal256Type>().value_as_string(row))),
        DataType::Utf8 => Some(Cell::Text(array.as_string::<i32>().value(row).to_owned())),
        DataType::LargeUtf8 => Some(Cell::Text(array.as_string::<i64>().value(row).to_owned())),
        DataType::Utf8View => Some(Cell::Text(array.as_string_view().value(row).to_owned())),
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            return cell(dictionary.values().as_ref(), dictionary.normalized_keys()[row]);
        }
        DataType::Timestamp(unit, _) => timestamp(*unit, array, row),
        _ => None,
    };
    match known {
        Some(cell) => Ok(cell),
        None => {
            let options = FormatOptions::default();
            Ok(Cell::Text(ArrayFormatter::try_new(array, &options)?.value(row).try_to_string()?))
        }
    }
}

/// Returns the name of a type for clients.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => "integer".to_owned(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => "integer".to_owned(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "float".to_owned(),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            format!("decimal({precision},{scale})")
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Dictionary(_, values) => type_name(values),
        DataType::Null => "null".to_owned(),
        other => other.to_string().to_lowercase(),
    }
}

/// Appends one row of JSON, such as `["a",1]`.
/// # Errors
/// Those of Arrow.
pub fn write_json_row(out: &mut Vec<u8>, columns: &[arrow::array::ArrayRef], row: usize) -> Result<(), ArrowError> {
    out.push(b'[');
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_json(out, column.as_ref(), row)?;
    }
    out.push(b']');
    Ok(())
}

/// Appends one line of CSV.
/// # Errors
/// Those of Arrow.
pub fn write_csv_row(out: &mut Vec<u8>, columns: &[arrow::array::ArrayRef], row: usize) -> Result<(), ArrowError> {
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_csv(out, column.as_ref(), row)?;
    }
    out.write_all(b"\r\n").map_err(ArrowError::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{
        ArrayRef, Date32Array, Decimal128Array, DictionaryArray, Float64Array, Int64Array, StringArray,
        TimestampMicrosecondArray, TimestampNanosecondArray,
    };
    use std::sync::Arc;

    #[test]
    fn values_are_written() {
        let check = |array: ArrayRef, json: &str, csv: &str| {
            let (mut found_json, mut found_csv) = (Vec::new(), Vec::new());
            write_json(&mut found_json, array.as_ref(), 0).expect("written");
            write_csv(&mut found_csv, array.as_ref(), 0).expect("written");
            assert_eq!((String::from_utf8_lossy(&found_json), String::from_utf8_lossy(&found_csv)), (json.into(), csv.into()));
        };
        let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        check(Arc::new(Int64Array::from(vec![-9_007_199_254_740_993])), "-9007199254740993", "-9007199254740993");
        check(Arc::new(Int64Array::from(vec![None])), "null", "");
        check(Arc::new(Float64Array::from(vec![0.1])), "0.1", "0.1");
        check(Arc::new(Float64Array::from(vec![f64::NAN])), "null", "");
        let decimal = Decimal128Array::from(vec![-19_900_000]).with_precision_and_scale(20, 6).expect("fits");
        check(Arc::new(decimal), "\"-19.900000\"", "-19.900000");
        check(text("a \"b\"\n"), "\"a \\\"b\\\"\\n\"", "\"a \"\"b\"\"\n\"");
        check(text("plain"), "\"plain\"", "plain");
        check(text(""), "\"\"", "\"\"");
        for formula in ["=cmd()", "+1", "-1", "@x"] {
            check(text(formula), &format!("\"{formula}\""), &format!("\"'{formula}\""));
        }
        let micros = TimestampMicrosecondArray::from(vec![-1]).with_timezone("UTC");
        check(Arc::new(micros), "\"1969-12-31T23:59:59.999999Z\"", "1969-12-31T23:59:59.999999Z");
        let nanos = TimestampNanosecondArray::from(vec![1_500_000_000]);
        check(Arc::new(nanos), "\"1970-01-01T00:00:01.500Z\"", "1970-01-01T00:00:01.500Z");
        check(Arc::new(Date32Array::from(vec![20_000])), "\"2024-10-04\"", "2024-10-04");
        let dictionary: DictionaryArray<Int64Type> = vec!["x"].into_iter().collect();
        check(Arc::new(dictionary), "\"x\"", "x");
    }
}
