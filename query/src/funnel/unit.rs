//! One unit's events -> what is counted of it: the unit itself, its attempts, or its sessions.

use std::collections::{BTreeMap, BTreeSet};

use super::definition::{Attribution, Count, Definition, Ties};
use super::period::Period;
use super::rows::{More, Row};
use super::rules::{Done, Event, Outcome, Rules};
use super::scan::{Order, Scan};

/// What is found of one unit, attempt or session.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// How far it got.
    pub outcome: &'a Outcome,
    /// The value that it is divided by; 0 for none.
    pub value: u32,
    /// Of a trend: the period that it entered in. Else it is counted in the whole.
    pub period: Option<i64>,
    /// The newest time at which it entered.
    pub entered: i64,
    /// Every value is counted for itself: this is one of several of the unit, besides the whole, which has none.
    pub share: Share,
}

/// Where something is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// In its group and in the total.
    Both,
    /// In its group alone: the unit may be in several.
    Group,
    /// In the total alone.
    Total,
}

/// Finds what is counted, one unit after the other.
pub struct Units<'a> {
    definition: &'a Definition,
    rules: Rules,
    scan: Scan,
    /// Entries count from here
    from: i64,
    /// to before here.
    to: i64,
    /// Of no more use than being allocated.
    events: Vec<Event>,
    outcome: Outcome,
}

/// Entries that count, half open.
#[derive(Clone, Copy, Debug)]
struct Entries {
    from: i64,
    to: i64,
}

