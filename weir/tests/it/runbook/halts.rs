//! States in which a log partition halts.

use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use aggregator::Aggregator;
use async_trait::async_trait;
use bytes::Bytes;
use eventlog::kafka::testing::Operator;
use eventlog::kafka::{self, KafkaLog};
use eventlog::memory::MemoryLog;
use eventlog::{Append, LogIdentity, Offset, Read, ReadBound, ReadError, StoredRecord};
use events::rules::{self, RequestContext};
use events::testing::{conversion, generated_id, request_context};
use events::{ProjectId, Record, wire};
use hyper::Method;
use migrations::testing::TestDatabase;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::story::Story;
use super::{command, until_told};
use crate::harness::{Folder, Up, send};
use crate::services::{Deployment, KEY, READY_MAX, Service, TOPIC};
use crate::support::{Database, page, run};

const CONVERSIONS: &str = "SELECT count(*) FROM conversions";

/// So many users that each of eight log partitions has some, but once in 200 million runs.
const OF_ALL: usize = 160;

/// A collector and an aggregator over Kafka that have stored an event of each of [`OF_ALL`] users.
struct Stand {
    deployment: Deployment,
    collector: Service,
    aggregator: Service,
    database: Database,
    sent: i64,
}

impl Stand {
    async fn start(settings: &[&str]) -> Self {
        let deployment = Deployment::start().await;
        let (collector, aggregator) = (deployment.collector(), aggregator(&deployment, settings));
        collector.until_ready().await;
        let database = Database::connect(&deployment.postgres.url()).await;
        let mut stand = Stand { deployment, collector, aggregator, database, sent: 0 };
        stand.post().await;
        stand.until_stored().await;
        stand
    }

    /// Sends one event of each of so many users that each log partition has some.
    async fn post(&mut self) {
        let events: Vec<Value> =
            (0..OF_ALL).map(|user| json!({"type": "conversion", "user_id": format!("u-{user}"), "name": "buy"})).collect();
        let url = format!("{}/v1/events", self.collector.url);
        let (status, answer) =
            send(Method::POST, &url, KEY, Some(json!({ "events": events }))).await.expect("the collector answers");
        assert_eq!((status, &answer["accepted"]), (200, &json!(OF_ALL)), "{answer}");
        self.sent += OF_ALL as i64;
    }

    async fn until_stored(&mut self) {
        self.database.until(CONVERSIONS, self.sent, READY_MAX).await;
    }

    async fn begin(&self) -> Story {
        self.aggregator.until_ready().await;
        Story::begin(&self.jobs()).await
    }

    fn jobs(&self) -> [(&'static str, &str); 2] {
        [("collector", &self.collector.url), ("aggregator", &self.aggregator.url)]
    }

    /// Waits until the state is told, and notes twice what the pages show.
    async fn halts(&self, state: &str, story: &mut Story) {
        self.aggregator.until_unready(state).await;
        for _ in 0..2 {
            story.during(&self.jobs()).await;
        }
    }

    /// What follows when all is well again: it is ready, and new events are stored.
    async fn goes_on(mut self, story: Story) -> Story {
        self.post().await;
        self.until_stored().await;
        self.aggregator.until_ready().await;
        let story = story.end(&self.jobs()).await;
        self.aggregator.end();
        self.collector.end();
        story
    }

    fn restart_aggregator(&mut self, settings: &[&str]) {
        let ended = std::mem::replace(&mut self.aggregator, aggregator(&self.deployment, settings));
        ended.end();
    }
}

fn aggregator(deployment: &Deployment, settings: &[&str]) -> Service {
    deployment.service("aggregator", &[&["aggregator", "--aggregator", "127.0.0.1:0"][..], settings].concat())
}

/// The log, as a build reads it that knows the records of the next version.
struct Upgraded(KafkaLog);

#[async_trait]
impl Read for Upgraded {
    fn identity(&self) -> LogIdentity {
        Read::identity(&self.0)
    }

