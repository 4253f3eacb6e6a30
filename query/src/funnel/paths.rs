//! `POST /v1/paths`: which events follow each other in sessions, from their beginning, from or to an event, or around the place where units
//! left a funnel.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::answer::left;
use super::definition::{Definition as Funnel, Matches};
use super::open::{Asked, Opened, open};
use super::parse::{choice, duration, duration_text, flag, name_of, object, time, unsupported};
use super::rows::{Row, Rows};
use super::select::Selection;
use crate::engine::{self, Engine};
use crate::http::error::ApiError;
use crate::source::property::Property;
use crate::source::snapshot::{Snapshot, time_text};

const DEPTH_DEFAULT: usize = 5;
const DEPTH_MAX: u64 = 20;
const TOP_DEFAULT: usize = 20;
const TOP_MAX: u64 = 1_000;
const SESSION_GAP_US: i64 = 30 * 60_000_000;

const DIRECTIONS: [(&str, bool); 2] = [("after", false), ("before", true)];

/// A question about paths, complete and checked, except for the SQL of its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Where paths begin, or end; none: with their session.
    anchor: Option<Anchor>,
    /// Paths lead to the anchor instead of from it.
    is_before: bool,
    /// Steps of a path, at most.
    depth: usize,
    /// Pairs of events that are shown of each step.
    top: usize,
    session_gap_us: i64,
    /// An event that follows an equal one is not counted again.
    collapses: bool,
    /// Events before this time are left out; microseconds since 1970.
    from: Option<i64>,
    /// Events at this time and after it are left out.
    to: Option<i64>,
}

/// Where paths begin, or end.
#[derive(Clone, Debug, PartialEq)]
enum Anchor {
    /// At the first such event of a session.
    Event(Matches),
    /// Where units that did not reach this step, counted from 0, left a funnel.
    DropOff(Box<Funnel>, usize),
}

impl Definition {
    /// Reads a request's body.
    /// # Errors
    /// [`ApiError`] that names the field, what was found and what is accepted.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut definition = Definition {
            anchor: None,
            is_before: false,
            depth: DEPTH_DEFAULT,
            top: TOP_DEFAULT,
            session_gap_us: SESSION_GAP_US,
            collapses: true,
            from: None,
            to: None,
        };
        for (name, value) in &object(body)? {
            definition.read(name, value)?;
        }
        if let (Some(from), Some(to)) = (definition.from, definition.to)
            && from >= to
        {
            return Err(ApiError::bad_request("`to` is not later than `from`").at("to"));
        }
        if definition.is_before && definition.anchor.is_none() {
            let message =
                "paths lead to something: {\"anchor\": {\"events\": [..]}} or {\"drop_off\": {\"funnel\": {..}, \"step\": 2}}";
            return Err(ApiError::bad_request(message).at("anchor"));
        }
        Ok(definition)
    }

    fn read(&mut self, name: &str, value: &Value) -> Result<(), ApiError> {
        let whole = |max: u64| {
            let found = value.as_u64().filter(|number| (1..=max).contains(number));
            found.map(|number| number as usize).ok_or_else(|| unsupported(name, value, &format!("1 to {max}")))
        };
        match name {
            "anchor" | "drop_off" if value.is_null() => {}
            "anchor" | "drop_off" if self.anchor.is_some() => {
                return Err(ApiError::bad_request("one of `anchor` and `drop_off` is accepted").at(name));
            }
            "anchor" => {
                let form = "{\"events\": [..]} or {\"where\": \"..\"} is accepted";
                let fields = value.as_object().ok_or_else(|| ApiError::bad_request(form).at(name))?;
                self.anchor = Some(Anchor::Event(Matches::parse(fields, name, form)?));
            }
            "drop_off" => {
                let form = "{\"funnel\": {..}, \"step\": 2} is accepted";
                let bad = || ApiError::bad_request(form).at(name);
                let (funnel, step) = value.get("funnel").zip(value.get("step")).ok_or_else(bad)?;
                let funnel = Funnel::parse(funnel.to_string().as_bytes()).map_err(|refusal| {
                    let field = refusal.field.clone().map(|field| format!(".{field}")).unwrap_or_default();
                    refusal.at(format!("drop_off.funnel{field}"))
                })?;
                let steps = funnel.steps.len() as u64;
                let step = step.as_u64().filter(|step| (2..=steps).contains(step));
                let message = format!("a step from 2 to {steps} is accepted: units that did not reach it");
                let step = step.ok_or_else(|| ApiError::bad_request(message).at("drop_off.step"))? as usize - 1;
                self.anchor = Some(Anchor::DropOff(Box::new(funnel), step));
            }
            "direction" => self.is_before = choice(name, value, &DIRECTIONS)?,
            "depth" => self.depth = whole(DEPTH_MAX)?,
            "top" => self.top = whole(TOP_MAX)?,
            "session_gap" => self.session_gap_us = duration(name, value)?,
            "collapse" => self.collapses = flag(name, value)?,
            "from" => self.from = time(name, value)?,
            "to" => self.to = time(name, value)?,
            _ => {
                let accepted = "anchor, drop_off, direction, depth, top, session_gap, collapse, from, to";
                return Err(ApiError::unsupported(format!("the field is not known here; accepted: {accepted}")).at(name));
            }
        }
        Ok(())
    }

    /// Returns whether something in it is an expression that the client wrote.
    pub fn has_conditions(&self) -> bool {
        match &self.anchor {
            None => false,
            Some(Anchor::Event(matches)) => matches!(matches, Matches::Where(_)),
            Some(Anchor::DropOff(funnel, _)) => funnel.has_conditions(),
        }
    }

    fn expanded(&self) -> Value {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        match &self.anchor {
            None => None,
            Some(Anchor::Event(matches)) => put("anchor", matches.expanded().into()),
            Some(Anchor::DropOff(funnel, step)) => put("drop_off", json!({"funnel": funnel.expanded(), "step": step + 1})),
        };
        put("direction", name_of(&DIRECTIONS, self.is_before).into());
        put("depth", self.depth.into());
        put("top", self.top.into());
        put("session_gap", duration_text(self.session_gap_us).into());
        put("collapse", self.collapses.into());
        for (name, bound) in [("from", self.from), ("to", self.to)] {
            if let Some(bound) = bound {
                put(name, time_text(bound).into());
            }
        }
        fields.into()
    }
}

