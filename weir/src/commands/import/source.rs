//! Reads a file row by row: lines of JSON, CSV, or Parquet. What a row says is given on as it stands.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};

mod columns;
mod lines;
mod table;

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
    /// Counted from 1: the line of a file of lines, else the record after the header.
    pub(super) number: u64,
    /// Names and values in the file's order, or why it cannot be read.
    pub(super) cells: Result<Vec<(String, Cell)>, Fault>,
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
    /// One JSON object in each line.
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
        (&file).take(4).read_to_end(&mut begin).with_context(|| name.to_string())?;
        let is_gzip = begin.starts_with(&[0x1f, 0x8b]);
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
        let has_tabs = plain_name(path).ends_with(".tsv");
        let (bytes, modified) = (metadata.len(), metadata.modified().ok());
        Ok(Source {
            path: path.to_owned(),
            format,
            bytes,
            sha256: hash.finalize().into(),
            is_gzip,
            has_tabs,
            file,
            modified,
            read,
        })
    }

    /// Begins to read the rows.
    pub(super) fn rows(&self) -> anyhow::Result<Rows> {
        let name = || self.path.display().to_string();
        let mut file = self.file.try_clone().with_context(name)?;
        file.rewind().with_context(name)?;
        if self.format == Format::Parquet {
            return columns::rows(file, Arc::clone(&self.read)).with_context(name);
        }
        let counted = Counted { file, read: Arc::clone(&self.read) };
        let bytes: Box<dyn BufRead + Send> = if self.is_gzip {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, flate2::read::MultiGzDecoder::new(counted)))
        } else {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, counted))
        };
        match self.format {
            Format::Csv => table::rows(bytes, self.has_tabs).with_context(name),
            Format::Lines | Format::Parquet => Ok(lines::rows(bytes)),
        }
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
    if begin == b"PAR1" {
        return Ok(Format::Parquet);
    }
    match plain_name(path).rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv" | "tsv") => Ok(Format::Csv),
        Some("ndjson" | "jsonl" | "json") => Ok(Format::Lines),
        _ => bail!(
            "{}: its name does not tell what it is; .ndjson, .jsonl, .json (one object in each line), .csv, .tsv and Parquet files \
             are accepted, the first five also in gzip, with .gz at the end",
            path.display()
        ),
    }
}

/// Returns a file's name in small letters, without `.gz`.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    name.strip_suffix(".gz").unwrap_or(&name).to_owned()
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
        source.rows().expect("it can be read").map(show).collect()
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
            "5 invalid_json: expected a JSON object in the line; found: invalid type: sequence, expected an object",
            "6 invalid_json: expected a JSON object in the line; found: EOF while parsing a value",
            "7 bad_utf8: the line is not UTF-8 at byte 6",
            "8 last:18446744073709551616",
        ];
        check("events.ndjson", text, &expected);
        check("events.JSONL", text, &expected);
        check("events.json.gz", &gzip(text), &expected);
        check("empty.ndjson", b"", &[]);
        check("mark.ndjson", b"\xef\xbb\xbf{\"a\":1}\n", &["1 a:1"]);
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let mut text = b"{\"a\":\"".to_vec();
        text.resize(3 * 1024 * 1024, b'x');
        text.extend_from_slice(b"\n{\"a\":1}\n");
        check("long.ndjson", &text, &["1 too_large: the line has more than 1048576 bytes", "2 a:1"]);
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
    }

    #[test]
    fn what_is_no_table_is_told() {
        let check = |name: &str, bytes: &[u8], expected: &str| {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let found = Source::open(&path).and_then(|source| source.rows().map(drop)).expect_err("refused");
            let found = format!("{found:#}");
            assert!(found.contains(name) && found.contains(expected), "{found}");
        };
        check("events.txt", b"hello", "its name does not tell what it is");
        check("twice.csv", b"id,a,id\n", "the header names \"id\" twice");
        check("nothing.csv", b"", "the file is empty; a header with the names of the columns is expected");
        check("broken.parquet", b"PAR1....", "Parquet");
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
