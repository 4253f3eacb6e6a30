//! The same events over every transport: whatever the log, the batches and their order, the same tables.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aggregator::Aggregator;
use eventlog::embedded::{EmbeddedLog, Options};
use eventlog::memory::MemoryLog;
use eventlog::{Append, Read};
use events::Micros;
use events::testing::RECEIVED_AT;
use hyper::Method;
use ingest::Collector;
use migrations::testing::TestDatabase;
use serde_json::{Value, json};
use sha2::Digest;
use uuid::Uuid;

use crate::harness::send;
use crate::support::{Database, page};

/// A project that registers unknown names, and one that does not.
const OPEN: (Uuid, &str) = (Uuid::from_u128(1), "wk_of_the_open_project");
const STRICT: (Uuid, &str) = (Uuid::from_u128(2), "wk_of_the_strict_project");

/// What is compared: all that was told or derived, without what differs from run to run on purpose.
const COMPARED: [&str; 13] = [
    "impressions",
    "conversions",
    "campaign_events",
    "engagement_events",
    "identity_events",
    "user_experiment_participation",
    "conversion_attribution",
    "daily_rollups",
    "untimed_ids",
    "dead_letters",
    "experiments",
    "variants",
    "campaigns",
];

/// A collector, an aggregator, the log between them and the database behind them.
struct Path {
    collector: Collector,
    aggregator: Aggregator,
    log: Arc<dyn Read>,
    database: Database,
    _folder: tempfile::TempDir,
    _server: TestDatabase,
}

impl Path {
    async fn start<L: Append + Read + Clone>(log: L) -> Self {
        let server = TestDatabase::create().await;
        let mut database = Database::connect(&server.url).await;
        for ((project, key), registers) in [(OPEN, true), (STRICT, false)] {
            let digest = hex::encode(sha2::Sha256::digest(key));
            let statement = format!(
                "INSERT INTO projects (id, name, auto_register) VALUES ('{project}', '{key}', {registers}); \
                 INSERT INTO keys (project_id, kind, digest, prefix) VALUES ('{project}', 'write', '\\x{digest}', 'wk_')"
            );
            database.execute(&statement).await;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = ingest::Config {
            collector: any_port,
            database_url: server.url.clone(),
            data_dir: folder.path().to_owned(),
            ..ingest::Config::default()
        };
        let clock: Arc<dyn Fn() -> Micros + Send + Sync> = Arc::new(|| RECEIVED_AT);
        let collector = Collector::start(config, Arc::new(log.clone()), clock).await.expect("the collector starts");
        let config = aggregator::Config::new(any_port, server.url.clone());
        let read: Arc<dyn Read> = Arc::new(log.clone());
        let aggregator = Aggregator::start(config, Arc::clone(&read), Arc::new(log)).await.expect("the aggregator starts");
        Path { collector, aggregator, log: read, database, _folder: folder, _server: server }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.collector.address())
    }

    /// Posts events, so many in a request, and checks that all were accepted.
    async fn post(&self, key: &str, events: &[Value], at_once: usize) {
        for batch in events.chunks(at_once) {
            let answer = send(Method::POST, &self.url("/v1/events"), key, Some(json!({ "events": batch }))).await;
            let (status, answer) = answer.expect("the collector answers");
            assert_eq!((status, &answer["rejected"]), (200, &json!([])), "{answer}");
        }
    }

    /// Waits until all of the log is stored.
    async fn drained(&mut self) {
        let mut end = 0;
        for partition in 0..Read::identity(&*self.log).partitions {
            end += self.log.offsets(partition).await.expect("the log answers").end;
        }
        let stored = "SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints";
        self.database.until(stored, i64::try_from(end).expect("few"), Duration::from_secs(30)).await;
    }

