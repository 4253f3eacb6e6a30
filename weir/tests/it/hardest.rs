//! The hardest that a collector meets, as a process: brokers that die or swallow everything, its own death, a disk that fails, a stop under load,
//! ten thousand idle connections, minutes without Kafka at full rate. What one process shows by itself is in `ingest/tests/it/hardest.rs`;
//! `cargo test hardest` runs them all. Those over Kafka are skipped aloud without a broker, as in `services.rs`.
//! `make outage` makes the last one ten minutes long.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use eventlog::Read as _;
use eventlog::kafka::{Config, KafkaLog};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::flood::{Flood, Shape};
use crate::harness::{Folder, Up};
use crate::raw::{Connection, Ended, address, post};
use crate::services::{Deployment, KEY, READY_MAX, Service, TOPIC, is_skipped};
use crate::support::{Database, number, page, run};

/// Until what was acknowledged is stored.
const STORED_MAX: Duration = Duration::from_secs(90);
/// No answer takes longer, whatever Kafka does: five seconds for it, and then the spool's.
const ANSWER_MAX: Duration = Duration::from_secs(20);

const STEADY: Shape = Shape { clients: 6, users: 10, batch: 50, pace: Duration::from_millis(60) };

/// Settings of a process are not read from the outside; these are.
fn status(pid: Pid, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}: {text}"));
    line.trim_start_matches(':').split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

/// MiB that a process has resident, and the most that it had.
fn resident(pid: Pid) -> u64 {
    status(pid, "VmRSS") / 1024
}

fn peak(pid: Pid) -> u64 {
    status(pid, "VmHWM") / 1024
}

impl Deployment {
    async fn log_of_kafka(&self) -> KafkaLog {
        KafkaLog::open(Config { topic: TOPIC.to_owned(), ..Config::new(&self.broker.servers) }).await.expect("opens")
    }

    async fn database(&self) -> Database {
        Database::connect(&self.database_url).await
    }
}

