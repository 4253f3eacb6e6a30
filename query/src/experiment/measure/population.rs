//! Who is counted, in which variant, and when "now" is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Serialize;
use statistics::distributions::{PValue, chi_square_sf};
use statistics::proportions::{Count, homogeneity};
use uuid::Uuid;

use crate::experiment::measure::days::{self, Days};
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::ripe::{self, Ripeness};
use crate::experiment::measure::strata::Strata;
use crate::experiment::read::Catalogue;
use crate::experiment::read::cohort::{Cohort, DAY_US};
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::read::traits::{Trait, TraitQuery};
use crate::experiment::request::{PopulationRule, Request, Windows};

/// Who is counted.
#[derive(Clone, Debug, Serialize)]
pub struct PopulationCounts {
    /// Users with an exposure.
    pub exposed_users: u64,
    /// Those of them in the metrics.
    pub analysed_users: u64,
    /// And those who are not.
    pub excluded: Excluded,
    /// Share of the users whose conversion window is over, of those who count whether it is or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mature_share: Option<f64>,
    /// New users a day who count, over the last seven full days before now.
    pub users_per_day: f64,
}

/// Why users are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// They saw several variants.
    pub multi_exposed: u64,
    /// Their conversion window is not over, and only complete windows were asked for.
    pub incomplete_window: u64,
    /// Some of their events name a variant that does not exist, and wait as dead letters; 10,000 of these are looked into.
    pub unknown_variant: u64,
    /// They have more rows than take part, as an id that many people share.
    pub over_active: u64,
    /// They were exposed at another time than was asked for; left out where none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_otherwise: Option<u64>,
    /// They are own staff; left out where nothing says who is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<u64>,
    /// What was asked for does not hold for their first exposure; left out where nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filtered: Option<u64>,
    /// They did not do what begins the analysis; left out where the exposure does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_triggered: Option<u64>,
    /// Impressions, not users: sent as not eligible, or outside of the experiment's time. Left out with an `as_of`, since
    /// impressions are counted as of the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impressions_not_counted: Option<u64>,
}

/// Who is counted, of one experiment.
pub struct Population<'a> {
    /// Users and what they did.
    pub cohort: &'a Cohort,
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
    /// Which of them were assigned in the same shares.
    pub strata: Strata,
    /// When they were exposed, half open, in microseconds since 1970.
    exposed: (Option<i64>, Option<i64>),
    /// Of whose first exposure something holds; none: everybody counts.
    condition: Option<&'a Trait>,
    /// Who is own staff; none: nobody.
    internal: Option<&'a Trait>,
    /// Users who saw several variants.
    mixed: u64,
    /// What was asked for: most metrics ask for the same.
    groups: Mutex<HashMap<Key, Arc<Groups>>>,
    users_by_day: Mutex<HashMap<Key, Arc<Vec<Vec<u64>>>>>,
    users_by_look_day: Mutex<HashMap<Key, Arc<Vec<Vec<u64>>>>>,
    days: OnceLock<Option<Days>>,
    look_days: OnceLock<Option<Days>>,
    ripeness: Mutex<HashMap<Key, Arc<Ripeness>>>,
}

/// What leaving out users who saw several variants does to the rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Exclusion {
    /// Chi-square of left out and kept users by the variant that they saw first.
    pub statistic: f64,
    /// Its degrees of freedom.
    pub dof: u64,
    /// For one look.
    pub p_value: PValue,
    /// Of all exposed users, those who saw several.
    pub share: f64,
    /// Those by the variant that they saw first.
    pub left_out: Vec<u64>,
    /// Whether the variants lose different parts of their users, and enough to matter: then who is left is no fair sample.
    pub is_biased: bool,
}

/// Below this p-value the variants do not lose equal parts of their users.
const EXCLUSION_BIASED_BELOW: f64 = 0.001;
/// Up to this share of users left out nothing moves that anybody could see.
const EXCLUDED_SHARE_MAX: f64 = 0.001;

