//! `POST /v1/retention`: who did one thing, and came back to do another, by the period in which they began.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::answer::now;
use super::definition::{Breakdown, Matches};
use super::open::{Asked, Opened, open};
use super::parse::{choice, name_of, object, time, unsupported};
use super::period::{PERIODS, Period};
use super::rows::{Row, Rows};
use super::select::Selection;
use crate::engine::{self, Engine};
use crate::http::error::ApiError;
use crate::source::snapshot::{Snapshot, time_text};

/// Periods after the first one, at most.
const PERIODS_MAX: u64 = 400;
const PERIODS_DEFAULT: usize = 14;

const ENTRIES: [(&str, bool); 2] = [("recurring", false), ("first_ever", true)];
const RETURNS: [(&str, bool); 2] = [("on", false), ("on_or_after", true)];
const PERCENTS: [(&str, bool); 2] = [("start", false), ("previous", true)];
const MEANS: [(&str, bool); 2] = [("weighted", false), ("simple", true)];

/// A question about retention, complete and checked, except for the SQL of its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// What makes a unit begin.
    start: Matches,
    /// What makes it come back.
    returns: Matches,
    period: Period,
    /// Periods after the first one.
    periods: usize,
    /// Beginnings before this time are left out; microseconds since 1970.
    from: Option<i64>,
    /// Beginnings at this time and after it are left out.
    to: Option<i64>,
    /// Only the first beginning of a unit ever counts.
    is_first_ever: bool,
    /// Coming back later counts as well.
    is_or_after: bool,
    /// Shares are of the period before instead of the first.
    is_of_previous: bool,
    /// Each cohort counts alike in the mean, instead of each unit.
    is_simple_mean: bool,
    breakdown: Option<Breakdown>,
}

impl Definition {
    /// Reads a request's body.
    /// # Errors
    /// [`ApiError`] that names the field, what was found and what is accepted.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = object(body)?;
        let matches = |name: &str| match fields.get(name) {
            Some(Value::Object(matches)) => Matches::parse(matches, name, FORM).map(Some),
            Some(_) => Err(ApiError::bad_request(FORM).at(name)),
            None => Ok(None),
        };
        let start = matches("start")?.ok_or_else(|| ApiError::bad_request(FORM).at("start"))?;
        let mut definition = Definition {
            returns: matches("return")?.unwrap_or_else(|| start.clone()),
            start,
            period: Period::Day,
            periods: PERIODS_DEFAULT,
            from: None,
            to: None,
            is_first_ever: false,
            is_or_after: false,
            is_of_previous: false,
            is_simple_mean: false,
            breakdown: None,
        };
        for (name, value) in &fields {
            definition.read(name, value)?;
        }
        if let (Some(from), Some(to)) = (definition.from, definition.to)
            && from >= to
        {
            return Err(ApiError::bad_request("`to` is not later than `from`").at("to"));
        }
        Ok(definition)
    }

    fn read(&mut self, name: &str, value: &Value) -> Result<(), ApiError> {
        match name {
            "start" | "return" => {}
            "period" => self.period = choice(name, value, &PERIODS)?,
            "periods" => {
                let found = value.as_u64().filter(|periods| (1..=PERIODS_MAX).contains(periods));
                self.periods = found.ok_or_else(|| unsupported(name, value, &format!("1 to {PERIODS_MAX}")))? as usize;
            }
            "from" => self.from = time(name, value)?,
            "to" => self.to = time(name, value)?,
            "entry" => self.is_first_ever = choice(name, value, &ENTRIES)?,
            "match" => self.is_or_after = choice(name, value, &RETURNS)?,
            "percent_of" => self.is_of_previous = choice(name, value, &PERCENTS)?,
            "mean" => self.is_simple_mean = choice(name, value, &MEANS)?,
            "breakdown" => self.breakdown = Some(value).filter(|value| !value.is_null()).map(Breakdown::parse).transpose()?,
            _ => {
                let accepted = "start, return, period, periods, from, to, entry, match, percent_of, mean, breakdown";
                return Err(ApiError::unsupported(format!("the field is not known here; accepted: {accepted}")).at(name));
            }
        }
        Ok(())
    }

    /// Returns whether something in it is an expression that the client wrote.
    pub fn has_conditions(&self) -> bool {
        matches!(self.start, Matches::Where(_)) || matches!(self.returns, Matches::Where(_))
    }

    fn expanded(&self) -> Value {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("start", self.start.expanded().into());
        put("return", self.returns.expanded().into());
        put("period", self.period.name().into());
        put("periods", self.periods.into());
        for (name, bound) in [("from", self.from), ("to", self.to)] {
            if let Some(bound) = bound {
                put(name, time_text(bound).into());
            }
        }
        put("entry", name_of(&ENTRIES, self.is_first_ever).into());
        put("match", name_of(&RETURNS, self.is_or_after).into());
        put("percent_of", name_of(&PERCENTS, self.is_of_previous).into());
        put("mean", name_of(&MEANS, self.is_simple_mean).into());
        if let Some(breakdown) = &self.breakdown {
            put("breakdown", json!({"by": breakdown.by.name(), "top": breakdown.top}));
        }
        fields.into()
    }
}

