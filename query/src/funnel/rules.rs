//! What may follow what in a funnel, and what a scan of one unit's events finds.

/// Steps at most: one bit of a mask each.
pub const STEPS_MAX: usize = 32;

/// One event of a unit, as a scan takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Which steps it may be: bit k for step k + 1. 0: no step.
    pub mask: u32,
    /// Which exclusions it is: bit k for the k-th.
    pub excluded: u32,
    /// What the caller knows it by.
    pub id: u32,
}

/// An event that must not come between two steps, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exclusion {
    /// Later than this step,
    pub after: usize,
    /// and earlier than this one, if it is reached.
    pub before: usize,
    /// A chain that meets it does not count at all, instead of up to there.
    pub drops: bool,
}

/// What may follow what. Windows are in the unit of the times, and include their end; one below 0 never holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Number of steps, 1 to 32.
    pub steps: usize,
    /// From the start of a chain to any of its steps; none: as long as one likes.
    pub window: Option<i64>,
    /// From the step before that is not optional to this one; one entry per step.
    pub within: Vec<Option<i64>>,
    /// Windows run from an exposure that comes before the first step.
    pub is_by_exposure: bool,
    /// Steps that others do not wait for; never the first one.
    pub optional: u32,
    /// One event may fill several steps of a chain that follow each other.
    pub reuse: bool,
    /// Each step must be later than the one before it; equal times do not count as ordered.
    pub strict_increase: bool,
    /// ClickHouse's: after a first step, an event that is no step ends the scan, and so does a step whose predecessor was not reached.
    pub strict_order: bool,
    /// With `strict_order`: a step whose predecessor was not reached is passed over.
    pub allow_reentry: bool,
    /// ClickHouse's: a second event of a step after the first one, once reached, ends the scan.
    pub strict_deduplication: bool,
    /// What ClickHouse gives where it undercounts: of chains of one length it knows the newest alone, even where equal times are refused,
    /// unless each event is one step.
    pub is_compatible: bool,
    /// One chain only: it starts at the first event that may, and takes the first event of each step.
    pub first_events: bool,
    /// What must not come in between.
    pub exclusions: Vec<Exclusion>,
}

impl Rules {
    /// Makes the rules of `steps` steps within `window`, with nothing else asked for.
    pub fn new(steps: usize, window: i64) -> Self {
        Rules {
            steps,
            window: Some(window),
            within: vec![None; steps],
            is_by_exposure: false,
            optional: 0,
            reuse: false,
            strict_increase: false,
            strict_order: false,
            allow_reentry: false,
            strict_deduplication: false,
            is_compatible: false,
            first_events: false,
            exclusions: Vec::new(),
        }
    }

    /// Returns whether others do not wait for a step.
    pub fn is_optional(&self, step: usize) -> bool {
        self.optional & (1 << step) != 0
    }

    /// Returns the step that a step comes after: the nearest one before it that is not optional.
    pub fn before(&self, step: usize) -> Option<usize> {
        (0..step).rev().find(|before| !self.is_optional(*before))
    }

    /// Returns the step that is waited for after one.
    pub fn after(&self, step: usize) -> Option<usize> {
        (step + 1..self.steps).find(|after| !self.is_optional(*after))
    }

    /// Returns how long after its start a chain can go on; none: for ever.
    pub fn reach(&self) -> Option<i64> {
        let first = usize::from(!self.is_by_exposure);
        // An optional step has a window of its own, behind which others may stand.
        let steps =
            (first..self.steps).try_fold(0i64, |sum, step| self.within[step].map(|within| sum.saturating_add(within.max(0))));
        match (self.window, steps) {
            (Some(window), Some(steps)) => Some(window.min(steps)),
            (window, steps) => window.or(steps),
        }
    }

    /// Returns whether a time lies within the window from a start.
    pub(crate) fn is_open(&self, start: i64, time: i64) -> bool {
        is_within(self.window, start, time)
    }

    /// Returns whether a step may come at `time` when the one before it came at `previous`.
    pub(crate) fn is_soon(&self, step: usize, previous: i64, time: i64) -> bool {
        is_within(self.within[step], previous, time)
    }

