//! Sums by variant -> what they show: whether the numbers can be trusted, each variant against the control, all of them as one
//! family, looks on the way. Everything that is computed here is computed by `statistics`.

pub mod breakdown;
pub mod comparison;
pub mod earlier;
pub mod explore;
pub mod findings;
pub mod health;
pub mod plan;
pub mod since_exposure;
pub mod trigger;

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use statistics::comparison::{Observed, omnibus};
use statistics::moments::Overflow;

use crate::experiment::measure::covariates::Covariates;
use crate::experiment::measure::days::DaySums;
use crate::experiment::measure::groups::Groups;
use crate::experiment::measure::metrics::MeasuredMetric;
use crate::experiment::measure::sample::{one, sampled};
use crate::experiment::measure::since_exposure as measure;
use crate::experiment::measure::sums::sums;
use crate::experiment::measure::{Measured, overflow};
use crate::experiment::read::catalogue::{Configured, Role};
use crate::experiment::request::{Analysis, Cuped, PopulationRule, Request, Windows};
use crate::experiment::warning::Warning;
use crate::http::error::ApiError;
use breakdown::Breakdown;
use comparison::{
    Compared, Conclusion, Design, TestedComparison, Undecided, chances_to_be_best, compare_all, compared, conclude, decide,
};
use earlier::Earlier;
use explore::{Exploration, explore};
use findings::{Day, Omnibus, SinceExposure, Supplemental};
use health::Health;
use plan::{Plan, Seen, default_analysis};
use trigger::diluted;

/// What was tested.
pub struct Tested<'a> {
    /// Which looks are allowed for.
    pub plan: Plan,
    /// Each metric; empty for a draft, whose exposures do not count.
    pub metrics: Vec<TestedMetric<'a>>,
    /// Who is affected otherwise, if that was searched.
    pub exploration: Option<Exploration>,
    /// Whether the numbers can be trusted.
    pub health: Health,
    /// Why they cannot.
    pub warnings: Vec<Warning>,
}

/// One metric, tested.
pub struct TestedMetric<'a> {
    /// What was measured.
    pub measured: &'a MeasuredMetric,
    /// Each other variant against the control; empty without one.
    pub comparisons: Vec<TestedComparison>,
    /// Whether all variants are alike, where there are three or more.
    pub omnibus: Option<Omnibus>,
    /// The same by the values of a dimension.
    pub breakdown: Option<Breakdown>,
    /// The same at the end of each day.
    pub series: Option<Vec<Day>>,
    /// The same by the time since the exposure.
    pub since_exposure: Option<SinceExposure>,
}

impl Measured<'_> {
    /// Returns what is the same for all comparisons of an answer.
    pub fn design<'a>(&'a self, request: &'a Request, plan: &'a Plan) -> Design<'a> {
        let goals = self.metrics.iter().filter(|metric| metric.configured.role == Role::Primary).count();
        Design {
            experiment: &self.experiment,
            variants: &self.variants,
            request,
            cuped: request.cuped,
            plan,
            currency: self.experiment.currency.as_deref(),
            has_history: self.has_history,
            goals: goals as u32,
            users_per_day: self.counts.users_per_day,
            pace: self.pace,
        }
    }
}

/// Tests what was measured.
/// # Errors
/// [`ApiError`] if a sum is too large to be exact.
pub fn test<'a>(measured: &'a Measured<'a>, request: &Request) -> Result<Tested<'a>, ApiError> {
    let experiment = &measured.experiment;
    let analysis = request.analysis.unwrap_or_else(|| default_analysis(experiment));
    let (weights, _) = health::weights(&measured.variants);
    let windows: Vec<i64> = measured.metrics.iter().map(|metric| metric.counted.window_us()).collect();
    let plan = Plan::new(experiment, analysis, weights, &measured.population, &windows, request.as_of.is_none());
    let mut warnings = Vec::new();
    let design = measured.design(request, &plan);
    let tests = Tests { design, measured };
    let is_draft = experiment.phases.is_empty();
    let (metrics, health) =
        rayon::join(|| if is_draft { Ok(Default::default()) } else { tests.all() }, || health::check(measured, &mut warnings));
    let (metrics, exploration) = metrics.map_err(overflow)?;
    Ok(Tested { metrics, exploration, plan, health, warnings })
}

struct Tests<'a, 'b> {
    design: Design<'b>,
    measured: &'a Measured<'a>,
}

/// One metric by itself, before its family decides.
struct Prepared {
    compared: Vec<Compared>,
    days: Option<Vec<DaySums>>,
}

