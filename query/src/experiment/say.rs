//! What was tested -> the answer: verdicts, sentences, the decision, the shape that clients receive.

pub mod body;
pub mod decision;
pub mod metric;
pub mod sentence;
pub mod verdict;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use statistics::moments::decimal_text;
use uuid::Uuid;

use crate::experiment::measure::Measured;
use crate::experiment::measure::metrics::{CONVERSION_NAMES_MAX, OtherCurrency};
use crate::experiment::measure::population::PopulationCounts;
use crate::experiment::read::Read;
use crate::experiment::read::catalogue::{Aggregation, Role};
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::request::{Analysis, Request, Settings};
use crate::experiment::rules::{self, Facts};
use crate::experiment::test::Tested;
use crate::experiment::warning::Warning;
use crate::http::error::ApiError;
use crate::source::snapshot::time_text;
use body::{Decision, METHOD_VERSION, Results};
use metric::{Comparison, Definition, Metric};

/// Answers by what was tested. The same rows and the same request give the same answer, but for `computed_at`.
/// # Errors
/// [`ApiError`] of a fault of this service, if the definitions cannot be written.
pub fn say(read: &Read, measured: &Measured<'_>, tested: Tested<'_>, request: &Request) -> Result<Results, ApiError> {
    let analysis = tested.plan.analysis;
    let mut warnings = left_out(measured);
    warnings.extend_from_slice(&read.unknown_names);
    warnings.extend(frozen(&measured.experiment, &read.as_of.months_away));
    let mut status = status(&measured.experiment, &measured.variants, &measured.counts, analysis, &mut warnings);
    if status == "ok" && request.counted != (None, None) {
        status = "descriptive";
        let message =
            "what was done in a range of time counts: users' windows are cut, so that the numbers describe and decide nothing";
        warnings.push(Warning::new(status, message));
    }
    warnings.extend(tested.warnings);
    let design = measured.design(request, &tested.plan);
    let metrics: Vec<Metric> = tested.metrics.into_iter().map(|tested| metric::metric(&design, tested)).collect();
    let decision = (status == "ok").then(|| decision::decision(&design, &tested.health, &metrics));
    let rules =
        rules::rules(&measured.experiment.policy, &facts(measured, &metrics, decision.as_ref())).unwrap_or_else(|error| {
            warnings.push(Warning::new("rule_failed", error.to_string()));
            Vec::new()
        });
    let names = metrics.iter().map(|metric| metric.id.clone()).collect();
    let request_settings = Settings::of(request, analysis, measured.population.rule, names);
    let settings_hash = definitions_hash(read, &metrics, &request_settings)?;
    Ok(Results {
        status,
        as_of: read.as_of.clone(),
        data_through: measured.through.map(time_text),
        computed_at: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        method_version: METHOD_VERSION,
        request_settings,
        settings_hash,
        population: measured.counts.clone(),
        health: tested.health,
        metrics,
        exploration: tested.exploration,
        attribution: measured.attribution.clone(),
        decision,
        rules,
        warnings,
        experiment: measured.experiment.clone(),
        variants: measured.variants.clone(),
    })
}

/// Returns what conditions of the experiment's own may speak of.
fn facts(measured: &Measured<'_>, metrics: &[Metric], decision: Option<&Decision>) -> Vec<Facts> {
    let name = |id: Uuid| measured.variants.iter().find(|variant| variant.id == id).map(|variant| variant.name.clone());
    let of = |metric: &Metric, found: &Comparison| {
        let arm = |id: Option<Uuid>| metric.arms.iter().find(|arm| Some(arm.variant_id) == id);
        let (control, treatment) = (arm(measured.experiment.control_variant_id), arm(Some(found.variant_id)));
        let (absolute, relative) = (&found.absolute, &found.relative);
        Facts {
            metric: metric.id.clone(),
            role: metric.role.to_string(),
            variant: name(found.variant_id).unwrap_or_default(),
            variant_id: found.variant_id,
            verdict: found.verdict.to_owned(),
            guardrail: found.guardrail.as_ref().map(|guardrail| guardrail.state.to_owned()),
            decision: decision.map(|decision| decision.status.to_owned()),
            significant: found.significant,
            users: [control, treatment].into_iter().flatten().map(|arm| arm.users).sum(),
            exposed_users: measured.counts.exposed_users,
            days_running: measured.experiment.days_running,
            control_mean: control.and_then(|arm| arm.mean),
            mean: treatment.and_then(|arm| arm.mean),
            estimate: [absolute.estimate, absolute.ci[0], absolute.ci[1]],
            lift: [relative.lift, relative.ci[0], relative.ci[1]],
            p_value: found.test.p_value,
            adjusted_p: found.adjusted.and_then(|adjusted| adjusted.p_value),
        }
    };
    metrics.iter().flat_map(|metric| metric.comparisons.iter().map(move |found| of(metric, found))).collect()
}

