//! The file system as the embedded log sees it: few calls, each of which a test can make fail.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags};

/// A held lock; dropping it gives it back.
pub(super) type Lock = Box<dyn Send + Sync>;

/// One name in a folder.
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// Its length.
    pub(super) bytes: u64,
}

/// A file system.
pub(super) trait Disk: Send + Sync + 'static {
    /// Makes a folder that only its owner can enter, with its parents; one that is there already is closed to others.
    /// Durable when it returns, as far as the file system lets it.
    /// # Errors
    /// Whatever the system says, and [`io::ErrorKind::InvalidInput`] if something other than a folder is there, such as
    /// a symbolic link.
    fn make_folder(&self, path: &Path) -> io::Result<()>;

    /// Returns what lies in a folder, in no order; links are named, not followed.
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>>;

    /// Makes an empty file for reading and writing, in place of one that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a regular file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name, in place of the one that had it. Durable after [`Disk::sync_folder`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`Disk::sync_folder`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Takes a lock that ends with this process; nothing if someone else holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;

    /// Returns how many bytes this process could still write.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
}

/// An open file.
pub(super) trait DiskFile: Send + Sync {
    /// Reads at a position; may return less than asked for, 0 only at the end.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes at a position; may take less than it was given.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize>;

    /// Cuts the file, or fills it up with zeros.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Returns the length.
    fn bytes(&self) -> io::Result<u64>;

    /// Makes contents and length durable. After an error nothing is known of what was written since the last success,
    /// and calling again proves nothing: the system may have dropped the pages that it could not write.
    fn sync(&self) -> io::Result<()>;
}

/// Reads until the buffer is full or the file ends; returns the bytes read.
pub(super) fn read_full(file: &dyn DiskFile, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Writes all bytes; on an error some of them may be there.
pub(super) fn write_all(file: &dyn DiskFile, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write_at(&bytes[written..], at + written as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns whether an error says that the disk, or this user's share of it, is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The disk of the operating system.
pub(super) struct OsDisk;

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    options
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused("not a regular file")) }
}

/// Makes a folder that is missing, and before it those above it that are missing; each name is synced.
fn make_missing(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.exists() {
        make_missing(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // The name lies in the parent, so the parent is what has to be synced.
    File::open(parent)?.sync_all()
}

impl Disk for OsDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {
                if found.mode() & 0o077 != 0 {
                    fs::set_permissions(path, Permissions::from_mode(0o700))?;
                }
                Ok(())
            }
            Ok(_) => Err(refused("not a folder; symbolic links are not followed")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_missing(path),
            Err(error) => Err(error),
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let bytes = entry.metadata()?.len();
            // Names of the log's own files are ASCII; what is not cannot be one.
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, bytes });
            }
        }
        Ok(entries)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(regular(options().create(true).truncate(true).open(path)?)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(regular(options().open(path)?)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = regular(options().create(true).truncate(false).open(path)?)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, at)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
