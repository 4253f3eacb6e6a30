//! Walks through the records of one log file, and finds the next one after damage.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::disk::{self, DiskFile};
use super::format::{FILE_HEADER_BYTES, FRAME_BYTES, Head, RECORD_BYTES_MAX, RECORD_BYTES_MIN, Salt};
use crate::Offset;

/// Bytes between two entries of an index: what a read may have to skip.
const INDEX_STEP: u64 = 64 * 1024;

/// Where some of a file's records lie.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    entries: Vec<(Offset, u64)>,
}

impl Index {
    /// Notes a record, unless it lies close after the last one noted, or before it.
    pub(super) fn note(&mut self, offset: Offset, at: u64) {
        if self.entries.last().is_none_or(|(_, last)| at >= last + INDEX_STEP) {
            self.entries.push((offset, at));
        }
    }

    /// Notes a record after damage, whatever the distance, so that a later walk can begin there.
    pub(super) fn note_always(&mut self, offset: Offset, at: u64) {
        if self.entries.last().is_none_or(|(last, _)| offset > *last) {
            self.entries.push((offset, at));
        }
    }

    /// Takes over the records noted in another one, which lie after its own.
    pub(super) fn take_over(&mut self, later: &mut Index) {
        for (offset, at) in later.entries.drain(..) {
            self.note(offset, at);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// Returns the last noted record that does not lie after an offset.
    pub(super) fn before(&self, offset: Offset) -> Option<(Offset, u64)> {
        let after = self.entries.partition_point(|(noted, _)| *noted <= offset);
        after.checked_sub(1).map(|last| self.entries[last])
    }
}

/// What lies where a record should begin.
pub(super) enum Step {
    /// The record that was expected.
    Record { at: u64, first_after_sync: bool, bytes: Bytes },
    /// The end of the bytes.
    End,
    /// Something else.
    Bad(String),
}

/// What lies after damage.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A valid record.
    Record { at: u64, offset: Offset },
    /// No valid record.
    Nothing,
    /// Too much looks like a record to check all of it.
    Unknown,
}

/// A walk through one file.
pub(super) struct Scanner {
    file: Arc<dyn DiskFile>,
    salt: Salt,
    /// Where the next frame begins.
    at: u64,
    /// The offset that it should have.
    next: Offset,
    /// Bytes of the file that may be read.
    limit: u64,
    /// Bytes to read at once, where a record does not ask for more.
    chunk: usize,
    buffer: Bytes,
    buffer_at: u64,
}

impl Scanner {
    /// Begins at the frame at byte `at`, which should be that of the record `next`; `limit` is the file's readable length.
    pub(super) fn new(file: Arc<dyn DiskFile>, salt: Salt, at: u64, next: Offset, limit: u64, chunk: usize) -> Self {
        Scanner { file, salt, at, next, limit, chunk: chunk.max(FRAME_BYTES), buffer: Bytes::new(), buffer_at: 0 }
    }

    /// Returns the offset of the record that is expected next.
    pub(super) fn offset(&self) -> Offset {
        self.next
    }

    /// Returns where the next frame begins.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Goes on at another frame.
    pub(super) fn jump(&mut self, at: u64, next: Offset) {
        (self.at, self.next) = (at, next);
    }

    /// Returns the bytes `at..at + length`, shared with the buffer; fewer where the file ends.
    fn window(&mut self, at: u64, length: usize) -> io::Result<Bytes> {
        let inside =
            |scanner: &Scanner| at >= scanner.buffer_at && at + length as u64 <= scanner.buffer_at + scanner.buffer.len() as u64;
        if !inside(self) {
            let left = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(usize::MAX);
            let mut buffer = vec![0; length.max(self.chunk).min(left)];
            let filled = disk::read_full(self.file.as_ref(), &mut buffer, at)?;
            buffer.truncate(filled);
            (self.buffer, self.buffer_at) = (buffer.into(), at);
        }
        let from = (at - self.buffer_at) as usize;
        Ok(self.buffer.slice(from..(from + length).min(self.buffer.len())))
    }

