//! Sums by the time since each user's own first exposure: what users bring in their first 24 hours, in the next, and so on. Each such day
//! is of the users who were exposed for that long, so that of users who all were, the days add up to the whole window.

use statistics::moments::Overflow;

use crate::experiment::measure::counted::{CohortMetric, Progress, UserSum};
use crate::experiment::measure::covariates::Covariates;
use crate::experiment::measure::days::DaySums;
use crate::experiment::measure::population::Population;
use crate::experiment::measure::sums::sums;
use crate::experiment::read::catalogue::Aggregation;
use crate::experiment::read::cohort::DAY_US;

/// Days that are shown, at most.
const DAYS_MAX: i64 = 90;
/// The first days after the exposure, in which an effect may be one of novelty, and those that they are compared with.
const EARLY: std::ops::Range<usize> = 0..3;
const LATE: std::ops::Range<usize> = 7..14;

/// Sums by the time since the exposure.
#[derive(Debug)]
pub struct SinceExposure {
    /// Each day: which one, from 0 on, and the sums of each variant.
    pub days: Vec<(usize, DaySums)>,
    /// What users come to a day in the early and in the late days, of those who were exposed for as long as the late ones last; none where
    /// the window ends before, nobody was, or users have it or not.
    pub novelty: Option<Novelty>,
}

/// What users come to early and late.
#[derive(Debug)]
pub struct Novelty {
    /// In the early days.
    pub early: DaySums,
    /// In the late ones.
    pub late: DaySums,
    /// Late less early: of each user as many times what the late days come to as there are early ones, less as many times what the early
    /// days come to as there are late ones, so that it is a whole number.
    pub change: DaySums,
}

impl Novelty {
    /// What divides the sums of the early days, of the late ones, and of the change, so that each is what a user comes to a day.
    pub const DIVISORS: [f64; 3] =
        [EARLY.end as f64, (LATE.end - LATE.start) as f64, (EARLY.end * (LATE.end - LATE.start)) as f64];
}

/// Returns the sums of a metric that adds up over time, or of which a user becomes one who has it; none of another one, and of one that
/// looks before the exposure. Nothing is cut.
/// # Errors
/// [`Overflow`].
pub fn since_exposure(
    counted: &CohortMetric,
    aggregation: &Aggregation,
    population: &Population<'_>,
) -> Result<Option<SinceExposure>, Overflow> {
    let (begins, ends) = (counted.begins_us(), counted.window_us());
    if !aggregation.adds_up() || begins < 0 || ends <= begins {
        return Ok(None);
    }
    let first = begins / DAY_US;
    // What ends with a day belongs to it.
    let count = ((ends - 1) / DAY_US - first + 1).min(DAYS_MAX) as usize;
    let entries = entries(counted, population, first, count)?;
    let mut days = Vec::new();
    for (place, entries) in entries.iter().enumerate() {
        let day = first as usize + place;
        let groups = population.exposed_for(((day as i64 + 1) * DAY_US).min(ends));
        if groups.total() == 0 {
            break;
        }
        days.push((day, sums(entries, &Covariates::default(), &groups, None)?));
    }
    let has_novelty = first == 0 && LATE.end <= days.len() && !aggregation.is_share();
    let novelty = if has_novelty { Some(novelty(&entries, population)?) } else { None };
    Ok((!days.is_empty()).then_some(SinceExposure { days, novelty }))
}

/// Returns what each user comes to on each day, by day and user.
fn entries(counted: &CohortMetric, population: &Population<'_>, first: i64, count: usize) -> Result<Vec<Vec<UserSum>>, Overflow> {
    let cohort = population.cohort;
    let mut days: Vec<Vec<UserSum>> = vec![Vec::new(); count];
    for user in counted.filled(cohort).iter().copied() {
        let exposed = cohort.users.exposed[user as usize];
        let mut progress = Progress::default();
        for step in counted.steps(cohort, user as usize).filter(|step| counted.is_in_window(step.row, exposed)) {
            let before = progress.total;
            if !counted.advance(&mut progress, step)? {
                continue;
            }
            let place = (step.row.time - exposed).div_euclid(DAY_US) - first;
            // The end of the window belongs to its last day; days beyond those that are shown are not.
            let Some(place) = usize::try_from(place).ok().filter(|place| *place <= count) else { continue };
            if place == count && counted.window_us() > (first + count as i64) * DAY_US {
                continue;
            }
            let (day, amount) = (&mut days[place.min(count - 1)], progress.total.amount - before.amount);
            let has_converted = progress.total.has_converted && !before.has_converted;
            match day.last_mut().filter(|entry| entry.user == user) {
                Some(entry) => {
                    entry.amount = entry.amount.checked_add(amount).ok_or(Overflow)?;
                    entry.has_converted |= has_converted;
                }
                None => day.push(UserSum { user, amount, base: 0, has_converted }),
            }
        }
    }
    Ok(days)
}

