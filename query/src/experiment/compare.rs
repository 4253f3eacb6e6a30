//! Samples -> statistics -> the part of the answer about one variant against the control.
//!
//! First each comparison is made by itself ([`Compared`]); then the family of all of them decides what stands
//! ([`decide`]); then each is described, verdict and sentence from the same result ([`describe`]).

use statistics::bayes_beta;
use statistics::bayes_normal::{Prior, posterior};
use statistics::comparison::{self, Observed, Sample, compare};
use statistics::cuped;
use statistics::difference::Difference;
use statistics::distributions::PValue;
use statistics::effect::{Alternative, Effect, Scale};
use statistics::guardrail::{Direction, State, non_inferiority, state as guardrail_state};
use statistics::moments::Overflow;
use statistics::multiplicity::{self, Adjusted as Kept, Member, adjust, is_finding};
use statistics::power::{POWER_DEFAULT, Target, days_remaining, detectable_effect, mid_experiment, progress};
use statistics::proportions::{Count, newcombe, pooled_z};
use statistics::sequential::hybrid;
use statistics::strata::{Traffic, impact_per_day};

use super::catalogue::{Configured, Role};
use super::looks::{Looked, Plan};
use super::sample::Sampled;
use super::settings::{Analysis, COVARIATE_DAYS, Correction, Cuped as CupedRule, Engine, Request};
use super::verdict::{plain, verdict};
use crate::answer::metric::{
    Absolute, Adjusted, Bayesian, Comparison, Cuped, Guardrail, Other, Power, Prior as ShownPrior, Relative, ScaledImpact,
    Sequential, Shrunk, Supplemental, Test, ends,
};
use crate::answer::{Experiment, Variant};

/// Part of the variance that earlier behaviour has to explain before a comparison is adjusted for it.
const EXPLAINED_MIN: f64 = 0.05;

/// What is the same for all comparisons of an answer.
pub struct Setting<'a> {
    /// The experiment.
    pub experiment: &'a Experiment,
    /// Its variants, the control first.
    pub variants: &'a [Variant],
    /// What was asked for.
    pub request: &'a Request,
    /// Which looks are allowed for.
    pub plan: &'a Plan,
    /// The currency of values.
    pub currency: Option<&'a str>,
    /// Whether there is a day of behaviour before exposures.
    pub has_history: bool,
    /// Primary metrics.
    pub goals: u32,
    /// New users per day of late.
    pub users_per_day: f64,
    /// Users over all variants, and days from the first exposure to now.
    pub pace: (u64, f64),
}

/// One variant against the control, by itself.
#[derive(Clone, Debug)]
pub struct Compared {
    /// The variant's place.
    pub arm: usize,
    /// The control.
    pub control: Observed,
    /// The variant.
    pub treatment: Observed,
    /// What the answer rests on: adjusted for earlier behaviour where that helps.
    pub found: comparison::Comparison,
    /// The same without adjustment.
    pub unadjusted: comparison::Comparison,
    /// What earlier behaviour adds.
    pub cuped: Option<Cuped>,
    /// The differences at the end of each day, in standard errors.
    pub z_by_day: Vec<Option<f64>>,
}

/// Compares a variant with the control. `theta` is how much of earlier behaviour is taken off, of all variants together.
/// # Errors
/// [`Overflow`].
pub fn compared(
    setting: &Setting<'_>,
    control: &Sampled,
    treatment: &Sampled,
    arm: usize,
    theta: Option<f64>,
) -> Result<Compared, Overflow> {
    let unadjusted = compare(&control.observed, &treatment.observed, setting.experiment.alpha);
    let (cuped, adjusted) = adjusted(setting, control, treatment, theta, &unadjusted)?;
    Ok(Compared {
        arm,
        control: control.observed,
        treatment: treatment.observed,
        found: adjusted.map_or(unadjusted, |difference| unadjusted.adjusted(difference)),
        unadjusted,
        cuped,
        z_by_day: Vec::new(),
    })
}

