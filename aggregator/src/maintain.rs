//! Maintenance beside the flow: months ahead of time, replays of dead letters, and experiments that are behind.

use std::sync::Arc;
use std::time::Duration;

use catalogue::schema;
use eventlog::Append;
use events::Record;
use service::{BackOff, Stop};
use sqlx::{Connection, PgConnection, Row};
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::recompute::{Behind, catch_up_all};
use crate::silence::{self, Backend};
use crate::status::Status;
use crate::{SCHEMA, partitions};

const MONTHS_EVERY: Duration = Duration::from_secs(3_600);
const REPLAYS_EVERY: Duration = Duration::from_secs(1);
const RECOMPUTATIONS_EVERY: Duration = Duration::from_secs(1);
const REPLAYS_AT_ONCE: i64 = 500;
/// The longest pause after failures, about.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs until a stop.
pub(crate) async fn run(config: Config, log: Arc<dyn Append>, mut stop: Stop) {
    let mut connection: Option<(PgConnection, Backend)> = None;
    let mut months_at = Instant::now() + MONTHS_EVERY;
    let mut back_off = BackOff::new(REPLAYS_EVERY, PAUSE_MAX);
    while !stop.is_requested() {
        let pause = match maintain(&config, &mut connection, log.as_ref(), &mut months_at).await {
            Ok(()) => {
                back_off.reset();
                REPLAYS_EVERY
            }
            Err(error) => {
                tracing::warn!(%error, "maintenance failed; trying again");
                connection = None;
                back_off.delay()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.requested() => {}
        }
    }
}

async fn maintain(
    config: &Config,
    connection: &mut Option<(PgConnection, Backend)>,
    log: &dyn Append,
    months_at: &mut Instant,
) -> Result<(), sqlx::Error> {
    let (open, backend) = match connection {
        Some(open) => open,
        None => connection.insert(silence::connect(&config.database_url, "maintenance").await?),
    };
    if Instant::now() >= *months_at {
        backend.answers(partitions::make_usual_months(open)).await?;
        let old = sqlx::query("DELETE FROM rejected_events WHERE received_at < now() - interval '30 days'").execute(&mut *open);
        backend.answers(old).await?;
        *months_at = Instant::now() + MONTHS_EVERY;
    }
    while replay(open, backend, log).await? == REPLAYS_AT_ONCE as usize {}
    Ok(())
}

/// Appends the original bytes of dead letters marked `replay` to the log again, and marks them `replayed`. A crash in
/// between appends them twice, which deduplication absorbs. Returns how many there were.
async fn replay(connection: &mut PgConnection, backend: &Backend, log: &dyn Append) -> Result<usize, sqlx::Error> {
    let mut transaction = backend.answers(connection.begin()).await?;
    let marked = sqlx::query(
        "SELECT id, bytes FROM dead_letters WHERE status = 'replay' ORDER BY created_at, id LIMIT $1 FOR UPDATE SKIP LOCKED",
    )
    .bind(REPLAYS_AT_ONCE)
    .fetch_all(&mut *transaction);
    let rows = backend.answers(marked).await?;
    let mut records = Vec::new();
    let mut replayed: Vec<Uuid> = Vec::new();
    let mut refused: Vec<Uuid> = Vec::new();
    for row in &rows {
        let (id, bytes): (Uuid, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        match Record::from_bytes(bytes.into()) {
            Ok(record) => {
                records.push(record);
                replayed.push(id);
            }
            Err(_) => refused.push(id), // no event to this version either
        }
    }
    if !records.is_empty()
        && let Err(error) = log.append(records).await
    {
        tracing::warn!(%error, letters = replayed.len(), "dead letters are not replayed yet");
        backend.answers(transaction.rollback()).await?;
        return Ok(0);
    }
    let count = rows.len();
    let marking = async {
        let mark = "UPDATE dead_letters SET status = $2, changed_at = now() WHERE id = ANY ($1)";
        sqlx::query(mark).bind(&replayed).bind("replayed").execute(&mut *transaction).await?;
        sqlx::query(mark).bind(&refused).bind("open").execute(&mut *transaction).await?;
        transaction.commit().await
    };
    backend.answers(marking).await?;
    Ok(count)
}

/// Brings experiments up to date that are marked as behind, and tells which ones this build cannot. May be dropped at any point: a
/// mark stays until its experiment is up to date.
pub(crate) async fn recompute(config: Config, status: Arc<Status>, metrics: Arc<Metrics>) {
    let mut back_off = BackOff::new(RECOMPUTATIONS_EVERY, PAUSE_MAX);
    loop {
        let mut connection = None;
        let pause = loop {
            match catch_up(&config, &mut connection).await {
                Ok((left, unsupported)) => {
                    back_off.reset();
                    metrics.experiments_behind.set(left as f64);
                    status.behind(unsupported.iter().map(text).collect());
                    tokio::time::sleep(RECOMPUTATIONS_EVERY).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "experiments that are behind cannot be recomputed now; trying again");
                    break back_off.delay();
                }
            }
        };
        tokio::time::sleep(pause).await;
    }
}

async fn catch_up(
    config: &Config,
    connection: &mut Option<(PgConnection, Backend)>,
) -> Result<(usize, Vec<Behind>), sqlx::Error> {
    let (open, backend) = match connection {
        Some(open) => open,
        None => connection.insert(silence::connect(&config.database_url, "recomputations").await?),
    };
    // Beside another schema nothing is touched; the lease manager says so.
    if SCHEMA.check(backend.answers(schema::version(open)).await?).is_err() {
        return Ok((0, Vec::new()));
    }
    backend.answers(catch_up_all(open)).await
}

fn text(behind: &Behind) -> String {
    format!(
        "unsupported_catalogue: of project {}: {}; its participation and attribution stay as they are until then, all else is stored",
        behind.project, behind.unsupported
    )
}