impl Service {
    /// Waits until all of the spool is in Kafka.
    async fn until_drained(&self) {
        let deadline = Instant::now() + STORED_MAX;
        while self.metric("weir_collector_spool_records").await > 0.0 {
            assert!(Instant::now() < deadline, "the spool is not empty");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Collector's test 1: the broker is killed in the middle of batches, and swallows everything for a while, as behind a cut cable. Every client has
/// its answers in bounded time, every acknowledged event is in Kafka, each user's in its order, and in Postgres once.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_01_a_broker_that_dies_or_swallows_everything_mid_batch_loses_nothing() {
    if is_skipped("hardest_01_a_broker_that_dies_or_swallows_everything_mid_batch_loses_nothing") {
        return;
    }
    let deployment = Deployment::start().await;
    let collector = deployment.collector();
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let flood = Flood::start(KEY, STEADY);
    flood.aim(Some(address(&collector.url)));
    for _ in 0..2 {
        flood.goes_on(1_000).await;
        deployment.broker.kill_and_start().await;
    }
    flood.goes_on(1_000).await;
    let broker = deployment.broker.pid();
    kill_process(broker, Signal::STOP).expect("it runs");
    // Longer than an append waits for Kafka, so that the spool takes what Kafka may have, too.
    tokio::time::sleep(Duration::from_secs(7)).await;
    flood.goes_on(1_000).await;
    kill_process(broker, Signal::CONT).expect("it runs");
    flood.goes_on(1_000).await;
    let told = flood.end().await;
    eprintln!("{}", told.says());
    assert_eq!((told.broken.len(), told.refused.len()), (0, 0), "{}", told.says());
    assert!(told.waited(1.0) < ANSWER_MAX, "{}", told.says());
    collector.until_drained().await;
    assert!(collector.metric("weir_collector_spool_stored_total").await > 0.0, "the spool took nothing");
    let repeated = told.check_log(&deployment.log_of_kafka().await).await;
    eprintln!("{repeated} records are in Kafka more than once");
    told.check_stored(&mut deployment.database().await, STORED_MAX).await;
    collector.end();
    aggregator.end();
}

/// Collector's test 2: without Kafka the collector is killed at random points while it writes its spool. Each time it begins again with what it
/// had acknowledged; when Kafka is back, all of it arrives, in each user's order, and is stored once.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_02_a_collector_killed_while_it_spools_loses_and_repeats_nothing() {
    if is_skipped("hardest_02_a_collector_killed_while_it_spools_loses_and_repeats_nothing") {
        return;
    }
    let deployment = Deployment::start().await;
    // Nobody is refused for being fast.
    let begin = || {
        deployment.collector_with(|command| {
            command.env("WEIR_KEY_BYTES_PER_SECOND_MAX", "0");
        })
    };
    let mut collector = begin();
    collector.until_ready().await;
    let flood = Flood::start(KEY, Shape { pace: Duration::from_millis(5), ..STEADY });
    flood.aim(Some(address(&collector.url)));
    flood.goes_on(500).await;
    deployment.broker.script("stop").await;
    for kill in 0..number("WEIR_KILLS", 8) {
        flood.goes_on(300).await;
        tokio::time::sleep(Duration::from_millis(u64::from(kill * 137 % 311))).await;
        flood.aim(None);
        collector.kill();
        collector = begin();
        assert!(collector.metric("weir_collector_spool_records").await > 0.0, "what was spooled is not there after kill {kill}");
        flood.aim(Some(address(&collector.url)));
    }
    flood.goes_on(300).await;
    deployment.broker.script("start").await;
    // Killed while it drains, too.
    flood.goes_on(300).await;
    flood.aim(None);
    collector.kill();
    collector = begin();
    flood.aim(Some(address(&collector.url)));
    flood.goes_on(300).await;
    let aggregator = deployment.aggregator("aggregator");
    let told = flood.end().await;
    eprintln!("{}", told.says());
    assert!(told.broken.values().sum::<u64>() > 0, "no kill met a request");
    assert_eq!(told.refused.len(), 0, "{}", told.says());
    collector.until_drained().await;
    assert_eq!(collector.metric("weir_collector_spool_damaged_records").await, 0.0);
    let repeated = told.check_log(&deployment.log_of_kafka().await).await;
    eprintln!("{repeated} records are in Kafka more than once");
    told.check_stored(&mut deployment.database().await, STORED_MAX).await;
    collector.end();
    aggregator.end();
}

/// Builds the library that makes syncs fail; none where there is no C compiler.
async fn failing_sync(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("failing_sync.so");
    let mut compile = Command::new(crate::support::program("cc")?);
    compile
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/failing_sync.c"));
    compile.arg("-ldl");
    let ended = run(compile, Duration::from_secs(60)).await;
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    Some(library)
}

/// Starts a collector whose syncs fail with the error whose number stands in a file, while the file is there. None, said aloud, without a broker or
/// a C compiler.
async fn with_failing_syncs(test: &str) -> Option<(Deployment, Service, PathBuf)> {
    if is_skipped(test) {
        return None;
    }
    let deployment = Deployment::start().await;
    let Some(library) = failing_sync(deployment.folder.path()).await else {
        eprintln!("skipped: {test} needs cc");
        return None;
    };
    let switch = deployment.folder.path().join("failing-sync");
    let collector = deployment.collector_with(|command| {
        command.env("LD_PRELOAD", &library).env("FAILING_SYNC", &switch);
    });
    Some((deployment, collector, switch))
}

/// Collector's test 3: Kafka is away, and the disk of the spool fails each sync for a while, once as full and once as broken. Clients are told to
/// come again, and nothing is acknowledged by halves; `/readyz` says so; when the disk works again, so does the collector, by itself. A disk that is
/// really full is in `services.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_03_syncs_that_fail_refuse_and_live_traffic_resumes_by_itself() {
    let Some((deployment, collector, switch)) =
        with_failing_syncs("hardest_03_syncs_that_fail_refuse_and_live_traffic_resumes_by_itself").await
    else {
        return;
    };
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let flood = Flood::start(KEY, STEADY);
    flood.aim(Some(address(&collector.url)));
    flood.goes_on(500).await;
    deployment.broker.script("stop").await;
    flood.goes_on(500).await;
    // ENOSPC and EIO.
    for errno in ["28", "5"] {
        std::fs::write(&switch, errno).expect("written");
        collector.until_unready("").await;
        let refused = async || collector.metric("weir_collector_requests_total{route=\"events\",status=\"503\"}").await;
        let (before, deadline) = (refused().await, Instant::now() + READY_MAX);
        while refused().await < before + 20.0 {
            assert!(Instant::now() < deadline, "requests are not refused");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let count = flood.count();
        assert_eq!(page(&format!("{}/livez", collector.url)).await.0, 200);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(flood.count(), count, "nothing is acknowledged while nothing can be made durable");
        std::fs::remove_file(&switch).expect("removed");
        collector.until_ready().await;
        flood.goes_on(500).await;
    }
    deployment.broker.script("start").await;
    flood.goes_on(500).await;
    let told = flood.end().await;
    eprintln!("{}", told.says());
    // Of a batch half of which was stored before the disk failed, no client was told that it is there.
    assert_eq!(told.broken.len(), 0, "{}", told.says());
    assert!(told.refused.keys().eq([&503]) && told.refused[&503] > 20, "{}", told.says());
    collector.until_drained().await;
    told.check_log(&deployment.log_of_kafka().await).await;
    told.check_stored(&mut deployment.database().await, STORED_MAX).await;
    collector.end();
    aggregator.end();
}

/// Collector's test 5: Kafka takes a batch and its report does not come. The client has given up meanwhile and sends the same again, which the
/// spool takes; then the first copy lands, and later the spool's. One row each. And a batch that was refused with 503 is no repetition when it
/// comes again.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_05_a_first_copy_that_lands_late_and_a_refused_batch_are_stored_once() {
    let Some((deployment, collector, switch)) =
        with_failing_syncs("hardest_05_a_first_copy_that_lands_late_and_a_refused_batch_are_stored_once").await
    else {
        return;
    };
    let aggregator = deployment.aggregator("aggregator");
    collector.until_ready().await;
    let batch = |name: &str| {
        let event = |n: u32| {
            json!({"type": "engagement", "event_id": format!("{name}-{n}"), "user_id": format!("user-{}", n % 7), "name": name,
                                    "timestamp": "2026-01-01T00:00:00Z", "sent_at": "2026-01-01T00:00:00Z"})
        };
        let mut events: Vec<_> = (0..40).map(event).collect();
        let now = events::Micros::now().to_string();
        for event in &mut events {
            event["timestamp"] = json!(now);
            event.as_object_mut().expect("is one").remove("sent_at");
        }
        post(KEY, &json!({ "events": events }).to_string())
    };
    let (late, refused, first) = (batch("late"), batch("refused"), batch("first"));
    let to = address(&collector.url);
    let answer = Connection::open(to).await.expect("connects").exchange(&first).await.expect("an answer");
    assert_eq!(answer.status, 200);

