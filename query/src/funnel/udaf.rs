//! The funnel as an aggregate of DataFusion: `window_funnel` in SQL, and [`FunnelLevel`], which the funnel route uses.
//!
//! Both hold a log of the events that match a step, 16 bytes each, for all groups together, and sort it when levels are
//! asked for. Rows may therefore arrive in any order, in any batches, and partial results merge by putting their logs
//! together: the level never depends on how a query was split.

use std::hash::Hash;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Int32Array};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, IntervalUnit, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, TypeSignature, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use super::algorithm::{Chains, Entry, Log, STEPS_MAX, Semantics, levels};

/// What a funnel needs beside its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FunnelParameters {
    /// Number of steps, 1 to 32.
    pub steps: usize,
    /// In the unit of the times; not negative.
    pub window: i64,
    /// What may follow what.
    pub semantics: Semantics,
}

/// The aggregate `funnel_level(time, mask)` of one funnel: the level that the rows of a group reach. Bit k of the mask, a
/// bigint, says that the row may be step k + 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FunnelLevel {
    parameters: FunnelParameters,
    signature: Signature,
}

impl FunnelLevel {
    /// Makes the aggregate of one funnel.
    pub fn new(parameters: FunnelParameters) -> Self {
        let times = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        FunnelLevel { parameters, signature: Signature::exact(vec![times, DataType::Int64], Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for FunnelLevel {
    fn name(&self) -> &str {
        "funnel_level"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        state_fields(&args)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup(Groups::new(self.parameters, Inputs::Mask))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(self.parameters, Inputs::Mask)))
    }
}

/// The SQL aggregate `window_funnel(window, [modes,] ts, condition, ..)`: the number of the last condition that a group
/// reached in order, within the window from the first.
///
/// The window is an interval without months, or a whole number: of seconds where `ts` is a timestamp, else of `ts`' own
/// unit. Modes are a text with any of `strict_once` (a row fills one step of a chain at most) and `strict_increase` (each
/// step is later than the one before). Without modes a row may fill several steps that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowFunnel {
    signature: Signature,
}

impl Default for WindowFunnel {
    fn default() -> Self {
        WindowFunnel { signature: Signature::new(TypeSignature::UserDefined, Volatility::Immutable) }
    }
}

const USAGE: &str = "window_funnel(window, [modes,] ts, condition, ..) takes an interval or a whole number, optionally a text of \
                     modes, a time, and 1 to 32 conditions";

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

impl WindowFunnel {
    fn parameters(args: &AccumulatorArgs) -> Result<(FunnelParameters, usize)> {
        let types: Vec<&DataType> = args.expr_fields.iter().map(|field| field.data_type()).collect();
        let has_modes = types.get(1).is_some_and(|data_type| is_text(data_type));
        let ts = if has_modes { 2 } else { 1 };
        let semantics = match has_modes {
            true => semantics(constant(&args.exprs[1])?)?,
            false => Semantics { reuse: true, strict_increase: false },
        };
        let window = window(constant(&args.exprs[0])?, types[ts])?;
        Ok((FunnelParameters { steps: types.len() - ts - 1, window, semantics }, ts))
    }
}

/// Returns the value of a constant argument.
fn constant(expr: &Arc<dyn PhysicalExpr>) -> Result<&ScalarValue> {
    match expr.downcast_ref::<Literal>() {
        Some(literal) => Ok(literal.value()),
        None => plan_err!("the window and the modes of window_funnel are constants"),
    }
}

fn semantics(modes: &ScalarValue) -> Result<Semantics> {
    let mut semantics = Semantics { reuse: true, strict_increase: false };
    let text = modes.try_as_str().flatten().unwrap_or("");
    for mode in text.split([',', ' ']).filter(|mode| !mode.is_empty()) {
        match mode {
            "strict_once" => semantics.reuse = false,
            "strict_increase" => semantics.strict_increase = true,
            _ => return plan_err!("window_funnel: mode {mode:?} is not known; accepted: strict_once, strict_increase"),
        }
    }
    Ok(semantics)
}

/// Returns the window in the unit in which times are compared.
fn window(window: &ScalarValue, times: &DataType) -> Result<i64> {
    let is_timestamp = matches!(times, DataType::Timestamp(..));
    let found = match window {
        ScalarValue::Int64(Some(count)) if is_timestamp => count.checked_mul(1_000_000),
        ScalarValue::Int64(Some(count)) => Some(*count),
        ScalarValue::IntervalMonthDayNano(Some(interval)) if is_timestamp && interval.months == 0 => {
            i64::from(interval.days).checked_mul(86_400_000_000).and_then(|us| us.checked_add(interval.nanoseconds / 1_000))
        }
        _ => None,
    };
    match found {
        Some(window) if window >= 0 => Ok(window),
        _ => {
            plan_err!(
                "window_funnel: {window} is not a window; accepted: an interval of days or less, or a whole number from 0 on"
            )
        }
    }
}

impl AggregateUDFImpl for WindowFunnel {
    fn name(&self) -> &str {
        "window_funnel"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let modes = types.get(1).filter(|data_type| is_text(data_type));
        let rest = types.get(if modes.is_some() { 2.. } else { 1.. }).unwrap_or_default();
        if rest.len() < 2 || rest.len() > STEPS_MAX + 1 {
            return plan_err!("{USAGE}; found {} conditions", rest.len().saturating_sub(1));
        }
        let window = match &types[0] {
            DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
            whole if whole.is_integer() => DataType::Int64,
            other => return plan_err!("{USAGE}; found a window of type {other}"),
        };
        let times = match &rest[0] {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            DataType::Date32 => DataType::Timestamp(TimeUnit::Microsecond, None),
            whole if whole.is_integer() => DataType::Int64,
            other => return plan_err!("{USAGE}; found a time of type {other}"),
        };
        if let Some(other) = rest[1..].iter().find(|data_type| !matches!(data_type, DataType::Boolean | DataType::Null)) {
            return plan_err!("{USAGE}; found a condition of type {other}");
        }
        let mut coerced = vec![window];
        coerced.extend(modes.map(|_| DataType::Utf8));
        coerced.push(times);
        coerced.extend(rest[1..].iter().map(|_| DataType::Boolean));
        Ok(coerced)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        state_fields(&args)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (parameters, first) = Self::parameters(&args)?;
        Ok(Box::new(OneGroup(Groups::new(parameters, Inputs::Conditions { first }))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let (parameters, first) = Self::parameters(&args)?;
        Ok(Box::new(Groups::new(parameters, Inputs::Conditions { first })))
    }
}

fn state_fields(args: &StateFieldsArgs) -> Result<Vec<FieldRef>> {
    Ok(vec![Arc::new(Field::new(format_state_name(args.name, "events"), DataType::Binary, true))])
}

/// Where times and masks stand among the arguments.
#[derive(Clone, Copy, Debug)]
enum Inputs {
    /// Time and mask.
    Mask,
    /// The time at `first`, then one condition per step.
    Conditions { first: usize },
}

/// The events of all groups.
#[derive(Debug)]
struct Groups {
    parameters: FunnelParameters,
    inputs: Inputs,
    log: Log,
    groups: usize,
}

/// Bytes of one event in a partial result: its time, its mask, both little-endian.
const STATE_ENTRY_BYTES: usize = 12;

impl Groups {
    fn new(parameters: FunnelParameters, inputs: Inputs) -> Self {
        Groups { parameters, inputs, log: Log::default(), groups: 0 }
    }

    /// Calls `take` with row, time and mask of every row that is a step and passes the filter.
    fn for_each(&self, values: &[ArrayRef], filter: Option<&BooleanArray>, mut take: impl FnMut(usize, i64, u32)) -> Result<()> {
        let first = match self.inputs {
            Inputs::Mask => 0,
            Inputs::Conditions { first } => first,
        };
        let times = match values[first].data_type() {
            DataType::Int64 => values[first].as_primitive::<Int64Type>().values(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => values[first].as_primitive::<TimestampMicrosecondType>().values(),
            other => return exec_err!("a funnel over times of type {other}"),
        };
        let rows = values[first].len();
        let masks: Vec<u32> = match self.inputs {
            Inputs::Mask => {
                let masks = values[1].as_primitive::<Int64Type>();
                (0..rows).map(|row| if masks.is_valid(row) { masks.value(row) as u32 } else { 0 }).collect()
            }
            Inputs::Conditions { first } => {
                let mut masks = vec![0u32; rows];
                for (step, condition) in values[first + 1..].iter().enumerate() {
                    let condition = condition.as_boolean();
                    // A condition that is unknown is not true.
                    let met = match condition.nulls() {
                        Some(nulls) => condition.values() & nulls.inner(),
                        None => condition.values().clone(),
                    };
                    for row in met.set_indices() {
                        masks[row] |= 1 << step;
                    }
                }
                masks
            }
        };
        let passes = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        for (row, mask) in masks.into_iter().enumerate() {
            if mask != 0 && values[first].is_valid(row) && passes(row) {
                take(row, times[row], mask);
            }
        }
        Ok(())
    }

    fn update(&mut self, values: &[ArrayRef], group_of: impl Fn(usize) -> usize, filter: Option<&BooleanArray>) -> Result<()> {
        let mut log = std::mem::take(&mut self.log);
        let taken = self.for_each(values, filter, |row, time, mask| {
            // The hash table of a query ends long before 2^32 groups.
            log.push(Entry { user: group_of(row) as u32, time, mask });
        });
        self.log = log;
        taken
    }

    fn merge(&mut self, states: &[ArrayRef], group_of: impl Fn(usize) -> usize) -> Result<()> {
        let states: &BinaryArray = states[0].as_binary();
        for (row, state) in states.iter().enumerate() {
            let (entries, rest) = state.unwrap_or_default().as_chunks::<STATE_ENTRY_BYTES>();
            if !rest.is_empty() {
                return exec_err!("a partial funnel of {} bytes is damaged", state.unwrap_or_default().len());
            }
            for entry in entries {
                let [time @ .., a, b, c, d] = *entry;
                let entry =
                    Entry { user: group_of(row) as u32, time: i64::from_le_bytes(time), mask: u32::from_le_bytes([a, b, c, d]) };
                self.log.push(entry);
            }
        }
        Ok(())
    }

    /// Takes the first groups out: their number and their entries in order.
    fn drain(&mut self, emit_to: EmitTo) -> (usize, Vec<Entry>) {
        let groups = match emit_to {
            EmitTo::All => self.groups,
            EmitTo::First(groups) => groups,
        };
        self.groups -= groups;
        (groups, self.log.drain_users(groups as u32))
    }

    fn levels(&self, groups: usize, entries: &[Entry]) -> Vec<i32> {
        levels(entries, groups, &mut Chains::new(self.parameters.steps, self.parameters.window, self.parameters.semantics))
    }
}

fn states(groups: usize, entries: &[Entry]) -> ArrayRef {
    let mut builder = BinaryBuilder::with_capacity(groups, entries.len() * STATE_ENTRY_BYTES);
    let mut rest = entries;
    let mut state = Vec::new();
    for group in 0..groups {
        let own = rest.partition_point(|entry| entry.user as usize <= group);
        state.clear();
        for entry in &rest[..own] {
            state.extend(entry.time.to_le_bytes());
            state.extend(entry.mask.to_le_bytes());
        }
        builder.append_value(&state);
        rest = &rest[own..];
    }
    Arc::new(builder.finish())
}

impl GroupsAccumulator for Groups {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.groups = total;
        self.update(values, |row| groups[row], filter)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (groups, entries) = self.drain(emit_to);
        Ok(Arc::new(Int32Array::from(self.levels(groups, &entries))))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (groups, entries) = self.drain(emit_to);
        Ok(vec![states(groups, &entries)])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.groups = total;
        self.merge(values, |row| groups[row])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut entries = Vec::new();
        self.for_each(values, filter, |row, time, mask| entries.push(Entry { user: row as u32, time, mask }))?;
        Ok(vec![states(values[0].len(), &entries)])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.log.size()
    }
}

/// The same without groups.
#[derive(Debug)]
struct OneGroup(Groups);

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update(values, |_| 0, None)
    }