    /// Looks at the next frame and, if it is the record expected, moves after it.
    /// # Errors
    /// The file cannot be read; the same step may be tried again.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if self.at >= self.limit {
            return Ok(Step::End);
        }
        let at = self.at;
        let bad = |what: String| Ok(Step::Bad(format!("at byte {at}: {what}")));
        let frame = self.window(at, FRAME_BYTES)?;
        if frame.len() < FRAME_BYTES {
            return bad(format!("{} bytes, too few for a record", frame.len()));
        }
        let head = Head::decode(&frame);
        let Some(length) = head.length() else {
            return bad(format!("a length that no record has (1 to {RECORD_BYTES_MAX} bytes)"));
        };
        let end = at + (FRAME_BYTES + length) as u64;
        if end > self.limit {
            return bad(format!("a record of {length} bytes, which would end after the file"));
        }
        // The whole frame in one window: a frame that crosses the buffer's end moves the window to its start.
        let frame = self.window(at, FRAME_BYTES + length)?;
        if frame.len() < FRAME_BYTES + length || !head.matches(self.salt, &frame[FRAME_BYTES..]) {
            return bad("a record whose checksum does not match".to_owned());
        }
        if head.offset != self.next {
            return bad(format!("record {} where record {} was expected", head.offset, self.next));
        }
        (self.at, self.next) = (end, self.next + 1);
        Ok(Step::Record { at, first_after_sync: head.is_first_after_sync(), bytes: frame.slice(FRAME_BYTES..) })
    }

    /// Returns whether nothing but zeros lies from the present place on, as behind the records of a file that was written when its process
    /// ended: padding, and nothing that was acknowledged. Does not move.
    /// # Errors
    /// The file cannot be read.
    pub(super) fn only_padding_follows(&mut self) -> io::Result<bool> {
        let mut at = self.at;
        while at < self.limit {
            let window = self.window(at, self.chunk)?;
            if window.is_empty() || window.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += window.len() as u64;
        }
        Ok(true)
    }

    /// Searches from the present place on, byte by byte, for a valid record that is not older than the one expected.
    /// Does not move.
    /// # Errors
    /// The file cannot be read.
    pub(super) fn find_next(&mut self) -> io::Result<Next> {
        // No more records than this lie in the file, lost ones included, so a greater offset is noise.
        let offset_max = self.next.saturating_add(self.limit / RECORD_BYTES_MIN as u64);
        // Checking a candidate costs its length; noise that keeps looking like records must not cost for ever.
        let mut budget = 16 * self.limit.max(RECORD_BYTES_MAX as u64);
        let mut at = self.at;
        while at + RECORD_BYTES_MIN as u64 <= self.limit {
            let window = self.window(at, self.chunk.max(4 * FRAME_BYTES))?;
            if window.len() < RECORD_BYTES_MIN {
                break;
            }
            let candidates = window.len() - FRAME_BYTES;
            for place in 0..candidates {
                let head = Head::decode(&window[place..]);
                if head.offset < self.next || head.offset > offset_max {
                    continue;
                }
                let begin = at + place as u64;
                let Some(length) = head.length().filter(|length| begin + (FRAME_BYTES + length) as u64 <= self.limit) else {
                    continue;
                };
                if budget < length as u64 {
                    return Ok(Next::Unknown);
                }
                budget -= length as u64;
                let mut payload = vec![0; length];
                let filled = disk::read_full(self.file.as_ref(), &mut payload, begin + FRAME_BYTES as u64)?;
                if filled == length && head.matches(self.salt, &payload) {
                    return Ok(Next::Record { at: begin, offset: head.offset });
                }
            }
            at += candidates as u64;
        }
        Ok(Next::Nothing)
    }
}

/// Damage in a file: the records `from..to` are missing; what lies there begins at byte `at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) at: u64,
    pub(super) from: Offset,
    pub(super) to: Offset,
    pub(super) reason: String,
}

/// What a walk through a whole file found.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) index: Index,
    /// Damage with a valid record after it, in order.
    pub(super) damage: Vec<Damage>,
    /// The last valid record that says that all before it had been synced, and its place.
    pub(super) last_group: Option<(Offset, u64)>,
    /// Behind the last valid record: its place and the next offset.
    pub(super) end_at: u64,
    pub(super) end: Offset,
    /// Why the walk ended, if bytes without a valid record follow.
    pub(super) tail: Option<String>,
    /// Whether valid records may follow which could not be searched for.
    pub(super) unsearched: bool,
}

/// Walks through a whole file of `bytes` bytes.
/// # Errors
/// The file cannot be read.
pub(super) fn survey(file: Arc<dyn DiskFile>, salt: Salt, base: Offset, bytes: u64) -> io::Result<Survey> {
    let mut scanner = Scanner::new(file, salt, FILE_HEADER_BYTES as u64, base, bytes, 1024 * 1024);
    let mut index = Index::default();
    let mut damage = Vec::new();
    let mut last_group = None;
    let mut unsearched = false;
    let tail = loop {
        let offset = scanner.offset();
        match scanner.step()? {
            Step::Record { at, first_after_sync, .. } => {
                index.note(offset, at);
                if first_after_sync {
                    last_group = Some((offset, at));
                }
            }
            Step::End => break None,
            Step::Bad(_) if scanner.only_padding_follows()? => break None,
            Step::Bad(reason) => match scanner.find_next()? {
                Next::Record { at, offset: found } => {
                    damage.push(Damage { at: scanner.at(), from: offset, to: found, reason });
                    index.note_always(found, at);
                    scanner.jump(at, found);
                }
                Next::Nothing => break Some(reason),
                Next::Unknown => {
                    unsearched = true;
                    break Some(reason);
                }
            },
        }
    };
    Ok(Survey { index, damage, last_group, end_at: scanner.at(), end: scanner.offset(), tail, unsearched })
}
