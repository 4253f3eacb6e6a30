//! Every type that Parquet may have, beside the same values in CSV.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BinaryViewArray, BooleanArray, Date32Array, Date64Array, Decimal128Array, Decimal256Array,
    DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array,
    Int64Array, IntervalYearMonthArray, LargeBinaryArray, LargeListArray, LargeStringArray, ListArray, MapBuilder, NullArray,
    RecordBatch, StringArray, StringBuilder, StringViewArray, StructArray, Time32MillisecondArray, Time64NanosecondArray,
    TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray, UInt8Array,
    UInt16Array, UInt32Array, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Int32Type, UInt32Type, i256};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::column::writer::ColumnWriter;
use parquet::data_type::{ByteArray, FixedLenByteArray, Int96};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::tests::read;
use super::super::{Source, tests};
use crate::commands::import::content::Repeats;
use crate::commands::import::shape::{Dialect, Plan};

fn write(path: &Path, batch: &RecordBatch, compression: Compression) {
    let file = std::fs::File::create(path).expect("a file");
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
    writer.write(batch).expect("written");
    writer.close().expect("written");
}

/// Writes a column as another program than Arrow does: by its Parquet type alone.
fn write_as(path: &Path, column: &str, values: impl Fn(&mut ColumnWriter<'_>)) {
    let schema = parse_message_type(&format!("message m {{ {column} }}")).expect("a schema");
    let file = std::fs::File::create(path).expect("a file");
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group.next_column().expect("no fault").expect("a column");
    values(column.untyped());
    column.close().expect("written");
    group.close().expect("written");
    writer.close().expect("written");
}

fn fixed(writer: &mut ColumnWriter<'_>, values: &[&[u8]]) {
    let ColumnWriter::FixedLenByteArrayColumnWriter(writer) = writer else { panic!("another type") };
    let values: Vec<_> = values.iter().map(|value| FixedLenByteArray::from(value.to_vec())).collect();
    writer.write_batch(&values, None, None).expect("written");
}

fn texts(writer: &mut ColumnWriter<'_>, values: &[&[u8]]) {
    let ColumnWriter::ByteArrayColumnWriter(writer) = writer else { panic!("another type") };
    let values: Vec<_> = values.iter().map(|value| ByteArray::from(value.to_vec())).collect();
    writer.write_batch(&values, None, None).expect("written");
}

/// The first row of a file as an event of the collector, without its id, and that id.
fn event(source: &Source) -> (String, String) {
    let plan = Plan::new(Dialect::Native, &[], false, source).expect("a plan");
    let row = source.read().expect("can be read").rows.next().expect("a row").expect("can be read");
    let event = plan.event(row.cells.expect("values"), &mut Repeats::default()).expect("room").expect("an event");
    let event = String::from_utf8(event).expect("a text");
    let (rest, id) = event.rsplit_once(",\"event_id\":").expect("an id");
    (rest.to_owned(), id.to_owned())
}

/// Checks that a value in a column is the JSON that it should be, and the same event as a text in CSV.
fn check(name: &str, column: ArrayRef, json: &str, csv: &str) {
    let batch = RecordBatch::try_from_iter([
        ("timestamp", Arc::new(StringArray::from(vec!["2026-03-01T12:00:00Z"; column.len()])) as ArrayRef),
        (name, column),
    ]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.parquet");
    write(&path, &batch.expect("columns"), Compression::SNAPPY);
    check_file(&path, name, json, csv, true);
}

fn check_file(path: &Path, name: &str, json: &str, csv: &str, has_time: bool) {
    let source = Source::open(path).expect("opens");
    let row = read(&source).into_iter().next().expect("a row");
    let member = format!(" {name}:{json}");
    assert!(row.ends_with(&member), "{row} has not {member}");
    if has_time {
        let table = format!("timestamp,{name}\n2026-03-01T12:00:00Z,\"{}\"\n", csv.replace('"', "\"\""));
        let (table, _folder) = tests::source("events.csv", table.as_bytes());
        let (found, expected) = (event(&source), event(&table));
        assert_eq!(found.1, expected.1, "the id of {} is that of {}", found.0, expected.0);
    }
}

#[test]
fn columns_are_rows() {
    let inner: Fields = vec![Field::new("sku", DataType::Utf8, true)].into();
    let columns: Vec<(&str, ArrayRef)> = vec![
        (" User_ID", Arc::new(Int64Array::from(vec![Some(7), None]))),
        ("name", Arc::new(StringArray::from(vec!["purchase \"x\"\n", "visit"]))),
        (
            "value",
            Arc::new(Decimal128Array::from(vec![Some(1990), Some(-5)]).with_precision_and_scale(20, 2).expect("a decimal")),
        ),
        ("Timestamp", Arc::new(TimestampMicrosecondArray::from(vec![1_772_366_400_123_456, 0]).with_timezone("UTC"))),
        ("is_bot", Arc::new(BooleanArray::from(vec![true, false]))),
        (
            "properties",
            Arc::new(StructArray::new(inner, vec![Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef], None)),
        ),
        ("nothing", Arc::new(NullArray::new(2))),
        ("weir_rejected", Arc::new(StringArray::from(vec!["why", "why"]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let folder = tempfile::tempdir().expect("a folder");
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
        let path = folder.path().join("events.parquet");
        write(&path, &batch, compression);
        let source = Source::open(&path).expect("opens");
        let expected = [
            "1 user_id:7 name:\"purchase \\\"x\\\"\\n\" value:\"19.90\" timestamp:\"2026-03-01T12:00:00.123456Z\" is_bot:true \
             properties:{\"sku\":\"a\"}",
            "2 name:\"visit\" value:\"-0.05\" timestamp:\"1970-01-01T00:00:00Z\" is_bot:false properties:{}",
        ];
        assert_eq!(read(&source), expected, "{compression}");
        assert_eq!(source.bytes_read(), source.bytes);
    }
}

#[test]
fn numbers_are_those_of_csv() {
    check("user_id", Arc::new(Int64Array::from(vec![i64::MIN])), "-9223372036854775808", "-9223372036854775808");
    check("user_id", Arc::new(UInt64Array::from(vec![u64::MAX])), "18446744073709551615", "18446744073709551615");
    check("user_id", Arc::new(Int32Array::from(vec![-7])), "-7", "-7");
    check("user_id", Arc::new(Int16Array::from(vec![7])), "7", "7");
    check("user_id", Arc::new(Int8Array::from(vec![7])), "7", "7");
    check("user_id", Arc::new(UInt32Array::from(vec![u32::MAX])), "4294967295", "4294967295");
    check("user_id", Arc::new(UInt16Array::from(vec![7])), "7", "7");
    check("user_id", Arc::new(UInt8Array::from(vec![7])), "7", "7");
    check("bounce", Arc::new(BooleanArray::from(vec![true])), "true", "t");
    check("value", Arc::new(Float64Array::from(vec![19.9])), "19.9", "19.90");
    check("value", Arc::new(Float32Array::from(vec![19.9])), "19.9", "19.90");
    check("score", Arc::new(Float64Array::from(vec![7.0])), "7.0", "7");
    check("value", Arc::new(Float64Array::from(vec![f64::NAN])), "\"NaN\"", "NaN");
    check("value", Arc::new(Float32Array::from(vec![f32::INFINITY])), "\"Infinity\"", "Infinity");
    check("value", Arc::new(Float64Array::from(vec![f64::NEG_INFINITY])), "\"-Infinity\"", "-Infinity");
    let decimal = |value, precision, scale| Decimal128Array::from(vec![value]).with_precision_and_scale(precision, scale);
    check("value", Arc::new(decimal(1990, 9, 2).expect("a decimal")), "19.90", "19.9");
    check("value", Arc::new(decimal(-1990, 15, 2).expect("a decimal")), "-19.90", "-19.9");
    check(
        "value",
        Arc::new(decimal(12_345_678_901_234_567_890, 38, 6).expect("a decimal")),
        "\"12345678901234.567890\"",
        "12345678901234.56789",
    );
    let wide = Decimal256Array::from(vec![i256::from_i128(1990)]).with_precision_and_scale(60, 2).expect("a decimal");
    check("value", Arc::new(wide), "\"19.90\"", "19.90");
}

#[test]
fn times_are_those_of_csv() {
    let (json, csv) = ("\"2026-03-01T11:00:00Z\"", "2026-03-01 12:00:00+01");
    let at = 1_772_362_800;
    check("sent_at", Arc::new(TimestampSecondArray::from(vec![at])), json, csv);
    check("sent_at", Arc::new(TimestampMillisecondArray::from(vec![at * 1_000])), json, csv);
    check("sent_at", Arc::new(TimestampMicrosecondArray::from(vec![at * 1_000_000])), json, csv);
    check("sent_at", Arc::new(TimestampNanosecondArray::from(vec![at * 1_000_000_000])), json, csv);
    check("sent_at", Arc::new(TimestampMillisecondArray::from(vec![at * 1_000]).with_timezone("+05:30")), json, csv);
    check("sent_at", Arc::new(TimestampMicrosecondArray::from(vec![at * 1_000_000]).with_timezone("Europe/Berlin")), json, csv);
    check(
        "sent_at",
        Arc::new(TimestampMillisecondArray::from(vec![-1])),
        "\"1969-12-31T23:59:59.999Z\"",
        "1969-12-31T23:59:59.999",
    );
    let nanos = Arc::new(TimestampNanosecondArray::from(vec![-1]));
    check("sent_at", nanos, "\"1969-12-31T23:59:59.999999999Z\"", "1969-12-31T23:59:59.999999999");
    check("day", Arc::new(Date32Array::from(vec![20_513])), "\"2026-03-01\"", "2026-03-01");
    check("day", Arc::new(Date64Array::from(vec![20_513 * 86_400_000])), "\"2026-03-01\"", "2026-03-01");
    check("hour", Arc::new(Time32MillisecondArray::from(vec![45_000_250])), "\"12:30:00.25\"", "12:30:00.25");
    check(
        "hour",
        Arc::new(Time64NanosecondArray::from(vec![45_000_000_000_001])),
        "\"12:30:00.000000001\"",
        "12:30:00.000000001",
    );
}

#[test]
fn texts_and_what_holds_others_are_those_of_csv() {
    check("name", Arc::new(StringArray::from(vec!["a \"ä\""])), "\"a \\\"ä\\\"\"", "a \"ä\"");
    check("name", Arc::new(LargeStringArray::from(vec!["a"])), "\"a\"", "a");
    check(
        "name",
        Arc::new(StringViewArray::from(vec!["a text of more than twelve bytes"])),
        "\"a text of more than twelve bytes\"",
        "a text of more than twelve bytes",
    );
    check("name", Arc::new(BinaryArray::from(vec!["ä".as_bytes()])), "\"ä\"", "ä");
    check("name", Arc::new(LargeBinaryArray::from(vec!["ä".as_bytes()])), "\"ä\"", "ä");
    check("name", Arc::new(BinaryViewArray::from(vec!["ä".as_bytes()])), "\"ä\"", "ä");
    let dictionary: DictionaryArray<Int8Type> = vec!["b", "a"].into_iter().collect();
    check("name", Arc::new(dictionary), "\"b\"", "b");
    let values = Arc::new(Int64Array::from(vec![5, 7]));
    let dictionary = DictionaryArray::<UInt32Type>::new(UInt32Array::from(vec![1, 0]), values);
    check("user_id", Arc::new(dictionary), "7", "7");
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None, Some(3)])]);
    check("skus", Arc::new(list), "[1,null,3]", "[1, null, 3]");
    let list = LargeListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![])]);
    check("skus", Arc::new(list), "[]", "[]");
    let list = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), Some(2)])], 2);
    check("skus", Arc::new(list), "[1,2]", "[1,2]");
    let fields: Fields = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Utf8, true)].into();
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1])), Arc::new(StringArray::from(vec![None::<&str>]))];
    check("properties", Arc::new(StructArray::new(fields, columns, None)), "{\"a\":1}", "{\"a\": 1}");
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("k \"1\"");
    map.values().append_value("v");
    map.append(true).expect("a map");
    check("properties", Arc::new(map.finish()), "{\"k \\\"1\\\"\":\"v\"}", "{\"k \\\"1\\\"\":\"v\"}");
}

