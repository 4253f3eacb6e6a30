//! `weir admin apply`: metric definitions, rollups and experiments as a file says them, so that a team keeps them in a repository.
//!
//! The file and what is stored give a list of steps ([`plan`]), which are shown, and made one after the other; each is one of the changes
//! that other commands make. A file that was applied gives none. What the file does not name stays as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use aggregator::admin::experiments as changes;
use anyhow::Context as _;
use catalogue::definitions::Definition;
use catalogue::experiments::{self, Assignment, Experiment, NewExperiment, NewVariant, Variant, VariantDetails};
use catalogue::exposures::ExposureDefinition;
use catalogue::metrics::{Metric, NewMetric};
use catalogue::rollups::{self, Rollup};
use catalogue::versions::{self, Version, Versioned};
use catalogue::{
    Aggregation, Amount, AttributionMethod, Decimal, Denominator, Direction, ExperimentStatus, Policy, Project, Role, Trigger,
};
use serde::{Deserialize, Deserializer};
use sqlx::PgConnection;

use super::{InProject, metric};
use crate::commands::{print, printable};

/// The arguments of `weir admin apply`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// A TOML file with [metrics.NAME], [exposures.NAME], [rollups.NAME] and [experiments.NAME], as the README shows it
    file: PathBuf,
    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    project: InProject,
}

/// What a file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// By which condition users are own staff; left out: as it is.
    internal: Option<String>,
    #[serde(default)]
    metrics: BTreeMap<String, Definition>,
    #[serde(default)]
    exposures: BTreeMap<String, ExposureDefinition>,
    #[serde(default)]
    rollups: BTreeMap<String, Rollup>,
    #[serde(default)]
    experiments: BTreeMap<String, Entry>,
}

/// What it says of an experiment.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    description: Option<String>,
    /// What it is to be; left out: as it is, a draft when it is made.
    #[serde(default, deserialize_with = "text")]
    status: Option<ExperimentStatus>,
    target_sample_size: Option<i32>,
    confidence_level: Option<Number>,
    minimum_detectable_effect: Option<Number>,
    conversion_window_days: Option<i32>,
    #[serde(default, deserialize_with = "text")]
    attribution_method: Option<AttributionMethod>,
    currency: Option<String>,
    /// What exposes users, a definition with its version or without; left out: as it is.
    exposure: Option<String>,
    trigger: Option<Trigger>,
    policy: Option<Policy>,
    variants: BTreeMap<String, VariantEntry>,
    /// Left out: as they are.
    metrics: Option<BTreeMap<String, MetricEntry>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantEntry {
    weight: Option<Number>,
    #[serde(default)]
    control: bool,
    description: Option<String>,
    config: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricEntry {
    definition: Option<String>,
    conversion: Option<String>,
    #[serde(default, deserialize_with = "text")]
    aggregation: Option<Aggregation>,
    #[serde(default, deserialize_with = "text")]
    numerator: Option<Amount>,
    #[serde(default, deserialize_with = "text")]
    denominator: Option<Denominator>,
    denominator_conversion: Option<String>,
    quantile: Option<Number>,
    #[serde(default, deserialize_with = "text")]
    role: Option<Role>,
    #[serde(default, deserialize_with = "text")]
    direction: Option<Direction>,
    margin: Option<Number>,
    window_days: Option<i32>,
    cap: Option<Number>,
    cap_percentile: Option<Number>,
}

/// A decimal, written as a number or as a text.
#[derive(Clone, Debug)]
struct Number(String);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Whole(i64),
            Decimal(f64),
        }
        Ok(Number(match Written::deserialize(input)? {
            Written::Text(text) => text,
            Written::Whole(number) => number.to_string(),
            Written::Decimal(number) => number.to_string(),
        }))
    }
}