    let broker = deployment.broker.pid();
    kill_process(broker, Signal::STOP).expect("it runs");
    // The client waits for two seconds, then goes, and sends the same again.
    let mut impatient = Connection::open(to).await.expect("connects");
    assert!(tokio::time::timeout(Duration::from_secs(2), impatient.exchange(&late)).await.is_err(), "Kafka cannot have answered");
    drop(impatient);
    let answer = Connection::open(to).await.expect("connects").exchange(&late).await.expect("an answer");
    assert_eq!((answer.status, &answer.json()["accepted"]), (200, &json!(40)), "the spool has it");
    assert!(collector.metric("weir_collector_spool_doubtful_appends_total").await > 0.0, "no append was in doubt");

    // Neither Kafka nor the spool: refused, though some of it may be there.
    std::fs::write(&switch, "5").expect("written");
    let answer = Connection::open(to).await.expect("connects").exchange(&refused).await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    kill_process(broker, Signal::CONT).expect("it runs");
    std::fs::remove_file(&switch).expect("removed");
    collector.until_ready().await;
    let answer = Connection::open(to).await.expect("connects").exchange(&refused).await.expect("an answer");
    assert_eq!((answer.status, &answer.json()["accepted"], &answer.json()["duplicate"]), (200, &json!(40), &json!(0)));

    collector.until_drained().await;
    let mut database = deployment.database().await;
    database.until("SELECT count(DISTINCT id) FROM engagement_events", 120, STORED_MAX).await;
    let log = deployment.log_of_kafka().await;
    let mut end = 0;
    for partition in 0..log.identity().partitions {
        end += log.offsets(partition).await.expect("offsets").end;
    }
    assert!(end > 120, "both copies of some record are in Kafka: {end} records");
    database.until("SELECT sum(next_offset)::bigint FROM checkpoints", i64::try_from(end).expect("few"), STORED_MAX).await;
    let each: Vec<(String, i64)> =
        database.rows("SELECT event_type, count(*) FROM engagement_events GROUP BY 1 ORDER BY 1").await;
    assert_eq!(each, [("first", 40), ("late", 40), ("refused", 40)].map(|(name, count)| (name.to_owned(), count)));
    assert_eq!(database.number("SELECT count(*) FROM dead_letters").await, 0);
    eprintln!("{end} records in Kafka, 120 rows");
    collector.end();
    aggregator.end();
}