/// How often one event followed another at each step; 0 stands for the end of a session.
type Edges = Vec<BTreeMap<(u32, u32), u64>>;

/// Answers one question.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub async fn answer(engine: &Engine, snapshot: Arc<Snapshot>, definition: Definition) -> Result<Value, ApiError> {
    let start = Instant::now();
    let (steps, left) = match &definition.anchor {
        None => (Vec::new(), None),
        Some(Anchor::Event(matches)) => (vec![("anchor".to_owned(), matches.clone())], None),
        Some(Anchor::DropOff(funnel, step)) => (Vec::new(), Some(left(engine, &snapshot, funnel, *step).await?)),
    };
    let selection = Selection {
        needs_all: true,
        from: definition.from,
        to: definition.to,
        value: Property::of("event"),
        ..Selection::default()
    };
    let session = Arc::new(engine.session().map_err(engine::api_error)?);
    let Opened { stream, read } = open(engine, &session, &snapshot, Asked { steps, ..Asked::default() }, selection).await?;
    let mut rows = Rows::new(&session.state().runtime_env().memory_pool);
    let is_wanted = |user: &[u8; 16]| left.as_ref().is_none_or(|left| left.contains_key(user));
    rows.read(stream, &read.selection, is_wanted).await.map_err(engine::api_error)?;

    let (mut edges, mut sessions): (Edges, u64) = (vec![BTreeMap::new(); definition.depth], 0);
    for (number, own) in rows.rows.chunk_by(|a, b| a.unit == b.unit).enumerate() {
        let at = left.as_ref().and_then(|left: &HashMap<[u8; 16], i64>| left.get(&rows.users[own[0].unit as usize]).copied());
        for session in own.chunk_by(|a, b| b.time.saturating_sub(a.time) <= definition.session_gap_us) {
            sessions += u64::from(add_session(&definition, session, &rows, at, &mut edges));
        }
        if number % 4_096 == 0 {
            rows.hold(edges.iter().map(BTreeMap::len).sum::<usize>() * 48).map_err(engine::api_error)?;
            tokio::task::yield_now().await;
        }
    }
    let steps: Vec<Value> = edges.iter().enumerate().map(|(depth, edges)| say(&definition, depth, edges, &rows)).collect();
    Ok(json!({
        "definition": definition.expanded(),
        "as_of": snapshot.as_of(),
        "sessions": sessions,
        "steps": steps,
        "warnings": read.warnings(&rows),
        "elapsed_ms": start.elapsed().as_millis() as u64,
    }))
}

