//! `weir admin experiment`: what is measured, and when.

use std::str::FromStr;

use aggregator::admin::experiments::{self, Changed};
use catalogue::experiments::{
    Assignment, Experiment, NewExperiment, NewVariant, Phase, PhaseWeight, StatusChange, Variant, VariantDetails, archive,
    describe_variant, list, set_policy, set_trigger, show, unarchive,
};
use catalogue::metrics::NewMetric;
use catalogue::{Aggregation, AttributionMethod, Direction, ExperimentStatus, Policy, Role, Trigger, UnknownText};
use events::Micros;
use sqlx::PgConnection;

use super::{InProject, recompute};
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

/// What is done with experiments.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create an experiment; dead letters that were waiting for it are replayed
    Create(Box<Create>),
    /// Add a variant; dead letters that were waiting for it are replayed
    AddVariant {
        /// Name or id of the experiment
        experiment: String,
        /// The variant, as NAME or NAME:WEIGHT
        #[arg(value_name = "NAME[:WEIGHT]", value_parser = variant)]
        variant: NewVariant,
        /// From when on users are assigned to it, such as 2026-03-01T00:00:00Z [default: now]
        #[arg(long, value_name = "TIME", value_parser = time)]
        from: Option<Micros>,
        #[command(flatten)]
        details: Details,
        #[command(flatten)]
        project: InProject,
    },
    /// Say what a variant is, for people, and what clients get with it; what is not said stays as it is
    DescribeVariant {
        /// Name or id of the experiment
        experiment: String,
        /// Name of the variant
        variant: String,
        #[command(flatten)]
        details: Details,
        #[command(flatten)]
        project: InProject,
    },
    /// Change the shares of the variants: in an experiment that runs a new phase begins, and each phase is compared by itself
    Weights {
        /// Name or id of the experiment
        experiment: String,
        /// Each variant with its new weight
        #[arg(value_name = "NAME:WEIGHT", required = true, value_parser = variant)]
        variants: Vec<NewVariant>,
        /// From when on users are assigned by them, such as 2026-03-01T00:00:00Z [default: now]
        #[arg(long, value_name = "TIME", value_parser = time)]
        from: Option<Micros>,
        /// Users are assigned anew, as by another salt: who was exposed before stays in the earlier phase, and counts in no later one
        #[arg(long)]
        reassign: bool,
        #[command(flatten)]
        project: InProject,
    },
    /// Say which events expose users, by a definition of `weir admin exposure`; stored events count by it, too
    Exposure {
        /// Name or id of the experiment
        experiment: String,
        /// The definition, and its version [default: the newest]
        #[arg(value_name = "NAME[@VERSION]", value_parser = super::metric::reference, required_unless_present = "none")]
        exposure: Option<(String, Option<i32>)>,
        /// Impressions that name the experiment and a variant, as without a definition
        #[arg(long, conflicts_with = "exposure")]
        none: bool,
        #[command(flatten)]
        project: InProject,
    },
    /// Begin the analysis of each user with the first of some events at or after the exposure, instead of the exposure itself
    Trigger {
        /// Name or id of the experiment
        experiment: String,
        /// Which events, as JSON: kind, events, where. Users of all variants must be able to do them alike
        #[arg(required_unless_present = "none")]
        trigger: Option<String>,
        /// Begin with the exposure again
        #[arg(long, conflicts_with = "trigger")]
        none: bool,
        #[command(flatten)]
        project: InProject,
    },
    /// Say how an experiment decides, what harm does, and of what else somebody is told
    Policy {
        /// Name or id of the experiment
        experiment: String,
        /// As JSON: decide_by (clear_signals, do_no_harm or risk_aware), on_harm (tell or stop), rules (conditions by name, over the columns of
        /// one comparison, such as {"big win": "verdict = 'won' AND lift > 0.1"}); what is left out is as usual
        policy: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Show all experiments of a project
    List {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Show one experiment with its variants and metrics
    Show {
        #[command(flatten)]
        one: One,
        /// How the experiment is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Start an experiment, or go on with a paused or ended one: exposures count from now on; a running one stays as it is
    Start {
        #[command(flatten)]
        one: One,
        /// Users of a paused or ended one are assigned anew, as by another salt: who was exposed before stays in the earlier phase, and counts
        /// in no later one
        #[arg(long)]
        reassign: bool,
        /// Since when, such as 2026-03-01T00:00:00Z [default: now]
        #[arg(long, value_name = "TIME", value_parser = time)]
        from: Option<Micros>,
    },
    /// Pause an experiment: exposures do not count until it is started again
    Pause {
        #[command(flatten)]
        one: One,
        /// Since when, such as 2026-03-01T00:00:00Z [default: now]
        #[arg(long, value_name = "TIME", value_parser = time)]
        from: Option<Micros>,
    },
    /// End an experiment: later exposures do not count
    Stop(One),
    /// Put away a draft or an ended experiment: its answers stay
    Archive(One),
    /// Take an archived experiment out again
    Unarchive(One),
}

/// What a variant has for people and for clients.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Details {
    /// What the variant is
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// What clients get with the variant: any JSON value, such as '{"colour": "red"}'
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
}

impl Details {
    fn of(self) -> VariantDetails {
        VariantDetails { description: self.description, config_json: self.config }
    }
}

/// One experiment.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct One {
    /// Name or id of the experiment
    experiment: String,
    #[command(flatten)]
    project: InProject,
}

