//! What the clients send: events that depend on the seed, the run's beginning and their number only, so that whoever has the ledger knows each of them.

use std::io::Write as _;

use events::Micros;
use uuid::Uuid;

use crate::payload::Random;

/// The one experiment. A user's variant is its own, and never another.
pub(super) const EXPERIMENT: &str = "chaos";
const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;
/// Of 1,000 events, how many are poison: rejected alone, and nothing beside them.
const POISON_IN_1000: u64 = 10;
/// Of 1,000 events, how many come days late.
const LATE_IN_1000: u64 = 100;

/// How much later an event comes that repeats another one's identity; more than a request has events, and no multiple of 100.
const REPEATS_AFTER: u64 = 2_007;

/// What a run sends.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub seed: u64,
    /// No event is claimed later.
    pub began: Micros,
    /// How many users there are beside the hot one.
    pub users: u64,
    /// How many in 100 events are the hot user's.
    pub hot_percent: u64,
    /// How many names engagement events have, one after the other.
    pub names: u64,
}

/// An event of a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub id: Uuid,
    pub user: u64,
    pub at: Micros,
    pub what: What,
    /// A number that the event carries, and nothing else explains.
    pub weight: u64,
    /// The number of the event whose identity this one repeats, with another value.
    pub repeats: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Impression,
    Conversion,
    Engagement { name: u64 },
    Poison(&'static Poison),
}

/// An event that must be rejected, and by which name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Poison {
    /// What stands in the event beside its id and its user.
    members: &'static str,
    pub code: &'static str,
    pub field: &'static str,
}

const fn poison(members: &'static str, code: &'static str, field: &'static str) -> Poison {
    Poison { members, code, field }
}

