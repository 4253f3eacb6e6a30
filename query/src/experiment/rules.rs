//! Conditions of an experiment's own over what it shows: in SQL over the columns of one comparison.

use std::sync::Arc;

use ::catalogue::Policy;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::DFSchema;
use serde::Serialize;
use uuid::Uuid;

use crate::config::Limits;
use crate::engine::{self, Engine, Session};
use crate::experiment::read::sources;
use crate::http::error::ApiError;
use crate::sql;

/// A condition, and of what it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// The comparisons of which it holds; empty if of none.
    pub met_by: Vec<MetBy>,
}

/// A comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MetBy {
    /// Its metric.
    pub metric: String,
    /// Its variant.
    pub variant_id: Uuid,
}

/// What a condition may speak of: one comparison of a variant with the control in one metric.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The metric.
    pub metric: String,
    /// `primary`, `secondary` or `guardrail`.
    pub role: String,
    /// The variant's name.
    pub variant: String,
    /// Its id.
    pub variant_id: Uuid,
    /// `won`, `lost`, `neutral` or `inconclusive`.
    pub verdict: String,
    /// Of a guardrail `safe`, `harmed` or `inconclusive`.
    pub guardrail: Option<String>,
    /// What the numbers advise of the whole experiment.
    pub decision: Option<String>,
    /// Whether the verdict is significant.
    pub significant: bool,
    /// Users of both.
    pub users: u64,
    /// Users of the whole experiment.
    pub exposed_users: u64,
    /// Since the start.
    pub days_running: Option<f64>,
    /// What the control comes to.
    pub control_mean: Option<f64>,
    /// What the variant comes to.
    pub mean: Option<f64>,
    /// The difference, and its interval.
    pub estimate: [Option<f64>; 3],
    /// The same in shares of the control.
    pub lift: [Option<f64>; 3],
    /// For one look.
    pub p_value: Option<f64>,
    /// Among all comparisons of goals.
    pub adjusted_p: Option<f64>,
}

/// Checks the conditions of a policy.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`, which names the place.
pub fn check(policy: &Policy) -> Result<(), ApiError> {
    rules(policy, &[]).map(|_| ())
}

/// Returns each condition of a policy, and of which comparisons it holds.
/// # Errors
/// [`ApiError`] of a condition that cannot be computed.
pub fn rules(policy: &Policy, all: &[Facts]) -> Result<Vec<Rule>, ApiError> {
    if policy.rules.is_empty() {
        return Ok(Vec::new());
    }
    let engine = Engine::new(&Limits::default(), []).map_err(engine::api_error)?;
    let session = engine.session().map_err(engine::api_error)?;
    let batch = batch(all).map_err(|error| engine::api_error(error.into()))?;
    let schema = DFSchema::try_from(batch.schema().as_ref().clone()).map_err(engine::api_error)?;
    let one = |(name, condition): (&String, &String)| {
        let holds = holds(condition, &format!("rules[{name}]"), &session, (&schema, &batch))?;
        let met_by = all.iter().enumerate().filter(|(place, _)| holds.is_valid(*place) && holds.value(*place));
        let met_by = met_by.map(|(_, facts)| MetBy { metric: facts.metric.clone(), variant_id: facts.variant_id });
        Ok(Rule { name: name.clone(), met_by: met_by.collect() })
    };
    policy.rules.iter().map(one).collect()
}

fn holds(
    condition: &str,
    place: &str,
    session: &Session,
    (schema, batch): (&DFSchema, &RecordBatch),
) -> Result<BooleanArray, ApiError> {
    let condition = sql::condition::read(condition, place, session.state(), schema, &sources::limits())?;
    let value = session.state().create_physical_expr(condition, schema).and_then(|condition| {
        let found = condition.evaluate(batch)?;
        found.into_array(batch.num_rows())
    });
    Ok(value.map_err(|error| engine::api_error(error).at(place))?.as_boolean().clone())
}