const FORM: &str = "{\"start\": {\"events\": [..]}, \"return\": {\"events\": [..]}} is accepted; without `return` it is the same";

/// Units of one period of beginning.
type Cohort = Vec<u64>;

/// Answers one question.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub async fn answer(engine: &Engine, snapshot: Arc<Snapshot>, definition: Definition) -> Result<Value, ApiError> {
    let start = Instant::now();
    let steps = vec![("start".to_owned(), definition.start.clone()), ("return".to_owned(), definition.returns.clone())];
    let last =
        definition.to.map(|to| (0..=definition.periods).fold(definition.period.start(to), |at, _| definition.period.next(at)));
    let selection = Selection {
        // The first beginning ever may be earlier.
        from: definition.from.filter(|_| !definition.is_first_ever),
        to: last,
        value: definition.breakdown.as_ref().map(|breakdown| breakdown.by.clone()),
        ..Selection::default()
    };
    let session = Arc::new(engine.session().map_err(engine::api_error)?);
    let asked = Asked { steps, ..Asked::default() };
    let Opened { stream, read } = open(engine, &session, &snapshot, asked, selection).await?;
    let mut rows = Rows::new(&session.state().runtime_env().memory_pool);
    rows.read(stream, &read.selection, |_| true).await.map_err(engine::api_error)?;
    let newest = now(snapshot.as_of()).or_else(|| rows.rows.iter().map(|row| row.time).max()).unwrap_or_default();

    let mut groups: BTreeMap<u32, BTreeMap<i64, Cohort>> = BTreeMap::new();
    for (number, own) in rows.rows.chunk_by(|a, b| a.unit == b.unit).enumerate() {
        let mut by_value: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
        for row in own {
            let value = if definition.breakdown.is_some() { rows.more[row.more as usize].value } else { 0 };
            by_value.entry(value).or_default().push(*row);
        }
        for (value, own) in by_value {
            add_unit(&definition, &own, groups.entry(value).or_default());
        }
        if number % 4_096 == 0 {
            rows.hold(groups.values().map(BTreeMap::len).sum::<usize>() * (definition.periods + 8) * 8)
                .map_err(engine::api_error)?;
            tokio::task::yield_now().await;
        }
    }
    let units = |cohorts: &BTreeMap<i64, Cohort>| cohorts.values().map(|cohort| cohort[0]).sum::<u64>();
    let mut groups: Vec<(Option<&str>, BTreeMap<i64, Cohort>)> = groups
        .into_iter()
        .filter(|(_, cohorts)| !cohorts.is_empty())
        .map(|(value, cohorts)| (rows.values.text(value), cohorts))
        .collect();
    groups.sort_by(|(text, cohorts), (other_text, other)| units(other).cmp(&units(cohorts)).then(text.cmp(other_text)));
    let rest = groups.split_off(groups.len().min(definition.breakdown.as_ref().map_or(1, |breakdown| breakdown.top)));
    let said: Vec<Value> = groups
        .into_iter()
        .map(|(text, cohorts)| {
            let mut group = say(&definition, &cohorts, newest);
            if let Some(breakdown) = &definition.breakdown {
                group["breakdown"] = json!({ breakdown.by.name(): text });
            }
            group
        })
        .collect();
    let mut answer = json!({
        "definition": definition.expanded(),
        "as_of": snapshot.as_of(),
        "groups": said,
        "warnings": read.warnings(&rows),
        "elapsed_ms": start.elapsed().as_millis() as u64,
    });
    if definition.breakdown.is_some() {
        let units: u64 = rest.iter().map(|(_, cohorts)| units(cohorts)).sum();
        answer["other"] = json!({"breakdown_values": rest.len(), "units": units});
    }
    Ok(answer)
}

