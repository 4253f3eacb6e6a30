//! What is settled of a file: `FILE.weir-progress` while the import is not complete, and `FILE.weir-rejected`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::refused::Refused;
use super::send::{Delivered, Destination};
use super::shape::Plan;
use super::source::{REFUSED, Source};

/// 1 had other ids, and other rejected rows.
const VERSION: u32 = 2;

/// What became of the rows that are settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Rows that the collector took, so that they are durable.
    pub(super) accepted: u64,
    /// Rows that repeated an event of their request.
    pub(super) duplicate: u64,
    /// Rows that were refused.
    pub(super) rejected: u64,
}

/// `FILE.weir-progress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    v: u32,
    /// Of the file.
    sha256: String,
    /// Of how its rows become events.
    plan: String,
    /// Of collector and key.
    target: String,
    /// All rows up to this one are settled.
    last_row: u64,
    #[serde(flatten)]
    counts: Counts,
    /// Bytes of `FILE.weir-rejected` that belong to these rows.
    rejected_bytes: u64,
}

/// What is settled, in the order of the rows.
pub(super) struct Ledger {
    file: PathBuf,
    saved: Saved,
    is_saved: bool,
    /// Batches that were answered before an earlier one.
    early: BTreeMap<u64, Delivered>,
    next: u64,
    rejected: RejectedRows,
    form: Refused,
    file_bytes: u64,
}

/// `FILE.weir-rejected`, made with its first row.
struct RejectedRows {
    file: PathBuf,
    out: Option<BufWriter<File>>,
}

/// Adds an ending to a file's whole name.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

impl Ledger {
    /// Takes up what an earlier import of the same file has settled, or starts over.
    /// # Errors
    /// If the files beside the imported one cannot be read or written.
    pub(super) fn open(
        source: &Source,
        form: Refused,
        plan: &Plan,
        destination: &Destination,
        restart: bool,
    ) -> anyhow::Result<Self> {
        let file = beside(&source.path, ".weir-progress");
        let fresh = Saved {
            v: VERSION,
            sha256: hex::encode(source.sha256),
            plan: plan.digest(),
            target: destination.target().to_owned(),
            last_row: 0,
            counts: Counts::default(),
            rejected_bytes: 0,
        };
        let earlier = if restart { None } else { read(&file)? };
        let saved = match earlier {
            Some(earlier) => {
                let differs = [
                    (earlier.sha256 != fresh.sha256, "the file has changed"),
                    (earlier.plan != fresh.plan, "its rows become other events"),
                    (earlier.target != fresh.target, "it went to another collector, or with another key"),
                    (earlier.v != VERSION, "it was made by another version"),
                ];
                match differs.iter().find(|(differs, _)| *differs) {
                    None => earlier,
                    Some((_, why)) => {
                        tracing::warn!(file = %file.display(), "an earlier import is not continued: {why}; all rows are sent");
                        fresh
                    }
                }
            }
            None => fresh,
        };
        let mut rejected = RejectedRows { file: beside(&source.path, REFUSED), out: None };
        rejected.begin(saved.rejected_bytes)?;
        let mut ledger = Ledger { file, saved, is_saved: false, early: BTreeMap::new(), next: 0, rejected, form, file_bytes: 0 };
        // Also tells at once whether there is room and leave for it.
        ledger.save()?;
        Ok(ledger)
    }

    /// Returns the last row up to which all are settled.
    pub(super) fn last_row(&self) -> u64 {
        self.saved.last_row
    }

    /// Returns what became of the settled rows, those of earlier runs too.
    pub(super) fn counts(&self) -> Counts {
        self.saved.counts
    }

    /// Returns the number of settled rows.
    pub(super) fn settled(&self) -> u64 {
        let Counts { accepted, duplicate, rejected } = self.saved.counts;
        accepted + duplicate + rejected
    }

    /// Returns about how many of the file's bytes are settled; 0 before the first batch of this run.
    pub(super) fn settled_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Takes in what became of the batch of a number, counted from 0 in the order of the rows.
    pub(super) fn settle(&mut self, number: u64, delivered: Delivered) -> anyhow::Result<()> {
        self.early.insert(number, delivered);
        while let Some(delivered) = self.early.remove(&self.next) {
            self.next += 1;
            if self.saved.rejected_bytes == 0 && !delivered.rejected.is_empty() {
                self.saved.rejected_bytes += self.rejected.write(&self.form.head())?;
            }
            for (row, rejected) in &delivered.rejected {
                let text = self.form.row(*row, &rejected.fault, &rejected.raw);
                self.saved.rejected_bytes += self.rejected.write(&text)?;
            }
            let counts = &mut self.saved.counts;
            counts.accepted += delivered.accepted;
            counts.duplicate += delivered.duplicate;
            counts.rejected += delivered.rejected.len() as u64;
            self.saved.last_row = delivered.last_row;
            self.file_bytes = delivered.file_bytes;
            self.is_saved = false;
        }
        Ok(())
    }

    /// Saves what is settled, if that has changed: first the rejected rows, then the progress that counts them.
    pub(super) fn save(&mut self) -> anyhow::Result<()> {
        if self.is_saved {
            return Ok(());
        }
        self.rejected.sync()?;
        let write = || -> std::io::Result<()> {
            let new = beside(&self.file, ".new");
            let mut out = File::create(&new)?;
            out.write_all(&serde_json::to_vec_pretty(&self.saved)?)?;
            out.sync_data()?;
            std::fs::rename(&new, &self.file)
        };
        write().with_context(|| {
            format!("{}: the import's progress cannot be saved; import from a folder that can be written to", self.file.display())
        })?;
        self.is_saved = true;
        Ok(())
    }