    /// May be called again after more rows, as window functions do: the events stay.
    fn evaluate(&mut self) -> Result<ScalarValue> {
        let entries = self.0.log.drain_users(1);
        let level = self.0.levels(1, &entries)[0];
        for entry in entries {
            self.0.log.push(entry);
        }
        Ok(ScalarValue::Int32(Some(level)))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.log.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let state = states(1, &self.0.log.drain_users(1));
        Ok(vec![ScalarValue::try_from_array(&state, 0).map_err(|error| DataFusionError::Internal(error.to_string()))?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.merge(values, |_| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::funnel::algorithm::tests::cases;
    use arrow::array::Int64Array;
    use arrow::record_batch::RecordBatch;
    use datafusion::datasource::MemTable;
    use datafusion::logical_expr::AggregateUDF;
    use datafusion::prelude::{SessionConfig, SessionContext};

    /// Runs a query over rows (user, time, mask) that lie in the given partitions and batches.
    async fn run(partitions: Vec<Vec<Vec<(usize, i64, u32)>>>, sql: &str) -> Vec<(i64, i32)> {
        let batch = |rows: &Vec<(usize, i64, u32)>| {
            let users: Int64Array = rows.iter().map(|(user, ..)| *user as i64).collect();
            let times: Int64Array = rows.iter().map(|(_, time, _)| *time).collect();
            let masks: Int64Array = rows.iter().map(|(.., mask)| i64::from(*mask)).collect();
            let columns: [(&str, ArrayRef); 3] = [("user", Arc::new(users)), ("t", Arc::new(times)), ("mask", Arc::new(masks))];
            RecordBatch::try_from_iter(columns).expect("a batch")
        };
        let partitions: Vec<Vec<RecordBatch>> = partitions.iter().map(|batches| batches.iter().map(batch).collect()).collect();
        let schema = batch(&vec![]).schema();
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(7));
        context.register_udaf(AggregateUDF::from(WindowFunnel::default()));
        context.register_table("e", Arc::new(MemTable::try_new(schema, partitions).expect("a table"))).expect("registered");
        let batches = context.sql(sql).await.expect("planned").collect().await.expect("run");
        let mut rows: Vec<(i64, i32)> = Vec::new();
        for batch in batches {
            let (users, levels) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1));
            let levels = levels.as_primitive::<arrow::datatypes::Int32Type>();
            rows.extend(users.values().iter().copied().zip(levels.values().iter().copied()));
        }
        rows.sort_unstable();
        rows
    }

    #[tokio::test]
    async fn levels_do_not_depend_on_batches_and_partitions() {
        let mut checked = 0;
        for case in cases() {
            let rows: Vec<(usize, i64, u32)> = (case.users.iter().enumerate())
                .flat_map(|(user, (events, _))| events.iter().map(move |(time, mask)| (user, *time, *mask)))
                .collect();
            let conditions: Vec<String> = (0..case.steps).map(|step| format!("mask & {} <> 0", 1u32 << step)).collect();
            let once = if case.semantics.reuse { "" } else { "strict_once" };
            let increase = if case.semantics.strict_increase { ",strict_increase" } else { "" };
            let sql = format!(
                "SELECT \"user\", window_funnel({}, '{once}{increase}', t, {}) FROM e GROUP BY \"user\"",
                case.window,
                conditions.join(", ")
            );
            let expected: Vec<(i64, i32)> =
                case.users.iter().enumerate().map(|(user, (_, level))| (user as i64, *level)).collect();
            let shuffled: Vec<_> = rows.iter().rev().copied().collect();
            let splits = [
                vec![vec![rows.clone()]],
                vec![rows.iter().map(|row| vec![*row]).collect()],
                shuffled.chunks(2).map(|chunk| vec![chunk.to_vec()]).collect(),
            ];
            for split in splits {
                assert_eq!(run(split, &sql).await, expected, "{}: {sql}", case.id);
                checked += 1;
            }
        }
        assert!(checked > 60, "only {checked}");
    }

    #[tokio::test]
    async fn without_groups_and_as_a_window() {
        let rows = vec![vec![vec![(1, 3, 1), (1, 5, 2), (1, 4, 0), (1, 40, 4)]]];
        let all = "SELECT 0, window_funnel(10, t, mask = 1, mask = 2, mask = 4) FROM e";
        assert_eq!(run(rows.clone(), all).await, [(0, 2)]);
        let running = "SELECT t, window_funnel(100, t, mask = 1, mask = 2, mask = 4) OVER (ORDER BY t) FROM e";
        assert_eq!(run(rows.clone(), running).await, [(3, 1), (4, 1), (5, 2), (40, 3)]);
        let filtered = "SELECT 0, window_funnel(10, t, mask = 1, mask = 2) FILTER (WHERE mask <> 2) FROM e";
        assert_eq!(run(rows, filtered).await, [(0, 1)]);
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_refused() {
        let context = SessionContext::new();
        context.register_udaf(AggregateUDF::from(WindowFunnel::default()));
        let check = async |call: &str, expected: Option<&str>| {
            let sql = format!("SELECT {call} FROM (VALUES (1, true, timestamp '2026-01-01T00:00:00', 'a')) v(n, c, ts, s)");
            let found = match context.sql(&sql).await {
                Ok(frame) => frame.collect().await.map(|_| ()),
                Err(error) => Err(error),
            };
            match (found, expected) {
                (Ok(()), None) => {}
                (Err(error), Some(text)) => assert!(error.to_string().contains(text), "{call}: {error}"),
                (found, _) => panic!("{call}: {found:?}"),
            }
        };
        check("window_funnel(1, ts, c)", None).await;
        check("window_funnel(interval '1 day', ts, c, c)", None).await;
        check("window_funnel(interval '90 minutes', 'strict_once strict_increase', ts, c)", None).await;
        check("window_funnel(1, n, c)", None).await;
        check("window_funnel(interval '1 month', ts, c)", Some("not a window")).await;
        check("window_funnel(-1, ts, c)", Some("not a window")).await;
        check("window_funnel(interval '1 day', n, c)", Some("not a window")).await;
        check("window_funnel(n, ts, c)", Some("constants")).await;
        check("window_funnel(1, 'strict_order', ts, c)", Some("strict_order")).await;
        check("window_funnel(1, ts)", Some("0 conditions")).await;
        check("window_funnel(1, ts, n)", Some("a condition of type Int64")).await;
        check("window_funnel('a', ts, c)", Some("a window of type")).await;
        check(&format!("window_funnel(1, ts{})", ", c".repeat(33)), Some("33 conditions")).await;
    }
}
