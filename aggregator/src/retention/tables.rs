//! Table partitions that leave and come back, in transactions that no writer waits for longer than a lock timeout.
//!
//! What takes long holds no lock that a writer needs: rows are read from a month that is closed, and read into a table that stands for
//! itself. What such a lock is needed for is one statement, and all of it, waiting for its locks included, ends within [`WAIT_MAX`] or
//! leaves nothing. Locks are taken in the order of a commit: checkpoints, catalogues, tables by name.

use std::time::Duration;

use catalogue::version;
use events::fact::{FACT_TABLES, FactTable};
use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::partitions::{self, Month};

/// How long writers may wait for a statement, the waits of the statement itself included. As for the making of months.
const WAIT_MAX: &str = "200ms";
const ATTEMPTS: u32 = 25;
/// Raised where something moved since it was read outside of the locks.
const MOVED: &str = "WEIR2";

/// How a statement under locks ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtOnce {
    Done,
    /// Its locks were taken, as often as it was tried. Nothing was changed.
    Busy,
    /// What it rests on has changed. Nothing was changed.
    Moved,
}

/// Runs statements of PL/pgSQL in one transaction, if that ends in time.
async fn at_once(connection: &mut PgConnection, statements: &str) -> Result<AtOnce, sqlx::Error> {
    let transaction = format!(
        "BEGIN; SET LOCAL lock_timeout = '{WAIT_MAX}'; SET LOCAL statement_timeout = '{WAIT_MAX}';
         DO $weir$ BEGIN {statements} END $weir$;
         SET LOCAL statement_timeout = 0; COMMIT"
    );
    for attempt in 1..=ATTEMPTS {
        let Err(error) = sqlx::raw_sql(AssertSqlSafe(transaction.as_str())).execute(&mut *connection).await else {
            return Ok(AtOnce::Done);
        };
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        if code.is_empty() {
            return Err(error); // the connection's
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        match code.as_str() {
            // A lock or the whole took too long, or two waited for each other.
            "55P03" | "57014" | "40P01" => tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 20)).await,
            MOVED => return Ok(AtOnce::Moved),
            _ => return Err(error),
        }
    }
    Ok(AtOnce::Busy)
}

/// Ends all commits and keeps others from beginning, and makers of table partitions.
fn lock_writers() -> String {
    format!(
        "PERFORM 1 FROM checkpoints ORDER BY log_id, log_partition FOR UPDATE;
         PERFORM pg_advisory_xact_lock({});",
        partitions::LOCK
    )
}

/// Locks the catalogues of projects, in the order that all take them.
fn lock_catalogues(projects: impl Iterator<Item = Uuid>) -> String {
    let mut keys: Vec<i64> = projects.map(version::key).collect();
    keys.sort_unstable();
    format!("PERFORM pg_advisory_xact_lock(key) FROM unnest(ARRAY[{}]::bigint[]) key;", join(keys.into_iter()))
}

/// What follows facts by their offsets, and what remembers them, reads all of them again.
fn raise_versions(projects: impl Iterator<Item = Uuid>) -> String {
    let projects = join(projects.map(|project| format!("'{project}'")));
    format!(
        "INSERT INTO catalogue_versions AS v (project_id, version) SELECT project_id, 1 FROM unnest(ARRAY[{projects}]::uuid[]) project_id
         ON CONFLICT (project_id) DO UPDATE SET version = v.version + 1;"
    )
}

fn audit(action: &str, month: Month, details: &serde_json::Value) -> String {
    format!(
        "INSERT INTO audit (actor, action, subject, details)
         VALUES ('weir as ' || current_user, '{action}', '{month}', '{details}'::jsonb);"
    )
}

fn join(items: impl Iterator<Item: ToString>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns the months that have table partitions, each with its fact tables by name, ascending.
pub(super) async fn attached(connection: &mut PgConnection) -> Result<Vec<(Month, Vec<&'static FactTable>)>, sqlx::Error> {
    let mut found: Vec<(Month, Vec<&'static FactTable>)> = Vec::new();
    for fact_table in &FACT_TABLES {
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass",
        )
        .bind(fact_table.name)
        .fetch_all(&mut *connection)
        .await?;
        for month in tables.iter().filter_map(|table| Month::of_table(fact_table.name, table)) {
            match found.iter_mut().find(|(other, _)| *other == month) {
                Some((_, tables)) => tables.push(fact_table),
                None => found.push((month, vec![fact_table])),
            }
        }
    }
    found.sort_by_key(|(month, _)| *month);
    Ok(found)
}

/// Moves the retention boundary to a month's end: from then on no row is stored in it.
pub(super) async fn close(connection: &mut PgConnection, month: Month) -> Result<AtOnce, sqlx::Error> {
    let ((_, to), date) = (month.bounds(), month.date());
    let statements = format!(
        "{}
         UPDATE horizon SET until = greatest(until, '{to}');
         INSERT INTO months (month, state) VALUES ('{date}', 'closed');
         {}",
        lock_writers(),
        audit("month.close", month, &json!({ "retention_boundary": to }))
    );
    at_once(connection, &statements).await
}

/// Experiments that are frozen with a month, and how the catalogues stood when they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frozen {
    /// By project and id.
    pub(super) experiments: Vec<(Uuid, Uuid)>,
    /// Of all projects with rows in the month.
    pub(super) versions: Vec<(Uuid, i64)>,
}

