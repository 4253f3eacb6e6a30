//! What to do with an experiment: health first, then rules about goals and guardrails, each with its reason.

/// What a metric says about a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Better, and shown.
    Won,
    /// Worse, and shown.
    Lost,
    /// Neither shown.
    Neutral,
}

/// The rules by which a variant is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criteria {
    /// Ship what is shown to win all goals; roll back what is shown to lose.
    ClearSignals,
    /// Ship what is not shown to lose: where shipping costs little.
    DoNoHarm,
    /// Ship what wins a goal and is shown to be safe in all guardrails.
    RiskAware,
}

/// One variant's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence<'a> {
    /// Goals, by the test in use.
    pub goals: &'a [Verdict],
    /// Goals, by evidence so strong that it counts before the power is reached (p below 0.001), in the same order.
    pub goals_strict: &'a [Verdict],
    /// Guardrails.
    pub guardrails: &'a [Verdict],
}

/// What to do with one variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give it to everybody.
    Ship,
    /// Take it back.
    Rollback,
    /// Somebody has to weigh it.
    Review,
}

impl Action {
    /// Returns the action as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Ship => "ship",
            Action::Rollback => "rollback",
            Action::Review => "review",
        }
    }
}

/// What to do with the experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// A variant may be given to everybody.
    ShipNow,
    /// All variants are to be taken back.
    RollbackNow,
    /// The experiment is done, and somebody has to weigh it.
    ReadyForReview,
    /// Too early to tell.
    Continue,
    /// Something loses or mixes users; no result can be trusted.
    Unhealthy,
}

impl Status {
    /// Returns the status as answers carry it.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::ShipNow => "ship-now",
            Status::RollbackNow => "rollback-now",
            Status::ReadyForReview => "ready-for-review",
            Status::Continue => "continue",
            Status::Unhealthy => "unhealthy",
        }
    }
}

/// What is known of the experiment as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experiment {
    /// Whether the variants hold other users than they should.
    pub has_mismatch: bool,
    /// The part of users that saw several variants.
    pub multi_exposed_share: f64,
    /// Whether the planned power is reached.
    pub is_powered: bool,
    /// Whether the tests in use hold for early looks.
    pub is_sequential: bool,
}

/// The part of users that saw several variants from which on no result is trusted.
pub const MULTI_EXPOSED_MAX: f64 = 0.01;

/// What to do, with the reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do with the experiment.
    pub status: Status,
    /// What to do with each variant, in their order; `None` where it is too early. Empty if the experiment is not healthy.
    pub variants: Vec<Option<Action>>,
    /// The rule that decided for each variant, or the fault of the experiment.
    pub why: Vec<&'static str>,
}