/// Connections that a test may open itself, and how many of them it asks for.
fn descriptors() -> u64 {
    service::descriptors::raise().unwrap_or(u64::MAX)
}

/// Collector's test 6, and ten thousand idle connections with a thousand active ones: beside bombs, bodies of a byte a second, lengths that lie and
/// labels that lie nobody who is in order is refused, and memory stays within 256 MiB and what is set for bodies.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_06_ten_thousand_idle_and_a_thousand_active_connections_beside_attacks() {
    // MiB; what is set for bodies, for those without a key, and for answers.
    const BUDGET: u64 = 256 + 16 + 32;
    let idle_max = number("WEIR_IDLE", 10_000) as usize;
    let left = usize::try_from(descriptors().saturating_sub(2_500)).unwrap_or(usize::MAX);
    let idle_count = idle_max.min(left);
    if idle_count < idle_max {
        eprintln!("only {idle_count} idle connections, of {idle_max}: this process may have no more files open");
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    let (to, key) = (address(up.line("collector")), up.line("write_key").to_owned());
    let before = resident(up.pid());
    let mut idle = Vec::with_capacity(idle_count);
    while idle.len() < idle_count {
        let mut connection = Connection::open(to).await.expect("connects");
        if idle.len() % 10 == 0 {
            // Kept after a request, as browsers and pools do.
            let one = json!({"events": [{"type": "engagement", "name": "idle", "user_id": format!("idle-{}", idle.len())}]});
            assert_eq!(connection.exchange(&post(&key, &one.to_string())).await.expect("an answer").status, 200);
        }
        idle.push(connection);
    }
    let with_idle = resident(up.pid());

    let attacks = attacks(to, &key);
    let shape = Shape { clients: 1_000, users: 2, batch: 10, pace: Duration::from_millis(800) };
    let flood = Flood::start(&key, shape);
    flood.aim(Some(to));
    flood.goes_on(u64::from(number("WEIR_ACTIVE_EVENTS", 20_000))).await;
    attacks.all_answered().await;
    let told = flood.end().await;
    let (attacked, most) = (attacks.end().await, peak(up.pid()));
    eprintln!(
        "{} MiB, with {} idle connections {} MiB, at most {} MiB; {}; attacks: {attacked:?}",
        before,
        idle.len(),
        with_idle,
        most,
        told.says()
    );
    assert_eq!((told.broken.len(), told.refused.len()), (0, 0), "{}", told.says());
    assert!(most < 256 + BUDGET, "{most} MiB");
    assert!(with_idle - before.min(with_idle) < 256, "{with_idle} MiB");
    let still = idle.iter().filter(|connection| !connection.is_ended()).count();
    // Those that never sent anything are closed after ten seconds.
    assert!(still >= idle_count / 10, "{still} of the kept connections are left");
    let idle_events = i64::try_from(idle_count.div_ceil(10)).expect("few");
    let mut database = Database::connect(up.line("postgres")).await;
    let of_flood = "SELECT count(*) FROM engagement_events WHERE event_type = 'idle'";
    database.until(of_flood, idle_events, STORED_MAX).await;
    database.execute("DELETE FROM engagement_events WHERE event_type = 'idle'").await;
    told.check_stored(&mut database, STORED_MAX).await;
    assert!(up.end(Signal::TERM).success());
}

/// Kinds of attacks.
const KINDS: usize = 8;

/// Attackers that begin again until they are ended.
struct Attacks(tokio::task::JoinSet<()>, std::sync::Arc<std::sync::Mutex<std::collections::BTreeMap<String, u64>>>);

