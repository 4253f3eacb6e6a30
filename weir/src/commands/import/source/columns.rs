//! Parquet: batches of columns, written as JSON row by row.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::{Row, Rows, lines};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 1_000;

/// Reads rows. `read` rises with the rows, in proportion to the file's bytes.
pub(super) fn rows(file: File, read: Arc<AtomicU64>) -> anyhow::Result<Rows> {
    let bytes = file.metadata()?.len();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).context("the Parquet file cannot be read")?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default();
    let reader = builder.with_batch_size(BATCH_ROWS).build().context("the Parquet file cannot be read")?;
    read.store(if rows == 0 { bytes } else { 0 }, Ordering::Relaxed);
    Ok(Box::new(Columns { reader, ready: Vec::new().into_iter(), number: 0, rows, bytes, read }))
}

struct Columns {
    reader: ParquetRecordBatchReader,
    /// Lines of the batch that is decoded.
    ready: std::vec::IntoIter<Vec<u8>>,
    number: u64,
    rows: u64,
    bytes: u64,
    read: Arc<AtomicU64>,
}

impl Iterator for Columns {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(line) = self.ready.next() {
                self.number += 1;
                return Some(Ok(Row { number: self.number, cells: lines::cells(&line) }));
            }
            let batch = match self.reader.next()? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error.into())),
            };
            let mut writer = LineDelimitedWriter::new(Vec::new());
            let written = writer.write(&batch).and_then(|()| writer.finish());
            if let Err(error) = written {
                return Some(Err(anyhow::Error::new(error).context("a row cannot be written as JSON")));
            }
            let text = writer.into_inner();
            let lines: Vec<Vec<u8>> =
                text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
            let done = u128::from(self.number + lines.len() as u64) * u128::from(self.bytes) / u128::from(self.rows.max(1));
            self.read.store(done as u64, Ordering::Relaxed); // at most `bytes`
            self.ready = lines.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BooleanArray, Decimal128Array, Int64Array, RecordBatch, StringArray, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::{DataType, Field, Fields};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::Compression;
    use parquet::file::properties::WriterProperties;

    use super::super::Source;
    use super::super::tests::read;

    #[test]
    fn columns_are_rows() {
        let inner: Fields = vec![Field::new("sku", DataType::Utf8, true)].into();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("user_id", Arc::new(Int64Array::from(vec![Some(7), None]))),
            ("name", Arc::new(StringArray::from(vec!["purchase \"x\"\n", "visit"]))),
            (
                "value",
                Arc::new(Decimal128Array::from(vec![Some(1990), Some(-5)]).with_precision_and_scale(20, 2).expect("a decimal")),
            ),
            ("timestamp", Arc::new(TimestampMicrosecondArray::from(vec![1_772_366_400_123_456, 0]).with_timezone("UTC"))),
            ("is_bot", Arc::new(BooleanArray::from(vec![true, false]))),
            (
                "properties",
                Arc::new(StructArray::new(inner, vec![Arc::new(StringArray::from(vec![Some("a"), None])) as ArrayRef], None)),
            ),
        ];
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
        let folder = tempfile::tempdir().expect("a folder");
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
            let path = folder.path().join("events.parquet");
            let file = std::fs::File::create(&path).expect("a file");
            let properties = WriterProperties::builder().set_compression(compression).build();
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).expect("a writer");
            writer.write(&batch).expect("written");
            writer.close().expect("written");
            let source = Source::open(&path).expect("opens");
            let expected = [
                "1 user_id:7 name:\"purchase \\\"x\\\"\\n\" value:19.90 timestamp:\"2026-03-01T12:00:00.123456Z\" is_bot:true \
                 properties:{\"sku\":\"a\"}",
                "2 name:\"visit\" value:-0.05 timestamp:\"1970-01-01T00:00:00Z\" is_bot:false properties:{}",
            ];
            assert_eq!(read(&source), expected, "{compression}");
            assert_eq!(source.bytes_read(), source.bytes);
        }
    }
}
