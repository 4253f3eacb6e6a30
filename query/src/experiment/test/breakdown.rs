//! The same comparisons in parts: within each value of a dimension, and at the end of each day.

use statistics::effect::{self, Effect, Scale};
use statistics::moments::{Overflow, decimal_text};
use statistics::sequential::confidence_sequence;

use super::comparison::{Compared, Design, TestedComparison, Undecided, compared, conclude, decide};
use super::earlier::Earlier;
use super::findings::{Cumulative, DailyArm, Day, Heterogeneity, SeriesArm, SeriesComparison, Supplemental, ends};
use super::health::{ratio_of, weights};
use crate::experiment::measure::covariates::Covariates;
use crate::experiment::measure::days::{DaySums, Days};
use crate::experiment::measure::metrics::{MeasuredMetric, Split, Value};
use crate::experiment::measure::population::Population;
use crate::experiment::measure::sample::{Sampled, one, sampled};
use crate::experiment::measure::strata::Strata;
use crate::experiment::measure::sums::{Sums, sums};
use crate::experiment::read::catalogue::Configured;
use crate::experiment::request::Cuped;

/// A metric by the values of a dimension.
#[derive(Debug)]
pub struct Breakdown {
    /// Each value.
    pub values: Vec<BreakdownValue>,
    /// Whether they differ in their effects.
    pub heterogeneity: Vec<Heterogeneity>,
}

/// A metric within one value of a dimension.
#[derive(Debug)]
pub struct BreakdownValue {
    /// The value.
    pub value: Value,
    /// Each variant: as tests take it, its sums, and these without a cap.
    pub arms: Vec<(Sampled, Sums, Sums)>,
    /// Each other variant against the control.
    pub comparisons: Vec<TestedComparison>,
}

/// Compares within each value of a dimension. All metrics, variants and values together are one family. The cap is that of
/// the whole, and so is what is taken off for earlier behaviour (`earlier`, of each metric by variant compared), so that values add up; and so
/// is why nothing is decided.
/// # Errors
/// [`Overflow`].
pub fn by_dimension(
    design: &Design<'_>,
    population: &Population<'_>,
    split: &Split,
    measured: &[MeasuredMetric],
    earlier: &[(Vec<Option<Earlier>>, Option<Undecided>)],
) -> Result<Vec<Breakdown>, Overflow> {
    let arms = design.variants.len();
    let mut all = Vec::new();
    for (metric, (earlier, undecided)) in measured.iter().zip(earlier) {
        let window_us = metric.counted.window_us();
        let nothing = Covariates::default();
        let covariates = if earlier.iter().any(Option::is_some) { &metric.covariates } else { &nothing };
        let groups = population.groups_of_values(split.values.len(), window_us, |user| split.places[user] as usize);
        let cap = metric.cap.map(|cap| cap.amount);
        let cut = sums(&metric.entries, covariates, &groups, cap)?;
        let raw = sums(&metric.entries, &Covariates::default(), &groups, None)?;
        let sampled = sampled(&metric.configured, (&metric.entries, metric.values.as_ref()), &groups, cap, &cut)?;
        let of_value = |place: usize| {
            let sampled = &sampled[place * arms..(place + 1) * arms];
            // Without a control nothing is compared.
            earlier.iter().enumerate().map(|(arm, earlier)| part(design, sampled, arm + 1, earlier.clone())).collect()
        };
        let mut compared: Vec<Vec<Compared>> = (0..split.values.len()).map(of_value).collect();
        for found in compared.iter_mut().flatten() {
            (found.window_us, found.undecided) = (window_us, *undecided);
        }
        all.push((metric, cut, raw, sampled, compared));
    }
    let family: Vec<(&Configured, &Compared)> = all
        .iter()
        .flat_map(|(metric, .., compared)| compared.iter().flatten().map(|found| (&metric.configured, found)))
        .collect();
    let mut decided = decide(design, &family).into_iter();
    let mut parts = Vec::new();
    for (metric, cut, raw, sampled, compared) in all {
        let heterogeneity = heterogeneity(design, compared.iter().flatten());
        let of_value = |(place, compared): (usize, Vec<Compared>)| {
            let conclude = |(compared, conclusion)| {
                conclude(design, &metric.configured, compared, conclusion, Supplemental::default(), None)
            };
            BreakdownValue {
                value: split.values[place].clone(),
                arms: (place * arms..(place + 1) * arms)
                    .map(|group| (sampled[group].clone(), cut[group].clone(), raw[group].clone()))
                    .collect(),
                comparisons: compared.into_iter().zip(decided.by_ref()).map(conclude).collect(),
            }
        };
        parts.push(Breakdown { values: compared.into_iter().enumerate().map(of_value).collect(), heterogeneity });
    }
    Ok(parts)
}

