//! Opens a log: finds out what it holds, and puts in order what a crash left behind.
//!
//! Per log partition only the last file is read as a whole; the closed ones are checked when they are read. What the last
//! one may look like, and what happens:
//!
//! | Found | Means | Done |
//! |---|---|---|
//! | valid records to the end | a clean end, or a crash between groups | synced, since a killed process may have left records unsynced; continued |
//! | nothing but zeros behind the records | padding; the process was killed, or lost its power | cut off, synced; continued |
//! | bad bytes, no valid record after them | a torn write | cut off, synced, counted; continued |
//! | bad bytes, then valid records that were all written by the last sync's group | a torn write whose sectors reached the disk out of order | counted; kept as it is, and a new file begins at the first bad record |
//! | bad bytes, then a record that was written after a later sync | acknowledged records are damaged | counted and logged; kept as it is, a new file begins after it; reading the damage is an error |
//! | a bad header | the same | the same |
//!
//! The third and fourth are told apart by the mark on each first record after a sync: a group is only written when all
//! groups before it are durable.
//!
//! The last group may be readable and yet not on the disk: its sync may have failed in a process that is gone, and the
//! system may count its pages as written. So its bytes are written once more before the sync.
//!
//! Every step may be interrupted: a file is cut or made before anything relies on it, and opening again finds either the
//! old state or the new one.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use events::bucket::BUCKETS;
use tokio::sync::watch;
use uuid::Uuid;

use super::disk::{self, Disk, DiskFile, Lock};
use super::format::{self, FILE_HEADER_BYTES, FileHeader, LogHeader, RECORD_BYTES_MIN};
use super::reader::{Counters, Files, Listed, OpenFile, Partition, lock};
use super::scan::{self, Damage, Survey};
use super::writer::{self, TEMPORARY};
use super::{OpenError, PARTITIONS_DEFAULT};
use crate::{LogIdentity, Offset};

/// The file that holds the log's header.
const HEADER_NAME: &str = "header";
/// The file that is locked.
const LOCK_NAME: &str = "lock";
/// Bytes that are written once more at a time.
const REWRITE_BYTES: usize = 64 * 1024;

/// An open log, without its writer.
pub(super) struct Opened {
    pub(super) identity: LogIdentity,
    pub(super) partitions: Vec<Arc<Partition>>,
    pub(super) counters: Arc<Counters>,
    pub(super) lock: Lock,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> OpenError + '_ {
    move |source| OpenError::Io { path: path.to_owned(), source }
}

fn damaged(path: &Path, reason: impl Into<String>) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.into() }
}

fn partition_folder(folder: &Path, partition: u32) -> PathBuf {
    folder.join(format!("partition-{partition:02}"))
}

/// Opens the log in a folder, or makes it.
pub(super) fn open(disk: &dyn Disk, folder: &Path, partitions: Option<u32>) -> Result<Opened, OpenError> {
    if let Some(asked) = partitions.filter(|asked| *asked == 0 || !BUCKETS.is_multiple_of(*asked)) {
        return Err(OpenError::Options(format!("{asked} log partitions: the number must divide {BUCKETS}")));
    }
    disk.make_folder(folder).map_err(failed(folder))?;
    let lock_path = folder.join(LOCK_NAME);
    let held = disk.lock(&lock_path).map_err(failed(&lock_path))?;
    let lock = held.ok_or_else(|| OpenError::InUse { folder: folder.to_owned() })?;

    let entries = disk.list(folder).map_err(failed(folder))?;
    if !entries.iter().any(|entry| entry.name == HEADER_NAME) {
        make(disk, folder, partitions.unwrap_or(PARTITIONS_DEFAULT))?;
    }
    // A killed process leaves names that are seen and not durable, here and in the folders of the log partitions.
    disk.sync_folder(folder).map_err(failed(folder))?;
    let identity = read_header(disk, &folder.join(HEADER_NAME))?;
    if let Some(asked) = partitions.filter(|asked| *asked != identity.partitions) {
        return Err(OpenError::Partitions { folder: folder.to_owned(), found: identity.partitions, asked });
    }
    let counters = Arc::new(Counters::default());
    let mut opened = Vec::new();
    for number in 0..identity.partitions {
        opened.push(Arc::new(open_partition(disk, &partition_folder(folder, number), number, &counters)?));
    }
    Ok(Opened { identity, partitions: opened, counters, lock })
}