    fn is_exclusive(&self) -> bool {
        self.0.is_exclusive()
    }

    async fn offsets(&self, partition: u32) -> Result<Range<Offset>, ReadError> {
        self.0.offsets(partition).await
    }

    async fn read(&self, partition: u32, from: Offset, bound: ReadBound) -> Result<Vec<StoredRecord>, ReadError> {
        let mut records = self.0.read(partition, from, bound).await?;
        for record in &mut records {
            record.bytes = Bytes::from(String::from_utf8_lossy(&record.bytes).replacen(&newer_version(), "{\"v\":1,", 1));
        }
        Ok(records)
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.0.release(partition, offset).await;
    }
}

/// The beginning of a record whose version this build does not know.
fn newer_version() -> String {
    format!("{{\"v\":{},", wire::VERSION + 1)
}

pub(super) async fn records_of_a_newer_version(state: &str) -> Story {
    let mut stand = Stand::start(&[]).await;
    let mut story = stand.begin().await;
    let url = stand.deployment.postgres.url();
    let project = stand.database.text("SELECT id::text FROM projects WHERE name = 'default'").await;
    let request = RequestContext { project: ProjectId(project.parse().expect("an id")), ..request_context() };
    let draft = conversion("of-a-newer-weir", "u-1", "2026-02-20T10:00:00Z", "buy", "1");
    let record = Record::encode(&rules::admit(draft, &request, generated_id).expect("a valid event"));
    let newer = String::from_utf8_lossy(record.bytes()).replacen("{\"v\":1,", &newer_version(), 1);
    assert!(newer.starts_with(&newer_version()), "{newer}");
    let operator = Operator::of(&stand.deployment.broker.servers);
    operator.produce(TOPIC, record.bucket().log_partition(8), &[newer.as_bytes()]);
    stand.halts(state, &mut story).await;

    // "Upgrade the aggregators". This build has no successor: its own aggregator reads the log through what a successor would do.
    let Stand { collector, aggregator, mut database, sent, deployment } = stand;
    aggregator.end();
    let log = KafkaLog::open(kafka::Config { topic: TOPIC.to_owned(), ..kafka::Config::new(&deployment.broker.servers) });
    let log = log.await.expect("the log opens");
    let config = aggregator::Config::new("127.0.0.1:0".parse().expect("an address"), url);
    let upgraded = Aggregator::start(config, Arc::new(Upgraded(log.clone())), Arc::new(log)).await.expect("starts");
    database.until(CONVERSIONS, sent + 1, READY_MAX).await;
    assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0, "nothing is skipped");
    let address = format!("http://{}", upgraded.address());
    let story = story.end(&[("collector", &collector.url), ("aggregator", &address)]).await;
    upgraded.stop().await;
    collector.end();
    story
}

pub(super) async fn records_that_are_no_events(state: &str) -> Story {
    let mut stand = Stand::start(&["--dead-letters-in-row-max", "20"]).await;
    let mut story = stand.begin().await;
    let url = stand.deployment.postgres.url();
    Operator::of(&stand.deployment.broker.servers).produce(TOPIC, 5, &[b"\x00\x00\x00\x2a avro".as_slice(); 30]);
    stand.halts(state, &mut story).await;

    let listed = command(&url, &["admin", "dead-letters", "list"]).await;
    assert!(listed.contains("undecodable"), "{listed}");
    command(&url, &["admin", "dead-letters", "discard", "--code", "undecodable"]).await;
    // Each is kept.
    stand.database.until("SELECT count(*) FROM dead_letters", 30, READY_MAX).await;
    stand.goes_on(story).await
}

