//! The difference of two means: its test, and its intervals in the metric's unit and in shares of the control, for any
//! critical value: that of one look, of a bound, of a sequence, of many comparisons.

use crate::distributions::{PValue, student_isf, student_sf};
use crate::effect::{Effect, Scale, Status, Undefined};
use crate::means::{Arm, NotTested, welch_parts};
use crate::proportions::Count;
use crate::score;

/// A difference of two means, with what is known of the mean that it is relative to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Treatment minus control, adjusted if anything is.
    pub estimate: f64,
    /// Its standard error, positive.
    pub std_error: f64,
    /// Degrees of freedom of the standard error, not whole.
    pub dof: f64,
    /// The control's mean as it is, never adjusted.
    pub baseline: f64,
    /// The variance of that mean.
    pub baseline_variance: f64,
    /// The treatment's mean, by which the delta method weighs the control's chance.
    pub treatment: f64,
    /// How much the difference moves with the baseline: their covariance over the baseline's variance. Of two independent
    /// means it is -1.
    pub slope: f64,
    /// The variance of the difference that the baseline does not explain.
    pub rest_variance: f64,
    /// Control and treatment, where these are shares compared by the score test: then its intervals are those of that test.
    pub shares: Option<(Count, Count)>,
}

impl Difference {
    /// Compares the means of two variants by Welch's unequal-variance t-test.
    /// # Errors
    /// [`NotTested`]; nothing is estimated and no default number returned. For proportions a single user is enough data, for
    /// `is_mean` it is not.
    /// Source: Welch 1947, Biometrika 34, 28-35; degrees of freedom by Satterthwaite 1946, Biometrics Bulletin 2, 110-114.
    pub fn welch(control: &Arm, treatment: &Arm, is_mean: bool) -> Result<Self, NotTested> {
        let (variance, dof) = welch_parts(control, treatment, is_mean)?;
        Ok(Difference {
            estimate: treatment.mean - control.mean,
            std_error: variance.sqrt(),
            dof,
            baseline: control.mean,
            baseline_variance: control.variance_of_mean(),
            treatment: treatment.mean,
            slope: -1.0,
            rest_variance: treatment.variance_of_mean(),
            shares: None,
        })
    }

    /// Compares two shares of users by the score test: their variance is that of both together, as it is without an effect.
    /// So it is there for an arm of which nobody or everybody converted, and fewer conversions in the weaker arm never
    /// weaken the evidence. `None` without users in both, or if nobody or everybody of both converted.
    /// Source: Pearson 1900, Philosophical Magazine 50, 157-175, in its signed form.
    pub fn pooled(control: Count, treatment: Count) -> Option<Self> {
        let users = control.users.checked_add(treatment.users)?;
        if control.users == 0 || treatment.users == 0 {
            return None;
        }
        let rate = (control.converted as f64 + treatment.converted as f64) / users as f64;
        let variance = rate * (1.0 - rate);
        let (of_control, of_treatment) = (variance / control.users as f64, variance / treatment.users as f64);
        let std_error = (of_control + of_treatment).sqrt();
        (std_error > 0.0).then(|| Difference {
            estimate: treatment.rate() - control.rate(),
            std_error,
            dof: (users as f64 - 2.0).max(1.0),
            baseline: control.rate(),
            baseline_variance: of_control,
            treatment: treatment.rate(),
            slope: -1.0,
            rest_variance: of_treatment,
            shares: Some((control, treatment)),
        })
    }

    /// Returns the difference in standard errors.
    pub fn z(&self) -> f64 {
        self.estimate / self.std_error
    }

    /// Returns Student's two-sided p-value.
    pub fn p_value(&self) -> PValue {
        student_sf(self.z().abs(), self.dof).doubled().into()
    }

    /// Returns Student's critical value at 1 - `alpha`, two-sided (0 < `alpha` < 1).
    pub fn critical(&self, alpha: f64) -> f64 {
        student_isf(alpha / 2.0, self.dof)
    }

    /// Returns the interval of the difference, `critical` standard errors to either side; of the score test by inverting it.
    pub fn absolute(&self, critical: f64) -> (f64, f64) {
        if let Some((control, treatment)) = self.shares {
            return score::difference(control, treatment, critical);
        }
        (self.estimate - critical * self.std_error, self.estimate + critical * self.std_error)
    }

    /// Returns the difference in shares of the control, 0.1 for ten percent more; `None` if the control's mean is 0.
    pub fn lift(&self) -> Option<f64> {
        (self.baseline != 0.0).then(|| self.estimate / self.baseline.abs())
    }

    /// Returns how far the control's mean is from being told apart from 0; from 1 on there is no bounded relative interval.
    pub fn g(&self, critical: f64) -> Option<f64> {
        (self.baseline != 0.0).then(|| critical * critical * self.baseline_variance / (self.baseline * self.baseline))
    }

    /// Returns the interval of the relative difference, which leaves 0 out exactly if that of the difference does; `None` if
    /// it is unbounded or the control's mean is 0.
    /// Source: Fieller 1954, Journal of the Royal Statistical Society B 16, 175-185, for a numerator and a denominator that
    /// are correlated.
    pub fn relative(&self, critical: f64) -> Option<(f64, f64)> {
        if let Some((control, treatment)) = self.shares {
            return score::ratio(control, treatment, critical);
        }
        let (lift, g) = (self.lift()?, self.g(critical)?);
        if g >= 1.0 {
            return None;
        }
        let off = lift - self.slope_in_shares();
        let spread = self.rest_variance * (1.0 - g) + self.baseline_variance * off * off;
        let half = critical * spread.sqrt() / self.baseline.abs();
        let middle = lift - g * self.slope_in_shares();
        Some(((middle - half) / (1.0 - g), (middle + half) / (1.0 - g)))
    }

