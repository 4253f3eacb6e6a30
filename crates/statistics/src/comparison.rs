//! One variant against the control: which methods apply, and what is left to say where they do not.

use crate::difference::Difference;
use crate::distributions::{PValue, student_isf};
use crate::effect::{Effect, Status, Undefined, heterogeneity};
use crate::means::{Arm, NotTested};
use crate::proportions::{Count, fisher, fisher_over_strata, homogeneity, newcombe, wilson};
use crate::strata::{combined, of_arms};

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

    /// Returns the interval of the variant's own mean at 1 - `alpha`: Wilson's of a share, else Student's. `None` without
    /// users, and for means of which one value, or one and the same for all, tells nothing about precision.
    pub fn interval(&self, alpha: f64) -> Option<(f64, f64)> {
        match self {
            Sample::Share(count) => wilson(*count, alpha),
            Sample::Mean(arm) => (arm.users > 1 && arm.variance > 0.0).then(|| {
                let half = student_isf(alpha / 2.0, (arm.users - 1) as f64) * arm.variance_of_mean().sqrt();
                (arm.mean - half, arm.mean + half)
            }),
        }
    }
}

/// One variant of a metric, as far as it is defined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Number of users.
    pub users: u64,
    /// The mean over users, or the ratio or quantile; `None` where it is not defined.
    pub mean: Option<f64>,
    /// What a test takes, or why there is nothing to test.
    pub sample: Result<Sample, Status>,
}

impl Observed {
    /// Says that nothing but the number of users and perhaps the mean is known, and why.
    pub fn undefined(users: u64, mean: Option<f64>, status: Status) -> Self {
        Observed { users, mean, sample: Err(status) }
    }
}

impl From<Sample> for Observed {
    fn from(sample: Sample) -> Self {
        let arm = sample.arm();
        match arm.users {
            0 => Observed::undefined(0, None, Status::NoData),
            users => Observed { users, mean: Some(arm.mean), sample: Ok(sample) },
        }
    }
}

/// Exact results for shares with few counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exact {
    /// Fisher's two-sided test; `None` where it would look at too many tables.
    pub fisher: Option<PValue>,
    /// Newcombe's interval of the difference; `None` over strata.
    pub newcombe: Option<(f64, f64)>,
}

/// One variant against the control.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// How far it is defined.
    pub status: Status,
    /// Treatment minus control; `None` if a variant has no users.
    pub estimate: Option<f64>,
    /// The same in shares of the control; `None` also if that is 0.
    pub lift: Option<f64>,
    /// The difference with its precision, where both variants together have some variance and neither is a share at its
    /// border.
    pub difference: Option<Difference>,
    /// The difference as tests that allow for looks take it: see [`difference_for_looks`].
    pub for_looks: Option<Difference>,
    /// Exact results, for shares with few counts.
    pub exact: Option<Exact>,
}

impl Comparison {
    /// Returns Fisher's p-value, where counts are few.
    pub fn fisher(&self) -> Option<PValue> {
        self.exact.and_then(|exact| exact.fisher)
    }

    /// Returns the p-value on which the decision of one look rests: Fisher's where counts are few, else Student's.
    pub fn p_value(&self) -> Option<PValue> {
        self.fisher().or_else(|| self.difference.map(|difference| difference.p_value()))
    }

    /// Returns the p-value of a method that rests on many counts, or Fisher's where counts are few and it is the greater one:
    /// then the exact test has to agree.
    pub fn at_least_exact(&self, p_value: PValue) -> PValue {
        self.fisher().filter(|fisher| fisher.p > p_value.p).unwrap_or(p_value)
    }

    /// Returns the same comparison resting on another estimate of the same difference, such as an adjusted one.
    pub fn adjusted(self, difference: Difference) -> Self {
        Comparison {
            estimate: Some(difference.estimate),
            lift: difference.lift(),
            difference: Some(difference),
            for_looks: Some(difference),
            ..self
        }
    }

    /// Returns the interval of the difference at 1 - `alpha` that holds for one look: Newcombe's where only exact methods
    /// apply.
    pub fn interval(&self, alpha: f64) -> Option<(f64, f64)> {
        match self.difference {
            Some(difference) => Some(difference.absolute(difference.critical(alpha))),
            None => self.exact.and_then(|exact| exact.newcombe),
        }
    }
}

