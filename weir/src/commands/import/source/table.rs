//! CSV: a header with the columns' names, then records.

use std::io::{BufRead, Read};

use anyhow::{Context, bail};

use super::text::{Older, Text};
use super::{Cell, Fault, Form, Reading, Row};
use crate::commands::import::names::{self, REASON};
use crate::commands::import::refused::Csv;

/// What stands between fields, the likeliest first.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];
/// How Postgres and MySQL write that there is no value; so does an empty field.
const NOTHING: &[u8] = b"\\N";
/// Bytes of a record. More is a quote that nobody closes, and would be read into memory up to the file's end.
const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that are read by the parser at once.
const PARSED_BYTES: usize = 64 * 1024;

/// Reads records. The delimiter is what a first line `sep=` says, else a tab if the file's name says so, else what stands in
/// the header most often.
/// # Errors
/// If there is no header, or it names no columns that can be told apart.
pub(super) fn open(mut text: Text, has_tabs: bool) -> anyhow::Result<Reading> {
    let (encoding, older) = (text.encoding, text.older());
    if text.head.starts_with(b"{\"") || text.head.trim_ascii_start().starts_with(b"[") {
        bail!("the file seems to be JSON and not CSV; give it a name that ends with .ndjson, .jsonl or .json");
    }
    let said = separator(&text.head);
    let said_bytes = said.map_or(0, |(_, bytes)| bytes);
    let mut prefix = vec![0; said_bytes];
    text.bytes.read_exact(&mut prefix)?;
    let rest = text.head.get(said_bytes..).unwrap_or_default();
    let delimiter = match said {
        Some((delimiter, _)) => delimiter,
        None if has_tabs => b'\t',
        None => likeliest(rest),
    };
    let line = 1 + u64::from(said.is_some());
    let place = (encoding.mark().len() + said_bytes) as u64;
    let mut builder = csv::ReaderBuilder::new();
    builder.delimiter(delimiter).flexible(true).has_headers(false).buffer_capacity(PARSED_BYTES);
    let reader = builder.from_reader(Kept { bytes: text.bytes, kept: Vec::new(), from: 0 });
    let mut records =
        Records { reader, names: Vec::new(), number: 0, record: csv::ByteRecord::new(), raw: Vec::new(), older, line, place };
    if !records.read().context("the header")? {
        bail!("the file is empty; a header with the names of the columns is expected");
    }
    let name = |field: &[u8]| String::from_utf8(field.to_vec()).context("the header is not UTF-8");
    let written: Vec<String> = records.record.iter().map(name).collect::<anyhow::Result<_>>()?;
    records.names = names::of_columns(&written)?;
    let newline: &[u8] =
        if rest.split(|byte| *byte == b'\n').next().is_some_and(|line| line.ends_with(b"\r")) { b"\r\n" } else { b"\n" };
    let form = Form::Csv(Csv::new(prefix, &records.raw, delimiter, newline, &records.names)).in_encoding(encoding);
    let columns = records.names.iter().filter(|name| *name != REASON).cloned().collect();
    Ok(Reading { rows: Box::new(records), form, columns: Some(columns) })
}

/// Returns the delimiter that Excel's first line says, such as `sep=;`, and the bytes of that line.
fn separator(head: &[u8]) -> Option<(u8, usize)> {
    let end = head.iter().position(|byte| *byte == b'\n')?;
    let line = head.get(..end)?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    let (name, [delimiter]) = line.split_at_checked(4)? else { return None };
    (name.eq_ignore_ascii_case(b"sep=") && *delimiter != b'"').then_some((*delimiter, end + 1))
}

/// Returns the delimiter that stands in the header most often, quoted names left out; of several those first that the next
/// record has as often.
fn likeliest(head: &[u8]) -> u8 {
    let mut records = Vec::new();
    let mut rest = head;
    while records.len() < 2 && !rest.is_empty() {
        let (counts, after) = delimiters_of_record(rest);
        records.push(counts);
        rest = after.trim_ascii_start();
    }
    let of_record = |record: usize, place: usize| records.get(record).and_then(|counts| counts.get(place)).copied();
    let rank = |(place, _): &(usize, u8)| {
        let in_header = of_record(0, *place).unwrap_or(0);
        let agrees = in_header > 0 && of_record(1, *place).is_none_or(|in_next| in_next == in_header);
        (agrees, in_header)
    };
    // The last of equals, so from the back.
    DELIMITERS.into_iter().enumerate().rev().max_by_key(rank).map_or(b',', |(_, delimiter)| delimiter)
}

/// Counts each delimiter outside of quotes in the first record; returns what follows it, too.
fn delimiters_of_record(text: &[u8]) -> ([usize; DELIMITERS.len()], &[u8]) {
    let mut counts = [0; DELIMITERS.len()];
    let mut is_quoted = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\n' if !is_quoted => return (counts, text.get(at + 1..).unwrap_or_default()),
            _ if is_quoted => {}
            _ => {
                if let Some(count) = DELIMITERS.iter().position(|known| known == byte).and_then(|place| counts.get_mut(place)) {
                    *count += 1;
                }
            }
        }
    }
    (counts, &[])
}

