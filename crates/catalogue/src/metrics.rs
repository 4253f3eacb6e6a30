//! Metrics: what is measured in an experiment. They say how stored rows are read, and change none of them.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::definitions::Definition;
use crate::versions::{self, Reference};
use crate::vocabulary::{Aggregation, Amount, Denominator, Direction, Role};
use crate::{CatalogueError, Decimal, ReadError, Unsupported, check};

/// More metrics than anybody compares in one experiment.
pub(crate) const METRICS_MAX: usize = 100;

/// A metric as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// The conversions that count; `None`: all.
    pub conversion_type: Option<String>,
    /// What is computed of them.
    pub aggregation: Aggregation,
    /// The definition of the project that says what is measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<Reference<Definition>>,
    /// What of them is added up, of a ratio or quantile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerator: Option<Amount>,
    /// What a ratio is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator: Option<Denominator>,
    /// The conversions that a ratio is over; `None`: those of its numerator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denominator_type: Option<String>,
    /// Between 0 and 1, 3 decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantile: Option<Decimal>,
    /// Which way is better.
    pub direction: Direction,
    /// What it decides.
    pub role: Role,
    /// Of a guardrail: the relative loss that is bearable, 4 decimals.
    pub margin: Option<Decimal>,
    /// Days after the first exposure; `None`: the experiment's.
    pub window_days: Option<i32>,
    /// One user's sum counts up to here.
    pub cap: Option<Decimal>,
    /// One user's sum counts up to this percentile of all sums that are not 0; 100 never cuts. 4 decimals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap_percentile: Option<Decimal>,
}

impl Metric {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let (named, version) = (row.try_get::<Option<String>, _>("definition_name")?, row.try_get("definition_version")?);
        let definition =
            row.try_get::<Option<&str>, _>("definition")?.map(|text| versions::of_text(text, "definition")).transpose()?;
        let reference = |((name, version), definition)| Reference { name, version, definition };
        Ok(Metric {
            definition: named.zip(version).zip(definition).map(reference),
            name: row.try_get("name")?,
            conversion_type: row.try_get("conversion_type")?,
            aggregation: row.try_get("aggregation")?,
            numerator: row.try_get("numerator")?,
            denominator: row.try_get("denominator")?,
            denominator_type: row.try_get("denominator_type")?,
            quantile: row.try_get("quantile")?,
            direction: row.try_get("direction")?,
            role: row.try_get("role")?,
            margin: row.try_get("margin")?,
            window_days: row.try_get("window_days")?,
            cap: row.try_get("cap")?,
            cap_percentile: row.try_get("cap_percentile")?,
        })
    }
}

/// Reads the metrics of experiments, each with its experiment's id; by role, then name.
pub(crate) async fn read(
    connection: &mut PgConnection,
    project: Uuid,
    experiments: &[Uuid],
) -> Result<Vec<(Uuid, Result<Metric, Unsupported>)>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT m.experiment_id, m.name, conversion_type, aggregation, denominator, denominator_type, direction, role, window_days, \
             CASE WHEN aggregation IN ('ratio', 'quantile') THEN numerator END AS numerator, quantile::text AS quantile, \
             margin::text AS margin, cap::text AS cap, cap_percentile::text AS cap_percentile, \
             m.definition AS definition_name, m.definition_version, d.definition::text AS definition \
         FROM metrics m LEFT JOIN metric_definitions d \
             ON d.project_id = m.project_id AND d.name = m.definition AND d.version = m.definition_version \
         WHERE m.project_id = $1 AND m.experiment_id = ANY ($2) \
         ORDER BY array_position(ARRAY['primary', 'secondary', 'guardrail'], role), m.name",
    )
    .bind(project)
    .bind(experiments)
    .fetch_all(connection)
    .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: &str = row.try_get("name")?;
        let metric = Metric::from_row(row).map_err(|error| ReadError::of_row(error, "metrics", || format!("row {name:?}")));
        found.push((row.try_get("experiment_id")?, ReadError::split(metric)?));
    }
    Ok(found)
}

/// Stores a metric that was checked.
/// # Errors
/// [`CatalogueError::Unknown`] for a definition that there is not.
pub(crate) async fn insert(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    new: &NewMetric,
) -> Result<(), CatalogueError> {
    let (definition, version) = match &new.definition {
        None => (None, None),
        Some((name, version)) => {
            (Some(name), Some(versions::version_of::<Definition>(&mut *connection, project, name, *version).await?))
        }
    };
    sqlx::query(
        "INSERT INTO metrics (project_id, experiment_id, name, conversion_type, aggregation, numerator, denominator, \
             denominator_type, quantile, direction, role, margin, window_days, cap, cap_percentile, definition, definition_version) \
         VALUES ($1, $2, $3, $4, $5, coalesce($6, 'value'), $7, $8, $9::numeric, $10, $11, $12::numeric, $13, $14::numeric, \
             $15::numeric, $16, $17)",
    )
    .bind(project)
    .bind(experiment)
    .bind(&new.name)
    .bind(&new.conversion_type)
    .bind(new.aggregation)
    .bind(new.numerator)
    .bind(new.denominator)
    .bind(&new.denominator_type)
    .bind(&new.quantile)
    .bind(new.direction)
    .bind(new.role)
    .bind(&new.margin)
    .bind(new.window_days)
    .bind(&new.cap)
    .bind(&new.cap_percentile)
    .bind(definition)
    .bind(version)
    .execute(connection)
    .await?;
    Ok(())
}

