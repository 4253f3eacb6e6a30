//! What the collector refused: kept, so many of a project and day, and all counted.

use std::collections::BTreeMap;

use events::{Micros, RejectedEvent};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::database::Timestamp;

/// Rejected events that are kept of a project and a day of receipt (UTC).
pub(crate) const KEPT_MAX: i64 = 10_000;

/// Counts rejected events, each with its log partition, and keeps those that have room among their project's of the day.
pub(crate) async fn add(
    connection: &mut PgConnection,
    log_id: Uuid,
    rejected: &[(u32, RejectedEvent)],
) -> Result<(), sqlx::Error> {
    if rejected.is_empty() {
        return Ok(());
    }
    let mut counts: BTreeMap<(Uuid, i32, &str, u32), i64> = BTreeMap::new();
    for (partition, event) in rejected {
        *counts.entry((event.project_id.0, day(event.received_at), &event.code, *partition)).or_default() += 1;
    }
    let (projects, days): (Vec<Uuid>, Vec<i32>) = counts.keys().map(|(project, day, ..)| (*project, *day)).unzip();
    let before: Vec<(Uuid, i32, i64)> = sqlx::query_as(
        "SELECT c.project_id, c.day - '1970-01-01'::date, sum(c.events)::bigint FROM rejected_counts c
         WHERE (c.project_id, c.day) IN (
             SELECT n.project_id, '1970-01-01'::date + n.day FROM unnest($1::uuid[], $2::int[]) n (project_id, day))
         GROUP BY 1, 2",
    )
    .bind(&projects)
    .bind(&days)
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO rejected_counts AS c (log_id, project_id, day, code, log_partition, events)
         SELECT $1, n.project_id, '1970-01-01'::date + n.day, n.code, n.log_partition, n.events
         FROM unnest($2::uuid[], $3::int[], $4::text[], $5::int[], $6::bigint[]) AS n (project_id, day, code, log_partition, events)
         ON CONFLICT (project_id, day, code, log_id, log_partition) DO UPDATE SET events = c.events + excluded.events",
    )
    .bind(log_id)
    .bind(&projects)
    .bind(&days)
    .bind(counts.keys().map(|(_, _, code, _)| *code).collect::<Vec<_>>())
    .bind(counts.keys().map(|(.., partition)| *partition as i32).collect::<Vec<_>>())
    .bind(counts.values().copied().collect::<Vec<_>>())
    .execute(&mut *connection)
    .await?;
    let mut seen: BTreeMap<(Uuid, i32), i64> =
        before.into_iter().map(|(project, day, events)| ((project, day), events)).collect();
    let mut kept: Vec<(&RejectedEvent, &str)> = Vec::new();
    for (_, event) in rejected {
        let seen = seen.entry((event.project_id.0, day(event.received_at))).or_default();
        *seen += 1;
        // The collector sends no text of what is only to be counted.
        if let Some(text) = event.event.as_deref().filter(|_| *seen <= KEPT_MAX) {
            kept.push((event, text));
        }
    }
    kept.sort_by_key(|(event, _)| (event.project_id, event.received_at, event.id));
    sqlx::query(
        "INSERT INTO rejected_events (project_id, received_at, id, dialect, key, code, field, message, event)
         SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
         ON CONFLICT DO NOTHING",
    )
    .bind(kept.iter().map(|(event, _)| event.project_id.0).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| Timestamp(event.received_at)).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.id.0).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.dialect.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.key.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.code.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.field.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(event, _)| event.message.as_str()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, text)| *text).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

fn day(received_at: Micros) -> i32 {
    const DAY: i64 = 86_400 * Micros::SECOND;
    received_at.0.div_euclid(DAY) as i32
}