/// Adjusts for earlier behaviour, or says why not.
fn adjusted(
    setting: &Setting<'_>,
    control: &Sampled,
    treatment: &Sampled,
    theta: Option<f64>,
    unadjusted: &comparison::Comparison,
) -> Result<(Option<Cuped>, Option<Difference>), Overflow> {
    let not = |reason: &'static str| Cuped {
        applied: false,
        reason: Some(reason),
        theta: None,
        variance_reduction: None,
        effective_sample_gain: None,
        covariate_days: COVARIATE_DAYS,
    };
    if setting.request.cuped == CupedRule::Off {
        return Ok((None, None));
    }
    let Some((one, two)) = control.cuped.as_ref().zip(treatment.cuped.as_ref()) else {
        return Ok((Some(not("not_defined")), None));
    };
    let Some(plain) = unadjusted.difference else { return Ok((None, None)) };
    if unadjusted.exact.is_some() {
        return Ok((Some(not("exact")), None));
    }
    let Some(theta) = theta.filter(|theta| *theta != 0.0 && setting.has_history) else {
        return Ok((Some(not("no_history")), None));
    };
    let Ok(adjusted) = cuped::adjusted(one, two, theta)? else {
        return Ok((Some(not("explains_little")), None));
    };
    let reduction = 1.0 - (adjusted.difference.std_error / plain.std_error).powi(2);
    let applied = reduction >= EXPLAINED_MIN;
    let shown = Cuped {
        applied,
        reason: (!applied).then_some("explains_little"),
        theta: Some(adjusted.theta),
        variance_reduction: Some(reduction),
        effective_sample_gain: (reduction < 1.0).then(|| 1.0 / (1.0 - reduction)),
        covariate_days: COVARIATE_DAYS,
    };
    Ok((Some(shown), applied.then_some(adjusted.difference)))
}

impl Compared {
    /// Returns whether exact results decide, because counts are few.
    pub fn is_exact(&self) -> bool {
        self.found.fisher().is_some()
    }

    /// Returns whether the answer rests on an adjusted difference.
    pub fn is_adjusted(&self) -> bool {
        self.cuped.is_some_and(|cuped| cuped.applied)
    }

    /// Returns users of both.
    pub fn users(&self) -> u64 {
        self.control.users + self.treatment.users
    }

    /// Returns the effect in the metric's unit or in shares of the control, as Bayesian methods take it.
    pub fn effect(&self, scale: Scale) -> Option<Effect> {
        self.found.difference.and_then(|difference| difference.effect(scale).ok())
    }

    /// Looks at the difference at the level `alpha`; none if it has no precision.
    pub fn look(&self, plan: &Plan, alpha: f64) -> Option<Sequential> {
        let difference = self.found.difference.as_ref()?;
        Some(plan.look(&Looked { arm: self.arm, difference, users: self.users(), z_by_day: &self.z_by_day }, alpha))
    }

    /// Returns the decisive p-value under the analysis; bounds have none. Sequences rest on many counts: where they are few,
    /// the exact test has to agree.
    pub fn decisive_p(&self, plan: &Plan) -> Option<PValue> {
        match plan.analysis {
            Analysis::Fixed => self.found.p_value(),
            Analysis::Sequential => {
                let look = self.look(plan, plan.alpha)?;
                Some(self.found.at_least_exact(PValue { p: look.always_valid_p, log10: look.log10_p }))
            }
            // Half of alpha is left for each part of the plan.
            Analysis::Hybrid if plan.has_ended => Some(self.found.p_value()?.times(2.0)),
            Analysis::Hybrid => {
                let look = hybrid(self.found.difference.as_ref()?, self.users(), plan.alpha, &plan.tuning(self.arm), false);
                Some(self.found.at_least_exact(look.p_value).times(2.0))
            }
            Analysis::GroupSequential => None,
        }
    }

    /// Returns the comparison in short.
    pub fn other(&self, alpha: f64) -> Other {
        other(&self.found, self.users(), alpha)
    }

    /// Returns the same in short without adjustment for earlier behaviour.
    pub fn other_unadjusted(&self, alpha: f64) -> Other {
        other(&self.unadjusted, self.users(), alpha)
    }
}

fn other(found: &comparison::Comparison, users: u64, alpha: f64) -> Other {
    let p_value = found.p_value();
    let relative = found.difference.and_then(|difference| difference.relative(difference.critical(alpha)));
    Other {
        users,
        status: found.status.as_str(),
        estimate: found.estimate,
        ci: ends(found.interval(alpha)),
        lift: found.lift,
        ci_relative: ends(relative),
        p_value: p_value.map(|p| p.p),
        log10_p: p_value.map(|p| p.log10),
    }
}

/// What the family leaves of one comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decisive {
    /// The adjusted p-value, level and size of the family.
    pub kept: Kept,
    /// The look at that level.
    pub look: Option<Sequential>,
    /// Whether the difference stands.
    pub significant: bool,
    /// The method it stands by.
    pub by: &'static str,
    /// How many standard errors the intervals among all reach.
    pub critical: Option<f64>,
    /// Whether it is in the family of goals; a guardrail stands alone.
    pub is_goal: bool,
}

