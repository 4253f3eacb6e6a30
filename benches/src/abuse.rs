//! Attacks on one machine's `weir up`, each beside a client that does nothing wrong.
//!
//! Each attack runs for some seconds over loopback with what anybody has (nothing, or a public key) or an analyst of one project has
//! (a read token). Beside it, a client of another project posts one event and asks one question every 20 ms. The page
//! shows what it waited before, with one core left to it, and during the attack, and how many times longer that was; the run fails if one of its
//! requests was refused, if memory passed its bound, or if the services are not as before 10 s after the attack's end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use service::Threads;
use sqlx::{Connection as _, PgConnection};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::Histogram;
use crate::report::{Page, number};
use crate::up::{Memory, Resources, Up};
use attacks::{ATTACKS, Attack};
use client::{Client, Waited};

mod attacks;
mod client;

/// How soon all must be as before.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// The same after a process was killed.
const FAULT_MAX: Duration = Duration::from_secs(60);

/// Settings of the run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The program that is attacked
    #[arg(long)]
    pub weir: PathBuf,
    /// Seconds that an attack lasts
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Begin again with the first attack until so many minutes are over, with a kill of Postgres and of the query service in between;
    /// then see whether file descriptors, threads, connections or memory have grown since the first round
    #[arg(long, default_value_t = 0)]
    pub minutes: u64,
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
    let good = client::of_another_project(&mut connect(&up).await?, &target).await?;
    attacks::prepare(&target).await?;
    // On a processor that is not the good client's: attackers have machines of their own.
    let attackers = Threads::start("attacker", 1)?;

    let chosen = |attack: &&Attack| options.only.as_ref().is_none_or(|only| attack.name.contains(only));
    let mut observed: Vec<Observed> = ATTACKS.iter().filter(chosen).map(Observed::of).collect();
    let begun = Instant::now();
    let Rounds { round, posted, after_first } = rounds(options, &mut observed, &attackers.handle(), &target, &good, &up).await?;

    let mut page = Page::new("abuse", "A good client beside attacks", folder.path(), Vec::new());
    page.say(&format!(
        "Each attack lasts {} s, over loopback, from all processors but one. The good client belongs to another \
         project; it posts one event and asks for its experiments every 20 ms. Milliseconds, p50 / p99. Before: nothing else but \
         threads that compute without end on the processors that attacks come from. Times: p99 during by p99 before. \
         Memory: the most that the process of collector and aggregator, and the query service with its workers, had resident during the attack.",
        options.seconds
    ));
    page.table(&std::iter::once(HEAD.map(str::to_owned).to_vec()).chain(observed.iter().map(Observed::row)).collect::<Vec<_>>());
    let mut harm: Vec<String> = observed.iter().flat_map(|attack| attack.harm(options)).collect();
    let mut database = connect(&up).await?;
    harm.extend(client::all_stored(&mut database, posted).await.err().map(|error| format!("{error:#}")));
    page.say(&format!("{} events of the good client were acknowledged; each is stored once.", number(posted as f64, 0)));
    if let Some(before) = after_first {
        let after = up.resources(&mut database).await?;
        let minutes = begun.elapsed().as_secs() / 60;
        page.say(&format!(
            "{round} rounds in {minutes} minutes; after each, Postgres and the query service were killed. \
             After the first: {before}. At the end: {after}."
        ));
        harm.extend(after.leaks_since(&before));
    }
    database.close().await?;
    up.end()?;
    let page = page.finish(options.save.as_deref().filter(|_| harm.is_empty()))?;
    if !harm.is_empty() {
        crate::progress(&page);
        bail!("harm was done:\n{}", harm.join("\n"));
    }
    Ok(page)
}

/// What came of all rounds.
struct Rounds {
    round: u32,
    /// Events of the good client that were acknowledged.
    posted: u64,
    /// What was held after the first round, if there was another one.
    after_first: Option<Resources>,
}

/// Runs all attacks, one after the other, until the time is over, with kills after each round.
async fn rounds(
    options: &Options,
    observed: &mut [Observed],
    attackers: &Handle,
    target: &Target,
    good: &Client,
    up: &Up,
) -> anyhow::Result<Rounds> {
    let begun = Instant::now();
    let mut rounds = Rounds { round: 0, posted: 0, after_first: None };
    loop {
        rounds.round += 1;
        for attack in observed.iter_mut() {
            let before = {
                let _busy = BusyCores::all_but_one()?;
                good.go_on_for(Duration::from_secs(options.seconds)).await
            };
            let time = Duration::from_secs(options.seconds);
            let (during, turns, memory) = beside(attack.attack, attackers, target, good, up, time).await?;
            let recovery = recovers(good, target, RECOVERY_MAX).await;
            rounds.posted += before.posted + during.posted + u64::from(recovery.is_ok());
            attack.add(before, during, turns, memory, recovery);
            crate::progress(&format!("{}: {}", rounds.round, attack.row().join(" | ")));
        }
        if options.minutes == 0 {
            return Ok(rounds);
        }
        for fault in ["postgres", "query"] {
            up.kill(fault)?;
            recovers(good, target, FAULT_MAX).await.with_context(|| format!("after the death of {fault}"))?;
            rounds.posted += 1;
        }
        if rounds.after_first.is_none() {
            // Caches are full by now, and pools have opened what they need.
            rounds.after_first = Some(up.resources(&mut connect(up).await?).await?);
        }
        if begun.elapsed() >= Duration::from_secs(options.minutes * 60) {
            return Ok(rounds);
        }
    }
}

