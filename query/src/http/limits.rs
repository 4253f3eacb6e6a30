//! How many queries run at one time, how many may wait for them, and whose is next.

use ::metrics::Counter;
use service::fair_queue::{FairQueue, Full, Gauges, Permit};
use uuid::Uuid;

use crate::http::error::ApiError;
use crate::metrics::Metrics;

/// Permits for queries. Projects take turns.
pub(crate) struct QueryQueue {
    queue: FairQueue,
    busy: Counter,
}

impl QueryQueue {
    pub(crate) fn new(running_max: usize, waiting_max: usize, metrics: &Metrics) -> Self {
        let gauges = Gauges { running: metrics.running.clone(), waiting: metrics.waiting.clone() };
        QueryQueue { queue: FairQueue::new(running_max, waiting_max, gauges), busy: metrics.busy.clone() }
    }

    /// Waits for a permit.
    /// # Errors
    /// [`ApiError::busy`] at once, if too many wait already.
    pub(crate) async fn acquire(&self, project: Uuid) -> Result<Permit, ApiError> {
        self.queue.acquire(project).await.map_err(|Full| {
            self.busy.increment(1);
            ApiError::busy()
        })
    }
}
