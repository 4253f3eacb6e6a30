//! docker-compose.yml, read by a YAML parser and held against the built program, the image's Dockerfile, Prometheus' configuration and
//! itself: what can be known of it without a container engine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use migrations::testing::TestDatabase;
use serde_json::Value;

use crate::harness::weir;
use crate::support::{Database, run};

/// What a service may have here, of the Compose specification: https://github.com/compose-spec/compose-spec/blob/main/spec.md.
const SERVICE_KEYS: [&str; 14] = [
    "build",
    "command",
    "depends_on",
    "deploy",
    "environment",
    "healthcheck",
    "image",
    "mem_limit",
    "memswap_limit",
    "ports",
    "restart",
    "shm_size",
    "stop_grace_period",
    "volumes",
];
/// Variables of the program that belong to no flag.
const BY_NAME: [&str; 2] = ["WEIR_LOG", "WEIR_LOG_FORMAT"];
/// Those of `weir migrate` alone.
const KEYS: [&str; 3] = ["WEIR_WRITE_KEY", "WEIR_SERVER_KEY", "WEIR_READ_TOKEN"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A YAML file as JSON; none, and a word about it, where Python's parser is missing.
async fn yaml(file: &str) -> Option<Value> {
    let mut python = Command::new("python3");
    python.args(["-c", "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)"]);
    python.arg(repository().join(file));
    let ended = run(python, Duration::from_secs(20)).await;
    let said = String::from_utf8_lossy(&ended.stderr);
    if said.contains("ModuleNotFoundError") {
        eprintln!("skipped: the compose file is not read without Debian's package python3-yaml");
        return None;
    }
    assert!(ended.status.success(), "{file}: {said}");
    Some(serde_json::from_slice(&ended.stdout).expect("is JSON"))
}

/// A text or number as Compose passes it on, with the default of each variable: all of them have one.
fn resolved(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut parts = text.split("${");
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (variable, rest) = part.split_once('}').unwrap_or_else(|| panic!("{text}"));
        let (_, default) = variable.split_once(":-").unwrap_or_else(|| panic!("{text} has no default"));
        found.push_str(default);
        found.push_str(rest);
    }
    found
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap_or_else(|| panic!("a list was expected: {value}")).iter().map(resolved).collect()
}

/// One service.
struct Service<'a> {
    name: &'a str,
    value: &'a Value,
}

impl Service<'_> {
    fn command(&self) -> Vec<String> {
        texts(&self.value["command"])
    }

    fn is_ours(&self) -> bool {
        self.value["image"].as_str().is_some_and(|image| image.starts_with("weir:"))
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let pairs = self.value["environment"].as_object().into_iter().flatten();
        pairs.map(|(name, value)| (name.clone(), resolved(value))).collect()
    }

    /// The port of an address that a flag gives.
    fn port_of(&self, flag: &str) -> Option<String> {
        let command = self.command();
        let at = command.iter().position(|word| word == flag)?;
        let address = command.get(at + 1).unwrap_or_else(|| panic!("{flag} has no value"));
        let port = address.strip_prefix("0.0.0.0:").unwrap_or_else(|| panic!("{address} is reached by no other container"));
        Some(port.to_owned())
    }

    /// Where it serves requests, and its health.
    fn port(&self) -> Option<String> {
        self.port_of(&format!("--{}", self.name))
    }

    /// Its volumes: what is mounted, and where.
    fn mounts(&self) -> Vec<(String, String)> {
        if self.value["volumes"].is_null() {
            return Vec::new();
        }
        let mount = |text: String| {
            let mut parts = text.split(':').map(str::to_owned);
            (parts.next().expect("a source"), parts.next().expect("a place"))
        };
        texts(&self.value["volumes"]).into_iter().map(mount).collect()
    }
}

