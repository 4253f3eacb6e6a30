//! One variant against the control: first each comparison by itself ([`Compared`]), then what the family of all of them leaves
//! ([`Conclusion`]), then what else there is to say about it ([`TestedComparison`]).

use statistics::bayes_beta::{self, probability_best};
use statistics::bayes_normal::{Prior, posterior};
use statistics::comparison::{self, Observed, Sample, Stratum, compare, compare_strata};
use statistics::difference::Difference;
use statistics::distributions::PValue;
use statistics::effect::{Effect, Scale};
use statistics::guardrail::{Direction, State, non_inferiority, state as guardrail_state};
use statistics::moments::Overflow;
use statistics::multiplicity::{self, Adjusted, Member, adjust, is_finding};
use statistics::power::{POWER_DEFAULT, Target, days_remaining, detectable_effect, mid_experiment, progress};
use statistics::proportions::Count;
use statistics::regression::Coefficients;
use statistics::sequential::{hybrid, hybrid_level};
use statistics::strata::{Traffic, impact_per_day};

use super::earlier::{Adjustment, DIFFERS_BEFORE, Earlier, adjusted, differs_before};
use super::findings::{
    Bayesian, Cuped, EarlyWarning, Guardrail, Other, Power, Prior as ShownPrior, ScaledImpact, Shrunk, Supplemental, ends,
};
use super::plan::{Early, Interim, Looked, Plan, Seen};
use super::trigger::Diluted;
use crate::experiment::measure::sample::Sampled;
use crate::experiment::read::catalogue::{Configured, Role};
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::request::{Analysis, Correction, Cuped as CupedRule, Engine, Request};

/// The part of alpha that a guardrail leaves for its early warning.
const EARLY_SHARE: f64 = 0.2;

/// The method by which an early warning decides.
pub const EARLY_WARNING: &str = "early_warning";

/// What is the same for all comparisons of an answer.
#[derive(Clone, Copy)]
pub struct Design<'a> {
    /// The experiment.
    pub experiment: &'a Experiment,
    /// Its variants, the control first.
    pub variants: &'a [Variant],
    /// What was asked for.
    pub request: &'a Request,
    /// Whether earlier behaviour sharpens the comparisons.
    pub cuped: CupedRule,
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

/// Why nothing is decided by a comparison, whatever it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    /// What users come to grows as long as anybody looks, and looks are allowed for.
    Open,
    /// A part of what users did counts, so that their windows are not whole.
    Part,
}

impl Undecided {
    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Undecided::Open => "open",
            Undecided::Part => "descriptive",
        }
    }
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
    /// What of it is taken off; none where nothing is, and where users were assigned in shares that changed, of which each has its own.
    pub taken_off: Option<Coefficients>,
    /// Whether users were assigned in shares that changed: then control and treatment have the means of the same mixture of strata.
    pub has_strata: bool,
    /// The metric's window, in microseconds.
    pub window_us: i64,
    /// Why nothing is decided by it, whatever it shows.
    pub undecided: Option<Undecided>,
    /// What looks saw at the end of each day, of users whose window had closed; empty of what has no such history.
    pub by_day: Vec<Option<Seen>>,
    /// What they saw of all users, with what these had done by then; empty likewise.
    pub all_by_day: Vec<Option<Seen>>,
    /// What the early warning of a guardrail saw: what users did within a day, of those for whom it was over; empty without one.
    pub early_by_day: Vec<Option<Seen>>,
}

