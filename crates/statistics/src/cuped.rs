//! Covariate adjustment (CUPED): what users did before their first exposure explains a part of what they do after it, and
//! that part of the variance goes away.

use ethnum::I256;

use crate::comparison::Status;
use crate::effect::{Effect, Scale, Undefined, effect, scaled};
use crate::means::{Arm, NotTested, welch_parts};
use crate::moments::Overflow;
use crate::ratio::RatioSums;
use crate::sums::{Sums, covariance, cross_spread};

/// Sums over the users of one variant, of a metric after and before their first exposure. Users without history count with
/// 0 before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CupedSums {
    /// The metric after the first exposure.
    pub post: Sums,
    /// The same metric before it.
    pub pre: Sums,
    /// The sum over users of post times pre, in millionths of millionths.
    pub products: I256,
}

/// An adjusted effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjusted {
    /// The adjusted effect.
    pub effect: Effect,
    /// How much of the covariate is taken off; 0 means that nothing was adjusted.
    pub theta: f64,
    /// The part of the control's variance that went away; `None` if it had none.
    pub variance_reduction_control: Option<f64>,
    /// The part of the treatment's variance that went away; `None` if it had none.
    pub variance_reduction_treatment: Option<f64>,
}

impl Adjusted {
    /// Returns by which factor more users would have been needed without the adjustment, by the control's variance.
    pub fn effective_sample_gain(&self) -> Option<f64> {
        self.variance_reduction_control.filter(|reduction| *reduction < 1.0).map(|reduction| 1.0 / (1.0 - reduction))
    }
}

/// Returns the coefficient of the covariate over all variants together: cov(post, pre) / var(pre). It is 0 where the
/// covariate has no variance.
/// # Errors
/// [`Overflow`] if a sum is too large to be exact.
/// Source: Deng, Xu, Kohavi, Walker 2013, Improving the Sensitivity of Online Controlled Experiments, WSDM 6, 123-132.
pub fn theta(variants: &[CupedSums]) -> Result<f64, Overflow> {
    let Some((first, others)) = variants.split_first() else { return Ok(0.0) };
    let mut all = *first;
    for variant in others {
        all.post = all.post.merged(&variant.post)?;
        all.pre = all.pre.merged(&variant.pre)?;
        all.products = all.products.checked_add(variant.products).ok_or(Overflow)?;
    }
    let spread = crate::moments::signed_to_f64(cross_spread(&all.pre, &all.pre, all.pre.squares())?);
    let shared = crate::moments::signed_to_f64(cross_spread(&all.post, &all.pre, all.products)?);
    Ok(if spread > 0.0 { shared / spread } else { 0.0 })
}

