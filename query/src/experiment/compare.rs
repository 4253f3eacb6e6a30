//! Moments -> statistics -> the part of the answer about metrics.

use std::collections::HashMap;

use uuid::Uuid;

use super::catalogue::{Aggregation, Configured, SCALE, cap_text};
use super::measure::Measured;
use crate::answer::{Absolute, Adjusted, Arm, Comparison, Experiment, Metric, Relative, Test, Variant};
use crate::error::Refusal;
use crate::statistics::comparison::{self, Sample, Status, compare};
use crate::statistics::distributions::student_isf;
use crate::statistics::moments::Overflow;
use crate::statistics::multiplicity::holm;
use crate::statistics::proportions::{Count, wilson};

/// Describes each metric by variant and compares each variant with the control.
/// # Errors
/// [`Refusal`] if a sum is too large to be exact.
pub fn metrics(
    experiment: &Experiment,
    variants: &[Variant],
    measured: &[(Configured, HashMap<Uuid, Measured>)],
) -> Result<Vec<Metric>, Refusal> {
    let mut p_values = Vec::new();
    let mut metrics = Vec::new();
    for (configured, found) in measured {
        let samples: Vec<Sample> = variants
            .iter()
            .map(|variant| sample(configured, variant, found.get(&variant.id)))
            .collect::<Result<_, Overflow>>()
            .map_err(|error| Refusal::limit("value_out_of_range", error.to_string()))?;
        let mut comparisons = Vec::new();
        // The control comes first.
        if let Some((control, others)) = variants.split_first().filter(|_| experiment.control_variant_id.is_some()) {
            for (variant, sample) in others.iter().zip(&samples[1..]) {
                let compared = compare(&samples[0], sample, experiment.alpha);
                if configured.role != "guardrail" {
                    p_values.push(compared.decisive().map(|p| p.p));
                }
                comparisons.push(describe(experiment, configured, (control, &samples[0]), (variant, sample), &compared));
            }
        }
        let arm = |(variant, sample): (&Variant, &Sample)| arm(experiment, configured, variant, sample, found.get(&variant.id));
        metrics.push(Metric {
            id: configured.name.clone(),
            kind: if configured.aggregation == Aggregation::ConversionRate { "proportion" } else { "mean" },
            role: configured.role.clone(),
            direction: configured.direction.clone(),
            window_days: configured.window_days.unwrap_or(experiment.conversion_window_days),
            currency: experiment.currency.clone().filter(|_| configured.aggregation == Aggregation::ValuePerUser),
            cap: cap_text(configured.cap),
            arms: variants.iter().zip(&samples).map(arm).collect(),
            comparisons,
        });
    }
    adjust(experiment, &mut metrics, &p_values);
    Ok(metrics)
}

fn sample(metric: &Configured, variant: &Variant, measured: Option<&Measured>) -> Result<Sample, Overflow> {
    let users = variant.users.unwrap_or(0);
    let measured = measured.copied().unwrap_or_default();
    Ok(match metric.aggregation {
        Aggregation::ConversionRate => Sample::Share(Count { users, converted: measured.converters.min(users) }),
        Aggregation::ValuePerUser => Sample::Mean(measured.values.over(users).arm()?),
        Aggregation::CountPerUser => Sample::Mean(measured.counts.over(users).arm()?),
    })
}

fn arm(experiment: &Experiment, metric: &Configured, variant: &Variant, sample: &Sample, measured: Option<&Measured>) -> Arm {
    let described = sample.arm();
    let measured = measured.copied().unwrap_or_default();
    let is_share = metric.aggregation == Aggregation::ConversionRate;
    let has_users = described.users > 0;
    let std_dev = (described.users > 1 || (is_share && has_users)).then(|| described.variance.sqrt());
    let interval = match sample {
        Sample::Share(count) => wilson(*count, experiment.alpha),
        // One value, or one and the same for all, tells nothing about precision.
        Sample::Mean(arm) => (arm.users > 1 && arm.variance > 0.0).then(|| {
            let half = student_isf(experiment.alpha / 2.0, (arm.users - 1) as f64) * (arm.variance / arm.users as f64).sqrt();
            (arm.mean - half, arm.mean + half)
        }),
    };
    Arm {
        variant_id: variant.id,
        users: described.users,
        numerator: match metric.aggregation {
            Aggregation::ConversionRate => Some(measured.converters),
            Aggregation::CountPerUser => u64::try_from(measured.counts.sum() / SCALE).ok(),
            Aggregation::ValuePerUser => None,
        },
        mean: has_users.then_some(described.mean),
        std_dev,
        ci: ends(interval),
        sum: (metric.aggregation == Aggregation::ValuePerUser).then(|| measured.values.sum_text()),
    }
}

fn ends(interval: Option<(f64, f64)>) -> [Option<f64>; 2] {
    [interval.map(|ends| ends.0), interval.map(|ends| ends.1)]
}

