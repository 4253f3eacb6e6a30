//! Separate services over a real Kafka: a broker, a collector with its spool, aggregators, and a Postgres.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use eventlog::kafka::{Config, KafkaLog};
use migrations::testing::TestDatabase;
use rustix::process::{Pid, Signal, kill_process};

use super::client::Pace;
use super::disk::run;
use super::judge::Verdict;
use super::scene::{self, COMPARED_ONE_IN, END_MAX, Scene, Settings, page};
use super::stand::{COMPARED, until_gone};
use super::stored::records;

/// The script that starts brokers; this program runs from a checkout.
const KAFKA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kafka.sh");
const KEY: &str = "write-key-of-the-chaos";
const TOPIC: &str = "weir.events";
/// How long a service may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);

/// A broker.
pub(super) struct Broker {
    folder: PathBuf,
    pub servers: String,
}

impl Broker {
    /// Makes and starts one in a new folder.
    pub(super) fn start(folder: &Path) -> anyhow::Result<Self> {
        let mut broker = Broker { folder: folder.to_owned(), servers: String::new() };
        broker.servers = broker.script("start")?;
        Ok(broker)
    }

    /// Starts it again, on its port and what its folder holds.
    pub(super) fn start_again(&self) -> anyhow::Result<()> {
        self.script("start").map(drop)
    }

