//! New facts: each identity once, in its table, with what the later steps need to know of it.

use std::sync::LazyLock;

use events::Kind;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::commit::copy::kind_number;

/// The fact tables by name: the order in which every transaction takes their rows' locks.
pub(crate) const TABLES: [(&str, Kind); 5] = [
    ("campaign_events", Kind::CampaignEvent),
    ("conversions", Kind::Conversion),
    ("engagement_events", Kind::Engagement),
    ("identity_events", Kind::Identity),
    ("impressions", Kind::Impression),
];

/// How many rows of each kind were new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inserted(Vec<(Kind, u64)>);

impl Inserted {
    /// Returns the counts, kinds that had none left out.
    pub(crate) fn by_kind(&self) -> impl Iterator<Item = (Kind, u64)> + '_ {
        self.0.iter().copied().filter(|(_, count)| *count > 0)
    }

    /// Returns the number of new rows.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
}

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

/// Inserts the staged rows that are new, notes whose participation and attribution they touch, and adds them to the
/// daily sums. Of several rows with one identity the first in the log stays.
pub(crate) async fn insert(connection: &mut PgConnection, log_id: Uuid, kinds: &[Kind]) -> Result<Inserted, sqlx::Error> {
    let mut inserted = Inserted::default();
    for (number, (_, kind)) in TABLES.iter().enumerate().filter(|(_, (_, kind))| kinds.contains(kind)) {
        let statement = AssertSqlSafe(STATEMENTS[number].as_str());
        let row = sqlx::query(statement).bind(log_id).fetch_one(&mut *connection).await?;
        let count: i64 = row.try_get(0)?;
        inserted.0.push((*kind, count as u64));
    }
    Ok(inserted)
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

/// One statement for each table of [`TABLES`].
static STATEMENTS: LazyLock<Vec<String>> = LazyLock::new(|| TABLES.iter().map(|(table, kind)| statement(table, *kind)).collect());

fn statement(table: &str, kind: Kind) -> String {
    let own = own_columns(kind);
    let source = |column: &str| own.iter().find(|(name, _)| *name == column).map_or("NULL", |(name, _)| name);
    let expression = |column: &'static str| if column == "log_id" { "$1" } else { column };
    let columns: Vec<&str> = COMMON.into_iter().chain(own.iter().map(|(name, _)| *name)).collect();
    let values: Vec<&str> = COMMON.into_iter().map(expression).chain(own.iter().map(|(_, value)| *value)).collect();
    // A conversion that names no experiment touches every experiment of its user.
    let touched = match kind {
        Kind::Impression => {
            "INSERT INTO touched SELECT DISTINCT project_id, user_id, experiment_id, NULL::uuid, NULL::timestamptz
             FROM new WHERE experiment_id IS NOT NULL RETURNING 1"
        }
        Kind::Conversion => "INSERT INTO touched SELECT project_id, user_id, experiment_id, id, claimed_at FROM new RETURNING 1",
        _ => "SELECT 1 WHERE false",
    };
    let name = match kind {
        Kind::Impression => "'impression'",
        Kind::Conversion => "conversion_type",
        _ => "event_type",
    };
    let value = match kind {
        Kind::Conversion => "conversion_value",
        Kind::CampaignEvent => "revenue",
        _ => "0::numeric",
    };
    format!(
        "WITH new AS (
             INSERT INTO {table} ({columns})
             SELECT DISTINCT ON (project_id, id, claimed_at) {values}
             FROM staging WHERE kind = {number}
             ORDER BY project_id, id, claimed_at, log_partition, log_offset
             ON CONFLICT DO NOTHING RETURNING *
         ), noted AS (
             {touched}
         ), summed AS (
             INSERT INTO daily_rollups AS r (project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id,
                                             currency, is_bot, log_id, log_partition, events, value)
             SELECT project_id, (event_time AT TIME ZONE 'UTC')::date, '{kind}', {name}, {experiment}::uuid, {variant}::uuid,
                    {campaign}::uuid, {component}::uuid, {currency}::text, is_bot, log_id, log_partition, count(*),
                    coalesce(sum({value}), 0)
             FROM new GROUP BY 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12
             ON CONFLICT (project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id, currency, is_bot,
                          log_id, log_partition)
             DO UPDATE SET events = r.events + excluded.events, value = r.value + excluded.value
         )
         SELECT count(*) FROM new",
        columns = columns.join(", "),
        values = values.join(", "),
        number = kind_number(kind),
        kind = kind.as_str(),
        experiment = source("experiment_id"),
        variant = source("variant_id"),
        campaign = source("campaign_id"),
        component = source("component_id"),
        currency = source("currency"),
    )
}
