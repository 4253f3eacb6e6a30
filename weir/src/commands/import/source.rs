//! Reads a file row by row: JSON, CSV, or Parquet. What a row says is given on as it stands.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};

use super::refused::{Form, Refused};

mod array;
mod columns;
mod lines;
mod table;
mod text;

pub(super) use lines::object;
pub(super) use text::Encoding;

/// One value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// JSON as it was written.
    Json(String),
    /// A text without a type, of a CSV file.
    Text(String),
}

/// One row of a file.
#[derive(Debug)]
pub(super) struct Row {
    /// Counted from 1: the line of a file of lines, the element of an array, else the record after the header.
    pub(super) number: u64,
    /// Names and values in the file's order, or why it cannot be read.
    pub(super) cells: Result<Vec<(String, Cell)>, Fault>,
    /// The row as it was written, in UTF-8 where that is possible; one of Parquet is JSON.
    pub(super) raw: Vec<u8>,
}

/// A file that is read.
pub(super) struct Reading {
    pub(super) rows: Rows,
    /// How refused rows are written.
    pub(super) form: Refused,
    /// The names of its columns, where all rows have the same.
    pub(super) columns: Option<Vec<String>>,
}

/// Why a row was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Stable, for programs.
    pub(super) code: String,
    /// For people.
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Fault { code: code.to_owned(), message: message.into() }
    }
}

/// The rows of a file, each once, in order. An error ends them: the file itself cannot be read on.
pub(super) type Rows = Box<dyn Iterator<Item = anyhow::Result<Row>> + Send>;

/// What a file is, by its name and its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON objects: one in each line, or in an array.
    Lines,
    /// A header, then records.
    Csv,
    /// Columns.
    Parquet,
}

/// A file that is going to be imported.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) format: Format,
    pub(super) bytes: u64,
    /// Of all its bytes.
    pub(super) sha256: [u8; 32],
    is_gzip: bool,
    /// Its name says that tabs stand between fields.
    has_tabs: bool,
    /// Its name says JSON, and not lines of it.
    is_json: bool,
    /// Held until the end, so that no second import of the file runs beside this one.
    file: File,
    modified: Option<std::time::SystemTime>,
    /// Bytes of the file that were read so far.
    read: Arc<AtomicU64>,
}

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;

impl Source {
    /// Opens a file, finds out what it is, and reads it once for its checksum. Blocks.
    /// # Errors
    /// If it cannot be read, is imported already, or is nothing that can be imported.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display();
        let file = File::open(path).with_context(|| name.to_string())?;
        let metadata = file.metadata().with_context(|| name.to_string())?;
        if !metadata.is_file() {
            bail!("{name}: not a regular file; a file is accepted, since an import that was interrupted reads it again");
        }
        let held = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        // File systems without locks are no reason not to import.
        if held == Err(rustix::io::Errno::WOULDBLOCK) {
            bail!("{name}: another import of this file runs");
        }
        let mut begin = Vec::new();
        (&file).take(16).read_to_end(&mut begin).with_context(|| name.to_string())?;
        let is_gzip = begin.starts_with(&[0x1f, 0x8b]);
        if let Some(found) = text::known(&begin) {
            bail!("{name}: {found}");
        }
        let format = format(path, &begin)?;
        if is_gzip && format == Format::Parquet {
            bail!("{name}: a Parquet file in gzip cannot be read; decompress it first");
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        (&file).rewind().with_context(|| name.to_string())?;
        loop {
            let filled = (&file).read(&mut buffer).with_context(|| name.to_string())?;
            if filled == 0 {
                break;
            }
            hash.update(&buffer[..filled]);
        }
        let read = Arc::default();
        let (has_tabs, is_json) = (plain_name(path).ends_with(".tsv"), plain_name(path).ends_with(".json"));
        let (bytes, modified) = (metadata.len(), metadata.modified().ok());
        Ok(Source {
            path: path.to_owned(),
            format,
            bytes,
            sha256: hash.finalize().into(),
            is_gzip,
            has_tabs,
            is_json,
            file,
            modified,
            read,
        })
    }

