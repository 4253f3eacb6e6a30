//! What the numbers advise, with the rules that led there and the numbers that they saw.

use ::catalogue::policy::DecideBy;

use super::body::{Decision, Why};
use super::metric::{Comparison, Metric};
use crate::experiment::read::catalogue::Role;
use crate::experiment::request::{Analysis, Engine};
use crate::experiment::test::comparison::Design;
use crate::experiment::test::health::{Check, Health, Level};
use crate::experiment::text::p_text;
use statistics::decision::{Action, Criteria, Evidence, Experiment, Verdict, decide};

/// Evidence below this p-value counts before enough users are there, also without a test that allows for looks.
const STRICT_BELOW: f64 = 0.001;

/// Decides by the verdicts of primary metrics and guardrails; health comes first. Metrics that cannot be tested yet do not
/// vote as long as another primary one can.
pub fn decision(design: &Design<'_>, health: &Health, metrics: &[Metric]) -> Decision {
    let variants = design.variants.len() - 1;
    let primary: Vec<&Metric> = metrics.iter().filter(|metric| metric.role == Role::Primary).collect();
    let is_tested = |metric: &&Metric| metric.comparisons.iter().any(|found| found.test.p_value.is_some());
    let can_vote: Vec<&Metric> = primary.iter().copied().filter(is_tested).collect();
    let goals = if can_vote.is_empty() { primary } else { can_vote };
    let guardrails: Vec<&Metric> = metrics.iter().filter(|metric| metric.role == Role::Guardrail).collect();
    let of = |metrics: &[&Metric], arm: usize, verdict: fn(&Comparison, bool) -> Verdict| -> Vec<Verdict> {
        let one = |metric: &&Metric| {
            let found = metric.comparisons.get(arm)?;
            Some(verdict(found, metric.direction == "increase"))
        };
        metrics.iter().filter_map(one).collect()
    };
    let lists: Vec<[Vec<Verdict>; 3]> = (0..variants)
        .map(|arm| [of(&goals, arm, by_verdict), of(&goals, arm, strictly), of(&guardrails, arm, by_harm)])
        .collect();
    let evidence: Vec<Evidence<'_>> =
        lists.iter().map(|[goals, goals_strict, guardrails]| Evidence { goals, goals_strict, guardrails }).collect();
    let powered = is_powered(design, &goals);
    // Fewer are left out, or count for the variant that they saw first, by what `exclusion_bias` shows.
    let multi_exposed_share = health.checks.iter().find_map(|check| match check {
        Check::MultiExposure { level: Level::Fail, share, .. } => *share,
        _ => None,
    });
    let criteria = match design.experiment.policy.decide_by {
        DecideBy::ClearSignals => Criteria::ClearSignals,
        DecideBy::DoNoHarm => Criteria::DoNoHarm,
        DecideBy::RiskAware => Criteria::RiskAware,
    };
    let has_mismatch = health.checks.iter().any(Check::invalidates);
    let found = decide(
        criteria,
        &Experiment {
            has_mismatch,
            multi_exposed_share: multi_exposed_share.unwrap_or(0.0),
            is_powered: powered || design.plan.has_ended,
            is_sequential: design.plan.analysis != Analysis::Fixed && design.request.engine != Engine::Bayesian,
        },
        &evidence,
    );
    let shipped = shipped(&found.variants, &goals);
    let mut why = Vec::new();
    if found.variants.is_empty() {
        why.extend(found.why.iter().map(|fact| Why { rule: "health", fact: (*fact).to_owned() }));
    } else {
        let is_decided = matches!(found.status.as_str(), "ship-now" | "rollback-now");
        why.push(Why { rule: "power", fact: power_fact(design, &goals, powered, is_decided) });
        for (arm, rule) in found.why.iter().enumerate() {
            let name = &design.variants[arm + 1].name;
            let action = found.variants[arm].map_or("wait", Action::as_str);
            why.push(Why { rule: action, fact: format!("{name}: {rule}") });
            let votes = goals.iter().chain(&guardrails).filter_map(|metric| Some(vote(metric, metric.comparisons.get(arm)?)));
            why.extend(votes);
        }
    }
    Decision {
        status: found.status.as_str(),
        criteria: design.experiment.policy.decide_by.as_str(),
        variant_id: shipped.map(|arm| design.variants[arm + 1].id),
        powered,
        why,
    }
}

