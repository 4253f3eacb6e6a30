//! Covariate adjustment (CUPED): what users did before their first exposure explains a part of what they do after it, and
//! that part of the variance goes away.

use ethnum::I256;

use crate::comparison::{Observed, difference};
use crate::difference::Difference;
use crate::effect::{Status, Undefined};
use crate::means::{Arm, NotTested, welch_parts};
use crate::moments::{Overflow, signed_to_f64};
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

/// An adjusted difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adjusted {
    /// The adjusted difference.
    pub difference: Difference,
    /// How much of the covariate is taken off; 0 means that nothing was adjusted.
    pub theta: f64,
    /// The part of the control's variance that went away; `None` if it had none.
    pub variance_reduction_control: Option<f64>,
    /// The part of the treatment's variance that went away; `None` if it had none.
    pub variance_reduction_treatment: Option<f64>,
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
    let spread = signed_to_f64(cross_spread(&all.pre, &all.pre, all.pre.squares())?);
    let shared = signed_to_f64(cross_spread(&all.post, &all.pre, all.products)?);
    Ok(if spread > 0.0 { shared / spread } else { 0.0 })
}

/// Measures the difference of a treatment with the covariate's part taken off; `theta` comes from [`theta`]. It stays relative
/// to the control's mean as it is, not the adjusted one, and its variance says so.
/// # Errors
/// [`Undefined`] as of [`difference`]; the outer error is [`Overflow`].
/// Source: as [`theta`]; the variance of the relative effect by the delta method with the unadjusted denominator.
pub fn adjusted(control: &CupedSums, treatment: &CupedSums, theta: f64) -> Result<Result<Adjusted, Undefined>, Overflow> {
    let (post_control, post_treatment) = (control.post.arm()?, treatment.post.arm()?);
    if theta == 0.0 || control.post.users() < 2 || treatment.post.users() < 2 {
        let plain = difference(&Observed::from(control.post.sample()?), &Observed::from(treatment.post.sample()?));
        let reduction = |arm: &Arm| (arm.variance > 0.0).then_some(0.0);
        return Ok(plain.map(|difference| Adjusted {
            difference,
            theta: 0.0,
            variance_reduction_control: reduction(&post_control),
            variance_reduction_treatment: reduction(&post_treatment),
        }));
    }
    let (one, two) = (part(control, theta)?, part(treatment, theta)?);
    let (variance, dof) = match welch_parts(&one.arm, &two.arm, true) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(undefined(reason, one.arm.mean, two.arm.mean, post_control.mean))),
    };
    // The control's mean as it is moves with the adjusted one by what they share.
    let shared = post_control.variance - theta * one.covariance;
    let slope = if post_control.variance > 0.0 { -shared / post_control.variance } else { 0.0 };
    let rest_of_control = (one.arm.variance + slope * shared).max(0.0) / one.arm.users as f64;
    let reduction = |post: &Arm, arm: &Arm| (post.variance > 0.0).then(|| 1.0 - arm.variance / post.variance);
    Ok(Ok(Adjusted {
        difference: Difference {
            estimate: two.arm.mean - one.arm.mean,
            std_error: variance.sqrt(),
            dof,
            baseline: post_control.mean,
            baseline_variance: post_control.variance_of_mean(),
            treatment: post_treatment.mean,
            slope,
            rest_variance: two.arm.variance_of_mean() + rest_of_control,
            shares: None,
        },
        theta,
        variance_reduction_control: reduction(&post_control, &one.arm),
        variance_reduction_treatment: reduction(&post_treatment, &two.arm),
    }))
}

/// Says what is known of a difference of adjusted means that has no precision.
fn undefined(reason: NotTested, control: f64, treatment: f64, baseline: f64) -> Undefined {
    let estimate = treatment - control;
    let known = |status| Undefined::of(status, Some(baseline), Some(baseline + estimate));
    match reason {
        NotTested::NoData => Undefined::of(Status::NoData, None, None),
        NotTested::TooFewUsers => known(Status::InsufficientSample),
        NotTested::ZeroVariance => known(Status::ZeroVariance),
    }
}

