//! Separate services over a real Kafka: what survives which death, outage and operator. Needs a broker of its own for each test,
//! which `deploy/kafka.sh` starts; skipped aloud where `WEIR_TEST_KAFKA` is not set, as `make test` does.
//! `WEIR_KAFKA_BROKERS=3` makes three of each; `WEIR_KILLS` and `WEIR_OUTAGE_SECONDS` make the tests longer, as `make chaos` does.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use eventlog::kafka::testing::Operator;
use hyper::Method;
use migrations::testing::TestServer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{END_MAX, is_running, send, until, weir};
use crate::load::Load;
use crate::support::{Database, number, page, run};

pub(crate) const KEY: &str = "write-key-of-the-test";
pub(crate) const TOPIC: &str = "weir.events";
pub(crate) const READY_MAX: Duration = Duration::from_secs(40);

pub(crate) fn is_skipped(test: &str) -> bool {
    let skipped = std::env::var_os("WEIR_TEST_KAFKA").is_none();
    if skipped {
        eprintln!("skipped: {test} needs a Kafka broker; `make test` starts one and sets WEIR_TEST_KAFKA");
    }
    skipped
}

/// A broker of the test's own.
pub(crate) struct Broker {
    pub(crate) folder: PathBuf,
    pub(crate) servers: String,
}

impl Broker {
    pub(crate) async fn start(folder: &Path) -> Self {
        let mut broker = Broker { folder: folder.join("kafka"), servers: String::new() };
        broker.servers = broker.script("start").await.trim().to_owned();
        broker
    }