/// By what users are put into groups. Windows that need not be over are all alike.
type Key = (PopulationRule, Windows, i64);

fn key(rule: PopulationRule, windows: Windows, window_us: i64) -> Key {
    (rule, windows, if windows == Windows::All { 0 } else { window_us })
}

/// Returns what was made for a key before, or makes it. Others wait while it is made: they most likely want the same.
fn once<T>(made: &Mutex<HashMap<Key, Arc<T>>>, key: Key, make: impl FnOnce() -> T) -> Arc<T> {
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    made.entry(key).or_insert_with(|| Arc::new(make())).clone()
}

impl<'a> Population<'a> {
    /// Says who is asked for. Where nothing was, users who saw several variants are left out, unless the variants lose different
    /// parts of their users by that: then they count for the one that they saw first.
    pub fn new(cohort: &'a Cohort, catalogue: &Catalogue, request: &Request, now: i64) -> Self {
        let (experiment, variants) = (&catalogue.experiment, &catalogue.variants);
        let rule = request.population.unwrap_or(PopulationRule::ExcludeMulti);
        let window_us = i64::from(experiment.conversion_window_days) * DAY_US;
        let found = Self::by(cohort, variants.len(), now, (rule, request.windows), window_us);
        let holds = |condition: &String| cohort.find_trait(&TraitQuery::Condition(condition.clone()));
        let (condition, internal) = (request.condition.as_ref().and_then(holds), catalogue.internal.as_ref().and_then(holds));
        let strata = Strata::of(experiment, variants);
        let found = Population { strata, exposed: request.exposed, condition, internal, ..found };
        let is_moved = request.population.is_none() && found.exclusion().is_some_and(|exclusion| exclusion.is_biased);
        if is_moved { Population { rule: PopulationRule::FirstExposure, ..found } } else { found }
    }

    /// Compares the variants in the part of their users who saw others, too, by the variant that they saw first; none without users
    /// of several variants, or who saw several.
    pub fn exclusion(&self) -> Option<Exclusion> {
        if self.mixed == 0 {
            return None;
        }
        let users = &self.cohort.users;
        let mut strata = vec![vec![Count { users: 0, converted: 0 }; self.arms]; self.strata.count()];
        for (user, arm) in users.arms.iter().enumerate() {
            let count = strata[self.strata.of_time(users.assigned(user))].get_mut(*arm as usize)?;
            count.users += 1;
            count.converted += u64::from(users.is_mixed[user]);
        }
        let (mut statistic, mut dof) = (0.0, 0);
        for counts in &strata {
            if let Some((of_stratum, _)) = homogeneity(counts) {
                statistic += of_stratum;
                dof += counts.iter().filter(|count| count.users > 0).count() as u64 - 1;
            }
        }
        let tail = (dof > 0).then(|| chi_square_sf(statistic, dof as f64))?;
        let share = self.multi_share()?;
        Some(Exclusion {
            statistic,
            dof,
            share,
            left_out: (0..self.arms).map(|arm| strata.iter().map(|counts| counts[arm].converted).sum()).collect(),
            is_biased: share > EXCLUDED_SHARE_MAX && tail.p < EXCLUSION_BIASED_BELOW,
            p_value: tail.into(),
        })
    }

    /// Does the same by its parts.
    pub fn by(cohort: &'a Cohort, arms: usize, now: i64, (rule, windows): (PopulationRule, Windows), window_us: i64) -> Self {
        let mixed = cohort.users.is_mixed.iter().filter(|is_mixed| **is_mixed).count() as u64;
        Population {
            cohort,
            arms,
            now,
            rule,
            windows,
            window_us,
            strata: Strata::default(),
            exposed: (None, None),
            condition: None,
            internal: None,
            mixed,
            groups: Mutex::default(),
            users_by_day: Mutex::default(),
            users_by_look_day: Mutex::default(),
            days: OnceLock::new(),
            look_days: OnceLock::new(),
            ripeness: Mutex::default(),
        }
    }

