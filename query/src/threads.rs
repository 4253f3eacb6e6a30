//! Threads of their own for queries.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use service::Threads;
use tokio::runtime::Handle;

/// The system shows it beside what they use.
pub(crate) const NAME: &str = "weir-query";

/// Threads for so many queries at one time, for each its own: a query has ended when its threads have no task.
#[derive(Clone)]
pub(crate) struct Places(Arc<Mutex<Vec<Threads>>>);

/// The threads of one query; dropped, they are the next one's.
pub(crate) struct Place {
    places: Places,
    /// None only when it is dropped.
    threads: Option<Threads>,
}

impl Places {
    /// Starts all threads.
    /// # Errors
    /// If the system gives none.
    pub(crate) fn start(queries: usize, threads_of_each: usize) -> io::Result<Self> {
        let threads = (0..queries).map(|_| Threads::start(NAME, threads_of_each)).collect::<Result<Vec<_>, _>>()?;
        Ok(Places(Arc::new(Mutex::new(threads))))
    }

    /// Takes those of a place; none if more queries run than there are.
    pub(crate) fn take(&self) -> Option<Place> {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Place { places: self.clone(), threads: Some(threads) })
    }
}

impl Place {
    /// Returns a handle that tasks are spawned by.
    pub(crate) fn handle(&self) -> Handle {
        self.threads.as_ref().map_or_else(Handle::current, Threads::handle)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.lock().unwrap_or_else(PoisonError::into_inner).extend(self.threads.take());
    }
}