/// Decides a family. Each member comes with its metric; guardrails are decided by themselves.
pub fn decide(setting: &Setting<'_>, family: &[(&Configured, &Compared)]) -> Vec<Decisive> {
    let (plan, alpha) = (setting.plan, setting.plan.alpha);
    let has_bounds = plan.analysis == Analysis::GroupSequential;
    let member = |(metric, compared): &(&Configured, &Compared)| {
        let p_value = compared.decisive_p(plan);
        let is_tested = if has_bounds { compared.found.difference.is_some() } else { p_value.is_some() };
        Member { p_value, is_tested, is_primary: metric.role == Role::Primary }
    };
    let is_goal = |metric: &Configured| metric.role != Role::Guardrail;
    let members: Vec<Member> = family.iter().filter(|(metric, _)| is_goal(metric)).map(member).collect();
    let mut kept = adjust(&members, correction(setting.request.correction), alpha).into_iter();
    let one = |found: &(&Configured, &Compared)| {
        let (metric, compared) = found;
        let alone = || Kept { p_value: member(found).p_value, alpha, family_size: 1 };
        let kept = if is_goal(metric) { kept.next().unwrap_or_else(alone) } else { alone() };
        let look = compared.look(plan, kept.alpha);
        let by_p = kept.p_value.is_some_and(|p| is_finding(p.p, alpha));
        let is_exact_too = || !compared.is_exact() || compared.found.p_value().is_some_and(|p| p.p < kept.alpha);
        let significant = if has_bounds { look.is_some_and(|look| look.crossed) && is_exact_too() } else { by_p };
        let critical = match plan.analysis {
            Analysis::Fixed => compared.found.difference.map(|difference| difference.critical(kept.alpha)),
            _ => look.and_then(|look| look.boundary_z),
        };
        let by = match plan.analysis {
            Analysis::Fixed if compared.is_exact() => "fisher_exact",
            Analysis::Fixed => "welch_t",
            other => other.as_str(),
        };
        Decisive { kept, look, significant, by, critical, is_goal: is_goal(metric) }
    };
    family.iter().map(one).collect()
}

fn correction(asked: Correction) -> multiplicity::Correction {
    match asked {
        Correction::None => multiplicity::Correction::None,
        Correction::Holm => multiplicity::Correction::Holm,
        Correction::Bh => multiplicity::Correction::BenjaminiHochberg,
        Correction::PreferentialBonferroni => multiplicity::Correction::Preferential,
    }
}

/// What the answer adds to one comparison from elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added {
    /// The same under other settings.
    pub supplemental: Supplemental,
    /// That the variant is the best of all.
    pub probability_best: Option<f64>,
}

/// Describes one comparison.
pub fn describe(
    setting: &Setting<'_>,
    metric: &Configured,
    compared: &Compared,
    decisive: &Decisive,
    added: Added,
) -> Comparison {
    let alpha = setting.experiment.alpha;
    let engine = setting.request.engine;
    let mut bayesian =
        (engine != Engine::Frequentist).then(|| bayesian(metric, compared, alpha, added.probability_best)).flatten();
    if let Some(bayesian) = bayesian.as_mut().filter(|_| setting.variants.len() == 2) {
        // Of two the better one is the best.
        bayesian.probability_best = Some(bayesian.chance_to_win);
    }
    let power = power(setting, metric, compared);
    let impact = impact(setting, compared, decisive);
    let guardrail = guardrail(metric, compared, decisive, alpha);
    let verdict = verdict(setting, metric, compared, decisive, bayesian.as_ref());
    let adjusted = decisive.is_goal.then(|| adjusted_shown(setting, compared, decisive));
    Comparison {
        variant_id: setting.variants[compared.arm].id,
        status: compared.found.status.as_str(),
        approximation: if compared.found.exact.is_some() { "exact" } else { "t" },
        absolute: absolute(compared, alpha),
        relative: relative(compared, alpha),
        test: test(compared),
        adjusted: adjusted.flatten(),
        sequential: decisive.look,
        cuped: compared.cuped,
        supplemental: added.supplemental,
        power,
        guardrail,
        scaled_impact: impact,
        verdict: verdict.text,
        significant: verdict.significant,
        decided_by: verdict.by,
        plain: plain(setting, metric, compared, decisive, &verdict, impact.as_ref()),
        bayesian,
    }
}

fn absolute(compared: &Compared, alpha: f64) -> Absolute {
    let found = &compared.found;
    Absolute {
        estimate: found.estimate,
        std_error: found.difference.map(|difference| difference.std_error),
        ci: ends(found.interval(alpha)),
        ci_newcombe: found.exact.map(|exact| [exact.newcombe.0, exact.newcombe.1]),
    }
}

