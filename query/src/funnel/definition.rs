//! A funnel as requests define it: what is left out gets its default, and the whole is sent back with the answer.

use serde_json::{Map, Value, json};

use super::parse::{duration_text, name_of};
use super::period::Period;
use super::rules::{Exclusion, Rules};
use super::scan::Order;
use crate::source::property::Property;
use crate::source::snapshot::time_text;

/// A funnel, complete and checked, except that the SQL of its conditions has not been planned yet. Times are microseconds since 1970,
/// durations microseconds, steps are counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The options of another product that the rest began with.
    pub preset: Option<Preset>,
    /// At least one step, at most 32.
    pub steps: Vec<Step>,
    /// How long a chain may take, or each of its steps.
    pub window_us: i64,
    /// Where windows begin.
    pub window_anchor: Anchor,
    /// Whether the end of a window belongs to it.
    pub window_inclusive: bool,
    /// Entries, or events, before this time are left out.
    pub from: Option<i64>,
    /// Those at this time and after it are left out.
    pub to: Option<i64>,
    /// What `from` and `to` bound.
    pub range: Range,
    /// In which order steps count.
    pub order: Order,
    /// Which events a chain may start at.
    pub entry: Entry,
    /// One event may fill several steps that follow each other.
    pub event_reuse: bool,
    /// Each step is later than the one before.
    pub strict_increase: bool,
    /// See [`Rules::strict_deduplication`].
    pub strict_deduplication: bool,
    /// See [`Rules::allow_reentry`].
    pub allow_reentry: bool,
    /// See [`Rules::is_compatible`].
    pub compat_clickhouse: bool,
    /// How events of equal time are ordered.
    pub ties: Ties,
    /// What comes within this after another event of the unit counts as of the same time.
    pub tie_tolerance_us: i64,
    /// What must not come in between.
    pub exclude: Vec<Excluded>,
    /// Events of a chain have equal values of these.
    pub hold_constant: Vec<Property>,
    /// What is counted.
    pub count: Count,
    /// After such a pause a session has ended.
    pub session_gap_us: i64,
    /// The same by the values of a property.
    pub breakdown: Option<Breakdown>,
    /// The same by the variants of an experiment.
    pub experiment: Option<Experiment>,
    /// From which step to which one times are wanted, and in how many bins.
    pub time_to_convert: Option<TimeToConvert>,
    /// The same by the time of entry.
    pub trend: Option<Period>,
    /// Whose users are wanted.
    pub units: Vec<Listed>,
}

/// The options of another product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// ClickHouse's `windowFunnel`.
    Clickhouse,
    /// PostHog's funnels.
    Posthog,
    /// Mixpanel's funnels.
    Mixpanel,
    /// GrowthBook's funnel metrics.
    Growthbook,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name in the answer.
    pub name: String,
    /// Which events are it.
    pub matches: Matches,
    /// How long after the step before.
    pub within_us: Option<i64>,
    /// Others do not wait for it.
    pub optional: bool,
}

/// Which events are meant.
#[derive(Clone, Debug, PartialEq)]
pub enum Matches {
    /// Those of these names.
    Events(Vec<String>),
    /// Those for which this condition over the table `events` is true.
    Where(String),
}

/// Where windows begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// At the first step, or at the exposure.
    FirstStep,
    /// At the step before that is not optional.
    PreviousStep,
}

/// What `from` and `to` bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The time at which a chain starts; it may end later.
    Entries,
    /// All events.
    Events,
}

/// Which events a chain may start at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Any first step; the longest chain counts.
    Any,
    /// The unit's earliest first step; each further step is the first event that may be it.
    First,
    /// The unit's first exposure to an experiment; the same.
    Exposure,
}

/// How events of equal time are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ties {
    /// As steps follow each other.
    StepOrder,
    /// As they were stored.
    Arrival,
    /// As it leads furthest.
    Either,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Users.
    Uniques,
    /// Attempts: one begins when none is under way.
    Totals,
    /// Sessions; a chain does not leave its own.
    Sessions,
}

/// Events that must not come between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Excluded {
    /// Which.
    pub matches: Matches,
    /// Where, and what follows.
    pub rule: Exclusion,
}

/// By what units are divided.
#[derive(Clone, Debug, PartialEq)]
pub struct Breakdown {
    /// The property.
    pub by: Property,
    /// Which event's value counts.
    pub attribution: Attribution,
    /// Values that are shown, those with the most entries; the rest is "other".
    pub top: usize,
}

/// Which event's value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// The first of the unit's steps that has one.
    FirstTouch,
    /// The last one.
    LastTouch,
    /// Each value for itself, with the events that have it.
    AllSteps,
    /// That of the event of this step.
    Step(usize),
}

/// By which experiment units are divided.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    /// Its name or id.
    pub key: String,
    /// The variant that others are compared with; none: the experiment's control.
    pub baseline: Option<String>,
    /// Rates are over all exposed units, else over those that entered.
    pub is_over_exposed: bool,
}

