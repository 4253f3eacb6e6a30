//! What a metric counts of each user: which rows, and what they come to.

use std::borrow::Cow;

use ::catalogue::REFUND_TYPES;
use ::catalogue::definitions::{Definition, PerUser};
use serde::Serialize;

use crate::experiment::measure::groups::Groups;
use crate::experiment::read::catalogue::{Aggregation, Amount, Configured, DefinedMetric, Denominator};
use crate::experiment::read::cohort::{Cohort, DAY_US, Row, Rows, Source};
use statistics::moments::{Moments, Overflow};

/// What one user did for one metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserSum {
    /// Number of the user.
    pub user: u32,
    /// The sum, in millionths; of a conversion rate 1.
    pub amount: i128,
    /// What a ratio is over, in millionths.
    pub base: i128,
    /// Whether a conversion of the numerator counted.
    pub has_converted: bool,
}

/// Values of single events, by user.
#[derive(Clone, Debug, Default)]
pub struct EventValues {
    /// The users, ascending, each with where its values end.
    users: Vec<(u32, usize)>,
    values: Vec<f64>,
}

impl EventValues {
    fn add(&mut self, user: u32, values: impl Iterator<Item = f64>) {
        let before = self.values.len();
        self.values.extend(values);
        if self.values.len() > before {
            self.users.push((user, self.values.len()));
        }
    }

    /// Returns each user with its values.
    pub fn by_user(&self) -> impl Iterator<Item = (u32, &[f64])> {
        let starts = std::iter::once(0).chain(self.users.iter().map(|(_, end)| *end));
        self.users.iter().zip(starts).map(|((user, end), start)| (*user, &self.values[start..*end]))
    }
}

/// What a row lacks to count in a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Value,
    Currency,
}

/// Rows that are left out for want of a value; a ratio leaves them out of both its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// They have no value.
    pub without_value: u64,
    /// Their value is in another currency.
    pub other_currency: u64,
}

impl LeftOut {
    /// Returns whether nothing was left out.
    pub fn is_empty(&self) -> bool {
        *self == LeftOut::default()
    }
}

/// What a metric counts, in the numbers of a cohort.
#[derive(Clone, Debug)]
pub struct CohortMetric {
    name: Option<Option<u32>>,
    base_name: Option<Option<u32>>,
    /// The numbers of [`REFUND_TYPES`], as far as they occur.
    refunds: [Option<u32>; 2],
    currency: Option<u32>,
    /// When rows count after the first exposure, both ends included.
    window_us: (i64, i64),
    /// Whether the window has no end.
    is_open: bool,
    /// When they count at all, half open, in microseconds since 1970.
    counted: (Option<i64>, Option<i64>),
    aggregation: Aggregation,
}

/// What some rows of one user come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// The sum, in millionths; of a share 1 or 0.
    pub amount: i128,
    /// What a ratio is over, in millionths.
    pub base: i128,
    /// Whether a conversion of the numerator counted.
    pub has_converted: bool,
}

/// How the rows of one user come to something, one by one in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// What those so far come to.
    pub total: Total,
    /// Of a definition.
    own: Tally,
    /// Of what a definition is over.
    over: Tally,
    /// How many steps were done one after the other, and when the last of them was.
    reached: (usize, i64),
}

/// What the rows of one user come to as a definition says.
#[derive(Clone, Debug, Default)]
struct Tally {
    amount: i128,
    rows: u32,
    /// Numbers of texts that came, ascending.
    seen: Vec<u32>,
    /// The last day with a row, in days since 1970.
    day: Option<i64>,
}

impl Tally {
    /// Goes on by one row with its value, which is 1 where rows are counted.
    fn advance(&mut self, per_user: PerUser, row: &Row, value: i128) -> Result<(), Overflow> {
        let is_first = self.rows == 0;
        self.rows = self.rows.saturating_add(1);
        self.amount = match per_user {
            PerUser::Count | PerUser::Sum | PerUser::Each => self.amount.checked_add(value).ok_or(Overflow)?,
            PerUser::First | PerUser::Min | PerUser::Max if is_first => value,
            PerUser::First => self.amount,
            PerUser::Min => self.amount.min(value),
            PerUser::Max => self.amount.max(value),
            PerUser::Last | PerUser::Exists => value,
            PerUser::Distinct => {
                if let Err(place) = self.seen.binary_search(&row.name) {
                    self.seen.insert(place, row.name);
                }
                self.seen.len() as i128 * Moments::SCALE
            }
            PerUser::DistinctDays => {
                let day = row.time.div_euclid(DAY_US);
                let is_new = self.day.replace(day) != Some(day);
                self.amount + if is_new { Moments::SCALE } else { 0 }
            }
            PerUser::AtLeast(least) => {
                if self.rows >= least {
                    Moments::SCALE
                } else {
                    0
                }
            }
        };
        Ok(())
    }
}

