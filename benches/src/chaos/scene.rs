//! What every scenario has: a folder that no fault touches, clients with their ledger, claims, and at the end the judgement.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use events::Micros;
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;

use super::client::{Clients, Pace};
use super::judge::{Claim, Evidence, Verdict, judge};
use super::ledger::{Ledger, Told};
use super::plan::{EXPERIMENT, Plan};
use super::stored::{Records, Stored, WATCH};
use crate::machine;

/// How long after the last fault until all that was acknowledged is stored.
const SETTLED_MAX: Duration = Duration::from_secs(240);
/// How long Postgres may take to answer after a fault.
const ANSWER_MAX: Duration = Duration::from_secs(180);
/// How long SIGTERM may take: ten seconds by contract, and some for a busy machine.
pub(super) const END_MAX: Duration = Duration::from_secs(12);

/// What an aggregator says of a log partition whose users it remembers otherwise than they are stored.
const DIFFERS: &str = "what is remembered of users differs";
/// Of so many remembered users one is compared, more than usual.
pub(super) const COMPARED_ONE_IN: (&str, &str) = ("WEIR_KNOWN_USERS_COMPARED_ONE_IN", "4");

/// How a scenario is run.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The program under test.
    pub weir: PathBuf,
    /// Where folders are made.
    pub folder: PathBuf,
    pub seed: u64,
    /// How often the fault happens.
    pub times: u64,
    /// MiB that a process of Weir's may have resident.
    pub memory_max: u64,
}

impl Settings {
    /// `weir` with nothing of this process' own settings.
    pub(super) fn weir(&self) -> Command {
        without_settings(Command::new(&self.weir))
    }
}

/// Keeps settings of Weir's that stand in the environment from a child.
pub(super) fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WEIR_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command
}

/// A scenario's own things.
pub(super) struct Scene {
    pub settings: Settings,
    pub plan: Plan,
    pub clients: Clients,
    pub claims: Vec<Claim>,
    /// How each process that was asked to end did so.
    pub ends: Vec<Result<Duration, String>>,
    /// What put durability to the test.
    pub durability: Option<&'static str>,
    pub nested_deaths: u64,
    /// Whether the fault is none of the collector's: every request is answered at its first try.
    pub is_undisturbed: bool,
    /// Remembered users that living aggregators have compared.
    pub compared: u64,
    memory: u64,
    ledger: Arc<Ledger>,
    folder: TempDir,
}

/// What is known when all is at rest, and before the services end.
pub(super) struct Rest {
    told: Told,
    stored: Stored,
    recomputation: Result<(), String>,
    settled: Result<Duration, String>,
}

impl Scene {
    /// Makes one. Events that are not said otherwise are of 300 users and a hot one with half of all.
    pub(super) fn new(settings: &Settings, pace: Pace) -> anyhow::Result<Self> {
        Self::of(settings, pace, |_| {})
    }

