//! The text of a file: its encoding, its first bytes, and what it seems to be if it is none that can be read.

use std::io::{BufRead, BufReader, Cursor, Read};

use anyhow::bail;

use super::BUFFER_BYTES;

/// Bytes at the begin of a text by which it is known what it is.
const HEAD_BYTES: usize = 64 * 1024;

/// How a file's characters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands::import) enum Encoding {
    /// UTF-8, without a byte-order mark or with one.
    Utf8 { has_mark: bool },
    /// UTF-16 with a mark, its bytes in the order of the bool: little-endian or not.
    Utf16 { is_little: bool },
}

/// A text that is going to be read, in UTF-8 and without a mark.
pub(super) struct Text {
    pub(super) bytes: Box<dyn BufRead + Send>,
    /// Its first bytes, which stand in `bytes` too.
    pub(super) head: Vec<u8>,
    pub(super) encoding: Encoding,
}

impl Text {
    /// Returns what notices older encodings; none where the encoding is known.
    pub(super) fn older(&self) -> Option<Older> {
        matches!(self.encoding, Encoding::Utf8 { .. }).then(Older::default)
    }
}

/// Reads the begin of a text. `bytes`: those of the file, decompressed.
/// # Errors
/// If it cannot be read, or seems to be something else than a text in UTF-8 or UTF-16.
pub(super) fn open(mut bytes: Box<dyn Read + Send>) -> anyhow::Result<Text> {
    let begin = up_to(&mut bytes, 8)?;
    if begin.starts_with(&[0xff, 0xfe, 0, 0]) || begin.starts_with(&[0, 0, 0xfe, 0xff]) {
        bail!("the file seems to be UTF-32; UTF-8 is accepted, and UTF-16 with a byte-order mark; {}", convert("UTF-32"));
    }
    let (encoding, mark_bytes) = match begin.as_slice() {
        [0xef, 0xbb, 0xbf, ..] => (Encoding::Utf8 { has_mark: true }, 3),
        [0xff, 0xfe, ..] => (Encoding::Utf16 { is_little: true }, 2),
        [0xfe, 0xff, ..] => (Encoding::Utf16 { is_little: false }, 2),
        _ => (Encoding::Utf8 { has_mark: false }, 0),
    };
    let rest = Cursor::new(begin.get(mark_bytes..).unwrap_or_default().to_vec()).chain(bytes);
    let mut rest: Box<dyn Read + Send> = match encoding {
        Encoding::Utf8 { .. } => Box::new(rest),
        Encoding::Utf16 { is_little } => Box::new(Utf16::new(rest, is_little)),
    };
    let head = up_to(&mut rest, HEAD_BYTES)?;
    if let Some(found) = foreign(&head) {
        bail!("{found}");
    }
    let bytes = Box::new(BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head.clone()).chain(rest)));
    Ok(Text { bytes, head, encoding })
}

/// Reads bytes, fewer only at the end.
fn up_to(bytes: &mut dyn Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut found = Vec::new();
    bytes.take(limit as u64).read_to_end(&mut found)?;
    Ok(found)
}

/// Says how a file is converted.
fn convert(from: &str) -> String {
    format!("convert it with `iconv -f {from} -t UTF-8 FILE > NEW`, or save it as UTF-8, and import that")
}

/// Returns what a text seems to be by its first bytes, and what is accepted, if it cannot be imported.
fn foreign(begin: &[u8]) -> Option<String> {
    known(begin).or_else(|| zeros(begin))
}

