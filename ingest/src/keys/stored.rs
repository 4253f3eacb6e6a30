//! `keys.json`: the keys as they were last read, so that a collector starts while Postgres is down. Digests only, mode 0600.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use catalogue::keys::{SendingKey, SendingProject};
use catalogue::{KeyKind, Unsupported};
use events::rules::Unit;
use events::{Micros, ProjectId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Access, Digest, RateLimiter, Snapshot};

const VERSION: u32 = 2;

/// What is read from Postgres, and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    v: u32,
    pub(super) keys: Vec<Key>,
    /// The project `default`, where everybody may send.
    pub(super) default: Option<Project>,
    /// Microseconds since 1970.
    pub(super) horizon: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    /// 64 hexadecimal digits.
    pub(super) digest: String,
    #[serde(flatten)]
    pub(super) project: Project,
    pub(super) server: bool,
    pub(super) requests_per_second: Option<u32>,
    pub(super) events_per_second: Option<u32>,
    /// Microseconds since 1970.
    pub(super) expires_at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Project {
    pub(super) project_id: Uuid,
    /// None: a newer version of Weir knows it. Its keys are known, and nothing is taken under them.
    pub(super) unit: Option<String>,
    pub(super) conversion_events: Vec<String>,
    /// Why there is no unit.
    #[serde(skip)]
    pub(super) unsupported: Option<Unsupported>,
}

impl From<SendingKey> for Key {
    fn from(key: SendingKey) -> Self {
        Key {
            digest: hex::encode(key.digest),
            server: key.kind == KeyKind::Server,
            project: key.project.into(),
            requests_per_second: key.requests_per_second,
            events_per_second: key.events_per_second,
            expires_at: key.expires_at.map(|time| time.0),
        }
    }
}

impl From<SendingProject> for Project {
    fn from(project: SendingProject) -> Self {
        let (unit, unsupported) = match project.unit {
            Ok(unit) => (Some(unit.as_str().to_owned()), None),
            Err(unsupported) => (None, Some(unsupported)),
        };
        Project { project_id: project.id, unit, conversion_events: project.conversion_events, unsupported }
    }
}

impl Stored {
    pub(super) fn new(keys: Vec<Key>, default: Option<Project>, horizon: Option<i64>) -> Self {
        Stored { v: VERSION, keys, default, horizon }
    }

    /// Returns why events of some projects are not taken, each reason once.
    pub(super) fn unsupported(&self) -> Vec<Unsupported> {
        let projects = self.keys.iter().map(|key| &key.project).chain(&self.default);
        let mut reasons: Vec<Unsupported> = projects.filter_map(|project| project.unsupported.clone()).collect();
        reasons.sort_unstable_by(|a, b| a.row.cmp(&b.row));
        reasons.dedup();
        reasons
    }

    /// Makes the snapshot of it. Limiters go on from where they were in `before`. `bytes_per_second` holds for each write key.
    pub(super) fn snapshot(&self, before: Option<&Snapshot>, bytes_per_second: Option<NonZeroU32>) -> Snapshot {
        let now = Instant::now();
        let limiter = |rate: Option<u32>, before: Option<&RateLimiter>| {
            rate.map(|rate| before.map_or_else(|| RateLimiter::new(rate, now), |before| before.with_rate(rate)))
        };
        let bytes = |before: Option<&Arc<Access>>| {
            limiter(bytes_per_second.map(NonZeroU32::get), before.and_then(|before| before.bytes.as_ref()))
        };
        let default = self.default.as_ref().and_then(Project::access);
        let of_default = before.and_then(|before| before.default.as_ref());
        let mut snapshot = Snapshot {
            default: default.map(|access| Arc::new(Access { bytes: bytes(of_default), ..access })),
            horizon: self.horizon.map(Micros),
            ..Snapshot::default()
        };
        for key in &self.keys {
            let mut digest = Digest::default();
            if hex::decode_to_slice(&key.digest, &mut digest).is_err() {
                continue;
            }
            let before = before.and_then(|before| before.find(&digest)?.access.as_ref());
            let access = key.project.access().map(|access| Access {
                name: key.digest[..12].to_owned(),
                backfill: key.server,
                expires_at: key.expires_at.map(Micros),
                requests: limiter(key.requests_per_second, before.and_then(|before| before.requests.as_ref())),
                events: limiter(key.events_per_second, before.and_then(|before| before.events.as_ref())),
                bytes: if key.server { None } else { bytes(before) },
                ..access
            });
            snapshot.insert(digest, access.map(Arc::new));
        }
        snapshot
    }
}

impl Project {
    /// None where the unit is not known.
    fn access(&self) -> Option<Access> {
        Some(Access {
            name: String::new(),
            project: ProjectId(self.project_id),
            unit: Unit::of_text(self.unit.as_deref()?)?,
            backfill: false,
            conversions: self.conversion_events.clone(),
            expires_at: None,
            requests: None,
            events: None,
            bytes: None,
        })
    }
}

