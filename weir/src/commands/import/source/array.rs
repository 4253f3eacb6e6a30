//! JSON values in an array, or one after the other, over as many lines as they like; one at a time in memory.

use std::io::BufRead;

use anyhow::bail;

use super::lines::{KEPT_BYTES, LINE_BYTES_MAX, row, too_large};
use super::text::{Older, Text};
use super::{Row, Rows};

/// Reads the elements of an array as rows, or values that follow each other.
pub(super) fn rows(text: Text, is_array: bool) -> Rows {
    let (older, place) = (text.older(), text.encoding.mark().len() as u64);
    Box::new(Values { bytes: text.bytes, is_array, number: 0, line: 1, at: At::Begin, kept: Vec::new(), older, place })
}

/// Where the reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Begin,
    /// Before a value, or the array's end.
    Value,
    /// After a value of an array: a comma follows, or the end.
    Comma,
    End,
    /// After an error.
    Failed,
}

struct Values {
    bytes: Box<dyn BufRead + Send>,
    is_array: bool,
    /// Of the last value.
    number: u64,
    /// The one that is read, counted from 1.
    line: u64,
    at: At,
    /// The bytes of a value.
    kept: Vec<u8>,
    older: Option<Older>,
    /// Of the next byte.
    place: u64,
}

/// What a value that is begun still waits for.
#[derive(Default)]
struct Open {
    /// Objects and arrays that are not closed.
    depth: u64,
    is_text: bool,
    is_escaped: bool,
}

impl Open {
    /// Takes in a byte; returns whether the value ends with it.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.is_text {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.is_text = false,
                _ => {}
            }
            return !self.is_text && self.depth == 0;
        }
        match byte {
            b'"' => self.is_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        !self.is_text && self.depth == 0
    }
}

impl Iterator for Values {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at == At::Failed {
            return None;
        }
        match self.next_row() {
            Ok(row) => row.map(Ok),
            Err(error) => {
                self.at = At::Failed;
                Some(Err(error))
            }
        }
    }
}

impl Values {
    fn next_row(&mut self) -> anyhow::Result<Option<Row>> {
        loop {
            let Some(byte) = self.peek()? else {
                if self.is_array && self.at != At::End {
                    bail!("the array is not closed after element {}: the file is not whole", self.number);
                }
                return Ok(None);
            };
            match (self.at, byte) {
                (_, b' ' | b'\t' | b'\r' | b'\n') => self.pass(byte),
                (At::Begin, b'[') if self.is_array => {
                    self.pass(byte);
                    self.at = At::Value;
                }
                (At::Value | At::Comma, b']') if self.is_array => {
                    self.pass(byte);
                    self.at = At::End;
                }
                (At::Comma, b',') => {
                    self.pass(byte);
                    self.at = At::Value;
                }
                (At::End, _) => {
                    bail!("line {}: found {:?} after the array's end; one array is accepted", self.line, char::from(byte));
                }
                (At::Comma, _) => {
                    let (line, number) = (self.line, self.number);
                    bail!("line {line}: expected a comma or ] after element {number} of the array; found {:?}", char::from(byte));
                }
                (_, b',' | b']' | b'}') => {
                    bail!("line {}: expected a value; found {:?}", self.line, char::from(byte));
                }
                _ => return self.value(byte).map(Some),
            }
        }
    }

