//! Metrics that must not get worse: by more than a margin, or at all.

use crate::distributions::{normal_isf, normal_sf};
use crate::effect::Effect;

/// Which change of a metric is welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// More is better.
    Increase,
    /// Less is better.
    Decrease,
}

/// The test that a treatment is worse by less than its margin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NonInferiority {
    /// The difference treatment - control.
    pub difference: f64,
    /// The difference at the margin: what must be excluded.
    pub margin_difference: f64,
    /// The one-sided p-value.
    pub p_value: f64,
    /// Its decimal logarithm, always finite.
    pub log10_p: f64,
    /// The bound on the side of harm, at the whole of alpha.
    pub bound: f64,
    /// Whether the treatment is shown to be worse by less than its margin.
    pub holds: bool,
}

/// Tests that a treatment is worse than the control by less than `margin` (relative, 0 asks for better), one-sided at
/// `alpha`. `effect` is absolute.
/// Source: normal test against a shifted null, such as Wellek 2010, Testing Statistical Hypotheses of Equivalence and
/// Noninferiority, 2.1.
pub fn non_inferiority(effect: &Effect, control_mean: f64, margin: f64, direction: Direction, alpha: f64) -> NonInferiority {
    // Seen from where more is better.
    let sign = if direction == Direction::Increase { 1.0 } else { -1.0 };
    let margin_difference = -sign * margin * control_mean.abs();
    let tail = normal_sf(sign * (effect.estimate - margin_difference) / effect.std_error);
    NonInferiority {
        difference: effect.estimate,
        margin_difference,
        p_value: tail.p,
        log10_p: tail.log10(),
        bound: effect.estimate - sign * normal_isf(alpha) * effect.std_error,
        holds: tail.p < alpha,
    }
}

/// The two-sided normal test of an effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TwoSided {
    /// The p-value.
    pub p_value: f64,
    /// Its decimal logarithm, always finite.
    pub log10_p: f64,
    /// The interval.
    pub interval: (f64, f64),
}

/// Tests an effect against none by the normal distribution, at 1 - `alpha`.
pub fn two_sided(effect: &Effect, alpha: f64) -> TwoSided {
    let tail = normal_sf((effect.estimate / effect.std_error).abs()).doubled();
    let half = normal_isf(alpha / 2.0) * effect.std_error;
    TwoSided { p_value: tail.p, log10_p: tail.log10(), interval: (effect.estimate - half, effect.estimate + half) }
}

/// What is known of a guardrail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Worse by less than the margin, if at all.
    Safe,
    /// Too early to tell.
    Inconclusive,
    /// Worse, by the two-sided test.
    Harmed,
}

impl State {
    /// Returns the state as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Safe => "safe",
            State::Inconclusive => "inconclusive",
            State::Harmed => "harmed",
        }
    }
}

/// Judges a guardrail: harm that is shown counts more than a margin that holds. `is_shown` says whether the two-sided test on
/// which the metric's decision rests shows a difference.
pub fn state(found: &NonInferiority, is_shown: bool, direction: Direction) -> State {
    let is_worse = if direction == Direction::Increase { found.difference < 0.0 } else { found.difference > 0.0 };
    if is_worse && is_shown {
        State::Harmed
    } else if found.holds {
        State::Safe
    } else {
        State::Inconclusive
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn effect(estimate: f64) -> Effect {
        Effect { estimate, std_error: 1.0, dof: 1e6 }
    }

    #[test]
    fn states_follow_the_evidence() {
        let check = |estimate: f64, margin: f64, direction, expected| {
            let effect = effect(estimate);
            let found = non_inferiority(&effect, 100.0, margin, direction, 0.05);
            let is_shown = two_sided(&effect, 0.05).p_value < 0.05;
            assert_eq!(state(&found, is_shown, direction), expected, "{found:?}");
        };
        use Direction::{Decrease, Increase};
        check(0.0, 0.02, Increase, State::Safe);
        check(0.0, 0.01, Increase, State::Inconclusive);
        check(-3.0, 0.10, Increase, State::Harmed);
        check(3.0, 0.01, Increase, State::Safe);
        check(3.0, 0.10, Decrease, State::Harmed);
        check(-3.0, 0.0, Decrease, State::Safe);
        check(1.0, 0.01, Decrease, State::Inconclusive);
    }

    proptest! {
        #[test]
        fn directions_mirror_and_the_bound_agrees(estimate in -5.0..5.0_f64, margin in 0.0..0.1_f64, mean in -100.0..100.0_f64) {
            let more = non_inferiority(&effect(estimate), mean, margin, Direction::Increase, 0.05);
            let less = non_inferiority(&effect(-estimate), mean, margin, Direction::Decrease, 0.05);
            prop_assert_eq!((more.p_value, more.bound, more.holds), (less.p_value, -less.bound, less.holds));
            prop_assume!((more.bound - more.margin_difference).abs() > 1e-9);
            prop_assert_eq!(more.holds, more.bound > more.margin_difference);
        }
    }
}
