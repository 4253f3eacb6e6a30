//! The ledger: what was about to be sent, and what was answered, a line at a time, on a disk that no scenario harms.
//!
//! `intent FIRST COUNT` is there before the first byte of a request. `again FIRST COUNT` is a request that was acknowledged and is sent once more, as
//! proxies and impatient clients do. Then `acknowledged FIRST COUNT NUMBER=CODE=FIELD ..`, with the events of it that were rejected, or `unknown FIRST
//! COUNT WHY` and another try with the same bytes, or `refused FIRST COUNT WHY`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, bail};

/// The file, written line by line: what a line says has happened, or is about to.
pub(super) struct Ledger {
    path: PathBuf,
    file: Mutex<File>,
}

impl Ledger {
    pub(super) fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file = File::create(&path).with_context(|| format!("ledger {}", path.display()))?;
        Ok(Ledger { path, file: Mutex::new(file) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a line.
    /// # Errors
    /// What the disk says; a run without its ledger proves nothing and has to end.
    pub(super) fn note(&self, line: &str) -> anyhow::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.write_all(format!("{line}\n").as_bytes()).with_context(|| format!("ledger {}", self.path.display()))
    }
}

/// What a ledger says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Numbers of events that were sent, or about to be.
    pub sent: BTreeSet<u64>,
    /// Of requests that were acknowledged, but for those events that were rejected.
    pub acknowledged: BTreeSet<u64>,
    /// By which codes and fields an event was rejected, at whichever try.
    pub rejected: BTreeMap<u64, BTreeSet<(String, String)>>,
    /// Requests, and how many of them were sent a second time on purpose.
    pub requests: u64,
    pub again: u64,
    /// Tries whose outcome was not known, by the reason.
    pub unknown: BTreeMap<String, u64>,
    /// Requests that were refused for good, by the reason. No client deserved it.
    pub refused: BTreeMap<String, u64>,
    /// Events whose outcome was unknown, and was known at the end.
    pub resolved: u64,
}

impl Told {
    /// Reads a ledger.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("ledger {}", path.display()))?;
        let mut told = Told::default();
        let mut in_doubt = BTreeSet::new();
        for line in text.lines() {
            told.add(line, &mut in_doubt).with_context(|| format!("ledger {}: {line:?}", path.display()))?;
        }
        told.resolved = in_doubt.intersection(&told.acknowledged).count() as u64;
        Ok(told)
    }

    fn add(&mut self, line: &str, in_doubt: &mut BTreeSet<u64>) -> anyhow::Result<()> {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().context("a word is missing");
        let (what, first, count) = (word()?, word()?.parse::<u64>()?, word()?.parse::<u64>()?);
        let events: Range<u64> = first..first + count;
        match what {
            "intent" | "again" => {
                self.requests += 1;
                self.again += u64::from(what == "again");
                self.sent.extend(events);
            }
            "acknowledged" => {
                let mut rejected = BTreeSet::new();
                for one in words.next().unwrap_or_default().split_whitespace() {
                    let (number, why) = one.split_once('=').context("a rejection is NUMBER=CODE=FIELD")?;
                    let (code, field) = why.split_once('=').context("a rejection is NUMBER=CODE=FIELD")?;
                    let number = number.parse()?;
                    rejected.insert(number);
                    self.rejected.entry(number).or_default().insert((code.to_owned(), field.to_owned()));
                }
                self.acknowledged.extend(events.filter(|number| !rejected.contains(number)));
            }
            "unknown" => {
                in_doubt.extend(events);
                *self.unknown.entry(words.next().context("no reason")?.to_owned()).or_default() += 1;
            }
            "refused" => *self.refused.entry(words.next().context("no reason")?.to_owned()).or_default() += 1,
            _ => bail!("found {what:?}; intent, again, acknowledged, unknown and refused are accepted"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::create(folder.path().join("ledger")).expect("a file");
        for line in [
            "intent 0 3",
            "unknown 0 3 503 log_unavailable",
            "acknowledged 0 3 1=nul_byte=name",
            "intent 3 2",
            "unknown 3 2 no answer in time",
            "again 0 3",
        ] {
            ledger.note(line).expect("written");
        }
        let told = Told::read(ledger.path()).expect("reads");
        assert_eq!((told.sent.len(), told.requests, told.again, told.resolved), (5, 3, 1, 2));
        assert!(told.acknowledged.iter().eq(&[0, 2]));
        assert_eq!(told.rejected[&1], [("nul_byte".to_owned(), "name".to_owned())].into());
        assert_eq!(told.unknown["no answer in time"], 1);
        ledger.note("lost 1 2").expect("written");
        assert!(Told::read(ledger.path()).is_err());
    }
}
