//! A difference of two means with its intervals on both scales, for any critical value: that of one look, of a bound, of a
//! sequence, of many comparisons.

use statistics::distributions::{student_isf, student_upper};
use statistics::means::Arm;

/// A difference of two means, with what is known of the mean that it is relative to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Headline {
    /// Treatment minus control.
    pub estimate: f64,
    /// Its standard error, positive.
    pub std_error: f64,
    /// Degrees of freedom of the standard error.
    pub dof: f64,
    /// The control's mean as it is, never adjusted.
    pub baseline: f64,
    /// The variance of that mean.
    pub baseline_variance: f64,
    /// The covariance of the difference and that mean.
    pub covariance: f64,
}

impl Headline {
    /// Makes the headline of two independent means. `dof` belongs to Welch's test of them.
    pub fn of(control: &Arm, treatment: &Arm, dof: f64) -> Self {
        let of_mean = |arm: &Arm| arm.variance / arm.users as f64;
        let (control_variance, treatment_variance) = (of_mean(control), of_mean(treatment));
        Headline {
            estimate: treatment.mean - control.mean,
            std_error: (control_variance + treatment_variance).sqrt(),
            dof,
            baseline: control.mean,
            baseline_variance: control_variance,
            covariance: -control_variance,
        }
    }

    /// Returns the estimate in standard errors.
    pub fn z(&self) -> f64 {
        self.estimate / self.std_error
    }

    /// Returns Student's two-sided p-value and its decimal logarithm.
    pub fn p_value(&self) -> (f64, f64) {
        let tail = student_upper(self.z().abs(), self.dof).doubled();
        (tail.p, tail.log10())
    }

    /// Returns Student's critical value at 1 - `alpha`, two-sided.
    pub fn critical(&self, alpha: f64) -> f64 {
        student_isf(alpha / 2.0, self.dof)
    }

    /// Returns the interval of the difference, `critical` standard errors to either side.
    pub fn absolute(&self, critical: f64) -> (f64, f64) {
        (self.estimate - critical * self.std_error, self.estimate + critical * self.std_error)
    }

    /// Returns the relative difference; `None` if the control's mean is 0.
    pub fn lift(&self) -> Option<f64> {
        (self.baseline != 0.0).then(|| self.estimate / self.baseline.abs())
    }

    /// Returns how far the control's mean is from being told apart from 0; from 1 on there is no bounded relative interval.
    pub fn g(&self, critical: f64) -> Option<f64> {
        (self.baseline != 0.0).then(|| critical * critical * self.baseline_variance / (self.baseline * self.baseline))
    }

    /// Returns the interval of the relative difference that leaves 0 out exactly if that of the difference does; `None` if it
    /// is unbounded or the control's mean is 0.
    /// Source: Fieller 1954, Journal of the Royal Statistical Society B 16, 175-185, for a numerator and a denominator that
    /// are correlated.
    pub fn relative(&self, critical: f64) -> Option<(f64, f64)> {
        if self.g(critical)? >= 1.0 {
            return None;
        }
        let square = critical * critical;
        let (n, d) = (self.estimate, self.baseline.abs());
        let (vn, vd) = (self.std_error * self.std_error, self.baseline_variance);
        let c = self.covariance * self.baseline.signum();
        let leading = d * d - square * vd;
        let middle = n * d - square * c;
        let inner = d * d * vn - 2.0 * n * d * c + n * n * vd - square * (vn * vd - c * c);
        let half = critical * inner.max(0.0).sqrt();
        Some(((middle - half) / leading, (middle + half) / leading))
    }
}

/// Returns the two ends as answers carry them.
pub fn ends(interval: Option<(f64, f64)>) -> [Option<f64>; 2] {
    let finite = |end: f64| end.is_finite().then_some(end);
    [interval.and_then(|ends| finite(ends.0)), interval.and_then(|ends| finite(ends.1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use statistics::means::{lift, welch};
    use proptest::prelude::*;

    #[test]
    fn ends_that_are_not_finite_are_left_out() {
        assert_eq!(ends(Some((f64::NEG_INFINITY, 2.0))), [None, Some(2.0)]);
        assert_eq!(ends(None), [None, None]);
    }

    proptest! {
        #[test]
        fn of_independent_means_it_is_the_published_interval(
            nc in 2u64..5_000, nt in 2u64..5_000, mc in -50.0..50.0_f64, mt in -50.0..50.0_f64,
            vc in 0.01..900.0_f64, vt in 0.0..900.0_f64, alpha in 0.01..0.2_f64,
        ) {
            prop_assume!(mc.abs() > 1e-3);
            let (control, treatment) = (Arm { users: nc, mean: mc, variance: vc }, Arm { users: nt, mean: mt, variance: vt });
            let difference = welch(&control, &treatment, alpha, true).expect("tested");
            let published = lift(&control, &treatment, &difference).expect("a baseline");
            let headline = Headline::of(&control, &treatment, difference.dof);
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-7 * (1.0 + a.abs().max(b.abs()));
            prop_assert!(near(headline.lift().expect("a baseline"), published.lift));
            prop_assert!(near(headline.p_value().0, difference.p_value));
            let critical = headline.critical(alpha);
            prop_assume!((published.g - 1.0).abs() > 1e-3);
            match (headline.relative(critical), published.interval) {
                (Some(one), Some(two)) => prop_assert!(near(one.0, two.0) && near(one.1, two.1), "{one:?} {two:?}"),
                (one, two) => prop_assert_eq!(one, two),
            }
        }

        #[test]
        fn both_intervals_agree_about_0_also_with_any_covariance(
            estimate in -5.0..5.0_f64, std_error in 0.1..4.0_f64, baseline in -9.0..9.0_f64, spread in 0.01..2.0_f64,
            correlation in -0.99..0.99_f64, critical in 0.5..4.0_f64,
        ) {
            prop_assume!(baseline.abs() > 0.01 && ((estimate / std_error).abs() - critical).abs() > 1e-6);
            let covariance = correlation * std_error * spread;
            let headline =
                Headline { estimate, std_error, dof: 50.0, baseline, baseline_variance: spread * spread, covariance };
            if let Some(relative) = headline.relative(critical) {
                let excludes = |ends: (f64, f64)| ends.0 > 0.0 || ends.1 < 0.0;
                prop_assert_eq!(excludes(relative), excludes(headline.absolute(critical)), "{:?}", headline);
                prop_assert!(relative.0 <= relative.1);
            }
        }
    }
}
