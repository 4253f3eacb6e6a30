//! A table of Postgres as DataFusion scans it: only the columns asked for, only the rows that simple filters leave, only
//! the project of the token.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures_util::StreamExt;
use tokio::sync::mpsc::Sender;

use crate::source::copy::{CopyError, Decoder, Kind};
use crate::source::filter;
use crate::source::snapshot::Snapshot;
use crate::source::tables::{Column, Source, Table};

/// Rows of one batch, at most.
const BATCH_ROWS: usize = 8_192;
/// Bytes from Postgres in one batch, about: wide rows make smaller batches.
const BATCH_BYTES: usize = 4 * 1_024 * 1_024;
/// Batches decoded ahead of the plan.
const BATCHES_AHEAD: usize = 2;

/// Why a scan ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Postgres failed or could not be reached.
    #[error("postgres: {0}")]
    Postgres(#[from] sqlx::Error),
    /// Its bytes were not understood.
    #[error("copy: {0}")]
    Copy(#[from] CopyError),
}

/// One table on one snapshot.
#[derive(Debug)]
pub struct Scan {
    table: Table,
    schema: SchemaRef,
    snapshot: Arc<Snapshot>,
    /// Connections that one scan of this table may use.
    streams_max: usize,
}

impl Scan {
    /// Makes a scan. With `streams_max` below the number of sources they are read one after the other, on one connection.
    pub fn new(table: Table, snapshot: Arc<Snapshot>, streams_max: usize) -> Self {
        Scan { schema: table.schema(), table, snapshot, streams_max }
    }
}

#[async_trait]
impl TableProvider for Scan {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Never exact: DataFusion applies each filter again, so that Postgres only ever has to leave too much.
        let support = |expr: &&Expr| match filter::to_sql(expr, &self.table.columns) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.table.columns.len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let conditions: Vec<String> = filters.iter().filter_map(|expr| filter::to_sql(expr, &self.table.columns)).collect();
        let selects: Vec<String> = self
            .table
            .sources
            .iter()
            .map(|source| select(source, &self.table.columns, projection, self.snapshot.project(), &conditions))
            .collect();
        let selects = if selects.len() <= self.streams_max { selects } else { vec![selects.join(" UNION ALL ")] };
        let kinds: Vec<Kind> = projection.iter().map(|index| self.table.columns[*index].kind).collect();
        let stream = |select: String| -> Arc<dyn PartitionStream> {
            let limited = limit.map(|rows| format!("{select} LIMIT {rows}")).unwrap_or(select);
            Arc::new(CopyStream {
                schema: schema.clone(),
                kinds: kinds.clone(),
                statement: format!("COPY ({limited}) TO STDOUT (FORMAT BINARY)"),
                snapshot: self.snapshot.clone(),
            })
        };
        let streams = selects.into_iter().map(stream).collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, streams, None, None, false, limit)?))
    }
}

/// Writes the SELECT of one source. Identifiers come from this crate, the project from the token, and the conditions from
/// [`filter::to_sql`].
fn select(source: &Source, columns: &[Column], projection: &[usize], project: uuid::Uuid, conditions: &[String]) -> String {
    let names: Vec<String> = projection.iter().map(|index| format!("t.\"{}\"", columns[*index].name)).collect();
    let inner: Vec<String> = columns
        .iter()
        .zip(&source.expressions)
        .map(|(column, expression)| format!("{expression} AS \"{}\"", column.name))
        .collect();
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!(
        "SELECT {} FROM (SELECT {} FROM {} WHERE f.project_id = '{project}') t{filter}",
        names.join(", "),
        inner.join(", "),
        source.from
    )
}

/// One COPY on one connection.
struct CopyStream {
    schema: SchemaRef,
    kinds: Vec<Kind>,
    statement: String,
    snapshot: Arc<Snapshot>,
}

impl fmt::Debug for CopyStream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The statement holds the project; plans are shown to clients.
        out.debug_struct("CopyStream").field("columns", &self.schema.fields().len()).finish()
    }
}

impl PartitionStream for CopyStream {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), BATCHES_AHEAD);
        let batches = builder.tx();
        let decoder = Decoder::new(self.schema.clone(), &self.kinds);
        let (statement, snapshot) = (self.statement.clone(), self.snapshot.clone());
        builder.spawn(async move {
            let copied = copy(&statement, &snapshot, decoder, &batches).await;
            copied.map_err(|error| DataFusionError::External(Box::new(error)))
        });
        builder.build()
    }
}

/// Runs a COPY to its end, or until nobody reads the batches any more.
async fn copy(
    statement: &str,
    snapshot: &Snapshot,
    mut decoder: Decoder,
    batches: &Sender<Result<arrow::array::RecordBatch>>,
) -> Result<(), ScanError> {
    let mut imported = snapshot.import().await?;
    let mut stream = imported.connection().copy_out_raw(statement).await?;
    let mut bytes = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        bytes += piece.len();
        decoder.feed(&piece)?;
        if decoder.rows() >= BATCH_ROWS || bytes >= BATCH_BYTES {
            bytes = 0;
            if batches.send(Ok(decoder.take()?)).await.is_err() {
                return Ok(());
            }
        }
    }
    decoder.finish()?;
    drop(stream);
    imported.done().await;
    if decoder.rows() > 0 {
        // A reader that is gone needs no more rows.
        let _ = batches.send(Ok(decoder.take()?)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tables::table;

    #[test]
    fn the_project_is_in_every_source_whatever_is_asked_for() {
        let project = uuid::Uuid::from_u128(7);
        for table in crate::source::tables::TABLES.iter() {
            for source in &table.sources {
                let sql = select(source, &table.columns, &[0], project, &["t.\"x\" = 'a OR 1=1'".to_owned()]);
                let filter = "WHERE f.project_id = '00000000-0000-0000-0000-000000000007') t WHERE ";
                assert!(sql.contains(filter), "{}: {sql}", table.name);
            }
        }
    }

    #[test]
    fn nothing_but_the_columns_asked_for_leaves_postgres() {
        let variants = table("variants").expect("a table");
        let sql = select(&variants.sources[0], &variants.columns, &[3, 6], uuid::Uuid::nil(), &[]);
        assert!(sql.starts_with("SELECT t.\"name\", t.\"weight\" FROM (SELECT "), "{sql}");
        let none = select(&variants.sources[0], &variants.columns, &[], uuid::Uuid::nil(), &[]);
        assert!(none.starts_with("SELECT  FROM (SELECT "), "{none}");
    }
}
