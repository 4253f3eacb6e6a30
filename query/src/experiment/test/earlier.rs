//! What the variants' users did before they were exposed: whether they were alike then, and what of it sharpens a comparison.

use statistics::comparison::{self, Observed, compare};
use statistics::cuped::{self, CupedSums};
use statistics::difference::Difference;
use statistics::distributions::PValue;
use statistics::effect::Status;
use statistics::moments::Overflow;
use statistics::proportions::{Count, fisher};

use super::comparison::Design;
use super::findings::Cuped;
use crate::experiment::measure::sample::Sampled;
use crate::experiment::request::{COVARIATE_DAYS, Cuped as CupedRule};

/// Part of the variance that earlier behaviour has to explain before a comparison is adjusted for it.
const EXPLAINED_MIN: f64 = 0.05;

/// Why nothing is adjusted where the variants' users were not alike before they were exposed.
pub const DIFFERS_BEFORE: &str = "differs_before";

/// Below this p-value the variants' users were not alike before they were exposed.
pub const BALANCE_BELOW: f64 = 0.001;

/// What the variants' users did before they were exposed, as far as it may explain what they did after.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Earlier {
    /// So much of it is taken off, of all variants together.
    Theta(f64),
    /// The same in a part of the users, whatever it explains there: where it is taken off the whole, so that parts add up to it.
    OfWhole(f64),
    /// The variants' users were not alike then: it would move the difference instead of sharpening it.
    Differs,
}

/// Returns the p-value that two variants' users were alike before they were exposed; `None` if nothing can be tested. Where all of
/// one did the same and all of the other did another same thing, it is the chance of that.
/// # Errors
/// [`Overflow`].
pub fn balance(control: &CupedSums, treatment: &CupedSums) -> Result<Option<PValue>, Overflow> {
    let of = |sums: &CupedSums| Ok::<Observed, Overflow>(sums.pre.sample()?.into());
    let (control, treatment) = (of(control)?, of(treatment)?);
    let found = compare(&control, &treatment, BALANCE_BELOW);
    let is_apart = found.status == Status::ZeroVariance && found.estimate.is_some_and(|off| off != 0.0);
    if is_apart {
        let none = Count { users: control.users, converted: 0 };
        let all = Count { users: treatment.users, converted: treatment.users };
        return Ok(fisher(none, all).map(PValue::from));
    }
    Ok(found.p_value())
}

/// Returns whether any variant's users were others than the control's before they were exposed.
pub(super) fn differs_before(variants: &[CupedSums]) -> Result<bool, Overflow> {
    let Some((control, others)) = variants.split_first() else { return Ok(false) };
    for other in others {
        if balance(control, other)?.is_some_and(|p| p.p < BALANCE_BELOW) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Adjusts for earlier behaviour, or says why not.
pub(super) fn adjusted(
    design: &Design<'_>,
    control: &Sampled,
    treatment: &Sampled,
    earlier: Option<Earlier>,
    unadjusted: &comparison::Comparison,
) -> Result<(Option<Cuped>, Option<Difference>), Overflow> {
    let not = |reason: &'static str| Cuped {
        applied: false,
        reason: Some(reason),
        theta: None,
        variance_reduction: None,
        effective_sample_gain: None,
        covariate_days: COVARIATE_DAYS,
    };
    if design.cuped == CupedRule::Off {
        return Ok((None, None));
    }
    let Some((one, two)) = control.cuped.as_ref().zip(treatment.cuped.as_ref()) else {
        return Ok((Some(not("not_defined")), None));
    };
    if earlier == Some(Earlier::Differs) {
        return Ok((Some(not(DIFFERS_BEFORE)), None));
    }
    if unadjusted.exact.is_some() {
        return Ok((Some(not("exact")), None));
    }
    let Some(plain) = unadjusted.difference else { return Ok((None, None)) };
    let theta = match earlier {
        Some(Earlier::Theta(theta) | Earlier::OfWhole(theta)) if theta != 0.0 && design.has_history => theta,
        _ => return Ok((Some(not("no_history")), None)),
    };
    let Ok(adjusted) = cuped::adjusted(one, two, theta)? else {
        return Ok((Some(not("explains_little")), None));
    };
    let reduction = 1.0 - (adjusted.difference.std_error / plain.std_error).powi(2);
    let applied = reduction >= EXPLAINED_MIN || matches!(earlier, Some(Earlier::OfWhole(_)));
    let shown = Cuped {
        applied,
        reason: (!applied).then_some("explains_little"),
        theta: Some(adjusted.theta),
        variance_reduction: Some(reduction),
        effective_sample_gain: (reduction < 1.0).then(|| 1.0 / (1.0 - reduction)),
        covariate_days: COVARIATE_DAYS,
    };
    Ok((Some(shown), applied.then_some(adjusted.difference)))
}
