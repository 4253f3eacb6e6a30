//! What the spool needs of its log beyond the contract: sizes in bytes, and copies of damaged files.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::reader::{Listed, Partition, lock};
use super::{EmbeddedLog, disk, format, writer};
use crate::Offset;

/// How the names of copies of damaged files end.
const DAMAGED: &str = "corrupt";

impl EmbeddedLog {
    /// Returns the offsets of a log partition that can be read, at once.
    /// # Panics
    /// If the log has no such log partition.
    pub(crate) fn range(&self, partition: u32) -> Range<Offset> {
        self.part(partition).offsets()
    }

    /// Returns about how many bytes the records of a log partition take from an offset on: exact for whole files, in
    /// proportion to the records for the one that holds the offset.
    /// # Panics
    /// If the log has no such log partition.
    pub(crate) fn bytes_from(&self, partition: u32, from: Offset) -> u64 {
        let partition = self.part(partition);
        let end = partition.offsets().end;
        let files = lock(&partition.files);
        let active_bytes = files.active.readable.load(Ordering::Acquire);
        let nexts = files.listed.iter().skip(1).map(|next| (next.base, None)).chain([(end, Some(active_bytes))]);
        let share = |(file, (until, active)): (&Listed, (Offset, Option<u64>))| {
            let (all, left) = (until.saturating_sub(file.base), until.saturating_sub(from.max(file.base)));
            let bytes = u128::from(active.unwrap_or(file.bytes));
            // At most `bytes`, since a part is at most the whole.
            if all == 0 { 0 } else { (bytes * u128::from(left) / u128::from(all)) as u64 }
        };
        files.listed.iter().zip(nexts).map(share).sum()
    }

    /// Copies the log file that holds an offset, as it is now, to one of the same name with the ending `.corrupt`, which
    /// trimming leaves alone. A file that is missing needs no copy. Blocks.
    /// # Errors
    /// Whatever the system says; then there is no copy, or the older one.
    pub(crate) fn copy_damaged(&self, partition: u32, offset: Offset) -> io::Result<()> {
        let partition = self.part(partition);
        let base = {
            let files = lock(&partition.files);
            let after = files.listed.partition_point(|file| file.base <= offset);
            after.checked_sub(1).map(|place| files.listed[place].base)
        };
        let Some(base) = base else { return Ok(()) };
        let disk = self.owner.shared.disk.as_ref();
        let path = partition.folder.join(format::file_name(base));
        let file = match disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut bytes = vec![0; usize::try_from(file.bytes()?).map_err(io::Error::other)?];
        let filled = disk::read_full(file.as_ref(), &mut bytes, 0)?;
        let copy: PathBuf = path.with_extension(DAMAGED);
        tracing::error!(partition = partition.number, file = %copy.display(), "damaged records are kept in this file");
        writer::create_whole(disk, &partition.folder, &copy, &bytes[..filled]).map(drop)
    }

    /// Returns how many copies [`EmbeddedLog::copy_damaged`] has left in the log's folders.
    pub(crate) fn damaged_files(&self) -> u64 {
        let shared = &self.owner.shared;
        let copies = |partition: &Partition| {
            let entries = shared.disk.list(&partition.folder).unwrap_or_default();
            entries.iter().filter(|entry| entry.name.ends_with(&format!(".{DAMAGED}"))).count() as u64
        };
        shared.partitions.iter().map(|partition| copies(partition)).sum()
    }

    fn part(&self, partition: u32) -> &Partition {
        &self.owner.shared.partitions[partition as usize]
    }
}
