//! One normal estimate with its test: what the sequential and Bayesian methods start from, and what other products show.

use crate::distributions::{PValue, chi_square_sf, student_isf, student_upper};

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

/// How far a comparison is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Fully.
    Ok,
    /// A variant has no users; nothing is estimated.
    NoData,
    /// A variant has fewer than 2 users; the difference is known, its precision is not.
    InsufficientSample,
    /// No user differs from another one in either variant.
    ZeroVariance,
    /// All or none of one variant converted: only exact methods apply.
    ExactOnly,
    /// The control's mean is 0: there is no relative difference.
    ZeroBaseline,
    /// The control's mean cannot be told apart from 0: the relative difference has no bounded interval.
    UnboundedRelativeCi,
    /// The denominator of a ratio sums to 0 in a variant; only the numerators are known.
    ZeroDenominator,
}

impl Status {
    /// Returns the status as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::NoData => "no_data",
            Status::InsufficientSample => "insufficient_sample",
            Status::ZeroVariance => "zero_variance",
            Status::ExactOnly => "exact_only",
            Status::ZeroBaseline => "zero_baseline",
            Status::UnboundedRelativeCi => "unbounded_relative_ci",
            Status::ZeroDenominator => "zero_denominator",
        }
    }
}

/// Why a difference has no precision, with what is known of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Undefined {
    /// The reason.
    pub status: Status,
    /// The difference, where it is defined.
    pub estimate: Option<f64>,
    /// The same in shares of the control, where it is defined.
    pub lift: Option<f64>,
}

impl Undefined {
    /// Says what is known of the difference of two means, of which either may be unknown.
    pub(crate) fn of(status: Status, control: Option<f64>, treatment: Option<f64>) -> Self {
        let estimate = control.zip(treatment).map(|(control, treatment)| treatment - control);
        let lift = estimate.zip(control).filter(|(_, control)| *control != 0.0);
        Undefined { status, estimate, lift: lift.map(|(estimate, control)| estimate / control.abs()) }
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

/// A test that the effects in the parts of a breakdown are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heterogeneity {
    /// Cochran's Q.
    pub statistic: f64,
    /// Parts compared, less one.
    pub dof: f64,
    /// For one look.
    pub p_value: PValue,
}

/// Tests whether effects are alike, by how far they lie from their weighted mean; `None` for fewer than two, or where one is so
/// precise that no number holds it.
/// Source: Cochran 1954, Biometrics 10, 101-129.
pub fn heterogeneity(effects: &[Effect]) -> Option<Heterogeneity> {
    if effects.len() < 2 {
        return None;
    }
    let weight = |effect: &Effect| 1.0 / (effect.std_error * effect.std_error);
    let weights: f64 = effects.iter().map(weight).sum();
    let mean = effects.iter().map(|effect| weight(effect) * effect.estimate).sum::<f64>() / weights;
    let statistic: f64 = effects.iter().map(|effect| weight(effect) * (effect.estimate - mean).powi(2)).sum();
    let dof = (effects.len() - 1) as f64;
    let test = || Heterogeneity { statistic, dof, p_value: chi_square_sf(statistic, dof).into() };
    statistic.is_finite().then(test)
}

/// Draws the effects of parts towards their mean, the more the less they differ beyond chance and the less precise each is: the part that stands
/// out most among many is mostly luck. Of fewer than three parts, or where one is so precise that no number holds it, nothing is said.
/// Source: DerSimonian, Laird 1986, Controlled Clinical Trials 7, 177-188, for the variance between parts; the drawn effects are the
/// empirical Bayes estimates under it.
pub fn shrunken(effects: &[Effect]) -> Option<Vec<f64>> {
    if effects.len() < 3 {
        return None;
    }
    let weights: Vec<f64> = effects.iter().map(|effect| 1.0 / (effect.std_error * effect.std_error)).collect();
    let (sum, squares) = (weights.iter().sum::<f64>(), weights.iter().map(|weight| weight * weight).sum::<f64>());
    let statistic = heterogeneity(effects)?.statistic;
    let between = ((statistic - (effects.len() - 1) as f64) / (sum - squares / sum)).max(0.0);
    let precision = |effect: &Effect| 1.0 / (effect.std_error * effect.std_error + between);
    let all: f64 = effects.iter().map(precision).sum();
    let mean = effects.iter().map(|effect| precision(effect) * effect.estimate).sum::<f64>() / all;
    let drawn = |effect: &Effect| mean + between * precision(effect) * (effect.estimate - mean);
    let found: Vec<f64> = effects.iter().map(drawn).collect();
    found.iter().all(|estimate| estimate.is_finite()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Of equal precision: each is drawn by (G - 1) s^2 over the sum of squares.
    #[test]
    fn effects_of_parts_are_drawn_towards_their_mean() {
        let effect = |estimate, std_error| Effect { estimate, std_error, dof: 50.0 };
        let parts = [effect(0.0, 1.0), effect(2.0, 1.0), effect(7.0, 1.0)];
        let factor = 1.0 - 2.0 / (9.0 + 1.0 + 16.0);
        let expected = [0.0, 2.0, 7.0].map(|estimate: f64| 3.0 + factor * (estimate - 3.0));
        let found = shrunken(&parts).expect("three parts");
        assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
        let alike = shrunken(&[effect(1.0, 1.0), effect(1.2, 0.5), effect(0.9, 2.0)]).expect("three parts");
        assert!(alike.iter().all(|found| (found - alike[0]).abs() < 1e-12), "what chance explains is one effect: {alike:?}");
        assert_eq!(shrunken(&parts[..2]), None);
    }

    #[test]
    fn parts_that_agree_are_not_heterogeneous() {
        let effect = |estimate| Effect { estimate, std_error: 0.1, dof: 50.0 };
        assert_eq!(heterogeneity(&[effect(1.0)]), None);
        let alike = heterogeneity(&[effect(1.0), effect(1.0), effect(1.0)]).expect("parts");
        assert!(alike.statistic < 1e-12 && alike.p_value.p > 0.999_999 && alike.dof == 2.0);
        assert!(heterogeneity(&[effect(1.0), effect(2.0)]).is_some_and(|found| found.p_value.p < 1e-10));
    }
}
