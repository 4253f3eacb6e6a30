//! The rules of the house that the compiler does not check.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom. Services never import services; a reader finds each thing where these arrows say.
const MAY_IMPORT: [(&str, &[&str]); 12] = [
    ("events", &[]),
    ("eventlog", &["events"]),
    ("statistics", &[]),
    ("catalogue", &["events"]),
    ("segments", &["events"]),
    ("service", &[]),
    ("ingest", &["events", "eventlog", "catalogue", "service"]),
    ("aggregator", &["events", "eventlog", "catalogue", "segments", "service"]),
    ("query", &["events", "segments", "statistics", "catalogue", "service"]),
    ("migrations", &[]),
    ("weir", &ALL),
    ("benches", &ALL),
];

const ALL: [&str; 10] =
    ["events", "eventlog", "statistics", "catalogue", "segments", "service", "ingest", "aggregator", "query", "migrations"];

/// Heavy dependencies, and the only crates that may have them.
const HEAVY: [(&str, &[&str]); 5] = [
    ("datafusion", &["query"]),
    ("arrow", &["query", "segments", "weir"]),
    ("rdkafka", &["eventlog", "benches"]),
    ("rdkafka-sys", &["eventlog"]),
    ("sqlx", &["catalogue", "aggregator", "ingest", "query", "migrations", "weir", "benches"]),
];

/// How tasks and threads begin. In what serves only `service` does so, which supervises them; each other place has its reason here.
const SPAWNS: [&str; 5] = ["tokio::spawn(", "JoinSet::new", "thread::spawn(", "thread::Builder", "thread::scope("];
const MAY_SPAWN: [(&str, &str); 12] = [
    ("crates/eventlog/src/background.rs", "restarts them, and tells whoever uses the log"),
    ("crates/eventlog/src/embedded/writer.rs", "joined by the writer, whose panic theirs is"),
    ("crates/eventlog/src/kafka/mod.rs", "closes a consumer at the end of its log; nothing depends on it"),
    ("crates/eventlog/src/kafka/producer.rs", "drops a producer that was replaced; nothing waits for it"),
    ("crates/eventlog/src/spool/append.rs", "awaited by its caller, whose error its panic is"),
    ("query/src/engine/mod.rs", "awaited by its request, whose panic it is"),
    ("query/src/worker/pool.rs", "ends with the stderr that it reads"),
    ("weir/src/children.rs", "its end ends `weir up`"),
    ("weir/src/commands/import.rs", "awaited by the command"),
    ("weir/src/demo.rs", "awaited by the command"),
    ("weir/src/query_service.rs", "ends with the stdin or the stdout that it reads"),
    ("weir/src/up.rs", "awaited by the start"),
];

/// The only file that may contain unsafe code: the glue to Kafka's C library.
const UNSAFE: &str = "crates/eventlog/src/kafka/native.rs";

const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").to_owned()
}

/// The dependencies of each member, by section of its manifest.
fn manifests() -> BTreeMap<String, Vec<(String, String)>> {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    let (_, members) = workspace.split_once("\nmembers = [").expect("a list of members");
    let (members, _) = members.split_once(']').expect("its end");
    let members = members.split('"').skip(1).step_by(2);
    members.map(|member| (member.to_owned(), dependencies(&root().join(member).join("Cargo.toml")))).collect()
}

fn dependencies(manifest: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(manifest).expect("a member's manifest");
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if section.ends_with("dependencies")
            && let Some((name, _)) = line.split_once(['.', ' ', '='])
            && !line.starts_with('#')
        {
            found.push((section.clone(), name.to_owned()));
        }
    }
    found
}

