//! What `/readyz` tells.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a commit may take before that is told. Searching a batch for rows that Postgres refuses takes longest.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Why a log partition stands still until an operator does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Halt {
    /// Stable, for alerts.
    pub state: &'static str,
    /// What was found and what to do.
    pub text: String,
}

#[derive(Default)]
struct Inner {
    schema: Option<String>,
    postgres: Option<String>,
    behind: Vec<String>,
    halts: BTreeMap<u32, Halt>,
    held: usize,
    /// Since when workers have been committing, by their numbers.
    commits: BTreeMap<u32, Instant>,
}

/// A commit that goes on; over when it is dropped.
pub(crate) struct Committing<'a> {
    status: &'a Status,
    worker: u32,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.status.with(|inner| inner.commits.remove(&self.worker));
    }
}

/// Shared by the workers and the admin endpoint.
#[derive(Default)]
pub(crate) struct Status(Mutex<Inner>);

impl Status {
    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        // The fields are independent of each other, so a panic elsewhere leaves nothing half done.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes that Postgres answers, or why it does not.
    pub(crate) fn postgres(&self, fault: Option<String>) {
        self.with(|inner| inner.postgres = fault);
    }

    /// Notes that the database has a schema that this build knows, or which one it has.
    pub(crate) fn schema(&self, fault: Option<String>) {
        self.with(|inner| inner.schema = fault);
    }

    /// Notes which experiments are behind and cannot be brought up to date by this build, each with the reason.
    pub(crate) fn behind(&self, experiments: Vec<String>) {
        self.with(|inner| inner.behind = experiments);
    }

    /// Notes that a worker commits.
    pub(crate) fn committing(&self, worker: u32) -> Committing<'_> {
        self.with(|inner| inner.commits.insert(worker, Instant::now()));
        Committing { status: self, worker }
    }

    /// Notes how many log partitions this process owns.
    pub(crate) fn held(&self, count: usize) {
        self.with(|inner| inner.held = count);
    }

    /// Halts a log partition, or lets it go on. Returns whether that is new.
    pub(crate) fn halt(&self, partition: u32, halt: Option<Halt>) -> bool {
        self.with(|inner| match halt {
            Some(halt) => inner.halts.insert(partition, halt.clone()) != Some(halt),
            None => inner.halts.remove(&partition).is_some(),
        })
    }

    /// Returns the states of halted log partitions.
    pub(crate) fn halts(&self) -> BTreeMap<u32, Halt> {
        self.with(|inner| inner.halts.clone())
    }

    /// Returns what is not ready.
    pub(crate) fn unready(&self) -> Option<String> {
        self.with(|inner| {
            if let Some(fault) = &inner.schema {
                return Some(fault.clone());
            }
            if let Some(fault) = &inner.postgres {
                return Some(format!("postgres: {fault}"));
            }
            if let Some((partition, halt)) = inner.halts.iter().next() {
                return Some(format!("log partition {partition}: {}: {}", halt.state, halt.text));
            }
            if !inner.behind.is_empty() {
                return Some(inner.behind.join("; "));
            }
            if let Some((worker, since)) = inner.commits.iter().find(|(_, since)| since.elapsed() > COMMIT_MAX) {
                let seconds = since.elapsed().as_secs();
                return Some(format!(
                    "worker {worker}: its commit has not ended for {seconds} s; does Postgres wait for a lock or a disk?"
                ));
            }
            (inner.held == 0).then(|| "no log partition is leased yet".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_does_not_end_is_told() {
        let status = Status::default();
        status.held(8);
        let commit = status.committing(1);
        tokio::time::advance(COMMIT_MAX).await;
        assert_eq!(status.unready(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let reason = status.unready().expect("it takes too long");
        assert!(reason.starts_with("worker 1: its commit has not ended for 31 s"), "{reason}");
        drop(commit);
        assert_eq!(status.unready(), None);
    }
}
