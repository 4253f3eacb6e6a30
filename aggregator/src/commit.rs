//! One batch, one transaction: its steps in their order.
//!
//! The rows are encoded first, or the staging table is filled, outside of the transaction, so that no lock waits for a client
//! that thinks. Then:
//!
//! 0. the schema is one that this build knows, and stays it until the end;
//! 1. every checkpoint moves, by comparison: another owner of a log partition shows here, and nothing is committed;
//! 2. the catalogue's versions and the horizon are read under the projects' shared locks: if names moved, all starts over;
//! 3. new facts are stored, ordered by key, so that two workers never wait for each other in a circle;
//! 4. participation and attribution of the touched users are recomputed; 5. rollups and what is known of each project's progress grow;
//! 6. what the collector refused is kept, and dead letters are stored, among them records whose identity is stored with other content; 7. commit.

mod bisect;
pub(crate) mod changes;
pub(crate) mod checkpoint;
mod conflicts;
pub(crate) mod copy;
mod dead_letter;
pub(crate) mod derive;
mod event_names;
mod exposed;
mod facts;
pub(crate) mod history;
pub(crate) mod limit;
pub(crate) mod memory;
pub(crate) mod over_active;
pub(crate) mod participation;
mod progress;
mod rejected;
pub(crate) mod rollups;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::LazyLock;

use catalogue::names::Resolved;
use catalogue::schema::{self, UnsupportedSchema};
use catalogue::{Catalogue, version};
use events::fact::Fact;
use events::{Event, EventId, Kind, Micros, ProjectId, UserId};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use changes::NewRows;
use limit::{Tallies, TooMany};
use memory::{Grounds, Memory, Recalled};
use participation::Followed;

use crate::batch::{Batch, DeadLetter, Decoded};
use crate::database::{Fault, fault, is_duplicate_key};
use crate::partitions::Months;
use crate::silence::Silent;

/// An event with its ids, on its way into its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StagedRow<'a> {
    pub log_id: Uuid,
    pub decoded: &'a Decoded,
    pub ids: Resolved,
}

impl<'a> StagedRow<'a> {
    fn event(&self) -> &'a Event {
        &self.decoded.event
    }

    /// Returns its identity, in the order of the tables' key.
    fn key(&self) -> (ProjectId, UserId, Micros, EventId) {
        let event = self.event();
        (event.project_id, event.user_id, event.claimed_at, event.event_id)
    }

    /// Returns it as the fact tables' columns take it.
    fn fact(&self) -> Fact<'a> {
        Fact {
            event: self.event(),
            experiment_id: self.ids.experiment,
            variant_id: self.ids.variant,
            campaign_id: self.ids.campaign,
            component_id: self.ids.component,
            log_id: self.log_id,
            log_partition: self.decoded.partition,
            log_offset: self.decoded.offset,
        }
    }
}

/// How many rows of each kind were new; kinds that had none are not in it.
pub(crate) type Inserted = BTreeMap<Kind, u64>;

/// What a batch became.
#[derive(Debug)]
pub(crate) struct Stored {
    pub inserted: Inserted,
    pub duplicates: u64,
    pub followed: Followed,
    pub dead: Vec<DeadLetter>,
    /// Records of a stored identity with other content, more than are kept of their project.
    pub conflicts_passed: u64,
    /// Of the batch's log partitions, with these dead letters.
    pub tallies: Tallies,
}

/// Why a batch was not stored, or not surely.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// Another worker owns the log partition; nothing was changed, and nothing may be read on.
    #[error("log partition {partition}: the checkpoint or the epoch is not the one this batch starts from; another owner has it")]
    NotOwner {
        /// The log partition.
        partition: u32,
    },
    /// The database has a schema that this build does not know. Nothing was changed, and nothing may be stored.
    #[error(transparent)]
    Schema(#[from] UnsupportedSchema),
    /// The reply to COMMIT was lost, or the connection died in silence; the checkpoint tells whether it happened.
    #[error("whether the batch was committed is not known: {0}")]
    Unknown(sqlx::Error),
    /// Anything else; nothing was changed. The connection is not to be used again.
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    /// The batch holds more dead letters than may come. Nothing was changed; what lies before that record may be stored.
    #[error("log partition {}: {}", .0.partition, .0.text)]
    TooManyDeadLetters(TooMany),
    /// A count that must hold does not. Nothing was changed.
    #[error("staged {staged} rows of {sent}: the staging table does not hold what was sent to it")]
    Staging {
        /// Found.
        staged: i64,
        /// Expected.
        sent: usize,
    },
}

impl From<Silent> for CommitError {
    fn from(silent: Silent) -> Self {
        CommitError::Unknown(silent.into())
    }
}

