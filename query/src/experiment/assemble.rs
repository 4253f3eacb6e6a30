//! All that was read -> the answer. Pure: the same rows and the same question give the same answer, but for `computed_at`.

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::breakdown;
use super::catalogue::{Aggregation, Amount, Configured, Denominator, Role, choose_control};
use super::compare::{Added, Compared, Decisive, Setting, compared, decide, describe};
use super::health;
use super::image::{DAY_US, Image};
use super::looks::{Plan, default_analysis};
use super::measure::{self, Measured, Split};
use super::parallel;
use super::population::{People, count, ids};
use super::sample::{Sampled, one, sampled, shown};
use super::series;
use super::settings::{self, Analysis, Cuped, PopulationRule, Request, Windows};
use super::sums::sums;
use super::{credit, decide as rules, micros};
use crate::answer::metric::{Cap, Comparison, Definition, Metric, Omnibus, Supplemental};
use crate::answer::{Excluded, Experiment, METHOD_VERSION, Population, Results, Settings, Variant, Warning};
use crate::error::Refusal;
use crate::snapshot::{AsOf, time_text};
use statistics::bayes_beta::{Prior, probability_best};
use statistics::comparison::{Observed, Sample, difference, omnibus};
use statistics::cuped::theta;
use statistics::moments::{Overflow, decimal_text};
use statistics::proportions::Count;

/// What the catalogue says, the control chosen.
pub struct Known {
    /// The experiment.
    pub experiment: Experiment,
    /// Its variants, the control first.
    pub variants: Vec<Variant>,
    /// The metrics configured for it.
    pub configured: Vec<Configured>,
    /// Users whose events name a variant that does not exist.
    pub unknown_variant: u64,
    /// Impressions stored, counted or not.
    pub impressions: u64,
    /// How far the log was stored.
    pub as_of: AsOf,
}

impl Known {
    /// Chooses the control and checks what was asked for by name.
    /// # Errors
    /// [`Refusal`] of code `unknown_variant` or `unknown_metric`.
    pub fn new(
        mut experiment: Experiment,
        mut variants: Vec<Variant>,
        configured: Vec<Configured>,
        (unknown_variant, impressions): (u64, u64),
        as_of: AsOf,
        request: &Request,
    ) -> Result<Self, Refusal> {
        let control = choose_control(&mut variants, request.baseline.as_deref()).map_err(unknown_name)?;
        experiment.control_variant_id = control.map(|index| variants[index].id);
        variants.sort_by_key(|variant| !variant.is_control);
        Ok(Known { experiment, variants, configured, unknown_variant, impressions, as_of })
    }
}

fn unknown_name(names: String) -> Refusal {
    let mut refusal = Refusal::bad_request(format!("the experiment has no such variant; it has: {names}")).at("baseline");
    refusal.code = "unknown_variant";
    refusal
}

fn overflow(error: Overflow) -> Refusal {
    Refusal::limit("value_out_of_range", error.to_string())
}

/// Returns for how many days an experiment ran until `now`.
pub fn days_running(experiment: &Experiment, now: i64) -> Option<f64> {
    let end = experiment.ended_us.map_or(now, |ended| ended.min(now));
    let days = (end - experiment.started_us?) as f64 / DAY_US as f64;
    (days >= 0.0).then_some(days)
}