/// Reads the file. A collector starts without it too: Postgres has all of it.
pub(super) fn load(file: &Path, bytes_per_second: Option<NonZeroU32>) -> Option<Snapshot> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "keys.json cannot be read; waiting for Postgres");
            return None;
        }
    };
    match serde_json::from_slice::<Stored>(&bytes) {
        Ok(stored) if stored.v == VERSION => Some(stored.snapshot(None, bytes_per_second)),
        Ok(stored) => {
            tracing::warn!(file = %file.display(), version = stored.v, "keys.json was written by another version; waiting for Postgres");
            None
        }
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "keys.json is damaged; waiting for Postgres");
            None
        }
    }
}

/// Replaces the file: written to a temporary file, synced, renamed, so that there is always a whole one.
pub(super) fn save(file: &Path, stored: &Stored) -> std::io::Result<()> {
    let temporary = file.with_extension("json.new");
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    out.write_all(&serde_json::to_vec_pretty(stored)?)?;
    out.sync_all()?;
    std::fs::rename(&temporary, file)?;
    match file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn stored() -> Stored {
        let project = Project {
            project_id: Uuid::from_u128(7),
            unit: Some("device".to_owned()),
            conversion_events: vec!["Signed Up".to_owned()],
            unsupported: None,
        };
        let key = Key {
            digest: hex::encode(super::super::digest("k")),
            project: project.clone(),
            server: true,
            requests_per_second: Some(3),
            events_per_second: None,
            expires_at: Some(5),
        };
        Stored::new(vec![key], Some(project), Some(9))
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("keys.json");
        assert!(load(&file, None).is_none());
        save(&file, &stored()).expect("saved");
        assert_eq!(std::fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
        let snapshot = load(&file, None).expect("loaded");
        let access = snapshot.find(&super::super::digest("k")).expect("known").access.as_ref().expect("its unit is known");
        assert_eq!((access.project.0, access.unit, access.backfill), (Uuid::from_u128(7), Unit::Device, true));
        assert_eq!((access.requests.is_some(), access.events.is_some()), (true, false));
        assert_eq!((access.expires_at, snapshot.horizon), (Some(Micros(5)), Some(Micros(9))));
        assert!(snapshot.default.is_some());
        let text = std::fs::read_to_string(&file).expect("is there");
        std::fs::write(&file, text.replace("\"v\": 2", "\"v\": 1")).expect("written");
        assert!(load(&file, None).is_none());
        std::fs::write(&file, "{").expect("written");
        assert!(load(&file, None).is_none());
    }

    #[test]
    fn a_reading_does_not_fill_the_bucket() {
        let now = Instant::now();
        let first = stored().snapshot(None, None);
        let take = |snapshot: &Snapshot| {
            let access = snapshot.find(&super::super::digest("k"))?.access.clone()?;
            access.requests.as_ref().map(|limiter| limiter.take(6, now).is_ok())
        };
        assert_eq!(take(&first), Some(true));
        assert_eq!(take(&stored().snapshot(Some(&first), None)), Some(false));
    }
    /// Nobody set a rate, and a write key may not fill the disk all the same.
    #[test]
    fn write_keys_have_a_rate_of_bytes_and_server_keys_do_not() {
        let (now, rate) = (Instant::now(), NonZeroU32::new(1_000));
        let two = || {
            let mut stored = stored();
            stored.keys.push(Key { digest: hex::encode(super::super::digest("w")), server: false, ..stored.keys[0].clone() });
            stored
        };
        let bytes = |snapshot: &Snapshot, key: &str, bytes: usize| {
            let access = snapshot.find(&super::super::digest(key)).expect("known").access.clone().expect("its unit is known");
            access.bytes.as_ref().map(|limiter| limiter.take(bytes, now))
        };
        let first = two().snapshot(None, rate);
        assert_eq!(bytes(&first, "k", 1), None, "of a server key");
        assert_eq!(bytes(&first, "w", 5_000), Some(Ok(())), "a large request is taken, and then paid for");
        let later = two().snapshot(Some(&first), rate);
        assert_eq!(bytes(&later, "w", 1), Some(Err(std::time::Duration::from_secs_f64(3.001))));
        let everybody = later.default.as_ref().and_then(|access| access.bytes.as_ref()).expect("any key is a write key");
        assert_eq!(everybody.take(5_000, now), Ok(()));
        let last = two().snapshot(Some(&later), rate);
        assert!(last.default.as_ref().and_then(|access| access.bytes.as_ref()).expect("still").take(1, now).is_err());
        assert_eq!(bytes(&two().snapshot(Some(&first), None), "w", 1), None, "an operator set none");
    }
}
