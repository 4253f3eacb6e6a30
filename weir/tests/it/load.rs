//! Clients that know what was acknowledged, and the comparison of that with what is stored.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use events::Micros;
use hyper::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::harness::{send, weir};
use crate::support::{Database, run};

const CLIENTS: u32 = 4;
const BATCH: i64 = 20;
/// Events have these users in turn, each in one variant of the experiment; others after a while, as it is with people.
const USERS: i64 = 500;
const EVENTS_OF_ONE: i64 = 40;
const HEAVY_USER: i64 = 1_000_000_000;
/// Who has more rows takes no part; the default.
const USER_ROWS_MAX: i64 = 10_000;
/// How long the rest of the log may take to be stored.
const DRAINED_MAX: Duration = Duration::from_secs(90);

/// Clients that send batches until each is acknowledged, and remember what was.
#[derive(Clone)]
pub struct Load {
    /// How long a client waits between two batches.
    pause: Duration,
    /// Where the collector is at present, and its key; none while it is nowhere.
    target: Arc<Mutex<Option<(String, String)>>>,
    is_over: Arc<AtomicBool>,
    numbers: Arc<AtomicI64>,
    /// The number of each acknowledged event by its id.
    acknowledged: Arc<Mutex<BTreeMap<Uuid, i64>>>,
    /// Batches that had to be sent more than once.
    repeated: Arc<AtomicI64>,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            pause: Duration::from_millis(20),
            target: Arc::default(),
            is_over: Arc::default(),
            numbers: Arc::default(),
            acknowledged: Arc::default(),
            repeated: Arc::default(),
        }
    }
}

impl Load {
    /// One that is small enough for what heaps up in minutes to be stored within one.
    pub fn at_1000_events_a_second() -> Self {
        Load { pause: Duration::from_millis(80), ..Load::default() }
    }

    /// Says where to send, from now on.
    pub fn aim(&self, collector: &str, key: &str) {
        *self.target.lock().expect("nobody panicked") = Some((collector.to_owned(), key.to_owned()));
    }

    /// Says that the collector was killed: its port may soon be another service's, which would refuse what is sent to it.
    pub fn aim_nowhere(&self) {
        *self.target.lock().expect("nobody panicked") = None;
    }

