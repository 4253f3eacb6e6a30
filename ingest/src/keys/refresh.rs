//! Reading the keys from Postgres: one task with one connection of its own, so that no pool can be exhausted under it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalogue::names::KnownNames;
use catalogue::schema::UnsupportedSchema;
use catalogue::{event_names, schema};
use events::ProjectId;
use service::BackOff;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use uuid::Uuid;

use super::Keys;
use super::stored::{self, Key, Project, Stored};
use crate::metrics::Metrics;
use crate::names::Names;

/// A change of keys is visible after this time at the latest.
const EVERY: Duration = Duration::from_secs(5);
/// Minimum time between readings that requests trigger.
const APART_MIN: Duration = Duration::from_millis(250);
/// How long Postgres may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between attempts while Postgres is down: the first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

const HORIZON: &str = "\
SELECT CASE WHEN isfinite(until) THEN (extract(epoch FROM until) * 1000000)::bigint END AS until FROM horizon";

/// Names of events, and of experiments and campaigns with their parts, that are read of one project; far more than it may have.
const NAMES_MAX: i64 = 100_000;

/// Reads the keys every few seconds, and when a request asks for it. May be dropped at any point.
pub(crate) async fn refresh(keys: Arc<Keys>, options: PgConnectOptions, metrics: Arc<Metrics>) {
    let mut connection = None;
    let mut back_off = BackOff::new(PAUSES.0, PAUSES.1);
    let mut saved = None;
    let mut was_up = None;
    let mut names = NamesRead::default();
    let mut unsupported = Vec::new();
    loop {
        let started = Instant::now();
        let result = read(&mut connection, &options).await;
        let succeeded = result.is_ok();
        *keys.schema_fault() = match &result {
            Err(ReadError::Schema(unsupported)) => Some(*unsupported),
            _ => None,
        };
        match result {
            Ok(stored) => {
                let found = stored.unsupported();
                if found != unsupported {
                    for reason in &found {
                        tracing::error!(%reason, "events of this project are refused until this service is upgraded");
                    }
                    unsupported = found;
                }
                let before = keys.snapshot();
                keys.replace(stored.snapshot(before.as_deref(), keys.bytes_per_second));
                if saved.as_ref() != Some(&stored) {
                    save_to_file(&keys, stored, &mut saved).await;
                }
                if was_up != Some(true) {
                    tracing::info!(keys = keys.snapshot().map_or(0, |snapshot| snapshot.len()), "keys read from Postgres");
                }
                back_off.reset();
            }
            Err(error) => {
                connection = None;
                if was_up != Some(false) {
                    tracing::warn!(error = %error, "keys cannot be read from Postgres; those read before stay valid");
                }
            }
        }
        was_up = Some(succeeded);
        keys.note(started, succeeded, &metrics);
        // Keys do not wait for names: until these are read, each is a new one.
        if let Some(open) = connection.as_mut().filter(|_| succeeded)
            && let Err(error) = names.follow(open, &keys.names).await
        {
            tracing::warn!(%error, "names of events cannot be read from Postgres; those read before stay valid");
            connection = None;
        }
        if succeeded {
            tokio::time::sleep(APART_MIN.saturating_sub(started.elapsed())).await;
            // The time is over, or a request wants a reading: `wanted` remembers one that came meanwhile.
            let _ = tokio::time::timeout(EVERY, keys.wanted.notified()).await;
        } else {
            back_off.wait().await;
        }
    }
}

async fn save_to_file(keys: &Keys, stored: Stored, saved: &mut Option<Stored>) {
    let Some(file) = keys.file.clone() else { return };
    let result = tokio::task::spawn_blocking(move || stored::save(&file, &stored).map(|()| stored)).await;
    match result {
        Ok(Ok(stored)) => *saved = Some(stored),
        Ok(Err(error)) => {
            tracing::warn!(%error, "keys.json cannot be written; a start without Postgres would accept no key, or outdated ones")
        }
        Err(error) => tracing::error!(%error, "writing keys.json panicked"),
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Schema(#[from] UnsupportedSchema),
    #[error(transparent)]
    Postgres(#[from] sqlx::Error),
    #[error("no answer within {ANSWER_MAX:?}")]
    Timeout,
}

async fn read(connection: &mut Option<PgConnection>, options: &PgConnectOptions) -> Result<Stored, ReadError> {
    let reading = async {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(PgConnection::connect_with(options).await?),
        };
        crate::SCHEMA.check(schema::version(connection).await?)?;
        let keys = catalogue::keys::sending(connection).await?.into_iter().map(Key::from).collect();
        let default = catalogue::keys::sending_project(connection, "default").await?.map(Project::from);
        let horizon = sqlx::query(HORIZON).fetch_optional(&mut *connection).await?;
        let horizon = horizon.map(|row| row.try_get::<Option<i64>, _>("until")).transpose()?.flatten();
        Ok(Stored::new(keys, default, horizon))
    };
    tokio::time::timeout(ANSWER_MAX, reading).await.unwrap_or(Err(ReadError::Timeout))
}

/// Which names of events were read.
#[derive(Default)]
struct NamesRead {
    /// The version of each project's catalogue then.
    versions: HashMap<Uuid, i64>,
}

impl NamesRead {
    /// Reads the names of the projects whose catalogue has moved.
    async fn follow(&mut self, connection: &mut PgConnection, names: &Names) -> Result<(), ReadError> {
        let versions = within(event_names::versions(connection)).await?;
        for (project, version) in versions {
            if self.versions.get(&project) == Some(&version) {
                continue;
            }
            if let Some(found) = within(event_names::of_project(connection, project, NAMES_MAX)).await? {
                let catalogue = within(KnownNames::read(connection, project, NAMES_MAX)).await?;
                names.replace(ProjectId(project), found, catalogue);
            }
            self.versions.insert(project, version);
        }
        Ok(())
    }
}

/// Waits for an answer as long as Postgres may take.
async fn within<T>(reading: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ReadError> {
    Ok(tokio::time::timeout(ANSWER_MAX, reading).await.map_err(|_| ReadError::Timeout)??)
}
