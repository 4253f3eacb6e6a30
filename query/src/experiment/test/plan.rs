//! Looks on the way: which of them are allowed for, and what an effect has to reach at each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::experiment::measure::days::Days;
use crate::experiment::measure::population::Population;
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::experiment::Experiment;
use crate::experiment::request::Analysis;
use crate::experiment::test::findings::{CrossedOn, Sequential, ends};
use statistics::difference::Difference;
use statistics::group_sequential::{self, Sides, information_fraction};
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
    /// Whether no later look will come.
    pub has_ended: bool,
    /// The days; none without users.
    pub days: Option<Days>,
    /// Users of each variant at the end of each day.
    pub users: Arc<Vec<Vec<u64>>>,
    target: Option<u64>,
    weights: Vec<f64>,
    /// From when to when it is planned, in microseconds since 1970.
    time: Option<(i64, i64)>,
    now: i64,
    /// Bounds of each day by variant and bits of alpha: finding them takes milliseconds.
    found: Mutex<HashMap<(usize, u64), Bounds>>,
}

/// Returns what the experiment's plan allows for, where nothing was asked for: bounds towards a planned size, else a
/// sequence. An end is no plan by itself: it may have been set because of what was seen.
pub fn default_analysis(experiment: &Experiment) -> Analysis {
    if experiment.target_sample_size.is_some() { Analysis::GroupSequential } else { Analysis::Sequential }
}

/// One comparison of many, as bounds and sequences see it.
pub struct Interim<'a> {
    /// The variant's place.
    pub arm: usize,
    /// The difference today.
    pub difference: &'a Difference,
    /// Users of both.
    pub users: u64,
    /// The differences at the end of each day, in standard errors; empty if they are not known.
    pub z_by_day: &'a [Option<f64>],
}

