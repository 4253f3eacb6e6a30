//! Cohorts cached from one answer to the next.
//!
//! While nothing was written, a cohort is that of now. When facts were stored in between, the offsets of the log partitions say which:
//! participation and attribution of their users are read, and replace what was known of them. After anything else (another
//! catalogue, a recomputation, a log that was read again) everybody is read.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use events::Kind;
use events::fact::FactTable;
use sqlx::AssertSqlSafe;
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use super::cohort_reader::{self, CohortQuery, Scope};
use super::exposed;
use crate::engine::{self, Engine};
use crate::experiment::read::cohort::Cohort;
use crate::experiment::request::Dimensions;
use crate::http::error::ApiError;
use crate::metrics::Metrics;
use crate::source::snapshot::{DataVersion, Snapshot};

/// Cohorts at most, however small.
const COHORTS_MAX: usize = 64;
/// Everybody is read if more records came than one for this many users, ..
const USERS_PER_RECORD: u64 = 8;
/// .. and more than these.
const RECORDS_MIN: u64 = 10_000;

/// What a cohort is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CohortKey {
    /// The project of the token.
    pub project: Uuid,
    /// The experiment as it was asked for, name or id.
    pub experiment: String,
    /// What the variants are compared with, which is their first one.
    pub baseline: Option<String>,
    /// See [`CohortQuery`].
    pub has_before: bool,
    /// What users are split by.
    pub dimensions: Dimensions,
    /// What has to hold for a user's first exposure.
    pub condition: Option<String>,
    /// Whether all properties are read.
    pub is_explored: bool,
}

/// The cohort of one query and the version of the data that it was read from.
#[derive(Default)]
pub struct CachedCohort {
    loaded: Option<Loaded>,
}

struct Loaded {
    experiment: Uuid,
    variants: Vec<Uuid>,
    window_days: (i32, i32),
    version: DataVersion,
    cohort: Arc<Cohort>,
}

/// How a cohort comes to be that of now.
#[derive(Debug, PartialEq, Eq)]
enum Refresh {
    /// It is already.
    Unchanged,
    /// Facts of these offsets came: log, partition, from, to.
    NewFacts(Vec<(Uuid, i32, i64, i64)>),
    /// By being read again.
    Reload,
}

impl CachedCohort {
    /// Returns the cohort as of a snapshot, which must not be older than the one before. What fails leaves no mixture of two
    /// versions behind.
    /// # Errors
    /// [`ApiError`].
    pub(crate) async fn refresh(
        &mut self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        query: &CohortQuery<'_>,
        metrics: &Metrics,
    ) -> Result<Arc<Cohort>, ApiError> {
        let now = snapshot.version();
        let is_same = |of: &&mut Loaded| {
            let traits = of.cohort.traits.iter().map(|(asked, _)| asked);
            of.experiment == query.experiment
                && of.variants == query.variants
                && of.window_days == query.window_days
                && traits.eq(query.traits)
        };
        let known = self.loaded.as_mut().filter(is_same);
        if let Some(of) = known {
            match needed(&of.version, now, of.cohort.users.len()) {
                Refresh::Unchanged => {
                    metrics.cohort("same");
                    return Ok(of.cohort.clone());
                }
                Refresh::NewFacts(ranges) => {
                    let touched = touched(snapshot, &ranges, query).await.map_err(|error| engine::database_error(&error))?;
                    if of.follow(engine, snapshot, query, touched).await? {
                        metrics.cohort("followed");
                        of.version = now.clone();
                        return Ok(of.cohort.clone());
                    }
                }
                Refresh::Reload => {}
            }
        }
        // Two of them at one time are too many.
        self.loaded = None;
        let session = engine.session().map_err(engine::api_error)?;
        let cohort = Arc::new(cohort_reader::read(&session, snapshot, query, &Scope::Everyone).await?);
        metrics.cohort("read");
        self.loaded = Some(Loaded {
            experiment: query.experiment,
            variants: query.variants.to_vec(),
            window_days: query.window_days,
            version: now.clone(),
            cohort: cohort.clone(),
        });
        Ok(cohort)
    }

