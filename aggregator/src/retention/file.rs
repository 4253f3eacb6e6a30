//! One file of the archive: the rows of one fact table's month as plain Parquet, in the order of the table's key.
//!
//! All columns under their names and ids ([`FactTable::numbered_columns`]), with exact types: ids as UUID, times as microseconds of UTC,
//! amounts as DECIMAL(20, 6), objects as JSON. A file exists under its name when all of it is on the disk; until then its name ends with
//! `.partial`, and whoever writes it again removes what it finds of such.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use events::fact::{Column, ColumnType, FactTable, KEY};
use futures_util::TryStreamExt;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::ColumnReader;
use parquet::data_type::{BoolType, ByteArrayType, FixedLenByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::{BadValue, COPY_END, COPY_HEADER, ColumnOf, CopyRows, Group, MONEY_BYTES, Values};

/// Why a file was not written, or is not what it should be. The month's rows are where they were.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Postgres refused or broke off.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// The file system refused.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no Parquet, or cannot be written as such.
    #[error("{path}: {source}")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the library says.
        source: ParquetError,
    },
    /// A row holds what the archive has no form for.
    #[error("table {table}, row {row} by its key: {source}")]
    Value {
        /// The table.
        table: String,
        /// Counted from 1.
        row: u64,
        /// What was found.
        source: BadValue,
    },
    /// The file has other columns than its table.
    #[error("{path}: {found}; a file of {table} as this version of Weir writes and reads it is expected")]
    Columns {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        found: String,
        /// The fact table.
        table: &'static str,
    },
    /// The file and the table hold different rows.
    #[error("{path} and table {table} differ from row {row} on, by the table's key")]
    Differs {
        /// The file.
        path: PathBuf,
        /// The table.
        table: String,
        /// Counted from 1.
        row: u64,
    },
    /// The file is not the one that was archived.
    #[error("{path}: its SHA-256 is {found}, and {expected} when it was archived; put the file back as it was")]
    Changed {
        /// The file.
        path: PathBuf,
        /// In hexadecimal digits.
        found: String,
        /// In hexadecimal digits.
        expected: String,
    },
    /// The process ends.
    #[error("the process ends")]
    Ends,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) sha256: Vec<u8>,
}

/// Writes all rows of a table with a fact table's columns. Whatever stood under this name is written over.
pub(super) async fn write(
    connection: &mut PgConnection,
    fact_table: &'static FactTable,
    table: &str,
    path: &Path,
) -> Result<Written, ArchiveError> {
    let mut writer = blocking({
        let path = path.to_owned();
        move || Writer::create(path, fact_table)
    })
    .await?;
    let (mut rows, mut group, mut count) = (CopyRows::default(), Group::new(fact_table), 0);
    let mut copied = connection.copy_out_raw(&copy_out(fact_table, table)).await?;
    while let Some(bytes) = copied.try_next().await? {
        rows.push(&bytes);
        while let Some(row) = rows.next() {
            count += 1;
            let added = group.push(row);
            added.map_err(|bad| ArchiveError::Value { table: table.to_owned(), row: count, source: bad })?;
            if group.is_full() {
                let full = std::mem::replace(&mut group, Group::new(fact_table));
                writer = blocking(move || writer.write(&full)).await?;
            }
        }
    }
    drop(copied);
    blocking(move || {
        let writer = if group.rows > 0 { writer.write(&group)? } else { writer };
        let path = writer.finish()?;
        let (bytes, sha256) = checksum(&path)?;
        Ok(Written { rows: count, bytes, sha256 })
    })
    .await
}

