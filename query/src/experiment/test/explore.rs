//! Who is affected otherwise: each value of each property of the first exposure against all other users. What is found is no verdict,
//! but where to look: among all that is told at most a twentieth is expected to be chance.

use serde::Serialize;
use statistics::distributions::{PValue, student_sf};
use statistics::effect::{self, Effect, Scale};
use statistics::moments::Overflow;
use statistics::multiplicity::{Correction, Member, adjust, is_finding};
use uuid::Uuid;

use super::breakdown::part;
use super::comparison::{Compared, Design};
use super::earlier::Earlier;
use super::findings::ends;
use crate::experiment::measure::covariates::Covariates;
use crate::experiment::measure::metrics::{Explored, MeasuredMetric, Split, Value};
use crate::experiment::measure::population::Population;
use crate::experiment::measure::sample::{Sampled, one};
use crate::experiment::measure::sums::{Sums, sums};
use crate::experiment::read::catalogue::Role;

/// The expected share of chance among what is told.
const FALSE_DISCOVERIES: f64 = 0.05;
/// Users of a value, and of all others, in each of both variants, at least.
const USERS_MIN: u64 = 50;

/// Who is affected otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exploration {
    /// The properties that were searched.
    pub dimensions: Vec<String>,
    /// Those that have more values than are searched.
    pub left_out: Vec<String>,
    /// Comparisons of one value with all others, over properties, values, metrics and variants.
    pub tests: usize,
    /// The expected share of chance among what was found.
    pub false_discovery_rate: f64,
    /// What was found, least chance first.
    pub discoveries: Vec<Discovery>,
}

/// A value whose users are affected otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Discovery {
    /// The property.
    pub dimension: String,
    /// Its value; null where it is not known, and `other` for the rest together.
    pub value: Option<String>,
    /// `value`, `unknown` or `other`.
    pub kind: &'static str,
    /// The metric.
    pub metric: String,
    /// The variant.
    pub variant_id: Uuid,
    /// Users with the value, in this variant and the control.
    pub users: u64,
    /// The variant less the control among them.
    pub estimate: f64,
    /// Its interval.
    pub ci: [Option<f64>; 2],
    /// The same among all others.
    pub estimate_of_others: f64,
    /// Its interval.
    pub ci_of_others: [Option<f64>; 2],
    /// The estimate drawn towards that of all values, by how much they differ beyond chance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<f64>,
    /// That both are alike.
    pub p_value: f64,
    /// The same among all that was tested.
    pub adjusted_p: f64,
}

/// Searches all properties, in the primary metrics; without any in the first one. `earlier` is what is taken off the whole, of each metric by
/// variant compared.
/// # Errors
/// [`Overflow`].
pub fn explore(
    design: &Design<'_>,
    population: &Population<'_>,
    explored: &[Explored],
    measured: &[MeasuredMetric],
    earlier: &[Vec<Option<Earlier>>],
) -> Result<Exploration, Overflow> {
    let goals = measured.iter().zip(earlier).filter(|(metric, _)| metric.configured.role == Role::Primary);
    let mut goals: Vec<_> = goals.collect();
    if goals.is_empty() {
        goals.extend(measured.iter().zip(earlier).take(1));
    }
    let mut found: Vec<(Discovery, PValue)> = Vec::new();
    for Explored { dimension, split } in explored {
        let Some(split) = split.as_ref().filter(|split| split.values.len() > 1) else { continue };
        for (metric, earlier) in &goals {
            of_metric(design, population, (dimension, split), metric, earlier, &mut found)?;
        }
    }
    let members: Vec<Member> =
        found.iter().map(|(_, p)| Member { p_value: Some(*p), is_tested: true, is_primary: true }).collect();
    let adjusted = adjust(&members, Correction::BenjaminiHochberg, FALSE_DISCOVERIES);
    let tests = found.len();
    let told = found.into_iter().zip(adjusted).filter_map(|((discovery, _), adjusted)| {
        let p = adjusted.p_value.filter(|p| is_finding(p.p, FALSE_DISCOVERIES))?;
        Some(Discovery { adjusted_p: p.p, ..discovery })
    });
    let mut discoveries: Vec<Discovery> = told.collect();
    discoveries.sort_by(|one, two| one.p_value.total_cmp(&two.p_value));
    let names = |is_searched: bool| {
        let those = explored.iter().filter(move |explored| explored.split.is_some() == is_searched);
        those.map(|explored| explored.dimension.clone()).collect()
    };
    Ok(Exploration {
        dimensions: names(true),
        left_out: names(false),
        tests,
        false_discovery_rate: FALSE_DISCOVERIES,
        discoveries,
    })
}