/// Between which steps times are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeToConvert {
    /// From this step
    pub from: usize,
    /// to this one,
    pub to: usize,
    /// in this many bins; none: by the number of times.
    pub bins: Option<usize>,
}

/// Whose users are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Those who reached a step.
    Reached(usize),
    /// Those who reached the one before it, and not it.
    Dropped(usize),
}

impl Listed {
    /// Returns its name in requests and answers.
    pub fn name(self) -> String {
        match self {
            Listed::Reached(step) => format!("reached:{}", step + 1),
            Listed::Dropped(step) => format!("dropped:{}", step + 1),
        }
    }
}

/// Words of options and what they mean.
pub(super) const PRESETS: [(&str, Preset); 4] = [
    ("clickhouse", Preset::Clickhouse),
    ("posthog", Preset::Posthog),
    ("mixpanel", Preset::Mixpanel),
    ("growthbook", Preset::Growthbook),
];
pub(super) const ANCHORS: [(&str, Anchor); 2] = [("first_step", Anchor::FirstStep), ("previous_step", Anchor::PreviousStep)];
pub(super) const RANGES: [(&str, Range); 2] = [("entries", Range::Entries), ("events", Range::Events)];
pub(super) const ORDERS: [(&str, Order); 4] =
    [("loose", Order::Loose), ("contiguous", Order::Contiguous), ("strict_order", Order::StrictOrder), ("any", Order::Any)];
pub(super) const ENTRIES: [(&str, Entry); 3] = [("any", Entry::Any), ("first", Entry::First), ("exposure", Entry::Exposure)];
pub(super) const REUSES: [(&str, bool); 2] = [("once", false), ("allowed", true)];
pub(super) const TIES: [(&str, Ties); 3] =
    [("step_order", Ties::StepOrder), ("arrival", Ties::Arrival), ("either", Ties::Either)];
pub(super) const COUNTS: [(&str, Count); 3] =
    [("uniques", Count::Uniques), ("totals", Count::Totals), ("sessions", Count::Sessions)];
pub(super) const EFFECTS: [(&str, bool); 2] = [("break_chain", false), ("drop_unit", true)];
pub(super) const DENOMINATORS: [(&str, bool); 2] = [("exposed", true), ("entered", false)];

const WINDOW_DEFAULT_US: i64 = 14 * 86_400_000_000;
const DAY_US: i64 = 86_400_000_000;

impl Definition {
    /// Makes a funnel without steps: the defaults, or those of another product.
    pub fn new(preset: Option<Preset>) -> Self {
        let ours = Definition {
            preset,
            steps: Vec::new(),
            window_us: WINDOW_DEFAULT_US,
            window_anchor: Anchor::FirstStep,
            window_inclusive: true,
            from: None,
            to: None,
            range: Range::Entries,
            order: Order::Loose,
            entry: Entry::Any,
            event_reuse: false,
            strict_increase: false,
            strict_deduplication: false,
            allow_reentry: false,
            compat_clickhouse: false,
            ties: Ties::StepOrder,
            tie_tolerance_us: 0,
            exclude: Vec::new(),
            hold_constant: Vec::new(),
            count: Count::Uniques,
            session_gap_us: 30 * 60_000_000,
            breakdown: None,
            experiment: None,
            time_to_convert: None,
            trend: None,
            units: Vec::new(),
        };
        match preset {
            None | Some(Preset::Posthog) => ours,
            Some(Preset::Clickhouse) => Definition { event_reuse: true, compat_clickhouse: true, ..ours },
            Some(Preset::Mixpanel) => Definition { window_us: 7 * DAY_US, entry: Entry::First, ties: Ties::Arrival, ..ours },
            Some(Preset::Growthbook) => Definition {
                window_us: 3 * DAY_US,
                window_anchor: Anchor::PreviousStep,
                entry: Entry::Exposure,
                event_reuse: true,
                ..ours
            },
        }
    }

    /// Returns whether something in it is an expression that the client wrote.
    pub fn has_conditions(&self) -> bool {
        let matches = self.steps.iter().map(|step| &step.matches).chain(self.exclude.iter().map(|excluded| &excluded.matches));
        matches.into_iter().any(|matches| matches!(matches, Matches::Where(_)))
    }

    /// Returns whether events that are no step play a part.
    pub fn needs_all_events(&self) -> bool {
        matches!(self.order, Order::Contiguous | Order::StrictOrder) || self.count == Count::Sessions
    }

