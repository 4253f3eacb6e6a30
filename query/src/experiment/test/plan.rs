//! Looks on the way: which of them are allowed for, and what an effect has to reach at each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::experiment::measure::days::Days;
use crate::experiment::measure::population::Population;
use crate::experiment::measure::ripe::Ripeness;
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::experiment::Experiment;
use crate::experiment::request::Analysis;
use crate::experiment::test::findings::{EarlyWarning, LookOn, Sequential, ends};
use statistics::difference::Difference;
use statistics::group_sequential::{self, ALARM_SHARE, Sides, information_fraction};
use statistics::sequential::{Tuning, confidence_sequence, hybrid, tightest_at};

/// Alpha is spent in proportion to this power of the information.
const SPENDING_POWER: f64 = 2.0;

/// The bound of |z| at the end of each day; none while there is no information.
pub type Bounds = Vec<Option<f64>>;

/// What is planned, and what was seen of it on each day.
#[derive(Debug)]
pub struct Plan {
    /// What is allowed for.
    pub analysis: Analysis,
    /// The share of false alarms.
    pub alpha: f64,
    /// Whether no more users will come.
    pub has_ended: bool,
    /// The days that are shown; none without users.
    pub days: Option<Days>,
    /// The days of looks; none without users.
    looks: Option<Days>,
    /// How far the windows of the metrics have closed, by their length in microseconds, where looks rest on it.
    ripeness: HashMap<i64, Arc<Ripeness>>,
    target: Option<u64>,
    weights: Vec<f64>,
    /// From when to when it is planned, in microseconds since 1970.
    time: Option<(i64, i64)>,
    now: i64,
    /// Bounds of each day by variant, window and bits of alpha: finding them takes milliseconds.
    found: Mutex<HashMap<(usize, i64, u64), Bounds>>,
}

/// Returns what the experiment's plan allows for, where nothing was asked for: bounds towards a planned size, else a
/// sequence. An end is no plan by itself: it may have been set because of what was seen.
pub fn default_analysis(experiment: &Experiment) -> Analysis {
    if experiment.target_sample_size.is_some() { Analysis::GroupSequential } else { Analysis::Sequential }
}

/// What one look sees of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The difference, as tests that allow for looks take it.
    pub difference: Difference,
    /// Whether it is adjusted for earlier behaviour.
    pub is_adjusted: bool,
    /// Users of both.
    pub users: u64,
    /// The exact p-value, where counts are few.
    pub exact_p: Option<f64>,
}

/// One comparison of many, as bounds and sequences see it.
pub struct Interim<'a> {
    /// The variant's place.
    pub arm: usize,
    /// The metric's window, in microseconds.
    pub window_us: i64,
    /// Today, of all users, whose outcomes may still grow.
    pub today: Seen,
    /// At the end of each day, of the users whose window had closed; empty for a metric that has no such history.
    pub by_day: &'a [Option<Seen>],
    /// At the end of each day, of all users, with what they had done by then; empty without such a history.
    pub all_by_day: &'a [Option<Seen>],
}

/// What the looks at one comparison come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Looked {
    /// As answers carry it.
    pub shown: Sequential,
    /// What was seen at the look that counts: today's, but where an earlier one decided or was the last of the plan.
    pub seen: Seen,
    /// The place of its day; none where it is today's.
    pub on: Option<usize>,
    /// Whether the difference stands.
    pub stands: bool,
    /// The part of alpha that it might spend.
    share: f64,
}

/// What the early warning of a guardrail saw: what the first look saw that called harm, else the last one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Early {
    /// What users did within a day of their exposure.
    pub seen: Seen,
    /// How many standard errors its interval reaches, at any time.
    pub critical: f64,
    /// For harm, at any time.
    pub p_value: f64,
    /// Whether it called harm.
    pub is_harmed: bool,
    /// The day of the look.
    pub on: LookOn,
}

impl From<Early> for EarlyWarning {
    fn from(early: Early) -> Self {
        EarlyWarning {
            users: early.seen.users,
            estimate: early.seen.difference.estimate,
            ci: ends(Some(early.seen.difference.absolute(early.critical))),
            always_valid_p: early.p_value,
            called_on: early.is_harmed.then_some(early.on),
        }
    }
}

