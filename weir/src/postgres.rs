//! The private Postgres of a data folder: made, started, adopted, kept running, ended.
//!
//! - It listens on a Unix socket only. The socket's folder is 0700 and belongs to the server's user, so whoever can connect may; no password
//!   lies anywhere. The folder has a short path, since a socket's path is limited to 107 bytes.
//! - The server refuses to run as root. Root starts it as the system user `postgres`, who must be able to reach the folder.
//! - A server may outlive the process that started it (SIGKILL); the next one adopts it. Therefore it writes its log to a file and
//!   to no pipe, and `postmaster.pid` is the one place that says where its socket is.
//! - Weir's role owns its database and is no superuser.

mod install;
mod user;

use std::fs::{DirBuilder, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::children::{self, Process, Program, SupervisedChild};
use crate::data::DataFolder;

use install::Install;
use user::User;

/// The role and the database of Weir.
const WEIR: &str = "weir";
/// The role that made the cluster; only used to make Weir's.
const SUPERUSER: &str = "postgres";
/// The socket's name has it, nothing listens on it.
const PORT: u16 = 5432;
/// How long a start may take, a recovery after a crash included.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a server that survived may take to answer before it is replaced.
const ADOPT_MAX: Duration = Duration::from_secs(5);
/// Bytes of the server's log beyond which the next start begins a new one.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Settings that differ from Postgres' own. Facts are acknowledged to nobody before they are durable in the log, yet a
/// checkpoint that a power cut takes back would make the log be read twice: both sync settings stay on.
const SETTINGS: [&str; 16] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "shared_buffers=256MB",
    "wal_buffers=16MB",
    "max_wal_size=4GB",
    "min_wal_size=256MB",
    "checkpoint_timeout=15min",
    "checkpoint_completion_target=0.9",
    "max_connections=100",
    // Ten years of history are 600 table partitions with their indexes, and a statement may need all of them.
    "max_locks_per_transaction=512",
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
];

/// A server that runs, and is kept running.
pub(crate) struct Postgres {
    url: String,
    server: SupervisedChild,
}

impl Postgres {
    /// Starts the server of a data folder, or adopts the one that still runs; makes the cluster if there is none.
    /// # Errors
    /// If the server's programs are missing, its user cannot reach the folder, or it does not start; what to do is said.
    pub(crate) async fn start(folder: &DataFolder) -> anyhow::Result<Self> {
        let user = User::of_server()?;
        if let Some(gid) = user.switched_gid() {
            folder.let_pass(gid)?;
            user.check_reach(folder.path())?;
        }
        let data = folder.path().join("postgres");
        let log = folder.path().join("postgres.log");
        let install = Install::find(install::version_of(&data)?)?;
        if !data.exists() {
            make_cluster(&install, &user, &data).await?;
        }
        let owner = std::fs::metadata(&data).with_context(|| data.display().to_string())?.uid();
        if owner != user.uid {
            bail!(
                "{}: belongs to uid {owner}, and the database server would run as uid {}; start weir as the user who made the folder",
                data.display(),
                user.uid
            );
        }
        let server = Server { install, user, data, log, socket: PathBuf::new() };
        let (server, url) = SupervisedChild::start(server, START_MAX).await?;
        Ok(Postgres { url, server })
    }

    /// Returns the URL of Weir's database. It stays the same while this process runs.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// See [`SupervisedChild::lost`].
    pub(crate) async fn lost(&self) -> anyhow::Error {
        self.server.lost().await
    }

    /// Ends the server: open transactions are rolled back, all is flushed. At once, to be recovered at the next start, after `until`.
    pub(crate) async fn end(self, until: tokio::time::Instant) {
        self.server.end(until).await;
    }
}

/// Ends a server that a former process left behind, if there is one.
/// # Errors
/// If it does not end.
pub(crate) async fn end_survivor(folder: &DataFolder) -> anyhow::Result<()> {
    let data = folder.path().join("postgres");
    let Some(pid_file) = PidFile::read(&data) else { return Ok(()) };
    if !pid_file.is_server_of(&data) {
        return Ok(());
    }
    let mut process = Process::Adopted(pid_file.pid);
    process.signal(Signal::QUIT);
    if tokio::time::timeout(ADOPT_MAX, process.wait()).await.is_err() {
        bail!("the Postgres server with process id {} on {} does not stop", pid_file.pid.as_raw_pid(), data.display());
    }
    let _ = std::fs::remove_dir_all(&pid_file.socket);
    Ok(())
}

