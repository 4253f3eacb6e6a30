//! Background work of a log: threads and tasks that run as long as the log is open.
//!
//! One that panics is restarted after a pause, and reported by [`Deaths`] to the user of the log, which counts it, shows it to
//! the operator, and ends the process if it happens too often.

use std::any::Any;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long after a panic a thread or task is restarted.
const PAUSE: Duration = Duration::from_secs(1);
/// Deaths that are kept until they are read.
const KEPT_MAX: usize = 64;

/// A panic of a thread or task of a log. It is restarted, unless the log has stopped with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// The thread or task.
    pub task: String,
    /// The panic's text.
    pub panic: String,
}

#[derive(Default)]
struct History {
    /// Deaths so far.
    count: u64,
    /// The last of them.
    last: VecDeque<Death>,
}

/// The threads and tasks of one log, and of the logs that it is made of. Clones share them.
#[derive(Clone, Default)]
pub struct Background(Arc<Inner>);

#[derive(Default)]
struct Inner {
    deaths: watch::Sender<History>,
    names: Mutex<BTreeSet<String>>,
    #[cfg(any(test, feature = "fault-injection"))]
    due: Mutex<std::collections::BTreeMap<String, u32>>,
}

impl std::fmt::Debug for Background {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Background").field("names", &self.names()).finish()
    }
}

impl Background {
    /// Returns the deaths from the log's opening on.
    pub fn deaths(&self) -> Deaths {
        Deaths { history: self.0.deaths.subscribe(), seen: 0 }
    }

    /// Returns the names of what runs, or has run.
    pub fn names(&self) -> Vec<String> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Runs a task until it returns, or the handle is aborted. `begin` makes it, and makes it anew after a panic. Must be called on
    /// a runtime.
    pub(crate) fn task<F>(&self, name: impl Into<String>, mut begin: impl FnMut() -> F + Send + 'static) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let name = self.register(name);
        let background = self.clone();
        tokio::spawn(async move {
            while let Err(panic) = AssertUnwindSafe(async { begin().await }).catch_unwind().await {
                background.died(&name, panic.as_ref());
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    /// Runs a thread until `work` returns; after a panic `work` is called again.
    /// # Errors
    /// The system gives no thread.
    #[cfg(any(test, feature = "kafka"))]
    pub(crate) fn thread(
        &self,
        name: impl Into<String>,
        mut work: impl FnMut() + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        let name = self.register(name);
        let background = self.clone();
        thread::Builder::new().name(name.clone()).spawn(move || {
            while let Err(panic) = catch_unwind(AssertUnwindSafe(&mut work)) {
                background.died(&name, panic.as_ref());
                thread::sleep(PAUSE);
            }
        })
    }

    /// Runs a thread once: after a panic there is nothing that could go on.
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn thread_once(
        &self,
        name: impl Into<String>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        let name = self.register(name);
        let background = self.clone();
        thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                background.died(&name, panic.as_ref());
            }
        })
    }

    fn register(&self, name: impl Into<String>) -> String {
        let name = name.into();
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        name
    }

    fn died(&self, name: &str, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let death = Death { task: name.to_owned(), panic: text.unwrap_or("it has no text").to_owned() };
        self.0.deaths.send_modify(|history| {
            history.count += 1;
            history.last.push_back(death);
            if history.last.len() > KEPT_MAX {
                history.last.pop_front();
            }
        });
    }

    /// Panics here if a test has asked for it.
    #[cfg(any(test, feature = "fault-injection"))]
    pub(crate) fn checkpoint(&self, name: &str) {
        let is_due = {
            let mut due = self.0.due.lock().unwrap_or_else(PoisonError::into_inner);
            due.get_mut(name).is_some_and(|times| {
                let is_due = *times > 0;
                *times -= u32::from(is_due);
                is_due
            })
        };
        let named = std::env::var("WEIR_INJECT_PANICS").unwrap_or_default();
        let is_named = named.split(',').any(|task| task.strip_prefix("log/") == Some(name));
        assert!(!is_due && !is_named, "injected into {name}");
    }

    /// Does nothing in a build that serves.
    #[cfg(not(any(test, feature = "fault-injection")))]
    pub(crate) fn checkpoint(&self, _: &str) {}

    /// Panics a thread or task the next time that it has something to do.
    #[cfg(any(test, feature = "fault-injection"))]
    pub fn inject_panic(&self, name: &str) {
        *self.0.due.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
    }
}

/// The deaths of a log's threads and tasks, one after the other.
pub struct Deaths {
    history: watch::Receiver<History>,
    seen: u64,
}

impl Deaths {
    /// Waits for the next death. May be cancelled. If more than 64 were not read in time, the oldest are left out.
    pub async fn next(&mut self) -> Death {
        loop {
            let next = {
                let history = self.history.borrow_and_update();
                let unseen = (history.count - self.seen).min(history.last.len() as u64);
                self.seen = history.count - unseen;
                history.last.get(history.last.len() - unseen as usize).cloned()
            };
            if let Some(death) = next {
                self.seen += 1;
                return death;
            }
            if self.history.changed().await.is_err() {
                // The log is gone, and whatever it ran.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn what_panics_begins_again_and_is_told() {
        let background = Background::default();
        let mut deaths = background.deaths();
        let count = Arc::new(AtomicU32::new(0));
        let first_panics = |count: &AtomicU32| assert_ne!(count.fetch_add(1, Ordering::Relaxed), 0, "too early");
        let task = background.task("a-task", {
            let count = Arc::clone(&count);
            move || {
                let count = Arc::clone(&count);
                async move { first_panics(&count) }
            }
        });
        task.await.expect("the second one returned");
        assert_eq!(count.swap(0, Ordering::Relaxed), 2);
        let thread = background.thread("a-thread", move || first_panics(&count)).expect("a thread");
        thread.join().expect("the second call returned");
        for expected in ["a-task", "a-thread"] {
            let death = deaths.next().await;
            assert_eq!(death.task, expected);
            assert!(death.panic.contains("too early"), "{}", death.panic);
        }
        assert_eq!(background.names(), ["a-task", "a-thread"]);
    }
}
