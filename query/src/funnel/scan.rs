//! One unit's events in order -> how far it got, whichever order of steps is asked for.

use super::chains::Chains;
use super::contiguous::Contiguous;
use super::rules::{Event, Outcome, Rules};
use super::unordered::Unordered;

/// In which order steps count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// One after the other, with other events in between.
    Loose,
    /// One after the other, with nothing in between.
    Contiguous,
    /// As ClickHouse's mode of this name: see [`Rules::strict_order`].
    StrictOrder,
    /// Any.
    Any,
}

/// The scan of one unit at a time.
#[derive(Clone, Debug)]
pub enum Scan {
    /// Of steps in order.
    Ordered(Chains),
    /// Of steps with nothing in between.
    Contiguous(Contiguous),
    /// Of steps in any order.
    Unordered(Unordered),
}

impl Scan {
    /// Starts without events.
    pub fn new(order: Order, rules: Rules) -> Self {
        match order {
            Order::Loose => Scan::Ordered(Chains::new(rules)),
            Order::StrictOrder => Scan::Ordered(Chains::new(Rules { strict_order: true, ..rules })),
            Order::Contiguous => Scan::Contiguous(Contiguous::new(rules)),
            Order::Any => Scan::Unordered(Unordered::new(rules)),
        }
    }

    /// Forgets all events. With an exposure, windows run from it, and no step is earlier.
    pub fn reset(&mut self, exposure: Option<i64>) {
        match self {
            Scan::Ordered(scan) => scan.reset(exposure),
            Scan::Contiguous(scan) => scan.reset(exposure),
            Scan::Unordered(scan) => scan.reset(exposure),
        }
    }

    /// Takes all events of one time, later than those taken before; or, where their order at one time is known, the next of them.
    /// `may_enter` says whether a chain may start at this time.
    pub fn take(&mut self, time: i64, events: &[Event], may_enter: bool) {
        match self {
            Scan::Ordered(scan) => scan.take(time, events, may_enter),
            Scan::Contiguous(scan) => scan.take(time, events, may_enter),
            Scan::Unordered(scan) => scan.take(time, events, may_enter),
        }
    }

    /// Returns whether no further event can change anything.
    pub fn has_stopped(&self) -> bool {
        match self {
            Scan::Ordered(scan) => scan.has_stopped(),
            Scan::Contiguous(scan) => scan.has_stopped(),
            Scan::Unordered(scan) => scan.has_stopped(),
        }
    }

    /// Writes what was reached.
    pub fn outcome(&self, out: &mut Outcome) {
        match self {
            Scan::Ordered(scan) => scan.outcome(out),
            Scan::Contiguous(scan) => scan.outcome(out),
            Scan::Unordered(scan) => scan.outcome(out),
        }
    }
}