impl Plan {
    /// Makes the plan of an experiment from the users who count. `weights` are those of the variants; `windows` those of the metrics,
    /// in microseconds; `is_newest` says that now is the newest moment there is, of which the experiment's status speaks.
    pub fn new(
        experiment: &Experiment,
        analysis: Analysis,
        weights: Vec<f64>,
        population: &Population<'_>,
        windows: &[i64],
        is_newest: bool,
    ) -> Self {
        let (days, now) = (population.days(), population.now);
        let rests_on_windows = matches!(analysis, Analysis::GroupSequential | Analysis::Hybrid);
        let ripeness = |window_us: &i64| Some((*window_us, population.ripeness(*window_us)?));
        let is_over = experiment.ended_us.is_some_and(|ended| ended <= now);
        let begun = experiment.started_us.or_else(|| days.map(|days| days.first * DAY_US));
        Plan {
            analysis,
            alpha: experiment.alpha,
            has_ended: is_over || (is_newest && matches!(experiment.status.as_str(), "completed" | "archived")),
            days,
            looks: population.look_days(),
            ripeness: windows.iter().filter(|_| rests_on_windows).filter_map(ripeness).collect(),
            target: experiment.target_sample_size.and_then(|target| u64::try_from(target).ok()),
            weights,
            time: begun.zip(experiment.ended_us).filter(|(begun, ended)| begun < ended),
            now,
            found: Mutex::default(),
        }
    }

    /// Returns the users of control and variant at which a sequence is tightest. It is the planned number of both, fixed at
    /// the start.
    pub fn n_star(&self, arm: usize) -> f64 {
        let pair = self.weights.first().unwrap_or(&0.0) + self.weights.get(arm).unwrap_or(&0.0);
        tightest_at(self.target, pair, self.weights.iter().sum())
    }

    /// Returns the part of the planned information at the end of each day: users of both variants whose window has closed, else
    /// time less the window. Empty without a plan.
    pub fn fractions(&self, arm: usize, window_us: i64) -> Vec<f64> {
        let (Some(days), Some(ripeness)) = (self.looks, self.ripeness.get(&window_us)) else { return Vec::new() };
        let mut most = 0.0_f64;
        let of_day = |(place, cells): (usize, &Vec<u64>)| -> Option<f64> {
            if self.target.is_some() {
                most = most.max(information_fraction(self.information(cells, arm), self.n_star(arm))?);
                return Some(most);
            }
            let (begun, ended) = self.time?;
            let day_end = ((days.first + place as i64 + 1) * DAY_US).min(self.now.max(begun)) - window_us;
            Some(((day_end - begun).max(0) as f64 / (ended - begun) as f64).min(1.0))
        };
        let found: Option<Vec<f64>> = ripeness.by_day.iter().enumerate().map(of_day).collect();
        found.unwrap_or_default()
    }

