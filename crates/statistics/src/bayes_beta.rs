//! Conversion rates with beta posteriors: who converts better, by how much, and what a wrong choice costs. By quadrature,
//! never by random draws: the same counts give the same answer, also below 1e-5.

use crate::beta::{Beta, Chance};
use crate::proportions::Count;
use crate::special::{POINTS, integrals, quadrature};

/// The shapes of a beta prior of a conversion rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    /// The first shape, such as earlier conversions.
    pub a: f64,
    /// The second shape, such as earlier users without.
    pub b: f64,
}

impl Prior {
    /// All rates are equally likely.
    pub const UNIFORM: Prior = Prior { a: 1.0, b: 1.0 };

    /// Returns the posterior of the rate after `count`; `None` if a shape leaves the range of [`Beta::new`].
    pub fn posterior(&self, count: Count) -> Option<Beta> {
        Beta::new(self.a + count.converted as f64, self.b + (count.users - count.converted) as f64)
    }
}

/// Two conversion rates under their posteriors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The probability that the treatment's rate is higher.
    pub chance_treatment: f64,
    /// The probability that the control's rate is higher.
    pub chance_control: f64,
    /// What choosing the treatment is expected to lose: E[max(control - treatment, 0)].
    pub expected_loss_treatment: f64,
    /// What choosing the control is expected to lose: E[max(treatment - control, 0)].
    pub expected_loss_control: f64,
}

/// Returns the equal-tailed interval of a rate at 1 - `alpha` (0 < `alpha` < 1).
pub fn credible_interval(rate: &Beta, alpha: f64) -> (f64, f64) {
    (rate.quantile(alpha / 2.0), rate.upper_quantile(alpha / 2.0))
}

/// Compares two conversion rates.
/// Source: P(T > C) is the integral of the density of C times the tail of T; E[max(T - C, 0)] that of the distribution
/// function of C times the tail of T. Nothing in them cancels.
pub fn compare(control: &Beta, treatment: &Beta) -> Comparison {
    let stretches = stretches(&[*control, *treatment]);
    let (one, two) = (profile(control, &stretches), profile(treatment, &stretches));
    let mut sums = [0.0; 4];
    for ((at, weight), (c, t)) in points(&stretches).zip(one.iter().zip(&two)) {
        // One step of the log odds is a step of x (1 - x) of the rate.
        let step = weight * at.x * at.rest;
        sums[0] += weight * c.density * t.above;
        sums[1] += weight * t.density * c.above;
        sums[2] += step * t.below * c.above;
        sums[3] += step * c.below * t.above;
    }
    // The smaller chance is exact to its last digits, and the larger one its complement.
    let (chance_treatment, chance_control) = if sums[0] < sums[1] { (sums[0], 1.0 - sums[0]) } else { (1.0 - sums[1], sums[1]) };
    Comparison { chance_treatment, chance_control, expected_loss_treatment: sums[2], expected_loss_control: sums[3] }
}

/// Returns for each rate the probability that it is the highest of all, in their order. One rate alone is the best.
/// Source: the integral of its density times the distribution functions of the others.
pub fn probability_best(rates: &[Beta]) -> Vec<f64> {
    let stretches = stretches(rates);
    let profiles: Vec<Vec<Node>> = rates.iter().map(|rate| profile(rate, &stretches)).collect();
    let chance = |i: usize| {
        let weighted = points(&stretches).enumerate().map(|(point, (_, weight))| {
            let others = profiles.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, profile)| profile[point].below);
            weight * profiles[i][point].density * others.product::<f64>()
        });
        weighted.sum::<f64>()
    };
    let mut best: Vec<f64> = (0..rates.len()).map(chance).collect();
    // What rounding leaves of the whole is shared.
    let whole: f64 = best.iter().sum();
    if whole > 0.0 {
        best.iter_mut().for_each(|chance| *chance /= whole);
    }
    best
}

