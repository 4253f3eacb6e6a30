//! A disk in memory that loses what was not synced, tears what was, fails on demand, and counts.
//!
//! A write lands in the page cache, in sectors. At a power cut each sector of a file that changed since its last sync is
//! any of its versions since then, independently of all others; the length is any of its values since then; and of the
//! names that changed since their folder's sync, the first few have changed. After a failed sync the same lottery decides
//! what reached the disk, and what did not is clean: a second sync succeeds without writing it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::disk::{Disk, DiskFile, Entry, Lock};
use super::super::reader::lock;

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of each sector since the last sync, the durable and the present one included.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    lengths: Vec<usize>,
}

#[derive(Clone)]
enum Change {
    Put(PathBuf, usize),
    Gone(PathBuf),
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Change::Put(path, _) | Change::Gone(path) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Put(path, inode) => names.insert(path.clone(), *inode),
            Change::Gone(path) => names.remove(path),
        };
    }
}

#[derive(Clone, Default)]
struct State {
    random: u64,
    inodes: Vec<Inode>,
    folders: BTreeSet<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<Change>,
    locked: BTreeSet<PathBuf>,
    off: bool,
    faults: Faults,
    bytes_read: u64,
}

/// What goes wrong, and when. Syncs of files and of folders count.
#[derive(Clone, Copy, Default)]
pub(super) struct Faults {
    /// The power fails when this many more syncs have succeeded.
    pub(super) power_fails_after_syncs: Option<u64>,
    /// So many syncs of files fail, from the next one on.
    pub(super) failing_syncs: u64,
    /// They fail as if the disk were full, though it says that it has room.
    pub(super) syncs_fail_as_full: bool,
    /// So many syncs of folders fail, from the next one on; the names may be durable all the same.
    pub(super) failing_folder_syncs: u64,
    /// Bytes that fit.
    pub(super) capacity: Option<u64>,
    /// Writes take a part of what they are given.
    pub(super) short_writes: bool,
    /// The next write of a thread of this name panics.
    pub(super) panic_in: Option<&'static str>,
}

impl State {
    fn random(&mut self, below: usize) -> usize {
        // Source: Marsaglia 2003, Xorshift RNGs.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below.max(1) as u64) as usize
    }

    fn sector(bytes: &[u8], sector: usize) -> Vec<u8> {
        let from = (sector * SECTOR).min(bytes.len());
        let mut found = bytes[from..(from + SECTOR).min(bytes.len())].to_vec();
        found.resize(SECTOR, 0);
        found
    }

    /// Changes a file in the page cache, and remembers what could be on the disk instead.
    fn change(&mut self, inode: usize, sectors: std::ops::Range<usize>, change: impl FnOnce(&mut Vec<u8>)) {
        let inode = &mut self.inodes[inode];
        for sector in sectors.clone() {
            inode.dirty.entry(sector).or_insert_with(|| vec![State::sector(&inode.durable, sector)]);
        }
        if inode.lengths.is_empty() {
            inode.lengths.push(inode.durable.len());
        }
        change(&mut inode.seen);
        for sector in sectors {
            let version = State::sector(&inode.seen, sector);
            inode.dirty.entry(sector).or_default().push(version);
        }
        inode.lengths.push(inode.seen.len());
    }

    /// Decides by lot what of a file is on the disk.
    fn settle(&mut self, number: usize) {
        let mut inode = std::mem::take(&mut self.inodes[number]);
        if !inode.lengths.is_empty() {
            let length = inode.lengths[self.random(inode.lengths.len())];
            inode.durable.resize(length, 0);
            for (sector, versions) in std::mem::take(&mut inode.dirty) {
                let version = &versions[self.random(versions.len())];
                let from = sector * SECTOR;
                if from < length {
                    let bytes = SECTOR.min(length - from);
                    inode.durable[from..from + bytes].copy_from_slice(&version[..bytes]);
                }
            }
            inode.lengths.clear();
        }
        self.inodes[number] = inode;
    }

