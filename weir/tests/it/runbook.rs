//! The runbook of README.md, tried: each state in which a log partition halts, and each alert, is provoked; the services tell of it on
//! their pages, Prometheus' own evaluation of the rules fires, and what the README says to do ends it. Needs a Kafka broker for each
//! test and `promtool`; skipped aloud where they are missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::weir;
use crate::services::{READY_MAX, is_skipped};
use crate::support::{page, program, run};

mod alerts;
mod halts;
mod story;

use story::ALERT_RULES;

/// Makes a test of each provocation. It halts a log partition in a state, if one is named, and these alerts fire and no others.
macro_rules! provoked {
    ($($module:ident::$test:ident $(halts $state:literal)? fires [$($alert:literal),+];)+) => {
        const STATES: &[&str] = &[$($($state,)?)+];
        const ALERTS: &[&[&str]] = &[$(&[$($alert),+]),+];
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if is_skipped(stringify!($test)) || !is_evaluated(stringify!($test)) {
                    return;
                }
                $module::$test($($state)?).await.check(&[$($alert),+]).await;
            }
        )+
    };
}

provoked! {
    halts::records_of_a_newer_version halts "log_version_unknown" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::records_that_are_no_events halts "too_many_dead_letters" fires ["WeirDeadLetters", "WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::a_right_that_is_missing halts "commit_refused" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::a_topic_made_anew halts "log_differs" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::records_that_expired halts "offset_below_log_start" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::an_old_copy_of_the_brokers_disk halts "offset_above_log_end" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    halts::a_damaged_log_file halts "log_corrupt" fires ["WeirLogPartitionHalted", "WeirServiceNotReady"];
    alerts::a_frozen_postgres fires ["WeirServiceNotReady"];
    alerts::a_killed_collector fires ["WeirServiceNotReady"];
    alerts::a_locked_table fires ["WeirStoringFallsBehind"];
    alerts::a_full_spool fires ["WeirEventsRefusedForWantOfRoom", "WeirSpoolFills"];
    alerts::a_damaged_spool fires ["WeirSpoolDamaged"];
    alerts::a_client_that_sends_too_much fires ["WeirKeyOverItsRate"];
    alerts::a_name_that_nobody_knows fires ["WeirDeadLetters"];
    alerts::a_method_of_a_newer_version fires ["WeirExperimentBehind", "WeirServiceNotReady"];
    alerts::facts_deleted_by_hand fires ["WeirKnownUsersDiffer"];
    alerts::a_task_that_panics fires ["WeirServiceNotReady", "WeirTaskRestarts"];
    alerts::more_questions_than_may_wait fires ["WeirQueriesRefused"];
    alerts::questions_that_do_not_end fires ["WeirQueryProcessesKilled"];
}

fn is_evaluated(test: &str) -> bool {
    let is_there = program("promtool").is_some();
    if !is_there {
        eprintln!("skipped: {test} needs promtool, of Debian's package prometheus");
    }
    is_there
}

/// The first column of the README's table under a heading.
fn listed(heading: &str) -> BTreeSet<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).expect("the README");
    let (_, section) = readme.split_once(&format!("\n### {heading}\n")).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let section = section.split("\n#").next().expect("a text");
    section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |")).map(|(name, _)| name.to_owned()).collect()
}

fn names<'a>(all: impl Iterator<Item = &'a &'a str>) -> BTreeSet<String> {
    all.map(|name| (*name).to_owned()).collect()
}

/// Every state that the aggregator's sources give a halt: a text in them that `/readyz` shows after `log partition N: `.
fn states_of_the_sources() -> BTreeSet<String> {
    let mut paths = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../aggregator/src")];
    let mut states = BTreeSet::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(path).expect("the sources").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let code = text.split("#[cfg(test)]").next().expect("a text");
        // A file that makes a halt; what stands in quotation marks there and looks like a state is one.
        if code.contains("Halt {") {
            let quoted = code.split('"').skip(1).step_by(2);
            let is_state = |text: &&str| text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            states.extend(quoted.filter(is_state).map(str::to_owned));
        }
    }
    states
}

#[test]
fn each_state_and_each_alert_is_provoked() {
    let states = names(STATES.iter());
    assert_eq!(states, listed("When a log partition halts"), "the README's states and those that a test provokes");
    assert_eq!(states, states_of_the_sources(), "the states that a test provokes and those of the aggregator");
    let alerts = names(ALERTS.iter().copied().flatten());
    assert_eq!(alerts, listed("When an alert fires"), "the README's alerts and those that a test provokes");
    let rules = fs::read_to_string(ALERT_RULES).expect("the rules");
    let rules = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    assert_eq!(alerts, rules, "the alerts that a test provokes and those of the rules");
}

/// Waits until a service says that it is ready, or with 503 why it is not.
async fn until_told(url: &str, status: u16, text: &str) {
    let deadline = Instant::now() + READY_MAX;
    loop {
        let found = page(&format!("{url}/readyz")).await;
        if found.0 == status && found.1.contains(text) {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?}; {status} {text} was expected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a command of operators over a database.
async fn command(database_url: &str, arguments: &[&str]) -> String {
    let mut command = weir();
    command.args(arguments).args(["--database-url", database_url]);
    let ended = run(command, Duration::from_secs(30)).await;
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}
