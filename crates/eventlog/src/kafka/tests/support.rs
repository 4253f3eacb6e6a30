//! A broker that a test may harm.

use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) use crate::kafka::testing::Operator;

use super::*;

/// A broker of its own, which ends with the value.
pub(super) struct Broker {
    folder: tempfile::TempDir,
    pub(super) address: String,
}

impl Broker {
    /// Starts a broker, if there are to be any in this run: one alone, whose end is felt.
    pub(super) fn start() -> Option<Broker> {
        brokers()?;
        let folder = tempfile::tempdir().expect("a folder");
        let address = kafka(&["start", text(folder.path()), "1"]);
        Some(Broker { folder, address })
    }

    /// Ends the broker at once, as a crash does.
    pub(super) fn kill(&self) {
        let pid = std::fs::read_to_string(self.folder.path().join("1.pid")).expect("the broker's pid");
        self.signal("-KILL");
        // The script takes one that is still dying for one that runs.
        let command = format!("/proc/{}/cmdline", pid.trim());
        while std::fs::read(&command).is_ok_and(|text| !text.is_empty()) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Stops the broker, and lets it go on.
    pub(super) fn freeze(&self) {
        self.signal("-STOP");
    }

    pub(super) fn thaw(&self) {
        self.signal("-CONT");
    }

    /// Starts the broker again after a kill, with its address and its records.
    pub(super) fn start_again(&self) {
        assert_eq!(kafka(&["start", text(self.folder.path())]), self.address);
    }

    fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("1.pid")).expect("the broker's pid");
        let sent = Command::new("kill").args([signal, pid.trim()]).status().expect("kill");
        assert!(sent.success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        kafka(&["stop", text(self.folder.path())]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a folder whose name is text")
}

fn kafka(arguments: &[&str]) -> String {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "..", "deploy", "kafka.sh"].iter().collect();
    let output = Command::new(script).args(arguments).output().expect("the script runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