/// The service itself, in the test's process: it gives up after four tries here, and after a hundred, three minutes later, as it is sold.
pub(super) async fn a_right_that_is_missing(state: &str) -> Story {
    let database = TestDatabase::create().await;
    let mut rows = Database::connect(&database.url).await;
    let project = request_context().project.0;
    rows.execute(&format!("INSERT INTO projects (id, name, auto_register) VALUES ('{project}', 'default', true)")).await;
    let log = MemoryLog::new(8);
    let append = async |ids: Range<u32>| {
        let event = |n| {
            rules::admit(
                conversion(&format!("c-{n}"), "one", "2026-02-20T10:00:00Z", "buy", "1"),
                &request_context(),
                generated_id,
            )
        };
        log.append(ids.map(|n| Record::encode(&event(n).expect("a valid event"))).collect()).await.expect("memory takes all");
    };
    let start = async || {
        let any = "127.0.0.1:0".parse().expect("an address");
        let config = aggregator::Config { commit_tries_max: 4, ..aggregator::Config::new(any, database.url.clone()) };
        Aggregator::start(config, Arc::new(log.clone()), Arc::new(log.clone())).await.expect("starts")
    };
    append(0..40).await;
    let aggregator = start().await;
    rows.until(CONVERSIONS, 40, READY_MAX).await;
    let address = format!("http://{}", aggregator.address());
    until_told(&address, 200, "").await;
    let mut story = Story::begin(&[("aggregator", &address)]).await;

    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
                      RAISE EXCEPTION 'permission denied for table project_progress' USING ERRCODE = '42501'; END $f$;
                  CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON project_progress FOR EACH ROW EXECUTE FUNCTION refuse()";
    rows.execute(refuse).await;
    append(40..80).await;
    until_told(&address, 503, state).await;
    for _ in 0..2 {
        story.during(&[("aggregator", &address)]).await;
    }
    assert_eq!(rows.number(CONVERSIONS).await, 40);

    rows.execute("DROP TRIGGER refuse ON project_progress").await;
    aggregator.stop().await;
    let aggregator = start().await;
    rows.until(CONVERSIONS, 80, READY_MAX).await;
    let address = format!("http://{}", aggregator.address());
    until_told(&address, 200, "").await;
    let story = story.end(&[("aggregator", &address)]).await;
    aggregator.stop().await;
    story
}

pub(super) async fn a_topic_made_anew(state: &str) -> Story {
    let mut stand = Stand::start(&[]).await;
    let mut story = stand.begin().await;
    let operator = Operator::of(&stand.deployment.broker.servers);
    operator.delete(TOPIC).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    operator.make(TOPIC, 8, &[]).await;
    stand.collector.until_unready("another").await;
    stand.halts(state, &mut story).await;

    // "If it is gone for good, start once with --adopt-log": the aggregators, then the collectors. The next start needs it no more.
    let Stand { deployment, collector, aggregator: former, database, sent } = stand;
    former.end();
    collector.end();
    let aggregator = aggregator(&deployment, &["--adopt-log"]);
    aggregator.until_ready().await;
    let data = deployment.folder.path().join("collector");
    let adopting = ["collector", "--collector", "127.0.0.1:0", "--adopt-log", "--data", data.to_str().expect("text")];
    let collector = deployment.service("collector", &adopting);
    collector.until_ready().await;
    stand = Stand { deployment, collector, aggregator, database, sent };
    stand.post().await;
    stand.until_stored().await;
    stand.restart_aggregator(&[]);
    stand.goes_on(story).await
}

