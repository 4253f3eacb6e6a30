//! Deterministic simulation of the way of an event: clients, collectors with their spools, the log, aggregators, the database, readers.
//!
//! What serves is real: the spool, the workers of `run.rs`, the lease manager of `lease.rs`. The log (`log.rs`), the database (`model.rs`),
//! disks and the ways between them are models that fail as `faults.rs` says; `conformance.rs` holds the model of the database against
//! Postgres. A world runs on one thread, on a clock that stands still while anybody works, and draws all that is left to chance from its
//! seed: the same seed gives the same trace. `judge.rs` looks at the invariants.
//!
//! A failure names its seed. `WEIR_SIMULATION_FIRST_SEED=17 WEIR_SIMULATION_SEEDS=1` runs that one alone, and `WEIR_SIMULATION_SEEDS=20000`
//! many. A seed that found something goes into [`FOUND`].

mod clients;
mod collector;
mod conformance;
mod faults;
mod judge;
mod log;
mod model;
mod node;
mod process;
mod reader;
mod run;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use run::{Report, Seen};
use world::simulate;

/// Seeds that have found something, each with what it was.
const FOUND: [(u64, &str); 1] =
    [(1033, "a worker whose connection died while it had nothing to store paused for seconds when the next event came")];

/// Seeds of `make test`.
const SEEDS: u64 = 600;

fn variable(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?}: expected a whole number")))
}

/// Runs seeds on all processors, and returns what each found.
fn simulate_all(seeds: std::ops::Range<u64>) -> BTreeMap<u64, Report> {
    let (next, reports) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    let report = simulate(seed);
                    reports.lock().expect("no report panics").insert(seed, report);
                }
            });
        }
    });
    reports.into_inner().expect("no report panics")
}

/// Panics with the first of those that failed.
fn expect_all_hold(reports: &BTreeMap<u64, Report>) {
    let failed: Vec<u64> = reports.iter().filter(|(_, report)| !report.broken.is_empty()).map(|(seed, _)| *seed).collect();
    let Some(first) = failed.first() else { return };
    let names: BTreeMap<u64, _> = failed.iter().take(20).map(|seed| (*seed, &reports[seed].broken)).collect();
    panic!(
        "{} of {} seeds failed: {names:?}\nseed {first}, alone by WEIR_SIMULATION_FIRST_SEED={first} WEIR_SIMULATION_SEEDS=1: {}",
        failed.len(),
        reports.len(),
        reports[first].text
    );
}

#[test]
fn whatever_goes_wrong_the_invariants_hold() {
    let first = variable("WEIR_SIMULATION_FIRST_SEED", 1);
    let seeds = variable("WEIR_SIMULATION_SEEDS", SEEDS);
    let reports = simulate_all(first..first + seeds);
    expect_all_hold(&reports);
    let mut seen: BTreeMap<Seen, u64> = BTreeMap::new();
    reports.values().flat_map(|report| &report.seen).for_each(|(what, times)| *seen.entry(*what).or_default() += times);
    let hash = reports.values().fold(0, |hash: u64, report| hash.rotate_left(1) ^ report.hash);
    eprintln!("{seeds} seeds from {first} on: trace {hash:016x}, seen {seen:?}");
    // Fewer may not have seen all.
    if seeds >= 100 {
        let unseen: Vec<Seen> = Seen::ALL.into_iter().filter(|what| !seen.contains_key(what)).collect();
        assert!(unseen.is_empty(), "{seeds} seeds have not seen {unseen:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1..11 {
        let (first, second) = (simulate(seed), simulate(seed));
        assert_eq!(first.hash, second.hash, "seed {seed}: {}\n\nand then: {}", first.text, second.text);
        assert_ne!(first.hash, simulate(seed + 100).hash, "seeds differ");
    }
}

#[test]
fn what_was_found_stays_mended() {
    for (seed, what) in FOUND {
        let report = simulate(seed);
        assert!(report.broken.is_empty(), "seed {seed}, which has found: {what}\n{}", report.text);
    }
}
