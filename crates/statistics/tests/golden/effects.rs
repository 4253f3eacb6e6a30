//! Methods that compare a treatment with a control by a normal or t-distributed effect.

use serde_json::{Value, json};
use statistics::bayes_normal::{self, posterior};
use statistics::comparison::{Comparison, Observed, Sample, compare, difference};
use statistics::difference::Difference;
use statistics::effect::{Alternative, Effect, Scale, Status, Undefined};
use statistics::guardrail::{Direction, non_inferiority, two_sided};
use statistics::power::{Target, mid_experiment};
use statistics::regression::{Adjusted, Coefficients, JointSums, Term, adjusted};
use statistics::sequential::{Tuning, confidence_sequence};
use statistics::strata::{Cell, Traffic, impact_per_day, post_stratified};

use crate::input;

/// Returns the fields of a case, or `None` if the method is not one of these.
pub(crate) fn answer(method: &str, given: &Value) -> Option<Value> {
    Some(match method {
        "welch_t" => welch_t(given),
        "lift_delta_t" => lift_delta_t(given),
        "lift_fieller_t" => lift_fieller_t(given),
        "ratio_delta_t" => ratio_delta_t(given),
        "quantile_clustered_t" => quantile_clustered_t(given),
        "quantile_t" => quantile_t(given),
        "cuped_t" => cuped_t(given),
        "cuped_ratio_t" => cuped_ratio_t(given),
        "bayes_normal" => bayes_normal(given),
        "asymptotic_confidence_sequence" => sequence(given),
        "non_inferiority_z" | "two_sided_z_unpooled" => non_inferiority_z(given),
        "welch_t_binomial" => welch_t_binomial(given),
        "mid_experiment_power" => mid_experiment_power(given),
        "post_stratified_lift" => post_stratified_lift(given),
        "scaled_impact_per_day" => scaled_impact(given),
        _ => return None,
    })
}

fn observed(given: &Value) -> (Observed, Observed) {
    (input::observed(&given["control"]), input::observed(&given["treatment"]))
}

/// The effect of a case in the terms that it asks for.
fn effect(given: &Value) -> Result<Effect, Undefined> {
    let (control, treatment) = observed(given);
    difference(&control, &treatment).and_then(|found| found.effect(input::scale(given)))
}

fn alpha(given: &Value) -> f64 {
    input::optional(given, "alpha").unwrap_or(0.05)
}

/// Adds the fields of `more` to an answer.
fn with(mut answer: Value, more: Value) -> Value {
    let fields = more.as_object().expect("an object").clone();
    answer.as_object_mut().expect("an object").extend(fields);
    answer
}

/// The exact results of a comparison, where counts are few.
fn exact(compared: &Comparison) -> Value {
    json!({
        "p_fisher": compared.fisher().map(|p| p.p),
        "log10_p_fisher": compared.fisher().map(|p| p.log10),
        "newcombe_ci_low": compared.exact.and_then(|exact| exact.newcombe).map(|interval| interval.0),
        "newcombe_ci_high": compared.exact.and_then(|exact| exact.newcombe).map(|interval| interval.1),
        "absolute_estimate": compared.estimate,
    })
}

fn interval(difference: Option<Difference>, alpha: f64) -> (Option<f64>, Option<f64>) {
    difference.map(|found| found.absolute(found.critical(alpha))).unzip()
}

fn welch_t(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let compared = compare(&control, &treatment, alpha(given));
    let welch = compared.difference;
    // This method is about the difference; what its relative form lacks is no fault.
    let status = match compared.status {
        Status::ZeroBaseline if welch.is_none() => Status::ExactOnly,
        Status::ZeroBaseline | Status::UnboundedRelativeCi => Status::Ok,
        status => status,
    };
    let (low, high) = interval(welch, alpha(given));
    let answer = json!({
        "status": status.as_str(),
        "estimate": compared.estimate,
        "std_error": welch.map(|found| found.std_error),
        "t": welch.map(|found| found.z()),
        "dof": welch.map(|found| found.dof),
        "p_value": welch.map(|found| found.p_value().p),
        "log10_p_value": welch.map(|found| found.p_value().log10),
        "t_crit": welch.map(|found| found.critical(alpha(given))),
        "ci_low": low,
        "ci_high": high,
        "mean_control": control.mean,
        "mean_treatment": treatment.mean,
    });
    with(answer, exact(&compared))
}