    /// Returns the difference as one estimate, on the scale asked for. The relative one has the standard error of the delta
    /// method: it is what other products show and test, and decides nothing here.
    /// # Errors
    /// [`Undefined`]: a relative effect on a control of 0, or one without any variance.
    /// Source: delta method as in Deng, Knoblich, Lu 2018, KDD 24, 233-242.
    pub fn effect(&self, scale: Scale) -> Result<Effect, Undefined> {
        if scale == Scale::Absolute {
            return Ok(Effect { estimate: self.estimate, std_error: self.std_error, dof: self.dof });
        }
        let undefined = |status, lift| Undefined { status, estimate: Some(self.estimate), lift };
        let lift = self.lift().ok_or(undefined(Status::ZeroBaseline, None))?;
        let off = (self.treatment - self.baseline) / self.baseline.abs() - self.slope_in_shares();
        let std_error = (self.rest_variance + self.baseline_variance * off * off).sqrt() / self.baseline.abs();
        // A treatment at exactly 0 without variance leaves none of its relative effect, whatever the control does.
        if std_error <= 0.0 || !std_error.is_finite() || !lift.is_finite() {
            return Err(undefined(Status::ZeroVariance, Some(lift).filter(|lift| lift.is_finite())));
        }
        Ok(Effect { estimate: lift, std_error, dof: self.dof })
    }

    /// The slope against the size of the baseline.
    fn slope_in_shares(&self) -> f64 {
        self.slope * self.baseline.signum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_relative_to_0_and_nothing_has_no_variance() {
        let arm = |mean, variance| Arm { users: 10, mean, variance };
        let of = |control, treatment| Difference::welch(&control, &treatment, true).expect("tested");
        let from_zero = of(arm(0.0, 1.0), arm(1.0, 1.0));
        assert_eq!((from_zero.lift(), from_zero.g(2.0), from_zero.relative(2.0)), (None, None, None));
        assert_eq!(from_zero.effect(Scale::Relative).map_err(|undefined| undefined.status), Err(Status::ZeroBaseline));
        assert!(from_zero.effect(Scale::Absolute).is_ok());
        let to_zero = of(arm(0.1, 3.0), arm(0.0, 0.0)).effect(Scale::Relative);
        assert_eq!(to_zero.map_err(|undefined| (undefined.status, undefined.lift)), Err((Status::ZeroVariance, Some(-1.0))));
    }

    #[test]
    fn the_score_test_is_that_of_calculators_and_has_no_borders() {
        let count = |users, converted| Count { users, converted };
        let of = |control, treatment| Difference::pooled(control, treatment);
        // 0 of 3,000 against 40 of 3,000: the pooled rate is 1/150, so z is (1/75) / sqrt(149/22,500 / 1,500).
        let found = of(count(3_000, 40), count(3_000, 0)).expect("some variance");
        assert!((found.z() + (1.0 / 75.0) / (149.0 / 22_500.0 / 1_500.0_f64).sqrt()).abs() < 1e-12, "{found:?}");
        let (z, _) = crate::proportions::pooled_z(count(900, 9), count(100, 4)).expect("some variance");
        assert!(of(count(900, 9), count(100, 4)).is_some_and(|found| (found.z() - z).abs() < 1e-12));
        for (control, treatment) in [((0, 0), (5, 1)), ((5, 1), (0, 0)), ((5, 0), (9, 0)), ((5, 5), (9, 9))] {
            assert_eq!(of(count(control.0, control.1), count(treatment.0, treatment.1)), None);
        }
    }

    proptest! {
        #[test]
        fn fewer_conversions_in_the_weaker_arm_strengthen_the_score(nc in 1u64..5_000, nt in 1u64..5_000, xc in 0u64..5_000, xt in 1u64..5_000) {
            let (control, treatment) = (Count { users: nc, converted: xc.min(nc) }, Count { users: nt, converted: xt.min(nt) });
            prop_assume!(treatment.rate() < control.rate());
            let fewer = Count { converted: treatment.converted - 1, ..treatment };
            let (now, then) = (Difference::pooled(control, fewer), Difference::pooled(control, treatment));
            if let (Some(now), Some(then)) = (now, then) {
                prop_assert!(now.z() < then.z(), "{:?} {:?}", now, then);
            }
        }

        #[test]
        fn test_and_both_intervals_agree_about_0(
            estimate in -5.0..5.0_f64, rest in 0.01..4.0_f64, baseline in -9.0..9.0_f64, spread in 0.01..2.0_f64,
            slope in -2.0..2.0_f64, alpha in 0.001..0.4_f64,
        ) {
            let std_error = (rest + slope * slope * spread).sqrt();
            let found = Difference {
                estimate, std_error, dof: 50.0, baseline, baseline_variance: spread, treatment: baseline + estimate, slope,
                rest_variance: rest, shares: None,
            };
            let critical = found.critical(alpha);
            // On the border itself rounding decides.
            prop_assume!(baseline.abs() > 0.01 && (found.z().abs() - critical).abs() > 1e-6);
            let excludes = |ends: (f64, f64)| ends.0 > 0.0 || ends.1 < 0.0;
            let is_significant = found.p_value().p < alpha;
            prop_assert_eq!(excludes(found.absolute(critical)), is_significant);
            if let Some(relative) = found.relative(critical) {
                prop_assert_eq!(excludes(relative), is_significant, "{:?}", found);
                let lift = found.lift().expect("a baseline");
                prop_assert!(relative.0 <= lift && lift <= relative.1);
            }
        }
    }
}
