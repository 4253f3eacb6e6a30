//! Methods on counts, lists of p-values and plans.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use statistics::bayes_beta::{self, credible_interval, probability_best};
use statistics::beta::Beta;
use statistics::comparison::{Observed, Sample};
use statistics::credit::Model;
use statistics::decision::{Action, Criteria, Evidence, Experiment, Verdict, decide};
use statistics::distributions::{PValue, chi_square_sf, normal_sf, student_isf, student_sf};
use statistics::group_sequential::{Sides, bounds};
use statistics::moments::Moments;
use statistics::multiplicity::{Correction, Member, adjust, is_finding, preferential};
use statistics::proportions::{Count, fisher, homogeneity, newcombe, pooled_z, wilson};
use statistics::sample_ratio::{CONCENTRATION, sample_ratio, sequential};
use statistics::sequential::normal_mixture_bound;
use statistics::{power, rates};

use crate::input::{self, number, numbers, optional, whole};

/// Returns the fields of a case, or `None` if the method is not one of these.
pub(crate) fn answer(method: &str, given: &Value) -> Option<Value> {
    Some(match method {
        "two_proportions" => two_proportions(given),
        "k_proportions" => k_proportions(given),
        "bayes_beta_binomial" => bayes_beta_binomial(given),
        "beta_credible_interval" => beta_credible_interval(given),
        "normal_mixture_bound" => normal_mixture(given)?,
        "group_sequential_bounds" => group_sequential_bounds(given),
        "adjust_p_values" => adjust_p_values(given),
        "preferential_bonferroni" => preferential_bonferroni(given),
        "srm_chi_square" => srm_chi_square(given),
        "srm_sequential" => srm_sequential(given),
        "sample_size_two_proportions" => sample_size(given),
        "sample_size_multi_arm" => sample_size_multi_arm(given),
        "mde_mean" => mde_mean(given),
        "attribution_models" => attribution_models(given),
        "decision_rule" => decision_rule(given),
        "distribution_functions" => distribution_functions(given),
        "moments_exact" => moments_exact(given),
        _ => return None,
    })
}

fn put(answer: &mut BTreeMap<String, Value>, name: &str, ends: Option<(f64, f64)>) {
    answer.insert(format!("{name}_low"), json!(ends.map(|ends| ends.0)));
    answer.insert(format!("{name}_high"), json!(ends.map(|ends| ends.1)));
}

fn two_proportions(given: &Value) -> Value {
    let (control, treatment) = (input::count(&given["control"]), input::count(&given["treatment"]));
    let alpha = number(given, "alpha");
    let (pooled, unpooled) = (pooled_z(control, treatment), rates::unpooled_z(control, treatment));
    let rate = |count: Count| Observed::from(Sample::Share(count)).mean;
    let rates = (rate(control), rate(treatment));
    let mut answer = BTreeMap::new();
    for (name, value) in [
        ("rate_control", rates.0),
        ("rate_treatment", rates.1),
        ("diff", rates.0.zip(rates.1).map(|(control, treatment)| treatment - control)),
        ("z_pooled", pooled.map(|(z, _)| z)),
        ("p_pooled", pooled.map(|(_, tail)| tail.p)),
        ("log10_p_pooled", pooled.map(|(_, tail)| tail.log10())),
        ("z_unpooled", unpooled.map(|(z, _)| z)),
        ("p_unpooled", unpooled.map(|(_, tail)| tail.p)),
        ("p_fisher", fisher(control, treatment).map(|tail| tail.p)),
    ] {
        answer.insert(name.to_owned(), json!(value));
    }
    put(&mut answer, "wald_ci", rates::wald(control, treatment, alpha));
    put(&mut answer, "newcombe_ci", newcombe(control, treatment, alpha));
    put(&mut answer, "agresti_caffo_ci", rates::agresti_caffo(control, treatment, alpha));
    put(&mut answer, "rel_lift_log_ci", rates::relative_by_logarithm(control, treatment, alpha));
    for (name, count) in [("control", control), ("treatment", treatment)] {
        put(&mut answer, &format!("wilson_{name}"), wilson(count, alpha));
        put(&mut answer, &format!("clopper_pearson_{name}"), rates::clopper_pearson(count, alpha));
    }
    json!(answer)
}