/// Returns what a file seems to be by its very first bytes, if it is of a known kind that cannot be imported.
pub(super) fn known(begin: &[u8]) -> Option<String> {
    let known: [(&[u8], &str); 12] = [
        (b"PK\x03\x04", "a ZIP archive or a workbook of Excel (.xlsx); unpack it, or save the sheet as \"CSV UTF-8\""),
        (b"\xd0\xcf\x11\xe0", "a workbook of an old Excel (.xls); save the sheet as \"CSV UTF-8\""),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress it, or use gzip"),
        (b"BZh", "compressed by bzip2; decompress it, or use gzip"),
        (b"\xfd7zXZ", "compressed by xz; decompress it, or use gzip"),
        (b"Obj\x01", "Avro; convert it to Parquet or NDJSON"),
        (b"ORC", "ORC; convert it to Parquet"),
        (b"ARROW1", "Arrow; convert it to Parquet"),
        (b"SQLite format 3", "a database of SQLite; export the table as CSV"),
        (b"%PDF", "a PDF; CSV, NDJSON and Parquet are accepted"),
        (b"PGDMP", "a dump of pg_dump; export the table with COPY .. TO .. WITH (FORMAT csv, HEADER)"),
        (b"<", "XML or HTML; CSV, NDJSON and Parquet are accepted"),
    ];
    let found = known.iter().find(|(magic, _)| begin.starts_with(magic));
    found.map(|(_, what)| format!("the file seems to be {what}"))
}

/// Returns what bytes seem to be many of which are zero, which no text in UTF-8 has.
fn zeros(begin: &[u8]) -> Option<String> {
    let zeros = |parity: usize| begin.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    let many = begin.len() / 5;
    match (even > many, odd > many) {
        (false, false) if even + odd <= begin.len() / 10 => None,
        (false, true) => Some(without_mark("UTF-16LE")),
        (true, false) => Some(without_mark("UTF-16BE")),
        _ => Some("the file seems to be no text; CSV, NDJSON and Parquet are accepted".to_owned()),
    }
}

fn without_mark(encoding: &str) -> String {
    format!(
        "the file seems to be {encoding} without a byte-order mark; UTF-8 is accepted, and UTF-16 with a mark; {}",
        convert(encoding)
    )
}

/// Notices texts in an older encoding, where every line with an accent would be a fault of its own.
#[derive(Default)]
pub(super) struct Older {
    has_utf8: bool,
}

impl Older {
    /// Looks at a row's bytes. `place`: of the first one, counted from 0; `line`: the one it begins in, from 1.
    /// # Errors
    /// If they are no UTF-8, and nothing before them was beyond ASCII: one bad row among others in UTF-8 is that row's fault only.
    pub(super) fn look(&mut self, row: &[u8], place: u64, line: u64) -> anyhow::Result<()> {
        if self.has_utf8 || row.is_ascii() {
            return Ok(());
        }
        let error = match std::str::from_utf8(row) {
            Ok(_) => {
                self.has_utf8 = true;
                return Ok(());
            }
            Err(error) => error,
        };
        let at = error.valid_up_to();
        self.has_utf8 = row.get(..at).is_some_and(|before| !before.is_ascii());
        // What Latin-1 and its kin have letters and signs of money at; 0xfe and 0xff are in hardly any text.
        let Some(byte) = row.get(at).copied().filter(|byte| (0x80..=0xfd).contains(byte) && !self.has_utf8) else {
            return Ok(());
        };
        let line = line + row.iter().take(at).filter(|byte| **byte == b'\n').count() as u64;
        bail!(
            "the file is not UTF-8: byte {} (0x{byte:02x}, in line {line}) is none; it seems to be in an older encoding such as Latin-1 \
             (Windows-1252); UTF-8 is accepted, and UTF-16 with a byte-order mark; {}",
            place + at as u64,
            convert("WINDOWS-1252")
        );
    }
}

/// Reads UTF-16 as UTF-8. Half a pair of surrogates becomes three bytes that are no UTF-8, so that its row is refused by name.
struct Utf16<R> {
    inner: R,
    is_little: bool,
    /// Half a unit.
    odd: Option<u8>,
    /// The first half of a pair.
    high: Option<u16>,
    ready: Vec<u8>,
    given: usize,
    has_ended: bool,
}

