//! Effects over cells of users, such as countries or times in which users were assigned in other shares, and effects scaled to all
//! traffic.

use crate::comparison::Sample;
use crate::difference::Difference;
use crate::effect::{Status, Undefined};
use crate::means::Arm;

/// The users of one cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Those of the control.
    pub control: Sample,
    /// Those of the treatment.
    pub treatment: Sample,
}

/// Measures the effect of a treatment by post-stratification: the differences of the cells, weighted by their users of both
/// variants. Chance differences between the variants' mixtures of cells drop out. Degrees of freedom are those of the users.
/// # Errors
/// [`Undefined`] by the first of: no cells, or a variant without users in one; fewer than 2 users; no variance.
/// Source: Miratrix, Sekhon, Yu 2013, Journal of the Royal Statistical Society B 75, 369-396; the shares of the cells are
/// random too, as of a multinomial, and the relative effect is by the delta method.
pub fn post_stratified(cells: &[Cell]) -> Result<Difference, Undefined> {
    let arms: Vec<(Arm, Arm, bool)> = cells
        .iter()
        .map(|cell| {
            let is_share = matches!((cell.control, cell.treatment), (Sample::Share(_), Sample::Share(_)));
            (cell.control.arm(), cell.treatment.arm(), is_share)
        })
        .collect();
    if arms.is_empty() || arms.iter().any(|(control, treatment, _)| control.users == 0 || treatment.users == 0) {
        return Err(Undefined::of(Status::NoData, None, None));
    }
    let cells: Vec<_> =
        arms.iter().map(|(control, treatment, _)| (control.users + treatment.users, of_arms(control, treatment))).collect();
    let found = combined(&cells);
    let undefined = |status| Undefined::of(status, Some(found.baseline), Some(found.treatment));
    if arms.iter().any(|(control, treatment, is_share)| !is_share && control.users.min(treatment.users) < 2) {
        return Err(undefined(Status::InsufficientSample));
    }
    if found.std_error <= 0.0 { Err(undefined(Status::ZeroVariance)) } else { Ok(found) }
}

/// The difference of two means by itself, also where neither has any variance.
pub(crate) fn of_arms(control: &Arm, treatment: &Arm) -> Difference {
    let (of_control, of_treatment) = (control.variance_of_mean(), treatment.variance_of_mean());
    Difference {
        estimate: treatment.mean - control.mean,
        std_error: (of_control + of_treatment).sqrt(),
        dof: ((control.users + treatment.users) as f64 - 2.0).max(1.0),
        baseline: control.mean,
        baseline_variance: of_control,
        treatment: treatment.mean,
        slope: -1.0,
        rest_variance: of_treatment,
        shares: None,
    }
}

/// Combines the differences of cells, each with its users of both variants, by which it is weighted; of no cells it is 0 without
/// precision. Formulas and source as of [`post_stratified`].
pub(crate) fn combined(cells: &[(u64, Difference)]) -> Difference {
    let all = cells.iter().map(|(users, _)| *users as f64).sum::<f64>().max(1.0);
    let share = |users: u64| users as f64 / all;
    let sum = |of: &dyn Fn(f64, &Difference) -> f64| cells.iter().map(|(users, cell)| of(share(*users), cell)).sum::<f64>();
    let (baseline, treatment) = (sum(&|share, cell| share * cell.baseline), sum(&|share, cell| share * cell.treatment));
    let estimate = sum(&|share, cell| share * cell.estimate);
    // The shares of the cells are random, too: the second part of each.
    let of_baseline =
        sum(&|share, cell| share * share * cell.baseline_variance + share * (cell.baseline - baseline).powi(2) / all);
    let of_both = sum(&|share, cell| {
        share * share * cell.slope * cell.baseline_variance
            + share * (cell.baseline - baseline) * (cell.estimate - estimate) / all
    });
    let of_estimate =
        sum(&|share, cell| share * share * cell.std_error * cell.std_error + share * (cell.estimate - estimate).powi(2) / all);
    let slope = if of_baseline > 0.0 { of_both / of_baseline } else { 0.0 };
    Difference {
        estimate,
        std_error: of_estimate.sqrt(),
        dof: (all - 2.0 * cells.len() as f64).max(1.0),
        baseline,
        baseline_variance: of_baseline,
        treatment,
        slope,
        rest_variance: (of_estimate - slope * of_both).max(0.0),
        shares: None,
    }
}