impl Attacks {
    /// Waits until each kind was answered, so that none of them has tested nothing.
    async fn all_answered(&self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let answered = self.1.lock().expect("nobody panicked").clone();
            let kinds: std::collections::BTreeSet<&str> =
                answered.keys().filter_map(|told| Some(told.split_once(':')?.0)).collect();
            if kinds.len() == KINDS {
                return;
            }
            assert!(Instant::now() < deadline, "{answered:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Ends them, and returns how often each was answered how.
    async fn end(mut self) -> std::collections::BTreeMap<String, u64> {
        self.0.shutdown().await;
        self.1.lock().expect("nobody panicked").clone()
    }
}

fn attacks(to: std::net::SocketAddr, key: &str) -> Attacks {
    use std::io::Write as _;
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("a Vec takes every byte");
        encoder.finish().expect("a Vec takes every byte")
    };
    let bomb = gzip(&vec![b' '; 64 << 20]);
    let nested = gzip(&bomb);
    let request = |headers: &str, body: &[u8], length: usize| {
        let head = format!(
            "POST /v1/events?key={key} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        [head.as_bytes(), body].concat()
    };
    let whole = |headers: &str, body: &[u8]| request(headers, body, body.len());
    let chunked = format!(
        "POST /v1/events?key={key} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{}\r\n", " ".repeat(0x10000)).repeat(40)
    );
    let kinds: [(&str, Vec<u8>, bool); KINDS] = [
        ("a bomb", whole("Content-Encoding: gzip\r\n", &bomb), false),
        ("a bomb that is not labelled", whole("", &bomb), false),
        ("a bomb in a bomb", whole("Content-Encoding: gzip\r\n", &nested), false),
        ("labelled twice", whole("Content-Encoding: gzip, gzip\r\n", &nested), false),
        ("no length, beyond the limit", chunked.into_bytes(), false),
        ("a length beyond what comes", request("", b"[{}", 1_000_000), true),
        ("a length below what comes", request("", br#"[{"type":"impression","user_id":"u"}]"#, 3), false),
        ("a byte a second", request("", b"[", 100_000), true),
    ];
    let counts = std::sync::Arc::<std::sync::Mutex<std::collections::BTreeMap<String, u64>>>::default();
    let mut attackers = tokio::task::JoinSet::new();
    for (name, bytes, drips) in kinds {
        for _ in 0..if drips { 50 } else { 2 } {
            let (bytes, counts) = (bytes.clone(), counts.clone());
            attackers.spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                loop {
                    let Ok(mut stream) = tokio::net::TcpStream::connect(to).await else { continue };
                    let _ = stream.write_all(&bytes).await;
                    let mut answer = Vec::new();
                    while drips && tokio::time::timeout(Duration::from_secs(1), stream.read_buf(&mut answer)).await.is_err() {
                        let _ = stream.write_all(b" ").await;
                    }
                    let _ = stream.read_to_end(&mut answer).await;
                    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("none").to_owned();
                    *counts.lock().expect("nobody panicked").entry(format!("{name}: {status}")).or_default() += 1;
                    assert!(status != "200", "{name} was accepted");
                }
            });
        }
    }
    Attacks(attackers, counts)
}

/// Where the system lets a program have 1,024 files open unless it asks for more, it asks; and where it may have no more than few, as many
/// connections as there is no room for wait, and the log still has its files.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_06_a_low_limit_of_open_files_is_raised_or_kept_to() {
    for (limit, idle_count) in [("ulimit -Sn 1024", 1_500), ("ulimit -Hn 1024; ulimit -Sn 1024", 1_500)] {
        let folder = Folder::new();
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{limit}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_weir"), "up", "--data"])
            .arg(folder.path());
        for service in ["--collector", "--query", "--aggregator"] {
            command.args([service, "127.0.0.1:0"]);
        }
        let log = std::fs::File::create(folder.path().join("stderr")).expect("a file");
        let up = Up::spawned(command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(log));
        let to = address(up.line("collector"));
        let mut good = Connection::open(to).await.expect("connects");
        let mut send = async |n: u32| {
            let one = json!({"events": [{"type": "engagement", "name": "n", "user_id": format!("u-{n}"), "event_id": format!("e-{n}")}]});
            good.exchange(&post(up.line("write_key"), &one.to_string())).await.expect("an answer").status
        };
        assert_eq!(send(0).await, 200);
        let mut idle = Vec::new();
        for n in 0..idle_count {
            idle.push(Connection::open(to).await.expect("the kernel keeps those for whom there is no room"));
            if n % 100 == 0 {
                assert_eq!(send(1 + n).await, 200, "{limit}: beside {n} idle connections");
            }
        }
        up.until_stored(1 + u64::from(idle_count).div_ceil(100)).await;
        assert!(!folder.log().contains("Too many open files"), "{limit}: {}", folder.log());
        drop(idle);
        assert!(up.end(Signal::TERM).success());
    }
}

