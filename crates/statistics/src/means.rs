//! Two means: their difference by Welch's test, their ratio by Fieller's theorem.

use crate::distributions::{student_isf, student_sf};

/// One variant, as a test sees it: users, mean and variance of one user's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arm {
    /// Number of users.
    pub users: u64,
    /// Mean over users.
    pub mean: f64,
    /// Variance of one user's value.
    pub variance: f64,
}

impl Arm {
    /// Makes the arm of a proportion: `converted` of `users`. Its variance is p (1 - p), by the convention of the field.
    pub fn proportion(users: u64, converted: u64) -> Self {
        let mean = if users == 0 { 0.0 } else { converted as f64 / users as f64 };
        Arm { users, mean, variance: mean * (1.0 - mean) }
    }

    /// Returns the variance of the mean.
    pub(crate) fn variance_of_mean(&self) -> f64 {
        self.variance / self.users as f64
    }
}

/// A difference of means with its test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Treatment minus control.
    pub estimate: f64,
    /// Its standard error.
    pub std_error: f64,
    /// The estimate in standard errors.
    pub t: f64,
    /// Degrees of freedom, not whole.
    pub dof: f64,
    /// Two-sided p-value; 0 where it underflows.
    pub p_value: f64,
    /// Its decimal logarithm, always finite.
    pub log10_p: f64,
    /// The critical value of t at this confidence.
    pub t_critical: f64,
    /// Ends of the two-sided interval.
    pub interval: (f64, f64),
}

/// Why two means cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTested {
    /// A variant has no users.
    #[error("a variant has no users")]
    NoData,
    /// A variant has a single user, and its spread cannot be estimated.
    #[error("a variant has fewer than 2 users")]
    TooFewUsers,
    /// No user differs from another one in either variant.
    #[error("no user differs from another one of the same variant")]
    ZeroVariance,
}

/// Compares the means of two variants by Welch's unequal-variance t-test, two-sided, at 1 - `alpha` (0 < `alpha` < 1).
/// # Errors
/// [`NotTested`]; nothing is estimated and no default number returned. For proportions a single user is enough data, for
/// `is_mean` it is not.
/// Source: Welch 1947, Biometrika 34, 28-35; degrees of freedom by Satterthwaite 1946, Biometrics Bulletin 2, 110-114.
pub fn welch(control: &Arm, treatment: &Arm, alpha: f64, is_mean: bool) -> Result<Difference, NotTested> {
    let (variance, dof) = welch_parts(control, treatment, is_mean)?;
    let estimate = treatment.mean - control.mean;
    let std_error = variance.sqrt();
    let t = estimate / std_error;
    let tail = student_sf(t.abs(), dof).doubled();
    let t_critical = student_isf(alpha / 2.0, dof);
    let half = t_critical * std_error;
    Ok(Difference {
        estimate,
        std_error,
        t,
        dof,
        p_value: tail.p,
        log10_p: tail.log10(),
        t_critical,
        interval: (estimate - half, estimate + half),
    })
}

/// Returns the variance of the difference of two means, and the degrees of freedom of its estimate.
/// # Errors
/// As [`welch`].
pub(crate) fn welch_parts(control: &Arm, treatment: &Arm, is_mean: bool) -> Result<(f64, f64), NotTested> {
    if control.users == 0 || treatment.users == 0 {
        return Err(NotTested::NoData);
    }
    if is_mean && (control.users < 2 || treatment.users < 2) {
        return Err(NotTested::TooFewUsers);
    }
    let (vc, vt) = (control.variance_of_mean(), treatment.variance_of_mean());
    if vc + vt <= 0.0 {
        return Err(NotTested::ZeroVariance);
    }
    // A variance of 0 says nothing about the freedom of its arm, and one user is always such a case.
    let share = |variance: f64, users: u64| {
        let part = variance / (vc + vt);
        if part == 0.0 { 0.0 } else { part * part / (users as f64 - 1.0) }
    };
    let dof = 1.0 / (share(vc, control.users) + share(vt, treatment.users));
    Ok((vc + vt, dof))
}

/// A relative difference: (treatment - control) / |control|.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lift {
    /// The relative difference; 0.1 is ten percent more.
    pub lift: f64,
    /// How far the control's mean is from being told apart from 0: from 1 on there is no bounded interval.
    pub g: f64,
    /// Fieller's interval; `None` if it is unbounded.
    pub interval: Option<(f64, f64)>,
    /// The interval of the delta method, for comparison with products that show that one. Not used for decisions.
    pub interval_delta: (f64, f64),
}

/// Returns the relative difference of two means that [`welch`] compared, with the interval that agrees with its test.
/// `None` if the control's mean is 0.
/// Source: Fieller 1954, Journal of the Royal Statistical Society B 16, 175-185, with Welch's t.
pub fn lift(control: &Arm, treatment: &Arm, difference: &Difference) -> Option<Lift> {
    if control.mean == 0.0 {
        return None;
    }
    let t = difference.t_critical;
    let (vc, vt) = (control.variance_of_mean(), treatment.variance_of_mean());
    let square = control.mean * control.mean;
    let (ratio, g) = (treatment.mean / control.mean, t * t * vc / square);
    let sign = control.mean.signum();
    let ordered = |a: f64, b: f64| if a <= b { (a, b) } else { (b, a) };
    let interval = (g < 1.0).then(|| {
        let half = t * (vt * (1.0 - g) / square + vc * ratio * ratio / square).sqrt();
        ordered(sign * ((ratio - half) / (1.0 - g) - 1.0), sign * ((ratio + half) / (1.0 - g) - 1.0))
    });
    let lift = (treatment.mean - control.mean) / control.mean.abs();
    let half_delta = t * delta_std_error(control, treatment);
    Some(Lift { lift, g, interval, interval_delta: (lift - half_delta, lift + half_delta) })
}

