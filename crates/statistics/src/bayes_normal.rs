//! The posterior of an effect whose likelihood is normal, under a flat or a normal prior, in closed form.

use crate::distributions::{normal_density, normal_isf, normal_sf};
use crate::effect::{Effect, Scale};

/// A normal prior of the relative effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prior {
    /// Its mean; 0 unless earlier experiments say otherwise.
    pub mean: f64,
    /// Its variance, positive.
    pub variance: f64,
}

impl Prior {
    /// What the shrunk answer uses: relative effects of more than 60 % are surprising.
    pub const SHRUNK: Prior = Prior { mean: 0.0, variance: 0.09 };

    /// Returns the prior on the scale of an effect; `None` if that scale is absolute and the control's mean 0.
    pub fn on(&self, scale: Scale, control_mean: f64) -> Option<Prior> {
        match scale {
            Scale::Relative => Some(*self),
            Scale::Absolute => {
                let unit = control_mean.abs();
                (unit > 0.0).then_some(Prior { mean: self.mean * unit, variance: self.variance * unit * unit })
            }
        }
    }
}

/// A posterior of an effect, with what it means for the choice between treatment and control.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// The mean of the effect.
    pub mean: f64,
    /// The standard deviation of the effect.
    pub std_dev: f64,
    /// The equal-tailed interval.
    pub interval: (f64, f64),
    /// The probability that the treatment is better.
    pub chance_to_win: f64,
    /// What choosing the treatment is expected to lose, where the control is better.
    pub expected_loss_treatment: f64,
    /// What keeping the control is expected to lose, where the treatment is better.
    pub expected_loss_control: f64,
}

/// Returns the posterior of an effect at 1 - `alpha` (0 < `alpha` < 1). `prior` is on the effect's own scale, none is flat.
/// Where `less_is_better` the treatment wins by less.
/// Source: conjugate normal distributions, such as Gelman and others 2013, Bayesian Data Analysis, 2.5; the losses are the
/// unit normal loss integral.
pub fn posterior(effect: &Effect, prior: Option<&Prior>, less_is_better: bool, alpha: f64) -> Posterior {
    let variance = effect.std_error * effect.std_error;
    let (mean, std_dev) = match prior {
        None => (effect.estimate, effect.std_error),
        Some(prior) => {
            // The weight of the data, without a precision that could overflow.
            let weight = prior.variance / (prior.variance + variance);
            (weight * effect.estimate + (1.0 - weight) * prior.mean, (weight * variance).sqrt())
        }
    };
    let (z, half) = (mean / std_dev, normal_isf(alpha / 2.0) * std_dev);
    let (gain, loss) = (std_dev * normal_loss(-z), std_dev * normal_loss(z));
    let wins = if less_is_better { -z } else { z };
    let (expected_loss_treatment, expected_loss_control) = if less_is_better { (gain, loss) } else { (loss, gain) };
    Posterior {
        mean,
        std_dev,
        interval: (mean - half, mean + half),
        chance_to_win: normal_sf(-wins).p,
        expected_loss_treatment,
        expected_loss_control,
    }
}

/// Returns E[max(Z - z, 0)] of a standard normal Z: density(z) - z sf(z), without the cancellation of both.
fn normal_loss(z: f64) -> f64 {
    if z < 0.0 {
        return normal_loss(-z) - z;
    }
    if z < 20.0 {
        return (normal_density(z) - z * normal_sf(z).p).max(0.0);
    }
    // Asymptotic series of the integral of the tail; at 20 the sixth term is below 1e-11.
    let inverse = 1.0 / (z * z);
    let series = [1.0, -3.0, 15.0, -105.0, 945.0, -10_395.0, 135_135.0, -2_027_025.0];
    normal_density(z) * inverse * series.iter().rev().fold(0.0, |sum, term| sum * inverse + term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn losses_meet_at_the_seam_and_underflow_to_0() {
        let (below, above) = (normal_loss(20.0 - 1e-12), normal_loss(20.0));
        assert!((below / above - 1.0).abs() < 1e-9, "{below} and {above}");
        assert!((normal_loss(0.0) - 0.398_942_280_401_432_7).abs() < 1e-16);
        assert_eq!((normal_loss(60.0), normal_loss(-60.0)), (0.0, 60.0));
    }

    #[test]
    fn less_is_better_mirrors() {
        let effect = Effect { estimate: 0.3, std_error: 0.2, dof: 50.0 };
        let mirror = Effect { estimate: -0.3, ..effect };
        let (more, less) = (posterior(&effect, None, false, 0.05), posterior(&mirror, None, true, 0.05));
        assert_eq!(more.chance_to_win, less.chance_to_win);
        assert_eq!(more.expected_loss_control, less.expected_loss_control);
        assert_eq!(more.expected_loss_treatment, less.expected_loss_treatment);
        assert!((more.expected_loss_control - more.expected_loss_treatment - 0.3).abs() < 1e-15);
    }

    #[test]
    fn a_prior_needs_a_unit() {
        assert_eq!(Prior::SHRUNK.on(Scale::Absolute, 0.0), None);
        assert_eq!(Prior::SHRUNK.on(Scale::Absolute, -2.0), Some(Prior { mean: 0.0, variance: 0.36 }));
        assert_eq!(Prior::SHRUNK.on(Scale::Relative, 0.0), Some(Prior::SHRUNK));
    }

    proptest! {
        #[test]
        fn a_prior_pulls_towards_its_mean_and_narrows(estimate in -5.0..5.0_f64, std_error in 1e-6..5.0_f64, sd in 1e-3..5.0_f64) {
            let effect = Effect { estimate, std_error, dof: 100.0 };
            let shrunk = posterior(&effect, Some(&Prior { mean: 0.0, variance: sd * sd }), false, 0.05);
            prop_assert!(shrunk.mean.abs() <= estimate.abs() && shrunk.std_dev <= std_error.min(sd) * (1.0 + 1e-12));
            // The whole of gain and loss is the effect.
            let whole = shrunk.expected_loss_control - shrunk.expected_loss_treatment;
            prop_assert!((whole - shrunk.mean).abs() < 1e-12 * (1.0 + shrunk.mean.abs() + shrunk.std_dev));
        }
    }
}
