//! Wrong results of the DataFusion that is pinned (55.2), and what keeps each from being given.
//!
//! `query/tests/it/corrections.rs` has a test for each, and for those that were looked at and are right: an upgrade shows which of these may go.
//!
//! - Two projections after each other with equal expressions were taken for one: `n + 1 AS n` over `n + 1 AS n` added 1. Mended after
//!   55.2 (apache/datafusion, pull request 24686). Here each is made unequal to those below it.
//! - A duration was compared with an interval as months, then days, then nanoseconds, and has no days: `now() - event_time > INTERVAL '9 days'`
//!   was never true. Here the interval becomes a duration: all times are in UTC, so a day has 24 hours. An interval of months has no
//!   length, and two intervals have no order that holds; both are refused.
//! - `x IN (..) AND x IN (..)` was made one list by comparing the expressions in them: false for null (issue 24246), and false where
//!   two columns of the lists are equal. The same with NOT and OR; `x XOR x` was 0 for null; `array_has([..], y)` was an IN, whose
//!   nulls are others. Here one side is hidden behind a function that returns its argument.
//! - `SELECT DISTINCT .. ORDER BY .. LIMIT` over rows that were sorted before gave too few: the limit was applied below the last step of
//!   DISTINCT (issue 24927). Here the order of the rows is hidden in the same way.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, Result, ScalarValue, TableReference, plan_err};
use datafusion::logical_expr::expr::{Alias, Between, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, Projection, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

const DAY_NS: i128 = 86_400_000_000_000;

/// Rewrites a plan, before anything else does, so that its result is right.
/// # Errors
/// An error of planning, for a comparison that has no right result.
pub(super) fn correct(plan: LogicalPlan) -> Result<LogicalPlan> {
    set_projections_apart(hide_orders(correct_expressions(plan)?)?)
}

fn set_projections_apart(plan: LogicalPlan) -> Result<LogicalPlan> {
    let apart = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Projection(Projection { mut expr, input, schema, .. }) = node else { return Ok(Transformed::no(node)) };
        let below = projections(&input);
        let computed = expr.iter_mut().find_map(computed).filter(|_| below > 0);
        let is_hidden = computed.is_some();
        if let Some(computed) = computed {
            // By how many such projections are below it: so no two of one chain are equal, merged or not.
            *computed.expr = same(std::mem::take(&mut *computed.expr), below);
        }
        let node = Projection::try_new_with_schema(expr, input, schema).map(LogicalPlan::Projection)?;
        Ok(if is_hidden { Transformed::yes(node) } else { Transformed::no(node) })
    });
    apart.map(|apart| apart.data)
}

/// Returns how many projections that compute something may come to lie directly below each other from here on.
fn projections(plan: &LogicalPlan) -> usize {
    match plan {
        LogicalPlan::Projection(projection) => {
            let computes = projection.expr.clone().iter_mut().any(|expr| computed(expr).is_some());
            projections(&projection.input) + usize::from(computes)
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            plan.inputs().first().map_or(0, |input| projections(input))
        }
        _ => 0,
    }
}

/// Returns an expression that computes something under a name.
fn computed(expr: &mut Expr) -> Option<&mut Alias> {
    match expr {
        Expr::Alias(alias) if !matches!(*alias.expr, Expr::Column(_) | Expr::Literal(..)) => Some(alias),
        _ => None,
    }
}

fn correct_expressions(plan: LogicalPlan) -> Result<LogicalPlan> {
    let corrected = plan.transform_down_with_subqueries(|node| {
        let schema = merge_schema(&node.inputs());
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let name = names.save(&expr);
            let corrected =
                expr.transform_up(|expr| compare(expr, &schema))?.transform_data(|expr| expr.transform_up(keep_apart))?;
            Ok(corrected.update_data(|expr| name.restore(expr)))
        })
    });
    corrected.map(|corrected| corrected.data)
}

