//! Events that the definitions of metrics speak of: of any kind, with a condition and a value of each.

use ::catalogue::Trigger;
use ::catalogue::definitions::{AMOUNT, Definition, PerUser};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, TimestampMicrosecondType};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, try_cast};
use datafusion::prelude::{col, in_list, lit};
use events::Kind;
use events::fact::{FACT_TABLES, FactTable};
use uuid::Uuid;

use super::cohort::{DAY_US, Row, Rows, Source, Users};
use super::cohort_reader::{NO_CURRENCY, Numbers, Reader, Scope, rows_of, text_column, time_literal};
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

/// Definitions whose events are read at once, at most: they are planned on an ordinary stack.
const SOURCES_AT_ONCE: usize = 8;
/// The columns of events that all definitions share, and those that each of them has.
const SHARED: usize = 3;
const OWN: usize = 3;

/// The events of one definition while they are read.
#[derive(Default)]
struct Found {
    texts: Numbers,
    after: Vec<(u32, Row)>,
    before: Vec<(u32, Row)>,
}

impl Found {
    fn bytes(&self) -> usize {
        (self.after.len() + self.before.len()) * size_of::<(u32, Row)>()
    }

    fn into_source(self, users: usize) -> Source {
        let (texts, places) = self.texts.sorted();
        let rows = |mut rows: Vec<(u32, Row)>| {
            rows.iter_mut().for_each(|(_, row)| row.name = places[row.name as usize]);
            Rows::new(users, rows)
        };
        Source { after: rows(self.after), before: rows(self.before), texts }
    }
}

