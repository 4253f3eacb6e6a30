//! The spool over real files.

use std::os::unix::fs::FileExt as _;

use super::*;

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
        let bytes: u64 = stats.lanes.iter().map(|lane| lane.bytes).sum();
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
    assert!(stats.lanes.iter().all(|lane| *lane == LaneStats::default()), "{stats:?}");
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
    assert!(matches!(refused, OpenError::Partitions { found: PARTITIONS, asked: 8, .. }), "{refused}");
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
