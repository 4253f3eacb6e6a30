//! The judge: compares what the ledger says with what is stored, and pronounces on each invariant.
//!
//! | | Invariant, at rest |
//! |---|---|
//! | I1 | what was acknowledged is stored, or kept as a dead letter that it deserves |
//! | I2 | no identity is stored twice, over all tables |
//! | I3 | nothing is stored that was not sent or was rejected, and everything says what was sent |
//! | I4 | acknowledged means durable: I1 after power cuts, or after deaths inside of the system calls between request and answer |
//! | I5 | of each log partition: next offset - start = rows + dead letters + duplicates, each row at the first record of its identity; and next offset = events passed + rejected events + records that are neither |
//! | I6 | of each request: sent = accepted + rejected |
//! | I7 | neither a next offset nor an epoch ever goes back |
//! | I8 | participation is a function of the raw rows: by arithmetic over the ledger, and by Weir's own recomputation |
//! | I9 | attribution likewise |
//! | I12 | memory stays within a bound |
//! | I13 | of a request with bad events the others are accepted |
//! | I14 | a rejection carries the one code, place and field that it deserves |
//! | I15 | nothing is trimmed that is not stored |
//! | I16 | a row's log partition follows from its user alone |
//! | I17 | after the last fault all that was acknowledged is stored in bounded time, and so is a new event; what is no fault of the collector's disturbs no request |
//! | I18 | a recovered log recovers to itself; a death inside of a recovery is harmless |
//! | I19 | SIGTERM ends every process in order and in time |
//! | I22 | each fault that the scenario claims was seen to happen |
//! | I23 | what an aggregator remembers of users is what is stored: of those that it compared none differed |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use events::{Bucket, UserId};
use serde_json::{Value, json};
use uuid::Uuid;

use super::ledger::Told;
use super::plan::{Plan, Planned, What, amount, user_text};
use super::stored::{Identity, Participation, Records, Row, Stored};

/// The time in which a conversion counts for an experiment, by default.
const WINDOW_MICROS: i64 = 30 * 86_400 * 1_000_000;
/// Names of events that a project may have.
const NAMES_MAX: u64 = 2_000;

/// What an invariant was judged by.
#[derive(Debug)]
pub(super) struct Verdict {
    pub invariant: &'static str,
    /// None: this scenario says nothing about it.
    pub holds: Option<bool>,
    /// What was seen: numbers, or why it is not judged.
    pub seen: Value,
}

/// A fault that a scenario claims, how often it was to happen and how often it was seen.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub fault: &'static str,
    pub wanted: u64,
    pub seen: u64,
}

/// All that a judgement rests on.
pub(super) struct Evidence<'a> {
    pub plan: &'a Plan,
    pub told: &'a Told,
    pub stored: &'a Stored,
    /// None where the log cannot be read any more.
    pub records: Option<&'a BTreeMap<u32, Records>>,
    /// The ends of the log's partitions when it was opened once more.
    pub recovered_again: Option<BTreeMap<u32, u64>>,
    pub claims: &'a [Claim],
    /// What Weir's own recomputation says; empty if nothing differed.
    pub recomputation: Result<(), String>,
    /// How many remembered users were compared with their stored rows by the processes that live at the end, and how often any of them all differed.
    pub remembered: (u64, u64),
    /// The most memory that a process of Weir's had resident, and may have, MiB.
    pub memory: (u64, u64),
    /// From the end of the last fault until all was stored and a new event too; or why it was not.
    pub settled: Result<Duration, String>,
    /// How each process that was asked to end did so.
    pub ends: &'a [Result<Duration, String>],
    /// Whether an event's durability was put to the test, and by what.
    pub durability: Option<&'static str>,
    /// Deaths in the middle of recoveries.
    pub nested_deaths: u64,
    /// Whether every request had to be answered at its first try.
    pub is_undisturbed: bool,
}

