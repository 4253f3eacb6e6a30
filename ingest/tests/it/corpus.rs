//! What the fuzz targets begin with, and what they found worth keeping, once more: without a finding.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ingest::fuzzing::{Door, Mutator, Target, check, corpus, seeds};

/// How many changed inputs are tried beside the kept ones.
const CHANGED: usize = 3_000;

/// Tries an input, and says which it was if something does not hold. Returns how many events were accepted and rejected of it; none if it is
/// not the target's.
fn replay(door: &Door, target: Target, input: &[u8]) -> Option<(usize, usize)> {
    let passed = catch_unwind(AssertUnwindSafe(|| check(door, target, input)));
    let passed = passed.unwrap_or_else(|_| panic!("{}: {:?}", target.as_str(), String::from_utf8_lossy(input)));
    passed.map(|passed| (passed.records.len(), passed.codes.len()))
}

#[test]
fn what_fuzzers_kept_is_taken_without_a_finding() {
    let door = Door::new();
    for target in Target::ALL {
        let kept = corpus(target);
        let kept_count = kept.len();
        let ran: Vec<_> = seeds().iter().chain(&kept).filter_map(|input| replay(&door, target, input)).collect();
        let (accepted, rejected) = ran.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert!(kept_count >= 20 && ran.len() > kept_count, "{}: {kept_count} kept, {} ran", target.as_str(), ran.len());
        assert!(accepted >= 10 && rejected >= 3, "{}: {accepted} accepted, {rejected} rejected", target.as_str());
    }
}

#[test]
fn changed_requests_are_taken_without_a_finding() {
    let door = Door::new();
    let mut changes = Mutator::new(1);
    let ran = (0..CHANGED).filter_map(|_| replay(&door, Target::Request, &changes.next_input()));
    let (accepted, rejected) = ran.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(accepted > CHANGED / 10 && rejected > CHANGED / 50, "{accepted} accepted, {rejected} rejected");
}
