//! `POST /v1/funnels`: definition -> events -> how far each unit got -> counts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use chrono::DateTime;
use datafusion::common::DataFusionError;
use serde::ser::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::arms::Arms;
use super::definition::{Count, Definition, Entry, Range, Ties};
use super::open::{Asked, Opened, open};
use super::rows::Rows;
use super::rules::Rules;
use super::select::Selection;
use super::tally::Tally;
use super::unit::{Counted, Share, Units};
use crate::engine::{self, Engine};
use crate::experiment::warning::Warning;
use crate::http::error::ApiError;
use crate::source::snapshot::{AsOf, Snapshot};

/// Units between two moments at which an answer can be given up.
const UNITS_AT_ONCE: usize = 4_096;
/// Bytes of a group beside what its units take.
const GROUP_BYTES: usize = 1_024;

/// What a funnel is answered with.
#[derive(Debug, serde::Serialize)]
pub struct Answer {
    /// What was computed, with every default filled in.
    pub definition: Value,
    /// How far the log was stored.
    pub as_of: AsOf,
    /// A group for each value and variant.
    pub groups: Vec<Group>,
    /// The same without a breakdown, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Vec<Group>>,
    /// The values that are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<Other>,
    /// Units that entered and have not got through, and whose windows have not closed yet.
    pub windows_open: u64,
    /// Periods of the trend in which some who entered can still get further.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<Vec<String>>,
    /// What a reader should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<Warning>,
    /// How long it took.
    pub elapsed_ms: u64,
}

/// The values of a breakdown that are not shown.
#[derive(Debug, serde::Serialize)]
pub struct Other {
    /// How many.
    pub breakdown_values: usize,
    /// Units of theirs that entered.
    pub units: u64,
    /// The same as of the others.
    pub groups: Vec<Group>,
}

/// One group of units.
#[derive(Debug, Default, serde::Serialize)]
pub struct Group {
    /// The property and its value, null for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breakdown: Option<BTreeMap<String, Option<String>>>,
    /// The variant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Users whom it was shown to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed: Option<u64>,
    /// The steps.
    pub steps: Vec<Value>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_convert: Option<Value>,
    /// The steps by time of entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trend: Option<Vec<Value>>,
    /// The users behind some counts, each as often as it is counted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub units: BTreeMap<String, Users>,
    /// The difference to the control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub significance: Option<Vec<Value>>,
}

/// User ids, written as such.
#[derive(Debug)]
pub struct Users(Vec<[u8; 16]>);

impl Serialize for Users {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|user| Uuid::from_bytes(*user)))
    }
}

/// Answers one funnel.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub async fn answer(engine: &Engine, snapshot: Arc<Snapshot>, definition: Definition) -> Result<Answer, ApiError> {
    let start = Instant::now();
    let (rows, arms, mut warnings) = read(engine, &snapshot, &definition).await?;
    if let Some(several) = arms.as_ref().map(|arms| arms.several).filter(|several| *several > 0) {
        let message = format!("{several} users saw several variants of the experiment; they are left out");
        warnings.push(Warning::new("multiple_variants", message));
    }
    let rules = definition.rules();
    let counting = Counting { definition: &definition, rules: &rules, arms: arms.as_ref(), now: now(snapshot.as_of()) };
    let tallies = counting.count(&rows).await.map_err(engine::api_error)?;
    let mut answer = counting.say(tallies, &rows);
    answer.as_of = snapshot.as_of().clone();
    answer.warnings = warnings;
    answer.elapsed_ms = start.elapsed().as_millis() as u64;
    Ok(answer)
}

/// Finds the users who reached the step before `step`, and not it, with the time of the last step that they reached; of several attempts or
/// sessions the last one.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub(super) async fn left(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    definition: &Definition,
    step: usize,
) -> Result<HashMap<[u8; 16], i64>, ApiError> {
    let (rows, arms, _) = read(engine, snapshot, definition).await?;
    let rules = definition.rules();
    let counting = Counting { definition, rules: &rules, arms: arms.as_ref(), now: None };
    let mut left = HashMap::new();
    let each = |unit: u32, _: usize, counted: Counted<'_>| {
        let outcome = counted.outcome;
        let has_left = !outcome.has_reached(step) && rules.before(step).is_some_and(|before| outcome.has_reached(before));
        if counted.period.is_none() && counted.share != Share::Group && has_left {
            let last = outcome.top(&rules).and_then(|top| outcome.steps[top]);
            left.extend(last.map(|done| (rows.users[unit as usize], done.time)));
        }
        // The user and the time.
        48
    };
    counting.each(&rows, each).await.map_err(engine::api_error)?;
    Ok(left)
}

