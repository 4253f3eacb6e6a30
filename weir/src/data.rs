//! The data folder: the log, the private Postgres, the collector's `keys.json`, and `weir.json`, where other commands find
//! what runs here.
//!
//! One `weir up` owns a folder, by a lock on the file `lock` that ends with the process. The folder is closed to other users; where
//! the database server runs as another one, its group may pass through, not look.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// What runs on a data folder, as `weir.json` tells the other commands. Holds keys: mode 0600.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WeirJson {
    /// URL that events are posted to.
    pub(crate) collector: String,
    /// URL of the query service.
    pub(crate) query: String,
    /// URL of the aggregator's health and metrics.
    pub(crate) aggregator: String,
    /// URL of the database, which `psql` takes too.
    pub(crate) postgres: String,
    /// For web pages and apps: may send current events.
    pub(crate) write_key: String,
    /// For analysts: may query.
    pub(crate) read_token: String,
    /// For servers and imports: may send historical events too.
    pub(crate) server_key: String,
}

impl WeirJson {
    /// Reads the file of a folder; none if it was never written.
    /// # Errors
    /// If there is a file and it cannot be read.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Option<Self>> {
        let file = Self::file(folder);
        match std::fs::read(&file) {
            Ok(bytes) => {
                let parsed = serde_json::from_slice(&bytes);
                Ok(Some(
                    parsed
                        .with_context(|| format!("{}: not what `weir up` writes; delete it and start again", file.display()))?,
                ))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Writes the file, wholly or not at all.
    /// # Errors
    /// As the system says; the former file is unchanged then.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let file = Self::file(folder);
        let new = folder.join("weir.json.new");
        let write = || -> io::Result<()> {
            remove_if_there(&new)?;
            let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            serde_json::to_writer_pretty(&mut out, self)?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            std::fs::rename(&new, &file)?;
            File::open(folder)?.sync_all()
        };
        write().with_context(|| file.display().to_string())
    }

    fn file(folder: &Path) -> PathBuf {
        folder.join("weir.json")
    }
}

/// A data folder that this process alone has, until it is dropped.
pub(crate) struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if it is missing and takes it for this process.
    /// # Errors
    /// If it cannot be made, or another process has it, which is named.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap_or(Path::new("/")));
            made.and_then(|()| DirBuilder::new().mode(0o700).create(path)).with_context(|| {
                format!("{}: the data folder cannot be created; choose another one with --data", path.display())
            })?;
        }
        let path = path.canonicalize().with_context(|| path.display().to_string())?;
        let file = path.join("lock");
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&file).with_context(
                || format!("{}: the data folder must be writable; choose another one with --data", file.display()),
            )?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                let _ = lock.read_to_string(&mut owner);
                let owner = owner.trim().parse::<u32>().map_or(String::new(), |pid| format!(", process {pid}"));
                bail!(
                    "{}: another weir has this data folder{owner}; stop it first, or choose another folder with --data",
                    path.display()
                );
            }
            Err(error) => return Err(io::Error::from(error)).with_context(|| file.display().to_string()),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).with_context(|| file.display().to_string())?;
        Ok(DataFolder { path, _lock: lock })
    }

    /// Returns where it is, absolute and without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets a group pass through the folder, not look into it: its server's folder lies below.
    /// # Errors
    /// As the system says.
    pub(crate) fn let_pass(&self, gid: u32) -> anyhow::Result<()> {
        let pass = || {
            std::os::unix::fs::chown(&self.path, None, Some(gid))?;
            let mode = std::fs::metadata(&self.path)?.permissions().mode();
            std::fs::set_permissions(&self.path, Permissions::from_mode(mode & 0o7777 | 0o010))
        };
        pass().with_context(|| self.path.display().to_string())
    }
}

/// Returns the data folder of a user: `$XDG_DATA_HOME/NAME`, else `~/.local/share/NAME`, as root `/var/lib/NAME`.
/// # Errors
/// If there is no home.
pub(crate) fn default_folder(name: &str) -> anyhow::Result<PathBuf> {
    let variable = |variable: &str| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    folder_of(name, rustix::process::geteuid().is_root(), variable("XDG_DATA_HOME"), variable("HOME"))
        .context("neither XDG_DATA_HOME nor HOME is an absolute path; choose the data folder with --data")
}

fn folder_of(name: &str, root: bool, data_home: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let base = match (data_home, root) {
        // Root's own home is closed to the user that the database server runs as.
        (_, true) => PathBuf::from("/var/lib"),
        (Some(data_home), false) => data_home,
        (None, false) => home?.join(".local/share"),
    };
    Some(base.join(name))
}

/// Deletes a file that may be missing.
pub(crate) fn remove_if_there(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> WeirJson {
        WeirJson {
            collector: "http://127.0.0.1:8080".into(),
            query: "http://127.0.0.1:8081".into(),
            aggregator: "http://127.0.0.1:8082".into(),
            postgres: "postgresql://weir@%2Frun%2Fweir-1/weir".into(),
            write_key: "wk_1".into(),
            read_token: "rt_1".into(),
            server_key: "sk_1".into(),
        }
    }

    #[test]
    fn the_file_is_for_its_owner_only_and_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(WeirJson::read(folder.path()).expect("no file is fine"), None);
        for key in ["wk_1", "wk_2"] {
            let written = WeirJson { write_key: key.into(), ..sample() };
            written.write(folder.path()).expect("writes");
            assert_eq!(WeirJson::read(folder.path()).expect("reads"), Some(written));
        }
        let mode = std::fs::metadata(folder.path().join("weir.json")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!folder.path().join("weir.json.new").exists());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("weir.json"), "{").expect("writes");
        let error = WeirJson::read(folder.path()).expect_err("damaged").to_string();
        assert!(error.contains("weir.json: not what `weir up` writes"), "{error}");
    }

    #[test]
    fn a_folder_has_one_owner() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("a/b");
        let first = DataFolder::open(&path).expect("opens");
        assert_eq!(std::fs::metadata(first.path()).expect("there").permissions().mode() & 0o777, 0o700);
        let error = DataFolder::open(&path).err().expect("refused").to_string();
        assert!(error.contains(&format!("another weir has this data folder, process {}", std::process::id())), "{error}");
        drop(first);
        DataFolder::open(&path).expect("opens again");
    }

    #[test]
    fn folders_of_users() {
        let check = |root: bool, data_home: Option<&str>, home: Option<&str>, expected: Option<&str>| {
            let found = folder_of("weir", root, data_home.map(PathBuf::from), home.map(PathBuf::from));
            assert_eq!(found, expected.map(PathBuf::from), "{root} {data_home:?} {home:?}");
        };
        check(true, None, Some("/root"), Some("/var/lib/weir"));
        check(true, Some("/root/data"), Some("/root"), Some("/var/lib/weir"));
        check(false, Some("/data"), Some("/home/a"), Some("/data/weir"));
        check(false, None, Some("/home/a"), Some("/home/a/.local/share/weir"));
        check(false, None, None, None);
    }
}