/// The arguments of `weir admin experiment create`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// Its name, which events carry and which is never given to another one
    name: String,
    /// A variant, as NAME, NAME:WEIGHT or NAME:WEIGHT:control; repeated for each
    #[arg(long = "variant", value_name = "NAME[:WEIGHT[:control]]", required = true, value_parser = variant)]
    variants: Vec<NewVariant>,
    /// A metric; may be repeated. NAME alone counts the conversions of that name, as does NAME.value_per_user their values;
    /// conversion_rate, value_per_user and count_per_user count all conversions, as does * for CONVERSION. AGGREGATION is one of these
    /// three (`weir admin metric create` knows more), ROLE primary (the first metric's), secondary or guardrail, DIRECTION increase or decrease
    #[arg(long = "metric", value_name = "NAME[:CONVERSION[:AGGREGATION[:ROLE[:DIRECTION]]]]", value_parser = metric)]
    metrics: Vec<Metric>,
    /// A description
    #[arg(long)]
    description: Option<String>,
    /// Planned sample size: users over all variants
    #[arg(long, value_name = "USERS")]
    target_sample_size: Option<i32>,
    /// Confidence level of the tests, 0.80 to 0.99 [default: 0.95]
    #[arg(long, value_name = "LEVEL")]
    confidence_level: Option<String>,
    /// Minimum detectable effect, relative, such as 0.05 for 5 % [default: 0.05]
    #[arg(long, value_name = "EFFECT")]
    minimum_detectable_effect: Option<String>,
    /// Days after the first exposure in which conversions count [default: 30]
    #[arg(long, value_name = "DAYS")]
    conversion_window_days: Option<i32>,
    /// Which variant a conversion is credited to: first_exposure or last_exposure [default: first_exposure]
    #[arg(long, value_name = "METHOD")]
    attribution_method: Option<AttributionMethod>,
    /// Currency of value metrics, such as EUR [default: the only one seen]
    #[arg(long, value_name = "CODE")]
    currency: Option<String>,
    /// Start it at once
    #[arg(long)]
    start: bool,
    /// From when on exposures count, such as 2026-03-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", requires = "start", value_parser = time)]
    started_at: Option<Micros>,
    #[command(flatten)]
    project: InProject,
}

