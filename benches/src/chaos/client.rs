//! The ledger clients: they send what the plan says, as good SDKs do: an unknown outcome is tried again with the same ids until it is known.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ledger::Ledger;
use super::plan::Plan;
use crate::load::{Connection, Outcome, Target};
use crate::payload::Random;

/// Between two tries of a request.
const PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long a client goes on, after its end was asked for, until its last request is acknowledged.
const SETTLED_MAX: Duration = Duration::from_secs(90);
/// Of 100 requests that were acknowledged, how many are sent again later.
const AGAIN_IN_100: u64 = 5;
/// Of 100 requests, how many are compressed.
const GZIP_IN_100: u64 = 10;
/// How many requests wait to be sent again.
const WAITING: usize = 16;
/// Sizes of requests, each as often as it stands here.
const SIZES: [u64; 16] = [1, 1, 1, 2, 3, 5, 10, 20, 20, 20, 20, 40, 40, 40, 100, 100];
/// The largest size, of one in so many requests.
const LARGE: (u64, u64) = (2_000, 200);

/// How hard the clients work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub clients: u64,
    /// Of a client between two requests.
    pub pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { clients: 4, pause: Duration::from_millis(60) }
    }
}

/// Running clients. They end with this value.
pub(super) struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<anyhow::Result<()>>,
}

struct Shared {
    plan: Plan,
    pace: Pace,
    ledger: Arc<Ledger>,
    /// Where the collector is; none while it is nowhere: its port may soon be another's.
    aimed: watch::Sender<Option<Target>>,
    is_over: AtomicBool,
    next: AtomicU64,
    acknowledged: AtomicU64,
    /// The last outcome that was none.
    trouble: Mutex<String>,
    /// Acknowledged requests that will be sent again, by whichever client comes next: first and count.
    again: Mutex<VecDeque<(u64, u64)>>,
}

impl Clients {
    /// Starts them; nobody sends before they are aimed.
    pub(super) fn start(plan: &Plan, pace: Pace, ledger: Arc<Ledger>) -> Self {
        let shared = Arc::new(Shared {
            plan: plan.clone(),
            pace,
            ledger,
            aimed: watch::Sender::new(None),
            is_over: AtomicBool::new(false),
            next: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            trouble: Mutex::default(),
            again: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for client in 0..pace.clients {
            tasks.spawn(Arc::clone(&shared).run(client));
        }
        Clients { shared, tasks }
    }

    /// Says where to send from now on.
    pub(super) fn aim(&self, url: &str, key: &str) -> anyhow::Result<()> {
        // The number of events is said with each request.
        self.shared.aimed.send_replace(Some(Target::new(url, key, 1)?));
        Ok(())
    }

    /// Says that the collector is gone.
    pub(super) fn aim_nowhere(&self) {
        self.shared.aimed.send_replace(None);
    }

    /// How many events are acknowledged.
    pub(super) fn count(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more events are acknowledged.
    /// # Errors
    /// If none is for a while, or a client met what it may not.
    pub(super) async fn go_on(&mut self, more: u64) -> anyhow::Result<()> {
        let goal = self.count() + more;
        let (mut last, mut at) = (self.count(), Instant::now());
        while self.count() < goal {
            while let Some(ended) = self.tasks.try_join_next() {
                ended.context("a client panicked")??;
            }
            if self.count() > last {
                (last, at) = (self.count(), Instant::now());
            }
            if at.elapsed() > SETTLED_MAX {
                let trouble = self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                bail!("no event was acknowledged for {} s, after {last}; the last trouble: {trouble}", SETTLED_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends them, each when its last request is acknowledged.
    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")??;
        }
        Ok(())
    }
}

impl Shared {
    async fn run(self: Arc<Self>, client: u64) -> anyhow::Result<()> {
        // Where events' numbers begin is left to the plan's own stream.
        let mut random = Random::new(!self.plan.seed, client);
        while !self.is_over.load(Ordering::Relaxed) {
            let is_large = random.next().is_multiple_of(LARGE.1);
            let count = if is_large { LARGE.0 } else { SIZES[(random.next() % SIZES.len() as u64) as usize] };
            let first = self.next.fetch_add(count, Ordering::Relaxed);
            let gzip = random.next() % 100 < GZIP_IN_100;
            self.settle("intent", first, count, gzip).await?;
            let mut other = None;
            {
                let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
                if random.next() % 100 < AGAIN_IN_100 {
                    again.push_back((first, count));
                }
                // In another order than the first time, and beside newer ones.
                if again.len() > WAITING / 2 || random.next().is_multiple_of(4) {
                    other = again.pop_front();
                }
                again.truncate(WAITING);
            }
            if let Some((first, count)) = other {
                self.settle("again", first, count, !gzip).await?;
            }
            tokio::time::sleep(self.pace.pause).await;
        }
        Ok(())
    }

    /// Sends a request until its outcome is known.
    async fn settle(&self, what: &str, first: u64, count: u64, gzip: bool) -> anyhow::Result<()> {
        let body = self.plan.body(first, count);
        let body: Bytes = if gzip { compressed(&body)? } else { body }.into();
        let mut aimed = self.aimed.subscribe();
        let mut connection = None;
        let mut over_since = None;
        self.ledger.note(&format!("{what} {first} {count}"))?;
        loop {
            if self.is_over.load(Ordering::Relaxed) && over_since.get_or_insert_with(Instant::now).elapsed() > SETTLED_MAX {
                return Ok(()); // it stays unknown, which the ledger says
            }
            if aimed.has_changed().unwrap_or(false) || connection.is_none() {
                connection = aimed.borrow_and_update().clone().map(|target| Connection::new(target, ANSWER_MAX));
            }
            let Some(open) = &mut connection else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            match open.send_of(body.clone(), count as usize).await {
                Outcome::Accepted { rejected } => {
                    let mut line = format!("acknowledged {first} {count}");
                    let mut places = BTreeSet::new();
                    for one in rejected {
                        places.insert(one.index);
                        // Fields hold no space; a message would.
                        line += &format!(" {}={}={}", first + one.index as u64, one.code, one.field);
                    }
                    self.ledger.note(&line)?;
                    self.acknowledged.fetch_add(count - places.len() as u64, Ordering::Relaxed);
                    return Ok(());
                }
                Outcome::Refused { trouble, may_pass: false, .. } => {
                    self.ledger.note(&format!("refused {first} {count} {trouble}"))?;
                    bail!("the events {first} to {} were refused for good: {trouble}", first + count);
                }
                // Nothing was sent, or nothing taken.
                Outcome::Refused { .. } => {}
                Outcome::Unknown { trouble, .. } => {
                    self.ledger.note(&format!("unknown {first} {count} {trouble}"))?;
                    *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn compressed(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}
