//! A short selection of the scenarios of `make chaos`, at small counts, each as the program runs it. `weir` lies beside it, as a build of the workspace
//! leaves it.

use std::process::Command;

/// Runs a scenario and holds that no invariant fails, and that most were judged. A scenario that cannot run here says so, and passes.
fn holds(scenario: &str, times: u32, judged_min: usize) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_benches"));
    command.args(["chaos", scenario, "--times", &times.to_string()]);
    let output = command.output().expect("it runs");
    let (said, progress) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if said.contains(r#""skipped":"#) {
        eprintln!("skipped: {said}");
        return;
    }
    assert!(output.status.success(), "{said}\n{progress}");
    let passed = said.lines().filter(|line| line.contains(r#""verdict":"pass""#)).count();
    assert!(passed >= judged_min, "{passed} invariants passed: {said}\n{progress}");
}

#[test]
fn c1_kills_of_the_machine_lose_and_repeat_nothing() {
    holds("C1", 3, 17);
}

#[test]
fn c5_a_sync_that_fails_is_never_an_acknowledgement() {
    holds("C5", 1, 18);
}

#[test]
fn c6_a_power_cut_loses_nothing_that_was_acknowledged() {
    holds("C6", 1, 18);
}

#[test]
fn p1_kills_at_the_steps_of_a_commit_lose_and_repeat_nothing() {
    holds("P1", 4, 17);
}

#[test]
fn p2_a_commit_whose_reply_is_lost_is_no_guess() {
    holds("P2", 4, 17);
}

#[test]
fn p3_postgres_cut_off_away_frozen_or_slow_disturbs_no_request() {
    holds("P3", 5, 17);
}

#[test]
fn p4_kills_of_postgres_lose_and_repeat_nothing() {
    holds("P4", 2, 17);
}

#[test]
fn p9_black_holes_are_left() {
    holds("P9", 2, 17);
}

/// What is no name of a scenario is told, with those that are.
#[test]
fn a_name_that_is_none_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_benches")).args(["chaos", "X9"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("\"X9\"") && said.contains("C1, C2"), "{said}");
}