/// Adds one unit, whose events are in order of time: bit 0 is a beginning, bit 1 a coming back.
fn add_unit(definition: &Definition, rows: &[Row], cohorts: &mut BTreeMap<i64, Cohort>) {
    let period = definition.period;
    let is_in = |time: i64| definition.from.is_none_or(|from| from <= time) && definition.to.is_none_or(|to| time < to);
    let mut begun = rows.iter().filter(|row| row.mask & 1 != 0).map(|row| row.time);
    let begun: BTreeSet<i64> = if definition.is_first_ever {
        begun.next().into_iter().filter(|time| is_in(*time)).map(|time| period.start(time)).collect()
    } else {
        begun.filter(|time| is_in(*time)).map(|time| period.start(time)).collect()
    };
    let back: BTreeSet<i64> = rows.iter().filter(|row| row.mask & 2 != 0).map(|row| period.start(row.time)).collect();
    for start in begun {
        let cohort = cohorts.entry(start).or_insert_with(|| vec![0; definition.periods + 1]);
        cohort[0] += 1;
        let mut at = start;
        for count in &mut cohort[1..] {
            at = period.next(at);
            let has = if definition.is_or_after { back.range(at..).next().is_some() } else { back.contains(&at) };
            *count += u64::from(has);
        }
    }
}

