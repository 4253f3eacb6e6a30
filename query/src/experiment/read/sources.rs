//! Events that the definitions of metrics speak of: of any kind, with a condition and a value of each.

use std::sync::Arc;

use ::catalogue::Trigger;
use ::catalogue::definitions::{AMOUNT, Definition, PerUser};
use arrow::array::{ArrayRef, AsArray, FixedSizeBinaryBuilder, Int32Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type, TimestampMicrosecondType};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, try_cast};
use datafusion::prelude::{col, in_list, lit};
use events::Kind;
use events::fact::{FACT_TABLES, FactTable};
use uuid::Uuid;

use super::cohort::{DAY_US, Rows, Source, Users};
use super::cohort_reader::{Numbers, Reader, Scope, rows_of, time_literal};
use crate::config::Limits;
use crate::engine::{self, Engine, Session};
use crate::experiment::request::COVARIATE_DAYS;
use crate::http::error::ApiError;
use crate::source::property::Property;
use crate::source::tables::{self, Table};
use crate::sql;

/// A definition's events, and when they count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceQuery {
    /// Which events, and what of them.
    pub definition: Definition,
    /// When, in microseconds after the first exposure, half open.
    pub window_us: (i64, i64),
    /// Whether what users did before their exposure is compared with it.
    pub has_before: bool,
}

/// A condition of a definition is small: what is planned with it is planned on an ordinary stack, each time that an answer is read.
pub(crate) fn limits() -> Limits {
    Limits { sql_bytes_max: 8_192, sql_operators_max: 64, sql_depth_max: 16, ..Limits::default() }
}

/// Checks what only the engine can judge of a definition: its condition and its value.
/// # Errors
/// [`ApiError`], which names the place.
pub fn check(definition: &Definition) -> Result<(), ApiError> {
    let engine = Engine::new(&Limits::default(), []).map_err(engine::api_error)?;
    let session = engine.session().map_err(engine::api_error)?;
    for (place, part) in definition.parts() {
        of_definition(part, &format!("{place}where"), &session, &schema(part.kind)?)?;
        property(part, &format!("{place}value"))?;
    }
    for (index, step) in definition.then.iter().enumerate() {
        of_definition(&step.definition(), &format!("then[{index}].where"), &session, &schema(step.kind)?)?;
    }
    for (index, covariate) in definition.covariates.iter().enumerate() {
        CovariateSource::of(covariate).ok_or_else(|| {
            let message = format!(
                "found {covariate:?}; metrics.NAME of the same experiment, has_history, or a column or property of the first exposure is \
                 accepted, such as country or properties.plan"
            );
            ApiError::bad_request(message).at(format!("covariates[{index}]"))
        })?;
    }
    Ok(())
}

/// Checks a condition on the first exposure that operators set.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`.
pub fn check_exposure(sql: &str) -> Result<(), ApiError> {
    let engine = Engine::new(&Limits::default(), []).map_err(engine::api_error)?;
    let session = engine.session().map_err(engine::api_error)?;
    condition(sql, "where", &session, &schema(Kind::Impression)?).map(|_| ())
}

/// Checks a condition on the first exposure that a client asks for. It is computed in this process, so nothing in it may grow or take long:
/// comparisons of columns and of what properties hold.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`.
pub(super) fn asked(sql: &str, place: &str, session: &Session) -> Result<(), ApiError> {
    let condition = condition(sql, place, session, &schema(Kind::Impression)?)?;
    if condition.exists(|part| Ok(!is_plain(part))).unwrap_or(true) {
        let message = format!(
            "comparisons with AND, OR, NOT, IN, BETWEEN, LIKE and IS NULL are accepted, of columns, constants and {}",
            PLAIN_FUNCTIONS.join(", ")
        );
        return Err(ApiError::bad_sql(message).at(place));
    }
    Ok(())
}

/// Functions whose results are no larger than what they are of.
const PLAIN_FUNCTIONS: [&str; 9] = [
    "json_as_text",
    "json_get_str",
    "json_get_int",
    "json_get_float",
    "json_get_bool",
    "json_contains",
    "json_length",
    "lower",
    "upper",
];

