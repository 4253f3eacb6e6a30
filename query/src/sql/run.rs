//! `POST /v1/sql`: guard -> snapshot -> plan -> rows. All but the first look of the guard happens in a worker.

use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use futures_util::StreamExt;

use crate::config::Limits;
use crate::engine::{self, Engine, Session, on_large_stack};
use crate::http::error::ApiError;
use crate::source::rollups;
use crate::source::snapshot::{AsOf, Snapshot};
use crate::sql::formats::{Format, Writer};
use crate::sql::guard::{self, Guarded};

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
/// [`ApiError`] of code `bad_request`.
pub fn parse(body: &[u8]) -> Result<String, ApiError> {
    let form = "the body is {\"sql\": \"SELECT ..\"}";
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("{form}; it is not JSON: {error}")))?;
    let fields = value.as_object().ok_or_else(|| ApiError::bad_request(form))?;
    if let Some(other) = fields.keys().find(|name| *name != "sql") {
        return Err(ApiError::bad_request(format!("the field is not known here; {form}")).at(other));
    }
    let sql = fields.get("sql").and_then(|sql| sql.as_str());
    Ok(sql.ok_or_else(|| ApiError::bad_request(form).at("sql"))?.to_owned())
}

/// Reads a statement and checks it.
/// # Errors
/// [`ApiError`] of code `bad_sql` or `sql_too_large`.
pub async fn check(sql: String, limits: &Limits) -> Result<Guarded, ApiError> {
    let limits = limits.clone();
    on_large_stack(async move { guard::statement(&sql, &limits) }).await?
}

/// Answers one statement.
/// # Errors
/// [`ApiError`]; what was running is stopped.
pub async fn answer(engine: &Engine, snapshot: Arc<Snapshot>, guarded: Guarded, format: Format) -> Result<Rows, ApiError> {
    let session = engine.session_of_tables(&snapshot, guarded.relations).map_err(engine::api_error)?;
    if guarded.reads_rollups {
        for table in rollups::tables(&snapshot).await.map_err(engine::api_error)? {
            session.add(table.name, Session::scan_of(table, &snapshot)).map_err(engine::api_error)?;
        }
    }
    let stream = plan(Arc::new(session), guarded).await?;
    write(stream, engine.limits(), format, snapshot.as_of().clone()).await
}

/// Plans where the stack is large, and starts.
async fn plan(session: Arc<Session>, guarded: Guarded) -> Result<SendableRecordBatchStream, ApiError> {
    on_large_stack(async move {
        let plan = session.state().statement_to_plan(guarded.statement).await?;
        // The guard let through nothing else; this holds even if it errs.
        SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false).verify_plan(&plan)?;
        session.run(plan).await
    })
    .await?
    .map_err(engine::planning_error)
}

async fn write(mut stream: SendableRecordBatchStream, limits: &Limits, format: Format, as_of: AsOf) -> Result<Rows, ApiError> {
    let mut writer = Writer::new(&stream.schema(), format).map_err(refused)?;
    let (mut rows, mut truncated) = (0, false);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(engine::api_error)?;
        let fitting = batch.slice(0, batch.num_rows().min(limits.rows_max - rows));
        let written = writer.write(&fitting, limits.answer_bytes_max).map_err(refused)?;
        rows += written;
        if written < batch.num_rows() {
            truncated = true;
            break;
        }
    }
    Ok(Rows { body: writer.finish(truncated, &as_of).map_err(refused)?, rows, truncated, as_of })
}

/// What cannot be written in a format is the statement's fault: it chose the types.
fn refused(error: ArrowError) -> ApiError {
    ApiError::bad_sql(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read() {
        let check = |body: &str, expected: Result<&str, Option<&str>>| {
            let found = parse(body.as_bytes()).map_err(|api_error| api_error.field);
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