    /// Returns until when a chain that reached `step` at `time` can go on.
    pub(crate) fn deadline(&self, start: i64, step: usize, time: i64) -> i64 {
        let whole = self.window.map(|window| start.saturating_add(window));
        let next = self.after(step).and_then(|next| self.within[next]).map(|within| time.saturating_add(within));
        whole.into_iter().chain(next).min().unwrap_or(i64::MAX)
    }
}

fn is_within(window: Option<i64>, from: i64, time: i64) -> bool {
    // A window that ends beyond the end of time is always open.
    window.is_none_or(|window| window >= 0 && from.checked_add(window).is_none_or(|end| time <= end))
}

/// A step that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// When.
    pub time: i64,
    /// How long after the step before, in its chain; the first one after the exposure, if there is one.
    pub after: i64,
    /// By which event.
    pub id: u32,
}

/// How far one unit, or one attempt, got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The steps that some chain reached, a bit each.
    pub reached: u32,
    /// The event of each step that was reached. Those of the steps that are not optional belong to one chain: of those that got furthest the
    /// first that did, and of these the one that started last.
    pub steps: Vec<Option<Done>>,
    /// Where that chain started: its first event, or the exposure.
    pub start: i64,
    /// Every chain that got furthest met an event that is excluded.
    pub is_broken: bool,
}

impl Outcome {
    /// Returns whether anything was reached.
    pub fn has_entered(&self) -> bool {
        self.reached & 1 != 0
    }

    /// Returns whether a step, counted from 0, was reached.
    pub fn has_reached(&self, step: usize) -> bool {
        self.reached & (1 << step) != 0
    }

    /// Returns the last step that was reached of those that are not optional.
    pub fn top(&self, rules: &Rules) -> Option<usize> {
        let required = self.reached & !rules.optional;
        (required != 0).then(|| 31 - required.leading_zeros() as usize)
    }

    /// Takes in what the same unit reached otherwise, under another held value.
    pub fn merge(&mut self, other: Outcome, rules: &Rules) {
        let when = |outcome: &Outcome| outcome.top(rules).and_then(|top| outcome.steps[top]).map(|done| done.time);
        let is_further = match (self.top(rules), other.top(rules)) {
            (mine, theirs) if self.is_broken != other.is_broken && mine.is_some() && theirs.is_some() => self.is_broken,
            (mine, theirs) => theirs > mine || theirs == mine && when(&other) < when(&*self),
        };
        let (mut best, rest) = if is_further { (other, std::mem::take(self)) } else { (std::mem::take(self), other) };
        if !rest.is_broken {
            best.reached |= rest.reached;
            for (mine, theirs) in best.steps.iter_mut().zip(rest.steps) {
                *mine = mine.or(theirs);
            }
        }
        *self = best;
    }
}

/// Gives steps different events of one time, one step after the other, moving earlier ones where that makes room.
/// Source: augmenting paths, Kuhn 1955, Naval Research Logistics Quarterly 2, 83-97.
#[derive(Clone, Debug)]
pub(crate) struct Matching<'a> {
    events: &'a [Event],
    step_of: Vec<Option<usize>>,
    visited: Vec<bool>,
}

impl<'a> Matching<'a> {
    pub(crate) fn new(events: &'a [Event]) -> Self {
        Matching { events, step_of: vec![None; events.len()], visited: vec![false; events.len()] }
    }

    /// Gives `step` an event; false if there is none, whatever is moved.
    pub(crate) fn add(&mut self, step: usize) -> bool {
        self.visited.fill(false);
        self.place(step)
    }

    /// Returns the id of the event that a step was given.
    pub(crate) fn event_of(&self, step: usize) -> Option<u32> {
        self.step_of.iter().position(|given| *given == Some(step)).map(|event| self.events[event].id)
    }

    /// At most as deep as there are steps.
    fn place(&mut self, step: usize) -> bool {
        for event in 0..self.events.len() {
            if self.events[event].mask & (1 << step) == 0 || self.visited[event] {
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

/// Returns the events that are a step, sorted by their masks; of those with one mask no more than could all be used.
pub(crate) fn usable(events: &[Event], steps: usize) -> Vec<Event> {
    let mut usable: Vec<Event> = events.iter().copied().filter(|event| event.mask != 0).collect();
    usable.sort_unstable_by_key(|event| event.mask);
    let (mut equal, mut last) = (0, 0);
    usable.retain(|event| {
        equal = if event.mask == last { equal + 1 } else { 1 };
        last = event.mask;
        equal <= steps
    });
    usable
}