fn batch(all: &[Facts]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let text = |of: &dyn Fn(&Facts) -> Option<String>| -> ArrayRef { Arc::new(StringArray::from_iter(all.iter().map(of))) };
    let number = |of: &dyn Fn(&Facts) -> Option<f64>| -> ArrayRef { Arc::new(Float64Array::from_iter(all.iter().map(of))) };
    let count = |of: &dyn Fn(&Facts) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(all.iter().map(|facts| i64::try_from(of(facts)).unwrap_or(i64::MAX))))
    };
    let significant: ArrayRef = Arc::new(BooleanArray::from_iter(all.iter().map(|facts| Some(facts.significant))));
    let columns: Vec<(&str, DataType, ArrayRef)> = vec![
        ("metric", DataType::Utf8, text(&|facts| Some(facts.metric.clone()))),
        ("role", DataType::Utf8, text(&|facts| Some(facts.role.clone()))),
        ("variant", DataType::Utf8, text(&|facts| Some(facts.variant.clone()))),
        ("verdict", DataType::Utf8, text(&|facts| Some(facts.verdict.clone()))),
        ("guardrail", DataType::Utf8, text(&|facts| facts.guardrail.clone())),
        ("decision", DataType::Utf8, text(&|facts| facts.decision.clone())),
        ("significant", DataType::Boolean, significant),
        ("users", DataType::Int64, count(&|facts| facts.users)),
        ("exposed_users", DataType::Int64, count(&|facts| facts.exposed_users)),
        ("days_running", DataType::Float64, number(&|facts| facts.days_running)),
        ("control_mean", DataType::Float64, number(&|facts| facts.control_mean)),
        ("mean", DataType::Float64, number(&|facts| facts.mean)),
        ("estimate", DataType::Float64, number(&|facts| facts.estimate[0])),
        ("low", DataType::Float64, number(&|facts| facts.estimate[1])),
        ("high", DataType::Float64, number(&|facts| facts.estimate[2])),
        ("lift", DataType::Float64, number(&|facts| facts.lift[0])),
        ("lift_low", DataType::Float64, number(&|facts| facts.lift[1])),
        ("lift_high", DataType::Float64, number(&|facts| facts.lift[2])),
        ("p_value", DataType::Float64, number(&|facts| facts.p_value)),
        ("adjusted_p", DataType::Float64, number(&|facts| facts.adjusted_p)),
    ];
    let fields: Vec<Field> = columns.iter().map(|(name, kind, _)| Field::new(*name, kind.clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, _, values)| values).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(metric: &str, lift: f64, verdict: &str) -> Facts {
        Facts {
            metric: metric.to_owned(),
            verdict: verdict.to_owned(),
            lift: [Some(lift), None, Some(2.0 * lift)],
            users: 500,
            ..Facts::default()
        }
    }

    fn policy(name: &str, condition: &str) -> Policy {
        Policy { rules: [(name.to_owned(), condition.to_owned())].into(), ..Policy::default() }
    }

    #[test]
    fn a_condition_holds_of_what_it_says() {
        let all = [facts("orders", 0.12, "won"), facts("revenue", 0.05, "won"), facts("errors", 0.5, "inconclusive")];
        let check = |condition: &str, expected: &[&str]| {
            let found = rules(&policy("big win", condition), &all).expect("can be computed");
            let metrics: Vec<&str> = found[0].met_by.iter().map(|met| met.metric.as_str()).collect();
            assert_eq!((found[0].name.as_str(), metrics.as_slice()), ("big win", expected), "{condition}");
        };
        check("verdict = 'won' AND lift > 0.1", &["orders"]);
        check("lift_low > 0", &[]);
        check("lift_low IS NULL AND lift_high < 1 AND users >= 500", &["orders", "revenue"]);
        check("metric LIKE 'e%' OR significant", &["errors"]);
        check("true", &["orders", "revenue", "errors"]);
        assert_eq!(rules(&Policy::default(), &all), Ok(Vec::new()));
    }

    #[test]
    fn what_cannot_be_computed_is_refused_with_its_place() {
        let check = |condition: &str, part: &str| {
            let refusal = self::check(&policy("mine", condition)).expect_err(condition);
            assert_eq!(refusal.field.as_deref(), Some("rules[mine]"), "{refusal}");
            assert!(refusal.message.contains(part), "{refusal}");
        };
        check("lift", "is of type");
        check("uplift > 0", "uplift");
        check("(SELECT true)", "without subqueries");
        check("max(lift) > 1", "without subqueries and aggregates");
        assert_eq!(self::check(&policy("mine", "lift > 0.1")), Ok(()));
    }
}