/// Decides about an experiment. Before the planned power is reached, and without tests that hold for early looks, only
/// strict evidence about goals decides; guardrails always do. What shows nothing before the power is reached is no case for a
/// review but too early, and a variant is given to everybody early only if nothing is left to be learned about another one.
/// Source: GrowthBook's decision framework, its presets Clear Signals and Do No Harm; the risk-aware rule of Schultzberg, Ankargren,
/// Frånberg 2024, Risk-aware product decisions in A/B tests with multiple metrics, arXiv 2402.11609; health comes first.
pub fn decide(criteria: Criteria, experiment: &Experiment, variants: &[Evidence<'_>]) -> Decision {
    let mut faults = Vec::new();
    if experiment.has_mismatch {
        faults.push("the variants hold other users than they should");
    }
    if experiment.multi_exposed_share >= MULTI_EXPOSED_MAX {
        faults.push("1 % of the users or more saw several variants");
    }
    if !faults.is_empty() {
        return Decision { status: Status::Unhealthy, variants: Vec::new(), why: faults };
    }
    let is_early = !experiment.is_powered && !experiment.is_sequential;
    let judged: Vec<(Option<Action>, &'static str)> = variants
        .iter()
        .map(|evidence| {
            let goals = if is_early { evidence.goals_strict } else { evidence.goals };
            let (action, why) = judge(criteria, goals, evidence.guardrails);
            (Some(action).filter(|action| experiment.is_powered || *action != Action::Review), why)
        })
        .collect();
    let has = |action: Action| judged.iter().any(|(found, _)| *found == Some(action));
    let is_open = judged.iter().any(|(found, _)| found.is_none());
    let status = if !judged.is_empty() && judged.iter().all(|(found, _)| *found == Some(Action::Rollback)) {
        Status::RollbackNow
    } else if has(Action::Ship) && !is_open {
        Status::ShipNow
    } else if experiment.is_powered && has(Action::Review) {
        Status::ReadyForReview
    } else {
        Status::Continue
    };
    let (variants, why) = judged.into_iter().unzip();
    Decision { status, variants, why }
}

/// Judges one variant by the first rule that fits.
fn judge(criteria: Criteria, goals: &[Verdict], guardrails: &[Verdict]) -> (Action, &'static str) {
    let any = |list: &[Verdict], verdict: Verdict| list.contains(&verdict);
    if any(guardrails, Verdict::Lost) {
        return (Action::Rollback, "a guardrail is lost");
    }
    match criteria {
        Criteria::ClearSignals if !goals.is_empty() && goals.iter().all(|goal| *goal == Verdict::Won) => {
            (Action::Ship, "all goals are won and no guardrail is lost")
        }
        Criteria::RiskAware if any(goals, Verdict::Won) && guardrails.iter().all(|guardrail| *guardrail == Verdict::Won) => {
            (Action::Ship, "a goal is won and all guardrails are shown to be safe")
        }
        Criteria::ClearSignals | Criteria::RiskAware if any(goals, Verdict::Lost) && !any(goals, Verdict::Won) => {
            (Action::Rollback, "a goal is lost and none is won")
        }
        Criteria::ClearSignals => (Action::Review, "the goals are not all won, and none is lost without one being won"),
        Criteria::RiskAware => (Action::Review, "no goal is won, or a guardrail is not shown to be safe"),
        Criteria::DoNoHarm if any(goals, Verdict::Lost) => (Action::Rollback, "a goal is lost"),
        Criteria::DoNoHarm => (Action::Ship, "no goal and no guardrail is lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Lost, Neutral, Won};

    const HEALTHY: Experiment =
        Experiment { has_mismatch: false, multi_exposed_share: 0.0, is_powered: true, is_sequential: false };

    fn check(
        experiment: Experiment,
        criteria: Criteria,
        goals: &[Verdict],
        strict: &[Verdict],
        guardrails: &[Verdict],
        status: Status,
    ) {
        let found = decide(criteria, &experiment, &[Evidence { goals, goals_strict: strict, guardrails }]);
        assert_eq!(found.status, status, "{found:?}");
        assert!(!found.why.is_empty());
    }

    #[test]
    fn rules_in_their_order() {
        use Criteria::{ClearSignals, DoNoHarm, RiskAware};
        check(HEALTHY, ClearSignals, &[Won, Won], &[], &[Neutral], Status::ShipNow);
        check(HEALTHY, ClearSignals, &[Won, Neutral], &[], &[], Status::ReadyForReview);
        check(HEALTHY, ClearSignals, &[Won, Lost], &[], &[], Status::ReadyForReview);
        check(HEALTHY, ClearSignals, &[Neutral, Lost], &[], &[], Status::RollbackNow);
        check(HEALTHY, ClearSignals, &[Won], &[], &[Won, Lost], Status::RollbackNow);
        check(HEALTHY, ClearSignals, &[], &[], &[], Status::ReadyForReview);
        check(HEALTHY, RiskAware, &[Won, Neutral], &[], &[Won, Won], Status::ShipNow);
        check(HEALTHY, RiskAware, &[Won, Lost], &[], &[], Status::ShipNow);
        check(HEALTHY, RiskAware, &[Won], &[], &[Won, Neutral], Status::ReadyForReview);
        check(HEALTHY, RiskAware, &[Neutral, Lost], &[], &[Won], Status::RollbackNow);
        check(HEALTHY, RiskAware, &[Won], &[], &[Lost], Status::RollbackNow);
        check(HEALTHY, DoNoHarm, &[Neutral], &[], &[Neutral], Status::ShipNow);
        check(HEALTHY, DoNoHarm, &[Won, Lost], &[], &[], Status::RollbackNow);
        check(HEALTHY, DoNoHarm, &[Won], &[], &[Lost], Status::RollbackNow);
    }

    #[test]
    fn early_looks_need_strict_evidence_or_a_sequence() {
        let early = Experiment { is_powered: false, ..HEALTHY };
        check(early, Criteria::ClearSignals, &[Won], &[Neutral], &[], Status::Continue);
        check(early, Criteria::ClearSignals, &[Won], &[Won], &[], Status::ShipNow);
        check(early, Criteria::ClearSignals, &[Neutral], &[Neutral], &[Lost], Status::RollbackNow);
        let sequential = Experiment { is_sequential: true, ..early };
        check(sequential, Criteria::ClearSignals, &[Won], &[Neutral], &[], Status::ShipNow);
        check(sequential, Criteria::ClearSignals, &[Neutral], &[Neutral], &[], Status::Continue);
    }

    #[test]
    fn what_is_open_before_the_power_is_there_is_waited_for() {
        let evidence = |goals| Evidence { goals, goals_strict: goals, guardrails: &[] };
        let decide = |is_powered, is_sequential, variants: &[Evidence<'_>]| {
            let found = decide(Criteria::ClearSignals, &Experiment { is_powered, is_sequential, ..HEALTHY }, variants);
            (found.status, found.variants)
        };
        use Action::{Review, Rollback, Ship};
        for is_sequential in [false, true] {
            let found = decide(false, is_sequential, &[evidence(&[Won]), evidence(&[Neutral])]);
            assert_eq!(found, (Status::Continue, vec![Some(Ship), None]), "one has won early, one is flat");
            let found = decide(false, is_sequential, &[evidence(&[Won]), evidence(&[Lost])]);
            assert_eq!(found, (Status::ShipNow, vec![Some(Ship), Some(Rollback)]));
            assert_eq!(decide(false, is_sequential, &[evidence(&[Neutral])]), (Status::Continue, vec![None]));
        }
        let found = decide(true, true, &[evidence(&[Won]), evidence(&[Neutral])]);
        assert_eq!(found, (Status::ShipNow, vec![Some(Ship), Some(Review)]));
    }

    #[test]
    fn health_comes_first_and_all_variants_count() {
        check(Experiment { has_mismatch: true, ..HEALTHY }, Criteria::DoNoHarm, &[Won], &[], &[], Status::Unhealthy);
        check(Experiment { multi_exposed_share: 0.01, ..HEALTHY }, Criteria::DoNoHarm, &[Won], &[], &[], Status::Unhealthy);
        let evidence = |goals| Evidence { goals, goals_strict: &[], guardrails: &[] };
        let decide = |variants: &[Evidence<'_>]| decide(Criteria::ClearSignals, &HEALTHY, variants).status;
        assert_eq!(decide(&[evidence(&[Lost]), evidence(&[Won])]), Status::ShipNow);
        assert_eq!(decide(&[evidence(&[Lost]), evidence(&[Neutral])]), Status::ReadyForReview);
        assert_eq!(decide(&[evidence(&[Lost]), evidence(&[Lost])]), Status::RollbackNow);
        assert_eq!(decide(&[]), Status::Continue);
    }
}
