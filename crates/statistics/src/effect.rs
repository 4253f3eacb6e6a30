//! The effect of a treatment as one normal estimate, absolute or relative, with its test: what the sequential and Bayesian
//! methods start from, and what other products show.

use crate::comparison::{Sample, Status};
use crate::distributions::{student_isf, student_upper};
use crate::means::{Arm, NotTested, delta_std_error, welch_parts};

/// What an effect is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The metric's own unit: treatment - control.
    Absolute,
    /// Parts of the control's mean: (treatment - control) / |control|.
    Relative,
}

/// Which effects a test looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// Any difference; the interval has two ends.
    TwoSided,
    /// The treatment has more; the interval has a lower end only.
    Greater,
    /// The treatment has less; the interval has an upper end only.
    Less,
}

/// An effect with its precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    /// The effect.
    pub estimate: f64,
    /// Its standard error, positive.
    pub std_error: f64,
    /// Degrees of freedom of the standard error, not whole.
    pub dof: f64,
}

/// The test of an effect against none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tested {
    /// The p-value; 0 where it underflows.
    pub p_value: f64,
    /// Its decimal logarithm, always finite.
    pub log10_p: f64,
    /// The lower end of the interval; `None` where it is unbounded.
    pub low: Option<f64>,
    /// The upper end of the interval; `None` where it is unbounded.
    pub high: Option<f64>,
}

/// Why an effect has no precision, with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Undefined {
    /// The reason.
    pub status: Status,
    /// The effect, where it is defined.
    pub estimate: Option<f64>,
}

impl Undefined {
    pub(crate) fn new(status: Status, estimate: Option<f64>) -> Self {
        Undefined { status, estimate }
    }
}

impl Effect {
    /// Tests the effect against none by Student's t; the interval has confidence 1 - `alpha` (0 < `alpha` < 1).
    pub fn test(&self, alternative: Alternative, alpha: f64) -> Tested {
        let t = self.estimate / self.std_error;
        let half = |alpha: f64| student_isf(alpha, self.dof) * self.std_error;
        let (tail, low, high) = match alternative {
            Alternative::TwoSided => {
                let half = half(alpha / 2.0);
                (student_upper(t.abs(), self.dof).doubled(), Some(self.estimate - half), Some(self.estimate + half))
            }
            Alternative::Greater => (student_upper(t, self.dof), Some(self.estimate - half(alpha)), None),
            Alternative::Less => (student_upper(-t, self.dof), None, Some(self.estimate + half(alpha))),
        };
        Tested { p_value: tail.p, log10_p: tail.log10(), low, high }
    }
}

/// Returns `difference` on the given scale; `None` if the control's mean is 0 and the scale relative.
pub(crate) fn scaled(difference: f64, control_mean: f64, scale: Scale) -> Option<f64> {
    match scale {
        Scale::Absolute => Some(difference),
        Scale::Relative => (control_mean != 0.0).then(|| difference / control_mean.abs()),
    }
}

