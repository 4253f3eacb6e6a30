//! Reports the log's own threads and tasks in the collector's health.

use std::sync::Arc;
use std::time::Duration;

use eventlog::background::Deaths;
use eventlog::{Append, AppendError};
use service::{Cause, Health, Tasks};
use tokio::sync::Mutex;

/// How often to check whether the log has stopped.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// Reports panics of the log, and ends the collector when the log has stopped for good.
pub(crate) fn spawn(tasks: &Tasks, log: Arc<dyn Append>) {
    let background = log.background();
    background.names().iter().for_each(|name| tasks.health().know(name));
    // Outlives the task, so that after a restart of it no death is reported twice.
    let deaths = Arc::new(Mutex::new(background.deaths()));
    let health = Arc::clone(tasks.health());
    tasks.spawn_until_stop("log", move || watch(Arc::clone(&log), Arc::clone(&deaths), Arc::clone(&health)));
}

async fn watch(log: Arc<dyn Append>, deaths: Arc<Mutex<Deaths>>, health: Arc<Health>) {
    let mut deaths = deaths.lock().await;
    loop {
        if let Ok(death) = tokio::time::timeout(POLL_EVERY, deaths.next()).await
            && health.died(&death.task, Cause::Panic(death.panic)).is_some()
        {
            // The log has begun it again by itself.
            health.began(&death.task);
        }
        if let Err(AppendError::Stopped(reason)) = log.ready() {
            health.give_up("log", Cause::Ended(reason), "the log has stopped for good; restart the process".to_owned());
            return std::future::pending().await;
        }
    }
}
