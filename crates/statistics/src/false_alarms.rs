//! Experiments that are looked at every day: how often does each method call an effect where there is none, and how often and
//! when where there is one?

use crate::comparison::{Observed, Sample, difference, difference_for_looks};
use crate::group_sequential::{ALARM_SHARE, Seen, Sides, bounds, information_fraction, look};
use crate::power::Plan;
use crate::proportions::Count;
use crate::sample_ratio::{CONCENTRATION, sequential as sequential_shares};
use crate::sequential::{Tuning, confidence_sequence, hybrid, hybrid_level};

/// When users come, when their outcomes are known, and when one looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Days, each with a look at its end.
    pub days: u64,
    /// Days on which users come, the first ones.
    pub enrolment: u64,
    /// Days over which the outcome of a user grows, each one alike; 0: it is complete on the day of exposure.
    pub window: u64,
    /// The day on which the planned number of users has come.
    pub planned_on: u64,
    /// Users of both variants who come on a day.
    pub users_per_day: u64,
}

/// Outcomes are complete at once, and looks end with the planned size.
pub const UNTIL_PLANNED: Scenario = Scenario { days: 30, enrolment: 30, window: 0, planned_on: 30, users_per_day: 1_000 };
/// The planned size is reached on day 10, and users and looks go on.
pub const BEYOND_PLANNED: Scenario = Scenario { days: 60, enrolment: 60, window: 0, planned_on: 10, users_per_day: 1_000 };
/// All users come on day 1, and their outcomes grow over 30 days.
pub const ALL_ON_DAY_ONE: Scenario = Scenario { days: 45, enrolment: 1, window: 30, planned_on: 1, users_per_day: 10_000 };
/// Users come over two weeks, and their outcomes grow over 30 days.
pub const TWO_WEEKS: Scenario = Scenario { days: 60, enrolment: 14, window: 30, planned_on: 14, users_per_day: 1_000 };

/// All of them.
pub const SCENARIOS: [Scenario; 4] = [UNTIL_PLANNED, BEYOND_PLANNED, ALL_ON_DAY_ONE, TWO_WEEKS];

/// Of the control's users, when their outcomes are complete.
const RATE: f64 = 0.1;

impl Scenario {
    /// Returns the relative effect that one test of the planned users, when all is known, finds with a chance of `power` at `alpha`;
    /// `None` if no effect is found with so few users.
    pub fn effect(&self, alpha: f64, power: f64) -> Option<f64> {
        let plan = Plan { mean: RATE, variance: RATE * (1.0 - RATE), is_rate: true, variants: 2, alpha, power };
        Some(plan.detectable(self.users_per_day * self.planned_on)? / RATE)
    }
}

/// In which part of the experiments a method called an effect, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Called {
    /// Between 0 and 1.
    pub part: f64,
    /// The mean day of the first call, over the experiments with one; none without any.
    pub day: Option<f64>,
}

/// What each method called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calls {
    /// A fixed test, looked at every day: what the other methods are for.
    pub peeking: Called,
    /// A fixed test, looked at once when all that was planned is known.
    pub fixed: Called,
    /// A confidence sequence over all users, their outcomes as far as they are known.
    pub sequence: Called,
    /// Group-sequential bounds over the users whose outcomes are complete, with the alarm of a sequence over all.
    pub group_sequential: Called,
    /// A sequence while outcomes grow, and a fixed test at the end.
    pub hybrid: Called,
    /// The sequential check of the shares of users, at the same level; users are always split evenly.
    pub sample_ratio: Called,
}

/// Random bits of Steele, Lea, Flood 2014 (SplitMix64): the same for the same seed on every machine.
pub struct Random(pub u64);

impl Random {
    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// Returns a number between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Returns how many of `users` do what each does with the chance `rate`.
    pub fn binomial(&mut self, users: u64, rate: f64) -> u64 {
        // From one success to the next, whose distance is geometric.
        let step = (1.0 - rate).ln();
        let (mut count, mut place) = (0, 0.0);
        loop {
            place += (self.unit().ln() / step).floor() + 1.0;
            if place > users as f64 {
                return count;
            }
            count += 1;
        }
    }
}

