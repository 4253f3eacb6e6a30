//! The log's own threads and tasks, of which the collector tells as of its own.

use std::sync::Arc;
use std::time::Duration;

use eventlog::background::Deaths;
use eventlog::{Append, AppendError};
use service::{Cause, Health, Tasks};
use tokio::sync::Mutex;

/// How often it is looked whether the log has stopped.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Counts what dies in the log, and ends the collector when the log has stopped for good.
pub(crate) fn spawn(tasks: &Tasks, log: Arc<dyn Append>) {
    let background = log.background();
    background.names().iter().for_each(|name| tasks.health().know(name));
    // Kept beside the task, so that one that is begun again tells nothing twice.
    let deaths = Arc::new(Mutex::new(background.deaths()));
    let health = Arc::clone(tasks.health());
    tasks.spawn_until_stop("log", move || watch(Arc::clone(&log), Arc::clone(&deaths), Arc::clone(&health)));
}

async fn watch(log: Arc<dyn Append>, deaths: Arc<Mutex<Deaths>>, health: Arc<Health>) {
    let mut deaths = deaths.lock().await;
    loop {
        if let Ok(death) = tokio::time::timeout(LOOK_EVERY, deaths.next()).await
            && health.died(&death.task, Cause::Panic(death.panic)).is_some()
        {
            // The log has begun it again by itself.
            health.began(&death.task);
        }
        if let Err(AppendError::Stopped(reason)) = log.ready() {
            health.give_up("log", Cause::Ended(reason), "the log has stopped for good; start again".to_owned());
            return std::future::pending().await;
        }
    }
}
