//! The spool over real files.

use std::os::unix::fs::FileExt as _;

use super::*;
use crate::embedded::tests::FailingDisk;

/// A spool in a folder, with files so small that they rotate.
fn open(folder: &Path, primary: &Primary, options: Options) -> Result<Spool, OpenError> {
    let comparing = primary.clone();
    let compare = move |agreed| {
        let found = comparing.compare(agreed);
        async move { found }
    };
    Spool::open(folder, Arc::new(primary.clone()), Arc::new(compare), options)
}

fn small() -> Options {
    Options { file_bytes_max: 4 * 1024, ..quick() }
}

#[tokio::test]
async fn what_is_spooled_survives_the_process_and_drains_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    let mut ledger = Ledger::default();
    world.primary.set(Way::Unavailable);
    for life in 0..3 {
        let spool = open(folder.path(), &world.primary, small()).expect("opens");
        spool.first_comparison().await;
        assert_eq!(spool.stats().records(), life * 60, "life {life}");
        for _ in 0..20 {
            ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
        }
        let stats = spool.stats();
        let bytes: u64 = stats.partitions.iter().map(|partition| partition.bytes).sum();
        assert!(bytes > stats.records() * 300 && bytes <= stats.bytes, "{stats:?}");
        // Dropped without an end: the store's lock is free as soon as its tasks are gone.
        drop(spool);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.primary.set(Way::Works);
    let spool = open(folder.path(), &world.primary, small()).expect("opens");
    for _ in 0..20 {
        ledger.append(&spool, &[1, 2, 3]).await.expect("appends");
    }
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "three lives"), 0);
    let stats = spool.stats();
    assert!(stats.partitions.iter().all(|partition| *partition == PartitionStats::default()), "{stats:?}");
    assert!(stats.bytes < u64::from(PARTITIONS) * 6 * 1024, "what was drained is deleted: {stats:?}");

    // A kill after the note: nothing is sent again.
    tokio::time::sleep(Duration::from_millis(30)).await;
    drop(spool);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let spool = open(folder.path(), &world.primary, small()).expect("opens");
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "after the note"), 0);
}

#[tokio::test]
async fn the_quota_is_kept_and_room_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    let options = Options { bytes_max: 128 * 1024, ..small() };
    let spool = open(folder.path(), &world.primary, options).expect("opens");
    spool.first_comparison().await;
    let mut ledger = Ledger::default();
    for round in 0..3 {
        world.primary.set(Way::Unavailable);
        let mut taken = 0;
        let refused = loop {
            match ledger.append(&spool, &[1, 2, 3, 4, 5, 6, 7]).await {
                Ok(_) => taken += 1,
                Err(error) => break error,
            }
            assert!(taken < 10_000, "the quota does not hold");
        };
        assert!(taken > 10, "round {round}: only {taken} appends found room");
        assert!(matches!(refused, AppendError::Unavailable(_)), "{refused}");
        assert!(matches!(spool.ready(), Err(AppendError::Unavailable(_))), "round {round}");
        assert!(spool.stats().bytes <= 128 * 1024 + 44 * 64, "{:?}", spool.stats());
        world.primary.set(Way::Works);
        drained(&spool).await;
        spool.ready().expect("there is room again");
    }
    assert_eq!(ledger.check(&world.contents().await, "quota"), 0);
}

#[tokio::test]
async fn damaged_records_are_kept_and_named_and_the_rest_drains() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    world.primary.set(Way::Unavailable);
    let identity = Append::identity(&world.primary);
    let spool = open(folder.path(), &world.primary, small()).expect("opens");
    spool.first_comparison().await;
    let records: Vec<Record> = (0..60).map(|number| conformance::record_in(identity, 2, number, 100)).collect();
    for record in &records {
        spool.append(vec![record.clone()]).await.expect("the spool takes it");
    }
    drop(spool);
    tokio::time::sleep(Duration::from_millis(20)).await;

    // One byte of the second file, in the middle.
    let files = || {
        let entries = std::fs::read_dir(folder.path().join("partition-02")).expect("a folder");
        let mut names: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        names.sort();
        names
    };
    let second = files()[1].clone();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&second).expect("opens");
    let at = file.metadata().expect("has a length").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
    let damaged = std::fs::read(&second).expect("read");

    world.primary.set(Way::Works);
    let spool = open(folder.path(), &world.primary, small()).expect("opens");
    drained(&spool).await;
    let stats = spool.stats();
    assert_eq!((stats.damaged_records, stats.damaged_files), (1, 1), "{stats:?}");
    let found = world.contents().await;
    assert_eq!(found[2].len(), 59);
    let expected: Vec<Vec<u8>> = records.iter().map(|record| record.bytes().to_vec()).collect();
    let missing: Vec<&Vec<u8>> = expected.iter().filter(|record| !found[2].contains(record)).collect();
    assert_eq!(missing.len(), 1);
    assert!(found[2].is_sorted_by_key(|bytes| name_of(bytes).1), "the others are in order");
    let copy = second.with_extension("corrupt");
    assert_eq!(std::fs::read(&copy).expect("the file is kept"), damaged);
    assert!(!second.exists(), "the file itself is trimmed like the others");
    spool.stop().await;
    drop(spool);

    // The next process knows of the copy, and does not look at it.
    let spool = open(folder.path(), &world.primary, small()).expect("opens");
    drained(&spool).await;
    assert_eq!((spool.stats().damaged_records, spool.stats().damaged_files), (0, 1));
    assert_eq!(world.contents().await[2].len(), 59);
}