/// Reads a text that the catalogue knows.
fn text<'de, D: Deserializer<'de>, T: std::str::FromStr<Err = catalogue::UnknownText>>(input: D) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(input)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// One change.
#[derive(Clone, Debug)]
enum Step {
    SetInternal(String),
    Define(String, Box<Definition>),
    DefineExposure(String, Box<ExposureDefinition>),
    DefineRollup(String, Box<Rollup>),
    Create(Box<NewExperiment>),
    SetExposure(String, (String, Option<i32>)),
    Describe(String, String),
    SetTrigger(String, Trigger),
    SetPolicy(String, Policy),
    AddVariant(String, NewVariant),
    DescribeVariant(String, String, VariantDetails),
    Weights(String, Vec<NewVariant>),
    RemoveMetric(String, String),
    AddMetric(String, Box<NewMetric>),
    Start(String),
    Pause(String),
    Stop(String),
    Archive(String),
    Unarchive(String),
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = |variant: &NewVariant| variant.weight.as_ref().map(|weight| format!(":{weight}")).unwrap_or_default();
        match self {
            Step::SetInternal(condition) => write!(out, "leave out own staff, for whom {} holds", printable(condition)),
            Step::Define(name, _) => write!(out, "define the metric {}", printable(name)),
            Step::DefineExposure(name, _) => write!(out, "define the exposure {}", printable(name)),
            Step::DefineRollup(name, _) => write!(out, "keep the rollup {}", printable(name)),
            Step::SetExposure(experiment, (name, _)) => {
                write!(out, "have {} expose users to {}", printable(name), printable(experiment))
            }
            Step::Create(new) => write!(out, "create the experiment {}", printable(&new.name)),
            Step::Describe(experiment, _) => write!(out, "describe {}", printable(experiment)),
            Step::SetTrigger(experiment, trigger) => {
                write!(out, "begin the analysis of {} with {}", printable(experiment), printable(&trigger.to_string()))
            }
            Step::SetPolicy(experiment, policy) => {
                write!(out, "set the policy of {}: it {}", printable(experiment), printable(&policy.to_string()))
            }
            Step::AddVariant(experiment, new) => {
                write!(out, "add the variant {}{} to {}", printable(&new.name), weight(new), printable(experiment))
            }
            Step::DescribeVariant(experiment, variant, _) => {
                write!(out, "describe the variant {} of {}", printable(variant), printable(experiment))
            }
            Step::Weights(experiment, weights) => {
                let all: Vec<String> = weights.iter().map(|new| format!("{}{}", printable(&new.name), weight(new))).collect();
                write!(out, "change the weights of {} to {}", printable(experiment), all.join(" "))
            }
            Step::RemoveMetric(experiment, metric) => {
                write!(out, "remove the metric {} of {}", printable(metric), printable(experiment))
            }
            Step::AddMetric(experiment, new) => {
                write!(out, "add the metric {} to {}", printable(&new.name), printable(experiment))
            }
            Step::Start(experiment) => write!(out, "start {}", printable(experiment)),
            Step::Pause(experiment) => write!(out, "pause {}", printable(experiment)),
            Step::Stop(experiment) => write!(out, "stop {}", printable(experiment)),
            Step::Archive(experiment) => write!(out, "archive {}", printable(experiment)),
            Step::Unarchive(experiment) => write!(out, "take {} out of the archive", printable(experiment)),
        }
    }
}

