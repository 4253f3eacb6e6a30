//! The steps of one unit in order, other events in between allowed: exact, in time linear in events and steps.
//!
//! Of the chains that reached a step the newest is kept, by one state per step: of two chains of equal length the one whose last step is
//! later also started no earlier (by induction over the steps), so whatever window is still open for the older one is open for it too, and
//! whatever excluded event would break it would break the older one. Where equal times are not ordered the newest before the present time
//! is kept as well.

use super::rules::{Done, Event, Matching, Outcome, Rules, usable};

/// A chain that reached some step.
#[derive(Clone, Copy, Debug)]
struct State {
    start: i64,
    /// Of its last step.
    time: i64,
    /// The call of [`Chains::take`] that brought its last step.
    turn: u32,
    node: u32,
}

/// One step of a chain; the steps before it are found by `parent`.
#[derive(Clone, Copy, Debug)]
struct Node {
    step: usize,
    parent: Option<u32>,
    start: i64,
    time: i64,
    turn: u32,
    event: u32,
}

/// What to do with an event of a step under the rules that may end a scan.
enum Verdict {
    Go,
    PassOver,
    Stop,
}

/// The chains of one unit; fed in order of time.
#[derive(Clone, Debug)]
pub struct Chains {
    rules: Rules,
    /// The step before each step; none before the first.
    before: Vec<Option<usize>>,
    states: Vec<Option<State>>,
    /// The newest chain whose last step came by an earlier call than that of `states`.
    older: Vec<Option<State>>,
    nodes: Vec<Node>,
    /// Calls of [`Chains::take`] so far.
    turn: u32,
    reached: u32,
    /// Of each step, the chain that is reported.
    first: Vec<Option<u32>>,
    /// The furthest step reached that is not optional.
    top: Option<usize>,
    /// A chain that got furthest can no longer be broken.
    is_clean: bool,
    /// Until when the oldest of those that can may go on.
    open_until: Option<i64>,
    has_stopped: bool,
    /// What all windows run from instead of the first step.
    exposure: Option<i64>,
}

impl Chains {
    /// Starts without events.
    /// # Panics
    /// If there are no steps, or more than 32: requests are checked before.
    pub fn new(rules: Rules) -> Self {
        let steps = rules.steps;
        assert!((1..=super::rules::STEPS_MAX).contains(&steps) && rules.within.len() == steps, "{rules:?}");
        Chains {
            before: (0..steps).map(|step| rules.before(step)).collect(),
            states: vec![None; steps],
            older: vec![None; steps],
            first: vec![None; steps],
            rules,
            nodes: Vec::new(),
            turn: 0,
            reached: 0,
            top: None,
            is_clean: false,
            open_until: None,
            has_stopped: false,
            exposure: None,
        }
    }

    /// Forgets all events. With an exposure, windows run from it, and no step is earlier.
    pub fn reset(&mut self, exposure: Option<i64>) {
        self.states.fill(None);
        self.older.fill(None);
        self.first.fill(None);
        self.nodes.clear();
        (self.reached, self.top, self.is_clean, self.open_until) = (0, None, false, None);
        (self.turn, self.has_stopped, self.exposure) = (0, false, exposure);
    }

    /// Returns how far the longest chain got: 0 for nowhere, n for through.
    pub fn level(&self) -> usize {
        self.top.map_or(0, |top| top + 1)
    }

    /// Returns whether no further event can change anything.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// Takes all events of one time, later than those taken before; or, where their order at one time is known, the next of them.
    /// `may_enter` says whether a chain may start at this time.
    pub fn take(&mut self, time: i64, events: &[Event], may_enter: bool) {
        self.turn += 1;
        if self.has_stopped || self.exposure.is_some_and(|exposure| time < exposure) {
            return;
        }
        if self.rules.strict_order && self.reached & 1 != 0 && events.iter().any(|event| event.mask == 0) {
            self.has_stopped = true;
            return;
        }
        let any = events.iter().fold(0, |any, event| any | event.mask);
        if any != 0 {
            let is_shared =
                !self.rules.reuse && !self.rules.strict_increase && events.iter().any(|event| event.mask.count_ones() > 1);
            if is_shared && events.len() > 1 {
                self.take_distinct(time, events, any, may_enter);
            } else {
                self.take_each(time, events, any, may_enter, is_shared || self.rules.strict_increase);
            }
        }
        if !self.rules.exclusions.is_empty() {
            let excluded = events.iter().fold(0, |any, event| any | event.excluded);
            self.exclude(time, excluded);
        }
        if self.reached.count_ones() as usize == self.rules.steps {
            self.has_stopped = true;
        }
    }

