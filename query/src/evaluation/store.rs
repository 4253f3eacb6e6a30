//! The SQL of evaluations: what is due, what was recorded, and the transaction that records.

use std::collections::BTreeMap;

use catalogue::webhooks::add_notice;
use catalogue::{Period, Timestamp};
use events::Micros;
use events::fact::FACT_TABLES;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use super::findings::{Change, Findings};
use super::notices::{Notice, Of};

/// The locks of those who evaluate and of those who send, one process each. The first number is the name of this program in ASCII.
pub(super) const EVALUATES: &str = "SELECT pg_try_advisory_lock(2003134834, 2)";
/// See [`EVALUATES`].
pub(super) const DELIVERS: &str = "SELECT pg_try_advisory_lock(2003134834, 3)";

/// A project, and the time of its newest event in microseconds since 1970, none before any.
pub(super) struct Project {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) newest: Option<i64>,
}

/// Returns all projects.
pub(super) async fn projects(connection: &mut PgConnection) -> Result<Vec<Project>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT p.id, p.name, (SELECT max(event_time) FROM project_progress g WHERE g.project_id = p.id) AS newest
         FROM projects p ORDER BY p.name",
    )
    .fetch_all(connection)
    .await?;
    let project = |row: &sqlx::postgres::PgRow| {
        let newest = row.try_get::<Option<Timestamp>, _>("newest")?.map(|time| time.0.0);
        Ok(Project { id: row.try_get("id")?, name: row.try_get("name")?, newest })
    };
    rows.iter().map(project).collect()
}

/// Next offsets by log and log partition.
pub(super) type Positions = BTreeMap<String, i64>;

/// Returns how far the logs are stored.
pub(super) async fn positions(connection: &mut PgConnection) -> Result<Positions, sqlx::Error> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT log_id || '/' || log_partition, next_offset FROM checkpoints").fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// Returns how far a project is evaluated; none if it never was.
pub(super) async fn progress(connection: &mut PgConnection, project: Uuid) -> Result<Option<Positions>, sqlx::Error> {
    let found: Option<String> = sqlx::query_scalar("SELECT positions::text FROM evaluation_progress WHERE project_id = $1")
        .bind(project)
        .fetch_optional(connection)
        .await?;
    Ok(found.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Notes how far a project is evaluated.
pub(super) async fn set_progress(connection: &mut PgConnection, project: Uuid, positions: &Positions) -> Result<(), sqlx::Error> {
    let text = serde_json::to_string(positions).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "INSERT INTO evaluation_progress (project_id, positions) VALUES ($1, $2::jsonb)
         ON CONFLICT (project_id) DO UPDATE SET positions = excluded.positions",
    )
    .bind(project)
    .bind(text)
    .execute(connection)
    .await?;
    Ok(())
}

/// Returns the time of the oldest event of a project that is stored between two positions, in microseconds since 1970; none if none is.
pub(super) async fn touched(
    connection: &mut PgConnection,
    project: Uuid,
    from: &Positions,
    to: &Positions,
) -> Result<Option<i64>, sqlx::Error> {
    let range = |(place, end): (&String, &i64)| {
        let (log_id, partition) = place.split_once('/')?;
        let (log_id, partition): (Uuid, i32) = (log_id.parse().ok()?, partition.parse().ok()?);
        let start = from.get(place).copied().unwrap_or(0);
        // A log that is read again begins before.
        let start = if start > *end { 0 } else { start };
        (start < *end).then(|| {
            (
                start,
                *end,
                format!("(log_id = '{log_id}' AND log_partition = {partition} AND log_offset >= {start} AND log_offset < {end})"),
            )
        })
    };
    let ranges: Vec<(i64, i64, String)> = to.iter().filter_map(range).collect();
    if ranges.is_empty() {
        return Ok(None);
    }
    // One range of all offsets, for the index.
    let first = ranges.iter().map(|(start, ..)| *start).min().unwrap_or(0);
    let end = ranges.iter().map(|(_, end, _)| *end).max().unwrap_or(0);
    let exact: Vec<&str> = ranges.iter().map(|(.., exact)| exact.as_str()).collect();
    let of_table = |table: &str| {
        format!(
            "(SELECT min(event_time) FROM {table} WHERE project_id = '{project}' AND log_offset >= {first} AND log_offset < {end} AND ({}))",
            exact.join(" OR ")
        )
    };
    let all: Vec<String> = FACT_TABLES.iter().map(|table| of_table(table.name)).collect();
    let oldest = sqlx::query_scalar::<_, Option<Timestamp>>(AssertSqlSafe(format!("SELECT least({})", all.join(", "))));
    Ok(oldest.fetch_one(connection).await?.map(|time| time.0.0))
}

/// Returns the first exposure of an experiment, in microseconds since 1970; none if nobody was exposed.
pub(super) async fn first_exposure(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Option<i64>, sqlx::Error> {
    let first = "SELECT min(first_exposure_date) FROM user_experiment_participation WHERE project_id = $1 AND experiment_id = $2";
    let first = sqlx::query_scalar::<_, Option<Timestamp>>(first).bind(project).bind(experiment);
    Ok(first.fetch_one(connection).await?.map(|time| time.0.0))
}

/// Returns the as-of times of the first and the last recorded day of an experiment, in microseconds since 1970.
pub(super) async fn recorded(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
) -> Result<Option<(i64, i64)>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT min(as_of) AS first, max(as_of) AS last FROM evaluations
         WHERE project_id = $1 AND experiment_id = $2 AND period = 'day'",
    )
    .bind(project)
    .bind(experiment)
    .fetch_one(connection)
    .await?;
    let time = |name| Ok::<_, sqlx::Error>(row.try_get::<Option<Timestamp>, _>(name)?.map(|time| time.0.0));
    Ok(time("first")?.zip(time("last")?))
}

