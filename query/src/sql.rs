//! `POST /v1/sql`: guard -> snapshot -> plan -> rows.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use futures_util::StreamExt;
use serde_json::json;
use uuid::Uuid;

use crate::app::App;
use crate::cells;
use crate::engine::{self, Session, on_large_stack};
use crate::error::Refusal;
use crate::guard::{self, Guarded};
use crate::snapshot::AsOf;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"columns": [..], "rows": [[..]], "as_of": {..}}`.
    Json,
    /// RFC 4180 with a header line.
    Csv,
}

/// The rows of one statement.
#[derive(Debug)]
pub struct Rows {
    /// The whole body in the format asked for.
    pub body: Vec<u8>,
    /// How many rows it holds.
    pub rows: usize,
    /// Whether rows were cut.
    pub truncated: bool,
    /// How far the log was stored.
    pub as_of: AsOf,
}

/// Reads the request's body, `{"sql": ".."}`.
/// # Errors
/// [`Refusal`] of code `bad_request`.
pub fn parse(body: &[u8]) -> Result<String, Refusal> {
    let form = "the body is {\"sql\": \"SELECT ..\"}";
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("{form}; it is no JSON: {error}")))?;
    let fields = value.as_object().ok_or_else(|| Refusal::bad_request(form))?;
    if let Some(other) = fields.keys().find(|name| *name != "sql") {
        return Err(Refusal::bad_request(format!("the field is not known here; {form}")).at(other));
    }
    let sql = fields.get("sql").and_then(|sql| sql.as_str());
    Ok(sql.ok_or_else(|| Refusal::bad_request(form).at("sql"))?.to_owned())
}

/// Answers one statement.
/// # Errors
/// [`Refusal`]; what was running is stopped.
pub async fn answer(app: &Arc<App>, project: Uuid, sql: String, format: Format) -> Result<Rows, Refusal> {
    let limits = app.limits.clone();
    let guarded = on_large_stack(async move { guard::statement(&sql, &limits) }).await??;
    app.within_limits(|app| async move {
        let snapshot = Arc::new(app.snapshot(project).await?);
        let session = app.engine.session_of_tables(&snapshot, guarded.relations).map_err(engine::refusal)?;
        let stream = plan(Arc::new(session), guarded).await?;
        let rows = write(stream, &app, format, snapshot.as_of().clone()).await?;
        app.metrics.rows.increment(rows.rows as u64);
        Ok(rows)
    })
    .await
}

/// Plans where the stack is large, and starts.
async fn plan(session: Arc<Session>, guarded: Guarded) -> Result<SendableRecordBatchStream, Refusal> {
    on_large_stack(async move {
        let plan = session.state().statement_to_plan(guarded.statement).await?;
        // The guard let through nothing else; this holds even if it errs.
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
        session.run(plan).await
    })
    .await?
    .map_err(engine::refusal)
}

async fn write(mut stream: SendableRecordBatchStream, app: &App, format: Format, as_of: AsOf) -> Result<Rows, Refusal> {
    let mut body = header(&stream.schema(), format);
    let (mut rows, mut truncated) = (0, false);
    'batches: while let Some(batch) = stream.next().await {
        let batch = batch.map_err(engine::refusal)?;
        for row in 0..batch.num_rows() {
            if rows == app.limits.rows_max {
                truncated = true;
                break 'batches;
            }
            let before = body.len();
            let written = match format {
                Format::Json => {
                    if rows > 0 {
                        body.push(b',');
                    }
                    cells::write_json_row(&mut body, batch.columns(), row)
                }
                Format::Csv => cells::write_csv_row(&mut body, batch.columns(), row),
            };
            written.map_err(|error| Refusal::bad_sql(error.to_string()))?;
            if body.len() > app.limits.answer_bytes_max {
                body.truncate(before);
                truncated = true;
                break 'batches;
            }
            rows += 1;
        }
    }
    if format == Format::Json {
        let rest = json!({"truncated": truncated, "as_of": as_of});
        // The object goes on behind the rows: its opening brace gives way.
        body.extend_from_slice(b"],");
        body.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    }
    Ok(Rows { body, rows, truncated, as_of })
}

fn header(schema: &SchemaRef, format: Format) -> Vec<u8> {
    let mut body = Vec::new();
    match format {
        Format::Json => {
            let column =
                |field: &arrow::datatypes::FieldRef| json!({"name": field.name(), "type": cells::type_name(field.data_type())});
            let columns: Vec<serde_json::Value> = schema.fields().iter().map(column).collect();
            body.extend_from_slice(format!("{{\"columns\":{},\"rows\":[", json!(columns)).as_bytes());
        }
        Format::Csv => {
            for (index, field) in schema.fields().iter().enumerate() {
                if index > 0 {
                    body.push(b',');
                }
                cells::write_csv_text(&mut body, field.name());
            }
            body.extend_from_slice(b"\r\n");
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read() {
        let check = |body: &str, expected: Result<&str, Option<&str>>| {
            let found = parse(body.as_bytes()).map_err(|refusal| refusal.field);
            assert_eq!(found, expected.map(str::to_owned).map_err(|field| field.map(str::to_owned)), "{body}");
        };
        check(r#"{"sql": "SELECT 1"}"#, Ok("SELECT 1"));
        check(r#"{"sql": 1}"#, Err(Some("sql")));
        check("{}", Err(Some("sql")));
        check(r#"{"sql": "SELECT 1", "project": "x"}"#, Err(Some("project")));
        check("SELECT 1", Err(None));
        check("[]", Err(None));
    }
}
