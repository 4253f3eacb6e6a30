//! How far storing is behind the log, shown beside the flow: over Kafka the high watermark is a request to a broker, which no
//! batch shall wait for. It is also asked while nothing can be stored, when it matters most.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eventlog::{Offset, Read};
use futures_util::future::join_all;
use tokio::sync::{Notify, watch};

use crate::lease::Held;
use crate::metrics::Metrics;

/// How often the ends are asked for without anything being stored.
const EVERY: Duration = Duration::from_secs(1);
/// How often they are asked for at most.
const PAUSE: Duration = Duration::from_millis(200);

/// The next offset to be stored of each log partition.
#[derive(Default)]
pub(crate) struct Stored {
    next: Mutex<BTreeMap<u32, Offset>>,
    moved: Notify,
}

impl Stored {
    /// Records that a log partition is stored up to an offset.
    pub(crate) fn up_to(&self, partition: u32, next: Offset) {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, next);
        self.moved.notify_one();
    }

    fn of(&self, partition: u32) -> Option<Offset> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }
}

/// Shows the lag of the log partitions that are held; of one that was lost it is its new owner's to show. May be dropped at any point.
pub(crate) async fn show(log: Arc<dyn Read>, held: watch::Receiver<Held>, stored: Arc<Stored>, metrics: Arc<Metrics>) {
    let mut shown = Vec::new();
    loop {
        let mine: Vec<u32> = held.borrow().keys().copied().collect();
        let ends = join_all(mine.iter().map(|partition| log.end(*partition))).await;
        for (partition, end) in mine.iter().zip(ends) {
            if let (Ok(end), Some(next)) = (end, stored.of(*partition)) {
                metrics.lag(*partition, end.saturating_sub(next));
            }
        }
        for lost in shown.iter().filter(|partition| !mine.contains(partition)) {
            metrics.lag(*lost, 0);
        }
        shown = mine;
        tokio::time::sleep(PAUSE).await;
        let _ = tokio::time::timeout(EVERY - PAUSE, stored.moved.notified()).await;
    }
}
