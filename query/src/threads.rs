//! Threads of their own for what computes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Handle, Runtime};

use crate::StartError;

/// A runtime beside the one that serves sockets. Dropped, its threads end as soon as what they compute lets them.
pub(crate) struct Threads(Option<Runtime>);

impl Threads {
    /// Starts this many threads.
    /// # Errors
    /// [`StartError::Threads`].
    pub(crate) fn start(threads: usize) -> Result<Self, StartError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("weir-query").enable_all().build();
        runtime.map(|runtime| Threads(Some(runtime))).map_err(StartError::Threads)
    }

    /// Returns a handle that tasks are spawned by.
    pub(crate) fn handle(&self) -> Handle {
        // Taken out by drop only.
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

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
    /// [`StartError::Threads`].
    pub(crate) fn start(queries: usize, threads_of_each: usize) -> Result<Self, StartError> {
        let threads = (0..queries).map(|_| Threads::start(threads_of_each)).collect::<Result<Vec<_>, _>>()?;
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
