//! The beta distribution, right to rounding for shapes from 1e-3 to 1e10, in bounded time.
//!
//! The library `statrs` is not used: its quantile of Beta(1, 1e9) never returns, and its density loses digits with the size
//! of its shapes, because logarithms of the gamma function cancel. Here all is computed on the scale of log odds, where the
//! density is smooth at both ends for all shapes.

use crate::distributions::{Tail, beta_fraction};
use crate::special::{HALF_LN_2_PI, bisect, ln_1p_minus, quadrature, stirling_error};

/// From this smaller shape on, the continued fraction needs many steps and the density is close to a bell curve.
const QUADRATURE_FROM_SHAPE: f64 = 3_000.0;

/// A probability with its complement, so that neither end loses digits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance {
    /// The probability.
    pub(crate) x: f64,
    /// 1 - x.
    pub(crate) rest: f64,
}

impl Chance {
    /// Returns the probability with these log odds.
    pub(crate) fn from_log_odds(odds: f64) -> Self {
        let small = (-odds.abs()).exp();
        let (less, more) = (small / (1.0 + small), 1.0 / (1.0 + small));
        if odds < 0.0 { Chance { x: less, rest: more } } else { Chance { x: more, rest: less } }
    }
}

/// A beta distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beta {
    a: f64,
    b: f64,
    /// The logarithm of the density of the log odds at the mean.
    ln_peak: f64,
}

impl Beta {
    /// Makes the distribution with the shapes `a` and `b`; `None` unless both lie within 1e-3 .. 1e12.
    pub fn new(a: f64, b: f64) -> Option<Self> {
        let fits = |shape: f64| (1e-3..=1e12).contains(&shape);
        if !(fits(a) && fits(b)) {
            return None;
        }
        let all = a + b;
        let ln_peak =
            0.5 * (a.ln() + (b / all).ln()) - HALF_LN_2_PI + stirling_error(all) - stirling_error(a) - stirling_error(b);
        Some(Beta { a, b, ln_peak })
    }

    /// Returns the mean.
    pub fn mean(&self) -> f64 {
        self.a / (self.a + self.b)
    }

    /// Returns the log odds where their density is greatest.
    pub(crate) fn mode_log_odds(&self) -> f64 {
        (self.a / self.b).ln()
    }

    /// Returns the width of the peak in log odds: the standard deviation of the bell curve with the same curvature.
    pub(crate) fn spread_log_odds(&self) -> f64 {
        (1.0 / self.a + 1.0 / self.b).sqrt()
    }

    /// Returns the logarithm of the density of the log odds.
    /// Source: deviance form as in Loader 2000, Fast and Accurate Computation of Binomial Probabilities.
    pub(crate) fn ln_density(&self, at: Chance) -> f64 {
        let (mean, rest) = (self.a / (self.a + self.b), self.b / (self.a + self.b));
        let off = if at.x <= 0.5 { at.x - mean } else { rest - at.rest };
        // ln(value / centre) - off / centre; the linear parts of both terms cancel each other.
        let term = |value: f64, centre: f64, off: f64| {
            let relative = off / centre;
            if (-0.5..1.0).contains(&relative) { ln_1p_minus(relative) } else { (value / centre).ln() - relative }
        };
        self.ln_peak + self.a * term(at.x, mean, off) + self.b * term(at.rest, rest, -off)
    }

    fn mirrored(&self) -> Self {
        Beta { a: self.b, b: self.a, ln_peak: self.ln_peak }
    }

    /// Returns the probability of a value below `at` and of one above it.
    pub(crate) fn tails(&self, at: Chance) -> (Tail, Tail) {
        let complement = |tail: Tail| Tail { p: 1.0 - tail.p, ln: (-tail.p).ln_1p() };
        if at.x * (self.a + self.b + 2.0) < self.a + 1.0 {
            let below = self.below(at);
            (below, complement(below))
        } else {
            let above = self.mirrored().below(Chance { x: at.rest, rest: at.x });
            (complement(above), above)
        }
    }

    /// The probability of a value below one that is not far above the mean.
    fn below(&self, at: Chance) -> Tail {
        if at.x <= 0.0 {
            return Tail { p: 0.0, ln: f64::NEG_INFINITY };
        }
        let density = self.ln_density(at);
        // Close to 1 the fraction would see a rounded x; there the first shape is above 1,000 and the density falls fast.
        let ln = if self.a.min(self.b) < QUADRATURE_FROM_SHAPE && at.rest > 1e-3 {
            density + (beta_fraction(self.a, self.b, at.x) / self.a).ln()
        } else {
            density + self.mass_below(at, density).ln()
        };
        Tail { p: ln.exp().min(1.0), ln: ln.min(0.0) }
    }

    /// The probability below `at` in units of the density there, over the stretch in which the density falls by e^45.
    fn mass_below(&self, at: Chance, density: f64) -> f64 {
        const FALL: f64 = 45.0;
        let slope = (self.a * at.rest - self.b * at.x).abs();
        let curvature = (self.a + self.b) * at.x * at.rest;
        let end = (at.x / at.rest).ln();
        let fall = |stretch: f64| density - self.ln_density(Chance::from_log_odds(end - stretch));
        // Right for a bell curve, too far where the curvature rises outwards.
        let mut stretch = 2.0 * FALL / (slope + (slope * slope + 2.0 * FALL * curvature).sqrt());
        for _ in 0..60 {
            if fall(0.75 * stretch) < FALL {
                break;
            }
            stretch *= 0.75;
        }
        let panels = (0..4).map(|panel| (end - stretch * f64::from(panel + 1) / 4.0, end - stretch * f64::from(panel) / 4.0));
        let points = panels.flat_map(|(low, high)| quadrature(low, high));
        points.map(|(odds, weight)| weight * (self.ln_density(Chance::from_log_odds(odds)) - density).exp()).sum()
    }

