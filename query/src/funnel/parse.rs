//! Reads a funnel's definition from a request.

use chrono::{DateTime, NaiveDate};
use serde_json::{Map, Value};

use super::definition::{
    ANCHORS, Attribution, Breakdown, COUNTS, Count, DENOMINATORS, Definition, EFFECTS, ENTRIES, Entry, Excluded, Experiment,
    Listed, Matches, ORDERS, PRESETS, Preset, RANGES, REUSES, Step, TIES, Ties, TimeToConvert,
};
use super::period::PERIODS;
use super::rules::{Exclusion, STEPS_MAX};
use super::scan::Order;
use crate::http::error::ApiError;
use crate::source::property::Property;

/// Names in one list of events, at most.
const EVENTS_MAX: usize = 200;
/// Exclusions at most, and properties held constant.
const EXCLUSIONS_MAX: usize = 16;
const HELD_MAX: usize = 4;
const TOP_DEFAULT: usize = 20;
const TOP_MAX: usize = 1_000;
const BINS_MAX: usize = 90;

const STEP_FORM: &str =
    "a step is {\"name\": .., \"events\": [..]} or {\"name\": .., \"where\": \"..\"}, with \"within\" and \"optional\" if wanted";
const FIELDS: [&str; 24] = [
    "steps",
    "preset",
    "unit",
    "from",
    "to",
    "range",
    "window",
    "window_anchor",
    "window_inclusive",
    "order",
    "entry",
    "event_reuse",
    "ties",
    "tie_tolerance",
    "strict_increase",
    "strict_deduplication",
    "allow_reentry",
    "exclude",
    "hold_constant",
    "count",
    "session_gap",
    "breakdown",
    "experiment",
    "output",
];

