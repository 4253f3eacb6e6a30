//! Participation and attribution of the keys that new facts touch, recomputed from the raw rows of those keys.
//!
//! A key is (project, user, experiment). Both tables are pure functions of raw rows and catalogue, so any order, batching
//! or repetition of the same records gives the same rows. Frozen experiments are left alone: some of their rows may be gone.

use sqlx::{PgConnection, Row};
use uuid::Uuid;

/// Fills `keys` from `touched`.
const TOUCHED_KEYS: &str = "
    INSERT INTO keys
    SELECT t.project_id, t.user_id, t.experiment_id FROM touched t
    JOIN experiments e ON e.project_id = t.project_id AND e.id = t.experiment_id AND e.frozen_at IS NULL
    UNION
    SELECT i.project_id, i.user_id, i.experiment_id
    FROM (SELECT DISTINCT project_id, user_id FROM touched WHERE experiment_id IS NULL) t
    JOIN impressions i ON i.project_id = t.project_id AND i.user_id = t.user_id
    JOIN experiments e ON e.project_id = i.project_id AND e.id = i.experiment_id AND e.frozen_at IS NULL";

/// Fills `eligible` from the raw rows of `keys`. `position` counts a key's eligible impressions in their order:
/// (`event_time`, `event_id`, `claimed_at`); the one at 1 is *first*. `variant_position` counts those of one variant.
const ELIGIBLE: &str = "
    INSERT INTO eligible
    SELECT k.project_id, k.user_id, k.experiment_id,
           row_number() OVER (of_key ORDER BY i.event_time, i.id, i.claimed_at),
           row_number() OVER (of_key_and_variant ORDER BY i.event_time, i.id, i.claimed_at),
           first_value(i.variant_id) OVER (of_key ORDER BY i.event_time, i.id, i.claimed_at),
           i.variant_id, i.event_time, i.id
    FROM keys k
    JOIN experiments e ON e.project_id = k.project_id AND e.id = k.experiment_id
    JOIN impressions i ON i.project_id = k.project_id AND i.user_id = k.user_id AND i.experiment_id = k.experiment_id
    JOIN variants v ON v.project_id = k.project_id AND v.experiment_id = k.experiment_id AND v.id = i.variant_id
    WHERE e.status <> 'draft' AND i.user_was_eligible IS NOT FALSE AND NOT i.is_bot
      AND (e.started_at IS NULL OR i.event_time >= e.started_at) AND (e.ended_at IS NULL OR i.event_time < e.ended_at)
    WINDOW of_key AS (PARTITION BY k.project_id, k.user_id, k.experiment_id),
           of_key_and_variant AS (PARTITION BY k.project_id, k.user_id, k.experiment_id, i.variant_id)";

/// Fills `candidates`: conversions that are no bot's, name the experiment or none, and lie in first <= t <= first + window.
const CANDIDATES: &str = "
    INSERT INTO candidates
    SELECT f.project_id, f.user_id, f.experiment_id, f.event_time, f.variant_id, e.attribution_method,
           c.id, c.claimed_at, c.event_time, c.conversion_type, c.conversion_value, c.currency
    FROM eligible f
    JOIN experiments e ON e.project_id = f.project_id AND e.id = f.experiment_id
    JOIN conversions c ON c.project_id = f.project_id AND c.user_id = f.user_id
     AND (c.experiment_id IS NULL OR c.experiment_id = f.experiment_id) AND NOT c.is_bot
     AND c.event_time >= f.event_time
     AND c.event_time <= f.event_time + e.conversion_window_days * interval '86400 seconds'
    WHERE f.position = 1";

