//! A primary that fails on demand, and the steps at which the process may end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use events::Record;

use super::super::in_memory::Gate;
use super::super::partition::lock;
use crate::memory::MemoryLog;
use crate::{Append, AppendError, LogIdentity, Position};

/// Log partitions of the logs in these tests.
pub(super) const PARTITIONS: u32 = 4;

/// Points in time at which the process can be made to end: from a chosen one on, nothing goes on.
#[derive(Clone, Default)]
pub(super) struct Steps {
    state: Arc<Mutex<(u64, Option<u64>)>>,
    crashed: Arc<tokio::sync::Notify>,
}

impl Steps {
    /// Ends the process at the step of this number, counted from 1.
    pub(super) fn crash_at(step: u64) -> Self {
        let steps = Steps::default();
        lock(&steps.state).1 = Some(step);
        steps
    }

    /// Waits until the process has ended.
    pub(super) async fn crashed(&self) {
        self.crashed.notified().await;
        self.crashed.notify_one();
    }

    pub(super) fn passed(&self) -> u64 {
        lock(&self.state).0
    }
}

#[async_trait]
impl Gate for Steps {
    /// Passes a step, or never returns.
    async fn pass(&self, _: u64) {
        let goes_on = {
            let mut state = lock(&self.state);
            state.0 += 1;
            state.1.is_none_or(|crash| state.0 < crash)
        };
        if !goes_on {
            self.crashed.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// What a call of the primary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Works,
    /// Takes so long.
    Slow(Duration),
    /// Takes so long, and stores the records even if nobody waits any more.
    Late(Duration),
    /// Never answers; the records are not stored.
    Hangs,
    Unavailable,
    /// Stores this share of each log partition's records, of 4 quarters, and does not know it.
    Unknown(usize),
    Stopped,
}

/// A log in memory that fails as it is told.
#[derive(Clone)]
pub(super) struct Primary {
    pub(super) log: MemoryLog,
    pub(super) steps: Steps,
    state: Arc<Mutex<PrimaryState>>,
}

struct PrimaryState {
    /// What calls do, one after the other; then `usual`.
    next: VecDeque<Way>,
    usual: Way,
    /// Whose log answers now; a broker may come back as another one.
    answers: Option<MemoryLog>,
    appends: u64,
    largest: usize,
}

impl Primary {
    pub(super) fn new(steps: Steps) -> Self {
        Primary::over(MemoryLog::new(PARTITIONS), steps)
    }

    pub(super) fn over(log: MemoryLog, steps: Steps) -> Self {
        let state = PrimaryState { next: VecDeque::new(), usual: Way::Works, answers: None, appends: 0, largest: 0 };
        Primary { log, steps, state: Arc::new(Mutex::new(state)) }
    }

    /// Says what calls do from now on.
    pub(super) fn set(&self, way: Way) {
        let mut state = lock(&self.state);
        state.next.clear();
        state.usual = way;
    }

    /// Says what the next call does.
    pub(super) fn push(&self, way: Way) {
        lock(&self.state).next.push_back(way);
    }

    /// Lets another log answer in its place.
    pub(super) fn replace(&self, log: Option<MemoryLog>) {
        lock(&self.state).answers = log;
    }

    /// Calls so far, and the largest batch since the last time.
    pub(super) fn calls(&self) -> (u64, usize) {
        let mut state = lock(&self.state);
        (state.appends, std::mem::take(&mut state.largest))
    }

    fn answering(&self) -> MemoryLog {
        lock(&self.state).answers.clone().unwrap_or_else(|| self.log.clone())
    }

    /// What an honest comparison finds.
    pub(super) fn compare(&self, agreed: LogIdentity) -> super::Comparison {
        let way = lock(&self.state).usual;
        let found = Append::identity(&self.answering());
        match way {
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) if found == agreed => super::Comparison::Same,
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) => {
                super::Comparison::Different(format!("log {} answers", found.log_id))
            }
            Way::Unavailable | Way::Hangs | Way::Stopped => super::Comparison::Unreachable("down".to_owned()),
        }
    }
}

#[async_trait]
impl Append for Primary {
    fn identity(&self) -> LogIdentity {
        Append::identity(&self.log)
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        let (way, log) = {
            let mut state = lock(&self.state);
            state.appends += 1;
            state.largest = state.largest.max(batch.len());
            (state.next.pop_front().unwrap_or(state.usual), state.answers.clone().unwrap_or_else(|| self.log.clone()))
        };
        self.steps.pass(0).await;
        let appended = match way {
            Way::Works => log.append(batch).await,
            Way::Slow(wait) => {
                tokio::time::sleep(wait).await;
                log.append(batch).await
            }
            Way::Late(wait) => {
                let late = async move {
                    tokio::time::sleep(wait).await;
                    log.append(batch).await
                };
                tokio::spawn(late).await.unwrap_or_else(|error| Err(AppendError::Unknown(error.to_string())))
            }
            Way::Hangs => std::future::pending().await,
            Way::Unavailable => Err(AppendError::Unavailable("primary: told to".to_owned())),
            Way::Stopped => Err(AppendError::Stopped("primary: told to".to_owned())),
            Way::Unknown(quarters) => {
                for partition in 0..PARTITIONS {
                    let own: Vec<Record> =
                        batch.iter().filter(|record| record.bucket().log_partition(PARTITIONS) == partition).cloned().collect();
                    let stored = own.len() * quarters / 4;
                    log.append(own[..stored].to_vec()).await?;
                }
                Err(AppendError::Unknown("primary: told to".to_owned()))
            }
        };
        self.steps.pass(0).await;
        appended
    }

    fn ready(&self) -> Result<(), AppendError> {
        match lock(&self.state).usual {
            Way::Works | Way::Slow(_) | Way::Late(_) | Way::Unknown(_) => Ok(()),
            Way::Stopped => Err(AppendError::Stopped("primary: told to".to_owned())),
            Way::Hangs | Way::Unavailable => Err(AppendError::Unavailable("primary: told to".to_owned())),
        }
    }
}
