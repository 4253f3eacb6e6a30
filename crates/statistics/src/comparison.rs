//! One variant against the control: which methods apply, and what is left to say where they do not.

use crate::means::{Arm, Difference, Lift, NotTested, lift, welch};
use crate::proportions::{Count, fisher, newcombe};

/// What is known of one variant: a metric's mean with its spread, or a share of users.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A value per user.
    Mean(Arm),
    /// Users who did something.
    Share(Count),
}

impl Sample {
    /// Returns the sample as Welch's test sees it.
    pub fn arm(&self) -> Arm {
        match self {
            Sample::Mean(arm) => *arm,
            Sample::Share(count) => Arm::proportion(count.users, count.converted),
        }
    }
}

/// How far a comparison is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Fully.
    Ok,
    /// A variant has no users; nothing is estimated.
    NoData,
    /// A variant has fewer than 2 users; the difference is known, its precision is not.
    InsufficientSample,
    /// No user differs from another one in either variant.
    ZeroVariance,
    /// All or none of one variant converted: only exact methods apply.
    ExactOnly,
    /// The control's mean is 0: there is no relative difference.
    ZeroBaseline,
    /// The control's mean cannot be told apart from 0: the relative difference has no bounded interval.
    UnboundedRelativeCi,
    /// The denominator of a ratio sums to 0 in a variant; only the numerators are known.
    ZeroDenominator,
}

impl Status {
    /// Returns the status as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::NoData => "no_data",
            Status::InsufficientSample => "insufficient_sample",
            Status::ZeroVariance => "zero_variance",
            Status::ExactOnly => "exact_only",
            Status::ZeroBaseline => "zero_baseline",
            Status::UnboundedRelativeCi => "unbounded_relative_ci",
            Status::ZeroDenominator => "zero_denominator",
        }
    }
}

/// A p-value with its decimal logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PValue {
    /// The p-value; 0 where it underflows.
    pub p: f64,
    /// Its decimal logarithm, always finite.
    pub log10: f64,
}

/// Exact results for shares with few counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exact {
    /// Fisher's two-sided test; `None` where it would look at too many tables.
    pub fisher: Option<PValue>,
    /// Newcombe's interval of the difference.
    pub newcombe: (f64, f64),
}

/// One variant against the control.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// How far it is defined.
    pub status: Status,
    /// Treatment minus control; `None` if a variant has no users.
    pub estimate: Option<f64>,
    /// Welch's test and interval, where both arms together have some variance and neither is a share at its border.
    pub welch: Option<Difference>,
    /// The relative difference; its interval is `None` where it is unbounded.
    pub relative: Option<Lift>,
    /// The relative difference where only that is known and no interval.
    pub lift: Option<f64>,
    /// Exact results, for shares with few counts.
    pub exact: Option<Exact>,
}

impl Comparison {
    /// Returns the p-value on which decisions rest: Fisher's where counts are few, else Welch's.
    pub fn decisive(&self) -> Option<PValue> {
        match self.exact.and_then(|exact| exact.fisher) {
            Some(fisher) => Some(fisher),
            None => self.welch.map(|welch| PValue { p: welch.p_value, log10: welch.log10_p }),
        }
    }

    fn undefined(status: Status, estimate: Option<f64>) -> Self {
        Comparison { status, estimate, welch: None, relative: None, lift: None, exact: None }
    }
}