fn by_verdict(found: &Comparison, _: bool) -> Verdict {
    match found.verdict {
        "won" => Verdict::Won,
        "lost" => Verdict::Lost,
        _ => Verdict::Neutral,
    }
}

/// The verdict of evidence that needs no plan: nothing but the p-value of one look, at a thousandth.
fn strictly(found: &Comparison, wants_more: bool) -> Verdict {
    let p = found.test.p_fisher.or(found.test.p_value);
    match (p, found.absolute.estimate) {
        (Some(p), Some(estimate)) if p < STRICT_BELOW && estimate != 0.0 => {
            if (estimate > 0.0) == wants_more {
                Verdict::Won
            } else {
                Verdict::Lost
            }
        }
        _ => Verdict::Neutral,
    }
}

fn by_harm(found: &Comparison, _: bool) -> Verdict {
    match &found.guardrail {
        Some(guardrail) if guardrail.state == "harmed" => Verdict::Lost,
        Some(guardrail) if guardrail.state == "safe" => Verdict::Won,
        _ => Verdict::Neutral,
    }
}

/// Returns whether enough is known by the experiment's own plan: the planned users are there, or each goal could see the
/// effect worth finding.
fn is_powered(design: &Design<'_>, goals: &[&Metric]) -> bool {
    let users: u64 = design.variants.iter().filter_map(|variant| variant.users).sum();
    if design.plan.analysis == Analysis::GroupSequential && design.experiment.target_sample_size.is_some() {
        // What is planned is there when the windows of the planned users have closed.
        let mut all = goals.iter().flat_map(|metric| &metric.comparisons).peekable();
        let is_there =
            |found: &Comparison| found.sequential.is_some_and(|look| look.information_fraction.is_some_and(|part| part >= 1.0));
        return all.peek().is_some() && all.all(is_there);
    }
    let has_target = design.experiment.target_sample_size.and_then(|target| u64::try_from(target).ok());
    if has_target.is_some_and(|target| users >= target) {
        return true;
    }
    let mut powers = goals.iter().flat_map(|metric| &metric.comparisons).map(|found| found.power).peekable();
    powers.peek().is_some() && powers.all(|power| power.is_some_and(|power| power.progress >= 1.0))
}

fn power_fact(design: &Design<'_>, goals: &[&Metric], powered: bool, is_decided: bool) -> String {
    let users: u64 = design.variants.iter().filter_map(|variant| variant.users).sum();
    let planned = design.experiment.target_sample_size.map(|target| format!(" of {target} planned")).unwrap_or_default();
    let least = goals
        .iter()
        .flat_map(|metric| &metric.comparisons)
        .filter_map(|found| found.power)
        .map(|power| power.progress)
        .fold(None, |least: Option<f64>, progress| Some(least.map_or(progress, |least| least.min(progress))));
    let progress = least.map(|least| format!(", {:.0} % of the precision", least * 100.0)).unwrap_or_default();
    let enough = match (powered, is_decided) {
        (true, _) => "enough",
        (false, true) => "enough for so clear a difference",
        (false, false) => "not enough yet",
    };
    format!("{users} users{planned}{progress}: {enough}")
}

fn vote(metric: &Metric, found: &Comparison) -> Why {
    let p = found.adjusted.and_then(|adjusted| adjusted.p_value).or(found.test.p_value);
    let p = p.map(|p| format!(", p = {}", p_text(p))).unwrap_or_default();
    let said = found.guardrail.as_ref().map_or(found.verdict, |guardrail| guardrail.state);
    let rule = if found.guardrail.is_some() { "guardrail" } else { "goal" };
    let lift = found.relative.lift.map(|lift| format!(", {:+.2} %", lift * 100.0)).unwrap_or_default();
    Why { rule, fact: format!("{}: {said}{lift}{p}", metric.id) }
}

/// Returns the variant to ship: of several the one with the greatest lift of the first goal, in the direction that is wanted.
fn shipped(actions: &[Option<Action>], goals: &[&Metric]) -> Option<usize> {
    let goal = goals.first();
    let gain = |arm: usize| {
        let lift = goal.and_then(|goal| goal.comparisons.get(arm)?.relative.lift).unwrap_or(0.0);
        if goal.is_some_and(|goal| goal.direction == "decrease") { -lift } else { lift }
    };
    let shipping = (0..actions.len()).filter(|arm| actions[*arm] == Some(Action::Ship));
    shipping.max_by(|one, other| gain(*one).total_cmp(&gain(*other)))
}
