//! The same sums at the end of each day: what a reader would have seen, had they looked then.
//!
//! Days are those of UTC, by the time of the event. A late event therefore changes the days since it happened, not the day
//! on which it came.

use crate::experiment::measure::counted::{CohortMetric, Progress, Total, UserSum};
use crate::experiment::measure::covariates::{Covariates, Cross};
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::sums::Sums;
use crate::experiment::read::catalogue::Aggregation;
use crate::experiment::read::cohort::{Cohort, DAY_US};
use chrono::DateTime;
use statistics::I256;
use statistics::moments::{Moments, Overflow, Products};

/// Days of a series, at most; what came before lies in the first one.
pub const DAYS_MAX: i64 = 400;

/// The days of an experiment, from the first exposure to the last thing that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Days {
    /// Days since 1970 of the first one.
    pub first: i64,
    /// How many.
    pub count: usize,
}

impl Days {
    /// Returns the days of the users who belong somewhere; `None` without users.
    pub fn of(cohort: &Cohort, groups: &Groups) -> Option<Self> {
        let belongs = |user: &usize| groups.of(*user as u32).is_some();
        let (mut first, mut last) = (i64::MAX, i64::MIN);
        for user in (0..cohort.users.len()).filter(belongs) {
            first = first.min(cohort.users.exposed[user]);
            last = last.max(cohort.users.exposed[user]);
        }
        for rows in cohort.sources.iter().map(|source| &source.after).chain([&cohort.after]) {
            for user in rows.filled().iter().map(|user| *user as usize).filter(belongs) {
                last = last.max(rows.of(user).last().map_or(last, |row| row.time));
            }
        }
        if first > last {
            return None;
        }
        let (first, last) = (first.div_euclid(DAY_US), last.div_euclid(DAY_US));
        let first = first.max(last - DAYS_MAX + 1);
        Some(Days { first, count: (last - first + 1) as usize })
    }

    /// Returns the days from the first exposure of the users who belong somewhere to `now`; `None` without users.
    pub fn until(cohort: &Cohort, groups: &Groups, now: i64) -> Option<Self> {
        let belongs = |user: &usize| groups.of(*user as u32).is_some();
        let first = (0..cohort.users.len()).filter(belongs).map(|user| cohort.users.exposed[user]).min()?;
        let last = now.max(first).div_euclid(DAY_US);
        let first = first.div_euclid(DAY_US).max(last - DAYS_MAX + 1);
        Some(Days { first, count: (last - first + 1) as usize })
    }

    /// Returns the place of a moment among the days.
    pub fn place(&self, us: i64) -> usize {
        let place = (us.div_euclid(DAY_US) - self.first).max(0) as usize;
        place.min(self.count - 1)
    }

    /// Returns the date of a place.
    pub fn date(&self, place: usize) -> String {
        let seconds = (self.first + place as i64) * DAY_US / 1_000_000;
        DateTime::from_timestamp(seconds, 0).map(|time| time.format("%Y-%m-%d").to_string()).unwrap_or_default()
    }
}

/// The sums of each group at the end of one day.
pub type DaySums = Vec<Sums>;

/// Returns the users of each cell at the end of each day.
pub fn users(cohort: &Cohort, groups: &Groups, days: Days) -> Vec<Vec<u64>> {
    let mut users = vec![vec![0; groups.cells().len()]; days.count];
    for user in 0..cohort.users.len() {
        if let Some(cell) = groups.cell(user as u32) {
            users[days.place(cohort.users.exposed[user])][cell] += 1;
        }
    }
    for day in 1..days.count {
        let (past, today) = users.split_at_mut(day);
        today[0].iter_mut().zip(&past[day - 1]).for_each(|(today, before)| *today += before);
    }
    users
}

/// What changes on one day in one cell.
#[derive(Clone)]
struct Change {
    converters: i64,
    amount: i128,
    squares: Products,
    base: i128,
    base_squares: Products,
    product: Products,
    covariates: Cross,
}

impl Change {
    fn new(covariates: &Covariates) -> Self {
        Change {
            converters: 0,
            amount: 0,
            squares: Products::default(),
            base: 0,
            base_squares: Products::default(),
            product: Products::default(),
            covariates: covariates.cross(),
        }
    }
}

/// What came up to one day in one cell.
#[derive(Clone, Default)]
struct Totals {
    converters: i64,
    amount: i128,
    squares: I256,
    base: i128,
    base_squares: I256,
    product: I256,
    covariates: Option<Cross>,
}

