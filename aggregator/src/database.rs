//! Connections. Each one has one owner and is closed on any error; there is no pool.

use std::str::FromStr;

pub(crate) use catalogue::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use sqlx::{Connection, PgConnection};

/// Opens a connection for one purpose, which `pg_stat_activity` shows.
/// # Errors
/// As sqlx has them; nothing is left open.
pub(crate) async fn connect(url: &str, purpose: &str) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.application_name(&format!("weir aggregator, {purpose}")).options([
        // A commit that was answered is on the disk, so the log may be trimmed after it.
        ("synchronous_commit", "on"),
        // A client that vanished must not hold its locks.
        ("client_connection_check_interval", "5s"),
        ("idle_in_transaction_session_timeout", "60s"),
        ("tcp_keepalives_idle", "10"),
        ("TimeZone", "UTC"),
        // Batches are short; compiling their plans costs more than it saves.
        ("jit", "off"),
    ]);
    PgConnection::connect_with(&options).await
}

/// Returns the SQLSTATE and the text of an error that is the fault of a row, not of the circumstances.
///
/// Only these are: too long, out of range, not representable, null where none may be, an index row or a nesting too large,
/// and a named check. 23514 without a name means that a month was attached during the statement: it is transient.
pub(crate) fn row_fault(error: &sqlx::Error) -> Option<(String, String)> {
    let error = error.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    let fault = match error.code() {
        "22001" | "22003" | "22007" | "22008" | "22021" | "22P02" | "22P05" | "23502" | "54000" | "54001" => true,
        "23514" => error.constraint().is_some(),
        _ => false,
    };
    fault.then(|| (error.code().to_owned(), error.message().to_owned()))
}

/// Returns whether an error says that an identity is stored already.
pub(crate) fn is_duplicate_key(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("23505"))
}
