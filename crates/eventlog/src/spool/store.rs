//! The spool's own log, and small files with its state.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use events::Record;
use uuid::Uuid;

use super::{Opener, Options, remembered, small_file};
use crate::background::Background;
use crate::embedded::{self, EmbeddedLog};
use crate::{Append, AppendError, LogIdentity, Offset, Position, Read, ReadBound, ReadError, StoredRecord};

const TITLE: &str = "weir spool 1";
/// The file in the log's folder that says how far each log partition is drained.
const DRAINED_NAME: &str = "drained";
/// The file that says which log the records wait for.
const PRIMARY_NAME: &str = "primary";

/// A log with what the spool needs beyond its contract.
#[async_trait]
pub(super) trait Store: Append + Read {
    /// Returns the offsets that can be read, at once.
    fn range(&self, partition: u32) -> Range<Offset>;

    /// Returns the bytes of all files.
    fn bytes(&self) -> u64;

    /// Returns about how many bytes the records of a log partition take from an offset on.
    fn bytes_from(&self, partition: u32, from: Offset) -> u64;

    /// Copies the log file that holds an offset to one that trimming leaves alone.
    async fn copy_damaged(&self, partition: u32, offset: Offset) -> io::Result<()>;

    /// Returns how many such copies there are.
    fn damaged_files(&self) -> u64;

    /// Notes durably how far each log partition is drained.
    async fn note_drained(&self, drained: Vec<Offset>) -> io::Result<()>;

    /// Returns what was noted last for this log; nothing if that was never. Blocks.
    fn noted_drained(&self) -> io::Result<Option<Vec<Offset>>>;

    /// Notes durably which log the records wait for. Blocks.
    fn note_primary(&self, primary: LogIdentity) -> io::Result<()>;

    /// Returns which log the records wait for; nothing if that was never noted. Blocks.
    fn noted_primary(&self) -> io::Result<Option<LogIdentity>>;
}

/// A store in a folder.
pub(super) struct DiskStore {
    log: EmbeddedLog,
    /// Where the notes lie.
    folder: PathBuf,
}

impl DiskStore {
    /// Returns what opens the store in a folder, again and again.
    pub(super) fn opener(folder: &Path, partitions: u32, options: &Options, background: Background) -> Opener {
        let folder = folder.to_owned();
        let options = embedded::Options {
            partitions: Some(partitions),
            file_bytes_max: options.file_bytes_max,
            bytes_max: options.bytes_max,
            background,
            ..embedded::Options::default()
        };
        let notes = folder.clone();
        DiskStore::opener_of(notes, move || EmbeddedLog::open(&folder, options.clone()))
    }

    /// Returns what opens the store over a log, with the notes in a folder.
    pub(super) fn opener_of(
        folder: PathBuf,
        open: impl Fn() -> Result<EmbeddedLog, embedded::OpenError> + Send + Sync + 'static,
    ) -> Opener {
        Box::new(move || Ok(Arc::new(DiskStore { log: open()?, folder: folder.clone() })))
    }
}

#[async_trait]
impl Append for DiskStore {
    fn identity(&self) -> LogIdentity {
        self.log.identity()
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        self.log.append(batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.log.ready()
    }
}

#[async_trait]
impl Read for DiskStore {
    fn identity(&self) -> LogIdentity {
        self.log.identity()
    }

    fn is_exclusive(&self) -> bool {
        self.log.is_exclusive()
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.log.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        self.log.read(partition, from, bound).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.log.release(partition, offset).await;
    }
}

#[async_trait]
impl Store for DiskStore {
    fn range(&self, partition: u32) -> Range<Offset> {
        self.log.range(partition)
    }

    fn bytes(&self) -> u64 {
        self.log.stats().bytes
    }

    fn bytes_from(&self, partition: u32, from: Offset) -> u64 {
        self.log.bytes_from(partition, from)
    }

    async fn copy_damaged(&self, partition: u32, offset: Offset) -> io::Result<()> {
        let log = self.log.clone();
        let copy = move || log.copy_damaged(partition, offset);
        tokio::task::spawn_blocking(copy).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn damaged_files(&self) -> u64 {
        self.log.damaged_files()
    }

    async fn note_drained(&self, drained: Vec<Offset>) -> io::Result<()> {
        let (note, log_id) = (self.folder.join(DRAINED_NAME), self.log.identity().log_id);
        let write = move || {
            let drained: Vec<String> = drained.iter().map(Offset::to_string).collect();
            small_file::replace(&note, TITLE, &[("log_id", log_id.to_string()), ("drained", drained.join(" "))])
        };
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn noted_drained(&self) -> io::Result<Option<Vec<Offset>>> {
        let Some([log_id, drained]) = small_file::read(&self.folder.join(DRAINED_NAME), TITLE, ["log_id", "drained"])? else {
            return Ok(None);
        };
        let LogIdentity { log_id: own, partitions } = self.log.identity();
        if Uuid::try_parse(&log_id) != Ok(own) {
            let text = format!("it is of log {log_id}, and this is {own}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let drained: Result<Vec<Offset>, _> = drained.split(' ').map(str::parse).collect();
        match drained {
            Ok(drained) if drained.len() == partitions as usize => Ok(Some(drained)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("expected {partitions} offsets"))),
        }
    }

    fn note_primary(&self, primary: LogIdentity) -> io::Result<()> {
        remembered::remember(&self.folder.join(PRIMARY_NAME), primary)
    }

    fn noted_primary(&self) -> io::Result<Option<LogIdentity>> {
        remembered::remembered(&self.folder.join(PRIMARY_NAME))
    }
}

/// Makes records of what was read, up to the first that is none; also returns when the first one was received.
pub(super) fn decode(read: &[StoredRecord]) -> (Vec<Record>, super::Received) {
    let decode = |stored: &StoredRecord| {
        let bytes: Bytes = stored.bytes.clone();
        Record::from_bytes(bytes).ok()
    };
    let received = read.first().and_then(|first| events::wire::read(&first.bytes).ok());
    (read.iter().map_while(decode).collect(), received.map(|entry| entry.received_at()))
}