/// Measures the effect of a treatment; relative effects get their standard error by the delta method. Both samples are of
/// the same sort. Decisions rest on the absolute effect: the test of the relative one differs slightly from it, and is the
/// one that GrowthBook, PostHog and Eppo show.
/// # Errors
/// [`Undefined`] by the first of: no users; a mean of fewer than 2 users; no variance at all; a relative effect on a
/// control of 0; a share of which all or none converted, for which only exact methods are left.
/// Source: Welch 1947, Biometrika 34, 28-35; delta method as in Deng, Knoblich, Lu 2018, KDD 24, 233-242.
pub fn effect(control: &Sample, treatment: &Sample, scale: Scale) -> Result<Effect, Undefined> {
    let is_share = matches!((control, treatment), (Sample::Share(_), Sample::Share(_)));
    let (control, treatment) = (control.arm(), treatment.arm());
    let estimate = scaled(treatment.mean - control.mean, control.mean, scale);
    let (_, dof) = welch_parts(&control, &treatment, !is_share).map_err(|reason| match reason {
        NotTested::NoData => Undefined::new(Status::NoData, None),
        NotTested::TooFewUsers => Undefined::new(Status::InsufficientSample, estimate),
        NotTested::ZeroVariance => Undefined::new(Status::ZeroVariance, estimate),
    })?;
    let estimate = estimate.ok_or(Undefined::new(Status::ZeroBaseline, None))?;
    if is_share && (control.variance == 0.0 || treatment.variance == 0.0) {
        return Err(Undefined::new(Status::ExactOnly, Some(estimate)));
    }
    // A treatment at exactly 0 without variance leaves none of its relative effect, whatever the control does.
    let std_error = std_error(&control, &treatment, scale);
    if std_error <= 0.0 || !std_error.is_finite() || !estimate.is_finite() {
        return Err(Undefined::new(Status::ZeroVariance, Some(estimate).filter(|estimate| estimate.is_finite())));
    }
    Ok(Effect { estimate, std_error, dof })
}

fn std_error(control: &Arm, treatment: &Arm, scale: Scale) -> f64 {
    match scale {
        Scale::Absolute => (control.variance_of_mean() + treatment.variance_of_mean()).sqrt(),
        Scale::Relative => delta_std_error(control, treatment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proportions::Count;

    #[test]
    fn what_is_undefined_says_why() {
        let share = |users, converted| Sample::Share(Count { users, converted });
        let mean = |users, mean, variance| Sample::Mean(Arm { users, mean, variance });
        let check = |control, treatment, scale, status, estimate| {
            assert_eq!(effect(&control, &treatment, scale), Err(Undefined { status, estimate }), "{control:?} {treatment:?}");
        };
        use Scale::{Absolute, Relative};
        check(share(0, 0), share(5, 1), Relative, Status::NoData, None);
        check(mean(1, 2.0, 0.0), mean(5, 3.0, 1.0), Relative, Status::InsufficientSample, Some(0.5));
        check(mean(1, 0.0, 0.0), mean(5, 3.0, 1.0), Relative, Status::InsufficientSample, None);
        check(mean(5, -2.0, 0.0), mean(5, 3.0, 0.0), Relative, Status::ZeroVariance, Some(2.5));
        check(share(10, 0), share(10, 3), Relative, Status::ZeroBaseline, None);
        check(share(10, 0), share(10, 3), Absolute, Status::ExactOnly, Some(0.3));
        check(share(10, 5), share(10, 10), Relative, Status::ExactOnly, Some(1.0));
        check(mean(10, 0.0, 1.0), mean(10, 1.0, 1.0), Relative, Status::ZeroBaseline, None);
        assert!(effect(&mean(10, 0.0, 1.0), &mean(10, 1.0, 1.0), Absolute).is_ok());
    }

    #[test]
    fn one_side_is_half_of_both_on_the_side_found() {
        let effect = Effect { estimate: 2.0, std_error: 1.0, dof: 50.0 };
        let both = effect.test(Alternative::TwoSided, 0.1);
        let (greater, less) = (effect.test(Alternative::Greater, 0.05), effect.test(Alternative::Less, 0.05));
        assert!((greater.p_value * 2.0 - both.p_value).abs() < 1e-15);
        assert!((greater.p_value + less.p_value - 1.0).abs() < 1e-15);
        assert_eq!((greater.low, greater.high, less.low, less.high), (both.low, None, None, both.high));
        let far = Effect { estimate: -60.0, std_error: 1.0, dof: 2e9 };
        assert_eq!(far.test(Alternative::Less, 0.05).p_value, 0.0);
        assert!((far.test(Alternative::Less, 0.05).log10_p + 783.9).abs() < 0.1);
        assert_eq!(far.test(Alternative::Greater, 0.05).p_value, 1.0);
    }
}
