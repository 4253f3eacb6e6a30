//! Attacks on one machine's `weir up`, each beside a client that does nothing wrong.
//!
//! Each attack runs for some seconds over loopback with what anybody has (nothing, or a public key) or an analyst of one project has
//! (a read token). Beside it, a client of another project posts one event every 20 ms and asks one question every 200 ms. The page
//! shows what it waited before, during and after; the run fails if one of its requests was refused, if memory passed its bound, or if
//! the services are not as before 10 s after the attack's end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sqlx::{Connection as _, PgConnection};
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;

use crate::report::{Page, number};
use attacks::{ATTACKS, Attack};
use client::{Client, Waited};
use up::Up;

mod attacks;
mod client;
mod up;

/// How soon all must be as before.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// Settings of the run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The program that is attacked
    #[arg(long)]
    pub weir: PathBuf,
    /// Seconds that an attack lasts
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Only attacks whose name contains this
    #[arg(long)]
    pub only: Option<String>,
    /// MiB that the collector and the aggregator may have resident
    #[arg(long, default_value_t = 1_024)]
    pub collector_memory_max: u64,
    /// MiB that the query service with its workers may have resident
    #[arg(long, default_value_t = 4_096)]
    pub query_memory_max: u64,
    /// Folder for files
    #[arg(long)]
    pub folder: Option<PathBuf>,
    /// Folder of runs in which the result is kept
    #[arg(long)]
    pub save: Option<PathBuf>,
}

/// Where everything is, and what an attacker has.
#[derive(Clone)]
struct Target {
    collector: String,
    query: String,
    write_key: String,
    read_token: String,
}

/// Runs the attacks and returns their page.
/// # Errors
/// Whatever fails first, and at the end a list of what was harmed.
pub async fn run(options: &Options) -> anyhow::Result<String> {
    let folder = crate::folder(options.folder.as_deref())?;
    let up = Up::start(&options.weir, folder.path())?;
    let target = Target {
        collector: up.address("collector")?,
        query: up.address("query")?,
        write_key: up.line("write_key")?.to_owned(),
        read_token: up.line("read_token")?.to_owned(),
    };
    let mut database = PgConnection::connect(up.line("postgres")?).await.context("its Postgres")?;
    let good = client::of_another_project(&mut database, &target).await?;
    attacks::prepare(&target).await?;
    // Threads of their own, so that the good client does not wait for them within this program.
    let attackers = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;

    let mut page = Page::new("abuse", "A good client beside attacks", folder.path(), Vec::new());
    page.say(&format!(
        "Each attack lasts {} s, over loopback, on the processors that everything else uses, too. The good client belongs to another \
         project; it posts one event every 20 ms, and asks for its experiments every 200 ms. Milliseconds, p50 / p99. Memory: the most \
         that the process of collector and aggregator, and the query service with its workers, had resident during the attack.",
        options.seconds
    ));
    let mut table = vec![
        [
            "attack",
            "turns",
            "posts before",
            "posts during",
            "answers before",
            "answers during",
            "as before after s",
            "MiB",
            "query MiB",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let (mut harm, mut posted) = (Vec::new(), 0);
    for attack in ATTACKS.iter().filter(|attack| options.only.as_ref().is_none_or(|only| attack.name.contains(only))) {
        let before = good.go_on_for(Duration::from_secs(options.seconds.min(5))).await;
        let (during, turns, memory) =
            beside(attack, &attackers, &target, &good, &up, Duration::from_secs(options.seconds)).await?;
        let recovery = recovers(&good, &target).await;
        posted += before.posted + during.posted + u64::from(recovery.is_ok());
        let mut row = vec![attack.name.to_owned(), turns.to_string()];
        row.extend([&before.posts, &during.posts, &before.answers, &during.answers].map(|waited| {
            let milliseconds = |quantile| number(waited.quantile(quantile).as_secs_f64() * 1e3, 1);
            format!("{} / {}", milliseconds(0.5), milliseconds(0.99))
        }));
        row.push(recovery.as_ref().map_or_else(|_| "never".to_owned(), |took| number(took.as_secs_f64(), 1)));
        row.extend([memory.collector, memory.query].map(|mib| mib.to_string()));
        crate::progress(&row.join(" | "));
        table.push(row);
        let refused = before.refused.into_iter().chain(during.refused);
        harm.extend(refused.map(|what| format!("{}: the good client met {what}", attack.name)));
        harm.extend(recovery.err().map(|error| format!("{}: {error:#}", attack.name)));
        for (what, found, bound) in [
            ("the collector", memory.collector, options.collector_memory_max),
            ("the query service", memory.query, options.query_memory_max),
        ] {
            if found > bound {
                harm.push(format!("{}: {what} had {found} MiB resident, more than {bound}", attack.name));
            }
        }
    }
    attackers.shutdown_background();
    page.table(&table);
    harm.extend(client::all_stored(&mut database, posted).await.err().map(|error| format!("{error:#}")));
    database.close().await?;
    up.end()?;
    page.say(&format!("{} events of the good client were acknowledged; each is stored once.", number(posted as f64, 0)));
    let page = page.finish(options.save.as_deref().filter(|_| harm.is_empty()))?;
    if !harm.is_empty() {
        crate::progress(&page);
        bail!("harm was done:\n{}", harm.join("\n"));
    }
    Ok(page)
}

/// The most memory that was resident, MiB.
#[derive(Clone, Copy, Default)]
struct Memory {
    collector: u64,
    query: u64,
}

/// Runs an attack for some time beside the good client; also returns how often the attack had its turn, and the memory.
async fn beside(
    attack: &'static Attack,
    attackers: &Runtime,
    target: &Target,
    good: &Client,
    up: &Up,
    time: Duration,
) -> anyhow::Result<(Waited, u64, Memory)> {
    let turns = Arc::new(AtomicU64::new(0));
    let mut attacking = JoinSet::new();
    for place in 0..attack.parallel {
        let (target, turns, run) = (target.clone(), Arc::clone(&turns), attack.run);
        let take_turns = async move {
            loop {
                // That it is refused, or its connection closed, is what is hoped for.
                let _ = run(target.clone(), place).await;
                turns.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        attacking.spawn_on(take_turns, attackers.handle());
    }
    let sample = async {
        let mut most = Memory::default();
        let end = Instant::now() + time;
        while Instant::now() < end {
            let now = up.memory();
            most = Memory { collector: most.collector.max(now.collector), query: most.query.max(now.query) };
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        most
    };
    let (waited, memory) = tokio::join!(good.go_on_for(time), sample);
    attacking.shutdown().await;
    Ok((waited, turns.load(Ordering::Relaxed), memory))
}

/// Returns when the services were as before: ready, and the good client answered.
async fn recovers(good: &Client, target: &Target) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        let found = tokio::time::timeout(RECOVERY_MAX, good.is_served(target)).await;
        match found {
            Ok(Ok(())) => return Ok(begun.elapsed()),
            Ok(Err(error)) if begun.elapsed() >= RECOVERY_MAX => return Err(error.context("10 s after it")),
            Err(_) => bail!("10 s after it the good client still waits"),
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