    /// Reads a value, the first byte of which is known.
    fn value(&mut self, first: u8) -> anyhow::Result<Row> {
        self.number += 1;
        self.kept.clear();
        let (begin_line, begin_place) = (self.line, self.place);
        let mut bytes = 0;
        let is_scalar = !matches!(first, b'{' | b'[' | b'"');
        let mut open = Open::default();
        loop {
            let buffer = self.bytes.fill_buf()?;
            if buffer.is_empty() {
                if is_scalar && !self.is_array {
                    break;
                }
                let (number, what) = (self.number, if self.is_array { "element" } else { "object" });
                bail!("the file ends in {what} {number}, which begins in line {begin_line}: it is not whole");
            }
            // A value without brackets ends before what follows it.
            let end = if is_scalar {
                buffer.iter().position(|byte| b",]} \t\r\n".contains(byte))
            } else {
                buffer.iter().position(|byte| open.ends_with(*byte)).map(|at| at + 1)
            };
            let passed = end.unwrap_or(buffer.len());
            let part = buffer.get(..passed).unwrap_or_default();
            self.line += part.iter().filter(|byte| **byte == b'\n').count() as u64;
            bytes += passed;
            if bytes <= LINE_BYTES_MAX {
                self.kept.extend_from_slice(part);
            } else if self.kept.len() < KEPT_BYTES {
                self.kept.extend_from_slice(part.get(..KEPT_BYTES).unwrap_or(part));
            }
            self.bytes.consume(passed);
            self.place += passed as u64;
            if end.is_some() {
                break;
            }
        }
        self.at = if self.is_array { At::Comma } else { At::Value };
        if bytes > LINE_BYTES_MAX {
            return Ok(too_large(self.number, &self.kept, "element"));
        }
        if let Some(older) = &mut self.older {
            older.look(&self.kept, begin_place, begin_line)?;
        }
        // Line breaks can only stand between values, and a row is one line wherever it goes.
        for byte in &mut self.kept {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        Ok(row(self.number, &self.kept))
    }

    fn peek(&mut self) -> std::io::Result<Option<u8>> {
        Ok(self.bytes.fill_buf()?.first().copied())
    }

    fn pass(&mut self, byte: u8) {
        self.line += u64::from(byte == b'\n');
        self.place += 1;
        self.bytes.consume(1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use super::super::text::Encoding;
    use super::*;

    fn text(text: String, capacity: usize) -> Text {
        let bytes = Box::new(BufReader::with_capacity(capacity, Cursor::new(text.into_bytes())));
        Text { bytes, head: Vec::new(), encoding: Encoding::Utf8 { has_mark: false } }
    }

    /// Reads with buffers of several sizes, which must not matter: `number raw`, `number code`, or the error.
    fn check(json: &str, is_array: bool, expected: &[&str]) {
        for capacity in [1, 3, 7, 4096] {
            let show = |row: anyhow::Result<Row>| match row {
                Ok(Row { number, cells: Ok(_), raw }) => format!("{number} {}", String::from_utf8_lossy(&raw)),
                Ok(Row { number, cells: Err(fault), .. }) => format!("{number} {}", fault.code),
                Err(error) => error.to_string(),
            };
            let found: Vec<String> = rows(text(json.to_owned(), capacity), is_array).map(show).collect();
            assert_eq!(found, expected, "{json} by {capacity}");
        }
    }

    #[test]
    fn elements_of_arrays_are_rows() {
        check(" [ ] ", true, &[]);
        check("[{\"a\":1},{\"a\":\"]}\\\"\"}]", true, &["1 {\"a\":1}", "2 {\"a\":\"]}\\\"\"}"]);
        check("[\r\n  {\n    \"a\": [1,\n 2]\n  },\n  {}\n]\n", true, &["1 {     \"a\": [1,  2]   }", "2 {}"]);
        check(
            "[1, \"x,]\", null, [{\"a\":1}], {a:1}, {\"b\":2},]",
            true,
            &["1 invalid_json", "2 invalid_json", "3 invalid_json", "4 invalid_json", "5 invalid_json", "6 {\"b\":2}"],
        );
    }

    #[test]
    fn an_array_that_is_not_whole_names_the_place() {
        check(
            "[{\"a\":1},\n {\"a\"",
            true,
            &["1 {\"a\":1}", "the file ends in element 2, which begins in line 2: it is not whole"],
        );
        check("[{\"a\":1}", true, &["1 {\"a\":1}", "the array is not closed after element 1: the file is not whole"]);
        check("[{},\n", true, &["1 {}", "the array is not closed after element 1: the file is not whole"]);
        check("[\n{}\n{}]", true, &["1 {}", "line 3: expected a comma or ] after element 1 of the array; found '{'"]);
        check("[{}] {}", true, &["1 {}", "line 1: found '{' after the array's end; one array is accepted"]);
        check("[,{}]", true, &["line 1: expected a value; found ','"]);
    }

    #[test]
    fn values_may_follow_each_other() {
        check("{\n\"a\":1}\n{\n\"a\":2}7\n", false, &["1 { \"a\":1}", "2 { \"a\":2}", "3 invalid_json"]);
        check("{\n\"a\":1}\n{\n", false, &["1 { \"a\":1}", "the file ends in object 2, which begins in line 3: it is not whole"]);
    }

    #[test]
    fn a_large_element_takes_no_memory() {
        let json = format!("[{{\"a\":\"{}\"}},{{}}]", "x".repeat(3 * LINE_BYTES_MAX));
        let found: Vec<Row> = rows(text(json, 8192), true).map(|row| row.expect("a row")).collect();
        let codes: Vec<_> = found.iter().map(|row| row.cells.as_ref().err().map(|fault| fault.code.as_str())).collect();
        assert_eq!(codes, [Some("too_large"), None]);
        assert_eq!(found[0].raw.len(), KEPT_BYTES);
    }
}