/// A metric as it was asked for; its role depends on its place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Metric {
    name: String,
    conversion_type: Option<String>,
    aggregation: Aggregation,
    role: Option<Role>,
    direction: Direction,
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let project = args.project.find(conn).await?;
            let new = args.experiment();
            let created = experiments::create(conn, &project, &new).await?;
            let mut out = render(&created.experiment);
            if !new.has_control() {
                out.push_str(
                    "no variant is the control, so results need --baseline; NAME:WEIGHT:control would have marked one\n",
                );
            }
            out.push_str(&super::dead_letters::waiting(created.dead_letters));
            if let (true, Some(started_at)) = (created.dead_letters > 0, created.experiment.started_at) {
                out.push_str(&format!("exposures before {started_at} do not count\n"));
            }
            print(&out)
        }
        Command::AddVariant { experiment, variant, from, details, project } => {
            let project = project.find(conn).await?;
            let variant = NewVariant { details: details.of(), ..variant };
            let created = experiments::add_variant(conn, &project, &experiment, &variant, from).await?;
            print(&format!("{}{}", render(&created.experiment), super::dead_letters::waiting(created.dead_letters)))
        }
        Command::DescribeVariant { experiment, variant, details, project } => {
            let project = project.find(conn).await?;
            print(&render(&describe_variant(conn, &project, &experiment, &variant, &details.of()).await?))
        }
        Command::List { project, format } => {
            let project = project.find(conn).await?;
            print_list(&list(conn, &project).await?, format, |list| render_list(list))
        }
        Command::Show { one, format } => {
            let project = one.project.find(conn).await?;
            print_list(&show(conn, &project, &one.experiment).await?, format, render)
        }
        Command::Weights { experiment, variants, from, reassign, project } => {
            let project = project.find(conn).await?;
            let changed = experiments::set_weights(conn, &project, &experiment, &variants, from, assignment(reassign)).await?;
            let recomputed = changed.recomputed.map(|differences| format!("{}\n", recompute::text(differences)));
            print(&format!("{}{}", render(&changed.experiment), recomputed.unwrap_or_default()))
        }
        Command::Exposure { experiment, exposure, none: _, project } => {
            let project = project.find(conn).await?;
            let exposure = exposure.as_ref().map(|(name, version)| (name.as_str(), *version));
            let changed = experiments::set_exposure(conn, &project, &experiment, exposure).await?;
            let recomputed = changed.recomputed.map_or("nothing changed".to_owned(), recompute::text);
            print(&format!("{}{recomputed}\n", render(&changed.experiment)))
        }
        Command::Trigger { experiment, trigger, none: _, project } => {
            let project = project.find(conn).await?;
            let trigger = trigger.as_deref().map(checked_trigger).transpose()?;
            print(&render(&set_trigger(conn, &project, &experiment, trigger.as_ref()).await?))
        }
        Command::Policy { experiment, policy, project } => {
            let project = project.find(conn).await?;
            print(&render(&set_policy(conn, &project, &experiment, &checked_policy(&policy)?).await?))
        }
        Command::Pause { one, from } => {
            let project = one.project.find(conn).await?;
            print(&changed(&experiments::pause(conn, &project, &one.experiment, from).await?))
        }
        Command::Start { one, reassign, from } => {
            let project = one.project.find(conn).await?;
            print(&changed(&experiments::start(conn, &project, &one.experiment, assignment(reassign), from).await?))
        }
        Command::Stop(one) => {
            let project = one.project.find(conn).await?;
            print(&changed(&experiments::stop(conn, &project, &one.experiment).await?))
        }
        Command::Archive(one) => {
            let project = one.project.find(conn).await?;
            print(&moved(&archive(conn, &project, &one.experiment).await?))
        }
        Command::Unarchive(one) => {
            let project = one.project.find(conn).await?;
            print(&moved(&unarchive(conn, &project, &one.experiment).await?))
        }
    }
}

