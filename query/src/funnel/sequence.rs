//! Patterns over the events of one unit, as ClickHouse's `sequenceMatch` has them: `(?N)` is an event that meets condition N, `.` any event,
//! `.*` any number of them, and `(?t<=5)` says how long after the event before the next one comes, whatever lies between the two.
//!
//! A pattern may begin at any event. Events that meet no condition are not seen.
//! Source: ClickHouse, documentation of parametric aggregate functions.

use std::collections::HashSet;

/// What a pattern asks for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// An event that meets this condition; 0 is the first one.
    Event(u32),
    /// Any event.
    Any,
    /// Any number of events, as few as will do.
    AnyNumber,
    /// The next event comes so long after the one before.
    Time(Compare, i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Less,
    AtMost,
    Equal,
    Unequal,
    AtLeast,
    More,
}

impl Compare {
    fn holds(self, found: i64, wanted: i64) -> bool {
        match self {
            Compare::Less => found < wanted,
            Compare::AtMost => found <= wanted,
            Compare::Equal => found == wanted,
            Compare::Unequal => found != wanted,
            Compare::AtLeast => found >= wanted,
            Compare::More => found > wanted,
        }
    }
}

/// Words of the pattern, the longer ones first.
const COMPARISONS: [(&str, Compare); 6] = [
    ("<=", Compare::AtMost),
    (">=", Compare::AtLeast),
    ("==", Compare::Equal),
    ("!=", Compare::Unequal),
    ("<", Compare::Less),
    (">", Compare::More),
];

/// Parts of a pattern at most.
const PARTS_MAX: usize = 100;
/// Pairs of part and event that are tried for one match, at most.
const TRIES_MAX: usize = 1_000_000;

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    parts: Vec<Part>,
}

