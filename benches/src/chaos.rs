//! Faults with names, under load, and a judge.
//!
//! Each scenario starts what it needs on loopback, lets ledger clients send, makes one kind of fault happen so and so many times, and lets all come to
//! rest. Then the judge compares the ledger with the tables and with the log itself, and prints a JSON line for each invariant: `scenario`, `seed`,
//! `invariant`, `verdict` (`pass`, `fail` or `not judged`) and what was `seen`. A scenario that did not see each fault that it claims fails (I22); one
//! that cannot run where it is started says `skipped`, and why.
//!
//! The events, and the moments of faults, follow from the seed; how threads and disks meet does not.

mod client;
mod disk;
mod groups;
mod judge;
mod ledger;
mod plan;
mod scenarios;
mod scene;
mod server;
#[cfg(feature = "kafka")]
mod services;
mod stand;
mod stored;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use judge::Verdict;
use scenarios::{SCENARIOS, Scenario};
use scene::Settings;

/// No scenario takes longer at its usual count; a larger one has as many times as much.
const SCENARIO_MAX: Duration = Duration::from_secs(2_400);

/// Settings of the run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Scenarios to run, such as C1 or P2; none: all of them
    pub names: Vec<String>,
    /// The program under test [default: weir beside this program]
    #[arg(long)]
    pub weir: Option<PathBuf>,
    /// How often each fault happens [default: each scenario's own number]
    #[arg(long)]
    pub times: Option<u64>,
    /// Which events are sent, and when faults happen; none: another one each time
    #[arg(long)]
    pub seed: Option<u64>,
    /// MiB that a process of Weir's may have resident
    #[arg(long, default_value_t = 1_024)]
    pub memory_max: u64,
    /// Folder for files; as root the system user postgres has to reach it
    #[arg(long, default_value = "/tmp")]
    pub folder: PathBuf,
    /// Only say which scenarios there are
    #[arg(long)]
    pub list: bool,
}

/// What came of a scenario.
enum Outcome {
    Judged(Vec<Verdict>),
    /// It was not run here, and why.
    Skipped(String),
}

impl Outcome {
    /// Adds what came of a second part; one that was skipped makes all of it skipped.
    #[cfg(feature = "kafka")]
    fn and(self, other: Outcome) -> Outcome {
        match (self, other) {
            (Outcome::Judged(mut verdicts), Outcome::Judged(more)) => {
                verdicts.extend(more);
                Outcome::Judged(verdicts)
            }
            (skipped @ Outcome::Skipped(_), _) | (_, skipped) => skipped,
        }
    }
}

/// Runs the scenarios one after the other, and prints their verdicts to standard output.
/// # Errors
/// A name that is none; at the end, what failed.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let mut chosen = Vec::new();
    for name in &options.names {
        let found = SCENARIOS.iter().find(|scenario| scenario.name.eq_ignore_ascii_case(name));
        let names = || SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
        chosen.push(found.with_context(|| format!("found scenario {name:?}; {} are accepted", names()))?);
    }
    if options.names.is_empty() {
        chosen.extend(SCENARIOS);
    }
    if options.list {
        return chosen
            .iter()
            .try_for_each(|scenario| say(&format!("{:<3} {:>4}  {}", scenario.name, scenario.times, scenario.what)));
    }
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("weir"));
    let weir = options.weir.clone().map_or_else(beside, Ok)?;
    if !weir.is_file() {
        bail!("{} is no program; `cargo build --workspace` makes it, and --weir names another one", weir.display());
    }
    let seed = options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
    let mut failed = Vec::new();
    for scenario in chosen {
        let times = options.times.unwrap_or(scenario.times);
        let memory_max = options.memory_max;
        let settings = Settings { weir: weir.clone(), folder: options.folder.clone(), seed, times, memory_max };
        let begun = Instant::now();
        crate::progress(&format!("{}: {}, {times} times, seed {seed}", scenario.name, scenario.what));
        let max = SCENARIO_MAX.saturating_mul(u32::try_from(times.div_ceil(scenario.times.max(1))).unwrap_or(u32::MAX).max(1));
        // However it ends, what it has begun ends with its values.
        let outcome = tokio::select! {
            outcome = (scenario.run)(settings) => outcome,
            () = tokio::time::sleep(max) => Err(anyhow::anyhow!("it has not ended within {} s", max.as_secs())),
            () = asked_to_end()? => bail!("{} was interrupted", scenario.name),
        };
        failed.extend(tell(scenario, seed, outcome)?);
        crate::progress(&format!("{}: over after {:.0} s", scenario.name, begun.elapsed().as_secs_f64()));
    }
    if !failed.is_empty() {
        bail!("failed with seed {seed}: {}", failed.join(", "));
    }
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
fn asked_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Prints the lines of a scenario, and returns what failed.
fn tell(scenario: &Scenario, seed: u64, outcome: anyhow::Result<Outcome>) -> anyhow::Result<Vec<String>> {
    let line = |rest: Value| {
        let mut line = json!({ "scenario": scenario.name, "seed": seed });
        if let (Some(line), Value::Object(rest)) = (line.as_object_mut(), rest) {
            line.extend(rest);
        }
        say(&line.to_string())
    };
    match outcome {
        Ok(Outcome::Skipped(why)) => line(json!({ "skipped": why })).map(|()| Vec::new()),
        Ok(Outcome::Judged(verdicts)) => {
            let mut failed = Vec::new();
            for verdict in verdicts {
                let word = match verdict.holds {
                    Some(true) => "pass",
                    Some(false) => "fail",
                    None => "not judged",
                };
                line(json!({ "invariant": verdict.invariant, "verdict": word, "seen": verdict.seen }))?;
                if verdict.holds == Some(false) {
                    failed.push(format!("{} {}", scenario.name, verdict.invariant));
                }
            }
            Ok(failed)
        }
        // It came to no judgement, which is no pass.
        Err(error) => {
            line(json!({ "invariant": "I22", "verdict": "fail", "seen": { "error": format!("{error:#}") } }))?;
            Ok(vec![format!("{}: {error:#}", scenario.name)])
        }
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush().context("standard output")
}
