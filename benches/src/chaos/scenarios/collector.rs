//! Faults of the collector and of the machine that it runs on, over its own log.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use migrations::testing::TestDatabase;
use rustix::process::{Signal, kill_process};

use super::moment;
use super::postgres::{fill, stores_more};
use crate::chaos::Outcome;
use crate::chaos::client::Pace;
use crate::chaos::disk::{self, Disk};
use crate::chaos::groups::Group;
use crate::chaos::scene::{Scene, Settings, connect, page};
use crate::chaos::stand::{Stand, until_gone};

/// How long a process may take to come to a system call, or to be told that its disk is well.
const MET_MAX: Duration = Duration::from_secs(40);

/// C1.
pub(super) async fn killed(settings: Settings) -> anyhow::Result<Outcome> {
    let mut stand = Stand::new(&settings)?;
    stand.start().await?;
    let (mut kills, mut both) = (0, 0);
    for kill in 0..settings.times {
        stand.scene.clients.go_on(1).await?;
        tokio::time::sleep(moment(settings.seed, kill, Duration::from_millis(1_500))).await;
        let postgres = stand.postmaster()?;
        stand.kill()?;
        kills += 1;
        // Each second time Postgres dies with it, as when the machine does.
        if kill % 2 == 1 {
            kill_process(postgres, Signal::KILL)?;
            until_gone(postgres, Duration::from_secs(20)).await?;
            both += 1;
        }
        if kill % 3 == 2 {
            let starting = stand.begin()?;
            tokio::time::sleep(moment(settings.seed, !kill, Duration::from_millis(400))).await;
            starting.kill()?;
            stand.scene.nested_deaths += 1;
        }
        stand.start().await?;
    }
    stand.scene.claim("SIGKILL under load", settings.times, kills);
    if settings.times > 1 {
        stand.scene.claim("of Postgres, too", settings.times / 2, both);
    }
    if settings.times > 2 {
        let nested = stand.scene.nested_deaths;
        stand.scene.claim("SIGKILL while it starts", settings.times / 3, nested);
    }
    Ok(Outcome::Judged(stand.judge().await?))
}

/// `weir` under strace, which is no parent of it, with some system calls changed.
fn under_strace(settings: &Settings, calls: &str, change: &str) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-D", "-f", "-q", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:{change}")]).arg(&settings.weir);
    strace
}

/// Returns why system calls cannot be changed here.
fn why_no_strace() -> Option<String> {
    let tried = Command::new("strace").args(["-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("strace may not: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("strace (Debian: strace): {error}")),
    }
}

/// C2: death at the Nth call of each kind between a request's first byte and its answer's.
pub(super) async fn killed_in_system_calls(settings: Settings) -> anyhow::Result<Outcome> {
    const CALLS: [&str; 4] = ["pwrite64", "fdatasync", "recvfrom", "writev,sendto"];
    if let Some(why) = why_no_strace() {
        return Ok(Outcome::Skipped(why));
    }
    let database = TestDatabase::create().await;
    let mut stand = Stand::new(&settings)?.with_database(&database.url, &database.url);
    // Makes the database's keys, so that the next starts have little to do.
    stand.start().await?;
    stand.scene.clients.go_on(1).await?;
    stand.kill()?;
    let (mut deaths, mut others) = (0, 0);
    for time in 0..settings.times {
        let calls = CALLS[(time % CALLS.len() as u64) as usize];
        // Each thread counts its own; the first of them belong to the start.
        let nth = 2 + 5 * (time / CALLS.len() as u64) + moment(settings.seed, time, Duration::from_millis(40)).as_millis() as u64;
        let starting = stand.begin_under(under_strace(&settings, calls, &format!("signal=KILL:when={nth}")))?;
        match stand.ready(starting).await {
            Ok(()) => match stand.ends(MET_MAX).await {
                Some(status) if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) => deaths += 1,
                Some(status) => anyhow::bail!("{calls} {nth}: it ended with {status}"),
                // That call does not come so often in one thread.
                None => {
                    others += 1;
                    stand.kill()?;
                }
            },
            // It died before it was ready, in its recovery.
            Err(error) if error.to_string().contains("signal: 9") => {
                stand.scene.nested_deaths += 1;
                deaths += 1;
            }
            Err(error) => return Err(error),
        }
    }
    stand.start().await?;
    stand.scene.claim("death inside of a system call", (settings.times - others).max(1), deaths);
    if settings.times > 3 {
        let under_load = deaths - stand.scene.nested_deaths;
        stand.scene.claim("of them under load, not while it starts", 1, under_load);
    }
    stand.scene.durability = Some("deaths inside of the system calls between request and answer");
    Ok(Outcome::Judged(stand.judge().await?))
}

