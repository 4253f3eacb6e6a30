//! Metric definitions of a project: which events of a user count, what they come to, and when.

use std::fmt;

use events::Kind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::trigger::Trigger;
use crate::versions::Versioned;
use crate::window::{Length, Span, WINDOW_MINUTES_MAX, Window};
use crate::{CatalogueError, check};

/// The value of an event that is an amount of money.
pub const AMOUNT: &str = "value";
/// Names of events that one definition lists, at most.
const EVENTS_MAX: usize = 100;
/// Steps after the first one: each is read by itself.
const THEN_MAX: usize = 9;
/// What is taken off beside a metric's own history, at most.
const COVARIATES_MAX: usize = 8;
/// More days or events than anybody waits for.
const AT_LEAST_MAX: u32 = 1_000_000;

/// What a metric measures of each user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Events of this kind count.
    #[serde(with = "kind_text")]
    pub kind: Kind,
    /// Those of these names; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Those for which this condition holds, in SQL over the columns of one event.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// A column or property of the events: the number that is added up or compared, or what is told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What a user's events come to.
    pub per_user: PerUser,
    /// With `exists`: what has to follow, one after the other. A user has it who did all of it in this order, other events in between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Trigger>,
    /// Other events, or the same counted otherwise: what all users come to is divided by what they come to of these. `None`: by the number
    /// of users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Box<Definition>>,
    /// Which quantile of what users come to it is; `None`: their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<Quantile>,
    /// When events count; `None`: from the first exposure on for as long as the experiment says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// What is taken off of what was known of users before their exposure, beside what they did before of the same: `metrics.NAME` of the
    /// same experiment, `has_history`, or a column or property of the first exposure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub covariates: Vec<String>,
}

/// What the events of one user come to. Who has none comes to 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerUser {
    /// How many there are.
    Count,
    /// The sum of their values.
    Sum,
    /// The least of their values.
    Min,
    /// The greatest of their values.
    Max,
    /// The value of the earliest.
    First,
    /// The value of the latest.
    Last,
    /// How many different values they have.
    Distinct,
    /// On how many days there are any, in UTC.
    DistinctDays,
    /// Whether there is one.
    Exists,
    /// Whether there are so many.
    AtLeast(u32),
    /// Each value by itself, of a quantile: that of events instead of users.
    Each,
}

impl PerUser {
    /// Returns whether it is computed of values that are numbers.
    pub fn needs_number(self) -> bool {
        matches!(self, PerUser::Sum | PerUser::Min | PerUser::Max | PerUser::First | PerUser::Last | PerUser::Each)
    }

    /// Returns whether a user has it or not.
    pub fn is_share(self) -> bool {
        matches!(self, PerUser::Exists | PerUser::AtLeast(_))
    }
}

impl fmt::Display for PerUser {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            PerUser::Count => "count",
            PerUser::Sum => "sum",
            PerUser::Min => "min",
            PerUser::Max => "max",
            PerUser::First => "first",
            PerUser::Last => "last",
            PerUser::Distinct => "distinct",
            PerUser::DistinctDays => "distinct_days",
            PerUser::Exists => "exists",
            PerUser::AtLeast(least) => return write!(out, "at_least {least}"),
            PerUser::Each => "each",
        })
    }
}

/// A quantile with up to three decimals, written as a share of users: 0.5 is the median.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Quantile(u16);

impl Quantile {
    /// Returns it in thousandths, 1 to 999.
    pub fn thousandths(self) -> u16 {
        self.0
    }
}

impl TryFrom<f64> for Quantile {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        let thousandths = (share * 1_000.0).round();
        if (1.0..=999.0).contains(&thousandths) && (share * 1_000.0 - thousandths).abs() < 1e-6 {
            Ok(Quantile(thousandths as u16))
        } else {
            Err(format!("found the quantile {share}; a share above 0 and below 1 with at most 3 decimals is accepted"))
        }
    }
}

