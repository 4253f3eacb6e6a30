//! How many queries run at one time, how many may wait for them, and who is next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::http::error::ApiError;
use crate::metrics::Metrics;

/// Places for queries. Projects that wait take turns, so that one that asks much waits for itself.
pub(crate) struct QueryQueue {
    inner: Arc<Inner>,
    running_max: usize,
    waiting_max: usize,
}

struct Inner {
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
    by_project: HashMap<Uuid, VecDeque<oneshot::Sender<QueryPermit>>>,
    /// Projects with waiting queries, the next one first.
    turns: VecDeque<Uuid>,
}

/// A place; dropped, the next query gets it.
pub(crate) struct QueryPermit {
    /// None: it was handed on.
    inner: Option<Arc<Inner>>,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counts and queues change together within one call, none of which panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next query out of its queue, whose project then is the last one in turn.
    fn next(&mut self) -> Option<oneshot::Sender<QueryPermit>> {
        let project = self.turns.pop_front()?;
        let queue = self.by_project.get_mut(&project)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.by_project.remove(&project);
        } else {
            self.turns.push_back(project);
        }
        self.waiting -= usize::from(next.is_some());
        next
    }
}

impl Drop for QueryPermit {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let mut state = inner.state();
        while let Some(next) = state.next() {
            inner.metrics.waiting.decrement(1.0);
            match next.send(QueryPermit { inner: Some(Arc::clone(&inner)) }) {
                Ok(()) => return,
                // It has stopped waiting. Its permit is not dropped as one: the place is still ours.
                Err(mut unwanted) => unwanted.inner = None,
            }
        }
        state.running -= 1;
        drop(state);
        inner.metrics.running.decrement(1.0);
    }
}

impl QueryQueue {
    pub(crate) fn new(running_max: usize, waiting_max: usize, metrics: Arc<Metrics>) -> Self {
        QueryQueue { inner: Arc::new(Inner { state: Mutex::default(), metrics }), running_max, waiting_max }
    }

    /// Waits for a place.
    /// # Errors
    /// [`ApiError::busy`] at once, if too many wait already: in all, or of this project, which leaves a quarter to others.
    pub(crate) async fn acquire(&self, project: Uuid) -> Result<QueryPermit, ApiError> {
        let metrics = &self.inner.metrics;
        let waiting = {
            let mut state = self.inner.state();
            if state.running < self.running_max && state.waiting == 0 {
                state.running += 1;
                metrics.running.increment(1.0);
                return Ok(QueryPermit { inner: Some(Arc::clone(&self.inner)) });
            }
            let own = state.by_project.get(&project).map_or(0, VecDeque::len);
            if state.waiting >= self.waiting_max || own >= self.waiting_max - self.waiting_max / 4 {
                metrics.busy.increment(1);
                return Err(ApiError::busy());
            }
            let (sender, receiver) = oneshot::channel();
            if own == 0 {
                state.turns.push_back(project);
            }
            state.by_project.entry(project).or_default().push_back(sender);
            state.waiting += 1;
            metrics.waiting.increment(1.0);
            receiver
        };
        // The sender is dropped unused only with the whole queue.
        waiting.await.map_err(|_| ApiError::internal())
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn queue(running_max: usize, waiting_max: usize) -> Arc<QueryQueue> {
        Arc::new(QueryQueue::new(running_max, waiting_max, Arc::new(Metrics::new(crate::metrics::meter()))))
    }

    /// Begins to wait, and returns when it is in the queue.
    async fn wait(queue: &Arc<QueryQueue>, project: Uuid) -> tokio::task::JoinHandle<Result<QueryPermit, ApiError>> {
        let before = queue.inner.state().waiting;
        let task = tokio::spawn({
            let queue = Arc::clone(queue);
            async move { queue.acquire(project).await }
        });
        while queue.inner.state().waiting == before {
            tokio::task::yield_now().await;
        }
        task
    }

    fn is_empty(queue: &QueryQueue) {
        let state = queue.inner.state();
        assert_eq!((state.running, state.waiting, state.by_project.len(), state.turns.len()), (0, 0, 0, 0));
    }

    async fn code(queue: &QueryQueue, project: Uuid) -> Option<&'static str> {
        queue.acquire(project).await.err().map(|error| error.code)
    }

    #[tokio::test]
    async fn some_run_some_wait_and_the_next_is_refused() {
        let queue = queue(1, 2);
        let first = queue.acquire(ONE).await.expect("free");
        let (second, third) = (wait(&queue, ONE).await, wait(&queue, ONE).await);
        assert_eq!(code(&queue, ONE).await, Some("busy"));
        second.abort();
        assert!(second.await.is_err_and(|error| error.is_cancelled()));
        drop(first);
        let third = third.await.expect("no panic").expect("its turn came, after one that waits no longer");
        assert_eq!(queue.inner.state().running, 1);
        drop(third);
        queue.acquire(ONE).await.expect("free again");
        is_empty(&queue);
    }

    #[tokio::test]
    async fn projects_take_turns_and_leave_room_to_others() {
        let queue = queue(1, 8);
        let mut running = queue.acquire(ONE).await.expect("free");
        let mut own = Vec::new();
        for _ in 0..6 {
            own.push(wait(&queue, ONE).await);
        }
        assert_eq!(code(&queue, ONE).await, Some("busy"), "three quarters of the waiting are its own");
        let other = wait(&queue, OTHER).await;
        // One of its own was there before, and then it is the other's turn.
        drop(running);
        running = own.remove(0).await.expect("no panic").expect("its turn");
        drop(running);
        let other = other.await.expect("no panic").expect("its turn, before five others");
        drop(other);
        for waiting in own {
            drop(waiting.await.expect("no panic").expect("its turn"));
        }
        is_empty(&queue);
    }

    #[tokio::test]
    async fn a_place_that_nobody_takes_any_more_is_the_next_ones() {
        let queue = queue(1, 4);
        let first = queue.acquire(ONE).await.expect("free");
        let mut waiting = Box::pin(queue.acquire(ONE));
        let is_waiting = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()));
        assert!(is_waiting.await);
        drop(first); // hands its place to the one that waits, ..
        drop(waiting); // .. which goes without having looked
        queue.acquire(OTHER).await.expect("free again");
    }
}
