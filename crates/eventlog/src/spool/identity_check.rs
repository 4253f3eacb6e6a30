//! Checks that the primary is the log that was agreed on, by its identity.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Shared, remembered};
use crate::{AppendError, LogIdentity};

/// What a comparison of the primary with the agreed identity has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It is that log.
    Same,
    /// It is another one; the text says which, and what to do.
    Different(String),
    /// It cannot be compared now; the text says why.
    Unreachable(String),
}

/// Compares the primary with an identity. Asks the primary each time: a cached answer is not
/// valid after a connection was lost.
#[async_trait]
pub trait Compare: Send + Sync + 'static {
    /// Compares the primary, as it is reached now, with the agreed identity. May be cancelled at any point.
    async fn compare(&self, agreed: LogIdentity) -> Comparison;
}

#[async_trait]
impl<F, T> Compare for F
where
    F: Fn(LogIdentity) -> T + Send + Sync + 'static,
    T: Future<Output = Comparison> + Send,
{
    async fn compare(&self, agreed: LogIdentity) -> Comparison {
        self(agreed).await
    }
}

/// The result of the last comparison.
#[derive(Clone, Debug)]
pub(super) struct IdentityCheck {
    pub(super) found: Comparison,
    /// Whether a comparison has ended.
    pub(super) compared: bool,
    /// Failures of the primary so far. The result of a comparison that began before the last one is stale.
    failures: u64,
}

impl Default for IdentityCheck {
    fn default() -> Self {
        IdentityCheck { found: Comparison::Unreachable("it has not been compared yet".to_owned()), compared: false, failures: 0 }
    }
}

impl IdentityCheck {
    /// Returns whether the primary may be given records.
    pub(super) fn is_same(&self) -> bool {
        self.found == Comparison::Same
    }
}

impl Shared {
    /// Returns whether the primary may be given records.
    pub(super) fn is_agreed_log(&self) -> bool {
        self.identity_check.borrow().is_same()
    }

    /// Marks the primary as not compared after it failed: what answers next may be another log.
    pub(super) fn invalidate_comparison(&self, failure: &AppendError) {
        self.identity_check.send_modify(|check| {
            check.failures += 1;
            if check.is_same() {
                check.found = Comparison::Unreachable(failure.to_string());
            }
        });
    }

    /// Returns an error if the primary is another log.
    pub(super) fn refuse_another_log(&self) -> Result<(), AppendError> {
        match &self.identity_check.borrow().found {
            Comparison::Different(found) => {
                let agreed = self.identity.log_id;
                Err(AppendError::Unavailable(format!("another_log: {found}; the agreed log is {agreed}")))
            }
            Comparison::Same | Comparison::Unreachable(_) => Ok(()),
        }
    }
}

/// The name of the task that compares.
pub(super) const TASK: &str = "spool-identity";

/// Compares at start, after each failure, and periodically; never returns.
pub(super) async fn follow(shared: Arc<Shared>, compare: Arc<dyn Compare>) {
    let options = &shared.options;
    let mut check = shared.identity_check.subscribe();
    let mut waits = options.waits();
    let mut remember = options.remember.clone();
    loop {
        shared.background.checkpoint(TASK);
        let failures = check.borrow().failures;
        let found = tokio::time::timeout(options.compare_wait_max, compare.compare(shared.identity)).await;
        let found = found.unwrap_or_else(|_| {
            Comparison::Unreachable(format!("no answer within {} s", options.compare_wait_max.as_secs_f64()))
        });
        tell(&shared, &found);
        if found == Comparison::Same
            && let Some(file) = remember.take()
        {
            let identity = shared.identity;
            let noted = tokio::task::spawn_blocking(move || (remembered::remember(&file, identity), file)).await;
            // Its panic is this task's, which then restarts with the file still to be noted.
            let (noted, file) = noted.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            if let Err(error) = noted {
                tracing::warn!(file = %file.display(), %error, "the identity of the log cannot be written; trying again later");
                remember = Some(file);
            }
        }
        shared.identity_check.send_modify(|check| {
            check.compared = true;
            if check.failures == failures || matches!(found, Comparison::Different(_)) {
                check.found = found.clone();
            }
        });
        let wait = if found == Comparison::Same {
            waits = options.waits();
            options.compare_every
        } else {
            waits.next().unwrap_or(options.retry_wait_max)
        };
        wait_or_failure(&mut check, failures, found == Comparison::Same, wait).await;
    }
}

/// Waits; not longer than until the primary fails, if it was well.
async fn wait_or_failure(check: &mut tokio::sync::watch::Receiver<IdentityCheck>, failures: u64, was_well: bool, wait: Duration) {
    if was_well {
        // The time is over, or there was a failure; the sender lives as long as this task.
        let _ = tokio::time::timeout(wait, check.wait_for(|check| check.failures != failures)).await;
    } else {
        tokio::time::sleep(wait).await;
    }
}

/// Logs a change, once.
fn tell(shared: &Shared, found: &Comparison) {
    let before = shared.identity_check.borrow().clone();
    let log_id = shared.identity.log_id;
    match found {
        Comparison::Same if !before.is_same() => tracing::info!(%log_id, "the log is reached and is the agreed one"),
        Comparison::Different(other) if *found != before.found => {
            tracing::error!(%log_id, "another_log: {other}; nothing is sent to it, and appends are refused");
        }
        Comparison::Unreachable(reason) if before.is_same() || !before.compared => {
            tracing::warn!(%log_id, "the log cannot be reached: {reason}; records go to the spool");
        }
        _ => {}
    }
}