/// Writes the cohorts of a group and their mean. What has not begun yet is null.
fn say(definition: &Definition, cohorts: &BTreeMap<i64, Cohort>, newest: i64) -> Value {
    let period = definition.period;
    let (mut said, mut sums) = (Vec::new(), vec![Vec::<(u64, u64)>::new(); definition.periods + 1]);
    for (start, cohort) in cohorts {
        let (mut returned, mut rates, mut complete) = (Vec::new(), Vec::new(), Vec::new());
        let mut at = *start;
        for (index, count) in cohort.iter().enumerate() {
            let next = period.next(at);
            let whole = if definition.is_of_previous && index > 0 { cohort[index - 1] } else { cohort[0] };
            let is_complete = next <= newest;
            returned.push(*count);
            rates.push((whole > 0).then(|| *count as f64 / whole as f64));
            complete.push(is_complete);
            if is_complete {
                sums[index].push((*count, whole));
            }
            at = next;
            if at > newest {
                break;
            }
        }
        said.push(
            json!({"start": period.text(*start), "units": cohort[0], "returned": returned, "rates": rates, "complete": complete}),
        );
    }
    let mean = |cells: &Vec<(u64, u64)>| {
        let cells: Vec<&(u64, u64)> = cells.iter().filter(|(_, whole)| *whole > 0).collect();
        let whole: u64 = cells.iter().map(|(_, whole)| whole).sum();
        if cells.is_empty() {
            return None;
        }
        Some(if definition.is_simple_mean {
            cells.iter().map(|(count, whole)| *count as f64 / *whole as f64).sum::<f64>() / cells.len() as f64
        } else {
            cells.iter().map(|(count, _)| count).sum::<u64>() as f64 / whole as f64
        })
    };
    json!({"cohorts": said, "mean": sums.iter().map(mean).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn definition(more: Value) -> Definition {
        let mut body = json!({"start": {"events": ["a"]}, "return": {"events": ["b"]}, "periods": 3});
        let Value::Object(more) = more else { panic!("an object") };
        more.into_iter().for_each(|(name, value)| body[name] = value);
        Definition::parse(body.to_string().as_bytes()).expect("a definition")
    }

    /// Three units, in days: the first comes back a day later, the second two, the third begins twice.
    fn said(more: Value) -> Value {
        let units: [&[(i64, u32)]; 3] = [&[(0, 1), (1, 2)], &[(0, 1), (2, 2)], &[(0, 1), (1, 1), (2, 2)]];
        let definition = definition(more);
        let mut cohorts = BTreeMap::new();
        for unit in units {
            let row = |(day, mask): &(i64, u32)| Row { time: day * DAY, unit: 0, mask: *mask, excluded: 0, more: 0 };
            add_unit(&definition, &unit.iter().map(row).collect::<Vec<_>>(), &mut cohorts);
        }
        say(&definition, &cohorts, 3 * DAY)
    }

    #[test]
    fn units_are_counted_by_the_day_on_which_they_begin() {
        let check = |more: Value, first: Value, second: Value, mean: Value| {
            let found = said(more.clone());
            assert_eq!(found["cohorts"][0]["returned"], first, "{more}: {found}");
            assert_eq!(
                found["cohorts"].get(1).map_or(json!(null), |cohort| cohort["returned"].clone()),
                second,
                "{more}: {found}"
            );
            assert_eq!(found["mean"], mean, "{more}: {found}");
        };
        let (two, one) = (2.0 / 3.0, 1.0 / 3.0);
        // The fourth day has begun and not ended.
        check(json!({}), json!([3, 1, 2, 0]), json!([1, 1, 0]), json!([1.0, 0.5, two, null]));
        check(json!({"entry": "first_ever"}), json!([3, 1, 2, 0]), json!(null), json!([1.0, one, two, null]));
        check(json!({"match": "on_or_after"}), json!([3, 3, 2, 0]), json!([1, 1, 0]), json!([1.0, 1.0, two, null]));
        check(json!({"mean": "simple"}), json!([3, 1, 2, 0]), json!([1, 1, 0]), json!([1.0, (1.0 / 3.0 + 1.0) / 2.0, two, null]));
        let previous = said(json!({"percent_of": "previous"}));
        assert_eq!(previous["cohorts"][0]["rates"], json!([1.0, one, 2.0, 0.0]), "{previous}");
        assert_eq!(previous["cohorts"][0]["complete"], json!([true, true, true, false]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: Value, field: &str| {
            let refusal = Definition::parse(body.to_string().as_bytes()).expect_err("refused");
            assert_eq!(refusal.field.as_deref(), Some(field), "{body}");
        };
        let start = json!({"events": ["a"]});
        check(json!({}), "start");
        check(json!({"start": "a"}), "start");
        check(json!({"start": start, "period": "year"}), "period");
        check(json!({"start": start, "periods": 0}), "periods");
        check(json!({"start": start, "entry": "any"}), "entry");
        check(json!({"start": start, "window": "1d"}), "window");
        check(json!({"start": start, "from": "2026-03-02", "to": "2026-03-01"}), "to");
        let whole = definition(json!({"match": "on_or_after", "breakdown": "country"}));
        assert_eq!(Definition::parse(whole.expanded().to_string().as_bytes()), Ok(whole));
    }
}
