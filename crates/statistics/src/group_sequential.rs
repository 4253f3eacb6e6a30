//! Looks at an experiment with a planned end: each look spends a part of alpha, so that all together spend no more than it.

use crate::distributions::{normal_density, normal_sf};
use crate::special::{POINTS, bisect, quadrature};

/// Bounds beyond this z are cut there: a chance of 6e-16.
const Z_MAX: f64 = 8.0;
/// A look that brings less than this part of the information so far is no new look; it has the bound of the one before.
const STEP_MIN: f64 = 1e-4;

/// The part of alpha that is kept for an alarm by a sequence over all users, whatever the windows of their outcomes are: what
/// is broken shall not wait for the first window to close. The bounds have the rest, which moves them by less than 0.001.
pub const ALARM_SHARE: f64 = 0.002;

/// How many directions alpha is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// All of alpha on one.
    One,
    /// Half of alpha on each; crossing one bound and then the other is as good as impossible.
    Two,
}

/// Returns the part of the planned information that `users` of both variants are, at most 1. `None` without a plan.
pub fn information_fraction(users: f64, planned_users: f64) -> Option<f64> {
    (planned_users > 0.0).then(|| (users / planned_users).min(1.0))
}

/// Returns the bound of z at each look, where alpha * fraction^`power` is spent up to each. `fractions` are those of the
/// planned information, rising; above 1 they count as 1, and the look at 1 is the last: later ones have its bound. `None`
/// for a look without information, and for all of them if `alpha` is not within 0 .. 1 or `power` not positive.
///
/// Takes some 10 ms for a look a day over a month. The number of steps is bounded by the number of looks.
/// Source: Lan, DeMets 1983, Biometrika 70, 659-663, spending function of Kim, DeMets 1987, Biometrika 74, 149-154; density
/// of the looks before by the recursion of Armitage, McPherson, Rowe 1969, with Gauss-Legendre quadrature.
pub fn bounds(fractions: &[f64], alpha: f64, sides: Sides, power: f64) -> Vec<Option<f64>> {
    if !(alpha > 0.0 && alpha < 1.0 && power > 0.0) {
        return vec![None; fractions.len()];
    }
    let alpha = if sides == Sides::Two { alpha / 2.0 } else { alpha };
    let looks = new_looks(fractions);
    let mut found: Vec<Option<f64>> = vec![None; fractions.len()];
    let (mut spent, mut density) = (0.0, Vec::new());
    for (index, (position, time)) in looks.iter().enumerate() {
        let before = if index == 0 { 0.0 } else { looks[index - 1].1 };
        let step = (time - before).sqrt();
        let to_spend = (alpha * time.powf(power) - spent).max(0.0);
        let crossing = |y: f64| crossing(&density, y, step, *time);
        let (low, high) = (-Z_MAX * time.sqrt(), Z_MAX * time.sqrt());
        let bound = if crossing(high) >= to_spend { high } else { bisect(low, high, |y| crossing(y) > to_spend) };
        spent += crossing(bound);
        found[*position] = Some(bound / time.sqrt());
        if let Some((_, next)) = looks.get(index + 1) {
            density = advance(&density, low, bound, step, (next - time).sqrt(), *time);
        }
    }
    // Looks that brought nothing new have the bound of the one before.
    for position in 1..found.len() {
        if found[position].is_none() && fractions[position] > 0.0 {
            found[position] = found[position - 1];
        }
    }
    found
}

/// The looks that bring something new, with their position and information.
fn new_looks(fractions: &[f64]) -> Vec<(usize, f64)> {
    let mut looks: Vec<(usize, f64)> = Vec::new();
    for (position, fraction) in fractions.iter().enumerate() {
        if fraction.is_nan() || *fraction <= 0.0 {
            continue;
        }
        let time = fraction.min(1.0);
        let is_new = match looks.last() {
            None => true,
            Some((_, before)) => time - before >= STEP_MIN * before,
        };
        if is_new {
            looks.push((position, time));
        }
    }
    looks
}

/// A point of the density of paths that have not crossed, with its share of the whole.
#[derive(Clone, Copy)]
struct Point {
    y: f64,
    share: f64,
}