/// How one attempt ended.
enum Attempt {
    Stored {
        inserted: Inserted,
        followed: Followed,
        names: BTreeSet<event_names::Name>,
        conflicts: conflicts::Conflicts,
    },
    CatalogueMoved,
    HorizonMoved(Micros),
    /// Copied straight, it met an identity that is stored already.
    DuplicateKey,
    /// What was remembered of users was not what is stored; it is dropped.
    MemoryDiffered,
    /// Copied, they met participation or attribution that is there already.
    DerivedExist,
}

/// What a worker caches from commit to commit.
#[derive(Debug, Default)]
pub(crate) struct WorkerCache {
    pub catalogue: Catalogue,
    pub months: Months,
    pub horizon: Option<Micros>,
    /// The last batch had rows that were stored already, so the next one may have some, too, and goes through staging.
    pub had_duplicates: bool,
    /// Names of events that are stored.
    pub event_names: HashSet<event_names::Name>,
    pub memory: Memory,
    /// How the present batch writes participation and attribution that are not there yet.
    pub new_rows: NewRows,
}

/// Stores a batch, whatever it holds: what Postgres refuses in a row becomes that row's dead letter, and the rest goes on.
pub(crate) async fn commit(
    connection: &mut PgConnection,
    cache: &mut WorkerCache,
    log_id: Uuid,
    batch: &Batch,
    tallies: &Tallies,
) -> Result<Stored, CommitError> {
    let projects = batch.projects();
    let mut refused: Vec<DeadLetter> = Vec::new();
    cache.new_rows = NewRows::Copied;
    loop {
        cache.catalogue.load(connection, &projects).await?;
        let (rows, unapplied) = resolve(connection, cache, log_id, batch, &mut refused).await?;
        let mut dead: Vec<DeadLetter> = batch.undecodable.iter().chain(&refused).chain(&unapplied).cloned().collect();
        let tallies = limit::count(tallies, batch, &dead).map_err(CommitError::TooManyDeadLetters)?;
        cache.months.make(connection, rows.iter().map(|row| &row.decoded.event)).await?;

        match attempt(connection, cache, log_id, batch, &projects, &rows, &dead).await {
            Ok(Attempt::Stored { inserted, followed, names, conflicts }) => {
                event_names::remember(&mut cache.event_names, names);
                let not_stored = rows.len() as u64 - inserted.values().sum::<u64>();
                cache.had_duplicates = not_stored > 0;
                let duplicates = not_stored - conflicts.kept.len() as u64 - conflicts.passed;
                dead.extend(conflicts.kept);
                return Ok(Stored { inserted, duplicates, followed, dead, conflicts_passed: conflicts.passed, tallies });
            }
            Ok(Attempt::CatalogueMoved) => {
                cache.catalogue.invalidate(&projects);
                // An operator may have had a name forgotten.
                cache.event_names.retain(|(project, ..)| !projects.contains(project));
            }
            Ok(Attempt::HorizonMoved(horizon)) => cache.horizon = Some(horizon),
            Ok(Attempt::DuplicateKey) => cache.had_duplicates = true,
            Ok(Attempt::MemoryDiffered) => {}
            Ok(Attempt::DerivedExist) => {
                tracing::info!("participation or attribution exists that earlier rows do not give; it is written over");
                cache.new_rows = NewRows::Upserted;
            }
            Err(CommitError::Postgres(error)) if matches!(fault(&error), Fault::Row { .. }) => {
                sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
                let found = bisect::find_refused(connection, cache, log_id, &rows).await?;
                if found.is_empty() {
                    return Err(CommitError::Postgres(error)); // no row's, or refused only once
                }
                refused.extend(found);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Gives every event its ids, registering names where a project wants that. What stays unknown, lies before the horizon
/// or was refused before becomes a dead letter.
async fn resolve<'a>(
    connection: &mut PgConnection,
    cache: &mut WorkerCache,
    log_id: Uuid,
    batch: &'a Batch,
    refused: &mut Vec<DeadLetter>,
) -> Result<(Vec<StagedRow<'a>>, Vec<DeadLetter>), sqlx::Error> {
    let places = |letters: &[DeadLetter]| letters.iter().map(|letter| (letter.partition, letter.offset)).collect();
    let excluded: BTreeSet<(u32, u64)> = places(refused);
    let (rows, dead) = resolve_with(cache, log_id, batch, &excluded);
    if dead.iter().all(|letter| letter.subject.is_none()) {
        return Ok((rows, dead));
    }
    let unresolved: BTreeSet<(u32, u64)> = places(&dead);
    let unresolved: Vec<&Decoded> =
        batch.events.iter().filter(|decoded| unresolved.contains(&(decoded.partition, decoded.offset))).collect();
    let (is_any_new, found) = bisect::register(connection, cache, &unresolved).await?;
    if !is_any_new && found.is_empty() {
        return Ok((rows, dead));
    }
    refused.extend(found);
    Ok(resolve_with(cache, log_id, batch, &places(refused)))
}

fn resolve_with<'a>(
    cache: &WorkerCache,
    log_id: Uuid,
    batch: &'a Batch,
    refused: &BTreeSet<(u32, u64)>,
) -> (Vec<StagedRow<'a>>, Vec<DeadLetter>) {
    let mut rows = Vec::with_capacity(batch.events.len());
    let mut dead = Vec::new();
    for decoded in &batch.events {
        if refused.contains(&(decoded.partition, decoded.offset)) {
            continue;
        }
        if let Some(horizon) = cache.horizon.filter(|horizon| decoded.event.claimed_at < *horizon) {
            let reason = format!("claimed at {}, before {horizon}: that month is no longer kept here", decoded.event.claimed_at);
            dead.push(DeadLetter::of(decoded, "before_horizon", reason));
            continue;
        }
        match cache.catalogue.resolve(&decoded.event) {
            Ok(ids) => rows.push(StagedRow { log_id, decoded, ids }),
            Err(unknown) => {
                dead.push(DeadLetter { subject: Some(unknown.subject), ..DeadLetter::of(decoded, unknown.code, unknown.reason) })
            }
        }
    }
    (rows, dead)
}

/// Begins the transaction and holds the schema as it is; the last row is its version.
static BEGIN: LazyLock<String> =
    LazyLock::new(|| format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}; {}", schema::SHARE_LOCK, schema::VERSION));

pub(crate) async fn begin(connection: &mut PgConnection) -> Result<(), CommitError> {
    let begun = sqlx::raw_sql(sqlx::AssertSqlSafe(BEGIN.as_str())).fetch_all(&mut *connection).await?;
    let version: Option<i64> = begun.last().map(|row| row.try_get(0)).transpose()?.flatten();
    if let Err(unsupported) = crate::SCHEMA.check(version.unwrap_or(0)) {
        sqlx::raw_sql("ROLLBACK").execute(connection).await?;
        return Err(unsupported.into());
    }
    Ok(())
}

/// The transaction. After an error other than [`CommitError::Unknown`] nothing of it is left.
async fn attempt(
    connection: &mut PgConnection,
    cache: &mut WorkerCache,
    log_id: Uuid,
    batch: &Batch,
    projects: &BTreeSet<Uuid>,
    rows: &[StagedRow<'_>],
    dead: &[DeadLetter],
) -> Result<Attempt, CommitError> {
    let straight = if cache.had_duplicates { None } else { facts::encode(rows) };
    if straight.is_none() {
        copy::fill(connection, rows).await?;
    }
    begin(connection).await?;
    for slice in &batch.slices {
        if !checkpoint::advance(connection, log_id, slice).await? {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            return Err(CommitError::NotOwner { partition: slice.partition });
        }
    }
    let seen = lock_catalogue(connection, log_id, projects).await?;
    if straight.is_none() && seen.staged != rows.len() as i64 {
        return Err(CommitError::Staging { staged: seen.staged, sent: rows.len() });
    }
    if seen.versions.iter().any(|(project, version)| cache.catalogue.version(*project) != *version) {
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        return Ok(Attempt::CatalogueMoved);
    }
    if let Some(horizon) = seen.grounds.horizon.filter(|horizon| Some(*horizon) != cache.horizon) {
        sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
        return Ok(Attempt::HorizonMoved(horizon));
    }

    // Before the rows of this batch are there.
    let versions = projects.iter().map(|project| (*project, cache.catalogue.version(*project)));
    cache.memory.compare(&batch.slices, seen.grounds, versions);
    let exposures_of = |project| cache.catalogue.exposures(project);
    let recalled = cache.memory.recall(connection, rows, seen.grounds.user_rows_max, &exposures_of).await?;
    let (mut histories, partition_of) = match recalled {
        Recalled::Histories { histories, partition_of } => (histories, partition_of),
        Recalled::Different(experiments) => {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            begin(connection).await?;
            participation::mark(connection, &experiments).await?;
            sqlx::raw_sql("COMMIT").execute(connection).await?;
            return Ok(Attempt::MemoryDiffered);
        }
    };
    let (new, not_stored, pending) = match straight {
        Some(tables) => {
            // All of them are new, or nothing of this is committed. So what follows from them is derived while Postgres stores them.
            histories.add(rows, &exposures_of);
            let left = participation::listed_for_good(connection, &cache.catalogue, &histories).await?;
            let derived = participation::derive(&cache.catalogue, &histories, &left, cache.new_rows);
            match tokio::join!(facts::copy(connection, &tables), derived) {
                (Ok(()), pending) => (rows.to_vec(), Vec::new(), pending),
                (Err(CommitError::Postgres(error)), _) if is_duplicate_key(&error) => {
                    sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
                    histories.take_back();
                    cache.memory.give_back(histories, &partition_of);
                    return Ok(Attempt::DuplicateKey);
                }
                (Err(error), _) => return Err(error),
            }
        }
        None => {
            if rows.iter().any(|row| row.event().is_known_by_id_alone()) {
                facts::drop_known_ids(connection).await?;
            }
            let places = facts::insert(connection, &kinds(rows)).await?;
            let (new, not_stored) = facts::split(rows, &places);
            histories.add(&new, &exposures_of);
            let left = participation::listed_for_good(connection, &cache.catalogue, &histories).await?;
            let pending = participation::derive(&cache.catalogue, &histories, &left, cache.new_rows).await;
            (new, not_stored, pending)
        }
    };
    let followed = match participation::write(connection, &cache.catalogue, histories.rows_max, pending).await {
        Ok(followed) => followed,
        Err(error) if cache.new_rows == NewRows::Copied && is_duplicate_key(&error) => {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            return Ok(Attempt::DerivedExist);
        }
        Err(error) => return Err(error.into()),
    };
    rollups::add(connection, &cache.catalogue, log_id, &new).await?;
    progress::add(connection, log_id, batch, &new).await?;
    let conflicts = match not_stored.is_empty() {
        true => conflicts::Conflicts::default(),
        false => conflicts::find(connection, log_id, &not_stored).await?,
    };
    rejected::add(connection, log_id, &batch.rejected).await?;
    dead_letter::insert(connection, log_id, dead).await?;
    dead_letter::insert(connection, log_id, &conflicts.kept).await?;
    let names = event_names::add(connection, &cache.event_names, &new).await?;
    // A constraint that is checked now has refused it; of any other error it is not known when it came.
    sqlx::raw_sql("COMMIT").execute(connection).await.map_err(|error| match fault(&error) {
        Fault::Circumstances => CommitError::Unknown(error),
        Fault::Row { .. } | Fault::Standing => CommitError::Postgres(error),
    })?;
    cache.memory.committed(&batch.slices, histories, &partition_of);
    let mut inserted = Inserted::new();
    for row in &new {
        *inserted.entry(row.event().kind()).or_default() += 1;
    }
    Ok(Attempt::Stored { inserted, followed, names, conflicts })
}

fn kinds(rows: &[StagedRow<'_>]) -> Vec<Kind> {
    Kind::ALL.into_iter().filter(|kind| rows.iter().any(|row| row.decoded.event.kind() == *kind)).collect()
}

struct Seen {
    versions: Vec<(Uuid, i64)>,
    grounds: Grounds,
    staged: i64,
}

/// Takes the projects' shared locks, ascending, and then reads: what is read stays true until the commit.
async fn lock_catalogue(connection: &mut PgConnection, log_id: Uuid, projects: &BTreeSet<Uuid>) -> Result<Seen, sqlx::Error> {
    version::lock_shared(connection, projects.iter().copied()).await?;
    let ids: Vec<Uuid> = projects.iter().copied().collect();
    let row = sqlx::query(
        "SELECT (SELECT count(*) FROM staging),
                (SELECT (extract(epoch FROM until) * 1000000)::bigint FROM horizon),
                coalesce((SELECT array_agg(project_id) FROM catalogue_versions WHERE project_id = ANY ($1)), '{}'),
                coalesce((SELECT array_agg(version) FROM catalogue_versions WHERE project_id = ANY ($1)), '{}'),
                coalesce((SELECT sum(change_seq)::bigint FROM checkpoints WHERE log_id <> $2), 0),
                (SELECT rows_max FROM user_rows_limit)",
    )
    .bind(&ids)
    .bind(log_id)
    .fetch_one(connection)
    .await?;
    let horizon: Option<i64> = row.try_get(1)?;
    let (projects, versions): (Vec<Uuid>, Vec<i64>) = (row.try_get(2)?, row.try_get(3)?);
    let user_rows_max = usize::try_from(row.try_get::<i64, _>(5)?).unwrap_or(usize::MAX);
    let grounds = Grounds { horizon: horizon.map(Micros), other_logs: row.try_get(4)?, user_rows_max };
    Ok(Seen { versions: projects.into_iter().zip(versions).collect(), grounds, staged: row.try_get(0)? })
}