impl Reader<'_> {
    /// Reads the events of all definitions: of their windows, and of the days before the first exposure. Those of one kind of event are read
    /// together, unless they have conditions about events of other names, of which a condition may fail.
    pub(super) async fn sources(&self, users: &Users, currencies: &mut Numbers) -> Result<Vec<Source>, DataFusionError> {
        let queries = self.query.sources;
        if users.is_empty() {
            return Ok(queries.iter().map(|_| Source::default()).collect());
        }
        let mut places: Vec<usize> = (0..queries.len()).collect();
        let alike = |place: &usize| {
            let definition = &queries[*place].definition;
            (definition.kind.as_str(), definition.condition.as_ref().map(|_| &definition.events))
        };
        places.sort_by_key(alike);
        let groups = places.chunk_by(|one, two| alike(one) == alike(two)).flat_map(|group| group.chunks(SOURCES_AT_ONCE));
        let groups: Vec<Vec<&SourceQuery>> = groups.map(|group| group.iter().map(|place| &queries[*place]).collect()).collect();
        let mut found = Vec::with_capacity(queries.len());
        let mut next = None;
        for (number, group) in groups.iter().enumerate() {
            let rows = match next.take() {
                Some(rows) => rows,
                None => self.start_together(number, group, users).await?,
            };
            // While one is looked through the next one is read.
            if let Some(following) = groups.get(number + 1) {
                next = Some(self.start_together(number + 1, following, users).await?);
            }
            found.extend(self.look_through(rows, group, users, currencies).await?);
        }
        let mut sources: Vec<Source> = queries.iter().map(|_| Source::default()).collect();
        places.into_iter().zip(found).for_each(|(place, source)| sources[place] = source);
        Ok(sources)
    }

    /// The days before the first exposure, where what is done in them is compared with what is done after it: what lies there is no history
    /// where the metric is about it.
    fn history(&self, query: &SourceQuery) -> Option<(i64, i64)> {
        let has_before = self.query.has_before && query.has_before && query.window_us.0 >= 0;
        has_before.then_some((-COVARIATE_DAYS * DAY_US, 0))
    }

    /// Starts to read the events of some definitions.
    async fn start_together(
        &self,
        number: usize,
        asked: &[&SourceQuery],
        users: &Users,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        let windows = || asked.iter().flat_map(|query| self.history(query).into_iter().chain([query.window_us]));
        let from = windows().map(|(from, _)| from).min().unwrap_or(0);
        let to = windows().map(|(_, to)| to).max().unwrap_or(0);
        let (first, last) = (users.all_assigned().min().unwrap_or(0), users.exposed.iter().max().copied().unwrap_or(0));
        let name = format!("events_{number}");
        let definitions: Vec<&Definition> = asked.iter().map(|query| &query.definition).collect();
        self.session.add(&name, self.events(&definitions)?.into_view())?;
        let sql = format!(
            "SELECT * FROM {name} WHERE time >= {} AND time < {}",
            time_literal(first.saturating_add(from)),
            time_literal(last.saturating_add(to)),
        );
        self.start(&sql).await
    }

    async fn look_through(
        &self,
        rows: SendableRecordBatchStream,
        asked: &[&SourceQuery],
        users: &Users,
        currencies: &mut Numbers,
    ) -> Result<Vec<Source>, DataFusionError> {
        let mut all: Vec<Found> = asked.iter().map(|_| Found::default()).collect();
        let found = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            let codes = text_column(batch, 2)?;
            for (place, (found, query)) in all.iter_mut().zip(asked).enumerate() {
                let own = SHARED + OWN * place;
                let (is_one, values) = (batch.column(own).as_boolean(), batch.column(own + 1).as_primitive::<Decimal128Type>());
                let (texts, history) = (text_column(batch, own + 2)?, self.history(query));
                let has_currency = query.definition.has_amounts();
                for (row, user) in numbers.iter().enumerate().filter(|(row, _)| is_one.is_valid(*row) && is_one.value(*row)) {
                    let Some(user) = *user else { continue };
                    let (begun, assigned) = (users.exposed[user as usize], users.assigned(user as usize));
                    let time = times.value(row);
                    let is_in = |(from, to): (i64, i64), start: i64| (from..to).contains(&(time - start));
                    // Before its trigger came a user is one of those who have not begun, whose window is that of the exposure.
                    let is_after = is_in(query.window_us, begun) || is_in(query.window_us, assigned);
                    let is_before = history.is_some_and(|history| is_in(history, assigned));
                    if !is_after && !is_before {
                        continue;
                    }
                    let code = if has_currency && codes.is_valid(row) { codes.value(row) } else { NO_CURRENCY };
                    let row = Row {
                        time,
                        value: values.is_valid(row).then(|| values.value(row)),
                        name: found.texts.of(texts.value(row)),
                        currency: currencies.of(code),
                        confidence: 100,
                    };
                    found.after.extend(is_after.then_some((user, row)));
                    found.before.extend(is_before.then_some((user, row)));
                }
            }
            Ok(all.iter().map(Found::bytes).sum())
        };
        self.of_users(rows, users, found).await?;
        Ok(all.into_iter().map(|found| found.into_source(users.len())).collect())
    }

    /// Finds each user's first trigger at or after the exposure, from when on it counts what the user does.
    pub(super) async fn triggered(&self, trigger: &Trigger, users: &mut Users) -> Result<(), DataFusionError> {
        let Some(first) = users.exposed.iter().min() else { return Ok(()) };
        let plan = self.events(&[&trigger.definition()])?;
        self.session.add("triggers", plan.into_view())?;
        let sql = format!("SELECT user_key, time FROM triggers WHERE time >= {}", time_literal(*first));
        let mut triggered: Vec<Option<i64>> = vec![None; users.len()];
        let found = |batch: &RecordBatch, numbers: &[Option<u32>]| {
            let times = batch.column(1).as_primitive::<TimestampMicrosecondType>().values();
            for (user, time) in numbers.iter().zip(times).filter_map(|(user, time)| Some(((*user)? as usize, *time))) {
                let known = &mut triggered[user];
                if time >= users.exposed[user] && known.is_none_or(|known| time < known) {
                    *known = Some(time);
                }
            }
            Ok(0)
        };
        self.of_users(self.start(&sql).await?, users, found).await?;
        users.assigned.clone_from(&users.exposed);
        users.is_triggered = triggered.iter().map(Option::is_some).collect();
        for (exposed, triggered) in users.exposed.iter_mut().zip(triggered) {
            *exposed = triggered.unwrap_or(*exposed);
        }
        Ok(())
    }

    /// The events of definitions of one kind: user, time and currency, and for each definition whether an event is one of its, the value, and the
    /// text by which it is told apart.
    fn events(&self, definitions: &[&Definition]) -> Result<DataFrame, DataFusionError> {
        let table = definitions.first().and_then(|first| table(first.kind, self.scope, self.snapshot.project()));
        let table = table.ok_or_else(|| DataFusionError::Internal("no table events".to_owned()))?;
        let schema = DFSchema::try_from(table.schema().as_ref().clone())?;
        let scan = provider_as_source(Session::scan_of(table, self.snapshot));
        let source = LogicalPlanBuilder::scan("events", scan, None)?.build()?;
        let mut events = DataFrame::new(self.session.state().clone(), source).filter(!col("is_bot"))?;
        // What is filtered Postgres is told, too.
        if definitions.iter().all(|definition| !definition.events.is_empty()) {
            let mut names: Vec<&str> = definitions.iter().flat_map(|definition| &definition.events).map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            events = events.filter(is_named(names))?;
        }
        let has_amounts = definitions.iter().any(|definition| definition.has_amounts());
        let currency = if has_amounts { col("currency") } else { null(DataType::Utf8View)? };
        let mut columns =
            vec![col("user_key"), col("event_time").alias("time"), cast(currency, DataType::Utf8View).alias("currency")];
        for (place, definition) in definitions.iter().enumerate() {
            let [is_one, value, text] = self.columns(definition, &schema)?;
            if definitions.len() == 1 && definition.condition.is_some() {
                events = events.filter(is_one.clone())?;
            }
            columns.extend([
                is_one.alias(format!("is_one_{place}")),
                value.alias(format!("value_{place}")),
                text.alias(format!("text_{place}")),
            ]);
        }
        events.select(columns)
    }

    /// Whether an event is one of a definition's, its value, and the text by which it is told apart.
    fn columns(&self, definition: &Definition, schema: &DFSchema) -> Result<[Expr; OWN], DataFusionError> {
        let external = |error: ApiError| DataFusionError::Plan(error.message);
        let condition = of_definition(definition, "where", self.session, schema).map_err(external)?;
        let property = property(definition, "value").map_err(external)?;
        let (state, decimal) = (self.session.state(), DataType::Decimal128(20, 6));
        let value = match &property {
            Some(Property::Column(AMOUNT)) if definition.per_user.needs_number() => col(AMOUNT),
            Some(property) if definition.per_user.needs_number() => try_cast(property.expr(state)?, decimal),
            _ => null(decimal)?,
        };
        let told_apart = match &property {
            Some(property) if definition.per_user == PerUser::Distinct => property.expr(state)?,
            _ => lit(""),
        };
        let mut is_one = match (condition, definition.events.as_slice()) {
            // All that are read have these names.
            (Some(condition), _) => condition,
            (None, []) => lit(true),
            (None, names) => is_named(names.iter().map(String::as_str)),
        };
        // Who tells values apart has nothing to tell where there is none.
        if definition.per_user == PerUser::Distinct {
            is_one = is_one.and(told_apart.clone().is_not_null());
        }
        Ok([is_one, value, cast(told_apart, DataType::Utf8View)])
    }
}

fn is_named<'a>(names: impl IntoIterator<Item = &'a str>) -> Expr {
    in_list(col("event"), names.into_iter().map(lit).collect(), false)
}

fn null(kind: DataType) -> Result<Expr, DataFusionError> {
    ScalarValue::try_from(&kind).map(lit)
}
