//! Halted log partitions: under which state, and when they are looked at again.

use std::collections::BTreeMap;
use std::time::Duration;

use eventlog::ReadError;
use tokio::time::Instant;

use crate::status::Halt;

/// The state of a log partition whose records become dead letters, one after the other.
pub(crate) const TOO_MANY_DEAD_LETTERS: &str = "too_many_dead_letters";
/// The state of a log partition whose commits Postgres refuses for a reason that is no record's.
pub(crate) const COMMIT_REFUSED: &str = "commit_refused";
/// The state of a log partition whose next record was written by a newer version of Weir.
pub(crate) const LOG_VERSION_UNKNOWN: &str = "log_version_unknown";
/// The state of a log partition whose log is not the one that the database was fed from.
pub(crate) const LOG_DIFFERS: &str = "log_differs";

/// Returns the state that a log partition halts under, for errors that do not pass by themselves.
pub(crate) fn halt_of(error: &ReadError) -> Option<Halt> {
    let (state, advice) = match error {
        ReadError::BelowStart { .. } => (
            "offset_below_log_start",
            "records were deleted before they were stored; bring them back, or accept the loss by moving the checkpoint",
        ),
        ReadError::AboveEnd { .. } => (
            "offset_above_log_end",
            "the log has lost records, or is another one; bring the log back that this database was fed from",
        ),
        ReadError::Corrupt { .. } => ("log_corrupt", "look at the log file; acknowledged records in it are damaged"),
        ReadError::OtherLog(_) => (
            LOG_DIFFERS,
            "bring the log back that this database was fed from, or start once with --adopt-log if it is gone for good",
        ),
        ReadError::Unavailable(_) => return None,
    };
    Some(Halt { state, text: format!("{error}; {advice}") })
}

/// The first and the longest pause before a halted log partition is looked at again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// When halted log partitions are looked at again: soon at first, then once a minute.
#[derive(Clone, Debug, Default)]
pub(crate) struct Looks(BTreeMap<u32, (Instant, u32)>);

impl Looks {
    /// Returns whether a halted log partition is to be looked at now, which counts as a look.
    pub(crate) fn is_due(&mut self, partition: u32) -> bool {
        let now = Instant::now();
        let pause = |looks: u32| PAUSES.0.saturating_mul(1 << looks.min(10)).min(PAUSES.1);
        let (due, looks) = self.0.entry(partition).or_insert((now + pause(0), 0));
        if now < *due {
            return false;
        }
        *looks += 1;
        *due = now + pause(*looks);
        true
    }

    /// Forgets a log partition that goes on, or is another process's.
    pub(crate) fn forget(&mut self, partition: u32) {
        self.0.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_halted_log_partition_is_looked_at_once_a_minute() {
        let mut looks = Looks::default();
        let begin = Instant::now();
        let mut at = Vec::new();
        while begin.elapsed() < Duration::from_secs(3_600) {
            if looks.is_due(3) {
                at.push(begin.elapsed().as_secs());
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(at[..6], [5, 15, 35, 75, 135, 195]);
        assert_eq!(at.len(), 3 + (3_600 - 35) / 60);
        looks.forget(3);
        assert!(!looks.is_due(3));
        tokio::time::advance(PAUSES.0).await;
        assert!(looks.is_due(3));
    }
}