impl Definition {
    /// Reads a request's body.
    /// # Errors
    /// [`ApiError`] that names the field, what was found and what is accepted.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let fields = object(body)?;
        let preset = match fields.get("preset") {
            None | Some(Value::Null) => None,
            Some(value) => Some(choice("preset", value, &PRESETS)?),
        };
        let mut definition = Definition::new(preset);
        if let Some(steps) = fields.get("steps") {
            definition.steps = list("steps", steps, STEPS_MAX, Step::parse)?;
        }
        for (name, value) in &fields {
            definition.read(name, value)?;
        }
        definition.check()?;
        Ok(definition)
    }

    fn read(&mut self, name: &str, value: &Value) -> Result<(), ApiError> {
        match name {
            "steps" | "preset" => {}
            "unit" => fixed(name, value, "user_id")?,
            "consistency" => fixed(name, value, "watermark")?,
            "bots" => fixed(name, value, "excluded")?,
            // Echoed beside `window`.
            "window_us" => {}
            "window" => self.window_us = duration(name, value)?,
            "session_gap" => self.session_gap_us = duration(name, value)?,
            "tie_tolerance" => self.tie_tolerance_us = duration(name, value)?,
            "from" => self.from = time(name, value)?,
            "to" => self.to = time(name, value)?,
            "range" => self.range = choice(name, value, &RANGES)?,
            "window_anchor" => self.window_anchor = choice(name, value, &ANCHORS)?,
            "window_inclusive" => self.window_inclusive = flag(name, value)?,
            "order" => self.order = choice(name, value, &ORDERS)?,
            "entry" => self.entry = choice(name, value, &ENTRIES)?,
            "event_reuse" => self.event_reuse = choice(name, value, &REUSES)?,
            "ties" => self.ties = choice(name, value, &TIES)?,
            "strict_increase" => self.strict_increase = flag(name, value)?,
            "strict_deduplication" => self.strict_deduplication = flag(name, value)?,
            "allow_reentry" => self.allow_reentry = flag(name, value)?,
            "compat_clickhouse" => self.compat_clickhouse = flag(name, value)?,
            "count" => self.count = choice(name, value, &COUNTS)?,
            "exclude" => {
                let (steps, drops) = (self.steps.len(), self.preset == Some(Preset::Posthog));
                self.exclude = list(name, value, EXCLUSIONS_MAX, |value, place| Excluded::parse(value, place, steps, drops))?;
            }
            "hold_constant" => {
                self.hold_constant =
                    list(name, value, HELD_MAX, |value, place| property(value).ok_or_else(|| unknown(value, place)))?;
            }
            "breakdown" => self.breakdown = Some(value).filter(|value| !value.is_null()).map(Breakdown::parse).transpose()?,
            "experiment" => self.experiment = Some(value).filter(|value| !value.is_null()).map(Experiment::parse).transpose()?,
            "output" => self.read_outputs(value)?,
            _ => {
                let message = format!("the field is not known here; accepted: {}", FIELDS.join(", "));
                return Err(ApiError::unsupported(message).at(name));
            }
        }
        Ok(())
    }

    fn read_outputs(&mut self, value: &Value) -> Result<(), ApiError> {
        let steps = self.steps.len();
        for (index, output) in list("output", value, 100, |value, _| Ok(value.clone()))?.iter().enumerate() {
            let refuse = || {
                let message = format!(
                    "{output} is not supported; accepted: \"steps\", \"time_to_convert\" or \"time_to_convert:FROM:TO\" with \":BINS\" if \
                     wanted, \"trend:hour\", \"trend:day\", \"trend:week\", \"trend:month\", \"units:reached:STEP\", \"units:dropped:STEP\", \
                     with steps from 1 to {steps}"
                );
                ApiError::unsupported(message).at(format!("output[{index}]"))
            };
            let parts: Vec<&str> = output.as_str().unwrap_or_default().split(':').collect();
            let step = |text: &str| text.parse::<usize>().ok().filter(|step| (1..=steps).contains(step)).map(|step| step - 1);
            match parts.as_slice() {
                ["steps"] => {}
                ["time_to_convert"] => {
                    self.time_to_convert = Some(TimeToConvert { from: 0, to: steps.saturating_sub(1), bins: None });
                }
                ["time_to_convert", from, to, bins @ ..] => {
                    let (from, to) = step(from).zip(step(to)).filter(|(from, to)| from < to).ok_or_else(refuse)?;
                    let bins = match bins {
                        [] => None,
                        [bins] => {
                            Some(bins.parse::<usize>().ok().filter(|bins| (1..=BINS_MAX).contains(bins)).ok_or_else(refuse)?)
                        }
                        _ => return Err(refuse()),
                    };
                    self.time_to_convert = Some(TimeToConvert { from, to, bins });
                }
                ["trend", period] => {
                    let found = PERIODS.iter().find(|(name, _)| name == period).ok_or_else(refuse)?;
                    self.trend = Some(found.1);
                }
                ["units", "reached", of] => self.units.push(Listed::Reached(step(of).ok_or_else(refuse)?)),
                ["units", "dropped", of] => {
                    self.units.push(Listed::Dropped(step(of).filter(|step| *step > 0).ok_or_else(refuse)?));
                }
                _ => return Err(refuse()),
            }
        }
        Ok(())
    }

    /// Refuses what has no meaning together.
    fn check(&self) -> Result<(), ApiError> {
        if self.steps.is_empty() {
            let message = "at least one step is needed, such as {\"name\": \"buy\", \"events\": [\"purchase\"]}";
            return Err(ApiError::bad_request(message).at("steps"));
        }
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            return Err(ApiError::bad_request("`to` is not later than `from`").at("to"));
        }
        let mut windows = std::iter::once(("window".to_owned(), self.window_us)).chain(
            self.steps.iter().enumerate().filter_map(|(step, found)| Some((format!("steps[{step}].within"), found.within_us?))),
        );
        if let Some((field, _)) = windows.find(|(_, window)| *window == 0 && !self.window_inclusive) {
            return Err(ApiError::bad_request("a window of no length holds nothing without its end").at(field));
        }
        let refuse = |is_wrong: bool, field: &str, message: &str| match is_wrong {
            true => Err(ApiError::unsupported(message).at(field)),
            false => Ok(()),
        };
        let (is_loose, is_plain) = (self.order == Order::Loose, matches!(self.order, Order::Loose | Order::Contiguous));
        if let Some(step) = self.steps.iter().position(|step| step.optional) {
            refuse(
                step == 0,
                "steps[0].optional",
                "the first step cannot be optional: where nobody enters, nobody gets further",
            )?;
            refuse(!is_loose, &format!("steps[{step}].optional"), "optional steps are defined in the order \"loose\"")?;
        }
        if let Some(step) = self.steps.iter().position(|step| step.within_us.is_some()) {
            let message = "a window of a step is defined in the orders \"loose\" and \"contiguous\"";
            refuse(!is_plain, &format!("steps[{step}].within"), message)?;
        }
        let previous = self.window_anchor == super::definition::Anchor::PreviousStep;
        refuse(
            previous && !is_plain,
            "window_anchor",
            "windows from step to step are defined in the orders \"loose\" and \"contiguous\"",
        )?;
        refuse(!self.exclude.is_empty() && !is_loose, "exclude", "exclusions are defined in the order \"loose\"")?;
        for (index, excluded) in self.exclude.iter().enumerate() {
            let Exclusion { after, before, .. } = excluded.rule;
            let is_optional = self.steps[after].optional || self.steps[before].optional;
            refuse(is_optional, &format!("exclude[{index}]"), "an exclusion lies between two steps that are not optional")?;
        }
        let contiguous = self.order == Order::Contiguous;
        refuse(
            contiguous && self.event_reuse,
            "event_reuse",
            "with nothing in between each event is one step: \"once\" is accepted",
        )?;
        refuse(
            self.allow_reentry && self.order != Order::StrictOrder,
            "allow_reentry",
            "it is a mode of the order \"strict_order\"",
        )?;
        let deduplicates = self.strict_deduplication && matches!(self.order, Order::Contiguous | Order::Any);
        refuse(deduplicates, "strict_deduplication", "it is a mode of the orders \"loose\" and \"strict_order\"")?;
        let strict = self.order == Order::StrictOrder;
        refuse(strict && self.entry != Entry::Any, "entry", "in the order \"strict_order\" any first step may be the entry")?;
        refuse(
            strict && self.ties == Ties::Either,
            "ties",
            "the order \"strict_order\" takes equal times in the order of steps",
        )?;
        if self.count == Count::Totals {
            refuse(!is_loose, "count", "totals are defined in the order \"loose\"")?;
            refuse(self.entry != Entry::Any, "entry", "totals count attempts from any entry: \"any\" is accepted")?;
        }
        if let Some(TimeToConvert { from, to, .. }) = self.time_to_convert {
            let is_optional = self.steps[from].optional || self.steps[to].optional;
            refuse(is_optional, "output", "times are taken between two steps that are not optional")?;
        }
        let exposure = self.entry == Entry::Exposure;
        if exposure && self.experiment.is_none() {
            let message = "entries by exposure need the experiment: {\"experiment\": {\"key\": NAME}}";
            return Err(ApiError::bad_request(message).at("experiment"));
        }
        refuse(
            exposure && self.count != Count::Uniques,
            "count",
            "of entries by exposure there is one per unit: \"uniques\" is accepted",
        )?;
        if let Some(Breakdown { attribution: Attribution::Step(step), .. }) = self.breakdown
            && step >= self.steps.len()
        {
            return Err(ApiError::bad_request("there is no such step").at("breakdown.attribution"));
        }
        Ok(())
    }
}

