//! Exposure definitions of a project: which events say that a user saw a variant of an experiment, where these are no impressions that name
//! both.
//!
//! Whether an event is an exposure is a pure function of the event and the definition ([`Exposures::by`]). It is asked of events that
//! are about to be stored and of those that are stored, whose properties Postgres has normalised. So a property is compared as a text that
//! is the same before and after: its own text, `true` or `false`, or a whole number of up to 15 digits ([`text_of`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use events::Kind;
use events::unlinked::SIGNALS;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::definitions::kind_text;
use crate::versions::Versioned;
use crate::{CatalogueError, check};

/// Sources that one definition lists, at most: events of each kind are looked through for all.
const SOURCES_MAX: usize = 10;
/// Names of events, conditions, or accepted values that one source lists, at most.
const LISTED_MAX: usize = 100;
/// Stands for the name of the experiment, in names of properties and in their values.
pub const PLACEHOLDER: &str = "{experiment}";

/// What exposes users to an experiment: any event of one of these sources. Several experiments may refer to one definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposureDefinition {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An event is an exposure to the variant that the first of them gives.
    pub any_of: Vec<ExposureSource>,
}

/// Events that expose users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposureSource {
    /// Events of this kind.
    #[serde(with = "kind_text")]
    pub kind: Kind,
    /// Those of these names. Impressions have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// Those whose properties of these names each have one of the values.
    #[serde(default, rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, Accepted>,
    /// Which variant; `None`: the one that the event names, if it names this experiment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<VariantFrom>,
}

/// Where the variant of an exposure is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VariantFrom {
    /// A property has its name.
    Property(String),
    /// It is this one.
    Constant(String),
}

/// Values of a property, as texts: one, or any of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted(pub Vec<String>);

impl Serialize for Accepted {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => out.serialize_str(one),
            several => several.serialize(out),
        }
    }
}

impl<'de> Deserialize<'de> for Accepted {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a text, a whole number, true or false, or a list of these")]
        enum Written {
            One(Scalar),
            Several(Vec<Scalar>),
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Scalar {
            Text(String),
            Whole(i64),
            Truth(bool),
        }
        let text = |scalar| match scalar {
            Scalar::Text(text) => Ok(text),
            Scalar::Whole(number) => {
                let refused =
                    || D::Error::custom(format!("found {number}; a whole number of up to {DIGITS_MAX} digits is compared"));
                whole(&number.to_string()).ok_or_else(refused)
            }
            Scalar::Truth(truth) => Ok(truth.to_string()),
        };
        Ok(Accepted(match Written::deserialize(input)? {
            Written::One(one) => vec![text(one)?],
            Written::Several(several) => several.into_iter().map(text).collect::<Result<_, _>>()?,
        }))
    }
}

impl ExposureDefinition {
    /// Reads one.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn parse(text: &str) -> Result<Self, CatalogueError> {
        let definition: ExposureDefinition =
            serde_json::from_str(text).map_err(|error| CatalogueError::invalid("definition", error.to_string()))?;
        definition.check()?;
        Ok(definition)
    }

    /// Checks every value.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn check(&self) -> Result<(), CatalogueError> {
        check::description("description", self.description.as_deref())?;
        if !(1..=SOURCES_MAX).contains(&self.any_of.len()) {
            return Err(CatalogueError::invalid(
                "any_of",
                format!("found {}; 1 to {SOURCES_MAX} are accepted", self.any_of.len()),
            ));
        }
        self.any_of.iter().enumerate().try_for_each(|(index, source)| source.check(&format!("any_of[{index}].")))
    }
}

