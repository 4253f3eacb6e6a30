//! Disks that scenarios may harm: small ones, and ones whose power can be cut. Root alone may mount them.
//!
//! A power cut is ext4 on a loop device, told to shut down without writing its journal: what was not synced is gone, what was synced is there. The
//! file system is ended with this value; files that are open on it by then are lost to their owners, who are dead.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Shuts a file system down as a loss of power does: EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH. Source: Linux, fs/ext4/ext4.h.
const SHUT_DOWN: &str = r#"my $how = pack("I", 2); open(my $folder, "<", $ARGV[0]) or die "$ARGV[0]: $!\n"; ioctl($folder, 0x8004587d, $how) or die "ioctl: $!\n";"#;

/// How long those who are dead may hold a disk.
const ENDED_MAX: Duration = Duration::from_secs(30);

/// A mounted disk of a scenario's own.
pub(super) struct Disk {
    folder: PathBuf,
    /// The file that holds it; none: it is memory.
    image: Option<PathBuf>,
}

impl Disk {
    /// Mounts so many MiB of memory on a new folder.
    pub(super) fn of_memory(folder: &Path, mib: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(folder))?;
        Ok(Disk { folder: folder.to_owned(), image: None })
    }

    /// Makes an ext4 of so many MiB in a file, and mounts it on a new folder.
    pub(super) fn of_file(folder: &Path, mib: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let image = folder.with_extension("img");
        std::fs::File::create(&image)?.set_len(mib << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0"]).arg(&image))?;
        let disk = Disk { folder: folder.to_owned(), image: Some(image) };
        disk.mount()?;
        // What fsck keeps there belongs to root alone, and initdb wants a folder of its own anyway.
        let _ = std::fs::remove_dir(folder.join("lost+found"));
        Ok(disk)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn mount(&self) -> anyhow::Result<()> {
        let image = self.image.as_ref().context("memory has no file")?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.folder))
    }

    /// Makes all durable that was written so far, such as what belongs to setting up.
    #[cfg(feature = "kafka")]
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        run(Command::new("sync").arg("-f").arg(&self.folder))
    }

    /// Cuts the power: from now on nothing is written any more, and none of these processes does another step, so that a sync which the cut meets cannot be
    /// answered. That must be so, since ext4 reports such a sync as done, now and then, to whoever still runs.
    pub(super) fn cut_power(&self, processes: &[Pid]) -> anyhow::Result<()> {
        for process in processes {
            // One may have ended by itself.
            let _ = kill_process(*process, Signal::STOP);
        }
        run(Command::new("perl").args(["-e", SHUT_DOWN]).arg(&self.folder))
    }

    /// Has power again: what was synced is there. All who had files open there must have ended; threads of theirs may take a moment longer.
    pub(super) async fn restore_power(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Err(error) = run(Command::new("umount").arg(&self.folder)) {
            if begun.elapsed() > ENDED_MAX {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.folder).stderr(Stdio::null()).status();
    }
}

/// Returns why this process can make no such disks; none if it can.
pub(super) async fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may mount a disk of the scenario's own".to_owned());
    }
    let tried = async {
        let folder = tempfile::tempdir()?;
        let disk = Disk::of_file(&folder.path().join("disk"), 8)?;
        disk.cut_power(&[])?;
        disk.restore_power().await
    };
    tried.await.err().map(|error| format!("no ext4 on a loop device whose power can be cut: {error:#}"))
}

/// Runs a program that takes a moment.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
