//! `weir admin metric`: what is measured in an experiment.

use catalogue::definitions::Definition;
use catalogue::experiments::{self, Experiment};
use catalogue::metrics::{Metric, NewMetric};
use catalogue::versions::{self, Version};
use catalogue::{Aggregation, Amount, Decimal, Denominator, Direction, Role};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable, text_or_file};

/// What is done with metrics.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Add a metric; the first one replaces the default metrics
    Create(Box<Create>),
    /// Show the metrics of an experiment
    List {
        /// Name or id of the experiment
        experiment: String,
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Define a metric of the project over any event, or the next version of it; experiments measure it by `create --definition`
    Define {
        /// Its name, unique in the project
        name: String,
        /// What it measures, as JSON, or @FILE. Such as {"kind": "engagement", "events": ["watch"], "where": "device_type = 'mobile'",
        /// "value": "minutes", "per_user": "sum", "window": {"delay": "1d", "length": "7d"}}: only `kind` and `per_user` must be there.
        /// `per_user` is count, sum, min, max, first, last, distinct, distinct_days, exists or {"at_least": 3}; "over": {"kind": "impression",
        /// "per_user": "count"} divides what all users come to by what they come to of other events; "quantile": 0.9 is one of users
        #[arg(value_name = "JSON", verbatim_doc_comment)]
        definition: String,
        #[command(flatten)]
        project: InProject,
    },
    /// Show the metric definitions of a project, each with all its versions
    Definitions {
        #[command(flatten)]
        project: InProject,
        /// How the list is printed
        #[arg(long, value_enum, default_value_t)]
        format: ListFormat,
    },
    /// Remove a metric; no event is lost by it
    Remove {
        /// Name or id of the experiment
        experiment: String,
        /// Name of the metric
        name: String,
        #[command(flatten)]
        project: InProject,
    },
}

/// The arguments of `weir admin metric create`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// Name or id of the experiment
    experiment: String,
    /// Its name, unique in the experiment
    name: String,
    /// The definition of the project that says what is measured, and its version [default: the newest]
    #[arg(long, value_name = "NAME[@VERSION]", value_parser = reference, conflicts_with_all = ["conversion", "aggregation"])]
    definition: Option<(String, Option<i32>)>,
    /// The conversions that count, by name [default: all]
    #[arg(long, value_name = "NAME")]
    conversion: Option<String>,
    /// What is computed per user: conversion_rate, value_per_user, count_per_user, ratio or quantile
    #[arg(long, value_name = "AGGREGATION", default_value = "conversion_rate")]
    aggregation: Aggregation,
    /// What a ratio or quantile adds up: value or count [default: value]
    #[arg(long, value_name = "AMOUNT")]
    numerator: Option<Amount>,
    /// What a ratio is over: conversions, or impressions of the experiment
    #[arg(long, value_name = "WHAT")]
    denominator: Option<Denominator>,
    /// The conversions that a ratio is over, by name [default: those that count]
    #[arg(long, value_name = "NAME")]
    denominator_conversion: Option<String>,
    /// Which quantile of users' sums, such as 0.9
    #[arg(long, value_name = "QUANTILE")]
    quantile: Option<String>,
    /// Its role: primary, secondary or guardrail
    #[arg(long, value_name = "ROLE", default_value = "secondary")]
    role: Role,
    /// Which way is better: increase or decrease
    #[arg(long, value_name = "DIRECTION", default_value = "increase")]
    direction: Direction,
    /// The relative loss that a guardrail tolerates, such as 0.02 for 2 %
    #[arg(long, value_name = "SHARE")]
    margin: Option<String>,
    /// Days after the first exposure in which conversions count [default: the experiment's]
    #[arg(long, value_name = "DAYS")]
    window_days: Option<i32>,
    /// Amount up to which one user's sum counts
    #[arg(long, value_name = "AMOUNT")]
    cap: Option<String>,
    /// Percentile of all users' sums up to which one user's sum counts, 100 for no cap [default: 99.9 for values, from 1,000
    /// users with one on]
    #[arg(long, value_name = "PERCENTILE", conflicts_with = "cap")]
    cap_percentile: Option<String>,
    #[command(flatten)]
    project: InProject,
}

impl Create {
    fn metric(&self) -> NewMetric {
        NewMetric {
            name: self.name.clone(),
            conversion_type: self.conversion.clone(),
            aggregation: if self.definition.is_some() { Aggregation::Defined } else { self.aggregation },
            definition: self.definition.clone(),
            numerator: self.numerator,
            denominator: self.denominator,
            denominator_type: self.denominator_conversion.clone(),
            quantile: self.quantile.clone(),
            direction: self.direction,
            role: self.role,
            margin: self.margin.clone(),
            window_days: self.window_days,
            cap: self.cap.clone(),
            cap_percentile: self.cap_percentile.clone(),
        }
    }
}