/// Measures the difference between a treatment and the control. Both are of the same sort.
/// # Errors
/// [`Undefined`] by the first of: a variant without users; one whose sample is undefined; a mean of fewer than 2 users; no
/// variance at all; a share of which all or none converted, for which only exact methods are left.
pub fn difference(control: &Observed, treatment: &Observed) -> Result<Difference, Undefined> {
    let undefined = |status| Undefined::of(status, control.mean, treatment.mean);
    let (one, two) = match (control.sample, treatment.sample) {
        (Ok(one), Ok(two)) => (one, two),
        (Err(Status::NoData), _) | (_, Err(Status::NoData)) => return Err(undefined(Status::NoData)),
        (Err(status), _) | (_, Err(status)) => return Err(undefined(status)),
    };
    let is_share = matches!((one, two), (Sample::Share(_), Sample::Share(_)));
    let (one, two) = (one.arm(), two.arm());
    let found = Difference::welch(&one, &two, !is_share).map_err(|reason| {
        undefined(match reason {
            NotTested::NoData => Status::NoData,
            NotTested::TooFewUsers => Status::InsufficientSample,
            NotTested::ZeroVariance => Status::ZeroVariance,
        })
    })?;
    let is_at_border = is_share && (one.variance == 0.0 || two.variance == 0.0);
    if is_at_border { Err(undefined(Status::ExactOnly)) } else { Ok(found) }
}

/// Measures the difference as a test takes it that allows for looks, and so has no exact form: of shares it is
/// [`Difference::pooled`]. That is there also where nobody or everybody of one variant converted, raises no more false alarms
/// where the variants have uneven parts of the traffic, and an arm never has less evidence against it for converting fewer.
/// # Errors
/// [`Undefined`], as [`difference()`]; not for one variant of which nobody or everybody converted.
pub fn difference_for_looks(control: &Observed, treatment: &Observed) -> Result<Difference, Undefined> {
    let pooled = match (control.sample, treatment.sample) {
        (Ok(Sample::Share(one)), Ok(Sample::Share(two))) => Difference::pooled(one, two),
        _ => None,
    };
    pooled.map_or_else(|| difference(control, treatment), Ok)
}

/// Compares a treatment with the control at confidence 1 - `alpha`. Both are of the same sort.
pub fn compare(control: &Observed, treatment: &Observed, alpha: f64) -> Comparison {
    let found = difference(control, treatment);
    let exact = match (control.sample, treatment.sample) {
        (Ok(Sample::Share(one)), Ok(Sample::Share(two))) => exact(one, two, alpha),
        _ => None,
    };
    let for_looks = difference_for_looks(control, treatment).ok();
    comparison(found, control.mean, for_looks, exact, alpha)
}

/// Says how far a comparison is defined.
fn comparison(
    found: Result<Difference, Undefined>,
    baseline: Option<f64>,
    for_looks: Option<Difference>,
    exact: Option<Exact>,
    alpha: f64,
) -> Comparison {
    let status = match &found {
        Err(undefined) if undefined.status == Status::ExactOnly && baseline == Some(0.0) => Status::ZeroBaseline,
        Err(undefined) => undefined.status,
        Ok(difference) if difference.baseline == 0.0 => Status::ZeroBaseline,
        Ok(difference) if difference.relative(difference.critical(alpha)).is_none() => Status::UnboundedRelativeCi,
        Ok(_) => Status::Ok,
    };
    let (estimate, lift) = match &found {
        Ok(difference) => (Some(difference.estimate), difference.lift()),
        Err(undefined) => (undefined.estimate, undefined.lift),
    };
    Comparison { status, estimate, lift, difference: found.ok(), for_looks, exact }
}

/// Users who were assigned in the same shares: control and treatment, both of the same sort.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stratum {
    /// Those of the control.
    pub control: Observed,
    /// Those of the treatment.
    pub treatment: Observed,
    /// Their difference with earlier behaviour taken off, where it is.
    pub adjusted: Option<Difference>,
}

impl Stratum {
    /// Returns whether the stratum can be compared: both variants have more than one user.
    pub fn is_compared(&self) -> bool {
        let is_enough = |observed: &Observed| observed.sample.is_ok_and(|sample| sample.arm().users > 1);
        is_enough(&self.control) && is_enough(&self.treatment)
    }

