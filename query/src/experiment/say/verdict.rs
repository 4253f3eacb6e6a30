//! What one comparison comes to, as a word and as a sentence. Both rest on the same result, so that neither says more than the
//! other.

use super::sentence::Sentence;
use crate::experiment::read::catalogue::Configured;
use crate::experiment::request::{Analysis, Difference, Engine};
use crate::experiment::test::comparison::{Compared, Conclusion, Design, EARLY_WARNING, Undecided};
use crate::experiment::test::findings::{Bayesian, ScaledImpact};
use crate::experiment::text::{p_text, short};
use statistics::effect::Status;
use statistics::sequential::hybrid_level;

/// The verdict with what it rests on.
pub struct Verdict {
    /// `won`, `lost`, `neutral` or `inconclusive`.
    pub text: &'static str,
    /// Whether it stands.
    pub significant: bool,
    /// The method it stands by.
    pub by: &'static str,
    chance: Option<f64>,
}

/// Judges one comparison by what decides it.
pub fn verdict(
    design: &Design<'_>,
    metric: &Configured,
    compared: &Compared,
    decided: &Conclusion,
    bayesian: Option<&Bayesian>,
) -> Verdict {
    let confidence = design.experiment.confidence_level;
    if let Some(why) = compared.undecided.filter(|_| !decided.significant) {
        return Verdict { text: "inconclusive", significant: false, by: why.as_str(), chance: None };
    }
    if design.request.engine == Engine::Bayesian {
        let chance = bayesian.map(|bayesian| bayesian.chance_to_win);
        let text = match chance {
            Some(chance) if chance >= confidence => "won",
            Some(chance) if chance <= 1.0 - confidence => "lost",
            _ => "inconclusive",
        };
        return Verdict { text, significant: text != "inconclusive", by: "chance_to_win", chance };
    }
    // The estimate that decided, which may be that of an earlier look.
    let estimate = decided.basis.map(|basis| basis.difference.estimate).or(compared.found.estimate).unwrap_or(0.0);
    let text = match decided.significant && estimate != 0.0 {
        true if (estimate > 0.0) == metric.wants_more => "won",
        true => "lost",
        // Precise enough to say that whatever there is, is less than what is worth finding.
        false => {
            let mde = design.experiment.minimum_detectable_effect;
            let interval = decided.basis.and_then(|basis| basis.relative());
            let is_small = interval.is_some_and(|(low, high)| low > -mde && high < mde);
            if is_small && compared.found.status == Status::Ok { "neutral" } else { "inconclusive" }
        }
    };
    Verdict { text, significant: decided.significant, by: decided.by, chance: None }
}

/// Says a comparison as a sentence, from the same results as its verdict.
pub fn plain(
    design: &Design<'_>,
    metric: &Configured,
    compared: &Compared,
    decided: &Conclusion,
    verdict: &Verdict,
    impact: Option<&ScaledImpact>,
) -> String {
    let basis = decided.basis;
    let found = basis.map(|basis| basis.difference);
    let (estimate, lift) = match found {
        Some(found) => (Some(found.estimate), found.lift()),
        None => (compared.found.estimate, compared.found.lift),
    };
    // Nothing is relative to a control of 0.
    let difference = match design.request.difference {
        Difference::Relative if lift.is_none() => Difference::Absolute,
        asked => asked,
    };
    let effect = match difference {
        Difference::Relative => lift,
        Difference::Absolute => estimate,
        Difference::Scaled => impact.map(|impact| impact.per_day),
    };
    // The interval of what decides, before other comparisons are thought of.
    let of = |found: &statistics::difference::Difference, critical: f64| match difference {
        Difference::Relative => found.relative(critical),
        Difference::Absolute => Some(found.absolute(critical)),
        Difference::Scaled => {
            let (low, high) = found.absolute(critical);
            impact.map(|impact| (low * impact.users_per_day, high * impact.users_per_day))
        }
    };
    let critical = basis.and_then(|basis| basis.critical_alone);
    let interval = match found.zip(critical) {
        Some((found, critical)) => of(&found, critical),
        None if difference == Difference::Absolute => compared.found.exact.and_then(|exact| exact.newcombe),
        None => None,
    };
    // Of a single look with few counts the exact test decides; an interval that says something else is not shown beside it.
    let says = |ends: (f64, f64)| ends.0 > 0.0 || ends.1 < 0.0;
    let level = match design.plan.analysis {
        Analysis::Fixed => Some(design.experiment.alpha),
        Analysis::Hybrid if design.plan.is_final(compared.window_us) => Some(hybrid_level(design.experiment.alpha)),
        _ => None,
    };
    let exact = compared.found.fisher().zip(level);
    let interval = interval.filter(|ends| exact.is_none_or(|(fisher, level)| says(*ends) == (fisher.p < level)));
    let is_adjusted = basis.is_some_and(|basis| basis.is_adjusted);
    let adjusted = if is_adjusted { ", adjusted for earlier behaviour," } else { "" };
    let confidence = format!("{}% CI{adjusted}", short(design.experiment.confidence_level * 100.0));
    let (evidence, conclusion) = evidence(design, compared, decided, verdict);
    // Both means are those of the estimate: adjusted if it is, and of its look.
    let (control, treatment) = match found {
        Some(found) => (Some(found.baseline), Some(found.baseline + found.estimate)),
        None => (compared.control.mean, compared.treatment.mean),
    };
    Sentence {
        metric,
        currency: design.currency,
        control: (&design.variants[0].name, control),
        treatment: (&design.variants[compared.arm].name, treatment),
        difference,
        effect,
        interval: interval.map(|ends| (ends, confidence)),
        evidence,
        conclusion,
    }
    .text()
}

