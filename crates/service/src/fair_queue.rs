//! How much work of a kind goes on at one time, how much of it is one owner's, how much may wait for it, and whose is next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Gauge;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Permits for work of a kind. Owners whose work waits take turns, so that one who wants much waits for itself.
pub struct FairQueue(Arc<Inner>);

/// How much there is to share.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Work that goes on at one time.
    pub running_max: usize,
    /// That of one owner: with less than [`Bounds::running_max`], what is left is for those who have nothing running.
    pub running_of_one_max: usize,
    /// Work that waits. One owner's leaves a quarter to others.
    pub waiting_max: usize,
}

/// Too much waits already: in all, or of this owner.
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
    bounds: Bounds,
    gauges: Gauges,
}

/// While there is a place that the work of some owner may take, none of that owner waits.
#[derive(Default)]
struct State {
    running: usize,
    waiting: usize,
    /// Those who have any, and no others.
    owners: HashMap<Uuid, Owner>,
    /// Owners whose work waits, the next one first.
    turns: VecDeque<Uuid>,
    /// The number of the next work that waits.
    next_number: u64,
}

#[derive(Default)]
struct Owner {
    running: usize,
    /// Work that waits, by its number, which rises.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// Lets one piece of work go on; dropped, the next one gets it.
pub struct Permit {
    inner: Arc<Inner>,
    owner: Uuid,
}

/// Work that waits. Dropped, it leaves at once.
struct Waiting<'a> {
    inner: &'a Arc<Inner>,
    owner: Uuid,
    number: u64,
    turn: oneshot::Receiver<()>,
    /// Its turn has come, and it has its permit.
    is_done: bool,
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Counts and queues change together within one call, none of which panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a place back, and with it all turns that it makes possible.
    fn end(&self, owner: Uuid) {
        let mut state = self.state();
        state.running -= 1;
        if let Some(of_owner) = state.owners.get_mut(&owner) {
            of_owner.running -= 1;
        }
        state.forget_if_idle(owner);
        self.gauges.running.decrement(1.0);
        while let Some(turn) = state.next(&self.bounds) {
            self.gauges.waiting.decrement(1.0);
            self.gauges.running.increment(1.0);
            // Whoever waits for it is there: who goes leaves the queue first.
            let _ = turn.send(());
        }
    }
}

impl State {
    /// Counts work of an owner as running, if there is a place that it may take.
    fn take(&mut self, owner: Uuid, bounds: &Bounds) -> bool {
        if self.running >= bounds.running_max {
            return false;
        }
        let of_owner = self.owners.entry(owner).or_default();
        let may = of_owner.running < bounds.running_of_one_max;
        if may {
            of_owner.running += 1;
            self.running += 1;
        }
        self.forget_if_idle(owner);
        may
    }

    /// Takes the next work that may run out of its owner's queue, counted as running; the owner then is the last one in turn.
    fn next(&mut self, bounds: &Bounds) -> Option<oneshot::Sender<()>> {
        let place = (0..self.turns.len()).find(|place| self.take(self.turns[*place], bounds))?;
        let owner = self.turns.remove(place)?;
        let waiting = &mut self.owners.get_mut(&owner)?.waiting;
        let (_, turn) = waiting.pop_first()?;
        if !waiting.is_empty() {
            self.turns.push_back(owner);
        }
        self.waiting -= 1;
        Some(turn)
    }

    /// Lets work wait, or refuses.
    fn wait(&mut self, owner: Uuid, waiting_max: usize) -> Result<(u64, oneshot::Receiver<()>), Full> {
        let own = self.owners.get(&owner).map_or(0, |of_owner| of_owner.waiting.len());
        if self.waiting >= waiting_max || own >= waiting_max - waiting_max / 4 {
            return Err(Full);
        }
        if own == 0 {
            self.turns.push_back(owner);
        }
        let number = self.next_number;
        self.next_number += 1;
        let (sender, turn) = oneshot::channel();
        self.owners.entry(owner).or_default().waiting.insert(number, sender);
        self.waiting += 1;
        Ok((number, turn))
    }

    /// Takes work out of the queue that waits no longer; none: its turn has come.
    fn leave(&mut self, owner: Uuid, number: u64) -> Option<()> {
        let waiting = &mut self.owners.get_mut(&owner)?.waiting;
        waiting.remove(&number)?;
        if waiting.is_empty() {
            self.turns.retain(|other| *other != owner);
        }
        self.waiting -= 1;
        self.forget_if_idle(owner);
        Some(())
    }

    fn forget_if_idle(&mut self, owner: Uuid) {
        if self.owners.get(&owner).is_some_and(|of_owner| of_owner.running == 0 && of_owner.waiting.is_empty()) {
            self.owners.remove(&owner);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.inner.end(self.owner);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let left = self.inner.state().leave(self.owner, self.number);
        match left {
            Some(()) => self.inner.gauges.waiting.decrement(1.0),
            // Its place was given to it meanwhile.
            None => self.inner.end(self.owner),
        }
    }
}

impl FairQueue {
    /// Makes a queue.
    pub fn new(bounds: Bounds, gauges: Gauges) -> Self {
        FairQueue(Arc::new(Inner { state: Mutex::default(), bounds, gauges }))
    }