/// Fills `credited`, one row for each candidate. Eligible impressions and candidates of a key pass by in the order of time,
/// impressions first among equals: so each candidate sees n, the number of impressions up to t, and the number of those that
/// showed the variant of *first*. The impression at position n is the last one up to t. Linear in the rows of a key.
const CREDITED: &str = "
    INSERT INTO credited
    WITH passing AS (
        SELECT project_id, user_id, experiment_id, event_time, false AS is_candidate, position,
               CASE WHEN variant_id = first_variant_id THEN variant_position END AS first_position, first_variant_id,
               NULL::timestamptz AS first_time, NULL::text AS attribution_method, NULL::uuid AS id, NULL::timestamptz AS claimed_at,
               NULL::text AS conversion_type, NULL::numeric AS conversion_value, NULL::text AS currency
        FROM eligible
        UNION ALL
        SELECT project_id, user_id, experiment_id, event_time, true, NULL, NULL, first_variant_id, first_time,
               attribution_method, id, claimed_at, conversion_type, conversion_value, currency
        FROM candidates
    ), counted AS (
        SELECT *, max(position) OVER passed AS n, max(first_position) OVER passed AS of_first
        FROM passing
        WINDOW passed AS (PARTITION BY project_id, user_id, experiment_id ORDER BY event_time, is_candidate
                          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
    ), decided AS (
        SELECT c.*, l.variant_id AS last_variant_id, l.variant_position AS of_last, c.attribution_method = 'last_exposure' AS by_last
        FROM counted c
        JOIN eligible l ON l.project_id = c.project_id AND l.user_id = c.user_id AND l.experiment_id = c.experiment_id
         AND l.position = c.n
        WHERE c.is_candidate
    )
    SELECT project_id, user_id, experiment_id, attribution_method, id, claimed_at, event_time, conversion_type,
           conversion_value, currency, CASE WHEN by_last THEN last_variant_id ELSE first_variant_id END,
           ((200 * CASE WHEN by_last THEN of_last ELSE of_first END + n) / (2 * n))::numeric / 100,
           floor(extract(epoch FROM event_time - first_time) / 3600)::integer
    FROM decided";

/// Makes `conversion_attribution` right for `keys`. Returns the number of rows changed.
const ATTRIBUTION: &str = "
    WITH removed AS (
        DELETE FROM conversion_attribution a USING keys k
        WHERE a.project_id = k.project_id AND a.user_id = k.user_id AND a.experiment_id = k.experiment_id
          AND NOT EXISTS (
              SELECT 1 FROM credited w
              WHERE w.project_id = a.project_id AND w.user_id = a.user_id AND w.experiment_id = a.experiment_id
                AND w.id = a.conversion_id AND w.claimed_at = a.conversion_claimed_at)
        RETURNING 1
    ), stored AS (
        INSERT INTO conversion_attribution AS a (
            project_id, id, user_id, conversion_id, conversion_claimed_at, conversion_time, conversion_type, experiment_id,
            variant_id, attribution_method, attribution_confidence, time_to_conversion_hours, conversion_value_attributed, currency)
        SELECT project_id,
               uuid_generate_v5(uuid_ns_oid(), concat_ws(':', 'weir:attribution', project_id, id,
                   (extract(epoch FROM claimed_at) * 1000000)::bigint, experiment_id)),
               user_id, id, claimed_at, event_time, conversion_type, experiment_id, variant_id, attribution_method, confidence,
               hours, conversion_value, currency
        FROM credited
        ON CONFLICT (project_id, experiment_id, user_id, conversion_id, conversion_claimed_at) DO UPDATE SET
            conversion_time = excluded.conversion_time, conversion_type = excluded.conversion_type,
            variant_id = excluded.variant_id, attribution_method = excluded.attribution_method,
            attribution_confidence = excluded.attribution_confidence,
            time_to_conversion_hours = excluded.time_to_conversion_hours,
            conversion_value_attributed = excluded.conversion_value_attributed, currency = excluded.currency,
            updated_at = now()
        WHERE (a.conversion_time, a.conversion_type, a.variant_id, a.attribution_method, a.attribution_confidence,
               a.time_to_conversion_hours, a.conversion_value_attributed, a.currency)
            IS DISTINCT FROM (excluded.conversion_time, excluded.conversion_type, excluded.variant_id,
               excluded.attribution_method, excluded.attribution_confidence, excluded.time_to_conversion_hours,
               excluded.conversion_value_attributed, excluded.currency)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM removed) + (SELECT count(*) FROM stored)";

/// Makes `user_experiment_participation` right for `keys`, after attribution. Returns the number of rows changed.
const PARTICIPATION: &str = "
    WITH firsts AS (
        SELECT project_id, user_id, experiment_id, count(*) AS total, min(event_time) AS first_time,
               (array_agg(variant_id ORDER BY position))[1] AS variant_id, (array_agg(id ORDER BY position))[1] AS first_id,
               array_agg(DISTINCT variant_id ORDER BY variant_id) AS seen
        FROM eligible GROUP BY 1, 2, 3
    ), removed AS (
        DELETE FROM user_experiment_participation p USING keys k
        WHERE p.project_id = k.project_id AND p.user_id = k.user_id AND p.experiment_id = k.experiment_id
          AND NOT EXISTS (
              SELECT 1 FROM eligible f
              WHERE f.project_id = p.project_id AND f.user_id = p.user_id AND f.experiment_id = p.experiment_id)
        RETURNING 1
    ), stored AS (
        INSERT INTO user_experiment_participation AS p (
            project_id, id, user_id, experiment_id, variant_id, first_exposure_date, first_impression_id, total_impressions,
            variants_seen, has_converted, first_conversion_date, conversion_within_window)
        SELECT f.project_id,
               uuid_generate_v5(uuid_ns_oid(), concat_ws(':', 'weir:participation', f.project_id, f.experiment_id, f.user_id)),
               f.user_id, f.experiment_id, f.variant_id, f.first_time, f.first_id, f.total, f.seen, c.event_time IS NOT NULL,
               c.event_time,
               EXISTS (SELECT 1 FROM conversion_attribution a WHERE a.project_id = f.project_id
                       AND a.experiment_id = f.experiment_id AND a.user_id = f.user_id)
        FROM firsts f
        CROSS JOIN LATERAL (
            SELECT min(c.event_time) AS event_time FROM conversions c
            WHERE c.project_id = f.project_id AND c.user_id = f.user_id AND c.event_time >= f.first_time
              AND (c.experiment_id IS NULL OR c.experiment_id = f.experiment_id)
        ) c
        ON CONFLICT (project_id, experiment_id, user_id) DO UPDATE SET
            variant_id = excluded.variant_id, first_exposure_date = excluded.first_exposure_date,
            first_impression_id = excluded.first_impression_id, total_impressions = excluded.total_impressions,
            variants_seen = excluded.variants_seen, has_converted = excluded.has_converted,
            first_conversion_date = excluded.first_conversion_date,
            conversion_within_window = excluded.conversion_within_window, updated_at = now()
        WHERE (p.variant_id, p.first_exposure_date, p.first_impression_id, p.total_impressions, p.variants_seen,
               p.has_converted, p.first_conversion_date, p.conversion_within_window)
            IS DISTINCT FROM (excluded.variant_id, excluded.first_exposure_date, excluded.first_impression_id,
               excluded.total_impressions, excluded.variants_seen, excluded.has_converted, excluded.first_conversion_date,
               excluded.conversion_within_window)
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM removed) + (SELECT count(*) FROM stored)";

/// New conversions that no experiment was credited with.
const UNATTRIBUTED: &str = "
    SELECT count(*) FROM touched t WHERE t.conversion_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM keys k
        JOIN conversion_attribution a ON a.project_id = k.project_id AND a.experiment_id = k.experiment_id AND a.user_id = k.user_id
        WHERE k.project_id = t.project_id AND k.user_id = t.user_id
          AND a.conversion_id = t.conversion_id AND a.conversion_claimed_at = t.conversion_claimed_at)";