fn relative(compared: &Compared, alpha: f64) -> Relative {
    let difference = compared.found.difference;
    let critical = difference.map(|difference| difference.critical(alpha));
    let delta = compared.effect(Scale::Relative).map(|effect| effect.test(Alternative::TwoSided, alpha));
    Relative {
        lift: compared.found.lift,
        ci: ends(difference.zip(critical).and_then(|(difference, critical)| difference.relative(critical))),
        ci_method: "fieller",
        g: difference.zip(critical).and_then(|(difference, critical)| difference.g(critical)),
        ci_delta: delta.and_then(|delta| Some([delta.low?, delta.high?])),
        p_delta: delta.map(|delta| delta.p_value),
        log10_p_delta: delta.map(|delta| delta.log10_p),
    }
}

fn counts(compared: &Compared) -> Option<(Count, Count)> {
    match (compared.control.sample, compared.treatment.sample) {
        (Ok(Sample::Share(control)), Ok(Sample::Share(treatment))) => Some((control, treatment)),
        _ => None,
    }
}

fn test(compared: &Compared) -> Test {
    let (difference, fisher) = (compared.found.difference, compared.found.fisher());
    let pooled = counts(compared).and_then(|(control, treatment)| pooled_z(control, treatment)).map(|(_, tail)| tail);
    let p_value = difference.map(|difference| difference.p_value()).or(fisher);
    Test {
        name: if difference.is_none() && fisher.is_some() { "fisher_exact" } else { "welch_t" },
        statistic: difference.map(|difference| difference.z()),
        dof: difference.map(|difference| difference.dof),
        p_value: p_value.map(|p| p.p),
        log10_p: p_value.map(|p| p.log10),
        p_fisher: fisher.map(|p| p.p),
        log10_p_fisher: fisher.map(|p| p.log10),
        p_pooled: pooled.map(|tail| tail.p),
        log10_p_pooled: pooled.map(|tail| tail.log10()),
    }
}

fn adjusted_shown(setting: &Setting<'_>, compared: &Compared, decisive: &Decisive) -> Option<Adjusted> {
    let has_bounds = setting.plan.analysis == Analysis::GroupSequential;
    let difference = compared.found.difference;
    let is_tested = if has_bounds { difference.is_some() } else { decisive.kept.p_value.is_some() };
    if !is_tested {
        return None;
    }
    let interval = difference.zip(decisive.critical).map(|(difference, critical)| difference.absolute(critical));
    let exact = counts(compared)
        .filter(|_| difference.is_none())
        .and_then(|(control, treatment)| newcombe(control, treatment, decisive.kept.alpha));
    let relative = difference.zip(decisive.critical).and_then(|(difference, critical)| difference.relative(critical));
    let method = match setting.request.correction {
        Correction::Holm | Correction::Bh if has_bounds => "bonferroni",
        other => other.as_str(),
    };
    Some(Adjusted {
        method,
        family_size: decisive.kept.family_size,
        p_value: decisive.kept.p_value.map(|p| p.p),
        log10_p: decisive.kept.p_value.map(|p| p.log10),
        alpha: decisive.kept.alpha,
        ci_absolute: ends(interval.or(exact)),
        ci_relative: ends(relative),
        significant: decisive.significant,
    })
}