async fn connect(up: &Up) -> anyhow::Result<PgConnection> {
    PgConnection::connect(up.line("postgres")?).await.context("its Postgres")
}

const HEAD: [&str; 11] = [
    "attack",
    "turns",
    "posts before",
    "posts during",
    "times",
    "answers before",
    "answers during",
    "times",
    "as before after s",
    "MiB",
    "query MiB",
];

/// What was seen of an attack, in all rounds.
struct Observed {
    attack: &'static Attack,
    before: Waited,
    during: Waited,
    turns: u64,
    memory: Memory,
    recovery: Duration,
    not_recovered: Vec<String>,
}

impl Observed {
    fn of(attack: &'static Attack) -> Self {
        Observed {
            attack,
            before: Waited::default(),
            during: Waited::default(),
            turns: 0,
            memory: Memory::default(),
            recovery: Duration::ZERO,
            not_recovered: Vec::new(),
        }
    }

    fn add(&mut self, before: Waited, during: Waited, turns: u64, memory: Memory, recovery: anyhow::Result<Duration>) {
        self.before.add(before);
        self.during.add(during);
        self.turns += turns;
        self.memory = self.memory.most(memory);
        match recovery {
            Ok(took) => self.recovery = self.recovery.max(took),
            Err(error) => self.not_recovered.push(format!("{error:#}")),
        }
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![self.attack.name.to_owned(), self.turns.to_string()];
        for (before, during) in [(&self.before.posts, &self.during.posts), (&self.before.answers, &self.during.answers)] {
            let milliseconds = |waited: &Histogram, quantile| waited.quantile(quantile).as_secs_f64() * 1e3;
            row.extend(
                [before, during].map(|waited| {
                    format!("{} / {}", number(milliseconds(waited, 0.5), 1), number(milliseconds(waited, 0.99), 1))
                }),
            );
            row.push(number(milliseconds(during, 0.99) / milliseconds(before, 0.99), 1));
        }
        row.push(if self.not_recovered.is_empty() { number(self.recovery.as_secs_f64(), 1) } else { "never".to_owned() });
        row.extend([self.memory.collector, self.memory.query].map(|mib| mib.to_string()));
        row
    }

    fn harm(&self, options: &Options) -> Vec<String> {
        let refused = self.before.refused.iter().chain(&self.during.refused);
        let mut harm: Vec<String> = refused.map(|what| format!("the good client met {what}")).collect();
        harm.extend(self.not_recovered.iter().cloned());
        for (what, found, bound) in [
            ("the collector", self.memory.collector, options.collector_memory_max),
            ("the query service", self.memory.query, options.query_memory_max),
        ] {
            if found > bound {
                harm.push(format!("{what} had {found} MiB resident, more than {bound}"));
            }
        }
        harm.into_iter().map(|what| format!("{}: {what}", self.attack.name)).collect()
    }
}

/// Threads that compute without end, on all cores but one, until it is dropped.
struct BusyCores {
    is_over: Arc<AtomicBool>,
    /// Dropped, they end.
    _threads: Threads,
}

impl BusyCores {
    fn all_but_one() -> std::io::Result<Self> {
        let is_over = Arc::new(AtomicBool::new(false));
        let others = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        let threads = Threads::start("busy", others.max(1))?;
        for _ in 0..others {
            let is_over = Arc::clone(&is_over);
            threads.handle().spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Ok(BusyCores { is_over, _threads: threads })
    }
}

impl Drop for BusyCores {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Runs an attack for some time beside the good client; also returns how often the attack had its turn, and the memory.
async fn beside(
    attack: &'static Attack,
    attackers: &Handle,
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
        attacking.spawn_on(take_turns, attackers);
    }
    let (sampler, end) = (up.sampler(), Instant::now() + time);
    let sample = tokio::task::spawn_blocking(move || sampler.most_until(end));
    let waited = good.go_on_for(time).await;
    let memory = sample.await.context("the look at memory")?;
    attacking.shutdown().await;
    Ok((waited, turns.load(Ordering::Relaxed), memory))
}

/// Returns when the services were as before: ready, and the good client answered.
async fn recovers(good: &Client, target: &Target, max: Duration) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        match tokio::time::timeout(max, good.is_served(target)).await {
            Ok(Ok(())) => return Ok(begun.elapsed()),
            Ok(Err(error)) if begun.elapsed() >= max => return Err(error.context(format!("{} s after it", max.as_secs()))),
            Err(_) => bail!("{} s after it the good client still waits", max.as_secs()),
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