/// Reads the file, shows the steps, and makes them.
pub(super) async fn run(args: Args, conn: &mut PgConnection) -> anyhow::Result<()> {
    let place = args.file.display();
    let text = std::fs::read_to_string(&args.file).with_context(|| place.to_string())?;
    let file: File = toml::from_str(&text).with_context(|| place.to_string())?;
    for (name, definition) in &file.metrics {
        let place = || format!("{place}: metrics.{name}");
        definition.check().with_context(place)?;
        query::check_definition(definition).with_context(place)?;
    }
    for (name, trigger) in file.experiments.iter().filter_map(|(name, entry)| Some((name, entry.trigger.as_ref()?))) {
        let place = || format!("{place}: experiments.{name}.trigger");
        trigger.check().with_context(place)?;
        query::check_definition(&trigger.definition()).with_context(place)?;
    }
    for (name, policy) in file.experiments.iter().filter_map(|(name, entry)| Some((name, entry.policy.as_ref()?))) {
        let place = || format!("{place}: experiments.{name}.policy");
        policy.check().with_context(place)?;
        query::check_policy(policy).with_context(place)?;
    }
    for (name, exposure) in &file.exposures {
        exposure.check().with_context(|| format!("{place}: exposures.{name}"))?;
    }
    for (name, rollup) in &file.rollups {
        rollup.check().with_context(|| format!("{place}: rollups.{name}"))?;
    }
    let project = args.project.find(conn).await?;
    let stored = Stored {
        metrics: versions::list(conn, &project).await?,
        exposures: versions::list(conn, &project).await?,
        rollups: kept_rollups(conn, &project).await?,
        experiments: experiments::list(conn, &project).await?,
    };
    let mut steps = plan(&file, &stored).map_err(|fault| anyhow::anyhow!("{place}: {fault}"))?;
    if let Some(condition) = &file.internal {
        query::check_exposure(condition).with_context(|| format!("{place}: internal"))?;
        if catalogue::project::internal(conn, project.id).await?.as_ref() != Some(condition) {
            steps.insert(0, Step::SetInternal(condition.clone()));
        }
    }
    if steps.is_empty() {
        return print("nothing to change\n");
    }
    for step in steps {
        if args.dry_run {
            print(&format!("would {step}\n"))?;
            continue;
        }
        make(&step, conn, &project).await.with_context(|| format!("{place}: {step}"))?;
        print(&format!("{step}\n"))?;
    }
    Ok(())
}

/// Returns the versions of rollups that were not removed: a file makes the others anew.
async fn kept_rollups(conn: &mut PgConnection, project: &Project) -> anyhow::Result<Vec<Version<Rollup>>> {
    let kept = rollups::kept(conn, project.id).await?;
    let mut versions: Vec<Version<Rollup>> = versions::list(conn, project).await?;
    versions.retain(|version| kept.iter().any(|kept| kept.name == version.name));
    Ok(versions)
}

async fn make(step: &Step, conn: &mut PgConnection, project: &Project) -> anyhow::Result<()> {
    match step {
        Step::SetInternal(condition) => catalogue::project::set_internal(conn, project, Some(condition)).await?,
        Step::Define(name, definition) => versions::define(conn, project, name, &**definition).await.map(drop)?,
        Step::DefineExposure(name, definition) => versions::define(conn, project, name, &**definition).await.map(drop)?,
        Step::DefineRollup(name, rollup) => versions::define(conn, project, name, &**rollup).await.map(drop)?,
        Step::SetExposure(name, (exposure, version)) => {
            changes::set_exposure(conn, project, name, Some((exposure, *version))).await.map(drop)?;
        }
        Step::Create(new) => changes::create(conn, project, new).await.map(drop)?,
        Step::Describe(name, text) => experiments::describe(conn, project, name, text).await.map(drop)?,
        Step::SetTrigger(name, trigger) => experiments::set_trigger(conn, project, name, Some(trigger)).await.map(drop)?,
        Step::SetPolicy(name, policy) => experiments::set_policy(conn, project, name, policy).await.map(drop)?,
        Step::AddVariant(name, new) => changes::add_variant(conn, project, name, new, None).await.map(drop)?,
        Step::DescribeVariant(name, variant, details) => {
            experiments::describe_variant(conn, project, name, variant, details).await.map(drop)?;
        }
        Step::Weights(name, weights) => {
            changes::set_weights(conn, project, name, weights, None, Assignment::Kept).await.map(drop)?
        }
        Step::RemoveMetric(name, metric) => experiments::remove_metric(conn, project, name, metric).await.map(drop)?,
        Step::AddMetric(name, new) => experiments::add_metric(conn, project, name, new).await.map(drop)?,
        Step::Start(name) => changes::start(conn, project, name, Assignment::Kept, None).await.map(drop)?,
        Step::Pause(name) => changes::pause(conn, project, name, None).await.map(drop)?,
        Step::Stop(name) => changes::stop(conn, project, name).await.map(drop)?,
        Step::Archive(name) => experiments::archive(conn, project, name).await.map(drop)?,
        Step::Unarchive(name) => experiments::unarchive(conn, project, name).await.map(drop)?,
    }
    Ok(())
}