impl ExposureSource {
    fn check(&self, place: &str) -> Result<(), CatalogueError> {
        let invalid = |field: &str, message: String| Err(CatalogueError::invalid(format!("{place}{field}"), message));
        let names = self.events.len();
        match self.kind {
            Kind::Identity => return invalid("kind", "found identity, which exposes nobody".to_owned()),
            Kind::Impression if names > 0 => return invalid("events", "found with impressions, which have no names".to_owned()),
            Kind::Impression => {}
            _ if !(1..=LISTED_MAX).contains(&names) => {
                return invalid("events", format!("found {names}; 1 to {LISTED_MAX} names of events are accepted"));
            }
            _ => {}
        }
        for (index, name) in self.events.iter().enumerate() {
            check::name(&format!("{place}events[{index}]"), name)?;
        }
        if self.conditions.len() > LISTED_MAX {
            return invalid("where", format!("found {}; at most {LISTED_MAX} are accepted", self.conditions.len()));
        }
        for (property, Accepted(values)) in &self.conditions {
            check::something(&format!("{place}where"), property)?;
            if !(1..=LISTED_MAX).contains(&values.len()) {
                return invalid(
                    &format!("where.{property}"),
                    format!("found {}; 1 to {LISTED_MAX} values are accepted", values.len()),
                );
            }
            values.iter().try_for_each(|value| check::description(&format!("{place}where.{property}"), Some(value)))?;
        }
        match &self.variant {
            Some(VariantFrom::Property(name)) => check::something(&format!("{place}variant.property"), name),
            Some(VariantFrom::Constant(name)) => check::name(&format!("{place}variant.constant"), name),
            None if self.kind == Kind::CampaignEvent => invalid(
                "variant",
                r#"found none; events of campaigns name no variant, so {"property": ..} or {"constant": ..} is needed"#
                    .to_owned(),
            ),
            None => Ok(()),
        }
    }
}

impl Versioned for ExposureDefinition {
    const NOUN: &'static str = "exposure definition";
    const TABLE: &'static str = "exposure_definitions";
    const ACTION: &'static str = "exposure.define";
    const KNOWN: &'static [&'static str] = &["the definitions that its `weir admin exposure define` takes"];

    fn check(&self) -> Result<(), CatalogueError> {
        ExposureDefinition::check(self)
    }
}

impl fmt::Display for ExposureSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.kind.as_str())?;
        if !self.events.is_empty() {
            write!(out, " {}", self.events.join(" or "))?;
        }
        for (place, (property, Accepted(values))) in self.conditions.iter().enumerate() {
            write!(out, " {} {property} is {}", if place == 0 { "where" } else { "and" }, values.join(" or "))?;
        }
        match &self.variant {
            Some(VariantFrom::Property(name)) => write!(out, ", variant in {name}"),
            Some(VariantFrom::Constant(name)) => write!(out, ", variant {name}"),
            None => out.write_str(", variant as it names it"),
        }
    }
}

impl fmt::Display for ExposureDefinition {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources: Vec<String> = self.any_of.iter().map(ToString::to_string).collect();
        out.write_str(&sources.join("; or "))
    }
}

/// What exposes users to one experiment: a definition with the experiment's names put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    /// In the order of the definition.
    pub sources: Vec<Source>,
    /// The ids of the experiment's variants, by name.
    pub variants: HashMap<String, Uuid>,
}

/// One source of an [`Exposure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Events of this kind.
    pub kind: Kind,
    /// Those of these names; none of impressions.
    pub events: Vec<String>,
    /// Properties with the values that each may have.
    pub conditions: Vec<(String, Vec<String>)>,
    /// Which variant.
    pub variant: VariantIn,
}

/// Where the variant is, by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VariantIn {
    /// The event names experiment and variant.
    Event,
    /// This property has its name.
    Property(String),
    /// It is this one; none if the experiment has no such variant.
    Constant(Option<Uuid>),
}

/// What is looked at in an event.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its name; none of impressions.
    pub name: Option<&'a str>,
    /// The experiment that it names.
    pub experiment: Option<Uuid>,
    /// The variant of it that it names.
    pub variant: Option<Uuid>,
    /// The text of the object that holds its properties.
    pub properties: Option<&'a str>,
}

/// What exposes users to the experiments of one project that have a definition.
#[derive(Clone, Debug, Default)]
pub struct Exposures {
    of: BTreeMap<Uuid, Exposure>,
    /// Experiments that look at the same events are together.
    groups: BTreeMap<(Kind, BTreeSet<String>), Vec<Uuid>>,
}

/// Events that some experiments look at.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    /// Their kind.
    pub kind: Kind,
    /// Their names; none of impressions, which are all looked at.
    pub names: &'a BTreeSet<String>,
    /// The experiments.
    pub experiments: &'a [Uuid],
}