    /// Returns users of both variants by cell, as of [`Groups::cells`](crate::experiment::measure::groups::Groups::cells).
    fn pairs<'a>(&self, cells: &'a [u64], arm: usize) -> impl Iterator<Item = (u64, u64)> + 'a {
        cells.chunks(self.weights.len().max(1)).filter_map(move |arms| Some((*arms.first()?, *arms.get(arm)?)))
    }

    /// Returns the information in users of both variants. Where shares changed it is that of as many users in the planned shares as give
    /// the same precision: uneven shares, and differences that are weighted by strata, have less.
    fn information(&self, cells: &[u64], arm: usize) -> f64 {
        let pairs: Vec<(f64, f64)> =
            self.pairs(cells, arm).map(|(control, treatment)| (control as f64, treatment as f64)).collect();
        let all: f64 = pairs.iter().map(|(control, treatment)| control + treatment).sum();
        let (control, treatment) = (self.weights.first().copied().unwrap_or(0.0), self.weights.get(arm).copied().unwrap_or(0.0));
        if pairs.len() < 2 || control <= 0.0 || treatment <= 0.0 {
            return all;
        }
        let used = || pairs.iter().filter(|(control, treatment)| *control > 0.0 && *treatment > 0.0);
        let users: f64 = used().map(|(control, treatment)| control + treatment).sum();
        let variance: f64 =
            used().map(|(control, treatment)| ((control + treatment) / users).powi(2) * (1.0 / control + 1.0 / treatment)).sum();
        let planned = (control + treatment).powi(2) / (control * treatment);
        if variance > 0.0 { planned / variance } else { 0.0 }
    }

    /// Returns the bound of |z| at the end of each day, two-sided; empty without a plan. A small part of `alpha` is kept for the
    /// alarm of a sequence.
    pub fn bounds(&self, arm: usize, window_us: i64, alpha: f64) -> Bounds {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let of_bounds = alpha * (1.0 - ALARM_SHARE);
        let search = || group_sequential::bounds(&self.fractions(arm, window_us), of_bounds, Sides::Two, SPENDING_POWER);
        found.entry((arm, window_us, alpha.to_bits())).or_insert_with(search).clone()
    }

    /// Returns whether no more users will come, and nothing that those do counts any more.
    pub fn is_final(&self, window_us: i64) -> bool {
        self.has_ended && self.ripeness.get(&window_us).is_none_or(|ripeness| ripeness.next.is_none())
    }

    /// Returns where sequences are tightest. That is the experiment's own alpha whatever the level of an interval is, so that
    /// p-values and intervals agree.
    pub fn tuning(&self, arm: usize) -> Tuning {
        Tuning { tightest_at: self.n_star(arm), alpha: self.alpha }
    }

    /// Looks at one comparison at the level `alpha`. Bounds need the history of a comparison: one that has none is judged by a
    /// sequence. They rest on users whose window has closed; until the planned size is there, a sequence over all users, at a small
    /// part of `alpha`, calls what is broken. Without a plan nothing is spent, and nothing can be crossed.
    pub fn look(&self, interim: &Interim<'_>, alpha: f64) -> Looked {
        let has_plan = self.target.is_some() || self.time.is_some();
        match self.analysis {
            Analysis::GroupSequential if !has_plan => self.without_look(interim, alpha),
            Analysis::GroupSequential if interim.by_day.is_empty() => self.by_sequence(interim, alpha),
            Analysis::GroupSequential => {
                let looked = self.by_bounds(interim, alpha);
                if looked.stands { looked } else { self.alarm(interim, alpha).unwrap_or(looked) }
            }
            Analysis::Fixed | Analysis::Sequential | Analysis::Hybrid => self.by_sequence(interim, alpha),
        }
    }

    /// Returns the first look at all users at which a sequence called what is broken, before the look at the planned size ended the
    /// plan. What was called then stays called, whatever came later.
    fn alarm(&self, interim: &Interim<'_>, alpha: f64) -> Option<Looked> {
        let fractions = self.fractions(interim.arm, interim.window_us);
        let last = fractions.len().checked_sub(1)?;
        let looks = fractions.iter().enumerate().take_while(|(_, part)| **part < 1.0);
        let seen = |place: usize| if place == last { Some(interim.today) } else { *interim.all_by_day.get(place)? };
        looks.filter_map(|(place, _)| Some((place, seen(place)?))).find_map(|(place, seen)| {
            let mut looked = self.at_sequence(interim, seen, alpha, ALARM_SHARE);
            if place < last {
                looked.on = Some(place);
                looked.shown.crossed_on = self.looks.map(|days| LookOn(days.first + place as i64));
            }
            looked.stands.then_some(looked)
        })
    }

    /// Looks for harm by a one-sided sequence over users who were exposed for a day, with what they did in it, at the end of each day.
    pub fn early(&self, arm: usize, by_day: &[Option<Seen>], wants_more: bool, alpha: f64) -> Option<Early> {
        let (tuning, days) = (self.tuning(arm), self.looks?);
        let look = |(place, seen): (usize, &Option<Seen>)| {
            let seen = (*seen)?;
            let z = seen.difference.z();
            let is_worse = (z < 0.0) == wants_more;
            // Half of a two-sided sequence.
            let sequence = confidence_sequence(z, seen.users, 2.0 * alpha, &tuning);
            let is_harmed = is_worse && z.abs() > sequence.critical && seen.exact_p.is_none_or(|p| p < 2.0 * alpha);
            let p_value = if is_worse { sequence.p_value.p / 2.0 } else { 1.0 };
            Some(Early { seen, critical: sequence.critical, p_value, is_harmed, on: LookOn(days.first + place as i64) })
        };
        let looks: Vec<Early> = by_day.iter().enumerate().filter_map(look).collect();
        looks.iter().find(|early| early.is_harmed).or(looks.last()).copied()
    }

    /// Shows what was seen, without what decides.
    fn shown(&self, interim: &Interim<'_>, seen: &Seen, alpha: f64) -> Sequential {
        let (z, tuning) = (seen.difference.z(), self.tuning(interim.arm));
        let sequence = confidence_sequence(z, seen.users, alpha, &tuning);
        let ripeness = self.ripeness.get(&interim.window_us);
        let ripe = |ripeness: &Arc<Ripeness>| {
            let today = ripeness.by_day.last()?;
            Some(self.pairs(today, interim.arm).map(|(control, treatment)| control + treatment).sum())
        };
        Sequential {
            method: Analysis::Sequential.as_str(),
            information_fraction: self.fractions(interim.arm, interim.window_us).last().copied(),
            exposed: interim.today.users,
            ripe: ripeness.and_then(ripe),
            next_information_on: ripeness.and_then(|ripeness| ripeness.next).map(|next| LookOn(next.div_euclid(DAY_US))),
            boundary_z: None,
            z,
            crossed: false,
            crossed_on: None,
            last_look_on: None,
            ci: [None, None],
            ci_relative: [None, None],
            always_valid_p: sequence.p_value.p,
            log10_p: sequence.p_value.log10,
            log10_e: sequence.log10_e,
            n_star: tuning.tightest_at,
        }
    }

    fn without_look(&self, interim: &Interim<'_>, alpha: f64) -> Looked {
        let seen = interim.today;
        Looked { shown: self.shown(interim, &seen, alpha), seen, on: None, stands: false, share: 1.0 }
    }

    fn by_sequence(&self, interim: &Interim<'_>, alpha: f64) -> Looked {
        self.at_sequence(interim, interim.today, alpha, 1.0)
    }

    /// Judges what a look saw by a sequence that may spend a part of `alpha`.
    fn at_sequence(&self, interim: &Interim<'_>, seen: Seen, alpha: f64, share: f64) -> Looked {
        let alpha = alpha * share;
        let mut shown = self.shown(interim, &seen, alpha);
        if self.analysis == Analysis::Hybrid {
            shown.method = Analysis::Hybrid.as_str();
        }
        let critical = self.critical_of_sequence(interim.arm, interim.window_us, &seen, alpha);
        shown.crossed = shown.z.abs() > critical;
        let stands = shown.crossed && seen.exact_p.is_none_or(|p| p < alpha);
        Looked { shown: shown.reaching(&seen.difference, critical), seen, on: None, stands, share }
    }

    fn critical_of_sequence(&self, arm: usize, window_us: i64, seen: &Seen, alpha: f64) -> f64 {
        let tuning = self.tuning(arm);
        match self.analysis {
            Analysis::Hybrid => hybrid(&seen.difference, seen.users, alpha, &tuning, self.is_final(window_us)).critical,
            _ => tuning.critical(seen.users, alpha),
        }
    }

    fn by_bounds(&self, interim: &Interim<'_>, alpha: f64) -> Looked {
        let (fractions, bounds) =
            (self.fractions(interim.arm, interim.window_us), self.bounds(interim.arm, interim.window_us, alpha));
        let seen =
            |seen: &Option<Seen>| seen.map(|seen| group_sequential::Seen { z: seen.difference.z(), exact_p: seen.exact_p });
        let all: Vec<_> = interim.by_day.iter().map(seen).collect();
        let Some(look) = group_sequential::look(&fractions, &bounds, &all, alpha) else {
            return self.without_look(interim, alpha);
        };
        let Some(seen) = interim.by_day.get(look.at).copied().flatten() else { return self.without_look(interim, alpha) };
        let on = Some(look.at).filter(|at| *at + 1 < bounds.len());
        let mut shown = self.shown(interim, &seen, alpha);
        shown.method = Analysis::GroupSequential.as_str();
        shown.crossed = look.crossed;
        let date = || on.zip(self.looks).map(|(place, days)| LookOn(days.first + place as i64));
        (shown.crossed_on, shown.last_look_on) = if look.stands { (date(), None) } else { (None, date()) };
        Looked { shown: shown.reaching(&seen.difference, look.boundary_z), seen, on, stands: look.stands, share: 1.0 }
    }

    /// Returns how many standard errors the interval at 1 - `alpha` reaches of what was seen at a look; none without information.
    pub fn critical(&self, arm: usize, window_us: i64, looked: &Looked, alpha: f64) -> Option<f64> {
        if looked.shown.method == Analysis::GroupSequential.as_str() {
            let bounds = self.bounds(arm, window_us, alpha);
            let place = looked.on.unwrap_or_else(|| bounds.len().saturating_sub(1));
            return bounds.get(place).copied().flatten();
        }
        looked.shown.boundary_z?;
        Some(self.critical_of_sequence(arm, window_us, &looked.seen, alpha * looked.share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::measure::sums::tests::cohort;
    use crate::experiment::request::{PopulationRule, Windows};

    fn experiment(target: Option<i32>, ended_us: Option<i64>) -> Experiment {
        Experiment { alpha: 0.05, target_sample_size: target, started_us: Some(0), ended_us, ..Experiment::default() }
    }

    /// 400 users a day for ten days, half of them in each of two variants; windows are over at once.
    fn plan(experiment: &Experiment, analysis: Analysis) -> Plan {
        plan_after(experiment, analysis, 10, 0)
    }

    /// The same at the end of a day, with windows of so many days.
    fn plan_after(experiment: &Experiment, analysis: Analysis, days: i64, window_days: i64) -> Plan {
        let users: Vec<(u32, i64)> = (0..4_000).map(|user| (user % 2, i64::from(user) / 400 * DAY_US)).collect();
        let users: Vec<(u32, i64)> = users.into_iter().filter(|user| user.1 < days * DAY_US).collect();
        let (cohort, window_us) = (cohort(&users, &[]), window_days * DAY_US);
        let population = Population::by(&cohort, 2, days * DAY_US - 1, (PopulationRule::ExcludeMulti, Windows::All), window_us);
        Plan::new(experiment, analysis, vec![1.0, 1.0], &population, &[window_us], true)
    }

    fn interim(today: Seen, by_day: &[Option<Seen>]) -> Interim<'_> {
        Interim { arm: 1, window_us: 0, today, by_day, all_by_day: &[] }
    }

    fn seen(z: f64) -> Seen {
        let difference = Difference {
            estimate: z,
            std_error: 1.0,
            dof: 1e4,
            baseline: 50.0,
            baseline_variance: 0.5,
            treatment: 50.0 + z,
            slope: -1.0,
            rest_variance: 0.5,
            shares: None,
        };
        Seen { difference, is_adjusted: false, users: 4_000, exact_p: None }
    }

    #[test]
    fn a_plan_chooses_the_analysis() {
        assert_eq!(default_analysis(&experiment(None, None)), Analysis::Sequential);
        assert_eq!(default_analysis(&experiment(Some(10), None)), Analysis::GroupSequential);
        assert_eq!(default_analysis(&experiment(None, Some(10))), Analysis::Sequential);
    }

    #[test]
    fn information_is_users_or_else_time() {
        let by_users = plan(&experiment(Some(5_000), None), Analysis::GroupSequential);
        assert_eq!((by_users.n_star(1), by_users.fractions(1, 0)[0], by_users.fractions(1, 0)[9]), (5_000.0, 0.08, 0.8));
        let by_time = plan(&experiment(None, Some(20 * DAY_US)), Analysis::GroupSequential);
        assert!((by_time.fractions(1, 0)[4] - 0.25).abs() < 1e-9);
        assert!(plan(&experiment(None, None), Analysis::GroupSequential).fractions(1, 0).is_empty());
    }

    /// Ten days of looks, of which the one at the planned size is the last; what came later is shown by today's estimate only.
    #[test]
    fn a_verdict_is_that_of_the_look_at_which_it_fell() {
        let check = |target: i32, z: [f64; 10], stands: bool, crossed_on: Option<i64>, last_on: Option<i64>| {
            let plan = plan(&experiment(Some(target), None), Analysis::GroupSequential);
            let by_day: Vec<Option<Seen>> = z.iter().map(|z| Some(seen(*z))).collect();
            let looked = plan.look(&interim(seen(z[9]), &by_day), 0.05);
            let shown = looked.shown;
            assert_eq!(
                (looked.stands, shown.crossed_on, shown.last_look_on),
                (stands, crossed_on.map(LookOn), last_on.map(LookOn))
            );
            let excludes = shown.ci[0].expect("an end") > 0.0 || shown.ci[1].expect("an end") < 0.0;
            assert_eq!(excludes, stands, "the interval is that of the look that counts: {shown:?}");
            let place = crossed_on.or(last_on).unwrap_or(9) as usize;
            assert_eq!((shown.z, looked.seen.difference.z()), (z[place], z[place]));
            assert_eq!(plan.critical(1, 0, &looked, 0.05), shown.boundary_z);
        };
        // 400 users a day: 4,000 is reached on the last day, 2,000 on the fifth.
        check(4_000, [0.0; 10], false, None, None);
        check(4_000, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.4], true, None, None);
        check(4_000, [0.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0], true, Some(1), None);
        check(2_000, [0.0, 0.0, 0.0, 0.0, 1.9, 2.4, 9.0, 9.0, 9.0, 9.0], false, None, Some(4));
        check(2_000, [0.0, 0.0, 0.0, 0.0, 2.4, 0.0, 0.0, 0.0, 0.0, 0.0], true, Some(4), None);
    }

    #[test]
    fn bounds_fall_to_the_one_of_a_single_test() {
        let plan = plan(&experiment(Some(4_000), None), Analysis::GroupSequential);
        let bounds: Vec<f64> = plan.bounds(1, 0, 0.05).into_iter().map(|bound| bound.expect("information")).collect();
        assert!(bounds.windows(2).all(|pair| pair[0] > pair[1]), "bounds fall: {bounds:?}");
        assert!(bounds[9] > 1.96 && bounds[9] < 2.4, "{bounds:?}");
    }

    /// A metric without a history of looks has no bounds, and one look may not spend what many would.
    #[test]
    fn what_has_no_history_is_judged_by_a_sequence() {
        let plan = plan(&experiment(Some(2_000), None), Analysis::GroupSequential);
        let looked = plan.look(&interim(seen(2.4), &[]), 0.05);
        assert_eq!((looked.shown.method, looked.stands), ("sequential", false), "{looked:?}");
        let looked = plan.look(&interim(seen(5.0), &[]), 0.05);
        assert!(looked.stands && looked.shown.always_valid_p < 0.05, "{looked:?}");
    }

    #[test]
    fn an_exact_test_has_to_agree_at_the_look_itself() {
        for analysis in [Analysis::GroupSequential, Analysis::Sequential, Analysis::Hybrid] {
            let plan = plan(&experiment(Some(4_000), None), analysis);
            let few = |exact_p| Seen { exact_p: Some(exact_p), ..seen(5.0) };
            let stands = |today| plan.look(&interim(today, &[Some(today); 10]), 0.05).stands;
            assert_eq!([0.04, 0.06].map(|p| stands(few(p))), [true, false], "{analysis:?}");
        }
    }

    #[test]
    fn a_sequence_agrees_with_its_p_value_at_any_level() {
        let plan = plan(&experiment(None, None), Analysis::Sequential);
        for level in [0.05, 0.05 / 7.0] {
            for step in 0..60 {
                let looked = plan.look(&interim(seen(f64::from(step) / 10.0), &[]), level);
                let shown = looked.shown;
                assert_eq!(
                    (looked.stands, shown.crossed),
                    (shown.always_valid_p < level, shown.always_valid_p < level),
                    "{shown:?}"
                );
                assert_eq!(shown.crossed, shown.ci[0].expect("an end") > 0.0);
            }
        }
    }

    /// 4,000 planned, 400 users a day on days 1 to 10, windows of 7 days: the first information is there on day 8, all of it on day 17.
    #[test]
    fn information_is_users_whose_window_has_closed() {
        let week = 7 * DAY_US;
        for (days, expected) in [(7, 0.0), (8, 0.1), (12, 0.5), (17, 1.0), (25, 1.0)] {
            let plan = plan_after(&experiment(Some(4_000), None), Analysis::GroupSequential, days, 7);
            let fractions = plan.fractions(1, week);
            assert_eq!((fractions.len() as i64, fractions.last().copied()), (days, Some(expected)), "{days}");
            let first = plan.bounds(1, week, 0.05).get(7).copied().flatten();
            // At a tenth of the information a hundredth of alpha is spent: |z| of 3.4808, 0.0006 more with the alarm's part.
            assert!(first.is_none_or(|bound| (bound - 3.4808).abs() < 2e-3), "{days}: {first:?}");
            assert_eq!(first.is_some(), days >= 8);
            let next = plan.shown(
                &Interim { arm: 1, window_us: week, today: seen(1.0), by_day: &[], all_by_day: &[] },
                &seen(1.0),
                0.05,
            );
            let date = (days < 17).then_some(LookOn(days.max(7)));
            assert_eq!((next.ripe, next.next_information_on), (Some(400 * (days - 7).clamp(0, 10) as u64), date), "{days}");
        }
    }

    /// Nobody's window has closed: what is broken beyond doubt is called, and nothing else.
    #[test]
    fn what_is_broken_does_not_wait_for_windows() {
        let plan = plan_after(&experiment(Some(4_000), None), Analysis::GroupSequential, 10, 30);
        let at = |z: f64| {
            let (today, window_us) = (seen(z), 30 * DAY_US);
            let looked = plan.look(&Interim { arm: 1, window_us, today, by_day: &[None; 10], all_by_day: &[] }, 0.05);
            (looked.stands, looked.shown.method, looked.shown.boundary_z.is_some())
        };
        assert_eq!(at(4.0), (false, "sequential", false));
        assert_eq!(at(6.3), (true, "sequential", true));
    }

    /// Harm that was called stays called; what is better, or less than its bound, is no harm.
    #[test]
    fn an_early_warning_is_of_harm_only() {
        let plan = plan_after(&experiment(Some(4_000), None), Analysis::GroupSequential, 10, 30);
        let check = |z: &[f64], wants_more: bool, expected: (bool, i64)| {
            let by_day: Vec<Option<Seen>> = std::iter::once(None).chain(z.iter().map(|z| Some(seen(*z)))).collect();
            let found = plan.early(1, &by_day, wants_more, 0.01).expect("looks");
            assert_eq!((found.is_harmed, found.on), (expected.0, LookOn(expected.1)), "{z:?} {found:?}");
            assert_eq!(found.is_harmed, found.p_value < 0.01, "{found:?}");
        };
        check(&[0.0, -5.0, 0.0], true, (true, 2));
        check(&[0.0, -5.0, 6.0], true, (true, 2));
        check(&[0.0, 5.0, 0.0], true, (false, 3));
        check(&[0.0, 5.0, 0.0], false, (true, 2));
        check(&[-2.0, -2.0, -2.0], true, (false, 3));
        assert_eq!(plan.early(1, &[None; 4], true, 0.01), None);
    }

    /// The planned size is reached on the last day. What a sequence called before stays called then and afterwards; what it would call
    /// from then on does not count, and where bounds find something that is the verdict.
    #[test]
    fn what_was_called_stays_called() {
        let check = |all: [f64; 10], ripe: [f64; 10], expected: (bool, &str, Option<i64>)| {
            for days in 10..14 {
                let plan = plan_after(&experiment(Some(4_000), None), Analysis::GroupSequential, days, 0);
                let course = |z: [f64; 10]| -> Vec<_> {
                    (0..days as usize)
                        .map(|day| Some(Seen { users: 400 * (day.min(9) as u64 + 1), ..seen(z[day.min(9)]) }))
                        .collect()
                };
                let (by_day, all_by_day) = (course(ripe), course(all));
                let today = by_day.last().copied().flatten().expect("a look");
                let interim = Interim { arm: 1, window_us: 0, today, by_day: &by_day, all_by_day: &all_by_day };
                let looked = plan.look(&interim, 0.05);
                assert_eq!(
                    (looked.stands, looked.shown.method, looked.shown.crossed_on),
                    (expected.0, expected.1, expected.2.map(LookOn)),
                    "{days} {looked:?}"
                );
                if expected.1 == "sequential" {
                    assert_eq!(looked.seen.difference.z(), all[expected.2.expect("a day") as usize]);
                    assert_eq!(plan.critical(1, 0, &looked, 0.05), looked.shown.boundary_z);
                }
            }
        };
        let none = [0.0; 10];
        check([0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], none, (true, "sequential", Some(2)));
        check([0.0, 0.0, 8.0, -9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], none, (true, "sequential", Some(2)));
        check([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0], none, (false, "group_sequential", None));
        check(
            [0.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            (true, "group_sequential", Some(4)),
        );
    }
}
