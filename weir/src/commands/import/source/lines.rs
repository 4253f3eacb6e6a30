//! JSON: one object in each line, or in an array, or one after the other over many lines.

use std::borrow::Cow;
use std::fmt;
use std::io::{BufRead, Read as _};

use anyhow::bail;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::text::{Older, Text};
use super::{Cell, Fault, Row, Rows, array};
use crate::commands::import::names::REASON;

/// Bytes of a line; an event of a quarter of it is too large for the collector.
pub(super) const LINE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes that are kept of a row that has more than that.
pub(super) const KEPT_BYTES: usize = 1_000;

/// Reads rows. An array is one if the file's name says JSON (`.json`), or if its first line is only a part of it.
/// # Errors
/// If the text is no JSON.
pub(super) fn rows(text: Text, is_json: bool) -> anyhow::Result<Rows> {
    let begin = text.head.trim_ascii_start();
    let mut lines = begin.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.next().unwrap_or_default();
    let is_whole = serde_json::from_slice::<&RawValue>(first).is_ok();
    let has_more = lines.clone().any(|line| !line.is_empty());
    if begin.starts_with(b"[") && (is_json || !is_whole || !has_more) {
        return Ok(array::rows(text, true));
    }
    if first == b"{" {
        return Ok(array::rows(text, false));
    }
    let is_json_line = |line: &[u8]| line.starts_with(b"{") || line.starts_with(b"[");
    if !first.is_empty() && !is_json_line(first) && !lines.any(is_json_line) && std::str::from_utf8(first).is_ok() {
        let begin: String = String::from_utf8_lossy(first).chars().take(60).collect();
        let seems =
            if first.iter().any(|byte| b",;\t|".contains(byte)) { "; it seems to be CSV, whose name ends with .csv" } else { "" };
        bail!(
            "the file is no JSON: it begins with {begin:?}{seems}; one JSON object in each line is accepted, or an array of them"
        );
    }
    let (older, place) = (text.older(), text.encoding.mark().len() as u64);
    Ok(Box::new(Lines { bytes: text.bytes, number: 0, line: Vec::new(), older, place }))
}

struct Lines {
    bytes: Box<dyn BufRead + Send>,
    number: u64,
    line: Vec<u8>,
    older: Option<Older>,
    /// Of the next line's first byte.
    place: u64,
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
            let place = self.place;
            self.place += self.line.len() as u64;
            if !is_whole {
                match skip_line(self.bytes.as_mut()) {
                    Ok(skipped) => self.place += skipped,
                    Err(error) => return Some(Err(error.into())),
                }
                return Some(Ok(too_large(self.number, &self.line, "line")));
            }
            if let Some(older) = &mut self.older
                && let Err(error) = older.look(&self.line, place, self.number)
            {
                return Some(Err(error));
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                return Some(Ok(row(self.number, line)));
            }
        }
    }
}

/// Passes over the rest of a line; returns its bytes.
fn skip_line(bytes: &mut dyn BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = bytes.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let passed = end.map_or(buffer.len(), |at| at + 1);
        bytes.consume(passed);
        skipped += passed as u64;
        if passed == 0 || end.is_some() {
            return Ok(skipped);
        }
    }
}

/// Makes a row of JSON, which may be one of `FILE.weir-rejected`: then the reason is left out, and what was no JSON stands in `line`.
pub(super) fn row(number: u64, json: &[u8]) -> Row {
    let mut found = cells(json);
    let mut raw = json.to_vec();
    if let Ok(members) = &mut found
        && members.iter().any(|(name, _)| name == REASON)
    {
        members.retain(|(name, _)| name != REASON);
        let line = match members.as_slice() {
            [(name, Cell::Json(json))] if name == "line" => serde_json::from_str::<String>(json).ok(),
            _ => None,
        };
        match line {
            Some(line) => {
                raw = line.trim().as_bytes().to_vec();
                found = cells(&raw);
            }
            None => raw = object(members).into_bytes(),
        }
    }
    Row { number, cells: found, raw }
}

/// Makes a row that is not read; what is kept of it tells which one it is.
pub(super) fn too_large(number: u64, begin: &[u8], what: &str) -> Row {
    let message = format!("the {what} has more than {LINE_BYTES_MAX} bytes; its first {KEPT_BYTES} are kept");
    let raw = begin.get(..KEPT_BYTES).unwrap_or(begin).to_vec();
    Row { number, cells: Err(Fault::new("too_large", message)), raw }
}

/// Writes members as a JSON object.
pub(in crate::commands::import) fn object(members: &[(String, Cell)]) -> String {
    let mut out = String::from("{");
    for (name, cell) in members {
        if out.len() > 1 {
            out.push(',');
        }
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        out.push_str(&quoted(name));
        out.push(':');
        match cell {
            Cell::Json(json) => out.push_str(json),
            Cell::Text(text) => out.push_str(&quoted(text)),
        }
    }
    out.push('}');
    out
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
        Fault::new("invalid_json", format!("expected a JSON object; found: {reason}"))
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