/// Does what was asked.
pub(super) async fn run(command: Command, conn: &mut PgConnection) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => {
            let project = args.project.find(conn).await?;
            let made = experiments::add_metric(conn, &project, &args.experiment, &args.metric()).await?;
            print(&shown(&made))
        }
        Command::Define { name, definition, project } => {
            let definition = Definition::parse(&text_or_file(definition)?)?;
            query::check_definition(&definition)?;
            let project = project.find(conn).await?;
            let defined = versions::define(conn, &project, &name, &definition).await?;
            let Version { name, version, .. } = &defined.version;
            let what = if defined.is_new { "is made" } else { "is there already; nothing changed" };
            print(&format!("version {version} of {} {what}\n", printable(name)))
        }
        Command::Definitions { project, format } => {
            let project = project.find(conn).await?;
            print_list(&versions::list(conn, &project).await?, format, |list| render_definitions(list))
        }
        Command::List { experiment, project, format } => {
            let project = project.find(conn).await?;
            let found = experiments::show(conn, &project, &experiment).await?;
            print_list(&found.metrics, format, |_| shown(&found))
        }
        Command::Remove { experiment, name, project } => {
            let project = project.find(conn).await?;
            print(&shown(&experiments::remove_metric(conn, &project, &experiment, &name).await?))
        }
    }
}

/// Reads NAME[@VERSION].
pub(super) fn reference(text: &str) -> Result<(String, Option<i32>), String> {
    let Some((name, version)) = text.split_once('@') else { return Ok((text.to_owned(), None)) };
    let number = version.parse().map_err(|_| format!("found the version {version:?}; a number is accepted, such as {name}@1"))?;
    Ok((name.to_owned(), Some(number)))
}

fn render_definitions(versions: &[Version<Definition>]) -> String {
    if versions.is_empty() {
        return "no metric definitions\n".to_owned();
    }
    let row = |version: &Version<Definition>| {
        let definition = &version.definition;
        let events = if definition.events.is_empty() { "any".to_owned() } else { definition.events.join(", ") };
        vec![
            version.name.clone(),
            version.version.to_string(),
            definition.kind.as_str().to_owned(),
            events,
            definition.condition.clone().unwrap_or_default(),
            of_definition(definition),
            definition.window.map(|window| window.to_string()).unwrap_or_default(),
            definition.description.clone().unwrap_or_default(),
        ]
    };
    let columns = [
        ("definition", Side::Left),
        ("version", Side::Right),
        ("kind", Side::Left),
        ("events", Side::Left),
        ("where", Side::Left),
        ("per user", Side::Left),
        ("window", Side::Left),
        ("description", Side::Left),
    ];
    table(&columns, &versions.iter().map(row).collect::<Vec<_>>())
}

/// Says what the events of a user come to.
fn of_definition(definition: &Definition) -> String {
    let own = match &definition.value {
        Some(value) => format!("{} of {value}", definition.per_user),
        None => definition.per_user.to_string(),
    };
    match (&definition.over, definition.quantile) {
        (Some(over), _) => {
            let events = if over.events.is_empty() { over.kind.as_str().to_owned() } else { over.events.join(", ") };
            format!("{own} over {} ({events})", of_definition(over))
        }
        (None, Some(quantile)) => format!("quantile {} of {own}", f64::from(quantile)),
        (None, None) => own,
    }
}

fn shown(experiment: &Experiment) -> String {
    if experiment.metrics.is_empty() {
        return format!(
            "experiment {} has no metrics of its own: conversion_rate and value_per_user are shown, of all conversions and of each \
             name\n",
            printable(&experiment.name)
        );
    }
    render(&experiment.metrics)
}

/// Writes metrics as a table.
pub(super) fn render(metrics: &[Metric]) -> String {
    let row = |metric: &Metric| {
        let text = |decimal: Option<Decimal>| decimal.map(|decimal| decimal.to_string());
        let cap = metric.cap_percentile.map(|percentile| format!("{percentile} %"));
        vec![
            metric.name.clone(),
            metric.definition.as_ref().map_or_else(|| conversion(metric), |found| format!("{}@{}", found.name, found.version)),
            computed(metric),
            metric.role.to_string(),
            metric.direction.to_string(),
            window(metric),
            text(metric.margin).unwrap_or_default(),
            text(metric.cap).or(cap).unwrap_or_default(),
        ]
    };
    let columns = [
        ("metric", Side::Left),
        ("conversion", Side::Left),
        ("computed", Side::Left),
        ("role", Side::Left),
        ("better", Side::Left),
        ("window", Side::Right),
        ("margin", Side::Right),
        ("cap", Side::Right),
    ];
    table(&columns, &metrics.iter().map(row).collect::<Vec<_>>())
}