/// Pronounces on all invariants.
pub(super) fn judge(evidence: &Evidence<'_>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let expected = Expected::of(evidence);
    expected.contents(evidence, &mut verdicts);
    expected.requests(evidence, &mut verdicts);
    expected.derived(evidence, &mut verdicts);
    log(evidence, &mut verdicts);
    machine(evidence, &mut verdicts);
    verdicts.sort_by_key(|verdict| verdict.invariant[1..].parse::<u32>().unwrap_or(u32::MAX));
    verdicts
}

fn verdict(invariant: &'static str, holds: bool, seen: Value) -> Verdict {
    Verdict { invariant, holds: Some(holds), seen }
}

fn not_judged(invariant: &'static str, why: &str) -> Verdict {
    Verdict { invariant, holds: None, seen: json!({ "not judged": why }) }
}

/// Of a list that should be empty: how long it is, and how it begins.
fn some<T: std::fmt::Debug>(found: &[T]) -> Value {
    json!({ "count": found.len(), "first": found.iter().take(3).map(|one| format!("{one:?}")).collect::<Vec<_>>() })
}

/// What the ledger and the plan say must be stored, by id.
struct Expected {
    /// Of each id that was acknowledged or may be there: the events that carry it, the first one first.
    by_id: BTreeMap<Uuid, Vec<(u64, Planned)>>,
    user_ids: BTreeMap<String, Uuid>,
}

impl Expected {
    fn of(evidence: &Evidence<'_>) -> Self {
        let mut by_id: BTreeMap<Uuid, Vec<(u64, Planned)>> = BTreeMap::new();
        for number in &evidence.told.sent {
            let event = evidence.plan.event(*number);
            if !matches!(event.what, What::Poison(_)) {
                by_id.entry(event.id).or_default().push((*number, event));
            }
        }
        let user_ids = evidence.stored.rows.iter().map(|row| (row.user.clone(), row.user_id)).collect();
        Expected { by_id, user_ids }
    }

    /// I1 to I4 and I16.
    fn contents(&self, evidence: &Evidence<'_>, verdicts: &mut Vec<Verdict>) {
        let Evidence { told, stored, .. } = evidence;
        let mut found: BTreeMap<Uuid, Vec<&Row>> = BTreeMap::new();
        stored.rows.iter().for_each(|row| found.entry(row.id).or_default().push(row));

        let acknowledged: BTreeMap<Uuid, u64> =
            told.acknowledged.iter().map(|number| (evidence.plan.event(*number).id, *number)).collect();
        let lost: Vec<u64> = acknowledged.iter().filter(|(id, _)| !found.contains_key(id)).map(|(_, number)| *number).collect();
        let repeating = told.acknowledged.iter().filter(|number| evidence.plan.event(**number).repeats.is_some()).count();
        let undeserved: Vec<_> = stored.dead.iter().filter(|(_, code)| *code != "id_conflict").collect();
        let conflicts = stored.dead.len() - undeserved.len();
        let seen = json!({
            "acknowledged": told.acknowledged.len(), "lost": some(&lost), "dead letters id_conflict": conflicts,
            "acknowledged with another's id": repeating, "other dead letters": some(&undeserved), "unknown at first, then acknowledged": told.resolved,
        });
        let none_lost = lost.is_empty() && undeserved.is_empty() && !told.acknowledged.is_empty();
        verdicts.push(verdict("I1", none_lost, seen));
        verdicts.push(match evidence.durability {
            Some(by) => verdict("I4", lost.is_empty(), json!({ "put to the test by": by, "lost": lost.len() })),
            None => not_judged("I4", "no power was cut here, and no system call between request and answer"),
        });

        let doubled: Vec<&Uuid> = found.iter().filter(|(_, rows)| rows.len() > 1).map(|(id, _)| id).collect();
        let sent_again = json!({ "rows": stored.rows.len(), "doubled": some(&doubled), "requests sent again": told.again });
        verdicts.push(verdict("I2", doubled.is_empty(), sent_again));

        let refused: BTreeSet<Uuid> = told
            .rejected
            .keys()
            .filter(|number| !told.acknowledged.contains(number))
            .map(|number| evidence.plan.event(*number).id)
            .collect();
        let phantoms: Vec<&Uuid> = found
            .keys()
            .filter(|id| !self.by_id.contains_key(id) || refused.contains(id) && !acknowledged.contains_key(id))
            .collect();
        let says = |row: &Row| self.by_id.get(&row.id).is_some_and(|events| events.iter().any(|(_, event)| is_of(row, event)));
        let corrupt: Vec<&Row> = stored.rows.iter().filter(|row| self.by_id.contains_key(&row.id) && !says(row)).collect();
        let seen = json!({ "phantoms": some(&phantoms), "corrupt": some(&corrupt) });
        verdicts.push(verdict("I3", phantoms.is_empty() && corrupt.is_empty(), seen));

        let partitions = u32::try_from(stored.next.len()).unwrap_or(0);
        let strays: Vec<&Row> = match partitions {
            1.. => stored
                .rows
                .iter()
                .filter(|row| Bucket::of(UserId(row.user_id)).log_partition(partitions) != row.partition)
                .collect(),
            0 => Vec::new(),
        };
        let seen = json!({ "log partitions": partitions, "rows": stored.rows.len(), "elsewhere": some(&strays) });
        verdicts.push(verdict("I16", strays.is_empty() && partitions > 0, seen));
    }

