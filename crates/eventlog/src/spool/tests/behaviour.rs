//! One test for each thing that the spool promises.

use super::*;
use crate::memory::MemoryLog;

/// A spool over a primary that works, with the primary's reader.
struct Joined {
    spool: Spool,
    primary: MemoryLog,
}

#[async_trait]
impl Append for Joined {
    fn identity(&self) -> LogIdentity {
        self.spool.identity()
    }

    async fn append(&self, batch: Vec<Record>) -> Result<Vec<Position>, AppendError> {
        self.spool.append(batch).await
    }

    fn ready(&self) -> Result<(), AppendError> {
        self.spool.ready()
    }
}

#[async_trait]
impl crate::Read for Joined {
    fn identity(&self) -> LogIdentity {
        crate::Read::identity(&self.primary)
    }

    fn is_exclusive(&self) -> bool {
        self.primary.is_exclusive()
    }

    async fn offsets(&self, partition: u32) -> Result<std::ops::Range<Offset>, crate::ReadError> {
        self.primary.offsets(partition).await
    }

    async fn read(
        &self,
        partition: u32,
        from: Offset,
        bound: crate::ReadBound,
    ) -> Result<Vec<crate::StoredRecord>, crate::ReadError> {
        self.primary.read(partition, from, bound).await
    }

    async fn release(&self, partition: u32, offset: Offset) {
        self.primary.release(partition, offset).await;
    }
}

mod with_a_healthy_primary {
    use super::*;

    crate::conformance_tests!(async || {
        let folder = tempfile::tempdir().expect("a folder");
        let primary = MemoryLog::new(8);
        let same = |_| async { Comparison::Same };
        let spool = Spool::open(folder.path(), Arc::new(primary.clone()), Arc::new(same), Options::default()).expect("opens");
        spool.first_comparison().await;
        (Arc::new(Joined { spool, primary }), folder)
    });
}

#[tokio::test]
async fn a_failing_primary_is_bridged_and_caught_up() {
    for way in [Way::Unavailable, Way::Hangs, Way::Unknown(0), Way::Unknown(4), Way::Unknown(2), Way::Stopped] {
        let world = World::new();
        let spool = world.open_direct().await;
        let mut ledger = Ledger::default();
        let direct = ledger.append(&spool, &[1, 2, 3, 4]).await.expect("appends");
        assert!(direct.iter().all(|position| position.offset.is_some()), "{way:?}: {direct:?}");

        world.primary.set(way);
        let spooled = ledger.append(&spool, &[1, 2, 3, 4]).await.expect("the spool takes it");
        assert!(spooled.iter().all(|position| position.offset.is_none()), "{way:?}: {spooled:?}");
        for _ in 0..20 {
            ledger.append(&spool, &[1, 2, 3, 4]).await.expect("the spool takes it");
        }
        let stats = spool.stats();
        assert!(stats.records() >= 4, "{way:?}: {stats:?}");
        assert!(stats.primary_failures > 0 && stats.spooled_records == 84, "{way:?}: {stats:?}");
        spool.ready().expect("the spool has room");

        world.primary.set(Way::Works);
        drained(&spool).await;
        assert_eq!(spool.stats().state, State::Direct);
        let direct = ledger.append(&spool, &[1, 2, 3, 4]).await.expect("appends");
        assert!(direct.iter().all(|position| position.offset.is_some()), "{way:?}: {direct:?}");
        let repeated = ledger.check(&world.contents().await, &format!("{way:?}"));
        let may_repeat = matches!(way, Way::Unknown(2 | 4));
        assert_eq!(repeated > 0, may_repeat, "{way:?}: {repeated} repeated");
        assert_eq!(spool.stats().drained_records, 84);
    }
}

#[tokio::test]
async fn a_slow_primary_counts_as_unknown() {
    let world = World::new();
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    world.primary.push(Way::Late(Duration::from_millis(60)));
    let positions = ledger.append(&spool, &[1]).await.expect("the spool takes it");
    assert_eq!(positions[0].offset, None);
    ledger.append(&spool, &[1]).await.expect("appends");
    tokio::time::sleep(Duration::from_millis(80)).await;
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "late"), 1, "both copies of the first record");
    assert_eq!(spool.stats().doubtful_appends, 1);
    // What is slow and within its time goes its way.
    world.primary.set(Way::Slow(Duration::from_millis(2)));
    assert!(ledger.append(&spool, &[1]).await.expect("appends")[0].offset.is_some());
}