/// A rate at one point of the log odds.
#[derive(Clone, Copy, Default)]
struct Node {
    density: f64,
    below: f64,
    above: f64,
}

fn points(stretches: &[(f64, f64)]) -> impl Iterator<Item = (Chance, f64)> {
    let all = stretches.iter().flat_map(|(low, high)| quadrature(*low, *high));
    all.map(|(odds, weight)| (Chance::from_log_odds(odds), weight))
}

/// Density and both tails of a rate at all points, the tails each summed from their own end, so that small ones keep their
/// digits.
fn profile(rate: &Beta, stretches: &[(f64, f64)]) -> Vec<Node> {
    let mut nodes: Vec<Node> =
        points(stretches).map(|(at, _)| Node { density: rate.ln_density(at).exp(), ..Node::default() }).collect();
    let values = |nodes: &[Node]| std::array::from_fn::<f64, POINTS, _>(|point| nodes[point].density);
    let mut before = 0.0;
    for ((low, high), nodes) in stretches.iter().zip(nodes.chunks_exact_mut(POINTS)) {
        let (parts, whole) = integrals(*low, *high, &values(nodes));
        nodes.iter_mut().zip(parts).for_each(|(node, part)| node.below = (before + part).clamp(0.0, 1.0));
        before += whole;
    }
    let mut after = 0.0;
    for ((low, high), nodes) in stretches.iter().zip(nodes.chunks_exact_mut(POINTS)).rev() {
        // The same stretch seen from its other end.
        let mut mirrored = values(nodes);
        mirrored.reverse();
        let (parts, whole) = integrals(*low, *high, &mirrored);
        nodes.iter_mut().rev().zip(parts).for_each(|(node, part)| node.above = (after + part).clamp(0.0, 1.0));
        after += whole;
    }
    nodes
}

/// Widths of a peak on either side of it that are looked at; beyond, less than e^-70 of it is left.
const WIDTHS: f64 = 12.0;
/// Widths of a peak per stretch: 16 points on each resolve a bell curve to 1e-13.
const WIDTHS_PER_STRETCH: f64 = 2.0;