/// Hides what the optimizer would take for equal, one occurrence of two.
fn keep_apart(expr: Expr) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let mut listed = Vec::new();
            in_lists(&left, op, &mut listed);
            let (right, changed) = hide_in_lists(*right, op, &mut listed);
            let expr = Expr::BinaryExpr(BinaryExpr::new(left, op, Box::new(right)));
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::BitwiseXor, right }) => {
            let right = Box::new(same(*right, 0));
            Ok(Transformed::yes(Expr::BinaryExpr(BinaryExpr::new(left, Operator::BitwiseXor, right))))
        }
        Expr::ScalarFunction(mut call) if call.func.name() == "array_has" && !call.args.is_empty() => {
            let list = call.args.remove(0);
            call.args.insert(0, same(list, 0));
            Ok(Transformed::yes(Expr::ScalarFunction(call)))
        }
        other => Ok(Transformed::no(other)),
    }
}

/// Of x IN .. OR x IN .. the optimizer makes one list, which is right.
fn is_merged_wrongly(list: &InList, op: Operator) -> bool {
    op == Operator::And || list.negated
}

/// Collects what is looked for in lists, in a chain of AND or of OR.
fn in_lists(expr: &Expr, op: Operator, found: &mut Vec<Expr>) {
    match expr {
        Expr::BinaryExpr(chain) if chain.op == op => {
            in_lists(&chain.left, op, found);
            in_lists(&chain.right, op, found);
        }
        Expr::InList(list) if is_merged_wrongly(list, op) => found.push((*list.expr).clone()),
        _ => {}
    }
}

/// Hides what is looked for again.
fn hide_in_lists(expr: Expr, op: Operator, found: &mut Vec<Expr>) -> (Expr, bool) {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op: inner, right }) if inner == op => {
            let (left, left_changed) = hide_in_lists(*left, op, found);
            let (right, right_changed) = hide_in_lists(*right, op, found);
            (Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right))), left_changed || right_changed)
        }
        Expr::InList(list) if is_merged_wrongly(&list, op) => {
            let is_again = found.contains(&list.expr);
            found.push((*list.expr).clone());
            // By how many were met, so that no two are equal.
            let looked_for = if is_again { Box::new(same(*list.expr, found.len())) } else { list.expr };
            (Expr::InList(InList::new(looked_for, list.list, list.negated)), is_again)
        }
        other => (other, false),
    }
}

/// Hides the order of rows from a sort with a limit that has an aggregate below it, and below that a sort or a window.
fn hide_orders(plan: LogicalPlan) -> Result<LogicalPlan> {
    let hidden = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Sort(mut sort) = node else { return Ok(Transformed::no(node)) };
        if !sorts_under_aggregate(&sort.input, false) {
            return Ok(Transformed::no(LogicalPlan::Sort(sort)));
        }
        let column = |(relation, field): (Option<&TableReference>, &FieldRef)| {
            let column = Expr::Column(Column::new(relation.cloned(), field.name()));
            same(column, 0).alias_qualified(relation.cloned(), field.name())
        };
        let columns = sort.input.schema().iter().map(column).collect();
        sort.input = Arc::new(LogicalPlan::Projection(Projection::try_new(columns, sort.input)?));
        Ok(Transformed::yes(LogicalPlan::Sort(sort)))
    });
    hidden.map(|hidden| hidden.data)
}

fn sorts_under_aggregate(plan: &LogicalPlan, is_under: bool) -> bool {
    let is_aggregate = matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_));
    let is_sorted = matches!(plan, LogicalPlan::Sort(_) | LogicalPlan::Window(_));
    is_under && is_sorted || plan.inputs().iter().any(|input| sorts_under_aggregate(input, is_under || is_aggregate))
}

/// Returns the expression behind a function that returns its first argument, of which the optimizer knows nothing. Equal expressions with
/// other numbers are not equal.
fn same(expr: Expr, number: usize) -> Expr {
    static SAME: LazyLock<Arc<ScalarUDF>> =
        LazyLock::new(|| Arc::new(ScalarUDF::from(Same { signature: Signature::any(2, Volatility::Immutable) })));
    Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&SAME), vec![expr, lit(number as u64)]))
}

/// Returns its first argument. Not to be named in SQL.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    signature: Signature,
}