/// A metric to be made.
#[derive(Clone, Debug)]
pub struct NewMetric {
    /// Unique in the experiment.
    pub name: String,
    /// The conversions that count; `None`: all.
    pub conversion_type: Option<String>,
    /// What is computed of them.
    pub aggregation: Aggregation,
    /// The definition of the project that says what is measured, and its version; `None`: the newest.
    pub definition: Option<(String, Option<i32>)>,
    /// What of them is added up, of a ratio or quantile; `None`: their values.
    pub numerator: Option<Amount>,
    /// What a ratio is over.
    pub denominator: Option<Denominator>,
    /// The conversions of the denominator; `None`: those of the numerator.
    pub denominator_type: Option<String>,
    /// Between 0 and 1, 3 decimals, of a quantile.
    pub quantile: Option<String>,
    /// Which way is better.
    pub direction: Direction,
    /// What it decides.
    pub role: Role,
    /// Of a guardrail: the relative loss that is bearable, 4 decimals.
    pub margin: Option<String>,
    /// Days after the first exposure; `None`: the experiment's.
    pub window_days: Option<i32>,
    /// One user's sum counts up to here.
    pub cap: Option<String>,
    /// One user's sum counts up to this percentile of all sums that are not 0; 100 never cuts.
    pub cap_percentile: Option<String>,
}

impl Default for NewMetric {
    /// A secondary conversion rate of all conversions, without a name.
    fn default() -> Self {
        NewMetric {
            name: String::new(),
            conversion_type: None,
            aggregation: Aggregation::ConversionRate,
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
        }
    }
}