    fn check(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn count_sync(&mut self) -> io::Result<()> {
        self.check()?;
        match &mut self.faults.power_fails_after_syncs {
            Some(0) => {
                self.off = true;
                self.check()
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].seen.len() as u64).sum()
    }
}

/// A simulated disk; clones share it.
#[derive(Clone)]
pub(super) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

impl SimulatedDisk {
    pub(super) fn new(seed: u64) -> Self {
        let state = State { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, ..State::default() };
        SimulatedDisk { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.state).faults);
    }

    /// Bytes of all files.
    pub(super) fn used(&self) -> u64 {
        lock(&self.state).used()
    }

    pub(super) fn bytes_read(&self) -> u64 {
        lock(&self.state).bytes_read
    }

    /// Whether the power has failed.
    pub(super) fn is_off(&self) -> bool {
        lock(&self.state).off
    }

    /// Returns the disk as a killed process leaves it: all that was written is seen, nothing more of it is durable.
    pub(super) fn after_kill(&self) -> Self {
        let mut state = lock(&self.state).clone();
        state.off = false;
        state.faults = Faults { capacity: state.faults.capacity, ..Faults::default() };
        state.locked.clear();
        lock(&self.state).off = true;
        SimulatedDisk { state: Arc::new(Mutex::new(state)) }
    }

    /// Returns the disk as a power cut leaves it; the present one is off.
    pub(super) fn after_power_cut(&self) -> Self {
        let disk = self.after_kill();
        {
            let mut state = lock(&disk.state);
            let kept = state.changes.len() + 1;
            let kept = state.random(kept);
            let changes = std::mem::take(&mut state.changes);
            for change in &changes[..kept] {
                change.apply(&mut state.durable_names);
            }
            state.names = state.durable_names.clone();
            for inode in 0..state.inodes.len() {
                state.settle(inode);
                state.inodes[inode].seen = state.inodes[inode].durable.clone();
            }
        }
        disk
    }

    /// Returns an independent copy, where the named file has other contents. It must be there.
    pub(super) fn with_contents(&self, path: &Path, bytes: Vec<u8>) -> Self {
        let disk = self.after_kill();
        {
            let mut state = lock(&disk.state);
            let inode = state.names[path];
            state.inodes[inode] = Inode { seen: bytes.clone(), durable: bytes, ..Inode::default() };
        }
        lock(&self.state).off = false;
        disk
    }

    /// Returns an independent copy without a file.
    pub(super) fn without(&self, path: &Path) -> Self {
        let disk = self.after_kill();
        {
            let mut state = lock(&disk.state);
            state.names.remove(path).expect("it was there");
            state.durable_names.remove(path);
        }
        lock(&self.state).off = false;
        disk
    }

    pub(super) fn contents(&self, path: &Path) -> Vec<u8> {
        let state = lock(&self.state);
        state.inodes[state.names[path]].seen.clone()
    }

