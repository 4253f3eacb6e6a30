//! A group of processes whose memory has a bound, by which the kernel kills: control groups of version 2, or 1.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::process::Pid;

const OF_VERSION_1: &str = "/sys/fs/cgroup/memory";
const OF_VERSION_2: &str = "/sys/fs/cgroup";

/// A group. It is removed with this value, when its processes have ended.
pub(super) struct Group {
    folder: PathBuf,
    files: Files,
}

/// How the two versions call the same.
struct Files {
    bound: &'static str,
    unbound: &'static str,
    events: &'static str,
}

impl Group {
    /// Makes one.
    /// # Errors
    /// No memory controller is there, or this process may make no group in it.
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        let first = Files { bound: "memory.limit_in_bytes", unbound: "-1", events: "memory.oom_control" };
        let second = Files { bound: "memory.max", unbound: "max", events: "memory.events" };
        let controllers = fs::read_to_string(Path::new(OF_VERSION_2).join("cgroup.controllers")).unwrap_or_default();
        let (root, files) = if Path::new(OF_VERSION_1).join(first.bound).exists() {
            (OF_VERSION_1, first)
        } else if controllers.split_whitespace().any(|controller| controller == "memory") {
            (OF_VERSION_2, second)
        } else {
            bail!("neither {OF_VERSION_1} nor {OF_VERSION_2} has a memory controller");
        };
        let folder = Path::new(root).join(name);
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        Ok(Group { folder, files })
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("{text} to {}", path.display()))
    }

    /// Takes a process in; what it has in memory already counts elsewhere.
    pub(super) fn take(&self, pid: Pid) -> anyhow::Result<()> {
        self.write("cgroup.procs", &pid.as_raw_pid().to_string())
    }

    /// Lets its processes have no more than so many bytes.
    pub(super) fn bound(&self, bytes: u64) -> anyhow::Result<()> {
        self.write(self.files.bound, &bytes.to_string())
    }

    pub(super) fn unbound(&self) -> anyhow::Result<()> {
        self.write(self.files.bound, self.files.unbound)
    }

    /// How many of its processes the kernel has killed for memory.
    pub(super) fn kills(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.folder.join(self.files.events))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).context("no count of kills")?;
        Ok(count.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