    /// The same, with another plan.
    pub(super) fn of(settings: &Settings, pace: Pace, change: impl FnOnce(&mut Plan)) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-chaos-").tempdir_in(&settings.folder)?;
        // Postgres runs as a user of its own, who has to pass.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711))?;
        let mut plan = Plan { seed: settings.seed, began: Micros::now(), users: 300, hot_percent: 50, names: 20 };
        change(&mut plan);
        let ledger = Arc::new(Ledger::create(folder.path().join("ledger"))?);
        let clients = Clients::start(&plan, pace, Arc::clone(&ledger));
        Ok(Scene {
            settings: settings.clone(),
            plan,
            clients,
            claims: Vec::new(),
            ends: Vec::new(),
            durability: None,
            nested_deaths: 0,
            is_undisturbed: false,
            compared: 0,
            memory: 0,
            ledger,
            folder,
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Says how often a fault was to happen, and how often it was seen to.
    pub(super) fn claim(&mut self, fault: &'static str, wanted: u64, seen: u64) {
        self.claims.push(Claim { fault, wanted, seen });
    }

    /// Looks at the most memory that a process has had.
    pub(super) fn note_memory(&mut self, pid: u32) {
        self.memory = self.memory.max(machine::peak_memory_mib(pid) as u64);
    }

    /// Ends the clients, waits until all that was acknowledged is stored, and reads what is there. No fault may happen any more. `lag` says how many
    /// records of the log are not stored yet, as far as the services know.
    pub(super) async fn rest(&mut self, database_url: &str, lag: impl AsyncFn() -> anyhow::Result<f64>) -> anyhow::Result<Rest> {
        let begun = Instant::now();
        // A new event, after the last fault.
        self.clients.go_on(1).await?;
        self.clients.end().await?;
        let told = Told::read(self.ledger.path())?;
        let settled = self.until_stored(&told, database_url, &lag).await.map(|()| begun.elapsed());
        let recomputation = self.recompute(database_url)?;
        let mut connection = connect(database_url).await?;
        let stored = Stored::read(&mut connection).await?;
        connection.close().await?;
        Ok(Rest { told, stored, recomputation, settled: settled.map_err(|error| format!("{error:#}")) })
    }

    async fn until_stored(
        &self,
        told: &Told,
        database_url: &str,
        lag: &impl AsyncFn() -> anyhow::Result<f64>,
    ) -> anyhow::Result<()> {
        let original = told.acknowledged.iter().filter(|number| self.plan.event(**number).repeats.is_none()).count() as i64;
        let begun = Instant::now();
        let mut at_rest = 0;
        loop {
            let count = async {
                let mut connection = PgConnection::connect(database_url).await?;
                let sql = "SELECT (SELECT count(*) FROM impressions) + (SELECT count(*) FROM conversions) + (SELECT count(*) FROM engagement_events)";
                sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await
            };
            let count = count.await;
            let behind = lag().await;
            let is_at_rest = count.as_ref().is_ok_and(|count| *count >= original) && behind.as_ref().is_ok_and(|lag| *lag == 0.0);
            // The lag is measured every second or so.
            at_rest = if is_at_rest { at_rest + 1 } else { 0 };
            if at_rest == 5 {
                return Ok(());
            }
            if begun.elapsed() > SETTLED_MAX {
                anyhow::bail!("after {} s: {count:?} rows of {original} acknowledged, lag {behind:?}", SETTLED_MAX.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Has Weir compute participation and attribution again; the error says what differed.
    fn recompute(&self, database_url: &str) -> anyhow::Result<Result<(), String>> {
        let mut command = self.settings.weir();
        command.args(["admin", "recompute", EXPERIMENT, "--database-url", database_url]).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.output()).context("weir admin recompute")?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok(if output.status.success() && said.contains("nothing differed") { Ok(()) } else { Err(said.trim().to_owned()) })
    }

    /// How often the processes of this scenario said something, in all their lives.
    fn said(&self, text: &str) -> u64 {
        let files = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let logs =
            files.filter(|file| file.file_name() == "stderr" || file.path().extension().is_some_and(|ending| ending == "log"));
        logs.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default().matches(text).count() as u64).sum()
    }

    /// Pronounces. `records` of the log, if it can be read, and its ends when it was opened once more.
    pub(super) fn judge(
        &self,
        rest: &Rest,
        records: Option<&BTreeMap<u32, Records>>,
        recovered_again: Option<BTreeMap<u32, u64>>,
    ) -> Vec<Verdict> {
        judge(&Evidence {
            plan: &self.plan,
            told: &rest.told,
            stored: &rest.stored,
            records,
            recovered_again,
            claims: &self.claims,
            recomputation: rest.recomputation.clone(),
            remembered: (self.compared, self.said(DIFFERS)),
            memory: (self.memory, self.settings.memory_max),
            settled: rest.settled.clone(),
            ends: &self.ends,
            durability: self.durability,
            nested_deaths: self.nested_deaths,
            is_undisturbed: self.is_undisturbed,
        })
    }
}

/// Connects; a Postgres that is starting is waited for.
pub(super) async fn connect(url: &str) -> anyhow::Result<PgConnection> {
    let begun = Instant::now();
    loop {
        match PgConnection::connect(url).await {
            Ok(connection) => return Ok(connection),
            Err(error) if begun.elapsed() > ANSWER_MAX => return Err(error).with_context(|| url.to_owned()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Puts the judge's watch on the checkpoints of a database.
pub(super) async fn watch(database_url: &str) -> anyhow::Result<()> {
    let mut connection = connect(database_url).await?;
    sqlx::raw_sql(WATCH).execute(&mut connection).await.context("the judge's watch")?;
    Ok(connection.close().await?)
}

/// Asks for a page.
pub(super) async fn page(url: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (host, path) =
        url.trim_start_matches("http://").split_once('/').with_context(|| format!("{url:?}: http://HOST/PATH is accepted"))?;
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(host).await?;
        let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    Ok(tokio::time::timeout(Duration::from_secs(10), asked).await.with_context(|| format!("{url}: no answer"))??)
}

/// The sum of a metric over its labels; 0 if it has not been counted yet.
pub(super) async fn metric(url: &str, name: &str) -> anyhow::Result<f64> {
    let page = page(&format!("{url}/metrics")).await?;
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let value = rest
            .strip_prefix(' ')
            .or_else(|| rest.starts_with('{').then(|| rest.rsplit_once(' ').map_or("", |(_, value)| value)))?;
        value.trim().parse::<f64>().ok()
    };
    Ok(page.lines().filter_map(of).sum())
}