#[test]
fn crates_import_only_whom_they_may() {
    let names: Vec<&str> = MAY_IMPORT.iter().map(|(name, _)| *name).collect();
    for (folder, dependencies) in manifests() {
        // A member's folder bears its name, whichever folder that stands in.
        let member = folder.rsplit('/').next().unwrap_or(&folder);
        let (_, allowed) =
            MAY_IMPORT.iter().find(|(name, _)| *name == member).unwrap_or_else(|| panic!("{member} is not in the table"));
        for (section, dependency) in dependencies {
            // Tests need a schema; nothing else does.
            let of_tests = section == "dev-dependencies" && (dependency == "migrations" || dependency == member);
            if names.contains(&dependency.as_str()) && !of_tests {
                assert!(allowed.contains(&dependency.as_str()), "{member} must not import {dependency} ([{section}])");
            }
            // A second edge of the same crate in dev-dependencies may add features, not reach further.
            if let Some((heavy, holders)) = HEAVY.iter().find(|(heavy, _)| *heavy == dependency) {
                assert!(holders.contains(&member), "{heavy} is kept in {holders:?}, but {member} has it");
            }
        }
    }
}

#[test]
fn one_version_of_what_must_not_be_twice() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("the lock file");
    for name in ["arrow", "parquet", "object_store", "datafusion", "rdkafka-sys", "rustls", "hyper", "sqlx"] {
        let count = lock.lines().filter(|line| *line == format!("name = \"{name}\"")).count();
        assert!(count <= 1, "{count} versions of {name} in Cargo.lock");
    }
    for name in ["openssl", "native-tls", "aws-lc-rs"] {
        assert!(
            !lock.lines().any(|line| line == format!("name = \"{name}\"")),
            "{name} is in Cargo.lock: rustls with ring is the one TLS stack"
        );
    }
    // The exception: Kafka's C library, with the feature kafka-tls.
    for package in lock.split("[[package]]").filter(|package| package.contains("\n \"openssl-sys\"")) {
        assert!(package.contains("\nname = \"rdkafka-sys\"\n"), "only Kafka's C library may use OpenSSL:{package}");
    }
}

#[test]
fn unsafe_code_lies_in_one_file() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    assert!(workspace.contains("\nunsafe_code = \"deny\"\n"), "the workspace denies unsafe code");
    for member in manifests().into_keys() {
        let manifest = fs::read_to_string(root().join(&member).join("Cargo.toml")).expect("a member's manifest");
        assert!(manifest.contains("\n[lints]\nworkspace = true\n"), "{member} does not take the workspace's lints");
    }
    for file in sources(&root()) {
        // A file needs the lint's name to switch it off; here it stands for the reasons just given.
        let names_lint = fs::read_to_string(&file).expect("a source file").contains("unsafe_code");
        let may = file.ends_with(UNSAFE) || file.ends_with(file!());
        assert!(may || !names_lint, "{}: only {UNSAFE} may allow unsafe code", file.display());
    }
    assert!(root().join(UNSAFE).exists());
}

#[test]
fn no_task_begins_where_nobody_sees_its_end() {
    let mut found = Vec::new();
    for member in ["crates/eventlog", "ingest", "aggregator", "query", "weir"] {
        for file in sources(&root().join(member).join("src")) {
            let path = file.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).expect("a source file");
            // Tests may begin what they like; so may the suite that logs are tested by, and the simulated world.
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let is_of_tests = ["/tests/", "/conformance.rs", "/src/simulation"].iter().any(|part| path.contains(part));
            if !is_of_tests && SPAWNS.iter().any(|spawn| code.contains(spawn)) {
                found.push(path);
            }
        }
    }
    found.sort();
    let allowed: Vec<&str> = MAY_SPAWN.iter().map(|(path, _)| *path).collect();
    assert_eq!(found, allowed, "tasks and threads of services are spawned by `service::Tasks`");
}

#[test]
fn panics_are_injected_in_tests_only() {
    for member in manifests().into_keys() {
        let manifest = fs::read_to_string(root().join(&member).join("Cargo.toml")).expect("a member's manifest");
        for section in manifest.split("\n[").filter(|section| section.contains("\"fault-injection\"")) {
            assert!(section.starts_with("dev-dependencies]"), "{member} has fault-injection outside of its tests");
        }
    }
}

#[test]
fn no_file_becomes_a_place_where_all_owners_meet() {
    for file in sources(&root()) {
        let lines = fs::read_to_string(&file).expect("a source file").lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines; split it by subject", file.display());
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found
}
