//! Where the server's programs are.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The oldest version that the schema works with: `UNIQUE NULLS NOT DISTINCT` came with it.
const VERSION_MIN: u32 = 15;
/// Where Debian, Ubuntu and their relatives keep one folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// An installed server.
#[derive(Debug)]
pub(super) struct Install {
    folder: PathBuf,
    /// Its major version.
    pub(super) version: u32,
}

impl Install {
    /// Finds the newest server, or one of the version that a cluster was made by.
    /// # Errors
    /// If there is none; the package is named.
    pub(super) fn find(wanted: Option<u32>) -> anyhow::Result<Self> {
        if let Some(install) = newest_in(Path::new(DEBIAN), wanted) {
            return Ok(install);
        }
        let mut found = Vec::new();
        let asked = Command::new("pg_config").arg("--bindir").output().ok().filter(|output| output.status.success());
        let asked = asked.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        let path = std::env::var_os("PATH").unwrap_or_default();
        for folder in asked.into_iter().chain(std::env::split_paths(&path)) {
            let Some(version) = version_in(&folder) else { continue };
            if version >= VERSION_MIN && wanted.is_none_or(|wanted| wanted == version) {
                return Ok(Install { folder, version });
            }
            found.push(format!("{} has version {version}", folder.display()));
        }
        let wanted = wanted.map_or(format!("{VERSION_MIN} or later"), |wanted| format!("{wanted}, which made this data folder"));
        let package = if wanted.starts_with("15 or") { "postgresql" } else { "postgresql-N of that version" };
        bail!(
            "the server programs of Postgres {wanted}, are neither below {DEBIAN} nor where pg_config says nor in PATH{}; install them \
             (Debian and Ubuntu: package {package}), or give a database with --database-url",
            found.iter().map(|found| format!(" ({found})")).collect::<String>()
        )
    }

    /// Returns the path of one of its programs.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Returns which major version made a cluster; none if there is no cluster.
/// # Errors
/// If there is one and it does not say.
pub(super) fn version_of(data: &Path) -> anyhow::Result<Option<u32>> {
    if !data.exists() {
        return Ok(None);
    }
    let file = data.join("PG_VERSION");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    Ok(Some(text.trim().parse().with_context(|| format!("{}: found {text:?}, expected a major version", file.display()))?))
}

fn newest_in(parent: &Path, wanted: Option<u32>) -> Option<Install> {
    let versions = std::fs::read_dir(parent).ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    versions
        .filter(|version| *version >= VERSION_MIN && wanted.is_none_or(|wanted| wanted == *version))
        .map(|version: u32| Install { folder: parent.join(version.to_string()).join("bin"), version })
        .filter(|install| install.program("postgres").exists() && install.program("initdb").exists())
        .max_by_key(|install| install.version)
}

/// Asks the server in a folder for its major version.
fn version_in(folder: &Path) -> Option<u32> {
    if !folder.join("initdb").exists() {
        return None;
    }
    let output = Command::new(folder.join(OsStr::new("postgres"))).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Reads "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)".
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    number.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_newest_fit_version_is_taken() {
        let parent = tempfile::tempdir().expect("a folder");
        for version in ["9.6", "14", "15", "16", "17"] {
            let folder = parent.path().join(version).join("bin");
            std::fs::create_dir_all(&folder).expect("makes a folder");
            // Version 17 has clients only.
            let programs: &[&str] = if version == "17" { &["psql"] } else { &["postgres", "initdb"] };
            for program in programs {
                std::fs::write(folder.join(program), "").expect("writes");
            }
        }
        let check = |wanted: Option<u32>, expected: Option<u32>| {
            assert_eq!(newest_in(parent.path(), wanted).map(|install| install.version), expected, "{wanted:?}");
        };
        check(None, Some(16));
        check(Some(15), Some(15));
        check(Some(14), None);
        check(Some(18), None);
    }

    #[test]
    fn a_missing_version_names_the_package() {
        let error = Install::find(Some(999)).expect_err("there is none").to_string();
        assert!(error.contains("Postgres 999, which made this data folder") && error.contains("postgresql-N"), "{error}");
    }
}
