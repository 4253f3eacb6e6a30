//! The query service as a process, asked what takes for ever or too much: it ends what nobody waits for, and its memory has a bound.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use migrations::testing::TestDatabase;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{END_MAX, children, is_running, send, until, weir};
use crate::support::{Database, page};

pub(crate) const TOKEN: &str = "token-of-the-test";
const EVENTS: i64 = 20_000;
/// A worker's bound here, less than the usual one so that the machine of the test need not have it.
const WORKER_BYTES_MAX: u64 = 400 * 1024 * 1024;
/// What a process has in memory beside what is bounded: its program, mostly.
const PROGRAM_BYTES_MAX: u64 = 300 * 1024 * 1024;

pub(crate) struct Query {
    child: Child,
    pub(crate) url: String,
    rows: Database,
    pub(crate) database: TestDatabase,
}

impl Query {
    /// Starts the service over a database with events.
    pub(crate) async fn start(change: impl FnOnce(&mut Command)) -> Self {
        let database = TestDatabase::create().await;
        let migrated = weir().args(["migrate", "--database-url", &database.url]).env("WEIR_READ_TOKEN", TOKEN).output();
        assert!(migrated.expect("starts").status.success());
        let mut rows = Database::connect(&database.url).await;
        let insert = format!(
            "INSERT INTO engagement_events (project_id, id, user_id, claimed_at, event_time, received_at, untimed, is_bot, log_id,
                 log_partition, log_offset, event_type)
             SELECT (SELECT id FROM projects WHERE name = 'default'), gen_random_uuid(), gen_random_uuid(), t, t, t, false, false,
                 gen_random_uuid(), 0, i, 'event ' || i
             FROM (SELECT i, timestamptz '2026-03-01T00:00:00Z' AS t FROM generate_series(1, {EVENTS}) i) s"
        );
        rows.execute(&insert).await;
        let mut command = weir();
        command.args(["query", "--until-stdin-closes", "--query", "127.0.0.1:0", "--database-url", &database.url]);
        change(&mut command);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("was piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("says where it is");
        let url = line.trim_end().strip_prefix("query ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        Query { child, url, rows, database }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn workers(&self) -> Vec<Pid> {
        children(self.pid()).into_iter().filter(|pid| is_running(*pid)).collect()
    }

    async fn sql(&self, sql: &str) -> (u16, Value) {
        let url = format!("{}/v1/sql", self.url);
        send(Method::POST, &url, TOKEN, Some(json!({ "sql": sql }))).await.expect("answers")
    }

    pub(crate) async fn counts(&self) {
        let (status, answer) = self.sql("SELECT count(*) FROM events").await;
        assert_eq!((status, &answer["rows"]), (200, &json!([[EVENTS]])), "{answer}");
    }

    /// Asks on a connection of its own.
    pub(crate) async fn asked(&self, route: &str, body: &Value) -> TcpStream {
        let address = self.url.strip_prefix("http://").expect("an address");
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let body = body.to_string();
        let head = format!(
            "POST {route} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await.expect("sent");
        stream
    }

    /// Asks, and goes.
    pub(crate) async fn abandon(&self, route: &str, body: &Value) {
        self.abandon_after(Duration::from_millis(350), route, body).await;
    }

    async fn abandon_after(&self, wait: Duration, route: &str, body: &Value) {
        let stream = self.asked(route, body).await;
        tokio::time::sleep(wait).await;
        drop(stream);
    }

    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (status, text) = page(&format!("{}/metrics", self.url)).await;
        assert_eq!(status, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or(0.0)
    }

    /// Waits until nothing that was asked goes on: not here, not in a worker, not in Postgres.
    pub(crate) async fn until_idle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let running = self.metric("weir_query_running").await;
            let backends = self.rows.number(BUSY_BACKENDS).await;
            let workers = self.workers();
            let computing = workers.iter().filter(|pid| computes(**pid)).count();
            if running == 0.0 && backends == 0 && workers.len() == 3 && computing == 0 {
                return;
            }
            if Instant::now() >= deadline {
                let backends = self.rows.text(&BUSY_BACKENDS.replace("count(*)", BACKENDS)).await;
                panic!("{running} running, {} workers, {computing} compute, backends: {backends}", workers.len());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        let mut ended = None;
        until("the query service ends", END_MAX, || {
            ended = self.child.try_wait().expect("a child of ours");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const BACKENDS: &str =
    "coalesce(string_agg(concat_ws(' ', application_name, state, wait_event, now() - state_change, left(query, 100)), '; '), '')";
const BUSY_BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity
     WHERE datname = current_database() AND application_name LIKE 'weir query%' AND state <> 'idle'";

/// Whether a process uses a processor: twice the same time, some milliseconds apart, is none.
fn computes(pid: Pid) -> bool {
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
        let fields: Vec<u64> =
            stat.rsplit(") ").next().unwrap_or_default().split(' ').filter_map(|field| field.parse().ok()).collect();
        // After the state: 10 fields on, the time in user and in system mode.
        fields.get(10).zip(fields.get(11)).map_or(0, |(user, system)| user + system)
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(100));
    ticks() > before + 2
}

/// The most that a process ever had in memory, in bytes.
fn peak_bytes(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A text of a million bytes, and one that takes 10^12 steps to compare with it.
pub(crate) fn endless_function() -> String {
    let long = |letter: &str, by: &str| format!("replace('{}', '{letter}', '{}')", letter.repeat(1_000), by.repeat(1_000));
    format!("levenshtein({}, {})", long("x", "y"), long("z", "w"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_ends_with_all_that_it_took() {
    let mut query = Query::start(|_| {}).await;
    let endless = json!({"sql": format!("SELECT {}", endless_function())});
    for _ in 0..24 {
        query.abandon("/v1/sql", &endless).await;
    }
    query.counts().await;
    query.until_idle().await;
    assert!(query.metric("weir_query_workers_killed_total{reason=\"abandoned\"}").await >= 1.0);
    // The same in a step of a funnel.
    let step = json!({"name": "a", "where": format!("{} > 1", endless_function())});
    query.abandon("/v1/funnels", &json!({"window": "1d", "steps": [step]})).await;
    query.counts().await;
    query.until_idle().await;

    let product = json!({"sql": "SELECT count(*) FROM events a JOIN events b ON a.event LIKE '%' || b.event || '%'"});
    for _ in 0..5 {
        query.abandon("/v1/sql", &product).await;
    }
    query.counts().await;
    query.until_idle().await;
    // At any moment of what comes before the rows, the snapshot's transaction above all.
    for millis in 0..60 {
        query.abandon_after(Duration::from_millis(millis), "/v1/sql", &product).await;
    }
    query.until_idle().await;

    // What has no condition of a client's is answered in the service itself, and ends as well.
    // Not on the connection that looks at backends: within a transaction it would see the same ones for ever.
    let mut locking = Database::connect(&query.database.url).await;
    locking.execute("BEGIN; LOCK TABLE engagement_events IN ACCESS EXCLUSIVE MODE").await;
    let funnel = json!({"window": "1d", "steps": [{"name": "a", "events": ["event 1"]}]});
    for _ in 0..3 {
        query.abandon("/v1/funnels", &funnel).await;
    }
    query.until_idle().await;
    locking.execute("ROLLBACK").await;
    query.counts().await;
    query.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_their_service_however_it_ends() {
    let query = Query::start(|_| {}).await;
    query.abandon("/v1/sql", &json!({"sql": format!("SELECT {}", endless_function())})).await;
    let workers = query.workers();
    assert_eq!(workers.len(), 3);
    kill_process(query.pid(), Signal::KILL).expect("runs");
    until("the workers end", Duration::from_secs(10), || !workers.iter().any(|pid| is_running(*pid)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_is_replaced() {
    let mut query = Query::start(|_| {}).await;
    let workers = query.workers();
    for worker in &workers {
        kill_process(*worker, Signal::KILL).expect("runs");
    }
    until("three others run", Duration::from_secs(20), || {
        let present = query.workers();
        present.len() == 3 && !present.iter().any(|pid| workers.contains(pid))
    });
    query.counts().await;
    query.until_idle().await;
    assert!(query.metric("weir_query_workers_killed_total{reason=\"died\"}").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_much_memory_is_told_so_and_its_neighbours_go_on() {
    let bound = WORKER_BYTES_MAX.to_string();
    let mut query = Query::start(|command| {
        command.args(["--query-worker-memory-bytes-max", &bound]);
    })
    .await;
    let columns = ["event", "kind", "city", "country", "region", "experiment", "variant", "campaign", "component", "currency"];
    let cube = format!("SELECT count(*) FROM events GROUP BY CUBE ({}, is_bot, value, user_id)", columns.join(", "));
    let (x, y) = ("x".repeat(1_000), "y".repeat(1_000));
    let nested = format!("SELECT length(replace(replace(replace('{x}', 'x', '{y}'), 'y', '{x}'), 'x', '{y}'))");
    let doubled = (0..29).fold("SELECT event || event AS t FROM events LIMIT 8".to_owned(), |inner, _| {
        format!("SELECT t || t AS t FROM ({inner})")
    });
    let doubled = format!("SELECT sum(length(t)) FROM ({doubled})");

    let done = Arc::new(AtomicBool::new(false));
    let (service, watching) = (query.pid(), Arc::clone(&done));
    let peaks = std::thread::spawn(move || {
        let mut peak_of_workers = 0;
        while !watching.load(Ordering::Relaxed) {
            let peaks = children(service).into_iter().map(peak_bytes);
            peak_of_workers = peaks.fold(peak_of_workers, u64::max);
            std::thread::sleep(Duration::from_millis(10));
        }
        (peak_bytes(service), peak_of_workers)
    });
    let good = async {
        for _ in 0..20 {
            query.counts().await;
            let (status, _) = send(Method::GET, &format!("{}/v1/experiments", query.url), TOKEN, None).await.expect("answers");
            assert_eq!(status, 200);
            let funnel = json!({"window": "1d", "steps": [{"name": "a", "where": "event = 'event 7'"}]});
            let (status, answer) =
                send(Method::POST, &format!("{}/v1/funnels", query.url), TOKEN, Some(funnel)).await.expect("answers");
            assert_eq!((status, &answer["groups"][0]["steps"][0]["units"]), (200, &json!(1)), "{answer}");
        }
    };
    let greedy = async {
        for (sql, expected) in
            [(&cube, (400, "sql_too_large")), (&nested, (422, "query_memory")), (&doubled, (422, "query_memory"))]
        {
            let (status, answer) = query.sql(sql).await;
            let found = (status, answer["error"]["code"].as_str().unwrap_or_default());
            assert_eq!(found, expected, "{}: {answer}", &sql[..60]);
        }
        let (_, answer) = query.sql(&nested).await;
        assert!(answer.to_string().contains("400 MiB"), "it names the bound: {answer}");
    };
    tokio::join!(good, greedy);
    done.store(true, Ordering::Relaxed);
    let (of_service, of_workers) = peaks.join().expect("no panic");
    assert!(of_workers < WORKER_BYTES_MAX + PROGRAM_BYTES_MAX, "{of_workers} bytes of a worker");
    assert!(of_service < PROGRAM_BYTES_MAX, "{of_service} bytes of the service");
    query.until_idle().await;
    assert!(query.metric("weir_query_workers_killed_total{reason=\"memory\"}").await >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_take_little() {
    let mut query = Query::start(|_| {}).await;
    // 16 MB each, 640 MB in all.
    let (x, y) = ("x".repeat(1_000), "y".repeat(16));
    let large = json!({"sql": format!("SELECT replace('{x}', 'x', '{y}') FROM events LIMIT 1000")});
    let mut unread = Vec::new();
    for _ in 0..40 {
        let mut stream = query.asked("/v1/sql", &large).await;
        // It has been answered, or refused for want of room.
        let _ = stream.read(&mut [0; 16]).await;
        unread.push(stream);
    }
    let bytes = peak_bytes(query.pid());
    assert!(bytes < 256 * 1024 * 1024 + PROGRAM_BYTES_MAX / 2, "{bytes} bytes");
    query.counts().await;
    query.until_idle().await;
}
