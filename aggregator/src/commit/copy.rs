//! Rows for Postgres: the columns of the staging table, and the bytes of binary COPY, side by side.
//!
//! Source of the format: PostgreSQL documentation, COPY, "Binary Format"; of each value the type's `recv` function
//! (`numeric_recv`, `jsonb_recv`, `timestamptz_recv`).

use events::{JsonObject, Kind, Micros, Money};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;
use crate::database::Timestamp;

/// Makes the staging table, once for each connection. It keeps its rows over the commit, since it is filled before the
/// transaction.
pub(crate) async fn make_table(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let columns: Vec<String> = COLUMNS.iter().map(|column| format!("{} {}", column.name, column.sql_type)).collect();
    let statement = format!("CREATE TEMPORARY TABLE IF NOT EXISTS staging ({}) ON COMMIT PRESERVE ROWS", columns.join(", "));
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
        bytes.row(row, COLUMNS.iter());
        if bytes.0.len() >= Encoded::CHUNK_BYTES {
            copy.send(bytes.0.as_slice()).await?;
            bytes.0.clear();
        }
    }
    copy.send(bytes.end().as_slice()).await?;
    copy.finish().await?;
    Ok(())
}

/// Rows as binary COPY has them: the number of columns, then each value with its length, -1 for null.
pub(crate) struct Encoded(Vec<u8>);

impl Encoded {
    const CHUNK_BYTES: usize = 1 << 20;

    /// Begins without rows.
    pub(crate) fn begin() -> Self {
        let mut buffer = Vec::with_capacity(Self::CHUNK_BYTES + 64 * 1024);
        buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        buffer.extend_from_slice(&[0; 8]); // no flags, no extension
        Encoded(buffer)
    }

    /// Adds a row of these columns.
    pub(crate) fn row<'a>(&mut self, row: &StagedRow<'_>, columns: impl ExactSizeIterator<Item = &'a Column>) {
        self.0.extend_from_slice(&(columns.len() as i16).to_be_bytes());
        let mut values = Values { buffer: &mut self.0 };
        for column in columns {
            (column.write)(row, &mut values);
        }
    }

    /// Ends, and returns the bytes.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&(-1i16).to_be_bytes());
        self.0
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

/// A column of the staging table, and how its value is written.
pub(crate) struct Column {
    pub name: &'static str,
    sql_type: &'static str,
    write: fn(&StagedRow<'_>, &mut Values<'_>),
}

const fn column(name: &'static str, sql_type: &'static str, write: fn(&StagedRow<'_>, &mut Values<'_>)) -> Column {
    Column { name, sql_type, write }
}

