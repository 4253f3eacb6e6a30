//! Whether the primary is the log that was agreed on.

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
    /// It cannot be told now; the text says why.
    Unreachable(String),
}

/// Compares the primary with an identity. Asks the primary each time: an answer that was kept proves nothing after a
/// connection was lost.
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

/// What is known of the primary.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    pub(super) found: Comparison,
    /// Whether a comparison has ended.
    pub(super) compared: bool,
    /// Failures of the primary so far. A comparison that began before the last one tells nothing about the time after it.
    failures: u64,
}

impl Default for Trust {
    fn default() -> Self {
        Trust { found: Comparison::Unreachable("it was not compared yet".to_owned()), compared: false, failures: 0 }
    }
}

impl Trust {
    /// Returns whether the primary may be given records.
    pub(super) fn is_same(&self) -> bool {
        self.found == Comparison::Same
    }
}

impl Shared {
    /// Returns whether the primary may be given records.
    pub(super) fn is_trusted(&self) -> bool {
        self.trust.borrow().is_same()
    }

    /// Withdraws the trust after a failure of the primary: whoever answers next may be another log.
    pub(super) fn distrust(&self, failure: &AppendError) {
        self.trust.send_modify(|trust| {
            trust.failures += 1;
            if trust.is_same() {
                trust.found = Comparison::Unreachable(failure.to_string());
            }
        });
    }

    /// Refuses to work on another log.
    pub(super) fn refuse_another_log(&self) -> Result<(), AppendError> {
        match &self.trust.borrow().found {
            Comparison::Different(found) => {
                let agreed = self.identity.log_id;
                Err(AppendError::Unavailable(format!("another_log: {found}; the agreed log is {agreed}")))
            }
            Comparison::Same | Comparison::Unreachable(_) => Ok(()),
        }
    }
}

/// The name of the task that compares.
pub(super) const TASK: &str = "spool-trust";

/// Compares at start, after each failure, and now and then; for ever.
pub(super) async fn follow(shared: Arc<Shared>, compare: Arc<dyn Compare>) {
    let options = &shared.options;
    let mut trust = shared.trust.subscribe();
    let mut waits = options.waits();
    let mut remember = options.remember.clone();
    loop {
        shared.background.checkpoint(TASK);
        let failures = trust.borrow().failures;
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
            // Its panic is this task's, which then begins again with the file still to be noted.
            let (noted, file) = noted.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            if let Err(error) = noted {
                tracing::warn!(file = %file.display(), %error, "which log was agreed on cannot be noted; tried again later");
                remember = Some(file);
            }
        }
        shared.trust.send_modify(|trust| {
            trust.compared = true;
            if trust.failures == failures || matches!(found, Comparison::Different(_)) {
                trust.found = found.clone();
            }
        });
        let wait = if found == Comparison::Same {
            waits = options.waits();
            options.compare_every
        } else {
            waits.next().unwrap_or(options.retry_wait_max)
        };
        wait_or_failure(&mut trust, failures, found == Comparison::Same, wait).await;
    }
}

/// Waits; not longer than until the primary fails, if it was well.
async fn wait_or_failure(trust: &mut tokio::sync::watch::Receiver<Trust>, failures: u64, was_well: bool, wait: Duration) {
    if was_well {
        // The time is over, or there was a failure; the sender lives as long as this task.
        let _ = tokio::time::timeout(wait, trust.wait_for(|trust| trust.failures != failures)).await;
    } else {
        tokio::time::sleep(wait).await;
    }
}

/// Says once what has changed.
fn tell(shared: &Shared, found: &Comparison) {
    let before = shared.trust.borrow().clone();
    let log_id = shared.identity.log_id;
    match found {
        Comparison::Same if !before.is_same() => tracing::info!(%log_id, "the log is reached and is the agreed one"),
        Comparison::Different(other) if *found != before.found => {
            tracing::error!(%log_id, "another_log: {other}; nothing is sent to it, and appends are refused");
        }
        Comparison::Unreachable(reason) if before.is_same() || !before.compared => {
            tracing::warn!(%log_id, "the log is not reached: {reason}; records go to the spool");
        }
        _ => {}
    }
}
