//! Moments per variant and metric: attributed conversions -> one row per user -> exact sums.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int64Type};
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use futures_util::TryStreamExt;
use uuid::Uuid;

use super::catalogue::Configured;
use crate::config::Limits;
use crate::engine::{self, Session};
use crate::error::Refusal;
use crate::moments_udaf;
use crate::snapshot::Snapshot;
use crate::statistics::moments::Moments;
use crate::tables;

/// What the users of one variant did. Users who did nothing are not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Users with a conversion.
    pub converters: u64,
    /// Their values.
    pub values: Moments,
    /// Their numbers of conversions, in millionths too.
    pub counts: Moments,
}

/// One currency among the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Currency {
    /// Its code; none where values came without one.
    pub code: Option<String>,
    /// Conversions with a value in it.
    pub conversions: u64,
    /// Their sum, in millionths.
    pub sum: i128,
}

/// The attributed conversions of one experiment, of users who saw one variant.
pub struct Attributed {
    session: Session,
    currency: Option<Option<String>>,
}

impl Attributed {
    /// Reads them. `is_mixed` says whether any user saw several variants, `has_windows` whether a metric has a window of its
    /// own: both need participation beside them.
    /// # Errors
    /// [`Refusal`]; also if they need more memory than a query may use.
    pub async fn read(
        mut session: Session,
        snapshot: &Arc<Snapshot>,
        experiment: Uuid,
        is_mixed: bool,
        has_windows: bool,
        limits: &Limits,
    ) -> Result<Self, Refusal> {
        session.add_moments().map_err(engine::refusal)?;
        for name in ["participation", "conversion_attribution"] {
            let table = tables::table(name).ok_or_else(Refusal::internal)?.with_user_key();
            session.add(name, Session::scan_of(table, snapshot)).map_err(engine::refusal)?;
        }
        let exposure = if has_windows { "p.first_exposure_date" } else { "CAST(NULL AS TIMESTAMP)" };
        let mut join = String::new();
        if is_mixed {
            join = format!(
                "LEFT ANTI JOIN (SELECT user_key FROM participation WHERE experiment_id = '{experiment}' AND variants_seen > 1) m
                 ON a.user_key = m.user_key"
            );
        }
        if has_windows {
            join = format!(
                "{join} JOIN (SELECT user_key, first_exposure_date FROM participation WHERE experiment_id = '{experiment}') p
                 ON a.user_key = p.user_key"
            );
        }
        let sql = format!(
            "SELECT a.user_key, a.variant_id, a.conversion_type, a.currency, a.conversion_value_attributed AS value,
                    a.conversion_time, {exposure} AS first_exposure_date
             FROM conversion_attribution a {join} WHERE a.experiment_id = '{experiment}'"
        );
        let read = async {
            let plan = session.state().create_logical_plan(&sql).await?;
            let mut stream = session.run(plan).await?;
            let schema = stream.schema();
            let (mut batches, mut bytes): (Vec<RecordBatch>, usize) = (Vec::new(), 0);
            while let Some(batch) = stream.try_next().await? {
                bytes += batch.get_array_memory_size();
                if bytes > limits.query_memory_bytes_max {
                    let message = format!("the attributed conversions take more than {} bytes", limits.query_memory_bytes_max);
                    return Err(DataFusionError::ResourcesExhausted(message));
                }
                batches.push(batch);
            }
            // One part per thread, so that aggregation is spread.
            let mut parts: Vec<Vec<RecordBatch>> = vec![Vec::new(); limits.query_threads.max(1)];
            let count = parts.len();
            for (index, batch) in batches.into_iter().enumerate() {
                parts[index % count].push(batch);
            }
            session.add("attributed", Arc::new(MemTable::try_new(schema, parts)?))
        };
        read.await.map_err(engine::refusal)?;
        Ok(Attributed { session, currency: None })
    }

    async fn collect(&self, sql: &str) -> Result<Vec<RecordBatch>, Refusal> {
        self.session.collect(sql).await.map_err(engine::refusal)
    }

    /// Returns the currencies of all values, the most used first.
    /// # Errors
    /// [`Refusal`].
    pub async fn currencies(&self) -> Result<Vec<Currency>, Refusal> {
        let sql = "SELECT currency, count(*) AS conversions, CAST(sum(value) AS DECIMAL(38, 6)) AS total
                   FROM attributed WHERE value IS NOT NULL GROUP BY currency";
        let mut currencies = Vec::new();
        for batch in self.collect(sql).await? {
            let codes = batch.column(0).as_string_view();
            let (conversions, sums) =
                (batch.column(1).as_primitive::<Int64Type>(), batch.column(2).as_primitive::<Decimal128Type>());
            for row in 0..batch.num_rows() {
                currencies.push(Currency {
                    code: codes.is_valid(row).then(|| codes.value(row).to_owned()),
                    conversions: conversions.value(row) as u64,
                    sum: sums.value(row),
                });
            }
        }
        currencies.sort_by(|a, b| b.conversions.cmp(&a.conversions).then_with(|| a.code.cmp(&b.code)));
        Ok(currencies)
    }