impl Step {
    fn parse(value: &Value, place: &str) -> Result<Self, ApiError> {
        let bad = |field: &str, message: &str| ApiError::bad_request(message).at(format!("{place}{field}"));
        let fields = value.as_object().ok_or_else(|| bad("", STEP_FORM))?;
        known(fields, &["name", "events", "where", "within", "optional"], place, STEP_FORM)?;
        let name = match fields.get("name") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => return Err(bad(".name", "a text that is not empty is accepted")),
        };
        let matches = Matches::parse(fields, place, STEP_FORM)?;
        let within = fields.get("within").filter(|within| !within.is_null());
        let within_us = within.map(|within| duration(&format!("{place}.within"), within)).transpose()?;
        let optional = fields.get("optional").map(|optional| flag(&format!("{place}.optional"), optional)).transpose()?;
        Ok(Step { name, matches, within_us, optional: optional.unwrap_or(false) })
    }
}

impl Matches {
    pub(super) fn parse(fields: &Map<String, Value>, place: &str, form: &str) -> Result<Self, ApiError> {
        let bad = |field: &str, message: &str| ApiError::bad_request(message).at(format!("{place}{field}"));
        match (fields.get("events"), fields.get("where")) {
            (Some(Value::Array(events)), None) if !events.is_empty() && events.len() <= EVENTS_MAX => {
                let text = |event: &Value| event.as_str().map(str::to_owned);
                let names: Option<Vec<String>> = events.iter().map(text).collect();
                Ok(Matches::Events(names.ok_or_else(|| bad(".events", "a list of event names is accepted"))?))
            }
            (Some(_), None) => Err(bad(".events", &format!("a list of 1 to {EVENTS_MAX} event names is accepted"))),
            (None, Some(Value::String(condition))) => Ok(Matches::Where(condition.clone())),
            (None, Some(_)) => Err(bad(".where", "a condition in SQL over the table events is accepted")),
            _ => Err(bad("", form)),
        }
    }
}

