//! Group commit. One thread takes whatever has queued while it was busy, and under load a little more, writes it, syncs the files it touched
//! side by side, moves the durable ends, and answers. Nothing is acknowledged before its sync has returned.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use bytes::Bytes;
use events::Record;
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use super::disk::{self, Disk};
use super::format::{self, FILE_HEADER_BYTES, FRAME_BYTES, FileHeader};
use super::reader::{Counters, Listed, OpenFile, Partition, lock};
use super::scan::Index;
use crate::background::Background;
use crate::{AppendError, Offset, Position};

/// So many records in a queue say that the log is busy.
const BUSY_FROM: usize = 64;
/// How long a group of a busy log waits for more at a time.
const PAUSE: Duration = Duration::from_micros(250);
/// How often it does so: 3 ms are a fifth of what an answer takes then.
const PAUSES_MAX: u32 = 12;
/// A write of fewer bytes that makes a file longer adds [`PADDING_BYTES`]; for a larger one, to write them costs more than they save.
const PADDED_BELOW: usize = 128 * 1024;
/// Zeros behind the records of a file that is written. A sync of bytes that lie inside of a file takes half of the processor's time of
/// one that has to note in the file system's journal, too, that the file became longer.
const PADDING_BYTES: u64 = 256 * 1024;

/// What an append waits for.
pub(super) type Answer = Result<Vec<Position>, AppendError>;

/// One append.
pub(super) struct Job {
    pub(super) records: Vec<Record>,
    /// One for each record, with its log partition; the writer fills in the offset.
    pub(super) positions: Vec<Position>,
    /// Bytes that the records take in the log.
    pub(super) need: u64,
    /// Permits of [`Queue::room`] that come back when the job is done.
    pub(super) permits: u32,
    pub(super) answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<Job>,
    /// Of all jobs.
    records: usize,
    closed: bool,
    /// Whether the writer sleeps.
    idle: bool,
}

/// The way to the writer. Bounded by the bytes in it: an append takes permits from `room` before it adds its job.
pub(super) struct Queue {
    pub(super) room: Semaphore,
    pub(super) room_bytes: u32,
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Why the writer has stopped for good.
    pub(super) stopped: OnceLock<String>,
}

impl Queue {
    pub(super) fn new(room_bytes: u32) -> Self {
        Queue {
            room: Semaphore::new(room_bytes as usize),
            room_bytes,
            waiting: Mutex::default(),
            wake: Condvar::new(),
            stopped: OnceLock::new(),
        }
    }

    /// Returns the error of every append after the writer stopped.
    pub(super) fn stopped(&self) -> AppendError {
        AppendError::Stopped(self.stopped.get().map_or("it was closed", String::as_str).to_owned())
    }

