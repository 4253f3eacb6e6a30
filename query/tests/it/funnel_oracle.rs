//! Funnels against their definition, written down without any cleverness: every chain of every generated unit is tried.

use std::collections::{BTreeMap, BTreeSet};

use query::funnel::definition::Definition;
use query::funnel::rows::{More, Row};
use query::funnel::unit::{Share, Units};
use serde_json::{Value, json};

const HOUR: i64 = 3_600_000_000;

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// One event as the oracle sees it. Events of equal `turn` are of one time, and their order is not known.
#[derive(Clone, Copy, Debug)]
struct Event {
    hour: i64,
    turn: usize,
    mask: u32,
    excluded: u32,
    value: u32,
    held: u32,
}

/// A definition in the oracle's words, all in hours.
#[derive(Clone, Debug)]
struct Funnel {
    order: &'static str,
    steps: usize,
    optional: Vec<bool>,
    within: Vec<Option<i64>>,
    window: i64,
    is_per_step: bool,
    is_inclusive: bool,
    reuse: bool,
    increase: bool,
    entry: &'static str,
    count: &'static str,
    from: i64,
    to: i64,
    /// After, before, from 0; which bit.
    exclusions: Vec<(usize, usize)>,
    drops: bool,
    gap: i64,
    holds: bool,
    attribution: Option<&'static str>,
}

/// How far one unit got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reached {
    steps: Vec<bool>,
    /// Completion of the furthest step and start of its chain.
    top: Option<(i64, i64)>,
}

impl Funnel {
    fn before(&self, step: usize) -> Option<usize> {
        (0..step).rev().find(|before| !self.optional[*before])
    }

    fn after(&self, step: usize) -> Option<usize> {
        (step + 1..self.steps).find(|after| !self.optional[*after])
    }

    fn fits(&self, limit: i64, took: i64) -> bool {
        if self.is_inclusive { took <= limit } else { took < limit }
    }

    /// Whether `event` may be `step` of a chain of events, which are its steps that are not optional.
    fn follows(&self, events: &[Event], chain: &[usize], start: i64, step: usize, event: usize) -> bool {
        let new = &events[event];
        if new.mask & (1 << step) == 0 || (!self.reuse && chain.contains(&event)) {
            return false;
        }
        let path: Vec<usize> = (0..step).filter(|step| !self.optional[*step]).collect();
        let previous = match chain.last() {
            None => start,
            Some(last) => {
                let last = &events[*last];
                if new.turn < last.turn || (self.increase && new.turn == last.turn) {
                    return false;
                }
                last.hour
            }
        };
        if !self.is_per_step && !self.fits(self.window, new.hour - start) {
            return false;
        }
        let has_before = !chain.is_empty() || self.entry == "exposure";
        if has_before {
            let own = self.within[step].into_iter().chain(self.is_per_step.then_some(self.window)).min();
            if own.is_some_and(|own| !self.fits(own, new.hour - previous)) {
                return false;
            }
        }
        self.exclusions.iter().enumerate().all(|(bit, (after, before))| {
            if !(*after < step && step <= *before) {
                return true;
            }
            let since = path.iter().position(|passed| passed == after).map(|place| events[chain[place]].turn);
            let is_between = |other: &Event| {
                other.excluded & (1 << bit) != 0 && since.is_some_and(|since| since < other.turn) && other.turn < new.turn
            };
            !events.iter().any(is_between)
        })
    }

    /// All chains: for each step those that end with it.
    fn chains(&self, events: &[Event], may_enter: &dyn Fn(&Event) -> bool, exposure: Option<i64>) -> Vec<Vec<Vec<usize>>> {
        let mut found: Vec<Vec<Vec<usize>>> = vec![Vec::new(); self.steps];
        for step in 0..self.steps {
            let sources = match self.before(step) {
                None => vec![Vec::new()],
                Some(before) => found[before].clone(),
            };
            for chain in sources {
                for event in 0..events.len() {
                    let start = exposure.unwrap_or(events[*chain.first().unwrap_or(&event)].hour);
                    let is_entry = !chain.is_empty() || may_enter(&events[event]);
                    if is_entry && self.follows(events, &chain, start, step, event) {
                        found[step].push(chain.iter().copied().chain([event]).collect());
                    }
                }
            }
        }
        found
    }

