//! Building blocks of the distributions: logarithms without cancellation, quadrature, bracketed roots.

use std::sync::LazyLock;

use statrs::function::gamma::ln_gamma;

/// Half the logarithm of 2 pi.
pub(crate) const HALF_LN_2_PI: f64 = 0.918_938_533_204_672_7;

/// Returns ln(1 + x) - x for x > -1, exact to rounding also where both terms nearly cancel.
/// Source: ln(1 + x) = 2 artanh(x / (2 + x)), whose series starts with the x that is taken away.
pub(crate) fn ln_1p_minus(x: f64) -> f64 {
    if !(-0.5..1.0).contains(&x) {
        return x.ln_1p() - x;
    }
    let r = x / (2.0 + x);
    let square = r * r;
    // |r| <= 1/3: the 20th term is below 1e-19.
    let series = (0..20).rev().fold(0.0, |sum, k| sum * square + 1.0 / f64::from(2 * k + 3));
    r * (2.0 * square * series - x)
}

/// Returns what Stirling's formula lacks: ln gamma(x) - ((x - 1/2) ln x - x + ln(2 pi) / 2), for x > 0.
/// Source: Abramowitz and Stegun 6.1.41; below 12 by the gamma function itself.
pub(crate) fn stirling_error(x: f64) -> f64 {
    if x < 12.0 {
        return ln_gamma(x) - ((x - 0.5) * x.ln() - x + HALF_LN_2_PI);
    }
    let terms = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0, -691.0 / 360_360.0];
    let inverse = 1.0 / (x * x);
    terms.iter().rev().fold(0.0, |sum, term| sum * inverse + term) / x
}

/// Points of Gauss-Legendre quadrature per stretch.
pub(crate) const POINTS: usize = 16;

/// The Legendre polynomials of degree 0 to 16 at `x`.
fn legendre(x: f64) -> [f64; POINTS + 1] {
    let mut values = [1.0; POINTS + 1];
    values[1] = x;
    for k in 2..=POINTS {
        let degree = k as f64;
        values[k] = ((2.0 * degree - 1.0) * x * values[k - 1] - (degree - 1.0) * values[k - 2]) / degree;
    }
    values
}

/// Points, rising, and weights of Gauss-Legendre quadrature of order 16 on (-1, 1).
static LEGENDRE: LazyLock<[(f64, f64); POINTS]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let order = POINTS as f64;
        let mut x = -(std::f64::consts::PI * (i as f64 + 0.75) / (order + 0.5)).cos();
        let mut slope = 1.0;
        // Newton's method from this start doubles the digits at each step.
        for _ in 0..10 {
            let values = legendre(x);
            slope = order * (x * values[POINTS] - values[POINTS - 1]) / (x * x - 1.0);
            x -= values[POINTS] / slope;
        }
        (x, 2.0 / ((1.0 - x * x) * slope * slope))
    })
});

/// The integral from -1 to each point, as weights of the values at all points.
static INTEGRALS: LazyLock<[[f64; POINTS]; POINTS]> = LazyLock::new(|| {
    let values = LEGENDRE.map(|(x, _)| legendre(x));
    // The integral of the polynomial of degree k from -1 to the point i.
    let integral = |i: usize, k: usize| match k {
        0 => LEGENDRE[i].0 + 1.0,
        _ => (values[i][k + 1] - values[i][k - 1]) / (2 * k + 1) as f64,
    };
    std::array::from_fn(|i| {
        std::array::from_fn(|j| {
            let terms = (0..POINTS).map(|k| (2 * k + 1) as f64 / 2.0 * values[j][k] * integral(i, k));
            LEGENDRE[j].1 * terms.sum::<f64>()
        })
    })
});

/// Returns the points, rising, and weights of Gauss-Legendre quadrature with 16 points between `low` and `high`.
/// Source: Abramowitz and Stegun 25.4.29 and 25.4.30.
pub(crate) fn quadrature(low: f64, high: f64) -> impl Iterator<Item = (f64, f64)> {
    let (centre, half) = (0.5 * (low + high), 0.5 * (high - low));
    LEGENDRE.iter().map(move |(x, weight)| (centre + half * x, half * weight))
}

