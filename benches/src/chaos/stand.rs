//! One machine: `weir up` over its own log, with a Postgres of its own or another's, and clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use eventlog::embedded::{EmbeddedLog, Options as LogOptions};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::client::Pace;
use super::judge::Verdict;
use super::scene::{self, COMPARED_ONE_IN, END_MAX, Scene, Settings, without_settings};
use super::stored::{Records, records};
use crate::up::{Starting, Up};

/// Remembered users that were compared.
pub(super) const COMPARED: &str = "weir_aggregator_users_compared_total";

/// A machine under a scenario. What a killed `weir up` left running on it ends with this value.
pub(super) struct Stand {
    pub scene: Scene,
    /// Where the judge finds the database; none: the machine's own Postgres.
    database_url: Option<String>,
    data: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    up: Option<Up>,
    is_watched: bool,
}

impl Stand {
    /// Makes one whose data is in the scene's own folder; nothing runs yet.
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        Self::of(Scene::new(settings, Pace::default())?)
    }

    /// Makes one of a scene.
    pub(super) fn of(scene: Scene) -> anyhow::Result<Self> {
        let data = scene.folder().join("data");
        // Of clients that are all one key's nobody is refused for being fast.
        let environment = [("WEIR_KEY_BYTES_PER_SECOND_MAX", "0"), COMPARED_ONE_IN];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Ok(Stand { scene, database_url: None, data, arguments: Vec::new(), environment, up: None, is_watched: false })
    }

    /// Lets it use a database that it reaches at one URL, and the judge at another.
    pub(super) fn with_database(mut self, reached_at: &str, judged_at: &str) -> Self {
        self.arguments.extend(["--database-url".to_owned(), reached_at.to_owned()]);
        self.database_url = Some(judged_at.to_owned());
        self
    }

    /// Puts its data elsewhere.
    pub(super) fn with_data(mut self, data: PathBuf) -> Self {
        self.data = data;
        self
    }

    /// Sets a variable of its environment.
    pub(super) fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, and lets the clients send to it.
    pub(super) async fn start(&mut self) -> anyhow::Result<()> {
        let starting = self.begin()?;
        self.ready(starting).await
    }

    /// Begins a start.
    pub(super) fn begin(&self) -> anyhow::Result<Starting> {
        self.begin_under(self.scene.settings.weir())
    }

    /// Begins a start by another program, which runs `weir` with the arguments that follow.
    pub(super) fn begin_under(&self, program: Command) -> anyhow::Result<Starting> {
        let mut program = without_settings(program);
        program.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        Up::spawn(program, &self.data, &self.scene.folder().join("stderr"), &arguments)
    }

    /// Waits until it is ready, and lets the clients send to it.
    pub(super) async fn ready(&mut self, starting: Starting) -> anyhow::Result<()> {
        let up = tokio::task::block_in_place(|| starting.ready())?;
        if !self.is_watched {
            let url = self.database_url.clone().unwrap_or(up.line("postgres")?.to_owned());
            scene::watch(&url).await?;
            self.is_watched = true;
        }
        self.scene.clients.aim(up.line("collector")?, up.line("write_key")?)?;
        self.up = Some(up);
        Ok(())
    }

    pub(super) fn up(&self) -> anyhow::Result<&Up> {
        self.up.as_ref().context("weir up does not run")
    }

    /// The process of collector and aggregator.
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.up()?.pid().cast_signed()).context("a process has an id")
    }

    /// Kills it; its Postgres stays.
    pub(super) fn kill(&mut self) -> anyhow::Result<()> {
        let up = self.up.take().context("weir up does not run")?;
        self.scene.note_memory(up.pid());
        up.kill_hard()?;
        self.scene.clients.aim_nowhere();
        Ok(())
    }

    /// Waits until it has ended by itself. None if it has not.
    pub(super) async fn ends(&mut self, max: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        while begun.elapsed() < max {
            let pid = self.up.as_ref()?.pid();
            self.scene.note_memory(pid);
            if let Some(status) = self.up.as_mut()?.ended() {
                self.up = None;
                self.scene.clients.aim_nowhere();
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// The process of the machine's own Postgres.
    pub(super) fn postmaster(&self) -> anyhow::Result<Pid> {
        postmaster(&self.data).context("no Postgres runs on the data folder")
    }

    /// The sum of a metric of a service, `collector` or `aggregator`.
    pub(super) async fn metric(&self, service: &str, name: &str) -> anyhow::Result<f64> {
        scene::metric(self.up()?.line(service)?, name).await
    }

    /// Where the judge finds the database.
    pub(super) fn database_url(&self) -> anyhow::Result<String> {
        match &self.database_url {
            Some(url) => Ok(url.clone()),
            None => Ok(self.up()?.line("postgres")?.to_owned()),
        }
    }

    /// Ends it by SIGTERM.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        let up = self.up.take().context("weir up does not run")?;
        self.scene.note_memory(up.pid());
        let begun = Instant::now();
        let ended = tokio::task::block_in_place(|| up.end());
        self.scene.clients.aim_nowhere();
        self.scene.ends.push(match ended {
            Ok(()) if begun.elapsed() <= END_MAX => Ok(begun.elapsed()),
            Ok(()) => Err(format!("it ended after {:?}", begun.elapsed())),
            Err(error) => Err(format!("{error:#}")),
        });
        Ok(())
    }

    /// Lets all come to rest, ends it, and pronounces.
    pub(super) async fn judge(mut self) -> anyhow::Result<Vec<Verdict>> {
        let (url, aggregator) = (self.database_url()?, self.up()?.line("aggregator")?.to_owned());
        let lag = async || scene::metric(&aggregator, "weir_aggregator_lag_records").await;
        let rest = self.scene.rest(&url, lag).await?;
        self.scene.compared = self.metric("aggregator", COMPARED).await? as u64;
        self.end()?;
        let folder = self.data.join("log");
        let first = opened(&folder).await?;
        let again = opened(&folder).await?.into_iter().map(|(partition, records)| (partition, records.end)).collect();
        Ok(self.scene.judge(&rest, Some(&first), Some(again)))
    }
}

/// Opens a log, which recovers it, and reads it.
async fn opened(folder: &Path) -> anyhow::Result<BTreeMap<u32, Records>> {
    let log = tokio::task::block_in_place(|| EmbeddedLog::open(folder, LogOptions::default()))?;
    let records = records(&log).await?;
    if log.stats().corrupt_ranges > 0 {
        bail!("{}: {} damaged ranges of acknowledged records", folder.display(), log.stats().corrupt_ranges);
    }
    tokio::task::block_in_place(|| drop(log));
    Ok(records)
}

fn postmaster(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postgres/postmaster.pid")).ok()?;
    let pid = text.lines().next()?.parse().ok().and_then(Pid::from_raw)?;
    let command = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    command.contains(data.to_str()?).then_some(pid)
}

/// Whether a process is there and has not ended.
pub(super) fn is_running(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    test_kill_process(pid).is_ok() && stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with(['Z', 'X']))
}

/// Waits until a process has ended.
pub(super) async fn until_gone(pid: Pid, max: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    while is_running(pid) {
        if begun.elapsed() > max {
            bail!("process {} has not ended within {} s", pid.as_raw_pid(), max.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

impl Drop for Stand {
    fn drop(&mut self) {
        drop(self.up.take());
        let socket = std::fs::read_to_string(self.data.join("postgres/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = postmaster(&self.data) {
            let _ = kill_process(pid, Signal::QUIT);
            let begun = Instant::now();
            while is_running(pid) && begun.elapsed() < END_MAX {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(socket) = socket.lines().nth(4).filter(|line| line.contains("/weir-")) {
            let _ = std::fs::remove_dir_all(socket);
        }
    }
}
