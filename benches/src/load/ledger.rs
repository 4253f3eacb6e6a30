//! The ledger: what the server said about each event, for whoever counts later.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;

use anyhow::Context as _;

use crate::payload::Facts;

/// What is known of an event at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The server has it, by its own word: it must be found exactly once.
    Acknowledged,
    /// The server may have it: it may be found, and not twice.
    Unknown,
    /// The server does not have it, by its own word or because nobody listened: it must not be found.
    Refused,
}

impl State {
    /// Returns the word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Acknowledged => "acknowledged",
            State::Unknown => "unknown",
            State::Refused => "refused",
        }
    }
}

/// A line: state, event id, kind, timestamp and weight, with tabs between them.
pub(super) struct Entry<'a> {
    pub state: State,
    pub facts: &'a Facts,
    pub timestamp: &'a str,
}

impl Entry<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let Facts { id, kind, weight, .. } = self.facts;
        // A Vec takes every byte.
        let _ = writeln!(out, "{}\t{id}\t{}\t{}\t{weight}", self.state.as_str(), kind.as_str(), self.timestamp);
    }
}

/// The file, written by a thread of its own so that no connection waits for the disk.
pub(super) struct Ledger {
    sender: Sender,
    thread: JoinHandle<std::io::Result<()>>,
}

/// Takes lines for the ledger.
#[derive(Clone)]
pub(super) struct Sender(SyncSender<Vec<u8>>);

impl Sender {
    pub(super) fn send(&self, lines: Vec<u8>) {
        // If the thread ended it did so with an error, which `finish` returns.
        let _ = self.0.send(lines);
    }
}

impl Ledger {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut file =
            BufWriter::with_capacity(1 << 20, File::create(path).with_context(|| format!("ledger {}", path.display()))?);
        let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(4096);
        let thread = std::thread::spawn(move || {
            while let Ok(lines) = receiver.recv() {
                file.write_all(&lines)?;
            }
            file.flush()
        });
        Ok(Ledger { sender: Sender(sender), thread })
    }

    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Writes the rest. All senders must be gone.
    pub(super) fn finish(self) -> anyhow::Result<()> {
        drop(self.sender);
        self.thread.join().map_err(|_| anyhow::anyhow!("the ledger's thread panicked"))?.context("the ledger cannot be written")
    }
}