fn k_proportions(given: &Value) -> Value {
    let arms: Vec<Count> = input::list(given, "arms").iter().map(input::count).collect();
    let overall = homogeneity(&arms);
    let control = optional(given, "control_index").map_or(0, |index| index as usize);
    let others = arms.iter().enumerate().filter(|(index, _)| *index != control);
    let pairwise: Vec<Option<f64>> = others.map(|(_, arm)| pooled_z(arms[control], *arm).map(|(_, tail)| tail.p)).collect();
    json!({
        "chi2": overall.map(|(statistic, _)| statistic),
        "dof": arms.iter().filter(|arm| arm.users > 0).count().saturating_sub(1),
        "p_overall": overall.map(|(_, tail)| tail.p),
        "log10_p_overall": overall.map(|(_, tail)| tail.log10()),
        "p_pairwise_vs_control": pairwise,
        "p_holm": adjusted(&pairwise, Correction::Holm),
        "p_bh": adjusted(&pairwise, Correction::BenjaminiHochberg),
        "p_bonferroni": adjusted(&pairwise, Correction::Bonferroni),
    })
}

/// Adjusts the tests of one family.
fn adjusted(p_values: &[Option<f64>], correction: Correction) -> Vec<Option<f64>> {
    let member = |p: &Option<f64>| Member {
        p_value: p.map(|p| PValue { p, log10: p.log10() }),
        is_tested: p.is_some(),
        is_primary: false,
    };
    let members: Vec<Member> = p_values.iter().map(member).collect();
    adjust(&members, correction, 0.05).iter().map(|found| found.p_value.map(|p| p.p)).collect()
}

fn prior(given: &Value) -> bayes_beta::Prior {
    bayes_beta::Prior { a: number(&given["prior"], "a"), b: number(&given["prior"], "b") }
}

fn bayes_beta_binomial(given: &Value) -> Value {
    let prior = prior(given);
    let of = |name: &str| prior.posterior(input::count(&given[name])).expect("shapes in range");
    let (control, treatment) = (of("control"), of("treatment"));
    let found = bayes_beta::compare(&control, &treatment);
    let mut answer = BTreeMap::new();
    for (name, value) in [
        ("chance_to_win", found.chance_treatment),
        ("chance_control_better", found.chance_control),
        ("expected_loss_choose_treatment", found.expected_loss_treatment),
        ("expected_loss_choose_control", found.expected_loss_control),
        ("posterior_mean_control", control.mean()),
        ("posterior_mean_treatment", treatment.mean()),
    ] {
        answer.insert(name.to_owned(), json!(value));
    }
    answer.insert("probability_best".to_owned(), json!(probability_best(&[control, treatment])));
    put(&mut answer, "ci_control", Some(credible_interval(&control, number(given, "alpha"))));
    put(&mut answer, "ci_treatment", Some(credible_interval(&treatment, number(given, "alpha"))));
    json!(answer)
}

fn beta_credible_interval(given: &Value) -> Value {
    let prior = prior(given);
    let interval = |arm: &Value| {
        let (low, high) =
            credible_interval(&prior.posterior(input::count(arm)).expect("shapes in range"), number(given, "alpha"));
        [low, high]
    };
    json!({ "intervals": input::list(given, "arms").iter().map(interval).collect::<Vec<_>>() })
}

/// The bound of one side is another method, which nothing here uses.
fn normal_mixture(given: &Value) -> Option<Value> {
    let of = |name: &str| number(given, name);
    let bound = normal_mixture_bound(of("v"), of("alpha"), of("v_opt"), optional(given, "alpha_opt").unwrap_or(0.05));
    (given["one_sided"] != true).then(|| json!({ "bound": bound }))
}