/// Compares a variant with the control; `earlier` is none where earlier behaviour is left aside.
pub fn compared(design: &Design<'_>, control: &Sampled, treatment: &Sampled, arm: usize, earlier: Option<Earlier>) -> Compared {
    if !control.strata.is_empty() {
        let pairs = control.strata.iter().zip(&treatment.strata);
        let strata = pairs.map(|(control, treatment)| compared(design, control, treatment, arm, earlier.clone()));
        return over_strata(design, (control, treatment), arm, &strata.collect::<Vec<_>>());
    }
    let unadjusted = compare(&control.observed, &treatment.observed, design.experiment.alpha);
    let Adjustment { shown, applied } = adjusted(design, control, treatment, earlier, &unadjusted);
    let found = applied.as_ref().map_or(unadjusted, |(difference, _)| unadjusted.adjusted(*difference));
    Compared {
        arm,
        control: control.observed,
        treatment: treatment.observed,
        found,
        unadjusted,
        cuped: shown,
        taken_off: applied.map(|(_, coefficients)| coefficients),
        has_strata: false,
        window_us: 0,
        undecided: None,
        by_day: Vec::new(),
        all_by_day: Vec::new(),
        early_by_day: Vec::new(),
    }
}

/// Puts the comparisons within strata together. Control and treatment have the means of the difference, which are those of the same
/// mixture of strata.
fn over_strata(design: &Design<'_>, (control, treatment): (&Sampled, &Sampled), arm: usize, strata: &[Compared]) -> Compared {
    let alpha = design.experiment.alpha;
    let stratum = |is_adjusted: bool| {
        strata.iter().map(move |found| {
            let adjusted = found.found.difference.filter(|_| is_adjusted && found.is_adjusted());
            Stratum { control: found.control, treatment: found.treatment, adjusted }
        })
    };
    let of = |is_adjusted: bool| compare_strata(&stratum(is_adjusted).collect::<Vec<_>>(), alpha);
    // What is wrong with the covariate of some users is wrong with all of the comparison.
    let differs = strata.iter().any(Compared::differs_before);
    let (unadjusted, applied) = (of(false), !differs && strata.iter().any(Compared::is_adjusted));
    let found = if applied { of(true) } else { unadjusted };
    let reduction =
        found.difference.zip(unadjusted.difference).map(|(found, plain)| 1.0 - (found.std_error / plain.std_error).powi(2));
    // Why not, is what the stratum of the most users says.
    let largest = strata.iter().max_by_key(|found| found.users()).and_then(|found| found.cuped.clone());
    let cuped = largest.map(|cuped| Cuped {
        applied,
        reason: if differs { Some(DIFFERS_BEFORE) } else { cuped.reason.filter(|_| !applied) },
        theta: None,
        covariates: Vec::new(),
        variance_reduction: reduction.filter(|_| applied),
        effective_sample_gain: reduction.filter(|reduction| applied && *reduction < 1.0).map(|reduction| 1.0 / (1.0 - reduction)),
        ..cuped
    });
    let precise = found.difference.or(found.for_looks);
    let observed = |sampled: &Sampled, mean: fn(&Difference) -> f64| match precise {
        Some(precise) => Observed { mean: Some(mean(&precise)), ..sampled.observed },
        None => sampled.observed,
    };
    Compared {
        arm,
        control: observed(control, |difference| difference.baseline),
        treatment: observed(treatment, |difference| difference.treatment),
        found,
        unadjusted,
        cuped,
        taken_off: None,
        has_strata: true,
        window_us: 0,
        undecided: None,
        by_day: Vec::new(),
        all_by_day: Vec::new(),
        early_by_day: Vec::new(),
    }
}

/// Compares each variant with the first one, adjusted for earlier behaviour where that helps.
/// # Errors
/// [`Overflow`].
pub fn compare_all(design: &Design<'_>, sampled: &[Sampled]) -> Result<Vec<Compared>, Overflow> {
    let Some((control, others)) = sampled.split_first() else { return Ok(Vec::new()) };
    if !control.strata.is_empty() {
        let of_stratum = |place: usize| {
            let sampled: Vec<Sampled> = sampled.iter().map(|sampled| sampled.strata[place].clone()).collect();
            compare_all(design, &sampled)
        };
        let strata = (0..control.strata.len()).map(of_stratum).collect::<Result<Vec<_>, _>>()?;
        let of_arm = |(place, other): (usize, &Sampled)| {
            let strata: Vec<Compared> = strata.iter().map(|compared| compared[place].clone()).collect();
            over_strata(design, (control, other), place + 1, &strata)
        };
        return Ok(others.iter().enumerate().map(of_arm).collect());
    }
    // Without the control's there is nothing to be compared.
    let is_used = design.cuped != CupedRule::Off && control.regressed.is_some();
    let earlier = match is_used {
        false => None,
        true if differs_before(sampled)? => Some(Earlier::Differs),
        true => Some(Earlier::Estimated),
    };
    let of_arm = |(place, other): (usize, &Sampled)| compared(design, control, other, place + 1, earlier.clone());
    Ok(others.iter().enumerate().map(of_arm).collect())
}