/// What is stored of a project.
struct Stored {
    metrics: Vec<Version<Definition>>,
    exposures: Vec<Version<ExposureDefinition>>,
    rollups: Vec<Version<Rollup>>,
    experiments: Vec<Experiment>,
}

/// The version that each definition has once the steps are made.
type Newest<'a> = BTreeMap<&'a str, i32>;

/// Adds the steps that define what is not stored as the file says it.
fn define<'a, D: Versioned>(
    asked: &'a BTreeMap<String, D>,
    stored: &'a [Version<D>],
    steps: &mut Vec<Step>,
    step: impl Fn(String, Box<D>) -> Step,
) -> Newest<'a> {
    let mut newest: Newest<'a> = stored.iter().map(|version| (version.name.as_str(), version.version)).collect();
    for (name, definition) in asked {
        let known = stored.iter().rfind(|version| version.name == *name);
        if known.is_none_or(|known| known.definition != *definition) {
            newest.insert(name, known.map_or(1, |known| known.version + 1));
            steps.push(step(name.clone(), Box::new(definition.clone())));
        }
    }
    newest
}

/// Returns the steps that lead from what is stored to what the file says.
///
/// # Errors
/// A text that names the place, what was found and what is possible.
fn plan(file: &File, stored: &Stored) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let newest = define(&file.metrics, &stored.metrics, &mut steps, Step::Define);
    let exposures = define(&file.exposures, &stored.exposures, &mut steps, Step::DefineExposure);
    define(&file.rollups, &stored.rollups, &mut steps, Step::DefineRollup);
    for (name, entry) in &file.experiments {
        let place = format!("experiments.{name}");
        let known = stored.experiments.iter().find(|stored| stored.name == *name);
        let exposure = entry.exposure_that_differs(known, &exposures, &place)?;
        let exposure = exposure.map(|exposure| Step::SetExposure(name.clone(), exposure));
        match known {
            None => {
                steps.push(Step::Create(Box::new(entry.to_new(name, &newest, &place)?)));
                let from = if entry.status == Some(ExperimentStatus::Running) {
                    ExperimentStatus::Running
                } else {
                    ExperimentStatus::Draft
                };
                steps.extend(exposure);
                move_to(name, from, entry.status, &place, &mut steps)?;
            }
            Some(stored) => {
                steps.extend(exposure);
                entry.changes(stored, &newest, &place, &mut steps)?;
            }
        }
    }
    Ok(steps)
}

impl Entry {
    fn to_new(&self, name: &str, newest: &Newest<'_>, place: &str) -> Result<NewExperiment, String> {
        let text = |number: &Option<Number>| number.as_ref().map(|number| number.0.clone());
        let metrics = self.metrics.iter().flatten().map(|(name, entry)| entry.to_new(name, newest, place));
        Ok(NewExperiment {
            name: name.to_owned(),
            description: self.description.clone(),
            variants: self.variants.iter().map(|(name, entry)| entry.to_new(name)).collect(),
            metrics: metrics.collect::<Result<_, _>>()?,
            target_sample_size: self.target_sample_size,
            confidence_level: text(&self.confidence_level),
            minimum_detectable_effect: text(&self.minimum_detectable_effect),
            conversion_window_days: self.conversion_window_days,
            attribution_method: self.attribution_method,
            currency: self.currency.clone(),
            trigger: self.trigger.clone(),
            policy: self.policy.clone(),
            start: self.status == Some(ExperimentStatus::Running),
            started_at: None,
        })
    }