    /// Leaves the values of all other currencies out from now on; `None` keeps the values without a currency.
    pub fn keep_currency(&mut self, code: Option<String>) {
        self.currency = Some(code);
    }

    /// Measures each conversion name by itself.
    /// # Errors
    /// [`Refusal`].
    pub async fn by_type(&self) -> Result<BTreeMap<String, HashMap<Uuid, Measured>>, Refusal> {
        let sql = format!(
            "SELECT variant_id, count(*) AS converters, exact_moments(v) AS values, exact_moments(n) AS counts, conversion_type
             FROM (SELECT variant_id, conversion_type, user_key, {} FROM attributed
                   GROUP BY variant_id, conversion_type, user_key)
             GROUP BY variant_id, conversion_type",
            self.per_user(None)
        );
        let mut by_type: BTreeMap<String, HashMap<Uuid, Measured>> = BTreeMap::new();
        for batch in self.collect(&sql).await? {
            let types = batch.column(4).as_string_view();
            for (row, (variant, measured)) in rows(&batch)?.into_iter().enumerate() {
                by_type.entry(types.value(row).to_owned()).or_default().insert(variant, measured);
            }
        }
        Ok(by_type)
    }

    /// Measures what one metric counts.
    /// # Errors
    /// [`Refusal`].
    pub async fn metric(&self, metric: &Configured) -> Result<HashMap<Uuid, Measured>, Refusal> {
        let mut conditions = Vec::new();
        if let Some(kind) = &metric.conversion_type {
            conditions.push(format!("conversion_type = '{}'", kind.replace('\'', "''")));
        }
        if let Some(days) = metric.window_days {
            // Both ends of a window belong to it.
            conditions.push(format!("conversion_time <= first_exposure_date + INTERVAL '{} hours'", i64::from(days) * 24));
        }
        let filter = if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
        let sql = format!(
            "SELECT variant_id, count(*) AS converters, exact_moments(v) AS values, exact_moments(n) AS counts
             FROM (SELECT variant_id, user_key, {} FROM attributed {filter} GROUP BY variant_id, user_key)
             GROUP BY variant_id",
            self.per_user(metric.cap)
        );
        let mut measured = HashMap::new();
        for batch in self.collect(&sql).await? {
            measured.extend(rows(&batch)?);
        }
        Ok(measured)
    }

    /// Writes the columns `v` and `n` of one user: the sum of values, and the number of conversions.
    fn per_user(&self, cap: Option<i128>) -> String {
        let value = match &self.currency {
            None => "value".to_owned(),
            Some(None) => "CASE WHEN currency IS NULL THEN value END".to_owned(),
            // Checked by the tables: three letters.
            Some(Some(code)) => format!("CASE WHEN currency = '{}' THEN value END", code.replace('\'', "''")),
        };
        let sum = format!("CAST(sum({value}) AS DECIMAL(38, 6))");
        let capped = match cap {
            Some(cap) => {
                let cap = crate::statistics::moments::decimal_text(cap);
                format!("least({sum}, CAST('{cap}' AS DECIMAL(38, 6)))")
            }
            None => sum.clone(),
        };
        // The least of a value and of nothing would be the value.
        format!("CASE WHEN {sum} IS NULL THEN NULL ELSE {capped} END AS v, CAST(count(*) AS DECIMAL(38, 6)) AS n")
    }
}

fn rows(batch: &RecordBatch) -> Result<Vec<(Uuid, Measured)>, Refusal> {
    let variants = batch.column(0).as_string_view();
    let converters = batch.column(1).as_primitive::<Int64Type>();
    let (values, counts) = (batch.column(2).as_binary::<i32>(), batch.column(3).as_binary::<i32>());
    let row = |row: usize| {
        let measured = Measured {
            converters: converters.value(row) as u64,
            values: moments_udaf::decode(values.value(row)).map_err(engine::refusal)?,
            counts: moments_udaf::decode(counts.value(row)).map_err(engine::refusal)?,
        };
        let variant = Uuid::try_parse(variants.value(row)).map_err(|_| Refusal::internal())?;
        Ok((variant, measured))
    };
    (0..batch.num_rows()).map(row).collect()
}
