//! Connections that have died in silence: the network passes no byte any more, and resets nothing.
//!
//! Postgres has no time in which it must answer. It may work, or wait for a lock or a disk, as long as that takes, and whoever waits for it then is
//! right to. So nothing is given up for its duration alone: Postgres is asked over another connection what it does for this one. If it waits for us
//! as we wait for it, or knows nothing of it any more, then what one of the two has said is lost, and nobody will ever say it again.

use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{sleep, timeout};

use crate::database;

/// How long an answer may take until Postgres is asked what it does.
const LOOK_AFTER: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So many looks in a row that find the same make sure. They are counted, not timed: a process that was stopped has not looked. Together it takes less
/// than a heartbeat may be late, so that a dead connection costs no lease.
const LOOKS: u32 = 6;
/// How long a look may take, or what is asked first on a new connection.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// The connection is dead, and its backend ended. What was asked over it has happened, or not.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no answer, and postgres waits for this process: the connection has died without a word")]
pub(crate) struct Silent;

impl From<Silent> for sqlx::Error {
    fn from(silent: Silent) -> Self {
        sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, silent))
    }
}

/// The backend of a connection, as others can look at it.
pub(crate) struct Backend {
    url: String,
    pid: i32,
    /// Since pids are used again.
    started_at: String,
}

/// What Postgres does for a connection.
#[derive(Debug, PartialEq, Eq)]
enum Doing {
    /// It works, or waits for a lock or a disk.
    Work,
    /// It waits for the client: since when, and after how many bytes of a COPY.
    Wait(String),
    /// It has ended.
    Gone,
}

/// Opens a connection for one purpose, which can be looked at.
/// # Errors
/// As [`database::connect`].
pub(crate) async fn connect(url: &str, purpose: &str) -> Result<(PgConnection, Backend), sqlx::Error> {
    let mut connection = database::connect(url, purpose).await?;
    let itself = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = timeout(LOOK_MAX, sqlx::query(itself).fetch_one(&mut connection)).await.map_err(|_| Silent)??;
    let backend = Backend { url: url.to_owned(), pid: row.try_get(0)?, started_at: row.try_get(1)? };
    Ok((connection, backend))
}

impl Backend {
    /// Waits for what was asked over its connection, as long as Postgres is at it. `asked` waits for nothing but Postgres.
    /// # Errors
    /// Its own, and [`Silent`]: the connection is not to be used again.
    pub(crate) async fn answers<T, E: From<Silent>>(&self, asked: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        tokio::select! {
            biased;
            answer = asked => answer,
            () = self.waits() => Err(Silent.into()),
        }
    }

    /// Looks until it is sure that Postgres waits for us, and ends the backend, since it may hold locks.
    async fn waits(&self) {
        sleep(LOOK_AFTER).await;
        let mut connection = None;
        let (mut last, mut same) = (Doing::Work, 0);
        while same < LOOKS {
            let found = match timeout(LOOK_MAX, self.look(&mut connection)).await {
                Ok(Ok(found)) => found,
                // Postgres answers nobody: that may pass.
                _ => {
                    connection = None;
                    Doing::Work
                }
            };
            same = if found == last && found != Doing::Work { same + 1 } else { 0 };
            last = found;
            sleep(LOOK_INTERVAL).await;
        }
        if let Some(mut connection) = connection {
            let end =
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2::timestamptz";
            let ended = sqlx::query(end).bind(self.pid).bind(&self.started_at).execute(&mut connection);
            // One that is not ended is waited for, by whoever needs its locks.
            let _ = timeout(LOOK_MAX, ended).await;
        }
    }

    async fn look(&self, connection: &mut Option<PgConnection>) -> Result<Doing, sqlx::Error> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(database::connect(&self.url, "silence").await?),
        };
        let row = sqlx::query(
            "SELECT CASE WHEN a.wait_event = 'ClientRead' THEN concat_ws(' ', a.state_change, c.bytes_processed) END
             FROM pg_stat_activity a LEFT JOIN pg_stat_progress_copy c USING (pid)
             WHERE a.pid = $1 AND a.backend_start = $2::timestamptz",
        )
        .bind(self.pid)
        .bind(&self.started_at)
        .fetch_optional(open)
        .await?;
        Ok(match row {
            None => Doing::Gone,
            Some(row) => row.try_get::<Option<String>, _>(0)?.map_or(Doing::Work, Doing::Wait),
        })
    }
}