/// Collector's test 7: SIGTERM under full load, again and again, with clients that keep their connections and some that rest in between. No
/// connection is reset, no answer is cut off, no request stays without one that was sent in time, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_07_a_stop_under_full_load_resets_nobody_and_loses_nothing() {
    let folder = Folder::new();
    // Nobody is refused for being fast.
    let begin = || {
        Up::start_with(&folder, |command| {
            command.env("WEIR_KEY_BYTES_PER_SECOND_MAX", "0");
        })
    };
    let mut up = begin();
    let key = up.line("write_key").to_owned();
    let busy = Flood::start(&key, Shape { clients: 24, users: 5, batch: 20, pace: Duration::from_millis(4) });
    let resting = Flood::start(&key, Shape { clients: 40, users: 1, batch: 1, pace: Duration::from_millis(700) });
    for stop in 0..number("WEIR_KILLS", 3) {
        let to = address(up.line("collector"));
        busy.aim(Some(to));
        resting.aim(Some(to));
        busy.goes_on(2_000).await;
        resting.goes_on(40).await;
        let begun = Instant::now();
        assert!(up.end(Signal::TERM).success());
        eprintln!("stop {stop}: ended after {:?}, {} events acknowledged", begun.elapsed(), busy.count() + resting.count());
        busy.aim(None);
        resting.aim(None);
        up = begin();
    }
    let to = address(up.line("collector"));
    busy.aim(Some(to));
    resting.aim(Some(to));
    let (mut all, rest) = (busy.end().await, resting.end().await);
    eprintln!("busy: {}\nresting: {}", all.says(), rest.says());
    for told in [&all, &rest] {
        assert_eq!([Ended::Reset, Ended::Half, Ended::Silent].map(|ended| told.ended(ended)), [0; 3], "{}", told.says());
        assert_eq!(told.refused.len(), 0, "{}", told.says());
    }
    assert_eq!(all.ended(Ended::Unanswered), 0, "{}", all.says());
    // Both name their users alike; each has events of its own.
    all.acknowledged.retain(|_, count| *count > 0);
    up.until_stored(all.total() + rest.total()).await;
    assert!(up.end(Signal::TERM).success());
}

/// The same with Kafka frozen, so that requests wait for it while the collector ends: what it answers is in its spool.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_07_a_stop_beside_a_slow_broker_resets_nobody_and_loses_nothing() {
    if is_skipped("hardest_07_a_stop_beside_a_slow_broker_resets_nobody_and_loses_nothing") {
        return;
    }
    let deployment = Deployment::start().await;
    let mut collector = deployment.collector();
    collector.until_ready().await;
    let flood = Flood::start(KEY, Shape { clients: 16, users: 5, batch: 20, pace: Duration::from_millis(5) });
    let broker = deployment.broker.pid();
    for frozen in [true, false] {
        flood.aim(Some(address(&collector.url)));
        flood.goes_on(1_000).await;
        if frozen {
            kill_process(broker, Signal::STOP).expect("it runs");
        }
        // Requests wait for Kafka now.
        tokio::time::sleep(Duration::from_millis(300)).await;
        collector.end();
        flood.aim(None);
        if frozen {
            kill_process(broker, Signal::CONT).expect("it runs");
        }
        collector = deployment.collector();
    }
    flood.aim(Some(address(&collector.url)));
    flood.goes_on(1_000).await;
    let told = flood.end().await;
    eprintln!("{}", told.says());
    let bad = [Ended::Reset, Ended::Half, Ended::Silent, Ended::Unanswered].map(|ended| told.ended(ended));
    assert_eq!(bad, [0; 4], "{}", told.says());
    let aggregator = deployment.aggregator("aggregator");
    collector.until_drained().await;
    told.check_log(&deployment.log_of_kafka().await).await;
    told.check_stored(&mut deployment.database().await, STORED_MAX).await;
    collector.end();
    aggregator.end();
}

