//! [`Moments`] as an aggregate of DataFusion: `exact_moments(value)`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, i256};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility};

use crate::statistics::moments::{Moments, Overflow};

/// The aggregate `exact_moments(value)` over decimals with 6 decimals: number, sum and sum of squares, as the bytes that
/// [`decode`] reads. A null is no value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExactMoments {
    signature: Signature,
}

/// What the aggregate takes.
pub const VALUE_TYPE: DataType = DataType::Decimal128(38, 6);

impl Default for ExactMoments {
    fn default() -> Self {
        ExactMoments { signature: Signature::exact(vec![VALUE_TYPE], Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for ExactMoments {
    fn name(&self) -> &str {
        "exact_moments"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "moments"), DataType::Binary, true))])
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup(Groups { moments: vec![Moments::default()] })))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { moments: Vec::new() }))
    }
}

/// Users, sum, sum of squares, each little-endian.
const BYTES: usize = 8 + 16 + 32;

fn encode(moments: &Moments) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes[..8].copy_from_slice(&moments.users().to_le_bytes());
    bytes[8..24].copy_from_slice(&moments.sum().to_le_bytes());
    bytes[24..].copy_from_slice(&moments.squares().to_le_bytes());
    bytes
}

/// Reads the result of the aggregate.
/// # Errors
/// If the bytes are of another origin.
pub fn decode(bytes: &[u8]) -> Result<Moments> {
    let Ok([a, b, c, d, e, f, g, h, rest @ ..]) = <[u8; BYTES]>::try_from(bytes) else {
        return Err(DataFusionError::Internal(format!("moments of {} bytes are damaged", bytes.len())));
    };
    let mut sum = [0; 16];
    sum.copy_from_slice(&rest[..16]);
    let mut squares = [0; 32];
    squares.copy_from_slice(&rest[16..]);
    let users = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    Ok(Moments::from_parts(users, i128::from_le_bytes(sum), i256::from_le_bytes(squares)))
}

fn overflow(error: Overflow) -> DataFusionError {
    DataFusionError::Execution(error.to_string())
}

#[derive(Debug)]
struct Groups {
    moments: Vec<Moments>,
}

impl Groups {
    fn update(&mut self, values: &[ArrayRef], group_of: impl Fn(usize) -> usize, filter: Option<&BooleanArray>) -> Result<()> {
        let values = values[0].as_primitive::<Decimal128Type>();
        for row in 0..values.len() {
            if values.is_valid(row) && filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.moments[group_of(row)].add(values.value(row)).map_err(overflow)?;
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &[ArrayRef], group_of: impl Fn(usize) -> usize) -> Result<()> {
        let states: &BinaryArray = states[0].as_binary();
        for (row, state) in states.iter().enumerate() {
            if let Some(state) = state {
                self.moments[group_of(row)].merge(&decode(state)?).map_err(overflow)?;
            }
        }
        Ok(())
    }

    fn emit(&mut self, emit_to: EmitTo) -> ArrayRef {
        let moments = emit_to.take_needed(&mut self.moments);
        Arc::new(BinaryArray::from_iter_values(moments.iter().map(encode)))
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(&mut self, values: &[ArrayRef], groups: &[usize], filter: Option<&BooleanArray>, total: usize) -> Result<()> {
        self.moments.resize(total, Moments::default());
        self.update(values, |row| groups[row], filter)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        Ok(self.emit(emit_to))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit_to)])
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.moments.resize(total, Moments::default());
        self.merge(values, |row| groups[row])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut each = Groups { moments: vec![Moments::default(); values[0].len()] };
        each.update(values, |row| row, filter)?;
        Ok(vec![each.emit(EmitTo::All)])
    }

    fn size(&self) -> usize {
        self.moments.capacity() * size_of::<Moments>()
    }
}

#[derive(Debug)]
struct OneGroup(Groups);

impl Accumulator for OneGroup {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update(values, |_| 0, None)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Binary(Some(encode(&self.0.moments[0]).to_vec())))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + size_of::<Moments>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.merge(values, |_| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Decimal128Array, Int32Array};
    use arrow::record_batch::RecordBatch;
    use datafusion::datasource::MemTable;
    use datafusion::logical_expr::AggregateUDF;
    use datafusion::prelude::{SessionConfig, SessionContext};

    #[test]
    fn bytes_are_read_back() {
        let mut moments = Moments::default();
        for value in [-5, 99_999_999_999_999_999_999, 0, -1] {
            moments.add(value).expect("fits");
        }
        assert_eq!(decode(&encode(&moments)).expect("whole"), moments);
        assert!(decode(&encode(&moments)[1..]).is_err());
    }

    #[tokio::test]
    async fn groups_over_partitions_are_those_of_one_pass() {
        let rows: Vec<(i32, Option<i128>)> =
            (0..500).map(|i| (i % 7, (i % 11 != 0).then_some(i128::from(i) * 1_234_567 - 200_000_000))).collect();
        let batch = |rows: &[(i32, Option<i128>)]| {
            let groups: Int32Array = rows.iter().map(|(group, _)| *group).collect();
            let values: Decimal128Array = rows.iter().map(|(_, value)| *value).collect();
            let values = values.with_precision_and_scale(38, 6).expect("fits");
            RecordBatch::try_from_iter_with_nullable([("g", Arc::new(groups) as ArrayRef, false), ("v", Arc::new(values), true)])
                .expect("a batch")
        };
        let partitions: Vec<Vec<RecordBatch>> = rows.chunks(120).map(|part| part.chunks(9).map(batch).collect()).collect();
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(8));
        context.register_udaf(AggregateUDF::from(ExactMoments::default()));
        let table = MemTable::try_new(batch(&[]).schema(), partitions).expect("a table");
        context.register_table("t", Arc::new(table)).expect("registered");
        let expected = |wanted: Option<i32>| {
            let mut moments = Moments::default();
            for (group, value) in &rows {
                if wanted.is_none_or(|wanted| wanted == *group) {
                    value.map(|value| moments.add(value).expect("fits"));
                }
            }
            moments
        };
        let batches = context.sql("SELECT g, exact_moments(v) FROM t GROUP BY g").await.expect("planned").collect().await;
        let mut groups = 0;
        for batch in batches.expect("run") {
            let keys = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
            for row in 0..batch.num_rows() {
                let found = decode(batch.column(1).as_binary::<i32>().value(row)).expect("whole");
                assert_eq!(found, expected(Some(keys.value(row))));
                groups += 1;
            }
        }
        assert_eq!(groups, 7);
        let all = context.sql("SELECT exact_moments(v) FROM t").await.expect("planned").collect().await.expect("run");
        assert_eq!(decode(all[0].column(0).as_binary::<i32>().value(0)).expect("whole"), expected(None));
    }
}
