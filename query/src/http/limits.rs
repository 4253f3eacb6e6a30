//! How many queries run at one time, and how many may wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::error::ApiError;
use crate::metrics::Metrics;

/// Places for queries.
pub(crate) struct QueryQueue {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    metrics: Arc<Metrics>,
}

/// A place; dropped, the next query gets it.
pub(crate) struct QueryPermit {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for QueryPermit {
    fn drop(&mut self) {
        self.metrics.running.decrement(1.0);
    }
}

/// Counts one that waits, also if it stops waiting by being dropped.
struct Waiting<'a>(&'a QueryQueue);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.decrement(1.0);
    }
}

impl QueryQueue {
    pub(crate) fn new(running_max: usize, waiting_max: usize, metrics: Arc<Metrics>) -> Self {
        QueryQueue { running: Arc::new(Semaphore::new(running_max)), waiting: AtomicUsize::new(0), waiting_max, metrics }
    }

    /// Waits for a place.
    /// # Errors
    /// [`ApiError::busy`] at once, if too many wait already.
    pub(crate) async fn acquire(&self) -> Result<QueryPermit, ApiError> {
        let permit = match self.running.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let before = self.waiting.fetch_add(1, Ordering::Relaxed);
                self.metrics.waiting.increment(1.0);
                let _waiting = Waiting(self);
                if before >= self.waiting_max {
                    self.metrics.busy.increment(1);
                    return Err(ApiError::busy());
                }
                // The semaphore is never closed.
                self.running.clone().acquire_owned().await.map_err(|_| ApiError::internal())?
            }
        };
        self.metrics.running.increment(1.0);
        Ok(QueryPermit { _permit: permit, metrics: self.metrics.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn some_run_some_wait_and_the_next_is_refused() {
        let queue = Arc::new(QueryQueue::new(1, 2, Arc::new(Metrics::new(crate::metrics::meter()))));
        let first = queue.acquire().await.expect("free");
        let wait = || {
            let queue = queue.clone();
            tokio::spawn(async move { queue.acquire().await.map(|_| ()) })
        };
        let (second, third) = (wait(), wait());
        while queue.waiting.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.acquire().await.map(|_| ()).map_err(|api_error| api_error.code), Err("busy"));
        second.abort();
        assert!(second.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(queue.waiting.load(Ordering::Relaxed), 1, "who stopped waiting makes room");
        drop(first);
        third.await.expect("no panic").expect("its turn came");
        queue.acquire().await.expect("free again");
    }
}
