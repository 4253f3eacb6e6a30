//! Scenarios that are tests of the repository, and are run as such: each proves its fault by its own assertions.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use super::why_no_kafka;
use crate::chaos::Outcome;
use crate::chaos::judge::Verdict;
use crate::chaos::scene::{Settings, without_settings};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
const KAFKA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kafka.sh");

/// A test, which binaries may have it, and what it proves.
struct Test {
    target: &'static [&'static str],
    filter: &'static str,
    proves: &'static [&'static str],
    needs_kafka: bool,
}

/// C3.
#[cfg(feature = "kafka")]
pub(super) async fn kafka_away(settings: Settings) -> anyhow::Result<Outcome> {
    const FILTERS: [&str; 2] = ["services::an_outage_of_kafka_is_bridged_in_order", "hardest::hardest_02"];
    let seconds = settings.times.saturating_mul(10).to_string();
    let variables = [("WEIR_OUTAGE_SECONDS", seconds.as_str()), ("WEIR_KILLS", &settings.times.to_string())];
    tests(&FILTERS.map(|filter| of_weir(filter, &["I1", "I2", "I17"], true)), &variables).await
}

/// C7.
pub(super) async fn stopped_under_load(settings: Settings) -> anyhow::Result<Outcome> {
    let test = of_weir("hardest::hardest_07_a_stop_under_full_load_resets_nobody_and_loses_nothing", &["I1", "I2", "I19"], false);
    tests(&[test], &[("WEIR_KILLS", &settings.times.to_string())]).await
}

/// K3 and K5.
#[cfg(feature = "kafka")]
pub(super) async fn topic_changed(_: Settings) -> anyhow::Result<Outcome> {
    tests(&[of_weir("services::a_topic_that_was_changed_halts_by_name", &["I1", "I15"], true)], &[]).await
}

/// The second half of K1: each service and the broker in turn, the only broker in good order, and in the middle of batches.
#[cfg(feature = "kafka")]
pub(super) async fn services_killed(times: u64) -> anyhow::Result<Outcome> {
    const FILTERS: [&str; 3] =
        ["services::each_service_is_killed", "services::a_broker_that_restarts_in_good_order", "hardest::hardest_01"];
    let times = (6 * times).to_string();
    tests(
        &FILTERS.map(|filter| of_weir(filter, &["I1", "I2", "I17"], true)),
        &[("WEIR_KILLS", &times), ("WEIR_RESTARTS", &times)],
    )
    .await
}

/// The second half of K7.
#[cfg(feature = "kafka")]
pub(super) async fn owner_frozen() -> anyhow::Result<Outcome> {
    tests(&[of_weir("services::an_aggregator_that_freezes_is_replaced", &["I2", "I7"], true)], &[]).await
}

/// K6.
#[cfg(feature = "kafka")]
pub(super) async fn error_storm(_: Settings) -> anyhow::Result<Outcome> {
    let mock = Test { target: &["--lib"], filter: "kafka::tests::mock", proves: &["I1"], needs_kafka: false };
    tests(&[mock], &[]).await
}

const fn of_weir(filter: &'static str, proves: &'static [&'static str], needs_kafka: bool) -> Test {
    Test { target: &["--test", "it"], filter, proves, needs_kafka }
}

/// Runs tests; each invariant that one of them proves holds if all of them pass.
async fn tests(tests: &[Test], variables: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    if let Some(why) = tests.iter().any(|test| test.needs_kafka).then(why_no_kafka).flatten() {
        return Ok(Outcome::Skipped(why));
    }
    let mut verdicts: Vec<Verdict> = Vec::new();
    for test in tests {
        let mut command = if test.needs_kafka { Command::new(KAFKA) } else { Command::new("cargo") };
        if test.needs_kafka {
            command.args(["run", "cargo"]);
        }
        // Of the whole workspace, so that nothing is built that `make test` has not built.
        command.args(["test", "--locked", "--profile", "demo", "--manifest-path", MANIFEST, "--workspace"]);
        command.args(test.target).args(["--", "--nocapture", test.filter]).stdin(Stdio::null());
        let mut command = tokio::process::Command::from(without_settings(command));
        command.envs(variables.iter().copied()).kill_on_drop(true);
        let output = match command.output().await {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Outcome::Skipped("cargo is not here to run the test".to_owned()));
            }
            Err(error) => return Err(error).context("cargo test"),
        };
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if let Some(why) = said.lines().find(|line| line.starts_with("skipped: ")) {
            return Ok(Outcome::Skipped(why.trim_start_matches("skipped: ").to_owned()));
        }
        let passed = passed(&said);
        let holds = output.status.success() && passed > 0;
        let why = if holds { Vec::new() } else { why_failed(&said) };
        let seen = json!({ "test": test.filter, "passed": passed, "why": why });
        verdicts.extend(test.proves.iter().chain(&["I22"]).map(|invariant| Verdict {
            invariant,
            holds: Some(holds),
            seen: seen.clone(),
        }));
        // A port of one may be asked for by the next.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(Outcome::Judged(verdicts))
}

/// How many tests passed, by cargo's own words.
fn passed(said: &str) -> u64 {
    let counts = said.lines().filter_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// What a test said of its failure: each panic with the two lines after it, or else its last words.
fn why_failed(said: &str) -> Vec<&str> {
    let lines: Vec<&str> = said.lines().collect();
    let panics = (0..lines.len()).filter(|place| lines[*place].contains("panicked at"));
    let why: Vec<&str> = panics.flat_map(|place| lines[place..].iter().take(3).copied()).take(30).collect();
    if why.is_empty() { lines[lines.len().saturating_sub(12)..].to_vec() } else { why }
}

#[cfg(test)]
mod unit {
    #[test]
    fn a_panic_is_told_however_much_follows() {
        let said = format!("running\nthread 'a' panicked at a.rs:1:2:\nnot 3\nnote: more\n{}", "noise\n".repeat(50));
        assert_eq!(super::why_failed(&said), ["thread 'a' panicked at a.rs:1:2:", "not 3", "note: more"]);
        assert_eq!(super::why_failed("one\ntwo"), ["one", "two"]);
    }

    #[test]
    fn passed_tests_are_counted() {
        let said = "running 1 test\ntest result: ok. 3 passed; 0 failed; 0 ignored\ntest result: ok. 0 passed; 0 failed\n";
        assert_eq!(super::passed(said), 3);
        assert_eq!(super::passed("test result: FAILED. 2 passed; 1 failed"), 0);
    }
}
