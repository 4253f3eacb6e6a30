//! Clients on kept connections that send numbered events of their own users until each is acknowledged, and what must be there afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::raw::{Connection, Ended, post};
use crate::support::Database;

/// What a flood is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub clients: u64,
    /// Each event of a batch is of another user of the client, in turn.
    pub users: u64,
    /// Events of a batch.
    pub batch: u64,
    /// From the beginning of a batch to that of the next one, at least.
    pub pace: Duration,
}

/// A running flood.
pub struct Flood {
    shape: Shape,
    target: watch::Sender<Option<SocketAddr>>,
    is_over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: JoinSet<Told>,
}

/// What clients were told, all together or one alone.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// For each user, how many of its events were acknowledged: those with the numbers below.
    pub acknowledged: BTreeMap<String, u64>,
    /// How exchanges ended that had no answer.
    pub broken: BTreeMap<Ended, u64>,
    /// Refusals that ask for another try, by status; each named when.
    pub refused: BTreeMap<u16, u64>,
    /// How long each answer took.
    pub waited: Vec<Duration>,
}

impl Flood {
    /// Begins it; nobody sends before it is aimed.
    pub fn start(key: &str, shape: Shape) -> Self {
        let (target, aimed) = watch::channel(None);
        let (is_over, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut clients = JoinSet::new();
        for number in 0..shape.clients {
            let client = Client {
                number,
                shape,
                key: key.to_owned(),
                aimed: aimed.clone(),
                is_over: Arc::clone(&is_over),
                all: Arc::clone(&acknowledged),
                told: Told::default(),
            };
            clients.spawn(client.run());
        }
        Flood { shape, target, is_over, acknowledged, clients }
    }

    /// Says where to send from now on; nowhere while there is nobody.
    pub fn aim(&self, target: Option<SocketAddr>) {
        self.target.send_replace(target);
    }

    /// How many events are acknowledged.
    pub fn count(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub async fn goes_on(&self, more: u64) {
        let (goal, deadline) = (self.count() + more, Instant::now() + Duration::from_secs(60));
        while self.count() < goal {
            assert!(Instant::now() < deadline, "{} of {goal} events are acknowledged", self.count());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it, and returns what all clients were told. What a client sends is sent until it is acknowledged.
    pub async fn end(mut self) -> Told {
        self.is_over.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        while let Some(told) = self.clients.join_next().await {
            all.add(told.expect("no client met a fault"));
        }
        all.waited.sort_unstable();
        all
    }

    /// The number of users.
    pub fn users(&self) -> u64 {
        self.shape.clients * self.shape.users
    }
}

impl Told {
    fn add(&mut self, other: Told) {
        self.acknowledged.extend(other.acknowledged);
        other.broken.into_iter().for_each(|(ended, count)| *self.broken.entry(ended).or_default() += count);
        other.refused.into_iter().for_each(|(status, count)| *self.refused.entry(status).or_default() += count);
        self.waited.extend(other.waited);
    }

    /// How many events were acknowledged.
    pub fn total(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    /// How many exchanges ended so.
    pub fn ended(&self, ended: Ended) -> u64 {
        self.broken.get(&ended).copied().unwrap_or_default()
    }

    /// The wait that a share of all answers did not exceed. The waits are in order once the flood has ended.
    pub fn waited(&self, share: f64) -> Duration {
        let at = (self.waited.len() as f64 * share) as usize;
        self.waited.get(at.min(self.waited.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// A line for people.
    pub fn says(&self) -> String {
        format!(
            "{} events acknowledged in {} answers, p50 {:?}, p99 {:?}, at most {:?}; refused {:?}, without an answer {:?}",
            self.total(),
            self.waited.len(),
            self.waited(0.5),
            self.waited(0.99),
            self.waited(1.0),
            self.refused,
            self.broken
        )
    }

    /// Waits until Postgres holds what was acknowledged, and checks that it holds nothing else, each once, and of each user in its order.
    pub async fn check_stored(&self, database: &mut Database, max: Duration) {
        let total = i64::try_from(self.total()).expect("few");
        database.until("SELECT count(*) FROM engagement_events", total, max).await;
        let rows = "SELECT external_id, count(*), count(DISTINCT metadata->>'n'), min((metadata->>'n')::bigint), max((metadata->>'n')::bigint)
                    FROM engagement_events GROUP BY 1 ORDER BY 1";
        let rows: Vec<(String, i64, i64, i64, i64)> = database.rows(rows).await;
        let expected: Vec<(String, i64, i64, i64, i64)> = self
            .acknowledged
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(user, count)| {
                let count = i64::try_from(*count).expect("few");
                (user.clone(), count, count, 0, count - 1)
            })
            .collect();
        assert_eq!(rows, expected);
        let disordered = "SELECT count(*) FROM (
                SELECT (metadata->>'n')::bigint - lag((metadata->>'n')::bigint, 1, -1::bigint) OVER (PARTITION BY user_id ORDER BY log_offset) AS step
                FROM engagement_events) s WHERE step <> 1";
        assert_eq!(database.number(disordered).await, 0, "of {total} events");
    }

    /// Checks that a log holds what was acknowledged, of each user first in its order, and nothing that nobody sent; more than once is allowed.
    /// Returns how many are there more than once.
    pub async fn check_log(&self, log: &impl eventlog::Read) -> u64 {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut repeated = 0;
        let bound = eventlog::ReadBound { records_max: 10_000, bytes_max: 8 << 20, wait_max: Duration::from_secs(20) };
        for partition in 0..log.identity().partitions {
            let range = log.offsets(partition).await.expect("offsets");
            let mut offset = range.start;
            while offset < range.end {
                for record in log.read(partition, offset, bound).await.expect("reads") {
                    offset = record.offset + 1;
                    let event = events::wire::decode(&record.bytes).expect("a record of ours");
                    let number = event
                        .metadata
                        .as_ref()
                        .and_then(|object| object.get().strip_prefix("{\"n\":")?.strip_suffix('}')?.parse().ok());
                    let (user, number): (String, u64) =
                        (event.external_id.expect("it has a user").into(), number.expect("its number"));
                    let expected = next.entry(user.clone()).or_default();
                    assert!(
                        number <= *expected,
                        "{user}: {number} comes where {expected} should, log partition {partition}, offset {offset}"
                    );
                    if number < *expected {
                        repeated += 1;
                    } else {
                        *expected += 1;
                    }
                }
            }
        }
        next.retain(|_, count| *count > 0);
        let expected: BTreeMap<String, u64> =
            self.acknowledged.iter().filter(|(_, count)| **count > 0).map(|(user, count)| (user.clone(), *count)).collect();
        assert_eq!(next.values().sum::<u64>(), self.total());
        assert_eq!(next, expected);
        repeated
    }
}

/// One client.
struct Client {
    number: u64,
    shape: Shape,
    key: String,
    aimed: watch::Receiver<Option<SocketAddr>>,
    is_over: Arc<AtomicBool>,
    all: Arc<AtomicU64>,
    told: Told,
}

impl Client {
    async fn run(mut self) -> Told {
        let mut connection: Option<(SocketAddr, Connection)> = None;
        let mut first = 0;
        while !self.is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let request = post(&self.key, &self.body(first));
            while !self.send(&mut connection, &request).await {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            first += self.shape.batch;
            self.all.fetch_add(self.shape.batch, Ordering::Relaxed);
            tokio::time::sleep(self.shape.pace.saturating_sub(begun.elapsed())).await;
        }
        for user in 0..self.shape.users {
            let turns = first / self.shape.users + u64::from(first % self.shape.users > user);
            self.told.acknowledged.insert(self.user(user), turns);
        }
        self.told
    }

    fn user(&self, user: u64) -> String {
        format!("client-{}-user-{user}", self.number)
    }

    /// The batch that begins with this event of the client; the same each time that it is sent.
    fn body(&self, first: u64) -> String {
        let mut body = String::from(r#"{"events":["#);
        let now = events::Micros::now();
        for at in first..first + self.shape.batch {
            let (user, number) = (self.user(at % self.shape.users), at / self.shape.users);
            let comma = if at == first { "" } else { "," };
            let _ = write!(
                body,
                r#"{comma}{{"type":"engagement","name":"step","event_id":"{user}/{number}","user_id":"{user}","timestamp":"{now}","properties":{{"n":{number}}}}}"#
            );
        }
        body + "]}"
    }

    /// Returns whether all of a batch was acknowledged. Half of it, or a refusal for good, is a fault.
    async fn send(&mut self, connection: &mut Option<(SocketAddr, Connection)>, request: &[u8]) -> bool {
        let Some(address) = *self.aimed.borrow_and_update() else { return false };
        connection.take_if(|(to, connection)| *to != address || connection.is_ended());
        if connection.is_none() {
            match Connection::open(address).await {
                Ok(opened) => *connection = Some((address, opened)),
                Err(ended) => {
                    *self.told.broken.entry(ended).or_default() += 1;
                    return false;
                }
            }
        }
        let Some((_, open)) = connection.as_mut() else { return false };
        let begun = Instant::now();
        let answer = match open.exchange(request).await {
            Ok(answer) => answer,
            Err(ended) => {
                *self.told.broken.entry(ended).or_default() += 1;
                *connection = None;
                return false;
            }
        };
        self.told.waited.push(begun.elapsed());
        if answer.closes() {
            *connection = None;
        }
        match answer.status {
            200 => {
                let told = answer.json();
                assert_eq!(told["accepted"], serde_json::json!(self.shape.batch), "{told}");
                true
            }
            status @ (429 | 503) => {
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
                *self.told.refused.entry(status).or_default() += 1;
                false
            }
            _ => panic!("{answer:?}"),
        }
    }
}
