//! What dies again and again ends the process, in order and with a failure, so that whoever runs it knows.

use std::process::Stdio;

use crate::harness::{Folder, weir};

#[test]
fn what_keeps_panicking_ends_it_with_a_failure() {
    for (place, expected) in [
        ("aggregator/worker-1", "aggregator: task worker-1 panicked: injected into worker-1; it died 5 times within 300 s"),
        ("collector/listener", "collector: task listener panicked: injected into listener; it died 5 times within 300 s"),
        ("weir/supervise-postgres", "the task that keeps postgres running has ended"),
        ("weir/supervise-weir-query", "the task that keeps weir query running has ended"),
    ] {
        let folder = Folder::new();
        let mut command = weir();
        command.arg("up").arg("--data").arg(folder.path()).env("WEIR_INJECT_PANICS", place);
        for service in ["--collector", "--query", "--aggregator"] {
            command.args([service, "127.0.0.1:0"]);
        }
        let output = command.stdout(Stdio::null()).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{place}: {said}");
        assert!(said.lines().last().is_some_and(|line| line.starts_with("weir: ") && line.contains(expected)), "{place}: {said}");
    }
}
