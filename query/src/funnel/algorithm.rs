//! How far a user got in a funnel: exact, in time linear in events and steps.
//!
//! A funnel has steps 1 to n and a window W. A chain starts at an event of step 1 at time s; each following step comes at
//! the same time or later than the one before it, and at s + W at the latest. Any event of step 1 may start a chain, other
//! events may lie in between, and the longest chain counts. Events of equal time count as ordered, whichever came first,
//! so the result does not depend on the order of arrival.
//!
//! [`Chains`] takes a user's events in order of time and keeps one number per step: the latest start of a chain that got
//! so far. Later starts only ever help, because the window runs from the start. [`Log`] takes them in any order, for many
//! users at once, and sorts at the end; its entries can be moved and merged freely.

/// Steps at most: one bit of a mask each.
pub const STEPS_MAX: usize = 32;

/// Which events may follow each other in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Semantics {
    /// One event may fill several steps of a chain that follow each other.
    pub reuse: bool,
    /// Each step must be later than the one before it; equal times do not count as ordered.
    pub strict_increase: bool,
}

/// The chains of one user; fed in order of time.
#[derive(Clone, Debug)]
pub struct Chains {
    steps: usize,
    window: i64,
    semantics: Semantics,
    /// `latest[k]`: the latest start of a chain that reached step k + 1.
    latest: [i64; STEPS_MAX],
    level: usize,
}

impl Chains {
    /// Starts without events.
    /// # Panics
    /// If there are no steps, more than 32, or the window is negative: requests are checked before.
    pub fn new(steps: usize, window: i64, semantics: Semantics) -> Self {
        assert!((1..=STEPS_MAX).contains(&steps) && window >= 0, "{steps} steps, window {window}");
        Chains { steps, window, semantics, latest: [0; STEPS_MAX], level: 0 }
    }

    /// Forgets all events.
    pub fn reset(&mut self) {
        self.level = 0;
    }

    /// Returns how far the longest chain got: 0 for nowhere, n for through.
    pub fn level(&self) -> usize {
        self.level
    }

    /// Takes all events of one time, later than those taken before. Bit k of an event's mask says that it may be step
    /// k + 1.
    pub fn take(&mut self, time: i64, masks: &[u32]) {
        if self.level == self.steps {
            return;
        }
        let any = masks.iter().fold(0, |any, mask| any | mask);
        if self.semantics.strict_increase {
            // Downwards: what this time adds to step k must not carry to step k + 1.
            for step in (0..self.steps).rev() {
                self.advance(time, any, step);
            }
        } else if self.semantics.reuse {
            for step in 0..self.steps {
                self.advance(time, any, step);
            }
        } else if let [mask] = masks {
            for step in (0..self.steps).rev() {
                self.advance(time, *mask, step);
            }
        } else {
            self.take_distinct(time, masks);
        }
    }

    /// Lets step `step` (from 0) take an event of `mask`.
    fn advance(&mut self, time: i64, mask: u32, step: usize) {
        if mask & (1 << step) == 0 {
            return;
        }
        if step == 0 {
            self.reach(0, time);
        } else if self.level >= step && self.is_open(self.latest[step - 1], time) {
            self.reach(step, self.latest[step - 1]);
        }
    }

    fn is_open(&self, start: i64, time: i64) -> bool {
        // A window that ends beyond the end of time is always open.
        start.checked_add(self.window).is_none_or(|end| time <= end)
    }

    fn reach(&mut self, step: usize, start: i64) {
        if self.level <= step {
            self.level = step + 1;
            self.latest[step] = start;
        } else {
            self.latest[step] = self.latest[step].max(start);
        }
    }

    /// Several events of one time, each in one step of a chain at most: a chain that had reached step a goes on to step k
    /// if the steps between can be given different events.
    fn take_distinct(&mut self, time: i64, masks: &[u32]) {
        let mut events: Vec<u32> = masks.iter().copied().filter(|mask| *mask != 0).collect();
        events.sort_unstable();
        // More equal events than steps can never all be used.
        let mut equal = 0;
        let mut last = 0;
        events.retain(|mask| {
            equal = if *mask == last { equal + 1 } else { 1 };
            last = *mask;
            equal <= self.steps
        });
        let before = self.clone();
        let mut matching = Matching::new(&events);
        for reached in 0..=before.level.min(self.steps - 1) {
            let start = if reached == 0 { time } else { before.latest[reached - 1] };
            if !before.is_open(start, time) {
                continue;
            }
            matching.clear();
            for step in reached..self.steps {
                if !matching.add(step) {
                    break;
                }
                self.reach(step, start);
            }
        }
    }
}