    /// Puts users into their variants, for a metric with this window.
    pub fn groups(&self, window_us: i64) -> Arc<Groups> {
        self.groups_by(self.rule, self.windows, window_us)
    }

    /// Does the same under other rules.
    pub fn groups_by(&self, rule: PopulationRule, windows: Windows, window_us: i64) -> Arc<Groups> {
        once(&self.groups, key(rule, windows, window_us), || self.put(rule, windows, window_us))
    }

    /// Puts those users into their variants whose first exposure was so long ago; for one use.
    pub fn exposed_for(&self, long_us: i64) -> Groups {
        self.put(self.rule, Windows::Complete, long_us)
    }

    /// Puts those users into their variants who did not do what begins the analysis, and all users whether they did or not; for one use. None
    /// where the exposure begins it.
    pub fn beside_trigger(&self, window_us: i64) -> Option<[Groups; 2]> {
        let users = &self.cohort.users;
        let untriggered = |user: usize| !users.has_begun(user);
        (!users.is_triggered.is_empty()).then(|| {
            let of = |is_in: &dyn Fn(usize) -> bool| self.put_those(self.rule, self.windows, window_us, is_in);
            [of(&untriggered), of(&|_| true)]
        })
    }

    fn put(&self, rule: PopulationRule, windows: Windows, window_us: i64) -> Groups {
        self.put_those(rule, windows, window_us, &|user| self.cohort.users.has_begun(user))
    }

    fn put_those(&self, rule: PopulationRule, windows: Windows, window_us: i64, is_in: &dyn Fn(usize) -> bool) -> Groups {
        let users = &self.cohort.users;
        let groups = Groups::new(users.len(), self.arms, |user| {
            let is_out =
                !is_in(user) || (rule == PopulationRule::ExcludeMulti && users.is_mixed[user]) || !self.is_asked_for(user);
            let is_young = windows == Windows::Complete && !self.is_mature(user, window_us);
            (!is_out && !is_young).then_some(users.arms[user] as usize)
        });
        self.stratified(groups)
    }

    fn stratified(&self, groups: Groups) -> Groups {
        groups.stratified(self.strata.count(), |user| self.strata.of_time(self.cohort.users.assigned(user)))
    }

    /// Returns the days from the first exposure on; none without users.
    pub fn days(&self) -> Option<Days> {
        *self.days.get_or_init(|| Days::of(self.cohort, &self.groups(self.window_us)))
    }

    /// Returns the users of each cell of [`Population::groups`] at the end of each day, of those who count for a metric with this window.
    pub fn users_by_day(&self, window_us: i64) -> Arc<Vec<Vec<u64>>> {
        self.users_of(&self.users_by_day, self.days(), window_us)
    }

    /// Returns the same at the end of each day of looks.
    pub fn users_by_look_day(&self, window_us: i64) -> Arc<Vec<Vec<u64>>> {
        self.users_of(&self.users_by_look_day, self.look_days(), window_us)
    }

    fn users_of(&self, made: &Mutex<HashMap<Key, Arc<Vec<Vec<u64>>>>>, days: Option<Days>, window_us: i64) -> Arc<Vec<Vec<u64>>> {
        let groups = self.groups(window_us);
        once(made, key(self.rule, self.windows, window_us), || {
            days.map(|days| days::users(self.cohort, &groups, days)).unwrap_or_default()
        })
    }

    /// Returns the days of looks, from the first exposure to now; none without users.
    pub fn look_days(&self) -> Option<Days> {
        *self.look_days.get_or_init(|| Days::until(self.cohort, &self.groups_by(self.rule, Windows::All, 0), self.now))
    }

    /// Returns how far windows of this length have closed, of those who count; none without users.
    pub fn ripeness(&self, window_us: i64) -> Option<Arc<Ripeness>> {
        let (groups, days) = (self.groups_by(self.rule, Windows::All, window_us), self.look_days()?);
        let key = key(self.rule, Windows::Complete, window_us);
        Some(once(&self.ripeness, key, || ripe::ripeness(self.cohort, &groups, days, window_us, self.now)))
    }

