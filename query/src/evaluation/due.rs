//! Which moments of an experiment are to be recorded.

use catalogue::ExperimentStatus;

use crate::experiment::read::catalogue::Defined;
use crate::experiment::read::cohort::DAY_US;

/// Microseconds of an hour.
const HOUR_US: i64 = DAY_US / 24;
/// Days of one experiment that are recorded, at most: the newest.
const DAYS_MAX: i64 = 400;
/// For so long after the last window of an experiment has closed, late events still change its records.
const SETTLES_DAYS: i64 = 30;

/// What of a project's events is over: an event of later is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Over {
    /// All days before this one, in days since 1970.
    pub(super) days: i64,
    /// All hours before this one, in hours since 1970.
    hours: i64,
}

impl Over {
    /// Returns what is over by the time of the newest event.
    pub(super) fn by(newest: i64) -> Self {
        Over { days: newest.div_euclid(DAY_US), hours: newest.div_euclid(HOUR_US) }
    }

    /// Returns the last moment of the newest hour, unless a day ends with it.
    pub(super) fn hour(&self) -> Option<i64> {
        (self.hours % 24 != 0).then_some(self.hours * HOUR_US - 1)
    }
}

/// Returns the last moment of a day.
pub(super) fn end_of(day: i64) -> i64 {
    (day + 1) * DAY_US - 1
}

/// Returns the last day of an experiment, in days since 1970: on the next one nothing that its users do counts. None while exposures count,
/// or will.
fn last_day(experiment: &Defined) -> Option<i64> {
    let own = experiment.experiment.conversion_window_days;
    let of_metrics = experiment.metrics.iter().map(|metric| metric.window_ends_us(own));
    let window_us = of_metrics.fold(i64::from(own) * DAY_US, i64::max);
    experiment.experiment.ended_us.map(|ended| ended.saturating_add(window_us).div_euclid(DAY_US))
}

/// Returns whether an experiment is evaluated: it was started, and late events may still change what it found. Frozen, it is as it was recorded.
pub(super) fn is_evaluated(experiment: &Defined, over: Over) -> bool {
    let is_started = !experiment.experiment.phases.is_empty() && experiment.experiment.frozen_at.is_none();
    is_started && last_day(experiment).is_none_or(|last| last + SETTLES_DAYS >= over.days)
}

/// Returns whether its guardrails are looked at each hour: exposures count now, and it has some.
pub(super) fn has_hours(experiment: &Defined) -> bool {
    let has_guardrails = experiment.metrics.iter().any(|metric| metric.role == catalogue::Role::Guardrail);
    has_guardrails && experiment.experiment.status == ExperimentStatus::Running.as_str()
}

/// Returns the days to be recorded, ascending, in days since 1970: those that are over and were not recorded yet, and those that events
/// changed which came since. `began` is the first exposure, `recorded` the first and the last recorded moment, `touched` the oldest of the
/// events that came, all in microseconds since 1970.
pub(super) fn days(
    experiment: &Defined,
    over: Over,
    began: Option<i64>,
    recorded: Option<(i64, i64)>,
    touched: Option<i64>,
) -> std::ops::Range<i64> {
    let day = |us: i64| us.div_euclid(DAY_US);
    let end = last_day(experiment).map_or(over.days, |last| over.days.min(last + 1));
    let from = match recorded {
        None => began.map_or(end, day),
        Some((_, last)) => touched.map_or(i64::MAX, day).min(day(last) + 1),
    };
    from.max(end - DAYS_MAX).min(end)..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::read::experiment::{Experiment, Phase};

    fn experiment(ended_day: Option<i64>) -> Defined {
        let ended_us = ended_day.map(|day| day * DAY_US);
        let experiment =
            Experiment { phases: vec![Phase::default()], ended_us, conversion_window_days: 2, ..Experiment::default() };
        Defined { experiment, variants: Vec::new(), metrics: Vec::new() }
    }

    #[test]
    fn days_are_due_that_are_over_and_those_that_late_events_changed() {
        let over = Over::by(10 * DAY_US + 5 * HOUR_US);
        assert_eq!((over.days, over.hour(), Over::by(10 * DAY_US).hour()), (10, Some(10 * DAY_US + 5 * HOUR_US - 1), None));
        let check = |ended, began, recorded: Option<(i64, i64)>, touched, expected: std::ops::Range<i64>| {
            let recorded = recorded.map(|(first, last)| (end_of(first), end_of(last)));
            let found = days(&experiment(ended), over, began, recorded, touched);
            assert_eq!(
                found.clone().collect::<Vec<_>>(),
                expected.collect::<Vec<_>>(),
                "{ended:?} {began:?} {recorded:?} {found:?}"
            );
        };
        check(None, None, None, None, 0..0);
        check(None, Some(7 * DAY_US + 1), None, Some(0), 7..10);
        check(None, Some(10 * DAY_US), None, None, 0..0);
        check(None, None, Some((7, 8)), Some(9 * DAY_US), 9..10);
        check(None, None, Some((7, 8)), None, 9..10);
        check(None, None, Some((7, 9)), Some(10 * DAY_US), 0..0);
        check(None, None, Some((7, 9)), Some(8 * DAY_US), 8..10);
        check(None, None, Some((7, 9)), Some(3 * DAY_US), 3..10);
        // It ended on day 6 and its windows on day 8.
        check(Some(6), Some(3 * DAY_US), None, None, 3..9);
        check(Some(6), None, Some((3, 8)), None, 0..0);
        check(Some(6), None, Some((3, 8)), Some(7 * DAY_US), 7..9);
        assert!(is_evaluated(&experiment(Some(6)), Over::by(38 * DAY_US)));
        assert!(!is_evaluated(&experiment(Some(6)), Over::by(39 * DAY_US)));
        assert!(is_evaluated(&experiment(None), Over::by(390 * DAY_US)));
        let mut frozen = experiment(None);
        frozen.experiment.frozen_at = Some("2026-03-01T00:00:00Z".to_owned());
        assert!(!is_evaluated(&frozen, over));
        let draft = Defined { experiment: Experiment::default(), ..experiment(None) };
        assert!(!is_evaluated(&draft, over) && !has_hours(&draft));
    }
}
