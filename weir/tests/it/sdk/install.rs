//! The clients as their registries serve them, pinned; kept in a cache for the next run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::FlockOperation;
use tokio::sync::OnceCell;

use crate::support::{program, run};

/// The newest versions on 2026-12-01.
const PYTHON: [&str; 5] = [
    "segment-analytics-python==2.4.0",
    "posthog==7.91.1",
    "snowplow-tracker==1.1.0",
    "rudder-sdk-python==2.1.9",
    "growthbook==4.0.0",
];
/// The same; the last one makes one script of a browser's client, as a page's own build does.
const NODE: [&str; 11] = [
    "@segment/analytics-node@3.1.0",
    "@segment/analytics-next@1.84.3",
    "posthog-node@5.70.0",
    "posthog-js@1.449.2",
    "@snowplow/node-tracker@4.8.0",
    "@snowplow/browser-tracker@4.10.1",
    "@growthbook/growthbook@1.8.0",
    "@rudderstack/rudder-sdk-node@3.0.13",
    "@jitsu/js@1.11.0",
    "statsig-node@6.5.2",
    "esbuild@0.25.10",
];

/// Where clients are kept for the next run.
pub(crate) fn cache() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    Some(cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("weir"))
}

/// Returns a Python that has the clients.
pub(super) async fn python() -> Option<PathBuf> {
    static FOUND: OnceCell<Option<PathBuf>> = OnceCell::const_new();
    FOUND.get_or_init(install_python).await.clone()
}

async fn install_python() -> Option<PathBuf> {
    let python = program("python3")?;
    let folder = folder("sdks-python", &PYTHON)?;
    let inside = folder.path.join("bin/python");
    if !folder.is_complete() {
        let mut command = Command::new(python);
        command.args(["-m", "venv", "--clear"]).arg(&folder.path);
        ended(command).await?;
        let mut command = Command::new(&inside);
        command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON);
        ended(command).await?;
        folder.complete();
    }
    Some(inside)
}

/// Returns Node's program and a folder in which it finds the clients.
pub(super) async fn node() -> Option<(PathBuf, PathBuf)> {
    static FOUND: OnceCell<Option<(PathBuf, PathBuf)>> = OnceCell::const_new();
    FOUND.get_or_init(install_node).await.clone()
}

async fn install_node() -> Option<(PathBuf, PathBuf)> {
    let (node, npm) = (program("node")?, program("npm")?);
    let folder = folder("sdks-node", &NODE)?;
    if !folder.is_complete() {
        let mut command = Command::new(npm);
        command.args(["install", "--no-audit", "--no-fund", "--no-update-notifier", "--prefix"]).arg(&folder.path).args(NODE);
        ended(command).await?;
        folder.complete();
    }
    Some((node, folder.path.clone()))
}

/// A folder of the cache, held against other test processes until it is dropped.
struct Folder {
    path: PathBuf,
    packages: String,
    _lock: File,
}

fn folder(name: &str, packages: &[&str]) -> Option<Folder> {
    let path = cache()?.join(name);
    std::fs::create_dir_all(&path).ok()?;
    let lock = File::create(path.with_extension("lock")).ok()?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).ok()?;
    Some(Folder { path, packages: packages.join("\n"), _lock: lock })
}

impl Folder {
    fn marker(&self) -> PathBuf {
        Path::new(&self.path).join("installed")
    }

    /// Whether just these packages are in it.
    fn is_complete(&self) -> bool {
        std::fs::read_to_string(self.marker()).is_ok_and(|found| found == self.packages)
    }

    fn complete(&self) {
        std::fs::write(self.marker(), &self.packages).expect("a file in the cache");
    }
}

/// Runs an installer; none if it fails, whose words are printed.
async fn ended(command: Command) -> Option<()> {
    let ended = run(command, Duration::from_secs(300)).await;
    if !ended.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&ended.stderr));
    }
    ended.status.success().then_some(())
}