/// Keeps what the parser has read, so that a record can be given on as it was written.
struct Kept {
    bytes: Box<dyn BufRead + Send>,
    kept: Vec<u8>,
    /// Where in the text `kept` begins.
    from: u64,
}

impl Read for Kept {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.kept.len() > RECORD_BYTES_MAX + 2 * PARSED_BYTES {
            let reason = format!("a record has more than {RECORD_BYTES_MAX} bytes; is a quote opened there, and not closed?");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
        }
        let filled = self.bytes.read(out)?;
        self.kept.extend_from_slice(out.get(..filled).unwrap_or_default());
        Ok(filled)
    }
}

impl Kept {
    /// Copies the bytes of a place of the text, and forgets those before it.
    fn copy(&mut self, from: u64, to: u64, out: &mut Vec<u8>) {
        let place = |at: u64| usize::try_from(at.saturating_sub(self.from)).unwrap_or(usize::MAX);
        let (begin, end) = (place(from), place(to));
        out.clear();
        out.extend_from_slice(self.kept.get(begin..end).unwrap_or_default());
        // Now and then only, since what is kept moves to the front.
        if end >= PARSED_BYTES {
            self.kept.drain(..end.min(self.kept.len()));
            self.from = to;
        }
    }
}

struct Records {
    reader: csv::Reader<Kept>,
    names: Vec<String>,
    number: u64,
    record: csv::ByteRecord,
    /// The record as it was written, without the end of its line.
    raw: Vec<u8>,
    older: Option<Older>,
    /// Where the parser's text begins in the file: its line, counted from 1, and its byte, from 0.
    line: u64,
    place: u64,
}

impl Iterator for Records {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read() {
            Ok(false) => return None,
            Ok(true) => {}
            Err(error) => return Some(Err(error)),
        }
        self.number += 1;
        Some(Ok(Row { number: self.number, cells: self.cells(), raw: self.raw.clone() }))
    }
}

impl Records {
    /// Reads the next record; none at the end.
    fn read(&mut self) -> anyhow::Result<bool> {
        let begin = self.reader.position().clone();
        let line = self.line + begin.line() - 1;
        let is_there = self.reader.read_byte_record(&mut self.record);
        if !is_there.with_context(|| format!("the record that begins in line {line}"))? {
            return Ok(false);
        }
        let end = self.reader.position().byte();
        self.reader.get_mut().copy(begin.byte(), end, &mut self.raw);
        if let Some(older) = &mut self.older {
            older.look(&self.raw, self.place + begin.byte(), line)?;
        }
        // The end of the line before may be the parser's to pass over, and so are blank lines.
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let before = self.raw.iter().take_while(|byte| is_end(byte)).count();
        self.raw.drain(..before);
        let after = self.raw.iter().rev().take_while(|byte| is_end(byte)).count();
        self.raw.truncate(self.raw.len() - after);
        Ok(true)
    }

    /// Returns the fields that are not empty.
    fn cells(&self) -> Result<Vec<(String, Cell)>, Fault> {
        if self.record.len() != self.names.len() {
            let (found, expected) = (self.record.len(), self.names.len());
            return Err(Fault::new("wrong_field_count", format!("found {found} fields; the header has {expected}")));
        }
        let mut cells = Vec::with_capacity(self.names.len());
        for (place, (name, field)) in self.names.iter().zip(&self.record).enumerate() {
            if field.is_empty() || field == NOTHING || name == REASON {
                continue;
            }
            let text = std::str::from_utf8(field)
                .map_err(|_| Fault::new("bad_utf8", format!("field {} ({name}) is not UTF-8", place + 1)))?;
            cells.push((name.clone(), Cell::Text(text.to_owned())));
        }
        Ok(cells)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delimiters_are_found_beside_others_in_quotes() {
        let check = |text: &str, expected: char| assert_eq!(char::from(likeliest(text.as_bytes())), expected, "{text}");
        check("a,b\n1,2\n", ',');
        check("\"last, first, middle\";b\n\"x,y,z\";2\n", ';');
        check("\"a;b;c\"\tb\n", '\t');
        check("a|b|\"c,d,e,f\"\n", '|');
        check("value;n\n19,90;1\n", ';');
        check("net, gross, tax;n\n1;2\n", ';');
        check("alone\n1,2\n", ',');
        check("\"a\nb,c\";\"d\"\n", ';');
    }

    #[test]
    fn the_line_of_excel_says_the_delimiter() {
        let check = |text: &str, expected: Option<(u8, usize)>| assert_eq!(separator(text.as_bytes()), expected, "{text}");
        check("sep=;\r\na;b\n", Some((b';', 7)));
        check("SEP=|\na", Some((b'|', 6)));
        check("\"sep=\t\"\na", Some((b'\t', 8)));
        check("sep=\na", None);
        check("sep,b\n1,2\n", None);
        check("sep=ab\n", None);
    }
}