impl Compared {
    /// Returns whether exact results decide, because counts are few.
    pub fn is_exact(&self) -> bool {
        self.found.fisher().is_some()
    }

    /// Returns whether the answer rests on an adjusted difference.
    pub fn is_adjusted(&self) -> bool {
        self.cuped.as_ref().is_some_and(|cuped| cuped.applied)
    }

    /// Returns whether nothing is adjusted since the variants' users were not alike before they were exposed.
    pub fn differs_before(&self) -> bool {
        self.cuped.as_ref().is_some_and(|cuped| cuped.reason == Some(DIFFERS_BEFORE))
    }

    /// Returns what is taken off at the end of each day as it is off the whole today; none where nothing is, and where users were assigned in
    /// shares that changed, of which each has its own.
    pub fn of_days(&self) -> Option<Earlier> {
        self.taken_off.clone().map(Earlier::OfWhole)
    }

    /// Returns what is taken off parts of the users as it is off the whole; none likewise.
    pub fn of_parts(&self) -> Option<Earlier> {
        self.taken_off.clone().map(|coefficients| Earlier::OfWhole(coefficients.of_part()))
    }

    /// Returns users of both.
    pub fn users(&self) -> u64 {
        self.control.users + self.treatment.users
    }

    /// Returns the effect in the metric's unit or in shares of the control, as Bayesian methods take it.
    pub fn effect(&self, scale: Scale) -> Option<Effect> {
        self.found.difference.and_then(|difference| difference.effect(scale).ok())
    }

    /// Returns the difference with its precision: Welch's, or that of both variants together where nobody or everybody of one
    /// converted.
    pub fn precise(&self) -> Option<Difference> {
        self.found.difference.or(self.found.for_looks)
    }

    /// Returns what one look sees; none of a difference without precision.
    pub fn seen(&self) -> Option<Seen> {
        Some(Seen {
            difference: self.found.for_looks?,
            is_adjusted: self.is_adjusted(),
            users: self.users(),
            exact_p: self.found.fisher().map(|fisher| fisher.p),
        })
    }

    /// Returns what today's look sees: at the end of a hybrid plan it is one test, as a fixed analysis makes it.
    fn seen_under(&self, plan: &Plan) -> Option<Seen> {
        let is_last_test = plan.analysis == Analysis::Hybrid && plan.is_final(self.window_us);
        let seen = self.seen()?;
        Some(if is_last_test { Seen { difference: self.precise()?, ..seen } } else { seen })
    }

    /// Looks at the difference at the level `alpha`; none if it has no precision.
    pub fn look(&self, plan: &Plan, alpha: f64) -> Option<Looked> {
        let (arm, window_us, today) = (self.arm, self.window_us, self.seen_under(plan)?);
        Some(plan.look(&Interim { arm, window_us, today, by_day: &self.by_day, all_by_day: &self.all_by_day }, alpha))
    }