    /// Events of which each fills one step at most anyhow, or may fill several. `must_increase`: no step goes on from one of this time.
    fn take_each(&mut self, time: i64, events: &[Event], any: u32, may_enter: bool, must_increase: bool) {
        for step in (0..self.rules.steps).filter(|step| any & (1 << step) != 0) {
            match self.verdict(step) {
                Verdict::Go => {}
                Verdict::PassOver => continue,
                Verdict::Stop => {
                    self.has_stopped = true;
                    return;
                }
            }
            let source = match self.before[step] {
                None => self.entry(time, may_enter),
                Some(before) => self.source(before, must_increase),
            };
            if let Some(source) = source.filter(|source| self.goes_on(source, step, time)) {
                let mut own = events.iter().filter(|event| event.mask & (1 << step) != 0);
                let event = own.next().map_or(0, |event| event.id);
                self.reach(step, source, time, event);
                if self.ends_repeated(step, own.next().is_some()) {
                    return;
                }
            }
        }
    }

    /// Several events of one time, each in one step of a chain at most: a chain that had reached step a goes on to step k if the steps
    /// between can be given different events.
    fn take_distinct(&mut self, time: i64, events: &[Event], any: u32, may_enter: bool) {
        let events = usable(events, self.rules.steps);
        struct Path<'a> {
            at: Option<usize>,
            chain: State,
            matching: Matching<'a>,
            made: Vec<(usize, u32)>,
        }
        let path = |at, chain| Path { at, chain, matching: Matching::new(&events), made: Vec::new() };
        let mut paths: Vec<Path<'_>> = self.entry(time, may_enter).map(|chain| path(None, chain)).into_iter().collect();
        for step in (0..self.rules.steps).filter(|step| !self.rules.is_optional(*step)) {
            paths.extend(self.source(step, true).map(|chain| path(Some(step), chain)));
        }
        for step in (0..self.rules.steps).filter(|step| any & (1 << step) != 0) {
            match self.verdict(step) {
                Verdict::Go => {}
                Verdict::PassOver => continue,
                Verdict::Stop => {
                    self.has_stopped = true;
                    break;
                }
            }
            let (is_optional, before) = (self.rules.is_optional(step), self.before[step]);
            let mut is_reached = false;
            // From the latest start to the earliest.
            for path in paths.iter_mut().filter(|path| path.at == before) {
                if !self.goes_on(&path.chain, step, time) {
                    continue;
                }
                let mut aside = is_optional.then(|| path.matching.clone());
                let matching = aside.as_mut().unwrap_or(&mut path.matching);
                if !matching.add(step) {
                    continue;
                }
                let event = matching.event_of(step).unwrap_or_default();
                let node =
                    if is_reached { self.node(step, path.chain, time, event) } else { self.reach(step, path.chain, time, event) };
                is_reached = true;
                if !is_optional {
                    path.made.push((step, node));
                    path.at = Some(step);
                    path.chain = State { time, turn: self.turn, node, ..path.chain };
                }
            }
            let repeated = events.iter().filter(|event| event.mask & (1 << step) != 0).count() > 1;
            if is_reached && self.ends_repeated(step, repeated) {
                break;
            }
        }
        for path in paths {
            for (step, node) in path.made {
                self.nodes[node as usize].event = path.matching.event_of(step).unwrap_or_default();
            }
        }
    }

    fn verdict(&self, step: usize) -> Verdict {
        let Some(before) = self.before[step] else {
            return Verdict::Go;
        };
        let has = |step: usize| self.reached & (1 << step) != 0;
        if self.rules.strict_deduplication && has(step) {
            Verdict::Stop
        } else if self.rules.strict_order && has(0) && !has(before) {
            if self.rules.allow_reentry { Verdict::PassOver } else { Verdict::Stop }
        } else {
            Verdict::Go
        }
    }

    /// Ends the scan if a step that was just reached has another event of the same time, and that may not be.
    fn ends_repeated(&mut self, step: usize, is_repeated: bool) -> bool {
        let ends = self.rules.strict_deduplication && step > 0 && is_repeated;
        self.has_stopped |= ends;
        ends
    }

    /// Returns the chain of no step that may begin now.
    fn entry(&self, time: i64, may_enter: bool) -> Option<State> {
        let is_taken = self.rules.first_events && self.reached & 1 != 0;
        let start = self.exposure.unwrap_or(time);
        // The first step's own window runs from the exposure.
        (may_enter && !is_taken).then_some(State { start, time: start, turn: self.turn, node: u32::MAX })
    }

    /// Returns the newest chain that reached `step`, before the present call if it must increase.
    fn source(&self, step: usize, must_increase: bool) -> Option<State> {
        let newest = self.states[step]?;
        if !must_increase || newest.turn < self.turn {
            Some(newest)
        } else if self.rules.is_compatible && self.rules.reuse {
            None
        } else {
            self.older[step]
        }
    }

    fn goes_on(&self, chain: &State, step: usize, time: i64) -> bool {
        self.rules.is_open(chain.start, time) && self.rules.is_soon(step, chain.time, time)
    }

    fn node(&mut self, step: usize, chain: State, time: i64, event: u32) -> u32 {
        let parent = self.before[step].map(|_| chain.node);
        self.nodes.push(Node { step, parent, start: chain.start, time, turn: self.turn, event });
        (self.nodes.len() - 1) as u32
    }

    /// Lets a chain reach a step, and returns its node.
    fn reach(&mut self, step: usize, chain: State, time: i64, event: u32) -> u32 {
        let node = self.node(step, chain, time, event);
        let is_new = self.reached & (1 << step) == 0;
        if !is_new && self.rules.first_events {
            return node;
        }
        self.reached |= 1 << step;
        if self.states[step].is_none_or(|newest| newest.turn < self.turn) {
            self.older[step] = self.states[step];
        }
        self.states[step] = Some(State { start: chain.start, time, turn: self.turn, node });
        let is_top = !self.rules.is_optional(step) && self.top.is_none_or(|top| top <= step);
        if is_new || is_top && self.is_broken() {
            self.first[step] = Some(node);
        }
        if is_top {
            if self.top != Some(step) {
                (self.top, self.is_clean, self.open_until) = (Some(step), false, None);
            }
            let deadline = self.rules.deadline(chain.start, step, time);
            self.open_until.get_or_insert(deadline);
        }
        node
    }

    /// Breaks the chains that are between two steps that nothing excluded may come between.
    fn exclude(&mut self, time: i64, excluded: u32) {
        for index in (0..self.rules.exclusions.len()).filter(|index| excluded & (1 << index) != 0) {
            let exclusion = self.rules.exclusions[index];
            for step in exclusion.after..exclusion.before {
                self.older[step] = None;
                if self.states[step].is_some_and(|chain| self.turn_of(chain.node, exclusion.after) < Some(self.turn)) {
                    self.states[step] = None;
                }
            }
            if let Some(top) = self.top.filter(|top| (exclusion.after..exclusion.before).contains(top)) {
                self.is_clean |= self.open_until.is_some_and(|deadline| deadline < time || !exclusion.drops);
                let left = self.states[top];
                self.open_until = left.map(|chain| self.rules.deadline(chain.start, top, chain.time));
            }
        }
    }

    /// Returns by which call a chain reached a step.
    fn turn_of(&self, node: u32, step: usize) -> Option<u32> {
        self.steps_of(Some(node)).find(|node| node.step == step).map(|node| node.turn)
    }

    fn steps_of(&self, node: Option<u32>) -> impl Iterator<Item = &Node> {
        std::iter::successors(node.and_then(|node| self.nodes.get(node as usize)), move |node| {
            node.parent.and_then(|parent| self.nodes.get(parent as usize))
        })
    }

    fn is_broken(&self) -> bool {
        self.top.is_some() && !self.is_clean && self.open_until.is_none()
    }

    /// Returns until when a single chain can go on; none if it has not begun, or is over.
    pub fn open_until(&self) -> Option<i64> {
        let top = self.top.filter(|top| self.rules.after(*top).is_some())?;
        self.states[top].map(|chain| self.rules.deadline(chain.start, top, chain.time))
    }

    /// Writes what was reached.
    pub fn outcome(&self, out: &mut Outcome) {
        out.reached = self.reached;
        out.is_broken = self.is_broken();
        out.steps.clear();
        out.steps.resize(self.rules.steps, None);
        for step in (0..self.rules.steps).filter(|step| self.rules.is_optional(*step)) {
            out.steps[step] = self.steps_of(self.first[step]).next().map(|node| self.done(node));
        }
        for node in self.steps_of(self.top.and_then(|top| self.first[top])) {
            out.steps[node.step] = Some(self.done(node));
            out.start = node.start;
        }
    }

    fn done(&self, node: &Node) -> Done {
        let before = node.parent.and_then(|parent| self.nodes.get(parent as usize)).map_or(node.start, |before| before.time);
        Done { time: node.time, after: node.time.saturating_sub(before), id: node.event }
    }
}