impl Create {
    fn experiment(&self) -> NewExperiment {
        let has_primary = self.metrics.iter().any(|metric| metric.role == Some(Role::Primary));
        let mut metrics: Vec<NewMetric> = Vec::new();
        for metric in &self.metrics {
            let is_first = !has_primary && metrics.is_empty();
            let usual = if is_first { Role::Primary } else { Role::Secondary };
            metrics.push(NewMetric {
                name: metric.name.clone(),
                conversion_type: metric.conversion_type.clone(),
                aggregation: metric.aggregation,
                direction: metric.direction,
                role: metric.role.unwrap_or(usual),
                ..NewMetric::default()
            });
        }
        NewExperiment {
            name: self.name.clone(),
            description: self.description.clone(),
            variants: self.variants.clone(),
            metrics,
            target_sample_size: self.target_sample_size,
            confidence_level: self.confidence_level.clone(),
            minimum_detectable_effect: self.minimum_detectable_effect.clone(),
            conversion_window_days: self.conversion_window_days,
            attribution_method: self.attribution_method,
            currency: self.currency.clone(),
            trigger: None,
            policy: None,
            start: self.start,
            started_at: self.started_at,
        }
    }
}

/// Reads a trigger, and has its condition judged by who computes it.
pub(super) fn checked_trigger(text: &str) -> anyhow::Result<Trigger> {
    let trigger = Trigger::parse(text)?;
    query::check_definition(&trigger.definition())?;
    Ok(trigger)
}

/// Reads a policy, and has its conditions judged by who computes them.
fn checked_policy(text: &str) -> anyhow::Result<Policy> {
    let policy = Policy::parse(text)?;
    query::check_policy(&policy)?;
    Ok(policy)
}

/// Reads NAME[:WEIGHT[:control]] from its end, since a name may hold colons where a weight follows.
fn variant(text: &str) -> Result<NewVariant, String> {
    let (rest, is_control) = text.strip_suffix(":control").map_or((text, false), |rest| (rest, true));
    let (name, weight) = match rest.rsplit_once(':') {
        Some((name, "")) => (name, None),
        Some((name, weight)) => (name, Some(weight.to_owned())),
        None => (rest, None),
    };
    if name.is_empty() {
        return Err("the name is missing; expected NAME, NAME:WEIGHT or NAME:WEIGHT:control".to_owned());
    }
    Ok(NewVariant { name: name.to_owned(), weight, is_control, ..NewVariant::default() })
}

/// Reads NAME[:CONVERSION[:AGGREGATION[:ROLE[:DIRECTION]]]]. The name alone means what the default metric of that name is.
fn metric(text: &str) -> Result<Metric, String> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 5 || parts[0].is_empty() {
        return Err(format!("found {} parts; expected NAME[:CONVERSION[:AGGREGATION[:ROLE[:DIRECTION]]]]", parts.len()));
    }
    let part = |index: usize| parts.get(index).copied().filter(|part| !part.is_empty());
    let name = parts[0];
    let (conversion_of_name, of_name) = name.rsplit_once('.').map_or((None, name), |(before, after)| (Some(before), after));
    let (named_conversion, named_aggregation) = match (Aggregation::from_str(name), Aggregation::from_str(of_name)) {
        (Ok(aggregation), _) => (None, aggregation),
        (_, Ok(aggregation)) => (conversion_of_name, aggregation),
        _ => (Some(name), Aggregation::ConversionRate),
    };
    let conversion = match part(1) {
        Some("*") => None,
        Some(conversion) => Some(conversion),
        None => named_conversion,
    };
    Ok(Metric {
        name: name.to_owned(),
        conversion_type: conversion.map(str::to_owned),
        aggregation: known(part(2).map_or(Ok(named_aggregation), Aggregation::from_str))?,
        role: known(part(3).map(Role::from_str).transpose())?,
        direction: known(part(4).map_or(Ok(Direction::Increase), Direction::from_str))?,
    })
}

fn known<T>(parsed: Result<T, UnknownText>) -> Result<T, String> {
    parsed.map_err(|unknown| unknown.to_string())
}

fn time(text: &str) -> Result<Micros, String> {
    Micros::parse(text).map_err(|error| error.to_string())
}