    /// I6, I13 and I14.
    fn requests(&self, evidence: &Evidence<'_>, verdicts: &mut Vec<Verdict>) {
        let Evidence { told, plan, stored, .. } = evidence;
        let uneven: Vec<_> = told.unknown.iter().filter(|(why, _)| why.starts_with("200")).collect();
        let seen =
            json!({ "requests": told.requests, "answers that do not add up": some(&uneven), "unknown outcomes": told.unknown });
        verdicts.push(verdict("I6", uneven.is_empty() && told.requests > 0, seen));

        let poison: Vec<u64> =
            told.sent.iter().copied().filter(|number| matches!(plan.event(*number).what, What::Poison(_))).collect();
        let ids: BTreeSet<Uuid> = stored.rows.iter().map(|row| row.id).collect();
        let taken: Vec<u64> = poison
            .iter()
            .copied()
            .filter(|number| told.acknowledged.contains(number) || ids.contains(&plan.event(*number).id))
            .collect();
        let innocent: Vec<_> = told
            .rejected
            .iter()
            .filter(|(number, given)| match plan.event(**number).what {
                What::Poison(_) => false,
                // A project has so many names and no more.
                What::Engagement { .. } if plan.names > NAMES_MAX => !given.iter().all(|(code, _)| code == "cardinality_limit"),
                _ => true,
            })
            .collect();
        let seen = json!({ "poison sent": poison.len(), "poison taken": some(&taken), "good events rejected": some(&innocent),
                           "requests refused as a whole": told.refused });
        verdicts.push(verdict("I13", taken.is_empty() && innocent.is_empty() && told.refused.is_empty(), seen));

        let misnamed: Vec<_> = told
            .rejected
            .iter()
            .filter(|(number, given)| match plan.event(**number).what {
                What::Poison(poison) => !given.iter().all(|(code, field)| code == poison.code && field == poison.field),
                _ => false,
            })
            .collect();
        let names: BTreeSet<&String> = told.rejected.values().flatten().map(|(code, _)| code).collect();
        verdicts.push(verdict("I14", misnamed.is_empty(), json!({ "codes": names, "misnamed": some(&misnamed) })));
    }