impl Pattern {
    /// Reads a pattern over `conditions` conditions. A unit of its times is `unit` of the events'.
    /// # Errors
    /// What is wrong, and where.
    pub(super) fn parse(text: &str, conditions: usize, unit: i64) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let place = text.len() - rest.len();
            let fault = || format!("pattern {text:?}, at {place}: (?1) to (?{conditions}), (?t<=5), . and .* are accepted");
            let after = if let Some(after) = rest.strip_prefix(".*") {
                parts.push(Part::AnyNumber);
                after
            } else if let Some(after) = rest.strip_prefix('.') {
                parts.push(Part::Any);
                after
            } else {
                let (inside, after) = rest.strip_prefix("(?").and_then(|rest| rest.split_once(')')).ok_or_else(fault)?;
                parts.push(match inside.strip_prefix('t') {
                    Some(time) => {
                        let found = COMPARISONS.iter().find_map(|(word, compare)| Some((time.strip_prefix(word)?, *compare)));
                        let (count, compare) = found.ok_or_else(fault)?;
                        let count: i64 = count.trim().parse().map_err(|_| fault())?;
                        Part::Time(compare, count.checked_mul(unit).ok_or_else(fault)?)
                    }
                    None => {
                        let number: usize = inside.parse().map_err(|_| fault())?;
                        let condition = number.checked_sub(1).filter(|condition| *condition < conditions).ok_or_else(fault)?;
                        Part::Event(condition as u32)
                    }
                });
                after
            };
            rest = after.trim_start();
        }
        if parts.is_empty() || parts.len() > PARTS_MAX {
            return Err(format!("pattern {text:?}: 1 to {PARTS_MAX} parts are accepted"));
        }
        Ok(Pattern { parts })
    }

    /// Finds the first match in events (time, mask) that are in order. Returns the place after it, and the places of the events that
    /// `(?N)` named.
    /// # Errors
    /// After [`TRIES_MAX`] tries.
    pub(super) fn find(&self, events: &[(i64, u32)]) -> Result<Option<(usize, Vec<usize>)>, String> {
        // What failed once fails again, wherever the match began.
        let mut tried = HashSet::new();
        for start in 0..events.len() {
            // Places to go on from: part, event, the event that times are counted from, and the last one named.
            let mut open = vec![(0usize, start, start, None)];
            let mut named: Vec<(Option<usize>, usize)> = Vec::new();
            while let Some((part, event, base, last)) = open.pop() {
                let Some(wanted) = self.parts.get(part) else {
                    let chain = std::iter::successors(last, |index: &usize| named[*index].0);
                    let mut places: Vec<usize> = chain.map(|index| named[index].1).collect();
                    places.reverse();
                    return Ok(Some((event, places)));
                };
                let counts = matches!(wanted, Part::Time(..));
                if !tried.insert((part, event, if counts { base } else { 0 })) {
                    continue;
                }
                if tried.len() > TRIES_MAX {
                    return Err(format!(
                        "the pattern takes more than {TRIES_MAX} tries over {} events of one group",
                        events.len()
                    ));
                }
                let found = events.get(event);
                match (*wanted, found) {
                    // As few as will do: what skips is looked at later.
                    (Part::AnyNumber, _) => {
                        if found.is_some() {
                            open.push((part, event + 1, base, last));
                        }
                        open.push((part + 1, event, event, last));
                    }
                    (Part::Time(compare, wanted), Some((time, _))) => {
                        open.push((part, event + 1, base, last));
                        if compare.holds(time.saturating_sub(events[base].0), wanted) {
                            open.push((part + 1, event, event, last));
                        }
                    }
                    (Part::Any, Some(_)) => open.push((part + 1, event + 1, event, last)),
                    (Part::Event(condition), Some((_, mask))) if mask & (1 << condition) != 0 => {
                        named.push((last, event));
                        open.push((part + 1, event + 1, event, Some(named.len() - 1)));
                    }
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    /// Counts matches that do not overlap.
    /// # Errors
    /// Those of [`Pattern::find`].
    pub(super) fn count(&self, events: &[(i64, u32)]) -> Result<i64, String> {
        let (mut rest, mut count) = (events, 0);
        while let Some((end, _)) = self.find(rest)? {
            count += 1;
            // A pattern such as `.*` can match nothing.
            rest = &rest[end.max(1).min(rest.len())..];
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `A0 B10`: conditions 1, 2 and so on are A, B and so on; `-` meets none.
    fn events(text: &str) -> Vec<(i64, u32)> {
        let event = |word: &str| {
            let name = word.bytes().next().expect("a name");
            let mask = if name == b'-' { 0 } else { 1 << (name - b'A') };
            (word[1..].parse().expect("a time"), mask)
        };
        text.split_whitespace().map(event).filter(|(_, mask)| *mask != 0).collect()
    }

    #[test]
    fn patterns_match_as_those_of_clickhouse() {
        let check = |pattern: &str, text: &str, count: i64| {
            let parsed = Pattern::parse(pattern, 4, 1).expect("a pattern");
            let found = parsed.count(&events(text));
            assert_eq!(found, Ok(count), "{pattern} in {text}");
            assert_eq!(parsed.find(&events(text)).expect("few tries").is_some(), count > 0, "{pattern} in {text}");
        };
        check("(?1)(?2)", "A0 B1", 1);
        check("(?1)(?2)", "B0 A1", 0);
        check("(?1)(?2)", "A0 C1 B2", 0);
        check("(?1)(?2)", "A0 -1 B2", 1);
        check("(?1).(?2)", "A0 C1 B2", 1);
        check("(?1).(?2)", "A0 B1", 0);
        check("(?1).*(?2)", "A0 C1 C2 B3", 1);
        check("(?1).*(?2)", "A0 B1", 1);
        check("(?1)(?2)", "B0 A0", 0);
        check("(?1)(?t<=5)(?2)", "A0 B5", 1);
        check("(?1)(?t<=5)(?2)", "A0 B6", 0);
        check("(?1)(?t<=5)(?2)", "A0 C1 B5", 1);
        check("(?1)(?t>5)(?2)", "A0 B5 B6", 1);
        check("(?1)(?t>=5)(?2)", "A0 B4", 0);
        check("(?1)(?t==3)(?2)", "A0 B1 B3", 1);
        check("(?1)(?t!=3)(?2)", "A0 B3", 0);
        check("(?1)(?t<5)(?2)", "A0 A3 B6", 1);
        check("(?1).*(?2)", "A0 A1 B2 B3", 1);
        check("(?1).*(?2)", "A0 B1 A2 B3", 2);
        check("(?1)(?1)", "A0 A1 A2 A3", 2);
        check("(?1)(?1)", "A0 A1 A2", 1);
        check("(?4)", "A0", 0);
        check(".*", "A0 B1", 2);
    }

    #[test]
    fn the_events_of_a_match_are_told() {
        let parsed = Pattern::parse("(?1) .* (?2) (?t<=2) (?3)", 4, 1).expect("a pattern");
        let found = parsed.find(&events("B0 A1 C2 B3 B9 C10"));
        assert_eq!(found, Ok(Some((6, vec![1, 4, 5]))));
        // 3,000 events: a pair of each two is too many.
        let many: Vec<(i64, u32)> = (0..3_000).map(|time| (time, 1)).collect();
        let hopeless = Pattern::parse("(?1)(?t>9000)(?2)", 4, 1).expect("a pattern");
        assert!(hopeless.find(&many).is_err_and(|fault| fault.contains("3000 events")));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for wrong in ["", "(?0)", "(?5)", "(?x)", "(?1", "1", "(?t5)", "(?t<=x)", "(?t<=9223372036854775807)(?1)", "(?1)|(?2)"] {
            assert!(Pattern::parse(wrong, 4, 1_000_000).is_err(), "{wrong}");
        }
    }
}
