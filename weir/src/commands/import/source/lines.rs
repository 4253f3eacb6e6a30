//! One JSON object in each line.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, Read as _};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Cell, Fault, Row, Rows};

/// Bytes of a line; an event of a quarter of it is too large for the collector.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Reads lines. Blank ones are counted and are no rows.
pub(super) fn rows(bytes: Box<dyn BufRead + Send>) -> Rows {
    Box::new(Lines { bytes, number: 0, line: Vec::new() })
}

struct Lines {
    bytes: Box<dyn BufRead + Send>,
    number: u64,
    line: Vec<u8>,
}

impl Iterator for Lines {
    type Item = anyhow::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line.clear();
            // One more than allowed, to see that there is more.
            let mut limited = (&mut self.bytes).take(LINE_BYTES_MAX as u64 + 2);
            match limited.read_until(b'\n', &mut self.line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(error.into())),
            }
            self.number += 1;
            let is_whole = self.line.last() == Some(&b'\n') || self.line.len() <= LINE_BYTES_MAX;
            if !is_whole {
                if let Err(error) = skip_line(self.bytes.as_mut()) {
                    return Some(Err(error.into()));
                }
                let fault = Fault::new("too_large", format!("the line has more than {LINE_BYTES_MAX} bytes"));
                return Some(Ok(Row { number: self.number, cells: Err(fault) }));
            }
            let line = if self.number == 1 { self.line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.line) } else { &self.line };
            let line = line.trim_ascii();
            if !line.is_empty() {
                return Some(Ok(Row { number: self.number, cells: cells(line) }));
            }
        }
    }
}

/// Passes over the rest of a line.
fn skip_line(bytes: &mut dyn BufRead) -> std::io::Result<()> {
    loop {
        let buffer = bytes.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let passed = end.map_or(buffer.len(), |at| at + 1);
        if passed == 0 {
            return Ok(());
        }
        bytes.consume(passed);
        if end.is_some() {
            return Ok(());
        }
    }
}

/// Takes an object apart; values stay as they are written.
pub(super) fn cells(line: &[u8]) -> Result<Vec<(String, Cell)>, Fault> {
    let text = std::str::from_utf8(line)
        .map_err(|error| Fault::new("bad_utf8", format!("the line is not UTF-8 at byte {}", error.valid_up_to())))?;
    let read = || {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let members = deserializer.deserialize_map(Members)?;
        deserializer.end()?;
        Ok(members)
    };
    read().map_err(|error: serde_json::Error| {
        let text = error.to_string();
        let reason = text.split(" at line ").next().unwrap_or_default();
        Fault::new("invalid_json", format!("expected a JSON object in the line; found: {reason}"))
    })
}

/// Reads the members of an object. Deeply nested values cost no stack.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, Cell)>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut cells = Vec::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            let value: &RawValue = map.next_value()?;
            cells.push((name.into_owned(), Cell::Json(value.get().to_owned())));
        }
        Ok(cells)
    }
}
