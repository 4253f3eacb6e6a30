//! Effects by the time since the exposure, and whether they change with it.
//!
//! Novelty is tested within users: what each comes to a day late, less what the same user came to a day early, by Welch's test of the
//! variants (Sadeghi et al., "Novelty and primacy", arXiv 2102.12893). The control takes off what changes for everybody.

use statistics::moments::Overflow;

use super::comparison::{Compared, Design, compare_all};
use super::findings::{Novelty, SinceExposure, SinceExposureArm, SinceExposureComparison, SinceExposureDay, ends};
use crate::experiment::measure::days::DaySums;
use crate::experiment::measure::sample::one;
use crate::experiment::measure::since_exposure::{self as measured, Novelty as Sums};
use crate::experiment::read::catalogue::Configured;
use crate::experiment::request::Cuped;

/// Compares the variants on each day since the exposure. Earlier behaviour is left aside.
/// # Errors
/// [`Overflow`].
pub fn since_exposure(
    design: &Design<'_>,
    metric: &Configured,
    found: &measured::SinceExposure,
) -> Result<SinceExposure, Overflow> {
    let design = &Design { cuped: Cuped::Off, ..*design };
    let alpha = design.experiment.alpha;
    let mut days = Vec::with_capacity(found.days.len());
    for (day, sums) in &found.days {
        let sampled = sums.iter().map(|sums| one(metric, sums)).collect::<Result<Vec<_>, _>>()?;
        let arms = sampled.iter().zip(design.variants).map(|(sampled, variant)| SinceExposureArm {
            variant_id: variant.id,
            users: sampled.observed.users,
            mean: sampled.observed.mean,
        });
        let comparisons = compare(design, metric, sums)?.into_iter().map(|compared| SinceExposureComparison {
            variant_id: design.variants[compared.arm].id,
            found: compared.other(alpha),
        });
        days.push(SinceExposureDay { day: *day as u32, arms: arms.collect(), comparisons: comparisons.collect() });
    }
    let novelty = match &found.novelty {
        Some(sums) => novelty(design, metric, sums)?,
        None => Vec::new(),
    };
    Ok(SinceExposure { days, novelty })
}

fn compare(design: &Design<'_>, metric: &Configured, sums: &DaySums) -> Result<Vec<Compared>, Overflow> {
    if design.experiment.control_variant_id.is_none() {
        return Ok(Vec::new());
    }
    let sampled = sums.iter().map(|sums| one(metric, sums)).collect::<Result<Vec<_>, _>>()?;
    compare_all(design, &sampled)
}

fn novelty(design: &Design<'_>, metric: &Configured, sums: &Sums) -> Result<Vec<Novelty>, Overflow> {
    let [early, late, change] = [&sums.early, &sums.late, &sums.change].map(|sums| compare(design, metric, sums));
    let [of_early, of_late, of_change] = Sums::DIVISORS;
    let alpha = design.experiment.alpha;
    let of_arm = |((early, late), change): ((Compared, Compared), Compared)| {
        let difference = change.found.difference?;
        let p_value = difference.p_value();
        let interval = change.found.interval(alpha).map(|(low, high)| (low / of_change, high / of_change));
        Some(Novelty {
            variant_id: design.variants[change.arm].id,
            users: change.users(),
            early: early.found.estimate? / of_early,
            late: late.found.estimate? / of_late,
            change: change.found.estimate? / of_change,
            std_error: difference.std_error / of_change,
            ci: ends(interval),
            p_value: p_value.p,
            log10_p: p_value.log10,
        })
    };
    Ok(early?.into_iter().zip(late?).zip(change?).filter_map(of_arm).collect())
}