    /// Begins to read the rows; the begin of the file is read at once. Blocks.
    /// # Errors
    /// If it cannot be read, or is something else than its name says; the error says what it seems to be.
    pub(super) fn read(&self) -> anyhow::Result<Reading> {
        self.begin().with_context(|| self.path.display().to_string())
    }

    fn begin(&self) -> anyhow::Result<Reading> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        if self.format == Format::Parquet {
            return columns::open(file, Arc::clone(&self.read));
        }
        let counted = BufReader::with_capacity(BUFFER_BYTES, Counted { file, read: Arc::clone(&self.read) });
        let bytes: Box<dyn Read + Send> =
            if self.is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(counted)) } else { Box::new(counted) };
        let text = text::open(bytes)?;
        if self.format == Format::Csv {
            return table::open(text, self.has_tabs);
        }
        let form = Form::Lines.in_encoding(text.encoding);
        Ok(Reading { rows: lines::rows(text, self.is_json)?, form, columns: None })
    }

    /// Returns how many of the file's bytes were read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Checks that nobody has changed the file meanwhile: then rows may have been left out, or have the ids of others.
    pub(super) fn check_unchanged(&self) -> anyhow::Result<()> {
        let metadata = self.file.metadata().with_context(|| self.path.display().to_string())?;
        if metadata.len() != self.bytes || metadata.modified().ok() != self.modified {
            bail!("{}: the file was changed while it was imported; import it again when it is complete", self.path.display());
        }
        Ok(())
    }
}

/// Counts what is read.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let filled = self.file.read(buffer)?;
        self.read.fetch_add(filled as u64, Ordering::Relaxed);
        Ok(filled)
    }
}

/// Tells what a file is: its first bytes decide for Parquet, its name for the others.
fn format(path: &Path, begin: &[u8]) -> anyhow::Result<Format> {
    if begin.starts_with(b"PAR1") {
        return Ok(Format::Parquet);
    }
    // Refused rows of Parquet are written as JSON, whatever that file is called.
    if is_refused(path) && (begin.starts_with(b"{\"") || plain_name(path).ends_with(".parquet")) {
        return Ok(Format::Lines);
    }
    match plain_name(path).rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv" | "tsv") => Ok(Format::Csv),
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Lines),
        _ => bail!(
            "{}: its name does not tell what it is; .ndjson, .jsonl, .json (one object in each line, or an array of them), .csv, .tsv \
             and Parquet files are accepted, the first five also in gzip, with .gz at the end, and what is left of them in .weir-rejected",
            path.display()
        ),
    }
}

/// What the name of a file of refused rows ends with.
pub(super) const REFUSED: &str = ".weir-rejected";

fn is_refused(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().to_ascii_lowercase().ends_with(REFUSED)
}

/// Returns a file's name in small letters, without `.gz`; of refused rows the name of the file that they are of.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let mut name = name.as_str();
    while let Some(rest) = name.strip_suffix(REFUSED) {
        name = rest;
    }
    name.strip_suffix(".gz").unwrap_or(name).to_owned()
}

/// Takes a JSON object apart; nothing if it is none.
pub(super) fn cells(json: &str) -> Option<Vec<(String, Cell)>> {
    lines::cells(json.as_bytes()).ok()
}

