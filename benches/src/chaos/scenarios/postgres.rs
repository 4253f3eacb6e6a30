//! Faults between aggregator and Postgres, and of Postgres itself.

use std::time::{Duration, Instant};

use anyhow::bail;
use migrations::testing::TestDatabase;
use migrations::testing::proxy::{Cut, Proxy, Seems};
use rustix::process::{Signal, kill_process};
use sqlx::{Connection as _, PgConnection};

use super::moment;
use crate::chaos::Outcome;
use crate::chaos::client::Pace;
use crate::chaos::disk::{self, Disk};
use crate::chaos::scene::{Scene, Settings, connect};
use crate::chaos::server::Server;
use crate::chaos::stand::{Stand, until_gone};

/// How long a writer may take until it comes to the point where it is cut; its pauses after errors included.
const CUT_MAX: Duration = Duration::from_secs(30);
/// How long the aggregator may take until it tells of a fault, or stores again after one.
const TOLD_MAX: Duration = Duration::from_secs(120);

/// A machine whose Postgres is reached through a proxy, and which has stored something, so that the next commits are of rows alone.
async fn behind_a_proxy(settings: &Settings, database: &TestDatabase, workers: u32) -> anyhow::Result<(Proxy, Stand)> {
    let proxy = Proxy::before(&database.url).await;
    let stand = Stand::new(settings)?.with_database(&proxy.url, &database.url);
    let mut stand = stand.with_variable("WEIR_WORKERS", &workers.to_string());
    stand.start().await?;
    stores_more(&mut stand).await?;
    Ok((proxy, stand))
}

