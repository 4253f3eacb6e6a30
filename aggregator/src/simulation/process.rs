//! A process: it can be frozen, as by SIGSTOP, and killed.

use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt;
use service::tasks::text_of;
use tokio::sync::Notify;

use super::run::{Run, broke};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Runs,
    Frozen,
    Dead,
}

/// What is polled through it goes on only while it runs; time goes on all the same.
pub(super) struct Process {
    name: String,
    run: Run,
    life: Mutex<Life>,
    died: Notify,
    /// Of futures that were not polled since it is frozen.
    waiting: Mutex<Vec<Waker>>,
}

impl Process {
    pub(super) fn start(run: &Run, name: String) -> Arc<Self> {
        let (life, died, waiting) = (Mutex::new(Life::Runs), Notify::new(), Mutex::default());
        Arc::new(Process { name, run: run.clone(), life, died, waiting })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn freeze(&self) {
        *self.life() = Life::Frozen;
    }

    pub(super) fn thaw(&self) {
        *self.life() = Life::Runs;
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().for_each(Waker::wake);
    }

    pub(super) fn kill(&self) {
        *self.life() = Life::Dead;
        self.died.notify_waiters();
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.life() == Life::Dead
    }

    /// Waits until it is dead.
    pub(super) async fn died(&self) {
        let mut died = pin!(self.died.notified());
        died.as_mut().enable();
        if !self.is_dead() {
            died.await;
        }
    }

    /// Runs a future as a part of it. A panic breaks an invariant.
    pub(super) fn run<F: Future<Output = ()> + Send>(self: &Arc<Self>, future: F) -> impl Future<Output = ()> + Send + use<F> {
        let process = Arc::clone(self);
        let caught = AssertUnwindSafe(future).catch_unwind().map(move |done| {
            if let Err(panic) = done {
                broke!(process.run, NoPanic, "{}: {}", process.name, text_of(panic.as_ref()));
                std::panic::resume_unwind(panic);
            }
        });
        Polled { process: Arc::clone(self), future: Box::pin(caught) }
    }
}

struct Polled<F> {
    process: Arc<Process>,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let life = *self.process.life();
        match life {
            Life::Runs => self.future.as_mut().poll(context),
            Life::Frozen => {
                self.process.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(context.waker().clone());
                Poll::Pending
            }
            Life::Dead => Poll::Pending,
        }
    }
}