/// C4: of the log's disk.
pub(super) async fn disk_full(settings: Settings) -> anyhow::Result<Outcome> {
    let database = TestDatabase::create().await;
    let scene = Scene::new(&settings, Pace::default())?;
    let disk = match Disk::of_memory(&scene.folder().join("disk"), 64) {
        Ok(disk) => disk,
        Err(error) => return Ok(Outcome::Skipped(format!("no small disk may be mounted: {error:#}"))),
    };
    let data = disk.folder().join("data");
    let mut stand = Stand::of(scene)?.with_database(&database.url, &database.url).with_data(data);
    stand.start().await?;
    let (mut full, mut told) = (0, 0);
    for _ in 0..settings.times {
        stand.scene.clients.go_on(100).await?;
        let ballast = disk.folder().join("ballast");
        full += u64::from(fill(&ballast)?);
        told += u64::from(collector_becomes(&stand, false).await?);
        std::fs::remove_file(&ballast)?;
        collector_becomes(&stand, true).await?;
    }
    stand.scene.claim("the disk was full", settings.times, full);
    stand.scene.claim("the collector said so", settings.times, told);
    let verdicts = stand.judge().await?;
    drop(disk);
    Ok(Outcome::Judged(verdicts))
}

/// Waits until the collector says that it is ready, or that it is not.
async fn collector_becomes(stand: &Stand, ready: bool) -> anyhow::Result<bool> {
    let url = format!("{}/readyz", stand.up()?.line("collector")?);
    let begun = Instant::now();
    while begun.elapsed() < MET_MAX {
        if page(&url).await?.starts_with("HTTP/1.1 200") == ready {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(false)
}

/// C5: once in each thread that syncs, then twice in a row, by which the log stops and the process ends.
pub(super) async fn sync_fails(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = why_no_strace() {
        return Ok(Outcome::Skipped(why));
    }
    let database = TestDatabase::create().await;
    let mut stand = Stand::new(&settings)?.with_database(&database.url, &database.url);
    let (mut refused, mut ended) = (0, 0);
    for time in 0..settings.times {
        let nth = 20 + moment(settings.seed, time, Duration::from_millis(30)).as_millis();
        let starting = stand.begin_under(under_strace(&settings, "fdatasync", &format!("error=EIO:when={nth}")))?;
        stand.ready(starting).await?;
        let begun = Instant::now();
        let failed = "weir_collector_requests_total{route=\"events\",status=\"503\"}";
        while begun.elapsed() < MET_MAX {
            let Ok(count) = stand.metric("collector", failed).await else { break };
            if count > 0.0 {
                refused += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Threads fail one after the other; two in a row end the process, which is right, too.
        if stand.ends(Duration::from_secs(1)).await.is_none() {
            stand.scene.clients.go_on(1).await?;
            stand.kill()?;
        }
        let starting = stand.begin_under(under_strace(&settings, "fdatasync", "error=EIO:when=25+"))?;
        ended += match stand.ready(starting).await {
            Ok(()) => u64::from(stand.ends(MET_MAX).await.is_some_and(|status| !status.success())),
            // On a busy machine it has synced that often before it was ready.
            Err(error) if error.to_string().contains("exit status") => 1,
            Err(error) => return Err(error),
        };
    }
    stand.start().await?;
    stand.scene.claim("503 after a sync that failed", settings.times, refused);
    stand.scene.claim("the end after the second failure", settings.times, ended);
    stand.scene.durability = Some("syncs that fail");
    Ok(Outcome::Judged(stand.judge().await?))
}

/// C6: the power of the whole machine: log and Postgres are on one disk.
pub(super) async fn power_cut(settings: Settings) -> anyhow::Result<Outcome> {
    if let Some(why) = disk::why_not().await {
        return Ok(Outcome::Skipped(why));
    }
    let scene = Scene::new(&settings, Pace::default())?;
    let disk = Disk::of_file(&scene.folder().join("disk"), 2_048)?;
    let data = disk.folder().join("data");
    let mut stand = Stand::of(scene)?.with_data(data);
    stand.start().await?;
    let mut cuts = 0;
    for cut in 0..settings.times {
        stand.scene.clients.go_on(100).await?;
        tokio::time::sleep(moment(settings.seed, cut, Duration::from_secs(2))).await;
        let postmaster = stand.postmaster()?;
        let mut processes = crate::chaos::server::children(postmaster);
        processes.extend([postmaster, stand.pid()?]);
        disk.cut_power(&processes)?;
        stand.kill()?;
        for pid in processes {
            let _ = kill_process(pid, Signal::KILL);
            until_gone(pid, Duration::from_secs(20)).await?;
        }
        disk.restore_power().await?;
        cuts += 1;
        stand.start().await?;
    }
    stand.scene.claim("power cut", settings.times, cuts);
    stand.scene.durability = Some("power cuts of the machine's disk");
    let verdicts = stand.judge().await?;
    drop(disk);
    Ok(Outcome::Judged(verdicts))
}

/// C8: the process of collector and aggregator in a group whose memory does not suffice.
pub(super) async fn out_of_memory(settings: Settings) -> anyhow::Result<Outcome> {
    let group = match Group::new(&format!("weir-chaos-{}", std::process::id())) {
        Ok(group) => group,
        Err(error) => return Ok(Outcome::Skipped(format!("no group of processes with a bound of memory: {error:#}"))),
    };
    let mut stand = Stand::new(&settings)?;
    stand.start().await?;
    let mut kills = 0;
    for _ in 0..settings.times {
        stores_more(&mut stand).await?;
        group.take(stand.pid()?)?;
        // What it has already counts elsewhere; this is for what it takes from now on.
        group.bound(256 << 10)?;
        let status = stand.ends(MET_MAX).await.context("it goes on without any more memory")?;
        kills += u64::from(std::os::unix::process::ExitStatusExt::signal(&status) == Some(9));
        group.unbound()?;
        stand.start().await?;
    }
    stand.scene.claim("killed for memory, by its end", settings.times, kills);
    stand.scene.claim("killed for memory, by the kernel's count", settings.times, group.kills()?);
    Ok(Outcome::Judged(stand.judge().await?))
}

/// T1: the clock of Weir's processes jumps; that of the clients does not.
pub(super) async fn clock_jumps(settings: Settings) -> anyhow::Result<Outcome> {
    const HOUR: i64 = 3_600;
    // An event of a client whose clock is right is 10 minutes old, or up to 19 days: within what is accepted at each of these.
    const JUMPS: [i64; 6] = [HOUR - 60, -(HOUR - 60), 24 * HOUR, -300, 10 * 24 * HOUR, 0];
    let database = TestDatabase::create().await;
    let scene = Scene::new(&settings, Pace::default())?;
    let (library, file) = (scene.folder().join("clock.so"), scene.folder().join("clock"));
    let source = scene.folder().join("clock.c");
    std::fs::write(&source, include_str!("clock.c"))?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
    if !compiled.as_ref().is_ok_and(|output| output.status.success()) {
        return Ok(Outcome::Skipped(format!("a clock that jumps needs cc: {compiled:?}")));
    }
    std::fs::write(&file, "0")?;
    let text = |path: &std::path::Path| path.display().to_string();
    let stand = Stand::of(scene)?.with_database(&database.url, &database.url);
    let mut stand = stand.with_variable("LD_PRELOAD", &text(&library)).with_variable("JUMPING_CLOCK", &text(&file));
    stand.start().await?;
    let mut jumps = 0;
    for _ in 0..settings.times {
        for jump in JUMPS {
            // In one step: a clock that is read is never half written.
            let new = file.with_extension("new");
            std::fs::write(&new, jump.to_string())?;
            std::fs::rename(&new, &file)?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let begun = Instant::now();
            let mut is_seen = false;
            while !is_seen && begun.elapsed() < MET_MAX {
                stores_more(&mut stand).await?;
                let received =
                    "SELECT count(*) > 0 FROM conversions WHERE abs(extract(epoch FROM received_at - now()) - $1) < 30";
                let mut connection = connect(&database.url).await?;
                is_seen = sqlx::query_scalar(received).bind(jump).fetch_one(&mut connection).await?;
            }
            jumps += u64::from(is_seen);
        }
    }
    stand.scene.claim("jump of the clock", settings.times * JUMPS.len() as u64, jumps);
    Ok(Outcome::Judged(stand.judge().await?))
}

/// H1: so many thousand users, each with a few events, beside one that has nine tenths of all, and more names of events than a project may have.
pub(super) async fn hot_key(settings: Settings) -> anyhow::Result<Outcome> {
    let pace = Pace { clients: 8, pause: Duration::ZERO };
    let users = settings.times * 1_000;
    let scene = Scene::of(&settings, pace, |plan| {
        (plan.users, plan.hot_percent, plan.names) = (users, 90, 10_000);
    })?;
    let database = TestDatabase::create().await;
    let mut stand = Stand::of(scene)?.with_database(&database.url, &database.url);
    stand.start().await?;
    // Of so many draws all but e^-2 of the users come.
    stand.scene.clients.go_on(users * 20).await?;
    let mut connection = connect(&database.url).await?;
    stores_more(&mut stand).await?;
    let over_active = "SELECT count(*) FROM over_active_users";
    let begun = Instant::now();
    let mut marked: i64 = 0;
    while marked == 0 && begun.elapsed() < MET_MAX {
        marked = sqlx::query_scalar(over_active).fetch_one(&mut connection).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stand.scene.claim("users with too many rows", 1, marked.unsigned_abs());
    let beyond = stand.metric("collector", "weir_collector_events_rejected_total{code=\"cardinality_limit\"}").await? as u64;
    stand.scene.claim("names beyond the limit", 1, beyond);
    Ok(Outcome::Judged(stand.judge().await?))
}
