//! Connections. Each one has one owner and is closed on any error; there is no pool.

use std::str::FromStr;

use events::Micros;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnectOptions, PgDatabaseError, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Connection, Decode, Encode, PgConnection, Postgres, Type};
use uuid::Uuid;

/// Opens a connection for one purpose, which `pg_stat_activity` shows.
/// # Errors
/// As sqlx has them; nothing is left open.
pub(crate) async fn connect(url: &str, purpose: &str) -> Result<PgConnection, sqlx::Error> {
    let options = PgConnectOptions::from_str(url)?.application_name(&format!("weir aggregator, {purpose}")).options([
        // A commit that was answered is on the disk, so the log may be trimmed behind it.
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

/// Returns the advisory lock of a project's catalogue: the first 8 bytes of its id.
pub(crate) fn catalogue_lock(project: Uuid) -> i64 {
    (project.as_u128() >> 64) as i64
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

/// A point in time as a `timestamptz`, in both directions.
/// Source of the format: PostgreSQL, `timestamptz_recv`: microseconds since 2000-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(pub Micros);

impl Timestamp {
    const EPOCH_2000: i64 = 946_684_800 * Micros::SECOND;

    /// Returns the bytes that Postgres sends and receives.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.0.saturating_sub(Timestamp::EPOCH_2000).to_be_bytes()
    }
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("timestamptz")
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::array_of("timestamptz")
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(&self.to_bytes());
        Ok(IsNull::No)
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let bytes: [u8; 8] = value.as_bytes()?.try_into()?;
        Ok(Timestamp(Micros(i64::from_be_bytes(bytes).saturating_add(Timestamp::EPOCH_2000))))
    }
}