    /// Adds a job.
    /// # Errors
    /// [`AppendError::Stopped`] if the queue is closed.
    pub(super) fn push(&self, job: Job) -> Result<(), AppendError> {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return Err(self.stopped());
        }
        waiting.records += job.records.len();
        waiting.jobs.push(job);
        if waiting.idle {
            waiting.idle = false;
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes no more jobs; those in the queue are still written.
    pub(super) fn close(&self) {
        lock(&self.waiting).closed = true;
        self.room.close();
        self.wake.notify_one();
    }

    /// Waits for jobs and takes them all; none means that the queue is closed and empty. A sync costs the same for one record and for a
    /// hundred: where appends queued with [`BUSY_FROM`] records while the last group was written, it waits for more, as long as each
    /// pause brings some. One append alone waits for nobody.
    fn take(&self, pause: impl Fn()) -> Vec<Job> {
        let mut waiting = lock(&self.waiting);
        while waiting.jobs.is_empty() && !waiting.closed {
            waiting.idle = true;
            waiting = self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.idle = false;
        let (mut seen, mut pauses) = (1, 0);
        while waiting.jobs.len() > seen && waiting.records >= BUSY_FROM && pauses < PAUSES_MAX && !waiting.closed {
            seen = waiting.jobs.len();
            drop(waiting);
            pause();
            pauses += 1;
            waiting = lock(&self.waiting);
        }
        waiting.records = 0;
        std::mem::take(&mut waiting.jobs)
    }
}

/// Makes the file that begins with `base`, durable with its name; in place of one of that name, which must hold nothing
/// that was acknowledged. After an error the file may be there or not: try again before writing `base` elsewhere.
pub(super) fn create_file(disk: &dyn Disk, folder: &Path, partition: u32, base: Offset) -> io::Result<OpenFile> {
    let header = FileHeader { file_id: Uuid::new_v4(), partition, base };
    let path = folder.join(format::file_name(base));
    let file = create_whole(disk, folder, &path, &header.encode())?;
    Ok(OpenFile::new(header, file, FILE_HEADER_BYTES as u64, Index::default()))
}

/// Makes a file with its contents, or leaves none behind: written under another name, synced, renamed, name synced.
pub(super) fn create_whole(disk: &dyn Disk, folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<Arc<dyn disk::DiskFile>> {
    let temporary = path.with_extension(TEMPORARY);
    let create = || {
        let file = disk.create(&temporary)?;
        disk::write_all(file.as_ref(), bytes, 0)?;
        file.sync()?;
        Ok(file)
    };
    let file = create().inspect_err(|_: &io::Error| {
        // Only tidiness: opening the log removes such files too.
        let _ = disk.remove(&temporary);
    })?;
    disk.rename(&temporary, path)?;
    disk.sync_folder(folder)?;
    Ok(file)
}

/// How the names of unfinished files end.
pub(super) const TEMPORARY: &str = "tmp";

/// What the writer has of the log.
pub(super) struct Context {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) counters: Arc<Counters>,
    pub(super) file_bytes_max: u64,
    pub(super) bytes_max: u64,
}

/// Writes one log partition.
pub(super) struct PartitionWriter {
    shared: Arc<Partition>,
    file: Arc<OpenFile>,
    /// Where the file's durable bytes end, and what offset follows.
    durable_at: u64,
    durable_end: Offset,
    /// The length of the file: behind its records lies padding.
    file_bytes: u64,
    /// The offset after the records in `buffer`.
    next: Offset,
    /// Frames that are not written yet.
    buffer: Vec<u8>,
    /// Where some of the records in `buffer` will lie.
    marks: Index,
    /// Why nothing more of this group can be written here.
    failure: Option<AppendError>,
    failures_in_row: u32,
    /// The file takes no more records, because what it holds after its durable end is not known.
    file_is_spent: bool,
}

impl PartitionWriter {
    pub(super) fn new(shared: Arc<Partition>) -> Self {
        let file = Arc::clone(&lock(&shared.files).active);
        let durable_end = *shared.end.borrow();
        PartitionWriter {
            durable_at: file.readable.load(Ordering::Acquire),
            durable_end,
            file_bytes: 0,
            next: durable_end,
            shared,
            file,
            buffer: Vec::new(),
            marks: Index::default(),
            failure: None,
            failures_in_row: 0,
            file_is_spent: false,
        }
    }

    /// Adds a record to the group; returns its offset, which holds if the group's flush succeeds, or nothing if it cannot be written.
    fn push(&mut self, context: &Context, payload: &Bytes) -> Option<Offset> {
        if self.failure.is_some() {
            return None;
        }
        let frame = (FRAME_BYTES + payload.len()) as u64;
        let is_full = self.next > self.file.base && self.durable_at + self.buffer.len() as u64 + frame > context.file_bytes_max;
        if is_full || self.file_is_spent {
            self.flush(context);
            if self.failure.is_none() {
                self.rotate(context);
            }
            if self.failure.is_some() {
                return None;
            }
        }
        let offset = self.next;
        self.marks.note(offset, self.durable_at + self.buffer.len() as u64);
        let first_after_sync = self.buffer.is_empty();
        self.file.salt.encode(&mut self.buffer, offset, first_after_sync, payload);
        self.next += 1;
        Some(offset)
    }

    /// Writes and syncs what was pushed; then readers see it. On failure nothing of it will ever be read.
    fn flush(&mut self, context: &Context) {
        if self.buffer.is_empty() || self.failure.is_some() {
            return;
        }
        match self.write(context) {
            Ok(()) => match self.sync(context) {
                Ok(()) => self.publish(context),
                Err(error) => self.abandon(context, "a sync failed", &error),
            },
            Err(error) if disk::is_full(&error) => {
                // Cut back and synced, so that "none of the records is there" also holds after a power cut.
                self.file_bytes = 0;
                let cut = self.file.file.set_bytes(self.durable_at).and_then(|()| self.sync(context));
                match cut {
                    Ok(()) => self.fail(AppendError::Unavailable(format!("{}: {error}", self.shared.folder.display()))),
                    Err(error) => self.abandon(context, "the disk is full, and cutting the file back failed", &error),
                }
            }
            Err(error) => self.abandon(context, "a write failed", &error),
        }
        self.buffer.clear();
        self.marks.clear();
        self.next = self.durable_end;
        // A group of unusual size does not keep its memory for ever.
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
    }

    /// Writes the group, and behind it, if it is small and makes the file longer, zeros.
    fn write(&mut self, context: &Context) -> io::Result<()> {
        let end = self.durable_at + self.buffer.len() as u64;
        disk::write_all(self.file.file.as_ref(), &self.buffer, self.durable_at)?;
        if end > self.file_bytes {
            self.file_bytes = end;
            let padded = (end + PADDING_BYTES).min(context.file_bytes_max);
            if self.buffer.len() < PADDED_BELOW && padded > end {
                // The records are there without it, so that a disk that has no room for more refuses nothing.
                match disk::write_all(self.file.file.as_ref(), &ZEROS[..(padded - end) as usize], end) {
                    Ok(()) => self.file_bytes = padded,
                    Err(_) => drop(self.file.file.set_bytes(end)),
                }
            }
        }
        Ok(())
    }

    /// Cuts the padding off, to give its room back. Readers and recovery do not need that.
    fn trim(&self) {
        if self.file_bytes > self.durable_at && !self.file_is_spent {
            // What is left behind is nothing but zeros.
            let _ = self.file.file.set_bytes(self.durable_at);
        }
    }

    fn sync(&self, context: &Context) -> io::Result<()> {
        context.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.file.sync()
    }

    fn publish(&mut self, context: &Context) {
        let bytes = self.buffer.len() as u64;
        let records = self.next - self.durable_end;
        self.failures_in_row = 0;
        self.durable_at += bytes;
        self.durable_end = self.next;
        lock(&self.file.index).take_over(&mut self.marks);
        lock(&self.shared.failing).take();
        // The bytes before the end: who sees the end may read them.
        self.file.readable.store(self.durable_at, Ordering::Release);
        self.shared.end.send_replace(self.durable_end);
        context.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        context.counters.records.fetch_add(records, Ordering::Relaxed);
    }

    fn fail(&mut self, error: AppendError) {
        self.failure = Some(error);
    }

    /// Gives the file up after an error that leaves its tail unknown: the durable records stay, a new file continues.
    /// The descriptor is never synced again. Readers and recovery end the old file where the new one begins.
    fn abandon(&mut self, context: &Context, what: &str, error: &io::Error) {
        let file = self.shared.folder.join(format::file_name(self.file.base));
        let reason = format!("{}: {what}: {error}", file.display());
        tracing::error!(
            partition = self.shared.number,
            durable_end = self.durable_end,
            "{reason}; the log goes on in a new file"
        );
        context.counters.sync_failures.fetch_add(1, Ordering::Relaxed);
        self.failures_in_row += 1;
        self.file_is_spent = true;
        self.next = self.durable_end;
        self.fail(AppendError::Unknown(reason));
        if self.failures_in_row == 1 {
            let spent = Arc::clone(&self.file);
            let durable_at = self.durable_at;
            let failure = self.failure.clone();
            self.rotate(context);
            self.failure = failure;
            if !self.file_is_spent {
                // Only gives the room back; the tail is ignored either way.
                let _ = spent.file.set_bytes(durable_at);
            }
        }
    }

    /// Closes the file and goes on in a new one. On failure the old one takes nothing more either: the new one may be there.
    fn rotate(&mut self, context: &Context) {
        let replaced = self.file.base == self.durable_end;
        match create_file(context.disk.as_ref(), &self.shared.folder, self.shared.number, self.durable_end) {
            Ok(file) => {
                let file = Arc::new(file);
                let opened = Listed { base: file.base, bytes: FILE_HEADER_BYTES as u64 };
                let mut files = lock(&self.shared.files);
                if replaced {
                    files.listed.pop();
                } else {
                    if let Some(last) = files.listed.last_mut() {
                        last.bytes = self.durable_at;
                    }
                    files.recent = Some(Arc::clone(&self.file));
                    context.counters.bytes.fetch_add(FILE_HEADER_BYTES as u64, Ordering::Relaxed);
                }
                files.listed.push(opened);
                files.active = Arc::clone(&file);
                drop(files);
                self.trim();
                self.file = file;
                self.durable_at = FILE_HEADER_BYTES as u64;
                self.file_bytes = self.durable_at;
                self.file_is_spent = false;
            }
            Err(error) => {
                self.file_is_spent = true;
                let reason = format!("{}: a new log file cannot be made: {error}", self.shared.folder.display());
                if !disk::is_full(&error) {
                    self.failures_in_row += 1;
                    context.counters.sync_failures.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(partition = self.shared.number, "{reason}");
                }
                self.fail(AppendError::Unavailable(reason));
            }
        }
    }

    /// Returns why the log has to stop: a second failure in a row says that the disk, not a file, is broken.
    fn broken(&self) -> Option<String> {
        let failure = self.failure.as_ref().filter(|_| self.failures_in_row >= 2)?;
        Some(format!("log partition {}: two failures in a row, the last one: {failure}", self.shared.number))
    }
}

/// Log partitions that are synced at the same time.
const SYNCS_AT_ONCE_MAX: usize = 8;

/// Bytes of a partition's buffer that stay allocated between groups.
const BUFFER_BYTES_KEPT: usize = 4 * 1024 * 1024;

static ZEROS: [u8; PADDING_BYTES as usize] = [0; PADDING_BYTES as usize];

/// Writes all log partitions, group after group.
pub(super) struct Writer {
    pub(super) context: Context,
    pub(super) queue: Arc<Queue>,
    pub(super) partitions: Vec<PartitionWriter>,
    pub(super) background: Background,
}

/// The name of the writer's thread.
pub(crate) const THREAD: &str = "log-writer";

/// Closes the queue when the writer's thread ends, however it ends, so that no caller waits for it.
struct CloseAtEnd(Arc<Queue>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody can have set it: only this thread does.
            let _ = self.0.stopped.set("the writer panicked; its message is in the log of this process".to_owned());
        }
        self.0.close();
        let left = std::mem::take(&mut lock(&self.0.waiting).jobs);
        for job in left {
            // Who waited may have gone.
            let _ = job.answer.send(Err(self.0.stopped()));
        }
    }
}