    /// Returns what is to expose users, if the file says something else than is stored.
    fn exposure_that_differs(
        &self,
        stored: Option<&Experiment>,
        newest: &Newest<'_>,
        place: &str,
    ) -> Result<Option<(String, Option<i32>)>, String> {
        let Some(text) = &self.exposure else { return Ok(None) };
        let (name, version) = metric::reference(text).map_err(|fault| format!("{place}.exposure: {fault}"))?;
        let Some(newest) = newest.get(name.as_str()) else {
            return Err(format!("{place}.exposure: there is no exposure definition {name:?}, and the file has none"));
        };
        if let Some(version) = version.filter(|version| !(1..=*newest).contains(version)) {
            return Err(format!("{place}.exposure: there is no version {version} of {name:?}; its newest is {newest}"));
        }
        let found = stored.and_then(|stored| stored.exposure.as_ref()).map(|found| (found.name.as_str(), found.version));
        // What is frozen stays with the version that it has.
        let is_kept = version.is_none() && stored.is_some_and(|stored| stored.frozen_at.is_some());
        let asked = if is_kept { found.map_or(*newest, |(_, version)| version) } else { version.unwrap_or(*newest) };
        let is_same = found == Some((name.as_str(), asked));
        Ok((!is_same).then_some((name, version)))
    }

    fn changes(&self, stored: &Experiment, newest: &Newest<'_>, place: &str, steps: &mut Vec<Step>) -> Result<(), String> {
        self.check_fixed(stored, place)?;
        let name = &stored.name;
        if let Some(text) = self.description.as_ref().filter(|text| stored.description.as_ref() != Some(text)) {
            steps.push(Step::Describe(name.clone(), text.clone()));
        }
        if let Some(trigger) = self.trigger.as_ref().filter(|trigger| stored.trigger.as_ref() != Some(trigger)) {
            steps.push(Step::SetTrigger(name.clone(), trigger.clone()));
        }
        if let Some(policy) = self.policy.as_ref().filter(|policy| stored.policy != **policy) {
            steps.push(Step::SetPolicy(name.clone(), policy.clone()));
        }
        self.change_variants(stored, place, steps)?;
        for (metric, entry) in self.metrics.iter().flatten() {
            let new = entry.to_new(metric, newest, place)?;
            let known = stored.metrics.iter().find(|known| known.name == *metric);
            if known.is_some_and(|known| is_same(known, &new, newest)) {
                continue;
            }
            if known.is_some() {
                steps.push(Step::RemoveMetric(name.clone(), metric.clone()));
            }
            steps.push(Step::AddMetric(name.clone(), Box::new(new)));
        }
        if let Some(metrics) = &self.metrics {
            let gone = stored.metrics.iter().filter(|known| !metrics.contains_key(&known.name));
            steps.extend(gone.map(|known| Step::RemoveMetric(name.clone(), known.name.clone())));
        }
        move_to(name, stored.status, self.status, place, steps)
    }