    fn bytes(&self) -> usize {
        self.loaded.as_ref().map_or(0, |of| of.cohort.bytes())
    }
}

impl Loaded {
    fn has(&self, user: &Uuid) -> bool {
        self.cohort.users.ids.find(user.as_bytes()).is_some()
    }

    /// Reads users, and replaces what was known of them. Returns whether all who were known still take part; else nothing is replaced: a
    /// cohort only grows.
    async fn follow(
        &mut self,
        engine: &Engine,
        snapshot: &Arc<Snapshot>,
        query: &CohortQuery<'_>,
        touched: Touched,
    ) -> Result<bool, ApiError> {
        if touched.left_out.iter().any(|user| self.has(user)) {
            return Ok(false);
        }
        // Who was not exposed before, and is not now, has no part in it.
        let users: Vec<Uuid> =
            touched.exposed.into_iter().chain(touched.active.into_iter().filter(|user| self.has(user))).collect();
        if users.is_empty() {
            return Ok(true);
        }
        let known: Vec<Uuid> = users.iter().copied().filter(|user| self.has(user)).collect();
        // Each reading has one of its own, in which its tables have their names: everybody may be read after this.
        let session = engine.session().map_err(engine::api_error)?;
        let newer = cohort_reader::read(&session, snapshot, query, &Scope::These(users)).await?;
        if known.iter().any(|user| newer.users.ids.find(user.as_bytes()).is_none()) {
            return Ok(false);
        }
        // From here on nothing waits, so that nobody finds a cohort half done.
        Arc::make_mut(&mut self.cohort).replace(newer);
        Ok(true)
    }
}

/// Compares two versions, of which the second one is not the older one.
fn needed(then: &DataVersion, now: &DataVersion, users: usize) -> Refresh {
    if then == now {
        return Refresh::Unchanged;
    }
    if then.catalogue != now.catalogue || then.partitions.keys().any(|place| !now.partitions.contains_key(place)) {
        return Refresh::Reload;
    }
    let mut ranges = Vec::new();
    for ((log_id, partition), stored) in &now.partitions {
        let from = match then.partitions.get(&(*log_id, *partition)) {
            Some(known) if known == stored => continue,
            // Written without facts, so it was a recomputation; or the log is being read again.
            Some(known) if known.offset >= stored.offset => return Refresh::Reload,
            Some(known) => known.offset,
            // A new log; without facts so far it changes nothing.
            None if stored.offset == 0 => continue,
            None => 0,
        };
        ranges.push((*log_id, *partition, from, stored.offset));
    }
    let records: u64 = ranges.iter().map(|(_, _, from, to)| from.abs_diff(*to)).sum();
    if records > RECORDS_MIN.max(users as u64 / USERS_PER_RECORD) { Refresh::Reload } else { Refresh::NewFacts(ranges) }
}

/// Whom new facts concern.
struct Touched {
    /// Users of events that may expose to the experiment.
    exposed: Vec<Uuid>,
    /// Users of conversions and of what definitions speak of alone; most of them may have no part in the experiment.
    active: Vec<Uuid>,
    /// All who were exposed and have too many rows to take part: another experiment's exposure may have been the one too many.
    left_out: Vec<Uuid>,
}