    /// How many events are acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().expect("nobody panicked").len()
    }

    /// How many batches were sent more than once.
    pub fn repeated(&self) -> i64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Starts the clients.
    pub fn start(&self) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            clients.spawn(self.clone().send());
        }
        clients
    }

    async fn send(self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let first = self.numbers.fetch_add(BATCH, Ordering::Relaxed);
            let batch: Vec<(Uuid, i64)> = (first..first + BATCH).map(|number| (Uuid::new_v4(), number)).collect();
            let events: Vec<Value> = batch.iter().map(|(id, number)| event(*id, *number)).collect();
            let body = json!({ "events": events });
            let mut is_first = true;
            while !self.post(&body).await {
                if is_first {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                }
                is_first = false;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            self.acknowledged.lock().expect("nobody panicked").extend(batch);
            tokio::time::sleep(self.pause).await;
        }
    }

    /// Returns whether all of a batch was acknowledged. A refusal for good is a fault.
    async fn post(&self, body: &Value) -> bool {
        let Some((collector, key)) = self.target.lock().expect("nobody panicked").clone() else { return false };
        match send(Method::POST, &format!("{collector}/v1/events"), &key, Some(body.clone())).await {
            Ok((200, answer)) => {
                assert_eq!(answer["accepted"], json!(BATCH), "{answer}");
                true
            }
            Ok((429 | 503, _)) | Err(_) => false,
            Ok((status, answer)) => panic!("{status} {answer}"),
        }
    }

    /// Waits until more has been acknowledged, and then some time that is another one each time.
    pub async fn goes_on(&self, kill: u32) {
        let (before, deadline) = (self.count(), Instant::now() + Duration::from_secs(30));
        while self.count() == before {
            assert!(Instant::now() < deadline, "nothing is acknowledged any more, after {before} events");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(u64::from(kill * 137 % 700))).await;
    }

    /// Ends the load, and returns the number of each acknowledged event by its id.
    pub async fn end(&self, mut clients: JoinSet<()>) -> BTreeMap<Uuid, i64> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.expect("no client met a fault");
        }
        self.acknowledged.lock().expect("nobody panicked").clone()
    }

    /// Ends the load and compares what is stored with what was acknowledged.
    pub async fn check(self, clients: JoinSet<()>, database_url: &str) {
        let acknowledged = self.end(clients).await;
        let sum: i64 = acknowledged.values().filter(|number| !is_impression(**number)).sum();
        let begun = Instant::now();
        let mut database = Database::connect(database_url).await;
        let stored = "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions)";
        database.until(stored, acknowledged.len() as i64, DRAINED_MAX).await;
        eprintln!(
            "{} events acknowledged, {} batches sent more than once, drained in {:?}",
            acknowledged.len(),
            self.repeated.load(Ordering::Relaxed),
            begun.elapsed()
        );

        // All batches were sent until they were acknowledged, so the ids are the same, none missing and none twice.
        let ids = "SELECT id FROM impressions UNION ALL SELECT id FROM conversions ORDER BY id";
        let ids: Vec<(Uuid,)> = database.rows(ids).await;
        assert!(ids.iter().map(|(id,)| id).eq(acknowledged.keys()), "other events are stored than were acknowledged");
        assert_eq!(database.number("SELECT sum(conversion_value)::bigint FROM conversions").await, sum);
        assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0);
        let impressions = impressions_of_participants(acknowledged.values().copied());
        let participation = "SELECT count(*) FROM user_experiment_participation";
        assert_eq!(database.number(participation).await, impressions.len() as i64);
        let total = "SELECT coalesce(sum(total_impressions), 0)::bigint FROM user_experiment_participation";
        assert_eq!(database.number(total).await, impressions.values().sum::<i64>());
        assert!(database.number("SELECT count(*) FROM conversion_attribution").await > 0);

        let mut recompute = weir();
        recompute.args(["admin", "recompute", "kills", "--database-url", database_url]);
        let ended = run(recompute, Duration::from_secs(120)).await;
        let (out, said) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
        assert!(ended.status.success() && out.contains("nothing differed"), "{out}{said}");
    }
}

/// Even numbers are impressions. A pair of numbers shares its user.
fn is_impression(number: i64) -> bool {
    number % 2 == 0
}

/// The user of a number. One user has a tenth of all events, as a shared device or a program has.
fn user(number: i64) -> i64 {
    if number / 2 % 10 == 0 {
        return HEAVY_USER;
    }
    number / (USERS * EVENTS_OF_ONE) * USERS + number / 2 % USERS
}

/// Returns the impressions of each user who takes part: who has one, and not more rows than a user may have.
fn impressions_of_participants(numbers: impl Iterator<Item = i64>) -> BTreeMap<i64, i64> {
    let mut users: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for number in numbers {
        let (rows, impressions) = users.entry(user(number)).or_default();
        *rows += 1;
        *impressions += i64::from(is_impression(number));
    }
    users.retain(|_, (rows, impressions)| *rows <= USER_ROWS_MAX && *impressions > 0);
    users.into_iter().map(|(user, (_, impressions))| (user, impressions)).collect()
}

/// The event of a number; all of it but the time follows from the number, and the time does not change with a repetition.
fn event(id: Uuid, number: i64) -> Value {
    let user = user(number);
    let timestamp = Micros::now().to_string();
    if is_impression(number) {
        let variant = if user % 2 == 0 { "control" } else { "treatment" };
        return json!({"type": "impression", "event_id": id.to_string(), "user_id": format!("user-{user}"), "timestamp": timestamp,
                      "experiment": "kills", "variant": variant});
    }
    json!({"type": "conversion", "event_id": id.to_string(), "user_id": format!("user-{user}"), "timestamp": timestamp,
           "name": "purchase", "value": number.to_string(), "currency": "EUR"})
}