/// Says what was found and what follows, both from what the verdict rests on.
fn evidence(design: &Design<'_>, compared: &Compared, decided: &Conclusion, verdict: &Verdict) -> (Option<String>, String) {
    let conclusion = |otherwise: &str| {
        match verdict.text {
            "won" => "significantly better",
            "lost" => "significantly worse",
            "neutral" => return format!("any effect is below the {} worth finding", percent(design)),
            _ => otherwise,
        }
        .to_owned()
    };
    if verdict.by == "chance_to_win" {
        let chance = verdict.chance.map(|chance| format!("chance to win {}%", short(chance * 100.0)));
        let text = match verdict.text {
            "won" => "better",
            "lost" => "worse",
            _ => "not enough to call it",
        };
        return (chance, text.to_owned());
    }
    if let Some(why) = compared.undecided.filter(|_| !decided.significant) {
        let p = compared.found.p_value().map(|p| format!("p = {} for a single look", p_text(p.p)));
        let waits = match why {
            Undecided::Open => {
                "it grows as long as there are events, so that nothing is decided before the one look of a fixed analysis"
            }
            Undecided::Part => "a part of what was done counts, which describes and decides nothing",
        };
        return (p, waits.to_owned());
    }
    if let Some(early) = decided.early.filter(|_| verdict.by == EARLY_WARNING) {
        let p = p_text(early.p_value);
        let text = format!("p = {p} at any time for what users do within a day of their exposure, called on {}", early.on);
        return (Some(text), conclusion("no difference is shown"));
    }
    let size = decided.adjusted.family_size;
    let among = format!("not significant after correction for {size} comparisons");
    match design.plan.analysis {
        Analysis::Fixed => {
            let Some(p) = compared.found.p_value().map(|p| p.p) else {
                return (None, "too little is known to test it".to_owned());
            };
            let exact = if compared.is_exact() { " (exact)" } else { "" };
            let is_significant_alone = p < design.experiment.alpha && !decided.significant;
            let otherwise = if is_significant_alone { among.as_str() } else { "no difference is shown" };
            (Some(format!("p = {}{exact}", p_text(p))), conclusion(otherwise))
        }
        Analysis::GroupSequential => {
            let Some(look) = decided.look else { return (None, "too little is known to test it".to_owned()) };
            let Some(bound) = look.shown.boundary_z else {
                let is_planned = look.shown.information_fraction.is_some();
                let waits = match look.shown.next_information_on.filter(|_| is_planned) {
                    Some(day) => format!("nothing is tested before {day}, when the first window closes"),
                    None => "there is no planned size or end to set bounds by".to_owned(),
                };
                return (None, waits);
            };
            if look.shown.method != Analysis::GroupSequential.as_str() {
                let otherwise = "no difference is shown so far";
                return (Some(format!("p = {} at any time", p_text(look.shown.always_valid_p))), conclusion(otherwise));
            }
            if let Some(day) = look.shown.crossed_on {
                return (Some(format!("its bound was crossed on {day}")), conclusion("no difference is shown"));
            }
            let when =
                look.shown.last_look_on.map(|day| format!(" on {day}, when the planned size was reached")).unwrap_or_default();
            let evidence = format!("z = {} against a bound of {}{when}", short(look.shown.z), short(bound));
            let stands_alone = compared.look(design.plan, design.experiment.alpha).is_some_and(|look| look.stands);
            let exact = look.seen.exact_p.filter(|_| look.shown.crossed && !decided.significant);
            let otherwise = match exact {
                Some(p) => format!("counts are few, and the exact test does not agree (p = {})", p_text(p)),
                None if stands_alone => among,
                None if look.shown.last_look_on.is_some() => "no difference was shown".to_owned(),
                None => "no difference is shown so far".to_owned(),
            };
            (Some(evidence), conclusion(&otherwise))
        }
        Analysis::Sequential | Analysis::Hybrid => {
            let Some(p) = compared.deciding_p(design.plan).map(|p| p.p) else {
                let exact = compared.found.fisher();
                let evidence = exact.map(|fisher| format!("p = {} (exact) for a single look", p_text(fisher.p)));
                return (evidence, "too little is known for a test that allows for looks".to_owned());
            };
            let valid = if design.plan.is_final(compared.window_us) && design.plan.analysis == Analysis::Hybrid {
                ""
            } else {
                " at any time"
            };
            let is_significant_alone = p < design.experiment.alpha && !decided.significant;
            let otherwise = if is_significant_alone { among.as_str() } else { "no difference is shown so far" };
            (Some(format!("p = {}{valid}", p_text(p))), conclusion(otherwise))
        }
    }
}

fn percent(design: &Design<'_>) -> String {
    format!("{}%", short(design.experiment.minimum_detectable_effect * 100.0))
}