/// Compares a treatment with the control at confidence 1 - `alpha`. Both samples are of the same sort.
pub fn compare(control: &Sample, treatment: &Sample, alpha: f64) -> Comparison {
    let (control_arm, treatment_arm) = (control.arm(), treatment.arm());
    let estimate = treatment_arm.mean - control_arm.mean;
    let counts = match (control, treatment) {
        (Sample::Share(control), Sample::Share(treatment)) => Some((*control, *treatment)),
        _ => None,
    };
    let difference = welch(&control_arm, &treatment_arm, alpha, counts.is_none());
    let exact =
        counts.filter(|(control, treatment)| control.is_small() || treatment.is_small()).and_then(|(control, treatment)| {
            let fisher = fisher(control, treatment).map(|tail| PValue { p: tail.p, log10: tail.log10() });
            Some(Exact { fisher, newcombe: newcombe(control, treatment, alpha)? })
        });
    let lift_only = (control_arm.mean != 0.0).then(|| estimate / control_arm.mean.abs());
    let difference = match difference {
        Ok(difference) => difference,
        Err(NotTested::NoData) => return Comparison::undefined(Status::NoData, None),
        Err(NotTested::TooFewUsers) => {
            return Comparison { lift: lift_only, ..Comparison::undefined(Status::InsufficientSample, Some(estimate)) };
        }
        Err(NotTested::ZeroVariance) => {
            return Comparison { lift: lift_only, exact, ..Comparison::undefined(Status::ZeroVariance, Some(estimate)) };
        }
    };
    let at_border = counts.is_some() && (control_arm.variance == 0.0 || treatment_arm.variance == 0.0);
    let relative = lift(&control_arm, &treatment_arm, &difference).filter(|_| !at_border);
    let status = match relative {
        _ if control_arm.mean == 0.0 => Status::ZeroBaseline,
        _ if at_border => Status::ExactOnly,
        Some(Lift { interval: None, .. }) => Status::UnboundedRelativeCi,
        _ => Status::Ok,
    };
    Comparison { status, estimate: Some(estimate), welch: (!at_border).then_some(difference), relative, lift: lift_only, exact }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden;
    use crate::moments::Moments;
    use ethnum::I256;
    use serde_json::Value;

    /// Reads the statistics of one variant of a golden case.
    pub(crate) fn arm_of(value: &Value) -> Arm {
        sample_of(value).arm()
    }

    fn sample_of(value: &Value) -> Sample {
        let users = value["n"].as_u64().expect("n");
        if value["type"] == "proportion" {
            return Sample::Share(Count { users, converted: value["sum"].as_u64().expect("sum") });
        }
        let whole = |name: &str| i128::from(value[name].as_i64().expect("a whole number"));
        let squares = I256::from(whole("sum_squares") * Moments::SCALE * Moments::SCALE);
        Sample::Mean(Moments::from_parts(users, whole("sum") * Moments::SCALE, squares).arm().expect("fits"))
    }

    #[test]
    fn what_is_left_to_say_has_a_status() {
        let mut checked = 0;
        for case in golden::cases("lift", "lift_delta_t") {
            if !case.has("status") {
                continue;
            }
            let found = compare(&sample_of(&case.input["control"]), &sample_of(&case.input["treatment"]), case.number("alpha"));
            case.check_status(found.status.as_str());
            case.check("estimate", found.lift);
            let exact = found.exact.expect("few counts");
            case.check("p_fisher", exact.fisher.map(|p| p.p));
            case.check("newcombe_ci_low", exact.newcombe.0);
            case.check("newcombe_ci_high", exact.newcombe.1);
            assert_eq!(found.decisive(), exact.fisher, "{}", case.id);
            checked += 1;
        }
        assert_eq!(checked, 2);
    }

    #[test]
    fn each_status_keeps_what_is_defined() {
        let share = |users, converted| Sample::Share(Count { users, converted });
        let mean = |users, mean, variance| Sample::Mean(Arm { users, mean, variance });
        let check = |control: Sample, treatment: Sample, status: Status, kept: &str| {
            let found = compare(&control, &treatment, 0.05);
            let mut parts = Vec::new();
            for (name, present) in [
                ("estimate", found.estimate.is_some()),
                ("welch", found.welch.is_some()),
                ("lift", found.lift.is_some()),
                ("relative", found.relative.is_some()),
                ("exact", found.exact.is_some()),
            ] {
                parts.extend(present.then_some(name));
            }
            assert_eq!((found.status, parts.join(" ").as_str()), (status, kept), "{control:?} {treatment:?}");
        };
        check(share(0, 0), share(10, 1), Status::NoData, "");
        check(mean(0, 0.0, 0.0), mean(10, 1.0, 1.0), Status::NoData, "");
        check(mean(1, 2.0, 0.0), mean(10, 1.0, 1.0), Status::InsufficientSample, "estimate lift");
        check(mean(9, 2.0, 0.0), mean(10, 1.0, 0.0), Status::ZeroVariance, "estimate lift");
        check(share(9, 0), share(9, 0), Status::ZeroVariance, "estimate exact");
        check(share(9, 9), share(9, 0), Status::ZeroVariance, "estimate lift exact");
        check(share(100, 10), share(100, 0), Status::ExactOnly, "estimate lift exact");
        check(share(100, 0), share(100, 10), Status::ZeroBaseline, "estimate exact");
        check(mean(100, 0.0, 1.0), mean(100, 1.0, 1.0), Status::ZeroBaseline, "estimate welch");
        check(mean(20, 0.1, 3.0), mean(22, 0.4, 3.0), Status::UnboundedRelativeCi, "estimate welch lift relative");
        check(share(1_000, 5), share(1_000, 100), Status::Ok, "estimate welch lift relative exact");
        check(share(1_000, 50), share(1_000, 100), Status::Ok, "estimate welch lift relative");
        check(share(1, 1), share(1, 0), Status::ZeroVariance, "estimate lift exact");
    }
}
