//! The API keys as they were last read from Postgres. The request path reads a snapshot in memory and never waits
//! for the database, except for a key that is not in it: one that was just made works at once.

mod rate_limiter;
mod refresh;
mod stored;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use catalogue::schema::UnsupportedSchema;
use events::rules::Unit;
use events::{Micros, ProjectId};
use subtle::ConstantTimeEq as _;
use tokio::sync::{Notify, watch};

use crate::metrics::Metrics;
use crate::names::Names;
use rate_limiter::RateLimiter;
pub(crate) use refresh::refresh;

pub(crate) use catalogue::keys::{KeyDigest as Digest, digest};

/// No key is longer.
const KEY_BYTES_MAX: usize = 512;
/// How long a request with an unknown key waits for the keys to be read again.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// What a key allows, and to whom.
#[derive(Debug)]
pub(crate) struct Access {
    /// The beginning of the key's digest, which tells keys apart; empty where any key is taken.
    pub(crate) name: String,
    pub(crate) project: ProjectId,
    pub(crate) unit: Unit,
    /// Whether history may be sent: of server keys.
    pub(crate) backfill: bool,
    /// Names of tracks that count as conversions.
    pub(crate) conversions: Vec<String>,
    pub(crate) expires_at: Option<Micros>,
    pub(crate) requests: Option<RateLimiter>,
    pub(crate) events: Option<RateLimiter>,
    /// Of what is stored in the log.
    pub(crate) bytes: Option<RateLimiter>,
}

/// A key that is in the database.
#[derive(Debug)]
struct KnownKey {
    digest: Digest,
    /// None: only a newer version knows the unit of its project.
    access: Option<Arc<Access>>,
}

/// All keys at one point in time.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// By the first bytes of the digest; the rest is compared in constant time.
    by_digest: HashMap<u64, Vec<KnownKey>>,
    /// The project `default`, which `--any-key` gives everybody.
    pub(crate) default: Option<Arc<Access>>,
    /// The retention boundary: the end of the newest month that was detached.
    pub(crate) horizon: Option<Micros>,
}

impl Snapshot {
    fn insert(&mut self, digest: Digest, access: Option<Arc<Access>>) {
        self.by_digest.entry(head(&digest)).or_default().push(KnownKey { digest, access });
    }

    fn find(&self, digest: &Digest) -> Option<&KnownKey> {
        let candidates = self.by_digest.get(&head(digest))?;
        candidates.iter().find(|known| bool::from(known.digest.ct_eq(digest)))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_digest.values().map(Vec::len).sum()
    }
}

fn head(digest: &Digest) -> u64 {
    u64::from_le_bytes([digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]])
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// It may send.
    Access(Arc<Access>),
    /// It may not: Postgres was read after the request came.
    Unknown,
    /// Not known: Postgres does not answer, or only a newer version knows the unit of the project.
    Unavailable,
}

/// The end of the last reading from Postgres.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    started: Instant,
    succeeded: bool,
}

/// The keys, shared by all requests.
pub(crate) struct Keys {
    /// None until they were loaded once, from Postgres or from the file.
    snapshot: RwLock<Option<Arc<Snapshot>>>,
    readings: watch::Sender<Option<Reading>>,
    /// Requests a reading before the next one is due.
    wanted: Notify,
    any_key: bool,
    /// Bytes that a write key may have stored in a second; none: any number.
    bytes_per_second: Option<NonZeroU32>,
    /// Names of events, which are read after the keys.
    pub(crate) names: Names,
    /// Where the keys are kept for a start without Postgres.
    file: Option<PathBuf>,
    schema_fault: Mutex<Option<UnsupportedSchema>>,
}

impl Keys {
    /// Makes the cache, filled from `keys.json` if there is one.
    pub(crate) fn new(any_key: bool, file: Option<PathBuf>, names: Names, bytes_per_second: Option<NonZeroU32>) -> Self {
        let snapshot = file.as_deref().and_then(|file| stored::load(file, bytes_per_second)).map(Arc::new);
        Keys {
            snapshot: RwLock::new(snapshot),
            readings: watch::Sender::new(None),
            wanted: Notify::new(),
            any_key,
            bytes_per_second,
            names,
            file,
            schema_fault: Mutex::default(),
        }
    }

