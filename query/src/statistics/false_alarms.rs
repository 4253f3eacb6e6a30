//! Whether the methods for early looks keep their promise, on experiments without any effect.

use super::{comparison, effect, group_sequential, proportions, sample_ratio, sequential};

#[path = "../../examples/false_alarms/simulation.rs"]
pub(super) mod simulation;

#[test]
fn early_looks_keep_their_promise() {
    let runs = 2_000;
    let alpha = 0.05;
    let found = simulation::simulate(runs, alpha, 1);
    // Three standard errors above alpha: what chance explains.
    let limit = alpha + 3.0 * (alpha * (1.0 - alpha) / runs as f64).sqrt();
    for part in [found.fixed, found.sequence, found.group_sequential, found.hybrid, found.sample_ratio] {
        assert!(part <= limit, "{found:?}");
    }
    // The simulation can see what it looks for, and the plan with an end spends what it may.
    assert!(found.peeking > 0.2, "{found:?}");
    assert!(found.group_sequential > 0.03 && found.fixed > 0.03, "{found:?}");
}
