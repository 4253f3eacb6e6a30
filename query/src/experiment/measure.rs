//! What was read -> sums by variant: who counts, what each of them did for each metric, what the variants' users come to. All in
//! whole numbers. No clock is asked: "now" is the time of the newest event, or the time that was asked for.

pub mod attribution;
pub mod counted;
pub mod covariates;
pub mod days;
pub mod groups;
pub mod metrics;
pub mod population;
pub mod ripe;
pub mod sample;
pub mod since_exposure;
pub mod strata;
pub mod sums;

use chrono::DateTime;
use statistics::moments::Overflow;

use crate::experiment::read::Read;
use crate::experiment::read::cohort::DAY_US;
use crate::experiment::read::experiment::{Experiment, Variant};
use crate::experiment::read::traits::{Trait, TraitQuery};
use crate::experiment::request::Request;
use crate::http::error::{ApiError, Code};
use attribution::Attribution;
use metrics::{Chosen, Explored, Few, How, MeasuredMetric, OtherCurrency, Split};
use population::{Population, PopulationCounts};

/// What was measured.
pub struct Measured<'a> {
    /// The experiment, with its currency and for how long it ran.
    pub experiment: Experiment,
    /// Its variants with their users, the control first.
    pub variants: Vec<Variant>,
    /// The moment that counts as now, in microseconds since 1970; none before any event.
    pub through: Option<i64>,
    /// Who counts.
    pub population: Population<'a>,
    /// How many of them there are.
    pub counts: PopulationCounts,
    /// Users over all variants, and days from the first exposure to now; 0 for less than one, which tells nothing about a day.
    pub pace: (u64, f64),
    /// Whether anybody did anything a day before the first exposure: less is no history.
    pub has_history: bool,
    /// Each metric.
    pub metrics: Vec<MeasuredMetric>,
    /// The values of the dimension asked for.
    pub split: Option<Split>,
    /// The properties by which it is searched who is affected otherwise; none where that was not asked for.
    pub explored: Option<Vec<Explored>>,
    /// Value by variant under each model of attribution; none without users.
    pub attribution: Option<Attribution>,
    /// Currencies that the value metrics leave out.
    pub other_currencies: Vec<OtherCurrency>,
    /// How many conversion names there are, if more than get metrics of their own.
    pub conversion_names: Option<usize>,
}

/// Measures what was read.
/// # Errors
/// [`ApiError`] of code `unknown_metric`, or if a sum is too large to be exact.
pub fn measure<'a>(read: &'a Read, request: &Request) -> Result<Measured<'a>, ApiError> {
    let (catalogue, cohort) = (&read.catalogue, &*read.cohort);
    let (mut experiment, mut variants) = (catalogue.experiment.clone(), catalogue.variants.clone());
    let window_days = experiment.conversion_window_days;
    let newest = read.as_of.event_time.as_deref().and_then(micros);
    let through = request.as_of.or(newest.max(cohort.newest()));
    let now = through.unwrap_or(0);
    experiment.days_running = through.and_then(|now| days_running(&experiment, now));
    let population = Population::new(cohort, catalogue, request, now);
    let groups = population.groups(population.window_us);
    for (variant, users) in variants.iter_mut().zip(groups.users()) {
        variant.users = Some(*users);
    }

    let (currency, number, other_currencies) = metrics::choose_currency(&experiment, cohort, &groups, &catalogue.metrics);
    experiment.currency = currency;
    let Chosen { metrics, conversion_names } = metrics::choose(catalogue.metrics.clone(), &population, request)?;
    let counts = {
        let impressions =
            (request.as_of.is_none() && catalogue.experiment.exposure.is_none()).then_some(catalogue.beside.impressions);
        population.count(catalogue.beside.unknown_variant, catalogue.beside.over_active, impressions)
    };
    let how = How { currency: number, window_days, cap: request.cap, counted: request.counted };
    let (metrics, attribution) = rayon::join(
        || metrics::measure_all(&population, metrics, &catalogue.metrics, &how),
        || {
            let currency = (experiment.currency.as_deref(), number);
            (counts.exposed_users > 0)
                .then(|| attribution::attribution(&experiment, &population::ids(&variants), cohort, currency, &groups))
                .transpose()
        },
    );
    Ok(Measured {
        split: cohort.find_trait(&TraitQuery::Value(request.dimensions.clone())).map(|known| {
            let few = if request.dimensions.0.len() > 1 { Few::CROSSED } else { Few::PLAIN };
            metrics::split(&population, known, few)
        }),
        explored: request.is_explored.then(|| explored(&population)),
        has_history: cohort.has_history(),
        pace: (groups.total(), population.days_of_traffic(&experiment)),
        metrics: metrics.map_err(overflow)?,
        attribution: attribution.map_err(overflow)?,
        experiment,
        variants,
        through,
        population,
        counts,
        other_currencies,
        conversion_names,
    })
}

/// Splits the population by each property that is searched.
fn explored(population: &Population<'_>) -> Vec<Explored> {
    let of = |(query, known): &(TraitQuery, Trait)| {
        let TraitQuery::Explored(property) = query else { return None };
        let split = (!known.is_too_many).then(|| metrics::split(population, known, Few::EXPLORED));
        Some(Explored { dimension: property.name(), split })
    };
    // What nobody has is nothing to search by.
    let is_there = |(_, known): &&(TraitQuery, Trait)| known.is_too_many || !known.values.is_empty();
    population.cohort.traits.iter().filter(is_there).filter_map(of).collect()
}

/// Returns the error of an answer for sums that do not fit.
pub fn overflow(error: Overflow) -> ApiError {
    ApiError::limit(Code::ValueOutOfRange, error.to_string())
}

/// Reads a time as answers write it.
pub fn micros(time: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(time).ok().map(|time| time.timestamp_micros())
}

/// Returns for how many days an experiment ran until `now`.
pub fn days_running(experiment: &Experiment, now: i64) -> Option<f64> {
    let end = experiment.ended_us.map_or(now, |ended| ended.min(now));
    let days = (end - experiment.started_us?) as f64 / DAY_US as f64;
    (days >= 0.0).then_some(days)
}