pub(super) async fn records_that_expired(state: &str) -> Story {
    let mut stand = Stand::start(&[]).await;
    let mut story = stand.begin().await;
    let url = stand.deployment.postgres.url();
    // Three more that no aggregator stores in time, of which the first two expire.
    let user = "expired";
    let stored = {
        stand.one_of(user).await;
        stand.until_stored().await;
        let last = format!("SELECT log_partition::text || ' ' || log_offset FROM conversions WHERE external_id = '{user}'");
        stand.database.text(&last).await
    };
    let (partition, offset) = stored.split_once(' ').expect("two numbers");
    let (partition, offset): (u32, Offset) = (partition.parse().expect("a number"), offset.parse().expect("a number"));
    let mut locking = Database::connect(&url).await;
    locking.execute("BEGIN; LOCK TABLE checkpoints").await;
    for _ in 0..3 {
        stand.one_of(user).await;
    }
    let start = offset + 3;
    Operator::of(&stand.deployment.broker.servers).expire(TOPIC, partition, start).await;
    let Stand { deployment, collector, aggregator: former, database, sent } = stand;
    former.kill();
    locking.execute("ROLLBACK").await;
    stand = Stand { aggregator: aggregator(&deployment, &[]), deployment, collector, database, sent };
    stand.halts(state, &mut story).await;

    // Nobody can bring them back: the loss is accepted, with the start that `/readyz` names.
    let (_, said) = page(&format!("{}/readyz", stand.aggregator.url)).await;
    let named: Offset =
        said.split("below the log's start ").nth(1).and_then(|rest| rest.split(';').next()?.parse().ok()).expect(&said);
    assert_eq!(named, start);
    let Stand { deployment, collector, aggregator: former, mut database, sent } = stand;
    former.end();
    let log_id = database.text("SELECT log_id::text FROM logs").await;
    let accept = format!(
        "UPDATE checkpoints SET next_offset = {named}, last_crc = NULL WHERE log_id = '{log_id}' AND log_partition = {partition}"
    );
    database.execute(&accept).await;
    stand = Stand { aggregator: aggregator(&deployment, &[]), deployment, collector, database, sent: sent - 2 };
    stand.goes_on(story).await
}

pub(super) async fn an_old_copy_of_the_brokers_disk(state: &str) -> Story {
    let mut stand = Stand::start(&[]).await;
    let mut story = stand.begin().await;
    let broker = stand.deployment.broker.folder.clone();
    let (data, old, kept) = (broker.join("data-1"), broker.join("old"), broker.join("kept"));
    stand.deployment.broker.script("stop").await;
    copy(&data, &old).await;
    stand.deployment.broker.script("start").await;
    stand.post().await;
    stand.until_stored().await;
    let Stand { deployment, collector, aggregator: former, database, sent } = stand;
    former.end();
    deployment.broker.script("stop").await;
    fs::rename(&data, &kept).expect("moves");
    copy(&old, &data).await;
    deployment.broker.script("start").await;
    stand = Stand { aggregator: aggregator(&deployment, &[]), deployment, collector, database, sent };
    stand.halts(state, &mut story).await;

    // "Bring back the log that belongs to the database".
    let Stand { deployment, collector, aggregator: former, database, sent } = stand;
    former.end();
    deployment.broker.script("stop").await;
    fs::remove_dir_all(&data).expect("removes");
    fs::rename(&kept, &data).expect("moves");
    deployment.broker.script("start").await;
    stand = Stand { aggregator: aggregator(&deployment, &[]), deployment, collector, database, sent };
    stand.goes_on(story).await
}

async fn copy(from: &std::path::Path, to: &std::path::Path) {
    let mut copy = std::process::Command::new("cp");
    copy.arg("-a").arg(from).arg(to);
    assert!(run(copy, Duration::from_secs(30)).await.status.success());
}

impl Stand {
    /// Sends one event of a user.
    async fn one_of(&mut self, user: &str) {
        let event = json!({"type": "conversion", "user_id": user, "name": "buy"});
        let url = format!("{}/v1/events", self.collector.url);
        let (status, answer) =
            send(Method::POST, &url, KEY, Some(json!({ "events": [event] }))).await.expect("the collector answers");
        assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
        self.sent += 1;
    }
}