/// Returns a format's name for people.
pub(super) fn name_of(format: Format) -> &'static str {
    match format {
        Format::Lines => "NDJSON",
        Format::Csv => "CSV",
        Format::Parquet => "Parquet",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    /// Writes a file and reads its rows: `number field=value ..` or `number code`.
    fn check(name: &str, bytes: &[u8], expected: &[&str]) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        let source = Source::open(&path).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        assert_eq!(read(&source), expected, "{name}");
        assert_eq!(source.bytes_read(), bytes.len() as u64, "{name}: all of it was read");
        // Twice, as after an interruption.
        assert_eq!(read(&source), expected, "{name}");
        source.check_unchanged().expect("nobody changed it");
    }

    pub(super) fn read(source: &Source) -> Vec<String> {
        let show = |row: anyhow::Result<Row>| {
            let row = row.expect("the file can be read");
            let cells = match row.cells {
                Ok(cells) => cells
                    .iter()
                    .map(|(name, cell)| match cell {
                        Cell::Json(json) => format!(" {name}:{json}"),
                        Cell::Text(text) => format!(" {name}={text}"),
                    })
                    .collect(),
                Err(fault) => format!(" {}: {}", fault.code, fault.message),
            };
            format!("{}{cells}", row.number)
        };
        source.read().expect("it can be read").rows.map(show).collect()
    }

    /// A file of this name and contents, open, and the folder it lies in.
    pub(in crate::commands::import) fn source(name: &str, bytes: &[u8]) -> (Source, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        (Source::open(&path).expect("opens"), folder)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("written");
        encoder.finish().expect("written")
    }

    #[test]
    fn lines_are_rows() {
        let text = b"{\"a\":1,\"b\":{\"c\":[1.50]}}\r\n\n  \n{\"a\":null}\n[1]\n{\"a\":\n{\"a\":\"\xff\"}\n{\"last\":18446744073709551616}";
        let expected = [
            "1 a:1 b:{\"c\":[1.50]}",
            "4 a:null",
            "5 invalid_json: expected a JSON object; found: invalid type: sequence, expected an object",
            "6 invalid_json: expected a JSON object; found: EOF while parsing a value",
            "7 bad_utf8: the line is not UTF-8 at byte 6",
            "8 last:18446744073709551616",
        ];
        check("events.ndjson", text, &expected);
        check("events.JSONL", text, &expected);
        check("events.json.gz", &gzip(text), &expected);
        check("empty.ndjson", b"", &[]);
        check("mark.ndjson", b"\xef\xbb\xbf{\"a\":1}\n", &["1 a:1"]);
        check(
            "array.json",
            b"\xef\xbb\xbf [\n {\"a\":1,\n\"b\":2}\n, 7]\n",
            &["1 a:1 b:2", "2 invalid_json: expected a JSON object; found: invalid type: integer `7`, expected an object"],
        );
        check("array.json.gz", &gzip(b"[{\"a\":1}]"), &["1 a:1"]);
        check("array.ndjson", b"[{\"a\":1},\n{\"a\":2}]", &["1 a:1", "2 a:2"]);
        check("pretty.ndjson", b"{\n\"a\":1\n}\n{\n\"a\":2}", &["1 a:1", "2 a:2"]);
        check("x.parquet.weir-rejected", b"{\"a\":1,\"weir_rejected\":\"why\"}\n", &["1 a:1"]);
        check("x.csv.weir-rejected", b"{\"a\":1,\"weir_rejected\":\"why\"}\n", &["1 a:1"]);
        let lines = b"{\"weir_rejected\":\"why\",\"line\":\"{\\\"a\\\":1}\"}\n{\"line\":1,\"weir_rejected\":2}\n{\"line\":2}\n";
        check("x.ndjson.weir-rejected", lines, &["1 a:1", "2 line:1", "3 line:2"]);
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let mut text = b"{\"a\":\"".to_vec();
        text.resize(3 * 1024 * 1024, b'x');
        text.extend_from_slice(b"\n{\"a\":1}\n");
        check("long.ndjson", &text, &["1 too_large: the line has more than 1048576 bytes; its first 1000 are kept", "2 a:1"]);
    }

    #[test]
    fn records_are_rows() {
        let text = b"id,user id,note\n1,alice,\"a \"\"b\"\",\nc\"\n2,,\\N\n3,bob\n\n4,\xff,x\n5,eve,x,y\n";
        let expected = [
            "1 id=1 user id=alice note=a \"b\",\nc",
            "2 id=2",
            "3 wrong_field_count: found 2 fields; the header has 3",
            "4 bad_utf8: field 2 (user id) is not UTF-8",
            "5 wrong_field_count: found 4 fields; the header has 3",
        ];
        check("events.csv", text, &expected);
        check("events.csv.gz", &gzip(text), &expected);
        check("marks.csv", b"\xef\xbb\xbfid;a,b;c\n1;x;2\n", &["1 id=1 a,b=x c=2"]);
        check("tabs.tsv", b"id\ta,b\n1\tx\n", &["1 id=1 a,b=x"]);
        check("headeronly.csv", b"id,a\n", &[]);
        check("excel.csv", b"\xef\xbb\xbfsep=;\r\nid;\"a,b,c\"\r\n1;\"19,90\"\r\n", &["1 id=1 a,b,c=19,90"]);
        check("quoted.csv", b"\"a,b\"\t\"c,d\"\n1\t2\n", &["1 a,b=1 c,d=2"]);
        check("case.csv", b"Timestamp, user_id , Plan\n1,2,3\n", &["1 timestamp=1 user_id=2 Plan=3"]);
        check("refused.CSV.gz.weir-rejected.weir-rejected", b"id;Weir_Rejected\n1;row 1: why\n", &["1 id=1"]);
        check("refused.csv.weir-rejected", b"id,weir_rejected\n1,row 1: why\n", &["1 id=1"]);
    }

    #[test]
    fn a_quote_that_is_not_closed_takes_no_memory() {
        let mut text = b"id,a\n1,x\n2,\"open\n".to_vec();
        text.resize(20 * 1024 * 1024, b'x');
        let (source, _folder) = source("open.csv", &text);
        let mut rows = source.read().expect("begins").rows;
        assert_eq!(rows.next().expect("a row").expect("can be read").number, 1);
        let error = format!("{:#}", rows.next().expect("a row").expect_err("too long"));
        assert!(error.contains("begins in line 3") && error.contains("more than 16777216 bytes; is a quote opened"), "{error}");
    }

    #[test]
    fn what_is_no_table_is_told() {
        let check = |name: &str, bytes: &[u8], expected: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let found = Source::open(&path).and_then(|source| source.read().map(drop)).expect_err("refused");
            let found = format!("{found:#}");
            assert!(found.contains(name) && found.contains(expected), "{found}");
        };
        check("events.txt", b"hello", "its name does not tell what it is");
        check("twice.csv", b"id,a,id\n", "the header names \"id\" twice");
        check("nothing.csv", b"", "the file is empty; a header with the names of the columns is expected");
        check("broken.parquet", b"PAR1....", "Parquet");
        check("same.csv", b"Timestamp,x, timestamp\n", "\"Timestamp\" and \" timestamp\", which are one name");
        check("book.csv", b"PK\x03\x04....", "Excel");
        check("json.csv", b"{\"a\":1}\n", "seems to be JSON");
        check("table.ndjson", b"a,b\n1,2\n", "it begins with \"a,b\"; it seems to be CSV");
        check("wide.csv", b"i\0d\0,\0a\0\n\0", "UTF-16LE without a byte-order mark");
    }

    #[test]
    fn utf16_and_older_encodings() {
        let utf16 = |text: &str, is_little: bool| -> Vec<u8> {
            let units = std::iter::once(0xfeff).chain(text.encode_utf16());
            units.flat_map(|unit: u16| if is_little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
        };
        for is_little in [true, false] {
            check("wide.csv", &utf16("id\tname\r\n1\tZoë, 😀\r\n", is_little), &["1 id=1 name=Zoë, 😀"]);
            check("wide.ndjson.gz", &gzip(&utf16("{\"a\":\"ä\"}\n", is_little)), &["1 a:\"ä\""]);
            check("wide.json", &utf16("[{\"a\":1}]", is_little), &["1 a:1"]);
        }
        let older = |name: &str, bytes: &[u8], expected: &str| {
            let (source, _folder) = source(name, bytes);
            let error = source.read().expect("begins").rows.find_map(Result::err).expect("refused").to_string();
            assert!(error.contains(expected) && error.contains("iconv -f WINDOWS-1252 -t UTF-8"), "{error}");
        };
        older("old.csv", b"id,name\n1,x\n2,M\xfcller\n", "byte 15 (0xfc, in line 3)");
        older("old.ndjson", b"{}\n{\"a\":\"\xe9\"}\n", "byte 9 (0xe9, in line 2)");
        older("old.json", b"[{},\n{\"a\":\"\xe9\"}]", "byte 11 (0xe9, in line 2)");
    }

    #[test]
    fn a_file_is_imported_once_at_a_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.ndjson");
        std::fs::write(&path, "{}\n").expect("written");
        let first = Source::open(&path).expect("opens");
        let second = Source::open(&path).err().expect("refused").to_string();
        assert!(second.ends_with("another import of this file runs"), "{second}");
        std::fs::write(&path, "{}\n{}\n").expect("written");
        assert!(first.check_unchanged().is_err());
        drop(first);
        Source::open(&path).expect("it is free again");
    }
}