/// A row of a user, and which events of a definition it is one of.
#[derive(Clone, Copy)]
pub struct Step<'c> {
    /// The row.
    pub row: &'c Row,
    part: Part,
}

/// Rows from the first exposure on, or those of the days before it.
#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

impl Side {
    fn of(self, source: &Source) -> &Rows {
        match self {
            Side::Before => &source.before,
            Side::After => &source.after,
        }
    }
}

/// Events of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its own.
    Own,
    /// Those that it is over.
    Over,
    /// Those that have to follow, in this place.
    Then(usize),
}

impl Progress {
    /// Goes on by a row of events that have to follow each other. The earliest one that comes after the step before is taken, by which
    /// nobody gets less far than by any other; an event is one step.
    fn follow(&mut self, definition: &Definition, step: Step<'_>) {
        let place = match step.part {
            Part::Own => 0,
            Part::Then(place) => place + 1,
            Part::Over => return,
        };
        let (reached, at) = self.reached;
        let needs_later = place > 0 && definition.may_be_both(place - 1);
        if place == reached && !(needs_later && step.row.time <= at) {
            self.reached = (reached + 1, step.row.time);
        }
        self.total.has_converted = self.reached.0 > definition.then.len();
        self.total.amount = if self.total.has_converted { Moments::SCALE } else { 0 };
    }
}

impl CohortMetric {
    /// Resolves a metric against a cohort. `currency` is the one that values are in, none if all are;
    /// `window_days` that of the experiment.
    pub fn new(metric: &Configured, cohort: &Cohort, currency: Option<u32>, window_days: i32) -> Self {
        let place = |name: &str| cohort.names.binary_search_by(|known| known.as_str().cmp(name)).ok().map(|place| place as u32);
        // A name that never occurred counts nothing.
        let number = |name: &Option<String>| name.as_deref().map(place);
        let base_name = match &metric.aggregation {
            Aggregation::Ratio(_, Denominator::Conversions(name)) => number(name),
            _ => None,
        };
        let window_us = match &metric.aggregation {
            // Half open.
            Aggregation::Defined(defined) => (defined.window_us.0, defined.window_us.1 - 1),
            _ => (0, i64::from(metric.window_days.unwrap_or(window_days)) * DAY_US),
        };
        CohortMetric {
            name: number(&metric.conversion_type),
            base_name,
            refunds: REFUND_TYPES.map(place),
            currency,
            window_us,
            is_open: metric.aggregation.is_open(),
            counted: (None, None),
            aggregation: metric.aggregation.clone(),
        }
    }

    /// Returns the same of what was done in a time, half open, in microseconds since 1970.
    pub fn within(self, counted: (Option<i64>, Option<i64>)) -> Self {
        CohortMetric { counted, ..self }
    }

    /// Returns whether the window has no end.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns when the window after the first exposure is over, in microseconds. One without an end is none to be waited for.
    pub fn window_us(&self) -> i64 {
        match self.aggregation {
            _ if self.is_open => 0,
            // Half open.
            Aggregation::Defined(_) => self.window_us.1 + 1,
            _ => self.window_us.1,
        }
    }

    /// Returns the same in a window that is over so long after it began, or after the exposure if that is later; none if it is not longer.
    pub fn shortened(&self, length_us: i64) -> Option<Self> {
        let end = self.window_us.0.max(0) + length_us;
        let window_us = (self.window_us.0, end - 1);
        (end < self.window_us.1).then(|| CohortMetric { window_us, is_open: false, ..self.clone() })
    }

    /// Returns when the window begins after the first exposure, in microseconds; before it if negative.
    pub fn begins_us(&self) -> i64 {
        self.window_us.0
    }