#[test]
fn what_only_parquet_knows_of_a_column_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.parquet");
    let uuid = "6ba7b812-9dad-11d1-80b4-00c04fd430c8";
    let bytes = uuid::Uuid::parse_str(uuid).expect("a UUID").into_bytes();
    for name in ["user_id", "event_id"] {
        write_as(&path, &format!("required fixed_len_byte_array(16) {name} (UUID);"), |column| fixed(column, &[&bytes]));
        check_file(&path, name, &format!("\"{uuid}\""), uuid, false);
    }
    write_as(&path, "required group ids { required fixed_len_byte_array(16) one (UUID); }", |column| fixed(column, &[&bytes]));
    check_file(&path, "ids", &format!("{{\"one\":\"{uuid}\"}}"), uuid, false);
    write_as(&path, "required binary name (ENUM);", |column| texts(column, &[b"purchase"]));
    check_file(&path, "name", "\"purchase\"", "purchase", false);
    write_as(&path, "required binary properties (JSON);", |column| texts(column, &[b"{\"a\":\n1}"]));
    check_file(&path, "properties", "{\"a\": 1}", "", false);
    write_as(&path, "required binary properties (JSON);", |column| texts(column, &[b"{a}"]));
    check_file(&path, "properties", "\"{a}\"", "", false);
    // Noon of 0001-01-02, which nanoseconds of 64 bits do not reach; Julian day 1721427 is its day.
    write_as(&path, "required int96 timestamp;", |column| {
        let ColumnWriter::Int96ColumnWriter(writer) = column else { panic!("another type") };
        let nanos: u64 = 43_200 * 1_000_000_000;
        let mut time = Int96::new();
        time.set_data((nanos & u64::from(u32::MAX)) as u32, (nanos >> 32) as u32, 1_721_427);
        writer.write_batch(&[time], None, None).expect("written");
    });
    check_file(&path, "timestamp", "\"0001-01-02T12:00:00Z\"", "", false);
}

