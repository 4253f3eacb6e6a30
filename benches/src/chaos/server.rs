//! A Postgres of a scenario's own, with all its syncs, on a disk that the scenario harms.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};

use super::disk::run;
use super::scene::connect;
use super::stand::{is_running, until_gone};

/// Of the server, beside what a folder says of itself.
const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "shared_buffers=64MB",
    "max_connections=60",
];

/// A server. It ends with this value, and with this process.
pub(super) struct Server {
    folder: PathBuf,
    binaries: PathBuf,
    sockets: PathBuf,
    settings: Vec<String>,
    user: Option<(u32, u32)>,
    running: Option<Running>,
}

/// The shell that the server belongs to: it ends the server when its input does, however that comes.
struct Running {
    /// The first of the server's processes; its file may be on a disk that answers nothing any more.
    postmaster: Pid,
    shell: Child,
    _input: ChildStdin,
}

impl Server {
    /// Makes a cluster in a new folder, and starts it. `sockets` is the folder of its socket, which is made.
    pub(super) async fn start(folder: &Path, sockets: &Path, settings: &[&str]) -> anyhow::Result<Self> {
        let binaries = binaries().context("no server of Postgres 15 or later is installed")?;
        let user = if rustix::process::geteuid().is_root() {
            Some(system_user("postgres").context("no system user postgres")?)
        } else {
            None
        };
        for folder in [folder, sockets] {
            std::fs::create_dir_all(folder)?;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
            if let Some((uid, gid)) = user {
                chown(folder, Some(uid), Some(gid))?;
            }
        }
        let settings = SETTINGS.iter().chain(settings).map(|setting| (*setting).to_owned()).collect();
        let mut server =
            Server { folder: folder.to_owned(), binaries, sockets: sockets.to_owned(), settings, user, running: None };
        let mut initdb = server.command("initdb");
        run(initdb.arg("-D").arg(folder).args(["-U", "weir", "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums"]))?;
        server.run_again().await?;
        Ok(server)
    }

    /// What to connect to.
    pub(super) fn url(&self) -> String {
        format!("postgresql://weir@{}/postgres", self.sockets.display().to_string().replace('/', "%2F"))
    }

    fn command(&self, program: &str) -> Command {
        self.as_its_user(Command::new(self.binaries.join(program)))
    }

    fn as_its_user(&self, mut command: Command) -> Command {
        // Its own folder may be a disk that has to be unmounted.
        command.current_dir("/");
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        command
    }

    /// Starts it on what its folder holds, and waits until it answers.
    pub(super) async fn run_again(&mut self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(self.sockets.join(".s.PGSQL.5432.lock"));
        let script = r#"exec 3<&0
                        "$@" </dev/null 3<&- & server=$!
                        ( cat <&3 >/dev/null; kill -QUIT $server ) &
                        wait $server"#;
        let mut shell = self.as_its_user(Command::new("sh"));
        shell
            .args(["-c", script, "sh"])
            .arg(self.binaries.join("postgres"))
            .arg("-D")
            .arg(&self.folder)
            .arg("-k")
            .arg(&self.sockets);
        for setting in &self.settings {
            shell.args(["-c", setting]);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.sockets.with_extension("log"))?;
        let mut shell = shell.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        let input = shell.stdin.take().context("was piped")?;
        let connected = connect(&self.url()).await.map(drop);
        let log = || {
            let log = std::fs::read_to_string(self.sockets.with_extension("log")).unwrap_or_default();
            log.lines().rev().take(5).collect::<Vec<_>>().join(" / ")
        };
        connected.with_context(|| format!("the scenario's Postgres: {}", log()))?;
        let text = std::fs::read_to_string(self.folder.join("postmaster.pid")).context("postmaster.pid")?;
        let postmaster =
            text.lines().next().and_then(|line| line.parse().ok()).and_then(Pid::from_raw).context("postmaster.pid")?;
        self.running = Some(Running { postmaster, shell, _input: input });
        Ok(())
    }

    /// Its processes.
    pub(super) fn processes(&self) -> anyhow::Result<Vec<Pid>> {
        let postmaster = self.running.as_ref().context("postgres does not run")?.postmaster;
        Ok(std::iter::once(postmaster).chain(children(postmaster)).collect())
    }

    /// Kills all of its processes, and waits until they are gone.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        let processes = self.processes()?;
        for pid in &processes {
            // One may have ended meanwhile.
            let _ = kill_process(*pid, Signal::KILL);
        }
        for pid in processes {
            until_gone(pid, Duration::from_secs(20)).await?;
        }
        self.running = None;
        Ok(())
    }

    /// Returns whether it still runs.
    pub(super) fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| is_running(running.postmaster))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // One that has ended needs no signal.
        let _ = kill_process(running.postmaster, Signal::QUIT);
        let begun = Instant::now();
        while is_running(running.postmaster) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = running.shell.kill();
        let _ = running.shell.wait();
    }
}

/// The processes that a process has begun.
pub(super) fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_pid().to_string();
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
    let is_child = |pid: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(parent.as_str())
    };
    pids.filter(is_child).collect()
}

fn system_user(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let fields: Vec<&str> = users.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name)?;
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// The newest server of Debian's layout, else whatever the path finds.
fn binaries() -> Option<PathBuf> {
    let debian = Path::new("/usr/lib/postgresql");
    let versions = std::fs::read_dir(debian).into_iter().flatten().flatten();
    let newest =
        versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|version| *version >= 15).max();
    if let Some(version) = newest {
        return Some(debian.join(version.to_string()).join("bin"));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
}