impl Plan {
    /// Makes the plan of an experiment from the users who count. `weights` are those of the variants; `is_newest` says that now
    /// is the newest moment there is, of which the experiment's status speaks.
    pub fn new(
        experiment: &Experiment,
        analysis: Analysis,
        weights: Vec<f64>,
        population: &Population<'_>,
        is_newest: bool,
    ) -> Self {
        let (days, now) = (population.days(), population.now);
        let is_over = experiment.ended_us.is_some_and(|ended| ended <= now);
        let begun = experiment.started_us.or_else(|| days.map(|days| days.first * DAY_US));
        Plan {
            analysis,
            alpha: experiment.alpha,
            has_ended: is_over || (is_newest && matches!(experiment.status.as_str(), "completed" | "archived")),
            days,
            users: population.users_by_day(population.window_us),
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

    /// Returns the part of the planned information at the end of each day: users of both variants, else time. Empty without
    /// a plan.
    pub fn fractions(&self, arm: usize) -> Vec<f64> {
        let Some(days) = self.days else { return Vec::new() };
        let of_day = |(place, users): (usize, &Vec<u64>)| -> Option<f64> {
            if self.target.is_some() {
                let pair = users.first()? + users.get(arm)?;
                return information_fraction(pair, self.n_star(arm));
            }
            let (begun, ended) = self.time?;
            let day_end = ((days.first + place as i64 + 1) * DAY_US).min(self.now.max(begun));
            Some(((day_end - begun).max(0) as f64 / (ended - begun) as f64).min(1.0))
        };
        let found: Option<Vec<f64>> = self.users.iter().enumerate().map(of_day).collect();
        found.unwrap_or_default()
    }

    /// Returns the bound of |z| at the end of each day, two-sided; empty without a plan.
    pub fn bounds(&self, arm: usize, alpha: f64) -> Bounds {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let search = || group_sequential::bounds(&self.fractions(arm), alpha, Sides::Two, SPENDING_POWER);
        found.entry((arm, alpha.to_bits())).or_insert_with(search).clone()
    }

    /// Returns where sequences are tightest. That is the experiment's own alpha whatever the level of an interval is, so that
    /// p-values and intervals agree.
    pub fn tuning(&self, arm: usize) -> Tuning {
        Tuning { tightest_at: self.n_star(arm), alpha: self.alpha }
    }

    /// Looks at one comparison at the level `alpha`.
    pub fn look(&self, interim: &Interim<'_>, alpha: f64) -> Sequential {
        let (difference, tuning) = (interim.difference, self.tuning(interim.arm));
        let z = difference.z();
        let sequence = confidence_sequence(z, interim.users, alpha, &tuning);
        let mut found = Sequential {
            method: self.analysis.as_str(),
            information_fraction: self.fractions(interim.arm).last().copied(),
            boundary_z: None,
            z,
            crossed: false,
            crossed_on: None,
            ci: [None, None],
            ci_relative: [None, None],
            always_valid_p: sequence.p_value.p,
            log10_p: sequence.p_value.log10,
            log10_e: sequence.log10_e,
            n_star: tuning.tightest_at,
        };
        let critical = match self.analysis {
            Analysis::GroupSequential => {
                let look = group_sequential::look(z, &self.bounds(interim.arm, alpha), interim.z_by_day);
                // Without information of a plan nothing is spent, and nothing can be crossed.
                let Some(look) = look else { return Sequential { method: Analysis::Sequential.as_str(), ..found } };
                let day = |place: usize| self.days.map(|days| CrossedOn(days.first + place as i64));
                (found.crossed, found.crossed_on) = (look.crossed, look.crossed_at.and_then(day));
                look.boundary_z
            }
            Analysis::Hybrid => {
                let critical = hybrid(difference, interim.users, alpha, &tuning, self.has_ended).critical;
                found.crossed = z.abs() > critical;
                critical
            }
            Analysis::Fixed | Analysis::Sequential => {
                found.method = Analysis::Sequential.as_str();
                found.crossed = z.abs() > sequence.critical;
                sequence.critical
            }
        };
        found.boundary_z = Some(critical);
        found.ci = ends(Some(difference.absolute(critical)));
        found.ci_relative = ends(difference.relative(critical));
        found
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

    /// 400 users a day for ten days, half of them in each of two variants.
    fn plan(experiment: &Experiment, analysis: Analysis) -> Plan {
        let users: Vec<(u32, i64)> = (0..4_000).map(|user| (user % 2, i64::from(user) / 400 * DAY_US)).collect();
        let cohort = cohort(&users, &[]);
        let population = Population::by(&cohort, 2, 10 * DAY_US - 1, (PopulationRule::ExcludeMulti, Windows::All), DAY_US);
        Plan::new(experiment, analysis, vec![1.0, 1.0], &population, true)
    }

    fn difference(z: f64) -> Difference {
        Difference {
            estimate: z,
            std_error: 1.0,
            dof: 1e4,
            baseline: 50.0,
            baseline_variance: 0.5,
            treatment: 50.0 + z,
            slope: -1.0,
            rest_variance: 0.5,
        }
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
        assert_eq!((by_users.n_star(1), by_users.fractions(1)[0], by_users.fractions(1)[9]), (5_000.0, 0.08, 0.8));
        let by_time = plan(&experiment(None, Some(20 * DAY_US)), Analysis::GroupSequential);
        assert!((by_time.fractions(1)[4] - 0.25).abs() < 1e-9);
        assert!(plan(&experiment(None, None), Analysis::GroupSequential).fractions(1).is_empty());
    }

    #[test]
    fn a_bound_that_was_crossed_stays_crossed() {
        let plan = plan(&experiment(Some(4_000), None), Analysis::GroupSequential);
        let bounds: Vec<f64> = plan.bounds(1, 0.05).into_iter().map(|bound| bound.expect("information")).collect();
        assert!(bounds.windows(2).all(|pair| pair[0] > pair[1]), "bounds fall: {bounds:?}");
        assert!(bounds[9] > 1.96 && bounds[9] < 2.4, "{bounds:?}");
        let check = |z_by_day: &[Option<f64>], z: f64, crossed: bool, on: Option<i64>| {
            let difference = difference(z);
            let found = plan.look(&Interim { arm: 1, difference: &difference, users: 4_000, z_by_day }, 0.05);
            assert_eq!((found.crossed, found.crossed_on), (crossed, on.map(CrossedOn)), "{z_by_day:?} {z}");
            let excludes = found.ci[0].expect("an end") > 0.0 || found.ci[1].expect("an end") < 0.0;
            assert_eq!(excludes, z.abs() > bounds[9], "the interval is that of today's bound");
        };
        check(&[], 1.9, false, None);
        check(&[], -2.4, true, None);
        check(&[Some(1.0), Some(5.0), Some(6.0)], 1.0, true, Some(1));
        check(&[None, Some(2.4), None], 1.0, false, None);
        // The look of today is the last one, not an earlier one.
        check(&[None, None, None, None, None, None, None, None, None, Some(9.0)], 1.0, false, None);
    }

    #[test]
    fn a_sequence_agrees_with_its_p_value_at_any_level() {
        let plan = plan(&experiment(None, None), Analysis::Sequential);
        for level in [0.05, 0.05 / 7.0] {
            for step in 0..60 {
                let difference = difference(f64::from(step) / 10.0);
                let found = plan.look(&Interim { arm: 1, difference: &difference, users: 4_000, z_by_day: &[] }, level);
                assert_eq!(found.crossed, found.always_valid_p < level, "{found:?}");
                assert_eq!(found.crossed, found.ci[0].expect("an end") > 0.0);
            }
        }
    }
}