impl Excluded {
    fn parse(value: &Value, place: &str, steps: usize, drops: bool) -> Result<Self, ApiError> {
        let form = "an exclusion is {\"events\": [..]} or {\"where\": \"..\"}, with \"after_step\", \"before_step\" and \"effect\" if wanted";
        let fields = value.as_object().ok_or_else(|| ApiError::bad_request(form).at(place))?;
        known(fields, &["events", "where", "after_step", "before_step", "effect"], place, form)?;
        let matches = Matches::parse(fields, place, form)?;
        let step = |name: &str, usual: usize| match fields.get(name) {
            None | Some(Value::Null) => Ok(usual),
            Some(value) => {
                let found = value.as_u64().filter(|step| (1..=steps as u64).contains(step));
                let message = format!("{value} is no step; accepted: 1 to {steps}");
                found.map(|step| step as usize - 1).ok_or_else(|| ApiError::bad_request(message).at(format!("{place}.{name}")))
            }
        };
        let after = step("after_step", 0)?;
        let before = step("before_step", after + 1)?;
        if before <= after || before >= steps {
            let message = format!("an exclusion lies after a step and before a later one, of {steps}");
            return Err(ApiError::bad_request(message).at(format!("{place}.before_step")));
        }
        let effect = fields.get("effect").filter(|effect| !effect.is_null());
        let drops = effect.map_or(Ok(drops), |effect| choice(&format!("{place}.effect"), effect, &EFFECTS))?;
        Ok(Excluded { matches, rule: Exclusion { after, before, drops } })
    }
}

impl Breakdown {
    pub(super) fn parse(value: &Value) -> Result<Self, ApiError> {
        let form = "a breakdown is {\"by\": PROPERTY}, with \"attribution\" and \"top\" if wanted";
        let whole;
        let fields = match value {
            Value::String(_) => {
                whole = [("by".to_owned(), value.clone())].into_iter().collect();
                &whole
            }
            Value::Object(fields) => fields,
            _ => return Err(ApiError::bad_request(form).at("breakdown")),
        };
        known(fields, &["by", "attribution", "top"], "breakdown", form)?;
        let by = fields.get("by").unwrap_or(&Value::Null);
        let by = property(by).ok_or_else(|| unknown(by, "breakdown.by"))?;
        let attribution = match fields.get("attribution") {
            None | Some(Value::Null) => Attribution::FirstTouch,
            Some(value) => {
                let text = value.as_str().unwrap_or_default();
                let step =
                    text.strip_prefix("step:").and_then(|step| step.parse::<usize>().ok()).and_then(|step| step.checked_sub(1));
                match (text, step) {
                    ("first_touch", _) => Attribution::FirstTouch,
                    ("last_touch", _) => Attribution::LastTouch,
                    ("all_steps", _) => Attribution::AllSteps,
                    (_, Some(step)) => Attribution::Step(step),
                    _ => {
                        let accepted = "\"first_touch\", \"last_touch\", \"all_steps\", \"step:2\"";
                        return Err(unsupported("breakdown.attribution", value, accepted));
                    }
                }
            }
        };
        let top = fields.get("top").filter(|top| !top.is_null());
        let top = top.map_or(Ok(TOP_DEFAULT), |top| {
            let found = top.as_u64().filter(|top| (1..=TOP_MAX as u64).contains(top)).map(|top| top as usize);
            found.ok_or_else(|| ApiError::bad_request(format!("1 to {TOP_MAX} values are accepted")).at("breakdown.top"))
        })?;
        Ok(Breakdown { by, attribution, top })
    }
}

impl Experiment {
    fn parse(value: &Value) -> Result<Self, ApiError> {
        let form = "an experiment is {\"key\": NAME OR ID}, with \"denominator\" and \"baseline\" if wanted";
        let fields = value.as_object().ok_or_else(|| ApiError::bad_request(form).at("experiment"))?;
        known(fields, &["key", "denominator", "baseline"], "experiment", form)?;
        let text = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(ApiError::bad_request("a text is accepted").at(format!("experiment.{name}"))),
        };
        let key = text("key")?.ok_or_else(|| ApiError::bad_request(form).at("experiment.key"))?;
        let denominator = fields.get("denominator").filter(|denominator| !denominator.is_null());
        let is_over_exposed = denominator.map_or(Ok(true), |value| choice("experiment.denominator", value, &DENOMINATORS))?;
        Ok(Experiment { key, baseline: text("baseline")?, is_over_exposed })
    }
}

