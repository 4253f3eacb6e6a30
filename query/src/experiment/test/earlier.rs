//! What is known of the variants' users from before they were exposed: whether they were alike then, and what of it sharpens a
//! comparison.

use statistics::comparison::{self, Observed, compare};
use statistics::difference::Difference;
use statistics::distributions::PValue;
use statistics::effect::Status;
use statistics::moments::Overflow;
use statistics::proportions::{Count, fisher};
use statistics::regression::{self, Coefficients};
use statistics::sums::Sums as OneSum;

use super::comparison::Design;
use super::findings::{Covariate, Cuped};
use crate::experiment::measure::covariates::Column;
use crate::experiment::measure::sample::{Regressed, Sampled};
use crate::experiment::request::{COVARIATE_DAYS, Cuped as CupedRule};

/// Part of the variance that earlier behaviour has to explain before a comparison is adjusted for it.
const EXPLAINED_MIN: f64 = 0.05;

/// Why nothing is adjusted where the variants' users were not alike before they were exposed.
pub const DIFFERS_BEFORE: &str = "differs_before";

/// Below this p-value the variants' users were not alike before they were exposed.
pub const BALANCE_BELOW: f64 = 0.001;

/// What is taken off a comparison for what was known before.
#[derive(Clone, Debug, PartialEq)]
pub enum Earlier {
    /// What the users of both variants say.
    Estimated,
    /// The same of a part of the users, whatever it explains there: where it is taken off the whole, so that parts add up to it.
    OfWhole(Coefficients),
    /// The variants' users were not alike then: it would move the difference instead of sharpening it.
    Differs,
}

/// Returns the p-value that two variants' users were alike before they were exposed; `None` if nothing can be tested. Where all of
/// one did the same and all of the other did another same thing, it is the chance of that.
/// # Errors
/// [`Overflow`].
pub fn balance(control: &OneSum, treatment: &OneSum) -> Result<Option<PValue>, Overflow> {
    let of = |sums: &OneSum| Ok::<Observed, Overflow>(sums.sample()?.into());
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

/// Returns whether any variant's users were others than the control's before they were exposed, in any of the covariates.
pub(super) fn differs_before(variants: &[Sampled]) -> Result<bool, Overflow> {
    let mut regressed = variants.iter().filter_map(|sampled| sampled.regressed.as_ref());
    let Some(control) = regressed.next() else { return Ok(false) };
    for other in regressed {
        // Several of them are several chances to differ.
        let below = BALANCE_BELOW / control.covariates.len() as f64;
        for (control, other) in control.covariates.iter().zip(&other.covariates) {
            if balance(control, other)?.is_some_and(|p| p.p < below) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What adjusting a comparison came to.
pub(super) struct Adjustment {
    /// What there is to say about it; none where it was not asked for.
    pub shown: Option<Cuped>,
    /// The adjusted difference and what was taken off, where it was.
    pub applied: Option<(Difference, Coefficients)>,
}

/// Adjusts for earlier behaviour, or says why not.
pub(super) fn adjusted(
    design: &Design<'_>,
    control: &Sampled,
    treatment: &Sampled,
    earlier: Option<Earlier>,
    unadjusted: &comparison::Comparison,
) -> Adjustment {
    let nothing = Adjustment { shown: None, applied: None };
    let not = |reason: &'static str| {
        let shown = Cuped {
            applied: false,
            reason: Some(reason),
            theta: None,
            covariates: Vec::new(),
            variance_reduction: None,
            effective_sample_gain: None,
            covariate_days: COVARIATE_DAYS,
        };
        Adjustment { shown: Some(shown), applied: None }
    };
    if design.cuped == CupedRule::Off {
        return nothing;
    }
    let Some((one, two)) = control.regressed.as_ref().zip(treatment.regressed.as_ref()) else { return not("not_defined") };
    if earlier == Some(Earlier::Differs) {
        return not(DIFFERS_BEFORE);
    }
    if unadjusted.exact.is_some() {
        return not("exact");
    }
    let Some(plain) = unadjusted.difference else { return nothing };
    // Less than a day is no history; what was true at the exposure needs none.
    let is_known = one.columns.iter().any(|column| !column.is_history);
    let is_of_whole = matches!(earlier, Some(Earlier::OfWhole(_)));
    let coefficients = match earlier {
        Some(Earlier::Estimated) if design.has_history || is_known => Coefficients::interacted(&one.joint, &two.joint),
        Some(Earlier::OfWhole(coefficients)) => coefficients,
        _ => return not("no_history"),
    };
    if coefficients.is_zero() {
        return not("no_history");
    }
    let Ok(adjusted) = regression::adjusted(&one.joint, &two.joint, &coefficients) else { return not("explains_little") };
    let reduction = 1.0 - (adjusted.difference.std_error / plain.std_error).powi(2);
    let applied = reduction >= EXPLAINED_MIN || is_of_whole;
    let shown = Cuped {
        applied,
        reason: (!applied).then_some("explains_little"),
        theta: Some(coefficients.of[0]),
        covariates: covariates(one, &coefficients),
        variance_reduction: Some(reduction),
        effective_sample_gain: (reduction < 1.0).then(|| 1.0 / (1.0 - reduction)),
        covariate_days: COVARIATE_DAYS,
    };
    Adjustment { shown: Some(shown), applied: applied.then_some((adjusted.difference, coefficients)) }
}

/// Names what is taken off, where that is more than one thing.
fn covariates(regressed: &Regressed, coefficients: &Coefficients) -> Vec<Covariate> {
    if regressed.columns.len() < 2 {
        return Vec::new();
    }
    let coefficient = |place: usize| (!coefficients.unused.contains(&place)).then(|| coefficients.of[place]);
    let covariate = |(place, column): (usize, &Column)| Covariate { name: column.name.clone(), coefficient: coefficient(place) };
    regressed.columns.iter().enumerate().map(covariate).collect()
}
