//! What is stored, read at rest for the judge: rows, checkpoints and what is derived, from Postgres, and the records of the log itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use eventlog::{Read, ReadBound};
use events::wire::{self, Entry};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

/// A fact row, of whatever table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub kind: String,
    pub id: Uuid,
    pub user_id: Uuid,
    /// The user as the client named it.
    pub user: String,
    /// Microseconds.
    pub claimed_at: i64,
    pub partition: u32,
    pub offset: u64,
    pub name: Option<String>,
    pub value: Option<String>,
    pub weight: String,
}

/// An eligible user of the experiment, as it is derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Participation {
    pub first: i64,
    pub first_id: Uuid,
    pub impressions: i64,
    pub has_converted: bool,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub rows: Vec<Row>,
    /// Next offsets of the log's partitions.
    pub next: BTreeMap<u32, u64>,
    /// Places of dead letters, with their codes.
    pub dead: BTreeMap<(u32, u64), String>,
    /// Of each log partition, how many records were passed: events, by the projects' progress, and rejected ones, by their counts. Of all that is stored
    /// these alone would grow by a record that is applied twice.
    pub passed: BTreeMap<u32, i64>,
    /// By the user's id.
    pub participations: BTreeMap<Uuid, Participation>,
    /// Attributed conversions: user and conversion's id.
    pub attributed: Vec<(Uuid, Uuid)>,
    /// The most rows of a user who takes part.
    pub user_rows_max: i64,
    /// Moves of checkpoints and leases that the watch saw, and those of them that went back.
    pub moves: i64,
    pub moves_back: i64,
}

/// Watches that checkpoints and epochs never go back, from inside of Postgres. A move that is rolled back is not counted.
pub(super) const WATCH: &str = "
    CREATE SCHEMA IF NOT EXISTS judge;
    CREATE TABLE IF NOT EXISTS judge.moves (back boolean NOT NULL);
    CREATE OR REPLACE FUNCTION judge.watch() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
        IF TG_OP = 'DELETE' THEN
            INSERT INTO judge.moves VALUES (true);
            RETURN OLD;
        END IF;
        -- Leases have no offset.
        INSERT INTO judge.moves VALUES (NEW.epoch < OLD.epoch OR
            coalesce((to_jsonb(NEW)->>'next_offset')::bigint < (to_jsonb(OLD)->>'next_offset')::bigint, false));
        RETURN NEW;
    END $f$;
    CREATE OR REPLACE TRIGGER judge BEFORE UPDATE OR DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION judge.watch();
    CREATE OR REPLACE TRIGGER judge_epoch BEFORE UPDATE OF epoch OR DELETE ON leases FOR EACH ROW EXECUTE FUNCTION judge.watch()";

impl Stored {
    /// Reads all of it in one snapshot.
    pub(super) async fn read(connection: &mut PgConnection) -> anyhow::Result<Self> {
        sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ").execute(&mut *connection).await?;
        let stored = Self::read_now(connection).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        stored
    }

