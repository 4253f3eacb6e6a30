//! `funnel(ts, mask, options)`, the funnel of `POST /v1/funnels` as an aggregate of SQL: how far a group got, and when.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, Int64Array, ListArray, StructArray, TimestampMicrosecondArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, TimeUnit};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, GroupsAccumulator, Signature, TypeSignature, Volatility};
use serde_json::{Value, json};

use super::algorithm::Entry;
use super::definition::{Count, Definition, Entry as EntryOption, Ties};
use super::groups::{Computes, Groups, OneGroup, constant, is_text, state_fields, time_type};
use super::rules::{Event, Outcome, Rules, STEPS_MAX};
use super::scan::{Order, Scan};

const NAME: &str = "funnel";
const USAGE: &str = "funnel(ts, mask, options) takes a time, a whole number whose bit k says that the row may be step k + 1, and a text such as \
                     '{\"steps\": 3, \"window\": \"1d\"}' with options of POST /v1/funnels";

/// The SQL aggregate `funnel(ts, mask, options)`: a struct of the `level` that a group reached, the `start` of the chain that is reported, and
/// the `times` of its steps; the last two are null and empty where nothing was reached. Options are those of a funnel that concern one unit;
/// `steps` is their number. Durations are of the unit of `ts`: microseconds of timestamps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FunnelFunction {
    signature: Signature,
}

impl Default for FunnelFunction {
    fn default() -> Self {
        FunnelFunction { signature: Signature::new(TypeSignature::UserDefined, Volatility::Immutable) }
    }
}

fn fields(times: &DataType) -> Fields {
    let list = DataType::List(Arc::new(Field::new_list_field(times.clone(), true)));
    Fields::from(vec![
        Field::new("level", DataType::Int32, false),
        Field::new("start", times.clone(), true),
        Field::new("times", list, false),
    ])
}

impl FunnelFunction {
    fn computes(args: &AccumulatorArgs) -> Result<Box<dyn Computes>> {
        let text = constant(&args.exprs[2], NAME)?.try_as_str().flatten().unwrap_or_default();
        match options(text) {
            Ok(definition) => {
                let times = args.expr_fields[0].data_type().clone();
                Ok(Box::new(Exact { order: definition.order, rules: definition.rules(), times }))
            }
            Err(fault) => plan_err!("{NAME}: {fault}"),
        }
    }
}

/// Reads the options: a funnel whose steps are a number.
fn options(text: &str) -> std::result::Result<Definition, String> {
    let mut body: Value = serde_json::from_str(text).map_err(|error| format!("the options are not JSON: {error}"))?;
    let steps = body.get("steps").and_then(Value::as_u64).filter(|steps| (1..=STEPS_MAX as u64).contains(steps));
    let steps = steps.ok_or_else(|| format!("`steps` is the number of steps, 1 to {STEPS_MAX}"))?;
    body["steps"] = (0..steps).map(|step| json!({"name": step.to_string(), "events": ["-"]})).collect();
    let definition = Definition::parse(body.to_string().as_bytes()).map_err(|refusal| {
        let field = refusal.field.map(|field| format!("{field}: ")).unwrap_or_default();
        format!("{field}{}", refusal.message)
    })?;
    let is_of_one_unit = definition.from.is_none()
        && definition.to.is_none()
        && definition.exclude.is_empty()
        && definition.hold_constant.is_empty()
        && definition.count == Count::Uniques
        && definition.breakdown.is_none()
        && definition.experiment.is_none()
        && definition.entry != EntryOption::Exposure
        && definition.trend.is_none()
        && definition.time_to_convert.is_none()
        && definition.units.is_empty()
        && definition.tie_tolerance_us == 0
        && definition.ties != Ties::Arrival;
    if is_of_one_unit {
        Ok(definition)
    } else {
        Err("the options concern one group: windows, order, entry, event_reuse and the like".to_owned())
    }
}