    fn rows<'c>(&self, cohort: &'c Cohort, side: Side) -> &'c Rows {
        match (&self.aggregation, side) {
            (Aggregation::Defined(defined), _) if let Some(source) = cohort.sources.get(defined.source) => side.of(source),
            (_, Side::After) => &cohort.after,
            (_, Side::Before) => &cohort.before,
        }
    }

    /// Returns the other rows that it is over, if it is over other ones.
    fn rows_over<'c>(&self, cohort: &'c Cohort, side: Side) -> Option<&'c Rows> {
        let Aggregation::Defined(defined) = &self.aggregation else { return None };
        Some(side.of(cohort.sources.get(defined.over?)?))
    }

    /// Returns the users who have rows that it is computed of, ascending.
    pub fn filled<'c>(&self, cohort: &'c Cohort) -> Cow<'c, [u32]> {
        self.filled_of(cohort, Side::After)
    }

    fn filled_of<'c>(&self, cohort: &'c Cohort, side: Side) -> Cow<'c, [u32]> {
        let own = self.rows(cohort, side).filled();
        let Some(over) = self.rows_over(cohort, side) else { return Cow::Borrowed(own) };
        let mut all: Vec<u32> = own.iter().chain(over.filled()).copied().collect();
        all.sort_unstable();
        all.dedup();
        Cow::Owned(all)
    }

    /// Returns the rows of a user that it is computed of, in the order of time; its own come first of equal times.
    pub fn steps<'c>(&self, cohort: &'c Cohort, user: usize) -> impl Iterator<Item = Step<'c>> {
        self.steps_of(cohort, user, Side::After)
    }

    fn steps_of<'c>(&self, cohort: &'c Cohort, user: usize, side: Side) -> impl Iterator<Item = Step<'c>> {
        let mut own = self.rows(cohort, side).of(user);
        let over = self.rows_over(cohort, side).map(|rows| (Part::Over, rows.of(user)));
        let then = match &self.aggregation {
            Aggregation::Defined(defined) => defined.then.as_slice(),
            _ => &[],
        };
        let of_step =
            |(place, source): (usize, &usize)| Some((Part::Then(place), side.of(cohort.sources.get(*source)?).of(user)));
        // Most metrics have none of these, and nothing is allocated then.
        let mut others: Vec<(Part, &'c [Row])> = over.into_iter().chain(then.iter().enumerate().filter_map(of_step)).collect();
        std::iter::from_fn(move || {
            let earliest = |rows: &[Row]| rows.first().map(|row| row.time);
            let other = others.iter_mut().filter(|(_, rows)| !rows.is_empty()).min_by_key(|(_, rows)| earliest(rows));
            let (part, rows) = match other {
                Some((part, rows)) if own.is_empty() || earliest(rows) < earliest(own) => (*part, rows),
                _ => (Part::Own, &mut own),
            };
            let (row, rest) = rows.split_first()?;
            *rows = rest;
            Some(Step { row, part })
        })
    }

    fn counts(name: Option<Option<u32>>, row: &Row) -> bool {
        name.is_none_or(|name| name == Some(row.name))
    }

    /// Returns whether a row takes something back: its value is negative, or its type says so.
    fn is_refund(&self, row: &Row) -> bool {
        row.value.is_some_and(|value| value < 0) || self.refunds.contains(&Some(row.name))
    }

    /// Returns whether a row is a conversion of this name; where all names count, a refund is none.
    fn is_conversion_of(&self, name: Option<Option<u32>>, row: &Row) -> bool {
        Self::counts(name, row) && (name.is_some() || !self.is_refund(row))
    }

    /// Returns a row's value; none without one, or in another currency.
    fn value(&self, row: &Row) -> Option<i128> {
        row.value.filter(|_| self.currency.is_none_or(|currency| currency == row.currency))
    }

    /// Returns a row's value as a definition takes it: what is no money has no currency, and where rows are counted each is 1.
    fn value_of(&self, part: &Definition, row: &Row) -> Option<i128> {
        match (part.per_user.needs_number(), part.has_amounts()) {
            (false, _) => Some(Moments::SCALE),
            (true, true) => self.value(row),
            (true, false) => row.value,
        }
    }

    /// Goes on by one row of the window; returns whether it counts.
    /// # Errors
    /// [`Overflow`].
    pub fn advance(&self, progress: &mut Progress, step: Step<'_>) -> Result<bool, Overflow> {
        match &self.aggregation {
            Aggregation::Defined(defined) => self.advance_by(defined, progress, step),
            _ => self.add_row(&mut progress.total, step.row),
        }
    }

    /// The same for a metric whose rows come to something each by itself.
    fn add_row(&self, total: &mut Total, row: &Row) -> Result<bool, Overflow> {
        let Some((amount, base)) = self.of_row(row) else { return Ok(false) };
        total.amount = total.amount.checked_add(amount).ok_or(Overflow)?;
        total.base = total.base.checked_add(base).ok_or(Overflow)?;
        total.has_converted |= self.is_conversion(row);
        if matches!(self.aggregation, Aggregation::ConversionRate) {
            total.amount = if total.has_converted { Moments::SCALE } else { 0 };
        }
        Ok(true)
    }

    fn advance_by(&self, defined: &DefinedMetric, progress: &mut Progress, step: Step<'_>) -> Result<bool, Overflow> {
        let (row, definition) = (step.row, &defined.reference.definition);
        // Without other events it is over its own.
        if !definition.then.is_empty() {
            progress.follow(definition, step);
            return Ok(true);
        }
        let is_over = step.part == Part::Over;
        let over = definition.over.as_deref().filter(|_| is_over || defined.over.is_none());
        let part = over.filter(|_| is_over).unwrap_or(definition);
        let Some(value) = self.value_of(part, row) else { return Ok(false) };
        if !is_over {
            progress.own.advance(definition.per_user, row, value)?;
            progress.total.amount = progress.own.amount;
            progress.total.has_converted = !matches!(definition.per_user, PerUser::AtLeast(_)) || progress.total.amount > 0;
        }
        if let Some(over) = over {
            progress.over.advance(over.per_user, row, if is_over { value } else { Moments::SCALE })?;
            progress.total.base = progress.over.amount;
        }
        Ok(true)
    }

    /// Returns what a row adds to the sum, and to what a ratio is over; none if it does not count. A row that belongs to both
    /// numerator and denominator counts in both or in none.
    fn of_row(&self, row: &Row) -> Option<(i128, i128)> {
        let amount = |of: Amount| match of {
            Amount::Count => self.is_conversion(row).then_some(Moments::SCALE),
            Amount::Value => Self::counts(self.name, row).then(|| self.value(row).unwrap_or(0)),
        };
        match &self.aggregation {
            Aggregation::Ratio(of, Denominator::Conversions(_)) => {
                if self.lacks(row).is_some() {
                    return None;
                }
                let is_base = match of {
                    Amount::Value => Self::counts(self.base_name, row),
                    Amount::Count => self.is_conversion_of(self.base_name, row),
                };
                let amount = amount(*of);
                (amount.is_some() || is_base).then(|| (amount.unwrap_or(0), if is_base { Moments::SCALE } else { 0 }))
            }
            Aggregation::Ratio(of, Denominator::Impressions) | Aggregation::Quantile(of, _) => amount(*of).map(|of| (of, 0)),
            Aggregation::ValuePerUser => amount(Amount::Value).map(|value| (value, 0)),
            Aggregation::CountPerUser | Aggregation::ConversionRate => amount(Amount::Count).map(|count| (count, 0)),
            // Its rows come to something together.
            Aggregation::Defined(_) => None,
        }
    }

    /// Returns why a row of the numerator cannot count in a ratio of values to conversions; none if it can, or if this is another sort of
    /// metric.
    fn lacks(&self, row: &Row) -> Option<Lack> {
        let can_lack = matches!(self.aggregation, Aggregation::Ratio(Amount::Value, Denominator::Conversions(_)));
        if !can_lack || !Self::counts(self.name, row) || self.value(row).is_some() {
            return None;
        }
        Some(if row.value.is_none() { Lack::Value } else { Lack::Currency })
    }

    /// Returns why a row cannot count; none if it can, or if its value does not matter.
    fn step_lacks(&self, step: Step<'_>) -> Option<Lack> {
        let Aggregation::Defined(defined) = &self.aggregation else { return self.lacks(step.row) };
        let definition = &defined.reference.definition;
        let part = definition.over.as_deref().filter(|_| step.part == Part::Over).unwrap_or(definition);
        match self.value_of(part, step.row) {
            Some(_) => None,
            None if step.row.value.is_none() => Some(Lack::Value),
            None => Some(Lack::Currency),
        }
    }

    /// Counts the rows of those who belong somewhere that are left out for want of a value: of a ratio out of its numerator and its
    /// denominator.
    pub fn left_out(&self, cohort: &Cohort, groups: &Groups) -> LeftOut {
        let mut found = LeftOut::default();
        let can_lack = match &self.aggregation {
            Aggregation::Defined(defined) => defined.reference.definition.parts().any(|(_, part)| part.per_user.needs_number()),
            aggregation => matches!(aggregation, Aggregation::Ratio(Amount::Value, Denominator::Conversions(_))),
        };
        if !can_lack {
            return found;
        }
        for user in self.filled(cohort).iter().filter(|user| groups.of(**user).is_some()) {
            let exposed = cohort.users.exposed[*user as usize];
            for step in self.steps(cohort, *user as usize).filter(|step| self.is_in_window(step.row, exposed)) {
                match self.step_lacks(step) {
                    Some(Lack::Value) => found.without_value += 1,
                    Some(Lack::Currency) => found.other_currency += 1,
                    None => {}
                }
            }
        }
        found
    }

    /// Returns whether a row is a conversion of the numerator.
    fn is_conversion(&self, row: &Row) -> bool {
        self.is_conversion_of(self.name, row)
    }

    /// Returns whether a row lies in the metric's window, and in the time that is asked for.
    pub fn is_in_window(&self, row: &Row, exposed: i64) -> bool {
        let (from, until) = self.counted;
        from.is_none_or(|from| row.time >= from)
            && until.is_none_or(|until| row.time < until)
            && (self.window_us.0..=self.window_us.1).contains(&(row.time - exposed))
    }

    /// Returns what the rows of a user come to that count; none without any.
    fn entry(
        &self,
        cohort: &Cohort,
        user: usize,
        side: Side,
        counts: impl Fn(&Row) -> bool,
    ) -> Result<Option<UserSum>, Overflow> {
        let (mut total, mut is_touched) = (Total::default(), false);
        if let Aggregation::Defined(defined) = &self.aggregation {
            let mut progress = Progress::default();
            let mut advance = |step: Step<'_>| -> Result<(), Overflow> {
                if counts(step.row) {
                    is_touched |= self.advance_by(defined, &mut progress, step)?;
                }
                Ok(())
            };
            if defined.over.is_none() && defined.then.is_empty() {
                let mut own = self.rows(cohort, side).of(user).iter();
                own.try_for_each(|row| advance(Step { row, part: Part::Own }))?;
            } else {
                self.steps_of(cohort, user, side).try_for_each(advance)?;
            }
            total = progress.total;
        } else {
            for row in self.rows(cohort, side).of(user).iter().filter(|row| counts(row)) {
                is_touched |= self.add_row(&mut total, row)?;
            }
        }
        let Total { amount, base, has_converted } = total;
        Ok(is_touched.then_some(UserSum { user: user as u32, amount, base, has_converted }))
    }

    /// Returns the entries of all users who have one, by user.
    /// # Errors
    /// [`Overflow`].
    pub fn after(&self, cohort: &Cohort) -> Result<Vec<UserSum>, Overflow> {
        let entry = |user: usize| {
            let exposed = cohort.users.exposed[user];
            self.entry(cohort, user, Side::After, |row| self.is_in_window(row, exposed))
        };
        // Everybody has impressions, conversions few.
        if matches!(self.aggregation, Aggregation::Ratio(_, Denominator::Impressions)) {
            let with_impressions = |user: usize| {
                let found = entry(user)?.unwrap_or(UserSum { user: user as u32, ..UserSum::default() });
                Ok(UserSum { base: i128::from(cohort.users.impressions[user]) * Moments::SCALE, ..found })
            };
            return gathered(cohort.users.len(), (0..cohort.users.len()).map(with_impressions));
        }
        let filled = self.filled(cohort);
        gathered(filled.len(), filled.iter().filter_map(|user| entry(*user as usize).transpose()))
    }

    /// Returns each value of the users' rows by itself, of a quantile of events; none of other metrics.
    pub fn values(&self, cohort: &Cohort) -> Option<EventValues> {
        let Aggregation::Defined(defined) = &self.aggregation else { return None };
        let definition = &defined.reference.definition;
        if definition.per_user != PerUser::Each {
            return None;
        }
        let mut found = EventValues::default();
        for user in self.filled(cohort).iter() {
            let exposed = cohort.users.exposed[*user as usize];
            let steps = self.steps(cohort, *user as usize).filter(|step| self.is_in_window(step.row, exposed));
            let values = steps.filter_map(|step| self.value_of(definition, step.row));
            found.add(*user, values.map(|value| value as f64 / Moments::SCALE as f64));
        }
        Some(found)
    }

    /// Returns what users came to in the days before their first exposure, by user.
    /// # Errors
    /// [`Overflow`].
    pub fn before(&self, cohort: &Cohort) -> Result<Vec<UserSum>, Overflow> {
        let filled = self.filled_of(cohort, Side::Before);
        let entry = |user: &u32| self.entry(cohort, *user as usize, Side::Before, |_| true).transpose();
        gathered(filled.len(), filled.iter().filter_map(entry))
    }
}

/// Gathers at most `count` entries without growing on the way.
fn gathered(count: usize, entries: impl Iterator<Item = Result<UserSum, Overflow>>) -> Result<Vec<UserSum>, Overflow> {
    let mut gathered = Vec::with_capacity(count);
    for entry in entries {
        gathered.push(entry?);
    }
    Ok(gathered)
}