/// Measures the effect of a treatment with the covariate's part taken off; `theta` comes from [`theta`]. Relative effects
/// divide by the control's mean as it is, not the adjusted one, and their variance says so.
/// # Errors
/// [`Undefined`] as of [`effect`]; the outer error is [`Overflow`].
/// Source: as [`theta`]; the variance of the relative effect by the delta method with the unadjusted denominator.
pub fn adjusted(
    control: &CupedSums,
    treatment: &CupedSums,
    theta: f64,
    scale: Scale,
) -> Result<Result<Adjusted, Undefined>, Overflow> {
    let (post_control, post_treatment) = (control.post.arm()?, treatment.post.arm()?);
    if theta == 0.0 || control.post.users() < 2 || treatment.post.users() < 2 {
        let effect = effect(&control.post.sample()?, &treatment.post.sample()?, scale);
        let reduction = |arm: &Arm| (arm.variance > 0.0).then_some(0.0);
        return Ok(effect.map(|effect| Adjusted {
            effect,
            theta: 0.0,
            variance_reduction_control: reduction(&post_control),
            variance_reduction_treatment: reduction(&post_treatment),
        }));
    }
    let (one, two) = (part(control, theta)?, part(treatment, theta)?);
    let estimate = scaled(two.arm.mean - one.arm.mean, post_control.mean, scale);
    let (variance, dof) = match welch_parts(&one.arm, &two.arm, true) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(undefined(reason, estimate))),
    };
    let Some(estimate) = estimate else { return Ok(Err(Undefined::new(Status::ZeroBaseline, None))) };
    let variance = match scale {
        Scale::Absolute => variance,
        Scale::Relative => {
            let square = post_control.mean * post_control.mean;
            let ratio = post_treatment.mean / post_control.mean;
            let own =
                post_control.variance * ratio * ratio - 2.0 * theta * one.covariance * ratio + theta * theta * one.pre_variance;
            (two.arm.variance_of_mean() + own.max(0.0) / one.arm.users as f64) / square
        }
    };
    if variance <= 0.0 {
        return Ok(Err(Undefined::new(Status::ZeroVariance, Some(estimate))));
    }
    let reduction = |post: &Arm, arm: &Arm| (post.variance > 0.0).then(|| 1.0 - arm.variance / post.variance);
    Ok(Ok(Adjusted {
        effect: Effect { estimate, std_error: variance.sqrt(), dof },
        theta,
        variance_reduction_control: reduction(&post_control, &one.arm),
        variance_reduction_treatment: reduction(&post_treatment, &two.arm),
    }))
}

fn undefined(reason: NotTested, estimate: Option<f64>) -> Undefined {
    match reason {
        NotTested::NoData => Undefined::new(Status::NoData, None),
        NotTested::TooFewUsers => Undefined::new(Status::InsufficientSample, estimate),
        NotTested::ZeroVariance => Undefined::new(Status::ZeroVariance, estimate),
    }
}

struct Part {
    arm: Arm,
    covariance: f64,
    pre_variance: f64,
}

/// Takes the covariate's part off one variant.
fn part(sums: &CupedSums, theta: f64) -> Result<Part, Overflow> {
    let (post, pre) = (sums.post.arm()?, sums.pre.arm()?);
    let covariance = covariance(&sums.post, &sums.pre, sums.products)?;
    let own = post.variance + theta * theta * pre.variance;
    let variance = own - 2.0 * theta * covariance;
    // Where the covariate explains everything only rounding is left.
    let variance = if variance > 1e-14 * own { variance } else { 0.0 };
    let arm = Arm { users: post.users, mean: post.mean - theta * pre.mean, variance };
    Ok(Part { arm, covariance, pre_variance: pre.variance })
}

/// Sums over the users of one variant, of a ratio metric after and before their first exposure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CupedRatioSums {
    /// The ratio after the first exposure.
    pub post: RatioSums,
    /// The ratio before it.
    pub pre: RatioSums,
    /// Sum over users of numerator after times numerator before, in millionths of millionths, as the next three.
    pub numerators: I256,
    /// Sum over users of denominator after times denominator before.
    pub denominators: I256,
    /// Sum over users of numerator after times denominator before.
    pub numerator_post_denominator_pre: I256,
    /// Sum over users of numerator before times denominator after.
    pub numerator_pre_denominator_post: I256,
}

/// Means and covariances of numerator and denominator after and before, in this order.
struct Quadruple {
    users: f64,
    means: [f64; 4],
    covariances: [[f64; 4]; 4],
}

impl CupedRatioSums {
    fn quadruple(&self) -> Result<Quadruple, Overflow> {
        let sums = [self.post.numerator, self.post.denominator, self.pre.numerator, self.pre.denominator];
        let products = [
            [I256::ZERO, self.post.products, self.numerators, self.numerator_post_denominator_pre],
            [self.post.products, I256::ZERO, self.numerator_pre_denominator_post, self.denominators],
            [self.numerators, self.numerator_pre_denominator_post, I256::ZERO, self.pre.products],
            [self.numerator_post_denominator_pre, self.denominators, self.pre.products, I256::ZERO],
        ];
        let (mut means, mut covariances) = ([0.0; 4], [[0.0; 4]; 4]);
        for (i, one) in sums.iter().enumerate() {
            let arm = one.arm()?;
            means[i] = arm.mean;
            for (j, two) in sums.iter().enumerate() {
                covariances[i][j] = if i == j { arm.variance } else { covariance(one, two, products[i][j])? };
            }
        }
        Ok(Quadruple { users: self.post.users() as f64, means, covariances })
    }
}