/// What Postgres would refuse, what would harm sums, and what means nothing.
pub(super) const POISONS: [Poison; 12] = [
    poison(r#""type":"engagement","name":"a\u0000b""#, "nul_byte", "name"),
    poison(r#""type":"engagement","name":"a","properties":{"k":"\u0000"}"#, "nul_byte", "properties.k"),
    poison(r#""type":"engagement","name":"a","properties":{"k":"\ud800"}"#, "bad_unicode", "properties.k"),
    poison(r#""type":"engagement","name":"a","properties":{"k":1e200000}"#, "number_out_of_range", "properties.k"),
    poison(r#""type":"engagement","name":"a","properties":{"k":1,"k":2}"#, "duplicate_key", "properties.k"),
    poison(
        r#""type":"engagement","name":"a","properties":{"k":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}"#,
        "too_deep",
        "properties.k[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]",
    ),
    poison(r#""type":"conversion","name":"a","value":"1.0000001","currency":"EUR""#, "too_precise", "value"),
    poison(r#""type":"conversion","name":"a","value":"100000000000000","currency":"EUR""#, "value_out_of_range", "value"),
    poison(r#""type":"conversion","name":"a","value":"1","currency":"EURO""#, "bad_currency", "currency"),
    poison(r#""type":"engagement","name":"a","timestamp":"2001-01-01T00:00:00Z""#, "timestamp_out_of_range", "timestamp"),
    poison(r#""type":"engagement","name":"a","timestamp":"yesterday""#, "bad_timestamp", "timestamp"),
    poison(r#""type":"nothing""#, "unknown_type", "type"),
];

impl Plan {
    /// Returns the event of a number.
    pub(super) fn event(&self, number: u64) -> Planned {
        let event = self.original(number);
        // One in a hundred has the identity of another, which is never such a one itself, and never in the same request.
        if let Some(before) = number.checked_sub(REPEATS_AFTER).filter(|before| before % 100 == 0)
            && let first = self.original(before)
            && first.what == What::Conversion
        {
            return Planned { weight: event.weight, repeats: Some(before), ..first };
        }
        event
    }

    fn original(&self, number: u64) -> Planned {
        let mut random = Random::new(self.seed, number);
        let id = random.uuid();
        let weight = (random.next() >> 24) + 1;
        let is_hot = random.next() % 100 < self.hot_percent;
        let user = if is_hot { 0 } else { 1 + random.next() % self.users.max(1) };
        let back = match random.next() % 1000 {
            late if late < LATE_IN_1000 => DAY + (random.next() % (18 * DAY as u64)) as i64,
            _ => (random.next() % (10 * MINUTE as u64)) as i64,
        };
        let what = match random.next() % 1000 {
            poison if poison < POISON_IN_1000 => What::Poison(&POISONS[(random.next() % POISONS.len() as u64) as usize]),
            part if part < 450 => What::Impression,
            part if part < 900 => What::Conversion,
            _ => What::Engagement { name: random.next() % self.names.max(1) },
        };
        Planned { id, user, at: Micros(self.began.0 - back), what, weight, repeats: None }
    }

    /// Appends the event as a client writes it.
    pub(super) fn write(&self, number: u64, out: &mut Vec<u8>) {
        let Planned { id, user, at, what, weight, .. } = self.event(number);
        let user = user_text(user);
        let head = format!(r#"{{"event_id":"{id}","user_id":"{user}","#);
        let members = match what {
            What::Impression => {
                format!(r#""type":"impression","experiment":"{EXPERIMENT}","variant":"{}","#, variant(self.event(number).user))
            }
            What::Conversion => {
                format!(r#""type":"conversion","name":"purchase","value":"{}","currency":"EUR","#, amount(weight))
            }
            What::Engagement { name } => format!(r#""type":"engagement","name":"name-{name}","#),
            What::Poison(poison) => {
                // A Vec takes every byte.
                let _ = write!(out, "{head}{}}}", poison.members);
                return;
            }
        };
        let _ = write!(out, r#"{head}{members}"timestamp":"{at}","properties":{{"weight":{weight}}}}}"#);
    }

    /// Makes the body of a request of the events from `first` on.
    pub(super) fn body(&self, first: u64, count: u64) -> Vec<u8> {
        let mut body = Vec::with_capacity(16 + 260 * count as usize);
        body.extend_from_slice(br#"{"events":["#);
        for number in first..first + count {
            if number > first {
                body.push(b',');
            }
            self.write(number, &mut body);
        }
        body.extend_from_slice(b"]}");
        body
    }
}

/// The user as clients name it.
pub(super) fn user_text(user: u64) -> String {
    format!("user-{user}")
}

fn variant(user: u64) -> &'static str {
    if user.is_multiple_of(2) { "control" } else { "treatment" }
}

/// A weight as an amount of money: so many millionths.
pub(super) fn amount(weight: u64) -> String {
    format!("{}.{:06}", weight / 1_000_000, weight % 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The same seed gives the same events; identities repeat only where another one is said to be repeated.
    #[test]
    fn events_follow_from_seed_and_number() {
        let plan = Plan { seed: 7, began: Micros(1_772_366_400_000_000), users: 100, hot_percent: 50, names: 5 };
        let (mut ids, mut repeated, mut poison, mut late) = (BTreeSet::new(), 0, 0, 0);
        for number in 0..20_000 {
            let event = plan.event(number);
            assert_eq!(event, plan.event(number));
            if let Some(before) = event.repeats {
                let first = plan.event(before);
                assert_eq!((first.id, first.user, first.at, first.repeats), (event.id, event.user, event.at, None));
                assert_ne!(first.weight, event.weight);
                repeated += 1;
            } else {
                assert!(ids.insert(event.id));
            }
            poison += u32::from(matches!(event.what, What::Poison(_)));
            late += u32::from(event.at.0 < plan.began.0 - DAY);
        }
        // Of 180 places 45 % fall on a conversion; of 20,000 events 1 % are poison and 10 % late.
        assert!((50..115).contains(&repeated), "{repeated}");
        assert!((140..260).contains(&poison) && (1_700..2_300).contains(&late), "{poison} {late}");
    }
}
