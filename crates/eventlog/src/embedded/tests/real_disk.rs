//! The promises that the real file system keeps for the log.

use futures_util::FutureExt as _;

use super::*;

async fn fresh() -> (Arc<EmbeddedLog>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    (Arc::new(EmbeddedLog::open(folder.path(), small()).expect("opens")), folder)
}

crate::conformance_tests!(fresh);

fn open(folder: &Path, options: Options) -> Result<EmbeddedLog, OpenError> {
    EmbeddedLog::open(folder, options)
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[tokio::test]
async fn a_second_opener_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a/b/log");
    let log = open(&path, small()).expect("opens");
    let error = open(&path, small()).err().expect("refused").to_string();
    let expected = format!(
        "{}: the log is open already, and only one process may have it; stop the other one, or give another folder",
        path.display()
    );
    assert_eq!(error, expected);
    let clone = log.clone();
    drop(log);
    assert!(matches!(open(&path, small()), Err(OpenError::InUse { .. })), "a clone still has it");
    let position = clone.append(vec![record(1, 0)]).await.expect("appends")[0];
    let identity = clone.identity();
    drop(clone);
    let log = open(&path, small()).expect("opens");
    assert_eq!(log.identity(), identity);
    assert_eq!(
        log.read(position.partition, position.offset.expect("this log gives offsets"), ALL).await.expect("reads")[0].bytes,
        record(1, 0).bytes()
    );
}

#[test]
fn what_the_last_handle_left_in_the_queue_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = open(folder.path(), small()).expect("opens");
    runtime().block_on(async {
        // Whoever appends goes before the answer, and before the record is written in all likelihood.
        let _ = log.append(vec![record(1, 0)]).now_or_never();
        drop(log);
    });
    let log = open(folder.path(), small()).expect("opens");
    let found: u64 = log.owner.shared.partitions.iter().map(|partition| partition.offsets().end).sum();
    assert_eq!(found, 1);
}

#[test]
fn the_number_of_log_partitions_belongs_to_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let asking = |partitions| Options { partitions, ..Options::default() };
    let refused = |partitions| open(folder.path(), asking(partitions)).err().expect("refused").to_string();
    assert_eq!(refused(Some(3)), "3 log partitions: the number must divide 64");
    assert_eq!(refused(Some(0)), "0 log partitions: the number must divide 64");
    assert_eq!(open(folder.path(), asking(Some(16))).expect("opens").identity().partitions, 16);
    assert_eq!(open(folder.path(), asking(None)).expect("opens").identity().partitions, 16);
    let expected = "the log has 16 log partitions, not 8; the number cannot change, so ask for 16 or for none";
    assert!(refused(Some(8)).ends_with(expected), "{}", refused(Some(8)));
    let too_small = Options { bytes_max: 1000, ..Options::default() };
    let error = open(folder.path(), too_small).err().expect("refused").to_string();
    assert_eq!(error, "1000 bytes for 16 log partitions; at least 131072 are needed");
}

#[test]
fn only_the_owner_can_enter_and_links_are_not_followed() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    std::fs::create_dir(&path).expect("makes it");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("opens it to others");
    drop(open(&path, small()).expect("opens"));
    let file = path.join("partition-00").join(format::file_name(0));
    assert_eq!((mode(&path), mode(&path.join("partition-00"))), (0o700, 0o700));
    assert_eq!((mode(&file), mode(&path.join("header")), mode(&path.join("lock"))), (0o600, 0o600, 0o600));

    let linked = folder.path().join("linked");
    symlink(&path, &linked).expect("links");
    let error = open(&linked, small()).err().expect("refused").to_string();
    assert_eq!(error, format!("{}: not a folder; symbolic links are not followed", linked.display()));
    for name in ["header", "lock", "partition-00/00000000000000000000.log"] {
        let target = folder.path().join("elsewhere");
        std::fs::rename(path.join(name), &target).expect("moves");
        symlink(&target, path.join(name)).expect("links");
        let before = std::fs::read(&target).expect("reads");
        let error = open(&path, small()).err().unwrap_or_else(|| panic!("{name} was followed"));
        assert_eq!(std::fs::read(&target).expect("reads"), before, "{name}: {error}");
        std::fs::rename(&target, path.join(name)).expect("moves back");
    }
    drop(open(&path, small()).expect("opens"));
}