/// Compares a file with all rows of a table, byte by byte as Postgres sends them. Returns how many there are.
pub(super) async fn compare(
    connection: &mut PgConnection,
    fact_table: &'static FactTable,
    table: &str,
    path: &Path,
) -> Result<u64, ArchiveError> {
    let mut file = FileRows::open(path, fact_table).await?;
    let differs = |row| ArchiveError::Differs { path: path.to_owned(), table: table.to_owned(), row };
    let (mut archived, mut at, mut count) = (Vec::new(), 0, 0);
    let mut rows = CopyRows::default();
    let mut copied = connection.copy_out_raw(&copy_out(fact_table, table)).await?;
    while let Some(bytes) = copied.try_next().await? {
        rows.push(&bytes);
        while let Some(row) = rows.next() {
            count += 1;
            if at == archived.len() {
                (archived, at) = (file.next().await?.ok_or_else(|| differs(count))?, 0);
            }
            if archived.get(at..at + row.len()) != Some(row) {
                return Err(differs(count));
            }
            at += row.len();
        }
    }
    if at < archived.len() || file.next().await?.is_some() {
        return Err(differs(count + 1));
    }
    Ok(count)
}

/// Copies all rows of a file into a table. Returns how many there were.
pub(super) async fn load(
    connection: &mut PgConnection,
    fact_table: &'static FactTable,
    table: &str,
    path: &Path,
) -> Result<u64, ArchiveError> {
    let mut file = FileRows::open(path, fact_table).await?;
    let statement = format!("COPY {table} ({}) FROM STDIN (FORMAT BINARY)", columns(fact_table));
    let mut copy = connection.copy_in_raw(&statement).await?;
    copy.send(COPY_HEADER.as_slice()).await?;
    while let Some(rows) = file.next().await? {
        copy.send(rows).await?;
    }
    copy.send(COPY_END.as_slice()).await?;
    Ok(copy.finish().await?)
}

/// Compares a file with what is known of it since it was written.
pub(super) async fn check(path: &Path, expected: &[u8]) -> Result<(), ArchiveError> {
    let (path, expected) = (path.to_owned(), expected.to_owned());
    blocking(move || {
        let (_, found) = checksum(&path)?;
        if found == expected {
            return Ok(());
        }
        Err(ArchiveError::Changed { path, found: hex::encode(found), expected: hex::encode(expected) })
    })
    .await
}

fn columns(fact_table: &FactTable) -> String {
    fact_table.columns().map(|column| column.name).collect::<Vec<_>>().join(", ")
}

fn copy_out(fact_table: &FactTable, table: &str) -> String {
    format!("COPY (SELECT {} FROM {table} ORDER BY {}) TO STDOUT (FORMAT BINARY)", columns(fact_table), KEY.join(", "))
}

/// Does what takes the processor or the disk for long where no other task waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ArchiveError> + Send + 'static) -> Result<T, ArchiveError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(ArchiveError::Ends),
        },
    }
}

/// Returns what makes of an error one that names the file.
fn of_file(path: &Path) -> impl Fn(io::Error) -> ArchiveError + use<> {
    let path = path.to_owned();
    move |source| ArchiveError::File { path: path.clone(), source }
}

fn of_parquet(path: &Path) -> impl Fn(ParquetError) -> ArchiveError + use<> {
    let path = path.to_owned();
    move |source| ArchiveError::Parquet { path: path.clone(), source }
}

