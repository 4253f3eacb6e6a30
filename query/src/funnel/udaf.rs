//! `window_funnel`, the funnel as an aggregate of SQL, with the modes of ClickHouse's function of this name.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array};
use arrow::datatypes::{DataType, FieldRef, IntervalUnit};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, GroupsAccumulator, Signature, TypeSignature, Volatility};

use super::algorithm::{Entry, levels};
use super::chains::Chains;
use super::groups::{Computes, Groups, OneGroup, constant, is_text, no_condition, state_fields, time_type};
use super::rules::{Rules, STEPS_MAX};

/// The SQL aggregate `window_funnel(window, [mode, ..] ts, condition, ..)`: the number of the last condition that a group
/// reached in order, within the window from the first.
///
/// The window is an interval without months, or a whole number: of seconds where `ts` is a timestamp, else of `ts`' own
/// unit. Modes are texts with any of those in [`MODES`]. Without modes a row may fill several steps that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowFunnel {
    signature: Signature,
}

impl Default for WindowFunnel {
    fn default() -> Self {
        WindowFunnel { signature: Signature::new(TypeSignature::UserDefined, Volatility::Immutable) }
    }
}

const NAME: &str = "window_funnel";
const USAGE: &str = "window_funnel(window, [mode, ..] ts, condition, ..) takes an interval or a whole number, optionally texts of \
                     modes, a time, and 1 to 32 conditions";
/// What a mode changes: `strict_once`, a row fills one step of a chain at most; `strict_increase`, each step is later than the one before;
/// `strict_order`, `allow_reentry` and `strict_deduplication` as [`Rules`] say; `compat_clickhouse`, what ClickHouse gives where it
/// undercounts (under `strict_increase` without `strict_once`).
const MODES: [&str; 6] =
    ["strict_once", "strict_increase", "strict_order", "allow_reentry", "strict_deduplication", "compat_clickhouse"];

impl WindowFunnel {
    fn rules(args: &AccumulatorArgs) -> Result<(Rules, usize)> {
        let types: Vec<&DataType> = args.expr_fields.iter().map(|field| field.data_type()).collect();
        let ts = 1 + modes_among(types.iter().copied());
        let mut rules =
            Rules { reuse: true, ..Rules::new(types.len() - ts - 1, window(constant(&args.exprs[0], NAME)?, types[ts])?) };
        for modes in &args.exprs[1..ts] {
            take_modes(&mut rules, constant(modes, NAME)?)?;
        }
        if rules.allow_reentry && !rules.strict_order {
            return plan_err!("window_funnel: allow_reentry is a mode beside strict_order only");
        }
        Ok((rules, ts))
    }
}

/// Returns how many arguments after the window are texts.
fn modes_among<'a>(types: impl Iterator<Item = &'a DataType>) -> usize {
    types.skip(1).take_while(|data_type| is_text(data_type)).count()
}

fn take_modes(rules: &mut Rules, modes: &ScalarValue) -> Result<()> {
    let text = modes.try_as_str().flatten().unwrap_or("");
    for mode in text.split([',', ' ']).filter(|mode| !mode.is_empty()) {
        match mode {
            "strict_once" => rules.reuse = false,
            "strict_increase" => rules.strict_increase = true,
            "strict_order" => rules.strict_order = true,
            "allow_reentry" => rules.allow_reentry = true,
            "strict_deduplication" => rules.strict_deduplication = true,
            "compat_clickhouse" => rules.is_compatible = true,
            _ => return plan_err!("window_funnel: mode {mode:?} is not known; accepted: {}", MODES.join(", ")),
        }
    }
    Ok(())
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
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int32)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let modes = modes_among(types.iter());
        let rest = types.get(1 + modes..).unwrap_or_default();
        if rest.len() < 2 || rest.len() > STEPS_MAX + 1 {
            return plan_err!("{USAGE}; found {} conditions", rest.len().saturating_sub(1));
        }
        let window = match &types[0] {
            DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
            whole if whole.is_integer() => DataType::Int64,
            other => return plan_err!("{USAGE}; found a window of type {other}"),
        };
        let Some(times) = time_type(&rest[0]) else {
            return plan_err!("{USAGE}; found a time of type {}", rest[0]);
        };
        if let Some(other) = no_condition(&rest[1..]) {
            return plan_err!("{USAGE}; found a condition of type {other}");
        }
        let mut coerced = vec![window];
        coerced.extend(std::iter::repeat_n(DataType::Utf8, modes));
        coerced.push(times);
        coerced.extend(rest[1..].iter().map(|_| DataType::Boolean));
        Ok(coerced)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(state_fields(&args))
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let (rules, first) = Self::rules(&args)?;
        Ok(Box::new(OneGroup(Groups::new(Box::new(rules), first))))
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let (rules, first) = Self::rules(&args)?;
        Ok(Box::new(Groups::new(Box::new(rules), first)))
    }
}

impl Computes for Rules {
    /// What is no step ends a scan of strict order.
    fn counts(&self, mask: u32) -> bool {
        mask != 0 || self.strict_order
    }

    fn compute(&self, entries: &[Entry], groups: usize) -> Result<ArrayRef> {
        Ok(Arc::new(Int32Array::from(levels(entries, groups, &mut Chains::new(self.clone())))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
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
        check("window_funnel(1, 'strict_order', 'allow_reentry', ts, c)", None).await;
        check("window_funnel(1, 'strict_deduplication,compat_clickhouse', ts, c)", None).await;
        check("window_funnel(1, 'allow_reentry', ts, c)", Some("beside strict_order")).await;
        check("window_funnel(1, 'strict', ts, c)", Some("\"strict\" is not known")).await;
        check("window_funnel(1, ts)", Some("0 conditions")).await;
        check("window_funnel(1, ts, n)", Some("a condition of type Int64")).await;
        check("window_funnel('a', ts, c)", Some("a window of type")).await;
        check(&format!("window_funnel(1, ts{})", ", c".repeat(33)), Some("33 conditions")).await;
    }
}