impl ScalarUDFImpl for Same {
    fn name(&self) -> &str {
        "same"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        arg_types.first().map_or_else(|| plan_err!("same() takes two arguments"), |of_argument| Ok(of_argument.clone()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let field = args.arg_fields.first().map(|field| Field::new(self.name(), field.data_type().clone(), field.is_nullable()));
        field.map_or_else(|| plan_err!("same() takes two arguments"), |field| Ok(Arc::new(field)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        args.args.into_iter().next().map_or_else(|| plan_err!("same() takes two arguments"), Ok)
    }
}

/// Rewrites one comparison.
fn compare(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    match expr {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(op) => {
            let right_corrected = beside(&left, *right, schema)?;
            let left_corrected = beside(&right_corrected.data, *left, schema)?;
            let changed = left_corrected.transformed || right_corrected.transformed;
            let expr = Expr::BinaryExpr(BinaryExpr::new(Box::new(left_corrected.data), op, Box::new(right_corrected.data)));
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        Expr::Between(Between { expr, negated, low, high }) => {
            let (low, high) = (beside(&expr, *low, schema)?, beside(&expr, *high, schema)?);
            let changed = low.transformed || high.transformed;
            let expr = Expr::Between(Between::new(expr, negated, Box::new(low.data), Box::new(high.data)));
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        Expr::InList(InList { expr, list, negated }) => {
            let list = list.into_iter().map(|item| beside(&expr, item, schema)).collect::<Result<Vec<_>>>()?;
            let changed = list.iter().any(|item| item.transformed);
            let expr = Expr::InList(InList::new(expr, list.into_iter().map(|item| item.data).collect(), negated));
            Ok(if changed { Transformed::yes(expr) } else { Transformed::no(expr) })
        }
        other => Ok(Transformed::no(other)),
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// Rewrites what is compared with `other`: an interval beside a duration becomes one.
fn beside(other: &Expr, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    // What has no type yet is refused elsewhere.
    let (Ok(of_other), Ok(own)) = (other.get_type(schema), expr.get_type(schema)) else { return Ok(Transformed::no(expr)) };
    match (of_other, own) {
        (DataType::Duration(unit), DataType::Interval(_)) => Ok(Transformed::yes(duration(&expr, unit)?)),
        (DataType::Interval(_), DataType::Interval(_)) => plan_err!(
            "intervals cannot be compared: a month has no fixed length; compare times, such as event_time < now() - INTERVAL '9 days'"
        ),
        _ => Ok(Transformed::no(expr)),
    }
}

/// Returns the duration that a constant interval is.
fn duration(expr: &Expr, unit: TimeUnit) -> Result<Expr> {
    let how = "compare times instead, such as event_time < now() - INTERVAL '1 month'";
    let Expr::Literal(value, metadata) = expr else {
        return plan_err!("a duration can be compared with a constant interval only; {how}");
    };
    let (months, nanoseconds) = match value {
        ScalarValue::IntervalMonthDayNano(Some(value)) => {
            (value.months, i128::from(value.days) * DAY_NS + i128::from(value.nanoseconds))
        }
        ScalarValue::IntervalDayTime(Some(value)) => {
            (0, i128::from(value.days) * DAY_NS + i128::from(value.milliseconds) * 1_000_000)
        }
        ScalarValue::IntervalYearMonth(Some(months)) => (*months, 0),
        _ => return Ok(Expr::Literal(ScalarValue::try_from(&DataType::Duration(unit))?, metadata.clone())),
    };
    if months != 0 {
        return plan_err!("a duration cannot be compared with an interval of months, which have no fixed length; {how}");
    }
    let (per_unit, scalar): (i128, fn(Option<i64>) -> ScalarValue) = match unit {
        TimeUnit::Second => (1_000_000_000, ScalarValue::DurationSecond),
        TimeUnit::Millisecond => (1_000_000, ScalarValue::DurationMillisecond),
        TimeUnit::Microsecond => (1_000, ScalarValue::DurationMicrosecond),
        TimeUnit::Nanosecond => (1, ScalarValue::DurationNanosecond),
    };
    match i64::try_from(nanoseconds / per_unit) {
        Ok(whole) if nanoseconds % per_unit == 0 => Ok(Expr::Literal(scalar(Some(whole)), metadata.clone())),
        _ => plan_err!("the interval is too long, or finer than the times that are compared with it; {how}"),
    }
}
