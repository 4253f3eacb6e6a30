//! Which events a funnel needs, and what of each: a plan over the table `events`.

use std::collections::BTreeMap;

use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, LogicalPlan, Operator, binary_expr, case, when};
use datafusion::prelude::{col, in_list, lit};

use super::definition::Matches;
use crate::config::Limits;
use crate::http::error::ApiError;
use crate::source::property::Property;
use crate::sql::condition;

/// What is read of the events that match something.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Of each of these the mask gets a bit, in their order.
    pub steps: Vec<Condition>,
    /// The same, in a mask of their own.
    pub excluded: Vec<Condition>,
    /// Events that match nothing are read, too.
    pub needs_all: bool,
    /// Not before this time,
    pub from: Option<i64>,
    /// and before this one; microseconds since 1970.
    pub to: Option<i64>,
    /// A value that is wanted of each event.
    pub value: Option<Property>,
    /// Values that events of one chain share.
    pub held: Vec<Property>,
    /// The order in which events were stored is wanted.
    pub needs_arrival: bool,
    /// Names of which it is wanted whether any event has them.
    pub looked_for: Vec<String>,
}

/// Which events are meant: names, or an expression.
#[derive(Clone, Debug)]
pub enum Condition {
    /// Events of these names.
    Names(Vec<String>),
    /// Events for which this is true.
    Expr(Box<Expr>),
}

impl Condition {
    /// Turns what a request says at `place` into a condition over the table `events`.
    /// # Errors
    /// [`ApiError`] of code `bad_sql` or `sql_too_large`.
    pub fn of(
        matches: &Matches,
        place: &str,
        state: &SessionState,
        schema: &DFSchema,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        match matches {
            Matches::Events(names) => Ok(Condition::Names(names.clone())),
            Matches::Where(sql) => {
                condition::read(sql, &format!("{place}.where"), state, schema, limits).map(|expr| Condition::Expr(Box::new(expr)))
            }
        }
    }

    /// Returns the names of events that it asks for.
    pub fn names(&self) -> Vec<String> {
        match self {
            Condition::Names(names) => names.clone(),
            Condition::Expr(expr) => {
                let mut names = Vec::new();
                // It visits every part, and no part fails.
                let _ = expr.apply(|part| {
                    match part {
                        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (&**left, &**right) {
                            (column, Expr::Literal(name, _)) | (Expr::Literal(name, _), column) if is_event(column) => {
                                names.extend(name.try_as_str().flatten().map(str::to_owned));
                            }
                            _ => {}
                        },
                        Expr::InList(InList { expr, list, negated: false }) if is_event(expr) => {
                            let name = |item: &Expr| item.as_literal().and_then(|name| name.try_as_str()?.map(str::to_owned));
                            names.extend(list.iter().filter_map(name));
                        }
                        _ => {}
                    }
                    Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
                });
                names
            }
        }
    }
}

fn is_event(expr: &Expr) -> bool {
    matches!(expr, Expr::Column(column) if column.name == "event")
}

impl Selection {
    /// Makes the plan. Its columns: `user_key`, `event_time`, `mask`, `excluded`, `value` if there is one, `held_0` and so on, `arrival`,
    /// `found`; the last four where they are wanted.
    /// # Errors
    /// Those of DataFusion.
    pub fn plan(&self, source: LogicalPlan, state: &SessionState) -> Result<LogicalPlan, DataFusionError> {
        let time = |us: i64| lit(ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into())));
        let mut events = DataFrame::new(state.clone(), source).filter(!col("is_bot"))?;
        if let Some(from) = self.from {
            events = events.filter(col("event_time").gt_eq(time(from)))?;
        }
        if let Some(to) = self.to {
            events = events.filter(col("event_time").lt(time(to)))?;
        }
        if let Some(any) = any(self.steps.iter().chain(&self.excluded)).filter(|_| !self.needs_all) {
            events = events.filter(any)?;
        }
        let mut columns =
            vec![col("user_key"), col("event_time"), mask(&self.steps)?.alias("mask"), mask(&self.excluded)?.alias("excluded")];
        if let Some(value) = &self.value {
            columns.push(value.expr(state)?.alias("value"));
        }
        for (index, held) in self.held.iter().enumerate() {
            columns.push(held.expr(state)?.alias(format!("held_{index}")));
        }
        if self.needs_arrival {
            columns.push(col("log_offset").alias("arrival"));
        }
        if !self.looked_for.is_empty() {
            let each: Vec<Condition> = self.looked_for.iter().map(|name| Condition::Names(vec![name.clone()])).collect();
            columns.push(mask(&each)?.alias("found"));
        }
        Ok(events.select(columns)?.into_unoptimized_plan())
    }
}

/// Returns the condition that an event is one of some: by names alone it is one list, which Postgres can apply too.
fn any<'a>(conditions: impl Iterator<Item = &'a Condition>) -> Option<Expr> {
    let mut names: Vec<&String> = Vec::new();
    let mut others: Vec<Expr> = Vec::new();
    for condition in conditions {
        match condition {
            Condition::Names(events) => names.extend(events),
            Condition::Expr(expr) => others.push((**expr).clone()),
        }
    }
    names.sort_unstable();
    names.dedup();
    if !names.is_empty() {
        others.push(in_list(col("event"), names.into_iter().map(lit).collect(), false));
    }
    others.into_iter().reduce(Expr::or)
}

/// Returns the mask of conditions that an event meets: one look-up for all that are given by names, and one test for each other.
fn mask(conditions: &[Condition]) -> Result<Expr, DataFusionError> {
    let mut by_name: BTreeMap<&str, i64> = BTreeMap::new();
    let mut parts = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let bit = 1i64 << index;
        match condition {
            Condition::Names(events) => {
                for event in events {
                    *by_name.entry(event).or_default() |= bit;
                }
            }
            Condition::Expr(expr) => parts.push(when((**expr).clone(), lit(bit)).otherwise(lit(0i64))?),
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