#[tokio::test]
async fn one_log_partition_that_fails_does_not_hold_up_the_others() {
    let world = World::new();
    let spool = world.open_direct().await;
    let identity = spool.identity();
    let record = |partition, number| conformance::record_in(identity, partition, number, 0);
    world.primary.push(Way::Unavailable);
    // The first drain of log partition 1 hangs, so the record stays where it is.
    world.primary.push(Way::Hangs);
    spool.append(vec![record(1, 0)]).await.expect("the spool takes it");
    eventually("the comparison", || spool.shared.is_agreed_log()).await;
    eventually("the drain", || world.primary.calls().0 == 2).await;
    let both = spool.append(vec![record(0, 1), record(1, 1), record(2, 1), record(1, 2)]).await.expect("appends");
    let places: Vec<(u32, bool)> = both.iter().map(|position| (position.partition, position.offset.is_some())).collect();
    assert_eq!(places, [(0, true), (1, false), (2, true), (1, false)]);
    assert_eq!(spool.stats().state, State::Draining);
    drained(&spool).await;
    assert_eq!(world.contents().await[1].len(), 3);
}

#[tokio::test]
async fn nothing_is_sent_before_the_log_was_found() {
    let world = World::new();
    world.primary.set(Way::Unavailable);
    let spool = world.open();
    spool.first_comparison().await;
    let mut ledger = Ledger::default();
    for _ in 0..5 {
        ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
    }
    assert_eq!(world.primary.calls().0, 0, "it would be the first to learn that it is another log");
    let stats = spool.stats();
    assert_eq!((stats.state, stats.records(), stats.primary_failures), (State::Spooling, 15, 0));
    eventually("the age of the oldest record", || spool.stats().oldest_received_at().is_some()).await;
    assert_eq!(spool.stats().oldest_received_at(), Some(events::testing::RECEIVED_AT));
    world.primary.set(Way::Works);
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "found"), 0);
    assert_eq!((spool.stats().records(), spool.stats().oldest_received_at()), (0, None));
}

#[tokio::test]
async fn another_log_gets_nothing() {
    let world = World::new();
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    world.primary.set(Way::Unavailable);
    for _ in 0..10 {
        ledger.append(&spool, &[1, 2, 3, 4]).await.expect("the spool takes it");
    }
    // The broker comes back with a topic that was made anew.
    let other = MemoryLog::new(PARTITIONS);
    world.primary.replace(Some(other.clone()));
    world.primary.set(Way::Works);
    eventually("the difference", || spool.stats().state == State::AnotherLog).await;
    let refused = ledger.append(&spool, &[1, 2]).await.expect_err("refused");
    assert!(matches!(&refused, AppendError::Unavailable(text) if text.starts_with("another_log: ")), "{refused}");
    let unready = spool.ready().expect_err("refused").to_string();
    assert!(unready.contains("another_log"), "{unready}");
    tokio::time::sleep(Duration::from_millis(60)).await;
    for partition in 0..PARTITIONS {
        assert_eq!(other.range(partition), 0..0, "log partition {partition} of the other log");
    }
    assert_eq!(spool.stats().records(), 40);
    // The agreed one comes back.
    world.primary.replace(None);
    drained(&spool).await;
    ledger.append(&spool, &[1, 2]).await.expect("appends");
    assert_eq!(ledger.check(&world.contents().await, "the agreed one"), 0);
}

#[tokio::test]
async fn a_failure_withdraws_the_trust_until_the_next_comparison() {
    let mut world = World::new();
    world.options.compare_every = Duration::from_secs(3600);
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    // One append fails, and whoever answers next is another log.
    let other = MemoryLog::new(PARTITIONS);
    world.primary.push(Way::Unavailable);
    let (records, names) = ledger.next(&[1, 2, 3]);
    let appending = spool.append(records);
    world.primary.replace(Some(other.clone()));
    let appended = appending.await;
    ledger.settle(names, &appended);
    eventually("the difference", || spool.stats().state == State::AnotherLog).await;
    assert!((0..PARTITIONS).all(|partition| other.range(partition) == (0..0)));
}

#[tokio::test]
async fn a_full_spool_refuses_and_goes_on_by_itself() {
    let world = World::new();
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    ledger.append(&spool, &[1, 2]).await.expect("appends");
    world.primary.set(Way::Unavailable);
    ledger.append(&spool, &[1, 2]).await.expect("the spool takes it");
    world.kept.set(Disk::Full);
    let refused = ledger.append(&spool, &[1, 2]).await.expect_err("no room");
    assert!(matches!(refused, AppendError::Unavailable(_)), "{refused}");
    assert!(matches!(spool.ready(), Err(AppendError::Unavailable(_))));
    assert_eq!(spool.stats().refused_appends, 1);
    world.kept.set(Disk::Works);
    ledger.append(&spool, &[1, 2]).await.expect("there is room again");
    spool.ready().expect("ready again");
    world.primary.set(Way::Works);
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "room"), 0);
}