    /// Returns the p-value that decides under the analysis; bounds have none. Sequences rest on many counts: where they are few,
    /// the exact test has to agree.
    pub fn deciding_p(&self, plan: &Plan) -> Option<PValue> {
        match plan.analysis {
            Analysis::Fixed => self.found.p_value(),
            Analysis::Sequential => {
                let look = self.look(plan, plan.alpha)?.shown;
                Some(self.found.at_least_exact(PValue { p: look.always_valid_p, log10: look.log10_p }))
            }
            Analysis::Hybrid => {
                // A part of alpha is left for each part of the plan.
                let factor = plan.alpha / hybrid_level(plan.alpha);
                if plan.is_final(self.window_us) {
                    return Some(self.found.p_value()?.times(factor));
                }
                let look = hybrid(self.found.for_looks.as_ref()?, self.users(), plan.alpha, &plan.tuning(self.arm), false);
                Some(self.found.at_least_exact(look.p_value).times(factor))
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
pub struct Conclusion {
    /// The adjusted p-value, level and size of the family.
    pub adjusted: Adjusted,
    /// The looks at that level.
    pub look: Option<Looked>,
    /// Whether the difference stands.
    pub significant: bool,
    /// The method it stands by.
    pub by: &'static str,
    /// What the verdict, its intervals and its sentence rest on; none where only exact methods apply.
    pub basis: Option<Basis>,
    /// Whether it is in the family of goals; a guardrail stands alone.
    pub is_goal: bool,
    /// What the early warning of a guardrail saw.
    pub early: Option<Early>,
}

impl Conclusion {
    /// Returns the conclusion that the early warning of a guardrail comes to: that is harm.
    fn by_early_warning(self, early: &Early) -> Self {
        let critical = Some(early.critical);
        let basis = Basis { difference: early.seen.difference, is_adjusted: false, critical, critical_alone: critical };
        Conclusion { significant: true, by: EARLY_WARNING, basis: Some(basis), ..self }
    }
}

/// The one estimate that a verdict rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Basis {
    /// The difference: today's, or that of the look that counts.
    pub difference: Difference,
    /// Whether it is adjusted for earlier behaviour.
    pub is_adjusted: bool,
    /// How many standard errors its intervals among all reach.
    pub critical: Option<f64>,
    /// The same before other comparisons are thought of.
    pub critical_alone: Option<f64>,
}

impl Basis {
    /// Returns what a look rests on, at the level `alpha` among all and `alone` before other comparisons are thought of.
    fn of(compared: &Compared, plan: &Plan, look: Option<&Looked>, (alpha, alone): (f64, f64)) -> Option<Self> {
        if plan.analysis == Analysis::Fixed {
            let difference = compared.found.difference?;
            let critical = |alpha: f64| Some(difference.critical(alpha));
            let (critical, critical_alone) = (critical(alpha), critical(alone));
            return Some(Basis { difference, is_adjusted: compared.is_adjusted(), critical, critical_alone });
        }
        let look = look?;
        Some(Basis {
            difference: look.seen.difference,
            is_adjusted: look.seen.is_adjusted,
            critical: look.shown.boundary_z,
            critical_alone: plan.critical(compared.arm, compared.window_us, look, alone),
        })
    }

    /// Returns the interval among all in shares of the control.
    pub fn relative(&self) -> Option<(f64, f64)> {
        self.difference.relative(self.critical?)
    }

    /// Returns the interval among all.
    pub fn absolute(&self) -> Option<(f64, f64)> {
        Some(self.difference.absolute(self.critical?))
    }
}

/// Decides a family. Each member comes with its metric; guardrails are decided by themselves.
pub fn decide(design: &Design<'_>, family: &[(&Configured, &Compared)]) -> Vec<Conclusion> {
    let (plan, alpha) = (design.plan, design.plan.alpha);
    let has_bounds = plan.analysis == Analysis::GroupSequential;
    let member = |(metric, compared): &(&Configured, &Compared)| {
        let is_decided = compared.undecided.is_none();
        let p_value = compared.deciding_p(plan).filter(|_| is_decided);
        let is_tested = if has_bounds { is_decided && compared.found.for_looks.is_some() } else { p_value.is_some() };
        Member { p_value, is_tested, is_primary: metric.role == Role::Primary }
    };
    let is_goal = |metric: &Configured| metric.role != Role::Guardrail;
    let members: Vec<Member> = family.iter().filter(|(metric, _)| is_goal(metric)).map(member).collect();
    let mut family_adjusted = adjust(&members, correction(design.request.correction), alpha).into_iter();
    let one = |found: &(&Configured, &Compared)| {
        let (metric, compared) = found;
        // A part of alpha is left for the early warning, where there is one.
        let early_alpha = if compared.early_by_day.is_empty() { 0.0 } else { EARLY_SHARE * alpha };
        let alpha_alone = alpha - early_alpha;
        let alone = || Adjusted { p_value: member(found).p_value, alpha: alpha_alone, family_size: 1 };
        let adjusted = if is_goal(metric) { family_adjusted.next().unwrap_or_else(alone) } else { alone() };
        let look = compared.look(plan, adjusted.alpha);
        let by_p = adjusted.p_value.is_some_and(|p| is_finding(p.p, alpha));
        let significant = if has_bounds { look.is_some_and(|look| look.stands) } else { by_p };
        let significant = significant && compared.undecided.is_none();
        let basis = Basis::of(compared, plan, look.as_ref(), (adjusted.alpha, alpha_alone));
        let by = match plan.analysis {
            _ if let Some(why) = compared.undecided => why.as_str(),
            Analysis::Fixed if compared.is_exact() => "fisher_exact",
            Analysis::Fixed if compared.has_strata => "stratified_t",
            Analysis::Fixed => "welch_t",
            // Where bounds have no history to rest on, a sequence decides.
            other => look.filter(|look| look.shown.boundary_z.is_some()).map_or(other.as_str(), |look| look.shown.method),
        };
        let early = plan.early(compared.arm, &compared.early_by_day, metric.wants_more, early_alpha);
        let decided = Conclusion { adjusted, look, significant, by, basis, is_goal: is_goal(metric), early };
        match early.filter(|early| early.is_harmed && !significant) {
            Some(early) => decided.by_early_warning(&early),
            None => decided,
        }
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

/// One comparison with all that was found about it.
#[derive(Clone, Debug)]
pub struct TestedComparison {
    /// By itself.
    pub compared: Compared,
    /// In its family.
    pub conclusion: Conclusion,
    /// The same under other settings.
    pub supplemental: Supplemental,
    /// What to believe.
    pub bayesian: Option<Bayesian>,
    /// How much could be seen by now.
    pub power: Option<Power>,
    /// Whether harm was done, of a guardrail.
    pub guardrail: Option<Guardrail>,
    /// What a day would bring with everybody in the variant.
    pub impact: Option<ScaledImpact>,
    /// The effect among all who were exposed, where a trigger begins the analysis.
    pub diluted: Option<Diluted>,
}

/// Finds what else there is to say about a comparison that its family decided. `probability_best` is the chance that the variant is
/// the best of all.
pub fn conclude(
    design: &Design<'_>,
    metric: &Configured,
    compared: Compared,
    conclusion: Conclusion,
    supplemental: Supplemental,
    probability_best: Option<f64>,
) -> TestedComparison {
    let alpha = design.experiment.alpha;
    let is_bayesian = design.request.engine != Engine::Frequentist;
    let mut bayesian = is_bayesian.then(|| bayesian(metric, &compared, alpha, probability_best)).flatten();
    if let Some(bayesian) = bayesian.as_mut().filter(|_| design.variants.len() == 2) {
        // Of two the better one is the best.
        bayesian.probability_best = Some(bayesian.chance_to_win);
    }
    TestedComparison {
        power: power(design, metric, &compared),
        impact: impact(design, &conclusion),
        guardrail: guardrail(metric, &compared, &conclusion, alpha),
        bayesian,
        compared,
        conclusion,
        supplemental,
        diluted: None,
    }
}

/// Returns the counts of a comparison of two shares of users; none where they are of users who were assigned in other shares.
pub fn counts(compared: &Compared) -> Option<(Count, Count)> {
    if compared.has_strata {
        return None;
    }
    match (compared.control.sample, compared.treatment.sample) {
        (Ok(Sample::Share(control)), Ok(Sample::Share(treatment))) => Some((control, treatment)),
        _ => None,
    }
}

/// Returns for each variant the chance that it is the best of all; none for metrics other than rates, and where shares changed.
pub fn chances_to_be_best(metric: &Configured, sampled: &[Sampled]) -> Option<Vec<f64>> {
    if sampled.iter().any(|sampled| !sampled.strata.is_empty()) {
        return None;
    }
    let count = |sampled: &Sampled| match sampled.observed.sample {
        Ok(Sample::Share(count)) if metric.wants_more => Some(count),
        Ok(Sample::Share(count)) => Some(Count { users: count.users, converted: count.users - count.converted }),
        _ => None,
    };
    let posteriors: Option<Vec<_>> =
        sampled.iter().map(|sampled| bayes_beta::Prior::UNIFORM.posterior(count(sampled)?)).collect();
    posteriors.filter(|posteriors| posteriors.len() > 1).map(|posteriors| probability_best(&posteriors))
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
fn power(design: &Design<'_>, metric: &Configured, compared: &Compared) -> Option<Power> {
    if metric.role == Role::Guardrail {
        return None;
    }
    let (experiment, difference) = (design.experiment, compared.precise()?);
    // The precision of the difference in shares of the control, whatever the treatment's mean is.
    let std_error = difference.std_error / difference.baseline.abs();
    let effect = Effect { estimate: difference.lift()?, std_error, dof: difference.dof };
    let mde_target = experiment.minimum_detectable_effect;
    let mde_now = detectable_effect(std_error, experiment.alpha, POWER_DEFAULT)?;
    let is_sequence = matches!(design.plan.analysis, Analysis::Sequential | Analysis::Hybrid);
    let target = Target {
        effect: mde_target,
        power: POWER_DEFAULT,
        goals: design.goals.max(1),
        variants: u32::try_from(design.variants.len()).ok()?,
        sequential_tightest_at: is_sequence.then(|| design.plan.n_star(compared.arm)),
    };
    let ahead = mid_experiment(&effect, compared.users(), experiment.alpha, &target, None)?;
    let additional = ahead.additional_users.map(f64::ceil).filter(|users| users.is_finite() && *users < 1e18);
    // Both variants get their part of all new users.
    let of_pair = design.users_per_day * compared.users() as f64 / (design.pace.0.max(1) as f64);
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
fn guardrail(metric: &Configured, compared: &Compared, conclusion: &Conclusion, alpha: f64) -> Option<Guardrail> {
    if metric.role != Role::Guardrail {
        return None;
    }
    let margin = metric.margin.unwrap_or(0.0);
    let early_warning = conclusion.early.map(EarlyWarning::from);
    let state = State::Inconclusive.as_str();
    let undefined = Guardrail { margin, bound: None, p_value: None, log10_p: None, state, early_warning };
    // Harm is that of the estimate that decides; without one, that of the shares alone.
    let difference = conclusion.basis.map(|basis| basis.difference).or_else(|| compared.precise());
    let effect = difference.and_then(|difference| difference.effect(Scale::Absolute).ok());
    let (Some(effect), Some(baseline)) = (effect, compared.control.mean) else { return Some(undefined) };
    if compared.undecided.is_some() && !conclusion.significant {
        return Some(undefined);
    }
    let direction = if metric.wants_more { Direction::Increase } else { Direction::Decrease };
    let found = non_inferiority(&effect, baseline, margin, direction, alpha);
    Some(Guardrail {
        bound: (baseline != 0.0).then(|| found.bound / baseline.abs()),
        p_value: Some(found.p_value),
        log10_p: Some(found.log10_p),
        state: guardrail_state(&found, conclusion.significant, direction).as_str(),
        ..undefined
    })
}

/// What a day would bring with everybody in the variant: the difference per user times the users of a day.
fn impact(design: &Design<'_>, conclusion: &Conclusion) -> Option<ScaledImpact> {
    let basis = conclusion.basis?;
    let (users, days) = design.pace;
    let found = impact_per_day(basis.difference.estimate, basis.absolute(), &Traffic { users, share: 1.0, days })?;
    Some(ScaledImpact { per_day: found.estimate, ci: ends(found.interval), users_per_day: found.users_per_day })
}