impl AggregateUDFImpl for FunnelFunction {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Struct(fields(&types[0])))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        match types {
            [times, mask, options] if mask.is_integer() && is_text(options) => match time_type(times) {
                Some(times) => Ok(vec![times, DataType::Int64, DataType::Utf8]),
                None => plan_err!("{USAGE}; found a time of type {times}"),
            },
            _ => plan_err!("{USAGE}; found {types:?}"),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(state_fields(&args))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(OneGroup(Groups::new(Self::computes(&args)?, 0))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(Self::computes(&args)?, 0)))
    }
}

#[derive(Debug)]
struct Exact {
    order: Order,
    rules: Rules,
    times: DataType,
}

impl Computes for Exact {
    fn counts(&self, mask: u32) -> bool {
        mask != 0 || matches!(self.order, Order::Contiguous | Order::StrictOrder)
    }

    fn compute(&self, entries: &[Entry], groups: usize) -> Result<ArrayRef> {
        let mut found: Vec<Option<Outcome>> = vec![None; groups];
        let mut scan = Scan::new(self.order, self.rules.clone());
        let all = if self.rules.steps == STEPS_MAX { u32::MAX } else { (1 << self.rules.steps) - 1 };
        for own in entries.chunk_by(|a, b| a.user == b.user) {
            scan.reset(None);
            for together in own.chunk_by(|a, b| a.time == b.time) {
                let events: Vec<Event> =
                    together.iter().map(|entry| Event { mask: entry.mask & all, ..Event::default() }).collect();
                scan.take(together[0].time, &events, true);
            }
            let mut outcome = Outcome::default();
            scan.outcome(&mut outcome);
            found[own[0].user as usize] = Some(outcome).filter(Outcome::has_entered);
        }
        let (mut levels, mut starts, mut times, mut lengths) = (Int32Builder::new(), Vec::new(), Vec::new(), Vec::new());
        for outcome in &found {
            let done = outcome.iter().flat_map(|outcome| outcome.steps.iter().flatten().map(|done| done.time));
            let before = times.len();
            times.extend(done);
            lengths.push(times.len() - before);
            let level = outcome.as_ref().and_then(|outcome| outcome.top(&self.rules)).map_or(0, |top| top as i32 + 1);
            levels.append_value(level);
            starts.push(outcome.as_ref().map_or(0, |outcome| outcome.start));
        }
        let array = |values: Vec<i64>, nulls: Option<NullBuffer>| -> Result<ArrayRef> {
            Ok(match &self.times {
                DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                    Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone_opt(zone.clone()))
                }
                DataType::Int64 => Arc::new(Int64Array::new(values.into(), nulls)),
                other => return exec_err!("a funnel over times of type {other}"),
            })
        };
        let has_start: NullBuffer = found.iter().map(Option::is_some).collect::<Vec<bool>>().into();
        let item = Arc::new(Field::new_list_field(self.times.clone(), true));
        let list = ListArray::new(item, OffsetBuffer::from_lengths(lengths), array(times, None)?, None);
        let columns: Vec<ArrayRef> = vec![Arc::new(levels.finish()), array(starts, Some(has_start))?, Arc::new(list)];
        Ok(Arc::new(StructArray::new(fields(&self.times), columns, None)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_one_unit() {
        let rules = options(r#"{"steps": 3, "window": 10, "strict_increase": true}"#).expect("options").rules();
        assert_eq!(rules, Rules { strict_increase: true, ..Rules::new(3, 10) });
        for (wrong, text) in [
            ("", "not JSON"),
            ("{}", "`steps` is the number"),
            (r#"{"steps": 33}"#, "1 to 32"),
            (r#"{"steps": 2, "window": "soon"}"#, "window: "),
            (r#"{"steps": 2, "count": "totals"}"#, "concern one group"),
            (r#"{"steps": 2, "from": "2026-03-01"}"#, "concern one group"),
        ] {
            let fault = options(wrong).expect_err(wrong);
            assert!(fault.contains(text), "{wrong}: {fault}");
        }
    }
}
