//! What a rollup makes of events: a pure function of each event, and of each state.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use chrono_tz::Tz;
use events::Kind;
use events::fact::{Column, FACT_TABLES, FactTable};
use uuid::Uuid;

use crate::CatalogueError;
use crate::exposures::Accepted;
use crate::rollups::datum::{Datum, Place, Type};
use crate::rollups::seen::{Row, Seen, hold, value};
use crate::rollups::{By, Conditions, Key, KeyOf, Measure, Per, Rollup, ZONE_OF_EVENT};

/// A declaration, resolved.
#[derive(Clone, Debug)]
pub struct Shape {
    kind: Option<Kind>,
    events: BTreeSet<String>,
    conditions: Vec<Condition>,
    bots: bool,
    pub(super) states: Option<States>,
    pub(super) keys: Vec<StoredKey>,
    /// Keys that are looked up in the catalogue when it is read, each by a stored one.
    pub(super) looked_up: Vec<LookedUp>,
    pub(super) measures: Vec<NamedMeasure>,
}

/// What stands between events and sums.
#[derive(Clone, Debug)]
pub(super) enum States {
    /// The first of the events that have these.
    Unique(Vec<Field>),
    /// All of them, folded.
    Per { keys: Vec<StoredKey>, measures: Vec<NamedMeasure> },
}

#[derive(Clone, Debug)]
pub(super) struct StoredKey {
    pub name: String,
    /// Whether readers see it, or it is only there to look up another one.
    pub is_shown: bool,
    pub value_type: Type,
    of: Expr,
}

#[derive(Clone, Debug)]
pub(super) struct LookedUp {
    pub name: String,
    /// Of the table `campaigns`.
    pub column: &'static str,
    pub value_type: Type,
    /// The stored key that has the campaign's id.
    pub by: String,
}

#[derive(Clone, Debug)]
pub(super) struct NamedMeasure {
    pub name: String,
    pub by: By,
    /// Of the values.
    pub value_type: Type,
    of: Option<Field>,
    conditions: Vec<Condition>,
}

pub(super) type Condition = (Field, BTreeSet<String>);

#[derive(Clone, Debug)]
pub(super) enum Expr {
    Field(Field),
    Day(Field, Zone),
}

#[derive(Clone, Debug)]
pub(super) enum Zone {
    Fixed(Tz),
    Event(Field),
}

