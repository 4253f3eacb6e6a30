//! Sums of one variant as statistics take them, and as the answer shows them.

use uuid::Uuid;

use super::catalogue::{Aggregation, Amount, Configured};
use super::headline::ends;
use super::sums::{Entry, Slots, Sums, amounts};
use crate::answer::metric::Arm as Shown;
use statistics::comparison::{Sample, Status};
use statistics::cuped::CupedSums;
use statistics::distributions::student_isf;
use statistics::moments::{Moments, Overflow};
use statistics::proportions::{Count, wilson};
use statistics::quantile::quantile;
use statistics::ratio::RatioSums;
use statistics::sums::Sums as OneSum;

/// One variant of one metric, as far as it is defined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// Users.
    pub users: u64,
    /// What a test takes; none if the metric has no precision here.
    pub sample: Option<Sample>,
    /// What is missing where there is no sample.
    pub missing: Status,
    /// Over all users; none where it is not defined.
    pub mean: Option<f64>,
    /// With the same metric before the first exposure; none of metrics that are not adjusted.
    pub cuped: Option<CupedSums>,
}

/// Returns each slot of a metric as a test takes it. `sums` are those of the same entries, slots and cap.
/// # Errors
/// [`Overflow`].
pub fn sampled(
    metric: &Configured,
    entries: &[Entry],
    slots: &Slots,
    cap: Option<i128>,
    sums: &[Sums],
) -> Result<Vec<Sampled>, Overflow> {
    if let Aggregation::Quantile(_, thousandths) = metric.aggregation {
        let level = f64::from(thousandths) / 1_000.0;
        return Ok(amounts(entries, slots, cap).iter_mut().map(|amounts| of_quantile(amounts, level)).collect());
    }
    sums.iter().map(|sums| one(metric, sums)).collect()
}

/// Returns one slot of a metric other than a quantile.
/// # Errors
/// [`Overflow`].
pub fn one(metric: &Configured, sums: &Sums) -> Result<Sampled, Overflow> {
    let mut found = Sampled { users: sums.users, sample: None, missing: Status::NoData, mean: None, cuped: None };
    if sums.users == 0 {
        return Ok(found);
    }
    let share = |converted: u64| OneSum::Share(Count { users: sums.users, converted: converted.min(sums.users) });
    let post = match metric.aggregation {
        Aggregation::ConversionRate => {
            let before = u64::try_from(sums.before.sum() / Moments::SCALE).unwrap_or(0);
            let (post, pre) = (share(sums.converters), share(before));
            found.cuped = Some(CupedSums { post, pre, products: sums.amount_before });
            post
        }
        Aggregation::ValuePerUser | Aggregation::CountPerUser => {
            let post = OneSum::Values(sums.amount);
            found.cuped = Some(CupedSums { post, pre: OneSum::Values(sums.before), products: sums.amount_before });
            post
        }
        Aggregation::Ratio(..) | Aggregation::Quantile(..) => {
            let (numerator, denominator) = (OneSum::Values(sums.amount), OneSum::Values(sums.base));
            let arm = RatioSums { numerator, denominator, products: sums.amount_base }.arm()?;
            found.missing = Status::ZeroDenominator;
            found.sample = arm.map(Sample::Mean);
            found.mean = arm.map(|arm| arm.mean);
            return Ok(found);
        }
    };
    let sample = post.sample()?;
    found.sample = Some(sample);
    found.mean = Some(sample.arm().mean);
    Ok(found)
}

fn of_quantile(amounts: &mut [f64], level: f64) -> Sampled {
    let users = amounts.len() as u64;
    let Some(found) = quantile(amounts, level) else {
        return Sampled { users, sample: None, missing: Status::NoData, mean: None, cuped: None };
    };
    let arm = found.arm(None);
    Sampled {
        users,
        sample: arm.ok().map(Sample::Mean),
        missing: arm.err().unwrap_or(Status::Ok),
        mean: Some(found.estimate),
        cuped: None,
    }
}

/// Describes one variant alone. `raw` are its sums without a cap.
pub fn shown(metric: &Configured, variant: Uuid, sampled: &Sampled, sums: &Sums, raw: &Sums, alpha: f64) -> Shown {
    let is_share = metric.aggregation == Aggregation::ConversionRate;
    let arm = sampled.sample.map(|sample| sample.arm());
    let interval = match sampled.sample {
        Some(Sample::Share(count)) => wilson(count, alpha),
        // One value, or one and the same for all, tells nothing about precision.
        Some(Sample::Mean(arm)) => (arm.users > 1 && arm.variance > 0.0).then(|| {
            let half = student_isf(alpha / 2.0, (arm.users - 1) as f64) * (arm.variance / arm.users as f64).sqrt();
            (arm.mean - half, arm.mean + half)
        }),
        None => None,
    };
    let whole = |sum: i128| u64::try_from(sum / Moments::SCALE).ok();
    let is_count = matches!(
        metric.aggregation,
        Aggregation::CountPerUser | Aggregation::Ratio(Amount::Count, _) | Aggregation::Quantile(Amount::Count, _)
    );
    Shown {
        variant_id: variant,
        users: sampled.users,
        numerator: match is_share {
            true => Some(sums.converters),
            false => is_count.then(|| whole(raw.amount.sum())).flatten(),
        },
        denominator: matches!(metric.aggregation, Aggregation::Ratio(..)).then(|| whole(sums.base.sum())).flatten(),
        mean: sampled.mean,
        std_dev: arm.filter(|arm| arm.users > 1 || is_share).map(|arm| arm.variance.sqrt()),
        ci: ends(interval),
        sum: metric.aggregation.is_value().then(|| raw.amount.sum_text()),
    }
}