    /// Refuses what an experiment keeps from its beginning on.
    fn check_fixed(&self, stored: &Experiment, place: &str) -> Result<(), String> {
        let decimal = |number: &Option<Number>| number.as_ref().map(|number| number.0.clone());
        let kept = |field: &str, asked: Option<String>, found: String, is_same: bool| match asked {
            Some(asked) if !is_same => {
                Err(format!("{place}.{field}: found {asked}; the experiment keeps {found}, which it was made with"))
            }
            _ => Ok(()),
        };
        let is_equal = |number: &Option<Number>, stored: Decimal| same_decimal(number.as_ref(), Some(stored));
        let size = |size: Option<i32>| size.map(|size| size.to_string());
        kept(
            "target_sample_size",
            size(self.target_sample_size),
            size(stored.target_sample_size).unwrap_or_else(|| "none".to_owned()),
            self.target_sample_size == stored.target_sample_size,
        )?;
        let level = stored.confidence_level;
        kept("confidence_level", decimal(&self.confidence_level), level.to_string(), is_equal(&self.confidence_level, level))?;
        let effect = stored.minimum_detectable_effect;
        let is_same = is_equal(&self.minimum_detectable_effect, effect);
        kept("minimum_detectable_effect", decimal(&self.minimum_detectable_effect), effect.to_string(), is_same)?;
        let days = self.conversion_window_days;
        let is_same = days == Some(stored.conversion_window_days);
        kept("conversion_window_days", size(days), stored.conversion_window_days.to_string(), is_same)?;
        let method = self.attribution_method;
        let is_same = method == Some(stored.attribution_method);
        kept("attribution_method", method.map(|method| method.to_string()), stored.attribution_method.to_string(), is_same)?;
        let found = stored.currency.clone().unwrap_or_else(|| "none".to_owned());
        kept("currency", self.currency.clone(), found, self.currency == stored.currency)
    }

    fn change_variants(&self, stored: &Experiment, place: &str, steps: &mut Vec<Step>) -> Result<(), String> {
        let name = &stored.name;
        if let Some(missing) = stored.variants.iter().find(|variant| !self.variants.contains_key(&variant.name)) {
            return Err(format!(
                "{place}.variants: {:?} is missing; the experiment has it and a variant is never removed: give it the weight 0",
                missing.name
            ));
        }
        let mut is_moved = false;
        for (variant, entry) in &self.variants {
            let Some(known) = stored.variants.iter().find(|known| known.name == *variant) else {
                steps.push(Step::AddVariant(name.clone(), entry.to_new(variant)));
                continue;
            };
            if known.is_control != entry.control {
                let found = if entry.control { "a control" } else { "no control" };
                return Err(format!(
                    "{place}.variants.{variant}: found {found}; what the others are compared with is chosen at the start"
                ));
            }
            is_moved |= !same_decimal(entry.weight.as_ref(), known.weight);
            let details = entry.details_that_differ(known);
            if details != VariantDetails::default() {
                steps.push(Step::DescribeVariant(name.clone(), variant.clone(), details));
            }
        }
        if is_moved {
            let weights = self.variants.iter().map(|(name, entry)| NewVariant {
                name: name.clone(),
                weight: entry.weight.as_ref().map(|weight| weight.0.clone()),
                ..NewVariant::default()
            });
            steps.push(Step::Weights(name.clone(), weights.collect()));
        }
        Ok(())
    }
}

impl VariantEntry {
    fn to_new(&self, name: &str) -> NewVariant {
        NewVariant {
            name: name.to_owned(),
            weight: self.weight.as_ref().map(|weight| weight.0.clone()),
            is_control: self.control,
            details: VariantDetails {
                description: self.description.clone(),
                config_json: self.config.as_ref().map(|config| config.to_string()),
            },
        }
    }

    fn details_that_differ(&self, known: &Variant) -> VariantDetails {
        let stored = known.config_json.as_ref().and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        VariantDetails {
            description: self.description.clone().filter(|text| known.description.as_ref() != Some(text)),
            config_json: self.config.as_ref().filter(|config| stored.as_ref() != Some(config)).map(|config| config.to_string()),
        }
    }
}