async fn help(command: &[String]) -> String {
    let mut weir = weir();
    weir.args(command).arg("--help");
    let ended = run(weir, Duration::from_secs(20)).await;
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

/// The number of bytes that a flag has without being given.
fn default_of(help: &str, flag: &str) -> u64 {
    let (_, text) = help.split_once(&format!("--{flag} ")).unwrap_or_else(|| panic!("no --{flag}"));
    let text = text.split("[default: ").nth(1).and_then(|text| text.split(']').next()).expect("a default");
    text.parse().expect("a number")
}

fn bytes(size: &Value) -> u64 {
    let text = size.as_str().expect("a size");
    text.strip_suffix('g').and_then(|number| number.parse::<u64>().ok()).expect("gibibytes") << 30
}

#[tokio::test]
async fn each_part_of_the_compose_file_fits_the_others_and_the_program() {
    let (Some(file), Some(prometheus)) = (yaml("docker-compose.yml").await, yaml("deploy/prometheus.yml").await) else { return };
    let dockerfile = fs::read_to_string(repository().join("deploy/Dockerfile")).expect("the Dockerfile");
    for key in file.as_object().expect("a mapping").keys() {
        assert!(key.starts_with("x-") || ["services", "volumes"].contains(&key.as_str()), "{key}");
    }
    let services: Vec<Service<'_>> =
        file["services"].as_object().expect("a mapping").iter().map(|(name, value)| Service { name, value }).collect();
    let service =
        |name: &str| services.iter().find(|service| service.name == name).unwrap_or_else(|| panic!("no service {name}"));

    let (mut published, mut mounted) = (BTreeSet::new(), BTreeSet::new());
    for one in &services {
        let name = one.name;
        for key in one.value.as_object().expect("a mapping").keys() {
            assert!(SERVICE_KEYS.contains(&key.as_str()), "{name}: {key}");
        }
        let image = one.value["image"].as_str().expect("an image");
        let (_, tag) = image.split_once(':').unwrap_or_else(|| panic!("{image} has no version"));
        assert!(tag.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()), "{image} may change by itself");
        assert!(tag.contains('.'), "{image} may change by itself");
        for port in one.value["ports"].as_array().into_iter().flatten() {
            let port = resolved(port);
            let [host, outside, inside] = port.split(':').collect::<Vec<_>>()[..] else { panic!("{name}: {port}") };
            assert_eq!(host, "127.0.0.1", "{name}: without keys of its own nothing is open to others");
            assert!(published.insert(outside.to_owned()), "{outside} is published twice");
            assert!(!one.is_ours() || one.port().as_deref() == Some(inside), "{name} does not listen on {inside}");
        }
        for (source, place) in one.mounts() {
            if source.starts_with('.') {
                assert!(repository().join(&source).is_file(), "{name}: no {source}");
                continue;
            }
            assert!(file["volumes"].as_object().expect("a mapping").contains_key(&source), "{name}: {source} is not declared");
            assert!(mounted.insert(source.clone()), "{name}: {source} is mounted elsewhere, too, not at {place} alone");
        }
        for (other, on) in one.value["depends_on"].as_object().into_iter().flatten() {
            let other = service(other);
            match on["condition"].as_str() {
                Some("service_healthy") => assert!(other.value["healthcheck"]["test"].is_array(), "{} has no check", other.name),
                Some("service_completed_successfully") => assert_eq!(other.value["restart"], "no", "{} never ends", other.name),
                condition => panic!("{name}: {condition:?}"),
            }
            assert!(other.value["depends_on"].get(name).is_none(), "{name} and {} wait for each other", other.name);
        }
    }
    let declared: BTreeSet<String> = file["volumes"].as_object().expect("a mapping").keys().cloned().collect();
    assert_eq!(declared, mounted, "volumes that are declared, and that are used");

    // Our services: commands and variables are the program's, checks ask the port that is listened on.
    let ours: Vec<&Service<'_>> = services.iter().filter(|service| service.is_ours()).collect();
    assert_eq!(ours.iter().map(|service| service.name).collect::<Vec<_>>(), ["aggregator", "collector", "migrate", "query"]);
    for one in &ours {
        let help = help(&one.command()).await;
        for variable in one.environment().keys() {
            let is_flag = help.contains(&format!("[env: {variable}"));
            let is_key = one.name == "migrate" && KEYS.contains(&variable.as_str());
            // Kafka's address is shared, and not asked for by those who need no log.
            let is_shared = variable == "WEIR_KAFKA" && ["migrate", "query"].contains(&one.name);
            assert!(is_flag || is_key || is_shared || BY_NAME.contains(&variable.as_str()), "{}: {variable}", one.name);
        }
        if let Some(port) = one.port() {
            let check = texts(&one.value["healthcheck"]["test"]);
            assert_eq!(check, ["CMD", "weir", "probe", &format!("http://127.0.0.1:{port}")]);
            self::help(&check[2..]).await;
        }
        if one.name != "migrate" {
            assert!(one.port().is_some(), "{} listens where others reach it", one.name);
            assert!(one.value["depends_on"].get("migrate").is_some(), "{} finds a schema", one.name);
        }
        let waits_for_kafka = one.value["depends_on"].get("kafka").is_some();
        assert_eq!(waits_for_kafka, ["collector", "aggregator"].contains(&one.name), "{}", one.name);
        // Ten seconds are promised.
        let grace = one.value["stop_grace_period"].as_str().and_then(|text| text.strip_suffix('s')?.parse::<u32>().ok());
        assert!(grace.is_some_and(|seconds| seconds > 10), "{}: {grace:?}", one.name);
    }

    // The parts meet where they look for each other.
    let (settings, postgres) = (service("collector").environment(), service("postgres").environment());
    let url = format!(
        "postgresql://{}:{}@postgres:5432/{}",
        postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"], postgres["POSTGRES_DB"]
    );
    assert_eq!(settings["WEIR_DATABASE_URL"], url);
    let kafka = service("kafka").environment();
    assert!(kafka["KAFKA_ADVERTISED_LISTENERS"].split(',').any(|one| one == format!("PLAINTEXT://{}", settings["WEIR_KAFKA"])));
    for listener in kafka["KAFKA_LISTENERS"].split(',') {
        let (protocol, address) = listener.split_once("://").expect("a listener");
        assert!(kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].contains(&format!("{protocol}:")), "{protocol}");
        let voter = format!("{}@kafka{address}", kafka["KAFKA_NODE_ID"]);
        assert!(protocol != "CONTROLLER" || kafka["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voter, "{voter}");
    }
    // The README's level `power`.
    assert_eq!(kafka["KAFKA_LOG_FLUSH_INTERVAL_MESSAGES"], "1");
    let jobs = prometheus["scrape_configs"].as_array().expect("a list");
    for (job, flag) in [("collector", "--metrics"), ("query", "--metrics"), ("aggregator", "--aggregator")] {
        let scraped = jobs.iter().find(|one| one["job_name"] == job).unwrap_or_else(|| panic!("no job {job}"));
        let port = service(job).port_of(flag).expect("an address");
        let found = match &scraped["static_configs"][0]["targets"][0] {
            Value::Null => {
                format!("{}:{}", resolved(&scraped["dns_sd_configs"][0]["names"][0]), scraped["dns_sd_configs"][0]["port"])
            }
            target => resolved(target),
        };
        assert_eq!(found, format!("{job}:{port}"));
        assert_ne!(
            service(job).value["ports"][0].as_str().and_then(|text| text.rsplit(':').next()),
            Some(port.as_str()),
            "public"
        );
    }
    assert_eq!(jobs.len(), 3);
    let mounts = service("prometheus").mounts();
    for rules in texts(&prometheus["rule_files"]) {
        assert!(mounts.contains(&("./deploy/alerts.yml".to_owned(), rules.clone())), "{rules} is not mounted");
    }

    // What must survive a container lies on a volume: the database, the broker's data, a collector's spool, of which each has its own.
    let volume = |name: &str, place: &str| {
        assert!(service(name).mounts().contains(&(name.to_owned(), place.to_owned())), "{name}: {place} is on no volume");
    };
    volume("postgres", "/var/lib/postgresql/data");
    volume("kafka", &kafka["KAFKA_LOG_DIRS"]);
    let data = dockerfile.split("WEIR_DATA=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a folder");
    volume("collector", data);
    assert!(service("collector").value["deploy"].is_null(), "two collectors would share one spool");
    assert!(service("aggregator").value["ports"].is_null(), "two aggregators would publish one port");

    // The image: fixed bases, nobody's user by number, the program as its entry.
    let words: Vec<Vec<&str>> = dockerfile.lines().map(|line| line.split_whitespace().collect()).collect();
    let said = |word: &str| words.iter().filter(|line| line.first() == Some(&word)).map(|line| line[1]).collect::<Vec<_>>();
    for base in said("FROM") {
        let tag = base.split_once(':').unwrap_or_else(|| panic!("{base} has no version")).1;
        assert!(tag.starts_with(|first: char| first.is_ascii_digit()) && tag.contains('.'), "{base}");
    }
    let users = said("USER");
    let (uid, gid) = users.last().and_then(|user| user.split_once(':')).expect("USER uid:gid");
    assert!(uid == gid && uid.parse::<u32>().is_ok_and(|uid| uid > 0) && dockerfile.contains(&format!("--uid {uid} ")), "{uid}");
    assert_eq!((said("ENTRYPOINT"), said("VOLUME")), (vec!["[\"weir\"]"], vec![data]));

    // The query service and one of its processes fit below the bound of the container; swap is none.
    let query = service("query");
    let help = help(&["query".to_owned()]).await;
    let own = default_of(&help, "query-memory-bytes-max") + default_of(&help, "query-worker-memory-bytes-max");
    assert!(bytes(&query.value["mem_limit"]) > own, "{own} bytes are allowed inside");
    assert_eq!(query.value["mem_limit"], query.value["memswap_limit"]);
}

/// The service `migrate`, run as it is written: the keys that it is given are valid afterwards, once, however often it runs.
#[tokio::test]
async fn the_service_migrate_makes_the_keys_that_it_is_given() {
    let Some(file) = yaml("docker-compose.yml").await else { return };
    let database = TestDatabase::create().await;
    let service = Service { name: "migrate", value: &file["services"]["migrate"] };
    for _ in 0..2 {
        let mut command = weir();
        command.args(service.command()).envs(service.environment()).env("WEIR_DATABASE_URL", &database.url);
        let ended = run(command, Duration::from_secs(60)).await;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    let mut rows = Database::connect(&database.url).await;
    let kinds = "SELECT string_agg(kind, ' ' ORDER BY kind) FROM keys WHERE revoked_at IS NULL";
    assert_eq!(rows.text(kinds).await, "read server write");
}