impl Group<'_> {
    /// Returns whether it has an event of this kind and name.
    pub fn has(&self, kind: Kind, name: Option<&str>) -> bool {
        kind == self.kind && (kind == Kind::Impression || name.is_some_and(|name| self.names.contains(name)))
    }
}

impl Exposure {
    /// Puts the names of an experiment into a definition.
    pub fn new(definition: &ExposureDefinition, experiment: &str, variants: HashMap<String, Uuid>) -> Self {
        let named = |text: &String| text.replace(PLACEHOLDER, experiment);
        let source = |source: &ExposureSource| Source {
            kind: source.kind,
            events: source.events.clone(),
            conditions: source
                .conditions
                .iter()
                .map(|(property, Accepted(values))| (named(property), values.iter().map(named).collect()))
                .collect(),
            variant: match &source.variant {
                None => VariantIn::Event,
                Some(VariantFrom::Property(property)) => VariantIn::Property(named(property)),
                Some(VariantFrom::Constant(name)) => VariantIn::Constant(variants.get(name).copied()),
            },
        };
        Exposure { sources: definition.any_of.iter().map(source).collect(), variants }
    }

    /// Returns the kinds of events that it looks at, each once, with their names.
    pub fn candidates(&self) -> BTreeMap<Kind, BTreeSet<String>> {
        let mut found: BTreeMap<Kind, BTreeSet<String>> = BTreeMap::new();
        for source in &self.sources {
            found.entry(source.kind).or_default().extend(source.events.iter().cloned());
        }
        found
    }

    /// Returns the variant of an experiment that an event exposes to, if it does.
    fn variant_of(&self, experiment: Uuid, seen: &Seen<'_>, properties: &Properties<'_>) -> Option<Uuid> {
        self.sources.iter().find_map(|source| {
            let is_named = || seen.name.is_some_and(|name| source.events.iter().any(|event| event == name));
            if source.kind != seen.kind || (source.kind != Kind::Impression && !is_named()) {
                return None;
            }
            let holds = |(property, accepted): &(String, Vec<String>)| {
                text_of(properties.get(property.as_str())?.get()).filter(|value| accepted.iter().any(|text| text == value))
            };
            if !source.conditions.iter().all(|condition| holds(condition).is_some()) {
                return None;
            }
            match &source.variant {
                VariantIn::Event => seen.variant.filter(|_| seen.experiment == Some(experiment)),
                VariantIn::Constant(variant) => *variant,
                VariantIn::Property(property) => {
                    let name = text_of(properties.get(property.as_str())?.get())?;
                    self.variants.get(name.as_ref()).copied()
                }
            }
        })
    }
}

type Properties<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

impl Exposures {
    /// Collects those of some experiments.
    pub fn new(experiments: impl Iterator<Item = (Uuid, Exposure)>) -> Self {
        let mut exposures = Exposures::default();
        for (experiment, exposure) in experiments {
            for group in exposure.candidates() {
                exposures.groups.entry(group).or_default().push(experiment);
            }
            exposures.of.insert(experiment, exposure);
        }
        exposures
    }

    /// Returns the events that experiments look at; each of these is in one group of a kind.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        self.groups.iter().map(|((kind, names), experiments)| Group { kind: *kind, names, experiments })
    }

    /// Returns whether any experiment looks at an event.
    pub fn is_looked_at(&self, kind: Kind, name: Option<&str>) -> bool {
        self.groups().any(|group| group.has(kind, name))
    }

    /// Returns some experiments, each with the variant to which an event exposes, if it does.
    pub fn by(&self, seen: &Seen<'_>, experiments: &[Uuid]) -> Vec<(Uuid, Option<Uuid>)> {
        let properties: Properties<'_> = seen.properties.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        // An event of nobody exposes nobody.
        let signal = properties.get("privacy").and_then(|raw| text_of(raw.get()));
        let is_unlinked = signal.is_some_and(|signal| SIGNALS.contains(&signal.as_ref()));
        let exposed = |experiment: &Uuid| {
            let variant = self.of.get(experiment).and_then(|exposure| exposure.variant_of(*experiment, seen, &properties));
            (*experiment, variant.filter(|_| !is_unlinked))
        };
        experiments.iter().map(exposed).collect()
    }
}