/// The fields of an effect with its test.
fn tested(found: Result<Effect, Undefined>, given: &Value) -> Value {
    match found {
        Ok(effect) => {
            let test = effect.test(input::alternative(given), alpha(given));
            json!({
                "status": "ok",
                "estimate": effect.estimate,
                "std_error": effect.std_error,
                "dof": effect.dof,
                "p_value": test.p_value,
                "log10_p_value": test.log10_p,
                "ci_low": test.low,
                "ci_high": test.high,
            })
        }
        Err(undefined) => json!({
            "status": undefined.status.as_str(),
            "estimate": estimate(&undefined, given),
            "std_error": null,
            "dof": null,
            "p_value": null,
            "log10_p_value": null,
            "ci_low": null,
            "ci_high": null,
        }),
    }
}

fn estimate(undefined: &Undefined, given: &Value) -> Option<f64> {
    if input::scale(given) == Scale::Absolute { undefined.estimate } else { undefined.lift }
}

fn lift_delta_t(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let mut answer = tested(effect(given), given);
    let compared = compare(&control, &treatment, alpha(given));
    if input::scale(given) == Scale::Relative && answer["status"] != "ok" {
        answer["status"] = json!(compared.status.as_str());
    }
    with(answer, exact(&compared))
}

fn lift_fieller_t(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let compared = compare(&control, &treatment, alpha(given));
    let found = compared.difference;
    let critical = found.map(|found| found.critical(alpha(given)));
    let (low, high) = found.zip(critical).and_then(|(found, critical)| found.relative(critical)).unzip();
    let (absolute_low, absolute_high) = interval(found, alpha(given));
    let answer = json!({
        "status": compared.status.as_str(),
        "g": found.zip(critical).and_then(|(found, critical)| found.g(critical)),
        "dof": found.map(|found| found.dof),
        "p_value": found.map(|found| found.p_value().p),
        "log10_p_value": found.map(|found| found.p_value().log10),
        "lift": compared.lift,
        "ci_low": low,
        "ci_high": high,
        "absolute_ci_low": absolute_low,
        "absolute_ci_high": absolute_high,
    });
    with(answer, exact(&compared))
}

fn ratio_delta_t(given: &Value) -> Value {
    let of = |name: &str| input::ratio(&given[name]).observed().expect("fits");
    let found = difference(&of("control"), &of("treatment"));
    tested(found.and_then(|found| found.effect(input::scale(given))), given)
}

fn quantile_clustered_t(given: &Value) -> Value {
    let of = |name: &str| {
        let (quantile, below) = (input::quantile(&given[name]), input::clusters(&given[name]));
        let sample = quantile.arm_of_events(&below).expect("fits").map(Sample::Mean);
        Observed { users: quantile.values, mean: Some(quantile.estimate), sample }
    };
    let found = difference(&of("control"), &of("treatment"));
    tested(found.and_then(|found| found.effect(input::scale(given))), given)
}

fn quantile_t(given: &Value) -> Value {
    let of = |name: &str| input::quantile(&given[name]).observed();
    let found = difference(&of("control"), &of("treatment"));
    tested(found.and_then(|found| found.effect(input::scale(given))), given)
}

fn cuped_fields(found: Result<Adjusted, Undefined>, coefficients: &Coefficients, given: &Value) -> Value {
    let adjusted = found.as_ref().ok().copied();
    let answer = tested(found.and_then(|found| found.difference.effect(input::scale(given))), given);
    with(
        answer,
        json!({
            "theta": coefficients.of[0],
            "variance_reduction_control": adjusted.and_then(|found| found.variance_reduction_control),
            "variance_reduction_treatment": adjusted.and_then(|found| found.variance_reduction_treatment),
        }),
    )
}

/// One coefficient of all users together, whatever variant they are in.
fn cuped_t(given: &Value) -> Value {
    let (control, treatment) = (input::cuped(&given["control"]), input::cuped(&given["treatment"]));
    let joint = |sums: &JointSums| sums.joint(&[Term::Mean(0), Term::Mean(1)]).expect("fits").expect("users");
    let all = joint(&control.merged(&treatment).expect("fits"));
    let coefficients = Coefficients::common(&all, &all).of_part();
    cuped_fields(adjusted(&joint(&control), &joint(&treatment), &coefficients), &coefficients, given)
}