/// Traffic to which an effect is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Users of all variants together.
    pub users: u64,
    /// The part of all traffic that the experiment sees, 0 < share <= 1.
    pub share: f64,
    /// Days that these users came in.
    pub days: f64,
}

/// An effect per day, if all traffic got the treatment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Impact {
    /// The effect per day.
    pub estimate: f64,
    /// Its interval, where the effect's has both ends.
    pub interval: Option<(f64, f64)>,
    /// Users of a day over all traffic.
    pub users_per_day: f64,
}

/// Scales an absolute effect with its interval to all traffic of a day; `None` where share or days are not positive.
pub fn impact_per_day(estimate: f64, interval: Option<(f64, f64)>, traffic: &Traffic) -> Option<Impact> {
    let users_per_day = traffic.users as f64 / (traffic.share * traffic.days);
    if !(traffic.share > 0.0 && traffic.days > 0.0 && users_per_day.is_finite()) {
        return None;
    }
    let interval = interval.map(|(low, high)| (low * users_per_day, high * users_per_day));
    Some(Impact { estimate: estimate * users_per_day, interval, users_per_day })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proportions::Count;

    fn mean(users: u64, mean: f64, variance: f64) -> Sample {
        Sample::Mean(Arm { users, mean, variance })
    }

    #[test]
    fn one_cell_is_no_stratification() {
        let (control, treatment) = (mean(100, 5.0, 4.0), mean(120, 5.5, 6.0));
        let found = post_stratified(&[Cell { control, treatment }]).expect("defined");
        let plain = Difference::welch(&control.arm(), &treatment.arm(), true).expect("defined");
        for scale in [crate::effect::Scale::Absolute, crate::effect::Scale::Relative] {
            let (found, plain) = (found.effect(scale).expect("a baseline"), plain.effect(scale).expect("a baseline"));
            assert!((found.estimate - plain.estimate).abs() < 1e-12 && (found.std_error - plain.std_error).abs() < 1e-12);
        }
    }

    #[test]
    fn what_is_undefined_says_why() {
        let cell = |control, treatment| Cell { control, treatment };
        let check = |cells: &[Cell], status, lift| {
            let found = post_stratified(cells).map_err(|undefined| (undefined.status, undefined.lift));
            assert_eq!(found, Err((status, lift)));
        };
        check(&[], Status::NoData, None);
        check(&[cell(mean(0, 0.0, 0.0), mean(5, 1.0, 1.0))], Status::NoData, None);
        check(&[cell(mean(1, 2.0, 0.0), mean(5, 1.0, 1.0))], Status::InsufficientSample, Some(-0.5));
        check(&[cell(mean(5, 2.0, 0.0), mean(5, 1.0, 0.0))], Status::ZeroVariance, Some(-0.5));
        let none = Sample::Share(Count { users: 9, converted: 0 });
        check(&[cell(none, none)], Status::ZeroVariance, None);
    }

    #[test]
    fn impact_needs_traffic() {
        let traffic = Traffic { users: 1_000, share: 0.5, days: 10.0 };
        let found = impact_per_day(0.5, Some((0.3, 0.7)), &traffic).expect("traffic");
        assert_eq!((found.estimate, found.interval, found.users_per_day), (100.0, Some((60.0, 140.0)), 200.0));
        assert_eq!(impact_per_day(0.5, None, &Traffic { days: 0.0, ..traffic }), None);
    }
}