/// Adds the path of one session, and returns whether it has one. `left` is when its unit left the funnel.
fn add_session(definition: &Definition, session: &[Row], rows: &Rows, left: Option<i64>, edges: &mut Edges) -> bool {
    let place = match &definition.anchor {
        None => Some(0),
        Some(Anchor::Event(_)) => session.iter().position(|row| row.mask & 1 != 0),
        Some(Anchor::DropOff(..)) => left.and_then(|left| {
            session.iter().rposition(|row| row.time <= left).filter(|_| session.last().is_some_and(|last| left <= last.time))
        }),
    };
    let Some(place) = place else {
        return false;
    };
    let name = |row: &Row| rows.more[row.more as usize].value;
    let mut names: Vec<u32> = match definition.is_before {
        true => session[..=place].iter().rev().map(name).collect(),
        false => session[place..].iter().map(name).collect(),
    };
    if definition.collapses {
        names.dedup();
    }
    // The end of the session follows its last event.
    names.push(0);
    for (step, pair) in edges.iter_mut().zip(names.windows(2)) {
        let pair = if definition.is_before { (pair[1], pair[0]) } else { (pair[0], pair[1]) };
        *step.entry(pair).or_default() += 1;
    }
    true
}

/// Writes the most frequent pairs of one step; null is the beginning or the end of a session.
fn say(definition: &Definition, depth: usize, edges: &BTreeMap<(u32, u32), u64>, rows: &Rows) -> Value {
    let text = |number: u32| rows.values.text(number);
    let mut pairs: Vec<(u64, Option<&str>, Option<&str>)> =
        edges.iter().map(|((from, to), count)| (*count, text(*from), text(*to))).collect();
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let rest = pairs.split_off(pairs.len().min(definition.top));
    let shown: Vec<Value> = pairs.iter().map(|(count, from, to)| json!({"from": from, "to": to, "sessions": count})).collect();
    let other: u64 = rest.iter().map(|(count, ..)| count).sum();
    json!({"step": depth + 1, "pairs": shown, "other": {"pairs": rest.len(), "sessions": other}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_what_is_wrong_is_named() {
        let funnel = json!({"steps": [{"name": "a", "events": ["a"]}, {"name": "b", "events": ["b"]}]});
        let whole = json!({"drop_off": {"funnel": funnel, "step": 2}, "direction": "before", "depth": 3, "top": 5, "session_gap": "10m",
                           "collapse": false, "from": "2026-03-01", "to": "2026-04-01"});
        let definition = Definition::parse(whole.to_string().as_bytes()).expect("a definition");
        assert_eq!(Definition::parse(definition.expanded().to_string().as_bytes()), Ok(definition));
        let check = |body: Value, field: &str| {
            let refusal = Definition::parse(body.to_string().as_bytes()).expect_err("refused");
            assert_eq!(refusal.field.as_deref(), Some(field), "{body}");
        };
        check(json!({"direction": "before"}), "anchor");
        check(json!({"direction": "up"}), "direction");
        check(json!({"depth": 21}), "depth");
        check(json!({"anchor": {"events": []}}), "anchor.events");
        check(json!({"drop_off": {"funnel": funnel, "step": 1}}), "drop_off.step");
        check(json!({"drop_off": {"funnel": {"steps": [{"name": "a"}]}, "step": 2}}), "drop_off.funnel.steps[0]");
        check(json!({"anchor": {"events": ["a"]}, "drop_off": {"funnel": funnel, "step": 2}}), "drop_off");
        check(json!({"window": "1d"}), "window");
    }
}