/// What decides how rows become numbers.
#[derive(Serialize)]
struct Definitions<'a> {
    method_version: &'static str,
    experiment: Experiment,
    variants: Vec<(Uuid, &'a str, bool, Option<f64>)>,
    metrics: Vec<(&'a str, &'a Definition, Option<i32>, &'static str, Role)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal: Option<&'a str>,
    settings: &'a Settings,
}

/// Returns the SHA-256 of all that decides how rows become numbers, in hexadecimal. Equal definitions give equal texts.
fn definitions_hash(read: &Read, metrics: &[Metric], settings: &Settings) -> Result<String, ApiError> {
    let definitions = Definitions {
        method_version: METHOD_VERSION,
        // As the catalogue has it: what follows from the rows is no part of it, and neither is where they are kept.
        experiment: Experiment { frozen_at: None, ..read.catalogue.experiment.clone() },
        variants: read
            .catalogue
            .variants
            .iter()
            .map(|variant| (variant.id, variant.name.as_str(), variant.is_control, variant.weight))
            .collect(),
        metrics: metrics
            .iter()
            .map(|metric| (metric.id.as_str(), &metric.definition, metric.window_days, metric.direction, metric.role))
            .collect(),
        internal: read.catalogue.internal.as_deref(),
        settings,
    };
    let json = serde_json::to_vec(&definitions).map_err(|error| {
        tracing::error!(%error, "a definition could not be written");
        ApiError::internal()
    })?;
    Ok(hex::encode(Sha256::digest(&json)))
}

/// Warns of what the metrics leave out.
fn left_out(measured: &Measured<'_>) -> Vec<Warning> {
    let kept = measured.experiment.currency.as_deref().unwrap_or("none");
    let currency = |other: &OtherCurrency| {
        let message = format!(
            "{} conversions with a total value of {} {} are not in the value metrics, which are in the currency {kept}; \
             set the experiment's currency to choose another one",
            other.conversions,
            decimal_text(other.sum),
            other.currency.as_deref().unwrap_or("without a currency"),
        );
        Warning::new("other_currency", message)
    };
    let names = measured.conversion_names.map(|names| {
        let message = format!(
            "there are {names} conversion names; the {CONVERSION_NAMES_MAX} with the most users are shown; configure metrics to choose"
        );
        Warning::new("conversion_names_cut", message)
    });
    let without_value = measured.metrics.iter().filter(|metric| metric.left_out.without_value > 0).map(|metric| {
        let (rows, name) = (metric.left_out.without_value, &metric.configured.name);
        if let Aggregation::Defined(defined) = &metric.configured.aggregation {
            let parts = defined.reference.definition.parts().filter(|(_, part)| part.per_user.needs_number());
            let values: Vec<&str> = parts.filter_map(|(_, part)| part.value.as_deref()).collect();
            return Warning::new(
                "events_without_value",
                format!("{rows} events have no number as {} and do not count in {name}", values.join(" or ")),
            );
        }
        let message = format!("{rows} conversions without a value are in neither numerator nor denominator of {name}");
        Warning::new("conversions_without_value", message)
    });
    measured.other_currencies.iter().map(currency).chain(without_value).chain(names).chain(of_strata(measured)).collect()
}

/// Warns of users who came while one of two variants had none: there is nobody to compare them with.
fn of_strata(measured: &Measured<'_>) -> impl Iterator<Item = Warning> {
    let population = &measured.population;
    let (groups, arms) = (population.groups(population.window_us), measured.variants.len());
    let has_control = measured.experiment.control_variant_id.is_some() && population.strata.count() > 1;
    let left_out = move |arm: usize| {
        let pairs = groups.cells().chunks(arms.max(1)).map(|users| (users[0], users[arm]));
        pairs
            .filter(|(control, treatment)| (*control == 0) != (*treatment == 0))
            .map(|(control, treatment)| control + treatment)
            .sum::<u64>()
    };
    (1..arms).filter(move |_| has_control).map(move |arm| (arm, left_out(arm))).filter(|(_, users)| *users > 0).map(
        |(arm, users)| {
            let message = format!(
                "{users} users came while {} or {} had nobody in the shares of that time, and are not in the comparison of both",
                measured.variants[0].name, measured.variants[arm].name
            );
            Warning::new("stratum_left_out", message)
        },
    )
}

/// Warns of months with events of the experiment that are archived, and says which numbers lack them.
fn frozen(experiment: &Experiment, months_away: &[String]) -> Option<Warning> {
    experiment.frozen_at.as_ref()?;
    let mut message = "months with events of this experiment were detached; its results are as of then".to_owned();
    if !months_away.is_empty() {
        message.push_str(&format!(
            ". Exposures and attributed conversions are complete; what is read from events, that is adjustments by what users did before, \
             dimensions, triggers and metrics that are defined over events, lacks {}, until `weir admin month restore` brings it back",
            months_away.join(", ")
        ));
    }
    Some(Warning::new("experiment_frozen", message))
}

/// Returns the status of the whole answer, and warns of what limits all of its numbers.
fn status(
    experiment: &Experiment,
    variants: &[Variant],
    population: &PopulationCounts,
    analysis: Analysis,
    warnings: &mut Vec<Warning>,
) -> &'static str {
    if let Some(since) = &experiment.behind_since {
        let message = format!(
            "participation and attribution of this experiment are being recomputed since {since}, after a change of its rules; until that is \
             done some of these numbers are of before, and the newest events are missing"
        );
        warnings.push(Warning::new("recomputed_now", message));
    }
    let mut limited = |status: &'static str, message: String| {
        warnings.push(Warning::new(status, message));
        status
    };
    if experiment.phases.is_empty() {
        let status = if experiment.status == "draft" { "a draft" } else { "archived and was never started" };
        let message =
            format!("the experiment is {status}: exposures count once it is started, with `weir admin experiment start`");
        return limited("not_started", message);
    }
    if population.analysed_users == 0 {
        let message = match (population.exposed_users, population.excluded.incomplete_window) {
            (0, _) if experiment.exposure.is_some() => {
                "nobody was exposed yet: no event is what its definition of an exposure says and has a variant's name"
            }
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