/// A record that is there.
pub(super) struct Recorded {
    pub(super) revision: i32,
    pub(super) findings: Findings,
}

/// Returns the last revision of the record of a moment.
pub(super) async fn record_of(
    connection: &mut PgConnection,
    (project, experiment): (Uuid, Uuid),
    period: Period,
    as_of: i64,
) -> Result<Option<Recorded>, sqlx::Error> {
    let row = sqlx::query(
        "SELECT revision, answer::text AS answer FROM evaluations
         WHERE project_id = $1 AND experiment_id = $2 AND period = $3 AND as_of = $4 ORDER BY revision DESC LIMIT 1",
    )
    .bind(project)
    .bind(experiment)
    .bind(period)
    .bind(Timestamp(Micros(as_of)))
    .fetch_optional(connection)
    .await?;
    row.map(|row| Ok(Recorded { revision: row.try_get("revision")?, findings: findings(row.try_get("answer")?)? })).transpose()
}

/// Returns what the last record before a moment found, of a day or of an hour.
pub(super) async fn record_before(
    connection: &mut PgConnection,
    (project, experiment): (Uuid, Uuid),
    periods: &[Period],
    as_of: i64,
) -> Result<Option<Findings>, sqlx::Error> {
    let periods: Vec<&str> = periods.iter().map(|period| period.as_str()).collect();
    let answer: Option<String> = sqlx::query_scalar(
        "SELECT answer::text FROM evaluations
         WHERE project_id = $1 AND experiment_id = $2 AND period = ANY ($3) AND as_of < $4
         ORDER BY as_of DESC, revision DESC LIMIT 1",
    )
    .bind(project)
    .bind(experiment)
    .bind(periods)
    .bind(Timestamp(Micros(as_of)))
    .fetch_optional(connection)
    .await?;
    answer.map(|answer| findings(&answer)).transpose()
}

fn findings(answer: &str) -> Result<Findings, sqlx::Error> {
    let answer: Value = serde_json::from_str(answer).map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Findings::of(&answer))
}