/// The log of one machine: a byte of an acknowledged record that is not stored yet, in two log partitions. One file comes back from a
/// copy, the loss in the other is accepted.
pub(super) async fn a_damaged_log_file(state: &str) -> Story {
    let (database, folder) = (TestDatabase::create().await, Folder::new());
    let start = || {
        Up::start_with(&folder, |command| {
            command.args(["--database-url", &database.url]);
        })
    };
    let event = |user: &str, n: u32| json!({"type": "conversion", "user_id": user, "name": format!("{user}-{n}")});
    let up = start();
    let mut rows = Database::connect(&database.url).await;
    // Users' ids are others in each run: one after another sends an event until two log partitions have one.
    let (mut users, mut partitions) = (Vec::new(), Vec::new());
    while partitions.first() == partitions.last() {
        let user = format!("user-{}", users.len());
        up.accepted(vec![event(&user, 0)]).await;
        rows.until(&format!("{CONVERSIONS} WHERE external_id = '{user}'"), 1, READY_MAX).await;
        partitions
            .push(rows.number(&format!("SELECT log_partition::bigint FROM conversions WHERE external_id = '{user}'")).await);
        users.push(user);
    }
    let alone = users.len() - 1;
    let (users, partitions) = ([&users[0], &users[alone]], [partitions[0], partitions[alone]]);
    let jobs = |up: &Up| ["collector", "aggregator", "query"].map(|job| (job, up.line(job).to_owned()));
    let begin = jobs(&up);
    let mut story = Story::begin(&begin.each_ref().map(|(job, url)| (*job, url.as_str()))).await;

    rows.execute("BEGIN; LOCK TABLE checkpoints").await;
    for n in 1..4 {
        // Each request is synced by itself.
        up.accepted(users.iter().map(|user| event(user, n)).collect()).await;
    }
    up.kill();
    rows.execute("ROLLBACK").await;
    let files = partitions.map(|partition| folder.path().join(format!("log/partition-{partition:02}/{:020}.log", 0)));
    let copies = files.each_ref().map(|file| fs::read(file).expect("a log file"));
    for ((file, copy), user) in files.iter().zip(&copies).zip(users) {
        let mut bytes = copy.clone();
        let name = format!("{user}-1");
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).expect("the record");
        bytes[at] ^= 1;
        fs::write(file, bytes).expect("writes");
    }
    let up = start();
    until_told(up.line("aggregator"), 503, state).await;
    let during = jobs(&up);
    for _ in 0..2 {
        story.during(&during.each_ref().map(|(job, url)| (*job, url.as_str()))).await;
    }
    // Events are taken, and those of other log partitions stored.
    up.accepted((0..OF_ALL).map(|user| event(&format!("other-{user}"), 0)).collect()).await;
    let others = format!(
        "SELECT count(DISTINCT log_partition) FROM conversions WHERE external_id LIKE 'other-%' AND log_partition NOT IN ({}, {})",
        partitions[0], partitions[1]
    );
    rows.until(&others, 6, READY_MAX).await;
    let damaged = format!("log partition {}: records 1 to 2 are damaged", partitions[1]);
    assert!(folder.log().contains(&damaged), "{damaged} is not told");
    assert!(up.end(Signal::TERM).success());

    fs::write(&files[0], &copies[0]).expect("writes");
    let accept = format!(
        "UPDATE checkpoints SET next_offset = 2, last_crc = NULL WHERE log_id = (SELECT log_id FROM logs) AND log_partition = {}",
        partitions[1]
    );
    rows.execute(&accept).await;
    let up = start();
    // All of one user, and those of the other that are whole.
    for (user, stored) in users.iter().zip([4, 3]) {
        rows.until(&format!("{CONVERSIONS} WHERE external_id = '{user}'"), stored, READY_MAX).await;
    }
    rows.until(CONVERSIONS, (OF_ALL + 4 + 3 + alone - 1) as i64, READY_MAX).await;
    let end = jobs(&up);
    let story = story.end(&end.each_ref().map(|(job, url)| (*job, url.as_str()))).await;
    assert!(up.end(Signal::TERM).success());
    story
}