impl<'a> Tests<'a, '_> {
    /// Tests all metrics, and searches who is affected otherwise if that was asked for.
    fn all(&self) -> Result<(Vec<TestedMetric<'a>>, Option<Exploration>), Overflow> {
        let measured = &self.measured.metrics;
        let prepared: Vec<Prepared> = measured.par_iter().map(|metric| self.prepare(metric)).collect::<Result<_, _>>()?;
        let exploration = match &self.measured.explored {
            Some(explored) if self.design.experiment.control_variant_id.is_some() => {
                let of_whole = |prepared: &Prepared| prepared.compared.iter().map(Compared::of_parts).collect();
                let earlier: Vec<Vec<Option<Earlier>>> = prepared.iter().map(of_whole).collect();
                Some(explore(&self.design, &self.measured.population, explored, measured, &earlier)?)
            }
            _ => None,
        };
        Ok((self.metrics(prepared)?, exploration))
    }

    /// Tests all metrics: each by itself, then all goals as one family.
    fn metrics(&self, prepared: Vec<Prepared>) -> Result<Vec<TestedMetric<'a>>, Overflow> {
        let measured = &self.measured.metrics;
        let family: Vec<(&Configured, &Compared)> = measured
            .iter()
            .zip(&prepared)
            .flat_map(|(metric, prepared)| prepared.compared.iter().map(|compared| (&metric.configured, compared)))
            .collect();
        let mut decided = decide(&self.design, &family).into_iter();
        let by_dimension = match &self.measured.split {
            Some(split) => {
                let of_whole = |prepared: &Prepared| {
                    let undecided = prepared.compared.first().and_then(|found| found.undecided);
                    (prepared.compared.iter().map(Compared::of_parts).collect(), undecided)
                };
                let earlier: Vec<(Vec<Option<Earlier>>, Option<Undecided>)> = prepared.iter().map(of_whole).collect();
                breakdown::by_dimension(&self.design, &self.measured.population, split, measured, &earlier)?
            }
            None => Vec::new(),
        };
        let mut by_dimension = by_dimension.into_iter();
        let decided: Vec<_> = measured
            .iter()
            .zip(prepared)
            .map(|(metric, prepared)| {
                let conclusions: Vec<Conclusion> = decided.by_ref().take(prepared.compared.len()).collect();
                (metric, prepared, conclusions, by_dimension.next())
            })
            .collect();
        let conclude = |(metric, prepared, conclusions, breakdown)| self.conclude(metric, prepared, conclusions, breakdown);
        decided.into_par_iter().map(conclude).collect()
    }

    /// Returns why nothing is decided by a metric.
    fn undecided(&self, metric: &MeasuredMetric) -> Option<Undecided> {
        if self.design.request.counted != (None, None) {
            return Some(Undecided::Part);
        }
        (metric.counted.is_open() && self.design.plan.analysis != Analysis::Fixed).then_some(Undecided::Open)
    }

    fn prepare(&self, metric: &MeasuredMetric) -> Result<Prepared, Overflow> {
        let (design, has_control) = (&self.design, self.design.experiment.control_variant_id.is_some());
        let mut compared = if has_control { compare_all(design, &metric.sampled)? } else { Vec::new() };
        let undecided = self.undecided(metric);
        for found in &mut compared {
            (found.window_us, found.undecided) = (metric.counted.window_us(), undecided);
        }
        let days = match design.plan.days.filter(|_| design.request.has_series) {
            Some(days) => metric.by_day(&self.measured.population, days)?,
            None => None,
        };
        let has_bounds = design.plan.analysis == Analysis::GroupSequential && has_control;
        if has_bounds {
            let population = &self.measured.population;
            // What proved wrong by now adjusts no earlier day either.
            let has_proved_wrong = compared.iter().any(Compared::differs_before);
            let cuped = if has_proved_wrong { Cuped::Off } else { design.cuped };
            let design = &Design { cuped, ..*design };
            look_back(design, metric, metric.ripe_by_day(population)?, &mut compared, |found| &mut found.by_day)?;
            look_back(design, metric, metric.all_by_day(population)?, &mut compared, |found| &mut found.all_by_day)?;
            if metric.configured.role == Role::Guardrail {
                let design = &Design { cuped: Cuped::Off, ..*design };
                look_back(design, metric, metric.first_day(population)?, &mut compared, |found| &mut found.early_by_day)?;
            }
        }
        Ok(Prepared { compared, days })
    }

    fn conclude(
        &self,
        metric: &'a MeasuredMetric,
        prepared: Prepared,
        conclusions: Vec<Conclusion>,
        breakdown: Option<Breakdown>,
    ) -> Result<TestedMetric<'a>, Overflow> {
        let (design, configured, strata) = (&self.design, &metric.configured, &self.measured.population.strata);
        let earlier: Vec<Option<Earlier>> = prepared.compared.iter().map(Compared::of_days).collect();
        let best = chances_to_be_best(configured, &metric.sampled);
        let mut comparisons = Vec::with_capacity(prepared.compared.len());
        for (compared, conclusion) in prepared.compared.into_iter().zip(conclusions) {
            let supplemental = self.supplemental(metric, &compared)?;
            let best = best.as_ref().and_then(|best| best.get(compared.arm).copied());
            let diluted = diluted(metric, compared.arm, &conclusion);
            let found = conclude(design, configured, compared, conclusion, supplemental, best);
            comparisons.push(TestedComparison { diluted, ..found });
        }
        let series = match (&prepared.days, design.plan.days) {
            (Some(series), Some(days)) if design.request.has_series => {
                Some(breakdown::by_day(design, configured, series, (days, strata), &earlier)?)
            }
            _ => None,
        };
        let since_exposure = match design.request.has_since_exposure {
            true => measure::since_exposure(&metric.counted, &configured.aggregation, &self.measured.population)?,
            false => None,
        };
        let since_exposure =
            since_exposure.map(|found| since_exposure::since_exposure(design, configured, &found)).transpose()?;
        let observed: Vec<Observed> = metric.sampled.iter().map(|sampled| sampled.observed).collect();
        let has_strata = metric.sampled.iter().any(|sampled| !sampled.strata.is_empty());
        let omnibus = omnibus(&observed).filter(|_| observed.len() > 2 && !has_strata).map(Omnibus::from);
        Ok(TestedMetric { measured: metric, comparisons, omnibus, breakdown, series, since_exposure })
    }

    /// Makes the same comparison under other settings, where they say something else.
    fn supplemental(&self, metric: &MeasuredMetric, compared: &Compared) -> Result<Supplemental, Overflow> {
        let alpha = self.design.experiment.alpha;
        let mut found = Supplemental::default();
        if compared.is_adjusted() {
            found.unadjusted = Some(compared.other_unadjusted(alpha));
        }
        let design = Design { cuped: Cuped::Off, ..self.design };
        let under = |groups: &Groups, cap: Option<i128>| -> Result<_, Overflow> {
            let sums = sums(&metric.entries, &Covariates::default(), groups, cap)?;
            let sampled = sampled(&metric.configured, (&metric.entries, metric.values.as_ref()), groups, cap, &sums)?;
            let arm = compared.arm;
            Ok(Some(self::compared(&design, &sampled[0], &sampled[arm], arm, None).other(alpha)))
        };
        let cap = metric.cap.map(|cap| cap.amount);
        if cap.is_some() {
            found.uncapped = under(&metric.groups, None)?;
        }
        let (population, window_us) = (&self.measured.population, metric.counted.window_us());
        let is_mixed = population.multi_share().is_some_and(|share| share >= health::MULTI_WARN_FROM);
        if is_mixed && population.rule == PopulationRule::ExcludeMulti {
            let first = population.groups_by(PopulationRule::FirstExposure, population.windows, window_us);
            found.multi_exposed_first = under(&first, cap)?;
        }
        if population.windows == Windows::All {
            let complete = population.groups_by(population.rule, Windows::Complete, window_us);
            if complete.total() > 0 && complete.total() < metric.groups.total() {
                found.complete_windows = under(&complete, cap)?;
            }
        }
        Ok(found)
    }
}

/// Notes what a reader would have seen at the end of each day, had they looked then: whether earlier behaviour helps is that day's
/// own answer.
fn look_back(
    design: &Design<'_>,
    metric: &MeasuredMetric,
    days: Option<Vec<DaySums>>,
    compared: &mut [Compared],
    noted: impl Fn(&mut Compared) -> &mut Vec<Option<Seen>>,
) -> Result<(), Overflow> {
    for day in days.iter().flatten() {
        let sampled = day.iter().map(|sums| one(&metric.configured, sums)).collect::<Result<Vec<_>, _>>()?;
        for (found, then) in compared.iter_mut().zip(compare_all(design, &sampled)?) {
            noted(found).push(then.seen());
        }
    }
    Ok(())
}