/// Gives steps different events, one step after the other, moving earlier ones where that makes room.
/// Source: augmenting paths, Kuhn 1955, Naval Research Logistics Quarterly 2, 83-97.
struct Matching<'a> {
    events: &'a [u32],
    step_of: Vec<Option<usize>>,
    visited: Vec<bool>,
}

impl<'a> Matching<'a> {
    fn new(events: &'a [u32]) -> Self {
        Matching { events, step_of: vec![None; events.len()], visited: vec![false; events.len()] }
    }

    fn clear(&mut self) {
        self.step_of.fill(None);
    }

    /// Gives `step` an event; false if there is none, whatever is moved.
    fn add(&mut self, step: usize) -> bool {
        self.visited.fill(false);
        self.place(step)
    }

    /// At most as deep as there are steps.
    fn place(&mut self, step: usize) -> bool {
        for event in 0..self.events.len() {
            if self.events[event] & (1 << step) == 0 || self.visited[event] {
                continue;
            }
            self.visited[event] = true;
            if self.step_of[event].is_none_or(|other| self.place(other)) {
                self.step_of[event] = Some(step);
                return true;
            }
        }
        false
    }
}

/// One event that may be a step, of one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The user, as a number of this log.
    pub user: u32,
    /// The event's time.
    pub time: i64,
    /// Which steps it may be; never 0.
    pub mask: u32,
}

/// The events of many users, in any order: 16 bytes each.
#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: Vec<Entry>,
}

impl Log {
    /// Takes one event; one that is no step leaves no trace.
    pub fn push(&mut self, entry: Entry) {
        if entry.mask != 0 {
            self.entries.push(entry);
        }
    }