/// Reads the events, the variants and what to say of names that no event has.
async fn read(
    engine: &Engine,
    snapshot: &Arc<Snapshot>,
    definition: &Definition,
) -> Result<(Rows, Option<Arms>, Vec<Warning>), ApiError> {
    let session = Arc::new(engine.session().map_err(engine::api_error)?);
    let arms = match &definition.experiment {
        Some(experiment) => Some(Arms::read(experiment, &session, snapshot).await?),
        None => None,
    };
    let at = |list: &'static str| move |index: usize| format!("{list}[{index}]");
    let steps = (0..).map(at("steps")).zip(definition.steps.iter().map(|step| step.matches.clone())).collect();
    let excluded = (0..).map(at("exclude")).zip(definition.exclude.iter().map(|excluded| excluded.matches.clone())).collect();
    let selection = Selection {
        needs_all: definition.needs_all_events(),
        from: definition.from,
        to: until(definition),
        value: definition.breakdown.as_ref().map(|breakdown| breakdown.by.clone()),
        held: definition.hold_constant.clone(),
        needs_arrival: definition.ties == Ties::Arrival,
        ..Selection::default()
    };
    let Opened { stream, read } = open(engine, &session, snapshot, Asked { steps, excluded }, selection).await?;
    let mut rows = Rows::new(&session.state().runtime_env().memory_pool);
    let is_wanted = |user: &[u8; 16]| arms.as_ref().is_none_or(|arms| arms.participant(user).is_some());
    rows.read(stream, &read.selection, is_wanted).await.map_err(engine::api_error)?;
    let warnings = read.warnings(&rows);
    Ok((rows, arms, warnings))
}

/// The time of the project's newest event.
pub(super) fn now(as_of: &AsOf) -> Option<i64> {
    let text = as_of.event_time.as_deref()?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// Returns the time from which on no event can count: chains that start before `to` go on after it.
fn until(definition: &Definition) -> Option<i64> {
    let to = definition.to?;
    match definition.range {
        Range::Events => Some(to),
        // The end of a window belongs to it.
        Range::Entries => {
            let reach = definition.rules().reach()?.max(0);
            Some(to.saturating_add(reach).saturating_add(definition.tie_tolerance_us).saturating_add(1))
        }
    }
}

/// What is counted of all units.
struct Tallies {
    /// By variant.
    total: Vec<Tally>,
    /// By value and variant.
    groups: BTreeMap<u32, Vec<Tally>>,
}

struct Counting<'a> {
    definition: &'a Definition,
    rules: &'a Rules,
    arms: Option<&'a Arms>,
    now: Option<i64>,
}

