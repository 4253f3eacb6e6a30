//! Parquet: batches of columns, taken apart row by row.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef, TimeUnit};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Type as Physical;
use serde_json::value::RawValue;

use super::lines::object;
use super::{Cell, Encoding, Fault, Form, Reading, Row};
use crate::commands::import::names::{self, REASON};

mod value;

use value::Shape;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 1_000;

/// Reads rows. `read` rises with the rows, in proportion to the file's bytes.
/// # Errors
/// If the file cannot be read, or has a column of a type that cannot.
pub(super) fn open(file: File, read: Arc<AtomicU64>) -> anyhow::Result<Reading> {
    let bytes = file.metadata()?.len();
    let unreadable = || "the Parquet file cannot be read";
    let found = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).with_context(unreadable)?;
    let options = ArrowReaderOptions::new().with_schema(of_wide_times(&found));
    let metadata = ArrowReaderMetadata::try_new(Arc::clone(found.metadata()), options).with_context(unreadable)?;
    let shapes = value::shapes(metadata.schema(), metadata.parquet_schema())?;
    let written: Vec<String> = metadata.schema().fields().iter().map(|field| field.name().clone()).collect();
    let names = names::of_columns(&written)?;
    let columns = names.iter().filter(|name| *name != REASON).cloned().collect();
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata);
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default();
    let reader = builder.with_batch_size(BATCH_ROWS).build().with_context(unreadable)?;
    read.store(if rows == 0 { bytes } else { 0 }, Ordering::Relaxed);
    let rows = Columns { reader, names, shapes, batch: None, place: 0, number: 0, rows, bytes, read };
    let form = Form::Lines.in_encoding(Encoding::Utf8 { has_mark: false });
    Ok(Reading { rows: Box::new(rows), form, columns: Some(columns) })
}

/// Returns the schema in which times of 96 bits are microseconds: as nanoseconds, their years end with 2262.
fn of_wide_times(found: &ArrowReaderMetadata) -> SchemaRef {
    let parquet = found.parquet_schema();
    let roots = |physical: Physical| {
        let is = move |leaf: &usize| parquet.column(*leaf).physical_type() == physical;
        (0..parquet.num_columns()).filter(is).map(|leaf| parquet.get_column_root_idx(leaf)).collect::<Vec<_>>()
    };
    let wide = roots(Physical::INT96);
    let fields = found.schema().fields().iter().enumerate().map(|(place, field)| match field.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) if wide.contains(&place) => {
            let data_type = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
            Arc::new(field.as_ref().clone().with_data_type(data_type))
        }
        _ => Arc::clone(field),
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), found.schema().metadata().clone()))
}

struct Columns {
    reader: ParquetRecordBatchReader,
    names: Vec<String>,
    shapes: Vec<Shape>,
    /// The rows that are decoded, and the next one of them.
    batch: Option<RecordBatch>,
    place: usize,
    number: u64,
    rows: u64,
    bytes: u64,
    read: Arc<AtomicU64>,
}

impl Iterator for Columns {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = &self.batch
                && self.place < batch.num_rows()
            {
                let row = self.row(batch, self.place);
                self.place += 1;
                self.number += 1;
                return Some(Ok(row));
            }
            let batch = match self.reader.next()? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(anyhow::Error::new(error).context("the Parquet file cannot be read on"))),
            };
            let done = u128::from(self.number + batch.num_rows() as u64) * u128::from(self.bytes) / u128::from(self.rows.max(1));
            self.read.store(done as u64, Ordering::Relaxed); // at most `bytes`
            self.batch = Some(batch);
            self.place = 0;
        }
    }
}

impl Columns {
    /// Returns a row's values; a column without one is left out.
    fn row(&self, batch: &RecordBatch, place: usize) -> Row {
        let mut cells = Vec::with_capacity(self.names.len());
        let mut fault = None;
        for ((name, shape), column) in self.names.iter().zip(&self.shapes).zip(batch.columns()) {
            if name == REASON {
                continue;
            }
            let mut json = String::new();
            if let Err(why) = shape.write(&mut json, column, place) {
                let message = format!("column {name} ({}): {why}", column.data_type());
                fault.get_or_insert_with(|| Fault::new("unreadable_value", message));
                // A list or a struct may be written in part.
                if serde_json::from_str::<&RawValue>(&json).is_err() {
                    "null".clone_into(&mut json);
                }
            }
            if json != "null" {
                cells.push((name.clone(), Cell::Json(json)));
            }
        }
        let raw = object(&cells).into_bytes();
        Row { number: self.number + 1, cells: fault.map_or(Ok(cells), Err), raw }
    }
}

#[cfg(test)]
mod tests;