/// Returns the integrals from `low` to each point of [`quadrature`], and to `high`, of a function with these values there.
/// Source: integration of the interpolating polynomial, as a sum of Legendre polynomials.
pub(crate) fn integrals(low: f64, high: f64, values: &[f64; POINTS]) -> ([f64; POINTS], f64) {
    let half = 0.5 * (high - low);
    let sum = |weights: &[f64; POINTS]| half * weights.iter().zip(values).map(|(weight, value)| weight * value).sum::<f64>();
    let whole = half * LEGENDRE.iter().zip(values).map(|((_, weight), value)| weight * value).sum::<f64>();
    (std::array::from_fn(|i| sum(&INTEGRALS[i])), whole)
}

/// Returns where `is_below` turns from true to false between `low` and `high`, to the last digit.
/// At most 200 halvings, after which nothing is left to halve, whatever the start.
pub(crate) fn bisect(mut low: f64, mut high: f64, is_below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if is_below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_keep_their_digits() {
        let check = |x: f64, expected: f64| {
            let found = ln_1p_minus(x);
            assert!((found / expected - 1.0).abs() < 1e-14, "x = {x}: {found} and {expected}");
        };
        // The first terms of the series, and the definition where nothing cancels.
        check(1e-9, -0.5e-18 + 1e-27 / 3.0);
        check(-1e-5, -0.5e-10 - 1e-15 / 3.0 - 0.25e-20);
        check(-0.4999, 0.5001_f64.ln() + 0.4999);
        check(0.9999, 1.9999_f64.ln() - 0.9999);
        check(5.0, 6.0_f64.ln() - 5.0);
        check(-0.9, 0.1_f64.ln() + 0.9);
    }

    #[test]
    fn stirlings_formula_and_its_error_meet_at_the_seam() {
        for x in [0.5, 1.0, 7.5, 11.999_999, 12.0, 100.0] {
            let found = stirling_error(x) + (x - 0.5) * x.ln() - x + HALF_LN_2_PI;
            assert!((found - ln_gamma(x)).abs() < 1e-13 * ln_gamma(x).abs().max(1.0), "x = {x}");
        }
        assert!((stirling_error(12.0 - 1e-9) - stirling_error(12.0)).abs() < 1e-12);
    }

    #[test]
    fn quadrature_is_exact_for_polynomials_and_close_for_bells() {
        let integral = |low, high, f: &dyn Fn(f64) -> f64| quadrature(low, high).map(|(x, weight)| weight * f(x)).sum::<f64>();
        assert!((integral(0.0, 2.0, &|x| x.powi(31)) / (2.0_f64.powi(32) / 32.0) - 1.0).abs() < 1e-13);
        let bell = integral(-3.0, 0.0, &|x| (-0.5 * x * x).exp()) + integral(0.0, 3.0, &|x| (-0.5 * x * x).exp());
        assert!((bell / (2.0 * HALF_LN_2_PI).exp().sqrt() - 0.997_300_203_936_739_8).abs() < 1e-13, "{bell}");
    }

    #[test]
    fn integrals_to_each_point_are_exact_for_polynomials() {
        let points: Vec<f64> = quadrature(-1.0, 3.0).map(|(x, _)| x).collect();
        assert!(points.is_sorted());
        let values = std::array::from_fn(|i| 12.0 * points[i].powi(11));
        let (found, whole) = integrals(-1.0, 3.0, &values);
        for (x, found) in points.iter().zip(found) {
            assert!((found - (x.powi(12) - 1.0)).abs() < 1e-8, "{x}: {found}");
        }
        assert!((whole - (3.0_f64.powi(12) - 1.0)).abs() < 1e-8);
    }

    #[test]
    fn roots_are_found_or_the_end_is_returned() {
        assert!((bisect(0.0, 4.0, |x| x * x < 2.0) - 2.0_f64.sqrt()).abs() < 4e-16);
        assert!(bisect(0.0, 1.0, |_| true) > 0.999_999);
        assert!(bisect(-1e30, 1e30, |x| x < 1e-20).abs() < 1e-19);
    }
}