impl MetricEntry {
    fn to_new(&self, name: &str, newest: &Newest<'_>, place: &str) -> Result<NewMetric, String> {
        let text = |number: &Option<Number>| number.as_ref().map(|number| number.0.clone());
        let definition = self.definition.as_deref().map(metric::reference).transpose();
        let definition = definition.map_err(|fault| format!("{place}.metrics.{name}.definition: {fault}"))?;
        if let Some((defined, _)) = definition.as_ref().filter(|(defined, _)| !newest.contains_key(defined.as_str())) {
            return Err(format!(
                "{place}.metrics.{name}.definition: there is no metric definition {defined:?}, and the file has none"
            ));
        }
        let usual = if definition.is_some() { Aggregation::Defined } else { Aggregation::ConversionRate };
        Ok(NewMetric {
            name: name.to_owned(),
            conversion_type: self.conversion.clone(),
            aggregation: self.aggregation.unwrap_or(usual),
            definition,
            numerator: self.numerator,
            denominator: self.denominator,
            denominator_type: self.denominator_conversion.clone(),
            quantile: text(&self.quantile),
            direction: self.direction.unwrap_or(Direction::Increase),
            role: self.role.unwrap_or(Role::Secondary),
            margin: text(&self.margin),
            window_days: self.window_days,
            cap: text(&self.cap),
            cap_percentile: text(&self.cap_percentile),
        })
    }
}

/// Returns whether a metric is stored as the file says it; a definition without a version is the newest one.
fn is_same(known: &Metric, new: &NewMetric, newest: &Newest<'_>) -> bool {
    let number = |text: &Option<String>| text.clone().map(Number);
    let asked = new.definition.as_ref().map(|(name, version)| (name.as_str(), version.or(newest.get(name.as_str()).copied())));
    let found = known.definition.as_ref().map(|found| (found.name.as_str(), Some(found.version)));
    let is_summed = matches!(new.aggregation, Aggregation::Ratio | Aggregation::Quantile);
    let numerator = if is_summed { new.numerator.or(Some(Amount::Value)) } else { None };
    asked == found
        && known.conversion_type == new.conversion_type
        && known.aggregation == new.aggregation
        && known.numerator == numerator
        && known.denominator == new.denominator
        && known.denominator_type == new.denominator_type
        && (known.direction, known.role, known.window_days) == (new.direction, new.role, new.window_days)
        && same_decimal(number(&new.quantile).as_ref(), known.quantile)
        && same_decimal(number(&new.margin).as_ref(), known.margin)
        && same_decimal(number(&new.cap).as_ref(), known.cap)
        && same_decimal(number(&new.cap_percentile).as_ref(), known.cap_percentile)
}

/// Returns whether a written number is a stored one; a text that is no number is none, and is refused by the step that has it.
fn same_decimal(written: Option<&Number>, stored: Option<Decimal>) -> bool {
    written.map(|number| number.0.parse::<Decimal>().ok()) == stored.map(Some)
}

/// Adds the steps that lead from one status to another.
fn move_to(
    name: &str,
    from: ExperimentStatus,
    to: Option<ExperimentStatus>,
    place: &str,
    steps: &mut Vec<Step>,
) -> Result<(), String> {
    use ExperimentStatus::{Archived, Completed, Draft, Paused, Running};
    let Some(to) = to.filter(|to| *to != from) else { return Ok(()) };
    let name = || name.to_owned();
    if to == Draft {
        return Err(format!("{place}.status: found draft; the experiment is {from}, and what was started is no draft any more"));
    }
    if from == Archived {
        steps.push(Step::Unarchive(name()));
    }
    match (from, to) {
        (Draft, Archived) | (Completed, Archived) => steps.push(Step::Archive(name())),
        (Running | Paused, Archived) => steps.extend([Step::Stop(name()), Step::Archive(name())]),
        (_, Running) => steps.push(Step::Start(name())),
        (Running, Paused) => steps.push(Step::Pause(name())),
        (_, Paused) => steps.extend([Step::Start(name()), Step::Pause(name())]),
        (Running | Paused, Completed) => steps.push(Step::Stop(name())),
        (Draft, Completed) => steps.extend([Step::Start(name()), Step::Stop(name())]),
        // It was completed before it was put away, or never started.
        (Archived | Completed, Completed) | (Archived, Archived) | (_, Draft) => {}
    }
    Ok(())
}