/// Waits until more records are stored than now.
pub(super) async fn stores_more(stand: &mut Stand) -> anyhow::Result<()> {
    stand.scene.clients.go_on(1).await?;
    let url = stand.database_url()?;
    let stored = async || {
        let mut connection = connect(&url).await?;
        let sum: i64 = sqlx::query_scalar("SELECT coalesce(sum(next_offset), 0)::bigint FROM checkpoints")
            .fetch_one(&mut connection)
            .await?;
        anyhow::Ok(sum)
    };
    let (before, begun) = (stored().await?, Instant::now());
    while stored().await? <= before {
        if begun.elapsed() > TOLD_MAX {
            bail!("nothing is stored any more, after {before} records, within {} s", TOLD_MAX.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// P1: at the steps of a commit in turn, and at random. The process is that of the collector, too: it is `weir up`.
pub(super) async fn aggregator_killed(settings: Settings) -> anyhow::Result<Outcome> {
    const STEPS: [Option<Cut>; 4] = [Some(Cut::MidCopy), Some(Cut::BeforeCommit), Some(Cut::ReplyToCommit), None];
    let database = TestDatabase::create().await;
    let (proxy, mut stand) = behind_a_proxy(&settings, &database, 2).await?;
    let (mut kills, mut at_steps) = (0, 0);
    for kill in 0..settings.times {
        stand.scene.clients.go_on(1).await?;
        match STEPS[(kill % 4) as usize] {
            Some(step) => at_steps += u64::from(proxy.cut(step, CUT_MAX).await),
            None => tokio::time::sleep(moment(settings.seed, kill, Duration::from_millis(800))).await,
        }
        stand.kill()?;
        kills += 1;
        stand.start().await?;
    }
    stand.scene.claim("SIGKILL of the aggregator", settings.times, kills);
    stand.scene.claim("at a step of a commit", settings.times - settings.times / 4, at_steps);
    Ok(Outcome::Judged(stand.judge().await?))
}

/// P2: each second time COMMIT is only on its way, so that both outcomes happen. Of eight workers, so that others commit while those that were cut pause.
pub(super) async fn commit_without_reply(settings: Settings) -> anyhow::Result<Outcome> {
    let database = TestDatabase::create().await;
    let (proxy, mut stand) = behind_a_proxy(&settings, &database, 8).await?;
    let (mut committed, mut perhaps) = (0, 0);
    for time in 0..settings.times {
        stand.scene.clients.go_on(1).await?;
        match time % 2 {
            0 => committed += u64::from(proxy.cut(Cut::ReplyToCommit, CUT_MAX).await),
            _ => perhaps += u64::from(proxy.cut(Cut::CommitOnItsWay, CUT_MAX).await),
        }
    }
    stores_more(&mut stand).await?;
    let unknown = stand.metric("aggregator", UNKNOWN).await? as u64;
    stand.scene.claim("committed, and no reply", settings.times.div_ceil(2), committed);
    stand.scene.claim("COMMIT sent, and cut", settings.times / 2, perhaps);
    stand.scene.claim("unknown commits, by the aggregator's count", settings.times, unknown);
    Ok(Outcome::Judged(stand.judge().await?))
}

/// P3: cut before COMMIT, in a COPY, away, frozen, slow, silent until Postgres' own timeout, in turn.
pub(super) async fn cut_elsewhere(settings: Settings) -> anyhow::Result<Outcome> {
    let database = TestDatabase::create().await;
    let (proxy, mut stand) = behind_a_proxy(&settings, &database, 2).await?;
    stand.scene.is_undisturbed = true;
    let (mut before_commit, mut in_copy, mut away, mut frozen, mut slow, mut swallowed) = (0, 0, 0, 0, 0, 0);
    for time in 0..settings.times {
        stand.scene.clients.go_on(1).await?;
        // The first of each kind is a long one: a minute at the usual count.
        let at_first = Duration::from_millis(1_200).mul_f64(if time < 6 { settings.times.min(250) as f64 } else { 0.0 });
        let a_while = at_first + Duration::from_millis(300) + moment(settings.seed, time, Duration::from_secs(1));
        match time % 6 {
            0 => before_commit += u64::from(proxy.cut(Cut::BeforeCommit, CUT_MAX).await),
            1 => in_copy += u64::from(proxy.cut(Cut::MidCopy, CUT_MAX).await),
            2 => {
                proxy.seems(Seems::Away);
                away += 1;
                tokio::time::sleep(a_while).await;
            }
            3 => {
                proxy.seems(Seems::Frozen);
                frozen += 1;
                tokio::time::sleep(a_while).await;
            }
            4 => {
                proxy.seems(Seems::Slow(Duration::from_millis(100)));
                slow += 1;
                tokio::time::sleep(a_while).await;
            }
            _ => {
                swallowed += u64::from(proxy.cut(Cut::Swallow, CUT_MAX).await);
                stores_more(&mut stand).await?;
            }
        }
        proxy.seems(Seems::Well);
    }
    let share = |place: u64| settings.times / 6 + u64::from(settings.times % 6 > place);
    for (fault, place, seen) in [
        ("cut before COMMIT", 0, before_commit),
        ("cut in a COPY", 1, in_copy),
        ("away", 2, away),
        ("frozen", 3, frozen),
        ("slow", 4, slow),
        ("silent from COMMIT on, until Postgres ends it", 5, swallowed),
    ] {
        if share(place) > 0 {
            stand.scene.claim(fault, share(place), seen);
        }
    }
    Ok(Outcome::Judged(stand.judge().await?))
}

/// P9: black holes, in turn: of a writer from COMMIT on and in a COPY, of the lease manager, and one that gives back what it took when nobody waits for
/// it any more.
pub(super) async fn black_holes(settings: Settings) -> anyhow::Result<Outcome> {
    const LATE: Duration = Duration::from_secs(25);
    const HOLES: [(Cut, &str); 4] = [
        (Cut::Silence, "silent from COMMIT on"),
        (Cut::SilenceInCopy, "silent in a COPY"),
        (Cut::SilenceOf("leases"), "leases silent"),
        (Cut::Late(LATE), "COMMIT late"),
    ];
    let database = TestDatabase::create().await;
    let (proxy, mut stand) = behind_a_proxy(&settings, &database, 2).await?;
    stand.scene.is_undisturbed = true;
    let (mut seen, mut left) = ([0; 4], 0);
    for time in 0..settings.times {
        stand.scene.clients.go_on(1).await?;
        let place = (time % 4) as usize;
        let unknown = stand.metric("aggregator", UNKNOWN).await?;
        seen[place] += u64::from(proxy.cut(HOLES[place].0, CUT_MAX).await);
        let (begun, beats) = (Instant::now(), heartbeats(&database).await?);
        let is_left = async || {
            anyhow::Ok(match HOLES[place].0 {
                Cut::SilenceOf("leases") => heartbeats(&database).await? > beats,
                _ => stand.metric("aggregator", UNKNOWN).await? > unknown,
            })
        };
        while !is_left().await? && begun.elapsed() < LATE {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        left += u64::from(begun.elapsed() < LATE);
        if place == 3 {
            tokio::time::sleep(LATE.saturating_sub(begun.elapsed())).await;
        }
        stores_more(&mut stand).await?;
    }
    for (place, (_, fault)) in HOLES.iter().enumerate() {
        let wanted = settings.times / 4 + u64::from(settings.times % 4 > place as u64);
        if wanted > 0 {
            stand.scene.claim(fault, wanted, seen[place]);
        }
    }
    stand.scene.claim("left before anybody's timeout", settings.times, left);
    Ok(Outcome::Judged(stand.judge().await?))
}

/// Commits whose end an aggregator did not learn.
const UNKNOWN: &str = "weir_aggregator_unknown_commits_total";

/// How often leases were renewed so far.
async fn heartbeats(database: &TestDatabase) -> anyhow::Result<i64> {
    let mut connection = connect(&database.url).await?;
    Ok(sqlx::query_scalar("SELECT coalesce(sum(counter), 0)::bigint FROM leases").fetch_one(&mut connection).await?)
}

/// P4: the machine's own Postgres; killed, ended at once, and a backend that is frozen while it holds the checkpoints' locks, in turn.
pub(super) async fn postgres_killed(settings: Settings) -> anyhow::Result<Outcome> {
    let mut stand = Stand::new(&settings)?;
    stand.start().await?;
    stores_more(&mut stand).await?;
    let (mut killed, mut ended, mut frozen) = (0, 0, 0);
    for time in 0..settings.times {
        tokio::time::sleep(moment(settings.seed, time, Duration::from_millis(700))).await;
        let postmaster = stand.postmaster()?;
        match time % 3 {
            0 => {
                kill_process(postmaster, Signal::KILL)?;
                until_gone(postmaster, Duration::from_secs(20)).await?;
                killed += 1;
            }
            1 => {
                kill_process(postmaster, Signal::QUIT)?;
                until_gone(postmaster, Duration::from_secs(20)).await?;
                ended += 1;
            }
            _ => frozen += u64::from(freeze_a_writer(&stand).await?),
        }
        stores_more(&mut stand).await?;
    }
    let share = |place: u64| settings.times / 3 + u64::from(settings.times % 3 > place);
    stand.scene.claim("SIGKILL of the postmaster", share(0), killed);
    if settings.times > 1 {
        stand.scene.claim("immediate end", share(1), ended);
    }
    if settings.times > 2 {
        stand.scene.claim("a writer's backend frozen, 3 s", share(2), frozen);
    }
    Ok(Outcome::Judged(stand.judge().await?))
}

/// Stops the backend of a worker for three seconds, wherever it is; inside of a transaction in most cases, since it has little else to do.
async fn freeze_a_writer(stand: &Stand) -> anyhow::Result<bool> {
    let mut connection = connect(&stand.database_url()?).await?;
    let writer =
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'weir aggregator, writer' AND xact_start IS NOT NULL LIMIT 1";
    let begun = Instant::now();
    while begun.elapsed() < CUT_MAX {
        let pid: Option<i32> = sqlx::query_scalar(writer).fetch_optional(&mut connection).await?;
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            kill_process(pid, Signal::STOP)?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            kill_process(pid, Signal::CONT)?;
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(false)
}

/// P5: the power of Postgres' disk alone; the log is on another one.
pub(super) async fn power_of_postgres_cut(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = disk::why_not().await {
        return Ok(Outcome::Skipped(why));
    }
    let scene = Scene::new(&settings, Pace::default())?;
    let disk = Disk::of_file(&scene.folder().join("disk"), 1_024)?;
    let mut server = Server::start(&disk.folder().join("postgres"), &scene.folder().join("sockets"), &[]).await?;
    let mut stand = Stand::of(scene)?.with_database(&server.url(), &server.url());
    stand.start().await?;
    let mut cuts = 0;
    for cut in 0..settings.times {
        stores_more(&mut stand).await?;
        tokio::time::sleep(moment(settings.seed, cut, Duration::from_secs(2))).await;
        disk.cut_power(&server.processes()?)?;
        server.kill().await?;
        disk.restore_power().await?;
        server.run_again().await?;
        cuts += 1;
    }
    stores_more(&mut stand).await?;
    stand.scene.claim("power cut of Postgres", settings.times, cuts);
    stand.scene.durability = Some("power cuts of Postgres' disk");
    let verdicts = stand.judge().await?;
    drop(server);
    drop(disk);
    Ok(Outcome::Judged(verdicts))
}

/// P6: the disk of Postgres is full, with its log of changes on it. An extension of a table is refused, or the server ends itself and recovers.
pub(super) async fn disk_of_postgres_full(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = disk::why_not().await {
        return Ok(Outcome::Skipped(why));
    }
    let scene = Scene::new(&settings, Pace::default())?;
    let disk = Disk::of_file(&scene.folder().join("disk"), 400)?;
    let small = ["max_wal_size=48MB", "min_wal_size=32MB", "wal_keep_size=0"];
    let mut server = Server::start(&disk.folder().join("postgres"), &scene.folder().join("sockets"), &small).await?;
    let mut stand = Stand::of(scene)?.with_database(&server.url(), &server.url());
    stand.start().await?;
    let (mut full, mut refused) = (0, 0);
    for _ in 0..settings.times {
        stores_more(&mut stand).await?;
        let ballast = disk.folder().join("ballast");
        full += u64::from(fill(&ballast)?);
        // Nothing can be stored, and events are taken all the same.
        let (begun, url) = (Instant::now(), server.url());
        while begun.elapsed() < TOLD_MAX {
            let page =
                crate::chaos::scene::page(&format!("{}/readyz", stand.up()?.line("aggregator")?)).await.unwrap_or_default();
            if page.contains("not ready") || !server.is_running() || PgConnection::connect(&url).await.is_err() {
                refused += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stand.scene.clients.go_on(100).await?;
        std::fs::remove_file(&ballast)?;
        if !server.is_running() {
            server.run_again().await?;
        }
        stores_more(&mut stand).await?;
    }
    stand.scene.claim("the disk was full", settings.times, full);
    stand.scene.claim("Postgres refused, or ended itself", settings.times, refused);
    let verdicts = stand.judge().await?;
    drop(server);
    drop(disk);
    Ok(Outcome::Judged(verdicts))
}

/// Writes a file until its disk has no room left. Returns whether that came about.
pub(super) fn fill(file: &std::path::Path) -> anyhow::Result<bool> {
    use std::io::Write as _;
    let mut out = std::fs::File::create(file)?;
    for size in [1 << 20, 1 << 12] {
        let block = vec![0u8; size];
        loop {
            match out.write_all(&block).and_then(|()| out.sync_data()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(true)
}

/// P8: others' locks on the fact tables, taken in the order that is not ours, so that Postgres ends one of two as a deadlock; and months that are made
/// while they are written to.
pub(super) async fn deadlocks(settings: Settings) -> anyhow::Result<Outcome> {
    let database = TestDatabase::create().await;
    let mut stand = Stand::new(&settings)?.with_database(&database.url, &database.url).with_variable("WEIR_WORKERS", "8");
    stand.start().await?;
    stores_more(&mut stand).await?;
    let mut connection = connect(&database.url).await?;
    sqlx::raw_sql("SET deadlock_timeout = '10s'").execute(&mut connection).await?;
    let met = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let before: i64 = sqlx::query_scalar(met).fetch_one(&mut connection).await?;
    let (begun, mut locked) = (Instant::now(), 0_u64);
    // A minute for each time.
    let max = Duration::from_secs(60).saturating_mul(u32::try_from(settings.times)?);
    let mut found = before;
    while begun.elapsed() < max {
        let tables = "BEGIN; LOCK TABLE conversions IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(0.2); SELECT 1 FROM checkpoints ORDER BY log_partition FOR UPDATE";
        // Either of the two may be the one that is ended.
        let _ = sqlx::raw_sql(tables).execute(&mut connection).await;
        sqlx::raw_sql("ROLLBACK").execute(&mut connection).await?;
        locked += 1;
        stand.scene.clients.go_on(1).await?;
        sqlx::raw_sql("SELECT pg_stat_clear_snapshot()").execute(&mut connection).await?;
        found = sqlx::query_scalar(met).fetch_one(&mut connection).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    connection.close().await?;
    stand.scene.claim("tables locked before checkpoints", 1, locked);
    stand.scene.claim("deadlocks, by Postgres' count", 1, found.abs_diff(before));
    Ok(Outcome::Judged(stand.judge().await?))
}
