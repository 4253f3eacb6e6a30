//! Steps that follow each other with nothing in between: any other event of the unit ends a chain.
//!
//! Events of equal time may stand in any order. So a chain goes through a time if it uses all of its events; it may end within one, and a
//! new one may begin within one, behind the others.

use super::rules::{Done, Event, Matching, Outcome, Rules, usable};

#[derive(Clone, Copy, Debug)]
struct State {
    start: i64,
    time: i64,
    node: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    step: usize,
    parent: Option<u32>,
    start: i64,
    time: i64,
    event: u32,
}

/// The chains of one unit; fed in order of time with all of its events. Steps are not optional, and nothing is excluded.
#[derive(Clone, Debug)]
pub struct Contiguous {
    rules: Rules,
    /// Of each step, the chain that ends with it and with the last event; of several the one that started last.
    states: Vec<Option<State>>,
    nodes: Vec<Node>,
    /// Of each step, the first chain that reached it.
    first: Vec<Option<u32>>,
    exposure: Option<i64>,
}

impl Contiguous {
    /// Starts without events.
    pub fn new(rules: Rules) -> Self {
        let none = vec![None; rules.steps];
        Contiguous { states: none.clone(), first: vec![None; rules.steps], rules, nodes: Vec::new(), exposure: None }
    }

    /// Forgets all events. With an exposure, windows run from it, and no step is earlier.
    pub fn reset(&mut self, exposure: Option<i64>) {
        self.states.fill(None);
        self.first.fill(None);
        self.nodes.clear();
        self.exposure = exposure;
    }

    /// Returns whether no further event can change anything.
    pub fn has_stopped(&self) -> bool {
        self.first.iter().all(Option::is_some)
    }

    /// Takes all events of one time, later than those taken before. `may_enter` says whether a chain may start at this time.
    pub fn take(&mut self, time: i64, events: &[Event], may_enter: bool) {
        if events.is_empty() || self.has_stopped() || self.exposure.is_some_and(|exposure| time < exposure) {
            return;
        }
        let mut next: Vec<Option<State>> = vec![None; self.rules.steps];
        let may_enter = may_enter && !(self.rules.first_events && self.first[0].is_some());
        let start = self.exposure.unwrap_or(time);
        if may_enter {
            let entry = State { start, time: start, node: u32::MAX };
            // Others of this time stand before it.
            self.follow(entry, 0, time, events, |step, state, _| next[step] = Some(state));
        }
        for step in 0..self.rules.steps - 1 {
            if let Some(chain) = self.states[step] {
                self.follow(chain, step + 1, time, events, |step, state, used| {
                    if used == events.len() && next[step].is_none_or(|other| other.start < state.start) {
                        next[step] = Some(state);
                    }
                });
            }
        }
        self.states = next;
    }

    /// Lets a chain go on from step `from` as far as it can with events of one time; calls `reached` with each step, the chain, and how many
    /// of the events it used.
    fn follow(&mut self, chain: State, from: usize, time: i64, events: &[Event], mut reached: impl FnMut(usize, State, usize)) {
        let usable = usable(events, self.rules.steps);
        let (mut matching, mut chain, mut made) = (Matching::new(&usable), chain, Vec::new());
        for step in from..self.rules.steps {
            let is_open = self.rules.is_open(chain.start, time) && self.rules.is_soon(step, chain.time, time);
            let is_later = !self.rules.strict_increase || step == from;
            if !is_open || !is_later || !matching.add(step) {
                break;
            }
            let parent = (step > 0).then_some(chain.node);
            self.nodes.push(Node { step, parent, start: chain.start, time, event: 0 });
            let node = (self.nodes.len() - 1) as u32;
            made.push(node);
            chain = State { start: chain.start, time, node };
            self.first[step].get_or_insert(node);
            reached(step, chain, made.len());
        }
        for node in made {
            let node = &mut self.nodes[node as usize];
            node.event = matching.event_of(node.step).unwrap_or_default();
        }
    }

    /// Writes what was reached.
    pub fn outcome(&self, out: &mut Outcome) {
        *out = Outcome { steps: vec![None; self.rules.steps], ..Outcome::default() };
        let top = self.first.iter().rposition(Option::is_some);
        let mut node = top.and_then(|top| self.first[top]).and_then(|node| self.nodes.get(node as usize));
        while let Some(found) = node {
            out.reached |= 1 << found.step;
            node = found.parent.and_then(|parent| self.nodes.get(parent as usize));
            let after = found.time.saturating_sub(node.map_or(found.start, |before| before.time));
            out.steps[found.step] = Some(Done { time: found.time, after, id: found.event });
            out.start = found.start;
        }
    }
}
