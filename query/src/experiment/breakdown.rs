//! The same comparisons in parts: within each value of a dimension, and at the end of each day.

use super::assemble::compare_all;
use super::catalogue::Configured;
use super::compare::{Added, Compared, Setting, compared, decide, describe};
use super::health::{SRM_FAIL_BELOW, weights};
use super::measure::{Measured, Split};
use super::population::People;
use super::sample::{one, sampled, shown};
use super::series::{DaySums, Days};
use super::settings::{Cuped, Request};
use super::sums::{Sums, sums};
use crate::answer::metric::{Cumulative, DailyArm, Day, Heterogeneity, OfValue, SeriesArm, SeriesComparison, ends};
use statistics::effect::{Effect, Scale};
use statistics::moments::{Overflow, decimal_text};
use statistics::sample_ratio::sample_ratio;
use statistics::sequential::confidence_sequence;
use statistics::strata;

/// One metric by dimension.
pub struct Dimensioned {
    /// Each value.
    pub values: Vec<OfValue>,
    /// Whether they differ in their effects.
    pub heterogeneity: Vec<Heterogeneity>,
}

/// Compares within each value of a dimension. All metrics, variants and values together are one family. The cap is that of
/// the whole; earlier behaviour is left aside, since few users of a value have any.
/// # Errors
/// [`Overflow`].
pub fn dimensions(
    setting: &Setting<'_>,
    people: &People<'_>,
    split: &Split,
    measured: &[Measured],
) -> Result<Vec<Dimensioned>, Overflow> {
    let request = Request { cuped: Cuped::Off, ..setting.request.clone() };
    let setting = &Setting { request: &request, ..*setting };
    let arms = setting.variants.len();
    let has_control = setting.experiment.control_variant_id.is_some();
    let mut parts = Vec::new();
    for metric in measured {
        let slots = people.slots_of_values(split.values.len(), metric.counted.window_us(), |user| split.places[user] as usize);
        let cap = metric.cap.map(|cap| cap.amount);
        let cut = sums(&metric.entries, &[], &slots, cap)?;
        let raw = sums(&metric.entries, &[], &slots, None)?;
        let sampled = sampled(&metric.configured, &metric.entries, &slots, cap, &cut)?;
        let of_value = |place: usize| {
            let range = place * arms..(place + 1) * arms;
            let compared = if has_control { compare_all(setting, &sampled[range.clone()])? } else { Vec::new() };
            Ok::<_, Overflow>((compared, range))
        };
        let values: Vec<_> = (0..split.values.len()).map(of_value).collect::<Result<_, _>>()?;
        parts.push((metric, cut, raw, sampled, values));
    }
    let family: Vec<(&Configured, &Compared)> = parts
        .iter()
        .flat_map(|(metric, _, _, _, values)| {
            values.iter().flat_map(|(compared, _)| compared.iter().map(|compared| (&metric.configured, compared)))
        })
        .collect();
    let mut decided = decide(setting, &family).into_iter();
    let mut found = Vec::new();
    for (metric, cut, raw, sampled, values) in &parts {
        let mut shown_values = Vec::new();
        for ((compared, range), value) in values.iter().zip(&split.values) {
            let comparisons = compared
                .iter()
                .zip(decided.by_ref())
                .map(|(compared, decisive)| describe(setting, &metric.configured, compared, &decisive, Added::default()))
                .collect();
            let arm = |slot: usize| {
                let variant = setting.variants[slot - range.start].id;
                shown(&metric.configured, variant, &sampled[slot], &cut[slot], &raw[slot], setting.experiment.alpha)
            };
            let arms = range.clone().map(arm).collect();
            shown_values.push(OfValue { value: value.text.clone(), kind: value.kind, arms, comparisons });
        }
        let compared: Vec<&Compared> = values.iter().flat_map(|(compared, _)| compared).collect();
        found.push(Dimensioned { values: shown_values, heterogeneity: heterogeneity(setting, &compared) });
    }
    Ok(found)
}