    /// Puts users into groups `value * arms + variant`, where `value_of` gives the place of the dimension's value.
    pub fn groups_of_values(&self, values: usize, window_us: i64, value_of: impl Fn(usize) -> usize) -> Groups {
        let whole = self.groups(window_us);
        let groups = Groups::new(self.cohort.users.len(), values * self.arms, |user| {
            whole.of(user as u32).map(|arm| value_of(user) * self.arms + arm)
        });
        self.stratified(groups)
    }

    /// Returns whether a user is none of the own staff, and was exposed when and as it is asked for.
    fn is_asked_for(&self, user: usize) -> bool {
        !self.is_internal(user) && self.is_exposed_then(user) && self.has_condition(user)
    }

    fn is_internal(&self, user: usize) -> bool {
        self.internal.is_some_and(|holds| holds.of(user).is_some())
    }

    fn has_condition(&self, user: usize) -> bool {
        self.condition.is_none_or(|holds| holds.of(user).is_some())
    }

    fn is_exposed_then(&self, user: usize) -> bool {
        let (from, until) = self.exposed;
        let exposed = self.cohort.users.assigned(user);
        from.is_none_or(|from| exposed >= from) && until.is_none_or(|until| exposed < until)
    }

    fn is_mature(&self, user: usize, window_us: i64) -> bool {
        self.cohort.users.exposed[user].saturating_add(window_us) <= self.now
    }

    /// Returns how many users saw several variants.
    pub fn multi_exposed(&self) -> u64 {
        self.mixed
    }

    /// Returns the share of users who saw several variants; none without users.
    pub fn multi_share(&self) -> Option<f64> {
        let exposed = self.cohort.users.len();
        (exposed > 0).then(|| self.multi_exposed() as f64 / exposed as f64)
    }

    /// Returns the users who count whether their window is over or not, and how many of them have one that is.
    pub fn maturity(&self) -> (u64, u64) {
        let any = self.groups_by(self.rule, Windows::All, self.window_us).total();
        (any, self.groups_by(self.rule, Windows::Complete, self.window_us).total())
    }

    /// Counts who is counted and who is left out. `unknown_variant` and `over_active` users are not in the cohort; `impressions` are all that
    /// are stored, none if that is not known as of now.
    pub fn count(&self, unknown_variant: u64, over_active: u64, impressions: Option<u64>) -> PopulationCounts {
        let (any, mature) = self.maturity();
        let analysed = self.groups(self.window_us).total();
        let counted = self.cohort.users.impressions.iter().map(|seen| u64::try_from(*seen).unwrap_or(0)).sum();
        PopulationCounts {
            exposed_users: self.cohort.users.len() as u64,
            analysed_users: analysed,
            excluded: Excluded {
                multi_exposed: if self.rule == PopulationRule::ExcludeMulti { self.multi_exposed() } else { 0 },
                incomplete_window: any - analysed,
                unknown_variant,
                over_active,
                exposed_otherwise: self.exposed_otherwise(),
                internal: self
                    .internal
                    .map(|_| (0..self.cohort.users.len()).filter(|user| self.is_internal(*user)).count() as u64),
                filtered: self.filtered(),
                not_triggered: self.not_triggered(),
                impressions_not_counted: impressions.map(|stored| stored.saturating_sub(counted)),
            },
            mature_share: (any > 0).then(|| mature as f64 / any as f64),
            users_per_day: self.users_per_day(),
        }
    }

    fn exposed_otherwise(&self) -> Option<u64> {
        let is_other = |user: &usize| !self.is_internal(*user) && !self.is_exposed_then(*user);
        let others = || (0..self.cohort.users.len()).filter(is_other).count() as u64;
        (self.exposed != (None, None)).then(others)
    }

    fn filtered(&self) -> Option<u64> {
        let others = |user: &usize| !self.is_internal(*user) && self.is_exposed_then(*user) && !self.has_condition(*user);
        self.condition.map(|_| (0..self.cohort.users.len()).filter(others).count() as u64)
    }