/// Where a value is.
#[derive(Clone, Debug)]
pub(super) enum Field {
    Kind,
    /// The event's name; `impression` of impressions.
    Event,
    /// By kind.
    Column([Option<&'static Column>; Kind::ALL.len()], Type),
    Property(String),
    /// Of a state: the user, its keys, its measures.
    State(usize, Type),
}

impl Field {
    /// Returns the type of its values where none is asked for.
    pub(super) fn value_type(&self) -> Type {
        match self {
            Field::Kind | Field::Event | Field::Property(_) => Type::Text,
            Field::Column(_, value_type) | Field::State(_, value_type) => *value_type,
        }
    }
}

/// Columns of an event that are about its storing.
const NOT_GROUPED: [&str; 5] = ["project_id", "log_id", "log_partition", "log_offset", "properties"];

/// Begins the name of a property that has the name of a column.
const PROPERTY: &str = "properties.";
/// Begins the name of what the catalogue says of an event's campaign.
const CAMPAIGN: &str = "campaign.";
const OF_CAMPAIGN: [(&str, Type); 6] = [
    ("name", Type::Text),
    ("type", Type::Text),
    ("status", Type::Text),
    ("owner_id", Type::Uuid),
    ("product_id", Type::Uuid),
    ("tracking_id", Type::Text),
];

/// Resolves names: of the fields of events, or of those of a state.
enum Names<'a> {
    Events(Option<Kind>),
    States(Vec<(&'a str, Type)>),
}

impl Names<'_> {
    fn field(&self, place: &str, name: &str) -> Result<Field, CatalogueError> {
        let invalid = |message: String| Err(CatalogueError::invalid(place, message));
        match self {
            Names::States(known) => match known.iter().position(|(known, _)| *known == name) {
                Some(index) => Ok(Field::State(index, known[index].1)),
                None => {
                    let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    invalid(format!("found {name:?}; accepted is what `per` has: {}", known.join(", ")))
                }
            },
            Names::Events(_) if name == "kind" => Ok(Field::Kind),
            Names::Events(_) if name == "event" => Ok(Field::Event),
            Names::Events(kind) => {
                if let Some(property) = name.strip_prefix(PROPERTY).filter(|property| !property.is_empty()) {
                    return Ok(Field::Property(property.to_owned()));
                }
                if NOT_GROUPED.contains(&name) {
                    return invalid(format!(
                        "found {name:?}, which says how an event is stored; another column or a property is accepted"
                    ));
                }
                let mut columns = [None; Kind::ALL.len()];
                for of in Kind::ALL.into_iter().filter(|of| kind.is_none_or(|kind| kind == *of)) {
                    columns[of as usize] = FactTable::of(of).columns().find(|column| column.api_name == name);
                }
                match columns.iter().flatten().next().map(|column| Type::of(column.column_type)) {
                    None => Ok(Field::Property(name.to_owned())),
                    Some(Some(value_type)) => Ok(Field::Column(columns, value_type)),
                    Some(None) => invalid(format!(
                        "found {name:?}, which holds objects; a column with single values or a property is accepted"
                    )),
                }
            }
        }
    }

    fn conditions(&self, place: &str, conditions: &Conditions) -> Result<Vec<Condition>, CatalogueError> {
        let condition = |(name, Accepted(values)): (&String, &Accepted)| {
            Ok((self.field(&format!("{place}.{name}"), name)?, values.iter().cloned().collect()))
        };
        conditions.iter().map(condition).collect()
    }

    fn key(&self, place: &str, key: &Key) -> Result<StoredKey, CatalogueError> {
        let (of, value_type) = match &key.of {
            KeyOf::Field(name) => {
                let field = self.field(place, name)?;
                let value_type = field.value_type();
                (Expr::Field(field), value_type)
            }
            KeyOf::Day { time, zone } => {
                let field = self.field(&format!("{place}.day_of"), time)?;
                if field.value_type() != Type::Time {
                    let message = format!("found {time:?}, which is no time; one such as event_time is accepted");
                    return Err(CatalogueError::invalid(format!("{place}.day_of"), message));
                }
                let zone = match (zone.parse::<Tz>(), self) {
                    (Ok(zone), _) => Zone::Fixed(zone),
                    (Err(_), Names::Events(_)) if zone == ZONE_OF_EVENT => Zone::Event(self.field(place, "time_zone")?),
                    (Err(_), Names::Events(_)) => {
                        let message =
                            format!("found {zone:?}; a name of the IANA database such as Europe/Berlin, or event, is accepted");
                        return Err(CatalogueError::invalid(format!("{place}.zone"), message));
                    }
                    (Err(_), Names::States(_)) => {
                        let message = format!(
                            "found {zone:?}; of what `per` has, a name of the IANA database such as Europe/Berlin is accepted"
                        );
                        return Err(CatalogueError::invalid(format!("{place}.zone"), message));
                    }
                };
                (Expr::Day(field, zone), Type::Day)
            }
        };
        Ok(StoredKey { name: key.name.clone(), is_shown: true, value_type, of })
    }

    fn measure(&self, place: &str, name: &str, measure: &Measure) -> Result<NamedMeasure, CatalogueError> {
        let of = measure.of.as_deref().map(|field| self.field(place, field)).transpose()?;
        let is_property = matches!(of, Some(Field::Property(_)));
        let found = of.as_ref().map_or(Type::Number, Field::value_type);
        let value_type = if is_property && matches!(measure.by, By::Sum | By::Min | By::Max) { Type::Number } else { found };
        let is_accepted = match measure.by {
            By::Sum => value_type == Type::Number,
            By::Min | By::Max => matches!(value_type, Type::Number | Type::Day | Type::Time),
            By::First | By::Last => matches!(self, Names::Events(_)),
            By::Count | By::Distinct => true,
        };
        if !is_accepted {
            let (by, of) = (measure.by.as_str(), measure.of.as_deref().unwrap_or_default());
            let message = match measure.by {
                By::First | By::Last => {
                    format!("found {by} of what `per` has, which has no order; {by} is accepted in `per` itself")
                }
                _ => format!(
                    "found {by} of {of:?}, which is {}; a number is accepted, for min and max also a time",
                    value_type.sql()
                ),
            };
            return Err(CatalogueError::invalid(place, message));
        }
        let conditions = self.conditions(&format!("{place}.where"), &measure.conditions)?;
        Ok(NamedMeasure { name: name.to_owned(), by: measure.by, value_type, of, conditions })
    }

    fn measures(&self, place: &str, measures: &BTreeMap<String, Measure>) -> Result<Vec<NamedMeasure>, CatalogueError> {
        let measure = |(name, measure): (&String, &Measure)| self.measure(&format!("{place}.{name}"), name, measure);
        measures.iter().map(measure).collect()
    }
}

impl Rollup {
    /// Resolves the names in it.
    /// # Errors
    /// [`CatalogueError::Invalid`], which names the place.
    pub fn shape(&self) -> Result<Shape, CatalogueError> {
        let of_events = Names::Events(self.kind);
        let states = match &self.per {
            None if self.unique.is_empty() => None,
            None => {
                let fields = self.unique.iter().enumerate();
                let fields = fields.map(|(index, name)| of_events.field(&format!("unique[{index}]"), name));
                Some(States::Unique(fields.collect::<Result<_, _>>()?))
            }
            Some(Per { keys, measures }) => {
                let keys = keys.iter().enumerate().map(|(index, key)| of_events.key(&format!("per.keys[{index}]"), key));
                let (keys, folded) = (keys.collect::<Result<Vec<_>, _>>()?, of_events.measures("per.measures", measures)?);
                if let Some(distinct) = folded.iter().find(|measure| measure.by == By::Distinct) {
                    let message =
                        "found distinct, of which a state would hold all values; it is accepted in the measures of groups";
                    return Err(CatalogueError::invalid(format!("per.measures.{}", distinct.name), message));
                }
                Some(States::Per { keys, measures: folded })
            }
        };
        let names = match &states {
            Some(States::Per { keys, measures }) => {
                let user = std::iter::once(("user_id", Type::Uuid));
                let keys = keys.iter().map(|key| (key.name.as_str(), key.value_type));
                let measures = measures.iter().map(|measure| (measure.name.as_str(), measure.result_type()));
                Names::States(user.chain(keys).chain(measures).collect())
            }
            _ => of_events,
        };
        let (mut keys, mut looked_up) = (Vec::new(), Vec::new());
        for (index, key) in self.keys.iter().enumerate() {
            let place = format!("keys[{index}]");
            match &key.of {
                KeyOf::Field(name) if name.starts_with(CAMPAIGN) => {
                    looked_up.push(LookedUp::new(&place, key, &name[CAMPAIGN.len()..])?);
                }
                _ => keys.push(names.key(&place, key)?),
            }
        }
        for looked_up in &mut looked_up {
            let is_campaign = |key: &&StoredKey| key.name == CAMPAIGN_ID && key.value_type == Type::Uuid;
            if keys.iter().find(is_campaign).is_none() {
                let key = Key { name: CAMPAIGN_ID.to_owned(), of: KeyOf::Field(CAMPAIGN_ID.to_owned()) };
                let key = names.key("keys", &key)?;
                if key.value_type != Type::Uuid {
                    let message =
                        "found a key of the campaign, but these events name none; kind = \"campaign_event\" or \"conversion\" do";
                    return Err(CatalogueError::invalid("keys", message));
                }
                keys.push(StoredKey { is_shown: false, ..key });
            }
            looked_up.by = CAMPAIGN_ID.to_owned();
        }
        Ok(Shape {
            kind: self.kind,
            events: self.events.iter().cloned().collect(),
            conditions: Names::Events(self.kind).conditions("where", &self.conditions)?,
            bots: self.bots,
            measures: names.measures("measures", &self.measures)?,
            states,
            keys,
            looked_up,
        })
    }
}

const CAMPAIGN_ID: &str = "campaign_id";

impl LookedUp {
    fn new(place: &str, key: &Key, column: &str) -> Result<Self, CatalogueError> {
        let Some((column, value_type)) = OF_CAMPAIGN.into_iter().find(|(known, _)| *known == column) else {
            let known = OF_CAMPAIGN.map(|(name, _)| format!("{CAMPAIGN}{name}")).join(", ");
            return Err(CatalogueError::invalid(
                place,
                format!("found {CAMPAIGN}{column}; of the campaign are accepted: {known}"),
            ));
        };
        Ok(LookedUp { name: key.name.clone(), column, value_type, by: String::new() })
    }
}

impl NamedMeasure {
    /// Returns the type of what it comes to.
    pub(super) fn result_type(&self) -> Type {
        match self.by {
            By::Count | By::Sum | By::Distinct => Type::Number,
            By::Min | By::Max | By::First | By::Last => self.value_type,
        }
    }

    /// Returns what it takes of a row; none if it leaves the row out.
    fn input<'a>(&self, row: &dyn Row<'a>) -> Option<Datum<'a>> {
        if !hold(&self.conditions, row) {
            return None;
        }
        match &self.of {
            None => Some(Datum::Boolean(true)),
            Some(field) => value(row, field, self.value_type),
        }
    }
}

