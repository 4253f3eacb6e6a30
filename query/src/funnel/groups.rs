//! What the aggregates of events in order have in common: a log of the events that count, 16 bytes each, for all groups together, which is
//! sorted when results are asked for. Rows may therefore arrive in any order, in any batches, and partial results merge by putting their
//! logs together.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::StateFieldsArgs;
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, EmitTo, GroupsAccumulator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Literal;

use super::algorithm::{Entry, Log};

/// What is made of the events of each group.
pub(super) trait Computes: fmt::Debug + Send + Sync {
    /// Returns whether an event counts that meets these conditions; bit k is the k-th.
    fn counts(&self, mask: u32) -> bool;

    /// Returns whether events of one time are wanted in the order in which they came.
    fn keeps_arrival(&self) -> bool {
        false
    }

    /// Returns a value for each group, from the sorted events of all of them.
    /// # Errors
    /// What cannot be computed.
    fn compute(&self, entries: &[Entry], groups: usize) -> Result<ArrayRef>;
}

/// The one column of a partial result.
pub(super) fn state_fields(args: &StateFieldsArgs) -> Vec<FieldRef> {
    vec![Arc::new(Field::new(format_state_name(args.name, "events"), DataType::Binary, true))]
}

/// Returns the value of an argument of `function` that is a constant.
pub(super) fn constant<'a>(expr: &'a Arc<dyn PhysicalExpr>, function: &str) -> Result<&'a ScalarValue> {
    match expr.downcast_ref::<Literal>() {
        Some(literal) => Ok(literal.value()),
        None => plan_err!("the arguments of {function} before the time are constants"),
    }
}

/// Returns the type that times are compared in; none if they are no times.
pub(super) fn time_type(found: &DataType) -> Option<DataType> {
    match found {
        DataType::Timestamp(_, zone) => Some(DataType::Timestamp(TimeUnit::Microsecond, zone.clone())),
        DataType::Date32 => Some(DataType::Timestamp(TimeUnit::Microsecond, None)),
        whole if whole.is_integer() => Some(DataType::Int64),
        _ => None,
    }
}

/// Returns the first type that is no condition's.
pub(super) fn no_condition(types: &[DataType]) -> Option<&DataType> {
    types.iter().find(|data_type| !matches!(data_type, DataType::Boolean | DataType::Null))
}

pub(super) fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8)
}

/// The events of all groups.
#[derive(Debug)]
pub(super) struct Groups {
    computes: Box<dyn Computes>,
    /// The argument that is the time; those after it are the conditions.
    first: usize,
    log: Log,
    groups: usize,
}

/// Bytes of one event in a partial result: its time, its mask, both little-endian.
const STATE_ENTRY_BYTES: usize = 12;

impl Groups {
    /// Starts without events. `first` is the argument that is the time.
    pub(super) fn new(computes: Box<dyn Computes>, first: usize) -> Self {
        Groups { computes, first, log: Log::default(), groups: 0 }
    }

    /// Calls `take` with row, time and mask of every row that counts and passes the filter.
    fn for_each(&self, values: &[ArrayRef], filter: Option<&BooleanArray>, take: impl FnMut(usize, i64, u32)) -> Result<()> {
        let first = self.first;
        let times = match values[first].data_type() {
            DataType::Int64 => values[first].as_primitive::<Int64Type>().values(),
            DataType::Timestamp(TimeUnit::Microsecond, _) => values[first].as_primitive::<TimestampMicrosecondType>().values(),
            other => return exec_err!("a funnel over times of type {other}"),
        };
        let rows = values[first].len();
        let mut masks = vec![0u32; rows];
        if let DataType::Int64 = values[first + 1].data_type() {
            // All conditions are in one column.
            let given = values[first + 1].as_primitive::<Int64Type>();
            masks.iter_mut().zip(given.iter()).for_each(|(mask, given)| *mask = given.unwrap_or_default() as u32);
            return self.take_rows(values, &masks, times, filter, take);
        }
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
        self.take_rows(values, &masks, times, filter, take)
    }

    fn take_rows(
        &self,
        values: &[ArrayRef],
        masks: &[u32],
        times: &[i64],
        filter: Option<&BooleanArray>,
        mut take: impl FnMut(usize, i64, u32),
    ) -> Result<()> {
        let passes = |row: usize| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        for (row, mask) in masks.iter().enumerate() {
            if self.computes.counts(*mask) && values[self.first].is_valid(row) && passes(row) {
                take(row, times[row], *mask);
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

    fn drain_one(&mut self) -> Vec<Entry> {
        self.log.drain_users(1, self.computes.keeps_arrival())
    }

    /// Takes the first groups out: their number and their entries in order.
    fn drain(&mut self, emit_to: EmitTo) -> (usize, Vec<Entry>) {
        let groups = match emit_to {
            EmitTo::All => self.groups,
            EmitTo::First(groups) => groups,
        };
        self.groups -= groups;
        (groups, self.log.drain_users(groups as u32, self.computes.keeps_arrival()))
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
        self.computes.compute(&entries, groups)
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
pub(super) struct OneGroup(pub(super) Groups);

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update(values, |_| 0, None)
    }

    /// May be called again after more rows, as window functions do: the events stay.
    fn evaluate(&mut self) -> Result<ScalarValue> {
        let entries = self.0.drain_one();
        let found = self.0.computes.compute(&entries, 1);
        for entry in entries {
            self.0.log.push(entry);
        }
        ScalarValue::try_from_array(&found?, 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.log.size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let state = states(1, &self.0.drain_one());
        Ok(vec![ScalarValue::try_from_array(&state, 0).map_err(|error| DataFusionError::Internal(error.to_string()))?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.merge(values, |_| 0)
    }
}
