//! Conditions on one event, in SQL: what funnels and the definitions of metrics take.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::TreeNode;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, ExprSchemable};

use crate::config::Limits;
use crate::engine;
use crate::http::error::ApiError;
use crate::sql::guard;

/// Reads a condition over the columns of `schema`; `place` is where it stands in what was sent.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`.
pub fn read(sql: &str, place: &str, state: &SessionState, schema: &DFSchema, limits: &Limits) -> Result<Expr, ApiError> {
    guard::measure(sql, limits).map_err(|api_error| api_error.at(place))?;
    let expr = state.create_logical_expr(sql, schema).map_err(|error| engine::api_error(error).at(place))?;
    check(&expr, schema).map_err(|message| ApiError::bad_sql(message).at(place))?;
    Ok(expr)
}

/// Lets through what can be decided on one event alone.
fn check(expr: &Expr, schema: &DFSchema) -> Result<(), String> {
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
