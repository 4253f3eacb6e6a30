//! Reads records back, and deletes those that are no longer needed. Runs concurrently with the writer: it reads durable bytes only.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::disk::{self, Disk, DiskFile};
use super::format::{self, FILE_HEADER_BYTES, FileHeader, Salt};
use super::scan::{Index, Next, Scanner, Step};
use crate::{Offset, ReadBound, ReadError, StoredRecord};

/// Bytes that a read takes from a file at once, unless one record is larger.
const CHUNK_BYTES: Range<usize> = 16 * 1024..1024 * 1024;

/// Locks, also after a panic elsewhere: what these locks guard is changed in single steps.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log file that is open.
pub(super) struct OpenFile {
    pub(super) base: Offset,
    pub(super) salt: Salt,
    pub(super) file: Arc<dyn DiskFile>,
    /// How many of its bytes may be read: while it is written, the durable ones.
    pub(super) readable: AtomicU64,
    pub(super) index: Mutex<Index>,
}

impl OpenFile {
    pub(super) fn new(header: FileHeader, file: Arc<dyn DiskFile>, readable: u64, index: Index) -> Self {
        let (readable, index) = (AtomicU64::new(readable), Mutex::new(index));
        OpenFile { base: header.base, salt: header.salt(), file, readable, index }
    }
}

/// A log file by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) base: Offset,
    /// Its length; of the file that is written, the length when it was opened.
    pub(super) bytes: u64,
}

/// The files of one log partition.
pub(super) struct Files {
    /// Rising by base; the last one is written. A file's records end where the next file begins: what it holds beyond that
    /// was never acknowledged.
    pub(super) listed: Vec<Listed>,
    pub(super) active: Arc<OpenFile>,
    /// The closed file that was read last.
    pub(super) recent: Option<Arc<OpenFile>>,
}

/// Counts what a service exports.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) bytes: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) groups: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) sync_failures: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) torn_tails: AtomicU64,
    /// Log partition and first offset of each damaged range seen so far.
    pub(super) corrupt: Mutex<BTreeSet<(u32, Offset)>>,
}

/// One log partition as readers and the writer share it.
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) folder: PathBuf,
    /// The durable end.
    pub(super) end: watch::Sender<Offset>,
    pub(super) files: Mutex<Files>,
    /// When a group of appends failed here, and why, if none has succeeded since.
    pub(super) failing: Mutex<Option<(Instant, String)>>,
}

/// A file and the part of it that answers a read.
struct Located {
    file: Arc<OpenFile>,
    limit: u64,
    until: Offset,
}

impl Partition {
    /// Returns the offsets that can be read.
    pub(super) fn offsets(&self) -> Range<Offset> {
        // The end first: it never falls, so the range is never inverted.
        let end = *self.end.borrow();
        self.start()..end
    }

    fn start(&self) -> Offset {
        lock(&self.files).listed.first().map_or(0, |first| first.base)
    }

    /// Checks that an offset can be read or waited for; returns whether there is something to read.
    pub(super) fn check(&self, offset: Offset) -> Result<bool, ReadError> {
        let Range { start, end } = self.offsets();
        let partition = self.number;
        if offset < start {
            Err(ReadError::BelowStart { partition, offset, start })
        } else if offset > end {
            Err(ReadError::AboveEnd { partition, offset, end })
        } else {
            Ok(offset < end)
        }
    }

    /// Reads what lies from an offset on, which [`Partition::check`] has found to be there.
    /// Returns at least one record, or an error.
    pub(super) fn read(
        &self,
        disk: &dyn Disk,
        counters: &Counters,
        from: Offset,
        bound: ReadBound,
    ) -> Result<Vec<StoredRecord>, ReadError> {
        let end = *self.end.borrow();
        let mut collected = Collected { records: Vec::new(), bytes: 0, bound, is_full: false };
        let mut offset = from;
        while offset < end && !collected.is_full {
            let found = match self.locate(disk, offset, end) {
                Ok(located) => self.read_file(&located, offset, &mut collected),
                Err(error) => Err(error),
            };
            match found {
                Ok(next) => offset = next,
                // What was read up to here is good; the next read begins at the fault and names it.
                Err(_) if !collected.records.is_empty() => break,
                Err(Fault::Damage(range, reason)) => {
                    if lock(&counters.corrupt).insert((self.number, range.start)) {
                        let (partition, folder) = (self.number, self.folder.display());
                        let (first, end) = (range.start, range.end);
                        tracing::error!(partition, first, end, %folder, "acknowledged records are damaged; the file is kept: {reason}");
                    }
                    return Err(ReadError::Corrupt { partition: self.number, range, reason });
                }
                Err(Fault::Gone(start)) => return Err(ReadError::BelowStart { partition: self.number, offset, start }),
                Err(Fault::Io(reason)) => return Err(ReadError::Unavailable(reason)),
            }
        }
        Ok(collected.records)
    }