    /// Waits for a permit. May be cancelled: what waits no longer is in no one's way.
    /// # Errors
    /// [`Full`], at once.
    pub async fn acquire(&self, owner: Uuid) -> Result<Permit, Full> {
        let inner = &self.0;
        let mut waiting = {
            let mut state = inner.state();
            if state.take(owner, &inner.bounds) {
                inner.gauges.running.increment(1.0);
                return Ok(Permit { inner: Arc::clone(inner), owner });
            }
            let (number, turn) = state.wait(owner, inner.bounds.waiting_max)?;
            inner.gauges.waiting.increment(1.0);
            Waiting { inner, owner, number, turn, is_done: false }
        };
        // The sender is in the queue until it has sent.
        (&mut waiting.turn).await.map_err(|_| Full)?;
        waiting.is_done = true;
        Ok(Permit { inner: Arc::clone(inner), owner })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::task::JoinHandle;

    use super::*;

    const ONE: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn queue(running_max: usize, running_of_one_max: usize, waiting_max: usize) -> Arc<FairQueue> {
        let bounds = Bounds { running_max, running_of_one_max, waiting_max };
        Arc::new(FairQueue::new(bounds, Gauges { running: Gauge::noop(), waiting: Gauge::noop() }))
    }

    /// Begins to wait, and returns when it is in the queue.
    async fn wait(queue: &Arc<FairQueue>, owner: Uuid) -> JoinHandle<Result<Permit, Full>> {
        let before = waiting(queue);
        let task = tokio::spawn({
            let queue = Arc::clone(queue);
            async move { queue.acquire(owner).await }
        });
        while waiting(queue) == before {
            tokio::task::yield_now().await;
        }
        task
    }

    async fn cancel(task: JoinHandle<Result<Permit, Full>>) {
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }

    async fn turn(task: JoinHandle<Result<Permit, Full>>) -> Permit {
        task.await.expect("no panic").expect("its turn")
    }

    fn running(queue: &FairQueue) -> usize {
        queue.0.state().running
    }

    fn waiting(queue: &FairQueue) -> usize {
        queue.0.state().waiting
    }

    fn is_empty(queue: &FairQueue) {
        let state = queue.0.state();
        assert_eq!((state.running, state.waiting, state.owners.len(), state.turns.len()), (0, 0, 0, 0));
    }

    #[tokio::test]
    async fn some_run_some_wait_and_the_next_is_refused() {
        let queue = queue(1, 1, 2);
        let first = queue.acquire(ONE).await.expect("free");
        let second = wait(&queue, ONE).await;
        let third = wait(&queue, OTHER).await;
        assert_eq!(queue.acquire(OTHER).await.err(), Some(Full));
        drop(first);
        let second = turn(second).await;
        assert_eq!((running(&queue), waiting(&queue)), (1, 1));
        drop(second);
        drop(turn(third).await);
        queue.acquire(ONE).await.expect("free again");
        is_empty(&queue);
    }

    #[tokio::test]
    async fn who_waits_no_longer_leaves_at_once_and_makes_room() {
        let queue = queue(1, 1, 4);
        let first = queue.acquire(ONE).await.expect("free");
        let gone = wait(&queue, ONE).await;
        let own = [wait(&queue, ONE).await, wait(&queue, ONE).await];
        let other = wait(&queue, OTHER).await;
        assert_eq!(queue.acquire(Uuid::from_u128(3)).await.err(), Some(Full));
        cancel(gone).await;
        assert_eq!(waiting(&queue), 3, "while nobody's turn has come");
        let last = wait(&queue, OTHER).await;
        // The only one of an owner: with it, its turn goes.
        cancel(other).await;
        cancel(last).await;
        assert_eq!((waiting(&queue), queue.0.state().turns.len()), (2, 1));
        drop(first);
        for waiting in own {
            drop(turn(waiting).await);
        }
        is_empty(&queue);
    }

    #[tokio::test]
    async fn owners_take_turns_and_leave_room_to_others() {
        let queue = queue(1, 1, 8);
        let mut running = queue.acquire(ONE).await.expect("free");
        let mut own = Vec::new();
        for _ in 0..6 {
            own.push(wait(&queue, ONE).await);
        }
        assert_eq!(queue.acquire(ONE).await.err(), Some(Full), "three quarters of the waiting are its own");
        let other = wait(&queue, OTHER).await;
        // One of its own was there before, and then it is the other's turn.
        drop(running);
        running = turn(own.remove(0)).await;
        drop(running);
        drop(turn(other).await);
        for waiting in own {
            drop(turn(waiting).await);
        }
        is_empty(&queue);
    }

    #[tokio::test]
    async fn no_owner_takes_the_last_place_while_it_holds_others() {
        let queue = queue(3, 2, 8);
        let own = [queue.acquire(ONE).await.expect("free"), queue.acquire(ONE).await.expect("free")];
        let more = [wait(&queue, ONE).await, wait(&queue, ONE).await];
        // The place that is left is another's, however much waits, and however often.
        for _ in 0..2 {
            drop(queue.acquire(OTHER).await.expect("free"));
        }
        assert_eq!((running(&queue), waiting(&queue)), (2, 2));
        let other = queue.acquire(OTHER).await.expect("free");
        let others_second = wait(&queue, OTHER).await;
        // All places are taken. One that the other gives back is the other's next one's, not the first one's third.
        drop(other);
        let other = turn(others_second).await;
        assert_eq!((running(&queue), waiting(&queue)), (3, 2));
        let [first, second] = own;
        drop(first);
        let [third, fourth] = more;
        let third = turn(third).await;
        assert_eq!((running(&queue), waiting(&queue)), (3, 1));
        drop((second, third, other));
        drop(turn(fourth).await);
        is_empty(&queue);
    }

    #[tokio::test]
    async fn a_permit_that_nobody_takes_any_more_is_the_next_ones() {
        let queue = queue(1, 1, 4);
        let first = queue.acquire(ONE).await.expect("free");
        let mut waiting = Box::pin(queue.acquire(ONE));
        let is_waiting = std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()));
        assert!(is_waiting.await);
        drop(first); // hands its permit to the one that waits, ..
        drop(waiting); // .. which goes without having looked
        drop(queue.acquire(OTHER).await.expect("free again"));
        is_empty(&queue);
    }
}