/// Detaches the table partitions of an archived month, freezes experiments, and stores that.
pub(super) async fn detach(
    connection: &mut PgConnection,
    month: Month,
    tables: &[&'static FactTable],
    frozen: &Frozen,
) -> Result<AtOnce, sqlx::Error> {
    let date = month.date();
    let projects = || frozen.versions.iter().map(|(project, _)| *project);
    let versions = join(frozen.versions.iter().map(|(project, version)| format!("('{project}'::uuid, {version}::bigint)")));
    let compare = if versions.is_empty() {
        String::new()
    } else {
        format!(
            "IF EXISTS (SELECT FROM (VALUES {versions}) s (project_id, version) LEFT JOIN catalogue_versions v USING (project_id)
                        WHERE coalesce(v.version, 0) <> s.version) THEN
                 RAISE EXCEPTION 'the catalogue has moved' USING ERRCODE = '{MOVED}';
             END IF;"
        )
    };
    let detach = |table: &&FactTable| format!("ALTER TABLE {0} DETACH PARTITION {1};", table.name, month.table(table.name));
    let experiments = join(frozen.experiments.iter().map(|(project, id)| format!("('{project}'::uuid, '{id}'::uuid)")));
    let freeze = if experiments.is_empty() {
        String::new()
    } else {
        format!(
            "UPDATE experiments SET frozen_at = now(), updated_at = now()
             WHERE (project_id, id) IN (VALUES {experiments}) AND frozen_at IS NULL;"
        )
    };
    let ids: Vec<Uuid> = frozen.experiments.iter().map(|(_, id)| *id).collect();
    let statements = format!(
        "{} {} {compare}
         {}
         {freeze}
         UPDATE months SET state = 'detached', problem = NULL, changed_at = now()
         WHERE month = '{date}' AND state = 'archived';
         IF NOT FOUND THEN RAISE EXCEPTION 'the month has moved' USING ERRCODE = '{MOVED}'; END IF;
         {} {}",
        lock_writers(),
        lock_catalogues(projects()),
        tables.iter().map(detach).collect::<Vec<_>>().join(" "),
        raise_versions(projects()),
        audit("month.detach", month, &json!({ "frozen_experiments": ids }))
    );
    at_once(connection, &statements).await
}

/// Drops the tables of a detached month, and stores that.
pub(super) async fn drop_detached(
    connection: &mut PgConnection,
    month: Month,
    tables: &[&'static FactTable],
) -> Result<AtOnce, sqlx::Error> {
    let date = month.date();
    let drop = |table: &&FactTable| format!("DROP TABLE {};", month.table(table.name));
    let statements = format!(
        "{}
         UPDATE months SET state = 'dropped', problem = NULL, changed_at = now()
         WHERE month = '{date}' AND state = 'detached';
         {}",
        tables.iter().map(drop).collect::<Vec<_>>().join(" "),
        audit("month.drop", month, &json!({}))
    );
    at_once(connection, &statements).await
}

/// Makes an empty table for a month's rows that nobody sees. What an earlier attempt left of it is replaced.
pub(super) async fn make_free(connection: &mut PgConnection, month: Month, fact_table: &FactTable) -> Result<(), sqlx::Error> {
    let table = month.table(fact_table.name);
    let (from, to) = month.bounds();
    // Of a partition, DROP TABLE would take rows that are seen: a month that is being restored has none.
    let statements = format!(
        "DO $weir$ BEGIN
             IF EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass('{table}')) THEN
                 RAISE EXCEPTION 'table {table} is attached already';
             END IF;
             DROP TABLE IF EXISTS {table};
             CREATE TABLE {table} (LIKE {0} INCLUDING ALL);
             ALTER TABLE {table} ADD CONSTRAINT {table}_month CHECK (claimed_at >= '{from}' AND claimed_at < '{to}');
         END $weir$",
        fact_table.name
    );
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await?;
    Ok(())
}

/// Attaches the tables of a month that is being restored, and stores that. Each has [`make_free`]'s constraint, so that none is read for it.
pub(super) async fn attach(
    connection: &mut PgConnection,
    month: Month,
    tables: &[&'static FactTable],
    projects: &[Uuid],
) -> Result<AtOnce, sqlx::Error> {
    let ((from, to), date) = (month.bounds(), month.date());
    // Neither is the default: what it does not hold is proved beforehand, beside its writers.
    let proof = format!("without_{}", month.to_string().replace('-', "_"));
    for table in tables {
        let default = format!("{}_default", table.name);
        let statements = format!(
            "ALTER TABLE {default} DROP CONSTRAINT IF EXISTS {proof};
             ALTER TABLE {default} ADD CONSTRAINT {proof} CHECK (claimed_at < '{from}' OR claimed_at >= '{to}') NOT VALID;"
        );
        match at_once(connection, &statements).await? {
            AtOnce::Done => {}
            other => return Ok(other),
        }
        let validate = format!("ALTER TABLE {default} VALIDATE CONSTRAINT {proof}");
        sqlx::raw_sql(AssertSqlSafe(validate)).execute(&mut *connection).await?;
    }
    let attach = |table: &&FactTable| {
        let (name, partition) = (table.name, month.table(table.name));
        format!(
            "ALTER TABLE {name} ATTACH PARTITION {partition} FOR VALUES FROM ('{from}') TO ('{to}');
             ALTER TABLE {partition} DROP CONSTRAINT {partition}_month;
             ALTER TABLE {name}_default DROP CONSTRAINT {proof};"
        )
    };
    let statements = format!(
        "{} {}
         {}
         UPDATE months SET state = 'restored', problem = NULL, changed_at = now()
         WHERE month = '{date}' AND state = 'restoring';
         IF NOT FOUND THEN RAISE EXCEPTION 'the month has moved' USING ERRCODE = '{MOVED}'; END IF;
         {} {}",
        lock_writers(),
        lock_catalogues(projects.iter().copied()),
        tables.iter().map(attach).collect::<Vec<_>>().join(" "),
        raise_versions(projects.iter().copied()),
        audit("month.attach", month, &json!({}))
    );
    at_once(connection, &statements).await
}
