//! Aggregates of SQL beside `window_funnel`: patterns of events, and who came back.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListArray, TimestampMicrosecondArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, TimeUnit};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, GroupsAccumulator, Signature, TypeSignature, Volatility};

use super::algorithm::Entry;
use super::groups::{Computes, Groups, OneGroup, constant, is_text, no_condition, state_fields, time_type};
use super::rules::STEPS_MAX;
use super::sequence::Pattern;

/// What is asked of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    Match,
    Count,
    Events,
}

/// The SQL aggregates `sequence_match(pattern, ts, condition, ..)`, whether the events of a group match; `sequence_count`, how often, without
/// overlaps; `sequence_match_events`, the times of the events that the first match names. Times in the pattern are seconds where `ts` is a
/// timestamp, else of `ts`' own unit. Events of one time are taken in the order in which they come, which is not defined.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SequenceMatch {
    wanted: Wanted,
    signature: Signature,
}

impl SequenceMatch {
    /// Returns all three.
    pub fn all() -> [Self; 3] {
        let signature = || Signature::new(TypeSignature::UserDefined, Volatility::Immutable);
        [Wanted::Match, Wanted::Count, Wanted::Events].map(|wanted| SequenceMatch { wanted, signature: signature() })
    }

    fn computes(&self, args: &AccumulatorArgs) -> Result<Box<dyn Computes>> {
        let times = args.expr_fields[1].data_type().clone();
        let unit = if matches!(times, DataType::Timestamp(..)) { 1_000_000 } else { 1 };
        let pattern = constant(&args.exprs[0], self.name())?.try_as_str().flatten().unwrap_or_default();
        match Pattern::parse(pattern, args.exprs.len() - 2, unit) {
            Ok(pattern) => Ok(Box::new(Sequence { wanted: self.wanted, pattern, times })),
            Err(fault) => plan_err!("{}: {fault}", self.name()),
        }
    }
}

impl AggregateUDFImpl for SequenceMatch {
    fn name(&self) -> &str {
        match self.wanted {
            Wanted::Match => "sequence_match",
            Wanted::Count => "sequence_count",
            Wanted::Events => "sequence_match_events",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(match self.wanted {
            Wanted::Match => DataType::Boolean,
            Wanted::Count => DataType::Int64,
            Wanted::Events => DataType::List(Arc::new(Field::new_list_field(types[1].clone(), true))),
        })
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let name = self.name();
        let usage = format!("{name}(pattern, ts, condition, ..) takes a text, a time, and 1 to 32 conditions");
        if types.len() < 3 || types.len() > STEPS_MAX + 2 || !is_text(&types[0]) {
            return plan_err!("{usage}; found {} arguments", types.len());
        }
        let Some(times) = time_type(&types[1]) else {
            return plan_err!("{usage}; found a time of type {}", types[1]);
        };
        if let Some(other) = no_condition(&types[2..]) {
            return plan_err!("{usage}; found a condition of type {other}");
        }
        let conditions = std::iter::repeat_n(DataType::Boolean, types.len() - 2);
        Ok([DataType::Utf8, times].into_iter().chain(conditions).collect())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(state_fields(&args))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup(Groups::new(self.computes(&args)?, 1))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(self.computes(&args)?, 1)))
    }
}

#[derive(Debug)]
struct Sequence {
    wanted: Wanted,
    pattern: Pattern,
    times: DataType,
}

impl Sequence {
    fn find(&self, events: &[(i64, u32)]) -> Result<Option<(usize, Vec<usize>)>> {
        self.pattern.find(events).map_err(DataFusionError::Execution)
    }
}

impl Computes for Sequence {
    fn counts(&self, mask: u32) -> bool {
        mask != 0
    }

    fn keeps_arrival(&self) -> bool {
        true
    }

    fn compute(&self, entries: &[Entry], groups: usize) -> Result<ArrayRef> {
        let mut of_group: Vec<Vec<(i64, u32)>> = vec![Vec::new(); groups];
        for entry in entries {
            of_group[entry.user as usize].push((entry.time, entry.mask));
        }
        Ok(match self.wanted {
            Wanted::Match => {
                let matches = of_group.iter().map(|events| Ok(Some(self.find(events)?.is_some())));
                Arc::new(matches.collect::<Result<BooleanArray>>()?)
            }
            Wanted::Count => {
                let count = |events: &Vec<(i64, u32)>| self.pattern.count(events).map(Some).map_err(DataFusionError::Execution);
                Arc::new(of_group.iter().map(count).collect::<Result<Int64Array>>()?)
            }
            Wanted::Events => {
                let (mut times, mut lengths) = (Vec::new(), Vec::with_capacity(groups));
                for events in &of_group {
                    let places = self.find(events)?.map(|(_, places)| places).unwrap_or_default();
                    lengths.push(places.len());
                    times.extend(places.into_iter().map(|place| events[place].0));
                }
                let times: ArrayRef = match &self.times {
                    DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                        Arc::new(TimestampMicrosecondArray::from(times).with_timezone_opt(zone.clone()))
                    }
                    DataType::Int64 => Arc::new(Int64Array::from(times)),
                    other => return exec_err!("a sequence over times of type {other}"),
                };
                let field = Arc::new(Field::new_list_field(self.times.clone(), true));
                Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), times, None))
            }
        })
    }
}