fn cuped_ratio_t(given: &Value) -> Value {
    let joint = |arm: &str| {
        let found = input::cuped_ratio(&given[arm]).joint(&[Term::Ratio(0, 1), Term::Ratio(2, 3)]);
        found.expect("fits").expect("denominators")
    };
    let (control, treatment) = (joint("control"), joint("treatment"));
    let coefficients = Coefficients::common(&control, &treatment).of_part();
    cuped_fields(adjusted(&control, &treatment, &coefficients), &coefficients, given)
}

fn bayes_normal(given: &Value) -> Value {
    let scale = input::scale(given);
    let given_prior = &given["prior"];
    let prior = (given_prior["proper"].as_bool() == Some(true)).then(|| bayes_normal::Prior {
        mean: input::number(given_prior, "mean"),
        variance: input::number(given_prior, "variance"),
    });
    let found = effect(given).and_then(|effect| {
        let prior = match prior {
            None => None,
            Some(prior) => {
                let undefined = Undefined { status: Status::ZeroBaseline, estimate: Some(effect.estimate), lift: None };
                Some(prior.on(scale, input::observed(&given["control"]).mean.unwrap_or(0.0)).ok_or(undefined)?)
            }
        };
        Ok(posterior(&effect, prior.as_ref(), given["inverse"].as_bool().unwrap_or(false), alpha(given)))
    });
    let known = found.ok();
    json!({
        "status": found.map_or_else(|undefined| undefined.status.as_str(), |_| "ok"),
        "estimate": found.map_or_else(|undefined| estimate(&undefined, given), |found| Some(found.mean)),
        "std_error": known.map(|found| found.std_dev),
        "ci_low": known.map(|found| found.interval.0),
        "ci_high": known.map(|found| found.interval.1),
        "chance_to_win": known.map(|found| found.chance_to_win),
        "risk_control": known.map(|found| found.expected_loss_control),
        "risk_treatment": known.map(|found| found.expected_loss_treatment),
    })
}

fn sequence(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let tuning = Tuning { tightest_at: input::number(given, "n_star"), alpha: alpha(given) };
    let found = effect(given);
    let sequence = found.as_ref().ok().map(|effect| {
        let users = control.users + treatment.users;
        let sequence = confidence_sequence(effect.estimate / effect.std_error, users, alpha(given), &tuning);
        (effect.estimate, sequence.critical * effect.std_error, sequence)
    });
    with(
        tested(found, given),
        json!({
            "ci_low": sequence.map(|(estimate, half_width, _)| estimate - half_width),
            "ci_high": sequence.map(|(estimate, half_width, _)| estimate + half_width),
            "p_value": sequence.map(|(_, _, found)| found.p_value.p),
            "log10_p_value": sequence.map(|(_, _, found)| found.p_value.log10),
            "halfwidth": sequence.map(|(_, half_width, _)| half_width),
            "log10_e_value": sequence.map(|(_, _, found)| found.log10_e),
        }),
    )
}

fn non_inferiority_z(given: &Value) -> Value {
    let (control, treatment) = (input::count(&given["control"]), input::count(&given["treatment"]));
    let alpha = 1.0 - input::number(given, "confidence_level");
    let (control, treatment): (Observed, Observed) = (Sample::Share(control).into(), Sample::Share(treatment).into());
    let baseline = control.mean.unwrap_or(0.0);
    let effect = match difference(&control, &treatment).and_then(|found| found.effect(Scale::Absolute)) {
        Ok(effect) => effect,
        // One share at its border has a variance left in the other; the normal test stands.
        Err(undefined) => {
            return with(
                json!({ "status": undefined.status.as_str(), "difference": undefined.estimate, "p_value": null,
                        "ci_low": null, "ci_high": null, "is_significant": false }),
                exact(&compare(&control, &treatment, alpha)),
            );
        }
    };
    let direction = match given["preferred_direction"].as_str() {
        Some("increase") => Some(Direction::Increase),
        Some("decrease") => Some(Direction::Decrease),
        _ => None,
    };
    let Some(direction) = direction else {
        let found = two_sided(&effect, alpha);
        return json!({
            "status": "ok", "difference": effect.estimate, "p_value": found.p_value, "ci_low": found.interval.0,
            "ci_high": found.interval.1, "is_significant": found.p_value < alpha,
        });
    };
    let margin = input::optional(given, "relative_margin").unwrap_or(0.0);
    let found = non_inferiority(&effect, baseline, margin, direction, alpha);
    let is_lower = direction == Direction::Increase;
    json!({
        "status": "ok",
        "difference": found.difference,
        "p_value": found.p_value,
        "log10_p_value": found.log10_p,
        "ci_low": is_lower.then_some(found.bound),
        "ci_high": (!is_lower).then_some(found.bound),
        "is_significant": found.holds,
    })
}