/// Returns the log odds to integrate over, in stretches on which each density and each distribution function is smooth:
/// fine around every peak, as wide as the tails are long elsewhere.
fn stretches(rates: &[Beta]) -> Vec<(f64, f64)> {
    let mut ends = Vec::new();
    for rate in rates {
        // Wide peaks have a knee of width 1.
        let (mode, width) = (rate.mode_log_odds(), rate.spread_log_odds().min(1.0));
        let steps = (WIDTHS / WIDTHS_PER_STRETCH) as i32;
        ends.extend((-steps..=steps).map(|step| mode + f64::from(step) * WIDTHS_PER_STRETCH * width));
        for sign in [-1.0, 1.0] {
            // Where the tail is long, steps that grow to where nothing is left.
            let peak = rate.ln_density(Chance::from_log_odds(mode));
            let mut away = WIDTHS * width;
            for _ in 0..400 {
                if peak - rate.ln_density(Chance::from_log_odds(mode + sign * away)) > 45.0 {
                    break;
                }
                away += (0.25 * away).max(WIDTHS_PER_STRETCH * width);
                ends.push(mode + sign * away);
            }
        }
    }
    // The rate itself bends with a width of 1 around even odds, also between peaks that are far apart.
    let lowest = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    ends.extend((-20..=20).map(|step| 2.0 * f64::from(step)).filter(|end| lowest < *end && *end < highest));
    ends.retain(|end| end.abs() < 700.0);
    ends.sort_by(f64::total_cmp);
    let narrowest = rates.iter().map(Beta::spread_log_odds).fold(1.0, f64::min);
    ends.dedup_by(|next, kept| *next - *kept < 0.25 * narrowest);
    ends.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(users: u64, converted: u64) -> Beta {
        Prior::UNIFORM.posterior(Count { users, converted }).expect("shapes in range")
    }

    /// P(T > C) for whole shapes.
    /// Source: Miller 2015, Formulas for Bayesian A/B Testing.
    fn by_finite_sum(control: (u64, u64), treatment: (u64, u64)) -> f64 {
        let ln_beta = |a: f64, b: f64| statrs::function::beta::ln_beta(a, b);
        let shapes = |(users, converted): (u64, u64)| (1.0 + converted as f64, 1.0 + (users - converted) as f64);
        let ((ac, bc), (at, bt)) = (shapes(control), shapes(treatment));
        (0..treatment.1 + 1)
            .map(|i| i as f64)
            .map(|i| (ln_beta(ac + i, bt + bc) - (bt + i).ln() - ln_beta(1.0 + i, bt) - ln_beta(ac, bc)).exp())
            .sum::<f64>()
            .min(at)
    }

    #[test]
    fn whole_counts_have_a_finite_sum() {
        for (control, treatment) in
            [((100, 10), (120, 18)), ((5, 0), (5, 5)), ((1_000, 50), (900, 20)), ((300, 299), (40, 40)), ((0, 0), (1_000, 500))]
        {
            let (found, expected) =
                (compare(&rate(control.0, control.1), &rate(treatment.0, treatment.1)), by_finite_sum(control, treatment));
            assert!((found.chance_treatment - expected).abs() < 1e-11, "{control:?} {treatment:?}: {found:?} and {expected}");
        }
    }

    #[test]
    fn losses_differ_by_the_means() {
        for (control, treatment) in [((0, 0), (0, 0)), ((7, 0), (900, 3)), ((50_000_000, 2_500_000), (50_000_000, 2_501_000))] {
            let (control, treatment) = (rate(control.0, control.1), rate(treatment.0, treatment.1));
            let found = compare(&control, &treatment);
            let difference = found.expected_loss_control - found.expected_loss_treatment;
            let scale = found.expected_loss_control + found.expected_loss_treatment;
            assert!((difference - (treatment.mean() - control.mean())).abs() < 1e-11 * scale, "{found:?}");
        }
    }

    #[test]
    fn small_chances_keep_their_digits() {
        let found = compare(&rate(100_000, 10_000), &rate(100_000, 12_000));
        assert!(found.chance_treatment == 1.0 && found.chance_control > 1e-50 && found.chance_control < 1e-40, "{found:?}");
        assert!(found.expected_loss_treatment > 0.0 && found.expected_loss_treatment < 1e-40);
    }

    #[test]
    fn one_of_equals_is_the_best_in_equal_shares() {
        for count in 1..6 {
            for best in probability_best(&vec![rate(200, 20); count]) {
                assert!((best - 1.0 / count as f64).abs() < 1e-12, "{count}: {best}");
            }
        }
        assert!(probability_best(&[]).is_empty());
        let (control, treatment) = (rate(10, 3), rate(2_000_000, 610_000));
        let best = probability_best(&[control, treatment]);
        assert!((best[1] - compare(&control, &treatment).chance_treatment).abs() < 1e-10, "{best:?}");
    }

    proptest! {
        #[test]
        fn chances_are_complements(a in 0.05..1e4_f64, b in 0.05..1e4_f64, c in 0.05..1e4_f64, d in 0.05..1e4_f64) {
            let (one, two) = (Beta::new(a, b).expect("in range"), Beta::new(c, d).expect("in range"));
            let (there, back) = (compare(&one, &two), compare(&two, &one));
            prop_assert!((there.chance_treatment - back.chance_control).abs() < 1e-12, "{there:?} {back:?}");
            let difference = there.expected_loss_control - there.expected_loss_treatment;
            prop_assert!((difference - (two.mean() - one.mean())).abs() < 1e-10, "{one:?} {two:?} {there:?}");
            let best = probability_best(&[one, two]);
            prop_assert!((best[1] - there.chance_treatment).abs() < 1e-9, "{one:?} {two:?} {best:?} {there:?}");
        }
    }
}