    pub(crate) async fn script(&self, verb: &str) -> String {
        let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kafka.sh"));
        script.arg(verb).arg(&self.folder);
        let ended = run(script, Duration::from_secs(120)).await;
        assert!(ended.status.success(), "kafka.sh {verb}: {}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8_lossy(&ended.stdout).into_owned()
    }

    pub(crate) fn pid(&self) -> Pid {
        let text = std::fs::read_to_string(self.folder.join("1.pid")).expect("it runs");
        Pid::from_raw(text.trim().parse().expect("a number")).expect("a process")
    }

    /// Kills it and starts it again, on its port and its data.
    pub(crate) async fn kill_and_start(&self) {
        let broker = self.pid();
        kill_process(broker, Signal::KILL).expect("it runs");
        // The script takes one that is still dying for one that runs.
        until("the broker is dead", Duration::from_secs(10), || !is_running(broker));
        self.script("start").await;
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for broker in 1..=3 {
            if let Ok(text) = std::fs::read_to_string(self.folder.join(format!("{broker}.pid")))
                && let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// One running service.
pub(crate) struct Service {
    child: Child,
    pub(crate) url: String,
}

impl Service {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).expect("a process has an id")
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child of ours");
    }

    pub(crate) fn end(mut self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
        let mut status = None;
        until("the service ends", END_MAX, || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        assert!(status.expect("it has ended").success());
    }

    pub(crate) async fn until_ready(&self) {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let (status, text) = page(&format!("{}/readyz", self.url)).await;
            if status == 200 {
                return;
            }
            assert!(Instant::now() < deadline, "{}: {status} {text}", self.url);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until `/readyz` is refused with this text.
    pub(crate) async fn until_unready(&self, expected: &str) {
        let deadline = Instant::now() + READY_MAX;
        loop {
            let (status, text) = page(&format!("{}/readyz", self.url)).await;
            if status == 503 && text.contains(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "{}: {status} {text}; {expected} was expected", self.url);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A number of its metrics' page.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = page(&format!("{}/metrics", self.url)).await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().expect("a number")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = kill_process(self.pid(), Signal::CONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kafka, Postgres, and the folder of the services' data and output.
pub(crate) struct Deployment {
    pub(crate) folder: TempDir,
    pub(crate) broker: Broker,
    pub(crate) postgres: TestServer,
    /// The database of all services.
    pub(crate) database_url: String,
}

impl Deployment {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("weir-services-").tempdir().expect("a folder");
        let broker = Broker::start(folder.path()).await;
        let postgres = TestServer::start().await;
        let mut migrate = weir();
        migrate.args(["migrate", "--database-url", &postgres.url()]).env("WEIR_WRITE_KEY", KEY);
        let ended = run(migrate, Duration::from_secs(60)).await;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let mut database = Database::connect(&postgres.url()).await;
        database.execute("UPDATE projects SET auto_register = true").await;
        let database_url = postgres.url();
        Deployment { folder, broker, postgres, database_url }
    }

    pub(crate) fn service(&self, name: &str, arguments: &[&str]) -> Service {
        self.service_with(name, arguments, |_| {})
    }

    /// The same, with variables of the test.
    pub(crate) fn service_with(&self, name: &str, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Service {
        let log = self.folder.path().join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(log).expect("a file");
        let mut command = weir();
        command.args(arguments).args(["--database-url", &self.database_url]);
        // The query service knows no log.
        if arguments[0] != "query" {
            command.args(["--kafka", &self.broker.servers, "--topic", TOPIC]);
        }
        change(&mut command);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("weir starts");
        let stdout = child.stdout.take().expect("was piped");
        let mut service = Service { child, url: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let said = || std::fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default();
        let (_, url) = line.trim_end().split_once(' ').unwrap_or_else(|| panic!("{name} did not start: {line:?} {}", said()));
        service.url = url.to_owned();
        service
    }

    pub(crate) fn collector(&self) -> Service {
        self.collector_in("collector")
    }

    /// One of several, with a data folder of its own.
    pub(crate) fn collector_in(&self, folder: &str) -> Service {
        self.collector_of(folder, |_| {})
    }

    /// One with variables of the test.
    pub(crate) fn collector_with(&self, change: impl FnOnce(&mut Command)) -> Service {
        self.collector_of("collector", change)
    }

    fn collector_of(&self, folder: &str, change: impl FnOnce(&mut Command)) -> Service {
        let data = self.folder.path().join(folder);
        std::fs::create_dir_all(&data).expect("a folder");
        let arguments = ["collector", "--collector", "127.0.0.1:0", "--data", data.to_str().expect("text")];
        self.service_with(folder, &arguments, change)
    }

    pub(crate) fn aggregator(&self, name: &str) -> Service {
        self.service(name, &["aggregator", "--aggregator", "127.0.0.1:0"])
    }

    /// What a service wrote.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap_or_default()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let logs = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            eprintln!("--- {}\n{}", log.display(), std::fs::read_to_string(&log).unwrap_or_default());
        }
    }
}

/// Each part in turn is killed under load, again and again; the others go on, and it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn each_service_is_killed_and_nothing_is_lost_or_repeated() {
    if is_skipped("each_service_is_killed_and_nothing_is_lost_or_repeated") {
        return;
    }
    let mut deployment = Deployment::start().await;
    let mut collector = deployment.collector();
    let (mut first, mut second) = (deployment.aggregator("first"), deployment.aggregator("second"));
    collector.until_ready().await;
    let load = Load::default();
    load.aim(&collector.url, KEY);
    let clients = load.start();
    for kill in 0..number("WEIR_KILLS", 10) {
        load.goes_on(kill).await;
        collector.kill();
        load.aim_nowhere();
        collector = deployment.collector();
        load.aim(&collector.url, KEY);
        load.goes_on(kill + 1).await;
        first.kill();
        first = deployment.aggregator("first");
        load.goes_on(kill + 2).await;
        deployment.postgres.kill_and_start();
        load.goes_on(kill + 3).await;
        second.kill();
        // An aggregator says what is wrong and ends while Postgres starts; whoever runs it starts it again.
        Database::connect(&deployment.postgres.url()).await;
        second = deployment.aggregator("second");
        load.goes_on(kill + 4).await;
        deployment.broker.kill_and_start().await;
        eprintln!("round {kill}: {} events acknowledged", load.count());
    }
    assert!(load.repeated() > 0, "no kill met a request");
    load.check(clients, &deployment.postgres.url()).await;
    for service in [collector, first, second] {
        service.end();
    }
}

/// One aggregator freezes inside a COPY, holding the locks of its transaction. The other one ends its backend and takes over; when
/// it wakes, it stores nothing twice and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_freezes_is_replaced() {
    if is_skipped("an_aggregator_that_freezes_is_replaced") {
        return;
    }
    let deployment = Deployment::start().await;
    let collector = deployment.collector();
    collector.until_ready().await;
    let load = Load::default();
    load.aim(&collector.url, KEY);
    let clients = load.start();
    let first = deployment.aggregator("first");
    first.until_ready().await;
    let second = deployment.aggregator("second");
    let mut database = Database::connect(&deployment.postgres.url()).await;
    let owners = "SELECT count(DISTINCT owner) FROM leases WHERE owner IS NOT NULL";
    database.until(owners, 2, READY_MAX).await;

    let copying =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'weir aggregator, writer' AND query LIKE 'COPY%'
                   AND state = 'active' AND wait_event = 'ClientRead' AND query_start < clock_timestamp() - interval '150 ms'";
    let deadline = Instant::now() + Duration::from_secs(120);
    let frozen_at = loop {
        assert!(Instant::now() < deadline, "the aggregator was never met inside a COPY");
        let began = Instant::now();
        kill_process(first.pid(), Signal::STOP).expect("it runs");
        tokio::time::sleep(Duration::from_millis(200)).await;
        if database.number(copying).await > 0 {
            break began;
        }
        kill_process(first.pid(), Signal::CONT).expect("it runs");
        tokio::time::sleep(Duration::from_millis(13)).await;
    };
    database.until(owners, 1, Duration::from_secs(30)).await;
    let took = frozen_at.elapsed();
    assert!(took < Duration::from_secs(20), "taken over after {took:?}");
    eprintln!("taken over after {took:?}");
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(frozen_at.elapsed())).await;
    kill_process(first.pid(), Signal::CONT).expect("it runs");
    database.until(owners, 2, READY_MAX).await;
    load.goes_on(0).await;
    load.check(clients, &deployment.postgres.url()).await;
    for service in [collector, first, second] {
        service.end();
    }
}

/// Kafka is down for a while under load. Requests are answered all the same, and what each user did arrives in its order.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_kafka_is_bridged_in_order() {
    if is_skipped("an_outage_of_kafka_is_bridged_in_order") {
        return;
    }
    const USERS: u32 = 8;
    let outage = Duration::from_secs(u64::from(number("WEIR_OUTAGE_SECONDS", 20)));
    let deployment = Deployment::start().await;
    let collector = deployment.collector();
    let aggregator = deployment.aggregator("aggregator");
    let second = deployment.aggregator("second");
    collector.until_ready().await;
    let (sender, over) = tokio::sync::watch::channel(false);
    let url = format!("{}/v1/events", collector.url);
    let mut users = tokio::task::JoinSet::new();
    for user in 0..USERS {
        let (url, over) = (url.clone(), over.clone());
        // One event after the other: each is acknowledged before the next is sent.
        users.spawn(async move {
            let mut sent = 0u64;
            while !*over.borrow() {
                let event = json!({"type": "conversion", "event_id": uuid::Uuid::new_v4().to_string(), "user_id": format!("user-{user}"),
                                   "timestamp": events::Micros::now().to_string(), "name": "step", "value": sent.to_string(), "currency": "EUR"});
                let (status, answer) =
                    send(Method::POST, &url, KEY, Some(json!({ "events": [event] }))).await.expect("the collector answers");
                assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
                sent += 1;
            }
            sent
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    deployment.broker.script("stop").await;
    let stopped = Instant::now();
    // Whatever it was about to ask the brokers: it does not wait for the answer.
    second.end();
    tokio::time::sleep(outage).await;
    assert!(collector.metric("weir_collector_spool_records").await > 0.0, "nothing was spooled in {:?}", stopped.elapsed());
    deployment.broker.script("start").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    sender.send_replace(true);
    let mut total = 0;
    while let Some(sent) = users.join_next().await {
        total += sent.expect("no request was refused");
    }
    let mut database = Database::connect(&deployment.postgres.url()).await;
    database.until("SELECT count(*) FROM conversions", i64::try_from(total).expect("few"), Duration::from_secs(90)).await;
    let disordered = "SELECT count(*) FROM (
             SELECT conversion_value - lag(conversion_value, 1, -1) OVER (PARTITION BY user_id ORDER BY log_offset) AS step FROM conversions
         ) s WHERE step <> 1";
    assert_eq!(database.number(disordered).await, 0, "of {total} events");
    let deadline = Instant::now() + Duration::from_secs(30);
    while collector.metric("weir_collector_spool_records").await > 0.0 {
        assert!(Instant::now() < deadline, "the spool is not empty");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    eprintln!("{total} events of {USERS} users, all answered 200, over an outage of {:?}", stopped.elapsed());
    collector.end();
    aggregator.end();
}

/// The only broker restarts in good order, again and again, under load. While it ends it tells its clients that there are no
/// brokers, and for some of them the connection breaks just then; they find it again all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_in_good_order_is_found_again() {
    if is_skipped("a_broker_that_restarts_in_good_order_is_found_again") {
        return;
    }
    let deployment = Deployment::start().await;
    let collector = deployment.collector();
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let load = Load::default();
    load.aim(&collector.url, KEY);
    let clients = load.start();
    for restart in 0..number("WEIR_RESTARTS", 4) {
        load.goes_on(restart).await;
        deployment.broker.script("stop").await;
        // Neither always the same time after the last event, nor always the same length.
        tokio::time::sleep(Duration::from_millis(500 + 130 * u64::from(restart % 13))).await;
        deployment.broker.script("start").await;
        let sent = i64::try_from(load.count()).expect("few");
        let mut database = Database::connect(&deployment.postgres.url()).await;
        let stored = "(SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions)";
        database.until(&format!("SELECT least({stored}, {sent})"), sent, Duration::from_secs(30)).await;
        eprintln!("restart {restart}: {sent} events acknowledged and stored");
    }
    let lost = ["collector", "aggregator"].map(|name| deployment.log(name).matches("lost all its brokers").count());
    eprintln!("clients that had lost all their brokers, in the collector and the aggregator: {lost:?}");
    load.check(clients, &deployment.postgres.url()).await;
    collector.end();
    aggregator.end();
}

/// Kafka is down and the disk of the spool full: refusals with `Retry-After`, nothing acknowledged is lost, and both come back by
/// themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_spool_refuses_and_recovers() {
    if is_skipped("a_full_disk_of_the_spool_refuses_and_recovers") {
        return;
    }
    let deployment = Deployment::start().await;
    let data = deployment.folder.path().join("collector");
    std::fs::create_dir_all(&data).expect("a folder");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(&data);
    if !run(mount, Duration::from_secs(5)).await.status.success() {
        eprintln!("skipped: a_full_disk_of_the_spool_refuses_and_recovers may not mount a small disk here");
        return;
    }
    struct Unmount(PathBuf);
    impl Drop for Unmount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _unmount = Unmount(data);
    let collector = deployment.collector();
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    deployment.broker.script("stop").await;

    let url = format!("{}/v1/events", collector.url);
    let padding = "x".repeat(7_000);
    let mut acknowledged = 0i64;
    let mut refused = None;
    let deadline = Instant::now() + Duration::from_secs(120);
    while refused.is_none() {
        assert!(Instant::now() < deadline, "{acknowledged} events were taken by a disk of 6 MiB");
        let events: Vec<Value> = (0..50)
            .map(|_| {
                let id = uuid::Uuid::new_v4().to_string();
                json!({"type": "engagement", "event_id": id, "user_id": id, "name": "long", "properties": {"padding": padding}})
            })
            .collect();
        match send(Method::POST, &url, KEY, Some(json!({ "events": events }))).await.expect("the collector answers") {
            (200, answer) => acknowledged += answer["accepted"].as_i64().expect("a number"),
            (status, answer) => refused = Some((status, answer)),
        }
    }
    let (status, answer) = refused.expect("just seen");
    assert_eq!(status, 503, "{answer}");
    assert!(acknowledged > 0);
    collector.until_unready("").await;

    deployment.broker.script("start").await;
    let mut database = Database::connect(&deployment.postgres.url()).await;
    // Of the request that was refused some events may be there: they were spooled before the disk was full.
    let stored = "SELECT least(count(*), $1) FROM engagement_events".replace("$1", &acknowledged.to_string());
    database.until(&stored, acknowledged, Duration::from_secs(60)).await;
    collector.until_ready().await;
    let one = json!({"type": "engagement", "user_id": "after", "name": "short"});
    let (status, answer) = send(Method::POST, &url, KEY, Some(json!({ "events": [one] }))).await.expect("the collector answers");
    assert_eq!(status, 200, "{answer}");
    database.until("SELECT count(*) FROM engagement_events WHERE event_type = 'short'", 1, Duration::from_secs(30)).await;
    collector.end();
    aggregator.end();
}

/// What operators do to a topic: each is met by a state with a name, and nothing is skipped.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_changed_halts_by_name() {
    if is_skipped("a_topic_that_was_changed_halts_by_name") {
        return;
    }
    let deployment = Deployment::start().await;
    let collector = deployment.collector();
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let url = format!("{}/v1/events", collector.url);
    let post = async || {
        let events: Vec<Value> =
            (0..200).map(|user| json!({"type": "conversion", "user_id": format!("u-{user}"), "name": "buy"})).collect();
        send(Method::POST, &url, KEY, Some(json!({ "events": events }))).await.expect("the collector answers")
    };
    assert_eq!(post().await.0, 200);
    let mut database = Database::connect(&deployment.postgres.url()).await;
    database.until("SELECT count(*) FROM conversions", 200, READY_MAX).await;

    // Records expire before they were stored.
    aggregator.end();
    assert_eq!(post().await.0, 200);
    let operator = Operator::of(&deployment.broker.servers);
    let ends = "SELECT max(log_offset) FROM conversions WHERE log_partition = ";
    for partition in 0..8 {
        // Behind the last one that was stored, and before the end.
        let stored = database.number(&format!("{ends}{partition}")).await;
        operator.expire(TOPIC, partition, u64::try_from(stored).expect("an offset") + 2).await;
    }
    let aggregator = deployment.aggregator("aggregator");
    aggregator.until_unready("offset_below_log_start").await;
    assert_eq!(database.number("SELECT count(*) FROM conversions").await, 200);
    aggregator.end();

    // The topic is deleted and made anew, with the same name.
    operator.delete(TOPIC).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    operator.make(TOPIC, 8, &[]).await;
    collector.until_unready("another").await;
    assert_eq!(post().await.0, 503);
    let mut other = weir();
    other.args(["aggregator", "--aggregator", "127.0.0.1:0", "--kafka", &deployment.broker.servers]);
    other.args(["--topic", TOPIC, "--database-url", &deployment.postgres.url()]);
    let ended = run(other, Duration::from_secs(60)).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && said.contains("--adopt-log"), "{said}");
    collector.end();

    // Adopted, it goes on; then partitions are added, and users would lie elsewhere.
    let adopting = ["aggregator", "--aggregator", "127.0.0.1:0", "--adopt-log"];
    let aggregator = deployment.service("aggregator", &adopting);
    aggregator.until_ready().await;
    operator.widen(TOPIC, 16).await;
    aggregator.until_unready("log_differs").await;
    assert!(deployment.log("aggregator").contains("16 partitions"), "{}", deployment.log("aggregator"));
}