    /// Returns the present keys, none if they were never loaded.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes keys over as a reading from Postgres would; every other key has what `default` allows, if any key is taken.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn take_over<const N: usize>(&self, known: [(&str, Access); N], default: Access, horizon: Micros) {
        let mut snapshot = Snapshot { default: Some(Arc::new(default)), horizon: Some(horizon), ..Snapshot::default() };
        for (key, access) in known {
            snapshot.insert(digest(key), Some(Arc::new(access)));
        }
        self.replace(snapshot);
    }

    fn replace(&self, snapshot: Snapshot) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(snapshot));
    }

    /// Returns why no event can be taken, if that is so; for `/readyz`. Beside a schema that is not supported the keys that were read
    /// before serve.
    pub(crate) fn ready(&self) -> Result<(), String> {
        match self.snapshot() {
            None => Err(match *self.schema_fault() {
                Some(unsupported) => unsupported.to_string(),
                None => "the API keys have not been read from Postgres yet".to_owned(),
            }),
            Some(snapshot) if self.any_key && snapshot.default.is_none() => Err("there is no project named default".to_owned()),
            Some(_) => Ok(()),
        }
    }

    /// What the last reading said of the schema.
    fn schema_fault(&self) -> MutexGuard<'_, Option<UnsupportedSchema>> {
        self.schema_fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a key up, in memory; one that is not there after another reading from Postgres. Unknown, revoked and expired are the same.
    pub(crate) async fn look_up(&self, key: &str, now: Micros) -> Found {
        if key.len() > KEY_BYTES_MAX {
            return Found::Unknown;
        }
        let digest = digest(key);
        if let Some(found) = self.find(&digest, now) {
            return found;
        }
        if !self.read_again().await {
            return Found::Unavailable;
        }
        match self.find(&digest, now) {
            Some(found) => found,
            // Everybody may send, only the project is not there yet.
            None if self.any_key => Found::Unavailable,
            None => Found::Unknown,
        }
    }

    /// None: not in memory, or expired.
    fn find(&self, digest: &Digest, now: Micros) -> Option<Found> {
        let snapshot = self.snapshot()?;
        match snapshot.find(digest).map(|known| &known.access) {
            // An upgrade of this service makes it good; the client keeps its events until then.
            Some(None) => return Some(Found::Unavailable),
            Some(Some(access)) if access.expires_at.is_none_or(|until| now < until) => {
                return Some(Found::Access(Arc::clone(access)));
            }
            Some(Some(_)) | None => {}
        }
        snapshot.default.clone().filter(|_| self.any_key).map(Found::Access)
    }

    /// Asks for a reading soon.
    pub(crate) fn read_soon(&self) {
        self.wanted.notify_one();
    }

    /// Waits for a reading that starts after this call; requests that wait together share one. Returns whether it succeeded.
    async fn read_again(&self) -> bool {
        let asked = Instant::now();
        let mut readings = self.readings.subscribe();
        // While Postgres is down the background task notices when it is back; requests do not wait for that.
        if readings.borrow().is_some_and(|last| !last.succeeded) {
            return false;
        }
        self.wanted.notify_one();
        let reading = readings.wait_for(|last| last.is_some_and(|last| last.started >= asked || !last.succeeded));
        match tokio::time::timeout(WAIT_MAX, reading).await {
            Ok(Ok(last)) => last.is_some_and(|last| last.succeeded),
            _ => false,
        }
    }

    /// Waits until the first reading has ended, successful or not.
    pub(crate) async fn first_reading(&self) {
        let mut readings = self.readings.subscribe();
        // Fails only if the sender is gone, which `self` owns.
        let _ = readings.wait_for(Option::is_some).await;
    }

    fn note(&self, started: Instant, succeeded: bool, metrics: &Metrics) {
        self.readings.send_replace(Some(Reading { started, succeeded }));
        if succeeded {
            metrics.keys.set(self.snapshot().map_or(0, |snapshot| snapshot.len()) as f64);
        } else {
            metrics.key_readings_failed.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(expires_at: Option<Micros>) -> Arc<Access> {
        let project = ProjectId(uuid::Uuid::from_u128(1));
        Arc::new(Access {
            name: String::new(),
            project,
            unit: Unit::User,
            backfill: false,
            conversions: Vec::new(),
            expires_at,
            requests: None,
            events: None,
            bytes: None,
        })
    }

    /// A cache that holds `known`, and `old` until 10.
    fn filled(any_key: bool) -> Keys {
        let keys = Keys::new(any_key, None, Names::new(9, 0), None);
        let mut snapshot = Snapshot { default: Some(access(None)), ..Snapshot::default() };
        snapshot.insert(digest("known"), Some(access(None)));
        snapshot.insert(digest("old"), Some(access(Some(Micros(10)))));
        snapshot.insert(digest("of another unit"), None);
        keys.replace(snapshot);
        keys
    }

    async fn check(keys: &Keys, key: &str, now: i64, expected: &str) {
        let found = match keys.look_up(key, Micros(now)).await {
            Found::Access(_) => "access",
            Found::Unknown => "unknown",
            Found::Unavailable => "unavailable",
        };
        assert_eq!(found, expected, "{key} at {now}");
    }

    /// A reading that ended just now.
    fn read(keys: &Keys, succeeded: bool) {
        keys.note(Instant::now(), succeeded, &Metrics::new(crate::metrics::meter()));
    }

    #[tokio::test]
    async fn known_keys_need_no_postgres_and_others_are_not_guessed() {
        let keys = filled(false);
        read(&keys, false);
        check(&keys, "known", 0, "access").await;
        check(&keys, "old", 9, "access").await;
        check(&keys, "old", 10, "unavailable").await;
        check(&keys, "of another unit", 0, "unavailable").await;
        check(&keys, "other", 0, "unavailable").await;
        check(&keys, &"x".repeat(KEY_BYTES_MAX + 1), 0, "unknown").await;
    }

    #[tokio::test]
    async fn an_unknown_key_waits_for_one_reading() {
        let keys = Arc::new(filled(false));
        read(&keys, true);
        let waiting = tokio::spawn({
            let keys = keys.clone();
            async move { keys.look_up("new", Micros(0)).await }
        });
        keys.wanted.notified().await;
        let mut snapshot = Snapshot::default();
        snapshot.insert(digest("new"), Some(access(None)));
        keys.replace(snapshot);
        read(&keys, true);
        assert!(matches!(waiting.await, Ok(Found::Access(_))));

        let waiting = tokio::spawn({
            let keys = keys.clone();
            async move { keys.look_up("known", Micros(0)).await }
        });
        keys.wanted.notified().await;
        read(&keys, true);
        assert!(matches!(waiting.await, Ok(Found::Unknown)));
    }

    #[tokio::test]
    async fn any_key_is_the_default_projects() {
        check(&filled(true), "whatever", 0, "access").await;
        assert_eq!(
            Keys::new(true, None, Names::new(9, 0), None).ready(),
            Err("the API keys have not been read from Postgres yet".to_owned())
        );
        let keys = filled(true);
        assert_eq!(keys.ready(), Ok(()));
        keys.replace(Snapshot::default());
        assert_eq!(keys.ready(), Err("there is no project named default".to_owned()));
    }
}
