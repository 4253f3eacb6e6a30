//! The events of many users, in any order, and the level that each user reaches: what the SQL function `window_funnel` computes.

use super::chains::Chains;
use super::rules::Event;

/// One event of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The user, as a number of this log.
    pub user: u32,
    /// The event's time.
    pub time: i64,
    /// Which steps it may be.
    pub mask: u32,
}

/// The events of many users, in any order: 16 bytes each.
#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
}

impl Log {
    /// Takes one event.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Returns the bytes that are held.
    pub fn size(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Takes the users below `users` out, in order of user and time, and if `keeps_arrival`, of arrival; the others keep their events and
    /// move down by `users`.
    pub fn drain_users(&mut self, users: u32, keeps_arrival: bool) -> Vec<Entry> {
        let mut taken: Vec<Entry> = Vec::new();
        if self.entries.iter().all(|entry| entry.user < users) {
            taken = std::mem::take(&mut self.entries);
        } else {
            self.entries.retain_mut(|entry| {
                if entry.user < users {
                    taken.push(*entry);
                    return false;
                }
                entry.user -= users;
                true
            });
        }
        let key = |entry: &Entry| (entry.user, entry.time);
        if !taken.is_sorted_by_key(key) {
            if keeps_arrival { taken.sort_by_key(key) } else { taken.sort_unstable_by_key(key) }
        }
        taken
    }
}

/// Returns the level of each of `users` users from their sorted entries.
pub fn levels(entries: &[Entry], users: usize, chains: &mut Chains) -> Vec<i32> {
    let mut levels = vec![0; users];
    let mut events = Vec::new();
    for own in entries.chunk_by(|a, b| a.user == b.user) {
        chains.reset(None);
        for together in own.chunk_by(|a, b| a.time == b.time) {
            events.clear();
            events.extend(together.iter().map(|entry| Event { mask: entry.mask, ..Event::default() }));
            chains.take(together[0].time, &events, true);
            if chains.has_stopped() {
                break;
            }
        }
        levels[own[0].user as usize] = chains.level() as i32;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::funnel::rules::Rules;
    use proptest::prelude::*;

    fn level(events: &[(i64, u32)], rules: Rules) -> i32 {
        let mut log = Log::default();
        for (time, mask) in events {
            log.push(Entry { user: 0, time: *time, mask: *mask });
        }
        levels(&log.drain_users(1, false), 1, &mut Chains::new(rules))[0]
    }

    #[test]
    fn windows_at_the_end_of_time_stay_open() {
        assert_eq!(level(&[(i64::MAX - 1, 1), (i64::MAX, 2)], Rules::new(2, i64::MAX)), 2);
        assert_eq!(level(&[(i64::MIN, 1), (i64::MAX, 2)], Rules::new(2, i64::MAX)), 1);
    }

    #[test]
    fn draining_some_users_keeps_the_others() {
        let mut log = Log::default();
        for (user, time, mask) in [(2, 5, 1), (0, 9, 1), (1, 7, 1), (0, 3, 2)] {
            log.push(Entry { user, time, mask });
        }
        let taken = log.drain_users(1, false);
        assert_eq!(taken, [Entry { user: 0, time: 3, mask: 2 }, Entry { user: 0, time: 9, mask: 1 }]);
        let rest = log.drain_users(9, false);
        assert_eq!(rest, [Entry { user: 0, time: 7, mask: 1 }, Entry { user: 1, time: 5, mask: 1 }]);
        assert!(log.drain_users(9, false).is_empty());
    }

    /// Tries every chain: the definition, written down without any cleverness.
    fn brute_force(events: &[(i64, u32)], rules: &Rules) -> i32 {
        fn longest(events: &[(i64, u32)], rules: &Rules, end: i64, chain: &mut Vec<usize>) -> usize {
            let step = chain.len();
            let mut best = step;
            if step == rules.steps {
                return best;
            }
            for (index, (time, mask)) in events.iter().enumerate() {
                let last = chain.last().map(|last| events[*last].0).unwrap_or(*time);
                let in_order = if rules.strict_increase && step > 0 { *time > last } else { *time >= last };
                let free = rules.reuse || !chain.contains(&index);
                if mask & (1 << step) != 0 && in_order && free && (step == 0 || *time <= end) {
                    chain.push(index);
                    let end = if step == 0 { time + rules.window.unwrap_or_default() } else { end };
                    best = best.max(longest(events, rules, end, chain));
                    chain.pop();
                }
            }
            best
        }
        longest(events, rules, 0, &mut Vec::new()) as i32
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn levels_are_those_of_all_chains(
            steps in 1usize..5,
            window in 0i64..8,
            reuse: bool,
            strict_increase: bool,
            events in prop::collection::vec((0i64..10, 0u32..16), 0..9),
        ) {
            let rules = Rules { reuse, strict_increase, ..Rules::new(steps, window) };
            let events: Vec<(i64, u32)> = events.into_iter().map(|(time, mask)| (time, mask & ((1 << steps) - 1))).collect();
            prop_assert_eq!(level(&events, rules.clone()), brute_force(&events, &rules));
        }

        #[test]
        fn many_events_of_one_time(steps in 2usize..6, masks in prop::collection::vec(0u32..64, 0..8)) {
            let rules = Rules::new(steps, 0);
            let events: Vec<(i64, u32)> = masks.into_iter().map(|mask| (7, mask & ((1 << steps) - 1))).collect();
            prop_assert_eq!(level(&events, rules.clone()), brute_force(&events, &rules));
        }
    }
}