impl<R: Read> Utf16<R> {
    fn new(inner: R, is_little: bool) -> Self {
        Utf16 { inner, is_little, odd: None, high: None, ready: Vec::new(), given: 0, has_ended: false }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.ready.clear();
        self.given = 0;
        let mut buffer = [0; 8 * 1024];
        let filled = self.inner.read(&mut buffer)?;
        if filled == 0 {
            self.has_ended = true;
            if let Some(high) = self.high.take() {
                push_half(&mut self.ready, high);
            }
            if self.odd.is_some() {
                let reason =
                    "the file ends in the middle of a character of UTF-16: it has an odd number of bytes, and is not whole";
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, reason));
            }
            return Ok(());
        }
        for byte in buffer.iter().take(filled) {
            let Some(first) = self.odd.take() else {
                self.odd = Some(*byte);
                continue;
            };
            let unit = if self.is_little { u16::from_le_bytes([first, *byte]) } else { u16::from_be_bytes([first, *byte]) };
            self.push(unit);
        }
        Ok(())
    }

    fn push(&mut self, unit: u16) {
        if let Some(high) = self.high.take() {
            if let Some(Ok(letter)) = char::decode_utf16([high, unit]).next()
                && letter.len_utf16() == 2
            {
                return push_char(&mut self.ready, letter);
            }
            push_half(&mut self.ready, high);
        }
        match char::from_u32(u32::from(unit)) {
            Some(letter) => push_char(&mut self.ready, letter),
            None if (0xd800..0xdc00).contains(&unit) => self.high = Some(unit),
            None => push_half(&mut self.ready, unit),
        }
    }
}

fn push_char(out: &mut Vec<u8>, letter: char) {
    out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Writes half a pair as UTF-8 would if it could.
fn push_half(out: &mut Vec<u8>, unit: u16) {
    let low_bits = |shift: u16| (unit >> shift & 0x3f) as u8 | 0x80; // six bits
    out.extend_from_slice(&[0xe0 | (unit >> 12) as u8, low_bits(6), low_bits(0)]);
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        while self.given == self.ready.len() && !self.has_ended {
            self.fill()?;
        }
        let filled = self.ready.get(self.given..).unwrap_or_default().read(out)?;
        self.given += filled;
        Ok(filled)
    }
}