impl<'a> Units<'a> {
    /// Prepares for one funnel.
    pub fn new(definition: &'a Definition) -> Self {
        let rules = definition.rules();
        Units {
            scan: Scan::new(definition.order, rules.clone()),
            rules,
            from: definition.from.unwrap_or(i64::MIN),
            to: definition.to.unwrap_or(i64::MAX),
            definition,
            events: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    /// Calls `found` with all that is counted of a unit whose events are `rows`, in order of time. An exposure is where an experiment begins
    /// for it: nothing earlier counts.
    pub fn unit(&mut self, rows: &[Row], more: &[More], exposure: Option<i64>, found: &mut impl FnMut(Counted<'_>)) {
        let rows = &rows[rows.partition_point(|row| exposure.is_some_and(|exposure| row.time < exposure))..];
        let snapped;
        let rows = match self.definition.tie_tolerance_us {
            0 => rows,
            tolerance => {
                snapped = snap(rows, more, tolerance, self.definition.ties);
                &snapped
            }
        };
        let attribution = self.definition.breakdown.as_ref().map(|breakdown| breakdown.attribution);
        if attribution != Some(Attribution::AllSteps) {
            self.sessions(rows, more, exposure, None, Share::Both, found);
            return;
        }
        let mut by_value: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
        for row in rows {
            by_value.entry(more[row.more as usize].value).or_default().push(*row);
        }
        if let (1, Some((value, own))) = (by_value.len(), by_value.first_key_value()) {
            self.sessions(own, more, exposure, Some(*value), Share::Both, found);
            return;
        }
        self.sessions(rows, more, exposure, None, Share::Total, found);
        for (value, own) in by_value {
            self.sessions(&own, more, exposure, Some(value), Share::Group, found);
        }
    }

    /// Divides a unit's events into sessions, where sessions are counted.
    fn sessions(
        &mut self,
        rows: &[Row],
        more: &[More],
        exposure: Option<i64>,
        value: Option<u32>,
        share: Share,
        found: &mut impl FnMut(Counted<'_>),
    ) {
        if self.definition.count != Count::Sessions {
            return self.part(rows, more, exposure, value, share, found);
        }
        let gap = self.definition.session_gap_us;
        for session in rows.chunk_by(|a, b| b.time.saturating_sub(a.time) <= gap) {
            self.part(session, more, exposure, value, share, found);
        }
    }

    /// Counts one unit or session, or the attempts of a unit.
    fn part(
        &mut self,
        rows: &[Row],
        more: &[More],
        exposure: Option<i64>,
        value: Option<u32>,
        share: Share,
        found: &mut impl FnMut(Counted<'_>),
    ) {
        let chains = self.by_held(rows, more);
        let chains: Vec<&[Row]> = match &chains {
            Some(chains) => chains.iter().map(Vec::as_slice).collect(),
            None => vec![rows],
        };
        // An exposure in an experiment whose entries are events bounds them, and starts nothing.
        let start = exposure.filter(|_| self.rules.is_by_exposure);
        let whole =
            if start.is_some() { Entries { from: i64::MIN, to: i64::MAX } } else { Entries { from: self.from, to: self.to } };
        if self.definition.count == Count::Totals {
            for chain in chains {
                self.attempts(chain, more, value, share, found);
            }
            return;
        }
        let mut outcome = self.furthest(&chains, start, whole);
        if !outcome.has_entered() || outcome.is_broken && self.drops(&outcome) {
            self.outcome = outcome;
            return;
        }
        let value = value.unwrap_or_else(|| self.value(rows, more, &outcome));
        let entered =
            if self.rules.first_events { outcome.start } else { self.newest_entry(rows, whole).unwrap_or(outcome.start) };
        let one = Counted { outcome: &outcome, value, period: None, entered, share };
        found(one);
        if let Some(trend) = self.definition.trend {
            if self.rules.first_events || self.definition.count == Count::Sessions {
                found(Counted { period: Some(trend.start(outcome.start)), ..one });
            } else {
                self.trend(trend, &chains, (value, share), whole, found);
            }
        }
        std::mem::swap(&mut self.outcome, &mut outcome);
    }

    /// Returns whether a unit whose furthest chains all met something excluded is left out.
    fn drops(&self, outcome: &Outcome) -> bool {
        let top = outcome.top(&self.rules).unwrap_or_default();
        self.rules.exclusions.iter().any(|exclusion| exclusion.drops && (exclusion.after..exclusion.before).contains(&top))
    }

    /// Divides events by the values that a chain shares; those that lack one take no part.
    fn by_held(&self, rows: &[Row], more: &[More]) -> Option<Vec<Vec<Row>>> {
        if self.definition.hold_constant.is_empty() {
            return None;
        }
        let mut chains: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
        for row in rows {
            match more[row.more as usize].held {
                0 => {}
                held => chains.entry(held).or_default().push(*row),
            }
        }
        Some(chains.into_values().collect())
    }

    /// Scans each chain of held values, and returns the furthest.
    fn furthest(&mut self, chains: &[&[Row]], exposure: Option<i64>, entries: Entries) -> Outcome {
        let mut furthest = std::mem::take(&mut self.outcome);
        furthest.reached = 0;
        for (index, chain) in chains.iter().enumerate() {
            let mut outcome = if index == 0 { std::mem::take(&mut furthest) } else { Outcome::default() };
            self.scan.reset(exposure);
            self.feed(chain, entries);
            self.scan.outcome(&mut outcome);
            if index == 0 { furthest = outcome } else { furthest.merge(outcome, &self.rules) }
        }
        furthest
    }

    /// Gives the scan all events, those of one time together.
    fn feed(&mut self, rows: &[Row], entries: Entries) {
        let mut rest = rows;
        while let Some(group) = next_turn(&mut rest, self.definition) {
            self.take(group, entries);
            if self.scan.has_stopped() {
                return;
            }
        }
    }

    fn take(&mut self, group: &[Row], entries: Entries) {
        let time = group[0].time;
        self.events.clear();
        self.events.extend(group.iter().map(|row| Event { mask: row.mask, excluded: row.excluded, id: row.more }));
        self.scan.take(time, &self.events, (entries.from..entries.to).contains(&time));
    }

    /// Counts attempts: one begins when none is under way, and ends with its last step, its window, or something excluded.
    fn attempts(&mut self, rows: &[Row], more: &[More], value: Option<u32>, share: Share, found: &mut impl FnMut(Counted<'_>)) {
        let entries = Entries { from: self.from, to: self.to };
        let last = (0..self.rules.steps).rev().find(|step| !self.rules.is_optional(*step)).unwrap_or_default();
        self.scan.reset(None);
        let mut rest = rows;
        let mut is_under_way = false;
        loop {
            let group = next_turn(&mut rest, self.definition);
            let until = match &self.scan {
                Scan::Ordered(chains) => chains.open_until(),
                _ => None,
            };
            let is_over = |time: i64| until.is_none_or(|until| until < time);
            if is_under_way && group.is_none_or(|group| is_over(group[0].time)) {
                self.end_attempt(more, (value, share), found);
            }
            let Some(group) = group else {
                return;
            };
            self.take(group, entries);
            let Scan::Ordered(chains) = &self.scan else {
                return;
            };
            is_under_way = chains.level() > 0;
            if chains.level() > last || is_under_way && chains.open_until().is_none() {
                self.end_attempt(more, (value, share), found);
                is_under_way = false;
            }
        }
    }

    fn end_attempt(&mut self, more: &[More], (value, share): (Option<u32>, Share), found: &mut impl FnMut(Counted<'_>)) {
        let mut outcome = std::mem::take(&mut self.outcome);
        self.scan.outcome(&mut outcome);
        self.scan.reset(None);
        if outcome.has_entered() && !(outcome.is_broken && self.drops(&outcome)) {
            let value = value.unwrap_or_else(|| self.value_of_attempt(more, &outcome));
            let one = Counted { outcome: &outcome, value, period: None, entered: outcome.start, share };
            found(one);
            if let Some(trend) = self.definition.trend {
                found(Counted { period: Some(trend.start(outcome.start)), ..one });
            }
        }
        self.outcome = outcome;
    }

    /// Scans for each period in which the unit entered the chains that start in it.
    fn trend(
        &mut self,
        trend: Period,
        chains: &[&[Row]],
        (value, share): (u32, Share),
        whole: Entries,
        found: &mut impl FnMut(Counted<'_>),
    ) {
        let is_entry = |row: &&Row| row.mask & self.entry_mask() != 0 && (whole.from..whole.to).contains(&row.time);
        let starts: BTreeSet<i64> =
            chains.iter().flat_map(|chain| chain.iter().filter(is_entry)).map(|row| trend.start(row.time)).collect();
        let reach = self.rules.reach();
        for start in starts {
            let next = trend.next(start);
            let entries = Entries { from: whole.from.max(start), to: whole.to.min(next) };
            let until = reach.map_or(i64::MAX, |reach| next.saturating_add(reach));
            let parts: Vec<&[Row]> = chains
                .iter()
                .map(|chain| {
                    let (from, to) =
                        (chain.partition_point(|row| row.time < start), chain.partition_point(|row| row.time < until));
                    &chain[from..to.max(from)]
                })
                .collect();
            let outcome = self.furthest(&parts, None, entries);
            if outcome.has_entered() && !(outcome.is_broken && self.drops(&outcome)) {
                let entered = outcome.start;
                found(Counted { outcome: &outcome, value, period: Some(start), entered, share });
            }
            self.outcome = outcome;
        }
    }

    /// The steps that a chain may start with.
    fn entry_mask(&self) -> u32 {
        if self.definition.order == Order::Any { u32::MAX } else { 1 }
    }

    fn newest_entry(&self, rows: &[Row], entries: Entries) -> Option<i64> {
        let is_entry = |row: &&Row| row.mask & self.entry_mask() != 0 && (entries.from..entries.to).contains(&row.time);
        rows.iter().rev().find(is_entry).map(|row| row.time)
    }

    /// Returns the value that a unit or session is divided by.
    fn value(&self, rows: &[Row], more: &[More], outcome: &Outcome) -> u32 {
        let value = |row: &Row| Some(more[row.more as usize].value).filter(|value| *value != 0 && row.mask != 0);
        match self.definition.breakdown.as_ref().map(|breakdown| breakdown.attribution) {
            None => 0,
            Some(Attribution::Step(_)) => self.value_of_attempt(more, outcome),
            Some(Attribution::LastTouch) => rows.iter().rev().find_map(value).unwrap_or_default(),
            Some(Attribution::FirstTouch | Attribution::AllSteps) => rows.iter().find_map(value).unwrap_or_default(),
        }
    }

    /// The same by the events of the chain alone.
    fn value_of_attempt(&self, more: &[More], outcome: &Outcome) -> u32 {
        let value = |step: &Option<Done>| step.map(|done| more[done.id as usize].value).filter(|value| *value != 0);
        let found = match self.definition.breakdown.as_ref().map(|breakdown| breakdown.attribution) {
            None => None,
            Some(Attribution::Step(step)) => outcome.steps.get(step).and_then(value),
            Some(Attribution::LastTouch) => outcome.steps.iter().rev().find_map(value),
            Some(Attribution::FirstTouch | Attribution::AllSteps) => outcome.steps.iter().find_map(value),
        };
        found.unwrap_or_default()
    }
}

/// Takes the next events that a scan gets together: all of one time, or one where their order is known and counts.
fn next_turn<'r>(rest: &mut &'r [Row], definition: &Definition) -> Option<&'r [Row]> {
    let whole: &'r [Row] = rest;
    let first = whole.first()?;
    let is_alone = definition.ties == Ties::Arrival && !definition.strict_increase && definition.order != Order::Any;
    let count = if is_alone { 1 } else { whole.iter().take_while(|row| row.time == first.time).count() };
    let (group, others) = whole.split_at(count);
    *rest = others;
    Some(group)
}

/// Gives what comes within the tolerance after an event that event's time.
fn snap(rows: &[Row], more: &[More], tolerance: i64, ties: Ties) -> Vec<Row> {
    let mut snapped = rows.to_vec();
    let mut first = i64::MIN;
    for row in &mut snapped {
        if row.time.saturating_sub(first) > tolerance || first == i64::MIN {
            first = row.time;
        }
        row.time = first;
    }
    if ties == Ties::Arrival {
        snapped.sort_by_key(|row| (row.time, more[row.more as usize].arrival));
    }
    snapped
}
