//! `POST /v1/funnels`: definition -> steps as conditions -> one level per user -> counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::session_state::SessionState;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{
    AggregateUDF, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator, binary_expr, case, when,
};
use datafusion::prelude::{col, in_list, lit};
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use super::definition::{Definition, Matches};
use super::udaf::{FunnelLevel, FunnelParameters};
use crate::config::Limits;
use crate::engine::{self, Engine, Session, on_large_stack};
use crate::http::error::ApiError;
use crate::source::snapshot::Snapshot;
use crate::source::tables;
use crate::sql::guard;

/// Answers one funnel.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub async fn answer(engine: &Engine, snapshot: Arc<Snapshot>, definition: Definition) -> Result<Value, ApiError> {
    let start = Instant::now();
    let definition = Arc::new(definition);
    let session = Arc::new(engine.session().map_err(engine::api_error)?);
    let events = tables::table("events").ok_or_else(ApiError::internal)?.with_user_key();
    let scan = Session::scan_of(events, &snapshot);
    let stream = {
        let (session, definition, limits) = (session.clone(), definition.clone(), engine.limits().clone());
        on_large_stack(async move {
            let conditions = conditions(&definition, session.state(), &scan.schema(), &limits)?;
            let source = LogicalPlanBuilder::scan("events", provider_as_source(scan), None).and_then(LogicalPlanBuilder::build);
            let plan = source.and_then(|source| plan(&definition, &conditions, source, session.state()));
            session.run(plan.map_err(engine::planning_error)?).await.map_err(engine::planning_error)
        })
        .await??
    };
    let batches: Vec<_> = stream.try_collect().await.map_err(engine::api_error)?;
    let mut users_at = vec![0u64; definition.steps.len() + 1];
    for batch in &batches {
        let (levels, users) = (batch.column(0).as_primitive::<Int32Type>(), batch.column(1).as_primitive::<Int64Type>());
        for (level, users) in levels.values().iter().zip(users.values()) {
            users_at[*level as usize] += *users as u64;
        }
    }
    Ok(json!({
        "definition": definition.expanded(),
        "as_of": snapshot.as_of(),
        "groups": [{"steps": steps(&definition, &users_at)}],
        "elapsed_ms": start.elapsed().as_millis() as u64,
    }))
}

/// Turns each step into a condition over the table `events`.
fn conditions(
    definition: &Definition,
    state: &SessionState,
    schema: &arrow::datatypes::SchemaRef,
    limits: &Limits,
) -> Result<Vec<Expr>, ApiError> {
    let schema = DFSchema::try_from(schema.as_ref().clone()).map_err(engine::api_error)?;
    let condition = |(index, matches): (usize, &Matches)| match matches {
        Matches::Events(events) => Ok(in_list(col("event"), events.iter().map(lit).collect(), false)),
        Matches::Where(sql) => {
            let place = format!("steps[{index}].where");
            guard::measure(sql, limits).map_err(|api_error| api_error.at(&place))?;
            let expr = state.create_logical_expr(sql, &schema).map_err(|error| engine::api_error(error).at(&place))?;
            check_condition(&expr, &schema).map_err(|message| ApiError::bad_sql(message).at(place))?;
            Ok(expr)
        }
    };
    definition.steps.iter().map(|step| &step.matches).enumerate().map(condition).collect()
}

/// Lets through what can be decided on one event alone.
fn check_condition(expr: &Expr, schema: &DFSchema) -> Result<(), String> {
    use datafusion::common::tree_node::TreeNode;
    let is_more_than_a_row = |part: &Expr| {
        matches!(
            part,
            Expr::AggregateFunction(_)
                | Expr::WindowFunction(_)
                | Expr::ScalarSubquery(_)
                | Expr::Exists(_)
                | Expr::InSubquery(_)
                | Expr::SetComparison(_)
                | Expr::Placeholder(_)
                | Expr::Unnest(_)
                | Expr::OuterReferenceColumn(..)
        )
    };
    if expr.exists(|part| Ok(is_more_than_a_row(part))).unwrap_or(true) {
        return Err("a condition on the columns of one event is accepted, without subqueries and aggregates".to_owned());
    }
    match expr.get_type(schema) {
        Ok(DataType::Boolean) => Ok(()),
        Ok(other) => Err(format!("the condition is of type {other}; true or false is accepted")),
        Err(error) => Err(error.strip_backtrace()),
    }
}