    fn script(&self, verb: &str) -> anyhow::Result<String> {
        let script =
            || Command::new(KAFKA).arg(verb).arg(&self.folder).env("WEIR_KAFKA_BROKERS", "1").stdin(Stdio::null()).output();
        let output = tokio::task::block_in_place(script).context(KAFKA)?;
        if !output.status.success() {
            bail!("kafka.sh {verb}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        let text = std::fs::read_to_string(self.folder.join("1.pid")).context("the broker does not run")?;
        text.trim().parse().ok().and_then(Pid::from_raw).context("1.pid")
    }

    /// Kills it.
    pub(super) async fn kill(&self) -> anyhow::Result<()> {
        kill_broker(self.pid()?).await
    }

    /// Adds a line to its settings, for the next start.
    pub(super) fn set(&self, line: &str) -> anyhow::Result<()> {
        use std::io::Write as _;
        let mut file = File::options().append(true).open(self.folder.join("1.properties"))?;
        Ok(writeln!(file, "{line}")?)
    }
}

/// Kills a broker by its process, whose file may be on a disk that answers nothing any more.
pub(super) async fn kill_broker(pid: Pid) -> anyhow::Result<()> {
    kill_process(pid, Signal::KILL)?;
    until_gone(pid, Duration::from_secs(20)).await
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            let command = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
            if command.contains(&self.folder.display().to_string()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// A running service.
pub(super) struct Service {
    child: Child,
    pub url: String,
}

impl Service {
    pub(super) fn pid(&self) -> anyhow::Result<Pid> {
        Pid::from_raw(self.child.id().cast_signed()).context("a process has an id")
    }

    /// Kills it.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it by SIGTERM, and says how long that took.
    pub(super) async fn end(&mut self) -> Result<Duration, String> {
        let begun = Instant::now();
        kill_process(self.pid().map_err(|error| error.to_string())?, Signal::TERM).map_err(|error| error.to_string())?;
        while begun.elapsed() < END_MAX {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(begun.elapsed()),
                Ok(Some(status)) => return Err(format!("it ended with {status}")),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(format!("it has not ended after {} s", END_MAX.as_secs()))
    }

    /// Waits until `/readyz` says this.
    pub(super) async fn until(&self, expected: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let found = page(&format!("{}/readyz", self.url)).await;
            if found.as_ref().is_ok_and(|page| page.contains(expected)) {
                return Ok(());
            }
            if begun.elapsed() > READY_MAX {
                bail!("{}/readyz does not say {expected:?} but {found:?}", self.url);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Of a process that has ended and was waited for the id may be another's; kill() knows that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All of them.
pub(super) struct Deployment {
    pub scene: Scene,
    pub broker: Broker,
    pub database_url: String,
    pub collector: Option<Service>,
    pub aggregators: Vec<Service>,
}

impl Deployment {
    /// Starts a broker in a folder, a collector, and so many aggregators; the clients send from then on.
    pub(super) async fn start(settings: &Settings, broker: Option<Broker>, aggregators: usize) -> anyhow::Result<Self> {
        Self::of(Scene::new(settings, Pace::default())?, broker, aggregators).await
    }

    /// The same, of a scene.
    pub(super) async fn of(scene: Scene, broker: Option<Broker>, aggregators: usize) -> anyhow::Result<Self> {
        let broker = broker.map_or_else(|| Broker::start(&scene.folder().join("kafka")), Ok)?;
        let database = TestDatabase::create().await;
        let mut migrate = scene.settings.weir();
        run(migrate.args(["migrate", "--database-url", &database.url]).env("WEIR_WRITE_KEY", KEY))?;
        let mut connection = scene::connect(&database.url).await?;
        sqlx::raw_sql("UPDATE projects SET auto_register = true").execute(&mut connection).await?;
        scene::watch(&database.url).await?;
        let mut deployment = Deployment { scene, broker, database_url: database.url, collector: None, aggregators: Vec::new() };
        deployment.collect().await?;
        for _ in 0..aggregators {
            deployment.aggregators.push(deployment.aggregator()?);
        }
        Ok(deployment)
    }

    /// Starts the collector, and lets the clients send to it.
    pub(super) async fn collect(&mut self) -> anyhow::Result<()> {
        let data = self.scene.folder().join("collector");
        std::fs::create_dir_all(&data)?;
        let data = data.display().to_string();
        let collector = self.service(&["collector", "--collector", "127.0.0.1:0", "--data", &data])?;
        collector.until("HTTP/1.1 200").await?;
        self.scene.clients.aim(&collector.url, KEY)?;
        self.collector = Some(collector);
        Ok(())
    }

    /// Starts one more aggregator.
    pub(super) fn aggregator(&self) -> anyhow::Result<Service> {
        self.service(&["aggregator", "--aggregator", "127.0.0.1:0"])
    }

    fn service(&self, arguments: &[&str]) -> anyhow::Result<Service> {
        let log_path = self.scene.folder().join(format!("{}.log", arguments[0]));
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = self.scene.settings.weir();
        command.args(arguments).args(["--database-url", &self.database_url, "--kafka", &self.broker.servers, "--topic", TOPIC]);
        command
            .envs([("WEIR_KEY_BYTES_PER_SECOND_MAX", "0"), COMPARED_ONE_IN])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
        let output = child.stdout.take().context("was piped")?;
        let mut service = Service { child, url: String::new() };
        let mut line = String::new();
        tokio::task::block_in_place(|| BufReader::new(output).read_line(&mut line))?;
        let said = || std::fs::read_to_string(&log_path).unwrap_or_default();
        let (_, url) = line.trim_end().split_once(' ').with_context(|| format!("{} did not start: {}", arguments[0], said()))?;
        url.clone_into(&mut service.url);
        Ok(service)
    }

    pub(super) fn collector(&self) -> anyhow::Result<&Service> {
        self.collector.as_ref().context("no collector runs")
    }

    /// Lets all come to rest, ends it, and pronounces.
    pub(super) async fn judge(mut self) -> anyhow::Result<Vec<Verdict>> {
        let collector = self.collector()?.url.clone();
        let aggregators: Vec<String> = self.aggregators.iter().map(|service| service.url.clone()).collect();
        let lag = async || {
            // Each knows the ends of the log partitions that it holds; what is spooled is in none of them.
            let mut behind = scene::metric(&collector, "weir_collector_spool_records").await?;
            for aggregator in &aggregators {
                behind += scene::metric(aggregator, "weir_aggregator_lag_records").await?;
            }
            Ok(behind)
        };
        let rest = self.scene.rest(&self.database_url, lag).await?;
        for aggregator in &aggregators {
            self.scene.compared += scene::metric(aggregator, COMPARED).await? as u64;
        }
        for service in self.collector.iter().chain(&self.aggregators) {
            self.scene.note_memory(service.pid()?.as_raw_pid().cast_unsigned());
        }
        for mut service in self.collector.take().into_iter().chain(std::mem::take(&mut self.aggregators)) {
            let ended = service.end().await;
            self.scene.ends.push(ended);
        }
        let config = Config { topic: TOPIC.to_owned(), ..Config::new(&self.broker.servers) };
        let log = KafkaLog::open(config).await.context("the log")?;
        let found = records(&log).await?;
        Ok(self.scene.judge(&rest, Some(&found), None))
    }
}
