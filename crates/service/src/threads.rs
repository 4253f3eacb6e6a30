//! Threads of their own for what computes: whoever keeps a processor for long must not hold up connections and health.

use std::io;

use crate::priority;
use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime beside the one that serves sockets, whose threads give way to that one's and leave one processor alone. Dropped, its threads end as soon as what they compute lets them.
pub struct Threads(Option<Runtime>);

impl Threads {
    /// Starts this many threads. The system shows 15 bytes of their name.
    /// # Errors
    /// If the system gives none.
    pub fn start(name: &str, threads: usize) -> io::Result<Self> {
        Self::built_by(Builder::new_multi_thread().on_thread_start(priority::give_way), name, threads)
    }

    /// The same in a process that is [set aside](priority::set_aside) as a whole: its threads take what it was left.
    /// # Errors
    /// If the system gives none.
    pub fn start_aside(name: &str, threads: usize) -> io::Result<Self> {
        Self::built_by(&mut Builder::new_multi_thread(), name, threads)
    }

    fn built_by(builder: &mut Builder, name: &str, threads: usize) -> io::Result<Self> {
        let runtime = builder.worker_threads(threads).thread_name(name).enable_all().build();
        runtime.map(|runtime| Threads(Some(runtime)))
    }

    /// Returns a handle that tasks are spawned by.
    pub fn handle(&self) -> Handle {
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
