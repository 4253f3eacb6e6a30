//! What an answer found, as far as two of them are compared: what is said, and the numbers that it rests on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// A place in an answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Whether there is an answer.
    Status,
    /// What the numbers advise.
    Decision,
    /// The level of a check of health.
    Check(String),
    /// Users of a variant.
    Users(String),
    /// The verdict of a goal about a variant.
    Verdict(Subject),
    /// What a guardrail shows of a variant.
    Guardrail(Subject),
    /// Whether the planned information is there.
    Plan(Subject),
    /// Whether a condition of the experiment's own holds.
    Rule(String),
    /// A variant's mean.
    Mean(Subject),
    /// A variant's sum.
    Sum(Subject),
}

/// A metric of a variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subject {
    pub(super) metric: String,
    pub(super) variant: String,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |out: &mut fmt::Formatter<'_>, subject: &Subject, what: &str| {
            write!(out, "metrics[{}].{}.{what}", subject.metric, subject.variant)
        };
        match self {
            Place::Status => write!(out, "status"),
            Place::Decision => write!(out, "decision"),
            Place::Check(id) => write!(out, "health.{id}"),
            Place::Users(variant) => write!(out, "users.{variant}"),
            Place::Verdict(subject) => of(out, subject, "verdict"),
            Place::Guardrail(subject) => of(out, subject, "guardrail"),
            Place::Plan(subject) => of(out, subject, "plan"),
            Place::Rule(name) => write!(out, "rules[{name}]"),
            Place::Mean(subject) => of(out, subject, "mean"),
            Place::Sum(subject) => of(out, subject, "sum"),
        }
    }
}

/// What is otherwise than it was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Change {
    /// Where.
    pub(super) at: String,
    /// What was found before; null if nothing was.
    pub(super) before: Value,
    /// What is found now.
    pub(super) now: Value,
}

/// What an answer found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Findings {
    /// Texts where something is said, numbers where not.
    found: BTreeMap<Place, Value>,
    /// Each comparison as a sentence.
    sentences: BTreeMap<Subject, String>,
    /// What led to the decision.
    reason: String,
    /// Of what each condition holds.
    rules: BTreeMap<String, String>,
    /// The metrics that decide.
    primary: BTreeSet<String>,
}

/// Checks that speak of now whatever an answer is as of.
const OF_NOW: [&str; 2] = ["unknown_variant", "over_active"];
/// Checks that do not depend on which metrics are asked for.
const OF_HOURS: [&str; 2] = ["srm", "freshness"];
/// A condition holds.
pub(super) const MET: &str = "met";
/// The planned information is there.
pub(super) const REACHED: &str = "reached";

impl Findings {
    /// Takes them out of an answer about an experiment.
    pub(super) fn of(answer: &Value) -> Self {
        let mut found = Findings::default();
        let list = |value: &Value, member: &str| value[member].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        found.put(Place::Status, &answer["status"]);
        found.put(Place::Decision, &answer["decision"]["status"]);
        // The last rule of those that led there.
        found.reason = list(&answer["decision"], "why").last().map(|why| text(&why["fact"])).unwrap_or_default();
        for check in list(&answer["health"], "checks") {
            let id = text(&check["id"]);
            if !OF_NOW.contains(&id.as_str()) {
                found.put(Place::Check(id), &check["level"]);
            }
        }
        let mut names = BTreeMap::new();
        for variant in list(answer, "variants") {
            names.insert(text(&variant["id"]), text(&variant["name"]));
            found.put(Place::Users(text(&variant["name"])), &variant["users"]);
        }
        for metric in list(answer, "metrics") {
            let subject = |of: &Value| {
                let variant = names.get(of["variant_id"].as_str()?)?.clone();
                Some(Subject { metric: text(&metric["id"]), variant })
            };
            for arm in list(&metric, "arms") {
                let Some(subject) = subject(&arm) else { continue };
                found.put(Place::Mean(subject.clone()), &arm["mean"]);
                found.put(Place::Sum(subject), &arm["sum"]);
            }
            let is_guardrail = metric["role"] == "guardrail";
            for comparison in list(&metric, "comparisons") {
                let Some(subject) = subject(&comparison) else { continue };
                if is_guardrail {
                    found.put(Place::Guardrail(subject.clone()), &comparison["guardrail"]["state"]);
                } else {
                    found.put(Place::Verdict(subject.clone()), &comparison["verdict"]);
                }
                if metric["role"] == "primary" {
                    found.primary.insert(subject.metric.clone());
                    let part = comparison["sequential"]["information_fraction"].as_f64();
                    let state = part.map(|part| if part >= 1.0 { REACHED } else { "before" });
                    found.put(Place::Plan(subject.clone()), &state.map_or(Value::Null, Value::from));
                }
                found.sentences.insert(subject, text(&comparison["plain"]));
            }
        }
        for rule in list(answer, "rules") {
            let met_by = list(&rule, "met_by");
            let name = |id: &Value| id.as_str().and_then(|id| names.get(id)).cloned().unwrap_or_default();
            let of = met_by.iter().map(|met| format!("{} of {}", text(&met["metric"]), name(&met["variant_id"])));
            found.rules.insert(text(&rule["name"]), of.collect::<Vec<_>>().join(", "));
            found.put(Place::Rule(text(&rule["name"])), &if met_by.is_empty() { "not met" } else { MET }.into());
        }
        found
    }