impl Writer {
    /// Writes until the queue is closed and empty, or the disk is broken.
    pub(super) fn run(self) {
        let Writer { context, queue, mut partitions, background } = self;
        let close = CloseAtEnd(Arc::clone(&queue));
        let context = &context;
        std::thread::scope(|scope| {
            let helpers = partitions.len().min(SYNCS_AT_ONCE_MAX).saturating_sub(1);
            // Without threads the writer flushes alone.
            let flushers: Vec<_> = (0..helpers).map_while(|_| Flusher::start(scope, context).ok()).collect();
            loop {
                let jobs = queue.take(|| std::thread::sleep(PAUSE));
                if jobs.is_empty() {
                    break;
                }
                background.checkpoint(THREAD);
                commit(context, &queue, &mut partitions, &flushers, jobs);
                if let Some(reason) = partitions.iter().find_map(PartitionWriter::broken) {
                    tracing::error!("the log stops: {reason}");
                    // Nobody can have set it: only this thread does.
                    let _ = queue.stopped.set(reason);
                    break;
                }
            }
        });
        partitions.iter().for_each(PartitionWriter::trim);
        drop(close);
    }
}

/// Writes one group.
fn commit(context: &Context, queue: &Queue, partitions: &mut Vec<PartitionWriter>, flushers: &[Flusher], mut jobs: Vec<Job>) {
    for partition in partitions.iter_mut() {
        partition.failure = None;
    }
    let mut held = context.counters.bytes.load(Ordering::Relaxed);
    let mut answers = Vec::with_capacity(jobs.len());
    for job in &mut jobs {
        if held + job.need > context.bytes_max {
            answers.push(Some(no_room(job.need, held, context.bytes_max)));
            continue;
        }
        held += job.need;
        answers.push(None);
        for (record, position) in job.records.iter().zip(&mut job.positions) {
            position.offset = partitions[position.partition as usize].push(context, record.bytes());
        }
    }
    flush_all(context, partitions, flushers);
    context.counters.groups.fetch_add(1, Ordering::Relaxed);
    let mut failed = false;
    for (partition, failure) in partitions.iter().filter_map(|partition| Some((partition, partition.failure.as_ref()?))) {
        failed = true;
        // After a sync that failed once a new file is there, and takes what comes next.
        if matches!(failure, AppendError::Unknown(_)) && !partition.file_is_spent {
            continue;
        }
        *lock(&partition.shared.failing) = Some((Instant::now(), failure.to_string()));
    }
    let mut permits = 0;
    for (job, refused) in jobs.into_iter().zip(answers) {
        permits += job.permits as usize;
        let answer = match refused {
            Some(error) => {
                context.counters.refused.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
            None if failed => outcome(job.positions, partitions),
            None => Ok(job.positions),
        };
        // Who waited may have gone; the records stay.
        let _ = job.answer.send(answer);
    }
    queue.room.add_permits(permits);
}

/// A thread that flushes the log partitions that are handed to it, and hands them back. It lasts as long as the writer: to begin one takes
/// longer than most syncs.
struct Flusher {
    todo: Sender<Vec<PartitionWriter>>,
    done: Receiver<Vec<PartitionWriter>>,
}

impl Flusher {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, context: &'scope Context) -> io::Result<Self> {
        let (todo, work) = mpsc::channel::<Vec<PartitionWriter>>();
        let (give_back, done) = mpsc::channel();
        let flush = move || {
            for mut partitions in work {
                partitions.iter_mut().for_each(|partition| partition.flush(context));
                if give_back.send(partitions).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("log-sync".to_owned()).spawn_scoped(scope, flush)?;
        Ok(Flusher { todo, done })
    }
}

/// Flushes all log partitions, side by side: a disk takes several syncs in little more than the time of one.
/// # Panics
/// If a flusher has panicked: then it is not known what the files hold.
fn flush_all(context: &Context, partitions: &mut Vec<PartitionWriter>, flushers: &[Flusher]) {
    const ENDED: &str = "a thread that flushes ended";
    let (mut touched, mut all): (Vec<_>, Vec<_>) =
        std::mem::take(partitions).into_iter().partition(|partition| !partition.buffer.is_empty());
    let share = touched.len().div_ceil(flushers.len() + 1).max(1);
    let mut busy = Vec::with_capacity(flushers.len());
    for flusher in flushers {
        if touched.len() > share {
            let others = touched.split_off(touched.len() - share);
            flusher.todo.send(others).map_err(|_| ENDED).expect(ENDED);
            busy.push(flusher);
        }
    }
    touched.iter_mut().for_each(|partition| partition.flush(context));
    all.append(&mut touched);
    busy.into_iter().for_each(|flusher| all.append(&mut flusher.done.recv().expect(ENDED)));
    all.sort_unstable_by_key(|partition| partition.shared.number);
    *partitions = all;
}

/// Says what became of one append in a group in which something failed.
fn outcome(positions: Vec<Position>, partitions: &[PartitionWriter]) -> Answer {
    let mut stored = 0;
    let mut error = None;
    for position in &positions {
        let partition = &partitions[position.partition as usize];
        if position.offset.is_some_and(|offset| offset < partition.durable_end) {
            stored += 1;
        } else if let (None | Some(AppendError::Unavailable(_)), Some(failure)) = (&error, &partition.failure) {
            error = Some(failure.clone());
        }
    }
    match error {
        None => Ok(positions),
        Some(AppendError::Unavailable(reason)) if stored > 0 => {
            Err(AppendError::Unknown(format!("{stored} of {} records are stored, the others not: {reason}", positions.len())))
        }
        Some(error) => Err(error),
    }
}

/// Says that the log holds as much as it may.
pub(super) fn no_room(need: u64, held: u64, bytes_max: u64) -> AppendError {
    AppendError::Unavailable(format!(
        "{need} bytes are needed, and {held} of the log's {bytes_max} bytes are taken; room comes back as records are consumed"
    ))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::conformance;

    fn push(queue: &Queue, records: u64) {
        let records: Vec<_> = (0..records).map(|number| conformance::record("user", number, 0)).collect();
        let (answer, _) = oneshot::channel();
        queue.push(Job { records, positions: Vec::new(), need: 0, permits: 0, answer }).expect("is open");
    }

    /// A queue that has jobs of so many records; `more` is how many jobs come in each of the pauses. Returns how many jobs the group has,
    /// and how many pauses were made.
    fn group(jobs: &[u64], more: impl Fn(u32) -> u64) -> (usize, u32) {
        let queue = Queue::new(1);
        jobs.iter().for_each(|records| push(&queue, *records));
        let pauses = Cell::new(0);
        let pause = || {
            (0..more(pauses.get())).for_each(|_| push(&queue, 1));
            pauses.set(pauses.get() + 1);
        };
        (queue.take(pause).len(), pauses.get())
    }

    #[test]
    fn a_group_of_a_busy_log_waits_while_more_comes() {
        let (few, many) = ([1; BUSY_FROM - 1], [1; BUSY_FROM]);
        assert_eq!(group(&few, |_| 1), (few.len(), 0), "not busy");
        assert_eq!(group(&[1_000], |_| 1), (1, 0), "alone");
        assert_eq!(group(&[50, 50], |pause| u64::from(pause < 3)), (5, 4), "until a pause brings none");
        assert_eq!(group(&many, |_| 0), (many.len(), 1));
        assert_eq!(group(&many, |_| 2), (many.len() + 2 * PAUSES_MAX as usize, PAUSES_MAX), "not for ever");
    }

    #[test]
    fn a_closed_queue_gives_what_it_has_at_once() {
        let queue = Queue::new(1);
        (0..2 * BUSY_FROM).for_each(|_| push(&queue, 1));
        queue.close();
        assert_eq!(queue.take(|| panic!("it waits")).len(), 2 * BUSY_FROM);
        assert_eq!(queue.take(|| panic!("it waits")).len(), 0);
    }
}