struct Part {
    arm: Arm,
    covariance: f64,
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
    Ok(Part { arm, covariance })
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

/// Measures the difference of a treatment in a ratio metric with the part taken off that the same ratio before the first
/// exposure explains; the coefficient is that of the two variants together.
/// # Errors
/// [`Undefined`] by the first of: no users; fewer than 2 users; a denominator that sums to 0, before or after; no variance. The
/// outer error is [`Overflow`].
/// Source: as [`theta`], with all parts linearised by the delta method.
pub fn adjusted_ratio(control: &CupedRatioSums, treatment: &CupedRatioSums) -> Result<Result<Adjusted, Undefined>, Overflow> {
    let fewest = control.post.users().min(treatment.post.users());
    if fewest == 0 {
        return Ok(Err(Undefined::of(Status::NoData, None, None)));
    }
    let denominators = [&control.post, &control.pre, &treatment.post, &treatment.pre].map(|sums| sums.denominator.sum());
    if denominators.contains(&0) {
        return Ok(Err(Undefined::of(Status::ZeroDenominator, None, None)));
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
    let variance = |arm: &Quadruple| arm.covariance(&combined(arm), &combined(arm)).max(0.0);
    let unadjusted = |arm: &Quadruple| arm.covariance(&arm.slopes().0, &arm.slopes().0);
    let (estimate, baseline) = (mean(&two) - mean(&one), one.ratios().0);
    let arm = |users: u64, quadruple: &Quadruple| Arm { users, mean: mean(quadruple), variance: variance(quadruple) };
    let arms = (arm(control.post.users(), &one), arm(treatment.post.users(), &two));
    let (total, dof) = match welch_parts(&arms.0, &arms.1, true) {
        Ok(parts) => parts,
        Err(reason) => return Ok(Err(undefined(reason, arms.0.mean, arms.1.mean, baseline))),
    };
    // The control's ratio is in the difference and is what it is relative to.
    let own = unadjusted(&one);
    let with_own = one.covariance(&combined(&one), &one.slopes().0);
    let slope = if own > 0.0 { -with_own / own } else { 0.0 };
    let rest_of_control = (variance(&one) + slope * with_own).max(0.0) / one.users;
    let reduction = |arm: &Quadruple| Some(unadjusted(arm)).filter(|own| *own > 0.0).map(|own| 1.0 - variance(arm) / own);
    Ok(Ok(Adjusted {
        difference: Difference {
            estimate,
            std_error: total.sqrt(),
            dof,
            baseline,
            baseline_variance: own / one.users,
            treatment: baseline + estimate,
            slope,
            rest_variance: arms.1.variance_of_mean() + rest_of_control,
            shares: None,
        },
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

    fn check(control: &CupedSums, treatment: &CupedSums) -> Result<Adjusted, Undefined> {
        let theta = theta(&[*control, *treatment]).expect("fits");
        adjusted(control, treatment, theta).expect("fits")
    }

    #[test]
    fn a_covariate_that_explains_all_but_the_effect_leaves_no_variance() {
        let control = sums(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        let treatment = sums(&[(1, 1), (2, 2), (3, 3), (4, 4)]);
        let found = check(&control, &treatment).map_err(|undefined| (undefined.status, undefined.estimate));
        assert_eq!(found, Err((Status::ZeroVariance, Some(0.0))));
        let noisy = sums(&[(1, 1), (3, 2), (3, 3), (4, 4)]);
        let found = check(&control, &noisy).expect("some variance");
        assert!(found.theta > 0.9 && found.variance_reduction_control.is_some_and(|part| part > 0.9), "{found:?}");
    }

    #[test]
    fn a_covariate_without_variance_changes_nothing() {
        let (control, treatment) = (sums(&[(1, 5), (2, 5), (6, 5)]), sums(&[(2, 5), (2, 5), (9, 5)]));
        let found = check(&control, &treatment).expect("some variance");
        let plain = Difference::welch(&control.post.arm().expect("fits"), &treatment.post.arm().expect("fits"), true);
        assert_eq!((found.theta, Ok(found.difference)), (0.0, plain));
        assert_eq!(found.variance_reduction_control, Some(0.0));
    }

    #[test]
    fn what_is_undefined_says_why() {
        let some = sums(&[(1, 1), (2, 3), (6, 5)]);
        let of = |control: &CupedSums, treatment: &CupedSums| {
            check(control, treatment).map(|found| found.theta).map_err(|undefined| (undefined.status, undefined.estimate))
        };
        assert_eq!(of(&some, &sums(&[])), Err((Status::NoData, None)));
        assert_eq!(of(&some, &sums(&[(6, 2)])), Err((Status::InsufficientSample, Some(3.0))));
        assert_eq!(theta(&[]), Ok(0.0));
    }
}
