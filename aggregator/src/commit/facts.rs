//! New facts: each identity once, in its table.
//!
//! Two ways lead there. Through the staging table any batch can go: what is stored already is passed over. A batch without a
//! repetition can be copied straight, which costs about half; the first identity that is stored already fails all of it, and
//! the batch is repeated through staging.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use events::Kind;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::commit::copy::{COLUMNS, Column, Encoded, kind_number};
use crate::commit::{CommitError, StagedRow};

/// The fact tables by name: the order in which every transaction takes their rows' locks.
pub(crate) const TABLES: [(&str, Kind); 5] = [
    ("campaign_events", Kind::CampaignEvent),
    ("conversions", Kind::Conversion),
    ("engagement_events", Kind::Engagement),
    ("identity_events", Kind::Identity),
    ("impressions", Kind::Impression),
];

/// Drops staged rows whose id alone was seen before: a client's retry of an event without a time carries our later
/// receipt, and only its id tells that it is the same. Of several in one batch the first stays.
pub(crate) async fn drop_known_ids(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(
        "WITH firsts AS (
             SELECT DISTINCT ON (project_id, kind, id) project_id, kind, id, log_partition, log_offset
             FROM staging WHERE known_by_id_alone ORDER BY project_id, kind, id, log_partition, log_offset
         ), new AS (
             INSERT INTO untimed_ids (project_id, kind, event_id)
             SELECT project_id, kind, id FROM firsts ORDER BY project_id, kind, id
             ON CONFLICT DO NOTHING RETURNING project_id, kind, event_id
         ), kept AS (
             SELECT f.log_partition, f.log_offset FROM firsts f
             JOIN new n ON n.project_id = f.project_id AND n.kind = f.kind AND n.event_id = f.id
         )
         DELETE FROM staging s WHERE s.known_by_id_alone
             AND NOT EXISTS (SELECT 1 FROM kept k WHERE k.log_partition = s.log_partition AND k.log_offset = s.log_offset)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts the staged rows that are new. Returns the place of each in the log: log partition and offset. Of several rows
/// with one identity the first in the log stays.
pub(crate) async fn insert(connection: &mut PgConnection, kinds: &[Kind]) -> Result<BTreeSet<(u32, u64)>, sqlx::Error> {
    let mut new = BTreeSet::new();
    for (table, _) in LAYOUTS.iter().zip(TABLES).filter(|(_, (_, kind))| kinds.contains(kind)) {
        let rows = sqlx::query(AssertSqlSafe(table.insert.as_str())).fetch_all(&mut *connection).await?;
        for row in rows {
            let (partition, offset): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
            new.insert((partition as u32, offset as u64));
        }
    }
    Ok(new)
}

/// Rows of one kind, ordered by key and encoded for their own table.
pub(crate) struct Straight {
    statement: &'static str,
    rows: u64,
    bytes: Vec<u8>,
}

/// Encodes rows for their tables, if they may go there straight: none is known by its id alone, and no identity is twice
/// among them.
pub(crate) fn encode(rows: &[StagedRow<'_>]) -> Option<Vec<Straight>> {
    let mut tables = Vec::new();
    for (layout, (_, kind)) in LAYOUTS.iter().zip(TABLES) {
        let mut of_kind: Vec<&StagedRow<'_>> = rows.iter().filter(|row| row.event().kind() == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let key = |row: &&StagedRow<'_>| (row.event().project_id, row.event().event_id, row.event().claimed_at);
        of_kind.sort_unstable_by_key(key);
        if of_kind.iter().any(|row| row.event().is_known_by_id_alone())
            || of_kind.windows(2).any(|two| key(&two[0]) == key(&two[1]))
        {
            return None;
        }
        let mut bytes = Encoded::begin();
        for row in &of_kind {
            bytes.row(row, layout.columns.iter().copied());
        }
        tables.push(Straight { statement: &layout.copy, rows: of_kind.len() as u64, bytes: bytes.end() });
    }
    Some(tables)
}

/// Copies encoded rows into their tables. The first identity that is stored already fails all of it with 23505.
pub(crate) async fn copy(connection: &mut PgConnection, tables: &[Straight]) -> Result<(), CommitError> {
    for table in tables {
        let mut copy = connection.copy_in_raw(table.statement).await?;
        copy.send(table.bytes.as_slice()).await?;
        let copied = copy.finish().await?;
        if copied != table.rows {
            return Err(CommitError::Staging { staged: copied as i64, sent: table.rows as usize });
        }
    }
    Ok(())
}

/// Columns that every fact table has under the name that staging uses.
const COMMON: [&str; 31] = [
    "project_id",
    "id",
    "user_id",
    "external_id",
    "anonymous_id",
    "claimed_at",
    "event_time",
    "sent_at",
    "received_at",
    "untimed",
    "is_bot",
    "log_partition",
    "log_offset",
    "session_identifier",
    "page_url",
    "referrer",
    "user_agent",
    "language_code",
    "time_zone",
    "screen_resolution",
    "viewport_size",
    "connection_type",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "country_code",
    "region",
    "city",
    "device_type",
    "metadata",
    "log_id",
];

/// The table's own columns, each with its expression over staging where the names differ.
fn own_columns(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Impression => &[
            ("experiment_id", "experiment_id"),
            ("variant_id", "variant_id"),
            ("time_on_page", "time_on_page"),
            ("scroll_depth_percent", "scroll_depth_percent"),
            ("page_load_time", "page_load_time"),
            ("bounce", "bounce"),
            ("is_first_exposure", "is_first_exposure"),
            ("user_was_eligible", "user_was_eligible"),
            ("user_eligibility_status", "user_eligibility_status"),
            ("user_context", "user_context"),
        ],
        Kind::Conversion => &[
            ("experiment_id", "experiment_id"),
            ("variant_id", "variant_id"),
            ("campaign_id", "campaign_id"),
            ("component_id", "component_id"),
            ("conversion_type", "name"),
            ("conversion_value", "value"),
            ("currency", "currency"),
            ("source", "source"),
            ("medium", "medium"),
            ("time_to_convert", "time_to_convert"),
            ("is_first_conversion_for_experiment", "is_first_conversion_for_experiment"),
            ("conversion_attribution_source", "conversion_attribution_source"),
            ("conversion_window_days", "conversion_window_days"),
            ("original_exposure_date", "original_exposure_date"),
            ("conversion_eligibility_verified", "conversion_eligibility_verified"),
            ("details", "details"),
            ("conversion_context", "conversion_context"),
        ],
        Kind::CampaignEvent => &[
            ("campaign_id", "campaign_id"),
            ("component_id", "component_id"),
            ("event_type", "name"),
            ("revenue", "value"),
            ("currency", "currency"),
        ],
        Kind::Engagement => &[("experiment_id", "experiment_id"), ("variant_id", "variant_id"), ("event_type", "name")],
        Kind::Identity => &[("event_type", "name"), ("previous_id", "previous_id"), ("group_id", "group_id")],
    }
}

/// How rows get into a fact table.
struct Layout {
    /// From the staging table, what is new.
    insert: String,
    /// From our bytes, of these columns.
    copy: String,
    columns: Vec<&'static Column>,
}

/// One for each table of [`TABLES`].
static LAYOUTS: LazyLock<Vec<Layout>> = LazyLock::new(|| TABLES.iter().map(|(table, kind)| layout(table, *kind)).collect());

fn layout(table: &str, kind: Kind) -> Layout {
    let same = COMMON.iter().map(|name| (*name, *name));
    let (names, staged): (Vec<&str>, Vec<&str>) = same.chain(own_columns(kind).iter().copied()).unzip();
    let insert = format!(
        "INSERT INTO {table} ({names})
         SELECT DISTINCT ON (project_id, id, claimed_at) {values} FROM staging WHERE kind = {number}
         ORDER BY project_id, id, claimed_at, log_partition, log_offset
         ON CONFLICT DO NOTHING RETURNING log_partition, log_offset",
        names = names.join(", "),
        values = staged.join(", "),
        number = kind_number(kind),
    );
    let copy = format!("COPY {table} ({}) FROM STDIN (FORMAT BINARY)", names.join(", "));
    let column = |name: &&str| COLUMNS.iter().find(|column| column.name == *name);
    Layout { insert, copy, columns: staged.iter().filter_map(column).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_a_fact_table_is_a_staged_one() {
        for (layout, (table, kind)) in LAYOUTS.iter().zip(TABLES) {
            assert_eq!(layout.columns.len(), COMMON.len() + own_columns(kind).len(), "{table}");
        }
    }
}