/// Tests for each variant whether its differences are alike in all values.
fn heterogeneity(setting: &Setting<'_>, compared: &[&Compared]) -> Vec<Heterogeneity> {
    let of_arm = |arm: usize| {
        let of_arm = compared.iter().filter(|found| found.arm == arm);
        let effects: Vec<Effect> = of_arm.filter_map(|found| found.effect(Scale::Absolute)).collect();
        let strata::Heterogeneity { statistic, dof, p_value } = strata::heterogeneity(&effects)?;
        let variant_id = setting.variants[arm].id;
        Some(Heterogeneity { variant_id, statistic, dof, p_value: p_value.p, log10_p: p_value.log10 })
    };
    (1..setting.variants.len()).filter_map(of_arm).collect()
}

/// Shows each day of a metric. Earlier behaviour is left aside.
/// # Errors
/// [`Overflow`].
pub fn series(setting: &Setting<'_>, metric: &Configured, series: &[DaySums], days: Days) -> Result<Vec<Day>, Overflow> {
    let request = Request { cuped: Cuped::Off, ..setting.request.clone() };
    let setting = &Setting { request: &request, ..*setting };
    let (weights, _) = weights(setting.variants);
    let mut shown = Vec::with_capacity(series.len());
    let mut before: Option<&DaySums> = None;
    for (place, today) in series.iter().enumerate() {
        let sampled = today.iter().map(|sums| one(metric, sums)).collect::<Result<Vec<_>, _>>()?;
        let users: Vec<u64> = today.iter().map(|sums| sums.users).collect();
        let ratio = sample_ratio(&users, &weights, SRM_FAIL_BELOW);
        let mut comparisons = Vec::new();
        if setting.experiment.control_variant_id.is_some() {
            for arm in 1..sampled.len() {
                comparisons.push(comparison(setting, &compared(setting, &sampled[0], &sampled[arm], arm, None)?));
            }
        }
        let arms = today.iter().zip(&sampled).enumerate().map(|(arm, (sums, sampled))| SeriesArm {
            variant_id: setting.variants[arm].id,
            users: sums.users,
            converters: sums.converters,
            mean: sampled.observed.mean,
        });
        let daily = |(arm, sums): (usize, &Sums)| {
            let earlier = before.map(|before| &before[arm]);
            DailyArm {
                variant_id: setting.variants[arm].id,
                users: sums.users - earlier.map_or(0, |earlier| earlier.users),
                converters: sums.converters - earlier.map_or(0, |earlier| earlier.converters),
                amount: decimal_text(sums.amount.sum() - earlier.map_or(0, |earlier| earlier.amount.sum())),
            }
        };
        shown.push(Day {
            date: days.date(place),
            daily: today.iter().enumerate().map(daily).collect(),
            cumulative: Cumulative { arms: arms.collect(), comparisons, srm_p: ratio.p_value, log10_srm_p: ratio.log10_p },
        });
        before = Some(today);
    }
    Ok(shown)
}

fn comparison(setting: &Setting<'_>, compared: &Compared) -> SeriesComparison {
    let alpha = setting.experiment.alpha;
    let found = compared.other(alpha);
    let sequence = compared.found.difference.map(|difference| {
        let tuning = setting.plan.tuning(compared.arm);
        let sequence = confidence_sequence(difference.z(), compared.users(), alpha, &tuning);
        (difference.absolute(sequence.critical), sequence.p_value)
    });
    SeriesComparison {
        variant_id: setting.variants[compared.arm].id,
        estimate: found.estimate,
        ci: found.ci,
        ci_sequential: ends(sequence.map(|(interval, _)| interval)),
        lift: found.lift,
        ci_relative: found.ci_relative,
        p_value: found.p_value,
        log10_p: found.log10_p,
        always_valid_p: sequence.map(|(_, p)| p.p),
        log10_always_valid_p: sequence.map(|(_, p)| p.log10),
    }
}
