//! Prometheus itself reads the pages of all three services.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Folder, Up, purchases};
use crate::support::{page, program};

const ALERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts.yml");

/// How the names of gauges and histograms end: in Prometheus' base units, in what is counted, ..
const UNITS: [&str; 9] = ["seconds", "bytes", "records", "events", "keys", "files", "connections", "fds", "threads"];
/// .. or in a state: what is in it is counted, or 1 stands for yes.
const STATES: [&str; 10] = ["ready", "halted", "behind", "state", "running", "waiting", "busy", "in_flight", "away", "stuck"];

/// Checks a page by the rules for names, and that each of its metrics is described, and returns how many they are.
fn check_names(job: &str, page: &str) -> usize {
    let mut kinds = BTreeMap::new();
    for (name, kind) in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
        assert!(kinds.insert(name, kind).is_none(), "{name} stands twice");
        let help = page.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| !help.trim().is_empty()), "{name} has no description");
        assert!(name.starts_with(&format!("weir_{job}_")) || name.starts_with("process_"), "{name} on the page of {job}");
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(&format!("_{ending}")));
        match kind {
            "counter" => assert!(ends(&["total"]), "{name}"),
            "gauge" => assert!((ends(&UNITS) || ends(&STATES) || ends(&["info"])) && !ends(&["total"]), "{name}"),
            "histogram" => assert!(ends(&UNITS), "{name}"),
            other => panic!("{name} is a {other}"),
        }
    }
    for line in page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|ending| kinds.get(name.strip_suffix(ending)?));
        assert!(kinds.contains_key(name) || of_histogram == Some(&"histogram"), "{name} has no type");
    }
    for name in ["build_info", "ready", "connections", "panics_total", "task_restarts_total", "misdirected_requests_total"] {
        assert!(kinds.contains_key(format!("weir_{job}_{name}").as_str()), "{job} has no {name}");
    }
    for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "start_time_seconds", "threads"] {
        assert!(kinds.contains_key(format!("process_{name}").as_str()), "{job} has no process_{name}");
    }
    kinds.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_all_services_follow_one_scheme() {
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(7)).await;
    up.until_stored(7).await;
    for job in ["aggregator", "collector", "query"] {
        let (status, text) = page(&format!("{}/metrics", up.line(job))).await;
        assert_eq!(status, 200, "{job}: {text}");
        assert!(check_names(job, &text) > 15, "{text}");
    }
}

/// A child that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has a page checked by Prometheus' own tool.
fn check_metrics(job: &str, text: &str) {
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().expect("promtool starts");
    promtool.stdin.take().expect("was piped").write_all(text.as_bytes()).expect("promtool reads");
    let checked = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{job}: {said}\n{text}");
}

/// Asks Prometheus for the values of a query, by job.
async fn values(prometheus: &str, query: &str) -> Vec<(String, f64)> {
    let (status, text) = page(&format!("{prometheus}/api/v1/query?query={query}")).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("is JSON");
    let value = |found: &Value| {
        let number = found["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number");
        (found["metric"]["job"].as_str().unwrap_or_default().to_owned(), number)
    };
    let mut values: Vec<_> = answer["data"]["result"].as_array().expect("a list").iter().map(value).collect();
    values.sort_by(|one, other| one.0.cmp(&other.0));
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_all_three_services() {
    if program("prometheus").is_none() || program("promtool").is_none() {
        eprintln!("skipped: prometheus and promtool are not installed");
        return;
    }
    let folder = Folder::new();
    let up = Up::start(&folder);
    up.accepted(purchases(7)).await;
    up.until_stored(7).await;
    let shown = std::fs::read(folder.path().join("weir.json")).expect("reads");
    let shown: Value = serde_json::from_slice(&shown).expect("is JSON");

    let mut metrics = String::new();
    let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n".to_owned();
    for job in ["aggregator", "collector", "query"] {
        let url = shown[job].as_str().expect("a URL");
        let (status, text) = page(&format!("{url}/metrics")).await;
        assert_eq!(status, 200, "{job}: {text}");
        check_metrics(job, &text);
        metrics.push_str(&text);
        let target = url.trim_start_matches("http://");
        config.push_str(&format!("- {{job_name: {job}, static_configs: [{{targets: [\"{target}\"]}}]}}\n"));
    }
    // Every metric of the alerts is one of ours; the spool's are shown where there is one, dead letters from the first one on.
    let rules = std::fs::read_to_string(ALERTS).expect("the alerts");
    let names = rules.split(|found: char| !found.is_ascii_lowercase() && found != '_').filter(|word| word.starts_with("weir_"));
    let names = names.filter(|name| {
        !name.ends_with('_') && !name.starts_with("weir_collector_spool_") && *name != "weir_aggregator_dead_letters_total"
    });
    for name in names {
        assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} is in an alert, and no service has it");
    }
    config.push_str(&format!("rule_files: [{ALERTS:?}]\n"));
    let own = tempfile::tempdir().expect("a folder");
    let file = own.path().join("prometheus.yml");
    std::fs::write(&file, config).expect("writes");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port();
    let log = std::fs::File::create(own.path().join("log")).expect("a file");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", own.path().join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let _prometheus = Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("prometheus starts"));

    let prometheus = format!("http://127.0.0.1:{port}");
    let all_up = ["aggregator", "collector", "query"].map(|job| (job.to_owned(), 1.0));
    let deadline = Instant::now() + Duration::from_secs(40);
    loop {
        let listens = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        let found = if listens && page(&format!("{prometheus}/-/ready")).await.0 == 200 {
            values(&prometheus, "up").await
        } else {
            Vec::new()
        };
        if found == all_up {
            break;
        }
        let log = || std::fs::read_to_string(own.path().join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "{found:?}\n{}", log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for (job, expected) in [("collector", 7.0), ("aggregator", 7.0), ("query", 1.0)] {
        let (metric, at_least) = match job {
            "collector" => ("sum%20by%20(job)%20(weir_collector_events_appended_total)", expected),
            "aggregator" => ("sum%20by%20(job)%20(weir_aggregator_read_total)", expected),
            _ => ("sum%20by%20(job)%20(weir_query_requests_total)", expected),
        };
        let found = values(&prometheus, metric).await;
        assert!(matches!(&found[..], [(name, value)] if name == job && *value >= at_least), "{metric}: {found:?}");
    }
    // Prometheus understands each alert, and none fires here.
    let (status, text) = page(&format!("{prometheus}/api/v1/rules?type=alert")).await;
    assert_eq!(status, 200, "{text}");
    let answer: Value = serde_json::from_str(&text).expect("is JSON");
    let found = answer["data"]["groups"][0]["rules"].as_array().expect("rules").clone();
    assert_eq!(found.len(), rules.matches("- alert: ").count());
    for rule in found {
        assert!(rule["health"] != "err" && rule["state"] != "firing", "{rule}");
    }
}