/// Makes a log: the first file of each log partition, and at last the header, with which the log exists.
fn make(disk: &dyn Disk, folder: &Path, partitions: u32) -> Result<(), OpenError> {
    for number in 0..BUCKETS {
        let partition = partition_folder(folder, number);
        if number < partitions {
            disk.make_folder(&partition).map_err(failed(&partition))?;
        }
        let entries = match disk.list(&partition) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&partition)(error)),
        };
        // What an interrupted attempt left is one empty file. More than that is a log that has lost its header.
        for entry in entries {
            if format::base_of(&entry.name).is_some_and(|base| base > 0 || entry.bytes > FILE_HEADER_BYTES as u64) {
                let reason = "the folder holds records but no header; put the header back, or move the folder away";
                return Err(damaged(&partition.join(entry.name), reason));
            }
        }
        if number < partitions {
            writer::create_file(disk, &partition, number, 0).map_err(failed(&partition))?;
        }
    }
    let header = LogHeader { log_id: Uuid::new_v4(), partitions };
    let path = folder.join(HEADER_NAME);
    writer::create_whole(disk, folder, &path, &header.encode()).map_err(failed(&path))?;
    tracing::info!(log_id = %header.log_id, partitions, folder = %folder.display(), "made a new log");
    Ok(())
}

fn read_header(disk: &dyn Disk, path: &Path) -> Result<LogIdentity, OpenError> {
    let file = disk.open(path).map_err(failed(path))?;
    let mut bytes = vec![0; format::LOG_HEADER_BYTES];
    let filled = disk::read_full(file.as_ref(), &mut bytes, 0).map_err(failed(path))?;
    let LogHeader { log_id, partitions } = LogHeader::decode(&bytes[..filled]).map_err(|reason| damaged(path, reason))?;
    if partitions == 0 || !BUCKETS.is_multiple_of(partitions) {
        return Err(damaged(path, format!("{partitions} log partitions, which does not divide {BUCKETS}")));
    }
    Ok(LogIdentity { log_id, partitions })
}

fn open_partition(disk: &dyn Disk, folder: &Path, number: u32, counters: &Counters) -> Result<Partition, OpenError> {
    let lost = "the log's header is there, this folder's log files are not; put them back, or move the whole log away";
    let entries = match disk.list(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(folder, lost)),
        entries => entries.map_err(failed(folder))?,
    };
    let mut listed = Vec::new();
    for entry in entries {
        let path = folder.join(&entry.name);
        if let Some(base) = format::base_of(&entry.name) {
            listed.push(Listed { base, bytes: entry.bytes });
        } else if path.extension().is_some_and(|extension| extension == TEMPORARY) {
            disk.remove(&path).map_err(failed(&path))?;
        }
    }
    disk.sync_folder(folder).map_err(failed(folder))?;
    listed.sort_by_key(|file| file.base);
    let Some(last) = listed.pop() else {
        return Err(damaged(folder, lost));
    };
    let path = folder.join(format::file_name(last.base));
    let place = Place { disk, folder, path: &path, partition: number, base: last.base, counters };
    let (active, end) = match place.open_last().map_err(failed(&path))? {
        Last::Here { file, end } => (file, end),
        Last::NewFile { begins } => {
            if begins > last.base {
                listed.push(last);
            }
            (writer::create_file(disk, folder, number, begins).map_err(failed(folder))?, begins)
        }
    };
    listed.push(Listed { base: active.base, bytes: active.readable.load(Ordering::Acquire) });
    counters.bytes.fetch_add(listed.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
    let files = Mutex::new(Files { listed, active: Arc::new(active), recent: None });
    Ok(Partition { number, folder: folder.to_owned(), end: watch::Sender::new(end), files, failing: Mutex::default() })
}

/// Where a log partition goes on.
enum Last {
    /// In its last file, before record `end`.
    Here { file: OpenFile, end: Offset },
    /// In a new file. If that begins where the last one does, nothing in the last one is needed.
    NewFile { begins: Offset },
}

/// The last file of a log partition.
struct Place<'a> {
    disk: &'a dyn Disk,
    folder: &'a Path,
    path: &'a Path,
    partition: u32,
    base: Offset,
    counters: &'a Counters,
}