    fn users(&self) -> u64 {
        self.control.users + self.treatment.users
    }

    fn counts(&self) -> Option<(Count, Count)> {
        match (self.control.sample, self.treatment.sample) {
            (Ok(Sample::Share(control)), Ok(Sample::Share(treatment))) => Some((control, treatment)),
            _ => None,
        }
    }

    /// Both, shares with the variance that has no bias, as the means of the stratum have it.
    fn arms(&self) -> Option<(Arm, Arm)> {
        let arm = |observed: &Observed| {
            let (sample, arm) = (observed.sample.ok()?, observed.sample.ok()?.arm());
            let unbiased = arm.variance * arm.users as f64 / (arm.users as f64 - 1.0);
            Some(if matches!(sample, Sample::Share(_)) { Arm { variance: unbiased, ..arm } } else { arm })
        };
        Some((arm(&self.control)?, arm(&self.treatment)?))
    }

    /// The difference as tests that allow for looks take it: of shares with the variance of both together.
    fn for_looks(&self) -> Option<Difference> {
        let (mut control, mut treatment) = self.arms()?;
        if let Some((one, two)) = self.counts() {
            let rate = (one.converted + two.converted) as f64 / self.users() as f64;
            (control.variance, treatment.variance) = (rate * (1.0 - rate), rate * (1.0 - rate));
        }
        Some(self.adjusted.unwrap_or_else(|| of_arms(&control, &treatment)))
    }
}

/// Compares a treatment with the control at confidence 1 - `alpha` within each stratum, and weighs the differences by users: users who
/// were assigned in other shares are never compared with each other. Strata that cannot be compared are left out.
/// Source: Crook, Frasca, Kohavi, Longbotham 2009, Seven Pitfalls to Avoid when Running Controlled Experiments on the Web, KDD 15,
/// 1105-1114, of what pooling does; the estimate as of [`crate::strata::post_stratified`].
pub fn compare_strata(strata: &[Stratum], alpha: f64) -> Comparison {
    let used: Vec<&Stratum> = strata.iter().filter(|stratum| stratum.is_compared()).collect();
    let plain = |stratum: &&Stratum| {
        let (control, treatment) = stratum.arms()?;
        Some((stratum.users(), stratum.adjusted.unwrap_or_else(|| of_arms(&control, &treatment))))
    };
    let found = combined(&used.iter().filter_map(plain).collect::<Vec<_>>());
    let for_looks =
        combined(&used.iter().filter_map(|stratum| Some((stratum.users(), stratum.for_looks()?))).collect::<Vec<_>>());
    let counts: Option<Vec<(Count, Count)>> = used.iter().map(|stratum| stratum.counts()).collect();
    let counts = counts.filter(|counts| !counts.is_empty());
    let pooled = counts.as_ref().map(|counts| {
        let add = |one: Count, two: Count| Count { users: one.users + two.users, converted: one.converted + two.converted };
        let none = Count { users: 0, converted: 0 };
        counts.iter().fold((none, none), |(control, treatment), stratum| (add(control, stratum.0), add(treatment, stratum.1)))
    });
    let is_at_border =
        pooled.is_some_and(|(one, two)| [one, two].iter().any(|count| count.converted == 0 || count.converted == count.users));
    let undefined = |status| Err(Undefined::of(status, Some(found.baseline), Some(found.treatment)));
    let difference = if used.is_empty() {
        let has_users = strata.iter().any(|stratum| stratum.control.users > 0 && stratum.treatment.users > 0);
        let status = if has_users { Status::InsufficientSample } else { Status::NoData };
        Err(Undefined::of(status, None, None))
    } else if for_looks.std_error <= 0.0 {
        undefined(Status::ZeroVariance)
    } else if is_at_border {
        undefined(Status::ExactOnly)
    } else {
        Ok(found)
    };
    let is_small = pooled.is_some_and(|(control, treatment)| control.is_small() || treatment.is_small());
    let exact =
        counts.filter(|_| is_small).map(|counts| Exact { fisher: fisher_over_strata(&counts).map(PValue::from), newcombe: None });
    let for_looks = Some(for_looks).filter(|for_looks| !used.is_empty() && for_looks.std_error > 0.0);
    comparison(difference, Some(found.baseline), for_looks, exact, alpha)
}

