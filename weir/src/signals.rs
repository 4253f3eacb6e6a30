//! The signals that end a command in good order.

use service::Health;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for SIGINT, SIGTERM and SIGHUP, the closing of a terminal, from its making on.
pub(crate) struct EndSignals([Signal; 3]);

impl EndSignals {
    /// Begins to listen; from now on these signals no longer end the process by themselves.
    /// # Errors
    /// As the system says.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(EndSignals([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    /// Waits for the next one. May be cancelled.
    pub(crate) async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// Waits for the next one, or until a service cannot go on. May be cancelled.
    /// # Errors
    /// Why the service cannot go on.
    pub(crate) async fn next_unless_failed(&mut self, health: &Health) -> anyhow::Result<()> {
        tokio::select! {
            () = self.next() => Ok(()),
            failure = health.failed() => Err(failure.into()),
        }
    }
}