fn bayesian(metric: &Configured, compared: &Compared, alpha: f64, probability_best: Option<f64>) -> Option<Bayesian> {
    let less_is_better = !metric.wants_more;
    let shrunk = compared.effect(Scale::Relative).and_then(|effect| {
        let prior = Prior::SHRUNK.on(Scale::Relative, compared.control.mean?)?;
        let found = posterior(&effect, Some(&prior), less_is_better, alpha);
        let ci = [found.interval.0, found.interval.1];
        let all = [found.mean, found.chance_to_win, ci[0], ci[1]];
        let prior_sd = Prior::SHRUNK.variance.sqrt();
        all.iter().all(|number| number.is_finite()).then_some(Shrunk {
            prior_sd,
            lift: found.mean,
            ci,
            chance_to_win: found.chance_to_win,
        })
    });
    if let Some((control, treatment)) = counts(compared).filter(|_| !compared.is_adjusted()) {
        let prior = bayes_beta::Prior::UNIFORM;
        let (one, two) = (prior.posterior(control)?, prior.posterior(treatment)?);
        let found = bayes_beta::compare(&one, &two);
        let flat = compared.effect(Scale::Absolute).map(|effect| posterior(&effect, None, less_is_better, alpha).interval);
        let (chance, ship, keep) = match less_is_better {
            false => (found.chance_treatment, found.expected_loss_treatment, found.expected_loss_control),
            true => (found.chance_control, found.expected_loss_control, found.expected_loss_treatment),
        };
        return Some(Bayesian {
            model: "beta_binomial",
            chance_to_win: chance,
            probability_best,
            expected_loss_ship: ship,
            expected_loss_keep: keep,
            ci: ends(flat),
            prior: ShownPrior { name: "beta", shapes: Some([prior.a, prior.b]) },
            shrunk,
        });
    }
    let found = posterior(&compared.effect(Scale::Absolute)?, None, less_is_better, alpha);
    Some(Bayesian {
        model: "normal",
        chance_to_win: found.chance_to_win,
        probability_best,
        expected_loss_ship: found.expected_loss_treatment,
        expected_loss_keep: found.expected_loss_control,
        ci: ends(Some(found.interval)),
        prior: ShownPrior { name: "flat", shapes: None },
        shrunk,
    })
}

/// How much could be seen by now, at the experiment's own effect worth finding.
fn power(setting: &Setting<'_>, metric: &Configured, compared: &Compared) -> Option<Power> {
    if metric.role == Role::Guardrail {
        return None;
    }
    let (experiment, difference) = (setting.experiment, compared.found.difference?);
    // The precision of the difference in shares of the control, whatever the treatment's mean is.
    let std_error = difference.std_error / difference.baseline.abs();
    let effect = Effect { estimate: difference.lift()?, std_error, dof: difference.dof };
    let mde_target = experiment.minimum_detectable_effect;
    let mde_now = detectable_effect(std_error, experiment.alpha, POWER_DEFAULT)?;
    let is_sequence = matches!(setting.plan.analysis, Analysis::Sequential | Analysis::Hybrid);
    let target = Target {
        effect: mde_target,
        power: POWER_DEFAULT,
        goals: setting.goals.max(1),
        variants: u32::try_from(setting.variants.len()).ok()?,
        sequential_tightest_at: is_sequence.then(|| setting.plan.n_star(compared.arm)),
    };
    let ahead = mid_experiment(&effect, compared.users(), experiment.alpha, &target, None)?;
    let additional = ahead.additional_users.map(f64::ceil).filter(|users| users.is_finite() && *users < 1e18);
    // Both variants get their part of all new users.
    let of_pair = setting.users_per_day * compared.users() as f64 / (setting.pace.0.max(1) as f64);
    Some(Power {
        mde_now,
        mde_target,
        progress: progress(mde_target, mde_now),
        required_users: additional.map(|additional| compared.users() + additional as u64),
        days_remaining: additional.and_then(|additional| days_remaining(additional, of_pair)),
        power_at_mde: ahead.power_now,
    })
}

/// Judges a guardrail: its bound is one-sided, harm is what the two-sided decision shows.
fn guardrail(metric: &Configured, compared: &Compared, decisive: &Decisive, alpha: f64) -> Option<Guardrail> {
    if metric.role != Role::Guardrail {
        return None;
    }
    let margin = metric.margin.unwrap_or(0.0);
    let undefined = Guardrail { margin, bound: None, p_value: None, log10_p: None, state: State::Inconclusive.as_str() };
    let effect = compared.effect(Scale::Absolute);
    let (Some(effect), Some(baseline)) = (effect, compared.control.mean) else { return Some(undefined) };
    let direction = if metric.wants_more { Direction::Increase } else { Direction::Decrease };
    let found = non_inferiority(&effect, baseline, margin, direction, alpha);
    Some(Guardrail {
        bound: (baseline != 0.0).then(|| found.bound / baseline.abs()),
        p_value: Some(found.p_value),
        log10_p: Some(found.log10_p),
        state: guardrail_state(&found, decisive.significant, direction).as_str(),
        ..undefined
    })
}

/// What a day would bring with everybody in the variant: the difference per user times the users of a day.
fn impact(setting: &Setting<'_>, compared: &Compared, decisive: &Decisive) -> Option<ScaledImpact> {
    let difference = compared.found.difference?;
    let (users, days) = setting.pace;
    let interval = decisive.critical.map(|critical| difference.absolute(critical));
    let found = impact_per_day(difference.estimate, interval, &Traffic { users, share: 1.0, days })?;
    Some(ScaledImpact { per_day: found.estimate, ci: ends(found.interval), users_per_day: found.users_per_day })
}