    /// Returns whether any guardrail is harmed.
    pub(super) fn has_harm(&self) -> bool {
        self.found.iter().any(|(place, value)| matches!(place, Place::Guardrail(_)) && value == "harmed")
    }

    /// Returns of what a condition holds.
    pub(super) fn met_by(&self, rule: &str) -> &str {
        self.rules.get(rule).map_or("", String::as_str)
    }

    fn put(&mut self, place: Place, value: &Value) {
        if !value.is_null() {
            self.found.insert(place, value.clone());
        }
    }

    /// Returns those that an hour is looked at for: guardrails, and what concerns all metrics alike. The rest speaks of all metrics together.
    pub(super) fn of_hour(mut self) -> Self {
        self.found.retain(|place, _| match place {
            Place::Guardrail(_) => true,
            Place::Check(id) => OF_HOURS.contains(&id.as_str()),
            _ => false,
        });
        self
    }

    /// Returns what is said at all places where something is.
    pub(super) fn said(&self) -> impl Iterator<Item = (&Place, &str)> {
        self.found.iter().filter_map(|(place, value)| Some((place, value.as_str()?))).filter(|(place, _)| !is_number(place))
    }

    /// Returns what is said at a place.
    pub(super) fn at(&self, place: &Place) -> Option<&str> {
        self.found.get(place).and_then(Value::as_str)
    }

    /// Returns the sentence of a comparison.
    pub(super) fn sentence(&self, subject: &Subject) -> &str {
        self.sentences.get(subject).map_or("", String::as_str)
    }

    /// Returns whether a metric is one of those that decide.
    pub(super) fn is_primary(&self, subject: &Subject) -> bool {
        self.primary.contains(&subject.metric)
    }

    /// Returns what led to the decision.
    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    /// Returns what is otherwise in newer findings.
    pub(super) fn changes_to(&self, newer: &Findings) -> Vec<Change> {
        let places = self.found.keys().chain(newer.found.keys().filter(|place| !self.found.contains_key(place)));
        let change = |place: &Place| {
            let of = |findings: &Findings| findings.found.get(place).cloned().unwrap_or(Value::Null);
            let (before, now) = (of(self), of(newer));
            (before != now).then(|| Change { at: place.to_string(), before, now })
        };
        places.filter_map(change).collect()
    }

    /// Returns whether newer findings say something else about what both speak of.
    pub(super) fn says_something_else_than(&self, newer: &Findings) -> bool {
        newer.said().any(|(place, now)| self.at(place).is_some_and(|before| before != now))
    }
}

/// Sums are texts, so that no digit is lost.
fn is_number(place: &Place) -> bool {
    matches!(place, Place::Mean(_) | Place::Sum(_) | Place::Users(_))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// An answer about a goal and a guardrail of one variant.
    pub(crate) fn answer(verdict: &str, state: &str, srm: &str, users: u64) -> Value {
        json!({
            "status": "ok",
            "decision": {"status": if verdict == "won" { "ship-now" } else { "continue" }, "why": [{"fact": "so it is"}]},
            "health": {"checks": [{"id": "srm", "level": srm}, {"id": "over_active", "level": "ok"}]},
            "variants": [{"id": "1", "name": "control", "users": users}, {"id": "2", "name": "b", "users": users}],
            "metrics": [
                {"id": "rate", "role": "primary", "arms": [{"variant_id": "1", "mean": 0.1}, {"variant_id": "2", "mean": 0.2, "sum": "3.00"}],
                 "comparisons": [{"variant_id": "2", "verdict": verdict, "plain": format!("b has {verdict}."),
                                  "sequential": {"information_fraction": users as f64 / 100.0}}]},
                {"id": "errors", "role": "guardrail", "arms": [],
                 "comparisons": [{"variant_id": "2", "verdict": "lost", "guardrail": {"state": state}, "plain": "more errors."}]},
            ],
        })
    }

    #[test]
    fn what_is_said_and_what_it_rests_on_are_compared() {
        let (one, two) =
            (Findings::of(&answer("inconclusive", "safe", "ok", 50)), Findings::of(&answer("won", "safe", "warn", 51)));
        let changed: Vec<String> =
            one.changes_to(&two).iter().map(|change| format!("{} {} {}", change.at, change.before, change.now)).collect();
        assert_eq!(
            changed,
            [
                r#"decision "continue" "ship-now""#,
                r#"health.srm "ok" "warn""#,
                "users.b 50 51",
                "users.control 50 51",
                r#"metrics[rate].b.verdict "inconclusive" "won""#
            ]
        );
        assert!(one.changes_to(&one).is_empty() && one.says_something_else_than(&two));
        let numbers = Findings::of(&answer("won", "safe", "warn", 52));
        assert!(!two.says_something_else_than(&numbers) && !two.changes_to(&numbers).is_empty());
        let subject = Subject { metric: "rate".to_owned(), variant: "b".to_owned() };
        assert_eq!(two.sentence(&subject), "b has won.");
        assert_eq!(one.changes_to(&Findings::default()).first().map(|change| change.now.clone()), Some(Value::Null));
    }
}
