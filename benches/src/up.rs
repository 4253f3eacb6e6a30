//! A `weir up` that is attacked, killed or starved, as a child of this process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use sqlx::PgConnection;

/// How long it may take to end, its Postgres included.
const END_MAX: Duration = Duration::from_secs(30);
/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// A running `weir up`, which ends in good order with this value.
pub(crate) struct Up {
    child: Child,
    lines: BTreeMap<String, String>,
}

/// One that has begun to start, and prints its lines when it is ready.
pub(crate) struct Starting {
    up: Up,
    output: ChildStdout,
    log: PathBuf,
}

impl Starting {
    /// Waits until it is ready. Blocks.
    /// # Errors
    /// It ended before that; its last words are in the error.
    pub(crate) fn ready(mut self) -> anyhow::Result<Up> {
        for line in BufReader::new(self.output).lines() {
            let line = line?;
            match line.trim_end().split_once(' ') {
                Some((name, value)) => self.up.lines.insert(name.to_owned(), value.to_owned()),
                None => return Ok(self.up),
            };
        }
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(8).collect();
        let status = self.up.child.wait()?;
        bail!("it did not start, {status}: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Kills it, wherever it stands.
    pub(crate) fn kill(self) -> anyhow::Result<()> {
        self.up.kill_hard()
    }
}

impl Up {
    /// Starts it on free ports, its data in a folder of `folder`, and waits until it is ready.
    pub(crate) fn start(weir: &Path, folder: &Path) -> anyhow::Result<Self> {
        Self::spawn(Command::new(weir), &folder.join("data"), &folder.join("stderr"), &[])?.ready()
    }

    /// Begins a start. `program` is `weir`, or what runs it; its stderr is added to `log`.
    pub(crate) fn spawn(mut program: Command, data: &Path, log: &Path, arguments: &[&str]) -> anyhow::Result<Starting> {
        let file = fs::File::options().create(true).append(true).open(log)?;
        program.args(["up", "--collector", "127.0.0.1:0", "--query", "127.0.0.1:0", "--aggregator", "127.0.0.1:0", "--data"]);
        program.arg(data).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = program.spawn().with_context(|| format!("starting {program:?}"))?;
        let output = child.stdout.take().context("was piped")?;
        Ok(Starting { up: Up { child, lines: BTreeMap::new() }, output, log: log.to_owned() })
    }

    /// Kills it, as a power cut or the kernel would; its Postgres stays.
    pub(crate) fn kill_hard(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Returns its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Returns the value of one of the lines that it prints.
    pub(crate) fn line(&self, name: &str) -> anyhow::Result<&str> {
        Ok(self.lines.get(name).with_context(|| format!("it printed no line {name}"))?)
    }

    /// Returns the host and port of a service.
    pub(crate) fn address(&self, service: &str) -> anyhow::Result<String> {
        Ok(self.line(service)?.trim_start_matches("http://").to_owned())
    }

    /// Returns who looks at its memory from another thread.
    pub(crate) fn sampler(&self) -> MemorySampler {
        MemorySampler { up: self.child.id() }
    }

    /// Kills a child, as the kernel does that needs memory: `postgres` or `query`.
    /// # Errors
    /// It does not run.
    pub(crate) fn kill(&self, name: &str) -> anyhow::Result<()> {
        let child = children(self.child.id()).into_iter().find(|pid| command_of(*pid).contains(name));
        let pid = child.and_then(|pid| Pid::from_raw(pid.cast_signed())).with_context(|| format!("no {name} runs"))?;
        kill_process(pid, Signal::KILL).with_context(|| format!("killing {name}"))
    }

    /// Returns what is held after some seconds without load.
    pub(crate) async fn resources(&self, database: &mut PgConnection) -> anyhow::Result<Resources> {
        tokio::time::sleep(Duration::from_secs(15)).await;
        let connections =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let services: Vec<u32> = std::iter::once(self.child.id()).chain(query_processes(self.child.id())).collect();
        let sum = |count: fn(u32) -> u64| services.iter().copied().map(count).sum();
        Ok(Resources {
            processes: services.len() as u64,
            files: sum(|pid| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |files| files.count() as u64)),
            threads: sum(|pid| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, |threads| threads.count() as u64)),
            connections: sqlx::query_scalar::<_, i64>(connections).fetch_one(database).await?.unsigned_abs(),
            memory_mib: sum(resident_mib),
        })
    }

    /// Ends it in good order.
    /// # Errors
    /// It does not end, or not well.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.ask_to_end();
        let status = self.child.try_wait()?.context("it has not ended within 30 s")?;
        if !status.success() {
            bail!("it ended with {status}");
        }
        Ok(())
    }

    fn ask_to_end(&mut self) {
        let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) else { return };
        if !matches!(self.child.try_wait(), Ok(None)) || kill_process(pid, Signal::TERM).is_err() {
            return;
        }
        let begun = Instant::now();
        while begun.elapsed() < END_MAX && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The most memory that was resident, MiB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    pub collector: u64,
    pub query: u64,
}

impl Memory {
    pub(crate) fn most(self, other: Memory) -> Memory {
        Memory { collector: self.collector.max(other.collector), query: self.query.max(other.query) }
    }
}

/// What the services hold while nothing is asked of them.
pub(crate) struct Resources {
    processes: u64,
    files: u64,
    threads: u64,
    connections: u64,
    memory_mib: u64,
}

impl Resources {
    /// Names what has grown by more than what a moment explains.
    pub(crate) fn leaks_since(&self, before: &Resources) -> Vec<String> {
        let compared = [
            ("processes", before.processes, self.processes, 0),
            ("file descriptors", before.files, self.files, 20),
            ("threads", before.threads, self.threads, 20),
            ("connections to Postgres", before.connections, self.connections, 5),
            ("MiB of memory", before.memory_mib, self.memory_mib, 64 + before.memory_mib / 4),
        ];
        let grown = compared.into_iter().filter(|(_, before, after, more)| *after > before + more);
        grown.map(|(what, before, after, _)| format!("{after} {what}, after the first round it was {before}")).collect()
    }
}

impl std::fmt::Display for Resources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Resources { processes, files, threads, connections, memory_mib } = self;
        write!(
            formatter,
            "{processes} processes, {files} file descriptors, {threads} threads, {connections} connections to Postgres, {memory_mib} MiB"
        )
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.ask_to_end();
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts.flat_map(|text| text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

fn command_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ")
}

/// Looks at memory. Reading of processes takes a processor for milliseconds.
pub(crate) struct MemorySampler {
    up: u32,
}

impl MemorySampler {
    /// Looks again and again until `end`, and returns the most that was resident.
    pub(crate) fn most_until(&self, end: Instant) -> Memory {
        let mut most = Memory::default();
        while Instant::now() < end {
            let query = query_processes(self.up).into_iter().map(resident_mib).sum();
            most = most.most(Memory { collector: resident_mib(self.up), query });
            std::thread::sleep(SAMPLE_EVERY);
        }
        most
    }
}

/// The query service and its workers.
fn query_processes(up: u32) -> Vec<u32> {
    let services = children(up).into_iter().filter(|pid| command_of(*pid).contains("query"));
    services.flat_map(|pid| std::iter::once(pid).chain(children(pid))).collect()
}

fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
