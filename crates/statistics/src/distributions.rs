//! Tails and quantiles that stay right for billions of degrees of freedom and p-values below the smallest float.
//!
//! The library `statrs` is used where it was found right: its quantile of Student's t never returns above 2e7 degrees
//! of freedom and is off by 1e-4 long before, which is the size of an ordinary experiment.

use statrs::distribution::{ContinuousCDF, Normal};
use statrs::function::{beta::beta_reg, gamma::gamma_ur, gamma::ln_gamma};

use crate::special::HALF_LN_2_PI;

/// A tail probability with its logarithm: the logarithm stays finite where the probability underflows to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tail {
    /// The probability.
    pub p: f64,
    /// Its natural logarithm.
    pub ln: f64,
}

impl Tail {
    fn from_ln(ln: f64) -> Self {
        Tail { p: ln.exp().min(1.0), ln: ln.min(0.0) }
    }

    fn from_p(p: f64) -> Self {
        Tail { p, ln: p.ln() }
    }

    /// Returns both tails of a symmetric distribution from one of them, at most 1.
    pub fn doubled(self) -> Self {
        Tail { p: (2.0 * self.p).min(1.0), ln: (self.ln + std::f64::consts::LN_2).min(0.0) }
    }

    /// Returns the decimal logarithm of the probability.
    pub fn log10(self) -> f64 {
        self.ln / std::f64::consts::LN_10
    }
}

/// A p-value with its decimal logarithm, by which p-values below the smallest float are still told apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PValue {
    /// The p-value; 0 where it underflows.
    pub p: f64,
    /// Its decimal logarithm; finite wherever a test returned the p-value.
    pub log10: f64,
}

impl PValue {
    /// Returns the p-value `factor` times as large, at most 1.
    pub fn times(self, factor: f64) -> Self {
        PValue { p: (self.p * factor).min(1.0), log10: (self.log10 + factor.log10()).min(0.0) }
    }
}

impl From<Tail> for PValue {
    fn from(tail: Tail) -> Self {
        PValue { p: tail.p, log10: tail.log10() }
    }
}

/// Below this many degrees of freedom Student's tail is an incomplete beta function, above it Hill's normal approximation.
const HILL_FROM_DOF: f64 = 1e4;
/// From this many degrees of freedom on Student's quantile is an expansion in 1/dof.
const EXPANSION_FROM_DOF: f64 = 1e3;
/// What is further out is taken to lie here, so that no square overflows and logarithms stay finite.
const FAR: f64 = 1e150;
/// Every continued fraction here converges in far fewer steps.
const STEPS_MAX: usize = 10_000;

/// Returns the upper tail of the standard normal distribution.
/// Source: complementary error function below 37; above, the asymptotic series of Abramowitz and Stegun 26.2.12.
pub fn normal_sf(z: f64) -> Tail {
    let z = z.min(FAR);
    if z < 37.0 {
        return Tail::from_p(0.5 * libm::erfc(z / std::f64::consts::SQRT_2));
    }
    let inverse = 1.0 / (z * z);
    let series = 1.0 - inverse * (1.0 - inverse * (3.0 - inverse * (15.0 - inverse * 105.0)));
    Tail::from_ln(-0.5 * z * z - (z * (2.0 * std::f64::consts::PI).sqrt()).ln() + series.ln())
}

/// Returns the z whose upper tail is `upper`, 0 < `upper` < 1.
pub fn normal_isf(upper: f64) -> f64 {
    -Normal::standard().inverse_cdf(upper)
}

/// Returns the density of the standard normal distribution.
pub fn normal_density(z: f64) -> f64 {
    (-0.5 * z * z - HALF_LN_2_PI).exp()
}

/// Returns the upper tail of Student's t with `dof` > 0 degrees of freedom, for `t` of either sign.
/// Source: as [`student_sf`], of which it is the complement below 0.
pub fn student_upper(t: f64, dof: f64) -> Tail {
    let tail = student_sf(t.abs(), dof);
    if t >= 0.0 { tail } else { Tail { p: 1.0 - tail.p, ln: (-tail.p).ln_1p() } }
}

/// Returns the upper tail of Student's t with `dof` > 0 degrees of freedom, for `t` >= 0.
/// Source: regularised incomplete beta function; from 1e4 degrees of freedom on Hill 1970, Communications of the ACM 13,
/// 617-619 (algorithm 395), error below 4e-13.
pub fn student_sf(t: f64, dof: f64) -> Tail {
    debug_assert!(t >= 0.0 && dof > 0.0);
    let t = t.min(FAR);
    if dof >= HILL_FROM_DOF {
        return normal_sf(hill(t, dof));
    }
    // The tail is I_x(dof/2, 1/2) / 2 at x = dof / (dof + t^2); `rest` = 1 - x without cancellation.
    let (a, x, rest) = (dof / 2.0, dof / (dof + t * t), t * t / (dof + t * t));
    if x < (a + 1.0) / (a + 2.5) {
        let ln_beta = ln_gamma(a) + ln_gamma(0.5) - ln_gamma(a + 0.5);
        let ln = a * x.ln() + 0.5 * rest.ln() - a.ln() - ln_beta + beta_fraction(a, 0.5, x).ln();
        return Tail::from_ln(ln - std::f64::consts::LN_2);
    }
    Tail::from_p(0.5 * beta_reg(a, 0.5, x))
}

fn hill(t: f64, dof: f64) -> f64 {
    let a = dof - 0.5;
    let b = 48.0 * a * a;
    let y2 = a * (t * t / dof).ln_1p();
    let y = y2.sqrt();
    let fourth = (((4.0 * y2 + 33.0) * y2 + 240.0) * y2 + 855.0) * y / (10.0 * b * (b + 0.8 * y2 * y2 + 100.0));
    y + (y2 + 3.0) * y / b - fourth
}