fn describe(
    experiment: &Experiment,
    metric: &Configured,
    control: (&Variant, &Sample),
    treatment: (&Variant, &Sample),
    compared: &comparison::Comparison,
) -> Comparison {
    let exact = compared.exact;
    let newcombe = exact.map(|exact| exact.newcombe);
    let fisher = exact.and_then(|exact| exact.fisher);
    let test = match (&compared.welch, fisher) {
        (Some(welch), _) => Test {
            name: "welch_t",
            statistic: Some(welch.t),
            dof: Some(welch.dof),
            p_value: Some(welch.p_value),
            log10_p: Some(welch.log10_p),
            p_fisher: fisher.map(|p| p.p),
        },
        (None, Some(p)) => Test {
            name: "fisher_exact",
            statistic: None,
            dof: None,
            p_value: Some(p.p),
            log10_p: Some(p.log10),
            p_fisher: Some(p.p),
        },
        (None, None) => Test { name: "welch_t", statistic: None, dof: None, p_value: None, log10_p: None, p_fisher: None },
    };
    let wants_more = metric.direction != "decrease";
    let verdict = match (compared.decisive(), compared.estimate) {
        (Some(p), Some(estimate)) if p.p < experiment.alpha && estimate != 0.0 => {
            if (estimate > 0.0) == wants_more {
                "won"
            } else {
                "lost"
            }
        }
        _ => "inconclusive",
    };
    Comparison {
        variant_id: treatment.0.id,
        status: compared.status.as_str(),
        approximation: if exact.is_some() { "exact" } else { "t" },
        absolute: Absolute {
            estimate: compared.estimate,
            std_error: compared.welch.map(|welch| welch.std_error),
            ci: ends(compared.welch.map(|welch| welch.interval).or(newcombe)),
            ci_newcombe: newcombe.map(|ends| [ends.0, ends.1]),
        },
        relative: Relative {
            lift: compared.lift,
            ci: ends(compared.relative.and_then(|relative| relative.interval)),
            ci_method: "fieller",
            g: compared.relative.map(|relative| relative.g),
            ci_delta: compared.relative.map(|relative| [relative.interval_delta.0, relative.interval_delta.1]),
        },
        test,
        adjusted: None,
        verdict,
        plain: plain(experiment, metric, control, treatment, compared),
    }
}

/// Puts the adjusted p-values in, in the order in which they were taken.
fn adjust(experiment: &Experiment, metrics: &mut [Metric], p_values: &[Option<f64>]) {
    let family_size = p_values.iter().flatten().count();
    let goals = metrics.iter_mut().filter(|metric| metric.role != "guardrail");
    let comparisons = goals.flat_map(|metric| &mut metric.comparisons);
    for (comparison, p_value) in comparisons.zip(holm(p_values)) {
        let Some(p_value) = p_value else { continue };
        let significant = p_value < experiment.alpha;
        if comparison.verdict != "inconclusive" && !significant {
            comparison.plain = format!(
                "{}; not significant after correction for {family_size} comparisons.",
                comparison.plain.trim_end_matches('.')
            );
        }
        comparison.adjusted = Some(Adjusted { method: "holm", family_size, p_value, significant });
    }
}

/// Says a comparison as a sentence, with the numbers of the answer.
fn plain(
    experiment: &Experiment,
    metric: &Configured,
    (control, control_sample): (&Variant, &Sample),
    (treatment, treatment_sample): (&Variant, &Sample),
    compared: &comparison::Comparison,
) -> String {
    if compared.status == Status::NoData {
        let empty = if control_sample.arm().users == 0 { control } else { treatment };
        return format!("{} has no users yet, so that nothing can be compared.", empty.name);
    }
    let amount = |value: f64| match (metric.aggregation, &experiment.currency) {
        (Aggregation::ConversionRate, _) => format!("{}%", short(value * 100.0)),
        (Aggregation::ValuePerUser, Some(currency)) => format!("{} {currency}", short(value)),
        _ => short(value),
    };
    let verb = match metric.aggregation {
        Aggregation::ConversionRate => "converts",
        Aggregation::ValuePerUser => "brings",
        Aggregation::CountPerUser => "counts",
    };
    let per_user = if metric.aggregation == Aggregation::ConversionRate { "" } else { " per user" };
    let (mean_control, mean_treatment) = (control_sample.arm().mean, treatment_sample.arm().mean);
    let mut text =
        format!("{} {verb} {}{per_user} vs {} in {}", treatment.name, amount(mean_treatment), amount(mean_control), control.name);
    let percent = |value: f64| format!("{}{}%", if value >= 0.0 { "+" } else { "" }, short(value * 100.0));
    if let Some(lift) = compared.lift {
        text.push_str(&format!(": {}", percent(lift)));
        if let Some(ends) = compared.relative.and_then(|relative| relative.interval) {
            let confidence = short(experiment.confidence_level * 100.0);
            text.push_str(&format!(" ({confidence}% CI {} to {})", percent(ends.0), percent(ends.1)));
        }
    }
    match compared.decisive() {
        Some(p) if p.p < experiment.alpha => text.push_str(&format!(", p = {}.", p_text(p.p))),
        Some(p) => text.push_str(&format!(", p = {}; no difference is shown.", p_text(p.p))),
        None => text.push_str("; too little is known to test it."),
    }
    text
}

/// Writes a number with three significant digits, and no fraction where it has none.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor() as i32;
    let decimals = usize::try_from(2 - magnitude).unwrap_or(0).min(12);
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Writes a p-value with two significant digits.
pub fn p_text(p: f64) -> String {
    if p >= 0.095 {
        format!("{p:.2}")
    } else if p >= 0.000_95 {
        let decimals = if p >= 0.0095 { 3 } else { 4 };
        format!("{p:.decimals$}")
    } else if p > 0.0 {
        format!("{p:.1e}")
    } else {
        "below 1e-300".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let check = |value: f64, expected: &str| assert_eq!(short(value), expected);
        check(0.0, "0");
        check(11.0, "11");
        check(11.04, "11");
        check(1.444, "1.44");
        check(-0.012_345, "-0.0123");
        check(123_456.7, "123457");
        check(100.0, "100");
        let check = |p: f64, expected: &str| assert_eq!(p_text(p), expected);
        check(0.41, "0.41");
        check(0.0211, "0.021");
        check(0.0011, "0.0011");
        check(2.07e-121, "2.1e-121");
        check(0.0, "below 1e-300");
    }
}