    /// Ends a complete import: there is nothing to go on with.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        self.rejected.sync()?;
        std::fs::remove_file(&self.file).with_context(|| self.file.display().to_string())
    }
}

/// Reads what was saved; a file that is damaged counts as none, since all rows can be sent again.
fn read(file: &Path) -> anyhow::Result<Option<Saved>> {
    match std::fs::read(file) {
        Ok(bytes) => {
            let saved = serde_json::from_slice(&bytes);
            if let Err(error) = &saved {
                tracing::warn!(file = %file.display(), %error, "the progress of an earlier import cannot be read; all rows are sent");
            }
            Ok(saved.ok())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| file.display().to_string()),
    }
}

impl RejectedRows {
    /// Keeps the first bytes of an earlier run; none means that the file is of another import.
    fn begin(&mut self, bytes: u64) -> anyhow::Result<()> {
        let begin = || -> std::io::Result<()> {
            if bytes == 0 {
                return match std::fs::remove_file(&self.file) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
            }
            let out = OpenOptions::new().write(true).open(&self.file)?;
            out.set_len(bytes)
        };
        begin().with_context(|| format!("{}; --restart starts over", self.file.display()))?;
        if bytes > 0 {
            self.open()?;
        }
        Ok(())
    }

    fn open(&mut self) -> anyhow::Result<&mut BufWriter<File>> {
        let open = || -> std::io::Result<File> {
            let mut out = OpenOptions::new().write(true).create(true).truncate(false).open(&self.file)?;
            out.seek(SeekFrom::End(0))?;
            Ok(out)
        };
        let out = open().with_context(|| self.file.display().to_string())?;
        Ok(self.out.insert(BufWriter::new(out)))
    }

    /// Writes bytes at the end; returns their number.
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<u64> {
        if self.out.is_none() {
            self.open()?;
        }
        if let Some(out) = &mut self.out {
            out.write_all(bytes).with_context(|| self.file.display().to_string())?;
        }
        Ok(bytes.len() as u64)
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.flush().and_then(|()| out.get_ref().sync_data()).with_context(|| self.file.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::import::send::Rejected;
    use crate::commands::import::shape::Dialect;
    use crate::commands::import::source::Fault;
    use crate::commands::import::source::tests::source;

    fn delivered(accepted: u64, rejected: &[u64], last_row: u64) -> Delivered {
        let rejected =
            rejected.iter().map(|row| (*row, Rejected { fault: Fault::new("code", "why"), raw: b"{}".to_vec() })).collect();
        Delivered { accepted, duplicate: 0, rejected, last_row, file_bytes: last_row }
    }

    #[test]
    fn rows_are_settled_in_order_and_taken_up_once() {
        let (source, folder) = source("events.ndjson", b"{}\n");
        let open = |dialect, target: &str, restart| {
            let plan = Plan::new(dialect, &[], false, &source).expect("a plan");
            Ledger::open(&source, source.read().expect("begins").form, &plan, &Destination::closed(target), restart)
                .expect("opens")
        };
        let rejected = folder.path().join("events.ndjson.weir-rejected");
        let lines = || std::fs::read_to_string(&rejected).map_or(0, |text| text.lines().count());

        let mut ledger = open(Dialect::Native, "a", false);
        ledger.settle(1, delivered(4, &[7], 10)).expect("settled");
        assert_eq!((ledger.last_row(), ledger.settled()), (0, 0), "an earlier batch is on its way");
        ledger.settle(0, delivered(3, &[1, 2], 5)).expect("settled");
        assert_eq!((ledger.last_row(), ledger.settled(), ledger.counts().rejected), (10, 10, 3));
        ledger.save().expect("saved");
        // Settled and not saved, as before a kill.
        ledger.settle(2, delivered(0, &[11, 12], 12)).expect("settled");
        ledger.rejected.sync().expect("written");
        assert_eq!(lines(), 5);
        drop(ledger);

        let ledger = open(Dialect::Native, "a", false);
        assert_eq!((ledger.last_row(), ledger.settled(), ledger.counts().rejected), (10, 10, 3));
        assert_eq!(lines(), 3, "rows that come again are named once");
        drop(ledger);
        assert_eq!(open(Dialect::Native, "b", false).last_row(), 0, "another collector");
        assert_eq!(lines(), 0);
        let mut ledger = open(Dialect::Native, "b", false);
        ledger.settle(0, delivered(5, &[], 5)).expect("settled");
        ledger.save().expect("saved");
        assert_eq!(open(Dialect::Impressions, "b", false).last_row(), 0, "other events");
        let mut ledger = open(Dialect::Native, "b", false);
        ledger.settle(0, delivered(5, &[], 5)).expect("settled");
        ledger.save().expect("saved");
        assert_eq!(open(Dialect::Native, "b", true).last_row(), 0, "asked for");
        std::fs::write(folder.path().join("events.ndjson.weir-progress"), "{").expect("written");
        let mut ledger = open(Dialect::Native, "b", false);
        assert_eq!(ledger.last_row(), 0, "damaged");
        ledger.finish().expect("finished");
        assert!(!folder.path().join("events.ndjson.weir-progress").exists());
    }
}