/// Digits of a number that is compared.
const DIGITS_MAX: usize = 15;

/// Returns the text by which a property is compared, from its JSON: that of a text, of true or false, and of a whole number that Postgres
/// writes without a point; none of anything else.
///
/// Postgres stores a number with as many decimals as were written (`numeric`'s scale), so that 1.0 stays that, and 1e2 becomes 100.
pub fn text_of(json: &str) -> Option<Cow<'_, str>> {
    match json.as_bytes().first()? {
        b'"' => serde_json::from_str(json).ok(),
        b't' | b'f' => Some(Cow::Borrowed(json)),
        b'-' | b'0'..=b'9' => whole(json).map(Cow::Owned),
        _ => None,
    }
}

/// Returns a number as Postgres writes it, if that is without a point and has few digits.
fn whole(json: &str) -> Option<String> {
    let (sign, unsigned) = json.strip_prefix('-').map_or(("", json), |unsigned| ("-", unsigned));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (ones, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i64 = exponent.parse().ok()?;
    let zeros = exponent.checked_sub(i64::try_from(decimals.len()).ok()?)?;
    if zeros < 0 {
        return None;
    }
    let digits = format!("{ones}{decimals}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some("0".to_owned());
    }
    let zeros = usize::try_from(zeros).ok().filter(|zeros| digits.len().saturating_add(*zeros) <= DIGITS_MAX)?;
    Some(format!("{sign}{digits}{}", "0".repeat(zeros)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn uuid(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn definitions_are_read_and_written_in_one_form() {
        let text = r#"{"any_of":[{"kind":"engagement","events":["page"],"where":{"plan":["pro",7,true],"test":"{experiment}"},"variant":{"property":"arm"}},{"kind":"impression"}]}"#;
        let found = ExposureDefinition::parse(text).expect("accepted");
        let written = serde_json::to_string(&found).expect("is JSON");
        assert_eq!(written, text.replace("7,true", r#""7","true""#));
        assert_eq!(
            found.to_string(),
            "engagement page where plan is pro or 7 or true and test is {experiment}, variant in arm; or impression, variant as it names it"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |source: serde_json::Value, expected: &str| {
            let text = json!({"any_of": [source]}).to_string();
            let found = ExposureDefinition::parse(&text).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(if expected.is_empty() { found.is_empty() } else { found.contains(expected) }, "{text}: {found}");
        };
        let page = |changes: serde_json::Value| {
            let mut source = json!({"kind": "engagement", "events": ["page"], "variant": {"property": "arm"}});
            source.as_object_mut().expect("fields").extend(changes.as_object().expect("fields").clone());
            source
        };
        check(page(json!({})), "");
        check(page(json!({"kind": "identity"})), "any_of[0].kind: found identity, which exposes nobody");
        check(page(json!({"kind": "impression"})), "any_of[0].events: found with impressions, which have no names");
        check(page(json!({"events": []})), "any_of[0].events: found 0; 1 to 100 names of events are accepted");
        check(page(json!({"events": [" "]})), r#"any_of[0].events[0]: found " ", which is empty"#);
        check(page(json!({"where": {"a": []}})), "any_of[0].where.a: found 0; 1 to 100 values are accepted");
        check(page(json!({"where": {"a": 1.5}})), "a text, a whole number, true or false, or a list of these");
        check(page(json!({"where": {"a": 1_000_000_000_000_000_u64}})), "a whole number of up to 15 digits is compared");
        check(page(json!({"where": {"a": "\0"}})), "any_of[0].where.a: found the character U+0000");
        check(page(json!({"variant": {"property": ""}})), "any_of[0].variant.property: ");
        check(page(json!({"variant": {"column": "x"}})), "unknown variant `column`, expected `property` or `constant`");
        check(json!({"kind": "campaign_event", "events": ["view"]}), "any_of[0].variant: found none");
        check(json!({"kind": "impression"}), "");
        let none = ExposureDefinition::parse(r#"{"any_of": []}"#).expect_err("refused").to_string();
        assert_eq!(none, "any_of: found 0; 1 to 10 are accepted");
    }

    /// A property of an event is the same text before it is stored and after, when Postgres has normalised it.
    #[test]
    fn properties_are_compared_as_postgres_writes_them() {
        let check = |json: &str, expected: Option<&str>| assert_eq!(text_of(json).as_deref(), expected, "{json}");
        check(r#""b""#, Some("b"));
        check(r#""\u00e4\"""#, Some("ä\""));
        check("true", Some("true"));
        check("null", None);
        check("[1]", None);
        check(r#"{"a":1}"#, None);
        for (number, expected) in
            [("0", "0"), ("-0", "0"), ("12", "12"), ("-7", "-7"), ("1e2", "100"), ("1.5E1", "15"), ("0e5", "0")]
        {
            check(number, Some(expected));
        }
        for number in ["1.0", "0.5", "10e-1", "1e15", "1234567890123456", "1e999999999999", "1e99999999999999999999"] {
            check(number, None);
        }
    }

    #[test]
    fn the_first_source_that_gives_a_variant_decides() {
        let variants: HashMap<String, Uuid> =
            [("control", 1), ("b", 2), ("7", 3)].map(|(name, id)| (name.to_owned(), uuid(id))).into();
        let definition = ExposureDefinition::parse(
            r#"{"any_of": [
                {"kind": "engagement", "events": ["page"], "where": {"plan": ["pro", 1]}, "variant": {"property": "$feature/{experiment}"}},
                {"kind": "engagement", "events": ["page", "cart"], "where": {"test": "{experiment}"}, "variant": {"constant": "b"}},
                {"kind": "conversion", "events": ["order"]}, {"kind": "impression"}]}"#,
        )
        .expect("accepted");
        let exposure = Exposure::new(&definition, "checkout", variants);
        let exposures = Exposures::new(std::iter::once((uuid(9), exposure)));
        let check = |kind, name: &str, named: Option<(u128, u128)>, properties: serde_json::Value, expected: Option<u128>| {
            let text = properties.to_string();
            let seen = Seen {
                kind,
                name: Some(name).filter(|name| !name.is_empty()),
                experiment: named.map(|(experiment, _)| uuid(experiment)),
                variant: named.map(|(_, variant)| uuid(variant)),
                properties: Some(&text),
            };
            assert_eq!(exposures.by(&seen, &[uuid(9)]), [(uuid(9), expected.map(uuid))], "{seen:?}");
        };
        let feature = "$feature/checkout";
        check(Kind::Engagement, "page", None, json!({"plan": "pro", feature: "control"}), Some(1));
        // An event of a visitor who objects exposes nobody; a client's own word of that name says nothing.
        check(Kind::Engagement, "page", None, json!({"plan": "pro", feature: "control", "privacy": "dnt"}), None);
        check(Kind::Engagement, "page", None, json!({"plan": "pro", feature: "control", "privacy": "strict"}), Some(1));
        check(Kind::Engagement, "page", None, json!({"plan": 1, feature: 7}), Some(3));
        check(Kind::Engagement, "page", None, json!({"plan": "free", feature: "control"}), None);
        check(Kind::Engagement, "page", None, json!({"plan": "pro", feature: "unknown"}), None);
        check(Kind::Engagement, "page", None, json!({"plan": "pro", feature: "unknown", "test": "checkout"}), Some(2));
        check(Kind::Engagement, "cart", None, json!({"plan": "pro", feature: "control"}), None);
        check(Kind::Engagement, "cart", None, json!({"test": "checkout"}), Some(2));
        check(Kind::Engagement, "other", None, json!({"test": "checkout"}), None);
        check(Kind::Conversion, "cart", None, json!({"test": "checkout"}), None);
        check(Kind::Conversion, "order", Some((9, 2)), json!({}), Some(2));
        check(Kind::Conversion, "order", Some((8, 2)), json!({}), None);
        check(Kind::Impression, "", Some((9, 1)), json!({}), Some(1));
        assert!(exposures.is_looked_at(Kind::Impression, None) && !exposures.is_looked_at(Kind::Engagement, Some("other")));
        let groups: Vec<_> = exposures.groups().map(|group| (group.kind, group.names.len())).collect();
        assert_eq!(groups, [(Kind::Impression, 0), (Kind::Conversion, 1), (Kind::Engagement, 2)]);
    }
}
