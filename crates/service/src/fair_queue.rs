//! How much work of a kind goes on at one time, how much may wait for it, and whose is next.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Gauge;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Permits for work of a kind. Owners whose work waits take turns, so that one who wants much waits for itself.
pub struct FairQueue {
    inner: Arc<Inner>,
    running_max: usize,
    waiting_max: usize,
}

/// Too much waits already: in all, or of this owner, who leaves a quarter to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits already")]
pub struct Full;

/// What a queue shows of itself.
pub struct Gauges {
    /// Work that goes on.
    pub running: Gauge,
    /// Work that waits.
    pub waiting: Gauge,
}

struct Inner {
    state: Mutex<State>,
    gauges: Gauges,
}

struct State {
    running: usize,
    waiting: usize,
    by_owner: HashMap<Uuid, VecDeque<oneshot::Sender<Permit>>>,
    /// Owners whose work waits, the next one first.
    turns: VecDeque<Uuid>,
}

/// Lets one piece of work go on; dropped, the next one gets it.
pub struct Permit {
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
    /// Takes the next work out of its owner's queue; the owner then is the last one in turn.
    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let owner = self.turns.pop_front()?;
        let queue = self.by_owner.get_mut(&owner)?;
        let next = queue.pop_front();
        if queue.is_empty() {
            self.by_owner.remove(&owner);
        } else {
            self.turns.push_back(owner);
        }
        self.waiting -= usize::from(next.is_some());
        next
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        let mut state = inner.state();
        while let Some(next) = state.next() {
            inner.gauges.waiting.decrement(1.0);
            match next.send(Permit { inner: Some(Arc::clone(&inner)) }) {
                Ok(()) => return,
                // It has stopped waiting. Its permit is not dropped as one: it is still ours to give.
                Err(mut unwanted) => unwanted.inner = None,
            }
        }
        state.running -= 1;
        drop(state);
        inner.gauges.running.decrement(1.0);
    }
}

impl FairQueue {
    /// Makes a queue for so much work at a time, while so much waits.
    pub fn new(running_max: usize, waiting_max: usize, gauges: Gauges) -> Self {
        let state = State { running: 0, waiting: 0, by_owner: HashMap::new(), turns: VecDeque::new() };
        FairQueue { inner: Arc::new(Inner { state: Mutex::new(state), gauges }), running_max, waiting_max }
    }

    /// Waits for a permit; may be cancelled.
    /// # Errors
    /// [`Full`], at once.
    pub async fn acquire(&self, owner: Uuid) -> Result<Permit, Full> {
        let gauges = &self.inner.gauges;
        let waiting = {
            let mut state = self.inner.state();
            if state.running < self.running_max && state.waiting == 0 {
                state.running += 1;
                gauges.running.increment(1.0);
                return Ok(Permit { inner: Some(Arc::clone(&self.inner)) });
            }
            let own = state.by_owner.get(&owner).map_or(0, VecDeque::len);
            if state.waiting >= self.waiting_max || own >= self.waiting_max - self.waiting_max / 4 {
                return Err(Full);
            }
            let (sender, receiver) = oneshot::channel();
            if own == 0 {
                state.turns.push_back(owner);
            }
            state.by_owner.entry(owner).or_default().push_back(sender);
            state.waiting += 1;
            gauges.waiting.increment(1.0);
            receiver
        };
        // The sender is dropped unused only with the whole queue.
        waiting.await.map_err(|_| Full)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn queue(running_max: usize, waiting_max: usize) -> Arc<FairQueue> {
        Arc::new(FairQueue::new(running_max, waiting_max, Gauges { running: Gauge::noop(), waiting: Gauge::noop() }))
    }

    /// Begins to wait, and returns when it is in the queue.
    async fn wait(queue: &Arc<FairQueue>, owner: Uuid) -> tokio::task::JoinHandle<Result<Permit, Full>> {
        let before = queue.inner.state().waiting;
        let task = tokio::spawn({
            let queue = Arc::clone(queue);
            async move { queue.acquire(owner).await }
        });
        while queue.inner.state().waiting == before {
            tokio::task::yield_now().await;
        }
        task
    }

    fn is_empty(queue: &FairQueue) {
        let state = queue.inner.state();
        assert_eq!((state.running, state.waiting, state.by_owner.len(), state.turns.len()), (0, 0, 0, 0));
    }

    #[tokio::test]
    async fn some_run_some_wait_and_the_next_is_refused() {
        let queue = queue(1, 2);
        let first = queue.acquire(ONE).await.expect("free");
        let (second, third) = (wait(&queue, ONE).await, wait(&queue, ONE).await);
        assert_eq!(queue.acquire(ONE).await.err(), Some(Full));
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
    async fn owners_take_turns_and_leave_room_to_others() {
        let queue = queue(1, 8);
        let mut running = queue.acquire(ONE).await.expect("free");
        let mut own = Vec::new();
        for _ in 0..6 {
            own.push(wait(&queue, ONE).await);
        }
        assert_eq!(queue.acquire(ONE).await.err(), Some(Full), "three quarters of the waiting are its own");
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
    async fn a_permit_that_nobody_takes_any_more_is_the_next_ones() {
        let queue = queue(1, 4);
        let first = queue.acquire(ONE).await.expect("free");
        let mut waiting = Box::pin(queue.acquire(ONE));
        let is_waiting = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()));
        assert!(is_waiting.await);
        drop(first); // hands its permit to the one that waits, ..
        drop(waiting); // .. which goes without having looked
        queue.acquire(OTHER).await.expect("free again");
    }
}