    /// Returns how many users did not do what begins the analysis, of those who would count; none where the exposure begins it.
    fn not_triggered(&self) -> Option<u64> {
        let users = &self.cohort.users;
        let is_out =
            |user: &usize| self.rule == PopulationRule::ExcludeMulti && users.is_mixed[*user] || !self.is_asked_for(*user);
        let untriggered = || (0..users.len()).filter(|user| !users.has_begun(*user) && !is_out(user)).count() as u64;
        (!users.is_triggered.is_empty()).then(untriggered)
    }

    /// Returns the days from the first exposure that counts until now; 0 for less than one, which tells nothing about a day.
    pub fn days_of_traffic(&self, experiment: &Experiment) -> f64 {
        let begun = experiment.started_us.max(self.first_exposure()).or(self.first_exposure());
        let end = self.now.min(experiment.ended_us.unwrap_or(self.now));
        let days = begun.map_or(0.0, |begun| (end - begun).max(0) as f64 / DAY_US as f64);
        if days >= 1.0 { days } else { 0.0 }
    }

    /// Returns the time of the first exposure.
    pub fn first_exposure(&self) -> Option<i64> {
        self.cohort.users.exposed.iter().copied().min()
    }

    /// Returns the time of the newest exposure or conversion.
    pub fn newest(&self) -> Option<i64> {
        self.cohort.newest()
    }

    /// Returns the new users per day over the last seven full days before now; 0 where there were none.
    pub fn users_per_day(&self) -> f64 {
        let end = self.now.div_euclid(DAY_US) * DAY_US;
        let groups = self.groups_by(self.rule, Windows::All, self.window_us);
        let is_recent = |user: &usize| {
            let exposed = self.cohort.users.exposed[*user];
            groups.of(*user as u32).is_some() && exposed < end && exposed >= end - 7 * DAY_US
        };
        (0..self.cohort.users.len()).filter(is_recent).count() as f64 / 7.0
    }
}