impl Counting<'_> {
    fn variants(&self) -> usize {
        self.arms.map_or(1, |arms| arms.names.len())
    }

    fn empty(&self) -> Vec<Tally> {
        vec![Tally::new(self.definition); self.variants()]
    }

    async fn count(&self, rows: &Rows) -> Result<Tallies, DataFusionError> {
        let mut tallies = Tallies { total: self.empty(), groups: BTreeMap::new() };
        let add = |unit: u32, variant: usize, counted: Counted<'_>| {
            let mut bytes = 0;
            if counted.share != Share::Group {
                bytes += tallies.total[variant].add(&counted, unit, self.definition, self.rules, self.now);
            }
            if self.definition.breakdown.is_some() && counted.share != Share::Total {
                let group = tallies.groups.entry(counted.value).or_insert_with(|| {
                    bytes += GROUP_BYTES * self.variants();
                    self.empty()
                });
                bytes += group[variant].add(&counted, unit, self.definition, self.rules, self.now);
            }
            bytes
        };
        self.each(rows, add).await?;
        Ok(tallies)
    }

    /// Calls `add` with all that is counted, its unit and its variant; it returns the bytes that it keeps.
    async fn each(&self, rows: &Rows, mut add: impl FnMut(u32, usize, Counted<'_>) -> usize) -> Result<(), DataFusionError> {
        let mut units = Units::new(self.definition);
        let mut bytes = 0;
        for (number, own) in rows.rows.chunk_by(|a, b| a.unit == b.unit).enumerate() {
            let unit = own[0].unit;
            let participant = self.arms.and_then(|arms| arms.participant(&rows.users[unit as usize]));
            if self.arms.is_some() && participant.is_none_or(|participant| !self.is_in(participant.exposure)) {
                continue;
            }
            let variant = participant.map_or(0, |participant| usize::from(participant.variant));
            let exposure = participant.map(|participant| participant.exposure);
            units.unit(own, &rows.more, exposure, &mut |counted| bytes += add(unit, variant, counted));
            if number % UNITS_AT_ONCE == 0 {
                // Vectors that grow have room for twice as much.
                rows.hold(2 * bytes)?;
                tokio::task::yield_now().await;
            }
        }
        rows.hold(2 * bytes)
    }

    /// Returns whether an exposure counts: entries by exposure are bounded, others come after it.
    fn is_in(&self, exposure: i64) -> bool {
        let from = self.definition.from.filter(|_| self.definition.entry == Entry::Exposure);
        from.is_none_or(|from| from <= exposure) && self.definition.to.is_none_or(|to| exposure < to)
    }

    /// Turns counts into an answer.
    fn say(&self, tallies: Tallies, rows: &Rows) -> Answer {
        let Tallies { total, groups } = tallies;
        let windows_open = total.iter().map(|tally| tally.open).sum();
        let incomplete = self.definition.trend.map(|period| {
            let starts: BTreeSet<i64> = total.iter().flat_map(Tally::periods).filter(|start| !self.is_complete(*start)).collect();
            starts.into_iter().map(|start| period.text(start)).collect()
        });
        let mut answer = Answer {
            definition: self.definition.expanded(),
            as_of: AsOf::default(),
            groups: Vec::new(),
            total: None,
            other: None,
            windows_open,
            incomplete,
            warnings: Vec::new(),
            elapsed_ms: 0,
        };
        let of_all = self.groups(total, rows, None, true);
        let Some(breakdown) = &self.definition.breakdown else {
            answer.groups = of_all;
            return answer;
        };
        answer.total = Some(of_all);
        let mut groups: Vec<(u64, Option<&str>, Vec<Tally>)> = groups
            .into_iter()
            .map(|(value, tallies)| (tallies.iter().map(Tally::units).sum(), rows.values.text(value), tallies))
            .collect();
        groups.sort_by(|(units, text, _), (other_units, other_text, _)| other_units.cmp(units).then(text.cmp(other_text)));
        let rest = groups.split_off(groups.len().min(breakdown.top));
        for (_, text, tallies) in groups {
            let value = [(breakdown.by.name(), text.map(str::to_owned))].into_iter().collect();
            answer.groups.extend(self.groups(tallies, rows, Some(value), false));
        }
        let breakdown_values = rest.len();
        let units = rest.iter().map(|(units, ..)| units).sum();
        let mut merged = self.empty();
        for (_, _, tallies) in rest {
            merged.iter_mut().zip(tallies).for_each(|(mine, theirs)| mine.merge(theirs));
        }
        let groups = if breakdown_values == 0 { Vec::new() } else { self.groups(merged, rows, None, false) };
        answer.other = Some(Other { breakdown_values, units, groups });
        answer
    }

    /// Writes the group of each variant. Exposures are counted of all units only: who never came has no value to be divided by.
    fn groups(
        &self,
        tallies: Vec<Tally>,
        rows: &Rows,
        value: Option<BTreeMap<String, Option<String>>>,
        is_of_all: bool,
    ) -> Vec<Group> {
        let from = self.definition.from.filter(|_| self.definition.entry == Entry::Exposure);
        let exposed = self.arms.filter(|_| is_of_all).map(|arms| arms.exposed(from, self.definition.to));
        let mut significance = self.significance(&tallies, exposed.as_deref());
        let mut groups = Vec::with_capacity(tallies.len());
        for (variant, mut tally) in tallies.into_iter().enumerate() {
            let users = |units: &[u32]| {
                let mut users: Vec<[u8; 16]> = units.iter().map(|unit| rows.users[*unit as usize]).collect();
                users.sort_unstable();
                Users(users)
            };
            groups.push(Group {
                breakdown: value.clone(),
                variant: self.arms.map(|arms| arms.names[variant].clone()),
                exposed: exposed.as_ref().map(|exposed| exposed[variant]),
                steps: tally.steps(self.definition, self.rules, exposed.as_ref().map(|exposed| exposed[variant])),
                time_to_convert: tally.time_to_convert(self.definition),
                trend: tally.trend(self.definition, |start| self.is_complete(start)),
                units: tally.listed(self.definition).map(|(name, units)| (name, users(units))).collect(),
                significance: significance
                    .as_mut()
                    .map(|found| std::mem::take(&mut found[variant]))
                    .filter(|found| !found.is_empty()),
            });
        }
        groups
    }

    fn significance(&self, tallies: &[Tally], exposed: Option<&[u64]>) -> Option<Vec<Vec<Value>>> {
        let (arms, experiment) = self.arms.zip(self.definition.experiment.as_ref())?;
        // Attempts and sessions of one user are not independent of each other.
        if self.definition.count != Count::Uniques {
            return None;
        }
        let reached: Vec<&[u64]> = tallies.iter().map(|tally| tally.reached.as_slice()).collect();
        Some(match exposed.filter(|_| experiment.is_over_exposed) {
            Some(exposed) => arms.significance(&reached, exposed, 0),
            None => {
                let entered: Vec<u64> = tallies.iter().map(Tally::units).collect();
                arms.significance(&reached, &entered, 1)
            }
        })
    }

    /// Returns whether nobody who entered in the period that begins then can still get further.
    fn is_complete(&self, start: i64) -> bool {
        let end = self.definition.trend.map_or(start, |period| period.next(start));
        let last = end.min(self.definition.to.unwrap_or(i64::MAX)).saturating_sub(1);
        self.now.zip(self.rules.reach()).is_some_and(|(now, reach)| last.saturating_add(reach.max(0)) < now)
    }
}