    /// Keeps of all chains the one attempt: each step at the first turn at which it can follow the ones before.
    fn first_events(&self, events: &[Event], mut found: Vec<Vec<Vec<usize>>>) -> Vec<Vec<Vec<usize>>> {
        let turns = |chain: &Vec<usize>| chain.iter().map(|event| events[*event].turn).collect::<Vec<_>>();
        let mut kept: Vec<Vec<usize>> = vec![Vec::new(); self.steps];
        for step in 0..self.steps {
            let path = self.before(step).map_or(Vec::new(), |before| kept[before].clone());
            let is_first = step == 0;
            found[step].retain(|chain| (is_first || !path.is_empty()) && turns(chain)[..chain.len() - 1] == path[..]);
            let first = found[step].iter().map(&turns).min();
            kept[step] = first.clone().unwrap_or_default();
            found[step].retain(|chain| Some(turns(chain)) == first);
        }
        found
    }

    fn deadline(&self, start: i64, step: usize, hour: i64) -> i64 {
        let exclusive = i64::from(!self.is_inclusive);
        let next =
            self.after(step).map(|next| self.within[next].into_iter().chain(self.is_per_step.then_some(self.window)).min());
        let whole = (!self.is_per_step).then_some(start + self.window - exclusive);
        whole.into_iter().chain(next.flatten().map(|within| hour + within - exclusive)).min().unwrap_or(i64::MAX)
    }

    /// How far a unit got, and whether it is left out.
    fn loose(&self, events: &[Event], may_enter: &dyn Fn(&Event) -> bool, exposure: Option<i64>) -> (Reached, bool) {
        let mut chains = self.chains(events, may_enter, exposure);
        if self.entry != "any" || self.count == "totals" {
            chains = self.first_events(events, chains);
        }
        let steps: Vec<bool> = chains.iter().map(|chains| !chains.is_empty()).collect();
        let Some(top) = (0..self.steps).rev().find(|step| steps[*step] && !self.optional[*step]) else {
            return (Reached { steps, top: None }, false);
        };
        let start = |chain: &Vec<usize>| exposure.unwrap_or(events[chain[0]].hour);
        let end = |chain: &Vec<usize>| events[*chain.last().expect("a step")].turn;
        let first = chains[top].iter().map(end).min().expect("a chain");
        let latest = chains[top].iter().filter(|chain| end(chain) == first).map(start).max().expect("a chain");
        let hour = events.iter().find(|event| event.turn == first).expect("an event").hour;
        let path: Vec<usize> = (0..=top).filter(|step| !self.optional[*step]).collect();
        // Each completion by the chain that started last, and of these by the one that came furthest last.
        let turns: BTreeSet<usize> = chains[top].iter().map(end).collect();
        let is_broken = |turn: &usize| {
            let own: Vec<&Vec<usize>> = chains[top].iter().filter(|chain| end(chain) == *turn).collect();
            let latest = own.iter().map(|chain| start(chain)).max().expect("a chain");
            self.exclusions.iter().enumerate().filter(|(_, (after, before))| *after <= top && top < *before).any(
                |(bit, (after, _))| {
                    let place = path.iter().position(|step| step == after).expect("a step of the chain");
                    let since = own.iter().filter(|chain| start(chain) == latest).map(|chain| events[chain[place]].turn).max();
                    let hour = events.iter().find(|event| event.turn == *turn).expect("an event").hour;
                    let until = self.deadline(latest, top, hour);
                    events.iter().any(|event| event.excluded & (1 << bit) != 0 && Some(event.turn) > since && event.hour <= until)
                },
            )
        };
        let is_dropped = self.drops && turns.iter().all(is_broken);
        (Reached { steps, top: Some((hour, latest)) }, is_dropped)
    }