/// Returns the ids of variants, in their order.
pub fn ids(variants: &[Variant]) -> Vec<Uuid> {
    variants.iter().map(|variant| variant.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::sums::tests::cohort;
    use crate::experiment::read::experiment::{Phase, PhaseWeight};

    /// 90/10, and 2 % of 100,000 users are assigned anew: 180 of each variant saw both. By SciPy the chi-square is 642.3.
    #[test]
    fn what_exclusion_does_to_the_rest_is_tested() {
        let users: Vec<(u32, i64)> = (0..100_000).map(|user| (u32::from(user >= 90_000), 0)).collect();
        let mut cohort = cohort(&users, &[]);
        for user in (0..180).chain(90_000..90_180) {
            cohort.users.is_mixed[user] = true;
        }
        let variants =
            [0, 1].map(|id| Variant { id: Uuid::from_u128(id), name: String::new(), is_control: id == 0, ..Variant::default() });
        let rule = |asked| {
            let request = Request { population: asked, ..Request::default() };
            let experiment = Experiment { conversion_window_days: 1, ..Experiment::default() };
            let catalogue = Catalogue { experiment, variants: variants.to_vec(), ..Catalogue::default() };
            Population::new(&cohort, &catalogue, &request, DAY_US).rule
        };
        let population = Population::by(&cohort, 2, DAY_US, (PopulationRule::ExcludeMulti, Windows::All), DAY_US);
        let found = population.exclusion().expect("users");
        assert!((found.statistic - 642.3).abs() < 0.1 && found.is_biased, "{found:?}");
        assert_eq!((found.dof, found.left_out.as_slice(), found.share), (1, [180, 180].as_slice(), 0.0036));
        assert_eq!(rule(None), PopulationRule::FirstExposure);
        assert_eq!(rule(Some(PopulationRule::ExcludeMulti)), PopulationRule::ExcludeMulti, "what was asked for is done");
        // Equal parts of both, and parts that are too small to matter.
        let mixed = |control: usize, b: usize| {
            let mut cohort = cohort.clone();
            cohort.users.is_mixed = (0..100_000).map(|user| user < control || (user >= 90_000 && user < 90_000 + b)).collect();
            let population = Population::by(&cohort, 2, DAY_US, (PopulationRule::ExcludeMulti, Windows::All), DAY_US);
            population.exclusion().map(|found| found.is_biased)
        };
        assert_eq!([mixed(1_800, 200), mixed(0, 90), mixed(0, 101), mixed(0, 0)], [Some(false), Some(false), Some(true), None]);
        // Half of the users come on day 1, when a tenth of them sees both, and 90 % the control; all others on day 2, half and half.
        let users: Vec<(u32, i64)> = (0..20_000)
            .map(|user| match user {
                0..10_000 => (u32::from(user % 10 == 0), 0),
                _ => ((user % 2) as u32, DAY_US),
            })
            .collect();
        let mut cohort = self::cohort(&users, &[]);
        (0..10_000).for_each(|user| cohort.users.is_mixed[user] = user / 10 % 10 == 0);
        let phase = |start, weights: [f64; 2]| Phase {
            state: "assigning".to_owned(),
            started_us: Some(start),
            weights: [0, 1]
                .map(|id| PhaseWeight { variant_id: Uuid::from_u128(id), weight: Some(weights[id as usize]) })
                .to_vec(),
            ..Phase::default()
        };
        let phases = vec![phase(0, [9.0, 1.0]), phase(DAY_US, [1.0, 1.0])];
        let biased = |phases: Vec<Phase>| {
            let experiment = Experiment { phases, conversion_window_days: 1, ..Experiment::default() };
            let catalogue = Catalogue { experiment, variants: variants.to_vec(), ..Catalogue::default() };
            Population::new(&cohort, &catalogue, &Request::default(), 3 * DAY_US)
                .exclusion()
                .map(|found| (found.is_biased, found.dof))
        };
        assert_eq!([biased(Vec::new()), biased(phases)], [Some((true, 1)), Some((false, 1))]);
    }

    #[test]
    fn rules_say_who_counts() {
        let mut cohort = cohort(&[(0, 0), (0, 5 * DAY_US), (1, DAY_US), (1, 9 * DAY_US)], &[]);
        cohort.users.is_mixed[2] = true;
        let population = |rule, windows| Population::by(&cohort, 2, 9 * DAY_US + 5, (rule, windows), 3 * DAY_US);
        let check = |rule, windows, users: [u64; 2], excluded: (u64, u64), mature_share: f64| {
            let population = population(rule, windows);
            assert_eq!(population.groups(population.window_us).users(), users, "{rule:?} {windows:?}");
            let found = population.count(3, 2, Some(100));
            assert_eq!((found.excluded.multi_exposed, found.excluded.incomplete_window), excluded);
            assert_eq!((found.exposed_users, found.excluded.unknown_variant, found.excluded.over_active), (4, 3, 2));
            assert_eq!(found.excluded.impressions_not_counted, Some(92), "each of four users has two");
            assert_eq!(found.mature_share, Some(mature_share));
        };
        check(PopulationRule::ExcludeMulti, Windows::All, [2, 1], (1, 0), 2.0 / 3.0);
        check(PopulationRule::ExcludeMulti, Windows::Complete, [2, 0], (1, 1), 2.0 / 3.0);
        check(PopulationRule::FirstExposure, Windows::All, [2, 2], (0, 0), 0.75);
        check(PopulationRule::FirstExposure, Windows::Complete, [2, 1], (0, 1), 0.75);
        let population = population(PopulationRule::FirstExposure, Windows::All);
        // Of days 2 to 8 there is one; the user of day 9 came on a day that is not full.
        assert_eq!(population.users_per_day(), 1.0 / 7.0);
        assert_eq!((population.first_exposure(), population.newest()), (Some(0), Some(9 * DAY_US)));
        let values = population.groups_of_values(2, population.window_us, |user| usize::from(user == 3));
        assert_eq!(values.users(), [2, 1, 0, 1]);
    }
}