/// Returns the sums of each group at the end of each day; `None` for a metric that is not additive over days. `users` are those of
/// each cell at the end of each day. Sums above `cap` count as `cap`.
/// # Errors
/// [`Overflow`].
pub fn sums(
    (counted, aggregation): (&CohortMetric, &Aggregation),
    cohort: &Cohort,
    covariates: &Covariates,
    groups: &Groups,
    (days, users): (Days, &[Vec<u64>]),
    cap: Option<i128>,
) -> Result<Option<Vec<Vec<Sums>>>, Overflow> {
    if !aggregation.has_days() {
        return Ok(None);
    }
    let width = groups.cells().len();
    let mut changes = vec![Change::new(covariates); days.count * width];
    let shown = |amount: i128| cap.map_or(amount, |cap| amount.min(cap));
    let mut filled: Vec<UserSum> = Vec::new();
    // Who has rows stands for them here; what they come to is found day by day.
    filled.extend(counted.filled(cohort).iter().map(|user| UserSum { user: *user, ..UserSum::default() }));
    covariates.each(&filled, |user, has_rows, row| {
        let Some(cell) = groups.cell(user) else { return Ok(()) };
        let exposed = cohort.users.exposed[user as usize];
        changes[days.place(exposed) * width + cell].covariates.add(row)?;
        if has_rows.is_none() {
            return Ok(());
        }
        let mut progress = Progress::default();
        for step in counted.steps(cohort, user as usize).filter(|step| counted.is_in_window(step.row, exposed)) {
            let Total { amount, base, has_converted: had_converted } = progress.total;
            let from = shown(amount);
            if !counted.advance(&mut progress, step)? {
                continue;
            }
            // What was done before the exposure counts from then on.
            let change = &mut changes[days.place(step.row.time.max(exposed)) * width + cell];
            let (to, next_base) = (shown(progress.total.amount), progress.total.base);
            change.converters += i64::from(progress.total.has_converted) - i64::from(had_converted);
            change.amount = change.amount.checked_add(to - from).ok_or(Overflow)?;
            replace(&mut change.squares, (from, from), (to, to))?;
            change.base = change.base.checked_add(next_base - base).ok_or(Overflow)?;
            replace(&mut change.base_squares, (base, base), (next_base, next_base))?;
            replace(&mut change.product, (from, base), (to, next_base))?;
            change.covariates.advance(row, [from, base], [to, next_base])?;
        }
        Ok(())
    })?;
    let mut series = Vec::with_capacity(days.count);
    let mut totals = vec![Totals::default(); width];
    for (day, users) in users.iter().enumerate() {
        let mut row = Vec::with_capacity(width);
        for (cell, total) in totals.iter_mut().enumerate() {
            let change = &changes[day * width + cell];
            total.converters += change.converters;
            total.amount = total.amount.checked_add(change.amount).ok_or(Overflow)?;
            total.base = total.base.checked_add(change.base).ok_or(Overflow)?;
            total.squares = total.squares.checked_add(change.squares.total()?).ok_or(Overflow)?;
            total.base_squares = total.base_squares.checked_add(change.base_squares.total()?).ok_or(Overflow)?;
            total.product = total.product.checked_add(change.product.total()?).ok_or(Overflow)?;
            let known = total.covariates.get_or_insert_with(|| covariates.cross());
            known.merge(&change.covariates)?;
            row.push(Sums {
                users: users[cell],
                converters: total.converters as u64,
                capped: 0,
                amount: Moments::from_parts(users[cell], total.amount, total.squares),
                base: Moments::from_parts(users[cell], total.base, total.base_squares),
                amount_base: total.product,
                covariates: known.total()?,
                strata: Vec::new(),
            });
        }
        series.push(groups.sums_of(row)?);
    }
    Ok(Some(series))
}