/// Minutes without Kafka at full rate: every acknowledged event arrives, each user's in its order, and memory does not grow with the outage.
/// `WEIR_OUTAGE_SECONDS` and `WEIR_OUTAGE_RATE`, events a second, make it longer and harder, as `make outage` does: ten minutes at 20,000.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_minutes_without_kafka_at_full_rate_arrive_in_order_and_memory_is_flat() {
    if is_skipped("hardest_minutes_without_kafka_at_full_rate_arrive_in_order_and_memory_is_flat") {
        return;
    }
    const CLIENTS: u64 = 8;
    const OF_A_BATCH: u64 = 100;
    const MEMORY_MAX: u64 = 256 + 256;
    let outage = Duration::from_secs(u64::from(number("WEIR_OUTAGE_SECONDS", 12)));
    let rate = u64::from(number("WEIR_OUTAGE_RATE", 4_000));
    let deployment = Deployment::start().await;
    // Without a limit of a public key's rate: what is asked is what the collector can do.
    let collector = deployment.collector_with(|command| {
        command.env("WEIR_KEY_BYTES_PER_SECOND_MAX", "0");
    });
    collector.until_ready().await;
    let pace = Duration::from_secs_f64((CLIENTS * OF_A_BATCH) as f64 / rate as f64);
    let flood = Flood::start(KEY, Shape { clients: CLIENTS, users: 40, batch: OF_A_BATCH, pace });
    flood.aim(Some(address(&collector.url)));
    flood.goes_on(rate).await;
    deployment.broker.script("stop").await;
    let (begun, before) = (Instant::now(), flood.count());
    let mut samples = Vec::new();
    while begun.elapsed() < outage {
        tokio::time::sleep(outage / 60).await;
        samples.push(resident(collector.pid()));
    }
    let (during, spooled) = (flood.count() - before, collector.metric("weir_collector_spool_records").await);
    let kept_up = during as f64 / begun.elapsed().as_secs_f64();
    deployment.broker.script("start").await;
    let back = Instant::now();
    flood.goes_on(rate).await;
    let told = flood.end().await;
    let deadline = Instant::now() + outage + Duration::from_secs(120);
    while collector.metric("weir_collector_spool_records").await > 0.0 {
        assert!(Instant::now() < deadline, "the spool is not empty");
        samples.push(resident(collector.pid()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let drained = back.elapsed();
    let repeated = told.check_log(&deployment.log_of_kafka().await).await;
    let (early, late) = samples.split_at(samples.len() / 2);
    let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or_default();
    eprintln!(
        "{outage:?} without Kafka, {kept_up:.0} events/s acknowledged, {spooled:.0} in the spool at its end, drained {drained:?} after it; memory at \
         most {} MiB in the first half and {} in the second, peak {}; {repeated} records more than once; {}",
        most(early),
        most(late),
        peak(collector.pid()),
        told.says()
    );
    assert!(spooled > 0.0, "nothing was spooled");
    assert_eq!((told.broken.len(), told.refused.len()), (0, 0), "{}", told.says());
    assert!(peak(collector.pid()) < MEMORY_MAX, "{} MiB", peak(collector.pid()));
    assert!(most(late) <= most(early) + 64, "memory grew: {samples:?}");
    collector.end();
}

/// Whatever clients say, of keys and of control characters, a process' log holds none of it.
#[tokio::test(flavor = "multi_thread")]
async fn hardest_what_clients_say_stays_out_of_the_log() {
    let folder = Folder::new();
    let up = Up::start_with(&folder, |command| {
        command.env("RUST_LOG", "debug");
    });
    let to = address(up.line("collector"));
    let (known, planted) = (up.line("write_key").to_owned(), "wk_planted-secret-of-a-client");
    let evil = "evil\\r\\n2026-01-01 ERROR forged\\u001b[31m";
    let body =
        json!({"events": [{"type": "engagement", "user_id": "u"}, {"type": evil, "user_id": evil, "name": evil}]}).to_string();
    for key in [known.as_str(), planted] {
        for target in [
            format!("/v1/events?key={key}"),
            format!("/{key}/nowhere?writeKey={key}"),
            format!("/v1/pixel.gif?key={key}&type={evil}"),
        ] {
            let length = body.len();
            let request = format!(
                "POST {target} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nUser-Agent: planted-agent\u{7f}\r\nX-Write-Key: {key}\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let _ = Connection::open(to).await.expect("connects").exchange(request.as_bytes()).await;
        }
    }
    let plain = post(&known, &json!({"events": [{"type": "engagement", "name": "n", "user_id": "u"}]}).to_string());
    assert_eq!(Connection::open(to).await.expect("connects").exchange(&plain).await.expect("an answer").status, 200);
    up.until_stored(1).await;
    assert!(up.end(Signal::TERM).success());
    let log = folder.log();
    assert!(log.contains("collector listens"), "{log}");
    for text in [known.as_str(), planted, "planted-agent", "forged", "\u{1b}[31m"] {
        assert!(!log.contains(text), "{text:?} is in the log");
    }
}