#[test]
fn what_the_log_cannot_do_without_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("log");
    runtime().block_on(async {
        let log = open(&path, small()).expect("opens");
        let batch = (0..64).map(|number| conformance::record(&format!("user-{number}"), number, 0)).collect();
        log.append(batch).await.expect("appends");
    });
    let check = |expected: &str| {
        let error = open(&path, small()).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    };
    let header = std::fs::read(path.join("header")).expect("reads");
    let mut flipped = header.clone();
    flipped[12] ^= 1;
    std::fs::write(path.join("header"), &flipped).expect("writes");
    check("header: the header's checksum does not match");
    std::fs::remove_file(path.join("header")).expect("removes");
    check("the folder holds records but no header; put the header back, or move the folder away");
    std::fs::write(path.join("header"), &header).expect("writes");
    std::fs::rename(path.join("partition-05"), folder.path().join("gone")).expect("moves");
    check("partition-05: the log's header is there, this folder's log files are not");
    std::fs::create_dir(path.join("partition-05")).expect("makes it");
    check("partition-05: the log's header is there, this folder's log files are not");
    std::fs::remove_dir(path.join("partition-05")).expect("removes");
    std::fs::rename(folder.path().join("gone"), path.join("partition-05")).expect("moves back");
    std::fs::write(path.join("partition-05/00000000000000000009.tmp"), b"unfinished").expect("writes");
    std::fs::write(path.join("partition-05/notes.txt"), b"not ours").expect("writes");
    let log = open(&path, small()).expect("opens");
    assert_eq!(log.stats().files, 8);
    assert!(!path.join("partition-05/00000000000000000009.tmp").exists() && path.join("partition-05/notes.txt").exists());
}

/// Writers, a reader for each log partition, and releases after it, all at once over many rotations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_the_writers_through_rotation_and_release() {
    let (log, _folder) = fresh().await;
    let (writers, turns) = (16u64, 60u64);
    let writing: Vec<_> = (0..writers)
        .map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let mut sums = [0u64; 8];
                for turn in 0..turns {
                    let record =
                        conformance::record(&format!("user-{writer}-{}", turn % 5), writer * turns + turn, (turn * 17) as usize);
                    let sum = u64::from(crc32c::crc32c(record.bytes()));
                    let position = log.append(vec![record]).await.expect("appends")[0];
                    sums[position.partition as usize] += sum;
                }
                sums
            })
        })
        .collect();
    let reading: Vec<_> = (0..8)
        .map(|partition| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let (mut next, mut sum) = (0, 0);
                let bound = ReadBound { records_max: 7, bytes_max: 5000, wait_max: Duration::from_secs(1) };
                loop {
                    let found = log.read(partition, next, bound).await.expect("reads");
                    if found.is_empty() {
                        return (next, sum);
                    }
                    for record in found {
                        assert_eq!(record.offset, next, "log partition {partition}");
                        sum += u64::from(crc32c::crc32c(&record.bytes));
                        next += 1;
                    }
                    log.release(partition, next).await;
                }
            })
        })
        .collect();
    let mut appended = [0u64; 8];
    for writer in writing {
        let sums = writer.await.expect("no panic");
        appended.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    let mut records = 0;
    for (reader, appended) in reading.into_iter().zip(appended) {
        let (count, sum) = reader.await.expect("no panic");
        assert_eq!(sum, appended, "every record once, none changed");
        records += count;
    }
    assert_eq!(records, writers * turns);
    let stats = log.stats();
    assert!(stats.files <= 16 && stats.bytes <= 16 * 16 * 1024, "released files are gone: {stats:?}");
}