#[tokio::test]
async fn another_number_of_log_partitions_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    drop(open(folder.path(), &world.primary, quick()).expect("opens"));
    let other = crate::memory::MemoryLog::new(PARTITIONS * 2);
    let same = |_| async { Comparison::Same };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let refused = Spool::open(folder.path(), Arc::new(other), Arc::new(same), quick()).err().expect("refused");
    let OpenError::Log(embedded::OpenError::Partitions { found: PARTITIONS, asked: 8, .. }) = refused else {
        panic!("{refused}")
    };
}

#[tokio::test]
async fn a_damaged_note_sends_again_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    let mut ledger = Ledger::default();
    let spool = open(folder.path(), &world.primary, quick()).expect("opens");
    spool.first_comparison().await;
    world.primary.set(Way::Unavailable);
    for _ in 0..10 {
        ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
    }
    world.primary.set(Way::Works);
    drained(&spool).await;
    spool.stop().await;
    drop(spool);
    let note = folder.path().join("drained");
    let text = std::fs::read_to_string(&note).expect("the note");
    // A number that would pass over records that wait, if it were believed.
    std::fs::write(&note, text.replacen("drained ", "drained 9", 1)).expect("written");
    let spool = open(folder.path(), &world.primary, quick()).expect("opens");
    ledger.append(&spool, &[1, 2, 3]).await.expect("appends");
    drained(&spool).await;
    assert!(ledger.check(&world.contents().await, "damaged note") > 0);
}

#[tokio::test]
async fn records_wait_for_the_log_that_was_agreed_on_when_they_came() {
    let folder = tempfile::tempdir().expect("a folder");
    let (former, next) = (World::new(), World::new());
    former.primary.set(Way::Unavailable);
    let open_when_free = async |primary: &Primary| {
        // A spool that was dropped gives its lock back when its tasks are gone.
        tokio::time::sleep(Duration::from_millis(20)).await;
        open(folder.path(), primary, quick())
    };
    let spool = open_when_free(&former.primary).await.expect("opens");
    spool.append(vec![conformance::record("user", 1, 0)]).await.expect("the spool takes it");
    drop(spool);
    let refused = open_when_free(&next.primary).await.err().expect("refused").to_string();
    let named = [former.primary.log.identity().log_id, next.primary.log.identity().log_id].map(|log_id| log_id.to_string());
    assert!(refused.starts_with("another_log: ") && named.iter().all(|log_id| refused.contains(log_id)), "{refused}");

    former.primary.set(Way::Works);
    let spool = open_when_free(&former.primary).await.expect("the former log is taken");
    drained(&spool).await;
    spool.stop().await;
    drop(spool);
    let spool = open_when_free(&next.primary).await.expect("nothing waits, so another log may follow");
    spool.first_comparison().await;
    next.primary.set(Way::Unavailable);
    spool.append(vec![conformance::record("user", 2, 0)]).await.expect("the spool takes it");
    drop(spool);
    assert!(open_when_free(&former.primary).await.is_err(), "now records wait for the next one");
    std::fs::remove_file(folder.path().join("primary")).expect("removed");
    assert!(open_when_free(&next.primary).await.is_err(), "it is not known what they wait for");
}

#[tokio::test]
async fn a_disk_that_fails_for_a_while_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new();
    let disk = FailingDisk::default();
    let opener = DiskStore::opener_of(folder.path().to_owned(), {
        let disk = disk.clone();
        move || disk.open(PARTITIONS)
    });
    let comparing = world.primary.clone();
    let compare = move |agreed| {
        let found = comparing.compare(agreed);
        async move { found }
    };
    world.primary.set(Way::Unavailable);
    let spool = Spool::open_with(opener, Arc::new(world.primary.clone()), Arc::new(compare), quick(), Background::default())
        .expect("opens");
    spool.first_comparison().await;
    let mut ledger = Ledger::default();
    for round in 0..4 {
        for _ in 0..5 {
            ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
        }
        // The first failure is answered in doubt, and the second in a row stops the log.
        disk.fail_syncs(1_000);
        let mut refused = 0;
        for _ in 0..10 {
            refused += u64::from(ledger.append(&spool, &[1, 2, 3]).await.is_err());
        }
        assert_eq!(refused, 10, "round {round}");
        eventually("the fault", || spool.stats().spool_fault.is_some()).await;
        assert!(matches!(spool.ready(), Err(AppendError::Unavailable(_))), "round {round}");
        disk.fail_syncs(0);
        eventually("the log", || spool.stats().spool_fault.is_none()).await;
        spool.ready().expect("it is open again");
        if round % 2 == 1 {
            world.primary.set(Way::Works);
            drained(&spool).await;
            world.primary.set(Way::Unavailable);
        }
    }
    world.primary.set(Way::Works);
    drained(&spool).await;
    ledger.check(&world.contents().await, "a failing disk");
    assert_eq!(spool.stats().damaged_records, 0);
}