    /// Nothing in between: every order of the events of one time is tried.
    fn contiguous(&self, events: &[Event], may_enter: &dyn Fn(&Event) -> bool, exposure: Option<i64>) -> Reached {
        let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
        let turns: BTreeSet<usize> = events.iter().map(|event| event.turn).collect();
        for turn in turns {
            let group: Vec<usize> = (0..events.len()).filter(|event| events[*event].turn == turn).collect();
            let longer = |order: &Vec<usize>| {
                permutations(&group)
                    .into_iter()
                    .map(|more| order.iter().copied().chain(more).collect())
                    .collect::<Vec<Vec<usize>>>()
            };
            orders = orders.iter().flat_map(longer).collect();
        }
        let first_entry = events
            .iter()
            .filter(|event| event.mask & 1 != 0 && may_enter(event))
            .filter(|event| exposure.is_none_or(|exposure| self.follows_exposure(event, exposure)));
        let first_entry = first_entry.map(|event| event.turn).min();
        let mut completions: Vec<Vec<(usize, i64)>> = vec![Vec::new(); self.steps];
        for order in &orders {
            for begin in 0..order.len() {
                let entry = &events[order[begin]];
                if !may_enter(entry) || (self.entry != "any" && Some(entry.turn) != first_entry) {
                    continue;
                }
                let start = exposure.unwrap_or(entry.hour);
                let mut chain: Vec<usize> = Vec::new();
                for (step, event) in order[begin..].iter().take(self.steps).enumerate() {
                    if !self.follows(events, &chain, start, step, *event) {
                        break;
                    }
                    chain.push(*event);
                    completions[step].push((events[*event].turn, start));
                }
            }
        }
        let steps: Vec<bool> = completions.iter().map(|completions| !completions.is_empty()).collect();
        let top = steps.iter().rposition(|reached| *reached).map(|top| {
            let turn = completions[top].iter().map(|(turn, _)| *turn).min().expect("one");
            let start = completions[top].iter().filter(|(other, _)| *other == turn).map(|(_, start)| *start).max().expect("one");
            (events.iter().find(|event| event.turn == turn).expect("an event").hour, start)
        });
        Reached { steps, top }
    }

    fn follows_exposure(&self, event: &Event, exposure: i64) -> bool {
        let own = self.within[0].into_iter().chain(self.is_per_step.then_some(self.window)).min();
        let whole = (!self.is_per_step).then_some(self.window);
        whole.into_iter().chain(own).all(|limit| self.fits(limit, event.hour - exposure))
    }

    /// Any order: every set of events that a window from some event holds.
    fn any_order(&self, events: &[Event], may_enter: &dyn Fn(&Event) -> bool, exposure: Option<i64>) -> Reached {
        let starts: Vec<&Event> = events.iter().filter(|event| event.mask != 0 && may_enter(event)).collect();
        let first = starts.iter().map(|event| event.hour).min();
        let mut best: (usize, i64, i64) = (0, i64::MIN, i64::MIN);
        for entry in starts.iter().filter(|event| self.entry == "any" || Some(event.hour) == first) {
            let start = exposure.unwrap_or(entry.hour);
            let ends: BTreeSet<i64> = events.iter().map(|event| event.hour).filter(|hour| *hour >= entry.hour).collect();
            for end in ends.into_iter().filter(|end| self.fits(self.window, end - start)) {
                let within: Vec<&Event> = events.iter().filter(|event| (entry.hour..=end).contains(&event.hour)).collect();
                let level = self.most(&within, 0);
                let found = (level, -end, start);
                best = best.max(found);
            }
        }
        let (level, end, start) = best;
        Reached { steps: (0..self.steps).map(|step| step < level).collect(), top: (level > 0).then(|| (-end, start)) }
    }

    /// How many steps from `step` on can be given events.
    fn most(&self, events: &[&Event], step: usize) -> usize {
        if step == self.steps {
            return 0;
        }
        let mut best = self.most(events, step + 1);
        for (index, event) in events.iter().enumerate().filter(|(_, event)| event.mask & (1 << step) != 0) {
            let is_left = |(other, event_of): (usize, &&Event)| {
                if self.increase { event_of.hour != event.hour } else { self.reuse || other != index }
            };
            let rest: Vec<&Event> =
                events.iter().enumerate().filter(|other| is_left((other.0, other.1))).map(|(_, event)| *event).collect();
            best = best.max(1 + self.most(&rest, step + 1));
        }
        best
    }

