//! Who is counted, in which variant, and when "now" is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use uuid::Uuid;

use super::image::{DAY_US, Image};
use super::series::{self, Days};
use super::settings::{PopulationRule, Request, Windows};
use super::sums::Slots;
use crate::answer::{Excluded, Population, Variant};

/// Who is counted, of one experiment.
pub struct People<'a> {
    /// Users and what they did.
    pub image: &'a Image,
    /// How many variants there are.
    pub arms: usize,
    /// The moment that counts as now, in microseconds since 1970.
    pub now: i64,
    /// Who is asked for.
    pub rule: PopulationRule,
    /// Whose windows.
    pub windows: Windows,
    /// The experiment's window, in microseconds.
    pub window_us: i64,
    /// Users who saw several variants.
    mixed: u64,
    /// What was asked for: most metrics ask for the same.
    slots: Mutex<HashMap<Key, Arc<Slots>>>,
    users_by_day: Mutex<HashMap<Key, Arc<Vec<Vec<u64>>>>>,
    days: OnceLock<Option<Days>>,
}

/// By what users are put into slots. Windows that need not be over are all alike.
type Key = (PopulationRule, Windows, i64);

fn key(rule: PopulationRule, windows: Windows, window_us: i64) -> Key {
    (rule, windows, if windows == Windows::All { 0 } else { window_us })
}

/// Returns what was made for a key before, or makes it. Others wait while it is made: they most likely want the same.
fn once<T>(made: &Mutex<HashMap<Key, Arc<T>>>, key: Key, make: impl FnOnce() -> T) -> Arc<T> {
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(key).or_insert_with(|| Arc::new(make())).clone()
}

impl<'a> People<'a> {
    /// Says who is asked for.
    pub fn new(image: &'a Image, variants: &[Variant], request: &Request, now: i64, window_days: i32) -> Self {
        Self::by(image, variants.len(), now, (request.population, request.windows), i64::from(window_days) * DAY_US)
    }

    /// Does the same by its parts.
    pub fn by(image: &'a Image, arms: usize, now: i64, (rule, windows): (PopulationRule, Windows), window_us: i64) -> Self {
        let mixed = image.users.is_mixed.iter().filter(|is_mixed| **is_mixed).count() as u64;
        let (slots, users_by_day) = (Mutex::default(), Mutex::default());
        People { image, arms, now, rule, windows, window_us, mixed, slots, users_by_day, days: OnceLock::new() }
    }

    /// Puts users into their variants, for a metric with this window.
    pub fn slots(&self, window_us: i64) -> Arc<Slots> {
        self.slots_by(self.rule, self.windows, window_us)
    }

    /// Does the same under other rules.
    pub fn slots_by(&self, rule: PopulationRule, windows: Windows, window_us: i64) -> Arc<Slots> {
        let users = &self.image.users;
        once(&self.slots, key(rule, windows, window_us), || {
            Slots::new(users.len(), self.arms, |user| {
                let is_out = rule == PopulationRule::ExcludeMulti && users.is_mixed[user];
                let is_young = windows == Windows::Complete && !self.is_mature(user, window_us);
                (!is_out && !is_young).then_some(users.arms[user] as usize)
            })
        })
    }

    /// Returns the days from the first exposure on; none without users.
    pub fn days(&self) -> Option<Days> {
        *self.days.get_or_init(|| Days::of(self.image, &self.slots(self.window_us)))
    }

    /// Returns the users of each variant at the end of each day, of those who count for a metric with this window.
    pub fn users_by_day(&self, window_us: i64) -> Arc<Vec<Vec<u64>>> {
        let slots = self.slots(window_us);
        once(&self.users_by_day, key(self.rule, self.windows, window_us), || {
            self.days().map(|days| series::users(self.image, &slots, days)).unwrap_or_default()
        })
    }

    /// Puts users into slots `value * arms + variant`, where `value_of` gives the place of the dimension's value.
    pub fn slots_of_values(&self, values: usize, window_us: i64, value_of: impl Fn(usize) -> usize) -> Slots {
        let whole = self.slots(window_us);
        Slots::new(self.image.users.len(), values * self.arms, |user| {
            whole.of(user as u32).map(|arm| value_of(user) * self.arms + arm)
        })
    }

    fn is_mature(&self, user: usize, window_us: i64) -> bool {
        self.image.users.exposed[user].saturating_add(window_us) <= self.now
    }

    /// Returns how many users saw several variants.
    pub fn multi_exposed(&self) -> u64 {
        self.mixed
    }