/// The SQL aggregate `retention(condition, ..)`: a list of a 1 or 0 for each condition: whether some row of the group meets the first one,
/// and for each further one whether some row meets the first and some row meets it. Neither order nor time counts: dates belong into the
/// conditions, as in ClickHouse's function of this name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Retention {
    signature: Signature,
}

impl Default for Retention {
    fn default() -> Self {
        Retention { signature: Signature::new(TypeSignature::UserDefined, Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Retention {
    fn name(&self) -> &str {
        "retention"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true))))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if types.is_empty() || types.len() > STEPS_MAX || no_condition(types).is_some() {
            return plan_err!("retention(condition, ..) takes 1 to {STEPS_MAX} conditions; found {types:?}");
        }
        Ok(vec![DataType::Boolean; types.len()])
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "met"), DataType::Int64, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Met { conditions: args.exprs.len(), met: 0 }))
    }
}

/// Which conditions some row has met.
#[derive(Debug)]
struct Met {
    conditions: usize,
    met: u32,
}

impl Accumulator for Met {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for (condition, values) in values.iter().enumerate() {
            self.met |= u32::from(values.as_boolean().true_count() > 0) << condition;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let has = |condition: usize| i32::from(self.met & 1 != 0 && self.met & (1 << condition) != 0);
        let list: Int32Array = (0..self.conditions).map(|condition| Some(has(condition))).collect();
        Ok(SingleRowListArrayBuilder::new(Arc::new(list)).build_list_scalar())
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Int64(Some(i64::from(self.met)))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let met = states[0].as_primitive::<Int64Type>();
        self.met |= met.iter().flatten().fold(0, |all, met| all | met as u32);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::logical_expr::AggregateUDF;
    use datafusion::prelude::{SessionConfig, SessionContext};

    async fn run(sql: &str) -> Result<String> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(2));
        for function in SequenceMatch::all() {
            context.register_udaf(AggregateUDF::from(function));
        }
        context.register_udaf(AggregateUDF::from(Retention::default()));
        let table =
            "CREATE TABLE e AS SELECT * FROM (VALUES ('u', 1, 'a'), ('u', 2, 'c'), ('u', 9, 'b'), ('v', 3, 'b'), ('v', 5, 'a'),
                     ('v', 7, 'x'), ('v', 8, 'b'), ('w', 1, 'b')) v(u, t, event)";
        context.sql(table).await?.collect().await?;
        Ok(pretty_format_batches(&context.sql(sql).await?.collect().await?)?.to_string())
    }

    #[tokio::test]
    async fn patterns_are_found_in_each_group() {
        let call = |function: &str, pattern: &str| {
            format!(
                "SELECT u, {function}('{pattern}', t, event = 'a', event = 'b', event = 'c') AS found FROM e GROUP BY u ORDER BY u"
            )
        };
        let column = |table: String| {
            let cells = table.lines().skip(3).filter_map(|line| line.split('|').nth(2).map(|cell| cell.trim().to_owned()));
            cells.collect::<Vec<_>>()
        };
        let check = async |function: &str, pattern: &str, expected: [&str; 3]| {
            assert_eq!(column(run(&call(function, pattern)).await.expect("rows")), expected, "{function} {pattern}");
        };
        check("sequence_match", "(?1)(?2)", ["false", "true", "false"]).await;
        check("sequence_match", "(?1).*(?2)", ["true", "true", "false"]).await;
        check("sequence_match", "(?1)(?t<=3)(?2)", ["false", "true", "false"]).await;
        check("sequence_count", "(?2)", ["1", "2", "1"]).await;
        check("sequence_match_events", "(?1).*(?2)", ["[1, 9]", "[5, 8]", "[]"]).await;
        let refused = run(&call("sequence_match", "(?4)")).await.expect_err("there are three").to_string();
        assert!(refused.contains("(?1) to (?3)"), "{refused}");
        let times =
            "SELECT 1, sequence_match('(?1)(?t<=60)(?2)', ts, n = 1, n = 2) FROM (VALUES (1, timestamp '2026-03-01T00:00:00'),
                     (2, timestamp '2026-03-01T00:01:00')) v(n, ts)";
        assert_eq!(column(run(times).await.expect("rows")), ["true"]);
    }

    #[tokio::test]
    async fn retention_has_neither_order_nor_time() {
        let sql = "SELECT u, retention(event = 'a', event = 'b', event = 'c') AS r FROM e GROUP BY u ORDER BY u";
        let table = run(sql).await.expect("rows");
        for row in ["| u | [1, 1, 1] |", "| v | [1, 1, 0] |", "| w | [0, 0, 0] |"] {
            assert!(table.contains(row), "{table}");
        }
    }
}