/// Makes the cluster under another name first, so that a folder of the right name is always whole.
async fn make_cluster(install: &Install, user: &User, data: &Path) -> anyhow::Result<()> {
    tracing::info!(folder = %data.display(), version = install.version, "making a Postgres cluster");
    let new = data.with_extension("new");
    // Text is compared by its bytes: no upgrade of the system's locales can then break an index.
    let mut refused = String::new();
    for ctype in ["C.UTF-8", "C"] {
        if new.exists() {
            std::fs::remove_dir_all(&new).with_context(|| new.display().to_string())?;
        }
        DirBuilder::new().mode(0o700).create(&new).with_context(|| new.display().to_string())?;
        user.own(&new)?;
        let output = user
            .command(&install.program("initdb"))
            .args(["--encoding=UTF8", "--locale=C", "--data-checksums", "--auth=trust"])
            .args([format!("--lc-ctype={ctype}"), format!("--username={SUPERUSER}")])
            .arg("--pgdata")
            .arg(&new)
            .stdin(Stdio::null())
            .output()
            .await
            .with_context(|| install.program("initdb").display().to_string())?;
        if output.status.success() {
            let hba = new.join("pg_hba.conf");
            std::fs::write(&hba, "# The socket's folder is closed to all but the server's user and root.\nlocal all all trust\n")
                .with_context(|| hba.display().to_string())?;
            return std::fs::rename(&new, data).with_context(|| data.display().to_string());
        }
        refused = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    bail!("initdb failed to make {}: {refused}", new.display())
}

struct Server {
    install: Install,
    user: User,
    data: PathBuf,
    log: PathBuf,
    /// Empty until the first start; the same from then on, so that the URL stays.
    socket: PathBuf,
}

impl Program for Server {
    type First = String;
    const NAME: &'static str = "postgres";

    async fn adopt(&mut self) -> Option<Process> {
        let pid_file = PidFile::read(&self.data)?;
        if !pid_file.is_server_of(&self.data) {
            // The id of a process that nobody collects, or of something else after a restart of the machine: the server takes
            // either for itself and would not start.
            if rustix::process::test_kill_process(pid_file.pid).is_ok() {
                tracing::warn!(pid = pid_file.pid.as_raw_pid(), "postmaster.pid is stale and is removed");
                let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
                // The lock beside the socket names the same process.
                if self.user.has_private(&pid_file.socket) {
                    let _ = std::fs::remove_dir_all(&pid_file.socket);
                }
            }
            return None;
        }
        if self.socket != pid_file.socket {
            // Of a start of ours that came too late; empty, if there is one.
            let _ = std::fs::remove_dir(std::mem::replace(&mut self.socket, pid_file.socket.clone()));
        }
        let process = Process::Adopted(pid_file.pid);
        if tokio::time::timeout(ADOPT_MAX, self.connect_when_up()).await.is_ok() {
            tracing::info!(pid = process.pid(), "adopted the Postgres server that still runs on the data folder");
            return Some(process);
        }
        tracing::warn!(pid = process.pid(), "a Postgres server runs on the data folder and does not answer; it is replaced");
        let mut process = process;
        process.signal(Signal::QUIT);
        if tokio::time::timeout(ADOPT_MAX, process.wait()).await.is_err() {
            process.signal(Signal::KILL);
            process.wait().await;
        }
        self.socket = PathBuf::new();
        None
    }

    fn start(&mut self) -> anyhow::Result<Process> {
        if self.socket.as_os_str().is_empty() || !self.user.has_private(&self.socket) {
            self.socket = self.socket_folder()?;
        }
        let too_long = std::fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX);
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .append(!too_long)
            .truncate(too_long)
            .mode(0o600)
            .open(&self.log)
            .with_context(|| self.log.display().to_string())?;
        let mut command = self.user.command(&self.install.program("postgres"));
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.socket).args(["-p", &PORT.to_string()]);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("the server's log")?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| self.install.program("postgres").display().to_string())?;
        if let Some(pid) = child.id() {
            service::priority::lower(pid, service::priority::COMPUTES);
        }
        Ok(Process::Child(child))
    }

    async fn answers(&mut self) -> anyhow::Result<String> {
        let mut connection = self.connect_when_up().await;
        let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)")
            .bind(WEIR)
            .fetch_one(&mut connection)
            .await?;
        if !made {
            sqlx::raw_sql(AssertSqlSafe(format!("CREATE ROLE {WEIR} LOGIN"))).execute(&mut connection).await?;
        }
        let made: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(WEIR)
            .fetch_one(&mut connection)
            .await?;
        if !made {
            sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {WEIR} OWNER {WEIR}"))).execute(&mut connection).await?;
        }
        connection.close().await?;
        Ok(self.url(WEIR, WEIR))
    }

    /// The "fast" way: sessions are ended, transactions rolled back, a checkpoint is written.
    fn ask_to_end(&mut self, process: &Process) {
        process.signal(Signal::INT);
    }

    /// The "immediate" way: the next start recovers from the write-ahead log. SIGKILL would leave shared memory behind.
    fn force_to_end(&mut self, process: &Process) {
        process.signal(Signal::QUIT);
    }

    /// Sessions of a server that was killed hold its memory for a moment longer; one that a killed process had just started has not said yet where it is.
    fn may_succeed_later(&self) -> bool {
        let words = self.last_words();
        words.contains("pre-existing shared memory block") || words.contains("lock file \"postmaster.pid\"")
    }

    fn last_words(&self) -> String {
        let mut text = String::new();
        let read = std::fs::File::open(&self.log).and_then(|mut log| log.read_to_string(&mut text));
        if read.is_err() || text.is_empty() {
            return String::new();
        }
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        let tail: Vec<&str> = lines.into_iter().rev().collect();
        format!("\nthe end of {}:\n{}", self.log.display(), tail.join("\n"))
    }

    fn ended(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.socket) {
            tracing::debug!(folder = %self.socket.display(), %error, "the socket's folder is left");
        }
    }
}