fn changed(changed: &Changed) -> String {
    let Experiment { name, status, .. } = &changed.experiment;
    match changed.recomputed {
        Some(differences) => format!("experiment {} is {status}; {}\n", printable(name), recompute::text(differences)),
        None => format!("experiment {} is {status} already; nothing changed\n", printable(name)),
    }
}

fn assignment(reassign: bool) -> Assignment {
    if reassign { Assignment::Anew } else { Assignment::Kept }
}

fn moved(status: &StatusChange) -> String {
    let Experiment { name, status: now, .. } = &status.after;
    let name = printable(name);
    if status.is_change() {
        return format!("experiment {name} is {now}\n");
    }
    format!("experiment {name} is {now}; nothing changed\n")
}

fn render_list(experiments: &[Experiment]) -> String {
    if experiments.is_empty() {
        return "no experiments\n".to_owned();
    }
    let row = |experiment: &Experiment| {
        let names: Vec<_> = experiment.variants.iter().map(|variant| variant.name.as_str()).collect();
        let time = |time: Option<Micros>| time.map(|time| time.to_string()).unwrap_or_default();
        let status =
            if experiment.frozen_at.is_some() { format!("{}, frozen", experiment.status) } else { experiment.status.to_string() };
        let made_by = if experiment.auto_registered { "an event" } else { "an operator" };
        vec![
            experiment.name.clone(),
            status,
            time(experiment.started_at),
            time(experiment.ended_at),
            names.join(", "),
            made_by.to_owned(),
            experiment.id.to_string(),
        ]
    };
    let columns = [
        ("experiment", Side::Left),
        ("status", Side::Left),
        ("started", Side::Left),
        ("ended", Side::Left),
        ("variants", Side::Left),
        ("made by", Side::Left),
        ("id", Side::Left),
    ];
    table(&columns, &experiments.iter().map(row).collect::<Vec<_>>())
}

fn render(experiment: &Experiment) -> String {
    let or = |time: Option<Micros>, else_: &str| time.map_or(else_.to_owned(), |time| time.to_string());
    let mut out = format!("experiment {}: {}, id {}\n", printable(&experiment.name), experiment.status, experiment.id);
    if let Some(description) = &experiment.description {
        out.push_str(&format!("{}\n", printable(description)));
    }
    if experiment.phases.len() > 1 {
        out.push_str(&phases(experiment));
    } else if experiment.status != ExperimentStatus::Draft {
        let (from, until) = (or(experiment.started_at, "ever"), or(experiment.ended_at, "now"));
        out.push_str(&format!("exposures count from {from} until {until}\n"));
    }
    if let Some(exposure) = &experiment.exposure {
        let (name, version) = (printable(&exposure.name), exposure.version);
        out.push_str(&format!("users are exposed by {name}@{version}: {}\n", printable(&exposure.definition.to_string())));
    }
    if let Some(trigger) = &experiment.trigger {
        out.push_str(&format!("a user's analysis begins with {}\n", printable(&trigger.to_string())));
    }
    if !experiment.policy.is_usual() {
        out.push_str(&format!("it {}\n", printable(&experiment.policy.to_string())));
    }
    if let Some(frozen_at) = experiment.frozen_at {
        out.push_str(&format!("frozen since {frozen_at}\n"));
    }
    out.push_str(&format!(
        "conversions count for {} days, credited to {}; confidence {}, relative effect worth finding {}{}{}\n\n",
        experiment.conversion_window_days,
        experiment.attribution_method.as_str().replace('_', " "),
        experiment.confidence_level,
        experiment.minimum_detectable_effect,
        experiment.target_sample_size.map(|size| format!(", {size} users planned")).unwrap_or_default(),
        experiment.currency.as_ref().map(|currency| format!(", values in {currency}")).unwrap_or_default(),
    ));
    let row = |variant: &Variant| {
        let control = if variant.is_control { "control" } else { "" };
        vec![
            variant.name.clone(),
            variant.weight.map(|weight| weight.to_string()).unwrap_or_default(),
            control.to_owned(),
            variant.description.clone().unwrap_or_default(),
            variant.config_json.as_deref().map(shortened).unwrap_or_default(),
            variant.id.to_string(),
        ]
    };
    let columns = [
        ("variant", Side::Left),
        ("weight", Side::Right),
        ("role", Side::Left),
        ("description", Side::Left),
        ("config", Side::Left),
        ("id", Side::Left),
    ];
    out.push_str(&table(&columns, &experiment.variants.iter().map(row).collect::<Vec<_>>()));
    if !experiment.metrics.is_empty() {
        out.push('\n');
        out.push_str(&super::metric::render(&experiment.metrics));
    }
    out
}

