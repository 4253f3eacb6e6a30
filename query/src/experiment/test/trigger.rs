//! Experiments whose analysis begins with a trigger: whether the trigger is one that all variants' users have alike, and what the effect is
//! among all who were exposed.
//!
//! Source: Deng, Hu 2015, Diluted Treatment Effect Estimation for Trigger Analysis in Online Controlled Experiments, WSDM 8, 349-358; the
//! check of those who never triggered: Kohavi, Tang, Xu 2020, Trustworthy Online Controlled Experiments, chapter 20.

use serde::Serialize;
use statistics::comparison::{Stratum, compare, compare_strata};
use statistics::distributions::PValue;

use super::comparison::Conclusion;
use super::earlier::BALANCE_BELOW;
use super::findings::ends;
use super::health::{Check, Level};
use crate::experiment::measure::Measured;
use crate::experiment::measure::metrics::MeasuredMetric;
use crate::experiment::measure::sample::Sampled;
use crate::experiment::read::catalogue::Role;
use crate::experiment::text::p_text;
use crate::experiment::warning::Warning;

/// The effect among all who were exposed, of whom only those who triggered can differ.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Diluted {
    /// The share of the exposed users of both variants who triggered.
    pub share: f64,
    /// The difference per exposed user.
    pub estimate: f64,
    /// Its interval, as of the verdict.
    pub ci: [Option<f64>; 2],
    /// The same in shares of what an exposed user of the control comes to; null if that is 0.
    pub lift: Option<f64>,
    /// Its interval; the control's mean is taken as it is.
    pub ci_relative: [Option<f64>; 2],
}

/// Dilutes what a verdict rests on; none without a trigger, and for what does not add up over users.
pub fn diluted(metric: &MeasuredMetric, arm: usize, conclusion: &Conclusion) -> Option<Diluted> {
    let (beside, basis) = (metric.beside.as_ref()?, conclusion.basis?);
    if metric.configured.aggregation.is_ratio() || metric.configured.aggregation.quantile().is_some() {
        return None;
    }
    let (control, treatment) = (beside.everybody.first()?, beside.everybody.get(arm)?);
    let triggered = metric.sampled[0].observed.users + metric.sampled[arm].observed.users;
    let share = triggered as f64 / (control.observed.users + treatment.observed.users) as f64;
    dilute(share, control.observed.mean?, basis.difference.estimate, basis.absolute())
}

fn dilute(share: f64, baseline: f64, estimate: f64, interval: Option<(f64, f64)>) -> Option<Diluted> {
    let diluted = |value: f64| value * share;
    let relative = |value: f64| (baseline != 0.0).then(|| value * share / baseline.abs());
    let found = Diluted {
        share,
        estimate: diluted(estimate),
        ci: ends(interval.map(|(low, high)| (diluted(low), diluted(high)))),
        lift: relative(estimate),
        ci_relative: ends(interval.and_then(|(low, high)| relative(low).zip(relative(high)))),
    };
    found.estimate.is_finite().then_some(found)
}

/// Checks that variants do not differ where nothing can have happened: among users who never triggered. Where they do, the trigger is itself
/// an effect, or something else differs. `None` without a trigger.
pub fn complement(measured: &Measured<'_>, warnings: &mut Vec<Warning>) -> Option<Check> {
    let beside: Vec<_> = measured.metrics.iter().filter_map(|metric| Some((metric, metric.beside.as_ref()?))).collect();
    let (_, first) = beside.first()?;
    let shares = first.everybody.iter().zip(&first.untriggered).map(|(all, untriggered)| {
        let (all, untriggered) = (all.observed.users, untriggered.observed.users);
        (all > 0).then(|| (all - untriggered.min(all)) as f64 / all as f64)
    });
    let triggered = shares.collect();
    // The goals decide; without any, everything does.
    let has_goals = beside.iter().any(|(metric, _)| metric.configured.role == Role::Primary);
    let tested: Vec<(&MeasuredMetric, PValue)> = beside
        .iter()
        .filter(|(metric, _)| !has_goals || metric.configured.role == Role::Primary)
        .flat_map(|(metric, beside)| {
            let (control, others) = (beside.untriggered.first(), beside.untriggered.get(1..).unwrap_or_default());
            control
                .into_iter()
                .flat_map(move |control| others.iter().filter_map(move |other| Some((*metric, alike(control, other)?))))
        })
        .collect();
    let count = tested.len() as f64;
    let least = tested.into_iter().min_by(|one, other| one.1.log10.total_cmp(&other.1.log10));
    let Some((metric, p)) = least.filter(|_| measured.experiment.control_variant_id.is_some()) else {
        return Some(Check::TriggerComplement {
            level: Level::Ok,
            status: "no_data",
            p_value: None,
            log10_p: None,
            metric: None,
            triggered,
        });
    };
    let (p_value, log10_p) = ((p.p * count).min(1.0), (p.log10 + count.log10()).min(0.0));
    let differs = p_value < BALANCE_BELOW;
    if differs {
        let message = format!(
            "users who were exposed and never triggered differ between the variants in {} (p = {}): the trigger depends on the variant, or \
             something else differs; nothing that rests on it can be trusted",
            metric.configured.name,
            p_text(p_value)
        );
        warnings.push(Warning::new("trigger_complement", message));
    }
    Some(Check::TriggerComplement {
        level: if differs { Level::Fail } else { Level::Ok },
        status: if differs { "mismatch" } else { "ok" },
        p_value: Some(p_value),
        log10_p: Some(log10_p),
        metric: Some(metric.configured.name.clone()),
        triggered,
    })
}

/// Returns the p-value that two variants are alike, within strata where there are some.
fn alike(control: &Sampled, other: &Sampled) -> Option<PValue> {
    if control.strata.is_empty() {
        return compare(&control.observed, &other.observed, BALANCE_BELOW).p_value();
    }
    let stratum = |(control, treatment): (&Sampled, &Sampled)| Stratum {
        control: control.observed,
        treatment: treatment.observed,
        adjusted: None,
    };
    let strata: Vec<Stratum> = control.strata.iter().zip(&other.strata).map(stratum).collect();
    compare_strata(&strata, BALANCE_BELOW).p_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 5 % trigger, and come to 10.5 instead of 10 then; over all the control's users come to 2.
    #[test]
    fn an_effect_among_few_is_diluted_by_what_all_come_to() {
        let found = dilute(0.05, 2.0, 0.5, Some((0.1, 0.9))).expect("defined");
        let near =
            |found: Option<f64>, expected: f64| assert!(found.is_some_and(|found| (found - expected).abs() < 1e-12), "{found:?}");
        near(Some(found.estimate), 0.025);
        near(found.lift, 0.0125);
        near(found.ci[0], 0.005);
        near(found.ci_relative[1], 0.0225);
        assert_eq!(dilute(0.05, 0.0, 0.5, None).map(|found| (found.lift, found.ci)), Some((None, [None, None])));
    }
}