    /// Returns the rules for the scan of a unit.
    pub fn rules(&self) -> Rules {
        let inclusive = |window: i64| if self.window_inclusive { window } else { window - 1 };
        let window = inclusive(self.window_us);
        let per_step = (self.window_anchor == Anchor::PreviousStep).then_some(window);
        let within = |(index, step): (usize, &Step)| {
            // Nothing comes before the first step but an exposure.
            let has_before = index > 0 || self.entry == Entry::Exposure;
            step.within_us.map(inclusive).into_iter().chain(per_step).min().filter(|_| has_before)
        };
        Rules {
            steps: self.steps.len(),
            window: (self.window_anchor == Anchor::FirstStep).then_some(window),
            is_by_exposure: self.entry == Entry::Exposure,
            within: self.steps.iter().enumerate().map(within).collect(),
            optional: self.steps.iter().enumerate().fold(0, |mask, (index, step)| mask | u32::from(step.optional) << index),
            reuse: self.event_reuse,
            strict_increase: self.strict_increase,
            strict_order: self.order == Order::StrictOrder,
            allow_reentry: self.allow_reentry,
            strict_deduplication: self.strict_deduplication,
            is_compatible: self.compat_clickhouse,
            first_events: self.entry != Entry::Any || self.count == Count::Totals,
            exclusions: self.exclude.iter().map(|excluded| excluded.rule).collect(),
        }
    }

    /// Writes the definition with every default filled in.
    pub fn expanded(&self) -> Value {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| {
            fields.insert(name.to_owned(), value);
        };
        if let Some(preset) = self.preset {
            put("preset", name_of(&PRESETS, preset).into());
        }
        put("steps", self.steps.iter().map(Step::expanded).collect());
        put("unit", "user_id".into());
        for (name, bound) in [("from", self.from), ("to", self.to)] {
            if let Some(bound) = bound {
                put(name, time_text(bound).into());
            }
        }
        put("range", name_of(&RANGES, self.range).into());
        put("window", duration_text(self.window_us).into());
        put("window_us", self.window_us.into());
        put("window_anchor", name_of(&ANCHORS, self.window_anchor).into());
        put("window_inclusive", self.window_inclusive.into());
        put("order", name_of(&ORDERS, self.order).into());
        put("entry", name_of(&ENTRIES, self.entry).into());
        put("event_reuse", name_of(&REUSES, self.event_reuse).into());
        put("ties", name_of(&TIES, self.ties).into());
        put("tie_tolerance", duration_text(self.tie_tolerance_us).into());
        put("strict_increase", self.strict_increase.into());
        put("strict_deduplication", self.strict_deduplication.into());
        put("allow_reentry", self.allow_reentry.into());
        put("compat_clickhouse", self.compat_clickhouse.into());
        put("exclude", self.exclude.iter().map(Excluded::expanded).collect());
        put("hold_constant", self.hold_constant.iter().map(Property::name).collect());
        put("count", name_of(&COUNTS, self.count).into());
        if self.count == Count::Sessions {
            put("session_gap", duration_text(self.session_gap_us).into());
        }
        if let Some(Breakdown { by, attribution, top }) = &self.breakdown {
            put("breakdown", json!({"by": by.name(), "attribution": attribution.name(), "top": top}));
        }
        if let Some(Experiment { key, baseline, is_over_exposed }) = &self.experiment {
            let denominator = name_of(&DENOMINATORS, *is_over_exposed);
            put("experiment", json!({"key": key, "baseline": baseline, "denominator": denominator}));
        }
        put("output", self.outputs().into());
        put("consistency", "watermark".into());
        put("bots", "excluded".into());
        Value::Object(fields)
    }

    fn outputs(&self) -> Vec<String> {
        let mut outputs = vec!["steps".to_owned()];
        if let Some(TimeToConvert { from, to, bins }) = self.time_to_convert {
            let bins = bins.map(|bins| format!(":{bins}")).unwrap_or_default();
            outputs.push(format!("time_to_convert:{}:{}{bins}", from + 1, to + 1));
        }
        outputs.extend(self.trend.map(|period| format!("trend:{}", period.name())));
        outputs.extend(self.units.iter().map(|listed| format!("units:{}", listed.name())));
        outputs
    }
}

impl Attribution {
    fn name(self) -> String {
        match self {
            Attribution::FirstTouch => "first_touch".to_owned(),
            Attribution::LastTouch => "last_touch".to_owned(),
            Attribution::AllSteps => "all_steps".to_owned(),
            Attribution::Step(step) => format!("step:{}", step + 1),
        }
    }
}

impl Matches {
    pub(super) fn expanded(&self) -> Map<String, Value> {
        let (name, value) = match self {
            Matches::Events(events) => ("events", events.clone().into()),
            Matches::Where(condition) => ("where", condition.clone().into()),
        };
        [(name.to_owned(), value)].into_iter().collect()
    }
}

impl Step {
    fn expanded(&self) -> Value {
        let mut fields = self.matches.expanded();
        fields.insert("name".to_owned(), self.name.clone().into());
        if let Some(within) = self.within_us {
            fields.insert("within".to_owned(), duration_text(within).into());
        }
        if self.optional {
            fields.insert("optional".to_owned(), true.into());
        }
        fields.into()
    }
}

impl Excluded {
    fn expanded(&self) -> Value {
        let mut fields = self.matches.expanded();
        let Exclusion { after, before, drops } = self.rule;
        fields.insert("after_step".to_owned(), (after + 1).into());
        fields.insert("before_step".to_owned(), (before + 1).into());
        fields.insert("effect".to_owned(), name_of(&EFFECTS, drops).into());
        fields.into()
    }
}