/// Compares a variant within a part of the users.
pub(super) fn part(design: &Design<'_>, sampled: &[Sampled], arm: usize, earlier: Option<Earlier>) -> Compared {
    let off = Design { cuped: Cuped::Off, ..*design };
    compared(if earlier.is_some() { design } else { &off }, &sampled[0], &sampled[arm], arm, earlier)
}

/// Tests for each variant whether its differences are alike in all values.
fn heterogeneity<'a>(design: &Design<'_>, compared: impl Iterator<Item = &'a Compared> + Clone) -> Vec<Heterogeneity> {
    let of_arm = |arm: usize| {
        let of_arm = compared.clone().filter(|found| found.arm == arm);
        let of_values: Vec<Option<Effect>> = of_arm.map(|found| found.effect(Scale::Absolute)).collect();
        let effects: Vec<Effect> = of_values.iter().flatten().copied().collect();
        let effect::Heterogeneity { statistic, dof, p_value } = effect::heterogeneity(&effects)?;
        let variant_id = design.variants[arm].id;
        let shrunk = effect::shrunken(&effects).map(|shrunk| {
            let mut shrunk = shrunk.into_iter();
            of_values.iter().map(|effect| effect.and_then(|_| shrunk.next())).collect()
        });
        Some(Heterogeneity { variant_id, statistic, dof, p_value: p_value.p, log10_p: p_value.log10, shrunk })
    };
    (1..design.variants.len()).filter_map(of_arm).collect()
}

/// Shows each day of a metric. What is taken off for earlier behaviour is that of today (`earlier`, by variant compared), so that the last day is
/// the comparison itself.
/// # Errors
/// [`Overflow`].
pub fn by_day(
    design: &Design<'_>,
    metric: &Configured,
    series: &[DaySums],
    (days, strata): (Days, &Strata),
    earlier: &[Option<Earlier>],
) -> Result<Vec<Day>, Overflow> {
    let (weights, _) = weights(design.variants);
    let mut shown = Vec::with_capacity(series.len());
    let mut before: Option<&DaySums> = None;
    for (place, today) in series.iter().enumerate() {
        let sampled = today.iter().map(|sums| one(metric, sums)).collect::<Result<Vec<_>, _>>()?;
        let of_cells = |sums: &Sums, stratum: usize| sums.strata.get(stratum).map_or(sums.users, |sums| sums.users);
        let cells: Vec<u64> =
            (0..strata.count()).flat_map(|stratum| today.iter().map(move |sums| of_cells(sums, stratum))).collect();
        let ratio = ratio_of(strata, &weights, &cells).all;
        let of_arm =
            |(arm, earlier): (usize, &Option<Earlier>)| comparison(design, &part(design, &sampled, arm + 1, earlier.clone()));
        let comparisons = earlier.iter().enumerate().map(of_arm).collect();
        let arms = today.iter().zip(&sampled).enumerate().map(|(arm, (sums, sampled))| SeriesArm {
            variant_id: design.variants[arm].id,
            users: sums.users,
            converters: sums.converters,
            mean: sampled.observed.mean,
        });
        let daily = |(arm, sums): (usize, &Sums)| {
            let earlier = before.map(|before| &before[arm]);
            DailyArm {
                variant_id: design.variants[arm].id,
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

fn comparison(design: &Design<'_>, compared: &Compared) -> SeriesComparison {
    let alpha = design.experiment.alpha;
    let found = compared.other(alpha);
    let sequence = compared.found.for_looks.map(|difference| {
        let tuning = design.plan.tuning(compared.arm);
        let sequence = confidence_sequence(difference.z(), compared.users(), alpha, &tuning);
        (difference.absolute(sequence.critical), sequence.p_value)
    });
    SeriesComparison {
        variant_id: design.variants[compared.arm].id,
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