/// Finds out whom the facts at these offsets concern.
async fn touched(snapshot: &Snapshot, ranges: &[(Uuid, i32, i64, i64)], query: &CohortQuery<'_>) -> Result<Touched, sqlx::Error> {
    let mut touched = Touched { exposed: Vec::new(), active: Vec::new(), left_out: Vec::new() };
    let range = |(log_id, partition, from, to): &(Uuid, i32, i64, i64)| {
        format!("(log_id = '{log_id}' AND log_partition = {partition} AND log_offset >= {from} AND log_offset < {to})")
    };
    let exact: Vec<String> = ranges.iter().map(range).collect();
    if exact.is_empty() {
        return Ok(touched);
    }
    // One range of all offsets, for the index.
    let first = ranges.iter().map(|(_, _, from, _)| *from).min().unwrap_or(0);
    let end = ranges.iter().map(|(_, _, _, to)| *to).max().unwrap_or(0);
    let stored = format!(
        "project_id = '{}' AND log_offset >= {first} AND log_offset < {end} AND ({})",
        snapshot.project(),
        exact.join(" OR ")
    );
    let exposing = exposed::sources(query).into_iter().map(|(kind, condition)| {
        format!("SELECT user_id, true AS is_exposed FROM {} r WHERE {condition} AND {stored}", FactTable::of(kind).name)
    });
    let mut tables: Vec<&str> = query.sources.iter().map(|source| FactTable::of(source.definition.kind).name).collect();
    tables.extend(query.trigger.map(|trigger| FactTable::of(trigger.kind).name));
    tables.push(FactTable::of(Kind::Conversion).name);
    tables.sort_unstable();
    tables.dedup();
    let all = tables.iter().map(|table| format!("SELECT user_id, false FROM {table} WHERE {stored}"));
    let events = exposing.chain(all).collect::<Vec<_>>().join(" UNION ALL ");
    let users = format!("SELECT user_id, bool_or(is_exposed) FROM ({events}) e GROUP BY user_id");
    let left_out = "SELECT user_id FROM over_active_users WHERE project_id = $1 AND $2 = ANY (experiments)";
    let mut connection = snapshot.transaction().await;
    let users: Vec<(Uuid, bool)> = sqlx::query_as(AssertSqlSafe(users)).fetch_all(&mut **connection).await?;
    for (user, is_exposed) in users {
        if is_exposed { &mut touched.exposed } else { &mut touched.active }.push(user);
    }
    let left_out = sqlx::query_scalar(left_out).bind(snapshot.project()).bind(query.experiment);
    touched.left_out = left_out.fetch_all(&mut **connection).await?;
    Ok(touched)
}

/// All cached cohorts.
pub struct CohortCache {
    bytes_max: usize,
    entries: Mutex<HashMap<CohortKey, Entry>>,
}

struct Entry {
    cached: Arc<tokio::sync::Mutex<CachedCohort>>,
    bytes: usize,
    /// Raised by one with each use.
    used: u64,
}

impl CohortCache {
    /// Makes an empty one that holds this many bytes, about.
    pub fn new(bytes_max: usize) -> Self {
        CohortCache { bytes_max, entries: Mutex::default() }
    }

    /// Waits for the entry of a cohort. Locked from before the snapshot is taken, it never meets an older one.
    pub async fn locked(&self, key: CohortKey) -> LockedCohort<'_> {
        let cached = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let used = entries.values().map(|entry| entry.used).max().unwrap_or(0) + 1;
            let entry = entries.entry(key.clone()).or_insert_with(|| Entry { cached: Arc::default(), bytes: 0, used });
            entry.used = used;
            entry.cached.clone()
        };
        LockedCohort { cached: cached.lock_owned().await, cache: self, key }
    }

    /// Returns the bytes of all that is cached, as of the last use of each.
    pub fn bytes(&self) -> usize {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).values().map(|entry| entry.bytes).sum()
    }

    /// Records how much memory a cohort takes now, and drops those that were not used for longest until all fit.
    fn record_size(&self, key: &CohortKey, bytes: usize) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(key) {
            entry.bytes = bytes;
        }
        while entries.len() > COHORTS_MAX || entries.values().map(|entry| entry.bytes).sum::<usize>() > self.bytes_max {
            let Some(oldest) = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone()) else { return };
            entries.remove(&oldest);
        }
    }
}

/// The entry of a cohort, for one answer. Dropped, its size counts among all that is cached.
pub struct LockedCohort<'a> {
    cached: OwnedMutexGuard<CachedCohort>,
    cache: &'a CohortCache,
    key: CohortKey,
}

impl Deref for LockedCohort<'_> {
    type Target = CachedCohort;

    fn deref(&self) -> &CachedCohort {
        &self.cached
    }
}