/// Returns the beginning of a text that may be long; `--format json` shows all of it.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Shows when exposures counted, and in which shares users were assigned then.
fn phases(experiment: &Experiment) -> String {
    let row = |phase: &Phase| {
        let time = |time: Option<Micros>| time.map(|time| time.to_string()).unwrap_or_default();
        let share = |share: &PhaseWeight| {
            let variant = experiment.variants.iter().find(|variant| variant.id == share.variant_id)?;
            Some(share.weight.map_or_else(|| variant.name.clone(), |weight| format!("{}:{weight}", variant.name)))
        };
        let shares: Vec<String> = phase.weights.iter().filter_map(share).collect();
        let state = if phase.reassigns { "assigning anew".to_owned() } else { phase.state.to_string() };
        vec![phase.phase.to_string(), state, time(phase.started_at), time(phase.ended_at), shares.join(" ")]
    };
    let columns =
        [("phase", Side::Right), ("state", Side::Left), ("from", Side::Left), ("until", Side::Left), ("shares", Side::Left)];
    table(&columns, &experiment.phases.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn variants_are_read_from_their_end() {
        let check = |text: &str, name: &str, weight: Option<&str>, is_control: bool| {
            let found = variant(text).expect("accepted");
            assert_eq!((found.name.as_str(), found.weight.as_deref(), found.is_control), (name, weight, is_control), "{text}");
        };
        check("b", "b", None, false);
        check("b:50", "b", Some("50"), false);
        check("control:50:control", "control", Some("50"), true);
        check("control", "control", None, false);
        check("b:control", "b", None, true);
        check("b::control", "b", None, true);
        check("a:b:0.5", "a:b", Some("0.5"), false);
        let missing = "the name is missing; expected NAME, NAME:WEIGHT or NAME:WEIGHT:control";
        for text in ["", ":50", ":control"] {
            assert_eq!(variant(text).expect_err("refused"), missing, "{text}");
        }
    }

    #[test]
    fn metrics_are_read_with_their_defaults() {
        use Aggregation::{ConversionRate, CountPerUser, ValuePerUser};
        let check = |text: &str, conversion: Option<&str>, aggregation, role, direction| {
            let name = text.split(':').next().expect("has one").to_owned();
            let expected = Metric { name, conversion_type: conversion.map(Into::into), aggregation, role, direction };
            assert_eq!(metric(text), Ok(expected), "{text}");
        };
        check("purchase", Some("purchase"), ConversionRate, None, Direction::Increase);
        check("purchase.value_per_user", Some("purchase"), ValuePerUser, None, Direction::Increase);
        check("conversion_rate", None, ConversionRate, None, Direction::Increase);
        check("count_per_user", None, CountPerUser, None, Direction::Increase);
        check("orders:purchase", Some("purchase"), ConversionRate, None, Direction::Increase);
        check("all:*:value_per_user", None, ValuePerUser, None, Direction::Increase);
        check(
            "refunds:refund:count_per_user:guardrail:decrease",
            Some("refund"),
            CountPerUser,
            Some(Role::Guardrail),
            Direction::Decrease,
        );
        check("m::::decrease", Some("m"), ConversionRate, None, Direction::Decrease);
        assert_eq!(
            metric("a:b:mean").expect_err("refused"),
            r#"found "mean"; accepted: conversion_rate, value_per_user, count_per_user, ratio, quantile, defined"#
        );
        let parts = "found 6 parts; expected NAME[:CONVERSION[:AGGREGATION[:ROLE[:DIRECTION]]]]";
        assert_eq!(metric("a:b:c:d:e:f").expect_err("refused"), parts);
    }

    #[test]
    fn long_texts_are_shortened() {
        assert_eq!(shortened(&"ä".repeat(60)), "ä".repeat(60));
        assert_eq!(shortened(&"ä".repeat(61)), format!("{}…", "ä".repeat(60)));
    }

    fn created(line: &str) -> Create {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            create: Create,
        }
        <Line as clap::Parser>::try_parse_from(format!("x {line}").split(' ')).expect("parses").create
    }

    #[test]
    fn the_first_metric_decides_unless_another_does() {
        let roles = |line: &str| -> Vec<Role> { created(line).experiment().metrics.iter().map(|metric| metric.role).collect() };
        assert_eq!(roles("e --variant a"), []);
        assert_eq!(roles("e --variant a --metric m --metric n"), [Role::Primary, Role::Secondary]);
        let chosen =
            roles("e --variant a --metric m --metric n:x:conversion_rate:primary --metric g:x:conversion_rate:guardrail");
        assert_eq!(chosen, [Role::Secondary, Role::Primary, Role::Guardrail]);
    }

    #[test]
    fn an_experiment_is_shown_with_its_parts() {
        let variant = |name: &str, is_control, weight: Option<&str>| Variant {
            id: Uuid::from_u128(2),
            name: name.into(),
            is_control,
            weight: weight.map(|weight| weight.parse().expect("a decimal")),
            description: is_control.then(|| "as it was".into()),
            config_json: (!is_control).then(|| r#"{"colour": "red"}"#.into()),
        };
        let experiment = Experiment {
            id: Uuid::from_u128(1),
            name: "checkout\u{1b}".into(),
            description: None,
            status: ExperimentStatus::Running,
            started_at: Some(Micros(0)),
            ended_at: None,
            target_sample_size: Some(40_000),
            confidence_level: "0.95".parse().expect("a decimal"),
            minimum_detectable_effect: "0.0500".parse().expect("a decimal"),
            conversion_window_days: 30,
            attribution_method: AttributionMethod::FirstExposure,
            currency: None,
            exposure: None,
            trigger: None,
            policy: Policy::default(),
            frozen_at: None,
            auto_registered: false,
            created_at: Micros(0),
            variants: vec![variant("b", false, Some("50")), variant("control", true, Some("50"))],
            metrics: vec![catalogue::metrics::Metric {
                name: "orders".into(),
                conversion_type: None,
                aggregation: Aggregation::ConversionRate,
                definition: None,
                numerator: None,
                denominator: None,
                denominator_type: None,
                quantile: None,
                direction: Direction::Increase,
                role: Role::Primary,
                margin: None,
                window_days: Some(7),
                cap: None,
                cap_percentile: None,
            }],
            phases: Vec::new(),
        };
        let expected = "\
experiment checkout\\u{1b}: running, id 00000000-0000-0000-0000-000000000001
exposures count from 1970-01-01T00:00:00Z until now
conversions count for 30 days, credited to first exposure; confidence 0.95, relative effect worth finding 0.05, 40000 users planned

variant  weight  role     description  config             id
b            50                        {\"colour\": \"red\"}  00000000-0000-0000-0000-000000000002
control      50  control  as it was                       00000000-0000-0000-0000-000000000002

metric  conversion  computed         role     better    window
orders  any         conversion_rate  primary  increase  7 days
";
        let found = render(&experiment);
        assert_eq!(found, expected, "{found}");
        let listed = render_list(&[experiment]);
        let expected = "\
experiment      status   started               variants    made by      id
checkout\\u{1b}  running  1970-01-01T00:00:00Z  b, control  an operator  00000000-0000-0000-0000-000000000001
";
        assert_eq!(listed, expected, "{listed}");
    }
}