#[tokio::test]
async fn what_the_primary_may_hold_is_not_called_refused() {
    let world = World::new();
    let spool = world.open_direct().await;
    let check = async |way: Way, disk: Disk, is_unknown: bool| {
        world.kept.set(disk);
        eventually("the comparison", || spool.shared.is_agreed_log()).await;
        world.primary.push(way);
        let error = spool.append(vec![conformance::record("user", 1, 0)]).await.expect_err("both fail");
        assert_eq!(matches!(error, AppendError::Unknown(_)), is_unknown, "{way:?}, {disk:?}: {error}");
        assert!(is_unknown || matches!(error, AppendError::Unavailable(_)), "{way:?}, {disk:?}: {error}");
    };
    check(Way::Unavailable, Disk::Full, false).await;
    check(Way::Unknown(4), Disk::Full, true).await;
    check(Way::Hangs, Disk::Full, true).await;
    check(Way::Stopped, Disk::Full, true).await;
    check(Way::Unavailable, Disk::Unknown { stored: false }, true).await;
}

#[tokio::test]
async fn a_log_that_stopped_is_opened_again() {
    let world = World::new();
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    world.primary.set(Way::Unavailable);
    for _ in 0..5 {
        ledger.append(&spool, &[1, 2, 3]).await.expect("the spool takes it");
    }
    world.kept.set(Disk::Stopped);
    let refused = ledger.append(&spool, &[1, 2, 3]).await.expect_err("its disk failed");
    assert!(matches!(refused, AppendError::Unavailable(_)), "{refused}");
    world.kept.set(Disk::Works);
    eventually("the log", || spool.stats().spool_fault.is_none()).await;
    ledger.append(&spool, &[1, 2, 3]).await.expect("it is open again");
    world.primary.set(Way::Works);
    drained(&spool).await;
    assert_eq!(ledger.check(&world.contents().await, "open again"), 0);
    assert_eq!(spool.stats().spooled_records, 18);
}

#[tokio::test]
async fn what_is_no_event_is_kept_and_passed() {
    let world = World::new();
    let spool = world.open_direct().await;
    world.primary.set(Way::Unavailable);
    world.kept.keeps_nothing.store(true, std::sync::atomic::Ordering::Relaxed);
    let identity = spool.identity();
    // Written by a newer version, say.
    partition::lock(&world.kept.garbled).extend([(1, 0), (1, 7), (1, 8)]);
    for number in 0..20 {
        spool.append(vec![conformance::record_in(identity, 1, number, 0)]).await.expect("the spool takes it");
    }
    world.primary.set(Way::Works);
    drained(&spool).await;
    let found: Vec<u64> = world.contents().await[1].iter().map(|bytes| name_of(bytes).1).collect();
    assert_eq!(found, [1, 2, 3, 4, 5, 6].into_iter().chain(9..20).collect::<Vec<_>>());
    assert_eq!((spool.stats().damaged_records, spool.stats().damaged_files), (3, 0));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(world.kept.log.range(1).start, 0, "what is damaged and not copied is not trimmed");

    world.kept.keeps_nothing.store(false, std::sync::atomic::Ordering::Relaxed);
    eventually("the copies", || spool.stats().damaged_files == 3).await;
    eventually("the room", || world.kept.log.range(1).start == 19).await;
}

#[tokio::test]
async fn an_append_on_its_way_to_the_spool_counts_as_its_record() {
    let world = World::new();
    let spool = Arc::new(world.open_direct().await);
    let identity = spool.identity();
    let append = async |number| spool.append(vec![conformance::record_in(identity, 0, number, 0)]).await.expect("appends")[0];
    world.kept.set(Disk::Slow(Duration::from_millis(100)));
    world.primary.push(Way::Unavailable);
    let overtaking = async {
        eventually("the record in the spool", || world.kept.log.range(0).end == 1).await;
        eventually("the comparison", || spool.shared.is_agreed_log()).await;
        world.kept.set(Disk::Works);
        append(2).await
    };
    let (first, second) = tokio::join!(append(1), overtaking);
    assert_eq!((first.offset, second.offset), (None, None));
    drained(&spool).await;
    let found: Vec<u64> = world.contents().await[0].iter().map(|bytes| name_of(bytes).1).collect();
    assert_eq!(found, [1, 2]);
}