/// Rows that a computation changed, inserted or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// In `user_experiment_participation`.
    pub participation: u64,
    /// In `conversion_attribution`.
    pub attribution: u64,
}

/// Brings both tables up to date with the facts that `touched` names. Returns the number of new conversions that stay
/// without attribution.
pub(crate) async fn follow_touched(connection: &mut PgConnection) -> Result<u64, sqlx::Error> {
    fill(connection, "ANALYZE keys", TOUCHED_KEYS).await?;
    follow_keys(connection).await?;
    count(connection, UNATTRIBUTED).await
}

/// Brings both tables up to date for one whole experiment: every user who has a raw impression of it, or a row that may
/// have to go. The caller holds all checkpoints and the catalogue.
pub(crate) async fn follow_experiment(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Differences, sqlx::Error> {
    sqlx::query(
        "INSERT INTO keys
         SELECT project_id, user_id, experiment_id FROM impressions WHERE project_id = $1 AND experiment_id = $2
         UNION SELECT project_id, user_id, experiment_id FROM user_experiment_participation
               WHERE project_id = $1 AND experiment_id = $2
         UNION SELECT project_id, user_id, experiment_id FROM conversion_attribution
               WHERE project_id = $1 AND experiment_id = $2",
    )
    .bind(project)
    .bind(experiment)
    .execute(&mut *connection)
    .await?;
    sqlx::raw_sql("ANALYZE keys").execute(&mut *connection).await?;
    follow_keys(connection).await
}

async fn follow_keys(connection: &mut PgConnection) -> Result<Differences, sqlx::Error> {
    fill(connection, "ANALYZE eligible", ELIGIBLE).await?;
    fill(connection, "ANALYZE candidates", CANDIDATES).await?;
    fill(connection, "ANALYZE credited", CREDITED).await?;
    let attribution = count(connection, ATTRIBUTION).await?;
    let participation = count(connection, PARTICIPATION).await?;
    Ok(Differences { participation, attribution })
}

/// Fills a temporary table. Nobody else analyses it, and without statistics the planner joins it by nested loops, whose
/// time grows with the square of its rows; for few rows that is quicker than the statistics.
async fn fill(connection: &mut PgConnection, analyze: &'static str, statement: &'static str) -> Result<(), sqlx::Error> {
    const FEW_ROWS: u64 = 500;
    let filled = sqlx::raw_sql(statement).execute(&mut *connection).await?;
    if filled.rows_affected() > FEW_ROWS {
        sqlx::raw_sql(analyze).execute(connection).await?;
    }
    Ok(())
}

async fn count(connection: &mut PgConnection, statement: &'static str) -> Result<u64, sqlx::Error> {
    let count: i64 = sqlx::query(statement).fetch_one(connection).await?.try_get(0)?;
    Ok(count as u64)
}