/// What a row adds to its group, and a former one took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contribution<'a> {
    /// The values of the stored keys.
    pub key: Vec<Option<Datum<'a>>>,
    /// What each measure takes of it; none: nothing.
    pub inputs: Vec<Option<Datum<'a>>>,
    /// In the order of first and last; none of a state that has no place in it.
    pub place: Option<Place>,
}

/// Which state an event belongs to: a user's, and the text of the keys, or an id made of it.
pub type StateKey = (Uuid, String);

/// Bytes of the text of a state's keys, at most.
const STATE_KEY_BYTES_MAX: usize = 1_000;

/// What one measure knows of several rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// How many.
    Count(i64),
    /// In millionths.
    Sum(i128),
    /// The value that is least, greatest, first or last, and its place.
    Best(Option<(Datum<'static>, Place)>),
}

impl Folded {
    /// Returns what a measure knows of nothing.
    pub fn nothing(by: By) -> Self {
        match by {
            By::Count => Folded::Count(0),
            By::Sum => Folded::Sum(0),
            _ => Folded::Best(None),
        }
    }

    /// Adds a row's input, or takes it away where that is possible: of counts and sums.
    pub fn add(&mut self, by: By, input: &Datum<'_>, place: Place, sign: i64) {
        match self {
            Folded::Count(count) => *count += sign,
            Folded::Sum(sum) => *sum += input.millionths().unwrap_or(0) * i128::from(sign),
            Folded::Best(best) => {
                let is_better = best.as_ref().is_none_or(|(value, at)| match by {
                    By::Min => input < value,
                    By::Max => input > value,
                    By::First => place < *at,
                    _ => place > *at,
                });
                if is_better {
                    *best = Some((input.clone().into_owned(), place));
                }
            }
        }
    }

    /// Returns whether it changes nothing.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Folded::Count(0) | Folded::Sum(0) | Folded::Best(None))
    }

    /// Returns it as its columns take it: the value, and its place where that is kept beside.
    pub fn texts(&self, has_place: bool) -> impl Iterator<Item = Option<String>> + use<> {
        let value = self.datum().map(|datum| datum.to_string());
        let place = match self {
            Folded::Best(Some((_, place))) => Some(place.to_string()),
            _ => None,
        };
        std::iter::once(value).chain(has_place.then_some(place))
    }

    fn datum(&self) -> Option<Datum<'static>> {
        match self {
            Folded::Count(count) => Some(Datum::Number(i128::from(*count) * 1_000_000)),
            Folded::Sum(sum) => Some(Datum::Number(*sum)),
            Folded::Best(best) => best.as_ref().map(|(value, _)| value.clone()),
        }
    }
}