    /// All rows as text.
    async fn dump(&mut self) -> String {
        let mut dump = String::new();
        for table in COMPARED {
            // Of a dead letter the rest is what the log held.
            let unlike = match table {
                "dead_letters" => "- 'id' - 'changed_at' - 'bytes'",
                _ => "",
            };
            // Rollups are kept for each log partition; readers sum.
            let rows = match table {
                "daily_rollups" => {
                    "(SELECT project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id, currency, is_bot, \
                     sum(events) AS events, trim_scale(sum(value)) AS value FROM daily_rollups GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)"
                }
                table => table,
            };
            let query = format!(
                "SELECT coalesce(string_agg(row::text, E'\\n' ORDER BY row::text COLLATE \"C\"), '') FROM (SELECT to_jsonb(t) - 'created_at' \
                 - 'updated_at' - 'log_id' - 'log_partition' - 'log_offset' - 'received_at' {unlike} AS row FROM {rows} t) AS rows"
            );
            dump.push_str(&format!("== {table}\n{}\n", self.database.text(&query).await));
        }
        dump
    }

    async fn stop(self) {
        self.collector.stop().await;
        self.aggregator.stop().await;
    }
}

/// An event of user `user`, at a number of minutes before its receipt.
fn event(kind: &str, id: &str, user: i64, minutes: i64, rest: Value) -> Value {
    let timestamp = Micros(RECEIVED_AT.0 - minutes * 60_000_000).to_string();
    let mut event = json!({"type": kind, "event_id": id, "user_id": format!("user {user}"), "timestamp": timestamp});
    event.as_object_mut().expect("is one").extend(rest.as_object().expect("is one").clone());
    event
}

/// Forty users that do all that can be done, in an order that nobody would choose.
fn events() -> Vec<Value> {
    let mut events = Vec::new();
    for user in 0..40 {
        let id = |name: &str| format!("{name} of {user}");
        let variant = ["control", "blue"][usize::from(user % 2 == 1)];
        let exposure = |name: &str, minutes, variant: &str| {
            event(
                "impression",
                &id(name),
                user,
                minutes,
                json!({"experiment": "button", "variant": variant, "page_url": "/cart"}),
            )
        };
        // The conversion is told before the exposure that it belongs to; the earliest exposure comes last.
        let value =
            json!({"name": "purchase", "value": format!("{user}.50"), "currency": "EUR", "properties": {"basket": [user]}});
        let purchase = event("conversion", &id("purchase"), user, 30, value);
        events.push(purchase.clone());
        events.push(exposure("exposure", 60, variant));
        if user % 5 == 0 {
            let refund = json!({"name": "refund", "value": format!("-{user}.25"), "currency": "EUR", "experiment": "button"});
            events.push(event("conversion", &id("refund"), user, 10, refund));
        }
        events.push(exposure("late exposure", 90 + user, if user % 7 == 0 { "green" } else { variant }));
        events.push(event(
            "impression",
            &id("other"),
            user,
            45,
            json!({"experiment": "price", "variant": "b", "is_bot": user % 11 == 0}),
        ));
        events.push(event("conversion", &id("early"), user, 500, json!({"name": "signup"})));
        events.push(event(
            "campaign_event",
            &id("click"),
            user,
            20,
            json!({"name": "click", "campaign": "spring", "component": "hero"}),
        ));
        events.push(event("engagement", &id("scroll"), user, 19, json!({"name": "scroll", "properties": {"percent": 80}})));
        events.push(event("identity", &id("identify"), user, 18, json!({"name": "identify", "properties": {"plan": "pro"}})));
        // Without a time the id alone tells that it is the same one.
        let mut untimed = event("conversion", &id("untimed"), user, 0, json!({"name": "lead"}));
        untimed.as_object_mut().expect("is one").remove("timestamp");
        events.push(untimed.clone());
        events.push(purchase);
        events.push(untimed);
    }
    events
}

