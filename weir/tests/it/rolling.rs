//! A rolling upgrade of separate services over Kafka, as CHANGELOG.md describes it under "Upgrading", beside a database and records that
//! a former release wrote, while events come in. The services are those of today's build: a former release's program is not kept.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use catalogue::KeyKind;
use catalogue::keys::{self, NewKey};
use eventlog::embedded::{EmbeddedLog, Options};
use eventlog::kafka::{self, KafkaLog};
use eventlog::{Append, Read, ReadBound};
use events::Record;
use hyper::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::harness::{send, weir};
use crate::load::Load;
use crate::services::{Deployment, KEY, TOPIC, is_skipped};
use crate::support::{Database, run};
use crate::upgrade::{STORED, expected_events, releases, restored, unpacked};

const TOKEN: &str = "read-token-of-the-test";
/// The experiment of the former release, whose participation and attribution it wrote.
const FORMER: &str = "checkout_button";

#[tokio::test(flavor = "multi_thread")]
async fn services_are_upgraded_one_by_one_while_events_come_in() {
    if is_skipped("services_are_upgraded_one_by_one_while_events_come_in") {
        return;
    }
    let release = releases().pop().expect("a release");
    let mut deployment = Deployment::start().await;
    deployment.database_url = restored(&release, &deployment.postgres.url()).await;
    make_keys(&deployment.database_url).await;
    move_log(&deployment, &release).await;
    let mut database = Database::connect(&deployment.database_url).await;
    let former = database.number(STORED).await;
    let schema = "SELECT max(version) FROM _sqlx_migrations";
    let (before, participation) = (database.number(schema).await, participation(&mut database).await);
    assert_eq!(before, 5, "the former schema");

    // 1. Collectors, one after the other behind what balances the load between them.
    let first = deployment.collector_in("collector-1");
    first.until_ready().await;
    let load = Load::at_1000_events_a_second();
    load.aim(&first.url, KEY);
    let clients = load.start();
    load.goes_on(0).await;
    let second = deployment.collector_in("collector-2");
    second.until_ready().await;
    load.aim(&second.url, KEY);
    load.goes_on(1).await;
    first.end();
    // Aggregators and query service of this build wait for step 2, and say so.
    for service in ["aggregator", "query"] {
        let said = refused(&deployment, service).await;
        assert!(said.contains("schema_unsupported") && said.contains("weir migrate"), "{service}: {said}");
    }
    assert_eq!(database.number(STORED).await, former, "what comes waits in the log");

    // 2. The schema.
    let mut migrate = weir();
    migrate.args(["migrate", "--database-url", &deployment.database_url]);
    let migrated = run(migrate, Duration::from_secs(60)).await;
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    assert!(database.number(schema).await > before);
    load.goes_on(2).await;
    second.until_ready().await;

    // 3. Aggregators, one after the other. Over Kafka the log is another one than the release's embedded one: adopted, once.
    let adopting = deployment.service("aggregator-1", &["aggregator", "--aggregator", "127.0.0.1:0", "--adopt-log"]);
    adopting.until_ready().await;
    load.goes_on(3).await;
    let other = deployment.aggregator("aggregator-2");
    other.until_ready().await;
    let owners =
        "SELECT count(DISTINCT owner) FROM leases WHERE log_id = (SELECT log_id FROM logs ORDER BY last_used_at DESC LIMIT 1)";
    database.until(owners, 2, Duration::from_secs(60)).await;

    // 4. The query service. From here on it answers all the time, each time with at least what it knew before.
    let query = deployment.service("query", &["query", "--query", "127.0.0.1:0"]);
    query.until_ready().await;
    let asking = Asking::start(&query.url);
    load.goes_on(4).await;

    // Each is replaced once more, as by the next release with the same schema: the new one is there before the old one goes.
    let third = deployment.aggregator("aggregator-3");
    third.until_ready().await;
    adopting.end();
    load.goes_on(5).await;
    let last = deployment.collector_in("collector-3");
    last.until_ready().await;
    load.aim(&last.url, KEY);
    load.goes_on(6).await;
    second.end();
    load.goes_on(7).await;

    assert_eq!(load.repeated(), 0, "each request was answered 200 at its first try");
    let acknowledged = load.end(clients).await;
    let expected = expected_events(&release) + i64::try_from(acknowledged.len()).expect("few");
    database.until(STORED, expected, Duration::from_secs(90)).await;
    let answers = asking.end().await;
    eprintln!("{} events acknowledged meanwhile, {answers} answers", acknowledged.len());
    let ids = "SELECT id FROM impressions UNION ALL SELECT id FROM conversions ORDER BY id";
    let stored: Vec<(Uuid,)> = database.rows(ids).await;
    let ours = stored.iter().filter(|(id,)| acknowledged.contains_key(id));
    assert!(ours.map(|(id,)| id).eq(acknowledged.keys()), "each acknowledged event is stored, once");
    let kept = "SELECT sum(conversion_value)::bigint FROM conversions WHERE conversion_type = 'kept'";
    assert_eq!(database.number(kept).await, 5_050, "those that the former release had not stored");
    assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0);
    assert_eq!(self::participation(&mut database).await, participation, "what the former release derived stays");
    for experiment in ["kills", FORMER] {
        let mut recompute = weir();
        recompute.args(["admin", "recompute", experiment, "--database-url", &deployment.database_url]);
        let ended = run(recompute, Duration::from_secs(120)).await;
        let out = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && out.contains("nothing differed"), "{experiment}: {out}");
    }
    for service in [query, other, third, last] {
        service.end();
    }
}