fn novelty(entries: &[Vec<UserSum>], population: &Population<'_>) -> Result<Novelty, Overflow> {
    let groups = population.exposed_for(LATE.end as i64 * DAY_US);
    let added = |days: &[Vec<UserSum>], times: usize| -> Result<Vec<UserSum>, Overflow> {
        let mut all: Vec<UserSum> = days.iter().flatten().copied().collect();
        all.sort_by_key(|entry| entry.user);
        let mut added: Vec<UserSum> = Vec::with_capacity(all.len());
        for entry in all {
            let amount = entry.amount.checked_mul(times as i128).ok_or(Overflow)?;
            match added.last_mut().filter(|last| last.user == entry.user) {
                Some(last) => last.amount = last.amount.checked_add(amount).ok_or(Overflow)?,
                None => added.push(UserSum { amount, ..entry }),
            }
        }
        Ok(added)
    };
    let early = added(&entries[EARLY], 1)?;
    let late = added(&entries[LATE], 1)?;
    let less = |entry: UserSum| UserSum { amount: -entry.amount, ..entry };
    let both = [added(&entries[LATE], EARLY.len())?, added(&entries[EARLY], LATE.len())?.into_iter().map(less).collect()];
    let change = added(&both, 1)?;
    let of = |entries: &[UserSum]| sums(entries, &Covariates::default(), &groups, None);
    Ok(Novelty { early: of(&early)?, late: of(&late)?, change: of(&change)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::metrics::default_metrics;
    use crate::experiment::measure::sums::tests::{cohort, defined};
    use crate::experiment::request::{PopulationRule, Windows};
    use ::catalogue::definitions::PerUser;
    use proptest::prelude::*;
    use statistics::moments::Moments;

    fn population(cohort: &crate::experiment::read::cohort::Cohort, now: i64) -> Population<'_> {
        Population::by(cohort, 2, now, (PopulationRule::ExcludeMulti, Windows::All), 30 * DAY_US)
    }

    proptest! {
        /// Of users whose window is over, the days add up to what they come to in it, and who converts does so on one day.
        #[test]
        fn days_add_up_to_the_window(
            users in prop::collection::vec((0u32..2, 0i64..3 * DAY_US), 1..12),
            rows in prop::collection::vec((0usize..12, 0i64..12 * DAY_US, 0u32..2, -3i128..9), 0..40),
            edges in prop::collection::vec((0usize..12, 0i64..5), 0..6),
            which in 0usize..6, window_days in 1i32..5,
        ) {
            let mut rows: Vec<(u32, i64, u32, i128)> =
                rows.into_iter().map(|(user, time, name, value)| ((user % users.len()) as u32, time, name, value)).collect();
            // On the borders of days.
            rows.extend(edges.into_iter().map(|(user, day)| {
                let user = user % users.len();
                (user as u32, users[user].1 + day * DAY_US, 0, 1)
            }));
            let [rate, value] = default_metrics(None);
            let days = i64::from(window_days);
            let metric = match which {
                0 => rate,
                1 => value,
                2 => defined(PerUser::Sum, days),
                3 => defined(PerUser::Distinct, days),
                4 => defined(PerUser::AtLeast(2), days),
                _ => defined(PerUser::DistinctDays, days),
            };
            let whole = cohort(&users, &rows);
            let population = population(&whole, 30 * DAY_US);
            let counted = CohortMetric::new(&metric, &whole, Some(0), window_days);
            let found = since_exposure(&counted, &metric.aggregation, &population).expect("fits").expect("adds up");
            prop_assert_eq!(found.days.len(), window_days as usize);
            let expected = sums(&counted.after(&whole).expect("fits"), &Covariates::default(), &population.groups(0), None).expect("fits");
            for (arm, expected) in expected.iter().enumerate() {
                let amount: i128 = found.days.iter().map(|(_, day)| day[arm].amount.sum()).sum();
                let converters: u64 = found.days.iter().map(|(_, day)| day[arm].converters).sum();
                prop_assert_eq!((amount, converters), (expected.amount.sum(), expected.converters));
                prop_assert!(found.days.iter().all(|(_, day)| day[arm].users == expected.users));
            }
        }
    }

    /// A user who bought on days 0, 2 and 8, one on day 13, and one who is exposed for 13 days only.
    #[test]
    fn early_and_late_days_are_of_the_same_users() {
        let users = [(0, 0), (0, 0), (1, DAY_US)];
        let rows =
            [(0, 0, 0, 5), (0, 3 * DAY_US - 1, 0, 7), (0, 3 * DAY_US, 0, 100), (0, 8 * DAY_US, 0, 2), (1, 14 * DAY_US - 1, 0, 4)];
        let whole = cohort(&users, &rows);
        let [_, value] = default_metrics(None);
        let counted = CohortMetric::new(&value, &whole, Some(0), 30);
        let found = |now: i64| {
            let population = population(&whole, now);
            since_exposure(&counted, &value.aggregation, &population).expect("fits").expect("adds up")
        };
        let at = found(14 * DAY_US);
        assert_eq!((at.days.len(), at.days[13].1[0].users, at.days[13].1[1].users), (14, 2, 0));
        let novelty = at.novelty.expect("fourteen days");
        let sum = |days: &DaySums| days[0].amount.sum() / Moments::SCALE;
        assert_eq!((sum(&novelty.early), sum(&novelty.late)), (12, 6));
        assert_eq!(sum(&novelty.change), 3 * 6 - 7 * 12);
        assert_eq!((novelty.change[0].users, novelty.change[1].users), (2, 0));
        assert!(found(14 * DAY_US - 1).novelty.is_none());
    }
}