/// Answers a question about what was read.
/// # Errors
/// [`Refusal`] of code `unknown_metric`, or if a sum is too large to be exact.
pub fn answer(known: Known, image: &Image, request: &Request) -> Result<Results, Refusal> {
    let Known { mut experiment, mut variants, configured, unknown_variant, impressions, as_of } = known;
    let newest = as_of.event_time.as_deref().and_then(micros);
    let newest_here = image.users.exposed.iter().chain(image.after.all().iter().map(|row| &row.time)).copied().max();
    let through = request.as_of.or(newest.max(newest_here));
    let now = through.unwrap_or(0);
    experiment.days_running = through.and_then(|now| days_running(&experiment, now));
    let people = People::new(image, &variants, request, now, experiment.conversion_window_days);
    let slots = people.slots(people.window_us);
    count(&mut variants, &slots);

    let mut warnings = Vec::new();
    let (currency, number) = measure::choose_currency(&experiment, image, &slots, &mut warnings);
    let own_currency = std::mem::replace(&mut experiment.currency, currency.clone());
    let metrics = measure::chosen(configured, &people, &mut warnings);
    let metrics = asked_for(metrics, request)?;
    let measured =
        measure::measure_all(&people, metrics, number, experiment.conversion_window_days, request.cap).map_err(overflow)?;
    let split = request.dimension.map(|_| measure::split(&people));

    let counted: u64 = image.users.impressions.iter().map(|seen| u64::try_from(*seen).unwrap_or(0)).sum();
    let not_counted = request.as_of.is_none().then(|| impressions.saturating_sub(counted));
    let excluded = Excluded { unknown_variant, impressions_not_counted: not_counted, ..Excluded::default() };
    let population = people.describe(excluded);

    let analysis = request.analysis.unwrap_or_else(|| default_analysis(&experiment));
    let status = status(&experiment, &variants, &population, analysis, &mut warnings);
    let (weights, _) = health::weights(&variants);
    let plan = Plan::new(&experiment, analysis, weights, &people, request.as_of.is_none());
    let begun = experiment.started_us.max(people.first_exposure()).or(people.first_exposure());
    let days = begun.map_or(0.0, |begun| (now.min(experiment.ended_us.unwrap_or(now)) - begun).max(0) as f64 / DAY_US as f64);
    let setting = Setting {
        experiment: &experiment,
        variants: &variants,
        request,
        plan: &plan,
        currency: currency.as_deref(),
        has_history: has_history(image),
        goals: measured.iter().filter(|metric| metric.configured.role == Role::Primary).count() as u32,
        users_per_day: population.users_per_day,
        // Less than a day tells nothing about a day.
        pace: (slots.total(), if days >= 1.0 { days } else { 0.0 }),
    };
    let shown = Shown { setting: &setting, people: &people, split: split.as_ref() };
    let (metrics, (health, attribution)) = parallel::both(
        image.after.all().len(),
        || if status == "not_started" { Ok(Vec::new()) } else { shown.metrics(&measured) },
        || {
            let excluded = &population.excluded;
            let health = health::check(&people, &experiment, &variants, &measured, split.as_ref(), excluded, &mut warnings);
            let attribution = (population.exposed_users > 0)
                .then(|| credit::attribution(&experiment, &ids(&variants), image, (currency.as_deref(), number), &slots));
            (health, attribution.transpose())
        },
    );
    let (metrics, attribution) = (metrics.map_err(overflow)?, attribution.map_err(overflow)?);
    let decision = (status == "ok").then(|| rules::decision(&setting, &health, &metrics));
    let request_settings = echoed(request, analysis);
    let settings_hash = hashed(&experiment, own_currency, &variants, &metrics, &request_settings)?;
    Ok(Results {
        status,
        as_of,
        data_through: through.map(time_text),
        computed_at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        method_version: METHOD_VERSION,
        request_settings,
        settings_hash,
        population,
        health,
        metrics,
        attribution,
        decision,
        warnings,
        experiment,
        variants,
    })
}

/// Returns whether anybody did anything a day before the first exposure: less is no history.
fn has_history(image: &Image) -> bool {
    let is_old = |user: &u32| {
        let exposed = image.users.exposed[*user as usize];
        image.before.of(*user as usize).first().is_some_and(|row| exposed - row.time >= DAY_US)
    };
    image.before.filled().iter().any(is_old)
}

fn asked_for(metrics: Vec<Configured>, request: &Request) -> Result<Vec<Configured>, Refusal> {
    if request.metrics.is_empty() {
        return Ok(metrics);
    }
    if let Some(unknown) = request.metrics.iter().find(|name| metrics.iter().all(|metric| metric.name != **name)) {
        let known: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).take(20).collect();
        let shown: String = unknown.chars().take(100).collect();
        let message = format!("the experiment has no metric {shown:?}; it has: {}", known.join(", "));
        let mut refusal = Refusal::bad_request(message).at("metrics");
        refusal.code = "unknown_metric";
        return Err(refusal);
    }
    Ok(metrics.into_iter().filter(|metric| request.metrics.contains(&metric.name)).collect())
}

fn echoed(request: &Request, analysis: Analysis) -> Settings {
    Settings {
        baseline: request.baseline.clone(),
        metrics: request.metrics.clone(),
        as_of: request.as_of.map(time_text),
        analysis,
        analysis_from: if request.analysis.is_some() { "request" } else { "plan" },
        engine: request.engine,
        correction: request.correction,
        dimension: request.dimension,
        population: request.population,
        windows: request.windows,
        cuped: request.cuped,
        cap: request.cap,
        series: request.has_series.then_some("daily"),
        difference: request.difference,
    }
}

