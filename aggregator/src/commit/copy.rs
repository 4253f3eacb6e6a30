//! Rows to the staging table: its columns, and the bytes of binary COPY, side by side.
//!
//! Source of the format: PostgreSQL documentation, COPY, "Binary Format"; of each value the type's `recv` function
//! (`numeric_recv`, `jsonb_recv`, `timestamptz_recv`).

use events::{Details, Event, JsonObject, Kind, Micros, Money};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;

/// Makes the temporary tables of a commit, once for each connection.
///
/// `staging` keeps its rows over the commit, since it is filled before the transaction; the others are emptied by it.
pub(crate) async fn make_tables(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let columns: Vec<String> = COLUMNS.iter().map(|(name, sql_type)| format!("{name} {sql_type}")).collect();
    let statement = format!(
        "CREATE TEMPORARY TABLE IF NOT EXISTS staging ({}) ON COMMIT PRESERVE ROWS;
         CREATE TEMPORARY TABLE IF NOT EXISTS touched (
             project_id uuid, user_id uuid, experiment_id uuid, conversion_id uuid, conversion_claimed_at timestamptz
         ) ON COMMIT DELETE ROWS;
         CREATE TEMPORARY TABLE IF NOT EXISTS keys (project_id uuid, user_id uuid, experiment_id uuid) ON COMMIT DELETE ROWS;
         CREATE TEMPORARY TABLE IF NOT EXISTS eligible (
             project_id uuid, user_id uuid, experiment_id uuid, position bigint, variant_position bigint, first_variant_id uuid,
             variant_id uuid, event_time timestamptz, id uuid
         ) ON COMMIT DELETE ROWS;
         CREATE TEMPORARY TABLE IF NOT EXISTS candidates (
             project_id uuid, user_id uuid, experiment_id uuid, first_time timestamptz, first_variant_id uuid,
             attribution_method text, id uuid,
             claimed_at timestamptz, event_time timestamptz, conversion_type text, conversion_value numeric, currency text
         ) ON COMMIT DELETE ROWS;
         CREATE TEMPORARY TABLE IF NOT EXISTS credited (
             project_id uuid, user_id uuid, experiment_id uuid, attribution_method text, id uuid, claimed_at timestamptz,
             event_time timestamptz, conversion_type text, conversion_value numeric, currency text, variant_id uuid,
             confidence numeric, hours integer
         ) ON COMMIT DELETE ROWS",
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
    const CHUNK_BYTES: usize = 1 << 20;
    let mut copy = connection.copy_in_raw("COPY staging FROM STDIN (FORMAT BINARY)").await?;
    let mut buffer = Vec::with_capacity(CHUNK_BYTES + 64 * 1024);
    buffer.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
    buffer.extend_from_slice(&[0; 8]); // no flags, no extension
    for row in rows {
        encode(row, &mut buffer);
        if buffer.len() >= CHUNK_BYTES {
            copy.send(buffer.as_slice()).await?;
            buffer.clear();
        }
    }
    buffer.extend_from_slice(&(-1i16).to_be_bytes());
    copy.send(buffer.as_slice()).await?;
    copy.finish().await?;
    Ok(())
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

/// The staging table's columns, in the order in which `encode` writes them.
const COLUMNS: [(&str, &str); 59] = [
    ("kind", "smallint"),
    ("project_id", "uuid"),
    ("id", "uuid"),
    ("user_id", "uuid"),
    ("external_id", "text"),
    ("anonymous_id", "text"),
    ("claimed_at", "timestamptz"),
    ("event_time", "timestamptz"),
    ("sent_at", "timestamptz"),
    ("received_at", "timestamptz"),
    ("untimed", "boolean"),
    ("known_by_id_alone", "boolean"),
    ("is_bot", "boolean"),
    ("log_partition", "integer"),
    ("log_offset", "bigint"),
    ("session_identifier", "text"),
    ("name", "text"),
    ("experiment_id", "uuid"),
    ("variant_id", "uuid"),
    ("campaign_id", "uuid"),
    ("component_id", "uuid"),
    ("value", "numeric(20, 6)"),
    ("currency", "text"),
    ("page_url", "text"),
    ("referrer", "text"),
    ("user_agent", "text"),
    ("language_code", "text"),
    ("time_zone", "text"),
    ("screen_resolution", "text"),
    ("viewport_size", "text"),
    ("connection_type", "text"),
    ("utm_source", "text"),
    ("utm_medium", "text"),
    ("utm_campaign", "text"),
    ("country_code", "text"),
    ("region", "text"),
    ("city", "text"),
    ("device_type", "text"),
    ("metadata", "jsonb"),
    ("time_on_page", "integer"),
    ("scroll_depth_percent", "integer"),
    ("page_load_time", "integer"),
    ("bounce", "boolean"),
    ("is_first_exposure", "boolean"),
    ("user_was_eligible", "boolean"),
    ("user_eligibility_status", "jsonb"),
    ("user_context", "jsonb"),
    ("time_to_convert", "integer"),
    ("is_first_conversion_for_experiment", "boolean"),
    ("conversion_attribution_source", "text"),
    ("conversion_window_days", "integer"),
    ("original_exposure_date", "timestamptz"),
    ("conversion_eligibility_verified", "boolean"),
    ("source", "text"),
    ("medium", "text"),
    ("details", "jsonb"),
    ("conversion_context", "jsonb"),
    ("previous_id", "text"),
    ("group_id", "text"),
];

/// Writes one row: the number of columns, then each value with its length, -1 for null.
fn encode(row: &StagedRow<'_>, buffer: &mut Vec<u8>) {
    let event = &row.decoded.event;
    let Event { context, details, .. } = event;
    let mut out = Values { buffer };
    out.buffer.extend_from_slice(&(COLUMNS.len() as i16).to_be_bytes());
    out.value(&kind_number(event.kind()).to_be_bytes());
    out.uuid(event.project_id.0);
    out.uuid(event.event_id.0);
    out.uuid(event.user_id.0);
    out.text(event.external_id.as_deref());
    out.text(event.anonymous_id.as_deref());
    out.time(Some(event.claimed_at));
    out.time(Some(event.event_time));
    out.time(event.sent_at);
    out.time(Some(event.received_at));
    out.boolean(Some(event.untimed));
    out.boolean(Some(event.is_known_by_id_alone()));
    out.boolean(Some(event.is_bot));
    out.value(&(row.decoded.partition as i32).to_be_bytes());
    out.value(&(row.decoded.offset as i64).to_be_bytes());
    out.text(event.session_id.as_deref());
    out.text(event.name.as_deref());
    for id in [row.ids.experiment, row.ids.variant, row.ids.campaign, row.ids.component] {
        out.optional(id, Values::uuid);
    }
    out.optional(event.value, Values::money);
    out.text(event.currency.as_deref());
    for text in [
        &context.page_url,
        &context.referrer,
        &context.user_agent,
        &context.language,
        &context.time_zone,
        &context.screen,
        &context.viewport,
        &context.connection,
        &context.utm_source,
        &context.utm_medium,
        &context.utm_campaign,
        &context.country,
        &context.region,
        &context.city,
        &context.device_type,
    ] {
        out.text(text.as_deref());
    }
    out.json(event.metadata.as_ref());

    let of_impression = 8;
    let of_conversion = 10;
    let of_identity = 2;
    match details {
        Details::Impression(impression) => {
            out.integer(impression.time_on_page);
            out.integer(impression.scroll_depth_percent);
            out.integer(impression.page_load_time);
            out.boolean(impression.bounce);
            out.boolean(impression.is_first_exposure);
            out.boolean(impression.user_was_eligible);
            out.json(impression.user_eligibility_status.as_ref());
            out.json(impression.user_context.as_ref());
            out.nulls(of_conversion + of_identity);
        }
        Details::Conversion(conversion) => {
            out.nulls(of_impression);
            out.integer(conversion.time_to_convert);
            out.boolean(conversion.is_first_conversion_for_experiment);
            out.text(conversion.conversion_attribution_source.as_deref());
            out.integer(conversion.conversion_window_days);
            out.time(conversion.original_exposure_date);
            out.boolean(conversion.conversion_eligibility_verified);
            out.text(conversion.source.as_deref());
            out.text(conversion.medium.as_deref());
            out.json(conversion.details.as_ref());
            out.json(conversion.conversion_context.as_ref());
            out.nulls(of_identity);
        }
        Details::Identity(identity) => {
            out.nulls(of_impression + of_conversion);
            out.text(identity.previous_id.as_deref());
            out.text(identity.group_id.as_deref());
        }
        Details::CampaignEvent | Details::Engagement => out.nulls(of_impression + of_conversion + of_identity),
    }
}

/// Values of binary COPY.
struct Values<'a> {
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

    fn nulls(&mut self, count: usize) {
        for _ in 0..count {
            self.null();
        }
    }

    fn uuid(&mut self, id: Uuid) {
        self.value(id.as_bytes());
    }

    fn text(&mut self, text: Option<&str>) {
        self.optional(text, |out, text| out.value(text.as_bytes()));
    }

    fn integer(&mut self, number: Option<i32>) {
        self.optional(number, |out, number| out.value(&number.to_be_bytes()));
    }

    fn boolean(&mut self, truth: Option<bool>) {
        self.optional(truth, |out, truth| out.value(&[u8::from(truth)]));
    }

    /// Microseconds since 2000-01-01T00:00:00Z.
    fn time(&mut self, time: Option<Micros>) {
        const EPOCH_2000: i64 = 946_684_800 * Micros::SECOND;
        self.optional(time, |out, time| out.value(&time.0.saturating_sub(EPOCH_2000).to_be_bytes()));
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