fn is_plain(part: &Expr) -> bool {
    use datafusion::logical_expr::Operator::{And, Divide, Eq, Gt, GtEq, Lt, LtEq, Minus, Multiply, NotEq, Or, Plus};
    match part {
        Expr::Column(_)
        | Expr::Literal(..)
        | Expr::Not(_)
        | Expr::Negative(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsTrue(_)
        | Expr::IsFalse(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNotFalse(_)
        | Expr::Between(_)
        | Expr::InList(_)
        | Expr::Like(_)
        | Expr::Cast(_)
        | Expr::TryCast(_) => true,
        Expr::BinaryExpr(binary) => {
            matches!(binary.op, Eq | NotEq | Lt | LtEq | Gt | GtEq | And | Or | Plus | Minus | Multiply | Divide)
        }
        Expr::ScalarFunction(function) => PLAIN_FUNCTIONS.contains(&function.name()),
        _ => false,
    }
}

/// What a definition takes off beside what users did before of the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CovariateSource {
    /// What users did before of another metric of the experiment.
    Metric(String),
    /// Whether anything is known of them from before.
    History,
    /// The values of a property of the first exposure.
    Exposure(Property),
}

impl CovariateSource {
    /// Finds what a name means; `None`: there is no such name.
    pub fn of(name: &str) -> Option<Self> {
        match name.strip_prefix("metrics.") {
            Some(metric) => (!metric.is_empty()).then(|| CovariateSource::Metric(metric.to_owned())),
            None if name == "has_history" => Some(CovariateSource::History),
            None => Property::prefixed(name).map(CovariateSource::Exposure),
        }
    }
}

/// The columns that a condition on an event of a kind may speak of.
fn schema(kind: Kind) -> Result<DFSchema, ApiError> {
    let table = table(kind, &Scope::Everyone, Uuid::nil()).ok_or_else(ApiError::internal)?;
    DFSchema::try_from(table.schema().as_ref().clone()).map_err(engine::api_error)
}

fn of_definition(definition: &Definition, place: &str, session: &Session, schema: &DFSchema) -> Result<Option<Expr>, ApiError> {
    definition.condition.as_ref().map(|sql| condition(sql, place, session, schema)).transpose()
}

/// Reads a condition. It must not speak of the variant: who is compared, and what counts of them, is the same in all of them.
pub(super) fn condition(sql: &str, place: &str, session: &Session, schema: &DFSchema) -> Result<Expr, ApiError> {
    let condition = sql::condition::read(sql, place, session.state(), schema, &limits())?;
    match condition.column_refs().iter().find(|column| VARIANT.contains(&column.name())) {
        Some(column) => {
            let message = format!("found {}; a condition that is the same for all variants is accepted", column.name());
            Err(ApiError::bad_sql(message).at(place))
        }
        None => Ok(condition),
    }
}

/// Columns that say which variant a user is in.
const VARIANT: [&str; 2] = ["variant", "variant_id"];

fn property(definition: &Definition, place: &str) -> Result<Option<Property>, ApiError> {
    let known = |name: &String| {
        let message =
            format!("found {name:?}; a column of the table events or a property is accepted, such as value or properties.price");
        Property::of(name).ok_or_else(|| ApiError::bad_request(message).at(place))
    };
    definition.value.as_ref().map(known).transpose()
}

/// Returns the events of one kind, with the key of their user; everybody's or some users'.
pub(super) fn table(kind: Kind, scope: &Scope, project: Uuid) -> Option<Table> {
    let facts = FactTable::of(kind);
    let place = FACT_TABLES.iter().position(|other| other.name == facts.name)?;
    let mut events = tables::table("events")?.with_user_key();
    let mut source = events.sources.swap_remove(place);
    if let Scope::These(users) = scope {
        let joins = source.from.strip_prefix(facts.name)?;
        source.from = format!("{}{joins}", rows_of(users, facts.name, project, "true"));
    }
    events.sources = vec![source];
    Some(events)
}

impl Reader<'_> {
    /// Reads the events of a definition: of its window, and of the days before the first exposure.
    pub(super) async fn source(
        &self,
        place: usize,
        query: &SourceQuery,
        users: &Users,
        currencies: &mut Numbers<Option<String>>,
    ) -> Result<Source, DataFusionError> {
        let mut texts = Numbers::<String>::default();
        let assigned = (0..users.len()).map(|user| users.assigned(user)).min();
        let (Some(first), Some(last)) = (assigned, users.exposed.iter().max()) else {
            return Ok(Source::default());
        };
        let (table, started) = self.starts();
        let name = format!("source_{place}");
        let plan = self.events(&query.definition)?;
        self.session.add(&name, plan.into_view())?;
        let within = |(from, to): (i64, i64), starts: &[&str]| {
            let window = |start: &&str| {
                let (from, to) = (from / MINUTE_US, to / MINUTE_US);
                format!("(e.time >= {start} + INTERVAL '{from} minutes' AND e.time < {start} + INTERVAL '{to} minutes')")
            };
            format!(
                "SELECT u.n, e.name, e.currency, e.value, e.time, CAST(100 AS INT) AS confidence
                 FROM {name} e JOIN {table} u ON e.user_key = u.user_key
                 WHERE e.time >= {} AND e.time < {} AND ({})",
                time_literal(first.saturating_add(from)),
                time_literal(last.saturating_add(to)),
                starts.iter().map(window).collect::<Vec<_>>().join(" OR "),
            )
        };
        // Before its trigger came a user is one of those who have not begun, whose window is that of the exposure.
        let starts: &[&str] = if self.query.trigger.is_some() { &[started, EXPOSED] } else { &[EXPOSED] };
        let mut after = self.conversions(&within(query.window_us, starts), &mut texts, currencies).await?;
        let mut before = Vec::new();
        // What lies before the exposure is no history where the metric is about it.
        if self.query.has_before && query.has_before && query.window_us.0 >= 0 {
            let history = (-COVARIATE_DAYS * DAY_US, 0);
            before = self.conversions(&within(history, &[EXPOSED]), &mut texts, currencies).await?;
        }
        let (texts, places) = texts.sorted();
        for (_, row) in after.iter_mut().chain(&mut before) {
            row.name = places[row.name as usize];
        }
        Ok(Source { texts, after: Rows::new(users.len(), after), before: Rows::new(users.len(), before) })
    }

    /// Finds each user's first trigger at or after the exposure, and leaves the users behind as the table `starts`: id, number, first
    /// exposure, and from when on it counts what they do.
    pub(super) async fn triggered(&self, trigger: &Trigger, users: &mut Users) -> Result<(), DataFusionError> {
        users.assigned.clone_from(&users.exposed);
        users.is_triggered = vec![false; users.len()];
        if let Some(first) = users.exposed.iter().min() {
            let plan = self.events(&trigger.definition())?;
            self.session.add("triggers", plan.into_view())?;
            let sql = format!(
                "SELECT u.n, min(e.time) AS time FROM triggers e JOIN users u ON e.user_key = u.user_key
                 WHERE e.time >= {} AND e.time >= u.exposed GROUP BY u.n",
                time_literal(*first)
            );
            for batch in self.collect(&sql).await? {
                let numbers = batch.column(0).as_primitive::<Int32Type>();
                let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
                for row in 0..batch.num_rows() {
                    let user = numbers.value(row) as usize;
                    (users.exposed[user], users.is_triggered[user]) = (times.value(row), true);
                }
            }
        }
        let time = |times: &Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_iter_values(times.iter().copied()).with_timezone("UTC"))
        };
        let mut keys = FixedSizeBinaryBuilder::with_capacity(users.len(), 16);
        for key in &users.keys {
            keys.append_value(key)?;
        }
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("user_key", Arc::new(keys.finish())),
            ("n", Arc::new(Int32Array::from_iter_values(0..users.len() as i32))),
            ("exposed", time(&users.assigned)),
            ("started", time(&users.exposed)),
        ];
        let batch = RecordBatch::try_from_iter(columns)?;
        self.session.add("starts", Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }

    /// The events of a definition: user, time, and what of each is wanted.
    fn events(&self, definition: &Definition) -> Result<DataFrame, DataFusionError> {
        let external = |error: ApiError| DataFusionError::Plan(error.message);
        let table = table(definition.kind, self.scope, self.snapshot.project());
        let table = table.ok_or_else(|| DataFusionError::Internal("no table events".to_owned()))?;
        let schema = DFSchema::try_from(table.schema().as_ref().clone())?;
        let condition = of_definition(definition, "where", self.session, &schema).map_err(external)?;
        let property = property(definition, "value").map_err(external)?;
        let scan = provider_as_source(Session::scan_of(table, self.snapshot));
        let state = self.session.state();
        let source = LogicalPlanBuilder::scan("events", scan, None)?.build()?;
        let mut events = DataFrame::new(state.clone(), source).filter(!col("is_bot"))?;
        if !definition.events.is_empty() {
            let names = definition.events.iter().map(|name| lit(name.as_str())).collect();
            events = events.filter(in_list(col("event"), names, false))?;
        }
        if let Some(condition) = condition {
            events = events.filter(condition)?;
        }
        let null = |kind: DataType| ScalarValue::try_from(&kind).map(lit);
        let decimal = DataType::Decimal128(20, 6);
        let value = match &property {
            Some(Property::Column(AMOUNT)) if definition.per_user.needs_number() => col(AMOUNT),
            Some(property) if definition.per_user.needs_number() => try_cast(property.expr(state)?, decimal),
            _ => null(decimal)?,
        };
        let told_apart = match &property {
            Some(property) if definition.per_user == PerUser::Distinct => property.expr(state)?,
            _ => lit(""),
        };
        let currency = if definition.has_amounts() { col("currency") } else { null(DataType::Utf8View)? };
        let columns = vec![
            col("user_key"),
            col("event_time").alias("time"),
            cast(told_apart, DataType::Utf8View).alias("name"),
            cast(currency, DataType::Utf8View).alias("currency"),
            value.alias("value"),
        ];
        let events = events.select(columns)?;
        // Who tells values apart has nothing to tell where there is none.
        if definition.per_user == PerUser::Distinct { events.filter(col("name").is_not_null()) } else { Ok(events) }
    }
}

const MINUTE_US: i64 = 60_000_000;
/// The first exposure, in the tables of users.
const EXPOSED: &str = "u.exposed";