impl Server {
    fn url(&self, role: &str, database: &str) -> String {
        let host = self.socket.display().to_string().replace('/', "%2F");
        format!("postgresql://{role}@{host}:{PORT}/{database}")
    }

    /// Connects as soon as the server takes connections; for ever, if it never does.
    async fn connect_when_up(&self) -> PgConnection {
        let url = self.url(SUPERUSER, "postgres");
        loop {
            let options = url.parse::<sqlx::postgres::PgConnectOptions>().map(|options| options.disable_statement_logging());
            match options {
                Ok(options) => match PgConnection::connect_with(&options).await {
                    Ok(connection) => return connection,
                    Err(error) => tracing::trace!(%error, "postgres does not answer yet"),
                },
                Err(error) => tracing::error!(%error, url, "a URL of our own making"),
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Returns the folder of a former run if it is still fit, else makes one.
    fn socket_folder(&self) -> anyhow::Result<PathBuf> {
        if let Some(pid_file) = PidFile::read(&self.data)
            && self.user.has_private(&pid_file.socket)
        {
            return Ok(pid_file.socket);
        }
        // Only root can make a folder in /run, so nobody else can have been there before.
        let parents: &[&str] = if rustix::process::geteuid().is_root() { &["/run", "/tmp"] } else { &["/tmp"] };
        let name = format!("weir-{}", uuid::Uuid::new_v4().simple());
        let mut refused = String::new();
        for parent in parents {
            let folder = Path::new(parent).join(&name);
            // Fails if anything is there already, a symbolic link included.
            match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => {
                    self.user.own(&folder)?;
                    return Ok(folder);
                }
                Err(error) => refused = format!("{}: {error}", folder.display()),
            }
        }
        bail!("the folder for the database's socket cannot be made: {refused}")
    }
}

/// What a server writes about itself into its data folder.
struct PidFile {
    pid: Pid,
    socket: PathBuf,
}

impl PidFile {
    /// Reads it; none if there is none, or one that is half written.
    fn read(data: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    /// Source: PostgreSQL `src/include/utils/pidfile.h`: pid, data folder, start time, port, socket folder, ..
    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().collect();
        let pid = Pid::from_raw(lines.first()?.trim().parse::<i32>().ok()?.abs())?;
        let socket = PathBuf::from(lines.get(4)?.trim());
        socket.is_absolute().then_some(PidFile { pid, socket })
    }

    /// Returns whether the process runs and is a server of this folder: a server's working directory is its data folder.
    fn is_server_of(&self, data: &Path) -> bool {
        let folder = std::fs::read_link(format!("/proc/{}/cwd", self.pid.as_raw_pid()));
        children::is_running(self.pid) && folder.is_ok_and(|folder| folder == data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files_are_read() {
        let check = |text: &str, expected: Option<(i32, &str)>| {
            let found = PidFile::parse(text).map(|file| (file.pid.as_raw_pid(), file.socket));
            assert_eq!(found, expected.map(|(pid, socket)| (pid, PathBuf::from(socket))), "{text:?}");
        };
        check(
            "4711\n/data/postgres\n1700000000\n5432\n/run/weir-1\n\n  5432001   65536\nready   \n",
            Some((4711, "/run/weir-1")),
        );
        check("4711\n/data/postgres\n1700000000\n5432\n\n*\n", None);
        check("4711\n/data/postgres\n", None);
        check("", None);
        check("0\n/data\n1\n5432\n/run/weir-1\n", None);
    }

    #[test]
    fn a_process_of_another_folder_is_not_the_server() {
        let pid = Pid::from_raw(std::process::id().cast_signed()).expect("not 0");
        let file = PidFile { pid, socket: "/run/weir-1".into() };
        assert!(!file.is_server_of(Path::new("/nowhere")));
        assert!(file.is_server_of(&std::env::current_dir().expect("there is one")));
    }
}