/// The chance to be above `y` after a step of standard deviation `step`, without having crossed before.
fn crossing(density: &[Point], y: f64, step: f64, time: f64) -> f64 {
    if density.is_empty() {
        return normal_sf(y / time.sqrt()).p;
    }
    // Rising: those far below cannot reach it.
    let first = density.partition_point(|point| point.y < y - 9.0 * step);
    density[first..].iter().map(|point| point.share * normal_sf((y - point.y) / step).p).sum()
}

/// The density after the step, between `low` and the bound, on points that are fine enough for the next step.
fn advance(before: &[Point], low: f64, bound: f64, step: f64, next_step: f64, time: f64) -> Vec<Point> {
    let width = 4.0 * step.min(next_step);
    let panels = ((bound - low) / width).ceil().max(1.0) as usize;
    let width = (bound - low) / panels as f64;
    let mut points = Vec::with_capacity(POINTS * panels);
    for panel in 0..panels {
        let start = low + panel as f64 * width;
        points.extend(quadrature(start, start + width).map(|(y, weight)| {
            let density = if before.is_empty() {
                normal_density(y / time.sqrt()) / time.sqrt()
            } else {
                let first = before.partition_point(|point| point.y < y - 8.5 * step);
                let near = before[first..].iter().take_while(|point| point.y <= y + 8.5 * step);
                near.map(|point| point.share * normal_density((y - point.y) / step)).sum::<f64>() / step
            };
            Point { y, share: weight * density }
        }));
    }
    points
}

/// What one look has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// The difference in standard errors.
    pub z: f64,
    /// The exact p-value, where counts are few: then it has to agree with the bound.
    pub exact_p: Option<f64>,
}

/// What all looks under a plan together say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// The look that counts: the first one at which the difference stood, else the last one under the plan.
    pub at: usize,
    /// The bound of |z| at that look. The interval that reaches so many standard errors leaves 0 out exactly if it is crossed there.
    pub boundary_z: f64,
    /// Whether the bound is crossed at that look.
    pub crossed: bool,
    /// Whether the difference stands: the bound is crossed, and an exact test does not disagree.
    pub stands: bool,
}