/// Events of people in the time range that may be a step -> level per user -> users per level.
fn plan(
    definition: &Definition,
    conditions: &[Expr],
    source: LogicalPlan,
    state: &SessionState,
) -> Result<LogicalPlan, DataFusionError> {
    let time = |us: i64| lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())));
    let mut events = DataFrame::new(state.clone(), source).filter(!col("is_bot"))?;
    if let Some(from) = definition.from {
        events = events.filter(col("event_time").gt_eq(time(from)))?;
    }
    if let Some(to) = definition.to {
        events = events.filter(col("event_time").lt(time(to)))?;
    }
    events = match any_step(definition, conditions) {
        Some(any) => events.filter(any)?,
        None => events,
    };
    let parameters =
        FunnelParameters { steps: definition.steps.len(), window: definition.window_us, semantics: definition.semantics };
    let level = AggregateUDF::from(FunnelLevel::new(parameters)).call(vec![col("event_time"), col("mask")]);
    let counted = events
        .select(vec![col("user_key"), col("event_time"), mask(definition, conditions)?.alias("mask")])?
        .aggregate(vec![col("user_key")], vec![level.alias("level")])?
        .aggregate(vec![col("level")], vec![count(lit(1i64)).alias("users")])?;
    Ok(counted.into_unoptimized_plan())
}

/// Returns the condition that an event is some step: by names alone it is one list, which Postgres can apply too.
fn any_step(definition: &Definition, conditions: &[Expr]) -> Option<Expr> {
    let mut names: Vec<&String> = Vec::new();
    let mut others: Vec<Expr> = Vec::new();
    for (step, condition) in definition.steps.iter().zip(conditions) {
        match &step.matches {
            Matches::Events(events) => names.extend(events),
            Matches::Where(_) => others.push(condition.clone()),
        }
    }
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        others.push(in_list(col("event"), names.into_iter().map(lit).collect(), false));
    }
    others.into_iter().reduce(Expr::or)
}

/// Returns the mask of steps that an event may be: one look-up for all steps given by names, and one test for each other.
fn mask(definition: &Definition, conditions: &[Expr]) -> Result<Expr, DataFusionError> {
    let mut by_name: BTreeMap<&str, i64> = BTreeMap::new();
    let mut parts = Vec::new();
    for (index, (step, condition)) in definition.steps.iter().zip(conditions).enumerate() {
        let bit = 1i64 << index;
        match &step.matches {
            Matches::Events(events) => {
                for event in events {
                    *by_name.entry(event).or_default() |= bit;
                }
            }
            Matches::Where(_) => parts.push(when(condition.clone(), lit(bit)).otherwise(lit(0i64))?),
        }
    }
    let mut names = by_name.into_iter();
    if let Some((name, bits)) = names.next() {
        let mut chosen = case(col("event")).when(lit(name), lit(bits));
        for (name, bits) in names {
            chosen = chosen.when(lit(name), lit(bits));
        }
        parts.push(chosen.otherwise(lit(0i64))?);
    }
    Ok(parts.into_iter().reduce(|all, part| binary_expr(all, Operator::BitwiseOr, part)).unwrap_or_else(|| lit(0i64)))
}

/// Writes the steps; `users_at[k]` users got to step k and no further.
fn steps(definition: &Definition, users_at: &[u64]) -> Vec<Value> {
    let reached = |step: usize| users_at[step..].iter().sum::<u64>();
    let rate = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let total = definition.steps.len();
    let step = |(index, step): (usize, &super::definition::Step)| {
        let (n, units) = (index + 1, reached(index + 1));
        let mut fields = json!({
            "n": n,
            "name": step.name,
            "units": units,
            "rate_first": rate(units, reached(1)),
            "rate_prev": if index == 0 { None } else { rate(units, reached(index)) },
        });
        if n < total {
            fields["dropped"] = (units - reached(n + 1)).into();
        }
        fields
    };
    definition.steps.iter().enumerate().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_who_got_there_and_who_left() {
        let body =
            br#"{"steps": [{"name": "a", "events": ["a"]}, {"name": "b", "events": ["b"]}, {"name": "c", "events": ["c"]}]}"#;
        let definition = Definition::parse(body).expect("a funnel");
        let found = steps(&definition, &[100, 6, 3, 1]);
        let expected = json!([
            {"n": 1, "name": "a", "units": 10, "rate_first": 1.0, "rate_prev": null, "dropped": 6},
            {"n": 2, "name": "b", "units": 4, "rate_first": 0.4, "rate_prev": 0.4, "dropped": 3},
            {"n": 3, "name": "c", "units": 1, "rate_first": 0.1, "rate_prev": 0.25},
        ]);
        assert_eq!(json!(found), expected);
        let nobody = steps(&definition, &[5, 0, 0, 0]);
        assert_eq!(nobody[1], json!({"n": 2, "name": "b", "units": 0, "rate_first": null, "rate_prev": null, "dropped": 0}));
    }
}