    /// Returns the names of a folder's files in order.
    pub(super) fn names(&self, folder: &Path) -> Vec<PathBuf> {
        lock(&self.state).names.keys().filter(|path| path.parent() == Some(folder)).cloned().collect()
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for SimulatedDisk {
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check()?;
        state.folders.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let state = lock(&self.state);
        state.check()?;
        if !state.folders.contains(folder) {
            return Err(missing());
        }
        let files = state.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        let entry = |(path, inode): (&PathBuf, &usize)| Entry {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: state.inodes[*inode].seen.len() as u64,
        };
        Ok(files.map(entry).collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.state);
        state.check()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.names.insert(path.to_owned(), inode);
        state.changes.push(Change::Put(path.to_owned(), inode));
        Ok(Arc::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = lock(&self.state);
        state.check()?;
        let inode = *state.names.get(path).ok_or_else(missing)?;
        Ok(Arc::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check()?;
        let inode = state.names.remove(from).ok_or_else(missing)?;
        state.names.insert(to.to_owned(), inode);
        // The new name first: a journal that keeps one of the two keeps the file.
        state.changes.extend([Change::Put(to.to_owned(), inode), Change::Gone(from.to_owned())]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check()?;
        state.names.remove(path).ok_or_else(missing)?;
        state.changes.push(Change::Gone(path.to_owned()));
        Ok(())
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.count_sync()?;
        if state.faults.failing_folder_syncs > 0 {
            state.faults.failing_folder_syncs -= 1;
            return Err(io::Error::from_raw_os_error(5));
        }
        for change in std::mem::take(&mut state.changes) {
            if change.path().parent() == Some(folder) {
                change.apply(&mut state.durable_names);
            } else {
                state.changes.push(change);
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let mut state = lock(&self.state);
        state.check()?;
        // Made only if nobody has it: to drop one frees the path.
        let is_free = state.locked.insert(path.to_owned());
        Ok(is_free.then(|| Box::new(Held { disk: self.clone(), path: path.to_owned() }) as Lock))
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = lock(&self.state);
        Ok(state.faults.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(state.used())))
    }
}

struct Held {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.disk.state).locked.remove(&self.path);
    }
}

struct SimulatedFile {
    disk: SimulatedDisk,
    inode: usize,
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = lock(&self.disk.state);
        state.check()?;
        let seen = &state.inodes[self.inode].seen;
        let from = usize::try_from(at).expect("small files").min(seen.len());
        let bytes = buffer.len().min(seen.len() - from);
        buffer[..bytes].copy_from_slice(&seen[from..from + bytes]);
        state.bytes_read += bytes as u64;
        Ok(bytes)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let mut state = lock(&self.disk.state);
        state.check()?;
        if state.faults.panic_in.is_some_and(|name| std::thread::current().name() == Some(name)) {
            state.faults.panic_in = None;
            drop(state);
            panic!("the disk was told to panic");
        }
        let from = usize::try_from(at).expect("small files");
        let mut count = if state.faults.short_writes { 1 + state.random(bytes.len()) } else { bytes.len() };
        if let Some(capacity) = state.faults.capacity {
            let grows = (from + count).saturating_sub(state.inodes[self.inode].seen.len());
            let free = usize::try_from(capacity.saturating_sub(state.used())).expect("small disks");
            count -= grows.saturating_sub(free).min(count);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let sectors = from / SECTOR..(from + count).div_ceil(SECTOR);
        state.change(self.inode, sectors, |seen| {
            seen.resize(seen.len().max(from + count), 0);
            seen[from..from + count].copy_from_slice(&bytes[..count]);
        });
        Ok(count)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut state = lock(&self.disk.state);
        state.check()?;
        let bytes = usize::try_from(bytes).expect("small files");
        let length = state.inodes[self.inode].seen.len();
        state.change(self.inode, bytes.min(length) / SECTOR..bytes.max(length).div_ceil(SECTOR), |seen| seen.resize(bytes, 0));
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        let state = lock(&self.disk.state);
        state.check()?;
        Ok(state.inodes[self.inode].seen.len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = lock(&self.disk.state);
        state.count_sync()?;
        if state.faults.failing_syncs > 0 {
            state.faults.failing_syncs -= 1;
            state.settle(self.inode);
            let errno = if state.faults.syncs_fail_as_full { 28 } else { 5 };
            return Err(io::Error::from_raw_os_error(errno));
        }
        let inode = &mut state.inodes[self.inode];
        let length = inode.seen.len();
        inode.durable.resize(length, 0);
        for sector in std::mem::take(&mut inode.dirty).into_keys() {
            let range = (sector * SECTOR).min(length)..((sector + 1) * SECTOR).min(length);
            inode.durable[range.clone()].copy_from_slice(&inode.seen[range]);
        }
        inode.lengths.clear();
        Ok(())
    }
}
