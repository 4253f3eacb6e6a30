//! Connections. Each one has one owner and is closed on any error; there is no pool.

use std::str::FromStr;
use std::time::Duration;

pub(crate) use catalogue::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;

/// How long a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(20);

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
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "4"),
        ("tcp_user_timeout", "30s"),
        ("TimeZone", "UTC"),
        // Batches are short; compiling their plans costs more than it saves.
        ("jit", "off"),
    ]);
    timeout(CONNECT_MAX, PgConnection::connect_with(&options)).await.unwrap_or_else(|_| {
        let text = format!("no connection to postgres within {} s", CONNECT_MAX.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
    })
}

/// What an error of Postgres is the fault of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Of a row, as far as its SQLSTATE tells: the same statements without it would not fail.
    Row {
        /// The five characters.
        sqlstate: String,
        /// What Postgres says.
        message: String,
    },
    /// Of the circumstances: connection, resources, locks, an operator. It passes, and trying again is right for as long as it takes.
    Circumstances,
    /// Neither: a table or a right that is missing, a bug. Trying again helps after somebody has mended it.
    Standing,
}

/// Classifies an error by its SQLSTATE.
///
/// A row's are data (class 22), what a constraint or a trigger refuses (class 23, P0001), an index row or a nesting too large. 23514
/// without a constraint's name means that a month was attached during the statement: it passes.
pub(crate) fn fault(error: &sqlx::Error) -> Fault {
    let Some(error) = error.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) else {
        let is_ours = matches!(
            error,
            sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::ColumnIndexOutOfBounds { .. }
                | sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::TypeNotFound { .. }
                | sqlx::Error::RowNotFound
                | sqlx::Error::Encode(_)
                | sqlx::Error::Decode(_)
        );
        return if is_ours { Fault::Standing } else { Fault::Circumstances };
    };
    let code = error.code();
    if code == "23514" && error.constraint().is_none() {
        return Fault::Circumstances;
    }
    match code.get(..2) {
        Some("22" | "23") => {}
        _ if matches!(code, "54000" | "54001" | "P0001") => {}
        // Connection, transaction, resources, object's state (locks), operator, system; a server that became a standby.
        Some("08" | "40" | "53" | "55" | "57" | "58") => return Fault::Circumstances,
        _ if code == "25006" => return Fault::Circumstances,
        _ => return Fault::Standing,
    }
    Fault::Row { sqlstate: code.to_owned(), message: error.message().to_owned() }
}

/// Returns whether an error says that an identity is stored already.
pub(crate) fn is_duplicate_key(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("23505"))
}