/// The continued fraction of the incomplete beta function by Lentz's method.
/// Source: Abramowitz and Stegun 26.5.8; Lentz 1976, Applied Optics 15, 668-671.
pub(crate) fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let nonzero = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / nonzero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for step in 1..STEPS_MAX {
        let m = step as f64;
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / nonzero(1.0 + term * d);
            c = nonzero(1.0 + term / c);
            change *= d * c;
        }
        fraction *= change;
        if (change - 1.0).abs() < 4e-16 {
            break;
        }
    }
    fraction
}

/// Returns the t whose upper tail is `upper`, 0 < `upper` < 1, with `dof` > 0 degrees of freedom.
/// Source: from 1,000 degrees of freedom on the expansion of Abramowitz and Stegun 26.7.5, error below 7e-13; below, the
/// bracketed root of [`student_sf`].
pub fn student_isf(upper: f64, dof: f64) -> f64 {
    debug_assert!(upper > 0.0 && upper < 1.0 && dof > 0.0);
    if upper >= 0.5 {
        return if upper == 0.5 { 0.0 } else { -student_isf(1.0 - upper, dof) };
    }
    if dof >= EXPANSION_FROM_DOF {
        let z = normal_isf(upper);
        let z2 = z * z;
        let terms = [
            (z2 + 1.0) / 4.0,
            ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0,
            (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0,
            ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0,
        ];
        return z + z * terms.iter().rev().fold(0.0, |sum, term| (sum + term) / dof);
    }
    let (mut low, mut high) = (0.0, 2.0);
    while student_sf(high, dof).p > upper && high < 1e300 {
        (low, high) = (high, high * 2.0);
    }
    // Each step halves the bracket; after 200 nothing is left to halve, whatever the start.
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if student_sf(middle, dof).p > upper {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Returns the upper tail of the chi-square distribution with `dof` > 0 degrees of freedom at `x` >= 0.
/// Source: upper incomplete gamma function; in the tail its continued fraction, Abramowitz and Stegun 6.5.31.
pub fn chi_square_sf(x: f64, dof: f64) -> Tail {
    let (a, x) = (dof / 2.0, x / 2.0);
    if x <= 0.0 {
        return Tail { p: 1.0, ln: 0.0 };
    }
    if x < a + 1.0 {
        return Tail::from_p(gamma_ur(a, x));
    }
    let mut b = x + 1.0 - a;
    let mut c = 1e300;
    let mut d = 1.0 / b;
    let mut fraction = d;
    for step in 1..STEPS_MAX {
        let m = step as f64;
        let term = m * (a - m);
        b += 2.0;
        d = 1.0 / (term * d + b);
        c = b + term / c;
        fraction *= d * c;
        if (d * c - 1.0).abs() < 4e-16 {
            break;
        }
    }
    Tail::from_ln(a * x.ln() - x - ln_gamma(a) + fraction.ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_degrees_of_freedom_have_closed_forms() {
        // One degree of freedom is Cauchy's distribution, two have an algebraic tail.
        for t in [0.0_f64, 0.01, 0.5, 1.0, 3.0, 80.0, 1e6] {
            let cauchy = 0.5 - t.atan() / std::f64::consts::PI;
            let two = 0.5 * (1.0 - t / (2.0 + t * t).sqrt());
            assert!((student_sf(t, 1.0).p - cauchy).abs() <= 1e-12, "t = {t}: {} and {cauchy}", student_sf(t, 1.0).p);
            assert!((student_sf(t, 2.0).p - two).abs() <= 1e-12, "t = {t}: {} and {two}", student_sf(t, 2.0).p);
        }
        // Two degrees of freedom of chi-square are an exponential.
        for x in [0.1, 1.0, 3.9, 4.1, 50.0, 5_000.0] {
            assert!((chi_square_sf(x, 2.0).ln + x / 2.0).abs() <= 1e-9 * x, "x = {x}: {}", chi_square_sf(x, 2.0).ln);
        }
    }

    #[test]
    fn logarithms_stay_finite_where_probabilities_underflow() {
        let tails = [
            normal_sf(40.0),
            normal_sf(1e8),
            student_sf(500.0, 5_000.0),
            student_sf(1e5, 9_999.0),
            student_sf(60.0, 2e9),
            chi_square_sf(1e7, 1.0),
        ];
        for tail in tails {
            assert_eq!(tail.p, 0.0, "{tail:?}");
            assert!(tail.ln.is_finite() && tail.ln < -700.0, "{tail:?}");
        }
        // ln(phi(40) / 40) corrected by the series, computed with 30 digits.
        assert!((normal_sf(40.0).ln - -804.608_442_013_75).abs() < 1e-8, "{:?}", normal_sf(40.0));
    }

    proptest! {
        #[test]
        fn a_quantile_has_its_tail(dof in 1.0..3e9_f64, upper in 1e-12..0.49_f64) {
            let t = student_isf(upper, dof);
            prop_assert!((student_sf(t, dof).p / upper - 1.0).abs() < 1e-8, "dof {dof}, upper {upper}, t {t}");
        }

        #[test]
        fn both_methods_meet_at_the_seam(t in 0.01..36.0_f64) {
            let below = student_sf(t, HILL_FROM_DOF * (1.0 - 1e-12)).ln;
            let above = student_sf(t, HILL_FROM_DOF).ln;
            prop_assert!((below - above).abs() < 1e-8, "t {t}: {below} and {above}");
        }

        #[test]
        fn a_tail_never_rises(dof in 1.0..1e7_f64, t in 0.0..50.0_f64, step in 0.001..5.0_f64) {
            prop_assert!(student_sf(t + step, dof).ln <= student_sf(t, dof).ln + 1e-12);
        }
    }
}
