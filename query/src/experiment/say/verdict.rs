//! What one comparison comes to, as a word and as a sentence. Both rest on the same result, so that neither says more than the
//! other.

use super::sentence::Sentence;
use crate::experiment::read::catalogue::Configured;
use crate::experiment::request::{Analysis, Difference, Engine};
use crate::experiment::test::comparison::{Compared, Conclusion, Design};
use crate::experiment::test::findings::{Bayesian, ScaledImpact};
use crate::experiment::text::{p_text, short};
use statistics::effect::Status;

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
    if design.request.engine == Engine::Bayesian {
        let chance = bayesian.map(|bayesian| bayesian.chance_to_win);
        let text = match chance {
            Some(chance) if chance >= confidence => "won",
            Some(chance) if chance <= 1.0 - confidence => "lost",
            _ => "inconclusive",
        };
        return Verdict { text, significant: text != "inconclusive", by: "chance_to_win", chance };
    }
    let estimate = compared.found.estimate.unwrap_or(0.0);
    let text = match decided.significant && estimate != 0.0 {
        true if (estimate > 0.0) == metric.wants_more => "won",
        true => "lost",
        // Precise enough to say that whatever there is, is less than what is worth finding.
        false => {
            let mde = design.experiment.minimum_detectable_effect;
            let difference = compared.found.difference.zip(decided.critical);
            let interval = difference.and_then(|(difference, critical)| difference.relative(critical));
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
    let alpha = design.experiment.alpha;
    let found = compared.found.difference.as_ref();
    let difference = design.request.difference;
    let effect = match difference {
        Difference::Relative => compared.found.lift,
        Difference::Absolute => compared.found.estimate,
        Difference::Scaled => impact.map(|impact| impact.per_day),
    };
    // The interval of what decides, before other comparisons are thought of.
    let critical = match design.plan.analysis {
        Analysis::Fixed => found.map(|found| found.critical(alpha)),
        _ => compared.look(design.plan, alpha).and_then(|look| look.boundary_z),
    };
    let interval = found.zip(critical).and_then(|(found, critical)| match difference {
        Difference::Relative => found.relative(critical),
        Difference::Absolute => Some(found.absolute(critical)),
        Difference::Scaled => {
            let (low, high) = found.absolute(critical);
            impact.map(|impact| (low * impact.users_per_day, high * impact.users_per_day))
        }
    });
    let adjusted = if compared.is_adjusted() { ", adjusted for earlier behaviour," } else { "" };
    let confidence = format!("{}% CI{adjusted}", short(design.experiment.confidence_level * 100.0));
    let (evidence, conclusion) = evidence(design, compared, decided, verdict);
    Sentence {
        metric,
        currency: design.currency,
        control: (&design.variants[0].name, compared.control.mean),
        treatment: (&design.variants[compared.arm].name, compared.treatment.mean),
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
    let size = decided.adjusted.family_size;
    let among = format!("not significant after correction for {size} comparisons");
    let look = decided.look;
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
        Analysis::GroupSequential => match look {
            Some(look) => match (look.boundary_z, look.crossed_on) {
                (Some(_), Some(day)) if verdict.significant => {
                    let day = serde_json::to_value(day).ok().and_then(|day| day.as_str().map(str::to_owned)).unwrap_or_default();
                    (Some(format!("its bound was crossed on {day}")), conclusion("no difference is shown"))
                }
                (Some(bound), _) => {
                    let evidence = format!("z = {} against a bound of {}", short(look.z), short(bound));
                    let crosses_alone = compared.look(design.plan, design.experiment.alpha).is_some_and(|look| look.crossed);
                    let exact = compared.found.fisher().filter(|_| look.crossed && !decided.significant);
                    let otherwise = match exact {
                        Some(fisher) => format!("counts are few, and the exact test does not agree (p = {})", p_text(fisher.p)),
                        None if crosses_alone => among,
                        None => "no difference is shown so far".to_owned(),
                    };
                    (Some(evidence), conclusion(&otherwise))
                }
                (None, _) => (None, "there is no planned size or end to set bounds by".to_owned()),
            },
            None => (None, "too little is known to test it".to_owned()),
        },
        Analysis::Sequential | Analysis::Hybrid => {
            let Some(p) = compared.deciding_p(design.plan).map(|p| p.p) else {
                let exact = compared.found.fisher();
                let evidence = exact.map(|fisher| format!("p = {} (exact) for a single look", p_text(fisher.p)));
                return (evidence, "too little is known for a test that allows for looks".to_owned());
            };
            let valid = if design.plan.has_ended && design.plan.analysis == Analysis::Hybrid { "" } else { " at any time" };
            let is_significant_alone = p < design.experiment.alpha && !decided.significant;
            let otherwise = if is_significant_alone { among.as_str() } else { "no difference is shown so far" };
            (Some(format!("p = {}{valid}", p_text(p))), conclusion(otherwise))
        }
    }
}

fn percent(design: &Design<'_>) -> String {
    format!("{}%", short(design.experiment.minimum_detectable_effect * 100.0))
}