#[test]
fn what_cannot_be_read_names_the_column_and_its_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events.parquet");
    let refused = |expected: &[&str]| {
        let error = format!("{:#}", Source::open(&path).and_then(|source| source.read().map(drop)).expect_err("refused"));
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    write_as(&path, "required fixed_len_byte_array(16) user_id;", |column| fixed(column, &[&[7; 16]]));
    refused(&["\"user_id\"", "FIXED_LEN_BYTE_ARRAY(16)", "logical type UUID"]);
    write_as(&path, "required binary ctx (BSON);", |column| texts(column, &[&[5, 0, 0, 0, 0]]));
    refused(&["\"ctx\"", "BSON"]);
    let columns: [(&str, ArrayRef); 2] = [
        ("hash", Arc::new(FixedSizeBinaryArray::try_from_iter([[1, 2, 3]].into_iter()).expect("bytes"))),
        ("span", Arc::new(IntervalYearMonthArray::from(vec![1]))),
    ];
    for (name, column) in columns {
        let batch = RecordBatch::try_from_iter([(name, column)]).expect("a column");
        write(&path, &batch, Compression::UNCOMPRESSED);
        refused(&[&format!("{name:?}"), "cannot be read"]);
    }
    // Values of a type that can be read elsewhere are their rows' faults, and the rest goes on.
    let columns: Vec<(&str, ArrayRef)> =
        vec![("n", Arc::new(Int64Array::from(vec![1, 2]))), ("name", Arc::new(BinaryArray::from(vec![&b"\xff\x00"[..], b"a"])))];
    write(&path, &RecordBatch::try_from_iter(columns).expect("columns"), Compression::UNCOMPRESSED);
    let source = Source::open(&path).expect("opens");
    let expected = ["1 unreadable_value: column name (Binary): expected a text in UTF-8; found other bytes", "2 n:2 name:\"a\""];
    assert_eq!(read(&source), expected);
    let raw = source.read().expect("begins").rows.next().expect("a row").expect("can be read").raw;
    assert_eq!(String::from_utf8(raw).expect("JSON"), r#"{"n":1,"name":"0xff00"}"#);
    // One import holds a file at a time.
    drop(source);
    let far = RecordBatch::try_from_iter([("timestamp", Arc::new(TimestampSecondArray::from(vec![i64::MAX])) as ArrayRef)]);
    write(&path, &far.expect("a column"), Compression::UNCOMPRESSED);
    let row = read(&Source::open(&path).expect("opens")).remove(0);
    assert!(row.contains("column timestamp (Timestamp(") && row.contains("is not in the years 1 to 9999"), "{row}");
}
