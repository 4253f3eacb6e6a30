//! Clients: they send, retry what has no answer with the same ids, repeat themselves, and claim times in any order.

use std::sync::Arc;
use std::time::Duration;

use eventlog::AppendError;
use events::testing::{RECEIVED_AT, conversion};
use events::{ClaimedTime, Draft, Micros};
use tokio::sync::watch;
use tokio::time::timeout;

use super::collector::{Collector, admitted};
use super::judge::{Id, Judge, id_of};
use super::run::{Run, Seen, note};

/// Times that clients claim lie within so many days before.
const DAYS: u64 = 20;

/// What all clients of a world share.
#[derive(Clone)]
pub(super) struct Clients {
    pub run: Run,
    pub judge: Judge,
    pub collectors: Vec<Arc<Collector>>,
    /// Set when no new requests are to begin.
    pub is_over: watch::Receiver<bool>,
}

impl Clients {
    /// One client, until it is over.
    pub(super) async fn client(self, number: usize) {
        let mut sent: Vec<Vec<Draft>> = Vec::new();
        let mut events = 0;
        while !*self.is_over.borrow() {
            self.run.wait(300..30_000).await;
            let again = if self.run.chance(0.08) { sent.last().cloned() } else { None };
            let drafts = again.unwrap_or_else(|| {
                let count = self.run.number(1..6);
                events += count;
                (events - count..events).map(|event| self.draft(number, event)).collect()
            });
            if self.deliver(number, &drafts).await {
                sent.push(drafts);
            }
        }
    }

    /// An event that is the client's own.
    pub(super) fn draft(&self, client: usize, event: u64) -> Draft {
        let (user, id) = (format!("user-{client}-{}", event % 3), format!("{client}/{event}"));
        let claimed = Micros(RECEIVED_AT.0 - self.run.number(0..DAYS * 86_400) as i64 * Micros::SECOND);
        let mut draft = conversion(&id, &user, &claimed.to_string(), "purchase", &self.run.number(1..100).to_string());
        if self.run.chance(0.1) {
            draft.timestamp = ClaimedTime::Missing;
        }
        draft
    }

    /// Sends a request until it is answered with yes, or the client has had enough. Returns whether it is.
    pub(super) async fn deliver(&self, client: usize, drafts: &[Draft]) -> bool {
        let mut drafts = drafts.to_vec();
        // A bug of the client: the same id with something else in it.
        if self.run.chance(0.02) {
            drafts[0].value = Some("1000".into());
        }
        let events: Vec<_> = drafts.iter().map(|draft| admitted(&self.run, draft.clone())).collect();
        events.iter().for_each(|event| self.judge.sent(event));
        let ids: Vec<Id> = events.iter().map(id_of).collect();
        let mut tries = 0;
        loop {
            tries += 1;
            let collector = self.run.number(0..self.collectors.len() as u64) as usize;
            let patience = self.run.millis(2_000..30_000);
            let answer = timeout(patience, self.collectors[collector].collect(drafts.clone())).await;
            let answer = answer.unwrap_or_else(|_| Err(AppendError::Unknown("no answer in time".to_owned())));
            match answer {
                Ok(()) => {
                    note!(self.run, "client {client}: {} events are accepted by collector {collector}", drafts.len());
                    self.judge.acknowledged(ids);
                    return true;
                }
                Err(error) => note!(self.run, "client {client}: collector {collector}: {error}"),
            }
            if self.run.chance(0.02) {
                return false; // whether it is stored nobody will ever know
            }
            self.run.saw(Seen::ClientRetry);
            let longest = Duration::from_millis(500 << tries.min(4)).as_millis() as u64;
            self.run.wait(100..longest).await;
        }
    }
}