    /// I8 and I9: recomputed here from the identities that are stored, by arithmetic, and by Weir itself from its rows.
    fn derived(&self, evidence: &Evidence<'_>, verdicts: &mut Vec<Verdict>) {
        let mut users: BTreeMap<&str, (Vec<&Row>, Vec<&Row>)> = BTreeMap::new();
        for row in &evidence.stored.rows {
            let (impressions, conversions) = users.entry(&row.user).or_default();
            match row.kind.as_str() {
                "impression" => impressions.push(row),
                "conversion" => conversions.push(row),
                _ => {}
            }
        }
        let (mut participations, mut attributed, mut over_active) = (BTreeMap::new(), Vec::new(), 0);
        for (impressions, conversions) in users.values() {
            if (impressions.len() + conversions.len()) as i64 > evidence.stored.user_rows_max {
                over_active += 1;
                continue;
            }
            let Some(first) = impressions.iter().min_by_key(|row| (row.claimed_at, row.id)) else { continue };
            let after = |row: &&&Row| row.claimed_at >= first.claimed_at;
            let participation = Participation {
                first: first.claimed_at,
                first_id: first.id,
                impressions: impressions.len() as i64,
                has_converted: conversions.iter().any(|row| after(&row)),
            };
            participations.insert(first.user_id, participation);
            let within = conversions.iter().filter(after).filter(|row| row.claimed_at <= first.claimed_at + WINDOW_MICROS);
            attributed.extend(within.map(|row| (row.user_id, row.id)));
        }
        attributed.sort_unstable();
        let differing: Vec<&Uuid> =
            self.user_ids.values().filter(|user| participations.get(user) != evidence.stored.participations.get(user)).collect();
        let recomputed = evidence.recomputation.as_ref().err();
        let seen = json!({ "participations": participations.len(), "differing": some(&differing), "over-active users": over_active,
                           "recomputation": recomputed.map_or("nothing differed", String::as_str) });
        let holds = differing.is_empty() && evidence.stored.participations.len() == participations.len() && recomputed.is_none();
        verdicts.push(verdict("I8", holds && !participations.is_empty(), seen));
        let seen = json!({ "attributions": evidence.stored.attributed.len(), "expected": attributed.len(),
                           "recomputation": recomputed.map_or("nothing differed", String::as_str) });
        verdicts.push(verdict("I9", attributed == evidence.stored.attributed && recomputed.is_none(), seen));
    }
}

/// Whether a row says what an event said.
fn is_of(row: &Row, event: &Planned) -> bool {
    let (name, value) = match event.what {
        What::Impression => (None, None),
        What::Conversion => (Some("purchase".to_owned()), Some(amount(event.weight))),
        What::Engagement { name } => (Some(format!("name-{name}")), None),
        What::Poison(_) => return false,
    };
    row.user == user_text(event.user)
        && row.claimed_at == event.at.0
        && row.name == name
        && row.value == value
        && row.weight == event.weight.to_string()
}

/// I5, I15 and I18, from the log itself.
fn log(evidence: &Evidence<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(records) = evidence.records else {
        verdicts.extend(["I5", "I15", "I18"].map(|invariant| not_judged(invariant, "the log cannot be read any more")));
        return;
    };
    let stored = evidence.stored;
    let mut rows: BTreeMap<(u32, u64), &Row> = BTreeMap::new();
    let mut twice = 0;
    for row in &stored.rows {
        twice += u64::from(rows.insert((row.partition, row.offset), row).is_some());
    }
    let (mut uneven, mut duplicates, mut total) = (Vec::new(), 0, 0);
    for (partition, records) in records {
        let next = stored.next.get(partition).copied().unwrap_or(0);
        // What was trimmed has no record to compare with; its rows have.
        let mut known: BTreeSet<&Identity> = BTreeSet::new();
        let trimmed: BTreeSet<Identity> = stored
            .rows
            .iter()
            .filter(|row| row.partition == *partition && row.offset < records.start)
            .map(|row| (row.kind.clone(), row.user_id, row.claimed_at, row.id))
            .collect();
        let mut counted = 0;
        for (offset, identity) in (records.start..next).zip(&records.identities) {
            let place = (*partition, offset);
            let (row, dead) = (rows.get(&place), stored.dead.contains_key(&place));
            let is_first = identity.as_ref().is_some_and(|identity| !trimmed.contains(identity) && known.insert(identity));
            let fits = match (row, dead, identity) {
                (Some(row), false, Some((kind, user, at, id))) => {
                    is_first && (&row.kind, &row.user_id, &row.claimed_at, &row.id) == (kind, user, at, id)
                }
                (None, true, _) => true,
                (None, false, Some(_)) => !is_first,
                _ => false,
            };
            counted += 1;
            duplicates += u64::from(fits && row.is_none() && !dead);
            if !fits {
                uneven.push(format!(
                    "log partition {partition}, offset {offset}: row {}, dead letter {dead}, first {is_first}",
                    row.is_some()
                ));
            }
        }
        total += counted;
        let neither = stored.dead.iter().filter(|((of, _), code)| of == partition && *code == "undecodable").count() as i64;
        let passed = stored.passed.get(partition).copied().unwrap_or(0);
        if i64::try_from(next) != Ok(passed + neither) {
            uneven.push(format!(
                "log partition {partition}: next offset {next}, but {passed} events passed and {neither} records are none"
            ));
        }
        if records.start.max(next) - records.start != counted {
            uneven.push(format!("log partition {partition}: next offset {next}, records {} to {}", records.start, records.end));
        }
    }
    let seen = json!({ "records": total, "rows": stored.rows.len(), "dead letters": stored.dead.len(), "duplicates": duplicates,
                       "rows at one offset": twice, "uneven": some(&uneven) });
    verdicts.push(verdict("I5", uneven.is_empty() && twice == 0 && total > 0, seen));

    let trimmed: Vec<u32> = records
        .iter()
        .filter(|(partition, records)| records.start > stored.next.get(partition).copied().unwrap_or(0))
        .map(|(partition, _)| *partition)
        .collect();
    verdicts.push(verdict("I15", trimmed.is_empty(), json!({ "trimmed beyond what is stored": some(&trimmed) })));

    verdicts.push(match &evidence.recovered_again {
        Some(again) => {
            let ends: BTreeMap<u32, u64> = records.iter().map(|(partition, records)| (*partition, records.end)).collect();
            let seen = json!({ "log partitions": ends.len(), "deaths inside of a recovery": evidence.nested_deaths });
            verdict("I18", ends == *again, seen)
        }
        None => not_judged("I18", "the log is Kafka's"),
    });
}