impl From<Quantile> for f64 {
    fn from(quantile: Quantile) -> f64 {
        f64::from(quantile.0) / 1_000.0
    }
}

pub(crate) mod kind_text {
    use super::{Deserialize, Deserializer, Kind, Serializer};
    use serde::de::Error as _;

    pub(crate) fn serialize<S: Serializer>(kind: &Kind, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(kind.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(input)?;
        let known = || Kind::ALL.map(Kind::as_str).join(", ");
        let found = Kind::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| D::Error::custom(format!("found the kind {text:?}; accepted: {}", known())))
    }
}

impl Definition {
    /// Reads one.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let definition: Definition =
            serde_json::from_str(text).map_err(|error| CatalogueError::invalid("definition", error.to_string()))?;
        definition.check()?;
        Ok(definition)
    }

    /// Checks every value but the condition, which only those can judge who compute it.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn check(&self) -> Result<(), CatalogueError> {
        check::description("description", self.description.as_deref())?;
        for (place, part) in self.parts() {
            part.check_events(place)?;
        }
        self.check_then()?;
        if let Some(over) = &self.over {
            if over.description.is_some()
                || over.over.is_some()
                || over.quantile.is_some()
                || over.window.is_some()
                || !over.then.is_empty()
                || !over.covariates.is_empty()
            {
                let message = "kind, events, where, value and per_user are accepted in it; its window is that of the metric";
                return Err(CatalogueError::invalid("over", message.to_owned()));
            }
            if self.quantile.is_some() {
                let message = "found beside over; what is divided by other events has no quantile";
                return Err(CatalogueError::invalid("quantile", message.to_owned()));
            }
        }
        if self.quantile.is_none() && self.parts().any(|(_, part)| part.per_user == PerUser::Each) {
            let message = "found each without quantile; each value by itself has a quantile only";
            return Err(CatalogueError::invalid("per_user", message.to_owned()));
        }
        if self.quantile.is_some() && self.per_user.is_share() {
            let message = format!("found with {}, which a user has or not", self.per_user);
            return Err(CatalogueError::invalid("quantile", message));
        }
        self.check_covariates()?;
        if let Some(Window { delay, length: Length::Span(length) }) = self.window {
            if length.0 <= 0 {
                return Err(CatalogueError::invalid("window.length", format!("found {length}; a time above 0 is accepted")));
            }
            if delay.0 + length.0 > WINDOW_MINUTES_MAX {
                let message = format!("found {length} from {delay} on; up to 3650d after the first exposure are accepted");
                return Err(CatalogueError::invalid("window", message));
            }
        }
        Ok(())
    }

    fn check_covariates(&self) -> Result<(), CatalogueError> {
        let invalid = |place: String, message: String| Err(CatalogueError::invalid(place, message));
        if self.covariates.len() > COVARIATES_MAX {
            let message = format!("found {}; at most {COVARIATES_MAX} are accepted", self.covariates.len());
            return invalid("covariates".to_owned(), message);
        }
        if self.quantile.is_some() && !self.covariates.is_empty() {
            return invalid("covariates".to_owned(), "found with quantile, which is not adjusted".to_owned());
        }
        for (index, name) in self.covariates.iter().enumerate() {
            let place = format!("covariates[{index}]");
            check::something(&place, name)?;
            if self.covariates[..index].contains(name) {
                return invalid(place, format!("found {name:?} twice; once is accepted"));
            }
        }
        Ok(())
    }

    fn check_then(&self) -> Result<(), CatalogueError> {
        if self.then.is_empty() {
            return Ok(());
        }
        if self.per_user != PerUser::Exists || self.over.is_some() {
            let found = if self.over.is_some() { "over".to_owned() } else { self.per_user.to_string() };
            let message = format!("found with {found}; what has to follow is accepted with exists, which a user has or not");
            return Err(CatalogueError::invalid("then", message));
        }
        if self.then.len() > THEN_MAX {
            return Err(CatalogueError::invalid("then", format!("found {}; at most {THEN_MAX} are accepted", self.then.len())));
        }
        for (index, step) in self.then.iter().enumerate() {
            step.definition().check_events(&format!("then[{index}]."))?;
        }
        Ok(())
    }

    /// Returns whether an event may be one of two successive steps, of which each needs one of its own.
    pub fn may_be_both(&self, next: usize) -> bool {
        let first = (self.kind, &self.events);
        let step = |place: usize| self.then.get(place).map(|step| (step.kind, &step.events));
        let former = next.checked_sub(1).map_or(Some(first), step);
        former.zip(step(next)).is_some_and(|((one, names), (other, others))| {
            one == other && (names.is_empty() || others.is_empty() || names.iter().any(|name| others.contains(name)))
        })
    }

    /// Checks which events count and what they come to; `place` is what the names of its fields begin with.
    fn check_events(&self, place: &str) -> Result<(), CatalogueError> {
        let invalid = |field: &str, message: String| Err(CatalogueError::invalid(format!("{place}{field}"), message));
        if self.events.len() > EVENTS_MAX {
            return invalid("events", format!("found {}; at most {EVENTS_MAX} are accepted", self.events.len()));
        }
        for (index, name) in self.events.iter().enumerate() {
            check::name(&format!("{place}events[{index}]"), name)?;
        }
        for (field, text) in [("where", &self.condition), ("value", &self.value)] {
            if let Some(text) = text {
                check::something(&format!("{place}{field}"), text)?;
            }
        }
        let needs_value = self.per_user.needs_number() || self.per_user == PerUser::Distinct;
        match (&self.value, needs_value) {
            (None, true) => {
                return invalid("value", format!("{} needs one: a column or property, such as {AMOUNT}", self.per_user));
            }
            (Some(value), false) => {
                let message = format!("found {value:?} with {}, which counts events whatever they hold", self.per_user);
                return invalid("value", message);
            }
            _ => {}
        }
        match self.per_user {
            PerUser::AtLeast(least) if !(1..=AT_LEAST_MAX).contains(&least) => {
                invalid("per_user.at_least", format!("found {least}; 1 to {AT_LEAST_MAX} are accepted"))
            }
            _ => Ok(()),
        }
    }

    /// Returns itself and what it is over, each with what the names of its fields begin with.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, &Definition)> {
        std::iter::once(("", self)).chain(self.over.as_deref().map(|over| ("over.", over)))
    }

    /// Returns whether what it is over are its own events, counted otherwise: then those without a value are in neither.
    pub fn is_over_own_events(&self) -> bool {
        let is_same =
            |over: &Definition| (over.kind, &over.events, &over.condition) == (self.kind, &self.events, &self.condition);
        self.over.as_deref().is_some_and(|over| over.value.is_none() && is_same(over))
    }

    /// Returns when events count after the first exposure, in microseconds, half open. `days` is the experiment's window.
    pub fn window_us(&self, days: i32) -> (i64, i64) {
        let own = Window { delay: Span(0), length: Length::Span(Span(i64::from(days) * 24 * 60)) };
        self.window.unwrap_or(own).ends_us()
    }

    /// Returns whether what users come to grows as long as there are events.
    pub fn is_open(&self) -> bool {
        self.window.is_some_and(|window| window.length == Length::Open)
    }

    /// Returns whether the values of its events are money, what it is over left aside.
    pub fn has_amounts(&self) -> bool {
        self.per_user.needs_number() && self.value.as_deref() == Some(AMOUNT)
    }

    /// Returns whether what it comes to is money: money divided by money is none.
    pub fn is_money(&self) -> bool {
        self.has_amounts() && !self.over.as_deref().is_some_and(Definition::has_amounts)
    }
}

