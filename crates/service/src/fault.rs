//! Panics on demand, for tests.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Names tasks that panic whenever they are polled, such as `aggregator/worker-0`, separated by commas.
const VARIABLE: &str = "WEIR_INJECT_PANICS";

/// Panics if the environment names this place, for what is no task of a service.
pub fn checkpoint(place: &str) {
    let named = std::env::var(VARIABLE).unwrap_or_default();
    assert!(!named.split(',').any(|name| name == place), "injected into {place}");
}

/// Which tasks of a service panic, and how often.
pub(crate) struct Faults {
    due: Mutex<HashMap<String, u32>>,
    changed: Notify,
}

impl Faults {
    /// Returns those that the environment names for a service.
    pub(crate) fn of(service: &str) -> Self {
        let named = std::env::var(VARIABLE).unwrap_or_default();
        let of_service = |task: &str| Some((task.strip_prefix(service)?.strip_prefix('/')?.to_owned(), u32::MAX));
        Faults { due: Mutex::new(named.split(',').filter_map(of_service).collect()), changed: Notify::new() }
    }

    pub(crate) fn inject(&self, task: &str) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner).entry(task.to_owned()).or_default() += 1;
        self.changed.notify_waiters();
    }

    /// Runs a task that panics as soon as that is due.
    pub(crate) async fn around<F: Future>(&self, task: &str, work: F) -> F::Output {
        let panics = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.take(task) {
                    return;
                }
                changed.await;
            }
        };
        tokio::select! {
            biased;
            () = panics => panic!("injected into {task}"),
            done = work => done,
        }
    }

    fn take(&self, task: &str) -> bool {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        match due.get_mut(task) {
            Some(times) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }
}