async fn participation(database: &mut Database) -> i64 {
    let of_former = format!(
        "SELECT count(*) FROM user_experiment_participation p JOIN experiments e ON e.id = p.experiment_id WHERE e.name = '{FORMER}'"
    );
    database.number(&of_former).await
}

/// Gives the former database's project keys that the test knows.
async fn make_keys(database_url: &str) {
    let mut connection = PgConnection::connect(database_url).await.expect("connects");
    let project: Uuid =
        sqlx::query_scalar("SELECT id FROM projects WHERE name = 'default'").fetch_one(&mut connection).await.expect("a project");
    for (kind, text) in [(KeyKind::Write, KEY), (KeyKind::Read, TOKEN)] {
        keys::add(&mut connection, project, &NewKey::new(kind, "of the test", text)).await.expect("a new key");
    }
}

/// Puts the records that the former release had acknowledged and not stored into Kafka, their bytes as they are.
async fn move_log(deployment: &Deployment, release: &Path) {
    let folder = deployment.folder.path().join("former");
    fs::create_dir(&folder).expect("a folder");
    unpacked(release, &folder).await;
    let former = EmbeddedLog::open(&folder.join("log"), Options::default()).expect("the former log opens");
    let log = KafkaLog::open(kafka::Config { topic: TOPIC.to_owned(), ..kafka::Config::new(&deployment.broker.servers) });
    let log = log.await.expect("the topic is made");
    let mut database = Database::connect(&deployment.database_url).await;
    let mut moved = 0;
    for partition in 0..Read::identity(&former).partitions {
        let next = database.number(&format!("SELECT next_offset FROM checkpoints WHERE log_partition = {partition}")).await;
        let bound = ReadBound { records_max: 10_000, bytes_max: 1 << 24, wait_max: Duration::ZERO };
        let records = former.read(partition, u64::try_from(next).expect("an offset"), bound).await.expect("reads");
        let records: Vec<Record> =
            records.into_iter().map(|record| Record::from_bytes(record.bytes).expect("an event of this version")).collect();
        moved += records.len();
        if !records.is_empty() {
            log.append(records).await.expect("Kafka takes them");
        }
    }
    assert_eq!(moved, 100, "records of the former release wait");
}

/// What a service says that does not start.
async fn refused(deployment: &Deployment, service: &str) -> String {
    let mut command = weir();
    command.args([service, &format!("--{service}"), "127.0.0.1:0", "--database-url", &deployment.database_url]);
    if service == "aggregator" {
        command.args(["--kafka", &deployment.broker.servers, "--topic", TOPIC]);
    }
    let ended = run(command, Duration::from_secs(30)).await;
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

/// Somebody who asks again and again how many events there are.
struct Asking {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Asking {
    fn start(query: &str) -> Self {
        let (is_over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, counted, url) = (Arc::clone(&is_over), Arc::clone(&answers), format!("{query}/v1/sql"));
        let task = tokio::spawn(async move {
            let mut before = 0;
            while !until.load(Ordering::Relaxed) {
                let question: Value = json!({"sql": "SELECT count(*) FROM events"});
                let (status, answer) = send(Method::POST, &url, TOKEN, Some(question)).await.expect("the query service answers");
                assert_eq!(status, 200, "{answer}");
                let count = answer["rows"][0][0].as_i64().unwrap_or_else(|| panic!("{answer}"));
                assert!(count >= before, "{count} events after {before}");
                before = count;
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Asking { is_over, answers, task }
    }

    /// Ends it, and returns how many answers came.
    async fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("each question was answered");
        let answers = self.answers.load(Ordering::Relaxed);
        assert!(answers > 0);
        answers
    }
}