impl NewMetric {
    /// Checks every value; `place` stands before each field's name. What passes is taken by every check of the schema,
    /// without rounding.
    pub(crate) fn check(&self, place: &str) -> Result<(), CatalogueError> {
        let field = |name: &str| format!("{place}{name}");
        let refuse = |name: &str, message: String| Err(CatalogueError::invalid(field(name), message));
        let of = self.aggregation.as_str();
        check::name(&field("name"), &self.name)?;
        if self.name.contains(',') {
            return refuse(
                "name",
                format!("found {:?}; questions separate names by commas, so that a name holds none", self.name),
            );
        }
        for (name, conversion) in [("conversion_type", &self.conversion_type), ("denominator_type", &self.denominator_type)] {
            if let Some(conversion) = conversion {
                check::name(&field(name), conversion)?;
            }
        }
        let is_defined = self.aggregation == Aggregation::Defined;
        if self.definition.is_some() != is_defined {
            let message = if is_defined { "a defined metric needs one".to_owned() } else { format!("found with {of}") };
            return refuse("definition", format!("{message}; a definition says by itself what is computed"));
        }
        if is_defined && self.conversion_type.is_some() {
            return refuse("conversion_type", "found beside a definition, which names its events".to_owned());
        }
        if is_defined && self.window_days.is_some() {
            return refuse("window_days", "found beside a definition, which has its own window".to_owned());
        }
        let is_ratio = self.aggregation == Aggregation::Ratio;
        let is_quantile = self.aggregation == Aggregation::Quantile;
        match (self.denominator, is_ratio) {
            (None, true) => {
                return refuse("denominator", format!("a ratio needs one; accepted: {}", Denominator::TEXTS.join(", ")));
            }
            (Some(_), false) => return refuse("denominator", format!("found with {of}; only a ratio has one")),
            _ => {}
        }
        if self.denominator_type.is_some() && self.denominator != Some(Denominator::Conversions) {
            return refuse("denominator_type", "only a ratio over conversions has one".to_owned());
        }
        if self.numerator.is_some() && !is_ratio && !is_quantile {
            return refuse("numerator", format!("found with {of}; only a ratio or quantile has one"));
        }
        if self.quantile.is_some() != is_quantile {
            let message = if is_quantile {
                "a quantile needs one, such as 0.9".to_owned()
            } else {
                format!("found with {of}; only a quantile has one")
            };
            return refuse("quantile", message);
        }
        check::decimal(
            &field("quantile"),
            self.quantile.as_deref(),
            "above 0 and below 1 with 3 decimals, such as 0.9",
            3,
            |quantile| (1..1_000_000).contains(&quantile),
        )?;
        if self.margin.is_some() && self.role != Role::Guardrail {
            return refuse("margin", format!("found with the role {}; only a guardrail has a margin", self.role.as_str()));
        }
        check::decimal(&field("margin"), self.margin.as_deref(), "0 to 9.9999 with 4 decimals", 4, |margin| {
            (0..10_000_000).contains(&margin)
        })?;
        check::window(&field("window_days"), self.window_days)?;
        let is_summed = matches!(self.aggregation, Aggregation::ValuePerUser | Aggregation::CountPerUser | Aggregation::Defined);
        for (name, value) in [("cap", &self.cap), ("cap_percentile", &self.cap_percentile)] {
            if value.is_some() && !is_summed {
                return refuse(name, format!("found with {of}; only value_per_user and count_per_user have one"));
            }
        }
        if self.cap.is_some() && self.cap_percentile.is_some() {
            return refuse("cap_percentile", "found beside cap; one of them is accepted".to_owned());
        }
        check::decimal(&field("cap"), self.cap.as_deref(), "an amount above 0 with at most 6 decimals", 6, |cap| cap > 0)?;
        let accepted = "above 0 and up to 100 with 4 decimals, such as 99.9";
        check::decimal(&field("cap_percentile"), self.cap_percentile.as_deref(), accepted, 4, |percentile| {
            (1..=100_000_000).contains(&percentile)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_belong_to_their_aggregation() {
        let check = |change: &dyn Fn(&mut NewMetric), expected: &str| {
            let mut metric = NewMetric { name: "m".into(), ..NewMetric::default() };
            change(&mut metric);
            let found = metric.check("").err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(found, expected, "{metric:?}");
        };
        let ratio = |metric: &mut NewMetric| {
            metric.aggregation = Aggregation::Ratio;
            metric.denominator = Some(Denominator::Conversions);
        };
        let quantile = |metric: &mut NewMetric| {
            metric.aggregation = Aggregation::Quantile;
            metric.quantile = Some("0.95".into());
        };
        check(&|_| {}, "");
        check(&ratio, "");
        let defined = |metric: &mut NewMetric| {
            metric.aggregation = Aggregation::Defined;
            metric.definition = Some(("watched".into(), None));
        };
        check(&defined, "");
        check(
            &|m| m.aggregation = Aggregation::Defined,
            "definition: a defined metric needs one; a definition says by itself what is computed",
        );
        check(
            &|m| m.definition = Some(("watched".into(), Some(1))),
            "definition: found with conversion_rate; a definition says by itself what is computed",
        );
        check(
            &|m| {
                defined(m);
                m.conversion_type = Some("buy".into());
            },
            "conversion_type: found beside a definition, which names its events",
        );
        check(
            &|m| {
                defined(m);
                m.window_days = Some(3);
            },
            "window_days: found beside a definition, which has its own window",
        );
        check(&quantile, "");
        check(&|m| m.name = "a,b".into(), r#"name: found "a,b"; questions separate names by commas, so that a name holds none"#);
        check(&|m| m.aggregation = Aggregation::Ratio, "denominator: a ratio needs one; accepted: conversions, impressions");
        check(
            &|m| m.denominator = Some(Denominator::Impressions),
            "denominator: found with conversion_rate; only a ratio has one",
        );
        check(
            &|m| {
                ratio(m);
                m.denominator = Some(Denominator::Impressions);
                m.denominator_type = Some("view".into());
            },
            "denominator_type: only a ratio over conversions has one",
        );
        check(&|m| m.numerator = Some(Amount::Count), "numerator: found with conversion_rate; only a ratio or quantile has one");
        check(&|m| m.aggregation = Aggregation::Quantile, "quantile: a quantile needs one, such as 0.9");
        check(&|m| m.quantile = Some("0.5".into()), "quantile: found with conversion_rate; only a quantile has one");
        for text in ["0", "1", "0.0001", "x"] {
            let expected = format!("quantile: found {text:?}; accepted: above 0 and below 1 with 3 decimals, such as 0.9");
            check(
                &|m| {
                    quantile(m);
                    m.quantile = Some(text.into());
                },
                &expected,
            );
        }
        check(&|m| m.cap = Some("5".into()), "cap: found with conversion_rate; only value_per_user and count_per_user have one");
        check(
            &|m| {
                m.aggregation = Aggregation::ValuePerUser;
                m.cap = Some("5".into());
                m.cap_percentile = Some("99".into());
            },
            "cap_percentile: found beside cap; one of them is accepted",
        );
        for (text, is_accepted) in [("99.9", true), ("100", true), ("0", false), ("100.0001", false), ("1.00001", false)] {
            let expected =
                format!("cap_percentile: found {text:?}; accepted: above 0 and up to 100 with 4 decimals, such as 99.9");
            check(
                &|m| {
                    m.aggregation = Aggregation::ValuePerUser;
                    m.cap_percentile = Some(text.into());
                },
                if is_accepted { "" } else { &expected },
            );
        }
    }
}
