//! Which month may leave, and what keeps one here.

use events::Micros;
use events::fact::FactTable;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use super::tables::{self, Frozen};
use crate::database::Timestamp;
use crate::partitions::Month;

/// Days for which a month stays after its end, and after the last row was stored in it.
const QUIET_DAYS: i64 = 60;
/// Days that an experiment's answers settle for, after its last window.
const SETTLES_DAYS: i64 = 30;
/// Days before a first exposure that answers about an experiment look back to, at most.
const LOOKBACK_DAYS: i64 = 30;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All rows are kept, or no month is old enough.
    Nothing,
    /// This one is due, and has to stay for now.
    Held(Month, String),
    /// This one may leave.
    Due(Month),
}

/// Returns how many whole months before the present one are kept; none: all.
async fn months_kept(connection: &mut PgConnection) -> Result<Option<u32>, sqlx::Error> {
    let kept: Option<i32> = sqlx::query_scalar("SELECT months_kept FROM retention").fetch_one(connection).await?;
    Ok(kept.and_then(|kept| u32::try_from(kept).ok()))
}

/// Looks at the oldest month that was not restored.
pub(super) async fn look(connection: &mut PgConnection, now: Micros) -> Result<Look, sqlx::Error> {
    let Some(kept) = months_kept(connection).await? else { return Ok(Look::Nothing) };
    let known: Vec<String> =
        sqlx::query_scalar("SELECT to_char(month, 'YYYY-MM') FROM months").fetch_all(&mut *connection).await?;
    let known: Vec<Month> = known.iter().filter_map(|month| Month::parse(month)).collect();
    let attached = tables::attached(connection).await?;
    let Some((month, tables)) = attached.into_iter().find(|(month, _)| !known.contains(month)) else { return Ok(Look::Nothing) };
    let is_old = Month::of(now).is_some_and(|present| month < present.minus(kept));
    if !is_old || month.plus(1).start().0 + QUIET_DAYS * Micros::DAY > now.0 {
        return Ok(Look::Nothing);
    }
    let held = |why: String| Ok(Look::Held(month, why));
    if let Some(stored) = last_receipt(connection, month, &tables).await?
        && stored.0 + QUIET_DAYS * Micros::DAY > now.0
    {
        return held(format!("a row was stored in it that was received at {stored}, less than {QUIET_DAYS} days ago"));
    }
    match touched(connection, month, &tables, now).await? {
        Touched::Held(why) => held(why),
        Touched::Free(_) => Ok(Look::Due(month)),
    }
}

/// Returns the SQL of all rows of a month, with some of the columns that all fact tables have.
fn rows_of(month: Month, tables: &[&'static FactTable], columns: &str) -> String {
    let select = |table: &&FactTable| {
        let names_experiment = table.columns().any(|column| column.name == "experiment_id");
        let experiment = if names_experiment { "experiment_id" } else { "NULL::uuid AS experiment_id" };
        format!("SELECT {columns}, {experiment} FROM {}", month.table(table.name))
    };
    tables.iter().map(select).collect::<Vec<_>>().join(" UNION ALL ")
}

async fn last_receipt(
    connection: &mut PgConnection,
    month: Month,
    tables: &[&'static FactTable],
) -> Result<Option<Micros>, sqlx::Error> {
    let query = format!("SELECT max(received_at) FROM ({}) f", rows_of(month, tables, "received_at"));
    let last: Option<Timestamp> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(connection).await?;
    Ok(last.map(|time| time.0))
}

/// What a month's rows mean for experiments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    /// One of them still needs the rows.
    Held(String),
    /// These are over, and are frozen with the month.
    Free(Frozen),
}

/// Finds the experiments that a month's rows belong to: rows name them, or were there when a user of theirs had been exposed, since a
/// conversion that names none counts for all. One that is not over needs its rows, and those shortly before its first exposure, too.
pub(super) async fn touched(
    connection: &mut PgConnection,
    month: Month,
    tables: &[&'static FactTable],
    now: Micros,
) -> Result<Touched, sqlx::Error> {
    // Before all that rests on them.
    let versions: Vec<(Uuid, i64)> = sqlx::query_as(
        "SELECT p.id, coalesce(v.version, 0) FROM projects p LEFT JOIN catalogue_versions v ON v.project_id = p.id ORDER BY p.id",
    )
    .fetch_all(&mut *connection)
    .await?;
    let behind: Option<String> = sqlx::query_scalar(
        "SELECT e.name FROM experiments_behind b JOIN experiments e ON e.project_id = b.project_id AND e.id = b.experiment_id
         ORDER BY b.since LIMIT 1",
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(name) = behind {
        return Ok(Touched::Held(format!("experiment {name:?} is being computed again, perhaps from its rows")));
    }
    let query = format!(
        "WITH r AS MATERIALIZED (
             SELECT project_id, max(event_time) AS last, array_agg(DISTINCT experiment_id) FILTER (WHERE experiment_id IS NOT NULL) AS named
             FROM ({}) f GROUP BY project_id),
         e AS (
             SELECT e.project_id, e.id, e.name, e.frozen_at IS NOT NULL AS is_frozen, e.id = ANY (r.named) IS TRUE AS is_named, r.last,
                    (e.status = 'archived' OR e.ended_at + interval '1 day' * ({SETTLES_DAYS} + greatest(e.conversion_window_days,
                        (SELECT max(m.window_days) FROM metrics m WHERE m.project_id = e.project_id AND m.experiment_id = e.id))) < $1)
                    IS TRUE AS is_over,
                    (SELECT min(p.first_exposure_date) FROM user_experiment_participation p
                     WHERE p.project_id = e.project_id AND p.experiment_id = e.id) AS began
             FROM experiments e JOIN r ON r.project_id = e.project_id)
         SELECT NULL::uuid AS id, project_id, NULL AS name, NULL AS is_over FROM r
         UNION ALL
         SELECT id, project_id, name, is_over FROM e
         WHERE NOT is_frozen AND (is_named OR began <= last + CASE WHEN is_over THEN interval '0' ELSE interval '{LOOKBACK_DAYS} days' END)
         ORDER BY is_over, name, id",
        rows_of(month, tables, "project_id, event_time")
    );
    let mut frozen = Frozen::default();
    let mut projects: Vec<Uuid> = Vec::new();
    for row in sqlx::query(AssertSqlSafe(query)).bind(Timestamp(now)).fetch_all(connection).await? {
        let project: Uuid = row.try_get("project_id")?;
        match (row.try_get::<Option<Uuid>, _>("id")?, row.try_get::<Option<bool>, _>("is_over")?) {
            (None, _) => projects.push(project),
            (Some(id), Some(true)) => frozen.experiments.push((project, id)),
            (Some(_), _) => {
                let name: String = row.try_get("name")?;
                return Ok(Touched::Held(format!(
                    "experiment {name:?} of project {project} has events in it or looks back to them, and is neither archived nor ended \
                     longer ago than its window and {SETTLES_DAYS} days"
                )));
            }
        }
    }
    frozen.versions = versions.into_iter().filter(|(project, _)| projects.contains(project)).collect();
    Ok(Touched::Free(frozen))
}