/// What is known of the events of one state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The first event, as its group gets it.
    Unique(Box<Contribution<'static>>),
    /// The values of its keys, and what each measure knows.
    Per(Vec<Option<Datum<'static>>>, Vec<Folded>),
}

/// A state as a row.
struct StateRow<'a> {
    user: Uuid,
    keys: &'a [Option<Datum<'static>>],
    folded: &'a [Folded],
}

impl Row<'static> for StateRow<'_> {
    fn field(&self, field: &Field) -> Option<Datum<'static>> {
        let Field::State(index, _) = field else { return None };
        match index.checked_sub(1) {
            None => Some(Datum::Uuid(self.user)),
            Some(index) if index < self.keys.len() => self.keys[index].clone(),
            Some(index) => self.folded.get(index - self.keys.len())?.datum(),
        }
    }

    fn property(&self, _: &str) -> Option<&'static str> {
        None
    }
}

impl Shape {
    /// Returns the fact tables that it reads.
    pub fn tables(&self) -> impl Iterator<Item = &'static FactTable> + '_ {
        FACT_TABLES.iter().filter(|table| self.kind.is_none_or(|kind| kind == table.kind))
    }

    /// Returns whether there are states between events and sums.
    pub fn has_states(&self) -> bool {
        self.states.is_some()
    }