    /// Returns the probability of a value below `x`, 0 <= `x` <= 1.
    /// Source: continued fraction Abramowitz and Stegun 26.5.8; with both shapes above 3,000 Gauss-Legendre quadrature of
    /// the density.
    pub fn cdf(&self, x: f64) -> Tail {
        self.tails(Chance { x, rest: 1.0 - x }).0
    }

    /// Returns the probability of a value above `x`, 0 <= `x` <= 1.
    /// Source: as [`Beta::cdf`].
    pub fn sf(&self, x: f64) -> Tail {
        self.tails(Chance { x, rest: 1.0 - x }).1
    }

    /// Returns the value with the probability `lower` below it, 0 < `lower` < 1.
    /// Source: the bracketed root of [`Beta::cdf`] in log odds, at most 200 halvings.
    pub fn quantile(&self, lower: f64) -> f64 {
        self.root(|below, _| below.p < lower).x
    }

    /// Returns the value with the probability `upper` above it, 0 < `upper` < 1.
    /// Source: the bracketed root of [`Beta::sf`] in log odds, at most 200 halvings.
    pub fn upper_quantile(&self, upper: f64) -> f64 {
        self.root(|_, above| above.p > upper).x
    }

    fn root(&self, is_below: impl Fn(Tail, Tail) -> bool) -> Chance {
        let is_below = |odds: f64| {
            let (below, above) = self.tails(Chance::from_log_odds(odds));
            is_below(below, above)
        };
        let (start, mut step) = (self.mode_log_odds(), self.spread_log_odds());
        let (mut low, mut high) = (start, start);
        // Beyond 800 on either side nothing is left of a float, so that 64 doublings reach both ends.
        for _ in 0..64 {
            let (open_low, open_high) = (!is_below(low) && low > -800.0, is_below(high) && high < 800.0);
            if !open_low && !open_high {
                break;
            }
            if open_low {
                (low, high) = (low - step, low);
            } else {
                (low, high) = (high, high + step);
            }
            step *= 2.0;
        }
        Chance::from_log_odds(bisect(low, high, is_below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beta(a: f64, b: f64) -> Beta {
        Beta::new(a, b).expect("shapes in range")
    }

    #[test]
    fn a_quantile_far_out_is_right_where_scipy_is_not() {
        // scipy 1.17 returns 1.90e-6 here, where the distribution function is 1.
        let found = beta(1_000.0, 999_999_001.0).quantile(0.025);
        assert!((found / 9.39e-7 - 1.0).abs() < 1e-3, "{found}");
    }

    #[test]
    fn whole_shapes_have_closed_forms() {
        for x in [1e-12, 0.001, 0.3, 0.5, 0.9, 1.0 - 1e-9] {
            let check = |found: Tail, expected: f64| {
                assert!((found.p / expected - 1.0).abs() < 1e-13, "x = {x}: {found:?} and {expected}");
            };
            check(beta(1.0, 1.0).cdf(x), x);
            check(beta(1.0, 1e6).cdf(x), -(1e6 * (-x).ln_1p()).exp_m1());
            check(beta(5.0, 1.0).cdf(x), x.powi(5));
            if x < 0.95 {
                check(beta(0.5, 0.5).cdf(x), 2.0 / std::f64::consts::PI * x.sqrt().asin());
            }
        }
        assert_eq!(beta(3.0, 4.0).cdf(0.0).p, 0.0);
        assert_eq!(beta(3.0, 4.0).cdf(1.0).p, 1.0);
        assert_eq!(Beta::new(0.0, 1.0), None);
        assert_eq!(Beta::new(1.0, f64::NAN), None);
    }

    #[test]
    fn the_smallest_and_largest_shapes_end() {
        for (a, b) in [(1e-3, 1e-3), (1e-3, 1e12), (1e12, 1e12), (1e12, 1.0), (0.5, 1e9), (1.0, 1e9), (3_000.0, 3_000.0)] {
            for p in [1e-12, 0.025, 0.5, 0.975] {
                let (low, high) = (beta(a, b).quantile(p), beta(a, b).upper_quantile(p));
                assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high), "{a} {b} {p}: {low} {high}");
            }
        }
    }

    proptest! {
        #[test]
        fn both_methods_meet_at_the_seam(b in 3_000.0..1e7_f64, z in -8.0..8.0_f64) {
            let (fraction, integral) = (beta(QUADRATURE_FROM_SHAPE * (1.0 - 1e-13), b), beta(QUADRATURE_FROM_SHAPE, b));
            let at = Chance::from_log_odds(integral.mode_log_odds() + z * integral.spread_log_odds());
            let (one, other) = (fraction.tails(at), integral.tails(at));
            prop_assert!((one.0.ln - other.0.ln).abs() < 1e-9 && (one.1.ln - other.1.ln).abs() < 1e-9, "{one:?} {other:?}");
        }

        #[test]
        fn a_quantile_has_its_probability(a in -2.0..9.0_f64, b in -2.0..9.0_f64, p in 1e-6..0.999_f64) {
            let beta = beta(10.0_f64.powf(a), 10.0_f64.powf(b));
            let chance = beta.root(|below, _| below.p < p);
            // Beyond the floats nothing can be found.
            prop_assume!(chance.x > 1e-290 && chance.rest > 1e-290);
            let found = beta.tails(chance).0.p;
            // One rounding of the log odds moves the probability by this much.
            let step = 1e-14 * beta.mode_log_odds().abs().max(1.0) / beta.spread_log_odds();
            prop_assert!((found / p - 1.0).abs() < 1e-11 + 10.0 * step, "{beta:?} {p} {found}");
        }
    }
}
