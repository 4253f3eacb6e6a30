//! Rows for Postgres: the staging table, and the bytes of binary COPY.
//!
//! Source of the format: PostgreSQL documentation, COPY, "Binary Format"; of each value the type's `recv` function
//! (`numeric_recv`, `jsonb_recv`, `timestamptz_recv`, `array_recv`).

use std::sync::LazyLock;

use events::fact::{Column, FACT_TABLES, FactTable, Value};
use events::{JsonObject, Kind, Money};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::{StagedRow, conflicts};
use crate::database::Timestamp;

/// Makes the staging table, once for each connection. It keeps its rows over the commit, since it is filled before the
/// transaction.
pub(crate) async fn make_table(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let columns: Vec<String> = COLUMNS.iter().map(|column| format!("{} {}", column.name, column.column_type.sql())).collect();
    let statement = format!(
        "CREATE TEMPORARY TABLE IF NOT EXISTS staging (kind smallint, known_by_id_alone boolean, content bigint, {}) \
         ON COMMIT PRESERVE ROWS",
        columns.join(", ")
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(connection).await?;
    Ok(())
}

/// Replaces the staging table's rows. Outside of a transaction, so that no lock is held while bytes travel.
pub(crate) async fn fill(connection: &mut PgConnection, rows: &[StagedRow<'_>]) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("TRUNCATE staging").execute(&mut *connection).await?;
    send(connection, rows).await
}

/// Adds rows to the staging table.
pub(crate) async fn send(connection: &mut PgConnection, rows: &[StagedRow<'_>]) -> Result<(), sqlx::Error> {
    let mut copy = connection.copy_in_raw("COPY staging FROM STDIN (FORMAT BINARY)").await?;
    let mut bytes = Encoded::begin();
    for row in rows {
        bytes.staged(row);
        for chunk in bytes.full.drain(..) {
            copy.send(chunk).await?;
        }
    }
    for chunk in bytes.end() {
        copy.send(chunk).await?;
    }
    copy.finish().await?;
    Ok(())
}

/// Rows as binary COPY has them: the number of columns, then each value with its length, -1 for null. In chunks, each a message of its own:
/// Postgres holds a message whole before it reads its first row.
pub(crate) struct Encoded {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
}

impl Encoded {
    const CHUNK_BYTES: usize = 64 * 1024;
    /// Room for the row that fills a chunk; a longer one makes it grow.
    const ROW_BYTES: usize = 4 * 1024;

    /// Begins without rows.
    pub(crate) fn begin() -> Self {
        let mut last = Self::chunk();
        last.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        last.extend_from_slice(&[0; 8]); // no flags, no extension
        Encoded { full: Vec::new(), last }
    }

    fn chunk() -> Vec<u8> {
        Vec::with_capacity(Self::CHUNK_BYTES + Self::ROW_BYTES)
    }

    /// Adds a row of its fact table's columns.
    pub(crate) fn row(&mut self, row: &StagedRow<'_>) {
        let columns = FactTable::of(row.event().kind()).columns();
        self.columns(columns.clone().count());
        let fact = row.fact();
        for column in columns {
            self.value(column.value(&fact));
        }
    }

    /// Adds a row of the staging table's columns.
    fn staged(&mut self, row: &StagedRow<'_>) {
        let event = row.event();
        let fact = row.fact();
        self.columns(3 + COLUMNS.len());
        self.bytes(&kind_number(event.kind()).to_be_bytes());
        self.value(Value::Boolean(event.is_known_by_id_alone()));
        // The others are compared with the stored row itself.
        self.value(if event.is_known_by_id_alone() { Value::Bigint(conflicts::fingerprint(row)) } else { Value::Null });
        for of_kind in COLUMNS_OF_KIND.iter().filter(|of_kind| of_kind.kind == event.kind()) {
            for column in &of_kind.columns {
                self.value(column.map_or(Value::Null, |column| column.value(&fact)));
            }
        }
    }

    /// Begins a row of so many columns.
    pub(crate) fn columns(&mut self, count: usize) {
        if self.last.len() >= Self::CHUNK_BYTES {
            self.full.push(std::mem::replace(&mut self.last, Self::chunk()));
        }
        self.last.extend_from_slice(&(count as i16).to_be_bytes());
    }

    /// Adds a value: its length and its bytes, or -1.
    pub(crate) fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Null => self.last.extend_from_slice(&(-1i32).to_be_bytes()),
            Value::Uuid(id) => self.bytes(id.as_bytes()),
            Value::Text(text) => self.bytes(text.as_bytes()),
            Value::Timestamp(time) => self.bytes(&Timestamp(time).to_bytes()),
            Value::Boolean(truth) => self.bytes(&[u8::from(truth)]),
            Value::Integer(number) => self.bytes(&number.to_be_bytes()),
            Value::Bigint(number) => self.bytes(&number.to_be_bytes()),
            Value::Money(amount) => self.money(amount),
            Value::Json(object) => self.json(object),
        }
    }

    /// Adds an array of ids: its dimensions, whether any is null, the elements' type, the dimension's length and first index, the elements.
    pub(crate) fn uuids<'a>(&mut self, ids: impl ExactSizeIterator<Item = &'a Uuid>) {
        const UUID_OID: i32 = 2950;
        let length = ids.len() as i32;
        self.last.extend_from_slice(&(20 + 20 * length).to_be_bytes());
        for word in [1, 0, UUID_OID, length, 1] {
            self.last.extend_from_slice(&word.to_be_bytes());
        }
        for id in ids {
            self.bytes(id.as_bytes());
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.last.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        self.last.extend_from_slice(bytes);
    }

    /// One byte of version, then the text.
    fn json(&mut self, object: &JsonObject) {
        let text = object.get().as_bytes();
        self.last.extend_from_slice(&(text.len() as i32 + 1).to_be_bytes());
        self.last.push(1);
        self.last.extend_from_slice(text);
    }

    /// Digits to the base 10,000, most significant first: their number, the weight of the first, the sign, the number
    /// of decimals shown, the digits. A fraction of 6 decimals fills one digit and half of another.
    fn money(&mut self, value: Money) {
        let mut rest = value.millionths().unsigned_abs() * 100; // 8 decimals: two whole digits
        let mut digits = [0u16; 8];
        for digit in digits.iter_mut().rev() {
            *digit = (rest % 10_000) as u16;
            rest /= 10_000;
        }
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        let digits = &digits[leading..];
        let sign: u16 = if value.millionths() < 0 { 0x4000 } else { 0 };
        self.last.extend_from_slice(&(8 + 2 * digits.len() as i32).to_be_bytes());
        self.last.extend_from_slice(&(digits.len() as i16).to_be_bytes());
        self.last.extend_from_slice(&(digits.len() as i16 - 3).to_be_bytes());
        self.last.extend_from_slice(&sign.to_be_bytes());
        self.last.extend_from_slice(&6u16.to_be_bytes());
        for digit in digits {
            self.last.extend_from_slice(&digit.to_be_bytes());
        }
    }

    /// Ends, and returns the chunks that were not taken.
    pub(crate) fn end(mut self) -> Vec<Vec<u8>> {
        self.last.extend_from_slice(&(-1i16).to_be_bytes());
        self.full.push(self.last);
        self.full
    }
}

/// The kind's number in the staging table and in `untimed_ids`; fixed for ever.
pub(crate) fn kind_number(kind: Kind) -> i16 {
    match kind {
        Kind::Impression => 0,
        Kind::Conversion => 1,
        Kind::CampaignEvent => 2,
        Kind::Engagement => 3,
        Kind::Identity => 4,
    }
}

/// The columns of all fact tables, each name once: the staging table holds rows of any kind.
static COLUMNS: LazyLock<Vec<&'static Column>> = LazyLock::new(|| {
    let mut columns: Vec<&'static Column> = Vec::new();
    for column in FACT_TABLES.iter().flat_map(FactTable::columns) {
        if columns.iter().all(|earlier| earlier.name != column.name) {
            columns.push(column);
        }
    }
    columns
});

/// The columns of a kind's fact table beside those of [`COLUMNS`]; none where it has no such column.
struct OfKind {
    kind: Kind,
    columns: Vec<Option<&'static Column>>,
}

static COLUMNS_OF_KIND: LazyLock<Vec<OfKind>> = LazyLock::new(|| {
    let of_table = |table: &FactTable| {
        let own = |column: &&'static Column| table.columns().find(|own| own.name == column.name);
        OfKind { kind: table.kind, columns: COLUMNS.iter().map(own).collect() }
    };
    FACT_TABLES.iter().map(of_table).collect()
});