    /// Returns what each measure makes of values, and the type of these.
    pub fn measures(&self) -> impl Iterator<Item = (&str, By)> {
        self.measures.iter().map(|measure| (measure.name.as_str(), measure.by))
    }

    /// Returns whether an event counts.
    pub fn takes(&self, event: &Seen<'_>) -> bool {
        let is_named = || match event.field(&Field::Event) {
            Some(Datum::Text(name)) => self.events.contains(name.as_ref()),
            _ => false,
        };
        self.kind.is_none_or(|kind| kind == event.kind)
            && (self.bots || !event.is_bot)
            && (self.events.is_empty() || is_named())
            && hold(&self.conditions, event)
    }

    /// Puts the values of an event's stored keys after others.
    pub fn put_key<'a>(&self, event: &Seen<'a>, key: &mut Vec<Option<Datum<'a>>>) {
        key.extend(self.keys.iter().map(|key| key.of.value(event)));
    }

    /// Returns what a measure takes of an event; none: nothing.
    pub fn input<'a>(&self, measure: usize, event: &Seen<'a>) -> Option<Datum<'a>> {
        self.measures[measure].input(event)
    }

    /// Returns what an event adds by itself.
    fn contribution<'a>(&self, event: &Seen<'a>) -> Contribution<'a> {
        self.contribution_of(event, Some(event.place))
    }

    fn contribution_of<'a>(&self, row: &dyn Row<'a>, place: Option<Place>) -> Contribution<'a> {
        Contribution {
            key: self.keys.iter().map(|key| key.of.value(row)).collect(),
            inputs: self.measures.iter().map(|measure| measure.input(row)).collect(),
            place,
        }
    }

    /// Returns the state that an event belongs to.
    pub fn state_key(&self, event: &Seen<'_>) -> StateKey {
        let keys: Vec<Option<Datum<'_>>> = match &self.states {
            None => Vec::new(),
            Some(States::Per { keys, .. }) => keys.iter().map(|key| key.of.value(event)).collect(),
            Some(States::Unique(fields)) => {
                let name = event.field(&Field::Event);
                let values: Vec<_> = fields.iter().map(|field| value(event, field, field.value_type())).collect();
                let own = || vec![None, Some(Datum::Uuid(event.id.0)), Some(Datum::Time(event.claimed_at))];
                let values = if values.iter().all(Option::is_some) { values } else { own() };
                std::iter::once(name).chain(values).collect()
            }
        };
        let key = cells_text(keys.iter().map(|key| key.as_ref().map(ToString::to_string)));
        // A longer one may be too long for a row of an index.
        let is_short = key.len() <= STATE_KEY_BYTES_MAX;
        (event.user, if is_short { key } else { Uuid::new_v5(&Uuid::NAMESPACE_OID, key.as_bytes()).to_string() })
    }

    /// Returns a state with one event more.
    pub fn fold(&self, state: Option<State>, event: &Seen<'_>) -> Option<State> {
        match (&self.states, state) {
            (None, _) => None,
            (Some(States::Unique(_)), Some(State::Unique(first))) if first.place.is_some_and(|place| place <= event.place) => {
                Some(State::Unique(first))
            }
            (Some(States::Unique(_)), _) => {
                let Contribution { key, inputs, place } = self.contribution(event);
                let owned =
                    |values: Vec<Option<Datum<'_>>>| values.into_iter().map(|value| value.map(Datum::into_owned)).collect();
                Some(State::Unique(Box::new(Contribution { key: owned(key), inputs: owned(inputs), place })))
            }
            (Some(States::Per { keys, measures }), state) => {
                let (values, mut folded) = match state {
                    Some(State::Per(values, folded)) => (values, folded),
                    _ => (
                        keys.iter().map(|key| key.of.value(event).map(Datum::into_owned)).collect(),
                        measures.iter().map(|measure| Folded::nothing(measure.by)).collect(),
                    ),
                };
                for (measure, folded) in measures.iter().zip(&mut folded) {
                    if let Some(input) = measure.input(event) {
                        folded.add(measure.by, &input, event.place, 1);
                    }
                }
                Some(State::Per(values, folded))
            }
        }
    }

    /// Returns what a state adds.
    pub fn contribution_of_state(&self, user: Uuid, state: &State) -> Contribution<'static> {
        match state {
            State::Unique(first) => (**first).clone(),
            State::Per(keys, folded) => self.contribution_of(&StateRow { user, keys, folded }, None),
        }
    }

    /// Returns a state as it is kept: the text of an array of texts and nulls.
    pub fn state_text(&self, state: &State) -> String {
        match state {
            State::Unique(first) => {
                let place = first.place.map(|place| place.to_string());
                let values = first.key.iter().chain(&first.inputs).map(|value| value.as_ref().map(ToString::to_string));
                cells_text(std::iter::once(place).chain(values))
            }
            State::Per(keys, folded) => {
                let keys = keys.iter().map(|key| key.as_ref().map(ToString::to_string));
                let folded = folded.iter().flat_map(|folded| match folded {
                    Folded::Best(Some((value, place))) => [Some(value.to_string()), Some(place.to_string())],
                    other => [other.datum().map(|datum| datum.to_string()), None],
                });
                cells_text(keys.chain(folded))
            }
        }
    }

    /// Reads what [`Shape::state_text`] writes; none if it is not that.
    pub fn state_of_text(&self, text: &str) -> Option<State> {
        let cells: Vec<Option<String>> = serde_json::from_str(text).ok()?;
        let datum = |cell: &Option<String>, value_type: Type| match cell {
            None => Some(None),
            Some(text) => Datum::parse(Cow::Owned(text.clone()), value_type).map(Some),
        };
        match self.states.as_ref()? {
            States::Unique(_) => {
                let (place, cells) = cells.split_first()?;
                let (keys, inputs) = cells.split_at_checked(self.keys.len())?;
                let inputs_of = self.measures.iter().zip(inputs);
                Some(State::Unique(Box::new(Contribution {
                    key: self.keys.iter().zip(keys).map(|(key, cell)| datum(cell, key.value_type)).collect::<Option<_>>()?,
                    inputs: inputs_of.map(|(measure, cell)| datum(cell, measure.input_type())).collect::<Option<_>>()?,
                    place: Some(Place::parse(place.as_deref()?)?),
                })))
            }
            States::Per { keys, measures } => {
                let (key_cells, cells) = cells.split_at_checked(keys.len())?;
                let values = keys.iter().zip(key_cells).map(|(key, cell)| datum(cell, key.value_type)).collect::<Option<_>>()?;
                let folded = measures.iter().zip(cells.chunks_exact(2)).map(|(measure, cells)| {
                    let value = datum(&cells[0], measure.result_type())?;
                    Some(match (measure.by, value) {
                        (By::Count, Some(Datum::Number(count))) => Folded::Count((count / 1_000_000) as i64),
                        (By::Sum, Some(Datum::Number(sum))) => Folded::Sum(sum),
                        (By::Count | By::Sum, _) => return None,
                        (_, value) => Folded::Best(value.zip(cells[1].as_deref().and_then(Place::parse))),
                    })
                });
                let folded: Vec<Folded> = folded.collect::<Option<_>>()?;
                (folded.len() == measures.len()).then_some(State::Per(values, folded))
            }
        }
    }
}

impl NamedMeasure {
    /// Returns the type of what it takes of a row.
    fn input_type(&self) -> Type {
        if self.of.is_none() { Type::Boolean } else { self.value_type }
    }
}

fn cells_text(cells: impl Iterator<Item = Option<String>>) -> String {
    serde_json::Value::from_iter(cells).to_string()
}
