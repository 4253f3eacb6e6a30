//! How quickly rows are sent, so that live events keep their latency beside them.
//!
//! All events wait in one log for the aggregator. An import that fills it as quickly as the collector takes rows would let
//! live events wait behind a million others. So, where the aggregator's metrics are at hand, no more rows are on their way to the
//! tables than it stores in a fraction of a second: what it is behind by, and what was sent since that number changed.

use std::time::Duration;

use tokio::time::Instant;

use super::Args;
use super::send::Destination;
use crate::cli::Globals;
use crate::client::Client;
use crate::commands::places::url;

/// Rows that may wait for the aggregator.
const WAITING_ROWS_MAX: u64 = 15_000;
/// How often the aggregator's metrics are read.
const POLL_EVERY: Duration = Duration::from_millis(100);
/// How long the request for them may take.
const POLL_MAX: Duration = Duration::from_secs(2);
/// One batch goes after this time at the latest: numbers that stand still must not stop an import.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gives leave to send.
pub(super) struct Pace {
    aggregator: Option<Client>,
    /// The newest metrics.
    progress: Option<Progress>,
    polled: Instant,
    /// Rows sent since the metrics changed, and on their way.
    sent: u64,
    last_leave: Instant,
    /// Rows per second at most, and when the next one may go.
    rate: Option<u32>,
    next: Instant,
}

/// What the aggregator's metrics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    lag: u64,
    read: u64,
}

impl Pace {
    /// Finds the aggregator's address: where it was said to be, else that of weir.json if its collector is the one imported to.
    pub(super) fn new(args: &Args, globals: &Globals, destination: &Destination) -> anyhow::Result<Self> {
        let address = match Args::said(&args.aggregator) {
            Some(said) => Some(url(said)),
            None => globals
                .weir_json()?
                .filter(|found| url(&found.collector) == destination.collector())
                .map(|found| url(&found.aggregator)),
        };
        let aggregator = address.map(|address| Client::new(&address, None, globals.ca.as_deref())).transpose()?;
        let now = Instant::now();
        Ok(Pace { aggregator, progress: None, polled: now - POLL_EVERY, sent: 0, last_leave: now, rate: args.rate, next: now })
    }

    /// Waits until one more batch may be sent. May be cancelled.
    pub(super) async fn leave(&mut self) {
        tokio::time::sleep_until(self.next).await;
        while self.aggregator.is_some() && self.last_leave.elapsed() < PATIENCE {
            self.poll().await;
            let waiting = self.progress.map_or(0, |progress| progress.lag) + self.sent;
            // Without metrics nothing is known, so nothing is held back.
            if self.progress.is_none() || waiting < WAITING_ROWS_MAX {
                return;
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Counts rows that go now.
    pub(super) fn sent(&mut self, rows: usize) {
        let now = Instant::now();
        self.sent += rows as u64;
        self.last_leave = now;
        if let Some(rate) = self.rate {
            let took = Duration::from_secs_f64(rows as f64 / f64::from(rate));
            self.next = self.next.max(now) + took;
        }
    }

    async fn poll(&mut self) {
        let Some(client) = &self.aggregator else { return };
        if self.polled.elapsed() < POLL_EVERY {
            return;
        }
        let answer = client.probe("/metrics", POLL_MAX).await;
        self.polled = Instant::now();
        let progress =
            answer.ok().filter(|answer| answer.status.is_success()).map(|answer| read(&String::from_utf8_lossy(&answer.body)));
        if progress != self.progress {
            self.progress = progress;
            // The metrics count them from now on.
            self.sent = 0;
        }
    }
}

/// Sums the metrics over log partitions.
fn read(metrics: &str) -> Progress {
    let sum = |name: &str| {
        let lines = metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        values.filter(|value| value.is_finite() && *value > 0.0).sum::<f64>() as u64
    };
    Progress { lag: sum("weir_aggregator_lag_records"), read: sum("weir_aggregator_read_total") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_are_summed() {
        let metrics = "# HELP weir_aggregator_lag_records x\nweir_aggregator_lag_records{log_partition=\"0\"} 7\n\
                    weir_aggregator_lag_records{log_partition=\"1\"} 1e3\nweir_aggregator_lag_records_other 5\n\
                    weir_aggregator_read_total 12\n";
        assert_eq!(read(metrics), Progress { lag: 1007, read: 12 });
        assert_eq!(read(""), Progress { lag: 0, read: 0 });
    }
}
