//! Prints how often each method raises a false alarm about experiments without any effect that are looked at every day.
//!
//! `cargo run --package statistics --example false_alarms -- [RUNS]`, 10,000 if not said.

use statistics::false_alarms::{DAYS, simulate};

#[expect(clippy::print_stdout, reason = "the figures are what the example is for")]
fn main() {
    let runs = std::env::args().nth(1).and_then(|runs| runs.parse().ok()).unwrap_or(10_000);
    let alpha = 0.05;
    let found = simulate(runs, alpha, 1);
    println!("{runs} experiments without effect, {} daily looks, alpha {alpha}", DAYS);
    for (name, part) in [
        ("fixed test, every day", found.peeking),
        ("fixed test, once", found.fixed),
        ("confidence sequence", found.sequence),
        ("group sequential", found.group_sequential),
        ("hybrid", found.hybrid),
        ("sample ratio, sequential", found.sample_ratio),
    ] {
        println!("{name:<26} {:.2} %", 100.0 * part);
    }
}