    /// One unit, one session: what is found of it for entries of `[from, to)`.
    fn scan(&self, events: &[Event], from: i64, to: i64, exposure: Option<i64>) -> Option<Reached> {
        let mut parts: Vec<Vec<Event>> = vec![events.to_vec()];
        if self.holds {
            let keys: BTreeSet<u32> = events.iter().map(|event| event.held).filter(|held| *held != 0).collect();
            parts = keys.iter().map(|key| events.iter().filter(|event| event.held == *key).copied().collect()).collect();
        }
        let may_enter = |event: &Event| exposure.is_some() || (from..to).contains(&event.hour);
        let mut found: Option<(bool, Reached)> = None;
        for part in &parts {
            let (reached, is_dropped) = match self.order {
                "loose" => self.loose(part, &may_enter, exposure),
                "contiguous" => (self.contiguous(part, &may_enter, exposure), false),
                _ => (self.any_order(part, &may_enter, exposure), false),
            };
            if reached.top.is_none() {
                continue;
            }
            let level = |reached: &Reached| (0..self.steps).rev().find(|step| reached.steps[*step] && !self.optional[*step]);
            found = Some(match found {
                None => (is_dropped, reached),
                Some((was_dropped, other)) => {
                    let is_further = match (was_dropped, is_dropped) {
                        (false, true) => false,
                        (true, false) => true,
                        _ => {
                            let end = |reached: &Reached| reached.top.map(|(end, _)| end);
                            level(&reached) > level(&other) || level(&reached) == level(&other) && end(&reached) < end(&other)
                        }
                    };
                    let rest_is_dropped = if is_further { was_dropped } else { is_dropped };
                    let (mut best, rest) = if is_further { (reached, other) } else { (other, reached) };
                    if !rest_is_dropped {
                        best.steps.iter_mut().zip(&rest.steps).for_each(|(mine, theirs)| *mine |= theirs);
                    }
                    (was_dropped && is_dropped, best)
                }
            });
        }
        found.filter(|(is_dropped, _)| !is_dropped).map(|(_, reached)| reached)
    }

    /// Attempts, one after the other.
    fn attempts(&self, events: &[Event], from: i64, to: i64) -> Vec<Reached> {
        let mut found = Vec::new();
        let mut rest: Vec<Event> = events.to_vec();
        loop {
            let may_enter = |event: &Event| (from..to).contains(&event.hour);
            let chains = self.first_events(&rest, self.chains(&rest, &may_enter, None));
            let Some(first) = chains[0].first() else {
                return found;
            };
            let start = rest[first[0]].hour;
            let top = (0..self.steps).rev().find(|step| !self.optional[*step] && !chains[*step].is_empty()).expect("the first");
            let chain = &chains[top][0];
            let (hour, turn) = (rest[*chain.last().expect("a step")].hour, rest[*chain.last().expect("a step")].turn);
            // The turn after which it is over.
            let mut over = turn;
            let mut is_dropped = false;
            if self.after(top).is_some() {
                let until = self.deadline(start, top, hour);
                over = rest.iter().filter(|event| event.hour <= until).map(|event| event.turn).max().unwrap_or(turn).max(turn);
                let path: Vec<usize> = (0..=top).filter(|step| !self.optional[*step]).collect();
                let mut breaks: Vec<usize> = Vec::new();
                for (bit, (after, before)) in self.exclusions.iter().enumerate() {
                    if *after <= top && top < *before {
                        let since = rest[chain[path.iter().position(|step| step == after).expect("a step")]].turn;
                        let hits = rest.iter().filter(|event| event.excluded & (1 << bit) != 0 && event.turn > since);
                        breaks.extend(hits.filter(|event| event.turn >= turn && event.turn <= over).map(|event| event.turn));
                    }
                }
                if let Some(first) = breaks.into_iter().min() {
                    over = first;
                    is_dropped = self.drops;
                }
            }
            let steps: Vec<bool> = chains
                .iter()
                .map(|chains| chains.iter().any(|chain| rest[*chain.last().expect("a step")].turn <= over))
                .collect();
            if !is_dropped {
                found.push(Reached { steps, top: Some((hour, start)) });
            }
            rest.retain(|event| event.turn > over);
        }
    }

