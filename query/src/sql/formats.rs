//! Rows of an answer in the format that was asked for, within its limits.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::source::snapshot::AsOf;
use crate::sql::cells;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// `{"columns": [..], "rows": [[..]], "as_of": {..}}`.
    Json,
    /// RFC 4180 with a header line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

/// Rows being written.
pub(crate) enum Writer {
    /// Text, row by row; JSON if not CSV.
    Text {
        /// All of it so far.
        body: Vec<u8>,
        /// Whether a row is in it.
        has_rows: bool,
        /// Whether it is CSV.
        is_csv: bool,
    },
    /// An Arrow IPC stream.
    Arrow(Box<StreamWriter<Vec<u8>>>),
    /// A Parquet file.
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

impl Writer {
    /// Begins an answer.
    /// # Errors
    /// Those of Arrow, for a type that the format does not have.
    pub(crate) fn new(schema: &SchemaRef, format: Format) -> Result<Self, ArrowError> {
        Ok(match format {
            Format::Json => Writer::Text { body: json_header(schema), has_rows: false, is_csv: false },
            Format::Csv => Writer::Text { body: csv_header(schema), has_rows: false, is_csv: true },
            Format::Arrow => Writer::Arrow(Box::new(StreamWriter::try_new(Vec::new(), &plain_schema(schema))?)),
            Format::Parquet => {
                let zstd = ZstdLevel::try_new(1).map_err(of_parquet)?;
                let properties = WriterProperties::builder().set_compression(Compression::ZSTD(zstd)).build();
                let writer = ArrowWriter::try_new(Vec::new(), plain_schema(schema), Some(properties)).map_err(of_parquet)?;
                Writer::Parquet(Box::new(writer))
            }
        })
    }

    /// Writes rows until the answer has this many bytes, and returns how many. Formats of columns take a batch or none of it.
    /// # Errors
    /// Those of Arrow, for a value that the format cannot hold.
    pub(crate) fn write(&mut self, batch: &RecordBatch, bytes_max: usize) -> Result<usize, ArrowError> {
        match self {
            Writer::Text { body, has_rows, is_csv } => {
                for row in 0..batch.num_rows() {
                    let before = body.len();
                    if *is_csv {
                        cells::write_csv_row(body, batch.columns(), row)?;
                    } else {
                        if *has_rows {
                            body.push(b',');
                        }
                        cells::write_json_row(body, batch.columns(), row)?;
                    }
                    if body.len() > bytes_max {
                        body.truncate(before);
                        return Ok(row);
                    }
                    *has_rows = true;
                }
            }
            Writer::Arrow(writer) => {
                let batch = plain_batch(batch)?;
                if writer.get_ref().len() + batch.get_array_memory_size() > bytes_max {
                    return Ok(0);
                }
                writer.write(&batch)?;
            }
            Writer::Parquet(writer) => {
                let batch = plain_batch(batch)?;
                if writer.bytes_written() + writer.in_progress_size() + batch.get_array_memory_size() > bytes_max {
                    return Ok(0);
                }
                writer.write(&batch).map_err(of_parquet)?;
            }
        }
        Ok(batch.num_rows())
    }

    /// Ends the answer and returns its body. Only JSON has a place for what is said about the rows.
    /// # Errors
    /// Those of Arrow.
    pub(crate) fn finish(self, truncated: bool, as_of: &AsOf) -> Result<Vec<u8>, ArrowError> {
        Ok(match self {
            Writer::Text { body, is_csv: true, .. } => body,
            Writer::Text { mut body, .. } => {
                let rest = json!({"truncated": truncated, "as_of": as_of});
                // The object goes on after the rows: its opening brace gives way.
                body.extend_from_slice(b"],");
                body.extend_from_slice(&rest.to_string().as_bytes()[1..]);
                body
            }
            Writer::Arrow(writer) => writer.into_inner()?,
            Writer::Parquet(writer) => writer.into_inner().map_err(of_parquet)?,
        })
    }
}

fn of_parquet(error: ParquetError) -> ArrowError {
    ArrowError::ParquetError(error.to_string())
}

fn json_header(schema: &Schema) -> Vec<u8> {
    let column = |field: &FieldRef| json!({"name": field.name(), "type": cells::type_name(field.data_type())});
    let columns: Vec<serde_json::Value> = schema.fields().iter().map(column).collect();
    format!("{{\"columns\":{},\"rows\":[", json!(columns)).into_bytes()
}

fn csv_header(schema: &Schema) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, field) in schema.fields().iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        cells::write_csv_text(&mut body, field.name());
    }
    body.extend_from_slice(b"\r\n");
    body
}

/// The type that all readers know: older ones have no views.
fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        other => other.clone(),
    }
}

fn plain_schema(schema: &Schema) -> SchemaRef {
    let field = |field: &FieldRef| Field::new(field.name(), plain(field.data_type()), field.is_nullable());
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

fn plain_batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<ArrayRef> =
        batch.columns().iter().map(|column| cast(column, &plain(column.data_type()))).collect::<Result<_, _>>()?;
    RecordBatch::try_new(plain_schema(&batch.schema()), columns)
}
