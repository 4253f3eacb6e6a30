//! Steps in any order: how many different ones a unit did within one window, each by an event of its own. The k-th step of an outcome is the
//! k-th that was done, whichever it is.

use std::collections::{BTreeMap, VecDeque};

use super::rules::{Done, Event, Matching, Outcome, Rules};

/// The events of one unit; fed in order of time.
#[derive(Clone, Debug)]
pub struct Unordered {
    rules: Rules,
    /// Those of the present window, from the earliest that may begin a chain on: time, event, and whether it may.
    open: VecDeque<(i64, Event, bool)>,
    masks: Masks,
    best: usize,
    /// The window of the first chain that got furthest.
    found: Vec<(i64, Event)>,
    exposure: Option<i64>,
    has_entered: bool,
}

impl Unordered {
    /// Starts without events. Of the rules those about windows, reuse and equal times count.
    pub fn new(rules: Rules) -> Self {
        let masks = Masks { steps: rules.steps, is_reused: rules.reuse && !rules.strict_increase, counts: BTreeMap::new() };
        Unordered { rules, open: VecDeque::new(), masks, best: 0, found: Vec::new(), exposure: None, has_entered: false }
    }

    /// Forgets all events. With an exposure, the window runs from it, and no step is earlier.
    pub fn reset(&mut self, exposure: Option<i64>) {
        self.open.clear();
        self.masks.counts.clear();
        self.found.clear();
        (self.best, self.exposure, self.has_entered) = (0, exposure, false);
    }

    /// Returns whether no further event can change anything.
    pub fn has_stopped(&self) -> bool {
        self.best == self.rules.steps
    }

    /// Takes all events of one time, later than those taken before. `may_enter` says whether a chain may start at this time.
    pub fn take(&mut self, time: i64, events: &[Event], may_enter: bool) {
        let any = events.iter().fold(0, |any, event| any | event.mask);
        if any == 0 || self.has_stopped() || self.exposure.is_some_and(|exposure| time < exposure) {
            return;
        }
        let may_enter = may_enter && !(self.rules.first_events && self.has_entered);
        self.has_entered |= may_enter;
        let mut has_more = false;
        let mut add = |event: Event| {
            has_more |= self.masks.add(event.mask);
            self.open.push_back((time, event, may_enter));
        };
        if self.rules.strict_increase {
            // No two steps may be of one time, so all events of a time are as good as one.
            add(Event { mask: any, ..events[0] });
        } else {
            events.iter().filter(|event| event.mask != 0).for_each(|event| add(*event));
        }
        while let Some((first, event, may)) = self.open.front()
            && !(*may && self.rules.is_open(self.exposure.unwrap_or(*first), time))
        {
            self.masks.remove(event.mask);
            self.open.pop_front();
        }
        let level = if has_more && self.masks.steps_met() > self.best { self.masks.level() } else { 0 };
        if level > self.best {
            self.best = level;
            self.keep(level);
        }
    }

    /// Keeps the present window without the events at its beginning that are not needed.
    fn keep(&mut self, level: usize) {
        let mut masks = self.masks.clone();
        let mut from = 0;
        while let (Some((_, event, _)), Some((_, _, true))) = (self.open.get(from), self.open.get(from + 1)) {
            masks.remove(event.mask);
            if masks.steps_met() < level || masks.level() < level {
                break;
            }
            from += 1;
        }
        self.found.clear();
        self.found.extend(self.open.iter().skip(from).map(|(time, event, _)| (*time, *event)));
    }

    /// Writes what was reached: the k-th step at the earliest time at which the chain had done k.
    pub fn outcome(&self, out: &mut Outcome) {
        *out = Outcome { steps: vec![None; self.rules.steps], ..Outcome::default() };
        let mut masks = Masks { counts: BTreeMap::new(), ..self.masks.clone() };
        out.start = self.exposure.or(self.found.first().map(|(time, _)| *time)).unwrap_or_default();
        let (mut done, mut before) = (0, out.start);
        for (time, event) in &self.found {
            let level = if masks.add(event.mask) { masks.level() } else { done };
            while done < level {
                out.reached |= 1 << done;
                out.steps[done] = Some(Done { time: *time, after: time.saturating_sub(before), id: event.id });
                before = *time;
                done += 1;
            }
        }
    }
}

/// How often each mask is there.
#[derive(Clone, Debug)]
struct Masks {
    steps: usize,
    is_reused: bool,
    counts: BTreeMap<u32, usize>,
}

impl Masks {
    /// Returns whether that may have made a difference: more events of one mask than steps can never all be used.
    fn add(&mut self, mask: u32) -> bool {
        let count = self.counts.entry(mask).or_default();
        *count += 1;
        *count <= self.steps
    }

    fn remove(&mut self, mask: u32) {
        if let Some(count) = self.counts.get_mut(&mask) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&mask);
            }
        }
    }

    /// Returns how many different steps are met by some event.
    fn steps_met(&self) -> usize {
        self.counts.keys().fold(0, |any, mask| any | mask).count_ones() as usize
    }

    /// Returns how many different steps can be given events of their own.
    fn level(&self) -> usize {
        if self.is_reused || self.counts.keys().all(|mask| mask.count_ones() <= 1) {
            return self.steps_met();
        }
        let some = |(mask, count): (&u32, &usize)| vec![Event { mask: *mask, ..Event::default() }; (*count).min(self.steps)];
        let events: Vec<Event> = self.counts.iter().flat_map(some).collect();
        let mut matching = Matching::new(&events);
        (0..self.steps).filter(|step| matching.add(*step)).count()
    }
}