fn exact(control: Count, treatment: Count, alpha: f64) -> Option<Exact> {
    if !control.is_small() && !treatment.is_small() {
        return None;
    }
    let newcombe = newcombe(control, treatment, alpha)?;
    Some(Exact { fisher: fisher(control, treatment).map(PValue::from), newcombe: Some(newcombe) })
}

/// A test that several variants are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Omnibus {
    /// The chi-square statistic.
    pub statistic: f64,
    /// Its degrees of freedom.
    pub dof: f64,
    /// For one look.
    pub p_value: PValue,
}

/// Tests whether all variants are alike: shares by their counts, means with variances that may differ. `None` for fewer than
/// two, or if one of them has no precision.
pub fn omnibus(variants: &[Observed]) -> Option<Omnibus> {
    let samples: Option<Vec<Sample>> = variants.iter().map(|variant| variant.sample.ok()).collect();
    let samples = samples?;
    let count = |sample: &Sample| if let Sample::Share(count) = sample { Some(*count) } else { None };
    if let Some(counts) = samples.iter().map(count).collect::<Option<Vec<Count>>>() {
        let dof = counts.len().checked_sub(1)? as f64;
        return homogeneity(&counts).map(|(statistic, tail)| Omnibus { statistic, dof, p_value: tail.into() });
    }
    let mean = |sample: &Sample| {
        let arm = sample.arm();
        (arm.users > 1 && arm.variance > 0.0).then(|| Effect {
            estimate: arm.mean,
            std_error: arm.variance_of_mean().sqrt(),
            dof: (arm.users - 1) as f64,
        })
    };
    let found = heterogeneity(&samples.iter().map(mean).collect::<Option<Vec<Effect>>>()?)?;
    Some(Omnibus { statistic: found.statistic, dof: found.dof, p_value: found.p_value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributions::chi_square_sf;
    use crate::sequential::{Tuning, confidence_sequence};
    use proptest::prelude::*;

    #[test]
    fn each_status_keeps_what_is_defined() {
        let share = |users, converted| Sample::Share(Count { users, converted }).into();
        let mean = |users, mean, variance| Sample::Mean(Arm { users, mean, variance }).into();
        let check = |control: Observed, treatment: Observed, status: Status, kept: &str| {
            let found = compare(&control, &treatment, 0.05);
            let relative = found.difference.and_then(|difference| difference.relative(difference.critical(0.05)));
            let mut parts = Vec::new();
            for (name, present) in [
                ("estimate", found.estimate.is_some()),
                ("difference", found.difference.is_some()),
                ("lift", found.lift.is_some()),
                ("relative", relative.is_some()),
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
        check(mean(100, 0.0, 1.0), mean(100, 1.0, 1.0), Status::ZeroBaseline, "estimate difference");
        check(mean(20, 0.1, 3.0), mean(22, 0.4, 3.0), Status::UnboundedRelativeCi, "estimate difference lift");
        check(share(1_000, 5), share(1_000, 100), Status::Ok, "estimate difference lift relative exact");
        check(share(1_000, 50), share(1_000, 100), Status::Ok, "estimate difference lift relative");
        check(share(1, 1), share(1, 0), Status::ZeroVariance, "estimate lift exact");
        let unknown = |users, mean, status| Observed::undefined(users, mean, status);
        check(unknown(5, None, Status::ZeroDenominator), mean(9, 1.0, 1.0), Status::ZeroDenominator, "");
        check(unknown(5, Some(2.0), Status::InsufficientSample), unknown(0, None, Status::NoData), Status::NoData, "");
        check(unknown(5, Some(2.0), Status::ZeroVariance), mean(9, 1.0, 1.0), Status::ZeroVariance, "estimate lift");
    }

    #[test]
    fn few_counts_are_decided_exactly() {
        let share = |users, converted| Sample::Share(Count { users, converted }).into();
        let found = compare(&share(1_000, 5), &share(1_000, 20), 0.05);
        let fisher = found.fisher().expect("few counts");
        assert_eq!(found.p_value(), Some(fisher));
        let (less, more) = (fisher.times(0.5), fisher.times(2.0));
        assert_eq!((found.at_least_exact(less), found.at_least_exact(more)), (fisher, more));
        let none = compare(&share(100, 10), &share(100, 0), 0.05);
        assert_eq!(none.interval(0.05), none.exact.and_then(|exact| exact.newcombe));
    }

    #[test]
    fn looks_have_evidence_where_nobody_of_a_variant_converted() {
        let share = |users, converted| Observed::from(Sample::Share(Count { users, converted }));
        let z = |control, treatment| compare(&control, &treatment, 0.05).for_looks.map(|found| found.z());
        // By SciPy: (40/3000) / sqrt(p (1 - p) 2/3000) of p = 40/6000.
        assert!(z(share(3_000, 40), share(3_000, 0)).is_some_and(|z| (z + 6.345_743_169_703_525).abs() < 1e-9));
        assert!(z(share(6_000, 1), share(6_000, 40)).is_some_and(|z| (z - 6.101_208_529_694_155).abs() < 1e-9));
        assert_eq!((z(share(9, 0), share(9, 0)), z(share(9, 9), share(9, 9))), (None, None));
        // The p-values of a sequence that is tightest at 5,000, by its formula.
        let tuning = Tuning { tightest_at: 5_000.0, alpha: 0.05 };
        let p = |control, treatment, users| {
            let z = z(control, treatment).expect("some variance");
            confidence_sequence(z, users, 0.05, &tuning).p_value.p
        };
        assert!((p(share(3_000, 40), share(3_000, 0), 6_000) / 3.961_159_683_572e-8 - 1.0).abs() < 1e-9);
        assert!((p(share(6_000, 1), share(6_000, 40), 12_000) / 9.353_863_305_024e-8 - 1.0).abs() < 1e-9);
        // With uneven parts of the traffic Welch's variance is that of the small arm alone, and its test raises false alarms.
        let found = compare(&share(9_000, 200), &share(1_000, 10), 0.05);
        let (looks, welch) = (found.for_looks.expect("some variance"), found.difference.expect("some variance"));
        assert!(looks.z().abs() < 2.6 && welch.z().abs() > 3.4, "{looks:?} {welch:?}");
    }

    /// Crook et al. 2009, table 1: on Friday 1 % of the users get the treatment, on Saturday half. Within each day it is better, pooled it is
    /// worse. By hand: 0.0027980 and 0.002, weighted by users.
    #[test]
    fn days_of_other_shares_are_not_pooled() {
        let share = |users, converted| Observed::from(Sample::Share(Count { users, converted }));
        let day = |control, treatment| Stratum { control, treatment, adjusted: None };
        let (friday, saturday) =
            (day(share(990_000, 20_000), share(10_000, 230)), day(share(500_000, 5_000), share(500_000, 6_000)));
        let found = compare_strata(&[friday, saturday], 0.05);
        let difference = found.difference.expect("defined");
        assert!(
            (difference.estimate - 0.002_398_990).abs() < 1e-9 && (difference.std_error - 0.000_760_071).abs() < 1e-9,
            "{found:?}"
        );
        assert!((difference.z() - 3.156).abs() < 1e-3 && (difference.baseline - 0.015_101).abs() < 1e-6, "{found:?}");
        assert!((found.lift.expect("a baseline") - 0.158_9).abs() < 1e-4 && found.status == Status::Ok && found.exact.is_none());
        assert!(found.for_looks.is_some_and(|looks| (looks.estimate - difference.estimate).abs() < 1e-12));
        let pooled = compare(&share(1_490_000, 25_000), &share(510_000, 6_230), 0.05).difference.expect("defined");
        assert!((pooled.estimate + 0.004_562_837).abs() < 1e-9 && (pooled.z() + 24.5).abs() < 0.1, "{pooled:?}");
        // A day that lacks a variant is left out, and of one day it is that day's.
        let empty = day(share(500, 5), share(0, 0));
        assert_eq!(compare_strata(&[friday, empty, saturday], 0.05), found);
        let (one, alone) = (compare_strata(&[friday], 0.05), compare(&friday.control, &friday.treatment, 0.05));
        let close = |one: Option<Difference>, two: Option<Difference>| {
            let (one, two) = (one.expect("defined"), two.expect("defined"));
            (one.estimate - two.estimate).abs() < 1e-15 && (one.std_error / two.std_error - 1.0).abs() < 1e-4
        };
        assert!(close(one.difference, alone.difference) && close(one.for_looks, alone.for_looks), "{one:?} {alone:?}");
    }

    #[test]
    fn strata_say_what_is_undefined() {
        let share = |users, converted| Observed::from(Sample::Share(Count { users, converted }));
        let mean = |users, mean, variance| Observed::from(Sample::Mean(Arm { users, mean, variance }));
        let check = |strata: &[(Observed, Observed)], status: Status, has_looks: bool, has_exact: bool| {
            let strata: Vec<_> = strata
                .iter()
                .map(|(control, treatment)| Stratum { control: *control, treatment: *treatment, adjusted: None })
                .collect();
            let found = compare_strata(&strata, 0.05);
            assert_eq!(
                (found.status, found.for_looks.is_some(), found.exact.is_some()),
                (status, has_looks, has_exact),
                "{strata:?}"
            );
            assert_eq!(found.difference.is_some(), status == Status::Ok);
        };
        check(&[], Status::NoData, false, false);
        check(&[(share(5, 1), share(0, 0))], Status::NoData, false, false);
        check(&[(mean(1, 5.0, 0.0), mean(9, 1.0, 1.0))], Status::InsufficientSample, false, false);
        check(&[(mean(9, 5.0, 0.0), mean(9, 1.0, 0.0))], Status::ZeroVariance, false, false);
        check(&[(share(900, 0), share(900, 0)), (share(900, 30), share(900, 0))], Status::ExactOnly, true, true);
        check(&[(share(900, 0), share(900, 1)), (share(900, 30), share(900, 40))], Status::Ok, true, false);
        check(&[(share(900, 2), share(900, 1)), (share(900, 3), share(900, 40))], Status::Ok, true, true);
    }

    #[test]
    fn several_variants_are_tested_together() {
        let mean = |mean| Observed::from(Sample::Mean(Arm { users: 100, mean, variance: 100.0 }));
        assert_eq!(omnibus(&[mean(1.0)]), None);
        // Each mean has a variance of 1: (1 - 2)^2 + (3 - 2)^2.
        let found = omnibus(&[mean(1.0), mean(3.0)]).expect("two variants");
        assert!((found.statistic - 2.0).abs() < 1e-12 && found.dof == 1.0, "{found:?}");
        assert_eq!(found.p_value, chi_square_sf(found.statistic, 1.0).into());
        assert_eq!(omnibus(&[mean(1.0), Observed::undefined(5, None, Status::NoData)]), None);
        let share = |converted| Observed::from(Sample::Share(Count { users: 100, converted }));
        assert!(omnibus(&[share(10), share(10), share(40)]).is_some_and(|found| found.dof == 2.0 && found.p_value.p < 1e-6));
    }

    proptest! {
        /// One conversion less in the weaker arm, with few or many, down to none.
        #[test]
        fn fewer_conversions_in_the_weaker_arm_never_weaken_the_evidence(
            nc in 1u64..20_000, nt in 1u64..20_000, xc in 0u64..400, xt in 1u64..400,
        ) {
            let (control, treatment) = (Count { users: nc, converted: xc.min(nc) }, Count { users: nt, converted: xt.min(nt) });
            prop_assume!(treatment.rate() < control.rate());
            let z = |treatment: Count| {
                difference_for_looks(&Sample::Share(control).into(), &Sample::Share(treatment).into()).map(|found| found.z())
            };
            let fewer = z(Count { converted: treatment.converted - 1, ..treatment });
            if let (Ok(fewer), Ok(more)) = (fewer, z(treatment)) {
                prop_assert!(fewer <= more, "{} {} of {:?} {:?}", fewer, more, control, treatment);
            }
        }
    }

    #[test]
    fn the_interval_of_a_mean_needs_a_spread() {
        let mean = |users, variance| Sample::Mean(Arm { users, mean: 1.0, variance }).interval(0.05);
        assert_eq!((mean(1, 0.0), mean(9, 0.0)), (None, None));
        assert!(mean(100, 1.0).is_some_and(|(low, high)| (low - 0.8016).abs() < 1e-3 && (high - 1.1984).abs() < 1e-3));
    }
}