    /// Finds the file that holds an offset, and opens it if need be.
    fn locate(&self, disk: &dyn Disk, offset: Offset, end: Offset) -> Result<Located, Fault> {
        let mut files = lock(&self.files);
        let after = files.listed.partition_point(|file| file.base <= offset);
        let Some(listed) = after.checked_sub(1).map(|place| files.listed[place]) else {
            return Err(Fault::Gone(files.listed.first().map_or(0, |first| first.base)));
        };
        let Some(next) = files.listed.get(after) else {
            let file = Arc::clone(&files.active);
            return Ok(Located { limit: file.readable.load(Ordering::Acquire), file, until: end });
        };
        let until = next.base;
        if let Some(recent) = files.recent.as_ref().filter(|recent| recent.base == listed.base) {
            return Ok(Located { limit: recent.readable.load(Ordering::Acquire), file: Arc::clone(recent), until });
        }
        let path = self.folder.join(format::file_name(listed.base));
        let fault = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Fault::Damage(offset..until, format!("{}: the file is missing", path.display())),
            _ => Fault::Io(format!("{}: {error}", path.display())),
        };
        let file = disk.open(&path).map_err(fault)?;
        let limit = file.bytes().map_err(fault)?;
        let mut header = vec![0; FILE_HEADER_BYTES];
        let filled = disk::read_full(file.as_ref(), &mut header, 0).map_err(fault)?;
        let header = FileHeader::decode(&header[..filled], self.number, listed.base)
            .map_err(|reason| Fault::Damage(listed.base..until, format!("{}: {reason}", path.display())))?;
        let file = Arc::new(OpenFile::new(header, file, limit, Index::default()));
        files.recent = Some(Arc::clone(&file));
        Ok(Located { file, limit, until })
    }

    /// Collects the records of one file from an offset on; returns the offset after the last one collected.
    fn read_file(&self, located: &Located, from: Offset, collected: &mut Collected) -> Result<Offset, Fault> {
        let Located { file, limit, until } = located;
        let (base, at) = lock(&file.index).before(from).unwrap_or((file.base, FILE_HEADER_BYTES as u64));
        let chunk = collected.bound.bytes_max.clamp(CHUNK_BYTES.start, CHUNK_BYTES.end);
        let mut scanner = Scanner::new(Arc::clone(&file.file), file.salt, at, base, *limit, chunk);
        let path = || self.folder.join(format::file_name(file.base)).display().to_string();
        while scanner.offset() < *until && !collected.is_full {
            let offset = scanner.offset();
            let io = |error: io::Error| Fault::Io(format!("{}: {error}", path()));
            let reason = match scanner.step().map_err(io)? {
                Step::Record { at, bytes, .. } => {
                    lock(&file.index).note(offset, at);
                    if offset >= from && !collected.add(offset, bytes) {
                        return Ok(offset);
                    }
                    continue;
                }
                Step::End => format!("the file ends at byte {limit}, before record {until}"),
                Step::Bad(reason) => reason,
            };
            let after = match scanner.find_next().map_err(io)? {
                Next::Record { at, offset } if offset < *until => Some((at, offset)),
                _ => None,
            };
            let to = after.map_or(*until, |(_, offset)| offset);
            if let Some((at, to)) = after.filter(|(_, to)| *to <= from) {
                scanner.jump(at, to);
                continue;
            }
            if let Some((at, to)) = after {
                // So that the next read can begin after the damage without searching again.
                lock(&file.index).note_always(to, at);
            }
            return Err(Fault::Damage(offset..to, format!("{}: {reason}", path())));
        }
        Ok(scanner.offset())
    }

    /// Deletes the closed files that lie below the record before `offset`; returns the bytes that became free.
    /// Stops at the first file that it cannot delete.
    pub(super) fn release(&self, disk: &dyn Disk, offset: Offset) -> u64 {
        let needed = offset.min(*self.end.borrow()).saturating_sub(1);
        let mut files = lock(&self.files);
        let mut freed = 0;
        while files.listed.get(1).is_some_and(|next| next.base <= needed) {
            let first = files.listed[0];
            let path = self.folder.join(format::file_name(first.base));
            match disk.remove(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(partition = self.number, file = %path.display(), "a log file cannot be deleted: {error}");
                    break;
                }
            }
            files.listed.remove(0);
            if files.recent.as_ref().is_some_and(|recent| recent.base == first.base) {
                files.recent = None;
            }
            freed += first.bytes;
        }
        drop(files);
        if freed > 0 {
            // Should the names come back after a power cut, the files come back with them, and are released again.
            if let Err(error) = disk.sync_folder(&self.folder) {
                tracing::warn!(partition = self.number, folder = %self.folder.display(), "a folder cannot be synced: {error}");
            }
        }
        freed
    }
}

/// Why a read ended early.
enum Fault {
    Damage(Range<Offset>, String),
    Gone(Offset),
    Io(String),
}

struct Collected {
    records: Vec<StoredRecord>,
    bytes: usize,
    bound: ReadBound,
    is_full: bool,
}

impl Collected {
    /// Adds a record, unless it is one too much.
    fn add(&mut self, offset: Offset, bytes: bytes::Bytes) -> bool {
        if !self.records.is_empty() && self.bytes + bytes.len() > self.bound.bytes_max {
            self.is_full = true;
            return false;
        }
        self.bytes += bytes.len();
        self.records.push(StoredRecord { offset, bytes });
        self.is_full = self.records.len() >= self.bound.records_max || self.bytes >= self.bound.bytes_max;
        true
    }
}