impl Quadruple {
    fn ratios(&self) -> (f64, f64) {
        (self.means[0] / self.means[1], self.means[2] / self.means[3])
    }

    /// The covariance of two linear combinations.
    fn covariance(&self, one: &[f64; 4], two: &[f64; 4]) -> f64 {
        let row = |i: usize| (0..4).map(|j| self.covariances[i][j] * two[j]).sum::<f64>();
        (0..4).map(|i| one[i] * row(i)).sum()
    }

    /// The derivatives of the ratio after, and of the ratio before.
    fn slopes(&self) -> ([f64; 4], [f64; 4]) {
        let ([_, d, _, e], (post, pre)) = (self.means, self.ratios());
        ([1.0 / d, -post / d, 0.0, 0.0], [0.0, 0.0, 1.0 / e, -pre / e])
    }
}

/// Measures the effect of a treatment on a ratio metric with the part taken off that the same ratio before the first
/// exposure explains; the coefficient is that of the two variants together.
/// # Errors
/// [`Undefined`] by the first of: no users; fewer than 2 users; a denominator that sums to 0, before or after; a relative
/// effect on a control of 0; no variance. The outer error is [`Overflow`].
/// Source: as [`theta`], with all parts linearised by the delta method.
pub fn adjusted_ratio(
    control: &CupedRatioSums,
    treatment: &CupedRatioSums,
    scale: Scale,
) -> Result<Result<Adjusted, Undefined>, Overflow> {
    let fewest = control.post.users().min(treatment.post.users());
    if fewest == 0 {
        return Ok(Err(Undefined::new(Status::NoData, None)));
    }
    let denominators = [&control.post, &control.pre, &treatment.post, &treatment.pre].map(|sums| sums.denominator.sum());
    if denominators.contains(&0) {
        return Ok(Err(Undefined::new(Status::ZeroDenominator, None)));
    }
    let (one, two) = (control.quadruple()?, treatment.quadruple()?);
    let both = |f: fn(&Quadruple) -> f64| f(&one) + f(&two);
    let spread = both(|arm| arm.covariance(&arm.slopes().1, &arm.slopes().1));
    let shared = both(|arm| arm.covariance(&arm.slopes().0, &arm.slopes().1));
    let theta = if spread > 0.0 { shared / spread } else { 0.0 };
    let combined = |arm: &Quadruple| {
        let (post, pre) = arm.slopes();
        std::array::from_fn::<f64, 4, _>(|i| post[i] - theta * pre[i])
    };
    let mean = |arm: &Quadruple| arm.ratios().0 - theta * arm.ratios().1;
    let (difference, baseline) = (mean(&two) - mean(&one), one.ratios().0);
    let Some(estimate) = scaled(difference, baseline, scale) else {
        return Ok(Err(Undefined::new(Status::ZeroBaseline, None)));
    };
    let variance = |arm: &Quadruple| arm.covariance(&combined(arm), &combined(arm)).max(0.0);
    let arm = |users: u64, quadruple: &Quadruple| Arm { users, mean: mean(quadruple), variance: variance(quadruple) };
    let arms = (arm(control.post.users(), &one), arm(treatment.post.users(), &two));
    let (absolute, dof) = match welch_parts(&arms.0, &arms.1, true) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(undefined(reason, Some(estimate)))),
    };
    let total = match scale {
        Scale::Absolute => absolute,
        Scale::Relative => {
            // The control's ratio is in the difference and in the denominator.
            let own = combined(&one);
            let post = one.slopes().0;
            let slopes = std::array::from_fn(|i| {
                -own[i] / baseline.abs() - difference * baseline.signum() / (baseline * baseline) * post[i]
            });
            one.covariance(&slopes, &slopes).max(0.0) / one.users + variance(&two) / two.users / (baseline * baseline)
        }
    };
    if total <= 0.0 {
        return Ok(Err(Undefined::new(Status::ZeroVariance, Some(estimate))));
    }
    let reduction = |arm: &Quadruple| {
        let unadjusted = arm.covariance(&arm.slopes().0, &arm.slopes().0);
        (unadjusted > 0.0).then(|| 1.0 - variance(arm) / unadjusted)
    };
    Ok(Ok(Adjusted {
        effect: Effect { estimate, std_error: total.sqrt(), dof },
        theta,
        variance_reduction_control: reduction(&one),
        variance_reduction_treatment: reduction(&two),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::Moments;

    fn sums(users: &[(i128, i128)]) -> CupedSums {
        let (mut post, mut pre, mut products) = (Moments::default(), Moments::default(), I256::ZERO);
        for (y, x) in users {
            post.add(y * Moments::SCALE).expect("fits");
            pre.add(x * Moments::SCALE).expect("fits");
            products += I256::from(x * y * Moments::SCALE * Moments::SCALE);
        }
        CupedSums { post: Sums::Values(post), pre: Sums::Values(pre), products }
    }

    fn check(control: &CupedSums, treatment: &CupedSums, scale: Scale) -> Result<Adjusted, Undefined> {
        let theta = theta(&[*control, *treatment]).expect("fits");
        adjusted(control, treatment, theta, scale).expect("fits")
    }

    #[test]
    fn a_covariate_that_explains_all_but_the_effect_leaves_no_variance() {
        let control = sums(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        let treatment = sums(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        assert_eq!(check(&control, &treatment, Scale::Absolute), Err(Undefined::new(Status::ZeroVariance, Some(0.0))));
        let noisy = sums(&[(1, 1), (3, 2), (3, 3), (4, 4)]);
        let found = check(&control, &noisy, Scale::Absolute).expect("some variance");
        assert!(found.theta > 0.9 && found.variance_reduction_control.is_some_and(|part| part > 0.9), "{found:?}");
        assert!(found.effective_sample_gain().is_some_and(|gain| gain > 10.0));
    }

    #[test]
    fn a_covariate_without_variance_changes_nothing() {
        let (control, treatment) = (sums(&[(1, 5), (2, 5), (6, 5)]), sums(&[(2, 5), (2, 5), (9, 5)]));
        let found = check(&control, &treatment, Scale::Relative).expect("some variance");
        let plain = effect(&control.post.sample().expect("fits"), &treatment.post.sample().expect("fits"), Scale::Relative);
        assert_eq!((found.theta, Ok(found.effect)), (0.0, plain));
        assert_eq!((found.variance_reduction_control, found.effective_sample_gain()), (Some(0.0), Some(1.0)));
    }

    #[test]
    fn what_is_undefined_says_why() {
        let some = sums(&[(1, 1), (2, 3), (6, 5)]);
        assert_eq!(check(&some, &sums(&[]), Scale::Absolute), Err(Undefined::new(Status::NoData, None)));
        let one = check(&some, &sums(&[(6, 2)]), Scale::Absolute);
        assert_eq!(one, Err(Undefined::new(Status::InsufficientSample, Some(3.0))));
        let zero = sums(&[(-1, 1), (1, 3), (0, 5)]);
        assert_eq!(check(&zero, &some, Scale::Relative), Err(Undefined::new(Status::ZeroBaseline, None)));
        assert_eq!(theta(&[]), Ok(0.0));
    }
}