impl Versioned for Definition {
    const NOUN: &'static str = "metric definition";
    const TABLE: &'static str = "metric_definitions";
    const ACTION: &'static str = "metric.define";
    const KNOWN: &'static [&'static str] = &["the definitions that its `weir admin metric define` takes"];

    fn check(&self) -> Result<(), CatalogueError> {
        Definition::check(self)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_are_read_and_written_in_one_form() {
        let text = r#"{"kind":"engagement","events":["watch"],"where":"device_type = 'mobile'","value":"minutes","per_user":"sum","window":{"delay":"-24h","length":"72h"}}"#;
        let found = Definition::parse(text).expect("accepted");
        assert_eq!(found.window.map(Window::ends_us), Some((-86_400_000_000, 2 * 86_400_000_000)));
        assert_eq!(serde_json::to_string(&found).expect("is JSON"), text.replace("24h", "1d").replace("72h", "3d"));
        let text = r#"{"kind":"conversion","per_user":{"at_least":3}}"#;
        let found = Definition::parse(text).expect("accepted");
        assert_eq!((found.per_user, found.window_us(2)), (PerUser::AtLeast(3), (0, 2 * 86_400_000_000)));
        assert_eq!(serde_json::to_string(&found).expect("is JSON"), text);
        let text = r#"{"kind":"conversion","value":"value","per_user":"sum","over":{"kind":"engagement","events":["visit"],"per_user":"count"}}"#;
        let found = Definition::parse(text).expect("accepted");
        assert_eq!((found.is_over_own_events(), found.is_money()), (false, true));
        assert_eq!(serde_json::to_string(&found).expect("is JSON"), text);
        let text = r#"{"kind":"engagement","value":"ms","per_user":"max","quantile":0.95}"#;
        let found = Definition::parse(text).expect("accepted");
        assert_eq!(found.quantile.map(Quantile::thousandths), Some(950));
        assert_eq!(serde_json::to_string(&found).expect("is JSON"), text);
    }

    /// Orders over orders leave out the same ones; over another name, condition or value they are other events.
    #[test]
    fn what_a_metric_is_over_may_be_its_own_events() {
        let check = |over: serde_json::Value, (is_own, is_money): (bool, bool)| {
            let text = json!({"kind": "conversion", "events": ["order"], "value": "value", "per_user": "sum", "over": over});
            let found = Definition::parse(&text.to_string()).expect("accepted");
            assert_eq!((found.is_over_own_events(), found.is_money()), (is_own, is_money), "{text}");
        };
        check(json!({"kind": "conversion", "events": ["order"], "per_user": "count"}), (true, true));
        check(json!({"kind": "conversion", "events": ["order"], "per_user": "exists"}), (true, true));
        check(json!({"kind": "conversion", "per_user": "count"}), (false, true));
        check(json!({"kind": "conversion", "events": ["order"], "where": "is_bot", "per_user": "count"}), (false, true));
        check(json!({"kind": "conversion", "events": ["order"], "per_user": "sum", "value": "items"}), (false, true));
        check(json!({"kind": "conversion", "events": ["order"], "per_user": "max", "value": "value"}), (false, false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: serde_json::Value, expected: &str| {
            let mut definition = json!({"kind": "engagement", "per_user": "count"});
            let (fields, changes) = (definition.as_object_mut().expect("fields"), change.as_object().expect("fields").clone());
            fields.extend(changes);
            let found = Definition::parse(&definition.to_string()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{definition}: {found}");
        };
        check(json!({}), "");
        check(json!({"events": ["a", "b"], "where": "country = 'DE'"}), "");
        check(
            json!({"kind": "click"}),
            r#"found the kind "click"; accepted: impression, conversion, campaign_event, engagement, identity"#,
        );
        check(json!({"per_user": "median"}), "unknown variant `median`, expected one of `count`, `sum`");
        check(json!({"name": "x"}), "unknown field `name`");
        check(json!({"events": [""]}), r#"events[0]: found "", which is empty"#);
        check(json!({"where": " "}), r#"where: found " ", which is empty"#);
        check(json!({"value": "price"}), r#"value: found "price" with count, which counts events whatever they hold"#);
        for per_user in ["sum", "min", "max", "first", "last", "distinct"] {
            check(json!({"per_user": per_user}), &format!("value: {per_user} needs one: a column or property, such as value"));
            check(json!({"per_user": per_user, "value": "price"}), "");
        }
        check(json!({"per_user": {"at_least": 0}}), "per_user.at_least: found 0; 1 to 1000000 are accepted");
        for (length, expected) in [
            ("3d", ""),
            ("0h", "window.length: found 0m; a time above 0 is accepted"),
            ("-2h", "window.length: found -2h; a time above 0 is accepted"),
            ("3 days", r#"found "3 days"; a number of minutes, hours, days or weeks is accepted"#),
            ("d", r#"found "d"; a number of minutes"#),
            ("3651d", r#"found "3651d"; at most 3650d are accepted"#),
            ("9223372036854775807w", "at most 3650d are accepted"),
        ] {
            check(json!({"window": {"length": length}}), expected);
        }
        check(json!({"window": {"delay": "-1d", "length": "open"}}), "");
        check(json!({"window": {"length": "opened"}}), "such as 90m, 72h, 3d or 2w, or open");
        check(json!({"per_user": "each", "value": "ms"}), "per_user: found each without quantile");
        check(json!({"per_user": "each", "value": "ms", "quantile": 0.5}), "");
        check(json!({"covariates": ["country", "metrics.orders", "has_history"]}), "");
        check(json!({"covariates": ["country", "country"]}), r#"covariates[1]: found "country" twice"#);
        check(json!({"covariates": ["a"], "per_user": "max", "value": "ms", "quantile": 0.5}), "covariates: found with quantile");
        check(
            json!({"covariates": ["a", "b", "c", "d", "e", "f", "g", "h", "i"]}),
            "covariates: found 9; at most 8 are accepted",
        );
        check(json!({"window": {"delay": "3650d", "length": "1m"}}), "window: found 1m from 3650d on; up to 3650d");
        check(json!({"over": {"kind": "impression", "per_user": "count"}}), "");
        check(json!({"over": {"kind": "impression", "per_user": "sum"}}), "over.value: sum needs one");
        check(json!({"over": {"kind": "impression", "events": [" "], "per_user": "count"}}), "over.events[0]: ");
        check(json!({"over": {"kind": "impression", "per_user": {"at_least": 0}}}), "over.per_user.at_least: found 0");
        check(
            json!({"over": {"kind": "impression", "per_user": "count", "window": {"length": "1d"}}}),
            "over: kind, events, where, value and per_user are accepted in it",
        );
        let step = json!({"kind": "conversion", "events": ["order"]});
        check(json!({"per_user": "exists", "then": [step, step]}), "");
        check(json!({"then": [step]}), "then: found with count; what has to follow is accepted with exists");
        check(json!({"per_user": "exists", "then": [{"kind": "conversion", "events": [""]}]}), "then[0].events[0]: ");
        check(json!({"per_user": "exists", "then": [{"kind": "conversion", "value": "x"}]}), "unknown field `value`");
        check(json!({"per_user": "exists", "then": vec![step; 10]}), "then: found 10; at most 9 are accepted");
        check(json!({"quantile": 0.5}), "");
        check(json!({"quantile": 0.5, "over": {"kind": "impression", "per_user": "count"}}), "quantile: found beside over");
        check(json!({"quantile": 0.5, "per_user": "exists"}), "quantile: found with exists, which a user has or not");
        for quantile in ["0", "1", "0.0004", "0.12345", "-0.5", "1e300"] {
            let quantile: serde_json::Value = serde_json::from_str(quantile).expect("a number");
            check(json!({"quantile": quantile}), "a share above 0 and below 1 with at most 3 decimals is accepted");
        }
    }

    #[test]
    fn spans_are_said_in_the_largest_unit_that_fits() {
        for (text, expected) in [("90m", "90m"), ("120m", "2h"), ("48h", "2d"), ("2w", "14d"), ("-36h", "-36h"), ("0d", "0m")] {
            assert_eq!(text.parse::<Span>().map(|span| span.to_string()).as_deref(), Ok(expected));
        }
    }
}