/// Reads a body that is a JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body is not JSON: {error}")))?;
    match body {
        Value::Object(fields) => Ok(fields),
        _ => Err(ApiError::bad_request("the body is a JSON object with the field `steps`")),
    }
}

/// Reads a list; each item knows its place.
fn list<T>(
    name: &str,
    value: &Value,
    max: usize,
    mut item: impl FnMut(&Value, &str) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    let items = value.as_array().ok_or_else(|| ApiError::bad_request("a list is accepted").at(name))?;
    if items.len() > max {
        return Err(ApiError::bad_request(format!("{} {name}; at most {max} are accepted", items.len())).at(name));
    }
    items.iter().enumerate().map(|(index, value)| item(value, &format!("{name}[{index}]"))).collect()
}

fn known(fields: &Map<String, Value>, names: &[&str], place: &str, form: &str) -> Result<(), ApiError> {
    match fields.keys().find(|name| !names.contains(&name.as_str())) {
        Some(other) => Err(ApiError::unsupported(format!("the field is not known here; {form}")).at(format!("{place}.{other}"))),
        None => Ok(()),
    }
}

/// Reads one of some words.
pub(super) fn choice<T: Copy>(name: &str, value: &Value, words: &[(&str, T)]) -> Result<T, ApiError> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    let accepted = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    found.map(|(_, meaning)| *meaning).ok_or_else(|| unsupported(name, value, &accepted()))
}

