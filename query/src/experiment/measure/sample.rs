//! Sums of one variant as statistics take them.

use statistics::comparison::Observed;
use statistics::cuped::CupedSums;
use statistics::effect::Status;
use statistics::moments::{Moments, Overflow};
use statistics::proportions::Count;
use statistics::quantile::quantile;
use statistics::ratio::RatioSums;
use statistics::sums::Sums as OneSum;

use crate::experiment::measure::counted::UserSum;
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::sums::{Sums, amounts};
use crate::experiment::read::catalogue::Configured;

/// One variant of one metric, as statistics take it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// As far as it is defined.
    pub observed: Observed,
    /// With the same metric before the first exposure; none of metrics that are not adjusted.
    pub cuped: Option<CupedSums>,
    /// The same by stratum; empty where there are none.
    pub strata: Vec<Sampled>,
}

impl From<Observed> for Sampled {
    fn from(observed: Observed) -> Self {
        Sampled { observed, cuped: None, strata: Vec::new() }
    }
}

/// Returns each group of a metric as a test takes it. `sums` are those of the same entries, groups and cap.
/// # Errors
/// [`Overflow`].
pub fn sampled(
    metric: &Configured,
    entries: &[UserSum],
    groups: &Groups,
    cap: Option<i128>,
    sums: &[Sums],
) -> Result<Vec<Sampled>, Overflow> {
    let Some(thousandths) = metric.aggregation.quantile() else {
        return sums.iter().map(|sums| one(metric, sums)).collect();
    };
    let level = f64::from(thousandths) / 1_000.0;
    let (mut cells, width) = (amounts(entries, groups, cap), groups.users().len());
    if cells.len() == width {
        return Ok(cells.iter_mut().map(|amounts| of_quantile(amounts, level).into()).collect());
    }
    let of_group = |group: usize| {
        let mut all: Vec<f64> = cells.iter().skip(group).step_by(width).flatten().copied().collect();
        let strata = cells.iter_mut().skip(group).step_by(width).map(|amounts| of_quantile(amounts, level).into()).collect();
        Sampled { strata, ..of_quantile(&mut all, level).into() }
    };
    Ok((0..width).map(of_group).collect())
}

/// Returns one group of a metric other than a quantile.
/// # Errors
/// [`Overflow`].
pub fn one(metric: &Configured, sums: &Sums) -> Result<Sampled, Overflow> {
    let strata = sums.strata.iter().map(|sums| one(metric, sums)).collect::<Result<Vec<_>, _>>()?;
    Ok(Sampled { strata, ..pooled(metric, sums)? })
}

fn pooled(metric: &Configured, sums: &Sums) -> Result<Sampled, Overflow> {
    if sums.users == 0 {
        return Ok(Observed::undefined(0, None, Status::NoData).into());
    }
    let share = |converted: u64| OneSum::Share(Count { users: sums.users, converted: converted.min(sums.users) });
    if metric.aggregation.is_ratio() || metric.aggregation.quantile().is_some() {
        let (numerator, denominator) = (OneSum::Values(sums.amount), OneSum::Values(sums.base));
        return Ok(RatioSums { numerator, denominator, products: sums.amount_base }.observed()?.into());
    }
    let (post, pre) = if metric.aggregation.is_share() {
        let before = u64::try_from(sums.before.sum() / Moments::SCALE).unwrap_or(0);
        (share(sums.converters), share(before))
    } else {
        (OneSum::Values(sums.amount), OneSum::Values(sums.before))
    };
    let cuped = Some(CupedSums { post, pre, products: sums.amount_before });
    Ok(Sampled { observed: post.sample()?.into(), cuped, strata: Vec::new() })
}

fn of_quantile(amounts: &mut [f64], level: f64) -> Observed {
    let undefined = Observed::undefined(amounts.len() as u64, None, Status::NoData);
    quantile(amounts, level).map_or(undefined, |found| found.observed())
}