/// The staging table's columns in their order. The fact tables' columns are some of these, see `facts.rs`.
pub(crate) static COLUMNS: [Column; 60] = [
    column("kind", "smallint", |row, out| out.value(&kind_number(row.event().kind()).to_be_bytes())),
    column("project_id", "uuid", |row, out| out.uuid(row.event().project_id.0)),
    column("id", "uuid", |row, out| out.uuid(row.event().event_id.0)),
    column("user_id", "uuid", |row, out| out.uuid(row.event().user_id.0)),
    column("external_id", "text", |row, out| out.text(&row.event().external_id)),
    column("anonymous_id", "text", |row, out| out.text(&row.event().anonymous_id)),
    column("claimed_at", "timestamptz", |row, out| out.time(Some(row.event().claimed_at))),
    column("event_time", "timestamptz", |row, out| out.time(Some(row.event().event_time))),
    column("sent_at", "timestamptz", |row, out| out.time(row.event().sent_at)),
    column("received_at", "timestamptz", |row, out| out.time(Some(row.event().received_at))),
    column("untimed", "boolean", |row, out| out.boolean(Some(row.event().untimed))),
    column("known_by_id_alone", "boolean", |row, out| out.boolean(Some(row.event().is_known_by_id_alone()))),
    column("is_bot", "boolean", |row, out| out.boolean(Some(row.event().is_bot))),
    column("log_id", "uuid", |row, out| out.uuid(row.log_id)),
    column("log_partition", "integer", |row, out| out.value(&(row.decoded.partition as i32).to_be_bytes())),
    column("log_offset", "bigint", |row, out| out.value(&(row.decoded.offset as i64).to_be_bytes())),
    column("session_identifier", "text", |row, out| out.text(&row.event().session_id)),
    column("name", "text", |row, out| out.text(&row.event().name)),
    column("experiment_id", "uuid", |row, out| out.optional(row.ids.experiment, Values::uuid)),
    column("variant_id", "uuid", |row, out| out.optional(row.ids.variant, Values::uuid)),
    column("campaign_id", "uuid", |row, out| out.optional(row.ids.campaign, Values::uuid)),
    column("component_id", "uuid", |row, out| out.optional(row.ids.component, Values::uuid)),
    column("value", "numeric(20, 6)", |row, out| out.optional(row.event().value, Values::money)),
    column("currency", "text", |row, out| out.text(&row.event().currency)),
    column("page_url", "text", |row, out| out.text(&row.event().context.page_url)),
    column("referrer", "text", |row, out| out.text(&row.event().context.referrer)),
    column("user_agent", "text", |row, out| out.text(&row.event().context.user_agent)),
    column("language_code", "text", |row, out| out.text(&row.event().context.language)),
    column("time_zone", "text", |row, out| out.text(&row.event().context.time_zone)),
    column("screen_resolution", "text", |row, out| out.text(&row.event().context.screen)),
    column("viewport_size", "text", |row, out| out.text(&row.event().context.viewport)),
    column("connection_type", "text", |row, out| out.text(&row.event().context.connection)),
    column("utm_source", "text", |row, out| out.text(&row.event().context.utm_source)),
    column("utm_medium", "text", |row, out| out.text(&row.event().context.utm_medium)),
    column("utm_campaign", "text", |row, out| out.text(&row.event().context.utm_campaign)),
    column("country_code", "text", |row, out| out.text(&row.event().context.country)),
    column("region", "text", |row, out| out.text(&row.event().context.region)),
    column("city", "text", |row, out| out.text(&row.event().context.city)),
    column("device_type", "text", |row, out| out.text(&row.event().context.device_type)),
    column("metadata", "jsonb", |row, out| out.json(row.event().metadata.as_ref())),
    column("time_on_page", "integer", |row, out| out.integer(row.impression().and_then(|of| of.time_on_page))),
    column("scroll_depth_percent", "integer", |row, out| out.integer(row.impression().and_then(|of| of.scroll_depth_percent))),
    column("page_load_time", "integer", |row, out| out.integer(row.impression().and_then(|of| of.page_load_time))),
    column("bounce", "boolean", |row, out| out.boolean(row.impression().and_then(|of| of.bounce))),
    column("is_first_exposure", "boolean", |row, out| out.boolean(row.impression().and_then(|of| of.is_first_exposure))),
    column("user_was_eligible", "boolean", |row, out| out.boolean(row.impression().and_then(|of| of.user_was_eligible))),
    column("user_eligibility_status", "jsonb", |row, out| {
        out.json(row.impression().and_then(|of| of.user_eligibility_status.as_ref()))
    }),
    column("user_context", "jsonb", |row, out| out.json(row.impression().and_then(|of| of.user_context.as_ref()))),
    column("time_to_convert", "integer", |row, out| out.integer(row.conversion().and_then(|of| of.time_to_convert))),
    column("is_first_conversion_for_experiment", "boolean", |row, out| {
        out.boolean(row.conversion().and_then(|of| of.is_first_conversion_for_experiment))
    }),
    column("conversion_attribution_source", "text", |row, out| {
        out.optional_text(row.conversion().and_then(|of| of.conversion_attribution_source.as_deref()))
    }),
    column("conversion_window_days", "integer", |row, out| {
        out.integer(row.conversion().and_then(|of| of.conversion_window_days))
    }),
    column("original_exposure_date", "timestamptz", |row, out| {
        out.time(row.conversion().and_then(|of| of.original_exposure_date))
    }),
    column("conversion_eligibility_verified", "boolean", |row, out| {
        out.boolean(row.conversion().and_then(|of| of.conversion_eligibility_verified))
    }),
    column("source", "text", |row, out| out.optional_text(row.conversion().and_then(|of| of.source.as_deref()))),
    column("medium", "text", |row, out| out.optional_text(row.conversion().and_then(|of| of.medium.as_deref()))),
    column("details", "jsonb", |row, out| out.json(row.conversion().and_then(|of| of.details.as_ref()))),
    column("conversion_context", "jsonb", |row, out| out.json(row.conversion().and_then(|of| of.conversion_context.as_ref()))),
    column("previous_id", "text", |row, out| out.optional_text(row.identity().and_then(|of| of.previous_id.as_deref()))),
    column("group_id", "text", |row, out| out.optional_text(row.identity().and_then(|of| of.group_id.as_deref()))),
];

/// Values of binary COPY.
pub(crate) struct Values<'a> {
    buffer: &'a mut Vec<u8>,
}

impl Values<'_> {
    fn value(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
        self.buffer.extend_from_slice(bytes);
    }

    fn null(&mut self) {
        self.buffer.extend_from_slice(&(-1i32).to_be_bytes());
    }

    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.null(),
        }
    }

    fn uuid(&mut self, id: Uuid) {
        self.value(id.as_bytes());
    }

    fn text(&mut self, text: &Option<String>) {
        self.optional_text(text.as_deref());
    }

    fn optional_text(&mut self, text: Option<&str>) {
        self.optional(text, |out, text| out.value(text.as_bytes()));
    }

    fn integer(&mut self, number: Option<i32>) {
        self.optional(number, |out, number| out.value(&number.to_be_bytes()));
    }

    fn boolean(&mut self, truth: Option<bool>) {
        self.optional(truth, |out, truth| out.value(&[u8::from(truth)]));
    }

    fn time(&mut self, time: Option<Micros>) {
        self.optional(time, |out, time| out.value(&Timestamp(time).to_bytes()));
    }

    /// One byte of version, then the text.
    fn json(&mut self, object: Option<&JsonObject>) {
        let Some(object) = object else { return self.null() };
        let text = object.get().as_bytes();
        self.buffer.extend_from_slice(&(text.len() as i32 + 1).to_be_bytes());
        self.buffer.push(1);
        self.buffer.extend_from_slice(text);
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
        self.buffer.extend_from_slice(&(8 + 2 * digits.len() as i32).to_be_bytes());
        self.buffer.extend_from_slice(&(digits.len() as i16).to_be_bytes());
        self.buffer.extend_from_slice(&(digits.len() as i16 - 3).to_be_bytes());
        self.buffer.extend_from_slice(&sign.to_be_bytes());
        self.buffer.extend_from_slice(&6u16.to_be_bytes());
        for digit in digits {
            self.buffer.extend_from_slice(&digit.to_be_bytes());
        }
    }
}