impl Place<'_> {
    fn open_last(&self) -> io::Result<Last> {
        let file = self.disk.open(self.path)?;
        let bytes = file.bytes()?;
        let mut header = vec![0; FILE_HEADER_BYTES];
        let filled = disk::read_full(file.as_ref(), &mut header, 0)?;
        let header = match FileHeader::decode(&header[..filled], self.partition, self.base) {
            Ok(header) => header,
            Err(reason) => {
                // Without the file's id no record can be checked. As many offsets are given up as records may have been in it.
                let begins = self.base + records_max(bytes.saturating_sub(FILE_HEADER_BYTES as u64));
                if begins > self.base {
                    self.report(&Damage { at: 0, from: self.base, to: begins, reason });
                }
                return Ok(Last::NewFile { begins });
            }
        };
        let survey = scan::survey(Arc::clone(&file), header.salt(), self.base, bytes)?;
        let goes_on = judge(&survey, bytes);
        for damage in goes_on.corrupt {
            self.report(&damage);
        }
        if let Some(reason) = goes_on.torn {
            self.counters.torn_tails.fetch_add(1, Ordering::Relaxed);
            let (partition, end) = (self.partition, goes_on.end);
            tracing::warn!(partition, end, file = %self.path.display(), "a write was torn; the log goes on before it: {reason}");
        }
        if goes_on.in_this_file && survey.end_at < bytes {
            file.set_bytes(survey.end_at)?;
        }
        if let Some((_, last_group_at)) = survey.last_group {
            rewrite(file.as_ref(), last_group_at..goes_on.end_at)?;
        }
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        file.sync()?;
        if goes_on.in_this_file {
            return Ok(Last::Here { file: OpenFile::new(header, file, survey.end_at, survey.index), end: goes_on.end });
        }
        if goes_on.end == self.base {
            self.put_aside(file.as_ref(), bytes)?;
        }
        Ok(Last::NewFile { begins: goes_on.end })
    }

    fn report(&self, damage: &Damage) {
        lock(&self.counters.corrupt).insert((self.partition, damage.from));
        let Damage { from: first, to: end, reason, .. } = damage;
        let (partition, file) = (self.partition, self.path.display());
        tracing::error!(partition, first, end, %file, "acknowledged records are damaged; the file is kept: {reason}");
    }

    /// Copies a file that is about to lose its name to another one.
    fn put_aside(&self, file: &dyn DiskFile, bytes: u64) -> io::Result<()> {
        let mut copy = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        let filled = disk::read_full(file, &mut copy, 0)?;
        let aside = self.path.with_extension(format!("{}.damaged", Uuid::new_v4()));
        tracing::warn!(partition = self.partition, file = %aside.display(), "what the torn write left is kept in this file");
        writer::create_whole(self.disk, self.folder, &aside, &copy[..filled]).map(drop)
    }
}

/// Writes bytes once more as they are, so that the next sync takes them to the disk.
fn rewrite(file: &dyn DiskFile, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; REWRITE_BYTES];
    let mut at = range.start;
    while at < range.end {
        let bytes = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
        if disk::read_full(file, &mut buffer[..bytes], at)? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        disk::write_all(file, &buffer[..bytes], at)?;
        at += bytes as u64;
    }
    Ok(())
}

/// The most records that a number of bytes can hold, rounded up.
fn records_max(bytes: u64) -> u64 {
    bytes.div_ceil(RECORD_BYTES_MIN as u64)
}

/// What has to be done with a last file.
#[derive(Debug, PartialEq, Eq)]
struct GoesOn {
    /// The end of the log partition.
    end: Offset,
    /// Where the records before it end in this file.
    end_at: u64,
    /// Whether the file takes more records, after being cut where its valid records end.
    in_this_file: bool,
    /// Damaged records that had been acknowledged.
    corrupt: Vec<Damage>,
    /// Why a write was torn, if one was.
    torn: Option<String>,
}

/// Decides by the table at the head of this module.
fn judge(survey: &Survey, bytes: u64) -> GoesOn {
    let synced = |damage: &&Damage| survey.last_group.is_some_and(|(first, _)| damage.to <= first);
    let mut corrupt: Vec<Damage> = survey.damage.iter().filter(synced).cloned().collect();
    // Damage is in order, so the first that is not known to have been synced begins the torn group.
    let out_of_order = survey.damage.get(corrupt.len());
    let (mut end, end_at) = out_of_order.map_or((survey.end, survey.end_at), |damage| (damage.from, damage.at));
    let mut torn = out_of_order.map(|damage| damage.reason.clone()).or_else(|| survey.tail.clone());
    if survey.unsearched {
        let to = survey.end + records_max(bytes - survey.end_at);
        corrupt.push(Damage { at: survey.end_at, from: survey.end, to, reason: torn.take().unwrap_or_default() });
        end = to;
    }
    GoesOn { end, end_at, in_this_file: corrupt.is_empty() && out_of_order.is_none(), corrupt, torn }
}