impl DerefMut for LockedCohort<'_> {
    fn deref_mut(&mut self) -> &mut CachedCohort {
        &mut self.cached
    }
}

impl Drop for LockedCohort<'_> {
    fn drop(&mut self) {
        self.cache.record_size(&self.key, self.cached.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::snapshot::PartitionVersion;

    const LOG: Uuid = Uuid::from_u128(7);

    fn version(catalogue: i64, partitions: &[(u128, i32, i64, i64)]) -> DataVersion {
        let stored = |(log, partition, offset, change_seq): &(u128, i32, i64, i64)| {
            ((Uuid::from_u128(*log), *partition), PartitionVersion { offset: *offset, change_seq: *change_seq })
        };
        DataVersion { catalogue, partitions: partitions.iter().map(stored).collect() }
    }

    #[test]
    fn what_was_stored_since_decides_what_is_read() {
        let then = version(1, &[(7, 0, 10, 3), (7, 1, 20, 5)]);
        let check = |now: &[(u128, i32, i64, i64)], expected: Refresh| {
            assert_eq!(needed(&then, &version(1, now), 1_000), expected, "{now:?}")
        };
        check(&[(7, 0, 10, 3), (7, 1, 20, 5)], Refresh::Unchanged);
        check(&[(7, 0, 10, 3), (7, 1, 25, 6)], Refresh::NewFacts(vec![(LOG, 1, 20, 25)]));
        check(&[(7, 0, 10, 4), (7, 1, 25, 6)], Refresh::Reload); // partition 0 was written without facts
        check(&[(7, 0, 9, 4), (7, 1, 20, 5)], Refresh::Reload); // a backup was put back
        check(&[(7, 0, 10, 3)], Refresh::Reload);
        check(&[(7, 0, 10, 3), (7, 1, 20, 5), (8, 0, 0, 0)], Refresh::NewFacts(vec![]));
        check(&[(7, 0, 10, 3), (7, 1, 20, 5), (8, 0, 2, 1)], Refresh::NewFacts(vec![(Uuid::from_u128(8), 0, 0, 2)]));
        check(&[(7, 0, 10, 3), (7, 1, 20_000, 6)], Refresh::Reload); // more than reading everybody takes
        assert_eq!(needed(&then, &version(2, &[(7, 0, 10, 3), (7, 1, 20, 5)]), 1_000), Refresh::Reload, "the catalogue moved");
    }

    #[tokio::test]
    async fn the_cohorts_used_longest_ago_make_room() {
        let key = |name: &str| CohortKey {
            project: Uuid::nil(),
            experiment: name.to_owned(),
            baseline: None,
            has_before: false,
            dimensions: Dimensions::default(),
            condition: None,
            is_explored: false,
        };
        let of = |users: usize| {
            let cohort = Cohort {
                users: crate::experiment::read::cohort::Users { arms: vec![0; users], ..Default::default() },
                ..Cohort::default()
            };
            let cohort = Arc::new(cohort);
            CachedCohort {
                loaded: Some(Loaded {
                    experiment: LOG,
                    variants: vec![],
                    window_days: (0, 0),
                    version: DataVersion::default(),
                    cohort,
                }),
            }
        };
        let cohorts = CohortCache::new(of(100).bytes() * 2);
        let names = || {
            let mut names: Vec<String> = cohorts.entries.lock().expect("free").keys().map(|key| key.experiment.clone()).collect();
            names.sort();
            names
        };
        for name in ["a", "b", "a", "c"] {
            *cohorts.locked(key(name)).await = of(100);
        }
        assert_eq!(names(), ["a", "c"]);
        assert_eq!(cohorts.bytes(), of(100).bytes() * 2);
        *cohorts.locked(key("large")).await = of(1_000);
        assert!(names().is_empty(), "what alone is too large is not cached, and took the place of all others");
        for number in 0..COHORTS_MAX + 5 {
            drop(cohorts.locked(key(&number.to_string())).await);
        }
        assert_eq!(names().len(), COHORTS_MAX);
    }
}
