//! How many queries run at one time, and how many may wait for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Refusal;
use crate::metrics::Metrics;

/// Places for queries.
pub(crate) struct Slots {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    metrics: Arc<Metrics>,
}

/// A place; dropped, the next query gets it.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.metrics.running.decrement(1.0);
    }
}

/// Counts one that waits, also if it stops waiting by being dropped.
struct Waiting<'a>(&'a Slots);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.decrement(1.0);
    }
}

impl Slots {
    pub(crate) fn new(running_max: usize, waiting_max: usize, metrics: Arc<Metrics>) -> Self {
        Slots { running: Arc::new(Semaphore::new(running_max)), waiting: AtomicUsize::new(0), waiting_max, metrics }
    }

    /// Waits for a place.
    /// # Errors
    /// [`Refusal::busy`] at once, if too many wait already.
    pub(crate) async fn take(&self) -> Result<Slot, Refusal> {
        let permit = match self.running.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let before = self.waiting.fetch_add(1, Ordering::Relaxed);
                self.metrics.waiting.increment(1.0);
                let _waiting = Waiting(self);
                if before >= self.waiting_max {
                    self.metrics.busy.increment(1);
                    return Err(Refusal::busy());
                }
                // The semaphore is never closed.
                self.running.clone().acquire_owned().await.map_err(|_| Refusal::internal())?
            }
        };
        self.metrics.running.increment(1.0);
        Ok(Slot { _permit: permit, metrics: self.metrics.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn some_run_some_wait_and_the_next_is_refused() {
        let slots = Arc::new(Slots::new(1, 2, Arc::new(Metrics::new())));
        let first = slots.take().await.expect("free");
        let wait = || {
            let slots = slots.clone();
            tokio::spawn(async move { slots.take().await.map(|_| ()) })
        };
        let (second, third) = (wait(), wait());
        while slots.waiting.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(slots.take().await.map(|_| ()).map_err(|refusal| refusal.code), Err("busy"));
        second.abort();
        assert!(second.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(slots.waiting.load(Ordering::Relaxed), 1, "who stopped waiting makes room");
        drop(first);
        third.await.expect("no panic").expect("its turn came");
        slots.take().await.expect("free again");
    }
}