/// What decides how rows become numbers.
#[derive(Serialize)]
struct Meaning<'a> {
    method_version: &'static str,
    experiment: Experiment,
    variants: Vec<(Uuid, &'a str, bool, Option<f64>)>,
    metrics: Vec<(&'a str, &'a Definition, i32, &'static str, super::catalogue::Role)>,
    settings: &'a Settings,
}

fn hashed(
    experiment: &Experiment,
    own_currency: Option<String>,
    variants: &[Variant],
    metrics: &[Metric],
    settings: &Settings,
) -> Result<String, Refusal> {
    settings::hash(&Meaning {
        method_version: METHOD_VERSION,
        // Both follow from the rows.
        experiment: Experiment { days_running: None, currency: own_currency, ..experiment.clone() },
        variants: variants
            .iter()
            .map(|variant| (variant.id, variant.name.as_str(), variant.is_control, variant.weight))
            .collect(),
        metrics: metrics
            .iter()
            .map(|metric| (metric.id.as_str(), &metric.definition, metric.window_days, metric.direction, metric.role))
            .collect(),
        settings,
    })
}

/// Returns the status of the whole answer, and warns of what limits all of its numbers.
fn status(
    experiment: &Experiment,
    variants: &[Variant],
    population: &Population,
    analysis: Analysis,
    warnings: &mut Vec<Warning>,
) -> &'static str {
    if experiment.frozen_at.is_some() {
        let message = "months with events of this experiment were detached; its results are as of then";
        warnings.push(Warning::new("experiment_frozen", message));
    }
    let mut limited = |status: &'static str, message: String| {
        warnings.push(Warning::new(status, message));
        status
    };
    if experiment.status == "draft" {
        let message = "the experiment is a draft: exposures count once it is started, with `weir admin experiment start`";
        return limited("not_started", message.to_owned());
    }
    if population.analysed_users == 0 {
        let message = match (population.exposed_users, population.excluded.incomplete_window) {
            (0, _) => "nobody was exposed yet: send events of type impression that name this experiment and a variant",
            (_, 0) => "everybody saw several variants: give each user one variant, or ask with ?population=first_exposure",
            _ => "nobody's conversion window is over yet: wait, or ask with ?windows=all",
        };
        return limited("no_data", message.to_owned());
    }
    if variants.len() < 2 {
        let message = "the experiment has one variant, so that nothing can be compared: add another one with `weir admin \
                       experiment add-variant`, or send exposures that name it";
        return limited("one_variant", message.to_owned());
    }
    if experiment.control_variant_id.is_none() {
        let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
        let message = format!(
            "no variant is the control, so that nothing is compared: mark one as the control, or ask with ?baseline= and one of {}",
            names.join(", ")
        );
        return limited("no_control", message);
    }
    if experiment.status == "running" && analysis == Analysis::Fixed {
        let message =
            "the experiment still runs: p-values and intervals hold for one look at its end, not for every look until then";
        limited("peeked", message.to_owned());
    }
    "ok"
}

/// What is needed to show metrics.
struct Shown<'a> {
    setting: &'a Setting<'a>,
    people: &'a People<'a>,
    split: Option<&'a Split>,
}

/// One metric on its way into the answer.
struct Prepared {
    sampled: Vec<Sampled>,
    compared: Vec<Compared>,
    series: Option<Vec<series::DaySums>>,
}

