//! Small files of lines, with a checksum, replaced as a whole.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Replaces a file by `name value` lines: written to a temporary file, synced, renamed, so that there is always a whole one. Mode 0600.
pub(super) fn replace(path: &Path, title: &str, lines: &[(&str, String)]) -> io::Result<()> {
    let mut text = format!("{title}\n");
    for (name, value) in lines {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{name} {value}");
    }
    let sum = crc32c::crc32c(text.as_bytes());
    let _ = writeln!(text, "crc32c {sum:08x}");
    let beside = path.with_extension("new");
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    out.write_all(text.as_bytes())?;
    out.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads the values of a file that [`replace`] wrote with these names; nothing if there is none.
/// # Errors
/// [`io::ErrorKind::InvalidData`] if it is anything else.
pub(super) fn read<const N: usize>(path: &Path, title: &str, names: [&str; N]) -> io::Result<Option<[String; N]>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged =
        |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}; expected {title:?} with its checksum"));
    let text = String::from_utf8(text).map_err(|_| damaged("no text"))?;
    let body = text.strip_suffix('\n').and_then(|text| text.rfind('\n')).map_or(0, |at| at + 1);
    let (body, sum) = text.split_at(body);
    if sum != format!("crc32c {:08x}\n", crc32c::crc32c(body.as_bytes())) {
        return Err(damaged("the checksum does not fit"));
    }
    let mut lines = body.lines();
    if lines.next() != Some(title) {
        return Err(damaged("another kind or version of file"));
    }
    let mut values = [const { String::new() }; N];
    for (name, value) in names.iter().zip(&mut values) {
        let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.ok_or_else(|| damaged(&format!("no line {name}")))?.clone_into(value);
    }
    Ok(Some(values))
}