fn preferential_bonferroni(given: &Value) -> Value {
    let (treatments, metrics, alpha) = (whole(given, "treatments"), whole(given, "metrics"), number(given, "alpha"));
    let others = (treatments * (metrics - 1)) as usize;
    let (of_primary, of_other) = preferential(treatments as usize, others, number(given, "gamma"));
    json!({ "alpha_primary": of_primary * alpha, "alpha_other": (others > 0).then_some(of_other * alpha) })
}

fn group_sequential_bounds(given: &Value) -> Value {
    let sides = if whole(given, "sides") == 1 { Sides::One } else { Sides::Two };
    let power = optional(given, "spending_power").unwrap_or(2.0);
    json!({ "z_bounds": bounds(&numbers(given, "information_fractions"), number(given, "alpha"), sides, power) })
}

fn adjust_p_values(given: &Value) -> Value {
    let p_values: Vec<Option<f64>> = input::list(given, "p_values").iter().map(Value::as_f64).collect();
    let alpha = number(given, "alpha");
    let mut answer = BTreeMap::new();
    for (name, correction) in
        [("bonferroni", Correction::Bonferroni), ("holm", Correction::Holm), ("bh", Correction::BenjaminiHochberg)]
    {
        let adjusted = adjusted(&p_values, correction);
        let rejected: Vec<Option<bool>> = adjusted.iter().map(|p| p.map(|p| is_finding(p, alpha))).collect();
        answer.insert(format!("adjusted_{name}"), json!(adjusted));
        answer.insert(format!("reject_{name}"), json!(rejected));
    }
    json!(answer)
}

fn srm_chi_square(given: &Value) -> Value {
    let threshold = optional(given, "threshold").unwrap_or(0.001);
    let found = sample_ratio(&input::wholes(&given["users"]), &numbers(given, "weights"), threshold);
    json!({
        "status": found.status.as_str(),
        "chi2": found.statistic,
        "dof": found.statistic.map(|_| found.expected.len() - 1),
        "p_value": found.p_value,
        "log10_p_value": found.log10_p,
        "observed_share": found.observed,
        "expected_share": found.expected,
    })
}

fn srm_sequential(given: &Value) -> Value {
    let days: Vec<Vec<u64>> = input::list(given, "daily_users").iter().map(input::wholes).collect();
    let concentration = optional(given, "dirichlet_concentration").unwrap_or(CONCENTRATION);
    let found = sequential(&days, &numbers(given, "weights"), concentration);
    json!({ "p_values": found.iter().map(|log10| 10.0_f64.powf(*log10)).collect::<Vec<_>>() })
}

fn sample_size(given: &Value) -> Value {
    let of = |name: &str| number(given, name);
    let found = power::sample_size_two_rates(of("baseline"), of("absolute_effect"), of("alpha"), of("power"));
    json!({ "n_per_variant_exact": found, "n_per_variant": found.map(|users| users.ceil() as u64) })
}

fn sample_size_multi_arm(given: &Value) -> Value {
    let variance = optional(given, "variance").unwrap_or_else(|| {
        let baseline = number(given, "baseline");
        baseline * (1.0 - baseline)
    });
    let treatments = whole(given, "treatments");
    let weights =
        if given["weights"].is_array() { numbers(given, "weights") } else { vec![1.0 / treatments as f64; treatments as usize] };
    let found = power::sample_size_variants(
        &weights,
        variance,
        number(given, "mde_abs"),
        number(given, "alpha"),
        number(given, "power"),
        given["bonferroni"].as_bool().unwrap_or(false),
    );
    json!({ "total": found.as_ref().map(|found| found.total), "allocation": found.map(|found| found.users) })
}

fn mde_mean(given: &Value) -> Value {
    let users = number(given, "n_control");
    let treatment = users * optional(given, "n_treatment_over_n_control").unwrap_or(1.0);
    let (alpha, wanted) = (number(given, "alpha"), number(given, "power"));
    json!({ "mde_absolute": power::detectable_difference(number(given, "variance"), users, treatment, alpha, wanted) })
}