    /// All that is counted of a unit: its value, the period it is counted in, and how far it got. Without a value: in the total alone.
    fn unit(&self, events: &[Event], exposure: Option<i64>, by_day: bool) -> Vec<Found> {
        let mut all = Vec::new();
        let values: BTreeSet<u32> = events.iter().map(|event| event.value).collect();
        let mut parts: Vec<(Vec<Event>, Option<u32>, Share)> = vec![(events.to_vec(), None, Share::Both)];
        if self.attribution == Some("all_steps") {
            if let (1, Some(value)) = (values.len(), values.first()) {
                parts = vec![(events.to_vec(), Some(*value), Share::Both)];
            } else {
                parts[0].2 = Share::Total;
                for value in values {
                    let own = events.iter().filter(|event| event.value == value).copied().collect();
                    parts.push((own, Some(value), Share::Group));
                }
            }
        }
        for (events, value, share) in parts {
            let mut sessions: Vec<Vec<Event>> = Vec::new();
            for event in events {
                match sessions.last_mut() {
                    Some(last) if self.count != "sessions" || event.hour - last.last().expect("an event").hour <= self.gap => {
                        last.push(event)
                    }
                    _ => sessions.push(vec![event]),
                }
            }
            for session in sessions {
                let touch = |mut events: Box<dyn Iterator<Item = &Event> + '_>| {
                    events.find(|event| event.mask != 0 && event.value != 0).map_or(0, |event| event.value)
                };
                let value = value.or(match self.attribution {
                    Some("first_touch") => Some(touch(Box::new(session.iter()))),
                    Some("last_touch") => Some(touch(Box::new(session.iter().rev()))),
                    _ => Some(0),
                });
                let mut add = |reached: Reached, day: Option<i64>| all.push(Found { value, share, day, reached });
                if self.count == "totals" {
                    let keys: BTreeSet<u32> =
                        session.iter().map(|event| event.held).filter(|held| *held != 0 && self.holds).collect();
                    let mut parts: Vec<Vec<Event>> =
                        keys.iter().map(|key| session.iter().filter(|event| event.held == *key).copied().collect()).collect();
                    if !self.holds {
                        parts = vec![session.clone()];
                    }
                    for reached in parts.iter().flat_map(|part| self.attempts(part, self.from, self.to)) {
                        add(reached.clone(), None);
                        if by_day {
                            let day = reached.top.map(|(_, start)| start.div_euclid(24));
                            add(reached, day);
                        }
                    }
                    continue;
                }
                let Some(reached) = self.scan(&session, self.from, self.to, exposure) else {
                    continue;
                };
                add(reached.clone(), None);
                if !by_day {
                    continue;
                }
                if self.entry != "any" || self.count == "sessions" {
                    let day = reached.top.map(|(_, start)| start.div_euclid(24));
                    add(reached, day);
                    continue;
                }
                for day in -1..8 {
                    if let Some(reached) = self.scan(&session, self.from.max(day * 24), self.to.min(day * 24 + 24), None) {
                        add(reached, Some(day));
                    }
                }
            }
        }
        all
    }
}

/// Something that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    value: Option<u32>,
    share: Share,
    day: Option<i64>,
    reached: Reached,
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.len() < 2 {
        return vec![items.to_vec()];
    }
    let mut all = Vec::new();
    for (index, first) in items.iter().enumerate() {
        let rest: Vec<usize> = items.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, item)| *item).collect();
        all.extend(permutations(&rest).into_iter().map(|more| [vec![*first], more].concat()));
    }
    all
}

