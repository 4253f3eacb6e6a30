//! Log partitions whose commits fail for a reason which does not pass by itself.
//!
//! Each is committed apart from all others until it succeeds, so that the fault is found where it is. After a failure it rests, longer each
//! time and several times as long as the try took, while the worker goes on with the others: what is wrong with one log partition takes
//! a small part of the time of its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

/// The first and the longest rest of a suspect, unless its try took long.
const RESTS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(4));
/// A suspect rests so many times as long as its try took.
const REST_PER_TRY: u32 = 9;

/// A log partition that failed.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// In a row.
    failures: u32,
    /// When it may be tried again.
    due: Instant,
}

/// The suspects of a worker, and the log partitions of the batch that it commits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suspects {
    suspects: BTreeMap<u32, Suspect>,
    /// How many batches were read since there are any: the log partitions take turns.
    turns: usize,
    committing: Option<(Vec<u32>, Instant)>,
}

/// What a failed commit means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The others need not wait: it was a suspect alone, which rests now.
    pub is_alone: bool,
    /// The log partition that has failed too often, alone. It is no suspect any more.
    pub halts: Option<u32>,
}

impl Suspects {
    /// Chooses log partitions for the next batch among those that are read: by turns the unsuspected ones, and each suspect alone that does
    /// not rest. None, if all rest.
    pub(crate) fn choose(&mut self, read: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        let (suspects, others): (Vec<u32>, Vec<u32>) = read.partition(|partition| self.suspects.contains_key(partition));
        let due: Vec<u32> = suspects.into_iter().filter(|partition| !self.rests(*partition)).collect();
        self.turns = self.turns.wrapping_add(1);
        let turns = (due.len() + usize::from(!others.is_empty())).max(1);
        match due.get(self.turns % turns) {
            Some(suspect) => BTreeSet::from([*suspect]),
            None => others.into_iter().collect(),
        }
    }

    /// Returns those among the log partitions that are read which are no suspects.
    pub(crate) fn unsuspected(&self, read: impl Iterator<Item = u32>) -> BTreeSet<u32> {
        read.filter(|partition| !self.suspects.contains_key(partition)).collect()
    }

    /// Returns whether a suspect among the log partitions that are read is to be tried now.
    pub(crate) fn is_any_due(&self, mut read: impl Iterator<Item = u32>) -> bool {
        read.any(|partition| self.suspects.contains_key(&partition) && !self.rests(partition))
    }

    /// Returns whether a log partition is a suspect that is not to be tried yet.
    pub(crate) fn rests(&self, partition: u32) -> bool {
        self.suspects.get(&partition).is_some_and(|suspect| suspect.due > Instant::now())
    }

    /// Waits until a suspect that rests is to be tried; for ever, if none rests.
    pub(crate) async fn until_due(&self) {
        let now = Instant::now();
        match self.suspects.values().map(|suspect| suspect.due).filter(|due| *due > now).min() {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// Keeps those that are still held.
    pub(crate) fn retain(&mut self, is_held: impl Fn(u32) -> bool) {
        self.suspects.retain(|partition, _| is_held(*partition));
    }

    /// Notes that a batch is being committed.
    pub(crate) fn committing(&mut self, partitions: impl Iterator<Item = u32>) {
        self.committing = Some((partitions.collect(), Instant::now()));
    }

    /// Notes that the commit ended for a reason that says nothing of its log partitions.
    pub(crate) fn passed(&mut self) {
        self.committing = None;
    }

    /// Notes that the batch is stored.
    pub(crate) fn succeeded(&mut self) {
        for partition in self.committing.take().into_iter().flat_map(|(partitions, _)| partitions) {
            self.suspects.remove(&partition);
        }
    }

    /// Gives a log partition that was halted one more try.
    pub(crate) fn try_again(&mut self, partition: u32, tries_max: u32) {
        self.suspects.insert(partition, Suspect { failures: tries_max.saturating_sub(1), due: Instant::now() });
    }

    /// Counts a failed commit.
    pub(crate) fn failed(&mut self, tries_max: u32) -> Failed {
        let Some((committing, began)) = self.committing.take() else { return Failed::default() };
        let now = Instant::now();
        for partition in &committing {
            self.suspects.entry(*partition).or_insert(Suspect { failures: 0, due: now }).failures += 1;
        }
        let [alone] = committing[..] else { return Failed::default() };
        let Some(suspect) = self.suspects.get_mut(&alone) else { return Failed::default() };
        if suspect.failures >= tries_max {
            self.suspects.remove(&alone);
            return Failed { is_alone: true, halts: Some(alone) };
        }
        let rest = RESTS.0.saturating_mul(1 << suspect.failures.min(10)).min(RESTS.1);
        suspect.due = now + rest.max((now - began) * REST_PER_TRY);
        Failed { is_alone: true, halts: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten minutes of a worker with eight log partitions, of which one fails after 1.5 s each time, as where a batch is searched for refused
    /// rows: the others have more than four fifths of the time.
    #[tokio::test(start_paused = true)]
    async fn a_suspect_takes_a_small_part_of_its_neighbours_time() {
        let mut suspects = Suspects::default();
        let begin = Instant::now();
        let (mut of_others, mut tries) = (Duration::ZERO, 0);
        let mut halted = None;
        while halted.is_none() {
            let chosen = suspects.choose(0..8);
            suspects.committing(chosen.iter().copied());
            if chosen.contains(&3) {
                tokio::time::sleep(Duration::from_millis(1_500)).await;
                let failed = suspects.failed(100);
                assert_eq!(failed.is_alone, chosen.len() == 1);
                (tries, halted) = (tries + u32::from(failed.is_alone), failed.halts);
            } else {
                let began = Instant::now();
                tokio::time::sleep(Duration::from_millis(50)).await;
                suspects.succeeded();
                of_others += began.elapsed();
            }
        }
        assert_eq!((halted, tries), (Some(3), 99), "the first failure was one of all together");
        let share = of_others.as_secs_f64() / begin.elapsed().as_secs_f64();
        assert!(share > 0.8, "{share}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_chosen_while_all_rest_and_the_wait_ends_when_one_is_due() {
        let mut suspects = Suspects::default();
        suspects.committing([5].into_iter());
        assert_eq!(suspects.failed(100), Failed { is_alone: true, halts: None });
        assert!(suspects.choose([5].into_iter()).is_empty());
        assert!(suspects.rests(5) && !suspects.is_any_due([5].into_iter()));
        suspects.until_due().await;
        assert_eq!(suspects.choose([5].into_iter()), BTreeSet::from([5]));
        suspects.committing([5].into_iter());
        suspects.succeeded();
        assert_eq!(suspects.choose([4, 5].into_iter()), BTreeSet::from([4, 5]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_halted_log_partition_has_one_more_try() {
        let mut suspects = Suspects::default();
        suspects.try_again(5, 100);
        suspects.committing([5].into_iter());
        assert_eq!(suspects.failed(100), Failed { is_alone: true, halts: Some(5) });
        suspects.try_again(5, 100);
        suspects.committing([5].into_iter());
        suspects.succeeded();
        assert!(!suspects.is_any_due([5].into_iter()));
    }
}