fn checksum(path: &Path) -> Result<(u64, Vec<u8>), ArchiveError> {
    let of_file = of_file(path);
    let mut file = File::open(path).map_err(&of_file)?;
    let (mut digest, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(&of_file)?;
        if read == 0 {
            return Ok((bytes, digest.finalize().to_vec()));
        }
        digest.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// Returns the schema of a fact table's files, in Parquet's own notation.
fn message(fact_table: &FactTable) -> String {
    let field = |(id, column): (i32, &Column)| {
        let kind = match column.column_type {
            ColumnType::Uuid => "fixed_len_byte_array(16) {} (UUID)".to_owned(),
            ColumnType::Text => "binary {} (STRING)".to_owned(),
            ColumnType::Timestamp => "int64 {} (TIMESTAMP(MICROS, true))".to_owned(),
            ColumnType::Boolean => "boolean {}".to_owned(),
            ColumnType::Integer => "int32 {}".to_owned(),
            ColumnType::Bigint => "int64 {}".to_owned(),
            ColumnType::Money => format!("fixed_len_byte_array({MONEY_BYTES}) {{}} (DECIMAL(20, 6))"),
            ColumnType::Json => "binary {} (JSON)".to_owned(),
        };
        let repetition = if column.is_required { "required" } else { "optional" };
        format!("{repetition} {} = {id};", kind.replace("{}", column.name))
    };
    let fields: Vec<String> = fact_table.numbered_columns().map(field).collect();
    format!("message {} {{ {} }}", fact_table.name, fields.join(" "))
}

/// A file that is being written.
struct Writer {
    path: PathBuf,
    partial: PathBuf,
    writer: SerializedFileWriter<File>,
}

impl Writer {
    fn create(path: PathBuf, fact_table: &FactTable) -> Result<Self, ArchiveError> {
        let folder = folder_of(&path);
        // As private as the database that the rows come from.
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(of_file(folder))?;
        let mut beginning = path.clone().into_os_string();
        beginning.push(".");
        remove_partial(folder, &beginning).map_err(of_file(folder))?;
        // A name of its own: what was given up a moment ago may still be writing.
        let mut partial = beginning;
        partial.push(format!("{}.partial", Uuid::new_v4().simple()));
        let partial = PathBuf::from(partial);
        let of_parquet = of_parquet(&partial);
        let schema = parse_message_type(&message(fact_table)).map_err(&of_parquet)?;
        let zstd = ZstdLevel::try_new(3).map_err(&of_parquet)?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(zstd)).build();
        let file = File::options().write(true).create_new(true).mode(0o600).open(&partial).map_err(of_file(&partial))?;
        let writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(properties)).map_err(&of_parquet)?;
        Ok(Writer { path, partial, writer })
    }

    fn write(mut self, group: &Group) -> Result<Self, ArchiveError> {
        let written = write_group(&mut self.writer, group);
        written.map_err(of_parquet(&self.partial))?;
        Ok(self)
    }

    /// Returns the file's name, which it has now, all of it being on the disk.
    fn finish(self) -> Result<PathBuf, ArchiveError> {
        let file = self.writer.into_inner().map_err(of_parquet(&self.partial))?;
        file.sync_all().map_err(of_file(&self.partial))?;
        fs::rename(&self.partial, &self.path).map_err(of_file(&self.path))?;
        // The folder may be new in its own.
        for folder in [folder_of(&self.path), folder_of(folder_of(&self.path))] {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(of_file(folder))?;
        }
        Ok(self.path)
    }
}

/// Removes what interrupted writers left of the files whose paths begin like this.
fn remove_partial(folder: &Path, beginning: &OsStr) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_partial = path.extension().is_some_and(|extension| extension == "partial");
        if is_partial && path.as_os_str().as_bytes().starts_with(beginning.as_bytes()) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn write_group(writer: &mut SerializedFileWriter<File>, group: &Group) -> Result<(), ParquetError> {
    let mut row_group = writer.next_row_group()?;
    for ColumnOf { column, present, values } in &group.columns {
        let mut next = row_group.next_column()?.ok_or_else(|| ParquetError::EOF(format!("no column {}", column.name)))?;
        let levels = (!column.is_required).then_some(present.as_slice());
        match values {
            Values::Fixed(values) => next.typed::<FixedLenByteArrayType>().write_batch(values, levels, None)?,
            Values::Bytes(values) => next.typed::<ByteArrayType>().write_batch(values, levels, None)?,
            Values::Long(values) => next.typed::<Int64Type>().write_batch(values, levels, None)?,
            Values::Int(values) => next.typed::<Int32Type>().write_batch(values, levels, None)?,
            Values::Bool(values) => next.typed::<BoolType>().write_batch(values, levels, None)?,
        };
        next.close()?;
    }
    row_group.close()?;
    Ok(())
}

/// The rows of a file as binary COPY has them, so many at once.
struct FileRows {
    file: Arc<Opened>,
    groups_read: usize,
}

struct Opened {
    path: PathBuf,
    fact_table: &'static FactTable,
    reader: SerializedFileReader<File>,
    /// The place in the file of each column of the table; none where the file is of before the column.
    places: Vec<Option<usize>>,
}