fn pick(random: &mut Random, words: &[&'static str]) -> &'static str {
    words[random.below(words.len() as u64) as usize]
}

/// Makes a definition, in the words of a request and in the oracle's.
fn define(random: &mut Random) -> (Value, Funnel, bool) {
    let steps = 1 + random.below(4) as usize;
    let order = pick(random, &["loose", "loose", "loose", "contiguous", "any"]);
    let is_loose = order == "loose";
    let exposure = random.one_in(6);
    let count = if is_loose && !exposure {
        pick(random, &["uniques", "uniques", "totals", "sessions"])
    } else {
        pick(random, &["uniques"])
    };
    let entry = if exposure {
        "exposure"
    } else if count == "totals" {
        "any"
    } else {
        pick(random, &["any", "any", "first"])
    };
    let optional: Vec<bool> = (0..steps).map(|step| is_loose && step > 0 && random.one_in(4)).collect();
    let within: Vec<Option<i64>> =
        (0..steps).map(|_| (order != "any" && random.one_in(4)).then(|| random.below(6) as i64)).collect();
    let is_inclusive = !random.one_in(4);
    // Without its end it has to have a length.
    let within: Vec<Option<i64>> = within.iter().map(|within| within.map(|within| within + i64::from(!is_inclusive))).collect();
    let is_per_step = order != "any" && random.one_in(5);
    let increase = random.one_in(4);
    let reuse = order != "contiguous" && random.one_in(3);
    let required: Vec<usize> = (0..steps).filter(|step| !optional[*step]).collect();
    let mut exclusions = Vec::new();
    if is_loose && required.len() > 1 {
        for _ in 0..random.below(3) {
            let after = random.below(required.len() as u64 - 1) as usize;
            let before = after + 1 + random.below((required.len() - after - 1) as u64) as usize;
            exclusions.push((required[after], required[before]));
        }
    }
    let by_day = random.one_in(2);
    let from = if random.one_in(2) { random.below(8) as i64 } else { -100 };
    let funnel = Funnel {
        order,
        steps,
        optional,
        within,
        window: random.below(14) as i64 + i64::from(!is_inclusive),
        is_per_step,
        is_inclusive,
        reuse,
        increase,
        entry,
        count,
        from,
        to: if random.one_in(2) { from.max(0) + 1 + random.below(24) as i64 } else { 1_000 },
        drops: random.one_in(2),
        exclusions,
        gap: 2 + random.below(4) as i64,
        holds: random.one_in(5),
        attribution: Some(pick(random, &["none", "first_touch", "last_touch", "all_steps"])).filter(|word| *word != "none"),
    };
    // Of attempts the touches are those of the chain, which need not be the only one that is right.
    let attribution = funnel.attribution.filter(|word| count != "totals" || *word == "all_steps");
    let funnel = Funnel { attribution, ..funnel };
    let step = |step: usize| {
        let mut fields = json!({"name": format!("{step}"), "events": [format!("{step}")]});
        if let Some(within) = funnel.within[step] {
            fields["within"] = format!("{within}h").into();
        }
        if funnel.optional[step] {
            fields["optional"] = true.into();
        }
        fields
    };
    let exclude = |(after, before): &(usize, usize)| {
        let effect = if funnel.drops { "drop_unit" } else { "break_chain" };
        json!({"events": ["x"], "after_step": after + 1, "before_step": before + 1, "effect": effect})
    };
    let mut request = json!({
        "steps": (0..steps).map(step).collect::<Vec<_>>(),
        "order": order,
        "window": format!("{}h", funnel.window),
        "window_anchor": if is_per_step { "previous_step" } else { "first_step" },
        "window_inclusive": funnel.is_inclusive,
        "event_reuse": if reuse { "allowed" } else { "once" },
        "strict_increase": increase,
        "entry": entry,
        "count": count,
        "session_gap": format!("{}h", funnel.gap),
        "ties": if random.one_in(3) { "arrival" } else { "step_order" },
        "exclude": funnel.exclusions.iter().map(exclude).collect::<Vec<_>>(),
        "hold_constant": if funnel.holds { vec!["order_id"] } else { Vec::new() },
        "output": if by_day { vec!["steps", "trend:day"] } else { vec!["steps"] },
    });
    if from > -100 {
        request["from"] = time(from).into();
    }
    if funnel.to < 1_000 {
        request["to"] = time(funnel.to).into();
    }
    if exposure {
        request["experiment"] = json!({"key": "x"});
    }
    if let Some(attribution) = funnel.attribution {
        request["breakdown"] = json!({"by": "country", "attribution": attribution});
    }
    (request, funnel, by_day)
}

/// Hours since 1970, which are early in it.
fn time(hour: i64) -> String {
    format!("1970-01-{:02}T{:02}:00:00Z", 1 + hour.div_euclid(24), hour.rem_euclid(24))
}

fn events(random: &mut Random, steps: usize, most: u64) -> Vec<Event> {
    let count = random.below(most);
    let span = 4 + random.below(30);
    let mut events: Vec<Event> = (0..count)
        .map(|_| {
            let several = if random.one_in(4) { random.below(16) as u32 } else { 0 };
            let one = if random.one_in(6) { 0 } else { 1 << random.below(steps as u64) };
            Event {
                hour: random.below(span) as i64,
                turn: 0,
                mask: (several | one) & ((1 << steps) - 1),
                excluded: if random.one_in(5) { random.below(4) as u32 } else { 0 },
                value: random.below(3) as u32,
                held: random.below(3) as u32,
            }
        })
        .collect();
    events.sort_by_key(|event| event.hour);
    events
}

#[test]
fn units_get_as_far_as_the_definition_says() {
    let mut random = Random(20_261_128);
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for round in 0..20_000 {
        let (request, funnel, by_day) = define(&mut random);
        let definition = Definition::parse(request.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}: {request}"));
        let mut units = Units::new(&definition);
        // The second unit finds what the first one left behind.
        for _ in 0..2 {
            // All orders of one time are tried.
            let most = if funnel.order == "contiguous" { 6 } else { 8 };
            let mut events = events(&mut random, funnel.steps, most);
            let exposure = (funnel.entry == "exposure").then(|| random.below(8) as i64);
            let (mut rows, mut more) = (Vec::new(), Vec::new());
            for (arrival, event) in events.iter().enumerate() {
                more.push(More { arrival: arrival as i64, value: event.value, held: event.held });
                let (mask, excluded) = (event.mask, event.excluded);
                rows.push(Row { time: event.hour * HOUR, unit: 0, mask, excluded, more: arrival as u32 });
            }
            let is_ordered = request["ties"] == "arrival" && !funnel.increase;
            for (index, event) in events.iter_mut().enumerate() {
                event.turn = if is_ordered { index } else { event.hour as usize };
            }
            events.retain(|event| exposure.is_none_or(|exposure| event.hour >= exposure));
            let mut expected = funnel.unit(&events, exposure, by_day);
            let mut found = Vec::new();
            units.unit(&rows, &more, exposure.map(|exposure| exposure * HOUR), &mut |one| {
                let steps = (0..funnel.steps).map(|step| one.outcome.has_reached(step)).collect();
                let top = (0..funnel.steps).rev().find(|step| one.outcome.has_reached(*step) && !funnel.optional[*step]);
                let top = top.map(|top| (one.outcome.steps[top].expect("a step").time / HOUR, one.outcome.start / HOUR));
                let day = one.period.map(|period| period.div_euclid(24 * HOUR));
                let value = (one.share != Share::Total).then_some(one.value);
                found.push(Found { value, share: one.share, day, reached: Reached { steps, top } });
            });
            for one in &mut expected {
                if one.share == Share::Total {
                    one.value = None;
                }
                // Which of several completions is reported is said of those that no exclusion broke.
                if funnel.drops && !funnel.exclusions.is_empty() {
                    one.reached.top = None;
                }
            }
            if funnel.drops && !funnel.exclusions.is_empty() {
                found.iter_mut().for_each(|one| one.reached.top = None);
            }
            assert_eq!(found, expected, "round {round}: {request}\n{events:?}, exposure {exposure:?}");
            let kind = format!("{} {} {}", funnel.order, funnel.entry, funnel.count);
            *counted.entry(kind).or_default() +=
                usize::from(found.iter().any(|one| one.reached.steps.iter().filter(|step| **step).count() > 1));
        }
    }
    // Each kind of funnel was got into, and beyond its first step, often enough to tell.
    assert!(counted.len() >= 10 && counted.values().all(|units| *units > 30), "{counted:?}");
}