#[tokio::test]
async fn what_the_spool_stored_in_doubt_is_drained_too() {
    let world = World::new();
    let spool = world.open_direct().await;
    world.kept.set(Disk::Unknown { stored: true });
    world.primary.push(Way::Unavailable);
    let error = spool.append(vec![conformance::record_in(spool.identity(), 0, 1, 0)]).await.expect_err("in doubt");
    assert!(matches!(error, AppendError::Unknown(_)), "{error}");
    eventually("the record", || world.primary.log.range(0).end == 1).await;
}

#[tokio::test]
async fn a_comparison_that_began_before_a_failure_proves_nothing() {
    let mut world = World::new();
    world.options.compare_every = Duration::from_millis(1);
    world.options.compare_wait_max = Duration::from_secs(10);
    // The first one is quick, the second one ends when it is told to; both find the agreed log, and no later one does.
    let calls = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let compare = {
        let (calls, gate) = (Arc::clone(&calls), Arc::clone(&gate));
        move |_| {
            let (call, gate) = (calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed), Arc::clone(&gate));
            async move {
                match call {
                    0 => Comparison::Same,
                    1 => {
                        let _permit = gate.acquire().await;
                        Comparison::Same
                    }
                    // Long enough for a record to be sent, if it were.
                    _ => {
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        Comparison::Different("made anew".to_owned())
                    }
                }
            }
        }
    };
    let (primary, options) = (Arc::new(world.primary.clone()), world.options.clone());
    let spool = world.kept.open(Arc::new(Steps::default()), primary, Arc::new(compare), options).expect("opens");
    spool.first_comparison().await;
    eventually("the second comparison", || calls.load(std::sync::atomic::Ordering::Relaxed) == 2).await;
    world.primary.push(Way::Unavailable);
    spool.append(vec![conformance::record("user", 1, 0)]).await.expect("the spool takes it");
    gate.add_permits(1);
    eventually("the difference", || spool.stats().state == State::AnotherLog).await;
    assert_eq!(world.primary.calls().0, 1, "the record was sent to the log that had been made anew");
}

#[tokio::test]
async fn a_refused_batch_is_tried_in_smaller_ones() {
    let world = World::new();
    let spool = world.open_direct().await;
    world.primary.set(Way::Unavailable);
    let identity = spool.identity();
    for number in 0..40 {
        spool.append(vec![conformance::record_in(identity, 0, number, 0)]).await.expect("the spool takes it");
    }
    // It answers comparisons, and refuses records.
    world.primary.set(Way::Unknown(0));
    tokio::time::sleep(Duration::from_millis(60)).await;
    world.primary.calls();
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(world.primary.calls().1, 1, "one record at a time, after some failures");
    world.primary.set(Way::Works);
    drained(&spool).await;
    assert!(world.primary.calls().1 > 1, "larger ones again");
    assert_eq!(world.contents().await[0].len(), 40);
}

#[tokio::test]
async fn the_agreed_log_is_noted() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("log");
    let mut world = World::new();
    world.options.remember = Some(file.clone());
    world.primary.set(Way::Unavailable);
    let spool = world.open();
    spool.first_comparison().await;
    assert_eq!(remembered(&file).expect("no error"), None, "nothing was agreed on");
    world.primary.set(Way::Works);
    eventually("the note", || remembered(&file).expect("no error").is_some()).await;
    assert_eq!(remembered(&file).expect("no error"), Some(spool.identity()));
}

#[tokio::test]
async fn a_stopped_spool_notes_how_far_it_is() {
    let mut world = World::new();
    world.options.maintenance_every = Duration::from_secs(3600);
    let spool = world.open_direct().await;
    let mut ledger = Ledger::default();
    world.primary.set(Way::Unavailable);
    for _ in 0..10 {
        ledger.append(&spool, &[1, 2, 3, 4, 5]).await.expect("the spool takes it");
    }
    world.primary.set(Way::Works);
    drained(&spool).await;
    spool.stop().await;
    assert!(matches!(spool.append(vec![conformance::record("user", 1, 0)]).await, Err(AppendError::Stopped(_))));
    assert!(matches!(spool.ready(), Err(AppendError::Stopped(_))));
    drop(spool);
    let world = world.restarted(Steps::default());
    let spool = world.open_direct().await;
    assert_eq!(spool.stats().records(), 0);
    assert_eq!(ledger.check(&world.contents().await, "stopped"), 0);
    drop(spool);
    // Without the note all that is left is sent once more.
    world.kept.lose_note();
    let world = world.restarted(Steps::default());
    let spool = world.open();
    drained(&spool).await;
    assert!(ledger.check(&world.contents().await, "without the note") > 0);
}
