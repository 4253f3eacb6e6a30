//! Daily sums of new facts, for lists and dashboards.

use std::collections::BTreeMap;

use events::{Event, Kind, Micros};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::commit::StagedRow;

/// What is summed apart. It holds the log partition, so that two writers never meet in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    project: Uuid,
    /// UTC days since 1970-01-01.
    day: i32,
    kind: &'static str,
    event: &'a str,
    ids: [Option<Uuid>; 4],
    currency: Option<&'a str>,
    is_bot: bool,
    partition: i32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    events: i64,
    /// Millionths.
    value: i128,
}

/// Adds new facts to the sums of their days.
pub(crate) async fn add(connection: &mut PgConnection, log_id: Uuid, new: &[StagedRow<'_>]) -> Result<(), sqlx::Error> {
    let mut sums: BTreeMap<Group<'_>, Sum> = BTreeMap::new();
    for row in new {
        let sum = sums.entry(group(row)).or_default();
        sum.events += 1;
        sum.value += value(&row.decoded.event);
    }
    if sums.is_empty() {
        return Ok(());
    }
    let column = |id: usize| -> Vec<Option<Uuid>> { sums.keys().map(|group| group.ids[id]).collect() };
    sqlx::query(
        "INSERT INTO daily_rollups AS r (log_id, project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id,
                                         currency, is_bot, log_partition, events, value)
         SELECT $1, n.project_id, '1970-01-01'::date + n.day, n.kind, n.event, n.experiment_id, n.variant_id, n.campaign_id,
                n.component_id, n.currency, n.is_bot, n.log_partition, n.events, n.millionths::numeric * 0.000001
         FROM unnest($2::uuid[], $3::int[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::uuid[], $9::uuid[], $10::text[],
                     $11::boolean[], $12::int[], $13::bigint[], $14::text[])
              AS n (project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id, currency, is_bot,
                    log_partition, events, millionths)
         ON CONFLICT (project_id, day, kind, event, experiment_id, variant_id, campaign_id, component_id, currency, is_bot,
                      log_id, log_partition)
         DO UPDATE SET events = r.events + excluded.events, value = r.value + excluded.value",
    )
    .bind(log_id)
    .bind(sums.keys().map(|group| group.project).collect::<Vec<_>>())
    .bind(sums.keys().map(|group| group.day).collect::<Vec<_>>())
    .bind(sums.keys().map(|group| group.kind).collect::<Vec<_>>())
    .bind(sums.keys().map(|group| group.event).collect::<Vec<_>>())
    .bind(column(0))
    .bind(column(1))
    .bind(column(2))
    .bind(column(3))
    .bind(sums.keys().map(|group| group.currency).collect::<Vec<_>>())
    .bind(sums.keys().map(|group| group.is_bot).collect::<Vec<_>>())
    .bind(sums.keys().map(|group| group.partition).collect::<Vec<_>>())
    .bind(sums.values().map(|sum| sum.events).collect::<Vec<_>>())
    .bind(sums.values().map(|sum| sum.value.to_string()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Millionths; only conversions and campaign events have a value of their own.
fn value(event: &Event) -> i128 {
    let has_value = matches!(event.kind(), Kind::Conversion | Kind::CampaignEvent);
    event.value.filter(|_| has_value).map_or(0, |value| value.millionths())
}

fn group<'a>(row: &StagedRow<'a>) -> Group<'a> {
    const DAY: i64 = 86_400 * Micros::SECOND;
    let event = &row.decoded.event;
    let kind = event.kind();
    // Which names a table has a column for is said in `facts.rs`.
    let (has_experiment, has_campaign) = match kind {
        Kind::Impression | Kind::Engagement => (true, false),
        Kind::Conversion => (true, true),
        Kind::CampaignEvent => (false, true),
        Kind::Identity => (false, false),
    };
    let of_experiment = |id: Option<Uuid>| id.filter(|_| has_experiment);
    let of_campaign = |id: Option<Uuid>| id.filter(|_| has_campaign);
    Group {
        project: event.project_id.0,
        day: event.event_time.0.div_euclid(DAY) as i32,
        kind: kind.as_str(),
        event: if kind == Kind::Impression { "impression" } else { event.name.as_deref().unwrap_or("") },
        ids: [
            of_experiment(row.ids.experiment),
            of_experiment(row.ids.variant),
            of_campaign(row.ids.campaign),
            of_campaign(row.ids.component),
        ],
        currency: event.currency.as_deref().filter(|_| matches!(kind, Kind::Conversion | Kind::CampaignEvent)),
        is_bot: event.is_bot,
        partition: row.decoded.partition as i32,
    }
}