impl Shown<'_> {
    fn has_control(&self) -> bool {
        self.setting.experiment.control_variant_id.is_some()
    }

    /// Shows all metrics: each prepared by itself, then all goals decided as one family.
    fn metrics(&self, measured: &[Measured]) -> Result<Vec<Metric>, Overflow> {
        let rows = self.people.image.after.all().len();
        let prepared = parallel::map(measured.iter().collect(), rows, |metric| self.prepare(metric));
        let prepared: Vec<Prepared> = prepared.into_iter().collect::<Result<_, _>>()?;
        let family: Vec<(&Configured, &Compared)> = measured
            .iter()
            .zip(&prepared)
            .flat_map(|(metric, prepared)| prepared.compared.iter().map(|compared| (&metric.configured, compared)))
            .collect();
        let mut decided = decide(self.setting, &family).into_iter();
        let mut dimensions = match self.split {
            Some(split) => breakdown::dimensions(self.setting, self.people, split, measured)?.into_iter().map(Some).collect(),
            None => measured.iter().map(|_| None).collect::<Vec<_>>(),
        }
        .into_iter();
        let parts: Vec<_> = measured
            .iter()
            .zip(&prepared)
            .map(|(metric, prepared)| {
                let decisive: Vec<Decisive> = decided.by_ref().take(prepared.compared.len()).collect();
                (metric, prepared, decisive, dimensions.next().flatten())
            })
            .collect();
        let shown = parallel::map(parts, rows, |(metric, prepared, decisive, dimension)| {
            self.metric(metric, prepared, &decisive, dimension)
        });
        shown.into_iter().collect()
    }

    fn prepare(&self, metric: &Measured) -> Result<Prepared, Overflow> {
        let cap = metric.cap.map(|cap| cap.amount);
        let sampled = sampled(&metric.configured, &metric.entries, &metric.slots, cap, &metric.sums)?;
        let mut compared = if self.has_control() { compare_all(self.setting, &sampled)? } else { Vec::new() };
        let days = self.setting.plan.days;
        let needs_days = self.setting.request.has_series || self.setting.plan.analysis == Analysis::GroupSequential;
        let series = match days.filter(|_| needs_days) {
            Some(days) => series::of_metric(metric, self.people, days, cap)?,
            None => None,
        };
        for found in &mut compared {
            if let Some(series) = &series {
                found.z_by_day = series.iter().map(|day| z_of_day(&metric.configured, day, found.arm)).collect();
            }
        }
        Ok(Prepared { sampled, compared, series })
    }

    fn metric(
        &self,
        metric: &Measured,
        prepared: &Prepared,
        decisive: &[Decisive],
        dimension: Option<breakdown::Dimensioned>,
    ) -> Result<Metric, Overflow> {
        let (setting, configured) = (self.setting, &metric.configured);
        let uncut = metric.cap.map(|_| sums(&metric.entries, &[], &metric.slots, None)).transpose()?;
        let raw = uncut.as_ref().unwrap_or(&metric.sums);
        let best = best(configured, &prepared.sampled);
        let mut comparisons: Vec<Comparison> = Vec::with_capacity(prepared.compared.len());
        for (compared, decisive) in prepared.compared.iter().zip(decisive) {
            let supplemental = self.supplemental(metric, compared)?;
            let probability_best = best.as_ref().and_then(|best| best.get(compared.arm).copied());
            comparisons.push(describe(setting, configured, compared, decisive, Added { supplemental, probability_best }));
        }
        let arms = (0..setting.variants.len()).map(|arm| {
            let (sampled, sums, raw) = (&prepared.sampled[arm], &metric.sums[arm], &raw[arm]);
            shown(configured, setting.variants[arm].id, sampled, sums, raw, setting.experiment.alpha)
        });
        let arms = arms.collect();
        let series = match (&prepared.series, setting.plan.days) {
            (Some(series), Some(days)) if setting.request.has_series => {
                Some(super::breakdown::series(setting, configured, series, days)?)
            }
            _ => None,
        };
        let (dimensions, heterogeneity) = dimension.map_or((None, None), |found| (Some(found.values), Some(found.heterogeneity)));
        Ok(Metric {
            id: configured.name.clone(),
            kind: configured.aggregation.kind(),
            role: configured.role,
            direction: if configured.wants_more { "increase" } else { "decrease" },
            definition: definition(configured),
            window_days: configured.window_days.unwrap_or(setting.experiment.conversion_window_days),
            currency: setting.currency.filter(|_| configured.aggregation.is_value()).map(str::to_owned),
            cap: metric.cap.map(|cap| Cap {
                value: decimal_text(cap.amount),
                percentile: cap.percentile.map(settings::percentile_text),
                users: metric.sums.iter().map(|sums| sums.capped).collect(),
            }),
            arms,
            comparisons,
            omnibus: all_alike(&prepared.sampled),
            dimensions,
            heterogeneity,
            series,
        })
    }

    /// Makes the same comparison under other settings, where they say something else.
    fn supplemental(&self, metric: &Measured, compared: &Compared) -> Result<Supplemental, Overflow> {
        let alpha = self.setting.experiment.alpha;
        let mut found = Supplemental::default();
        if compared.is_adjusted() {
            found.unadjusted = Some(compared.other_unadjusted(alpha));
        }
        let plain = Request { cuped: Cuped::Off, ..self.setting.request.clone() };
        let setting = Setting { request: &plain, ..*self.setting };
        let under = |slots: &super::sums::Slots, cap: Option<i128>| -> Result<_, Overflow> {
            let sums = sums(&metric.entries, &[], slots, cap)?;
            let sampled = sampled(&metric.configured, &metric.entries, slots, cap, &sums)?;
            let arm = compared.arm;
            Ok(Some(self::compared(&setting, &sampled[0], &sampled[arm], arm, None)?.other(alpha)))
        };
        let cap = metric.cap.map(|cap| cap.amount);
        if cap.is_some() {
            found.uncapped = under(&metric.slots, None)?;
        }
        let (people, window) = (self.people, metric.counted.window_us());
        let is_mixed = people.multi_share().is_some_and(|share| share >= health::MULTI_WARN_FROM);
        if is_mixed && people.rule == PopulationRule::ExcludeMulti {
            found.multi_exposed_first = under(&people.slots_by(PopulationRule::FirstExposure, people.windows, window), cap)?;
        }
        if people.windows == Windows::All {
            let complete = people.slots_by(people.rule, Windows::Complete, window);
            if complete.total() > 0 && complete.total() < metric.slots.total() {
                found.complete_windows = under(&complete, cap)?;
            }
        }
        Ok(found)
    }
}