/// Compares each value of one property with all others, in one metric.
fn of_metric(
    design: &Design<'_>,
    population: &Population<'_>,
    (dimension, split): (&str, &Split),
    metric: &MeasuredMetric,
    earlier: &[Option<Earlier>],
    found: &mut Vec<(Discovery, PValue)>,
) -> Result<(), Overflow> {
    // Quantiles of parts do not add up to that of the others.
    if metric.configured.aggregation.quantile().is_some() {
        return Ok(());
    }
    let nothing = Covariates::default();
    let covariates = if earlier.iter().any(Option::is_some) { &metric.covariates } else { &nothing };
    let window_us = metric.counted.window_us();
    let groups = population.groups_of_values(split.values.len(), window_us, |user| split.places[user] as usize);
    let cells = sums(&metric.entries, covariates, &groups, metric.cap.map(|cap| cap.amount))?;
    let arms = design.variants.len();
    let of = |value: usize, arm: usize| &cells[value * arms + arm];
    for (arm, earlier) in (1..arms).zip(earlier) {
        let compared = |pair: [&Sums; 2]| -> Result<Option<Compared>, Overflow> {
            if pair.iter().any(|sums| sums.users < USERS_MIN) {
                return Ok(None);
            }
            let sampled: Vec<Sampled> = pair.iter().map(|sums| one(&metric.configured, sums)).collect::<Result<_, _>>()?;
            Ok(Some(Compared { arm, ..part(design, &sampled, 1, earlier.clone()) }))
        };
        let mut of_values = Vec::with_capacity(split.values.len());
        for value in 0..split.values.len() {
            of_values.push(compared([of(value, 0), of(value, arm)])?);
        }
        let effect = |compared: &Option<Compared>| compared.as_ref().and_then(|compared| compared.effect(Scale::Absolute));
        let effects: Vec<Option<Effect>> = of_values.iter().map(effect).collect();
        let mut shrunk = shrunken(&effects).into_iter();
        for (value, own) in of_values.iter().enumerate() {
            let shrunk = shrunk.next().flatten();
            let (Some(own), Some(effect)) = (own, effects[value]) else { continue };
            let others =
                |arm: usize| Sums::of_all((0..split.values.len()).filter(|other| *other != value).map(|other| of(other, arm)));
            let (Some(control), Some(treatment)) = (others(0)?, others(arm)?) else { continue };
            let Some(rest) = compared([&control, &treatment])? else { continue };
            let Some(of_rest) = rest.effect(Scale::Absolute) else { continue };
            let p = apart(&effect, &of_rest);
            let interval = |compared: &Compared| ends(compared.found.interval(design.experiment.alpha));
            let Value { text, kind } = split.values[value].clone();
            let discovery = Discovery {
                dimension: dimension.to_owned(),
                value: text,
                kind,
                metric: metric.configured.name.clone(),
                variant_id: design.variants[arm].id,
                users: own.users(),
                estimate: effect.estimate,
                ci: interval(own),
                estimate_of_others: of_rest.estimate,
                ci_of_others: interval(&rest),
                shrunk,
                p_value: p.p,
                adjusted_p: p.p,
            };
            found.push((discovery, p));
        }
    }
    Ok(())
}

/// Draws the effects that there are towards their mean.
fn shrunken(effects: &[Option<Effect>]) -> Vec<Option<f64>> {
    let known: Vec<Effect> = effects.iter().flatten().copied().collect();
    let Some(shrunk) = effect::shrunken(&known) else { return vec![None; effects.len()] };
    let mut shrunk = shrunk.into_iter();
    effects.iter().map(|effect| effect.and_then(|_| shrunk.next())).collect()
}

/// Tests whether the effects among two sorts of users are alike.
fn apart(one: &Effect, two: &Effect) -> PValue {
    let z = (one.estimate - two.estimate) / one.std_error.hypot(two.std_error);
    student_sf(z.abs(), one.dof.min(two.dof)).doubled().into()
}
