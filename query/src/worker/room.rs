//! Memory for answers on their way to clients, and each project's share of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

/// The memory that answers may take until they are written, and each project's share of it. In KiB, so that it can be counted.
pub(super) struct Room {
    kib_max: usize,
    kib_of_one_max: usize,
    of_all: Arc<Semaphore>,
    /// Of those who have or want any.
    of_one: Mutex<HashMap<Uuid, Weak<Semaphore>>>,
}

/// Room of one answer; dropped, it is given back. With the last one of a project its share is forgotten.
pub(super) struct Taken {
    _of_all: OwnedSemaphorePermit,
    _of_one: OwnedSemaphorePermit,
}

impl Room {
    /// Makes it, with so many bytes, so many of them one project's at most.
    pub(super) fn new(bytes_max: usize, bytes_of_one_max: usize) -> Self {
        let (kib_max, kib_of_one_max) = (bytes_max / 1_024, bytes_of_one_max / 1_024);
        Room { kib_max, kib_of_one_max, of_all: Arc::new(Semaphore::new(kib_max)), of_one: Mutex::default() }
    }

    /// Waits for room for an answer; one larger than its project's share takes all of that. May be cancelled.
    pub(super) async fn take(&self, project: Uuid, bytes: usize) -> Option<Taken> {
        let kib = u32::try_from((bytes / 1_024 + 1).min(self.kib_of_one_max)).unwrap_or(u32::MAX);
        // Its own first: while that is used up it is in nobody's way.
        let of_one = self.share(project).acquire_many_owned(kib).await.ok()?;
        let of_all = Arc::clone(&self.of_all).acquire_many_owned(kib).await.ok()?;
        Some(Taken { _of_all: of_all, _of_one: of_one })
    }

    fn share(&self, project: Uuid) -> Arc<Semaphore> {
        let mut of_one = self.of_one.lock().unwrap_or_else(PoisonError::into_inner);
        of_one.retain(|_, share| share.strong_count() > 0);
        if let Some(share) = of_one.get(&project).and_then(Weak::upgrade) {
            return share;
        }
        let share = Arc::new(Semaphore::new(self.kib_of_one_max));
        of_one.insert(project, Arc::downgrade(&share));
        share
    }

    /// Returns the bytes that are taken.
    pub(super) fn taken(&self) -> usize {
        self.kib_max.saturating_sub(self.of_all.available_permits()) * 1_024
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use super::*;
    use crate::config::Limits;

    /// Looks once whether there is room.
    async fn poll(mut take: Pin<&mut impl Future<Output = Option<Taken>>>) -> Poll<Option<Taken>> {
        poll_fn(|context| Poll::Ready(take.as_mut().poll(context))).await
    }

    #[tokio::test]
    async fn one_project_leaves_room_for_an_answer_of_another() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let room = Room::new(256 * 1_024, 192 * 1_024);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(room.take(one, 63 * 1_024).await.expect("room"));
        }
        let mut more = pin!(room.take(one, 0));
        assert!(poll(more.as_mut()).await.is_pending(), "its share is used up");
        let others = poll(pin!(room.take(other, 63 * 1_024))).await;
        assert!(matches!(others, Poll::Ready(Some(_))), "the rest is for others");
        assert_eq!(room.taken(), 256 * 1_024);
        drop((held.pop(), others));
        let more = more.await.expect("room");
        assert_eq!(room.taken(), 2 * 64 * 1_024 + 1_024);
        drop((held, more));
        assert_eq!(room.taken(), 0);
        assert!(room.take(other, usize::MAX).await.is_some(), "what is larger than the share takes all of it");
        assert_eq!((room.taken(), room.of_one.lock().expect("free").len()), (0, 1), "and none is kept for who has none");
    }

    #[test]
    fn a_share_leaves_room_for_one_more_answer() {
        let limits = Limits::default();
        let left = limits.answers_bytes_max - limits.answers_bytes_of_one_max();
        assert!(left > limits.answer_bytes_max, "{left}");
        let small = Limits { answers_bytes_max: 2_000, ..limits };
        assert_eq!(small.answers_bytes_of_one_max(), 1_000, "where there is not room for two, half of it");
    }
}