/// Compares each variant with the first one, adjusted for earlier behaviour where that helps.
/// # Errors
/// [`Overflow`].
pub fn compare_all(setting: &Setting<'_>, sampled: &[Sampled]) -> Result<Vec<Compared>, Overflow> {
    let all: Vec<_> = sampled.iter().filter_map(|sampled| sampled.cuped).collect();
    let theta = if all.is_empty() || setting.request.cuped == Cuped::Off { None } else { Some(theta(&all)?) };
    (1..sampled.len()).map(|arm| compared(setting, &sampled[0], &sampled[arm], arm, theta)).collect()
}

/// Returns the difference at the end of a day in standard errors.
fn z_of_day(metric: &Configured, day: &series::DaySums, arm: usize) -> Option<f64> {
    let observed = |arm: usize| Some(one(metric, day.get(arm)?).ok()?.observed);
    difference(&observed(0)?, &observed(arm)?).ok().map(|difference| difference.z())
}

/// Returns for each variant the chance that it is the best of all; none for metrics other than rates.
fn best(metric: &Configured, sampled: &[Sampled]) -> Option<Vec<f64>> {
    let count = |sampled: &Sampled| match sampled.observed.sample {
        Ok(Sample::Share(count)) if metric.wants_more => Some(count),
        Ok(Sample::Share(count)) => Some(Count { users: count.users, converted: count.users - count.converted }),
        _ => None,
    };
    let posteriors: Option<Vec<_>> = sampled.iter().map(|sampled| Prior::UNIFORM.posterior(count(sampled)?)).collect();
    posteriors.filter(|posteriors| posteriors.len() > 1).map(|posteriors| probability_best(&posteriors))
}

/// Tests whether all variants are alike, where there are three or more.
fn all_alike(sampled: &[Sampled]) -> Option<Omnibus> {
    let observed: Vec<Observed> = sampled.iter().map(|sampled| sampled.observed).collect();
    let found = omnibus(&observed).filter(|_| observed.len() > 2)?;
    let (statistic, dof) = (found.statistic, found.dof);
    Some(Omnibus { test: "chi_square", statistic, dof, p_value: found.p_value.p, log10_p: found.p_value.log10 })
}

/// Writes down what a metric counts.
pub fn definition(metric: &Configured) -> Definition {
    let amount = |amount: Amount| if amount == Amount::Value { "value" } else { "count" };
    let mut found = Definition {
        aggregation: match metric.aggregation {
            Aggregation::ConversionRate => "conversion_rate",
            Aggregation::ValuePerUser => "value_per_user",
            Aggregation::CountPerUser => "count_per_user",
            Aggregation::Ratio(..) => "ratio",
            Aggregation::Quantile(..) => "quantile",
        },
        conversion: metric.conversion_type.clone(),
        numerator: None,
        denominator: None,
        denominator_conversion: None,
        quantile: None,
        margin: metric.margin,
        cap: metric.cap.map(decimal_text),
        cap_percentile: metric.cap_percentile.map(settings::percentile_text),
    };
    match &metric.aggregation {
        Aggregation::Ratio(of, denominator) => {
            found.numerator = Some(amount(*of));
            found.denominator = Some(if *denominator == Denominator::Impressions { "impressions" } else { "conversions" });
            if let Denominator::Conversions(name) = denominator {
                found.denominator_conversion.clone_from(name);
            }
        }
        Aggregation::Quantile(of, thousandths) => {
            found.numerator = Some(amount(*of));
            found.quantile = Some(f64::from(*thousandths) / 1_000.0);
        }
        _ => {}
    }
    found
}