    /// Returns the share of users who saw several variants; none without users.
    pub fn multi_share(&self) -> Option<f64> {
        let exposed = self.image.users.len();
        (exposed > 0).then(|| self.multi_exposed() as f64 / exposed as f64)
    }

    /// Returns the users who count whether their window is over or not, and how many of them have one that is.
    pub fn maturity(&self) -> (u64, u64) {
        let any = self.slots_by(self.rule, Windows::All, self.window_us).total();
        (any, self.slots_by(self.rule, Windows::Complete, self.window_us).total())
    }

    /// Says who is counted. `not_counted` brings what the image does not know.
    pub fn describe(&self, not_counted: Excluded) -> Population {
        let (any, mature) = self.maturity();
        let analysed = self.slots(self.window_us).total();
        let multi_exposed = if self.rule == PopulationRule::ExcludeMulti { self.multi_exposed() } else { 0 };
        Population {
            exposed_users: self.image.users.len() as u64,
            analysed_users: analysed,
            excluded: Excluded { multi_exposed, incomplete_window: any - analysed, ..not_counted },
            mature_share: (any > 0).then(|| mature as f64 / any as f64),
            users_per_day: self.users_per_day(),
        }
    }

    /// Returns the time of the first exposure.
    pub fn first_exposure(&self) -> Option<i64> {
        self.image.users.exposed.iter().copied().min()
    }

    /// Returns the time of the newest exposure or conversion.
    pub fn newest(&self) -> Option<i64> {
        let exposed = self.image.users.exposed.iter().copied().max();
        exposed.max(self.image.after.all().iter().map(|row| row.time).max())
    }

    /// Returns the new users per day over the last seven full days before now; 0 where there were none.
    pub fn users_per_day(&self) -> f64 {
        let end = self.now.div_euclid(DAY_US) * DAY_US;
        let slots = self.slots_by(self.rule, Windows::All, self.window_us);
        let is_recent = |user: &usize| {
            let exposed = self.image.users.exposed[*user];
            slots.of(*user as u32).is_some() && exposed < end && exposed >= end - 7 * DAY_US
        };
        (0..self.image.users.len()).filter(is_recent).count() as f64 / 7.0
    }
}

/// Sets the number of users of each variant.
pub fn count(variants: &mut [Variant], slots: &Slots) {
    for (variant, users) in variants.iter_mut().zip(slots.users()) {
        variant.users = Some(*users);
    }
}

/// Returns the ids of variants, in their order.
pub fn ids(variants: &[Variant]) -> Vec<Uuid> {
    variants.iter().map(|variant| variant.id).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sums::tests::image;
    use super::*;

    #[test]
    fn rules_say_who_counts() {
        let mut image = image(&[(0, 0), (0, 5 * DAY_US), (1, DAY_US), (1, 9 * DAY_US)], &[]);
        image.users.is_mixed[2] = true;
        let people = |rule, windows| People::by(&image, 2, 9 * DAY_US + 5, (rule, windows), 3 * DAY_US);
        let check = |rule, windows, users: [u64; 2], excluded: (u64, u64), mature_share: f64| {
            let people = people(rule, windows);
            assert_eq!(people.slots(people.window_us).users(), users, "{rule:?} {windows:?}");
            let found = people.describe(Excluded { unknown_variant: 3, ..Excluded::default() });
            assert_eq!((found.excluded.multi_exposed, found.excluded.incomplete_window), excluded);
            assert_eq!((found.exposed_users, found.excluded.unknown_variant), (4, 3));
            assert_eq!(found.mature_share, Some(mature_share));
        };
        check(PopulationRule::ExcludeMulti, Windows::All, [2, 1], (1, 0), 2.0 / 3.0);
        check(PopulationRule::ExcludeMulti, Windows::Complete, [2, 0], (1, 1), 2.0 / 3.0);
        check(PopulationRule::FirstExposure, Windows::All, [2, 2], (0, 0), 0.75);
        check(PopulationRule::FirstExposure, Windows::Complete, [2, 1], (0, 1), 0.75);
        let people = people(PopulationRule::FirstExposure, Windows::All);
        // Of days 2 to 8 there is one; the user of day 9 came on a day that is not full.
        assert_eq!(people.users_per_day(), 1.0 / 7.0);
        assert_eq!((people.first_exposure(), people.newest()), (Some(0), Some(9 * DAY_US)));
        let values = people.slots_of_values(2, people.window_us, |user| usize::from(user == 3));
        assert_eq!(values.users(), [2, 1, 0, 1]);
    }
}