    async fn read_now(connection: &mut PgConnection) -> anyhow::Result<Self> {
        let mut stored = Stored::default();
        let facts = "SELECT kind, id, user_id, coalesce(external_id, ''), (extract(epoch FROM claimed_at) * 1000000)::bigint, log_partition, log_offset,
                            name, value, coalesce(weight, '')
                     FROM (SELECT 'impression' AS kind, id, user_id, external_id, claimed_at, log_partition, log_offset, NULL AS name, NULL AS value,
                                  metadata->>'weight' AS weight FROM impressions
                           UNION ALL SELECT 'conversion', id, user_id, external_id, claimed_at, log_partition, log_offset, conversion_type,
                                  conversion_value::text, metadata->>'weight' FROM conversions
                           UNION ALL SELECT 'engagement', id, user_id, external_id, claimed_at, log_partition, log_offset, event_type,
                                  NULL, metadata->>'weight' FROM engagement_events) AS facts";
        for row in sqlx::query(facts).fetch_all(&mut *connection).await.context("the fact rows")? {
            stored.rows.push(Row {
                kind: row.try_get(0)?,
                id: row.try_get(1)?,
                user_id: row.try_get(2)?,
                user: row.try_get(3)?,
                claimed_at: row.try_get(4)?,
                partition: u32::try_from(row.try_get::<i32, _>(5)?)?,
                offset: u64::try_from(row.try_get::<i64, _>(6)?)?,
                name: row.try_get(7)?,
                value: row.try_get(8)?,
                weight: row.try_get(9)?,
            });
        }
        for row in sqlx::query("SELECT log_partition, next_offset FROM checkpoints").fetch_all(&mut *connection).await? {
            stored.next.insert(u32::try_from(row.try_get::<i32, _>(0)?)?, u64::try_from(row.try_get::<i64, _>(1)?)?);
        }
        for row in sqlx::query("SELECT log_partition, log_offset, code FROM dead_letters").fetch_all(&mut *connection).await? {
            let place = (u32::try_from(row.try_get::<i32, _>(0)?)?, u64::try_from(row.try_get::<i64, _>(1)?)?);
            stored.dead.insert(place, row.try_get(2)?);
        }
        let passed = "SELECT log_partition, sum(records)::bigint FROM
                          (SELECT log_partition, records FROM project_progress UNION ALL SELECT log_partition, events FROM rejected_counts) AS passed
                      GROUP BY 1";
        for row in sqlx::query(passed).fetch_all(&mut *connection).await? {
            stored.passed.insert(u32::try_from(row.try_get::<i32, _>(0)?)?, row.try_get(1)?);
        }
        let participations =
            "SELECT user_id, (extract(epoch FROM first_exposure_date) * 1000000)::bigint, first_impression_id, total_impressions,
                                     has_converted FROM user_experiment_participation";
        for row in sqlx::query(participations).fetch_all(&mut *connection).await? {
            let participation = Participation {
                first: row.try_get(1)?,
                first_id: row.try_get(2)?,
                impressions: row.try_get(3)?,
                has_converted: row.try_get(4)?,
            };
            stored.participations.insert(row.try_get(0)?, participation);
        }
        let attributed = "SELECT user_id, conversion_id FROM conversion_attribution ORDER BY 1, 2";
        for row in sqlx::query(attributed).fetch_all(&mut *connection).await? {
            stored.attributed.push((row.try_get(0)?, row.try_get(1)?));
        }
        let rest = "SELECT (SELECT rows_max FROM user_rows_limit),
                           (SELECT count(*) FROM judge.moves), (SELECT count(*) FROM judge.moves WHERE back)";
        let row = sqlx::query(rest).fetch_one(&mut *connection).await?;
        stored.user_rows_max = row.try_get(0)?;
        (stored.moves, stored.moves_back) = (row.try_get(1)?, row.try_get(2)?);
        Ok(stored)
    }
}

/// What tells an event from all others: kind, user, claimed time and id.
pub(super) type Identity = (String, Uuid, i64, Uuid);

/// The records of a log partition that are left, in their order.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub start: u64,
    pub end: u64,
    /// From `start` on; none for what is no event of ours.
    pub identities: Vec<Option<Identity>>,
}

/// Reads a log from its start to its end.
pub(super) async fn records(log: &dyn Read) -> anyhow::Result<BTreeMap<u32, Records>> {
    let mut all = BTreeMap::new();
    for partition in 0..log.identity().partitions {
        let range = log.offsets(partition).await?;
        let mut records = Records { start: range.start, end: range.end, identities: Vec::new() };
        let mut next = range.start;
        while next < range.end {
            let bound = ReadBound { records_max: 10_000, bytes_max: 16 << 20, wait_max: Duration::from_secs(20) };
            let read = log.read(partition, next, bound).await?;
            let Some(last) = read.last() else {
                bail!("log partition {partition}: nothing at {next}, before the end {}", range.end)
            };
            next = last.offset + 1;
            for record in read {
                records.identities.push(match wire::read(&record.bytes) {
                    Ok(Entry::Event(event)) => {
                        Some((event.kind().as_str().to_owned(), event.user_id.0, event.claimed_at.0, event.event_id.0))
                    }
                    _ => None,
                });
            }
        }
        all.insert(partition, records);
    }
    Ok(all)
}
