//! What `/readyz` tells.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

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
            (inner.held == 0).then(|| "no log partition is leased yet".to_owned())
        })
    }
}