fn attribution_models(given: &Value) -> Value {
    let hours = numbers(given, "touches_hours_before_conversion");
    let value = number(given, "conversion_value");
    let decay = Model::TimeDecay { half_life_hours: optional(given, "half_life_hours").unwrap_or(168.0) };
    // Cents of the decimal as it is written, not of the float nearest to it.
    let cents = (value * 100.0).round() as i128;
    let (mut values, mut parts) = (BTreeMap::new(), BTreeMap::new());
    for model in [Model::FirstTouch, Model::LastTouch, Model::Linear, Model::PositionBased, decay] {
        values.insert(model.as_str(), model.divide(value, &hours));
        let divided: Vec<i64> = model.divide_whole(cents, &hours).iter().map(|part| *part as i64).collect();
        parts.insert(model.as_str(), divided);
    }
    json!({ "value_per_touch": values, "cents_per_touch": parts })
}

fn decision_rule(given: &Value) -> Value {
    let criteria = match given["criteria"].as_str() {
        Some("clear_signals") | None => Criteria::ClearSignals,
        Some("do_no_harm") => Criteria::DoNoHarm,
        Some(other) => panic!("criteria are {other}; clear_signals and do_no_harm are accepted"),
    };
    let verdicts = |list: &Value| -> Vec<Verdict> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|verdict| match verdict.as_str() {
                Some("won") => Verdict::Won,
                Some("lost") => Verdict::Lost,
                _ => Verdict::Neutral,
            })
            .collect()
    };
    let lists: Vec<[Vec<Verdict>; 3]> = input::list(given, "variants")
        .iter()
        .map(|variant| ["goals", "goals_strict", "guardrails"].map(|name| verdicts(&variant[name])))
        .collect();
    let evidence: Vec<Evidence<'_>> =
        lists.iter().map(|[goals, goals_strict, guardrails]| Evidence { goals, goals_strict, guardrails }).collect();
    let experiment = Experiment {
        has_mismatch: given["srm"] == "mismatch",
        multi_exposed_share: number(given, "multi_exposed_share"),
        is_powered: given["power_reached"].as_bool().unwrap_or(false),
        is_sequential: given["sequential"].as_bool().unwrap_or(false),
    };
    let found = decide(criteria, &experiment, &evidence);
    let is_healthy = found.status.as_str() != "unhealthy";
    let actions: Vec<Option<&str>> = found.variants.iter().map(|action| action.map(Action::as_str)).collect();
    json!({ "status": found.status.as_str(), "per_variant": is_healthy.then_some(actions) })
}

fn distribution_functions(given: &Value) -> Value {
    let each =
        |name: &str, f: &dyn Fn(&Value) -> f64| -> Vec<f64> { given[name].as_array().into_iter().flatten().map(f).collect() };
    json!({
        "t_isf": each("t_isf", &|at| student_isf(number(at, "upper_tail"), number(at, "dof"))),
        "t_sf": each("t_sf", &|at| student_sf(number(at, "t"), number(at, "dof")).p),
        "chi2_sf": each("chi2_sf", &|at| chi_square_sf(number(at, "x"), number(at, "dof")).p),
        "normal_sf": each("normal_sf", &|at| normal_sf(at.as_f64().expect("a number")).p),
        "beta_ppf": each("beta_ppf", &|at| {
            Beta::new(number(at, "a"), number(at, "b")).expect("shapes in range").quantile(number(at, "p"))
        }),
    })
}

fn moments_exact(given: &Value) -> Value {
    let mut moments = Moments::default();
    for value in input::list(given, "values") {
        moments.add(input::millionths(&value)).expect("fits");
    }
    let arm = moments.arm().expect("fits");
    json!({
        "n": moments.users(),
        "sum": moments.sum_text(),
        "mean": (arm.users > 0).then_some(arm.mean),
        "variance": (arm.users > 1).then_some(arm.variance),
    })
}