/// The users of one variant who came on one day.
struct Cohort {
    users: u64,
    /// Conversions on each day of their window, the first one that of exposure.
    converted: Vec<u64>,
}

impl Cohort {
    fn random(random: &mut Random, users: u64, rate: f64, window: u64) -> Self {
        let days = window.max(1);
        let part = rate / days as f64;
        let mut left = users;
        let of_day = |day: u64| {
            // Of those who have not converted yet.
            let found = random.binomial(left, part / (1.0 - part * day as f64));
            left -= found;
            found
        };
        Cohort { users, converted: (0..days).map(of_day).collect() }
    }

    /// Those who converted in so many days.
    fn after(&self, days: u64) -> Count {
        Count { users: self.users, converted: self.converted.iter().take(days as usize).sum() }
    }
}

fn sum(counts: impl Iterator<Item = Count>) -> Observed {
    let none = Count { users: 0, converted: 0 };
    let add = |all: Count, one: Count| Count { users: all.users + one.users, converted: all.converted + one.converted };
    Sample::Share(counts.fold(none, add)).into()
}

/// Simulates `runs` experiments with a relative `effect`, 0 for none, and counts what is called at the level `alpha`.
pub fn simulate(scenario: Scenario, effect: f64, runs: u64, alpha: f64, seed: u64) -> Calls {
    let Scenario { days, enrolment, window, planned_on, users_per_day } = scenario;
    let planned = (users_per_day * planned_on) as f64;
    let complete_by = |day: u64| users_per_day * day.saturating_sub(window).min(enrolment);
    let fraction = |day: u64| information_fraction(complete_by(day) as f64, planned).unwrap_or(0.0);
    let fractions: Vec<f64> = (1..=days).map(fraction).collect();
    let of_bounds = alpha * (1.0 - ALARM_SHARE);
    let bounds = bounds(&fractions, of_bounds, Sides::Two, 2.0);
    let tuning = Tuning { tightest_at: planned, alpha };
    let mut random = Random(seed);
    let mut calls = [(0u64, 0u64); 6];
    for _ in 0..runs {
        let (mut daily_users, mut looks) = (Vec::new(), Vec::new());
        let mut cohorts: [Vec<Cohort>; 2] = [Vec::new(), Vec::new()];
        let mut first_day = [None; 6];
        for day in 1..=days {
            if day <= enrolment {
                let users = random.binomial(users_per_day, 0.5);
                daily_users.push(vec![users, users_per_day - users]);
                let of_arms = [(users, RATE), (users_per_day - users, RATE * (1.0 + effect))];
                for (cohorts, (users, rate)) in cohorts.iter_mut().zip(of_arms) {
                    cohorts.push(Cohort::random(&mut random, users, rate, window));
                }
            }
            // All users, with what they did until today; and those whose window has closed, with what they did in it.
            let open =
                [0, 1].map(|arm: usize| sum(cohorts[arm].iter().zip(1..).map(|(cohort, came)| cohort.after(day - came + 1))));
            let complete = |(cohort, came): (&Cohort, u64)| (came + window <= day).then(|| cohort.after(window.max(1)));
            let complete = [0, 1].map(|arm: usize| sum(cohorts[arm].iter().zip(1..).filter_map(complete)));
            let for_looks = difference_for_looks(&open[0], &open[1]).ok();
            let seen = open[0].users + open[1].users;
            let sequence = |alpha: f64| for_looks.map(|found| confidence_sequence(found.z(), seen, alpha, &tuning).p_value.p);
            let by_sequence = sequence(alpha).is_some_and(|p| p < alpha);
            let of_complete = difference_for_looks(&complete[0], &complete[1]).ok();
            looks.push(of_complete.map(|found| Seen { z: found.z(), exact_p: None }));
            let today = day as usize;
            let by_bounds = look(&fractions[..today], &bounds[..today], &looks, of_bounds).is_some_and(|look| look.stands);
            let by_alarm = fractions[today - 1] < 1.0 && sequence(alpha * ALARM_SHARE).is_some_and(|p| p < alpha * ALARM_SHARE);
            let found = difference(&open[0], &open[1]).ok();
            let by_test = found.is_some_and(|found| found.p_value().p < alpha);
            let end = planned_on + window;
            // The plan ends with its last test.
            let of_plan = if day == end { found } else { for_looks };
            let by_hybrid = day <= end
                && of_plan.is_some_and(|found| hybrid(&found, seen, alpha, &tuning, day == end).p_value.p < hybrid_level(alpha));
            let called = [by_test, by_test && day == end, by_sequence, by_bounds || by_alarm, by_hybrid];
            for (first_day, _) in first_day.iter_mut().zip(called).filter(|(first_day, called)| *called && first_day.is_none()) {
                *first_day = Some(day);
            }
        }
        let shares = sequential_shares(&daily_users, &[1.0, 1.0], CONCENTRATION);
        first_day[5] = shares.iter().zip(1..).find(|(log10_p, _)| **log10_p < alpha.log10()).map(|(_, day)| day);
        for ((count, days), day) in calls.iter_mut().zip(first_day) {
            *count += u64::from(day.is_some());
            *days += day.unwrap_or(0);
        }
    }
    let called = |(count, days): (u64, u64)| Called {
        part: count as f64 / runs as f64,
        day: (count > 0).then(|| days as f64 / count as f64),
    };
    let [peeking, fixed, sequence, group_sequential, hybrid, sample_ratio] = calls.map(called);
    Calls { peeking, fixed, sequence, group_sequential, hybrid, sample_ratio }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_looks_keep_their_promise() {
        let (runs, alpha) = (2_000, 0.05);
        // Three standard errors above alpha: what chance explains.
        let limit = alpha + 3.0 * (alpha * (1.0 - alpha) / runs as f64).sqrt();
        for scenario in SCENARIOS {
            let found = simulate(scenario, 0.0, runs, alpha, 1);
            for called in [found.fixed, found.sequence, found.group_sequential, found.hybrid, found.sample_ratio] {
                assert!(called.part <= limit, "{scenario:?} {found:?}");
            }
            // The simulation can see what it looks for, and the plan with an end spends what it may.
            assert!(found.peeking.part > 0.15, "{scenario:?} {found:?}");
            assert!(found.group_sequential.part > 0.03 && found.fixed.part > 0.03, "{scenario:?} {found:?}");
        }
    }

    /// Published for 30 daily looks at what one test finds with 80 %: bounds 76 %, hybrid 72 %, a sequence that is tightest at the
    /// planned size 50 %.
    #[test]
    fn an_effect_is_found_as_often_as_planned_and_earlier() {
        let (runs, alpha) = (1_000, 0.05);
        for scenario in SCENARIOS {
            let effect = scenario.effect(alpha, 0.8).expect("enough users");
            let found = simulate(scenario, effect, runs, alpha, 2);
            let end = (scenario.planned_on + scenario.window) as f64;
            assert!((found.fixed.part - 0.8).abs() < 0.05 && found.fixed.day == Some(end), "{scenario:?} {found:?}");
            assert!(found.group_sequential.part > 0.7, "{scenario:?} {found:?}");
            assert!(found.group_sequential.day.is_some_and(|day| day <= end), "{scenario:?} {found:?}");
        }
        let effect = UNTIL_PLANNED.effect(alpha, 0.8).expect("enough users");
        let found = simulate(UNTIL_PLANNED, effect, runs, alpha, 3);
        for (called, published) in [(found.group_sequential, 0.76), (found.hybrid, 0.72), (found.sequence, 0.5)] {
            assert!((called.part - published).abs() < 0.06, "{published} {found:?}");
        }
        assert!(found.group_sequential.day.is_some_and(|day| day < 25.0), "{found:?}");
    }
}
