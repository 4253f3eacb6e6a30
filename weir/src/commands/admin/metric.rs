//! `weir admin metric`: what is measured in an experiment.

use catalogue::experiments::{self, Experiment};
use catalogue::metrics::{Metric, NewMetric};
use catalogue::{Aggregation, Amount, Decimal, Denominator, Direction, Role};
use sqlx::PgConnection;

use super::InProject;
use crate::commands::text::{Side, table};
use crate::commands::{ListFormat, print, print_list, printable};

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
            aggregation: self.aggregation,
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
            metric.conversion_type.clone().unwrap_or_else(|| "any".to_owned()),
            computed(metric),
            metric.role.to_string(),
            metric.direction.to_string(),
            metric.window_days.map(|days| format!("{days} days")).unwrap_or_default(),
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

/// Says what is computed, with the parts of a ratio or quantile.
fn computed(metric: &Metric) -> String {
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
    use super::*;

    #[test]
    fn metrics_line_up_with_their_parts() {
        let metric = |name: &str, aggregation| Metric {
            name: name.to_owned(),
            conversion_type: None,
            aggregation,
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
        ];
        let expected = "\
metric         conversion  computed                role       better    window     cap
rate           any         conversion_rate         primary    increase  7 days
order value    any         value per conversion    secondary  increase
buys per view  any         count per view          secondary  increase
p95            any         quantile 0.95 of value  secondary  increase
value          any         value_per_user          secondary  increase          99.5 %
";
        let found = render(&metrics);
        assert_eq!(found, expected, "{found}");
    }
}
