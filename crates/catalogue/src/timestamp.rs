//! Times between Postgres and memory.

use events::Micros;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

/// A point in time as a `timestamptz`, in both directions.
/// Source of the format: PostgreSQL, `timestamptz_recv`: microseconds since 2000-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(pub Micros);

impl Timestamp {
    const EPOCH_2000: i64 = 946_684_800 * Micros::SECOND;

    /// Returns the bytes that Postgres sends and receives.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.0.saturating_sub(Timestamp::EPOCH_2000).to_be_bytes()
    }

    /// Returns the time of such bytes.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Timestamp(Micros(i64::from_be_bytes(bytes).saturating_add(Timestamp::EPOCH_2000)))
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
        Ok(Timestamp::from_bytes(bytes))
    }
}
