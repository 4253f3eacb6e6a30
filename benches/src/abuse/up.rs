//! The `weir up` that is attacked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Memory;

/// How long it may take to end, its Postgres included.
const END_MAX: Duration = Duration::from_secs(30);

/// A running `weir up`, which ends in good order with this value.
pub(super) struct Up {
    child: Child,
    lines: BTreeMap<String, String>,
}

impl Up {
    /// Starts it on free ports and waits until it is ready.
    pub(super) fn start(weir: &Path, folder: &Path) -> anyhow::Result<Self> {
        let log = fs::File::create(folder.join("stderr"))?;
        let mut command = Command::new(weir);
        command.args(["up", "--collector", "127.0.0.1:0", "--query", "127.0.0.1:0", "--aggregator", "127.0.0.1:0", "--data"]);
        command.arg(folder.join("data")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().with_context(|| format!("starting {}", weir.display()))?;
        let output = child.stdout.take().context("was piped")?;
        let mut up = Up { child, lines: BTreeMap::new() };
        for line in BufReader::new(output).lines() {
            let line = line?;
            match line.trim_end().split_once(' ') {
                Some((name, value)) => up.lines.insert(name.to_owned(), value.to_owned()),
                None => return Ok(up),
            };
        }
        bail!("it did not start: {}", fs::read_to_string(folder.join("stderr")).unwrap_or_default())
    }

    /// Returns the value of one of the lines that it prints.
    pub(super) fn line(&self, name: &str) -> anyhow::Result<&str> {
        Ok(self.lines.get(name).with_context(|| format!("it printed no line {name}"))?)
    }

    /// Returns the host and port of a service.
    pub(super) fn address(&self, service: &str) -> anyhow::Result<String> {
        Ok(self.line(service)?.trim_start_matches("http://").to_owned())
    }

    /// Returns what is resident now.
    pub(super) fn memory(&self) -> Memory {
        let children = children(self.child.id());
        let query = children.iter().filter(|pid| command_of(**pid).contains("query")).copied();
        let query: u64 = query.flat_map(|pid| std::iter::once(pid).chain(self::children(pid))).map(resident_mib).sum();
        Memory { collector: resident_mib(self.child.id()), query }
    }

    /// Ends it in good order.
    /// # Errors
    /// It does not end, or not well.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
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

fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