impl Encoding {
    /// Returns the mark at the begin of such a text.
    pub(in crate::commands::import) fn mark(self) -> &'static [u8] {
        match self {
            Encoding::Utf8 { has_mark: false } => b"",
            Encoding::Utf8 { has_mark: true } => b"\xef\xbb\xbf",
            Encoding::Utf16 { is_little: true } => b"\xff\xfe",
            Encoding::Utf16 { is_little: false } => b"\xfe\xff",
        }
    }

    /// Returns a text that [`open`] has made UTF-8 as it was in its file.
    pub(in crate::commands::import) fn encode(self, text: Vec<u8>) -> Vec<u8> {
        let Encoding::Utf16 { is_little } = self else { return text };
        let mut out = Vec::with_capacity(text.len() * 2);
        let mut push = |unit: u16| out.extend_from_slice(&if is_little { unit.to_le_bytes() } else { unit.to_be_bytes() });
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            let valid = match std::str::from_utf8(rest) {
                Ok(text) => text,
                Err(error) => std::str::from_utf8(rest.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or_default(),
            };
            valid.encode_utf16().for_each(&mut push);
            rest = rest.get(valid.len()..).unwrap_or_default();
            // What is left begins with half a pair, since nothing else was made that is no UTF-8.
            if let Some((&[first, second, third], others)) = rest.split_first_chunk() {
                push(u16::from(first & 0x0f) << 12 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
                rest = others;
            } else {
                rest = &[];
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a slow disk may.
    struct Slow(Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let few = out.len().min(1);
            self.0.read(out.get_mut(..few).unwrap_or_default())
        }
    }

    fn read(bytes: &[u8]) -> anyhow::Result<(Encoding, Vec<u8>)> {
        let mut text = open(Box::new(Slow(Cursor::new(bytes.to_vec()))))?;
        let mut found = Vec::new();
        text.bytes.read_to_end(&mut found)?;
        Ok((text.encoding, found))
    }

    fn utf16(text: &str, is_little: bool) -> Vec<u8> {
        let units = std::iter::once(0xfeff).chain(text.encode_utf16());
        units.flat_map(|unit: u16| if is_little { unit.to_le_bytes() } else { unit.to_be_bytes() }).collect()
    }

    #[test]
    fn encodings_are_read_and_written_again() {
        let long = "x,ä€😀\r\n".repeat(20_000);
        for text in ["", "a", "id,name\n1,Zoë 😀\n", &long] {
            for is_little in [true, false] {
                let bytes = utf16(text, is_little);
                let (encoding, found) = read(&bytes).expect("can be read");
                assert_eq!((encoding, found.as_slice()), (Encoding::Utf16 { is_little }, text.as_bytes()));
                assert_eq!([encoding.mark(), &encoding.encode(found)].concat(), bytes);
            }
            for mark in ["", "\u{feff}"] {
                let bytes = format!("{mark}{text}").into_bytes();
                let (encoding, found) = read(&bytes).expect("can be read");
                assert_eq!((encoding, found.as_slice()), (Encoding::Utf8 { has_mark: !mark.is_empty() }, text.as_bytes()));
                assert_eq!([encoding.mark(), &encoding.encode(found)].concat(), bytes);
            }
        }
    }

    #[test]
    fn halves_of_pairs_are_kept_and_are_no_text() {
        for units in [&[0x61, 0xd83d, 0x62][..], &[0xde00], &[0xd83d], &[0xd83d, 0xd83d, 0xde00]] {
            let bytes: Vec<u8> = std::iter::once(&0xfeff).chain(units).flat_map(|unit: &u16| unit.to_le_bytes()).collect();
            let (encoding, found) = read(&bytes).expect("can be read");
            assert!(std::str::from_utf8(&found).is_err(), "{units:x?}");
            assert_eq!([encoding.mark(), &encoding.encode(found)].concat(), bytes, "{units:x?}");
        }
        let error = read(b"\xff\xfea\0b").expect_err("half a unit").to_string();
        assert!(error.contains("odd number of bytes"), "{error}");
    }

    #[test]
    fn what_is_no_text_is_named() {
        let check = |bytes: &[u8], expected: &str| {
            let error = read(bytes).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"PK\x03\x04..", "Excel");
        check(b"\x28\xb5\x2f\xfd..", "zstd");
        check(b"<?xml version", "XML");
        check(b"i\0d\0,\0a\0\n\0", "iconv -f UTF-16LE");
        check(b"\0i\0d\0,\0a\0\n", "iconv -f UTF-16BE");
        check(b"\xff\xfe\0\0i\0\0\0", "UTF-32");
        check(&[0; 40], "no text");
    }

    #[test]
    fn older_encodings_are_told_from_single_faults() {
        let look = |rows: &[&[u8]]| {
            let mut older = Older::default();
            let mut place = 0;
            for (line, row) in rows.iter().enumerate() {
                older.look(row, place, line as u64 + 1).map_err(|error| error.to_string())?;
                place += row.len() as u64;
            }
            Ok::<(), String>(())
        };
        let error = look(&[b"id,name\n", b"1,M\xfcller\n"]).expect_err("Latin-1");
        assert!(error.contains("byte 11 (0xfc, in line 2)") && error.contains("iconv -f WINDOWS-1252"), "{error}");
        assert_eq!(look(&["1,Müller".as_bytes(), b"1,M\xfcller"]), Ok(()), "others are UTF-8");
        assert_eq!(look(&["ü \u{fffd}".as_bytes(), b"\xe4"]), Ok(()));
        assert_eq!(look(&[b"1,\xff"]), Ok(()), "a letter of no encoding");
    }
}
