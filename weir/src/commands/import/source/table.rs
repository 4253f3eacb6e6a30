//! CSV: a header with the columns' names, then records.

use std::collections::HashSet;
use std::io::BufRead;

use anyhow::{Context, bail};

use super::{Cell, Fault, Row, Rows};

/// What stands between fields, the likeliest first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// How Postgres and MySQL write that there is no value; so does an empty field.
const NOTHING: &[u8] = b"\\N";

/// Reads records. The delimiter is a tab if the file's name says so, else what stands in the header most often.
pub(super) fn rows(mut bytes: Box<dyn BufRead + Send>, has_tabs: bool) -> anyhow::Result<Rows> {
    let begin = bytes.fill_buf()?;
    let header = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let times = |delimiter: &u8| header.iter().filter(|byte| *byte == delimiter).count();
    // The last of equals, so from the back.
    let likeliest = DELIMITERS.into_iter().rev().max_by_key(times).unwrap_or(b',');
    let delimiter = if has_tabs { b'\t' } else { likeliest };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(bytes);
    let header = reader.byte_headers().context("the header")?.clone();
    if header.is_empty() {
        bail!("the file is empty; a header with the names of the columns is expected");
    }
    let name = |field: &[u8]| String::from_utf8(field.to_vec()).context("the header is not UTF-8");
    let names: Vec<String> = header.iter().map(name).collect::<anyhow::Result<_>>()?;
    let mut seen = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
        bail!("the header names {twice:?} twice; rename one of the columns");
    }
    Ok(Box::new(Records { reader, names, number: 0, record: csv::ByteRecord::new() }))
}

struct Records {
    reader: csv::Reader<Box<dyn BufRead + Send>>,
    names: Vec<String>,
    number: u64,
    record: csv::ByteRecord,
}

impl Iterator for Records {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => return None,
            Ok(true) => {}
            Err(error) => return Some(Err(error.into())),
        }
        self.number += 1;
        Some(Ok(Row { number: self.number, cells: self.cells() }))
    }
}

impl Records {
    /// Returns the fields that are not empty.
    fn cells(&self) -> Result<Vec<(String, Cell)>, Fault> {
        if self.record.len() != self.names.len() {
            let (found, expected) = (self.record.len(), self.names.len());
            return Err(Fault::new("wrong_field_count", format!("found {found} fields; the header has {expected}")));
        }
        let mut cells = Vec::with_capacity(self.names.len());
        for (place, (name, field)) in self.names.iter().zip(&self.record).enumerate() {
            if field.is_empty() || field == NOTHING {
                continue;
            }
            let text = std::str::from_utf8(field)
                .map_err(|_| Fault::new("bad_utf8", format!("field {} ({name}) is not UTF-8", place + 1)))?;
            cells.push((name.clone(), Cell::Text(text.to_owned())));
        }
        Ok(cells)
    }
}