impl FileRows {
    async fn open(path: &Path, fact_table: &'static FactTable) -> Result<Self, ArchiveError> {
        let path = path.to_owned();
        let file = blocking(move || Opened::open(path, fact_table)).await?;
        Ok(FileRows { file: Arc::new(file), groups_read: 0 })
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        let (file, index) = (Arc::clone(&self.file), self.groups_read);
        if index == file.reader.num_row_groups() {
            return Ok(None);
        }
        self.groups_read += 1;
        let of_group = move || file.group(index).map_err(of_parquet(&file.path));
        blocking(move || {
            let group = of_group()?;
            let (mut rows, mut out) = (group.to_copy(), Vec::new());
            while rows.write_next(&mut out) {}
            Ok(Some(out))
        })
        .await
    }
}

impl Opened {
    fn open(path: PathBuf, fact_table: &'static FactTable) -> Result<Self, ArchiveError> {
        let file = File::open(&path).map_err(of_file(&path))?;
        let reader = SerializedFileReader::new(file).map_err(of_parquet(&path))?;
        let wrong = |found: String| ArchiveError::Columns { path: path.clone(), found, table: fact_table.name };
        let expected = parse_message_type(&message(fact_table)).map_err(of_parquet(&path))?;
        let mut found: Vec<Option<(usize, _)>> =
            reader.metadata().file_metadata().schema_descr().columns().iter().cloned().enumerate().map(Some).collect();
        let mut places = Vec::new();
        for field in expected.get_fields() {
            let name = field.name();
            let Some((place, column)) = found
                .iter_mut()
                .find(|of_file| of_file.as_ref().is_some_and(|(_, column)| column.name() == name))
                .and_then(Option::take)
            else {
                if !field.is_optional() {
                    return Err(wrong(format!("there is no column {name}")));
                }
                places.push(None);
                continue;
            };
            if column.self_type() != field.as_ref() {
                return Err(wrong(format!("column {name} is {:?}", column.self_type())));
            }
            places.push(Some(place));
        }
        if let Some((_, column)) = found.into_iter().flatten().next() {
            return Err(wrong(format!("column {} is not known", column.name())));
        }
        Ok(Opened { path, fact_table, reader, places })
    }

    fn group(&self, index: usize) -> Result<Group, ParquetError> {
        let row_group = self.reader.get_row_group(index)?;
        let rows = usize::try_from(row_group.metadata().num_rows()).unwrap_or(0);
        let mut group = Group { rows, ..Group::new(self.fact_table) };
        for (column, place) in group.columns.iter_mut().zip(&self.places) {
            let Some(place) = place else { continue };
            let present = &mut column.present;
            let levels = (!column.column.is_required).then_some(&mut *present);
            match (row_group.get_column_reader(*place)?, &mut column.values) {
                (ColumnReader::FixedLenByteArrayColumnReader(mut reader), Values::Fixed(values)) => {
                    reader.read_records(rows, levels, None, values)?
                }
                (ColumnReader::ByteArrayColumnReader(mut reader), Values::Bytes(values)) => {
                    reader.read_records(rows, levels, None, values)?
                }
                (ColumnReader::Int64ColumnReader(mut reader), Values::Long(values)) => {
                    reader.read_records(rows, levels, None, values)?
                }
                (ColumnReader::Int32ColumnReader(mut reader), Values::Int(values)) => {
                    reader.read_records(rows, levels, None, values)?
                }
                (ColumnReader::BoolColumnReader(mut reader), Values::Bool(values)) => {
                    reader.read_records(rows, levels, None, values)?
                }
                _ => return Err(ParquetError::General(format!("column {} has another type", column.column.name))),
            };
            if column.column.is_required {
                column.present = vec![1; rows];
            }
            let values = column.present.iter().filter(|level| **level == 1).count();
            if column.present.len() != rows || values != column.values.len() {
                return Err(ParquetError::EOF(format!("column {} ends early", column.column.name)));
            }
        }
        Ok(group)
    }
}