    /// Returns the bytes that are held.
    pub fn size(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Takes the users below `users` out, in order of user and time; the others keep their events and move down by `users`.
    pub fn drain_users(&mut self, users: u32) -> Vec<Entry> {
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
        if !taken.is_sorted() {
            taken.sort_unstable();
        }
        taken
    }
}

/// Returns the level of each of `users` users from their sorted entries.
pub fn levels(entries: &[Entry], users: usize, chains: &mut Chains) -> Vec<i32> {
    let mut levels = vec![0; users];
    let mut masks = Vec::new();
    for own in entries.chunk_by(|a, b| a.user == b.user) {
        chains.reset();
        for together in own.chunk_by(|a, b| a.time == b.time) {
            masks.clear();
            masks.extend(together.iter().map(|entry| entry.mask));
            chains.take(together[0].time, &masks);
        }
        levels[own[0].user as usize] = chains.level() as i32;
    }
    levels
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// One funnel of `testdata/funnels/cases.json` with the level of each user.
    pub(crate) struct Case {
        pub(crate) id: String,
        pub(crate) steps: usize,
        pub(crate) window: i64,
        pub(crate) semantics: Semantics,
        /// Events in order of arrival, as (time, mask), and the expected level.
        pub(crate) users: Vec<(Vec<(i64, u32)>, i32)>,
    }

    /// Reads the cases of the modes that exist here. Where other software is known to undercount (the README of the cases
    /// says where), the exact level is expected.
    pub(crate) fn cases() -> Vec<Case> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/funnels/cases.json");
        let file: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("the cases")).expect("JSON");
        let mut cases = Vec::new();
        for case in file["cases"].as_array().expect("cases") {
            let modes: Vec<&str> = case["modes"].as_array().expect("modes").iter().filter_map(Value::as_str).collect();
            if modes.iter().any(|mode| !["strict_increase", "strict_once"].contains(mode)) {
                continue;
            }
            let steps = case["steps"].as_array().expect("steps");
            let mask_of = |event: &str| {
                let named = |names: &Value| names.as_array().is_some_and(|names| names.iter().any(|name| name == event));
                (0..steps.len()).filter(|step| named(&steps[*step])).fold(0, |mask, step| mask | 1 << step)
            };
            let user = |(id, events): (&String, &Value)| {
                let level = case["exact"].get(id).unwrap_or(&case["expected"][id]).as_i64().expect("a level");
                let event = |event: &Value| (event[0].as_i64().expect("a time"), mask_of(event[1].as_str().expect("a name")));
                (events.as_array().expect("events").iter().map(event).collect(), level as i32)
            };
            cases.push(Case {
                id: case["id"].as_str().expect("an id").to_owned(),
                steps: steps.len(),
                window: case["window"].as_i64().expect("a window"),
                semantics: Semantics {
                    reuse: !modes.contains(&"strict_once"),
                    strict_increase: modes.contains(&"strict_increase"),
                },
                users: case["users"].as_object().expect("users").iter().map(user).collect(),
            });
        }
        cases
    }

    fn level(events: &[(i64, u32)], steps: usize, window: i64, semantics: Semantics) -> i32 {
        let mut log = Log::default();
        for (time, mask) in events {
            log.push(Entry { user: 0, time: *time, mask: *mask });
        }
        levels(&log.drain_users(1), 1, &mut Chains::new(steps, window, semantics))[0]
    }

    #[test]
    fn levels_are_those_of_the_cases_in_any_order() {
        let mut checked = 0;
        for case in cases() {
            for (events, expected) in &case.users {
                let mut orders = vec![events.clone(), events.iter().rev().copied().collect()];
                orders.push(events.iter().copied().skip(1).chain(events.first().copied()).collect());
                for events in orders {
                    let found = level(&events, case.steps, case.window, case.semantics);
                    assert_eq!(found, *expected, "{}: {events:?}", case.id);
                    checked += 1;
                }
            }
        }
        assert!(checked > 150, "only {checked} users");
    }

    #[test]
    fn windows_at_the_end_of_time_stay_open() {
        let semantics = Semantics { reuse: false, strict_increase: false };
        assert_eq!(level(&[(i64::MAX - 1, 1), (i64::MAX, 2)], 2, i64::MAX, semantics), 2);
        assert_eq!(level(&[(i64::MIN, 1), (i64::MAX, 2)], 2, i64::MAX, semantics), 1);
    }

    #[test]
    fn draining_some_users_keeps_the_others() {
        let mut log = Log::default();
        for (user, time, mask) in [(2, 5, 1), (0, 9, 1), (1, 7, 1), (0, 3, 2), (1, 1, 0)] {
            log.push(Entry { user, time, mask });
        }
        let taken = log.drain_users(1);
        assert_eq!(taken, [Entry { user: 0, time: 3, mask: 2 }, Entry { user: 0, time: 9, mask: 1 }]);
        let rest = log.drain_users(9);
        assert_eq!(rest, [Entry { user: 0, time: 7, mask: 1 }, Entry { user: 1, time: 5, mask: 1 }]);
        assert!(log.drain_users(9).is_empty());
    }

    /// Tries every chain: the definition, written down without any cleverness.
    fn brute_force(events: &[(i64, u32)], steps: usize, window: i64, semantics: Semantics) -> i32 {
        type Funnel = (usize, i64, Semantics);
        fn longest(events: &[(i64, u32)], funnel: Funnel, end: i64, chain: &mut Vec<usize>) -> usize {
            let ((steps, window, semantics), step) = (funnel, chain.len());
            let mut best = step;
            if step == steps {
                return best;
            }
            for (index, (time, mask)) in events.iter().enumerate() {
                let last = chain.last().map(|last| events[*last].0).unwrap_or(*time);
                let in_order = if semantics.strict_increase && step > 0 { *time > last } else { *time >= last };
                let free = semantics.reuse || !chain.contains(&index);
                if mask & (1 << step) != 0 && in_order && free && (step == 0 || *time <= end) {
                    chain.push(index);
                    let end = if step == 0 { time + window } else { end };
                    best = best.max(longest(events, funnel, end, chain));
                    chain.pop();
                }
            }
            best
        }
        longest(events, (steps, window, semantics), 0, &mut Vec::new()) as i32
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
            let semantics = Semantics { reuse, strict_increase };
            let events: Vec<(i64, u32)> = events.into_iter().map(|(time, mask)| (time, mask & ((1 << steps) - 1))).collect();
            prop_assert_eq!(level(&events, steps, window, semantics), brute_force(&events, steps, window, semantics));
        }

        #[test]
        fn many_events_of_one_time(steps in 2usize..6, masks in prop::collection::vec(0u32..64, 0..8)) {
            let semantics = Semantics { reuse: false, strict_increase: false };
            let events: Vec<(i64, u32)> = masks.into_iter().map(|mask| (7, mask & ((1 << steps) - 1))).collect();
            prop_assert_eq!(level(&events, steps, 0, semantics), brute_force(&events, steps, 0, semantics));
        }
    }
}