/// Returns the standard error of the relative difference by the delta method.
pub(crate) fn delta_std_error(control: &Arm, treatment: &Arm) -> f64 {
    let square = control.mean * control.mean;
    let ratio = treatment.mean / control.mean;
    (treatment.variance_of_mean() / square + control.variance_of_mean() * ratio * ratio / square).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::tests::arm_of;
    use crate::golden;
    use proptest::prelude::*;

    #[test]
    fn welch_is_that_of_the_libraries() {
        for case in golden::cases("welch", "welch_t") {
            let (control, treatment) = (arm_of(&case.input["control"]), arm_of(&case.input["treatment"]));
            match welch(&control, &treatment, case.number("alpha"), true) {
                Ok(found) => {
                    case.check_status("ok");
                    case.check("estimate", found.estimate);
                    case.check("std_error", found.std_error);
                    case.check("t", found.t);
                    case.check("dof", found.dof);
                    case.check("p_value", found.p_value);
                    case.check("log10_p_value", found.log10_p);
                    case.check("t_crit", found.t_critical);
                    case.check("ci_low", found.interval.0);
                    case.check("ci_high", found.interval.1);
                    case.check("mean_control", control.mean);
                    case.check("mean_treatment", treatment.mean);
                }
                Err(NotTested::ZeroVariance) => case.check_status("zero_variance"),
                Err(other) => panic!("{}: {other}", case.id),
            }
        }
    }

    #[test]
    fn fieller_is_the_closed_form() {
        for case in golden::cases("fieller", "lift_fieller_t") {
            let (control, treatment) = (arm_of(&case.input["control"]), arm_of(&case.input["treatment"]));
            let difference = welch(&control, &treatment, case.number("alpha"), true).expect("tested");
            let found = lift(&control, &treatment, &difference).expect("a baseline");
            case.check("dof", difference.dof);
            case.check("p_value", difference.p_value);
            case.check("g", found.g);
            case.check("lift", found.lift);
            case.check("ci_low", found.interval.map(|ends| ends.0));
            case.check("ci_high", found.interval.map(|ends| ends.1));
            case.check_status(if found.interval.is_some() { "ok" } else { "unbounded_relative_ci" });
        }
    }

    #[test]
    fn the_delta_interval_is_that_of_the_libraries() {
        let mut checked = 0;
        for case in golden::cases("lift", "lift_delta_t") {
            if case.has("status") || case.input.get("alternative").is_some() {
                continue;
            }
            let (control, treatment) = (arm_of(&case.input["control"]), arm_of(&case.input["treatment"]));
            let difference = welch(&control, &treatment, case.number("alpha"), true).expect("tested");
            case.check("dof", difference.dof);
            if case.input["difference"] == "absolute" {
                case.check("p_value", difference.p_value);
                case.check("ci_low", difference.interval.0);
                case.check("ci_high", difference.interval.1);
            } else {
                let found = lift(&control, &treatment, &difference).expect("a baseline");
                case.check("estimate", found.lift);
                case.check("std_error", delta_std_error(&control, &treatment));
                case.check("ci_low", found.interval_delta.0);
                case.check("ci_high", found.interval_delta.1);
            }
            checked += 1;
        }
        assert_eq!(checked, 8);
    }

    #[test]
    fn what_cannot_be_tested_says_why() {
        let arm = |users, mean, variance| Arm { users, mean, variance };
        let check = |control, treatment, expected| {
            assert_eq!(welch(&control, &treatment, 0.05, true).map(|found| found.estimate), Err(expected));
        };
        check(arm(0, 0.0, 0.0), arm(5, 1.0, 1.0), NotTested::NoData);
        check(arm(1, 1.0, 0.0), arm(5, 1.0, 1.0), NotTested::TooFewUsers);
        check(arm(5, 1.0, 0.0), arm(5, 2.0, 0.0), NotTested::ZeroVariance);
        // One arm without spread is fine; the other one alone gives the degrees of freedom.
        assert_eq!(welch(&arm(5, 1.0, 0.0), &arm(9, 2.0, 1.0), 0.05, true).map(|found| found.dof), Ok(8.0));
    }

    proptest! {
        #[test]
        fn test_and_both_intervals_agree(
            nc in 2u64..5_000, nt in 2u64..5_000, mc in -50.0..50.0_f64, mt in -50.0..50.0_f64,
            vc in 0.01..900.0_f64, vt in 0.0..900.0_f64, alpha in 0.01..0.2_f64,
        ) {
            prop_assume!(mc.abs() > 1e-3);
            let (control, treatment) = (Arm { users: nc, mean: mc, variance: vc }, Arm { users: nt, mean: mt, variance: vt });
            let difference = welch(&control, &treatment, alpha, true).expect("tested");
            // On the border itself rounding decides.
            prop_assume!((difference.t.abs() / difference.t_critical - 1.0).abs() > 1e-9);
            let excludes = |ends: (f64, f64)| ends.0 > 0.0 || ends.1 < 0.0;
            let significant = difference.p_value < alpha;
            prop_assert_eq!(excludes(difference.interval), significant);
            let relative = lift(&control, &treatment, &difference).expect("a baseline");
            if let Some(ends) = relative.interval {
                prop_assert_eq!(excludes(ends), significant, "{:?} {:?}", difference, relative);
                prop_assert!(ends.0 <= relative.lift && relative.lift <= ends.1);
            }
        }
    }
}