/// I7, I12, I17, I19, I22 and I23.
fn machine(evidence: &Evidence<'_>, verdicts: &mut Vec<Verdict>) {
    let stored = evidence.stored;
    let seen = json!({ "moves": stored.moves, "back": stored.moves_back });
    verdicts.push(verdict("I7", stored.moves_back == 0 && stored.moves > 0, seen));
    let (most, max) = evidence.memory;
    verdicts.push(verdict("I12", most <= max && most > 0, json!({ "MiB": most, "at most": max })));
    let unanswered: u64 = if evidence.is_undisturbed { evidence.told.unknown.values().sum() } else { 0 };
    verdicts.push(match &evidence.settled {
        Ok(took) => {
            let seen = json!({ "stored after s": took.as_secs_f64(), "requests that a fault of others disturbed": unanswered });
            verdict("I17", unanswered == 0, seen)
        }
        Err(why) => verdict("I17", false, json!({ "why": why })),
    });
    let bad: Vec<&String> = evidence.ends.iter().filter_map(|end| end.as_ref().err()).collect();
    let longest = evidence.ends.iter().flatten().max().copied().unwrap_or_default();
    let seen = json!({ "ends": evidence.ends.len(), "longest s": longest.as_secs_f64(), "bad": some(&bad) });
    verdicts.push(verdict("I19", bad.is_empty() && !evidence.ends.is_empty(), seen));
    let (compared, differed) = evidence.remembered;
    verdicts.push(match (compared, differed) {
        (0, 0) => not_judged("I23", "no process that lived to the end has compared anything"),
        _ => verdict(
            "I23",
            differed == 0,
            json!({ "compared by those that live at the end": compared, "differed in all": differed }),
        ),
    });
    let unseen: Vec<&str> =
        evidence.claims.iter().filter(|claim| claim.seen < claim.wanted.max(1)).map(|claim| claim.fault).collect();
    let claims: BTreeMap<&str, Value> =
        evidence.claims.iter().map(|claim| (claim.fault, json!({ "wanted": claim.wanted, "seen": claim.seen }))).collect();
    verdicts.push(verdict("I22", unseen.is_empty() && !claims.is_empty(), json!({ "faults": claims, "not seen": unseen })));
}