/// Replaces one product in a sum of products by another one.
fn replace(sum: &mut Products, from: (i128, i128), to: (i128, i128)) -> Result<(), Overflow> {
    if from != to {
        sum.add(to.0, to.1)?;
        sum.subtract(from.0, from.1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::metrics::default_metrics;
    use ::catalogue::definitions::PerUser;

    use crate::experiment::measure::sums::{
        self,
        tests::{cohort, defined, defined_over},
    };
    use crate::experiment::read::catalogue::{Amount, Configured, Denominator};
    use proptest::prelude::*;

    #[test]
    fn days_are_those_of_utc() {
        let day = |time: &str| DateTime::parse_from_rfc3339(time).expect("a time").timestamp_micros();
        let users = [(0, day("2026-02-28T23:59:59.999999Z")), (1, day("2026-03-01T00:00:00Z"))];
        let cohort = cohort(&users, &[(0, day("2026-03-02T12:00:00Z"), 0, 1)]);
        let groups = Groups::new(2, 2, Some);
        let days = Days::of(&cohort, &groups).expect("users");
        assert_eq!((0..days.count).map(|place| days.date(place)).collect::<Vec<_>>(), ["2026-02-28", "2026-03-01", "2026-03-02"]);
        assert_eq!(super::users(&cohort, &groups, days), [[1, 0], [1, 1], [1, 1]]);
        assert_eq!(Days::of(&cohort, &Groups::new(2, 2, |_| None)), None);
    }

    #[test]
    fn what_is_too_old_lies_in_the_first_day() {
        let cohort = cohort(&[(0, 0), (0, 1_000 * DAY_US)], &[]);
        let groups = Groups::new(2, 1, |_| Some(0));
        let days = Days::of(&cohort, &groups).expect("users");
        assert_eq!((days.first, days.count), (601, 400));
        let users = super::users(&cohort, &groups, days);
        assert_eq!((users[0][0], users[399][0]), (1, 2));
    }

    proptest! {
        #[test]
        fn each_day_is_what_it_would_have_been(
            users in prop::collection::vec((0u32..2, 0i64..6 * DAY_US), 1..12),
            rows in prop::collection::vec((0usize..12, 0i64..9 * DAY_US, 0u32..2, -3i128..9), 0..40),
            cap in prop::option::of(0i128..12),
            which in 0usize..18,
        ) {
            let rows: Vec<(u32, i64, u32, i128)> = rows.into_iter().map(|(user, time, name, value)| ((user % users.len()) as u32, time, name, value)).collect();
            let cap = cap.map(|cap| cap * Moments::SCALE);
            let per_user = [
                PerUser::Exists, PerUser::AtLeast(2), PerUser::Count, PerUser::Sum, PerUser::Min, PerUser::Max, PerUser::First, PerUser::Last,
                PerUser::Distinct, PerUser::DistinctDays, PerUser::AtLeast(3),
            ];
            let aggregation = match which {
                0 => Aggregation::ConversionRate,
                1 => Aggregation::ValuePerUser,
                2 => Aggregation::CountPerUser,
                3 => Aggregation::Ratio(Amount::Value, Denominator::Conversions(None)),
                15 => defined_over(PerUser::Sum, PerUser::Count, false, 2).aggregation,
                16 => defined_over(PerUser::Max, PerUser::Sum, false, 2).aggregation,
                17 => defined_over(PerUser::Exists, PerUser::Count, true, 2).aggregation,
                _ => defined(per_user[which - 4], 2).aggregation,
            };
            let metric = Configured { aggregation: aggregation.clone(), ..default_metrics(Some("buy"))[0].clone() };
            let cap = cap.filter(|_| !aggregation.is_share() && which < 15);
            let whole = cohort(&users, &rows);
            let groups = Groups::new(users.len(), 2, |user| Some(users[user].0 as usize));
            let days = Days::of(&whole, &groups).expect("users");
            let counted = CohortMetric::new(&metric, &whole, Some(0), 2);
            let by_day = super::users(&whole, &groups, days);
            let before = sums::tests::history(&counted.before(&whole).expect("fits"));
            let series = super::sums((&counted, &aggregation), &whole, &before, &groups, (days, &by_day), cap).expect("fits").expect("additive");
            for (place, found) in series.iter().enumerate() {
                let end = (days.first + place as i64 + 1) * DAY_US;
                let until: Vec<_> = rows.iter().copied().filter(|row| row.1 < end).collect();
                let cut = cohort(&users, &until);
                let present = Groups::new(users.len(), 2, |user| (users[user].1 < end).then_some(users[user].0 as usize));
                let counted = CohortMetric::new(&metric, &cut, Some(0), 2);
                let before = sums::tests::history(&counted.before(&cut).expect("fits"));
                let expected = sums::sums(&counted.after(&cut).expect("fits"), &before, &present, cap).expect("fits");
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert_eq!(found.users, expected.users);
                    prop_assert_eq!(found.converters, expected.converters);
                    prop_assert_eq!(found.amount, expected.amount);
                    prop_assert_eq!(found.base, expected.base);
                    prop_assert_eq!(found.amount_base, expected.amount_base);
                    prop_assert_eq!(&found.covariates, &expected.covariates);
                }
            }
        }
    }
}