/// Student's test of two small shares against a margin, two-sided where no direction is preferred.
fn welch_t_binomial(given: &Value) -> Value {
    let arm = |name: &str| Sample::Share(input::count(&given[name])).arm();
    let (control, treatment) = (arm("control"), arm("treatment"));
    let alpha = input::optional(given, "confidence_level").map_or_else(|| alpha(given), |level| 1.0 - level);
    let Ok(found) = Difference::welch(&control, &treatment, false) else {
        return json!({ "difference": treatment.mean - control.mean, "p_value": null, "ci_low": null, "ci_high": null,
                       "is_significant": false });
    };
    let (alternative, sign) = match given["preferred_direction"].as_str() {
        Some("increase") => (Alternative::Greater, -1.0),
        Some("decrease") => (Alternative::Less, 1.0),
        _ => (Alternative::TwoSided, 1.0),
    };
    let null = sign * input::optional(given, "relative_margin").unwrap_or(0.0) * control.mean;
    let effect = Effect { estimate: found.estimate - null, std_error: found.std_error, dof: found.dof };
    let tested = effect.test(alternative, alpha);
    json!({
        "status": "ok",
        "difference": found.estimate,
        "estimate": found.estimate,
        "std_error": found.std_error,
        "dof": found.dof,
        "t": effect.estimate / effect.std_error,
        "p_value": tested.p_value,
        "log10_p_value": tested.log10_p,
        "ci_low": tested.low.map(|low| low + null),
        "ci_high": tested.high.map(|high| high + null),
        "is_significant": tested.p_value < alpha,
    })
}

fn mid_experiment_power(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let users = control.users + treatment.users;
    let config = &given["power_config"];
    let whole = |name: &str, default: u32| input::optional(config, name).map_or(default, |value| value as u32);
    let target = Target {
        effect: input::optional(config, "target_mde").unwrap_or(0.01),
        power: input::optional(config, "target_power").unwrap_or(0.8),
        goals: whole("num_goal_metrics", 1),
        variants: whole("num_variations", 2),
        sequential_tightest_at: (config["sequential"].as_bool() == Some(true))
            .then(|| input::optional(config, "sequential_tuning_parameter").unwrap_or(5_000.0)),
    };
    let prior = (given["prior"]["proper"].as_bool() == Some(true)).then(|| bayes_normal::Prior {
        mean: input::number(&given["prior"], "mean"),
        variance: input::number(&given["prior"], "variance"),
    });
    let found = difference(&control, &treatment)
        .and_then(|found| found.effect(Scale::Relative))
        .ok()
        .and_then(|effect| mid_experiment(&effect, users, alpha(given), &target, prior.as_ref()));
    json!({
        "power_now": found.map(|found| found.power_now),
        "scaling_factor": found.and_then(|found| found.scaling_factor),
        "additional_users": found.and_then(|found| found.additional_users),
    })
}

fn post_stratified_lift(given: &Value) -> Value {
    let cell = |cell: &Value| Cell { control: input::sample(&cell["control"]), treatment: input::sample(&cell["treatment"]) };
    let cells: Vec<Cell> = input::list(given, "cells").iter().map(cell).collect();
    tested(post_stratified(&cells).and_then(|found| found.effect(input::scale(given))), given)
}

fn scaled_impact(given: &Value) -> Value {
    let (control, treatment) = observed(given);
    let found = difference(&control, &treatment).and_then(|found| found.effect(Scale::Absolute));
    let traffic = Traffic {
        users: input::whole(given, "total_users"),
        share: input::number(given, "traffic_share"),
        days: input::number(given, "days"),
    };
    let impact = found.as_ref().ok().and_then(|effect| {
        let test = effect.test(input::alternative(given), alpha(given));
        impact_per_day(effect.estimate, test.low.zip(test.high), &traffic)
    });
    with(
        tested(found, given),
        json!({
            "estimate": impact.map(|found| found.estimate),
            "ci_low": impact.and_then(|found| found.interval).map(|ends| ends.0),
            "ci_high": impact.and_then(|found| found.interval).map(|ends| ends.1),
        }),
    )
}
