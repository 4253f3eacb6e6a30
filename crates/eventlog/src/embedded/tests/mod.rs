//! Tests of the embedded log, on the real disk and on a simulated one.

use bytes::Bytes;

use super::*;
use crate::conformance::{self, ALL};

mod damage;
mod faults;
mod model;
mod real_disk;
mod simulated;

use simulated::SimulatedDisk;

/// Options with files so small that every test rotates them.
fn small() -> Options {
    Options { partitions: Some(8), file_bytes_max: 16 * 1024, bytes_max: 64 * 1024 * 1024, ..Options::default() }
}

/// The folder of logs on simulated disks.
fn folder() -> &'static Path {
    Path::new("/log")
}

/// Opens a log with one log partition on a simulated disk.
fn open_one(disk: &SimulatedDisk, file_bytes_max: u64) -> Result<EmbeddedLog, OpenError> {
    let options = Options { partitions: Some(1), file_bytes_max, ..Options::default() };
    EmbeddedLog::open_on(Arc::new(disk.clone()), folder(), options)
}

/// A disk that fails on demand, for logs that others open.
#[derive(Clone)]
pub(crate) struct FailingDisk(SimulatedDisk);

impl Default for FailingDisk {
    fn default() -> Self {
        FailingDisk(SimulatedDisk::new(1))
    }
}

impl FailingDisk {
    /// Opens the log on it.
    pub(crate) fn open(&self, partitions: u32) -> Result<EmbeddedLog, OpenError> {
        let options = Options { partitions: Some(partitions), file_bytes_max: 4 * 1024, ..Options::default() };
        EmbeddedLog::open_on(Arc::new(self.0.clone()), folder(), options)
    }

    /// Lets so many syncs of files fail, from the next one on.
    pub(crate) fn fail_syncs(&self, syncs: u64) {
        self.0.set(|faults| faults.failing_syncs = syncs);
    }
}

/// A record of one of a few users; `number` tells it from others.
fn record(number: u64, bytes: usize) -> Record {
    conformance::record(&format!("user-{}", number % 5), number, bytes)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// What a log partition gives, record by record, damage by damage.
#[derive(Default, PartialEq, Eq)]
struct Contents {
    records: Vec<(Offset, Bytes)>,
    damaged: Vec<Range<Offset>>,
    end: Offset,
}

/// Offsets and checksums say enough in a failure's text.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records = self.records.iter().map(|(offset, bytes)| format!("{offset}:{:08x}", crc32c::crc32c(bytes)));
        write!(f, "end {}, damaged {:?}, records {}", self.end, self.damaged, records.collect::<Vec<_>>().join(" "))
    }
}

/// Reads all of a log partition, after damage too.
async fn contents(log: &EmbeddedLog, partition: u32) -> Contents {
    let Range { start, end } = log.offsets(partition).await.expect("offsets");
    let mut found = Contents { end, ..Contents::default() };
    let mut next = start;
    while next < end {
        match log.read(partition, next, ALL).await {
            Ok(records) => {
                assert!(!records.is_empty(), "nothing at {next}, before the end {end}");
                for record in records {
                    assert_eq!(record.offset, next, "a gap or a duplicate");
                    next += 1;
                    found.records.push((record.offset, record.bytes));
                }
            }
            Err(ReadError::Corrupt { range, .. }) => {
                assert!(range.start <= next && range.end > next && range.end <= end, "{range:?} at {next}, before the end {end}");
                next = range.end;
                found.damaged.push(range);
            }
            Err(error) => panic!("at {next}: {error}"),
        }
    }
    found
}