/// Sends all of it by one path and returns the tables; `at_once` events in a request.
async fn travel<L: Append + Read + Clone>(log: L, at_once: usize) -> String {
    let mut path = Path::start(log).await;
    let events = events();
    path.post(OPEN.1, &events, at_once).await;
    // Some of it again, as after an answer that was lost.
    path.post(OPEN.1, &events[100..300], at_once).await;
    // Names that nobody made in the project: kept apart until somebody does. The user is another one there.
    path.post(STRICT.1, &events[..24], at_once).await;
    let time = Micros(RECEIVED_AT.0 - 5_000_000).to_string();
    let call = json!({"type": "track", "event": "Order Completed", "userId": "user 1", "messageId": "m1", "timestamp": time,
                      "properties": {"revenue": 7}});
    let (status, answer) =
        send(Method::POST, &path.url("/v1/batch"), OPEN.1, Some(json!({"batch": [call]}))).await.expect("the collector answers");
    assert_eq!(status, 200, "{answer}");
    let pixel = format!("/v1/pixel.gif?key={}&type=impression&user_id=p&event_id=p1&experiment=button&variant=blue", OPEN.1);
    assert_eq!(page(&path.url(&pixel)).await.0, 200);
    path.drained().await;

    let database = &mut path.database;
    let mut count = async |query: &str| database.number(query).await;
    let open = format!("WHERE project_id = '{}'", OPEN.0);
    assert_eq!(count(&format!("SELECT count(*) FROM impressions {open}")).await, 40 * 3 + 1);
    assert_eq!(count(&format!("SELECT count(*) FROM conversions {open}")).await, 40 * 3 + 8 + 1);
    for table in ["campaign_events", "engagement_events", "identity_events"] {
        assert_eq!(count(&format!("SELECT count(*) FROM {table} {open}")).await, 40, "{table}");
    }
    // 40 in `button` and who came by the pixel; in `price` all but the bots, which are users 0, 11, 22 and 33.
    assert_eq!(count(&format!("SELECT count(*) FROM user_experiment_participation {open}")).await, 41 + 36);
    // The purchases, the refunds that name `button`, the leads, and user 1's order.
    let in_button =
        "SELECT count(*) FROM conversion_attribution a JOIN experiments e ON e.id = a.experiment_id WHERE e.name = 'button'";
    assert_eq!(count(in_button).await, 40 + 8 + 40 + 1);
    let in_price = in_button.replace("'button'", "'price'");
    assert_eq!(count(&in_price).await, 36 + 36 + 1);
    let strict = format!("WHERE project_id = '{}'", STRICT.0);
    assert_eq!(count(&format!("SELECT count(*) FROM impressions {strict}")).await, 0);
    assert!(count(&format!("SELECT count(*) FROM dead_letters {strict}")).await > 0);
    // The same event in two projects is two events, of two users.
    let both = "SELECT count(DISTINCT project_id) * 100 + count(DISTINCT user_id) * 10 + count(*) FROM conversions \
                WHERE external_id = 'user 0' AND conversion_type = 'purchase'";
    assert_eq!(count(both).await, 222);

    let dump = path.dump().await;
    path.stop().await;
    dump
}

/// Compares texts line by line, so that a failure shows where they part.
fn check_equal(one: &str, other: &str) {
    for (number, (one, other)) in one.lines().zip(other.lines()).enumerate() {
        assert_eq!(one, other, "line {number}");
    }
    assert_eq!(one.lines().count(), other.lines().count());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_make_the_same_tables_over_any_log() {
    let begun = Instant::now();
    let in_memory = travel(MemoryLog::new(8), 1_000).await;
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = EmbeddedLog::open(&folder.path().join("log"), Options::default()).expect("a log");
    let on_disk = travel(embedded, 7).await;
    check_equal(&in_memory, &on_disk);
    // Another number of log partitions, hence other batches and another order between users.
    check_equal(&in_memory, &travel(MemoryLog::new(1), 50).await);
    over_kafka(&in_memory).await;
    eprintln!("{} lines are equal, after {:?}", in_memory.lines().count(), begun.elapsed());
}

#[cfg(feature = "kafka")]
async fn over_kafka(expected: &str) {
    use eventlog::kafka::{Config, KafkaLog};
    let Ok(brokers) = std::env::var("WEIR_TEST_KAFKA") else {
        eprintln!("skipped: the journey over Kafka needs a broker; `make test` starts one and sets WEIR_TEST_KAFKA");
        return;
    };
    let topic = format!("journey-{}", Uuid::new_v4());
    let log = KafkaLog::open(Config { topic, ..Config::new(&brokers) }).await.expect("the broker answers");
    check_equal(expected, &travel(log, 13).await);
}

#[cfg(not(feature = "kafka"))]
async fn over_kafka(_: &str) {}