/// Returns the word for a meaning.
pub(super) fn name_of<T: PartialEq>(words: &[(&'static str, T)], meaning: T) -> &'static str {
    words.iter().find(|(_, other)| *other == meaning).map_or("", |(word, _)| word)
}

pub(super) fn flag(name: &str, value: &Value) -> Result<bool, ApiError> {
    value.as_bool().ok_or_else(|| unsupported(name, value, "true, false"))
}

fn fixed(name: &str, value: &Value, accepted: &str) -> Result<(), ApiError> {
    if value.as_str() == Some(accepted) { Ok(()) } else { Err(unsupported(name, value, accepted)) }
}

pub(super) fn property(value: &Value) -> Option<Property> {
    value.as_str().and_then(Property::of)
}

pub(super) fn unknown(value: &Value, place: &str) -> ApiError {
    let message =
        format!("{value} is no property; accepted: a column of the table events, such as country, or the name of a property");
    ApiError::bad_request(message).at(place)
}

pub(super) fn unsupported(name: &str, value: &Value, accepted: &str) -> ApiError {
    ApiError::unsupported(format!("{value} is not supported; accepted: {accepted}")).at(name)
}

const UNITS: [(&str, i64); 7] = [
    ("w", 604_800_000_000),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Reads `1d`, `2h`, `30m`, `90s` or whole microseconds.
pub(super) fn duration(name: &str, value: &Value) -> Result<i64, ApiError> {
    duration_us(value).ok_or_else(|| {
        let accepted = "a text such as 1d, 2h, 30m or 90s, or a whole number of microseconds";
        ApiError::bad_request(format!("{value} is not a duration; accepted: {accepted}")).at(name)
    })
}

fn duration_us(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number).filter(|number| *number >= 0);
    }
    let text = value.as_str()?;
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit)?.1;
    count.parse::<i64>().ok()?.checked_mul(unit)
}

/// Writes a duration as it is read.
pub(super) fn duration_text(us: i64) -> String {
    let (name, unit) = UNITS.iter().find(|(_, unit)| us != 0 && us % unit == 0).unwrap_or(&("s", 1_000_000));
    format!("{}{name}", us / unit)
}

/// Reads an absolute time, or a date for its first moment in UTC. Digits beyond microseconds are cut.
pub(super) fn time(name: &str, value: &Value) -> Result<Option<i64>, ApiError> {
    let form = || {
        let accepted = "a time such as 2026-03-01T12:30:00Z or a date such as 2026-03-01";
        ApiError::bad_request(format!("{value} is not a time; accepted: {accepted}")).at(name)
    };
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text,
        _ => return Err(form()),
    };
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Some(time.timestamp_micros()));
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| form())?;
    date.and_hms_opt(0, 0, 0).map(|time| Some(time.and_utc().timestamp_micros())).ok_or_else(form)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::snapshot::time_text;
    use serde_json::json;

    fn parse(body: &Value) -> Result<Definition, ApiError> {
        Definition::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        let steps = json!([{"name": "view", "events": ["view", "impression"]}, {"name": "buy", "where": "event = 'buy'"}]);
        let definition = parse(&json!({ "steps": steps })).expect("a funnel");
        let expected = json!({
            "steps": steps, "range": "entries", "window": "2w", "window_us": 1_209_600_000_000i64, "event_reuse": "once",
            "strict_increase": false, "unit": "user_id", "order": "loose", "entry": "any", "window_anchor": "first_step",
            "window_inclusive": true, "ties": "step_order", "tie_tolerance": "0s", "count": "uniques", "strict_deduplication": false,
            "allow_reentry": false, "compat_clickhouse": false, "exclude": [], "hold_constant": [], "output": ["steps"],
            "consistency": "watermark", "bots": "excluded",
        });
        assert_eq!(definition.expanded(), expected);
    }

    /// What an answer echoes means the same when it is asked again.
    #[test]
    fn an_expanded_definition_is_a_definition() {
        let a = json!({"name": "a", "events": ["a"]});
        let all = json!({
            "preset": "posthog", "steps": [a, {"name": "b", "events": ["b"], "within": "2h"}, {"name": "c", "where": "true", "optional": true},
            {"name": "d", "events": ["d"]}], "from": "2026-03-01", "to": "2026-04-01", "range": "events", "window": "90s", "entry": "first",
            "window_anchor": "previous_step", "window_inclusive": false, "ties": "arrival", "tie_tolerance": "1s", "strict_increase": true,
            "exclude": [{"events": ["x"]}, {"where": "value > 1", "after_step": 2, "before_step": 4, "effect": "break_chain"}],
            "hold_constant": ["country", "order_id"], "count": "sessions", "session_gap": "10m",
            "breakdown": {"by": "properties.plan", "attribution": "step:2", "top": 3},
            "experiment": {"key": "x", "denominator": "entered", "baseline": "a"},
            "output": ["steps", "time_to_convert:1:4:12", "trend:week", "units:reached:2", "units:dropped:4"],
        });
        let definition = parse(&all).expect("a funnel");
        let expanded = definition.expanded();
        assert_eq!(parse(&expanded), Ok(definition), "{expanded}");
        assert_eq!(expanded["exclude"][0], json!({"events": ["x"], "after_step": 1, "before_step": 2, "effect": "drop_unit"}));
        assert_eq!(expanded["hold_constant"], json!(["country", "properties.order_id"]));
        for preset in ["clickhouse", "mixpanel", "growthbook"] {
            let definition = parse(&json!({"steps": [a], "preset": preset, "experiment": {"key": "x"}})).expect("a funnel");
            assert_eq!(parse(&definition.expanded()), Ok(definition), "{preset}");
        }
    }

    #[test]
    fn options_are_read() {
        let body =
            br#"{"steps": [{"name": "a", "events": ["a"]}], "window": "90s", "from": "2026-03-01", "event_reuse": "allowed",
            "to": "2026-03-02T01:00:00.1234567+01:00", "strict_increase": true, "order": "loose", "window_inclusive": true,
            "output": ["steps"]}"#;
        let definition = Definition::parse(body).expect("a funnel");
        assert_eq!(definition.window_us, 90_000_000);
        assert_eq!(definition.from.map(time_text).as_deref(), Some("2026-03-01T00:00:00Z"));
        assert_eq!(definition.to.map(time_text).as_deref(), Some("2026-03-02T00:00:00.123456Z"));
        assert!(definition.event_reuse && definition.strict_increase);
    }

    #[test]
    fn durations_are_read_and_written() {
        let check = |value: Value, expected: Option<(i64, &str)>| {
            let found = duration_us(&value);
            assert_eq!(found.map(|us| (us, duration_text(us))), expected.map(|(us, text)| (us, text.to_owned())), "{value}");
        };
        check(json!("1d"), Some((86_400_000_000, "1d")));
        check(json!("36h"), Some((129_600_000_000, "36h")));
        check(json!("30m"), Some((1_800_000_000, "30m")));
        check(json!("0s"), Some((0, "0s")));
        check(json!(1_500), Some((1_500, "1500us")));
        check(json!(2_000), Some((2_000, "2ms")));
        for wrong in
            [json!(-1), json!("1 d"), json!("d"), json!("1y"), json!(1.5), json!("-1d"), json!("9999999999999d"), json!(null)]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |body: &str, code: &str, field: Option<&str>| {
            let api_error = Definition::parse(body.as_bytes()).expect_err(body);
            assert_eq!(
                (api_error.code.to_string().as_str(), api_error.field.as_deref()),
                (code, field),
                "{body}: {}",
                api_error.message
            );
        };
        let with =
            |rest: &str| format!(r#"{{"steps": [{{"name": "a", "events": ["a"]}}, {{"name": "b", "events": ["b"]}}], {rest}}}"#);
        check("{", "bad_request", None);
        check("[]", "bad_request", None);
        check("{}", "bad_request", Some("steps"));
        check(r#"{"steps": []}"#, "bad_request", Some("steps"));
        check(r#"{"steps": [{"name": "a"}]}"#, "bad_request", Some("steps[0]"));
        check(r#"{"steps": [{"name": "", "events": ["a"]}]}"#, "bad_request", Some("steps[0].name"));
        check(r#"{"steps": [{"name": "a", "events": []}]}"#, "bad_request", Some("steps[0].events"));
        check(r#"{"steps": [{"name": "a", "events": [1]}]}"#, "bad_request", Some("steps[0].events"));
        check(r#"{"steps": [{"name": "a", "where": 1}]}"#, "bad_request", Some("steps[0].where"));
        check(
            r#"{"steps": [{"name": "a", "events": ["a"], "optional": true}]}"#,
            "unsupported_option",
            Some("steps[0].optional"),
        );
        check(r#"{"steps": [{"name": "a", "events": ["a"], "soon": true}]}"#, "unsupported_option", Some("steps[0].soon"));
        check(&with(r#""order": "backwards""#), "unsupported_option", Some("order"));
        check(&with(r#""unit": "session_id""#), "unsupported_option", Some("unit"));
        check(&with(r#""entry": "exposure""#), "bad_request", Some("experiment"));
        check(&with(r#""event_reuse": "twice""#), "unsupported_option", Some("event_reuse"));
        check(&with(r#""preset": "adobe""#), "unsupported_option", Some("preset"));
        check(&with(r#""allow_reentry": true"#), "unsupported_option", Some("allow_reentry"));
        check(&with(r#""order": "contiguous", "event_reuse": "allowed""#), "unsupported_option", Some("event_reuse"));
        check(&with(r#""order": "any", "exclude": [{"events": ["x"]}]"#), "unsupported_option", Some("exclude"));
        check(&with(r#""exclude": [{"events": ["x"], "after_step": 2}]"#), "bad_request", Some("exclude[0].before_step"));
        check(&with(r#""exclude": [{"events": ["x"], "after_step": 3}]"#), "bad_request", Some("exclude[0].after_step"));
        check(&with(r#""count": "totals", "order": "any""#), "unsupported_option", Some("count"));
        check(&with(r#""breakdown": {"by": ""}"#), "bad_request", Some("breakdown.by"));
        check(&with(r#""breakdown": {"by": "country", "attribution": "step:3"}"#), "bad_request", Some("breakdown.attribution"));
        check(&with(r#""breakdown": {"by": "country", "top": 0}"#), "bad_request", Some("breakdown.top"));
        check(&with(r#""hold_constant": ["log_offset"]"#), "bad_request", Some("hold_constant[0]"));
        check(&with(r#""output": ["steps", "units:reached:3"]"#), "unsupported_option", Some("output[1]"));
        check(&with(r#""output": ["trend:year"]"#), "unsupported_option", Some("output[0]"));
        check(&with(r#""window": "soon""#), "bad_request", Some("window"));
        check(&with(r#""window": "0s", "window_inclusive": false"#), "bad_request", Some("window"));
        check(&with(r#""from": "yesterday""#), "bad_request", Some("from"));
        check(&with(r#""from": "2026-03-02", "to": "2026-03-02""#), "bad_request", Some("to"));
        let steps = vec![r#"{"name": "a", "events": ["a"]}"#; 33].join(",");
        check(&format!(r#"{{"steps": [{steps}]}}"#), "bad_request", Some("steps"));
    }
}