/// Judges all looks so far, the last one today's. `fractions` and `bounds` are those of the looks, found by [`bounds()`] for two
/// sides at `alpha`; `seen` is what each look saw, as far as it is known. What stood once stands; the look at which the planned
/// information is reached is the last, and what comes later is not tested. `None` without information at the look that counts:
/// nothing is spent, and nothing can be crossed.
/// Source: repeated confidence intervals, Jennison, Turnbull 1989, Journal of the Royal Statistical Society B 51, 305-361; each
/// look spends what it may once, Lan, DeMets 1983, Biometrika 70, 659-663.
pub fn look(fractions: &[f64], bounds: &[Option<f64>], seen: &[Option<Seen>], alpha: f64) -> Option<Look> {
    let today = bounds.len().min(fractions.len()).checked_sub(1)?;
    let last = fractions.iter().position(|fraction| *fraction >= 1.0).map_or(today, |planned| planned.min(today));
    let judged = |at: usize| {
        let (boundary_z, seen) = (bounds[at]?, seen.get(at).copied().flatten());
        let crossed = seen.is_some_and(|seen| seen.z.abs() > boundary_z);
        let agrees = seen.is_some_and(|seen| seen.exact_p.is_none_or(|p| p < alpha));
        Some(Look { at, boundary_z, crossed, stands: crossed && agrees })
    };
    (0..=last).filter_map(judged).find(|look| look.stands).or_else(|| judged(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributions::normal_isf;
    use proptest::prelude::*;

    /// The bound of a single test at the end, which no plan undercuts.
    fn fixed_bound(alpha: f64, sides: Sides) -> f64 {
        normal_isf(if sides == Sides::Two { alpha / 2.0 } else { alpha })
    }

    #[test]
    fn two_equal_looks_have_a_known_bound() {
        // Pocock's two-sided constant for two looks spends 0.031 first: the bound of both is 2.178.
        let first = 2.0 * normal_sf(2.178_273).p;
        let power = (first / 0.05).ln() / 0.5_f64.ln();
        let found = bounds(&[0.5, 1.0], 0.05, Sides::Two, power);
        for bound in found {
            assert!((bound.expect("a bound") - 2.178_273).abs() < 2e-4, "{bound:?}");
        }
    }

    #[test]
    fn looks_without_news_repeat_the_bound() {
        let plain = bounds(&[0.2, 0.6, 1.0], 0.05, Sides::Two, 2.0);
        let repeated = bounds(&[0.0, 0.2, 0.2, 0.2 + 1e-9, 0.6, 0.5, 1.0, 1.0, 3.0], 0.05, Sides::Two, 2.0);
        let expected = [None, plain[0], plain[0], plain[0], plain[1], plain[1], plain[2], plain[2], plain[2]];
        assert_eq!(repeated, expected);
        assert_eq!(bounds(&[0.5], 0.0, Sides::Two, 2.0), [None]);
        assert_eq!(bounds(&[f64::NAN, 1.0], 0.05, Sides::One, 2.0), [None, Some(fixed_bound(0.05, Sides::One))]);
    }

    #[test]
    fn one_look_at_the_end_is_a_fixed_test() {
        let found = bounds(&[1.0], 0.05, Sides::Two, 2.0)[0].expect("a bound");
        assert!((found - fixed_bound(0.05, Sides::Two)).abs() < 1e-12);
    }

    #[test]
    fn many_looks_end_in_bounded_time() {
        let started = std::time::Instant::now();
        let year: Vec<f64> = (1..=365).map(|day| f64::from(day) / 365.0).collect();
        let found = bounds(&year, 0.05, Sides::Two, 2.0);
        assert!(found.iter().all(|bound| bound.is_some_and(|bound| bound > fixed_bound(0.05, Sides::Two))));
        let last = found[364].expect("a bound");
        assert!(last < 2.4, "{last}");
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn what_stood_once_stands_and_nothing_is_tested_after_the_plan() {
        let bounds = [None, Some(3.0), Some(2.5), Some(2.0), Some(2.0), Some(2.0)];
        let fractions = [0.0, 0.3, 0.6, 1.0, 1.0, 1.0];
        let judge = |days: usize, z: &[Option<f64>], exact_p: Option<f64>| {
            let seen: Vec<Option<Seen>> = z.iter().map(|z| z.map(|z| Seen { z, exact_p })).collect();
            look(&fractions[..days], &bounds[..days], &seen, 0.05).map(|look| (look.at, look.crossed, look.stands))
        };
        let check = |days: usize, z: &[Option<f64>], expected: (usize, bool, bool)| {
            assert_eq!(judge(days, z, None), Some(expected), "{days} {z:?}");
        };
        check(3, &[None, Some(1.0), Some(2.4)], (2, false, false));
        check(3, &[None, Some(1.0), Some(-2.6)], (2, true, true));
        check(4, &[Some(9.0), Some(2.9), Some(-2.6), Some(1.0)], (2, true, true));
        check(4, &[None, Some(3.1), Some(-2.6), Some(0.0)], (1, true, true));
        // After the planned information nothing is tested, whatever it is.
        check(6, &[None, Some(1.0), Some(1.0), Some(1.9), Some(9.0), Some(9.0)], (3, false, false));
        check(6, &[None, Some(1.0), Some(1.0), Some(2.1), Some(0.0), Some(0.0)], (3, true, true));
        // The exact test has its say at the look itself.
        assert_eq!(judge(3, &[None, Some(3.1), Some(2.6)], Some(0.06)), Some((2, true, false)));
        assert_eq!(judge(3, &[None, Some(3.1), Some(2.6)], Some(0.04)), Some((1, true, true)));
        assert_eq!((judge(0, &[], None), judge(1, &[Some(9.0)], None)), (None, None));
        assert_eq!(judge(3, &[], None), Some((2, false, false)), "looks that are not known show nothing");
        assert_eq!(information_fraction(50.0, 200.0), Some(0.25));
        assert_eq!(information_fraction(500.0, 200.0), Some(1.0));
        assert_eq!(information_fraction(500.0, 0.0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn no_bound_undercuts_a_fixed_test(mut fractions in prop::collection::vec(0.01..1.3_f64, 1..12), alpha in 0.01..0.3_f64, power in 0.5..4.0_f64) {
            fractions.sort_by(f64::total_cmp);
            for (bound, fraction) in bounds(&fractions, alpha, Sides::Two, power).into_iter().zip(&fractions) {
                let bound = bound.expect("a bound");
                prop_assert!(bound >= fixed_bound(alpha, Sides::Two) - 1e-9 && bound <= Z_MAX, "{bound} at {fraction}");
            }
        }
    }
}