/// Stores a record, and what is told because of it, in one transaction. Returns whether it was stored: somebody may have been first.
pub(super) async fn record(
    connection: &mut PgConnection,
    project: Uuid,
    of: &Of<'_>,
    (answer, json): (&Value, &str),
    changes: &[Change],
    notices: &[Notice],
) -> Result<bool, sqlx::Error> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let changes = serde_json::to_string(changes).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let experiment = of.experiment.0;
    let mut transaction = connection.begin().await?;
    let stored = sqlx::query(
        "INSERT INTO evaluations (project_id, experiment_id, period, as_of, revision, status, decision, health, exposed_users,
             settings_hash, method_version, answer, changes)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13::json) ON CONFLICT DO NOTHING",
    )
    .bind(project)
    .bind(experiment)
    .bind(of.period)
    .bind(Timestamp(Micros(of.as_of)))
    .bind(of.revision)
    .bind(text(&answer["status"]))
    .bind(answer["decision"]["status"].as_str())
    .bind(text(&answer["health"]["overall"]))
    .bind(answer["population"]["exposed_users"].as_i64().unwrap_or(0))
    .bind(text(&answer["settings_hash"]))
    .bind(text(&answer["method_version"]))
    .bind(json)
    .bind(changes)
    .execute(&mut *transaction)
    .await?;
    if stored.rows_affected() == 0 {
        return Ok(false);
    }
    for notice in notices {
        tell(&mut transaction, project, experiment, (notice.id(of), notice.kind, &notice.body(of))).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Makes a notice that was not made yet, and sends it on its way to all webhooks that want it.
pub(super) async fn tell(
    connection: &mut PgConnection,
    project: Uuid,
    experiment: Uuid,
    (id, kind, body): (Uuid, catalogue::NoticeKind, &Value),
) -> Result<(), sqlx::Error> {
    let Some(number) = add_notice(connection, project, id, experiment, kind, body).await? else { return Ok(()) };
    sqlx::query(
        "INSERT INTO deliveries (webhook_id, number, experiment_id)
         SELECT id, $2, $3 FROM webhooks
         WHERE project_id = $1 AND removed_at IS NULL AND (kinds = '{}' OR $4 = ANY (kinds))",
    )
    .bind(project)
    .bind(number)
    .bind(experiment)
    .bind(kind)
    .execute(connection)
    .await?;
    Ok(())
}

/// An experiment of which nothing has come for twice as long as it ever took in the last four weeks.
pub(super) struct Silent {
    pub(super) project: Uuid,
    pub(super) project_name: String,
    pub(super) experiment: Uuid,
    pub(super) name: String,
    /// The newest event of the project.
    pub(super) newest: i64,
    /// The longest time between two days with exposures, in days; with any events, where other events than impressions expose users.
    pub(super) usual_days: i64,
}

/// Returns the running experiments of projects that have no more events. This asks for the time of this machine's Postgres: silence has
/// no event that could tell.
pub(super) async fn silent(connection: &mut PgConnection) -> Result<Vec<Silent>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT p.id AS project, p.name AS project_name, e.id AS experiment, e.name, n.newest, g.usual
         FROM experiments e JOIN projects p ON p.id = e.project_id
         CROSS JOIN LATERAL (SELECT max(event_time) AS newest FROM project_progress g WHERE g.project_id = p.id) n
         CROSS JOIN LATERAL (
             SELECT max(day - former)::bigint AS usual FROM (
                 SELECT day, lag(day) OVER (ORDER BY day) AS former FROM (
                     SELECT DISTINCT day FROM daily_rollups r
                     WHERE r.project_id = e.project_id AND NOT r.is_bot
                       AND (e.exposure IS NOT NULL OR (r.kind = 'impression' AND r.experiment_id = e.id))
                       AND r.day > (n.newest AT TIME ZONE 'UTC')::date - 28) d) f) g
         WHERE e.status = 'running' AND now() - n.newest > 2 * g.usual * interval '1 day'",
    )
    .fetch_all(connection)
    .await?;
    let silent = |row: &sqlx::postgres::PgRow| {
        Ok(Silent {
            project: row.try_get("project")?,
            project_name: row.try_get("project_name")?,
            experiment: row.try_get("experiment")?,
            name: row.try_get("name")?,
            newest: row.try_get::<Timestamp, _>("newest")?.0.0,
            usual_days: row.try_get("usual")?,
        })
    };
    rows.iter().map(silent).collect()
}
