//! Sums of one variant as statistics take them.

use statistics::comparison::{Observed, Sample};
use statistics::effect::Status;
use statistics::moments::{Moments, Overflow, Products};
use statistics::proportions::Count;
use statistics::quantile::quantile;
use statistics::ratio::RatioSums;
use statistics::regression::{Joint, JointSums, Term};
use statistics::sums::Sums as OneSum;

use crate::experiment::measure::counted::{EventValues, UserSum};
use crate::experiment::measure::covariates::Column;
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::sums::{Sums, amounts};
use crate::experiment::read::catalogue::Configured;

/// One variant of one metric, as statistics take it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// As far as it is defined.
    pub observed: Observed,
    /// With what is known of the users before their first exposure; none of metrics that are not adjusted.
    pub regressed: Option<Regressed>,
    /// The same by stratum; empty where there are none.
    pub strata: Vec<Sampled>,
}

/// What a regression takes of one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Regressed {
    /// What users come to, and each covariate.
    pub joint: Joint,
    /// Each covariate by itself.
    pub covariates: Vec<OneSum>,
    /// What they are.
    pub columns: Vec<Column>,
}

impl From<Observed> for Sampled {
    fn from(observed: Observed) -> Self {
        Sampled { observed, regressed: None, strata: Vec::new() }
    }
}

/// Returns each group of a metric as a test takes it. `sums` are those of the same entries, groups and cap; `values` those of single events,
/// of a metric that is about these.
/// # Errors
/// [`Overflow`].
pub fn sampled(
    metric: &Configured,
    (entries, values): (&[UserSum], Option<&EventValues>),
    groups: &Groups,
    cap: Option<i128>,
    sums: &[Sums],
) -> Result<Vec<Sampled>, Overflow> {
    let Some(thousandths) = metric.aggregation.quantile() else {
        return sums.iter().map(|sums| one(metric, sums)).collect();
    };
    let level = f64::from(thousandths) / 1_000.0;
    if let Some(values) = values {
        return of_events(values, groups, level);
    }
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
    if metric.aggregation.is_ratio() || metric.aggregation.quantile().is_some() {
        let (numerator, denominator) = (OneSum::Values(sums.amount), OneSum::Values(sums.base));
        let observed = RatioSums { numerator, denominator, products: sums.amount_base }.observed()?;
        let regressed = regressed(sums, &[numerator, denominator], Term::Ratio(0, 1))?;
        return Ok(Sampled { regressed, ..observed.into() });
    }
    let amount = if metric.aggregation.is_share() {
        OneSum::Share(Count { users: sums.users, converted: sums.converters.min(sums.users) })
    } else {
        OneSum::Values(sums.amount)
    };
    let regressed = regressed(sums, &[amount], Term::Mean(0))?;
    Ok(Sampled { observed: amount.sample()?.into(), regressed, strata: Vec::new() })
}

/// Puts what users come to, in one quantity or two, before their covariates; none without any covariate.
fn regressed(sums: &Sums, quantities: &[OneSum], response: Term) -> Result<Option<Regressed>, Overflow> {
    let columns = sums.covariates.columns();
    if columns.is_empty() {
        return Ok(None);
    }
    let covariates: Vec<OneSum> = (0..columns.len()).map(|column| sums.covariates.covariate(column, sums.users)).collect();
    let mut products = Vec::new();
    products.extend((quantities.len() > 1).then_some(sums.amount_base));
    for column in 0..columns.len() {
        let (with, among) = sums.covariates.products(column);
        products.extend_from_slice(&with[..quantities.len()]);
        products.extend_from_slice(among);
    }
    let terms = (0..columns.len()).map(|column| Term::Mean(quantities.len() + column));
    let terms: Vec<Term> = std::iter::once(response).chain(terms).collect();
    let joint = JointSums { quantities: quantities.iter().chain(&covariates).copied().collect(), products }.joint(&terms)?;
    Ok(joint.map(|joint| Regressed { joint, covariates, columns: columns.to_vec() }))
}

/// Returns the quantile of single events in each group.
fn of_events(values: &EventValues, groups: &Groups, level: f64) -> Result<Vec<Sampled>, Overflow> {
    let width = groups.users().len();
    let mut cells: Vec<Vec<&[f64]>> = vec![Vec::new(); groups.cells().len()];
    for (user, values) in values.by_user() {
        if let Some(cell) = groups.cell(user) {
            cells[cell].push(values);
        }
    }
    let of_group = |group: usize| {
        let places = || (group..cells.len()).step_by(width);
        let all: Vec<&[f64]> = places().flat_map(|cell| cells[cell].iter().copied()).collect();
        let mut strata = Vec::new();
        if cells.len() > width {
            for cell in places() {
                strata.push(events_of(&cells[cell], groups.cells()[cell], level)?.into());
            }
        }
        Ok(Sampled { strata, ..events_of(&all, groups.users()[group], level)?.into() })
    };
    (0..width).map(of_group).collect()
}

/// Returns the quantile of the events of so many users, of whom these have some.
fn events_of(by_user: &[&[f64]], users: u64, level: f64) -> Result<Observed, Overflow> {
    let mut all: Vec<f64> = by_user.concat();
    let Some(found) = quantile(&mut all, level) else { return Ok(Observed::undefined(users, None, Status::NoData)) };
    let unit = |count: usize| count as i128 * Moments::SCALE;
    let (mut below, mut events, mut products) = (0, 0, Products::default());
    let (mut below_squares, mut events_squares) = (Products::default(), Products::default());
    for values in by_user {
        let (at_most, count) = (unit(values.iter().filter(|value| **value <= found.estimate).count()), unit(values.len()));
        (below, events) = (below + at_most, events + count);
        below_squares.add(at_most, at_most)?;
        events_squares.add(count, count)?;
        products.add(at_most, count)?;
    }
    let of = |sum: i128, squares: Products| Ok::<_, Overflow>(OneSum::Values(Moments::from_parts(users, sum, squares.total()?)));
    let share =
        RatioSums { numerator: of(below, below_squares)?, denominator: of(events, events_squares)?, products: products.total()? };
    Ok(Observed { users, mean: Some(found.estimate), sample: found.arm_of_events(&share)?.map(Sample::Mean) })
}

fn of_quantile(amounts: &mut [f64], level: f64) -> Observed {
    let undefined = Observed::undefined(amounts.len() as u64, None, Status::NoData);
    quantile(amounts, level).map_or(undefined, |found| found.observed())
}
