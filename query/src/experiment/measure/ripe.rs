//! Users whose window has closed, day by day: what looks under a plan rest on. What such a user did counts as a whole on the day on
//! which the window closed, so that each day brings users of its own, and nothing changes afterwards.

use statistics::moments::Overflow;

use crate::experiment::measure::counted::UserSum;
use crate::experiment::measure::covariates::Covariates;
use crate::experiment::measure::days::{DaySums, Days};
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::sums::Running;
use crate::experiment::read::catalogue::Aggregation;
use crate::experiment::read::cohort::Cohort;

/// How far the windows of an experiment's users have closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ripeness {
    /// Users of each cell whose window has closed by the end of each day, the last one today.
    pub by_day: Vec<Vec<u64>>,
    /// When the next window closes, in microseconds since 1970; none if all have.
    pub next: Option<i64>,
}

/// Returns how far windows of `window_us` have closed by `now`.
pub fn ripeness(cohort: &Cohort, groups: &Groups, days: Days, window_us: i64, now: i64) -> Ripeness {
    let mut by_day = vec![vec![0; groups.cells().len()]; days.count];
    let mut next = None;
    for user in 0..cohort.users.len() {
        let Some(cell) = groups.cell(user as u32) else { continue };
        let closes = cohort.users.exposed[user].saturating_add(window_us);
        if closes <= now {
            by_day[days.place(closes)][cell] += 1;
        } else {
            next = Some(next.map_or(closes, |next: i64| next.min(closes)));
        }
    }
    for day in 1..days.count {
        let (past, today) = by_day.split_at_mut(day);
        for (today, before) in today[0].iter_mut().zip(&past[day - 1]) {
            *today += before;
        }
    }
    Ripeness { by_day, next }
}

/// Returns the sums of each group over the users whose window has closed by the end of each day; `None` for a metric that does not
/// add up over users, and for one of impressions, of which only today's number is known. `entries` are ordered by user. Sums above `cap`
/// count as `cap`.
/// # Errors
/// [`Overflow`].
pub fn sums(
    aggregation: &Aggregation,
    cohort: &Cohort,
    (entries, covariates): (&[UserSum], &Covariates),
    groups: &Groups,
    (days, ripeness): (Days, &Ripeness),
    (window_us, now): (i64, i64),
    cap: Option<i128>,
) -> Result<Option<Vec<DaySums>>, Overflow> {
    if !aggregation.has_days() {
        return Ok(None);
    }
    let closed_on = |user: u32| {
        let closes = cohort.users.exposed[user as usize].saturating_add(window_us);
        let cell = groups.cell(user).filter(|_| closes <= now)?;
        Some((days.place(closes), cell))
    };
    let mut found = vec![vec![Running::new(covariates); groups.cells().len()]; days.count];
    covariates.each(entries, |user, entry, row| match closed_on(user) {
        Some((day, cell)) => found[day][cell].add(entry, row, cap),
        None => Ok(()),
    })?;
    for day in 1..days.count {
        let (past, today) = found.split_at_mut(day);
        for (today, before) in today[0].iter_mut().zip(&past[day - 1]) {
            today.merge(before)?;
        }
    }
    let of_day = |(running, users): (&Vec<Running>, &Vec<u64>)| {
        let cells = running.iter().zip(users).map(|(running, users)| running.over(*users)).collect::<Result<_, _>>()?;
        groups.sums_of(cells)
    };
    found.iter().zip(&ripeness.by_day).map(of_day).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::counted::CohortMetric;
    use crate::experiment::measure::metrics::default_metrics;
    use crate::experiment::measure::sums::{self, tests::cohort};
    use crate::experiment::read::cohort::DAY_US;
    use proptest::prelude::*;

    proptest! {
        /// Each day is what the users come to whose window has closed by its end, with all that they did in it.
        #[test]
        fn each_day_is_that_of_the_users_whose_window_has_closed(
            users in prop::collection::vec((0u32..2, 0i64..6 * DAY_US), 1..12),
            rows in prop::collection::vec((0usize..12, 0i64..12 * DAY_US, 0u32..2, -3i128..9), 0..40),
            window_days in 0i32..4, now in 6 * DAY_US..11 * DAY_US,
        ) {
            let rows: Vec<(u32, i64, u32, i128)> = rows.into_iter().map(|(user, time, name, value)| ((user % users.len()) as u32, time, name, value)).collect();
            let [_, value] = default_metrics(Some("buy"));
            let whole = cohort(&users, &rows);
            let groups = Groups::new(users.len(), 2, |user| Some(users[user].0 as usize));
            let first = users.iter().map(|user| user.1).min().expect("users").div_euclid(DAY_US);
            let days = Days { first, count: (now.div_euclid(DAY_US) - first + 1) as usize };
            let counted = CohortMetric::new(&value, &whole, Some(0), window_days);
            let window_us = counted.window_us();
            let found = ripeness(&whole, &groups, days, window_us, now);
            let after = counted.after(&whole).expect("fits");
            let before = sums::tests::history(&counted.before(&whole).expect("fits"));
            let ends = (window_us, now);
            let series = super::sums(&value.aggregation, &whole, (&after, &before), &groups, (days, &found), ends, None);
            for (place, sums) in series.expect("fits").expect("additive").iter().enumerate() {
                let end = ((days.first + place as i64 + 1) * DAY_US - 1).min(now);
                let closed = Groups::new(users.len(), 2, |user| (users[user].1 + window_us <= end).then_some(users[user].0 as usize));
                prop_assert_eq!(sums, &sums::sums(&after, &before, &closed, None).expect("fits"), "day {}", place);
                prop_assert_eq!(found.by_day[place].as_slice(), closed.users());
            }
            prop_assert_eq!(found.next, users.iter().map(|user| user.1 + window_us).filter(|closes| *closes > now).min());
        }
    }
}
