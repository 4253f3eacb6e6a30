//! Whom the server runs as.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The system user whom root lets the server run as.
const NAME: &str = "postgres";

/// The user that the server runs as: this process' own, or, where that is root, another one.
#[derive(Clone, Debug)]
pub(super) struct User {
    /// Its id.
    pub(super) uid: u32,
    gid: u32,
    switched: bool,
}

impl User {
    /// Returns whom the server must run as.
    /// # Errors
    /// For root, if there is no user `postgres`.
    pub(super) fn of_server() -> anyhow::Result<Self> {
        let uid = rustix::process::geteuid();
        if !uid.is_root() {
            return Ok(User { uid: uid.as_raw(), gid: rustix::process::getegid().as_raw(), switched: false });
        }
        let (uid, gid) = id("-u").zip(id("-g")).with_context(|| {
            format!(
                "Postgres refuses to run as root, and there is no system user `{NAME}` to run it as; install the server's package (Debian and \
                 Ubuntu: postgresql), start weir as a plain user, or give a database with --database-url"
            )
        })?;
        Ok(User { uid, gid, switched: true })
    }

    /// Returns the group that must pass through the data folder, if it is another user's server.
    pub(super) fn switched_gid(&self) -> Option<u32> {
        self.switched.then_some(self.gid)
    }

    /// Returns a command that runs as this user, in a folder that it can enter.
    pub(super) fn command(&self, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command.current_dir("/");
        if self.switched {
            // The standard library drops the supplementary groups as well when root becomes somebody else.
            command.uid(self.uid).gid(self.gid);
        }
        // Settings meant for other servers and their clients, and those of this program's memory: Postgres takes and frees blocks of several
        // MiB with each statement, which would each be mapped anew.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") || crate::memory::sets(&name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Gives a folder to this user.
    /// # Errors
    /// As the system says.
    pub(super) fn own(&self, folder: &Path) -> anyhow::Result<()> {
        if self.switched {
            std::os::unix::fs::chown(folder, Some(self.uid), Some(self.gid)).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }

    /// Returns whether a path is a folder that belongs to this user and is closed to others.
    pub(super) fn has_private(&self, folder: &Path) -> bool {
        std::fs::symlink_metadata(folder)
            .is_ok_and(|found| found.is_dir() && found.uid() == self.uid && found.mode() & 0o077 == 0)
    }

    /// Checks that this user can enter a folder.
    /// # Errors
    /// Names the first parent that is closed, and ways out.
    pub(super) fn check_reach(&self, folder: &Path) -> anyhow::Result<()> {
        if self.can_enter(folder)? {
            return Ok(());
        }
        let mut parents: Vec<&Path> = folder.ancestors().collect();
        parents.reverse();
        for parent in parents {
            if !self.can_enter(parent)? {
                bail!(
                    "{}: the database server cannot reach this data folder: it runs as the system user `{NAME}`, since Postgres refuses root, \
                     and {} is closed to that user. Choose a folder elsewhere with --data, such as /var/lib/weir; or start weir as a plain \
                     user; or give a database with --database-url",
                    folder.display(),
                    parent.display()
                );
            }
        }
        Ok(())
    }

    /// Tries it, since permission bits do not tell of access lists.
    fn can_enter(&self, folder: &Path) -> anyhow::Result<bool> {
        let mut command = self.command(Path::new("test")).into_std();
        let status = command.arg("-x").arg(folder).stdin(Stdio::null()).status().context("the program `test`")?;
        Ok(status.success())
    }
}

fn id(flag: &str) -> Option<u32> {
    let output = Command::new("id").args([flag, NAME]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_closed_parent_is_named_with_a_way_out() {
        // Only root switches users, and nothing is closed to root.
        let Ok(user) = User::of_server() else { return };
        if user.switched_gid().is_none() {
            return;
        }
        let outer = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir_in("/tmp").expect("a folder");
        let closed = outer.path().join("closed");
        let inner = closed.join("data");
        std::fs::create_dir_all(&inner).expect("makes folders");
        user.check_reach(&inner).expect("all is open");
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).expect("closes it");
        let error = user.check_reach(&inner).expect_err("closed").to_string();
        assert!(error.contains(&format!("and {} is closed to that user", closed.display())), "{error}");
        assert!(error.contains("--data, such as /var/lib/weir"), "{error}");
    }

    #[test]
    fn only_closed_folders_of_the_user_are_private() {
        let user = User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), switched: false };
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).expect("closes it");
        assert!(user.has_private(folder.path()));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).expect("links");
        assert!(!user.has_private(&link));
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("opens it");
        assert!(!user.has_private(folder.path()));
        assert!(!user.has_private(Path::new("/nowhere")));
        let other = User { uid: user.uid + 1, ..user };
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).expect("closes it");
        assert!(!other.has_private(folder.path()));
    }
}