fn conversion(metric: &Metric) -> String {
    metric.conversion_type.clone().unwrap_or_else(|| "any".to_owned())
}

fn window(metric: &Metric) -> String {
    match metric.definition.as_ref().and_then(|found| found.definition.window) {
        Some(window) => window.to_string(),
        None => metric.window_days.map(|days| format!("{days} days")).unwrap_or_default(),
    }
}

/// Says what is computed, with the parts of a ratio or quantile.
fn computed(metric: &Metric) -> String {
    if let Some(found) = &metric.definition {
        return of_definition(&found.definition);
    }
    let numerator = metric.numerator.unwrap_or(Amount::Value);
    match (metric.denominator, &metric.denominator_type, metric.quantile) {
        (Some(denominator), None, _) => format!("{numerator} per {}", denominator.as_str().trim_end_matches('s')),
        (Some(_), Some(name), _) => format!("{numerator} per {name}"),
        (None, _, Some(quantile)) => format!("quantile {quantile} of {numerator}"),
        (None, _, None) => metric.aggregation.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use catalogue::versions::Reference;

    use super::*;

    #[test]
    fn definitions_are_said_as_they_are_computed() {
        let check = |json: &str, expected: &str| {
            assert_eq!(of_definition(&Definition::parse(json).expect("accepted")), expected);
        };
        check(r#"{"kind": "engagement", "per_user": "count"}"#, "count");
        check(r#"{"kind": "engagement", "value": "ms", "per_user": "max", "quantile": 0.95}"#, "quantile 0.95 of max of ms");
        check(
            r#"{"kind": "engagement", "value": "ms", "per_user": "sum", "over": {"kind": "impression", "per_user": "count"}}"#,
            "sum of ms over count (impression)",
        );
        check(
            r#"{"kind": "conversion", "value": "value", "per_user": "sum",
                "over": {"kind": "conversion", "events": ["order", "refund"], "value": "items", "per_user": "sum"}}"#,
            "sum of value over sum of items (order, refund)",
        );
    }

    #[test]
    fn metrics_line_up_with_their_parts() {
        let metric = |name: &str, aggregation| Metric {
            name: name.to_owned(),
            conversion_type: None,
            aggregation,
            definition: None,
            numerator: None,
            denominator: None,
            denominator_type: None,
            quantile: None,
            direction: Direction::Increase,
            role: Role::Secondary,
            margin: None,
            window_days: None,
            cap: None,
            cap_percentile: None,
        };
        let metrics = [
            Metric { role: Role::Primary, window_days: Some(7), ..metric("rate", Aggregation::ConversionRate) },
            Metric { denominator: Some(Denominator::Conversions), ..metric("order value", Aggregation::Ratio) },
            Metric {
                numerator: Some(Amount::Count),
                denominator: Some(Denominator::Conversions),
                denominator_type: Some("view".into()),
                ..metric("buys per view", Aggregation::Ratio)
            },
            Metric { quantile: "0.95".parse().ok(), numerator: Some(Amount::Value), ..metric("p95", Aggregation::Quantile) },
            Metric { cap_percentile: "99.5".parse().ok(), ..metric("value", Aggregation::ValuePerUser) },
            Metric {
                definition: Some(Reference {
                    name: "minutes".to_owned(),
                    version: 2,
                    definition: Definition::parse(
                        r#"{"kind": "engagement", "value": "minutes", "per_user": "sum", "window": {"delay": "1d", "length": "72h"}}"#,
                    )
                    .expect("accepted"),
                }),
                ..metric("watched", Aggregation::Defined)
            },
        ];
        let expected = "\
metric         conversion  computed                role       better           window     cap
rate           any         conversion_rate         primary    increase         7 days
order value    any         value per conversion    secondary  increase
buys per view  any         count per view          secondary  increase
p95            any         quantile 0.95 of value  secondary  increase
value          any         value_per_user          secondary  increase                 99.5 %
watched        minutes@2   sum of minutes          secondary  increase  3d from 1d on
";
        let found = render(&metrics);
        assert_eq!(found, expected, "{found}");
    }
}
